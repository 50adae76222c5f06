"""What is special about conv: its errors, its options, and the algebra that a convolution has."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

import funcnet as fn
from funcnet.errors import DTypeError, ShapeError, StructureError, ValueRangeError
from tests.naive.conv import conv as naive

conv = fn.conv


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


PARAMS = {"w": normal(3, 3, 2, 4), "b": normal(4, seed=1)}
IMAGE = normal(5, 7, 6, 2, seed=2)


# ---- errors -----------------------------------------------------------------------------------------------


def text_of(error, f):
    with pytest.raises(error) as caught:
        f()
    return str(caught.value)


def test_wrong_channels(unchecked):
    assert text_of(ShapeError, lambda: conv.apply(PARAMS, normal(5, 7, 6, 3))) == (
        'conv.apply: x has 3 channels in its last axis, but params["w"] takes 2.\n'
        "  expected  x: float[*n, h, w, 2]     (w: float64[3, 3, 2, 4])\n"
        "  got       x: float64[5, 7, 6, 3]"
    )


def test_channels_first(unchecked):
    assert text_of(ShapeError, lambda: conv.apply(PARAMS, normal(5, 2, 7, 6))).endswith(
        "  hint      axis 1 has 2: channels first? jnp.moveaxis(x, -3, -1) puts them last."
    )


def test_a_missing_group(unchecked):
    assert text_of(ShapeError, lambda: conv.apply(PARAMS, normal(5, 7, 6, 4))).endswith(
        "hint      groups=2 would fit."
    )


def test_wrong_rank(unchecked):
    assert text_of(ShapeError, lambda: conv.apply(PARAMS, normal(7, 2))) == (
        "conv.apply: x has rank 2, but at least 3 is needed.\n"
        "  expected  x: float[*n, h, w, c]\n"
        "  got       x: float64[7, 2]\n"
        "  hint      is an axis missing? x[None] adds a batch, x[..., None] a channel axis."
    )


def test_integer_images(unchecked):
    assert text_of(DTypeError, lambda: conv.apply(PARAMS, jnp.zeros((5, 7, 6, 2), jnp.uint8))) == (
        "conv.apply: x has dtype uint8, but a float is needed.\n"
        "  expected  x: float[...]\n"
        "  got       x: uint8[5, 7, 6, 2]\n"
        "  hint      cast it: x.astype(jnp.float32), divided by 255 if it is an image of bytes."
    )


def test_a_bias_of_another_size(unchecked):
    assert text_of(ShapeError, lambda: conv.apply({**PARAMS, "b": normal(3)}, IMAGE)) == (
        'conv.apply: params["b"] has 3 features in its last axis, '
        'but params["w"] (float64[3, 3, 2, 4]) takes 4.\n'
        '  expected  params["b"]: float[4]\n'
        '  got       params["b"]: float64[3]'
    )


def test_params_one_level_up(unchecked):
    assert text_of(StructureError, lambda: conv.apply({"conv1": PARAMS}, IMAGE)).endswith(
        'hint      one level down there is one: pass params["conv1"].'
    )


@pytest.mark.parametrize(
    ("error", "options", "match"),
    [
        (ValueRangeError, {"stride": 0}, "stride is 0, but at least 1 is needed"),
        (ValueRangeError, {"dilation": (1, -1)}, "dilation is -1, but at least 1 is needed"),
        (DTypeError, {"stride": 1.5}, "stride is not an integer"),
        (ShapeError, {"stride": (1, 2, 3)}, "stride has 3 entries, but there are 2 spatial axes"),
        (ValueRangeError, {"padding": "full"}, "padding is 'full'"),
        (DTypeError, {"padding": 1}, "padding is not a name and not a sequence of pairs"),
        (ShapeError, {"padding": ((1, 1),)}, "padding has 1 pairs, but there are 2 spatial axes"),
        (ValueRangeError, {"padding": ((-1, 0), (0, 0))}, "padding is negative"),
        (ValueRangeError, {"padding_mode": "mirror"}, "padding_mode is 'mirror'"),
        (ValueRangeError, {"method": "cudnn"}, "method is 'cudnn'"),
        (ValueRangeError, {"groups": 3}, "3 groups do not divide c_out = 4"),
        (ValueRangeError, {"groups": 0}, "groups is 0"),
        (
            ValueRangeError,
            {"padding_mode": "reflect", "padding": ((7, 0), (0, 0))},
            "a reflect border of 7 is too wide for spatial axis 0",
        ),
    ],
)
def test_options_out_of_range(error, options, match, unchecked):
    with pytest.raises(error, match=match):
        conv.apply(PARAMS, IMAGE, **options)


def test_an_int_as_padding_shows_the_pairs(unchecked):
    assert text_of(DTypeError, lambda: conv.apply(PARAMS, IMAGE, padding=1)).endswith(
        "hint      for 1 on both sides of every axis: padding=((1, 1), (1, 1))."
    )


def test_a_kernel_without_taps(unchecked):
    assert text_of(ShapeError, lambda: conv.apply({"w": jnp.ones((3, 0, 2, 4))}, IMAGE)) == (
        'conv.apply: the kernel of params["w"] has no taps along axis 1.\n'
        "  expected  at least one tap along every spatial axis\n"
        '  got       params["w"]: float64[3, 0, 2, 4]'
    )


def test_init_refuses(unchecked):
    key = jax.random.key(0)
    for error, args, options, match in [
        (ValueRangeError, (3, 4), {"kernel": (3, 0)}, "kernel is 0"),
        (ValueRangeError, (3, 4), {"kernel": (3, 3), "groups": 2}, "2 groups do not divide c_in = 3"),
        (ValueRangeError, (0, 4), {"kernel": (3, 3)}, "c_in is 0"),
        (ShapeError, (3, 4), {"kernel": (3, 3, 3, 3)}, "kernel has 4 axes"),
    ]:
        with pytest.raises(error, match=match):
            conv.init(key, *args, **options)
    for operation in (conv, fn.conv_transpose):
        assert text_of(DTypeError, lambda op=operation: op.init(key, 3, 8, kernel=3)) == (
            f"{operation.__name__.split('.')[-1]}.init: kernel is not a tuple, "
            "so the number of spatial axes is open.\n"
            "  expected  kernel: one size per spatial axis\n"
            "  got       kernel: 3 (int)\n"
            "  hint      (3,) is for sequences, (3, 3) for images."
        )


def test_the_same_error_under_jit_and_vmap(unchecked):
    plain = text_of(ShapeError, lambda: conv.apply(PARAMS, normal(7, 6, 3)))
    assert text_of(ShapeError, lambda: jax.jit(conv.apply)(PARAMS, normal(7, 6, 3))) == plain
    assert text_of(ShapeError, lambda: jax.vmap(conv.apply, (None, 0))(PARAMS, normal(5, 7, 6, 3))) == plain


# ---- options ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2},
        {"dilation": 2},
        {"padding": "valid"},
        {"padding": "causal"},
        {"padding": ((2, 0), (1, 1))},
        {"padding_mode": "circular"},
        {"padding_mode": "reflect"},
    ],
    ids=str,
)
def test_every_option_changes_the_result(options):
    plain, other = conv.apply(PARAMS, IMAGE), conv.apply(PARAMS, IMAGE, **options)
    assert plain.shape != other.shape or not jnp.allclose(plain, other)


def test_groups_are_independent_convolutions():
    w, x = normal(3, 2, 6), normal(2, 7, 4, seed=3)
    halves = [conv.apply({"w": w[..., 3 * g : 3 * g + 3]}, x[..., 2 * g : 2 * g + 2]) for g in range(2)]
    assert jnp.allclose(conv.apply({"w": w}, x, groups=2), jnp.concatenate(halves, -1))


def test_output_variance_is_that_of_the_input():
    params = conv.init(jax.random.key(0), 16, 64, kernel=(3, 3))
    y = conv.apply(params, normal(8, 16, 16, 16, seed=4), padding="valid")
    assert 0.9 < float(y.var()) < 1.1


# ---- properties -------------------------------------------------------------------------------------------


def test_causal_by_gradient():
    """Output o depends on the inputs ≤ o, on the current one too, and on none after it."""
    params, x = conv.init(jax.random.key(0), 2, 3, kernel=(3,)), normal(7, 2)
    for o in range(7):
        seen = jnp.abs(
            jax.grad(lambda x, o=o: conv.apply(params, x, padding="causal", dilation=2)[o].sum())(x)
        )
        assert seen[o].sum() > 0
        assert (seen[o + 1 :] == 0).all()


def test_a_circular_convolution_commutes_with_shifts():
    for shift in (1, 3):
        shifted = conv.apply(PARAMS, jnp.roll(IMAGE, shift, (1, 2)), padding_mode="circular")
        assert jnp.allclose(
            shifted, jnp.roll(conv.apply(PARAMS, IMAGE, padding_mode="circular"), shift, (1, 2))
        )


def test_the_matrix_of_a_stride_one_convolution_is_toeplitz():
    T = conv.matrix({"w": normal(3, 1, 1)}, (7, 1), dilation=2)
    assert T.shape == (7, 7)
    for offset in range(-6, 7):
        assert np.ptp(np.diagonal(T, offset)) == 0


def test_reverse_over_forward_stays_inside_the_three_products():
    x = IMAGE[:1, :4, :4]

    def f(w, x):
        return jnp.sum(conv.apply({"w": w}, x, stride=2) ** 3)

    jaxpr = str(jax.make_jaxpr(jax.jacfwd(jax.grad(f, (0, 1)), (0, 1)))(PARAMS["w"], x))
    assert "conv_general_dilated" not in jaxpr
    assert {"conv[", "conv_transposed[", "conv_kernel_gradient["} <= {
        n for n in ("conv[", "conv_transposed[", "conv_kernel_gradient[") if n in jaxpr
    }


@st.composite
def convolutions(draw, plain=False):
    """w, x, options: kernels longer than the signal, strides beyond the kernel, sizes 0 and 1, depthwise."""
    d = draw(st.integers(1, 2))
    sizes, kernel, stride, dilation = (
        tuple(draw(st.integers(low, high)) for _ in range(d))
        for low, high in ((0, 5), (1, 4), (1, 1 if plain else 5), (1, 1 if plain else 2))
    )
    groups, c_in, c_out = draw(st.sampled_from([(1, 2, 3), (1, 1, 1), (2, 2, 1), (2, 1, 2), (8, 1, 1)]))
    pairs = st.tuples(*[st.tuples(*[st.integers(0, 3)] * 2)] * d)
    padding = draw(st.sampled_from(["same", "valid", "causal"]) | pairs)
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.standard_normal((*kernel, c_in, groups * c_out)))
    x = jnp.asarray(rng.standard_normal((2, *sizes, groups * c_in)))
    options = {"stride": stride, "dilation": dilation, "padding": padding, "groups": groups}
    options["padding_mode"] = draw(st.sampled_from(["zeros", "zeros", "circular", "reflect"]))
    return w, x, options


def held_to_the_loop(w, x, options, **how):
    """y equals the loop; each gradient, random direction by random direction, the loop's own derivative."""
    f = lambda w, x: conv.apply({"w": w}, x, **options, **how)
    try:
        like = jax.eval_shape(f, w, x)
    except ValueRangeError as error:  # a border wider than what it would continue
        if "border" not in str(error):
            raise
        reject()
    rng = np.random.default_rng(1)
    dy, tw, tx = (rng.standard_normal(v.shape) for v in (like, w, x))

    @jax.jit  # one program: eagerly there would be dozens for every window
    def both(w, x, dy):
        y, pull = jax.vjp(f, w, x)
        return y, *pull(dy)

    y, dw, dx = both(w, x, dy)
    loop = lambda w, x: naive({"w": np.asarray(w)}, np.asarray(x), **options)
    np.testing.assert_allclose(y, loop(w, x), atol=1e-12)
    np.testing.assert_allclose(np.vdot(dw, tw), np.vdot(dy, loop(tw, x)), atol=1e-10)  # linear in w
    np.testing.assert_allclose(np.vdot(dx, tx), np.vdot(dy, loop(w, tx)), atol=1e-10)  # linear in x


