"""What is verified: a forward pass, a formula for its gradients, and points at which to compare them."""

import contextlib
import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from funcnet.errors import DTypeError, StructureError, describe
from funcnet.verifier import tape, trace
from funcnet.verifier.finding import sizes
from funcnet.verifier.trace import QUICKLY, widened

__all__ = [
    "SMALL",
    "Problem",
    "after_forward",
    "arguments",
    "as_arrays",
    "check_values",
    "cotangents",
    "elsewhere",
    "fresh",
    "in_dtypes",
    "is_float",
    "names_of",
    "options",
    "pose",
    "pulled",
    "resized",
    "wide",
]

SMALL = 50_000  # elements; above, one point is enough, and mistakes are named at other sizes


def options(*arrays: Sequence[Any]) -> dict[str, Any] | None:
    """Of XLA, for a function that is run a few times on such arrays: compile it quickly if they are small."""
    if sum(v.size for some in arrays for v in some) > SMALL:
        return None
    return QUICKLY


@dataclasses.dataclass(frozen=True)
class Problem:
    """A forward pass and a formula for its gradients.

    Attributes:
        name: of the operation.
        names: of its arguments.
        forward: ``forward(*args) -> y``, the definition.
        formula: ``formula(args, dy)``: one gradient tree per argument, or None.
        args: where to verify.
        pullback: ``pullback(*args)`` of an operation: a pytree of the residuals that it keeps; else None.
        values: by name, what else computes the `numbers` of the result: ``values(args)``.
        rules: the derivative rules that are verified, if they are those of forward itself.
        written: by which functions the formula is written.
        remade: the formula with each of these functions changed, and what gives the values of its forward
            pass, if anything does: ``remade(change) -> (formula, values)``.
        still: the numbers of those floats among `arrays` whose gradients are not asked for.
        primal: of arrays, what is the same on both sides of a kink, where the result, which is a derivative,
            is not; None: the result.
    """

    name: str
    names: tuple[str, ...]
    forward: Callable[..., Any]
    formula: Callable[[Any, Any], Any]
    args: tuple[Any, ...]
    pullback: Callable[..., Any] | None = None
    values: Mapping[str, Callable[[Any], Any]] = dataclasses.field(default_factory=dict)
    rules: tuple[Any, ...] = ()
    written: tuple[Any, ...] = ()
    remade: Callable[[Callable[[Any], Any]], tuple[Any, Any]] | None = None
    still: frozenset[int] = frozenset()
    primal: Callable[[Sequence[Any]], list[Any]] | None = None

    @functools.cached_property
    def own_rules(self) -> tuple[Any, ...]:
        """The derivative rules of its own that the forward pass holds."""
        with tape.met() as found, contextlib.suppress(Exception):  # what runs in Python alone has none
            jax.eval_shape(lambda *v: self.forward(*self.unflatten(v)), *self.arrays)
        return tuple(found)

    @functools.cached_property
    def stops(self) -> bool:
        """Whether the forward pass says what its derivative is: by a stop, or a rule of its own."""
        program, _ = trace.trace(lambda a: self.y(a), list(self.arrays))
        return "stop_gradient" in program.primitives or bool(self.own_rules)

    @functools.cached_property
    def arrays(self) -> tuple[Any, ...]:
        """The leaves of the arguments that are arrays."""
        return tuple(leaf for leaf in jax.tree.leaves(self.args) if hasattr(leaf, "dtype"))

    @functools.cached_property
    def moving(self) -> tuple[int, ...]:
        """The numbers of the floats among `arrays` whose gradients are asked for."""
        return tuple(i for i, leaf in enumerate(self.arrays) if is_float(leaf) and i not in self.still)

    def unflatten(self, arrays: Sequence[Any]) -> tuple[Any, ...]:
        """The arguments made of other arrays."""
        leaves, tree = jax.tree.flatten(self.args)
        others = iter(arrays)
        return jax.tree.unflatten(tree, [next(others) if hasattr(v, "dtype") else v for v in leaves])

    @functools.cached_property
    def shapes(self) -> str:
        """Those of the arrays: ``7×11, 11×13``."""
        return sizes(self.arrays)

    @functools.cached_property
    def all_paths(self) -> tuple[str, ...]:
        """The arrays as the user writes them: ``params["w"]``."""

        def text(path: Any) -> str:
            rest = (f'["{k.key}"]' if isinstance(k, jax.tree_util.DictKey) else str(k) for k in path[1:])
            return self.names[path[0].idx] + "".join(rest)

        return tuple(text(p) for p, v in jax.tree.leaves_with_path(self.args) if hasattr(v, "dtype"))

    @functools.cached_property
    def paths(self) -> tuple[str, ...]:
        """The floats among `all_paths`."""
        return tuple(self.all_paths[i] for i in self.moving)

    def sizes(self, arrays: Sequence[Any], y: Sequence[Any]) -> dict[str, int]:
        """The sizes of the floats and of the result by name: ``x.shape[0]``."""
        named = [(self.all_paths[i], arrays[i]) for i in self.moving]
        named += [("y" if len(y) == 1 else f"y[{i}]", v) for i, v in enumerate(y)]
        sizes = {f"{name}.shape[{a}]": d for name, v in named for a, d in enumerate(v.shape)}
        return sizes | {f"{name}.size": v.size for name, v in named if len(v.shape) > 1}

    def place(self, arrays: Sequence[Any], values: Sequence[Any]) -> list[Any]:
        """All arrays, with `values` in place of the floats."""
        replaced = dict(zip(self.moving, values, strict=True))
        return [replaced.get(i, v) for i, v in enumerate(arrays)]

    def y(self, arrays: Sequence[Any]) -> list[Any]:
        """The float leaves of the result."""
        return [v for v in as_arrays(self.forward(*self.unflatten(arrays))) if is_float(v)]

    def shape_of_y(self, arrays: Sequence[Any]) -> list[Any]:
        """The shapes and dtypes of `y`; a forward pass that JAX cannot trace is run for them."""
        leaves = jax.tree.leaves(self.shape_of_result(arrays))
        return [v for v in leaves if is_float(v)]

    def shape_of_result(self, arrays: Sequence[Any]) -> Any:
        """The shapes and dtypes of what forward returns."""
        try:
            return jax.eval_shape(lambda *v: self.forward(*self.unflatten(v)), *arrays)
        except (jax.errors.JAXTypeError, jax.errors.JAXIndexError):
            shaped = jax.core.Tracer | jax.ShapeDtypeStruct
            arrays = [jnp.ones(v.shape, v.dtype) if isinstance(v, shaped) else v for v in arrays]
            y = self.forward(*self.unflatten(arrays))
            return jax.tree.map(lambda v: jax.ShapeDtypeStruct(np.shape(v), np.asarray(v).dtype), y)

    def autodiff(
        self,
        arrays: Sequence[Any],
        dy: Sequence[Any],
        y: Callable[[Sequence[Any]], list[Any]] | None = None,
    ) -> list[Any]:
        """The gradients of the floats by JAX; of another forward pass `y` over all arrays if given."""
        values = [arrays[i] for i in self.moving]
        out, pull = jax.vjp(lambda *v: (y or self.y)(self.place(arrays, v)), *values)
        return list(pull([jnp.asarray(d, v.dtype) for d, v in zip(dy, out, strict=True)]))

    def gradients(self, arrays: Sequence[Any], dy: Sequence[Any]) -> list[Any]:
        """What the formula gives for the float leaves; None where it gives none.

        Raises:
            StructureError: its gradients are of another number or nesting than the arguments.
        """
        args = self.unflatten(arrays)
        matched = self.matched(self.formula(args, self.cotangent(arrays, dy)), args)
        floats = (i for i, leaf in enumerate(self.arrays) if is_float(leaf))
        return [grad for i, grad in zip(floats, matched, strict=True) if i not in self.still]

    def cotangent(self, arrays: Sequence[Any], dy: Sequence[Any]) -> Any:
        """One of the result's structure, given that of its floats."""
        y, of_floats = self.shape_of_result(arrays), iter(dy)
        filled = [
            jnp.asarray(next(of_floats), v.dtype) if is_float(v) else np.zeros(v.shape, jax.dtypes.float0)
            for v in jax.tree.leaves(y)
        ]
        return jax.tree.unflatten(jax.tree.structure(y), filled)

    def matched(self, grads: Any, args: Any) -> list[Any]:
        """The gradients of the float leaves of the arguments, given one tree for each argument."""
        while isinstance(grads, tuple | list) and len(grads) > len(args) and grads[-1] is None:
            grads = grads[:-1]  # of an argument that was left out: attention's bias
        if not isinstance(grads, tuple | list) or len(grads) != len(args):
            raise StructureError(
                f"verify: the formula of {self.name} does not return one gradient for each argument.",
                path="backward",
                expected=f"a tuple of {len(args)}, in the order of args; None where there is no gradient",
                actual=f"{len(grads)} gradients" if isinstance(grads, tuple | list) else describe(grads),
            )
        matched: list[Any] = []

        def visit(grad: Any, arg: Any) -> None:
            if grad is None or getattr(grad, "dtype", None) == jax.dtypes.float0:
                matched.extend([None] * sum(map(is_float, jax.tree.leaves(arg))))
            elif not hasattr(arg, "dtype"):
                raise ValueError("one gradient for a whole tree")
            elif is_float(arg):
                matched.append(jnp.asarray(grad))
                if jnp.issubdtype(matched[-1].dtype, jax.dtypes.prng_key):
                    raise ValueError("a random key for a gradient")
            # else: a gradient of an integer, which has none; the shape check of the judge says so

        try:
            jax.tree.map(visit, tuple(grads), tuple(args), is_leaf=lambda v: v is None)
        except ValueError as error:
            raise StructureError(
                f"verify: the gradients of {self.name} have another structure than its arguments.",
                path="backward",
                expected=str(jax.tree.structure(tuple(args))),
                actual=str(jax.tree.structure(tuple(grads))),
            ) from error
        return matched


