"""The three products of a convolution, in every form that computes them, and which form a CPU runs.

    y = T(w) x        dx = T(w)ᵀ dy        dw = K(x, dy)

A fast form is a bilinear algorithm: linear maps before and after a simpler product ⊙,

    y = A [(G w) ⊙ (B x)]        dx = Bᵀ [(Aᵀ dy) ⊙ (G w)]        dw = Gᵀ [(B x) ⊙ (Aᵀ dy)],

so that its two gradients are the transposes of the same three maps, and as cheap. docs/derivations/conv.md
derives them; `python -m benchmarks conv_methods` times each, and is the reason for `on_cpu`.

Shapes, all with a group axis: x [n, *size, g, c_in], w [*kernel, g, c_in, c_out], y [n, *out, g, c_out].
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from funcnet import rules
from funcnet.ops._dtype import wide
from funcnet.ops._shape import known
from funcnet.ops.conv._window import Window, plain

__all__ = ["METHODS", "NEEDS", "Problem", "Products", "direct", "on_cpu"]

Array = jax.Array


class Problem(NamedTuple):
    """What is fixed when a form is chosen."""

    window: Window
    n: int
    groups: int
    c_in: int
    c_out: int
    dtype: jnp.dtype

    @property
    def x(self) -> tuple[int, ...]:
        """The shape of x."""
        return (self.n, *self.window.sizes, self.groups, self.c_in)

    @property
    def w(self) -> tuple[int, ...]:
        """The shape of w."""
        return (*self.window.kernel, self.groups, self.c_in, self.c_out)

    @property
    def y(self) -> tuple[int, ...]:
        """The shape of y."""
        return (self.n, *self.window.out, self.groups, self.c_out)

    @property
    def taps(self) -> int:
        """Of the kernel."""
        return math.prod(self.window.kernel)


class Products(NamedTuple):
    """One form of the three products."""

    toeplitz: Callable[[Any, Any], Any]  # (w, x) -> y
    transposed: Callable[[Any, Any], Any]  # (dy, w) -> dx
    kernel_gradient: Callable[[Any, Any], Any]  # (x, dy) -> dw


# ---- the simple products ----------------------------------------------------------------------------------


def direct(p: Problem) -> Products:
    """XLA's convolution, which on GPU and TPU is the vendor's; dx and dw are convolutions again."""
    window, d = p.window, len(p.window.kernel)
    out_dtype = p.dtype

    def convolve(
        x: Array, w: Array, stride: tuple, dilation: tuple, padding: tuple, spread: tuple | None = None
    ) -> Array:
        """Channels last, the window not reversed: reversal and batch groups leave XLA:CPU's fast path."""
        *kernel, g, c_in, c_out = w.shape
        spatial = "DHW"[-d:]
        if not known(*itertools.chain(*padding)):
            x, padding, spread = _padded(x, padding, spread), ((0, 0),) * d, None
        y = lax.conv_general_dilated(
            x.reshape(*x.shape[:-2], g * c_in),
            jnp.moveaxis(w, -3, -2).reshape(*kernel, c_in, g * c_out),
            stride,
            padding,
            lhs_dilation=spread,
            rhs_dilation=dilation,
            dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
            feature_group_count=g,
            preferred_element_type=wide(x.dtype),
        )
        return y.astype(out_dtype).reshape(*y.shape[:-1], g, c_out)

    def toeplitz(w: Array, x: Array) -> Array:
        return convolve(x, w, window.stride, window.dilation, window.padding)

    def transposed(dy: Array, w: Array) -> Array:
        """dy spread out by the stride, convolved with the reversed kernel."""
        w = _reversed(w)
        if p.groups == 1:
            return convolve(dy, w, (1,) * d, window.dilation, _pads_of_transpose(window), window.stride)
        return convolve(_spread(dy, window), w, (1,) * d, window.dilation, ((0, 0),) * d)  # its fast path

    def kernel_gradient(x: Array, dy: Array) -> Array:
        """The convolution of x with dy in which batch and channels, stride and dilation change places."""
        padding = tuple(
            (low, e * (k - 1) + (o - 1) * s + 1 - size - low)
            for size, k, s, e, (low, _), o in zip(*window, window.out, strict=True)
        )
        image = jnp.moveaxis(x, (-1, 0), (0, -1))  # [c_in, *size, g, n]
        kernel = jnp.moveaxis(dy, 0, -2)  # [*out, g, n, c_out]
        dw = convolve(image, kernel, window.dilation, window.stride, padding)  # [c_in, *kernel, g, c_out]
        return jnp.moveaxis(dw, 0, -2)

    return Products(toeplitz, transposed, kernel_gradient)


