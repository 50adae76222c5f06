"""What a run must not lose, on the disk: written while it goes on, found again whatever happened to it."""

import errno
import json
import math
import os
import re
import secrets
import shutil
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np

from funcnet._safetensors import path_text, sync_folder
from funcnet._tensors import differences, listing, type_of
from funcnet.errors import DTypeError, FileFormatError, StructureError, ValueRangeError, describe, shorten
from funcnet.train import _check, _pieces
from funcnet.train._pieces import Index, Part, Piece
from funcnet.train.agreement import Peers, Said, gathered
from funcnet.train.history import History, Record
from funcnet.train.state import State

try:
    import fcntl
except ImportError:  # Windows: there, nothing keeps two processes from writing to one folder
    fcntl = None

_MINUTES = 10.0  # between two checkpoints, if nothing is said


class Resumed(NamedTuple):
    """What a run goes on from.

    Attributes:
        step: the number of steps that were taken.
        history: their records.
        seconds: that they took.
        log_bytes: the length of metrics.jsonl after the line of that step; None: it is not there any more.
    """

    step: int
    history: History
    seconds: float
    log_bytes: int | None


class Checkpoints:
    """A folder of checkpoints: given to `fit`, which writes them, and asked by `restore` for the newest one.

    A checkpoint is a folder ``step-1000`` with the whole state, the position in the data, and what else a
    run needs to go on as if nothing had happened. It is there whole or not at all; every byte of it is under
    a SHA-256, and what is written is read back before an older one is deleted. The steps wait only for a copy
    of the state to host memory, which is kept for the next one; a thread writes it.

    Of several processes (`jax.distributed`) each copies and writes the shards that are its own, to one folder
    that all of them see; when all have, the first one writes the index and gives the checkpoint its name.

    Args:
        folder: made if need be. One run writes to it at a time.
        every: a checkpoint after every so many steps.
        minutes: one after so many minutes. With neither, after every ten.
        keep: so many of the newest stay; those that are older are deleted.
        keep_every: those of steps that this divides stay, too.
        best: ("eval_accuracy", "max") or ("eval_loss", "min"): the one whose record has the best such number
            stays, too, and a record that beats it makes a checkpoint due. Of equals the earlier is the best;
            NaN never is.
        config: any JSON value that says what the run is. `restore` refuses a checkpoint of another one. None:
            nothing is compared.

    Raises:
        DTypeError: an argument is not what it should be.
        ValueRangeError: a number that makes no sense.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Checkpoints(folder, every=100, keep=2, best=("eval_accuracy", "max")).steps()
    []
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        every: SupportsIndex | None = None,
        minutes: int | float | None = None,
        keep: SupportsIndex = 3,
        keep_every: SupportsIndex | None = None,
        best: tuple[str, str] | None = None,
        config: Any = None,
    ) -> None:
        where = "train.Checkpoints"
        self.folder = path_text(where, "folder", folder)
        self._every = None if every is None else _check.whole(where, "every", every, 1)
        self._minutes = _MINUTES if every is None and minutes is None else _checked_minutes(minutes)
        self._keep = _check.whole(where, "keep", keep, 1)
        self._keep_every = None if keep_every is None else _check.whole(where, "keep_every", keep_every, 1)
        self._best = _checked_best(best)
        self._config = _json(where, "config", config)
        self._clock = time.monotonic()
        # The copy in host memory, which the thread reads.
        self._kept: dict[str, _pieces.Kept] = {}
        self._layout: tuple[Any, list[str], dict[str, str]] | None = None  # of the state
        self._peers, self._token = Peers(), secrets.token_hex(4)
        # By several processes, of which not all are known to be done.
        self._saving: tuple[Index, tuple[Any, ...]] | None = None
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None  # of the last write
        self._unread: str | None = None  # its text, until it was asked for
        self._written: tuple[Any, ...] = ()  # what the last good write was of
        self._writing: tuple[int, Record] | None = None
        self._resumed: Resumed | None = None
        self._drop_later = False  # than the next one that is written: the run went on from before them

    def __repr__(self) -> str:
        return f"<Checkpoints in {self.folder}>"

    def settings(self) -> dict[str, Any]:
        """What was said of when one is due, which stay, and what the run is."""
        names = ("every", "minutes", "keep", "keep_every", "best", "config")
        return {name: getattr(self, f"_{name}") for name in names}

    def steps(self) -> list[int]:
        """The steps of the complete checkpoints on the disk, ascending. Their tensors are not read."""
        return list(self._complete())

    # --- restore ------------------------------------------------------------------------------------------

    def restore(
        self,
        state: State,
        batches: Any = None,
        *,
        step: SupportsIndex | None = None,
        params_only: bool = False,
    ) -> tuple[State, History]:
        """The newest checkpoint that is whole; `state` and no records if there is none at all.

        What `state` asks for, on the devices of this process, is read, and every byte of that is checked. A
        checkpoint that is damaged is named in a warning, and the one before it is taken.

        Args:
            state: from `init`, for the same params and optimizer. It says what the checkpoint must have: the
                same leaves, of the same shapes and types, and nodes of the same classes. Its arrays also say
                where the restored ones are put: on the same devices, in the same shardings, whatever those
                were when it was written. Each may be a `jax.ShapeDtypeStruct`, with a sharding or without.
            batches: if it has `seek`, it is put where the run was. One without begins anew, with a warning.
            step: the checkpoint of this step, and no other. Going on from it sets later ones aside.
            params_only: begin a new run from the weights: only `params` (and the average, if `state` has one,
                which starts at them) and `model_state` are those of the checkpoint, all else is `state`'s, so
                the batches begin anew; the config is not compared. An optimizer that keeps params in its
                state (schedule_free) should be initialized from the restored ones.

        Returns:
            The state, and the records of the run up to it: those of its metrics.jsonl, if it wrote one.

        Raises:
            StructureError: a checkpoint that is whole is of another model, optimizer or config; the text
                lists all differences.
            FileFormatError: there are checkpoints, and each is damaged; the text lists why.
            ValueRangeError: there is none of `step`; or none at all, with `params_only`; or its position is
                one of other data than `batches`; or a leaf is split over a mesh without devices (that of
                `jax.eval_shape`), and no such mesh is set.
            DTypeError: an argument is not what it should be.
        """
        self._join()
        where = "train.Checkpoints.restore"
        if not isinstance(state, State):
            raise DTypeError(
                f"{where}: state is none.",
                path="state",
                expected="a state from train.init",
                actual=describe(state),
            )
        number = None if step is None else _check.whole(where, "step", step, 0)
        with gathered(where) as peers:
            found: list[int] = peers.of_first([*self._found()])
            if number is not None and number not in found:
                raise ValueRangeError(
                    f"{where}: there is no checkpoint of step {number} in {self.folder}.",
                    path="step",
                    expected=f"one of {', '.join(map(str, found))}" if found else "a folder with checkpoints",
                    actual=str(number),
                )
            if not found:
                if params_only:
                    raise ValueRangeError(
                        f"{where}: there is no checkpoint in {self.folder}.",
                        path="params_only",
                        expected="a folder with checkpoints",
                        actual="none",
                    )
                self._resumed = None
                return state, History()
            newest_first = [number] if number is not None else sorted(found, reverse=True)
            index, restored = self._first_whole(peers, state, newest_first, params_only)
        if params_only:
            self._resumed = None
            return restored, History()
        _seek(batches, index)
        self._resumed = self._went_so_far(index)
        return restored, self._resumed.history

    def _first_whole(
        self, peers: Peers, state: State, steps: list[int], params_only: bool
    ) -> tuple[Index, State]:
        """The first of the checkpoints that no process finds damaged, and its state."""
        damaged = []
        for step in steps:
            failure, read = None, None
            try:
                index = _pieces.read_index(self._path(step), step)
                read = index, *self._read(state, index, params_only)
            except (FileFormatError, OSError) as error:
                failure = error
            said = peers.agree(failed=0 if failure is None else peers.index + 1)
            if read is None or said.failed:
                damaged.append(f"step {step}: {failure or f'process {said.failed - 1} cannot read it'}")
                continue
            if damaged:
                problem = f"train.Checkpoints.restore: the checkpoint of step {step} is taken, damaged is"
                warnings.warn(listing(problem, damaged), stacklevel=3)
            index, arrays, like = read
            leaves = _pieces.placed(arrays, index.leaves, like)
            return index, _filled(state, [leaves[name] for name in like], params_only)
        problem = f"train.Checkpoints.restore: no checkpoint in {self.folder} can be read"
        raise FileFormatError(listing(problem, damaged), path=self.folder)

    def _read(
        self, state: State, index: Index, params_only: bool
    ) -> tuple[dict[Part, np.ndarray], dict[str, Any]]:
        """What this process needs of a checkpoint, which must be one like `state`; and the leaves of that."""
        like, nodes = _pieces.survey("train.Checkpoints.restore", state, stored=False)
        found, found_nodes = {name: leaf.type for name, leaf in index.leaves.items()}, index.nodes
        config = None if params_only else self._config
        if params_only:
            like, nodes, found, found_nodes = map(_weights, (like, nodes, found, found_nodes))
        _refuse_other(self._path(index.step), like, nodes, found, found_nodes, config, index)
        boxes = [_pieces.needed(name, index.leaves[name], wanted) for name, wanted in like.items()]
        parts = {part for places in boxes for part in places.values()}
        return _pieces.read(self._path(index.step), index, parts), like

    def _went_so_far(self, index: Index) -> Resumed:
        """What the checkpoint says of the run, and the records in its log."""
        if index.log is None:
            return Resumed(index.step, History(), index.seconds, None)
        relative, size = index.log
        path = os.path.join(self.folder, relative)
        try:
            history, there = History.read(path, size), os.path.getsize(path)
        except (OSError, FileFormatError) as error:
            history, there, problem = History(), 0, f"are lost: {error}"
        else:
            problem = f"end early: {path} has {there} of {size} bytes"
        if there < size:
            where = f"train.Checkpoints.restore: the records of the run up to step {index.step}"
            warnings.warn(f"{where} {problem}", stacklevel=3)
        return Resumed(index.step, history, index.seconds, size if there else None)

    # --- for loops ----------------------------------------------------------------------------------------

    def begin(self, state: State, peers: Peers | None = None) -> Resumed | None:
        """For loops: say that a run begins at `state`. What `restore` has found, if that is its step.

        Args:
            state: to begin at.
            peers: the processes of the run, all of which call this; None: this one is alone.

        Raises:
            StructureError: the state has parts that cannot be stored; the text lists them.
            ValueRangeError: the folder has checkpoints of later steps, which a run that does not go on from
                one of them would delete.
        """
        self._join()
        self._named(state)
        self._peers = Peers() if peers is None else peers
        self._token = self._peers.of_first(self._token)
        step, resumed = int(state.step), self._resumed
        self._resumed = self._saving = None
        self._clock = time.monotonic()
        if resumed is not None and resumed.step == step:
            self._drop_later = True
            return resumed
        if (found := self._peers.of_first([*self._found()])) and max(found) > step:
            raise ValueRangeError(
                f"train.Checkpoints: {self.folder} has checkpoints of later steps than this run begins at.",
                path="folder",
                expected=f"checkpoints up to step {step}, or none",
                actual=f"checkpoints up to step {max(found)}",
                hint="restore(state, batches) goes on from the newest; a new run takes a new folder",
            )
        return None

    def due_at(self, step: int) -> bool:
        """For loops: whether one is due after this step, whatever the clock says."""
        return self._every is not None and step % self._every == 0

    def overdue(self) -> bool:
        """For loops: whether one is due by the clock."""
        return self._minutes is not None and time.monotonic() - self._clock >= 60 * self._minutes

    def due(self, step: int, record: Mapping[str, Any] | None = None) -> bool:
        """For loops: whether it is time for one, or `record` is better than the best on the disk."""
        if self.due_at(step) or self.overdue():
            return True
        if self._best is None or record is None or (value := _number(record.get(self._best[0]))) is None:
            return False
        writing = self._writing  # read first: it may be on the disk a moment later
        records = {step: index.record for step, index in self._complete().items()}
        if writing is not None:
            records[writing[0]] = writing[1]
        best = self._best_of(records)
        return best is None or self._beats(value, records[best])

    def save(
        self,
        state: State,
        *,
        position: Mapping[str, Any] | None,
        log: tuple[str, int] | None = None,
        seconds: float = 0.0,
        record: Mapping[str, Any] = {},
    ) -> None:
        """For loops: copy the state to the host, and write it while the run goes on.

        A write that is under way is waited for. An error of it, or of this one, is kept for `error`. Of
        several processes all call it after the same step; each copies what is its own.

        Args:
            state: after the last step.
            position: of the batch that comes next, a JSON value.
            log: the path of metrics.jsonl, and its length in bytes after the line of that step; of several
                processes the first has it.
            seconds: that the run has taken.
            record: the step's.
        """
        self.wait()
        self._clock, self._failure = time.monotonic(), None
        key = _key(state, position, log, record)
        index = Index(
            step=int(state.step),
            seconds=float(seconds),
            position=None,
            log=None if log is None else (os.path.relpath(log[0], self.folder), int(log[1])),
            record=_finite(dict(record)),
            config=self._config,
            versions=_pieces.versions(),
            nodes={},
            leaves={},
            pieces=[],
        )
        try:
            leaves, nodes = self._named(state)
            self._kept = _pieces.to_host(leaves, self._kept, first=self._peers.index == 0)
            index = index._replace(
                position=_json("train.Checkpoints", "position", position),
                nodes=nodes,
                leaves={name: leaf for name, (leaf, _) in self._kept.items()},
            )
            self._peers.say(written=0, unwritable=0)  # a step can be saved anew
            self._start(self._write, index, key)
        except Exception as error:
            self._writing = None
            self._failed(index.step, error)
            self._peers.say(written=index.step + 1)
        if self._peers.count > 1:
            self._saving = index, key

    def _start(self, write: Any, index: Index, key: tuple[Any, ...]) -> None:
        """Start the thread that writes."""
        self._writing = index.step, index.record
        # No daemon: at the end of the program Python waits for it, so that no write is left half way.
        thread = threading.Thread(target=write, args=(index, key), name="funcnet checkpoint")
        thread.start()
        self._thread = thread

    def heard(self, said: Said) -> None:
        """For loops of several processes: what all of them say, at the same step on each.

        Once all have written their pieces, the first process writes the index, in its thread.
        """
        if self._saving is None or said.written <= self._saving[0].step:
            return
        (index, key), self._saving = self._saving, None
        self._join()
        if said.unwritable > index.step:
            self._writing = None
            if self._failure is None and self._peers.index == 0:
                self._failed(index.step, OSError("another process could not write its pieces"))
        elif self._peers.index == 0:
            self._start(self._gather, index, key)
        else:
            self._writing = None

    def _named(self, state: State) -> tuple[dict[str, Any], dict[str, str]]:
        """`survey`, which a state of the same structure as the last one need not be asked."""
        leaves, structure = jax.tree.flatten(state)
        if self._layout is None or self._layout[0] != structure:
            named, nodes = _pieces.survey("train.Checkpoints", state)
            self._layout = structure, list(named), nodes
        return dict(zip(self._layout[1], leaves, strict=True)), self._layout[2]

    def error(self) -> str | None:
        """For loops: the error of the last write, once. The next checkpoint tries again."""
        text, self._unread = self._unread, None
        return text

    def finish(
        self,
        state: State,
        *,
        position: Mapping[str, Any] | None,
        log: tuple[str, int] | None = None,
        seconds: float = 0.0,
        record: Mapping[str, Any] = {},
    ) -> None:
        """For loops: `save`, unless just that was written last, and wait until it is on the disk.

        Raises:
            OSError: it could not be written; of several processes, on all. Its attribute `state` is the
                state.
        """
        self.wait()
        key = _key(state, position, log, record)
        if self._peers.of_first(self._written == key):
            return
        self.save(state, position=position, log=log, seconds=seconds, record=record)
        self.wait()
        cause = self._failure
        failed = self._peers.of_first(
            None if self._written == key else [str(cause), getattr(cause, "errno", None)]
        )
        if failed is not None:
            self._unread, (text, code) = None, failed
            problem = f"train.Checkpoints: the last checkpoint, of step {key[0]}, is not written: {text}"
            error = OSError(problem) if code is None else OSError(code, problem)
            error.add_note(f"the state after step {key[0]} is this error's attribute `state`")
            vars(error)["state"] = state
            raise error from cause

    def wait(self) -> None:
        """For loops: until no write is under way; of several processes all come here."""
        self._join()
        if self._saving is not None:
            self.heard(self._peers.agree())
            self._join()

    def _join(self) -> None:
        """Wait for the thread."""
        if self._thread is not None:
            with self._peers.doing("writing a checkpoint"):
                self._thread.join()
            self._thread = None

    def _failed(self, step: int, error: Exception) -> None:
        self._failure = error
        self._unread = f"the checkpoint of step {step} is not written: {error}"
        self._peers.say(unwritable=step + 1)

    # --- the thread ---------------------------------------------------------------------------------------

    def _write(self, index: Index, key: tuple[Any, ...]) -> None:
        """Write the pieces of this process; if there is no other, all that a checkpoint is."""
        alone, first = self._peers.count == 1, self._peers.index == 0
        try:
            _make(self.folder)
            if index.log is not None:  # a power cut must not leave it shorter than the checkpoint says
                with suppress(OSError):
                    _sync(os.path.join(self.folder, index.log[0]))
            with _locked(self.folder) if first else nullcontext():
                if first:
                    self._clean(self._temporary(index.step))
                pieces = self._write_pieces(index)
                if alone:
                    self._commit(index._replace(pieces=pieces), key)
        except Exception as error:
            self._failed(index.step, error)
        finally:
            if alone:
                self._writing = None
            self._peers.say(written=index.step + 1)

    def _write_pieces(self, index: Index) -> list[Piece]:
        temporary, name = self._temporary(index.step), self._name(self._peers.index)
        os.makedirs(temporary, exist_ok=True)
        try:
            for file in os.listdir(temporary):
                if file.startswith(name):  # of an attempt that failed
                    os.remove(os.path.join(temporary, file))
            boxes = {part: array for _, copies in self._kept.values() for part, array in copies.items()}
            pieces = _pieces.write(temporary, index.leaves, boxes, name)
            if self._peers.count > 1:
                _pieces.write_share(temporary, name, index.step, pieces)
        except BaseException:
            if self._peers.count == 1:
                shutil.rmtree(temporary, ignore_errors=True)
            raise
        return pieces

    def _gather(self, index: Index, key: tuple[Any, ...]) -> None:
        """Of the first of several processes: make a checkpoint of the pieces that all have written."""
        temporary, pieces = self._temporary(index.step), []
        try:
            with _locked(self.folder):
                for process in range(self._peers.count):
                    try:
                        pieces += _pieces.read_share(temporary, self._name(process), index.step, index.leaves)
                    except FileNotFoundError as error:
                        problem = f"process {process} wrote nothing there: all processes must see one folder"
                        raise FileNotFoundError(error.errno, problem, temporary) from error
                self._commit(index._replace(pieces=pieces), key)
        except Exception as error:
            self._failed(index.step, error)
        finally:
            self._writing = None

    def _commit(self, index: Index, key: tuple[Any, ...]) -> None:
        """Write the index, read it back, and give the checkpoint its name; then delete what is not kept."""
        temporary = self._temporary(index.step)
        try:
            for file in {*os.listdir(temporary)} - {piece.file for piece in index.pieces}:
                os.remove(os.path.join(temporary, file))
            _pieces.write_index(temporary, index)
            final = os.path.join(self.folder, f"step-{index.step}")
            if os.path.lexists(final):  # of before; until the next line `_found` knows its new name
                os.replace(final, os.path.join(self.folder, f".step-{index.step}.old"))
            os.replace(temporary, final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_folder(self.folder)
        self._written = key
        try:
            self._tidy(index.step)
        except OSError as error:
            self._unread = f"older checkpoints than step {index.step} cannot be deleted: {error}"

    def _tidy(self, step: int) -> None:
        """Set aside what is later than the step that is on the disk now, and delete what is not kept."""
        if self._drop_later:
            for later in [number for number in self._found() if number > step]:
                name = f"step-{later}.aside-{secrets.token_hex(4)}"
                os.replace(self._path(later), os.path.join(self.folder, name))
            self._drop_later = False
        records = {number: index.record for number, index in self._complete().items()}
        for number in set(records) - self._kept_of(records):
            doomed = os.path.join(self.folder, f".step-{number}.tmp-{secrets.token_hex(4)}")
            os.replace(self._path(number), doomed)  # it should not be there in parts
            shutil.rmtree(doomed)
        self._clean()

    def _kept_of(self, records: Mapping[int, Record]) -> set[int]:
        """Of the checkpoints, those that stay."""
        kept = set(sorted(records)[-self._keep :])
        if self._keep_every is not None:
            kept |= {step for step in records if step % self._keep_every == 0}
        best = self._best_of(records)
        return kept if best is None else kept | {best}

    def _best_of(self, records: Mapping[int, Record]) -> int | None:
        best = None
        for step in sorted(records):
            value = None if self._best is None else _number(records[step].get(self._best[0]))
            if value is not None and (best is None or self._beats(value, records[best])):
                best = step
        return best

    def _beats(self, value: float, record: Record) -> bool:
        name, mode = self._best or ("", "")
        best = record[name]
        return value > best if mode == "max" else value < best

    # --- the folder ---------------------------------------------------------------------------------------

    def _found(self) -> dict[int, str]:
        """The checkpoints by name, ascending by their number, whether they are whole or not.

        One that was moved aside to be replaced counts until the new one is there.
        """
        try:
            names = set(os.listdir(self.folder))
        except FileNotFoundError:
            return {}
        found = {}
        for name in names:
            match = re.fullmatch(r"(\.?)step-(0|[1-9][0-9]*)(\.old)?", name)
            if match and bool(match[1]) == bool(match[3]) and not (match[1] and f"step-{match[2]}" in names):
                found[int(match[2])] = name
        return dict(sorted(found.items()))

    def _complete(self) -> dict[int, Index]:
        """The indices that can be read, by step."""
        found = {}
        for step in self._found():
            try:
                found[step] = _pieces.read_index(self._path(step), step)
            except (FileFormatError, OSError):
                continue
        return found

    def _path(self, step: int) -> str:
        return os.path.join(self.folder, self._found().get(step, f"step-{step}"))

    def _temporary(self, step: int) -> str:
        """Where a checkpoint is written; the same on all processes."""
        return os.path.join(self.folder, f".step-{step}.tmp-{self._token}")

    def _name(self, process: int) -> str:
        """How the files of a process begin."""
        return "piece" if self._peers.count == 1 else f"piece-{process:05}"

    def _clean(self, but: str = "") -> None:
        """Remove what dead writers have left; the lock is held, so none of it is a live one's."""
        names = set(os.listdir(self.folder))
        for name in names:
            match = re.fullmatch(r"\.(step-[0-9]+)\.(tmp-[0-9a-f]{8}|old)", name)
            path = os.path.join(self.folder, name)
            if match and path != but and (match[2] != "old" or match[1] in names):
                if os.path.isdir(path) and not os.path.islink(path):
                    shutil.rmtree(path)
                else:
                    os.remove(path)


