"""One script for a laptop, the devices of a host, and many hosts: only the mesh and who joins differ.

Run: python examples/several_devices.py                                        (one device)
     JAX_NUM_CPU_DEVICES=8 python examples/several_devices.py 4 2              (eight: data × tensor)
     python examples/several_devices.py 8 4 --distributed                      (on each host)
"""

import os
import sys

import jax
import numpy as np
import optax

import funcnet as fn
from funcnet.nets import transformer


def main(data=1, tensor=1, folder="runs/several_devices", steps=20):
    mesh = jax.make_mesh((data, tensor), ("data", "tensor"))
    rules = fn.shard.FSDP | fn.shard.TP  # the name of an axis of a parameter -> an axis of the mesh
    config = transformer.Config(
        vocabulary=64, context=32, layers=2, heads=4, d=64, positions="rope", bias=False
    )
    optimizer = optax.adamw(1e-2)
    counts = np.arange(512)[:, None] + np.arange(17)  # sequences that count on
    ids = (counts % 64).astype(np.int32)

    def loss(params, ids, key):
        logits = transformer.apply(params, ids[:, :-1], config)
        return fn.cross_entropy.apply(logits, ids[:, 1:]).mean()

    with jax.set_mesh(mesh):
        specs = transformer.specs(config)
        params = fn.shard.init(lambda key: transformer.init(key, config), jax.random.key(0), specs, rules)
        state = fn.train.init(params, optimizer, key=jax.random.key(1))
        step = fn.train.make_step(loss, optimizer)
        batches = fn.shard.place(fn.train.batches(ids, 16, seed=0), over=("data",))
        checkpoints = fn.train.Checkpoints(f"{folder}/checkpoints", every=10)
        state, history = checkpoints.restore(state, batches)
        state, history = fn.train.fit(
            step, state, batches, until=steps, log=folder, checkpoints=checkpoints, timeout=600.0
        )
    if jax.process_index() == 0:
        print(fn.shard.table(specs, rules, mesh))
        print(f"loss {history[0]['loss']:.5f}, after {history[-1]['step']} steps {history[-1]['loss']:.5f}")
    return history


if __name__ == "__main__":
    number = lambda name: int(os.environ[name]) if name in os.environ else None  # None: JAX finds it
    if "--distributed" in sys.argv:  # several processes: before anything touches a device
        jax.distributed.initialize(
            num_processes=number("JAX_NUM_PROCESSES"), process_id=number("JAX_PROCESS_ID")
        )
    values = [value for value in sys.argv[1:] if value != "--distributed"]
    given = dict(zip(("data", "tensor", "folder"), values, strict=False))
    main(int(given.get("data", 1)), int(given.get("tensor", 1)), given.get("folder", "runs/several_devices"))
