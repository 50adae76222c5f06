"""The mended line: which rewriting of the user's source makes the gradient right?

Every text that is shown was run: a statement is rewritten at one place (`rewrites`), compiled, the formula
made anew from it (`source`), and judged at every point as the formula itself was. A function that the
forward pass runs too is left alone: mended, it would change the truth.
"""

import ast
import contextlib
import dataclasses
import functools
import itertools
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funcnet.verifier import blind, laws, trace
from funcnet.verifier.diagnosis import rewrites, source
from funcnet.verifier.diagnosis.rewrites import Place, Rewriting
from funcnet.verifier.diagnosis.work import SpentError, Work
from funcnet.verifier.finding import Finding
from funcnet.verifier.formulas.written import Formulas
from funcnet.verifier.judge import Judge
from funcnet.verifier.point import Point
from funcnet.verifier.problem import SMALL, Problem
from funcnet.verifier.wide import Wide, largest

__all__ = ["with_code"]

WRITTEN = 2e4  # element operations that writing an expression is worth
LISTING = 0.5  # of the work may go into what is then tried
ATTEMPTS = 400  # rewritings that are run for one finding
TOGETHER = 150  # and before them for all findings that are alike
UNLIKELY = 8  # characters that a rewriting may change more if its kind is that of the mistake
CLOSE = 1e-6  # of the largest element, at the first look
NOT_WRITTEN = ("zero", "structure")  # what no rewriting undoes: there is nothing to rewrite


def with_code(
    ready: Judge, points: Sequence[Point], findings: Sequence[Finding], work: Work
) -> list[Finding]:
    """The findings, each with the line that mends it where one is found, and its place.

    Args:
        ready: truth and formula.
        points: where the mended formula must be right.
        findings: one for each wrong gradient.
        work: what it may cost.
    """
    problem, found = ready.problem, list(findings)
    if problem.remade is None or not (texts := _texts(problem)):
        return found
    points = sorted(points, key=lambda p: sum(np.size(v) for v in p.arrays) > SMALL)  # the quick ones first
    of = {problem.paths.index(f.argument): n for n, f in enumerate(found) if f.argument in problem.paths}
    right, mends = [i for i in range(len(problem.moving)) if i not in of], dict[int, Mend]()
    search = functools.partial(_search, ready, points, texts, work=work)
    for i, n in of.items():
        if found[n].kind in NOT_WRITTEN or i in mends:
            continue
        if mends and _is_right(ready, points, texts, i, right):  # by what mended another one
            mends[i] = next(reversed(mends.values()))
            continue
        same = lambda m, n=n: found[m].kind == found[n].kind and found[m].suggestion == found[n].suggestion
        alike = [j for j, m in of.items() if same(m) and j not in mends and j != i]
        if alike and (mend := search(found[n], i, right, alike)) is not None:
            mends |= dict.fromkeys((i, *alike), mend)
        elif (mend := search(found[n], i, right)) is not None:
            mends[i] = mend
        right = [j for j in range(len(problem.moving)) if j not in of or j in mends]
    for i, mend in mends.items():  # with all that was mended, since two may stand in one line
        code, location = mend.shown()
        found[of[i]] = dataclasses.replace(found[of[i]], code=code, location=location)
    if mends and (given := _given(ready, texts)):
        for n in map(of.__getitem__, mends):
            found[n] = dataclasses.replace(found[n], given=given)
    return found


@dataclasses.dataclass
class Text:
    """What can be rewritten, as it stands now: a statement that holds functions, or a formula as text."""

    text: str
    parts: list["Part"]
    home: source.Source | None = None
    name: str = ""  # of the argument whose gradient a formula as text is
    names: Sequence[str] = ()  # that it may hold

    def parsed(self, text: str) -> ast.AST:
        """The tree of another text in its place."""
        return trace.parsed(text, mode="eval").body if self.home is None else self.home.parsed(text)


class Part(NamedTuple):
    """A function of a text, by its number among them."""

    number: int
    code: types.CodeType
    module: str  # how it writes jax.numpy: "jnp."


class Mend(NamedTuple):
    """The lines of a text that hold what was rewritten."""

    text: Text
    first: int
    last: int

    def shown(self) -> tuple[str, str]:
        """As they are to be written, and where they stand."""
        text, home = self.text, self.text.home
        if home is None:
            return f"{text.name} = {text.text}", ""
        before, after = home.around
        lines = f"{before}{text.text}{after}".splitlines()[self.first : self.last + 1]
        indent = len(lines[0]) - len(lines[0].lstrip())
        cut = lambda line: line[min(indent, len(line) - len(line.lstrip())) :]
        return "\n".join(map(cut, lines)), trace.near(home.file, home.line + self.first)


