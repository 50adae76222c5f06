"""How a hand-derived gradient runs in place of autodiff's, with every transform of JAX still working.

`jax.custom_vjp` would do for reverse mode, but it forbids forward mode. Two ways allow both:

- `call(vjp, *args, **options)`, for any operation: a `jax.custom_jvp` whose tangent is one linear
  primitive. Its transpose is the pullback that `vjp` returns, its forward is the `jax.linear_transpose`
  of that pullback. Reverse mode saves exactly the residuals that the pullback holds.
- `bilinear(name, product)` and `close`, for products such as T(w)x: primitives whose transposes are each
  other, so that no order of differentiation ever leaves the set.

`with autodiff("jax"):` runs the same forwards without their rules, for study and for doubt.
`operation` marks the functions that users call, so that `record` can list the calls in a traced program, and
`metered` hand those with parameters to whoever counts something of them (`analysis.example_norms`).
"""

import contextlib
import dataclasses
import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping
from types import ModuleType
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.experimental import jet
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.tree_util import Partial

from funcnet import _letters
from funcnet.errors import DTypeError, StructureError, ValueRangeError, describe, shorten

__all__ = [
    "Call",
    "autodiff",
    "bilinear",
    "bind",
    "by_jax",
    "by_letters",
    "call",
    "close",
    "composite",
    "in_jet",
    "like",
    "metered",
    "noted",
    "operation",
    "part",
    "plain",
    "products_saveable",
    "record",
    "split",
]

P = ParamSpec("P")
R = TypeVar("R")
Tree = Any  # a jax.tree_util.PyTreeDef, which type checkers take for a variable

# Contexts of JAX's own kind: they are part of its cache keys. A global or a ContextVar would be ignored
# by every function that is already traced.
_rule = jax.make_user_context("hand")
_tape = jax.make_user_context(None)
_meter = jax.make_user_context(None)
_noted = jax.make_user_context(None)


@contextlib.contextmanager
def autodiff(rule: str) -> Iterator[None]:
    """Choose what differentiates funcnet's operations inside the context.

    Args:
        rule: ``"jax"``: the same forwards, differentiated by JAX; ``"hand"``: by their own formulas.

    Raises:
        ValueRangeError: another name.
    """
    if not isinstance(rule, str) or rule not in ("hand", "jax"):
        raise ValueRangeError(
            f'autodiff: rule is {shorten(rule)}, but there are "hand" and "jax".',
            path="rule",
            expected='rule: "hand" or "jax"',
            actual=f"rule = {shorten(rule)}",
        )
    with _rule(rule):
        yield


class Call(NamedTuple):
    """One call of an operation, a module or another namespace with the contract's names and `__name__`.

    Its arrays, where it was traced, are their `jax.ShapeDtypeStruct`.
    """

    operation: ModuleType
    args: tuple[Any, ...]
    options: dict[str, Any]


class _Tape:
    """A list that hashes by identity, as a context of JAX must."""

    def __init__(self) -> None:
        self.calls: list[Call] = []


def operation(
    apply: Callable[P, R], of: ModuleType | None = None, told: _letters.Told = _letters.NOTHING
) -> Callable[P, R]:
    """Mark `apply` as an operation: `record` notes its calls, `metered` gets them. Otherwise nothing changes.

    Nothing but on a mesh with Explicit axes, where its result is split as its annotation says (`_letters`).

    However a call is written, it is noted by the contract: the parameters without a default, or with None for
    one, are its arrays, the others (``axis`` in ``softmax.apply(x, 0)``) its options.

    Args:
        apply: what users call.
        of: the namespace with the contract's names that it belongs to; None: the module it is written in.
        told: of that what the annotation does not say.
    """
    of = of or sys.modules[apply.__module__]
    return _marked(apply, of, recorded=of, told=told)


def composite(apply: Callable[P, R], told: _letters.Told = _letters.NOTHING) -> Callable[P, R]:
    """As `operation`, of one whose parameters are those of parts: they are metered, not the whole."""
    return _marked(apply, None, recorded=sys.modules[apply.__module__], told=told)


