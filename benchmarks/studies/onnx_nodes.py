"""ONNX's own node tests of what networks are made of, said in funcnet: how many there are, pass, and why not.

Needs the onnx package, whose tests come with it. A case is one node with its inputs and outputs. Each kind of
node that concerns networks has an entry here that says it by funcnet's operations (and `jnp` for what is no
operation: a transposition, a sum). A case passes where every output agrees to the tolerance of its dtype, and
where besides, at the same inputs slightly moved, in float64, the derivative along a random direction by
`jax.vjp` equals central differences. `main` lists the cases that do not pass.

    python -m benchmarks onnx_nodes
    python -m benchmarks.studies.onnx_nodes [OPERATOR...]
"""

import collections
import importlib.util
import math
import sys
import warnings
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import funcnet as fn
from benchmarks.harness import Scale, Table

Attributes = dict[str, Any]
_TOLERANCE = {"float64": 1e-6, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
_DIFFERENCES = 1e-5

# What funcnet leaves out, and why.
LEFT_OUT = {
    **dict.fromkeys(("Adagrad", "Adam", "Momentum"), "an optimizer: optax"),
    **dict.fromkeys(("ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul"), "integers"),
    "DeformConv": "no deformable convolution",
    "DFT": "no network's operation: jnp.fft",
    "Einsum": "jnp.einsum",
    "HammingWindow": "its 25/46 where all others have 0.54",
    "Hardmax": "no gradient: jax.nn.one_hot of argmax",
    "MaxUnpool": "no unpooling",
    "MelWeightMatrix": "triangles whose corners are rounded to bins",
    "RoiAlign": "regions of several sizes",
    "TensorScatter": "the write of a cache, a part of multihead.decode",
}


class NotSaid(Exception):  # noqa: N818
    """A case that funcnet's operations do not say, and why."""


def op(name: str) -> Any:
    """The operation, if this funcnet has it."""
    if name not in fn.__all__:
        raise NotSaid(f"no fn.{name}")
    return getattr(fn, name)


# ---- layouts ----------------------------------------------------------------------------------------------


def last(x: Any) -> Any:
    return jnp.moveaxis(x, 1, -1)


def first(y: Any) -> Any:
    return jnp.moveaxis(y, -1, 1)


def kernel(w: Any) -> Any:
    """[c_out, c_in, *kernel] as [*kernel, c_in, c_out]; of a transposed convolution the same."""
    return jnp.moveaxis(w, (1, 0), (-2, -1))


def known(v: Any) -> Any:
    return np.asarray(v)


def window(a: Attributes, x: Any, *, ceil: bool = False) -> dict[str, Any]:
    """kernel, stride, padding and dilation of a convolution or pool over x [n, c, *size]."""
    sizes, k = x.shape[2:], tuple(a["kernel_shape"])
    d = len(k)
    stride, dilation = tuple(a.get("strides", (1,) * d)), tuple(a.get("dilations", (1,) * d))
    pads = a.get("pads", (0,) * 2 * d)
    pairs = list(zip(pads[:d], pads[d:], strict=True))
    named = a.get("auto_pad", b"NOTSET").decode()
    for i, (n, s, e, size) in enumerate(zip(sizes, stride, dilation, k, strict=True)):
        reach = e * (size - 1) + 1
        if named.startswith("SAME"):
            total = max((-(-n // s) - 1) * s + reach - n, 0)
            half = total // 2
            pairs[i] = (half, total - half) if named == "SAME_UPPER" else (total - half, half)
        if ceil and a.get("ceil_mode"):
            low, high = pairs[i]
            out = -(-(n + low + high - reach) // s) + 1
            out -= (out - 1) * s >= n + low  # no window begins beyond the end
            pairs[i] = (low, max((out - 1) * s + reach - n - low, high))
    return {"kernel": k, "stride": stride, "padding": tuple(pairs), "dilation": dilation}


# ---- convolutions and pools -------------------------------------------------------------------------------


def conv(a: Attributes, x: Any, w: Any, b: Any = None) -> Any:
    options = window({"kernel_shape": w.shape[2:], **a}, x)
    options.pop("kernel")
    params: Any = {"w": kernel(w), "b": b}
    return first(fn.conv.apply(params, last(x), groups=a.get("group", 1), **options))


def conv_transpose(a: Attributes, x: Any, w: Any, b: Any = None) -> Any:
    k, d = w.shape[2:], x.ndim - 2
    stride, dilation = tuple(a.get("strides", (1,) * d)), tuple(a.get("dilations", (1,) * d))
    more = tuple(a.get("output_padding", (0,) * d))
    pads = a.get("pads", (0,) * 2 * d)
    low, high = list(pads[:d]), list(pads[d:])
    full = [
        (n - 1) * s + e * (size - 1) + 1 + p
        for n, s, e, size, p in zip(x.shape[2:], stride, dilation, k, more, strict=True)
    ]
    named = a.get("auto_pad", b"NOTSET").decode()
    sizes = a.get("output_shape")
    if named.startswith("SAME"):
        sizes = [n * s for n, s in zip(x.shape[2:], stride, strict=True)]
    if sizes is not None:
        for i in range(d):
            total = full[i] - sizes[i]
            low[i], high[i] = (
                (total // 2, total - total // 2)
                if named == "SAME_UPPER"
                else (total - total // 2, total // 2)
            )
    else:
        sizes = [n - p - q for n, p, q in zip(full, low, high, strict=True)]
    # The convolution of which this is the transpose cuts the end beyond its last window.
    pairs = [
        (p, max((n - 1) * s + e * (size - 1) + 1 - out - p, 0))
        for p, n, s, e, size, out in zip(low, x.shape[2:], stride, dilation, k, sizes, strict=True)
    ]
    options = {"stride": stride, "dilation": dilation, "padding": tuple(pairs), "output_shape": tuple(sizes)}
    params: Any = {"w": kernel(w), "b": b}
    return first(fn.conv_transpose.apply(params, last(x), groups=a.get("group", 1), **options))


def causal_conv(a: Attributes, x: Any, w: Any, b: Any = None, past: Any = None) -> Any:
    k = w.shape[-1]
    past = jnp.zeros((*x.shape[:2], k - 1), x.dtype) if past is None else past
    whole = jnp.concatenate([past, x], -1)
    y = fn.conv.apply({"w": kernel(w), "b": b}, last(whole), groups=x.shape[1], padding="valid")
    y = fn.silu.apply(y) if a.get("activation", b"none") in (b"silu", b"swish") else y
    return first(y), whole[..., whole.shape[-1] - (k - 1) :]


def max_pool(a: Attributes, x: Any) -> Any:
    if a["outputs"] > 1:
        raise NotSaid("the places of the largest elements")
    if not is_float(x):
        raise NotSaid("integers")
    return first(fn.max_pool.apply(last(x), **window(a, x, ceil=True)))


def avg_pool(a: Attributes, x: Any) -> Any:
    options: Any = window(a, x, ceil=True)
    if not a.get("count_include_pad"):
        return first(fn.avg_pool.apply(last(x), **options))
    pads, d = a.get("pads", (0,) * 2 * (x.ndim - 2)), x.ndim - 2
    counted = tuple(zip(pads[:d], pads[d:], strict=True))
    beyond = tuple(
        (0, high - counts) for (_, high), (_, counts) in zip(options["padding"], counted, strict=True)
    )
    x = op("pad").apply(last(x), padding=counted)
    return first(fn.avg_pool.apply(x, **options | {"padding": beyond}))


def lp_pool(a: Attributes, x: Any) -> Any:
    return first(op("lp_pool").apply(last(x), float(a.get("p", 2)), **window(a, x, ceil=True)))


def whole(name: str) -> Callable[..., Any]:
    return lambda _, x: first(op(name).apply(last(x), size=(1,) * (x.ndim - 2)))


# ---- grids ------------------------------------------------------------------------------------------------


def col2im(a: Attributes, x: Any, image: Any, block: Any) -> Any:
    k, size, d = tuple(map(int, known(block))), tuple(map(int, known(image))), len(known(image))
    pads = a.get("pads", (0,) * 2 * d)
    pairs = tuple(zip(pads[:d], pads[d:], strict=True))
    stride, dilation = tuple(a.get("strides", (1,) * d)), tuple(a.get("dilations", (1,) * d))
    out = [
        (n + sum(p) - e * (q - 1) - 1) // s + 1
        for n, p, e, q, s in zip(size, pairs, dilation, k, stride, strict=True)
    ]
    n, features, _ = x.shape
    x = x.reshape(n, features // math.prod(k), math.prod(k), *out)  # (c, k) before the positions
    x = jnp.moveaxis(x, (2, 1), (-2, -1)).reshape(n, *out, features)
    return first(op("fold").apply(x, size=size, kernel=k, stride=stride, padding=pairs, dilation=dilation))


def depth_to_space(a: Attributes, x: Any) -> Any:
    order = "channel last" if a.get("mode", b"DCR") == b"DCR" else "channel first"
    return first(op("pixel_shuffle").apply(last(x), factor=(a["blocksize"],) * 2, order=order))


def space_to_depth(a: Attributes, x: Any) -> Any:
    order = "channel last" if a.get("mode", b"DCR") == b"DCR" else "channel first"
    return first(op("pixel_unshuffle").apply(last(x), factor=(a["blocksize"],) * 2, order=order))


def grid_sample(a: Attributes, x: Any, grid: Any) -> Any:
    options = {
        "method": a.get("mode", b"linear").decode(),
        "padding_mode": a.get("padding_mode", b"zeros").decode(),
    }
    return first(
        op("grid_sample").apply(last(x), grid, align_corners=bool(a.get("align_corners")), **options)
    )


def affine_grid(a: Attributes, theta: Any, size: Any) -> Any:
    """A linear map of the coordinates of the points of a grid."""
    sizes = list(map(int, known(size)))[2:]
    along = [
        np.linspace(-1, 1, n) if a.get("align_corners") else (2 * np.arange(n) + 1) / n - 1 for n in sizes
    ]
    points = np.stack([*np.meshgrid(*along, indexing="ij")[::-1], np.ones(sizes)], -1)
    flat = jnp.asarray(points.reshape(-1, len(sizes) + 1)).astype(theta.dtype)
    y = fn.matmul.apply(flat, theta.mT)
    return y.reshape(theta.shape[0], *sizes, len(sizes))


def pad(a: Attributes, x: Any, pads: Any, value: Any = None, axes: Any = None) -> Any:
    mode = {"constant": "zeros", "wrap": "circular"}.get(
        a.get("mode", b"constant").decode(), a.get("mode", b"").decode()
    )
    axes = list(range(x.ndim)) if axes is None else [int(i) % x.ndim for i in known(axes)]
    ends = known(pads).tolist()
    value = 0.0 if value is None else value
    x = x if is_float(x) else x.astype(jnp.float32)
    x = x - value if mode == "zeros" else x
    for axis, low, high in zip(axes, ends, ends[len(axes) :], strict=False):
        if low or high:
            x = jnp.moveaxis(
                op("pad").apply(
                    jnp.moveaxis(x, axis, -1)[..., None], padding=((low, high),), padding_mode=mode
                )[..., 0],
                -1,
                axis,
            )
    return x + value if mode == "zeros" else x


def center_crop_pad(a: Attributes, x: Any, shape: Any) -> Any:
    axes = a.get("axes", range(x.ndim))
    for axis, size in zip(axes, map(int, known(shape)), strict=True):
        n, axis = x.shape[axis], axis % x.ndim
        if size <= n:
            x = jax.lax.slice_in_dim(x, (n - size) // 2, (n - size) // 2 + size, axis=axis)
        else:
            ends = ((size - n) // 2, size - n - (size - n) // 2)
            x = jnp.moveaxis(
                op("pad").apply(jnp.moveaxis(x, axis, -1)[..., None], padding=(ends,))[..., 0], -1, axis
            )
    return x


def resize(a: Attributes, x: Any, roi: Any = None, scales: Any = None, sizes: Any = None) -> Any:
    """By fn.resize where PyTorch has the convention; by fn.grid_sample at any other points."""
    axes = [int(i) % x.ndim for i in a.get("axes", range(x.ndim))]
    n = [x.shape[i] for i in axes]
    if scales is not None:
        factors = [float(s) for s in known(scales)]
        out = [math.floor(size * s) for size, s in zip(n, factors, strict=True)]
    else:
        out = [int(s) for s in known(sizes)]
        factors = [m / size for m, size in zip(out, n, strict=True)]
        policy = a.get("keep_aspect_ratio_policy", b"stretch")
        if policy != b"stretch":
            factor = (min if policy == b"not_larger" else max)(factors)
            factors = [factor] * len(n)
            out = [int(size * factor + 0.5) for size in n]
    mode = a.get("coordinate_transformation_mode", b"half_pixel").decode()
    kind, rounded = a.get("mode", b"nearest").decode(), a.get("nearest_mode", b"round_prefer_floor").decode()
    exclude, antialias = a.get("exclude_outside", 0), bool(a.get("antialias"))
    rows = sorted((i for i in range(len(axes)) if (out[i], factors[i]) != (n[i], 1.0)), key=lambda i: axes[i])
    if not rows:
        return x
    spatial = [axes[i] for i in rows]
    x = jnp.moveaxis(x, spatial, range(-len(spatial), 0))[..., None]
    name = "half_pixel" if mode == "pytorch_half_pixel" and all(out[i] > 1 for i in rows) else mode
    options: dict[str, Any] = {"method": kind, "a": a.get("cubic_coeff_a", -0.75)}
    back = lambda y: jnp.moveaxis(y[..., 0], range(-len(spatial), 0), spatial)
    if kind != "nearest" and name == "half_pixel" and (antialias or exclude):
        edge = "zeros" if exclude else "edge"
        beyond = lambda v: _beyond(
            v, [out[i] for i in rows], [factors[i] for i in rows], edge, options | {"antialias": antialias}
        )
        return back(beyond(x) / beyond(jnp.ones_like(x)) if exclude else beyond(x))
    if kind != "nearest" and name in ("half_pixel", "align_corners") and not antialias and not exclude:
        aligned = name == "align_corners"
        # (aligned corners of a scale that leaves a part of an element are other points)
        if not aligned or all(abs(factors[i] * n[i] - out[i]) < 1e-6 for i in rows):
            sized = (
                {"size": tuple(out[i] for i in rows)}
                if aligned or scales is None
                else {"scale": tuple(factors[i] for i in rows)}
            )
            return back(op("resize").apply(x, align_corners=aligned, **sized, **options))
    if antialias or exclude or (kind == "cubic" and options["a"] != -0.75):
        raise NotSaid(f"{kind} away from PyTorch's points")
    points = []
    for i in rows:
        o, size, f, m = np.arange(out[i]), n[i], factors[i], out[i]
        if mode == "align_corners":
            p = o * (size * f - 1 and (size - 1) / (size * f - 1)) if size * f != 1 else o * 0.0
        elif mode == "asymmetric":
            p = o / f
        elif mode == "tf_crop_and_resize":
            begin, end = float(known(roi)[i]), float(known(roi)[len(axes) + i])
            p = begin * (size - 1) + (o * (end - begin) * (size - 1) / (m - 1) if m > 1 else 0)
        elif mode == "half_pixel_symmetric":
            p = size / 2 * (1 - m / (size * f)) + (o + 0.5) / f - 0.5
        else:
            p = (o + 0.5) / f - 0.5 if mode == "half_pixel" or m > 1 else o * 0.0
        if kind == "nearest":
            rounding = {
                "floor": np.floor,
                "ceil": np.ceil,
                "round_prefer_floor": lambda p: np.ceil(p - 0.5),
                "round_prefer_ceil": lambda p: np.floor(p + 0.5),
            }
            p = np.clip(rounding[rounded](p), 0, size - 1)
        points.append((p, size))
    grid = np.stack(np.meshgrid(*[(2 * p + 1) / size - 1 for p, size in points], indexing="ij")[::-1], -1)
    outside = any(((p < 0) | (p > size - 1)).any() for p, size in points) and mode == "tf_crop_and_resize"
    sample = lambda v, edge: op("grid_sample").apply(
        v,
        jnp.broadcast_to(jnp.asarray(grid).astype(v.dtype), (*v.shape[: -len(spatial) - 1], *grid.shape)),
        method=kind,
        padding_mode=edge,
    )
    y = sample(x, "border")
    if outside:
        inside = np.logical_and.reduce(
            np.meshgrid(*[(p >= 0) & (p <= size - 1) for p, size in points], indexing="ij")
        )
        y = jnp.where(inside[..., None], y, a.get("extrapolation_value", 0.0))
    return back(y)


def _beyond(x: Any, out: list[int], factors: list[float], edge: str, options: dict[str, Any]) -> Any:
    """fn.resize, which cuts a stretched filter at the border, or continues x there, with a border of ours."""
    pairs, scale, steps = [], [], []
    for factor in factors:
        exact = Fraction(factor).limit_denominator(64)
        times = math.ceil(2 / exact.numerator) + 1  # a border of whole steps, as wide as the filter
        pairs.append((times * exact.denominator,) * 2)
        steps.append(times * exact.numerator)
        scale.append(float(exact))
    y = op("resize").apply(
        op("pad").apply(x, padding=tuple(pairs), padding_mode=edge), scale=tuple(scale), **options
    )
    inside = (slice(k, k + m) for k, m in zip(steps, out, strict=True))
    return y[(..., *inside, slice(None))]


# ---- norms ------------------------------------------------------------------------------------------------


def _about(name: str, a: Attributes, x: Any, w: Any, b: Any = None) -> Any:
    at = a.get("axis", -1) % x.ndim
    flat = x.reshape(*x.shape[:at], -1)
    params = {"w": w.reshape(-1)} | ({} if b is None else {"b": b.reshape(-1)})
    return getattr(fn, name).apply(params, flat, a.get("epsilon", 1e-5)).reshape(x.shape), flat


def layer_norm(a: Attributes, x: Any, w: Any, b: Any = None) -> Any:
    y, flat = _about("layer_norm", a, x, w, b)
    kept = flat.shape[:-1] + (1,) * (x.ndim - flat.ndim + 1)
    h = flat.astype(jnp.promote_types(flat.dtype, jnp.float32))
    mean, var = h.mean(-1), h.var(-1)
    return y, mean.reshape(kept), (1 / jnp.sqrt(var + a.get("epsilon", 1e-5))).reshape(kept)


def rms_norm(a: Attributes, x: Any, w: Any) -> Any:
    return _about("rms_norm", a, x, w)[0]


def group_norm(a: Attributes, x: Any, w: Any, b: Any) -> Any:
    return first(
        fn.group_norm.apply(
            {"w": w, "b": b}, last(x), groups=a["num_groups"], eps=a.get("epsilon", 1e-5), spatial=x.ndim - 2
        )
    )


def instance_norm(a: Attributes, x: Any, w: Any, b: Any) -> Any:
    c = x.shape[1]
    return first(
        fn.group_norm.apply(
            {"w": w, "b": b}, last(x), groups=c, eps=a.get("epsilon", 1e-5), spatial=x.ndim - 2
        )
    )


def batch_norm(a: Attributes, x: Any, w: Any, b: Any, mean: Any, var: Any) -> Any:
    train, momentum = bool(a.get("training_mode")), a.get("momentum", 0.9)
    y, state = fn.batch_norm.apply(
        {"w": w, "b": b},
        {"mean": mean, "var": var},
        last(x),
        train=train,
        momentum=momentum,
        eps=a.get("epsilon", 1e-5),
    )
    if not train:
        return first(y)
    n = x.size // x.shape[1]  # ONNX keeps the biased variance
    biased = (state["var"] - momentum * var) * (n - 1) / n + momentum * var
    return first(y), state["mean"], biased


def mvn(a: Attributes, x: Any) -> Any:
    if tuple(a.get("axes", (0, 2, 3))) != (0, 2, 3):
        raise NotSaid("other axes")
    one, zero = jnp.ones(x.shape[1], x.dtype), jnp.zeros(x.shape[1], x.dtype)
    return first(
        fn.batch_norm.apply({"w": one}, {"mean": zero, "var": one}, last(x), train=True, eps=1e-9)[0]
    )


def lrn(a: Attributes, x: Any) -> Any:
    """x / (bias + α · the mean of squares over neighbouring channels)^β."""
    size, half = a["size"], (a["size"] - 1) // 2
    squares = op("pad").apply(last(x)[..., None] ** 2, padding=((half, size - 1 - half),))
    mean = fn.avg_pool.apply(squares, kernel=(size,), stride=1)[..., 0]
    return first(last(x) / (a.get("bias", 1.0) + a.get("alpha", 1e-4) * mean) ** a.get("beta", 0.75))


def lp_norm(a: Attributes, x: Any) -> Any:
    axis, p = a.get("axis", -1), float(a.get("p", 2))
    moved = jnp.moveaxis(x, axis, -1)[..., None]
    norm = op("lp_pool").apply(moved, p, kernel=(moved.shape[-2],))
    return jnp.moveaxis((moved / jnp.where(norm > 0, norm, 1))[..., 0], -1, axis)


# ---- attention --------------------------------------------------------------------------------------------


def _heads(v: Any, heads: int | None) -> Any:
    """[n, h, t, e], or [n, t, h · e], as [n, t, h, e]."""
    return v.swapaxes(1, 2) if v.ndim == 4 else v.reshape(*v.shape[:2], heads, -1)


def attention(
    a: Attributes,
    q: Any,
    k: Any,
    v: Any,
    mask: Any = None,
    past_k: Any = None,
    past_v: Any = None,
    lengths: Any = None,
) -> Any:
    four = q.ndim == 4
    h, g = a.get("q_num_heads"), a.get("kv_num_heads")
    q, k, v = _heads(q, h), _heads(k, g), _heads(v, g)
    offset = 0
    if past_k is not None:
        offset = jnp.full(q.shape[0], past_k.shape[2], jnp.int32)  # (queries may lie beyond the last key)
        k, v = (jnp.concatenate([past.swapaxes(1, 2), new], 1) for past, new in ((past_k, k), (past_v, v)))
    t, s = q.shape[1], k.shape[1]
    options: dict[str, Any] = {"causal": bool(a.get("is_causal")), "q_offset": offset}
    seen = None
    if lengths is not None:
        n = jnp.asarray(known(lengths))
        seen = (jnp.arange(s) < n[:, None])[:, None, None]
        if options["causal"] or a.get("left_window_size", -1) >= 0 or a.get("right_window_size", -1) >= 0:
            options["q_offset"] = (n - t).astype(jnp.int32)
    left, right = a.get("left_window_size", -1), a.get("right_window_size", -1)
    if left >= 0 or right >= 0:
        options["window"] = (left if left >= 0 else s + t, right if right >= 0 else s + t)
    bias = None
    if mask is not None:
        short = s - mask.shape[-1]
        if mask.dtype == bool:
            mask = jnp.pad(mask, [(0, 0)] * (mask.ndim - 1) + [(0, short)])
            seen = mask if seen is None else seen & mask
        else:
            bias = jnp.pad(mask, [(0, 0)] * (mask.ndim - 1) + [(0, short)], constant_values=-jnp.inf)
    if a.get("softcap"):
        options["softcap"] = a["softcap"]
    if "scale" in a:
        options["scale"] = a["scale"]
    if seen is not None and seen.ndim < 2:
        seen = seen[None]
    y = fn.attention.apply(q, k, v, bias, mask=seen, **options)
    y = y.swapaxes(1, 2) if four else y.reshape(*y.shape[:2], -1)
    if a["given"] == 1:
        return y
    scores = (
        _scores(q, k, bias, seen, a.get("qk_matmul_output_mode", 0), **options) if a["given"] > 3 else None
    )
    return y, k.swapaxes(1, 2), v.swapaxes(1, 2), scores


def _scores(
    q: Any,
    k: Any,
    bias: Any,
    seen: Any,
    mode: int,
    *,
    causal: bool,
    q_offset: Any,
    window: Any = None,
    softcap: float = 0.0,
    scale: float | None = None,
) -> Any:
    """What attention does not keep: scores; masked, with their bias (mode 2); their softmax (mode 3)."""
    h, t, s = q.shape[2], q.shape[1], k.shape[1]
    keys = jnp.repeat(k, h // k.shape[2], 2).transpose(0, 2, 3, 1)
    scores = fn.matmul.apply(q.swapaxes(1, 2), keys) * (
        1 / math.sqrt(q.shape[-1]) if scale is None else scale
    )
    scores = fn.tanh.apply(scores / softcap) * softcap if softcap else scores
    if mode < 2:
        return scores
    ahead = jnp.asarray(q_offset).reshape(-1, 1, 1, 1) + jnp.arange(t)[:, None] - jnp.arange(s)
    allowed = jnp.ones(ahead.shape, bool) if seen is None else seen
    if causal:
        allowed = allowed & (ahead >= 0)
    if window is not None:
        allowed = allowed & (ahead <= window[0]) & (-ahead <= window[1])
    scores = jnp.where(allowed, scores if bias is None else scores + bias, -jnp.inf)
    if mode == 2:
        return scores
    some = (scores > -jnp.inf).any(-1, keepdims=True)
    return jnp.where(some, fn.softmax.apply(jnp.where(some, scores, 0)), 0)


def flex_attention(a: Attributes, q: Any, k: Any, v: Any) -> Any:
    graph = a.get("score_mod") or a.get("prob_mod")
    if graph is None:
        return attention({**a, "given": 1}, q, k, v)
    from onnx import numpy_helper  # pyright: ignore[reportMissingImports]

    constants = [numpy_helper.to_array(c) for c in graph.initializer]
    if graph.name == "score_mod_causal_mask":
        return attention({**a, "is_causal": 1, "given": 1}, q, k, v)
    if graph.name == "score_mod_soft_cap":
        return attention({**a, "softcap": float(constants[0]), "given": 1}, q, k, v)
    if graph.name == "score_mod_bias":
        bias = jnp.full((q.shape[2], k.shape[2]), float(constants[0]), q.dtype)
        return attention({**a, "given": 1}, q, k, v, bias)
    if graph.name == "prob_mod_scale":
        return attention({**a, "given": 1}, q, k, v) * float(constants[0])
    raise NotSaid("a program over the scores")


def linear_attention(
    a: Attributes, q: Any, k: Any, v: Any, state: Any = None, decay: Any = None, beta: Any = None
) -> Any:
    if beta is not None or a.get("update_rule", b"gated_delta") not in (b"linear", b"gated"):
        raise NotSaid("the delta rule")
    h, g = a["q_num_heads"], a["kv_num_heads"]
    q, k, v = _heads(q, h), _heads(k, g), _heads(v, g)
    e = q.shape[-1]
    # S_t = decay_t ⊙ S_{t−1} + k_t v_tᵀ is a linear recurrence in h · e · e numbers.
    inputs = k[..., :, None] * v[..., None, :]
    gate = (
        jnp.ones_like(k)
        if decay is None
        else jnp.broadcast_to(jnp.exp(decay.reshape(*k.shape[:3], -1)), k.shape)
    )
    flat = lambda v: v.reshape(*v.shape[:2], g * e, *v.shape[4:])
    start = None if state is None else state.reshape(-1, g * e, state.shape[-1])
    states = fn.linear_recurrence.apply(flat(gate), flat(inputs), start).reshape(inputs.shape)
    scale = a.get("scale", 0.0) or 1 / math.sqrt(e)
    y = fn.matmul.apply(jnp.repeat(states, h // g, 2).mT, q[..., None])[..., 0] * scale
    return y.reshape(*y.shape[:2], -1), states[:, -1]


def rotary(a: Attributes, x: Any, cos: Any, sin: Any, positions: Any = None) -> Any:
    four = x.ndim == 4
    x = _heads(x, a.get("num_heads"))
    if positions is not None:
        cos, sin = (fn.embedding.apply({"w": table}, jnp.asarray(known(positions))) for table in (cos, sin))
    config = fn.rope.Config(layout="interleaved" if a.get("interleaved") else "split")
    try:
        y = fn.rope.apply(x, config, tables=(cos, sin))
    except TypeError:
        raise NotSaid("rope with tables given") from None
    return y.swapaxes(1, 2) if four else y.reshape(*y.shape[:2], -1)


# ---- recurrences ------------------------------------------------------------------------------------------


def recurrent(cell: str) -> Callable[..., Any]:
    """The cell in each direction; weights by fn.hub."""

    def run(
        a: Attributes,
        x: Any,
        w: Any,
        r: Any,
        b: Any = None,
        lengths: Any = None,
        h: Any = None,
        c: Any = None,
        p: Any = None,
    ) -> Any:
        if p is not None and np.any(known(p)):
            raise NotSaid("peepholes")
        from funcnet.hub import recurrent as hub

        if a.get("layout"):
            x = x.swapaxes(0, 1)
        directions = {"forward": (False,), "reverse": (True,)}.get(
            a.get("direction", b"forward").decode(), (False, True)
        )
        ys, hs, cs = [], [], []
        arrays = {"W": known(w), "R": known(r)} | ({} if b is None else {"B": known(b)})
        options = {"reset": "after" if a.get("linear_before_reset") else "before"} if cell == "gru" else {}
        mask = None if lengths is None else jnp.arange(x.shape[0]) < jnp.asarray(known(lengths))[:, None]
        for i, reverse in enumerate(directions):
            params = hub.from_arrays(cell, "onnx", arrays, direction=i, **options)  # pyright: ignore[reportArgumentType]
            params = {name: jnp.asarray(v).astype(x.dtype) for name, v in params.items()}
            starts = {name: v[i] for name, v in (("h", h), ("c", c)) if v is not None}
            y, end = getattr(fn, cell).apply(
                params, x.swapaxes(0, 1), starts or None, reverse=reverse, mask=mask, **options
            )
            ys.append(y.swapaxes(0, 1))
            hs.append(end["h"])
            cs.append(end.get("c"))
        y, h_ = jnp.stack(ys, 1), jnp.stack(hs)
        outputs = [y, h_] + ([jnp.stack(cs)] if cell == "lstm" else [])
        if a.get("layout"):
            outputs = [outputs[0].transpose(2, 0, 1, 3), *(v.swapaxes(0, 1) for v in outputs[1:])]
        return tuple(outputs)

    return run


# ---- dense, losses, sound ---------------------------------------------------------------------------------


def gemm(a: Attributes, x: Any, w: Any, c: Any = None) -> Any:
    x, w = x.T if a.get("transA") else x, w.T if a.get("transB") else w
    y = a.get("alpha", 1.0) * fn.matmul.apply(x, w)
    return y if c is None else y + a.get("beta", 1.0) * c


def matmul(_: Attributes, x: Any, w: Any) -> Any:
    x_, w_ = x[None] if x.ndim == 1 else x, w[:, None] if w.ndim == 1 else w
    y = fn.matmul.apply(x_, w_)
    return y.reshape(
        y.shape[: y.ndim - 2]
        + (() if x.ndim == 1 else y.shape[-2:-1])
        + (() if w.ndim == 1 else y.shape[-1:])
    )


def gather(a: Attributes, x: Any, ids: Any) -> Any:
    axis = a.get("axis", 0) % x.ndim
    table = jnp.moveaxis(x, axis, 0)
    ids = jnp.asarray(known(ids) % table.shape[0])  # negative ones count from the end
    rows = fn.embedding.apply({"w": table.reshape(table.shape[0], -1)}, ids).reshape(
        *ids.shape, *table.shape[1:]
    )
    return jnp.moveaxis(rows, range(ids.ndim), range(axis, axis + ids.ndim))


def dropout(a: Attributes, x: Any, ratio: Any = None, train: Any = None) -> Any:
    rate = float(known(ratio)) if ratio is not None else 0.5
    if train is not None and bool(known(train)) and rate:
        raise NotSaid("NumPy's random mask")
    y = fn.dropout.apply(x, rate=rate)
    return (y, jnp.ones(x.shape, bool)) if a["outputs"] > 1 else y


def _reduced(a: Attributes, loss: Any, weights: Any) -> Any:
    how = a.get("reduction", b"mean")
    if how == b"none":
        return loss
    return loss.sum() if how == b"sum" else loss.sum() / weights.sum()


def nll(a: Attributes, x: Any, labels: Any, w: Any = None, *, logits: bool = False) -> Any:
    labels, ignored = jnp.asarray(known(labels)), a.get("ignore_index")
    scores = last(x)
    if logits:
        each = fn.cross_entropy.apply(scores, labels, ignore_index=ignored)
    else:
        kept = jnp.asarray(labels if ignored is None else jnp.where(labels == ignored, -1, labels))
        each = op("nll").apply(scores, kept, ignore_index=-1)
    inside = (labels >= 0) & (labels < scores.shape[-1])
    inside = inside if ignored is None else inside & (labels != ignored)
    weights = inside.astype(x.dtype)
    if w is not None:
        weights = weights * w[jnp.where(inside, labels, 0)]
    return _reduced(a, each * weights, weights)


def sce(a: Attributes, x: Any, labels: Any, w: Any = None) -> Any:
    z = nll(a, x, labels, w, logits=True)
    return (z, first(op("log_softmax").apply(last(x)))) if a["outputs"] > 1 else z


def reduced(over: Callable[[Any], Any]) -> Callable[..., Any]:
    """`over` the last axis [*n, k] of what is reduced, as one axis: norms, means and maxima of whole axes."""

    def run(a: Attributes, x: Any, axes: Any = None) -> Any:
        if not is_float(x):
            raise NotSaid("integers")
        axes = a.get("axes", axes)
        given = [] if axes is None else [int(i) % x.ndim for i in np.atleast_1d(known(axes))]
        if not given and a.get("noop_with_empty_axes"):
            return x
        given = given or list(range(x.ndim))
        rest = [i for i in range(x.ndim) if i not in given]
        k = math.prod(x.shape[i] for i in given)
        y = over(x.transpose(*rest, *given).reshape(*(x.shape[i] for i in rest), k))
        return jnp.expand_dims(y, sorted(given)) if a.get("keepdims", 1) else y

    return run


def pooled(name: str, *p: float) -> Callable[[Any], Any]:
    """A pool whose one window is the axis."""

    def pool(x: Any) -> Any:
        if x.shape[-1] == 0:
            raise NotSaid("of no elements")
        size = {"kernel": (x.shape[-1],)} if p else {"size": (1,)}
        return op(name).apply(x[..., None], *p, **size)[..., 0, 0]

    return pool


# ---- elementwise ------------------------------------------------------------------------------------------


def each(name: str, **renamed: Any) -> Callable[..., Any]:
    """An operation of each element; `renamed`: option -> (attribute, default)."""
    return lambda a, x: op(name).apply(x, **{o: a.get(n, d) for o, (n, d) in renamed.items()})


def softmax(name: str) -> Callable[..., Any]:
    return lambda a, x: op(name).apply(x, a.get("axis", -1))


def prelu(_: Attributes, x: Any, slope: Any) -> Any:
    if "prelu" not in fn.__all__:
        raise NotSaid("no fn.prelu")
    if slope.shape == x.shape:  # one slope per element: as channels of one example
        return fn.prelu.apply({"w": slope.reshape(-1)}, x.reshape(-1)).reshape(x.shape)
    return fn.prelu.apply({"w": slope}, x)


def selu(a: Attributes, x: Any) -> Any:
    if a.keys() & {"alpha", "gamma"}:  # constants of one's own
        return op("elu").apply(x, a.get("alpha", 1.67326319217681884765625)) * a.get(
            "gamma", 1.05070102214813232421875
        )
    return op("selu").apply(x)


def shrink(a: Attributes, x: Any) -> Any:
    lambd, bias = a.get("lambd", 0.5), a.get("bias", 0.0)
    if bias not in (0.0, lambd):
        raise NotSaid("another bias")
    return op("hard_shrink" if bias == 0.0 else "soft_shrink").apply(x, lambd)


def swish(a: Attributes, x: Any) -> Any:
    alpha = a.get("alpha", 1.0)
    return fn.silu.apply(x * alpha) / alpha


def swiglu(a: Attributes, gate: Any, up: Any) -> Any:
    alpha = a.get("alpha", 1.0)
    return fn.swiglu.apply(gate * alpha, up) / alpha


def window_of(name: str) -> Callable[..., Any]:
    return lambda a, width: op("stft").window(name, int(known(width)), periodic=bool(a.get("periodic", 1)))


def stft(_: Attributes, x: Any, hop: Any, window: Any = None, length: Any = None) -> Any:
    n = int(known(length)) if length is not None else window.shape[0]
    window = jnp.ones(n, x.dtype) if window is None else window
    return op("stft").apply(x[..., 0], window, n_fft=n, hop=int(known(hop)), padding="valid")


NODES: dict[str, Callable[..., Any]] = {
    "AffineGrid": affine_grid,
    "Attention": attention,
    "AveragePool": avg_pool,
    "BatchNormalization": batch_norm,
    "BlackmanWindow": window_of("blackman"),
    "CausalConvWithState": causal_conv,
    "Celu": each("celu", alpha=("alpha", 1.0)),
    "CenterCropPad": center_crop_pad,
    "Col2Im": col2im,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "DepthToSpace": depth_to_space,
    "Dropout": dropout,
    "Elu": each("elu", alpha=("alpha", 1.0)),
    "FlexAttention": flex_attention,
    "GRU": recurrent("gru"),
    "Gather": gather,
    "Gelu": lambda a, x: fn.gelu.apply(x, a.get("approximate", b"none") == b"tanh"),
    "Gemm": gemm,
    "GlobalAveragePool": whole("adaptive_avg_pool"),
    "GlobalMaxPool": whole("adaptive_max_pool"),
    "GridSample": grid_sample,
    "GroupNormalization": group_norm,
    "HannWindow": window_of("hann"),
    "HardSigmoid": each("hard_sigmoid", alpha=("alpha", 0.2), beta=("beta", 0.5)),
    "HardSwish": each("hard_silu"),
    "InstanceNormalization": instance_norm,
    "LRN": lrn,
    "LSTM": recurrent("lstm"),
    "LayerNormalization": layer_norm,
    "LeakyRelu": each("leaky_relu", negative_slope=("alpha", 0.01)),
    "LinearAttention": linear_attention,
    "LogSoftmax": softmax("log_softmax"),
    "LpNormalization": lp_norm,
    "LpPool": lp_pool,
    "MatMul": matmul,
    "MaxPool": max_pool,
    "MeanVarianceNormalization": mvn,
    "Mish": each("mish"),
    "NegativeLogLikelihoodLoss": nll,
    "PRelu": prelu,
    "Pad": pad,
    "RMSNormalization": rms_norm,
    "RNN": recurrent("rnn"),
    "ReduceL1": reduced(pooled("lp_pool", 1.0)),
    "ReduceL2": reduced(pooled("lp_pool", 2.0)),
    "ReduceLogSumExp": reduced(lambda x: op("logsumexp").apply(x)),
    "ReduceMax": reduced(pooled("adaptive_max_pool")),
    "ReduceMean": reduced(pooled("adaptive_avg_pool")),
    "Relu": each("relu"),
    "Resize": resize,
    "RotaryEmbedding": rotary,
    "STFT": stft,
    "Selu": selu,
    "Shrink": shrink,
    "Sigmoid": each("sigmoid"),
    "Softmax": softmax("softmax"),
    "SoftmaxCrossEntropyLoss": sce,
    "Softplus": each("softplus"),
    "Softsign": each("softsign"),
    "SpaceToDepth": space_to_depth,
    "SwiGLU": swiglu,
    "Swish": swish,
    "Tanh": each("tanh"),
    "ThresholdedRelu": lambda a, x: op("threshold").apply(x, threshold=a.get("alpha", 1.0), value=0.0),
    "Upsample": lambda a, x, scales: resize(
        {**a, "coordinate_transformation_mode": b"asymmetric", "nearest_mode": b"floor"}, x, None, scales
    ),
}


# ---- one case ---------------------------------------------------------------------------------------------


def is_float(v: Any) -> bool:
    return v is not None and hasattr(v, "dtype") and jnp.issubdtype(v.dtype, jnp.floating)


def check(node: Any, inputs: list[Any], outputs: list[Any]) -> None:
    """Raise NotSaid, or AssertionError where a value or a derivative is wrong."""
    from onnx import helper  # pyright: ignore[reportMissingImports]

    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    attributes["outputs"] = sum(map(bool, node.output))
    attributes["given"] = len(node.output)
    filled = iter(inputs)
    args = [next(filled) if name else None for name in node.input]
    say = NODES[node.op_type]
    # Shapes, ids and windows are known; what is differentiated is float, but for scalars that are options.
    moving = [i for i, v in enumerate(args) if is_float(v) and i not in FIXED.get(node.op_type, ())]

    def run(*values: Any) -> Any:
        given = list(args)
        for i, value in zip(moving, values, strict=True):
            given[i] = value
        got = say(attributes, *given)
        return got if isinstance(got, tuple) else (got,)

    values = [jnp.asarray(args[i]) for i in moving]
    got = run(*values) if not values else jax.jit(run)(*values)
    pairs = [(g, n) for g, n in zip(got, node.output, strict=False) if n and g is not None]
    assert len(pairs) == len(outputs), f"{len(pairs)} outputs of {len(outputs)}"
    for (g, _), want in zip(pairs, outputs, strict=True):
        g, kind = np.asarray(g, np.float64), str(np.asarray(want).dtype)
        w = np.asarray(want, np.float64)
        assert g.shape == w.shape, f"shape {g.shape}, not {w.shape}"
        tolerance = _TOLERANCE.get(kind, 1e-4)
        assert np.allclose(g, w, tolerance, tolerance, equal_nan=True), (
            f"value off by {np.nanmax(np.abs(g - w)):.1e}"
        )
    if values:
        states = (
            1 if node.op_type == "BatchNormalization" else len(node.output)
        )  # no gradient comes from state
        _differentiate(run, values, node.output[:states])


def _differentiate(run: Callable[..., Any], values: list[Any], names: Any) -> None:
    """⟨dy, J t⟩ by jax.vjp = the central difference along t, at inputs without ties."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        at = [np.asarray(v, np.float64) for v in values]
        at = [v + 1e-2 * rng.standard_normal(v.shape) * np.isfinite(v) for v in at]
        t = [rng.standard_normal(v.shape) * np.isfinite(v) for v in at]

        def every(*v: Any) -> list[Any]:
            return [y for y, n in zip(run(*v), names, strict=False) if n and is_float(y)]

        @jax.jit
        def both(v: list[Any], dy: list[Any]) -> tuple[list[Any], list[Any]]:
            y, pull = jax.vjp(every, *v)
            return y, pull([c.astype(u.dtype) for c, u in zip(dy, y, strict=True)])

        dy = [rng.standard_normal(y.shape) for y in jax.eval_shape(every, *at)]
        _, grads = both(at, dy)
        h = 1e-6
        ends = [both([v + s * h * u for v, u in zip(at, t, strict=True)], dy)[0] for s in (1, -1)]
        dot = lambda a, b: sum(float(np.vdot(u, v)) for u, v in zip(a, b, strict=True))
        finite = lambda v: np.where(np.isfinite(v), v, 0)
        slopes = [(finite(u) - finite(v)) / (2 * h) for u, v in zip(*ends, strict=True)]
        difference = dot(dy, slopes)
        by_rule = dot(grads, t)
        scale = math.sqrt(dot(dy, dy) * dot(t, t)) + abs(difference)
        assert abs(by_rule - difference) <= _DIFFERENCES * scale + 1e-9, (
            f"derivative {by_rule:.6g}, by differences {difference:.6g}"
        )


FIXED = {  # inputs that are options
    "BatchNormalization": (3, 4),  # state, which has no gradient
    "Dropout": (1,),
    "GRU": (1, 2, 3),
    "LSTM": (1, 2, 3, 7),
    "Pad": (2,),
    "RNN": (1, 2, 3),
    "Resize": (1, 2),
    "RotaryEmbedding": (1, 2),
    "Upsample": (1,),
}


def cases() -> dict[str, list[Any]]:
    """Of every operator that concerns networks, its cases of one node."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases  # pyright: ignore[reportMissingImports]

        found = collections.defaultdict(list)
        for case in collect_testcases(None):
            (node, *more) = case.model.graph.node
            if not more and (node.op_type in NODES or node.op_type in LEFT_OUT):
                found[node.op_type].append(case)
    return dict(sorted(found.items()))


def verdicts(name: str, found: list[Any]) -> dict[str, str]:
    """Of each case: "pass", "not said: why" or "WRONG: how"."""
    answers = {}
    for case in found:
        if name in LEFT_OUT:
            answers[case.name] = f"not said: {LEFT_OUT[name]}"
            continue
        ((inputs, outputs),) = case.data_sets[:1]
        try:
            check(case.model.graph.node[0], list(inputs), list(outputs))
            answers[case.name] = "pass"
        except NotSaid as reason:
            answers[case.name] = f"not said: {reason}"
        except Exception as error:
            answers[case.name] = f"WRONG: {type(error).__name__}: {error}"
    return answers


def run(scale: Scale) -> list[Table]:
    """One row per operator, and one of all."""
    del scale
    if importlib.util.find_spec("onnx") is None:
        return [Table("ONNX's node tests", [], "pip install onnx: its tests come with it.")]
    rows, total = [], collections.Counter()
    for name, found in cases().items():
        answers = verdicts(name, found)
        count = collections.Counter(answer.partition(":")[0] for answer in answers.values())
        reasons = dict.fromkeys(a.partition(": ")[2][:80] for a in answers.values() if a != "pass")
        row = {
            "cases": len(found),
            "pass": count["pass"],
            "not said": count["not said"],
            "wrong": count["WRONG"],
        }
        rows.append({"operator": name, **row, "why": "; ".join(reasons)})
        total.update(row)
    rows.append(
        {"operator": "all", **{k: total[k] for k in ("cases", "pass", "not said", "wrong")}, "why": ""}
    )
    return [Table("ONNX's node tests of what networks are made of", rows, "Forward and gradient.")]


def main(operators: list[str]) -> int:
    """Print what does not pass; the exit code is 1 where something is wrong."""
    jax.config.update("jax_disable_most_optimizations", True)  # most of the time is XLA's
    total = collections.Counter()
    for name, found in cases().items():
        if operators and name not in operators:
            continue
        answers = verdicts(name, found)
        for case, answer in answers.items():
            total[answer.partition(":")[0]] += 1
            if answer != "pass":
                print(f"{name:26} {case:60} {answer[:200]}", flush=True)
    print(dict(total))
    return int(total["WRONG"] > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
