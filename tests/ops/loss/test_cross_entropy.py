import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet.errors import DTypeError, ShapeError, ValueRangeError
from funcnet.ops.loss import cross_entropy

LOGITS = jnp.asarray(np.random.default_rng(0).standard_normal((5, 7)), jnp.float32)
LABELS = jnp.asarray([3, 0, 6, 3, 1], jnp.int32)
Q = jnp.asarray(np.random.default_rng(1).dirichlet(np.ones(7), 5), jnp.float32)


def dlogits(logits, labels, **options):
    return jax.grad(lambda h: cross_entropy.apply(h, labels, **options).sum())(logits)


def test_uniform_logits_give_the_logarithm_of_the_number_of_classes():
    np.testing.assert_allclose(cross_entropy.apply(0 * LOGITS, LABELS), np.log(7), rtol=1e-6)


def test_one_hot_probabilities_are_labels():
    q = jax.nn.one_hot(LABELS, 7, dtype=jnp.float32)
    for s in (0.0, 0.3):
        y, dx = cross_entropy.apply(LOGITS, q, label_smoothing=s), dlogits(LOGITS, q, label_smoothing=s)
        np.testing.assert_allclose(y, cross_entropy.apply(LOGITS, LABELS, label_smoothing=s), rtol=1e-5)
        np.testing.assert_allclose(dx, dlogits(LOGITS, LABELS, label_smoothing=s), atol=1e-6)


def test_the_loss_is_least_where_softmax_is_the_label():
    q = Q / Q.sum(-1, keepdims=True)
    np.testing.assert_allclose(dlogits(jnp.log(q), q), 0, atol=1e-6)
    entropy = -(q * jnp.log(q)).sum(-1)
    np.testing.assert_allclose(cross_entropy.apply(jnp.log(q), q), entropy, rtol=1e-5)


def test_the_gradient_of_probabilities_is_minus_log_softmax():
    dq = jax.grad(lambda q: cross_entropy.apply(LOGITS, q, label_smoothing=0.2).sum())(Q)
    np.testing.assert_allclose(dq, -0.8 * jax.nn.log_softmax(LOGITS), rtol=1e-5)


def test_gradients_sum_to_zero_over_the_classes():
    for labels in (LABELS, Q):
        np.testing.assert_allclose(dlogits(LOGITS, labels, label_smoothing=0.1).sum(-1), 0, atol=1e-6)


def test_large_logits_do_not_overflow():
    h = jnp.asarray([[1e30, -1e30, 0], [0, -1e30, -1e30]], jnp.float32)
    labels = jnp.asarray([0, 0], jnp.int32)
    assert cross_entropy.apply(h, labels).tolist() == [0, 0]
    assert (dlogits(h, labels) == 0).all()


def test_masked_logits_have_no_gradient():
    h = LOGITS.at[:, 5].set(-jnp.inf)
    assert np.isfinite(cross_entropy.apply(h, LABELS)).all()
    assert (dlogits(h, LABELS)[:, 5] == 0).all()


def test_ignored_examples_have_no_loss_and_no_gradient():
    h = LOGITS.at[0].set(jnp.nan)
    y = cross_entropy.apply(h, LABELS, ignore_index=3)
    np.testing.assert_array_equal(y == 0, LABELS == 3)
    np.testing.assert_array_equal((dlogits(h, LABELS, ignore_index=3) == 0).all(-1), LABELS == 3)
    assert (cross_entropy.apply(LOGITS, LABELS) > 0).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("bad", [-1, 7, 2**31 - 1])
def test_under_jit_a_bad_label_counts_as_ignored(bad, smoothing):
    labels = LABELS.at[2].set(bad)
    y = jax.jit(lambda labels: cross_entropy.apply(LOGITS, labels, label_smoothing=smoothing))(labels)
    assert y[2] == 0
    want = cross_entropy.reference(LOGITS, labels, label_smoothing=smoothing)
    np.testing.assert_allclose(y, want, rtol=1e-5)
    dx = jax.jit(lambda labels: dlogits(LOGITS, labels, label_smoothing=smoothing))(labels)
    assert (dx[2] == 0).all()


def test_no_label_is_taken_for_another():
    labels = LABELS.astype(jnp.int64).at[2].add(2**32)
    assert labels.dtype == jnp.int64
    y = jax.jit(cross_entropy.apply)(LOGITS, labels)
    np.testing.assert_array_equal(y == 0, jnp.arange(5) == 2)
    np.testing.assert_allclose(y, cross_entropy.apply(LOGITS, LABELS).at[2].set(0), rtol=1e-6)


def test_label_smoothing_mixes_with_the_mean_over_the_classes():
    each = jnp.stack([cross_entropy.apply(LOGITS, jnp.full(5, i, jnp.int32)) for i in range(7)])
    np.testing.assert_allclose(
        cross_entropy.apply(LOGITS, LABELS, label_smoothing=0.3),
        0.7 * cross_entropy.apply(LOGITS, LABELS) + 0.3 * each.mean(0),
        rtol=1e-5,
    )


def test_small_unsigned_labels():
    h = jnp.zeros((2, 300), jnp.float32)
    labels = jnp.asarray([255, 7], jnp.uint8)
    np.testing.assert_allclose(cross_entropy.apply(h, labels), np.log(300), rtol=1e-6)
    assert cross_entropy.apply(h, labels, ignore_index=255)[0] == 0
    assert (cross_entropy.apply(h, labels, ignore_index=-1) > 0).all()


