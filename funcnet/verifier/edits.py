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
    for edit in _edits(scene, problem):
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
        if one.at == two.at:
            continue
        both = Edit(
            one.kind,
            f"{one.words}, and {two.words}",
            one.at,
            lambda p, a=one, b=two: {**a.build(p), **b.build(p)},
        )
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
    try:
        changed = edit.build(scene.program)
    except (ValueError, IndexError, TypeError):
        return None
    wanted, c = [scene.outputs[i]], None if edit.solved else 1.0
    for values, truth in zip(scene.values, scene.truth, strict=True):
        want = truth[i]
        scale = np.abs(want).max(initial=0)
        if edit.solved and c is None:
            c = _solve(edit, scene, values, wanted, want)
            if c is None:
                return None
        try:
            with np.errstate(all="ignore"):
                new = trace.rerun(
                    scene.program, values, _with(changed, c) if edit.solved else changed, wanted
                )
        except (ValueError, IndexError, TypeError, ZeroDivisionError):
            return None
        if new is None or new[0].shape != want.shape:
            return None
        if not np.abs(new[0] - want).max(initial=0) <= SAME * max(scale, 1e-300):
            return None
    return c


def _with(changed: Any, c: float | None) -> Changed:
    return {k: (lambda operands, values, f=f: f(operands, values, c)) for k, f in changed.items()}


def _solve(edit: Edit, scene: Scene, values: list[Any], wanted: list[int], want: np.ndarray) -> float | None:
    """c from two evaluations, if the gradient is linear in it."""
    changed = edit.build(scene.program)
    with np.errstate(all="ignore"):
        at = [trace.rerun(scene.program, values, _with(changed, c), wanted) for c in (0.0, 1.0)]
    if at[0] is None or at[1] is None or at[0][0].shape != want.shape:
        return None
    slope, missing = at[1][0] - at[0][0], want - at[0][0]
    norm = float(np.vdot(slope, slope))
    if not (math.isfinite(norm) and norm > 0):
        return None
    return float(np.vdot(slope, missing)) / norm


# ---- the edits, the likeliest first -----------------------------------------------------------------------


def _edits(scene: Scene, problem: Problem) -> Iterator[Edit]:
    program = scene.program
    values = scene.values[0]
    behind = range(scene.first, len(program.equations))
    moved = _depends(program, range(len(problem.arrays), program.inputs))  # on dy
    floats = [k for k in behind if _is_float(values[program.equations[k].outputs[0]])]
    yield from _signs(floats)
    yield from _transposes(program, values, behind)
    yield from _axes(program, behind)
    yield from _left_out(program, values, floats)
    yield from _flips(program, values, behind)
    yield from _exchanged(program, behind)
    yield from _scaled(floats)
    yield from _others(program, values, behind, moved)
    yield from _factors(program, values, floats, moved)
    yield from _terms(program, values, floats, moved)


def _is_float(x: Any) -> bool:
    return isinstance(x, np.ndarray | np.floating) and np.issubdtype(x.dtype, np.floating)


def _depends(program: trace.Program, inputs: Sequence[int]) -> set[int]:
    reached = set(inputs)
    for eqn in program.equations:
        if any(v in reached for v in eqn.inputs if isinstance(v, int)):
            reached.update(eqn.outputs)
    return reached


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
            return trace.apply(_refit(eqn, operands, new), new)

        return {k: run}

    return build


def _refit(eqn: trace.Equation, old: Sequence[Any], new: Sequence[Any]) -> trace.Equation:
    if any(np.shape(a) != np.shape(b) for a, b in zip(old, new, strict=True)):
        raise ValueError("an operand of another shape")
    return eqn


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


def _axes(program: trace.Program, behind: Sequence[int]) -> Iterator[Edit]:
    for k in behind:
        eqn = program.equations[k]
        if "axes" in eqn.params and isinstance(eqn.inputs[0], int):
            ndim = len(program.avals[eqn.inputs[0]].shape)
            for axes in itertools.combinations(range(ndim), len(eqn.params["axes"])):
                if axes != tuple(sorted(eqn.params["axes"])):
                    yield _params(k, {"axes": axes}, "wrong_axis", f"run {{op}} over axis {_plain(axes)}")
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
    "add": "extra_term",
    "sub": "extra_term",
    "add_any": "extra_term",
}


