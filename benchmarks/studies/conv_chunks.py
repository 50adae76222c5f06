"""The gradient of a kernel from a few images at a time beside all at once: time and memory.

All at once, XLA copies x into another layout as soon as there is an x, in the forward pass, and keeps the
copy until dw is computed. A loop makes a small one for each chunk.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.conv import CASES, drawn
from benchmarks.harness import (
    QUICK,
    SMOKE,
    Measure,
    Process,
    Scale,
    Table,
    interleave,
    running,
    seconds,
    serve,
    summarise,
)
from benchmarks.models import ALL, Resnet

HERE = Process("benchmarks.studies.conv_chunks")  # of its own: of one device, as a user's
WAYS = ("by chunks", "at once")


def run(scale: Scale) -> list[Table]:
    """One row per case of one group, and one for a training step."""
    step = next(
        name for name in ALL if isinstance(ALL[name], Resnet) and ("tiny" in name) == (scale == SMOKE)
    )
    cases = [name for name, case in CASES.items() if case.groups == 1 and not case.transposed]
    cases = cases[:1] if scale == SMOKE else cases[::3] if scale == QUICK else cases
    rows = []
    for case in [*cases, step]:
        with running([HERE]) as workers:
            memory = {way: workers[HERE].ask("prepare", way, case) for way in WAYS}
            calls = max(1, round(0.03 / max(workers[HERE].ask("time", way, 1) for way in WAYS)))
            samplers = {way: partial(workers[HERE].ask, "time", way, calls) for way in WAYS}
            timed = summarise([interleave(samplers, scale.rounds)])
        planned = {
            f"memory, {way}": Measure(size, size, size, size / max(memory[WAYS[0]], 1), unit="B")
            for way, size in memory.items()
        }
        rows.append({"dw of": case, **timed, **planned})
    note = (
        "Memory as XLA plans it, besides arguments and results. Ratios are to the first column of each kind."
    )
    return [Table("The gradient of a kernel", rows, note)]


def _answer() -> None:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from benchmarks.peers import ours
    from funcnet.ops.conv import _toeplitz_forms as forms
    from funcnet.ops.conv._window import Window

    calls: dict[str, Callable[[], Any]] = {}

    def prepare(way: str, case: str) -> int:
        forms._loops_are_local = lambda: way == WAYS[0]
        jax.clear_caches()
        is_step = case in ALL
        f, *arguments = ours._program(ALL[case]) if is_step else _alone(case)
        compiled = f.lower(*arguments).compile()
        calls[way] = (ours.repeated if is_step else partial)(compiled, *arguments)
        seconds(calls[way], 2)
        return compiled.memory_analysis().temp_size_in_bytes

    def _alone(case: str) -> tuple[Any, Any, Any]:
        own, (x, _, dy) = CASES[case], drawn(CASES[case])
        d = len(own.kernel)
        window = Window(own.size, own.kernel, (own.stride,) * d, (own.dilation,) * d, own.padding)
        p = forms.Problem(window, own.batch, 1, own.c_in, own.c_out, np.dtype(np.float32))
        dw = lambda x, dy: forms.on_cpu(p, "kernel_gradient").kernel_gradient(x, dy)
        return jax.jit(dw), jnp.asarray(x)[..., None, :], jnp.asarray(dy)[..., None, :]

    serve(others={"prepare": prepare, "time": lambda way, count: seconds(calls[way], count)})


if __name__ == "__main__":
    _answer()
