"""Every net on four devices, as on one; where its parameters lie; what FSDP sends and keeps."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding

import funcnet as fn
from benchmarks.studies import meshes
from funcnet.nets import stack, transformer
from tests.shard import nets

ALL = [(name, layout) for name in nets.NETS for layout in nets.LAYOUTS]
FAST = [("mlp", "fsdp x tp"), ("transformer, llama", "fsdp x tp")]


@pytest.mark.parametrize(("name", "layout"), FAST)
def test_nets_on_explicit_axes(name, layout):
    nets.law(name, layout)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto])
@pytest.mark.parametrize(("name", "layout"), ALL)
def test_every_net(name, layout, kind):
    nets.law(name, layout, kind)


def test_where_parameters_lie():
    """``python -m tests.shard.nets`` writes the table anew: read what has changed."""
    assert nets.TABLE.read_text("utf-8") == nets.table()


def test_generate_gives_the_tokens_of_one_device():
    """Two heads of keys on two devices, a vocabulary that is split, sequences of two lengths."""
    params, _ = nets.drawn("transformer, llama")
    prompt, options = [[1, 2, 3], [5]], {"max_new_tokens": 3, "temperature": 1.0, "key": nets.KEY}
    want = fn.generate(params, prompt, nets.LLAMA, **options)
    on, rules = nets.mesh("fsdp x tp"), nets.LAYOUTS["fsdp x tp"][1]
    with jax.set_mesh(on):
        placed = jax.device_put(params, fn.shard.of(transformer.specs(nets.LLAMA), rules, on, whole_below=1))
        np.testing.assert_array_equal(fn.generate(placed, prompt, nets.LLAMA, **options), want)


def test_a_cache_is_split_as_the_heads_of_keys_are():
    params, ids = nets.drawn("transformer, llama")
    on, rules = nets.mesh("fsdp x tp"), nets.LAYOUTS["fsdp x tp"][1]
    with jax.set_mesh(on):
        placed = jax.device_put(params, fn.shard.of(transformer.specs(nets.LLAMA), rules, on, whole_below=1))
        ids = jax.device_put(ids, jax.P("data"))
        step = lambda params, ids, cache: transformer.decode(params, ids, cache, nets.LLAMA)
        _, cache = jax.eval_shape(step, placed, ids, transformer.init_cache(nets.LLAMA, 4, 8))
    assert cache[0]["k"].sharding.spec == jax.P("data", "tensor", None, None)
    assert cache[0]["length"].sharding.spec == jax.P("data")


MIXED = dataclasses.replace(nets.LLAMA, experts=4, remat=False)


@pytest.mark.parametrize(
    ("capacity", "sizes", "rules"),
    [
        (1.0, {"data": 2, "experts": 2}, {"experts": "experts"}),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                (None, {"data": 2, "experts": 2}, {"experts": "experts", "d": "data"}),
                (1.0, {"experts": 2, "tensor": 2}, {"experts": "experts", **nets.TP}),
            ]
        ),
    ],
)
def test_a_transformer_with_experts(capacity, sizes, rules):
    """Loss, facts and gradients of one device; rows go to their experts where a capacity says how many."""
    config = dataclasses.replace(MIXED, capacity=capacity)

    def loss(params, ids):
        logits, facts = transformer.apply(params, ids, config, facts=True)
        more = 0.1 * facts["balance"] + 0.1 * facts["z"]
        return jax.numpy.sin(3 * logits).mean() + more, facts

    program = lambda: jax.jit(jax.value_and_grad(loss, has_aux=True))
    params = jax.jit(lambda key: transformer.init(key, config))(nets.KEY)
    ids = np.random.default_rng(0).integers(0, 16, nets.TOKENS, np.int32)
    want = program()(params, ids)
    assert (want[0][1]["dropped"] > 0) == (capacity is not None)
    on = jax.make_mesh(tuple(sizes.values()), tuple(sizes))
    with jax.set_mesh(on):
        to = fn.shard.of(transformer.specs(config), rules, on, whole_below=1)
        rows = jax.P(tuple(name for name in sizes if name != "tensor"))
        placed = jax.device_put(params, to), jax.device_put(ids, rows)
        compiled = program().lower(*placed).compile()
        got = compiled(*placed)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=0, atol=1e-6)
    for grad, place in zip(jax.tree.leaves(got[1]), jax.tree.leaves(to), strict=True):
        assert grad.sharding.is_equivalent_to(place, grad.ndim)
    kinds = {one.kind for one in fn.shard.collectives(compiled)}
    assert ("all-to-all" in kinds) == (capacity is not None)


def loops(layout):
    """Loops over layers in the program of the loss, unroll not said."""
    net, config, _ = nets.NETS["transformer"]
    params, ids = nets.drawn("transformer")
    on = nets.mesh(layout)
    with jax.set_mesh(on):
        to = fn.shard.of(net.specs(config), nets.LAYOUTS[layout][1], on, whole_below=1)
        placed = jax.device_put((params, ids), (to, NamedSharding(on, jax.P("data"))))
        return str(jax.make_jaxpr(lambda p, ids: net.hidden(p, ids, config))(*placed)).count("scan[")


def test_layers_that_gather_their_parameters_are_run_in_a_loop():
    assert [loops(layout) > 0 for layout in nets.LAYOUTS] == [False, True, False, False, True]


def sent(kind):
    """Bytes of FSDP's program, gains and all split."""
    config = dataclasses.replace(meshes.CONFIG, layers=2)
    program = meshes.compiled(config, {"data": 4}, {"d": "data"}, meshes.BATCH, kind)
    return sum(one.sent for one in fn.shard.collectives(program))


@pytest.mark.slow
def test_fsdp_on_auto_axes_sends_parameters_and_not_the_batch(monkeypatch):
    """The careless program, shardings of its arguments and no more, is the broken rule."""
    explicit = sent(AxisType.Explicit)
    assert sent(AxisType.Auto) <= 1.05 * explicit
    monkeypatch.setattr(stack, "examples_apart", lambda x: x)
    assert sent(AxisType.Auto) > 4 * explicit


@pytest.mark.slow
def test_fsdp_with_remat_keeps_a_sixth_of_what_a_replicated_step_does():
    (row,) = meshes.rows(["remat"])
    assert row["quotient"] >= 6
