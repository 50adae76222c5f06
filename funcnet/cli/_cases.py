"""Small arguments for every operation of the library, and the laws that `funcnet verify --all` holds it to.

Sizes are distinct primes, so that a transposed or dropped axis cannot pass, with the plain case first.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funcnet.ops.attention import rope
from funcnet.verifier.finding import sizes

__all__ = ["CASES", "DTYPES", "EXACT", "LAWS", "Measured", "draw", "measure", "shapes"]

DTYPES = ("float64", "float32", "bfloat16")
EXACT = 1e-10  # in float64, relative to the largest value or gradient
LAWS = (
    "apply = reference",
    "vjp = jax.vjp(reference)",
    "jax.vjp(apply) = jax.vjp(reference)",
    "a gradient has the dtype of its leaf",
)

Draw = Callable[[np.random.Generator, str], Any]  # of random numbers and the dtype of floats
Case = tuple[tuple[Any, ...], dict[str, Any]]  # positional arguments, options; a Draw for every array


def _normal(*shape: int) -> Draw:
    return lambda rng, dtype: rng.standard_normal(shape).astype(jnp.dtype(dtype))


def _positive(*shape: int) -> Draw:
    """State: never narrower than float32."""
    wide = {"bfloat16": "float32"}
    return lambda rng, dtype: rng.uniform(0.5, 1.5, shape).astype(wide.get(dtype, dtype))


def _unit(*shape: int) -> Draw:
    return lambda rng, dtype: rng.random(shape).astype(jnp.dtype(dtype))


def _probabilities(*shape: int) -> Draw:
    return lambda rng, dtype: rng.dirichlet(np.ones(shape[-1]), shape[:-1]).astype(jnp.dtype(dtype))


def _ids(high: int, *shape: int, low: int = 0) -> Draw:
    return lambda rng, _: rng.integers(low, high, shape)


def _recursion(size: int) -> Draw:
    """Coefficients of a stable recursion, not divided by the first, which is 2."""
    return lambda rng, dtype: np.append(2, rng.random(size - 1) / size).astype(jnp.dtype(dtype))


def _mask(*shape: int) -> Draw:
    return lambda rng, _: rng.random(shape) < 0.6


def _key() -> Draw:
    return lambda rng, _: jax.random.key(int(rng.integers(2**31)))


def _case(*args: Any, **options: Any) -> Case:
    return args, options


def _cell(gates: int, d: int, m: int, *biases: str) -> dict[str, Draw]:
    """The parameters of a recurrence."""
    sizes = {"b": _normal(gates * m), "c": _normal(m)}
    return {"w": _normal(d, gates * m), "u": _normal(m, gates * m)} | {name: sizes[name] for name in biases}


def _heads(d: int, h: int, h_kv: int, e: int) -> dict[str, dict[str, Draw]]:
    """The parameters of multihead."""
    return {
        "q": {"w": _normal(d, h, e), "b": _normal(h, e)},
        "k": {"w": _normal(d, h_kv, e), "b": _normal(h_kv, e)},
        "v": {"w": _normal(d, h_kv, e), "b": _normal(h_kv, e)},
        "o": {"w": _normal(h, e, d), "b": _normal(d)},
    }


def _experts(d: int, h: int, experts: int) -> dict[str, dict[str, Draw]]:
    """The parameters of moe."""
    into = {"w": _normal(experts, d, h), "b": _normal(experts, h)}
    down = {"w": _normal(experts, h, d), "b": _normal(experts, d)}
    return {"router": {"w": _normal(d, experts)}, "up": into, "gate": into, "down": down}


_OF_ONE_ARRAY = """
    celu elu hard_shrink hard_sigmoid hard_silu hard_tanh leaky_relu log_sigmoid mish quick_gelu relu relu6
    selu sigmoid silu soft_shrink softplus softsign tanh tanh_shrink