def shifted(p: Problem) -> Products:
    """Σ over the taps of a shifted x times one slice of w; depthwise, XLA makes one loop of it."""
    window = p.window

    def transposed(dy: Array, w: Array) -> Array:
        spread = _spread(dy, window)
        alone = plain(spread.shape[1:-2], window.kernel)._replace(dilation=window.dilation)
        return _sum_of_taps(_reversed(w), spread, alone)

    def kernel_gradient(x: Array, dy: Array) -> Array:
        if p.c_in > 1:
            taps = [jnp.einsum("...gi,...gj->gij", seen, dy) for seen in _shifts(x, window)]
            return jnp.stack(taps).reshape(p.w)
        return _depthwise_kernel_gradient(x, dy, p)

    return Products(lambda w, x: _sum_of_taps(w, x, window), transposed, kernel_gradient)


def _sum_of_taps(w: Array, x: Array, window: Window) -> Array:
    taps = zip(_shifts(x, window), w.reshape(-1, *w.shape[-3:]), strict=True)
    if w.shape[-2] == 1:
        return functools.reduce(jnp.add, [seen * tap[:, 0] for seen, tap in taps])
    if w.shape[-1] == 1:
        return functools.reduce(jnp.add, [seen * tap[:, :, 0] for seen, tap in taps]).sum(-1, keepdims=True)
    return functools.reduce(jnp.add, [jnp.einsum("...gi,gij->...gj", seen, tap) for seen, tap in taps])


def _depthwise_kernel_gradient(x: Array, dy: Array, p: Problem) -> Array:
    """Summed over all but the last axis of space first, so that vectors are long: [last, g · m] for a tap."""
    flat = lambda v: jnp.broadcast_to(v, (*v.shape[:-1], p.c_out)).reshape(*v.shape[:-2], p.groups * p.c_out)
    dy, row = flat(dy), p.window.out[-1]
    # Rows a multiple of 4096 bytes apart share a few lines of the cache; one more column moves them apart.
    apart = int(row * dy.shape[-1] * dy.dtype.itemsize % 4096 == 0)
    more = [(0, 0)] * (dy.ndim - 3) + [(0, apart), (0, 0)]
    last = p.window.padding[-1]
    window = p.window._replace(
        padding=(*p.window.padding[:-1], (last[0], last[1] + apart * p.window.stride[-1]))
    )
    over = tuple(range(len(window.kernel) - 1))

    def of_image(x: Array, dy: Array) -> list[Array]:
        x, dy = lax.optimization_barrier((_padded(x[None], window.padding), jnp.pad(dy, more)))
        return [(flat(x[0][seen]) * dy).sum(over) for _, seen in window.taps]

    if _loops_are_local():  # one image at a time stays in the cache
        zeros = jnp.zeros((row + apart, dy.shape[-1]), dy.dtype)
        zeros = [rules.same_variance(zeros, x, dy)[0]] * p.taps
        add = lambda sums, pair: ([a + b for a, b in zip(sums, of_image(*pair), strict=True)], None)
        dw, _ = lax.scan(add, zeros, (x, dy))
        return jnp.stack(dw).sum(1).reshape(p.w)
    return jnp.stack([a.sum((0, 1)) for a in jax.vmap(of_image)(x, dy)]).reshape(p.w)


