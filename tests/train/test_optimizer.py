import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcnet as fn
from funcnet.errors import DTypeError, StructureError
from tests.errors import golden

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(16, 3)), RNG.normal(size=16)
KEY = jax.random.key(0)
CONTRIB = optax.contrib


def params():
    return {"w": jnp.zeros(3), "b": jnp.zeros(())}


def loss(params, batch):
    x, y = batch
    return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)


def run(optimizer, steps, loss=loss):
    state, losses = fn.train.init(params(), optimizer, key=KEY), []
    step = fn.train.make_step(loss, optimizer)
    for _ in range(steps):
        state, metrics = step(state, (X, Y))
        losses.append(float(metrics["loss"]))
    assert step._cache_size() == 1  # pyright: ignore[reportAttributeAccessIssue]
    return state, losses


def ascent():
    return optax.chain(CONTRIB.normalize(), optax.sgd(0.05))


def objective(p):
    return loss(p, (X, Y))


HALF = {"w": True, "b": False}
BACKTRACKING = optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(10, store_grad=True))
SAM_AT_ONCE = CONTRIB.sam(optax.sgd(0.1), ascent(), opaque_mode=True)
L_BFGS_OF_A_PART = optax.chain(
    optax.masked(optax.lbfgs(), HALF, mask_compatible_extra_args=True), optax.freeze({"w": False, "b": True})
)


def test_a_line_search_equals_the_update_written_by_hand():
    p = params()
    opt_state = BACKTRACKING.init(p)

    @jax.jit
    def by_hand(p, opt_state):
        value, grad = jax.value_and_grad(objective)(p)
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = BACKTRACKING.update(
                grad, opt_state, p, value=value, grad=grad, value_fn=objective
            )
        return optax.apply_updates(p, updates), opt_state

    for _ in range(4):
        p, opt_state = by_hand(p, opt_state)
    state, _ = run(BACKTRACKING, 4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), state.params, p)


def test_sam_by_its_definition():
    p = params()
    for _ in range(3):
        grad = jax.grad(objective)(p)
        norm = optax.tree.norm(grad)
        there = jax.tree.map(lambda p, g: p + 0.05 * g / norm, p, grad)  # noqa: B023
        p = jax.tree.map(lambda p, g: p - 0.1 * g, p, jax.grad(objective)(there))
    for optimizer, steps in ((SAM_AT_ONCE, 3), (CONTRIB.sam(optax.sgd(0.1), ascent()), 6)):
        state, _ = run(optimizer, steps)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), state.params, p)


@pytest.mark.parametrize(
    "optimizer",
    [
        L_BFGS_OF_A_PART,
        optax.chain(optax.clip(0.1), SAM_AT_ONCE),
        CONTRIB.sophia(0.1),
        optax.MultiSteps(optax.chain(optax.sgd(0.1), CONTRIB.reduce_on_plateau()), 2),
    ],
    ids=["L-BFGS of a part", "SAM in a chain", "Sophia", "value through MultiSteps"],
)
def test_the_loss_goes_down(optimizer):
    _, losses = run(optimizer, 5)
    assert losses[-1] < losses[0]


def test_the_loss_at_other_places_is_that_of_this_step():
    """Of its batch, key and model state: with them, a line search accepts 1 / curvature at once."""

    def keyed(params, model_state, batch, key):
        shift = jax.random.normal(key, (), jnp.float32) + model_state
        value = (batch * (params["w"].astype(jnp.float32) - shift) ** 2 / 2).sum()
        return value, (model_state, {"shift": shift})

    state = fn.train.init(
        {"w": jnp.zeros(2, jnp.bfloat16)}, BACKTRACKING, key=KEY, model_state=jnp.float32(1)
    )
    state, metrics = fn.train.make_step(keyed, BACKTRACKING)(state, np.ones(2, np.float32))
    np.testing.assert_allclose(state.params["w"].astype(float), np.repeat(metrics["shift"], 2), rtol=2**-8)