"""
CASES: dict[str, tuple[Case, ...]] = {
    "adaptive_avg_pool": (_case(_normal(2, 7, 5, 3), size=(3, 5)),),
    "adaptive_max_pool": (_case(_normal(2, 7, 5, 3), size=(3, 5)),),
    "alibi": (_case(_normal(3), t=5, s=7), _case(_normal(3), t=5, s=7, causal=True)),
    "attention": (
        _case(_normal(2, 5, 3, 7), _normal(2, 11, 3, 7), _normal(2, 11, 3, 13)),
        _case(_normal(2, 3, 4, 5), _normal(2, 7, 2, 5), _normal(2, 7, 2, 3), causal=True, mask=_mask(3, 7)),
        _case(
            _normal(2, 5, 2, 3),
            _normal(2, 5, 1, 3),
            _normal(2, 5, 1, 3),
            _normal(2, 1, 5),
            _normal(2),
            causal=True,
            window=4,
            softcap=0.7,
            segment_ids=_ids(2, 2, 5),
            block=(2, 3),
        ),
    ),
    "avg_pool": (
        _case(_normal(2, 7, 11, 3), kernel=(2, 3)),
        _case(_normal(3, 13, 5), kernel=(3,), stride=2, padding="same"),
    ),
    "batch_norm": tuple(
        _case(
            {"w": _normal(5), "b": _normal(5)},
            {"mean": _positive(5), "var": _positive(5)},
            _normal(11, 5),
            train=train,
        )
        for train in (True, False)
    ),
    "bilinear": (_case({"w": _normal(3, 5, 2), "b": _normal(2)}, _normal(7, 3), _normal(7, 5)),),
    "binary_cross_entropy": (_case(_normal(7, 11), _unit(7, 11)), _case(_normal(17), _ids(2, 17))),
    "contrastive": (
        _case(_normal(7, 3), _normal(7, 3), _normal()),
        _case(_normal(5, 3), _normal(5, 3), _normal(), _normal(), pairs="sigmoid"),
    ),
    "conv": (
        _case({"w": _normal(3, 2, 5), "b": _normal(5)}, _normal(7, 11, 2)),
        _case({"w": _normal(2, 3, 2, 5), "b": _normal(5)}, _normal(3, 7, 5, 2), stride=2),
        _case({"w": _normal(3, 2, 2, 6)}, _normal(2, 7, 5, 4), groups=2, dilation=(2, 1), padding="valid"),
    ),
    "conv_transpose": (
        _case({"w": _normal(3, 5, 2), "b": _normal(5)}, _normal(7, 11, 2)),
        _case({"w": _normal(2, 3, 5, 2), "b": _normal(5)}, _normal(3, 7, 5, 2), stride=2),
        _case({"w": _normal(3, 2, 3, 4)}, _normal(2, 7, 5, 4), groups=2, dilation=(2, 1), padding="valid"),
    ),
    "cosine": (_case(_normal(7, 11), _normal(7, 11)),),
    "cross_entropy": (
        _case(_normal(7, 11), _ids(11, 7)),
        _case(_normal(17, 5), _ids(5, 17), ignore_index=3, label_smoothing=0.3),
        _case(_normal(3, 7), _probabilities(3, 7)),
    ),
    "ctc": (
        _case(_normal(3, 7, 5), _ids(5, 3, 2, low=1)),
        _case(_normal(2, 7, 3), _ids(2, 2, 3), lengths=_ids(8, 2, low=6), blank=2),
    ),
    "deltas": (_case(_normal(2, 11, 3)), _case(_normal(7, 5), width=3)),
    "dice": (_case(_normal(7, 11), _unit(7, 11)),),
    "drop_path": (_case(_normal(7, 11), rate=0.3, key=_key()),),
    "dropout": (_case(_normal(7, 11), rate=0.3, key=_key()),),
    "embedding_dropout": (_case(_normal(7, 5), ids=_ids(3, 7), vocabulary=3, rate=0.3, key=_key()),),
    "focal": (_case(_normal(7, 11), _unit(7, 11)), _case(_normal(7, 5), _unit(7, 5), gamma=1.7, alpha=0.3)),
    "hinge": (_case(_normal(7, 11), _normal(7, 11)),),
    "huber": (_case(_normal(7, 11), _normal(7, 11)), _case(_normal(7, 5), _normal(7, 5), delta=0.7)),
    "istft": (
        _case(_normal(2, 5, 4, 2), n_fft=6, hop=2),
        _case(_normal(2, 5, 19, 2), _unit(23), n_fft=36, hop=7, length=5),
    ),
    "kl_div": (_case(_normal(7, 11), _probabilities(7, 11)),),
    "lfilter": (
        _case(_normal(5, 17), _normal(3), _recursion(2)),
        _case(_normal(11), _normal(2), _recursion(5)),
    ),
    "log_mel": (
        _case(_normal(2, 37), rate=8000.0, n_fft=12, hop=5, mels=3),
        _case(_normal(41), _unit(9), rate=8000.0, n_fft=12, mels=5, power=1),
    ),
    "magnitude": (_case(_normal(7, 5, 2)),),
    "mel": (
        _case(_unit(3, 17), rate=16000.0, mels=5),
        _case(_unit(2, 13), rate=8000.0, mels=7, scale="htk", norm=None, n_fft=25),
    ),
    "mfcc": (_case(_normal(2, 37), rate=8000.0, n_fft=12, hop=5, mels=5, coefficients=3),),
    "nll": (_case(_normal(7, 11), _ids(11, 7)), _case(_normal(2, 3, 5), _ids(5, 2, 3), ignore_index=3)),
    "power": (_case(_normal(7, 5, 2)),),
    "pre_emphasis": (_case(_normal(2, 7)), _case(_normal(11), coefficient=0.5)),
    "smooth_l1": (_case(_normal(7, 11), _normal(7, 11)), _case(_normal(7, 5), _normal(7, 5), beta=0.7)),
    "spatial_dropout": (_case(_normal(2, 7, 3, 11), rate=0.3, key=_key()),),
    "embedding": (_case({"w": _normal(7, 5)}, _ids(7, 11)), _case({"w": _normal(2, 3)}, _ids(2, 17))),
    "fold": (_case(_normal(2, 4, 15), size=(7,), kernel=(3,), stride=2, padding="same"),),
    "gelu": (_case(_normal(7, 11)), _case(_normal(7, 11), approximate=True)),
    "grid_sample": (
        _case(_normal(2, 5, 7, 3), _normal(2, 11, 2)),
        _case(_normal(2, 5, 7, 3), _normal(2, 11, 2), method="cubic", padding_mode="reflection"),
    ),
    "group_norm": (
        _case({"w": _normal(6), "b": _normal(6)}, _normal(7, 5, 3, 6), groups=2),
        _case({"w": _normal(10)}, _normal(3, 2, 7, 5, 10), groups=5, spatial=2),
    ),
    "gru": (
        _case(_cell(3, 5, 3, "b", "c"), _normal(2, 7, 5), {"h": _normal(2, 3)}, mask=_mask(2, 7)),
        _case(_cell(3, 5, 3, "b", "c"), _normal(2, 7, 5), reverse=True, reset="before"),
    ),
    "instance_norm": (_case({"w": _normal(5), "b": _normal(5)}, _normal(2, 7, 3, 5)),),
    "l2_norm": (_case(_normal(7, 11)), _case(_normal(2, 3, 5), axis=(0, 2), eps=2.5)),
    "layer_norm": (
        _case({"w": _normal(11), "b": _normal(11)}, _normal(7, 11)),
        _case({"w": _normal(5)}, _normal(2, 3, 5), eps=1e-3),
    ),
    "linear": (
        _case({"w": _normal(11, 13), "b": _normal(13)}, _normal(7, 11)),
        _case({"w": _normal(11, 13)}, _normal(3, 5, 11)),
        _case({"w": _normal(3, 2, 5), "b": _normal(5)}, _normal(7, 3, 2), inputs=2),
    ),
    "linear_cross_entropy": (
        _case(_normal(7, 11), _normal(11, 13), _ids(13, 7)),
        _case(
            _normal(17, 5),
            _normal(5, 19),
            _ids(19, 17),
            ignore_index=3,
            label_smoothing=0.3,
            z_loss=0.1,
            softcap=2.0,
        ),
    ),
    "linear_attention": (
        _case(_normal(2, 7, 3, 5), _normal(2, 7, 3, 5), _normal(2, 7, 3, 2), _normal(2, 7, 3), chunk=3),
        _case(_normal(7, 2, 3), _normal(7, 2, 3), _normal(7, 2, 5), None, _normal(2, 3, 5)),
    ),
    "linear_recurrence": (
        _case(_normal(2, 7, 3), _normal(2, 7, 3, 5), _normal(2, 3, 5)),
        _case(_unit(7, 5), _normal(7, 5), reverse=True),
    ),
    "log_softmax": (_case(_normal(7, 11)), _case(_normal(2, 3, 5), axis=-2)),
    "logsumexp": (_case(_normal(7, 11)), _case(_normal(2, 3, 5), axis=(0, 2), keepdims=True)),
    "lstm": (
        _case(
            _cell(4, 5, 3, "b"), _normal(2, 7, 5), {"h": _normal(2, 3), "c": _normal(2, 3)}, mask=_mask(2, 7)
        ),
        _case(_cell(4, 5, 3), _normal(7, 5), reverse=True),
    ),
    "lp_pool": (
        _case(_normal(2, 7, 11, 3), kernel=(2, 3)),
        _case(_normal(3, 13, 5), p=3.0, kernel=(3,), stride=2),
    ),
    "matmul": (
        _case(_normal(7, 11), _normal(11, 13)),
        _case(_normal(5, 1, 2, 7), _normal(3, 7, 11)),  # both are broadcast
    ),
    "max_pool": (
        _case(_normal(2, 7, 11, 3), kernel=(2, 3)),
        _case(_normal(3, 13, 5), kernel=(3,), stride=2, padding="same"),
    ),
    "moe": (
        _case(_experts(3, 2, 5), _normal(2, 7, 3)),
        _case(_experts(3, 2, 5), _normal(2, 7, 3), k=3, activation="gelu", renormalise=False, capacity=0.7),
    ),
    "mse": (_case(_normal(7, 11), _normal(7, 11)),),
    "multihead": (
        _case(_heads(7, 3, 3, 5), _normal(2, 11, 7)),
        _case(_heads(5, 4, 2, 3), _normal(7, 5), causal=True),  # two query heads share a key head
    ),
    "pad": (_case(_normal(2, 5, 7, 3), padding=((1, 2), (3, 0)), padding_mode="reflect"),),
    "patches": (_case(_normal(2, 7, 5), kernel=(3,), stride=2, padding="same"),),
    "pixel_shuffle": (_case(_normal(2, 5, 7, 18), factor=(2, 3)),),
    "pixel_unshuffle": (_case(_normal(2, 10, 9, 5), factor=(2, 3)),),
    "resize": (
        _case(_normal(2, 5, 7, 3), size=(7, 3)),
        _case(_normal(2, 7, 13, 3), size=(3, 5), method="cubic", antialias=True),
    ),
    "prelu": (_case({"w": _normal(11)}, _normal(7, 11)), _case({"w": _normal(1)}, _normal(7, 5))),
    "rms_norm": (
        _case({"w": _normal(11)}, _normal(7, 11)),
        _case({"w": _normal(5)}, _normal(2, 3, 5), eps=1e-3),
    ),
    "rnn": (
        _case(_cell(1, 5, 3, "b"), _normal(2, 7, 5), {"h": _normal(2, 3)}, mask=_mask(2, 7)),
        _case(_cell(1, 5, 3), _normal(7, 5), reverse=True, activation="relu"),
    ),
    "rope": (
        _case(_normal(2, 5, 3, 14)),
        _case(
            _normal(5, 2, 14),
            config=rope.Config(layout="interleaved", width=6, scaling=rope.Llama3(3.0, 71)),
            positions=_ids(200, 5),
        ),
    ),
    **dict.fromkeys(_OF_ONE_ARRAY.split(), (_case(_normal(7, 11)),)),
    **{name: (_case(_normal(7, 11), _normal(7, 11)),) for name in ("geglu", "glu", "swiglu")},
    "stft": (
        _case(_normal(2, 17), n_fft=6, hop=2),
        _case(_normal(2, 83), _unit(23), n_fft=36, hop=7, padding_mode="zeros"),
    ),
    "threshold": (_case(_normal(7, 11), threshold=0.3, value=-0.7),),
    "softmax": (_case(_normal(7, 11)), _case(_normal(2, 3, 5), axis=-2)),
    "triplet": (_case(_normal(7, 11), _normal(7, 11), _normal(7, 11)),),
}


def draw(case: Case, seed: int, dtype: str = "float32") -> Case:
    """The case with arrays, drawn by NumPy, which need not compile for that.

    Args:
        case: of `CASES`.
        seed: of all.
        dtype: of its floats; state stays in float32 or wider.

    Returns:
        The positional arguments and the options.
    """
    leaves, tree = jax.tree.flatten(case)
    drawn = (
        v(np.random.default_rng([seed, i]), dtype) if callable(v) else v for i, v in enumerate(leaves, 1)
    )
    return jax.tree.unflatten(tree, [jnp.asarray(v) if isinstance(v, np.ndarray) else v for v in drawn])


def shapes(name: str, seed: int) -> str:
    """Those of an operation's first case: ``7×11, 11×13``, and how many more there are."""
    first, *more = CASES[name]
    arrays = [v for v in jax.tree.leaves(draw(first, seed)[0]) if hasattr(v, "shape")]
    text = sizes(arrays)
    return f"{text} and {len(more)} more" if more else text


