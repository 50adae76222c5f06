"""The table that the laws run over: operation x arguments x options.

A row says what to draw, not what came out: F(7, 3) is a float array of that shape, I(5, 7) integers in
[0, 5) of shape [7], or in [low, 5), B(7) booleans, K() a random key, P(7, 3) positive floats that sum to 1
along the last axis, U(7) floats in [0, 1], S(7) such floats in float32 or wider, whatever the dtype of the
rest, R(3) what divides in a filter that is stable.
Sizes are distinct primes, so that a factor names itself; then all-square, a second prime set, 0 and 1.
"""

import dataclasses
import functools
import inspect
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

import funcnet as fn
from funcnet.ops.attention import rope


@dataclasses.dataclass(frozen=True)
class Draw:
    kind: str
    shape: tuple[int, ...]
    high: int = 0
    low: int = 0

    def __call__(self, rng: np.random.Generator, dtype: str) -> jax.Array:
        if self.kind == "int":
            return jnp.asarray(rng.integers(self.low, self.high, self.shape), jnp.int32)
        if self.kind == "bool":
            return jnp.asarray(rng.random(self.shape) < 0.6)
        if self.kind == "key":
            return jax.random.key(int(rng.integers(2**31)))
        if self.kind == "probabilities":
            p = rng.random(self.shape) + 0.1
            return jnp.asarray(p / p.sum(-1, keepdims=True), dtype)
        if self.kind == "unit":
            return jnp.asarray(rng.random(self.shape), dtype)
        if self.kind == "recursion":
            return jnp.asarray(
                np.concatenate([[2.0], 1.5 * rng.random(self.shape[0] - 1) / self.shape[0]]), dtype
            )
        if self.kind == "state":
            return jnp.asarray(rng.random(self.shape), "float32" if "16" in dtype else dtype)
        return jnp.asarray(rng.standard_normal(self.shape), dtype)


def F(*shape: int) -> Draw:
    return Draw("float", shape)


def I(high: int, *shape: int, low: int = 0) -> Draw:
    return Draw("int", shape, high, low)


def B(*shape: int) -> Draw:
    return Draw("bool", shape)


def K() -> Draw:
    return Draw("key", ())


def P(*shape: int) -> Draw:
    return Draw("probabilities", shape)


def U(*shape: int) -> Draw:
    return Draw("unit", shape)


def S(*shape: int) -> Draw:
    return Draw("state", shape)


def R(*shape: int) -> Draw:
    return Draw("recursion", shape)


