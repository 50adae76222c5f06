"""Wrong rules of recurrences: single mistakes put into the pullbacks, and whether fn.verify finds each.

A mistake is a piece of text that stands once in a file of `funcnet/ops`, and what is put there: a term that
is forgotten, a state taken one step off, a cotangent that is not carried, padding that is not left out. The
module is run anew from the changed source, and its `vjp` held against the `reference` of the right one, over
two chunks with a mask, a state and, where there is one, a projection.
"""

import importlib.util
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

import funcnet as fn
from benchmarks.harness import WHOLE, Scale, Table
from funcnet.ops.recurrent import _scan

CELL, SCAN = "", "_scan"  # the file of the operation, or that of the pass over time


class Mistake(NamedTuple):
    """`old` becomes `new`; in `file`, "" that of the operation."""

    operation: str
    words: str
    old: str
    new: str
    file: str = CELL
    options: tuple[tuple[str, Any], ...] = ()


BEFORE = (("reset", "before"),)
MISTAKES = [
    Mistake("lstm", "σ' without σ, gate i", "dc * (g * i * (1 - i))", "dc * (g * (1 - i))"),
    Mistake("lstm", "σ' without 1 − σ, gate f", 's["c"] * f * (1 - f)', 's["c"] * f'),
    Mistake("lstm", "c_t for c_{t−1}", 's["c"] * f * (1 - f)', '(f * s["c"] + i * g) * f * (1 - f)'),
    Mistake("lstm", "tanh' without the square", "dc * (i * (1 - g * g))", "dc * (i * (1 - g))"),
    Mistake("lstm", "i and g exchanged", "dc * (i * (1 - g * g))", "dc * (g * (1 - g * g))"),
    Mistake("lstm", "tanh c forgotten, gate o", "dh * (tanh * o * (1 - o))", "dh * (o * (1 - o))"),
    Mistake("lstm", "dh does not reach c", 'ds["c"] + ds["h"] * (o * (1 - tanh * tanh))', 'ds["c"]'),
    Mistake("lstm", "dc is not carried", 'ds["c"] + ds["h"]', 'ds["h"]'),
    Mistake("lstm", "tanh' of c forgotten", "(o * (1 - tanh * tanh))", "o"),
    Mistake("lstm", "c handed on without f", '"c": dc * f', '"c": dc'),
    Mistake("lstm", "dh is not handed on", '{"h": dot(dz, p["ut"])', '{"h": 0 * dot(dz, p["ut"])'),
    Mistake("gru", "1 − z forgotten", "dh * ((1 - z) * (1 - n * n))\n    da_z", "dh * (1 - n * n)\n    da_z"),
    Mistake(
        "gru", "n − h for h − n", "((h - n) * (z * (1 - z)))\n    da_r", "((n - h) * (z * (1 - z)))\n    da_r"
    ),
    Mistake("gru", "q_n forgotten, gate r", "da_n * (q_n * (r * (1 - r)))", "da_n * (r * (1 - r))"),
    Mistake("gru", "r forgotten in dq", "[da_r, da_z, da_n * r]", "[da_r, da_z, da_n]"),
    Mistake("gru", "the path past the gates", '"h": dh * z + dot(dq', '"h": dot(dq'),
    Mistake("gru", "dU without r", "(h, da[..., 2 * m :] * gates[..., :m])", "(h, da[..., 2 * m :])"),
    Mistake("gru", "e not through r", "dh * z + e * r + dot(da_rz", "dh * z + e + dot(da_rz", options=BEFORE),
    Mistake("gru", "h forgotten, gate r", "e * (h * (r * (1 - r)))", "e * (r * (1 - r))", options=BEFORE),
    Mistake("gru", "dU of n without r", "(r * h.astype(r.dtype))", "h.astype(r.dtype)", options=BEFORE),
    Mistake("rnn", "tanh' without the square", "(1 - h * h)", "(1 - h)"),
    Mistake("rnn", "what is dead passes", "(h > 0, ds", "(h >= 0, ds", options=(("activation", "relu"),)),
    Mistake("lstm", "padding hands nothing on", "_or(real, v, ds[name]) for", "v for", SCAN),
    Mistake("lstm", "padding is counted", "(_real(da, real), of_h)", "(da, of_h)", SCAN),
    Mistake("lstm", "padding is counted in dR", 'of_h = _real(dh, real) if "r"', 'of_h = dh if "r"', SCAN),
    Mistake("lstm", "only dy, at every step", 'dh = ds["h"] + dy.astype(ds["h"].dtype)', "dh = dy", SCAN),
    Mistake(
        "lstm",
        "dy not turned round",
        "_time_first(cotangents[0], reverse)",
        "_time_first(cotangents[0], False)",
        SCAN,
    ),
    Mistake("lstm", "only the last chunk", "jax.tree.map(jnp.add, grads, more)), dx", "more), dx", SCAN),
    Mistake(
        "lstm",
        "R not transposed in dh",
        'dot(dh, p["rt"]) if "r" in p else dh',
        "jnp.tile(dh, (1, 2))[:, :3]",
        SCAN,
    ),
    Mistake(
        "lstm",
        "dR of c",
        '_product(cell.move(gates, before)["h"]',
        '_product(cell.move(gates, before)["c"]',
        SCAN,
    ),
    Mistake("lstm", "db counted once a chunk", "v.sum((0, 1)) for name", "v[0].sum(0) for name", SCAN),
    Mistake(
        "linear_recurrence",
        "a_s for a_{s+1}",
        "shape=(1, *factors.shape[1:]))])[1:]",
        "shape=(1, *factors.shape[1:]))])[:-1]",
    ),
    Mistake(
        "linear_recurrence",
        "h_s for h_{s−1}",
        "jnp.concatenate([first[None], h])[:-1]",
        "jnp.concatenate([first[None], h])[1:]",
    ),
    Mistake("linear_recurrence", "dh_0 without a_1", "(factors * dh)[:1]", "dh[:1]"),
    Mistake(
        "linear_recurrence",
        "forwards",
        "jnp.zeros_like(first), dy, back=True)",
        "jnp.zeros_like(first), dy, back=False)",
    ),
    Mistake(
        "linear_recurrence",
        "not turned round",
        "_time_first(a, dy, state, h.dtype, reverse)",
        "_time_first(a, dy, state, h.dtype, False)",
    ),
    Mistake("linear_attention", "dS is not carried", "ds = f.whole * ds + jnp", "ds = jnp"),
    Mistake("linear_attention", "dS without its decay", "ds = f.whole * ds + jnp", "ds = ds + jnp"),
    Mistake(
        "linear_attention", "P for Pᵀ in dk", '"bhij,ibhe->jbhe", p, steps.q', '"bhji,ibhe->jbhe", p, steps.q'
    ),
    Mistake(
        "linear_attention",
        "dq without the state",
        '"bhij,jbhe->ibhe", p, steps.k) + dq_before',
        '"bhij,jbhe->ibhe", p, steps.k)',
    ),
    Mistake(
        "linear_attention",
        "dv without what follows",
        '"jbhe,bhef->jbhf", steps.k * f.until, ds)',
        '"jbhe,bhef->jbhf", 0 * steps.k, ds)',
    ),
    Mistake("linear_attention", "σ forgotten in dk", "steps.v, ds) * f.until", "steps.v, ds)"),
    Mistake("linear_attention", "ρ forgotten in dq", "do, s) * f.since", "do, s)"),
    Mistake(
        "linear_attention",
        "pairs not decayed in P",
        "p = _weights(products, f)",
        "p = jnp.where(_up_to(products.shape[-1]), products, 0)",
    ),
    Mistake(
        "linear_attention",
        "dd of pairs one step off",
        "lax.cumsum(_moved(a * products, 3), 3)",
        "lax.cumsum(a * products, 3)",
    ),
    Mistake("linear_attention", "dd without the whole", " + (f.whole * s * ds).sum((2, 3))[None]", ""),
    Mistake(
        "linear_attention",
        "dd of later steps",
        "lax.cumsum(_moved((dk_after * steps.k).sum(-1), 0), 0)",
        "lax.cumsum((dk_after * steps.k).sum(-1), 0)",
    ),
]


