"""A batch in parts: what it gives is what the whole gives."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import funcnet as fn
from funcnet.errors import DTypeError, ShapeError, StructureError, ValueRangeError
from funcnet.train import Mean
from tests.errors import golden

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(12, 3)), RNG.normal(size=12)
SGD = optax.sgd(0.1)


def mean_over_tokens(params, batch):
    """Examples weigh differently, some nothing."""
    x, y, weights = batch
    errors = (x @ params["w"] + params["b"] - y) ** 2
    return Mean((weights * errors).sum(), weights.sum()), {
        "error": Mean((weights * errors).sum(), weights.sum()),
        "examples": Mean(errors.sum(), errors.size),
        "largest": jnp.abs(x).max(),
    }


def mean_over_examples(params, batch):
    x, y, _ = batch
    return ((x @ params["w"] + params["b"] - y) ** 2).mean()


def start(optimizer=SGD, **options):
    params = {"w": jnp.arange(3.0), "b": jnp.zeros(())}
    return fn.train.init(params, optimizer, key=KEY, **options)


STEPS = {
    (loss, k): fn.train.make_step(loss, SGD, accumulate=k)
    for loss in (mean_over_tokens, mean_over_examples)
    for k in (1, 2, 4)
}


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=12, max_size=12), st.sampled_from([2, 4]))
def test_parts_give_what_the_whole_gives(weights, k):
    batch = (X, Y, np.array(weights, np.float64))
    for loss in (mean_over_tokens, mean_over_examples):
        (whole, at_once), (parts, in_turn) = (STEPS[loss, n](start(), batch) for n in (1, k))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), whole, parts)
        for name in at_once.keys() - {"largest"}:
            np.testing.assert_allclose(in_turn[name], at_once[name], rtol=1e-9, atol=1e-12)


def test_a_metric_that_is_a_number_counts_evenly_and_parts_are_in_order():
    _, metrics = STEPS[mean_over_tokens, 4](start(), (X, Y, np.ones(12)))
    np.testing.assert_allclose(metrics["largest"], np.abs(X).reshape(4, -1).max(1).mean())
    assert metrics["largest"] < np.abs(X).max(), "else this test shows nothing"


def test_the_mean_of_the_parts_means_would_be_wrong():
    weights = np.repeat([3.0, 0.0, 0.0, 1.0], 3)
    _, metrics = STEPS[mean_over_tokens, 4](start(), (X, Y, weights))
    halves = [
        STEPS[mean_over_tokens, 1](start(), (X[i], Y[i], weights[i]))[1] for i in (slice(3), slice(9, 12))
    ]
    assert abs(metrics["loss"] - (halves[0]["loss"] + halves[1]["loss"]) / 2) > 1e-3


def test_no_gradient_goes_through_a_weight():
    def loss(params, batch):
        w = params["w"]
        return Mean((w**2).sum(), 1 + w.sum())

    for k in (1, 2):
        state, metrics = fn.train.make_step(loss, optax.sgd(1.0), accumulate=k)(start(), np.ones(4))
        np.testing.assert_allclose(metrics["loss"], 5 / 4)
        np.testing.assert_allclose(state.params["w"], np.arange(3.0) - 2 * np.arange(3.0) / 4)


def test_keys_scalars_and_the_model_state_go_from_part_to_part():
    def loss(params, model_state, batch, key):
        total = batch["x"].sum() + batch["shift"] + 0 * params["b"]
        draw = jax.random.uniform(key, (), jnp.float32)
        # Not commutative, so that the order shows; and a weak type, which must not compile again.
        return total, (model_state * 2.0 + batch["x"].sum(), {"draw": draw})

    seen = []
    step = fn.train.make_step(lambda *args: seen.append(1) or loss(*args), SGD, accumulate=3)
    state = start(model_state=1.0)._replace(model_state=jnp.ones((), jnp.float64))
    batch = {"x": np.arange(6.0), "shift": 10.0}
    state, metrics = step(state, batch)
    key = jax.random.fold_in(KEY, 0)
    draws = [jax.random.uniform(jax.random.fold_in(key, i), (), jnp.float32) for i in range(3)]
    np.testing.assert_allclose(metrics["draw"], np.mean(draws), rtol=1e-6)
    assert metrics["loss"] == (15 + 30) / 3
    assert state.model_state == ((1 * 2 + 1) * 2 + 5) * 2 + 9
    traced = len(seen)
    step(state, batch)
    assert len(seen) == traced


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_gradients_of_short_params_are_added_up_in_float32(dtype):
    # In bfloat16 256 + 1 is 256: of eight parts seven would be lost.
    batch = np.array([256.0] + [1.0] * 7, np.float32)

    def loss(params, batch):
        return Mean((params["b"] * batch.astype(dtype)).sum(), 1.0)

    step = fn.train.make_step(loss, optax.sgd(1.0), accumulate=8)
    state = fn.train.init({"b": jnp.zeros((), dtype)}, SGD, key=KEY)
    state, _ = step(state, batch)
    np.testing.assert_array_equal(state.params["b"], -jnp.asarray(263.0 / 8, dtype))


@pytest.mark.parametrize("scale", [None, 8.0])
def test_the_guard_the_average_and_a_loss_scale_hold_over_parts(scale):
    step = fn.train.make_step(mean_over_tokens, SGD, accumulate=2)
    state = start(average=0.5, loss_scale=scale)
    before = jax.tree.map(np.array, state.params)
    for fault, weight in ((np.nan, 1.0), (1.0, 0.0), (1.0, 1.0)):
        x = X.copy()
        x[7, 0] *= fault  # of the second part
        state, metrics = step(state, (x, Y, np.full(12, weight)))
        moved = not np.array_equal(state.params["w"], before["w"])
        assert (moved, bool(metrics["skipped"])) == (fault == weight, np.isnan(fault))
    plain, _ = STEPS[mean_over_tokens, 1](start(), (X, Y, np.ones(12)))
    np.testing.assert_allclose(state.params["w"], plain.params["w"], rtol=1e-6)
    np.testing.assert_allclose(state.average["w"], (state.params["w"] + before["w"]) / 2, rtol=1e-6)


def test_optax_own_accumulation_still_works():
    optimizer = optax.MultiSteps(optax.sgd(0.1), 2)
    step, state = fn.train.make_step(mean_over_examples, optimizer), start(optimizer)
    for rows in (slice(6), slice(6, 12)):
        state, _ = step(state, (X[rows], Y[rows], np.ones(6)))
    whole, _ = STEPS[mean_over_examples, 1](start(), (X, Y, np.ones(12)))
    np.testing.assert_allclose(state.params["w"], whole.params["w"], rtol=1e-6)


def test_an_optimizer_that_asks_for_the_value_gets_that_of_the_whole():
    seen = []

    def update(updates, state, params=None, *, value, **_):
        return jax.tree.map(lambda p: jnp.full_like(p, value), params), state

    given = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    step = fn.train.make_step(mean_over_examples, given, accumulate=2)
    state, metrics = step(start(given), (X, Y, np.ones(12)))
    np.testing.assert_allclose(state.params["b"], metrics["loss"])
    del seen
    plateau = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=1))
    fn.train.make_step(mean_over_examples, plateau, accumulate=2).trace(start(plateau), (X, Y, np.ones(12)))


@pytest.mark.only_as_users
def test_parts_take_the_memory_of_one():
    def loss(params, batch):
        x = batch[:, None] + jnp.arange(64.0)
        for w in params:
            x = jnp.tanh(x @ w)
        return (x**2).mean()

    state = fn.train.init([jnp.ones((64, 64))] * 4, SGD, key=KEY)
    gradient = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))

    def temporary(accumulate, size):
        step = fn.train.make_step(loss, SGD, accumulate=accumulate)
        return step.lower(state, jnp.zeros(size)).compile().memory_analysis().temp_size_in_bytes

    # With activations as small as these, one buffer more of the loop shows; the suite `run` has a real model.
    assert temporary(4, 2048) <= 1.2 * (temporary(1, 512) + gradient) < temporary(1, 2048) / 2


def run(loss=mean_over_examples, optimizer=SGD, batch=(X, Y, Y), k=2, **options):
    def call():
        return fn.train.make_step(loss, optimizer, accumulate=k).trace(start(optimizer, **options), batch)

    return call


SAM = optax.contrib.sam(optax.sgd(0.1), optax.chain(optax.contrib.normalize(), optax.sgd(0.05)))
SOPHIA = optax.contrib.sophia(0.1)
ELSEWHERE = """train.make_step: the optimizer asks for the loss at other places, which a step in parts \
(accumulate) or with a loss scale does not offer.
  expected  one that needs the gradient, or the loss's value: with accumulate=1 and no loss scale, any
  got       {}"""
SEARCH = ELSEWHERE.format("a line search, L-BFGS, SAM, Sophia, or the like")
test_errors = golden(
    [
        (
            run(k=5),
            ShapeError,
            """train.make_step: batch[0] cannot be cut into 5 equal parts (accumulate=5).
  expected  a first axis that 5 divides
  got       float64[12, 3]""",
        ),
        (
            run(batch=(X, Y, np.ones(4))),
            ShapeError,
            """train.make_step: batch[2] cannot be cut into 2 equal parts (accumulate=2).
  expected  a first axis of 12, that of batch[0]
  got       float64[4]
  hint      what is no entry per example goes into the params, the model state, or the loss itself""",
        ),
        (
            run(batch=1.0),
            ShapeError,
            """train.make_step: there is nothing in the batch to be cut into 2 parts (accumulate=2).
  expected  an array with one entry per example
  got       float64[]""",
        ),
        (
            run(lambda p, b: (mean_over_examples(p, b), {"errors": b[1] ** 2})),
            ShapeError,
            """train.make_step: metrics["errors"] has axes, and of a batch in parts it is one number.
  expected  a real number, or a Mean
  got       float64[6]
  hint      average it, or give train.Mean(values.sum(), how many)""",
        ),
        (
            run(lambda p, m, b: (mean_over_examples(p, b), ({"n": b[1]}, {})), model_state={"n": 0.0}),
            ShapeError,
            """train.make_step: the step changes state.model_state['n'].
  expected  float64[]
  got       float64[6]""",
        ),
        (run(optimizer=optax.lbfgs()), StructureError, SEARCH),
        (run(optimizer=optax.lbfgs(), k=1, loss_scale=2.0), StructureError, SEARCH),
        (
            run(optimizer=optax.chain(optax.sgd(0.1), optax.scale_by_backtracking_linesearch(5))),
            StructureError,
            SEARCH,
        ),
        (run(optimizer=SOPHIA), StructureError, SEARCH),
        (run(optimizer=SAM), StructureError, ELSEWHERE.format("one that keeps a SAMState")),
        (
            run(k=0),
            ValueRangeError,
            "train.make_step: accumulate is 0.\n  expected  1 or more\n  got       0",
        ),
        (
            run(k=1.5),
            DTypeError,
            """train.make_step: accumulate is no integer.
  expected  an integer, 1 or more
  got       1.5 (float)""",
        ),
    ]
)
