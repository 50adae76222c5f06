"""Every argument of every operation and net, replaced in turn by some fifty wrong things.

The answer is right, or an error of funcnet's own that names the argument, what was expected and what came;
never another library's traceback. Nothing is compiled: the calls are traced.

What is taken is right where the annotation of the argument allows the value that it stands for (2 where an
np.int64(2) is given, (2, 2) for [2, 2]), and both give the same program.
"""

import contextlib
import functools
import importlib
import inspect
import operator
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from beartype.door import is_bearable
from jaxtyping import Array, Float, Int32

import funcnet as fn
from funcnet.errors import DTypeError, FuncnetError, ShapeError, ValueRangeError
from tests.cases import FAMILIES, heads, mixture
from tests.errors import golden

pytestmark = pytest.mark.usefixtures("unchecked")

Arguments = dict[str, Any]
Place = tuple[str, ...]  # an argument, or what is in one: ("params", "w")

# What is let through, and why.
LET_THROUGH = {
    ("prelu.init", "key"): "as those of the norms",
    ("*_norm.init", "key"): "the key comes first in every init; one that draws nothing does not look at it",
    ("multihead.init_cache", "params.k.w"): "only shapes are read: those of jax.eval_shape do",
}


class Tensor:
    """Another library's: it has a dtype and a shape, and would fail wherever its value is asked for."""

    dtype, shape, ndim = "other.float32", (), 0

    def __index__(self) -> int:
        raise RuntimeError("a tensor of another library was asked for its value")

    __bool__ = __float__ = __array__ = __len__ = __index__
    __lt__ = __le__ = __gt__ = __ge__ = lambda self, other: self.__index__()


class Traced:
    """Stands for a number that is traced."""

    def __init__(self, value: Any):
        self.value = value


RECURSIVE: list[Any] = []
RECURSIVE.append(RECURSIVE)

VALUES: dict[str, Any] = {
    "None": None,
    "str": "other",
    "bytes": b"other",
    "dict": {"other": 1},
    "set": {1, 2},
    "function": lambda x: x,
    "type": int,
    "object": object(),
    "tensor": Tensor(),
    "-1": -1,
    "0": 0,
    "2**31": 2**31,
    "2**63": 2**63,
    "2**1100": 2**1100,
    "1.5": 1.5,
    "-0.5": -0.5,
    "nan": float("nan"),
    "inf": float("inf"),
    "complex": 1j,
    "True": True,
    "numpy int": np.int64(2),
    "numpy float": np.float64(0.5),
    "numpy bool": np.bool_(True),
    "0-d int": np.array(2),
    "0-d float": jnp.asarray(0.5),
    "ints": np.array([2, 2]),
    "traced int": Traced(2),
    "traced float": Traced(0.5),
    "list": [1, 2, 3, 4, 5, 6, 7],
    "pairs": [[1.5, 1], "ab"],
    "recursive": RECURSIVE,
    "empty": np.zeros((0,)),
    "objects": np.array([None, 1]),
    "strings": np.array(["a", "b"]),
    "masked": np.ma.masked_array(np.ones((2, 3)), np.eye(2, 3)),
    "key": jax.random.key(1),
    "long raw key": np.zeros(3, np.uint32),
    "keys": jax.random.split(jax.random.key(1), 3),
    "raw keys": np.zeros((3, 2), np.uint32),
}
OF_ARRAYS: dict[str, Callable[[np.ndarray], Any]] = {  # by device_put of NumPy: nothing is compiled
    "numpy": lambda x: x,
    "listed": lambda x: x.tolist(),
    "in a list": lambda x: [jax.device_put(x)],
    "rank + 1": lambda x: jax.device_put(x[None]),
    "rank - 1": lambda x: jax.device_put(x[0] if x.ndim else x),
    "rank 0": lambda x: jax.device_put(np.zeros((), x.dtype)),
    "rank 9": lambda x: jax.device_put(np.zeros((1,) * 9, x.dtype)),
    "transposed": lambda x: jax.device_put(x.T),
    "longer": lambda x: jax.device_put(np.concatenate([x, x], -1) if x.ndim else x),
    "without elements": lambda x: jax.device_put(x[..., :0] if x.ndim else x),
    "without rows": lambda x: jax.device_put(x[:0] if x.ndim else x),
    **{
        name: lambda x, dtype=name: jax.device_put(np.zeros(x.shape, jnp.dtype(dtype)))
        for name in ("int32", "uint8", "bool", "complex64", "bfloat16", "float8_e4m3fn", "int4")
    },
    "float128": lambda x: np.zeros(x.shape, np.longdouble),
    "dates": lambda x: np.zeros(x.shape, "datetime64[s]"),
    "abstract": lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
}
FEW = (
    "None",
    "str",
    "tensor",
    "1.5",
    "list",
    "masked",
    "keys",
    "abstract",
    "transposed",
    "int32",
    "float8_e4m3fn",
)


def is_array(value: Any) -> bool:
    return isinstance(value, jax.Array | np.ndarray)


def is_key(value: Any) -> bool:
    return jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def slips(good: Any, place: Place, deep: bool) -> Iterator[tuple[str, Any]]:
    """What may stand in the place of `good` by mistake; only some of it in the place of a leaf."""
    # JAX itself cannot walk a pytree that holds itself: it is given in the place of a whole argument only.
    wanted = lambda name: len(place) == 1 or (name != "recursive" if deep else name in FEW)
    yield from ((name, value) for name, value in VALUES.items() if wanted(name))
    if is_array(good) and not is_key(good):
        yield from ((name, make(np.asarray(good))) for name, make in OF_ARRAYS.items() if wanted(name))


def places(arguments: Arguments, depth: int) -> Iterator[tuple[Place, Any]]:
    """Every argument, and what lies in those that are dicts, so deep."""

    def below(place: Place, value: Any) -> Iterator[tuple[Place, Any]]:
        yield place, value
        if isinstance(value, dict) and len(place) < depth:
            for name, part in value.items():
                yield from below((*place, name), part)

    for name, value in arguments.items():
        yield from below((name,), value)


