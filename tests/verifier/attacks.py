"""Attacks on the verifier's verdicts, by somebody who has read its source: wrong formulas that mean to pass,
right ones that mean to alarm it, and what should make it fall over.

Each is a function that gives what to call, and with what; `ATTACKS` holds all, with what must come of it:
"wrong", "right", or "unseen": undecided, not verified, or told in a note, but not right in silence. A
"limit" is wrong, and called right: `docs/verify.md` says so.
"""

import dataclasses
import functools
import itertools
import types
from collections.abc import Callable
from concurrent import futures
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import hijax, pallas
from jax.sharding import PartitionSpec

import funcnet as fn
from funcnet import rules

__all__ = ["ATTACKS", "Attack"]


class Attack(NamedTuple):
    """What is tried.

    Attributes:
        kind: "A" for rules in a model, or the number of the law in section B of issue 18.
        expected: "wrong", "right", "unseen" or "limit".
        why: what the attack speculates on.
        make: gives a function of `funcnet`, and its arguments.
    """

    kind: str
    expected: str
    why: str
    make: Callable[[], tuple[Any, ...]]


ATTACKS: dict[str, Attack] = {}
BF16 = jnp.bfloat16
F32 = jnp.float32


def attack(kind: str, expected: str, why: str) -> Callable[[Any], Any]:
    def add(make: Any) -> Any:
        ATTACKS[make.__name__] = Attack(kind, expected, why, make)
        return make

    return add


def normal(*shape: int, seed: int = 0, dtype: Any = F32) -> Any:
    x = np.random.default_rng(100 + seed).standard_normal(shape)
    return x if dtype == "float64" else jnp.asarray(x, dtype)


def verify(*args: Any, **options: Any) -> tuple[Any, ...]:
    return fn.verify, args, {"budget": 0.0, **options}  # the verdict is asked for, not the name


def with_config(context: Any, value: Any, *args: Any) -> tuple[Any, ...]:
    def inside(*args: Any) -> Any:
        with context(value):
            return fn.verify(*args, budget=0.0)

    return inside, args, {}


def in_float64(*args: Any) -> tuple[Any, ...]:
    return with_config(jax.enable_x64, True, *args)


def of_model(f: Callable[[Any], Any], x: Any = None, **options: Any) -> tuple[Any, ...]:
    """A model whose only parameter goes through f."""
    x = normal(3, 4) if x is None else x
    return (
        fn.verify_model,
        (lambda params, batch: f(params["w"] * batch).sum(), {"w": x}, jnp.ones((), x.dtype)),
        options,
    )


def ruled(fun: Any, fwd: Any, bwd: Any, **options: Any) -> Any:
    rule = jax.custom_vjp(fun, **options)
    rule.defvjp(fwd, bwd)
    return rule


def sine(factor: Any = 1.0) -> Any:
    """A rule; `factor(x)` is what it is wrong by."""
    by = factor if callable(factor) else lambda x: factor
    return ruled(
        lambda x: jnp.sin(x),
        lambda x: (jnp.sin(x), x),
        lambda x, dy: ((dy * jnp.cos(x) * by(x)).astype(x.dtype),),
    )


# ---- A: the rules of a model ------------------------------------------------------------------------------


@attack("A", "wrong", "the function is JAX's: the rule looks like one of JAX")
def a_rule_on_a_function_of_jax():
    return of_model(ruled(jnp.tanh, lambda x: (jnp.tanh(x),) * 2, lambda y, dy: (dy * (1 - y),)))


@attack("A", "wrong", "functools.wraps takes the module of what it wraps")
def a_rule_that_wraps_a_function_of_jax():
    wrapped = functools.wraps(jnp.tanh)(lambda x: jnp.tanh(x))
    return of_model(ruled(wrapped, lambda x: (jnp.tanh(x),) * 2, lambda y, dy: (dy * (1 - y),)))


@attack("A", "wrong", "the function that custom_gradient makes lies in JAX's files")
def a_custom_gradient():
    return of_model(jax.custom_gradient(lambda x: (jnp.sin(x), lambda dy: dy * jnp.cos(x) * 2)))


@attack("A", "wrong", "a package whose name begins as ours does")
def a_package_with_a_similar_name():
    s = sine(1.2)
    s.fun.__module__ = "funcnet_extras.layers"
    return of_model(s)


@attack("A", "wrong", "verify_model looks in float64 only")
def wrong_in_float32_only():
    return of_model(sine(lambda x: 1.2 if x.dtype == F32 else 1.0))


@attack("A", "wrong", "the forward pass of the rule is wrong in float32 only")
def a_forward_wrong_in_float32_only():
    fwd = lambda x: (jnp.sin(x) * (2 if x.dtype == F32 else 1), x)
    return of_model(ruled(lambda x: jnp.sin(x), fwd, lambda x, dy: (dy * jnp.cos(x),)))


@attack("A", "wrong", "a gain of ones, as it is at the start, hides that it was forgotten")
def a_gain_of_ones():
    f = lambda x, g: x * g
    s = ruled(f, lambda x, g: (x * g, (x, g)), lambda r, dy: (dy, (dy * r[0]).sum(0)))
    return fn.verify_model, (lambda p, b: s(b, p["g"]).sum(), {"g": jnp.ones(4)}, normal(3, 4)), {}


@attack("A", "wrong", "a bias of zeros hides what is done to it")
def a_bias_of_zeros():
    f = lambda x, b: jnp.tanh(x + b)
    bwd = lambda r, dy: (dy * (1 - jnp.tanh(r[0]) ** 2), (dy * (1 - jnp.tanh(r[0] + r[1]) ** 2)).sum(0))
    s = ruled(f, lambda x, b: (f(x, b), (x, b)), bwd)
    return fn.verify_model, (lambda p, b: s(b, p["b"]).sum(), {"b": jnp.zeros(4)}, normal(3, 4)), {}


@attack("A", "wrong", "three calls of one shape: the first and the last are right")
def the_call_in_the_middle():
    s = sine(lambda x: jnp.where(jnp.abs(x) > 100, 1.5, 1.0))
    return of_model(lambda x: s(x) + s(300 * x) + s(x))


@attack("A", "wrong", "square arrays in a model hide the wrong axis")
def a_square_in_a_model():
    s = ruled(
        lambda x: x.mean(1),
        lambda x: (x.mean(1), x),
        lambda x, dy: (jnp.ones_like(x) * dy[:, None] / len(x),),
    )
    return of_model(s, normal(4, 4))


@attack("A", "wrong", "arguments by keyword have no gradient to verify")
def an_argument_by_keyword():
    s = ruled(lambda x, w: x * w, lambda x, w: (x * w, (x, w)), lambda r, dy: (dy * r[1], 3 * dy * r[0]))
    return of_model(lambda x: s(x, w=x + 1))


@attack("A", "wrong", "by keyword alone, with an argument that is not differentiated")
def all_arguments_by_keyword():
    s = ruled(
        lambda n, x: x**n, lambda n, x: (x**n, x), lambda n, x, dy: (dy * x ** (n - 1),), nondiff_argnums=(0,)
    )
    return of_model(lambda x: s(n=2, x=x))


@attack("A", "wrong", "two options that print alike are taken for one")
def options_that_print_alike():
    class Config:
        def __init__(self, factor):
            self.factor = factor

        def __repr__(self):
            return "Config()"

    f = lambda c, x: jnp.sin(x)
    s = ruled(
        f, lambda c, x: (f(c, x), x), lambda c, x, dy: (dy * jnp.cos(x) * c.factor,), nondiff_argnums=(0,)
    )
    right, wrong = Config(1.0), Config(2.0)
    return of_model(lambda x: s(right, x) + s(wrong, x))


@attack("A", "wrong", "with symbolic zeros a rule knows which arguments are asked for")
def a_jvp_wrong_for_one_argument_alone():
    @jax.custom_jvp
    def f(x, w):
        return x * w

    def jvp(primals, tangents):
        (x, w), (dx, dw) = primals, tangents
        zero = lambda t: type(t) is jax.custom_derivatives.SymbolicZero
        if zero(dw):
            return f(x, w), 2 * dx * w
        return f(x, w), (0 if zero(dx) else dx * w) + x * dw

    f.defjvp(jvp, symbolic_zeros=True)
    return of_model(lambda x: f(x, x + 1))


@attack("A", "wrong", "with symbolic zeros a rule knows which results are used")
def a_vjp_wrong_for_one_result_alone():
    @jax.custom_vjp
    def f(x):
        return jnp.sin(x), jnp.cos(x)

    def bwd(x, dy):
        a, b = dy
        if type(b) is jax.custom_derivatives.SymbolicZero:
            return (-a * jnp.cos(x),)
        return (a * jnp.cos(x) - b * jnp.sin(x),)

    f.defvjp(lambda x: (f(x.value), x.value), bwd, symbolic_zeros=True)
    return of_model(lambda x: f(x)[0])


@attack("A", "wrong", "custom_jvp inside custom_vjp, of which the outer one is right")
def a_rule_in_a_right_rule():
    @jax.custom_jvp
    def inner(x):
        return x * x

    inner.defjvp(lambda p, t: (p[0] ** 2, 3 * p[0] * t[0]))
    return of_model(ruled(lambda x: inner(x), lambda x: (x * x, x), lambda x, dy: (2 * x * dy,)))


@attack("A", "unseen", "a linear function whose transpose is the user's")
def a_linear_call_with_a_wrong_transpose():
    call = lambda x: jax.custom_derivatives.linear_call(lambda r, v: 3.0 * v, lambda r, v: 2.0 * v, (), x)
    return of_model(call)


@attack("A", "unseen", "a solve whose transposed solve is the user's")
def a_linear_solve_with_a_wrong_transpose():
    a = jnp.asarray([[2.0, 1.0], [0.0, 3.0]], F32)
    solve = lambda _, b: jnp.linalg.solve(a, b)
    call = lambda b: lax.custom_linear_solve(lambda v: a @ v, b, solve, lambda _, b: jnp.linalg.solve(a, b))
    return of_model(call, normal(2))


@attack("A", "unseen", "the loss takes the wrong rule only where it is traced")
def a_rule_that_hides_from_being_run():
    s, wrong = sine(), sine(1.2)
    return of_model(lambda x: wrong(x) if isinstance(x, jax.core.Tracer) else s(x))


@attack("A", "wrong", "an operation of one's own is judged at the values of its first call alone")
def an_operation_wrong_for_large_values():
    op = rules.elementwise(
        lambda x: jnp.sin(x), lambda x, dy: dy * jnp.cos(x) * jnp.where(jnp.abs(x) > 50, 2.0, 1.0)
    )
    return of_model(lambda x: op.apply(x) + op.apply(300 * x))


@attack("A", "wrong", "under shard_map in a scan in a cached function")
def a_rule_under_shard_map():
    mesh = jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    s = sine(1.2)
    f = jax.shard_map(s, mesh=mesh, in_specs=PartitionSpec("i"), out_specs=PartitionSpec("i"))
    g = jax.jit(lambda x: lax.scan(lambda c, _: (f(c), None), x, None, length=2)[0])
    g(normal(3, 4))
    return of_model(g)


@attack("A", "wrong", "a rule with a state: wrong from the second look on")
def a_rule_with_a_state():
    count = itertools.count()
    return of_model(sine(lambda x: 1.0 if next(count) % 2 == 0 else 1.2))