def part(
    squares: Callable[..., Any], told: _letters.Told = _letters.NOTHING
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Mark a function that uses parameters, and is no operation, for `metered`. Otherwise nothing changes.

    Its parameters are its argument "params". A net that adds a leaf, where no operation does it for it:

    >>> def squares(offset, x, dy):  # of each example, |d offset|²
    ...     return (dy.reshape(len(dy), -1, dy.shape[-1]).sum(1) ** 2).sum(-1)
    >>> @part(squares)
    ... def shift(params, x):
    ...     return x + params

    Args:
        squares: ``(*args, dy, **options) -> [n]``, as in the contract.
        told: as of `operation`.
    """
    formula = Formula(squares)
    return lambda f: _marked(f, formula, recorded=None, told=told)


def by_letters(f: Callable[P, R], told: _letters.Told = _letters.NOTHING) -> Callable[P, R]:
    """Mark a function that is no operation: on a mesh with Explicit axes its letters split its result."""
    return _marked(f, None, recorded=None, told=told)


def counted(total: jax.Array, f: Callable[[], R]) -> R:
    """``f()``; its derivative by `total` [n], zeros, is Σ squares of all in it that uses parameters.

    JAX adds up the cotangents of `total` of all these calls, through loops and `jax.checkpoint` too.
    """

    def meter(f: Any, formula: Any, at: int, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        del at
        with metered(None):
            y = f(*args, **options)
        return count(formula, total, args, options, y)

    with metered(meter):
        return f()


def count(formula: Any, total: jax.Array, args: tuple[Any, ...], options: dict[str, Any], y: Any) -> Any:
    """y, what a call gave, itself; the cotangent of `total` is ``formula.squares(*args, dy, **options)``."""
    traced, static = split(options)
    return _count((formula.squares, tuple(sorted(static.items()))), total, (args, traced), y)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _count(formula: Any, total: jax.Array, given: Any, y: Any) -> Any:
    del formula, total, given
    return y


def _count_forward(formula: Any, total: jax.Array, given: Any, y: Any) -> tuple[Any, Any]:
    del formula
    return y, (total, given)


def _count_backward(formula: Any, kept: Any, dy: Any) -> tuple[Any, None, Any]:
    (squares, static), (total, (args, traced)) = formula, kept
    return squares(*args, dy, **traced, **dict(static)).astype(total.dtype), None, dy


_count.defvjp(_count_forward, _count_backward)


class Formula(NamedTuple):
    """What `metered` knows of a function that is no operation; of an operation it is the module."""

    squares: Callable[..., Any]


def _marked(
    f: Callable[P, R], formula: Any, *, recorded: ModuleType | None, told: _letters.Told = _letters.NOTHING
) -> Callable[P, R]:
    signature = inspect.signature(f)
    arrays = [
        name
        for name, p in signature.parameters.items()
        if p.kind is p.POSITIONAL_OR_KEYWORD and (p.default is p.empty or p.default is None)
    ]
    at = next((i for i, name in enumerate(arrays) if name in ("params", "w")), None)

    @functools.wraps(f)
    def on_mesh(*args: P.args, **options: P.kwargs) -> R:
        return _letters.run(f, told, args, options)

    @functools.wraps(f)
    def marked(*args: P.args, **options: P.kwargs) -> R:
        run = on_mesh if _letters.is_explicit() else f
        tape, (meter, every) = _tape.value if recorded else None, _meter.value or (None, False)
        if not (every and recorded) and (at is None or not hasattr(formula, "squares")):
            meter = None
        if tape is not None or meter is not None:
            given = signature.bind(*args, **options).arguments
            if tape is not None and recorded is not None:
                noted = _untraced(given)
                positional = tuple(noted.pop(name, None) for name in arrays)
                tape.calls.append(Call(recorded, positional, noted))
                if hasattr(recorded, "vjp") and _noted.value is not None and meter is None:
                    values = dict(given)
                    _noted.value(recorded, tuple(values.pop(name, None) for name in arrays), values)
                    with _noted(None):  # its rule is that of the operation
                        return run(*args, **options)
            if meter is not None:
                positional = tuple(given.pop(name, None) for name in arrays)
                return meter(run, formula, at, positional, given)
        return run(*args, **options)

    return marked


@contextlib.contextmanager
def metered(meter: Callable[..., Any] | None, *, every: bool = False) -> Iterator[None]:
    """Hand every call that uses parameters to `meter`, which answers it; None ends that.

    ``meter(f, formula, at, args, options)``: the call ``f(*args, **options)``, ``formula.squares``, its
    formula, and ``args[at]``, its parameters. What f calls goes to the meter too, unless that ends it.

    Args:
        meter: the one who answers.
        every: all operations and composites too; `at` is None where there are no parameters.
    """
    with _meter(None if meter is None else (meter, every)):
        yield


@contextlib.contextmanager
def noted(note: Callable[..., None]) -> Iterator[None]:
    """Tell ``note(vjp, args, options)`` of everything that is differentiated through `call`.

    Of an operation that is recorded it is told instead of its `vjp`.
    """
    with _noted(note):
        yield


@contextlib.contextmanager
def record() -> Iterator[list[Call]]:
    """List the operations called by whatever is traced inside the context, in order.

    The context is part of JAX's cache keys, so functions that were traced before are traced again.
    A `jax.lax.scan` or `jax.vmap` body is traced once and so counts once, with the shapes it sees.
    """
    tape = _Tape()
    with _tape(tape):
        yield tape.calls


def _untraced(tree: Any) -> Any:
    def leaf(v: Any) -> Any:
        return jax.ShapeDtypeStruct(v.shape, v.dtype) if isinstance(v, jax.core.Tracer) else v

    return jax.tree.map(leaf, tree)


def same_variance(*arrays: Any) -> list[jax.Array]:
    """Cast every operand to vary over the union of their manual mesh axes, as jnp does for its operations.

    Without it, a primitive under `jax.shard_map` returns the first shard's gradient of a replicated operand.
    """
    cast = [jnp.asarray(a) for a in arrays]
    varying = [jax.typeof(a).manual_axis_type.varying for a in cast]
    union = frozenset().union(*varying)
    return [
        jax.lax.pcast(a, tuple(union - v), to="varying") if union - v else a
        for a, v in zip(cast, varying, strict=True)
    ]


def split(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What of `options` is traced, and what is static: the one place that decides it.

    An option that holds an array is traced. All others are static, as Python writes them: a number of NumPy's
    is a number, a list a tuple.

    >>> split({"causal": np.bool_(True), "window": [2, np.int64(3)], "mask": None})
    ({}, {'causal': True, 'window': (2, 3), 'mask': None})
    """
    traced = {name: value for name, value in options.items() if any(map(_is_array, jax.tree.leaves(value)))}
    return traced, {name: plain(value) for name, value in options.items() if name not in traced}


def _is_array(leaf: Any) -> bool:
    if isinstance(leaf, np.ndarray):
        return leaf.ndim > 0
    return isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)


