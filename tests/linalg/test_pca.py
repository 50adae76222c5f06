"""Principal components: laws that broken versions break, derivatives, pieces, and bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.decomposition import PCA

import funcnet as fn
from funcnet.errors import DTypeError, FuncnetError, ShapeError, ValueRangeError
from funcnet.linalg import pca
from tests.errors import golden

N, D, K = 41, 7, 3
EXACT = ("covariance", "svd")
WAYS = (*EXACT, "randomized")  # "auto" is one of them


def drawn(n, d, seed=0, offset=0.0):
    """Rows whose standard deviations fall off by 0.6 from one direction to the next, turned at random."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((d, d)))[0]
    return (rng.standard_normal((n, d)) * 0.6 ** np.arange(d)) @ turn + offset


def with_variances(*variances, n=29, seed=0):
    """Rows with exactly these variances along their own directions, about a mean that is not 0."""
    rng = np.random.default_rng(seed)
    d = len(variances)
    rows = rng.standard_normal((n, d))
    rows = np.linalg.qr(rows - rows.mean(0))[0] * np.sqrt(np.asarray(variances) * (n - 1))
    return rows @ np.linalg.qr(rng.standard_normal((d, d)))[0].T + rng.standard_normal(d)


def oracle(x, k):
    found = PCA(k, svd_solver="full").fit(np.asarray(x, np.float64))
    total = np.var(x, axis=0, ddof=1, dtype=np.float64).sum()
    return pca.PCA(*map(jnp.asarray, (found.mean_, found.components_, found.explained_variance_, total)))


def apart(a, b):
    return max(float(np.abs(np.asarray(s) - np.asarray(t)).max()) for s, t in zip(a, b, strict=True))


# ---- laws: each takes a function like pca.fit, and broken ones below must fail -----------------------------


def is_scikit_learns(fit):
    for shape, k in (((N, D), K), ((5, 11), 4)):
        x = drawn(*shape, offset=3.0)
        assert apart(fit(jnp.asarray(x), k), oracle(x, k)) < 1e-12


def is_orthonormal(fit):
    v = fit(jnp.asarray(drawn(N, D)), K).components
    assert np.abs(v @ v.T - np.eye(K)).max() < 1e-13


def leaves_out_least(fit):
    """Eckart and Young: neither random directions nor a small turn of these leave out less."""
    x = drawn(N, D, offset=2.0)
    found, rng = fit(jnp.asarray(x), K), np.random.default_rng(1)

    def left(directions):
        q = np.linalg.qr(directions.T)[0]
        rest = (x - x.mean(0)) @ (np.eye(D) - q @ q.T)
        return (rest**2).sum() / (N - 1)

    v = np.asarray(found.components)
    least = left(v)
    assert abs(least - float(found.total - found.variances.sum())) < 1e-12
    for size in (1e-3, 1e-2, 1.0, 1e3):
        assert left(v + size * rng.standard_normal(v.shape)) > least


def turns_with_the_data(fit):
    x = drawn(N, D)
    turn = np.linalg.qr(np.random.default_rng(2).standard_normal((D, D)))[0]
    plain, turned = fit(jnp.asarray(x), K), fit(jnp.asarray(x @ turn), K)
    assert np.abs(plain.variances - turned.variances).max() < 1e-12
    assert np.abs(abs(turned.components @ (plain.components @ turn).T) - np.eye(K)).max() < 1e-12


def is_unmoved_by_a_shift(fit):
    x = drawn(N, D)
    plain, shifted = fit(jnp.asarray(x), K), fit(jnp.asarray(x + 100.0), K)
    assert apart(plain[1:], shifted[1:]) < 1e-11
    assert np.abs(shifted.mean - plain.mean - 100).max() < 1e-12


LAWS = (is_scikit_learns, is_orthonormal, leaves_out_least, turns_with_the_data, is_unmoved_by_a_shift)


@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("law", LAWS)
def test_laws(law, method):
    law(lambda x, k: pca.fit(x, k, method=method))


