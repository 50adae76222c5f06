"""Training on a mesh: one program, the state where it was, one reduction a step; one device's numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import funcnet as fn
from funcnet.errors import ShapeError, ValueRangeError
from funcnet.train import _mesh

KINDS = [AxisType.Explicit, AxisType.Auto]
KEY = jax.random.key(3)


def mesh(kind, *sizes, names=("data", "tensor")):
    return jax.make_mesh(sizes, names[: len(sizes)], axis_types=(kind,) * len(sizes))


def lies(tree):
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def same_place(got, want):
    for a, b, leaf in zip(*map(jax.tree.leaves, (lies(got), want, got)), strict=True):
        assert a.is_equivalent_to(b, leaf.ndim), (a, b)


def loss(params, batch, key):
    """The gradient of b lies as the columns of x do, not as b."""
    x, y = batch
    noise = jax.random.normal(key, y.shape)
    predicted = (x * (params["w"] + params["b"])).sum(-1)
    return ((predicted - y - 0.1 * noise) ** 2).mean()


def arrays():
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=8), "b": rng.normal(size=8)}
    return params, (rng.normal(size=(8, 8)), rng.normal(size=8))


def run(on=None, steps=3, optimizer=None, **options):
    """States and metrics of some steps; on a mesh w is split, b whole, and x split by columns."""
    params, batch = arrays()
    optimizer = optimizer or optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1))
    if on is not None:
        params = jax.device_put(params, {"w": NamedSharding(on, P("data")), "b": NamedSharding(on, P())})
        batch = jax.device_put(batch, (NamedSharding(on, P(None, "data")), NamedSharding(on, P())))
    state = fn.train.init(params, optimizer, key=KEY, average=0.9)
    step = fn.train.make_step(loss, optimizer, watch=True, **options)
    place, seen = lies(state), []
    for _ in range(steps):
        with jax.transfer_guard("disallow" if on else "allow"):
            before, (state, metrics) = state, step(state, batch)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
        seen.append(metrics)
        same_place(state, place)
    assert step._cache_size() == 1
    return state, seen


@pytest.mark.parametrize("kind", KINDS)
def test_one_program_and_the_state_stays_where_it_is(kind):
    on = mesh(kind, 4)
    with jax.set_mesh(on):
        state, metrics = run(on)
    assert all(leaf.sharding.mesh == on for leaf in jax.tree.leaves(state))
    assert state.params["w"].sharding.spec == state.average["w"].sharding.spec == P("data")
    want, said = run()
    for a, b in zip(jax.tree.leaves((state, metrics)), jax.tree.leaves((want, said)), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-9)


def test_without_a_mesh_that_is_set_too():
    run(mesh(AxisType.Auto, 4))


@pytest.mark.parametrize(
    ("name", "broken"), [("placed", lambda tree, params: tree), ("kept", lambda old, new: new)]
)
def test_what_holds_it_is_needed(monkeypatch, name, broken):
    """The broken rules: a state of which parts lie on one device, and results split as XLA likes."""
    monkeypatch.setattr(_mesh, name, broken)
    with pytest.raises((AssertionError, jax.errors.JaxRuntimeError)):
        run(mesh(AxisType.Auto, 4))


def fitted(on, state=None, batch=None):
    """A run of two steps on a mesh; of a state made there, and a batch placed there, if none is given."""
    params, whole = arrays()
    step = fn.train.make_step(loss, optax.sgd(0.1))
    with jax.set_mesh(on):
        state = state or fn.train.init(params, optax.sgd(0.1), key=KEY)
        batch = fn.shard.place([whole] * 2) if batch is None else [batch] * 2
        state, history = fn.train.fit(step, state, batch, until=2)
    assert step._cache_size() == 1
    return state, history


def test_fit_puts_a_state_of_one_device_on_the_mesh_that_is_set(capsys):
    on = mesh(AxisType.Explicit, 4)
    want = fitted(on)[1]
    assert "nothing is split" not in capsys.readouterr().out
    state = fn.train.init(arrays()[0], optax.sgd(0.1), key=KEY)
    state, got = fitted(on, state)
    assert state.params["w"].sharding.mesh == on
    np.testing.assert_allclose([one["loss"] for one in got], [one["loss"] for one in want])


def test_fit_says_that_nothing_is_split(capsys):
    fitted(mesh(AxisType.Explicit, 4), batch=arrays()[1])
    assert "nothing is split: each of 4 devices does all (fn.shard.place)" in capsys.readouterr().out


def elsewhere(what):
    """Params, the state or the batch on one device or another mesh, and the mesh that is set."""
    params, batch = arrays()
    on, first = mesh(AxisType.Explicit, 4), jax.devices()[0]
    if what == "params":
        with jax.set_mesh(on):
            fn.train.init(jax.device_put(params, first), optax.sgd(0.1), key=KEY)
    if what == "state":
        fitted(on, fn.train.init(jax.device_put(params, first), optax.sgd(0.1), key=KEY))
    if what == "batch":
        fitted(on, batch=next(fn.shard.place([batch], mesh=mesh(AxisType.Explicit, 2, 2))))
    if what == "mesh":
        state = fn.train.init(jax.tree.map(jnp.asarray, params), optax.sgd(0.1), key=KEY)
        fn.train.fit(
            fn.train.make_step(loss, optax.sgd(0.1)), state, fn.shard.place([batch], mesh=on), steps=1
        )


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("what", "name", "expected", "actual"),
    [
        ("params", "train.init: params['b']", "a mesh of data 4", "float64[8] on no mesh"),
        ("state", "train.fit: state.params['b']", "a mesh of data 4", "float64[8] on no mesh"),
        ("batch", "train.fit: batch[0]", "a mesh of data 4", "float64[8, 8] on a mesh of data 2 × tensor 2"),
        ("mesh", "train.fit: batch[0]", "no mesh", "float64[8, 8] on a mesh of data 4"),
    ],
)
def test_what_lies_elsewhere(what, name, expected, actual):
    with pytest.raises(ValueRangeError) as raised:
        elsewhere(what)
    assert str(raised.value).splitlines() == [
        f"{name} lies on other devices.",
        f"  expected  {expected}",
        f"  got       {actual}",
        "  hint      with jax.set_mesh(mesh): make params and state there, batches by fn.shard.place",
    ]


# ---- a batch in parts -------------------------------------------------------------------------------------


def drawing(params, model_state, batch, key):
    """Couples nothing but by its keys: each part draws its own."""
    x, y = batch
    h = fn.dropout.apply(fn.gelu.apply(fn.linear.apply(params, x)), rate=0.3, key=key)
    errors = (h.sum(-1) - y) ** 2
    seen = {"mean": 0.9 * model_state["mean"] + 0.1 * errors.mean(), "count": model_state["count"] + 1}
    return fn.train.Mean(errors.sum(), errors.size), (seen, {"error": errors.mean()})


def plain(params, model_state, batch, key):
    x, y = batch
    errors = (fn.gelu.apply(fn.linear.apply(params, x)).sum(-1) - y) ** 2
    return errors.mean(), (model_state, {})


RNG = np.random.default_rng(1)
WHOLE = P()
X, Y, W, B = (RNG.normal(size=size) for size in ((16, 8), 16, (8, 12), 12))


def accumulated(k, f=drawing, on=None, w=WHOLE, gather=False):
    """Params and metrics after one step of k parts, the model state, and the program."""
    params, batch = {"w": W, "b": B}, (X, Y)
    if on is not None:
        params = jax.device_put(params, {"w": NamedSharding(on, w), "b": NamedSharding(on, P())})
        batch = jax.device_put(batch, NamedSharding(on, P("data")))
    model_state = {"mean": jnp.zeros(()), "count": jnp.zeros((), jnp.int32)}
    state = fn.train.init(params, optax.sgd(0.1), key=KEY, model_state=model_state)
    step = fn.train.make_step(f, optax.sgd(0.1), accumulate=k, gather=gather, guard=False)
    place = lies(state)
    program = step.lower(state, batch).compile()
    state, metrics = program(state, batch)
    same_place(state, place)
    return (state.params, metrics), state.model_state, program


def equal(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-9)


def sums(program, columns):
    """Each all-reduce of w's gradient: whether it is in the loop of parts."""
    lines = [line.partition(" all-reduce(") for line in program.as_text().splitlines()]
    shapes = f"[8,{columns}]", f"[{columns},8]"
    return ["while" in rest for result, _, rest in lines if rest and any(s in result for s in shapes)]


