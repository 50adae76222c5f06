import contextlib
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding

import funcnet as fn
from funcnet.errors import DTypeError, ShapeError, StructureError, ValueRangeError
from funcnet.ops.dense import _experts, moe
from tests.cases import F, mixture
from tests.errors import golden
from tests.laws import close


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


PARAMS: Any = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), moe.init(jax.random.key(0), 3, 5, 4))
X: Any = normal(2, 7, 3)


def compiled(f, *args):
    """f(*args), as one program: called eagerly, every primitive is compiled by itself."""
    return jax.jit(f)(*args)


def test_each_option_does_something():
    (y, facts), *others = compiled(
        lambda params, x: [
            moe.apply(params, x),
            moe.apply(params, x, k=1),
            moe.apply(params, x, activation="relu"),
            moe.apply(params, x, renormalise=False),
            moe.apply(params | {"gate": None}, x),
            moe.apply(params, x, capacity=0.5),
        ],
        PARAMS,
        X,
    )
    assert all(not np.allclose(y, other) for other, _ in others)
    assert facts["dropped"] == 0 < others[-1][1]["dropped"]


def test_of_one_expert_it_is_the_network():
    params = jax.tree.map(lambda leaf: leaf[:1], {k: v for k, v in PARAMS.items() if k != "router"})
    y, facts = compiled(lambda p, x: moe.apply(p, x, k=1), params | {"router": {"w": normal(3, 1)}}, X)
    one = jax.tree.map(lambda leaf: leaf[0], params)
    h = fn.swiglu.apply(fn.linear.apply(one["gate"], X), fn.linear.apply(one["up"], X))
    np.testing.assert_allclose(y, fn.linear.apply(one["down"], h), rtol=1e-5, atol=1e-6)
    assert (facts["balance"], facts["load"].tolist()) == (1, [1])


def test_equal_experts_are_one():
    """Whatever is chosen, and however many: their gates sum to 1."""
    same = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1], leaf.shape), PARAMS) | {
        "router": PARAMS["router"]
    }
    ys = compiled(lambda p, x: [moe.apply(p, x, k=k)[0] for k in (1, 4)], same, X)
    np.testing.assert_allclose(*ys, rtol=1e-5, atol=1e-6)


ALIKE = PARAMS | {"router": {"w": jnp.zeros((3, 4), jnp.float32)}}  # at a tie the first


def test_the_facts():
    y, facts = compiled(lambda p, x: moe.apply(p, x, k=2, capacity=1.0), ALIKE, X)
    assert facts["load"].tolist() == [0.5, 0.5, 0, 0]
    assert facts["dropped"] == 2 * 2 * (7 - 4)  # of a sequence an expert takes ⌈2 · 7 / 4⌉ = 4
    np.testing.assert_allclose([facts["balance"], facts["z"]], [1, np.log(4) ** 2], rtol=1e-6)
    assert np.asarray(y[:, :4]).any(-1).all()
    assert not np.asarray(y[:, 4:]).any()


def test_the_first_come_first():
    """With a capacity, what comes later, and what is beside it in the batch, changes nothing."""
    y = jax.jit(lambda x: moe.apply(PARAMS, x, capacity=0.6)[0])
    later = X.at[:, 4:].set(normal(2, 3, 3, seed=1))
    np.testing.assert_array_equal(y(X)[:, :4], y(later)[:, :4])
    np.testing.assert_allclose(y(X)[:1], y(X[:1]), rtol=1e-6)


def test_the_losses_teach_the_router():
    """And only them where the one gate is 1."""

    def every(params):
        y, pull = jax.vjp(lambda params: moe.apply(params, X, k=1), params)
        none, ones = (jax.tree.map(lambda v, c=c: jnp.full_like(v, c), y) for c in (0, 1))
        of_facts = {name: (none[0], none[1] | {name: ones[1][name]}) for name in none[1]}
        given = {"y": (ones[0], none[1]), **of_facts}
        return {name: jnp.abs(pull(dy)[0]["router"]["w"]).max() > 1e-6 for name, dy in given.items()}

    found = compiled(every, PARAMS)
    assert {name for name, moved in found.items() if moved} == {"balance", "z"}


