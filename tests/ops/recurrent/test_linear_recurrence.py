import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet.errors import DTypeError, ShapeError
from funcnet.ops.recurrent import linear_recurrence
from tests.errors import golden
from tests.ops.recurrent.drawn import normal, same

A, B, STATE = normal(2, 7, 3), normal(2, 7, 3, 4), normal(2, 3, 4)
run = jax.jit(linear_recurrence.apply, static_argnames="reverse")


@pytest.mark.parametrize("t", [0, 1, 2, 7])
@pytest.mark.parametrize("back", [False, True])
def test_both_forms_are_one_function(t, back):
    """Step by step as on CPU, and 3 at once as elsewhere: values, gradients and, of b, the transpose."""
    a = jnp.broadcast_to(jnp.moveaxis(A, 1, 0)[:t, ..., None], (t, 2, 3, 1))
    b, first = jnp.moveaxis(B, 1, 0)[:t], STATE
    forms = linear_recurrence._one_by_one, functools.partial(linear_recurrence._at_once, chunk=3)

    def everything(form):
        f = lambda a, b: form(a, first, b, back=back)
        y, pull = jax.vjp(f, a, b)
        (transposed,) = jax.linear_transpose(lambda b: form(a, jnp.zeros_like(first), b, back=back), b)(b)
        return y, pull(b), transposed

    same(*(jax.jit(everything, static_argnums=0)(form) for form in forms))


@pytest.mark.parametrize("reverse", [False, True])
def test_it_is_the_solution_of_a_bidiagonal_system(reverse):
    """(I − N) h = b, the factors in N beside the diagonal; the pullback solves the transpose."""
    a, b = np.asarray(A[0, :, 0]), np.asarray(B[0, :, 0, 0])
    N = np.diag(a[:-1], 1) if reverse else np.diag(a[1:], -1)
    f = functools.partial(run, a[:, None], reverse=reverse)
    y, pulled = jax.jit(lambda b: (f(b), jax.vjp(f, b)[1](b)[0]))(b[:, None])
    np.testing.assert_allclose(y[:, 0], np.linalg.solve(np.eye(7) - N, b), atol=1e-4)
    np.testing.assert_allclose(pulled[:, 0], np.linalg.solve((np.eye(7) - N).T, b), atol=1e-4)


def test_pieces_equal_the_whole():
    y = run(A, B, STATE)
    first = run(A[:, :3], B[:, :3], STATE)
    same(jnp.concatenate([first, run(A[:, 3:], B[:, 3:], first[:, -1])], 1), y)


def test_each_option_changes_something():
    y = run(A, B)
    assert not jnp.allclose(run(A, B, STATE), y)
    assert not jnp.allclose(run(A, B, reverse=True), y)
    same(run(jnp.flip(A, 1), jnp.flip(B, 1), reverse=True), jnp.flip(y, 1))
    same(run(A, B[..., 0]), y[..., 0])


def test_what_is_solved_at_once_bounds_the_memory():
    v = jax.ShapeDtypeStruct((4096, 64), jnp.float32)
    form = jax.jit(linear_recurrence._at_once, static_argnames=("back", "chunk"))

    def temporary(chunk):
        program = form.lower(v, v.update(shape=(64,)), v, back=False, chunk=chunk).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert temporary(4096) > 2 * v.size * 4 > 4 * temporary(256)


def test_no_steps():
    def both(a, b):
        y, pull = jax.vjp(linear_recurrence.apply, a, b, STATE)
        return y, pull(y)

    y, grads = jax.jit(both)(A[:, :0], B[:, :0])
    assert y.shape == (2, 0, 3, 4)
    assert not any(np.any(v) for v in grads)


def test_residuals_are_the_arguments_and_y():
    pullback = jax.eval_shape(lambda: linear_recurrence.vjp(A, B)[1])
    assert sum(v.size for v in jax.tree.leaves(pullback)) == A.size + 2 * B.size


ERRORS = [
    (
        lambda: linear_recurrence.apply(A, B.swapaxes(1, 2)),
        ShapeError,
        "linear_recurrence.apply: b does not begin with the axes of a.\n"
        "  expected  b: float[2, 7, 3, *e]     (a: float32[2, 7, 3])\n"
        "  got       b: float32[2, 3, 7, 4]",
    ),
    (
        lambda: linear_recurrence.apply(A[0, 0], B),
        ShapeError,
        "linear_recurrence.apply: a has rank 1, but at least 2 is needed.\n"
        "  expected  a: float[*n, t, d]\n"
        "  got       a: float32[3]\n"
        "  hint      is an axis missing? x[None] adds a batch, x[..., None] a channel axis.",
    ),
    (
        lambda: linear_recurrence.apply(A, B, STATE[0]),
        ShapeError,
        "linear_recurrence.apply: state is not as one step of b.\n"
        "  expected  state: float[2, 3, 4]     (b: float32[2, 7, 3, 4])\n"
        "  got       state: float32[3, 4]",
    ),
    (
        lambda: linear_recurrence.apply(A.astype(jnp.int32), B),
        DTypeError,
        "linear_recurrence.apply: a has dtype int32, but a float is needed.\n"
        "  expected  a: float[...]\n"
        "  got       a: int32[2, 7, 3]\n"
        "  hint      cast it: a.astype(jnp.float32).",
    ),
]
test_errors = golden(ERRORS)
