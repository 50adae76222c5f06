"""Recordings in folders or lists: found, their lengths read once and kept, and decoded by threads in batches.

A folder of folders has a class in each; a list has a line for each recording, its path, a tab and what is
said. Files that cannot be read are left out and named. The lengths are kept in the user's cache, with size
and time of each file, so that 100,000 headers are read once.
"""

import contextlib
import functools
import hashlib
import json
import os
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from funcnet import recordings
from funcnet.errors import FileFormatError, ValueRangeError, shorten
from funcnet.tasks import _sounds
from funcnet.train.cursor import Cursor, over

__all__ = ["LIST", "Batch", "Decoded", "Found", "find", "halves", "some"]

LIST = "transcripts.tsv"
_SOUNDS = frozenset((".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au"))
_RATIO, _SHAPES = 1.5, 6  # batches are of so many lengths at most, each so many times the next
_MIXED = 50  # batches among whose recordings those of like length are brought together


class Found(NamedTuple):
    """Recordings that can be read.

    Attributes:
        names: their paths below `folder`, with "/".
        folder: where they lie.
        lengths: in samples at RATE; decoded, one may have a few more or less.
        texts: the class of each, or what is said in it.
        spoken: whether the texts are what is said.
        answers: the classes, or the letters that texts are of, in the order of their numbers.
        notes: what was left out, and why.
    """

    names: list[str]
    folder: Path
    lengths: Int[np.ndarray, " n"]
    texts: list[str]
    spoken: bool
    answers: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def of(self, which: Int[np.ndarray, " m"]) -> "Found":
        """Those of these numbers."""
        names, texts = ([parts[i] for i in which] for parts in (self.names, self.texts))
        return self._replace(names=names, texts=texts, lengths=self.lengths[which])


class Batch(NamedTuple):
    """Recordings of like length, which end with zeros.

    `lengths` are in samples, 0 for one that could not be decoded and does not count; labels are classes, or
    letters [n, l] of which `label_lengths` count.
    """

    samples: Float[np.ndarray, "n t"]
    lengths: Int[np.ndarray, " n"]
    labels: Int[np.ndarray, "n ..."]
    label_lengths: Int[np.ndarray, " n"]


# ---- what there is ----------------------------------------------------------------------------------------


def find(data: Path, *, longest: float, workers: int) -> Found:
    """The recordings of a folder, or of a list.

    Args:
        data: a folder of folders, a folder with `LIST` in it, or such a list under another name.
        longest: recordings of more seconds are left out.
        workers: threads that read headers.

    Raises:
        FileNotFoundError: there is no recording.
        FileFormatError: none can be read, or a line of the list is none.
        MissingExtraError: what reads them is not installed.
        OSError: the folder or the list cannot be read.
    """
    listed = data if data.is_file() else data / LIST
    spoken = listed.is_file()
    folder = listed.parent if spoken else data
    pairs = _listed(listed) if spoken else _in_folders(folder)
    lengths, problems = _lengths(folder, [name for name, _ in pairs], workers)
    bad = [f"{name}: {problem}" for (name, _), problem in zip(pairs, problems, strict=True) if problem]
    if len(bad) == len(pairs):
        raise FileFormatError(
            f"{data}: none of the {len(pairs):,} recordings can be read.", path=str(data), actual=bad[0]
        )
    short = lengths <= longest * _sounds.RATE
    kept = [i for i, problem in enumerate(problems) if not problem and short[i]]
    notes = []
    if bad:
        notes.append(f"{len(bad):,} of {len(pairs):,} files cannot be read and are left out: {some(bad)}")
    if long := len(pairs) - len(bad) - len(kept):
        notes.append(f"{long:,} recordings of more than {longest:g} s are left out")
    if not kept:
        raise ValueRangeError(
            f"{data}: no recording is short enough.", path="seconds", expected=f"at most {longest:g} s"
        )
    names, texts = zip(*(pairs[i] for i in kept), strict=True)
    answers = sorted(set("".join(texts) if spoken else texts))
    return Found([*names], folder, lengths[kept], [*texts], spoken, (*answers,), (*notes,))


def some(lines: Sequence[str]) -> str:
    return "; ".join(line[:200] for line in lines[:3]) + ("; ..." if len(lines) > 3 else "")


