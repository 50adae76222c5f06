import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet.errors import DTypeError, ShapeError, ValueRangeError
from funcnet.ops.grid import resize
from tests.errors import golden

X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 7, 3)))
METHODS = {1: ("nearest", "nearest-exact", "linear"), 3: ("nearest", "nearest-exact", "trilinear")}
METHODS[2] = ("nearest", "nearest-exact", "bilinear", "bicubic")


def torchs(x, dy, **options):
    """PyTorch's result and gradient, channels last."""
    torch = pytest.importorskip("torch")
    given = torch.tensor(np.moveaxis(np.asarray(x), -1, 1).copy(), requires_grad=True)
    y = torch.nn.functional.interpolate(given, **options)
    y.backward(torch.tensor(np.moveaxis(dy(y.shape), -1, 1).copy()))
    return np.moveaxis(y.detach().numpy(), 1, -1), np.moveaxis(given.grad.numpy(), 1, -1)


def cases():
    for d, outs in ((2, (11, 3)), (2, (4, 13)), (1, (9,)), (3, (3, 9, 1))):
        for method in METHODS[d]:
            near = "near" in method
            for aligned, antialias in itertools.product((False, True), (False, True)):
                if (near and (aligned or antialias)) or (antialias and d != 2) or (antialias and aligned):
                    continue
                options = {"size": outs, "align_corners": aligned, "antialias": antialias}
                yield d, options | {"method": method}
    yield 2, {"scale": (1.7, 0.6), "method": "bicubic"}
    yield 2, {"scale": (0.6, 2.0), "method": "bilinear", "antialias": True}
    yield 1, {"scale": (2.3,), "method": "nearest"}


@pytest.mark.slow
@pytest.mark.parametrize(("d", "options"), list(cases()), ids=str)
def test_it_is_pytorchs(d, options):
    x = np.random.default_rng(0).standard_normal((2, *(5, 7, 4)[:d], 3))
    theirs = {"mode": options["method"], "antialias": options.get("antialias", False)}
    theirs |= {"size": options["size"]} if "size" in options else {"scale_factor": options["scale"]}
    if "near" not in options["method"]:
        theirs["align_corners"] = options.get("align_corners", False)
    dys = lambda shape: np.random.default_rng(1).standard_normal((shape[0], *shape[2:], shape[1]))
    want = torchs(x, dys, **theirs)

    def both(x, dy):
        y, pullback = resize.vjp(x, **options)
        return y, pullback(dy)[0]

    dy = np.random.default_rng(1).standard_normal(want[0].shape)
    for got, right in zip(jax.jit(both)(x, dy), want, strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-9, atol=1e-9)


def test_a_constant_stays_constant_and_a_ramp_a_ramp():
    ramp = jnp.arange(7.0)[:, None]
    for method in ("linear", "cubic"):
        y = resize.apply(ramp, size=(13,), method=method, align_corners=True, a=-0.5)
        np.testing.assert_allclose(y[2:-2, 0], np.arange(13)[2:-2] / 2, rtol=1e-12)
    for options in ({"method": "cubic"}, {"antialias": True}, {"method": "nearest"}):
        for size in ((3,), (29,)):
            np.testing.assert_allclose(resize.matrix((7, 1), size=size, **options).sum(1), 1, rtol=1e-12)


def test_nearest_counts_in_integers():
    """⌊o · 29 / 41⌋ of floats falls short where the quotient is an integer."""
    for n, m in ((29, 41), (6, 42), (49, 7)):
        M = np.asarray(resize.matrix((n, 1), size=(m,), method="nearest"))
        assert (M.argmax(1) == np.arange(m) * n // m).all()


def test_antialias_sees_all_and_a_small_filter_does_not():
    seen = lambda **options: (np.asarray(resize.matrix((40, 1), size=(7,), **options)) != 0).any(0)
    assert seen(antialias=True).all()
    assert not seen().all()


def test_the_operator_knows_its_norm():
    A = resize.operator((5, 7, 2), size=(9, 4), method="cubic")
    M = np.asarray(resize.matrix((5, 7, 2), size=(9, 4), method="cubic"))
    np.testing.assert_allclose(A.matrix(), M)
    np.testing.assert_allclose(A.T @ jnp.ones(72), M.T @ np.ones(72), rtol=1e-12)
    lower, upper = A.norm()
    assert lower <= np.linalg.norm(M, 2) * (1 + 1e-9) <= upper * (1 + 1e-6)


def test_sizes_may_be_symbols():
    (n,) = jax.export.symbolic_shape("n")
    described = jax.ShapeDtypeStruct((n, 3), X.dtype)
    for options in (
        {"size": (7,), "method": "cubic"},
        {"size": (4,), "method": "nearest"},
        {"scale": (2.0,)},
    ):
        both = jax.jit(jax.value_and_grad(lambda x, o=options: (resize.apply(x, **o) ** 2).sum()))
        if "scale" in options:
            jax.eval_shape(both, described)
            continue
        for got, want in zip(jax.export.export(both)(described).call(X[0, 0]), both(X[0, 0]), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-12)
    with pytest.raises(ShapeError, match="depends on a size that is a symbol"):
        jax.eval_shape(lambda x: resize.apply(x, size=(7,), antialias=True), described)


def test_nothing_is_kept():
    assert jax.tree.leaves(jax.eval_shape(lambda x: resize.vjp(x, size=(3, 3))[1], X)) == []


def test_the_pullback_scatters_nothing():
    """What autodiff would add up one by one is gathered."""
    pull = lambda x: jax.grad(lambda x: resize.apply(x, size=(9, 3), method="cubic").sum())(x)
    assert "scatter" not in str(jax.make_jaxpr(pull)(X))


ERRORS = [
    (
        lambda: resize.apply(X),
        ValueRangeError,
        "resize.apply: neither of size and scale is given.\n"
        "  expected  size: the sizes of y; or scale: a factor per spatial axis\n"
        "  got       size: None (NoneType), scale: None (NoneType)",
    ),
    (
        lambda: resize.apply(X, size=(3, 3), method="nearest", antialias=True),
        ValueRangeError,
        'resize.apply: method "nearest" has no antialias.\n'
        '  expected  antialias=False, or method "linear" or "cubic"\n'
        "  got       antialias = True",
    ),
    (
        lambda: resize.apply(X, scale=(0.1, 1.0)),
        ValueRangeError,
        "resize.apply: scale leaves 0 elements of 5.\n"
        "  expected  1 ≤ ⌊size · scale⌋ < 2³¹\n"
        "  got       scale = 0.1",
    ),
    (
        lambda: resize.apply(X, scale=2.0),  # pyright: ignore[reportArgumentType]
        DTypeError,
        "resize.apply: scale is not a tuple of 1 to 3 factors.\n"
        "  expected  scale: one factor per spatial axis\n"
        "  got       scale: 2.0 (float)",
    ),
    (
        lambda: resize.apply(X[:, :0], size=(3, 3)),
        ShapeError,
        "resize.apply: x has no elements along a spatial axis.\n"
        "  expected  at least one along each spatial axis\n"
        "  got       x: float64[2, 0, 7, 3]",
    ),
    (
        lambda: resize.matrix((2, 5, 7, 3), size=(3, 3)),
        ShapeError,
        "resize.matrix: in_shape has 4 entries, but size has 2.\n"
        "  expected  (*size, c), 3 entries: one example, without batch axes\n"
        "  got       in_shape = (2, 5, 7, 3)",
    ),
]

test_errors = golden(ERRORS)
