"""Is a wrong rule found wherever a model hides it? Three rules in a model, one of them perhaps wrong.

That one lies at a random depth: under `jax.jit`, `checkpoint`, `scan`, `vmap`, `cond`, in a gradient
inside the loss, in the forward pass of another rule. Each model is verified right, and with its mistake.
"""

import inspect
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial

import funcnet as fn
from benchmarks.harness import WHOLE, Scale, Table
from funcnet import rules

Function = Callable[[jax.Array], jax.Array]
MODELS = 20


class Rule(NamedTuple):
    """A function with a derivative rule of its own, its definition, and what the mistake is called.

    Attributes:
        function: with the rule.
        plain: its definition.
        backward: the function that the mistake is in.
        kinds: the names that describe it.
    """

    function: Function
    plain: Function
    backward: Callable[..., Any]
    kinds: tuple[str, ...]


# ---- rules ------------------------------------------------------------------------------------------------


def _ruled(plain: Function, forward: Callable[..., Any], backward: Callable[..., Any]) -> Function:
    function = jax.custom_vjp(plain)
    function.defvjp(forward, backward)
    return function


def squash(wrong: bool) -> Rule:
    def squash(x):
        return jnp.tanh(x)

    def squash_backward(y, dy):
        return (dy * (1 - y if wrong else 1 - y * y),)

    forward = lambda x: (jnp.tanh(x),) * 2
    return Rule(_ruled(squash, forward, squash_backward), squash, squash_backward, ("missing_term",))


def weigh(wrong: bool) -> Rule:
    def weigh(x):
        return jax.nn.softmax(x)

    def weigh_backward(y, dy):
        return (y * (dy - (0 if wrong else (y * dy).sum(-1, keepdims=True))),)

    forward = lambda x: (jax.nn.softmax(x),) * 2
    return Rule(_ruled(weigh, forward, weigh_backward), weigh, weigh_backward, ("missing_term",))


def center(wrong: bool) -> Rule:
    def center(x):
        return x - x.mean(-1, keepdims=True)

    def center_backward(_, dy):
        return (dy if wrong else dy - dy.mean(-1, keepdims=True),)

    kinds = ("statistics_constant", "missing_term")
    return Rule(_ruled(center, lambda x: (center(x), None), center_backward), center, center_backward, kinds)


def square(wrong: bool) -> Rule:
    def square(x):
        return x * x

    def square_forward(primals, tangents):
        (x,), (t,) = primals, tangents
        return x * x, (3 if wrong else 2) * x * t

    function = jax.custom_jvp(square)
    function.defjvp(square_forward)
    return Rule(function, square, square_forward, ("scale",))


def wave(wrong: bool) -> Rule:
    def wave(x):
        return jnp.sin(x)

    def wave_backward(x, dy):
        return (dy * (jnp.sin(x) if wrong else jnp.cos(x)),)

    kinds = ("wrong_residual",)
    return Rule(_ruled(wave, lambda x: (jnp.sin(x), x), wave_backward), wave, wave_backward, kinds)


def mirror(wrong: bool) -> Rule:
    def mirror(x):
        return x[..., ::-1]

    def mirror_backward(dy):
        return (dy if wrong else dy[..., ::-1],)

    def mirror_vjp(x):
        return x[..., ::-1], Partial(mirror_backward)

    return Rule(lambda x: rules.call(mirror_vjp, x), mirror, mirror_vjp, ("flip",))


RULES = (squash, weigh, center, square, wave, mirror)


# ---- where a model calls them -----------------------------------------------------------------------------


def in_scan(f: Function) -> Function:
    return lambda x: lax.scan(lambda c, _: (0.9 * f(c), None), x, None, length=2)[0]


def in_cond(f: Function) -> Function:
    return lambda x: lax.cond(x.sum() < 1e6, f, jnp.sin, x)


def in_gradient(f: Function) -> Function:
    return lambda x: x + jax.grad(lambda v: f(v).sum())(x)