def test_bfloat16_logits_give_a_float32_loss():
    h = LOGITS.astype(jnp.bfloat16)
    assert cross_entropy.apply(h, LABELS).dtype == jnp.float32
    np.testing.assert_array_equal(
        cross_entropy.apply(h, LABELS), cross_entropy.apply(h.astype(jnp.float32), LABELS)
    )
    assert dlogits(h, LABELS).dtype == jnp.bfloat16


def test_residuals_are_the_arguments_and_three_numbers_per_example():
    h = LOGITS.astype(jnp.bfloat16)
    _, pullback = cross_entropy.vjp(h, LABELS)
    assert [(v.shape, v.dtype) for v in jax.tree.leaves(pullback)] == [
        ((5, 7), jnp.bfloat16),
        ((5,), jnp.int32),
        *[((5,), jnp.float32)] * 3,
    ]


def test_the_gradient_neither_gathers_nor_scatters():
    text = str(jax.make_jaxpr(lambda h, labels: dlogits(h, labels))(LOGITS, LABELS))
    assert "scatter" not in text
    assert "gather" not in text


EXPECTED = "  expected  labels: int[5] or float[5, 7]     (logits: float32[5, 7])\n"
SHAPE = "cross_entropy.apply: labels do not have the shape that logits ask for.\n" + EXPECTED
KIND = "cross_entropy.apply: labels are neither integers nor floats.\n" + EXPECTED
RANGE = "  expected  0 ≤ labels < 7     (logits: float32[5, 7])\n"
ERRORS = [
    (
        (LOGITS, jax.nn.one_hot(LABELS, 7, dtype=jnp.int32)),
        {},
        ShapeError,
        SHAPE + "  got       labels: int32[5, 7]\n  hint      one-hot? labels.argmax(-1).",
    ),
    (
        (LOGITS, LABELS[:, None]),
        {},
        ShapeError,
        SHAPE + "  got       labels: int32[5, 1]\n  hint      labels[..., 0] fits.",
    ),
    (
        (LOGITS, LABELS.astype(jnp.float32)),
        {},
        ShapeError,
        SHAPE + "  got       labels: float32[5]\n  hint      class numbers? labels.astype(jnp.int32).",
    ),
    ((LOGITS, LABELS[:4]), {}, ShapeError, SHAPE + "  got       labels: int32[4]"),
    (
        (LOGITS, Q > 0.5),
        {},
        DTypeError,
        KIND + "  got       labels: bool[5, 7]\n  hint      one-hot? labels.argmax(-1).",
    ),
    (
        (LOGITS, [3, 0, 6, 3, 1]),
        {},
        DTypeError,
        KIND + "  got       labels: a list\n  hint      wrap them: jnp.asarray(...).",
    ),
    (
        (LABELS, LABELS),
        {},
        DTypeError,
        "cross_entropy.apply: logits has dtype int32, but a float is needed.\n"
        "  expected  logits: float[...]\n"
        "  got       logits: int32[5]\n"
        "  hint      cast it: logits.astype(jnp.float32).",
    ),
    (
        (LOGITS, LABELS.at[1].set(7)),
        {},
        ValueRangeError,
        "cross_entropy.apply: labels hold 7, outside [0, 7).\n"
        + RANGE
        + "  got       labels: int32[5], 1 of 5 outside, from 7 to 7\n"
        "  hint      do they count from 1? labels - 1.",
    ),
    (
        (LOGITS, LABELS.at[0].set(-100)),
        {},
        ValueRangeError,
        "cross_entropy.apply: labels hold -100, outside [0, 7).\n"
        + RANGE
        + "  got       labels: int32[5], 1 of 5 outside, from -100 to -100\n"
        "  hint      if -100 marks what has no label: ignore_index=-100.",
    ),
    (
        (LOGITS, LABELS.at[:2].set(jnp.asarray([9, -2], jnp.int32))),
        {"ignore_index": 6},
        ValueRangeError,
        "cross_entropy.apply: labels hold 9, outside [0, 7).\n"
        + RANGE
        + "  got       labels: int32[5], 2 of 5 outside, from -2 to 9",
    ),
    (
        (LOGITS, Q + 1),
        {},
        ValueRangeError,
        f"cross_entropy.apply: labels hold {Q[0, 0] + 1:g}, outside [0, 1].\n"
        "  expected  0 ≤ labels ≤ 1\n"
        f"  got       labels: float32[5, 7], 35 of 35 outside, from {Q.min() + 1:g} to {Q.max() + 1:g}",
    ),
    (
        (LOGITS, LABELS),
        {"label_smoothing": 10.0},
        ValueRangeError,
        "cross_entropy.apply: label_smoothing is 10.0, outside [0, 1).\n"
        "  expected  0 ≤ label_smoothing < 1\n"
        "  got       label_smoothing = 10.0\n"
        "  hint      label_smoothing is a fraction, not per cent: 0.1.",
    ),
    (
        (LOGITS, Q),
        {"ignore_index": 3},
        DTypeError,
        "cross_entropy.apply: ignore_index is compared with integer labels, and these are probabilities.\n"
        "  expected  ignore_index: int or None, and labels: int[*n]\n"
        "  got       ignore_index: 3 (int), labels: float32[5, 7]",
    ),
    (
        (LOGITS, LABELS),
        {"ignore_index": 0.5},
        DTypeError,
        "cross_entropy.apply: ignore_index is not an integer.\n"
        "  expected  ignore_index: int, or None\n"
        "  got       ignore_index: 0.5 (float)",
    ),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("args", "options", "error", "text"), ERRORS, ids=range(len(ERRORS)))
def test_errors(args, options, error, text):
    with pytest.raises(error) as caught:
        cross_entropy.apply(*args, **options)
    assert str(caught.value) == text
