"""The table of hard inputs that the law of tests/test_numbers.py runs over: a case, and what is done to it.

A row is a case of tests/cases.py, whose arguments may be NumPy arrays too, and changes, each of them one
input of the same shapes: so a row costs a few compiled programs, however many changes it has. A change names
a leaf by its number among the float leaves of the arguments (dicts sorted by key; -1 is the last), or "dy",
the cotangent, or all of them, "every" and "every dy", and says what it becomes. A tuple of changes is one
input.

- `add`, `times`, `put`: the operation sees it; the truth is `reference` of it in float64.
- `poison`: NaN, an infinity, 1e6. What does not see it must not change: the truth is `reference` in float64
  with an ordinary number in its place, wherever another ordinary number there changes nothing.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import funcnet as fn
from tests.cases import FAMILIES, Case, F, I, K, P, R, S, U, case, cell, every, heads, mixture

INF, NAN = np.inf, np.nan


@dataclasses.dataclass(frozen=True)
class Change:
    """`to` of what is at `index` of `leaf`."""

    name: str
    leaf: int | str
    to: Callable[[np.ndarray], Any]
    index: Any = ...
    poison: bool = False

    def __call__(self, values: list[np.ndarray], dy: list[np.ndarray], harmless: int | None) -> None:
        """Change them in place; with `harmless`, a seed, a poison is a normal number instead."""
        some = {"dy": dy[:1], "every": values, "every dy": dy}
        for x in some[self.leaf] if isinstance(self.leaf, str) else [values[self.leaf]]:
            ordinary = self.poison and harmless is not None
            x[self.index] = _normal(harmless, x[self.index]) if ordinary else self.to(x[self.index])


def _normal(seed: int | None, like: Any) -> Any:
    return np.random.default_rng(seed).standard_normal(np.shape(like))


@dataclasses.dataclass(frozen=True)
class Hard:
    case: Case
    changes: tuple[tuple[Change, ...], ...]
    how: dict[str, Any]  # options of `apply` alone
    truth: Callable[..., Any] | None  # in place of a `reference` that overflows
    products: bool  # results are measured against those of the absolute values
    orders: dict[str, int]  # by dtype; 2: the gradient's derivatives too

    @property
    def id(self) -> str:
        shapes = (
            []
            if self.case.op in FAMILIES
            else ["x".join(map(str, getattr(a, "shape", ()))) for a in self.case.args]
        )
        return "-".join(
            [
                self.case.op,
                *shapes,
                *(f"{k}={v}" for k, v in self.case.options.items() if not hasattr(v, "shape")),
            ]
        )


def hard(
    case: Case,
    *changes: Change | tuple[Change, ...],
    how: dict[str, Any] | None = None,
    truth: Callable[..., Any] | None = None,
    products: bool = False,
    orders: dict[str, int] | None = None,
) -> Hard:
    every = tuple(c if isinstance(c, tuple) else (c,) for c in changes)
    return Hard(case, every, how or {}, truth, products, orders or {"float32": 2, "bfloat16": 2})


def add(leaf: int | str, by: Any, index: Any = ...) -> Change:
    return Change(f"leaf {leaf}[{index}] + {by}", leaf, lambda x: x + by, index)


def times(leaf: int | str, by: Any, index: Any = ...) -> Change:
    return Change(f"leaf {leaf}[{index}] · {by}", leaf, lambda x: x * by, index)


def put(leaf: int | str, index: Any, value: Any) -> Change:
    return Change(f"leaf {leaf}[{index}] = {value}", leaf, lambda x: np.broadcast_to(value, x.shape), index)


def poison(leaf: int | str, index: Any, value: float) -> Change:
    return Change(f"poison {value} at leaf {leaf}[{index}]", leaf, lambda x: value, index, poison=True)


def poisons(leaf: int | str, index: Any, *values: float) -> list[Change]:
    return [poison(leaf, index, value) for value in values or (NAN, INF, -INF, 1e6)]


def grid(*shape: int) -> np.ndarray:
    """Halves, so that products are exact, and sums of them too, beside 2²⁰."""
    return np.random.default_rng(0).integers(-4, 5, shape) / 2


PLAIN = times(0, 1)
ROW = np.array([[35.0, 20.0, 20.0]])  # a confident one, far from the origin
OFFSETS = [add(0, by) for by in (1e3, 1e8, -1e9)]
IGNORED = np.array([0, -1, 2])
TRANSCRIPTS = np.array([[1, 1, -7], [1, 2, 3], [2, 3, 99]])
FAR = [add(-1, 1e3), add(-1, 1e5), (times(-1, 8), add(-1, 1e8)), (times(-1, 64), add(-1, -1e9))]
FIRST, VALUES = {"float32": 1, "bfloat16": 1}, {"float32": 1}  # where to compile costs much
LEAST = float(np.finfo(np.float32).min)
STEPS = np.array([[False, True, True, False], [True] * 4])
MASK = np.array([[True, True, True, False], [True] * 4])[:, None, None]

POINTS = np.random.default_rng(0).random((1, 4, 2)) * 1.5 - 0.6


def _lp(x, kernel, **options):
    """The reference on a scale on which squares do not overflow, or vanish."""
    scale = jax.lax.stop_gradient(jnp.abs(jnp.where(jnp.isfinite(x), x, 0)).max())
    return fn.lp_pool.reference(x / scale, kernel=kernel, **options) * scale


def true_activations(xs: dict[str, Any]) -> dict[str, Any]:
    """Their definitions where they overflow in float64, in other words than funcnet's."""
    logistic = lambda x: jnp.exp(-jnp.logaddexp(0, -x))
    others = {
        "celu": lambda x, alpha: jax.nn.celu(x, alpha),
        "elu": lambda x, alpha: jax.nn.elu(x, alpha),
        "gelu": lambda x: x * jax.scipy.special.ndtr(x),
        "glu": lambda g, u: logistic(g) * u,
        "log_sigmoid": lambda x: -jnp.logaddexp(0, -x),
        "mish": lambda x: x * jnp.tanh(jnp.logaddexp(0, x)),
        "quick_gelu": lambda x: x * logistic(1.702 * x),
        "selu": jax.nn.selu,
        "sigmoid": logistic,
        "silu": jax.nn.silu,
        "softplus": lambda x, beta: jnp.logaddexp(0, beta * x) / beta,
        "swiglu": lambda g, u: jax.nn.silu(g) * u,
        "tanh": lambda x: jnp.where(abs(x) < 1, jnp.tanh(x), _tanh_far_out(x)),
        "tanh_shrink": lambda x: jnp.where(abs(x) < 1e-2, _tanh_shrink_near_0(x), x - _tanh_far_out(x)),
    }
    options = every("activations").module.members
    return {
        name: others.get(name, getattr(fn, name).reference)(*x, **options[name]) for name, x in xs.items()
    }


