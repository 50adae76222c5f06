"""A traced program run by NumPy gives what JAX gives, equation by equation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from funcnet.verifier import trace

X, Y, V = np.linspace(-1, 2, 15).reshape(3, 5), np.linspace(0.1, 1, 15).reshape(5, 3), np.arange(5.0)
I8 = np.arange(-120, 120, 16, dtype=np.int8).reshape(3, 5)

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
    "narrow integers": lambda x, y, v: (
        lax.dot(I8, I8.T, preferred_element_type=jnp.int32),  # beyond int8
        lax.reduce(I8, np.int8(0), lax.add, (0, 1)),  # wraps around
        jnp.cumsum(I8, 1, dtype=jnp.int8) % 7,  # JAX takes the remainder of like and like
        jnp.max(I8[:0], 0, initial=-128),
        lax.reduce_and(I8, (1,)),
    ),
    "casts": lambda x, y, v: (
        *(
            lax.convert_element_type(jnp.asarray(n), jnp.int32)
            for n in (1e10 * x, -1e10 * x, x + jnp.nan, 2.9 * x)
        ),
        lax.convert_element_type(jnp.asarray(-x), jnp.uint8), lax.convert_element_type(I8, jnp.uint8),
    ),
    "derivatives": lambda x, y, v: jax.grad(lambda x: x.prod(-1).sum())(x),  # a reshape that transposes
    "loops": lambda x, y, v: (
        lax.scan(lambda c, t: (jnp.sin(c) + t, c * t), v, jnp.arange(4.0), reverse=True),
        lax.scan(lambda c, t: (c + 1, t), v, jnp.zeros((0, 2))),
        lax.while_loop(lambda c: c[1] < 3, lambda c: (jnp.sin(c[0]), c[1] + 1), (v, 0)),
        lax.cond(v.sum() > 1e9, jnp.sin, jnp.cos, v),
        lax.fori_loop(0, 3, lambda i, c: c * i + v, v),
    ),
    "complex": lambda x, y, v: (lax.complex(v, v), jnp.conj(lax.complex(v, v)), lax.abs(lax.complex(v, v))),
    "complex functions": lambda x, y, v: [
        f(lax.complex(v - 2, v / 3)) for f in (lax.logistic, lax.exp2, lax.sign, lax.rsqrt, lambda z: z**-3)
    ],
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
        assert w.dtype.kind == "f" or np.asarray(values[v]).dtype == w.dtype
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


def test_source_is_read_without_a_word_about_its_style():
    assert trace.parsed("1or 2", mode="eval").body.op  # a SyntaxWarning, which tests take for an error