@pytest.mark.parametrize("taps", [5, 6])  # borders of 2 and 2, of 2 and 3
def test_a_border_wider_than_one_is_reflected_in_order(taps):
    params, x, options = {"w": normal(taps, 2, 3)}, normal(2, 7, 2, seed=1), {"padding_mode": "reflect"}
    dy = normal(2, 7, 3, seed=2)
    by_hand = jax.jit(lambda x: conv.vjp(params, x, **options)[1](dy)[1])(x)
    want = jax.jit(lambda x: jax.vjp(lambda x: conv.reference(params, x, **options), x)[1](dy)[0])(x)
    np.testing.assert_allclose(by_hand, want, atol=1e-12)


@settings(max_examples=15, deadline=None)
@given(convolutions())
def test_any_window_equals_the_naive_loop(drawn):
    held_to_the_loop(*drawn)


@pytest.mark.parametrize(
    "method", ["direct", "shifted", "unfold", "fold", "crossed", "polyphase", "winograd", "fft"]
)
@settings(max_examples=4, deadline=None)
@given(st.data())
def test_every_method_equals_the_naive_loop(method, data):
    w, x, options = data.draw(convolutions(plain=method in ("winograd", "fft")))
    if method == "polyphase":
        options["dilation"] = 1
    if method == "winograd":
        w = jnp.asarray(np.random.default_rng(2).standard_normal((*(3, 1)[: w.ndim - 2], *w.shape[-2:])))
        if not isinstance(options["padding"], str):
            options["padding"] = "same"
    held_to_the_loop(w, x, options, method=method)