def _in_folders(folder: Path) -> list[tuple[str, str]]:
    """The recordings below each folder, and the folder's name."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is neither a folder of recordings nor a list of them")
    found = []
    for place, folders, files in os.walk(folder, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = Path(place).relative_to(folder).parts
        sounds = (name for name in files if Path(name).suffix.lower() in _SOUNDS and name[:1] != ".")
        found += [("/".join((*below, name)), below[0]) for name in sorted(sounds) if below]
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no recordings in folders, CLASS/NAME.wav (or flac, ogg ...), and no {LIST}"
        )
    return found


def _refuse(error: OSError) -> None:
    raise error


def _listed(path: Path) -> list[tuple[str, str]]:
    """The lines of a list: a path beside it, a tab, and what is said, with one space between two words."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path}: this is no UTF-8 text: {error}.", path=str(path)) from error
    pairs = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, tab, text = line.partition("\t")
        if not tab or "\t" in text or not name.strip():
            raise FileFormatError(
                f"{path}: line {number} is none of a recording.",
                path=str(path),
                expected="a path, a tab, and what is said",
                actual=shorten(line),
            )
        pairs.append((name.strip(), " ".join(unicodedata.normalize("NFC", text).casefold().split())))
    if not pairs:
        raise FileNotFoundError(f"{path} lists no recordings")
    return pairs


def _lengths(folder: Path, names: Sequence[str], workers: int) -> tuple[np.ndarray, list[str]]:
    """Of each file its samples at RATE, and why it cannot be read, or ""; from the cache if it is known."""
    cache = _cache(folder)
    known = _kept(cache)

    def one(name: str) -> list[Any]:
        try:
            state = (folder / name).stat()
            stamp = [state.st_size, state.st_mtime_ns]
            if known.get(name, ())[:2] == stamp:
                return known[name]
            return [*stamp, round(recordings.about(folder / name).seconds * _sounds.RATE), ""]
        except (FileFormatError, OSError) as error:
            return [-1, -1, 0, _reason(error, folder / name)]

    with ThreadPoolExecutor(workers) as pool:
        found = dict(zip(names, pool.map(one, names, chunksize=64), strict=True))
    if found != known:
        _keep(cache, found)
    entries = [found[name] for name in names]
    return np.array([entry[2] for entry in entries], np.int64), [entry[3] for entry in entries]


def _reason(error: Exception, path: Path) -> str:
    """What is wrong with a file, in one line without its path."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    first = str(error).partition("\n")[0]
    return (first.partition(f"{path}: ")[2] or first).rstrip(".")


def _cache(folder: Path) -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(str(folder.resolve()).encode("utf-8", "surrogateescape")).hexdigest()
    return root / "funcnet" / f"recordings-{digest[:24]}.json"


def _kept(path: Path) -> dict[str, list[Any]]:
    """What is in the cache, if it is what `_keep` writes."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and all(
            isinstance(entry, list) and [*map(type, entry)] == [int, int, int, str] and entry[2] > 0
            for entry in content.values()
        ):
            return content
    return {}


def _keep(path: Path, found: dict[str, list[Any]]) -> None:
    """Write the cache; without one, all headers are read again."""
    new = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        readable = {name: entry for name, entry in found.items() if not entry[3]}
        new.write_text(json.dumps(readable), encoding="utf-8", errors="surrogateescape")
        os.replace(new, path)


