"""Arrays and functions in float64: the numbers in which all is judged, and how far two of them are apart."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnet.verifier import trace
from funcnet.verifier.problem import is_float

__all__ = ["EPS", "LEAST", "Touch", "Wide", "as_wide", "differs", "largest", "norm", "parts", "typical"]

EPS = 2.0**-52
LEAST = 2.0**-1016  # what is smaller is rounded as no other number is

Touch = Callable[[str, Sequence[Any], Any, Any], Any]  # of an operation's name, operands, result and dtype


# ---- functions --------------------------------------------------------------------------------------------


class Wide:
    """A function of lists of arrays, traced once for each set of shapes, with every float in float64."""

    def __init__(self, function: Callable[..., Any]):
        self.function, self.programs = function, dict[Any, Any]()

    def program(self, *given: Sequence[Any]) -> tuple[trace.Program, Any]:
        """Its equations, and the tree of its result."""
        key = tuple((v.shape, str(v.dtype)) for values in given for v in values)
        if key not in self.programs:
            program, shape = trace.trace(self.function, *map(list, given))
            self.programs[key] = program.pruned(), jax.tree.structure(shape)
        return self.programs[key]

    def bound(self, *given: Sequence[Any]) -> Callable[..., Any]:
        """The function as it was traced with such arrays, for arrays in float64."""
        program, tree = self.program(*given)

        def run(*given: Sequence[Any], touch: Touch | None = None) -> Any:
            values, by = [trace.constant(v) for some in given for v in some], _touching(touch)
            return jax.tree.unflatten(tree, program.results(trace.run(program, values, by=by, forget=True)))

        return run

    def __call__(self, *given: Sequence[Any], touch: Touch | None = None) -> Any:
        """Its result, with what each equation gives changed by `touch`."""
        return self.bound(*given)(*given, touch=touch)

    def length(self, *given: Sequence[Any]) -> int:
        """How many equations it runs."""
        return _length(self.program(*given)[0])

    def eps(self, *given: Sequence[Any]) -> float:
        """Of the narrowest dtype that it is traced with."""
        dtypes = (d for d in self.program(*given)[0].dtypes if jnp.issubdtype(d, jnp.inexact))
        return max((float(jnp.finfo(d).eps) for d in dtypes), default=EPS)

    def rounded(self, *given: Sequence[Any]) -> float:
        """That of the narrowest dtype which is left when it is run with every float in float64."""
        return max((float(jnp.finfo(d).eps) for d in self.program(*given)[0].left), default=EPS)


def _length(program: trace.Program) -> int:
    """How many equations it runs, those in loops many times."""
    return sum(
        1 + sum(map(_length, eqn.inner)) * (eqn.params.get("length", 100) if eqn.name != "cond" else 1)
        for eqn in program.equations
    )


_EXACT = frozenset(
    """abs broadcast_in_dim ceil clamp complex concatenate conj copy copy_p dynamic_slice dynamic_update_slice
    expand_dims floor gather imag iota max min neg pad real reduce_max reduce_min reshape rev round select_n
    sign slice sort squeeze stop_gradient transpose""".split()  # noqa: SIM905
)


def _touching(touch: Touch | None) -> Callable[..., Any]:
    """An equation in float64 whose results are changed by `touch`, unless they are exact."""

    def by(eqn: trace.Equation, operands: Sequence[Any]) -> Sequence[Any]:
        if eqn.inner:
            return trace.loop(eqn, operands, by)
        results = trace.apply(eqn, operands)
        if eqn.primitive is None or eqn.name in _EXACT:
            return results
        return [touch(eqn.name, operands, v, d) for v, d in zip(results, eqn.dtypes, strict=True)]  # pyright: ignore[reportOptionalCall]

    return trace.apply if touch is None else by


# ---- arrays -----------------------------------------------------------------------------------------------


def as_wide(x: Any) -> np.ndarray:
    """A NumPy array of float64, or of complex128."""
    x = np.asarray(x)
    return np.asarray(x, trace.widened(x.dtype)) if is_float(x) else np.asarray(x, np.float64)


def largest(x: Any) -> float:
    """The largest absolute value; 0 of an empty array, NaN if there is one."""
    x = np.asarray(x)
    if not x.size:
        return 0.0
    with np.errstate(invalid="ignore"):  # of a large array no copy is made
        return float(abs(max(x.max(), -x.min())) if x.dtype.kind == "f" else np.abs(x).max())


def norm(x: Any) -> float:
    """Euclidean; what is not finite counts as 0."""
    x = np.nan_to_num(np.asarray(np.abs(x)), copy=False, posinf=0.0)
    if unit := largest(x):
        x /= unit
    return unit * float(np.linalg.norm(x))


def parts(a: Any, b: Any) -> np.ndarray:
    """How far a and b are apart, by element; infinite where that is not finite."""
    with np.errstate(all="ignore"):
        off = np.asarray(a - b)
        off = np.asarray(np.abs(off, out=off if off.dtype.kind == "f" else None))
    finite = np.isfinite(off)
    return off if finite.all() else np.where(finite, off, np.inf)


def typical(x: np.ndarray) -> float:
    """The size of its elements: the root of their mean square; 1 where there is none."""
    finite = x[np.isfinite(x)]
    return float(np.sqrt(np.mean(np.abs(finite) ** 2))) or 1.0 if finite.size else 1.0


def differs(got: Any, want: Any, tolerance: float, scale: float) -> bool:
    """Whether two arrays differ by more than rounding."""
    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape:
        return True
    with np.errstate(invalid="ignore"):
        error = np.where(got == want, 0, np.abs(got - want))  # infinities are equal
        error = np.where(np.isnan(got) & np.isnan(want), 0, error)
    return not bool((error <= tolerance * max(scale, 1e-300)).all())
