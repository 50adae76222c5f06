"""A function as a flat list of equations that NumPy can run, each with the line that wrote it.

What JAX traces is inlined until only primitives are left, which run with every float in float64, whatever it
is cast to. The equations are then cheap to run again, with other roundings or with one of them changed, which
is how mistakes are judged and searched for: no tracing and no compiling per attempt.
"""

import dataclasses
import functools
import linecache
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from funcnet._programs import CALLS, parts_of_scan

__all__ = [
    "HIDDEN",
    "NUMPY",
    "Equation",
    "Program",
    "bind",
    "constant",
    "flat",
    "line",
    "loop",
    "near",
    "rerun",
    "run",
    "source",
    "trace",
    "up",
    "widened",
]

_RESHAPES = ("broadcast_in_dim", "convert_element_type", "copy", "expand_dims", "reshape", "squeeze")
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

    def pruned(self) -> "Program":
        """The same without what no output needs."""
        needed, kept = set(self.outputs), list[Equation]()
        for eqn in reversed(self.equations):
            if needed & set(eqn.outputs):
                kept.append(eqn)
                needed.update(v for v in eqn.inputs if isinstance(v, int))
        return dataclasses.replace(self, equations=tuple(reversed(kept)))

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
            if maker is None or maker.name not in _RESHAPES:
                return None
            v = maker.inputs[0]
        return v

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
        jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Any], origin: tuple[str, str] | None = None
    ) -> list[Any]:
        known: dict[Any, Any] = dict(zip(jaxpr.constvars, map(kept, consts), strict=True))
        known.update(zip(jaxpr.invars, inputs, strict=True))
        read = lambda v: kept(v.val) if isinstance(v, jex.Literal) else known[v]
        for eqn in jaxpr.eqns:
            operands = [read(v) for v in eqn.invars]
            name = eqn.primitive.name
            where = origin or (line(eqn), called(eqn))
            if name in CALLS:
                inner = eqn.params[CALLS[name]]
                inner, consts = (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())
                # JAX keeps the programs of its own functions, with the line that called them first.
                results: Sequence[Any] = inline(inner, consts, operands, where if _of_jax(inner) else origin)
            else:
                results = [new(v.aval) for v in eqn.outvars]
                bodies = tuple(
                    flat(body) for key in BODIES.get(name, ()) for body in _listed(eqn.params[key])
                )
                parts = parts_of_scan(eqn) if name == "scan" else ()
                params = {k: widened(v) if k in _DTYPES else v for k, v in eqn.params.items()}
                params = dict(eqn.params) if name == "bitcast_convert_type" else params
                made = (eqn.primitive, tuple(operands), tuple(results), params, where[0])
                dtypes, takes = (
                    tuple(getattr(v.aval, "dtype", None) for v in some) for some in (eqn.outvars, eqn.invars)
                )
                equations.append(Equation(*made, bodies, parts, dtypes, takes, where[1]))
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


HIDDEN = tuple(os.path.dirname(os.path.abspath(f)) + os.sep for f in (jax.__file__, __file__))


_COMMAND = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "cli", "")


def line(eqn: Any) -> str:
    """``file.py:57``: the innermost line outside JAX and the verifier that wrote a JAX equation."""
    traceback = eqn.source_info.traceback
    for frame in traceback.frames if traceback is not None else ():
        if frame.file_name.startswith(_COMMAND):
            return ""  # a formula given as text has no line
        if not frame.file_name.startswith(HIDDEN):
            return near(frame.file_name, frame.line_num)
    return ""


_WRAPPERS = ("api.py", "core.py", "custom_derivatives.py", "partial_eval.py", "pjit.py", "traceback_util.py")


def called(eqn: Any) -> str:
    """The function of JAX that the line which wrote an equation calls: ``where``."""
    traceback, name = eqn.source_info.traceback, ""
    for frame in traceback.frames if traceback is not None else ():
        if not frame.file_name.startswith(HIDDEN):
            break
        if os.path.basename(frame.file_name) not in _WRAPPERS:
            name = frame.function_name
    name = eqn.primitive.name if name.endswith("__call__") else name
    inner = eqn.params.get(CALLS.get(eqn.primitive.name, ""))
    return name or _source(inner).partition(" at ")[0]


def _source(inner: Any) -> str:
    """``name at file.py:57`` of the function that an inner program was traced from."""
    info = getattr(getattr(inner, "jaxpr", inner), "debug_info", None)
    return getattr(info, "func_src_info", None) or ""


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


