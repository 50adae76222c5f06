import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcnet as fn
from funcnet.errors import DTypeError, ShapeError, StructureError
from funcnet.train.log import RESERVED

KEY = jax.random.key(7)
X = jax.random.normal(jax.random.key(0), (8, 3))
Y = X @ jnp.array([1.0, -2.0, 0.5])
OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "adam": optax.adam(0.1),
    "adamw": optax.adamw(0.1, mask={"w": True, "b": False}),
    "schedule": optax.adam(optax.cosine_decay_schedule(0.1, 10)),
    "clip": optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.1)),
    "plateau": optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=1)),
    "accumulate": optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
}


def params():
    return {"w": jnp.zeros(3), "b": jnp.zeros(())}


def loss(params, batch, key):
    x, y = batch
    return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)


def run(loss, optimizer=OPTIMIZERS["sgd"], steps=1, model_state=None, batch=(X, Y)):
    """Some steps; returns the state, the last metrics, and how often the loss was traced."""
    traces = []

    def counted(*args):
        traces.append(args)
        return loss(*args)

    state = fn.train.init(params(), optimizer, key=KEY, model_state=model_state)
    step, metrics = fn.train.make_step(counted, optimizer), {}
    for _ in range(steps):
        state, metrics = step(state, batch)
    return state, metrics, len(traces)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_equals_the_step_written_by_hand(name):
    optimizer = optax.with_extra_args_support(OPTIMIZERS[name])
    p = params()
    opt_state, losses = optimizer.init(p), []
    for _ in range(5):
        value, grads = jax.value_and_grad(loss)(p, (X, Y), KEY)
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimizer.update(grads, opt_state, p, value=value)
        p = optax.apply_updates(p, updates)
        losses.append(value)
    state, metrics, traces = run(loss, OPTIMIZERS[name], steps=5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), state.params, p)
    np.testing.assert_allclose(metrics["loss"], losses[-1], rtol=1e-12)
    assert state.step == 5
    assert traces == 1, "compiled more than once"


@pytest.mark.as_users
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_leaf_of_the_state_is_updated_in_place(name):
    model_state = {"mean": jnp.zeros(3), "count": jnp.zeros((), jnp.int32)}

    def stateful(params, model_state, batch, key):
        noise = jax.random.normal(key, ())
        return loss(params, batch, key) + noise, (jax.tree.map(lambda leaf: leaf + 1, model_state), {})

    optimizer = OPTIMIZERS[name]
    state = fn.train.init(params(), optimizer, key=KEY, model_state=model_state)
    step = fn.train.make_step(stateful, optimizer)
    every_leaf = [(leaf, leaf) for leaf in range(len(jax.tree.leaves(state)))]
    assert aliases(step, state) == every_leaf
    undonated = jax.jit(inspect.unwrap(step))
    assert aliases(undonated, state) == []


def aliases(step, state):
    """Which leaf of the new state lies where which leaf of the old one lay, as the compiled program says."""
    header = step.lower(state, (X, Y)).compile().as_text().partition("\n")[0]
    pairs = re.findall(r"\{(\d+)\}: \((\d+), \{\}, (?:may|must)-alias\)", header)
    return [(int(new), int(old)) for new, old in pairs]


def test_what_comes_back_is_the_jitted_function():
    step = fn.train.make_step(loss, optax.sgd(0.1))
    assert type(step) is type(jax.jit(lambda x: x))
    state = fn.train.init(params(), optax.sgd(0.1), key=KEY)
    assert step.trace(state, (X, Y)).jaxpr.out_avals
    assert step.loss is loss  # pyright: ignore[reportAttributeAccessIssue]


def test_each_step_has_its_own_key():
    def keyed(params, batch, key):
        return loss(params, batch, key), {"draw": jax.random.uniform(key, (), jnp.float32)}

    state, draws = fn.train.init(params(), optax.sgd(0.1), key=KEY), []
    step = fn.train.make_step(keyed, optax.sgd(0.1))
    for _ in range(3):
        state, metrics = step(state, (X, Y))
        draws.append(float(metrics["draw"]))
    expected = [jax.random.uniform(jax.random.fold_in(KEY, n), (), jnp.float32) for n in range(3)]
    assert draws == [float(draw) for draw in expected]
    assert len(set(draws)) == 3
    assert jax.random.wrap_key_data(state.key) == KEY


def test_model_state_and_metrics_go_through():
    def stateful(params, model_state, batch, key):
        x, _ = batch
        return loss(params, batch, key), ({"seen": model_state["seen"] + x.shape[0]}, {"mean": x.mean()})

    state, metrics, traces = run(stateful, model_state={"seen": jnp.zeros((), jnp.int32)}, steps=3)
    assert state.model_state["seen"] == 24
    assert metrics.keys() == {"loss", "mean", "skipped"}
    np.testing.assert_allclose(metrics["mean"], X.mean(), rtol=1e-12)
    assert traces == 1


