"""No wrong number, and no NaN, where float64 has a right one: the law over the table of tests/hard.py."""

import itertools
import types
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
from tests.laws import normal_like, on_floats


def numbers(row: Hard, op: Any, dtypes: tuple[str, ...] = ("float32", "bfloat16")) -> None:
    """Value, gradient, tangent, forward over reverse and the gradient of the squared gradient are right.

    That is, off from `reference` of the same rounded inputs in float64 by at most 32 eps of the largest
    element, or by at most twice as much as `reference` in that dtype is off.
    """
    args, options = row.case.draw(dtype="float32")
    args = jax.tree.map(jnp.asarray, args)
    fast, plain, true = (
        jax.jit(_everything(on_floats(f, args, options)[0]))
        for f in (op.apply, op.reference, row.truth or op.reference)
    )
    for dtype, changes in itertools.product(dtypes, row.changes):
        poisoned = any(change.poison for change in changes)
        same, other = (_inputs(op, args, options, changes, dtype, harmless=seed) for seed in (3, 4))
        want = _in_float64(true, same)
        scale = _in_float64(true, jax.tree.map(jnp.abs, same)) if row.products else want
        blind = jax.tree.map(
            (lambda w, o: w == o) if poisoned else (lambda w, o: np.ones(w.shape, bool)),
            want,
            _in_float64(true, other) if poisoned else want,
        )
        got, theirs = fast(*_inputs(op, args, options, changes, dtype)), None
        paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(got)]
        for i, (g, w, b, s) in enumerate(zip(*map(jax.tree.leaves, (got, want, blind, scale)), strict=True)):
            what = f"{row.case.op}, {dtype}, {', '.join(c.name for c in changes)}: {paths[i]}"
            assert not np.isnan(w[b]).any(), f"{what}: the truth is not a number"
            error, largest = _off(g, w, b), np.abs(s[np.isfinite(s)]).max(initial=0)
            if error > 32 * float(jnp.finfo(g.dtype).eps) * largest:
                theirs = plain(*same) if theirs is None else theirs
                allowed = _off(jax.tree.leaves(theirs)[i], w, b)
                assert error <= 2 * (allowed if np.isfinite(allowed) else 0.0), (
                    f"{what}: error {error:.1e} at scale {largest:.1e}, reference {allowed:.1e}\n{g}\n{w}"
                )


def _inputs(
    op: Any, args: Any, options: Any, changes: tuple[Change, ...], dtype: str, harmless: int | None = None
) -> tuple[Any, Any, Any]:
    """Values, cotangents and tangents, changed, then rounded; with poisons, or harmless ones."""
    f, values = on_floats(op.reference, args, options)
    out = jax.eval_shape(f, *(v.astype(dtype) for v in values))
    leaves, tree = jax.tree.flatten(normal_like(out, 1))
    values, dy, t = (
        [np.array(v, np.float64) for v in each] for each in (values, leaves, normal_like(values, 2))
    )
    for change in changes:
        change(values, dy, harmless)
    dy = [jnp.asarray(v, like.dtype) for v, like in zip(dy, leaves, strict=True)]
    values, t = ([jnp.asarray(v, dtype) for v in each] for each in (values, t))
    return values, jax.tree.unflatten(tree, dy), t


def _in_float64(f: Any, inputs: Any) -> Any:
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, f(*jax.tree.map(lambda v: v.astype("float64"), inputs)))


def _everything(f: Any) -> Any:
    def everything(values: Any, dy: Any, t: Any) -> Any:
        def pulled(*v: Any) -> Any:
            y, pull = jax.vjp(f, *v)
            return y, pull(dy)

        def squared(*v: Any) -> Any:
            return sum(jnp.sum(g.astype(wide(g.dtype)) ** 2) for g in pulled(*v)[1])

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
    numbers(row, row.case.module)


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
        numbers(row, types.SimpleNamespace(apply=apply, reference=OP.reference), ("float32",))
