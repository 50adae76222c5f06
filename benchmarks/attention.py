"""Attention beside jax.nn and PyTorch: forward and its three gradients.

jax.nn is `jax.nn.dot_product_attention`, with XLA's default flags (`compiler_options`) and with the flag of
funcnet's guard, in the process where funcnet lives; PyTorch is `scaled_dot_product_attention` in its own
layout [n, h, t, e]. All compute o, dq, dk and dv from q, k, v and do, in float32, and must give the same.

Further tables, of funcnet alone: sliding windows, and a sequence of 32,768.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from benchmarks import conv, harness
from benchmarks.conv import numbers, rates
from benchmarks.harness import SMOKE, WHOLE, Entrant, Measure, Process, Scale, Table


class Case(NamedTuple):
    """One attention of q, k and v [n, t, h, e], the last two with h_kv heads."""

    n: int
    t: int
    h: int
    e: int
    h_kv: int
    causal: bool = True
    window: int | None = None

    @property
    def flops(self) -> float:
        """Of the seven products that the formula needs, of what is seen only."""
        seen = self.t * (self.t + 1) / 2 if self.causal else self.t**2
        if self.window is not None:
            seen = sum(min(i + 1, self.window) for i in range(self.t))
        return 14.0 * self.n * self.h * self.e * seen


CASES = {
    "causal (1, 4096, 8, 64)": Case(1, 4096, 8, 64, 8),
    "causal (2, 1024, 12, 64)": Case(2, 1024, 12, 64, 12),
    "causal (4, 256, 6, 64)": Case(4, 256, 6, 64, 6),
    "causal (8, 256, 6, 64)": Case(8, 256, 6, 64, 6),
    "causal (12, 64, 4, 32)": Case(12, 64, 4, 32, 4),
    "causal (1, 2048, 16, 128), 4 key heads": Case(1, 2048, 16, 128, 4),
    "all seen (4, 512, 12, 64)": Case(4, 512, 12, 64, 12, causal=False),
}
SLOW = 1e10  # flops of a case of which jax.nn takes seconds
WINDOWS = {
    f"{'all before' if window is None else f'window {window}'}, t = {t}": Case(1, t, 8, 64, 8, window=window)
    for t, window in ((8192, None), (8192, 256), (4096, 256), (16384, 256))
}
LONG = {"causal (1, 32768, 1, 64)": Case(1, 32768, 1, 64, 1)}
TINY = {"tiny causal (2, 7, 6, 4), 3 key heads": Case(2, 7, 6, 4, 3)}  # for a smoke test
ALL = CASES | WINDOWS | LONG | TINY

JAX = Process("benchmarks.attention", ("jax",))
MEMORY = {  # those that can tell the memory that they plan
    "funcnet": Entrant(JAX, "funcnet", "funcnet"),
    "jax.nn": Entrant(JAX, "jax.nn_default_flags"),
    "jax.nn, guard's flag": Entrant(JAX, "jax.nn"),
}
ENTRANTS = {**MEMORY, "PyTorch": Entrant(Process("benchmarks.attention", ("torch",)), "torch", "torch")}


def run(scale: Scale) -> list[Table]:
    """One row per case."""
    cases = TINY if scale == SMOKE else CASES if scale == WHOLE else dict(list(CASES.items())[1::3])
    slow = [case for case in cases if cases[case].flops > SLOW]
    fast = [case for case in cases if case not in slow]
    timed = harness.race(ENTRANTS, fast, scale)
    if slow:  # where code lies is a small part of a second: one generation, to save minutes
        timed |= harness.race(ENTRANTS, slow, scale._replace(generations=1))
    rows = [{"case": case, **timed[case], **rates(timed[case], cases[case].flops)} for case in cases]
    note = (
        "Ratios are to funcnet: above 1, funcnet is faster. GF/s: the seven products, of what is seen. "
        f"{conv.told(conv.products(scale))}"
    )
    tables = [Table("Forward and three gradients", rows, note, chart=True)]
    return tables if scale != WHOLE else [*tables, _long()]


def _long() -> Table:
    """Windows and a long sequence: nobody to compare with, so few samples."""
    alone = {"funcnet": ENTRANTS["funcnet"]}
    timed = harness.race(alone, [*WINDOWS, *LONG], Scale("few", rounds=3, generations=1))
    rows = []
    for case, row in timed.items():
        own = row.get("funcnet")
        each = 1e6 * own.median / ALL[case].t if isinstance(own, Measure) else ""
        rows.append({"case": case, **row, "µs a token": each, **rates(row, ALL[case].flops)})
    note = (
        "One case after the other. With a window, the time of a token should not depend on t. GF/s count "
        "what is seen, not the rest of a block that a window's edge cuts."
    )
    return Table("Sliding windows and a long sequence, funcnet alone", rows, note)


def arrays_of(case: Case) -> tuple[Any, ...]:
    """q, k, v and do."""
    import numpy as np

    rng = np.random.default_rng(0)
    q, kv = (case.n, case.t, case.h, case.e), (case.n, case.t, case.h_kv, case.e)
    return tuple(rng.standard_normal(shape, np.float32) for shape in (q, kv, kv, q))


# ---- the process of funcnet and jax.nn --------------------------------------------------------------------


def _serve_jax() -> None:
    import jax
    import jax.numpy as jnp

    import funcnet as fn
    from benchmarks.peers.plain import DEFAULT_FLAGS

    def program(way: str, case: Case) -> tuple[Any, list[Any]]:
        attend = partial(jax.nn.dot_product_attention, is_causal=case.causal)
        if way == "funcnet":
            attend = partial(fn.attention.apply, causal=case.causal, window=case.window)

        def both(q: Any, k: Any, v: Any, do: Any) -> Any:
            o, pull = jax.vjp(attend, q, k, v)
            return o, *pull(do)

        flags = DEFAULT_FLAGS if way == "jax.nn_default_flags" else None
        return jax.jit(both, compiler_options=flags), [jnp.asarray(x) for x in arrays_of(case)]

    def make(way: str, case: str) -> Callable[[], Any]:
        f, arrays = program(way, ALL[case])
        return partial(f, *arrays)

    def memory(way: str, case: str) -> int:
        """Temporary bytes that XLA plans."""
        f, arrays = program(way, ALL[case])
        return f.lower(*arrays).compile().memory_analysis().temp_size_in_bytes

    harness.serve(make, check=numbers, others={"memory": memory})


# ---- the process of PyTorch -------------------------------------------------------------------------------


def _serve_torch() -> None:
    from benchmarks.peers.torch import torch  # with as many threads as it is given cores

    attend = torch.nn.functional.scaled_dot_product_attention

    def make(way: str, name: str) -> Callable[[], Any]:
        del way
        case = ALL[name]
        q, k, v, do = (torch.from_numpy(x).transpose(1, 2).contiguous() for x in arrays_of(case))
        q, k, v = (x.requires_grad_() for x in (q, k, v))

        def call() -> Any:
            o = attend(q, k, v, is_causal=case.causal, enable_gqa=case.h != case.h_kv)
            return o, *torch.autograd.grad(o, (q, k, v), do)

        return call

    def check(result: Sequence[Any]) -> list[float]:
        return numbers(x.detach().transpose(1, 2) for x in result)

    harness.serve(make, check=check, wait=lambda result: result)


if __name__ == "__main__":
    {"jax": _serve_jax, "torch": _serve_torch}[sys.argv[1]]()