def arguments(where: str, backward: Any, args: Any) -> tuple[Any, Sequence[Any]]:
    """The formula, None where args stand in its place, and args.

    Raises:
        DTypeError: args is not a tuple.
    """
    if args is None:
        args, backward = backward, None
    if not isinstance(args, tuple | list):
        raise DTypeError(
            f"{where}: args is not a tuple of arguments.",
            path="args",
            expected="args: (x, w, ...)",
            actual=f"args: {describe(args)}",
            hint="one argument is (x,)." if hasattr(args, "dtype") else None,
        )
    return backward, args


def pose(
    forward: Any, backward: Any, args: Any, *, reference: Any = None, static: Mapping[str, Any] | None = None
) -> Problem:
    """Read the arguments of `verify`, in any of its three forms.

    Raises:
        DTypeError: args is not a tuple, or has no float leaf; a leaf is an array, but not of numbers, or of
            another library; forward or backward is no function.
    """
    static = dict(static or {})
    backward, args = arguments("verify", backward, args)
    is_operation = hasattr(forward, "vjp") and (hasattr(forward, "reference") or hasattr(forward, "apply"))
    functions = {"backward": backward} if backward is not None else {}
    if not is_operation:
        functions["forward"] = forward
    _check_kinds(functions, args)
    args = jax.tree.map(lambda v: jnp.asarray(v) if isinstance(v, float | np.ndarray) else v, tuple(args))
    called = tape.function_of(forward) if tape.is_rule(forward) else forward
    name = getattr(called, "__name__", "forward").rpartition(".")[2].replace("<lambda>", "forward")
    met, values, pullback = (), {}, None
    plain = functools.partial(tape.plain, token=object())  # one definition, traced and compiled once
    if is_operation:
        definition: Any = getattr(forward, "reference", None) or forward.apply
        if not tape.brought_by(forward.vjp, "jax", "funcnet") or definition is forward.apply:
            definition = _without(plain, definition)
        pullback = lambda *a: forward.vjp(*a, **static)[1]
        written = (forward.vjp,)

        def remade(change: Any) -> Any:
            vjp = change(forward.vjp)
            values = lambda args: numbers(vjp(*args, **static)[0])
            return (lambda args, dy: vjp(*args, **static)[1](dy)), values

        formula, values["vjp"] = remade(_same)
        if hasattr(forward, "apply") and hasattr(forward, "reference"):
            values["apply"] = lambda args: numbers(forward.apply(*args, **static))
    elif backward is not None:
        # A function that is itself a rule is verified, not taken at its word.
        definition = (
            _without(lambda: plain([forward], all_of_them=False), forward)
            if tape.is_rule(forward)
            else forward
        )

        written = (backward,)

        def remade(change: Any) -> Any:
            backward_ = change(backward)

            def formula(args: Any, dy: Any) -> Any:
                grads = backward_(*args, dy, **static)
                return (grads,) if len(args) == 1 and not _is_tuple_of_one(grads, args[0]) else grads

            return formula, None

        formula, _ = remade(_same)
    else:
        met = _rules_of(forward, args, static)
        written = tuple(vars(rule).get(part) for rule in met for part in ("bwd", "jvp", "fwd"))
        # A definition that calls the rule is no definition of it.
        definition = (
            _without(lambda: plain([forward] if tape.is_rule(forward) else ()), forward)
            if reference is None
            else _without(lambda: plain(met, all_of_them=False), reference)
        )

        placed = functools.partial(tape.placed, token=object())

        def remade(change: Any) -> Any:
            f = lambda *a: forward(*a, **static)
            within = placed if change is _same else lambda: tape.changed(change)
            f = _without(within, f)
            pull = lambda args: pulled(f, args)
            return (lambda args, dy: pull(args)[1](dy)), (lambda args: numbers(pull(args)[0]))

        formula, values["the rule"] = remade(_same)
        values["the function"] = lambda args: numbers(forward(*args, **static))

    defined = lambda *a: definition(*a, **static)
    names = names_of(called if reference is None and not is_operation else definition, len(args))
    problem = Problem(name, names, defined, formula, args, pullback, values, met, written, remade)
    if not problem.moving:
        given = ", ".join(describe(v) for v in jax.tree.leaves(args))
        raise DTypeError(
            "verify: args has no floating-point array, so there is no gradient to verify.",
            path="args",
            actual=given or "nothing",
            hint="give floats: x.astype(float)." if given else None,
        )
    return problem


