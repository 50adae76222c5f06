import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnet as fn
from funcnet.errors import ShapeError, ValueRangeError
from tests.errors import golden

RNG = np.random.default_rng(0)
A, B, C = (jnp.asarray(RNG.standard_normal((7, 5)), jnp.float32) for _ in range(3))
ZERO = jnp.zeros((1, 5), jnp.float32)
Q = jnp.asarray(RNG.random((7, 5)), jnp.float32)
SIGN = jnp.where(B > 0, 1.0, -1.0).astype(jnp.float32)


def grads(op, *arrays, **options):
    every = tuple(i for i, v in enumerate(arrays) if jnp.issubdtype(v.dtype, jnp.floating))
    return jax.jit(jax.grad(lambda *v: op.apply(*v, **options).sum(), every))(*arrays)


def of_torch(F):
    """Each beside the function of PyTorch that is the same."""
    sigmoid = lambda x: 1 / (1 + (-x).exp())

    def focal(x, z, gamma, alpha):
        p = sigmoid(x)
        entropy = F.binary_cross_entropy_with_logits(x, z, reduction="none")
        weight = alpha * z + (1 - alpha) * (1 - z)
        return weight * entropy * (1 - (p * z + (1 - p) * (1 - z))) ** gamma

    ones = lambda x: x.new_ones(len(x))
    return {
        "huber": ((A, B), {"delta": 0.7}, lambda a, b: F.huber_loss(a, b, "none", delta=0.7)),
        "smooth_l1": ((A, B), {"beta": 0.7}, lambda a, b: F.smooth_l1_loss(a, b, reduction="none", beta=0.7)),
        "smooth_l1 of 0": (
            (A, A.at[0].set(B[0])),
            {"beta": 0.0},
            lambda a, b: F.l1_loss(a, b, reduction="none"),
        ),
        "hinge": (
            (A.at[0].set(SIGN[0]), SIGN),
            {},
            lambda a, b: F.margin_ranking_loss(a, 0 * a, b, margin=1.0, reduction="none"),
        ),
        "focal": ((A, Q), {"gamma": 2.0, "alpha": 0.25}, lambda x, z: focal(x, z, 2.0, 0.25)),
        "kl_div": ((A, Q), {}, lambda a, q: F.kl_div(a, q, reduction="none")),
        "kl_div of logs": (
            (A, B),
            {"log_target": True},
            lambda a, q: F.kl_div(a, q, reduction="none", log_target=True),
        ),
        "cosine": ((A, B), {}, lambda a, b: F.cosine_embedding_loss(a, b, ones(a), reduction="none")),
        "triplet": (
            (A, B, C),
            {"margin": 0.5},
            lambda a, b, c: F.triplet_margin_loss(a, b, c, margin=0.5, eps=0.0, reduction="none"),
        ),
    }


