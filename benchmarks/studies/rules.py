"""Each operation's hand-derived rule against what JAX derives from the same forward, and from the definition.

The reason for attaching a rule, or for not attaching one (docs/contract.md, "What runs"): one pass
(value and gradient of a sum of squares, jitted, float32) three ways: `apply` with its rule, `apply` under
`autodiff("jax")`, `reference` differentiated by JAX. Times are medians; memory is XLA's temporary bytes of
the pass, and the bytes kept between forward and backward.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import funcnet as fn
from benchmarks.harness import WHOLE, Scale, Table, compare


def _floats(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


def _cases() -> list[tuple[str, Any, tuple[Any, ...], dict[str, Any]]]:
    """Operation, arguments and options, at sizes of a small real model."""
    key, image, rows = jax.random.key(0), _floats(32, 32, 32, 64), _floats(4096, 768)
    q = _floats(4, 256, 6, 64)
    labels = jnp.arange(4096, dtype=jnp.int32) % 768
    conv, norm = partial(fn.conv.init, key), {"w": _floats(768), "b": _floats(768)}
    channels = {"w": _floats(64), "b": _floats(64)}
    state = {"mean": jnp.zeros(64), "var": jnp.ones(64)}
    return [
        ("linear", fn.linear, (fn.linear.init(key, 768, 768), rows), {}),
        ("matmul", fn.matmul, (_floats(16, 256, 256), _floats(16, 256, 256)), {}),
        (
            "moe, 2 of 8 experts",
            fn.moe,
            (fn.moe.init(key, 128, 256, 8, bias=False), _floats(4, 128, 128)),
            {},
        ),
        ("conv 3×3", fn.conv, (conv(64, 64, kernel=(3, 3)), image), {}),
        ("conv 3×3, stride 2", fn.conv, (conv(64, 64, kernel=(3, 3)), image), {"stride": 2}),
        ("conv 3×3, first layer", fn.conv, (conv(1, 32, kernel=(3, 3)), _floats(128, 28, 28, 1)), {}),
        ("conv 3×3, 8 groups", fn.conv, (conv(64, 64, kernel=(3, 3), groups=8), image), {"groups": 8}),
        (
            "conv k = 4, causal",
            fn.conv,
            (conv(64, 64, kernel=(4,)), _floats(8, 1024, 64)),
            {"padding": "causal"},
        ),
        ("attention, causal", fn.attention, (q, q, q), {"causal": True}),
        (
            "multihead, causal",
            fn.multihead,
            (fn.multihead.init(key, 384, 6), _floats(4, 256, 384)),
            {"causal": True},
        ),
        ("embedding, 65 tokens", fn.embedding, (fn.embedding.init(key, 65, 384), labels % 65), {}),
        ("embedding, 50k tokens", fn.embedding, (fn.embedding.init(key, 50304, 384), labels * 61), {}),
        ("layer_norm", fn.layer_norm, (norm, rows), {}),
        ("rms_norm", fn.rms_norm, ({"w": norm["w"]}, rows), {}),
        ("group_norm", fn.group_norm, (channels, image), {"groups": 8}),
        ("batch_norm", fn.batch_norm, (channels, state, image), {"train": True}),
        ("softmax", fn.softmax, (rows,), {}),
        ("relu", fn.relu, (rows,), {}),
        ("gelu", fn.gelu, (rows,), {}),
        ("gelu, tanh", fn.gelu, (rows,), {"approximate": True}),
        ("silu", fn.silu, (rows,), {}),
        ("sigmoid", fn.sigmoid, (rows,), {}),
        ("tanh", fn.tanh, (rows,), {}),
        ("mish", fn.mish, (rows,), {}),
        ("softplus", fn.softplus, (rows,), {}),
        ("elu", fn.elu, (rows,), {}),
        ("leaky_relu", fn.leaky_relu, (rows,), {}),
        ("prelu", fn.prelu, (fn.prelu.init(key, 768), rows), {}),
        ("log_softmax", fn.log_softmax, (rows,), {}),
        ("logsumexp", fn.logsumexp, (rows,), {}),
        ("l2_norm", fn.l2_norm, (rows,), {}),
        ("instance_norm", fn.instance_norm, (channels, image), {}),
        ("drop_path", fn.drop_path, (image,), {"rate": 0.1, "key": key}),
        ("dropout", fn.dropout, (rows,), {"rate": 0.1, "key": key}),
        ("max_pool 2×2", fn.max_pool, (image,), {"kernel": (2, 2)}),
        ("max_pool 3×3, stride 2", fn.max_pool, (image,), {"kernel": (3, 3), "stride": 2}),
        ("avg_pool 2×2", fn.avg_pool, (image,), {"kernel": (2, 2)}),
        ("max_pool 3×3, dilation 2", fn.max_pool, (image,), {"kernel": (3, 3), "stride": 1, "dilation": 2}),
        ("lp_pool 3×3, stride 2", fn.lp_pool, (image,), {"kernel": (3, 3), "stride": 2}),
        ("resize × 2, linear", fn.resize, (image,), {"scale": (2.0, 2.0)}),
        ("resize × 2, nearest", fn.resize, (image,), {"scale": (2.0, 2.0), "method": "nearest"}),
        (
            "resize ÷ 2.3, cubic, antialias",
            fn.resize,
            (image,),
            {"size": (14, 14), "method": "cubic", "antialias": True},
        ),
        ("pad, reflect", fn.pad, (image,), {"padding": ((3, 3), (3, 3)), "padding_mode": "reflect"}),
        ("adaptive_avg_pool 7×7", fn.adaptive_avg_pool, (image,), {"size": (7, 7)}),
        ("adaptive_avg_pool, global", fn.adaptive_avg_pool, (image,), {"size": (1, 1)}),
        ("adaptive_max_pool 7×7", fn.adaptive_max_pool, (image,), {"size": (7, 7)}),
        ("patches 3×3", fn.patches, (image[:8],), {"kernel": (3, 3)}),
        ("fold 3×3", fn.fold, (_floats(8, 30, 30, 576),), {"size": (32, 32), "kernel": (3, 3)}),
        ("pixel_shuffle × 2", fn.pixel_shuffle, (image,), {"factor": (2, 2)}),
        ("grid_sample, linear", fn.grid_sample, (image[:8], jnp.tanh(_floats(8, 32, 32, 2))), {}),
        ("mse", fn.mse, (rows, rows[::-1]), {}),
        ("cross_entropy", fn.cross_entropy, (rows, labels), {}),
        ("linear_cross_entropy, 8k", fn.linear_cross_entropy, (rows, _floats(768, 8192), labels), {}),
        ("rope", fn.rope, (q,), {}),
        ("swiglu", fn.swiglu, (rows, rows), {}),
        ("geglu", fn.geglu, (rows, rows), {}),
        ("lstm", fn.lstm, (fn.lstm.init(key, 256, 256), _floats(8, 256, 256)), {}),
        ("gru", fn.gru, (fn.gru.init(key, 256, 256), _floats(8, 256, 256)), {}),
        ("rnn", fn.rnn, (fn.rnn.init(key, 256, 256), _floats(8, 256, 256)), {}),
        (
            "linear_recurrence",
            fn.linear_recurrence,
            (jax.nn.sigmoid(_floats(8, 512, 256)), _floats(8, 512, 256)),
            {},
        ),
        (
            "linear_attention, t = 1024",
            fn.linear_attention,
            (*(_floats(1, 1024, 4, 64) for _ in range(3)), -jax.nn.softplus(_floats(1, 1024, 4))),
            {},
        ),
        ("stft", fn.stft, (_floats(8, 16000),), {"n_fft": 400, "hop": 160}),
        ("istft", fn.istft, (_floats(8, 101, 201, 2),), {"n_fft": 400, "hop": 160}),
        ("magnitude", fn.magnitude, (_floats(8, 101, 201, 2),), {}),
        ("lfilter", fn.lfilter, (_floats(8, 16000), _floats(3), 2 * jnp.eye(3, dtype=jnp.float32)[0]), {}),
        ("binary_cross_entropy", fn.binary_cross_entropy, (rows, jax.nn.sigmoid(rows)), {}),
    ]


def _pass(function: Any, options: dict[str, Any], mode: str) -> Any:
    """The jitted value and gradient of every float argument, as a function of the arguments."""

    def loss(floats: list[jax.Array], rebuild: Any) -> jax.Array:
        squares = [jnp.sum(y**2) for y in jax.tree.leaves(function(*rebuild(floats), **options))]
        return jnp.sum(jnp.stack(squares))

    def run(*args: Any) -> Any:
        leaves, tree = jax.tree.flatten(args)
        moving = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]

        def rebuild(floats: list[jax.Array]) -> Any:
            replaced = dict(zip(moving, floats, strict=True))
            return jax.tree.unflatten(tree, [replaced.get(i, leaf) for i, leaf in enumerate(leaves)])

        with fn.autodiff(mode):
            return jax.value_and_grad(loss)([leaves[i] for i in moving], rebuild)

    return jax.jit(run)


def _kept(function: Any, args: tuple[Any, ...], options: dict[str, Any], mode: str) -> int:
    """Bytes that the backward pass holds, beyond the arguments themselves."""
    floats = lambda a: jax.tree.map(lambda v: v if jnp.issubdtype(v.dtype, jnp.floating) else None, a)

    def residuals(args: Any) -> Any:
        with fn.autodiff(mode):
            moving = floats(args)
            whole = lambda m: jax.tree.map(
                lambda v, a: a if v is None else v, m, args, is_leaf=lambda v: v is None
            )
            return jax.vjp(lambda m: function(*whole(m), **options), moving)[1]

    held = jax.eval_shape(residuals, args)
    given = [(v.shape, v.dtype) for v in jax.tree.leaves(args)]
    total = 0
    for leaf in jax.tree.leaves(held):
        if (leaf.shape, leaf.dtype) in given:
            given.remove((leaf.shape, leaf.dtype))
        else:
            total += leaf.size * leaf.dtype.itemsize
    return total


def run(scale: Scale) -> list[Table]:
    """One row per case."""
    quick = scale != WHOLE
    rows = []
    for name, op, args, options in _cases():
        ways = {"hand": (op.apply, "hand"), "JAX": (op.apply, "jax"), "reference": (op.reference, "jax")}
        passes = {way: _pass(f, options, mode).lower(*args).compile() for way, (f, mode) in ways.items()}
        timings = compare(
            {way: partial(p, *args) for way, p in passes.items()}, rounds=2 if quick else 9, warmup=2
        )
        row: dict[str, object] = {"operation": name}
        row |= {f"{way}, time": timing for way, timing in timings.items()}
        row |= {
            f"{way}, temp MB": p.memory_analysis().temp_size_in_bytes / 2**20 for way, p in passes.items()
        }
        row |= {f"{way}, kept MB": _kept(f, args, options, mode) / 2**20 for way, (f, mode) in ways.items()}
        rows.append(row)
    note = "× is relative to the hand-derived rule: above 1, the rule is faster."
    return [
        Table(
            "One training pass by rule, by JAX from the same forward, by JAX from the definition", rows, note
        )
    ]
