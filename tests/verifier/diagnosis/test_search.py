"""The search for a name: in little memory, the likeliest first, and at an end when its work is spent."""

import contextlib
import itertools
import math
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from funcnet.verifier import trace
from funcnet.verifier.diagnosis import arrays, edits, inputs, paths, slips, terms
from funcnet.verifier.diagnosis.search import Guess, search, within
from funcnet.verifier.diagnosis.work import RATE, SpentError, Work
from funcnet.verifier.finding import Finding
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


def posed(forward, backward, *args):
    """Judge and one point of a wrong formula, nothing compiled."""
    problem = pose(forward, backward, args)
    ready = judge_of(problem)
    return ready, [ready.at("as given", problem.arrays, np.random.default_rng(0))]


def scope_of(forward, backward, *args):
    """What the slips in a formula are looked for in."""
    ready, points = posed(forward, backward, *args)
    work = Work(math.inf)
    scene = edits._scene(ready.problem, points[0], work)
    return edits._scope(scene, ready.problem, list(scene.outputs), work)


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
    assert 40 < drawn < 4000
    assert [len(list(slips._some(list(range(n))))) for n in (2, 3, 5, 40)] == [1, 4, 18, 115]


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


def families(ready, points, work):
    return {
        "inputs": inputs.family(ready, points, 0, work),
        "paths": within(work, paths.family(ready.problem, points, work)),
        **{str(n): each for n, each in enumerate(edits.families(ready.problem, points, [0], work))},
    }


@pytest.mark.parametrize("name", FORMULAS)
def test_nothing_is_tried_that_is_not_paid_for(name, monkeypatch):
    formula, u = FORMULAS[name]
    ready, points = posed(jnp.sin, formula, u)
    run, rerun, spent = trace.run, trace.rerun, []
    priced = lambda program, costs: spent.append(sum(costs))

    def all_of(program, *args, **options):
        priced(program, program.costs)
        return run(program, *args, **options)

    def some_of(program, values, changed, wanted):
        priced(program, [program.costs[k] for k in program.again(changed, wanted)])
        return rerun(program, values, changed, wanted)

    monkeypatch.setattr(trace, "run", all_of)
    monkeypatch.setattr(trace, "rerun", some_of)
    for left in (0.0, 3e6):
        spent.clear()
        with in_a_gigabyte():
            search(families(ready, points, Work(left)).values(), [0], [])
        assert sum(spent) <= left


@pytest.mark.parametrize("name", FORMULAS)
def test_every_family_yields_in_rising_effort(name):
    formula, u = FORMULAS[name]
    ready, points = posed(jnp.sin, formula, u)
    for family in families(ready, points, Work(2e6)).values():
        efforts = [guess.effort for guess in family]
        assert efforts == sorted(efforts)


def guess(effort, name="sign", real=None):
    """A guess that explains gradient 0."""
    return Guess(effort, lambda left: [(0, real or effort, Finding("x", name, ""))] if 0 in left else [])


def test_the_search_ends_when_nothing_nearer_can_come():
    drawn = []
    drawing = lambda *some: (drawn.append(one) or one for one in some)
    silent = Guess(1.5, lambda left: [])
    near, far = drawing(guess(2.0, "mask", 2.4), guess(2.3), silent._replace(effort=9.0)), drawing(silent)
    assert search([near, far], [0], [])[0][1].kind == "sign", "what a name costs in the end counts"
    assert len(drawn) == 4
    drawn.clear()
    search([drawing(guess(1.0), silent, silent)], [0, 1], [])
    assert len(drawn) == 3, "the other gradient has no name"


def test_a_family_without_work_ends_and_the_others_go_on():
    work = Work(100.0)

    def dear(left):
        work.share(0.5).pay(60.0)
        raise AssertionError

    families = [iter([Guess(1.0, dear), Guess(1.0, dear)]), iter([guess(1.2)])]
    assert search(families, [0], [])[0][0] == 1.2
    purse = work.share(0.5)
    assert len(list(within(purse, (purse.pay(20.0) or guess(1.0) for _ in range(9))))) == 2
    assert work.left == 60.0


def test_a_name_does_not_depend_on_the_clock_until_it_strikes(monkeypatch):
    now = iter([0.0, 39.0, 41.0])
    monkeypatch.setattr("time.thread_time", lambda: next(now))
    work = Work.of(10.0)
    assert work.left == 10 * RATE
    work.pay(1e8)
    assert not work.late
    with pytest.raises(SpentError):
        work.share(0.5).pay(1e8)
    assert work.late
    assert work.is_spent


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


def test_a_quaternion_without_the_projection_of_its_norm_is_named(monkeypatch):
    """Hundreds of equations and more slips than there is work for: what it lacks is searched for as well."""
    nothing = lambda program: {len(program.equations) - 1: lambda operands, values: operands}
    useless = slips.Edit("sign", "", 0, nothing, 2.0)
    monkeypatch.setattr(slips, "FAMILIES", ((2.0, lambda scope: itertools.repeat(useless)),))
    ready, points = posed(rotated, rotated_gradient, x(5, 3), jnp.asarray(QUATERNION))
    with in_a_gigabyte():
        found = search(edits.families(ready.problem, points, [1], Work(2e8)), [1], [])
    assert found[1][1].kind == "missing_term"


@pytest.mark.slow
def test_a_quaternion_is_named_among_all_its_slips():
    """Values are used thirty times: no list of subsets is made."""
    work = Work(10 * RATE)
    with in_a_gigabyte():
        ready, points = posed(rotated, rotated_gradient, x(5, 3), jnp.asarray(QUATERNION))
        found = search(edits.families(ready.problem, points, [1], work), [1], [])
    assert found[1][1].kind == "missing_term"
    assert work.left > 0
