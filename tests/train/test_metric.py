import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcnet as fn
from funcnet.errors import DTypeError, ShapeError, StructureError
from funcnet.train import Mean
from tests.errors import golden

RNG = np.random.default_rng(0)
X, Y, WEIGHTS = (
    RNG.normal(size=(12, 3)),
    RNG.normal(size=12),
    np.array([1.0, 0, 3, 0, 0, 0, 0, 0, 2, 1, 0, 0]),
)


def squares(params, batch):
    x, y, weights = batch
    return weights * (x @ params["w"] - y) ** 2


def loss(params, batch, key):
    weights = batch[2]
    return Mean(squares(params, batch).sum(), weights.sum()), {
        "places": Mean((weights > 0).sum(), weights.sum())
    }


def start(optimizer):
    return fn.train.init({"w": jnp.ones(3)}, optimizer, key=jax.random.key(0))


@pytest.mark.as_users
def test_a_step_takes_the_gradient_of_the_quotient():
    optimizer = optax.sgd(0.1)
    state, metrics = fn.train.make_step(loss, optimizer)(start(optimizer), (X, Y, WEIGHTS))
    params = {"w": jnp.ones(3)}
    value, grads = jax.value_and_grad(lambda p: squares(p, (X, Y, WEIGHTS)).sum() / WEIGHTS.sum())(params)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-6)
    np.testing.assert_allclose(state.params["w"], 1 - 0.1 * grads["w"], rtol=1e-6)
    np.testing.assert_allclose(metrics["places"], 4 / 7, rtol=1e-6)


@pytest.mark.parametrize("optimizer", [optax.adamw(0.1), optax.noisy_sgd(0.1, key=jax.random.key(0))])
def test_a_batch_without_weight_leaves_params_and_optimizer_alone(optimizer):
    step = fn.train.make_step(loss, optimizer)
    state, _ = step(start(optimizer), (X, Y, WEIGHTS))
    before = jax.tree.map(jnp.copy, state)
    state, metrics = step(state, (X, Y, 0 * WEIGHTS))
    assert metrics == {"loss": 0.0, "places": 0.0, "skipped": 0}, "a NaN would end the run"
    assert state.faults == 0
    kept = (before.params, before.opt_state), (state.params, state.opt_state)
    assert jax.tree.all(jax.tree.map(lambda a, b: jnp.all(a == b), *kept))
    assert state.step == 2
    state, _ = step(state, (X, Y, WEIGHTS))
    assert not np.array_equal(state.params["w"], before.params["w"])
    assert step._cache_size() == 1  # pyright: ignore[reportAttributeAccessIssue]


def test_a_mean_with_a_model_state():
    def stateful(params, model_state, batch):
        return Mean(squares(params, batch).sum(), batch[2].sum()), (model_state + 1, {})

    optimizer = optax.sgd(0.1)
    state = fn.train.init({"w": jnp.ones(3)}, optimizer, key=jax.random.key(0), model_state=0)
    state, history = fn.train.fit(
        fn.train.make_step(stateful, optimizer), state, [(X, Y, WEIGHTS), (X, Y, 0 * WEIGHTS)], progress=False
    )
    np.testing.assert_allclose(history[0]["loss"], squares({"w": np.ones(3)}, (X, Y, WEIGHTS)).sum() / 7)
    assert history[1]["loss"] == 0.0
    assert state.model_state == 2


def test_counts_are_exact_where_the_total_is_short():
    # 1001 is 1000 in bfloat16.
    short = fn.train.make_step(lambda p, b: Mean((p["w"] * 1001).astype(jnp.bfloat16), b.sum()), optax.sgd(0))
    state = fn.train.init({"w": jnp.ones((), jnp.float32)}, optax.sgd(0.0), key=jax.random.key(0))
    _, metrics = short(state, np.ones(1001, np.int32))
    assert metrics["loss"].dtype == jnp.float32
    np.testing.assert_allclose(metrics["loss"], float(jnp.bfloat16(1001)) / 1001, rtol=1e-6)


def measure(params, batch):
    logits, labels = batch
    losses = fn.cross_entropy.apply(logits, labels, ignore_index=-1)
    return {"loss": Mean(losses.sum(), (labels != -1).sum()), "size": labels.size}


