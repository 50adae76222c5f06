"""`fn.derive`: the textbook's gradients as the textbook writes them; what is given at all is right."""

import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import funcnet as fn
from funcnet.errors import DTypeError, FuncnetError, ShapeError, ValueRangeError
from funcnet.verifier.formulas import algebra, calculus, matrices, printing
from funcnet.verifier.formulas import derive as module
from funcnet.verifier.formulas.expression import ExpressionError, formula
from tests.budget import few, many

IDS = np.array([0, 2, 1, 2, 0, 1, 1], np.int32)
N, M, NN, NM = (7,), (5,), (7, 7), (7, 5)

# The formula, its arguments, and the textbook's gradients; of a scalar formula for dy = 1.
BOOK = {
    # of vectors
    "a @ x": ({"a": N, "x": N}, {"x": "a"}),
    "x.T @ A @ x": ({"x": N, "A": NN}, {"x": "(A + A.T) @ x", "A": "outer(x, x)"}),
    "norm(x)": ({"x": N}, {"x": "x / y"}),
    "norm(x - a)": ({"x": N, "a": N}, {"x": "(x - a) / y"}),
    "norm(A @ x - b) ** 2": ({"A": NM, "x": M, "b": N}, {"x": "2 * A.T @ (A @ x - b)"}),
    "sum((A @ x - b) ** 2)": ({"A": NM, "x": M, "b": N}, {"A": "2 * outer(A @ x - b, x)"}),
    "x / norm(x)": ({"x": N}, {"x": "(dy - (dy @ y) * y) / norm(x)"}),
    "(x @ A @ x) / (x @ x)": ({"x": N, "A": NN}, {"x": "((A + A.T) @ x - 2 * y * x) / (x @ x)"}),
    "a @ b / (norm(a) * norm(b))": (
        {"a": N, "b": N},
        {"a": "b / (norm(a) * norm(b)) - y * a / norm(a) ** 2"},
    ),
    "sqrt((x - m) @ inv(S) @ (x - m))": (
        {"x": N, "m": N, "S": NN},
        {"x": "(inv(S) + inv(S).T) @ (x - m) / (2 * y)"},
    ),
    "exp(-norm(x - c) ** 2 / (2 * s ** 2))": ({"x": N, "c": N, "s": ()}, {"c": "y * (x - c) / s ** 2"}),
    # bilinear forms and traces
    "a @ X @ b": ({"a": N, "X": NM, "b": M}, {"a": "X @ b", "X": "outer(a, b)", "b": "X.T @ a"}),
    "a @ X.T @ b": ({"a": M, "X": NM, "b": N}, {"X": "outer(b, a)"}),
    "a @ X.T @ X @ b": ({"a": M, "X": NM, "b": M}, {"X": "outer(X @ a, b) + outer(X @ b, a)"}),
    "trace(A @ X)": ({"A": (5, 7), "X": NM}, {"X": "A.T"}),
    "trace(A @ X @ B)": ({"A": (5, 7), "X": (7, 3), "B": (3, 5)}, {"X": "A.T @ B.T"}),
    "trace(X.T @ X)": ({"X": NM}, {"X": "2 * X"}),
    "trace(X @ X)": ({"X": NN}, {"X": "2 * X.T"}),
    "trace(X.T @ A @ X)": ({"A": NN, "X": NM}, {"X": "(A + A.T) @ X"}),
    "trace(X @ B @ X.T)": ({"B": (5, 5), "X": NM}, {"X": "X @ (B + B.T)"}),
    "trace(A @ X @ B @ X.T @ C)": (
        {"A": (3, 7), "X": NM, "B": (5, 5), "C": (7, 3)},
        {"X": "C @ A @ X @ B + A.T @ C.T @ X @ B.T"},
    ),
    "norm(X)": ({"X": NM}, {"X": "X / y"}),
    "norm(X) ** 2": ({"X": NM}, {"X": "2 * X"}),
    "norm(Y - X @ W) ** 2": ({"X": NM, "W": (5, 3), "Y": (7, 3)}, {"W": "-2 * X.T @ (Y - X @ W)"}),
    "trace(A @ diag(x))": ({"A": NN, "x": N}, {"x": "diag(A.T)"}),
    "sum(diag(X) * a)": ({"X": NN, "a": N}, {"X": "diag(a)"}),
    # inverses and determinants
    "inv(X)": ({"X": NN}, {"X": "-y.T @ dy @ y.T"}),
    "a @ inv(X) @ b": ({"a": N, "X": NN, "b": N}, {"X": "-outer(inv(X).T @ a, inv(X) @ b)"}),
    "solve(A, b)": ({"A": NN, "b": N}, {"A": "-outer(solve(A.T, dy), y)", "b": "solve(A.T, dy)"}),
    "trace(inv(X) @ A)": ({"A": NN, "X": NN}, {"X": "-inv(X).T @ A.T @ inv(X).T"}),
    "trace(A @ inv(X) @ B)": (
        {"A": (3, 7), "X": NN, "B": (7, 3)},
        {"X": "-inv(X).T @ A.T @ B.T @ inv(X).T"},
    ),
    "det(X)": ({"X": NN}, {"X": "y * inv(X).T"}),
    "det(A @ X @ B)": ({"A": NN, "X": NN, "B": NN}, {"X": "y * A.T @ inv(A @ X @ B).T @ B.T"}),
    "logdet(X)": ({"X": NN}, {"X": "inv(X).T"}),
    "log(det(X))": ({"X": NN}, {"X": "inv(X).T"}),
    "logdet(X.T @ X)": ({"X": NM}, {"X": "2 * X @ inv(X.T @ X)"}),
    # statistics and machine learning
    "softmax(x)": ({"x": NM}, {"x": "y * (dy - sum(dy * y, axis=1, keepdims=True))"}),
    "exp(x) / sum(exp(x))": ({"x": N}, {"x": "y * (dy - dy @ y)"}),
    "logsumexp(x)": ({"x": N}, {"x": "softmax(x)"}),
    "log(sum(exp(x)))": ({"x": N}, {"x": "softmax(x)"}),
    "logsumexp(x, axis=1)": ({"x": NM}, {"x": "softmax(x) * dy[:, None]"}),
    "log_softmax(x)": ({"x": NM}, {"x": "dy - softmax(x) * sum(dy, axis=1, keepdims=True)"}),
    "-sum(one_hot(ids, 5) * log_softmax(x)) / x.shape[0]": (
        {"ids": IDS, "x": NM},
        {"x": "(softmax(x) - one_hot(ids, 5)) / x.shape[0]"},
    ),
    "x @ w + b": (
        {"x": NM, "w": (5, 3), "b": (3,)},
        {"x": "dy @ w.T", "w": "x.T @ dy", "b": "sum(dy, axis=0)"},
    ),
    "tanh(x @ w + b)": (
        {"x": NM, "w": (5, 3), "b": (3,)},
        {"w": "x.T @ (dy * (1 - y ** 2))", "b": "sum(dy * (1 - y ** 2), axis=0)"},
    ),
    "relu(x @ w)": ({"x": NM, "w": (5, 3)}, {"w": "x.T @ where(x @ w > 0, dy, 0)"}),
    "sigmoid(w @ x + b)": ({"w": N, "x": N, "b": ()}, {"w": "y * (1 - y) * x", "b": "y * (1 - y)"}),
    "sum(log(1 + exp(-t * (X @ w))))": (
        {"X": NM, "w": M, "t": N},
        {"w": "-X.T @ (t * sigmoid(-t * (X @ w)))"},
    ),
    "-sum(t * log(p) + (1 - t) * log(1 - p))": ({"p": N, "t": N}, {"p": "(1 - t) / (1 - p) - t / p"}),
    "norm(X @ w - t) ** 2 + lam * norm(w) ** 2": (
        {"X": NM, "w": M, "t": N, "lam": ()},
        {"w": "2 * (lam * w + X.T @ (X @ w - t))"},
    ),
    "mean((X @ w - t) ** 2)": ({"X": NM, "w": M, "t": N}, {"w": "2 * X.T @ (X @ w - t) / t.shape[0]"}),
    "logdet(A) / 2 - (x - m) @ A @ (x - m) / 2": (
        {"x": N, "m": N, "A": NN},
        {"m": "(A + A.T) @ (x - m) / 2", "A": "(inv(A).T - outer(x - m, x - m)) / 2"},
    ),
    "(x - mean(x, axis=1, keepdims=True)) / std(x, axis=1, keepdims=True)": (
        {"x": NM},
        {
            "x": "(dy - mean(dy, axis=1, keepdims=True) - y * mean(dy * y, axis=1, keepdims=True))"
            " / std(x, axis=1, keepdims=True)"
        },
    ),
    "x * sigmoid(x)": ({"x": NM}, {"x": "dy * (sigmoid(x) + y * (1 - sigmoid(x)))"}),
    "x[:, None] * b": ({"x": N, "b": M}, {"x": "dy @ b", "b": "dy.T @ x"}),
}
SHOWN = ["x.T @ A @ x", "softmax(x)", "solve(A, b)"]  # verified at once


