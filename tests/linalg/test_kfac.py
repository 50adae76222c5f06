"""The inverse by Kronecker factors: exact where inputs and residuals are independent, and what it is else."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnet as fn
from funcnet.errors import ShapeError, StructureError, ValueRangeError
from funcnet.linalg import factored, fisher, kfac, kronecker
from funcnet.spec import Spec, of, stacked
from tests.errors import golden


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


PARAMS = {"first": {"w": normal(2, 3, seed=1)}, "second": {"w": normal(3, 2, seed=2), "b": normal(2, seed=3)}}
SPECS = {"first": fn.linear.specs(PARAMS["first"]), "second": fn.linear.specs(PARAMS["second"])}
DAMPING = 0.3


def net(params, x):
    """Linear, of two layers."""
    return fn.linear.apply(params["second"], fn.linear.apply(params["first"], x))


def losses(params, batch):
    return 0.5 * jnp.square(net(params, batch[0]) - batch[1]).sum(-1)


def crossed(inputs, residuals):
    """Every input with every residual: the two are independent."""
    x = jnp.repeat(inputs, len(residuals), 0)
    return x, net(PARAMS, x) - jnp.tile(residuals, (len(inputs), 1))


BATCH = crossed(normal(3, 2, seed=4), normal(2, 2, seed=5))
PLACES = {"first.w": slice(0, 6), "second.b": slice(6, 8), "second.w": slice(8, 14)}


def damped(F, diagonal=()):
    """(F + d 1)⁻¹ block by block, of some blocks only the diagonal."""
    found = np.zeros_like(F)
    for name, place in PLACES.items():
        block = F[place, place]
        block = np.diag(np.diag(block)) if name in diagonal else block
        found[place, place] = np.linalg.inv(block + DAMPING * np.eye(len(block)))
    return found


@functools.cache
def dense():
    return np.asarray(fisher(losses, PARAMS, BATCH).matrix())


def is_the_inverse(matrix):
    np.testing.assert_allclose(matrix, damped(dense(), ("second.b",)), atol=1e-10)


def inverse(batches=BATCH, specs=SPECS, **options):
    return kfac(losses, PARAMS, batches, specs, **{"damping": DAMPING} | options)


def test_exact_for_linear_layers_of_independent_inputs_and_residuals():
    is_the_inverse(inverse().matrix())


def _without_orders(left, right, damping, right_one=factored._inverted):
    u, v, scale = right_one(left, right, damping)
    return u.swapaxes(1, 2), v, scale


SLIPS = {
    "the basis of rows transposed": _without_orders,
    "not divided by the trace": lambda left, right, damping, one=factored._inverted: one(
        left, right * jnp.trace(left, axis1=1, axis2=2)[:, None, None], damping
    ),
    "factored damping": lambda left, right, damping: _factored(left, right, damping),
}


def _factored(left, right, damping):
    """(L + √d)⁻¹ ⊗ (R / t + √d)⁻¹, as K-FAC takes it."""
    eye = lambda m: jnp.sqrt(damping) * jnp.eye(m.shape[-1])
    t = jnp.trace(left, axis1=1, axis2=2)[:, None, None]
    u, v = kronecker.eigenbasis(left), kronecker.eigenbasis(right)
    rows = jnp.einsum("sij,sik,skj->sj", u, left + eye(left), u)
    columns = jnp.einsum("sij,sik,skj->sj", v, right / t + eye(right), v)
    return u, v, 1 / (rows[:, :, None] * columns[:, None, :])


@pytest.mark.parametrize("slip", SLIPS)
def test_the_law_rejects_slips(slip, monkeypatch):
    monkeypatch.setattr(factored, "_inverted", SLIPS[slip])
    other = lambda params, batch: losses(params, batch)  # compiled anew
    with pytest.raises(AssertionError):
        is_the_inverse(kfac(other, PARAMS, BATCH, SPECS, damping=DAMPING).matrix())


def test_only_matrices_have_factors_and_only_up_to_a_size():
    """The sides of 2 keep theirs, those of 3 a diagonal; a table has its own diagonal, and so has a bias."""
    K = kfac(losses, PARAMS, BATCH, SPECS, damping=DAMPING, most=2).matrix()
    F = dense()[:6, :6].reshape(2, 3, 2, 3)  # A ⊗ B, of the first layer
    A = np.einsum("iaja->ij", F)
    B = np.diag(np.einsum("iaib->ab", F)) / np.trace(A)
    np.testing.assert_allclose(
        K[:6, :6], np.linalg.inv(np.kron(A, np.diag(B)) + DAMPING * np.eye(6)), atol=1e-10
    )
    table = SPECS | {"second": SPECS["second"] | {"w": of(PARAMS["second"]["w"], "rows d", "table")}}
    K = kfac(losses, PARAMS, BATCH, table, damping=DAMPING).matrix()
    np.testing.assert_allclose(K, damped(dense(), ("second.b", "second.w")), atol=1e-10)


def test_a_stack_is_its_layers():
    """Each as it would be alone, in a net that uses both on the same input."""

    def of_stack(params, batch):
        x, y = batch
        return 0.5 * sum(jnp.square(x @ params["w"][i] - y[:, i]).sum(-1) for i in range(2))

    def of_one(params, batch):
        return 0.5 * jnp.square(batch[0] @ params["w"] - batch[1]).sum(-1)

    w, x, y = normal(2, 3, 2), normal(5, 3, seed=1), normal(5, 2, 2, seed=2)
    spec = Spec((3, 2), w.dtype, ("i", "o"), ((3, 2), "io"))
    both = kfac(of_stack, {"w": w}, (x, y), {"w": stacked(spec, 2)}, damping=0.1) @ {"w": w}
    for i in range(2):
        alone = kfac(of_one, {"w": w[i]}, (x, y[:, i]), {"w": spec}, damping=0.1) @ {"w": w[i]}
        np.testing.assert_allclose(both["w"][i], alone["w"], atol=1e-12)


def test_batches_damping_and_keys():
    parts = [tuple(leaf[cut] for leaf in BATCH) for cut in (slice(0, 2), slice(2, 4), slice(4, 6))]
    v = normal(14)
    np.testing.assert_allclose(inverse(batches=parts) @ v, inverse() @ v, atol=1e-12)
    assert not np.allclose(inverse(damping=1.0) @ v, inverse() @ v)

    def drawn(params, batch, key):
        return losses(
            params, (batch[0], jax.lax.stop_gradient(net(params, batch[0])) + jax.random.normal(key, (1, 2)))
        )

    one, other = (kfac(drawn, PARAMS, BATCH, SPECS, damping=0.1, key=jax.random.key(i)) @ v for i in (0, 1))
    assert not np.allclose(one, other)


# ---- errors

test_errors = golden(
    [
        (
            lambda: inverse(damping=0.0),
            ValueRangeError,
            "linalg.kfac: damping is 0.0.\n  expected  above 0\n  got       0.0",
        ),
        (
            lambda: inverse(most=-1),
            ValueRangeError,
            "linalg.kfac: most is -1.\n  expected  0 or more\n  got       -1",
        ),
        (
            lambda: inverse(specs=SPECS["first"]),
            StructureError,
            "linalg.kfac: specs are those of another tree than params.\n"
            "  expected  ['first']['w'] [2, 3], ['second']['b'] [2], ['second']['w'] [3, 2]\n"
            "  got       ['w'] [2, 3]",
        ),
        (
            lambda: inverse(batches=(BATCH[0], BATCH[1][:3])),
            ShapeError,
            "linalg.kfac: the arrays of a batch do not agree on the number of examples.\n"
            "  expected  arrays whose first axes are equally long\n"
            "  got       float64[6, 2], float64[3, 2]",
        ),
    ]
)
