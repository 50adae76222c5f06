"""A function as a flat list of equations that NumPy can run, each with the line that wrote it.

What JAX traces is inlined until only primitives are left, which run with every float in float64, whatever it
is cast to. The equations are then cheap to run again, with other roundings or with one of them changed, which
is how mistakes are judged and searched for: no tracing and no compiling per attempt.
"""

import ast
import contextlib
import dataclasses
import functools
import itertools
import linecache
import math
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from funcnet import rules
from funcnet._programs import CALLS, parts_of_scan

__all__ = [
    "CALL",
    "HIDDEN",
    "NUMPY",
    "QUICKLY",
    "RESHAPES",
    "Equation",
    "Place",
    "Program",
    "bind",
    "constant",
    "flat",
    "loop",
    "near",
    "parsed",
    "place",
    "reading",
    "rerun",
    "ruled",
    "run",
    "runs_as_it_is",
    "source",
    "trace",
    "up",
    "widened",
]

CALL = 2000.0  # element operations that calling NumPy once is worth
TRACED = 1e5  # element operations that tracing an equation is worth
BY_JAX = 40.0  # calls of NumPy that calling JAX once is worth
RESHAPES = ("broadcast_in_dim", "convert_element_type", "copy", "expand_dims", "reshape", "squeeze")
_VIEWS = ("broadcast_in_dim", "copy", "expand_dims", "reshape", "slice", "squeeze", "transpose", "rev")
Value = int  # a value of the program, numbered from the inputs on


class Equation(NamedTuple):
    """``outputs = primitive(*inputs, **params)``; an input is a value's number, or a constant array."""

    primitive: Any
    inputs: tuple[Any, ...]
    outputs: tuple[Value, ...]
    params: dict[str, Any]
    line: str
    inner: tuple["Program", ...] = ()  # of a loop or a choice: its bodies
    parts: tuple[int, ...] = ()  # of a scan: how many operands are constants, and how many are carried
    dtypes: tuple[Any, ...] = ()  # of the outputs, as it was traced
    takes: tuple[Any, ...] = ()  # of the inputs
    called: str = ""  # the function of JAX that the line calls: "where"
    text: str = ""  # what the line says there: "dy @ w"
    shapes: tuple[Any, ...] = ()  # of the inputs, as it was traced

    @property
    def name(self) -> str:
        """Of the primitive: ``dot_general``."""
        return self.primitive.name if self.primitive is not None else "copy"