@pytest.fixture
def unproven(monkeypatch):
    """Without the verifier: what a formula is, not whether it is right."""
    monkeypatch.setattr(module, "doubts", lambda *_: {})
    monkeypatch.setattr(module, "point", lambda *_: {})


def test_there_are_forty():
    assert len(BOOK) >= 40


@pytest.mark.parametrize("text", BOOK)
def test_the_textbook(unproven, text):
    shapes, wanted = BOOK[text]
    derivation = fn.derive(text, shapes)
    assert derivation.ok
    shown = derivation.plain or derivation.gradients
    assert {name: shown[name] for name in wanted} == wanted


@pytest.mark.parametrize("text", few(BOOK, SHOWN))
def test_the_textbook_is_right(text):
    """By the verifier, before it is given, and once more without it."""
    shapes, _ = BOOK[text]
    derivation = fn.derive(text, shapes)
    assert derivation.ok, derivation
    assert derivation.gradients.keys() == {name for name in shapes if name != "ids"}
    assert_right(text, shapes, derivation)


def assert_right(text, shapes, derivation):
    """Each gradient against `jax.vjp` at values between 0 and 1, matrices with a positive determinant."""
    rng = np.random.default_rng(7)
    args = {
        name: shape
        if isinstance(shape, np.ndarray)
        else jnp.asarray(
            rng.uniform(0.1, 0.9, shape) + (9 * np.eye(*shape) if shape in (NN, (5, 5), (3, 3)) else 0)
        )
        for name, shape in shapes.items()
    }
    moving = {name: args[name] for name in derivation.gradients}
    function = formula(text, list(args))
    y, pullback = jax.vjp(lambda moving: function(**{**args, **moving}), moving)
    dy = jnp.asarray(rng.standard_normal(y.shape))
    (truth,) = pullback(dy)
    for name, gradient in derivation.gradients.items():
        found = formula(gradient, [*args, "y", "dy"])(**args, y=y, dy=dy)
        found = np.where(
            np.isfinite(truth[name]), found, truth[name]
        )  # exp(exp(9)) is too large for autodiff
        np.testing.assert_allclose(found, truth[name], rtol=1e-8, atol=1e-8, err_msg=f"d{name} = {gradient}")


