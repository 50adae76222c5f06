"""Random orthogonal matrices: JAX's, but never several in one decomposition, which may hang on a CPU."""

import re

import jax
import numpy as np
import pytest

import funcnet as fn
from funcnet.linalg.haar import orthogonal
from funcnet.nets import recurrent

KEY = jax.random.key(3)


@pytest.mark.parametrize("sizes", [(5, 5, None), (3, 7, 4), (7, 3, 4)])
@pytest.mark.parametrize("jitted", [False, True])
def test_bits_of_jax(sizes, jitted):
    n, m, stack = sizes
    ours = lambda key: orthogonal(key, n, m, stack=stack)
    theirs = jax.random.orthogonal(KEY, n, () if stack is None else (stack,), m=m)
    np.testing.assert_array_equal((jax.jit(ours) if jitted else ours)(KEY), theirs)


def _axes(f, key):
    """Of every array that LAPACK gets or gives in the program."""
    calls = [line for line in jax.jit(f).lower(key).as_text().splitlines() if "@lapack_" in line]
    assert calls
    shapes = re.findall(r"tensor<((?:\d+x)+)f\d\d>", "\n".join(calls))
    return {shape.count("x") for shape in shapes}


CELLS = {name: recurrent.Config(3, 5, 2, cell=name, bidirectional=True) for name in ("lstm", "gru", "rnn")}


@pytest.mark.parametrize("cell", CELLS)
def test_a_recurrent_net_draws_one_matrix_at_a_time(cell):
    draw = lambda key: recurrent.init(key, CELLS[cell])
    assert max(_axes(draw, KEY)) == 2
    assert max(_axes(jax.vmap(draw), jax.random.split(KEY, 2))) == 2


def test_an_orthogonal_kernel_draws_one_matrix_at_a_time():
    draw = lambda key: fn.linalg.orthogonal_kernel(key, 6, 6, kernel=(3, 3), groups=3)
    assert max(_axes(draw, KEY)) == 2


def test_several_at_once_are_seen():
    assert max(_axes(lambda key: jax.random.orthogonal(key, 5, (4,)), KEY)) == 3
