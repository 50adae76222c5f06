import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnet as fn
from funcnet.errors import DTypeError
from tests.errors import golden

ZERO = np.zeros(3, np.float32)


def found(function, *args):
    finding = fn.find_nan(function, *args)
    assert finding is not None
    assert not finding.line or __file__.endswith(finding.line.rpartition(":")[0])
    return finding


def logarithm(x):
    return jnp.log(x)


def ratio(x):
    return (x / x).sum()


def root(x):
    return jnp.sqrt(x * x).sum()


def square(x):
    return x * x


def scanned(x):
    def body(carry, number):
        carry = carry - 1
        return jnp.log(carry), number

    return jax.lax.scan(body, x, jnp.arange(5))[0]


def grown(x):
    def body(carry, _):
        return carry * carry, carry - carry

    return jax.lax.scan(body, x, None, length=12)[1].sum()


def counted_down(x):
    return jax.lax.while_loop(lambda c: c[1] < 9, lambda c: (jnp.sqrt(c[0] - 1), c[1] + 1), (x, 0))[0]


def branched(which, x):
    return jax.lax.cond(which, lambda x: jnp.log(x), lambda x: x, x)


def masked(x):
    return fn.softmax.apply(jnp.where(jnp.arange(3) < 9, -jnp.inf, x)).sum()