@pytest.mark.parametrize(
    ("sizes", "w", "gather", "apart"),
    [
        ((4,), P(), False, True),
        ((2, 2), P(None, "tensor"), False, True),
        ((4,), P("data"), True, True),
        ((4,), P("data"), False, False),
    ],
    ids=["dp", "dp x tp", "fsdp, gathered", "fsdp"],
)
def test_groups_add_up_their_own_parts_and_once_each_others(sizes, w, gather, apart):
    on = mesh(AxisType.Explicit, *sizes)
    f, groups = (drawing, sizes[0]) if apart else (plain, 1)  # not apart, a part has examples of all groups
    with jax.set_mesh(on):
        got, state, program = accumulated(2, f, on, w, gather=gather)
    want, _, _ = accumulated(2 * groups, f)
    equal(got, want)
    assert sums(program, 6 if "tensor" in w else 12) == [not apart]
    assert state["count"] == (2 if apart else 0)


def test_a_model_state_goes_through_the_parts_of_a_group_and_is_averaged_over_groups():
    def seeing(params, model_state, batch, key):  # not commutative, so that the order shows
        seen = {"mean": 2 * model_state["mean"] + batch[1].sum(), "count": model_state["count"] + 1}
        return 0 * params["b"].sum(), (seen, {})

    on = mesh(AxisType.Explicit, 4)
    with jax.set_mesh(on):
        _, state, _ = accumulated(2, seeing, on)
    parts = Y.reshape(4, 2, 2).sum(-1)
    np.testing.assert_allclose(state["mean"], (2 * parts[:, 0] + parts[:, 1]).mean())


@pytest.mark.usefixtures("unchecked")
def test_a_batch_that_does_not_divide():
    on = mesh(AxisType.Explicit, 4)
    with jax.set_mesh(on), pytest.raises(ShapeError) as raised:
        accumulated(3, on=on)
    assert str(raised.value).splitlines() == [
        "train.make_step: batch[0] cannot be cut into 3 equal parts (accumulate=3).",
        "  expected  a first axis that 12 divides     (3 parts × 4 groups over data)",
        "  got       float64[16, 8]",
    ]


def test_on_auto_axes_the_numbers_are_those_of_one_device():
    on = mesh(AxisType.Auto, 4)
    equal(accumulated(2, plain, on)[0], accumulated(2, plain)[0])
