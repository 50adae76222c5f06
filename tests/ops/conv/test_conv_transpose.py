"""What is special about conv_transpose: it is the adjoint, its sizes, its errors, PyTorch's weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import funcnet as fn
from funcnet.errors import ShapeError, ValueRangeError

RNG = np.random.default_rng(0)
PARAMS = {"w": jnp.asarray(RNG.standard_normal((3, 3, 4, 2))), "b": jnp.arange(4.0)}
IMAGE = jnp.asarray(RNG.standard_normal((5, 7, 6, 2)))


def text_of(error, f):
    with pytest.raises(error) as caught:
        f()
    return str(caught.value)


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_it_is_the_adjoint_of_conv(data):
    draw = data.draw
    d = draw(st.integers(1, 2))
    sizes, kernel, stride, dilation = (
        tuple(draw(st.integers(low, high)) for _ in range(d))
        for low, high in ((1, 7), (1, 4), (1, 3), (1, 2))
    )
    groups, mode = draw(st.integers(1, 2)), draw(st.sampled_from(["zeros", "circular", "reflect"]))
    padding = draw(
        st.sampled_from(["same", "valid", "causal"]) | st.tuples(*[st.tuples(*[st.integers(0, 3)] * 2)] * d)
    )
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.standard_normal((*kernel, 2, 3 * groups)))
    x = jnp.asarray(rng.standard_normal((2, *sizes, 2 * groups)))
    options = {
        "stride": stride,
        "dilation": dilation,
        "padding": padding,
        "groups": groups,
        "padding_mode": mode,
    }
    try:
        y = fn.conv.apply({"w": w}, x, **options)
    except ValueRangeError:  # a reflected border wider than the signal
        return
    dy = jnp.asarray(rng.standard_normal(y.shape))
    back = fn.conv_transpose.apply({"w": w}, dy, output_shape=sizes, **options)
    assert back.shape == x.shape
    np.testing.assert_allclose(jnp.vdot(y, dy), jnp.vdot(x, back), atol=1e-10)
    np.testing.assert_allclose(
        fn.conv_transpose.reference({"w": w}, dy, output_shape=sizes, **options), back, atol=1e-12
    )


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({}, (7, 6)),
        ({"stride": 2}, (14, 12)),
        ({"stride": 2, "padding": "valid"}, (15, 13)),
        ({"padding": "causal", "stride": (1, 3)}, (7, 18)),
        ({"padding": ((1, 1), (1, 0)), "stride": 2}, (13, 12)),
        ({"padding": "valid", "dilation": 2}, (11, 10)),
        ({"stride": 2, "output_shape": (13, 11)}, (13, 11)),
    ],
    ids=str,
)
def test_sizes(options, sizes):
    assert fn.conv_transpose.apply(PARAMS, IMAGE, **options).shape == (5, *sizes, 4)


def test_the_bias_is_added_once():
    without = fn.conv_transpose.apply({"w": PARAMS["w"]}, IMAGE)
    np.testing.assert_allclose(fn.conv_transpose.apply(PARAMS, IMAGE), without + jnp.arange(4.0))


def test_output_variance_is_that_of_the_input():
    params = fn.conv_transpose.init(jax.random.key(0), 16, 32, kernel=(4, 4), stride=2)
    y = fn.conv_transpose.apply(params, jax.random.normal(jax.random.key(1), (8, 9, 9, 16)), stride=2)
    assert 0.9 < float(y[:, 2:-2, 2:-2].var()) < 1.1


def test_pytorch_weights_carry_over():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    for groups, stride in ((1, 1), (2, 2)):
        weight, x = rng.standard_normal((4, 6 // groups, 3, 3)), rng.standard_normal((2, 4, 5, 5))
        y = torch.nn.functional.conv_transpose2d(
            torch.tensor(x), torch.tensor(weight), stride=stride, padding=1, groups=groups
        )
        params = {"w": jnp.asarray(np.moveaxis(weight, (1, 0), (-2, -1)))}
        ours = fn.conv_transpose.apply(
            params, jnp.asarray(np.moveaxis(x, 1, -1)), stride=stride, padding=((1, 1), (1, 1)), groups=groups
        )
        np.testing.assert_allclose(ours, np.moveaxis(y.numpy(), 1, -1), atol=1e-12)


# ---- errors


def test_wrong_channels(unchecked):
    assert text_of(ShapeError, lambda: fn.conv_transpose.apply(PARAMS, jnp.ones((5, 7, 6, 4)))) == (
        'conv_transpose.apply: x has 4 channels in its last axis, but params["w"] takes 2.\n'
        "  expected  x: float[*n, h, w, 2]     (w: float64[3, 3, 4, 2])\n"
        "  got       x: float64[5, 7, 6, 4]\n"
        "  hint      this w maps the channels of x to the other ones in conv.apply; here it goes back."
    )


def test_channels_first(unchecked):
    assert text_of(ShapeError, lambda: fn.conv_transpose.apply(PARAMS, jnp.ones((5, 2, 7, 6)))).endswith(
        "  hint      axis 1 has 2: channels first? jnp.moveaxis(x, -3, -1) puts them last."
    )


def test_a_size_that_no_convolution_maps_here(unchecked):
    assert text_of(
        ShapeError, lambda: fn.conv_transpose.apply(PARAMS, IMAGE, stride=2, output_shape=(15, 12))
    ) == (
        "conv_transpose.apply: no convolution with these options maps sizes (15, 12) to those of x.\n"
        "  expected  sizes that the convolution maps to (7, 6)\n"
        "  got       (15, 12), which it maps to (8, 6)\n"
        "  hint      output_shape=(14, 12) would fit."
    )


@pytest.mark.parametrize(
    ("error", "options", "match"),
    [
        (ValueRangeError, {"stride": 0}, "stride is 0"),
        (ValueRangeError, {"output_shape": (-1, 6)}, "output_shape is -1, but at least 0"),
        (ShapeError, {"output_shape": (7,) * 3}, "output_shape has 3 entries"),
        (ValueRangeError, {"groups": 3}, "3 groups do not divide c_in = 2"),
        (ValueRangeError, {"method": "cudnn"}, "method is 'cudnn'"),
        (ValueRangeError, {"method": "winograd", "stride": 2}, 'method "winograd" does not fit'),
        (ShapeError, {"padding": ((9, 9), (0, 0))}, "no convolution with these options"),
    ],
)
def test_options_out_of_range(error, options, match, unchecked):
    with pytest.raises(error, match=match):
        fn.conv_transpose.apply(PARAMS, IMAGE, **options)
