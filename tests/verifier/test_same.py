"""Second order, tangents, batches, two implementations: right ones pass, wrong ones are found and named."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.custom_batching import custom_vmap

import funcnet as fn
from funcnet.errors import ShapeError, ValueRangeError
from funcnet.testing import assert_gradients
from funcnet.verifier import FormulaError
from tests.budget import few

DTYPES = ("float64", "float32", "bfloat16")


def normal(*shape, seed=0, dtype="float64"):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


X, W = normal(5), normal(5, 3, seed=1)


def wrong(report):
    return {row.argument for row in report.rows if not row.ok and not row.unseen}


# ---- the derivative of a rule -----------------------------------------------------------------------------


def squash(backward):
    """tanh(x w) with a rule whose backward pass is `backward(x, w, y, dy)`."""

    @jax.custom_vjp
    def squash(x, w):
        return jnp.tanh(x @ w)

    def forward(x, w):
        y = squash(x, w)
        return y, (x, w, y)

    squash.defvjp(forward, lambda kept, dy: backward(*kept, dy))
    return squash


def by_hand(x, w, y, dy, slope=lambda y: 1 - y * y):
    g = dy * slope(y)
    return w @ g, jnp.outer(x, g)


@jax.custom_vjp
def half_square(y):
    return 1 - y * y


half_square.defvjp(lambda y: (half_square(y), y), lambda y, d: (-y * d,))  # the factor 2 is missing

SECOND = {
    "stop_gradient": lambda y: jax.lax.stop_gradient(1 - y * y),
    "another wrong rule": half_square,
}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_rule_whose_derivative_is_right_passes(dtype):
    report = fn.verify(squash(by_hand), (X.astype(dtype), W.astype(dtype)), order=2)
    assert report.ok, report
    assert [(r.operation, r.argument) for r in report.rows] == [
        ("squash", "x"),
        ("squash", "w"),
        ("pullback of squash", "x"),
        ("pullback of squash", "w"),
        ("pullback of squash", "dy"),
    ]


@pytest.mark.parametrize("name", SECOND)
def test_a_rule_whose_own_derivative_is_wrong_is_found(name):
    rule = squash(functools.partial(by_hand, slope=SECOND[name]))
    assert fn.verify(rule, (X, W)).ok
    report = fn.verify(rule, (X, W), order=2, budget=0.2)
    assert [(r.operation, r.argument) for r in report.rows if not r.ok] == [
        ("pullback of squash", "x"),
        ("pullback of squash", "w"),
    ]
    assert report.wrong


def test_an_assertion_asks_for_the_derivative_too():
    rule = squash(functools.partial(by_hand, slope=SECOND["stop_gradient"]))
    assert assert_gradients(rule, (X, W), shapes=None).ok
    with pytest.raises(FormulaError, match="pullback of squash"):
        assert_gradients(rule, (X, W), shapes=None, budget=0.0, order=2)


def test_a_rule_with_a_wrong_gradient_is_not_asked_for_its_derivative():
    report = fn.verify(squash(lambda x, w, y, dy: (-(w @ dy), jnp.outer(x, dy))), (X, W), order=2, budget=0.0)
    assert {r.operation for r in report.rows} == {"squash"}


def test_a_rule_that_cannot_be_differentiated_twice_is_not_called_right():
    def backward(x, w, y, dy):
        slope = jax.pure_callback(lambda y: 1 - y * y, jax.ShapeDtypeStruct(y.shape, y.dtype), y)
        return by_hand(x, w, y, dy, lambda _: slope)

    report = fn.verify(squash(backward), (X, W), order=2)
    assert not report.ok
    assert [row.unseen.partition(":")[0] for row in report.unseen] == ["not verified"] * 3


def test_order_is_one_or_two():
    with pytest.raises(ValueRangeError, match="order is 3"):
        fn.verify(squash(by_hand), (X, W), order=3)


# ---- forward mode -----------------------------------------------------------------------------------------


def pushed(tangent):
    """sin(x w) with a `jvp` rule."""

    @jax.custom_jvp
    def sine(x, w):
        return jnp.sin(x @ w)

    sine.defjvp(lambda primals, ts: (sine(*primals), tangent(*primals, *ts)))
    return sine


def chain(x, w, dx, dw):
    return jnp.cos(x @ w) * (dx @ w + x @ dw)


TANGENTS = {
    "sign": (lambda x, w, dx, dw: jnp.cos(x @ w) * (dx @ w - x @ dw), "w"),
    "scale": (lambda x, w, dx, dw: jnp.cos(x @ w) * (2 * (dx @ w) + x @ dw), "x"),
    "nonlinear_in_cotangent": (lambda x, w, dx, dw: jnp.cos(x @ w) * (abs(dx) @ w + x @ dw), "x"),
}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_right_jvp_rule_passes(dtype):
    report = fn.verify_jvp(pushed(chain), (X.astype(dtype), W.astype(dtype)))
    assert report.ok, report
    assert report.verdict == "2 of 2 tangents right"


@pytest.mark.parametrize("kind", TANGENTS)
def test_a_wrong_jvp_rule_is_named_at_its_line(kind):
    tangent, argument = TANGENTS[kind]
    (finding,) = fn.verify_jvp(pushed(tangent), (X, W), budget=2.0).findings
    assert (finding.kind, finding.argument) == (kind, argument)
    assert "test_same.py:" in finding.location


def test_forward_mode_is_verified_where_there_is_no_reverse():
    def loop(x, times):
        return jax.lax.fori_loop(0, times, lambda _, v: jnp.sin(v), x)

    def power(scale):
        rule = jax.custom_jvp(lambda x: jnp.sin(jnp.sin(x)))
        rule.defjvp(lambda x, t: (rule(*x), scale * jax.jvp(lambda x: loop(x, jnp.asarray(2)), x, t)[1]))
        return rule

    assert fn.verify_jvp(power(1.0), (X,)).ok
    assert not fn.verify_jvp(power(1.1), (X,), budget=1.0).ok


def test_without_a_rule_nothing_is_verified():
    assert not fn.verify_jvp(jnp.sin, (X,)).ok
    assert fn.verify_jvp(jnp.sin, (X,), reference=lambda x: jnp.cos(x - jnp.pi / 2)).ok


# ---- batches ----------------------------------------------------------------------------------------------


def product(rule):
    """x w with a batching rule for mapped operands: `rule(n, mapped, x, w)`."""

    @custom_vmap
    def product(x, w):
        return x @ w

    product.def_vmap(lambda n, mapped, x, w: (rule(n, mapped, x, w), True))
    return product


def batched(n, mapped, x, w):
    x, w = (v if m else jnp.broadcast_to(v, (n, *v.shape)) for v, m in zip((x, w), mapped, strict=True))
    return jnp.einsum("ni,nij->nj", x, w)


BATCHED = {
    "another batch": lambda n, mapped, x, w: batched(n, mapped, x, w[::-1] if mapped[1] else w),
    "the first only": lambda n, mapped, x, w: batched(n, (mapped[0], False), x, w[0] if mapped[1] else w),
}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_right_batching_rule_passes(dtype):
    report = fn.verify_batching(product(batched), (X.astype(dtype), W.astype(dtype)), in_axes=(0, None))
    assert report.ok, report
    assert [row.argument for row in report.rows] == ["value", "x", "w"]


@pytest.mark.parametrize("name", BATCHED)
def test_a_wrong_batching_rule_is_found(name):
    report = fn.verify_batching(product(BATCHED[name]), (X, W), in_axes=(None, 0), budget=0.0)
    assert wrong(report) == {"value", "x", "w"}


@pytest.mark.slow
def test_a_wrong_batching_rule_is_found_for_the_axes_at_which_it_is_wrong():
    report = fn.verify_batching(product(BATCHED["another batch"]), (X, W), budget=1.0)
    bad = {row.operation for row in report.rows if not row.ok}
    assert bad == {"vmap (0, 0)", "vmap (None, 0)", "vmap (-1, -1)", "vmap twice (0, 0)"}


def test_a_batch_of_what_has_no_gradient_is_verified_by_its_values():
    right = jax.custom_batching.sequential_vmap(lambda x: jnp.sin(x))
    report = fn.verify_batching(right, (X,), in_axes=(0,))
    assert report.ok
    assert "the values only" in report.notes[-1]


def test_integers_and_keys_are_batched():
    def pick(key, x, ids, times):
        return x[ids] * jax.random.uniform(key) * times

    args = (jax.random.key(0), X, jnp.array([1, 2, 2]), 3)
    assert fn.verify_batching(pick, args, in_axes=(0, 0, 0, None)).ok


def test_axes_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match=r"in_axes \(0, 7\) does not fit"):
        fn.verify_batching(jnp.dot, (X, W), in_axes=(0, 7))


# ---- two implementations ----------------------------------------------------------------------------------


def softmax(x):
    return jax.nn.softmax(x, -1)


def kernel(scale=1.0, back=1.0, dtype=None):
    """A softmax in Pallas, with its gradient; made for one dtype if given."""
    from jax.experimental import pallas as pl

    def run(x):
        def body(x_ref, y_ref):
            v = x_ref[...]
            e = jnp.exp(v - v.max(-1, keepdims=True))
            y_ref[...] = (scale * e / e.sum(-1, keepdims=True)).astype(y_ref.dtype)

        shape = jax.ShapeDtypeStruct(x.shape, dtype or x.dtype)
        return pl.pallas_call(body, out_shape=shape, interpret=True)(x)

    rule = jax.custom_vjp(run)
    rule.defvjp(lambda x: (rule(x),) * 2, lambda y, dy: (back * (dy - (dy * y).sum(-1, keepdims=True)) * y,))
    return rule


IMAGE = normal(4, 6)


@pytest.mark.parametrize("dtype", few(DTYPES, 1))
def test_a_right_kernel_passes_and_its_cost_is_told(dtype):
    report = fn.verify_same(kernel(), softmax, (IMAGE.astype(dtype),))
    assert report.ok, report
    assert report.verdict == "2 of 2 values and gradients right"
    assert [note.partition(":")[0] for note in report.notes[-2:]] == ["forward", "forward and backward"]
    assert "times as fast" in report.notes[-1]


@pytest.mark.slow
def test_a_kernel_made_for_float32_is_judged_by_the_rounding_of_float32():
    x = IMAGE.astype("float32")
    assert fn.verify_same(kernel(dtype="float32"), softmax, (x,)).ok
    assert not fn.verify_same(kernel(scale=1 + 1e-5, dtype="float32"), softmax, (x,), budget=0.0).ok


@pytest.mark.parametrize(
    ("options", "at"), few([({"back": -1.0}, {"x"}), ({"scale": 1.01}, {"value", "x"})], 1)
)
def test_a_wrong_kernel_is_found(options, at):
    report = fn.verify_same(kernel(**options), softmax, (IMAGE,), budget=0.0)
    assert wrong(report) == at
    assert report.wrong[0].kind == ("scale" if "scale" in options else "sign")


def test_a_kernel_without_gradient_is_not_called_right():
    report = fn.verify_same(lambda x: np.tanh(np.asarray(x)), jnp.tanh, (X,))
    assert [(row.argument, row.ok) for row in report.rows] == [("value", True), ("x", False)]
    assert not report.wrong


@pytest.mark.parametrize(
    ("f", "g", "kind"),
    [
        (lambda x: jnp.where(x > 0, x, -1e9), lambda x: jnp.where(x > 0, x, -jnp.inf), "value"),
        (lambda x: (x, x.argmin()), lambda x: (x, x.argmax()), "value"),
        (lambda x: x.sum(-1), lambda x: x.sum(-1, keepdims=True), "shape"),
        (lambda x: [x], lambda x: x, "structure"),
        (lambda x: x.astype("float32"), lambda x: x, "dtype"),
    ],
)
def test_results_that_differ_otherwise_are_found(f, g, kind):
    report = fn.verify_same(f, g, (X,), budget=0.0)
    assert not report.ok
    assert kind in [finding.kind for finding in report.wrong]