def _check_kinds(functions: Mapping[str, Any], args: Sequence[Any]) -> None:
    for name, function in functions.items():
        if not callable(function):
            raise DTypeError(
                f"verify: {name} is not a function.",
                path=name,
                expected=f"{name}: a function" + (", or an operation" if name == "forward" else ""),
                actual=f"{name}: {describe(function)}",
                hint="one gradient for each argument, in a function: backward(*args, dy)."
                if name == "backward" and isinstance(function, tuple | list)
                else None,
            )
    check_values("verify", "args", tuple(args))
    for path, leaf in jax.tree.leaves_with_path(tuple(args)):
        kinds = (np.number, np.bool_, jax.dtypes.prng_key)
        is_array = isinstance(leaf, np.ndarray | np.generic | jax.Array)
        if hasattr(leaf, "dtype") and not (is_array and any(jnp.issubdtype(leaf.dtype, k) for k in kinds)):
            where = f"args{jax.tree_util.keystr(path)}"
            raise DTypeError(
                f"verify: {where} is no array of numbers.",
                path=where,
                expected="an array of NumPy or JAX",
                actual=f"{where}: {describe(leaf)}",
            )


def check_values(of: str, name: str, tree: Any) -> None:
    """Raise a DTypeError where an array has no values: it is traced, or was given away."""
    for path, leaf in jax.tree.leaves_with_path(tree):
        where, lacks = f"{name}{jax.tree_util.keystr(path)}", ""
        if isinstance(leaf, jax.core.Tracer):
            lacks = "is traced and has no values: verify outside of the function that JAX compiles"
        elif isinstance(leaf, jax.Array) and leaf.is_deleted():
            lacks = "was given away, as to a step that donates its state: give another"
        if lacks:
            raise DTypeError(f"{of}: {where} {lacks}.", path=where, expected="values", actual=str(leaf.aval))