@pytest.mark.parametrize("one_device", [True, False], ids=["one device", "several"])
def test_loops_over_the_batch(one_device, monkeypatch):
    """On one device a chunk of images at a time; on the four of the tests it would gather a shared batch."""
    monkeypatch.setattr("funcnet.ops.conv._toeplitz_forms._loops_are_local", lambda: one_device)
    monkeypatch.setattr("funcnet.ops.conv._toeplitz_forms._CHUNK", 300)
    x = normal(6, 5, 4, 2, seed=3)
    text = jax.jit(lambda x: conv.apply(PARAMS, x)).lower(x).as_text()
    assert ("while" in text) == one_device
    held_to_the_loop(PARAMS["w"], x, {})
    held_to_the_loop(normal(3, 3, 1, 8), normal(6, 5, 4, 8, seed=3), {"groups": 8})


@pytest.mark.parametrize(
    ("kernel", "size", "options"),
    [
        ((3, 3, 5, 5), (4, 6), {}),
        ((3, 3, 2, 6), (4, 6), {"groups": 3}),
        ((1, 1, 5, 3), (5, 6), {"stride": 2}),
        ((3, 2, 2, 5, 5), (5, 4, 3), {}),
        ((7, 5, 5), (9,), {"padding": "causal"}),
        ((3, 3, 1, 8), (8, 8), {"groups": 8}),
    ],
    ids=str,
)
def test_a_kernel_gradient_of_a_few_images_at_a_time(kernel, size, options, monkeypatch):
    """The loop gives what all images at once do, also where no divisor of their number is large enough."""
    monkeypatch.setattr("funcnet.ops.conv._toeplitz_forms._loops_are_local", lambda: True)
    monkeypatch.setattr("funcnet.ops.conv._toeplitz_forms._PAIR", 1)
    rng = np.random.default_rng(1)
    c = kernel[-2] * options.get("groups", 1)
    w = jnp.asarray(rng.standard_normal(kernel), "float32")
    for n in (32, 37):
        x = jnp.asarray(rng.standard_normal((n, *size, c)), "float32")

        def grads(x, method):
            f = lambda w, x: jnp.sin(conv.apply({"w": w}, x, method=method, **options)).sum()
            return jax.jit(jax.grad(f, (0, 1))).lower(w, x)

        lowered = grads(x, "auto")
        assert ("while" in lowered.as_text()) == (n == 32 or kernel[-2] == 1)
        for got, want in zip(lowered.compile()(w, x), grads(x, "direct").compile()(w, x), strict=True):
            np.testing.assert_allclose(got, want, atol=3e-5 * float(jnp.abs(want).max()))


