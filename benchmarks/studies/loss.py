"""The two ends of a language model: the loss of its last product, and the gradient of its embedding.

First, value and gradients of the mean loss of tokens three ways: `linear_cross_entropy`, which never builds
the logits, `cross_entropy` of the product x w, and optax's loss of the same product. Then the gradient of a
table of rows [v, d] three ways: by a scatter-add, by the product with one-hot rows, and by a scatter-add of
sorted ids. Each candidate is one jitted program, float32; memory is XLA's temporary bytes of it.
"""

from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funcnet as fn
from benchmarks.harness import WHOLE, Scale, Table, compare
from funcnet.ops.dense import embedding

SIZES = {
    "4096 tokens × 50304 × 256": (4096, 50304, 256),
    "2048 tokens × 8192 × 384": (2048, 8192, 384),
}
QUICK = {"256 tokens × 1024 × 64": (256, 1024, 64)}
VOCABULARIES, TOKENS, WIDTH = (65, 256, 1024, 50304), (2048, 8192), 384
PRODUCT_UP_TO = 1024  # beyond, one-hot rows are a matter of gigabytes and seconds


def run(scale: Scale) -> list[Table]:
    """Two tables: the loss, and the gradient of the embedding."""
    quick = scale != WHOLE
    return [_losses(QUICK if quick else SIZES, quick), _embeddings(quick)]


def _losses(sizes: dict[str, tuple[int, int, int]], quick: bool) -> Table:
    rows = []
    for name, (n, v, d) in sizes.items():
        rng = np.random.default_rng(0)
        x = jnp.asarray(rng.standard_normal((n, d)), jnp.float32)
        w = jnp.asarray(rng.standard_normal((d, v)) / d**0.5, jnp.float32)
        labels = jnp.asarray(rng.integers(0, v, n), jnp.int32)
        losses: dict[str, Callable[..., jax.Array]] = {
            "linear_cross_entropy": fn.linear_cross_entropy.apply,
            "cross_entropy(x @ w)": lambda x, w, labels: fn.cross_entropy.apply(x @ w, labels),
            "optax": lambda x, w, labels: optax.softmax_cross_entropy_with_integer_labels(x @ w, labels),
        }
        programs = {
            name: jax.jit(jax.value_and_grad(partial(_mean, loss), (0, 1))).lower(x, w, labels).compile()
            for name, loss in losses.items()
        }
        results = [program(x, w, labels) for program in programs.values()]
        worst = max(_error(result, results[-1]) for result in results)
        calls = {name: partial(program, x, w, labels) for name, program in programs.items()}
        row: dict[str, object] = {"size": name}
        row |= compare(calls, rounds=2 if quick else 7, warmup=1)
        row |= {f"{name}, temp MB": _memory(program) for name, program in programs.items()}
        rows.append(row | {"largest difference": worst})
    note = "Value and both gradients. × is relative to linear_cross_entropy: above 1, it is faster."
    return Table("Cross entropy of x w", rows, note)


def _mean(loss: Callable[..., jax.Array], x: jax.Array, w: jax.Array, labels: jax.Array) -> jax.Array:
    return loss(x, w, labels).mean()


def _memory(program: jax.stages.Compiled) -> float:
    """Temporary megabytes of a compiled program."""
    analysis = program.memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes / 2**20


def _error(got: object, want: object) -> float:
    """The largest difference of any leaf, relative to its largest element."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    return max(float(jnp.abs(g - w).max() / jnp.abs(w).max()) for g, w in pairs)


def _embeddings(quick: bool) -> Table:
    rows = []
    for (v, n, kind), ids, dy in _draws(quick):
        ways: dict[str, Callable[..., jax.Array]] = {"scatter": _scatter, "sorted": _sorted}
        if v <= PRODUCT_UP_TO:
            ways["product"] = _product
        programs = {name: jax.jit(partial(way, v)) for name, way in ways.items()}
        calls = {name: partial(program, ids, dy) for name, program in programs.items()}
        row: dict[str, object] = {"rows v": v, "tokens": n, "ids": kind}
        rows.append(row | compare(calls, rounds=2 if quick else 9))
    note = (
        f"Width {WIDTH}. × is relative to the scatter, which `embedding` takes; in a product of one-hot rows "
        "one NaN among the cotangents would reach every row of the table."
    )
    return Table("The gradient of an embedding", rows, note)


def _draws(quick: bool) -> Iterator[tuple[tuple[int, int, str], jax.Array, jax.Array]]:
    rng = np.random.default_rng(0)
    for n in TOKENS[:1] if quick else TOKENS:
        dy = jnp.asarray(rng.standard_normal((n, WIDTH)), jnp.float32)
        for v in VOCABULARIES[:1] if quick else VOCABULARIES:
            for kind, ids in (("uniform", rng.integers(0, v, n)), ("all equal", np.full(n, v // 2))):
                yield (v, n, kind), jnp.asarray(ids, jnp.int32), dy


def _scatter(v: int, ids: jax.Array, rows: jax.Array) -> jax.Array:
    return embedding._add_rows(ids, rows, v=v)


def _product(v: int, ids: jax.Array, rows: jax.Array) -> jax.Array:
    return jax.nn.one_hot(ids, v, axis=0, dtype=rows.dtype) @ rows


def _sorted(v: int, ids: jax.Array, rows: jax.Array) -> jax.Array:
    order = jnp.argsort(ids)
    return jax.ops.segment_sum(rows[order], ids[order], v, indices_are_sorted=True)
