"""Symmetric operators that are known by their products: eigenvalues, trace, diagonal, solutions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import funcnet as fn
from funcnet.errors import DTypeError, ShapeError, ValueRangeError
from funcnet.linalg import Estimate, estimates, krylov, symmetric
from tests.errors import golden


def of(values, seed=0):
    """A symmetric matrix with these eigenvalues."""
    n = len(values)
    q = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]
    return (q * np.asarray(values)) @ q.T


def operator(M):
    return symmetric(Partial(jnp.matmul, b=jnp.asarray(M)), len(M), M.dtype.name)


# Ends that are repeated, and an inside; so large that their operator is not built.
REPEATED = [3.0, 3.0, 3.0, 2.5, *np.tile([-0.5, -0.2, 0.0, 0.5], 12), *[-2.0] * 4]
CASES = {
    "repeated": REPEATED,
    "of low rank": [2.0, 2.0, 1.0, *[0.0] * 53],
    "zero": [0.0] * 56,
    "one": [1.0] * 56,
    "negative": [-1.0, -1.0, -2.0, -3.0, *[-5.0] * 48, *[-9.0] * 4],
}


def ends_are_found(eigen, M):
    """The four largest values of M, and of −M, are NumPy's."""
    for N in (M, -M):
        np.testing.assert_allclose(eigen(N)[0], np.linalg.eigvalsh(N)[::-1][:4], atol=1e-6)


@functools.partial(jax.jit, static_argnums=1)
def eigen(M, steps=6):
    return krylov.eigen(lambda x: x @ M, len(M), 4, dtype=M.dtype, steps=steps)


@pytest.mark.parametrize("case", CASES)
def test_the_ends_of_a_spectrum(case):
    M = of(CASES[case])
    ends_are_found(eigen, M)
    values, vectors, residuals = eigen(M)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(4), atol=1e-10)
    np.testing.assert_allclose(
        np.linalg.norm(vectors @ M - values[:, None] * vectors, axis=1), residuals, atol=1e-10
    )


def test_a_single_vector_misses_what_is_repeated(monkeypatch):
    monkeypatch.setattr(krylov, "EXTRA", -3)  # a block of one
    with pytest.raises(AssertionError):
        ends_are_found(lambda M: eigen(M, 7), of(REPEATED))


def test_eigenvalues_close_in_from_within():
    M = of(np.linspace(-1, 1, 56))
    want = np.linalg.eigvalsh(M)
    values, _, residuals = eigen(M)
    assert (operator(M).eigenvalues(4, steps=2) < values).all()
    assert (values <= want[::-1][:4] + 1e-12).all()
    for value, residual in zip(values, residuals, strict=True):
        assert np.abs(want - value).min() <= residual + 1e-12


def test_eigenvalues_of_an_operator():
    """All of a small one; those of a larger one by its products; the same in float32."""
    M = of(REPEATED)
    A, want = operator(M), np.linalg.eigvalsh(M)
    np.testing.assert_allclose(A.eigenvalues(), want[::-1], atol=1e-10)
    np.testing.assert_allclose(A.eigenvalues(which="smallest"), want, atol=1e-10)
    single = operator(M.astype(np.float32))
    np.testing.assert_allclose(single.eigenvalues(4, which="smallest", steps=6), want[:4], atol=2e-6)
    assert A.T is A
    values, norm = jax.jit(lambda A: (A.singular_values(4), A.norm()))(A)
    np.testing.assert_allclose(values, [3, 3, 3, 2.5])
    np.testing.assert_allclose(norm.upper, 3, rtol=0.05)


@pytest.mark.parametrize("steps", [6, 16], ids=["by products", "built"])
def test_derivatives_where_eigenvalues_are_equal(steps):
    """Of the sum of the three equal ones: that of tr(P M), P their projector."""
    M = of(REPEATED)
    _, vectors = np.linalg.eigh(M)
    P = vectors[:, -3:] @ vectors[:, -3:].T
    gradient = jax.grad(lambda M: operator(M).eigenvalues(3, steps=steps).sum())(M)
    np.testing.assert_allclose((gradient + gradient.T) / 2, P, atol=1e-5)