@dataclasses.dataclass(frozen=True)
class Program:
    """Straight-line code: values 0, 1, ... are the inputs, then what each equation gives.

    Every input, every output and every constant array passes through a ``copy`` equation, so that they are
    values, and can be edited, like the rest.
    """

    equations: tuple[Equation, ...]
    inputs: int
    outputs: tuple[Value, ...]
    avals: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.avals)

    @functools.cached_property
    def makers(self) -> dict[Value, Equation]:
        """The equation that gives a value."""
        return {out: eqn for eqn in self.equations for out in eqn.outputs}

    @functools.cached_property
    def primitives(self) -> frozenset[str]:
        """The names of all that it runs, inside of loops too."""
        names = {eqn.name for eqn in self.equations}
        return frozenset(names.union(*(p.primitives for eqn in self.equations for p in eqn.inner)))

    @functools.cached_property
    def dtypes(self) -> frozenset[Any]:
        """Those in which it computes, inside of loops too."""
        own = {d for eqn in self.equations for d in eqn.dtypes if d is not None}
        return frozenset(own.union(*(p.dtypes for eqn in self.equations for p in eqn.inner)))

    @functools.cached_property
    def left(self) -> frozenset[Any]:
        """The dtypes of floats in what runs as it is: kernels, callbacks, programs made for one dtype."""
        own = {
            d
            for eqn in self.equations
            if eqn.primitive is not None and not eqn.inner and runs_as_it_is(eqn)
            for d in (*eqn.takes, *eqn.dtypes)
            if jnp.issubdtype(d, jnp.inexact)
        }
        return frozenset(own.union(*(p.left for eqn in self.equations for p in eqn.inner)))

    def pruned(self) -> "Program":
        """The same without what no output needs."""
        needed = self.needed(self.outputs)
        return dataclasses.replace(
            self, equations=tuple(eqn for eqn in self.equations if needed & set(eqn.outputs))
        )

    def after(self, values: Iterable[Value]) -> set[Value]:
        """The values that depend on some, themselves included."""
        reached = set(values)
        for eqn in self.equations:
            if any(v in reached for v in eqn.inputs if isinstance(v, int)):
                reached.update(eqn.outputs)
        return reached

    @functools.cached_property
    def done(self) -> dict[int, list[Value]]:
        """By the number of an equation: the values that nothing after it needs."""
        last = {
            v: k
            for k, eqn in enumerate(self.equations)
            for v in (*eqn.inputs, *eqn.outputs)
            if isinstance(v, int)
        }
        done: dict[int, list[Value]] = {}
        for v in last.keys() - set(self.outputs):
            done.setdefault(last[v], []).append(v)
        return done

    def fixed(self, v: Any) -> Any:
        """The constant that an equation's input is, but for its dtype and shape; None if it is none."""
        while isinstance(v, int):
            maker = self.makers.get(v)
            if maker is None or maker.name not in RESHAPES:
                return None
            v = maker.inputs[0]
        return v

    @functools.cached_property
    def costs(self) -> tuple[float, ...]:
        """Of each equation: the element operations that running it takes."""
        return tuple(_cost(self, eqn) for eqn in self.equations)

    @functools.cached_property
    def cost(self) -> float:
        """Of running all of it."""
        return sum(self.costs)

    @functools.cached_property
    def elements(self) -> int:
        """Of all its values, but for those that are views of others."""
        made = (v for eqn in self.equations if eqn.name not in _VIEWS for v in eqn.outputs)
        return sum(math.prod(getattr(self.avals[v], "shape", ())) for v in made)

    def again(self, changed: Iterable[int], outputs: Sequence[Value]) -> list[int]:
        """The equations to run again for some outputs if others are changed, in their order."""
        if (key := tuple(outputs)) not in self._behind:
            needed = self.needed(outputs)
            bits = (1 << k for k, eqn in enumerate(self.equations) if needed.intersection(eqn.outputs))
            self._behind[key] = functools.reduce(int.__or__, bits, 0)
        bits = functools.reduce(int.__or__, (self._users[k] for k in changed), 0) & self._behind[key]
        if bits not in self._listed:
            self._listed[bits] = [k for k in range(bits.bit_length()) if bits >> k & 1]
        return self._listed[bits]

    @functools.cached_property
    def _behind(self) -> dict[Any, int]:
        """By outputs, as a set of bits: the equations that they need."""
        return {}

    @functools.cached_property
    def _listed(self) -> dict[int, list[int]]:
        return {}

    @functools.cached_property
    def _users(self) -> tuple[int, ...]:
        """Of each equation, as a set of bits: itself, and those that depend on it."""
        of_value, users = dict[Value, int](), [0] * len(self.equations)
        for k in range(len(self.equations) - 1, -1, -1):
            eqn = self.equations[k]
            users[k] = functools.reduce(int.__or__, (of_value.get(v, 0) for v in eqn.outputs), 1 << k)
            for v in eqn.inputs:
                if isinstance(v, int):
                    of_value[v] = of_value.get(v, 0) | users[k]
        return tuple(users)

    def needed(self, outputs: Iterable[Value]) -> set[Value]:
        """The values that some of them need."""
        needed = set(outputs)
        for eqn in reversed(self.equations):
            if needed & set(eqn.outputs):
                needed.update(v for v in eqn.inputs if isinstance(v, int))
        return needed

    def results(self, values: Sequence[Any]) -> list[Any]:
        """The outputs among all values."""
        return [values[v] for v in self.outputs]


def trace(function: Callable[..., Any], *args: Any) -> tuple[Program, Any]:
    """The program of ``function(*args)`` over the flat leaves of its arguments, and the tree of its result.

    Raises whatever `function` raises when it is traced.
    """
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
    return flat(closed), shape