def plain(value: Any) -> Any:
    """An option as Python writes it: a number of NumPy's as a number, a list as a tuple."""
    if isinstance(value, np.generic | np.ndarray) and not value.ndim:
        return value.item()
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return tuple(map(plain, value))
    return value


def bind(function: Callable[..., Any], **static: Hashable) -> Callable[..., Any]:
    """`functools.partial(function, **static)`, the same object each time.

    A fresh partial would give every pullback a pytree structure of its own: consumers would retrace,
    and the branches of `jax.lax.cond` would not match.
    """
    return _bind(function, **{name: plain(value) for name, value in static.items()})


@functools.lru_cache(maxsize=None, typed=True)
def _bind(function: Callable[..., Any], **static: Hashable) -> Callable[..., Any]:
    return functools.partial(function, **static)


def like(params: Any, grads: Any) -> Any:
    """`grads`, a dict by the names in `params`, in the containers of `params`: it is of the same type.

    Args:
        params: a mapping that JAX has registered, of arrays or of further ones; or its tree structure.
        grads: dicts in their place; where params hold None, or None stands for it, there is no gradient.

    Raises:
        StructureError: `params` hold what `grads` does not know.

    >>> from collections import OrderedDict
    >>> like(OrderedDict(w=1.0, b=None), {"w": 3.0})
    OrderedDict([('w', 3.0), ('b', None)])
    """
    tree = params if isinstance(params, jax.tree_util.PyTreeDef) else jax.tree.structure(params)
    return jax.tree.unflatten(tree, _spread(tree, grads))