@attack("A", "right", "a shape among the arguments that are not differentiated is no array")
def a_shape_for_an_option():
    f = lambda like, x: jnp.broadcast_to(x, like.shape)
    s = ruled(f, lambda like, x: (f(like, x), None), lambda like, _, dy: (dy.sum(0),), nondiff_argnums=(0,))
    return of_model(lambda x: s(jax.ShapeDtypeStruct((5, 4), F32), x), normal(4))


@attack("A", "right", "sixty calls make sixty rules, of one code")
def rules_made_anew():
    def f(x):
        return ruled(lambda x: jnp.sin(x), lambda x: (jnp.sin(x), x), lambda x, dy: (dy * jnp.cos(x),))(x)

    def loss(x):
        for _ in range(60):
            x = f(x)
        return x

    return of_model(loss)


@attack("A", "right", "an operation of one's own that knows no float64")
def an_operation_that_refuses():
    op = types.ModuleType("refuses")

    def reference(x):
        if isinstance(x, np.ndarray | jax.Array) and x.dtype == jnp.float64:
            raise ValueError("no float64")
        return jnp.sin(x)

    op.reference = reference
    op.vjp = lambda x: (jnp.sin(x), jax.tree_util.Partial(lambda x, dy: (dy * jnp.cos(x),), x))
    op.apply = rules.operation(lambda x: rules.call(op.vjp, x), of=op)
    return of_model(op.apply)


@attack("A", "right", "a rule of integers, booleans, trees and None")
def a_rule_of_odd_arguments():
    f = lambda p, ids, flag, none: (jnp.where(flag, p["w"][ids] * 2, 0), ids + 1)

    def bwd(r, dy):
        shape, ids, flag = r
        g = jnp.zeros(shape, dy[0].dtype).at[ids].add(jnp.where(flag, 2 * dy[0], 0))
        return {"w": g}, None, None, None

    s = ruled(f, lambda p, ids, flag, none: (f(p, ids, flag, none), (p["w"].shape, ids, flag)), bwd)
    return of_model(lambda x: s({"w": x}, jnp.asarray([0, 0, 2]), jnp.asarray(True), None)[0])


@attack("A", "right", "a kernel, in which no callback may stand, calls a rule of JAX")
def a_kernel_with_a_rule():
    def kernel(x, y):
        y[...] = jax.nn.relu(x[...])

    call = lambda x: pallas.pallas_call(kernel, jax.ShapeDtypeStruct(x.shape, x.dtype), interpret=True)(x)
    s = ruled(call, lambda x: (call(x), x), lambda x, dy: (dy * (x > 0),))
    return of_model(s)


@attack("A", "unseen", "a rule that sees a value of the function around it")
def a_rule_that_sees_a_tracer():
    def layer(x):
        n = x.sum()
        return ruled(lambda v: v * 2, lambda v: (v * 2, None), lambda _, dy: (3 * dy + 0 * n,))(x)

    return of_model(jax.jit(layer))


@attack("A", "wrong", "above 50,000 elements a rule is looked at at one point")
def a_large_rule():
    f = lambda x, g: x * g
    s = ruled(f, lambda x, g: (f(x, g), (x, g)), lambda r, dy: (dy, (dy * r[0]).sum(0)))
    return fn.verify_model, (lambda p, b: s(b, p["g"]).sum(), {"g": jnp.ones(300)}, normal(200, 300)), {}


# ---- 1: sizes ---------------------------------------------------------------------------------------------


@attack("1", "wrong", "above 50,000 elements only the size given is looked at")
def a_large_square():
    return verify(
        lambda x: x.mean(1), lambda x, dy: jnp.ones_like(x) * dy[:, None] / len(x), (normal(300, 300),)
    )


@attack("1", "wrong", "an axis of 0 hides the formula")
def an_empty_batch():
    return verify(lambda x: jnp.sin(x), lambda x, dy: 3 * dy, (jnp.zeros((0, 4), F32),))


@attack("1", "unseen", "nothing but empty arrays, of one axis")
def an_empty_array():
    return verify(lambda x: jnp.sin(x).sum(), lambda x, dy: 3 * dy * x, (jnp.zeros(0, F32),))


@attack("1", "wrong", "a large array of equal axes, and another argument")
def a_large_square_product():
    back = lambda x, w, dy: (dy @ w.T / w.shape[0], x.T @ dy / x.shape[0])
    return verify(lambda x, w: x @ w / w.shape[0], back, (normal(200, 200), normal(200, 200, seed=1)))


@attack("1", "wrong", "at unequal sizes the truth is not finite where it was")
def a_constant_of_a_square():
    return verify(
        lambda x: jnp.sqrt(jnp.abs(x)).mean(1),
        lambda x, dy: dy[:, None] * jnp.sign(x) / (2 * jnp.sqrt(jnp.abs(x)) * len(x)),
        (normal(5, 5),),
    )


@attack("1", "wrong", "three equal axes")
def a_cube():
    return verify(
        lambda x: x.mean((0, 2)),
        lambda x, dy: jnp.ones_like(x) * dy[:, None] / x.shape[0] / x.shape[1],
        (normal(4, 4, 4),),
    )


@attack("1", "right", "a formula for square matrices alone")
def for_squares_only():
    inverse = jnp.linalg.inv
    return verify(
        inverse, lambda a, dy: -inverse(a).T @ dy @ inverse(a).T, (normal(5, 5) + 5 * jnp.eye(5, dtype=F32),)
    )


# ---- 2: low precision -------------------------------------------------------------------------------------


@attack("2", "wrong", "of a formula in NumPy the roundings of bfloat16 are allowed 4096 times")
def numpy_and_bfloat16():
    return verify(
        jnp.sin,
        lambda x, dy: -np.asarray(dy, "float32") * np.cos(np.asarray(x, "float32")),
        (normal(7, 5, dtype=BF16),),
    )


@attack("2", "wrong", "of a formula in NumPy the roundings of float32 are allowed 4096 times")
def numpy_and_float32():
    return verify(jnp.sin, lambda x, dy: np.asarray(dy) * np.cos(np.asarray(x)) * (1 + 2e-4), (normal(7, 5),))


@attack("2", "wrong", "one element that float32 loses excuses all others")
def one_lost_element():
    f = lambda x: jnp.log(1e-30 + (1 + x) - 1)
    back = lambda x, dy: dy / (1e-30 + (1 + x) - 1) * (1.5 if x.dtype == F32 else 1)
    return verify(
        f, back, (jnp.abs(normal(7, 5)).at[0, 0].set(3e-7) + 0.1 * (jnp.arange(35).reshape(7, 5) > 0),)
    )


@attack("2", "wrong", "an error that speaks of int64 and int32 is forgiven")
def an_error_of_indices():
    def back(x, dy):
        if x.dtype == F32:
            raise TypeError("no int64 beside int32")
        return dy * jnp.cos(x)

    return verify(jnp.sin, back, (normal(7, 5),))


@attack("2", "wrong", "with the truth by numbers, the dtypes of the user are not tried")
def numbers_and_float32():
    f = lambda x: lax.while_loop(lambda c: c[1] < 1, lambda c: (jnp.sin(c[0]), c[1] + 1), (x, 0))[0]
    return verify(f, lambda x, dy: dy * jnp.cos(x) * (1.2 if x.dtype == F32 else 1), (normal(7, 5),))


@attack("2", "wrong", "of two results, the second's cotangent, by 1e-7")
def a_little_of_the_second_result():
    back = lambda x, dy: dy[0] * jnp.cos(x) - dy[1] * jnp.sin(x) * (1 + 1e-7)
    return verify(lambda x: (jnp.sin(x), jnp.cos(x)), back, (normal(7, 5),))


@attack("2", "wrong", "the rule's forward pass, in elements far below the largest")
def values_of_small_elements():
    fwd = lambda x: (jnp.where(x < -20, 2 * jnp.exp(x), jnp.exp(x)), x)
    return verify(
        ruled(lambda x: jnp.exp(x), fwd, lambda x, dy: (dy * jnp.exp(x),)), (jnp.linspace(-30.0, 3.0, 12),)
    )


@attack("2", "wrong", "a billionth is less than the truth moves between the sides of a kink")
def a_billionth():
    return verify(jnp.sin, lambda x, dy: dy * jnp.cos(x) * (1 + 1e-9), (normal(7, 5),))


@attack("2", "right", "the truth and the formula hold the same number, once as float32 and once in Python")
def a_constant_of_float32():
    c = jnp.asarray(0.1, F32)
    return verify(lambda x: jnp.sin(c * x), lambda x, dy: 0.1 * dy * jnp.cos(0.1 * x), (normal(7, 5),))


@attack("2", "right", "a random mask is another in float64")
def a_random_mask():
    key = jax.random.key(0)
    mask = lambda x: jax.random.normal(key, x.shape, x.dtype)
    return verify(lambda x: x * mask(x), lambda x, dy: dy * mask(x), (normal(7, 5),))


@attack("2", "right", "a guard of the dtype's own eps")
def the_eps_of_the_dtype():
    e = lambda x: jnp.finfo(x.dtype).eps
    return verify(
        lambda x: x / (jnp.abs(x) + e(x)),
        lambda x, dy: dy * e(x) / (jnp.abs(x) + e(x)) ** 2,
        (normal(7, 5) * 1e-4,),
    )


# ---- 3: not finite ----------------------------------------------------------------------------------------


@attack("3", "unseen", "wherever autodiff gives NaN anything is right")
def nothing_but_nan():
    f = lambda x: jnp.where(x > 0, jnp.sqrt(x), 0)
    return verify(
        f,
        lambda x, dy: jnp.where(x > 0, dy / (2 * jnp.sqrt(jnp.where(x > 0, x, 1))), 17.0),
        (-jnp.abs(normal(7, 5)).at[0, 0].set(-2.0),),
    )


@attack("3", "wrong", "beside the elements that are not finite, half of the others")
def nan_beside_a_mistake():
    f = lambda x: jnp.where(x > 0, jnp.sqrt(x), 0)
    return verify(
        f,
        lambda x, dy: jnp.where(x > 0, dy / (2 * jnp.sqrt(jnp.where(x > 0, x, 1))), 17.0 * dy),
        (normal(7, 5),),
    )


@attack("3", "wrong", "gradients below 1e-300 are all alike")
def below_the_floor():
    return in_float64(lambda x: x * 1e-302, lambda x, dy: -dy * 1e-302, (normal(7, 5, dtype="float64"),))


@attack("3", "wrong", "numbers whose squares are infinite")
def squares_that_overflow():
    return in_float64(
        lambda x: x * 1e200,
        lambda x, dy: dy * jnp.asarray(0.8e200, dy.dtype),
        (normal(7, 5, dtype="float64"),),
    )


@attack("3", "wrong", "a rule that means to differ may also be NaN")
def nan_as_declared():
    s = ruled(
        lambda x: jnp.round(x),
        lambda x: (jnp.round(x), x),
        lambda x, dy: (dy * jnp.where(x > 0, 1, jnp.nan),),
    )
    return verify(s, (normal(7, 5),), expect="differs")


@attack("3", "wrong", "a rule that means to differ may also be nonlinear")
def nonlinear_as_declared():
    s = ruled(lambda x: jnp.round(x), lambda x: (jnp.round(x), x), lambda x, dy: (dy * jnp.abs(dy),))
    return verify(s, (normal(7, 5),), expect="differs")


@attack("3", "right", "debug_nans stops what looks for NaN")
def while_nans_are_debugged():
    return with_config(
        jax.debug_nans,
        True,
        jnp.sqrt,
        lambda x, dy: dy / (2 * jnp.sqrt(x)),
        (jnp.abs(normal(7, 5)).at[0, 0].set(0),),
    )


# ---- 4: stops ---------------------------------------------------------------------------------------------