def test_a_weakly_typed_model_state_compiles_once():
    # A Python number in the loss gives a weak type, which differs from that of the state that came in.
    _, _, traces = run(lambda p, m, b, k: (loss(p, b, k), (0.5, {})), model_state=0.25, steps=3)
    assert traces == 1


def test_float32_stays_float32_and_bfloat16_stays_bfloat16():
    for dtype in (jnp.float32, jnp.bfloat16):
        small = jax.tree.map(lambda leaf, dtype=dtype: leaf.astype(dtype), (params(), (X, Y)))
        state = fn.train.init(small[0], optax.adam(0.1), key=KEY)
        state, metrics = fn.train.make_step(loss, optax.adam(0.1))(state, small[1])
        assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype(dtype)}
        assert metrics["loss"].dtype == dtype


ERRORS = {
    "vector": (
        lambda p, b, k: b[0] @ p["w"],
        ShapeError,
        """train.make_step: the loss is not a scalar.
  expected  float64[]
  got       float64[8]
  hint      average the losses of the examples: .mean()""",
    ),
    "integer": (
        lambda p, b, k: jnp.sum(b[0] @ p["w"] > 0),
        DTypeError,
        """train.make_step: the loss is not a real floating-point number, so it has no gradient to follow.
  expected  a floating-point scalar
  got       int64[]""",
    ),
    "complex": (
        lambda p, b, k: jnp.sum(p["w"]).astype(complex),
        DTypeError,
        """train.make_step: the loss is not a real floating-point number, so it has no gradient to follow.
  expected  a floating-point scalar
  got       complex128[]""",
    ),
    "nothing": (
        lambda p, b, k: None,
        DTypeError,
        """train.make_step: the loss returned None (NoneType), not a number.
  expected  a floating-point scalar
  got       None (NoneType)
  hint      does it return its result?""",
    ),
    "list": (
        lambda p, b, k: [loss(p, b, k)],
        DTypeError,
        """train.make_step: the loss returned a list, not a number.
  expected  a floating-point scalar
  got       a list""",
    ),
    "pair": (
        lambda p, b, k: (loss(p, b, k), b[0] @ p["w"]),
        StructureError,
        """train.make_step: the loss returned a tuple that is not (scalar, metrics).
  expected  a scalar, or (scalar, dict of metrics)
  got       (float64[], float64[8])""",
    ),
    "triple": (
        lambda p, b, k: (loss(p, b, k), {}, {"accuracy": 1.0}),
        StructureError,
        """train.make_step: the loss returned a tuple that is not (scalar, metrics).
  expected  a scalar, or (scalar, dict of metrics)
  got       (float64[], {}, {'accuracy': ...})""",
    ),
    "metrics without names": (
        lambda p, b, k: (loss(p, b, k), (1.0, 2.0)),
        StructureError,
        """train.make_step: the loss returned a tuple that is not (scalar, metrics).
  expected  a scalar, or (scalar, dict of metrics)
  got       (float64[], (1.0 (float), 2.0 (float)))""",
    ),
    "unasked state": (
        lambda p, b, k: (loss(p, b, k), ({"mean": p["b"]}, {})),
        StructureError,
        """train.make_step: the loss returned a tuple that is not (scalar, metrics).
  expected  a scalar, or (scalar, dict of metrics)
  got       (float64[], ({'mean': ...}, {}))
  hint      give train.init the model_state that this loss returns""",
    ),
    "loss as metric": (
        lambda p, b, k: (loss(p, b, k), {"accuracy": 1.0, "loss": 2.0}),
        StructureError,
        f"""train.make_step: the loss returned a metric named "loss", which training records itself.
  expected  names other than {", ".join(RESERVED)}
  got       accuracy, loss""",
    ),
}