# --- what is given ----------------------------------------------------------------------------------------


def _checked_minutes(minutes: Any) -> float | None:
    if minutes is None:
        return None
    if isinstance(minutes, bool) or not isinstance(minutes, int | float | np.number):
        raise DTypeError(
            "train.Checkpoints: minutes is no number.",
            path="minutes",
            expected="a number, above 0",
            actual=describe(minutes),
        )
    if not 0 < minutes < math.inf:
        problem = f"train.Checkpoints: minutes is {minutes}."
        raise ValueRangeError(problem, path="minutes", expected="above 0", actual=str(minutes))
    return float(minutes)


def _checked_best(best: Any) -> tuple[str, str] | None:
    if best is None:
        return None
    match best:
        case (str(name), ("max" | "min") as mode):
            return name, mode
    raise DTypeError(
        "train.Checkpoints: best is not the name of a number and its direction.",
        path="best",
        expected='("eval_accuracy", "max"), or "min"',
        actual=repr(best)[:60],
    )


def _json(where: str, path: str, value: Any) -> Any:
    """`value` as it comes back from JSON."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise DTypeError(
            f"{where}: {path} is no JSON value: {error}.",
            path=path,
            expected="None, True, False, numbers that are finite, texts, and lists and dicts of them",
            actual=describe(value),
        ) from None


def _finite(value: Any) -> Any:
    """A record's entry for JSON, as in metrics.jsonl: what is not finite is None, what is no JSON a text."""
    match value:
        case dict():
            return {str(name): _finite(entry) for name, entry in value.items()}
        case list() | tuple():
            return [_finite(entry) for entry in value]
        case bool() | int() | str() | None:
            return value
    number = _number(value)
    return number if number is not None or isinstance(value, float) else repr(value)