def put(tree: Any, place: Place, value: Any) -> Any:
    return {**tree, place[0]: put(tree[place[0]], place[1:], value)} if place else value


def plain(value: Any) -> Any:
    """Python's number of NumPy's or of an array without axes, a tuple of a list, a jax.Array of NumPy's."""
    if isinstance(value, list | tuple):
        return tuple(map(plain, value))
    if isinstance(value, np.generic) or (is_array(value) and value.shape == () and not is_key(value)):
        return value.item()
    with contextlib.suppress(TypeError, ValueError):
        return jax.device_put(value) if isinstance(value, np.ndarray) else value
    return value


def stands_for(value: Any, annotation: Any) -> Any:
    """What the annotation allows, for which `value` is another way of writing; LookupError: nothing."""
    known = plain(value)
    meant = [jax.device_put(value.value)] if isinstance(value, Traced) else [value, known]
    number = isinstance(value, np.generic | np.ndarray) and value.dtype.kind in "biuf" and value.ndim == 0
    if number and value.dtype.itemsize <= 8:
        meant.insert(1, jax.device_put(value))
    if isinstance(known, int) and not isinstance(known, bool):
        meant += [float(known)] if abs(known) < 2**1000 else []
        meant += [bool(known)] if known in (0, 1) else []
    for each in meant:
        if is_bearable(each, annotation):
            return each
    raise LookupError


def annotation(function: Callable[..., Any], arguments: Arguments, place: Place) -> Any:
    """What may stand in a place: as the function says of an argument, else what is like the good one."""
    if len(place) == 1:
        return inspect.signature(function).parameters[place[0]].annotation
    good = functools.reduce(operator.getitem, place, arguments)
    if isinstance(good, dict | list):
        kind = type(good)
    else:
        kind = Float[Array, "..."] if jnp.issubdtype(good.dtype, jnp.floating) else Int32[Array, "..."]
    return kind | None if place[-1] in MAY_BE_NONE else kind


def shapes(result: Any) -> Any:
    return [(v.shape, v.dtype) for v in jax.tree.leaves(result)]


def program(call: Callable[[], Any]) -> str:
    return re.sub(r"0x[0-9a-f]+", "", str(jax.make_jaxpr(call)()))


IMPOSSIBLE = object()


def complaint(
    function: Callable[..., Any], arguments: Arguments, place: Place, value: Any, meant: Any, tracers: Any
) -> str | None:
    """What is wrong with what the function makes of `value`, which stands for `meant`, or None."""
    given = tracers[value.value] if isinstance(value, Traced) else value
    call = lambda v: function(**put(arguments, place, v))
    try:
        result = call(given)
    except FuncnetError as error:  # a possible value may not fit another argument, which is named then
        return incomplete(error, list(place) if meant is IMPOSSIBLE else list(arguments))
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]
    if meant is IMPOSSIBLE:
        return "is taken"
    if meant is value or isinstance(value, Traced):
        return None
    try:
        if is_array(meant):
            same = shapes(result) == shapes(call(meant))
        else:
            same = program(lambda: call(given)) == program(lambda: call(meant))
    except Exception as error:
        return f"is taken, but what it stands for is not: {error}"[:300]
    return None if same else f"is not taken as {meant!r} is"


def incomplete(error: FuncnetError, names: list[str]) -> str | None:
    """What the error does not say: one of `names` must be in it."""
    missing = [field for field in ("path", "expected", "actual") if not getattr(error, field)]
    if missing:
        return f"says no {', '.join(missing)}: {error}"
    if not any(name in str(error) for name in names):
        return f"does not name the argument: {error}"
    return f"is {len(str(error))} characters long" if len(str(error)) > 1000 else None


def fuzz(
    function: Callable[..., Any], arguments: Arguments, depth: int = 2, deep: bool = False
) -> dict[tuple[str, str], str]:
    """What is wrong with the answers: (argument, wrong thing) -> complaint. In one trace, for speed."""
    calls = []
    for place, good in places(arguments, depth):
        allows = annotation(function, arguments, place)
        for name, value in slips(good, place, deep):
            try:
                meant = stands_for(value, allows)
            except (LookupError, RecursionError):
                meant = IMPOSSIBLE
            calls.append((".".join(place), name, place, value, meant))
    found = {}

    def run(*tracers: Any) -> None:
        known = dict(zip((2, 0.5), tracers, strict=True))
        for path, name, *call in calls:
            if (problem := complaint(function, arguments, *call, known)) is not None:
                found[path, name] = problem

    jax.eval_shape(run, 2, 0.5)
    return found


def allowed(name: str, place: str) -> bool:
    return any(re.fullmatch(op.replace("*", ".*"), name) and at == place for op, at in LET_THROUGH)


