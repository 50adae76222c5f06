"""No wrong number, and no NaN, where float64 has a right one: the law over the table of tests/hard.py."""

import functools
import types
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import funcnet as fn
from funcnet import rules
from funcnet.ops._dtype import wide
from tests.cases import F, I, case
from tests.hard import HARD, NAN, PLAIN, ROW, Change, Hard, add, hard, poison
from tests.laws import PLAINLY, is_float


def numbers(row: Hard, op: Any, orders: Mapping[str, int]) -> None:
    """Value, gradient, tangent, forward over reverse and the gradient of the squared gradient are right.

    That is, off from `reference` of the same rounded inputs in float64 by at most 32 eps of the largest
    element (of a derivative of the gradient, whose terms cancel: or of the gradient), or by at most twice as
    much as `reference` in that dtype is off. `orders`: of each dtype, whether all is asked (2), or value and
    gradient only (1).
    """
    args, options = row.case.draw(dtype="float32")
    args = jax.tree.map(jnp.asarray, args)
    orders = {dtype: min(order, row.orders.get(dtype, 0)) for dtype, order in orders.items()}
    true = _everything(row.truth or op.reference, args, options, max(orders.values()))
    true = jax.jit(true, compiler_options=PLAINLY)
    for dtype, order in orders.items():
        if not order:
            continue
        fast = jax.jit(_everything(op.apply, args, options | row.how, order))
        plain = jax.jit(_everything(op.reference, args, options, order))
        draw = _inputs(op.reference, args, options, dtype)
        for changes in row.changes:
            _judge(row, changes, dtype, draw, fast, plain, true)


def _judge(
    row: Hard, changes: tuple[Change, ...], dtype: str, draw: Any, fast: Any, plain: Any, true: Any
) -> None:
    poisoned = any(change.poison for change in changes)
    same, got, theirs = draw(changes, harmless=3), fast(*draw(changes)), None
    want = _in_float64(true, same)
    other = _in_float64(true, draw(changes, harmless=4)) if poisoned else want
    scale = _in_float64(true, jax.tree.map(abs, same)) if row.products else want
    for path, g in jax.tree.leaves_with_path(got):
        at = functools.partial(_at, path)
        w, s, info = at(want), at(scale), jnp.finfo(g.dtype)
        blind = w == at(other) if poisoned else np.ones(w.shape, bool)
        what = f"{row.case.op}, {dtype}, {', '.join(c.name for c in changes)}: {jax.tree_util.keystr(path)}"
        assert not np.isnan(w[blind]).any(), f"{what}: the truth is not a number\n{w}"
        error, largest = _off(g, w, blind), _largest(s)
        if path[0].key in ("jvp of gradient", "gradient²"):
            largest = max([largest, *map(_largest, jax.tree.leaves(scale["gradient"]))])
        if error > 32 * float(info.eps) * largest + float(info.tiny):
            theirs = plain(*same) if theirs is None else theirs
            allowed = _off(at(theirs), w, blind)
            assert error <= 2 * (allowed if np.isfinite(allowed) else 0.0), (
                f"{what}: error {error:.1e} at scale {largest:.1e}, reference {allowed:.1e}\n{g}\n{w}"
            )


def _largest(x: np.ndarray) -> float:
    return float(np.abs(x[np.isfinite(x)]).max(initial=0))


def _at(path: Any, tree: Any) -> Any:
    return functools.reduce(lambda v, key: v[getattr(key, "key", None) or key.idx], path, tree)


def _split(args: Any) -> tuple[list[Any], list[Any], Any]:
    """The leaves of args that are floats, the others, and the function that puts both together."""
    leaves, tree = jax.tree.flatten(args)
    first = sorted(range(len(leaves)), key=lambda i: not is_float(leaves[i]))  # stable
    count = sum(map(is_float, leaves))

    def join(values: Any, others: Any) -> Any:
        placed = dict(zip(first, [*values, *others], strict=True))
        return jax.tree.unflatten(tree, [placed[i] for i in range(len(leaves))])

    return [leaves[i] for i in first[:count]], [leaves[i] for i in first[count:]], join


