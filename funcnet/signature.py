"""How a loss is called, read off its signature: in one place for all that call one."""

import inspect
from collections.abc import Mapping, Sequence
from inspect import Parameter
from typing import Any

from funcnet.errors import DTypeError, StructureError, describe

__all__ = ["call", "check", "passed"]


def call(where: str, loss: Any, params: Any, model_state: Any, batch: Any, key: Any) -> Any:
    """`loss(params, batch, key)`, with `model_state` after `params` unless it is None.

    The key is left out if the loss takes none. It goes to the parameter after `batch`, if that has no
    default, or None, or is called "key"; else to one called "key" that has no default, or None. (With
    another default a parameter is an option of the loss, or was bound by functools.partial.)

    Raises:
        DTypeError: `loss` is no function.
        StructureError: it takes other arguments.
    """
    args = {"params": params} | ({} if model_state is None else {"model_state": model_state})
    return passed(where, "loss", loss, args | {"batch": batch}, key)


def passed(where: str, path: str, function: Any, args: Mapping[str, Any], key: Any) -> Any:
    """`function(*args)` by the names of the arguments, with the key where it takes one; `path` is its name.

    Raises:
        DTypeError, StructureError: as in `call`.
    """
    match check(where, path, function, [*args, "key"]):
        case "position":
            return function(*args.values(), key)
        case "keyword":
            return function(*args.values(), key=key)
    return function(*args.values())


def check(where: str, path: str, function: Any, names: Sequence[str]) -> str | None:
    """Whether a function takes arguments that are called so; a "key" at their end may be missing.

    Returns:
        How the key is passed: by "position", by "keyword", or not at all, None.

    Raises:
        DTypeError, StructureError: as in `call`.
    """
    keyed = names[-1] == "key"
    args = names[:-1] if keyed else names
    forms = [f"{path}({', '.join(form)})" for form in ([args, names] if keyed else [args])]
    if not callable(function):
        raise DTypeError(
            f"{where}: {path} is not a function.",
            path=path,
            expected=" or ".join(forms),
            actual=describe(function),
        )
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # it is not written in Python, and does not say
        return "position" if keyed else None
    parameters = signature.parameters
    how = _key(parameters, len(args)) if keyed else None
    positional = names if how == "position" else args
    # A name at the wrong place tells of arguments in another order, loss(params, key, batch), and of a state
    # that is expected and not there, loss(params, state, batch): both would be called without a word.
    pairs = zip(parameters, positional, strict=False)
    told = ("key", "model_state", *(name for name in names if name == "batch"))
    swapped = any(name in told and given != name for name, given in pairs)
    try:
        signature.bind(*positional, **({"key": None} if how == "keyword" else {}))
        if not swapped:
            return how
    except TypeError:
        pass
    hint, own = None, [*parameters]
    stateful = "model_state" in own or (own[2:3] == ["batch"] and own[1] != "key")
    if stateful and "model_state" not in names:
        hint = "this run has no model_state: give it the one that the function takes"
    elif "key" in parameters and not keyed:
        hint = f"no key is given here: bind one, functools.partial({path}, key=...)"
    stars = {Parameter.VAR_POSITIONAL: "*", Parameter.VAR_KEYWORD: "**"}
    raise StructureError(
        f"{where}: {path} does not take the arguments that it is given.",
        path=path,
        expected=" or ".join(forms),
        actual=f"{path}({', '.join(stars.get(p.kind, '') + p.name for p in parameters.values())})",
        hint=hint,
    )


def _key(parameters: Mapping[str, Parameter], place: int) -> str | None:
    """How the key is passed to a function, after `place` arguments."""

    def waits(parameter: Parameter) -> bool:
        return parameter.default is Parameter.empty or parameter.default is None

    kinds = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    positional = [parameter for parameter in parameters.values() if parameter.kind in kinds]
    if len(positional) > place and (positional[place].name == "key" or waits(positional[place])):
        return "position"
    key = parameters.get("key")
    if key and key not in positional[:place] and key.kind is not Parameter.POSITIONAL_ONLY and waits(key):
        return "keyword"
    rest = any(parameter.kind is Parameter.VAR_POSITIONAL for parameter in parameters.values())
    return "position" if rest and len(positional) <= place else None
