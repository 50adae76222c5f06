"""The words of a finding: the operation as the user wrote it, at a line of the user's own, once."""

import linecache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnet as fn
from funcnet.verifier import Finding, trace
from funcnet.verifier.diagnosis import words
from funcnet.verifier.finding import together
from funcnet.verifier.problem import pose


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


X, W = normal(7, 11), normal(11, 13, seed=1)


def line_of(mark):
    lines = linecache.getlines(__file__)
    return next(i for i, text in enumerate(lines, 1) if text.rstrip().endswith(f"# {mark}"))


def forward(x, w):
    spread = jnp.var(x, 0)  # OF JAX
    return fn.softmax.apply(x / spread @ w)  # OF FUNCNET


def test_equations_are_known_by_what_the_user_wrote():
    program, _ = trace.trace(forward, X, W)
    named = {words.named(program, k) for k in range(len(program.equations))}
    assert {"`jnp.var(x, 0)`", "`sub` within `jnp.var(x, 0)`", "`x / spread @ w`"} <= named
    of = lambda name: {eqn.line.rpartition(":")[2] for eqn in program.equations if eqn.name == name}
    assert of("square") == {str(line_of("OF JAX"))}
    assert of("exp") == {str(line_of("OF FUNCNET"))}, "a line of the user's, not of funcnet"


def test_operands_are_called_what_they_are_called_in_the_source():
    program, _ = trace.trace(lambda x, w: jnp.sin(x) @ w, X, W)
    k = next(k for k, eqn in enumerate(program.equations) if eqn.name == "dot_general")
    assert words.operands("transpose operand 1 of {op}", program, k) == "transpose `w` in {op}"
    assert words.operands("x as operand 0 of {op}", program, k) == "x in place of `jnp.sin(x)` in {op}"
    assert words.operands("operand 0 of {op}", program, k - 1) == "operand 0 of {op}", "no operator"


def test_operations_of_funcnet_keep_lines_of_their_own():
    program, _ = trace.trace(lambda x: fn.softmax.reference(x), X)
    assert {eqn.line for eqn in program.equations if eqn.primitive} != {""}
    report = fn.verify(fn.softmax, (X,))
    assert report.ok


def test_the_backward_pass_of_a_rule_keeps_its_own_lines():
    @jax.custom_vjp
    def f(x):
        return x * x

    f.defvjp(lambda x: (x * x, x), lambda x, dy: (dy * jnp.cos(x),))
    problem = pose(f, (X,), None)
    program, _ = trace.trace(lambda x, dy: problem.gradients([x], [dy]), X, X)
    named = {words.named(program, k) for k in range(len(program.equations))}
    assert {"`jnp.cos(x)`", "`dy * jnp.cos(x)`"} <= named


def helper(x):
    return jnp.tanh(x)


def test_a_line_that_the_forward_pass_runs_too_is_to_be_changed_in_the_backward_pass_only():
    wrong = lambda x, dy: dy * (1 - helper(x))
    (finding,) = fn.verify(lambda x: helper(x), wrong, (X,)).findings
    assert finding.kind == "missing_term"
    assert finding.code.startswith("wrong = lambda x, dy: dy * (1 - helper(x) ")
    assert finding.suggestion.startswith("for the backward pass only: ")
    alone = lambda x, dy: dy * (1 - jnp.tanh(x))
    (finding,) = fn.verify(lambda x: helper(x), alone, (X,)).findings
    assert not finding.suggestion.startswith("for the backward pass")


def test_one_finding_for_several_arguments_is_printed_once():
    def backward(x, w, dy):
        g = dy * (1 - jnp.tanh(x @ w))
        return g @ w.T, x.T @ g

    report = fn.verify(lambda x, w: jnp.tanh(x @ w), backward, (X, W))
    assert [f.argument for f in report.findings] == ["x", "w"]
    assert len({f.suggestion for f in report.findings}) == 1
    assert str(report).count(report.findings[0].suggestion) == 1
    assert "x, w: missing_term and wrong_residual: " in str(report)
    assert report.to_html().count("<article") == 1


def test_findings_that_differ_stay_apart():
    one = Finding("x", "sign", "a", "b", "c", 1.0, "rows 0")
    other = Finding("w", "sign", "a", "b", "c", 2.0, "rows 1")
    (both,) = together([one, other])
    assert (both.argument, both.error, both.where) == ("x, w", 2.0, "")
    apart = Finding("w", "sign", "a", "b", "elsewhere", 2.0)
    assert together([one, apart]) == [one, apart]


@pytest.mark.parametrize("text", ["", "(", "x +"])
def test_what_cannot_be_read_is_left_as_it_is(text):
    program, _ = trace.trace(lambda x: x + 1, X)
    k = next(k for k, eqn in enumerate(program.equations) if eqn.name == "add")
    equations = tuple(e._replace(text=text) for e in program.equations)
    blank = trace.Program(equations, program.inputs, program.outputs, program.avals)
    assert words.operands("operand 0 of {op}", blank, k) == "operand 0 of {op}"
    assert "add" in words.named(blank, k) or text