def test_the_randomized_method_agrees():
    x = drawn(90, 80)
    found = pca.fit(jnp.asarray(x), 4, method="randomized")
    assert apart(found, oracle(x, 4)) < 1e-9
    assert apart(found, oracle(x, 4)) > 0
    again = pca.fit(jnp.asarray(x), 4, method="randomized")
    assert apart(found, again) == 0, "the same random vectors"


BROKEN = {
    "divided by n": (lambda x, k: _with(x, k, variances=lambda v: v * 0.9), is_scikit_learns),
    "a sign": (lambda x, k: _with(x, k, components=lambda v: -v), is_scikit_learns),
    "the first k directions of another order": (lambda x, k: _with(x, k, components=lambda v: v[::-1]),
                                                is_scikit_learns),
    "not centred": (lambda x, k: oracle(np.concatenate([x, -x]), k), is_unmoved_by_a_shift),
    "every feature on its own": (lambda x, k: pca.fit(x, k)._replace(components=jnp.eye(x.shape[1])[:k]),
                                 leaves_out_least),
    "one direction a little off": (lambda x, k: _with(x, k, components=lambda v: v.at[0, 0].add(1e-4)),
                                   is_orthonormal),
    "the features standardised": (lambda x, k: pca.fit(x / x.std(0), k), turns_with_the_data),
}  # fmt: skip


def _with(x, k, **change):
    found = pca.fit(x, k)
    return found._replace(**{name: f(getattr(found, name)) for name, f in change.items()})


@pytest.mark.parametrize("name", BROKEN)
def test_laws_reject(name):
    fit, law = BROKEN[name]
    with pytest.raises(AssertionError):
        law(fit)


# ---- shapes and numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", WAYS)
def test_a_constant_column_and_fewer_rows_than_features(method):
    x = drawn(6, 9)
    x[:, 2] = 4.0
    found = pca.fit(jnp.asarray(x), 6, method=method)
    assert np.abs(found.components[:5, 2]).max() < 1e-12
    assert abs(found.variances[5]) < 1e-12, "six rows have five directions"
    assert np.abs(found.components @ found.components.T - np.eye(6)).max() < 1e-12
    assert np.abs(pca.reconstruct(found, pca.project(found, jnp.asarray(x))) - x).max() < 1e-12


@pytest.mark.parametrize("method", WAYS)
def test_equal_rows(method):
    found = pca.fit(jnp.full((5, 3), 2.0), 2, method=method)
    assert apart(found[2:], (jnp.zeros(2), jnp.zeros(()))) == 0, "nothing is left of a mean"
    assert np.abs(found.components @ found.components.T - np.eye(2)).max() < 1e-12
    assert not pca.whiten(found, jnp.full((1, 3), 5.0)).any(), "nothing varies"


def float32_far_away(fit):
    for offset in (0.0, 1e4):
        x = (drawn(500, D) + offset).astype(np.float32)
        exact, found = oracle(x, K), fit(jnp.asarray(x), K)
        assert found.variances.dtype == jnp.float32
        assert np.abs(np.asarray(found.variances, np.float64) / exact.variances - 1).max() < 3e-6
        assert np.abs(found.components - exact.components.astype(np.float32)).max() < 1e-5


@pytest.mark.parametrize("method", WAYS)
def test_float32_far_from_the_origin(method):
    float32_far_away(lambda x, k: pca.fit(x, k, method=method))


def in_pieces(x, k, sizes=(1, 99, 400), order=1):
    state, at = pca.empty(x.shape[1], x.dtype), 0
    for size in sizes[::order]:
        state, at = pca.update(state, x[at : at + size]), at + size
    return pca.finish(state, k)


def test_float32_far_from_the_origin_in_pieces():
    float32_far_away(in_pieces)


def test_one_pass_of_squares_is_rejected():
    def one_pass(x, k):
        c = (x.T @ x - len(x) * jnp.outer(x.mean(0), x.mean(0))) / (len(x) - 1)
        return pca.fit(x, k)._replace(variances=jnp.linalg.eigvalsh(c)[::-1][:k])

    with pytest.raises(AssertionError):
        float32_far_away(one_pass)


