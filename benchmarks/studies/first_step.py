"""The first step: how long until a net is drawn, and until the first step of `funcnet train digits` is done.

Each in a fresh process, which draws no other net before. Digits: once with an empty cache of programs, as on
a machine where nothing was trained yet, and once with what the first one left there. `import funcnet` is
lazy: what a program uses is imported when it is used, of digits before its data.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks import footprint, harness
from benchmarks.harness import SMOKE, WHOLE, Scale, Table

NETS: dict[str, tuple[str, dict[str, Any]]] = {
    "MLP 784–512–512–10": ("mlp", {"sizes": (784, 512, 512, 10)}),
    "two convolutions, 28×28×1": ("convnet", {"image": (28, 28, 1)}),
    "ResNet-20": ("resnet", {"image": (32, 32, 3)}),
    "LSTM, 2 layers of 128": ("recurrent", {"d": 64, "hidden": 128, "layers": 2}),
    "CRNN, 40 bands": ("crnn", {"d": 40, "classes": 4}),
    "GPT 4 × 128": ("transformer", {"vocabulary": 65, "context": 64}),
    "GPT 6 × 384": ("transformer", {"vocabulary": 65, "context": 256, "layers": 6, "heads": 6, "d": 384}),
    "Mamba 4 × 128": ("mamba", {"vocabulary": 65}),
    "BERT-base": ("encoder", {}),
    "ViT-B/16": ("vit", {}),
}
IMPORTS = {code: code for code in ("import jax, optax", "import funcnet, jax, optax")}


def run(scale: Scale) -> list[Table]:
    """Three tables: init of every net, the first step of digits, imports."""
    rounds = 3 if scale == WHOLE else 1
    again = lambda *question: [_ask(*question) for _ in range(rounds)]
    nets = list(NETS)[: 1 if scale == SMOKE else None]
    drawn = [{"init of": net, **_medians(again("net", net))} for net in nets]
    first, second = [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            first.append(_ask("digits", XDG_CACHE_HOME=folder))
            second.append(_ask("digits", XDG_CACHE_HOME=folder))
    digits = [
        {"funcnet train digits": name, **_medians(taken)}
        for name, taken in (("nothing kept yet", first), ("programs kept by the run before", second))
    ]
    return [
        Table("Init", drawn, f"Seconds, medians of {rounds}; nothing is compiled before. Target: 1.2."),
        Table(
            "The first step of digits",
            digits,
            "Seconds. Targets: the first step 2.5, and with programs that were kept, 1 from init to its end.",
        ),
        Table("Imports", footprint.timed(IMPORTS, 4 * rounds), "Ratios are to the first. Target: 1.02."),
    ]


def _medians(answers: list[dict[str, float]]) -> dict[str, str]:
    return {name: f"{statistics.median(answer[name] for answer in answers):.2f}" for name in answers[0]}


def _ask(*question: str, **environment: str) -> dict[str, float]:
    """What a fresh process answers; without an environment it keeps and finds no program."""
    harness.quiet.append(harness.wait_for_quiet())
    own = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.studies.first_step", *question],
        env=own | (environment or {"JAX_ENABLE_COMPILATION_CACHE": "false"}),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


# ---- the process ------------------------------------------------------------------------------------------


def net(name: str) -> dict[str, float]:
    """Seconds of `init`, the first and a second time."""
    import jax

    import funcnet as fn

    family, options = NETS[name]
    module = getattr(fn.nets, family)
    config, key = module.Config(**options), jax.block_until_ready(jax.random.key(0))
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        jax.block_until_ready(module.init(key, config))
        seconds.append(time.perf_counter() - start)
    return dict(zip(("first", "again"), seconds, strict=True))


def digits() -> dict[str, float]:
    """Seconds of what `funcnet train digits` does until its first step is done."""
    start = time.perf_counter()
    from funcnet.cli import _cache

    _cache.keep()
    import jax

    from funcnet import train
    from funcnet.tasks import _run, digits

    imported = time.perf_counter() - start
    start = time.perf_counter()
    task = digits.prepare(digits.Options())
    batch = next(iter(task.batches()))
    prepared = time.perf_counter() - start
    start = time.perf_counter()
    key_init, _, key_train = _run.keys(0)
    params = digits.NET.init(key_init, task.config)
    state = jax.block_until_ready(train.init(params, task.optimizer, key=key_train))
    drawn = time.perf_counter() - start
    start = time.perf_counter()
    jax.block_until_ready(task.step(state, batch))
    step = time.perf_counter() - start
    return {"imports": imported, "data": prepared, "init": drawn, "step": step, "init and step": drawn + step}


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    print(json.dumps({"net": net, "digits": digits}[what](*rest)))