def flat(closed: Any) -> Program:
    """The program of a closed jaxpr."""
    equations: list[Equation] = []
    avals: list[Any] = []

    def new(aval: Any) -> Value:
        avals.append(aval)
        return len(avals) - 1

    def copy(source: Any, aval: Any, where: str = "") -> Value:
        out = new(aval)
        equations.append(Equation(None, (source,), (out,), {}, where))
        return out

    arrays: dict[int, tuple[Any, Value]] = {}  # constants by id, held so that an id stays one array's

    def kept(value: Any) -> Any:
        if not np.ndim(value) or _is_key(value):
            return constant(value)
        if id(value) not in arrays:
            array = constant(value)
            arrays[id(value)] = value, copy(array, jax.ShapeDtypeStruct(array.shape, array.dtype))
        return arrays[id(value)][1]

    def inline(
        jaxpr: Any,
        consts: Sequence[Any],
        inputs: Sequence[Any],
        caller: Place | None = None,
        of_jax: bool = False,
    ) -> list[Any]:
        known: dict[Any, Any] = dict(zip(jaxpr.constvars, map(kept, consts), strict=True))
        known.update(zip(jaxpr.invars, inputs, strict=True))
        read = lambda v: kept(v.val) if isinstance(v, jex.Literal) else known[v]
        for eqn in jaxpr.eqns:
            operands = [read(v) for v in eqn.invars]
            name = eqn.primitive.name
            here = place(eqn)
            if caller is not None and of_jax:
                here = caller
            elif caller is not None and caller.own and not here.own:
                here = caller._replace(called=here.called)
            if name in CALLS:
                inner = eqn.params[CALLS[name]]
                inner, consts = (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())
                # JAX keeps the programs of its own functions, with the line that called them first.
                results: Sequence[Any] = inline(inner, consts, operands, here, of_jax or _of_jax(inner))
            else:
                results = [new(v.aval) for v in eqn.outvars]
                bodies = tuple(
                    flat(body) for key in BODIES.get(name, ()) for body in _listed(eqn.params[key])
                )
                parts = parts_of_scan(eqn) if name == "scan" else ()
                params = {k: widened(v) if k in _DTYPES else v for k, v in eqn.params.items()}
                params = dict(eqn.params) if name == "bitcast_convert_type" else params
                made = (eqn.primitive, tuple(operands), tuple(results), params, here.line)
                dtypes, takes = (
                    tuple(getattr(v.aval, "dtype", None) for v in some) for some in (eqn.outvars, eqn.invars)
                )
                shapes = tuple(getattr(v.aval, "shape", None) for v in eqn.invars)
                names = here.called, here.text
                equations.append(Equation(*made, bodies, parts, dtypes, takes, *names, shapes))
            known.update(zip(eqn.outvars, results, strict=True))
        return [read(v) for v in jaxpr.outvars]

    given = [new(v.aval) for v in closed.jaxpr.invars]
    copied = [copy(v, avals[v]) for v in given]
    results = inline(closed.jaxpr, closed.consts, copied)
    written = {out: eqn.line for eqn in equations for out in eqn.outputs}
    outputs = [
        copy(v, a, written.get(v, "") if isinstance(v, int) else "")
        for v, a in zip(results, closed.out_avals, strict=True)
    ]
    return Program(tuple(equations), len(given), tuple(outputs), tuple(avals))


# Primitives that run a program many times or perhaps, and where it is.
BODIES = {"scan": ("jaxpr",), "while": ("cond_jaxpr", "body_jaxpr"), "cond": ("branches",)}


def _listed(bodies: Any) -> Sequence[Any]:
    return bodies if isinstance(bodies, tuple | list) else (bodies,)


def constant(value: Any) -> Any:
    """A NumPy array, its floats in float64; a random key stays what it is."""
    return value if _is_key(value) else up(value)


def _is_key(value: Any) -> bool:
    return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


_, _VERIFIER = HIDDEN = tuple(os.path.dirname(os.path.abspath(f)) + os.sep for f in (jax.__file__, __file__))
_OTHERS = (*(os.path.dirname(folder[:-1]) + os.sep for folder in HIDDEN), "<@beartype(")  # installed, funcnet
_TAPE = os.path.join(_VERIFIER, "tape.py")


class Place(NamedTuple):
    """What wrote a JAX equation: in the user's own code if it is `own`, else in funcnet."""

    line: str = ""  # file.py:57, the innermost one
    called: str = ""  # the function of JAX that is called there: "where"
    text: str = ""  # what is written there: "dy @ w"; "" where it cannot be read
    own: bool = False


