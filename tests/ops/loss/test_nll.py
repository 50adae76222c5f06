import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnet as fn
from funcnet.errors import DTypeError, ShapeError, ValueRangeError
from funcnet.ops.loss import nll
from tests.errors import golden

X = jnp.asarray(np.random.default_rng(0).standard_normal((7, 5)), jnp.float32)
LABELS = jnp.asarray([0, 1, 2, 3, 4, 1, 1], jnp.int32)


def test_is_that_of_torch_and_the_cross_entropy_of_logits():
    torch = pytest.importorskip("torch")
    log_p = jax.nn.log_softmax(X)
    y = nll.apply(log_p, LABELS, ignore_index=1)
    theirs = torch.nn.functional.nll_loss(
        torch.tensor(np.array(log_p)), torch.tensor(np.array(LABELS)).long(), ignore_index=1, reduction="none"
    )
    np.testing.assert_allclose(y, theirs, rtol=1e-6)
    np.testing.assert_allclose(y, fn.cross_entropy.apply(X, LABELS, ignore_index=1), rtol=1e-5)


def test_moves_the_label_alone():
    dx = jax.grad(lambda x: nll.apply(x, LABELS, ignore_index=1).sum())(X)
    want = -jax.nn.one_hot(LABELS, 5, dtype=X.dtype) * (LABELS != 1).astype(X.dtype)[:, None]
    np.testing.assert_array_equal(dx, want)


def test_under_jit_a_label_that_is_no_class_is_ignored():
    bad = LABELS.at[:2].set(jnp.asarray([5, -1], jnp.int32))
    assert (jax.jit(nll.apply)(X, bad) == 0).tolist() == [True, True] + [False] * 5


test_errors = golden(
    [
        (
            lambda: nll.apply(X, LABELS[:, None]),
            ShapeError,
            "nll.apply: labels do not have the shape that prediction asks for.\n"
            "  expected  labels: int[7]     (prediction: float32[7, 5])\n"
            "  got       labels: int32[7, 1]",
        ),
        (
            lambda: nll.apply(X, X),
            DTypeError,
            "nll.apply: labels are not an array of integers.\n"
            "  expected  labels: int[7]     (prediction: float32[7, 5])\n"
            "  got       labels: float32[7, 5]",
        ),
        (
            lambda: nll.apply(X, LABELS - 100),
            ValueRangeError,
            "nll.apply: labels hold -100, outside [0, 5).\n"
            "  expected  0 ≤ labels < 5     (prediction: float32[7, 5])\n"
            "  got       labels: int32[7], 7 of 7 outside, from -100 to -96",
        ),
    ]
)