@pytest.mark.parametrize(("m", "experts"), [(0, 3), (1, 3), (300, 2), (257, 5)])
def test_tiles_hold_each_choice_once(m, experts):
    chosen = jnp.asarray(np.random.default_rng(m).integers(0, experts + 1, m), jnp.int32)  # one: nowhere
    source, place, expert = map(np.asarray, _experts.tiles(chosen, experts))
    held = source[source < m]
    np.testing.assert_array_equal(np.sort(held), np.flatnonzero(chosen < experts))
    for i in held:
        assert source.reshape(-1)[place[i]] == i
        assert expert[place[i] // source.shape[1]] == chosen[i]
    assert (place[chosen == experts] == source.size).all()
    empty = source[:, 0] == m  # of a tile with a row the first is one
    assert (source[empty] == m).all()


def test_a_nan_reaches_no_other_token():
    """Nor its gradient, nor an expert that it did not choose, though they share tiles."""

    def both(params, x):
        (y, facts), pull = jax.vjp(moe.apply, params, x)
        return y, pull((jnp.ones_like(y), jax.tree.map(jnp.zeros_like, facts)))

    y, (grads, dx) = compiled(both, PARAMS, X.at[0, 2].set(jnp.nan))
    assert np.isnan(np.asarray(y)).any(-1).sum() == np.isnan(np.asarray(dx)).any(-1).sum() == 1
    for name in ("up", "gate", "down"):
        assert np.isnan(np.asarray(grads[name]["w"])).any((1, 2)).sum() == 2


def test_mixed_dtypes():
    short = X.astype(jnp.bfloat16)

    def both(params, x):
        y, pull = moe.vjp(params, x)
        return y, pull(y)

    (y, facts), (grads, dx) = jax.eval_shape(both, PARAMS, short)
    assert (y.dtype, facts["z"].dtype, dx.dtype) == (jnp.float32, jnp.float32, jnp.bfloat16)
    assert grads["up"]["w"].dtype == jnp.float32
    all_short = jax.tree.map(lambda w: w.astype(jnp.bfloat16), PARAMS)
    (y, facts), (grads, _) = jax.eval_shape(both, all_short, short)
    assert (y.dtype, facts["balance"].dtype, grads["router"]["w"].dtype) == (y.dtype, jnp.float32, y.dtype)
    assert y.dtype == jnp.bfloat16


def test_init_keeps_the_variance():
    params = moe.init(jax.random.key(0), 64, 256, 8, gated=False)
    x = normal(4, 50, 64).astype(params["up"]["w"].dtype)
    y, facts = compiled(lambda p, x: moe.apply(p, x, k=1, activation="relu"), params, x)
    assert abs(y.var() - 0.5) < 0.05  # of relu's result, in the mean of squares
    assert abs(facts["balance"] - 1) < 0.3
    assert "b" not in moe.init(jax.random.key(0), 3, 5, 2, bias=False)["up"]


# ---- over devices -----------------------------------------------------------------------------------------

P = jax.P
LIE: dict[str, tuple[tuple[int, ...], tuple, tuple]] = {  # the mesh, axes of x, those of experts, d, d_hidden
    "same": ((4,), ("a", None, None), ("a", None, None)),
    "both": ((2, 2), (("a", "b"), None, None), (("a", "b"), None, None)),
    "beside": ((2, 2), ("a", None, None), ("b", None, None)),
    "half": ((2, 2), ("a", None, None), (("a", "b"), None, None)),
    "time": ((4,), (None, "a", None), ("a", None, None)),
    "batch": ((4,), ("a", None, None), (None, None, None)),
    "experts": ((4,), (None, None, None), ("a", None, None)),
    "hidden": ((2, 2), ("a", None, None), ("a", None, "b")),
    "fsdp": ((2, 2), ("a", None, "b"), ("b", "a", None)),
}
N, T, D, HIDDEN, EXPERTS = 4, 8, 6, 10, 8


def on_mesh(lies, kind=AxisType.Explicit, **options):
    """Value, facts and gradients of one device and of the mesh, and the mesh's program."""
    sizes, of_x, (e, d, h) = LIE[lies]
    rng = np.random.default_rng(0)
    draw = lambda v: jnp.asarray(rng.standard_normal(v.shape))
    params = jax.tree.map(draw, mixture(D, HIDDEN, EXPERTS), is_leaf=lambda v: hasattr(v, "kind"))
    x, dy = draw(F(N, T, D)), draw(F(N, T, D))

    def both(f, params, x, dy):
        def loss(params, x):
            y, facts = f(params, x, **options)
            return (y * dy).sum() + facts["balance"] + 0.3 * facts["z"], (y, facts)

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)

    want = jax.jit(lambda *args: both(moe.reference, *args))(params, x, dy)
    into, out = {"w": P(e, d, h), "b": P(e, h)}, {"w": P(e, h, d), "b": P(e, d)}
    specs = {"router": {"w": P()}, "up": into, "gate": into, "down": out}
    mesh = jax.make_mesh(sizes, ("a", "b")[: len(sizes)], axis_types=(kind,) * len(sizes))
    place = lambda v, spec: jax.device_put(v, NamedSharding(mesh, spec))
    placed = jax.tree.map(place, (params, x, dy), (specs, P(*of_x), P(*of_x)))
    with jax.set_mesh(mesh) if kind is AxisType.Explicit else contextlib.nullcontext():
        program = jax.jit(lambda *args: both(moe.apply, *args)).lower(*placed).compile()
        return want, program(*placed), placed, program


