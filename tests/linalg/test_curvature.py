"""Curvature of a loss in its params: against dense matrices by jax.hessian and jax.jacobian, and by loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import funcnet as fn
from funcnet.errors import DTypeError, ShapeError, StructureError
from funcnet.linalg import _batches, fisher, ggn, hessian
from funcnet.train import Mean
from tests.errors import golden

N, C = 4, 3


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


PARAMS = {"hidden": {"w": normal(2, 6, seed=1), "b": normal(6, seed=2)}, "out": {"w": normal(6, C, seed=3)}}
BATCH = (normal(N, 2, seed=4), jnp.array([0, 2, 1, 2]))
FLAT, TREE = ravel_pytree(PARAMS)


def model(params, batch):
    hidden = jnp.tanh(batch[0] @ params["hidden"]["w"] + params["hidden"]["b"])
    return hidden @ params["out"]["w"]


def linear_model(params, batch):
    """The same outputs, linear in params["out"]; the other leaves are not used."""
    return (batch[0] @ normal(2, 6, seed=5)) @ params["out"]["w"]


def of_outputs(outputs, batch):
    return fn.cross_entropy.apply(outputs, batch[1]).mean()


def loss(params, batch):
    return of_outputs(model(params, batch), batch)


def linear_loss(params, batch):
    return of_outputs(linear_model(params, batch), batch)


def losses(params, batch):
    return fn.cross_entropy.apply(model(params, batch), batch[1])


@functools.cache
def dense(f):
    """The Hessian of f(params, batch), by JAX, of the flat params."""
    return np.asarray(jax.jit(jax.hessian(lambda flat: f(TREE(flat), BATCH)))(FLAT))


@functools.cache
def built(make, *functions):
    return np.asarray(make(*functions, PARAMS, BATCH).matrix())


def equal(found, want):
    np.testing.assert_allclose(found, want, rtol=1e-9, atol=1e-11)


def is_gauss_newton(found, in_linear):
    """Symmetric, without negative eigenvalues, of rank n (c − 1) at most, the Hessian of a linear model."""
    equal(found, found.T)
    values = np.linalg.eigvalsh(found)
    assert values[0] > -1e-12
    assert (values > 1e-10).sum() <= N * (C - 1)
    equal(in_linear, dense(linear_loss))


# ---- the three


def test_hessian():
    equal(built(hessian, loss), dense(loss))
    with pytest.raises(AssertionError):
        equal(built(ggn, model, of_outputs), dense(loss))
    with pytest.raises(AssertionError):
        equal(built(hessian, loss) * 1.0001, dense(loss))


def test_gauss_newton():
    linear = built(ggn, linear_model, of_outputs)
    is_gauss_newton(built(ggn, model, of_outputs), linear)
    jacobian = jacobian_of_the_model()
    for wrong in (built(hessian, loss), jacobian.T @ jacobian):  # negative values; a rank of n c
        with pytest.raises(AssertionError):
            is_gauss_newton(wrong, linear)
    with pytest.raises(AssertionError):  # a sum, not a mean
        is_gauss_newton(built(ggn, model, of_outputs), N * linear)


def test_gauss_newton_by_the_jacobian():
    """H of cross entropy is diag p − p pᵀ, for each example."""
    jacobian = jacobian_of_the_model().reshape(N, C, -1)
    p = np.asarray(jax.nn.softmax(model(PARAMS, BATCH)))
    inner = np.einsum("nc,cd->ncd", p, np.eye(C)) - np.einsum("nc,nd->ncd", p, p)
    want = np.einsum("ncp,ncd,ndq->pq", jacobian, inner, jacobian) / N
    equal(built(ggn, model, of_outputs), want)


@functools.cache
def jacobian_of_the_model():
    return np.asarray(jax.jit(jax.jacobian(lambda flat: model(TREE(flat), BATCH).ravel()))(FLAT))


def test_fisher_by_a_loop():
    gradient = jax.jit(jax.grad(lambda flat, x, y: losses(TREE(flat), (x[None], y[None]))[0]))
    rows = [gradient(FLAT, x, y) for x, y in zip(*BATCH, strict=True)]
    equal(built(fisher, losses), sum(np.outer(g, g) for g in rows) / N)


def test_fisher_of_the_models_own_labels_is_gauss_newton():
    """Their expectation, Σ p(y) g gᵀ over the labels y, taken by losses times √p."""

    def expected(params, batch):
        logits = model(params, batch)
        p = jax.lax.stop_gradient(fn.softmax.apply(logits))[jnp.arange(N), batch[1]]
        return jnp.sqrt(p) * fn.cross_entropy.apply(logits, batch[1])

    parts = [fisher(expected, PARAMS, (BATCH[0], jnp.full(N, y))).matrix() for y in range(C)]
    equal(sum(parts), built(ggn, model, of_outputs))
    with pytest.raises(AssertionError):  # that of the data is another matrix
        equal(built(fisher, losses), built(ggn, model, of_outputs))


# ---- batches, of a model with one matrix

W, X = np.asarray(normal(2, 2, seed=6)), np.asarray(normal(N, 2, seed=4))
PARTS = [X[:1], X[1:2], X[2:]]  # two of equal shape, which one loop runs over, and another


def small(w, x):
    return jnp.tanh(x @ w)


def squares(w, x):
    return jnp.square(small(w, x)).sum(-1)


def mean_of_squares(w, x):
    return squares(w, x).mean()


def weighted(outputs, x):
    return Mean((x[:, 0] ** 2 * jnp.square(outputs).sum(-1)).sum(), (x[:, 0] ** 2).sum())


def test_batches_are_their_mean(monkeypatch):
    """By their examples, or by their own weights."""
    for make, *functions in ((hessian, mean_of_squares), (ggn, small, weighted), (fisher, squares)):
        equal(make(*functions, W, PARTS) @ W, make(*functions, W, X) @ W)
    monkeypatch.setattr(_batches, "examples", lambda *_: 1)  # evenly
    with pytest.raises(AssertionError):
        equal(hessian(lambda w, x: mean_of_squares(w, x), W, PARTS) @ W, hessian(mean_of_squares, W, X) @ W)


def test_a_loss_with_metrics_and_weight():
    of = lambda w, x: (weighted(small(w, x), x), {"metric": 0.0})
    total = lambda w: weighted(small(w, X), X).total / (X[:, 0] ** 2).sum()
    equal(hessian(of, W, X) @ W, jnp.tensordot(jax.jit(jax.hessian(total))(W), W, 2))


def test_a_batch_without_weight_says_nothing():
    assert not np.any(hessian(lambda w, x: Mean(0.0 * mean_of_squares(w, x), 0), W, X) @ W)


def test_every_batch_has_its_key():
    def noisy(w, x, key=None):
        return mean_of_squares(w if key is None else w + jax.random.normal(key, w.shape), x)

    key = jax.random.key(3)
    mean = lambda w: sum(noisy(w, X, jax.random.fold_in(key, i)) for i in (0, 1)) / 2
    equal(hessian(noisy, W, [X, X], key=key) @ W, jnp.tensordot(jax.jit(jax.hessian(mean))(W), W, 2))
    hessian(noisy, W, X)  # without one


# ---- the face


def test_trees_and_vectors():
    H, v = hessian(loss, PARAMS, BATCH), np.asarray(normal(36, 36, seed=7))
    equal(H @ v, dense(loss) @ v)
    tree = jax.tree.map(np.asarray, TREE(v[0]))
    found = H @ tree
    assert jax.tree.structure(found) == jax.tree.structure(PARAMS)
    equal(np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(found)]), dense(loss) @ v[0])
    x, residual = ggn(model, of_outputs, PARAMS, BATCH).solve(tree, 0.5, tol=1e-10)
    found = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(x)])
    np.testing.assert_allclose(found, np.linalg.solve(built(ggn, model, of_outputs) + 0.5 * np.eye(36), v[0]))
    assert residual < 1e-9


def test_params_that_are_one_array():
    w = normal(2, 3)
    H = hessian(lambda w, x: ((x @ w) ** 2).sum(), w, BATCH[0])
    equal(H @ w, 2 * BATCH[0].T @ BATCH[0] @ w)
    equal((H @ w.ravel()).reshape(2, 3), H @ w)


def test_spectrum():
    want = np.linalg.eigvalsh(dense(loss))
    np.testing.assert_allclose(hessian(loss, PARAMS, BATCH).eigenvalues(2), want[::-1][:2])


def test_new_data_compile_nothing_and_are_no_constants():
    traced = []

    def counted(params, batch):
        traced.append(1)
        return loss(params, batch)

    H = hessian(counted, PARAMS, BATCH)
    before = len(traced), H @ FLAT
    other = hessian(counted, jax.tree.map(np.negative, PARAMS), (-BATCH[0], BATCH[1]))
    assert not np.allclose(other @ FLAT, before[1])
    assert len(traced) == before[0]
    assert jax.tree.structure(other) == jax.tree.structure(H)  # nor in any program that takes it
    assert not jax.make_jaxpr(lambda H, v: H @ v)(H, FLAT).consts
    assert any(leaf.shape == BATCH[0].shape for leaf in jax.tree.leaves(H))


def test_narrow_params_have_vectors_in_float32():
    params = {"a": jnp.ones((2, 2), jnp.bfloat16), "b": jnp.ones(2, jnp.float32)}

    def of(params, x):
        return jnp.square(x @ params["a"].astype(jnp.float32)).sum() + (params["b"] ** 2).sum()

    x = np.asarray(BATCH[0], np.float32)
    H = hessian(of, params, x)
    found = H @ params
    assert H.dtype == "float32"
    assert [leaf.dtype for leaf in jax.tree.leaves(found)] == [jnp.bfloat16, jnp.float32]
    np.testing.assert_allclose(found["a"].astype(jnp.float32), 2 * x.T @ x @ np.ones((2, 2)), rtol=2e-2)
    np.testing.assert_array_equal(found["b"], [2, 2])


@pytest.mark.slow
def test_through_the_rules_of_operations():
    """Of a net whose gradients are hand-derived ones: central differences of its gradient."""
    keys = jax.random.split(jax.random.key(0), 2)
    params = {
        "conv": fn.conv.init(keys[0], 1, 2, kernel=(3,)),
        "norm": fn.layer_norm.init(keys[0], 2),
        "out": fn.linear.init(keys[1], 2, C),
    }
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
    images = normal(N, 5, 1)

    def outputs(params, batch):
        x = fn.layer_norm.apply(params["norm"], fn.conv.apply(params["conv"], batch[0]))
        return fn.linear.apply(params["out"], fn.gelu.apply(x).mean(1))

    def of(params, batch):
        return of_outputs(outputs(params, batch), batch)

    batch = images, BATCH[1]
    flat, tree = ravel_pytree(params)
    v = normal(flat.size)
    gradient = jax.jit(lambda flat: ravel_pytree(jax.grad(of)(tree(flat), batch))[0])
    want = (gradient(flat + 1e-5 * v) - gradient(flat - 1e-5 * v)) / 2e-5
    np.testing.assert_allclose(hessian(of, params, batch) @ v, want, atol=1e-8)
    jacobian = jax.jit(jax.jacfwd(lambda flat: outputs(tree(flat), batch)))(flat)
    p = np.asarray(fn.softmax.apply(outputs(params, batch)))
    jv = jacobian @ v
    want = np.einsum("ncp,nc->p", jacobian, p * jv - p * (p * jv).sum(1, keepdims=True)) / N
    np.testing.assert_allclose(ggn(outputs, of_outputs, params, batch) @ v, want, atol=1e-12)


# ---- errors


def vector_loss(params, batch):
    return losses(params, batch)


H = lambda: hessian(loss, PARAMS, BATCH)

test_errors = golden(
    [
        (
            lambda: hessian(vector_loss, PARAMS, BATCH),
            ShapeError,
            "linalg.hessian: the loss is not a scalar.\n"
            "  expected  float64[]\n"
            "  got       float64[4]\n"
            "  hint      average the losses of the examples: .mean()",
        ),
        (
            lambda: hessian(None, PARAMS, BATCH),
            DTypeError,
            "linalg.hessian: loss is not a function.\n"
            "  expected  loss(params, batch) or loss(params, batch, key)\n"
            "  got       None (NoneType)",
        ),
        (
            lambda: ggn(lambda params: params, of_outputs, PARAMS, BATCH),
            StructureError,
            "linalg.ggn: outputs does not take the arguments that it is given.\n"
            "  expected  outputs(params, batch) or outputs(params, batch, key)\n"
            "  got       outputs(params)",
        ),
        (
            lambda: ggn(lambda params, batch: batch[1], of_outputs, PARAMS, BATCH),
            DTypeError,
            "linalg.ggn: outputs is not floating-point.\n"
            "  expected  a pytree of floating-point arrays\n"
            "  got       int64[4]",
        ),
        (
            lambda: fisher(loss, PARAMS, BATCH),
            ShapeError,
            "linalg.fisher: losses did not return one number per example.\n"
            "  expected  float[n], one number per example\n"
            "  got       float64[]\n"
            "  hint      leave out the mean over the examples",
        ),
        (
            lambda: hessian(loss, {"steps": np.array(3)}, BATCH),
            DTypeError,
            "linalg.hessian: params['steps'] is no floating-point array.\n"
            "  expected  a pytree of floating-point arrays\n"
            "  got       int64[]",
        ),
        (
            lambda: hessian(loss, {}, BATCH),
            StructureError,
            "linalg.hessian: params have no leaf.\n"
            "  expected  a pytree of floating-point arrays\n"
            "  got       a dict",
        ),
        (
            lambda: hessian(loss, PARAMS, []),
            StructureError,
            "linalg.hessian: there is no batch.\n  expected  one batch or more\n  got       []",
        ),
        (
            lambda: hessian(loss, PARAMS, iter([BATCH])),
            StructureError,
            "linalg.hessian: batches are an iterator, and every product goes over them.\n"
            "  expected  a batch, or a list of batches\n"
            "  got       a list_iterator\n"
            "  hint      list(batches), if it ends",
        ),
        (
            lambda: hessian(loss, PARAMS, [BATCH, BATCH[0]]),
            StructureError,
            "linalg.hessian: batches[1] is not like the first one.\n"
            "  expected  a batch, or a list of batches with the same parts\n"
            "  got       batches[1]: float64[4, 2]\n"
            "  hint      a list is a list of batches; a batch with several parts is a tuple or a dict",
        ),
        (
            lambda: hessian(loss, PARAMS, ("a", BATCH[1])),
            DTypeError,
            "linalg.hessian: batches holds what is no array of numbers.\n"
            "  expected  a pytree of arrays\n"
            "  got       'a' (str)",
        ),
        (
            lambda: hessian(
                lambda p, b: b[0].sum() * p["out"]["w"].sum(), PARAMS, [(*BATCH, jnp.ones(3))] * 2
            ),
            ShapeError,
            "linalg.hessian: the arrays of a batch do not agree on the number of examples.\n"
            "  expected  arrays whose first axes are equally long\n"
            "  got       float64[4, 2], int64[4], float64[3]\n"
            "  hint      a loss that is a train.Mean(total, weight) says by itself how much a batch counts",
        ),
        (
            lambda: H() @ {"hidden": PARAMS["hidden"]},
            StructureError,
            "operator: x is not like params.\n"
            "  expected  x: hidden.b, hidden.w, out.w; or a vector [36]\n"
            "  got       x: hidden.b, hidden.w",
        ),
        (
            lambda: H().solve(jax.tree.map(np.transpose, PARAMS)),
            ShapeError,
            "operator.solve: b['hidden']['w'] is not like the leaf of params.\n"
            "  expected  b['hidden']['w']: float[2, 6]\n"
            "  got       b['hidden']['w']: float64[6, 2]",
        ),
        (
            lambda: H() @ jax.tree.map(lambda leaf: leaf.astype(int), PARAMS),
            DTypeError,
            "operator: x['hidden']['b'] is not floating-point.\n"
            "  expected  x['hidden']['b']: float[6]\n"
            "  got       x['hidden']['b']: int64[6]",
        ),
        (
            lambda: H() @ np.ones(3),
            ShapeError,
            "operator: x does not fit a matrix (36, 36).\n"
            "  expected  x: float[36] or float[36, m]\n"
            "  got       x: float64[3]",
        ),
    ]
)
