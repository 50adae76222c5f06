"""Every gradient formula in a model, verified on the model's own shapes."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnet import rules, signature
from funcnet.verifier import judge
from funcnet.verifier.compare import verify
from funcnet.verifier.finding import Finding, Row
from funcnet.verifier.problem import pose, wide
from funcnet.verifier.report import Report

__all__ = ["verify_model"]


def verify_model(
    loss: Any, params: Any, batch: Any, *, key: Any = None, model_state: Any = None, seed: int = 0
) -> Report:
    """Verify the formula of every operation that `loss` calls, at the shapes at which it calls it.

    The loss is run once, unjitted, and the calls are noted; nothing is listed by hand, so it works for any
    model made of funcnet's operations. A call with values is verified on them; one inside `jax.jit`,
    `jax.lax.scan` or `jax.vmap` on random arguments of its shapes. Each formula is compared with `jax.vjp`
    of the operation's `reference`, in float64; a wrong one is then diagnosed by `verify`.

    Args:
        loss: ``loss(params, batch, key)``, or with a model_state ``loss(params, model_state, batch, key)``; a
            loss that draws nothing need not take the key. What it returns does not matter.
        params: the model's.
        batch: one batch, as the loss takes it.
        key: a random key for the loss; None: one made of `seed`.
        model_state: batch-norm statistics and the like.
        seed: of the cotangents and of the random arguments.

    Returns:
        A `Report` with one row per operation and set of shapes: its worst leaf, and its number of calls.

    Raises:
        DTypeError, StructureError: `loss` is no function, or takes other arguments.
    """
    key = jax.random.key(seed) if key is None else key
    with rules.record() as calls:
        signature.call("verify_model", loss, params, model_state, batch, key)
    distinct: dict[Any, list[rules.Call]] = {}
    for call in calls:
        if hasattr(call.operation, "vjp"):
            distinct.setdefault(_signature(call), []).append(call)
    verdicts = [_verdict(same, seed) for same in distinct.values()]
    return Report(tuple(row for row, _ in verdicts), tuple(f for _, findings in verdicts for f in findings))


def _signature(call: rules.Call) -> Any:
    """Equal for calls of one operation with the same shapes and options."""
    leaves, tree = jax.tree.flatten((call.args, call.options))
    kinds = tuple((v.shape, str(v.dtype)) if hasattr(v, "dtype") else repr(v) for v in leaves)
    return call.operation.__name__, kinds, tree


def _verdict(calls: list[rules.Call], seed: int) -> tuple[Row, tuple[Finding, ...]]:
    """The worst leaf of one operation at one set of shapes, and what is wrong there."""
    fill = functools.partial(_fill, np.random.default_rng(seed))
    args, options = jax.tree.map_with_path(fill, (calls[0].args, calls[0].options))
    with jax.enable_x64(True):
        problem = pose(calls[0].operation, None, wide(args), static=wide(options))
        ready = judge.judge_of(problem)
        point = ready.at("as called", problem.arrays, np.random.default_rng(seed))
        leaves = [ready.leaf(point, i) for i in range(len(problem.moving))]
    errors, allowed = [leaf.error for leaf in leaves], [leaf.allowed for leaf in leaves]
    worst = max(range(len(errors)), key=lambda i: errors[i] / max(allowed[i], 1e-300))
    ok, findings = all(leaf.state in ("right", "convention") for leaf in leaves), ()
    if not ok:
        findings = verify(calls[0].operation, args, static=options, seed=seed).findings
    note = ", ".join(dict.fromkeys(f.kind for f in findings))
    row = Row(
        problem.name,
        problem.paths[worst],
        problem.shapes,
        len(calls),
        errors[worst],
        allowed[worst],
        ok,
        note,
    )
    return row, findings


def _fill(rng: np.random.Generator, path: Any, leaf: Any) -> Any:
    """Values for an argument that was traced: standard normal floats, and integers that are in range."""
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.split(jax.random.key(int(rng.integers(2**31))), leaf.shape)
    if leaf.dtype == jnp.bool_:
        return jnp.asarray(rng.random(leaf.shape) < 0.5)
    if jnp.issubdtype(leaf.dtype, jnp.integer):
        return jnp.asarray(rng.integers(0, 2, leaf.shape), leaf.dtype)  # a label or an id of anything
    values = rng.standard_normal(leaf.shape)
    is_variance = any(getattr(entry, "key", None) == "var" for entry in path)
    return jnp.asarray(np.abs(values) + 0.1 if is_variance else values, leaf.dtype)
