import gc
import json
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, count, islice

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcnet as fn
from funcnet.errors import DTypeError, ValueRangeError
from funcnet.train import batches, mapped, prefetch
from tests.errors import golden
from tests.train.positions import as_lists, resumes


def plain(epochs=2, **options):
    return batches(np.arange(7), 3, seed=0, epochs=epochs, **options)


AHEAD = pytest.mark.parametrize("ahead", [0, 1, 4, 16])


@AHEAD
@pytest.mark.parametrize("put", [False, True])
def test_prefetching_changes_nothing(ahead, put):
    taken = list(prefetch(plain(), ahead, put=put))
    assert as_lists(taken) == as_lists(plain())
    assert all(isinstance(batch, jax.Array if put else np.ndarray) for batch in taken)
    assert as_lists(prefetch([np.ones(2), np.zeros(2)], ahead, put=put)) == as_lists(
        [np.ones(2), np.zeros(2)]
    )
    assert list(prefetch((), ahead)) == []


@AHEAD
@pytest.mark.parametrize("k", range(5))
def test_what_was_read_ahead_was_not_taken(ahead, k):
    resumes(lambda: prefetch(plain(), ahead), k)


class Homemade:
    """As many write it: the position is that of the iterator behind the queue."""

    skipped = 0

    def __init__(self, source, ahead):
        self.source, self.queue = source, list(islice(source, ahead))
        self.position, self.seek = source.position, source.seek

    def __iter__(self):
        return self

    def __next__(self):
        self.queue.extend(islice(self.source, 1))
        if not self.queue:
            raise StopIteration
        return self.queue.pop(0)


class Forgetful(Homemade):
    """The right position, but what was read ahead of the old place comes after a seek."""

    def __init__(self, source, ahead):
        super().__init__(source, ahead)
        self.position = lambda: {**source.position(), "batch": 0}


@pytest.mark.parametrize("wrong", [Homemade, Forgetful])
def test_the_law_finds_a_position_that_is_wrong(wrong):
    resumes(lambda: wrong(plain(), 0), 0)
    with pytest.raises(AssertionError):
        resumes(lambda: wrong(plain(), 1), 1)


def test_seek_after_the_end_and_before_the_first():
    taken = prefetch(plain(), 2)
    start = taken.position()
    whole = as_lists(taken)
    assert next(taken, None) is None
    end = taken.position()
    taken.seek(start)
    assert as_lists(taken) == whole
    taken.seek(end)
    assert next(taken, None) is None
    assert taken.position() == end


def test_so_many_are_read_ahead_and_no_more():
    reading, read = threading.Event(), []

    def source():
        for number in count():
            read.append(number)
            if number == 4:
                reading.set()
            yield np.array(number)

    taken = prefetch(source(), 4)
    assert read == []  # nothing before it is asked for
    assert int(next(taken)) == 0
    reading.wait()
    taken.close()
    assert read == [0, 1, 2, 3, 4]


@AHEAD
def test_an_error_comes_where_its_batch_would_have_come(ahead):
    def transform(batch, rng):
        if broken and 2 in batch:
            raise OSError("torn page")
        return batch

    broken = True
    taken = prefetch(plain(transform=transform), ahead, put=False)  # [1 4 5] [6 2 0] | [6 2 3] [1 0 4]
    assert next(taken).tolist() == [1, 4, 5]
    before = taken.position()
    for _ in range(2):
        with pytest.raises(fn.train.RecordError, match="batch 1 of epoch 0"):
            next(taken)
        assert taken.position() == before
    broken = False
    assert as_lists(taken) == as_lists(plain())[1:]


def test_an_error_of_an_iterator_without_a_position():
    def source():
        yield np.zeros(1)
        raise SystemExit("enough")

    taken = prefetch(source(), 4)
    next(taken)
    with pytest.raises(SystemExit, match="enough"):
        next(taken)
    assert next(taken, None) is None


def test_nothing_is_read_behind_an_error():
    class Once(Iterator):
        """Cannot read number 1, and goes on; it has no position to return to."""

        numbers, errors = -1, [OSError("torn page")]

        def __next__(self):
            self.numbers += 1
            if self.numbers == 1 and self.errors:
                raise self.errors.pop()
            if self.numbers == 40:
                raise StopIteration
            return np.array(self.numbers)

    taken = prefetch(Once(), 30, put=False)
    assert int(next(taken)) == 0
    with pytest.raises(OSError, match="torn page"):
        next(taken)
    assert [int(batch) for batch in taken] == [*range(2, 40)]