_READING = threading.Lock()


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Read source by one thread at a time, and without a word about its style.

    Python 3.11 counts the depth of trees for all threads together; filters of warnings are everybody's.
    """
    with _READING, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "invalid decimal literal", "perhaps you missed a comma"
        yield


def parsed(text: str, mode: str = "exec") -> Any:
    """``ast.parse(text)``."""
    with reading():
        return ast.parse(text, mode=mode)


def place(eqn: Any) -> Place:
    """What wrote a JAX equation."""
    traceback, here = eqn.source_info.traceback, Place()
    for code, at in zip(*traceback.raw_frames(), strict=True) if traceback is not None else ():
        file = code.co_filename
        if file.startswith(_VERIFIER) and file != _TAPE:
            break  # it calls, or it computes a formula given as text, which has no line
        own = not file.startswith(_OTHERS)
        if own or not (here.line or file.startswith(HIDDEN)):
            here = Place(near(file, _span(code, at)[0]), called(eqn), _text(code, at), own)
        if own:
            break
    return here if here.line else here._replace(called=called(eqn))  # a function of JAX, as it is


@functools.lru_cache(4096)
def _span(code: Any, at: int) -> tuple[int, int, int, int]:
    """First and last line, first and last column of an instruction; columns are -1 where they are unknown."""
    first, last, start, end = next(itertools.islice(code.co_positions(), at // 2, None))
    known = None not in (last, start, end)
    return (first, last, start, end) if known else (first or code.co_firstlineno, 0, -1, -1)


@functools.lru_cache(4096)
def _text(code: Any, at: int) -> str:
    first, last, start, end = _span(code, at)
    lines = [linecache.getline(code.co_filename, n).encode() for n in range(first, last + 1)]
    if not lines or start < 0:
        return ""
    lines[-1] = lines[-1][:end]  # columns are those of bytes
    lines[0] = lines[0][start:]
    return " ".join(b"".join(lines).decode(errors="replace").split())


_WRAPPERS = (
    "api.py",
    "core.py",
    "custom_derivatives.py",
    "partial_eval.py",
    "pjit.py",
    "source_info_util.py",
    "traceback_util.py",
)


def called(eqn: Any) -> str:
    """The function of JAX that the line which wrote an equation calls: ``where``."""
    traceback, name = eqn.source_info.traceback, ""
    for frame in traceback.frames if traceback is not None else ():
        if not frame.file_name.startswith(HIDDEN[0]) and frame.file_name != _TAPE:
            break
        if os.path.basename(frame.file_name) not in (*_WRAPPERS, "tape.py"):
            name = frame.function_name
    name = eqn.primitive.name if name.endswith("__call__") else name
    inner = eqn.params.get(CALLS.get(eqn.primitive.name, ""))
    return name or _source(inner).partition(" at ")[0]


def _source(inner: Any) -> str:
    """``name at file.py:57`` of the function that an inner program was traced from."""
    info = getattr(getattr(inner, "jaxpr", inner), "debug_info", None)
    return getattr(info, "func_src_info", None) or ""


def ruled(eqn: Any) -> str:
    """``file.py:57`` of the function that has a rule; "" of other equations, and of JAX's and our rules."""
    is_rule = eqn.primitive.name in ("custom_vjp_call", "custom_jvp_call")
    where = _source(eqn.params["call_jaxpr"]).partition(" at ")[2] if is_rule else ""
    return "" if where.startswith((HIDDEN[0], _OTHERS[1])) else where


def _of_jax(inner: Any) -> bool:
    return _source(inner).partition(" at ")[2].startswith(HIDDEN)


def near(file: str, number: int) -> str:
    """``file.py:57``; a file below the working folder by its path from there."""
    return f"{os.path.relpath(file) if file.startswith(os.getcwd() + os.sep) else file}:{number}"


def source(where: str) -> str:
    """The text of a line such as ``file.py:57``; "" where it cannot be read."""
    file, _, number = where.rpartition(":")
    return linecache.getline(file, int(number)).strip()[:100] if number.isdigit() else ""


# ---- running it in NumPy ----------------------------------------------------------------------------------


@np.errstate(all="ignore")
def run(
    program: Program,
    inputs: Sequence[Any],
    changed: Mapping[int, Any] = {},
    by: Callable[[Equation, Sequence[Any]], Sequence[Any]] | None = None,
    *,
    forget: bool = False,
) -> list[Any]:
    """All values of the program.

    Args:
        program: the equations.
        inputs: one array per input.
        changed: by the number of an equation, what computes its outputs instead: ``f(operands, values)``.
        by: what computes the others: `apply` (NumPy), or `bind` (JAX, differentiable).
        forget: keep the outputs only: no value lives longer than it is needed.
    """
    by = by or apply
    values: list[Any] = [None] * len(program)
    values[: program.inputs] = inputs
    for k, eqn in enumerate(program.equations):
        operands = [values[v] if isinstance(v, int) else v for v in eqn.inputs]
        results = changed[k](operands, values) if k in changed else by(eqn, operands)
        for v, result in zip(eqn.outputs, results, strict=True):
            values[v] = result
        for v in program.done.get(k, ()) if forget else ():
            values[v] = None
    return values


