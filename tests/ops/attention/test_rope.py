import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet.errors import DTypeError, ShapeError, ValueRangeError
from funcnet.ops.attention import rope
from tests.errors import golden

X = jnp.asarray(np.random.default_rng(0).standard_normal((5, 3, 8)), jnp.float32)  # [t, h, e]
K = jnp.asarray(np.random.default_rng(1).standard_normal((5, 3, 8)), jnp.float32)
SCALINGS = [
    None,
    rope.Linear(4.0),
    rope.NTK(4.0),
    rope.YaRN(4.0, 64),
    rope.YaRN(40.0, 4096, beta_fast=16.0, beta_slow=2.0, attention_factor=1.5),
    rope.Llama3(8.0, 64),
    rope.Llama3(32.0, 8192, low=2.0, high=8.0),
]


@pytest.mark.parametrize("layout", ["split", "interleaved"])
def test_products_depend_on_the_difference_of_positions_only(layout):
    config, p = rope.Config(layout=layout), jnp.arange(5)

    def products(shift):
        q, k = rope.apply(X, config, positions=p + shift), rope.apply(K, config, positions=p + shift)
        return jnp.einsum("the,she->hts", q, k)

    np.testing.assert_allclose(products(100), products(0), atol=1e-4)
    q, k = jnp.broadcast_to(X[0], X.shape), jnp.broadcast_to(K[0], K.shape)
    same = jnp.einsum("the,she->hts", rope.apply(q, config), rope.apply(k, config))
    np.testing.assert_allclose(same[:, 1:, 1:], same[:, :-1, :-1], atol=1e-5)


def test_norms_are_kept_and_position_zero_is_left_alone():
    y = rope.apply(X)
    np.testing.assert_allclose(jnp.linalg.norm(y, axis=-1), jnp.linalg.norm(X, axis=-1), rtol=1e-6)
    np.testing.assert_array_equal(y[0], X[0])
    assert not jnp.allclose(y[1:], X[1:], atol=0.1)


def test_layouts_differ_by_a_permutation():
    pairs = jnp.asarray([0, 4, 1, 5, 2, 6, 3, 7])
    y = rope.apply(X[..., pairs], rope.Config(layout="interleaved"))
    np.testing.assert_allclose(y, rope.apply(X)[..., pairs], atol=1e-6)


def test_the_pullback_is_the_inverse_up_to_the_square_of_the_factor():
    for scaling, c in ((None, 1.0), (rope.YaRN(4.0, 64), 1 + 0.1 * math.log(4.0))):
        y, pullback = rope.vjp(X, rope.Config(scaling=scaling))
        np.testing.assert_allclose(pullback(y)[0], c**2 * X, atol=1e-5)


def test_width_leaves_the_rest_alone():
    y = rope.apply(X, rope.Config(width=6))
    np.testing.assert_array_equal(y[..., 6:], X[..., 6:])
    np.testing.assert_array_equal(y[..., :6], rope.apply(X[..., :6]))


def test_positions_of_each_sequence():
    x, p = jnp.stack([X, X]), jnp.asarray([[0, 1, 2, 3, 4], [7, 8, 9, 0, 1]])
    y = jax.jit(lambda p: rope.apply(x, positions=p))(p)
    np.testing.assert_allclose(y[0], rope.apply(X), atol=1e-6)
    np.testing.assert_allclose(y[1], rope.apply(X, positions=p[1]), atol=1e-6)


def test_bfloat16_angles_are_exact_far_out():
    p = jnp.arange(4097, 4102)  # in bfloat16 all of them are 4096
    y = rope.apply(X.astype(jnp.bfloat16), positions=p)
    exact = rope.apply(X.astype(jnp.bfloat16).astype(jnp.float32), positions=p)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, exact.astype(jnp.bfloat16))


def test_residuals_are_the_positions():
    assert jax.tree.leaves(rope.vjp(X)[1]) == []
    assert [v.shape for v in jax.tree.leaves(rope.vjp(X, positions=jnp.arange(5))[1])] == [(5,)]


@pytest.mark.only_as_users
def test_the_table_is_computed_once_for_all_heads():
    """XLA:CPU takes cosines in the loop that uses them, once per head, unless it is kept from it: `_turn`."""
    text = jax.jit(rope.apply).lower(jnp.tile(X, (1, 7, 1))).compile().as_text()
    loops = [body for body in text.split("\n\n") if " cosine(" in body]
    assert loops
    assert not any("f32[5,21," in body for body in loops), "a cosine stands in the loop over heads"


# ---- frequencies ------------------------------------------------------------------------------------------


