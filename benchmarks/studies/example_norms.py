"""Norms of single examples' gradients by formula: their price beside the plain gradient, and vmap(grad)'s.

Per net: the gradient of the mean loss; the norms alone; losses, gradient and norms of one pass; the sum of
clipped gradients; and the norms by the gradients of single examples, `jax.vmap(jax.grad(...))`. Each is one
jitted program, float32; memory is XLA's temporary bytes of it. The difference is the largest of the norms by
formula and by vmap, relative to each.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import funcnet as fn
from benchmarks.harness import WHOLE, Scale, Table, compare
from funcnet.analysis import clip_per_example, example_norms
from funcnet.nets import convnet, resnet, transformer, vit

LIMITS = {"gpt": (0.8, 1.6), "images": (2.2, 2.5)}  # of the norms, and with gradients, × the plain gradient


def run(scale: Scale) -> list[Table]:
    """One table: a row for each net."""
    quick = scale != WHOLE
    rows = [_row(name, *net, rounds=2 if quick else 7) for name, net in _nets(quick).items()]
    limits = "; ".join(f"{name} {alone} and {both}" for name, (alone, both) in LIMITS.items())
    note = (
        "× is relative to the plain gradient: above 1, that one is faster. Limits of the norms, and of the "
        f"norms with gradients: {limits}."
    )
    return [Table("Norms of single examples' gradients", rows, note)]


def _row(name: str, loss: Callable[..., Any], params: Any, batch: Any, *, rounds: int) -> dict[str, object]:
    programs = {
        "gradient": lambda p, b: jax.grad(lambda p: loss(p, b).mean())(p),
        "norms": example_norms(loss),
        "with gradients": lambda p, b: example_norms(loss)(p, b, grads=True),
        "clipped": clip_per_example(loss, 1.0),
        "vmap(grad)": partial(_by_vmap, loss),
    }
    compiled = {name: jax.jit(f).lower(params, batch).compile() for name, f in programs.items()}
    got, want = (np.asarray(compiled[name](params, batch)) for name in ("norms", "vmap(grad)"))
    calls = {name: partial(program, params, batch) for name, program in compiled.items()}
    row: dict[str, object] = {"net": name}
    row |= compare(calls, rounds=rounds, warmup=1)
    row |= {f"{name}, temp MB": _memory(program) for name, program in compiled.items()}
    return row | {"largest difference": float(np.abs(got / want - 1).max())}


def _by_vmap(loss: Callable[..., Any], params: Any, batch: Any) -> jax.Array:
    one = lambda params, entry: loss(params, jax.tree.map(lambda v: v[None], entry))[0]
    grads = jax.vmap(jax.grad(one), (None, 0))(params, batch)
    return jnp.sqrt(sum((g.reshape(len(g), -1) ** 2).sum(1) for g in jax.tree.leaves(grads)))


def _memory(program: jax.stages.Compiled) -> float:
    """Temporary megabytes of a compiled program."""
    analysis = program.memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes / 2**20


def _nets(quick: bool) -> dict[str, tuple[Callable[..., Any], Any, Any]]:
    small = 4 if quick else 1
    nets = {
        f"gpt 2 × 256, {n // small} × {t} tokens, {kind}": _gpt(n // small, t, **options)
        for n, t in ((16, 64), (4, 256))
        for kind, options in {"tied": {}, "untied": {"tied": False}, "tied, chunks": {"chunks": True}}.items()
    }
    digits = convnet.Config((8, 8, 1), (32, 64))
    deep = convnet.Config((8, 8, 1), (32, 64), depth=2)
    fashion = convnet.Config((28, 28, 1), (32, 64))
    nets["digits convnet"] = _images(convnet, digits, 256 // small)
    nets["digits convnet, depth 2"] = _images(convnet, deep, 256 // small)
    nets["fashion convnet"] = _images(convnet, fashion, 64 // small)
    nets["resnet 20, evaluation"] = _resnet(resnet.Config((32, 32, 3)), 32 // small)
    nets["vit 2 × 64"] = _images(vit, vit.Config((32, 32, 3), (4, 4), 2, 4, 64, classes=10), 32 // small)
    return nets


def _gpt(n: int, t: int, *, chunks: bool = False, **options: Any) -> tuple[Callable[..., Any], Any, Any]:
    config = transformer.Config(2048, context=t, layers=2, heads=4, d=256, **options)

    def loss(params: Any, batch: Any) -> jax.Array:
        ids, labels = batch
        x = transformer.hidden(params, ids, config)
        if chunks:
            losses = fn.linear_cross_entropy.apply(x, transformer.head(params, config), labels)
        else:
            losses = fn.cross_entropy.apply(transformer.logits(params, x, config), labels)
        return losses.mean(-1)

    ids = np.random.default_rng(0).integers(0, 2048, (n, t + 1))
    batch = jnp.asarray(ids[:, :-1], jnp.int32), jnp.asarray(ids[:, 1:], jnp.int32)
    return loss, jax.jit(transformer.init)(jax.random.key(0), config), batch


def _images(net: Any, config: Any, n: int) -> tuple[Callable[..., Any], Any, Any]:
    loss = lambda params, batch: fn.cross_entropy.apply(net.apply(params, batch[0], config), batch[1])
    return loss, _moved(net.init(jax.random.key(0), config)), _batch(config, n)


def _resnet(config: resnet.Config, n: int) -> tuple[Callable[..., Any], Any, Any]:
    state = resnet.init_state(config)

    def loss(params: Any, batch: Any) -> jax.Array:
        logits, _ = resnet.apply(params, state, batch[0], config, train=False)
        return fn.cross_entropy.apply(logits, batch[1])

    return loss, _moved(resnet.init(jax.random.key(0), config)), _batch(config, n)


def _moved(params: Any) -> Any:
    """A little beside where they are drawn: a head or a gain of zeros hides the gradients behind it."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda v: v + 0.02 * jnp.asarray(rng.standard_normal(v.shape), v.dtype), params)


def _batch(config: Any, n: int) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.standard_normal((n, *config.image)), jnp.float32)
    return images, jnp.asarray(rng.integers(0, config.classes, n), jnp.int32)
