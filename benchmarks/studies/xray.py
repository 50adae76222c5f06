"""The x-ray: how long it takes in a new process, compile included, without and with the curvature.

Nets are those of the recipes digits and chars, and an encoder of MiniLM's size, all with first parameters:
time does not depend on what they have learned. The examples are as many as `funcnet xray` takes.
"""

import time
from typing import Any

from benchmarks import harness
from benchmarks.harness import SMOKE, WHOLE, Process, Scale, Table

ALONE = "benchmarks.studies.xray"
CASES = {  # name, and with the curvature?
    "digits, 256 images": (("digits", False), "≤ 15 s"),
    "digits, and curvature": (("digits", True), "≤ 30 s more"),
    "chars, 64 pieces of 64": (("chars", False), "≤ 15 s"),
    "chars, and curvature": (("chars", True), ""),
    "MiniLM's size, 16 × 128 tokens": (("minilm", False), "≤ 120 s"),
}


def run(scale: Scale) -> list[Table]:
    """Seconds of a call, by the wall and of the processor; each case three times, in turns."""
    times: dict[str, list[tuple[float, float]]] = {case: [] for case in CASES}
    cases = list(CASES)[:1] if scale == SMOKE else list(CASES)
    for _ in range(3 if scale == WHOLE else 1):
        for case in cases:
            (name, curvature), _ = CASES[case]
            process = Process(ALONE)
            with harness.running([process]) as workers:
                times[case].append(tuple(workers[process].ask("spent", name, curvature)))
    rows: list[dict[str, object]] = [
        {
            "net": case,
            "wall, least of the runs": f"{min(wall for wall, _ in times[case]):.1f} s",
            "processor": f"{min(used for _, used in times[case]):.1f} s",
            "target": CASES[case][1],
        }
        for case in cases
    ]
    return [Table("An x-ray, from a new process on", rows, "Imports and reading the data are not counted.")]


def spent(name: str, curvature: bool) -> tuple[float, float]:
    """Seconds of one call of `fn.xray`."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import funcnet as fn
    from funcnet import tasks
    from funcnet.nets import encoder

    net: Any
    if name == "minilm":
        net, config = encoder, encoder.Config(layers=6, heads=12, d=384)
        batch: Any = jnp.asarray(np.random.default_rng(0).integers(0, config.vocabulary, (16, 128)))
    else:
        module = getattr(tasks, name)
        task = module.prepare(module.Options())
        net, config = module.NET, task.config
        examples = task.examples(64 if name == "chars" else 256)[0]
        batch = examples.inputs, examples.labels
    params = net.init(jax.random.key(0), config)
    jax.block_until_ready(params)
    wall, used = time.perf_counter(), time.process_time()
    fn.xray(net, params, config, batch, start=params, curvature=curvature)
    return time.perf_counter() - wall, time.process_time() - used


if __name__ == "__main__":
    harness.serve(others={"spent": spent})
