import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet.analysis.example_norms import example_norms
from funcnet.errors import ShapeError, StructureError
from funcnet.nets import mamba
from funcnet.ops.loss import cross_entropy
from tests.errors import golden

CONFIG = mamba.Config(11, layers=2, d=3, state=4, kernel=3, rank=2, chunk=2)
RNG = np.random.default_rng(0)
IDS = jnp.asarray(RNG.integers(0, 11, (2, 7)), jnp.int32)
SHAPES = jax.eval_shape(lambda: mamba.init(jax.random.key(0), CONFIG))
PARAMS = jax.tree.map(lambda v: jnp.asarray(RNG.standard_normal(v.shape), jnp.float32), SHAPES)
apply, decode = jax.jit(mamba.apply), jax.jit(mamba.decode)


def same(got, want, tolerance=1e-5):
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, tolerance, tolerance), got, want)


def selected(params, x, step, b, c, h):
    """The recurrence as it is written, of one sequence."""
    y = np.zeros(x.shape)
    for t in range(len(x)):
        h = np.exp(step[t, :, None] * -np.exp(params["a"])) * h + (step[t] * x[t])[:, None] * b[t]
        y[t] = h @ c[t] + params["skip"] * x[t]
    return y, h


def test_the_selective_scan_is_its_recurrence_whatever_the_chunk():
    draw = lambda *shape: jnp.asarray(RNG.standard_normal(shape))
    params = {"a": draw(3, 4), "skip": draw(3)}
    args = draw(2, 7, 3), jnp.abs(draw(2, 7, 3)), draw(2, 7, 4), draw(2, 7, 4), draw(2, 3, 4)
    want = [selected(params, *(np.asarray(v[n]) for v in args)) for n in range(2)]
    for chunk in (2, 7):
        y, h = jax.jit(mamba._select, static_argnames="chunk")(params, *args, chunk=chunk)
        same((y, h), tuple(map(np.stack, zip(*want, strict=True))), 1e-10)


def test_pieces_and_single_tokens_equal_the_whole():
    whole, state, parts = apply(PARAMS, IDS, CONFIG), mamba.init_state(CONFIG, 2), []
    for piece in (IDS[:, :4], *(IDS[:, i : i + 1] for i in range(4, 7))):
        y, state = decode(PARAMS, piece, state, CONFIG)
        parts.append(y)
    same(jnp.concatenate(parts, 1), whole)


def test_no_position_sees_what_follows():
    """A token moves the logits from its place on, all of them, and none before it."""
    whole = apply(PARAMS, IDS, CONFIG)
    for i in (0, 3, 6):
        moved = np.abs(apply(PARAMS, np.where(np.arange(7) == i, (IDS + 1) % 11, IDS), CONFIG) - whole).max(
            -1
        )
        np.testing.assert_array_equal(moved > 0, np.broadcast_to(np.arange(7) >= i, (2, 7)))


def test_the_memory_is_that_of_a_chunk():
    """Of 1024 steps with 64 · 32 states each: not all of them at once, nor in the backward pass."""
    config = mamba.Config(11, layers=1, d=32, state=32, chunk=32)
    params = jax.eval_shape(lambda: mamba.init(jax.random.key(0), config))
    params = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, jnp.float32), params)
    ids = jax.ShapeDtypeStruct((1, 1024), jnp.int32)

    def temporary(chunk):
        loss = lambda p, ids: mamba.hidden(p, ids, dataclasses.replace(config, chunk=chunk)).sum()
        return jax.jit(jax.grad(loss)).lower(params, ids).compile().memory_analysis().temp_size_in_bytes

    states = 4 * 1024 * 64 * 32
    assert temporary(1024) > 3 * states
    assert temporary(32) < states


@pytest.mark.slow
def test_norms_of_single_examples():
    loss = lambda p, ids: cross_entropy.apply(mamba.apply(p, ids[:, :-1], CONFIG), ids[:, 1:]).sum(-1)
    found = jax.jit(example_norms(loss))(PARAMS, IDS)
    one = jax.jit(lambda p, ids: jax.grad(lambda p: loss(p, ids[None])[0])(p))
    want = [sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(one(PARAMS, ids))) ** 0.5 for ids in IDS]
    same(found, np.array(want), 1e-3)


@pytest.mark.slow
def test_it_computes_in_bfloat16_with_states_in_float32():
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    y, state = decode(PARAMS, IDS, mamba.init_state(config, 2), config)
    assert (y.dtype, state["conv"].dtype, state["h"].dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    assert float(jnp.abs(y.astype(jnp.float32) - apply(PARAMS, IDS, CONFIG)).max()) < 0.5


ERRORS = [
    (
        lambda: mamba.decode(PARAMS, IDS, [], CONFIG),
        StructureError,
        'mamba.decode: state is not a dict with "conv" and "h".\n'
        "  expected  state: from mamba.init_state, or from the call before\n"
        "  got       state: a list",
    ),
    (
        lambda: mamba.decode(PARAMS, IDS, mamba.init_state(CONFIG, 3), CONFIG),
        ShapeError,
        'mamba.decode: state["conv"] does not fit ids.\n'
        "  expected  float[2, 2, 2, 6]     (ids: int32[2, 7])\n"
        "  got       float32[2, 3, 2, 6]",
    ),
]
test_errors = golden(ERRORS)
