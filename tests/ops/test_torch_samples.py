"""PyTorch's own sample inputs, of the operations that it has under some name: values and gradients.

They are what PyTorch tests itself with (torch.testing._internal, which needs expecttest). Those are left
out that say what funcnet has not: other norms than 2, running statistics that are used, softplus that turns
into a line, arrays without axes where there must be one.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnet as fn

NAMES = {
    **{
        name: name
        for name in ("celu", "elu", "leaky_relu", "mish", "relu", "relu6", "selu", "sigmoid", "silu")
    },
    **{name: name for name in ("softplus", "softsign", "tanh")},
    "bilinear": "bilinear",
    "gelu": "gelu",
    "glu": "glu",
    "hardshrink": "hard_shrink",
    "hardsigmoid": "hard_sigmoid",
    "hardswish": "hard_silu",
    "hardtanh": "hard_tanh",
    "instance_norm": "instance_norm",
    "linear": "linear",
    "log_softmax": "log_softmax",
    "logsigmoid": "log_sigmoid",
    "logsumexp": "logsumexp",
    "normalize": "l2_norm",
    "prelu": "prelu",
    "softmax": "softmax",
    "softshrink": "soft_shrink",
    "tanhshrink": "tanh_shrink",
    "threshold": "threshold",
}


def ours(name: str, arrays: list[Any], rest: list[Any], options: dict[str, Any]) -> Any:
    """What funcnet calls for PyTorch's arguments; None: what it has not."""
    x, *more = arrays
    if name == "glu":
        up, gate = jnp.split(x, 2, rest[0] if rest else -1)
        return fn.glu.apply(gate, up)
    if name == "gelu":
        return fn.gelu.apply(x, approximate=options.get("approximate") == "tanh")
    if name in ("linear", "bilinear"):
        w, *b = more[name == "bilinear" :]
        if w.ndim < 2 + (name == "bilinear"):
            return None
        params = {"w": jnp.moveaxis(w, 0, -1)} | ({"b": b[0]} if b else {})
        return getattr(fn, name).apply(params, x, *more[: name == "bilinear"])
    if name == "prelu":
        if x.ndim == 0:
            return None
        last = lambda v: jnp.moveaxis(v, 1, -1) if v.ndim > 1 else v
        shared = more[0].size == 1
        y = fn.prelu.apply({"w": more[0].reshape(-1)}, x if shared else last(x))
        return y if shared or x.ndim < 2 else jnp.moveaxis(y, -1, 1)
    if name == "instance_norm":
        if not options.pop("use_input_stats", True):
            return None
        channels, b = x.shape[1], options.get("bias")
        params = {"w": options["weight"] if options.get("weight") is not None else jnp.ones(channels)}
        params |= {} if b is None else {"b": b}
        y = fn.instance_norm.apply(params, jnp.moveaxis(x, 1, -1), eps=options.get("eps", 1e-5))
        return jnp.moveaxis(y, -1, 1)
    if name == "normalize":
        p, axis = options.get("p", 2.0), options.get("dim", 1)
        return fn.l2_norm.apply(x, axis, options.get("eps", 1e-12)) if p == 2 and x.ndim else None
    if name in ("softmax", "log_softmax", "logsumexp"):
        if x.ndim == 0:
            return None
        options.pop("dtype", None)
        return getattr(fn, name).apply(x, *rest, **options)
    if name == "threshold":
        return fn.threshold.apply(x, threshold=rest[0], value=rest[1])
    if "threshold" in options:
        return None
    return getattr(fn, NAMES[name]).apply(x, *rest, **options)


@pytest.fixture(scope="module")
def database():
    pytest.importorskip("torch")
    pytest.importorskip("expecttest")
    from torch.testing._internal.common_methods_invocations import op_db  # pyright: ignore[reportMissingImports]

    return op_db


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_sample_inputs(name, database, unchecked):
    import torch

    count, is_tensor = 0, lambda v: isinstance(v, torch.Tensor)
    for op in database:
        if op.name.removeprefix("nn.functional.") != name or op.variant_test_name == "complex":
            continue
        for sample in op.sample_inputs("cpu", torch.float64, requires_grad=False):
            tensors = [sample.input, *filter(is_tensor, sample.args)]
            rest = [a for a in sample.args if not is_tensor(a)]
            named = {k: v for k, v in sample.kwargs.items() if is_tensor(v)}
            if name == "prelu" and "weight" in named:
                tensors.append(named.pop("weight"))
            plain = {k: v for k, v in sample.kwargs.items() if not is_tensor(v)}
            leaves = [t.detach().clone().requires_grad_() for t in tensors]
            extra = {k: v.detach().clone() for k, v in named.items()}
            by_place = dict(zip(map(id, tensors), leaves, strict=True))
            args = [by_place[id(a)] if is_tensor(a) else a for a in sample.args]
            weight = {"weight": leaves[-1]} if name == "prelu" and "weight" in sample.kwargs else {}
            theirs = op(leaves[0], *args, **plain, **extra, **weight)
            options = plain | {k: jnp.asarray(v.numpy()) for k, v in extra.items()}

            def call(*arrays, options=options, rest=rest):
                return ours(name, list(arrays), rest, dict(options))

            x = [jnp.asarray(t.numpy()) for t in tensors]
            y = call(*x)
            if y is None:
                continue
            np.testing.assert_allclose(y, theirs.detach().numpy(), rtol=1e-9, atol=1e-9)
            dy = np.cos(np.arange(y.size)).reshape(y.shape)
            theirs.backward(torch.tensor(dy))
            for mine, leaf in zip(jax.vjp(call, *x)[1](jnp.asarray(dy)), leaves, strict=True):
                grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
                np.testing.assert_allclose(mine, grad.numpy(), rtol=1e-8, atol=1e-8)
            count += 1
    assert count or name == "softplus"
