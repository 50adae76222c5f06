import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcnet as fn
from funcnet.errors import DTypeError, ShapeError

KEY = jax.random.key(0)


def loss(params, batch, key):
    return sum(jnp.sum(leaf**2).astype(batch.dtype) for leaf in jax.tree.leaves(params)) + 0 * batch.sum()


def test_the_first_step_leaves_what_init_was_given():
    w = jnp.ones((3, 2))
    params = {"a": w, "b": w, "c": np.ones(4, np.float32)}  # one array at two places
    model_state, key = {"mean": jnp.zeros(2)}, jax.random.key(1)
    optimizer = optax.adam(0.1)
    state = fn.train.init(params, optimizer, key=key, model_state=model_state)
    step = fn.train.make_step(lambda p, m, b, k: (loss(p, b, k), (m, {})), optimizer)
    new, _ = step(state, jnp.ones(1))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in (w, key, model_state["mean"]))
    assert not np.array_equal(new.params["a"], w)


def test_an_optimizer_may_keep_the_params_themselves():
    keep = optax.GradientTransformation(
        lambda params: params, lambda updates, state, params=None: (updates, state)
    )
    params = {"w": jnp.ones(3)}
    state = fn.train.init(params, keep, key=KEY)
    state, _ = fn.train.make_step(loss, keep)(state, jnp.ones(1))
    assert not params["w"].is_deleted()
    np.testing.assert_array_equal(state.opt_state["w"], np.ones(3))
    np.testing.assert_array_equal(state.params["w"], 3 * np.ones(3))


def test_numbers_become_arrays_of_strong_type():
    state = fn.train.init({"scale": 0.5}, optax.sgd(0.1), key=KEY, model_state=1)
    assert isinstance(state.params["scale"], jax.Array)
    assert not any(leaf.weak_type for leaf in (state.step, state.params["scale"], state.model_state))


def test_another_default_implementation():
    with jax.default_prng_impl("rbg"):
        key = jax.random.key(0)
        state = fn.train.init({"w": jnp.ones(3)}, optax.sgd(0.1), key=key)
        assert jax.random.wrap_key_data(state.key) == key
        seen = []
        fn.train.make_step(lambda p, b, k: seen.append(k.dtype) or loss(p, b, k), optax.sgd(0.1)).lower(
            state, jnp.ones(1)
        )
    assert seen == [key.dtype]


def test_shardings_are_kept():
    mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    split, whole = jax.NamedSharding(mesh, jax.P("d")), jax.NamedSharding(mesh, jax.P())
    params = {"w": jax.device_put(jnp.ones((8, 3)), split), "b": jax.device_put(jnp.ones(3), whole)}
    state = fn.train.init(params, optax.sgd(0.1), key=KEY)
    assert state.params["w"].sharding == split
    assert state.params["b"].sharding == whole
    assert state.step.sharding == state.key.sharding == whole
    assert not fn.train.init({}, optax.sgd(0.1), key=KEY).key.committed


@pytest.mark.parametrize(
    ("params", "key", "error", "text"),
    [
        (
            {"layers": [{"w": jnp.ones((2, 3), jnp.int32)}]},
            KEY,
            DTypeError,
            """train.init: params['layers'][0]['w'] cannot be trained: it has no gradient.
  expected  floating-point arrays
  got       int32[2, 3]
  hint      what the model keeps without a gradient goes into model_state""",
        ),
        (
            {"w": "float32"},  # the name of a dtype is one to JAX
            KEY,
            DTypeError,
            """train.init: params['w'] cannot be trained: it has no gradient.
  expected  floating-point arrays
  got       'float32' (str)""",
        ),
        (
            {"w": np.ma.masked_array([1.0, 2.0], [True, False])},
            KEY,
            DTypeError,
            """train.init: params['w'] cannot be trained: it has no gradient.
  expected  floating-point arrays
  got       float64[2], masked""",
        ),
        (
            {},
            jax.random.PRNGKey(0),
            DTypeError,
            """train.init: key is not a typed key.
  expected  a typed key, as jax.random.key(seed) makes it
  got       uint32[2]
  hint      jax.random.wrap_key_data(key) makes a typed key of an old one""",
        ),
        (
            {},
            0,
            DTypeError,
            """train.init: key is not a typed key.
  expected  a typed key, as jax.random.key(seed) makes it
  got       0 (int)""",
        ),
        (
            {},
            jax.random.key(0, impl="rbg"),
            DTypeError,
            """train.init: key is not of the default implementation.
  expected  a key of threefry2x32, JAX's default here
  got       a key of rbg
  hint      jax.config.update("jax_default_prng_impl", "rbg") makes it the default""",
        ),
        (
            {},
            jax.random.split(KEY, 3),
            ShapeError,
            """train.init: key is an array of keys; a run has one.
  expected  a scalar key: key<...>[]
  got       key<fry>[3]
  hint      take one of them: key[0]""",
        ),
    ],
)
def test_errors(unchecked, params, key, error, text):
    with pytest.raises(error) as raised:
        fn.train.init(params, optax.sgd(0.1), key=key)
    assert str(raised.value) == text
    assert None not in (raised.value.path, raised.value.expected, raised.value.actual)


def test_a_model_state_of_arrays(unchecked):
    with pytest.raises(DTypeError) as raised:
        fn.train.init({}, optax.sgd(0.1), key=KEY, model_state={"name": "text"})
    assert str(raised.value) == (
        "train.init: model_state['name'] is no array.\n  expected  arrays\n  got       'text' (str)"
    )
