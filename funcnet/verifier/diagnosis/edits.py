"""Naming a mistake from the user's own program: which edit of the backward pass makes it right?

The backward pass is traced to equations, and the edits of `slips` are tried on them. An edit counts only if
the gradient is then the true one at every point, at other sizes too. Equations know their source lines, so
that the edit can be told at the user's file and line.
"""

import contextlib
import dataclasses
import functools
import heapq
import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from funcnet.verifier import trace
from funcnet.verifier.diagnosis import blocks, terms, unroll, words
from funcnet.verifier.diagnosis.arrays import SAME, Sizes, name_constant
from funcnet.verifier.diagnosis.pairs import BOTH, Halves, both
from funcnet.verifier.diagnosis.search import Guess, Named, late, within
from funcnet.verifier.diagnosis.slips import Changed, Edit, Scope, slips, whole
from funcnet.verifier.diagnosis.unroll import Unrolled
from funcnet.verifier.diagnosis.work import SpentError, Work
from funcnet.verifier.finding import Finding
from funcnet.verifier.point import Point
from funcnet.verifier.problem import Problem
from funcnet.verifier.trace import CALL

__all__ = ["families"]

MANY = 1000  # equations; a longer program is not searched
LARGE = 2**26  # elements of all values, for all cotangents; a larger program is not searched
PAIRED = 100  # edits that are tried two at a time
BODY = 0.35  # what an edit of a loop's body is nearer than others
_TWICE = ("sign", "transpose", "wrong_axis", "flip", "mask")  # slips that come in pairs
_FOR_TERMS = 0.2  # of the work: slips leave it to what is read off the difference


@dataclasses.dataclass(frozen=True)
class Scene:
    """The program of forward and formula at one point, with its values for each cotangent.

    If its short loops are written out, `program` is the folded one, and the full one runs.
    """

    program: trace.Program
    first: int  # the first equation of the formula
    outputs: dict[int, int]  # gradient -> value
    values: list[list[Any]]  # one per cotangent
    formula: list[list[Any]]
    truth: list[list[np.ndarray]]
    hidden: Mapping[int, np.ndarray]  # gradient -> where its truth is not known, if anywhere
    sizes: Sizes
    loops: Unrolled | None = None
    known: list[list[Any]] | None = None  # the values of what runs, if that is another program

    @property
    def runs(self) -> trace.Program:
        """The program that is run."""
        return self.program if self.loops is None else self.loops.full

    def wanted(self, i: int) -> list[int]:
        """The value of gradient i in what runs."""
        at = self.program.outputs.index(self.outputs[i])
        return [self.runs.outputs[at]]

    @functools.cached_property
    def used(self) -> tuple[int, ...]:
        """What an edit may use of what runs, though nothing else does: what a step hands on to the next."""
        return self.loops.handed_on if self.loops is not None else ()

    def changed(self, edit: Edit) -> Changed:
        """What an edit changes in what runs."""
        changed = edit.build(self.program)
        return changed if self.loops is None else self.loops.changed(changed)

    def gradient(self, i: int, values: Sequence[Any], changed: Changed) -> Any:
        """Gradient i when some equations are changed; 0 where its truth is not known."""
        (new,) = trace.rerun(self.runs, values, changed, self.wanted(i), self.used)
        hidden = self.hidden.get(i)
        return new if hidden is None or np.shape(new) != hidden.shape else np.where(hidden, 0, new)


