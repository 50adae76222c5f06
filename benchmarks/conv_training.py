"""Training steps of convolutional networks beside Flax NNX and PyTorch, one process each, in turn.

ResNet-20 on 32×32×3 and two convolutions with max pooling on 28×28×1, batch 128, float32, SGD with momentum:
loss, gradients, running statistics and update. NNX runs as its users run it, under XLA's default flags, and
once more with the flag of funcnet's guard; PyTorch runs channels-last. Needs the extra [bench].
"""

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks import harness
from benchmarks.conv import KEEP_MEMORY
from benchmarks.harness import Table

BATCH, RATE, MOMENTUM = 128, 0.1, 0.9
CASES = ("ResNet-20, 32×32×3", "two convolutions, 28×28×1")


def run(quick: bool) -> list[Table]:
    """One row per network; this process imports neither jax nor torch."""
    settings = {
        "funcnet": ("funcnet", {}),
        "nnx, default flags": ("nnx", {"FUNCNET_XLA_GUARD": "off"}),
        "nnx, guard's flag": ("nnx", {}),
        "torch": ("torch", {}),
    }
    for peer in {"nnx": "flax", "torch": "torch"}.items():
        if importlib.util.find_spec(peer[1]) is None:
            settings = {name: value for name, value in settings.items() if value[0] != peer[0]}
    workers = {
        name: harness.Worker("benchmarks.conv_training", {**KEEP_MEMORY, **environment}, way)
        for name, (way, environment) in settings.items()
    }
    rows, memory = [], []
    for case in CASES[quick:]:
        rows.append({"step of": case, **harness.take_turns(workers, case, 2 if quick else 9)})
        ours, theirs = workers["funcnet"].ask("memory", case)
        memory.append(
            {"step of": case, "funcnet MiB": ours / 2**20, "lax MiB": theirs / 2**20, "ratio": ours / theirs}
        )
    for worker in workers.values():
        worker.close()
    note = "Ratios are to funcnet: above 1, funcnet is faster."
    return [
        Table("Training step", rows, note, chart=True),
        Table(
            "Temporary memory of the step",
            memory,
            "What XLA plans, besides arguments and results; lax: the same step under `fn.autodiff('jax')`.",
        ),
    ]


def _images(case: str) -> tuple[Any, Any]:
    import numpy as np

    shape = (BATCH, 32, 32, 3) if case == CASES[0] else (BATCH, 28, 28, 1)
    rng = np.random.default_rng(0)
    return rng.standard_normal(shape).astype(np.float32), rng.integers(0, 10, BATCH).astype(np.int32)


def _by_funcnet() -> None:
    import jax
    import jax.numpy as jnp
    import optax

    import funcnet as fn

    def residual() -> tuple[Any, Any, Any]:
        config = fn.nets.resnet.Config((32, 32, 3))

        def loss(params: Any, state: Any, batch: Any, key: Any) -> Any:
            del key
            logits, state = fn.nets.resnet.apply(params, state, batch[0], config, train=True)
            return fn.cross_entropy.apply(logits, batch[1]).mean(), (state, {})

        return loss, fn.nets.resnet.init(jax.random.key(0), config), fn.nets.resnet.init_state(config)

    def plain() -> tuple[Any, Any, Any]:
        key1, key2, key3 = jax.random.split(jax.random.key(0), 3)
        params = {
            "conv1": fn.conv.init(key1, 1, 32, kernel=(3, 3)),
            "conv2": fn.conv.init(key2, 32, 64, kernel=(3, 3)),
            "head": fn.linear.init(key3, 7 * 7 * 64, 10),
        }

        def loss(params: Any, batch: Any, key: Any) -> Any:
            del key
            x = batch[0]
            for name in ("conv1", "conv2"):
                x = fn.relu.apply(fn.conv.apply(params[name], x))
                x = fn.max_pool.apply(x, kernel=(2, 2))
            logits = fn.linear.apply(params["head"], x.reshape(BATCH, -1))
            return fn.cross_entropy.apply(logits, batch[1]).mean()

        return loss, params, None

    def parts(case: str) -> tuple[Any, Any, Any]:
        loss, params, model_state = residual() if case == CASES[0] else plain()
        optimizer = optax.sgd(RATE, MOMENTUM)
        state = fn.train.init(params, optimizer, key=jax.random.key(1), model_state=model_state)
        return fn.train.make_step(loss, optimizer), state, jax.tree.map(jnp.asarray, _images(case))

    def make(case: str) -> Callable[[], object]:
        step, state, batch = parts(case)

        def call() -> object:
            nonlocal state
            state, metrics = step(state, batch)
            return metrics

        return call

    def memory(case: str) -> tuple[int, int]:
        sizes = []
        for how in ("hand", "jax"):
            with fn.autodiff(how):
                step, state, batch = parts(case)
                compiled = step.lower(state, batch).compile()
            sizes.append(compiled.memory_analysis().temp_size_in_bytes)
        return sizes[0], sizes[1]

    harness.answer({case: partial(make, case) for case in CASES}, {"memory": memory})


