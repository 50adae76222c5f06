import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnet as fn
from funcnet.errors import DTypeError, ShapeError, ValueRangeError
from funcnet.ops.loss import cross_entropy, linear_cross_entropy
from tests import laws
from tests.budget import few
from tests.cases import F, I, case
from tests.errors import golden

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((5, 3)), jnp.float32)
W = jnp.asarray(RNG.standard_normal((3, 7)), jnp.float32)
LABELS = jnp.asarray([3, 0, 6, 3, 1], jnp.int32)


def grads(x, w, labels=LABELS, **options):
    return jax.grad(lambda x, w: linear_cross_entropy.apply(x, w, labels, **options).sum(), (0, 1))(x, w)


# ---- chunks -----------------------------------------------------------------------------------------------

CHUNKED = case(
    "linear_cross_entropy",
    F(2, 3, 5),
    F(5, 13),
    I(13, 2, 3),
    label_smoothing=0.1,
    ignore_index=3,
    z_loss=0.2,
    softcap=2.0,
)


FEW = (laws.forward, laws.formula, laws.forward_mode, laws.sharding)  # the others are slow


@pytest.mark.parametrize(
    "law",
    few(laws.LAWS, FEW),
    ids=lambda law: law.__name__,
)
def test_laws_in_chunks(law):
    """Chunks of 4 columns of 13: three in the loop and one before it."""
    args, options = CHUNKED.draw()
    op = linear_cross_entropy
    apply, vjp = (functools.partial(f, chunk=4) for f in (op.apply, op.vjp))
    chunked = types.SimpleNamespace(reference=op.reference, apply=apply, vjp=vjp, cost=op.cost)
    law(CHUNKED, chunked, args, options)


def test_chunks_change_nothing_but_the_program():
    whole = linear_cross_entropy.apply(X, W, LABELS), *grads(X, W)
    for chunk in (1, 3, 100):
        parts = linear_cross_entropy.apply(X, W, LABELS, chunk=chunk), *grads(X, W, chunk=chunk)
        for a, b in zip(parts, whole, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
    programs = [str(jax.make_jaxpr(lambda x: grads(x, W, chunk=chunk))(X)) for chunk in (3, 7)]  # noqa: B023
    assert ["scan" in program for program in programs] == [True, False]


@pytest.mark.parametrize(
    ("n", "v", "columns"),
    [(4096, 50304, 1024), (10**6, 50304, 1024), (5, 50304, 50304), (0, 3, 3), (2048, 2500, 896)],
)
def test_columns_by_shape(n, v, columns):
    assert linear_cross_entropy._Columns(jnp.zeros((0, v))).count(n, None) == columns


def test_no_array_of_logits_in_the_program():
    """Nor anything else of n · v elements: neither in the forward, nor in the gradient, nor between them."""
    n, d, v = 4096, 8, 50304
    x, w, labels = (
        jax.ShapeDtypeStruct(s, t) for s, t in (((n, d), "float32"), ((d, v), "float32"), ((n,), "int32"))
    )
    sizes = set()

    def visit(jaxpr):
        for eqn in jaxpr.eqns:
            sizes.update(v.aval.size for v in eqn.outvars)
            for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda p: hasattr(p, "jaxpr")):
                if hasattr(inner, "jaxpr"):
                    visit(inner.jaxpr)

    visit(
        jax.make_jaxpr(
            lambda x, w, labels: jax.value_and_grad(
                lambda x, w: linear_cross_entropy.apply(x, w, labels).sum(), (0, 1)
            )(x, w)
        )(x, w, labels).jaxpr
    )
    assert max(sizes) == n * 1024
    assert n * v > 40 * max(sizes)


@pytest.mark.parametrize("mode", ["forward", "hessian", "jax"])
def test_no_transform_keeps_the_logits(mode):
    """XLA's temporary memory stays below a fifth of the logits: here 96 chunks of 128 columns."""
    n, d, v = 512, 4, 12288
    x, w = jax.ShapeDtypeStruct((n, d), "float32"), jax.ShapeDtypeStruct((d, v), "float32")
    labels = jax.ShapeDtypeStruct((n,), "int32")

    def program(x, w, labels):
        loss = lambda x, w: linear_cross_entropy.apply(x, w, labels, chunk=128).sum()
        if mode == "forward":
            return jax.jvp(loss, (x, w), (x, w))
        if mode == "hessian":
            return jax.jvp(jax.grad(loss, (0, 1)), (x, w), (x, w))
        with fn.autodiff("jax"):
            return jax.grad(loss, (0, 1))(x, w)

    memory = jax.jit(program).lower(x, w, labels).compile().memory_analysis()
    assert memory.temp_size_in_bytes < n * v * 4 / 5