class Known(NamedTuple):
    """All values: those that were computed anew, and the others."""

    new: Mapping[int, Any]
    old: Sequence[Any]

    def __getitem__(self, v: Any) -> Any:
        return self.new[v] if v in self.new else self.old[v]


@np.errstate(all="ignore")
def rerun(
    program: Program,
    values: Sequence[Any],
    changed: Mapping[int, Any],
    wanted: Sequence[Value],
    used: Sequence[Value] = (),
) -> list[Any]:
    """The `wanted` values when some equations are changed; only what depends on them is computed again.

    What the changed ones may use besides, and would not be computed for the `wanted`, is `used`.
    """
    new = dict[int, Any]()
    known = Known(new, values)
    for k in program.again(changed, (*wanted, *used)):
        eqn = program.equations[k]
        operands = [(new[v] if v in new else values[v]) if isinstance(v, int) else v for v in eqn.inputs]
        results = changed[k](operands, known) if k in changed else apply(eqn, operands)
        new.update(zip(eqn.outputs, results, strict=True))
    return [new.get(v, values[v]) for v in wanted]


def _cost(program: Program, eqn: Equation) -> float:
    """The element operations of one equation: of its elements, its products, the call itself."""
    shapes = [program.avals[v].shape if isinstance(v, int) else np.shape(v) for v in eqn.inputs]
    out = sum(math.prod(getattr(program.avals[v], "shape", ())) for v in eqn.outputs)
    if eqn.primitive is None:
        return CALL / 10
    if eqn.inner:
        most = max if eqn.name == "cond" else sum
        return out + most(body.cost for body in eqn.inner) * eqn.params.get(
            "length", 1 if most is max else 100
        )
    if eqn.name == "dot_general":
        along = math.prod(shapes[0][a] for a in eqn.params["dimension_numbers"][0][0])
        return CALL + sum(map(math.prod, shapes)) + out + out * along / 16
    calls = CALL if eqn.name in NUMPY else BY_JAX * CALL
    if eqn.name == "conv_general_dilated":
        return calls + out * math.prod(shapes[1]) / 16
    return calls + out + sum(map(math.prod, shapes))


def apply(eqn: Equation, operands: Sequence[Any]) -> Sequence[Any]:
    """The outputs of one equation; by JAX where NumPy has no word for it.

    Every float is in float64, whatever the program casts it to.
    """
    if eqn.primitive is None or eqn.name == "reduce_precision":
        return operands
    if eqn.inner:
        return loop(eqn, operands, apply)
    if eqn.name == "bitcast_convert_type" and np.asarray(operands[0]).dtype.kind == "f":
        size = np.dtype(eqn.params["new_dtype"]).itemsize
        operands = [np.asarray(operands[0], {2: np.float16, 4: np.float32}.get(size, np.float64))]
    if (known := NUMPY.get(eqn.name)) is not None:
        return [known(*operands, **eqn.params)]
    operands = [v if _is_key(v) else jnp.asarray(v) for v in operands]
    if (scatter := _SCATTERS.get(eqn.name)) is not None:  # their parameters hold a dtype
        if not np.can_cast(operands[2].dtype, operands[0].dtype, "same_kind"):  # JAX would warn
            raise TypeError(f"{eqn.name} of {operands[2].dtype} into {operands[0].dtype}")
        names = ("dimension_numbers", "indices_are_sorted", "unique_indices", "mode")
        return [up(scatter(*operands, **{name: eqn.params[name] for name in names}))]
    if runs_as_it_is(eqn):
        takes = zip(operands, eqn.takes, strict=True)  # programs of one dtype, as of a linear solve
        operands = [v if _is_key(v) or v.dtype == d else v.astype(d) for v, d in takes]
        if (shapes := tuple(map(np.shape, operands))) != eqn.shapes:  # XLA would say so in the terminal
            raise ValueError(f"{eqn.name} is a program for {eqn.shapes}, not for {shapes}")
    if rules.products_saveable(eqn.primitive) and sum(v.size for v in operands) <= QUICK:
        return [up(_quickly(eqn.primitive, tuple(eqn.params))(*operands, **eqn.params))]
    return bind(eqn, operands, up)