def _by_nnx() -> None:
    import jax.numpy as jnp
    import optax

    import funcnet  # noqa: F401 (for its guard, unless the environment says no)

    nnx: Any = importlib.import_module("flax.nnx")
    conv = partial(nnx.Conv, kernel_size=(3, 3))

    class Block(nnx.Module):
        def __init__(self, c_in: int, c_out: int, stride: int, rngs: Any):
            self.conv1 = conv(c_in, c_out, strides=stride, use_bias=False, rngs=rngs)
            self.norm1 = nnx.BatchNorm(c_out, momentum=0.9, rngs=rngs)
            self.conv2 = conv(c_out, c_out, use_bias=False, rngs=rngs)
            self.norm2 = nnx.BatchNorm(c_out, momentum=0.9, rngs=rngs)
            self.projects = stride > 1 or c_in != c_out
            if self.projects:
                self.project = nnx.Conv(c_in, c_out, (1, 1), strides=stride, use_bias=False, rngs=rngs)
                self.norm = nnx.BatchNorm(c_out, momentum=0.9, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            y = self.norm2(self.conv2(nnx.relu(self.norm1(self.conv1(x)))))
            if self.projects:
                x = self.norm(self.project(x))
            return nnx.relu(x + y)

    class Residual(nnx.Module):
        def __init__(self, rngs: Any):
            self.conv = conv(3, 16, use_bias=False, rngs=rngs)
            self.norm = nnx.BatchNorm(16, momentum=0.9, rngs=rngs)
            sizes = [(16, 16, 1)] * 3 + [(16, 32, 2)] + [(32, 32, 1)] * 2 + [(32, 64, 2)] + [(64, 64, 1)] * 2
            self.blocks = nnx.List([Block(*each, rngs) for each in sizes])
            self.head = nnx.Linear(64, 10, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            x = nnx.relu(self.norm(self.conv(x)))
            for block in self.blocks:
                x = block(x)
            return self.head(x.mean((1, 2)))

    class Plain(nnx.Module):
        def __init__(self, rngs: Any):
            self.conv1, self.conv2 = conv(1, 32, rngs=rngs), conv(32, 64, rngs=rngs)
            self.head = nnx.Linear(7 * 7 * 64, 10, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            x = nnx.max_pool(nnx.relu(self.conv1(x)), (2, 2), strides=(2, 2))
            x = nnx.max_pool(nnx.relu(self.conv2(x)), (2, 2), strides=(2, 2))
            return self.head(x.reshape(BATCH, -1))

    def make(case: str) -> Callable[[], object]:
        model = (Residual if case == CASES[0] else Plain)(nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, optax.sgd(RATE, MOMENTUM), wrt=nnx.Param)
        images, labels = map(jnp.asarray, _images(case))

        def loss(model: Any, images: Any, labels: Any) -> Any:
            return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

        @nnx.jit
        def step(model: Any, optimizer: Any, images: Any, labels: Any) -> Any:
            value, grads = nnx.value_and_grad(loss)(model, images, labels)
            optimizer.update(model, grads)
            return value

        return lambda: step(model, optimizer, images, labels)

    harness.answer({case: partial(make, case) for case in CASES})


def _by_torch() -> None:
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    nn, functional = torch.nn, torch.nn.functional

    class Block(nn.Module):
        def __init__(self, c_in: int, c_out: int, stride: int):
            super().__init__()
            self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
            self.norm1, self.norm2 = nn.BatchNorm2d(c_out), nn.BatchNorm2d(c_out)
            self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
            self.project = None
            if stride > 1 or c_in != c_out:
                self.project = nn.Sequential(
                    nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out)
                )

        def forward(self, x: Any) -> Any:
            y = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
            return functional.relu((x if self.project is None else self.project(x)) + y)

    def residual() -> Any:
        sizes = [(16, 16, 1)] * 3 + [(16, 32, 2)] + [(32, 32, 1)] * 2 + [(32, 64, 2)] + [(64, 64, 1)] * 2
        return nn.Sequential(
            nn.Conv2d(3, 16, 3, 1, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            *[Block(*each) for each in sizes],
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, 10),
        )

    def plain() -> Any:
        return nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(7 * 7 * 64, 10),
        )

    def make(case: str) -> Callable[[], object]:
        model = (residual() if case == CASES[0] else plain()).to(memory_format=torch.channels_last)
        images, labels = _images(case)
        x = torch.from_numpy(images).movedim(-1, 1).contiguous(memory_format=torch.channels_last)
        y = torch.from_numpy(labels).long()
        optimizer = torch.optim.SGD(model.parameters(), RATE, MOMENTUM)

        def call() -> object:
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            return loss

        return call

    harness.answer({case: partial(make, case) for case in CASES}, wait=lambda result: result)


if __name__ == "__main__":
    {"funcnet": _by_funcnet, "nnx": _by_nnx, "torch": _by_torch}[sys.argv[1]]()