def test_the_loss_at_other_places_keeps_dtypes_and_promotion():
    seen = []

    def noted(params, batch):
        seen.append((params["w"].dtype, jax.config.jax_numpy_dtype_promotion))
        return jnp.sum(params["w"] * batch)

    zoom = optax.chain(optax.sgd(1.0), optax.scale_by_zoom_linesearch(5))
    half = jnp.ones(2, jnp.bfloat16)
    jax.eval_shape(fn.train.make_step(noted, zoom), fn.train.init({"w": half}, zoom, key=KEY), half)
    assert len(seen) > 1
    assert set(seen) == {(jnp.dtype(jnp.bfloat16), "strict")}


def test_a_complex_parameter_goes_downhill():
    goal = np.array([1 + 2j, -3 + 0.5j])
    step = fn.train.make_step(lambda p, b: jnp.sum(jnp.abs(p - goal) ** 2), optax.sgd(0.3))
    state = fn.train.init(jnp.zeros(2, complex), optax.sgd(0.3), key=KEY)
    for _ in range(15):
        state, _ = step(state, 0.0)
    np.testing.assert_allclose(state.params, goal, atol=1e-4)


def test_an_update_within_jit_is_offered_no_functions():
    inner = optax.chain(optax.sgd(0.1), CONTRIB.reduce_on_plateau())
    optimizer = optax.GradientTransformationExtraArgs(inner.init, jax.jit(inner.update))
    _, losses = run(optimizer, 3)
    assert losses[-1] < losses[0]


def start(optimizer):
    return lambda: fn.train.init(params(), optimizer, key=KEY)


def take(optimizer, state_of=None):
    def step():
        state = start(optimizer if state_of is None else state_of)()
        return fn.train.make_step(loss, optimizer)(state, (X, Y))

    return step


def labelled(updates, state, params=None, *, labels):
    return updates, state


NO_OPTIMIZER = """train.{}: optimizer is no optax optimizer.
  expected  what optax.adam(1e-3) and the like return
  got       {}"""
test_errors = golden(
    [
        (start(None), DTypeError, NO_OPTIMIZER.format("init", "None (NoneType)")),
        (start("adam"), DTypeError, NO_OPTIMIZER.format("init", "'adam' (str)")),
        (
            lambda: fn.train.make_step(loss, optax.adam),  # pyright: ignore[reportArgumentType]
            DTypeError,
            NO_OPTIMIZER.format("make_step", "a function") + "\n  hint      call it, with its learning rate",
        ),
        (
            start(optax.lookahead(optax.sgd(0.1), 5, 0.5)),
            StructureError,
            """train.init: optax.lookahead keeps two sets of params, and a loss is given one.
  expected  an optimizer of one set of params and the gradient of the loss
  got       one that keeps a LookaheadState""",
        ),
        (
            start(optax.chain(CONTRIB.differentially_private_aggregate(1.0, 0.1, key=0), optax.sgd(0.1))),
            StructureError,
            "train.init: differentially_private_aggregate takes the gradient of each example, and a step has "
            """that of their mean.
  expected  an optimizer of one set of params and the gradient of the loss
  got       one that keeps a DifferentiallyPrivateAggregateState""",
        ),
        (
            take(optax.GradientTransformationExtraArgs(lambda params: (), labelled)),  # pyright: ignore[reportArgumentType]
            StructureError,
            """train.make_step: the optimizer asks for what a step does not have.
  expected  one that asks for no more than value, grad, value_fn, grad_fn and obj_fn
  got       one that asks for 'labels'""",
        ),
        (
            take(optax.trace(0.9), state_of=optax.identity()),
            StructureError,
            """train.make_step: the state was made for another optimizer.
  expected  PyTreeDef(CustomNode(namedtuple[TraceState], [{'b': *, 'w': *}]))
  got       PyTreeDef(CustomNode(namedtuple[EmptyState], []))
  hint      give train.init and train.make_step the same one""",
        ),
    ]
)


def test_a_search_in_a_part_that_is_given_the_whole_gradient(unchecked):
    with pytest.raises(StructureError, match="mask_compatible_extra_args=True"):
        take(optax.masked(optax.lbfgs(), HALF))()


def test_a_step_without_a_state(unchecked):
    with pytest.raises(DTypeError, match="the step was not given a state"):
        fn.train.make_step(loss, optax.sgd(0.1))(params(), (X, Y))
