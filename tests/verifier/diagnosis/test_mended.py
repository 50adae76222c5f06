"""The mended line: pasted from the report into the file, it passes."""

import importlib.util
import linecache
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import funcnet as fn

# definition; right formula; arguments; mistakes, each as (right, wrong)
FORMULAS = {
    "linear": (
        "x @ w + b",
        "return dy @ w.T, x.T @ dy, dy.sum(0)",
        {"x": (5, 5), "w": (5, 5), "b": (5,)},
        [
            ("w.T", "w"),
            ("x.T @ dy", "-x.T @ dy"),
            ("x.T @ dy", "dy.T @ x"),
            ("dy.sum(0)", "dy"),
            ("dy.sum(0)", "dy.mean(0)"),
            ("dy.sum(0)", "dy.sum(1)"),
            ("x.T @ dy", "x.T @ dy / x.shape[0]"),
            ("dy @ w.T, x.T @ dy", "x.T @ dy, dy @ w.T"),
        ],
    ),
    "layer": (
        "jnp.tanh(x @ w)",
        "y = jnp.tanh(x @ w)\ng = dy * (1 - y**2)\nreturn g @ w.T, x.T @ g",
        {"x": (7, 3), "w": (3, 5)},
        [
            ("y**2", "y"),
            ("1 - y**2", "1 + y**2"),
            ("dy * (1 - y**2)", "(1 - y**2)"),
            ("g @ w.T", "dy @ w.T"),
            ("x.T @ g", "x.T @ dy"),
            ("jnp.tanh(x @ w)\ng", "x @ w\ng"),
        ],
    ),
    "softmax": (
        "jnp.exp(x) / jnp.exp(x).sum(-1, keepdims=True)",
        "e = jnp.exp(x)\ny = e / e.sum(-1, keepdims=True)\n"
        "return (y * (dy - (dy * y).sum(-1, keepdims=True)),)",
        {"x": (5, 7)},
        [
            ("(dy * y).sum(-1, keepdims=True)", "(dy * y).sum(0, keepdims=True)"),
            ("dy - (dy * y).sum(-1, keepdims=True)", "dy"),
            ("dy - (dy", "dy + (dy"),
            ("y * (dy - (dy * y)", "y * (dy - (dy * e)"),
            ("y * (dy -", "(dy -"),
        ],
    ),
    "relu": (
        "jnp.where(x > 0, x, 0.1 * x)",
        "return (jnp.where(x > 0, dy, 0.1 * dy),)",
        {"x": (5, 7)},
        [
            ("x > 0, dy", "x < 0, dy"),
            ("dy, 0.1 * dy", "0.1 * dy, dy"),
            ("dy, 0.1", "x, 0.1"),
        ],
    ),
    "mean": (
        "(x * x).mean()",
        "return (2 * dy * x / x.size,)",
        {"x": (5, 7)},
        [("x.size", "x.shape[0]"), ("2 * dy", "dy"), ("/ x.size", "* x.size"), (" / x.size", "")],
    ),
    "norm": (
        "jnp.sqrt((x * x).sum())",
        "y = jnp.sqrt((x * x).sum())\nreturn (dy * x / y,)",
        {"x": (11,)},
        [("x / y", "x * y"), ("x / y", "y / x"), ("dy * x", "x"), ("x / y", "x")],
    ),
    "unit": (
        "x / jnp.sqrt((x * x).sum(-1, keepdims=True))",
        "r = jnp.sqrt((x * x).sum(-1, keepdims=True))\ny = x / r\n"
        "return ((dy - y * (dy * y).sum(-1, keepdims=True)) / r,)",
        {"x": (5, 7)},
        [("dy - y * (dy * y).sum(-1, keepdims=True)", "dy"), (" / r,", ",")],
    ),
    "product": (
        "jnp.sin(a) / b",
        "return dy * jnp.cos(a) / b, -dy * jnp.sin(a) / b**2",
        {"a": (5, 7), "b": (5, 7)},
        [("jnp.cos(a)", "jnp.sin(a)"), ("b**2", "b"), ("-dy", "dy"), ("jnp.cos(a) / b", "jnp.cos(a) * b")],
    ),
    "cumsum": (
        "jnp.cumsum(x, 0)",
        "return (jnp.cumsum(dy[::-1], 0)[::-1],)",
        {"x": (7, 5)},
        [("jnp.cumsum(dy[::-1], 0)[::-1]", "jnp.cumsum(dy, 0)"), ("[::-1],)", ",)")],
    ),
    "residual": (
        "x + jnp.tanh(x)",
        "return (dy + dy * (1 - jnp.tanh(x) ** 2),)",
        {"x": (5, 7)},
        [("dy + dy", "dy"), ("dy + dy *", "dy - dy *")],
    ),
    "quadratic": (
        "x @ A @ x",
        "return dy * (A + A.T) @ x, dy * jnp.outer(x, x)",
        {"x": (5,), "A": (5, 5)},
        [("(A + A.T)", "2 * A"), ("(A + A.T)", "A"), ("jnp.outer(x, x)", "jnp.outer(x, dy * x)")],
    ),
    "heads": (
        'jnp.einsum("nhd,hde->nhe", x, w)',
        'dx = jnp.einsum("nhe,hde->nhd", dy, w)\ndw = jnp.einsum("nhd,nhe->hde", x, dy)\nreturn dx, dw',
        {"x": (5, 3, 7), "w": (3, 7, 7)},
        [("nhe,hde->nhd", "nhe,hed->nhd"), ("->hde", "->hed")],
    ),
}  # fmt: skip
QUICK = ("linear", "relu", "mean", "heads")  # the first mistake in each; the others are slow
CASES = [
    pytest.param(
        name, right, wrong, id=f"{name}: {wrong}", marks=[pytest.mark.slow] * (n > 0 or name not in QUICK)
    )
    for name, (*_, mistakes) in FORMULAS.items()
    for n, (right, wrong) in enumerate(mistakes)
]


