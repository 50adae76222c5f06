import os
import subprocess
import sys
from itertools import chain, islice

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import funcnet as fn
from funcnet.errors import DTypeError, ShapeError, StructureError, ValueRangeError
from funcnet.train import batches, in_order


@settings(deadline=None)
@given(n=st.integers(1, 40), size=st.integers(1, 50), seed=st.integers(0, 2**70), epochs=st.integers(0, 4))
def test_each_example_once_per_epoch(n, size, seed, epochs):
    kept = [b.tolist() for b in batches(np.arange(n), size, seed=seed, epochs=epochs, drop_remainder=False)]
    per_epoch = -(-n // size)
    assert len(kept) == epochs * per_epoch
    for epoch in range(epochs):
        chunk = kept[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert sorted(chain.from_iterable(chunk)) == list(range(n))
        assert [len(batch) for batch in chunk[:-1]] == [size] * (per_epoch - 1)
    if size <= n:
        full = [b.tolist() for b in batches(np.arange(n), size, seed=seed, epochs=epochs)]
        assert full == [batch for batch in kept if len(batch) == size]


@settings(deadline=None)
@given(n=st.integers(1, 40), size=st.integers(1, 50))
def test_in_order_gives_everything_as_it_stands(n, size):
    given_ = list(in_order(np.arange(n), size))
    assert np.concatenate(given_).tolist() == list(range(n))
    assert all(len(batch) == size for batch in given_[:-1])


def test_the_order_is_a_function_of_seed_and_epoch():
    def order(seed, epochs=2):
        return [b.tolist() for b in batches(np.arange(20), 5, seed=seed, epochs=epochs)]

    first, second = order(3)[:4], order(3)[4:]
    assert order(3) == order(3)
    assert order(3, epochs=1) == first
    assert first != second
    assert order(4)[:4] != first
    endless = batches(np.arange(20), 5, seed=3, epochs=None)
    assert [b.tolist() for b in islice(endless, 8)] == order(3)


def test_the_order_is_the_same_in_every_process_and_version():
    # Written down once: a resumed run on a newer NumPy must see the same batches.
    golden = [[3, 8, 9], [5, 2, 7], [6, 1, 4]]
    here = [b.tolist() for b in batches(np.arange(10), 3, seed=12, epochs=1)]
    program = (
        "import numpy as np; from funcnet.train import batches;"
        "print([b.tolist() for b in batches(np.arange(10), 3, seed=12, epochs=1)])"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    there = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    assert here == golden
    assert there.stdout.strip() == str(golden)


def test_shuffling_is_uniform():
    # Every example comes first equally often: 6 examples, 3000 seeds, 500 expected each, sigma 20.4.
    first = [next(batches(np.arange(6), 6, seed=seed, epochs=1))[0] for seed in range(3000)]
    assert np.all(np.abs(np.bincount(first, minlength=6) - 500) < 5 * 20.4)


def test_pytrees_keep_their_rows_together_and_their_types():
    rows = np.arange(12, dtype=np.float32)
    tree = {"x": jnp.stack([rows, -rows], 1), "y": [rows.astype(np.uint8), rows.astype(jnp.bfloat16)]}
    for batch in batches(tree, 4, seed=0, epochs=2):
        assert jax.tree.structure(batch) == jax.tree.structure(tree)
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(batch))
        assert [leaf.dtype for leaf in jax.tree.leaves(batch)] == [rows.dtype, np.uint8, jnp.bfloat16]
        np.testing.assert_array_equal(batch["x"][:, 0], batch["y"][0])
        np.testing.assert_array_equal(batch["x"][:, 1], -batch["y"][1].astype(np.float32))


ERRORS = {
    "too large": (
        lambda: batches(np.arange(10), 11, seed=0),
        ValueRangeError,
        """train.batches: a batch of 11 cannot be filled with 10 examples.
  expected  at most 10
  got       11
  hint      size=10, or drop_remainder=False for a smaller batch""",
    ),
    "no examples": (
        lambda: batches({"x": np.ones((0, 3))}, 1, seed=0),
        ValueRangeError,
        """train.batches: there are no examples.
  expected  a first axis of length 1 or more
  got       float64[0, 3]""",
    ),
    "unequal": (
        lambda: batches((np.ones((5, 2)), np.ones(4)), 2, seed=0),
        ShapeError,
        """train.batches: arrays[1] does not have one entry per example.
  expected  a first axis of length 5, that of arrays[0]
  got       float64[4]""",
    ),
    "scalar": (
        lambda: in_order({"x": np.float32(1.0)}, 2),
        ShapeError,
        """train.in_order: arrays['x'] does not have one entry per example.
  expected  [n, ...]
  got       float32[]""",
    ),
    "no arrays": (
        lambda: in_order({}, 2),
        StructureError,
        """train.in_order: there is no array in arrays.
  expected  a pytree of arrays
  got       a dict""",
    ),
    "size": (
        lambda: in_order(np.arange(3), 0),
        ValueRangeError,
        """train.in_order: size is 0.
  expected  1 or more
  got       0""",
    ),
    "seed": (
        lambda: batches(np.arange(3), 1, seed=-1),
        ValueRangeError,
        """train.batches: seed is -1.
  expected  0 or more
  got       -1""",
    ),
    "epochs": (
        lambda: batches(np.arange(3), 1, seed=0, epochs=-2),
        ValueRangeError,
        """train.batches: epochs is -2.
  expected  0 or more
  got       -2""",
    ),
    "size of floats": (
        lambda: batches(np.arange(3), 1.0, seed=0),  # pyright: ignore[reportArgumentType]
        DTypeError,
        """train.batches: size is no integer.
  expected  an integer, 1 or more
  got       1.0 (float)""",
    ),
    "a key for a seed": (
        lambda: batches(np.arange(3), 1, seed=jax.random.key(0)),
        DTypeError,
        """train.batches: seed is no integer.
  expected  an integer, 0 or more
  got       key<fry>[]""",
    ),
    "half an epoch": (
        lambda: batches(np.arange(3), 1, seed=0, epochs=0.5),  # pyright: ignore[reportArgumentType]
        DTypeError,
        """train.batches: epochs is no integer.
  expected  an integer, 0 or more
  got       0.5 (float)""",
    ),
    "a function": (
        lambda: in_order({"x": batches}, 1),
        DTypeError,
        """train.in_order: arrays['x'] is no array.
  expected  NumPy or JAX arrays
  got       a function""",
    ),
    "masked": (
        lambda: in_order(np.ma.masked_array([1.0, 2.0], [True, False]), 1),
        DTypeError,
        """train.in_order: arrays is no array.
  expected  NumPy or JAX arrays
  got       float64[2], masked""",
    ),
    "keys": (
        lambda: in_order(jax.random.split(jax.random.key(0), 3), 1),
        DTypeError,
        """train.in_order: arrays is no array.
  expected  NumPy or JAX arrays
  got       key<fry>[3]""",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_come_at_the_call_not_at_the_first_batch(unchecked, case):
    call, error, text = ERRORS[case]
    with pytest.raises(error) as raised:
        call()
    assert str(raised.value) == text


def test_numbers_of_other_libraries_are_numbers(unchecked):
    expected = [batch.tolist() for batch in batches(np.arange(7), 3, seed=5, epochs=1)]
    for integer in (np.int64, np.uint8, jnp.int32):
        taken = batches(np.arange(7), integer(3), seed=integer(5), epochs=integer(1))
        assert [batch.tolist() for batch in taken] == expected


def test_names():
    assert fn.train.batches is batches