def F(*shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


def I(*shape: int) -> Any:
    return jnp.zeros(shape, jnp.int32)


def filled(tree: Any) -> Any:
    return jax.tree.map(lambda d: F(*d.shape), tree, is_leaf=lambda v: hasattr(v, "kind"))


MAY_BE_NONE = ("b", "c", "gate", "r", "q_norm", "k_norm", "sinks")
KEY = jax.random.key(0)
DENSE = {"w": F(3, 5), "b": F(5)}
NORM = {"w": F(6), "b": F(6)}
WINDOW: Arguments = {"stride": 2, "padding": "same", "dilation": 1, "groups": 1, "padding_mode": "zeros"}
POOL: Arguments = {"x": F(2, 7, 5), "kernel": (3,), "stride": 2, "padding": "same", "dilation": 1}
SHAPED: Arguments = {k: v for k, v in POOL.items() if k != "x"} | {"in_shape": (7, 5)}
HEADS = filled(heads(6, 2, 2, 4))
ALL_HEADS = filled(heads(6, 2, 2, 4, qk_norm=True, sinks=True))
EXPERTS = filled(mixture(5, 2, 3, bias="router up gate down"))
ATTEND: Arguments = {
    "causal": True,
    "window": 3,
    "segment_ids": I(2, 3),
    "mask": jnp.ones((2, 1, 3, 3), bool),
    "scale": 0.5,
    "softcap": 2.0,
    "dropout_rate": 0.5,
    "key": KEY,
}
STEPS: Arguments = {"mask": jnp.ones((2, 5), bool), "reverse": False, "chunk": 2}
FRAMES: Arguments = {"n_fft": 6, "hop": 2, "width": 4, "padding": "center", "padding_mode": "reflect"}
BANDS: Arguments = {"rate": 8e3, "mels": 3, "low": 9.0, "high": 3e3, "scale": "htk", "norm": "slaney"}
LEVEL: Arguments = {"power": 2, "floor": 1e-9, "span": 8.0, "gain": 0.5, "offset": 1.0}
ROWS: Arguments = {"x": F(7, 5), "mask": jnp.ones(7, bool)}
HALF = jnp.full((2, 3), 0.5, jnp.float32)
LABELLED = ("logits", "labels")
ARRAYS = {"dice": LABELLED, "focal": LABELLED, "triplet": ("anchor", "positive", "negative")}
COUNTED: Arguments = {"lengths": I(2) + 5, "label_lengths": I(2) + 2}
CALLS: dict[str, Arguments] = {
    "linear.apply": {"params": DENSE, "x": F(2, 3), "inputs": 1},
    "linear.init": {
        "key": KEY,
        "d_in": 3,
        "d_out": 5,
        "bias": True,
        "w": jax.nn.initializers.he_normal(),
    },
    "bilinear.apply": {"params": {"w": F(3, 5, 2), "b": F(2)}, "left": F(2, 3), "right": F(2, 5)},
    "bilinear.init": {
        "key": KEY,
        "d_left": 3,
        "d_right": 5,
        "d_out": 2,
        "bias": True,
        "w": jax.nn.initializers.he_normal(),
    },
    "linear.matrix": {"params": {"w": F(3, 5)}, "in_shape": (3,)},
    "linear.operator": {"params": {"w": F(3, 5)}, "in_shape": (3,)},
    "matmul.apply": {"a": F(2, 3), "b": F(3, 5)},
    "moe.apply": {
        "params": EXPERTS,
        "x": F(2, 3, 5),
        "k": 2,
        "activation": "relu",
        "renormalise": False,
        "capacity": 1.5,
    },
    "moe.init": {
        "key": KEY,
        "d": 5,
        "d_hidden": 2,
        "experts": 3,
        "gated": True,
        "bias": True,
        "w": jax.nn.initializers.he_normal(),
    },
    "embedding.apply": {"params": {"w": F(3, 5)}, "ids": I(2, 3)},
    "embedding.add": {"params": {"w": F(3, 5)}, "x": F(2, 3, 5), "ids": I(2, 3)},
    "embedding.init": {"key": KEY, "vocabulary": 3, "d": 5},
    "conv.apply": {"params": {"w": F(3, 2, 5), "b": F(5)}, "x": F(2, 7, 2), **WINDOW, "method": "auto"},
    "conv.init": {"key": KEY, "c_in": 2, "c_out": 5, "kernel": (3,), "groups": 1, "bias": True},
    "conv.matrix": {"params": {"w": F(3, 2, 5)}, "in_shape": (7, 2), **WINDOW},
    "conv.operator": {"params": {"w": F(3, 2, 5)}, "in_shape": (7, 2), **WINDOW},
    "conv_transpose.apply": {
        "params": {"w": F(3, 5, 2), "b": F(5)},
        "x": F(2, 7, 2),
        **WINDOW,
        "output_shape": None,
        "method": "auto",
    },
    "conv_transpose.init": {
        "key": KEY,
        "c_in": 2,
        "c_out": 5,
        "kernel": (3,),
        "stride": 1,
        "groups": 1,
        "bias": True,
    },
    "conv_transpose.matrix": {
        "params": {"w": F(3, 5, 2)},
        "in_shape": (7, 2),
        **WINDOW,
        "output_shape": (13,),
    },
    "conv_transpose.operator": {
        "params": {"w": F(3, 5, 2)},
        "in_shape": (7, 2),
        **WINDOW,
        "output_shape": (13,),
    },
    "max_pool.apply": POOL,
    "avg_pool.apply": POOL,
    "avg_pool.matrix": SHAPED,
    "lp_pool.apply": POOL | {"p": 2.0},
    **{
        f"{name}.{what}": given | ({"x": F(2, *shape)} if what == "apply" else {"in_shape": shape})
        for name, shape, given, whats in (
            ("patches", (7, 5), {k: v for k, v in POOL.items() if k != "x"}, "apply matrix operator"),
            (
                "fold",
                (4, 15),
                {"size": (7,), "kernel": (3,), "stride": 2, "padding": "same", "dilation": 1},
                "apply matrix operator",
            ),
            (
                "resize",
                (7, 5),
                {
                    "size": (3,),
                    "scale": None,
                    "method": "cubic",
                    "align_corners": False,
                    "antialias": True,
                    "a": -0.5,
                },
                "apply matrix operator",
            ),
            ("pad", (7, 5), {"padding": ((1, 2),), "padding_mode": "edge"}, "apply matrix operator"),
            ("adaptive_avg_pool", (7, 5), {"size": (3,)}, "apply matrix operator"),
            ("adaptive_max_pool", (7, 5), {"size": (3,)}, "apply"),
            ("pixel_shuffle", (7, 6), {"factor": (3,), "order": "channel last"}, "apply matrix"),
            ("pixel_unshuffle", (6, 7), {"factor": (3,), "order": "channel last"}, "apply matrix"),
        )
        for what in whats.split()
    },
    "grid_sample.apply": {
        "x": F(2, 3, 5, 1),
        "grid": F(2, 7, 2),
        "method": "cubic",
        "padding_mode": "border",
        "align_corners": True,
    },
    "layer_norm.apply": {"params": NORM, "x": F(2, 6), "eps": 1e-5},
    "layer_norm.init": {"key": KEY, "d": 6, "bias": True},
    "rms_norm.apply": {"params": {"w": F(6)}, "x": F(2, 6), "eps": 1e-5},
    "rms_norm.init": {"key": KEY, "d": 6},
    "group_norm.apply": {"params": NORM, "x": F(2, 5, 6), "groups": 2, "eps": 1e-5, "spatial": 1},
    "group_norm.init": {"key": KEY, "c": 6, "bias": True},
    "instance_norm.apply": {"params": NORM, "x": F(2, 5, 6), "eps": 1e-5, "spatial": 1},
    "instance_norm.init": {"key": KEY, "c": 6, "bias": True},
    "l2_norm.apply": {"x": F(2, 3), "axis": 1, "eps": 1e-6},
    "log_softmax.apply": {"x": F(2, 3), "axis": 1},
    "logsumexp.apply": {"x": F(2, 3), "axis": (1,), "keepdims": True},
    "prelu.apply": {"params": {"w": F(3)}, "x": F(2, 3)},
    "prelu.init": {"key": KEY, "c": 3, "slope": 0.1},
    "batch_norm.apply": {
        "params": NORM,
        "state": {"mean": F(6), "var": jnp.ones(6, jnp.float32)},
        "x": F(2, 6),
        "train": True,
        "momentum": 0.9,
        "eps": 1e-5,
    },
    "batch_norm.init": {"key": KEY, "c": 6, "bias": True},
    "softmax.apply": {"x": F(2, 3), "axis": 1},
    **{
        f"{name}.{what}": {"params": params, "x": x, "state": {k: F(2, 3) for k in state}, **options, **more}
        for name, params, state, options in (
            ("lstm", {"w": F(2, 12), "u": F(3, 12), "b": F(12), "r": F(3, 3)}, "hc", {}),
            ("gru", {"w": F(2, 9), "u": F(3, 9), "b": F(9), "c": F(3)}, "h", {"reset": "before"}),
            ("rnn", {"w": F(2, 3), "u": F(3, 3), "b": F(3)}, "h", {"activation": "relu"}),
        )
        for what, x, more in (("apply", F(2, 5, 2), STEPS), ("step", F(2, 2), {}))
    },
    "linear_recurrence.apply": {"a": F(2, 5, 3), "b": F(2, 5, 3), "state": F(2, 3), "reverse": False},
    **{
        f"{name}.init": {
            "key": KEY,
            "d": 2,
            "hidden": 3,
            "bias": True,
            "w": jax.nn.initializers.he_normal(),
            **more,
        }
        for name, more in (("lstm", {"projection": 2}), ("gru", {}), ("rnn", {}))
    },
    **{
        f"{name}.apply": {k: F(2, 3) for k in (("gate", "up") if name.endswith("glu") else "x")} | options
        for name, options in FAMILIES["activations"].items()
    },
    "stft.apply": {"x": F(2, 16), "window": F(4), **FRAMES},
    "stft.matrix": {"in_shape": (16,), "window": F(4), **FRAMES},
    "stft.operator": {"in_shape": (16,), "window": F(4), **FRAMES},
    "stft.window": {"name": "hann", "width": 4, "periodic": True},
    **{
        f"istft.{name}": {
            **x,
            "window": F(4),
            **{k: v for k, v in FRAMES.items() if k != "padding_mode"},
            "length": 7,
        }
        for name, x in (
            ("apply", {"x": F(2, 9, 4, 2)}),
            ("matrix", {"in_shape": (9, 4, 2)}),
            ("operator", {"in_shape": (9, 4, 2)}),
        )
    },
    "magnitude.apply": {"x": F(3, 2)},
    "power.apply": {"x": F(3, 2)},
    "mel.apply": {"x": F(3, 4), **BANDS, "n_fft": 6},
    "mel.matrix": {"in_shape": (4,), **BANDS, "n_fft": 6},
    "mfcc.apply": {"x": F(2, 16), "window": F(4), "rate": 8e3, "n_fft": 6, "mels": 3, "coefficients": 2},
    "lfilter.apply": {"x": F(2, 16), "b": F(3), "a": F(2)},
    "lfilter.matrix": {"in_shape": (5,), "b": F(3), "a": F(2)},
    "pre_emphasis.apply": {"x": F(2, 16), "coefficient": 0.5},
    "pre_emphasis.matrix": {"in_shape": (5,), "coefficient": 0.5},
    "deltas.apply": {"x": F(2, 16, 3), "width": 3},
    "deltas.matrix": {"in_shape": (5, 3), "width": 3},
    "log_mel.apply": {"x": F(2, 16), "window": F(4), **FRAMES, **BANDS, **LEVEL},
    "dropout.apply": {"x": F(2, 3), "rate": 0.5, "key": KEY},
    "drop_path.apply": {"x": F(2, 3), "rate": 0.5, "key": KEY},
    "spatial_dropout.apply": {"x": F(2, 5, 3), "rate": 0.5, "key": KEY, "spatial": 1},
    "embedding_dropout.apply": {"x": F(2, 3), "ids": I(2), "vocabulary": 3, "rate": 0.5, "key": KEY},
    "dropout.matrix": {"in_shape": (2, 3), "rate": 0.5, "key": KEY},
    "mse.apply": {"prediction": F(2, 3), "target": F(2, 3)},
    "cross_entropy.apply": {"logits": F(2, 3), "labels": I(2), "label_smoothing": 0.1, "ignore_index": 1},
    "binary_cross_entropy.apply": {"logits": F(2, 3), "labels": jnp.full((2, 3), 0.5, jnp.float32)},
    **{
        f"{name}.apply": dict.fromkeys(ARRAYS.get(name, ("prediction", "target")), HALF) | options
        for name, options in FAMILIES["comparisons"].items()
    },
    "nll.apply": {"prediction": F(2, 3), "labels": I(2), "ignore_index": 1},
    "contrastive.apply": {
        "x": F(2, 3),
        "y": F(2, 3),
        "scale": F(),
        "bias": F(),
        "pairs": "sigmoid",
        "axis_name": None,
    },
    "ctc.apply": {"logits": F(2, 5, 3), "labels": I(2, 2) + 1, **COUNTED, "blank": 0},
    "ctc.greedy": {"logits": F(2, 5, 3), "lengths": I(2) + 5, "blank": 0},
    "ctc.beam": {"logits": F(2, 5, 3), "width": 3, "lengths": I(2) + 5, "blank": 0},
    "ctc.feasible": {"labels": I(2, 2), **COUNTED},
    "linear_cross_entropy.apply": {
        "x": F(2, 3),
        "w": F(3, 5),
        "labels": I(2),
        "label_smoothing": 0.1,
        "ignore_index": 1,
        "z_loss": 0.1,
        "softcap": 2.0,
        "chunk": 2,
    },
    "attention.apply": {
        "q": F(2, 3, 2, 5),
        "k": F(2, 3, 2, 5),
        "v": F(2, 3, 2, 5),
        "bias": F(2, 3, 3),
        "sinks": F(2),
        **ATTEND,
        "q_offset": 0,
        "block": (3, 3),
    },
    "linear_attention.apply": {
        "q": F(2, 5, 2, 3),
        "k": F(2, 5, 2, 3),
        "v": F(2, 5, 2, 4),
        "decay": F(2, 5, 2),
        "state": F(2, 2, 3, 4),
        "chunk": 2,
    },
    "linear_attention.step": {
        "q": F(2, 2, 3),
        "k": F(2, 2, 3),
        "v": F(2, 2, 4),
        "decay": F(2, 2),
        "state": F(2, 2, 3, 4),
    },
    "alibi.apply": {"slopes": F(2), "t": 3, "s": 5, "q_offset": 1, "causal": False},
    "alibi.slopes": {"heads": 2},
    "rope.apply": {"x": F(2, 5, 2, 4), "config": fn.rope.Config(), "positions": I(5), "tables": None},
    "pca.fit": {**ROWS, "k": 2, "method": "svd"},
    "pca.projector": {**ROWS, "k": 2},
    "pca.left_out": {**ROWS, "k": 2},
    "pca.empty": {"d": 3, "dtype": "float32"},
    "pca.update": {**ROWS, "state": fn.pca.empty(5)},
    "rope.Config": {"base": 100.0, "layout": "split", "width": 4, "scaling": fn.rope.Linear(2.0)},
    "rope.Linear": {"factor": 2.0},
    "rope.NTK": {"factor": 2.0},
    "rope.YaRN": {
        "factor": 2.0,
        "context": 7,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "attention_factor": 1.5,
    },
    "rope.Llama3": {"factor": 2.0, "context": 7, "low": 1.0, "high": 4.0},
    "multihead.apply": {  # the other options are attention's
        "params": HEADS,
        "x": F(2, 3, 6),
        "bias": F(2, 3, 3),
        "rope": fn.rope.Config(width=2),
        "positions": I(3),
        "norm_eps": 1e-6,
    },
    "multihead.init": {
        "key": KEY,
        "d": 6,
        "heads": 2,
        "kv_heads": 1,
        "head_width": 3,
        "bias": True,
        "o_bias": False,
        "qk_norm": True,
        "sinks": True,
    },
    "multihead.init_cache": {
        "params": {"k": {"w": F(6, 2, 4)}},
        "n": 2,
        "length": 7,
        "window": 3,
        "dtype": "float32",
    },
    "multihead.decode": {  # scale and softcap go through attention's check
        "params": HEADS,
        "x": F(2, 1, 6),
        "cache": fn.multihead.init_cache(HEADS, 2, 7),
        "lengths": jnp.ones(2, jnp.int32),
        "slopes": F(2),
        "window": 8,
        "rope": fn.rope.Config(width=2),
        "norm_eps": 1e-6,
    },
}


IMAGES: Arguments = {"images": F(2, 4, 4, 1)}
SEQUENCE: Arguments = {"d": 4, "heads": 2, "layers": 2, "d_hidden": 4, "dtype": "float32"}
DROPS: Arguments = {"dropout": 0.1, "attention_dropout": 0.1, "unroll": 1, "remat": False}
CONFIGS: dict[str, Arguments] = {
    "mlp": {"sizes": (3, 5), "bias": True},
    "convnet": {
        "image": (4, 4, 1),
        "channels": (2,),
        "depth": 1,
        "hidden": 3,
        "classes": 2,
        "dropout": 0.1,
    },
    "mamba": {
        "vocabulary": 5,
        "layers": 2,
        "d": 3,
        "expand": 2,
        "state": 2,
        "kernel": 3,
        "rank": 1,
        "bias": True,
        "conv_bias": True,
        "norm_eps": 1e-5,
        "tied": False,
        "chunk": 2,
        "unroll": 1,
        "remat": False,
        "dtype": "float32",
        "head": "next",
        "stop": (0,),
        "files": {},
    },
    "crnn": {
        "d": 4,
        "classes": 2,
        "channels": (2,),
        "pools": ((2, 2),),
        "hidden": 2,
        "layers": 1,
        "cell": "gru",
        "pooled": True,
        "dropout": 0.1,
        "padding": 0.0,
    },
    "recurrent": {
        "d": 3,
        "hidden": 2,
        "layers": 2,
        "cell": "gru",
        "bidirectional": True,
        "projection": 2,
        "dropout": 0.1,
        "one_mask": True,
        "reset": "after",
        "activation": "tanh",
        "shown": None,
        "bias": True,
        "dtype": "float32",
    },
    "vad": {"rate": 16_000, "window": 8, "channels": (2, 2, 2, 2), "hidden": 2},
    "resnet": {
        "image": (4, 4, 1),
        "channels": (2, 2),
        "blocks": (1, 1),
        "classes": 2,
        "stem": 3,
        "momentum": 0.9,
        "bottleneck": False,
        "padding": "same",
        "dtype": "float32",
    },
    "vit": {
        "image": (4, 4, 1),
        "patch": (2, 2),
        "classes": 2,
        "qkv_bias": True,
        "norm_eps": 1e-6,
        "pooler": False,
        "files": {},
        **SEQUENCE,
        **DROPS,
    },
    "encoder": {
        "vocabulary": 5,
        "context": 3,
        "types": 2,
        "norm_eps": 1e-6,
        "pooler": True,
        "head": "sequence",
        "classes": 2,
        "next_sentence": True,
        "files": {},
        **SEQUENCE,
        **DROPS,
    },
    "transformer": {
        "vocabulary": 5,
        "context": 3,
        "kv_heads": 1,
        "head_width": 2,
        "norm": "layer",
        "norm_eps": 1e-6,
        "mlp": "gelu",
        "experts": 3,
        "experts_per_token": 2,
        "capacity": 1.5,
        "positions": "learned",
        "rope": fn.rope.Config(),
        "bias": True,
        "qkv_bias": True,
        "qk_norm": False,
        "tied": True,
        "windows": (2, None),
        "softcap": 2.0,
        "logit_softcap": 2.0,
        "dropout": 0.1,
        "unroll": 1,
        "remat": False,
        "head": "next",
        "classes": 2,
        "stop": (0,),
        "files": {},
        **SEQUENCE,
    },
}
NETS: dict[str, Arguments] = {
    "mlp": {"x": F(2, 3)},
    "convnet": {**IMAGES, "key": KEY},
    "mamba": {"ids": I(2, 3)},
    "crnn": {"x": F(2, 5, 4), "mask": jnp.ones((2, 5), bool), "key": KEY},
    "recurrent": {"x": F(2, 5, 3), "mask": jnp.ones((2, 5), bool), "key": KEY},
    "vad": {"samples": F(2, 20)},
    "resnet": {**IMAGES, "train": True},
    "vit": {**IMAGES, "key": KEY},
    "encoder": {"ids": I(2, 3), "mask": jnp.ones((2, 3), bool), "types": I(2, 3), "key": KEY},
    "transformer": {"ids": I(2, 3), "segment_ids": I(2, 3), "key": KEY, "facts": True},
}


def called(name: str) -> Callable[..., Any]:
    return functools.reduce(getattr, name.split("."), fn)


def test_every_operation_is_called():
    known = set(fn._OPERATIONS) | {f"{op}.init" for op in fn._OPERATIONS if hasattr(getattr(fn, op), "init")}
    assert not known - {*CALLS, *(name.split(".")[0] for name in CALLS)}


def of_a_sibling(name: str) -> bool:
    """Whether the arguments are those of `apply`, checked as those of resize or conv are."""
    operation, _, what = name.partition(".")
    family = {*fn._FAMILIES["grid"], "patches", "fold"} - {"resize"}
    return operation in family and what in ("matrix", "operator")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if of_a_sibling(n) else n for n in CALLS]
)
def test_operations(name):
    depth = 1 if name in ("multihead.apply", "multihead.decode") else 2  # more of them is slow
    found = fuzz(called(name), CALLS[name], depth)
    assert not {key: text for key, text in found.items() if not allowed(name, key[0])}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, given in CALLS.items() if "params" in given])
