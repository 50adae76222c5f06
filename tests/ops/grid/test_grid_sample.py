import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet.errors import ShapeError
from funcnet.ops.grid import grid_sample, resize
from tests.errors import golden

X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4, 5, 3)))
OPTIONS = ("method", "padding_mode", "align_corners")
sample = jax.jit(grid_sample.apply, static_argnames=OPTIONS)
POINTS = jnp.asarray(np.random.default_rng(1).standard_normal((2, 7, 2)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("d", "method", "mode", "aligned"),
    [
        (d, method, mode, aligned)
        for d, methods in ((2, ("nearest", "bilinear", "bicubic")), (3, ("nearest", "bilinear")))
        for method, mode, aligned in itertools.product(methods, ("zeros", "border", "reflection"), (0, 1))
    ],
)
def test_it_is_pytorchs(d, method, mode, aligned):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, grid = rng.standard_normal((2, *(4, 5, 3)[:d], 3)), 1.5 * rng.standard_normal((2, *(3, 2, 4)[:d], d))
    dy = rng.standard_normal((*grid.shape[:-1], 3))
    options = {"padding_mode": mode, "align_corners": bool(aligned)}
    xt, gt = (torch.tensor(v.copy(), requires_grad=True) for v in (np.moveaxis(x, -1, 1), grid))
    yt = torch.nn.functional.grid_sample(xt, gt, mode=method, **options)
    yt.backward(torch.tensor(np.moveaxis(dy, -1, 1).copy()))

    def all_of(x, grid, dy):
        y, pullback = grid_sample.vjp(x, grid, method=method, **options)
        return y, *pullback(dy)

    last = lambda v: np.moveaxis(v.detach().numpy(), 1, -1)
    for got, want in zip(
        jax.jit(all_of)(x, grid, dy), (last(yt), last(xt.grad), gt.grad.numpy()), strict=True
    ):
        np.testing.assert_allclose(got, want, atol=1e-9)


@pytest.mark.parametrize("method", ["linear", "cubic"])
def test_at_the_points_of_a_resized_grid_it_is_resize(method):
    along = [(2 * np.arange(m) + 1) / m - 1 for m in (7, 3)]
    grid = jnp.asarray(np.stack(np.meshgrid(*along, indexing="ij")[::-1], -1))
    y = sample(X[0], grid, method=method, padding_mode="border")
    want = jax.jit(lambda x: resize.apply(x, size=(7, 3), method=method))(X[0])
    np.testing.assert_allclose(y, want, atol=1e-12)


def test_the_first_coordinate_is_along_the_last_axis():
    x = jnp.arange(12.0).reshape(3, 4, 1)
    corners = jnp.array([[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])
    assert sample(x, corners, align_corners=True).ravel().tolist() == [0, 3, 8]


def test_what_is_kept_is_x_and_the_grid():
    kept = jax.tree.leaves(jax.eval_shape(lambda *a: grid_sample.vjp(*a)[1], X, POINTS))
    assert [v.shape for v in kept] == [X.shape, POINTS.shape]


def test_far_and_undefined_points():
    points = jnp.array([[jnp.inf, 0.0], [1e30, 0.0], [0.0, -jnp.inf], [jnp.nan, 0.0]])

    @jax.jit
    def all_of(x, points):
        grads = jax.grad(lambda *a: grid_sample.apply(*a).sum(), (0, 1))(x, points)
        return grid_sample.apply(x, points), grid_sample.apply(x, points, padding_mode="border"), *grads

    y, edge, dx, dg = map(np.asarray, all_of(X[0], points))
    assert (y == 0).all()
    assert np.isfinite(edge[:3]).all()
    assert np.isnan(edge[3]).all()
    assert (dx == 0).all()
    assert (dg == 0).all()


ERRORS = [
    (
        lambda: grid_sample.apply(X, POINTS[:1]),
        ShapeError,
        "grid_sample.apply: x and grid have different leading axes.\n"
        "  expected  grid: float[2, *out, 2]     (x: float64[2, 4, 5, 3])\n"
        "  got       grid: float64[1, 7, 2]",
    ),
    (
        lambda: grid_sample.apply(X, jnp.zeros((2, 7, 4))),
        ShapeError,
        "grid_sample.apply: the last axis of grid has 4 coordinates.\n"
        "  expected  grid: float[*n, *out, d], d 1, 2 or 3, one coordinate per spatial axis of x\n"
        "  got       grid: float64[2, 7, 4]",
    ),
]

test_errors = golden(ERRORS)
