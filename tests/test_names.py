"""What people type who come from elsewhere: the error says what to write."""

import jax
import jax.numpy as jnp
import optax
import pytest

import funcnet as fn
from funcnet.nets import mlp, transformer

HERE = {
    "Linear": "fn.linear", "dense": "fn.linear", "Dense": "fn.linear", "Conv2d": "fn.conv",
    "conv1d": "fn.conv",
    "BatchNorm1d": "fn.batch_norm", "LayerNorm": "fn.layer_norm", "ReLU": "fn.relu", "Embed": "fn.embedding",
    "MultiHeadAttention": "fn.multihead", "LSTMCell": "fn.lstm", "CrossEntropyLoss": "fn.cross_entropy",
    "sofmax": "fn.softmax", "batchnorm": "fn.batch_norm", "Module": "a dict of params", "jit": "jax.jit",
}  # fmt: skip
LINEAR = "fn.linear.init(key, d_in, d_out), then fn.linear.apply(params, x)"


@pytest.mark.parametrize("name", HERE)
def test_a_name_from_elsewhere_is_told_by_its_own(name):
    with pytest.raises(AttributeError, match=f"module 'funcnet' has no attribute '{name}'") as told:
        getattr(fn, name)
    assert HERE[name] in str(told.value)


def test_every_name_that_is_told_exists():
    from funcnet import _names

    for told in _names._ELSEWHERE.values():
        if told.startswith("fn."):
            value = fn
            for part in told.split(",")[0].removeprefix("fn.").split("."):
                value = getattr(value, part)


def test_a_name_like_nothing_is_guessed_at_by_nobody():
    with pytest.raises(AttributeError, match=r"has no attribute 'xyzzy'; dir\(funcnet\)"):
        _ = fn.xyzzy
    assert not hasattr(fn, "__wrapped__")


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: fn.relu(jnp.ones(3)), "fn.relu.apply(x)"),  # pyright: ignore[reportCallIssue]
        (lambda: fn.linear(3, 4), LINEAR),  # pyright: ignore[reportCallIssue]
        (lambda: fn.dropout(0.5), "fn.dropout.apply(x, rate=...)"),  # pyright: ignore[reportCallIssue]
    ],
)
def test_an_operation_that_is_called_itself_says_how(call, expected):
    with pytest.raises(fn.errors.DTypeError, match="is not called itself") as told:
        call()
    assert told.value.expected == expected


def test_every_operation_says_how_it_is_called():
    from funcnet import _OPERATIONS

    for name in _OPERATIONS:
        with pytest.raises(fn.errors.DTypeError, match=rf"fn\.{name}\.apply\("):
            getattr(fn, name)()


def test_a_short_name_of_a_dtype_is_written_out():
    with pytest.raises(fn.errors.ValueRangeError) as told:
        transformer.Config(vocabulary=11, dtype="bf16")
    assert told.value.hint == 'write "bfloat16".'


def test_init_with_its_arguments_exchanged_says_their_order(unchecked):
    with pytest.raises(fn.errors.DTypeError) as told:
        mlp.init(mlp.Config((3, 4)), jax.random.key(0))  # pyright: ignore[reportArgumentType]
    assert told.value.hint == "the order is (key, config)."


def test_a_missing_folder_says_that_nothing_is_downloaded():
    with pytest.raises(FileNotFoundError, match=r"hub\.load downloads nothing"):
        fn.hub.load("gpt2")


def test_a_batch_of_images_without_the_axis_of_channels_is_told_how_to_add_it(unchecked):
    params = fn.conv.init(jax.random.key(0), 1, 4, kernel=(3, 3))
    with pytest.raises(fn.errors.ShapeError) as told:
        fn.conv.apply(params, jnp.ones((5, 28, 28)))
    assert told.value.hint == "is the channel axis missing? x[..., None] adds it."


def test_config_and_params_exchanged(unchecked):
    config = mlp.Config((3, 2))
    params = mlp.init(jax.random.key(0), config)
    with pytest.raises(fn.errors.DTypeError) as told:
        mlp.apply(config, jnp.ones((1, 3)), params)  # pyright: ignore[reportArgumentType]
    assert told.value.hint == "the order is (params, x, config)."


def test_a_loss_that_takes_a_state_which_the_run_has_not():
    def loss(params, model_state, batch):
        return params["w"].sum(), (model_state, {})

    optimizer = optax.sgd(0.1)
    state = fn.train.init({"w": jnp.ones(2)}, optimizer, key=jax.random.key(0))
    with pytest.raises(fn.errors.StructureError) as told:
        fn.train.make_step(loss, optimizer)(state, jnp.ones(2))
    assert told.value.hint == "this run has no model_state: give it the one that the function takes"


def test_a_state_used_twice():
    optimizer = optax.sgd(0.1)
    step = fn.train.make_step(lambda params, batch: (params["w"] * batch).sum(), optimizer)
    state = fn.train.init({"w": jnp.ones(2)}, optimizer, key=jax.random.key(0))
    step(state, jnp.ones(2))
    with pytest.raises(fn.errors.ValueRangeError) as told:
        fn.train.fit(step, state, [jnp.ones(2)], progress=False)
    assert told.value.hint == "to start from one state twice, give each a copy: jax.tree.map(jnp.copy, state)"
