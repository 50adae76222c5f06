"""A look inside: what is collected, replaced and differentiated is what a plain loop in NumPy has there."""

import functools
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import funcnet as fn
from funcnet import taps
from funcnet.errors import DTypeError, ShapeError, StructureError, ValueRangeError
from funcnet.nets import convnet, encoder, mlp, resnet, stack, transformer, vit
from tests.errors import golden

LAYERS, N, D = 5, 2, 3
FORMS = [  # how the layers are run: unroll, remat, how long the pattern over them is
    *itertools.product((1, 2, LAYERS), (False, True), (1, 2)),
]


def weights():
    return {"w": np.random.default_rng(0).standard_normal((LAYERS, D, D))}


def inputs():
    return np.random.default_rng(1).standard_normal((N, D))


# ---- a small net, and the same in NumPy -------------------------------------------------------------------


def block(gain, p, x):
    x = fn.tap("in", x)
    with taps.scope("mlp"):
        h = fn.tap("hidden", gain * jnp.tanh(x @ p["w"]))
    return fn.tap("out", x + h)


def net(params, x, unroll=1, remat=False, period=1):
    pattern = [functools.partial(block, 1.0 + i) for i in range(period)]
    with taps.scope("blocks"):
        x = stack.apply(pattern, params, x, unroll=unroll, remat=remat)
    return (fn.tap("last", x) ** 2).sum()


def naive(params, x, period=1, change=lambda name, layer, x: x):
    """The loss, and what the taps of `net` have seen, layer by layer."""
    seen = {name: [] for name in ("blocks.in", "blocks.mlp.hidden", "blocks.out")}

    def tapped(name, layer, x):
        seen[name].append(change(name, layer, x))
        return seen[name][-1]

    for layer in range(LAYERS):
        x = tapped("blocks.in", layer, x)
        gain = 1.0 + layer % period
        h = tapped("blocks.mlp.hidden", layer, gain * np.tanh(x @ params["w"][layer]))
        x = tapped("blocks.out", layer, x + h)
    last = change("last", 0, x)
    return (last**2).sum(), {name: np.stack(values) for name, values in seen.items()} | {"last": last}


def same(got, want, tolerance=1e-10):
    assert got.keys() == want.keys()
    for name in want:
        assert got[name].shape == want[name].shape, name
        np.testing.assert_allclose(got[name], want[name], rtol=tolerance, atol=tolerance, err_msg=name)


@functools.cache
def program(look, unroll, remat, period, **options):
    f = functools.partial(net, unroll=unroll, remat=remat, period=period)
    return jax.jit(look(f, **options) if look else f)


def law_of_values(collect, **form):
    """Collected is what the loop has, and the result does not change."""
    y, values = collect(**form)(weights(), inputs())
    same(values, naive(weights(), inputs(), form["period"])[1])
    np.testing.assert_allclose(y, program(None, **form)(weights(), inputs()), rtol=1e-14)


def law_of_cotangents(grads, **form):
    """⟨cotangent, d⟩ is the finite difference of the loop with its values moved along d; so for arguments."""
    rng = np.random.default_rng(2)
    seen = grads(**form)(weights(), inputs())
    same(seen.values, naive(weights(), inputs(), form["period"])[1])
    for name, cotangent in seen.cotangents.items():
        d, eps = rng.standard_normal(cotangent.shape), 1e-5

        def moved(eps, name=name, d=d):
            step = lambda path, layer, x: x + eps * (d[layer] if d.ndim > 2 else d) if path == name else x
            return naive(weights(), inputs(), form["period"], step)[0]

        want = (moved(eps) - moved(-eps)) / (2 * eps)
        np.testing.assert_allclose((cotangent * d).sum(), want, rtol=1e-6, err_msg=name)
    d = rng.standard_normal((LAYERS, D, D))
    loss = lambda eps: naive({"w": weights()["w"] + eps * d}, inputs(), form["period"])[0]
    np.testing.assert_allclose((seen.grads["w"] * d).sum(), (loss(1e-5) - loss(-1e-5)) / 2e-5, rtol=1e-6)


