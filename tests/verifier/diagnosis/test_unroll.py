"""Loops written out: the same numbers as before, and an edit of the body is made in every step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnet as fn
from funcnet.verifier import trace
from funcnet.verifier.diagnosis.unroll import unrolled

RNG = np.random.default_rng(0)
U, W = RNG.standard_normal((4, 4)), RNG.standard_normal((3, 4))


def looped(nonlinear, reverse=False):
    """Two loops of one length, the second over what the first gives, and a longer one."""

    def run(xs, h):
        def body(h, x):
            h = nonlinear(x @ W + h @ U)
            return h, (h * 2, h.sum())

        last, (hs, sums) = jax.lax.scan(body, h, xs, reverse=reverse)
        total, _ = jax.lax.scan(lambda c, g: (c * 0.5 + g, None), h, hs, reverse=True)
        return last, hs.sum(0), sums, total, jax.lax.scan(lambda c, _: (c + 1, None), 0.0, None, length=9)[0]

    return run


def written(run, length):
    xs, h = RNG.standard_normal((length, 3)), RNG.standard_normal(4)
    program, _ = trace.trace(run, xs, h)
    values = program.results(trace.run(program, [xs, h]))
    return unrolled(program), [xs, h], values


def run_changed(loops, args, name, by):
    """What the full program gives if equations of a name are changed in the bodies of loops."""
    changed = {k: by for k in loops.body if loops.folded.equations[k].name == name}
    values = trace.run(loops.full, args)
    return trace.rerun(loops.full, values, loops.changed(changed), loops.full.outputs, loops.handed_on)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [1, 2, 5])
def test_written_out_it_gives_the_same(length, reverse):
    loops, args, want = written(looped(jnp.tanh, reverse), length)
    full = trace.run(loops.full, args)
    for got, expected in zip(loops.full.results(full), want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-14)
    assert sum(eqn.name == "scan" for eqn in loops.folded.equations) == 1, "the long one stays"


def test_a_change_of_the_body_is_made_in_every_step():
    loops, args, _ = written(looped(jnp.tanh), 5)
    other, _ = trace.trace(looped(jnp.sin), *args)
    want = other.results(trace.run(other, args))
    change = lambda operands, known: [np.sin(operands[0])]
    same = lambda loops: [
        np.allclose(got, v, rtol=1e-12)
        for got, v in zip(run_changed(loops, args, "tanh", change), want, strict=True)
    ]
    assert all(same(loops))
    once = dataclasses.replace(loops, places=[some[:1] for some in loops.places])
    assert not all(same(once)), "in one step it is another function"


def test_what_a_step_hands_on_is_that_of_the_changed_program():
    xs, h = RNG.standard_normal((4, 4)), RNG.standard_normal(4)
    forgets = lambda h, x: (jnp.sin(x), jnp.sin(x))
    keeps = lambda h, x: (jnp.sin(x + h), jnp.sin(x + h))
    program, _ = trace.trace(lambda xs, h: jax.lax.scan(forgets, h, xs), xs, h)
    loops = unrolled(program)
    (state,) = (loops.folded.equations[k].outputs[0] for k in loops.carried)
    change = lambda operands, known: [np.sin(operands[0] + known[state])]
    got = run_changed(loops, [xs, h], "sin", change)
    for mine, want in zip(got, jax.tree.leaves(jax.lax.scan(keeps, h, xs)), strict=True):
        np.testing.assert_allclose(mine, want, rtol=1e-12)


# ---- names ------------------------------------------------------------------------------------------------


def states(x, u, w):
    def body(h, xt):
        h = jnp.tanh(xt @ w + h @ u)
        return h, h

    return jax.lax.scan(body, jnp.zeros(u.shape[0], x.dtype), x)[1]


def backward(mistake):
    def formula(x, u, w, dy):
        hs = states(x, u, w)
        before = jnp.concatenate([jnp.zeros_like(hs[:1]), hs[:-1]])

        def body(carry, step):
            (dh, du, dw), (xt, h, old, g) = carry, step
            dh = g if mistake == "time" else g + dh  # TIME
            dz = dh * (1 - (old if mistake == "residual" else h) ** 2)  # RESIDUAL
            dz = dz * 2 if mistake == "factor" else dz  # FACTOR
            dh = dz @ (u if mistake == "transpose" else u.T)  # TRANSPOSE
            return (dh, du + jnp.outer(old, dz), dw + jnp.outer(xt, dz)), dz @ w.T

        zero = (jnp.zeros_like(hs[0]), jnp.zeros_like(u), jnp.zeros_like(w))
        (_, du, dw), dx = jax.lax.scan(body, zero, (x, hs, before, dy), reverse=mistake != "order")
        return dx, du, dw

    return formula


def arguments(length):
    return tuple(jnp.asarray(RNG.standard_normal(s), jnp.float32) for s in ((length, 3), (4, 4), (3, 4)))


MISTAKES = {
    "time": ("missing_term", "hands on"),
    "residual": ("wrong_residual", "RESIDUAL"),
    "factor": ("scale", "FACTOR"),
    "transpose": ("transpose", "TRANSPOSE"),
    "order": ("flip", "other end"),
}


@pytest.mark.slow
@pytest.mark.parametrize("length", [5, 12])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_body_of_a_loop_is_named_there(mistake, length):
    kind, words = MISTAKES[mistake]
    report = fn.verify(states, backward(mistake), arguments(length))
    for found in report.findings:
        assert found.kind == kind, str(report)
        assert words in str(found), str(report)


@pytest.mark.slow
def test_a_missing_gradient_through_time_is_named():
    report = fn.verify(states, backward("time"), arguments(4))
    assert {found.kind for found in report.findings} == {"missing_term"}
    assert all("what the step before hands on" in found.suggestion for found in report.findings)


def test_a_right_recurrence_is_left_alone():
    assert fn.verify(states, backward(""), arguments(4)).ok