# ---- the law: right, or not derived -----------------------------------------------------------------------

ARGUMENTS = {"a": (5,), "b": (3,), "c": (5,), "A": (5, 5), "B": (5, 3), "s": (), "k": (5, 1), "t": (1, 3)}
OF_ANY = (
    "exp({0})", "tanh({0})", "sin({0})", "sigmoid({0})", "relu({0})", "abs({0})", "({0}) ** 2", "(-{0})",
    "sqrt(1 + ({0}) ** 2)", "log(2 + ({0}) ** 2)", "log(1 + exp({0}))", "(1 - {0})", "({0} / 3 - 1.5)",
    "maximum({0}, {1})", "where({0} > 0, {1}, 0)", "({0} + {1})", "({0} - {1})", "({0} * {1})",
    "({0} / (2 + ({1}) ** 2))",
)  # fmt: skip
OF_ROWS = ("softmax({0})", "log_softmax({0})", "({0} / norm({0}))", "({0} - mean({0}, -1, keepdims=True))")


@st.composite
def formulas(draw, shape=None, depth=3):
    """A text that gives this shape."""
    pick = lambda *some: draw(st.sampled_from(some))
    inner = lambda *shape: draw(formulas(shape, depth - 1))
    if shape is None:
        shape = pick((), (), (5,), (3,), (5, 3), (5, 5))
    names = [name for name, own in ARGUMENTS.items() if own == shape]
    if depth == 0 or (names and not draw(st.integers(0, 6))):
        made = {(3, 5): ("B.T",), (3, 3): ("(B.T @ B)",)}.get(shape, ())
        return pick(*names, *made)
    scalars = ("sum", "product", "quadratic", "matrix", "reduced")
    kinds = "any", "any", *(scalars, ("row", "product"), ("row", "product", "wide"))[len(shape)] * 2
    n, m = pick(3, 5), pick(3, 5)
    match pick(*kinds), len(shape):
        case "any", _:
            return pick(*OF_ANY).format(inner(*shape), inner(*shape))
        case "row", _:
            return pick(*OF_ROWS).format(inner(*shape))
        case "sum", _:
            return f"{pick('sum', 'mean', 'logsumexp', 'norm', 'var')}({inner(n, m)})"
        case "reduced", _:
            return f"{pick('sum', 'norm', 'logsumexp')}({inner(n)})"
        case "quadratic", _:
            return f"({inner(n)} @ {inner(n, m)} @ {inner(m)})"
        case "matrix", _:
            return pick("trace({0})", "logdet(9 * eye({1}) + {0})", "det({0})").format(inner(n, n), n)
        case "product", 0:
            return f"({inner(n)} @ {inner(n)})"
        case "product", 1:
            return pick(
                f"({inner(n)} @ {inner(n, *shape)})",
                f"({inner(*shape, n)} @ {inner(n)})",
                f"sum({inner(n, *shape)}, axis=0)",
                f"mean({inner(*shape, n)}, axis=1)",
                f"diag({inner(*shape, *shape)})",
                f"({inner()} * {inner(*shape)})",
                f"solve(9 * eye({shape[0]}) + {inner(*shape, *shape)}, {inner(*shape)})",
            )
        case "product", _:
            return pick(
                f"({inner(shape[0], n)} @ {inner(n, shape[1])})",
                f"({inner(*shape[::-1])}).T",
                f"outer({inner(shape[0])}, {inner(shape[1])})",
                f"softmax({inner(*shape)}, axis=0)",
                f"({inner()} * {inner(*shape)})",
            )
    pick_rows = f"({inner(*shape)} {pick('+', '*')} {inner(shape[1])})"
    return pick(pick_rows, f"({inner(*shape)} {pick('+', '*')} ({inner(shape[0])})[:, None])")


