"""Every net, small, on a mesh of four devices; and the table of where its parameters lie.

``python -m tests.shard.nets`` writes the table anew; a test holds it to `fn.shard.table`.
"""

import contextlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import funcnet as fn
from funcnet.nets import convnet, crnn, encoder, mamba, mlp, recurrent, resnet, transformer, vad, vit

TABLE = Path(__file__).with_name("layouts.txt")
KEY = jax.random.key(0)
BLOCKS = {"layers": 2, "heads": 4, "d": 8}
GPT = transformer.Config(16, 8, **BLOCKS)
LLAMA = transformer.Config(
    16,
    8,
    **BLOCKS,
    kv_heads=2,
    norm="rms",
    mlp="swiglu",
    positions="rope",
    bias=False,
    tied=False,
    remat=True,
)
RESNET = resnet.Config((8, 8, 4), (4, 8), (1, 1), stem=3)

IMAGE, TOKENS, SOUND = (4, 8, 8, 4), (4, 8), (4, 8, 8)
NETS = {
    "convnet": (convnet, convnet.Config((8, 8, 4), (4, 8), hidden=8, classes=4), IMAGE),
    "crnn": (crnn, crnn.Config(8, 4, channels=(4, 4), hidden=4), SOUND),
    "encoder": (encoder, encoder.Config(16, 8, types=4, **BLOCKS), TOKENS),
    "mamba": (mamba, mamba.Config(16, layers=2, d=8, state=4, chunk=4), TOKENS),
    "mlp": (mlp, mlp.Config((8, 8, 4)), (4, 8)),
    "recurrent": (recurrent, recurrent.Config(8, 4, layers=2, projection=4), SOUND),
    "resnet": (resnet, RESNET, IMAGE),
    "transformer": (transformer, GPT, TOKENS),
    "transformer, llama": (transformer, LLAMA, TOKENS),
    "vad": (vad, vad.Config(window=8, channels=(4, 4, 4, 4), hidden=8), (4, 40)),
    "vit": (vit, vit.Config((8, 8, 4), (4, 4), layers=2, heads=4, d=8, d_hidden=16, classes=4), IMAGE),
}

FSDP, TP = fn.shard.FSDP, fn.shard.TP | dict.fromkeys(("c_out", "d_out", "gates", "channels"), "tensor")
LAYOUTS = {  # sizes of data × tensor, and the rules
    "dp": ((4, 1), fn.shard.DP),
    "fsdp": ((4, 1), FSDP),
    "tp": ((1, 4), TP),
    "dp x tp": ((2, 2), TP),
    "fsdp x tp": ((2, 2), FSDP | TP),
}


def mesh(layout, kind=AxisType.Explicit):
    return jax.make_mesh(LAYOUTS[layout][0], ("data", "tensor"), axis_types=(kind,) * 2)


def drawn(name):
    """Params and a batch of a net."""
    net, config, shape = NETS[name]
    rng = np.random.default_rng(0)
    ids = net in (encoder, mamba, transformer)
    batch = rng.integers(0, 16, shape, np.int32) if ids else rng.normal(size=shape)
    return jax.jit(lambda key: net.init(key, config))(KEY), jnp.asarray(batch)


def loss(name):
    net, config, _ = NETS[name]

    def f(params, batch):
        if net is resnet:
            y = net.apply(params, resnet.init_state(config), batch, config, train=True)
        else:
            y = net.apply(params, batch, config)
        floats = [leaf for leaf in jax.tree.leaves(y) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        return sum(jnp.sin(3 * leaf).sum() for leaf in floats)

    return f


def law(name, layout, kind=AxisType.Explicit):
    """Loss and gradients are those of one device, and a gradient lies as its parameter does.

    Returns:
        The program, compiled.
    """
    params, batch = drawn(name)
    program = lambda: jax.jit(jax.value_and_grad(loss(name)))
    want = program()(params, batch)
    on, rules = mesh(layout, kind), LAYOUTS[layout][1]
    to = fn.shard.of(NETS[name][0].specs(NETS[name][1]), rules, on, whole_below=1)
    with jax.set_mesh(on) if kind is AxisType.Explicit else contextlib.nullcontext():
        placed = jax.device_put((params, batch), (to, NamedSharding(on, P("data"))))
        compiled = program().lower(*placed).compile()
        got = compiled(*placed)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        scale = max(1.0, float(jnp.abs(b).max()))
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=1e-6 * scale)
    if kind is AxisType.Explicit:
        for grad, place in zip(jax.tree.leaves(got[1]), jax.tree.leaves(to), strict=True):
            assert grad.sharding.is_equivalent_to(place, grad.ndim)
    return compiled


def table():
    """Where each net's parameters lie under FSDP and TP at once, on 2 × 2 devices."""
    on = jax.sharding.AbstractMesh((2, 2), ("data", "tensor"))
    rules = fn.shard.FSDP | fn.shard.TP
    lines = []
    with jax.enable_x64(False):
        for name, (net, config, _) in NETS.items():
            lines += [f"## {name}", fn.shard.table(net.specs(config), rules, on, whole_below=16), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    TABLE.write_text(table(), "utf-8")
