"""What a verdict at the given arguments cannot see: axes of equal size, special values, branches not taken.

Where the forward pass runs, axes of equal size are made unequal, and the identity is no longer one. What is
left is said.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnet.verifier import trace
from funcnet.verifier.judge import Judge, Point, Wide
from funcnet.verifier.problem import Problem, is_float, resized

__all__ = ["note", "unequal", "unlike_identity"]

TRIES = 40  # shapes at which the forward pass is asked whether it runs
PRIMES = (7, 3, 11, 13, 17, 19, 23)
Axis = tuple[int, int]  # of which array, and which of its axes


def unequal(problem: Problem, rng: np.random.Generator) -> list[Any] | None:
    """The arrays with axes of equal size made unequal, and a batch of 1 made larger; None where none fit."""
    shapes = [list(v.shape) for v in problem.arrays]
    given, tries = [list(s) for s in shapes], iter(range(TRIES))
    unused = (p for p in PRIMES if not any(p in s for s in given))
    for axes, may_all in (
        *((axes, False) for axes in _tied(shapes)),
        *((axes, True) for axes in _batches(shapes)),
    ):
        parted = set[Axis]()
        for some in _parts(axes):
            left = len(axes) - len(parted) - len(some)
            if parted & {*some} or not (left or may_all):
                continue
            if next(tries, None) is None or (size := next(unused, None)) is None:
                break
            trial = [[size if (k, a) in some else d for a, d in enumerate(s)] for k, s in enumerate(shapes)]
            if _runs(problem, trial):
                shapes, parted = trial, parted | {*some}
            else:
                unused = itertools.chain([size], unused)
    return None if shapes == given else resized(problem, [tuple(s) for s in shapes], rng)


def _tied(shapes: Sequence[Sequence[int]]) -> list[list[Axis]]:
    """The axes of each size that several have."""
    every = [(k, a) for k, shape in enumerate(shapes) for a in range(len(shape))]
    sizes = dict.fromkeys(shapes[k][a] for k, a in every if shapes[k][a] > 1)
    groups = [[(k, a) for k, a in every if shapes[k][a] == size] for size in sizes]
    return [group for group in groups if len(group) > 1]


def _batches(shapes: Sequence[Sequence[int]]) -> list[list[Axis]]:
    """The first axes that have size 1."""
    first = [(k, 0) for k, shape in enumerate(shapes) if len(shape) > 1 and shape[0] == 1]
    return [first] if first else []


def _parts(axes: Sequence[Axis]) -> Iterator[tuple[Axis, ...]]:
    """Which of them may belong together: one, those of one number, two of different arrays; last all."""
    yield from ((axis,) for axis in axes)
    for a in dict.fromkeys(a for _, a in axes):
        if 1 < len(some := tuple(axis for axis in axes if axis[1] == a)) < len(axes):
            yield some
    yield from ((p, q) for p, q in itertools.combinations(axes, 2) if p[0] != q[0] and len(axes) > 2)
    if all(a == 0 for _, a in axes):
        yield tuple(axes)


def _runs(problem: Problem, shapes: Sequence[Sequence[int]]) -> bool:
    arrays = [jax.ShapeDtypeStruct(tuple(s), v.dtype) for s, v in zip(shapes, problem.arrays, strict=True)]
    try:
        return bool(jax.eval_shape(lambda *v: problem.y(v), *arrays))
    except Exception:  # whatever a forward pass may raise on shapes that it does not know
        return False


def unlike_identity(problem: Problem, rng: np.random.Generator) -> list[Any] | None:
    """The arrays with every identity matrix moved off it; None if there is none."""
    is_identity = [is_float(v) and _is_identity(np.asarray(v)) for v in problem.arrays]
    if not any(is_identity):
        return None
    move = lambda v: jnp.asarray(np.asarray(v) + 0.3 * rng.standard_normal(v.shape))
    return [move(v) if eye else v for v, eye in zip(problem.arrays, is_identity, strict=True)]


def _is_identity(x: np.ndarray) -> bool:
    return x.ndim == 2 and x.shape[0] == x.shape[1] > 1 and bool((x == np.eye(len(x))).all())


def note(ready: Judge, points: Sequence[Point], rng: np.random.Generator) -> list[str]:
    """In one note, what the verdict could not see; nothing where there is nothing to say."""
    problem, said = ready.problem, list[str]()
    for name, v in zip(problem.all_paths, problem.arrays, strict=True):
        k = _at(problem, name)
        tied = len({d for d in v.shape if d > 1}) < sum(d > 1 for d in v.shape)
        if tied and not any(len({*p.arrays[k].shape}) == len(v.shape) for p in points):
            said.append(f"axes of equal size of {name}, which could not be parted")
        said += _special(ready, name, rng)
    for i, path in enumerate(problem.paths):
        if points[0].formula[0][i] is not None and not any(t[i].any() for p in points for t in p.truth):
            said.append(f"the gradient of {path}, which is zero everywhere")
    said += [f"a branch that no argument reached, at {where}" for where in _not_reached(ready, points)]
    return ["not seen: " + "; ".join(said)] if said else []


def _at(problem: Problem, name: str) -> int:
    return problem.all_paths.index(name)


def _special(ready: Judge, name: str, rng: np.random.Generator) -> list[str]:
    """Whether an argument is symmetric, or holds numbers that are all distinct, and it matters."""
    problem, k = ready.problem, _at(ready.problem, name)
    v = problem.arrays[k]
    x: Any = np.asarray(v) if not jnp.issubdtype(v.dtype, jax.dtypes.prng_key) else np.zeros(0)
    square = x.ndim >= 2 and x.shape[-1] == x.shape[-2] > 1
    if (
        is_float(v)
        and square
        and x.size
        and (x == x.swapaxes(-1, -2)).all()
        and not _is_identity(x)
        and x.std() > 0
    ):
        what, moved = "is symmetric", x + 0.1 * x.std() * rng.standard_normal(x.shape)
    elif x.dtype.kind in "iu" and x.size > 1 and len(np.unique(x)) == x.size:
        what, moved = "holds no number twice", np.where(np.arange(x.size).reshape(x.shape) == 1, x.flat[0], x)
    else:
        return []
    arrays = [jnp.asarray(moved, v.dtype) if j == k else a for j, a in enumerate(problem.arrays)]
    try:
        point = ready.at("", arrays, rng)
        states = [ready.leaf(point, i).state for i in range(len(point.seen))]
    except Exception:  # whatever a forward pass may raise where this does not hold
        return [f"what depends on it that {name} {what}"]
    if "wrong" in states:
        path = problem.paths[states.index("wrong")]
        return [f"that {name} {what}: where it is otherwise, the gradient of {path} is wrong"]
    return []


_CHOICES = (
    "where",
    "select",
    "maximum",
    "minimum",
    "clip",
    "clamp",
    "relu",
    "relu6",
    "leaky_relu",
    "cond",
    "switch",
)


def _not_reached(ready: Judge, points: Sequence[Point]) -> list[str]:
    """The lines of the forward pass that choose, by its floats, and always chose the same."""
    if not isinstance(ready.y, Wide):
        return []
    sides: dict[tuple[str, str], set[bool]] = {}
    for point in points:
        program, _ = ready.y.program(point.arrays)
        of_floats = program.after(ready.problem.moving)

        def by(
            eqn: trace.Equation, operands: Sequence[Any], of_floats: set[int] = of_floats
        ) -> Sequence[Any]:
            chosen = eqn.called in _CHOICES and isinstance(eqn.inputs[0], int) and eqn.inputs[0] in of_floats
            if chosen and eqn.name in ("select_n", "cond", "max", "min"):
                a, b = operands[0], operands[1] if len(operands) > 1 else 0
                first = np.asarray(a) > np.asarray(b) if eqn.name in ("max", "min") else np.asarray(a) != 0
                sides.setdefault((eqn.line, eqn.called), set()).update(map(bool, np.unique(first)))
            return trace.apply(eqn, operands)

        ready.y(point.arrays, by=by)
    return [f"{line} (`{called}`)" for (line, called), reached in sides.items() if len(reached) == 1]