@dataclasses.dataclass(frozen=True)
class Case:
    op: str
    args: tuple[Any, ...]
    options: dict[str, Any]

    @property
    def module(self) -> Any:
        return stacked(self.op) if self.op in FAMILIES else getattr(fn, self.op)

    def draw(self, seed: int = 0, dtype: str = "float64") -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments and options, with every Draw replaced by an array."""
        rng = np.random.default_rng([seed, *map(ord, self.id)])
        is_draw = lambda v: isinstance(v, Draw)
        fill = lambda v: v(rng, dtype) if is_draw(v) else v
        args = jax.tree.map(fill, self.args, is_leaf=is_draw)
        return args, {k: jax.tree.map(fill, v, is_leaf=is_draw) for k, v in self.options.items()}

    @property
    def id(self) -> str:
        if self.op in FAMILIES:
            return self.op

        def text(v: Any) -> str:
            if isinstance(v, Draw):
                return v.kind[0] + "x".join(map(str, v.shape))
            if isinstance(v, dict):
                return "_".join(k + ("None" if u is None else text(u)[1:]) for k, u in v.items())
            if isinstance(v, tuple) and any(isinstance(u, Draw) for u in v):
                return "+".join(map(text, v))
            return str(v).replace(" ", "")

        return "-".join(
            [self.op, *map(text, self.args), *(f"{k}={text(v)}" for k, v in self.options.items())]
        )


def case(op: str, *args: Any, **options: Any) -> Case:
    return Case(op, args, options)


def heads(
    d: int, h: int, h_kv: int, e: int, *, bias: str = "qkvo", qk_norm: bool = False, sinks: bool = False
) -> dict[str, Any]:
    """The parameters of multihead; `bias` names the projections that have one."""
    shapes = {"q": (d, h, e), "k": (d, h_kv, e), "v": (d, h_kv, e), "o": (h, e, d)}
    offsets = {"q": (h, e), "k": (h_kv, e), "v": (h_kv, e), "o": (d,)}
    params: dict[str, Any] = {
        name: {"w": F(*shape)} | ({"b": F(*offsets[name])} if name in bias else {})
        for name, shape in shapes.items()
    }
    if qk_norm:
        params |= {"q_norm": {"w": F(e)}, "k_norm": {"w": F(e)}}
    return params | ({"sinks": F(h)} if sinks else {})


def cell(gates: int, d: int, m: int, *biases: str) -> dict[str, Any]:
    """The parameters of a recurrence, its gates side by side; c is of one of them."""
    sizes = {"b": F(gates * m), "c": F(m)}
    return {"w": F(d, gates * m), "u": F(m, gates * m)} | {name: sizes[name] for name in biases}


def mixture(
    d: int, h: int, experts: int, *, bias: str = "up gate down", gated: bool = True
) -> dict[str, Any]:
    """The parameters of moe; `bias` names the maps that have one."""
    shapes = {"router": (d, experts), "up": (experts, d, h), "down": (experts, h, d)}
    shapes |= {"gate": shapes["up"]} if gated else {}
    biases = {name: {"b": F(*shape[:-2], shape[-1])} for name, shape in shapes.items() if name in bias}
    return {name: {"w": F(*shape)} | biases.get(name, {}) for name, shape in shapes.items()}


def carried(m: int, *n: int) -> dict[str, Any]:
    """The state of an lstm."""
    return {"h": F(*n, m), "c": S(*n, m)}


# ---- families: few of their operations go through every law by themselves, all at once through some of them

FAMILIES: dict[
    str, dict[str, dict[str, Any]]
] = {  # by their file, with the options that a member is tried with
    "activations": {
        "celu": {"alpha": 0.7},
        "elu": {"alpha": 1.3},
        "geglu": {"approximate": True},
        "gelu": {},
        "glu": {},
        "hard_shrink": {"lambd": 0.3},
        "hard_sigmoid": {"alpha": 0.2},
        "hard_silu": {},
        "hard_tanh": {"min_val": -0.7, "max_val": 0.3},
        "leaky_relu": {"negative_slope": 0.3},
        "log_sigmoid": {},
        "mish": {},
        "quick_gelu": {},
        "relu": {},
        "relu6": {},
        "selu": {},
        "sigmoid": {},
        "silu": {},
        "soft_shrink": {"lambd": 0.3},
        "softplus": {"beta": 1.7},
        "softsign": {},
        "swiglu": {},
        "tanh": {},
        "tanh_shrink": {},
        "threshold": {"threshold": 0.3, "value": -0.7},
    },
    "regularizers": {
        "drop_path": {"rate": 0.4, "key": jax.random.key(0)},
        "embedding_dropout": {
            "ids": jnp.asarray([[1, 4, 1], [0, 5, 2]], jnp.int32),
            "vocabulary": 5,
            "rate": 0.4,
            "key": jax.random.key(1),
        },
        "spatial_dropout": {"rate": 0.4, "key": jax.random.key(2), "spatial": 1},
    },
    "others": {
        "bilinear": {},
        "instance_norm": {"spatial": 2},
        "l2_norm": {"axis": (0, -1)},
        "log_softmax": {"axis": 0},
        "logsumexp": {"axis": (1, 2), "keepdims": True},
        "prelu": {},
    },
    "comparisons": {
        "cosine": {},
        "dice": {"smooth": 0.7},
        "focal": {"gamma": 1.7, "alpha": 0.3},
        "hinge": {"margin": 0.7},
        "huber": {"delta": 0.7},
        "kl_div": {},
        "smooth_l1": {"beta": 0.7},
        "triplet": {"margin": 0.7},
    },
}
EVERY_LAW = ("cosine", "gelu", "relu", "swiglu")  # of these families
MEMBERS = {name for members in FAMILIES.values() for name in members} - {*EVERY_LAW}


@functools.cache
def stacked(family: str) -> SimpleNamespace:
    """All operations of a family as one, of a dict with the arrays of each."""
    members = FAMILIES[family]

    def each(what: str) -> Any:
        return lambda xs: {
            name: getattr(getattr(fn, name), what)(*x, **members[name]) for name, x in xs.items()
        }

    def vjp(xs: Any) -> Any:
        both = each("vjp")(xs)
        pullbacks = {name: pullback for name, (_, pullback) in both.items()}
        return {name: y for name, (y, _) in both.items()}, Partial(_pull_each, pullbacks)

    return SimpleNamespace(members=members, reference=each("reference"), apply=each("apply"), vjp=vjp)


def _pull_each(pullbacks: Any, dys: Any) -> Any:
    return ({name: pullbacks[name](dy) for name, dy in dys.items()},)


def drawn(name: str, *shape: int) -> tuple[Draw, ...]:
    """The arrays of a member of a family, each of that shape."""
    parameters = inspect.signature(getattr(fn, name).reference).parameters.values()
    arrays = sum(p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty for p in parameters)
    return (F(*shape), U(*shape)) if name in ("dice", "focal", "kl_div") else (F(*shape),) * arrays


def every(family: str, *shape: int, of: tuple[int, ...] = (1, 2, 3)) -> Case:
    """The case of the members of a family that take so many arrays, each of that shape."""
    arrays = {name: drawn(name, *shape) for name in FAMILIES[family]}
    return case(family, {name: draws for name, draws in arrays.items() if len(draws) in of})


STACKED = [
    every("activations", 3, 5),
    every("comparisons", 3, 5),
    case(
        "others",
        {
            "bilinear": ({"w": F(3, 5, 2), "b": F(2)}, F(7, 3), F(7, 5)),
            "instance_norm": ({"w": F(3), "b": F(3)}, F(2, 3, 5, 3)),
            "l2_norm": (F(3, 5, 2),),
            "log_softmax": (F(3, 5),),
            "logsumexp": (F(2, 3, 5),),
            "prelu": ({"w": F(3)}, F(5, 3)),
        },
    ),
    case(
        "regularizers",
        {"drop_path": (F(7, 3),), "embedding_dropout": (F(2, 3, 5),), "spatial_dropout": (F(2, 5, 3),)},
    ),
]

PROJECTED = {"w": F(5, 12), "u": F(2, 12), "b": F(12), "r": F(3, 2)}
CASES = [
    # linear
    case("linear", {"w": F(11, 13), "b": F(13)}, F(7, 11)),
    case("linear", {"w": F(11, 13)}, F(3, 5, 11)),
    case("linear", {"w": F(5, 5), "b": F(5)}, F(5, 5)),
    case("linear", {"w": F(3, 17), "b": None}, F(3)),
    case("linear", {"w": F(1, 1), "b": F(1)}, F(1, 1)),
    case("linear", {"w": F(3, 5), "b": F(5)}, F(0, 3)),
    case("linear", {"w": F(5, 2, 3, 7), "b": F(3, 7)}, F(11, 5, 2), inputs=2),
    case("linear", {"w": F(3, 5, 2), "b": None}, F(2, 7, 3)),
    case("linear", {"w": F(2, 3, 5)}, F(2, 3), inputs=2),
    # bilinear
    case("bilinear", {"w": F(3, 5, 2), "b": F(2)}, F(7, 3), F(7, 5)),
    case("bilinear", {"w": F(3, 3, 3)}, F(2, 3, 3), F(2, 3, 3)),
    case("bilinear", {"w": F(3, 2, 5), "b": None}, F(3), F(2)),
    case("bilinear", {"w": F(3, 5, 2), "b": F(2)}, F(0, 3), F(0, 5)),
    # moe
    case("moe", mixture(3, 2, 5), F(2, 7, 3)),
    case(
        "moe", mixture(3, 2, 5, gated=False, bias="router down"), F(2, 7, 3), capacity=0.7, renormalise=False
    ),
    case("moe", mixture(2, 3, 3, bias=""), F(11, 2), k=1, capacity=1.0, activation="relu"),
    case("moe", mixture(3, 3, 3), F(3, 3, 3), k=3, activation="gelu"),
    case("moe", mixture(3, 2, 7, bias="up", gated=False), F(2, 3, 5, 3), activation="gelu_tanh"),
    case("moe", mixture(1, 1, 1), F(1, 1), k=1, renormalise=False),
    case("moe", mixture(3, 2, 5) | {"gate": None}, F(0, 5, 3)),
    # relu
    case("relu", F(7, 11)),
    case("relu", F(0, 3)),
    case("relu", F()),
    # layer_norm
    case("layer_norm", {"w": F(11), "b": F(11)}, F(7, 11)),
    case("layer_norm", {"w": F(5)}, F(2, 5, 5), eps=1e-3),
    case("layer_norm", {"w": F(1), "b": F(1)}, F(3, 1)),
    case("layer_norm", {"w": F(3), "b": F(3)}, F(0, 3)),
    case("layer_norm", {"w": F(13), "b": None}, F(13)),
    # conv
    case("conv", {"w": F(3, 2, 5), "b": F(5)}, F(7, 11, 2)),
    case("conv", {"w": F(2, 3, 2, 5), "b": F(5)}, F(3, 7, 5, 2), stride=2),
    case("conv", {"w": F(3, 2, 2, 6)}, F(2, 7, 5, 4), groups=2, dilation=(2, 1), padding="valid"),
    case("conv", {"w": F(3, 3, 1, 6), "b": F(6)}, F(2, 1, 5, 5, 3), groups=3, padding_mode="reflect"),
    case("conv", {"w": F(3, 3, 3, 3), "b": F(3)}, F(3, 3, 3, 3), padding_mode="circular", stride=(2, 1)),
    case(
        "conv", {"w": F(2, 3, 2, 1, 2)}, F(2, 3, 5, 2, 1), padding=((1, 0), (0, 2), (1, 1)), stride=(1, 2, 1)
    ),
    case("conv", {"w": F(4, 3, 2), "b": F(2)}, F(2, 7, 3), padding="causal", dilation=2),
    case("conv", {"w": F(7, 2, 3), "b": F(3)}, F(2, 5, 2), padding="valid"),  # longer than the signal
    case("conv", {"w": F(7, 1, 1)}, F(1, 3, 1), padding_mode="circular"),
    case("conv", {"w": F(2, 1, 3)}, F(5, 7, 1), stride=3),  # the stride skips elements
    case("conv", {"w": F(1, 1, 2, 3), "b": F(3)}, F(1, 1, 1, 2)),
    case("conv", {"w": F(3, 2, 1, 16), "b": F(16)}, F(2, 5, 4, 8), groups=8, stride=(2, 1)),  # depthwise
    case("conv", {"w": F(3, 1, 8)}, F(3, 7, 8), groups=8, dilation=2, padding="causal"),
    case("conv", {"w": F(3, 2, 3), "b": F(3)}, F(0, 5, 2)),
    case("conv", {"w": F(3, 2, 3), "b": F(3)}, F(2, 0, 2)),
    # conv_transpose
    case("conv_transpose", {"w": F(3, 5, 2), "b": F(5)}, F(7, 11, 2)),
    case("conv_transpose", {"w": F(4, 3, 5, 2), "b": F(5)}, F(3, 5, 3, 2), stride=2),
    case("conv_transpose", {"w": F(3, 2, 3, 4)}, F(2, 7, 5, 4), groups=2, dilation=(2, 1), padding="valid"),
    case("conv_transpose", {"w": F(3, 3, 2, 3)}, F(2, 1, 5, 5, 3), groups=3, padding_mode="reflect"),
    case(
        "conv_transpose",
        {"w": F(3, 3, 3, 3), "b": F(3)},
        F(3, 3, 3, 3),
        padding_mode="circular",
        stride=(2, 1),
        output_shape=(5, 3),
    ),
    case(
        "conv_transpose",
        {"w": F(2, 3, 2, 2, 1)},
        F(2, 3, 2, 2, 1),
        padding=((1, 0), (0, 1), (1, 1)),
        stride=(1, 2, 1),
    ),
    case("conv_transpose", {"w": F(4, 2, 3), "b": F(2)}, F(2, 7, 3), padding="causal", dilation=2),
    case("conv_transpose", {"w": F(2, 3, 1)}, F(5, 7, 1), stride=3, padding="valid", output_shape=(22,)),
    case("conv_transpose", {"w": F(3, 2, 1, 16), "b": F(8)}, F(2, 3, 4, 16), groups=8, stride=(2, 1)),
    case("conv_transpose", {"w": F(1, 1, 3, 2), "b": F(3)}, F(1, 1, 1, 2)),
    case("conv_transpose", {"w": F(3, 3, 2), "b": F(3)}, F(0, 5, 2)),
    case("conv_transpose", {"w": F(3, 3, 2), "b": F(3)}, F(2, 0, 2)),
    # ==== norms, activations, softmax, dropout
    # rms_norm
    case("rms_norm", {"w": F(11)}, F(7, 11)),
    case("rms_norm", {"w": F(5)}, F(2, 5, 5), eps=1e-3),
    case("rms_norm", {"w": F(1)}, F(3, 1), eps=0.5),  # with a small eps dx is all rounding
    case("rms_norm", {"w": F(3)}, F(0, 3)),
    case("rms_norm", {"w": F(13)}, F(13)),
    # group_norm
    case("group_norm", {"w": F(6), "b": F(6)}, F(7, 5, 3, 6), groups=2),
    case("group_norm", {"w": F(4), "b": F(4)}, F(4, 4, 4), groups=4, eps=1e-3),
    case("group_norm", {"w": F(10)}, F(3, 2, 7, 5, 10), groups=5, spatial=2),
    case("group_norm", {"w": F(9), "b": None}, F(5, 2, 9), groups=3, spatial=2),  # no batch axis
    case("group_norm", {"w": F(14), "b": F(14)}, F(3, 11, 14), groups=2, spatial=0),
    case("group_norm", {"w": F(15), "b": F(15)}, F(2, 15), groups=1),
    case("group_norm", {"w": F(1), "b": F(1)}, F(3, 1), groups=1),
    case("group_norm", {"w": F(6), "b": F(6)}, F(0, 5, 6), groups=3),
    case("group_norm", {"w": F(6), "b": F(6)}, F(2, 0, 6), groups=3),
    # batch_norm
    case("batch_norm", {"w": F(5), "b": F(5)}, {"mean": S(5), "var": S(5)}, F(11, 5), train=True),
    case(
        "batch_norm",
        {"w": F(5), "b": F(5)},
        {"mean": S(5), "var": S(5)},
        F(7, 3, 5),
        train=True,
        mask=B(7, 3),
    ),
    case("batch_norm", {"w": F(5), "b": F(5)}, {"mean": S(5), "var": S(5)}, F(11, 5), train=False),
    case("batch_norm", {"w": F(5)}, {"mean": S(5), "var": S(5)}, F(11, 5), train=False, mask=B(11)),
    case("batch_norm", {"w": F(3), "b": F(3)}, {"mean": S(3), "var": S(3)}, F(3, 3, 3), train=True, eps=1e-3),
    case("batch_norm", {"w": F(7)}, {"mean": S(7), "var": S(7)}, F(2, 5, 3, 7), train=True, momentum=0.5),
    case("batch_norm", {"w": F(7), "b": None}, {"mean": S(7), "var": S(7)}, F(13, 7), train=False, eps=1e-3),
    case("batch_norm", {"w": F(1), "b": F(1)}, {"mean": S(1), "var": S(1)}, F(17, 1), train=True),
    case("batch_norm", {"w": F(3), "b": F(3)}, {"mean": S(3), "var": S(3)}, F(3), train=False),
    case("batch_norm", {"w": F(3), "b": F(3)}, {"mean": S(3), "var": S(3)}, F(0, 3), train=True),
    # softmax
    case("softmax", F(7, 11)),
    case("softmax", F(5, 5, 5), axis=1),
    case("softmax", F(13, 3), axis=0),
    case("softmax", F(2, 3, 5), axis=-2),
    case("softmax", F(17)),
    case("softmax", F(1, 2)),
    case("softmax", F(0, 3)),
    case("softmax", F(3, 0)),
    # others of norms
    case("instance_norm", {"w": F(5), "b": F(5)}, F(2, 7, 3, 5)),
    case("instance_norm", {"w": F(3)}, F(2, 5, 7, 3), spatial=1, eps=1e-3),
    case("instance_norm", {"w": F(3), "b": None}, F(0, 5, 3)),
    case("l2_norm", F(7, 11)),
    case("l2_norm", F(2, 3, 5), axis=(0, -1), eps=2.5),  # some norms are below
    case("l2_norm", F(3, 0)),
    case("log_softmax", F(7, 11)),
    case("log_softmax", F(2, 3, 5), axis=-2),
    case("log_softmax", F(0, 3)),
    case("logsumexp", F(7, 11)),
    case("logsumexp", F(2, 3, 5), axis=(0, -1), keepdims=True),
    case("logsumexp", F(0, 3)),
    # prelu
    case("prelu", {"w": F(5)}, F(7, 5)),
    case("prelu", {"w": F(1)}, F(2, 3, 5)),
    case("prelu", {"w": F(3)}, F(0, 3)),
    # gelu
    case("gelu", F(7, 11)),
    case("gelu", F(7, 11), approximate=True),
    case("gelu", F(5, 5), approximate=False),
    case("gelu", F(0, 3), approximate=True),
    case("gelu", F()),
    # the others of the families
    *(
        case(name, *drawn(name, 7, 11), **options)
        for family in ("activations", "comparisons")
        for name, options in FAMILIES[family].items()
        if name in MEMBERS
    ),
    case("sigmoid", F(0, 3)),
    case("tanh", F()),
    # dropout
    case("dropout", F(7, 11), rate=0.3, key=K()),
    case("dropout", F(5, 5), rate=0.5, key=K()),
    case("dropout", F(2, 3, 13), rate=0.9, key=K()),
    case("dropout", F(7, 3), rate=1.0, key=K()),
    case("dropout", F(7, 3), rate=0.3),
    case("dropout", F(7, 3), rate=0.0, key=K()),
    case("dropout", F(0, 3), rate=0.3, key=K()),
    case("dropout", F(), rate=0.3, key=K()),
    case("drop_path", F(7, 11), rate=0.3, key=K()),
    case("drop_path", F(5), rate=1.0, key=K()),
    case("drop_path", F(0, 3), rate=0.3, key=K()),
    case("spatial_dropout", F(7, 2, 3, 5), rate=0.3, key=K()),
    case("spatial_dropout", F(2, 3, 5, 7), rate=0.5, key=K(), spatial=1),
    case("spatial_dropout", F(2, 3), rate=0.3),
    case("embedding_dropout", F(7, 5), ids=I(5, 7), vocabulary=3, rate=0.3, key=K()),
    case("embedding_dropout", F(2, 3, 5), ids=I(7, 2, 3), vocabulary=7, rate=0.3),
    # ==== products: matmul embedding attention multihead
    case("matmul", F(7, 11), F(11, 13)),
    case("matmul", F(3, 5, 7, 2), F(2, 11)),
    case("matmul", F(3, 5), F(2, 7, 5, 13)),
    case("matmul", F(5, 1, 2, 7), F(3, 7, 11)),  # both are broadcast
    case("matmul", F(3, 3, 3), F(3, 3, 3)),
    case("matmul", F(1, 1, 1), F(1, 1)),
    case("matmul", F(1, 3, 2), F(0, 2, 5)),
    case("matmul", F(2, 3, 0), F(0, 5)),
    case("embedding", {"w": F(7, 5)}, I(7, 11)),
    case("embedding", {"w": F(3, 5)}, I(3, 13), padding_index=1),
    case("embedding", {"w": F(13, 3)}, I(13, 2, 5)),
    case("embedding", {"w": F(5, 5)}, I(5, 5, 5)),
    case("embedding", {"w": F(2, 3)}, I(2, 17)),  # many ids share a row
    case("embedding", {"w": F(3, 2)}, I(3)),
    case("embedding", {"w": F(1, 1)}, I(1, 1)),
    case("embedding", {"w": F(3, 5)}, I(3, 2, 0)),
    case("embedding", {"w": F(1031, 2)}, I(1031, 19)),  # more rows than a product is made for
    case("attention", F(2, 5, 3, 7), F(2, 11, 3, 7), F(2, 11, 3, 13)),
    case(  # blocks that causality empties, crosses and leaves whole; the last ones are not full
        "attention", F(2, 7, 4, 3), F(2, 11, 2, 3), F(2, 11, 2, 5), causal=True, q_offset=4, block=(3, 2)
    ),
    case("attention", F(7, 6, 3), F(5, 2, 3), F(5, 2, 2), causal=True, q_offset=-2),  # 0 and 1 see nothing
    case("attention", F(2, 3, 4, 5), F(2, 7, 2, 5), F(2, 7, 2, 3), F(4, 1, 7), F(4), scale=0.3, block=(2, 3)),
    case("attention", F(2, 3, 3, 2, 5), F(2, 3, 7, 1, 5), F(2, 3, 7, 1, 5), mask=B(3, 2, 3, 7)),
    case(
        "attention",
        F(3, 5, 2, 3),
        F(3, 5, 2, 3),
        F(3, 5, 2, 3),
        F(2, 5, 5),
        mask=B(3, 1, 1, 5),
        causal=True,
        window=3,
        softcap=0.7,
        block=(2, 2),
    ),
    case("attention", F(2, 7, 2, 3), F(2, 7, 1, 3), F(2, 7, 1, 3), segment_ids=I(2, 2, 7), block=(4, 3)),
    case(
        "attention",
        F(2, 3, 2, 3),
        F(2, 5, 2, 3),
        F(2, 5, 2, 3),
        F(2, 2, 3, 5),
        F(2),
        segment_ids=(I(2, 2, 3), I(2, 2, 5)),
        window=(1, 2),
        q_offset=I(3, 2),
        block=(2, 2),
    ),
    case(
        "attention",
        F(2, 3, 2, 3),
        F(2, 5, 1, 3),
        F(2, 5, 1, 2),
        None,
        F(2),
        dropout_rate=0.4,
        key=K(),
        block=(2, 3),
    ),
    case("attention", F(3, 3, 3, 3), F(3, 3, 3, 3), F(3, 3, 3, 3), causal=True),
    case("attention", F(1, 1, 1), F(1, 1, 1), F(1, 1, 1)),
    case("attention", F(2, 3, 2, 3), F(2, 0, 1, 3), F(2, 0, 1, 5)),
    case("attention", F(0, 3, 2, 3), F(0, 3, 2, 3), F(0, 3, 2, 5), F(2, 1, 3), F(2), causal=True),
    case("attention", F(2, 0, 2, 3), F(2, 3, 2, 3), F(2, 3, 2, 5)),
    # linear_attention
    case("linear_attention", F(2, 4, 3, 2), F(2, 4, 3, 2), F(2, 4, 3, 5), U(2, 4, 3), F(2, 3, 2, 5), chunk=2),
    case("linear_attention", F(7, 2, 5), F(7, 2, 5), F(7, 2, 3), chunk=3),
    case("linear_attention", F(2, 7, 1, 3), F(2, 7, 1, 3), F(2, 7, 1, 5), F(2, 7, 1), chunk=3),
    case("linear_attention", F(3, 3, 3, 3), F(3, 3, 3, 3), F(3, 3, 3, 3), F(3, 3, 3), chunk=1),
    case("linear_attention", F(1, 1, 1), F(1, 1, 1), F(1, 1, 1), None, F(1, 1, 1)),
    case("linear_attention", F(2, 0, 2, 3), F(2, 0, 2, 3), F(2, 0, 2, 5), F(2, 0, 2)),
    case("linear_attention", F(0, 3, 2, 3), F(0, 3, 2, 3), F(0, 3, 2, 5), F(0, 3, 2)),
    case("multihead", heads(7, 3, 3, 5), F(2, 11, 7)),
    case(
        "multihead",
        heads(5, 4, 2, 6, bias="qkv", qk_norm=True, sinks=True),
        F(2, 7, 5),
        F(4, 7, 7),
        causal=True,
        window=3,
        rope=rope.Config(base=100.0, width=4),
        positions=I(50, 2, 7),
        softcap=2.0,
        scale=0.5,
    ),
    case(
        "multihead", heads(5, 4, 2, 3), F(7, 5), causal=True, block=(2, 3)
    ),  # two query heads share a key head
    case("multihead", heads(3, 2, 1, 5, bias=""), F(3, 2, 5, 3), mask=B(3, 1, 2, 5, 5)),
    case("multihead", {**heads(5, 5, 5, 5), "k": {"w": F(5, 5, 5), "b": None}}, F(5, 5, 5), causal=True),
    case("multihead", heads(2, 6, 3, 1, bias=""), F(3, 2), causal=True, mask=B(3, 3)),
    case("multihead", heads(3, 2, 2, 4, qk_norm=True), F(2, 5, 3), norm_eps=0.1, segment_ids=I(2, 2, 5)),
    case("multihead", heads(3, 2, 1, 2), F(5, 3), F(5, 5), rope=rope.Config(layout="interleaved")),
    case("multihead", {**heads(3, 2, 1, 2), "q_norm": None, "sinks": None}, F(5, 3), window=(1, 2)),
    case("multihead", heads(3, 4, 2, 2), F(5, 3), dropout_rate=0.3, key=K()),
    case("multihead", heads(1, 1, 1, 1), F(1, 1)),
    case("multihead", heads(3, 2, 2, 2), F(0, 5, 3)),
    case(
        "multihead",
        {
            **heads(5, 3, 3, 7),
            "q": {"down": F(5, 2), "up": F(2, 3, 7), "b": F(3, 7)},
            "v": {"down": F(5, 3), "up": F(3, 3, 7)},
            "o": {"down": F(3, 7, 2), "up": F(2, 5), "b": F(5)},
        },
        F(2, 11, 5),
        causal=True,
    ),
    # ==== pools and losses: max_pool avg_pool mse cross_entropy binary_cross_entropy
    # ==== cosine contrastive nll ctc
    # max_pool
    case("max_pool", F(2, 7, 11, 3), kernel=(2, 3)),
    case("max_pool", F(3, 13, 5), kernel=(3,), stride=2, padding="same"),
    case("max_pool", F(3, 3, 3, 3), kernel=(3, 3), stride=1, padding="same"),
    case("max_pool", F(2, 3, 5, 7, 2), kernel=(2, 3, 2), stride=(1, 2, 3), padding=((1, 0), (0, 2), (1, 1))),
    case("max_pool", F(13, 2), kernel=(5,), stride=3, padding="causal"),
    case("max_pool", F(2, 3, 7, 5, 2), kernel=(2, 1), stride=3),  # the stride skips elements
    case("max_pool", F(1, 1, 1, 1), kernel=(1, 1)),
    case("max_pool", F(0, 5, 2), kernel=(2,), stride=1),
    case("max_pool", F(2, 5, 3), kernel=(7,)),  # longer than the signal
    case("max_pool", F(2, 7, 11, 3), kernel=(3, 2), stride=(1, 2), dilation=(2, 3), padding=((1, 0), (2, 4))),
    # avg_pool
    case("avg_pool", F(2, 7, 11, 3), kernel=(2, 3)),
    case("avg_pool", F(3, 13, 5), kernel=(3,), stride=2, padding="same"),
    case("avg_pool", F(3, 3, 3, 3), kernel=(3, 3), stride=1, padding="same"),
    case("avg_pool", F(2, 3, 5, 7, 2), kernel=(2, 3, 2), stride=(1, 2, 3), padding=((1, 0), (0, 2), (1, 1))),
    case("avg_pool", F(13, 2), kernel=(5,), stride=3, padding="causal"),
    case("avg_pool", F(2, 3, 7, 5, 2), kernel=(2, 1), stride=3),  # the stride skips elements
    case("avg_pool", F(1, 1, 1, 1), kernel=(1, 1)),
    case("avg_pool", F(0, 5, 2), kernel=(2,), stride=1),
    case("avg_pool", F(2, 5, 3), kernel=(7,)),  # longer than the signal
    case("avg_pool", F(2, 7, 11, 3), kernel=(3, 2), stride=(1, 2), dilation=(2, 3), padding=((1, 0), (2, 4))),
    # lp_pool
    case("lp_pool", F(3, 7, 2), kernel=(3,), stride=2, padding="same"),
    case(
        "lp_pool",
        F(2, 7, 11, 3),
        kernel=(3, 2),
        stride=(1, 2),
        dilation=(2, 3),
        padding=((1, 0), (2, 4)),
        p=3.0,
    ),
    case("lp_pool", F(2, 3, 5, 7, 2), kernel=(2, 3, 2), p=1.5),
    case("lp_pool", F(2, 3, 3, 3), kernel=(1, 2), stride=3, p=1.0),
    case("lp_pool", F(0, 5, 2), kernel=(2,)),
    case("lp_pool", F(2, 5, 3), kernel=(7,)),
    # ==== grids: patches fold resize pad adaptive_avg_pool adaptive_max_pool pixel_shuffle grid_sample
    # patches
    case("patches", F(2, 7, 5), kernel=(3,), stride=2, padding="same"),
    case("patches", F(3, 7, 11, 2), kernel=(2, 3), stride=(3, 1), dilation=(1, 2), padding=((1, 0), (0, 2))),
    case("patches", F(3, 4, 5, 2), kernel=(2, 1, 2), padding="causal"),
    case("patches", F(3, 3, 3), kernel=(3,)),
    case("patches", F(0, 5, 2), kernel=(2,)),
    case("patches", F(2, 5, 3), kernel=(7,)),
    # fold
    case("fold", F(2, 4, 15), size=(7,), kernel=(3,), stride=2, padding="same"),
    case(
        "fold",
        F(3, 3, 9, 12),
        size=(7, 11),
        kernel=(2, 3),
        stride=(3, 1),
        dilation=(1, 2),
        padding=((1, 0), (0, 2)),
    ),
    case("fold", F(2, 3, 3, 4, 8), size=(4, 3, 5), kernel=(2, 1, 2)),
    case("fold", F(1, 9), size=(3,), kernel=(3,)),
    case("fold", F(0, 4, 4), size=(5,), kernel=(2,)),
    case("fold", F(2, 0, 21), size=(5,), kernel=(7,)),
    # resize
    case("resize", F(2, 5, 7, 3), size=(7, 3)),
    case("resize", F(2, 7, 3), size=(11,), method="cubic", align_corners=True),
    case("resize", F(2, 7, 13, 3), size=(3, 5), method="cubic", antialias=True),
    case("resize", F(2, 11, 5, 3), scale=(0.5, 2.0), antialias=True),
    case("resize", F(3, 2, 5, 7, 2), size=(3, 4, 2), method="trilinear"),
    case("resize", F(2, 5, 7, 3), scale=(1.7, 0.6), method="bicubic", a=-0.5),
    case("resize", F(3, 3, 3), size=(5,), method="nearest"),
    case("resize", F(7, 5, 2), scale=(0.7, 1.5), method="nearest-exact"),
    case("resize", F(2, 5, 2), size=(1,), align_corners=True),
    case("resize", F(1, 1), size=(3,), method="cubic"),
    case("resize", F(0, 3, 2), size=(2,)),
    # pad
    case("pad", F(2, 5, 7, 3), padding=((1, 2), (3, 0)), padding_mode="reflect"),
    case("pad", F(2, 5, 3), padding=((4, 1),), padding_mode="zeros"),
    case("pad", F(2, 3, 2), padding=((7, 5),), padding_mode="circular"),
    case("pad", F(2, 3, 2), padding=((11, 13),), padding_mode="edge"),
    case("pad", F(3, 3, 2, 5, 1), padding=((0, 1), (1, 1), (2, 0)), padding_mode="edge"),
    case("pad", F(2, 0, 3), padding=((1, 2),)),
    case("pad", F(0, 3, 2), padding=((1, 2),), padding_mode="reflect"),
    # adaptive_avg_pool
    case("adaptive_avg_pool", F(2, 7, 5, 3), size=(3, 5)),
    case("adaptive_avg_pool", F(3, 11, 2), size=(1,)),
    case("adaptive_avg_pool", F(2, 6, 3, 5, 2), size=(3, 2, 7)),
    case("adaptive_avg_pool", F(2, 4, 3), size=(2,)),
    case("adaptive_avg_pool", F(0, 5, 2), size=(2,)),
    # adaptive_max_pool
    case("adaptive_max_pool", F(2, 5, 3, 2), size=(2, 3)),
    case("adaptive_max_pool", F(3, 11, 2), size=(1,)),
    case("adaptive_max_pool", F(2, 6, 3, 5, 2), size=(3, 2, 7)),
    case("adaptive_max_pool", F(2, 4, 3), size=(2,)),
    case("adaptive_max_pool", F(0, 5, 2), size=(2,)),
    # pixel_shuffle, pixel_unshuffle
    case("pixel_shuffle", F(2, 5, 7, 18), factor=(2, 3)),
    case("pixel_shuffle", F(2, 5, 7, 18), factor=(2, 3), order="channel last"),
    case("pixel_shuffle", F(2, 3, 6), factor=(3,)),
    case("pixel_shuffle", F(0, 1, 2, 3, 12), factor=(1, 2, 3)),
    case("pixel_unshuffle", F(2, 10, 9, 5), factor=(2, 3)),
    case("pixel_unshuffle", F(2, 10, 9, 5), factor=(2, 3), order="channel last"),
    case("pixel_unshuffle", F(2, 6, 7), factor=(3,)),
    case("pixel_unshuffle", F(0, 1, 2, 3, 2), factor=(1, 2, 3)),
    # grid_sample
    case("grid_sample", F(2, 5, 2), F(2, 3, 1), padding_mode="reflection"),
    case("grid_sample", F(2, 3, 4, 1), F(2, 5, 2)),
    case("grid_sample", F(2, 5, 7, 3), F(2, 11, 2), method="cubic", padding_mode="reflection"),
    case("grid_sample", F(3, 5, 3), F(3, 7, 1), method="cubic", padding_mode="border", align_corners=True),
    case("grid_sample", F(2, 3, 5, 2, 3), F(2, 3, 2, 3), padding_mode="reflection", align_corners=True),
    case("grid_sample", F(2, 5, 7, 3), F(2, 3, 2, 2), padding_mode="border"),
    case("grid_sample", F(2, 5, 7, 3), F(2, 7, 2), method="nearest"),
    case("grid_sample", F(5, 7, 3), F(2), method="bicubic", align_corners=True),
    case("grid_sample", F(0, 2, 3, 1), F(0, 5, 2)),
    # mse
    case("mse", F(7, 11), F(7, 11)),
    case("mse", F(2, 3, 13), F(2, 3, 13)),
    case("mse", F(5, 5), F(5, 5)),
    case("mse", F(17), F(17)),
    case("mse", F(3, 1), F(3, 1)),
    case("mse", F(0, 3), F(0, 3)),
    # cross_entropy
    case("cross_entropy", F(7, 11), I(11, 7)),
    case("cross_entropy", F(2, 3, 13), I(13, 2, 3), label_smoothing=0.1),
    case("cross_entropy", F(17, 5), I(5, 17), ignore_index=3),
    case("cross_entropy", F(17, 5), I(5, 17), ignore_index=-1, label_smoothing=0.3),
    case("cross_entropy", F(7, 11), P(7, 11)),
    case("cross_entropy", F(2, 3, 5), P(2, 3, 5), label_smoothing=0.2),
    case("cross_entropy", F(3, 7), U(3, 7)),  # labels that do not sum to 1
    case("cross_entropy", F(5, 5), I(5, 5)),
    case("cross_entropy", F(5), I(5)),
    case("cross_entropy", F(3, 1), I(1, 3)),
    case("cross_entropy", F(0, 3), I(3, 0)),
    # binary_cross_entropy
    case("binary_cross_entropy", F(7, 11), U(7, 11)),
    case("binary_cross_entropy", F(2, 3, 13), B(2, 3, 13)),
    case("binary_cross_entropy", F(17), I(2, 17)),
    case("binary_cross_entropy", F(5, 5), U(5, 5)),
    case("binary_cross_entropy", F(), U()),
    case("binary_cross_entropy", F(0, 3), B(0, 3)),
    # cosine, and of its family what has edges
    case("cosine", F(7, 11), F(7, 11)),
    case("cosine", F(2, 3, 13), F(2, 3, 13)),
    case("cosine", F(5), F(5)),
    case("cosine", F(0, 3), F(0, 3)),
    case("cosine", F(3, 0), F(3, 0)),
    case("dice", F(2, 3, 5), I(2, 2, 3, 5)),
    case("focal", F(7, 3), B(7, 3), gamma=0.0),
    case("focal", F(), U(), gamma=1.0),
    case("kl_div", F(3, 5), F(3, 5), log_target=True),
    case("smooth_l1", F(3, 5), F(3, 5), beta=0.0),
    case("triplet", F(5), F(5), F(5), margin=-0.3),
    # contrastive, nll
    case("contrastive", F(7, 3), F(7, 3), F()),
    case("contrastive", F(5, 3), F(5, 3), F(), F(), pairs="sigmoid"),
    case("contrastive", F(3, 5), F(3, 5), F(), pairs="sigmoid"),
    case("contrastive", F(5, 5), F(5, 5), F()),
    case("contrastive", F(1, 2), F(1, 2), F()),
    case("contrastive", F(0, 2), F(0, 2), F(), F(), pairs="sigmoid"),
    case("contrastive", F(0, 2), F(0, 2), F()),
    case("nll", F(7, 11), I(11, 7)),
    case("nll", F(2, 3, 5), I(5, 2, 3), ignore_index=3),
    case("nll", F(5), I(5)),
    case("nll", F(3, 1), I(1, 3)),
    case("nll", F(0, 3), I(3, 0)),
    # ctc: the paths that the naive loop goes through are v ** t
    case("ctc", F(3, 5, 3), I(2, 3, 2), lengths=I(6, 3, low=3), label_lengths=I(3, 3), blank=2),
    case("ctc", F(2, 1, 4, 3), I(3, 2, 1, 2, low=1)),
    case("ctc", F(7, 3), I(3, 3, low=1)),
    case("ctc", F(3, 3, 3), I(2, 3, 1), blank=2),
    case("ctc", F(1, 2, 5), I(5, 1, 2, low=1), label_lengths=I(2, 1)),
    case("ctc", F(2, 3, 5), I(5, 2, 0)),
    case("ctc", F(2, 3, 1), I(1, 2, 0)),
    case("ctc", F(2, 0, 3), I(1, 2, 0)),
    case("ctc", F(0, 3, 5), I(4, 0, 2), lengths=I(3, 0), blank=4),
    # ==== what transformers add: swiglu alibi rope linear_cross_entropy
    case("swiglu", F(7, 11), F(7, 11)),
    case("swiglu", F(5, 5), F(5, 5)),
    case("swiglu", F(0, 3), F(0, 3)),
    case("swiglu", F(), F()),
    case("alibi", F(3), t=5, s=7),
    case("alibi", F(2), t=5, s=7, q_offset=I(11, 3)),
    case("alibi", F(5), t=5, s=5, q_offset=2),
    case("alibi", F(3), t=5, s=7, causal=True),
    case("alibi", F(1), t=1, s=1),
    case("alibi", F(3), t=0, s=2),
    case("rope", F(2, 5, 3, 8)),
    case("rope", F(3, 5, 2, 14), config=rope.Config(layout="interleaved", base=100.0), positions=I(97, 3, 5)),
    case("rope", F(7, 3, 11), config=rope.Config(width=6), positions=I(97, 7)),
    case("rope", F(2, 5, 3, 4), positions=S(2, 5)),  # between the integers
    case("rope", F(2, 5, 3, 14), config=rope.Config(scaling=rope.Linear(3.0))),
    case("rope", F(5, 2, 14), config=rope.Config(scaling=rope.NTK(3.0))),
    case("rope", F(5, 2, 34), config=rope.Config(scaling=rope.YaRN(3.0, 71)), positions=I(200, 5)),
    case(
        "rope", F(5, 2, 34), config=rope.Config(scaling=rope.Llama3(3.0, 71), width=26), positions=I(200, 5)
    ),
    case("rope", F(4, 4, 4, 4)),
    case("rope", F(2, 5, 3, 7), tables=(F(2, 5, 3), F(2, 5, 3))),
    case("rope", F(5, 2, 6), config=rope.Config(layout="interleaved"), tables=(F(5, 3), F(5, 3))),
    case("rope", F(0, 3, 1, 2)),
    case("linear_cross_entropy", F(7, 11), F(11, 13), I(13, 7)),
    case(
        "linear_cross_entropy",
        F(2, 3, 5),
        F(5, 17),
        I(17, 2, 3),
        label_smoothing=0.1,
        ignore_index=3,
        z_loss=0.2,
        softcap=2.0,
    ),
    case("linear_cross_entropy", F(5, 5), F(5, 5), I(5, 5), z_loss=0.3),
    case("linear_cross_entropy", F(17, 3), F(3, 5), I(5, 17), ignore_index=-1, label_smoothing=0.3),
    case("linear_cross_entropy", F(7), F(7, 11), I(11), softcap=0.5),
    case("linear_cross_entropy", F(3, 1), F(1, 1), I(1, 3)),
    case("linear_cross_entropy", F(0, 3), F(3, 5), I(5, 0)),
    # ==== sound
    # stft: by product, then by FFT
    case("stft", F(2, 17), n_fft=6, hop=2),
    case("stft", F(2, 83), F(23), n_fft=36, hop=7, padding_mode="zeros"),
    case("stft", F(3, 13), n_fft=7, hop=3, width=5, padding="valid"),
    case("stft", F(41), F(34), n_fft=35, padding=(3, 5), padding_mode="circular"),
    case("stft", F(2, 3, 11), F(5), n_fft=5, hop=5, padding=(0, 4)),
    case("stft", F(2, 2), F(2), n_fft=2, hop=2, padding="valid"),
    case("stft", F(3), n_fft=7, padding="valid"),  # longer than the signal
    case("stft", F(1, 1), n_fft=1),
    case("stft", F(0, 11), F(5), n_fft=6, hop=3),
    # istft
    case("istft", F(2, 6, 4, 2), n_fft=6, hop=2),
    case("istft", F(2, 5, 19, 2), F(23), n_fft=36, hop=7, length=5),
    case("istft", F(4, 3, 2), n_fft=4, hop=1, width=3, padding=(2, 1)),
    case("istft", F(2, 3, 4, 18, 2), F(34), n_fft=35, padding=(3, 5)),
    case("istft", F(2, 2, 2, 2), F(2), n_fft=2, hop=2, padding="valid"),
    case("istft", F(1, 1, 2), n_fft=1),
    case("istft", F(2, 0, 4, 2), n_fft=6, hop=3),
    # magnitude, power
    *(
        case(name, *args)
        for name in ("magnitude", "power")
        for args in [(F(3, 5, 2),), (F(2, 2),), (F(2),), (F(1, 1, 2),), (F(0, 3, 2),)]
    ),
    # filters
    case("lfilter", F(5, 17), F(3), R(2)),
    case("lfilter", F(11), F(1), R(4)),
    case("lfilter", F(3, 3, 3), F(3), R(3)),
    case("lfilter", F(2, 7), F(5), F(1)),  # no recurrence
    case("lfilter", F(3), F(5), R(2)),  # longer than the signal
    case("lfilter", F(1), F(1), F(1)),
    case("lfilter", F(0, 5), F(2), R(2)),
    case("pre_emphasis", F(2, 7)),
    case("pre_emphasis", F(2, 3, 5), coefficient=0.5),
    case("pre_emphasis", F(1), coefficient=1.0),
    case("pre_emphasis", F(3, 0), coefficient=0.0),
    case("deltas", F(2, 7, 3)),
    case("deltas", F(11, 2), width=3),
    case("deltas", F(2, 3, 2, 5), width=9),  # longer than the signal
    case("deltas", F(1, 1)),
    case("deltas", F(3, 0, 2)),
    # mel
    case("mel", U(3, 17), rate=16000.0, mels=5),
    case("mel", U(2, 13), rate=8000.0, mels=7, low=100.0, high=3000.0, scale="htk", norm=None, n_fft=25),
    case("mel", U(2, 3, 7), rate=6000.0, mels=7, norm=None),
    case("mel", U(5), rate=2.0, mels=11, scale="htk"),  # more bands than bins
    case("mel", U(2, 1), rate=1.0, mels=1, n_fft=1),
    case("mel", U(0, 5), rate=8000.0, mels=3),
    # log_mel
    case("log_mel", F(2, 37), rate=8000.0, n_fft=12, hop=5, mels=3, span=0.5, gain=10.0, offset=3.0),
    case(
        "log_mel", F(41), F(9), rate=8000.0, n_fft=12, mels=5, power=1, floor=0.5, padding=(2, 0), scale="htk"
    ),
    case("log_mel", F(3, 2, 11), rate=8000.0, n_fft=6, mels=2, norm=None, low=300.0, high=3000.0, width=4),
    case("log_mel", F(0, 11), rate=8000.0, n_fft=6, mels=2, span=8.0, padding_mode="zeros"),
    # mfcc
    case("mfcc", F(2, 37), rate=8000.0, n_fft=12, hop=5, mels=5, coefficients=3, gain=10.0),
    case("mfcc", F(41), F(9), rate=8000.0, n_fft=12, mels=5, coefficients=5, span=0.5),
    case("mfcc", F(0, 11), rate=8000.0, n_fft=6, mels=2, coefficients=1),
    # lstm
    case("lstm", cell(4, 3, 2, "b"), F(3, 5, 3), carried(2, 3), mask=B(3, 5)),
    case("lstm", PROJECTED, F(2, 7, 5), {"h": F(2, 2), "c": F(2, 3)}, mask=B(2, 7), reverse=True),
    case("lstm", cell(4, 2, 3, "b"), F(5, 7, 2), reverse=True),
    case("lstm", cell(4, 3, 3), F(3, 3, 3), carried(3, 3)),
    case("lstm", cell(4, 5, 2, "b"), F(7, 5), carried(2), reverse=True),
    case("lstm", cell(4, 2, 1) | {"b": None}, F(2, 3, 5, 2), mask=B(2, 3, 5), reverse=True),
    case("lstm", cell(4, 1, 1, "b"), F(1, 1, 1)),
    case("lstm", cell(4, 3, 2, "b"), F(0, 3, 3)),
    # gru
    case("gru", cell(3, 3, 2, "b", "c"), F(3, 5, 3), {"h": F(3, 2)}, mask=B(3, 5)),
    case("gru", cell(3, 2, 3, "b", "c"), F(5, 7, 2), reset="before", reverse=True),
    case("gru", cell(3, 3, 3), F(3, 3, 3), {"h": F(3, 3)}),
    case("gru", cell(3, 5, 2, "b"), F(7, 5), {"h": F(2)}, reset="before"),
    case("gru", cell(3, 2, 1, "c") | {"b": None}, F(2, 3, 5, 2), mask=B(2, 3, 5), reverse=True),
    case("gru", cell(3, 1, 1, "b", "c"), F(1, 1, 1)),
    case("gru", cell(3, 3, 2, "b", "c"), F(0, 3, 3)),
    # rnn
    case("rnn", cell(1, 3, 2, "b"), F(3, 5, 3), {"h": F(3, 2)}, mask=B(3, 5)),
    case("rnn", cell(1, 2, 3, "b"), F(5, 7, 2), activation="relu", reverse=True),
    case("rnn", cell(1, 3, 3), F(3, 3, 3), {"h": F(3, 3)}),
    case("rnn", cell(1, 5, 2) | {"b": None}, F(2, 3, 5, 5), mask=B(2, 3, 5), activation="relu"),
    case("rnn", cell(1, 1, 1, "b"), F(1, 1)),
    case("rnn", cell(1, 3, 2, "b"), F(0, 3, 3)),
    # linear_recurrence
    case("linear_recurrence", F(2, 5, 3), F(2, 5, 3, 2), F(2, 3, 2)),
    case("linear_recurrence", F(7, 3), F(7, 3), reverse=True),
    case("linear_recurrence", F(3, 3, 3), F(3, 3, 3)),
    case("linear_recurrence", F(2, 3, 5), F(2, 3, 5, 2, 3), F(2, 5, 2, 3), reverse=True),
    case("linear_recurrence", F(1, 1), F(1, 1), F(1)),
    case("linear_recurrence", F(0, 3, 2), F(0, 3, 2)),
]

# Sizes above 60 with more than 32k reduced elements: where XLA:CPU has miscompiled (docs/guard.md).
LARGE = [
    case("linear", {"w": F(67, 71), "b": F(71)}, F(8, 64, 67)),
    case("conv", {"w": F(3, 3, 5, 64), "b": F(64)}, F(2, 64, 64, 5)),
    case("conv_transpose", {"w": F(4, 4, 5, 64), "b": F(5)}, F(2, 33, 33, 64), stride=2),
    case("layer_norm", {"w": F(67), "b": F(67)}, F(8, 64, 67)),
    case("relu", F(8, 64, 67)),
    # ==== norms, activations, softmax, dropout
    case("rms_norm", {"w": F(67)}, F(8, 64, 67)),
    case("group_norm", {"w": F(66), "b": F(66)}, F(8, 64, 66), groups=3),
    case("batch_norm", {"w": F(67), "b": F(67)}, {"mean": S(67), "var": S(67)}, F(8, 64, 67), train=True),
    case("softmax", F(8, 64, 67)),
    case("gelu", F(8, 64, 67)),
    case("dropout", F(8, 64, 67), rate=0.1, key=K()),
    # ==== products
    case("matmul", F(8, 64, 67), F(67, 71)),
    case("embedding", {"w": F(71, 67)}, I(71, 8, 128)),
    case("moe", mixture(67, 71, 5), F(2, 131, 67)),
    case("attention", F(2, 293, 2, 16), F(2, 601, 1, 16), F(2, 601, 1, 61), causal=True, q_offset=300),
    case("linear_attention", F(4, 128, 2, 16), F(4, 128, 2, 16), F(4, 128, 2, 61)),
    case("multihead", heads(64, 4, 2, 16), F(8, 67, 64), causal=True),
    # ==== pools and losses
    case("max_pool", F(8, 64, 64, 2), kernel=(3, 3), stride=2, padding="same"),
    case("avg_pool", F(2, 640, 67), kernel=(11,), stride=7, padding="same"),
    case("lp_pool", F(2, 640, 67), kernel=(3,), stride=2, padding="same"),
    # ==== grids
    case("patches", F(2, 64, 64, 5), kernel=(3, 3), stride=2, padding="same"),
    case("fold", F(2, 64, 64, 18), size=(66, 66), kernel=(3, 3)),
    case("resize", F(2, 64, 61, 5), size=(31, 127), antialias=True),
    case("pad", F(2, 64, 61, 5), padding=((3, 5), (7, 2)), padding_mode="reflect"),
    case("adaptive_avg_pool", F(2, 64, 61, 5), size=(7, 7)),
    case("adaptive_max_pool", F(2, 64, 61, 5), size=(7, 7)),
    case("pixel_shuffle", F(2, 64, 61, 12), factor=(2, 2)),
    case("pixel_unshuffle", F(2, 128, 62, 3), factor=(2, 2)),
    case("grid_sample", F(2, 64, 61, 5), F(2, 3000, 2)),
    case("mse", F(8, 64, 67), F(8, 64, 67)),
    case("cross_entropy", F(8, 64, 67), I(67, 8, 64), ignore_index=3),
    case("binary_cross_entropy", F(8, 64, 67), U(8, 64, 67)),
    case("cosine", F(8, 64, 67), F(8, 64, 67)),
    case("contrastive", F(131, 67), F(131, 67), F()),
    case("nll", F(8, 64, 67), I(67, 8, 64)),
    case("ctc", F(8, 64, 67), I(66, 8, 20), lengths=I(65, 8, low=41), blank=66),
    # ==== what transformers add
    case("swiglu", F(8, 64, 67), F(8, 64, 67)),
    case("alibi", F(8), t=67, s=71),
    case("rope", F(8, 64, 3, 66), positions=I(1000, 8, 64)),
    case("linear_cross_entropy", F(8, 128, 67), F(67, 4099), I(4099, 8, 128), z_loss=1e-3),
    # ==== sound
    case("stft", F(8, 8 * 1024), n_fft=128, hop=64),
    case("istft", F(8, 64, 65, 2), n_fft=128, hop=64),
    case("magnitude", F(8, 64, 67, 2)),
    case("power", F(8, 64, 67, 2)),
    case("mel", U(8, 64, 129), rate=16000.0, mels=67),
    case("log_mel", F(8, 8 * 1024), rate=16000.0, n_fft=128, hop=64, mels=40),
    case("mfcc", F(8, 8 * 1024), rate=16000.0, n_fft=128, hop=64, mels=40, coefficients=13),
    case("lfilter", F(64, 1024), F(67), R(3)),
    case("pre_emphasis", F(64, 1024)),
    case("deltas", F(8, 64, 67)),
    # ==== recurrences
    case("lstm", cell(4, 61, 17, "b"), F(16, 64, 61)),
    case("gru", cell(3, 61, 17, "b", "c"), F(8, 67, 61)),
    case("rnn", cell(1, 61, 2, "b"), F(8, 67, 61)),
    case("linear_recurrence", U(8, 64, 67), F(8, 64, 67)),
]
