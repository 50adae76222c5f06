"""What a verdict at the given arguments cannot see: axes of equal size, special values, branches not taken.

Where the forward pass runs, axes of equal size are made unequal, and the identity is no longer one. What is
left is said.
"""

import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from funcnet import rules
from funcnet.verifier import tape, trace
from funcnet.verifier.judge import Judge
from funcnet.verifier.point import Point
from funcnet.verifier.problem import Problem, fresh, is_float, resized
from funcnet.verifier.wide import Wide

__all__ = ["assumed", "is_given", "note", "primitives", "unequal", "unlike_identity"]

TRIES = 40  # shapes at which the forward pass is asked whether it runs
PRIMES = (7, 3, 11, 13, 17, 19, 23)
Axis = tuple[int, int]  # of which array, and which of its axes


def unequal(ready: Judge, rng: np.random.Generator) -> list[Any] | None:
    """The arrays with axes of equal size made unequal, and those of 1 made larger; None where none fit."""
    problem = ready.problem
    shapes = [list(v.shape) for v in problem.arrays]
    given, tries = [list(s) for s in shapes], iter(range(TRIES))
    unused = (p for p in PRIMES if not any(p in s for s in given))
    for axes, may_all, must_fit in (
        *((axes, True, False) for axes in _batches(shapes)),
        *((axes, False, False) for axes in _tied(shapes)),
        *((axes, True, True) for axes in _like_constants(shapes, _constants(ready))),
        *((axes, True, True) for axes in _ones(shapes)),
    ):
        parted = {(k, a) for k, a in axes if shapes[k][a] != given[k][a]}
        # What has size 1 is broadcast where another grows alone: all first.
        for some in sorted(_parts(axes), key=len, reverse=True) if must_fit else _parts(axes):
            left = len(axes) - len(parted) - len(some)
            if parted & {*some} or not (left or may_all):
                continue
            if next(tries, None) is None or (size := next(unused, None)) is None:
                break
            trial = [[size if (k, a) in some else d for a, d in enumerate(s)] for k, s in enumerate(shapes)]
            if _runs(problem, trial) and not (must_fit and not _fits(problem, trial)):
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
    """The first axes that have size 1, and all of size 0."""
    first = [(k, 0) for k, shape in enumerate(shapes) if len(shape) > 1 and shape[0] == 1]
    empty = [(k, a) for k, shape in enumerate(shapes) for a, d in enumerate(shape) if d == 0]
    return [axes for axes in (empty, first) if axes]


def _like_constants(shapes: Sequence[Sequence[int]], sizes: set[int]) -> list[list[Axis]]:
    """The axes that have, each size alone, the size of something in the forward pass."""
    tied = {axis for group in _tied(shapes) for axis in group}
    every = [(k, a) for k, shape in enumerate(shapes) for a in range(len(shape)) if (k, a) not in tied]
    return [[(k, a)] for k, a in every if shapes[k][a] > 1 and shapes[k][a] in sizes]


def _constants(ready: Judge) -> set[int]:
    """The sizes of what the forward pass holds: arrays around the function, ranges that it counts."""
    if not isinstance(ready.y, Wide):
        return set()
    program, _ = ready.y.program(ready.problem.arrays)
    shapes = [np.shape(v) for eqn in program.equations for v in eqn.inputs if not isinstance(v, int)]
    shapes += [eqn.params["shape"] for eqn in program.equations if eqn.name == "iota"]
    return {d for shape in shapes for d in shape}


def _ones(shapes: Sequence[Sequence[int]]) -> list[list[Axis]]:
    """The axes of size 1: a channel, a head, an output."""
    axes = [(k, a) for k, s in enumerate(shapes) for a, d in enumerate(s) if d == 1]
    return [axes] if axes else []


