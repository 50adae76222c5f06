"""Low rank: the components are the best ones, a factored net is a net, and what is said of it is true."""

import collections
import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

import funcnet as fn
from funcnet import spec
from funcnet.analysis import _maps, lowrank
from funcnet.analysis.layers import layers
from funcnet.errors import DTypeError, ShapeError, StructureError, ValueRangeError
from funcnet.nets import convnet, encoder, maps, mlp, resnet, transformer, vit
from tests.errors import golden
from tests.laws import close

KEY = jax.random.key(0)
MLP = mlp.Config((7, 11, 13, 5))
GPT = transformer.Config(vocabulary=11, context=6, layers=2, heads=2, d=8, d_hidden=12)
IDS = jnp.asarray(np.random.default_rng(0).integers(0, 11, (3, 6)))


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


IMAGES = normal(2, 8, 8, 2)


def _resnet():
    config = resnet.Config(image=(8, 8, 2), channels=(4, 6), blocks=(1, 1), classes=3)
    params, state = resnet.init(KEY, config), resnet.init_state(config)
    apply = lambda params, x, config: resnet.apply(params, state, x, config, train=False)[0]
    return types.SimpleNamespace(apply=apply, specs=resnet.specs), config, IMAGES, params


def _net(net, config, x):
    return lambda: (net, config, x, net.init(KEY, config))


NETS = {
    "mlp": _net(mlp, MLP, normal(4, 7)),
    "convnet": _net(convnet, convnet.Config((8, 8, 2), channels=(3, 5), hidden=7, classes=3), IMAGES),
    "resnet": _resnet,
    "transformer": _net(transformer, GPT, IDS),
    "classes": _net(transformer, dataclasses.replace(GPT, head="sequence", mlp="swiglu", unroll=1), IDS),
    "encoder": _net(encoder, encoder.Config(11, 6, layers=2, heads=2, d=8), IDS),
    "vit": _net(vit, vit.Config(image=(8, 8, 2), patch=(4, 4), layers=2, heads=2, d=8, classes=3), IMAGES),
}