def test_values_and_gradients_are_those_of_torch():
    torch = pytest.importorskip("torch")
    for name, (arrays, options, theirs) in of_torch(torch.nn.functional).items():
        op = getattr(fn, name.split()[0])
        given = [torch.tensor(np.array(v), requires_grad=True) for v in arrays]
        y = theirs(*given)
        y.sum().backward()
        np.testing.assert_allclose(
            op.apply(*arrays, **options), y.detach(), rtol=2e-5, atol=1e-6, err_msg=name
        )
        for ours, leaf in zip(grads(op, *arrays, **options), given, strict=True):
            np.testing.assert_allclose(ours, leaf.grad, rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize(
    ("name", "arrays"),
    [
        ("huber", (A, B)),
        ("hinge", (A, SIGN)),
        ("focal", (A, Q)),
        ("kl_div", (A, Q)),
        ("dice", (A, Q)),
        ("cosine", (A, B)),
        ("triplet", (A, B, C)),
    ],
)
def test_bfloat16_gives_float32_and_gradients_of_the_leaves(name, arrays):
    op = getattr(fn, name)
    short = [v.astype(jnp.bfloat16) for v in arrays]
    assert op.apply(*short).dtype == jnp.float32
    assert {g.dtype for g in grads(op, *short)} == {jnp.dtype(jnp.bfloat16)}


def test_each_option_changes_something():
    for name, arrays, option in (
        ("huber", (A, B), {"delta": 0.3}),
        ("smooth_l1", (A, B), {"beta": 0.3}),
        ("hinge", (A, SIGN), {"margin": 0.3}),
        ("focal", (A, Q), {"gamma": 0.3}),
        ("focal", (A, Q), {"alpha": 0.3}),
        ("kl_div", (A, Q), {"log_target": True}),
        ("dice", (A, Q), {"smooth": 0.3}),
        ("triplet", (A, B, C), {"margin": 9.0}),
    ):
        op = getattr(fn, name)
        assert (op.apply(*arrays, **option) != op.apply(*arrays)).any(), (name, option)


def test_focal_of_gamma_0_is_binary_cross_entropy_whatever_the_labels_are():
    for labels in (Q, Q > 0.5, (Q > 0.5).astype(jnp.int32)):
        want = fn.binary_cross_entropy.apply(A, labels)
        np.testing.assert_allclose(fn.focal.apply(A, labels, gamma=0), want, rtol=1e-6)
    bad = jnp.asarray([0, 1, 2])
    y, dx = jax.jit(jax.value_and_grad(lambda x, bad: fn.focal.apply(x, bad).sum()))(A[0, :3], bad)
    np.testing.assert_allclose(y, fn.focal.apply(A[0, :2], bad[:2]).sum(), rtol=1e-6)
    assert dx[2] == 0


def test_dice_is_1_apart_and_0_on_top():
    far = 200.0 * jnp.where(jnp.arange(6) < 3, 1, -1).astype(jnp.float32)
    labels = jnp.arange(6) < 3
    assert fn.dice.apply(far, labels, smooth=0) == 0
    assert fn.dice.apply(far, ~labels, smooth=0) == 1
    empty = jnp.full(6, -200.0, jnp.float32)
    y, dx = jax.value_and_grad(lambda x: fn.dice.apply(x, jnp.zeros(6, bool), smooth=0.0))(empty)
    assert y == 0
    assert not dx.any()
    close = fn.dice.apply(jnp.full(6, 20.0, jnp.float32), jnp.ones(6, bool), smooth=0)
    np.testing.assert_allclose(close, jax.nn.sigmoid(-20.0) / 2, rtol=1e-5)  # 1 − a number near 1 has none


def test_vectors_of_zeros_have_a_cosine_of_0_and_distances_of_0_move_nothing():
    for arrays in ((ZERO, B[:1]), (B[:1], ZERO), (ZERO, ZERO)):
        assert fn.cosine.apply(*arrays).tolist() == [1]
        assert not any(g.any() for g in grads(fn.cosine, *arrays))
    assert fn.triplet.apply(ZERO, ZERO, ZERO, margin=0.5).tolist() == [0.5]
    assert not any(g.any() for g in grads(fn.triplet, ZERO, ZERO, ZERO))
    assert not any(g.any() for g in grads(fn.triplet, A, A, A + 5.0))  # far enough


def test_cosine_knows_small_angles_and_huge_vectors():
    a = jnp.asarray([[3.0, 4.0]], jnp.float32)
    b = jnp.asarray([[3.0, 4.0005]], jnp.float32)
    wide = [np.asarray(v[0], np.float64) for v in (a, b)]
    angle = np.arctan2(*wide[0]) - np.arctan2(*wide[1])
    np.testing.assert_allclose(fn.cosine.apply(a, b), [angle**2 / 2], rtol=1e-2)
    for by in (1e30, 1e-30):
        np.testing.assert_allclose(fn.cosine.apply(by * A, B), fn.cosine.apply(A, B), rtol=1e-5)


test_errors = golden(
    [
        (
            lambda: fn.cosine.apply(A, B.T),
            ShapeError,
            "cosine.apply: target and prediction have different shapes.\n"
            "  expected  target: float32[7, 5]     (the shape of prediction)\n"
            "  got       target: float32[5, 7]\n"
            "  hint      its transpose fits: target.T.",
        ),
        (
            lambda: fn.dice.apply(A[0, 0], Q[0, 0]),
            ShapeError,
            "dice.apply: logits has rank 0, but at least 1 is needed.\n"
            "  expected  logits: float[*n, d]\n"
            "  got       logits: float32[]\n"
            "  hint      is an axis missing? x[None] adds a batch, x[..., None] a channel axis.",
        ),
        (
            lambda: fn.focal.apply(A, SIGN),
            ValueRangeError,
            "focal.apply: labels hold -1, outside [0, 1].\n"
            "  expected  0 ≤ labels ≤ 1\n"
            f"  got       labels: float32[7, 5], {int((SIGN < 0).sum())} of 35 outside, from -1 to -1\n"
            "  hint      are they −1 and 1? (labels + 1) / 2.",
        ),
        (
            lambda: fn.huber.apply(A, B, delta=0.0),
            ValueRangeError,
            "huber.apply: delta is 0.0, outside its range.\n"
            "  expected  0 < delta < ∞\n"
            "  got       delta = 0.0",
        ),
    ]
)


def test_a_nan_is_seen():
    for op in (fn.focal, fn.cosine):
        assert jnp.isnan(op.apply(ZERO + jnp.nan, ZERO + 1)).all()
