"""The slips that people make in a formula, each as the edit of its program that undoes it.

A program is a list of equations (`trace.Program`): the forward pass, then the formula. An edit replaces what
some of the formula's equations compute: an operand transposed or exchanged for another value in scope, a sum
over another axis, an operation left out, a factor put in. `edits` tries them.

A family of edits is a generator of a `Scope`, listed in `FAMILIES` with the effort of its first. It yields in
rising effort, since all families are merged by effort as they are drawn, and lists nothing: who would try
subsets, or all pairs of values, draws them lazily, the likeliest first. What it looks at without yielding
it, it pays for (`scope.work.pay()`); `scope.candidates` does.
"""

import dataclasses
import functools
import heapq
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from funcnet.verifier import trace
from funcnet.verifier.diagnosis.arrays import at_border, is_mask
from funcnet.verifier.diagnosis.work import Work

__all__ = ["Changed", "Edit", "Scope", "Term", "added", "is_float", "slips", "whole"]

AXES = 255  # sets of axes that are tried in place of one set: all that 8 axes have
USES = 12  # of a value; of more, only one, all, and a first or last part are exchanged for another
MADE = 2**24  # elements of all functions of values
Changed = Mapping[int, Callable[..., Sequence[Any]]]
Known = Sequence[Any]  # all values of the program


class Edit(NamedTuple):
    """A change of some equations: `build` makes it for the program traced at any sizes.

    Attributes:
        kind: of the mistake that it undoes, or what says so, at some cost.
        words: what to do: {op} stands for the equation at `at`, {v3} for value 3, {c} for the factor.
        at: the equation whose line is reported.
        build: what computes the changed equations' outputs instead.
        effort: how far-fetched it is: 1 a slip of the pen.
        solved: whether `build` leaves a factor c open, to be solved for.
        residual: whether what it replaces does not follow dy, but is kept from the forward pass.
        also: a kind that is as true.
    """

    kind: str | Callable[[], str]
    words: str
    at: int
    build: Callable[[trace.Program], Changed]
    effort: float = 1.0
    solved: bool = False
    residual: bool = False
    also: str = ""


@dataclasses.dataclass(frozen=True)
class Scope:
    """What the slips are looked for in.

    Attributes:
        program: forward pass and formula.
        values: what each of its values is, at one point; None where it is not used.
        first: the formula's first equation.
        behind: the formula's equations that the wrong gradients need.
        moved: the values that depend on dy.
        work: what may be spent on looking for candidates.
        carried: what the step before hands on, in the body of a loop.
        ends: the equations of that body that give what a step gives.
    """

    program: trace.Program
    values: Sequence[Any]
    first: int
    behind: Sequence[int]
    moved: set[int]
    work: Work
    carried: Sequence[int] = ()
    ends: Sequence[int] = ()

    def of(self, v: Any) -> Any:
        """The value of an equation's input: of the program, or a constant."""
        return self.values[v] if isinstance(v, int) else v

    @functools.cached_property
    def floats(self) -> list[int]:
        """Those `behind` whose result is floating."""
        return [k for k in self.behind if is_float(self.values[self.program.equations[k].outputs[0]])]

    @functools.cached_property
    def uses(self) -> dict[int, list[tuple[int, int]]]:
        """Where the formula uses each value: equation and operand."""
        uses: dict[int, list[tuple[int, int]]] = {}
        for k in self.behind:
            for j, v in enumerate(self.program.equations[k].inputs):
                if isinstance(v, int):
                    uses.setdefault(v, []).append((k, j))
        return uses

    @functools.cached_property
    def terms(self) -> list[tuple["Term", np.ndarray]]:
        """The values, and functions of those that do not follow dy; each once if several are equal."""
        plain = [Term(v, "") for v, x in enumerate(self.values) if isinstance(x, np.ndarray | np.generic)]
        of = [t.value for t in plain if t.value not in self.moved and np.ndim(self.values[t.value])]
        made = (Term(v, name) for v in of for name in _functions_of(self.values[v]))
        seen, out, room = set[Any](), [], MADE
        for term in itertools.chain(plain, made):
            size = np.size(self.values[term.value])
            room -= size if term.function else 0
            if room < 0:
                break
            self.work.pay(trace.CALL + 4 * size)
            x = np.asarray(term(self.values))
            mark = (x.shape, str(x.dtype), hash(x.tobytes()))
            if mark not in seen and (not term.function or np.isfinite(x).all()):
                seen.add(mark)
                out.append((term, x))
        return out

    def equal(self, x: Any) -> list[int]:
        """The values that are equal to an array."""
        return [v for v, other in enumerate(self.values) if other is not None and np.array_equal(other, x)]

    def follows(self, v: Any) -> bool:
        """Whether an equation's input depends on dy."""
        return isinstance(v, int) and v in self.moved

    def is_forward(self, x: Any) -> bool:
        """Whether an array is a value of the forward pass."""
        forward = self.program.equations[self.first].outputs[0]
        return any(v < forward for v in self.equal(x))

    def is_result(self, x: Any) -> bool:
        """Whether an array is the result of the forward pass."""
        still = (self.values[v] for v in self.program.outputs if v not in self.moved)
        return any(y is not None and np.array_equal(x, y) for y in still)

    def is_term(self, x: Any) -> bool:
        """Whether an array is one of the terms of its size, but for rounding."""
        if not np.isfinite(x).all():
            return False
        x = _collapsed(x)
        same = lambda t: t.shape == x.shape and np.allclose(t, x, rtol=1e-9, atol=1e-12)
        return any(same(np.squeeze(t)) for _, t in self.terms if t.size == x.size and is_float(t))

    def candidates(
        self, wanted: Callable[[Any], bool], before: int, made: bool | None = None
    ) -> Iterator[tuple["Term", np.ndarray]]:
        """The terms of the right kind that are known before a value, each with what it is.

        Args:
            wanted: of what they are.
            before: the value.
            made: functions of values only; False: values only; None: both.
        """
        for term, x in self.terms:
            self.work.pay()
            if term.value < before and made in (None, bool(term.function)) and wanted(x):
                yield term, x


