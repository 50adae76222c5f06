import hashlib
import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import funcnet as fn
from funcnet.errors import DTypeError, ShapeError, StructureError, ValueRangeError
from funcnet.train import RecordError, batches, in_order, prefetch
from tests.train.positions import as_lists, resumes


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
    # Every example comes first equally often: 6 examples, 900 seeds, 150 expected each, sigma 11.2.
    first = [next(batches(np.arange(6), 6, seed=seed, epochs=1))[0] for seed in range(900)]
    assert np.all(np.abs(np.bincount(first, minlength=6) - 150) < 5 * 11.2)


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
    "skip_bad": (
        lambda: batches(np.arange(3), 1, seed=0, skip_bad=-1),
        ValueRangeError,
        """train.batches: skip_bad is -1.
  expected  0 or more
  got       -1""",
    ),
    "transform": (
        lambda: batches(np.arange(3), 1, seed=0, transform="flip"),  # pyright: ignore[reportArgumentType]
        DTypeError,
        """train.batches: transform is not a function.
  expected  transform(batch, rng)
  got       'flip' (str)""",
    ),
    "transform of a batch alone": (
        lambda: batches(np.arange(3), 1, seed=0, transform=lambda batch: batch),  # pyright: ignore[reportArgumentType, reportCallIssue]
        StructureError,
        """train.batches: transform does not take the arguments that it is given.
  expected  transform(batch, rng)
  got       transform(batch)""",
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


def drawn(batch, rng):
    """A transform that draws, and writes into what it is given."""
    batch["x"] += rng.integers(1000, size=batch["x"].shape)
    return batch


def examples(n):
    return {"x": 1000 * np.arange(n), "y": np.arange(n, dtype=np.float32)}


@settings(deadline=None, max_examples=30)
@given(
    n=st.integers(1, 12),
    size=st.integers(1, 5),
    seed=st.integers(0, 2**70),
    epochs=st.integers(0, 3),
    ahead=st.sampled_from([0, 1, 4, 16]),
    drop=st.booleans(),
    transform=st.sampled_from([None, drawn]),
    data=st.data(),
)
def test_stopped_anywhere_and_resumed_nothing_is_lost_or_doubled(
    n, size, seed, epochs, ahead, drop, transform, data
):
    drop = drop and size <= n
    per_epoch = n // size if drop else -(-n // size)
    k = data.draw(st.integers(0, epochs * per_epoch), "k")
    options = {"seed": seed, "epochs": epochs, "drop_remainder": drop, "transform": transform}
    whole = resumes(lambda: prefetch(batches(examples(n), size, **options), ahead, put=False), k)
    assert as_lists(whole) == as_lists(batches(examples(n), size, **options))
    for epoch in range(epochs):
        seen = np.concatenate([b["y"] for b in whole[epoch * per_epoch : (epoch + 1) * per_epoch]])
        assert len({*seen.tolist()}) == len(seen) == (n - n % size if drop else n)


def test_a_position_is_small_and_says_where_and_in_what():
    taken = batches(np.arange(10), 3, seed=2**70, epochs=3, drop_remainder=False)
    for _ in range(5):
        next(taken)
    position = taken.position()
    fingerprint = position.pop("fingerprint")
    assert len(fingerprint) == 32
    assert position == {
        "epoch": 1,
        "batch": 1,
        "skipped": 0,
        "n": 10,
        "size": 3,
        "seed": 2**70,
        "drop_remainder": False,
    }
    list(taken)
    assert [taken.position()[name] for name in ("epoch", "batch")] == [3, 0]
    taken.position()["epoch"] = 0  # a copy
    assert next(taken, None) is None


def test_a_run_is_prolonged_from_the_end_of_a_shorter_one():
    short, long = (batches(np.arange(6), 2, seed=1, epochs=epochs) for epochs in (1, 2))
    first = as_lists(short)
    long.seek(short.position())
    assert first + as_lists(long) == as_lists(batches(np.arange(6), 2, seed=1, epochs=2))


def test_reading_is_a_function_of_the_place_alone():
    taken = batches(examples(8), 4, seed=3, transform=drawn)
    start = taken.position()
    whole = as_lists(islice(taken, 6))
    for k in (5, 0, 3, 3):
        taken.seek(start | {"epoch": k // 2, "batch": k % 2})
        assert as_lists([next(taken)]) == whole[k : k + 1]


def test_an_epoch_is_shuffled_once(monkeypatch):
    made, shuffle = [], fn.train.data._order
    monkeypatch.setattr(
        fn.train.data, "_order", lambda n, seed, epoch: made.append(epoch) or shuffle(n, seed, epoch)
    )
    list(batches(np.arange(6), 1, seed=0, epochs=2))
    assert made == [0, 1]


def test_a_transform_draws_by_seed_epoch_and_place():
    def noise(seed):
        draw = lambda batch, rng: rng.integers(2**62, size=3)
        return [tuple(b) for b in islice(batches(np.zeros(4), 2, seed=seed, transform=draw), 6)]

    assert noise(0) == noise(0)
    assert len({*noise(0), *noise(1)}) == 12  # every batch of every epoch draws its own
    order = np.random.Philox(np.random.SeedSequence(0, spawn_key=(0,))).random_raw(4)
    draw = lambda batch, rng: rng.bit_generator.random_raw(4)
    assert next(batches(np.zeros(4), 2, seed=0, transform=draw)).tolist() != order.tolist()


def test_a_transform_gets_a_copy():
    data = examples(4)
    list(batches(data, 2, seed=0, epochs=3, transform=drawn))
    np.testing.assert_array_equal(data["x"], 1000 * np.arange(4))


def bad(*values):
    """A transform that cannot bear batches with one of these examples in them."""

    def transform(batch, rng):
        if {*batch.tolist()} & {*values}:
            raise OSError("torn page")
        return batch

    return transform


def test_a_bad_batch_is_named_and_read_again():
    taken = batches(np.arange(7), 3, seed=0, epochs=2, transform=bad(2))  # [1 4 5] [6 2 0] | [6 2 3] [1 0 4]
    next(taken)
    before = taken.position()
    for _ in range(2):
        with pytest.raises(RecordError) as caught:
            next(taken)
        assert (caught.value.epoch, caught.value.batch) == (0, 1)
        assert isinstance(caught.value.__cause__, OSError)
        assert taken.position() == before
    assert (
        str(caught.value)
        == """train.batches: batch 1 of epoch 0 cannot be read.
  got       OSError: torn page
  hint      skip_bad=1 leaves it out"""
    )


def test_bad_batches_are_left_out_and_counted():
    make = lambda: batches(np.arange(7), 3, seed=0, epochs=3, transform=bad(2), skip_bad=2)
    taken = make()
    assert next(taken).tolist() == [1, 4, 5]
    with pytest.warns(UserWarning, match="is left out") as said:
        assert next(taken).tolist() == [1, 0, 4]
    assert [str(warning.message) for warning in said] == [
        f"train.batches: batch {number} of epoch {epoch} cannot be read, and is left out: OSError: torn page"
        for epoch, number in [(0, 1), (1, 0)]
    ]
    assert taken.skipped == taken.position()["skipped"] == 2
    with pytest.raises(RecordError, match="skip_bad=3 leaves it out"):
        list(taken)  # the third
    fresh = make()
    fresh.seek(taken.position())
    with pytest.raises(RecordError):  # also after a resume
        list(fresh)


@pytest.mark.parametrize("ahead", [0, 1, 4])
@pytest.mark.parametrize("k", range(4))
def test_what_is_left_out_stays_so_over_a_resume(ahead, k):
    make = lambda: batches(np.arange(7), 3, seed=0, epochs=3, transform=bad(2), skip_bad=9)
    with warnings.catch_warnings(action="ignore"):
        whole = resumes(lambda: prefetch(make(), ahead), k)
        assert as_lists(whole) == as_lists(map(np.asarray, whole)) == as_lists(make())
    assert len(whole) < 6


def test_no_memory_is_no_bad_record():
    def transform(batch, rng):
        raise MemoryError

    with pytest.raises(MemoryError):
        next(batches(np.arange(4), 2, seed=0, transform=transform, skip_bad=5))


def test_two_threads_share_one_iterator():
    taken = batches(np.arange(400), 1, seed=0, epochs=2, transform=lambda batch, rng: batch.copy())
    with ThreadPoolExecutor(4) as pool:
        parts = pool.map(lambda _: [int(batch[0]) for batch in taken], range(4))
        seen = list(chain.from_iterable(parts))
    assert sorted(seen) == sorted([*range(400), *range(400)])


def fingerprint(arrays):
    return batches(arrays, 1, seed=0).position()["fingerprint"]


def test_a_fingerprint_tells_data_apart():
    data = {"x": np.arange(200_000, dtype=np.float32).reshape(1000, 200), "y": np.zeros(1000, np.uint8)}
    others = [
        {"x": data["x"], "y": data["y"].view(np.int8)},
        {"x": data["x"].reshape(1000, 10, 20), "y": data["y"]},
        {"x": data["x"][::-1], "y": data["y"]},
        {"x": data["x"] / 255, "y": data["y"]},
        {"x": np.concatenate([data["x"][:-1], data["x"][:1]]), "y": data["y"]},  # the last example
        {"x": data["x"], "y": np.eye(1, 1000, 500, np.uint8)[0]},  # small: every number counts
    ]
    assert len({fingerprint(data), *map(fingerprint, others)}) == 1 + len(others)
    same = {"x": jnp.asarray(data["x"]), "y": np.ascontiguousarray(data["y"])}
    strided = {"x": np.asfortranarray(data["x"]), "y": np.repeat(data["y"], 2)[::2]}
    assert fingerprint(data) == fingerprint(same) == fingerprint(strided)
    by_hand = hashlib.sha256(b"int64[3] " + np.arange(3).tobytes())
    assert fingerprint(np.arange(3)) == by_hand.hexdigest()[:32]
    fingerprint({"x": np.zeros((5, 0)), "y": np.zeros(5, jnp.bfloat16)})


def test_a_fingerprint_looks_at_a_bounded_part():
    fingerprint(np.broadcast_to(np.uint8(0), (2, 2**40)))  # all of it would take an hour


POSITION = batches(np.arange(6), 2, seed=0, epochs=2).position()


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (
            {"n": 7, "size": 3, "fingerprint": "other"},
            ValueRangeError,
            """train.batches: this is a position in other batches.
  expected  n: 6, size: 2, fingerprint: '{fingerprint}'
  got       n: 7, size: 3, fingerprint: 'other'""",
        ),
        (
            {"seed": False, "context": 5, "drop_remainder": 1},
            ValueRangeError,
            """train.batches: this is a position in other batches.
  expected  seed: 0, drop_remainder: True, context: none
  got       seed: False, drop_remainder: 1, context: 5""",
        ),
        (
            {"epoch": -1},
            ValueRangeError,
            """train.batches: position["epoch"] is -1.
  expected  0 or more
  got       -1""",
        ),
        (
            {"batch": 1.0},
            DTypeError,
            """train.batches: position["batch"] is no integer.
  expected  an integer, 0 or more
  got       1.0 (float)""",
        ),
        (
            {"skipped": None},
            DTypeError,
            """train.batches: position["skipped"] is no integer.
  expected  an integer, 0 or more
  got       None (NoneType)""",
        ),
        (
            {"batch": 3},
            ValueRangeError,
            """train.batches: the position lies beyond the end.
  expected  3 batches in an epoch, 2 epochs
  got       batch 3 of epoch 0, the first being 0""",
        ),
        (
            {"epoch": 2, "batch": 1},
            ValueRangeError,
            """train.batches: the position lies beyond the end.
  expected  3 batches in an epoch, 2 epochs
  got       batch 1 of epoch 2, the first being 0""",
        ),
    ],
)
@pytest.mark.parametrize("ahead", [None, 2])
def test_a_position_that_is_none_here_changes_nothing(unchecked, change, error, text, ahead):
    make = lambda: batches(np.arange(6), 2, seed=0, epochs=2)
    taken = make() if ahead is None else prefetch(make(), ahead, put=False)
    next(taken)
    with pytest.raises(error) as caught:
        taken.seek(POSITION | change)
    assert str(caught.value) == text.replace("{fingerprint}", POSITION["fingerprint"])
    assert as_lists(taken) == as_lists(make())[1:]


@pytest.mark.parametrize("position", [None, 5, "start", [1], {}, {"epoch": 0, "batch": 0}])
def test_what_is_no_position_is_refused(unchecked, position):
    with pytest.raises((DTypeError, ValueRangeError), match="position"):
        batches(np.arange(6), 2, seed=0).seek(position)


def test_a_missing_place_is_a_difference(unchecked):
    without = {name: value for name, value in POSITION.items() if name != "batch"}
    with pytest.raises(ValueRangeError, match=r"expected  batch: 'a place'\n  got       batch: none"):
        batches(np.arange(6), 2, seed=0).seek(without)


def test_names():
    assert fn.train.batches is batches
