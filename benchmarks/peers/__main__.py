"""A process where peers live: answers the questions of `harness.Worker` about them."""

import importlib
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import harness, models


def named(way: str) -> Callable[..., Any]:
    """A function of a peer, PEER.FUNCTION; its framework is imported here."""
    peer, _, function = way.partition(".")
    return getattr(importlib.import_module(f"benchmarks.peers.{peer}"), function)


def first(way: str, model: str, loop: bool) -> dict[str, float]:
    """Seconds of each stage up to the end of the first step."""
    import jax

    times, result = {}, None
    stages = named(way)(models.ALL[model], loop)
    jax.clear_caches()  # which building the model may have filled
    for stage, go in stages.items():
        start = time.perf_counter()
        result = go(result)
        times[stage] = time.perf_counter() - start
    return times


def peak(way: str, model: str) -> int:
    """Bytes by which the resident memory of this process, a fresh one, rises at most in four steps."""
    train = named(way)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    call = train(models.ALL[model])
    for _ in range(4):
        float(call())
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before


def main(kind: str) -> None:
    """Serve the peers on JAX, or PyTorch."""
    if kind == "jax":
        importlib.import_module("funcnet")  # for its guard, unless the environment says no
    harness.serve(
        lambda way, model: named(way)(models.ALL[model]),
        check=lambda loss: [float(loss)],
        others={
            "memory": lambda way, model: named(way)(models.ALL[model]),
            "first": first,
            "peak": peak,
        },
        wait=None if kind == "jax" else lambda loss: loss,
    )


if __name__ == "__main__":
    main(sys.argv[1])