def test_every_leaf_of_operations(name):
    given = CALLS[name] | ({"params": ALL_HEADS} if CALLS[name]["params"] is HEADS else {})
    found = fuzz(called(name), given, 4, deep=True)
    assert not {key: text for key, text in found.items() if not allowed(name, key[0])}


def net_call(name: str) -> tuple[Callable[..., Any], Arguments]:
    net = importlib.import_module(f"funcnet.nets.{name}")
    config = net.Config(
        **CONFIGS[name]
        | ({"pooler": False, "head": None, "next_sentence": False} if name == "encoder" else {})
    )
    trees = {"params": lambda: net.init(KEY, config)}
    if name == "resnet":
        trees["state"] = lambda: net.init_state(config)
    zeros = lambda v: jnp.zeros(v.shape, jnp.float32)
    arrays = {path: jax.tree.map(zeros, jax.eval_shape(make)) for path, make in trees.items()}
    return net.apply, {**arrays, **NETS[name], "config": config}


@pytest.mark.parametrize("name", NETS)
def test_nets(name):
    net = importlib.import_module(f"funcnet.nets.{name}")
    assert not fuzz(net.Config, CONFIGS[name])
    assert not fuzz(net.init, {"key": KEY, "config": net.Config(**CONFIGS[name])})
    apply, arguments = net_call(name)
    assert not fuzz(apply, arguments, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_every_leaf_of_nets(name):
    assert not fuzz(*net_call(name), 5, deep=True)


def loss(params, batch, key):
    return (params["w"] * batch["x"]).mean()


@pytest.fixture(scope="module")
def others(tmp_path_factory) -> dict[str, tuple[Callable[..., Any], Arguments]]:
    """Functions of train, store, hub and nets that trace nothing, and what they are called with."""
    folder = tmp_path_factory.mktemp("fuzz")
    net, params, arrays = fn.nets.transformer, {"w": F(3)}, {"x": np.ones((4, 3), np.float32)}
    config = net.Config(5, context=8, layers=1, heads=1, d=4)
    model = net.init(KEY, config)
    fn.hub.save(folder / "model", model, config)
    fn.save(folder / "params", params)
    optimizer = optax.sgd(0.1)
    fn.train.write_tokens(folder / "ids.npy", range(9))
    batches = fn.train.batches(arrays, 2, seed=0)
    first = lambda make: lambda **given: next(iter(make(**given)), None)
    return {
        "train.init": (
            fn.train.init,
            {
                "params": params,
                "optimizer": optimizer,
                "key": KEY,
                "model_state": None,
                "average": 0.5,
                "loss_scale": 2.0,
            },
        ),
        "train.make_step": (
            fn.train.make_step,
            {
                "loss": loss,
                "optimizer": optimizer,
                "accumulate": 2,
                "gather": False,
                "watch": True,
                "guard": True,
                "max_skipped": 3,
            },
        ),
        "train.batches": (
            first(fn.train.batches),
            {
                "arrays": arrays,
                "size": 2,
                "seed": 0,
                "epochs": 1,
                "drop_remainder": True,
                "transform": None,
                "skip_bad": 0,
            },
        ),
        "train.batches(...).seek": (batches.seek, {"position": batches.position()}),
        "train.tokens": (
            first(fn.train.tokens),
            {
                "paths": [folder / "ids.npy"],
                "context": 2,
                "size": 2,
                "seed": 0,
                "epochs": 1,
                "drop_remainder": True,
                "dtype": None,
                "transform": None,
                "skip_bad": 0,
            },
        ),
        "train.write_tokens": (
            fn.train.write_tokens,
            {"path": folder / "written.npy", "source": [1, 2], "encode": None, "dtype": None},
        ),
        "train.prefetch": (first(fn.train.prefetch), {"batches": [F(3)], "ahead": 2, "put": True}),
        "train.mapped": (fn.train.mapped, {"batches": [F(3)], "function": lambda x, number: x}),
        "train.stateful": (
            fn.train.stateful,
            {"batches": [F(3)], "get": lambda: 0, "set": lambda state: None, "identity": {"version": 1}},
        ),
        "train.edit_distance": (
            fn.train.edit_distance,
            {"prediction": I(2, 3), "target": I(2, 5), "prediction_lengths": I(2), "target_lengths": I(2)},
        ),
        "train.word_error_rate": (fn.train.word_error_rate, {"predictions": ["a b"], "targets": ["a c"]}),
        "train.in_order": (first(fn.train.in_order), {"arrays": arrays, "size": 2}),
        "save": (fn.save, {"path": folder / "saved", "tree": params}),
        "load": (fn.load, {"path": folder / "params", "like": params}),
        "hub.load": (fn.hub.load, {"folder": folder / "model"}),
        "hub.save": (fn.hub.save, {"folder": folder / "copy", "params": model, "config": config}),
        "hub.read_safetensors": (
            fn.hub.read_safetensors,
            {"path": folder / "model" / "model.safetensors"},
        ),
        "hub.write_safetensors": (
            fn.hub.write_safetensors,
            {"path": folder / "written", "tensors": {"w": np.ones(3)}, "metadata": {"a": "b"}},
        ),
        "nets.transformer.init_cache": (
            net.init_cache,
            {"config": config, "n": 2, "length": 3, "dtype": "float32"},
        ),
        "nets.transformer.preset": (net.preset, {"name": "gpt2-124m"}),
        "nets.transformer.specs": (net.specs, {"config": config}),
        "spec.decay_mask": (fn.spec.decay_mask, {"specs": net.specs(config)}),
        "nets.vit.patches": (fn.nets.vit.patches, {"images": F(2, 4, 4, 1), "patch": (2, 2)}),
        "nets.vad.step": (
            fn.nets.vad.step,
            {"params": {}, "samples": F(2, 16), "config": fn.nets.vad.Config(window=8, channels=(2,) * 4)},
        ),
        "hub.silero.load": (fn.hub.silero.load, {"weights": folder / "params"}),
        "hub.silero.segments": (
            lambda **given: list(fn.hub.silero.segments(samples=900, **given)),
            {
                "rate": 16_000,
                "frame": 512,
                "threshold": 0.5,
                "neg_threshold": 0.3,
                "min_speech_duration_ms": 0,
                "max_speech_duration_s": 1.0,
                "min_silence_duration_ms": 0,
                "speech_pad_ms": 0,
                "min_silence_at_max_speech": 0,
                "use_max_poss_sil_at_max_speech": True,
                "probabilities": [0.9, 0.1],
            },
        ),
        "recordings.about": (fn.recordings.about, {"path": folder / "none"}),
        "recordings.read": (fn.recordings.read, {"path": folder / "none", "rate": 16_000}),
        "recordings.resample": (
            fn.recordings.resample,
            {"samples": np.zeros(99, np.float32), "rate": 8_000, "to": 16_000},
        ),
        "recordings.resampler": (fn.recordings.resampler, {"rate": 8_000, "to": 16_000}),
        "nets.encoder.pool": (fn.nets.encoder.pool, {"x": F(2, 3, 4), "mask": jnp.ones((2, 3), bool)}),
    }


OTHERS = """
    train.edit_distance train.word_error_rate
    train.init train.make_step train.batches train.in_order train.batches(...).seek train.tokens
    train.write_tokens train.prefetch train.mapped train.stateful save load hub.load hub.save
    hub.read_safetensors hub.write_safetensors nets.transformer.init_cache nets.transformer.preset
    nets.transformer.specs spec.decay_mask nets.vit.patches nets.encoder.pool
    nets.vad.step hub.silero.load hub.silero.segments recordings.about recordings.read recordings.resample
    recordings.resampler
"""


@pytest.mark.parametrize("name", OTHERS.split())
def test_other_functions(name, others, tmp_path, monkeypatch):
    """No error but funcnet's own and the system's, of a path that is none; what is taken is theirs to say."""
    monkeypatch.chdir(tmp_path)
    function, arguments = others[name]
    for argument in arguments:
        for slip, value in VALUES.items():
            if isinstance(value, Traced) or slip == "recursive":  # a pytree that JAX itself cannot walk
                continue
            with contextlib.suppress(FuncnetError, OSError):
                function(**arguments | {argument: value})


def leaks(x: Float[Array, "..."], scale: float):
    return x.sum() * scale.real  # an AttributeError of what is no number


def nameless(size: int):
    raise ShapeError("no.", path="it", expected="an array", actual="none")


def silent(size: int):
    raise ShapeError("size is wrong.", path="size")


def takes(size: int):
    return jnp.zeros(3) if isinstance(size, int) else jnp.ones(3)


def test_the_fuzz_finds_what_is_wrong():
    found = fuzz(leaks, {"x": F(3), "scale": 2.0})
    assert found["x", "None"].startswith("AttributeError")
    assert found["scale", "str"].startswith("AttributeError")
    assert "does not name" in fuzz(nameless, {"size": 2})["size", "None"]
    assert "says no expected, actual" in fuzz(silent, {"size": 2})["size", "None"]
    found = fuzz(takes, {"size": 2})
    assert found["size", "None"] == "is taken"
    assert found["size", "numpy int"] == "is not taken as 2 is"
    assert ("size", "-1") not in found


X = F(2, 5, 3)
KERNEL = {"w": F(2, 3, 3)}
ERRORS = [
    (
        lambda: fn.conv.apply({"w": F(1, 2, 3, 3)}, F(5, 5, 3), stride=np.array([2, 2])),
        DTypeError,
        "conv.apply: stride is not an integer.\n"
        "  expected  stride: int\n"
        "  got       stride: int64[2]\n"
        "  hint      as a tuple: stride=(2, 2).",
    ),
    (
        lambda: fn.max_pool.apply(X, kernel=np.array([2, 2])),
        DTypeError,
        "max_pool.apply: kernel is not a tuple of ints.\n"
        "  expected  kernel: one size per spatial axis\n"
        "  got       kernel: int64[2]\n"
        "  hint      as a tuple: kernel=(2, 2).",
    ),
    (
        lambda: fn.conv_transpose.apply(KERNEL, X, padding=np.array([[1, 0]])),
        DTypeError,
        "conv_transpose.apply: padding is not a name and not a sequence of pairs.\n"
        '  expected  padding: "same", "valid", "causal", or 1 pair (low, high)\n'
        "  got       padding: int64[1, 2]\n"
        "  hint      as tuples: padding=((1, 0),).",
    ),
    (
        lambda: fn.conv.apply(KERNEL, X, padding=[(1.0, 0.0)]),
        DTypeError,
        "conv.apply: padding is not an integer.\n  expected  padding: int\n  got       padding: 1.0 (float)",
    ),
    (
        lambda: fn.relu.apply(Tensor()),
        DTypeError,
        "relu.apply: x is not an array of JAX's or NumPy's.\n"
        "  expected  x: float[...]\n"
        "  got       x: other.float32[]\n"
        "  hint      wrap it: jnp.asarray(...).",
    ),
    (
        lambda: fn.relu.apply(np.ma.masked_array(np.ones(3), [0, 1, 0])),
        DTypeError,
        "relu.apply: x is not an array of JAX's or NumPy's.\n"
        "  expected  x: float[...]\n"
        "  got       x: float64[3]\n"
        "  hint      fill what it masks: x.filled(0).",
    ),
    (
        lambda: fn.matmul.apply(F(2, 3), F(3, 5).astype(jnp.float8_e4m3fn)),
        DTypeError,
        "matmul.apply: b has dtype float8_e4m3fn, which nothing is computed in.\n"
        "  expected  b: float[...]\n"
        "  got       b: float8_e4m3fn[3, 5]\n"
        "  hint      cast it: b.astype(jnp.bfloat16).",
    ),
    (
        lambda: fn.linear.init(np.zeros(3, np.uint32), 3, 5),
        DTypeError,
        "linear.init: key is not a random key.\n  expected  key: a random key\n  got       key: uint32[3]",
    ),
    (
        lambda: fn.dropout.apply(X, rate=0.5, key=np.zeros((3, 2), np.uint32)),
        ShapeError,
        "dropout.apply: key holds 3 keys, but one is needed.\n"
        "  expected  key: one random key\n"
        "  got       key: uint32[3, 2]\n"
        "  hint      use one of them (key[0]), or jax.vmap for one mask each.",
    ),
    (
        lambda: fn.layer_norm.apply({"w": F(3), "name": "norm1"}, X),
        DTypeError,
        'layer_norm.apply: params["name"] is not an array.\n'
        '  expected  params["name"]: an array, or None\n'
        "  got       params[\"name\"]: 'norm1' (str)\n"
        "  hint      what describes the parameters lies beside them, not among them.",
    ),
    (
        lambda: fn.attention.apply(*[F(5, 2, 0)] * 3),
        ShapeError,
        "attention.apply: q has heads of no features.\n"
        "  expected  q: float[*n, t, h, e], e ≥ 1\n"
        "  got       q: float32[5, 2, 0]",
    ),
    (
        lambda: fn.cross_entropy.apply(F(2, 3), I(2), ignore_index=2**31),
        ValueRangeError,
        "cross_entropy.apply: ignore_index is 2147483648, but at most 2147483647 is possible.\n"
        "  expected  ignore_index ≤ 2147483647\n"
        "  got       ignore_index = 2147483648",
    ),
    (
        lambda: fn.binary_cross_entropy.apply(F(2), np.float32([1.0000001, 1])),
        ValueRangeError,
        "binary_cross_entropy.apply: labels hold 1.0000001, outside [0, 1].\n"
        "  expected  0 ≤ labels ≤ 1\n"
        "  got       labels: float32[2], 1 of 2 outside, from 1.0000001 to 1.0000001",
    ),
    (
        lambda: fn.linear.init(KEY, 3, 5, bias="no"),
        DTypeError,
        "linear.init: bias is neither True nor False.\n  expected  bias: bool\n  got       bias: 'no' (str)",
    ),
    (
        lambda: fn.nets.mlp.Config(sizes=np.array([3, 5])),
        DTypeError,
        "mlp.Config: sizes is of the wrong type.\n"
        "  expected  sizes: tuple[int, ...]\n"
        "  got       sizes: int64[2]\n"
        "  hint      as a tuple: sizes=(3, 5).",
    ),
    (
        lambda: fn.nets.mlp.apply({"layers": [{"w": "x"}]}, X, fn.nets.mlp.Config((3, 5))),
        DTypeError,
        'mlp.apply: params["layers"][0]["w"] is not an array.\n'
        '  expected  params["layers"][0]["w"]: float[...]\n'
        '  got       params["layers"][0]["w"]: \'x\' (str)',
    ),
]

test_errors = golden(ERRORS)


def test_one_rule_for_options():
    """A list is a tuple, NumPy's scalar is Python's, and what a Config holds is Python's."""
    x, w = F(2, 7, 7, 2), {"w": F(3, 3, 2, 5)}
    want = fn.conv.apply(w, x, stride=(2, 1), padding=((1, 0), (0, 1)))
    assert jnp.array_equal(
        fn.conv.apply(w, x, stride=[np.int64(2), 1], padding=[[1, 0], (0, np.int8(1))]), want
    )
    net = fn.nets.transformer
    plain = net.Config(5, windows=(2, None), norm_eps=1e-6, bias=True, dtype="bfloat16")
    odd = net.Config(
        np.int64(5), windows=[np.int32(2), None], norm_eps=np.float64(1e-6), bias=np.True_, dtype=jnp.bfloat16
    )
    assert odd == plain
    assert hash(odd) == hash(plain)
    assert repr(odd) == repr(plain)