def loops(x: Any) -> Any:
    """sin(sin x), without a derivative in reverse."""
    return lax.while_loop(lambda c: c[1] < 2, lambda c: (jnp.sin(c[0]), c[1] + 1), (x, 0))[0]


slope = lambda x: jnp.cos(x) * jnp.cos(jnp.sin(x))


@attack("4", "right", "numerical differentiation does not see a stop")
def a_stop_by_numbers():
    return verify(lambda x: loops(x) * lax.stop_gradient(x), lambda x, dy: dy * slope(x) * x, (normal(7, 5),))


@attack("4", "wrong", "nor that a formula ignores it")
def a_stop_ignored_by_numbers():
    return verify(
        lambda x: loops(x) * lax.stop_gradient(x),
        lambda x, dy: dy * (slope(x) * x + loops(x)),
        (normal(7, 5),),
    )


@attack("4", "unseen", "numerical differentiation does not see a rule")
def a_reversal_by_numbers():
    reverse = ruled(lambda x: x * 1.0, lambda x: (x, None), lambda _, dy: (-dy,))
    return verify(lambda x: loops(reverse(x)), lambda x, dy: dy * slope(x), (normal(7, 5),))


@attack("4", "wrong", "the referee looks along one direction, which is known")
def across_the_direction_of_the_referee():
    f = lambda x: x + jnp.round(x * 2.0**30) / 2.0**30  # autodiff 1, by numbers 2

    def back(x, dy):
        t = jnp.asarray(np.random.default_rng(1).standard_normal(x.shape), x.dtype)
        u = jnp.roll(t, 1, 0)
        return 2 * dy + dy.sum() * (u - (u * t).sum() / (t * t).sum() * t)

    return verify(f, back, (normal(7, 5),))


@attack("4", "wrong", "the reference calls the rule that is to be verified")
def the_rule_for_its_own_reference():
    s = sine(1.2)
    return verify(s, (normal(7, 5),), reference=lambda x: s(x))


@attack("4", "wrong", "an operation without reference is compared with its own rule")
def an_operation_for_its_own_reference():
    op = types.ModuleType("own")
    op.vjp = lambda x: (jnp.sin(x), jax.tree_util.Partial(lambda x, dy: (2 * dy * jnp.cos(x),), x))
    op.apply = lambda x: rules.call(op.vjp, x)
    return verify(op, (normal(7, 5),))


@attack("4", "unseen", "a forward pass with the wrong rule, and the same formula")
def the_rule_for_its_own_truth():
    s = sine(1.2)
    return verify(jax.jit(s), lambda x, dy: 1.2 * dy * jnp.cos(x), (normal(7, 5),))


@attack("4", "wrong", "autodiff is right about a stop in a branch")
def a_stop_in_a_branch():
    f = lambda x: lax.cond(x.sum() > -1e9, lambda x: x * lax.stop_gradient(x), lambda x: x, x)
    return verify(f, lambda x, dy: 2 * x * dy, (normal(7, 5),))


# ---- 5: rules in control flow -----------------------------------------------------------------------------


@attack("5", "wrong", "wrong in the last steps of a loop alone")
def wrong_late_in_a_loop():
    s = sine(lambda x: jnp.where(x > 20, 1.5, 1.0))
    return verify(
        lambda x: lax.scan(lambda c, t: (s(c + t) + c, None), x, jnp.asarray([0.0, 0.0, 50.0], x.dtype))[0],
        (normal(7, 5),),
    )


@attack("5", "wrong", "the rule is made anew in every call")
def a_rule_of_the_moment():
    return verify(lambda x: sine(1.2)(x), (normal(7, 5),))


@attack("5", "wrong", "a rule below vmap, below a gradient")
def below_a_gradient():
    s = sine(1.2)
    return verify(lambda x: jax.grad(lambda x: jax.vmap(s)(x).sum())(x), (normal(7, 5),))


@attack("5", "unseen", "f has a linear_call, and no rule")
def a_transpose_of_ones_own():
    f = lambda x: jax.custom_derivatives.linear_call(lambda r, v: 3.0 * v, lambda r, v: 2.0 * v, (), x)
    return verify(f, (normal(7, 5),))


@attack("5", "wrong", "a custom_gradient is no rule, or one of JAX")
def a_custom_gradient_alone():
    return verify(
        jax.custom_gradient(lambda x: (jnp.sin(x), lambda dy: dy * jnp.cos(x) * 2)), (normal(7, 5),)
    )


@attack("5", "wrong", "a rule on a function of JAX, in a while loop's body in a scan")
def a_rule_on_jax_in_a_loop():
    s = ruled(jnp.tanh, lambda x: (jnp.tanh(x),) * 2, lambda y, dy: (dy * (1 - y),))
    return verify(lambda x: lax.scan(lambda c, _: (s(c), None), x, None, length=2)[0], (normal(7, 5),))


# ---- 6: no derivative in reverse --------------------------------------------------------------------------


@attack("6", "wrong", "of more than 64 elements a sample is measured, and it is known which")
def beside_the_sample():
    seen = np.zeros(100, bool)
    seen[np.random.default_rng(0).permutation(100)[:64]] = True
    return verify(loops, lambda x, dy: dy * slope(x) * jnp.where(seen, 1.0, 2.0), (normal(100),))


@attack("6", "right", "a loop of more steps than are followed")
def a_long_loop():
    f = lambda x: lax.while_loop(lambda c: c[1] < 120_000, lambda c: (c[0] + 1e-6 * x, c[1] + 1), (x, 0))[0]
    return verify(f, lambda x, dy: dy * 1.12, (normal(2),))


@attack("6", "wrong", "a loop of more steps than are followed, and a mistake")
def a_mistake_in_a_long_loop():
    f = lambda x: lax.while_loop(lambda c: c[1] < 120_000, lambda c: (c[0] + 1e-6 * x, c[1] + 1), (x, 0))[0]
    return verify(f, lambda x, dy: dy * 1.13, (normal(2),))


@attack("6", "right", "a forward pass in NumPy that asserts what its argument is")
def numpy_that_asserts():
    def f(x):
        if not np.allclose(np.asarray(x).sum(-1), 1, atol=1e-3):
            raise ValueError("rows must sum to 1")
        return np.asarray(x) ** 2

    p = jax.nn.softmax(normal(4, 3))
    return verify(
        f,
        lambda x, dy: 2 * x * dy,
        (p,),
    )


@attack("6", "right", "a forward pass that raises at other values")
def a_forward_that_knows_its_values():
    w = normal(3, 3)

    def f(x):
        if not isinstance(x, jax.core.Tracer) and np.abs(np.asarray(x) - np.asarray(w)).max() > 1e-3:
            raise ValueError("another x")
        return jnp.asarray(np.sin(np.asarray(x)))

    return verify(f, lambda x, dy: dy * jnp.cos(x), (w,))


@attack("6", "wrong", "a host callback in the formula")
def a_callback_in_the_formula():
    cos = lambda x: jax.pure_callback(
        lambda v: np.cos(np.asarray(v)) * (1 + (np.abs(v).max() > 0)),
        jax.ShapeDtypeStruct(x.shape, x.dtype),
        x,
    )
    return verify(jnp.sin, lambda x, dy: dy * cos(x), (normal(7, 5),))


# ---- 7: complex numbers -----------------------------------------------------------------------------------

Z = lax.complex(normal(3, 4), normal(3, 4, seed=1))


@attack("7", "wrong", "conjugated where the imaginary part is small")
def a_small_imaginary_part():
    z = lax.complex(normal(3, 4), 1e-6 * normal(3, 4, seed=1))
    return verify(lambda z: z**3, lambda z, dy: 3 * jnp.conj(z) ** 2 * dy, (z,))


@attack("7", "unseen", "all numbers real: conjugated or not")
def no_imaginary_part():
    return verify(
        lambda z: z**3, lambda z, dy: 3 * jnp.conj(z) ** 2 * dy, (normal(3, 4).astype("complex64"),)
    )


@attack("7", "wrong", "conjugated cotangents")
def a_conjugated_cotangent():
    return verify(lambda z: 2 * z, lambda z, dy: 2 * jnp.conj(dy), (Z,))


@attack("7", "wrong", "a real argument, to which the imaginary part does not belong")
def an_imaginary_gradient():
    return verify(lambda z, x: z * x, lambda z, x, dy: (dy * x, dy * z), (Z, normal(3, 4)))


@attack("7", "right", "a spectrum, by its inverse")
def a_spectrum():
    back = lambda x, dy: jnp.real(jnp.fft.fft(dy))
    return verify(lambda x: jnp.fft.fft(x), back, (normal(8),))


@attack("7", "right", "a complex truth by numbers")
def complex_by_numbers():
    f = lambda z: lax.while_loop(lambda c: c[1] < 2, lambda c: (c[0] * c[0], c[1] + 1), (z, 0))[0]
    return verify(f, lambda z, dy: 4 * z**3 * dy, (Z,))


# ---- 8: structures ----------------------------------------------------------------------------------------


class Layer(NamedTuple):
    w: Any
    b: Any


LAYER = Layer(normal(3, 4), normal(4))


@attack("8", "wrong", "two leaves of equal shape are exchanged")
def exchanged_leaves():
    return verify(
        lambda p: jnp.sin(p[0]) * p[1],
        lambda p, dy: (dy * jnp.sin(p[0]), dy * jnp.cos(p[0]) * p[1]),
        ((normal(4), normal(4, seed=1)),),
    )


@attack("8", "wrong", "a leaf is left out by None")
def a_leaf_by_none():
    return verify(lambda p: p.w + p.b, lambda p, dy: Layer(dy, None), (LAYER,))


@attack("8", "right", "a tuple of one tuple")
def a_tuple_of_one_tuple():
    return verify(lambda p: p[0] * 2, lambda p, dy: ((2 * dy,),), ((normal(4),),))


@attack("8", "right", "a list for a list, an empty dict and a None beside")
def odd_structures():
    tree = {"a": [normal(4), None], "b": {}}
    return verify(lambda p: p["a"][0] * 2, lambda p, dy: {"a": [2 * dy, None], "b": {}}, (tree,))


@attack("8", "wrong", "one leaf of twenty by a part in a million")
def one_leaf_of_twenty():
    leaves = [normal(3, seed=i) for i in range(20)]
    back = lambda p, dy: [dy * 2 * v * (1 + 1e-6 * (i == 13)) for i, v in enumerate(p)]
    return verify(lambda p: sum(v * v for v in p), back, (leaves,))


@attack("8", "wrong", "an array for a scalar: the shape of one leaf")
def a_shape_that_broadcasts():
    return in_float64(
        lambda x, c: x * c,
        lambda x, c, dy: (dy * c, (dy * x).sum(keepdims=True)),
        (normal(3, 4), jnp.asarray(2.0, F32)),
    )


# ---- 9: sizes of leaves -----------------------------------------------------------------------------------

DECADES = np.logspace(-18, 18, 37) * np.where(np.arange(37) % 2, 1, -1)


@attack("9", "wrong", "20 % of elements far below the largest")
def a_fifth_of_the_small_ones():
    return in_float64(
        lambda x: x * x, lambda x, dy: 2 * x * dy * jnp.where(jnp.abs(x) < 1, 1.2, 1.0), (DECADES,)
    )


@attack("9", "wrong", "large numbers that cancel widen what is allowed, element by element")
def noise_for_cover():
    f = lambda x: jnp.sin((x + 3e11) - 3e11)
    return in_float64(
        f,
        lambda x, dy: dy * jnp.cos(x) * jnp.where(jnp.arange(x.size).reshape(x.shape) % 2, 0.7, 1.3),
        (normal(200, 200, dtype="float64"),),
    )


