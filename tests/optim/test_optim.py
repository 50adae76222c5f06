"""Optimizers by matrices: the laws that hold for all of them, each with a rule that breaks it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import ShapeDtypeStruct as Abstract

import funcnet as fn
from funcnet.errors import DTypeError, ShapeError, StructureError
from funcnet.linalg.polar import _POLYNOMIALS
from funcnet.nets import transformer
from funcnet.spec import of, stacked

MAKERS = {
    "muon": fn.optim.muon,
    "normuon": fn.optim.normuon,
    "soap": fn.optim.soap,
    "shampoo": fn.optim.shampoo,
}
STANDARD = functools.partial(jax.numpy_dtype_promotion, "standard")
# What normuon and shampoo do with leaves is muon's and soap's code.
FEW = ["muon", "soap", *(pytest.param(name, marks=pytest.mark.slow) for name in ("normuon", "shampoo"))]
REFRESHED = jax.jit(fn.linalg.kronecker.refreshed)
SQUARE = {"w": of(Abstract((4, 4), jnp.float64), "a b", "io")}
WIDE = {"w": of(Abstract((3, 5), jnp.float64), "a b", "io")}


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def runner(name, specs, *, params=None, rate=1.0, **options):
    """Gradients, one after the other, to what is added to the params by each; compiled once."""
    optimizer = MAKERS[name](rate, specs, **options)
    start, update = jax.jit(optimizer.init), jax.jit(lambda g, state: optimizer.update(g, state, params or g))

    def run(grads):
        given = []
        with STANDARD():  # optax's parts
            state = start(grads[0])
            for grad in grads:
                step, state = update(grad, state)
                given.append(step)
        return given

    return run


def steps(name, specs, grads, **options):
    return runner(name, specs, **options)(grads)


def close(ours, theirs, tolerance=1e-6):
    for a, b in zip(ours, theirs, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance), a, b)


@pytest.mark.parametrize("name", FEW)
def test_a_layer_of_a_stack_moves_as_it_would_alone(name):
    layers = ("0", "1", "2")
    stack = stacked(WIDE, 3)["w"]
    merged = dataclasses.replace(stack, matrix=((3, 3, 5), "iio"))
    specs = {"stack": stack, "merged": merged} | dict.fromkeys(layers, WIDE["w"])
    drawings = [drawn(3, 3, 5, seed=i) for i in range(4)]
    grads = [{"stack": g, "merged": g, **dict(zip(layers, g, strict=True))} for g in drawings]
    given = steps(name, specs, grads, **({"every": 2} if name in ("soap", "shampoo") else {}))
    for i, layer in enumerate(layers):
        close([step["stack"][i] for step in given], [step[layer] for step in given])
    assert np.abs(np.asarray(given[-1]["merged"][0] - given[-1]["0"])).max() > 1e-3


@pytest.mark.parametrize("name", ["muon", "soap", "shampoo"])
def test_a_rotated_gradient_gives_the_rotated_step(name):
    u, v = (np.linalg.qr(drawn(4, 4, seed=i))[0] for i in (8, 9))
    grads = [drawn(4, 4, seed=i) for i in range(4)]
    run = runner(name, SQUARE)
    plain, rotated = run([{"w": grad} for grad in grads]), run([{"w": u @ grad @ v} for grad in grads])
    if name == "shampoo":  # its direction; its length is that of Adam's step, which axes matter to
        unit = lambda step: step["w"] / jnp.maximum(jnp.linalg.norm(step["w"]), 1e-30)
        plain, rotated = [{"w": unit(s)} for s in plain], [{"w": unit(s)} for s in rotated]
    close([{"w": u @ step["w"] @ v} for step in plain], rotated, 1e-5)


def test_adam_breaks_the_law_of_rotation():
    u = np.linalg.qr(drawn(4, 4, seed=8))[0]
    grad, adam = drawn(4, 4), optax.scale_by_adam()
    step = lambda g: adam.update(g, adam.init(g))[0]
    with STANDARD():
        found = u @ step(grad) - step(u @ grad)
    assert np.abs(np.asarray(found)).max() > 0.1


@pytest.mark.parametrize("name", FEW)
def test_heads_are_one_wide_matrix_or_apart(name):
    leaf = Abstract((4, 2, 3), jnp.float64)
    one = of(Abstract((4, 3), jnp.float64), "d e", "io")
    specs = {
        "together": of(leaf, "d h e", "ioo"),
        "wide": of(Abstract((4, 6), jnp.float64), "d o", "io"),
        "apart": of(leaf, "d h e", "iso"),
        "alone": [one, one],
    }
    grads = [
        {"together": g, "wide": g.reshape(4, 6), "apart": g, "alone": [g[:, 0], g[:, 1]]}
        for g in (drawn(4, 2, 3, seed=i) for i in range(3))
    ]
    given = steps(name, specs, grads)
    close([step["together"].reshape(4, 6) for step in given], [step["wide"] for step in given])
    for head in range(2):
        close([step["apart"][:, head] for step in given], [step["alone"][head] for step in given])
    assert np.abs(np.asarray(given[-1]["apart"] - given[-1]["together"])).max() > 1e-3


@pytest.mark.parametrize("name", MAKERS)
def test_bfloat16_params(name):
    specs = {
        "w": of(Abstract((3, 5), jnp.bfloat16), "a b", "io"),
        "b": of(Abstract((5,), jnp.bfloat16), "b"),
    }
    half = [{"w": drawn(3, 5, seed=i), "b": drawn(5, seed=i)} for i in range(3)]
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), half)
    given = steps(name, specs, half)
    assert {leaf.dtype for leaf in jax.tree.leaves(given)} == {jnp.dtype("bfloat16")}
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(given))


@pytest.mark.parametrize("name", FEW)
def test_gains_biases_and_tables_are_adams(name):
    specs = {
        "w": of(Abstract((3, 5), jnp.float64), "a b", "io"),
        "b": of(Abstract((5,), jnp.float64), "b"),
        "t": of(Abstract((7, 2), jnp.float64), "v d", "table"),
    }
    grads = [{"w": drawn(3, 5, seed=i), "b": drawn(5, seed=i), "t": drawn(7, 2, seed=i)} for i in range(3)]
    given = steps(name, specs, grads, b1=0.9, b2=0.99)
    adam = optax.adam(1.0, b1=0.9, b2=0.99)
    state, update = adam.init(grads[0]), jax.jit(adam.update)
    for grad, step in zip(grads, given, strict=True):
        with STANDARD():
            want, state = update(grad, state)
        close([{"b": step["b"], "t": step["t"]}], [{"b": want["b"], "t": want["t"]}])
    if name == "muon":  # who asks for tables is the same for all
        with_tables = steps(name, specs, grads, tables=True, b1=0.9, b2=0.99)
        assert np.abs(np.asarray(with_tables[-1]["t"] - given[-1]["t"])).max() > 1e-3


@pytest.mark.parametrize("name", MAKERS)
def test_a_gradient_of_zero_moves_nothing_and_decay_is_by_role(name):
    specs = {"w": WIDE["w"], "b": of(Abstract((5,), jnp.float64), "b")}
    params = {"w": np.ones((3, 5)), "b": np.ones(5)}
    zeros = [jax.tree.map(np.zeros_like, params)] * 3
    for step in steps(name, specs, zeros, params=params, rate=0.1, weight_decay=0.5):
        np.testing.assert_allclose(step["w"], -0.05, rtol=1e-6)
        np.testing.assert_array_equal(step["b"], 0)


def test_muon_is_optax_muon_where_that_knows_the_matrix():
    grads = [{"w": drawn(6, 4, seed=i)} for i in range(4)]
    specs = {"w": of(Abstract((6, 4), jnp.float64), "a b", "io")}
    ours = steps("muon", specs, grads, nesterov=False, method="direct")
    theirs = optax.contrib.muon(
        1.0, ns_coeffs=_POLYNOMIALS, nesterov=False, consistent_rms=0.2, weight_decay=0.0
    )
    state, given, update = theirs.init(grads[0]), [], jax.jit(theirs.update)
    with STANDARD():
        for grad in grads:
            step, state = update(grad, state, grad)
            given.append(step)
    close(ours, given, 1e-5)
    assert np.abs(np.asarray(steps("muon", specs, grads)[-1]["w"] - given[-1]["w"])).max() > 1e-3, "nesterov"


@pytest.mark.parametrize("shape", [(5, 5), (4, 7), (7, 4)])
def test_singular_values_come_near_to_one(shape):
    u, v = (np.linalg.qr(drawn(n, n, seed=n))[0] for n in shape)
    before = np.geomspace(1, 0.0035, min(shape))
    m = (u[:, : len(before)] * (before / np.linalg.norm(before))) @ v[: len(before)]
    factor, exact = jax.jit(lambda m: [fn.linalg.polar(m, method=way)[0] for way in ("auto", "svd")])(m[None])
    found = np.linalg.svd(factor, compute_uv=False)
    assert found.min() > 0.78
    assert found.max() < 1.22
    np.testing.assert_allclose(exact, u[:, : len(before)] @ v[: len(before)], atol=1e-9)


def test_every_option_of_soap_changes_something():
    grads = [{"w": drawn(4, 4, seed=i)} for i in range(6)]
    plain = steps("soap", SQUARE, grads)[-1]["w"]
    for options in ({"every": 1}, {"most": 3}, {"b1": 0.5}, {"b2": 0.5}, {"eps": 1.0}):
        assert np.abs(np.asarray(steps("soap", SQUARE, grads, **options)[-1]["w"] - plain)).max() > 1e-4, (
            options
        )


def test_soap_without_bases_is_adam_after_its_first_step():
    grads = [{"w": drawn(4, 4, seed=i)} for i in range(5)]
    ours = steps("soap", SQUARE, grads, most=1, b1=0.9, b2=0.9)
    mean, square = np.zeros((4, 4)), np.zeros((4, 4))
    for i, (grad, step) in enumerate(zip(grads, ours, strict=True)):
        g = np.asarray(grad["w"])
        mean = 0.9 * mean + 0.1 * g
        square = square if i == 0 else 0.9 * square + 0.1 * g * g
        want = 0 if i == 0 else -(mean / (1 - 0.9 ** (i + 1))) / (np.sqrt(square / (1 - 0.9**i)) + 1e-8)
        np.testing.assert_allclose(step["w"], want, rtol=1e-6)


def test_bases_follow_the_eigenvectors():
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    factor = jnp.asarray(q @ np.diag([9.0, 5.0, 3.0, 1.0, 0.2, 0.0]) @ q.T)[None]
    basis = jnp.eye(6)[None]
    for _ in range(40):
        basis, _ = REFRESHED(factor, basis)
    np.testing.assert_allclose(basis[0].T @ basis[0], np.eye(6), atol=1e-9)
    np.testing.assert_allclose(np.abs(np.sum(np.asarray(basis[0]) * q, 0)), 1, atol=1e-5)


def test_a_factor_that_is_not_finite_leaves_the_basis():
    basis, order = REFRESHED(jnp.full((1, 6, 6), jnp.nan), jnp.eye(6)[None])
    np.testing.assert_array_equal(basis[0], np.eye(6))
    np.testing.assert_array_equal(order[0], np.arange(6))


def test_the_refresh_of_many_bases_calls_no_cholesky_of_lapack():
    specs = {"a": of(Abstract((2, 3, 37), jnp.float32), "s a b", "sio"), "b": SQUARE["w"]}
    optimizer = fn.optim.soap(1.0, specs)
    grads = {"a": jnp.zeros((2, 3, 37), jnp.float32), "b": jnp.zeros((4, 4))}
    with STANDARD():
        program = (
            jax.jit(optimizer.update).lower(grads, jax.eval_shape(optimizer.init, grads), grads).as_text()
        )
    assert "syevd" in program, "eigenvectors at the start"
    assert "potrf" not in program, "two of them can wait for each other for ever"
    assert "potrf" in jax.jit(jnp.linalg.cholesky).lower(jnp.eye(3)).as_text()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", MAKERS)
def test_specs_of_another_tree_are_refused(name):
    params = {"w": jnp.ones((3, 5)), "b": jnp.ones(5)}
    with pytest.raises(StructureError, match="specs are those of another tree"):
        MAKERS[name](1.0, WIDE).init(params)
    with pytest.raises(ShapeError, match=r"specs\['w'\] is of another leaf"):
        MAKERS[name](1.0, WIDE).init({"w": jnp.ones((5, 3))})
    with pytest.raises(DTypeError, match=r"specs\['w'\] is no Spec"):
        MAKERS[name](1.0, {"w": 3})


def test_what_is_rounding_in_the_bases_of_soap_is_no_step():
    column, row = np.float32(drawn(4, 1)), np.float32(drawn(1, 4, seed=1))
    specs = {"w": of(Abstract((4, 4), jnp.float32), "a b", "io")}
    step = np.asarray(steps("soap", specs, [{"w": column * row}] * 3)[-1]["w"])
    assert np.linalg.svd(step, compute_uv=False)[1] < 0.05


@pytest.mark.slow  # docs/optim.md trains one by muon
@pytest.mark.parametrize("name", MAKERS)
def test_a_transformer_learns(name):
    config = transformer.Config(11, context=8, layers=1, heads=2, d=4)
    params = transformer.init(jax.random.key(0), config)
    ids = jnp.tile(jnp.arange(8), (2, 1))

    def loss(params, batch, key):
        del key
        logits = transformer.apply(params, batch[:, :-1], config)
        return fn.cross_entropy.apply(logits, batch[:, 1:]).mean()

    optimizer = MAKERS[name](0.02, transformer.specs(config))
    state = fn.train.init(params, optimizer, key=jax.random.key(1))
    step = fn.train.make_step(loss, optimizer)
    first = None
    for _ in range(8):
        state, metrics = step(state, ids)
        first = float(metrics["loss"]) if first is None else first
    assert float(metrics["loss"]) < 0.9 * first
