"""The guard's XLA flag: which value computes right numbers, and which is fastest.

Every value of --xla_cpu_experimental_ynn_fusion_type needs processes of its own: XLA reads its flags once.
They stay alive and are asked for one sample at a time, in turn, so that other work on the machine slows all
values alike; two generations of processes are pooled, since code placement differs from one to the next.
Only values under which every program comes out right are timed, beside the default.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks import harness
from benchmarks.harness import WHOLE, Scale, Table

FLAG = "--xla_cpu_experimental_ynn_fusion_type"
VALUES = {  # a list = only these uses of YNNPACK; a minus takes one from the default list
    "default": None,
    "empty": "",
    "individual_dot": "individual_dot",
    "-reduce": "-reduce",
    "-individual_convolution": "-individual_convolution",
}
SIZES = ((5, 16, 16), (40, 33, 33), (5, 60, 60), (3, 128, 128), (2, 256, 256))


def run(scale: Scale) -> list[Table]:
    """Correctness and speed of every value; this process never imports jax."""
    quick = scale != WHOLE
    wall: dict[str, dict[str, list[float]]] = {}
    cpu: dict[str, dict[str, list[float]]] = {}
    errors: dict[str, dict[str, float]] = {}
    for _ in range(1 if quick else 2):
        workers = {name: _worker(value) for name, value in VALUES.items()}
        errors = {name: worker.ask("errors") for name, worker in workers.items()}
        timed = {
            n: worker for n, worker in workers.items() if n == "default" or max(errors[n].values()) < 1e-4
        }
        for case in workers["default"].ask("cases"):
            calls = min(worker.ask("ready", case) for worker in timed.values())
            samplers = {name: partial(worker.ask, "times", calls) for name, worker in timed.items()}
            for name, taken in harness.interleave(samplers, 2 if quick else 8).items():
                for kind, values in zip((wall, cpu), zip(*taken, strict=True), strict=True):
                    kind.setdefault(case, {}).setdefault(name, []).extend(values)
        for worker in workers.values():
            worker.close()
    accuracy = [
        {"program": program, **{name: f"{errors[name][program]:.0e}" for name in VALUES}}
        for program in errors["default"]
    ]
    wall_rows, cpu_rows = (
        [{"program": case, **harness.summarise([taken])} for case, taken in kind.items()]
        for kind in (wall, cpu)
    )
    return [
        Table(
            "Largest relative error against NumPy in float64",
            accuracy,
            f"c is 0.7; sizes of e: {', '.join(map(str, SIZES))}; inf stands for inf and NaN alike.",
        ),
        Table(
            "Wall time of a call, float32",
            wall_rows,
            "Products and convolutions with both gradients. Ratios are to the default: below 1 is faster.",
        ),
        Table(
            "Processor time of a call, all threads together",
            cpu_rows,
            "The table to read where the load above exceeds the number of cores: other work hardly moves it.",
        ),
    ]


def _worker(value: str | None) -> harness.Worker:
    """A process that runs under one value of the flag."""
    flags = "" if value is None else f"{FLAG}={value}"
    environment = ("XLA_FLAGS", flags), ("FUNCNET_XLA_GUARD", "off")
    return harness.Worker(harness.Process("benchmarks.studies.guard", environment=environment))


def _errors() -> dict[str, float]:
    """The largest error of each suspect over the sizes, and of every other probe."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from funcnet import backend

    rng = np.random.default_rng(0)
    found = {}
    with jax.enable_x64(True):
        for name, program in backend.SUSPECTS.items():
            for dtype in ("float32", "float64"):
                arrays = [rng.standard_normal(size).astype(dtype) for size in SIZES]
                found[f"{name} ({dtype})"] = max(
                    backend.relative_error(
                        jax.jit(partial(program, jnp))(e), program(np, e.astype(np.float64))
                    )
                    for e in arrays
                )
    return {probe.name: probe.error for probe in backend.probes()} | found