def holds_the_law(text):
    shapes = {name: shape for name, shape in ARGUMENTS.items() if re.search(rf"\b{name}\b", text)}
    if len(text) > 300:
        return
    try:
        derivation = fn.derive(text, shapes)
    except ExpressionError:  # such as 2[:, None]
        return
    assert derivation.gradients.keys() | derivation.reasons.keys() == shapes.keys()
    assert_right(text, shapes, derivation)


@settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@example("log_softmax(sin(B + b)) @ tanh(where(abs(B.T) > 0, tanh(B.T), 0))")  # a condition used twice
@given(formulas())
def test_right_or_not_derived(text):
    holds_the_law(text)


@pytest.mark.slow
@settings(max_examples=many(150), deadline=None, suppress_health_check=list(HealthCheck))
@given(formulas(depth=4))
def test_right_or_not_derived_at_length(text):
    holds_the_law(text)


# ---- a wrong rule is not shown ----------------------------------------------------------------------------

USES = {  # of each rule: a formula that needs it
    "exp": "sum(exp(x) * a)", "log": "log(2 + x * x) @ a", "log1p": "log1p(x * x) @ a", "abs": "abs(x) @ a",
    "expm1": "expm1(x) @ a", "sin": "sin(x) @ a", "cos": "cos(x) @ a", "tanh": "tanh(x)", "erf": "erf(x)",
    "sigmoid": "sigmoid(x)", "relu": "relu(x)", "add": "sin(x + a)", "mul": "x * a", "pow": "x ** 3",
    "maximum": "maximum(x, a)", "minimum": "minimum(x, a)", "where": "where(x > 0, x, a)",
    "unsqueeze": "exp(x[:, None])", "sum": "sum(X, axis=0)", "mean": "mean(X, axis=0)", "var": "var(X)",
    "std": "std(X)", "norm": "norm(X)", "logsumexp": "logsumexp(x)", "softmax": "softmax(x)",
    "log_softmax": "log_softmax(x)", "matmul": "X @ x", "T": "exp(X).T", "outer": "outer(x, a)",
    "inv": "inv(X)", "det": "det(X)", "logdet": "logdet(X)", "trace": "trace(X)", "diag": "diag(x)",
    "expand": "ones_like(X) * x",
}  # fmt: skip
AT_ONCE = ("softmax", "sum")


