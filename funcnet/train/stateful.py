"""Iterators of other libraries that have a state: Grain's datasets and loaders, and others like them."""

import base64
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import PyTree

from funcnet.errors import DTypeError, ValueRangeError, describe, shorten
from funcnet.train._check import function, iterable
from funcnet.train.cursor import Position, agreeing

# JSON has no such values; a dict with one of these names stands for one.
_BYTES, _TUPLE, _DICT = "__bytes__", "__tuple__", "__dict__"
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+>")


def stateful(
    batches: Iterable[PyTree],
    *,
    get: Callable[[], Any] | None = None,
    set: Callable[[Any], Any] | None = None,
    identity: Mapping[str, Any] | None = None,
) -> "Stateful":
    """Give a position to batches whose iterator has a state.

    Those of Grain have: a `MapDataset`, an `IterDataset`, a `DataLoader` or an iterator of one, with workers
    or without, shuffled, mixed, batched. What Grain cannot tell from others, such as a dataset of other
    records, `identity` can. (With workers, Grain wants absl's flags
    parsed: `absl.flags.FLAGS.mark_as_parsed()`.)

    Args:
        batches: an iterable whose iterator has `get_state()` and `set_state(state)`, or any with `get` and
            `set`.
        get: `get()` gives the state from which the next batch follows.
        set: `set(state)` brings it back: the same batches follow.
        identity: what tells these data from others, a dict of what JSON can hold, such as {"version": 3}: a
            position with another one is refused.

    Returns:
        An iterator with `position` and `seek`. A position holds the state as it was then: numbers, texts,
        bytes, None, and lists, tuples and dicts of these.

    Raises:
        DTypeError: an argument is not what it should be, the iterator has no state that could be got and set,
            or (from `position`) JSON cannot hold it.
        ValueRangeError: from `seek`: the position belongs to other data, or the iterator refuses the state;
            from `position`: the state names an object by its address, so that no other process would take it.

    >>> class Count:
    ...     at = 0
    ...     def __iter__(self): return self
    ...     def __next__(self): self.at += 1; return self.at
    ...     def get_state(self): return {"at": self.at}
    ...     def set_state(self, state): self.at = state["at"]
    >>> first, second = stateful(Count()), stateful(Count())
    >>> next(first), next(first)
    (1, 2)
    >>> second.seek(first.position())
    >>> next(second)
    3
    """
    iterator = iter(iterable("train.stateful", batches))
    for name, given, other in (("get", get, "get_state"), ("set", set, "set_state")):
        if given is not None or (get is None) != (set is None):
            function("train.stateful", name, given, "a function, or neither get nor set")
        elif not callable(getattr(iterator, other, None)):
            raise DTypeError(
                f"train.stateful: the iterator has no {other}.",
                path="batches",
                expected="an iterator with get_state() and set_state(state), or get= and set=",
                actual=describe(iterator),
            )
    if not isinstance(identity, Mapping | None):
        raise DTypeError(
            "train.stateful: identity is no dict.",
            path="identity",
            expected="a dict, or None",
            actual=describe(identity),
        )
    own = _plain("identity", dict(identity or {}))
    get, set = get or iterator.get_state, set or iterator.set_state  # pyright: ignore
    return Stateful(iterator, get, set, own)


class Stateful(Iterator[PyTree]):
    """An iterator that `stateful` returns."""

    skipped = 0

    def __init__(
        self,
        iterator: Iterator[PyTree],
        get: Callable[[], Any],
        set: Callable[[Any], Any],
        identity: Mapping[str, Any],
    ):
        self._iterator, self._get, self._set, self._identity = iterator, get, set, identity
        self._lock = threading.Lock()

    def __next__(self) -> PyTree:
        with self._lock:
            return next(self._iterator)

    def position(self) -> Position:
        """The state of the iterator, from which the next batch follows; JSON can hold it."""
        with self._lock:
            return {"state": _plain("state", self._get()), "identity": dict(self._identity)}

    def seek(self, position: Mapping[str, Any]) -> None:
        """Bring back a state that `position()` gave, in this process or another."""
        with self._lock:
            identity = {"identity": dict(self._identity)}
            state = _restored(agreeing("train.stateful", position, identity, ("state",))["state"])
            try:
                self._set(state)
            except Exception as error:
                raise ValueRangeError(
                    "train.stateful: the iterator refuses the state of the position.",
                    path="position",
                    expected=f"a state of {describe(self._iterator)} over the same data",
                    actual=f"{type(error).__name__}: {error}".replace("\n", "\n            "),
                ) from error


def _plain(path: str, value: Any) -> Any:
    """A copy of `value` that JSON can hold, from which `_restored` makes it again."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes | str):
        _refuse_address(path, value if isinstance(value, str) else value.decode("latin-1"))
    if isinstance(value, bytes):
        return {_BYTES: base64.b64encode(value).decode()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if type(value) is list:
        return [_plain(f"{path}[{i}]", entry) for i, entry in enumerate(value)]
    if type(value) is tuple:
        return {_TUPLE: _plain(path, list(value))}
    if isinstance(value, Mapping):
        pairs = {name: _plain(f"{path}[{name!r}]", entry) for name, entry in value.items()}
        simple = all(isinstance(name, str) for name in pairs) and not {_BYTES, _TUPLE, _DICT} & pairs.keys()
        if simple:
            return pairs
        return {_DICT: [[_plain(f"{path}, a name", name), entry] for name, entry in pairs.items()]}
    raise DTypeError(
        f"train.stateful: {path} is nothing that JSON can hold.",
        path=path,
        expected="numbers, texts, bytes, None, and lists, tuples and dicts of these",
        actual=describe(value),
        hint="get= and set= can be functions that convert it",
    )


def _restored(value: Any) -> Any:
    """What `_plain` was given."""
    match value:
        case {"__bytes__": str(text)} if len(value) == 1:
            return base64.b64decode(text)
        case {"__tuple__": list(entries)} if len(value) == 1:
            return tuple(map(_restored, entries))
        case {"__dict__": list(pairs)} if len(value) == 1:
            return {_restored(name): _restored(entry) for name, entry in pairs}
        case dict():
            return {name: _restored(entry) for name, entry in value.items()}
        case list():
            return [_restored(entry) for entry in value]
    return value


def _refuse_address(path: str, text: str) -> None:
    """Grain compares data sources by their repr, and Python's own tells where an object lies."""
    if found := _ADDRESS.search(text):
        raise ValueRangeError(
            f"train.stateful: {path} names an object by its address, which differs in every process.",
            path=path,
            expected="a state that another process can take",
            actual=shorten(text[max(found.start() - 30, 0) : found.end()]),
            hint="give the object a __repr__ that tells its data from others",
        )