def _texts(problem: Problem) -> list[Text]:
    """All that the formula is written in, but for what the forward pass runs too."""
    texts: list[Text] = []
    for written in problem.written:
        if isinstance(written, Formulas):
            names = [*written.given, "dy", "y"]
            texts += [Text(text, [], None, name, names) for name, text in written.texts.items()]
    remake = source.Remake({})
    for written in problem.written:
        remake(written)
    if not remake.met:
        return texts

    def run(disabled: bool) -> None:
        with jax.enable_x64(True), jax.disable_jit(disabled):  # which compiled functions are called in
            jax.make_jaxpr(problem.y)(list(problem.arrays))

    shared = source.executed(lambda: run(True)) | source.executed(lambda: run(False))
    by_place: dict[tuple[str, int, int], Text] = {}
    for function in remake.met:
        names = [k for k, v in function.__globals__.items() if v is jnp]
        for code in source.within(function.__code__):
            if code in shared or (found := source.source_of(code)) is None:
                continue
            home, number = found
            text = by_place.setdefault((home.file, home.line, home.column), Text(home.text, [], home))
            part = Part(number, code, f"{names[0]}." if names else "jnp.")
            if all(part.number != other.number for other in text.parts):
                text.parts.append(part)
    return texts + list(by_place.values())


# ---- is it right? -----------------------------------------------------------------------------------------


def _remade(ready: Judge, texts: Sequence[Text]) -> Judge:
    """The judge of the formula as the texts now are."""
    codes: dict[types.CodeType, types.CodeType] = {}
    for text in texts:
        if text.home is not None and text.text != text.home.text:
            if (new := text.home.edited(text.text)) is None:
                raise ValueError("it no longer holds the same functions")
            codes |= new
    remake, said = source.Remake(codes), {text.name: text.text for text in texts if text.name}
    change = lambda f: f.replaced(said) if isinstance(f, Formulas) else remake(f)
    assert ready.problem.remade is not None
    formula, values = ready.problem.remade(change)
    problem = dataclasses.replace(ready.problem, formula=formula, values={"it": values} if values else {})
    run = lambda a, d: problem.gradients(a, d)
    return dataclasses.replace(ready, problem=problem, formula=Wide(run) if ready.jitted else run)


def _gradient(ready: Judge, texts: Sequence[Text], point: Point, i: int) -> np.ndarray:
    """Gradient i by the formula as the texts now are."""
    gradient = _remade(ready, texts).formula(point.arrays, point.dys[0])[i]
    return np.asarray(np.where(point.seen[i], gradient, 0))


def _is_right(
    ready: Judge, points: Sequence[Point], texts: Sequence[Text], i: int, others: Sequence[int]
) -> bool:
    """Whether gradient i is right at all the points as the texts now are, and the others stay right."""
    try:
        with np.errstate(all="ignore"):
            first, now = points[0], _remade(ready, texts)
            gradient, want = now.formula(first.arrays, first.dys[0])[i], first.truth[0][i]
            if gradient is None or np.shape(gradient) != want.shape:
                return False
            off = np.abs(np.where(first.seen[i] & ~first.jumps[i], gradient - want, 0)).max(initial=0)
            if not off <= CLOSE * largest(want):
                return False
            there = [_at(now, point) for point in points]
            states = {now.leaf(point, j).state for point in there for j in (i, *others)}
            return states <= {"right", "convention"} and not laws.of_values(now, there)
    except Exception:  # whatever a rewritten formula may raise
        return False


def _at(ready: Judge, point: Point) -> Point:
    """A point with what the formula of another judge says there."""
    hide: Any = lambda v, i: None if v is None else np.where(point.seen[i], np.asarray(v), 0)
    formula = [[hide(v, i) for i, v in enumerate(ready.formula(point.arrays, dy))] for dy in point.dys]
    return dataclasses.replace(point, formula=formula)


def _given(ready: Judge, texts: Sequence[Text]) -> str:
    """What the arguments must be for the mended formula to be right, as these are; "" if nothing."""
    with contextlib.suppress(Exception):  # whatever may be raised where it does not hold
        return ", ".join(blind.assumed(_remade(ready, texts), np.random.default_rng(7)))
    return ""