@pytest.mark.parametrize("method", WAYS)
def test_neither_large_nor_small_numbers_overflow(method):
    x = drawn(500, D).astype(np.float32)
    plain = pca.fit(jnp.asarray(x), K, method=method)
    for scale in (2.0**40, 2.0**-40):
        found = pca.fit(jnp.asarray(x * np.float32(scale)), K, method=method)
        assert np.abs(found.variances / jnp.float32(scale**2) - plain.variances).max() < 1e-6
        assert np.abs(found.components - plain.components).max() < 1e-5


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_data_are_summed_in_float32(dtype):
    x = jnp.asarray(drawn(N, D), dtype)
    found = pca.fit(x, K)
    assert {leaf.dtype for leaf in found} == {jnp.dtype(jnp.float32)}
    assert apart(found, oracle(np.asarray(x, np.float64), K)) < 1e-5
    assert pca.project(found, x).dtype == jnp.float32


# ---- options ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", WAYS)
def test_masked_rows_may_hold_anything(method):
    x = drawn(N, D)
    kept = np.arange(N) % 3 > 0
    hidden = np.where(kept[:, None], x, np.nan)
    found = pca.fit(jnp.asarray(hidden), K, method=method, mask=jnp.asarray(kept))
    assert apart(found, oracle(x[kept], K)) < 1e-12


def test_masked_rows_have_no_gradient():
    x, kept = drawn(N, D), np.arange(N) % 3 > 0
    hidden = jnp.asarray(np.where(kept[:, None], x, np.nan))

    @jax.jit
    def gradient(x, mask):
        return jax.grad(lambda x: pca.fit(x, K, mask=mask).variances.sum())(x)

    found = gradient(hidden, jnp.asarray(kept))
    assert not found[~kept].any(), "a row that does not count has none, were it NaN"
    assert found[kept].all()


def test_a_share_of_the_variance():
    x = with_variances(4.0, 3.0, 2.0, 1.0)
    for share, k in ((0.3, 1), (0.5, 2), (0.75, 3), (0.95, 4)):
        for method in ("auto", *EXACT):
            assert len(pca.fit(jnp.asarray(x), share, method=method).variances) == k
        state = pca.update(pca.empty(4, jnp.float64), jnp.asarray(x))
        assert len(pca.finish(state, share).variances) == k == PCA(share).fit(x).n_components_


def test_vmap():
    x = jnp.stack([jnp.asarray(drawn(9, 4, seed)) for seed in (0, 1)])
    found = jax.vmap(lambda x: pca.fit(x, 2))(x)
    for i in (0, 1):
        assert apart([leaf[i] for leaf in found], oracle(x[i], 2)) < 1e-12


def test_the_method_is_chosen_by_size():
    sizes = [(20_000, 64, 10), (2000, 784, 50), (1000, 3000, 50), (1000, 3000, 500), (9, 20, 2)]
    chosen = [pca._fastest((n, d), k) for n, d, k in sizes]
    assert chosen == ["covariance", "randomized", "randomized", "svd", "svd"]


# ---- pieces -----------------------------------------------------------------------------------------------


def test_any_pieces_are_all_at_once():
    x = jnp.asarray(drawn(N, D, offset=5.0))
    whole = pca.fit(x, K)
    for sizes in ((0, 20, 0, 21), (21, 20), (1,) * N):
        found = in_pieces(x, K, sizes)
        assert apart(found, whole) < 1e-12, sizes
    a = pca.update(pca.empty(D, jnp.float64), x[:20])
    b = pca.update(pca.empty(D, jnp.float64), x[20:])
    nothing = pca.empty(D, jnp.float64)
    for merged in (pca.merge(a, b), pca.merge(b, a), pca.merge(nothing, pca.merge(a, pca.merge(b, nothing)))):
        assert int(merged.n) == N
        assert apart(pca.finish(merged, K), whole) < 1e-12