def test_every_rule_has_a_formula_that_needs_it():
    assert USES.keys() == calculus.RULES.keys()


@pytest.mark.parametrize("op", few(USES, AT_ONCE))
def test_a_wrong_rule_is_not_shown(monkeypatch, op):
    """The rule's first cotangent off by one in a thousand."""
    text = USES[op]
    rule, off, used = calculus.RULES[op], algebra.number(1.001), []

    def wrong(y, g):
        cotangents = rule(y, g)
        used.append(op)
        return [c if c is None else algebra.mul(off, c) for c in cotangents]

    monkeypatch.setitem(calculus.RULES, op, wrong)
    shapes = {name: shape for name, shape in {"x": (5,), "a": (5,), "X": (5, 5)}.items() if name in text}
    derivation = fn.derive(text, shapes)
    assert used or op == "expand"  # ones_like(X) * x is read as x repeated only where its shape is needed
    if used:
        assert not derivation.ok
        assert "the verifier does not call" in next(iter(derivation.reasons.values()))


@pytest.mark.parametrize(
    ("target", "name", "wrong"),
    [
        (printing._Numpy, "power", lambda self, base, exponent, level: self.at(base, level)),
        (calculus, "transpose", lambda term: term),
        (module, "tidy", lambda term, y, y_name: algebra.mul(algebra.number(2), term)),
    ],
    ids=["a lost power in print", "a lost transpose", "a lost half"],
)
def test_a_wrong_step_is_not_shown(monkeypatch, target, name, wrong):
    monkeypatch.setattr(target, name, wrong)
    derivation = fn.derive("sum((A @ x) ** 3)", {"A": (5, 5), "x": (5,)}, wrt=["x"])
    assert derivation.gradients == {}
    assert "the verifier does not call" in derivation.reasons["x"]


def test_a_wrong_line_is_not_shown(monkeypatch):
    """With names for what is shared; without them it is what was verified."""

    def wrong(terms, taken):
        values, left = share(terms, taken)
        return values, [algebra.neg(term) for term in left]

    share = module.share
    monkeypatch.setattr(module, "share", wrong)
    derivation = fn.derive("tanh(x * a)", {"x": (5,), "a": (5,)})
    assert derivation.lines == (("dx", "dy * a * (1 - y ** 2)"), ("da", "dy * x * (1 - y ** 2)"))