# ---- what is tried ----------------------------------------------------------------------------------------


def _search(
    ready: Judge,
    points: Sequence[Point],
    texts: Sequence[Text],
    finding: Finding,
    i: int,
    others: Sequence[int],
    alike: Sequence[int] = (),
    *,
    work: Work,
) -> Mend | None:
    """The first rewriting that makes gradient i right, and those `alike`, left in its text.

    The `others` stay right.
    """
    tried, cost = set[str](), trace.TRACED
    if isinstance(ready.formula, Wide):  # a rewritten formula is traced anew
        program, _ = ready.formula.program(points[0].arrays, points[0].dys[0])
        cost = trace.TRACED * len(program.equations) + program.cost
    with contextlib.suppress(SpentError):
        for text, rewriting in _attempts(ready, points[0], texts, finding, i, work, cost, bool(alike)):
            if len(tried) >= (TOGETHER if alike else ATTEMPTS):
                break
            old, new = text.text, rewrites.applied(text.text, rewriting, text.parsed)
            if new is None or new in tried:
                continue
            tried.add(new)
            work.pay(cost)
            text.text = new
            if _is_right(ready, points, texts, i, [*others, *alike]):
                return Mend(text, *_lines(text, *(old[:at].count("\n") for at in rewriting[:2])))
            text.text = old
    return None


def _lines(text: Text, first: int, last: int) -> tuple[int, int]:
    """The lines of the statement that holds some lines of a text: a part of one cannot be pasted."""
    if text.home is None:
        return first, last
    nodes = (
        n for n in ast.walk(text.parsed(text.text)) if isinstance(n, ast.stmt) and not hasattr(n, "body")
    )
    spans = [(n.lineno - 1, (n.end_lineno or n.lineno) - 1) for n in nodes]
    around = [(a, b) for a, b in spans if a <= first and last <= b]
    return min(around, key=lambda span: span[1] - span[0], default=(first, last))


def _attempts(
    ready: Judge,
    point: Point,
    texts: Sequence[Text],
    finding: Finding,
    i: int,
    work: Work,
    cost: float,
    together: bool,
) -> Iterator[tuple[Text, Rewriting]]:
    """The rewritings that may mend a gradient: near the fault first, and those that change the least.

    What several gradients are made of is not the line that returns one. Each is paid for when it is written,
    and so are the runs of the formula, of the given cost, that choose factors.
    """
    sizes = [*ready.problem.sizes(point.arrays, point.dys[0]).values()]
    places = list(_places(ready.problem, texts, finding, i, together))
    for near in (places,) if together else (places[:2], places[2:]):
        tried, listing = list[tuple[int, Text, Rewriting]](), work.share(LISTING)
        runs = functools.partial(listing.pay, cost)
        with contextlib.suppress(SpentError):
            for text, place in near:
                likely = rewrites.rewritings(place, finding.kind, True)
                if finding.kind in _FACTOR:
                    scaled = _scaled(ready, point, texts, text, place, i, sizes, runs)
                    likely = itertools.chain(likely, scaled)
                others = rewrites.rewritings(place, finding.kind, False)
                for effort, some in ((0, likely), (UNLIKELY, others)):
                    for one in some:
                        listing.pay(WRITTEN)
                        tried.append((effort + rewrites.size(place, one), text, one))
        yield from ((text, one) for _, text, one in sorted(tried, key=lambda t: (t[0], t[2].start)))


_FACTOR = ("scale", "sign", "missing_term", "extra_term", "statistics_constant")


def _scaled(
    ready: Judge,
    point: Point,
    texts: Sequence[Text],
    text: Text,
    place: Place,
    i: int,
    sizes: Sequence[int],
    runs: Callable[[], None],
) -> Iterator[Rewriting]:
    """Expressions times the number c for which the gradient is right, if it is linear in c.

    What each run of the formula costs is paid by `runs`.
    """
    want, old = point.truth[0][i], text.text
    with contextlib.suppress(Exception):
        runs()
        now = _gradient(ready, texts, point, i)
        for node in place.nodes:
            if isinstance(node, ast.Constant):
                continue
            runs()
            twice = Rewriting(*place.span(node), f"2 * ({place.of(node)})")
            text.text = rewrites.applied(old, twice, text.parsed) or old
            try:
                slope = _gradient(ready, texts, point, i) - now
            except Exception:  # whatever a rewritten formula may raise
                continue
            finally:
                text.text = old
            norm = float(np.vdot(slope, slope).real)
            if slope.shape != want.shape or not 0 < norm < np.inf:
                continue
            c = 1 + float(np.vdot(slope, want - now).real) / norm
            if largest(now + (c - 1) * slope - want) <= CLOSE * largest(want):
                yield from rewrites.scaled(node, place, c, sizes)