def _tanh_far_out(x: Any) -> Any:
    """Where 1 − tanh² of JAX's derivative is 0 in float64."""
    e = jnp.exp(-2 * abs(x))
    return jnp.sign(x) * (1 - e) / (1 + e)


def _tanh_shrink_near_0(x: Any) -> Any:
    x = jnp.clip(x, -1, 1)
    return x**3 / 3 - 2 * x**5 / 15 + 17 * x**7 / 315 - 62 * x**9 / 2835


def length(x: Any) -> Any:
    """√(re² + im²), and 0 at 0 with derivative 0."""
    square = (x**2).sum(-1)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def audible(x: Any, *, rate: int, n_fft: int, hop: int, mels: int, floor: float, **how: Any) -> Any:
    """log_mel of magnitudes, of which those of silence have no gradient."""
    pairs = fn.stft.reference(x, n_fft=n_fft, hop=hop, padding_mode=how["padding_mode"])
    return jnp.log10(jnp.maximum(fn.mel.reference(length(pairs), rate=rate, mels=mels), floor))


HARD = [
    # cross_entropy
    hard(case("cross_entropy", ROW, np.array([0])), PLAIN, add(0, 1e3), add(0, -1e3), orders=VALUES),
    hard(
        case("cross_entropy", F(3, 5), I(5, 3)), *OFFSETS, times(0, 100), *poisons(0, 1), poison("dy", 1, NAN)
    ),
    hard(
        case("cross_entropy", F(3, 5), I(5, 3), label_smoothing=0.1), *OFFSETS, times(0, 100), *poisons(0, 1)
    ),
    hard(
        case("cross_entropy", F(3, 5), IGNORED, ignore_index=-1),
        *poisons(0, 1),
        *poisons(0, (1, 2)),
        poison("dy", 1, NAN),
        put(0, (0, 1), -INF),
    ),
    hard(
        case("cross_entropy", F(2, 3), P(2, 3)),
        *OFFSETS,
        times(0, 100),
        (put(0, 0, ROW[0]), put(1, 0, [1, 0, 0])),
        (put(0, (0, 0), -INF), put(1, 0, [0, 0.5, 0.5])),
        *poisons(0, 1),
    ),
    # binary_cross_entropy
    hard(
        case("binary_cross_entropy", F(3), U(3)),
        *(add(0, by) for by in (1e2, -1e3, 1e8)),
        *poisons(0, 1, NAN, 1e6),
        poison("dy", 1, NAN),
    ),
    hard(
        case("binary_cross_entropy", np.array([40.0]), np.array([1])),
        PLAIN,
        times(0, -1),
        *(put(0, 0, value) for value in (INF, -INF)),
    ),
    hard(case("binary_cross_entropy", np.array([-30.0]), np.array([0.0])), PLAIN, add(1, 0.5), orders=VALUES),
    hard(case("binary_cross_entropy", F(3), np.array([0, 5, 1])), *poisons(0, 1), poison("dy", 1, NAN)),
    # losses of a line: huge, far off, beside another; of vectors that are 0, equal or nearly
    *(
        hard(
            case(name, F(3, 5), F(3, 5)),
            *(times(0, by) for by in (30, 1e4, 1e15)),
            poison("dy", 1, NAN),
            orders=FIRST,
        )
        for name in ("huber", "smooth_l1", "hinge")
    ),
    hard(
        case("focal", F(3, 5), U(3, 5)),
        *(put(0, ..., value) for value in (30.0, -30.0, 1e4, -1e4)),
        (put(0, ..., 40.0), put(1, ..., 1.0)),
        (put(0, ..., 40.0), put(1, ..., 0.0)),
        *poisons(0, 1, NAN, 1e6),
        orders=FIRST,
    ),
    hard(
        case("kl_div", -3 * np.random.default_rng(0).random((3, 5)), P(3, 5)),
        put(1, 1, 0.0),
        (put(0, 1, -INF), put(1, 1, 0.0)),
        *poisons(0, 1),
        orders=FIRST,
    ),
    hard(
        case("dice", F(3, 5), U(3, 5), smooth=0.0),
        (put(0, ..., 20.0), put(1, ..., 1.0)),
        (put(0, 1, -1e4), put(1, 1, 0.0)),
        *poisons(0, 1, NAN, 1e6),
        orders=FIRST,
    ),
    hard(
        case("cosine", F(3, 5), F(3, 5)),
        *(put(i, 1, 0.0) for i in (0, 1)),
        (put("every", 1, 0.0),),
        (put(0, 1, [1, 2, 3, 4, 5]), put(1, 1, [1, 2, 3, 4, 5.001])),
        *poisons(0, 1),
        poison("dy", 1, NAN),
    ),
    hard(
        case("cosine", F(3, 5), F(3, 5)),
        *(times(0, by) for by in (1e-20, 1e20)),
        *((times(0, a), times(1, b)) for a, b in ((1e-30, 1e-20), (5e37, 5e37))),
        orders=FIRST,
    ),
    hard(
        case("smooth_l1", F(3, 5), F(3, 5), beta=1e25),
        *(times("every", by) for by in (1e-10, 1e20)),
        orders=FIRST,
    ),
    hard(
        case("triplet", F(3, 5), F(3, 5), F(3, 5)),
        (put(0, 1, 1.0), put(1, 1, 1.0)),
        (put(0, 1, 1.0), put(2, 1, 1.0)),
        *(times("every", by) for by in (1e-20, 1e20)),
        *poisons(0, 1),
    ),
    hard(
        case("nll", F(3, 5), IGNORED, ignore_index=-1),
        *poisons(0, 1),
        *poisons(0, (0, 3)),
        poison("dy", 1, NAN),
    ),
    *(
        hard(
            case("contrastive", F(3, 5), F(3, 5), np.array(1.5), **options),
            times(0, 30),
            times(2, -30),
            products=True,
            orders=FIRST,
        )
        for options in ({}, {"pairs": "sigmoid"})
    ),
    # ctc: far off, confident, classes of −∞, frames and examples that do not count, labels that cannot be
    hard(
        case("ctc", F(3, 5, 4), TRANSCRIPTS, lengths=np.array([5, 4, 1]), label_lengths=np.array([2, 3, 2])),
        *OFFSETS,
        times(0, 100),
        put(0, (0, ..., 1), -INF),
        put(0, (1, 2), [-INF, 0, -INF, 0]),
        put(0, (1, ..., 3), -INF),
        *poisons(0, (1, 4)),
        *poisons(0, (2, 0, 1)),
        poison("dy", 2, NAN),
    ),
    hard(
        case("ctc", F(3, 4, 3), np.array([[1, 2], [1, 0], [3, 1]])),
        *poisons(0, 1),
        *poisons(0, 2),
        poison("dy", 1, NAN),
    ),
    hard(case("ctc", 35 * np.eye(3)[[[0, 1, 1, 0, 2]]] + 5, np.array([[1, 2]])), PLAIN, add(0, 1e3)),
    # linear_cross_entropy
    hard(
        case("linear_cross_entropy", grid(3, 3), grid(3, 7), I(7, 3)),
        (put(0, (..., 0), 1), add(1, 2**20, 0)),
        times(0, 30),
        how={"chunk": 3},
        orders=VALUES,
    ),
    hard(
        case("linear_cross_entropy", grid(3, 3), grid(3, 7), IGNORED, ignore_index=-1),
        *poisons(0, 1),
        poison("dy", 1, NAN),
    ),
    hard(
        case(
            "linear_cross_entropy",
            grid(3, 3),
            grid(3, 5),
            IGNORED,
            ignore_index=-1,
            label_smoothing=0.1,
            z_loss=0.1,
            softcap=2.0,
        ),
        *poisons(0, 1),
        how={"chunk": 2},
        orders=FIRST,
    ),
    # mse
    hard(
        case("mse", F(3, 5), F(3, 5)),
        *((add(0, by), add(1, by)) for by in (1e3, 1e8)),
        *poisons(0, 1),
        *poisons(1, (1, 2)),
        poison("dy", 1, NAN),
    ),
    # softmax
    hard(case("softmax", F(3, 5)), add(0, 80), put(0, (0, 1), -INF), *poisons(0, 1), poison("dy", 1, NAN)),
    hard(
        case("softmax", F(3, 5), axis=0), *OFFSETS, times(0, 1e3), *poisons(0, (1, 2)), truth=jax.nn.softmax
    ),
    hard(
        case("log_softmax", F(3, 5)),
        *OFFSETS,
        times(0, 1e3),
        put(0, (0, 1), -INF),
        *poisons(0, 1),
        poison("dy", 1, NAN),
        truth=jax.nn.log_softmax,
    ),
    hard(
        case("logsumexp", F(3, 5)),
        *OFFSETS,
        times(0, 1e3),
        put(0, (0, 1), -INF),
        *poisons(0, 1),
        poison("dy", 1, NAN),
        truth=lambda x: jax.nn.logsumexp(x, -1),
    ),
    hard(
        case("l2_norm", F(3, 5)),
        times(0, 1e-3),
        times(0, 1e30),
        (put(0, ..., 1e38), put(0, (0, 0), 2e38)),
        times(0, 1e-11),
        put(0, 1, 0),
        *poisons(0, 1),
        poison("dy", 1, NAN),
        orders={"float32": 1},
    ),
    hard(case("prelu", {"w": F(5)}, F(3, 5)), times(-1, 1e30), poison("dy", 1, NAN), orders={"float32": 2}),
    # norms: offsets of 1e5 spreads, the first element far off, a row, channel or group beside others
    hard(
        case("layer_norm", {"w": F(7), "b": F(7)}, F(3, 7)),
        *FAR,
        (times(-1, 1e-3), add(-1, 1e3)),
        put(-1, (..., 0), 1e5),
        put(-1, 1, 1e3),
        *poisons(-1, 1),
        poison("dy", 1, NAN),
    ),
    hard(
        case("rms_norm", {"w": F(7)}, F(3, 7)), *FAR, times(-1, 1e-20), *poisons(-1, 1), poison("dy", 1, NAN)
    ),
    hard(
        case("group_norm", {"w": F(6), "b": F(6)}, F(2, 5, 6), groups=3),
        *FAR,
        put(-1, (..., 0, 0), 1e5),
        *poisons(-1, (1, slice(None), slice(2, 4))),
        poison("dy", 1, NAN),
    ),
    *(
        hard(
            case("batch_norm", {"w": F(3), "b": F(3)}, {"mean": S(3), "var": S(3)}, F(13, 3), **options),
            *FAR,
            put(-1, 0, 1e5),
            *poisons(-1, (..., 1)),
            *more,
            orders={"float32": 2},
        )
        for options, more in (
            ({"train": True}, ()),
            (
                {"train": True, "mask": np.arange(13) % 3 > 0},
                (*poisons(-1, 3), *poisons("dy", 3), *poisons(-1, (0, 1))),
            ),
            ({"train": True, "mask": np.arange(13) > 12}, poisons(-1, 3)),
        )
    ),
    # convolution: in each form that a CPU takes by itself, an element of x and one of dy that meets no border
    *(
        hard(
            case("conv", {"w": F(*w)}, F(*x), **options),
            *poisons(-1, (0, *([2] * (len(x) - 2)), 0)),
            *poisons("dy", (0, *([at] * (len(x) - 2)), 0), NAN, 1e6),
            add(-1, 1e3),
            products=True,
            orders={"float32": 1},
        )
        for at, w, x, options in (
            (4, (4, 3, 5), (1, 9, 3), {"padding": "causal"}),
            (0, (3, 3, 5, 7), (1, 6, 6, 5), {"stride": 2}),
            (1, (4, 4, 2, 8), (1, 6, 6, 2), {"stride": 2}),
            (0, (3, 3, 3, 2, 8), (1, 4, 4, 4, 2), {"stride": 2}),
            (2, (3, 3, 2, 4), (1, 5, 5, 4), {"groups": 2, "dilation": 2}),
            (0, (3, 2, 3), (1, 7, 2), {"padding_mode": "circular"}),
        )
    ),
    hard(
        case("conv_transpose", {"w": F(3, 3, 5, 6)}, F(1, 3, 4, 6), stride=2),
        *poisons(-1, (0, 1, 2, 0)),
        poison("dy", (0, 3, 1, 0), NAN),
        products=True,
        orders={"float32": 1},
    ),
    # pools
    hard(case("max_pool", F(2, 7, 3), kernel=(3,), stride=2, padding="same"), *FAR, *poisons(0, (1, 3, 0))),
    hard(
        case("avg_pool", F(2, 7, 3), kernel=(3,), stride=2, padding="same"),
        *FAR,
        *poisons(0, (1, 3, 0)),
        poison("dy", (1, 2, 0), NAN),
        products=True,
    ),
    hard(
        case("lp_pool", F(2, 7, 3), kernel=(3,), stride=2, padding="same"),
        *(times(0, by) for by in (1e-30, 1e30)),
        put(0, 0, 0.0),
        put(0, (0, slice(2, 5)), 1e-36),
        poison(0, (1, 3, 0), NAN),
        poison("dy", (1, 2, 0), NAN),
        truth=_lp,
        orders={"float32": 1, "bfloat16": 1},
    ),
    # grids: what a point does not see, be it in the same window of a matrix
    *(
        hard(
            case(name, F(2, 7, 3), **options),
            *FAR,
            *([] if "max" in name else poisons(0, (1, 3, 0))),  # the largest leaves nothing to others
            *poisons("dy", (1, 2, 0), NAN, 1e6),
            products=True,
            orders=FIRST,
        )
        for name, options in (
            ("resize", {"size": (5,)}),
            ("resize", {"size": (11,), "method": "cubic"}),
            ("resize", {"size": (3,), "antialias": True}),
            ("pad", {"padding": ((2, 3),), "padding_mode": "reflect"}),
            ("pad", {"padding": ((9, 9),), "padding_mode": "edge"}),
            ("adaptive_avg_pool", {"size": (3,)}),
            ("adaptive_max_pool", {"size": (3,)}),
            ("patches", {"kernel": (3,), "padding": "same"}),
        )
    ),
    hard(
        case("fold", F(2, 5, 6), size=(7,), kernel=(3,)),
        *FAR,
        *poisons(0, (1, 3, 0)),
        poison("dy", (1, 2, 0), NAN),
        products=True,
        orders=FIRST,
    ),
    *(
        hard(
            case("grid_sample", F(1, 4, 5, 2), POINTS, padding_mode=mode),
            *poisons(0, (0, 1, 2, 0)),
            poison(1, (0, 1), NAN),
            *poisons("dy", (0, 2), NAN, 1e6),
            add(0, 1e3),
            put(1, (0, 1, 0), 1e6 if mode == "zeros" else 3.0),
            products=True,
            orders=FIRST,
        )
        for mode in ("zeros", "border", "reflection")
    ),
    # functions of each element alone: saturated, huge, tiny
    hard(
        every("activations", 5, of=(1,)),
        *(put("every", ..., value) for value in (12.0, -12.0, 30.0, -30.0, 1e4, -1e4, 1e30, -3e38)),
        poison("every dy", 1, NAN),
        truth=true_activations,
    ),
    hard(
        every("activations", 5, of=(1,)),
        *(times("every", by) for by in (1e-3, 1e-20)),
        truth=true_activations,
        orders={"float32": 1},
    ),
    hard(
        every("activations", 5, of=(2,)),
        *(tuple(put(i, ..., value) for i in (0, 2, 4)) for value in (12.0, -12.0, 30.0, -30.0, 1e4, -1e4)),
        *poisons("every", 1),
        truth=true_activations,
    ),
    # products, rows of a table, masks
    hard(
        case("linear", {"w": F(5, 3), "b": F(3)}, F(4, 5)),
        *FAR,
        *poisons(-1, 1),
        *poisons(0, 1),
        poison("dy", 1, NAN),
        products=True,
    ),
    hard(
        case("bilinear", {"w": F(3, 5, 2), "b": F(2)}, F(4, 3), F(4, 5)),
        add(1, 1e3),
        *poisons(2, 1),
        *poisons(1, 1),
        poison("dy", 1, NAN),
        products=True,
        orders={"float32": 1},
    ),
    hard(  # tokens apart, though they share tiles; the balance sees all of them (NaN in x: tests/ops/dense)
        case("moe", mixture(3, 2, 2), F(2, 3, 3), activation="gelu_tanh"),
        add(-1, 1e3),
        times(-1, 30),
        poison("dy", (0, 1), NAN),
        products=True,
        orders=FIRST,
    ),
    hard(case("matmul", F(4, 5), F(5, 3)), *FAR, *poisons(0, 1), *poisons(1, (..., 1)), products=True),
    hard(
        case("embedding", {"w": F(5, 3)}, np.array([0, 3, 3, 1]), padding_index=1),
        *poisons(0, 3),
        *poisons(0, 1),
        *poisons("dy", 1),
        *poisons("dy", 3),
    ),
    hard(case("dropout", F(13), rate=0.5, key=K()), *poisons(0, 1), *poisons(0, 2), poison("dy", 1, NAN)),
    hard(case("dropout", F(13), rate=1.0, key=K()), *poisons(0, 1), poison("dy", 1, NAN)),
    hard(case("rope", F(3, 2, 4), positions=np.array([0, 7, 100000])), *FAR, *poisons(0, 1), products=True),
    # attention: q, k, v, bias, sinks; a key that no query sees, then what some do
    hard(
        case(
            "attention",
            F(4, 2, 3),
            F(4, 1, 3),
            F(4, 1, 2),
            F(4, 4),
            F(2),
            causal=True,
            mask=np.array([True, False, True, True]),
            softcap=2.0,
        ),
        *poisons(1, 1),
        *poisons(2, 1),
        *poisons(3, (..., 1)),
        add(3, -1e9),
    ),
    hard(
        case(
            "attention",
            F(6, 1, 3),
            F(6, 1, 3),
            F(6, 1, 2),
            F(6, 6),
            causal=True,
            segment_ids=np.array([0, 0, 0, 1, 1, 1]),
            block=(6, 3),
        ),
        *(add(3, by) for by in (-1e9, -1e4, 1e8)),
        *(put(3, (..., 3), value) for value in (-INF, -1e9, LEAST)),
        *(put(3, 1, value) for value in (-INF, LEAST)),
        times(0, 1e3),
        *(poison(leaf, at, value) for leaf in (0, 1, 2) for at in (1, 4) for value in (NAN, INF, 1e6)),
        poison(2, (1, 0, 1), NAN),
        orders=FIRST,
    ),
    hard(  # a decay that leaves nothing, then one that leaves much; another sequence and another head
        case("linear_attention", F(2, 5, 2, 3), F(2, 5, 2, 3), F(2, 5, 2, 2), F(2, 5, 2), chunk=3),
        times(0, 1e3),
        add(2, 1e3),
        put(3, (0, 1), -INF),
        put(3, (0, 1), -1e4),
        (put(3, 0, -1e-3), put(3, (0, 1), -80)),
        *(poison(leaf, at, NAN) for leaf in (0, 1, 2, 3) for at in (1, (0, slice(None), 1))),
        poison("dy", 1, NAN),
        orders=FIRST,
    ),
    # multihead
    hard(
        case("multihead", heads(3, 2, 1, 2, bias=""), F(2, 4, 3), causal=True, mask=MASK),
        *(poison(-1, (0, 3), value) for value in (NAN, INF, 1e6)),
        poison(-1, (0, 1), NAN),
        times(-1, 30),
        orders=VALUES,
    ),
    # sound: silence, what is huge or tiny, samples and bins that something does not see
    hard(
        case("stft", F(2, 12), F(4), n_fft=4, hop=3, padding=(2, 0), padding_mode="zeros"),
        times(0, 1e30),
        times(0, 1e-30),
        add(0, 1e6),
        put(0, 0, 0.0),
        *poisons(0, (0, 11)),  # which no frame reaches
        *poisons(0, 1),
        *poisons("dy", (0, 1, 0, 1)),
        *poisons("dy", 1),
        products=True,
        orders=FIRST,
    ),
    hard(
        case("stft", F(2, 80), n_fft=36, hop=20, padding="valid"),
        times(0, 1e30),
        add(0, 1e6),
        *poisons(0, (0, 60)),  # which Hann's window gives no weight
        *poisons("dy", (0, 1, 18, 1)),
        products=True,
        orders=FIRST,
    ),
    hard(
        case("istft", F(2, 5, 3, 2), F(4), n_fft=4, hop=2, padding="valid"),
        times(0, 1e30),
        add(0, 1e6),
        *poisons(0, 1),
        *poisons(0, (0, 1, 0, 1)),  # a sine that is 0
        *poisons(0, (0, 4)),
        *poisons("dy", 1),
        products=True,
        orders=FIRST,
    ),
    hard(
        case("lfilter", F(2, 9), F(3), R(3)),
        times(0, 1e30),
        add(0, 1e5),
        put(0, 0, 0.0),
        *poisons(0, 1),
        *poisons(0, (0, 5)),
        *poisons("dy", (0, 5)),
        products=True,
        orders=FIRST,
    ),
    hard(
        case("pre_emphasis", F(2, 7)), add(0, 1e5), *poisons(0, (0, 3)), *poisons("dy", (0, 3)), products=True
    ),
    hard(
        case("deltas", F(2, 7, 2)),
        add(0, 1e5),
        *poisons(0, (0, 3)),
        *poisons(0, (0, 6, 1)),
        *poisons("dy", (0, 0)),
        products=True,
    ),
    hard(
        case("mfcc", F(2, 20), rate=8000.0, n_fft=8, hop=4, mels=3, coefficients=2, floor=1e-6),
        times(0, 1e10),
        put(0, 0, 0.0),
        *poisons(0, 1),
        products=True,
        orders=FIRST,
    ),
    hard(
        case("magnitude", F(3, 2)),
        times(0, 1e30),
        times(0, 1e-25),
        put(0, 0, 0.0),
        put(0, (0, 1), 0.0),
        (put(0, 0, 1e-30), put(0, 1, 1e30)),
        *poisons(0, 1),
        *poisons("dy", 1),
        truth=length,
        orders=FIRST,
    ),
    hard(case("power", F(3, 2)), times(0, 1e15), times(0, 1e-15), put(0, 0, 0.0), *poisons(0, 1)),
    hard(
        case("mel", U(2, 9), rate=8000.0, mels=4, low=500.0),
        times(0, 1e30),
        *poisons(0, (0, 0)),
        *poisons(0, (0, 3)),
        *poisons(0, (0, 8)),
        *poisons("dy", (0, 1)),
        products=True,
        orders=FIRST,
    ),
    *(
        hard(
            case("log_mel", F(2, 20), rate=8000.0, n_fft=8, hop=4, mels=3, floor=1e-6, **how),
            times(0, 1e10),
            times(0, 1e-5),
            put(0, 0, 0.0),
            put(0, (0, slice(4, 20)), 0.0),
            *poisons(0, 1),
            *poisons("dy", 1),
            truth=None if how["power"] == 2 else audible,
            orders=FIRST,
        )
        for how in ({"power": 2, "span": 2.0}, {"power": 1, "padding_mode": "zeros"})
    ),
    hard(
        case("linear_recurrence", F(2, 5, 3), F(2, 5, 3)),
        times(1, 1e3),
        add(1, 1e3),
        (put(0, (0, slice(1, 5)), 1e8), put(1, (0, slice(None)), 0)),
        *poisons(1, 1),
        *poisons(1, (0, 4)),
        poison(0, (0, 0), NAN),
        poison("dy", 1, NAN),
        orders=FIRST,
    ),
    # recurrences: saturated gates, a sequence beside another, padding, at its end and at its beginning
    *(
        hard(
            case(name, cell(gates, 2, 5, *biases), F(2, 4, 2), mask=STEPS, **options),
            times(-1, 8),  # saturates; of sums near 60 one rounding is more of 1 − n² than is allowed
            times(0, 8),
            *(poison(-1, (0, 3), value) for value in (NAN, INF, 1e6)),
            poison(-1, (0, 0), NAN),
            *([] if "activation" in options else [poison(-1, 1, NAN)]),  # dead units see nothing
            *(poison("dy", (0, 3), value) for value in (NAN, 1e6)),
            orders=VALUES if options else FIRST,
        )
        for name, gates, biases, options in (
            ("lstm", 4, "b", {}),
            ("gru", 3, "bc", {}),
            ("gru", 3, "bc", {"reset": "before"}),
            ("rnn", 1, "b", {}),
            ("rnn", 1, "b", {"activation": "relu"}),
        )
    ),
]