# ---- what is given ----------------------------------------------------------------------------------------


def test_what_is_not_derived_says_why():
    derivation = fn.derive("cumsum(x) @ a", {"x": (5,), "a": (5,)})
    assert derivation.gradients == {"a": "dy * cumsum(x)"}
    assert derivation.reasons == {"x": "there is no rule for cumsum(x)"}
    assert not derivation.ok
    assert "dx: not derived: there is no rule for cumsum(x)" in str(derivation)
    assert derivation.verdict == "1 of 2 gradients derived, and verified"
    nothing = fn.derive("log(-x * x)", {"x": (5,)})
    assert nothing.reasons == {"x": "the formula is finite at none of the values that were tried"}
    assert nothing.verdict == "nothing derived"


def test_what_grows_without_end_is_not_derived():
    start = time.process_time()
    derivation = fn.derive("softmax(" * 40 + "x" + ")" * 40, {"x": (5,)})
    assert "more than" in derivation.reasons["x"]
    product = " @ ".join(f"(A + {k} * B)" for k in range(40))
    assert not fn.derive(product, {"A": (3, 3), "B": (3, 3)}).ok
    assert time.process_time() - start < 15


def test_a_symmetric_matrix(unproven):
    shapes = {"x": N, "A": NN}
    assert fn.derive("x @ A @ x", shapes, symmetric=["A"]).plain["x"] == "2 * A @ x"
    rayleigh = fn.derive("(x @ A @ x) / (x @ x)", shapes, symmetric=["A"])
    assert rayleigh.plain["x"] == "2 * (A @ x - y * x) / (x @ x)"
    assert rayleigh.verdict.endswith("(right where A is symmetric)")


def test_symmetric_means_right_there_only():
    derivation = fn.derive("x @ A @ x", {"x": (5,), "A": (5, 5)}, symmetric=["A"])
    assert derivation.ok
    x, a = jnp.ones(5), jnp.arange(25.0).reshape(5, 5)
    report = fn.verify(lambda x: x @ a @ x, lambda x, dy: dy * 2 * a @ x, (x,), budget=0.0)
    assert not report.ok  # where A is not


def test_names_for_what_is_shared_are_free(unproven):
    derivation = fn.derive("sum((A @ x - b) ** 2)", {"A": NM, "x": M, "b": N})
    assert derivation.lines[0] == ("r", "A @ x - b")
    assert ("dA", "2 * outer(r, x)") in derivation.lines
    taken = fn.derive("sum((A @ r - b) ** 2)", {"A": NM, "r": M, "b": N})
    assert taken.lines[0] == ("s", "A @ r - b")


def test_there_is_always_a_name(unproven):
    shapes = {"A": NM, "x": M, "b": N, **dict.fromkeys("rstuvq", ())}
    derivation = fn.derive("sum((A @ x - b) ** 2) + r * s * t * u * v * q", shapes)
    assert ("r1", "A @ x - b") in derivation.lines


def test_attention(unproven):
    derivation = fn.derive("softmax(q @ k.T / sqrt(5)) @ v", {"q": (7, 5), "k": (3, 5), "v": (3, 2)})
    assert dict(derivation.lines) == {
        "R": "softmax(q @ k.T / sqrt(5))",
        "S": "R * (dy @ v.T - sum(R * (dy @ v.T), axis=1, keepdims=True))",
        "dq": "S @ k / sqrt(5)",
        "dk": "S.T @ q / sqrt(5)",
        "dv": "R.T @ dy",
    }


