"""A worker whose candidates are quick, slow, wrong, broken or deadly: what `harness.race` must cope with."""

import os
import time

from benchmarks import harness


def make(way, case):
    if way == "broken":
        raise ValueError("no such layer\nin this version")
    if way == "deadly":
        os._exit(7)
    if way == "late":
        return iter_then_fail()
    value = {"other": 1.01, "nothing": float("nan")}.get(way, 1.0) * len(case)
    pause = {"slow": 0.02, "quick": 0.01}.get(way, 0.001)

    def call():
        print("a framework prints")  # to what must not be the pipe of answers
        time.sleep(pause)
        return value

    return call


def iter_then_fail():
    """Fails in its fifth call: after the check."""
    calls = iter(range(4))

    def call():
        next(calls)
        return 3.0

    return call


if __name__ == "__main__":
    others = {"environment": os.environ.get}
    harness.serve(make, check=lambda value: [value], others=others, wait=lambda value: value)