def _places(
    problem: Problem, texts: Sequence[Text], finding: Finding, i: int, together: bool
) -> Iterator[tuple[Text, Place]]:
    """The statements of the formula, the one at fault first, then what returns gradient i.

    If `together`, those that return nothing.
    """
    path = [p for p, v in jax.tree.leaves_with_path(problem.args) if hasattr(v, "dtype")][problem.moving[i]]
    forward = {getattr(vars(rule).get("fwd"), "__code__", None) for rule in problem.rules}
    at_fault: list[tuple[Text, Place]] = []
    returned: list[tuple[Text, Place]] = []
    rest: list[tuple[Text, Place]] = []
    for text in texts:
        tree = text.parsed(text.text)
        if text.home is None:
            if text.name == problem.paths[i]:
                yield text, _place(text, [tree], text.names, "")
            continue
        here = finding.location.startswith(trace.near(text.home.file, 0)[:-1])
        line = int(finding.location.rpartition(":")[2]) - text.home.line + 1 if here else 0
        for part in text.parts:
            node = source.functions(tree)[part.number]
            body = _statements(node)
            for statement in reversed(body):
                place = text, _of(text, part, node, [statement])
                if not together or not isinstance(statement, ast.Return):
                    covers = statement.lineno <= line <= (statement.end_lineno or 0)
                    (at_fault if covers and part.code not in forward else rest).append(place)
            if not together and (nodes := _returned(body, path, len(problem.args))):
                returned.append((text, _of(text, part, node, nodes)))
    yield from (*at_fault, *returned, *rest)


def _of(text: Text, part: Part, node: Any, roots: Sequence[ast.AST]) -> Place:
    names = rewrites.atoms(node, text.text, roots[0].lineno)  # pyright: ignore[reportAttributeAccessIssue]
    return _place(text, roots, [*names, *part.code.co_freevars], part.module)


def _place(text: Text, roots: Sequence[ast.AST], names: Sequence[str], module: str) -> Place:
    functions = {id(n.func) for root in roots for n in ast.walk(root) if isinstance(n, ast.Call)}
    nodes = [
        node
        for root in roots
        for node in ast.walk(root)
        if isinstance(node, ast.expr) and id(node) not in functions and not _is_stored(node)
    ]
    return Place(text.text, nodes, list(dict.fromkeys(names)), module)


def _is_stored(node: ast.expr) -> bool:
    return not isinstance(getattr(node, "ctx", ast.Load()), ast.Load)


def _statements(node: Any) -> list[Any]:
    """The simple statements of a function, not those of functions in it; of a lambda its body."""
    if isinstance(node, ast.Lambda):
        return [node.body]
    found, left = list[Any](), list(node.body)
    while left:
        statement = left.pop(0)
        if isinstance(statement, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Return | ast.Expr):
            found.append(statement)
        elif not isinstance(statement, ast.FunctionDef | ast.ClassDef):
            left[:0] = [s for s in ast.iter_child_nodes(statement) if isinstance(s, ast.stmt)]
    return found


def _returned(body: Sequence[Any], path: Any, count: int) -> list[ast.expr]:
    """The expressions whose value a function returns for one gradient: its part of a tuple or a dict."""
    last = next((s for s in reversed(body) if isinstance(s, ast.Return | ast.expr)), None)
    node = last.value if isinstance(last, ast.Return) else last
    if isinstance(node, ast.Tuple | ast.List) and len(node.elts) == count:
        node = node.elts[path[0].idx]
    for key in path[1:]:
        if isinstance(node, ast.Dict):
            keys = [getattr(k, "value", None) for k in node.keys]
            key = getattr(key, "key", None)
            node = node.values[keys.index(key)] if key in keys else node
    if not isinstance(node, ast.expr):
        return []
    if isinstance(node, ast.Name):
        made = [
            s.value
            for s in body
            if isinstance(s, ast.Assign) and any(getattr(t, "id", "") == node.id for t in s.targets)
        ]
        return [node, *made]
    return [node]