@np.errstate(all="ignore")
def rerun(
    program: Program, values: list[Any], changed: Mapping[int, Any], wanted: Sequence[Value]
) -> list[Any]:
    """The `wanted` values when some equations are changed; only what depends on them is computed again."""
    new = dict[int, Any]()
    start = min(changed)
    for k in range(start, len(program.equations)):
        eqn = program.equations[k]
        if k not in changed and not any(v in new for v in eqn.inputs if isinstance(v, int)):
            continue
        operands = [(new[v] if v in new else values[v]) if isinstance(v, int) else v for v in eqn.inputs]
        results = changed[k](operands, values) if k in changed else apply(eqn, operands)
        new.update(zip(eqn.outputs, results, strict=True))
    return [new.get(v, values[v]) for v in wanted]


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
        names = ("dimension_numbers", "indices_are_sorted", "unique_indices", "mode")
        return [up(scatter(*operands, **{name: eqn.params[name] for name in names}))]
    if any("axpr" in type(leaf).__name__ for leaf in jax.tree.leaves(list(eqn.params.values()))):
        takes = zip(operands, eqn.takes, strict=True)  # programs of one dtype, as of a linear solve
        operands = [v if _is_key(v) or v.dtype == d else v.astype(d) for v, d in takes]
    return bind(eqn, operands, up)


_SCATTERS = {
    "scatter": jax.lax.scatter,
    "scatter-add": jax.lax.scatter_add,
    "scatter_add": jax.lax.scatter_add,
    "scatter_max": jax.lax.scatter_max,
    "scatter_min": jax.lax.scatter_min,
    "scatter_mul": jax.lax.scatter_mul,
}
STEPS = 100_000  # of a loop that asks a condition; a longer one is not followed


def loop(eqn: Equation, operands: Sequence[Any], by: Callable[..., Any]) -> Sequence[Any]:
    """The outputs of a scan, a while loop or a choice between branches, in Python; `by` as in `run`.

    Raises:
        ValueError: a while loop takes more than `STEPS` steps.
    """
    through = lambda body, values: body.results(run(body, values, by=by, forget=True))
    if eqn.name == "cond":
        which, *operands = operands
        return through(eqn.inner[min(max(int(which), 0), len(eqn.inner) - 1)], operands)
    if eqn.name == "while":
        condition, body = eqn.inner
        a, b = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        of_condition, of_body, carried = operands[:a], operands[a : a + b], list(operands[a + b :])
        for _ in range(STEPS):
            if not through(condition, [*of_condition, *carried])[0]:
                return carried
            carried = through(body, [*of_body, *carried])
        raise ValueError(f"a while loop takes more than {STEPS} steps")
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
    results = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
    results = results if eqn.primitive.multiple_results else [results]
    return [v if _is_key(v) else out(v) for v in results]


def _dot_general(a: Any, b: Any, *, dimension_numbers: Any, **_: Any) -> Any:
    (ca, cb), (ba, bb) = dimension_numbers
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
    return (x if x.dtype.kind != "c" or new_dtype.kind == "c" else x.real).astype(new_dtype)


def _argument(function: Any) -> Any:
    return lambda x, *, axes, index_dtype: function(x, axis=axes[0]).astype(index_dtype)


def _cumulative(function: Any) -> Any:
    def along(x: Any, *, axis: int, reverse: bool) -> Any:
        return np.flip(function(np.flip(x, axis), axis), axis) if reverse else function(x, axis)

    return along


def _logistic(x: Any, **_: Any) -> Any:
    return np.where(x >= 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x))))


def _elementwise(function: Any) -> Any:
    return lambda *operands, **_: function(*operands)


def _reduction(function: Any) -> Any:
    return lambda x, *, axes, **_: function(x, axis=tuple(axes))


def _extreme(function: Any, sign: float) -> Any:
    def reduce(x: Any, *, axes: Any, **_: Any) -> Any:
        empty = not all(x.shape[a] for a in axes) and x.dtype.kind == "f"
        return function(x, axis=tuple(axes), **({"initial": sign * np.inf} if empty else {}))

    return reduce


NUMPY: dict[str, Callable[..., Any]] = {
    **{
        name: _elementwise(function)
        for name, function in {
            "abs": np.abs, "add": np.add, "add_any": np.add, "and": np.bitwise_and, "ceil": np.ceil,
            "cos": np.cos, "cosh": np.cosh, "div": _divide, "eq": np.equal, "exp": np.exp,
            "exp2": np.exp2, "expm1": np.expm1, "floor": np.floor, "ge": np.greater_equal,
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
            "reduce_and": np.all, "reduce_or": np.any, "reduce_prod": np.prod, "reduce_sum": np.sum,
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
    "reshape": lambda x, *_, new_sizes, **__: np.reshape(x, new_sizes),
    "rev": lambda x, *, dimensions: np.flip(x, dimensions),
    "rsqrt": lambda x, **_: 1 / np.sqrt(x),
    "select_n": _select_n,
    "slice": _slice,
    "squeeze": lambda x, *, dimensions: np.squeeze(x, tuple(dimensions)),
    "transpose": lambda x, *, permutation: np.transpose(x, permutation),
}  # fmt: skip
