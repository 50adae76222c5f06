"""Two mistakes: both are named, in one gradient and in two; and one more kind that is as true."""

import jax.numpy as jnp
import numpy as np
import pytest

import funcnet as fn
from funcnet.verifier import trace
from funcnet.verifier.diagnosis.pairs import Halves, both
from funcnet.verifier.diagnosis.slips import Edit
from funcnet.verifier.finding import Finding

RNG = np.random.default_rng(0)
X, W, B = (jnp.asarray(RNG.standard_normal(s), jnp.float32) for s in ((7, 5), (5, 6), (6,)))


def forward(x, w, b):
    return jnp.tanh(x @ w) * jnp.sin(b) + jnp.exp(-x).sum(-1, keepdims=True) * b


def backward(*mistakes):
    def formula(x, w, b, dy):
        y, e = jnp.tanh(x @ w), jnp.exp(-x)
        g = dy * jnp.sin(b) * (1 - (y if "square" in mistakes else y * y))
        weight = 1 if "factor" in mistakes else b
        dx = g @ w.T + (1 if "sign" in mistakes else -1) * e * (dy * weight).sum(-1, keepdims=True)
        slope = jnp.sin(b) if "cosine" in mistakes else jnp.cos(b)
        second = (dy * e.sum(-1, keepdims=True)).sum(0)
        db = (dy * y * slope).sum(0) + (2 if "twice" in mistakes else 1) * second
        return dx, (2 if "double" in mistakes else 1) * x.T @ g, db

    return formula


# what is wrong: the argument, the kinds of both
BOTH = {
    ("square", "sign"): ("x", {"missing_term", "sign"}),
    ("cosine", "twice"): ("b", {"wrong_residual", "scale"}),
    ("square", "double"): ("w", {"missing_term", "scale"}),
}


@pytest.mark.parametrize(
    "mistakes", [("cosine", "twice"), *(pytest.param(m, marks=pytest.mark.slow) for m in BOTH)]
)
def test_two_mistakes_in_one_gradient_are_both_named(mistakes):
    argument, kinds = BOTH[mistakes]
    report = fn.verify(forward, backward(*mistakes), (X, W, B))
    (found,) = (one for one in report.findings if one.argument == argument)
    assert {found.kind, found.also} == kinds, str(report)
    assert found.message.startswith("two mistakes")
    assert ", and " in found.suggestion


def test_two_mistakes_in_two_gradients_are_both_named():
    report = fn.verify(forward, backward("sign", "twice"), (X, W, B))
    assert {one.argument: one.kind for one in report.findings} == {"x": "sign", "b": "scale"}
    assert {one.argument: one.also for one in report.findings} == {
        "x": "",
        "b": "extra_term",
    }  # one term of it


def halves(want, got):
    whole = Edit("scale", "", 0, lambda program: {9: None}, solved=True)
    return Halves(want, got, whole)


def edit(k, effort=1.0, solved=False):
    return Edit("sign", f"{k}", k, lambda program: {k: lambda operands, known, *c: [(k, *c)]}, effort, solved)


def test_what_adds_up_is_found_among_many():
    got, parts = RNG.standard_normal(11), RNG.standard_normal((500, 11))
    some = halves(got + parts[3] + parts[400], got)
    for k, part in enumerate(parts):
        some.add(edit(k), part)
    assert [(one.at, two.at) for one, two in some] == [(3, 400)]
    times = halves(got + parts[3] + 2.5 * parts[400], got)
    for k, part in enumerate(parts):
        times.add(edit(k, solved=k >= 250), part)
    assert [(one.at, two.at) for one, two in times] == [(3, 400)]
    assert not list(halves(got, got)), "there is nothing to be found"
    scaled = halves(got, 3 * (got - parts[7]))
    scaled.add(edit(7), 3 * parts[7])
    assert [(one.at, two.at) for one, two in scaled] == [(7, 0)]


def test_two_edits_as_one():
    one = both(edit(1), edit(2, 1.5, solved=True))
    program, _ = trace.trace(jnp.sin, 1.0)
    changed = one.build(program)
    assert {k: f([], [], 0.5) for k, f in changed.items()} == {1: [(1,)], 2: [(2, 0.5)]}
    assert one.effort > 2.5
    with pytest.raises(ValueError, match="one equation"):
        both(edit(1), edit(1)).build(program)


def test_also_is_one_of_the_kinds():
    assert str(Finding("x", "missing_term", "no", also="wrong_residual")).startswith(
        "missing_term and wrong_"
    )
    with pytest.raises(ValueError, match="no kind 'oops'"):
        Finding("x", "sign", "", also="oops")


def test_a_residual_that_lacks_a_factor_is_wrong_and_lacks_a_term():
    (found,) = fn.verify(jnp.tanh, lambda x, dy: dy * (1 - jnp.tanh(x)), (X,)).findings
    assert (found.kind, found.also) == ("missing_term", "wrong_residual")
    (found,) = fn.verify(jnp.tanh, lambda x, dy: -dy * (1 - jnp.tanh(x) ** 2), (X,)).findings
    assert (found.kind, found.also) == ("sign", "")
