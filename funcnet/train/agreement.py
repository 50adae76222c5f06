"""What the processes of one run decide together, so that none of them waits for ever.

Each process runs the same program on its own devices, and a step computes on all of them: a process that ends
alone, or takes a step that another does not take, leaves the rest waiting. So whatever one of them alone can
know (a signal, its clock, whether it has a next batch, an error, that its part of a checkpoint is written) is
a level, a small integer, that it says; all levels go round once a step as one vector, a collective of a few
bytes on the main thread behind the step before, and are read a step later, when they are there.

What is not numbers goes through the service by which JAX's processes have found each other: what they compare
at the start, why one has left, and where each one is, which a thread reports when nothing moves. It
talks to no device.
"""

import itertools
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from funcnet._held import is_whole
from funcnet.errors import FuncnetError, StructureError, ValueRangeError
from funcnet.mean import scalar

__all__ = ["EXIT", "TIMEOUT", "Peers", "PeersError", "Said", "everywhere", "gathered", "seconds"]

TIMEOUT = 1800.0  # seconds; a compilation and an evaluation must fit
EXIT = 75  # "try again later": of a process that nothing could end otherwise

_PATIENCE = 1.0  # seconds in which nothing moves, before the thread asks whether someone has left
_GRACE = 5.0  # seconds for the main thread to raise what the thread has found
_SIGNS = 2.0  # seconds in which all can say where they are
_WAITING = "waiting for the others"

T = TypeVar("T")


class PeersError(FuncnetError, RuntimeError):
    """Other processes of the run are lost, stuck, or have ended it by an error.

    Attributes:
        processes: whom it is about, by their indices.
    """

    def __init__(self, problem: str, *, processes: tuple[int, ...], **details: str | None):
        super().__init__(problem, path="timeout", **details)
        self.processes = processes


class Said(NamedTuple):
    """What all processes say together: of each level the largest, but of `written` the smallest.

    Attributes:
        signal: the number of a signal that one has got; 0: none.
        over: 1: the time is over.
        stop: 1: `stop(history)` says so.
        due: 1 + the number of checkpoints that were saved before the one that is due.
        ended: 1: one has no next batch.
        failed: 1 + the index of one that has an error to raise.
        spoilt: which leaf of the state is not finite, as `faults` numbers them.
        unwritable: 1 + the step of the newest checkpoint of which one could not write its pieces.
        written: 1 + the step of the newest checkpoint whose pieces are on the disk.
    """

    signal: int = 0
    over: int = 0
    stop: int = 0
    due: int = 0
    ended: int = 0
    failed: int = 0
    spoilt: int = 0
    unwritable: int = 0
    written: int = 0