def _collapsed(x: np.ndarray) -> np.ndarray:
    """An array without the axes along which it is constant."""
    for axis in range(x.ndim):
        first = np.take(x, [0], axis)
        if x.shape[axis] > 1 and np.allclose(x, first, rtol=1e-9, atol=1e-12):
            x = first
    return np.squeeze(x)


class Term(NamedTuple):
    """A value of the program, or a function of one."""

    value: int
    function: str

    @np.errstate(all="ignore")
    def __call__(self, known: Known) -> Any:
        """What it is among all values."""
        x = known[self.value]
        return DERIVED[self.function](x) if self.function else x

    @property
    def words(self) -> str:
        """With a placeholder for the value."""
        return (self.function or "{}").replace("{}", f"{{v{self.value}}}")


def _softmax(x: Any, axis: int = -1) -> Any:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def _same(x: Any, y: Any) -> bool:
    return np.shape(x) == np.shape(y) and np.allclose(x, y, rtol=1e-9, atol=1e-12)


DERIVED: dict[str, Callable[[Any], Any]] = {
    "exp({})": np.exp, "log({})": np.log, "sqrt({})": np.sqrt, "square({})": np.square,
    "1 / ({})": lambda x: 1 / x, "tanh({})": np.tanh, "logistic({})": trace.NUMPY["logistic"],
    "softmax({})": _softmax, "1 - ({})": lambda x: 1 - x, "1 - square({})": lambda x: 1 - x * x,
    "sin({})": np.sin, "cos({})": np.cos, "sign({})": np.sign, "({} > 0)": lambda x: (x > 0).astype(x.dtype),
}  # fmt: skip
INVERSE = "argsort({})"  # of a permutation
DERIVED[INVERSE] = lambda x: np.argsort(x, -1).astype(x.dtype)


def _functions_of(x: Any) -> Iterable[str]:
    """The functions of a value that may be needed in its place."""
    if is_float(x):
        return (name for name in DERIVED if name != INVERSE) if x.size else ()
    orders = x.dtype.kind == "i" and x.size and (np.sort(x, -1) == np.arange(x.shape[-1])).all()
    return (INVERSE,) if orders else ()


def slips(scope: Scope, most: float = math.inf) -> list[tuple[float, Iterator[Edit]]]:
    """All edits, by family, the likeliest family first; with the effort that each begins with.

    Args:
        scope: where they are looked for.
        most: families that begin with more are left out.
    """
    return [(effort, family(scope)) for effort, family in FAMILIES if effort <= most]


# ---- how an equation is changed ---------------------------------------------------------------------------


def _result(k: int, change: Callable[..., Any]) -> Callable[[trace.Program], Changed]:
    """Change the output of equation k: `change` sees it, all values, and the factor if one is solved for."""

    def build(program: trace.Program) -> Changed:
        eqn = program.equations[k]
        return {k: lambda operands, known, *c: [change(trace.apply(eqn, operands)[0], known, *c)]}

    return build


def _operands(
    places: Sequence[tuple[int, int]], change: Callable[[Any, Known], Any]
) -> Callable[[trace.Program], Changed]:
    """Change operands, each given as (equation, its number): `change` sees the operand and all values."""
    return _each_operand(dict.fromkeys(places, change))


def _each_operand(
    changes: Mapping[tuple[int, int], Callable[[Any, Known], Any]],
) -> Callable[[trace.Program], Changed]:
    """Change operands, each in its own way."""

    def build(program: trace.Program) -> Changed:
        def run(k: int, operands: Sequence[Any], known: Known) -> Sequence[Any]:
            new = [changes[k, j](x, known) if (k, j) in changes else x for j, x in enumerate(operands)]
            return trace.apply(program.equations[k], new)

        return {k: functools.partial(run, k) for k, _ in changes}

    return build


def _params(k: int, new: Mapping[str, Any]) -> Callable[[trace.Program], Changed]:
    def build(program: trace.Program) -> Changed:
        eqn = program.equations[k]
        other = eqn._replace(params={**eqn.params, **new})
        return {k: lambda operands, known: trace.apply(other, operands)}

    return build


