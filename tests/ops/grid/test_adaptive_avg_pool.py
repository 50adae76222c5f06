import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet.errors import DTypeError, ShapeError
from funcnet.ops.conv import avg_pool
from funcnet.ops.grid import adaptive_avg_pool, adaptive_max_pool
from tests.errors import golden

X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 6, 10, 3)), jnp.float32)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(4,), (1,), (9,), (3, 4), (7, 2), (3, 2, 5)], ids=str)
@pytest.mark.parametrize("pool", [adaptive_avg_pool, adaptive_max_pool])
def test_it_is_pytorchs(pool, size):
    torch = pytest.importorskip("torch")
    d = len(size)
    x = np.random.default_rng(0).standard_normal((2, *(6, 5, 4)[:d], 3))
    dy = np.random.default_rng(1).standard_normal((2, *size, 3))
    given = torch.tensor(np.moveaxis(x, -1, 1).copy(), requires_grad=True)
    kind = pool.__name__.split("_")[-2]
    want = getattr(torch.nn.functional, f"adaptive_{kind}_pool{d}d")(given, size)
    want.backward(torch.tensor(np.moveaxis(dy, -1, 1).copy()))

    def both(x, dy):
        y, pullback = pool.vjp(x, size=size)
        return y, pullback(dy)[0]

    for got, right in zip(jax.jit(both)(x, dy), (want.detach(), given.grad), strict=True):
        np.testing.assert_allclose(got, np.moveaxis(right.numpy(), 1, -1), atol=1e-12)


def test_windows_that_tile_are_those_of_avg_pool_and_gather_nothing():
    np.testing.assert_allclose(
        adaptive_avg_pool.apply(X, size=(3, 2)), avg_pool.apply(X, kernel=(2, 5)), rtol=1e-5
    )
    assert "gather" not in str(jax.make_jaxpr(lambda x: adaptive_avg_pool.apply(x, size=(3, 1)))(X))


def test_the_global_pool_of_a_symbolic_size_is_exported():
    export = jax.export.export(jax.jit(lambda x: adaptive_avg_pool.apply(x, size=(1,))))
    n, t = jax.export.symbolic_shape("n, t")
    call = export(jax.ShapeDtypeStruct((n, t, 3), jnp.float32)).call
    np.testing.assert_allclose(call(X[0])[:, 0], X[0].mean(1), rtol=1e-5)


def test_sums_are_in_float32():
    x = jnp.ones((600, 1), jnp.bfloat16)
    assert adaptive_avg_pool.apply(x, size=(1,)) == 1  # bfloat16 would stop counting at 256


ERRORS = [
    (
        lambda: adaptive_avg_pool.apply(X, size=3),  # pyright: ignore[reportArgumentType]
        DTypeError,
        "adaptive_avg_pool.apply: size is not a tuple of ints.\n"
        "  expected  size: one int per spatial axis\n"
        "  got       size: 3 (int)",
    ),
    (
        lambda: adaptive_avg_pool.apply(X[:, :0], size=(1, 1)),
        ShapeError,
        "adaptive_avg_pool.apply: x has no elements along a spatial axis.\n"
        "  expected  at least one along each spatial axis\n"
        "  got       x: float32[2, 0, 10, 3]",
    ),
]

test_errors = golden(ERRORS)