def _loops_are_local() -> bool:
    """Whether a loop over the batch is harmless: one over a batch that devices share would gather it."""
    return jax.local_device_count() == 1


def matmul(p: Problem) -> Products:
    """The matrix products of a window without axes, and of every other whose window is one point."""

    def toeplitz(w: Array, x: Array) -> Array:
        return _by_group("rgi,gij->rgj", _rows(x), w.reshape(w.shape[-3:])).reshape(p.y)

    def transposed(dy: Array, w: Array) -> Array:
        return _by_group("rgj,gij->rgi", _rows(dy), w.reshape(w.shape[-3:])).reshape(p.x)

    def kernel_gradient(x: Array, dy: Array) -> Array:
        return _by_group("rgi,rgj->gij", _rows(x), _rows(dy)).reshape(p.w)

    return Products(toeplitz, transposed, kernel_gradient)


def _rows(v: Array) -> Array:
    return v.reshape(-1, *v.shape[-2:])


def _by_group(formula: str, a: Array, b: Array) -> Array:
    """An einsum in which g is dropped if there is one group: XLA:CPU has a faster product for matrices."""
    operands, c = formula.split("->")
    a_axes, b_axes = operands.split(",")
    if a.shape[a_axes.index("g")] > 1:
        return jnp.einsum(formula, a, b)
    a, b = a.squeeze(a_axes.index("g")), b.squeeze(b_axes.index("g"))
    return jnp.expand_dims(jnp.einsum(formula.replace("g", ""), a, b), c.index("g"))


def group_by_group(p: Problem, one: Callable[[Problem], Products]) -> Products:
    """Every group as a convolution of its own: XLA:CPU is fast for one group only."""
    form = one(p._replace(groups=1))

    def each(
        product: Callable[[Array, Array], Array], a: Array, b: Array, axes: tuple[int, int, int]
    ) -> Array:
        of = lambda v, axis, i: lax.slice_in_dim(v, i, i + 1, axis=axis % v.ndim)
        parts = [product(of(a, axes[0], i), of(b, axes[1], i)) for i in range(p.groups)]
        return jnp.concatenate(parts, axes[2])

    return Products(
        lambda w, x: each(form.toeplitz, w, x, (-3, -2, -2)),
        lambda dy, w: each(form.transposed, dy, w, (-2, -3, -2)),
        lambda x, dy: each(form.kernel_gradient, x, dy, (-2, -2, -3)),
    )


