"""Every rule that a model meets is found, at its file and line, and what cannot be verified is said."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, mlir

import funcnet as fn
from funcnet import rules
from funcnet.verifier import tape
from tests.budget import few

RNG = np.random.default_rng(3)
PARAMS = fn.linear.init(jax.random.key(0), 2, 2)
BATCH = jnp.asarray(RNG.standard_normal((3, 2)), "float32")


def ruled(factor=1.0, value=0.0):
    @jax.custom_vjp
    def s(x):
        return jnp.sin(x)

    def backward(x, dy):
        return (dy * jnp.cos(x) * factor,)

    s.defvjp(lambda x: (jnp.sin(x) + value, x), backward)
    return s


def squared(x):
    @jax.custom_jvp
    def square(x):
        return x * x

    square.defjvp(lambda primals, tangents: (primals[0] ** 2, 3 * primals[0] * tangents[0]))
    return square(x)


def pull(x, dy):
    return (dy * (1 - jnp.tanh(x) ** 2) * 1.3,)


def of_call(x):
    return jnp.tanh(x), jax.tree_util.Partial(pull, x)


def loss_of(f):
    return lambda params, batch: f(fn.linear.apply(params, batch)).sum()


def over_steps(s):
    return lambda x: lax.scan(lambda c, _: (s(c), None), x, None, length=3)[0]


WAYS = {
    "plain": lambda s: s,
    "jit": jax.jit,
    "checkpoint": jax.checkpoint,
    "vmap": jax.vmap,
    "scan of checkpoint of vmap": lambda s: over_steps(jax.checkpoint(jax.vmap(s))),
    "cond": lambda s: lambda x: lax.cond(x.sum() < 1e9, s, jnp.cos, x),
    "while": lambda s: lambda x: lax.while_loop(lambda c: c[1] < 2, lambda c: (s(c[0]), c[1] + 1), (x, 0))[0],
    "in a gradient": lambda s: jax.grad(lambda x: s(x).sum()),
}


@pytest.mark.parametrize("way", few(WAYS, 3))
def test_a_rule_is_found_wherever_it_is_called(way):
    for factor, right in ((1.0, True), (1.2, False)):
        report = fn.verify_model(loss_of(WAYS[way](ruled(factor))), PARAMS, BATCH)
        assert report.ok is right, str(report)
        assert [row.operation for row in report.rows if row.operation != "rules of JAX"] == ["linear", "s"]
        assert "test_model.py:" in report.rows[1].note
    assert "test_model.py:" in report.findings[0].location


def test_a_function_compiled_before_is_met_all_the_same():
    compiled = jax.jit(ruled(1.2))
    compiled(jnp.ones((3, 2)))
    assert fn.verify_model(loss_of(compiled), PARAMS, BATCH).wrong


@pytest.mark.parametrize("f", [squared, lambda x: rules.call(of_call, x), ruled(value=1.0)])
def test_every_kind_of_rule_is_judged(f):
    report = fn.verify_model(loss_of(f), PARAMS, BATCH)
    assert report.wrong
    assert len([row for row in report.rows if not row.ok]) == 1


def test_the_values_of_the_last_call_count_too():
    @jax.custom_vjp
    def clipped(x):
        return jnp.where(x < 100, x, 2 * x)

    clipped.defvjp(lambda x: (clipped(x), x), lambda x, dy: (dy,))
    twice = lambda params, batch: (
        clipped(batch).sum() + clipped(batch + 200).sum() + params["b"].sum().astype(batch.dtype)
    )
    assert fn.verify_model(twice, PARAMS, BATCH).wrong


def test_what_was_not_run_is_a_row_that_says_so():
    s = ruled()
    report = fn.verify_model(loss_of(lambda x: lax.cond(x.sum() > 1e9, s, jnp.cos, x)), PARAMS, BATCH)
    assert not report.ok
    assert report.is_unseen
    assert not report.wrong
    assert report.verdict == "1 of 2 gradients verified, and right"
    (row,) = report.unseen
    assert row.unseen.startswith("not verified: it was not run: in a branch not taken")
    assert "test_model.py:" in row.unseen
    for allow in ("s", row.unseen.rpartition("(")[2].rstrip(")").rpartition("/")[2]):
        allowed = fn.verify_model(
            loss_of(lambda x: lax.cond(x.sum() > 1e9, s, jnp.cos, x)), PARAMS, BATCH, allow=(allow,)
        )
        assert allowed.ok, str(allowed)


def test_a_rule_that_means_to_differ_can_be_allowed():
    rounded = jax.custom_vjp(lambda x: jnp.round(x))
    rounded.defvjp(lambda x: (jnp.round(x), None), lambda _, dy: (dy,))
    rounded.fun.__name__ = "rounded"
    assert fn.verify_model(loss_of(rounded), PARAMS, BATCH).wrong
    report = fn.verify_model(loss_of(rounded), PARAMS, BATCH, allow=("rounded",))
    assert report.ok
    assert report.rows[1].note.startswith("allowed: differs by ")


def test_a_primitive_of_ones_own_is_not_verified():
    third_p = Primitive("third")
    third_p.def_impl(lambda x: x / 3)
    third_p.def_abstract_eval(lambda x: x)
    mlir.register_lowering(third_p, mlir.lower_fun(lambda x: x / 3, multiple_results=False))
    ad.deflinear(third_p, lambda dy: [dy])
    report = fn.verify_model(loss_of(third_p.bind), PARAMS, BATCH)
    (row,) = report.unseen
    assert (row.operation, report.is_unseen) == ("third", True)
    assert "without a definition that JAX can differentiate" in row.unseen


def test_a_callback_is_judged_by_numbers():
    call = lambda x: jax.pure_callback(
        lambda v: np.sin(np.asarray(v)), jax.ShapeDtypeStruct(x.shape, x.dtype), x
    )
    for factor, right in ((1.0, True), (1.2, False)):
        f = jax.custom_vjp(call)
        f.defvjp(lambda x: (call(x), x), lambda x, dy, c=factor: (dy * jnp.cos(x) * c,))
        assert fn.verify_model(loss_of(f), PARAMS, BATCH).ok is right


def test_rules_of_jax_have_one_row():
    report = fn.verify_model(loss_of(lambda x: jax.nn.relu(x) + jax.nn.relu6(x)), PARAMS, BATCH)
    assert report.ok
    assert [row.operation for row in report.rows] == ["linear", "rules of JAX"]
    assert "relu" in report.rows[1].note


def test_a_model_without_rules():
    report = fn.verify_model(
        lambda params, batch: (batch @ params["w"].astype(batch.dtype)).sum(), PARAMS, BATCH
    )
    assert report.ok
    assert report.verdict == "0 rules met"
    assert report.notes == ("the loss meets no derivative rule: autodiff does all of it",)


def test_other_threads_keep_their_rules():
    s, seen = ruled(), []

    def other():
        seen.append(float(jax.grad(s)(0.5)))

    with tape.plain():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        with tape.met() as met:
            s(jnp.ones(()))
    assert seen == [pytest.approx(np.cos(0.5))]
    assert met == [s]
    assert jax.custom_vjp.__call__.__qualname__.startswith("custom_vjp")


def dropped(factor):
    """Dropout with a rule, whose key is an argument."""

    @jax.custom_vjp
    def drop(x, key):
        return jnp.where(jax.random.bernoulli(key, 0.6, x.shape), x / 0.6, 0)

    def backward(key, dy):
        return jnp.where(jax.random.bernoulli(key, 0.6, dy.shape), dy / 0.6 * factor, 0), None

    drop.defvjp(lambda x, key: (drop(x, key), key), backward)
    return drop


@pytest.mark.parametrize("factor", [1.0, 1.1])
@pytest.mark.parametrize("traced", few([True, False], 1))
def test_a_rule_with_a_random_key_is_judged(factor, traced):
    drop = dropped(factor)
    draw = jax.jit(jax.vmap(drop)) if traced else drop
    loss = lambda params, batch, key: draw(batch @ params, jax.random.split(key, 3) if traced else key).sum()
    report = fn.verify_model(loss, jnp.ones((2, 2), "float32"), BATCH)
    assert report.ok == (factor == 1.0)
    assert not report.unseen