def _instead(k: int, change: Callable[[Sequence[Any]], Any]) -> Callable[[trace.Program], Changed]:
    """Another function of the same operands."""
    return lambda program: {k: lambda operands, known: [change(operands)]}


# ---- signs, axes, transposes, what is left out ------------------------------------------------------------


def _signs(scope: Scope) -> Iterator[Edit]:
    for k in scope.floats:
        yield Edit("sign", "negate the result of {op}", k, _result(k, lambda x, _: -x))


def _conjugates(scope: Scope) -> Iterator[Edit]:
    """The imaginary part of a value has the other sign."""
    conjugate = lambda x, *_: np.conj(x)
    for k in scope.behind:
        eqn = scope.program.equations[k]
        if np.iscomplexobj(scope.values[eqn.outputs[0]]):
            yield Edit("sign", "conjugate the result of {op}", k, _result(k, conjugate))
        for j, v in enumerate(eqn.inputs):
            if np.iscomplexobj(scope.of(v)):
                yield Edit("sign", f"conjugate operand {j} of {{op}}", k, _operands([(k, j)], conjugate))


def _transposes(scope: Scope) -> Iterator[Edit]:
    for k in scope.behind:
        eqn = scope.program.equations[k]
        for j, v in enumerate(eqn.inputs):
            if eqn.name.startswith(("reduce", "broadcast")):
                continue  # that is another axis
            for a, b in _square_axes(np.shape(scope.of(v))):
                kind = "mask" if scope.of(v).dtype == bool else "transpose"
                yield Edit(kind, f"transpose operand {j} of {{op}}", k, _operands([(k, j)], _swapping(a, b)))
        for a, b in _square_axes(scope.program.avals[eqn.outputs[0]].shape):
            yield Edit("transpose", "transpose the result of {op}", k, _result(k, _swapping(a, b)))
    for v, places in scope.uses.items():
        for a, b in _square_axes(np.shape(scope.values[v])) if len(places) > 1 else ():
            yield Edit("transpose", f"transpose {{v{v}}}", places[0][0], _operands(places, _swapping(a, b)))


def _swapping(a: int, b: int) -> Callable[[Any, Known], Any]:
    return lambda x, _: np.swapaxes(x, a, b)


def _square_axes(shape: Sequence[int]) -> list[tuple[int, int]]:
    pairs = itertools.combinations(range(len(shape)), 2) if len(shape) <= 4 else ()
    return [(a, b) for a, b in pairs if shape[a] == shape[b] > 1]


def _axes(scope: Scope) -> Iterator[Edit]:
    """A reduction over other axes: of one equation; then of all that follow dy, or of all that do not."""
    program, groups = scope.program, dict[Any, list[int]]()
    for k in scope.behind:
        eqn = program.equations[k]
        if "axes" in eqn.params and isinstance(eqn.inputs[0], int):
            old, ndim = tuple(sorted(eqn.params["axes"])), len(program.avals[eqn.inputs[0]].shape)
            for group in (k, "all", eqn.inputs[0] in scope.moved):
                groups.setdefault((old, ndim, str(group)), []).append(k)
    alone = {key: many for key, many in groups.items() if key[2].isdigit()}
    together = {key: many for key, many in groups.items() if not key[2].isdigit() and len(many) > 1}
    yield from _reduced(alone, "run {op}", 1.0)
    for k in scope.behind:
        eqn = program.equations[k]
        if not isinstance(eqn.inputs[0] if eqn.inputs else None, int):
            continue
        if eqn.name == "scan":
            turned = _params(k, {"reverse": not eqn.params["reverse"]})
            yield Edit("flip", "run {op} from the other end", k, turned)
        if eqn.name in ("cumsum", "cumprod", "cummax"):
            for axis in range(len(program.avals[eqn.inputs[0]].shape)):
                if axis != eqn.params["axis"]:
                    words = f"run {{op}} over axis {axis}"
                    yield Edit("wrong_axis", words, k, _params(k, {"axis": axis}))
            turned = _params(k, {"reverse": not eqn.params["reverse"]})
            yield Edit("flip", "run {op} from the other end", k, turned)
        if eqn.name == "broadcast_in_dim" and eqn.params["broadcast_dimensions"]:
            ndim, old = len(eqn.params["shape"]), tuple(eqn.params["broadcast_dimensions"])
            for axes in itertools.islice(itertools.combinations(range(ndim), len(old)), AXES):
                if axes != old:
                    words = f"let {{op}} repeat along other axes: {_plain(axes)} stay"
                    yield Edit("wrong_axis", words, k, _params(k, {"broadcast_dimensions": axes}))
    yield from _reduced(together, "take all sums and means", 1.2)


def _reduced(groups: Mapping[Any, list[int]], what: str, effort: float) -> Iterator[Edit]:
    """Reductions over other axes, each group by its old axes and the number of all."""
    for (old, ndim, _), many in groups.items():
        for axes in _other_axes(old, ndim):
            for mean, keep in itertools.product((False, True), repeat=2):
                build = _over(tuple(many), axes, ndim, mean, keep)
                yield Edit("wrong_axis", f"{what} over axis {_plain(axes)}", many[0], build, effort)


