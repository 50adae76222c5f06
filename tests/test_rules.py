"""What the laws do not show: the switch, the recorder, the policy, eager caching, sharded batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.tree_util import Partial

import funcnet as fn
from funcnet import rules
from funcnet.errors import ValueRangeError


def key(i=0):
    return jax.random.key(i)


def normal(*shape):
    return jax.random.normal(key(), shape)


# ---- autodiff("jax") --------------------------------------------------------------------------------------


def lying(x):
    return x**2, Partial(_lying_pullback, x)


def _lying_pullback(x, dy):
    return (100.0 * dy * jnp.ones_like(x),)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jitted before"])
def test_autodiff_switches_the_rule(wrap):
    grad = wrap(jax.grad(lambda x: rules.call(lying, x).sum()))
    x = jnp.asarray([1.0, 2.0])
    assert grad(x).tolist() == [100.0, 100.0]
    with fn.autodiff("jax"):
        assert grad(x).tolist() == [2.0, 4.0]
        with fn.autodiff("hand"):
            assert grad(x).tolist() == [100.0, 100.0]
    assert grad(x).tolist() == [100.0, 100.0]


def test_autodiff_switches_inside_scan():
    def body(total, x):
        return total + rules.call(lying, x), None

    grad = jax.jit(jax.grad(lambda xs: jax.lax.scan(body, jnp.zeros(()), xs)[0]))
    xs = jnp.asarray([1.0, 2.0])
    assert grad(xs).tolist() == [100.0, 100.0]
    with fn.autodiff("jax"):
        assert grad(xs).tolist() == [2.0, 4.0]


def test_autodiff_refuses_another_name():
    with pytest.raises(ValueRangeError, match='there are "hand" and "jax"'), fn.autodiff("torch"):
        pass


def test_autodiff_jax_binds_no_primitive_of_ours():
    params, x = fn.conv.init(key(), 3, 5, kernel=(3, 3)), normal(2, 7, 7, 3)

    def names(mode):
        with fn.autodiff(mode):
            return {str(e.primitive) for e in jax.make_jaxpr(fn.conv.apply)(params, x).eqns}

    assert "conv" in names("hand")
    assert "conv" not in names("jax")
    assert "conv_general_dilated" in names("jax")


# ---- what the rule keeps ----------------------------------------------------------------------------------


def held(f, *args):
    leaves = jax.tree.leaves(jax.eval_shape(lambda *a: jax.vjp(f, *a)[1], *args))
    return sorted((v.shape, str(v.dtype)) for v in leaves)


@pytest.mark.parametrize("op", [fn.layer_norm, fn.relu, fn.softmax, fn.tanh], ids=lambda m: m.__name__)
def test_reverse_mode_holds_the_residuals_of_the_formula(op):
    args = (fn.layer_norm.init(key(), 7), normal(5, 7)) if op is fn.layer_norm else (normal(5, 7),)
    residuals = jax.tree.leaves(jax.eval_shape(op.vjp, *args)[1])
    assert set(held(op.apply, *args)) <= {(v.shape, str(v.dtype)) for v in residuals}
    assert len(held(op.apply, *args)) <= len(residuals)


def test_products_saveable_keeps_products():
    params, x = fn.conv.init(key(), 3, 3, kernel=(3, 3)), normal(2, 7, 7, 3)

    def convolutions(policy):
        def loss(params, x):
            h = jnp.sin(fn.conv.apply(params, x))
            return jnp.sum(jnp.sin(fn.conv.apply(params, h)))

        jaxpr = jax.make_jaxpr(jax.grad(jax.checkpoint(loss, policy=policy)))(params, x)
        return str(jaxpr).count("= conv[")

    saved, recomputed = convolutions(fn.rules.products_saveable), convolutions(None)
    assert saved < recomputed
    assert (
        convolutions(jax.checkpoint_policies.dots_saveable) == recomputed
    )  # it does not know our primitives


# ---- record -----------------------------------------------------------------------------------------------


def test_record_lists_calls_with_values_or_shapes():
    params, x = fn.linear.init(key(), 3, 5), normal(7, 3)

    @jax.jit
    def f(params, x):
        return fn.relu.apply(fn.linear.apply(params, x))

    f(params, x)  # traced before: the recorder must see it all the same
    for _ in range(2):
        with rules.record() as calls:
            f(params, x)
            fn.softmax.apply(x, axis=0)
        assert [c.operation for c in calls] == [fn.linear, fn.relu, fn.softmax]
        assert calls[0].args[1] == jax.ShapeDtypeStruct((7, 3), x.dtype)
        assert calls[2].args[0] is x
        assert calls[2].options == {"axis": 0}
    with rules.record() as calls:
        pass
    assert calls == []


@pytest.mark.parametrize("every", [False, True])
def test_metered_hands_on_what_has_parameters_or_every_operation(every):
    seen = []

    def meter(f, formula, at, args, options):
        seen.append((f.__module__.rpartition(".")[2], at))
        with rules.metered(None):
            return f(*args, **options)

    params, x = fn.linear.init(key(), 3, 3), normal(2, 3)
    with rules.metered(meter, every=every):
        y = fn.relu.apply(fn.linear.apply(params, x))
    np.testing.assert_array_equal(y, fn.relu.apply(fn.linear.apply(params, x)))
    assert seen == [("linear", 0)] + [("relu", None)] * every


def test_record_reads_a_call_however_it_is_written():
    x = normal(7, 3)
    with rules.record() as calls:
        fn.gelu.apply(x, True)
        fn.gelu.apply(approximate=True, x=x)
    for call in calls:
        (given,) = call.args
        assert given is x
        assert call.options == {"approximate": True}


# ---- no work twice ----------------------------------------------------------------------------------------


def test_equal_calls_compile_once():
    params, x = fn.layer_norm.init(key(), 7), normal(5, 7)
    grad = lambda: jax.jvp(lambda x: fn.layer_norm.apply(params, x), (x,), (x,))
    grad()
    size = rules._linear_p.impl._cache_size()
    grad()
    assert rules._linear_p.impl._cache_size() == size
    again = {"w": params["w"] * 2, "b": params["b"]}
    jax.jvp(lambda x: fn.layer_norm.apply(again, x), (x,), (x,))
    assert rules._linear_p.impl._cache_size() == size


def test_bind_tells_one_from_true():
    assert rules.bind(lying, n=1) is rules.bind(lying, n=1)
    assert rules.bind(lying, n=1) is not rules.bind(lying, n=True)


# ---- sharded batches --------------------------------------------------------------------------------------


def test_a_batch_sharded_over_devices_is_not_gathered():
    """The gradient of a convolution over a sharded batch: partial sums and one all-reduce, no all-gather."""
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
    params, x = fn.conv.init(key(), 3, 5, kernel=(3, 3)), normal(8, 6, 6, 3)
    grad = jax.jit(jax.grad(lambda p, x: jnp.sum(jnp.sin(fn.conv.apply(p, x))), (0, 1)))
    want = grad(params, x)
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("d")))
    replicated = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    text = grad.lower(replicated, sharded).compile().as_text()
    assert "all-gather" not in text
    got = grad(replicated, sharded)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), got, want)


def test_parameters_that_an_operation_does_not_know(unchecked):
    params, x = {"w": jnp.ones(3), "scale": jnp.ones(3)}, normal(5, 3)
    with pytest.raises(fn.errors.StructureError, match="no gradient for parameters that it does not know"):
        jax.grad(lambda p: fn.layer_norm.apply(p, x).sum())(params)