def in_vmap(f: Function) -> Function:
    return lambda x: jax.vmap(lambda v: f(v[None])[0])(x)


WAYS: dict[str, Callable[[Function], Function]] = {
    "jit": jax.jit,
    "checkpoint": jax.checkpoint,
    "scan": in_scan,
    "vmap": in_vmap,
    "cond": in_cond,
    "gradient": in_gradient,
    "rule": lambda f: f,  # as below: the forward pass of another rule
}


def in_rule(f: Function, plain: Function) -> Function:
    """A right rule whose forward pass calls f."""

    def outer(x):
        return f(x)

    def outer_backward(x, dy):
        return jax.vjp(plain, x)[1](dy)

    return _ruled(outer, lambda x: (f(x), x), outer_backward)


class Model(NamedTuple):
    """A loss, where its mistake is, and how deep."""

    loss: Callable[..., Any]
    rule: Rule
    made_by: Callable[[bool], Rule]
    ways: tuple[str, ...]


def model(seed: int, wrong: bool) -> Model:
    """Two layers, each followed by a rule, and between them the rule that may be wrong."""
    rng = np.random.default_rng(seed)
    chosen, first, last = rng.permutation(len(RULES))[:3]
    ways = tuple(str(way) for way in rng.permutation(list(WAYS))[: seed % 4])
    if "gradient" in ways and "rule" in ways:  # a wrong gradient in its forward pass makes a rule wrong
        ways = ("rule", *(way for way in ways if way != "rule"))
    rule = RULES[chosen](wrong)
    function, plain = rule.function, rule.plain
    for way in ways:
        function = in_rule(function, plain) if way == "rule" else WAYS[way](function)
        plain = WAYS[way](plain)
    before, after = RULES[first](False).function, RULES[last](False).function

    def loss(params: Any, batch: jax.Array) -> jax.Array:
        x = before(batch @ params["w"])
        return after(function(x) @ params["u"]).sum()

    return Model(loss, rule, RULES[chosen], ways)


# ---- the score --------------------------------------------------------------------------------------------


def _at(function: Any, location: str) -> bool:
    """Whether a place as in ``file.py:57`` is in a function."""
    lines, start = inspect.getsourcelines(function)
    file, _, line = location.rpartition(":")
    return bool(file) and os.path.samefile(file, __file__) and start <= int(line) < start + len(lines)


def run(scale: Scale) -> list[Table]:
    """One row per model, and the sum."""
    rng, rows = np.random.default_rng(0), []
    floats = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    params, batch = {"w": floats(5, 7), "u": floats(7, 3)}, floats(4, 5)
    for seed in range(MODELS if scale == WHOLE else 4):
        mistaken, right = model(seed, wrong=True), model(seed, wrong=False)
        start = time.process_time()
        report = fn.verify_model(mistaken.loss, params, batch)
        calm = fn.verify_model(right.loss, params, batch)
        wrong = [row for row in report.rows if not row.ok and not row.unseen]
        name, backward = mistaken.made_by.__name__, mistaken.rule.backward
        kinds = {finding.kind for finding in report.wrong}
        rows.append(
            {
                "rule": name,
                "in": " in ".join(mistaken.ways) or "the loss itself",
                "found": not report.ok and any(name in row.operation for row in wrong),
                "it alone": len(wrong) == 1,
                "named": bool(kinds) and kinds <= {*mistaken.rule.kinds},
                "at the line of the rule": all(_at(backward, row.location) for row in wrong),
                "mistake within it": all(_at(mistaken.made_by, f.location) for f in report.wrong),
                "right one passes": calm.ok,
                "processor s": time.process_time() - start,
            }
        )
    asked = [name for name in rows[0] if isinstance(rows[0][name], bool)]
    total = [{"of": len(rows), **{name: sum(bool(row[name]) for row in rows) for name in asked}}]
    shown = [
        {k: ("yes" if v else "NO") if isinstance(v, bool) else v for k, v in row.items()} for row in rows
    ]
    return [Table("A wrong rule in a model", total), Table("Each model", shown)]