def _left_out(program: trace.Program, values: Sequence[Any], floats: Sequence[int]) -> Iterator[Edit]:
    for k in floats:
        eqn = program.equations[k]
        if eqn.primitive is None:
            continue
        shape = program.avals[eqn.outputs[0]].shape
        for j, v in enumerate(eqn.inputs):
            if not isinstance(v, int) or program.avals[v].shape != shape or not _is_float(values[v]):
                continue
            others = [values[u] if isinstance(u, int) else u for i, u in enumerate(eqn.inputs) if i != j]
            kind = _LEFT_OUT.get(eqn.name, "extra_term")
            if eqn.name in ("mul", "div") and all(np.size(o) == 1 or (o == o.flat[0]).all() for o in others):
                kind = "scale"
            elif eqn.name == "mul" and all(np.isin(o, (0, 1)).all() for o in others):
                kind = "mask"
            what = f"leave out {{op}}, and keep its operand {j}" if len(eqn.inputs) > 1 else "leave out {op}"
            yield Edit(kind, what, k, lambda p, k=k, j=j: {k: lambda operands, values: [operands[j]]})
            if eqn.name == "sub" and j == 1:
                yield Edit(kind, what, k, lambda p, k=k: {k: lambda operands, values: [-operands[1]]})


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
        if eqn.name not in (
            "dot_general",
            "conv_general_dilated",
            "mul",
            "copy",
            "add",
            "dynamic_update_slice",
        ):
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
    uses: dict[int, list[tuple[int, int]]] = {}
    for k in behind:
        for j, v in enumerate(program.equations[k].inputs):
            if isinstance(v, int):
                uses.setdefault(v, []).append((k, j))
    for k in behind:
        eqn = program.equations[k]
        for j, v in enumerate(eqn.inputs):
            old = values[v] if isinstance(v, int) else v
            if not hasattr(old, "dtype") or (eqn.name in ("broadcast_in_dim",) and not isinstance(v, int)):
                continue
            fits = lambda x, old=old: x.shape == np.shape(old) and x.dtype == old.dtype and np.ndim(old) > 0
            before = min(eqn.outputs) if eqn.outputs else len(values)
            for u in _candidates(values, fits, before):
                if u == v or np.array_equal(values[u], old):
                    continue
                if v in moved and u not in moved:
                    continue  # it would no longer follow dy
                kind = "ignores_cotangent" if u in moved and v not in moved else "wrong_residual"
                change = lambda _, known, u=u: known[u]
                words = f"{{v{u}}} as operand {j} of {{op}}"
                yield Edit(kind, words, k, _operand(k, j, change))
    for v, places in uses.items():
        if not 2 <= len(places) <= 4 or not hasattr(values[v], "dtype") or np.ndim(values[v]) == 0:
            continue
        fits = lambda x, old=values[v]: x.shape == old.shape and x.dtype == old.dtype
        for u in _candidates(values, fits, program.equations[places[0][0]].outputs[0]):
            if u == v or np.array_equal(values[u], values[v]) or (v in moved) != (u in moved):
                continue

            def build(p: trace.Program, u: int = u, places: Any = tuple(places)) -> Changed:
                changed: dict[int, Any] = {}
                for k in dict.fromkeys(k for k, _ in places):
                    eqn, at = p.equations[k], [j for kk, j in places if kk == k]

                    def run(operands: Any, known: Any, eqn: Any = eqn, at: Any = at) -> Any:
                        return trace.apply(eqn, [known[u] if j in at else o for j, o in enumerate(operands)])

                    changed[k] = run
                return changed

            yield Edit("wrong_residual", f"{{v{u}}} instead of {{v{v}}}", places[0][0], build)


def _factors(
    program: trace.Program, values: Sequence[Any], floats: Sequence[int], moved: set[int]
) -> Iterator[Edit]:
    """A factor or divisor put in."""
    for k in floats:
        out = program.equations[k].outputs[0]
        shape = np.shape(values[out])
        fits = lambda x, shape=shape: 0 < x.ndim <= len(shape) and _broadcasts(x.shape, shape)
        for u in _candidates(values, fits, out):
            if u in moved and out in moved:
                continue
            x = values[u]
            is_mask = x.dtype == bool or bool(np.isin(x, (0, 1)).all())
            kind = "ignores_cotangent" if u in moved else "mask" if is_mask else "missing_term"
            times = lambda p, k=k, u=u: {
                k: lambda o, known, e=p.equations[k]: [trace.apply(e, o)[0] * known[u]]
            }
            yield Edit(kind, f"multiply the result of {{op}} by {{v{u}}}", k, times)
            if is_mask:
                without = lambda p, k=k, u=u: {
                    k: lambda o, known, e=p.equations[k]: [
                        trace.apply(e, o)[0] * (1 - known[u].astype(float))
                    ]
                }
                yield Edit(kind, f"multiply the result of {{op}} by not {{v{u}}}", k, without)
            elif u not in moved:
                over = lambda p, k=k, u=u: {
                    k: lambda o, known, e=p.equations[k]: [trace.apply(e, o)[0] / known[u]]
                }
                yield Edit("missing_term", f"divide the result of {{op}} by {{v{u}}}", k, over)


def _broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    return all(a in (1, b) for a, b in zip(reversed(shape), reversed(to), strict=False))


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