def _other_axes(old: Sequence[int], ndim: int) -> Iterator[tuple[int, ...]]:
    """Other sets of axes, those that differ by few axes first."""
    differ = (set(c) for n in range(1, ndim + 1) for c in itertools.combinations(range(ndim), n))
    others = (tuple(sorted(by.symmetric_difference(old))) for by in differ)
    return itertools.islice(filter(None, others), AXES)


def _over(
    many: Sequence[int], axes: tuple[int, ...], ndim: int, mean: bool, keep: bool
) -> Callable[[trace.Program], Changed]:
    """Reductions over other axes, put back with size 1 where they were, or at once if they are to be kept.

    The divisor of a mean changes too.
    """

    def build(program: trace.Program) -> Changed:
        changed: dict[int, Any] = {}
        for k in many:
            eqn = program.equations[k]
            shape = program.avals[eqn.inputs[0]].shape
            count = lambda some, shape=shape: math.prod(shape[a] for a in some)
            by = count(eqn.params["axes"]) / count(axes) if mean else 1.0
            other = eqn._replace(params={**eqn.params, "axes": axes})

            def run(operands: Any, _: Known, other: Any = other, by: float = by) -> Any:
                reduced = trace.apply(other, operands)[0]
                reduced = np.expand_dims(reduced, axes) if keep else reduced
                return [reduced * by if by != 1.0 else reduced]

            changed[k] = run
            results = {eqn.outputs[0]}
            for e, user in enumerate(program.equations) if not keep else ():
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


_LEFT_OUT = {"neg": "sign", "select_n": "mask", "transpose": "transpose", "rev": "flip", "scatter": "mask"}


def _left_out(scope: Scope) -> Iterator[Edit]:
    for k in scope.floats:
        eqn = scope.program.equations[k]
        if eqn.primitive is None or eqn.name == "integer_pow":
            continue  # of powers, see below
        shape = scope.program.avals[eqn.outputs[0]].shape
        for j, v in enumerate(eqn.inputs):
            x = scope.of(v)
            if not isinstance(v, int) or not is_float(x) or np.ndim(x) != len(shape) or not np.any(x):
                continue  # to keep only zeros is to leave out a term
            if not _broadcasts(np.shape(x), shape):
                continue
            kind = functools.partial(_superfluous, scope, eqn, j)
            words = f"leave out {{op}}, and keep its operand {j}" if len(eqn.inputs) > 1 else "leave out {op}"
            for sign in (1, -1) if eqn.name == "sub" and j == 1 else (1,):
                keep = lambda p, k=k, j=j, sign=sign: {
                    k: lambda operands, _, s=p.avals[p.equations[k].outputs[0]].shape: [
                        np.broadcast_to(sign * operands[j], s)
                    ]
                }
                yield Edit(kind, words, k, keep)


def _superfluous(scope: Scope, eqn: trace.Equation, j: int) -> str:
    """What the mistake is if an operation is to be left out, and its operand j kept."""
    v, result = eqn.inputs[j], scope.values[eqn.outputs[0]]
    others = [scope.of(u) for i, u in enumerate(eqn.inputs) if i != j]
    forward = not scope.follows(v) and scope.is_forward(result)
    if eqn.name in ("mul", "div") and all(np.size(o) == 1 or (o == o.flat[0]).all() for o in others):
        nothing = eqn.name == "mul" and not any(map(np.any, others))
        return "missing_term" if nothing else "scale"
    if all(map(is_mask, others if eqn.name == "mul" else [result, scope.of(v)])):
        return "mask"
    if eqn.name in _LEFT_OUT and not (forward and eqn.name == "select_n"):
        return _LEFT_OUT[eqn.name]
    if forward or (not scope.follows(v) and len(eqn.inputs) == 1):
        return "wrong_residual"  # a value of the forward pass is used where another is needed
    return "extra_term"


def _broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    return all(a == b or 1 in (a, b) for a, b in zip(reversed(shape), reversed(to), strict=False))


# ---- what is turned, shifted, cut -------------------------------------------------------------------------

_TURNED = ("add", "conv_general_dilated", "copy", "dot_general", "gather", "mul", "pad", "slice", "transpose")


def _turned(scope: Scope) -> Iterator[Edit]:
    """A value reversed or shifted: at one use, or at all of them."""
    places = [
        ([(k, j)], v, f"operand {j} of {{op}}")
        for k in scope.behind
        if scope.program.equations[k].name in _TURNED
        for j, v in enumerate(scope.program.equations[k].inputs)
    ]
    places += [(at, v, f"{{v{v}}}") for v, at in scope.uses.items() if len(at) > 1]
    for at, v, what in places:
        x = scope.of(v)
        axes = [a for a in range(np.ndim(x)) if np.shape(x)[a] > 1]
        if not is_float(x):
            continue
        for some in (c for n in (1, 2, 3) for c in itertools.combinations(axes, n)):
            turn = lambda x, _, some=some: np.flip(x, some)
            yield Edit("flip", f"reverse {what} along axis {_plain(some)}", at[0][0], _operands(at, turn))
        for axis, by in itertools.product(axes, (1, -1)) if len(at) == 1 else ():
            roll = lambda x, _, axis=axis, by=by: np.roll(x, by, axis)
            words = f"shift {what} by {by} along axis {axis}"
            yield Edit("shift", words, at[0][0], _operands(at, roll))


