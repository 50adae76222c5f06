"""Naming a mistake from the user's own program: which edit of the backward pass makes it right?

The backward pass is traced to equations, and the edits of `slips` are tried on them. An edit counts only if
the gradient is then the true one at every point, at other sizes too. Equations know their source lines, so
that the edit can be told at the user's file and line.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from funcnet.verifier import clock, terms, trace
from funcnet.verifier.arrays import SAME, Sizes, name_constant
from funcnet.verifier.finding import Finding
from funcnet.verifier.judge import Point
from funcnet.verifier.problem import Problem
from funcnet.verifier.slips import Changed, Edit, Scope, slips

__all__ = ["search"]

MANY = 1000  # equations; a longer program is not searched
LARGE = 2**26  # elements of all values; a larger program is not searched
EDITS = 100_000  # single ones
PAIRED = 400  # edits that are tried two at a time
_TWICE = ("sign", "transpose", "wrong_axis", "flip", "mask")  # slips that come in pairs


class Scene(NamedTuple):
    """The program of forward and formula at one point, with its values for each cotangent."""

    program: trace.Program
    first: int  # the first equation of the formula
    outputs: dict[int, int]  # gradient -> value
    values: list[list[Any]]  # one per cotangent
    formula: list[list[Any]]
    truth: list[list[np.ndarray]]
    sizes: Sizes


def search(
    problem: Problem, points: Sequence[Point], wrong: Sequence[int], deadline: float
) -> dict[int, list[tuple[float, Finding]]]:
    """For each of the `wrong` gradients the edits that mend it everywhere, and how far-fetched each is."""
    scenes = [scene for scene in (_scene(problem, point) for point in points) if scene is not None]
    found: dict[int, list[tuple[float, Finding]]] = {i: [] for i in wrong}
    if not scenes:
        return found
    scene = scenes[0]
    alike = [s for s in scenes[1:] if _shape_of(s.program) == _shape_of(scene.program)]
    given = [i for i in wrong if i in scene.outputs]

    def mended(edit: Edit, i: int) -> bool:
        factors: list[tuple[float, Sizes]] = []
        for s in (scene, *alike):
            if (c := _mends(edit, s, i)) is None:
                return False
            factors.append((c, s.sizes))
        if (finding := _finding(problem, scene, edit, i, factors)) is not None:
            found[i].append(finding)
        return True

    cheap: list[Edit] = []
    scope = _scope(scene, problem, given, deadline)
    until = clock.part(deadline, 0.6)
    for edit in itertools.islice(slips(scope), EDITS):
        if clock.is_over(until):
            break
        mends = sum(mended(edit, i) for i in given)
        if not mends and edit.kind in _TWICE and edit.effort <= 1 and len(cheap) < PAIRED:
            cheap.append(edit)
    left = [i for i in given if not found[i]]
    until = clock.part(deadline, 0.6)
    for one, two in itertools.combinations(cheap, 2):
        if not left or clock.is_over(until):
            break
        if one.at == two.at or one.kind != two.kind:
            continue
        build = lambda p, a=one, b=two: {**a.build(p), **b.build(p)}
        both = Edit(one.kind, f"{one.words}, and {two.words}", one.at, build, one.effort + two.effort)
        left = [i for i in left if not mended(both, i)]
    for i in left:
        for edit in terms.missing(scope, scene.outputs[i], scene.values, _lacking(scene, i), deadline):
            mended(edit, i)
    return found


def _lacking(scene: Scene, i: int) -> list[np.ndarray]:
    return [t[i] - f[i] for t, f in zip(scene.truth, scene.formula, strict=True)]


def _scene(problem: Problem, point: Point) -> Scene | None:
    arrays, dys = list(point.arrays), point.dys

    def both(a: Sequence[Any], dy: Sequence[Any]) -> Any:
        y = problem.y(a)
        return y, [g for g in problem.gradients(a, dy) if g is not None]

    try:
        program, (y, _) = trace.trace(both, arrays, dys[0])
        forward, _ = trace.trace(problem.y, arrays)
    except Exception:  # a formula that cannot be traced at these sizes, for whatever reason
        return None
    elements = sum(math.prod(getattr(aval, "shape", ())) for aval in program.avals)
    if len(program.equations) > MANY or len(dys) * elements > LARGE:
        return None
    given = [i for i, g in enumerate(point.formula[0]) if g is not None]
    outputs = dict(zip(given, program.outputs[len(y) :], strict=True))
    try:
        values = [trace.run(program, list(map(trace.constant, (*arrays, *dy)))) for dy in dys]
    except Exception:  # an equation that only a compiled program can run
        return None
    of_forward = sum(eqn.primitive is not None for eqn in forward.equations)
    numbers = [k for k, eqn in enumerate(program.equations) if eqn.primitive is not None]
    first = (
        numbers[of_forward] if of_forward < len(numbers) else len(program.equations) - len(program.outputs)
    )
    sizes = problem.sizes(arrays, dys[0])
    return Scene(program, first, outputs, values, point.formula, point.truth, sizes)


def _shape_of(program: trace.Program) -> Any:
    return [
        (eqn.name, tuple(v if isinstance(v, int) else None for v in eqn.inputs)) for eqn in program.equations
    ]


def _scope(scene: Scene, problem: Problem, wrong: Sequence[int], deadline: float) -> Scope:
    program = scene.program
    live = _needed(program, program.outputs)  # what a formula computes and drops is no part of it
    behind = _needed(program, [scene.outputs[i] for i in wrong])
    equations = range(scene.first, len(program.equations))
    return Scope(
        program,
        [x if v in live else None for v, x in enumerate(scene.values[0])],
        scene.first,
        [k for k in equations if behind & {*program.equations[k].outputs}],
        program.after(range(len(problem.arrays), program.inputs)),
        deadline,
    )


def _needed(program: trace.Program, outputs: Sequence[int]) -> set[int]:
    """The values that some of the outputs need."""
    needed = set(outputs)
    for eqn in reversed(program.equations):
        if needed & set(eqn.outputs):
            needed.update(v for v in eqn.inputs if isinstance(v, int))
    return needed


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


# ---- in words ---------------------------------------------------------------------------------------------


def _finding(
    problem: Problem, scene: Scene, edit: Edit, i: int, factors: list[tuple[float, Sizes]]
) -> tuple[float, Finding] | None:
    """The edit in words; None where it needs another factor at every point, which explains nothing."""
    program, (c, _) = scene.program, factors[0]
    eqn = program.equations[edit.at]
    kind, effort, name = edit.kind if isinstance(edit.kind, str) else edit.kind(), edit.effort, ""
    if edit.solved:
        nothing = all(abs(c) < SAME for c, _ in factors)
        if (name := "" if nothing else name_constant(factors)) is None:
            return None
        if kind == "scale":
            kind = "sign" if abs(c + 1) < SAME else "extra_term" if nothing else "scale"
            effort += 1.5 if nothing else 0.0
        if not name and min(abs(c - plain) for plain in (-1, 0, 0.5, 1, 2)) > SAME:
            effort += 0.5
    if kind in _OF_A_VALUE and _only_chooses(program, edit.at, scene.outputs[i]):
        kind = "mask"
    text = edit.words.replace("{op}", _named(eqn)).replace("{c}", f"{c:.6g}" + (f" ({name})" if name else ""))
    for v in range(len(program)):
        if f"{{v{v}}}" in text:
            text = text.replace(f"{{v{v}}}", _value(problem, program, v))
    source = trace.source(eqn.line)
    message = _MESSAGES.get(kind, "the formula is one edit away from the truth")
    message += f": `{source}`" if source else ""
    return effort, Finding(problem.paths[i], kind, message, text, eqn.line)


_OF_A_VALUE = ("sign", "scale", "wrong_residual", "missing_term", "extra_term")


def _only_chooses(program: trace.Program, k: int, output: int) -> bool:
    """Whether the result of equation k reaches a gradient through comparisons only."""
    first = program.equations[k]
    if any(
        not np.issubdtype(program.avals[v].dtype, np.floating) for v in first.inputs if isinstance(v, int)
    ):
        return False  # labels and indices choose, and are no masks
    reached = {v for v in first.outputs if program.avals[v].dtype != bool}
    for eqn in program.equations[k + 1 :]:
        if any(v in reached for v in eqn.inputs if isinstance(v, int)):
            reached.update(v for v in eqn.outputs if program.avals[v].dtype != bool)
    return output not in reached


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
    while (maker := program.makers.get(v)) and maker.primitive is None and isinstance(maker.inputs[0], int):
        v = maker.inputs[0]
    if maker is None:
        names = problem.all_paths
        return names[v] if v < len(names) else "dy"
    source = trace.source(maker.line)
    number = maker.line.rpartition(":")[2]
    return f"the result of `{maker.name}`" + (f" in line {number} (`{source}`)" if source else "")
