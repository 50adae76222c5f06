"""Stacked layers: however they are run, the numbers are those of a plain loop."""

import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnet as fn
from funcnet import rules
from funcnet.errors import ShapeError
from funcnet.nets import stack

LAYERS = 7


def init_block(key):
    return {"w": jax.random.normal(key, (3, 3)) / 2, "b": jnp.ones(3)}


def local(p, x, scale):
    return jnp.tanh(x @ p["w"] + p["b"]) * scale


def wide(p, x, scale):
    return jnp.sin(x @ p["w"]) + p["b"] * scale


PARAMS = jax.jit(lambda: stack.init(jax.random.key(0), LAYERS, init_block))()
X = jnp.asarray(np.random.default_rng(1).standard_normal((5, 3)))
SCALES = jnp.asarray(np.linspace(0.5, 1.5, LAYERS))


def loop(blocks, params, x):
    for i in range(LAYERS):
        x = blocks[i % len(blocks)](jax.tree.map(operator.itemgetter(i), params), x, SCALES[i])
    return x


def value_and_gradient(run):
    return jax.jit(jax.value_and_grad(lambda p, x: jnp.sum(jnp.sin(run(p, x))), (0, 1)))(PARAMS, X)


def test_init_draws_every_layer_anew():
    for i, key in enumerate(jax.random.split(jax.random.key(0), LAYERS)):
        alone = init_block(key)
        assert jnp.allclose(PARAMS["w"][i], alone["w"])
        assert jnp.array_equal(PARAMS["b"][i], alone["b"])


@pytest.mark.parametrize(
    ("blocks", "unroll", "remat"),
    [
        ((local,), 1, False),
        ((local,), 2, True),
        ((local,), LAYERS, True),
        ((local, wide), 1, False),
        ((local, wide), 2, False),
        ((local, wide), LAYERS, False),
        ((local, local, wide), 1, True),
    ],
    ids=lambda v: len(v) if isinstance(v, tuple) else v,
)
def test_every_way_to_run_gives_the_same_numbers(blocks, unroll, remat):
    """Patterns of one, two (a short last round) and three blocks, in a loop, half unrolled and unrolled."""
    want = value_and_gradient(lambda p, x: loop(blocks, p, x))
    given = blocks if len(blocks) > 1 else blocks[0]
    got = value_and_gradient(lambda p, x: stack.apply(given, p, x, SCALES, unroll=unroll, remat=remat))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert jnp.allclose(a, b, rtol=1e-12, atol=1e-12)


def test_the_last_round_is_not_left_out():
    blocks = (local, wide)
    short = jax.tree.map(lambda v: v[:-1], (PARAMS, SCALES))
    y = stack.apply(blocks, PARAMS, X, SCALES)
    assert not jnp.allclose(y, stack.apply(blocks, short[0], X, short[1]))


def test_nothing_need_be_given_per_layer():
    run = lambda p, x, none: local(p, x, 1.0) if none is None else None
    assert stack.apply(run, PARAMS, X, None).shape == X.shape


def equations(jaxpr, name):
    inner = [v for e in jaxpr.eqns for v in jax.tree.leaves(list(e.params.values())) if hasattr(v, "eqns")]
    return sum(e.primitive.name == name for e in jaxpr.eqns) + sum(
        equations(getattr(j, "jaxpr", j), name) for j in inner
    )


def test_options_change_the_program():
    def trace(**options):
        return jax.make_jaxpr(lambda p, x: stack.apply(local, p, x, SCALES, **options))(PARAMS, X).jaxpr

    assert equations(trace(), "scan") == 1
    assert equations(trace(unroll=LAYERS), "scan") == 0
    assert equations(trace(unroll=LAYERS), "dot_general") == LAYERS
    names = {"checkpoint", "remat2"}  # the primitive's name in one version of JAX or another
    assert sum(equations(trace(), name) for name in names) == 0
    assert sum(equations(trace(remat=True), name) for name in names) == 1


def test_the_gradient_of_unrolled_layers_is_one_concatenation_per_leaf():
    """Not a sum of padded stacks, whose work grows with the square of the depth."""
    loss = lambda p: stack.apply(local, p, X, SCALES, unroll=LAYERS).sum()
    jaxpr = jax.make_jaxpr(jax.grad(loss))(PARAMS).jaxpr
    assert equations(jaxpr, "pad") == 0
    assert equations(jaxpr, "concatenate") == 2


@pytest.mark.parametrize("unroll", [1, LAYERS])
@pytest.mark.parametrize("remat", [False, True])
def test_the_calls_of_every_layer_are_recorded(unroll, remat):
    """As `funcnet.analysis.layers` counts them: without jit a loop is traced as often as it runs."""
    block = lambda p, x: fn.linear.apply(p, x)
    with jax.disable_jit(), rules.record() as calls:
        jax.eval_shape(lambda p, x: stack.apply(block, p, x, unroll=unroll, remat=remat), PARAMS, X)
    assert len(calls) == LAYERS


def test_leaves_that_are_not_stacked_are_refused(unchecked):
    with pytest.raises(ShapeError) as error:
        stack.apply(local, PARAMS, X, SCALES[:-1])
    assert str(error.value) == (
        "stack.apply: per_layer[0] is not stacked like params['b'].\n"
        "  expected  per_layer[0]: [7, ...]     (params['b']: float64[7, 3])\n"
        "  got       per_layer[0]: float64[6]"
    )
