"""Formulas as text: what they may say, what they mean, and that every other text is one clear error."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from funcnet.verifier.formulas import expression
from funcnet.verifier.formulas.expression import ExpressionError, formula


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


VALUES = {
    "x": normal(7, 11),
    "w": normal(11, 13, seed=1),
    "b": normal(13, seed=2),
    "dy": normal(7, 13, seed=3),
    "images": normal(2, 3, 5, 7, seed=4),
    "ids": jnp.arange(7, dtype="int32") % 3,
    "möbius": normal(3, seed=5),
}
X, W, B, DY, IMAGES, IDS = (VALUES[name] for name in ("x", "w", "b", "dy", "images", "ids"))


def value(text):
    return formula(text, list(VALUES))(**VALUES)


def refused(text):
    with pytest.raises(ExpressionError) as error:
        value(text)
    return error.value


# ---- what a text means ------------------------------------------------------------------------------------

MEANINGS = {
    "x @ w + b": lambda: X @ W + B,
    "dy @ w.T": lambda: DY @ W.T,
    "images.mT": lambda: IMAGES.mT,
    "-x ** 2 / 3 - 1.5e-3 * x": lambda: -(X**2) / 3 - 1.5e-3 * X,
    "2 ** -1 * x + 1 / 4": lambda: 0.5 * X + 0.25,
    "where((x > 0) & ~(x >= 1) | (x == 2), x, 0)": lambda: jnp.where((X > 0) & (X < 1), X, 0),
    "dy.sum(0)": lambda: DY.sum(0),
    "x.mean((0, 1), keepdims=True)": lambda: X.mean((0, 1), keepdims=True),
    "(x - x.mean(-1, keepdims=True)) * rsqrt(var(x, -1, keepdims=True) + 1e-5)": lambda: (
        (X - X.mean(-1, keepdims=True)) / jnp.sqrt(X.var(-1, keepdims=True) + 1e-5)
    ),
    "x.max(axis=1) - min(x, axis=1) + std(x, axis=1)": lambda: X.max(1) - X.min(1) + X.std(1),
    "x.reshape(11, -1)": lambda: X.reshape(11, 7),
    "reshape(x, (11, 7))": lambda: X.reshape(11, 7),
    "images.reshape(*images.shape[:2], -1)": lambda: IMAGES.reshape(2, 3, 35),
    "images.transpose(0, 3, 1, 2)": lambda: IMAGES.transpose(0, 3, 1, 2),
    "transpose(x)": lambda: X.T,
    "x.sum() / x.size + x.ndim + x.shape[0]": lambda: X.mean() + 9,
    "x[1:, ::2, None][..., 0]": lambda: X[1:, ::2],
    "x[-1] + x[0, :]": lambda: X[-1] + X[0],
    "w[ids]": lambda: W[IDS],
    "one_hot(ids, 11).T @ dy": lambda: jnp.zeros((11, 13)).at[IDS].add(DY),
    "softmax(x)": lambda: jax.nn.softmax(X),
    "log_softmax(x, axis=0)": lambda: jax.nn.log_softmax(X, 0),
    "logsumexp(1000 * x, axis=1)": lambda: jax.nn.logsumexp(1000 * X, 1),
    "logsumexp(x)": lambda: jax.nn.logsumexp(X),
    "sigmoid(x) + relu(x) + gelu(x)": lambda: (
        jax.nn.sigmoid(X) + jax.nn.relu(X) + jax.nn.gelu(X, approximate=False)
    ),
    "einsum('ij,jk->ik', x, w)": lambda: X @ W,
    'einsum("ij -> j", x)': lambda: X.sum(0),
    "outer(b, b) + dot(b, b) + matmul(b, b)": lambda: jnp.outer(B, B) + 2 * B @ B,
    "concatenate((x, flip(x, axis=0)), axis=1)": lambda: jnp.concatenate((X, X[::-1]), 1),
    "stack([x, x], axis=-1)": lambda: jnp.stack((X, X), -1),
    "roll(x, 2, axis=1)": lambda: jnp.roll(X, 2, 1),
    "swapaxes(images, 1, -1)": lambda: IMAGES.swapaxes(1, -1),
    "tril(x, k=-1) + triu(x)": lambda: X,
    "inv(x @ x.T) @ x": lambda: jnp.linalg.inv(X @ X.T) @ X,
    "solve(x @ x.T, x) + solve(x @ x.T, x[:, 0])[:, None]": lambda: (
        jnp.linalg.solve(X @ X.T, X) + jnp.linalg.inv(X @ X.T) @ X[:, :1]
    ),
    "det(x @ x.T) + trace(x @ x.T)": lambda: jnp.linalg.det(X @ X.T) + (X * X).sum(),
    "logdet(-x @ x.T)": lambda: jnp.log(jnp.linalg.det(X @ X.T)),
    "norm(x) + norm(x, axis=1, keepdims=True)": lambda: (
        jnp.linalg.norm(X) + jnp.linalg.norm(X, axis=1)[:, None]
    ),
    "diag(b) @ diag(diag(b))": lambda: B * B,
    "eye(x.shape[0]) @ x": lambda: X,
    "cumsum(x, axis=0) * ones_like(x) + zeros_like(x)": lambda: X.cumsum(0),
    "cholesky(x @ x.T) @ cholesky(x @ x.T).T": lambda: X @ X.T,
    "kron(x, b)": lambda: jnp.kron(X, B),
    "take_along_axis(x, ids[:, None], axis=1)": lambda: jnp.take_along_axis(X, IDS[:, None], 1),
    "exp(pi) * e": lambda: jnp.exp(jnp.pi) * jnp.e,
    "abs(möbius)": lambda: jnp.abs(VALUES["möbius"]),
    "  x\n  + 1": lambda: X + 1,
}


@pytest.mark.parametrize("text", MEANINGS)
def test_meaning(text):
    np.testing.assert_allclose(value(text), MEANINGS[text](), rtol=1e-12, atol=1e-14)


def test_every_function_is_computed():
    one = {
        "x": "x",
        "x1": "x",
        "x2": "x + 1",
        "condition": "x > 0",
        "arrays": "(x, x)",
        "n": "3",
        "ids": "ids",
    }
    one |= {"shift": "1", "axis1": "0", "axis2": "1", "*shape": "77", "*axes": "1, 0"}
    for name, (_, parameters) in expression._FUNCTIONS.items():
        args = (
            [one[p] for p in parameters.split() if not p.endswith("=") and p != "*operands"]
            if name != "einsum"
            else ["'ij->i'", "x"]
        )
        args = ["ids", "3"] if name == "one_hot" else ["b", "b"] if name == "dot" else args
        args = ["x", "x.T"] if name == "matmul" else args
        args = ["x @ x.T"] if name in ("inv", "det", "logdet", "cholesky") else args
        args = ["x @ x.T", "x"] if name == "solve" else args
        args = ["x", "ids[:, None]"] if name == "take_along_axis" else args
        assert jnp.isfinite(value(f"{name}({', '.join(args)})")).sum() > 0, name


def test_the_result_takes_the_dtype_of_the_arrays():
    f = formula("(eye(2) @ x + 1.5) * one_hot(ids, 2) * pi", ["x", "ids"])
    x, ids = jnp.ones((2, 2), jnp.bfloat16), jnp.arange(2)
    assert f(x=x, ids=ids).dtype == jnp.bfloat16


def test_autodiff_of_a_formula():
    f = formula("softmax(x)", ["x"])
    x, dy = X, normal(7, 11, seed=9)
    want = jax.vjp(jax.nn.softmax, x)[1](dy)[0]
    np.testing.assert_allclose(jax.vjp(lambda x: f(x=x), x)[1](dy)[0], want, atol=1e-14)
    np.testing.assert_allclose(jax.jit(jax.vmap(lambda x: f(x=x)))(x), jax.nn.softmax(x), atol=1e-14)


def test_arguments_hide_constants_and_may_be_called_like_functions():
    f = formula("e * max(max)", ["e", "max"])
    assert f(e=2.0, max=jnp.arange(3.0)) == 4.0


def test_the_values_have_the_names():
    with pytest.raises(TypeError, match=r"formula 'x \+ y' takes x, y by keyword, not x$"):
        formula("x + y", ["x", "y"])(x=1.0)


# ---- what is refused --------------------------------------------------------------------------------------


def test_the_text_points_at_the_character():
    assert str(refused("möbius + x.__class__")) == (
        '"__class__" is not allowed here; attributes are T, mT, shape, size, ndim, '
        "methods sum, mean, max, min, var, std, reshape, transpose\n"
        "  möbius + x.__class__\n"
        "             ^^^^^^^^^"
    )
    assert str(refused("x + sofmax(w)")) == (
        'there is no function "sofmax"; perhaps softmax\n  x + sofmax(w)\n      ^^^^^^^^^'
    )
    assert str(refused("b + x @ w.T")).startswith(
        "x @ w.T cannot be computed where x is float64[7, 11], w.T is float64[13, 11]: "
    )
    assert str(refused("b + x @ w.T")).endswith("\n  b + x @ w.T\n      ^^^^^^^")


def test_wide_characters_and_long_texts_keep_the_caret_below():
    assert str(refused("möbius + 日本 + x")).endswith("\n  möbius + 日本 + x\n           ^^^^")
    *_, line, carets = str(refused("x + " * 20 + "nowhere" + " + x" * 20)).splitlines()
    assert line[carets.index("^") : carets.rindex("^") + 1] == "nowhere"
    assert len(line) < 110


def test_nothing_unprintable_reaches_the_terminal():
    assert "\x1b" not in str(refused("x + \x1b[31m"))


REFUSED = {
    "": (0, "the formula is empty"),
    "x +": (3, "the formula stops too early"),
    "(x": (0, "'(' was never closed"),
    "x = 3": (2, "invalid syntax"),
    "import os": (0, "invalid syntax"),
    "z + x": (0, 'there is no "z": there are x, w, b, dy, images, ids, möbius, pi, e'),
    "image": (0, "; perhaps images"),
    "x + jnp.exp(x)": (4, "functions stand alone: exp(x), not jnp.exp(x)"),
    "exp + x": (0, "exp is a function: write exp(x)"),
    "x.sum + 1": (2, "sum is a method: write .sum(...)"),
    "x(w)": (0, "x is an array, not a function"),
    "__import__('os')": (0, 'there is no function "__import__"'),
    "x.sum(0).real": (9, '"real" is not allowed here'),
    "x.at[0].set(1)": (2, '"at" is not allowed here'),
    "(lambda: x)()": (0, "this is not allowed here"),
    "lambda: x": (0, "this is not allowed here"),
    "[v for v in x]": (0, "this is not allowed here"),
    "{1: x}": (0, "this is not allowed here"),
    "(x := w)": (1, "this is not allowed here"),
    "f'{x}'": (0, "this is not allowed here"),
    "x // 2": (0, "this is not allowed here"),
    "x ^ 2": (0, "a power is x ** 2"),
    "2x": (1, "a product has its sign: 2 * x"),
    "w'": (1, "a transpose is A.T"),
    "b'wb": (1, "x'Ax is x @ A @ x"),
    "2(x)": (0, "a product has its sign: 2 * (x + y)"),
    "(x + b) w": (8, "a product has its sign: (x + y) * z"),
    "x w": (2, "a product has its sign: x * y of elements, A @ B of matrices"),
    "wb": (0, 'there is no "wb": a product is w @ b, or of elements *'),
    "x / 0": (0, "x / 0 cannot be computed: division by zero"),
    "take_along_axis(x, x, axis=1)": (0, "cannot be computed where x is float64[7, 11]"),
    "inv(x)": (0, "inv(x) cannot be computed where x is float64[7, 11]"),
    "x if x else w": (0, "write where(condition, a, b)"),
    "x and w": (0, "write & for `and`"),
    "not x": (0, "write ~ for `not`"),
    "0 < x < 1": (0, "one comparison at a time: (a < b) & (b < c)"),
    "(x > 0) & x": (10, "& | ~ take booleans, not float64[7, 11]; comparisons need parentheses"),
    "~x": (1, "& | ~ take booleans"),
    "x + 'a'": (4, "text may stand only in einsum"),
    "x + None": (4, "this is None (NoneType), not an array or a number"),
    "x + True": (4, "this is True (bool), not an array or a number"),
    "x + (1, 2)": (4, "this is (1, 2), not an array or a number"),
    "(1, 2) * 99": (0, "this is (1, 2), not an array or a number"),
    "x.shape": (2, "this is (7, 11), not an array"),
    "x + 2j": (4, "this is not allowed here"),
    "1e999": (0, "this is not a finite real number"),
    "(-8) ** 0.5": (0, "cannot be computed"),
    "1 / 0": (0, "1 / 0 cannot be computed: division by zero"),
    "2 ** 2 ** 2 ** 99": (5, "2 ** 2 ** 99 cannot be computed"),
    "99 ** 5": (0, "whole numbers stay below 2,147,483,648"),
    "9" * 1999: (0, "whole numbers stay below 2,147,483,648"),
    "eye(10 ** 9)": (0, "this has 1,000,000,000,000,000,000 elements, more than 16,777,216"),
    "one_hot(ids, 10 ** 7)": (0, "this has 70,000,000 elements, more than 16,777,216"),
    "outer(outer(outer(x, x), x), x)": (0, "this has 35,153,041 elements, more than 16,777,216"),
    "einsum('ij,kl,mn,op,qr,st->', x, x, x, x, x, x)": (0, "multiply-adds, more than 4,294,967,296"),
    "einsum('ij,jk->il', x, w)": (0, "cannot be computed where (x, w) is (float64[7, 11], float64[11, 13])"),
    "einsum('ij->%', x)": (7, "subscripts are letters, commas and one arrow"),
    "einsum(x, w)": (7, 'the first argument of einsum is text such as "ij,jk->ik"'),
    "einsum('ij,jk', x)": (0, "cannot be computed"),
    "x[7]": (0, "index 7 is out of bounds for axis 0 with size 7"),
    "x[0, 0, 0]": (0, "too many indices"),
    "x[::0]": (0, "slice step cannot be zero"),
    "x[x > 0]": (2, "an index is an integer, a slice, None or ..., not bool[7, 11]"),
    "x[0.5]": (2, "an index is an integer, a slice, None or ..., not 0.5 (float)"),
    "x.shape[2]": (0, "x.shape[2] cannot be computed where x.shape is (7, 11)"),
    "exp(x, w)": (7, "too many arguments for exp(x)"),
    "x + exp()": (4, "too few arguments for exp(x)"),
    "sum(x, dtype=1)": (7, "not an option of sum(x, axis=..., keepdims=...)"),
    "sum(x, **w)": (7, "not an option of sum(x, axis=..., keepdims=...)"),
    "sum(*x)": (4, "this is not allowed here"),
    "x.sum(0, axis=0)": (9, "axis is given twice"),
    "x.sum(axis=w)": (11, "axis of sum is float64[11, 13], not an integer, a tuple of integers or None"),
    "x.sum(keepdims=1)": (15, "keepdims of sum is 1 (int), not True or False"),
    "x.sum(2)": (0, "x.sum(2) cannot be computed where x is float64[7, 11]"),
    "exp((x, w))": (4, "x of exp is (float64[7, 11], float64[11, 13]), not an array"),
    "x.reshape(5, 5)": (0, "x.reshape(5, 5) cannot be computed where x is float64[7, 11]"),
    "reshape(x, *x)": (11, "* takes a tuple, such as x.shape, not float64[7, 11]"),
    "x + w": (0, "x + w cannot be computed where x is float64[7, 11], w is float64[11, 13]"),
    "-" * 99 + "x": (0, "more than 50 expressions within each other"),
    "-" * 1999 + "x": (0, ""),
    "(" * 1000 + ")" * 1000: (None, ""),
    "x" * 2001: (2000, "the formula has 2,001 characters, more than 2,000"),
    "x\0": (None, ""),
    "\ud800": (0, "this is no expression"),
    "x + '\\d'": (4, "text may stand only in einsum"),
}


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: ascii(text[:40]))
def test_refused(text):
    column, problem = REFUSED[text]
    error = refused(text)
    assert problem in error.problem
    assert "\n" not in error.problem
    assert column in (None, error.column)


def test_sizes_are_refused_before_they_exist():
    began = time.perf_counter()
    refused("eye(10 ** 8) @ eye(10 ** 8)")
    assert time.perf_counter() - began < 5


TOKENS = [
    *VALUES, *expression._FUNCTIONS, *expression._ATTRIBUTES, *"()[],.:+-*/@&|~<>=!'\"", "**", "==", "<=",
    "...", "None", "True", "axis=", "keepdims=True", "0", "1", "-1", "2.5", "10**9", " ", "__class__",
    "'ij,jk->ik'", "lambda", "if", "for", "jnp", "pi", "\n", "é", "日", "\\", "#", "{", "}", "\0",
]  # fmt: skip


def harmless(text):
    """Whatever the text, there is a value or an ExpressionError, soon."""
    began, error = time.perf_counter(), None
    try:
        jax.eval_shape(lambda values: formula(text, list(VALUES))(**values), VALUES)
    except ExpressionError as caught:
        error = caught
    assert error is None or (0 <= error.column <= len(text) and str(error).count("\n") == 2)
    assert time.perf_counter() - began < 5


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_is_harmless(text):
    harmless(text)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(TOKENS), max_size=30).map("".join))
def test_any_tokens_are_harmless(text):
    harmless(text)


LEAVES = st.sampled_from(
    [*VALUES, "0", "1", "-3", "2.5", "99", "None", "(0, 1)", "x.shape", "True", "pi", "...", "1:2"]
)


def grown(inner):
    name = st.sampled_from(sorted(expression._FUNCTIONS))
    operator = st.sampled_from(["+", "-", "*", "/", "@", "**", "<", "==", "&", "|", ","])
    attribute = st.sampled_from([*expression._ATTRIBUTES, "sum()", "reshape(-1)", "mean(0)", "transpose()"])
    return st.one_of(
        st.tuples(inner, operator, inner).map("({0[0]} {0[1]} {0[2]})".format),
        st.tuples(name, inner).map("{0[0]}({0[1]})".format),
        st.tuples(name, inner, inner).map("{0[0]}({0[1]}, {0[2]})".format),
        st.tuples(name, inner, inner).map("{0[0]}({0[1]}, axis={0[2]})".format),
        st.tuples(inner, attribute).map("{0[0]}.{0[1]}".format),
        st.tuples(inner, inner).map("{0[0]}[{0[1]}]".format),
    )


@settings(max_examples=200, deadline=None)
@given(st.recursive(LEAVES, grown, max_leaves=8))
def test_any_syntax_is_harmless(text):
    harmless(text)