@functools.cache
def _quickly(primitive: Any, static: tuple[str, ...]) -> Callable[..., Any]:
    """A product, a convolution's say, whose optimisations take XLA longer than a verdict's few runs."""
    return jax.jit(primitive.bind, static_argnames=static, compiler_options=QUICKLY)


def runs_as_it_is(eqn: Equation) -> bool:
    """Whether an equation has its dtypes built in: a callback, or a program of its own."""
    if eqn.name in NUMPY or eqn.name in _SCATTERS:
        return False
    leaves = jax.tree.leaves(list(eqn.params.values()))
    return (
        "callback" in eqn.name
        or eqn.name == "call_exported"
        or any("axpr" in type(leaf).__name__ for leaf in leaves)
    )


_SCATTERS = {
    "scatter": jax.lax.scatter,
    "scatter-add": jax.lax.scatter_add,
    "scatter_add": jax.lax.scatter_add,
    "scatter_max": jax.lax.scatter_max,
    "scatter_min": jax.lax.scatter_min,
    "scatter_mul": jax.lax.scatter_mul,
}
QUICKLY: Any = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # of XLA
QUICK = 2**20  # elements that a product takes; with more it runs longer than it is compiled
STEPS = 10_000  # of a loop that asks a condition; a longer one is left to JAX


def loop(eqn: Equation, operands: Sequence[Any], by: Callable[..., Any]) -> Sequence[Any]:
    """The outputs of a scan, a while loop or a choice between branches, in Python; `by` as in `run`."""
    through = lambda body, values: body.results(run(body, values, by=by, forget=True))
    if eqn.name == "cond":
        which, *operands = operands
        return through(eqn.inner[min(max(int(which), 0), len(eqn.inner) - 1)], operands)
    if eqn.name == "while":
        condition, body = eqn.inner
        a, b = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        of_condition, of_body, carried = operands[:a], operands[a : a + b], list(operands[a + b :])
        for _ in range(0 if vars(body).get("is_long") else STEPS):
            if not through(condition, [*of_condition, *carried])[0]:
                return carried
            carried = through(body, [*of_body, *carried])
        vars(body)["is_long"] = True
        takes = zip(operands, eqn.takes, strict=True)
        return bind(eqn, [v if _is_key(v) else jnp.asarray(v, d) for v, d in takes], up)
    ((body,), (fixed, carry)) = eqn.inner, eqn.parts
    constants, carried, over = (
        operands[:fixed],
        list(operands[fixed : fixed + carry]),
        operands[fixed + carry :],
    )
    steps, stacked = range(eqn.params["length"]), list[list[Any]]()
    for t in reversed(steps) if eqn.params["reverse"] else steps:
        results = through(body, [*constants, *carried, *(v[t] for v in over)])
        carried = results[:carry]
        stacked.append(results[carry:])
    if eqn.params["reverse"]:
        stacked.reverse()
    if not stacked:
        avals = (body.avals[v] for v in body.outputs[carry:])
        return [*carried, *(np.zeros((0, *a.shape), a.dtype) for a in avals)]
    stack = lambda values: jnp.stack(values) if _is_key(values[0]) else np.stack(values)
    return [*carried, *map(stack, zip(*stacked, strict=True))]


# ---- in float64, whatever its dtypes ----------------------------------------------------------------------

_DTYPES = ("new_dtype", "dtype", "preferred_element_type")


def widened(dtype: Any) -> Any:
    """The widest dtype of its kind: float64 for floats, complex128 for complex numbers."""
    if dtype is None or jnp.issubdtype(dtype, jax.dtypes.extended):
        return dtype
    wide = {"f": np.float64, "c": np.complex128}
    kind = (
        "f"
        if jnp.issubdtype(dtype, jnp.floating)
        else "c"
        if jnp.issubdtype(dtype, np.complexfloating)
        else ""
    )
    return np.dtype(wide[kind]) if kind else dtype


def up(x: Any) -> Any:
    """A NumPy array with its floats in float64."""
    x = np.asarray(x)
    return x if x.dtype == np.float64 else np.asarray(x, widened(x.dtype))


def bind(eqn: Equation, operands: Sequence[Any], out: Callable[[Any], Any] = lambda v: v) -> list[Any]:
    """The outputs of one equation by JAX, differentiable."""
    if eqn.primitive is None:
        return list(operands)
    params = eqn.primitive.get_bind_params(eqn.params)
    run = eqn.primitive.bind if eqn.name != "random_gamma" else _compiled(eqn.primitive)
    results = run(*operands, **params)
    results = results if eqn.primitive.multiple_results else [results]
    return [v if _is_key(v) else out(v) for v in results]