def test_a_net_keeps_no_copy_of_what_its_convolutions_saw(monkeypatch):
    """XLA would make the copy for dw in the forward pass, and keep it beside the original."""

    def planned(one_device):
        monkeypatch.setattr("funcnet.ops.conv._toeplitz_forms._loops_are_local", lambda: one_device)
        w, x = jnp.ones((3, 3, 16, 16), "float32"), jnp.ones((64, 16, 16, 16), "float32")

        def loss(w, x):
            for _ in range(4):
                x = fn.relu.apply(fn.conv.apply({"w": w}, x))
            return x.sum()

        compiled = jax.jit(jax.grad(loss)).lower(w, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes / x.nbytes

    assert planned(one_device=True) < 6.5  # four results of relu, and two arrays on the way back
    assert planned(one_device=False) > 8.5  # and a copy of three of them


def test_long_kernels_go_through_frequencies():
    """Blocks transformed by matrices (up to 256 samples), and by an FFT."""
    options = {"groups": 8, "padding": "causal"}
    for taps, size in ((20, 70), (150, 700)):
        w, x = normal(taps, 1, 8, seed=1), normal(2, size, 8, seed=2)
        y, pull = jax.vjp(lambda w, x: conv.apply({"w": w}, x, method="fft", **options), w, x)
        want, pull_want = jax.vjp(lambda w, x: conv.apply({"w": w}, x, method="direct", **options), w, x)
        np.testing.assert_allclose(y, want, atol=1e-10)
        dy = normal(*y.shape, seed=3)
        jax.tree.map(lambda g, v: np.testing.assert_allclose(g, v, atol=1e-10), pull(dy), pull_want(dy))


@pytest.mark.parametrize("kernel", [(16, 128, 128), (64, 64, 32), (150, 1, 8)], ids=str)
def test_no_form_that_mixes_neighbours_is_chosen_by_itself(kernel, monkeypatch):
    def refused(*_):
        raise AssertionError("a NaN would reach outputs that do not see it")

    monkeypatch.setattr("funcnet.ops.conv._toeplitz_forms._filtered", refused)
    w = jax.ShapeDtypeStruct(kernel, "float32")
    x = jax.ShapeDtypeStruct((1, 200, 8 if kernel[1] == 1 else kernel[1]), "float32")
    options = {"padding": "causal", "groups": 8 if kernel[1] == 1 else 1}
    grad = jax.grad(lambda w, x: conv.apply({"w": w}, x, **options).sum(), (0, 1))
    jax.jit(grad).trace(w, x).lower(lowering_platforms=("cpu",))
    with pytest.raises(AssertionError):
        jax.jit(lambda w, x: conv.apply({"w": w}, x, method="fft", **options)).lower(w, x)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, 1e6])