# ---- trace and diagonal

INDEFINITE = of([30.0, -20.0, 10.0, *np.linspace(-1, 2, 57)])
KEYS = 50


def sampled(*functions):
    """Of each function 50 estimates for INDEFINITE, by 24 products and from as many keys."""
    M = jnp.asarray(INDEFINITE)

    def one(key):
        of = lambda f: f(lambda x: x @ M, len(M), key, dtype=M.dtype, products=24)
        return [of(function) for function in functions]

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), KEYS))


@functools.cache
def right():
    return sampled(estimates.trace, estimates.diagonal)


def is_unbiased(found: Estimate, truth):
    """Values lie within four errors, their mean within 4.5 of its own; the errors are what values vary by."""
    value, error = map(np.asarray, found)
    within = np.abs(value - truth) <= 4 * error
    assert within.mean() >= 0.95
    spread = value.std(0, ddof=1)
    assert (np.abs(value.mean(0) - truth) <= 4.5 * spread / KEYS**0.5).all()
    assert 0.7 < np.sqrt((error**2).mean() / (spread**2).mean()) < 1.4


TRUTHS = np.trace(INDEFINITE), np.diag(INDEFINITE)


@pytest.mark.parametrize("what", [0, 1], ids=["trace", "diagonal"])
def test_estimates_are_unbiased(what):
    found, truth = right()[what], TRUTHS[what]
    is_unbiased(found, truth)
    for factor in (8**0.5, 0.5):  # the error of one sample, not of their mean; half of it
        with pytest.raises(AssertionError):
            is_unbiased(found._replace(error=found.error * factor), truth)


def test_what_is_counted_twice_is_found(monkeypatch):
    monkeypatch.setattr(estimates, "_beyond", lambda q, rows: rows)
    for found, truth in zip(sampled(estimates.trace, estimates.diagonal), TRUTHS, strict=True):
        with pytest.raises(AssertionError):
            is_unbiased(found, truth)


def test_the_space_of_most_of_it_makes_the_error_small(monkeypatch):
    monkeypatch.setattr(estimates, "_parts", _without_a_space)
    (plain,) = sampled(estimates.trace)
    is_unbiased(plain, TRUTHS[0])
    assert right()[0].error.mean() < 0.4 * plain.error.mean()


def _without_a_space(product, n, key, dtype, products):
    nothing, z = jnp.zeros((n, 1), dtype), jax.random.rademacher(key, (products, n), dtype)
    return nothing, nothing, z, product(z), z


def test_estimates_of_an_operator():
    A, key = operator(INDEFINITE), jax.random.key(0)
    for exact, truth in zip((A.trace(key), A.diagonal(key)), TRUTHS, strict=True):
        np.testing.assert_allclose(exact.value, truth, atol=1e-10)
        assert not np.any(exact.error)
    finer = A.diagonal(key, products=45)
    assert (np.abs(finer.value - TRUTHS[1]) <= 6 * finer.error).all()
    assert finer.error.mean() < 0.8 * right()[1].error.mean()


# ---- solutions


def test_solutions():
    M = of(np.linspace(0, 5, 30))
    A, b = operator(M), np.random.default_rng(1).standard_normal(30)
    for damping in (0.1, 1.0):
        x, residual = A.solve(b, damping, tol=1e-9)
        np.testing.assert_allclose(x, np.linalg.solve(M + damping * np.eye(30), b), rtol=1e-6)
        assert residual <= 2e-9
    rough, short = A.solve(b, 0.1, tol=1e-2), A.solve(b, 0.1, most=3)
    assert 1e-9 < rough.residual <= 1.1e-2
    left = b - (M + 0.1 * np.eye(30)) @ short.x
    np.testing.assert_allclose(short.residual, np.linalg.norm(left) / np.linalg.norm(b))
    assert short.residual > 1e-2
    zero = A.solve(np.zeros(30), 0.1)
    assert not np.any(zero.x)
    assert zero.residual == 0
    jitted = jax.jit(lambda A, b, damping: A.solve(b, damping))(A, b, 1.0)
    np.testing.assert_allclose(jitted.x, A.solve(b, 1.0).x)


