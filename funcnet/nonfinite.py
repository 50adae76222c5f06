"""Which equation of a program made the NaN or the infinity that came out of it."""

import contextlib
import dataclasses
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.core
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from funcnet import taps
from funcnet._programs import CALLS, OWN, frames, line, parts_of_scan
from funcnet.errors import DTypeError, describe

__all__ = ["Finding", "Input", "find_nan"]

NAN, INF = "nan", "inf"
_NAMES = {NAN: "NaN", INF: "an infinity"}
_OPERATIONS = os.path.join(OWN, "ops", "")


@dataclasses.dataclass(frozen=True)
class Input:
    """What an equation was given.

    Attributes:
        form: dtype and shape, ``float32[3, 5]``.
        low: the least of its finite numbers (of complex ones: of their sizes); None if there is none.
        high: the largest.
        nans: how many of its numbers are NaN.
        infinities: how many are infinite.
    """

    form: str
    low: float | None
    high: float | None
    nans: int
    infinities: int

    def __str__(self) -> str:
        known = self.low is not None and self.high is not None
        parts = [self.form]
        if known:
            parts.append(
                f"{self.low:.6g}" if self.low == self.high else f"from {self.low:.6g} to {self.high:.6g}"
            )
        counts = ((self.nans, "NaN"), (self.infinities, "infinite"))
        parts += [f"{count} {'' if known else 'of them '}{word}" for count, word in counts if count]
        return ", ".join(parts)


@dataclasses.dataclass(frozen=True)
class Finding:
    """Where a NaN or an infinity was made: by which equation, of what.

    Attributes:
        kind: "nan" or "inf".
        primitive: the name of JAX's operation, ``log``; "argument" if `find_nan` was given it, "constant" if
            it stands in the program.
        operation: funcnet's operation that this is a part of, ``softmax``, or None.
        line: where the caller wrote it, ``model.py:41``; "" if that is not known.
        source: the text of that line.
        formula: of `operation`, the line in funcnet that has the equation; else "".
        path: of an argument, ``params['w']``; of an equation the names of `taps.scope` around it,
            ``blocks.3.attention`` (of a layer in a loop see `iterations`); else "".
        backward: whether it belongs to the pullback, so that the gradient of that line is meant.
        inputs: what the equation was given.
        outputs: what it gave.
        iterations: in which iterations of the loops around it, from 0, the outermost first.
        cause: where an infinity among the inputs came from.
    """

    kind: str
    primitive: str
    operation: str | None = None
    line: str = ""
    source: str = ""
    formula: str = ""
    path: str = ""
    backward: bool = False
    inputs: tuple[Input, ...] = ()
    outputs: tuple[Input, ...] = ()
    iterations: tuple[int, ...] = ()
    cause: "Finding | None" = None

    def __str__(self) -> str:
        rows = [("line", self.source), ("formula", self.formula)]
        rows += [(f"input {number}", str(value)) for number, value in enumerate(self.inputs, 1)]
        rows += [("output", str(value)) for value in self.outputs if value.nans or value.infinities]
        if self.iterations:
            rows.append(("loop", f"iteration {' / '.join(map(str, self.iterations))}, counted from 0"))
        if self.cause is not None:
            text = f"{self.cause._sentence()}{': ' * bool(self.cause.source)}{self.cause.source}"
            rows.append(("because", text))
        text = f"find_nan: {self._sentence()}."
        return "\n".join([text, *(f"  {name:<8}  {value}" for name, value in rows if value)])

    def _sentence(self) -> str:
        what = _NAMES[self.kind]
        if self.primitive == "argument":
            return f"{self.path} holds {what} already"
        made = f"a constant is {what}" if self.primitive == "constant" else f"{self.primitive} made {what}"
        if self.kind == NAN and any(value.infinities for value in self.inputs):
            made += " of an infinity"
        elif self.inputs:
            made += " of finite numbers"
        where = f" in {self.path}" * bool(self.path) + f" at {self.line}" * bool(self.line)
        of = f" in {'the gradient of ' * self.backward}fn.{self.operation}" if self.operation else ""
        backward = ", in the gradient of that line" if self.backward and not of else ""
        loops = f", iteration {' / '.join(map(str, self.iterations))}" if self.iterations else ""
        return f"{made}{of}{where}{backward}{loops}"


