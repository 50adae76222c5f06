"""Operators against the dense matrix of the contract: products, spectra, certified norms, gradients."""

import functools

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


@functools.cache
def built(name):
    """The operator of a case, and its matrix. (What is asked of an operator is compiled whole, for speed.)"""
    params, shape, options = CASES[name]
    matrix = jax.jit(lambda params: fn.conv.matrix(params, shape, **options))
    return fn.conv.operator(params, shape, **options), np.asarray(matrix(params))


@pytest.fixture(params=CASES, name="case")
def _case(request):
    return built(request.param)


def test_products_and_matrices(case):
    A, M = case
    v, u = normal(A.shape[1], seed=1), normal(A.shape[0], 3, seed=2)
    assert A.shape == M.shape

    @jax.jit
    def of(A, v, u):
        return A @ v, A.T @ u, A.T.T @ v, [(B.matrix(), B.matrix("bcoo").todense()) for B in (A, A.T)]

    av, atu, again, matrices = of(A, v, u)
    np.testing.assert_allclose(av, M @ v, atol=1e-12)
    np.testing.assert_allclose(atu, M.T @ u, atol=1e-12)
    np.testing.assert_allclose(again, M @ v, atol=1e-12)
    for (dense, entries), N in zip(matrices, (M, M.T), strict=True):
        np.testing.assert_array_equal(dense, N)
        np.testing.assert_allclose(entries, N, atol=1e-12)


def test_spectrum(case):
    A, M = case
    want = np.linalg.svd(M, compute_uv=False)

    @jax.jit
    def of(A):
        two = A.T.singular_values(2 if len(want) > 1 else 1)
        return A.singular_values(), two, A.condition(), A.rank(), A.rank(tol=float(want.mean()))

    values, two, condition, rank, above_mean = of(A)
    np.testing.assert_allclose(values, want, atol=1e-10)
    np.testing.assert_allclose(two, want[:2], atol=1e-10)
    assert np.isclose(condition, want[0] / want[-1])
    assert rank == np.linalg.matrix_rank(M)
    assert above_mean == (want > want.mean()).sum()


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
        A, M = built(name)
        want = np.linalg.svd(M, compute_uv=False)
        values, upper = jax.jit(lambda A: (A.singular_values(), A.norm().upper))(A)
        np.testing.assert_allclose(values, want, atol=1e-10)
        assert upper < 1.05 * want[0]


def test_the_circular_bound_fails_for_a_reflected_border():
    """Which is why it is not used there."""
    params = {"w": np.ones((3, 1, 1))}

    @jax.jit
    def of(params):
        taps = fn.conv.operator(params, (6, 1), padding_mode="circular").taps()
        bound = circulant.gram_bound(circulant.blocks(taps, 1)[0])
        return bound, fn.conv.matrix(params, (4, 1), padding_mode="reflect")

    bound, M = of(params)
    assert bound < np.linalg.norm(M, 2)
    assert fn.conv.operator(params, (4, 1), padding_mode="reflect").above is None


def test_the_norm_of_the_reshaped_kernel_is_another_number():
    params = {"w": normal(3, 3, 4, 4)}
    A = fn.conv.operator(params, (8, 8, 4))
    reshaped = np.linalg.norm(np.asarray(params["w"]).reshape(-1, 4), 2)
    assert abs(reshaped / float(jax.jit(lambda A: A.norm().lower)(A)) - 1) > 0.2


def test_transposed_convolution_and_linear():
    params = {"w": normal(4, 4, 2, 3)}

    @jax.jit
    def of_conv(params, v):
        A = fn.conv_transpose.operator(params, (3, 3, 3), stride=2)
        return A.matrix(), A @ v, fn.conv_transpose.matrix(params, (3, 3, 3), stride=2)

    A, av, M = of_conv(params, normal(27))
    np.testing.assert_allclose(A, M)
    np.testing.assert_allclose(av, M @ normal(27), atol=1e-12)

    @jax.jit
    def of_linear(w, v, u):
        L = fn.linear.operator({"w": w}, (5,))
        return L @ v, L.T @ u, L.matrix("bcoo").todense(), L.singular_values(), L.norm()

    w = np.asarray(normal(5, 3))
    lv, ltu, entries, values, norm = of_linear(w, normal(5), normal(3))
    np.testing.assert_allclose(lv, normal(5) @ w)
    np.testing.assert_allclose(ltu, w @ normal(3))
    np.testing.assert_allclose(entries, w.T)
    np.testing.assert_allclose(values, np.linalg.svd(w, compute_uv=False))
    assert norm.lower <= np.linalg.norm(w, 2) <= norm.upper


def test_linear_without_building_it(monkeypatch):
    build_nothing(monkeypatch)
    w = normal(40, 30)
    L = fn.linear.operator({"w": w})
    want = np.linalg.svd(w, compute_uv=False)
    values, three, norm = jax.jit(lambda L: (L.singular_values(), L.singular_values(3), L.norm()))(L)
    np.testing.assert_allclose(values, want, atol=1e-10)
    np.testing.assert_allclose(three, want[:3], rtol=1e-6)
    assert norm.upper < 1.05 * want[0]


@settings(max_examples=15, deadline=None)
@given(st.sampled_from([1, 7, 30]), st.sampled_from([1, 11]), st.sampled_from([1, 4]), st.integers(0, 99))
def test_krylov_never_exceeds_the_truth(rows, columns, k, seed):
    M = normal(rows, columns, seed=seed)
    k = min(k, rows, columns)
    u, s, v = _largest(M, k)
    want = np.linalg.svd(M, compute_uv=False)[:k]
    assert (s <= want * (1 + 1e-12)).all()
    np.testing.assert_allclose(np.einsum("kr,rc,kc->k", u, M, v), s, atol=1e-10)


@functools.partial(jax.jit, static_argnums=1)
def _largest(M, k):
    return krylov.largest(lambda x: x @ M.T, lambda y: y @ M, M.shape[1], k, dtype=M.dtype, steps=30)


def test_krylov_finds_repeated_values():
    _, s, _ = _largest(np.diag([3.0, 3.0, 3.0, 1.0] + [0.5] * 26), 4)
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
    w = np.zeros((3, 3, 2, 2))
    w[1, 1] = np.eye(2)
    A = lambda w: fn.conv.operator({"w": w}, (4, 4, 2), padding_mode=padding_mode)
    for f in (
        lambda w: A(w).norm().lower,
        lambda w: A(w).norm().upper,
        lambda w: A(w).singular_values(3).sum(),
    ):
        of = jax.jit(jax.value_and_grad(f))
        value, grad = of(w)
        assert np.isfinite(grad).all()
        further, _ = of(1.001 * np.asarray(w))
        scaled = (further - value) / 1e-3  # f(t w) = t f(w), so ⟨∇f, w⟩ = f
        np.testing.assert_allclose(np.vdot(grad, w), value, rtol=1e-6)
        np.testing.assert_allclose(scaled, value, rtol=1e-3)


def test_gradient_of_the_norm_by_differences():
    w, t = np.asarray(normal(3, 3, 2, 3)), np.asarray(normal(3, 3, 2, 3, seed=1))
    norm = lambda w: fn.conv.operator({"w": w}, (5, 4, 2)).norm()
    f, gradients = jax.jit(norm), jax.jit(jax.jacrev(norm))
    ahead, behind = f(w + 1e-6 * t), f(w - 1e-6 * t)
    for gradient, a, b in zip(gradients(w), ahead, behind, strict=True):
        np.testing.assert_allclose(np.vdot(gradient, t), (a - b) / 2e-6, rtol=1e-5)


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