def _spread(tree: Any, grads: Any) -> list[Any]:
    """The leaves of `grads`, each at its place in `tree`, and None where a None stands for it or for more."""
    leaves: list[Any] = [None] * tree.num_leaves

    def put(grad: Any, place: Any) -> None:
        if isinstance(grad, Mapping):
            missing = {name for name in place.keys() - grad.keys() if jax.tree.leaves(place[name])}
            if missing:
                raise KeyError(*missing)
            for name, part in grad.items():
                visit(part, place[name])
        elif grad is not None:
            leaves[place] = grad

    def visit(grads: Any, places: Any) -> None:
        jax.tree.map(put, grads, places, is_leaf=lambda v: v is None or isinstance(v, Mapping))

    try:
        visit(grads, jax.tree.unflatten(tree, range(tree.num_leaves)))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        unknown = isinstance(error, KeyError)
        raise StructureError(
            "rules: the pullback gives gradients of another structure than the arguments have.",
            path="args",
            expected=f"arguments like the gradients: {jax.tree.structure(grads)}",
            actual=str(tree),
            hint="an operation has no gradient for parameters that it does not know." if unknown else None,
        ) from error
    return leaves


# ---- any operation: a tangent that is the transpose of its pullback ---------------------------------------


@dataclasses.dataclass(frozen=True)
class _Rule:
    """`vjp` as a function of flat leaves; hashable, so that equal calls share JAX's caches."""

    vjp: Callable[..., Any]
    args: Tree
    traced: Tree
    static: tuple[tuple[str, Hashable], ...]

    def __call__(self, leaves: list[jax.Array]) -> tuple[Any, Partial]:
        args = jax.tree.unflatten(self.args, leaves[: self.args.num_leaves])
        traced = jax.tree.unflatten(self.traced, leaves[self.args.num_leaves :])
        return self.vjp(*args, **traced, **dict(self.static))


def call(vjp: Callable[..., tuple[Any, Partial]], *args: Any, **options: Any) -> Any:
    """``vjp(*args, **options)[0]``, differentiated by the pullback that `vjp` returns.

    Args:
        vjp: a module-level function ``(*args, **options) -> (y, pullback)``; ``pullback(dy)`` gives one
            cotangent tree per positional argument, None where there is no gradient.
        args: pytrees of arrays.
        options: without gradient: hashable statics, or pytrees of arrays (masks, keys).
    """
    if _noted.value is not None:
        _noted.value(vjp, args, options)
    traced, static = split(options)
    _check_hashable(vjp, static)
    arg_leaves, arg_tree = jax.tree.flatten(args)
    traced_leaves, traced_tree = jax.tree.flatten(traced)
    rule = _Rule(vjp, arg_tree, traced_tree, tuple(sorted(static.items())))
    leaves = same_variance(*arg_leaves, *traced_leaves)
    return rule(leaves)[0] if by_jax() or in_jet(*leaves) else _call(rule, leaves)


def by_jax() -> bool:
    """Whether JAX derives what rules are attached to: inside ``autodiff("jax")``."""
    return _rule.value == "jax"


def in_jet(*leaves: Any) -> bool:
    """Whether `jax.experimental.jet` differentiates, which fails in a `jax.custom_jvp` outside of jit."""
    return any(isinstance(leaf, jet.JetTracer) for leaf in leaves)


