"""Steps that are not finite: nothing may come of them, however many there are."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import funcnet as fn
from funcnet.errors import DTypeError, StructureError, ValueRangeError
from funcnet.train import Mean, step
from tests.errors import golden

KEY = jax.random.key(0)
OPTIMIZER = optax.adam(0.1)
GOOD, NAN_LOSS, NAN_GRADIENT, INF_GRADIENT, NO_WEIGHT = range(5)


def loss(params, model_state, batch):
    """Of the kind that the batch says."""
    w, b = params["w"], params["b"]["large"]
    fault = jnp.array([0, jnp.nan, 0, 0, 0])[batch]
    zero = w - jax.lax.stop_gradient(w)
    root = jnp.sqrt(0 * zero[0] + (batch != NAN_GRADIENT).astype(float))  # its gradient there is 0 * infinity
    steep = jnp.sqrt(zero[1] + (batch != INF_GRADIENT).astype(float))  # and infinity
    total = (w**2).sum() + (b**2).sum() + fault + root + steep
    weight = jnp.where(batch == NO_WEIGHT, 0, 2)
    return Mean(total, weight), ({"seen": model_state["seen"] + 1}, {"w0": w[0]})


def start(**options):
    params = {"w": jnp.arange(1.0, 4.0), "b": {"large": jnp.ones((3, 2))}}
    return fn.train.init(params, OPTIMIZER, key=KEY, model_state={"seen": 0}, **options)


def changed(state):
    """What a step that is left out leaves."""
    return state.params, state.opt_state, state.average


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), a, b))


STEP = fn.train.make_step(loss, OPTIMIZER, max_skipped=3)


def once(state, kind, step=STEP):
    return step(jax.tree.map(np.array, state), np.int32(kind))  # host arrays are not donated


def holds(kinds, step=STEP):
    """What a guard with max_skipped=3 promises of any sequence of steps."""
    state, faults, updates = start(average=0.5), 0, 0
    for kind in kinds:
        frozen = faults >= 3
        new, metrics = once(state, kind, step)
        fault = kind in (NAN_LOSS, NAN_GRADIENT, INF_GRADIENT)
        if frozen:
            assert same(new, state), "at the limit nothing changes"
        elif kind == GOOD:
            faults, updates = 0, updates + 1
            assert not same(new.params, state.params)
            assert not same(new.average, state.average)
            assert new.model_state["seen"] == state.model_state["seen"] + 1
        else:
            faults += fault
            assert same(changed(new), changed(state))
            # A batch without weight was seen by the model; a fault leaves no trace in it.
            assert new.model_state["seen"] == state.model_state["seen"] + int(kind == NO_WEIGHT)
        assert metrics["skipped"] == (faults if fault or frozen else 0), "how many in a row"
        assert new.step == state.step + int(not frozen)
        assert new.faults == faults
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(new))
        state = new
    assert state.opt_state[0].count == updates, "the optimizer counts its updates only"


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 4), max_size=8))
def test_what_comes_of_any_sequence_of_steps(kinds):
    holds(kinds)


BROKEN = {
    "sees nothing": ("_finite", lambda leaves: jnp.ones((), bool)),
    "sees the loss only": ("_total", lambda leaf: leaf * 0 if leaf.ndim == 0 else jnp.zeros(())),
    "takes an infinity for a number": ("_total", lambda leaf: jnp.where(jnp.isnan(leaf), leaf, 0).sum()),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_guard_is_found(monkeypatch, how):
    monkeypatch.setattr(step, *BROKEN[how])
    broken = fn.train.make_step(loss, OPTIMIZER, max_skipped=3)
    with pytest.raises(AssertionError):
        holds([GOOD, INF_GRADIENT, NAN_GRADIENT, NAN_LOSS, GOOD], broken)


def test_without_the_guard_they_go_through():
    step = fn.train.make_step(loss, OPTIMIZER, guard=False)
    assert step.max_skipped is None
    for kind in (NAN_LOSS, NAN_GRADIENT, INF_GRADIENT):
        state, metrics = step(start(), jnp.int32(kind))
        # Adam divides the infinite gradient by itself; the loss shows in the metrics only.
        assert jnp.isfinite(state.params["w"]).all() == (kind == NAN_LOSS)
        assert "skipped" not in metrics
        assert (state.step, state.faults) == (1, 0)


def test_a_guarded_step_is_the_bare_one_where_all_is_finite():
    bare, _ = fn.train.make_step(loss, OPTIMIZER, guard=False)(start(average=0.9), jnp.int32(GOOD))
    guarded, metrics = once(start(average=0.9), GOOD)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), bare, guarded)
    assert metrics.keys() == {"loss", "w0", "skipped"}
    assert STEP.max_skipped == 3


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64", "complex64"])
def test_one_number_among_many_is_found(dtype):
    finite = jax.jit(step._finite)
    for shape in ((), (3, 5), (2, 130, 130), (0, 4)):
        array = np.full(shape, jnp.finfo(dtype).max, dtype)
        assert finite([array]), "the largest numbers do not overflow"
        for value in (np.nan, np.inf, -np.inf) if array.size else ():
            array.flat[-1] = value
            assert not finite([array])
    assert not finite([np.ones(3), np.float32(np.nan), np.ones((3, 5))])


@pytest.mark.only_as_users
def test_the_guard_needs_no_memory_and_copies_nothing():
    def loss(params, x):
        for w in params:
            x = jnp.tanh(x @ w)
        return (x**2).mean()

    state = fn.train.init([jnp.ones((128, 128))] * 4, OPTIMIZER, key=KEY, average=0.9)
    bare, guarded = (
        fn.train.make_step(loss, OPTIMIZER, guard=guard)
        .lower(state, jnp.ones((512, 128)))
        .compile()
        .memory_analysis()
        for guard in (False, True)
    )
    assert guarded.alias_size_in_bytes == bare.alias_size_in_bytes
    assert guarded.temp_size_in_bytes <= 1.02 * bare.temp_size_in_bytes


# ---- the average ------------------------------------------------------------------------------------------


def test_the_average_by_its_definition():
    state, average = start(average=0.75), np.arange(1.0, 4.0)
    assert same(state.average, state.params)
    for kind in (GOOD, GOOD, NAN_LOSS, NO_WEIGHT, GOOD):
        state, _ = once(state, kind)
        if kind == GOOD:
            average = 0.75 * average + 0.25 * np.asarray(state.params["w"])
        np.testing.assert_allclose(state.average["w"], average, rtol=1e-6)


def test_the_average_of_short_params_is_in_float32():
    params = {"w": jnp.ones(2, jnp.bfloat16), "v": jnp.ones(2, jnp.float64), "c": jnp.ones(2, jnp.complex64)}
    state = fn.train.init(params, optax.sgd(0.1), key=KEY, average=0.999)
    step = fn.train.make_step(
        lambda p, b: sum(jnp.abs(v).astype(float).sum() for v in p.values()), optax.sgd(0.5)
    )
    state, _ = step(state, jnp.ones(1))
    assert {name: str(v.dtype) for name, v in state.average.items()} == {
        "w": "float32",
        "v": "float64",
        "c": "complex64",
    }
    for value in state.average.values():
        np.testing.assert_allclose(value, 1 - 0.5e-3, rtol=1e-6)
    assert state.params["w"].dtype == jnp.bfloat16


# ---- the loss scale ---------------------------------------------------------------------------------------


def half(params, batch):
    """Gradients in float16: `batch`, whatever the scale, unless that is too large."""
    return (params["w"].astype(jnp.float16) * batch.astype(jnp.float16)).sum()


HALF = fn.train.make_step(half, optax.sgd(1.0), max_skipped=2)


def scaled(scale, w=1.0):
    return fn.train.init({"w": jnp.full(2, w, jnp.float32)}, optax.sgd(1.0), key=KEY, loss_scale=scale)


def test_small_gradients_survive_float16():
    def loss(params, batch):  # through 2^-25, which float16 does not have
        y = params["w"].astype(jnp.float16) * jnp.float16(2.0**-15)
        return (y * batch.astype(jnp.float16)).sum().astype(jnp.float32) * 2.0**-10

    step = fn.train.make_step(loss, optax.sgd(2.0**25))
    moved, _ = step(scaled(2.0**15), jnp.ones(2))
    still, _ = step(fn.train.init({"w": jnp.ones(2, jnp.float32)}, optax.sgd(1.0), key=KEY), jnp.ones(2))
    np.testing.assert_array_equal(moved.params["w"], np.zeros(2))
    np.testing.assert_array_equal(still.params["w"], np.ones(2), "else this test shows nothing")


def test_a_scale_that_is_too_large_is_halved_and_that_is_all():
    state, before = scaled(2.0**13), np.ones(2, np.float32)
    batch = jnp.full(2, 20.0)
    for scale, rescaled in ((2.0**13, True), (2.0**12, True), (2.0**11, False)):
        state, metrics = HALF(state, batch)
        assert (metrics["loss_scale"], metrics["rescaled"], metrics["skipped"]) == (scale, rescaled, 0)
        assert state.faults == 0
        assert metrics["loss"] == 40.0
        np.testing.assert_array_equal(state.params["w"], before if rescaled else before - 20)
    assert (state.step, state.loss_scale.scale, state.loss_scale.good) == (3, 2.0**11, 1)


def test_the_least_scale_is_not_halved_but_a_fault():
    state, metrics = HALF(scaled(1.5), jnp.full(2, 1e5))  # infinite in float16, and so is the loss
    assert (metrics["rescaled"], metrics["skipped"], state.faults) == (False, 1, 1)
    assert state.loss_scale.scale == 1.5
    steep = fn.train.make_step(lambda p, b: jnp.sqrt(p["w"]).sum(), optax.sgd(1.0), max_skipped=2)
    state = scaled(1.5, w=0.0)  # a gradient that no scale makes finite
    for scale, rescaled, faults in ((1.5, True, 0), (1.0, False, 1), (1.0, False, 2), (1.0, False, 2)):
        state, metrics = steep(state, jnp.ones(2))
        assert (metrics["loss_scale"], metrics["rescaled"], metrics["skipped"]) == (
            scale,
            rescaled,
            faults,
        )
        assert state.faults == faults
    assert state.step == 3, "frozen at the second"


def test_it_doubles_after_many_finite_steps_in_a_row(monkeypatch):
    monkeypatch.setattr("funcnet.train.step._GOOD_STEPS", 3)
    step = fn.train.make_step(lambda p, b: (p["w"] * b).sum(), optax.sgd(0.0))
    state, scales = scaled(4.0), []
    for value in (1, 1, np.nan, 1, 1, 1, 1, 1, 1):
        state, metrics = step(state, jnp.full(2, value, jnp.float32))
        scales.append(float(metrics["loss_scale"]))
    assert scales == [4] * 6 + [8] * 3
    assert state.loss_scale == (16.0, 0)
    state = state._replace(loss_scale=fn.train.LossScale(jnp.float32(2**24), jnp.int32(2)))
    state, _ = step(state, jnp.ones(2, jnp.float32))
    assert state.loss_scale.scale == 2.0**24, "the most there is"


def test_bfloat16_compute_is_one_line():
    seen = []

    def loss(params, batch):
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
        seen.append(params["w"].dtype)
        return (params["w"] * batch).sum()

    state = fn.train.init({"w": jnp.ones(2, jnp.float32)}, optax.sgd(0.25), key=KEY)
    state, _ = fn.train.make_step(loss, optax.sgd(0.25))(state, jnp.ones(2, jnp.bfloat16))
    assert (seen[0], state.params["w"].dtype, state.params["w"].tolist()) == (
        jnp.bfloat16,
        jnp.float32,
        [0.75, 0.75],
    )


def made(**options):
    return lambda: fn.train.make_step(loss, OPTIMIZER, **options)


def begun(**options):
    return lambda: start(**options)


test_errors = golden(
    [
        (
            made(guard=1),
            DTypeError,
            """train.make_step: guard is neither True nor False.
  expected  True or False
  got       1 (int)""",
        ),
        (
            made(max_skipped=0),
            ValueRangeError,
            """train.make_step: max_skipped is 0.
  expected  1 or more
  got       0""",
        ),
        (
            made(max_skipped=2**31),
            ValueRangeError,
            """train.make_step: max_skipped is 2147483648.
  expected  less than 2**31
  got       2147483648""",
        ),
        (
            begun(average=1.0),
            ValueRangeError,
            """train.init: average is 1.0.
  expected  0 or more, and less than 1
  got       1.0""",
        ),
        (
            begun(average=float("nan")),
            ValueRangeError,
            """train.init: average is nan.
  expected  0 or more, and less than 1
  got       nan""",
        ),
        (
            begun(loss_scale=0.5),
            ValueRangeError,
            """train.init: loss_scale is 0.5.
  expected  from 1 to 2**24
  got       0.5""",
        ),
        (
            begun(loss_scale="dynamic"),
            DTypeError,
            """train.init: loss_scale is not a real number.
  expected  a real scalar
  got       'dynamic' (str)""",
        ),
        (
            lambda: STEP(start()._replace(faults=None), jnp.int32(0)),
            StructureError,
            """train.make_step: the state has no count of faults, which the guard keeps.
  expected  int32[], as train.init makes it
  got       None (NoneType)
  hint      state._replace(faults=jnp.zeros((), jnp.int32)), or make_step(..., guard=False)""",
        ),
        (
            lambda: made(guard=False)()(start(loss_scale=2.0), jnp.int32(0)),
            StructureError,
            """train.make_step: a loss scale needs the guard, which leaves out what it made infinite.
  expected  guard=True, or a state without a loss scale
  got       guard=False""",
        ),
    ]
)
