"""Names by a stated rule: of two descriptions that are equally true one is `kind`, the other `also`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnet as fn
from funcnet.verifier.diagnosis.search import Guess, search
from funcnet.verifier.finding import Finding
from tests.budget import few


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).standard_normal(shape), jnp.float32)


def complexes(*shape):
    return jax.lax.complex(normal(*shape), normal(*shape, seed=1))


def positive(*shape):
    return jnp.abs(normal(*shape)) + 0.5


NAMED = {}  # name: kind, also, forward, backward, args


def case(name, kind, also=""):
    def add(make):
        NAMED[name] = (kind, also, *make())

    return add


# ---- a factor of one term ---------------------------------------------------------------------------------


def rotated(x):
    return jnp.tanh(x) + jnp.sin(x) ** 2


@case("half of one term", "scale", "missing_term")
def _():
    return rotated, lambda x, dy: dy * (1 - jnp.tanh(x) ** 2 + jnp.sin(x) * jnp.cos(x)), (normal(5),)


@case("one term twice too large", "scale", "extra_term")
def _():
    back = lambda x, dy: dy * (2 * (1 - jnp.tanh(x) ** 2) + 2 * jnp.sin(x) * jnp.cos(x))
    return rotated, back, (normal(5),)


@case("one term times zero", "missing_term")
def _():
    back = lambda x, dy: dy * (1 - jnp.tanh(x) ** 2 + 0 * jnp.sin(x) * jnp.cos(x))
    return rotated, back, (normal(5),)


# ---- what normalises --------------------------------------------------------------------------------------


@case("the sum that divides is held constant", "missing_term", "statistics_constant")
def _():
    forward = lambda x: x**2 / x.sum(1, keepdims=True)
    return forward, lambda x, dy: 2 * dy * x / x.sum(1, keepdims=True), (positive(3, 5),)


@case("another number than the count", "wrong_residual")
def _():
    keep = jnp.asarray(np.tril(np.ones((4, 5))), jnp.float32)
    forward = lambda x: (x * keep).sum(1, keepdims=True) / keep.sum(1, keepdims=True)
    return forward, lambda x, dy: dy * keep / x.shape[1], (normal(4, 5),)


# ---- axes, orders, conjugates -----------------------------------------------------------------------------


@case("one after another, not in turns", "transpose", "wrong_axis")
def _():
    def back(x, dy):
        a, b = jnp.split(dy, 2, 1)
        return jnp.concatenate([a + b, a - b], 1)

    even_odd = lambda x: jnp.concatenate([x[:, ::2] + x[:, 1::2], x[:, ::2] - x[:, 1::2]], 1)
    return even_odd, back, (normal(3, 8),)


@case("a permutation for its inverse", "wrong_residual")
def _():
    forward = lambda x, w: (jnp.sort(x, 1) * w).sum(1)
    back = lambda x, w, dy: (dy[:, None] * w[jnp.argsort(x, 1)], dy @ jnp.sort(x, 1))
    return forward, back, (normal(4, 6), normal(6))


@case("the gradient's conjugate", "sign")
def _():
    return lambda z: jnp.abs(z) ** 2, lambda z, dy: 2 * dy.astype(z.dtype) * z, (complexes(6),)


@case("one factor's conjugate", "sign")
def _():
    forward = lambda z, w: (z @ w).real
    back = lambda z, w, dy: (dy.astype(z.dtype) @ w.T, jnp.conj(z).T @ dy.astype(z.dtype))
    return forward, back, (complexes(4, 3), complexes(3, 5))


@case("a number in a complex term", "scale", "missing_term")
def _():
    forward = lambda z, x: z * z + 4.0 * z * x
    back = lambda z, x, dy: (2.0 * dy * z + 6.0 * dy * x, (dy * 4.0 * z).real)
    return forward, back, (complexes(5), normal(5))


@case("not summed over the batch", "missing_batch_sum")
def _():
    return lambda x, b: x * b, lambda x, b, dy: (dy * b, dy * x), (normal(4, 3), normal(3))


# ---- paths, steps -----------------------------------------------------------------------------------------


@case("one of three uses", "missing_term")
def _():
    return (
        lambda x: x**3 * jnp.exp(x) * jnp.sin(x),
        lambda x, dy: dy * x**3 * jnp.exp(x) * jnp.cos(x),
        (positive(5),),
    )


def faded(a, x):
    def step(h, now):
        h = (1 - a) * h + a * now
        return h, h

    return jax.lax.scan(step, jnp.zeros_like(x[0]), x)[1]


def faded_back(a, x, dy, slip):
    h = faded(a, x)

    def step(carry, now):
        dh, da = carry
        g, x_t, before = now
        dh = dh + g
        da = da + dh * (x_t if slip == "rate" else x_t - before)
        return (dh if slip == "carry" else (1 - a) * dh, da), a * dh

    xs = dy, x, jnp.concatenate([jnp.zeros_like(h[:1]), h[:-1]])
    (_, da), dx = jax.lax.scan(step, (jnp.zeros_like(a),) * 2, xs, reverse=True)
    return da, dx


@case("a product that a step should add", "missing_term")
def _():
    return faded, lambda a, x, dy: faded_back(a, x, dy, "rate"), (jax.nn.sigmoid(normal(3)), normal(5, 3))


@case("a factor of what a step hands on", "missing_term")
def _():
    return faded, lambda a, x, dy: faded_back(a, x, dy, "carry"), (jax.nn.sigmoid(normal(3)), normal(5, 3))


FAST = ("half of one term", "one term times zero")


@pytest.mark.parametrize("name", few(NAMED, FAST))
def test_the_rule_names_one_kind_and_perhaps_another(name):
    kind, also, forward, backward, args = NAMED[name]
    found = next(one for one in fn.verify(forward, backward, args).findings if one.is_mistake)
    assert (found.kind, found.also) == (kind, also), str(found)


# ---- what fails is not all ---------------------------------------------------------------------------------


def test_a_name_is_found_where_jax_has_no_reverse_rule():
    def root(x):
        better = lambda state: ((state[0] + x / state[0]) / 2, state[1] + 1)
        return jax.lax.while_loop(lambda state: state[1] < 20, better, (x, 0))[0]

    report = fn.verify(root, lambda x, dy: dy / (2 * x), (positive(4),))
    assert [(one.kind, one.also) for one in report.findings] == [("missing_term", "wrong_residual")]


def test_a_family_that_fails_takes_no_name_from_the_others():
    found = Finding("x", "sign", "wrong")

    def failing():
        yield Guess(1.0, lambda left: 1 / 0)
        raise ValueError("no rule")

    failures = []
    names = search([failing(), iter([Guess(2.0, lambda left: [(0, 2.0, found)])])], [0], failures)
    assert names == {0: (2.0, found)}
    assert len(failures) == 2
