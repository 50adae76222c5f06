"""Every case through every law, and every law against a rule that it must reject."""

import functools
import types
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from funcnet import rules
from tests import laws
from tests.cases import CASES, FAMILIES, LARGE, MEMBERS, STACKED, Case, F, K, case

WITH_MATRIX = [
    c for c in CASES if hasattr(c.module, "matrix") and not (c.op == "matmul" and len(c.args[1].shape) != 2)
]  # the matrix of a product is that of one B

WITH_SQUARES = [c for c in CASES if laws.has_squares(c)]


def ids(v: Any) -> str:
    return v.id if isinstance(v, Case) else v.__name__ if callable(v) else str(v)


def test_cases_are_distinct():
    assert len({c.id for c in CASES + LARGE}) == len(CASES + LARGE)


FOLLOWERS = {"gru", "rnn"}  # their pass over time is lstm's, with another cell: so are its transforms
# Of grids, grid_sample asks all: the others are linear, or pools of one axis after the other.
FOLLOWERS |= {"adaptive_avg_pool", "adaptive_max_pool", "fold", "lp_pool", "pad", "patches"}
FOLLOWERS |= {"pixel_shuffle", "pixel_unshuffle", "resize"}
# Frames and spectra are stft's; elementwise; sums with fixed weights: plain JAX, or made of these.
FOLLOWERS |= {"istft", "magnitude", "power", "mel", "log_mel", "mfcc", "pre_emphasis", "deltas"}
# A scan over frames as lstm's, between losses as cross_entropy's; every program of it compiles a second.
FOLLOWERS |= {"ctc"}
# So does moe's over tiles, between a softmax and sums; over its eight leaves batching alone takes 12 s.
FOLLOWERS |= {"moe"}
OF_EACH = {laws.naive, laws.finite_differences, laws.forward, laws.cost, laws.attached, laws.containers}


def first(many: int, cases: list[Case] = CASES, *, followers: int | None = None) -> list[Any]:
    """All cases; those beyond the first few of each operation are slow: `make slow` runs them all.

    So are those of a family's members, which `test_family` asks at once. `followers`: how many of each that
    follows another; None: as many.
    """
    before = {c.id: [d.op for d in cases[:i]].count(c.op) for i, c in enumerate(cases)}
    few = lambda c: many if followers is None or c.op not in FOLLOWERS else followers
    fast = lambda c: before[c.id] < few(c) and c.op not in MEMBERS
    return [c if fast(c) else pytest.param(c, marks=pytest.mark.slow) for c in cases]


@pytest.mark.parametrize("c", first(2), ids=ids)
def test_formula(c):
    args, options = c.draw()
    laws.formula(c, c.module, args, options)


@pytest.mark.parametrize("c", first(1), ids=ids)
@pytest.mark.parametrize("law", [law for law in laws.LAWS if law in OF_EACH], ids=ids)
def test_law(law, c):
    args, options = c.draw()
    law(c, c.module, args, options)


@pytest.mark.parametrize("c", first(1, followers=0), ids=ids)
@pytest.mark.parametrize("law", [law for law in laws.LAWS if law not in {*OF_EACH, laws.formula}], ids=ids)
def test_transform(law, c):
    args, options = c.draw()
    law(c, c.module, args, options)


@pytest.mark.parametrize("c", STACKED, ids=ids)
@pytest.mark.parametrize(
    "law",
    [
        *(laws.family, laws.second_order, laws.strict, laws.symbols),
        *(pytest.param(law, marks=pytest.mark.slow) for law in (laws.x64_between, laws.taylor)),
    ],
    ids=ids,
)
def test_family(law, c):
    args, options = c.draw()
    law(c, c.module, args, options)


@pytest.mark.parametrize(
    "c",
    [
        c if fast and c.op in ("linear", "layer_norm", "conv", "conv_transpose") else slow
        for c, fast in ((c, c is next(d for d in CASES if d.op == c.op)) for c in CASES)
        for slow in [pytest.param(c, marks=pytest.mark.slow)]
    ],
    ids=ids,
)
def test_uncompiled(c):
    args, options = c.draw()
    laws.uncompiled(c, c.module, args, options)


@pytest.mark.parametrize("c", first(2, WITH_MATRIX), ids=ids)
def test_matrix(c):
    args, options = c.draw()
    laws.matrix(c, c.module, args, options)


@pytest.mark.parametrize("c", first(1, WITH_SQUARES), ids=ids)
def test_squares(c):
    args, options = c.draw()
    laws.squares(c, c.module, args, options)


@pytest.mark.only_as_users
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("c", [*first(2, followers=1), *STACKED], ids=ids)
def test_rounded(c, dtype):
    laws.rounded(c, c.module, dtype)


@pytest.mark.only_as_users
@pytest.mark.parametrize("c", first(1, LARGE, followers=0), ids=ids)
def test_large(c):
    laws.large(c, c.module)


def test_every_operation_has_cases():
    import funcnet

    assert {c.op for c in CASES} == {c.op for c in LARGE} | MEMBERS == set(funcnet._OPERATIONS)
    for file, names in funcnet._OBJECTS.items():
        assert set(names) == {*FAMILIES[file.rpartition(".")[2]]}


# ---- a law that cannot fail is no law ---------------------------------------------------------------------

CASE = case("linear", {"w": F(3, 5), "b": F(5)}, F(2, 7, 3))
OP = CASE.module


def scaled(tree: Any, by: float = 1.0001) -> Any:
    return jax.tree.map(lambda v: v * by, tree)


def broken(**changes: Any) -> types.SimpleNamespace:
    """linear with one thing wrong."""
    return types.SimpleNamespace(**{**vars(OP), **changes})