@attack("9", "wrong", "the sign, under the noise of a large array")
def a_sign_under_noise():
    f = lambda x: jnp.sin((x + 3e11) - 3e11)
    return in_float64(f, lambda x, dy: -dy * jnp.cos(x), (normal(200, 200, dtype="float64"),))


@attack("9", "unseen", "so much noise that the truth counts as zero")
def a_truth_below_the_noise():
    f = lambda x: ((x + 1e16) - 1e16) ** 2
    return in_float64(f, lambda x, dy: -2 * x * dy, (3 * normal(7, 5, dtype="float64"),))


@attack("9", "wrong", "one element of a million")
def one_of_a_million():
    n = 1000
    at = lambda x: jnp.zeros(x.shape, x.dtype).at[n // 3, n // 7].set(1e-5)
    return verify(jnp.sin, lambda x, dy: dy * jnp.cos(x) + at(x), (normal(n, n),))


@attack("9", "wrong", "tiny leaves")
def tiny_leaves():
    return verify(
        lambda x, w: x @ w,
        lambda x, w, dy: (dy @ w.T, 1.2 * x.T @ dy),
        (normal(7, 5) * 1e-30, normal(5, 3) * 1e30),
    )


@attack("9", "right", "a formula that is better than autodiff")
def better_than_autodiff():
    f = lambda x: jnp.log(1 + jnp.exp(x))
    return verify(f, lambda x, dy: dy * jax.nn.sigmoid(x), (jnp.linspace(-30.0, 30.0, 13),))


# ---- 10: what the arguments do not show -------------------------------------------------------------------


@attack("10", "unseen", "positive numbers stay positive")
def one_sign():
    return verify(jnp.abs, lambda x, dy: dy, (jnp.abs(normal(7, 5)) + 0.1,))


@attack("10", "unseen", "rows that sum to 1 stay such")
def rows_that_sum_to_1():
    f = lambda x: x / x.sum(-1, keepdims=True)
    return verify(f, lambda x, dy: dy - (dy * x).sum(-1, keepdims=True), (jax.nn.softmax(normal(7, 5)),))


@attack("10", "unseen", "what is sorted stays sorted")
def sorted_numbers():
    return verify(jnp.sort, lambda x, dy: dy, (jnp.linspace(-1.0, 1.0, 5),))


@attack("10", "unseen", "a mask of 0 and 1 stays one")
def a_mask_of_floats():
    return verify(
        lambda x, m: x * m * m,
        lambda x, m, dy: (dy * m, 2 * dy * x * m),
        (normal(7, 5), (normal(7, 5, seed=1) > 0).astype(F32)),
    )


@attack("10", "unseen", "a branch of the formula, by where")
def a_branch_of_the_formula():
    return verify(jnp.sin, lambda x, dy: dy * jnp.where(x > 10, 1.0, jnp.cos(x)), (normal(7, 5),))


@attack("10", "unseen", "a branch of the formula, by multiplying with a comparison")
def a_comparison_in_the_formula():
    return verify(jnp.sin, lambda x, dy: dy * jnp.cos(x) * (1 + (x < -8)), (normal(7, 5),))


@attack("10", "wrong", "cotangents are of the size of 1: a clip far out")
def a_clipped_cotangent():
    return verify(jnp.sin, lambda x, dy: jnp.clip(dy, -20, 20) * jnp.cos(x), (normal(7, 5),))


@attack("10", "wrong", "and a threshold far in")
def a_threshold_on_the_cotangent():
    return verify(jnp.sin, lambda x, dy: jnp.where(jnp.abs(dy) < 1e-6, 0, dy) * jnp.cos(x), (normal(7, 5),))


@attack("10", "wrong", "right where it is traced")
def traced_or_not():
    back = lambda x, dy: dy * jnp.cos(x) * (1.0 if isinstance(dy, jax.core.Tracer) else 1.2)
    return verify(jnp.sin, back, (normal(7, 5),))


@attack("10", "wrong", "right where it is traced, and too large to look twice")
def traced_or_not_and_large():
    back = lambda x, dy: dy * jnp.cos(x) * (1.0 if isinstance(dy, jax.core.Tracer) else 1.2)
    return verify(jnp.sin, back, (normal(300, 200),))


@attack("10", "unseen", "an integer that is never drawn")
def an_id_that_is_never_drawn():
    f = lambda t, ids: t[ids]
    back = lambda t, ids, dy: (
        jnp.zeros_like(t).at[ids].add(dy * jnp.where(ids == 6, 2.0, 1.0).astype(dy.dtype)[:, None]),
        None,
    )
    return verify(f, back, (normal(7, 5), jnp.asarray([0, 1, 1, 2, 3])))


# ---- kinks ------------------------------------------------------------------------------------------------


@attack("1", "wrong", "one of ten thousand elements at a kink, of which 48 are looked at")
def one_kink_of_many():
    side = lambda x: jnp.where(jnp.arange(x.size) == 4321, -1.0, 1.0).astype(x.dtype)
    return verify(
        jax.nn.relu, lambda x, dy: dy * jnp.where(x == 0, side(x), x > 0), (jnp.zeros(10_000, F32),)
    )


@attack("1", "wrong", "a value that is 0 by construction is moved off it, and opens a side of its own")
def a_zero_by_construction():
    f = lambda x: jnp.sin(x) * jnp.where(x * 0 == 0, 1.0, 3.0)
    return verify(f, lambda x, dy: 2 * dy * jnp.cos(x), (normal(7, 5),))


@attack("1", "unseen", "kinks everywhere: between two of them anything is right")
def kinks_everywhere():
    f = lambda x: x * jnp.sign(jnp.sin(x * 2.0**60))
    return in_float64(f, lambda x, dy: 0.3 * dy, (normal(7, 5, dtype="float64"),))


@attack("1", "right", "ties of a maximum, shared by all")
def shared_ties():
    x = jnp.round(normal(4, 6))
    top = lambda x: x == x.max(-1, keepdims=True)
    return verify(
        lambda x: x.max(-1), lambda x, dy: dy[:, None] * top(x) / top(x).sum(-1, keepdims=True), (x,)
    )


@attack("1", "right", "ties of a sort, in the other order")
def ties_of_a_sort():
    x = jnp.round(normal(12))

    def back(x, dy):
        n = x.shape[0]
        order = (n - 1) - jnp.argsort(x[::-1])
        return jnp.zeros_like(x).at[order].set(dy)

    return verify(lambda x: jnp.sort(x), back, (x,))


@attack("1", "right", "a difference of two kinks that is smooth")
def two_kinks_that_cancel():
    f = lambda x: jnp.maximum(x, 0) + jnp.minimum(x, 0)
    return verify(f, lambda x, dy: dy, (normal(7, 5).at[0].set(0),))


@attack("1", "right", "distances of points to themselves")
def distances_to_themselves():
    f = lambda x: jnp.abs(x[:, None] - x[None, :]).sum(-1)

    def back(x, dy):
        s = jnp.sign(x[:, None] - x[None, :])
        return (s * dy[..., None]).sum(1) - (s * dy[..., None]).sum(0)

    return verify(f, back, (normal(6, 3),))


# ---- configurations ---------------------------------------------------------------------------------------


@attack("2", "right", "strict promotion refuses float32 constants beside float64")
def under_strict_promotion():
    c = jnp.asarray([1.0, 2.0, 3.0], F32)
    return with_config(
        jax.numpy_dtype_promotion,
        "strict",
        lambda x: jnp.sin(x * c),
        lambda x, dy: dy * c * jnp.cos(x * c),
        (normal(7, 3),),
    )


@attack("2", "wrong", "wrong with x64 off alone")
def with_x64_off():
    back = lambda x, dy: dy * jnp.cos(x) * (1.0 if jax.config.jax_enable_x64 else 1.2)
    return with_config(jax.enable_x64, False, jnp.sin, back, (normal(7, 5),))


@attack("6", "right", "disable_jit unrolls what is traced")
def while_jit_is_disabled():
    return with_config(
        jax.disable_jit,
        True,
        lambda x: lax.scan(lambda c, _: (jnp.sin(c), None), x, None, length=2)[0],
        lambda x, dy: dy * slope(x),
        (normal(7, 5),),
    )


@attack("6", "right", "whoever looks for leaked tracers")
def while_leaks_are_looked_for():
    return with_config(
        lambda _: jax.checking_leaks(),
        None,
        lambda x, w: x @ w,
        lambda x, w, dy: (dy @ w.T, x.T @ dy),
        (normal(3, 4), normal(4, 2)),
    )


@attack("6", "right", "transfers between devices and the host are forbidden")
def while_transfers_are_forbidden():
    return with_config(
        jax.transfer_guard, "disallow", jnp.sin, lambda x, dy: dy * jnp.cos(x), (normal(7, 5),)
    )


@attack("5", "wrong", "four threads at a time, that verify rules of one name")
def in_four_threads():
    right, wrong = sine(), sine(1.2)

    def all_of_them(*args: Any) -> Any:
        with futures.ThreadPoolExecutor(4) as pool:
            one, two, three, four = pool.map(lambda s: fn.verify(s, args), (right, wrong, right, wrong))
        assert one.ok
        assert three.ok
        assert two.wrong
        return four

    return all_of_them, (normal(7, 5),), {}


# ---- limits, as docs/verify.md tells them -----------------------------------------------------------------


@attack("1", "limit", "a size that was not tried")
def wrong_above_64():
    return verify(jnp.sin, lambda x, dy: dy * jnp.cos(x) * (2.0 if x.shape[0] > 64 else 1.0), (normal(7, 5),))


@attack("2", "limit", "less than the dtype rounds, and only there")
def a_millionth_in_float32():
    return verify(
        jnp.sin, lambda x, dy: dy * jnp.cos(x) * (1 + 2e-7 if x.dtype == F32 else 1), (normal(7, 5),)
    )


@attack("10", "limit", "a smooth switch far out")
def a_smooth_switch():
    return verify(
        jnp.sin, lambda x, dy: dy * jnp.cos(x) * (1 + jax.nn.sigmoid(40 * (x - 30))), (normal(7, 5),)
    )


@attack("5", "limit", "a formula that counts how often it is called")
def from_the_hundredth_call_on():
    count = itertools.count()
    return verify(
        jnp.sin, lambda x, dy: dy * jnp.cos(x) * (1.0 if next(count) < 100 else 2.0), (normal(7, 5),)
    )


# ---- by a second attacker ---------------------------------------------------------------------------------


@attack("A", "wrong", "the function is one of funcnet, whose rules are its own")
def a_rule_on_a_function_of_funcnet():
    s = ruled(fn.silu.apply, lambda x: (fn.silu.apply(x), x), lambda x, dy: (dy * (x > 0),))
    return of_model(s)


@attack("A", "wrong", "a rule that is made of functions of JAX alone")
def a_rule_made_of_jax_alone():
    s = jax.custom_jvp(jnp.tanh)
    s.defjvp(functools.partial(jax.jvp, jax.nn.sigmoid))
    return of_model(s)


def _scaled(x, dy, by=1.0):
    return (dy * jnp.cos(x) * by,)


@attack("A", "wrong", "two rules that differ in a keyword of a partial function")
def rules_that_differ_in_a_keyword():
    make = lambda by: ruled(_sin, _sin_forward, functools.partial(_scaled, by=by))
    right, wrong = make(1.0), make(2.0)
    return of_model(lambda x: right(x) + wrong(x))


def _sin(x):
    return jnp.sin(x)


def _sin_forward(x):
    return jnp.sin(x), x


@attack("A", "wrong", "two rules that differ in the default of a keyword")
def rules_that_differ_in_a_default():
    make = lambda by: ruled(_sin, _sin_forward, lambda x, dy, *, by=by: (dy * jnp.cos(x) * by,))
    right, wrong = make(1.0), make(2.0)
    return of_model(lambda x: right(x) + wrong(x))


@attack("A", "wrong", "two options whose hash is 0")
def options_of_hash_zero():
    class Config:
        def __init__(self, by):
            self.by = by

        def __hash__(self):
            return 0

        def __eq__(self, other):
            return self.by == other.by

    f = lambda c, x: jnp.sin(x)
    s = ruled(f, lambda c, x: (f(c, x), x), lambda c, x, dy: (dy * jnp.cos(x) * c.by,), nondiff_argnums=(0,))
    return of_model(lambda x: s(Config(1.0), x) + s(Config(2.0), x))


@attack("A", "unseen", "a rule in a program that was traced before")
def a_rule_in_a_traced_program():
    x = normal(3, 4)
    program = jax.make_jaxpr(sine(1.2))(x)
    return of_model(lambda x: jax.extend.core.jaxpr_as_fun(program)(x)[0], x)


@attack("A", "unseen", "a primitive with a vjp of the user's, by hijax")
def a_primitive_by_hijax():
    class Sine(hijax.VJPHiPrimitive):
        def __init__(self, aval):
            self.in_avals = (aval,)
            self.out_aval = aval
            self.params = {}
            super().__init__()

        def expand(self, x):
            return jnp.sin(x)

        def vjp_fwd(self, nzs_in, x):
            return self(x), x

        def vjp_bwd_retval(self, x, dy):
            return (dy * jnp.cos(x) * 2,)

        def batch_dim_rule(self, axis_data, dims):
            return dims[0]

    x = normal(3, 4)
    return of_model(lambda x: Sine(jax.typeof(x))(x), x)


@attack("A", "unseen", "a rule for vmap that computes something else")
def a_rule_of_vmap():
    @jax.custom_batching.custom_vmap
    def f(x):
        return jnp.sin(x)

    @f.def_vmap
    def _(size, batched, x):
        return 2 * jnp.sin(x), True

    return of_model(lambda x: jax.vmap(f)(x))


@attack("A", "wrong", "the rule's forward pass gives other integers")
def other_integers():
    f = lambda x: (x.max(-1), x.argmax(-1))
    fwd = lambda x: ((x.max(-1), x.argmin(-1)), x)
    s = ruled(f, fwd, lambda x, dy: (dy[0][:, None] * (x == x.max(-1, keepdims=True)),))
    return of_model(lambda x: s(x)[0])


@attack("A", "wrong", "what is not differentiated has a name and no number")
def not_differentiated_by_name():
    f = lambda x, n: x**n
    s = ruled(f, lambda x, n: (x**n, x), lambda n, x, dy: (dy * x ** (n - 1),), nondiff_argnames=("n",))
    return of_model(lambda x: s(x, 3))


@attack("A", "wrong", "with symbolic zeros, for two arguments of three")
def wrong_for_two_of_three():
    @jax.custom_vjp
    def f(x, y, z):
        return x * y * z

    def fwd(x, y, z):
        return x.value * y.value * z.value, (
            x.value,
            y.value,
            z.value,
            x.perturbed + y.perturbed + z.perturbed == 2,
        )

    def bwd(r, dy):
        x, y, z, two = r
        by = jnp.where(two, 2, 1).astype(x.dtype)
        return by * dy * y * z, dy * x * z, dy * x * y

    f.defvjp(fwd, bwd, symbolic_zeros=True)
    return of_model(lambda x: f(x, x + 1, jnp.ones_like(x) * 3))


@attack("9", "wrong", "in a large array an outlier is the measure of all")
def an_outlier_in_a_large_array():
    x = normal(300, 200).at[0, 0].set(1e6)
    return verify(lambda x: x**4, lambda x, dy: 4 * x**3 * dy * jnp.where(jnp.abs(x) < 3, 1.2, 1.0), (x,))


@attack("1", "right", "six axes: what is smaller is large, too")
def six_axes():
    return verify(jnp.sin, lambda x, dy: dy * jnp.cos(x), (normal(6, 7, 8, 9, 10, 11),))


@attack("3", "wrong", "no cotangent is ever 0: NaN where it is")
def where_the_cotangent_is_zero():
    return verify(jnp.sin, lambda x, dy: dy * dy * jnp.cos(x) / dy, (normal(7, 5),))


@attack("10", "unseen", "a number alone, and its sign")
def the_sign_of_one_number():
    return verify(
        lambda x, a: x * jnp.abs(a),
        lambda x, a, dy: (dy * a, (dy * x).sum()),
        (normal(7, 5), jnp.asarray(0.5)),
    )


@attack("10", "unseen", "a mask that leaves nothing out")
def a_full_mask():
    return verify(
        lambda x, m: jnp.sin(x) * m,
        lambda x, m, dy: (dy * jnp.cos(x), None),
        (normal(7, 5), jnp.ones((7, 5), bool)),
    )


@attack("10", "unseen", "lengths that are all full")
def full_lengths():
    f = lambda x, n: jnp.sin(x) * (jnp.arange(5) < n[:, None])
    return verify(f, lambda x, n, dy: (dy * jnp.cos(x), None), (normal(7, 5), jnp.full(7, 5)))


@attack("10", "unseen", "groups that follow one another")
def sorted_groups():
    f = lambda x, g: jnp.zeros(3, x.dtype).at[g].add(x)
    back = lambda x, g, dy: (jnp.repeat(dy, jnp.bincount(g, length=3), total_repeat_length=x.shape[0]), None)
    return verify(f, back, (normal(7), jnp.asarray([0, 0, 1, 1, 1, 2, 2])))


@attack("10", "unseen", "a branch inside a loop of the formula")
def a_branch_in_a_loop():
    def back(x, dy):
        step = lambda _, v: (None, v[1] * jnp.where(v[0] > 10, 1.0, jnp.cos(v[0])))
        return lax.scan(step, None, (x, dy))[1]

    return verify(jnp.sin, back, (normal(7, 5),))


@attack("10", "unseen", "two choices in one line, of which one is made")
def two_choices_in_one_line():
    f = lambda x: jnp.abs(x)
    return verify(f, lambda x, dy: jnp.where(x > 0, dy, jnp.where(x < -20, dy, -dy)), (normal(7, 5),))


@attack("10", "unseen", "a switch by sign")
def a_switch_by_sign():
    return verify(jnp.sin, lambda x, dy: dy * jnp.cos(x) * (1.5 + 0.5 * jnp.sign(x - 10)), (normal(7, 5),))


@attack("10", "unseen", "an integer that chooses, and the formula knows one choice")
def an_integer_that_chooses():
    f = lambda x, k: lax.switch(k, (jnp.sin, jnp.cos), x)
    return verify(f, lambda x, k, dy: (dy * jnp.cos(x), None), (normal(7, 5), jnp.asarray(0)))


@attack("10", "unseen", "an argument without gradient stays as it is, and is 1")
def an_argument_without_gradient():
    f = lambda x, s: jnp.sin(x) * lax.stop_gradient(s)
    return verify(f, lambda x, s, dy: (dy * jnp.cos(x), None), (normal(7, 5), jnp.asarray(1.0)))


@attack("1", "unseen", "two arguments of one size, at others the formula raises")
def raises_at_unequal_sizes():
    f = lambda x, w: x[:, None] * w
    back = lambda x, w, dy: ((dy * jnp.broadcast_to(w, (x.size, x.size))).sum(1), x @ dy)
    return verify(f, back, (normal(5), normal(5, seed=1)))


@attack("7", "unseen", "a symmetric matrix of complex numbers")
def complex_and_symmetric():
    a = lax.complex(normal(4, 4), normal(4, 4, seed=1))
    return verify(
        lambda a, z: a @ z,
        lambda a, z, dy: (dy[:, None] * z, a @ dy),
        ((a + a.T), lax.complex(normal(4), normal(4, seed=2))),
    )


@attack("6", "wrong", "an operation in NumPy gives twice the values of its reference")
def values_in_numpy():
    op = types.ModuleType("own")
    op.reference = jnp.sin
    op.apply = lambda x: jnp.asarray(2 * np.sin(np.asarray(x)))
    op.vjp = lambda x: (jnp.sin(x), jax.tree_util.Partial(lambda x, dy: (dy * jnp.cos(x),), x))
    return verify(op, (normal(7, 5),))


@attack("1", "limit", "the larger of two that are equal: both get all")
def the_larger_of_two_equal():
    x = normal(7, 5)
    return verify(jnp.maximum, lambda x, w, dy: (dy * (x >= w), dy * (w >= x)), (x, x))


@attack("2", "right", "the bits of a float32")
def the_bits_of_a_number():
    return verify(jnp.abs, lambda x, dy: jnp.where(jnp.signbit(x), -dy, dy), (normal(7, 5),))


@attack("2", "right", "arguments in float8")
def in_float8():
    return verify(
        lambda x: x * x,
        lambda x, dy: (2 * x.astype(F32) * dy.astype(F32)).astype(x.dtype),
        (normal(7, 5).astype(jnp.float8_e4m3fn),),
    )


@attack("1", "wrong", "a maximum with ties: each gets all")
def ties_that_all_get_all():
    x = jnp.asarray([[1.0, 2.0, 2.0], [3.0, 3.0, 3.0]])
    return verify(lambda x: x.max(-1), lambda x, dy: dy[:, None] * (x == x.max(-1, keepdims=True)), (x,))


@attack("3", "wrong", "infinite on the way, in float32 alone")
def infinite_on_the_way():
    return verify(
        lambda x: jnp.logaddexp(x, 0.0),
        lambda x, dy: dy * jnp.exp(x) / (1 + jnp.exp(x)),
        (jnp.linspace(-3.0, 100.0, 12),),
    )


@attack("4", "right", "a stop in a loop that has no derivative in reverse")
def a_stop_in_a_loop_by_numbers():
    f = lambda x: lax.while_loop(
        lambda c: c[1] < 2, lambda c: (jnp.sin(c[0]) * lax.stop_gradient(c[0]), c[1] + 1), (x, 0)
    )[0]

    def back(x, dy):
        y = jnp.sin(x) * x
        return dy * jnp.cos(y) * y * jnp.cos(x) * x

    return verify(f, back, (normal(4),))


@attack("5", "wrong", "a rule in a branch that a loop takes once")
def a_branch_that_is_taken_once():
    s = sine(1.2)

    def step(c, t):
        return lax.cond(t == 1, s, lambda c: jnp.sin(c), c), None

    return verify(lambda x: lax.scan(step, x, jnp.arange(3))[0], (normal(7, 5),))


@attack("8", "right", "a dataclass, whose gradient is one")
def a_dataclass():
    @functools.partial(jax.tree_util.register_dataclass, data_fields=["w", "inner"], meta_fields=["name"])
    @dataclasses.dataclass
    class Params:
        w: object
        inner: object
        name: str = "p"

    p = Params(normal(4), {"b": normal(4, seed=1)})
    return verify(
        lambda p: jnp.sin(p.w) * p.inner["b"],
        lambda p, dy: Params(dy * jnp.cos(p.w) * p.inner["b"], {"b": dy * jnp.sin(p.w)}),
        (p,),
    )


@attack("2", "right", "a large layer norm in bfloat16, by another formula")
def a_large_norm_in_bfloat16():
    def f(x):
        x = x.astype(F32)
        m = x.mean(-1, keepdims=True)
        return ((x - m) * lax.rsqrt(((x - m) ** 2).mean(-1, keepdims=True) + 1e-5)).astype(BF16)

    def back(x, dy):
        x, dy = x.astype(F32), dy.astype(F32)
        c = x - x.mean(-1, keepdims=True)
        r = lax.rsqrt((c * c).mean(-1, keepdims=True) + 1e-5)
        n = c * r
        return (r * (dy - dy.mean(-1, keepdims=True) - n * (dy * n).mean(-1, keepdims=True))).astype(BF16)

    return verify(f, back, (normal(256, 512, dtype=BF16),))


@attack("6", "limit", "a branch of Python's in a formula in NumPy")
def a_branch_of_python():
    def back(x, dy):
        x = np.asarray(x)
        return dy if x.max() > 30 else np.asarray(dy) * np.cos(x)

    return verify(jnp.sin, back, (normal(7, 5),))


# ---- by a third attacker ----------------------------------------------------------------------------------


@attack("A", "wrong", "a rule on a function of JAX, whose derivative lies in a tuple of JAX's")
def a_rule_by_defjvps():
    root = jax.custom_jvp(jnp.sqrt)
    root.defjvps(lambda t, y, x: t / (y + 1e-6))
    return of_model(root, jnp.abs(normal(3, 4)) + 0.5)


@attack("A", "wrong", "a gradient penalty takes the derivative of a rule's gradient")
def a_gradient_penalty():
    bwd = lambda y, dy: (dy * lax.stop_gradient(1 - y * y),)
    s = ruled(lambda x: jnp.tanh(x), lambda x: (jnp.tanh(x),) * 2, bwd)

    def loss(params, batch):
        g = jax.grad(lambda x: s(x @ params["w"]).sum())(batch)
        return ((jnp.sqrt((g * g).sum(-1)) - 1) ** 2).mean()

    return fn.verify_model, (loss, {"w": normal(4, 3)}, normal(3, 4, seed=1)), {}


@attack("A", "wrong", "one rule is allowed by its name, and another has the same")
def two_rules_of_one_name():
    def clip(x):
        return jnp.clip(x, -1, 1)

    straight = ruled(clip, lambda x: (clip(x), None), lambda _, dy: (dy,))
    wrong = ruled(clip, lambda x: (clip(x), x), lambda x, dy: (2 * dy * (jnp.abs(x) < 1),))
    return of_model(lambda x: straight(x) + wrong(x), allow=("clip",))


@attack("1", "wrong", "an axis of size 1 that is not the first")
def an_output_of_one():
    back = lambda p, t, dy: (2 * (p - t) / len(p) * dy, -2 * (p - t) / len(p) * dy)
    return verify(lambda p, t: ((p - t) ** 2).mean(), back, (normal(7, 1), normal(7, 1, seed=1)))


@attack("1", "wrong", "an array around the function has the size of the batch")
def a_constant_of_the_size_of_the_batch():
    c = normal(5, 7, seed=3)
    back = lambda x, dy: jnp.broadcast_to(dy[:, None] / len(x), (len(x), c.shape[1])) @ c.T
    return verify(lambda x: (x @ c).mean(1), back, (normal(7, 5),))


@attack("1", "wrong", "right for odd sizes alone")
def the_highest_frequency():
    def back(x, dy):
        z = dy * jnp.fft.rfft(x)
        return jnp.fft.irfft(z.at[..., 0].multiply(2), x.shape[-1]) * x.shape[-1]

    return verify(lambda x: jnp.abs(jnp.fft.rfft(x)) ** 2, back, (normal(3, 7),), shapes="auto")


@attack("2", "right", "a product of int8 is added up in int32")
def a_product_of_int8():
    a, b = (jnp.asarray(100 * normal(*shape, seed=1), jnp.int8) for shape in ((7, 16), (16, 5)))
    f = lambda s: s * lax.dot(a, b, preferred_element_type=jnp.int32)
    return verify(f, lambda s, dy: (dy * (a.astype(F32) @ b.astype(F32))).sum(0), (normal(5),))


@attack("2", "right", "a forward pass that knows float32 alone")
def a_forward_of_float32():
    def f(x):
        assert x.dtype == F32
        return jnp.sin(x)

    return verify(f, lambda x, dy: dy * jnp.cos(x), (normal(7, 5),))


@attack("2", "wrong", "a formula that knows float32 alone")
def a_formula_of_float32():
    def back(x, dy):
        assert x.dtype == dy.dtype == F32
        return dy * jnp.cos(x) * (1 + 1e-6)

    return verify(jnp.sin, back, (normal(7, 5),))


@attack("7", "right", "a sigmoid of complex numbers")
def a_complex_sigmoid():
    def back(z, dy):
        s = 1 / (1 + jnp.exp(-z))
        return dy * s * (1 - s)

    return verify(jax.nn.sigmoid, back, (Z,))


@attack("7", "right", "keys may not be used twice")
def while_keys_are_watched():
    mask = lambda x, key: jax.random.bernoulli(key, 0.5, x.shape).astype(x.dtype)
    f, back = lambda x, key: x * mask(x, key), lambda x, key, dy: (dy * mask(x, key), None)
    return with_config(jax.debug_key_reuse, True, f, back, (normal(7, 5), jax.random.key(0)))


@attack("8", "right", "a number of Python's among the results")
def a_number_among_the_results():
    back = lambda x, dy: dy[0] * jnp.cos(x)
    return verify(lambda x: (jnp.sin(x), {"rate": 0.1}), back, (normal(7, 5),))


class Keeping:
    """A layer that keeps its input for the backward pass."""

    def __init__(self, by):
        self.by = by

    def forward(self, x):
        self.x = x
        return jnp.sin(x)

    def backward(self, x, dy):
        return self.by * dy * jnp.cos(self.x)


@attack("6", "right", "a layer that keeps its input")
def a_layer_with_a_state():
    layer = Keeping(1.0)
    return verify(layer.forward, layer.backward, (normal(7, 5),))


@attack("6", "wrong", "a layer that keeps its input, and is wrong")
def a_wrong_layer_with_a_state():
    layer = Keeping(1.2)
    return verify(layer.forward, layer.backward, (normal(7, 5),))


@attack("6", "wrong", "a formula in NumPy that writes into dy, which is not its own")
def numpy_in_place():
    def back(x, dy):
        dx = np.asarray(dy)
        dx[np.asarray(x) < 0] = 0
        return dx

    return verify(jax.nn.relu, back, (normal(7, 5),))


@attack("6", "wrong", "a formula in NumPy whose shapes do not fit")
def numpy_shapes_that_do_not_fit():
    back = lambda x, w, dy: (np.asarray(dy) @ np.asarray(w), np.asarray(x).T @ np.asarray(dy))
    return verify(lambda x, w: x @ w, back, (normal(7, 5), normal(5, 3)))


@attack("6", "right", "JAX reshapes and transposes at once, where it derives a product")
def a_product_along_the_last_axis():
    back = lambda x, dy: dy[:, None] * x.prod(-1, keepdims=True) / x
    return verify(lambda x: x.prod(-1), back, (normal(7, 5).at[0, 0].set(0.5),))


@attack("10", "unseen", "no factor is 0, by which the formula divides")
def a_product_by_division():
    return verify(lambda x: x.prod(-1), lambda x, dy: dy[:, None] * x.prod(-1)[:, None] / x, (normal(7, 5),))


@attack("10", "unseen", "an option of 1 hides that it was forgotten")
def an_option_of_one():
    f = lambda x, *, alpha: jnp.sin(alpha * x)
    return verify(f, lambda x, dy, *, alpha: dy * jnp.cos(alpha * x), (normal(7, 5),), static={"alpha": 1.0})


@attack("10", "unseen", "of a hard sigmoid the middle alone is met")
def the_middle_of_a_hard_sigmoid():
    return verify(jax.nn.hard_sigmoid, lambda x, dy: dy / 6, (normal(7, 5) * 0.5,))


@attack("10", "unseen", "a switch by a cast")
def a_switch_by_a_cast():
    table = jnp.asarray([1.0, 2.0, 3.0], F32)
    back = lambda x, dy: dy * jnp.cos(x) * table[jnp.clip((x / 30).astype(int), 0, 2)]
    return verify(jnp.sin, back, (normal(7, 5),))


def affine(rule):
    """x w + b with a rule for batches."""
    f = jax.custom_batching.custom_vmap(lambda x, w, b: x @ w + b)
    f.def_vmap(lambda size, batched, x, w, b: (rule(size, *batched, x, w, b), True))
    return fn.verify_batching, (f, (normal(3, 4), normal(4, 2), normal(2))), {"budget": 0.0}


@attack("D", "wrong", "a rule for batches that raises for some of them")
def a_batching_rule_that_raises():
    return affine(lambda size, bx, bw, bb, x, w, b: x @ w + b)


@attack("D", "wrong", "a rule for batches, wrong for two arguments of three")
def a_batching_rule_for_an_ensemble():
    def rule(size, bx, bw, bb, x, w, b):
        y = jnp.broadcast_to(x @ w, (size, len(x) if not bx else x.shape[1], w.shape[-1]))
        if bw and bb and not bx:
            return y + b.mean(0)
        return y + (b[:, None] if bb else b)

    return affine(rule)


# ---- by a fourth attacker ---------------------------------------------------------------------------------


def told(ok: bool, wrong: bool = False) -> Any:
    """What is no report of the verifier, as one."""
    return types.SimpleNamespace(ok=ok, wrong=(1,) if wrong else (), notes=())


def masked_softmax(s: Any, keep: Any) -> Any:
    return jax.nn.softmax(jnp.where(keep, s, -1e30))


def softmax_back(p: Any, dy: Any) -> Any:
    return p * (dy - (dy * p).sum(-1, keepdims=True))


@attack("10", "unseen", "an option that is a whole number: gamma of a focal loss, written down as 2")
def a_whole_number_among_the_options():
    def f(x, *, gamma):
        p = jax.nn.sigmoid(x)
        return -((1 - p) ** gamma) * jax.nn.log_sigmoid(x)

    def back(x, dy, *, gamma):
        del gamma
        p = jax.nn.sigmoid(x)
        return dy * (2 * (1 - p) ** 2 * p * jax.nn.log_sigmoid(x) - (1 - p) ** 3)

    return verify(f, back, (normal(7, 5),), static={"gamma": 2})


@attack("10", "unseen", "a switch among the options, which the formula ignores")
def a_switch_among_the_options():
    keep = lambda s, causal: jnp.tril(jnp.ones(s.shape[-2:], bool)) if causal else True
    f = lambda s, *, causal: masked_softmax(s, keep(s, causal))
    back = lambda s, dy, *, causal: softmax_back(jax.nn.softmax(s), dy)
    return verify(f, back, (normal(3, 5, 7),), static={"causal": False})


@attack("10", "unseen", "a mask among the options, which leaves nothing out")
def a_full_mask_among_the_options():
    f = lambda x, *, mask: (x * x * mask).sum(-1) / mask.sum(-1)
    back = lambda x, dy, *, mask: 2 * x * dy[:, None] / x.shape[-1]
    return verify(f, back, (normal(7, 5),), static={"mask": jnp.ones((7, 5), bool)})


@attack("10", "unseen", "labels as rows of whole numbers that hold one 1")
def one_hot_labels_of_integers():
    f = lambda x, t: -(t * jax.nn.log_softmax(x)).sum(-1)
    t = jax.nn.one_hot(jnp.asarray([0, 3, 1, 1, 4, 2, 0]), 5, dtype=jnp.int32)
    return verify(f, lambda x, t, dy: (dy[:, None] * (jax.nn.softmax(x) - t), None), (normal(7, 5), t))


@attack("10", "unseen", "no two numbers are equal: each of the largest gets all")
def a_maximum_without_ties():
    back = lambda x, dy: dy[:, None] * (x == x.max(-1, keepdims=True))
    return verify(lambda x: x.max(-1), back, (normal(7, 5),))


@attack("10", "unseen", "the forward pass of a rule, for the other sign")
def values_of_the_other_sign():
    s = ruled(
        lambda x: jnp.sign(x) * jnp.sqrt(jnp.abs(x)),
        lambda x: (jnp.sqrt(jnp.abs(x)), x),
        lambda x, dy: (dy / (2 * jnp.sqrt(jnp.abs(x))),),
    )
    return verify(s, (jnp.abs(normal(7, 5)) + 0.1,))


@attack("D", "unseen", "of two routers the experts are the same for positive scores alone")
def integers_of_the_other_sign():
    route = lambda size: lambda x: (jax.nn.softmax(x).max(-1), size(x).argmax(-1))
    args = (route(jnp.abs), route(lambda x: x), (jnp.abs(normal(7, 5)) + 0.1,))
    return fn.verify_same, args, {"budget": 0.0}


@attack("6", "right", "zeros of a padding at a kink, by numerical differentiation")
def a_kink_in_numpy():
    back = lambda x, dy: np.asarray(dy) * (np.asarray(x) > 0)
    return verify(lambda x: np.maximum(np.asarray(x), 0), back, (normal(7, 5).at[0].set(0),))


@attack("6", "right", "a mask that compresses: the result is as long as it says")
def a_mask_that_compresses():
    keep = jnp.asarray([True, False, True, True, False, True, False])
    back = lambda x, keep, dy: (jnp.zeros_like(x).at[jnp.nonzero(keep)[0]].set(2 * x[keep] * dy), None)
    return verify(lambda x, keep: x[keep] ** 2, back, (normal(7, 5), keep))


@attack("2", "right", "weights of four bits")
def weights_of_four_bits():
    w = jnp.asarray(np.arange(55).reshape(11, 5) % 15 - 7, jnp.int4)
    f = lambda x, w, s: x @ (w.astype(F32) * s)
    back = lambda x, w, s, dy: (dy @ (w.astype(F32) * s).T, None, ((x.T @ dy) * w.astype(F32)).sum(0))
    return verify(f, back, (normal(7, 11), w, jnp.abs(normal(5))))


@attack("2", "right", "gamma variates are drawn otherwise in float64")
def gamma_variates():
    draw = lambda key, a: jax.random.gamma(key, a)
    back = lambda key, a, dy: (None, dy * lax.random_gamma_grad(a, draw(key, a)))
    return verify(draw, back, (jax.random.key(0), jnp.abs(normal(7)) + 0.5))


@attack("2", "right", "experts by lax.ragged_dot")
def a_ragged_product():
    def back(x, w, sizes, dy):
        of = jnp.repeat(jnp.arange(w.shape[0]), sizes, total_repeat_length=x.shape[0])
        here = (jnp.arange(x.shape[0]) < sizes.sum()).astype(x.dtype)
        one_hot = jax.nn.one_hot(of, w.shape[0], dtype=x.dtype) * here[:, None]
        dw = jnp.einsum("ne,nd,nf->edf", one_hot, x, dy)
        return lax.ragged_dot(dy, w.swapaxes(1, 2), sizes), dw, None

    return verify(lax.ragged_dot, back, (normal(11, 5), normal(3, 5, 7, seed=1), jnp.asarray([4, 2, 5])))


@attack("2", "wrong", "what JAX keeps of a rule under remat is a program of one dtype: half a millionth")
def half_a_millionth_under_remat():
    s = jax.custom_vjp(lambda x: jnp.sin(x))
    bwd = lambda x, dy: (dy * jnp.cos(x) * (1 + 4e-7),)
    s.defvjp(lambda x: (jnp.sin(x), x), bwd, optimize_remat=True)
    return verify(s, (normal(7, 5),))


@attack("2", "limit", "the gradient of a bfloat16 has the dtype of the result, float32")
def a_gradient_of_the_dtype_of_the_result():
    back = lambda x, w, dy: (dy @ w.T, x.astype(F32).T @ dy)
    return verify(lambda x, w: x.astype(F32) @ w, back, (normal(7, 5, dtype=BF16), normal(5, 3)))


@attack("8", "right", "a dropout that gives back the next key")
def a_key_that_is_handed_on():
    def f(x, key):
        key, mine = jax.random.split(key)
        return x * jax.random.bernoulli(mine, 0.5, x.shape), key

    def fwd(x, key):
        mask = jax.random.bernoulli(jax.random.split(key)[1], 0.5, x.shape)
        return f(x, key), mask

    return verify(ruled(f, fwd, lambda mask, dy: (dy[0] * mask, None)), (normal(7, 5), jax.random.key(0)))


@attack("D", "right", "of a relu at 0 the tangent is that of the other side")
def a_tangent_of_the_other_side():
    s = jax.custom_jvp(jax.nn.relu)
    s.defjvp(lambda p, t: (jnp.maximum(p[0], 0), jnp.where(p[0] >= 0, t[0], 0)))
    return fn.verify_jvp, (s, (normal(7, 5).at[0].set(0),)), {"budget": 0.0}


@attack("8", "right", "what is not differentiated is an array of NumPy, which may not be traced")
def an_array_that_may_not_be_traced():
    f = lambda x, order: x[:, np.asarray(order)] ** 2
    fwd = lambda x, order: (f(x, order), x)
    s = ruled(f, fwd, lambda order, x, dy: (2 * x * dy[:, np.argsort(order)],), nondiff_argnums=(1,))
    return verify(s, (normal(7, 3), np.asarray([2, 0, 1], np.int32)))


@attack("3", "wrong", "a row of the cotangent that is 0, as of what a loss leaves out: 0 / 0")
def a_row_of_zeros_in_the_cotangent():
    norm = lambda v: jnp.sqrt((v * v).sum(-1, keepdims=True))

    def back(x, dy):
        g, u = dy / norm(x), x / norm(x)
        cosine = (g * u).sum(-1, keepdims=True) / norm(g)
        return g - cosine * norm(g) * u

    return verify(lambda x: x / norm(x), back, (normal(7, 5),))


@attack("1", "right", "an adapter of rank 0")
def an_adapter_of_rank_zero():
    def back(p, x, dy):
        up = dy @ p["b"].T
        dx = dy @ p["w"].T + up @ p["a"].T
        return {"w": x.T @ dy, "a": x.T @ up, "b": (x @ p["a"]).T @ dy}, dx

    p = {"w": normal(5, 3), "a": normal(5, 0), "b": normal(0, 3)}
    return verify(lambda p, x: x @ p["w"] + x @ p["a"] @ p["b"], back, (p, normal(7, 5)))


@attack("1", "right", "a table of relative positions: for other lengths its indices are beyond its end")
def a_table_of_relative_positions():
    def places(s):
        n, m = s.shape[1:]
        return jnp.arange(n)[:, None] - jnp.arange(m) + m - 1

    f = lambda s, table: s + table[places(s)].transpose(2, 0, 1)
    back = lambda s, table, dy: (dy, jnp.zeros_like(table).at[places(s)].add(dy.transpose(1, 2, 0)))
    return verify(f, back, (normal(3, 4, 4), normal(7, 3)))


@attack("3", "right", "a rotation by nothing: sin t / t by its series")
def a_rotation_by_nothing():
    def parts(v):
        square = (v * v).sum(-1, keepdims=True)
        small = square < 1e-8
        t = jnp.sqrt(jnp.where(small, 1.0, square))
        return square, small, t

    def f(v):
        square, small, t = parts(v)
        return jnp.where(small, 1 - square / 6, jnp.sin(t) / t) * v

    def back(v, dy):
        square, small, t = parts(v)
        s = jnp.where(small, 1 - square / 6, jnp.sin(t) / t)
        slope = jnp.where(small, -1 / 3, (jnp.cos(t) - s) / (t * t))
        return s * dy + slope * (v * dy).sum(-1, keepdims=True) * v

    return verify(f, back, (normal(7, 3).at[2].set(0),))


@attack("6", "right", "a root by lax.custom_root, whose derivative is implicit")
def a_root():
    def f(a):
        newton = lambda g, y: lax.fori_loop(0, 30, lambda _, y: y - g(y) / (1 + jnp.sinh(y) ** 2 + 1), y)
        solve = lambda g, y: y / g(jnp.ones_like(y))
        return lax.custom_root(lambda y: y + jnp.tanh(y) - a, 0.5 * a, newton, solve)

    back = lambda a, dy: dy / (2 - jnp.tanh(f(a)) ** 2)
    return verify(f, back, (normal(7),))


@attack("8", "right", "a graph as a sparse matrix")
def a_sparse_matrix():
    from jax.experimental import sparse

    at = np.asarray([[0, 1], [0, 3], [2, 0], [5, 2], [6, 4], [3, 3]], np.int32)
    a = sparse.BCOO((normal(6), jnp.asarray(at)), shape=(7, 5))

    def back(a, x, dy):
        i, j = a.indices.T
        da = sparse.BCOO(((dy[i] * x[j]).sum(-1), a.indices), shape=a.shape)
        return da, jnp.zeros_like(x).at[j].add(a.data[:, None] * dy[i])

    return verify(lambda a, x: a @ x, back, (a, normal(5, 3, seed=1)))


@attack("A", "right", "a differential equation by odeint, whose adjoint is a rule of JAX")
def a_differential_equation():
    from jax.experimental import ode

    field = lambda y, t: jnp.sin(y) - 0.1 * t * y
    return of_model(lambda x: ode.odeint(field, x, jnp.linspace(0.0, 1.0, 3)), normal(3))


@attack("6", "right", "warnings are errors")
def while_warnings_are_errors():
    import warnings

    def inside(*args):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return fn.verify(*args, budget=0.0)

    f = lambda x, w: jnp.sqrt(loops(x)) @ w
    back = lambda x, w, dy: (dy @ w.T * slope(x) / (2 * jnp.sqrt(loops(x))), jnp.sqrt(loops(x)).T @ dy)
    return inside, (f, back, (jnp.abs(normal(7, 5)) + 0.1, normal(5, 0))), {}


@attack("6", "right", "ranks may not be promoted")
def while_ranks_are_not_promoted():
    back = lambda x, w, b, dy: (dy @ w.T, x.T @ dy, dy.sum(0))
    args = (normal(3, 4), normal(4, 2), normal(2))
    return with_config(jax.numpy_rank_promotion, "raise", lambda x, w, b: x @ w + b[None], back, args)


@attack("6", "right", "a mesh is set, and the batch lies along it")
def while_a_mesh_is_set():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    x = jax.device_put(normal(4, 3), jax.sharding.NamedSharding(mesh, PartitionSpec("data")))
    return with_config(
        jax.set_mesh,
        mesh,
        lambda x, w: jnp.tanh(x @ w),
        lambda x, w, dy: ((dy * (1 - jnp.tanh(x @ w) ** 2)) @ w.T, x.T @ (dy * (1 - jnp.tanh(x @ w) ** 2))),
        (x, normal(3, 2)),
    )


@attack("6", "refused", "verify within a compiled function")
def within_a_compiled_function():
    check = lambda x: (fn.verify(jnp.sin, lambda x, dy: dy * jnp.cos(x), (x,), budget=0.0), x)[1]
    return jax.jit(check), (normal(7, 5),), {}


@attack("6", "refused", "arguments that a step has used up")
def arguments_that_are_used_up():
    x = normal(7, 5)
    x.delete()
    return verify(jnp.sin, lambda x, dy: dy * jnp.cos(x), (x,))


@attack("7", "wrong", "a complex number of Python's is an argument, and has a gradient")
def a_complex_number_of_python():
    return verify(lambda z, x: z * x, lambda z, x, dy: (999 * dy.sum(), dy * z), (2 + 1j, Z))


@attack(
    "6",
    "unseen",
    "a primitive of one's own in the forward pass, with the wrong derivative, and the same formula",
)
def a_primitive_for_its_own_truth():
    from jax.interpreters import ad, mlir

    p = jax.extend.core.Primitive("my_sine")
    p.def_impl(lambda x: jnp.sin(x))
    p.def_abstract_eval(lambda x: x)
    mlir.register_lowering(p, mlir.lower_fun(jnp.sin, multiple_results=False))
    ad.defjvp(p, lambda t, x: 1.2 * t * jnp.cos(x))
    return verify(lambda x: p.bind(x), lambda x, dy: 1.2 * dy * jnp.cos(x), (normal(7, 5),))


@attack("4", "wrong", "the reference calls the rule, made anew with a table of its own")
def a_rule_made_anew_for_its_own_reference():
    def f(x):
        table = jnp.arange(1.0, 6.0)
        return ruled(
            lambda x: jnp.sin(x) * table, lambda x: (jnp.sin(x) * table, x), lambda x, dy: (dy * table,)
        )(x)

    return verify(f, (normal(7, 5),), reference=lambda x: f(x))


@attack("A", "wrong", "options that hold an array: whether they are equal is an array, too")
def options_that_hold_arrays():
    @dataclasses.dataclass(frozen=True)
    class Rope:
        by: float
        table: Any = dataclasses.field(hash=False)

    f = lambda c, x: jnp.sin(x) * c.table
    bwd = lambda c, x, dy: (dy * jnp.cos(x) * c.table * c.by,)
    s = ruled(f, lambda c, x: (f(c, x), x), bwd, nondiff_argnums=(0,))
    one, two = (Rope(1.0, np.arange(4) + k) for k in range(2))
    return of_model(lambda x: s(one, x) + s(two, x) + s(Rope(1.2, np.ones(4)), x))


@attack("2", "right", "a product of float8, whose cotangent is rounded to another one")
def a_product_of_float8():
    q = lambda v, d: v.astype(d).astype(F32)
    e4, e5 = jnp.float8_e4m3fn, jnp.float8_e5m2
    f = lambda x, w: q(x, e4) @ q(w, e4)
    s = ruled(
        f,
        lambda x, w: (f(x, w), (q(x, e4), q(w, e4))),
        lambda r, dy: (q(dy, e5) @ r[1].T, r[0].T @ q(dy, e5)),
    )
    return verify(s, (normal(7, 11), normal(11, 13, seed=1)))


@attack("6", "right", "a state space model of 600 steps, within a minute")
def a_long_recurrence():
    def f(a, x):
        return lax.scan(lambda h, x: ((h := a * h + x), h), jnp.zeros_like(a), x)[1]

    def back(a, x, dy):
        before = jnp.concatenate([jnp.zeros_like(a)[None], f(a, x)[:-1]])
        dx = lax.scan(lambda g, d: ((g := a * g + d), g), jnp.zeros_like(a), dy, reverse=True)[1]
        return (dx * before).sum(0), dx

    return in_a_minute(f, back, (jax.nn.sigmoid(normal(3)), normal(600, 3, seed=1)))


@attack("6", "right", "eight layers with gains of ones, within a minute")
def a_deep_net():
    def run(p, x):
        kept = []
        for layer in p:
            kept.append((x, jnp.tanh(x * layer["g"] @ layer["w"] + layer["b"])))
            x = x + kept[-1][1]
        return x, kept

    def back(p, x, dy):
        grads = []
        for layer, (x, h) in zip(reversed(p), reversed(run(p, x)[1]), strict=True):  # noqa: B020
            da = dy * (1 - h * h)
            dxg = da @ layer["w"].T
            grads.append({"g": (dxg * x).sum(0), "w": (x * layer["g"]).T @ da, "b": da.sum(0)})
            dy = dy + dxg * layer["g"]
        return grads[::-1], dy

    p = [{"g": jnp.ones(4), "w": 0.3 * normal(4, 4, seed=i), "b": jnp.zeros(4)} for i in range(8)]
    return in_a_minute(lambda p, x: run(p, x)[0], back, (p, normal(3, 4)))


def in_a_minute(*args: Any) -> tuple[Any, ...]:
    def timed(*args):
        import time

        begin = time.process_time()
        report = fn.verify(*args, budget=0.0)
        return report if time.process_time() - begin < 60 else told(False)

    return timed, args, {}


# Files, and what is written into them.


def in_a_file(text: str) -> Any:
    import pathlib
    import tempfile

    path = pathlib.Path(tempfile.mkdtemp()) / "mine.py"
    path.write_text(text)
    return path


@attack("A", "wrong", "a file with a dataclass, whose annotations are text")
def a_file_with_a_dataclass():
    from funcnet.cli import verify as command

    path = in_a_file(
        "from __future__ import annotations\n"
        "import dataclasses\nimport jax\nimport jax.numpy as jnp\n\n\n"
        "@dataclasses.dataclass\nclass Config:\n    width: int = 3\n\n\n"
        "@jax.custom_vjp\ndef squash(x):\n    return jnp.tanh(x)\n\n\n"
        "squash.defvjp(lambda x: (jnp.tanh(x),) * 2, lambda y, dy: (dy * (1 - y),))\n"
    )

    def run(*args):
        code = command.run(list(args))
        return told(code == 0, code == 1)

    return run, (str(path), "--shape", "x=7,5", "--budget", "0"), {}


def pasted(text: str, args: tuple[Any, ...], elsewhere: tuple[Any, ...]) -> tuple[Any, ...]:
    """Verify `forward` and `backward` of a file, write what is shown into it, and verify it elsewhere."""
    import importlib.util

    def load(path):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def run(text):
        mine = load(in_a_file(text))
        report = fn.verify(mine.forward, mine.backward, args)
        assert report.wrong
        lines = text.splitlines()
        for finding in report.wrong:
            if not finding.code or finding.given:
                return told(True)  # nothing is shown that is not right, or not as if it always were
            first = int(finding.location.rpartition(":")[2]) - 1
            shown = finding.code.splitlines()
            indent = lines[first][: len(lines[first]) - len(lines[first].lstrip())]
            lines[first : first + len(shown)] = [indent + line for line in shown]
        mine = load(in_a_file("\n".join(lines) + "\n"))
        return fn.verify(mine.forward, mine.backward, elsewhere, budget=0.0)

    return run, (text,), {}


@attack("E", "right", "a line that mends a gradient where a matrix is symmetric alone")
def a_mend_for_a_symmetric_matrix():
    text = (
        "def forward(x, A):\n    return x @ A @ x\n\n\n"
        "def backward(x, A, dy):\n    return 3 * dy * (A @ x), dy * x[:, None] * x\n"
    )
    a = normal(5, 5)
    return pasted(text, (normal(5, seed=1), a + a.T), (normal(5, seed=1), a))


@attack("E", "right", "two lambdas in one line, both wrong")
def two_mends_in_one_line():
    text = (
        "import jax.numpy as jnp\n\n\ndef forward(x, w):\n    return jnp.sin(x) @ w\n\n\n"
        "of_x, of_w = lambda x, w, dy: dy @ w.T, lambda x, w, dy: x.T @ dy\n\n\n"
        "def backward(x, w, dy):\n    return of_x(x, w, dy), of_w(x, w, dy)\n"
    )
    args = (normal(7, 5), normal(5, 3, seed=1))
    return pasted(text, args, args)


@attack("E", "right", "a factor of 1/7 that is no size, beside an axis of 7")
def a_factor_that_is_no_size():
    text = (
        "def forward(x):\n    return (x * x).sum(0) / 7.0\n\n\ndef backward(x, dy):\n    return 2 * x * dy\n"
    )
    return pasted(text, (normal(7, 5),), (normal(4, 5),))


# Formulas as text.


def derived(text: str, **shapes: Any) -> tuple[Any, ...]:
    import time

    def run(text, shapes):
        begin = time.process_time()
        derivation = fn.derive(text, shapes)
        return told(derivation.ok and time.process_time() - begin < 20)

    return run, (text, shapes), {}


@attack("E", "unseen", "a product of 20 sums: its gradient is a sum of 20 products")
def a_product_of_sums():
    return derived(" * ".join(f"(x + {i})" for i in range(20)), x=(5,))


@attack("E", "refused", "a thousand parentheses")
def a_thousand_parentheses():
    return derived("(" * 1000 + "x" + ")" * 1000, x=(5,))


# For PyTorch.


def of_torch(function: Any, reference: Any, *args: Any) -> tuple[Any, ...]:
    import torch

    tensors = tuple(torch.from_numpy(np.asarray(a, np.float64)) for a in args)
    return fn.verify_torch, (function, tensors), {"reference": reference, "budget": 0.0}


@attack("D", "right", "a Function of PyTorch that asks for None where a result is not used")
def no_zeros_in_torch():
    from tests.verifier.test_pytorch import waves

    return of_torch(waves(0.0), lambda x: (x.sin(), x.cos()), normal(7, 5))


@attack("D", "right", "a Function of PyTorch that runs its forward pass again, and autograd in it")
def a_checkpoint_in_torch():
    import torch

    f = lambda x, w: torch.tanh(x @ w)

    class Again(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            ctx.save_for_backward(x, w)
            return f(x, w)

        @staticmethod
        def backward(ctx, dy):
            x, w = (v.detach().requires_grad_() for v in ctx.saved_tensors)
            with torch.enable_grad():
                y = f(x, w)
            return torch.autograd.grad(y, (x, w), dy)

    return of_torch(Again, f, normal(7, 5), normal(5, 3, seed=1))


@attack("D", "right", "a Function of PyTorch that gives indices beside its values")
def indices_in_torch():
    import torch

    class Largest(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            values, at = x.max(-1)
            ctx.mark_non_differentiable(at)
            ctx.save_for_backward(at)
            ctx.shape = x.shape
            return values, at

        @staticmethod
        def backward(ctx, dy, _):
            (at,) = ctx.saved_tensors
            return dy.new_zeros(ctx.shape).scatter_(-1, at[..., None], dy[..., None])

    return of_torch(Largest, lambda x: tuple(x.max(-1)), normal(7, 5))


@attack("8", "right", "a module of equinox, with a function among its leaves")
def a_module_of_equinox():
    import equinox as eqx

    class Gated(eqx.Module):
        linear: eqx.nn.Linear
        act: Any

        def __call__(self, x):
            return self.act(x @ self.linear.weight.T + self.linear.bias)

    def back(m, x, dy):
        y = m(x)
        da = dy * (1 - y * y)
        grads = eqx.tree_at(lambda m: (m.linear.weight, m.linear.bias, m.act), m, (da.T @ x, da.sum(0), None))
        return grads, da @ m.linear.weight

    m = Gated(eqx.nn.Linear(5, 3, key=jax.random.key(0)), jnp.tanh)
    return verify(lambda m, x: m(x), back, (m, normal(7, 5)))