def halves(found: Found, share: float) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"]]:
    """Which recordings are trained on, and which are held out: a share of each class, by a hash of the names.

    Of two recordings or more at least one is held out; of one none.
    """
    groups: dict[str, list[int]] = {}
    for i, text in enumerate(found.texts):
        groups.setdefault("" if found.spoken else text, []).append(i)
    held = np.zeros(len(found.names), bool)
    for group in groups.values():
        order = sorted(group, key=lambda i: hashlib.sha256(found.names[i].encode(errors="replace")).digest())
        count = min(len(group) - 1, max(1, round(share * len(group))))
        held[order[:count]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


# ---- batches ----------------------------------------------------------------------------------------------


class Decoded:
    """Recordings as batches: decoded by threads, each as `vary` makes it, padded to one of a few lengths.

    Args:
        found: the recordings.
        labels: of each its class [n], or its letters [n, l].
        label_lengths: [n], how many letters count.
        workers: threads.
        vary: makes of samples and a generator other samples; None: they stay as they are.
        most: of a length in samples the largest that `vary` makes of it.
    """

    def __init__(
        self,
        found: Found,
        labels: Int[np.ndarray, "n ..."],
        label_lengths: Int[np.ndarray, " n"],
        workers: int,
        vary: Callable[..., np.ndarray] | None = None,
        most: Callable[[Any], Any] = lambda length: length,
    ) -> None:
        self._found, self._vary, self._labels, self._label_lengths = found, vary, labels, label_lengths
        self._most = most(found.lengths)
        steps = [int(self._most.max() / _sounds.HOP / _RATIO**i) + 1 for i in range(_SHAPES)]
        self._edges = _sounds.HOP * np.unique(steps)
        fits = np.searchsorted(self._edges, self._most)
        # For each length of batches the most letters of a recording that can be in one.
        self._letters = [int(label_lengths[fits <= i].max(initial=1)) for i in range(len(self._edges))]
        self._pool = ThreadPoolExecutor(workers, "funcnet.tasks.recorded")
        self.order = np.argsort(found.lengths, kind="stable")  # that of in_order
        self.bad: set[str] = set()  # names of what could not be decoded

    def training(self, size: int, *, seed: int, epochs: int, identity: dict[str, Any]) -> Cursor:
        """Shuffled batches with a position; in each, recordings of like length.

        The order is a function of the seed and the epoch, and what `vary` draws of them and the batch.
        """
        whose = functools.partial(_order, self._found.lengths, size, seed)
        order = functools.lru_cache(maxsize=1)(whose)
        return over(
            "tasks.recorded",
            len(self._found.names),
            size,
            lambda epoch, start, stop: order(epoch)[start:stop],
            lambda: identity,
            seed=seed,
            epochs=epochs,
            drop_remainder=True,
            transform=self.batch,
            skip_bad=0,
        )

    def in_order(self, size: int) -> Iterator[Batch]:
        """Each recording once as it stands, from the shortest to the longest."""
        return (self.batch(self.order[i : i + size]) for i in range(0, len(self.order), size))

    def batch(self, rows: Int[np.ndarray, " m"], rng: np.random.Generator | None = None) -> Batch:
        """The recordings of these numbers, varied if there is a generator."""
        seeds = [None] * len(rows) if rng is None else rng.integers(2**63, size=len(rows)).tolist()
        parts = [*self._pool.map(self._one, rows.tolist(), seeds)]
        fits = int(np.searchsorted(self._edges, self._most[rows].max()))
        labels = self._labels[rows]
        if labels.ndim == 2:
            labels = labels[:, : self._letters[fits]]
        return Batch(*_sounds.joined(parts, int(self._edges[fits])), labels, self._label_lengths[rows])

    def read(self, i: int) -> Float[np.ndarray, " t"]:
        """A recording as it stands; no samples of one that cannot be decoded, which is told once."""
        name = self._found.names[i]
        path = self._found.folder / name
        try:
            return recordings.read(path, _sounds.RATE)
        except (FileFormatError, OSError) as error:
            if name not in self.bad:
                self.bad.add(name)
                reason = f"{_reason(error, path)} ({len(self.bad)} such so far)"
                warnings.warn(f"{path} cannot be decoded and does not count: {reason}", stacklevel=2)
            return np.zeros(0, np.float32)

    def _one(self, i: int, seed: int | None) -> Float[np.ndarray, " t"]:
        samples = self.read(i)
        if self._vary is None or seed is None or not len(samples):
            return samples
        return self._vary(samples, np.random.Generator(np.random.Philox(seed)))


def _order(lengths: Int[np.ndarray, " n"], size: int, seed: int, epoch: int) -> Int[np.ndarray, " n"]:
    """A permutation of which each `size` have like lengths: sorted within some batches' worth, then mixed."""
    bits = np.random.Philox(np.random.SeedSequence(seed, spawn_key=(epoch,)))
    mixed = np.argsort(bits.random_raw(len(lengths)), kind="stable")
    whole = len(lengths) // size * size
    parts = [mixed[i : i + _MIXED * size] for i in range(0, whole, _MIXED * size)]
    parts = [part[: len(part) // size * size] for part in parts]
    batches = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in parts])
    batches = batches.reshape(-1, size)
    batches = batches[np.argsort(bits.random_raw(len(batches)), kind="stable")]
    return np.concatenate([batches.ravel(), mixed[whole:]])