def _inputs(f: Any, args: Any, options: Any, dtype: str) -> Any:
    """A function (changes, harmless) -> values, the rest, cotangents and tangents, changed, then rounded."""
    values, others, join = _split(args)
    shapes = [jax.ShapeDtypeStruct(v.shape, dtype) for v in values]
    y, tree = jax.tree.flatten(jax.eval_shape(lambda v: f(*join(v, others), **options), shapes))
    rng = np.random.default_rng(1)
    drawn = [[rng.standard_normal(v.shape) for v in each] for each in (y, values)]

    def draw(changes: tuple[Change, ...], harmless: int | None = None) -> tuple[Any, ...]:
        changed, dy, t = ([np.array(v, np.float64) for v in each] for each in (values, *drawn))
        for change in changes:
            change(changed, dy, harmless)
        dy = [v.astype(like.dtype) for v, like in zip(dy, y, strict=True)]
        changed, t = ([v.astype(jnp.dtype(dtype)) for v in each] for each in (changed, t))
        return changed, others, jax.tree.unflatten(tree, dy), t

    return draw


def _in_float64(f: Any, inputs: Any) -> Any:
    widen = lambda v: v.astype(np.float64) if is_float(v) else v
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, f(*jax.tree.map(widen, inputs)))


def _everything(f: Any, args: Any, options: Any, order: int) -> Any:
    _, _, join = _split(args)

    def everything(values: Any, others: Any, dy: Any, t: Any) -> Any:
        def pulled(*v: Any) -> Any:
            y, pull = jax.vjp(lambda *v: f(*join(v, others), **options), *v)
            return y, pull(dy)

        def squared(*v: Any) -> Any:
            return sum(jnp.sum(g.astype(wide(g.dtype)) ** 2) for g in pulled(*v)[1])

        if order == 1:
            return dict(zip(("value", "gradient"), pulled(*values), strict=True))
        (y, grads), (ty, tgrads) = jax.jvp(pulled, values, t)
        more = jax.grad(squared, tuple(range(len(values))))(*values)
        return {"value": y, "gradient": grads, "jvp": ty, "jvp of gradient": tgrads, "gradient²": more}

    return everything


def _off(got: Any, want: np.ndarray, where: np.ndarray) -> float:
    """The largest difference; NaN counts as infinitely far."""
    got, want = np.asarray(got, np.float64)[where], want[where]
    with np.errstate(invalid="ignore"):
        error = np.where(got == want, 0.0, np.abs(got - want))
    return float(np.where(np.isnan(error), np.inf, error).max(initial=0))


@pytest.mark.only_as_users
@pytest.mark.parametrize("row", HARD, ids=lambda row: row.id)
def test_numbers(row):
    numbers(row, row.case.module, {"float32": 2, "bfloat16": 1})


@pytest.mark.slow
@pytest.mark.only_as_users
@pytest.mark.parametrize("row", HARD, ids=lambda row: row.id)
def test_numbers_of_short_floats(row):
    numbers(row, row.case.module, {"bfloat16": 2})


# ---- a law that cannot fail is no law ---------------------------------------------------------------------

OP = fn.cross_entropy


def one_number(logits, labels):
    """The logarithm of the sum of exponentials as one number."""
    total = jax.nn.logsumexp(logits.astype(wide(logits.dtype)), -1)
    hot = labels[:, None] == jnp.arange(logits.shape[1])
    y = total - jnp.where(hot, logits, 0).sum(-1)
    return y, Partial(_pullback, logits, hot, total)


def _pullback(logits, hot, total, dy):
    return (dy[:, None] * (jnp.exp(logits - total[:, None]) - hot)).astype(logits.dtype), None


def leaking(logits, labels):
    """Every row by the mean of all."""
    return OP.apply(logits - logits.mean(), labels)


BROKEN = {
    "one number": (
        lambda x, z: rules.call(one_number, x, z),
        hard(case("cross_entropy", ROW, np.array([0])), PLAIN),
    ),
    "offset": (
        lambda x, z: rules.call(one_number, x, z),
        hard(case("cross_entropy", F(3, 5), I(5, 3)), add(0, 1e8)),
    ),
    "leak": (leaking, hard(case("cross_entropy", F(3, 5), I(5, 3)), poison(0, 1, NAN))),
    "shift": (leaking, hard(case("cross_entropy", F(3, 5), I(5, 3)), poison(0, 1, 1e6))),
}


@pytest.mark.only_as_users
@pytest.mark.parametrize("name", BROKEN)
def test_law_rejects(name):
    apply, row = BROKEN[name]
    with pytest.raises(AssertionError):
        numbers(row, types.SimpleNamespace(apply=apply, reference=OP.reference), {"float32": 2})
