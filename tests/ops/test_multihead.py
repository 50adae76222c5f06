import jax
import jax.numpy as jnp
import numpy as np

from funcnet import rules
from funcnet.errors import DTypeError, ShapeError, StructureError, ValueRangeError
from funcnet.ops import attention, multihead
from tests.errors import golden


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


X = normal(2, 5, 6)
PARAMS = jax.tree.map(
    lambda v: v.astype(jnp.float32), multihead.init(jax.random.key(0), 6, 4, kv_heads=2, head_width=3)
)


def with_leaf(name, leaf, value):
    return {**PARAMS, name: {**PARAMS[name], leaf: value}}


def test_init():
    shapes = jax.tree.map(jnp.shape, multihead.init(jax.random.key(0), 6, 2))
    assert shapes == {
        "q": {"w": (6, 2, 3), "b": (2, 3)},
        "k": {"w": (6, 2, 3), "b": (2, 3)},
        "v": {"w": (6, 2, 3), "b": (2, 3)},
        "o": {"w": (2, 3, 6), "b": (6,)},
    }
    grouped = multihead.init(jax.random.key(0), 100, 20, kv_heads=5, head_width=10, bias=False)
    for name, fan_in in {"q": 100, "k": 100, "v": 100, "o": 200}.items():
        assert abs(grouped[name]["w"].var() * fan_in - 1) < 0.1
    assert all(set(p) == {"w"} for p in grouped.values())


def test_positions_are_permuted_with_the_output():
    y = multihead.apply(PARAMS, X)
    np.testing.assert_allclose(multihead.apply(PARAMS, X[:, ::-1]), y[:, ::-1], rtol=1e-4, atol=1e-5)


def test_causal_output_does_not_depend_on_later_positions():
    f = lambda x: multihead.apply(PARAMS, x, causal=True).sum((0, 2))
    depends = jnp.any(jax.jacobian(f)(X) != 0, (1, 3))
    np.testing.assert_array_equal(depends, np.tri(5, dtype=bool))


def test_mask_changes_something_and_true_is_attend():
    alone = multihead.apply(PARAMS, X, mask=jnp.eye(5, dtype=bool))  # every position sees itself only
    np.testing.assert_allclose(alone[:, 2:3], multihead.apply(PARAMS, X[:, 2:3]), rtol=1e-4, atol=1e-5)
    assert not jnp.allclose(alone, multihead.apply(PARAMS, X))


def test_bias_changes_something():
    y = multihead.apply(PARAMS, X)
    for name in "qvo":
        moved = with_leaf(name, "b", PARAMS[name]["b"] + normal(*PARAMS[name]["b"].shape))
        assert not jnp.allclose(multihead.apply(moved, X), y), name
    # a constant added to every key moves all logits of a query alike
    moved = with_leaf("k", "b", PARAMS["k"]["b"] + 1)
    np.testing.assert_allclose(multihead.apply(moved, X), y, rtol=1e-4, atol=1e-5)


def test_it_is_attention_between_projections():
    with rules.record() as calls:
        multihead.apply(PARAMS, X, causal=True)
    assert [call.operation for call in calls] == [multihead, attention]
    assert calls[1].options["causal"] is True


def test_dtypes():
    half = jax.tree.map(lambda v: v.astype(jnp.bfloat16), PARAMS)
    y, pullback = multihead.vjp(half, X)
    grads, dx, _ = pullback(y)
    assert (y.dtype, dx.dtype) == (jnp.float32, jnp.float32)
    assert {v.dtype for v in jax.tree.leaves(grads)} == {jnp.dtype("bfloat16")}
    y, pullback = multihead.vjp(half, X.astype(jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    assert jnp.all(jnp.isfinite(pullback(y)[1]))


ERRORS = [
    (
        lambda: multihead.apply(PARAMS, X.mT),
        ShapeError,
        "multihead.apply: x has 5 features in its last axis, "
        'but params["q"]["w"] (float32[6, 4, 3]) takes 6.\n'
        "  expected  x: float[*n, t, 6]\n"
        "  got       x: float32[2, 6, 5]\n"
        "  hint      its last two axes, swapped, fit: x.mT.",
    ),
    (
        lambda: multihead.apply(PARAMS, X[0, 0]),
        ShapeError,
        "multihead.apply: x has rank 1, but at least 2 is needed.\n"
        "  expected  x: float[*n, t, 6]\n"
        "  got       x: float32[6]\n"
        "  hint      is an axis missing? x[None] adds a batch, x[..., None] a channel axis.",
    ),
    (
        lambda: multihead.apply(PARAMS, X.astype(jnp.int32)),
        DTypeError,
        "multihead.apply: x has dtype int32, but a float is needed.\n"
        "  expected  x: float[...]\n"
        "  got       x: int32[2, 5, 6]\n"
        "  hint      cast it: x.astype(jnp.float32).",
    ),
    (
        lambda: multihead.apply({"q": PARAMS["q"]}, X),
        StructureError,
        "multihead.apply: params are not those of a multihead.\n"
        '  expected  params: a dict of "q", "k", "v" and "o", each a dict with "w"\n'
        '  got       params: "q"',
    ),
    (
        lambda: multihead.apply(X, PARAMS),
        StructureError,
        "multihead.apply: params are not those of a multihead.\n"
        '  expected  params: a dict of "q", "k", "v" and "o", each a dict with "w"\n'
        "  got       params: float32[2, 5, 6]\n"
        "  hint      the parameters come first: apply(params, x).",
    ),
    (
        lambda: multihead.apply(with_leaf("q", "w", normal(6, 12)), X),
        ShapeError,
        'multihead.apply: params["q"]["w"] has rank 2, but 3 is needed.\n'
        '  expected  params["q"]["w"]: float[d, h, e]\n'
        '  got       params["q"]["w"]: float32[6, 12]',
    ),
    (
        lambda: multihead.apply(with_leaf("v", "w", normal(6, 4, 3)), X),
        ShapeError,
        'multihead.apply: params["v"]["w"] does not fit the other parameters.\n'
        '  expected  params["v"]["w"]: float[6, 2, 3]     (params["q"]["w"]: float32[6, 4, 3])\n'
        '  got       params["v"]["w"]: float32[6, 4, 3]',
    ),
    (
        lambda: multihead.apply(with_leaf("o", "b", normal(4, 3)), X),
        ShapeError,
        'multihead.apply: params["o"]["b"] does not fit the other parameters.\n'
        '  expected  params["o"]["b"]: float[6]     (params["q"]["w"]: float32[6, 4, 3])\n'
        '  got       params["o"]["b"]: float32[4, 3]',
    ),
    (
        lambda: multihead.init(jax.random.key(0), 6, 4),
        ValueRangeError,
        "multihead.init: 4 heads do not divide d = 6.\n"
        "  expected  a divisor of d = 6, or a head_width\n"
        "  got       heads = 4",
    ),
    (
        lambda: multihead.init(jax.random.key(0), 6, 3, kv_heads=2),
        ValueRangeError,
        "multihead.init: 2 kv_heads do not divide 3 heads.\n"
        "  expected  a divisor of heads = 3\n"
        "  got       kv_heads = 2",
    ),
]

test_errors = golden(ERRORS)
