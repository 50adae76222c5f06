"""GPT-2 124M on one GPU beside the same model in PyTorch: tokens per second, and the share of the peak.

bfloat16 with parameters in float32, t = 1024, batch 32, AdamW; vocabulary 50,304, which is 50,257 rounded up
to a multiple of 128. PyTorch as nanoGPT trains it: autocast, `torch.compile`, `scaled_dot_product_attention`,
fused AdamW. funcnet with `linear_cross_entropy`, which never holds the logits in full. Each in a process of
its own, in turn. Needs the extra [bench], and a jax and a torch that see the GPU.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks import _gpt, harness
from benchmarks._gpt import Size
from benchmarks.harness import Table

GPT2 = Size(layers=12, heads=12, d=768, t=1024, batch=32, vocabulary=50304)
H100 = 989.4e12  # FLOP/s in bfloat16, dense: NVIDIA's data sheet of the H100 SXM
RATE, DECAY = 6e-4, 0.1
PARTS = ("step", "loss and gradients", "loss")  # of both
OURS = ("step, logits in full", "head and loss, with gradients", "attention of one layer, with gradients")

Cases = dict[str, Callable[[], Callable[[], Any]]]


def run(quick: bool) -> list[Table]:
    """Two tables; this process imports neither jax nor torch."""
    grow = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # two processes share the memory
    workers = {"funcnet": harness.Worker("benchmarks.gpt2_gpu", grow, "funcnet")}
    device, is_gpu, peak = workers["funcnet"].ask("device")
    if not is_gpu:
        workers["funcnet"].close()
        raise SystemExit(f"gpt2_gpu: this needs a GPU, but JAX has only {device} here")
    if importlib.util.find_spec("torch"):
        workers["torch"] = harness.Worker("benchmarks.gpt2_gpu", {}, "torch")
        if not workers["torch"].ask("device")[1]:
            workers.pop("torch").close()
    rounds = 2 if quick else 9
    rows: list[dict[str, object]] = []
    for part in PARTS[: 1 if quick else None]:
        timings = _times(workers, part, rounds)
        rows.append({"part": part, **timings})
    for part in () if quick else OURS:
        rows.append({"part": part, **_times({"funcnet": workers["funcnet"]}, part, rounds)})
    losses = [worker.ask("losses")[-1] for worker in workers.values()]
    for worker in workers.values():
        worker.close()
    steps = {name: cell for name, cell in rows[0].items() if isinstance(cell, harness.Timing)}
    causal, full = flops_per_token(GPT2)
    rates = {name: GPT2.batch * GPT2.t / timing.median for name, timing in steps.items()}
    reached = [
        {
            "GPT-2 124M": name,
            "step": steps[name],
            "tokens/s": f"{rate:,.0f}",
            "share of peak, masked half not counted": f"{rate * causal / (peak or H100):.1%}",
            "share of peak, masked half counted": f"{rate * full / (peak or H100):.1%}",
        }
        for name, rate in rates.items()
    ]
    note = (
        f"{device}, {(peak or H100) / 1e12:.1f} TFLOP/s. FLOPs per token: 6 N + 6 · layers · d · t = "
        f"{causal / 1e6:.0f} M without the products that causality masks, 6 N + 12 · layers · d · t = "
        f"{full / 1e6:.0f} M with them; N counts every parameter once. Loss after 3 steps: "
        f"{_gpt.agreement(losses, 1e-2)}. Goal: 470,000 tokens/s, 1.15 times PyTorch."
    )
    return [Table("Training step", reached, note), Table("Where the time goes", rows)]


def flops_per_token(size: Size) -> tuple[int, int]:
    """Of a training step, without and with the products of attention that causality masks.

    6 per parameter and token: 2 forward, 4 backward (two products for one). Attention takes, per layer, token
    and key, 2 d multiply-adds forward (Q Kᵀ and P V), so 3 · 4 d FLOPs for each of t keys, or of t / 2. The
    table of positions takes part in no product; it is counted, as in nanoGPT's and llm.c's N.
    """
    d = size.d
    blocks = size.layers * (12 * d * d + 13 * d)  # matrices 4 d² and 8 d²; biases 3 d, d, 4 d, d; norms 4 d
    parameters = blocks + (size.vocabulary + size.t) * d + 2 * d
    attention = 12 * size.layers * d * size.t
    return 6 * parameters + attention // 2, 6 * parameters + attention


def _times(workers: dict[str, harness.Worker], part: str, rounds: int) -> dict[str, harness.Timing]:
    calls = min(worker.ask("prepare", part) for worker in workers.values())
    samplers = {name: partial(worker.ask, "sample", calls) for name, worker in workers.items()}
    samples = harness.interleave(samplers, rounds)
    return harness.summarise({name: [wall for wall, _ in values] for name, values in samples.items()})


def by_funcnet(size: Size, dtype: str) -> Cases:
    """The parts of a step; each call gives arrays to wait for, those of a step its loss."""
    import jax
    import jax.numpy as jnp
    import optax

    import funcnet as fn

    transformer = fn.nets.transformer
    config = _gpt.config(size, dtype=dtype)
    data = jax.tree.map(jnp.asarray, _gpt.batch(size))

    def lean(params: Any, batch: Any, key: Any) -> Any:
        del key
        x = transformer.hidden(params, batch[0], config)
        return head(x, transformer.head(params, config), batch[1])

    def plain(params: Any, batch: Any, key: Any) -> Any:
        del key
        return fn.cross_entropy.apply(transformer.apply(params, batch[0], config), batch[1]).mean()

    def head(x: Any, w: Any, labels: Any) -> Any:
        return fn.linear_cross_entropy.apply(x, w, labels).mean()

    def attention(q: Any, k: Any, v: Any) -> Any:
        return fn.attention.apply(q, k, v, causal=True).astype(jnp.float32).sum()

    def params() -> Any:
        return jax.tree.map(jnp.asarray, _gpt.weights(size))

    def drawn(*shape: int) -> Any:
        return jax.random.normal(jax.random.key(0), shape, config.dtype)

    def step(loss: Callable[..., Any]) -> Callable[[], Any]:
        optimizer = optax.adamw(RATE, b2=0.95, weight_decay=DECAY)
        update = fn.train.make_step(loss, optimizer)
        state = fn.train.init(params(), optimizer, key=jax.random.key(0))

        def call() -> Any:
            nonlocal state
            state, metrics = update(state, data)
            return metrics["loss"]

        return call

    def jitted(function: Callable[..., Any], *shapes: tuple[int, ...]) -> Callable[[], Any]:
        return partial(jax.jit(function), *(drawn(*shape) for shape in shapes))

    heads = (size.batch, size.t, size.heads, size.d // size.heads)
    return {
        "step": partial(step, lean),
        "loss and gradients": lambda: partial(jax.jit(jax.value_and_grad(lean)), params(), data, None),
        "loss": lambda: partial(jax.jit(lean), params(), data, None),
        "step, logits in full": partial(step, plain),
        "head and loss, with gradients": lambda: jitted(
            lambda x, w: jax.value_and_grad(head, (0, 1))(x, w, data[1]),
            (size.batch, size.t, size.d),
            (size.d, size.vocabulary),
        ),
        "attention of one layer, with gradients": lambda: jitted(
            jax.value_and_grad(attention, (0, 1, 2)), heads, heads, heads
        ),
    }


def by_torch(size: Size, dtype: str, device: str) -> Cases:
    """The parts of a step, compiled where there is a GPU."""
    torch: Any = importlib.import_module("torch")
    torch.set_float32_matmul_precision("high")
    functional = torch.nn.functional
    ids, labels = (torch.from_numpy(part).long().to(device) for part in _gpt.batch(size))

    def loss_of(model: Any) -> Callable[[], Any]:
        def loss() -> Any:
            with torch.autocast(device, getattr(torch, dtype), enabled=dtype != "float32"):
                logits = model(ids)
                return functional.cross_entropy(logits.view(-1, size.vocabulary), labels.view(-1))

        return torch.compile(loss) if device == "cuda" else loss

    def gradients(model: Any) -> Callable[[], Any]:
        loss = loss_of(model)

        def call() -> Any:
            model.zero_grad(set_to_none=True)
            value = loss()
            value.backward()
            return value.detach()

        return call

    def step() -> Callable[[], Any]:
        model = _gpt.by_torch(size).to(device)
        optimizer = torch.optim.AdamW(
            model.parameters(), RATE, betas=(0.9, 0.95), weight_decay=DECAY, fused=True
        )
        backward = gradients(model)

        def call() -> Any:
            value = backward()
            optimizer.step()
            return value

        return call

    return {
        "step": step,
        "loss and gradients": lambda: gradients(_gpt.by_torch(size).to(device)),
        "loss": lambda: torch.no_grad()(loss_of(_gpt.by_torch(size).to(device))),
    }


def _losses(cases: Cases) -> list[float]:
    """Of the first four steps; the last is the loss after three."""
    call = cases["step"]()
    return [float(call()) for _ in range(4)]


def _answer_with_funcnet() -> None:
    import jax

    from funcnet import backend

    device = jax.devices()[0]
    cases = by_funcnet(GPT2, "bfloat16") if device.platform == "gpu" else {}
    facts = device.device_kind, device.platform == "gpu", backend.peak_flops(device.device_kind, "bfloat16")
    harness.answer(cases, {"device": lambda: facts, "losses": lambda: _losses(cases)})


def _answer_with_torch() -> None:
    torch: Any = importlib.import_module("torch")
    found = torch.cuda.is_available()
    cases = by_torch(GPT2, "bfloat16", "cuda") if found else {}
    facts = torch.cuda.get_device_name() if found else "cpu", found
    others = {"device": lambda: facts, "losses": lambda: _losses(cases)}
    harness.answer(cases, others, wait=lambda _: torch.cuda.synchronize())


if __name__ == "__main__":
    {"funcnet": _answer_with_funcnet, "torch": _answer_with_torch}[sys.argv[1]]()
