"""Decoding with a cache beside PyTorch: the tokens that a GPT adds to a prompt, greedily.

funcnet's `fn.generate` beside PyTorch in a loop: eager, under `inference_mode`, with a preallocated cache.
Same weights, same prompts; the tokens must be the same. A second table: the memory that a prompt takes.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from benchmarks import conv, harness
from benchmarks.harness import SMOKE, WHOLE, Entrant, Measure, Process, Scale, Table
from benchmarks.models import ALL, Gpt


class Case(NamedTuple):
    """`batch` prompts of `prompt` tokens each, to which a model adds `new` ones."""

    model: str
    batch: int
    prompt: int = 32
    new: int = 200


SMALL, LARGE = "GPT 6 × 384, t = 256, batch 8", "GPT 30 × 576, 49,152 tokens"
# The second has the width, depth, heads and vocabulary of SmolLM2-135M, and GPT-2's blocks as all of these.
MODELS = ALL | {LARGE: Gpt(30, 9, 576, 256, 1, vocabulary=49_152)}
CASES = {
    **{f"GPT 6 × 384, batch {n}": Case(SMALL, n, new=new) for n, new in ((1, 200), (8, 200), (32, 100))},
    "GPT 30 × 576, 49,152 tokens, batch 1": Case(LARGE, 1, new=40),
    "GPT 30 × 576, 49,152 tokens, batch 32": Case(LARGE, 32, new=16),
}
TINY = {"tiny, batch 2": Case("tiny GPT", 2, prompt=2, new=4)}  # for a smoke test
LENGTHS = (1024, 2048, 4096, 8192)

JAX = Process("benchmarks.decoding", ("jax",))
ENTRANTS = {
    "funcnet": Entrant(JAX, "funcnet", "funcnet"),
    "PyTorch": Entrant(Process("benchmarks.decoding", ("torch",)), "torch", "torch"),
}


def run(scale: Scale) -> list[Table]:
    """One row per model and number of prompts; one per length of a prompt."""
    cases = TINY if scale == SMOKE else CASES if scale == WHOLE else dict(list(CASES.items())[:1])
    with harness.running([JAX]) as workers:  # where nothing is compiled yet
        compiled = {case: workers[JAX].ask("compilations", case) for case in cases}
        lengths = (8, 16) if scale == SMOKE else LENGTHS if scale == WHOLE else LENGTHS[:2]
        model = next(iter(cases.values())).model
        planned = [workers[JAX].ask("prompt", model, t) for t in lengths]
    timed = harness.race(ENTRANTS, cases, scale._replace(rounds=min(scale.rounds, 4)))
    rows = []
    for case, row in timed.items():
        first, again = compiled[case]
        tokens = cases[case].batch * cases[case].new
        speeds = {
            f"{name}, tokens/s": f"{tokens / cell.median:,.0f}"
            for name, cell in row.items()
            if isinstance(cell, Measure)
        }
        new = {"new tokens": cases[case].new}
        rows.append({"decoding": case, **row, **new, **speeds, "programs compiled": first, "again": again})
    prompt = next(iter(cases.values())).prompt
    note = (
        f"New tokens after prompts of {prompt}, greedy. Programs compiled: in the first call of "
        "`fn.generate` (each row's after those before it, in the same process), and again in a second one "
        "with other tokens. "
        f"{conv.told(conv.products(scale))}"
    )
    memory = [
        {
            "prompt": f"{t:,} tokens",
            "temporary memory": Measure(size, size, size, size / planned[0], unit="B"),
        }
        for t, size in zip(lengths, planned, strict=True)
    ]
    return [
        Table("Decoding with a cache", rows, note, chart=True),
        Table(
            "Memory of a prompt",
            memory,
            f"Of {model.partition(', ')[0]}, as XLA plans the program of `fn.generate` that reads the prompt "
            "and picks the first token, besides params, cache and result. Ratios are to the first row: what "
            "grows as the length does doubles from row to row.",
        ),
    ]


def _parts(case: str, seed: int = 2) -> tuple[Gpt, Case, Any]:
    """The model, the case, and the prompts int32 [batch, prompt]."""
    import numpy as np

    own = (CASES | TINY)[case]
    model = MODELS[own.model]
    assert isinstance(model, Gpt)
    rng = np.random.default_rng(seed)
    return model, own, rng.integers(0, model.vocabulary, (own.batch, own.prompt)).astype(np.int32)


def _serve_jax() -> None:
    import jax
    import jax.numpy as jnp

    import funcnet as fn
    from benchmarks.peers.ours import gpt_config
    from funcnet.nets import generate

    compiled: list[float] = []

    def note(event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(note)

    def make(way: str, case: str, seed: int = 2) -> Callable[[], Any]:
        del way
        model, own, ids = _parts(case, seed)
        params = jax.tree.map(jnp.asarray, model.weights())
        return partial(fn.generate, params, jnp.asarray(ids), gpt_config(model), max_new_tokens=own.new)

    def compilations(case: str) -> tuple[int, int]:
        """Of a first call, and of a second one with other tokens."""
        counts = []
        for seed in (2, 3):
            call = make("funcnet", case, seed)
            before = len(compiled)
            jax.block_until_ready(call())
            counts.append(len(compiled) - before)
        return counts[0], counts[1]

    def prompt(name: str, t: int) -> int:
        """Temporary bytes of the program for one prompt of t tokens."""
        model = MODELS[name]
        assert isinstance(model, Gpt)
        model = replace(model, t=t + 16)
        config = gpt_config(model)
        params = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), model.weights())
        ids, length, stops = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((1, t), (1,), (0,)))
        draw = dict.fromkeys(("temperature", "top_p", "min_p", "key"))
        read = generate._begin.lower(params, ids, length, stops, draw, config, None, t + 16, 16)
        plan = read.compile().memory_analysis()
        assert plan is not None
        return plan.temp_size_in_bytes

    harness.serve(
        make,
        check=lambda tokens: tokens.ravel().tolist(),
        others={"compilations": compilations, "prompt": prompt},
    )


def _serve_torch() -> None:
    from benchmarks.peers import torch as peer

    torch = peer.torch

    def make(way: str, case: str) -> Callable[[], Any]:
        del way
        model, own, prompts = _parts(case)
        net, ids = peer.gpt(model).eval(), torch.from_numpy(prompts).long()
        shape = (own.batch, model.heads, own.prompt + own.new, model.d // model.heads)

        @torch.inference_mode()
        def call() -> Any:
            cache = [(torch.empty(shape), torch.empty(shape)) for _ in range(model.layers)]
            token = net(ids, cache).argmax(-1, keepdim=True)
            tokens = [token]
            for at in range(own.prompt, own.prompt + own.new - 1):
                token = net(token, cache, at).argmax(-1, keepdim=True)
                tokens.append(token)
            return torch.cat(tokens, 1)

        return call

    harness.serve(make, check=lambda tokens: tokens.flatten().tolist(), wait=lambda tokens: tokens)


if __name__ == "__main__":
    {"jax": _serve_jax, "torch": _serve_torch}[sys.argv[1]]()
