"""A linear map as a matrix that is not built: products, spectrum, norm, condition and rank."""

import dataclasses
import functools
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from funcnet.errors import ShapeError, ValueRangeError, describe
from funcnet.linalg import _check, circulant, estimates, krylov
from funcnet.linalg.estimates import Estimate
from funcnet.linalg.space import Space

__all__ = ["Interval", "Operator", "Solution", "symmetric"]

_DENSE, _TINY = 2**20, 2**16  # elements of a matrix that is simply built: for its spectrum, for a bound


class Interval(NamedTuple):
    """lower ≤ the number ≤ upper."""

    lower: jax.Array
    upper: jax.Array


class Solution(NamedTuple):
    """x with A x ≈ b, a vector or a pytree as b is; and the length of what is left of b, relative to b's."""

    x: Any
    residual: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class Operator:
    """A linear map A [rows, columns], a pytree: it can be passed to `jax.jit` and differentiated.

    Made by `conv.operator`, `conv_transpose.operator`, `linear.operator`; by `linalg.hessian`, `linalg.ggn`,
    `linalg.fisher`, `linalg.kfac`; by `symmetric`, or of any pair of functions.

    Attributes:
        forward: x [m, columns] -> x Aᵀ [m, rows], a `jax.tree_util.Partial`.
        back: y [m, rows] -> y A [m, columns], its transpose.
        dense: () -> A [rows, columns]. None: it is built by products with the identity.
        entries: () -> the same as a `jax.experimental.sparse.BCOO`. None: of all elements of `dense`.
        taps: () -> ``float[*sizes, groups, a, b]`` if A is block-circulant along the first axes, all but
            three: what `linalg.circulant` needs. None: it is not, or not known.
        above: () -> such taps of a block-circulant matrix of which A is a part, so that its norm bounds that
            of A. None: none is known.
        sums: () -> bounds of the largest sum of absolute values of a column, and of a row; the root of their
            product bounds the norm of every A. None: they are not known without building it.
        shape: (rows, columns).
        dtype: the name of the dtype.
        symmetric: whether A is its own transpose.
        space: of what pytree a vector of A is the leaves, if of any; then A takes such trees, too.
    """

    forward: Partial
    back: Partial
    dense: Partial | None
    entries: Partial | None
    taps: Partial | None
    above: Partial | None
    sums: Partial | None
    shape: tuple[int, int] = dataclasses.field(metadata={"static": True})
    dtype: str = dataclasses.field(metadata={"static": True})
    symmetric: bool = dataclasses.field(default=False, metadata={"static": True})
    space: Space | None = dataclasses.field(default=None, metadata={"static": True})

    def __repr__(self) -> str:
        return f"Operator({self.dtype}[{self.shape[0]}, {self.shape[1]}])"

    # ---- products

    def __matmul__(self, x: Any) -> Any:
        """A x for a vector x [columns], or for each column of x [columns, m]; or for a tree like params."""
        if flat := self._flat("operator", "x", x):
            vector, own = flat
            return own.split(self.forward(vector[None])[0])
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

    def _flat(self, where: str, path: str, x: Any) -> tuple[jax.Array, Space] | None:
        """A tree like params as a vector, with its space; None: x is no tree, but should be a vector."""
        own = self.space
        if own is None or (hasattr(x, "ndim") and not own.is_leaf(x)):
            return None
        own.check(where, path, x)
        return own.vector(x), own

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
            if self.entries is not None:
                return self.entries()
            from jax.experimental.sparse import BCOO  # with scipy: only whoever asks waits for it

            return BCOO.fromdense(self.matrix(), nse=math.prod(self.shape))
        if self.dense is None:
            return self.forward(jnp.eye(self.shape[1], dtype=self.dtype)).T
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
        bounds = []
        if self.sums is not None:
            down, across = self.sums()
            bounds.append(jnp.sqrt(down * across))
        taps, elements = self.taps or self.above, math.prod(self.shape)
        if elements <= _TINY or (taps is None and elements <= _DENSE):
            bounds.append(circulant.gram_bound(self.matrix(), iterations))
        elif taps is not None:
            spectrum, _ = circulant.blocks(taps := taps(), taps.ndim - 3)
            bounds.append(circulant.gram_bound(spectrum, iterations))
        if not bounds:
            raise ValueRangeError(
                f"operator.norm: no upper bound of A {self.shape} is known by its products alone.",
                path="A",
                expected=f"a matrix of at most {_DENSE} elements, or of a layer",
                actual=repr(self),
                hint='from below: eigenvalues(1) and eigenvalues(1, which="smallest").'
                if self.symmetric
                else "from below: singular_values(1).",
            )
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

    # ---- of a symmetric A

    def eigenvalues(
        self, k: int | None = None, *, which: Literal["largest", "smallest"] = "largest", steps: int = 16
    ) -> jax.Array:
        """The k largest eigenvalues, descending, or the k smallest, ascending; all of them if k is None.

        Each as often as it is repeated. Those of a matrix that can be built by fewer products are exact; else
        they are found from within the spectrum, by block Lanczos iteration: the largest are too small, and
        the less so the more steps; in the memory of 2 · steps · (k + 4) vectors. They are differentiable,
        also where some are equal.

        Args:
            k: how many.
            which: "largest" or "smallest": an indefinite A has two ends.
            steps: products of k + 4 vectors each.

        Raises:
            ShapeError: A is not symmetric.
            ValueRangeError: k or which is out of range, or k is None for a matrix of more than a million
                elements.
        """
        n = self._symmetric("eigenvalues")
        if which not in ("largest", "smallest"):
            raise ValueRangeError(
                f"operator.eigenvalues: which is {which!r}.",
                path="which",
                expected='"largest" or "smallest"',
                actual=repr(which),
            )
        expected = f"1 ≤ k ≤ {n}, how many of the eigenvalues of A {self.shape} are wanted"
        if k is not None:
            k = _check.whole("operator.eigenvalues", "k", k, 1, expected)
        if (n if k is None else k) > (_DENSE // n if k is None else n):
            raise ValueRangeError(
                f"operator.eigenvalues: k is {k}.", path="k", expected=expected, actual=f"k = {k}"
            )
        steps = _check.whole("operator.eigenvalues", "steps", steps, 1)
        return _eigenvalues(self, k, which == "smallest", steps)

    def trace(self, key: jax.Array, *, products: int = 60) -> Estimate:
        """The sum of the diagonal, estimated without bias, and its standard error.

        Args:
            key: of the random vectors.
            products: how many; a matrix with no more rows is built, and its trace is exact.

        Raises:
            ShapeError: A is not symmetric.
            ValueRangeError: products are fewer than 6.
        """
        self._symmetric("trace")
        _check.key("operator.trace", key, none=False)
        return _trace(self, key, _enough("trace", products))

    def diagonal(self, key: jax.Array, *, products: int = 60) -> Estimate:
        """The diagonal, estimated without bias, and the standard error of each element; see `trace`."""
        self._symmetric("diagonal")
        _check.key("operator.diagonal", key, none=False)
        return _diagonal(self, key, _enough("diagonal", products))

    def solve(self, b: Any, damping: Any = 0.0, *, tol: float = 1e-5, most: int = 100) -> Solution:
        """x with (A + damping · 1) x = b, by conjugate gradients.

        They need a matrix without negative eigenvalues. They stop where they meet a direction of negative
        curvature, and after `most` products; the residual says how far they were.

        Args:
            b: a vector [n], or a tree like params.
            damping: added to the diagonal, 0 or more; it may be traced.
            tol: where to stop, of the residual's length relative to b's.
            most: products.

        Raises:
            ShapeError: A is not symmetric, or b no vector of it.
            StructureError: b is a tree, and not like params.
            ValueRangeError: damping is negative.
            DTypeError: damping is no number.
        """
        n = self._symmetric("solve")
        flat = self._flat("operator.solve", "b", b)
        if flat is None and getattr(b, "shape", None) != (n,):
            raise ShapeError(
                f"operator.solve: b is no vector of A {self.shape}.",
                path="b",
                expected=f"b: float[{n}]" + (", or a tree like params" if self.space else ""),
                actual=f"b: {describe(b)}",
            )
        damping = _check.damping("operator.solve", damping, self.dtype, zero=True)
        most = _check.whole("operator.solve", "most", most, 0)
        vector = flat[0] if flat else jnp.asarray(b, self.dtype)
        x, residual = _solve(self, vector, damping, tol, most)
        return Solution(flat[1].split(x) if flat else x, residual)

    def _symmetric(self, what: str) -> int:
        if not self.symmetric:
            raise ShapeError(
                f"operator.{what}: A {self.shape} is not symmetric.",
                path="A",
                expected="a symmetric operator",
                actual=repr(self),
                hint="A.singular_values(k)" if what == "eigenvalues" else None,
            )
        return self.shape[0]


def symmetric(forward: Partial, n: int, dtype: str, space: Space | None = None) -> Operator:
    """The operator of a symmetric matrix [n, n] that is known by its products: x [m, n] -> x A [m, n].

    >>> A = symmetric(Partial(jnp.multiply, jnp.array([3.0, 2.0, 3.0])), 3, "float32")
    >>> A.eigenvalues(2).tolist()
    [3.0, 3.0]
    """
    return Operator(forward, forward, None, None, None, None, None, (n, n), dtype, True, space)


@functools.partial(jax.jit, static_argnames=("k", "smallest", "steps"))
def _eigenvalues(a: Operator, k: int | None, smallest: bool, steps: int) -> jax.Array:
    n, dtype = a.shape[0], jnp.dtype(a.dtype)
    if k is None or n <= steps * (k + krylov.EXTRA) or (a.dense is not None and n * n <= _DENSE):
        values = jnp.linalg.eigvalsh(a.matrix())
        return (values if smallest else values[::-1])[:k]
    fixed = jax.lax.stop_gradient(a)
    values, v, _ = krylov.eigen(fixed.forward, n, k, dtype=dtype, steps=steps, smallest=smallest)
    return _of_vectors(a, v, values)


@jax.custom_jvp
def _of_vectors(a: Operator, v: jax.Array, values: jax.Array) -> jax.Array:
    """The eigenvalues, with the derivative dλ = vᵀ dA v, also where λ is repeated."""
    del a, v
    return values


@_of_vectors.defjvp
def _(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    a, v, values = primals
    return values, jax.jvp(lambda a: (v * a.forward(v)).sum(-1), (a,), tangents[:1])[1]


@functools.partial(jax.jit, static_argnames="products")
def _trace(a: Operator, key: jax.Array, products: int) -> Estimate:
    return estimates.trace(a.forward, a.shape[0], key, dtype=jnp.dtype(a.dtype), products=products)


@functools.partial(jax.jit, static_argnames="products")
def _diagonal(a: Operator, key: jax.Array, products: int) -> Estimate:
    return estimates.diagonal(a.forward, a.shape[0], key, dtype=jnp.dtype(a.dtype), products=products)


@jax.jit
def _solve(a: Operator, b: jax.Array, damping: jax.Array, tol: Any, most: Any) -> tuple[jax.Array, jax.Array]:
    """Conjugate gradients from 0, as long as the curvature is positive."""
    product = lambda x: a.forward(x[None])[0] + damping * x
    size = (b * b).sum()
    goal = size * jnp.asarray(tol, b.dtype) ** 2

    def step(carry: Any) -> Any:
        x, r, p, number, phase = carry
        image = product(p)
        curvature, before = (p * image).sum(), (r * r).sum()
        positive = curvature > 0
        rate = jnp.where(positive, before / jnp.where(positive, curvature, 1), 0)
        moved, rest = x + rate * p, r - rate * image
        left = (rest * rest).sum()
        on = positive & (left > goal) & (number + 1 < most)
        ahead = rest + left / jnp.where(before > 0, before, 1) * p
        going = phase == 0
        new = (moved, rest, jnp.where(on, ahead, moved)), (x, b - image, p)
        x, r, p = (jnp.where(going, *pair) for pair in zip(*new, strict=True))
        return x, r, p, number + 1, jnp.where(going & on, 0, phase + 1)

    # While phase is 0, p is a direction. The last product, in phase 1, is that of x: what is left in truth.
    phase = jnp.where((size > goal) & (most > 0), 0, 2)
    start = (jnp.zeros_like(b), b, b, jnp.zeros((), jnp.int32), phase)
    x, rest, *_ = jax.lax.while_loop(lambda carry: carry[4] < 2, step, start)
    return x, jnp.sqrt((rest * rest).sum() / jnp.where(size > 0, size, 1))


def _enough(what: str, products: Any) -> int:
    least = estimates.LEAST
    expected = f"{least} or more: each of three parts needs two"
    return _check.whole(f"operator.{what}", "products", products, least, expected)


def _transpose(a: Operator) -> Operator:
    if a.symmetric:
        return a
    swap = lambda f: None if f is None else Partial(_swapped, f)
    return Operator(
        a.back,
        a.forward,
        swap(a.dense),
        None if a.entries is None else Partial(_transposed_entries, a.entries),
        swap(a.taps),
        swap(a.above),
        None if a.sums is None else Partial(_reversed, a.sums),
        (a.shape[1], a.shape[0]),
        a.dtype,
    )


def _swapped(array: Partial) -> jax.Array:
    return array().swapaxes(-1, -2)


def _transposed_entries(entries: Partial) -> Any:
    return entries().T


def _reversed(sums: Partial) -> tuple[jax.Array, jax.Array]:
    return sums()[::-1]
