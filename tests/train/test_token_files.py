import os
import sys
import warnings
from itertools import chain, permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import funcnet as fn
from funcnet.errors import DTypeError, FileFormatError, ShapeError, StructureError, ValueRangeError
from funcnet.train import RecordError, prefetch, tokens, write_tokens
from funcnet.train.token_files import _keys, permuted
from tests.train.positions import as_lists, resumes


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Empty, and where the paths begin: texts of errors can be written down."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save(name, ids, dtype=np.uint16):
    np.save(name, np.asarray(ids, dtype))
    return name


def windows(ids, context):
    """The definition."""
    return [ids[i : i + context + 1] for i in range(0, len(ids) - context, context)]


# --- the order --------------------------------------------------------------------------------------------


def test_the_order_is_a_permutation_of_every_small_number():
    for n in range(1, 200):
        assert sorted(permuted(np.arange(n), n, _keys(n, 0)).tolist()) == list(range(n))


@settings(deadline=None, max_examples=20)
@given(n=st.integers(300, 2**50), seed=st.integers(0, 2**70), epoch=st.integers(0, 2**31), data=st.data())
def test_no_two_places_of_a_large_number_are_one(n, seed, epoch, data):
    begin = data.draw(st.integers(0, n - 300))
    places = np.arange(begin, begin + 300)
    out = permuted(places, n, _keys(seed, epoch))
    assert len({*out.tolist()}) == 300
    assert out.min() >= 0
    assert out.max() < n
    alone = [int(permuted(places[i : i + 1], n, _keys(seed, epoch))[0]) for i in (0, 299)]
    assert alone == [out[0], out[299]]  # a function of the place


def test_a_round_that_is_no_bijection_would_be_found(monkeypatch):
    module = sys.modules["funcnet.train.token_files"]
    monkeypatch.setattr(module, "_rounds", lambda x, a, b, keys: (x * x + keys[0]) % (a * b))
    with pytest.raises(AssertionError):
        test_the_order_is_a_permutation_of_every_small_number()


def test_all_orders_are_about_equally_frequent():
    # 6 orders of 3, 300 seeds: 50 expected of each, sigma 6.5.
    orders = [tuple(permuted(np.arange(3), 3, _keys(seed, 5)).tolist()) for seed in range(300)]
    assert all(abs(orders.count(order) - 50) < 5 * 6.5 for order in permutations(range(3)))


def test_neighbours_part():
    out = permuted(np.arange(20_000), 20_000, _keys(0, 0))
    assert abs(np.corrcoef(out[1:], out[:-1])[0, 1]) < 5 / np.sqrt(20_000)
    assert abs(np.corrcoef(out, np.arange(20_000))[0, 1]) < 5 / np.sqrt(20_000)


# --- batches ----------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=20)
@given(
    lengths=st.lists(st.integers(4, 20), min_size=1, max_size=3),
    size=st.integers(1, 4),
    seed=st.integers(0, 2**70),
    epochs=st.integers(0, 3),
    ahead=st.sampled_from([0, 1, 4, 16]),
    drop=st.booleans(),
    data=st.data(),
)
def test_every_window_once_per_epoch_stopped_and_resumed_anywhere(
    tmp_path_factory, lengths, size, seed, epochs, ahead, drop, data
):
    folder = tmp_path_factory.mktemp("tokens")
    ids = np.split(np.arange(sum(lengths)), np.cumsum(lengths)[:-1])
    paths = [save(f"{folder}/{i}.npy", part, (np.uint16, np.uint32)[i % 2]) for i, part in enumerate(ids)]
    expected = [w.tolist() for w in chain.from_iterable(windows(part, 3) for part in ids)]
    drop = drop and size <= len(expected)
    per_epoch = len(expected) // size if drop else -(-len(expected) // size)
    k = data.draw(st.integers(0, epochs * per_epoch), "k")
    options = {"seed": seed, "epochs": epochs, "drop_remainder": drop}
    whole = resumes(lambda: prefetch(tokens(paths, 3, size, **options), ahead, put=False), k)
    assert len(whole) == epochs * per_epoch
    assert {batch.dtype for batch in whole} <= {np.dtype(np.int32)}
    for epoch in range(epochs):
        seen = [w.tolist() for b in whole[epoch * per_epoch : (epoch + 1) * per_epoch] for w in b]
        assert len(seen) == (len(expected) - len(expected) % size if drop else len(expected))
        assert all(window in expected for window in seen)
        assert len({*map(tuple, seen)}) == len(seen)