def test_pieces_with_masks_and_far_apart():
    x = drawn(N, D)
    x[20:] += 50.0  # the second half is elsewhere: what lies between counts
    kept = np.arange(N) % 4 != 1
    hidden = np.where(kept[:, None], x, np.inf)
    state = pca.empty(D, jnp.float64)
    for part in (slice(0, 20), slice(20, N)):
        state = pca.update(state, jnp.asarray(hidden[part]), jnp.asarray(kept[part]))
    state = pca.update(state, jnp.full((3, D), jnp.nan), jnp.zeros(3, bool))
    assert int(state.n) == kept.sum()
    assert apart(pca.finish(state, K), oracle(x[kept], K)) < 1e-10


def test_states_scan():
    """The loop over pieces is a program: `update` in a scan, `finish` under jit."""
    x = jnp.asarray(drawn(40, D))

    @jax.jit
    def streamed(pieces):
        state, _ = jax.lax.scan(lambda s, piece: (pca.update(s, piece), None), pca.empty(D, x.dtype), pieces)
        return pca.finish(state, K)

    assert apart(streamed(x.reshape(8, 5, D)), pca.fit(x, K)) < 1e-12


# ---- what it is for ---------------------------------------------------------------------------------------


def test_project_reconstruct_whiten():
    x = drawn(N, D, offset=3.0)
    ours, theirs = pca.fit(jnp.asarray(x), K), PCA(K, svd_solver="full").fit(x)
    batch = jnp.asarray(x.reshape(1, N, D))
    y = pca.project(ours, batch)
    assert y.shape == (1, N, K)
    assert np.abs(y[0] - theirs.transform(x)).max() < 1e-12
    assert np.abs(pca.reconstruct(ours, y)[0] - theirs.inverse_transform(theirs.transform(x))).max() < 1e-12
    white = np.asarray(pca.whiten(ours, batch)[0])
    assert np.abs(np.cov(white.T) - np.eye(K)).max() < 1e-12
    assert pca.project(ours, jnp.asarray(x[0])).shape == (K,)


def test_left_out_and_projector():
    x = jnp.asarray(drawn(N, D))
    found = pca.fit(x, D)
    for k in (K, D):
        v = found.components[:k]
        assert np.abs(pca.projector(x, k) - v.T @ v).max() < 1e-13
        assert abs(pca.left_out(x, k) - found.variances[k:].sum()) < 1e-13


# ---- derivatives ------------------------------------------------------------------------------------------


def differences(f, x, direction, h=1e-6):
    return (f(x + h * direction) - f(x - h * direction)) / (2 * h)


def check(f, x, tolerance=1e-7):
    """Forward and backward against differences, along a random direction."""
    direction = jnp.asarray(np.random.default_rng(5).standard_normal(x.shape))
    y, forward = jax.jvp(f, (x,), (direction,))
    truth = differences(f, x, direction)
    assert np.isfinite(truth).all()
    assert np.abs(forward - truth).max() < tolerance * (1 + np.abs(truth).max())
    weights = jnp.asarray(np.random.default_rng(6).standard_normal(y.shape))
    (dx,) = jax.vjp(f, x)[1](weights)
    assert abs((dx * direction).sum() - (weights * truth).sum()) < tolerance * (1 + np.abs(truth).sum())


def flat(found):
    return jnp.concatenate([leaf.ravel() for leaf in found])


@pytest.mark.parametrize("shape", [(5, 8), pytest.param((11, 4), marks=pytest.mark.slow)])
def test_derivatives_of_all(shape):
    x = jnp.asarray(drawn(*shape))
    check(jax.jit(lambda x: flat((*pca.fit(x, 2), pca.projector(x, 2), pca.left_out(x, 2)))), x)


@pytest.mark.slow
def test_derivatives_are_those_of_every_method():
    x, direction = (jnp.asarray(drawn(9, 5, seed)) for seed in (0, 1))
    first, *others = (jax.jvp(lambda x, m=m: flat(pca.fit(x, 2, m)), (x,), (direction,))[1] for m in WAYS)
    for other in others:
        assert np.abs(first - other).max() < 1e-11