def test_plain_frequencies():
    theta, c = rope.frequencies(rope.Config(base=10000.0), 8)
    np.testing.assert_allclose(theta, [1, 0.1, 0.01, 0.001], rtol=1e-12)
    assert c == 1


def test_linear_divides_every_frequency():
    theta = rope.frequencies(rope.Config(scaling=rope.Linear(4.0)), 64)[0]
    np.testing.assert_allclose(theta, rope.frequencies(rope.Config(), 64)[0] / 4, rtol=1e-12)


def test_ntk_leaves_the_fastest_and_slows_the_slowest():
    plain, theta = (rope.frequencies(rope.Config(scaling=s), 64)[0] for s in (None, rope.NTK(4.0)))
    assert theta[0] == plain[0]
    np.testing.assert_allclose(theta[-1], plain[-1] / 4, rtol=1e-12)


@pytest.mark.parametrize("scaling", [rope.YaRN(8.0, 4096), rope.Llama3(8.0, 4096)])
def test_ramps_leave_the_fast_slow_the_slow_and_fall_between(scaling):
    plain, theta = (rope.frequencies(rope.Config(scaling=s), 128)[0] for s in (None, scaling))
    turns = 4096 * plain / (2 * math.pi)
    kept = theta / plain
    np.testing.assert_allclose(kept[turns > 40], 1, rtol=1e-12)
    np.testing.assert_allclose(kept[turns < 0.7], 1 / 8, rtol=1e-12)
    assert (np.diff(kept) <= 1e-12).all()
    assert ((kept > 0.2) & (kept < 0.9)).any()


def test_every_option_of_a_ramp_counts():
    def theta(scaling):
        return rope.frequencies(rope.Config(scaling=scaling), 128)

    yarn, llama = theta(rope.YaRN(8.0, 4096)), theta(rope.Llama3(8.0, 4096))
    for other in (
        rope.YaRN(4.0, 4096),
        rope.YaRN(8.0, 512),
        rope.YaRN(8.0, 4096, beta_fast=8),
        rope.YaRN(8.0, 4096, beta_slow=4),
    ):
        assert not np.allclose(theta(other)[0], yarn[0], rtol=1e-3)
    for other in (
        rope.Llama3(4.0, 4096),
        rope.Llama3(8.0, 512),
        rope.Llama3(8.0, 4096, low=2),
        rope.Llama3(8.0, 4096, high=9),
    ):
        assert not np.allclose(theta(other)[0], llama[0], rtol=1e-3)
    assert theta(rope.YaRN(8.0, 4096, attention_factor=1.25))[1] == 1.25
    assert yarn[1] == pytest.approx(1 + math.log(8) / 10)


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
@pytest.mark.parametrize(("base", "width"), [(10000.0, 64), (500000.0, 128), (1e6, 96)])
def test_frequencies_are_those_of_transformers(scaling, base, width):
    functions = pytest.importorskip("transformers.modeling_rope_utils").ROPE_INIT_FUNCTIONS
    pytest.importorskip("torch")
    from transformers import LlamaConfig

    if scaling is None:
        pytest.skip("transformers has no function for the plain ones")
    shared = {"rope_theta": base, "factor": float(scaling.factor)}
    context = getattr(scaling, "context", 64)
    kind, more, length = {
        rope.Linear: ("linear", {}, None),
        rope.NTK: ("dynamic", {"factor": 1.0}, int(scaling.factor * context)),  # as if run at that length
        rope.YaRN: ("yarn", {}, None),
        rope.Llama3: ("llama3", {}, None),
    }[type(scaling)]
    if isinstance(scaling, rope.YaRN):
        more = {
            "original_max_position_embeddings": context,
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
            "attention_factor": scaling.attention_factor,
        }
    if isinstance(scaling, rope.Llama3):
        more = {
            "original_max_position_embeddings": context,
            "low_freq_factor": scaling.low,
            "high_freq_factor": scaling.high,
        }
    config = LlamaConfig(
        hidden_size=2 * width,
        num_attention_heads=2,
        head_dim=width,
        max_position_embeddings=context if length else int(context * scaling.factor),
        rope_parameters={"rope_type": kind, **shared, **more},
    )
    theirs, factor = functions[kind](config, "cpu", seq_len=length)
    theta, c = rope.frequencies(rope.Config(base=base, scaling=scaling), width)
    np.testing.assert_allclose(theta, theirs.numpy(), rtol=2e-6)
    assert c == pytest.approx(factor)


def test_configs_are_hashable_and_static():
    assert rope.Config(scaling=rope.NTK(2.0)) == rope.Config(scaling=rope.NTK(2.0))
    assert len({rope.Config(scaling=s) for s in SCALINGS}) == len(SCALINGS)
    assert jax.tree.leaves(rope.Config(scaling=rope.YaRN(2.0, 4))) == []
    turned = jax.jit(rope.apply)(X, rope.Config(base=100.0))
    np.testing.assert_allclose(turned, rope.apply(X, rope.Config(base=100.0)), atol=1e-6)


