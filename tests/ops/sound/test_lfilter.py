from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet.errors import ShapeError, ValueRangeError
from funcnet.ops.sound import lfilter, pre_emphasis
from tests.errors import golden
from tests.ops.sound.signals import X

SIGNAL: Any = jnp.asarray(X[:500])
B: Any = jnp.asarray([0.3, 0.2, 0.1], jnp.float32)
A: Any = jnp.asarray([1.0, -0.5, 0.2], jnp.float32)
run = jax.jit(lfilter.apply)


@pytest.mark.parametrize(("order", "cutoff"), [(1, 0.5), (2, 0.01), (4, 0.1), (4, (0.2, 0.3)), (8, 0.3)])
def test_it_errs_as_scipy_does(order, cutoff):
    """Against float64 of the same coefficients, whose rounding alone moves narrow filters."""
    signal = pytest.importorskip("scipy.signal")
    kind = "bandpass" if isinstance(cutoff, tuple) else "lowpass"
    b, a = (v.astype(np.float32) for v in signal.butter(order, cutoff, kind))
    truth = signal.lfilter(b.astype(np.float64), a.astype(np.float64), X.astype(np.float64))
    theirs = np.abs(signal.lfilter(b, a, X) - truth).max()
    ours = np.abs(np.asarray(run(jnp.asarray(X), jnp.asarray(b), jnp.asarray(a))) - truth).max()
    assert ours <= 4 * theirs + 1e-6  # each rounds in another order


def test_it_is_that_of_torchaudio():
    """X = torch.tensor(x)[100:108]; B, A = torch.tensor([0.3, 0.2, 0.1]), torch.tensor([1.0, -0.5, 0.2])

    torchaudio.functional.lfilter(X, A, B, clamp=False)
    """
    want = [0.257015, 0.551269, 0.72515, 0.746672, 0.709635, 0.670434, 0.64208, 0.625196]
    np.testing.assert_allclose(run(SIGNAL[100:108], B, A), want, atol=2e-6)


def test_it_undoes_pre_emphasis():
    """And the other way round: numerator and denominator change places."""
    one, first = jnp.ones(1, jnp.float32), jnp.asarray([1.0, -0.97], jnp.float32)
    np.testing.assert_allclose(run(pre_emphasis.apply(SIGNAL), one, first), SIGNAL, atol=2e-6)
    np.testing.assert_allclose(run(SIGNAL, first, one), pre_emphasis.apply(SIGNAL), atol=2e-6)
    np.testing.assert_allclose(run(run(SIGNAL, B, A), A, B), SIGNAL, atol=2e-6)


def test_it_is_causal_and_its_pullback_is_not():
    moved = lambda at: run(SIGNAL[:9].at[at].add(1.0), B, A) - run(SIGNAL[:9], B, A)
    assert not moved(4)[:4].any()
    assert moved(4)[4:].all()
    dx, db, da = lfilter.vjp(SIGNAL[:9], B, A)[1](jnp.zeros(9, jnp.float32).at[4].set(1))
    assert not dx[5:].any()
    assert dx[:5].all()
    assert db.all()
    assert da.all()


def test_what_divides_all_has_a_gradient():
    """y is that of b / c and a / c for any c, so along (b, a) nothing changes."""
    db, da = jax.jit(jax.grad(lambda b, a: (lfilter.apply(SIGNAL, b, a) ** 2).sum(), (0, 1)))(B, A)
    np.testing.assert_allclose(jnp.vdot(db, B) + jnp.vdot(da, A), 0, atol=1e-3)


def test_the_matrix_is_triangular():
    M = np.asarray(lfilter.matrix((9,), B, A))
    np.testing.assert_allclose(M @ np.asarray(SIGNAL[:9]), run(SIGNAL[:9], B, A), atol=1e-6)
    assert not np.triu(M, 1).any()
    assert lfilter.matrix((0,), B, A).shape == (0, 0)


ERRORS = [
    (
        lambda: lfilter.apply(SIGNAL, B, A.at[0].set(0)),
        ValueRangeError,
        "lfilter.apply: a[0], which divides, is 0.\n"
        "  expected  a[0] ≠ 0\n"
        "  got       a: float32[3], a[0] = 0",
    ),
    (
        lambda: lfilter.apply(SIGNAL, B[None], A),
        ShapeError,
        "lfilter.apply: b is not a row of coefficients.\n"
        "  expected  b: float[k], k ≥ 1 a known number\n"
        "  got       b: float32[1, 3]",
    ),
]

test_errors = golden(ERRORS)