def _cases() -> dict[str, Callable[[], Callable[[], object]]]:
    """Name -> function that makes the arrays, and gives the jitted call."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from jax import lax

    rng = np.random.default_rng(0)

    def case(f: Callable[..., object], *shapes: tuple[int, ...]) -> Callable[[], Callable[[], object]]:
        def make() -> Callable[[], object]:
            arrays = [jnp.asarray(0.1 * rng.standard_normal(shape), jnp.float32) for shape in shapes]
            return partial(jax.jit(f), *arrays)

        return make

    def with_gradients(f: Callable[..., Any]) -> Callable[..., object]:
        def both(dy, *args):
            y, pullback = jax.vjp(f, *args)
            return y, pullback(dy)

        return both

    def conv(x, w, stride=1, groups=1):
        layout = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, w, (stride, stride), "SAME", dimension_numbers=layout, feature_group_count=groups
        )

    def conv_case(k: int, c_in: int, c_out: int, size: int, batch: int, stride: int = 1, groups: int = 1):
        out = -(-size // stride)
        f = with_gradients(partial(conv, stride=stride, groups=groups))
        shapes = (batch, out, out, c_out), (batch, size, size, c_in), (k, k, c_in // groups, c_out)
        return case(f, *shapes)

    def attention(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, is_causal=True)

    def layer_norm(x):
        centred = x - x.mean(-1, keepdims=True)
        return centred * lax.rsqrt((centred * centred).mean(-1, keepdims=True) + 1e-5)

    def step(loss):  # one SGD step with momentum
        optimizer = optax.sgd(0.1, 0.9)

        def update(params, *batch):
            grads = jax.grad(loss)(params, *batch)
            updates, _ = optimizer.update(grads, optimizer.init(params), params)
            return optax.apply_updates(params, updates)

        return update

    def cross_entropy(logits):
        return -jax.nn.log_softmax(logits)[:, 0].mean()

    def convnet_loss(params, images):
        x = jax.nn.relu(conv(images, params[0]))
        x = jax.nn.relu(conv(x, params[1], stride=2))
        return cross_entropy(x.mean((1, 2)) @ params[2])

    def mlp_loss(params, x):
        for w in params[:-1]:
            x = jax.nn.relu(x @ w)
        return cross_entropy(x @ params[-1])

    def convnet_step(images, *params):
        return step(convnet_loss)(list(params), images)

    def mlp_step(x, *params):
        return step(mlp_loss)(list(params), x)

    rows = (4096, 1024)
    heads = (4, 256, 6, 64)
    return {
        "product 1024³": case(jnp.matmul, (1024, 1024), (1024, 1024)),
        "product 2048×384×1536": case(with_gradients(jnp.matmul), (2048, 1536), (2048, 384), (384, 1536)),
        "product 48×(256×64×256)": case(
            with_gradients(jnp.matmul), (48, 256, 256), (48, 256, 64), (48, 64, 256)
        ),
        "product 128×64×10": case(with_gradients(jnp.matmul), (128, 10), (128, 64), (64, 10)),
        "conv 3×3, 64→64, 32 px, batch 8": conv_case(3, 64, 64, 32, 8),
        "conv 3×3, 16→16, 32 px, batch 32": conv_case(3, 16, 16, 32, 32),
        "conv 3×3, 1→32, 28 px, batch 128": conv_case(3, 1, 32, 28, 128),
        "conv 3×3, 128→256, stride 2, 32 px, batch 4": conv_case(3, 128, 256, 32, 4, stride=2),
        "conv 1×1, 256→256, 16 px, batch 16": conv_case(1, 256, 256, 16, 16),
        "conv 7×7, 3→64, stride 2, 112 px, batch 2": conv_case(7, 3, 64, 112, 2, stride=2),
        "conv 3×3, depthwise 64, 16 px, batch 4": conv_case(3, 64, 64, 16, 4, groups=64),
        "sum of all, 4096×1024": case(jnp.sum, rows),
        "sum over rows": case(lambda x: x.sum(-1), rows),
        "sum over columns": case(lambda x: x.sum(0), rows),
        "maximum over rows": case(lambda x: x.max(-1), rows),
        "softmax": case(jax.nn.softmax, rows),
        "layer norm and gradient": case(with_gradients(layer_norm), rows, rows),
        "log-softmax and gradient": case(with_gradients(jax.nn.log_softmax), rows, rows),
        "causal attention and gradient, 4×256×6×64": case(
            with_gradients(attention), heads, heads, heads, heads
        ),
        "training step, convnet 28 px, batch 64": case(
            convnet_step, (64, 28, 28, 1), (3, 3, 1, 32), (3, 3, 32, 64), (64, 10)
        ),
        "training step, MLP 784-512-512-10, batch 128": case(
            mlp_step, (128, 784), (784, 512), (512, 512), (512, 10)
        ),
    }


def _serve() -> None:
    cases, call = _cases(), None

    def ready(case: str) -> int:
        """Compile, and say how many calls fill a sample."""
        nonlocal call
        call = cases[case]()
        harness.seconds(call, 2)
        return max(1, round(0.03 / harness.seconds(call, 2)))

    def times(calls: int) -> tuple[float, float]:
        """Wall and processor time of a call."""
        assert call is not None
        start = time.process_time()
        wall = harness.seconds(call, calls)
        return wall, (time.process_time() - start) / calls

    harness.serve(others={"cases": lambda: list(cases), "errors": _errors, "ready": ready, "times": times})


if __name__ == "__main__":
    _serve()
