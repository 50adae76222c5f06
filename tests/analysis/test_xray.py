"""The x-ray of a net: every number against another way to it, every sentence with what makes it appear."""

import math
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import funcnet as fn
from funcnet import spec
from funcnet.analysis import _chain, _findings, _spectra
from funcnet.analysis._activations import activations
from funcnet.analysis._curvature import curvature
from funcnet.analysis._results import Activation, Gradient, Row, Whole, XRay
from funcnet.analysis._spectra import Convolved, Weight
from funcnet.errors import DTypeError, ShapeError, StructureError, ValueRangeError
from funcnet.nets import convnet, encoder, mlp, transformer
from tests.budget import few
from tests.errors import golden

CONFIG = convnet.Config((4, 4, 2), channels=(3,), hidden=5, classes=3)
MLP = mlp.Config((4, 6, 3))


def normal(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).standard_normal(shape))


def ids(*shape):
    return jnp.asarray(np.random.default_rng(0).integers(0, 7, shape))


def draw(init, config):
    """Params in float64, none of them 0."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda v: jnp.asarray(rng.standard_normal(v.shape) / 2),
        jax.eval_shape(lambda: init(jax.random.key(0), config)),
    )


@pytest.fixture(scope="module")
def of_convnet():
    """A small convnet, its batch, and what is found."""
    params, start = draw(convnet.init, CONFIG), jax.tree.map(lambda w: w + 1, draw(convnet.init, CONFIG))
    batch = normal(60, 4, 4, 2), jnp.arange(60) % 3
    return params, batch, fn.xray(convnet, params, CONFIG, batch, start=start)


def rows(found):
    return {row.name: row for row in found.rows}


# ---- weights ----------------------------------------------------------------------------------------------


def test_weights_of_linear_maps(of_convnet):
    params, _, found = of_convnet
    assert list(rows(found)) == ["stages.0.0", "hidden", "head"]
    for name in ("hidden", "head"):
        weight, w = rows(found)[name].weight, np.asarray(params[name]["w"])
        s, w0 = np.linalg.svd(w, compute_uv=False), np.asarray(params[name]["w"]) + 1
        assert weight.shape == w.shape
        assert weight.norm[0] <= s[0] <= weight.norm[1] < weight.norm[0] * (1 + 1e-10)
        np.testing.assert_allclose(weight.condition, s[0] / s[-1], rtol=1e-10)
        np.testing.assert_allclose(weight.stable_rank, (w**2).sum() / s[0] ** 2)
        p = s / s.sum()
        np.testing.assert_allclose(weight.effective_rank, math.exp(-(p * np.log(p)).sum()))
        np.testing.assert_allclose(weight.moved, np.linalg.norm(w - w0) / np.linalg.norm(w0))
        assert math.isnan(weight.tail)
    assert [row.weight.circular for row in found.rows] == [True, False, False]
    assert " circular" in str(found)


WINDOWS = {
    "same": ((5, 4), (3, 3), 2, 3, {}),
    "stride": ((6,), (3,), 4, 4, {"stride": 2}),
    "dilation, two strides": (
        (5, 7),
        (3, 2),
        4,
        2,
        {"padding": "valid", "stride": (2, 1), "dilation": (1, 2)},
    ),
    "groups": ((6, 5), (3, 3), 4, 6, {"groups": 2}),
    "circular": ((4, 6), (3, 3), 2, 2, {"padding_mode": "circular"}),
    "three axes": ((4, 3, 3), (2, 2, 2), 2, 2, {"padding": "causal"}),
    "pointwise": ((5, 5), (1, 1), 3, 2, {}),
}


@pytest.mark.parametrize(
    "name",
    few(WINDOWS, ("same", "stride")),
)
@pytest.mark.parametrize("work", [_spectra.WORK, 0], ids=["frequencies", "kernel alone"])
def test_bounds_and_condition_of_convolutions(name, work, monkeypatch):
    size, kernel, c_in, c_out, options = WINDOWS[name]
    monkeypatch.setattr(_spectra, "WORK", work)
    w = normal(*kernel, c_in // options.get("groups", 1), c_out)
    of = fn.conv.specs({"w": w}, groups=options.get("groups", 1))["w"]
    found, reasons = _spectra.weights({"c": (of, w, None)}, {"c": Convolved((*size, c_in), options)})
    (weight,) = found["c"]
    s = np.linalg.svd(fn.conv.matrix({"w": w}, (*size, c_in), **options), compute_uv=False)
    assert weight.norm[0] <= s[0] <= weight.norm[1]
    if not work:
        assert math.isnan(weight.condition)
        assert "condition of c" in reasons[0]
        return
    assert 0.99 * s[0] < weight.norm[0]
    assert weight.norm[1] < 1.25 * s[0]
    wrapped = {**options, "padding": "same", "padding_mode": "circular"}
    if name.startswith("dilation"):  # 5 is no multiple of 2
        assert math.isnan(weight.condition)
    else:
        s = np.linalg.svd(fn.conv.matrix({"w": w}, (*size, c_in), **wrapped), compute_uv=False)
        np.testing.assert_allclose(weight.condition, s[0] / s[-1], rtol=1e-8)


def test_a_kernel_that_is_not_seen_has_no_norm():
    w = normal(3, 3, 2, 2)
    found, (reason,) = _spectra.weights({"c": (fn.conv.specs({"w": w})["w"], w, None)}, {})
    assert math.isnan(found["c"][0].norm[0])
    assert reason == "norm and condition of c: it is not seen in one call of conv."


def test_a_circular_kernel_in_bfloat16():
    w = jnp.asarray(normal(3, 3, 2, 4), jnp.bfloat16)
    call = Convolved((4, 4, 2), {"padding_mode": "circular"})
    (weight,) = _spectra.weights({"c": (fn.conv.specs({"w": w})["w"], w, None)}, {"c": call})[0]["c"]
    assert weight.norm[0] <= weight.norm[1]


def test_where_convolutions_are_not_seen_no_matrix_of_three_axes_has_a_norm():
    w = normal(2, 3, 4)
    of = spec.of(w, "a b c", "iio")
    assert math.isnan(_spectra.weights({"w": (of, w, None)}, {}, unseen=True)[0]["w"][0].norm[0])
    assert _spectra.weights({"w": (of, w, None)}, {})[0]["w"][0].norm[0] > 0


def test_positions_that_a_stride_passes_over_do_not_make_a_kernel_singular():
    w = normal(1, 1, 2, 3)  # two channels at every second position cannot make three that are independent
    given = {"c": (fn.conv.specs({"w": w})["w"], w, None)}
    (weight,) = _spectra.weights(given, {"c": Convolved((4, 4, 2), {"stride": 2})})[0]["c"]
    s = np.linalg.svd(w[0, 0], compute_uv=False)
    np.testing.assert_allclose(weight.condition, s[0] / s[-1])


def test_a_reflected_border_has_no_norm():
    w = normal(3, 1, 1)
    given = {"c": (fn.conv.specs({"w": w})["w"], w, None)}
    found, reasons = _spectra.weights(given, {"c": Convolved((5, 1), {"padding_mode": "reflect"})})
    assert math.isnan(found["c"][0].norm[1])
    assert found["c"][0].condition > 1
    assert reasons == ["norm of c: its border is reflected."]


def test_a_stack_has_a_row_for_each_layer():
    w = normal(3, 4, 2, 5)
    of = spec.stacked(fn.multihead.specs({"q": {"w": w[0]}})["q"]["w"], 3)
    found, _ = _spectra.weights({"q": (of, w, None)}, {})
    for i, weight in enumerate(found["q"]):
        np.testing.assert_allclose(weight.spectrum, np.linalg.svd(w[i].reshape(4, 10), compute_uv=False))


def test_tail_exponent():
    u = np.random.default_rng(0).uniform(size=4000)
    alpha, fit = _spectra.tail_exponent(u ** (-1 / 1.5))  # density λ^−2.5
    assert abs(alpha - 2.5) < 0.15
    assert fit < 0.03
    assert math.isnan(_spectra.tail_exponent(u[:49])[0])
    assert math.isfinite(_spectra.tail_exponent(u[:50])[0])
    assert math.isnan(_spectra.tail_exponent(np.ones(60))[0])


def test_a_matrix_that_is_zero_or_not_finite():
    for w, least in ((np.zeros((3, 4)), 0.0), (np.full((3, 4), np.nan), math.nan)):
        weight = _spectra.weights({"w": (spec.of(w, "a b", "io"), w, None)}, {})[0]["w"][0]
        np.testing.assert_equal(weight.norm[1], least)
        assert math.isnan(weight.condition)


# ---- the whole --------------------------------------------------------------------------------------------


def test_the_bound_of_a_chain_holds(of_convnet):
    params, (x, _), found = of_convnet
    norms = [row.weight.norm[1] for row in found.rows]
    np.testing.assert_allclose(found.whole.lipschitz, math.prod(norms))
    jacobians = jax.jit(jax.vmap(jax.jacrev(lambda x: convnet.apply(params, x, CONFIG))))(x)
    s = np.linalg.svd(np.asarray(jacobians).reshape(60, 3, -1), compute_uv=False)[:, 0]
    np.testing.assert_allclose(found.whole.sensitivity, (np.median(s), s.max(), 60))
    assert s.max() <= found.whole.lipschitz


def lipschitz(f, norms=2.0):
    params = {"a": {"w": normal(4, 4)}, "b": {"w": normal(4, 4)}}
    program = _chain.traced(f, params, normal(2, 4))
    return _chain.lipschitz(program, dict.fromkeys(range(2), norms))


def test_what_has_a_lipschitz_bound_and_what_has_none():
    a, b = (lambda p, x, name=name: fn.linear.apply(p[name], x) for name in "ab")
    pool = lambda x, **how: fn.avg_pool.apply(x[..., None].reshape(2, 4, 1), kernel=(2,), **how)
    assert lipschitz(lambda p, x: b(p, fn.tanh.apply(a(p, x)))) == (4, "")
    assert lipschitz(lambda p, x: x + b(p, fn.relu.apply(a(p, x)))) == (5, "")
    assert lipschitz(lambda p, x: fn.dropout.apply(a(p, x), rate=0.5)) == (2, "")
    assert lipschitz(lambda p, x: a(p, a(p, x)) + 1) == (4, "")
    assert lipschitz(lambda p, x: jnp.tanh(-a(p, jnp.maximum(x, 0)))) == (2, "")
    assert lipschitz(lambda p, x: jnp.minimum(a(p, x), x)) == (3, "")
    assert lipschitz(lambda p, x: (p["a"]["w"] * 2).sum() + 0 * p["b"]["w"]) == (0, "")
    assert lipschitz(lambda p, x: pool(x.reshape(2, 4))) != (1, "")  # x[..., None] is a broadcast to JAX
    for f, reason in [
        (lambda p, x: 2 * a(p, x), "none is known through mul"),
        (lambda p, x: fn.gelu.apply(a(p, x)), "none is known through gelu"),
        (lambda p, x: a(p, x) * x, "none is known through mul"),
        (lambda p, x: x.astype(int), "none is known through convert_element_type"),
        (lambda p, x: fn.linear.apply({"w": p["a"]["w"].T}, x), "none is known through linear"),
        (lambda p, x: fn.attention.apply(*[x.reshape(2, 2, 1, 2)] * 3), "there is none through attention"),
        (
            lambda p, x: fn.avg_pool.apply(x.reshape(2, 4, 1), kernel=(2,), stride=1),
            "none is known through avg_pool",
        ),
        (lambda p, x: fn.dropout.apply(x, rate=0.5, key=jax.random.key(0)), "none is known through dropout"),
    ]:
        bound, why = lipschitz(f)
        assert math.isnan(bound)
        assert why.startswith(reason)
    assert lipschitz(lambda p, x: fn.max_pool.apply(x.reshape(2, 4, 1), kernel=(2,))) == (1, "")
    assert lipschitz(a, math.nan)[1] == "a norm is not known"


def test_gradients_equal_those_of_single_examples(of_convnet):
    params, batch, found = of_convnet

    def loss(params, x, y):
        return fn.cross_entropy.apply(convnet.apply(params, x[None], CONFIG), y[None])[0]

    grads = jax.jit(jax.vmap(jax.grad(loss), (None, 0, 0)))(params, *batch)
    squares = {
        name: (np.asarray(grads[name]["w"]).reshape(60, -1) ** 2).sum(1) for name in ("hidden", "head")
    }
    for name, each in squares.items():
        (mean,), gradient = [np.asarray(grads[name]["w"]).mean(0)], rows(found)[name].gradient
        np.testing.assert_allclose(gradient.norm, np.linalg.norm(mean))
        trace = np.asarray(grads[name]["w"]).reshape(60, -1).var(0, ddof=1).sum()
        np.testing.assert_allclose(gradient.noise_scale, trace / ((mean**2).sum() - trace / 60))
        largest = np.sort(each)[::-1]
        assert largest[: gradient.holders].sum() >= each.sum() / 2 > largest[: gradient.holders - 1].sum()
    total = sum((np.asarray(g).mean(0) ** 2).sum() for g in jax.tree.leaves(grads))
    np.testing.assert_allclose(found.whole.gradient.norm, total**0.5)


def diagonal(values):
    product = jax.tree_util.Partial(jnp.multiply, jnp.asarray(values))
    return fn.linalg.symmetric(product, len(values), "float64")


def test_curvature_of_a_known_spectrum():
    values = np.concatenate([[40.0, 20.0, 10.0], np.linspace(-1, 1, 497)])
    found = curvature(diagonal(values), jax.random.key(0))
    np.testing.assert_allclose(found.top, values[:3], rtol=1e-6)
    assert -1 <= found.least < -0.9
    assert abs(found.trace - 70) <= 4 * found.error + 1e-9  # a diagonal matrix and signs: no error at all
    np.testing.assert_allclose(found.density.sum(), 1)
    assert abs(found.density[found.values > 5].sum() - 3 / 500) < 4e-3
    exact = curvature(diagonal(values[:5]), jax.random.key(0))
    np.testing.assert_allclose(exact.top, values[:3])
    np.testing.assert_allclose((exact.trace, exact.error, exact.density.sum()), (values[:5].sum(), 0, 1))


def test_the_trace_is_unbiased_and_its_error_true():
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.standard_normal((300, 300)))[0]
    values = np.concatenate([[90.0, 60.0, 40.0, 20.0], rng.uniform(-1, 1, 296)])
    a = fn.linalg.symmetric(
        jax.tree_util.Partial(lambda m, x: x @ m, jnp.asarray(q * values @ q.T)), 300, "float64"
    )
    found = [curvature(a, key) for key in jax.random.split(jax.random.key(0), 8)]
    off = np.array([each.trace - values.sum() for each in found])
    errors = np.array([each.error for each in found])  # of three samples: often too small
    assert abs(off.mean()) < 4 * off.std() / 8**0.5
    assert np.sqrt((errors**2).mean()) < 3 * off.std() < 9 * np.sqrt((errors**2).mean())
    assert off.std() < 20, "four vectors of random signs alone: 80"


def test_a_space_that_is_exhausted():
    values = np.repeat([3.0, 2.0, 1.0, 0.0], 50)
    found = curvature(diagonal(values), jax.random.key(0))
    np.testing.assert_allclose(found.top, (3, 2, 1), atol=1e-9)
    assert abs(found.least) < 1e-9
    assert abs(found.trace - 300) < 4 * found.error


@pytest.mark.slow
def test_curvature_of_a_net():
    params, batch = draw(mlp.init, MLP), (normal(30, 4), jnp.arange(30) % 3)
    found = fn.xray(mlp, params, MLP, batch, curvature=True).whole

    def loss(flat):
        return fn.cross_entropy.apply(mlp.apply(back(flat), batch[0], MLP), batch[1]).mean()

    flat, back = ravel_pytree(params)
    values = np.linalg.eigvalsh(jax.hessian(loss)(flat))
    np.testing.assert_allclose(found.hessian.top, values[:-4:-1])
    np.testing.assert_allclose((found.hessian.least, found.hessian.trace), (values[0], values.sum()))
    assert found.ggn.least > -1e-12


# ---- activations ------------------------------------------------------------------------------------------


def test_activations_of_known_values():
    x = np.zeros((100, 4))
    x[:, 0] = np.linspace(-1, 1, 100)  # 1 direction, with
    x[:, 1] = np.linspace(-1, 1, 100) ** 2 - 1 / 3  # another, smaller one
    x[:, 2] = 0.7  # never changes, as the last
    s = np.where(np.random.default_rng(0).uniform(size=(100, 3)) < 0.5, -0.995, 0.999)
    s[:, 2] = np.linspace(-0.9, 0.9, 100)
    sigmoid = np.full((100, 2), 0.001)
    sigmoid[:, 1] = np.linspace(0.1, 0.8, 100)

    def f(x, s, sigmoid):
        fn.tap("x", x), fn.tap("tanh", s), fn.tap("sigmoid", sigmoid), fn.tap("relu", jnp.maximum(s, 0) / 2)
        return fn.tap("whole", x.sum()), fn.tap("ids", jnp.arange(3))

    found, reasons = activations(f, *map(jnp.asarray, (x, s, sigmoid)))
    assert reasons == []
    assert list(found) == ["x", "tanh", "sigmoid", "relu"]
    values = np.linalg.eigvalsh(np.cov(x.T))
    assert found["x"].directions == 1 + (values[-1] < 0.9 * values.sum())
    assert (found["x"].units, found["x"].rows, found["x"].dead, found["x"].saturated) == (4, 100, 2, 0)
    np.testing.assert_allclose((found["x"].mean, found["x"].spread), (x.mean(), x.std()))
    assert [found[name].saturated for name in ("tanh", "sigmoid", "relu")] == [2, 1, 0]


def test_the_layers_of_a_stack_have_their_numbers():
    w = jnp.stack([jnp.zeros((3, 3)), jnp.eye(3)])

    def layer(w, x):
        with fn.taps.scope("mlp"):
            return x + fn.tap("hidden", x @ w)

    def f(w, x):
        with fn.taps.scope("blocks"):
            return fn.nets.stack.apply(layer, w, x)

    found, _ = activations(f, w, normal(7, 3))
    assert {name: each.dead for name, each in found.items()} == {
        "blocks.0.mlp.hidden": 3,
        "blocks.1.mlp.hidden": 0,
    }

    def loop(w, x):
        return jax.lax.scan(lambda x, w: (fn.tap("x", x @ w), None), x, w)[0]

    assert list(activations(loop, w, normal(7, 3))[0]) == ["x[0]", "x[1]"]
    assert (
        "no taps" in activations(lambda x: x, w)[1][0]
        or "nothing is tapped" in activations(lambda x: x, w)[1][0]
    )


@pytest.fixture(scope="module")
def of_transformer():
    """A layer whose heads look at all keys that they see alike, one whose look at one key; no labels."""
    config = transformer.Config(7, layers=2, heads=2, d=4, d_hidden=3)
    params = draw(transformer.init, config)
    q = params["blocks"]["attention"]["q"]
    q["w"] = q["w"] * jnp.array([0.0, 1e5])[:, None, None, None]
    q["b"] = q["b"] * jnp.array([0.0, 1.0])[:, None, None]
    return fn.xray(transformer, params, config, ids(3, 6))


def test_entropy_of_heads_by_the_keys_that_they_see(of_transformer):
    found = rows(of_transformer)
    np.testing.assert_allclose(found["blocks.0.attention"].activation.entropy, (1, 1))
    assert max(found["blocks.1.attention"].activation.entropy) < 0.1
    assert found["blocks.0.attention.q"].activation.units == 4
    assert found["blocks.0.attention.q"].weight.norm == (0, 0)
    (sentence,) = (text for text in of_transformer.findings if "heads" in text)
    assert "2 of 4 heads look at all keys alike (head 0 of `blocks.0.attention`" in sentence


def test_what_cannot_be_measured_is_said(of_transformer):
    assert of_transformer.left_out == (
        "how far weights moved: start was not given.",
        "gradients and loss: the batch has no labels, and there is no loss.",
        "Lipschitz bound: there is none through attention, whose slope grows with what it is given.",
        "sensitivity: inputs are tokens, which have no derivative.",
    )
    assert all(row.gradient is None for row in of_transformer.rows)
    names = [row.name for row in of_transformer.rows]
    assert names[:4] == ["positions", "tokens", "blocks.0.in", "blocks.0.attention.q"]


@pytest.mark.slow
def test_a_stack_of_one_layer_and_no_labels():
    config = encoder.Config(7, 8, layers=1, heads=2, d=4, d_hidden=5)
    found = rows(fn.xray(encoder, draw(encoder.init, config), config, ids(5, 7)))
    assert found["blocks.0.attention.q"].weight is not None
    assert found["blocks.0.attention.q"].activation is not None
    assert "pooler" in found


@pytest.mark.slow
def test_a_loss_of_ones_own():
    params, batch = draw(mlp.init, MLP), (normal(5, 4), jnp.arange(5) % 3)
    loss = lambda params, batch: fn.cross_entropy.apply(mlp.apply(params, batch["x"], MLP), batch["y"])
    given = fn.xray(mlp, params, MLP, {"x": batch[0], "y": batch[1]}, loss=loss, curvature=True)
    own = fn.xray(mlp, params, MLP, batch)
    np.testing.assert_allclose(given.whole.loss, own.whole.loss)
    for a, b in zip(given.rows, own.rows, strict=True):
        np.testing.assert_allclose(a.gradient, b.gradient)
    assert given.whole.ggn is None
    assert given.whole.hessian.examples == 5
    assert len(given.left_out) == 3


@pytest.mark.slow
def test_tokens_with_labels_and_one_example():
    config = transformer.Config(7, layers=2, heads=2, d=4, d_hidden=3)
    params, text = draw(transformer.init, config), ids(1, 6)
    found = fn.xray(transformer, params, config, (text[:, :-1], text[:, 1:]))
    losses = fn.cross_entropy.apply(transformer.apply(params, text[:, :-1], config), text[:, 1:])
    np.testing.assert_allclose(found.whole.loss, losses.mean())
    assert found.whole.gradient.holders == 1
    assert math.isnan(found.whole.gradient.noise_scale)
    assert rows(found)["blocks.1.up"].gradient.norm > 0


# ---- findings: what makes each appear, and what does not --------------------------------------------------

W = Weight((64, 64), (1.0, 1.0), 10.0, False, 5.0, 30.0, 3.0, 0.05, 0.5, np.ones(64))
A = Activation(100, 1000, 50.0, 0, 0, 0.0, 1.0)
G = Gradient(1.0, 5.0, 20, 100)


def weight(**change):
    return XRay((Row("a", weight=W._replace(**change)),), Whole(100))


def activation(**change):
    return XRay((Row("a", activation=A._replace(**change)),), Whole(100))


def gradient(**change):
    return XRay((), Whole(100, gradient=G._replace(**change)))


FINDINGS = [
    ("What `a` holds is not finite", weight(spectrum=np.zeros(0)), weight()),
    ("What `a` holds is not finite", activation(spread=math.nan), activation()),
    ("10 of 100 units of `a` never fire", activation(dead=10), activation(dead=9)),
    ("10 of 100 units of `a` are saturated", activation(saturated=10), activation(saturated=9)),
    ("lies in 2 of 100 directions of `a`", activation(directions=2.0), activation(directions=3.0)),
    ("lies in 2 of 100 directions of `a`", activation(directions=2.0), activation(directions=2.0, rows=199)),
    ("1 of 2 heads look at one key", activation(entropy=(0.5, 0.02)), activation(entropy=(0.5, 0.03))),
    ("look at all keys alike", activation(entropy=(0.98,)), activation(entropy=(0.97,))),
    ("`a`: condition above 1e6", weight(condition=1e6), weight(condition=9e5)),
    ("`a`: condition above 1e6", weight(condition=math.inf), weight(condition=math.nan)),
    ("`a` (its circular extension): cond", weight(condition=1e7, circular=True), weight(circular=True)),
    ("2 of 100 examples hold half", gradient(holders=2), gradient(holders=3)),
    ("1 of 50 examples holds half", gradient(holders=1, examples=50), gradient(holders=1, examples=49)),
    ("`a`: moved by less", weight(moved=1e-3), weight(moved=2e-3)),
    ("`a` (1.9): a tail exponent below 2", weight(tail=1.9), weight(tail=2.1)),
    ("`a` (6.1): a tail exponent above 6", weight(tail=6.1), weight(tail=6.1, fit=0.2)),
]  # fmt: skip


@pytest.mark.parametrize(("text", "unusual", "usual"), FINDINGS)
def test_findings(text, unusual, usual):
    (sentence,) = _findings.findings(unusual)
    assert text in sentence
    assert sentence.endswith((".", "?"))
    assert not any(text in sentence for sentence in _findings.findings(usual))


def test_at_most_five_sentences_the_worst_first():
    every = XRay(
        (
            Row(
                "a",
                W._replace(condition=1e9, moved=0.0, tail=1.0),
                A._replace(dead=50, saturated=50, directions=1),
            ),
            *(Row(f"b{i}", activation=A._replace(dead=10 + i)) for i in range(4)),
        ),
        Whole(100, gradient=G._replace(holders=1)),
    )
    found = _findings.findings(every)
    assert len(found) == 5
    assert found[0].startswith(
        "50 of 100 units of `a`, 13 of 100 units of `b3`, 12 of 100 units of `b2` and 2 more never fire"
    )


def test_a_rectifier_that_never_fires_is_found():
    params = mlp.init(jax.random.key(0), MLP)
    params["layers"][0]["b"] = jnp.array([-100.0, 0, 0, 0, 0, 0])
    found = fn.xray(mlp, params, MLP, normal(20, 4))
    assert any(text.startswith("1 of 6 units of `layers.0` never fire") for text in found.findings)


def test_the_curvature_of_many_params_is_left_out(monkeypatch):
    monkeypatch.setattr(sys.modules["funcnet.analysis.xray"], "VECTORS", 1)
    found = fn.xray(mlp, PARAMS, MLP, (normal(5, 4), jnp.arange(5) % 3), curvature=True)
    assert found.left_out[-1] == "curvature: its vectors of 51 params would not fit into memory."


def test_under_vmap_and_in_a_derivative_there_is_no_bound():
    mapped = lambda p, x, c: jax.vmap(lambda x: mlp.apply(p, x, c))(x)
    slope = lambda p, x, c: jax.grad(lambda x: mlp.apply(p, x, c).sum())(x)
    for apply in (mapped, slope):
        found = fn.xray(SimpleNamespace(apply=apply, specs=mlp.specs), PARAMS, MLP, X)
        assert math.isnan(found.whole.lipschitz)
        assert "Lipschitz bound: none is known through linear." in found.left_out
        assert found.rows[0].weight.norm[0] > 0


def test_a_kernel_of_several_calls_has_no_norm_whatever_its_axes_are_called():
    w = normal(3, 3, 2, 2)
    of = SimpleNamespace(
        apply=lambda p, x, c: fn.conv.apply(p, fn.conv.apply(p, x)),
        specs=lambda c: {"w": spec.of(w, "a b i o", "iiio")},
    )
    found = fn.xray(of, {"w": w}, None, normal(2, 6, 6, 2))
    assert math.isnan(found.whole.lipschitz)
    assert math.isnan(found.rows[0].weight.norm[1])


def test_params_that_are_not_finite():
    params = mlp.init(jax.random.key(0), MLP)
    params["layers"][1]["w"] = params["layers"][1]["w"].at[0, 0].set(jnp.nan)
    found = fn.xray(mlp, params, MLP, (normal(5, 4), jnp.arange(5) % 3), curvature=True)
    assert found.findings[0].startswith("What `layers.1`, `layers.0` holds is not finite")
    assert found.left_out[1:] == (
        "Lipschitz bound: a norm is not known.",
        "sensitivity: the derivative is not finite.",
        "curvature: the loss is not finite.",
    )
    assert "layers.1" in str(found)


def test_it_prints(of_convnet):
    _, _, found = of_convnet
    text = str(found)
    assert text.splitlines()[0].split()[:4] == ["layer", "in", "×", "out"]
    assert "entropy" not in text, "a column that is empty"
    assert "Lipschitz bound: " in text
    assert "nothing unusual" in str(XRay((Row("a", W),), Whole(1)))
    assert found.table("gradient")[0] == ["layer", "gradient", "noise scale", "half in"]


def of_two(params, x):
    return x


PARAMS, X = mlp.init(jax.random.key(0), MLP), np.ones((2, 4))
ERRORS = [
    (
        lambda: fn.xray(mlp, PARAMS, MLP, (X, np.array([0, 3]))),
        ValueRangeError,
        "xray: labels hold 3, outside [0, 3).\n"
        "  expected  0 ≤ labels < 3     (logits: float64[2, 3])\n"
        "  got       labels: int64[2], 1 of 2 outside, from 3 to 3\n"
        "  hint      to leave some out, give a loss of your own: loss=...",
    ),
    (
        lambda: fn.xray(SimpleNamespace(apply=lambda p, x, c: x[:1], specs=mlp.specs), PARAMS, MLP, X),
        ShapeError,
        "xray: net.apply(params, inputs, config) gives no logits for each of the inputs.\n"
        "  expected  net.apply: logits [2, ...]     (inputs: float64[2, 4])\n"
        "  got       net.apply: float64[1, 4]",
    ),
    (
        lambda: fn.xray(mlp, PARAMS, MLP, ({"x": X}, np.zeros(2, int))),
        StructureError,
        "xray: the batch is neither (inputs, labels) nor inputs.\n"
        "  expected  batch: (inputs, labels), or an array; or with loss= any tree of arrays\n"
        "  got       batch: a tuple of 2",
    ),
    (
        lambda: fn.xray(None, PARAMS, MLP, X),
        DTypeError,
        "xray: net is no module of a net.\n"
        "  expected  net: with apply(params, x, config) and specs(config), as fn.nets.convnet\n"
        "  got       net: None (NoneType)",
    ),
    (
        lambda: fn.xray(mlp, PARAMS, MLP, {"x": X}),
        StructureError,
        "xray: the batch is neither (inputs, labels) nor inputs.\n"
        "  expected  batch: (inputs, labels), or an array; or with loss= any tree of arrays\n"
        "  got       batch: a dict",
    ),
    (
        lambda: fn.xray(mlp, PARAMS, MLP, (X, X, X)),
        StructureError,
        "xray: the batch is neither (inputs, labels) nor inputs.\n"
        "  expected  batch: (inputs, labels), or an array; or with loss= any tree of arrays\n"
        "  got       batch: a tuple of 3",
    ),
    (
        lambda: fn.xray(mlp, PARAMS, MLP, X, start={"layers": PARAMS["layers"][:1]}),
        StructureError,
        "xray: start are not the params of this net.\n"
        "  expected  start: 4 arrays, of the shapes of params\n"
        "  got       start: 2 arrays, 2 of them alike",
    ),
    (
        lambda: fn.xray(mlp, mlp.init(jax.random.key(0), mlp.Config((4, 5, 3))), MLP, X),
        ShapeError,
        "xray: specs['layers'][0]['b'] is of another leaf.\n"
        "  expected  float64[5]\n"
        "  got       a Spec of (6,)",
    ),
    (
        lambda: fn.xray(SimpleNamespace(apply=lambda p, x, c: (x, x), specs=mlp.specs), PARAMS, MLP, X),
        DTypeError,
        "xray: net.apply(params, inputs, config) gives no array of floats.\n"
        "  expected  net.apply: logits [n, ...]\n"
        "  got       a tuple\n"
        "  hint      give the loss of such a net: loss=..., of params and batch, one number per example.",
    ),
    (
        lambda: fn.xray(SimpleNamespace(apply=of_two, specs=mlp.specs), PARAMS, MLP, X),
        DTypeError,
        "xray: net.apply(params, inputs, config) gives no array of floats.\n"
        "  expected  net.apply: logits [n, ...]\n"
        "  got       of_two() takes 2 positional arguments but 3 were given\n"
        "  hint      give the loss of such a net: loss=..., of params and batch, one number per example.",
    ),
    (
        lambda: fn.xray(mlp, PARAMS, MLP, (X, np.zeros(2, int)), loss=lambda p, b: b[0].mean()),
        ShapeError,
        "xray: losses did not return one number per example.\n"
        "  expected  float[n], one number per example\n"
        "  got       float64[]\n"
        "  hint      leave out the mean over the examples",
    ),
    (
        lambda: fn.xray(mlp, PARAMS, MLP, X, curvature=2),
        DTypeError,
        "xray: curvature is neither True nor False.\n"
        "  expected  curvature: bool\n"
        "  got       curvature: 2 (int)",
    ),
]
test_errors = golden(ERRORS)
