"""A character GPT beside Flax NNX and PyTorch: training steps, the first step, the scan, decoding.

The model of GPT-2 (benchmarks/_gpt.py) in float32 with 65 tokens, and AdamW with weight decay on every leaf.
All three start from the same weights, and their losses after three steps are compared. NNX runs as its users
run it (`nnx.jit`, `nnx.MultiHeadAttention`, which calls `jax.nn.dot_product_attention`), under XLA's default
flags, and once more with the flag of funcnet's guard. PyTorch runs `scaled_dot_product_attention` and the
faster of AdamW's two forms. Each in a process of its own, in turn. Needs the extra [bench].
"""

import importlib
import importlib.util
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks import _gpt, harness
from benchmarks._gpt import Size
from benchmarks.conv import KEEP_MEMORY
from benchmarks.harness import Table

RATE, DECAY = 1e-3, 0.1
STEPS = {
    "6 layers, width 384, t = 256, batch 8": Size(6, 6, 384, 256, 8),
    "4 layers, width 128, t = 64, batch 12": Size(4, 4, 128, 64, 12),
}
LARGE, SMALL = STEPS
SCANS = {LARGE: STEPS[LARGE], "12 layers, width 384, t = 256, batch 4": Size(12, 6, 384, 256, 4)}
FORMS = ("unrolled", "unroll=3", "unroll=1")
DEPTHS = (6, 48)
NARROW = Size(0, 2, 64, 64, 4)  # a step so small that its first one is compilation
PROMPT, NEW = 32, 200
DECODING = {f"batch {n}": n for n in (1, 8)}


def run(quick: bool) -> list[Table]:
    """Five tables; this process imports neither jax nor torch."""
    return [*_against_peers(quick), _forms(quick), _first_steps(quick)]


def _against_peers(quick: bool) -> list[Table]:
    """Training steps, their memory, and decoding."""
    settings = {
        "funcnet": ("funcnet", {}),
        "nnx, default flags": ("nnx", {"FUNCNET_XLA_GUARD": "off"}),
        "nnx, guard's flag": ("nnx", {}),
        "torch": ("torch", {}),
    }
    for peer in {"nnx": "flax", "torch": "torch"}.items():
        if importlib.util.find_spec(peer[1]) is None:
            settings = {name: value for name, value in settings.items() if value[0] != peer[0]}
    workers = {
        name: harness.Worker("benchmarks.transformer", {**KEEP_MEMORY, **environment}, way)
        for name, (way, environment) in settings.items()
    }
    steps, memory, decoding = [], [], []
    for case in list(STEPS)[quick:]:
        losses = {name: worker.ask("losses", case) for name, worker in workers.items()}
        sizes = {worker.ask("parameters", case) for worker in workers.values()}
        assert len(sizes) == 1, f"not the same model: {sizes} parameters"
        timings = harness.take_turns(workers, case, 2 if quick else 9)
        tokens = STEPS[case].batch * STEPS[case].t
        steps.append(
            {
                "step of": case,
                **timings,
                "funcnet, tokens/s": f"{tokens / timings['funcnet'].median:,.0f}",
                "parameters": f"{sizes.pop():,}",
                "loss after 3 steps": _gpt.agreement([values[-1] for values in losses.values()], 1e-3),
            }
        )
        ours, theirs = workers["funcnet"].ask("memory", case)
        row = {"funcnet MiB": ours / 2**20, "jax MiB": theirs / 2**20, "ratio": ours / theirs}
        memory.append({"step of": case, **row})
    pair = {name: worker for name, worker in workers.items() if name in ("funcnet", "torch")}
    for case, n in list(DECODING.items())[: 1 if quick else None]:
        first, again = workers["funcnet"].ask("compilations", case)
        tokens = {name: worker.ask("tokens", case) for name, worker in pair.items()}
        timings = harness.take_turns(pair, case, 2 if quick else 9)
        speeds = {f"{name}, tokens/s": f"{n * NEW / timing.median:,.0f}" for name, timing in timings.items()}
        same = len({str(value) for value in tokens.values()}) == 1
        decoding.append(
            {
                "decoding": case,
                **timings,
                **speeds,
                "tokens": "the same" if same else "NOT the same",
                "programs compiled": first,
                "again": again,
            }
        )
    for worker in workers.values():
        worker.close()
    note = "Ratios are to funcnet: above 1, funcnet is faster."
    return [
        Table("Training step", steps, note, chart=True),
        Table(
            "Temporary memory of the step",
            memory,
            "What XLA plans, besides arguments and results; jax: the same step under `fn.autodiff('jax')`.",
        ),
        Table(
            "Decoding with a cache",
            decoding,
            f"{NEW} new tokens after a prompt of {PROMPT}, greedy, the model with 6 layers of width 384. "
            "PyTorch: eager, `inference_mode`, a preallocated cache. Programs compiled: in the first call of "
            "`fn.generate`, and again in a second one with other tokens.",
        ),
    ]