def test_negative_curvature_is_met_and_said():
    M = of([-3.0, *np.linspace(1, 5, 9)])
    b = np.linalg.eigh(M)[1][:, 0]
    x, residual = operator(M).solve(b)
    assert not np.any(x)
    assert residual == 1


# ---- errors

A = operator(np.eye(3))
L = fn.linear.operator({"w": np.ones((3, 3))})

test_errors = golden(
    [
        (
            lambda: L.eigenvalues(1),
            ShapeError,
            "operator.eigenvalues: A (3, 3) is not symmetric.\n"
            "  expected  a symmetric operator\n"
            "  got       Operator(float64[3, 3])\n"
            "  hint      A.singular_values(k)",
        ),
        (
            lambda: L.trace(jax.random.key(0)),
            ShapeError,
            "operator.trace: A (3, 3) is not symmetric.\n"
            "  expected  a symmetric operator\n"
            "  got       Operator(float64[3, 3])",
        ),
        (
            lambda: A.eigenvalues(4),
            ValueRangeError,
            "operator.eigenvalues: k is 4.\n"
            "  expected  1 ≤ k ≤ 3, how many of the eigenvalues of A (3, 3) are wanted\n"
            "  got       k = 4",
        ),
        (
            lambda: symmetric(Partial(jnp.multiply, 2.0), 2000, "float32").eigenvalues(),
            ValueRangeError,
            "operator.eigenvalues: k is None.\n"
            "  expected  1 ≤ k ≤ 2000, how many of the eigenvalues of A (2000, 2000) are wanted\n"
            "  got       k = None",
        ),
        (
            lambda: symmetric(Partial(jnp.multiply, 2.0), 2000, "float32").norm(),
            ValueRangeError,
            "operator.norm: no upper bound of A (2000, 2000) is known by its products alone.\n"
            "  expected  a matrix of at most 1048576 elements, or of a layer\n"
            "  got       Operator(float32[2000, 2000])\n"
            '  hint      from below: eigenvalues(1) and eigenvalues(1, which="smallest").',
        ),
        (
            lambda: A.eigenvalues(1, which="top"),
            ValueRangeError,
            "operator.eigenvalues: which is 'top'.\n"
            '  expected  "largest" or "smallest"\n'
            "  got       'top'",
        ),
        (
            lambda: A.eigenvalues(1, steps=0),
            ValueRangeError,
            "operator.eigenvalues: steps is 0.\n  expected  1 or more\n  got       0",
        ),
        (
            lambda: A.diagonal(jax.random.key(0), products=5),
            ValueRangeError,
            "operator.diagonal: products is 5.\n"
            "  expected  6 or more: each of three parts needs two\n"
            "  got       5",
        ),
        (
            lambda: A.solve(np.ones(4)),
            ShapeError,
            "operator.solve: b is no vector of A (3, 3).\n  expected  b: float[3]\n  got       b: float64[4]",
        ),
        (
            lambda: A.eigenvalues(2.5),
            DTypeError,
            "operator.eigenvalues: k is no integer.\n"
            "  expected  1 ≤ k ≤ 3, how many of the eigenvalues of A (3, 3) are wanted\n"
            "  got       2.5 (float)",
        ),
        (
            lambda: A.eigenvalues(0),
            ValueRangeError,
            "operator.eigenvalues: k is 0.\n"
            "  expected  1 ≤ k ≤ 3, how many of the eigenvalues of A (3, 3) are wanted\n"
            "  got       0",
        ),
        (
            lambda: A.trace(0),
            DTypeError,
            "operator.trace: key is no random key.\n  expected  jax.random.key(seed)\n  got       0 (int)",
        ),
        (
            lambda: A.solve(np.ones(3), "a"),
            DTypeError,
            "operator.solve: damping is no number.\n  expected  a real number\n  got       'a' (str)",
        ),
        (
            lambda: A.solve(np.ones(3), -1.0),
            ValueRangeError,
            "operator.solve: damping is -1.0.\n  expected  0 or more\n  got       -1.0",
        ),
    ]
)
