"""The options that all tasks have in common: each does what it says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcnet as fn
from funcnet.errors import ValueRangeError
from funcnet.spec import Spec
from funcnet.tasks import _optimizer, _training
from funcnet.tasks._training import Training

SPECS = {
    "w": Spec((4, 3), jnp.float32, ("d_in", "d_out"), ((4, 3), "io")),
    "b": Spec((3,), jnp.float32, ("d_out",)),
}
PARAMS = {"w": np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3), "b": np.ones(3, np.float32)}
GRADS = {"w": np.full((4, 3), 2, np.float32), "b": np.full(3, -2, np.float32)}


def update(name, grads=GRADS, *, weight_decay=0.0, clip=None, rate=0.01, n=1):
    """What an optimizer adds to the params at its n-th step, and its state."""
    chosen = _optimizer.optimizer(name, rate, SPECS, weight_decay=weight_decay, clip=clip)
    params = jax.tree.map(jnp.asarray, PARAMS)
    with jax.numpy_dtype_promotion("standard"), jax.disable_jit():
        state = chosen.init(params)
        for _ in range(n):
            updates, state = chosen.update(jax.tree.map(jnp.asarray, grads), state, params)
    return updates, state


@pytest.mark.parametrize("name", _optimizer.OPTIMIZERS)
def test_every_optimizer_goes_downhill_and_decays_matrices_only(name):
    updates, state = update(name, n=2)  # soap's first makes its bases
    assert (updates["w"] < 0).all()
    assert (updates["b"] > 0).all()
    assert float(state.hyperparams["learning_rate"]) == pytest.approx(0.01)
    decayed, _ = update(name, n=2, weight_decay=0.5)
    np.testing.assert_allclose(decayed["w"] - updates["w"], -0.01 * 0.5 * PARAMS["w"], atol=1e-8)
    np.testing.assert_array_equal(decayed["b"], updates["b"])


def test_the_optimizers_are_those_of_their_names():
    first = {name: update(name)[0]["w"] for name in _optimizer.OPTIMIZERS}
    np.testing.assert_allclose(first["adamw"], -0.01, rtol=1e-5)
    np.testing.assert_allclose(first["lion"], -0.01, rtol=1e-5)
    np.testing.assert_allclose(first["sgd"], -0.01 * 1.9 * 2, rtol=1e-5)
    # The gradient has rank one, so muon's step has, too, and a length that does not depend on it.
    assert np.linalg.matrix_rank(first["muon"]) == 1
    assert {name: type(update(name)[1].inner_state) for name in ("adamw", "muon")}
    assert len({str(jax.tree.structure(update(name)[1])) for name in _optimizer.OPTIMIZERS}) == 7, (
        "soap's and shampoo's are alike"
    )


def test_clip():
    norm = float(optax.tree.norm(GRADS))
    for clip, expected in ((None, norm), (2 * norm, norm), (0.5, 0.5)):
        updates, _ = update("sgd", clip=clip, rate=1.0)
        assert float(optax.tree.norm(updates)) == pytest.approx(1.9 * expected, rel=1e-5)


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        ("cosine", [1.0, 0.86819805, 0.55, 0.1]),
        ("linear", [1.0, 0.775, 0.55, 0.1]),
        ("wsd", [1.0, 1.0, 1.0, 0.1]),
        ("constant", [1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_schedules(schedule, shares):
    assert [_optimizer.share(schedule, done, 0.1) for done in (0.0, 0.25, 0.5, 2.0)] == pytest.approx(shares)
    rate = _training.by_steps(Training(schedule=schedule, warmup=0), 3.0, 100)
    last = {"constant": 3.0}.get(schedule, 0.0)
    assert [float(rate(count)) for count in (0, 100)] == pytest.approx([3.0, last], abs=1e-6)


def test_warmup():
    rates = [float(_training.by_steps(Training(warmup=4), 1.0, 20)(count)) for count in range(21)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    default = _training.by_steps(Training(), 1.0, 20)
    assert [float(default(count)) for count in (0, 1, 20)] == pytest.approx([0.5, 1.0, 0.0])
    assert float(_training.by_steps(Training(), 1.0, 1)(0)) == 1.0, "a run of one step"


def test_the_step_measures_what_it_applies():
    rate = _training.by_steps(Training(warmup=2), 0.5, 4)
    chosen = _optimizer.optimizer("sgd", rate, SPECS, weight_decay=0.0)
    shapes = []

    def loss(params, batch):
        shapes.append(batch.shape)
        return (batch @ params["w"]).mean() + params["b"].sum()

    with jax.enable_x64(False):
        step = _training.make_step(loss, chosen, Training(accumulate=2))
        state = fn.train.init(PARAMS, chosen, key=jax.random.key(0))
        for expected in (0.25, 0.5):
            state, metrics = step(state, jnp.ones((6, 4)))
            assert float(metrics["learning_rate"]) == pytest.approx(expected)
    assert set(shapes) == {(3, 4)}, "in two parts"
    assert {"gradient_norm", "gradient_norm.w", "param_norm.b", "update_norm", "skipped"} <= metrics.keys()


def test_what_is_computed_in():
    tree = {"w": np.ones(2, np.float32)}
    assert _training.cast(Training())(tree) is tree
    for dtype in ("bfloat16", "float16"):
        assert _training.cast(Training(dtype=dtype))(tree)["w"].dtype == dtype


def test_the_time_of_a_run_is_part_of_its_position():
    now = [100.0]
    make = lambda: _training.Timed(fn.train.batches(np.arange(6), 2, seed=0), 2.0, lambda: now[0])
    batches = make()
    assert batches.done == 0
    first = next(batches)
    now[0] += 30
    assert batches.done == 0.25, "of two minutes, from the first batch on"
    position = batches.position()
    rest = [next(batches), next(batches)]
    now[0] += 90
    assert list(batches) == []
    now[0] += 1000
    again = make()
    again.seek(position)
    assert again.done == 0.25, "the time between the parts does not count"
    for expected in rest:
        np.testing.assert_array_equal(next(again), expected)
    assert not np.array_equal(first, rest[0])
    now[0] += 90
    assert list(again) == []
    endless = _training.Timed(fn.train.batches(np.arange(4), 2, seed=0, epochs=1), None, lambda: now[0])
    next(endless)
    now[0] += 1e9
    assert len(list(endless)) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("warmup", -1),
        ("clip", 0.0),
        ("clip", float("nan")),
        ("accumulate", 0),
        ("average", 1.0),
        ("average", -0.1),
        ("checkpoint_every", 0),
        ("minutes", 0.0),
        ("minutes", float("inf")),
    ],
)
def test_options_that_make_no_sense(name, value):
    with pytest.raises(ValueRangeError, match=f"{name} is "):
        Training(**{name: value})


def test_a_batch_that_cannot_be_taken_apart():
    Training(accumulate=4).check_batch(8)
    with pytest.raises(ValueRangeError) as raised:
        Training(accumulate=4).check_batch(6)
    assert str(raised.value) == (
        "accumulate is 4, which does not divide a batch of 6.\n  expected  a divisor of 6\n  got       4"
    )


def test_every_option_is_in_the_record():
    fields = set(Training.__dataclass_fields__)
    assert set(dataclasses.asdict(Training())) == fields