def _forms(quick: bool) -> Table:
    """The steady step of each form of the loop over the layers."""
    workers = {form: harness.Worker("benchmarks.transformer", KEEP_MEMORY, "funcnet", form) for form in FORMS}
    cases = [SMALL] if quick else SCANS
    rows = [{"step of": case, **harness.take_turns(workers, case, 2 if quick else 9)} for case in cases]
    for worker in workers.values():
        worker.close()
    note = (
        "Ratios are to the unrolled form, a program text per layer, which is the default up to 12 layers. "
        "`unroll=k`: a loop with k layers in its body; 1 is the default of deeper models."
    )
    return Table("Loop over the layers, funcnet", rows, note)


def _first_steps(quick: bool) -> Table:
    """Trace, lower, compile and run, in a fresh process each time."""
    environment = {"JAX_ENABLE_COMPILATION_CACHE": "false", "JAX_COMPILATION_CACHE_DIR": None}

    def sample(layers: int, form: str) -> dict[str, float]:
        worker = harness.Worker("benchmarks.transformer", environment, "first", form)
        parts = worker.ask("first", layers)
        worker.close()
        return parts

    rows = []
    for form in ("default", "unroll=1") if quick else ("default", "unroll=1", "unrolled"):
        depths = {str(layers): partial(sample, layers, form) for layers in ((2, 6) if quick else DEPTHS)}
        samples = harness.interleave(depths, 1 if quick or form == "unrolled" else 3)
        totals = {layers: [sum(parts.values()) for parts in values] for layers, values in samples.items()}
        for layers, timing in harness.summarise(totals).items():
            parts = {
                f"{part}, s": statistics.median(values[part] for values in samples[layers])
                for part in samples[layers][0]
            }
            rows.append({"layers": layers, "form": form, "to the first step": timing, **parts})
    note = (
        f"Width {NARROW.d}, t = {NARROW.t}, batch {NARROW.batch}: a step so small that this is compilation. "
        "No persistent cache. The ratio is that of a form's depths; target: 1.3 for a loop. By default the 6 "
        "layers are unrolled, and the 48 are a loop."
    )
    return Table("Time to the first step, funcnet", rows, note)


def prompts(n: int, seed: int = 2) -> Any:
    """Tokens [n, PROMPT]."""
    import numpy as np

    return np.random.default_rng(seed).integers(0, STEPS[LARGE].vocabulary, (n, PROMPT)).astype(np.int32)