@pytest.mark.parametrize(
    ("lies", "capacity"),
    [
        ("same", 0.7),
        ("time", 0.7),
        *(pytest.param(lies, c, marks=pytest.mark.slow) for lies in LIE for c in (None, 0.5)),
    ],
)
def test_on_a_mesh_as_on_one_device(lies, capacity):
    """Values, facts, what is dropped too; gradients, which lie as their parameters do."""
    want, got, placed, _ = on_mesh(lies, capacity=capacity)
    close(got, want)
    assert (want[0][1][1]["dropped"] > 0) == (capacity is not None)
    for grad, leaf in zip(jax.tree.leaves(got[1]), jax.tree.leaves(placed[:2]), strict=True):
        assert grad.sharding.is_equivalent_to(leaf.sharding, leaf.ndim)


@pytest.mark.slow
@pytest.mark.parametrize("lies", LIE)
def test_on_auto_axes_too(lies):
    want, got, *_ = on_mesh(lies, AxisType.Auto, capacity=0.7)
    close(got, want)


def sent(program, kind):
    """Bytes that a device sends in all collectives of a kind."""
    return sum(one.sent for one in fn.shard.collectives(program) if one.kind == kind)


@pytest.mark.slow
def test_what_all_to_alls_send():
    """The formula of `_exchange`, forward and backward: every row and gate there and back, twice."""
    *_, program = on_mesh("same", capacity=1.5)
    rows = (N // 4) * EXPERTS * math.ceil(1.5 * 2 * T / EXPERTS)
    assert sent(program, "all-to-all") == rows * (2 * D * 8 + 8) * 2 * 3 / 4
    assert sent(program, "all-gather") == 0


@pytest.mark.slow
def test_what_is_gathered_without_a_capacity():
    *_, program = on_mesh("same")
    assert sent(program, "all-to-all") == 0
    tokens = (N // 4) * T
    assert sent(program, "all-gather") == tokens * 3 * (2 * D * 8 + 2 * (8 + 4))  # x, dy; gates and choices
    assert sent(program, "reduce-scatter") == tokens * 3 * (2 * D * 8 + 2 * 8)


test_errors = golden(
    [
        (
            lambda: moe.apply(PARAMS, normal(7, 5)),
            ShapeError,
            'moe.apply: x has 5 features in its last axis, but params["up"]["w"] (float32[4, 3, 5]) '
            "takes 3.\n"
            "  expected  x: float[*n, t, 3]\n"
            "  got       x: float32[7, 5]",
        ),
        (
            lambda: moe.apply(PARAMS | {"down": {"w": normal(4, 3, 5)}}, X),
            ShapeError,
            'moe.apply: params["down"]["w"] does not fit the experts.\n'
            '  expected  params["down"]["w"]: float[4, 5, 3]     (params["up"]["w"]: float32[4, 3, 5])\n'
            '  got       params["down"]["w"]: float32[4, 3, 5]\n'
            "  hint      its transpose fits.",
        ),
        (
            lambda: moe.apply(X, PARAMS),
            StructureError,
            "moe.apply: params are not those of a mixture of experts.\n"
            '  expected  params: a dict of "router", "up", "down" and perhaps "gate", each a dict with "w"\n'
            "  got       params: float32[2, 7, 3]\n"
            "  hint      the parameters come first: apply(params, x).",
        ),
        (
            lambda: moe.apply(PARAMS, X, k=5),
            ValueRangeError,
            "moe.apply: a token goes to 5 experts, but there are 4.\n"
            "  expected  1 ≤ k ≤ 4     (experts)\n"
            "  got       k = 5",
        ),
        (
            lambda: moe.apply(PARAMS, X, capacity=0.0),
            ValueRangeError,
            "moe.apply: capacity is 0.0, outside its range.\n"
            "  expected  0 < capacity < ∞\n"
            "  got       capacity = 0.0",
        ),
        (
            lambda: moe.apply(PARAMS, X, activation="tanh"),
            ValueRangeError,
            "moe.apply: activation is 'tanh'.\n"
            "  expected  activation: 'gelu', 'gelu_tanh', 'relu', 'silu'\n"
            "  got       activation = 'tanh'",
        ),
        (
            lambda: moe.apply(PARAMS, jnp.ones((7, 3), int)),
            DTypeError,
            "moe.apply: x has dtype int64, but a float is needed.\n"
            "  expected  x: float[...]\n"
            "  got       x: int64[7, 3]\n"
            "  hint      cast it: x.astype(jnp.float32).",
        ),
    ]
)