def _parts(axes: Sequence[Axis]) -> Iterator[tuple[Axis, ...]]:
    """Which of them may belong together: one, those of one number, two of different arrays; last all."""
    yield from ((axis,) for axis in axes)
    for a in dict.fromkeys(a for _, a in axes):
        if 1 < len(some := tuple(axis for axis in axes if axis[1] == a)) < len(axes):
            yield some
    yield from ((p, q) for p, q in itertools.combinations(axes, 2) if p[0] != q[0] and len(axes) > 2)
    yield tuple(axes)


def _runs(problem: Problem, shapes: Sequence[Sequence[int]]) -> bool:
    arrays = [jax.ShapeDtypeStruct(tuple(s), v.dtype) for s, v in zip(shapes, problem.arrays, strict=True)]
    try:
        return bool(problem.shape_of_y(arrays))
    except Exception:  # whatever a forward pass may raise on shapes that it does not know
        return False


def _fits(problem: Problem, shapes: Sequence[Sequence[int]]) -> bool:
    """Whether the formula runs there, and gives gradients of the shapes of the arguments."""
    arrays = [jax.ShapeDtypeStruct(tuple(s), v.dtype) for s, v in zip(shapes, problem.arrays, strict=True)]
    try:
        grads = jax.eval_shape(problem.gradients, arrays, problem.shape_of_y(arrays))
    except Exception:  # whatever a formula may raise on shapes that it does not know
        return False
    return all(g is None or g.shape == arrays[i].shape for i, g in zip(problem.moving, grads, strict=True))


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
    left = {k for k, grad in zip(problem.moving, points[0].formula[0], strict=True) if grad is None}
    for k, (name, v) in enumerate(zip(problem.all_paths, problem.arrays, strict=True)):
        tied = len({d for d in v.shape if d > 1}) < sum(d > 1 for d in v.shape)
        if tied and not any(len({*p.arrays[k].shape}) == len(v.shape) for p in points):
            said.append(f"axes of equal size of {name}, which could not be parted")
        said += _special(ready, k, rng, k in left)
    for i, path in enumerate(problem.paths):
        if points[0].formula[0][i] is not None and not any(t[i].any() for p in points for t in p.truth):
            said.append(f"the gradient of {path}, which is zero everywhere")
    branches = dict(_not_reached_by_formula(ready, points)) | dict(_not_reached(ready, points))
    said += [f"a branch that no argument reached, at {line} (`{name}`)" for line, name in branches.items()]
    said += [
        f"whether {rule} in the forward pass is right: it is taken at its word" for rule in _taken(ready)
    ]
    return ["not seen: " + "; ".join(said)] if said else []