def test_no_output_sees_what_comes_after_it(bad):
    w, x = normal(16, 64, 128).astype(jnp.float32), normal(1, 60, 64, seed=1).astype(jnp.float32)
    y = conv.apply({"w": w}, x, padding="causal")
    changed = (conv.apply({"w": w}, x.at[0, 30, 5].set(bad), padding="causal") != y).any((0, 2))
    assert changed.tolist() == [30 <= t < 46 for t in range(60)]


def test_a_strided_gradient_reaches_what_it_sees():
    """A kernel of 3 taps and a stride of 2 have phases of 2 taps and of 1."""
    w, x = normal(3, 3, 8, 8), normal(1, 9, 9, 8, seed=1)
    y, pull = jax.vjp(lambda x: conv.apply({"w": w}, x, stride=2), x)
    (dx,) = pull(jnp.ones_like(y).at[0, 2, 2].set(jnp.nan))
    assert jnp.isnan(dx).any((0, 2, 3)).tolist() == [3 <= i < 6 for i in range(9)]
    assert jnp.isnan(dx).sum() == 9 * 8


ROUNDING = {"shifted": 4, "unfold": 4, "fold": 4, "crossed": 4, "polyphase": 4, "winograd": 16, "fft": 16}


@pytest.mark.parametrize("method", ROUNDING)
def test_methods_agree_in_float32(method):
    """Their errors are within so many times that of direct."""
    w, x = normal(3, 3, 16, 16).astype(jnp.float32), normal(2, 16, 16, 16, seed=1).astype(jnp.float32)
    exact = conv.reference({"w": w.astype(jnp.float64)}, x.astype(jnp.float64))
    error = lambda how: float(jnp.abs(conv.apply({"w": w}, x, method=how).astype(jnp.float64) - exact).max())
    assert 0 < error(method) <= ROUNDING[method] * error("direct")


@pytest.mark.parametrize("method", ["auto", "direct", "unfold", "winograd", "fft", "polyphase"])
def test_one_program_for_every_platform(method):
    """Exported from a machine that has a CPU only; by default a GPU runs the vendor's convolution."""
    f = jax.jit(jax.grad(lambda w, x: (conv.apply({"w": w}, x, method=method) ** 2).sum(), (0, 1)))
    arguments = normal(3, 3, 2, 4).astype(jnp.float32), IMAGE.astype(jnp.float32)
    exported = jax.export.export(f, platforms=["cpu", "cuda", "tpu"])(*arguments)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    if method == "auto":
        cuda = jax.export.export(f, platforms=["cuda"])(*arguments).mlir_module()
        assert cuda.count("stablehlo.convolution") == 3
    got = exported.call(*arguments)
    want = jax.grad(lambda w, x: (conv.reference({"w": w}, x) ** 2).sum(), (0, 1))(*arguments)
    jax.tree.map(lambda g, v: np.testing.assert_allclose(g, v, rtol=2e-4, atol=2e-4), got, want)