def test_at_equal_variances_what_is_unique_has_its_derivative():
    x = jnp.asarray(with_variances(3.0, 3.0, 1.0, 1.0, 0.5))

    @jax.jit
    def f(x):
        found = pca.fit(x, 2)
        return flat((found.mean, found.variances.sum(), found.total, pca.projector(x, 2), pca.left_out(x, 2)))

    check(f, x)


def test_what_is_left_out_has_a_kink_where_the_boundary_is_between_equal_ones():
    x, direction = jnp.asarray(with_variances(3.0, 3.0, 1.0)), jnp.asarray(drawn(29, 3))
    f = jax.jit(lambda x: pca.left_out(x, 1))
    y, slope = jax.jvp(f, (x,), (direction,))
    left, right = ((f(x + h * direction) - y) / h for h in (-1e-6, 1e-6))
    assert right + 1e-3 < slope < left - 1e-3


def test_at_equal_variances_what_is_not_unique_has_none():
    x = jnp.asarray(with_variances(3.0, 3.0, 1.0, 0.5))

    @jax.jit
    def tangents(x):
        made = (lambda x: pca.fit(x, 1).components, lambda x: pca.fit(x, 2).components)
        return [jax.jvp(f, (x,), (x * x,))[1] for f in (*made, lambda x: pca.projector(x, 1))]

    for tangent in tangents(x):
        assert np.isnan(tangent).any()


def test_autodiff_of_the_definition_fails_there():
    """The reason for the rules: JAX's own derivative of eigenvectors, in the same projector."""
    x = jnp.asarray(with_variances(3.0, 3.0, 1.0, 1.0, 0.5))

    def plain(x):
        v = jnp.linalg.svd(x - x.mean(0)[None], full_matrices=False)[2][:2]
        return v.T @ v

    with pytest.raises(AssertionError):
        check(jax.jit(plain), x)


@pytest.mark.slow
def test_the_derivative_of_what_is_left_out_is_differentiable():
    x = jnp.asarray(drawn(9, 4))
    check(jax.jit(jax.grad(lambda x: pca.left_out(x, 2))), x, 1e-6)


# ---- bad input --------------------------------------------------------------------------------------------

X = jnp.asarray(drawn(6, 4))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("kind", "path", "args"),
    [
        (ValueRangeError, "k", {"k": 5}),
        (ValueRangeError, "k", {"x": X[:3], "k": 4}),
        (ValueRangeError, "k", {"k": 0}),
        (ValueRangeError, "k", {"k": -1}),
        (ValueRangeError, "k", {"k": 1.0}),
        (ValueRangeError, "k", {"k": 0.0}),
        (ValueRangeError, "k", {"k": float("nan")}),
        (ValueRangeError, "k", {"k": float("inf")}),
        (ValueRangeError, "k", {"k": 0.5, "method": "randomized"}),
        (DTypeError, "k", {"k": True}),
        (DTypeError, "k", {"k": "2"}),
        (DTypeError, "k", {"k": None}),
        (DTypeError, "x", {"x": np.ones((3, 2), int)}),
        (DTypeError, "x", {"x": [[1.0, 2.0]]}),
        (DTypeError, "x", {"x": np.ma.masked_array(np.ones((3, 2)), np.eye(3, 2))}),
        (DTypeError, "x", {"x": None}),
        (ShapeError, "x", {"x": X[0]}),
        (ShapeError, "x", {"x": X.reshape(2, 3, 4)}),
        (ValueRangeError, "x", {"x": X[:1]}),
        (ValueRangeError, "x", {"x": X[:0]}),
        (ValueRangeError, "x", {"x": X.at[1, 1].set(jnp.nan)}),
        (ValueRangeError, "x", {"x": X.at[1, 1].set(jnp.inf)}),
        (ValueRangeError, "x", {"x": X * 1e200}),
        (ShapeError, "mask", {"mask": jnp.ones(5, bool)}),
        (ShapeError, "mask", {"mask": jnp.ones((6, 4), bool)}),
        (DTypeError, "mask", {"mask": jnp.ones(6)}),
        (ValueRangeError, "mask", {"mask": jnp.zeros(6, bool)}),
        (ValueRangeError, "k", {"mask": jnp.arange(6) < 2, "k": 3}),
        (ValueRangeError, "method", {"method": "full"}),
        (ValueRangeError, "method", {"method": None}),
    ],
)
def test_bad_input(kind, path, args):
    functions = [pca.fit] if args.keys() & {"method"} or args.get("k") == 0.5 else [pca.fit, pca.left_out]
    for function in functions:
        with pytest.raises(kind) as caught:
            function(**{"x": X, "k": 2, **args})
        error = caught.value
        assert isinstance(error, FuncnetError)
        assert error.path == path
        assert error.expected
        assert error.actual