@functools.cache
def _compiled(primitive: Any) -> Callable[..., Any]:
    """A primitive of which JAX compiles a loop anew whenever it is bound outside of a program."""
    return jax.jit(primitive.bind, static_argnames="log_space")


def _dot_general(
    a: Any, b: Any, *, dimension_numbers: Any, preferred_element_type: Any = None, **_: Any
) -> Any:
    (ca, cb), (ba, bb) = dimension_numbers
    if preferred_element_type is not None and a.dtype.kind in "biu":  # int8, added up in int32
        a, b = (v.astype(preferred_element_type) for v in (a, b))
    free_a = [i for i in range(a.ndim) if i not in (*ca, *ba)]
    free_b = [i for i in range(b.ndim) if i not in (*cb, *bb)]
    batch = [a.shape[i] for i in ba]
    k = math.prod(a.shape[i] for i in ca)
    left = a.transpose(*ba, *free_a, *ca).reshape(*batch, math.prod(a.shape[i] for i in free_a), k)
    right = b.transpose(*bb, *cb, *free_b).reshape(*batch, k, math.prod(b.shape[i] for i in free_b))
    shape = (*batch, *(a.shape[i] for i in free_a), *(b.shape[i] for i in free_b))
    return np.reshape(left @ right, shape)


def _broadcast_in_dim(x: Any, *_: Any, shape: Any, broadcast_dimensions: Any, **__: Any) -> Any:
    aligned = [1] * len(shape)
    for i, d in enumerate(broadcast_dimensions):
        aligned[d] = x.shape[i]
    return np.broadcast_to(np.reshape(x, aligned), shape)


def _slice(x: Any, *, start_indices: Any, limit_indices: Any, strides: Any) -> Any:
    steps = strides or [1] * x.ndim
    return x[tuple(slice(*s) for s in zip(start_indices, limit_indices, steps, strict=True))]


def _select_n(which: Any, *cases: Any) -> Any:
    return np.where(which, cases[1], cases[0]) if len(cases) == 2 else np.choose(which, cases)


def _iota(*, dtype: Any, shape: Any, dimension: int, **_: Any) -> Any:
    along = np.arange(shape[dimension], dtype=dtype)
    return np.broadcast_to(along.reshape([-1 if i == dimension else 1 for i in range(len(shape))]), shape)


def _pad(x: Any, filler: Any, *, padding_config: Any) -> Any:
    shape = [lo + hi + n + max(n - 1, 0) * i for n, (lo, hi, i) in zip(x.shape, padding_config, strict=True)]
    out = np.full([max(s, 0) for s in shape], filler, x.dtype)
    source, target = [], []
    for n, size, (lo, _, i) in zip(x.shape, out.shape, padding_config, strict=True):
        kept = [p for p in range(n) if 0 <= lo + p * (i + 1) < size]
        source.append(slice(kept[0], kept[-1] + 1) if kept else slice(0, 0))
        first = lo + kept[0] * (i + 1) if kept else 0
        target.append(slice(first, first + len(kept) * (i + 1) - i if kept else 0, i + 1))
    out[tuple(target)] = x[tuple(source)]
    return out


def _divide(a: Any, b: Any) -> Any:
    if np.asarray(a).dtype.kind not in "iu":
        return np.divide(a, b)
    return np.sign(a) * np.sign(b) * (np.abs(a) // np.maximum(np.abs(b), 1))  # towards 0


def _convert(x: Any, *, new_dtype: Any, **_: Any) -> Any:
    x = np.asarray(x)
    x = x.real if x.dtype.kind == "c" and new_dtype.kind != "c" else x
    if x.dtype.kind == "f" and new_dtype.kind in "iu":  # what does not fit is the nearest that does
        x = np.where(np.isnan(x), 0, x)
        low, high = (float(v) for v in (np.iinfo(new_dtype).min, np.iinfo(new_dtype).max))
        inside = np.where((x > low) & (x < high), x, 0).astype(new_dtype)
        return np.where(
            x <= low, np.iinfo(new_dtype).min, np.where(x >= high, np.iinfo(new_dtype).max, inside)
        )
    return x.astype(new_dtype)


def _reshape(x: Any, *_: Any, new_sizes: Any, dimensions: Any = None, **__: Any) -> Any:
    return np.reshape(x if dimensions is None else np.transpose(x, dimensions), new_sizes)


def _argument(function: Any) -> Any:
    return lambda x, *, axes, index_dtype: function(x, axis=axes[0]).astype(index_dtype)


def _cumulative(function: Any) -> Any:
    def along(x: Any, *, axis: int, reverse: bool) -> Any:
        x = np.flip(x, axis) if reverse else x
        total = function(x, axis, dtype=x.dtype)  # NumPy would add up int32 in int64
        return np.flip(total, axis) if reverse else total

    return along


def _logistic(x: Any, **_: Any) -> Any:
    if np.iscomplexobj(x):
        return 1 / (1 + np.exp(-x))
    return np.where(x >= 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x))))