def _number(value: Any) -> float | None:
    """`value`, if it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return None
    return float(value) if math.isfinite(value) else None


def _key(state: State, position: Any, log: Any, record: Any) -> tuple[Any, ...]:
    """What a write is of: the same again need not be written."""
    return int(state.step), repr(position), log, repr(record)


# --- restore ----------------------------------------------------------------------------------------------


def _weights(named: Mapping[str, Any]) -> dict[str, Any]:
    """Of things by path, those of params and model_state."""
    return {name: value for name, value in named.items() if name.split(".")[0] in ("params", "model_state")}


def _refuse_other(
    source: str,
    like: Mapping[str, Any],
    nodes: Mapping[str, str],
    found: Mapping[str, Any],
    found_nodes: Mapping[str, str],
    config: Any,
    index: Index,
) -> None:
    """Refuse a checkpoint that is not of such a state, or of another config, with all differences."""
    here = {name: type_of(leaf) for name, leaf in like.items()}
    missing, unexpected, mismatched = differences(here, found, "the state", "the checkpoint")
    classes = _class_differences(nodes, found_nodes)
    configs = [] if config is None else list(_config_differences("config", config, index.config))
    lines = [*missing, *unexpected, *mismatched, *classes, *configs]
    if not lines:
        return
    others = {
        name: f"{version} then, {_pieces.versions()[name]} now"
        for name, version in index.versions.items()
        if _pieces.versions().get(name, version) != version
    }
    changed = ", ".join(f"{name} {change}" for name, change in others.items())
    raise StructureError(
        listing(f"train.Checkpoints.restore: {source} is the checkpoint of another run", lines),
        path="state",
        hint=f"the versions differ: {changed}" if classes and changed else None,
    )


def _class_differences(here: Mapping[str, str], there: Mapping[str, str]) -> list[str]:
    """A line for each node that is of another class; below one that is missing none is listed."""
    lines = []
    for name in [*here, *(name for name in there if name not in here)]:
        ours, theirs = here.get(name), there.get(name)
        above = name.rpartition(".")[0] or "~"
        if ours == theirs or (None in (ours, theirs) and here.get(above) != there.get(above)):
            continue
        lines.append(f"class       {name!r}: the state has {ours}, the checkpoint {theirs}")
    return lines


def _config_differences(path: str, here: Any, there: Any) -> Iterator[str]:
    if isinstance(here, dict) and isinstance(there, dict):
        for name in [*here, *(name for name in there if name not in here)]:
            below = f"{path}.{name}"
            if name not in there or name not in here:
                who, value = ("checkpoint", here[name]) if name in here else ("config here", there[name])
                yield f"config      {below}: {_short(value)}, which the {who} lacks"
            else:
                yield from _config_differences(below, here[name], there[name])
    elif type(here) is not type(there) or here != there:
        yield f"config      {path}: {_short(here)} here, {_short(there)} in the checkpoint"


def _short(value: Any) -> str:
    return repr(value)[:60] if isinstance(value, list | dict) else shorten(value)


def _filled(state: State, leaves: list[Any], params_only: bool) -> State:
    """`state` with the leaves that were read."""
    if not params_only:
        return jax.tree.unflatten(jax.tree.structure(state), leaves)
    weights = (state.params, state.model_state)
    params, model_state = jax.tree.unflatten(jax.tree.structure(weights), leaves)
    state = state._replace(params=params, model_state=model_state)
    if state.average is None:
        return state
    average = jax.tree.map(lambda param, like: jnp.array(param, like.dtype, copy=True), params, state.average)
    return state._replace(average=average)


def _seek(batches: Any, index: Index) -> None:
    """Put the batches where the run was."""
    if batches is None:
        return
    if index.position is not None and hasattr(batches, "seek"):
        batches.seek(index.position)
        return
    why = "have no `seek`" if index.position is not None else "had no `position` when it was written"
    warnings.warn(
        f"train.Checkpoints.restore: the batches {why}: they begin anew, not where step {index.step} was.",
        stacklevel=3,
    )


# --- the disk ---------------------------------------------------------------------------------------------


def _make(folder: str) -> None:
    """Make a folder, those above it too, and sync their names to the disk."""
    missing, path = [], os.path.abspath(folder)
    while not os.path.isdir(path) and path != os.path.dirname(path):
        missing.append(path)
        path = os.path.dirname(path)
    if missing:
        os.makedirs(folder, exist_ok=True)
    for path in reversed(missing):
        sync_folder(os.path.dirname(path))


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(folder: str) -> Iterator[None]:
    """Hold the folder's lock, which the system takes from a process that dies."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(os.path.join(folder, ".lock"), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(
                error.errno, f"another process is writing a checkpoint to {folder}"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise  # those say that this disk has no locks
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child that was forked meanwhile has the file open, too
        os.close(descriptor)
