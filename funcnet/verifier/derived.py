"""Problems made of problems, so that one judge does for all of them.

- `pullback`: the gradient itself as a function of (args, dy), for a rule whose own derivative is wrong.
- `values`: what a function gives is judged as a gradient is: that of s ∘ f(x) by s, at s = 1, is dy ∘ f(x).
- `tangents`: what forward mode gives, J t, judged as a value, along each argument.
- `batch`: a function under `jax.vmap`, and what it gives for one example after the other.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnet.verifier import tape
from funcnet.verifier.problem import Problem, as_arrays, fresh, is_float, pulled

__all__ = ["batch", "examples", "obstacle", "pullback", "tangents", "values"]


def pullback(problem: Problem) -> Problem:
    """The formula as a function of (args, dy), whose gradients are those that JAX derives from it."""
    n, y = len(problem.args), problem.shape_of_y(problem.arrays)
    rng = np.random.default_rng(2)
    dy = tuple(_normal(rng, v) for v in y)

    def forward(*given: Any) -> Any:
        return problem.autodiff(_arrays(given[:n]), given[n:])

    def first(*given: Any) -> Any:
        grads = problem.gradients(_arrays(given[:n]), given[n:])
        zeros = (jnp.zeros_like(_arrays(given[:n])[i]) for i in problem.moving)
        return [z if g is None else g for g, z in zip(grads, zeros, strict=True)]

    return Problem(
        f"pullback of {problem.name}",
        (*problem.names, *_numbered("dy", y)),
        forward,
        lambda args, ddy: pulled(first, args)[1](ddy),
        (*problem.args, *dy),
        rules=problem.rules,
        primal=lambda arrays: problem.y(arrays[: len(problem.arrays)]),
    )


def obstacle(problem: Problem) -> str:
    """Why a pullback cannot be verified; "" where it can."""
    for what, gradients in (("the definition", problem.autodiff), ("the formula", problem.gradients)):
        try:
            jax.eval_shape(gradients, problem.arrays, problem.shape_of_y(problem.arrays))
        except Exception as error:  # whatever JAX, or somebody's function, may raise
            why = f"{type(error).__name__}: {error}".strip().splitlines()[0][:120]
            return f"JAX does not differentiate {what} twice: {why}"
    return ""


def values(problem: Problem, y: Callable[..., Any], *, gradients: bool = True) -> Problem:
    """What `y` gives against the forward pass, and if asked the gradients too.

    Args:
        problem: definition, and the gradients of `y`.
        y: ``y(*args)``, of the same structure as ``problem.forward(*args)``.
        gradients: whether those of the arguments are judged.
    """
    of_y = problem.shape_of_y(problem.arrays)
    ones, n = tuple(jnp.ones(v.shape, v.dtype) for v in of_y), len(of_y)

    def forward(*given: Any) -> Any:
        return [_scaled(s, v) for s, v in zip(given[:n], problem.y(_arrays(given[n:])), strict=True)]

    def formula(given: Any, dy: Any) -> Any:
        got = [v for v in as_arrays(y(*given[n:])) if is_float(v)]
        scaled = [_scaled(d, v) for d, v in zip(dy, got, strict=True)]
        if not gradients:
            return (*scaled, *(None for _ in given[n:]))
        dy = [_scaled(d, s) for d, s in zip(dy, given[:n], strict=True)]
        return (*scaled, *problem.formula(given[n:], problem.cotangent(_arrays(given[n:]), dy)))

    made = Problem(
        problem.name,
        (*_numbered("value", of_y), *problem.names),
        forward,
        formula,
        (*ones, *problem.args),
        rules=problem.rules,
    )
    return made if gradients else dataclasses.replace(made, still=frozenset(range(n, len(made.arrays))))


def tangents(problem: Problem, f: Callable[..., Any]) -> Problem:
    """J t of `f` by forward mode, along each argument, against that of the forward pass."""
    n, k = len(problem.args), len(problem.moving)
    rng = np.random.default_rng(3)
    along = tuple(_normal(rng, problem.arrays[i]) for i in problem.moving)

    def pushed(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any) -> Any:
            arrays, ts = _arrays(given[:n]), given[n:]
            primals = [arrays[i] for i in problem.moving]

            def of_floats(*floats: Any) -> Any:
                y = function(*problem.unflatten(problem.place(arrays, floats)))
                return [v for v in as_arrays(y) if is_float(v)]

            out = []
            for i, t in enumerate(ts):
                ones = [t if j == i else jnp.zeros_like(v) for j, v in enumerate(primals)]
                out += jax.jvp(of_floats, primals, ones)[1]
            return out

        return run

    both = Problem(
        problem.name,
        (*problem.names, *(f"t{i}" for i in range(k))),
        pushed(problem.forward),
        lambda _args, _dy: None,
        (*problem.args, *along),
        rules=problem.rules,
    )
    posed = values(both, pushed(f), gradients=False)
    each = len(problem.shape_of_y(problem.arrays))
    paths = [p if each == 1 else f"{p}, result {j}" for p in problem.paths for j in range(each)]
    first = len(posed.arrays) - len(both.arrays)
    primal = lambda arrays: problem.y(arrays[first:][: len(problem.arrays)])
    return dataclasses.replace(posed, names=(*paths, *both.names), primal=primal)


def batch(f: Callable[..., Any], one: Callable[..., Any], in_axes: Sequence[Any]) -> tuple[Any, Any]:
    """`jax.vmap` of f, and a loop that calls `one` for one example after the other."""

    def loop(*args: Any) -> Any:
        axes = jax.tree.leaves(jax.tree.map(_axis_of, tuple(in_axes), args, is_leaf=_is_none))
        leaves, tree = jax.tree.flatten(args)
        sizes = [v.shape[a] for v, a in zip(leaves, axes, strict=True) if a != STILL]
        apart = [
            [v] * sizes[0] if a == STILL else jnp.unstack(v, axis=a)
            for v, a in zip(leaves, axes, strict=True)
        ]
        fixed = tuple(i for i, v in enumerate(leaves) if not hasattr(v, "dtype"))
        call = jax.jit(
            lambda *one_of: one(*jax.tree.unflatten(tree, one_of)), static_argnums=fixed
        )  # traced once
        with tape.unbatched():
            results = [call(*example) for example in zip(*apart, strict=True)]
        return jax.tree.map(lambda *each: jnp.stack(each), *results)

    return jax.vmap(f, tuple(in_axes)), loop


def examples(args: Any, in_axes: Sequence[Any], size: int, rng: np.random.Generator) -> Any:
    """A batch made of one example: it, and others like it; integers are permuted."""

    def many(leaf: Any, a: int) -> Any:
        if a == STILL:
            return leaf
        return jnp.stack([leaf, *(_another(leaf, rng) for _ in range(size - 1))], a)

    axes = jax.tree.map(_axis_of, tuple(in_axes), args, is_leaf=_is_none)
    return jax.tree.map(many, args, axes)


STILL = 1 << 20  # in place of an axis: not mapped (a None would be no leaf)
_is_none = lambda v: v is None


def _axis_of(a: Any, arg: Any) -> Any:
    return jax.tree.map(lambda v: STILL if a is None or not hasattr(v, "dtype") else a, arg)


def _another(leaf: Any, rng: np.random.Generator) -> Any:
    if is_float(leaf):
        return jnp.asarray(fresh(leaf, rng, 0.5), leaf.dtype)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = jnp.asarray(rng.integers(0, 2**32, jax.random.key_data(leaf).shape, np.uint32))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    return jnp.asarray(rng.permutation(np.ravel(leaf)).reshape(leaf.shape))


# ---- what they share --------------------------------------------------------------------------------------


def _arrays(args: Any) -> list[Any]:
    return [v for v in jax.tree.leaves(tuple(args)) if hasattr(v, "dtype")]


def _numbered(name: str, of: Sequence[Any]) -> tuple[str, ...]:
    return (name,) if len(of) == 1 else tuple(f"{name}[{i}]" for i in range(len(of)))


def _normal(rng: np.random.Generator, like: Any) -> Any:
    x = rng.standard_normal(like.shape)
    return jnp.asarray(
        x + 1j * rng.permutation(x) if jnp.issubdtype(like.dtype, jnp.complexfloating) else x, like.dtype
    )


def _scaled(s: Any, v: Any) -> Any:
    """s ∘ v, of the dtype of v; where they do not fit, v, of whose shape the judge will speak."""
    return jnp.asarray(s, v.dtype) * v if s.shape == v.shape else v