CASES = {
    "log(0)": (logarithm, (ZERO,), "inf", "log", "jnp.log(x)"),
    "log(-1)": (logarithm, (ZERO - 1,), "nan", "log", "jnp.log(x)"),
    "0/0": (ratio, (ZERO,), "nan", "div", "(x / x)"),
    "overflow": (square, (np.full(3, 300, np.float16),), "inf", "mul", "x * x"),
    "no overflow": (square, (np.full(3, 300, np.float32),), None, "", ""),
    "the derivative of a root": (jax.value_and_grad(root), (ZERO,), "nan", "mul", "jnp.sqrt(x * x)"),
    "within jit": (jax.jit(jax.jit(ratio)), (ZERO,), "nan", "div", "(x / x)"),
    "within checkpoint": (jax.grad(jax.checkpoint(root)), (ZERO,), "nan", "mul", "jnp.sqrt(x * x)"),
    "vmapped": (jax.vmap(ratio), (np.zeros((2, 3), np.float32),), "nan", "div", "(x / x)"),
    "a branch": (branched, (True, -1.0), "nan", "log", "jnp.log(x)"),
    "the other branch": (branched, (False, -1.0), None, "", ""),
    "a row of minus infinities": (masked, (ZERO,), "nan", "sub", "fn.softmax.apply"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_equation_is_named(case):
    function, args, kind, primitive, source = CASES[case]
    if kind is None:
        assert fn.find_nan(function, *args) is None
        return
    finding = found(function, *args)
    assert (finding.kind, finding.primitive) == (kind, primitive)
    assert source in finding.source


def test_the_infinity_that_a_nan_was_made_of():
    finding = found(jax.value_and_grad(root), ZERO)
    assert finding.backward
    assert (finding.cause.kind, finding.cause.primitive) == ("inf", "div")
    assert "in the gradient of that line" in str(finding)
    assert found(masked, ZERO).cause.primitive == "constant"
    given = found(lambda x, y: x - y, *[np.array([1, np.inf])] * 2)
    assert (given.primitive, given.cause.primitive, given.cause.path) == ("sub", "argument", "x")
    held = np.array([1, np.inf])
    assert found(lambda x: held * x, np.zeros(2)).cause.primitive == "constant"


def test_the_iteration_is_named():
    finding = found(scanned, np.float32(5))
    assert (finding.primitive, finding.iterations, finding.inputs[0].low < 0) == ("log", (2,), True)
    assert "iteration 2" in str(finding)
    finding = found(jax.value_and_grad(scanned), np.float32(5))
    assert (finding.primitive, finding.iterations) == ("log", (2,))
    finding = found(counted_down, np.float32(3))
    assert (finding.primitive, finding.iterations) == ("sqrt", (2,))
    nested = lambda x: jax.lax.scan(lambda c, y: (c + scanned(y), y), 0 * x, jnp.array([1e9, 5], x.dtype))[0]
    assert found(nested, np.float32(5)).iterations == (0, 3)


def test_an_infinity_of_an_earlier_iteration():
    finding = found(grown, np.float32(5))
    assert (finding.primitive, finding.iterations) == ("sub", (6,))
    assert (finding.cause.primitive, finding.cause.iterations) == ("mul", (5,))


def test_in_a_loop_that_runs_backwards():
    def loss(w):
        y, _ = jax.lax.scan(lambda c, s: (jnp.sqrt(c) * s, None), w, jnp.array([1.0, 0.0, 1.0]))
        return y

    finding = found(jax.grad(loss), np.float64(1))
    assert (finding.primitive, finding.kind) == ("mul", "nan")
    assert finding.backward
    assert finding.iterations


def test_what_does_not_reach_the_result_is_left_alone():
    def safe(x):
        return jnp.where(x > 0, jnp.log(x), 0.0).sum()

    assert fn.find_nan(safe, ZERO) is None
    finding = found(jax.grad(safe), ZERO)
    assert (finding.kind, finding.primitive, finding.backward) == ("nan", "div", True)

    def apart(x):
        y = jnp.log(x - 1)  # NaN, and used for nothing
        return (x / x).sum(), jnp.isnan(y)

    assert found(apart, ZERO).primitive == "div"


def test_masks_and_first_maxima_are_no_culprits():
    x = jax.random.normal(jax.random.key(0), (1, 8, 2, 4), jnp.float32)

    def loss(x, divisor):
        y = fn.attention.apply(x, x, x, causal=True)
        return (y / divisor).sum()

    assert fn.find_nan(jax.value_and_grad(loss), x, np.float32(1)) is None
    finding = found(jax.value_and_grad(loss), x, np.float32(0))
    assert "y / divisor" in (finding.cause or finding).source


def test_operations_are_named():
    finding = found(masked, ZERO)
    assert finding.operation == "softmax"
    assert "softmax.py" in finding.formula
    assert " in fn.softmax at " in str(finding)
    large = np.full((1, 4, 1, 2), 1e30, np.float32)
    finding = found(lambda x: fn.attention.apply(x, x, x), large)
    assert finding.operation == "attention"
    assert "fn.attention.apply(x, x, x)" in finding.source
    assert finding.cause.primitive == "logits"
    params = fn.conv.init(jax.random.key(0), 2, 3, kernel=(3,))
    tall = np.full((1, 5, 2), 3e38, np.float32)
    params = jax.tree.map(lambda w: np.full(w.shape, 9, np.float32), params)
    finding = found(lambda p, x: fn.conv.apply(p, x) * 0, params, tall)
    assert (finding.primitive, finding.kind, finding.cause.operation) == ("mul", "nan", "conv")
    assert "fn.conv.apply(p, x)" in finding.cause.source
    finding = found(jax.jacfwd(lambda x: fn.softmax.apply(jnp.sqrt(x))), ZERO)
    assert finding.cause.primitive == "div"


def test_what_was_given_is_named():
    params, batch = {"w": np.ones(3)}, np.array([1.0, np.nan, 2.0])
    loss = lambda params, batch: (params["w"] * batch).sum()
    finding = found(jax.value_and_grad(loss), params, batch)
    assert str(finding) == "find_nan: batch holds NaN already.\n  output    float64[3], from 1 to 2, 1 NaN"
    finding = found(loss, {"w": np.array([np.inf, 1, 1])}, np.ones(3))
    assert (finding.primitive, finding.path) == ("argument", "params['w']")
    assert fn.find_nan(lambda p, b: p["w"].sum(), params, batch) is None, "it reaches no result"
    finding = found(lambda x: jnp.where(x > 5, x, jnp.nan), ZERO)
    assert (finding.kind, finding.primitive) == ("nan", "constant")
    finding = found(functools.partial(loss, params), batch)
    assert finding.path == "batch"
    assert found(lambda *xs: xs[1] * 1, 0.0, np.nan).path == "args[1]"
    assert found(lambda w: (w * batch).sum(), np.ones(3)).primitive == "constant"


def test_keys_integers_and_empty_arrays_go_through():
    def function(key, ids, empty):
        noise = jax.random.normal(key, (2,)) + ids.sum() + empty.sum()
        return noise / 0

    finding = found(function, jax.random.key(0), np.arange(3.0).astype(int).astype(float), np.zeros((0, 2)))
    assert finding.primitive == "div"
    assert fn.find_nan(lambda x: x, ()) is None


def test_the_text():
    finding = found(ratio, ZERO)
    assert str(finding) == (
        f"""find_nan: div made NaN of finite numbers at {finding.line}.
  line      return (x / x).sum()
  input 1   float32[3], 0
  input 2   float32[3], 0
  output    float32[3], 3 of them NaN"""
    )


def test_under_debug_nans_it_is_still_the_one_that_tells():
    with jax.debug_nans(True):
        assert found(ratio, ZERO).primitive == "div"


test_errors = golden(
    [
        (
            lambda: fn.find_nan(3.0, ZERO),
            DTypeError,
            """find_nan: function is not a function.
  expected  a function of the arguments that follow
  got       3.0 (float)""",
        ),
        (
            lambda: jax.jit(lambda x: fn.find_nan(ratio, x))(ZERO),
            DTypeError,
            """find_nan: x is traced, and has no values.
  expected  an array, outside of jax.jit and the like
  got       float32[3]""",
        ),
    ]
)
