"""Every method of every product of a convolution, in one process: the reason for the choice on CPU.

`auto` is what `funcnet.ops.conv._toeplitz_forms.on_cpu` chooses. A method that takes over four times as long
as the best in a first trial is not timed again, so that its memory does not disturb the others.
"""

import os
from functools import partial
from typing import Any

from benchmarks.conv import CASES, Case, drawn
from benchmarks.harness import WHOLE, Process, Scale, Table, Worker, interleave, serve, summarise

METHODS = ("auto", "direct", "shifted", "unfold", "fold", "crossed", "polyphase", "winograd", "fft")
PRODUCTS = ("y", "dx", "dw")


def run(scale: Scale) -> list[Table]:
    """One row per case and product, one column per method."""
    quick = scale != WHOLE
    worker = Worker(Process("benchmarks.studies.conv_methods"))
    rows = []
    for case in list(CASES)[:: 8 if quick else 1]:
        for product in PRODUCTS:
            calls = {
                method: count
                for method in METHODS
                if (count := worker.ask("fits", case, product, method)) > 0
            }
            most = max(calls.values())  # of the fastest
            samplers = {
                method: partial(worker.ask, "time", method, most)
                for method, count in calls.items()
                if count * 4 >= most
            }
            timings = summarise([interleave(samplers, 2 if quick else 5)])
            slow = {method: "> 4 times the best" for method in calls if method not in timings}
            rows.append({"case": case, "product": product, **timings, **slow})
    worker.close()
    return [Table("Time of one product", rows, "Ratios are to auto: above 1, auto is faster.")]


def _answer() -> None:
    import jax
    import jax.numpy as jnp

    from benchmarks.harness import seconds
    from funcnet.ops.conv import _toeplitz, _toeplitz_forms

    compiled: dict[str, Any] = {}  # by method, of one case and product at a time

    def make(case: Case, product: str, method: str) -> Any:
        x, w, dy = map(jnp.asarray, drawn(case))
        if case.transposed:
            x, dy = dy, x
        sizes = tuple(x.shape[1:-1])
        window = _toeplitz.window_of("benchmark", w, sizes, case.stride, case.padding, case.dilation, "zeros")
        needs = _toeplitz_forms.NEEDS.get(method)
        if needs is not None and not needs[1](window):
            return None
        if method == "polyphase" and case.stride == 1:
            return None  # the same as direct
        static = _toeplitz.Map(window, case.groups, "zeros", method)
        arguments = {"y": (w, x), "dx": (w, dy), "dw": (x, dy)}[product]
        products = {
            "y": lambda w, x: _toeplitz.forward(w, x, static),
            "dx": lambda w, dy: _toeplitz.transposed(w, dy, static),
            "dw": lambda x, dy: _toeplitz.kernel_gradient(x, dy, w, static),
        }
        return partial(jax.jit(products[product]), *arguments)

    def fits(name: str, product: str, method: str) -> int:
        """How many calls fill a sample; 0 if the method does not fit the case."""
        call = make(CASES[name], product, method)
        if call is None:
            return 0
        if method == METHODS[0]:
            compiled.clear()
        compiled[method] = call
        seconds(call, 1)
        return max(1, round(0.03 / seconds(call, 1)))

    def time(method: str, calls: int) -> float:
        seconds(compiled[method], 1)  # the caches are its own again
        return seconds(compiled[method], calls)

    serve(others={"fits": fits, "time": time})


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    _answer()