# What an argument may be by accident, and how it would be if it were not.
_SPECIAL: dict[str, tuple[Any, Any]] = {
    "is symmetric": (
        lambda x: x.ndim >= 2 and x.shape[-1] == x.shape[-2] > 1 and (x == x.swapaxes(-1, -2)).all(),
        lambda x, rng: x + 0.1 * x.std() * rng.standard_normal(x.shape),
    ),
    "has one sign": (
        lambda x: (x > 0).all() or (x < 0).all(),
        lambda x, rng: -x if x.size == 1 else x * rng.choice([-1.0, 1.0], x.shape),
    ),
    "has rows that sum to 1": (
        lambda x: x.ndim and x.shape[-1] > 1 and np.allclose(x.sum(-1), 1, atol=1e-6),
        lambda x, rng: x * np.exp(0.3 * rng.standard_normal(x.shape)),
    ),
    "is sorted": (
        lambda x: x.ndim and x.shape[-1] > 1 and ((np.diff(x) >= 0).all() or (np.diff(x) <= 0).all()),
        lambda x, rng: rng.permuted(x, axis=-1),
    ),
    "holds 0 and 1 only": (
        lambda x: np.isin(x, (0.0, 1.0)).all(),
        lambda x, rng: np.where(x == 0, 0.3, 0.7) * np.exp(0.2 * rng.standard_normal(x.shape)),
    ),
}
_TIES: dict[str, tuple[Any, Any]] = {
    "holds no number twice": (
        lambda x: x.size == len(np.unique(x)) > 1,
        lambda x, _: np.round(x / x.std()) * x.std(),
    ),
}
_SPECIAL_INTEGERS: dict[str, tuple[Any, Any]] = {
    "holds no number twice": (
        lambda x: x.size == len(np.unique(x)) > 1,
        lambda x, _: np.where(np.arange(x.size).reshape(x.shape) == 1, x.flat[0], x),
    ),
    "is sorted": _SPECIAL["is sorted"],
    "has rows that sum to 1": (  # labels
        lambda x: x.ndim and x.shape[-1] > 1 and (x.sum(-1) == 1).all(),
        lambda x, _: x + np.roll(x, 1, -1),
    ),
    "holds one number only": (  # full lengths, a mask that leaves nothing out
        lambda x: (x == x.flat[0]).all() and x.flat[0] >= 0,
        lambda x, rng: np.where(rng.permutation(x.size).reshape(x.shape) % 2, x, (x == 0) * 1 + x // 2),
    ),
}


def assumed(ready: Judge, rng: np.random.Generator) -> list[str]:
    """What arguments are by accident, and must be for the formula to be right: ``A is symmetric``."""
    said = (one for k in range(len(ready.problem.arrays)) for one in _special(ready, k, rng, False))
    return [one.partition(": ")[0].removeprefix("that ") for one in said]


def _special(ready: Judge, k: int, rng: np.random.Generator, is_left: bool) -> list[str]:
    """What argument k is by accident, if it matters."""
    problem, v = ready.problem, ready.problem.arrays[k]
    if jnp.issubdtype(v.dtype, jax.dtypes.prng_key) or jnp.iscomplexobj(v) or not v.size:
        return (
            [f"that {problem.all_paths[k]} is real"]
            if _is_real(v) and _matters(ready, k, v + 0.5j, rng)
            else []
        )
    x = np.asarray(v)
    if x.dtype == bool:
        x = x.astype(np.int64)
    name, said = problem.all_paths[k], list[tuple[str, Any]]()
    if is_left and (but := _matters(ready, k, fresh(v, rng), rng)):  # it stayed as it is
        return [f"that {name} is as given: {but}"]
    kinds = _SPECIAL_INTEGERS if not is_float(v) else _SPECIAL | _TIES if _compares(ready) else _SPECIAL
    for what, (holds, otherwise) in kinds.items():
        if np.isfinite(x).all() and holds(x) and not _is_identity(x):
            moved = otherwise(x, rng)
            said += [] if (moved == x).all() else [(what, moved)]
    if is_float(v) and (but := _breaks_at_zero(ready, k, rng)):
        return [f"that {name} holds no 0: {but}"]
    return [f"that {name} {what}: {but}" for what, moved in said if (but := _matters(ready, k, moved, rng))]


_COMPARING = frozenset("argmax argmin cummax cummin eq max min reduce_max reduce_min sort top_k".split())  # noqa: SIM905


def _compares(ready: Judge) -> bool:
    """Whether equal numbers are told from others, by the forward pass or the formula."""
    program = (
        ready.formula.program(ready.problem.arrays, ready.problem.shape_of_y(ready.problem.arrays))[0]
        if isinstance(ready.formula, Wide)
        else None
    )
    return program is not None and bool(program.primitives & _COMPARING)


@np.errstate(all="ignore")
def _breaks_at_zero(ready: Judge, k: int, rng: np.random.Generator) -> str:
    """What is not finite where one number of argument k is 0 and the true gradient is finite; "" else."""
    problem, x = ready.problem, np.array(ready.problem.arrays[k])
    if ready.numerical or not x.all():
        return ""
    x[tuple(rng.integers(0, x.shape))] = 0
    arrays = [jnp.asarray(x) if j == k else v for j, v in enumerate(problem.arrays)]
    try:
        dy = [rng.standard_normal(v.shape) * np.isfinite(v) for v in map(np.asarray, ready.y(arrays))]
        pairs = zip(ready.truth(arrays, dy), ready.formula(arrays, dy), strict=True)
    except Exception:  # whatever may be raised where there was no 0
        return ""
    for path, (t, u) in zip(problem.paths, pairs, strict=True):
        if u is not None and np.shape(u) == np.shape(t) and (np.isfinite(t) & ~np.isfinite(u)).any():
            return f"where it does, the gradient of {path} is not finite"
    return ""


def _is_real(v: Any) -> bool:
    return jnp.iscomplexobj(v) and v.size and not np.imag(v).any()


def _matters(ready: Judge, k: int, moved: Any, rng: np.random.Generator) -> str:
    """What is wrong where argument k is moved; "" where nothing is, or the forward pass is not defined."""
    problem = ready.problem
    arrays = [jnp.asarray(moved, v.dtype) if j == k else v for j, v in enumerate(problem.arrays)]
    try:
        point = ready.at("", arrays, rng)
        states = [ready.leaf(point, i).state for i in range(len(point.seen))]
    except Exception:  # whatever may be raised where this does not hold
        return ""
    wrong = [path for path, state in zip(problem.paths, states, strict=True) if state == "wrong"]
    return f"where it is otherwise, the gradient of {wrong[0]} is wrong" if wrong else ""


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
    "elu",
    "celu",
    "selu",
    "hard_sigmoid",
    "hard_silu",
    "hard_swish",
    "hard_tanh",
    "sparse_plus",
    "sparse_sigmoid",
    "heaviside",
    "interp",
    "cond",
    "switch",
)
_COMPARISONS = ("gt", "lt", "ge", "le", "eq", "ne")
_OPERATORS = (
    "_forward_operator_to_aval.<locals>.op",
    "_defer_to_unrecognized_arg.<locals>.deferring_binary_op",
)