def test_the_order_of_windows_is_the_same_in_every_version(folder):
    save("a.npy", range(22))
    first = lambda **options: [b[:, 0].tolist() for b in tokens("a.npy", 2, 5, epochs=2, **options)]
    assert first(seed=0) == [[16, 8, 4, 10, 18], [14, 6, 2, 12, 0], [10, 2, 16, 12, 6], [8, 0, 4, 14, 18]]
    assert first(seed=1) != first(seed=0)


def test_a_raw_file_is_as_the_other_one(folder):
    ids = np.arange(30)
    for dtype in (np.uint16, np.uint32):
        save("a.npy", ids, dtype)
        ids.astype(dtype).tofile("a.bin")
        taken = [as_lists(tokens(path, 4, 2, seed=0, epochs=2, dtype=dtype)) for path in ("a.npy", "a.bin")]
        assert taken[0] == taken[1]
    save("a.npy", ids, ">u2")
    assert as_lists(tokens("a.npy", 4, 2, seed=0, epochs=2)) == taken[0]


def test_a_transform_draws_by_the_place(folder):
    save("a.npy", range(40))
    masked = lambda batch, rng: np.where(rng.random(batch.shape) < 0.5, batch, -1)
    make = lambda: tokens("a.npy", 3, 4, seed=0, epochs=2, transform=masked)
    whole = resumes(make, 4)
    assert 0 < np.mean([batch == -1 for batch in whole]) < 1
    assert as_lists(whole[:3]) != as_lists(whole[3:])


def test_more_files_than_may_be_open(folder):
    resource = pytest.importorskip("resource")
    paths = [save(f"{i}.npy", range(i, i + 4)) for i in range(200)]
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 80, before[1]))
    try:
        taken = tokens(paths, 3, 10, seed=0, epochs=1)
        taken.position()
        assert sorted(np.concatenate(list(taken))[:, 0].tolist()) == list(range(200))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    del taken
    assert len(os.listdir("/proc/self/fd")) <= used


def test_a_position_in_other_files_is_refused(folder):
    rng = np.random.default_rng(0)
    ids = rng.integers(1000, size=100_000)
    save("a.npy", ids)
    position = tokens("a.npy", 8, 4, seed=0).position()
    assert position["n"] == 99_999 // 8
    assert position["context"] == 8
    save("b.npy", ids)
    tokens("b.npy", 8, 4, seed=0).seek(position)  # the same, elsewhere
    others = [ids[::-1], np.r_[ids[:-1], ids[-1] + 1], np.r_[ids[0] + 1, ids[1:]], rng.permutation(ids)]
    for other in others:
        with pytest.raises(ValueRangeError, match=r"expected  fingerprint: '\w{32}'\n"):
            tokens(save("b.npy", other), 8, 4, seed=0).seek(position)
    with pytest.raises(ValueRangeError, match=r"expected  n: 24999, context: 4\n"):
        tokens("a.npy", 4, 4, seed=0).seek(position)
    with pytest.raises(ValueRangeError, match="fingerprint"):
        tokens(save("b.npy", ids, np.uint32), 8, 4, seed=0).seek(position)


# --- what cannot be read ----------------------------------------------------------------------------------


def test_a_file_cut_short_while_it_is_read_is_named_with_the_place(folder):
    save("a.npy", range(10))
    save("b.npy", range(100, 121))
    taken = tokens(["a.npy", "b.npy"], 5, 1, seed=3, epochs=1)
    os.truncate("b.npy", 128 + 2 * 13)
    good = []
    with pytest.raises(RecordError) as caught:
        good.extend(taken)
    error = caught.value
    assert error.path == "b.npy"
    assert isinstance(error.__cause__, FileFormatError)
    assert (error.epoch, error.batch) == (0, len(good))
    assert str(error) == (
        f"train.tokens: batch {len(good)} of epoch 0 cannot be read.\n"
        "  got       FileFormatError: train.tokens: b.npy: ids 10 to 15: the file was cut short.\n"
        "              expected  12 bytes\n"
        "              got       6 bytes\n"
        "  hint      skip_bad=1 leaves it out"
    )


