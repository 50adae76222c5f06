"""The smallest example of a mistake: it fails there, says what is right, is silent where none is small."""

import ast
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnet as fn
from funcnet.verifier.diagnosis import smallest


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def softmax(x):
    return jax.nn.softmax(x)


def fixed(x):
    return x.reshape(40, 30).sum(0)


SQUARE = normal(5, 5, seed=3), normal(5, 5, seed=4)
X, W, B = normal(7, 11), normal(11, 13, seed=1), normal(13, seed=2)
CASES = {  # forward, backward, arguments, elements of the wrong gradient in the example
    "transpose": (lambda x, w: x @ w, lambda x, w, dy: (dy @ w, x.T @ dy), SQUARE, 4),
    "batch sum": (lambda x, w, b: x @ w + b, lambda x, w, b, dy: (dy @ w.T, x.T @ dy, dy), (X, W, B), 1),
    "power": (jnp.tanh, lambda x, dy: dy * (1 - jnp.tanh(x)), (normal(7),), 1),
    "diagonal": (softmax, lambda x, dy: softmax(x) * (1 - softmax(x)) * dy, (X,), 2),
    "positive": (lambda x: jnp.log(x).sum(), lambda x, dy: dy / x**2, (jnp.exp(X),), 1),
    "kink": (jax.nn.relu, lambda x, dy: jnp.where(x > 0, dy, -dy), (X,), 1),
    "none": (lambda x, b: x + b, lambda x, b, dy: (dy, None), (X, normal(11)), 1),
    "other size": (lambda x: x.mean(), lambda x, dy: jnp.ones_like(x) * dy / 7, (normal(7),), 1),
    "complex": (lambda z: (z * z).real, lambda z, dy: dy.astype(z.dtype) * z, (jax.lax.complex(B, -B),), 1),
    "scalar": (lambda x: x**3, lambda x, dy: 3 * x * dy, (normal(),), 1),
    "tree": (lambda p: p["a"] * p["b"], lambda p, dy: {"a": dy, "b": p["a"] * dy}, ({"a": X, "b": X},), 1),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_example_fails_and_says_what_is_right(name):
    forward, backward, args, size = CASES[name]
    (finding,) = fn.verify(forward, backward, args, shapes="auto" if name == "other size" else None).wrong
    found = re.fullmatch("fails at (.*), dy = (.*): expected (.*), got (.*)", finding.example)
    assert found, finding
    leaves, tree = jax.tree.flatten(args)
    read = lambda text: np.asarray(ast.literal_eval(text))
    given = [text.partition(" = ")[2] for text in re.split(r", (?=[a-z]+\S* = )", found[1])]
    arrays = [jnp.asarray(read(text).astype(v.dtype)) for text, v in zip(given, leaves, strict=True)]
    y, pull = jax.vjp(lambda *v: forward(*jax.tree.unflatten(tree, v)), *arrays)
    truth, expected = pull(jnp.asarray(read(found[2]).astype(y.dtype))), read(found[3])
    same = lambda v: v.shape == expected.shape and np.allclose(v, expected, rtol=1e-3)
    assert expected.size == size
    assert any(map(same, truth))
    assert found[4] == "none" or not same(read(found[4]))


def test_it_is_printed():
    forward, backward, args, _ = CASES["power"]
    report = fn.verify(forward, backward, args)
    assert f"\n  {report.wrong[0].example}\n" in str(report)
    assert report.wrong[0].example in report.to_html()


@pytest.mark.parametrize(
    ("forward", "backward", "args"),
    [
        (fixed, lambda x, dy: (2 * jnp.broadcast_to(dy, (40, 30)).reshape(1200),), (normal(1200),)),
        (lambda *x: sum(x), lambda *x: (2 * x[-1],) * 20, tuple(normal(3) for _ in range(20))),
    ],
)
def test_nothing_is_said_where_nothing_is_small(forward, backward, args):
    wrong = fn.verify(forward, backward, args).wrong
    assert wrong
    assert not any(finding.example for finding in wrong)


def test_the_work_is_bounded(monkeypatch):
    asked = []
    differs = smallest._differs
    monkeypatch.setattr(smallest, "_differs", lambda *a: asked.append(0) or differs(*a))
    shapes = [(2, 3, 5, 7, 11, 13)[i:] for i in range(5)]
    args = tuple(normal(*shape) for shape in shapes)
    fn.verify(lambda *x: sum(x), lambda *x: tuple(0 * v for v in x[:-1]), args)
    assert 0 < len(asked) <= 2 * smallest.TRIES