class Peers:
    """The processes of a run; one that is alone agrees with itself, at once.

    Attributes:
        index: of this process.
        count: of processes.
        parted: whether all know that one of them has failed, and end here together.
    """

    def __init__(self, link: "_Link | None" = None) -> None:
        self._link, self._mine, self.parted = link, Said(), False
        self.index, self.count = (0, 1) if link is None else (link.index, link.count)
        self._sent: Any = None  # on its way

    def say(self, **levels: int) -> None:
        """Set what this process says from now on, from any thread; nothing is sent."""
        with _SAYING:
            self._mine = self._mine._replace(**levels)

    def agree(self, **levels: int) -> Said:
        """Say something, and wait for what all say now."""
        self.say(**levels)
        if self._link is None:
            return self._mine
        self._sent = self._link.send(self._mine)
        return self._link.receive(self._sent)

    def exchange(self) -> Said:
        """Send what this process says; what comes back is what all have said the time before."""
        if self._link is None:
            return self._mine
        before, self._sent = self._sent, self._link.send(self._mine)
        return self._link.receive(before)

    def of_first(self, value: T) -> T:
        """A JSON value: that of the first process, on all."""
        return value if self._link is None else self._link.of_first(value)

    def same(self, what: str, described: Mapping[str, str]) -> None:
        """Refuse processes that describe `what` differently.

        Raises:
            StructureError: on all of them; the text lists the differences.
        """
        if self._link is not None:
            self._link.same(what, described)

    def wait(self, tree: T) -> T:
        """Wait until the arrays of `tree` are there."""
        return jax.block_until_ready(tree) if self._link is None else self._link.wait(tree)

    def whole(self, tree: PyTree) -> PyTree:
        """The results of a step, for each process to read: what is split over several is copied to all."""
        return tree if self._link is None else self._link.in_order(everywhere(tree))

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Within, this process waits for nobody, but does what the others are told if they wait for it."""
        if self._link is None:
            yield
            return
        self._link.doing = what
        try:
            yield
        finally:
            self._link.doing = _WAITING

    def fail(self, error: Exception) -> None:
        """Say that this process has an error to raise: at the next exchange all hear of it."""
        if self._link is not None:
            self._link.publish("error", _text(error))
        self.say(failed=self.index + 1)

    def failure(self, said: Said) -> PeersError:
        """The error of another process, for this one, where `said.failed`."""
        assert self._link is not None
        return self._link.failure(said.failed - 1)

    def explained(self, error: BaseException) -> BaseException:
        """An error with which this process leaves alone: the others hear of it.

        If it is the one of a collective that broke off, the error that says who is lost.
        """
        if self._link is None or self.parted:
            return error
        return self._link.left(error)


_SAYING = threading.Lock()


@contextmanager
def gathered(where: str, timeout: float = TIMEOUT) -> Iterator[Peers]:
    """The processes of the run, until the block ends; all have to come to it.

    Args:
        where: who asks: the functions of funcnet that gather.
        timeout: seconds in which nothing moves, before the others are given up.

    Raises:
        PeersError: not all came, or (within) one of them is lost, stuck, or has left.
    """
    if jax.process_count() == 1:
        yield Peers()
        return
    link = _Link(where, timeout)
    peers = Peers(link)
    try:
        link.meet()
        yield peers
    except BaseException as error:
        explained = peers.explained(error)
        if explained is not error:
            raise explained from error
        raise
    finally:
        link.closed.set()


def seconds(where: str, timeout: Any) -> float:
    """`timeout` as a number of seconds."""
    scalar(where, "timeout", timeout)
    if not 0 < timeout < math.inf:
        raise ValueRangeError(
            f"{where}: timeout is {timeout}.", path="timeout", expected="above 0", actual=str(timeout)
        )
    return float(timeout)


_numbers = itertools.count()  # of gatherings: the same on all processes, which run the same program


class _Link:
    """What connects this process to the others, for as long as they are gathered."""

    def __init__(self, where: str, timeout: float):
        self.where, self.timeout = where, timeout
        self.index, self.count = jax.process_index(), jax.process_count()
        self.client = _client(where)
        self.name = f"funcnet/{next(_numbers)}"
        self.doing = _WAITING
        self.closed = threading.Event()
        self.lost: PeersError | None = None  # what the thread has found
        self.has_left = False
        self.beat = time.monotonic()  # when all were last known to be there
        self.sharding, self.program = _program()
        self.compared = self.told = 0
        threading.Thread(target=self.watch, name="funcnet.train.agreement", daemon=True).start()

    # --- the vector ---------------------------------------------------------------------------------------

    def send(self, mine: Said) -> jax.Array:
        """The levels of all, on their way."""
        row = np.array([[*mine[:-1], -mine.written]], np.int32)
        shape = (jax.device_count(), row.shape[1])
        rows = [jax.device_put(row, device) for device in jax.local_devices()]
        try:
            sent = self.program(jax.make_array_from_single_device_arrays(shape, self.sharding, rows))
            return self.in_order(sent)
        except jax.errors.JaxRuntimeError as error:
            raise self.broken(error) from error

    def receive(self, sent: jax.Array) -> Said:
        """Wait for levels that were sent."""
        try:
            levels = np.asarray(self.wait(sent)).tolist()
        except jax.errors.JaxRuntimeError as error:
            raise self.broken(error) from error
        self.beat = time.monotonic()
        return Said(*levels[:-1], -levels[-1])  # pyright: ignore[reportCallIssue]  (as many as were sent)

    def in_order(self, tree: T) -> T:
        """What was computed, on CPUs: there JAX runs programs side by side, and mixes up their messages."""
        return self.wait(tree) if jax.local_devices()[0].platform == "cpu" else tree

    def wait(self, tree: T) -> T:
        """Wait for arrays, in small pieces, so that signals and the thread are heard."""
        arrays: list[Any] = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
        self.until(lambda: all(array.is_ready() for array in arrays))
        return jax.block_until_ready(tree)

    def until(self, there: Callable[[], bool], longest: float = 0.02) -> None:
        """Wait until something is there."""
        pause = 1e-4
        while not there():
            if self.lost is not None:
                raise self.lost
            time.sleep(pause)
            pause = min(2 * pause, longest)

    # --- the service --------------------------------------------------------------------------------------

    def publish(self, what: str, text: str) -> None:
        """Say something about this process, to whoever asks."""
        with suppress(jax.errors.JaxRuntimeError):
            self.client.key_value_set(f"{self.name}/{what}/{self.index}", text, allow_overwrite=True)

    def published(self, what: str) -> dict[int, str]:
        """What each process has said, by their indices."""
        try:
            found = self.client.key_value_dir_get(f"{self.name}/{what}/")
        except jax.errors.JaxRuntimeError:
            return {}
        return {int(key.rpartition("/")[2]): text for key, text in found}

    def count_in(self, what: str) -> None:
        """Wait until all have come here."""
        key = f"{self.name}/{what}"
        come = [self.client.key_value_increment(key, 1)]

        def complete() -> bool:
            if come[0] < self.count:
                come[0] = int(self.client.key_value_try_get(key))
            return come[0] >= self.count

        self.until(complete, 0.2)
        self.beat = time.monotonic()

    def meet(self) -> None:
        """Wait until all have come to this gathering."""
        self.publish("here", self.where)
        self.count_in("met")
        if len(set(self.published("here").values())) > 1:
            raise StructureError(
                f"{self.where}: the processes run different programs.",
                path="jax.distributed",
                expected=f"all {self.count} in {self.where}",
                actual=_listed(self.published("here")),
            )

    def of_first(self, value: Any) -> Any:
        self.told += 1
        key = f"{self.name}/told-{self.told}/0"
        if self.index == 0:
            self.client.key_value_set(key, json.dumps(value))
            return json.loads(json.dumps(value))
        found: list[str] = []

        def there() -> bool:
            with suppress(jax.errors.JaxRuntimeError):
                found.append(self.client.key_value_try_get(key))
            return bool(found)

        self.until(there, 0.2)
        self.beat = time.monotonic()
        return json.loads(found[0])

    def same(self, what: str, described: Mapping[str, str]) -> None:
        first = self.of_first(dict(described))
        self.compared += 1
        name = f"differs-{self.compared}"
        if first != described:
            self.publish(name, json.dumps(_differences(first, described)))
        self.count_in(f"compared-{self.compared}")
        if differing := self.published(name):
            index, text = min(differing.items())
            theirs, mine = json.loads(text)
            others = f", as {_several(sorted(differing))} do" if len(differing) > 1 else ""
            raise StructureError(
                f"{self.where}: process {index} has another {what} than process 0{others}.",
                path=what,
                expected=theirs,
                actual=mine,
                hint="every process runs the same program with the same options",
            )

    # --- who is lost --------------------------------------------------------------------------------------

    def watch(self) -> None:
        """The thread: find out who is lost; end the process if its main thread cannot be told."""
        reported = -math.inf
        pause = min(_PATIENCE, self.timeout / 4) * max(1.0, self.count / 256)
        while not self.closed.wait(pause):
            now, beat = time.monotonic(), self.beat
            if self.lost is None and now - beat > self.timeout / 2 and reported != beat:
                self.publish("doing", self.doing)
                reported = beat
            if self.lost is None and now - beat > pause and (gone := self.gone()):
                self.lost = self.failure(gone)
            if self.lost is None and now - beat > self.timeout:
                self.lost = self.silent()
            if self.lost is not None:
                if not self.closed.wait(_GRACE):
                    _leave(self.lost)
                return

    def gone(self) -> int | None:
        """Another process that has left, if there is one."""
        return next((index for index in sorted(self.published("left")) if index != self.index), None)

    def failure(self, index: int) -> PeersError:
        text = (self.published("error") | self.published("left")).get(index, "an error")
        return PeersError(
            f"{self.where}: process {index} has ended the run: {text.partition(chr(10))[0]}",
            processes=(index,),
            expected="all processes to the end",
            actual=text if "\n" in text else None,
            hint=None if index == self.index else f"the log of process {index} tells more",
        )

    def silent(self, reason: str | None = None) -> PeersError:
        """The error of processes that cannot be waited for any longer, by what each of them says."""
        self.publish("doing", self.doing)
        time.sleep(min(_SIGNS, self.timeout))
        said = self.published("doing")
        where = {i: said.get(i, "no sign of life") for i in range(self.count)}
        late = {i: text for i, text in where.items() if text != _WAITING}
        _end_with_main()
        return PeersError(
            f"{self.where}: {reason or f'nothing moves for {self.timeout:g} s'}: "
            + (f"{_several(sorted(late))} did not come." if late else "all wait for each other."),
            processes=tuple(sorted(late)),
            expected=f"{self.count} processes in step",
            actual=_listed(late) or None,
            hint="the devices or the network between them" if not late else None,
        )

    def broken(self, error: BaseException) -> PeersError:
        """The error of a collective that broke off."""
        if self.lost is None:
            self.lost = self.silent(f"the connection is broken ({str(error).partition(chr(10))[0][:120]})")
        return self.lost

    def left(self, error: BaseException) -> BaseException:
        """Tell the others that this process leaves alone, and why."""
        if self.has_left:
            return error
        self.has_left = True
        if isinstance(error, jax.errors.JaxRuntimeError):
            found = self.broken(error)
            found.__cause__ = error
            error = found
        if not isinstance(error, PeersError):
            self.publish("left", _text(error))
        return error


def _client(where: str) -> Any:
    """The service's client: JAX has no public name for it."""
    module: Any = sys.modules.get("jax._src.distributed")
    client = None if module is None else module.global_state.client
    if client is None:
        raise ValueRangeError(
            f"{where}: there are {jax.process_count()} processes, which JAX's own service does not connect.",
            path="jax.distributed",
            expected="jax.distributed.initialize() before anything else",
            actual="none",
        )
    return client