def wrong_gradient(params, x):
    y, pullback = OP.vjp(params, x)
    return y, jax.tree_util.Partial(_wrong_pullback, pullback)


def _wrong_pullback(pullback, dy):
    dparams, dx = pullback(dy)
    return {**dparams, "w": scaled(dparams["w"])}, dx


def curved(params, x):
    """A right gradient whose own derivative is wrong: the residual is cut off."""
    y, pullback = OP.vjp(params, x)
    return y, jax.tree.map(jax.lax.stop_gradient, pullback)


def fresh(params, x):
    """A pullback with a structure of its own each time."""
    y, pullback = OP.vjp(params, x)
    return y, jax.tree_util.Partial(lambda p, dy: p(dy), pullback)


def by(vjp):
    return broken(vjp=vjp, apply=lambda params, x: rules.call(vjp, params, x))


@jax.custom_jvp
def _sharded_wrong(params, x):
    return OP.reference(params, x)


@_sharded_wrong.defjvp
def _(primals, tangents):
    return jax.jvp(OP.reference, primals, scaled(tangents))


SOFTMAX = case("softmax", F(7, 3), axis=0)
DROPOUT = case("dropout", F(7, 3), rate=0.3, key=K())


def other(of: Case, **changes: Any) -> tuple[Case, types.SimpleNamespace]:
    """An operation that has what linear has not, with one thing wrong."""
    return of, types.SimpleNamespace(**{**vars(of.module), **changes})


def plain_gradient(params, x):
    """The gradient in a dict, whatever the params are in."""
    y, pullback = OP.vjp(params, x)
    return y, jax.tree_util.Partial(_plain_pullback, pullback)


def _plain_pullback(pullback, dy):
    dparams, dx = pullback(dy)
    return dict(dparams), dx


def typed_pullback(x, axis=-1):
    """A pullback with another structure for NumPy's 0 than for Python's."""
    y, pullback = SOFTMAX.module.vjp(x, axis)
    return y, jax.tree_util.Partial(_named(type(axis)), pullback)


@functools.cache
def _named(kind):
    return functools.partial(lambda pullback, dy: pullback(dy))


def wide_residual(params, x):
    """A residual whose dtype is that of x64 where it is on: so is a gradient made of it."""
    y, pullback = OP.vjp(params, x)
    return y, jax.tree_util.Partial(_wide_pullback, pullback)


def _wide_pullback(pullback, dy):
    dparams, dx = pullback(dy)
    return dparams, dx.astype(float)


def kept_key(x, *, rate, key):
    return DROPOUT.module.vjp(x, rate=rate, key=key)[0], jax.tree_util.Partial(_redrawn, key)


def _redrawn(key, dy):
    return (jnp.where(jax.random.bernoulli(key, 0.7, dy.shape), dy / 0.7, 0),)


REJECTED = {
    laws.naive: broken(reference=lambda p, x: scaled(OP.reference(p, x))),
    laws.forward: broken(apply=lambda p, x: scaled(OP.apply(p, x))),
    laws.formula: broken(vjp=wrong_gradient),
    laws.attached: by(wrong_gradient),
    laws.no_retrace: broken(vjp=fresh),
    laws.forward_mode: by(wrong_gradient),
    laws.second_order: by(curved),
    laws.jacobians: by(wrong_gradient),
    laws.batching: by(wrong_gradient),
    laws.control_flow: by(wrong_gradient),
    laws.sharding: by(wrong_gradient),
    laws.export: broken(apply=lambda p, x: jax.pure_callback(lambda v: v, x, x) @ p["w"]),
    laws.cost: broken(cost=lambda p, x: OP.cost(p, x)._replace(flops=OP.cost(p, x).flops + 1)),
    laws.squares: broken(squares=lambda p, x, dy: scaled(OP.squares(p, x, dy))),
    laws.matrix: broken(matrix=lambda p, s: OP.matrix(p, s).at[0, 0].add(1e-6)),
    laws.finite_differences: broken(reference=_sharded_wrong),
    laws.strict: broken(apply=lambda p, x: jnp.matmul(x, p["w"]) + p["b"]),
    laws.uncompiled: by(wrong_gradient),
    laws.containers: broken(vjp=plain_gradient),
    laws.numpy_options: other(SOFTMAX, vjp=typed_pullback),
    laws.x64_between: broken(vjp=wide_residual),
    laws.branches: other(DROPOUT, vjp=kept_key),
    laws.taylor: broken(apply=lambda p, x: scaled(OP.apply(p, x))),
    laws.symbols: broken(apply=lambda p, x: OP.apply(p, x[: int(x.shape[0])])),
}


def test_every_law_has_a_rule_that_it_rejects():
    assert set(REJECTED) == {*laws.LAWS, laws.matrix, laws.squares, laws.uncompiled}


@pytest.mark.parametrize("law", REJECTED, ids=ids)
def test_law_rejects(law):
    wrong = REJECTED[law]
    of, wrong = wrong if isinstance(wrong, tuple) else (CASE, wrong)
    args, options = of.draw()
    law(of, of.module, args, options)
    with pytest.raises((AssertionError, NotImplementedError, ValueError)):
        law(of, wrong, args, options)


@pytest.mark.only_as_users
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rounded_rejects(dtype):
    laws.rounded(CASE, OP, dtype)
    with pytest.raises(AssertionError):
        laws.rounded(CASE, broken(apply=lambda p, x: scaled(OP.apply(p, x), 1.03)), dtype)


@pytest.mark.only_as_users
def test_large_rejects():
    (c,) = (c for c in LARGE if c.op == "linear")
    laws.large(c, OP)
    with pytest.raises(AssertionError):
        laws.large(c, broken(vjp=wrong_gradient))
