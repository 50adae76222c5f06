"""Operators against the dense matrix of the contract: products, spectra, certified norms, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import funcnet as fn
from funcnet.errors import ShapeError, ValueRangeError
from funcnet.linalg import circulant, krylov


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


CASES = {
    "1-D": ({"w": normal(3, 2, 3)}, (7, 2), {}),
    "causal": ({"w": normal(4, 2, 2)}, (7, 2), {"padding": "causal", "dilation": 2}),
    "valid": ({"w": normal(4, 2, 2)}, (9, 2), {"padding": "valid"}),
    "groups": ({"w": normal(3, 3, 2, 4)}, (6, 5, 4), {"groups": 2, "stride": 2}),
    "circular": ({"w": normal(3, 2, 2, 3)}, (6, 5, 2), {"padding_mode": "circular"}),
    "circular, stride": (
        {"w": normal(3, 3, 2, 4)},
        (6, 4, 4),
        {"padding_mode": "circular", "stride": (2, 1), "dilation": (1, 2), "groups": 2},
    ),
    "circular, longer": ({"w": normal(5, 1, 1)}, (3, 1), {"padding_mode": "circular"}),
    "reflect": ({"w": normal(3, 3, 2, 2)}, (5, 4, 2), {"padding_mode": "reflect"}),
    "3-D": ({"w": normal(2, 3, 2, 2, 2)}, (3, 4, 3, 2), {}),
    "point": ({"w": normal(1, 1, 3, 3)}, (4, 4, 3), {}),
    "of one output": ({"w": normal(4, 2, 1)}, (4, 2), {"padding": "valid"}),
}


def build_nothing(monkeypatch):
    """Every operator is a large one."""
    monkeypatch.setattr("funcnet.linalg.operator._DENSE", 0)
    monkeypatch.setattr("funcnet.linalg.operator._TINY", 0)


@pytest.fixture(params=CASES, name="case")
def _case(request):
    params, shape, options = CASES[request.param]
    return fn.conv.operator(params, shape, **options), fn.conv.matrix(params, shape, **options)


def test_products_and_matrices(case):
    A, M = case
    v, u = normal(A.shape[1], seed=1), normal(A.shape[0], 3, seed=2)
    assert A.shape == M.shape
    np.testing.assert_allclose(A @ v, M @ v, atol=1e-12)
    np.testing.assert_allclose(A.T @ u, M.T @ u, atol=1e-12)
    np.testing.assert_allclose(A.T.T @ v, M @ v, atol=1e-12)
    for B, N in ((A, M), (A.T, M.T)):
        np.testing.assert_array_equal(B.matrix(), N)
        np.testing.assert_allclose(B.matrix("bcoo").todense(), N, atol=1e-12)


def test_spectrum(case):
    A, M = case
    want = np.linalg.svd(M, compute_uv=False)
    np.testing.assert_allclose(A.singular_values(), want, atol=1e-10)
    np.testing.assert_allclose(A.T.singular_values(2 if len(want) > 1 else 1), want[:2], atol=1e-10)
    assert np.isclose(A.condition(), want[0] / want[-1])
    assert A.rank() == np.linalg.matrix_rank(M)
    assert A.rank(tol=float(want.mean())) == (want > want.mean()).sum()


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_norm_is_certified(case, large, monkeypatch):
    """Both ways: by the matrix of a small operator, by the products and frequencies of a large one."""
    if large:
        build_nothing(monkeypatch)
    A, M = case
    want = np.linalg.norm(M, 2)
    lower, upper = jax.jit(lambda A: A.norm(steps=8))(A)
    assert lower <= want <= upper
    assert lower > 0.9 * want
    if not large:
        assert upper < 1.05 * want


def test_the_frequencies_of_a_circular_border_are_exact(monkeypatch):
    build_nothing(monkeypatch)
    for name in ("circular", "circular, stride", "circular, longer", "point"):
        params, shape, options = CASES[name]
        A = fn.conv.operator(params, shape, **options)
        want = np.linalg.svd(fn.conv.matrix(params, shape, **options), compute_uv=False)
        np.testing.assert_allclose(A.singular_values(), want, atol=1e-10)
        assert jax.jit(lambda A: A.norm().upper)(A) < 1.05 * want[0]


def test_the_circular_bound_fails_for_a_reflected_border():
    """Which is why it is not used there."""
    params = {"w": jnp.ones((3, 1, 1))}
    M = fn.conv.matrix(params, (4, 1), padding_mode="reflect")
    taps = fn.conv.operator(params, (6, 1), padding_mode="circular").taps()
    assert circulant.gram_bound(circulant.blocks(taps, 1)[0]) < np.linalg.norm(M, 2)
    assert fn.conv.operator(params, (4, 1), padding_mode="reflect").above is None


def test_the_norm_of_the_reshaped_kernel_is_another_number():
    params = {"w": normal(3, 3, 4, 4)}
    A = fn.conv.operator(params, (8, 8, 4))
    reshaped = np.linalg.norm(np.asarray(params["w"]).reshape(-1, 4), 2)
    assert abs(reshaped / float(A.norm().lower) - 1) > 0.2


def test_transposed_convolution_and_linear():
    params = {"w": normal(4, 4, 2, 3)}
    A = fn.conv_transpose.operator(params, (3, 3, 3), stride=2)
    M = fn.conv_transpose.matrix(params, (3, 3, 3), stride=2)
    np.testing.assert_allclose(A.matrix(), M)
    np.testing.assert_allclose(A @ normal(27), M @ normal(27), atol=1e-12)
    w = normal(5, 3)
    L = fn.linear.operator({"w": w}, (5,))
    np.testing.assert_allclose(L @ normal(5), normal(5) @ w)
    np.testing.assert_allclose(L.T @ normal(3), w @ normal(3))
    np.testing.assert_allclose(L.matrix("bcoo").todense(), w.T)
    np.testing.assert_allclose(L.singular_values(), np.linalg.svd(w, compute_uv=False))
    assert L.norm().lower <= np.linalg.norm(w, 2) <= L.norm().upper


def test_linear_without_building_it(monkeypatch):
    build_nothing(monkeypatch)
    w = normal(40, 30)
    L = fn.linear.operator({"w": w})
    want = np.linalg.svd(w, compute_uv=False)
    np.testing.assert_allclose(L.singular_values(), want, atol=1e-10)
    np.testing.assert_allclose(L.singular_values(3), want[:3], rtol=1e-6)
    assert L.norm().upper < 1.05 * want[0]


@settings(max_examples=15, deadline=None)
@given(st.sampled_from([1, 7, 30]), st.sampled_from([1, 11]), st.sampled_from([1, 4]), st.integers(0, 99))
def test_krylov_never_exceeds_the_truth(rows, columns, k, seed):
    M = normal(rows, columns, seed=seed)
    k = min(k, rows, columns)
    u, s, v = krylov.largest(lambda x: x @ M.T, lambda y: y @ M, columns, k, dtype=M.dtype, steps=30)
    want = np.linalg.svd(M, compute_uv=False)[:k]
    assert (s <= want * (1 + 1e-12)).all()
    np.testing.assert_allclose(jnp.einsum("kr,rc,kc->k", u, M, v), s, atol=1e-10)


def test_krylov_finds_repeated_values():
    M = jnp.diag(jnp.array([3.0, 3.0, 3.0, 1.0] + [0.5] * 26))
    _, s, _ = krylov.largest(lambda x: x @ M.T, lambda y: y @ M, 30, 4, dtype=M.dtype)
    np.testing.assert_allclose(s, [3, 3, 3, 1], atol=1e-10)


@pytest.mark.parametrize("steps", [0, 1, 3, 6])
def test_gram_bound_is_above_and_closes_in(steps):
    M = jax.lax.complex(normal(5, 4, 7), normal(5, 4, 7, seed=1))
    want = np.linalg.svd(M, compute_uv=False).max()
    bound = float(circulant.gram_bound(M, steps))
    assert want * (1 - 1e-12) <= bound <= 4 ** (0.5 / 2**steps) * want * (1 + 1e-12)
    assert circulant.gram_bound(jnp.zeros((2, 3))) < 1e-6
    assert circulant.gram_bound(jnp.zeros((0, 3, 2))) == 0


@pytest.mark.parametrize("padding_mode", ["zeros", pytest.param("circular", marks=pytest.mark.slow)])
@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_gradients_exist_where_singular_values_repeat(padding_mode, large, monkeypatch):
    """An orthogonal layer: every singular value is 1, where the derivatives of singular vectors are NaN."""
    if large:
        build_nothing(monkeypatch)
    w = jnp.zeros((3, 3, 2, 2)).at[1, 1].set(jnp.eye(2))
    A = lambda w: fn.conv.operator({"w": w}, (4, 4, 2), padding_mode=padding_mode)
    for f in (
        lambda w: A(w).norm().lower,
        lambda w: A(w).norm().upper,
        lambda w: A(w).singular_values(3).sum(),
    ):
        value, grad = jax.jit(jax.value_and_grad(f))(w)
        assert jnp.isfinite(grad).all()
        scaled = (f(1.001 * w) - value) / 1e-3  # f(t w) = t f(w), so ⟨∇f, w⟩ = f
        np.testing.assert_allclose(jnp.vdot(grad, w), value, rtol=1e-6)
        np.testing.assert_allclose(scaled, value, rtol=1e-3)


def test_gradient_of_the_norm_by_differences():
    w, t = normal(3, 3, 2, 3), normal(3, 3, 2, 3, seed=1)
    for pick in (0, 1):
        f = jax.jit(lambda w, pick=pick: fn.conv.operator({"w": w}, (5, 4, 2)).norm()[pick])
        want = (f(w + 1e-6 * t) - f(w - 1e-6 * t)) / 2e-6
        np.testing.assert_allclose(jnp.vdot(jax.grad(f)(w), t), want, rtol=1e-5)


def test_an_operator_passes_through_jit():
    A = fn.conv.operator({"w": normal(3, 2, 2)}, (7, 2))
    assert repr(A) == "Operator(float64[14, 14])"
    norm = jax.jit(lambda A: A.norm())
    np.testing.assert_allclose(norm(A), A.norm())
    B = fn.conv.operator({"w": normal(3, 2, 2, seed=1)}, (7, 2))
    norm(B)
    assert norm._cache_size() == 1


# ---- errors


def text_of(error, f):
    with pytest.raises(error) as caught:
        f()
    return str(caught.value)


def test_an_image_is_not_a_vector(unchecked):
    A = fn.conv.operator({"w": normal(3, 3, 1, 2)}, (4, 4, 1))
    assert text_of(ShapeError, lambda: A @ normal(4, 4, 1)) == (
        "operator: x does not fit a matrix (32, 16).\n"
        "  expected  x: float[16] or float[16, m]\n"
        "  got       x: float64[4, 4, 1]\n"
        "  hint      A @ x.ravel(): it has 16 elements."
    )


def test_out_of_range(unchecked, monkeypatch):
    A = fn.conv.operator({"w": normal(3, 1, 2)}, (4, 1))
    assert "1 ≤ k ≤ 4" in text_of(ValueRangeError, lambda: A.singular_values(5))
    assert '"dense" or "bcoo"' in text_of(ValueRangeError, lambda: A.matrix("csr"))
    assert "in_shape has 1 entries, but one x has 2 axes" in text_of(
        ShapeError, lambda: fn.conv.operator({"w": normal(3, 1, 2)}, (4,))
    )
    build_nothing(monkeypatch)
    assert "k is missing" in text_of(ValueRangeError, A.singular_values)


def test_empty_operators():
    A = fn.conv.operator({"w": normal(5, 1, 2)}, (3, 1), padding="valid")
    assert A.shape == (0, 3)
    assert A.norm() == (0, 0)
    assert (A @ normal(3)).shape == (0,)