def _cut(scope: Scope) -> Iterator[Edit]:
    """Paddings and slices that begin elsewhere."""
    for k in scope.behind:
        eqn = scope.program.equations[k]
        if eqn.name == "pad" and len(eqn.inputs) == 2:
            config = eqn.params["padding_config"]
            for axis, by in itertools.product(range(len(config)), (1, -1, 2, -2)):
                low, high, inner = config[axis]
                new = (*config[:axis], (low + by, high - by, inner), *config[axis + 1 :])
                words = f"pad {by} more before axis {axis} in {{op}}"
                yield Edit("shift", words, k, _params(k, {"padding_config": new}))
        if eqn.name == "slice":
            start, limit = eqn.params["start_indices"], eqn.params["limit_indices"]
            for axis, by in itertools.product(range(len(start)), (1, -1, 2, -2)):
                low, high = start[axis] + by, limit[axis] + by
                if low >= 0 and high <= scope.program.avals[eqn.inputs[0]].shape[axis]:
                    new = {
                        "start_indices": (*start[:axis], low, *start[axis + 1 :]),
                        "limit_indices": (*limit[:axis], high, *limit[axis + 1 :]),
                    }
                    yield Edit("shift", f"start {by} later along axis {axis} in {{op}}", k, _params(k, new))


# ---- another operation ------------------------------------------------------------------------------------

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
    "exp": [("log", "wrong_residual")],
    "tanh": [("logistic", "wrong_residual")],
    "logistic": [("tanh", "wrong_residual")],
}
_ORDERED = ("concatenate", "sub", "div", "dot_general", "pow", "select_n")  # operands that can be exchanged


def _exchanged(scope: Scope) -> Iterator[Edit]:
    """Operands exchanged."""
    for k in scope.behind:
        eqn = scope.program.equations[k]
        order = (0, 2, 1) if eqn.name == "select_n" else (1, 0)
        if eqn.name in _ORDERED and len(eqn.inputs) == len(order):
            kind = {"select_n": "mask", "sub": "sign"}.get(eqn.name, "swapped")
            turned = lambda p, k=k, order=order: {
                k: lambda operands, _, e=p.equations[k]: trace.apply(e, [operands[i] for i in order])
            }
            yield Edit(kind, "exchange the operands of {op}", k, turned)


def _replaced(scope: Scope) -> Iterator[Edit]:
    """Another operation, or another number in a sum."""
    for k in scope.behind:
        eqn = scope.program.equations[k]
        for name, kind in _SWAPS.get(eqn.name, ()):
            instead = _instead(k, lambda operands, f=trace.NUMPY[name]: f(*operands))
            yield Edit(kind, f"{name} instead of {{op}}", k, instead, 1.5)
        if eqn.name in ("add", "sub") and any(not isinstance(v, int) for v in eqn.inputs):
            j = next(j for j, v in enumerate(eqn.inputs) if not isinstance(v, int))
            old = np.asarray(eqn.inputs[j])
            for value in (0.0, 1.0, 2.0, -1.0, 0.5):
                if old.ndim == 0 and float(old) != value == old.dtype.type(value):
                    change = lambda x, _, value=value: np.full(np.shape(x), value, np.asarray(x).dtype)
                    words = f"{value:g} as operand {j} of {{op}}"
                    kind = "extra_term" if is_float(old) else "shift"
                    yield Edit(kind, words, k, _operands([(k, j)], change), 1.5)


_CURVED = ("exp", "logistic", "pow", "rsqrt", "sqrt", "square", "tanh")


def _powers(scope: Scope) -> Iterator[Edit]:
    """Another power: a factor too many or too few; of a value, or of one of its uses."""
    for k in scope.behind:
        eqn = scope.program.equations[k]
        if eqn.name == "integer_pow":
            old = eqn.params["y"]
            for new in sorted({1, 2, 3, -1, -2, -3, old + 1, old - 1} - {old, 0}):
                kind = _power(old, new)
                words, other = f"the power {new} instead of that of {{op}}", _params(k, {"y": new})
                yield Edit(kind, words, k, other, 1.2, residual=eqn.outputs[0] not in scope.moved)
    for k in scope.behind:
        eqn = scope.program.equations[k]
        if eqn.name in _CURVED:
            for new in (2, 3, -1):
                raised = _result(k, lambda x, _, new=new: x ** float(new))
                words, still = f"the power {new} of the result of {{op}}", eqn.outputs[0] not in scope.moved
                yield Edit(_power(1, new), words, k, raised, 1.5, residual=still)
    for v, places in scope.uses.items():
        maker = scope.program.makers.get(v)
        if v in scope.moved or len(places) < 2 or maker is None or maker.name not in _CURVED:
            continue
        for (k, j), new in itertools.product(places, (2, 3, -1)):
            raised = _operands([(k, j)], lambda x, _, new=new: x ** float(new))
            yield Edit(
                _power(1, new), f"the power {new} of operand {j} of {{op}}", k, raised, 1.6, residual=True
            )


