"""Plain JAX by hand: nested dicts, `jax.nn`, `jax.lax`, optax and `jax.jit`."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax, nn

from benchmarks.models import DECAY, MOMENTUM, Convnet, Encoder, Gpt, Mlp, Model, Resnet, one_block

PACKAGE = "jax"
IDIOM = (
    "one `jax.jit` with `donate_argnums` over params and optimizer state: "
    "https://docs.jax.dev/en/latest/buffer_donation.html"
)
# What XLA gives YNNPACK by default, for one program in a process where funcnet's guard took some of it away;
# tests/benchmarks/test_peers.py holds the program equal to that of a process without the guard.
DEFAULT_FLAGS = {
    "xla_cpu_experimental_ynn_fusion_type": ",".join(
        f"LIBRARY_FUSION_TYPE_{name}" for name in ("INDIVIDUAL_DOT", "INDIVIDUAL_CONVOLUTION", "REDUCE")
    )
}


def train(model: Model, **jit: Any) -> Callable[[], Any]:
    """A step per call; gives the loss before it. Further options are those of `jax.jit`."""
    return repeated(*program(model, **jit))


def train_default_flags(model: Model) -> Callable[[], Any]:
    """The same under XLA's default flags, in whatever process."""
    return train(model, compiler_options=DEFAULT_FLAGS)


def memory(model: Model) -> int:
    """Bytes that the compiled step plans."""
    step, state, data = program(model)
    return planned(step.lower(*state, *data).compile())


def first(model: Gpt, loop: bool) -> dict[str, Callable[[Any], Any]]:
    """The stages up to the end of the first step."""
    step, state, data = program(model, loop=loop)
    return stages(step, *state, *data)


def repeated(step: Any, carry: Sequence[Any], data: Sequence[Any]) -> Callable[[], Any]:
    """A step per call, of what it carries, which comes back first, and the batch; gives the loss."""

    def call() -> Any:
        nonlocal carry
        *carry, loss = step(*carry, *data)
        return loss

    return call


def planned(compiled: Any) -> int:
    """Bytes of arguments, temporaries and results, without the results that take the place of arguments."""
    plan = compiled.memory_analysis()
    needed = plan.argument_size_in_bytes + plan.temp_size_in_bytes + plan.output_size_in_bytes
    return needed - plan.alias_size_in_bytes


def stages(step: Any, *args: Any) -> dict[str, Callable[[Any], Any]]:
    """Those of a jitted function."""
    jax.block_until_ready(args)
    return {
        "trace": lambda _: step.trace(*args),
        "lower": lambda traced: traced.lower(),
        "compile": lambda lowered: lowered.compile(),
        "run": lambda compiled: jax.block_until_ready(compiled(*args)),
    }


def program(model: Model, *, loop: bool = False, **jit: Any) -> tuple[Any, Any, Any]:
    """The jitted step, what it carries, and the batch."""
    loss, optimizer = _loss(model, loop), optimizer_of(model)
    params, data = jax.tree.map(jnp.asarray, (model.weights(), model.data()))
    if isinstance(model, Gpt) and not loop:
        params["blocks"] = [one_block(params["blocks"], i) for i in range(model.layers)]

    def step(params: Any, opt_state: Any, *carry_and_data: Any) -> tuple[Any, ...]:
        *carry, x, y = carry_and_data
        (value, carry), grads = jax.value_and_grad(loss, has_aux=True)(params, *carry, x, y)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, *carry, value

    carry = (_statistics(model),) if isinstance(model, Resnet) else ()
    donated = tuple(range(2 + len(carry)))
    return jax.jit(step, donate_argnums=donated, **jit), (params, optimizer.init(params), *carry), data


def optimizer_of(model: Model) -> optax.GradientTransformation:
    """The optimizer that models.py names; every peer on JAX takes it."""
    if isinstance(model, Mlp):
        return optax.adam(model.rate)
    if isinstance(model, Convnet | Resnet):
        return optax.sgd(model.rate, MOMENTUM)
    return optax.adamw(model.rate, weight_decay=DECAY)


