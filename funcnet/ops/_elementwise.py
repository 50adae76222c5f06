"""Makes an operation of a function of each element alone: of its definition and of its derivative.

Such an operation is a namespace with the contract's names, `reference`, `apply`, `vjp` and `cost`, and with
`__name__`: a module without a file. Its arrays are the positional parameters of the definition that have no
default; the others are options, hashable and without gradient. All is computed in float32 or wider, and
rounded once.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType, ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from funcnet import rules
from funcnet.ops import _check
from funcnet.ops._cost import Cost, traffic
from funcnet.ops._dtype import common, narrow, wide

__all__ = ["elementwise", "gated", "namespace"]

Check = Callable[[str, str, Any], Any]  # where, the name of an argument, its value -> the value


def elementwise(
    reference: Callable[..., jax.Array],
    pullback: Callable[..., Any],
    *,
    value: Callable[..., jax.Array] | None = None,
    keeps: str = "x",
    widens: bool = False,
    examples: bool = False,
    checks: Mapping[str, Check] = MappingProxyType({}),
) -> ModuleType:
    """The operation called as `reference` is, without the underscores around.

    >>> def _cube(x):
    ...     '''y = x³.'''
    ...     return x * x * x
    >>> cube = elementwise(_cube, lambda x, dy: dy * 3 * x * x)
    >>> jax.grad(cube.apply)(2.0 * jnp.ones(())).item()
    12.0

    Args:
        reference: ``(*arrays, **options) -> y``, the definition, as the textbook writes it; its docstring
            says the formula, the options, the source.
        pullback: ``(*arrays, dy, **options) -> dx``, or a tuple with one cotangent for each array, None for
            one that has no gradient. What a kink cuts off it selects: 0 · NaN is NaN.
        value: a form of the definition that neither overflows nor cancels; None: the definition.
        keeps: "x": `pullback` gets the arrays; "y": it gets y alone.
        widens: whether y stays in float32 or wider, as that of a loss does.
        examples: whether y is one number of each example, [*n], of arrays [*n, d].
        checks: of an option, and of an array that need not be floating-point, ``(where, name, value) ->
            value``, as in `ops._check`.
    """
    name, signature = reference.__name__.strip("_"), inspect.signature(reference)
    arrays = [
        key
        for key, p in signature.parameters.items()
        if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    value = reference if value is None else value

    def sorted_out(args: Any, options: Any) -> tuple[list[Any], dict[str, Any]]:
        bound = signature.bind(*args, **options)
        bound.apply_defaults()
        given = dict(bound.arguments)
        return [given.pop(key) for key in arrays], given

    def apply(*args: Any, **options: Any) -> jax.Array:
        where = f"{name}.apply"
        given, options = sorted_out(args, options)
        given = [
            checks.get(key, _check.floating)(where, key, v) for key, v in zip(arrays, given, strict=True)
        ]
        for key, array in zip(arrays[1:], given[1:], strict=True):
            _check.same_shape(where, key, array, arrays[0], given[0])
        if examples:
            _check.rank(where, arrays[0], given[0], 1, "*n, d")
        return rules.call(vjp, *given, **{key: checks[key](where, key, v) for key, v in options.items()})

    @functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
    def itself(options: Any, *h: jax.Array) -> jax.Array:
        """The value, which JAX differentiates with `vjp`: its own rules may cancel, that of expm1 does."""
        return value(*h, **dict(options))

    @itself.defjvp
    def _(options: Any, h: Any, dh: Any) -> tuple[jax.Array, jax.Array]:
        y = itself(options, *h)
        kept = [y] if keeps == "y" else h
        moved = [i for i, v in enumerate(h) if jnp.issubdtype(v.dtype, jnp.floating)]
        each = [_tuple(pullback(*kept, dh[i], **dict(options)))[i] for i in moved]  # the Jacobian is diagonal
        return y, functools.reduce(jnp.add, [dy for dy in each if dy is not None])

    def vjp(*args: Any, **options: Any) -> tuple[jax.Array, Partial]:
        given, options = sorted_out(args, options)
        h, dtype = _widened(given)
        plain = examples or rules.by_jax() or rules.in_jet(*h)
        y = value(*h, **options) if plain else itself(tuple(sorted(options.items())), *h)
        y = y if widens else y.astype(dtype)
        return y, Partial(rules.bind(pull, **options), *([y] if keeps == "y" else given))

    def pull(*kept: Any, **options: Any) -> tuple[Any, ...]:
        *given, dy = kept
        h, dtype = _widened(given)
        grads = _tuple(pullback(*h, dy.astype(wide(dtype)), **options))
        return tuple(None if g is None else narrow(g, v) for g, v in zip(grads, given, strict=True))

    def cost(*args: Any, **options: Any) -> Cost:
        given, options = sorted_out(args, options)
        return Cost(0, traffic(reference, *given, **options))

    apply.__doc__ = _documented(reference.__doc__ or "", arrays, widens, examples)
    vjp.__doc__ = "y and its pullback: one cotangent for each array, in its dtype."
    cost.__doc__ = f"No products: 0 flops, and the bytes of {', '.join(arrays)} and y."
    return namespace(reference, apply, vjp, cost, value=value, pullback=pullback)


def namespace(reference: Callable[..., Any], *functions: Callable[..., Any], **more: Any) -> ModuleType:
    """The operation of these functions, called as `reference` is, which gives it its name and its docstring.

    Args:
        reference: its definition; where its name has underscores around, the operation has none.
        functions: `apply`, `vjp`, `cost`: the other names of the contract.
        more: other names.
    """
    operation = ModuleType(f"{reference.__module__}.{reference.__name__.strip('_')}", reference.__doc__)
    for function in functions:
        function.__module__, function.__qualname__ = operation.__name__, function.__name__
        function.__annotations__ = reference.__annotations__
        vars(function)["__signature__"] = inspect.signature(reference)
    named = {function.__name__: function for function in functions}
    named["apply"] = rules.operation(named["apply"], of=operation)
    vars(operation).update(more, reference=reference, **named)
    vars(operation)["__all__"] = sorted(["reference", *named])
    return operation


def gated(
    reference: Callable[..., jax.Array],
    activation: ModuleType,
    *,
    checks: Mapping[str, Check] = MappingProxyType({}),
) -> ModuleType:
    """The operation y = f(gate) · up, f an activation made by `elementwise` that keeps x.

    Args:
        reference: ``(gate, up, **options) -> y``, the definition.
        activation: f; its options are those of `reference`.
        checks: of the options.
    """
    f, pull = activation.value, activation.pullback

    def value(gate: jax.Array, up: jax.Array, **options: Any) -> jax.Array:
        return f(gate, **options) * up

    def pullback(
        gate: jax.Array, up: jax.Array, dy: jax.Array, **options: Any
    ) -> tuple[jax.Array, jax.Array]:
        return pull(gate, dy * up, **options), dy * f(gate, **options)

    return elementwise(reference, pullback, value=value, checks=checks)


def _tuple(grads: Any) -> tuple[Any, ...]:
    return grads if isinstance(grads, tuple) else (grads,)


def _widened(arrays: list[Any]) -> tuple[list[Any], Any]:
    """The floating-point ones in float32 or wider, and the dtype that holds them; the others as they are."""
    floats = [i for i, array in enumerate(arrays) if jnp.issubdtype(array.dtype, jnp.floating)]
    same = common(*(arrays[i] for i in floats))
    widened = dict(zip(floats, (v.astype(wide(v.dtype)) for v in same), strict=True))
    return [widened.get(i, array) for i, array in enumerate(arrays)], same[0].dtype


def _documented(definition: str, arrays: list[str], widens: bool, examples: bool) -> str:
    """The docstring of `apply`: the definition's, and what is the same for all."""
    first, *others = arrays
    given, result = ("[*n, d]", "[*n]") if examples else ("any shape", "of the same shape")
    shape = f" All of one shape: nothing is broadcast over {first}." if others else ""
    holds = f"the dtype of {first}" if not others else "the dtype that holds them"
    raises = ["    DTypeError: an array is not floating-point, or an option is traced or of another kind."]
    raises += ["    ShapeError: the shapes differ."] * bool(others)
    return "\n".join(
        [
            inspect.cleandoc(definition),
            "",
            f"Differentiated by `vjp`. {', '.join(arrays)}: {given}, float16 or wider.{shape}",
            "",
            "Returns:",
            f"    y, {result}, in {holds}{', but at least float32' if widens else ''}.",
            "",
            "Raises:",
            *raises,
        ]
    )