@AHEAD
def test_what_cannot_be_put_is_not_lost(ahead):
    broken = True
    source = plain(transform=lambda batch, rng: np.array([None]) if broken and 2 in batch else batch)
    taken = prefetch(source, ahead)
    first = next(taken)
    for _ in range(2):
        with pytest.raises(TypeError):
            next(taken)
        assert taken.position()["batch"] == 1
    broken = False
    assert as_lists([first, *taken]) == as_lists(plain())


def test_a_buffer_may_be_filled_again():
    def source():
        buffer = np.zeros(64)
        for number in range(4):
            buffer[:] = number
            yield {"x": buffer, "rate": 0.5, "name": "a"}

    for put in (False, True):
        taken = list(prefetch(source(), 3, put=put))
        assert [int(batch["x"][0]) for batch in taken] == [0, 1, 2, 3]
        assert {(batch["rate"], batch["name"]) for batch in taken} == {(0.5, "a")}


def test_switches_of_the_thread_that_asks_hold():
    with jax.enable_x64(False), jax.default_device(jax.devices()[1]):
        batch = next(prefetch([np.zeros(2)], 1))
    assert batch.dtype == np.float32
    assert batch.devices() == {jax.devices()[1]}
    assert next(prefetch([np.zeros(2)], 1)).dtype == np.float64


def test_close_gives_the_batches_back_where_the_consumer_stands():
    source = plain()
    taken = prefetch(source, 4)
    first = [next(taken)]
    taken.close()
    taken.close()
    assert next(taken, None) is None
    assert as_lists(first) + as_lists(source) == as_lists(plain())


def threads():
    return {thread for thread in threading.enumerate() if thread.name.startswith("funcnet.train.prefetch")}


def test_no_thread_is_left():
    before = threads()
    taken = prefetch(plain(), 4)
    assert threads() <= before  # none before it is needed
    next(taken)
    (mine,) = threads() - before
    gone = weakref.ref(taken)
    del taken
    gc.collect()
    mine.join(60)
    assert not mine.is_alive()
    assert gone() is None
    taken = prefetch(plain(), 4)
    next(taken)
    taken.close()
    assert threads() <= before
    next(prefetch(plain(), 0))
    assert threads() <= before


def test_what_nobody_waits_for_is_not_read():
    reading, gate, read = threading.Event(), threading.Event(), []

    def source():
        for number in count():
            read.append(number)
            if number == 1:
                reading.set()
                gate.wait()
            yield np.array(number)

    before = threads()
    taken = prefetch(source(), 8)
    next(taken)
    reading.wait()
    (mine,) = threads() - before
    del taken
    gc.collect()
    gate.set()
    mine.join(60)
    assert read == [0, 1]


def test_a_program_ends_that_left_one_in_the_middle():
    program = (
        "import itertools, numpy as np; from funcnet.train import prefetch\n"
        "taken = prefetch((np.array(i) for i in itertools.count()), 4)\n"
        "print(int(next(taken)), int(next(taken)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0 1\n", "")


def test_several_threads_share_one_queue():
    taken = prefetch(batches(np.arange(100), 1, seed=0, epochs=2), 4, put=False)
    with ThreadPoolExecutor(3) as pool:
        parts = pool.map(lambda _: [int(batch[0]) for batch in taken], range(3))
        assert sorted(chain.from_iterable(parts)) == sorted([*range(100), *range(100)])


def test_without_a_position_there_is_none():
    for taken in (prefetch([1]), mapped([1], lambda batch, number: batch)):
        assert getattr(taken, "position", None) is None
        assert not hasattr(taken, "seek")
        assert taken.skipped == 0
        with pytest.raises(AttributeError, match=r"a list_iterator has no position\(\) and seek\(\)"):
            taken.position()