def chunk_by_chunk(
    p: Problem, form: Callable[[Problem], Products], most: int, least: int | None = None
) -> Products:
    """At most `most` images at a time, and at least `least`, for forms whose intermediates would fill memory.

    All at once where n has no such divisor: a loop over a few small images takes longer than all of them.
    """
    if not known(p.n):
        return form(p)
    most = max(1, min(most, p.n))
    least = max(1, most // 8) if least is None else least
    chunk = next((m for m in range(most, least - 1, -1) if p.n % m == 0), p.n)
    if chunk == p.n or not _loops_are_local():
        return form(p)
    some = form(p._replace(n=chunk))
    # Without the axis of groups, which may have a layout of its own: XLA would copy what the loop is given.
    cut = lambda v: v.reshape(p.n // chunk, chunk, *v.shape[1:-2], v.shape[-2] * v.shape[-1])
    again = lambda v: v.reshape(*v.shape[:-1], p.groups, v.shape[-1] // p.groups)
    joined = lambda v: v.reshape(p.n, *v.shape[2:])

    def kernel_gradient(x: Array, dy: Array) -> Array:
        zeros = rules.same_variance(jnp.zeros(p.w, x.dtype), x, dy)[0]
        add = lambda dw, v: (dw + some.kernel_gradient(again(v[0]), again(v[1])), None)
        return lax.scan(add, zeros, (cut(x), cut(dy)))[0]

    return Products(
        lambda w, x: joined(lax.map(lambda x: some.toeplitz(w, again(x)), cut(x))),
        lambda dy, w: joined(lax.map(lambda dy: some.transposed(again(dy), w), cut(dy))),
        kernel_gradient,
    )


# ---- bilinear algorithms: y = A [(G w) ⊙ (B x)] -----------------------------------------------------------

Linear = Callable[[Array], Any]  # its result may be several arrays


def _bilinear_algorithm(
    p: Problem, image: Linear, kernel: Linear, output: Linear, product: Products
) -> Products:
    """The three products of y = output(product(kernel(w), image(x))), all three maps linear."""
    like = lambda shape: jax.ShapeDtypeStruct(shape, p.dtype)
    inner = jax.eval_shape(lambda w, x: product.toeplitz(kernel(w), image(x)), like(p.w), like(p.x)).shape

    def back(linear: Linear, shape: tuple[int, ...], v: Any) -> Array:
        at = rules.same_variance(jnp.zeros(shape, p.dtype), *jax.tree.leaves(v))[0]
        return jax.linear_transpose(linear, at)(v)[0]

    return Products(
        lambda w, x: output(product.toeplitz(kernel(w), image(x))),
        lambda dy, w: back(image, p.x, product.transposed(back(output, inner, dy), kernel(w))),
        lambda x, dy: back(kernel, p.w, product.kernel_gradient(image(x), back(output, inner, dy))),
    )


def patches(p: Problem, folded: int = 0) -> Products:
    """One matrix product: shift before it along some axes, and after it along the first `folded`.

    Before: what the taps see stands side by side as channels (im2col). After: the products of the taps stand
    side by side, and are added up where they belong (col2im).
    """
    window, d = p.window, len(p.window.kernel)
    after, before = window.along(slice(folded)), window.along(slice(folded, None))
    rows, many = math.prod(after.sizes), math.prod(before.out)
    channels, columns = math.prod(before.kernel) * p.c_in, math.prod(after.kernel) * p.c_out

    def image(x: Array) -> Array:
        shifts = _shifts(x.reshape(p.n * rows, *before.sizes, p.groups, p.c_in), before)
        return (jnp.concatenate(shifts, -1) if len(shifts) > 1 else shifts[0]).reshape(-1, p.groups, channels)

    def kernel(w: Array) -> Array:
        w = w.reshape(math.prod(after.kernel), math.prod(before.kernel), *w.shape[d:])
        return w.transpose(2, 1, 3, 0, 4).reshape(p.groups, channels, columns)

    def output(z: Array) -> Array:
        z = _padded(z.reshape(p.n, *after.sizes, many, p.groups, columns), after.padding)
        of_taps = lax.split(z, [p.c_out] * math.prod(after.kernel), z.ndim - 1)  # transposed: side by side
        parts = [v[(slice(None), *seen)] for v, (_, seen) in zip(of_taps, after.taps, strict=True)]
        return functools.reduce(jnp.add, parts).reshape(p.y)

    inner = p._replace(window=plain((), ()), n=p.n * rows * many, c_in=channels, c_out=columns)
    return _bilinear_algorithm(p, image, kernel, output, matmul(inner))


def unfold(p: Problem) -> Products:
    """Shift along every axis, then multiply."""
    return patches(p)


def fold(p: Problem) -> Products:
    """Multiply, then shift along every axis."""
    return patches(p, len(p.window.kernel))


def crossed(p: Problem) -> Products:
    """Multiply, with the shifts along the first axis after it: dw is one product of few rows and columns."""
    return patches(p, 1)


def planes(p: Problem, then: Callable[[Problem], Products]) -> Products:
    """A convolution of one axis less: what the taps see along the first axis becomes channels."""
    window, d = p.window, len(p.window.kernel)
    first, rest = window.along(slice(1)), window.along(slice(1, None))
    (taps,), (many,) = first.kernel, first.out
    inner = p._replace(window=rest, n=p.n * many, c_in=taps * p.c_in)

    def image(x: Array) -> Array:
        return jnp.concatenate(_shifts(x, first), -1).reshape(inner.x)

    def kernel(w: Array) -> Array:
        return jnp.moveaxis(w, 0, d).reshape(inner.w)  # [*rest, g, taps, c_in, c_out]

    return _bilinear_algorithm(p, image, kernel, lambda y: y.reshape(p.y), then(inner))


def polyphase(p: Problem) -> Products:
    """Stride s as stride 1: along each axis x and w have s phases, and each of x meets one of w.

    Phases stand side by side as channels of one convolution (space to depth). Those of w have ⌈k / s⌉ taps or
    one less; each length is a convolution of its own, since a tap of zeros would let a NaN reach outputs that
    do not see it.
    """
    window, d = p.window, len(p.window.kernel)
    longest = tuple(-(-k // s) for k, s in zip(window.kernel, window.stride, strict=True))
    sizes = tuple(o + k - 1 for o, k in zip(window.out, longest, strict=True))  # of a phase of x
    phases = list(itertools.product(*map(range, window.stride)))
    alike: dict[tuple[int, ...], list[int]] = {}  # by the sizes of their kernels
    for i, phase in enumerate(phases):
        rows = zip(phase, window.kernel, window.stride, strict=True)
        alike.setdefault(tuple(len(range(b, k, s)) for b, k, s in rows), []).append(i)
    alike = {kernel: found for kernel, found in alike.items() if 0 not in kernel}  # a stride may be longer
    windows = [plain(tuple(o + k - 1 for o, k in zip(window.out, k_, strict=True)), k_) for k_ in alike]

    def image(x: Array) -> list[Array]:
        ends = [
            (low, m * s - size - low, 0)
            for (low, _), m, s, size in zip(window.padding, sizes, window.stride, window.sizes, strict=True)
        ]
        x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *ends, *[(0, 0, 0)] * 2])
        x = x.reshape(p.n, *itertools.chain(*zip(sizes, window.stride, strict=True)), p.groups, p.c_in)
        x = jnp.moveaxis(x, range(2, 2 * d + 2, 2), range(d + 2, 2 * d + 2))  # [n, *sizes, g, *stride, c_in]
        x = x.reshape(p.n, *sizes, p.groups, len(phases) * p.c_in)
        of_phase = lax.split(x, [p.c_in] * len(phases), x.ndim - 1)
        together = [jnp.concatenate([of_phase[i] for i in found], -1) for found in alike.values()]
        return [v[(slice(None), *map(slice, w.sizes))] for v, w in zip(together, windows, strict=True)]

    def kernel(w: Array) -> list[Array]:
        of_phase = [w[tuple(map(slice, phase, [None] * d, window.stride))] for phase in phases]
        return [jnp.concatenate([of_phase[i] for i in found], -2) for found in alike.values()]

    forms = [
        direct(p._replace(window=w, c_in=len(found) * p.c_in))
        for w, found in zip(windows, alike.values(), strict=True)
    ]
    each = lambda *columns: zip(forms, *columns, strict=True)
    product = Products(
        lambda ws, xs: functools.reduce(jnp.add, [form.toeplitz(w, x) for form, w, x in each(ws, xs)]),
        lambda dy, ws: [form.transposed(dy, w) for form, w in each(ws)],
        lambda xs, dy: [form.kernel_gradient(x, dy) for form, x in each(xs)],
    )
    return _bilinear_algorithm(p, image, kernel, lambda y: y, product)


class _Filter(NamedTuple):
    """A filter along one axis, in blocks: y [outputs] = A [(G w) · (B x)], x [reach]."""

    outputs: int
    reach: int
    products: int
    image: Linear  # [reach, ...] -> [products, ...]
    kernel: Linear  # [taps, ...] -> [products, ...]
    output: Linear  # [products, ...] -> [outputs, ...]


def winograd(p: Problem) -> Products:
    """Minimal filtering, F(2, 3) along each axis with 3 taps: 4 products for 2 outputs instead of 6.

    Source: S. Winograd, "Arithmetic Complexity of Computations", 1980; A. Lavin and S. Gray, "Fast Algorithms
    for Convolutional Neural Networks", arXiv 1509.09308.
    """
    return _filtered(p, [_F23 if k == 3 else _F11 for k in p.window.kernel])


def fft(p: Problem) -> Products:
    """Blocks multiplied frequency by frequency (overlap-save), each complex product in three real ones.

    The transform of a short block is itself a matrix product, which a CPU does faster than an FFT.
    """
    filters = []
    for size, taps, (low, high) in zip(p.window.sizes, p.window.kernel, p.window.padding, strict=True):
        block = _power_of_two(2 * taps if taps <= 128 else 4 * taps)
        filters.append(_by_spectrum(taps, min(block, _power_of_two(max(size + low + high, taps)))))
    return _filtered(p, filters)


def _power_of_two(least: int) -> int:
    return 2 ** math.ceil(math.log2(least))


def _matrix(rows: np.ndarray) -> Linear:
    """The map v -> rows · v, to the precision of v on every platform."""
    return lambda v: jnp.tensordot(jnp.asarray(rows, v.dtype), v, 1, precision=lax.Precision.HIGHEST)


_F11 = _Filter(1, 1, 1, *[lambda v: v] * 3)
_F23 = _Filter(
    2,
    3 + 2 - 1,
    4,
    _matrix(np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])),
    _matrix(np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])),
    _matrix(np.array([[1, 1, 1, 0], [0, 1, -1, -1]])),
)
_LONGEST_MATRIX = 256