def everywhere(tree: PyTree) -> PyTree:
    """Arrays that each process can read: what is split over several is copied to all; all must call it."""
    return jax.tree.map(_everywhere, tree)


def _everywhere(leaf: Any) -> Any:
    if is_whole(leaf):
        return leaf
    sharding: Any = leaf.sharding
    return jax.device_put(leaf, jax.NamedSharding(sharding.mesh, jax.P()))


@cache
def _program() -> tuple[Any, Callable[[jax.Array], jax.Array]]:
    """The largest of each level over all devices, of which each has those of its process; and how they lie.

    It is compiled before it is called, so that no mesh that a user has set has a say in it.
    """
    devices = np.array(jax.devices())
    mesh = jax.sharding.Mesh(devices, ("device",), axis_types=(jax.sharding.AxisType.Auto,))
    split, whole = jax.NamedSharding(mesh, jax.P("device")), jax.NamedSharding(mesh, jax.P())
    rows = jax.ShapeDtypeStruct((len(devices), len(Said._fields)), jnp.int32, sharding=split)
    with jax.set_mesh(mesh):
        program = jax.jit(lambda rows: rows.max(0), out_shardings=whole).lower(rows).compile()
    return split, program


def _leave(error: PeersError) -> None:
    """End this process, whose main thread is held within JAX."""
    print(f"\n{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    os._exit(EXIT)


def _end_with_main() -> None:
    """When the program is over, end the process: JAX's own exit would wait for those that are lost."""

    def end() -> None:
        threading.main_thread().join()
        time.sleep(_GRACE)
        os._exit(EXIT)

    threading.Thread(target=end, name="funcnet.train.agreement.end", daemon=True).start()


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:2000]


def _differences(theirs: Mapping[str, str], mine: Mapping[str, str]) -> tuple[str, str]:
    """What two descriptions say of that in which they differ."""
    names = [name for name in {**theirs, **mine} if theirs.get(name) != mine.get(name)]
    return tuple("; ".join(f"{name}: {one.get(name, 'none')}" for name in names) for one in (theirs, mine))  # pyright: ignore


def _several(indices: list[int]) -> str:
    return f"process{'es' if len(indices) > 1 else ''} {', '.join(map(str, indices))}"


def _listed(texts: Mapping[int, str]) -> str:
    return "; ".join(f"process {index}: {text}" for index, text in sorted(texts.items()))