def law_of_changes(replace, **form):
    """Layer 3 alone is changed, at every place of the stack."""
    f = functools.partial(net, **form)
    new = replace(
        f, {"blocks.mlp.*": lambda x, layer: jnp.where(layer == 3, 2 * x + layer.astype(x.dtype), x)}
    )
    change = lambda name, layer, x: 2 * x + 3 if (name, layer) == ("blocks.mlp.hidden", 3) else x
    want = naive(weights(), inputs(), form["period"], change)[0]
    np.testing.assert_allclose(jax.jit(new)(weights(), inputs()), want, rtol=1e-10)


def law_of_silence(tap):
    """Nobody looking, the program is that without taps: as JAX traces it, and as XLA is given it."""

    def f(x, tap):
        return tap("b", jnp.sin(tap("a", x))) * 2

    plain, tapped = (jax.jit(functools.partial(f, tap=t)) for t in (lambda name, x: x, tap))
    assert str(jax.make_jaxpr(plain)(1.0)) == str(jax.make_jaxpr(tapped)(1.0))
    assert plain.lower(1.0).as_text() == tapped.lower(1.0).as_text()


FAST = [form for form in FORMS if form in ((1, True, 2), (LAYERS, False, 2))]
forms = pytest.mark.parametrize(
    "form",
    [pytest.param(f, marks=() if f in FAST else pytest.mark.slow, id=str(f)) for f in FORMS],
)


@forms
def test_laws(form):
    form = dict(zip(("unroll", "remat", "period"), form, strict=True))
    law_of_values(functools.partial(program, taps.collect), **form)
    law_of_cotangents(functools.partial(program, taps.grads, argnums=0), **form)
    law_of_changes(taps.replace, **form)


def test_law_of_silence():
    law_of_silence(fn.tap)
    with pytest.raises(AssertionError):
        law_of_silence(lambda name, x: jax.lax.optimization_barrier(x))


def broken_collect(mend):
    def collect(**form):
        def broken(*args):
            y, values = program(taps.collect, **form)(*args)
            return y, {name: mend(x) if name.startswith("blocks") else x for name, x in values.items()}

        return broken

    return collect


@pytest.mark.parametrize(
    "mend",
    [
        lambda x: x[::-1],
        lambda x: jnp.concatenate([x[:-1:2], x[1::2], x[-1:]]),  # place in the pattern before round
        lambda x: jnp.concatenate([x[:-1], x[-2:-1]]),  # the rest lost
        lambda x: x * 1.0001,
    ],
)
def test_law_of_values_rejects(mend):
    with pytest.raises(AssertionError):
        law_of_values(broken_collect(mend), unroll=1, remat=True, period=2)


def test_law_of_cotangents_rejects():
    def grads(**form):
        def broken(*args):
            seen = program(taps.grads, argnums=0, **form)(*args)
            later = seen.cotangents["blocks.out"]  # of "in" only what goes past the mlp
            return seen._replace(cotangents=seen.cotangents | {"blocks.in": later})

        return broken

    with pytest.raises(AssertionError, match=r"blocks\.in"):
        law_of_cotangents(grads, unroll=1, remat=True, period=2)