class Measured(NamedTuple):
    """One case of an operation.

    Attributes:
        errors: of the formula's gradients, by the dtype in which it is computed, against `jax.vjp` of the
            reference in float64, relative to the largest gradient.
        laws: those of `LAWS` that hold.
    """

    errors: dict[str, float]
    laws: tuple[str, ...]


def measure(operation: ModuleType, case: Case, seed: int) -> Measured:
    """Compute one case in every dtype.

    Args:
        operation: with `reference`, `apply` and `vjp`.
        case: of `CASES`.
        seed: of its arguments.
    """
    errors, dtypes_kept, exact = {}, True, ()
    with jax.enable_x64(True):  # for all: dropout draws another mask without it
        options = draw(case, seed)[1]
        functions = (operation.reference, operation.apply, operation.vjp)
        reference, apply, vjp = (functools.partial(f, **options) for f in functions)
        formula = lambda args, dy: vjp(*args)[1](dy)

        def all_ways(args: Any, dy: Any) -> tuple[Any, ...]:
            grads = formula(args, dy)
            moving = tuple(i for i, grad in enumerate(grads) if grad is not None)
            return grads, *(_by_jax(f, moving, args, dy) for f in (reference, apply))

        narrow, wide = (jax.jit(f, compiler_options=_QUICKLY) for f in (formula, all_ways))
        for dtype in DTYPES:
            args, _ = draw(case, seed, dtype)
            dy = _random_like(jax.eval_shape(reference, *args), seed)
            grads, (value, truth), attached = wide(_wide(args), _wide(dy))
            if dtype == "float64":
                exact = (_error(attached[0], value), _error(grads, truth), _error(attached[1], truth))
            else:
                grads = narrow(args, dy)
            errors[dtype] = _error(grads, truth)
            leaves = jax.tree.leaves(
                [arg for arg, grad in zip(args, grads, strict=False) if grad is not None]
            )
            dtypes_kept &= [v.dtype for v in jax.tree.leaves(grads)] == [v.dtype for v in leaves]
    holds = [*(error <= EXACT for error in exact), dtypes_kept]
    return Measured(errors, tuple(itertools.compress(LAWS, holds)))