def _check_hashable(vjp: Callable[..., Any], static: dict[str, Any]) -> None:
    for name, value in static.items():
        try:
            hash(value)
        except TypeError:
            raise DTypeError(
                f"{vjp.__module__.rpartition('.')[2]}: the option {name} is neither hashable nor arrays.",
                path=name,
                expected=f"{name}: a hashable value, or arrays",
                actual=f"{name}: {describe(value)}",
            ) from None


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _call(rule: _Rule, leaves: list[jax.Array]) -> Any:
    return rule(leaves)[0]


@_call.defjvp
def _call_jvp(rule: _Rule, primals: Any, tangents: Any) -> Any:
    (leaves,), (dleaves,) = primals, tangents
    y, pullback = rule(leaves)
    residuals, pullback_tree = jax.tree.flatten(pullback)
    y_leaves, y_tree = jax.tree.flatten(y)
    moving = tuple(i for i in range(rule.args.num_leaves) if jnp.issubdtype(leaves[i].dtype, jnp.inexact))
    linear = _Linear(
        pullback_tree, rule.args, y_tree, moving, tuple(jax.typeof(v).to_tangent_aval() for v in y_leaves)
    )
    operands = same_variance(*residuals, *(dleaves[i] for i in moving))
    dy = _linear_p.bind(*operands, linear=linear, known=len(residuals))
    return y, jax.tree.unflatten(y_tree, dy)


@dataclasses.dataclass(frozen=True)
class _Linear:
    """The linear map from tangents to dy, given residuals, and its transpose; flat lists throughout."""

    pullback: Tree
    args: Tree
    y: Tree
    moving: tuple[int, ...]  # the leaves of args that have a tangent
    dy: tuple[Any, ...]  # abstract values

    def pull(self, residuals: list[Any], dy: list[Any]) -> list[Any]:
        grads = jax.tree.unflatten(self.pullback, residuals)(jax.tree.unflatten(self.y, dy))
        leaves = _spread(self.args, grads)
        return [leaves[i] for i in self.moving]

    def push(self, residuals: list[Any], tangents: list[Any]) -> list[Any]:
        zeros = same_variance(*residuals, *(jnp.zeros(v.shape, v.dtype) for v in self.dy))
        return _transpose_of_pull(self, residuals, zeros[len(residuals) :], tangents)

    def out_avals(self, *_: Any) -> tuple[Any, ...]:
        return self.dy


@dataclasses.dataclass(frozen=True)
class _Batched:
    """`inner` over a batch: residuals along `axes` (None: shared), tangents and cotangents along axis 0."""

    inner: "_Linear | _Batched"
    axes: tuple[int | None, ...]
    size: int

    def pull(self, residuals: list[Any], dy: list[Any]) -> list[Any]:
        return jax.vmap(self.inner.pull, (list(self.axes), 0), axis_size=self.size)(residuals, dy)

    def push(self, residuals: list[Any], tangents: list[Any]) -> list[Any]:
        return jax.vmap(self.inner.push, (list(self.axes), 0), axis_size=self.size)(residuals, tangents)

    def out_avals(self, residuals: list[Any], tangents: list[Any]) -> tuple[Any, ...]:
        return tuple(jax.make_jaxpr(self.push)(residuals, tangents).out_avals)


def _transpose_of_pull(linear: _Linear, residuals: Any, dy: Any, tangents: Any) -> list[Any]:
    pull = functools.partial(linear.pull, residuals)
    grads = jax.eval_shape(pull, dy)
    tangents = [None if g is None else t for g, t in zip(grads, tangents, strict=True)]
    if all(t is None for t in tangents):
        return dy
    (out,) = jax.linear_transpose(pull, dy)(tangents)
    return out


_linear_p = Primitive("hand_linear")
_linear_p.multiple_results = True


def _push(*operands: Any, linear: _Linear | _Batched, known: int) -> list[Any]:
    return linear.push(list(operands[:known]), list(operands[known:]))


@_linear_p.def_abstract_eval
def _(*operands: Any, linear: _Linear | _Batched, known: int) -> tuple[Any, ...]:
    return linear.out_avals(list(operands[:known]), list(operands[known:]))


_linear_p.def_impl(jax.jit(_push, static_argnames=("linear", "known")))
mlir.register_lowering(_linear_p, mlir.lower_fun(_push, multiple_results=True))


