"""Parameters divided by norms: what comes out has the norm, the gradient is right, zeros stay finite."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnet as fn
from funcnet.errors import DTypeError, ShapeError, StructureError, ValueRangeError
from funcnet.linalg import lengths

LAYERS = {
    "linear": (fn.linear.operator, (5, 3), (5,), {}),
    "conv": (fn.conv.operator, (3, 3, 2, 4), (5, 6, 2), {"stride": 2}),
    "grouped": (fn.conv.operator, (3, 2, 4), (7, 4), {"groups": 2, "padding_mode": "circular"}),
    "conv_transpose": (fn.conv_transpose.operator, (3, 2, 3), (4, 3), {"stride": 2}),
}


def drawn(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


@pytest.mark.parametrize("name", LAYERS)
def test_the_norm_is_at_most_the_scale_and_nearly_it(name):
    operator, w, in_shape, options = LAYERS[name]
    normed = functools.partial(fn.spectral_norm, operator=operator, in_shape=in_shape, **options)
    params = {"w": 7.0 * drawn(*w), "b": jnp.zeros(w[-1])}

    def largest(params, scale):
        out = normed(params, scale=scale)
        return jnp.linalg.svd(operator(out, in_shape, **options).matrix(), compute_uv=False)[0], out["w"]

    sigma, got = jax.jit(largest, static_argnames="scale")(params, 0.5)
    assert 0.3 < sigma <= 0.5
    np.testing.assert_allclose(got / params["w"], (got / params["w"]).ravel()[0])
    assert normed(params)["b"] is params["b"]


def test_the_kernel_as_a_matrix_would_not_do():
    """A kernel of ones: its norm as a matrix is 3, as a map of a long signal 9."""
    w = {"w": jnp.ones((9, 1, 1))}
    reshaped = {"w": w["w"] / jnp.linalg.norm(w["w"].reshape(9, 1), 2)}
    top = lambda params: fn.conv.operator(params, (64, 1), padding_mode="circular").singular_values(1)[0]
    assert top(reshaped) > 2.9
    assert top(fn.spectral_norm(w, fn.conv.operator, (64, 1), padding_mode="circular")) <= 1


def test_gradients_are_those_of_differences_and_finite_at_zero():
    w, dy, t = (drawn(3, 2, seed=seed) for seed in range(3))
    loss = lambda w: jnp.vdot(fn.spectral_norm({"w": w}, fn.linear.operator, (3,))["w"], dy)
    h = 1e-6
    want = (loss(w + h * t) - loss(w - h * t)) / (2 * h)
    np.testing.assert_allclose(jnp.vdot(jax.jit(jax.grad(loss))(w), t), want, rtol=1e-6)
    np.testing.assert_array_equal(jax.grad(loss)(0 * w), dy)
    directions = lambda w: jnp.vdot(fn.weight_norm({"w": w, "g": jnp.ones((1, 2))})["w"], dy)
    want = (directions(w + h * t) - directions(w - h * t)) / (2 * h)
    slope = jax.grad(directions)(w)
    np.testing.assert_allclose(jnp.vdot(slope, t), want, rtol=1e-6)
    np.testing.assert_allclose((slope * w).sum(0), 0, atol=1e-12)
    np.testing.assert_array_equal(jax.grad(directions)(w.at[:, 0].set(0))[:, 0], 0)


@pytest.mark.parametrize(
    ("shape", "axis", "kept"),
    [((3, 5), -1, (1, 5)), ((3, 2, 4, 5), (-1,), (1, 1, 1, 5)), ((3, 2, 5), (1, 2), (1, 2, 5))],
)
def test_lengths_change_nothing(shape, axis, kept):
    params = {"w": drawn(*shape), "b": jnp.zeros(shape[-1])}
    more = lengths(params, axis)
    assert more["g"].shape == kept
    out = fn.weight_norm(more)
    assert out.keys() == params.keys()
    np.testing.assert_allclose(out["w"], params["w"])
    np.testing.assert_allclose(fn.weight_norm({**more, "g": 2 * more["g"]})["w"], 2 * params["w"])
    np.testing.assert_allclose(fn.weight_norm({**more, "w": 1e200 * more["w"]})["w"], params["w"])
    narrow = {name: leaf.astype(jnp.float32) for name, leaf in more.items()}
    large = {**narrow, "w": narrow["w"] / abs(narrow["w"]).max() * 3e38}  # 1 / 3e38 is 0 on CPU
    np.testing.assert_allclose(jax.jit(fn.weight_norm)(large)["w"], params["w"], rtol=1e-5, atol=1e-6)


def test_a_norm_below_the_scale_may_stay():
    small = {"w": 1e-3 * drawn(3, 5)}
    kept = fn.spectral_norm(small, fn.linear.operator, (3,), grow=False)["w"]
    np.testing.assert_allclose(kept, small["w"])


def test_as_torch_has_it():
    torch = pytest.importorskip("torch")
    layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(5, 3).double())
    g, v = (
        p.detach().numpy()
        for p in (layer.parametrizations.weight.original0, layer.parametrizations.weight.original1)
    )
    out = fn.weight_norm({"w": jnp.asarray(v.T), "g": jnp.asarray(g.T)})
    np.testing.assert_allclose(out["w"], layer.weight.detach().numpy().T)


def test_errors(unchecked):
    w = {"w": drawn(3, 5)}
    several: list[Any] = [{}, {"w": None}, 3, None]
    for wrong in several:
        with pytest.raises(StructureError):
            fn.spectral_norm(wrong, fn.linear.operator, (3,))
        with pytest.raises(StructureError):
            lengths(wrong)
    with pytest.raises(StructureError, match='weight_norm: params has no "g"'):
        fn.weight_norm(w)
    with pytest.raises(ShapeError, match="g does not fit w"):
        fn.weight_norm({**w, "g": jnp.ones(5)})
    with pytest.raises(ValueRangeError, match="scale is 0"):
        fn.spectral_norm(w, fn.linear.operator, (3,), scale=0)
    with pytest.raises(ValueRangeError, match="w has no axis 2"):
        lengths(w, 2)
    with pytest.raises(DTypeError, match=r'params\["w"\] is no array of floats'):
        lengths({"w": jnp.ones(3, jnp.int32)})