def test_a_batch_over_devices_is_not_gathered():
    mesh = jax.make_mesh((4,), ("n",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, whole = (jax.NamedSharding(mesh, jax.P(*axes)) for axes in (("n",), ()))
    program = jax.jit(
        lambda x, w, labels: grads(x, w, labels, chunk=16),
        in_shardings=(rows, whole, rows),
        out_shardings=(rows, whole),
    )
    x, w = jax.ShapeDtypeStruct((64, 5), "float32"), jax.ShapeDtypeStruct((5, 60), "float32")
    text = program.lower(x, w, jax.ShapeDtypeStruct((64,), "int32")).compile().as_text()
    assert "all-reduce" in text
    assert "all-gather" not in text
    assert "all-to-all" not in text


def test_residuals_are_the_arguments_and_three_numbers_per_token():
    kept = jax.tree.leaves(linear_cross_entropy.vjp(X, W, LABELS, chunk=2)[1])
    assert [v.shape for v in kept] == [(5, 3), (3, 7), *[(5,)] * 4]


# ---- meaning ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.2}, {"ignore_index": 3}])
def test_is_cross_entropy_of_a_product(options):
    want = cross_entropy.apply(X @ W, LABELS, **options)
    np.testing.assert_allclose(linear_cross_entropy.apply(X, W, LABELS, chunk=3, **options), want, rtol=1e-5)


def test_z_loss_adds_the_square_of_the_logarithm_of_the_sum():
    more = linear_cross_entropy.apply(X, W, LABELS, z_loss=0.5) - linear_cross_entropy.apply(X, W, LABELS)
    np.testing.assert_allclose(more, 0.5 * jax.nn.logsumexp(X @ W, -1) ** 2, rtol=1e-5)


def test_softcap_bounds_the_logits():
    y = linear_cross_entropy.apply(100 * X, W, LABELS, softcap=1.5, chunk=3)
    assert y.max() < float(np.log(7) + 3)
    want = cross_entropy.apply(1.5 * jnp.tanh(X @ W / 1.5), LABELS)
    np.testing.assert_allclose(linear_cross_entropy.apply(X, W, LABELS, softcap=1.5), want, rtol=1e-5)


def test_ignored_tokens_have_no_loss_and_no_gradient():
    y = linear_cross_entropy.apply(X, W, LABELS, ignore_index=3, z_loss=1.0)
    np.testing.assert_array_equal(y == 0, LABELS == 3)
    dx, dw = grads(X, W, ignore_index=3, z_loss=1.0)
    np.testing.assert_array_equal((dx == 0).all(-1), LABELS == 3)
    rest = LABELS != 3
    np.testing.assert_allclose(dw, grads(X[rest], W, LABELS[rest], z_loss=1.0)[1], atol=1e-6)


@pytest.mark.parametrize("bad", [-1, 7, 2**31 - 1])
def test_under_jit_a_bad_label_counts_as_ignored(bad):
    labels = LABELS.at[2].set(bad)
    options = {"label_smoothing": 0.1, "z_loss": 1.0, "chunk": 2}
    y = jax.jit(lambda labels: linear_cross_entropy.apply(X, W, labels, **options))(labels)
    assert (y == 0).tolist() == [False, False, True, False, False]
    dx = jax.jit(lambda labels: grads(X, W, labels, **options)[0])(labels)
    assert (dx[2] == 0).all()


def test_no_label_is_taken_for_another():
    labels = LABELS.astype(jnp.int64).at[2].add(2**32)
    y = jax.jit(lambda labels: linear_cross_entropy.apply(X, W, labels, chunk=2))(labels)
    np.testing.assert_array_equal(y == 0, jnp.arange(5) == 2)


def test_large_logits_do_not_overflow():
    x, w = jnp.asarray([[1.0]]), jnp.asarray([[1e30, -1e30, 0.0, 1e29]])
    for chunk in (1, 4):
        assert linear_cross_entropy.apply(x, w, jnp.asarray([0]), chunk=chunk).tolist() == [0]
        assert (grads(x, w, jnp.asarray([0]), chunk=chunk)[0] == 0).all()


def test_bfloat16_sums_in_float32():
    x, w = X.astype(jnp.bfloat16), W.astype(jnp.bfloat16)
    y = linear_cross_entropy.apply(x, w, LABELS, chunk=3)
    assert y.dtype == jnp.float32
    exact = linear_cross_entropy.apply(x.astype(jnp.float32), w.astype(jnp.float32), LABELS)
    np.testing.assert_allclose(y, exact, rtol=1e-5)
    assert [g.dtype for g in grads(x, w)] == [jnp.bfloat16] * 2
    mixed = grads(X, w)
    assert [g.dtype for g in mixed] == [jnp.float32, jnp.bfloat16]
    np.testing.assert_allclose(mixed[0], grads(X, w.astype(jnp.float32))[0], atol=1e-6)


def test_the_gradient_neither_gathers_nor_scatters():
    text = str(jax.make_jaxpr(lambda labels: grads(X, W, labels, chunk=3))(LABELS))
    assert "scatter" not in text
    assert "gather" not in text


EXPECTED = "  expected  labels: int[5]     (x: float32[5, 3])\n"
RANGE = "  expected  0 ≤ labels < 7     (w: float32[3, 7])\n"
ERRORS = [
    (
        lambda: linear_cross_entropy.apply(X, W.T, LABELS),
        ShapeError,
        "linear_cross_entropy.apply: w does not fit x.\n"
        "  expected  w: float[3, v], v ≥ 1     (x: float32[5, 3])\n"
        "  got       w: float32[7, 3]\n"
        "  hint      a table [v, d]? its transpose fits: w.T.",
    ),
    (
        lambda: linear_cross_entropy.apply(X, W[0], LABELS),
        ShapeError,
        "linear_cross_entropy.apply: w does not fit x.\n"
        "  expected  w: float[3, v], v ≥ 1     (x: float32[5, 3])\n"
        "  got       w: float32[7]",
    ),
    (
        lambda: linear_cross_entropy.apply(X, W, LABELS[:, None]),
        ShapeError,
        "linear_cross_entropy.apply: labels do not have the shape that x asks for.\n"
        + EXPECTED
        + "  got       labels: int32[5, 1]\n  hint      labels[..., 0] fits.",
    ),
    (
        lambda: linear_cross_entropy.apply(X, W, jax.nn.one_hot(LABELS, 7, dtype=jnp.float32)),
        DTypeError,
        "linear_cross_entropy.apply: labels are not an array of integers.\n"
        + EXPECTED
        + "  got       labels: float32[5, 7]\n"
        "  hint      one-hot? labels.argmax(-1). Probabilities: cross_entropy.apply(x @ w, labels).",
    ),
    (
        lambda: linear_cross_entropy.apply(X, W, LABELS.astype(jnp.float32)),
        DTypeError,
        "linear_cross_entropy.apply: labels are not an array of integers.\n"
        + EXPECTED
        + "  got       labels: float32[5]\n  hint      cast them: labels.astype(jnp.int32).",
    ),
    (
        lambda: linear_cross_entropy.apply(X, W, [3, 0, 6, 3, 1]),
        DTypeError,
        "linear_cross_entropy.apply: labels are not an array of integers.\n"
        + EXPECTED
        + "  got       labels: a list\n  hint      wrap them: jnp.asarray(...).",
    ),
    (
        lambda: linear_cross_entropy.apply(X, W, LABELS.at[0].set(9).at[1].set(-2), ignore_index=6),
        ValueRangeError,
        "linear_cross_entropy.apply: labels hold 9, outside [0, 7).\n"
        + RANGE
        + "  got       labels: int32[5], 2 of 5 outside, from -2 to 9",
    ),
    (
        lambda: linear_cross_entropy.apply(X, W, LABELS + 1),
        ValueRangeError,
        "linear_cross_entropy.apply: labels hold 7, outside [0, 7).\n"
        + RANGE
        + "  got       labels: int32[5], 1 of 5 outside, from 7 to 7\n"
        "  hint      do they count from 1? labels - 1.",
    ),
    (
        lambda: linear_cross_entropy.apply(X, W, LABELS.at[0].set(-100)),
        ValueRangeError,
        "linear_cross_entropy.apply: labels hold -100, outside [0, 7).\n"
        + RANGE
        + "  got       labels: int32[5], 1 of 5 outside, from -100 to -100\n"
        "  hint      if -100 marks what has no label: ignore_index=-100.",
    ),
    (
        lambda: linear_cross_entropy.apply(X, W, LABELS, ignore_index=0.5),
        DTypeError,
        "linear_cross_entropy.apply: ignore_index is not an integer.\n"
        "  expected  ignore_index: int, or None\n"
        "  got       ignore_index: 0.5 (float)",
    ),
    (
        lambda: linear_cross_entropy.apply(X, W, LABELS, label_smoothing=1.0),
        ValueRangeError,
        "linear_cross_entropy.apply: label_smoothing is 1.0, outside [0, 1).\n"
        "  expected  0 ≤ label_smoothing < 1\n"
        "  got       label_smoothing = 1.0",
    ),
    (
        lambda: linear_cross_entropy.apply(X, W, LABELS, softcap=0.0),
        ValueRangeError,
        "linear_cross_entropy.apply: softcap is 0.0.\n"
        "  expected  softcap > 0, or None\n"
        "  got       softcap = 0.0\n"
        "  hint      for no cap: softcap=None.",
    ),
    (
        lambda: linear_cross_entropy.apply(X, W, LABELS, z_loss=-1.0),
        ValueRangeError,
        "linear_cross_entropy.apply: z_loss is -1.0, outside its range.\n"
        "  expected  0 ≤ z_loss < ∞\n"
        "  got       z_loss = -1.0",
    ),
    (
        lambda: linear_cross_entropy.apply(X, W, LABELS, chunk=0),
        ValueRangeError,
        "linear_cross_entropy.apply: chunk is 0, but at least 1 is needed.\n"
        "  expected  chunk ≥ 1\n"
        "  got       chunk = 0",
    ),
    (
        lambda: jax.jit(lambda z: linear_cross_entropy.apply(X, W, LABELS, z_loss=z))(0.1),
        DTypeError,
        "linear_cross_entropy.apply: z_loss is traced, but its value is needed for tracing.\n"
        "  expected  z_loss: a Python value\n"
        "  got       z_loss: float64[]\n"
        '  hint      make it static where it enters jax.jit: static_argnames="z_loss".',
    ),
]

test_errors = golden(ERRORS)