_STEPS = ("ceil", "floor", "round", "sign")
_CASTS = ("astype", "_forward_method_to_aval.<locals>.meth")
_Where = tuple[str, str, int]  # a line, what it calls, and which of such calls in the line


class _Sides:
    """An equation in float64 that notes which sides are taken by choices that depend on some values.

    Within a loop or a branch that depends on them, everything does.
    """

    def __init__(self, of: set[int] | None, within: "_Sides | None" = None):
        self.of, self.is_all = of or set(), of is None
        self.taken: dict[_Where, set[bool]] = within.taken if within else {}
        self.calls: dict[tuple[str, str], list[int]] = within.calls if within else {}

    def __call__(self, eqn: trace.Equation, operands: Sequence[Any]) -> Sequence[Any]:
        depends = self.is_all or any(isinstance(v, int) and v in self.of for v in eqn.inputs)
        if depends and eqn.name == "cond" and eqn.called in _CHOICES and self._in(eqn.inputs[0]):
            self._note(eqn, np.asarray(operands[0]) != 0)
        if eqn.inner:
            return trace.loop(eqn, operands, _Sides(None, self) if depends else trace.apply)
        results = trace.apply(eqn, operands)
        if depends and eqn.name in _COMPARISONS and eqn.called in (eqn.name, *_OPERATORS) and not _wraps(eqn):
            self._note(eqn, results[0])
        elif depends and (step := _step(eqn, operands, results)) is not None:
            self._note(eqn, step != np.ravel(step)[:1])
        elif eqn.called in _CHOICES and self._in(eqn.inputs[0]):
            a, b = operands[0], operands[1] if len(operands) > 1 else 0
            if eqn.name in ("max", "min"):
                self._note(eqn, np.asarray(a) > np.asarray(b))
            elif eqn.name == "select_n":
                self._note(eqn, np.asarray(a) != 0)
        return results

    def _in(self, v: Any) -> bool:
        return isinstance(v, int) and (self.is_all or v in self.of)

    def _note(self, eqn: trace.Equation, first: Any) -> None:
        called = eqn.name if eqn.called in ("", *_OPERATORS) else eqn.called
        calls = self.calls.setdefault((eqn.line, called), [])
        if id(eqn) not in calls:
            calls.append(id(eqn))
        which = calls.index(id(eqn))
        self.taken.setdefault((eqn.line, called, which), set()).update(map(bool, np.unique(first)))