STATEFUL_ERRORS = {
    "state forgotten": (
        lambda p, m, b, k: (loss(p, b, k), {"accuracy": 1.0}),
        StructureError,
        """train.make_step: the loss of a run with a model state must return that state.
  expected  (scalar, (model_state, dict of metrics))
  got       (float64[], {'accuracy': ...})""",
    ),
    "vector": (
        lambda p, m, b, k: (b[0] @ p["w"], (m, {})),
        ShapeError,
        """train.make_step: the loss is not a scalar.
  expected  float64[]
  got       float64[8]
  hint      average the losses of the examples: .mean()""",
    ),
    "another structure": (
        lambda p, m, b, k: (loss(p, b, k), ({"average": m["mean"]}, {})),
        StructureError,
        """train.make_step: the step changes the structure of the state.
  expected  the structure that it had
  got       without state.model_state['mean'] and with state.model_state['average']""",
    ),
    "another node": (
        lambda p, m, b, k: (loss(p, b, k), ({**m, "extra": None}, {})),
        StructureError,
        "train.make_step: the step changes the structure of the state.",
    ),
    "another shape": (
        lambda p, m, b, k: (loss(p, b, k), ({"mean": b[0]}, {})),
        ShapeError,
        """train.make_step: the step changes state.model_state['mean'].
  expected  float32[3]
  got       float64[8, 3]""",
    ),
    "another type": (
        lambda p, m, b, k: (loss(p, b, k), ({"mean": b[0].mean(0)}, {})),
        DTypeError,
        """train.make_step: the step changes state.model_state['mean'].
  expected  float32[3]
  got       float64[3]""",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(unchecked, case):
    bad, error, text = ERRORS[case]
    with pytest.raises(error) as raised:
        run(bad)
    assert str(raised.value) == text


@pytest.mark.parametrize("case", STATEFUL_ERRORS)
def test_errors_with_a_model_state(unchecked, case):
    bad, error, text = STATEFUL_ERRORS[case]
    with pytest.raises(error) as raised:
        run(bad, model_state={"mean": jnp.zeros(3, jnp.float32)})
    assert str(raised.value).startswith(text)


def test_errors_leave_the_state_alone(unchecked):
    state = fn.train.init(params(), optax.sgd(0.1), key=KEY)
    with pytest.raises(ShapeError):
        fn.train.make_step(ERRORS["vector"][0], optax.sgd(0.1))(state, (X, Y))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))


# ---- watch ------------------------------------------------------------------------------------------------


def watched(loss=loss, optimizer=OPTIMIZERS["sgd"], batch=(X, Y), params=params, **options):
    state = fn.train.init(params(), optimizer, key=KEY)
    return fn.train.make_step(loss, optimizer, watch=True, **options)(state, batch)[1]


def norm(tree):
    return np.sqrt(sum(np.sum(np.abs(np.asarray(leaf, np.float64)) ** 2) for leaf in jax.tree.leaves(tree)))


def two_layers():
    return {"one": {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}, "two": jnp.full((2,), 3.0)}


def of_two_layers(params, batch):
    one, two = params["one"], params["two"]
    return jnp.mean((jnp.tanh(batch[0] @ one["w"] + one["b"]) @ two - batch[1]) ** 2)


@pytest.mark.parametrize("options", [{}, {"guard": False}, {"accumulate": 4}])
def test_watched_norms_by_their_definitions(options):
    p = two_layers()
    grads = jax.grad(of_two_layers)(p, (X, Y))
    metrics = watched(of_two_layers, params=two_layers, **options)
    expected = {
        name + block: norm(tree) * (0.1 if name == "update_norm" else 1)
        for name, whole in (("gradient_norm", grads), ("param_norm", p), ("update_norm", grads))
        for block, tree in [("", whole), *((f".{key}", part) for key, part in whole.items())]
    }
    assert metrics.keys() - {"loss", "skipped"} == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-6, err_msg=name)


def test_what_was_skipped_has_no_update():
    metrics = watched(batch=(X, Y * jnp.nan))
    assert metrics["update_norm"] == 0
    assert np.isnan(metrics["gradient_norm"])
    assert metrics["param_norm"] == 0


def test_blocks_of_a_list_and_of_one_array_and_of_mixed_types():
    mixed = lambda: [jnp.ones(2, jnp.bfloat16), jnp.full(2, 1e30, jnp.float32), jnp.full(2, 1j)]
    square = lambda ps, b: sum(jnp.real(p * p.conj()).astype(float).sum() for p in jax.tree.leaves(ps)) * 1e-9
    metrics = watched(square, params=mixed)
    assert {name for name in metrics if name.startswith("param_norm.")} == {
        "param_norm.0",
        "param_norm.1",
        "param_norm.2",
    }
    np.testing.assert_allclose(metrics["param_norm.2"], np.sqrt(2), rtol=1e-6)
    assert [name for name in watched(square, params=lambda: jnp.ones(3)) if "norm." in name] == []


@pytest.mark.parametrize("rate", [0.25, optax.linear_schedule(0.5, 0.0, 4)])
def test_the_learning_rate_is_shown_where_the_optimizer_shows_it(rate):
    optimizer = optax.chain(optax.clip(1.0), optax.inject_hyperparams(optax.sgd)(learning_rate=rate))
    metrics = watched(optimizer=optimizer)
    np.testing.assert_allclose(metrics["learning_rate"], 0.25 if rate == 0.25 else 0.5, rtol=1e-6)
    assert "learning_rate" not in watched()


def test_a_metric_with_a_watched_name_is_refused(unchecked):
    named = lambda p, b: (loss(p, b, None), {"gradient_norm.w": p["b"]})
    with pytest.raises(StructureError) as raised:
        watched(named)
    assert str(raised.value) == (
        """train.make_step: the loss returned a metric named "gradient_norm.w", which watch=True \
records itself.
  expected  another name
  got       loss, gradient_norm.w, skipped"""
    )
