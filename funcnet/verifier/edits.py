"""Naming a mistake from the user's own program: which single edit of the backward pass makes it right?

The backward pass is traced to equations, and one of them at a time is changed: an operand transposed or
exchanged for another value in scope, a sum taken over another axis, an operation left out, a factor put in.
An edit counts only if the gradient is then the true one at every point, at other sizes too. Equations know
their source lines, so that the edit can be told at the user's file and line.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funcnet.verifier import trace
from funcnet.verifier.arrays import SAME, name_constant
from funcnet.verifier.judge import Point
from funcnet.verifier.problem import Problem
from funcnet.verifier.report import Finding

__all__ = ["search"]

MANY = 250  # equations; a longer backward pass is not searched
_TWICE = ("sign", "transpose", "wrong_axis", "flip", "mask")  # slips that come in pairs
Changed = Mapping[int, Callable[..., Sequence[Any]]]


class Edit(NamedTuple):
    """A change of some equations: `build` makes it for the program traced at any sizes."""

    kind: str
    words: str
    at: int  # the equation whose line is reported
    build: Callable[[trace.Program], Changed]
    solved: bool = (
        False  # `build` leaves a factor c open: outputs are multiplied by it, or c times a value added
    )


class Scene(NamedTuple):
    """The program of forward and formula at one point, with its values for each cotangent."""

    program: trace.Program
    first: int  # the first equation of the formula
    outputs: dict[int, int]  # gradient -> value
    values: list[list[Any]]  # one per cotangent
    truth: list[list[np.ndarray]]


def search(
    problem: Problem, points: Sequence[Point], wrong: Sequence[int], sizes: dict[str, int], deadline: float
) -> dict[int, Finding]:
    """Findings for those of the `wrong` gradients that one edit of the formula, or two, mends everywhere."""
    scenes = [scene for scene in (_scene(problem, point) for point in points) if scene is not None]
    if not scenes or len(scenes[0].program.equations) > MANY:
        return {}
    scene = scenes[0]
    alike = [s for s in scenes[1:] if _shape_of(s.program) == _shape_of(scene.program)]
    left = [i for i in wrong if i in scene.outputs]
    found: dict[int, Finding] = {}
    cheap: list[Edit] = []
    for edit in _edits(scene, problem, left):
        if not left or time.monotonic() > deadline:
            break
        if not edit.solved:
            cheap.append(edit)
        for i in list(left):
            c = _mends(edit, scene, i)
            if c is not None and all(_mends(edit, other, i) is not None for other in alike):
                found[i] = _finding(problem, scene, edit, i, c, sizes)
                left.remove(i)
    for one, two in itertools.combinations(cheap[:400], 2):
        if not left or time.monotonic() > deadline:
            break
        if one.at == two.at or one.kind != two.kind or one.kind not in _TWICE:
            continue
        build = lambda p, a=one, b=two: {**a.build(p), **b.build(p)}
        both = Edit(one.kind, f"{one.words}, and {two.words}", one.at, build)
        for i in list(left):
            if _mends(both, scene, i) is not None and all(_mends(both, o, i) is not None for o in alike):
                found[i] = _finding(problem, scene, both, i, 1.0, sizes)
                left.remove(i)
    return found


def _scene(problem: Problem, point: Point) -> Scene | None:
    arrays, dys = list(point.arrays), point.dys

    def both(a: Sequence[Any], dy: Sequence[Any]) -> Any:
        y = problem.y(a)
        return y, [g for g in problem.gradients(a, dy) if g is not None]

    try:
        program, (y, _) = trace.trace(both, arrays, dys[0])
        forward, _ = trace.trace(lambda a, dy: problem.y(a), arrays, dys[0])
    except Exception:  # a formula that cannot be traced at these sizes, for whatever reason
        return None
    given = [i for i, g in enumerate(point.formula[0]) if g is not None]
    outputs = dict(zip(given, program.outputs[len(y) :], strict=True))
    plain = lambda v: np.asarray(v) if not jnp.issubdtype(v.dtype, jax.dtypes.prng_key) else v
    try:
        values = [trace.run(program, [plain(v) for v in (*arrays, *dy)]) for dy in dys]
    except Exception:  # an equation that only a compiled program can run
        return None
    return Scene(program, len(forward.equations) - len(forward.outputs), outputs, values, point.truth)


def _shape_of(program: trace.Program) -> Any:
    return [
        (eqn.name, tuple(v if isinstance(v, int) else None for v in eqn.inputs)) for eqn in program.equations
    ]


# ---- does an edit mend a gradient? ------------------------------------------------------------------------


def _mends(edit: Edit, scene: Scene, i: int) -> float | None:
    """The factor c with which the edit gives the true gradient for every cotangent (1 if none is open)."""
    wanted, c = [scene.outputs[i]], None if edit.solved else 1.0
    try:
        changed = edit.build(scene.program)
        scale = max(np.abs(truth[i]).max(initial=0) for truth in scene.truth)
        for values, truth in zip(scene.values, scene.truth, strict=True):
            want = truth[i]
            with np.errstate(all="ignore"):
                if c is None and (c := _solve(changed, scene, values, wanted, want)) is None:
                    return None
                now = _with(changed, c) if edit.solved else changed
                (new,) = trace.rerun(scene.program, values, now, wanted)
            if np.shape(new) != want.shape:
                return None
            if not np.abs(new - want).max(initial=0) <= SAME * scale:
                return None
    except (ValueError, IndexError, TypeError, ZeroDivisionError):  # shapes that do not fit
        return None
    return c


def _with(changed: Any, c: float | None) -> Changed:
    return {k: (lambda operands, values, f=f: f(operands, values, c)) for k, f in changed.items()}


def _solve(
    changed: Changed, scene: Scene, values: list[Any], wanted: list[int], want: np.ndarray
) -> float | None:
    """c from two evaluations, if the gradient is linear in it."""
    none, one = (trace.rerun(scene.program, values, _with(changed, c), wanted)[0] for c in (0.0, 1.0))
    if np.shape(none) != want.shape or np.shape(one) != want.shape:
        return None
    slope, missing = one - none, want - none
    norm = float(np.vdot(slope, slope))
    return float(np.vdot(slope, missing)) / norm if math.isfinite(norm) and norm > 0 else None


# ---- the edits, the likeliest first -----------------------------------------------------------------------


def _edits(scene: Scene, problem: Problem, wrong: Sequence[int]) -> Iterator[Edit]:
    program = scene.program
    live, needed = _live(program, program.outputs), _live(program, [scene.outputs[i] for i in wrong])
    values = [x if v in live else None for v, x in enumerate(scene.values[0])]
    behind = [
        k for k in range(scene.first, len(program.equations)) if needed & {*program.equations[k].outputs}
    ]
    moved = _depends(program, range(len(problem.arrays), program.inputs))  # on dy
    floats = [k for k in behind if _is_float(values[program.equations[k].outputs[0]])]
    yield from _signs(floats)
    yield from _axes(program, behind, moved)
    yield from _transposes(program, values, behind)
    yield from _left_out(program, values, floats, moved)
    yield from _flips(program, values, behind)
    yield from _everywhere(program, values, behind)
    yield from _exchanged(program, behind)
    yield from _functions(program, floats, moved)
    yield from _scaled(floats)
    yield from _others(program, values, behind, moved)
    yield from _factors(program, values, behind, moved)
    yield from _factors_everywhere(program, values, behind, moved)
    yield from _terms(program, values, floats, moved)


def _is_float(x: Any) -> bool:
    return isinstance(x, np.ndarray | np.floating) and np.issubdtype(x.dtype, np.floating)


def _depends(program: trace.Program, inputs: Sequence[int]) -> set[int]:
    reached = set(inputs)
    for eqn in program.equations:
        if any(v in reached for v in eqn.inputs if isinstance(v, int)):
            reached.update(eqn.outputs)
    return reached


def _live(program: trace.Program, outputs: Sequence[int]) -> set[int]:
    """The values that some of the outputs need; what a formula computes and drops is no part of it."""
    needed = set(outputs)
    for eqn in reversed(program.equations):
        if needed & set(eqn.outputs):
            needed.update(v for v in eqn.inputs if isinstance(v, int))
    return needed


def _output(k: int, change: Callable[[Any], Any]) -> Callable[[trace.Program], Changed]:
    """Change the output of equation k."""

    def build(program: trace.Program) -> Changed:
        eqn = program.equations[k]
        return {k: lambda operands, values: [change(trace.apply(eqn, operands)[0])]}

    return build


def _operand(k: int, j: int, change: Callable[[Any, Any], Any]) -> Callable[[trace.Program], Changed]:
    """Change operand j of equation k; `change` sees it and all values."""

    def build(program: trace.Program) -> Changed:
        eqn = program.equations[k]

        def run(operands: Sequence[Any], values: Sequence[Any]) -> Sequence[Any]:
            new = list(operands)
            new[j] = change(operands[j], values)
            return trace.apply(eqn, new)

        return {k: run}

    return build


def _signs(floats: Sequence[int]) -> Iterator[Edit]:
    for k in floats:
        yield Edit("sign", "negate the result of {op}", k, _output(k, np.negative))


def _transposes(program: trace.Program, values: Sequence[Any], behind: Sequence[int]) -> Iterator[Edit]:
    for k in behind:
        eqn = program.equations[k]
        for j, v in enumerate(eqn.inputs):
            shape = np.shape(values[v] if isinstance(v, int) else v)
            for a, b in itertools.combinations(range(len(shape)), 2):
                if shape[a] == shape[b] > 1 and len(shape) <= 4:
                    swap = lambda x, _, a=a, b=b: np.swapaxes(x, a, b)
                    yield Edit("transpose", f"transpose operand {j} of {{op}}", k, _operand(k, j, swap))
        if (
            eqn.outputs
            and len(shape := program.avals[eqn.outputs[0]].shape) == 2
            and shape[0] == shape[1] > 1
        ):
            yield Edit("transpose", "transpose the result of {op}", k, _output(k, np.transpose))


def _axes(program: trace.Program, behind: Sequence[int], moved: set[int]) -> Iterator[Edit]:
    """A reduction over another axis: of one equation, of all that follow dy, or of all that do not."""
    groups: dict[Any, list[int]] = {}
    for k in behind:
        eqn = program.equations[k]
        if "axes" in eqn.params and isinstance(eqn.inputs[0], int):
            old, ndim = tuple(sorted(eqn.params["axes"])), len(program.avals[eqn.inputs[0]].shape)
            for group in (k, "all", eqn.inputs[0] in moved):
                groups.setdefault((old, ndim, str(group)), []).append(k)
    for (old, ndim, group), many in groups.items():
        alone = len(many) == 1
        if alone and not group.isdigit():
            continue
        for count in range(1, ndim + 1) if alone else [len(old)]:
            for axes in itertools.combinations(range(ndim), count):
                for mean in (False, True) if axes != old else ():
                    words = "run {op}" if alone else "take all sums and means"
                    build = _over(tuple(many), axes, ndim, mean)
                    yield Edit("wrong_axis", f"{words} over axis {_plain(axes)}", many[0], build)
    for k in behind:
        eqn = program.equations[k]
        if eqn.name in ("cumsum", "cumprod", "cummax") and isinstance(eqn.inputs[0], int):
            for axis in range(len(program.avals[eqn.inputs[0]].shape)):
                if axis != eqn.params["axis"]:
                    yield _params(k, {"axis": axis}, "wrong_axis", f"run {{op}} over axis {axis}")
            yield _params(k, {"reverse": not eqn.params["reverse"]}, "flip", "run {op} from the other end")
        if eqn.name == "broadcast_in_dim" and isinstance(eqn.inputs[0], int):
            ndim, old = len(eqn.params["shape"]), tuple(eqn.params["broadcast_dimensions"])
            for axes in itertools.combinations(range(ndim), len(old)):
                if axes != old and old:
                    new = {"broadcast_dimensions": axes}
                    yield _params(
                        k, new, "wrong_axis", f"let {{op}} repeat along other axes: {_plain(axes)} stay"
                    )


def _over(
    many: Sequence[int], axes: tuple[int, ...], ndim: int, mean: bool
) -> Callable[[trace.Program], Changed]:
    """Reductions over other axes, put back with size 1 where they were; the divisor of a mean changes too."""

    def build(program: trace.Program) -> Changed:
        changed: dict[int, Any] = {}
        for k in many:
            eqn = program.equations[k]
            shape = program.avals[eqn.inputs[0]].shape
            count = lambda some, shape=shape: math.prod(shape[a] for a in some)
            by = count(eqn.params["axes"]) / count(axes) if mean else 1.0
            other = eqn._replace(params={**eqn.params, "axes": axes})
            changed[k] = lambda operands, _, other=other, by=by: [
                trace.apply(other, operands)[0] * by if by != 1.0 else trace.apply(other, operands)[0]
            ]
            results = {eqn.outputs[0]}
            for e, user in enumerate(program.equations):
                if results.isdisjoint(v for v in user.inputs if isinstance(v, int)):
                    continue
                if _keeps(user, program, ndim):
                    changed[e] = lambda operands, _: [np.expand_dims(operands[0], axes)]
                elif user.name in ("div", "mul") and any(not isinstance(v, int) for v in user.inputs):
                    results.update(user.outputs)  # a mean
        return changed

    return build


def _keeps(eqn: trace.Equation, program: trace.Program, ndim: int) -> bool:
    """Whether an equation puts the reduced axes back with size 1, as ``keepdims=True`` does."""
    return eqn.name in ("broadcast_in_dim", "reshape") and len(program.avals[eqn.outputs[0]].shape) == ndim


def _plain(axes: Sequence[int]) -> str:
    return ", ".join(map(str, axes))


def _params(k: int, new: dict[str, Any], kind: str, words: str) -> Edit:
    def build(program: trace.Program) -> Changed:
        eqn = program.equations[k]
        other = eqn._replace(params={**eqn.params, **new})
        return {k: lambda operands, values: trace.apply(other, operands)}

    return Edit(kind, words, k, build)


_LEFT_OUT = {
    "neg": "sign",
    "select_n": "mask",
    "transpose": "transpose",
    "rev": "flip",
    "scatter": "mask",
    "add": "extra_term",
    "sub": "extra_term",
    "add_any": "extra_term",
}


def _left_out(
    program: trace.Program, values: Sequence[Any], floats: Sequence[int], moved: set[int]
) -> Iterator[Edit]:
    for k in floats:
        eqn = program.equations[k]
        if eqn.primitive is None:
            continue
        shape = program.avals[eqn.outputs[0]].shape
        for j, v in enumerate(eqn.inputs):
            if (
                not isinstance(v, int)
                or not _is_float(values[v])
                or len(program.avals[v].shape) != len(shape)
            ):
                continue
            if not _broadcasts(program.avals[v].shape, shape):
                continue
            others = [values[u] if isinstance(u, int) else u for i, u in enumerate(eqn.inputs) if i != j]
            kind = _LEFT_OUT.get(eqn.name, "extra_term")
            if kind == "extra_term" and v not in moved:
                kind = "wrong_residual"  # a value of the forward pass, with something done to it
            if eqn.name in ("mul", "div") and all(np.size(o) == 1 or (o == o.flat[0]).all() for o in others):
                kind = "scale"
            elif eqn.name == "mul" and all(np.isin(o, (0, 1)).all() for o in others):
                kind = "mask"
            what = f"leave out {{op}}, and keep its operand {j}" if len(eqn.inputs) > 1 else "leave out {op}"
            keep = lambda p, k=k, j=j: {
                k: lambda operands, _, s=p.avals[p.equations[k].outputs[0]].shape: [
                    np.broadcast_to(operands[j], s)
                ]
            }
            yield Edit(kind, what, k, keep)
            if eqn.name == "sub" and j == 1:
                yield Edit(kind, what, k, lambda p, k=k: {k: lambda operands, _: [-operands[1]]})


_TURNED = ("add", "conv_general_dilated", "copy", "dot_general", "gather", "mul", "pad", "slice", "transpose")


def _flips(program: trace.Program, values: Sequence[Any], behind: Sequence[int]) -> Iterator[Edit]:
    for k in behind:
        eqn = program.equations[k]
        if eqn.name == "pad" and len(eqn.inputs) == 2:
            config = eqn.params["padding_config"]
            for axis, by in itertools.product(range(len(config)), (1, -1, 2, -2)):
                new = [
                    (lo + by, hi - by, i) if a == axis else (lo, hi, i)
                    for a, (lo, hi, i) in enumerate(config)
                ]
                yield _params(
                    k, {"padding_config": tuple(new)}, "shift", f"pad {by} more before axis {axis} in {{op}}"
                )
        if eqn.name == "slice":
            start, limit = eqn.params["start_indices"], eqn.params["limit_indices"]
            for axis, by in itertools.product(range(len(start)), (1, -1, 2, -2)):
                low, high = start[axis] + by, limit[axis] + by
                if low >= 0 and high <= program.avals[eqn.inputs[0]].shape[axis]:
                    new = {
                        "start_indices": (*start[:axis], low, *start[axis + 1 :]),
                        "limit_indices": (*limit[:axis], high, *limit[axis + 1 :]),
                    }
                    yield _params(k, new, "shift", f"start {by} later along axis {axis} in {{op}}")
        if eqn.name not in _TURNED:
            continue
        for j, v in enumerate(eqn.inputs):
            shape = np.shape(values[v] if isinstance(v, int) else v)
            axes = [a for a in range(len(shape)) if shape[a] > 1]
            for some in [(a,) for a in axes] + list(itertools.combinations(axes, 2)):
                turn = lambda x, _, some=some: np.flip(x, some)
                yield Edit(
                    "flip",
                    f"reverse operand {j} of {{op}} along axis {_plain(some)}",
                    k,
                    _operand(k, j, turn),
                )
            for axis, by in itertools.product(axes, (1, -1)):
                roll = lambda x, _, axis=axis, by=by: np.roll(x, by, axis)
                words = f"shift operand {j} of {{op}} by {by} along axis {axis}"
                yield Edit("shift", words, k, _operand(k, j, roll))


def _everywhere(program: trace.Program, values: Sequence[Any], behind: Sequence[int]) -> Iterator[Edit]:
    """A value turned in all its uses at once: a kernel that should be reversed or transposed."""
    for v, places in _uses(program, behind).items():
        shape = np.shape(values[v])
        if len(places) < 2 or not _is_float(values[v]):
            continue
        axes = [a for a in range(len(shape)) if shape[a] > 1]
        for some in [c for n in (1, 2, 3) for c in itertools.combinations(axes, n)]:
            turn = lambda x, some=some: np.flip(x, some)
            words = f"reverse {{v{v}}} along axis {_plain(some)}"
            yield Edit(
                "flip", words, places[0][0], _at_all(places, lambda known, v=v, turn=turn: turn(known[v]))
            )
        for a, b in itertools.combinations(axes, 2):
            if shape[a] == shape[b]:
                turned = lambda known, v=v, a=a, b=b: np.swapaxes(known[v], a, b)
                yield Edit("transpose", f"transpose {{v{v}}}", places[0][0], _at_all(places, turned))


def _uses(program: trace.Program, behind: Sequence[int]) -> dict[int, list[tuple[int, int]]]:
    """Where the formula uses each value: equation and operand."""
    uses: dict[int, list[tuple[int, int]]] = {}
    for k in behind:
        for j, v in enumerate(program.equations[k].inputs):
            if isinstance(v, int):
                uses.setdefault(v, []).append((k, j))
    return uses


def _at_all(
    places: Sequence[tuple[int, int]], new: Callable[[Any], Any]
) -> Callable[[trace.Program], Changed]:
    """Another value, made from all values, at several places."""

    def build(program: trace.Program) -> Changed:
        changed: dict[int, Any] = {}
        for k in dict.fromkeys(k for k, _ in places):
            eqn, at = program.equations[k], [j for kk, j in places if kk == k]

            def run(operands: Any, known: Any, eqn: Any = eqn, at: Any = at) -> Any:
                return trace.apply(eqn, [new(known) if j in at else o for j, o in enumerate(operands)])

            changed[k] = run
        return changed

    return build


_SWAPS = {
    "add": [("sub", "sign"), ("mul", "wrong_residual")],
    "sub": [("add", "sign")],
    "mul": [("div", "wrong_residual"), ("add", "wrong_residual")],
    "div": [("mul", "wrong_residual")],
    "max": [("min", "mask")],
    "min": [("max", "mask")],
    "gt": [("lt", "mask"), ("ge", "mask"), ("le", "mask")],
    "lt": [("gt", "mask"), ("le", "mask"), ("ge", "mask")],
    "ge": [("le", "mask"), ("gt", "mask"), ("lt", "mask")],
    "le": [("ge", "mask"), ("lt", "mask"), ("gt", "mask")],
    "eq": [("ne", "mask")],
    "ne": [("eq", "mask")],
    "sin": [("cos", "wrong_residual")],
    "cos": [("sin", "wrong_residual")],
    "sqrt": [("rsqrt", "wrong_residual"), ("square", "wrong_residual")],
    "rsqrt": [("sqrt", "wrong_residual")],
    "reduce_max": [("reduce_sum", "wrong_axis")],
    "exp": [("log", "wrong_residual")],
    "tanh": [("logistic", "wrong_residual")],
    "logistic": [("tanh", "wrong_residual")],
}
_PLAIN = {
    "sub": np.subtract, "add": np.add, "mul": np.multiply, "div": np.divide, "max": np.maximum,
    "min": np.minimum, "gt": np.greater, "lt": np.less, "ge": np.greater_equal, "le": np.less_equal,
    "eq": np.equal, "ne": np.not_equal, "sin": np.sin, "cos": np.cos, "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x), "square": np.square, "log": np.log, "tanh": np.tanh,
    "logistic": lambda x: 1 / (1 + np.exp(-x)),
}  # fmt: skip


def _exchanged(program: trace.Program, behind: Sequence[int]) -> Iterator[Edit]:
    for k in behind:
        eqn = program.equations[k]
        for name, kind in _SWAPS.get(eqn.name, ()):
            if name in _PLAIN:
                change = lambda operands, values, f=_PLAIN[name]: [f(*operands)]
                yield Edit(kind, f"{name} instead of {{op}}", k, lambda p, k=k, change=change: {k: change})
        if eqn.name in ("sub", "div", "dot_general", "pow", "select_n"):
            order = (0, 2, 1) if eqn.name == "select_n" else (1, 0)
            if len(eqn.inputs) == len(order):
                kind = {"select_n": "mask", "sub": "sign"}.get(eqn.name, "swapped")
                yield Edit(kind, "exchange the operands of {op}", k, _reordered(k, order))
        if eqn.name == "integer_pow":
            for power in {1, 2, 3, -1, -2, eqn.params["y"] + 1, eqn.params["y"] - 1} - {eqn.params["y"], 0}:
                yield _params(
                    k, {"y": power}, "wrong_residual", f"the power {power} instead of that of {{op}}"
                )
        if eqn.name in ("exp", "sqrt", "rsqrt", "tanh", "logistic", "square"):
            for power in (2, 3, -1):
                change = _output(k, lambda x, power=power: x ** float(power))
                yield Edit("wrong_residual", f"the power {power} of the result of {{op}}", k, change)
        if eqn.name in ("add", "sub") and any(not isinstance(v, int) for v in eqn.inputs):
            j = next(j for j, v in enumerate(eqn.inputs) if not isinstance(v, int))
            for value in (0.0, 1.0, 2.0, -1.0, 0.5):
                if np.ndim(eqn.inputs[j]) == 0 and float(eqn.inputs[j]) != value:
                    change = lambda x, _, value=value: np.full(np.shape(x), value)
                    yield Edit("extra_term", f"{value:g} as operand {j} of {{op}}", k, _operand(k, j, change))


def _reordered(k: int, order: Sequence[int]) -> Callable[[trace.Program], Changed]:
    def build(program: trace.Program) -> Changed:
        eqn = program.equations[k]
        return {k: lambda operands, values: trace.apply(eqn, [operands[i] for i in order])}

    return build


def _functions(program: trace.Program, floats: Sequence[int], moved: set[int]) -> Iterator[Edit]:
    """A function applied to a value of the forward pass."""
    for k in floats:
        if program.equations[k].outputs[0] not in moved:
            for name in ("exp", "log", "sqrt", "square", "tanh", "logistic", "cos", "sin"):
                known = {"exp": np.exp, **_PLAIN}[name]
                yield Edit("wrong_residual", f"{name} of the result of {{op}}", k, _output(k, known))


def _scaled(floats: Sequence[int]) -> Iterator[Edit]:
    for k in floats:

        def build(program: trace.Program, k: int = k) -> Any:
            eqn = program.equations[k]
            return {k: lambda operands, values, c: [c * trace.apply(eqn, operands)[0]]}

        yield Edit("scale", "multiply the result of {op} by {c}", k, build, solved=True)


def _candidates(values: Sequence[Any], wanted: Callable[[Any], bool], before: int) -> list[int]:
    """The values of the right kind, each only once if several are equal."""
    seen, out = set(), []
    for v in range(min(before, len(values))):
        x = values[v]
        if not isinstance(x, np.ndarray | np.generic) or not wanted(x):
            continue
        mark = (x.shape, np.asarray(x).tobytes())
        if mark not in seen:
            seen.add(mark)
            out.append(v)
    return out


def _others(
    program: trace.Program, values: Sequence[Any], behind: Sequence[int], moved: set[int]
) -> Iterator[Edit]:
    """Another value in place of an operand, or of all the uses of a value."""
    makers = {v: eqn for eqn in program.equations for v in eqn.outputs}
    for k in behind:
        eqn = program.equations[k]
        if eqn.primitive is None:
            continue  # a gradient is no substitute for another
        for j, v in enumerate(eqn.inputs):
            old = values[v] if isinstance(v, int) else v
            if not hasattr(old, "dtype") or np.ndim(old) == 0:
                continue
            fits = lambda x, old=old: x.shape == np.shape(old) and x.dtype == old.dtype
            for u in _candidates(values, fits, min(eqn.outputs)):
                if u == v or np.array_equal(values[u], old) or (v in moved and u not in moved):
                    continue  # the last would no longer follow dy
                kind = _relation(makers, values, old, u)
                if u in moved and v not in moved:
                    kind = "ignores_cotangent"
                elif kind == "wrong_residual" and v in moved and u in _depends(program, _equal(values, old)):
                    kind = "missing_term"  # a step of the chain was left out
                elif kind == "wrong_residual" and u in moved and v in _depends(program, [u]):
                    kind = "extra_term"  # a step too many
                change = lambda _, known, u=u: known[u]
                yield Edit(kind, f"{{v{u}}} as operand {j} of {{op}}", k, _operand(k, j, change))
    for v, places in _uses(program, behind).items():
        if len(places) < 2 or not hasattr(values[v], "dtype") or np.ndim(values[v]) == 0:
            continue
        fits = lambda x, old=values[v]: x.shape == old.shape and x.dtype == old.dtype
        some = [c for n in range(2, len(places) + 1) for c in itertools.combinations(places, n)]
        for at in some if len(places) <= 5 else [tuple(places)]:
            for u in _candidates(values, fits, program.equations[at[0][0]].outputs[0]):
                if u == v or np.array_equal(values[u], values[v]) or (v in moved) != (u in moved):
                    continue
                kind, new = _relation(makers, values, values[v], u), lambda known, u=u: known[u]
                yield Edit(kind, f"{{v{u}}} instead of {{v{v}}}", at[0][0], _at_all(at, new))


def _equal(values: Sequence[Any], x: Any) -> list[int]:
    return [v for v, other in enumerate(values) if other is not None and np.array_equal(other, x)]


def _relation(makers: Mapping[int, trace.Equation], values: Sequence[Any], old: Any, u: int) -> str:
    """What the mistake is if value u is needed for `old`: u may be `old` masked, reversed, transposed."""
    maker, new = makers.get(u), values[u]
    if new.shape == old.shape and _is_float(new):
        if np.array_equal(new, -old):
            return "sign"
        if any(
            np.array_equal(new, np.flip(old, a))
            for n in (1, 2)
            for a in itertools.combinations(range(old.ndim), n)
        ):
            return "flip"
        if old.ndim == 2 and np.array_equal(new, old.T):
            return "transpose"
    if maker is not None and maker.name in ("add", "sub"):
        given = [values[v] if isinstance(v, int) else v for v in maker.inputs]
        if any(x is not None and np.array_equal(x, old) for x in given):
            return "missing_term"
    if maker is not None and maker.name in ("select_n", "mul", "max", "min"):
        given = [values[v] if isinstance(v, int) else v for v in maker.inputs]
        masks = any(x is not None and np.asarray(x).dtype == bool for x in given) or maker.name in (
            "max",
            "min",
        )
        if masks and any(x is not None and np.array_equal(x, old) for x in given):
            return "mask"
    return "wrong_residual"


def _factors(
    program: trace.Program, values: Sequence[Any], behind: Sequence[int], moved: set[int]
) -> Iterator[Edit]:
    """A factor or divisor put in: at the result of an equation, or at one use of a value that has several."""
    uses = _uses(program, behind)
    first = program.equations[behind[0]].outputs[0] if behind else 0
    places: list[tuple[int, int | None, int]] = []  # equation, operand or None, the value there
    for k in behind:
        eqn = program.equations[k]
        if _is_float(values[eqn.outputs[0]]):
            places.append((k, None, eqn.outputs[0]))
        for j, v in enumerate(eqn.inputs):
            if isinstance(v, int) and _is_float(values[v]) and (len(uses[v]) > 1 or v < first):
                places.append((k, j, v))
    for k, j, v in places:
        shape = np.shape(values[v])
        fits = lambda x, shape=shape: 0 < x.ndim <= len(shape) and _broadcasts(x.shape, shape)
        for u in _candidates(values, fits, program.equations[k].outputs[0]):
            if u in moved and v in moved:
                continue
            at = "the result of {op}" if j is None else f"operand {j} of {{op}}"
            x = values[u]
            is_mask = x.dtype == bool or bool(np.isin(x, (0, 1)).all())
            kind = "ignores_cotangent" if u in moved else "mask" if is_mask else "missing_term"
            yield Edit(kind, f"multiply {at} by {{v{u}}}", k, _times(k, j, u, lambda a, b: a * b))
            if is_mask:
                without = lambda a, b: a * (1 - np.asarray(b, float))
                yield Edit(kind, f"multiply {at} by not {{v{u}}}", k, _times(k, j, u, without))
            elif u not in moved:
                yield Edit("missing_term", f"divide {at} by {{v{u}}}", k, _times(k, j, u, lambda a, b: a / b))


def _factors_everywhere(
    program: trace.Program, values: Sequence[Any], behind: Sequence[int], moved: set[int]
) -> Iterator[Edit]:
    """A factor or divisor put in at all the uses of dy, or of what is made of it."""
    for v, places in _uses(program, behind).items():
        if v not in moved or len(places) < 2:
            continue
        shape = np.shape(values[v])
        fits = lambda x, shape=shape: 0 < x.ndim <= len(shape) and _broadcasts(x.shape, shape)
        for u in _candidates(values, fits, program.equations[places[0][0]].outputs[0]):
            if u in moved:
                continue
            is_mask = values[u].dtype == bool or bool(np.isin(values[u], (0, 1)).all())
            kind = "mask" if is_mask else "missing_term"
            times, over = (
                lambda known, v=v, u=u: known[v] * known[u],
                lambda known, v=v, u=u: known[v] / known[u],
            )
            yield Edit(kind, f"multiply {{v{v}}} by {{v{u}}}", places[0][0], _at_all(places, times))
            if not is_mask:
                yield Edit(kind, f"divide {{v{v}}} by {{v{u}}}", places[0][0], _at_all(places, over))


def _times(
    k: int, j: int | None, u: int, combine: Callable[[Any, Any], Any]
) -> Callable[[trace.Program], Changed]:
    if j is not None:
        return _operand(k, j, lambda x, known: combine(x, known[u]))

    def build(program: trace.Program) -> Changed:
        eqn = program.equations[k]
        return {k: lambda operands, known: [combine(trace.apply(eqn, operands)[0], known[u])]}

    return build


def _broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    return all(a == b or 1 in (a, b) for a, b in zip(reversed(shape), reversed(to), strict=False))


def _terms(
    program: trace.Program, values: Sequence[Any], floats: Sequence[int], moved: set[int]
) -> Iterator[Edit]:
    """c times another value added."""
    for k in floats:
        out = program.equations[k].outputs[0]
        if out not in moved:
            continue
        shape = np.shape(values[out])
        fits = lambda x, shape=shape: (
            _is_float(x) and 0 < x.ndim <= len(shape) and _broadcasts(x.shape, shape)
        )
        for u in _candidates(values, fits, len(values)):
            if u in moved and u < out:

                def build(p: trace.Program, k: int = k, u: int = u) -> Any:
                    eqn = p.equations[k]
                    return {k: lambda operands, known, c: [trace.apply(eqn, operands)[0] + c * known[u]]}

                yield Edit(
                    "missing_term", f"add {{c}} · {{v{u}}} to the result of {{op}}", k, build, solved=True
                )


# ---- in words ---------------------------------------------------------------------------------------------


def _finding(problem: Problem, scene: Scene, edit: Edit, i: int, c: float, sizes: dict[str, int]) -> Finding:
    program = scene.program
    eqn = program.equations[edit.at]
    kind, name = edit.kind, name_constant(c, sizes)
    if edit.solved and kind == "scale":
        kind = "sign" if abs(c + 1) < SAME else "extra_term" if abs(c) < SAME else "scale"
    text = edit.words.replace("{op}", _named(eqn)).replace(
        "{c}", f"{c:.6g}" + (f" ({name})" if ":" in name else "")
    )
    for v in range(len(program)):
        if f"{{v{v}}}" in text:
            text = text.replace(f"{{v{v}}}", _value(problem, program, v))
    source = trace.source(eqn.line)
    return Finding(
        problem.paths[i],
        kind,
        _MESSAGES.get(kind, "the formula is one edit away from the truth")
        + (f": `{source}`" if source else ""),
        text,
        eqn.line,
    )


_MESSAGES = {
    "sign": "a sign is wrong",
    "scale": "a factor is wrong",
    "transpose": "a transpose is missing or too many",
    "wrong_axis": "an operation runs over the wrong axis",
    "mask": "a mask is missing, added or inverted",
    "flip": "a reversal is missing or too many",
    "shift": "an offset is wrong",
    "swapped": "two operands are exchanged",
    "wrong_residual": "another value is needed here",
    "ignores_cotangent": "dy is needed here",
    "missing_term": "a term or factor is missing",
    "extra_term": "a term or factor does not belong here",
}


def _named(eqn: trace.Equation) -> str:
    if eqn.primitive is None:
        return "the gradient"
    number = eqn.line.rpartition(":")[2]
    return f"`{eqn.name}`" + (f" in line {number}" if number else "")


def _value(problem: Problem, program: trace.Program, v: int) -> str:
    maker = next((e for e in program.equations if v in e.outputs), None)
    while maker is not None and maker.primitive is None and isinstance(maker.inputs[0], int):
        v = maker.inputs[0]
        maker = next((e for e in program.equations if v in e.outputs), None)
    if maker is None:
        names = [path for path, leaf in zip(_all_paths(problem), problem.arrays, strict=True)]
        return names[v] if v < len(names) else "dy"
    source = trace.source(maker.line)
    number = maker.line.rpartition(":")[2]
    return f"the result of `{maker.name}`" + (f" in line {number} (`{source}`)" if source else "")


def _all_paths(problem: Problem) -> list[str]:
    def text(path: Any) -> str:
        rest = (f'["{k.key}"]' if isinstance(k, jax.tree_util.DictKey) else str(k) for k in path[1:])
        return problem.names[path[0].idx] + "".join(rest)

    return [text(p) for p, leaf in jax.tree.leaves_with_path(problem.args) if hasattr(leaf, "dtype")]