def _linear_jvp(operands: Any, tangents: Any, *, linear: Any, known: int) -> tuple[list[Any], list[Any]]:
    """Linear in the tangents that it is given; in the residuals, what JAX derives from the formula."""
    out = _linear_p.bind(*operands, linear=linear, known=known)
    residuals, arguments = list(operands[:known]), list(operands[known:])
    dout = [jnp.zeros_like(o) for o in out]
    if any(type(t) is not ad.Zero for t in tangents[known:]):
        moved = [ad.instantiate_zeros(t) for t in tangents[known:]]
        dout = _linear_p.bind(*same_variance(*residuals, *moved), linear=linear, known=known)
    moving = [
        i
        for i in range(known)
        if type(tangents[i]) is not ad.Zero and jnp.issubdtype(residuals[i].dtype, jnp.inexact)
    ]
    if moving:

        def of_residuals(moved: list[Any]) -> list[Any]:
            replaced = dict(zip(moving, moved, strict=True))
            return linear.push([replaced.get(i, r) for i, r in enumerate(residuals)], arguments)

        _, more = jax.jvp(of_residuals, ([residuals[i] for i in moving],), ([tangents[i] for i in moving],))
        dout = [a + b for a, b in zip(dout, more, strict=True)]
    return out, dout


def _linear_transpose(dy: Any, *operands: Any, linear: Any, known: int) -> list[Any]:
    dy = [ad.instantiate_zeros(c) for c in dy]
    grads = linear.pull(list(operands[:known]), dy)
    wanted = operands[known:]
    return [None] * known + [
        None
        if not ad.is_undefined_primal(a)
        else ad.Zero(a.aval)
        if g is None
        else same_variance(g, *dy, *operands[:known])[0]  # a constant does not vary
        for g, a in zip(grads, wanted, strict=True)
    ]


def _linear_batch(operands: Any, dims: Any, *, linear: Any, known: int) -> tuple[list[Any], list[int]]:
    size = next(a.shape[d] for a, d in zip(operands, dims, strict=True) if d is not None)
    tangents = [
        batching.bdim_at_front(a, d, size) for a, d in zip(operands[known:], dims[known:], strict=True)
    ]
    batched = _Batched(linear, tuple(dims[:known]), size)
    out = _linear_p.bind(*operands[:known], *tangents, linear=batched, known=known)
    return out, [0] * len(out)


def _linear_taylor(primals: Any, series: Any, **static: Any) -> tuple[list[Any], list[list[Any]]]:
    moving = [i for i, p in enumerate(primals) if jnp.issubdtype(p.dtype, jnp.inexact)]

    def push(*moved: Any) -> list[Any]:
        replaced = dict(zip(moving, moved, strict=True))
        return _push(*(replaced.get(i, p) for i, p in enumerate(primals)), **static)

    take = lambda values: [values[i] for i in moving]
    return jet.jet(push, take(primals), take(series), factorial_scaled=False)


ad.primitive_jvps[_linear_p] = _linear_jvp
ad.primitive_transposes[_linear_p] = _linear_transpose
batching.primitive_batchers[_linear_p] = _linear_batch
jet.jet_rules[_linear_p] = _linear_taylor


# ---- bilinear products: a set of primitives closed under transposition ------------------------------------

_products: set[Any] = set()


