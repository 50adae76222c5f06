"""A linear map as a matrix that is not built: products, spectrum, norm, condition and rank."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import sparse
from jax.tree_util import Partial

from funcnet.errors import ShapeError, ValueRangeError, describe
from funcnet.linalg import circulant, krylov

__all__ = ["Interval", "Operator"]

_DENSE, _TINY = 2**20, 2**16  # elements of a matrix that is simply built: for its spectrum, for a bound


class Interval(NamedTuple):
    """lower ≤ the number ≤ upper."""

    lower: jax.Array
    upper: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class Operator:
    """A linear map A [rows, columns], a pytree: it can be passed to `jax.jit` and differentiated.

    Made by `conv.operator`, `conv_transpose.operator`, `linear.operator`; or of any pair of functions.

    Attributes:
        forward: x [m, columns] -> x Aᵀ [m, rows], a `jax.tree_util.Partial`.
        back: y [m, rows] -> y A [m, columns], its transpose.
        dense: () -> A [rows, columns].
        entries: () -> the same as a `jax.experimental.sparse.BCOO`. None: of all elements of `dense`.
        taps: () -> ``float[*sizes, groups, a, b]`` if A is block-circulant along the first axes, all but
            three: what `linalg.circulant` needs. None: it is not, or not known.
        above: () -> such taps of a block-circulant matrix of which A is a part, so that its norm bounds that
            of A. None: none is known.
        sums: () -> bounds of the largest sum of absolute values of a column, and of a row; the root of their
            product bounds the norm of every A.
        shape: (rows, columns).
        dtype: the name of the dtype.
    """

    forward: Partial
    back: Partial
    dense: Partial
    entries: Partial | None
    taps: Partial | None
    above: Partial | None
    sums: Partial
    shape: tuple[int, int] = dataclasses.field(metadata={"static": True})
    dtype: str = dataclasses.field(metadata={"static": True})

    def __repr__(self) -> str:
        return f"Operator({self.dtype}[{self.shape[0]}, {self.shape[1]}])"

    # ---- products

    def __matmul__(self, x: jax.Array) -> jax.Array:
        """A x for a vector x [columns], or for each column of x [columns, m]."""
        if getattr(x, "ndim", None) not in (1, 2) or x.shape[0] != self.shape[1]:
            raise ShapeError(
                f"operator: x does not fit a matrix {self.shape}.",
                path="x",
                expected=f"x: float[{self.shape[1]}] or float[{self.shape[1]}, m]",
                actual=f"x: {describe(x)}",
                hint=f"A @ x.ravel(): it has {self.shape[1]} elements."
                if getattr(x, "size", None) == self.shape[1]
                else None,
            )
        return self.forward(x[None])[0] if x.ndim == 1 else self.forward(x.T).T

    @property
    def T(self) -> "Operator":  # noqa: N802
        """The transpose, without building anything."""
        return _transpose(self)

    def matrix(self, format: str = "dense") -> Any:
        """A itself, as an array or as a `jax.experimental.sparse.BCOO`."""
        if format not in ("dense", "bcoo"):
            raise ValueRangeError(
                f'operator.matrix: format is "{format}".',
                path="format",
                expected='"dense" or "bcoo"',
                actual=repr(format),
            )
        if format == "bcoo":
            dense = lambda: sparse.BCOO.fromdense(self.dense(), nse=math.prod(self.shape))
            return dense() if self.entries is None else self.entries()
        return self.dense()

    # ---- spectrum

    def singular_values(self, k: int | None = None, *, steps: int = 16) -> jax.Array:
        """The k largest singular values, descending; all min(rows, columns) of them if k is None.

        All of them are exact: of a block-circulant matrix frequency by frequency, of another one by building
        it, up to a million elements. The k largest of a large one are found by its products, from below.
        They are differentiable, also where some are equal.

        Args:
            k: how many.
            steps: of Golub and Kahan's iteration, where that is used; more are more exact.

        Raises:
            ValueRangeError: k is out of range, or None for a large matrix without structure.
        """
        most = min(self.shape)
        if k is not None and not 1 <= k <= most:
            raise ValueRangeError(
                f"operator.singular_values: k is {k}.",
                path="k",
                expected=f"1 ≤ k ≤ {most}, the smaller side of {self.shape}",
                actual=f"k = {k}",
            )
        if math.prod(self.shape) <= _DENSE:
            return jnp.linalg.svd(self.matrix(), compute_uv=False)[:k]
        if self.taps is not None and (k is None or k > 64):
            taps = self.taps()
            return circulant.singular_values(taps, taps.ndim - 3)[:k]
        if k is None:
            raise ValueRangeError(
                f"operator.singular_values: k is missing, and A {self.shape} is large.",
                path="k",
                expected="how many of the largest singular values are wanted",
                actual="k = None",
                hint=f"all of them: jnp.linalg.svd(A.matrix(), compute_uv=False), of {math.prod(self.shape)} "
                'elements; or give the convolution padding_mode="circular".',
            )
        return self._largest(k, steps)

    def _largest(self, k: int, steps: int) -> jax.Array:
        if self.shape[0] < self.shape[1]:
            return self.T._largest(k, steps)  # in the smaller space
        fixed = jax.lax.stop_gradient(self)
        u, _, v = krylov.largest(
            fixed.forward, fixed.back, self.shape[1], k, dtype=jnp.dtype(self.dtype), steps=steps
        )
        # dσ = uᵀ dA v, also for repeated σ, where the derivatives of u and v do not exist.
        u, v = jax.lax.stop_gradient((u, v))
        return (u * self.forward(v)).sum(-1)

    def norm(self, *, steps: int = 16, iterations: int = 6) -> Interval:
        """Bounds of the largest singular value, certain but for the rounding that they allow for.

        The lower one is a singular value of A, or where A is large one that Golub and Kahan's iteration finds
        in a subspace. The upper one is the
        least of √(‖A‖₁ ‖A‖∞), which holds for every matrix, and of the Gram iteration over the frequencies
        of a block-circulant matrix that contains A, or over A itself where it is tiny, or small and there is
        no such matrix. Both are differentiable.

        Args:
            steps: of Golub and Kahan's iteration.
            iterations: of the Gram iteration, each halving its excess.
        """
        dtype = jnp.dtype(self.dtype)
        if 0 in self.shape:
            return Interval(jnp.zeros((), dtype), jnp.zeros((), dtype))
        slack = float(jnp.finfo(dtype).eps) * (8 + math.sqrt(max(self.shape)))
        down, across = self.sums()
        bounds = [jnp.sqrt(down * across)]
        taps, elements = self.taps or self.above, math.prod(self.shape)
        if elements <= _TINY or (taps is None and elements <= _DENSE):
            bounds.append(circulant.gram_bound(self.matrix(), iterations))
        elif taps is not None:
            spectrum, _ = circulant.blocks(taps := taps(), taps.ndim - 3)
            bounds.append(circulant.gram_bound(spectrum, iterations))
        upper = jnp.stack(bounds).min() * (1 + slack)
        return Interval(self.singular_values(1, steps=steps)[0] * (1 - slack), upper)

    def condition(self) -> jax.Array:
        """σ₁ / σ_min over all min(rows, columns) singular values; inf where the least is 0."""
        values = self.singular_values()
        return values[0] / values[-1]

    def rank(self, tol: float | None = None) -> jax.Array:
        """How many singular values exceed `tol`; by default max(shape) · eps · σ₁, as in NumPy."""
        values = self.singular_values()
        least = values[0] * (max(self.shape) * jnp.finfo(values.dtype).eps) if tol is None else tol
        return (values > least).sum()


def _transpose(a: Operator) -> Operator:
    swap = lambda f: None if f is None else Partial(_swapped, f)
    return Operator(
        a.back,
        a.forward,
        Partial(_swapped, a.dense),
        None if a.entries is None else Partial(_transposed_entries, a.entries),
        swap(a.taps),
        swap(a.above),
        Partial(_reversed, a.sums),
        (a.shape[1], a.shape[0]),
        a.dtype,
    )


def _swapped(array: Partial) -> jax.Array:
    return array().swapaxes(-1, -2)


def _transposed_entries(entries: Partial) -> sparse.BCOO:
    return entries().T


def _reversed(sums: Partial) -> tuple[jax.Array, jax.Array]:
    return sums()[::-1]