def families(
    problem: Problem, points: Sequence[Point], wrong: Sequence[int], work: Work
) -> list[Iterator[Guess]]:
    """The edits that may mend the `wrong` gradients."""
    scenes = [scene for scene in (_scene(problem, point, work) for point in points) if scene is not None]
    if not scenes or not (given := [i for i in wrong if i in scenes[0].outputs]):
        return []
    shared = functools.cache(lambda: _shared(problem, points[0]))

    def guesses(
        edits: Iterable[Edit], scenes: Sequence[Scene], purse: Work, halves: Mapping[int, Halves] = {}
    ) -> Iterator[Guess]:
        def names(edit: Edit, left: Sequence[int]) -> Iterator[Named]:
            for i in (i for i in left if i in given):
                if (factors := _mended(edit, scenes, i, purse, halves.get(i))) and (
                    found := _finding(problem, scenes[0], shared(), edit, i, factors)
                ):
                    yield i, *found

        return within(purse, (Guess(edit.effort, functools.partial(names, edit)) for edit in edits))

    def twos(scenes: Sequence[Scene], purse: Work, i: int, halves: Halves) -> Iterator[Guess]:
        def names(one: Edit, two: Edit, left: Sequence[int]) -> Iterator[Named]:
            if i in left and (factors := _mended(both(one, two), scenes, i, purse)):
                ones = [(1.0, sizes) for _, sizes in factors]
                mine = [
                    _finding(problem, scenes[0], shared(), edit, i, by)
                    for edit, by in ((one, ones), (two, factors))
                ]
                if mine[0] is not None and mine[1] is not None:
                    yield i, *_of_both(*mine[0], *mine[1])

        for one, two in halves:
            yield Guess(2.0 + BOTH, functools.partial(names, one, two))

    def lacking(i: int) -> Iterator[Edit]:
        differences = [t[i] - f[i] for t, f in zip(scene.truth, scene.formula, strict=True)]
        if all(d.shape == scene.truth[0][i].shape for d in differences):
            yield from terms.missing(scope, scene.outputs[i], scene.values, differences, work)

    rest = work.share(1 - _FOR_TERMS)
    written = [scene for scene in (_written_out(scene, rest) for scene in scenes) if scene is not None]
    found = list[Iterator[Guess]]()
    for some, purse in ((written, rest.share(0.5)), (scenes, rest)):
        if not (alike := _alike(some)):
            continue
        scope = _scope(alike[0], problem, given, purse)
        first = alike[0]
        halves = {
            i: Halves(first.truth[0][i], first.formula[0][i], whole(first.program, first.outputs[i]))
            for i in given
        }
        by = BODY if some is written else 0.0
        found += [guesses(family, alike, purse, halves) for family in blocks.families(scope)]
        found += [
            late(effort - by, guesses(map(functools.partial(_nearer, by), family), alike, purse, halves))
            for effort, family in slips(scope)
        ]
        found.append(late(2.0 + BOTH, guesses(_pairs(scope), alike, purse.share(0.5))))
        found += [late(2.0 + BOTH, within(purse, twos(alike, purse, i, halves[i]))) for i in given]
    scene, scope = scenes[0], _scope(scenes[0], problem, given, work)
    return [*found, *(late(3.0, guesses(lacking(i), _alike(scenes), work)) for i in given)]


def _alike(scenes: Sequence[Scene]) -> list[Scene]:
    """Those whose program is that of the first, but for sizes."""
    return [s for s in scenes if _shape_of(s.program) == _shape_of(scenes[0].program)]


def _of_both(effort: float, one: Finding, another: float, two: Finding) -> tuple[float, Finding]:
    """Two mistakes in one gradient, as one finding."""
    at = lambda found: f"{found.suggestion} ({found.location})" if found.location else found.suggestion
    return effort + another + BOTH, dataclasses.replace(
        one,
        also=two.kind if two.kind != one.kind else "",
        message=f"two mistakes: {one.message}; {two.message}",
        suggestion=f"{at(one)}, and {at(two)}",
        location="",
    )


def _nearer(by: float, edit: Edit) -> Edit:
    return edit._replace(effort=edit.effort - by)


def _pairs(scope: Scope) -> Iterator[Edit]:
    """Slips of the pen that were made twice."""
    every = heapq.merge(*(family for _, family in slips(scope, 1.0)), key=lambda edit: edit.effort)
    simple = itertools.takewhile(lambda edit: edit.effort <= 1, every)
    some = list(itertools.islice((edit for edit in simple if edit.kind in _TWICE), PAIRED))
    for one, two in itertools.combinations(some, 2):
        if one.at != two.at and one.kind == two.kind:
            build = lambda p, a=one, b=two: {**a.build(p), **b.build(p)}
            words = f"{one.words}, and {two.words}"
            yield Edit(one.kind, words, one.at, build, one.effort + two.effort + BOTH)


