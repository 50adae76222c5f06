"""The blocks of attention: what `fn.attention` chooses by itself, beside blocks of fixed sizes.

Forward and three gradients, float32, in one process: the reason for the sizes in
`funcnet/ops/attention/_blocks.py`.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import funcnet as fn
from benchmarks.attention import CASES, Case, arrays_of
from benchmarks.harness import WHOLE, Scale, Table, compare

SIDES = (64, 128, 256, 512)


def run(scale: Scale) -> list[Table]:
    """One row per case."""
    quick = scale != WHOLE
    rows = []
    for name, case in list(CASES.items())[2 if quick else 0 : 3 if quick else None]:
        arrays = [jnp.asarray(x) for x in arrays_of(case)]
        ways = {"chosen": None} | {f"{n} × {n}": (n, n) for n in SIDES if n <= case.t}
        calls = {way: partial(_compiled(case, block, arrays), *arrays) for way, block in ways.items()}
        rows.append({"case": name, **compare(calls, rounds=2 if quick else 7, warmup=1)})
    return [Table("Forward and three gradients", rows, "Above 1: slower than what is chosen.")]


def _compiled(case: Case, block: tuple[int, int] | None, arrays: list[jax.Array]) -> Any:
    attend = partial(fn.attention.apply, causal=case.causal, block=block)

    def both(q: jax.Array, k: jax.Array, v: jax.Array, do: jax.Array) -> Any:
        o, pull = jax.vjp(attend, q, k, v)
        return o, pull(do)

    return jax.jit(both).lower(*arrays).compile()
