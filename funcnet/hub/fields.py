"""The fields of a config.json, each checked as it is read: of its kind and in its range, or an error by name.

Where transformers has a default for a field that is not there, the callers give it. Null is not absent,
unless they say so (`nullable`), where transformers does.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

from funcnet.errors import FuncnetError, StructureError, ValueRangeError

__all__ = [
    "DEEPEST",
    "architecture",
    "chosen",
    "divisor",
    "fixed",
    "flag",
    "id_field",
    "ids",
    "label_fields",
    "labels",
    "nullable",
    "number",
    "pair",
    "said_of",
    "size",
    "table",
    "wrong",
]

DEEPEST = 4096  # layers
_MOST = 2**31 - 1  # of a size
_MISSING: Any = object()


@contextlib.contextmanager
def said_of(where: str) -> Iterator[None]:
    """Errors raised within say where they are from."""
    try:
        yield
    except FuncnetError as error:
        more = {"path": error.path, "expected": error.expected, "actual": error.actual, "hint": error.hint}
        raise type(error)(f"{where}: {error.problem}", **more) from error


def nullable(json: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """The fields without those of `names` that are null."""
    return {name: value for name, value in json.items() if value is not None or name not in names}


def size(
    json: Mapping[str, Any], name: str, default: Any = _MISSING, *, least: int = 1, most: int = _MOST
) -> Any:
    """The field `name`, an integer from `least` to `most`."""
    value = _get(json, name, default)
    if name in json and not (_whole(value) and least <= value <= most):
        raise wrong(json, name, f"an integer from {least} to {most}")
    return value


def number(
    json: Mapping[str, Any],
    name: str,
    default: Any = _MISSING,
    *,
    least: float | int = 0,
    most: float | int = math.inf,
) -> Any:
    """The field `name`, a finite number from `least` to `most`."""
    value = _get(json, name, default)
    if name in json and not (type(value) in (int, float) and least <= value <= most and abs(value) < 1e300):
        raise wrong(json, name, f"a number from {least} to {most}" if most < math.inf else f"≥ {least}")
    return value if value is None else float(value)


def divisor(json: Mapping[str, Any], name: str, whole: str, default: Any = _MISSING) -> Any:
    """The field `name`, which divides the field `whole`."""
    value, total = size(json, name, default), size(json, whole)
    if value is not default and total % value:
        raise wrong(json, name, f"a divisor of {total}     ({whole})")
    return value


def flag(json: Mapping[str, Any], name: str, default: bool) -> bool:
    """The field `name`, true or false."""
    value = _get(json, name, default)
    if not isinstance(value, bool):
        raise wrong(json, name, "true or false")
    return value


def fixed(json: Mapping[str, Any], **only: Any) -> None:
    """Each field that is there has the one value that the net has."""
    for name, value in only.items():
        if json.get(name, value) != value:
            raise _lacking(json, name, repr(value))


def chosen(json: Mapping[str, Any], name: str, values: Mapping[str, Any], default: Any = _MISSING) -> Any:
    """What `values` has for the value of the field `name`."""
    value = _get(json, name, default)
    if not isinstance(value, str) or value not in values:
        raise _lacking(json, name, ", ".join(map(repr, values)))
    return values[value]


def pair(json: Mapping[str, Any], name: str) -> tuple[int, int]:
    """The field `name`, an integer or a list of two, as two integers."""
    value = _get(json, name)
    sides = value if isinstance(value, list) else [value, value]
    if len(sides) != 2 or not all(_whole(side) and 1 <= side <= _MOST for side in sides):
        raise wrong(json, name, "n or [height, width], each 1 or more")
    return sides[0], sides[1]


def table(json: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The field `name`, itself a JSON object; empty where it is null or not there."""
    value = json.get(name)
    if value is not None and not isinstance(value, dict):
        raise wrong(json, name, "an object with fields")
    return value or {}


def architecture(json: Mapping[str, Any], known: Mapping[str, Any], default: str) -> Any:
    """What `known` has for transformers' class in `architectures`, or for `default` where there is none."""
    names = json.get("architectures")
    names = [default] if names in (None, []) else names
    if not isinstance(names, list) or not isinstance(names[0], str):
        raise wrong(json, "architectures", "a list of names")
    if names[0] not in known:
        raise _lacking(json, "architectures", " or ".join(f"[{name!r}]" for name in known))
    return known[names[0]]


def labels(json: Mapping[str, Any]) -> int:
    """How many classes there are; transformers names them all, unless they are its two default ones."""
    if names := table(json, "id2label"):
        return len(names)
    return size(nullable(json, "num_labels"), "num_labels", 2)


def label_fields(classes: int, always: bool) -> dict[str, Any]:
    """The inverse of `labels`, with transformers' names for classes that have none; two need none."""
    names = [f"LABEL_{i}" for i in range(classes)]
    if classes == 2 and not always:
        return {}
    return {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }


def ids(json: Mapping[str, Any], name: str, default: int | None, vocabulary: int) -> tuple[int, ...]:
    """The field `name`, a token's id or a list of them; not those beyond the vocabulary, which never come."""
    value = json.get(name, default)
    several = [] if value is None else value if isinstance(value, list) else [value]
    if not all(map(_whole, several)):
        raise wrong(json, name, "an id or a list of ids")
    return tuple(token for token in several if 0 <= token < vocabulary)


def id_field(ids: tuple[int, ...]) -> int | list[int] | None:
    """The inverse of `ids`."""
    return list(ids) if len(ids) > 1 else ids[0] if ids else None


def wrong(json: Mapping[str, Any], name: str, expected: str) -> ValueRangeError:
    """The error for the field `name`, which is to be `expected`."""
    return ValueRangeError(
        f"{name} is {_say(json[name])}.",
        path=name,
        expected=f"{name}: {expected}",
        actual=f"{name}: {_say(json[name])}",
    )


def _get(json: Mapping[str, Any], name: str, default: Any = _MISSING) -> Any:
    """The field `name`, or `default`; where there is none it must be there."""
    if name not in json and default is _MISSING:
        raise StructureError(
            f"there is no {name!r}.",
            path=name,
            expected=f"the field {name!r}     (model_type {json.get('model_type')!r})",
            actual=f"fields: {', '.join(json)}",
        )
    return json.get(name, default)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _say(value: Any) -> str:
    return "null" if value is None else f"{value!r:.80}"


def _lacking(json: Mapping[str, Any], name: str, expected: str) -> ValueRangeError:
    kind = f"     (model_type {json['model_type']!r})" if "model_type" in json else ""
    return ValueRangeError(
        f"{name} is {_say(json.get(name))}, which the net does not have.",
        path=name,
        expected=f"{name}: {expected}{kind}",
        actual=f"{name}: {_say(json.get(name))}",
    )