def _by_funcnet(form: str = "default") -> None:
    import jax
    import jax.numpy as jnp
    import optax

    import funcnet as fn

    transformer = fn.nets.transformer
    compiled: list[float] = []

    def note(event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(note)

    def build(size: Size) -> tuple[Any, Any]:
        unroll = {"unrolled": size.layers, "unroll=3": 3, "unroll=1": 1, "default": None}[form]
        config = _gpt.config(size, unroll=unroll)
        params = jax.tree.map(jnp.asarray, _gpt.weights(size))
        like = jax.eval_shape(lambda: transformer.init(jax.random.key(0), config))
        assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, like)
        return params, config

    def parts(size: Size) -> tuple[Any, Any, Any]:
        params, config = build(size)

        def loss(params: Any, batch: Any, key: Any) -> Any:
            del key
            return fn.cross_entropy.apply(transformer.apply(params, batch[0], config), batch[1]).mean()

        optimizer = optax.adamw(RATE, weight_decay=DECAY)
        state = fn.train.init(params, optimizer, key=jax.random.key(0))
        return fn.train.make_step(loss, optimizer), state, jax.tree.map(jnp.asarray, _gpt.batch(size))

    def train(size: Size) -> Callable[[], Any]:
        step, state, data = parts(size)

        def call() -> Any:
            nonlocal state
            state, metrics = step(state, data)
            return metrics["loss"]

        return call

    def decode(n: int, seed: int = 2) -> Callable[[], Any]:
        params, config = build(STEPS[LARGE])
        ids = jnp.asarray(prompts(n, seed))
        return lambda: fn.generate(params, ids, config, max_new_tokens=NEW)

    def memory(case: str) -> tuple[int, int]:
        sizes = []
        for how in ("hand", "jax"):
            with fn.autodiff(how):
                step, state, data = parts(STEPS[case])
                sizes.append(step.lower(state, data).compile().memory_analysis().temp_size_in_bytes)
        return sizes[0], sizes[1]

    def compilations(case: str) -> tuple[int, int]:
        counts = []
        for seed in (2, 3):
            call = decode(DECODING[case], seed)
            before = len(compiled)
            jax.block_until_ready(call())
            counts.append(len(compiled) - before)
        return counts[0], counts[1]

    def first(layers: int) -> dict[str, float]:
        size = Size(layers, NARROW.heads, NARROW.d, NARROW.t, NARROW.batch)
        step, state, data = parts(size)
        jax.block_until_ready((state.params, data))
        times = [time.perf_counter()]
        traced = step.trace(state, data)
        times.append(time.perf_counter())
        lowered = traced.lower()
        times.append(time.perf_counter())
        program = lowered.compile()
        times.append(time.perf_counter())
        jax.block_until_ready(program(state, data))
        times.append(time.perf_counter())
        seconds = (after - before for before, after in itertools.pairwise(times))
        return dict(zip(("trace", "lower", "compile", "run"), seconds, strict=True))

    steps = {case: partial(train, size) for case, size in (STEPS | SCANS).items()}
    others = {
        "losses": lambda case: _losses(steps[case]()),
        "parameters": lambda case: sum(leaf.size for leaf in jax.tree.leaves(build(STEPS[case])[0])),
        "memory": memory,
        "tokens": lambda case: decode(DECODING[case])().tolist(),
        "compilations": compilations,
        "first": first,
    }
    harness.answer(steps | {case: partial(decode, n) for case, n in DECODING.items()}, others)


def _by_nnx() -> None:
    import jax
    import jax.numpy as jnp
    import optax

    import funcnet  # noqa: F401 (for its guard, unless the environment says no)

    nnx: Any = importlib.import_module("flax.nnx")

    class Block(nnx.Module):
        def __init__(self, size: Size, rngs: Any):
            self.norm1 = nnx.LayerNorm(size.d, epsilon=1e-5, rngs=rngs)
            self.attention = nnx.MultiHeadAttention(size.heads, size.d, decode=False, rngs=rngs)
            self.norm2 = nnx.LayerNorm(size.d, epsilon=1e-5, rngs=rngs)
            self.up = nnx.Linear(size.d, 4 * size.d, rngs=rngs)
            self.down = nnx.Linear(4 * size.d, size.d, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            x = x + self.attention(self.norm1(x), is_causal=True)
            return x + self.down(nnx.gelu(self.up(self.norm2(x))))

    class Model(nnx.Module):
        def __init__(self, size: Size, rngs: Any):
            self.tokens = nnx.Embed(size.vocabulary, size.d, rngs=rngs)
            self.positions = nnx.Embed(size.t, size.d, rngs=rngs)
            self.blocks = nnx.List([Block(size, rngs) for _ in range(size.layers)])
            self.norm = nnx.LayerNorm(size.d, epsilon=1e-5, rngs=rngs)

        def __call__(self, ids: Any) -> Any:
            x = self.tokens(ids) + self.positions(jnp.arange(ids.shape[-1]))
            for block in self.blocks:
                x = block(x)
            return self.tokens.attend(self.norm(x))

    def filled(size: Size) -> Any:
        model, tree = Model(size, nnx.Rngs(0)), _gpt.weights(size)
        model.tokens.embedding[...] = tree["tokens"]["w"]
        model.positions.embedding[...] = tree["positions"]["w"]

        def put(norm: Any, leaves: Any) -> None:
            norm.scale[...], norm.bias[...] = leaves["w"], leaves["b"]

        put(model.norm, tree["norm"])
        for i, block in enumerate(model.blocks):
            own = jax.tree.map(lambda leaf, i=i: leaf[i], tree["blocks"])
            put(block.norm1, own["norm1"])
            put(block.norm2, own["norm2"])
            a = block.attention
            maps = {"q": a.query, "k": a.key, "v": a.value, "o": a.out}
            pairs = [(layer, own["attention"][name]) for name, layer in maps.items()]
            for layer, leaves in [*pairs, (block.up, own["up"]), (block.down, own["down"])]:
                layer.kernel[...], layer.bias[...] = leaves["w"], leaves["b"]
        return model

    def train(size: Size) -> Callable[[], Any]:
        model = filled(size)
        optimizer = nnx.Optimizer(model, optax.adamw(RATE, weight_decay=DECAY), wrt=nnx.Param)
        ids, labels = map(jnp.asarray, _gpt.batch(size))

        def loss(model: Any, ids: Any, labels: Any) -> Any:
            return optax.softmax_cross_entropy_with_integer_labels(model(ids), labels).mean()

        @nnx.jit
        def step(model: Any, optimizer: Any, ids: Any, labels: Any) -> Any:
            value, grads = nnx.value_and_grad(loss)(model, ids, labels)
            optimizer.update(model, grads)
            return value

        return lambda: step(model, optimizer, ids, labels)

    def parameters(case: str) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(filled(STEPS[case]), nnx.Param)))

    steps = {case: partial(train, size) for case, size in STEPS.items()}
    harness.answer(steps, {"losses": lambda case: _losses(steps[case]()), "parameters": parameters})