def _step(eqn: trace.Equation, operands: Sequence[Any], results: Sequence[Any]) -> Any:
    """On which step of its staircase each number is; None of what is none."""
    if eqn.name in _STEPS and eqn.called in ("", eqn.name):
        return results[0]
    if eqn.name == "convert_element_type" and eqn.called in (*_CASTS, eqn.name):
        return (
            results[0]
            if np.asarray(operands[0]).dtype.kind == "f" and results[0].dtype.kind in "iu"
            else None
        )
    if eqn.name == "rem" and np.asarray(operands[0]).dtype.kind == "f":
        return np.trunc(operands[0] / operands[1])
    return None


def _wraps(eqn: trace.Equation) -> bool:
    """Whether a comparison asks for indices that count from the end, as JAX does of every index."""
    zero = [v for v in eqn.inputs if not isinstance(v, int) and not np.any(v)]
    return eqn.name == "lt" and bool(zero) and np.issubdtype(np.asarray(zero[0]).dtype, np.integer)


def _not_reached(ready: Judge, points: Sequence[Point]) -> list[tuple[str, str]]:
    """The lines of the forward pass that choose, by its arguments, and always chose the same."""
    if not isinstance(ready.y, Wide):
        return []
    return _never(ready.y, [(point.arrays,) for point in points], range(len(ready.problem.arrays)))


def _not_reached_by_formula(ready: Judge, points: Sequence[Point]) -> list[tuple[str, str]]:
    """Those of the formula, by any argument or cotangent."""
    if not isinstance(ready.formula, Wide):
        return []
    given = [(point.arrays, point.dys[0]) for point in points]
    return _never(ready.formula, given, range(len(ready.problem.arrays) + len(points[0].dys[0])))


def _never(run: Wide, given: Sequence[Any], of: Iterable[int]) -> list[tuple[str, str]]:
    every: dict[_Where, set[bool]] = {}
    for some in given:
        program, _ = run.program(*some)
        by = _Sides(program.after(of))
        trace.run(program, [trace.constant(v) for values in some for v in values], by=by, forget=True)
        for where, sides in by.taken.items():
            every.setdefault(where, set()).update(sides)
    never = [where[:2] for where, reached in every.items() if len(reached) == 1]
    return sorted(
        never, key=lambda where: where[1] in _CHOICES
    )  # of a line a choice counts, not what it asks


_HELD = ("linear_call", "call_exported", "custom_linear_solve", "call_hi_primitive")
# Their derivatives are the user's.


def _taken(ready: Judge) -> list[str]:
    """The rules of its own that the forward pass holds, which are part of what the user calls the truth."""
    found = [f"the rule of {tape.name_of(rule)} ({tape.line_of(rule)})" for rule in ready.problem.own_rules]
    if isinstance(ready.y, Wide):
        program, known = ready.y.program(ready.problem.arrays)[0], primitives()
        for e in _equations(program):
            if is_given(e.name, e.called) or (e.primitive is not None and e.primitive not in known):
                found.append(f"{e.called or e.name} ({e.line})")
    return list(dict.fromkeys(found))


def _equations(program: trace.Program) -> Iterator[trace.Equation]:
    """Those of a program and of the bodies of its loops."""
    for eqn in program.equations:
        yield eqn
        for body in eqn.inner:
            yield from _equations(body)


def primitives() -> set[Any]:
    """All primitives that the modules of JAX and funcnet hold."""
    found = set[Any]()
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in ("jax", "jaxlib", "funcnet") and module is not None:
            held = list(vars(module).values())
            found |= {v for v in held if isinstance(v, jex.Primitive)}
            found |= {v.primitive for v in held if isinstance(v, rules.Bilinear)}
    return found


def is_given(name: str, called: str) -> bool:
    """Whether the derivative of a primitive of JAX is whatever the user wrote: JAX's own solve is its own."""
    return name in _HELD and (name != "custom_linear_solve" or called == name)