class Bilinear:
    """A product (a, b) -> c, linear in each operand, as a primitive; call it like the function it wraps."""

    def __init__(
        self,
        name: str,
        product: Callable[..., jax.Array],
        static: tuple[str, ...],
        on_cpu: Callable[..., jax.Array] | None,
    ):
        self.product, self.primitive = _varying(product), Primitive(name)
        # A primitive runs as compiled code, so that eager calls too take the form of their platform.
        self._compiled = jax.jit(self.primitive.bind, static_argnames=static)
        self.primitive.def_impl(self._run)
        self.primitive.def_abstract_eval(self._abstract)
        for form, platform in ((self.product, None), (on_cpu and _varying(on_cpu), "cpu")):
            if form is not None:
                lowering = mlir.lower_fun(form, multiple_results=False)
                mlir.register_lowering(self.primitive, lowering, platform=platform)
        _products.add(self.primitive)

    def _run(self, *operands: Any, **static: Hashable) -> Any:
        disabled = jax.config.jax_disable_jit  # pyright: ignore[reportAttributeAccessIssue]
        return (self.product if disabled else self._compiled)(*operands, **static)

    def _abstract(self, *operands: Any, **static: Hashable) -> Any:
        # From the traced forward, so that shardings and varying axes come out as JAX has them.
        return jax.make_jaxpr(functools.partial(self.product, **static))(*operands).out_avals[0]

    def __call__(self, a: jax.Array, b: jax.Array, **static: Hashable) -> jax.Array:
        """The product; `static` are the hashable keyword arguments of the wrapped function."""
        if by_jax():
            return self.product(a, b, **static)
        return self.primitive.bind(*same_variance(a, b), **static)


def _varying(product: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    @functools.wraps(product)
    def varying(a: jax.Array, b: jax.Array, **static: Hashable) -> jax.Array:
        return same_variance(product(a, b, **static), a, b)[0]  # zeros of an empty product do not vary

    return varying


def bilinear(
    name: str,
    product: Callable[..., jax.Array],
    *static: str,
    on_cpu: Callable[..., jax.Array] | None = None,
) -> Bilinear:
    """Make a primitive of ``product(a, b, **static)``; `close` then gives its transposes.

    Args:
        name: as it appears in jaxprs.
        product: plain JAX code, linear in `a` and in `b`.
        static: the names of its keyword arguments.
        on_cpu: another form of the same product, which is what CPUs run.
    """
    return Bilinear(name, product, static, on_cpu)


def close(
    product: Bilinear,
    *,
    to_a: Callable[..., jax.Array],
    to_b: Callable[..., jax.Array],
    batch: Callable[..., tuple[jax.Array, int]],
) -> None:
    """Give `product` its transposes and its batching rule.

    Args:
        product: what `bilinear` returned.
        to_a: ``(dc, b, **static) -> da``.
        to_b: ``(dc, a, **static) -> db``.
        batch: ``(a, b, a_axis, b_axis, **static) -> (c, c_axis)``; an axis is None where shared.
    """

    def batcher(operands: Any, dims: Any, **static: Hashable) -> tuple[jax.Array, int]:
        return batch(*operands, *dims, **static)

    ad.defbilinear(
        product.primitive,
        lambda dc, _, b, **static: to_a(dc, b, **static),
        lambda dc, a, _, **static: to_b(dc, a, **static),
    )
    batching.primitive_batchers[product.primitive] = batcher
    # Leibniz's rule, which is that of every bilinear product.
    jet.jet_rules[product.primitive] = functools.partial(_taylor, product.primitive)


def _taylor(primitive: Primitive, primals: Any, series: Any, **static: Hashable) -> tuple[Any, list[Any]]:
    """The Taylor coefficients of c = a b: c_k = Σ_j a_j b_{k−j}."""
    a, b = ([primal, *terms] for primal, terms in zip(primals, series, strict=True))
    product = functools.partial(primitive.bind, **static)
    first, *rest = [sum(map(product, a[: k + 1], b[k::-1])) for k in range(len(a))]
    return first, rest


def products_saveable(primitive: Any, *_: Any, **__: Any) -> bool:
    """A policy for `jax.checkpoint`: keep the results of products, recompute the rest.

    `jax.checkpoint_policies.dots_saveable` does not know funcnet's primitives; this one does.
    """
    return primitive in _products or primitive.name in ("dot_general", "conv_general_dilated")


def __getattr__(name: str) -> Any:
    """`elementwise` and `gated`, which make operations: they check and count, as only what lies above can."""
    if name in ("elementwise", "gated"):
        return getattr(importlib.import_module("funcnet.ops._elementwise"), name)
    raise AttributeError(f"module 'funcnet.rules' has no attribute {name!r}")