FORMS = {  # what a CPU runs: each of the forms, in float32
    "direct": ((3, 3, 8, 8), (8, 6, 6, 8), {}),
    "unfold": ((3, 3, 3, 8), (8, 6, 6, 3), {}),
    "planes": ((3, 3, 3, 2, 8), (8, 4, 4, 4, 2), {}),
    "shifted": ((3, 3, 1, 8), (8, 6, 6, 8), {"groups": 8}),
    "group by group": ((3, 3, 4, 8), (8, 6, 6, 8), {"groups": 2}),
    "polyphase": ((4, 4, 8, 8), (8, 6, 6, 8), {"stride": 2}),
    "matmul": ((1, 1, 8, 8), (8, 6, 6, 8), {}),
}


@pytest.mark.parametrize("form", FORMS)
def test_sharded_over_batch_and_output_channels(form):
    """The same gradients; and over the batch one all-reduce, no all-gather."""
    kernel, image, options = FORMS[form]
    w, x = (0.1 * normal(*kernel)).astype(jnp.float32), normal(*image, seed=1).astype(jnp.float32)
    grad = jax.jit(jax.grad(lambda w, x: jnp.sum(jnp.sin(conv.apply({"w": w}, x, **options))), (0, 1)))
    want = grad(w, x)
    mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    put = lambda v, *axes: jax.device_put(v, jax.NamedSharding(mesh, jax.P(*axes)))
    over_batch = put(w), put(x, "d")
    assert "all-gather" not in grad.lower(*over_batch).compile().as_text()
    for shards in (over_batch, (put(w, *[None] * (w.ndim - 1), "d"), put(x))):
        jax.tree.map(lambda g, v: np.testing.assert_allclose(g, v, atol=2e-4), grad(*shards), want)


@pytest.mark.parametrize(
    ("method", "options", "needs"),
    [
        ("fft", {"stride": 2}, "stride 1, dilation 1"),
        ("polyphase", {"dilation": 2}, "dilation 1"),
        ("winograd", {"dilation": 2}, "kernels of 1 or 3 taps"),
    ],
)
def test_a_method_says_what_it_needs(method, options, needs, unchecked):
    text = text_of(ValueRangeError, lambda: conv.apply(PARAMS, IMAGE, method=method, **options))
    assert f'method "{method}" does not fit this window' in text
    assert needs in text


def test_pytorch_weights_carry_over():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    weight, x = rng.standard_normal((6, 2, 3, 3)), rng.standard_normal((2, 4, 5, 5))
    y = torch.nn.functional.conv2d(torch.tensor(x), torch.tensor(weight), stride=2, padding=1, groups=2)
    params = {"w": jnp.asarray(np.moveaxis(weight, (1, 0), (-2, -1)))}
    image = jnp.asarray(np.moveaxis(x, 1, -1))
    ours = conv.apply(params, image, stride=2, padding=((1, 1), (1, 1)), groups=2)
    np.testing.assert_allclose(ours, np.moveaxis(y.numpy(), 1, -1), atol=1e-12)


@pytest.mark.parametrize("axes", list(itertools.product((None, 0, -1), (None, 0, 1))), ids=str)
def test_vmap_over_any_axis(axes):
    if axes == (None, None):
        return
    w, x = (normal(3, 2, 3, seed=5), normal(2, 5, 2, seed=6))
    put = lambda v, a: v if a is None else jnp.stack([v, 2 * v + 1, v * v], a)
    ws, xs = put(w, axes[0]), put(x, axes[1])
    f = lambda w, x: (
        conv.apply({"w": w}, x),
        jax.grad(lambda w, x: jnp.sum(conv.apply({"w": w}, x) ** 2), (0, 1))(w, x),
    )
    got = jax.vmap(f, axes)(ws, xs)
    take = lambda v, a, i: v if a is None else jnp.take(v, i, a)
    want = [f(take(ws, axes[0], i), take(xs, axes[1], i)) for i in range(3)]
    jax.tree.map(lambda g, *w: np.testing.assert_allclose(g, jnp.stack(w), atol=1e-10), got, *want)
