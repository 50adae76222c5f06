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
OTHERS = ("normuon", "soap", "shampoo")
STANDARD = functools.partial(jax.numpy_dtype_promotion, "standard")
SQUARE = {"w": of(Abstract((4, 4), jnp.float64), "a b", "io")}
WIDE = {"w": of(Abstract((3, 5), jnp.float64), "a b", "io")}


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def runner(name, specs, **options):
    """Gradients, one after the other, to what is added to params of 0 by each; compiled once."""
    optimizer = MAKERS[name](1.0, specs, **options)
    start, update = jax.jit(optimizer.init), jax.jit(lambda grad, state: optimizer.update(grad, state, grad))

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


@pytest.mark.parametrize("name", MAKERS)
def test_a_layer_of_a_stack_moves_as_it_would_alone(name):
    grads = [{"w": drawn(3, 3, 5, seed=i)} for i in range(4)]
    options = {"every": 2} if name in ("soap", "shampoo") else {}
    whole, alone = steps(name, stacked(WIDE, 3), grads, **options), runner(name, WIDE, **options)
    for layer in range(3):
        close([{"w": step["w"][layer]} for step in whole], alone([{"w": g["w"][layer]} for g in grads]))
    merged = {"w": dataclasses.replace(stacked(WIDE, 3)["w"], matrix=((3, 3, 5), "iio"))}
    wrong = steps(name, merged, grads, **options)
    assert np.abs(np.asarray(wrong[-1]["w"][0] - whole[-1]["w"][0])).max() > 1e-3


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


@pytest.mark.parametrize("name", MAKERS)
def test_heads_are_one_wide_matrix_or_apart(name):
    params = {"w": Abstract((4, 2, 3), jnp.float64)}
    grads = [{"w": drawn(4, 2, 3, seed=i)} for i in range(3)]
    together = steps(name, {"w": of(params["w"], "d h e", "ioo")}, grads)
    flat = {"w": of(Abstract((4, 6), jnp.float64), "d o", "io")}
    wide = steps(name, flat, [{"w": grad["w"].reshape(4, 6)} for grad in grads])
    close([{"w": step["w"].reshape(4, 6)} for step in together], wide)
    apart = steps(name, {"w": of(params["w"], "d h e", "iso")}, grads)
    one = {"w": of(Abstract((4, 3), jnp.float64), "d e", "io")}
    alone = runner(name, one)
    for head in range(2):
        heads = [{"w": grad["w"][:, head]} for grad in grads]
        close([{"w": step["w"][:, head]} for step in apart], alone(heads))
    assert np.abs(np.asarray(apart[-1]["w"] - together[-1]["w"])).max() > 1e-3


@pytest.mark.parametrize("name", MAKERS)
def test_a_gradient_of_zero_moves_nothing(name):
    grads = [{"w": jnp.zeros((3, 5))}] * 3
    for step in steps(name, WIDE, grads):
        np.testing.assert_array_equal(step["w"], 0)


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


@pytest.mark.parametrize("name", MAKERS)
def test_gains_biases_and_tables_are_adams(name):
    specs = {
        "w": of(Abstract((3, 5), jnp.float64), "a b", "io"),
        "b": of(Abstract((5,), jnp.float64), "b"),
        "t": of(Abstract((7, 2), jnp.float64), "v d", "table"),
    }
    grads = [{"w": drawn(3, 5, seed=i), "b": drawn(5, seed=i), "t": drawn(7, 2, seed=i)} for i in range(3)]
    given = steps(name, specs, grads, b1=0.9, b2=0.99)
    adam = optax.adam(1.0, b1=0.9, b2=0.99)
    state = adam.init(grads[0])
    for grad, step in zip(grads, given, strict=True):
        with STANDARD():
            want, state = adam.update(grad, state)
        close([{"b": step["b"], "t": step["t"]}], [{"b": want["b"], "t": want["t"]}])
    with_tables = steps(name, specs, grads, tables=True, b1=0.9, b2=0.99)
    assert np.abs(np.asarray(with_tables[-1]["t"] - given[-1]["t"])).max() > 1e-3


@pytest.mark.parametrize("name", MAKERS)
def test_decay_is_by_role(name):
    specs = {"w": WIDE["w"], "b": of(Abstract((5,), jnp.float64), "b")}
    optimizer = MAKERS[name](0.1, specs, weight_decay=0.5)
    params = {"w": jnp.ones((3, 5)), "b": jnp.ones(5)}
    with STANDARD():
        step, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(step["w"], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(step["b"], 0)


def test_muon_is_optax_muon_where_that_knows_the_matrix():
    grads = [{"w": drawn(6, 4, seed=i)} for i in range(4)]
    specs = {"w": of(Abstract((6, 4), jnp.float64), "a b", "io")}
    ours = steps("muon", specs, grads, nesterov=False, method="direct")
    theirs = optax.contrib.muon(
        1.0, ns_coeffs=_POLYNOMIALS, nesterov=False, consistent_rms=0.2, weight_decay=0.0
    )
    state, given = theirs.init(grads[0]), []
    with STANDARD():
        for grad in grads:
            step, state = theirs.update(grad, state, grad)
            given.append(step)
    close(ours, given, 1e-5)
    assert np.abs(np.asarray(steps("muon", specs, grads)[-1]["w"] - given[-1]["w"])).max() > 1e-3, "nesterov"


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
        basis, _ = fn.linalg.kronecker.refreshed(factor, basis)
    np.testing.assert_allclose(basis[0].T @ basis[0], np.eye(6), atol=1e-9)
    np.testing.assert_allclose(np.abs(np.sum(np.asarray(basis[0]) * q, 0)), 1, atol=1e-5)


def test_a_factor_that_is_not_finite_leaves_the_basis():
    basis, order = fn.linalg.kronecker.refreshed(jnp.full((1, 3, 3), jnp.nan), jnp.eye(3)[None])
    np.testing.assert_array_equal(basis[0], np.eye(3))
    np.testing.assert_array_equal(order[0], np.arange(3))


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


@pytest.mark.parametrize("name", ["muon", *(pytest.param(n, marks=pytest.mark.slow) for n in OTHERS)])
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