def _scene(problem: Problem, point: Point, work: Work) -> Scene | None:
    arrays, dys = list(point.arrays), point.dys

    def both(a: Sequence[Any], dy: Sequence[Any]) -> Any:
        y = problem.y(a)
        return y, [g for g in problem.gradients(a, dy) if g is not None]

    try:
        program, (y, _) = trace.trace(both, arrays, dys[0])
        forward, _ = trace.trace(problem.y, arrays)
    except Exception:  # a formula that cannot be traced at these sizes, for whatever reason
        return None
    if len(program.equations) > MANY or program.elements > LARGE:
        return None
    dys = dys[: max(1, LARGE // max(1, program.elements))]
    try:
        work.pay(len(dys) * program.cost)
    except SpentError:
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
    formula, truth = point.formula[: len(dys)], point.truth[: len(dys)]
    hidden = {i: ~seen for i, seen in enumerate(point.seen) if not seen.all()}
    return Scene(program, first, outputs, values, formula, truth, hidden, sizes)


def _shape_of(program: trace.Program) -> Any:
    return [
        (eqn.name, tuple(v if isinstance(v, int) else None for v in eqn.inputs)) for eqn in program.equations
    ]


def _written_out(scene: Scene, work: Work) -> Scene | None:
    """The same with its short loops written out, if it has any."""
    loops = unroll.unrolled(scene.program)
    if loops is None or len(loops.full.equations) > MANY:
        return None
    if len(scene.values) * loops.full.elements > LARGE:
        return None
    try:
        work.pay(len(scene.values) * loops.full.cost)
        known = [trace.run(loops.full, values[: scene.program.inputs]) for values in scene.values]
    except Exception:  # no work is left, or a loop over what cannot be taken apart
        return None
    at = dict(zip(scene.program.outputs, loops.folded.outputs, strict=True))
    return dataclasses.replace(
        scene,
        program=loops.folded,
        first=loops.starts[scene.first],
        outputs={i: at[v] for i, v in scene.outputs.items()},
        values=[loops.fold(values) for values in known],
        loops=loops,
        known=known,
    )


def _scope(scene: Scene, problem: Problem, wrong: Sequence[int], work: Work) -> Scope:
    """What is edited: the formula, or of one whose loops are written out their bodies."""
    runs, loops = scene.runs, scene.loops
    live = runs.needed((*runs.outputs, *scene.used))  # what a formula computes and drops is no part of it,
    live.update(v for eqn in runs.equations if live & {*eqn.outputs} for v in eqn.outputs)  # unless by a loop
    behind = runs.needed([v for i in wrong for v in scene.wanted(i)])
    moved = runs.after(range(len(problem.arrays), runs.inputs))
    equations: Iterable[int] = range(scene.first, len(scene.program.equations))
    if loops is not None:
        live, behind, moved = map(loops.reached, (live, behind, moved))
        equations = [k for k in sorted(loops.body) if k >= scene.first]
        equations = [k for k in equations if scene.program.equations[k].primitive is not None]
    return Scope(
        scene.program,
        [x if v in live else None for v, x in enumerate(scene.values[0])],
        scene.first,
        [k for k in equations if behind & {*scene.program.equations[k].outputs}],
        moved,
        work,
        [scene.program.equations[k].outputs[0] for k in sorted(loops.carried)] if loops is not None else (),
        _ends(scene.program, loops, scene.first) if loops is not None else (),
    )


def _ends(program: trace.Program, loops: Unrolled, first: int) -> list[int]:
    """The equations of bodies whose results no other equation of a body uses."""
    used = {v for k in loops.body for v in program.equations[k].inputs if isinstance(v, int)}
    ends = [k for k in sorted(loops.body) if used.isdisjoint(program.equations[k].outputs)]
    return [k for k in ends if k >= first]


# ---- does an edit mend a gradient? ------------------------------------------------------------------------


def _mended(
    edit: Edit, scenes: Sequence[Scene], i: int, work: Work, halves: Halves | None = None
) -> list[tuple[float, Sizes]]:
    """The factors with which an edit mends a gradient in each scene; none if it does not in one.

    What it changes in the first, if it does not mend it there, is remembered in `halves`.
    """
    factors: list[tuple[float, Sizes]] = []
    for scene in scenes:
        if (c := _mends(edit, scene, i, work, halves if not factors else None)) is None:
            return []
        factors.append((c, scene.sizes))
    return factors


def _mends(edit: Edit, scene: Scene, i: int, work: Work, halves: Halves | None) -> float | None:
    """The factor c with which the edit gives the true gradient for every cotangent (1 if none is open)."""
    program, wanted, c = scene.runs, scene.wanted(i), None if edit.solved else 1.0
    work.pay(2 * CALL)
    try:
        changed = scene.changed(edit)
        cost = sum(program.costs[k] for k in program.again(changed, (*wanted, *scene.used)))
        if not cost:
            return None  # it does not reach this gradient
        scale = max(np.abs(truth[i]).max(initial=0) for truth in scene.truth)
        for n, (values, truth) in enumerate(zip(scene.known or scene.values, scene.truth, strict=True)):
            want, heard = truth[i], halves if n == 0 else None
            with np.errstate(all="ignore"):
                if c is None:
                    work.pay(2 * cost)
                    if (c := _solve(edit, changed, scene, values, i, want, heard)) is None:
                        return None
                work.pay(cost)
                now = _with(changed, c) if edit.solved else changed
                new = scene.gradient(i, values, now)
            if np.shape(new) != want.shape:
                return None
            if not np.abs(new - want).max(initial=0) <= SAME * scale:
                if heard is not None and not edit.solved:
                    heard.add(edit, new - heard.got)
                return None
    except (ValueError, IndexError, TypeError, ZeroDivisionError):  # shapes that do not fit
        return None
    return c


def _with(changed: Any, c: float | None) -> Changed:
    return {k: (lambda operands, values, f=f: f(operands, values, c)) for k, f in changed.items()}


def _solve(
    edit: Edit,
    changed: Changed,
    scene: Scene,
    values: list[Any],
    i: int,
    want: np.ndarray,
    halves: Halves | None,
) -> float | None:
    """c from two evaluations, if the gradient is linear in it."""
    none, one = (scene.gradient(i, values, _with(changed, c)) for c in (0.0, 1.0))
    if np.shape(none) != want.shape or np.shape(one) != want.shape:
        return None
    slope, missing = one - none, want - none
    if halves is not None:
        halves.add(edit, slope)
    norm = float(np.vdot(slope, slope).real)
    return float(np.vdot(slope, missing).real) / norm if math.isfinite(norm) and norm > 0 else None


# ---- in words ---------------------------------------------------------------------------------------------


def _finding(
    problem: Problem,
    scene: Scene,
    shared: Collection[tuple[str, str]],
    edit: Edit,
    i: int,
    factors: list[tuple[float, Sizes]],
) -> tuple[float, Finding] | None:
    """The edit in words; None where it needs another factor at every point, or none at all."""
    program, (c, _) = scene.program, factors[0]
    eqn = program.equations[edit.at]
    kind, effort, name = edit.kind if isinstance(edit.kind, str) else edit.kind(), edit.effort, ""
    if edit.solved:
        nothing = all(abs(c) < SAME for c, _ in factors)
        if (name := "" if nothing else name_constant(factors)) is None:
            return None
        if kind == "scale":
            if all(abs(c - 1) < SAME for c, _ in factors):
                return None
            kind = "sign" if abs(c + 1) < SAME else "extra_term" if nothing else "scale"
            effort += 1.5 if nothing else 0.0
        if not name and min(abs(c - plain) for plain in (-1, 0, 0.5, 1, 2)) > SAME:
            effort += 0.5
    if _empties_a_mask(edit, scene, c):
        return None
    if kind in _OF_A_VALUE and _only_chooses(scene, edit.at, i):
        kind = "mask"
    text = words.operands(edit.words, program, edit.at).replace("{op}", words.named(program, edit.at))
    text = text.replace("{c}", f"{c:.6g}" + (f" ({name})" if name else ""))
    for v in range(len(program)):
        if f"{{v{v}}}" in text:
            text = text.replace(f"{{v{v}}}", _value(problem, scene, v))
    if (eqn.line, eqn.text) in shared:
        text = f"for the backward pass only: {text}"
    source = trace.source(eqn.line)
    message = _MESSAGES.get(kind, "the formula is one edit away from the truth")
    message += f": `{source}`" if source and not eqn.text else ""
    also = "wrong_residual" if edit.residual and kind in ("missing_term", "extra_term") else ""
    also = edit.also or also
    if kind == "scale":  # of one term: of all of the gradient it is seen before anything is edited
        also = "missing_term" if edit.solved or _lessens(scene, edit) else "extra_term"
    return effort, Finding(problem.paths[i], kind, message, text, eqn.line, also=also)


def _lessens(scene: Scene, edit: Edit) -> bool:
    """Whether what an edit leaves out makes a term smaller, so that a part of the term is missing."""
    program, values = scene.program, scene.values[0]
    out, *_ = program.equations[edit.at].outputs
    (new,) = trace.rerun(program, values, edit.build(program), [out])
    return bool(np.abs(new).sum() > np.abs(values[out]).sum())


def _empties_a_mask(edit: Edit, scene: Scene, c: float) -> bool:
    """Whether a comparison that tells elements apart no longer does: then it is an accident that it mends."""
    program, values = scene.runs, (scene.known or scene.values)[0]
    masks = [v for v, x in enumerate(values) if getattr(x, "dtype", None) == np.bool_]
    masks = [v for v in masks if np.any(values[v]) and not np.all(values[v])]
    changed = scene.changed(edit)
    now = trace.rerun(program, values, _with(changed, c) if edit.solved else changed, masks, scene.used)
    return any(np.all(x) or not np.any(x) for x in now)


_OF_A_VALUE = ("sign", "scale", "wrong_residual", "missing_term", "extra_term")


def _only_chooses(scene: Scene, k: int, i: int) -> bool:
    """Whether the result of equation k reaches gradient i through comparisons only."""
    program, first = scene.runs, scene.program.equations[k]
    dtypes = (scene.program.avals[v].dtype for v in first.inputs if isinstance(v, int))
    if not all(np.issubdtype(dtype, np.floating) for dtype in dtypes):
        return False  # labels and indices choose, and are no masks
    places = [k] if scene.loops is None else [place for place, _ in scene.loops.places[k]]
    made = (v for place in places for v in program.equations[place].outputs)
    reached = {v for v in made if program.avals[v].dtype != bool}
    for eqn in program.equations[min(places) + 1 :]:
        if any(v in reached for v in eqn.inputs if isinstance(v, int)):
            reached.update(v for v in eqn.outputs if program.avals[v].dtype != bool)
    return reached.isdisjoint(scene.wanted(i))


_MESSAGES = {
    "sign": "a sign is wrong",
    "scale": "a factor is wrong",
    "transpose": "a transpose is missing or too many",
    "wrong_axis": "an operation runs over the wrong axis",
    "mask": "a mask is missing, added or inverted",
    "border": "what lies beyond the border is wrong",
    "missing_batch_sum": "a sum over the batch is missing",
    "flip": "a reversal is missing or too many",
    "shift": "an offset is wrong",
    "swapped": "two operands are exchanged",
    "wrong_residual": "another value is needed here",
    "ignores_cotangent": "dy is needed here",
    "missing_term": "a term or factor is missing",
    "extra_term": "a term or factor does not belong here",
}


def _shared(problem: Problem, point: Point) -> set[tuple[str, str]]:
    """What is written, and where, of all that computes the result too, and must stay as it is."""
    places: set[tuple[str, str]] = set()
    for function in (problem.y, *(lambda a, f=f: f(problem.unflatten(a)) for f in problem.values.values())):
        with contextlib.suppress(Exception):  # it need not be traceable to be right
            program, _ = trace.trace(function, list(point.arrays))
            places.update((eqn.line, eqn.text) for eqn in program.pruned().equations if eqn.primitive)
    return places


def _value(problem: Problem, scene: Scene, v: int) -> str:
    program = scene.program
    carried = {program.equations[k].outputs[0] for k in scene.loops.carried} if scene.loops else set[int]()
    while (maker := program.makers.get(v)) and maker.primitive is None and isinstance(maker.inputs[0], int):
        if v in carried:
            return "what the step before hands on"
        v = maker.inputs[0]
    if maker is None:
        names = problem.all_paths
        return names[v] if v < len(names) else "dy"
    name = words.named(program, next(k for k, eqn in enumerate(program.equations) if eqn is maker))
    number = maker.line.rpartition(":")[2]
    return name + (f" in line {number}" if number else "")
