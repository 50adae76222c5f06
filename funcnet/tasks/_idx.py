"""The IDX files of MNIST and its relatives: a magic number, the sizes, then the bytes; gzipped.

Source: Y. LeCun, C. Cortes and C. Burges, "The MNIST database of handwritten digits", 1998, "file formats".
"""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from funcnet.errors import FileFormatError

__all__ = ["read"]

_UNSIGNED_BYTE = 0x08
_LIMIT = 2**30  # bytes; MNIST's largest file has 47 million


def read(path: Path, sizes: tuple[int | None, ...]) -> np.ndarray:
    """The array of unsigned bytes in a gzipped IDX file.

    The file is not trusted: no more is unpacked than its header promises, and no more than 1 GiB.

    Args:
        path: the file.
        sizes: the shape that it must have; None: any size from 1.

    Raises:
        FileFormatError: not gzip, damaged or cut short; another type, rank or size; bytes after the last.
        OSError: the file cannot be read.
    """
    try:
        with gzip.open(path) as file:
            magic = bytes([0, 0, _UNSIGNED_BYTE, len(sizes)])
            head = file.read(4)
            if head != magic:
                raise _refusal(path, "this is no IDX file of that kind.", magic.hex(" "), head.hex(" "))
            table = file.read(4 * len(sizes))
            if len(table) < 4 * len(sizes):
                raise _refusal(path, "the header is cut short.", f"{4 * len(sizes)} bytes", f"{len(table)}")
            shape = tuple(int(size) for size in np.frombuffer(table, ">u4"))
            fits = all(n > 0 if size is None else n == size for n, size in zip(shape, sizes, strict=True))
            if not fits or math.prod(shape) > _LIMIT:
                wanted = ", ".join("any" if size is None else str(size) for size in sizes)
                expected = f"({wanted}), at most {_LIMIT} bytes"
                raise _refusal(path, "the sizes do not fit.", expected, str(shape))
            content = file.read(math.prod(shape))
            if len(content) < math.prod(shape):
                raise _refusal(path, "the file is cut short.", f"{math.prod(shape)} bytes", f"{len(content)}")
            if file.read(1):
                raise _refusal(
                    path, "there are bytes after the last one.", f"{math.prod(shape)} bytes", "more"
                )
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _refusal(path, f"the gzip file is damaged: {error}.") from error
    return np.frombuffer(content, np.uint8).reshape(shape)


def _refusal(
    path: Path, problem: str, expected: str | None = None, actual: str | None = None
) -> FileFormatError:
    return FileFormatError(f"{path}: {problem}", path=str(path), expected=expected, actual=actual)