ERRORS = [
    (
        lambda: rope.apply(X[..., :7]),
        ShapeError,
        "rope.apply: x has heads of 7 features, but an even width is to be turned.\n"
        "  expected  x: float[*n, t, h, e], e even\n"
        "  got       x: float32[5, 3, 7]\n"
        "  hint      to leave the last one alone: rope.Config(width=6).",
    ),
    (
        lambda: rope.apply(X, rope.Config(width=10)),
        ShapeError,
        "rope.apply: x has heads of 8 features, but width = 10 is to be turned.\n"
        "  expected  x: float[*n, t, h, e], e ≥ 10\n"
        "  got       x: float32[5, 3, 8]",
    ),
    (
        lambda: rope.apply(X[0]),
        ShapeError,
        "rope.apply: x has rank 2, but at least 3 is needed.\n"
        "  expected  x: float[*n, t, h, e]\n"
        "  got       x: float32[3, 8]\n"
        "  hint      is an axis missing? x[None] adds a batch, x[..., None] a channel axis.",
    ),
    (
        lambda: rope.apply(X, positions=jnp.arange(3)),
        ShapeError,
        "rope.apply: positions do not fit x.\n"
        "  expected  positions: int[5] or int[5]     (x: float32[5, 3, 8])\n"
        "  got       positions: int64[3]",
    ),
    (
        lambda: rope.apply(X, positions=jnp.arange(5.0, dtype=jnp.bfloat16)),
        DTypeError,
        "rope.apply: positions are neither integers nor float32 or wider.\n"
        "  expected  positions: int or float32, [t] or [*n, t]\n"
        "  got       positions: bfloat16[5]",
    ),
    (
        lambda: rope.apply(X, jnp.arange(5, dtype=jnp.int32)),
        DTypeError,
        "rope.apply: config is no rope.Config.\n"
        "  expected  config: rope.Config\n"
        "  got       config: int32[5]\n"
        "  hint      positions are given by name: positions=...",
    ),
    (
        lambda: rope.apply(X, rope.Config(width=2, scaling=rope.NTK(2.0))),
        ValueRangeError,
        "rope.apply: NTK scaling leaves the first pair alone, and there is no other.\n"
        "  expected  width ≥ 4\n"
        "  got       width = 2",
    ),
    (
        lambda: rope.Config(width=7),
        ValueRangeError,
        "rope.Config: width is 7, but features are turned in pairs.\n"
        "  expected  width: even\n"
        "  got       width = 7",
    ),
    (
        lambda: rope.Config(base=0.5),
        ValueRangeError,
        "rope.Config: base is 0.5, but must be above 1.\n  expected  base > 1\n  got       base = 0.5",
    ),
    (
        lambda: rope.Config(layout="halves"),
        ValueRangeError,
        "rope.Config: layout is 'halves'.\n"
        "  expected  layout: 'split', 'interleaved'\n"
        "  got       layout = 'halves'",
    ),
    (
        lambda: rope.Config(scaling=4.0),
        DTypeError,
        "rope.Config: scaling is of the wrong type.\n"
        "  expected  scaling: rope.Linear, rope.NTK, rope.YaRN, rope.Llama3 or None\n"
        "  got       scaling: 4.0 (float)",
    ),
    (
        lambda: rope.Linear(0.25),
        ValueRangeError,
        "rope.Linear: factor is 0.25, but at least 1 is needed.\n"
        "  expected  factor ≥ 1\n"
        "  got       factor = 0.25\n"
        "  hint      contexts grow by factor: 4.",
    ),
    (
        lambda: rope.YaRN(2.0, 64, beta_fast=1.0, beta_slow=32.0),
        ValueRangeError,
        "rope.YaRN: beta_slow and beta_fast do not bound a ramp.\n"
        "  expected  0 < beta_slow < beta_fast\n"
        "  got       beta_slow = 32.0, beta_fast = 1.0",
    ),
    (
        lambda: rope.YaRN(2.0, 64, attention_factor=0.0),
        ValueRangeError,
        "rope.YaRN: attention_factor is 0.0, but must be positive.\n"
        "  expected  attention_factor > 0, or None\n"
        "  got       attention_factor = 0.0",
    ),
    (
        lambda: rope.Llama3(2.0, 0),
        ValueRangeError,
        "rope.Llama3: context is 0, but at least 1 is needed.\n"
        "  expected  context ≥ 1\n"
        "  got       context = 0",
    ),
]

test_errors = golden(ERRORS)