def load(path, text):
    """The module of a file with such a text."""
    path.write_text(text)
    linecache.checkcache(str(path))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pasted(text, findings, path):
    """A file's text with the lines that the findings give in their places."""
    lines = text.splitlines()
    for finding in findings:
        file, _, number = finding.location.rpartition(":")
        assert str(path).endswith(file)
        old, n = lines[int(number) - 1], len(finding.code.splitlines())
        indent = old[: len(old) - len(old.lstrip())]
        lines[int(number) - 1 : int(number) - 1 + n] = [indent + v for v in finding.code.splitlines()]
    return "\n".join(lines) + "\n"


def arrays(shapes):
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.standard_normal(shape)) for shape in shapes.values())


@pytest.mark.parametrize(("name", "right", "wrong"), CASES)
def test_the_pasted_line_passes(name, right, wrong, tmp_path):
    definition, formula, shapes, _ = FORMULAS[name]
    assert formula.count(right) == 1
    names = ", ".join(shapes)
    body = "".join(f"    {line}\n" for line in formula.replace(right, wrong).splitlines())
    text = f"import jax.numpy as jnp\n\n\ndef forward({names}):\n    return {definition}\n\n\n"
    text += f"def backward({names}, dy):\n{body}"
    path, args = tmp_path / "mine.py", arrays(shapes)
    mine = load(path, text)
    report = fn.verify(mine.forward, mine.backward, args)
    assert not report.ok
    assert all(f.code for f in report.wrong), report
    mended = load(path, pasted(text, report.wrong, path))
    assert fn.verify(mended.forward, mended.backward, args).ok


RULE = """
import jax
import jax.numpy as jnp


@jax.custom_vjp
def squash(x):
    return jnp.tanh(x)


def squash_forward(x):
    y = jnp.tanh(x)
    return y, y


def squash_backward(y, dy):
    g = 1 - y
    return (g * dy,)


squash.defvjp(squash_forward, squash_backward)


def loss(params, batch):
    return squash(batch @ params["w"]).sum()
"""

CALL = """
import jax.numpy as jnp
from jax.tree_util import Partial

from funcnet import rules


def cube_vjp(x):
    return x * x * x, Partial(_pullback, x)


def _pullback(x, dy):
    return (3 * x * dy,)


def loss(params, batch):
    return rules.call(cube_vjp, batch @ params["w"]).sum()
"""

TANGENT = """
import jax
import jax.numpy as jnp


@jax.custom_jvp
def squash(x):
    return jnp.tanh(x)


def scaled(y, dx):
    return (1 - y) * dx


@squash.defjvp
def squash_jvp(primals, tangents):
    y = squash(*primals)
    return y, scaled(y, *tangents)


def loss(params, batch):
    return squash(batch @ params["w"]).sum()
"""