# Most of the time is compiling, and each program is run once or three times.
_QUICKLY: Any = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
if jax.__version_info__ < (0, 11):  # MLIR's emitters take half of the time; later versions know no others
    _QUICKLY["xla_cpu_use_fusion_emitters"] = False


def _by_jax(f: Callable[..., Any], moving: tuple[int, ...], args: Sequence[Any], dy: Any) -> tuple[Any, Any]:
    """f(*args), and by jax.vjp its gradients of the arguments that are counted in `moving`."""

    def of_moving(*values: Any) -> Any:
        given = dict(zip(moving, values, strict=True))
        return f(*(given.get(i, arg) for i, arg in enumerate(args)))

    y, pullback = jax.vjp(of_moving, *(args[i] for i in moving))
    return y, pullback(dy)


def _random_like(tree: Any, seed: int) -> Any:
    rng = np.random.default_rng([seed, 0])  # those of arguments count from 1
    return jax.tree.map(lambda v: jnp.asarray(rng.standard_normal(v.shape).astype(v.dtype)), tree)


def _wide(tree: Any) -> Any:
    """The floats in float64, exactly."""
    cast = lambda v: jnp.asarray(np.asarray(v).astype("float64"))
    return jax.tree.map(lambda v: cast(v) if jnp.issubdtype(v.dtype, jnp.floating) else v, tree)


def _error(got: Any, want: Any) -> float:
    """The largest error of any leaf, relative to the largest element of all; infinite if it is not finite."""
    got, want = ([np.asarray(v).astype("float64") for v in jax.tree.leaves(tree)] for tree in (got, want))
    error = max(float(np.abs(g - w).max()) for g, w in zip(got, want, strict=True))
    error /= max(float(np.abs(w).max()) for w in want) or 1.0
    return error if math.isfinite(error) else math.inf
