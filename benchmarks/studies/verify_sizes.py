"""What a verdict takes at real sizes, and a diagnosis: processor seconds and memory, a process for each.

Compiled and in the dtype of the arguments, float32 with x64 off; the first call of its process, so that
tracing and compiling are part of it. Memory is by how much the process grows at most, its arguments not
counted; the compiler's own is. Of what is wrong, the name is the report's.
"""

import functools
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import funcnet as fn
from benchmarks.harness import WHOLE, Scale, Table
from funcnet.nets import transformer

WIDTH, POSITIONS, POINTS, STEPS, USES = 4096, 1024, 1000, 100, 50
Ask = Callable[[], Any]


def run(scale: Scale) -> list[Table]:
    """A row per formula."""
    smaller = 1 if scale == WHOLE else 8
    return [Table("A verdict and its diagnosis at real sizes", [_alone(name, smaller) for name in CASES])]


def _alone(name: str, smaller: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.studies.verify_sizes", name, str(smaller)]
    out = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    return json.loads(out.stdout.splitlines()[-1])


def _row(name: str, smaller: int) -> dict[str, Any]:
    ask = CASES[name](smaller)
    high = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    before, start = high(), time.process_time()
    report = ask()
    seconds = time.process_time() - start
    kinds = ", ".join(dict.fromkeys(finding.kind for finding in getattr(report, "findings", report.wrong)))
    verdict = "right" if report.ok else kinds or "undecided"
    return {
        "what": name,
        "processor seconds": round(seconds, 1),
        "MiB beyond the arrays": round(high() - before),
        "verdict": verdict,
    }


def _linear(smaller: int, *, wrong: bool) -> Ask:
    n = WIDTH // smaller
    params = fn.linear.init(jax.random.key(0), n, n)
    args = params["w"], _floats(n, n)
    pullback = (lambda w, x, dy: (x.T @ dy, dy @ w)) if wrong else (lambda w, x, dy: (x.T @ dy, dy @ w.T))
    return functools.partial(fn.verify, lambda w, x: x @ w, pullback, args)


def _attention(smaller: int, *, wrong: bool) -> Ask:
    t = POSITIONS // smaller
    q = _floats(1, t, 8, 64)

    def attend(q: Any, k: Any) -> Any:
        return jax.nn.softmax(jnp.einsum("nthe,nshe->nhts", q, k) / 8.0)

    def forward(q: Any, k: Any, v: Any) -> Any:
        return jnp.einsum("nhts,nshe->nthe", attend(q, k), v)

    def backward(q: Any, k: Any, v: Any, dy: Any) -> Any:
        p = attend(q, k)
        dp = jnp.einsum("nthe,nshe->nhts", dy, v)
        ds = p * (dp - (dp * p).sum(2 if wrong else 3, keepdims=True)) / 8.0
        dq, dk = jnp.einsum("nhts,nshe->nthe", ds, k), jnp.einsum("nhts,nthe->nshe", ds, q)
        return dq, dk, jnp.einsum("nhts,nthe->nshe", p, dy)

    return functools.partial(fn.verify, forward, backward, (q, q[:, ::-1] * 0.9, q * 1.1))


def _pairs(smaller: int) -> Ask:
    """A kernel of all pairs whose gradient forgets that each point is on both sides."""
    x = _floats(POINTS // smaller, 3)

    def kernel(x: Any) -> Any:
        return jnp.exp(-0.5 * ((x[:, None] - x[None]) ** 2).sum(-1))

    def backward(x: Any, dy: Any) -> Any:
        g = dy * kernel(x)
        return -(g[..., None] * (x[:, None] - x[None])).sum(1)

    return functools.partial(fn.verify, kernel, backward, (x,))


def _long(smaller: int) -> Ask:
    """A chain of many equations, three a step, with one slip in the middle of its backward pass."""
    steps, middle = STEPS // smaller, STEPS // smaller // 2
    x, w = _floats(7), _floats(7)

    def states(x: Any, w: Any) -> list[Any]:
        found = [x]
        for _ in range(steps):
            found.append(jnp.tanh(found[-1] * w) + x)
        return found

    def backward(x: Any, w: Any, dy: Any) -> Any:
        found, dx, dw, dh = states(x, w), 0.0, 0.0, dy
        for i in reversed(range(steps)):
            y = found[i + 1] - x
            dz = dh * (1 - y) if i == middle else dh * (1 - y * y)
            dx, dw, dh = dx + dh, dw + dz * found[i], dz * w
        return dx + dh, dw

    return functools.partial(fn.verify, lambda x, w: states(x, w)[-1], backward, (x, w))


def _often(smaller: int) -> Ask:
    """A value that a sum holds many times, one of whose terms has the wrong sign in the gradient."""
    x, a = _floats(11), _floats(USES // smaller)
    n = len(a)

    def forward(x: Any, a: Any) -> Any:
        s = jnp.sin(x)
        return sum(a[i] * jnp.cos(s * (i + 1)) for i in range(n))

    def backward(x: Any, a: Any, dy: Any) -> Any:
        s = jnp.sin(x)
        terms = [a[i] * (i + 1) * jnp.sin(s * (i + 1)) for i in range(n)]
        ds = sum(term if i == n // 2 else -term for i, term in enumerate(terms))
        return dy * ds * jnp.cos(x), jnp.stack([(dy * jnp.cos(s * (i + 1))).sum() for i in range(n)])

    return functools.partial(fn.verify, forward, backward, (x, a))


def _model(smaller: int) -> Ask:
    config = transformer.Config(256, context=256, layers=6, heads=6, d=384 // smaller)
    params = jax.jit(transformer.init)(jax.random.key(0), config)
    ids = jnp.asarray(np.random.default_rng(0).integers(256, size=(8 // smaller, 257)))

    def loss(params: Any, batch: Any) -> Any:
        logits = transformer.apply(params, batch[:, :-1], config)
        return fn.cross_entropy.apply(logits, batch[:, 1:]).mean()

    return functools.partial(fn.verify_model, loss, params, ids)


CASES: dict[str, Callable[[int], Ask]] = {
    f"linear {WIDTH}×{WIDTH}, {WIDTH} rows": functools.partial(_linear, wrong=False),
    "the same, w not transposed": functools.partial(_linear, wrong=True),
    f"attention, t = {POSITIONS}, 8 heads of 64": functools.partial(_attention, wrong=False),
    "the same, a sum over the other axis": functools.partial(_attention, wrong=True),
    f"a kernel of all pairs of {POINTS} points, half of its gradient": _pairs,
    f"a chain of {3 * STEPS} equations, a slip in the middle": _long,
    f"a value used {USES} times, a sign": _often,
    "verify_model of a GPT 6 × 384, t = 256, batch 8": _model,
}


def _floats(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(len(shape)).standard_normal(shape), jnp.float32)


if __name__ == "__main__":
    print(json.dumps(_row(sys.argv[1], int(sys.argv[2]))))