def test_batches_with_unreadable_windows_are_left_out(folder):
    ids = np.arange(60, dtype=np.uint32)
    ids[17] = 2**31  # of the windows from 15 on
    save("a.npy", ids, np.uint32)
    make = lambda: tokens("a.npy", 5, 1, seed=0, epochs=2, skip_bad=2)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        taken = list(make())
    assert [str(warning.message).partition(": FileFormatError")[2] for warning in said] == [
        ": train.tokens: a.npy: ids 15 to 20: an id is too large.\n"
        "  expected  at most 2147483647\n"
        "  got       2147483648"
    ] * 2
    assert sorted(int(batch[0, 0]) for batch in taken) == sorted([*range(0, 15, 5), *range(20, 55, 5)] * 2)
    with warnings.catch_warnings(action="ignore"):
        for k in (0, 7, 19, 20):
            resumes(make, k)


def test_a_file_that_is_gone(folder):
    save("a.npy", range(20))
    taken = tokens("a.npy", 3, 1, seed=0)
    os.remove("a.npy")
    with pytest.raises(RecordError, match="FileNotFoundError"):
        next(taken)


def test_a_disk_that_fails(folder, monkeypatch):
    save("a.npy", range(20))
    taken = tokens("a.npy", 20 - 1, 1, seed=0)

    def fails(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", fails)
    with pytest.raises(RecordError, match="ids 0 to 19 cannot be read: Input/output") as caught:
        next(taken)
    assert caught.value.path == "a.npy"


def broken(name, change):
    """A .npy file of 20 ids, changed."""
    Path(name).write_bytes(change(Path(save("whole.npy", range(20))).read_bytes()))
    return name


ERRORS = {
    "too short": (
        lambda: tokens([save("a.npy", range(9)), save("b.npy", range(8))], 8, 1, seed=0),
        FileFormatError,
        """train.tokens: b.npy is too short for one window.
  expected  9 ids or more: a context of 8 and the one that follows
  got       8 ids""",
    ),
    "signed": (
        lambda: tokens(save("a.npy", range(9), np.int64), 2, 1, seed=0),
        FileFormatError,
        """train.tokens: a.npy: its array is none of token ids.
  expected  uint16[n] or uint32[n]
  got       int64[9]""",
    ),
    "rank 2": (
        lambda: tokens(save("a.npy", [[1, 2], [3, 4]]), 2, 1, seed=0),
        FileFormatError,
        """train.tokens: a.npy: its array is none of token ids.
  expected  uint16[n] or uint32[n]
  got       uint16[2, 2]""",
    ),
    "cut short": (
        lambda: tokens(broken("a.npy", lambda data: data[:-3]), 2, 1, seed=0),
        FileFormatError,
        """train.tokens: a.npy: the file is cut short.
  expected  168 bytes, as its header says
  got       165 bytes""",
    ),
    "longer": (
        lambda: tokens(broken("a.npy", lambda data: data + b"ab"), 2, 1, seed=0),
        FileFormatError,
        """train.tokens: a.npy: something follows its array.
  expected  168 bytes, as its header says
  got       170 bytes""",
    ),
    "no header": (
        lambda: tokens(broken("a.npy", lambda data: data[:20]), 2, 1, seed=0),
        FileFormatError,
        """train.tokens: a.npy: this is no .npy file, or it is cut short.
  got       EOF: reading array header, expected 118 bytes got 10""",
    ),
    "objects": (
        lambda: tokens(broken("a.npy", lambda data: data.replace(b"'<u2'", b"'|O' ")), 2, 1, seed=0),
        FileFormatError,
        """train.tokens: a.npy: its array is none of token ids.
  expected  uint16[n] or uint32[n]
  got       object[20]""",
    ),
    "empty": (
        lambda: tokens(broken("a.npy", lambda data: b""), 2, 1, seed=0),
        FileFormatError,
        """train.tokens: a.npy: this is no .npy file, or it is cut short.
  got       EOF: reading magic string, expected 8 bytes got 0""",
    ),
    "raw without a width": (
        lambda: tokens(broken("a.bin", lambda data: data[128:]), 2, 1, seed=0),
        ValueRangeError,
        """train.tokens: a.bin does not say of which width its ids are.
  expected  dtype=np.uint16 or np.uint32, or a .npy file
  got       None""",
    ),
    "raw of half an id": (
        lambda: tokens(broken("a.bin", lambda data: data[127:]), 2, 1, seed=0, dtype="uint16"),
        FileFormatError,
        """train.tokens: a.bin: the file is cut short.
  expected  whole ids of 2 bytes
  got       41 bytes""",
    ),
    "called raw": (
        lambda: tokens(broken("a.bin", lambda data: data), 2, 1, seed=0, dtype=np.uint16),
        FileFormatError,
        """train.tokens: a.bin: this is a .npy file by its first bytes.
  expected  a name that ends in .npy""",
    ),
    "another width": (
        lambda: tokens(save("a.npy", range(9)), 2, 1, seed=0, dtype=np.uint32),
        FileFormatError,
        """train.tokens: a.npy: its ids have another width.
  expected  uint32, from dtype=
  got       uint16""",
    ),
    "no width": (
        lambda: tokens(save("a.npy", range(9)), 2, 1, seed=0, dtype="float32"),
        DTypeError,
        """train.tokens: dtype is no width of ids.
  expected  np.uint16 or np.uint32
  got       float32""",
    ),
    "too large a batch": (
        lambda: tokens(save("a.npy", range(9)), 2, 5, seed=0),
        ValueRangeError,
        """train.tokens: a batch of 5 cannot be filled with 4 examples.
  expected  at most 4
  got       5
  hint      size=4, or drop_remainder=False for a smaller batch""",
    ),
    "no context": (
        lambda: tokens(save("a.npy", range(9)), 0, 1, seed=0),
        ValueRangeError,
        """train.tokens: context is 0.
  expected  1 or more
  got       0""",
    ),
    "no file": (
        lambda: tokens([], 2, 1, seed=0),
        StructureError,
        """train.tokens: there is no file.
  expected  one path or more
  got       none""",
    ),
    "no path": (
        lambda: tokens(["a.npy", 3], 2, 1, seed=0),  # pyright: ignore
        DTypeError,
        """train.tokens: paths[1] is not a path.
  expected  paths[1]: a str or a pathlib.Path
  got       paths[1]: 3 (int)""",
    ),
    "no epoch": (
        lambda: tokens(save("a.npy", range(9)), 2, 1, seed=0, epochs=-1),
        ValueRangeError,
        """train.tokens: epochs is -1.
  expected  0 or more
  got       -1""",
    ),
    # --- the writer
    "negative": (
        lambda: write_tokens("a.npy", [np.arange(3), np.array([5, -1])]),
        ValueRangeError,
        """train.write_tokens: id 4, the first being 0, is -1.
  expected  0 to 4294967295
  got       -1""",
    ),
    "too wide": (
        lambda: write_tokens("a.npy", [1, 65_536], dtype=np.uint16),
        ValueRangeError,
        """train.write_tokens: id 1, the first being 0, is 65536.
  expected  0 to 65535
  got       65536
  hint      dtype=np.uint32""",
    ),
    "far too wide": (
        lambda: write_tokens("a.npy", [2**32]),
        ValueRangeError,
        """train.write_tokens: id 0, the first being 0, is 4294967296.
  expected  0 to 4294967295
  got       4294967296""",
    ),
    "floats": (
        lambda: write_tokens("a.npy", (np.ones(i) for i in (2, 3))),
        DTypeError,
        """train.write_tokens: id 0 and those after it are no integers.
  expected  integers
  got       float64[2]""",
    ),
    "rows": (
        lambda: write_tokens("a.npy", np.ones((2, 3), np.int32)),
        ShapeError,
        """train.write_tokens: ids have more than one axis.
  expected  [n]
  got       int32[2, 3]""",
    ),
    "nothing": (
        lambda: write_tokens("a.npy", []),
        ValueRangeError,
        """train.write_tokens: there are no ids.
  expected  one id or more
  got       none""",
    ),
    "a text without encode": (
        lambda: write_tokens("a.npy", "a.txt"),
        DTypeError,
        """train.write_tokens: encode is missing, which makes ids of text.
  expected  encode(text), since source is the path of a text
  got       None""",
    ),
    "ids with encode": (
        lambda: write_tokens("a.npy", [1, 2], encode=lambda text: [0]),
        DTypeError,
        """train.write_tokens: there is what is no text.
  expected  texts, since encode is given
  got       1 (int)""",
    ),
    "another name": (
        lambda: write_tokens("a.bin", [1, 2]),
        ValueRangeError,
        """train.write_tokens: the file is a .npy file, and is not called one.
  expected  a name that ends in .npy
  got       a.bin""",
    ),
    "no source": (
        lambda: write_tokens("a.npy", 5),  # pyright: ignore
        DTypeError,
        """train.write_tokens: source is neither ids nor text.
  expected  a path, an array, or an iterable
  got       5 (int)""",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(unchecked, folder, case):
    call, error, text = ERRORS[case]
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == text
    assert not os.path.exists("a.npy") or "write" not in text  # nothing half written
    assert not [name for name in os.listdir() if name.startswith((".", "tmp"))]


# --- the writer -------------------------------------------------------------------------------------------


def test_a_text_becomes_tokens(folder):
    text = "Das Ärgernis\r\nnahm seinen Lauf.\n\n" * 3
    (folder / "a.txt").write_bytes(text.encode())
    encode = lambda text: [ord(character) for character in text]
    for source in (folder / "a.txt", "a.txt", [text], (text[:7], text[7:]), iter(text)):
        assert write_tokens("a.npy", source, encode=encode) == len(text)
        ids = np.load("a.npy")
        assert ids.dtype == np.uint16
        assert "".join(map(chr, ids)) == text
    assert next(tokens("a.npy", len(text) - 1, 1, seed=0)).tolist() == [encode(text)]
    with pytest.raises(FileFormatError, match=r"a\.npy: this is no UTF-8 text"):
        write_tokens("b.npy", "a.npy", encode=encode)


def test_a_long_text_is_encoded_in_pieces_that_end_with_a_line(folder, monkeypatch):
    monkeypatch.setattr(sys.modules["funcnet.train.token_files"], "_TEXT", 10)
    (folder / "a.txt").write_text("abc def\nghi jkl mno\npqr\nstu\nv")
    seen = []
    write_tokens("a.npy", "a.txt", encode=lambda text: seen.append(text) or [len(text)])
    assert seen == ["abc def\nghi jkl mno\n", "pqr\nstu\nv"]
    assert np.load("a.npy").tolist() == [20, 9]


def test_the_width_is_the_least_that_holds_all(folder):
    for ids, dtype, width in [
        ([1, 2], None, np.uint16),
        ([65_535], None, np.uint16),
        ([1, 65_536], None, np.uint32),
        ([1], np.uint32, np.uint32),
        (np.array([2**32 - 1]), None, np.uint32),
    ]:
        assert write_tokens("a.npy", ids, dtype=dtype) == len(ids)
        assert np.load("a.npy").tolist() == list(ids)
        assert np.load("a.npy").dtype == width


def test_ids_may_come_in_pieces(folder, monkeypatch):
    monkeypatch.setattr(sys.modules["funcnet.train.token_files"], "_COPIED", 3)
    for source in (range(10), list(range(10)), iter(range(10)), [[0, 1, 2], [3], [], range(4, 10)]):
        assert write_tokens("a.npy", source) == 10
        assert np.load("a.npy").tolist() == list(range(10))
    assert write_tokens("a.npy", (np.arange(i) for i in range(4))) == 6


def test_what_was_there_stays_until_the_new_one_is_whole(folder):
    write_tokens("a.npy", [1, 2, 3])

    def fails():
        yield [4]
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        write_tokens("a.npy", fails())
    assert np.load("a.npy").tolist() == [1, 2, 3]
    assert os.listdir() == ["a.npy"]
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        write_tokens("b/a.npy", [1])


def test_names():
    assert fn.train.tokens is tokens
    assert fn.train.write_tokens is write_tokens