@pytest.mark.parametrize("size", [1, 4, 5, 9])
def test_evaluate_adds_up_both_parts_and_divides_once(size):
    # A third of the places labelled, unevenly: 0 to 2 of a batch of 4.
    labels = np.array([0, -1, -1, -1, -1, -1, 1, 2, -1])
    means = fn.train.evaluate(measure, {}, fn.train.in_order((np.zeros((9, 5)), labels), size))
    np.testing.assert_allclose(means["loss"], np.log(5), rtol=1e-6)


def test_a_mean_of_nothing_is_nan_in_the_end():
    batches = fn.train.in_order((np.zeros((3, 5)), np.full(3, -1)), 2)
    assert np.isnan(fn.train.evaluate(measure, {}, batches)["loss"])


def evaluated(metric, batches=None):
    batches = [np.ones((4, 3))] if batches is None else batches
    return lambda: fn.train.evaluate(lambda params, batch: {"m": metric(batch)}, {}, batches)


def stepped(metrics):
    step = fn.train.make_step(lambda p, b, k: (jnp.sum(p["w"]), metrics), optax.sgd(0.1))
    return lambda: step(start(optax.sgd(0.1)), X)


NEITHER = """{}: metrics["m"] is neither a real number nor an array of them.
  expected  a real number or array, or a Mean
  got       {}"""
NESTED = "\n  hint      bring its entries into the one dict, each with its own name"
test_errors = golden(
    [
        (evaluated(lambda b: None), DTypeError, NEITHER.format("train.evaluate", "None (NoneType)")),
        (
            evaluated(lambda b: b.astype(complex)),
            DTypeError,
            NEITHER.format("train.evaluate", "complex128[4, 3]"),
        ),
        (evaluated(lambda b: {"n": b}), DTypeError, NEITHER.format("train.evaluate", "a dict") + NESTED),
        (evaluated(lambda b: [b]), DTypeError, NEITHER.format("train.evaluate", "a list")),
        (stepped({"m": None}), DTypeError, NEITHER.format("train.make_step", "None (NoneType)")),
        (
            stepped({"m": jnp.ones(2, complex)}),
            DTypeError,
            NEITHER.format("train.make_step", "complex128[2]"),
        ),
        (stepped({"m": {"n": 1.0}}), DTypeError, NEITHER.format("train.make_step", "a dict") + NESTED),
        (stepped({"m": "good"}), DTypeError, NEITHER.format("train.make_step", "'good' (str)")),
        (
            stepped({3: 1.0}),
            StructureError,
            """train.make_step: loss returned a dict in which a name is no string.
  expected  a dict of arrays
  got       3 (int)""",
        ),
        (
            evaluated(lambda b: b.mean(0)),  # three numbers of one batch would be averaged in silence
            ShapeError,
            """train.evaluate: metrics["m"] has no value for each example.
  expected  one number, or a first axis of 4, one entry per example
  got       float64[3]
  hint      give each of them its own name""",
        ),
        (
            evaluated(lambda b: Mean(b, b.sum())),
            ShapeError,
            """train.evaluate: metrics["m"].total is not a real number.
  expected  a real scalar
  got       float64[4, 3]
  hint      sum it: .sum()""",
        ),
        (
            evaluated(lambda b: Mean(b.sum(), None)),
            DTypeError,
            """train.evaluate: metrics["m"].weight is not a real number.
  expected  a real scalar
  got       None (NoneType)""",
        ),
    ]
)


def test_a_metric_that_is_no_array_at_all(unchecked):
    with pytest.raises(DTypeError, match="metrics returned what is no array"):
        evaluated(lambda b: "good")()


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (lambda p, b: Mean(b @ p["w"], 4), ShapeError),
        (lambda p, b: Mean(jnp.sum(p["w"]), b.mean(1)), ShapeError),
        (lambda p, b: Mean(jnp.sum(p["w"]), None), DTypeError),
        (lambda p, b: Mean(jnp.sum(p["w"]), 1j), DTypeError),
        (lambda p, b: Mean(jnp.sum(p["w"] > 0), 4), DTypeError),
        (lambda p, b: (Mean(jnp.sum(p["w"]), 4), None), StructureError),
    ],
)
def test_a_loss_that_is_no_mean_of_scalars(unchecked, bad, error):
    with pytest.raises(error, match=r"train\.make_step"):
        fn.train.make_step(bad, optax.sgd(0.1))(start(optax.sgd(0.1)), X)