def _elementwise(function: Any) -> Any:
    return lambda *operands, **_: function(*operands)


def _reduction(function: Any) -> Any:
    return lambda x, *, axes, **_: function.reduce(x, axis=tuple(axes), dtype=x.dtype)


def _extreme(function: Any, sign: float) -> Any:
    def reduce(x: Any, *, axes: Any, **_: Any) -> Any:
        if all(x.shape[a] for a in axes):
            return function(x, axis=tuple(axes))
        ends = (-np.inf, np.inf) if x.dtype.kind == "f" else (np.iinfo(x.dtype).min, np.iinfo(x.dtype).max)
        return function(x, axis=tuple(axes), initial=ends[sign > 0])

    return reduce


NUMPY: dict[str, Callable[..., Any]] = {
    **{
        name: _elementwise(function)
        for name, function in {
            "abs": np.abs, "add": np.add, "add_any": np.add, "and": np.bitwise_and, "ceil": np.ceil,
            "cos": np.cos, "cosh": np.cosh, "div": _divide, "eq": np.equal, "exp": np.exp,
            "exp2": lambda x: np.power(2.0, x), "expm1": np.expm1, "floor": np.floor, "ge": np.greater_equal,
            "gt": np.greater, "is_finite": np.isfinite, "le": np.less_equal, "log": np.log,
            "log1p": np.log1p, "lt": np.less, "max": np.maximum, "min": np.minimum, "mul": np.multiply,
            "ne": np.not_equal, "neg": np.negative, "not": np.invert, "or": np.bitwise_or,
            "pow": np.power, "sign": np.sign, "sin": np.sin, "sinh": np.sinh, "sqrt": np.sqrt,
            "square": np.square, "stop_gradient": np.asarray, "sub": np.subtract, "tan": np.tan,
            "tanh": np.tanh, "xor": np.bitwise_xor, "copy": np.asarray, "copy_p": np.asarray,
        }.items()
    },
    **{
        name: _reduction(function)
        for name, function in {
            "reduce_and": np.bitwise_and, "reduce_or": np.bitwise_or, "reduce_prod": np.multiply,
            "reduce_sum": np.add,
        }.items()
    },
    "reduce_max": _extreme(np.max, -1.0),
    "reduce_min": _extreme(np.min, 1.0),
    "complex": lambda a, b: a + 1j * b,
    "conj": lambda x, **_: np.conj(x) + 0j,
    "imag": np.imag,
    "real": np.real,
    "argmax": _argument(np.argmax),
    "argmin": _argument(np.argmin),
    "broadcast_in_dim": _broadcast_in_dim,
    "clamp": lambda low, x, high: np.clip(x, low, high),
    "concatenate": lambda *parts, dimension: np.concatenate(parts, dimension),
    "convert_element_type": _convert,
    "cumsum": _cumulative(np.cumsum),
    "cumprod": _cumulative(np.cumprod),
    "dot_general": _dot_general,
    "expand_dims": lambda x, *, dimensions: np.expand_dims(x, dimensions),
    "integer_pow": lambda x, *, y: np.asarray(x) ** float(y) if y < 0 else np.asarray(x) ** y,
    "iota": _iota,
    "logistic": _logistic,
    "pad": _pad,
    "reshape": _reshape,
    "rev": lambda x, *, dimensions: np.flip(x, dimensions),
    "rsqrt": lambda x, **_: 1 / np.sqrt(x),
    "select_n": _select_n,
    "slice": _slice,
    "squeeze": lambda x, *, dimensions: np.squeeze(x, tuple(dimensions)),
    "transpose": lambda x, *, permutation: np.transpose(x, permutation),
}  # fmt: skip