def _same(function: Any) -> Any:
    return function


def _is_tuple_of_one(grads: Any, arg: Any) -> bool:
    """Whether `grads` is a tuple of the gradients of one argument, and not itself the gradient of a tuple."""
    if not isinstance(grads, tuple | list) or hasattr(grads, "_fields"):
        return False
    if not isinstance(arg, tuple | list):
        return True
    tree = lambda v: jax.tree.structure(v, is_leaf=lambda leaf: leaf is None)
    return tree(grads) != tree(arg) or (len(grads) == 1 and tree(grads[0]) == tree(arg))


def _without(rules: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that runs within a context."""

    @functools.wraps(function)
    def run(*args: Any, **static: Any) -> Any:
        with rules():
            return function(*args, **static)

    return run


def _rules_of(function: Callable[..., Any], args: Any, static: Any) -> tuple[Any, ...]:
    """The derivative rules that a function meets."""
    with tape.met() as found, contextlib.suppress(Exception):
        leaves, tree = jax.tree.flatten(args)
        arrays = [i for i, v in enumerate(leaves) if hasattr(v, "dtype")]

        def run(*values: Any) -> Any:
            given = dict(zip(arrays, values, strict=True))
            return function(
                *jax.tree.unflatten(tree, [given.get(i, v) for i, v in enumerate(leaves)]), **static
            )

        jax.eval_shape(run, *(leaves[i] for i in arrays))
    return tuple(found) or ((function,) if tape.is_rule(function) else ())


def pulled(f: Callable[..., Any], args: Any) -> tuple[Any, Callable[[Any], Any]]:
    """f(*args), and its pullback to the floats of the arguments, None for the others."""
    leaves, tree = jax.tree.flatten(args)
    moving = [i for i, leaf in enumerate(leaves) if is_float(leaf)]

    def of_floats(*values: Any) -> Any:
        replaced = dict(zip(moving, values, strict=True))
        return f(*jax.tree.unflatten(tree, [replaced.get(i, leaf) for i, leaf in enumerate(leaves)]))

    y, pull = jax.vjp(of_floats, *(leaves[i] for i in moving))

    def pullback(dy: Any) -> Any:
        grads = iter(pull(dy))
        return jax.tree.unflatten(tree, [next(grads) if i in moving else None for i in range(len(leaves))])

    return y, pullback


def names_of(function: Any, count: int) -> tuple[str, ...]:
    """The names of the first arguments of a function."""
    try:
        names = [
            p.name
            for p in inspect.signature(function).parameters.values()
            if p.kind <= p.POSITIONAL_OR_KEYWORD
        ]
    except (ValueError, TypeError):  # a built-in without a signature
        names = []
    return tuple([*names, *(f"argument {i}" for i in range(len(names), count))][:count])


def is_float(leaf: Any) -> bool:
    """Whether a leaf can have a gradient: it is of floats, or complex numbers."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact)


def as_arrays(y: Any) -> list[Any]:
    """The leaves of a result; numbers of Python's are arrays, as JAX has them."""
    return [jnp.asarray(v) if isinstance(v, float | complex) else v for v in jax.tree.leaves(y)]


def numbers(y: Any) -> list[Any]:
    """The leaves of a result that are arrays of numbers, floats first."""
    leaves = [v for v in as_arrays(y) if hasattr(v, "dtype")]
    whole = [v for v in leaves if any(jnp.issubdtype(v.dtype, kind) for kind in (np.integer, np.bool_))]
    return [*filter(is_float, leaves), *whole]


def wide(tree: Any) -> Any:
    """The floats in float64, complex numbers in complex128; needs `jax.enable_x64`."""
    cast = lambda v: jnp.asarray(np.asarray(v, widened(v.dtype)))
    return jax.tree.map(lambda v: cast(v) if is_float(v) else v, tree)


def after_forward(problem: Problem) -> Problem:
    """The same, whose formula is run after the forward pass, as that of a layer which keeps its values."""
    formula = lambda args, dy: (problem.forward(*args), problem.formula(args, dy))[1]
    return dataclasses.replace(problem, formula=formula)


def in_dtypes(problem: Problem, own: Sequence[Any], of_y: Sequence[Any], *, forward: bool) -> Problem:
    """The same, whose arguments are cast where functions are called that know no other dtypes.

    What is traced so is run in float64 nevertheless.

    Args:
        problem: in float64.
        own: the dtypes of its floats.
        of_y: those of the floats in its result.
        forward: whether it is the forward pass that knows no others, or the formula alone.
    """

    def cast(tree: Any, dtypes: Sequence[Any] = own) -> Any:
        each = iter(dtypes)
        return jax.tree.map(lambda v: v.astype(next(each)) if is_float(v) else v, tree)

    of_args = lambda f: lambda args: f(cast(args))
    changed: dict[str, Any] = {"formula": lambda args, dy: problem.formula(cast(args), cast(dy, of_y))}
    if forward:
        changed["forward"] = lambda *args: problem.forward(*cast(args))
        changed["values"] = {name: of_args(values) for name, values in problem.values.items()}
    return dataclasses.replace(problem, **changed)


# ---- points -----------------------------------------------------------------------------------------------


def cotangents(
    y: Sequence[Any], dtypes: Sequence[Any], rng: np.random.Generator, most: int = 3
) -> list[list[np.ndarray]]:
    """Two random cotangents and a constant one, or as many, for the float leaves of y.

    They are 0 where y is not finite, and numbers of the `dtypes` that y has for the user, if any are given.
    """

    def one(draw: Callable[..., Any], v: np.ndarray, dtype: Any) -> np.ndarray:
        dy = draw(v.shape)
        dy = dy + 1j * draw(v.shape) if np.iscomplexobj(v) else dy
        return np.asarray(np.where(np.isfinite(v), dy, 0).astype(dtype), widened(v.dtype))

    each = list(zip(y, dtypes or [v.dtype for v in y], strict=True))
    return [
        [one(draw, v, dtype) for v, dtype in each]
        for draw in (rng.standard_normal, rng.standard_normal, np.ones)[:most]
    ]


def fresh(leaf: Any, rng: np.random.Generator, by: float = 0.1) -> Any:
    """Values near those of `leaf`, of the same kind: signs, symmetry, probabilities and masks are kept."""
    if not is_float(leaf):
        return leaf
    if jnp.iscomplexobj(leaf):
        return jax.lax.complex(fresh(leaf.real, rng, by), fresh(leaf.imag, rng, by))
    x = np.asarray(leaf, np.float64)
    finite = np.isfinite(x)
    if _is_binary(x) or not finite.any():
        return leaf
    noise = rng.standard_normal(x.shape) * by
    spread = float(x[finite].std()) or float(np.abs(x[finite]).max()) or 1.0
    one_sided = (x[finite] > 0).all() or (x[finite] < 0).all()
    return jnp.asarray(_alike(x, np.where(finite, x * np.exp(noise) if one_sided else x + spread * noise, x)))


def _resized(leaf: Any, shape: Sequence[Any], smallest: int, rng: np.random.Generator) -> Any:
    """Values of another shape, of the kind of `leaf`: integers below `smallest`, masks as dense."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf
    if jnp.iscomplexobj(leaf):
        return jax.lax.complex(*(_resized(v, shape, smallest, rng) for v in (leaf.real, leaf.imag)))
    x = np.asarray(leaf)
    if x.dtype == bool:
        if x.ndim >= 2 and (x == np.tril(x)).all() and x.any():
            return jnp.asarray(np.tril(np.ones(shape, bool)))
        return jnp.asarray(rng.random(shape) < (x.mean() if x.size else 0.5))
    if not is_float(leaf):
        high = max(1, min(smallest, int(x.max(initial=0)) + 1))
        return jnp.asarray(rng.integers(0, high, shape), leaf.dtype)
    x = x.astype(np.float64)
    if _is_binary(x):
        low, high = np.unique(x)
        return jnp.asarray(np.where(rng.random(shape) < (x == high).mean(), high, low))
    noise, x = rng.standard_normal(tuple(shape)), x if x.size else np.zeros(1)
    if (x > 0).all() or (x < 0).all():
        return jnp.asarray(_alike(x, x.mean() * np.exp(0.5 * noise)))
    return jnp.asarray(_alike(x, x.mean() + (float(x.std()) or 1.0) * noise))


def _is_binary(x: np.ndarray) -> bool:
    return x.size > 1 and bool(np.isin(x, (0.0, 1.0, -np.inf)).all()) and len(np.unique(x)) == 2


def _alike(old: np.ndarray, new: Any) -> Any:
    """`new` with the structure that `old` has exactly: symmetric, or rows that sum to 1."""
    square = old.ndim >= 2 and old.shape[-1] == old.shape[-2] > 1 and new.shape[-1] == new.shape[-2]
    if square and (old == old.swapaxes(-1, -2)).all() and not (old == old.flat[0]).all():
        return (new + new.swapaxes(-1, -2)) / 2
    if old.ndim and old.shape[-1] > 1 and (old >= 0).all() and np.allclose(old.sum(-1), 1, atol=1e-6):
        return np.abs(new) / np.abs(new).sum(-1, keepdims=True)
    return new


_LARGE = 2**20  # elements
_PRIMES = (3, 5, 7, 11, 13, 17, 19, 23, 29, 31)
_EVEN = (4, 6, 8, 10, 14, 16, 20, 22, 26, 28)  # what halves an axis is right for odd or even sizes alone


def _other_sizes(leaves: Sequence[Any], kind: str) -> dict[Any, int] | None:
    """A size for each size of the arguments: "primes", "square", "second", "zero", "one"; None if equal."""
    old = sorted({d for leaf in leaves for d in leaf.shape if d > 1})
    if kind == "square":
        new = dict.fromkeys(old, 5)
    elif kind in ("zero", "one"):  # of the first axis, which as a rule is the batch
        first = next((leaf.shape[0] for leaf in leaves if leaf.ndim > 1), None)
        if first is None or first <= 1:
            return None
        new = {d: d for d in old} | {first: int(kind == "one")}
    else:
        sizes = _PRIMES if kind == "primes" else _EVEN
        starts = (dict(zip(old, sizes[k:], strict=False)) for k in range(4))
        new = next((sizes for sizes in starts if all(a != b for a, b in sizes.items())), {})
    return None if len(new) < len(old) or all(a == b for a, b in new.items()) else new


def elsewhere(problem: Problem, kind: str, rng: np.random.Generator) -> list[Any] | None:
    """The leaves of the arguments at other sizes; None where they are large, or forward does not run there.

    Equal sizes stay equal; a size of 0 or 1 stays as it is.
    """
    if (sizes := _other_sizes(problem.arrays, kind)) is None:
        return None
    shapes: list[Any] = [tuple(sizes.get(d, d) for d in v.shape) for v in problem.arrays]
    if sum(math.prod(shape) for shape in shapes) > max(_LARGE, sum(v.size for v in problem.arrays)):
        return None  # twelve axes of 2 are few elements, twelve of 5 are not
    moved = resized(problem, shapes, rng)
    try:
        y = problem.shape_of_y(moved)
    except Exception:  # whatever a forward pass may raise on shapes that it does not know
        return None
    return moved if y else None


def resized(problem: Problem, shapes: Sequence[Any], rng: np.random.Generator) -> list[Any]:
    """The arrays of a problem with other shapes: values of their kind, integers below the smallest size."""
    smallest = min((d for shape in shapes for d in shape if d), default=1)
    return [_resized(v, shape, smallest, rng) for v, shape in zip(problem.arrays, shapes, strict=True)]