def loud(params, seed=1):
    """Biases that are not 0, so that a lost mean is seen."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: leaf + 0.1 * rng.standard_normal(leaf.shape).astype(leaf.dtype), params)


def full(net, params, config, x):
    """Every map, at the rank that it can have."""
    run = lambda params, x: net.apply(params, x, config)
    return {
        name: each.full for name, each in _maps.maps_of("test", run, params, net.specs(config), x).items()
    }


SLOW = ("resnet", "classes", "encoder", "vit")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in NETS]
)
def test_a_factored_net_of_full_rank_is_the_net(name):
    net, config, x, params = NETS[name]()
    params = loud(params)
    ranks = full(net, params, config, x)
    small = lowrank.compress(net, params, config, x, ranks=ranks)
    run = jax.jit(lambda params: net.apply(params, x, config))
    close(run(small.params), run(params), 1e-4)
    whole = [path for path, leaf in jax.tree.leaves_with_path(small.params) if path[-1].key == "w"]
    assert len(ranks) > 2, "of all nets the maps in the middle"
    assert not [
        path for path in whole if jax.tree_util.keystr(path[:-1], simple=True, separator=".") in ranks
    ]
    like = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), small.params)
    shapes = lowrank.factored(params, net.specs(config), ranks)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), shapes) == like
    facts = lowrank.specs(net.specs(config), ranks)
    spec.fits("test", facts, small.params)
    assert jax.tree.map(lambda s: (s.shape, s.dtype), facts, is_leaf=spec.is_spec) == like


def test_the_components_leave_out_least():
    params, x = loud({"layers": [fn.linear.init(KEY, 9, 6)]}), normal(50, 9) * jnp.arange(9.0) + 3
    config = mlp.Config((9, 6))
    y = np.asarray(mlp.apply(params, x, config), np.float64)
    values = np.linalg.svd(y - y.mean(0), compute_uv=False)

    def left_out(params):
        return ((np.asarray(mlp.apply(params, x, config)) - y) ** 2).sum()

    for r in (1, 3, 5):
        small = lowrank.compress(mlp, params, config, x, ranks={"layers.0": r})
        np.testing.assert_allclose(left_out(small.params), (values[r:] ** 2).sum(), rtol=1e-3)
        kept = (values[:r] ** 2).sum() / (values**2).sum()
        np.testing.assert_allclose(small.layers[0].kept, kept, rtol=1e-5)
        u, s, v = jnp.linalg.svd(params["layers"][0]["w"])
        of_kernel = {"down": u[:, :r] * s[:r], "up": v[:r], "b": params["layers"][0]["b"]}
        assert left_out({"layers": [of_kernel]}) > 1.1 * left_out(small.params)


def test_without_a_bias_they_are_about_zero():
    params, x, config = {"layers": [{"w": normal(5, 4)}]}, normal(30, 5) + 2, mlp.Config((5, 4), bias=False)
    small = lowrank.compress(mlp, params, config, x, ranks={"layers.0": 2})
    assert small.params["layers"][0].keys() == {"down", "up"}
    y = x @ params["layers"][0]["w"]
    rest = np.linalg.svd(y, compute_uv=False)[2:]
    error = ((np.asarray(mlp.apply(small.params, x, config)) - y) ** 2).sum()
    np.testing.assert_allclose(error, (rest**2).sum(), rtol=1e-4)


def test_batches_of_any_size_are_all_at_once():
    params, x = loud(mlp.init(KEY, MLP)), normal(23, 7)
    one, many = (lowrank.compress(mlp, params, MLP, data, 0.6) for data in (x, [x[:9], x[9:20], x[20:]]))
    assert one.ranks == many.ranks
    run = lambda small: mlp.apply(small.params, x, MLP)
    close(run(one), run(many), 1e-4)


def test_far_from_the_origin():
    """The sums are about the mean: E[y²] − m² would have no digit left."""
    w = jnp.linalg.qr(normal(5, 5))[0].astype(jnp.float32)
    x = (normal(200, 5) * jnp.array([3, 2, 1, 0.5, 0.1]) + 1e4).astype(jnp.float32)
    params, config = {"layers": [{"w": w, "b": jnp.zeros(5, jnp.float32)}]}, mlp.Config((5, 5))
    small = lowrank.compress(mlp, params, config, x, ranks={"layers.0": 2})
    y = np.asarray(x, np.float64) @ np.asarray(w, np.float64)
    values = np.linalg.svd(y - y.mean(0), compute_uv=False) ** 2
    np.testing.assert_allclose(small.layers[0].kept, values[:2].sum() / values.sum(), rtol=1e-3)


def test_stacked_layers_have_components_of_their_own_and_one_rank():
    params = loud(transformer.init(KEY, GPT))
    small = lowrank.compress(transformer, params, GPT, IDS, ranks={"blocks.up": 3, "blocks.attention.o": 2})
    up, o = small.params["blocks"]["up"], small.params["blocks"]["attention"]["o"]
    assert (up["down"].shape, up["up"].shape, up["b"].shape) == ((2, 8, 3), (2, 3, 12), (2, 12))
    assert (o["down"].shape, o["up"].shape) == ((2, 2, 4, 2), (2, 2, 8))
    np.testing.assert_allclose(
        up["up"] @ up["up"].swapaxes(1, 2), np.broadcast_to(np.eye(3), (2, 3, 3)), atol=1e-5
    )


@pytest.mark.slow
def test_a_loop_over_layers_sees_the_same():
    params = loud(transformer.init(KEY, GPT))
    looped = dataclasses.replace(GPT, unroll=1, remat=True)
    small = lowrank.compress(transformer, params, GPT, IDS, ranks={"blocks.up": 3})
    again = lowrank.compress(transformer, params, looped, IDS, ranks=small.ranks)
    close(transformer.apply(again.params, IDS, looped), transformer.apply(small.params, IDS, GPT), 1e-4)


def test_flops_are_those_of_the_program_and_as_few_as_asked():
    params, x = mlp.init(KEY, MLP), normal(20, 7)
    count = lambda params: sum(row.flops for row in layers(lambda p, x: mlp.apply(p, x, MLP), params, x))
    for share in (0.9, 0.7, 0.5, 0.35):
        small = lowrank.compress(mlp, params, MLP, x, share)
        assert small.flops == (count(params), count(small.params))
        assert 0.5 * share < small.flops[1] / small.flops[0] <= share
        assert sum(layer.flops[1] for layer in small.layers) == small.flops[1]


def test_the_cheapest_change_comes_first():
    """One map gives what lies in two directions: it is factored, and nothing changes."""
    params = mlp.init(KEY, mlp.Config((20, 20, 20)))
    w = params["layers"][0]["w"]
    params["layers"][0] = {"w": jnp.outer(w[:, 0], w[0]) + jnp.outer(w[:, 1], w[1]), "b": normal(20)}
    x = normal(40, 20)
    small = lowrank.compress(mlp, params, mlp.Config((20, 20, 20)), x, 0.75)
    assert list(small.ranks) == ["layers.0"]
    config = mlp.Config((20, 20, 20))
    close(mlp.apply(small.params, x, config), mlp.apply(params, x, config), 1e-4)


def test_groups_stay_whole_and_options_go_along():
    def apply(params, x, config):
        x = fn.relu.apply(maps.conv(params["one"], x, stride=2, padding_mode="circular"))
        return maps.conv(params["two"], x, groups=2).mean((1, 2))

    params = {
        "one": fn.conv.init(KEY, 4, 6, kernel=(3, 3)),
        "two": fn.conv.init(KEY, 6, 8, kernel=(3, 3), groups=2),
    }
    facts = {"one": fn.conv.specs(params["one"]), "two": fn.conv.specs(params["two"], groups=2)}
    x = normal(3, 8, 8, 4)
    small = lowrank.compress(apply, params, None, x, specs=facts, ranks={"one": 6})
    assert [layer.path for layer in small.layers] == ["one"]
    close(apply(small.params, x, None), apply(params, x, None), 1e-4)
    read = lowrank.compress(
        lambda p, x, c: apply({**p, "two": params["two"]}, x, c), {"one": params["one"]}, None, x, 0.9
    )
    assert list(read.ranks) == ["one"], "without specs they are read off the program"


def test_bfloat16_params_stay_bfloat16():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), mlp.init(KEY, MLP))
    small = lowrank.compress(mlp, params, MLP, normal(20, 7).astype(jnp.bfloat16), 0.5)
    assert {leaf.dtype for leaf in jax.tree.leaves(small.params)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.slow
def test_a_compressed_net_trains_by_its_matrices_and_decodes():
    params = transformer.init(KEY, GPT)
    small = lowrank.compress(transformer, params, GPT, IDS, 0.7)
    facts = lowrank.specs(transformer.specs(GPT), small.ranks)
    optimizer = fn.optim.muon(0.01, facts)
    loss = lambda params: fn.cross_entropy.apply(
        transformer.apply(params, IDS[:, :-1], GPT), IDS[:, 1:]
    ).mean()
    value, grads = jax.value_and_grad(loss)(small.params)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = optimizer.update(grads, optimizer.init(small.params), small.params)
    assert loss(optax.apply_updates(small.params, updates)) < value
    cache = transformer.init_cache(GPT, 3, 6)
    first, cache = transformer.decode(small.params, IDS[:, :4], cache, GPT)
    rest, _ = transformer.decode(small.params, IDS[:, 4:], cache, GPT)
    close(jnp.concatenate([first, rest], 1), transformer.apply(small.params, IDS, GPT), 1e-4)


def test_what_has_changed():
    identity = lambda params, x, config: x * params
    x = np.array([[2.0, 1], [1, 2], [3, 1], [1, 3.0]])
    found = lowrank.changed(identity, jnp.ones(2), jnp.array([1.0, 2.5]), None, x, np.array([0, 1, 1, 0]))
    assert found[:2] == (4, 1)
    assert found.accuracy == (0.5, 0.25)
    np.testing.assert_allclose(found.at_most, scipy.stats.beta.ppf(0.95, 2, 3))
    # Below the bound, one of so few or fewer has 5 %.
    np.testing.assert_allclose(scipy.stats.binom.cdf(1, 4, found.at_most), 0.05)
    several = lowrank.changed(identity, jnp.ones(2), jnp.ones(2), None, [x, x[:1]])
    assert several[:2] + several[3:] == (5, 0, None)


@pytest.mark.slow
def test_a_bound_that_is_certified_holds():
    config = convnet.Config((8, 8, 2), channels=(3, 5), depth=2, hidden=7, classes=3)
    params, x = loud(convnet.init(KEY, config)), normal(5, 8, 8, 2)
    small = lowrank.compress(convnet, params, config, x, 0.5)
    changes = lambda small, x: jnp.linalg.norm(
        convnet.apply(small, x, config) - convnet.apply(params, x, config), axis=1
    )
    for tree in (small.params, loud(small.params, seed=3)):  # further trained, say
        bounds, reason = lowrank.certified(convnet, params, tree, config, [x, normal(3, 8, 8, 2, seed=5)])
        assert reason == ""
        found = np.concatenate([changes(tree, x), changes(tree, normal(3, 8, 8, 2, seed=5))])
        assert (bounds >= found * (1 - 1e-6)).all()
        assert (bounds > 2 * found).any(), "norms multiply up"


def test_the_bound_is_exact_for_the_last_map_and_grows_by_norms():
    params = {"layers": [{"w": 3 * jnp.eye(4)}, {"w": 2 * jnp.eye(4)}]}
    config, x = mlp.Config((4, 4, 4), bias=False), jnp.abs(normal(6, 4))
    last = {"layers": [params["layers"][0], {"w": jnp.eye(4)}]}
    first = {"layers": [{"w": 2 * jnp.eye(4)}, params["layers"][1]]}
    for tree, change in ((last, 3), (first, 2)):  # (2 − 1) · 3 x; 2 · (3 − 2) x
        bounds, _ = lowrank.certified(mlp, params, tree, config, x)
        np.testing.assert_allclose(bounds, change * jnp.linalg.norm(x, axis=1), rtol=1e-5)


def test_the_bound_of_a_map_called_twice_is_that_of_the_call_it_changes_most():
    params, x = {"w": normal(5, 5, seed=0)}, normal(6, 5, seed=1)
    of = {"w": fn.linear.specs(params)["w"]}
    apply = lambda p, x, config: maps.linear(p, x) + maps.linear(p, x - x)  # of 0 nothing changes
    small = {"w": params["w"] + 0.3 * normal(5, 5, seed=2)}
    bounds, _ = lowrank.certified(apply, params, small, None, x, specs=of)
    change = np.asarray(apply(small, x, None) - apply(params, x, None))
    assert (np.linalg.norm(change, axis=1) <= 1.0001 * bounds).all()


def test_params_in_another_order_have_the_same_bound():
    x = normal(6, 5, seed=1)
    params = {"w": normal(5, 3, seed=0), "b": normal(3, seed=3)}
    small, of = {**params, "w": params["w"] + 1}, fn.linear.specs(params)
    apply = lambda p, x, config: maps.linear(p, x)
    ordered = [collections.OrderedDict((name, each[name]) for name in ("w", "b")) for each in (params, of)]
    want, _ = lowrank.certified(apply, params, small, None, x, specs=of)
    found, _ = lowrank.certified(apply, ordered[0], small, None, x, specs=ordered[1])
    np.testing.assert_array_equal(found, want)


def test_through_vmap_and_from_factored_params_there_is_no_bound():
    x = normal(6, 5, seed=1)
    params = {"w": normal(5, 3, seed=0)}
    mapped = lambda p, x, config: jax.vmap(lambda x: maps.linear(p, x))(x)
    found, reason = lowrank.certified(mapped, params, params, None, x, specs=fn.linear.specs(params))
    assert (found, reason) == (None, "none is known through linear")
    factored = {"down": normal(5, 2, seed=0), "up": normal(2, 3, seed=1)}
    of = lowrank.specs({"l": fn.linear.specs(params)}, {"l": 2})
    apply = lambda p, x, config: maps.linear(p["l"], x)
    found, reason = lowrank.certified(apply, {"l": factored}, {"l": factored}, None, x, specs=of)
    assert (found, reason) == (None, "params are factored themselves")


def test_a_change_of_what_is_no_map_has_no_bound():
    apply = lambda params, x, config: maps.linear(params["map"], x) + params["offset"]
    params = {"map": {"w": jnp.eye(3)}, "offset": jnp.zeros(3)}
    facts = {"map": fn.linear.specs(params["map"]), "offset": spec.of(params["offset"], "d")}
    other = {**params, "offset": jnp.ones(3)}
    bounds, reason = lowrank.certified(apply, params, other, None, normal(2, 3), specs=facts)
    assert (bounds, reason) == (None, "offset, which is of no map, has changed")
    bounds, _ = lowrank.certified(apply, params, params, None, normal(2, 3), specs=facts)
    assert (bounds == 0).all()


def test_through_attention_there_is_no_bound():
    params = transformer.init(KEY, GPT)
    bounds, reason = lowrank.certified(transformer, params, params, GPT, IDS)
    assert bounds is None
    assert "attention" in reason


def bad(**changes):
    given = {"net": mlp, "params": mlp.init(KEY, MLP), "config": MLP, "data": normal(9, 7)} | changes
    return lambda: lowrank.compress(**given)


def itself(params, x, config):
    return fn.linear.apply(params, x)


ONE = fn.linear.init(KEY, 4, 4)
test_errors = golden(
    [
        (
            bad(data=normal(9, 7) * np.nan),
            ValueRangeError,
            "lowrank.compress: what layers.0 gives is not finite, or its squares are not.\n"
            "  expected  params and data of which all maps give finite numbers\n"
            "  got       layers.0: NaN or infinity\n"
            "  hint      fn.find_nan names the operation that made it.",
        ),
        (
            bad(ranks=["layers.1"]),
            DTypeError,
            "lowrank.compress: ranks is not a dict.\n"
            "  expected  ranks: those of maps by their paths\n"
            "  got       ranks: a list",
        ),
        (
            lambda: lowrank.changed(lambda p, x, c: (x, x), ONE, ONE, None, normal(2, 4)),
            DTypeError,
            "lowrank.changed: the net gives no array of classes.\n"
            "  expected  net.apply: logits [n, ..., classes]\n"
            "  got       net.apply: a tuple",
        ),
        (
            lambda: lowrank.certified(itself, ONE, [], None, normal(2, 4), specs=fn.linear.specs(ONE)),
            StructureError,
            "lowrank.certified: small is no tree like params.\n"
            '  expected  params, in which {"down", "up"} may stand in the place of {"w"}\n'
            "  got       a list",
        ),
        (
            bad(flops=0),
            ValueRangeError,
            "lowrank.compress: flops is 0, outside its range.\n"
            "  expected  0 < flops < ∞\n  got       flops = 0",
        ),
        (
            bad(flops=1.5),
            ValueRangeError,
            "lowrank.compress: flops is 1.5.\n  expected  a share above 0 and below 1",
        ),
        (
            bad(flops=0.01),
            ValueRangeError,
            "lowrank.compress: with rank 1 everywhere the net still has 21.1% of its FLOPs.\n"
            "  expected  0.211 or more\n  got       0.01",
        ),
        (
            bad(ranks={"layers.7": 1}),
            StructureError,
            "lowrank.compress: 'layers.7' is no map that can be factored.\n"
            "  expected  layers.0, layers.1, layers.2\n  got       'layers.7'",
        ),
        (
            bad(ranks={"layers.1": 12}),
            ValueRangeError,
            "lowrank.compress: the rank of layers.1 is 12.\n  expected  1 to 11\n  got       12",
        ),
        (
            bad(net=itself, params=ONE, config=None, data=normal(2, 4), specs=fn.linear.specs(ONE)),
            StructureError,
            "lowrank.compress: none of the net's maps can be factored.\n"
            '  expected  params with {"w"} that the net hands to nets.maps.linear, '
            "nets.maps.conv or multihead\n"
            '  got       linear.apply: params has no "w".\n'
            "  hint      call fn.nets.maps.linear(params, x) in place of fn.linear.apply(params, x).",
        ),
        (
            bad(net=3),
            DTypeError,
            "lowrank.compress: net is no function and has no apply.\n"
            "  expected  net.apply(params, x, config), as fn.nets.convnet has it, or such a function\n"
            "  got       3 (int)",
        ),
        (
            bad(data=[]),
            StructureError,
            "lowrank.compress: there are no data.\n"
            "  expected  inputs of the net [n, ...], or a list of batches of them\n  got       a list",
        ),
        (
            lambda: lowrank.changed(
                mlp, mlp.init(KEY, MLP), mlp.init(KEY, MLP), MLP, normal(9, 7), np.zeros(8)
            ),
            ShapeError,
            "lowrank.changed: there are 8 labels for 9 decisions.\n  expected  9\n  got       8",
        ),
        (
            lambda: maps.linear({"down": normal(3, 2), "up": normal(3, 5)}, normal(3)),
            ShapeError,
            "nets.maps.linear: the parts of params do not fit together.\n"
            '  expected  params["up"]: float[2, ...]     (params["down"]: float64[3, 2])\n'
            '  got       params["up"]: float64[3, 5]',
        ),
        (
            lambda: maps.conv({"down": normal(3, 3, 4, 2), "up": normal(2, 5)}, normal(8, 8, 3)),
            ShapeError,
            "nets.maps.conv: x has 3 features in its last axis, "
            'but params["down"] (float64[3, 3, 4, 2]) takes 4.\n'
            "  expected  x: float[*n, 4]\n  got       x: float64[8, 8, 3]",
        ),
    ]
)