@pytest.mark.parametrize("text", [RULE, CALL, TANGENT], ids=["custom_vjp", "rules.call", "custom_jvp"])
def test_a_rule_in_a_model_is_mended(text, tmp_path):
    path = tmp_path / "model.py"
    w, x = arrays({"w": (5, 3), "x": (7, 5)})
    report = fn.verify_model(load(path, text).loss, {"w": w}, x)
    assert not report.ok
    assert report.wrong[0].code
    mended = load(path, pasted(text, report.wrong, path))
    assert fn.verify_model(mended.loss, {"w": w}, x).ok


SHARED = """
import jax.numpy as jnp


def scaled(x):
    return 2 * x


def forward(x):
    return scaled(x) * x


def backward(x, dy):
    return scaled(x) * dy
"""


def test_what_the_forward_pass_runs_too_is_not_mended(tmp_path):
    path, (x,) = tmp_path / "mine.py", arrays({"x": (5,)})
    mine = load(path, SHARED)
    (found,) = fn.verify(mine.forward, mine.backward, (x,)).wrong
    mended = load(path, pasted(SHARED, [found], path))
    assert fn.verify(mended.forward, mended.backward, (x,)).ok
    assert mended.scaled(1.0) == 2.0


def test_a_file_that_was_changed_since_is_left_alone(tmp_path):
    path, args = tmp_path / "mine.py", arrays({"x": (5, 7)})
    text = "def forward(x):\n    return x * x\n\n\ndef backward(x, dy):\n    return {} * x * dy\n"
    mine = load(path, text.format(3))
    path.write_text(text.format(5))
    linecache.checkcache(str(path))
    (found,) = fn.verify(mine.forward, mine.backward, args).wrong
    assert found.kind == "scale"
    assert not found.code


def test_the_functions_of_the_user_stay_what_they_are(tmp_path):
    path, args = tmp_path / "mine.py", arrays({"x": (5, 7)})
    text = "def forward(x):\n    return x * x\n\n\ndef backward(x, dy):\n    return 3 * x * dy\n"
    mine = load(path, text)
    before, code, profile = dict(vars(mine)), mine.backward.__code__, sys.getprofile()
    (found,) = fn.verify(mine.forward, mine.backward, args).wrong
    assert found.code == "return 2 * x * dy"
    assert mine.backward.__code__ is code
    assert vars(mine) == before
    assert sys.getprofile() is profile


NUMPY = """
import jax.numpy as jnp
import numpy as np


def forward(params, x):
    return jnp.sin(x) * params["s"]


def backward(params, x, dy):
    x, s, dy = np.asarray(x), np.asarray(params["s"]), np.asarray(dy)
    return {"s": (dy * np.sin(x)).sum()}, dy * s * np.sin(x)
"""


def test_a_formula_in_numpy_is_mended(tmp_path):
    path, (x,) = tmp_path / "mine.py", arrays({"x": (5, 7)})
    args = {"s": jnp.asarray(2.0)}, x
    mine = load(path, NUMPY)
    (found,) = fn.verify(mine.forward, mine.backward, args).wrong
    assert found.code == 'return {"s": (dy * np.sin(x)).sum()}, dy * s * np.cos(x)'
    mended = load(path, pasted(NUMPY, [found], path))
    assert fn.verify(mended.forward, mended.backward, args).ok


def test_two_mistakes_in_one_line_are_shown_in_one(tmp_path):
    path, args = tmp_path / "mine.py", arrays({"x": (7, 3), "w": (3, 5)})
    text = "def forward(x, w):\n    return x @ w\n\n\n"
    text += "def backward(x, w, dy):\n    return -dy @ w.T, 3 * x.T @ dy\n"
    mine = load(path, text)
    found = fn.verify(mine.forward, mine.backward, args).wrong
    assert {f.code for f in found} == {"return dy @ w.T, x.T @ dy"}
    assert "write: `return dy @ w.T, x.T @ dy`" in str(found[0])


PARTS = """
def forward(x, w):
    return x @ w


def backward(x, w, dy):
    return (
        dy @ w,
        x.T @ dy,
    )
"""


def test_a_statement_of_several_lines_is_shown_whole(tmp_path):
    path, args = tmp_path / "mine.py", arrays({"x": (5, 5), "w": (5, 5)})
    (found,) = fn.verify(*functions(load(path, PARTS)), args).wrong
    assert found.code == "return (\n    dy @ w.T,\n    x.T @ dy,\n)"
    assert fn.verify(*functions(load(path, pasted(PARTS, [found], path))), args).ok


def functions(module):
    return module.forward, module.backward