def test_law_of_changes_rejects():
    def replace(f, changes):  # the number of the round, not that of the layer
        return taps.replace(f, {name: lambda x, i, g=g: g(x, i // 2) for name, g in changes.items()})

    with pytest.raises(AssertionError):
        law_of_changes(replace, unroll=1, remat=False, period=2)


# ---- every construct of JAX -------------------------------------------------------------------------------


def constructs(x):
    """One tap in each; x is an array [2]."""
    x = fn.tap("plain", x * x)

    def step(c, i):
        c = fn.tap("scan.carry", c * i)
        return c, fn.tap("scan.number", jnp.int32(7))

    x, _ = jax.lax.scan(step, x, jnp.arange(1.0, 4.0))
    x = jax.lax.cond(
        x.sum() > 0,
        lambda x: fn.tap("both", fn.tap("positive", jnp.sin(x))),
        lambda x: fn.tap("both", fn.tap("count", jnp.int32(3)).astype(x.dtype) * x),
        x,
    )
    x = jax.checkpoint(lambda x: jnp.exp(fn.tap("checkpoint", x)))(x)
    x = jax.jit(lambda x: fn.tap("jit", x + 1))(x)
    return jax.vmap(lambda x: fn.tap("vmap", 3 * x))(x)


def naive_constructs(x):
    a = x * x
    b = np.stack([a * 1, a * 2, a * 6])
    c = np.sin(b[-1])
    d = np.exp(c) + 1
    seen = {
        "plain": a,
        "scan.carry": b,
        "scan.number": np.full(3, 7),
        "positive": c,
        "both": c,
        "count": np.array(0),
    }
    return 3 * d, seen | {"checkpoint": c, "jit": d, "vmap": 3 * d}


X = np.array([0.5, 0.7])


def test_every_construct_by_every_transformation():
    def all_of_them(x):
        y, values = taps.collect(constructs)(x)
        inner = taps.collect(jax.value_and_grad(lambda x: constructs(x).sum()))(x)
        outer = jax.grad(lambda x: taps.collect(constructs)(x)[1]["jit"].sum())(x)
        many = jax.vmap(taps.collect(constructs))(jnp.stack([x, 2 * x]))[1]
        tangent = jax.jvp(taps.collect(constructs), (x,), (jnp.ones(2),))[1][1]["positive"]
        return y, values, inner, outer, many, tangent

    y, values, (_, inner), outer, many, tangent = jax.jit(all_of_them)(X)
    want_y, want = naive_constructs(X)
    np.testing.assert_allclose(y, want_y)
    same(values, want)
    inner.pop("scan.number")  # the same in each step, and so out of the loop
    same(inner, {name: x for name, x in want.items() if name != "scan.number"})
    same({name: v[1] for name, v in many.items()}, naive_constructs(2 * X)[1])
    slope = 12 * X * np.cos(6 * X**2)
    np.testing.assert_allclose(tangent, slope)
    np.testing.assert_allclose(outer, np.exp(np.sin(6 * X**2)) * slope)


def test_a_branch_that_is_not_taken_is_nan_and_has_no_cotangent():
    seen = jax.jit(taps.grads(lambda x: constructs(x).sum()))(X)
    assert seen.cotangents.keys() == seen.values.keys() - {"count", "scan.number"}
    np.testing.assert_allclose(seen.cotangents["positive"], 3 * np.exp(np.sin(6 * X**2)))

    def branches(x):
        return jax.lax.cond(x > 0, lambda x: fn.tap("a", x * 2), lambda x: fn.tap("b", x * 3), x)

    seen = jax.jit(taps.grads(branches))(1.5)
    assert seen.values["a"] == 3
    assert np.isnan(seen.values["b"])
    assert (seen.cotangents["a"], seen.cotangents["b"]) == (1, 0)
    changed = taps.replace(branches, {"a": lambda x: x + 1, "b": lambda x: x + 10})
    assert (changed(1.5), changed(-1.0)) == (4, 7)


def test_axes_are_those_of_loops_and_layers_from_outside_in():
    """A scan over a stack whose layers scan; the layers run in a loop, or one by one."""

    def f(x, unroll, period):
        def layer(p, x):
            return jax.lax.scan(lambda c, i: (fn.tap("c", c + p * i), None), x, jnp.arange(4.0))[0]

        def outer(x, _):
            return stack.apply([layer] * period, jnp.arange(5.0), x, unroll=unroll), None

        return jax.lax.scan(outer, x, None, length=2)[0]

    want, c = np.zeros((2, 5, 4)), 0.0
    for place in itertools.product(*map(range, want.shape)):
        c = c + place[1] * place[2]
        want[place] = c
    for unroll, period in ((1, 2), (5, 1)):
        g = functools.partial(f, unroll=unroll, period=period)
        np.testing.assert_array_equal(jax.jit(taps.collect(g))(0.0)[1]["c"], want)
        numbered = taps.replace(
            g,
            {
                "c": lambda x, *numbers: (
                    x * 0 + (jnp.stack(numbers) @ jnp.array([100, 10, 1], jnp.int32)).astype(x.dtype)
                )
            },
        )
        assert jax.jit(numbered)(0.0) == 143


def test_stacks_in_stacks_and_layers_without_the_name():
    def inner(p, x):
        return fn.tap("x", x + p)

    def first(p, x):
        return stack.apply(inner, p, x, unroll=1)

    def second(p, x):
        return stack.apply(lambda p, x: x + p, p, x, unroll=3)

    p = np.arange(15.0).reshape(5, 3)
    got = jax.jit(taps.collect(lambda p, x: stack.apply([first, second], p, x)))(p, 0.0)[1]["x"]
    want = np.cumsum(p.reshape(-1)).reshape(5, 3)
    want[1::2] = np.nan
    np.testing.assert_array_equal(got, want)


def test_the_mapped_axis_of_a_vmap_inside_comes_first():
    f = lambda w, x: net({"w": w["w"]}, x[None])
    values = jax.eval_shape(taps.collect(jax.vmap(f, (None, 0))), weights(), np.zeros((7, D)))[1]
    assert values["blocks.out"].shape == (LAYERS, 7, 1, D)
    assert values["last"].shape == (7, 1, D)


def test_lookers_in_one_another():
    changed = taps.replace(net, {"blocks.out": lambda x, layer: jnp.where(layer == 1, 0, x)})

    def f(params, x):
        with taps.scope("whole"):
            return fn.tap("loss", changed(params, x))

    _, values = jax.jit(taps.collect(f))(weights(), inputs())
    change = lambda name, layer, x: x * 0 if (name, layer) == ("blocks.out", 1) else x
    loss, want = naive(weights(), inputs(), change=change)
    same(values, {f"whole.{name}": x for name, x in want.items()} | {"whole.loss": loss})
    seen = taps.grads(changed, only="last")(weights(), inputs())
    np.testing.assert_allclose(seen.cotangents["last"], 2 * want["last"])


def test_only_what_is_asked_for_is_looked_at():
    both = lambda x: fn.tap("a", fn.tap("twice", x)) + fn.tap("twice", x) + fn.tap("b.c", x)
    assert taps.collect(both, "a")(1.0)[1].keys() == {"a"}
    assert taps.collect(both, ["a", "b.*"])(1.0)[1].keys() == {"a", "b.c"}
    assert taps.grads(both, "b*")(1.0).cotangents.keys() == {"b.c"}


def test_grads_options():
    f = lambda a, b: (fn.tap("m", a * b) ** 2, {"sum": a + b})
    seen = taps.grads(f, argnums=(0, 1), has_aux=True)(2.0, 3.0)
    assert seen.value[0] == 36
    assert seen.value[1] == {"sum": 5}
    assert seen.cotangents == {"m": 12}
    assert seen.grads == (36, 24)
    assert taps.grads(f, argnums=-1, has_aux=True)(2.0, 3.0).grads == 24
    assert taps.grads(lambda a, b: f(a, b)[0])(2.0, b=3.0).grads is None


def test_programs_are_traced_once_for_each_who_looks():
    count = 0

    @jax.jit
    def f(x):
        nonlocal count
        count += 1
        return fn.tap("a", x)

    for want in (1, 2, 2, 2):
        f(1.0) if want == 1 else (taps.collect(f)(1.0), f(1.0))
        assert count == want


def test_linear_transpose_and_disabled_jit():
    f = lambda x: fn.tap("a", 2 * x)
    assert taps.collect(lambda y: jax.linear_transpose(f, 1.0)(y)[0])(3.0)[0] == 6
    with jax.disable_jit():
        np.testing.assert_allclose(taps.collect(net)(weights(), inputs())[1]["blocks.in"][0], inputs())


@pytest.mark.parametrize("kind", [pytest.param(AxisType.Auto, marks=pytest.mark.slow), AxisType.Explicit])
def test_meshes(kind):
    """What is collected stays where it is, also what a branch that is not taken does not have."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
    x = np.random.default_rng(3).standard_normal((8, D))

    def layer(p, x):
        x = block(1.0, p, x)
        return jax.lax.cond(x.sum() > 0, lambda x: fn.tap("more", x + 1), lambda x: fn.tap("less", x - 1), x)

    def f(params, x):
        return (stack.apply([layer, layer], params, x) ** 2).sum()

    def look(params, x):
        seen = taps.grads(f)(params, x)
        return seen.values, seen.cotangents

    want = jax.jit(look)(weights(), x)
    with jax.set_mesh(mesh):
        split = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
        got = jax.jit(look)(jax.device_put(weights(), NamedSharding(mesh, PartitionSpec())), split)
    for mine, theirs in zip(got, want, strict=True):
        same(mine, theirs)
        assert all(value.sharding.shard_shape(value.shape) == (LAYERS, 2, D) for value in mine.values())


def test_inside_of_a_shard_map():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    x = np.random.default_rng(3).standard_normal((8, D))

    def look(params, x):
        return taps.grads(net)(params, x).cotangents["blocks.in"]

    batch = PartitionSpec(None, "data")
    of_parts = jax.shard_map(
        look, mesh=mesh, in_specs=(PartitionSpec(), PartitionSpec("data")), out_specs=batch
    )
    np.testing.assert_allclose(jax.jit(of_parts)(weights(), x), jax.jit(look)(weights(), x))


# ---- the nets ---------------------------------------------------------------------------------------------

BLOCK = {
    "in": (8,),
    "attention.q": (2, 4),
    "attention.k": (2, 4),
    "attention.v": (2, 4),
    "attention.heads": (2, 4),
    "attention": (8,),
    "middle": (8,),
    "mlp.hidden": (32,),
    "mlp": (8,),
    "out": (8,),
}
BLOCKS = {f"blocks.{name}": (3, 1, 5, *shape) for name, shape in BLOCK.items()}
SMALL = {"context": 8, "layers": 3, "heads": 2, "d": 8}
IDS = np.arange(5)[None]
IMAGES = np.ones((1, 8, 8, 1))


def of_net(net, config, *args, **options):
    params = jax.eval_shape(lambda: net.init(jax.random.key(0), config))
    return lambda params: net.apply(params, *jax.tree.map(jnp.asarray, args), config, **options), params


def of_resnet(**options):
    config = resnet.Config(image=(8, 8, 1), channels=(4, 6), blocks=(1, 2), **options)
    return of_net(resnet, config, resnet.init_state(config), IMAGES, train=True)


NETS = {
    "transformer": (
        of_net(transformer, transformer.Config(11, **SMALL, windows=(2, None), unroll=1, remat=True), IDS),
        BLOCKS,
    ),
    "encoder": (of_net(encoder, encoder.Config(11, **SMALL), IDS), BLOCKS),
    "vit": (of_net(vit, vit.Config((8, 8, 1), (4, 4), layers=3, heads=2, d=8, classes=3), IMAGES), BLOCKS),
    "mlp": (of_net(mlp, mlp.Config((3, 5, 4, 2)), np.ones((2, 3))), {"layers.0": (2, 5), "layers.1": (2, 4)}),
    "convnet": (
        of_net(convnet, convnet.Config(image=(8, 8, 1), channels=(4, 6), depth=1, hidden=7), IMAGES),
        {"stages.0.0": (1, 8, 8, 4), "stages.1.0": (1, 4, 4, 6), "hidden": (1, 7)},
    ),
    "resnet": (
        of_resnet(),
        {"stem": (1, 8, 8, 4), "stages.1.0.in": (1, 8, 8, 4)}
        | {f"stages.0.0.{name}": (1, 8, 8, 4) for name in ("in", "hidden1", "branch", "out")}
        | {f"stages.1.0.{name}": (1, 4, 4, 6) for name in ("hidden1", "branch", "out")}
        | {f"stages.1.1.{name}": (1, 4, 4, 6) for name in ("in", "hidden1", "branch", "out")},
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_nets_are_tapped_and_silent(name):
    (f, params), shapes = NETS[name]
    values = jax.eval_shape(taps.collect(f), params)[1]
    assert {path: x.shape for path, x in values.items()} == shapes
    assert "tap" not in str(jax.make_jaxpr(f)(params))


def drawn(config):
    rng = np.random.default_rng(4)
    shapes = jax.eval_shape(lambda: transformer.init(jax.random.key(0), config))
    return jax.tree.map(lambda leaf: 0.3 * rng.standard_normal(leaf.shape), shapes)


def test_a_transformer_by_its_values():
    """Sums, products and the softmax between the values, with a loop over a pattern of windows."""
    config = transformer.Config(11, **SMALL, windows=(2, None), unroll=1, kv_heads=1, bias=False)
    params = drawn(config)
    f = lambda params: transformer.apply(params, jnp.asarray(IDS), config)
    _, v = jax.jit(taps.collect(f, "*"))(params)
    v = {name.removeprefix("blocks."): x for name, x in v.items()}
    same({"in": v["in"][1:]}, {"in": v["out"][:-1]})
    same(
        {"middle": v["middle"], "out": v["out"]},
        {"middle": v["in"] + v["attention"], "out": v["middle"] + v["mlp"]},
    )
    w = params["blocks"]
    np.testing.assert_allclose(v["mlp"], v["mlp.hidden"] @ np.expand_dims(w["down"]["w"], 1), atol=1e-12)
    np.testing.assert_allclose(
        v["attention"],
        np.einsum("lnthe,lhed->lntd", v["attention.heads"], w["attention"]["o"]["w"]),
        atol=1e-12,
    )
    pattern = v["attention.pattern"]
    ahead = np.arange(5)[None] - np.arange(5)[:, None]
    for layer, window in enumerate((2, None, 2)):
        seen = (ahead <= 0) & (ahead > -(window or 9))
        logits = np.einsum("nthe,nse->nhts", v["attention.q"][layer], v["attention.k"][layer][:, :, 0]) / 2
        e = np.where(seen, np.exp(logits), 0)
        np.testing.assert_allclose(pattern[layer], e / e.sum(-1, keepdims=True), atol=1e-12)
    heads = np.einsum("lnhts,lnse->lnthe", pattern, v["attention.v"][..., 0, :])
    np.testing.assert_allclose(heads, v["attention.heads"], atol=1e-12)


def test_one_head_of_one_layer_alone():
    config = transformer.Config(11, **SMALL | {"layers": 2}, unroll=1)
    params = drawn(config)
    f = lambda params: transformer.apply(params, jnp.asarray(IDS), config)
    off = lambda o, layer: jnp.where(layer == 1, o.at[..., 0, :].set(0), o)
    without = {**params, "blocks": jax.tree.map(lambda w: w, params["blocks"])}
    o = without["blocks"]["attention"]["o"]
    o["w"] = np.array(o["w"])
    o["w"][1, 0] = 0
    got, want = jax.jit(lambda a, b: (taps.replace(f, {"*.heads": off})(a), f(b)))(params, without)
    np.testing.assert_allclose(got, want, atol=1e-12)


def test_the_pattern_is_computed_only_if_asked_for(monkeypatch):
    (f, params), _ = NETS["transformer"]
    monkeypatch.setattr(fn.attention, "reference", lambda *args, **options: pytest.fail("not asked for"))
    jax.eval_shape(taps.collect(f), params)
    monkeypatch.undo()
    replaced = taps.replace(f, {"blocks.attention.pattern": lambda p, layer: p * 0})
    assert jax.eval_shape(replaced, params).shape == (1, 5, 11)


def test_decode_is_tapped_like_apply():
    config = transformer.Config(11, **SMALL)
    params = jax.eval_shape(lambda: transformer.init(jax.random.key(0), config))
    cache = jax.eval_shape(lambda: transformer.init_cache(config, 1, 8))
    f = lambda params, cache: transformer.decode(params, jnp.asarray(IDS), cache, config)
    values = jax.eval_shape(taps.collect(f), params, cache)[1]
    assert {path: x.shape for path, x in values.items()} == BLOCKS


# ---- where a NaN was made ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("unroll", "path"), [(1, "blocks.attention"), (4, "blocks.2.attention")])
def test_find_nan_says_the_path(unroll, path):
    def layer(p, x):
        with taps.scope("attention"):
            return jnp.log(x - p)

    def f(p, x):
        with taps.scope("blocks"):
            return stack.apply(layer, p, x, unroll=unroll)

    finding = fn.find_nan(f, np.array([0.0, 0.0, 9.0, 0.0]), 20.0)
    assert finding is not None
    assert finding.path == path
    assert finding.iterations == ((2,) if unroll == 1 else ())
    assert f" in {path} at " in str(finding)
    assert fn.find_nan(jnp.log, -1.0).path == ""


# ---- errors -----------------------------------------------------------------------------------------------


def looped(x):
    return jax.lax.while_loop(lambda c: c < 9, lambda c: fn.tap("c", c + 1), x)


@jax.custom_jvp
def ruled(x):
    return fn.tap("c", x)


ruled.defjvp(lambda p, t: (p[0], t[0]))


def mapped(x):
    mesh = jax.make_mesh((1,), ("i",), axis_types=(AxisType.Auto,))
    return jax.shard_map(
        lambda x: fn.tap("c", x), mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec()
    )(x)


@pytest.mark.parametrize(
    ("f", "where"), [(looped, "a while loop"), (ruled, "a custom rule"), (mapped, "a shard_map")]
)
def test_taps_that_cannot_be_brought_out_are_refused_with_file_and_line(f, where):
    with pytest.raises(StructureError) as caught:
        taps.collect(f)(1.0)
    assert f'the tap "c" stands in {where}' in caught.value.problem
    file, number, *_ = caught.value.actual.split(":")
    assert __file__.endswith(file)
    assert "fn.tap" in Path(__file__).read_text("utf-8").splitlines()[int(number) - 1]
    assert f(1.0) is not None  # nobody looking, it stands there as well as anywhere


def test_a_name_used_twice():
    with pytest.raises(StructureError, match=r'the name "a" is used twice\.') as caught:
        taps.collect(lambda x: fn.tap("a", x) + fn.tap("a", x))(1.0)
    assert caught.value.actual.count("test_taps.py") == 2
    layers = lambda x: stack.apply(lambda p, x: fn.tap("a", x + p), np.ones(3), fn.tap("a", x))
    with pytest.raises(StructureError, match="used twice"):
        taps.collect(layers)(1.0)
    branches = lambda x: jax.lax.cond(x > 0, lambda x: fn.tap("a", fn.tap("a", x)), lambda x: x, x)
    with pytest.raises(StructureError, match="used twice"):
        taps.collect(branches)(1.0)
    with pytest.raises(StructureError, match="used twice"):
        taps.collect(
            lambda x: jax.lax.scan(lambda c, _: (fn.tap("a", c), None), fn.tap("a", x), None, length=2)[0]
        )(1.0)


def test_a_constant_taken_out_of_its_layers():
    layer = lambda p, x: x * p + fn.tap("a", jnp.arange(3.0)).sum()
    loss = lambda x: stack.apply(layer, np.ones(4), x)
    assert taps.collect(loss)(1.0)[1]["a"].shape == (4, 3)
    with pytest.raises(StructureError, match='"a" has been taken out of its layers'):
        taps.collect(jax.value_and_grad(loss))(1.0)


def test_shapes_differ():
    f = lambda x: jax.lax.cond(x > 0, lambda x: fn.tap("a", x), lambda x: fn.tap("a", x[None])[0], x)
    with pytest.raises(StructureError, match='"a" is used with another shape in another branch'):
        taps.collect(f)(1.0)
    one, two = (lambda p, x, n=n: fn.tap("a", jnp.ones(n)).sum() + p + x for n in (1, 2))
    with pytest.raises(StructureError, match='"a" is used with another shape in another layer'):
        taps.collect(lambda x: stack.apply([one, two], np.ones(4), x))(1.0)


def identity(x):
    return fn.tap("a", x)


test_errors_by_their_words = golden(
    [
        (
            lambda: taps.collect(identity, "b")(1.0),
            StructureError,
            """taps.collect: nothing is tapped as 'b'.
  expected  one of the names in the function
  got       a""",
        ),
        (
            lambda: taps.replace(identity, {"a": lambda x: jnp.stack([x, x])})(1.0),
            ShapeError,
            """taps.replace: what takes the place of "a" has another shape.
  expected  float64[]
  got       float64[2]""",
        ),
    ]
)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: taps.replace(identity, {"a": lambda x: 1})(1.0), ShapeError, "another shape"),
        (lambda: taps.replace(identity, {"a": lambda x: jnp.int32(1)})(1.0), DTypeError, "another dtype"),
        (lambda: taps.replace(identity, {"a": 1}), DTypeError, "changes are not functions"),
        (lambda: taps.replace(identity, {}), DTypeError, "changes are not functions"),
        (lambda: taps.collect(lambda x: x, "a")(1.0), StructureError, "no taps at all"),
        (lambda: taps.collect(1), DTypeError, "f is not a function"),
        (lambda: taps.collect(identity, 1), DTypeError, "only is neither"),
        (lambda: taps.collect(identity, [1]), DTypeError, "only is neither"),
        (lambda: taps.grads(lambda x: x)(np.ones(2)), ShapeError, "one number"),
        (lambda: taps.grads(lambda x: x, argnums=1)(1.0), ValueRangeError, "argnums are not numbers"),
        (lambda: taps.grads(lambda x: x)(1), DTypeError, "a float"),
        (lambda: taps.grads(lambda x: x, has_aux=True)(1.0), StructureError, "a pair"),
        (lambda: fn.tap(1, 1.0), DTypeError, "a name is a str"),
        (lambda: fn.tap("a.*", 1.0), ValueRangeError, "cannot be a name"),
        (lambda: fn.tap("", 1.0), ValueRangeError, "cannot be a name"),
        (lambda: fn.tap("a", "b"), DTypeError, "not an array"),
        (lambda: fn.tap("a", [1.0]), DTypeError, "not an array"),
        (lambda: fn.tap("a", jax.random.key(0)), DTypeError, "not an array"),
        (lambda: taps.asked(None), DTypeError, "a name is a str"),
        (lambda: taps.scope(None).__enter__(), DTypeError, "a name is a str"),
        (lambda: taps.scope("a b").__enter__(), ValueRangeError, "cannot be a name"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_errors(call, error, text):
    with pytest.raises(error, match=text):
        call()