@functools.lru_cache
def _by_spectrum(taps: int, block: int) -> _Filter:
    """Correlation by X · conj(W): with X = a + ib and W = c + id it takes ac, bd and (a + b)(c − d)."""
    frequencies, outputs = block // 2 + 1, block - taps + 1
    one, none = np.eye(frequencies), np.zeros((frequencies, frequencies))
    real, imaginary = np.hstack([one, one, none]), np.hstack([-one, one, one])  # of the spectrum of y

    def parts(v: Any, sign: int, xp: Any) -> Any:
        v = xp.fft.rfft(v, block, axis=0)
        return xp.concatenate([v.real, v.imag, v.real + sign * v.imag])

    def output(z: Array) -> Array:
        ac, bd, both = jnp.split(z, 3)
        return jnp.fft.irfft(lax.complex(ac + bd, both - ac + bd), block, axis=0)[:outputs]

    if block > _LONGEST_MATRIX:
        maps = (lambda x: parts(x, 1, jnp), lambda w: parts(w, -1, jnp), output)
    else:
        maps = (
            _matrix(parts(np.eye(block), 1, np)),
            _matrix(parts(np.eye(taps), -1, np)),
            _matrix(np.fft.irfft(real + 1j * imaginary, block, axis=0)[:outputs]),
        )
    return _Filter(outputs, block, 3 * frequencies, *maps)


