"""The fields of a config.json: those that a net needs, and those in which it has no choice."""

from collections.abc import Mapping
from typing import Any

from funcnet.errors import StructureError, ValueRangeError, describe

__all__ = ["chosen", "fixed", "need", "pair"]


def need(json: Mapping[str, Any], name: str) -> Any:
    """The field `name`, which must be there."""
    if json.get(name) is None:
        raise StructureError(
            f"config.json has no {name!r}.",
            path=name,
            expected=f"the field {name!r}     (model_type {json.get('model_type')!r})",
            actual=f"fields: {', '.join(json)}",
        )
    return json[name]


def fixed(json: Mapping[str, Any], **only: Any) -> None:
    """Each field that is there has the one value that the net has."""
    for name, value in only.items():
        if json.get(name, value) != value:
            raise ValueRangeError(
                f"config.json: {name} is {json[name]!r}, which the net does not have.",
                path=name,
                expected=f"{name}: {value!r}     (model_type {json.get('model_type')!r})",
                actual=f"{name}: {json[name]!r}",
            )


def chosen(json: Mapping[str, Any], name: str, values: Mapping[str, Any], default: str) -> Any:
    """What `values` has for the value of the field `name`."""
    value = json.get(name, default)
    if value not in values:
        raise ValueRangeError(
            f"config.json: {name} is {value!r}, which the net does not have.",
            path=name,
            expected=f"{name}: {', '.join(map(repr, values))}",
            actual=f"{name}: {value!r}",
        )
    return values[value]


def pair(json: Mapping[str, Any], name: str) -> tuple[int, int]:
    """The field `name`, an integer or a list of two, as two integers."""
    value = need(json, name)
    if isinstance(value, int):
        return value, value
    if isinstance(value, list) and len(value) == 2:
        return value[0], value[1]
    raise ValueRangeError(
        f"config.json: {name} is neither a number nor two.",
        path=name,
        expected=f"{name}: n or [height, width]",
        actual=f"{name}: {describe(value)}",
    )
