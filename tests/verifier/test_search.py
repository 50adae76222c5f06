"""The search for a name: in little memory, and at an end when its time is over."""

import contextlib
import itertools
import math
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from funcnet.verifier import arrays, clock, edits, inputs, paths, slips, terms, trace
from funcnet.verifier.judge import judge_of
from funcnet.verifier.problem import elsewhere, pose

GIGABYTE = 2**30


@contextlib.contextmanager
def in_a_gigabyte():
    """Let no more than that be allocated on top of what there is."""
    if sys.platform != "linux":
        pytest.skip("the limit is Linux's")
    import resource

    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + GIGABYTE, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.fixture
def ticks(monkeypatch):
    """The verifier's clock moves on by 1 each time somebody looks at it, and is at 0."""
    monkeypatch.setattr(clock, "now", itertools.count(0.0).__next__)


def posed(forward, backward, *args):
    """Judge and one point of a wrong formula, nothing compiled."""
    problem = pose(forward, backward, args)
    ready = judge_of(problem)
    return ready, [ready.at("as given", problem.arrays, np.random.default_rng(0))]


def scope_of(forward, backward, *args):
    """What the slips in a formula are looked for in."""
    ready, points = posed(forward, backward, *args)
    scene = edits._scene(ready.problem, points[0])
    return edits._scope(scene, ready.problem, list(scene.outputs), math.inf)


def x(*shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape))


def forty_uses(u, dy):
    return dy * jnp.stack([u] * 40).sum(0)


def twelve_axes(u, dy):
    return (jnp.tanh(u).sum((0, 2, 4, 6, 8, 10), keepdims=True) * dy).transpose(1, 0, *range(2, 12))


def two_hundred_equations(u, dy):
    for _ in range(100):
        dy = dy * jnp.cos(u) + u
    return dy


FORMULAS = {
    "40 uses": (forty_uses, x(5)),
    "12 axes": (twelve_axes, x(*[2] * 12)),
    "200 equations": (two_hundred_equations, x(3, 4)),
}


def test_subsets_of_the_uses_of_a_value_are_not_all_listed():
    """Forty uses have 2⁴⁰."""
    scope = scope_of(jnp.sin, forty_uses, x(5))
    assert max(map(len, scope.uses.values())) == 40
    with in_a_gigabyte():
        drawn = sum(1 for _ in slips._others(scope))
    assert 40 < drawn < 2000


def test_sets_of_axes_are_bounded():
    few = list(slips._other_axes((1,), 3))
    assert few == [(0, 1), (1, 2), (0,), (0, 1, 2), (2,), (0, 2)]
    with in_a_gigabyte():
        assert len(list(slips._other_axes((0, 3), 64))) == slips.AXES
        assert len(list(itertools.islice(terms._sums((2,) * 64, (2,) * 64), slips.AXES))) == slips.AXES


def test_the_sets_of_axes_whose_sums_fit():
    shape, to = (4, 1, 3, 2), (5, 1, 1, 3, 2)
    assert list(terms._sums(shape, to)) == [(0,), (0, 2), (0, 3), (0, 2, 3)]
    assert list(terms._sums(to, shape)) == []


@pytest.mark.parametrize("name", FORMULAS)
def test_nothing_is_tried_after_the_deadline(name, monkeypatch, ticks):
    formula, u = FORMULAS[name]
    ready, points = posed(jnp.sin, formula, u)
    tried = []
    count = lambda f: lambda *args, **options: tried.append(f.__name__) or f(*args, **options)
    monkeypatch.setattr(trace, "rerun", count(trace.rerun))
    monkeypatch.setattr(paths, "_explained", count(paths._explained))
    monkeypatch.setattr(inputs, "_explains", count(inputs._explains))
    for search, late in ((inputs.search, (0,)), (paths.search, ([0],)), (edits.search, ([0],))):
        problem = ready if search is inputs.search else ready.problem
        search(problem, points, *late, -1.0)
        assert not tried
        with in_a_gigabyte():
            search(problem, points, *late, clock.now() + 200.0)
        assert 0 < len(tried) < 1000, "it looks at the clock before each try"
        tried.clear()


def test_many_axes_are_few_elements_until_they_are_resized():
    ready, _ = posed(jnp.sin, lambda u, dy: dy, x(*[2] * 12))
    with in_a_gigabyte():
        assert elsewhere(ready.problem, "square", np.random.default_rng(0)) is None
    assert elsewhere(ready.problem, "second", np.random.default_rng(0)) is None


@pytest.mark.parametrize(
    ("got", "want"), [([2] * 10 + [1, 3], [3, 1] + [2] * 10), ([1] * 40, [1] * 20 + [2]), ([2] * 14, [2] * 3)]
)
def test_orders_and_sets_of_axes_are_not_all_tried(got, want):
    pairs = [(x(*got), x(*want))] * 2
    pairs = [(np.asarray(u), np.asarray(t)) for u, t in pairs]
    assert arrays.named("w", pairs, {}, 2).kind == "shape"


QUATERNION = np.asarray([0.3, -0.4, 0.5, 0.7])


def rotation(u):
    w, i, j, k = (u[n] for n in range(4))
    return jnp.stack(
        [
            jnp.stack([1 - 2 * (j * j + k * k), 2 * (i * j - w * k), 2 * (i * k + w * j)]),
            jnp.stack([2 * (i * j + w * k), 1 - 2 * (i * i + k * k), 2 * (j * k - w * i)]),
            jnp.stack([2 * (i * k - w * j), 2 * (j * k + w * i), 1 - 2 * (i * i + j * j)]),
        ]
    )


def rotated(p, q):
    return p @ rotation(q / jnp.sqrt((q * q).sum())).T


def rotated_gradient(p, q, dy):
    """By hand, in scalars, without the projection of the norm."""
    n = jnp.sqrt((q * q).sum())
    u, d = q / n, dy.T @ p
    a, s = d[[2, 0, 1], [1, 2, 0]] - d[[1, 2, 0], [2, 0, 1]], d + d.T
    dw = 2 * (u[1] * a[0] + u[2] * a[1] + u[3] * a[2])
    di = 2 * (u[0] * a[0] + u[2] * s[0, 1] + u[3] * s[0, 2] - u[1] * (s[1, 1] + s[2, 2]))
    dj = 2 * (u[0] * a[1] + u[1] * s[0, 1] + u[3] * s[1, 2] - u[2] * (s[0, 0] + s[2, 2]))
    dk = 2 * (u[0] * a[2] + u[1] * s[0, 2] + u[2] * s[1, 2] - u[3] * (s[0, 0] + s[1, 1]))
    return dy @ rotation(u), jnp.stack([dw, di, dj, dk]) / n


def test_a_quaternion_without_the_projection_of_its_norm_is_named(monkeypatch, ticks):
    """Hundreds of equations and more slips than there is time for: what it lacks is searched for as well."""
    nothing = lambda program: {len(program.equations) - 1: lambda operands, values: operands}
    useless = slips.Edit("sign", "", 0, nothing, 2.0)
    monkeypatch.setattr(edits, "slips", lambda scope: itertools.repeat(useless))
    ready, points = posed(rotated, rotated_gradient, x(5, 3), jnp.asarray(QUATERNION))
    with in_a_gigabyte():
        found = edits.search(ready.problem, points, [1], 6000.0)[1]
    assert {finding.kind for _, finding in found} == {"missing_term"}
