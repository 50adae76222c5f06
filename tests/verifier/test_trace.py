"""A traced program run by NumPy gives what JAX gives, equation by equation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from funcnet.verifier import trace

X, Y, V = np.linspace(-1, 2, 15).reshape(3, 5), np.linspace(0.1, 1, 15).reshape(5, 3), np.arange(5.0)

PROGRAMS = {
    "products": lambda x, y, v: (x @ y, v @ v, jnp.einsum("ij,jk,k->i", x, y, v[:3]), jnp.outer(v, v)),
    "batched": lambda x, y, v: jnp.einsum("nij,njk->nik", jnp.stack([x, 2 * x]), jnp.stack([y, y])),
    "shapes": lambda x, y, v: (x.T, x.reshape(15), x[None], v[::-1], x[:, 1:4:2], jnp.concatenate([x, y.T])),
    "padding": lambda x, y, v: [
        lax.pad(x, 7.0, config)
        for config in ([(1, 2, 0), (0, 0, 1)], [(-1, 0, 0), (2, -1, 2)], [(0, -3, 0), (0, 0, 0)])
    ],
    "reductions": lambda x, y, v: (x.sum(0), x.mean(), x.max(1), x.min(), jnp.prod(v + 1), jnp.argmax(x, 1)),
    "cumulative": lambda x, y, v: (jnp.cumsum(x, 1), lax.cumsum(x, 0, reverse=True), jnp.cumprod(v + 1)),
    "elementwise": lambda x, y, v: (jnp.tanh(x), jnp.exp(x), jnp.log(y), x**3, y**-2, lax.rsqrt(y)),
    "choices": lambda x, y, v: (jnp.where(x > 0, x, 2 * x), jnp.clip(x, 0, 1), lax.logistic(x), x == x.max()),
    "indices": lambda x, y, v: (x[jnp.array([0, 2])], jnp.asarray(x).at[1].add(v), jnp.tril(y @ x)),
    "integers": lambda x, y, v: (
        jnp.arange(-5, 6) // 3,
        lax.div(jnp.arange(-5, 6), 3),
        jnp.arange(-5, 6) % 3,
        jnp.arange(5) ** 2,
        -jnp.arange(5),
        jnp.cumsum(jnp.arange(5)),
    ),
    "loops": lambda x, y, v: (
        lax.scan(lambda c, t: (jnp.sin(c) + t, c * t), v, jnp.arange(4.0), reverse=True),
        lax.scan(lambda c, t: (c + 1, t), v, jnp.zeros((0, 2))),
        lax.while_loop(lambda c: c[1] < 3, lambda c: (jnp.sin(c[0]), c[1] + 1), (v, 0)),
        lax.cond(v.sum() > 1e9, jnp.sin, jnp.cos, v),
        lax.fori_loop(0, 3, lambda i, c: c * i + v, v),
    ),
    "complex": lambda x, y, v: (lax.complex(v, v), jnp.conj(lax.complex(v, v)), lax.abs(lax.complex(v, v))),
    "scatters": lambda x, y, v: (jnp.asarray(v).at[jnp.array([0, 0])].max(3.0), jnp.asarray(x).at[0].mul(2)),
    "calls": lambda x, y, v: (jax.nn.relu(x), jax.jit(jnp.sin)(x), jax.checkpoint(jnp.cos)(x), lax.erf(x)),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_numpy_gives_what_jax_gives(name):
    f = PROGRAMS[name]
    program, _ = trace.trace(f, X, Y, V)
    values = trace.run(program, [X, Y, V])
    want = jax.tree.leaves(f(X, Y, V))
    assert len(program.outputs) == len(want)
    for v, w in zip(program.outputs, want, strict=True):
        assert np.shape(values[v]) == w.shape
        np.testing.assert_allclose(values[v], w, rtol=1e-14, atol=1e-14)


def test_only_what_depends_on_a_change_is_run_again():
    program, _ = trace.trace(lambda x: (jnp.sin(x) * 2, jnp.cos(x)), V)
    values = trace.run(program, [V])
    k = next(k for k, eqn in enumerate(program.equations) if eqn.name == "sin")
    new = trace.rerun(program, values, {k: lambda operands, _: [operands[0] ** 2]}, program.outputs)
    np.testing.assert_allclose(new[0], 2 * V**2)
    assert new[1] is values[program.outputs[1]]


def test_equations_know_their_lines():
    program, _ = trace.trace(lambda x: jnp.sin(x), V)  # HERE
    (line,) = {eqn.line for eqn in program.equations if eqn.name == "sin"}
    assert line.rpartition(":")[0].endswith("test_trace.py")
    assert trace.source(line).endswith("# HERE")


def test_every_float_is_run_in_float64():
    narrow = lambda x: (x.astype("bfloat16") * jnp.asarray(1 / 3, "bfloat16")).astype("float32").sum()
    program, _ = trace.trace(narrow, X)
    (total,) = program.results(trace.run(program, [X]))
    assert total.dtype == np.float64
    assert total == pytest.approx(X.sum() * float(jnp.asarray(1 / 3, "bfloat16")), rel=1e-14)
