"""The IDX reader: what is written comes back, and a hostile file is refused by name."""

import gzip
import struct

import numpy as np
import pytest

from funcnet.errors import FileFormatError
from funcnet.tasks import _idx

IMAGES = np.arange(3 * 5 * 7, dtype=np.uint8).reshape(3, 5, 7)


def idx(array, sizes=None, code=0x08):
    sizes = array.shape if sizes is None else sizes
    return bytes([0, 0, code, len(sizes)]) + struct.pack(f">{len(sizes)}I", *sizes) + array.tobytes()


def written(tmp_path, content, pack=gzip.compress):
    path = tmp_path / "images.gz"
    path.write_bytes(pack(content))
    return path


def test_what_is_written_comes_back(tmp_path):
    path = written(tmp_path, idx(IMAGES))
    for sizes in ((3, 5, 7), (None, 5, 7), (None, None, None)):
        np.testing.assert_array_equal(_idx.read(path, sizes), IMAGES)
    labels = np.array([9, 0, 3], np.uint8)
    np.testing.assert_array_equal(_idx.read(written(tmp_path, idx(labels)), (None,)), labels)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no IDX file of that kind"),
        (idx(IMAGES)[:3], "no IDX file of that kind"),
        (idx(IMAGES, code=0x0D), "no IDX file of that kind"),
        (idx(IMAGES.reshape(15, 7)), "no IDX file of that kind"),
        (b"\x01" + idx(IMAGES)[1:], "no IDX file of that kind"),
        (idx(IMAGES)[:11], "header is cut short"),
        (idx(IMAGES.reshape(3, 7, 5)), "sizes do not fit"),
        (idx(IMAGES, (0, 5, 7)), "sizes do not fit"),
        (idx(IMAGES, (2**32 - 1, 5, 7)), "sizes do not fit"),
        (idx(IMAGES, (4, 5, 7)), "file is cut short"),
        (idx(IMAGES)[:-1], "file is cut short"),
        (idx(IMAGES) + b"\0", "bytes after the last one"),
        (idx(IMAGES, (2, 5, 7)), "bytes after the last one"),
    ],
)
def test_hostile_content(tmp_path, content, message):
    path = written(tmp_path, content)
    with pytest.raises(FileFormatError, match=message) as raised:
        _idx.read(path, (None, 5, 7))
    assert raised.value.path == str(path)
    assert str(raised.value).startswith(f"{path}: ")


def test_the_text_of_an_error(tmp_path):
    path = written(tmp_path, idx(IMAGES.reshape(3, 7, 5)))
    with pytest.raises(FileFormatError) as raised:
        _idx.read(path, (None, 5, 7))
    assert str(raised.value) == (
        f"{path}: the sizes do not fit.\n"
        "  expected  (any, 5, 7), at most 1073741824 bytes\n"
        "  got       (3, 7, 5)"
    )


@pytest.mark.parametrize(
    "pack",
    [
        lambda content: content,
        lambda content: b"",
        lambda content: gzip.compress(content)[:-9],
        lambda content: gzip.compress(content)[:20],
        lambda content: gzip.compress(content) + b"more",
        lambda content: gzip.compress(content)[:-8] + bytes(8),  # the checksum
        lambda content: gzip.compress(content)[:15] + b"\xff" * 8 + gzip.compress(content)[23:],
    ],
    ids=["not gzip", "empty", "cut", "cut early", "trailing", "checksum", "garbled"],
)
def test_damaged_gzip(tmp_path, pack):
    path = written(tmp_path, idx(IMAGES), pack)
    with pytest.raises(FileFormatError):
        _idx.read(path, (None, 5, 7))


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(_idx, "_LIMIT", 100)
    with pytest.raises(FileFormatError, match="sizes do not fit"):
        _idx.read(written(tmp_path, idx(IMAGES)), (None, 5, 7))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        _idx.read(tmp_path / "none.gz", (None,))