def find_nan(function: Callable[..., Any], *args: Any) -> Finding | None:
    """The equation that made the NaN or infinity in the result of ``function(*args)``, or None.

    The function is traced and run equation by equation, and into the loops, branches and calls from which a
    NaN comes out. What is named is the first equation that gave a NaN from numbers without one, of those that
    lead to the result; if there was an infinity among these numbers, where that came from. Of a result that
    is only infinite it is the first equation that made an infinity from finite numbers. What is masked with
    an infinity, and a NaN that does not reach the result, are left alone.

    It takes memory for the values that are needed later, and time for a program compiled per equation:
    seconds for a small model. To look at the gradients, too, give it `jax.value_and_grad` of a loss.

    Args:
        function: any function of JAX arrays.
        args: its arguments, pytrees of arrays.

    Returns:
        A `Finding`, whose text tells all; None if everything in the result is finite.

    Raises:
        DTypeError: `function` is none, or an argument has no values, within a transformation.

    >>> print(find_nan(jax.grad(lambda x: jnp.sqrt(x) * 0), 0.0).primitive)
    mul
    """
    if not callable(function):
        raise DTypeError(
            "find_nan: function is not a function.",
            path="function",
            expected="a function of the arguments that follow",
            actual=describe(function),
        )
    names = _names(function, len(args))
    given = [
        (f"{names[path[0].idx]}{jax.tree_util.keystr(path[1:])}", leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(args)
    ]
    for path, leaf in given:
        if isinstance(leaf, jax.core.Tracer):
            raise DTypeError(
                f"find_nan: {path} is traced, and has no values.",
                path=path,
                expected="an array, outside of jax.jit and the like",
                actual=describe(leaf),
            )
    with jax.debug_nans(False), jax.debug_infs(False), taps.named():
        closed = jax.make_jaxpr(function)(*args)
        inputs = [
            jnp.asarray(leaf, dtype=None if _is_key(leaf) else aval.dtype)
            for (_, leaf), aval in zip(given, closed.in_avals, strict=True)
        ]
        level = _Level(closed, inputs)
        for kind in (NAN, INF):
            wanted = [out for out in level.outputs if level.has(out, kind)]
            if wanted:
                return _at_the_top(level, wanted, kind, [path for path, _ in given])
    return None


def _names(function: Callable[..., Any], count: int) -> list[str]:
    """What the first arguments of a function are called."""
    names = [f"args[{place}]" for place in range(count)]
    with contextlib.suppress(TypeError, ValueError):  # it does not say
        parameters = inspect.signature(function).parameters.values()
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        own = [parameter.name for parameter in parameters if parameter.kind in kinds][:count]
        names[: len(own)] = own
    return names


def _at_the_top(level: "_Level", wanted: Sequence[Any], kind: str, paths: list[str]) -> Finding:
    """What was found; or the argument, or the constant, that it was there from the start."""

    def given(wanted: Iterable[Any], kind: str) -> Finding | None:
        reached = level.leading_to(wanted, kind)[1]
        for path, var in zip(paths, level.jaxpr.invars, strict=True):
            if var in reached:
                return Finding(kind, "argument", path=path, outputs=(_input(level.given[var]),))
        return None

    argument = given(wanted, kind)
    if argument and kind == NAN:
        return argument
    found = level.search(wanted, kind)
    if found is None:
        return argument or level.constant(wanted, kind) or Finding(kind, "constant")
    finding, unexplained = found
    if unexplained:
        finding = dataclasses.replace(
            finding, cause=given(unexplained, INF) or level.constant(unexplained, INF)
        )
    return finding


Found = tuple[Finding, list[Any]]  # and the inputs that brought infinities, if no equation here made them


class _Level:
    """One program: the top one, or what a call, a branch or one iteration of a loop runs."""

    def __init__(self, closed: Any, inputs: Sequence[Any]):
        self.jaxpr = closed.jaxpr
        self.outputs = [var for var in closed.jaxpr.outvars if not isinstance(var, jex.Literal)]
        self.given = dict(zip(self.jaxpr.constvars, closed.consts, strict=True))
        self.given |= dict(zip(self.jaxpr.invars, inputs, strict=True))
        self.last = {
            var: number
            for number, eqn in enumerate(self.jaxpr.eqns)
            for var in eqn.invars
            if not isinstance(var, jex.Literal)
        }
        self.flags = {var: _flags(value) for var, value in self.given.items()}
        for _, eqn, _, results in self.run():
            self.flags.update(zip(eqn.outvars, map(_flags, results), strict=True))

    def run(self) -> Iterator[tuple[int, Any, list[Any], Sequence[Any]]]:
        """Each equation, with its number, its inputs and its outputs; no value is kept longer than needed."""
        values = dict(self.given)
        for number, eqn in enumerate(self.jaxpr.eqns):
            operands = [_value(var, values) for var in eqn.invars]
            results = _evaluate(eqn, operands)
            yield number, eqn, operands, results
            values.update((v, r) for v, r in zip(eqn.outvars, results, strict=True) if v in self.last)
            for var in eqn.invars:
                if not isinstance(var, jex.Literal) and self.last[var] == number:
                    values.pop(var, None)

    def has(self, var: Any, *kinds: str) -> bool:
        """Whether a variable's value, or a number in the program, has a NaN or an infinity."""
        flags = _flags(var.val) if isinstance(var, jex.Literal) else self.flags.get(var, "")
        return any(kind in flags for kind in kinds)

    def leading_to(self, wanted: Iterable[Any], kind: str) -> tuple[dict[int, list[int]], set[Any]]:
        """Through what a kind came to variables: equations, with the outputs concerned; and variables."""
        reached, through = set(wanted), {}
        for number in reversed(range(len(self.jaxpr.eqns))):
            eqn = self.jaxpr.eqns[number]
            outs = [place for place, var in enumerate(eqn.outvars) if var in reached]
            if outs:
                through[number] = outs
                reached |= {v for v in eqn.invars if not isinstance(v, jex.Literal) and self.has(v, kind)}
        return through, reached

    def search(self, wanted: Iterable[Any], kind: str) -> Found | None:
        """The first equation that made a kind which came to variables; None if it came with the inputs."""
        through, _ = self.leading_to(wanted, kind)
        if not through:
            return None
        for number, eqn, operands, results in self.run():
            if number not in through:
                continue
            inner = _inside(eqn, operands, through[number], kind)
            if inner is not None:
                finding, places = inner
                return self.explained(_placed(finding, eqn), [eqn.invars[place] for place in places])
            atomic = not _is_composite(eqn)
            if atomic and not any(self.has(var, *{kind, NAN}) for var in eqn.invars):
                infinite = [var for var in eqn.invars if self.has(var, INF)]
                return self.explained(_finding(kind, eqn, operands, results), infinite)
        return None

    def explained(self, finding: Finding, infinite: list[Any]) -> Found:
        """A finding, with where the infinities came from; if not from here, the inputs that brought them."""
        infinite = [var for var in infinite if self.has(var, INF)]
        if finding.cause is not None or not infinite:
            return finding, []
        variables = [var for var in infinite if not isinstance(var, jex.Literal)]
        cause = self.search(variables, INF)
        if cause is not None:
            return dataclasses.replace(finding, cause=cause[0]), []
        _, reached = self.leading_to(variables, INF)
        inputs = [var for var in self.jaxpr.invars if var in reached]
        if not inputs:
            constant = self.constant(variables, INF) or dataclasses.replace(
                finding, kind=INF, primitive="constant", inputs=(), outputs=(), iterations=()
            )
            finding = dataclasses.replace(finding, cause=constant)
        return finding, inputs

    def constant(self, wanted: Iterable[Any], kind: str) -> Finding | None:
        """The first equation to which a number in the program, or in a call of it, brings a kind."""
        through, reached = self.leading_to(wanted, kind)
        for number in sorted(through):
            eqn = self.jaxpr.eqns[number]
            held = [v for v in eqn.invars if isinstance(v, jex.Literal) or v in self.jaxpr.constvars]
            if any(self.has(v, kind) for v in held) or not any(
                v in reached for v in eqn.invars if v not in held
            ):
                return _finding(kind, eqn, (), (), "constant")
        return None


# ---- calls, branches and loops ----------------------------------------------------------------------------


def _is_composite(eqn: Any) -> bool:
    return eqn.primitive.name in (*CALLS, "cond", "scan", "while", "hand_linear")


def _called(eqn: Any, operands: Sequence[Any]) -> tuple[Any, int]:
    """The program that a call or a branch runs, and from which operand on it is given them."""
    name, params = eqn.primitive.name, eqn.params
    if name == "cond":
        return params["branches"][min(max(int(operands[0]), 0), len(params["branches"]) - 1)], 1
    if name == "hand_linear":  # of funcnet's rules: the tangent map of an operation
        known = params["known"]
        push = lambda *given: params["linear"].push(list(given[:known]), list(given[known:]))
        return jax.make_jaxpr(push)(*operands), 0
    inner = params[CALLS[name]]
    return inner if hasattr(inner, "consts") else jex.ClosedJaxpr(inner, ()), 0


def _inside(
    eqn: Any, operands: Sequence[Any], outs: Sequence[int], kind: str
) -> tuple[Finding, list[int]] | None:
    """What made a kind inside of an equation, and which of its inputs brought infinities that led to it."""
    if not _is_composite(eqn):
        return None
    if eqn.primitive.name in ("scan", "while"):
        return _in_loop(eqn, operands, kind)
    closed, start = _called(eqn, operands)
    level = _Level(closed, operands[start:])
    wanted = [closed.jaxpr.outvars[place] for place in outs]
    found = level.search([var for var in wanted if not isinstance(var, jex.Literal)], kind)
    if found is None:
        return None
    places = {var: place for place, var in enumerate(closed.jaxpr.invars, start)}
    return found[0], [places[var] for var in found[1] if var in places]


def _in_loop(eqn: Any, operands: Sequence[Any], kind: str, before: int | None = None) -> Any:
    """What made a kind in the first iteration that made one."""
    held: dict[int, int] = {}  # input of the body to that of the loop
    for count, (number, body, inputs, places) in enumerate(_iterations(eqn, operands)):
        if count == before:
            return None
        if not any(kind in _flags(value) for value in _compiled(body)(*inputs)):
            continue
        level = _Level(body, inputs)
        found = level.search([var for var in level.outputs if level.has(var, kind)], kind)
        if found is None:
            continue
        held = dict(enumerate(places))
        finding = dataclasses.replace(found[0], iterations=(number, *found[0].iterations))
        brought = [place for place, var in enumerate(body.jaxpr.invars) if var in found[1]]
        if brought and finding.cause is None:  # perhaps an earlier iteration made it
            cause = _in_loop(eqn, operands, INF, count)
            finding = dataclasses.replace(finding, cause=cause and cause[0])
        return finding, [held[place] for place in brought if finding.cause is None]
    return None


def _iterations(eqn: Any, operands: Sequence[Any]) -> Iterator[tuple[int, Any, list[Any], list[int]]]:
    """Of a loop: number, body, inputs, and the operand of the loop that each of these began as."""
    params = eqn.params
    if eqn.primitive.name == "while":
        test, body = params["cond_jaxpr"], params["body_jaxpr"]
        tests, consts = params["cond_nconsts"], params["body_nconsts"]
        fixed = list(operands[tests : tests + consts])
        carry, number = list(operands[tests + consts :]), 0
        while _compiled(test)(*operands[:tests], *carry)[0]:
            yield number, body, [*fixed, *carry], list(range(tests, len(operands)))
            carry, number = list(_compiled(body)(*fixed, *carry)), number + 1
        return
    body = params["jaxpr"]
    consts, carries = parts_of_scan(eqn)
    fixed, carry = list(operands[:consts]), list(operands[consts : consts + carries])
    numbers = range(params["length"])
    for number in reversed(numbers) if params["reverse"] else numbers:
        inputs = [*fixed, *carry, *(x[number] for x in operands[consts + carries :])]
        yield number, body, inputs, list(range(len(operands)))
        carry = list(_compiled(body)(*inputs)[:carries])


_programs: dict[int, tuple[Any, Any]] = {}  # by the identity of a program, which is held


def _compiled(closed: Any) -> Callable[..., Sequence[Any]]:
    if id(closed) not in _programs:
        if len(_programs) > 1000:
            _programs.clear()
        _programs[id(closed)] = closed, jax.jit(jex.jaxpr_as_fun(closed))
    return _programs[id(closed)][1]


def _evaluate(eqn: Any, operands: Sequence[Any]) -> Sequence[Any]:
    if _is_composite(eqn) and eqn.primitive.name not in ("scan", "while", "hand_linear"):
        closed, start = _called(eqn, operands)
        return _compiled(closed)(*operands[start:])
    result = eqn.primitive.bind(*operands, **eqn.params)
    return result if eqn.primitive.multiple_results else [result]


# ---- what is said of values and equations -----------------------------------------------------------------


def _value(var: Any, values: dict[Any, Any]) -> Any:
    if not isinstance(var, jex.Literal):
        return values[var]
    aval: Any = var.aval
    return jnp.asarray(var.val, dtype=aval.dtype)


def _is_key(value: Any) -> bool:
    return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


@jax.jit
def _counts(value: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.isnan(value).sum(), jnp.isinf(value).sum()


def _flags(value: Any) -> str:
    """Of what kinds there are numbers in an array: "", "nan", "inf" or "nan inf"."""
    if _is_key(value) or not jnp.issubdtype(jnp.result_type(value), jnp.inexact):
        return ""
    nans, infinities = _counts(jnp.asarray(value))
    return " ".join(kind for kind, count in ((NAN, nans), (INF, infinities)) if count)


def _input(value: Any) -> Input:
    if _is_key(value) or not np.size(value):
        return Input(describe(value), None, None, 0, 0)
    nans, infinities = (0, 0)
    if jnp.issubdtype(value.dtype, jnp.inexact):
        nans, infinities = map(int, _counts(value))
    array = np.asarray(jnp.abs(value) if jnp.issubdtype(value.dtype, jnp.complexfloating) else value)
    array = array.astype(np.float64)
    finite = array[np.isfinite(array)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (None, None)
    return Input(describe(value), low, high, nans, infinities)


def _finding(
    kind: str, eqn: Any, operands: Sequence[Any], results: Sequence[Any], name: str | None = None
) -> Finding:
    finding = Finding(
        kind,
        name or eqn.primitive.name,
        inputs=tuple(map(_input, operands)),
        outputs=tuple(map(_input, results)),
    )
    return _placed(finding, eqn)


def _placed(finding: Finding, eqn: Any) -> Finding:
    """A finding with what an equation, or one around it, knows of its place, where that is not known yet.

    (Of what JAX has traced before and kept, an inner equation does not know who called it.)
    """
    written = frames(eqn)
    theirs = [frame for frame in written if not frame.file_name.startswith(OWN)]
    place, source = line(theirs[0]) if theirs and not finding.line else (finding.line, finding.source)
    formula = finding.formula
    inside = [frame for frame in written if frame.file_name.startswith(_OPERATIONS)]
    if not formula and inside:
        formula = ": ".join(filter(None, line(inside[0])))
    backward = finding.backward or "transpose" in str(eqn.source_info.name_stack)
    operation = finding.operation or next(filter(None, map(_operation, written)), None)
    scopes = [*taps.names(eqn), finding.path]
    return dataclasses.replace(
        finding,
        line=place,
        source=source,
        formula=formula,
        path=".".join(filter(None, scopes)),
        operation=operation,
        backward=backward,
    )


def _operation(frame: Any) -> str | None:
    """The operation of funcnet in whose file a line is, funcnet/ops/norm/softmax.py, or in whose function.

    In a file with several, as activations.py, the functions of one begin with its name: _mish_pullback.
    """
    family, _, file = frame.file_name.removeprefix(_OPERATIONS).partition(os.sep)
    if not frame.file_name.startswith(_OPERATIONS) or not family or not file or file.startswith("_"):
        return None
    name = file.removesuffix(".py")
    module: Any = sys.modules.get(f"funcnet.ops.{family}.{name}")
    several = [n for n in getattr(module, "__all__", ()) if isinstance(getattr(module, n), ModuleType)]
    if not several:
        return name
    of = [n for n in several if f"{frame.function_name}_".startswith(f"_{n}_")]
    return max(of, key=len, default=None)