def _power(old: int, new: int) -> str:
    if old * new < 0:
        return "wrong_residual"
    return "missing_term" if abs(new) > abs(old) else "extra_term"


def whole(program: trace.Program, v: int) -> Edit:
    """A value that is a result, times a factor."""
    k = next(k for k, eqn in enumerate(program.equations) if v in eqn.outputs)
    return Edit("scale", "multiply {op} by {c}", k, _result(k, lambda x, _, c: c * x), solved=True)


def _scaled(scope: Scope) -> Iterator[Edit]:
    times = lambda x, _, c: c * x
    for k in scope.floats:
        yield Edit("scale", "multiply the result of {op} by {c}", k, _result(k, times), solved=True)
    sums = [k for k in scope.floats if scope.program.equations[k].name == "reduce_sum"]
    sums = [k for k in sums if scope.program.equations[k].outputs[0] in scope.moved]
    if len(sums) > 1:
        build = lambda p: {at: f for k in sums for at, f in _result(k, times)(p).items()}
        yield Edit("scale", "multiply all sums by {c}", sums[0], build, 1.2, solved=True)


# ---- another value ----------------------------------------------------------------------------------------


def _for_numbers(scope: Scope) -> Iterator[Edit]:
    """A value in place of a number, as the count of a window at the border."""
    for k in scope.floats:
        eqn = scope.program.equations[k]
        shape = scope.program.avals[eqn.outputs[0]].shape
        fits = lambda x, shape=shape: is_float(x) and 0 < x.ndim <= len(shape) and _broadcasts(x.shape, shape)
        for j, v in enumerate(eqn.inputs if eqn.name in ("mul", "div", "sub", "add") else ()):
            old = scope.program.fixed(v)
            if old is None or np.size(old) != 1:
                continue
            for term, new in scope.candidates(fits, eqn.outputs[0], made=False):
                if term.value not in scope.moved and new.size > 1:
                    kind = "border" if at_border(np.abs(new - old)) else "wrong_residual"
                    put = _operands([(k, j)], lambda _, known, term=term: term(known))
                    yield Edit(kind, f"{term.words} as operand {j} of {{op}}", k, put, 2.0, residual=True)


def _swapped(scope: Scope) -> Iterator[Edit]:
    """Two values of the forward pass exchanged in all their uses."""
    still = [v for v in scope.uses if v not in scope.moved]
    for a, b in itertools.combinations(still, 2):
        scope.work.pay()
        x, y = scope.values[a], scope.values[b]
        if is_float(x) and np.ndim(x) and _fits(x)(np.asarray(y)) and not np.array_equal(x, y):
            takes = {v: lambda _, known, u=u: known[u] for v, u in ((a, b), (b, a))}
            build = _each_operand({place: takes[v] for v in (a, b) for place in scope.uses[v]})
            yield Edit("swapped", f"exchange {{v{a}}} and {{v{b}}}", scope.uses[a][0][0], build, 1.9)


def _others(scope: Scope) -> Iterator[Edit]:
    """Another value in place of an operand, or of several uses of a value; then functions of values."""
    return heapq.merge(
        _other_operands(scope, False),
        _other_uses(scope),
        _other_operands(scope, True),
        key=lambda edit: edit.effort,
    )


def _other_operands(scope: Scope, made: bool) -> Iterator[Edit]:
    program, moved = scope.program, scope.moved
    for k in scope.behind:
        eqn = program.equations[k]
        if eqn.primitive is None:
            continue  # a gradient is no substitute for another
        for j, v in enumerate(eqn.inputs):
            old = scope.of(v)
            if not hasattr(old, "dtype") or np.ndim(old) == 0:
                continue
            for term, new in scope.candidates(_fits(old), min(eqn.outputs), made):
                if np.array_equal(new, old) or (scope.follows(v) and term.value not in moved):
                    continue  # the last would no longer follow dy
                kind = functools.partial(_relation, scope, v, term)
                put = _operands([(k, j)], lambda _, known, term=term: term(known))
                words, effort = f"{term.words} as operand {j} of {{op}}", 2.5 if made else 2.0
                yield Edit(kind, words, k, put, effort, residual=not scope.follows(v))


def _other_uses(scope: Scope) -> Iterator[Edit]:
    values, moved = scope.values, scope.moved
    for v, places in scope.uses.items():
        if len(places) < 2 or not hasattr(values[v], "dtype") or np.ndim(values[v]) == 0:
            continue
        for at in _some(places):
            before = scope.program.equations[at[0][0]].outputs[0]
            for term, new in scope.candidates(_fits(values[v]), before):
                if np.array_equal(new, values[v]) or (v in moved) != (term.value in moved):
                    continue
                put = _operands(at, lambda _, known, term=term: term(known))
                words = f"{term.words} instead of {{v{v}}}"
                kind = functools.partial(_relation, scope, v, term)
                yield Edit(kind, words, at[0][0], put, 2.2, residual=v not in moved)


