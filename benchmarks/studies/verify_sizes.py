"""How long a verdict takes at the sizes of a real model: compiled, in float64, one run each.

The first call of a process: tracing and compiling are part of it.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import funcnet as fn
from benchmarks.harness import WHOLE, Scale, Table


def run(scale: Scale) -> list[Table]:
    """One row per operation and size."""
    quick = scale != WHOLE
    n, t = (256, 128) if quick else (4096, 1024)
    key, q = jax.random.key(0), _floats(1, t, 8, 64)
    cases: list[tuple[str, Any, tuple[Any, ...], dict[str, Any]]] = [
        (f"linear {n}×{n}, {n} rows", fn.linear, (fn.linear.init(key, n, n), _floats(n, n)), {}),
        (f"attention, causal, t = {t}, 8 heads of 64", fn.attention, (q, q, q), {"causal": True}),
    ]
    rows = []
    for name, op, args, static in cases:
        start = time.perf_counter()
        report = fn.verify(op, args, static=static)
        seconds = time.perf_counter() - start
        worst = max(row.error for row in report.rows)
        rows.append(
            {
                "operation": name,
                "seconds": seconds,
                "worst error": f"{worst:.0e}",
                "verdict": "right" if report.ok else "WRONG",
            }
        )
    return [Table("A verdict at real sizes", rows)]


def _floats(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)