test_errors = golden(
    [
        (
            lambda: pca.fit(X, 5),
            ValueRangeError,
            "pca.fit: k is 5.\n"
            "  expected  1 ≤ k ≤ 4     (min(n, d) of n = 6 rows, d = 4), or a share of the variance, "
            "0 < k < 1\n"
            "  got       k = 5",
        ),
        (
            lambda: pca.fit(X.at[1].set(jnp.nan), 2),
            ValueRangeError,
            "pca.fit: x has 4 elements that are not finite.\n"
            "  expected  finite rows\n"
            "  got       x: float64[6, 4], 1 rows with a NaN or an infinity\n"
            "  hint      mask=jnp.isfinite(x).all(1) leaves such rows out.",
        ),
        (
            lambda: jax.jit(lambda x: pca.fit(x, 0.9))(X),
            DTypeError,
            "pca.fit: k is a share of the variance, which is not known while it is traced.\n"
            "  expected  k: an int, 1 to 4\n"
            "  got       k = 0.9",
        ),
    ]
)


@pytest.mark.usefixtures("unchecked")
def test_bad_states():
    state = pca.update(pca.empty(4, jnp.float64), X)
    for kind, call in (
        (DTypeError, lambda: pca.empty(2.5)),
        (ValueRangeError, lambda: pca.empty(0)),
        (DTypeError, lambda: pca.empty(2, jnp.bfloat16)),
        (DTypeError, lambda: pca.empty(2, "other")),
        (ShapeError, lambda: pca.update(state, X[:, :3])),
        (ShapeError, lambda: pca.update(state, X[0])),
        (DTypeError, lambda: pca.update(state, jnp.ones((2, 4), jnp.int32))),
        (ShapeError, lambda: pca.update(state, X, jnp.ones(2, bool))),
        (ShapeError, lambda: pca.merge(state, pca.empty(3, jnp.float64))),
        (ValueRangeError, lambda: pca.finish(pca.empty(4), 1)),
        (ValueRangeError, lambda: pca.finish(pca.update(pca.empty(4), X[:1].astype(jnp.float32)), 1)),
        (ValueRangeError, lambda: pca.finish(pca.update(state, X.at[0, 0].set(jnp.nan)), 1)),
        (ValueRangeError, lambda: pca.finish(state, 5)),
        (DTypeError, lambda: jax.jit(lambda s: pca.finish(s, 0.5))(state)),
        (ShapeError, lambda: pca.project(pca.fit(X, 2), X[:, :3])),
        (ShapeError, lambda: pca.reconstruct(pca.fit(X, 2), X)),
        (DTypeError, lambda: pca.whiten(pca.fit(X, 2), [1.0] * 4)),
        (ValueRangeError, lambda: pca.projector(X, 0.5)),
        (DTypeError, lambda: pca.update(X, X)),
        (DTypeError, lambda: pca.merge(state, X)),
        (DTypeError, lambda: pca.finish(pca.fit(X, 2), 2)),
        (DTypeError, lambda: pca.project(state, X)),
    ):
        with pytest.raises(kind) as caught:
            call()
        assert caught.value.path


# ---- the linear autoencoder -------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_linear_autoencoder_ends_there(unchecked):
    from examples import linear_autoencoder

    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        loss, best, cosine = linear_autoencoder.main()
    assert best <= loss < best * 1.001
    assert cosine > 0.999


def test_the_name_is_public():
    assert fn.pca is pca