def _some(places: list[Any]) -> Iterator[tuple[Any, ...]]:
    """Subsets of more than one place, the likeliest first: of many places few of all there are."""
    n = len(places)
    sets: list[Iterable[Any]] = [
        iter([places]),
        (places[:i] + places[i + 1 :] for i in range(n)),
        (part for i in range(2, n - 1) for part in (places[:i], places[i:])),
        itertools.combinations(places if n <= USES else (), 2),
    ]
    seen = set[Any]()
    for at in map(tuple, itertools.chain.from_iterable(sets)):
        if len(at) > 1 and at not in seen:
            seen.add(at)
            yield at


def _fits(old: Any) -> Callable[[Any], bool]:
    return lambda x: x.shape == np.shape(old) and x.dtype == old.dtype


def _relation(scope: Scope, v: Any, term: Term) -> str:
    """What the mistake is if a term is needed for v: it may be v masked, reversed, transposed."""
    old, new, program = scope.of(v), term(scope.values), scope.program
    if term.value in scope.moved and not scope.follows(v):
        return "ignores_cotangent"
    if new.dtype == bool or (is_mask(old) and is_mask(new)):
        return "mask"
    if not is_float(new):
        by = new - old
        return "shift" if by.size and by.flat[0] and (by == by.flat[0]).all() else "wrong_residual"
    if np.array_equal(new, -old):
        return "sign"
    axes = [c for n in (1, 2) for c in itertools.combinations(range(old.ndim), n)]
    if any(np.array_equal(new, np.flip(old, a)) for a in axes):
        return "flip"
    if old.ndim == 2 and np.array_equal(new, old.T):
        return "transpose"
    if at_border(np.abs(new - old)):
        return "border"
    maker = program.makers.get(term.value)
    if maker is not None and any(np.array_equal(x, old) for x in map(scope.of, maker.inputs)):
        masks = any(np.asarray(x).dtype == bool for x in map(scope.of, maker.inputs))
        if maker.name in ("max", "min") or (maker.name in ("select_n", "mul") and masks):
            return "mask"
        if maker.name in ("add", "sub"):
            return "missing_term"
    if scope.follows(v) and term.value in program.after(scope.equal(old)):
        return "missing_term"  # a step of the chain was left out
    if scope.follows(v) and term.value in scope.moved and v in program.after([term.value]):
        return "extra_term"  # a step too many
    along = range(old.ndim) if term.function == "softmax({})" else ()
    if any(_same(old, _softmax(scope.values[term.value], axis)) for axis in along):
        return "wrong_axis"
    with np.errstate(all="ignore"):
        if np.isfinite(new / old).all() and not _collapsed(new / old).ndim:
            return "wrong_residual"
        if scope.is_term(new / old) or scope.is_term(new - old) or not _collapsed(new - old).ndim:
            return "missing_term"
        if scope.is_term(old / new) and not _multiplies(scope, _collapsed(old / new)):
            return "missing_term"  # a divisor
        if not scope.is_forward(old) and (scope.is_term(old / new) or scope.is_term(old - new)):
            return "extra_term"
    return "wrong_residual"


def _factors(scope: Scope) -> Iterator[Edit]:
    """A factor put in, then a divisor, or a function of a value.

    At a result, at one use of a value that has several, at all uses of dy.
    """
    program, values, moved = scope.program, scope.values, scope.moved
    first = program.equations[scope.behind[0]].outputs[0] if scope.behind else 0
    places: list[tuple[str, int, int, Callable[..., Any]]] = []  # words, equation, value there, how to change
    for k in scope.behind:
        eqn = program.equations[k]
        if is_float(values[eqn.outputs[0]]):
            places.append(("the result of {op}", k, eqn.outputs[0], lambda change, k=k: _result(k, change)))
        for j, v in enumerate(eqn.inputs):
            if isinstance(v, int) and is_float(values[v]) and (len(scope.uses[v]) > 1 or v < first):
                put = lambda change, k=k, j=j: _operands([(k, j)], change)
                places.append((f"operand {j} of {{op}}", k, v, put))
    for v, at in scope.uses.items():
        if (v in moved or v < first) and len(at) > 1:
            places.append((f"{{v{v}}}", at[0][0], v, lambda change, at=at: _operands(at, change)))
    for by, made in ((False, False), (True, False), (False, True)):
        for what, k, v, put in places:
            yield from _by_terms(scope, what, k, v, put, by, made)