def run(scale: Scale) -> list[Table]:
    """One row for each mistake, and how many are found; and that the right rules are."""
    before = jax.config.read("jax_disable_most_optimizations")  # most of the time would be XLA's
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        return _tables(scale)
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def _tables(scale: Scale) -> list[Table]:
    mistakes = MISTAKES if scale == WHOLE else MISTAKES[:: len(MISTAKES) // 4]
    rows = [row(mistake) for mistake in mistakes]
    kinds = {(m.operation, m.options): m for m in MISTAKES}.values()
    right = [m._replace(words="none", new=m.old) for m in (kinds if scale == WHOLE else list(kinds)[:1])]
    found = sum(row["found"] == "yes" for row in rows)
    return [
        Table("Mistakes in the pullbacks of recurrences", rows, f"{found} of {len(rows)} are found."),
        Table("The rules as they are", [row(m) for m in right]),
    ]


def row(mistake: Mistake) -> dict[str, object]:
    """Whether the mistake is found, and where."""
    report = verified(mistake)
    wrong = [f for f in report.findings if f.is_mistake]
    return {
        "operation": ", ".join([mistake.operation, *(value for _, value in mistake.options)]),
        "mistake": mistake.words,
        "found": "no" if report.ok else "yes",
        "wrong": ", ".join(dict.fromkeys(f.argument.removeprefix("argument ") for f in wrong)) or "-",
    }


def verified(mistake: Mistake, *, budget: float = 0.1) -> Any:
    """What fn.verify says of the rule with the mistake."""
    right, args, options = getattr(fn, mistake.operation), *arguments(mistake.operation)
    options = options | dict(mistake.options)
    wrong = changed(right, mistake)

    def pull(*given: Any) -> Any:
        return wrong.vjp(*given[:-1], **options)[1](given[-1])

    plain = {name: value for name, value in options.items() if name != "chunk"}
    return fn.verify(lambda *args: right.reference(*args, **plain), Partial(pull), args, budget=budget)


def arguments(operation: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Two chunks of three steps."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape))
    b, t, d, m = 2, 6, 4, 3
    if operation == "linear_recurrence":
        return (draw(b, t, d), draw(b, t, d, m), draw(b, d, m)), {"reverse": True}
    if operation == "linear_attention":
        q, k, v, decay = draw(b, t, 2, d), draw(b, t, 2, d), draw(b, t, 2, m), -jnp.abs(draw(b, t, 2))
        return (q, k, v, decay, draw(b, 2, d, m)), {"chunk": 3}
    gates = {"lstm": 4, "gru": 3, "rnn": 1}[operation]
    p = 2 if operation == "lstm" else m
    params = {"w": draw(d, gates * m), "u": draw(p, gates * m), "b": draw(gates * m)}
    params |= {"r": draw(m, p)} if operation == "lstm" else {}
    params |= {"c": draw(m)} if operation == "gru" else {}
    state = {"h": draw(b, p)} | ({"c": draw(b, m)} if operation == "lstm" else {})
    mask = jnp.asarray(rng.random((b, t)) < 0.8)
    return (params, draw(b, t, d), state), {"mask": mask, "reverse": True, "chunk": 3}


def changed(right: ModuleType, mistake: Mistake) -> ModuleType:
    """The module of the operation, run anew from the source with the mistake in it; the right one stays."""
    if mistake.file == SCAN:
        module = _again(right)
        vars(module)["_scan"] = _again(_scan, mistake)
        return module
    return _again(right, mistake)


def _again(module: ModuleType, mistake: Mistake | None = None) -> ModuleType:
    path = Path(module.__file__ or "")
    text = path.read_text("utf-8")
    if mistake is not None:
        if text.count(mistake.old) != 1:
            raise SystemExit(f"{path.name} holds {mistake.old!r} {text.count(mistake.old)} times.")
        text = text.replace(mistake.old, mistake.new)
    with tempfile.TemporaryDirectory() as folder:
        (copy := Path(folder) / path.name).write_text(text, "utf-8")
        spec = importlib.util.spec_from_file_location(module.__name__, copy)
        assert spec is not None
        assert spec.loader is not None
        fresh = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(fresh)
    return fresh