@pytest.mark.filterwarnings("ignore:train.tokens. batch")
def test_a_run_goes_on_where_it_stopped(tmp_path):
    """What is read ahead, drawn, left out and numbered, over the edge of an epoch, through checkpoints."""
    ids = np.arange(40, dtype=np.uint32)
    ids[13] = 2**31  # its window is left out
    np.save(tmp_path / "ids.npy", ids)
    optimizer = optax.sgd(0.1)
    step = fn.train.make_step(lambda params, batch: jnp.mean((batch - params) ** 2), optimizer)

    def run(folder, *until):
        for end in until:
            noisy = lambda batch, rng: batch / 40 + rng.normal(size=batch.shape)
            data = fn.train.tokens(
                tmp_path / "ids.npy", 4, 2, seed=0, drop_remainder=False, transform=noisy, skip_bad=9
            )
            data = prefetch(mapped(data, lambda batch, number: batch * (1 + number)), 3)
            state = fn.train.init(jnp.zeros(()), optimizer, key=jax.random.key(0))
            checkpoints = fn.train.Checkpoints(tmp_path / folder)
            state, _ = checkpoints.restore(state, data)
            state, _ = fn.train.fit(
                step, state, data, until=end, checkpoints=checkpoints, log=tmp_path / folder, progress=False
            )
            data.close()
        lines = map(json.loads, (tmp_path / folder / "metrics.jsonl").read_text().splitlines())
        return float(state.params), [(line["step"], line["loss"], line.get("bad_records")) for line in lines]

    whole = run("whole", 8)
    assert run("parts", 1, 2, 6, 8) == whole
    assert [bad for _, _, bad in whole[1]][-1] == 1


# --- mapped -----------------------------------------------------------------------------------------------


def numbered(source):
    return mapped(source, lambda batch, number: {"batch": batch, "number": np.array(number)})


@AHEAD
@pytest.mark.parametrize("k", [0, 3, 4])
def test_a_function_knows_its_number_after_a_resume(ahead, k):
    for make in (
        lambda: prefetch(numbered(plain()), ahead, put=False),
        lambda: numbered(prefetch(plain(), ahead, put=False)),
    ):
        whole = resumes(make, k)
        assert [int(batch["number"]) for batch in whole] == [0, 1, 2, 3]
        assert as_lists(batch["batch"] for batch in whole) == as_lists(plain())


@pytest.mark.filterwarnings("ignore:train.batches")
def test_what_is_left_out_has_no_number():
    def transform(batch, rng):
        if 2 in batch:
            raise OSError("torn page")
        return batch

    whole = resumes(lambda: numbered(plain(transform=transform, skip_bad=5)), 1)
    assert [int(batch["number"]) for batch in whole] == [0, 1]


def test_a_function_that_raises_has_taken_nothing():
    def function(batch, number):
        if broken and number == 1:
            raise OSError("no")
        return batch

    broken = True
    taken = mapped(plain(), function)
    next(taken)
    before = taken.position()
    with pytest.raises(OSError, match="no"):
        next(taken)
    assert taken.position() == before
    broken = False
    assert as_lists(taken) == as_lists(plain())[1:]


def test_a_refused_position_changes_nothing(unchecked):
    taken = numbered(plain())
    next(taken)
    other = numbered(batches(np.arange(8), 3, seed=0)).position()
    for position, error in [
        (other, ValueRangeError),
        (plain().position(), ValueRangeError),
        ({**other, "number": -1}, ValueRangeError),
        ({**other, "batches": None}, DTypeError),
    ]:
        with pytest.raises(error):
            taken.seek(position)
    assert [int(batch["number"]) for batch in taken] == [1, 2, 3]


test_errors = golden(
    [
        (
            lambda: prefetch([1], -1),
            ValueRangeError,
            "train.prefetch: ahead is -1.\n  expected  0 or more\n  got       -1",
        ),
        (
            lambda: prefetch([1], put=1),  # pyright: ignore
            DTypeError,
            "train.prefetch: put is neither True nor False.\n  expected  True or False\n  got       1 (int)",
        ),
        (
            lambda: prefetch(5),  # pyright: ignore
            DTypeError,
            "train.prefetch: batches is no iterable of batches.\n"
            "  expected  an iterable, each element a batch: train.batches(...), a list, a generator\n"
            "  got       5 (int)",
        ),
        (
            lambda: mapped([1], 3),  # pyright: ignore
            DTypeError,
            "train.mapped: function is not a function.\n"
            "  expected  function(batch, number)\n"
            "  got       3 (int)",
        ),
    ]
)
