"""What is special about the activations: kinks, far ends, identities, what is refused; PyTorch's numbers."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnet as fn
from funcnet import rules
from funcnet.errors import DTypeError, ValueRangeError
from funcnet.ops._elementwise import elementwise
from tests.cases import FAMILIES
from tests.errors import golden

X = jnp.linspace(-6, 6, 101, dtype=jnp.float32)
OF_ONE = [name for name in FAMILIES["activations"] if not name.endswith("glu") and name != "threshold"]


def slope(name, at, **options):
    return jax.grad(lambda x: getattr(fn, name).apply(x, **options))(jnp.asarray(at, jnp.float32)).item()


@pytest.mark.parametrize(
    ("name", "at", "want"),
    [
        *(("relu", 0, 0), ("leaky_relu", 0, 0.01), ("relu6", 0, 0), ("relu6", 6, 0)),
        *(("hard_tanh", 1, 0), ("hard_sigmoid", 3, 0), ("hard_silu", -3, 0), ("hard_silu", 3, 1)),
        *(("hard_shrink", 0.5, 0), ("soft_shrink", -0.5, 0), ("elu", 0, 1), ("celu", 0, 1)),
    ],
)
def test_slopes_at_kinks(name, at, want):
    assert slope(name, at) == pytest.approx(want)


def test_every_option_counts():
    for name, options in FAMILIES["activations"].items():
        if options and name != "threshold":
            args = (X,) * (2 if name.endswith("glu") else 1)
            operation = getattr(fn, name)
            assert not np.allclose(operation.apply(*args, **options), operation.apply(*args)), name


def test_identities():
    one = lambda name, x, **options: np.asarray(getattr(fn, name).apply(x, **options), np.float64)
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6)
    close(one("softplus", X) - one("softplus", -X), X)
    close(one("log_sigmoid", X), -one("softplus", -X))
    close(one("celu", X), one("elu", X))
    close(one("soft_shrink", X, lambd=0.0), X)
    close(one("relu6", X), one("hard_tanh", X, min_val=0.0, max_val=6.0))
    x = np.asarray(X, np.float64)
    close(one("hard_silu", X), x * one("hard_sigmoid", X))
    close(fn.swiglu.apply(X, X), x * one("silu", X))


@pytest.mark.parametrize("name", ["softplus", "mish", "silu", "sigmoid"])
def test_second_derivatives_at_zero(name):
    """Where the code has a branch at 0 and the function has none."""
    first, h = jax.grad(getattr(fn, name).apply), 1e-3
    difference = (first(jnp.float64(h)) - first(jnp.float64(-h))) / (2 * h)
    np.testing.assert_allclose(jax.grad(first)(jnp.float64(0)), difference, atol=1e-5)


def test_small_elements_keep_their_digits():
    x = jnp.asarray([1e-3, 0.1, 0.9, 1.1], jnp.float32)
    want = [v - float(jnp.tanh(jnp.float64(v))) for v in np.asarray(x, np.float64)]
    np.testing.assert_allclose(fn.tanh_shrink.apply(x), want, rtol=1e-6)


def test_the_residual_is_x_and_one_rounding():
    for name in OF_ONE:
        operation = getattr(fn, name)
        x = X.astype(jnp.bfloat16)
        y, pullback = operation.vjp(x)
        (kept,) = jax.tree.leaves(pullback)
        assert kept is (y if name == "relu" else x), name
        np.testing.assert_array_equal(y, operation.apply(x.astype(jnp.float32)).astype(jnp.bfloat16))


def test_an_object_is_an_operation_as_a_module_is():
    with rules.record() as calls:
        fn.leaky_relu.apply(X, 0.2)
        jax.jit(lambda x: fn.swiglu.apply(up=x, gate=x))(X)
    assert [c.operation for c in calls] == [fn.leaky_relu, fn.swiglu]
    assert calls[0].options == {"negative_slope": 0.2}
    assert fn.leaky_relu.__name__ == "funcnet.ops.elementwise.activations.leaky_relu"
    assert list(inspect.signature(fn.leaky_relu.apply).parameters) == ["x", "negative_slope"]
    assert "negative_slope" in fn.leaky_relu.apply.__doc__
    report = fn.verify(fn.mish, (X.astype(jnp.float64),))
    assert report.ok
    assert report.rows[0].operation == "mish"


def test_where_a_nan_came_from():
    finding = fn.find_nan(lambda x: fn.relu.apply(fn.softsign.apply(x)), jnp.asarray([jnp.inf, 1.0]))
    assert finding is not None
    assert finding.operation == "softsign"


def test_a_wrong_pullback_is_found():
    def _cube(x):
        """y = x³."""
        return x * x * x

    assert fn.verify(elementwise(_cube, lambda x, dy: 3 * x * x * dy), (X.astype(jnp.float64),)).ok
    assert not fn.verify(elementwise(_cube, lambda x, dy: 3 * x * dy), (X.astype(jnp.float64),)).ok


ERRORS = [
    (
        lambda: fn.mish.apply(jnp.zeros(3, jnp.int32)),
        DTypeError,
        "mish.apply: x has dtype int32, but a float is needed.\n"
        "  expected  x: float[...]\n"
        "  got       x: int32[3]\n"
        "  hint      cast it: x.astype(jnp.float32).",
    ),
    (
        lambda: fn.hard_tanh.apply(X, 1.0, -1.0),
        ValueRangeError,
        "hard_tanh.apply: min_val is 1, more than max_val, -1.\n"
        "  expected  min_val ≤ max_val = -1\n"
        "  got       min_val = 1",
    ),
    (
        lambda: fn.celu.apply(X, alpha=0.0),
        ValueRangeError,
        "celu.apply: alpha is 0.0, outside its range.\n  expected  0 < alpha < ∞\n  got       alpha = 0.0",
    ),
    (
        lambda: jax.jit(fn.elu.apply)(X, jnp.float32(1.0)),
        DTypeError,
        "elu.apply: alpha is traced, but its value is needed for tracing.\n"
        "  expected  alpha: a Python value\n"
        "  got       alpha: float32[]\n"
        '  hint      make it static where it enters jax.jit: static_argnames="alpha".',
    ),
]

test_errors = golden(ERRORS)


# ---- PyTorch ----------------------------------------------------------------------------------------------

TORCH = {  # by the name in torch.nn.functional, where it is another
    "hard_shrink": "hardshrink",
    "hard_sigmoid": "hardsigmoid",
    "hard_silu": "hardswish",
    "hard_tanh": "hardtanh",
    "log_sigmoid": "logsigmoid",
    "soft_shrink": "softshrink",
    "tanh_shrink": "tanhshrink",
}
NAMES = {"approximate": lambda v: {"approximate": "tanh" if v else "none"}}


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in OF_ONE if n != "quick_gelu"] + ["threshold"])
def test_the_numbers_of_torch(name):
    """Values and gradients, at kinks and far out too."""
    torch = pytest.importorskip("torch")
    options = dict(FAMILIES["activations"][name])
    x = np.concatenate([np.linspace(-8, 8, 65), [-0.7, -0.3, 0.3, 1e3, -1e3, 1e30, -1e30]]).astype(np.float32)
    if name == "hard_sigmoid":
        options = {}  # theirs has none
    theirs = torch.tensor(x, requires_grad=True)
    y = getattr(torch.nn.functional, TORCH.get(name, name))(theirs, **options)
    y.sum().backward()
    operation = lambda x: getattr(fn, name).apply(x, **options)
    np.testing.assert_allclose(operation(x), y.detach().numpy(), rtol=2e-5, atol=2e-6)
    ours = jax.grad(lambda x: operation(x).sum())(jnp.asarray(x))
    np.testing.assert_allclose(ours, theirs.grad.numpy(), rtol=2e-4, atol=2e-6)
