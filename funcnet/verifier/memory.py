"""What was found right before: kept in a file under a hash of all that could make it wrong.

Only operations of funcnet are remembered, and only if they are right. A rule of the user's own is judged at
the values of its calls, which no program tells: it is verified each time.
"""

import contextlib
import datetime
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnet import rules
from funcnet.verifier.finding import Row, sizes
from funcnet.verifier.problem import is_float

__all__ = ["Memory"]

LIMIT = 2000  # rows in a file, the newest
_ADDRESS = re.compile(r"0x[0-9a-f]+")
_KINDS = (str, str, float, float)


class Memory:
    """Rows of reports that were right, each with the day since when.

    Args:
        file: where they are. What is in it and is no such row is dropped; what cannot be read or written is
            as if it were empty.
        facts: of this machine and its software, under which they are right.
        read: False: nothing is known, but what is found is kept.
    """

    def __init__(self, file: Path, facts: Mapping[str, str], *, read: bool = True) -> None:
        self._file, self._facts = file, f"{sorted(facts.items())} {_source()}"
        self._known = _rows(file) if read else {}
        self._new: dict[str, list[Any] | None] = {}

    def row(self, key: str, calls: Sequence[rules.Call]) -> Row | None:
        """What is known of calls that have a key; None: nothing."""
        if (found := self._known.get(key)) is None:
            return None
        since, argument, error, allowed = found
        arrays = (v for v in jax.tree.leaves(calls[0].args) if hasattr(v, "shape"))
        return Row(
            _name(calls[0]), argument, sizes(arrays), len(calls), error, allowed, True, f"since {since}"
        )

    def keep(self, key: str, row: Row) -> None:
        """Remember a row that is right, and forget what was known of one that is not."""
        today = datetime.date.today().isoformat()
        self._new[key] = [today, row.argument, float(row.error), float(row.tolerance)] if row.ok else None

    def save(self) -> None:
        """Write what is new, beside what others have written meanwhile."""
        if not self._new:
            return
        rows = {
            key: row for key, row in {**_rows(self._file), **self._new}.items() if key and row is not None
        }
        beside = self._file.with_name(f"{self._file.name}.{os.getpid()}.tmp")
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            beside.write_text(json.dumps(dict(list(rows.items())[-LIMIT:]), indent=0), "utf-8")
            beside.replace(self._file)

    def key(self, call: rules.Call) -> str:
        """Of definition, formula and what runs, traced at the shapes of a call; "": it has none."""
        leaves, tree = jax.tree.flatten((call.args, call.options))
        is_array = [hasattr(v, "shape") and hasattr(v, "dtype") for v in leaves]

        def programs(arrays: Any) -> Any:
            given = iter(arrays)
            args, options = jax.tree.unflatten(
                tree, [next(given) if a else v for v, a in zip(leaves, is_array, strict=True)]
            )
            y, pullback = call.operation.vjp(*args, **options)
            others = (getattr(call.operation, name, None) for name in ("reference", "apply"))
            return y, pullback(jax.tree.map(_cotangent, y)), [f(*args, **options) for f in others if f]

        try:
            traced = jax.make_jaxpr(programs)(
                [jax.ShapeDtypeStruct(v.shape, v.dtype) for v, a in zip(leaves, is_array, strict=True) if a]
            )
            text = _ADDRESS.sub("", str(traced))
            held = [(v.shape, str(v.dtype), v.tobytes()) for v in map(np.asarray, _arrays(traced))]
        except Exception:  # what asks for values, say
            return ""
        if "callback" in text:  # what Python does there no program tells
            return ""
        return hashlib.sha256(repr((self._facts, _name(call), text, held)).encode()).hexdigest()


def _name(call: rules.Call) -> str:
    return call.operation.__name__.rpartition(".")[2]


def _cotangent(v: Any) -> Any:
    return jnp.ones(v.shape, v.dtype) if is_float(v) else np.zeros(v.shape, jax.dtypes.float0)


def _arrays(program: Any) -> Iterator[Any]:
    """The constants of a program and of all in it, which its text does not show whole."""
    yield from getattr(program, "consts", ())
    for eqn in program.eqns:
        yield from (v.val for v in eqn.invars if hasattr(v, "val"))
        for part in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            if hasattr(part, "eqns"):
                yield from _arrays(part)
            elif isinstance(part, np.ndarray | jax.Array):
                yield part


def _source() -> str:
    """A hash of funcnet's own files: the body of a primitive is not in the text of a program."""
    digest, folder = hashlib.sha256(), Path(rules.__file__).parent
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder)}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def _rows(file: Path) -> dict[str, list[Any]]:
    """Those in a file; what is anything else is left out."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return {key: row for key, row in found.items() if _is_row(row)} if isinstance(found, dict) else {}


def _is_row(row: Any) -> bool:
    return isinstance(row, list) and len(row) == len(_KINDS) and all(map(isinstance, row, _KINDS))
