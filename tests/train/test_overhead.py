"""What funcnet adds to the programs that a user would write by hand, read in what XLA compiled."""

import itertools
import re
from collections import Counter

import jax
import jax.numpy as jnp
import optax
import pytest

import funcnet as fn

OPTIMIZER = optax.adam(0.1)
SIZES = (3, 7, 5, 2)
BATCH = jnp.ones((11, 3)), jnp.zeros(11, jnp.int32)


def params():
    keys = jax.random.split(jax.random.key(0), len(SIZES) - 1)
    return [fn.linear.init(key, *pair) for key, pair in zip(keys, itertools.pairwise(SIZES), strict=True)]


def by_funcnet(params, x):
    for layer in params[:-1]:
        x = fn.relu.apply(fn.linear.apply(layer, x))
    return fn.linear.apply(params[-1], x)


def by_hand(params, x):
    for layer in params[:-1]:
        x = x @ layer["w"] + layer["b"]
        x = jnp.where(x <= 0, 0, x)
    return x @ params[-1]["w"] + params[-1]["b"]


def loss(params, batch, key=None):
    x, labels = batch
    return optax.softmax_cross_entropy_with_integer_labels(by_hand(params, x), labels).mean()


def step_by_hand(params, opt_state, batch):
    value, grads = jax.value_and_grad(loss)(params, batch)
    updates, opt_state = OPTIMIZER.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, value


def computations(compiled):
    """The optimised HLO without the header, and without where in the source each line comes from."""
    text = re.sub(r", metadata=\{[^}]*\}", "", compiled.as_text())
    return re.split(r"^(?=%|ENTRY)", text, maxsplit=1, flags=re.MULTILINE)[1]


@pytest.mark.only_as_users
def test_layers_compile_to_the_program_by_hand():
    texts = [computations(jax.jit(f).lower(params(), BATCH[0]).compile()) for f in (by_funcnet, by_hand)]
    assert texts[0] == texts[1]
    assert "dot" in texts[0]


@pytest.mark.only_as_users
def test_without_the_guard_a_step_compiles_to_the_program_by_hand_and_a_count():
    state = fn.train.init(params(), OPTIMIZER, key=jax.random.key(1))
    made = fn.train.make_step(loss, OPTIMIZER, guard=False).lower(state, BATCH)
    hand = jax.jit(step_by_hand, donate_argnums=(0, 1)).lower(state.params, state.opt_state, BATCH)
    made, hand = (
        Counter(re.findall(r" ([a-z\-]+)\(", computations(lowered.compile()).partition("\nENTRY")[2]))
        for lowered in (made, hand)
    )
    # In: the count, the key and the faults. Out: the count, to which one was added, and the others as they
    # came, without a copy. Nothing of the fold_in, since the loss draws nothing.
    assert made - hand == Counter({"parameter": 3, "fusion": 1, "constant": 1})
    assert hand - made == Counter()