def _by_terms(
    scope: Scope, what: str, k: int, v: int, put: Callable[..., Any], by: bool, made: bool
) -> Iterator[Edit]:
    """What is at one place times every term, or divided by it."""
    program, moved = scope.program, scope.moved
    shape, effort = np.shape(scope.values[v]), 3.0 if made or by else 2.5
    fits = lambda x: x.ndim <= len(shape) and _broadcasts(x.shape, shape)
    for term, x in scope.candidates(fits, program.equations[k].outputs[0], made):
        u = term.value
        if (u in moved and v in moved) or (not x.ndim and u >= program.inputs and not scope.is_result(x)):
            continue  # of numbers only the arguments themselves, and the result
        if not by:
            kind = "ignores_cotangent" if u in moved else "mask" if is_mask(x) else "missing_term"
            times = put(lambda a, known, term=term: a * term(known))
            yield Edit(kind, f"multiply {what} by {term.words}", k, times, effort, residual=v not in moved)
            if is_mask(x):
                without = put(lambda a, known, term=term: a * (1 - np.asarray(term(known), float)))
                yield Edit(kind, f"multiply {what} by not {term.words}", k, without, effort)
        elif u not in moved and not is_mask(x):
            over = put(lambda a, known, term=term: a / term(known))
            kind = functools.partial(_divided, scope, x)
            yield Edit(kind, f"divide {what} by {term.words}", k, over, effort, residual=v not in moved)


def _divided(scope: Scope, x: Any) -> str:
    return "extra_term" if _multiplies(scope, x) else "missing_term"


def _multiplies(scope: Scope, x: Any) -> bool:
    """Whether the formula multiplies by x, so that dividing by it takes a factor away."""
    eqns = [scope.program.equations[k] for k in scope.behind]
    factors = [scope.of(v) for eqn in eqns if eqn.name == "mul" for v in eqn.inputs]
    return any(_same(_collapsed(np.asarray(f)), _collapsed(np.asarray(x))) for f in factors)


def _handed_on(scope: Scope) -> Iterator[Edit]:
    """What the step before hands on is added, as to a gradient through time."""
    for k in scope.floats:
        for (j, v), state in itertools.product(enumerate(scope.program.equations[k].inputs), scope.carried):
            if state in scope.moved and scope.follows(v) and _fits(scope.of(v))(scope.values[state]):
                put = _operands([(k, j)], lambda x, known, state=state: x + known[state])
                yield Edit("missing_term", f"add {{v{state}}} to operand {j} of {{op}}", k, put, 1.2)


def _of_steps(scope: Scope) -> Iterator[Edit]:
    """What a step of a loop gives lacks a factor, or a multiple of a product of two values."""
    for k in scope.ends:
        out = scope.program.equations[k].outputs[0]
        put = lambda change, k=k: _result(k, change)
        for edit in (
            _by_terms(scope, "what a step gives", k, out, put, False, False) if out in scope.moved else ()
        ):
            yield edit._replace(effort=2.0)
    for k in scope.ends:
        out = scope.program.equations[k].outputs[0]
        shape = np.shape(scope.values[out])
        fits = lambda x, shape=shape: is_float(x) and x.ndim <= len(shape) and _broadcasts(x.shape, shape)
        every = [term for term, x in scope.candidates(fits, out, made=False) if np.ndim(x)]
        still = [term for term in every if term.value not in scope.moved]
        moving = [term for term in every if term.value in scope.moved]
        for p, m in itertools.product(still, moving):
            scope.work.pay()
            if np.broadcast_shapes(*(np.shape(scope.values[t.value]) for t in (p, m))) == shape:
                term = lambda known, p=p, m=m: p(known) * m(known)
                words = f"add {{c}} · {p.words} · {m.words} to what a step gives"
                yield Edit("missing_term", words, k, added(k, term), 2.6, solved=True)


def _terms(scope: Scope) -> Iterator[Edit]:
    """c times another value added."""
    for k in scope.floats:
        out = scope.program.equations[k].outputs[0]
        if out not in scope.moved:
            continue
        shape = np.shape(scope.values[out])
        fits = lambda x, shape=shape: is_float(x) and 0 < x.ndim <= len(shape) and _broadcasts(x.shape, shape)
        for term, _ in scope.candidates(fits, out):
            if term.value in scope.moved:
                words = f"add {{c}} · {term.words} to the result of {{op}}"
                yield Edit("missing_term", words, k, added(k, term), 2.5, solved=True)


def added(k: int, term: Callable[[Known], Any]) -> Callable[[trace.Program], Changed]:
    """c times a term added to the output of equation k."""
    return _result(k, lambda x, known, c: x + c * term(known))


def is_float(x: Any) -> bool:
    """Whether a value is an array or scalar of floating-point or complex numbers."""
    return isinstance(x, np.ndarray | np.inexact) and np.issubdtype(x.dtype, np.inexact)


FAMILIES: tuple[tuple[float, Callable[[Scope], Iterator[Edit]]], ...] = (
    (1.0, _signs), (1.0, _axes), (1.0, _transposes), (1.0, _left_out), (1.0, _turned), (1.0, _cut),
    (1.0, _exchanged), (1.0, _conjugates), (2.0, _for_numbers),
    (1.5, _replaced), (1.2, _powers), (1.0, _scaled), (1.2, _handed_on), (1.9, _swapped),
    (2.0, _others), (2.5, _factors), (2.5, _terms), (2.0, _of_steps),
)  # fmt: skip