LATEX = {
    "x.T @ A @ x": (
        {"x": N, "A": NN},
        [
            r"y = x^\top A x",
            r"\frac{\partial y}{\partial x} = \left(A + A^\top\right) x",
            r"\frac{\partial y}{\partial A} = x x^\top",
        ],
    ),
    "norm(A @ x - b) ** 2": (
        {"A": NM, "x": M, "b": N},
        [
            r"y = \lVert A x - b \rVert_{2}^{2}",
            "r = A x - b",
            r"\frac{\partial y}{\partial A} = 2 \, r x^\top",
            r"\frac{\partial y}{\partial x} = 2 \, A^\top r",
            r"\frac{\partial y}{\partial b} = -2 \, r",
        ],
    ),
    "a @ inv(X) @ b": (
        {"a": N, "X": NN, "b": N},
        [
            r"y = a^\top X^{-1} b",
            r"r = X^{-\top} a",
            r"\frac{\partial y}{\partial a} = X^{-1} b",
            r"\frac{\partial y}{\partial X} = -r b^\top X^{-\top}",
            r"\frac{\partial y}{\partial b} = r",
        ],
    ),
    "tanh(x @ w1)": (
        {"x": NM, "w1": (5, 3)},
        [
            r"y = \tanh(x w_{1})",
            r"R = \bar{y} \odot \left(1 - y^{\circ 2}\right)",
            r"\bar{x} = R w_{1}^\top",
            r"\bar{w_{1}} = x^\top R",
        ],
    ),
}


@pytest.mark.parametrize("text", LATEX)
def test_latex(unproven, text):
    shapes, wanted = LATEX[text]
    assert [f"{name} = {value}" for name, value in fn.derive(text, shapes).latex] == wanted


@pytest.mark.parametrize("text", BOOK)
def test_latex_is_balanced(unproven, text):
    for _, value in fn.derive(text, BOOK[text][0]).latex:
        assert value.count("{") == value.count("}")
        assert value.count(r"\left(") == value.count(r"\right)")


def test_equal_terms_are_one_object():
    a, b = (algebra.name(text, (5, 5)) for text in "ab")
    assert algebra.add(a, b) is algebra.add(b, a)
    assert matrices.transpose(matrices.matmul(a, b)) is matrices.matmul(*map(matrices.transpose, (b, a)))
    assert algebra.mul(a, b, algebra.power(a, -1)) is b
    assert matrices.matmul(a, matrices.inverse(a), b) is b
    assert matrices.inverse(matrices.transpose(matrices.inverse(a))) is matrices.transpose(a)


@pytest.mark.parametrize(
    ("text", "shapes", "options", "error", "message"),
    [
        ("x @", {"x": N}, {}, ExpressionError, "stops too early"),
        ("x + z", {"x": N}, {}, ExpressionError, 'there is no "z"'),
        ("x @ a", {"x": N, "a": M}, {}, ExpressionError, "cannot be computed"),
        ("x > 0", {"x": N}, {}, DTypeError, "gives bool"),
        ("x", {"x": "seven"}, {}, DTypeError, "the shape of x"),
        ("x", {"x": (-1,)}, {}, DTypeError, "the shape of x"),
        ("dy", {"dy": N}, {}, ValueRangeError, "'dy' cannot be the name"),
        ("A @ A @ A", {"A": (2000, 2000)}, {}, ValueRangeError, "its gradient is the same at smaller ones"),
        ("x", {"x": N}, {"wrt": ["z"]}, ValueRangeError, "no argument 'z'"),
        ("x[ids]", {"x": N, "ids": IDS}, {"wrt": ["ids"]}, DTypeError, "ids is int32"),
        ("x", {"x": NM}, {"symmetric": ["x"]}, ShapeError, "no square matrix"),
        ("x", {"x": N}, {"symmetric": ["A"]}, ShapeError, "no such argument"),
    ],
)
def test_bad_input(text, shapes, options, error, message):
    with pytest.raises(error, match=re.escape(message)) as caught:
        fn.derive(text, shapes, **options)
    assert isinstance(caught.value, FuncnetError)


def test_values_may_be_given():
    x = np.array([1.0, 2.0, 3.0], np.float32)
    assert fn.derive("log(x) @ x", {"x": x}).plain == {"x": "1 + log(x)"}
