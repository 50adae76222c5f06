import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from funcnet.errors import DTypeError, ShapeError, ValueRangeError
from funcnet.ops.loss import contrastive
from tests.errors import golden

RNG = np.random.default_rng(0)
X, Y = (jnp.asarray(RNG.standard_normal((8, 3))) for _ in range(2))
SCALE, BIAS = jnp.asarray(1.7), jnp.asarray(-0.4)
WAYS = {"softmax": (X, Y, SCALE), "sigmoid": (X, Y, SCALE, BIAS)}


@pytest.mark.parametrize("pairs", WAYS)
def test_is_that_of_torch(pairs):
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    x, y, *numbers = (torch.tensor(np.array(v), requires_grad=True) for v in WAYS[pairs])
    s, each = numbers[0] * x @ y.T, torch.arange(8)
    if pairs == "softmax":
        theirs = (
            F.cross_entropy(s, each, reduction="none") + F.cross_entropy(s.T, each, reduction="none")
        ) / 2
    else:
        theirs = -F.logsigmoid((2 * torch.eye(8) - 1) * (s + numbers[1])).sum(-1)
    theirs.sum().backward()
    args = WAYS[pairs]
    every = tuple(range(len(args)))
    grads = jax.grad(lambda *args: contrastive.apply(*args, pairs=pairs).sum(), every)(*args)
    np.testing.assert_allclose(contrastive.apply(*args, pairs=pairs), theirs.detach(), rtol=1e-9)
    for ours, leaf in zip(grads, (x, y, *numbers), strict=True):
        np.testing.assert_allclose(ours, leaf.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("pairs", WAYS)
def test_over_devices_is_the_batch_as_a_whole(pairs):
    """Losses, their gradients, those by the formula, and reference, of four devices with two pairs each."""
    P, args = PartitionSpec, WAYS[pairs]
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
    specs = (P("d"), P("d"), *(P() for _ in args[2:]))
    options = {"pairs": pairs, "axis_name": "d"}
    every, weights = tuple(range(len(args))), jnp.arange(1.0, 9.0)

    def local(weights, *args):
        total = lambda *args: jax.lax.psum((weights * contrastive.apply(*args, **options)).sum(), "d")
        y, pullback = contrastive.vjp(*args, **options)
        numbers = [jax.lax.psum(g, "d") for g in pullback(weights)[2:] if g is not None]
        by_formula = (*pullback(weights)[:2], *numbers)
        return (y, contrastive.reference(*args, **options)), jax.grad(total, every)(*args), by_formula

    f = jax.shard_map(local, mesh=mesh, in_specs=(P("d"), *specs), out_specs=((P("d"), P("d")), specs, specs))
    (y, reference), grads, by_formula = jax.jit(f)(weights, *args)
    whole = lambda *args: contrastive.reference(*args, pairs=pairs)
    np.testing.assert_allclose(y, whole(*args), rtol=1e-12)
    np.testing.assert_allclose(reference, whole(*args), rtol=1e-12)
    want = jax.grad(lambda *args: (weights * whole(*args)).sum(), every)(*args)
    for of_apply, of_formula, leaf in zip(grads, by_formula, want, strict=True):
        np.testing.assert_allclose(of_apply, leaf, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(of_formula, leaf, rtol=1e-10, atol=1e-12)


def test_an_axis_of_vmap_will_do():
    both = jax.vmap(lambda x, y: contrastive.apply(x, y, SCALE, axis_name="i"), axis_name="i")
    got = both(X.reshape(2, 4, 3), Y.reshape(2, 4, 3))
    np.testing.assert_allclose(got.reshape(8), contrastive.apply(X, Y, SCALE), rtol=1e-12)


def test_a_bias_and_the_way_change_the_loss():
    losses = [
        contrastive.apply(X, Y, SCALE),
        contrastive.apply(X, Y, SCALE, pairs="sigmoid"),
        contrastive.apply(X, Y, SCALE, BIAS, pairs="sigmoid"),
    ]
    assert (losses[0] != losses[1]).all()
    assert (losses[1] != losses[2]).all()


F32 = X.astype(jnp.float32)
ONE = jnp.ones((), jnp.float32)
test_errors = golden(
    [
        (
            lambda: contrastive.apply(F32, F32, ONE, ONE),
            ValueRangeError,
            "contrastive.apply: bias comes with a softmax, which does not see it.\n"
            '  expected  bias: None, or pairs: "sigmoid"\n'
            "  got       bias: float32[], pairs = 'softmax'",
        ),
        (
            lambda: contrastive.apply(F32, F32, jnp.ones(3, jnp.float32)),
            ShapeError,
            "contrastive.apply: scale is not one number.\n"
            "  expected  scale: float[]\n"
            "  got       scale: float32[3]",
        ),
        (
            lambda: contrastive.apply(F32, F32, ONE, axis_name="data"),
            ValueRangeError,
            "contrastive.apply: there is no axis 'data' here.\n"
            "  expected  axis_name: an axis of the mesh of jax.shard_map, or of jax.vmap, around this call\n"
            "  got       axis_name = ('data',)",
        ),
        (
            lambda: contrastive.apply(F32, F32, ONE, axis_name=0),
            DTypeError,
            "contrastive.apply: axis_name is no name of an axis.\n"
            "  expected  axis_name: a string, a tuple of them, or None\n"
            "  got       axis_name: 0 (int)",
        ),
    ]
)