def _loss(model: Model, loop: bool) -> Callable[..., Any]:
    """(params, *carry, x, y) to the loss and the new carry."""
    if isinstance(model, Resnet):

        def stateful(params: Any, state: Any, x: Any, y: Any) -> Any:
            logits, state = _resnet(model, params, state, x)
            return _cross_entropy(logits, y), (state,)

        return stateful
    if isinstance(model, Encoder):
        return lambda params, x, y: (jnp.mean((_encoder(params, x) - y) ** 2), ())
    forward = {Mlp: _mlp, Convnet: _convnet, Gpt: partial(_gpt, loop)}[type(model)]
    return lambda params, x, y: (_cross_entropy(forward(params, x), y), ())


def _cross_entropy(logits: Any, labels: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _linear(params: Any, x: Any) -> Any:
    return x @ params["w"] + params["b"]


def _mlp(params: Any, x: Any) -> Any:
    *hidden, last = params["layers"]
    for layer in hidden:
        x = nn.relu(_linear(layer, x))
    return _linear(last, x)


def _conv(params: Any, x: Any, stride: int = 1) -> Any:
    return lax.conv_general_dilated(
        x, params["w"], (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _convnet(params: Any, x: Any) -> Any:
    for conv in params["convs"]:
        x = nn.relu(_conv(conv, x) + conv["b"])
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return _linear(params["head"], x.reshape(x.shape[0], -1))


def _statistics(model: Resnet) -> Any:
    """The running mean and variance of every norm, in the order of the layers."""
    channels = [model.channels[0]]
    for c_in, c_out, stride in model.layout():
        channels += [c_out] * (3 if stride > 1 or c_in != c_out else 2)
    return [(jnp.zeros(c), jnp.ones(c)) for c in channels]


def _resnet(model: Resnet, params: Any, state: Any, x: Any) -> tuple[Any, Any]:
    olds, news = iter(state), []

    def norm(params: Any, x: Any) -> Any:
        mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        old_mean, old_var = next(olds)
        news.append((0.9 * old_mean + 0.1 * mean, 0.9 * old_var + 0.1 * var))
        return (x - mean) * (lax.rsqrt(var + 1e-5) * params["w"]) + params["b"]

    x = nn.relu(norm(params["stem"]["norm"], _conv(params["stem"]["conv"], x)))
    for block, (_, _, stride) in zip(params["blocks"], model.layout(), strict=True):
        y = nn.relu(norm(block["norm1"], _conv(block["conv1"], x, stride)))
        y = norm(block["norm2"], _conv(block["conv2"], y))
        if "project" in block:
            x = norm(block["norm"], _conv(block["project"], x, stride))
        x = nn.relu(x + y)
    return _linear(params["head"], x.mean((1, 2))), news


def _layer_norm(params: Any, x: Any, eps: float = 1e-5) -> Any:
    mean = x.mean(-1, keepdims=True)
    var = jnp.square(x - mean).mean(-1, keepdims=True)
    return (x - mean) * lax.rsqrt(var + eps) * params["w"] + params["b"]


def _attention(params: Any, x: Any, causal: bool) -> Any:
    q, k, v = (jnp.einsum("ntd,dhe->nthe", x, params[name]["w"]) + params[name]["b"] for name in "qkv")
    o = nn.dot_product_attention(q, k, v, is_causal=causal)
    return jnp.einsum("nthe,hed->ntd", o, params["o"]["w"]) + params["o"]["b"]


def _gpt(loop: bool, params: Any, ids: Any) -> Any:
    def block(x: Any, layer: Any) -> Any:
        x = x + _attention(layer["attention"], _layer_norm(layer["norm1"], x), causal=True)
        return x + _linear(layer["down"], nn.gelu(_linear(layer["up"], _layer_norm(layer["norm2"], x))))

    x = params["tokens"]["w"][ids] + params["positions"]["w"]
    if loop:
        x, _ = lax.scan(lambda x, layer: (block(x, layer), None), x, params["blocks"])
    else:
        for layer in params["blocks"]:
            x = block(x, layer)
    return _layer_norm(params["norm"], x) @ params["tokens"]["w"].T


def _encoder(params: Any, x: Any) -> Any:
    x = _layer_norm(params["norm1"], x + _attention(params["attention"], x, causal=False), 1e-12)
    hidden = nn.gelu(_linear(params["up"], x), approximate=False)
    return _layer_norm(params["norm2"], x + _linear(params["down"], hidden), 1e-12)