def _by_torch() -> None:
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    cross_entropy = torch.nn.functional.cross_entropy

    def update(size: Size, **form: bool) -> float:
        """Seconds of one update by one form of AdamW."""
        model = _gpt.by_torch(size)
        for leaf in model.parameters():
            leaf.grad = torch.zeros_like(leaf)
        optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY, **form)
        harness.seconds(optimizer.step, 2, lambda result: result)
        return harness.seconds(optimizer.step, 5, lambda result: result)

    def train(size: Size) -> Callable[[], Any]:
        fused = update(size, fused=True) <= update(size, foreach=True)
        model = _gpt.by_torch(size)
        form = {"fused": True} if fused else {"foreach": True}
        optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY, **form)
        ids, labels = (torch.from_numpy(part).long() for part in _gpt.batch(size))

        def call() -> Any:
            optimizer.zero_grad()
            loss = cross_entropy(model(ids).view(-1, size.vocabulary), labels.reshape(-1))
            loss.backward()
            optimizer.step()
            return loss.detach()

        return call

    def decode(n: int) -> Callable[[], Any]:
        model, size = _gpt.by_torch(STEPS[LARGE]).eval(), STEPS[LARGE]
        ids = torch.from_numpy(prompts(n)).long()
        shape = (n, size.heads, size.t, size.d // size.heads)

        @torch.inference_mode()
        def call() -> Any:
            cache = [(torch.empty(shape), torch.empty(shape)) for _ in range(size.layers)]
            logits, at, tokens = model(ids, cache), PROMPT, []
            for _ in range(NEW - 1):
                tokens.append(logits.argmax(-1, keepdim=True))
                logits = model(tokens[-1], cache, at)
                at += 1
            return torch.cat([*tokens, logits.argmax(-1, keepdim=True)], 1)

        return call

    def parameters(case: str) -> int:
        return sum(leaf.numel() for leaf in _gpt.by_torch(STEPS[case]).parameters())

    steps = {case: partial(train, size) for case, size in STEPS.items()}
    others = {
        "losses": lambda case: _losses(steps[case]()),
        "parameters": parameters,
        "tokens": lambda case: decode(DECODING[case])().tolist(),
    }
    cases = steps | {case: partial(decode, n) for case, n in DECODING.items()}
    harness.answer(cases, others, wait=lambda result: result)


def _losses(call: Callable[[], Any]) -> list[float]:
    """Of the first four steps; the last is the loss after three."""
    return [float(call()) for _ in range(4)]


if __name__ == "__main__":
    {"funcnet": _by_funcnet, "first": _by_funcnet, "nnx": _by_nnx, "torch": _by_torch}[sys.argv[1]](
        *sys.argv[2:]
    )