def _filtered(p: Problem, filters: list[_Filter]) -> Products:
    """A `_Filter` along each axis. Their products come first, the last axis' in front, and multiply."""
    window = p.window
    blocks = tuple(-(-o // f.outputs) for o, f in zip(window.out, filters, strict=True))
    products = [f.products for f in filters]

    def image(x: Array) -> Array:
        for axis, (f, count) in enumerate(zip(filters, blocks, strict=True)):
            at = 2 * axis + 1  # in [*products so far, n, *blocks so far, *sizes left, g, c]
            x = _overlapping(x, at, window.padding[axis][0], f, count)
            x = f.image(jnp.moveaxis(x, at + 1, 0))
        return x.reshape(math.prod(products), -1, p.groups, p.c_in)

    def kernel(w: Array) -> Array:
        for axis, f in enumerate(filters):
            w = f.kernel(jnp.moveaxis(w, axis, 0))
        return w.reshape(math.prod(products), *w.shape[-3:])

    def output(z: Array) -> Array:
        z = z.reshape(*reversed(products), p.n, *blocks, p.groups, p.c_out)
        for axis in reversed(range(len(filters))):
            at = 2 * axis + 1  # of the blocks, once the products are gone
            z = jnp.moveaxis(filters[axis].output(z), 0, at + 1)
            z = z.reshape(*z.shape[:at], -1, *z.shape[at + 2 :])
        return z[(slice(None), *map(slice, window.out))]

    return _bilinear_algorithm(p, image, kernel, output, _product_by_product(p))


def _overlapping(x: Array, axis: int, low: int, f: _Filter, count: int) -> Array:
    """`axis` as two: `count` blocks of f.reach positions, each f.outputs after the one before."""
    pieces = -(-f.reach // f.outputs)
    ends = [(0, 0, 0)] * x.ndim
    ends[axis] = (low, (count + pieces - 1) * f.outputs - x.shape[axis] - low, 0)
    x = lax.pad(x, jnp.zeros((), x.dtype), ends)
    x = x.reshape(*x.shape[:axis], count + pieces - 1, f.outputs, *x.shape[axis + 1 :])
    parts = [lax.slice_in_dim(x, i, i + count, axis=axis) for i in range(pieces)]
    return lax.slice_in_dim(jnp.concatenate(parts, axis + 1), 0, f.reach, axis=axis + 1)


def _product_by_product(p: Problem) -> Products:
    """Matrix products along the first axis of [products, rows, g, c]; of elements if depthwise."""
    if p.c_in == p.c_out == 1:
        return Products(
            lambda w, x: x * w[:, None, :, 0],
            lambda dy, w: dy * w[:, None, :, 0],
            lambda x, dy: (x * dy).sum(1)[..., None],
        )
    each = lambda formula: jax.vmap(functools.partial(_by_group, formula))
    return Products(each("gij,rgi->rgj"), each("rgj,gij->rgi"), each("rgi,rgj->gij"))


# ---- what the taps of a kernel meet -----------------------------------------------------------------------


def _padded(x: Array, padding: Sequence[tuple[int, int]], spread: Sequence[int] | None = None) -> Array:
    """x [n, *size, ...] with its border, and with spread - 1 zeros between its positions."""
    between = [0] * len(padding) if spread is None else [s - 1 for s in spread]
    ends = [(*pair, gap) for pair, gap in zip(padding, between, strict=True)]
    rest = [(0, 0, 0)] * (x.ndim - 1 - len(ends))
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *ends, *rest])


def _shifts(x: Array, window: Window) -> list[Array]:
    """x as each tap sees it, along the axes of the window, which come after the first."""
    x = _padded(x, window.padding)
    return [x[(slice(None), *seen)] for _, seen in window.taps]


def _reversed(w: Array) -> Array:
    """The kernel of the transpose: taps reversed, input and output channels exchanged."""
    return jnp.flip(w, tuple(range(w.ndim - 3))).swapaxes(-1, -2)


def _pads_of_transpose(window: Window) -> tuple[tuple[int, int], ...]:
    """Of dy, spread out by the stride; negative where it is cut."""
    return tuple(
        (e * (k - 1) - low, p + low - (o - 1) * s - 1)
        for p, k, s, e, (low, _), o in zip(*window, window.out, strict=True)
    )


def _spread(dy: Array, window: Window) -> Array:
    """dy [n, *out, g, c] with stride - 1 zeros between its positions, and its border."""
    return _padded(dy, _pads_of_transpose(window), window.stride)


# ---- which form runs --------------------------------------------------------------------------------------

METHODS: dict[str, Callable[[Problem], Products]] = {
    "direct": direct,
    "shifted": shifted,
    "unfold": unfold,
    "fold": fold,
    "crossed": crossed,
    "polyphase": polyphase,
    "winograd": winograd,
    "fft": fft,
}
NEEDS = {
    "polyphase": ("dilation 1", lambda w: set(w.dilation) == {1}),
    "winograd": (
        "stride 1, dilation 1, kernels of 1 or 3 taps an axis",
        lambda w: set(w.stride) | set(w.dilation) == {1} and set(w.kernel) <= {1, 3},
    ),
    "fft": ("stride 1, dilation 1", lambda w: set(w.stride) | set(w.dilation) == {1}),
}
_FEW_CHANNELS, _FEW_COLUMNS, _FEW_TAPS = 4, 64, 32
_MANY_TAPS, _MANY_GROUPS = 128, 32
_CHUNK = 2**20  # elements of the patches of a chunk of images
_PAIR, _LEAST = 2**18, 16  # elements of x and dy in a chunk of images for dw, and how many it has at least


def on_cpu(p: Problem, product: str) -> Products:
    """The form that XLA's CPU backend runs fastest, for one of the three products (a field of `Products`).

    XLA:CPU is near the speed of a matrix product in float32, for one group of many channels in one or two
    dimensions; this is about the rest. Never winograd and fft, which mix the elements of a block: a NaN or a
    large element changes outputs that do not see it.
    """
    form = functools.partial(_whole_on_cpu, product=product)
    if product == "kernel_gradient" and known(*p.x[1:]) and not _alone(p) and not _is_matrix(p):
        # It takes x and dy in other layouts. Of whole arrays XLA makes these copies as soon as they can be
        # made, that of x in the forward pass already, and keeps them: a third of ResNet-20's memory.
        pair, planes = math.prod(p.x[1:]) + math.prod(p.y[1:]), math.prod(p.window.out[:-2])
        least = max(_LEAST // planes, 2)  # in three dimensions, each plane of an image is one
        return chunk_by_chunk(p, form, max(_PAIR // pair, 2 * least - 1), least)
    return form(p)


def _alone(p: Problem) -> bool:
    """Whether each channel has a kernel of its own, and there are enough of them to fill a vector."""
    return p.c_in == 1 and p.groups >= 8


def _is_matrix(p: Problem) -> bool:
    """Whether the window is one point, and moves by one: a product of matrices."""
    return (
        p.taps == 1 and set(p.window.stride) == {1} and p.window.padding == ((0, 0),) * len(p.window.kernel)
    )


def _whole_on_cpu(p: Problem, product: str) -> Products:
    """The same for all images at once."""
    window, again = p.window, functools.partial(_whole_on_cpu, product=product)
    if not known(*window.sizes):
        return direct(p)
    fits = lambda method: NEEDS[method][1](window)
    if _alone(p):
        return shifted(p) if p.taps <= _MANY_TAPS else direct(p)
    if 1 < p.groups <= _MANY_GROUPS:
        return group_by_group(p, again)
    if p.groups > 1:
        return direct(p)
    if _is_matrix(p):
        return matmul(p)
    if p.dtype == jnp.float64 and p.taps <= _MANY_TAPS:
        return chunk_by_chunk(p, unfold, _CHUNK // (math.prod(window.out) * p.taps * p.c_in))
    if (
        {"toeplitz": p.c_in, "transposed": p.c_out}.get(product) == 1
        and p.taps <= _FEW_TAPS
        and set(window.stride) == {1}
    ):
        return shifted(p)
    if len(window.kernel) == 3:
        side_by_side = window.kernel[0] * math.prod(p.x[1:])  # of an image: what `planes` makes of it
        most = _CHUNK // side_by_side if product == "toeplitz" else p.n
        return chunk_by_chunk(p, lambda p: planes(p, again), most)
    if product == "toeplitz" and p.c_out <= _FEW_CHANNELS and p.taps * p.c_out <= _FEW_COLUMNS:
        return fold(p)
    if product == "transposed" and p.c_in <= _FEW_CHANNELS and p.taps * p.c_in <= _FEW_COLUMNS:
        return unfold(p)
    if product == "transposed" and set(window.stride) != {1} and fits("polyphase"):
        even = all(k % s == 0 for k, s in zip(window.kernel, window.stride, strict=True))
        if even or _FEW_CHANNELS < p.c_in <= 32:
            return polyphase(p)
    return direct(p)
