"""Run folders: made, described in config.json, and read again.

params.safetensors   the parameters, checksummed
config.json          what was trained, on what, with which versions
metrics.jsonl        one line per step
checkpoints/         all that a run carries, so that it can go on
report.html          the run as one page
curves.png           loss and accuracy
"""

import builtins
import contextlib
import dataclasses
import itertools
import json
import time
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_origin, get_type_hints

import jax

from funcnet import store, tasks
from funcnet.analysis import lowrank
from funcnet.errors import FileFormatError, ValueRangeError, shorten
from funcnet.nets import transformer
from funcnet.tasks._task import Saved, Task

__all__ = [
    "again",
    "begun",
    "create",
    "described",
    "facts",
    "flat",
    "identity",
    "keys",
    "net",
    "ranks",
    "read",
    "read_config",
    "same",
    "shapes",
    "start",
    "write_config",
]

_VERSION = 1
_OPTIONS = {"options": "Options", "training": "Training"}  # of a task, by their names in config.json
_LATER = {transformer.Config: ("head", "classes", "stop")}  # fields that the first files do not have


def create(folder: Path | None, task: str, config: Any, **facts: Any) -> Path:
    """Make a run folder, `folder` or runs/TASK-TIME, and write its config.json.

    The file is also the claim: of two runs that begin at the same moment, one has created it, and the other
    takes another name, or is refused.

    Raises:
        ValueRangeError: `folder` has something in it.
        OSError: the folder cannot be made or written to.
    """
    name = f"{task}-{time.strftime('%Y%m%d-%H%M%S')}"
    numbered = (Path("runs", name if i == 1 else f"{name}-{i}") for i in itertools.count(1))
    for path in [folder] if folder else numbered:
        path.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            if not any(path.iterdir()):
                write_config(path, task, config, **facts)
                return path
    raise ValueRangeError(
        f"the folder {folder} is not empty.", path="out", expected="a folder that is new or empty"
    )


def write_config(folder: Path, task: str, config: Any, **facts: Any) -> None:
    """Write config.json: the task, its model's config, and whatever else is to be known of the run.

    Raises:
        FileExistsError: there is one.
        OSError: it cannot be written, and there is none.
    """
    path = folder / "config.json"
    content = described(task, config, **facts)
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with open(path, "xb") as file:
        try:
            # A path need not be Unicode: what stands for its bytes is escaped as JSON would escape it.
            file.write(text.encode("utf-8", "backslashreplace"))
            file.flush()
        except OSError:
            path.unlink()
            raise


def described(task: str, config: Any, **facts: Any) -> dict[str, Any]:
    """What config.json says, as JSON gives it back."""
    content = {"version": _VERSION, "task": task, "model": _plain(config), **facts}
    return json.loads(json.dumps(content, default=str, allow_nan=False))


def identity(described: Mapping[str, Any]) -> dict[str, Any]:
    """The part of it by which two runs are one: all that changes a number, but versions."""
    return {name: value for name, value in flat(described).items() if not _may_change(name)}


def begun(folder: Path) -> bool:
    """Whether a folder has a run in it; a new or an empty one has not.

    Raises:
        FileNotFoundError: it has other things in it.
    """
    if (folder / "config.json").exists():
        return True
    if folder.is_dir() and any(folder.iterdir()):
        raise FileNotFoundError(f"{folder} is no run folder: it has no config.json")
    return False


def same(folder: Path, now: Mapping[str, Any]) -> list[str]:
    """Compare a run's config.json with what would be written now.

    Returns:
        What differs and may, in a line each: versions.

    Raises:
        ValueRangeError: anything else differs; all that does is listed.
        FileFormatError, OSError: from `read_config`.
    """
    before = flat(facts(folder))
    after = flat(now)
    pairs = {name: (before.get(name), after.get(name)) for name in {**before, **after}}
    differ = {name: (was, now) for name, (was, now) in pairs.items() if was != now}
    changed = {name: pair for name, pair in differ.items() if not _may_change(name)}
    if changed:
        lines = "; ".join(
            f"{name} was {_short(was)}, now {_short(now)}" for name, (was, now) in changed.items()
        )
        raise ValueRangeError(
            f"{folder} holds a run with other options: {lines}.",
            path="resume",
            hint="give the options that the run was begun with, or another folder",
        )
    return [
        f"note: the run began with {name.partition('.')[2]} {_short(was)}, and goes on with {_short(now)}"
        for name, (was, now) in differ.items()
        if name.startswith("versions.")
    ]


def _may_change(name: str) -> bool:
    return name.startswith("versions.") or name in ("training.checkpoint_every", "training.tensorboard")


def flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested facts by their paths."""
    found: dict[str, Any] = {}
    for name, value in facts.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def _short(value: Any) -> str:
    return shorten(json.dumps(value) if isinstance(value, list) else value)


def _plain(config: Any) -> dict[str, Any]:
    """The fields of a Config; a Config among them as its own fields and its "type"."""
    fields = {field.name: getattr(config, field.name) for field in _stated(type(config))}
    return {
        name: {"type": type(value).__name__, **_plain(value)} if dataclasses.is_dataclass(value) else value
        for name, value in fields.items()
    }


def read_config(folder: Path) -> tuple[str, Any, dict[str, Any]]:
    """The task, the model's config and the facts about the data, from config.json.

    Raises:
        FileFormatError: it is not what `write_config` writes.
        OSError: it cannot be read.
    """
    return _understood(folder, _content(folder))


def facts(folder: Path) -> dict[str, Any]:
    """All that config.json says.

    Raises:
        FileFormatError, OSError: as `read_config`.
    """
    content = _content(folder)
    _understood(folder, content)
    return content


def again(folder: Path) -> Task:
    """The task of a run, as it was prepared, with its data.

    Raises:
        FileFormatError, OSError: as `read_config`; or the data are not there.
        ValueRangeError: an option is out of range, or the data are others than those of the run.
    """
    content = facts(folder)
    module = getattr(tasks, content["task"])
    given = [
        _config(getattr(module, kind), content.get(name, {}), folder / "config.json", f"{name} are")
        for name, kind in _OPTIONS.items()
    ]
    task = module.prepare(*given)
    was, now = (data.get("sha256") for data in (content["data"], task.data))
    if was != now:
        raise ValueRangeError(
            f"{folder} was trained on other data than there are now.",
            path="data",
            expected=f"SHA-256 {was}",
            actual=f"{now}",
        )
    return task


def ranks(folder: Path) -> dict[str, int]:
    """Those of the maps that `funcnet compress` has factored; none in other runs.

    Raises:
        FileFormatError, OSError: as `read_config`.
    """
    return _ranks(folder, facts(folder))


def _ranks(folder: Path, content: Mapping[str, Any]) -> dict[str, int]:
    found = content.get("ranks", {})
    if not isinstance(found, dict) or not all(type(rank) is int for rank in found.values()):
        path = folder / "config.json"
        raise FileFormatError(f"{path}: the ranks are no whole numbers by name.", path=str(path))
    return found


def shapes(folder: Path) -> Any:
    """The params of a run as `jax.ShapeDtypeStruct`.

    Raises:
        FileFormatError, OSError: as `read_config`.
        StructureError, ValueRangeError: its ranks are not those of its net.
    """
    content = _content(folder)
    task, config, _ = _understood(folder, content)
    return _shapes(task, config, _ranks(folder, content))


def _shapes(task: str, config: Any, ranks: Mapping[str, int]) -> Any:
    module: ModuleType = getattr(tasks, task).NET
    whole = jax.eval_shape(lambda: module.init(jax.random.key(0), config))
    return lowrank.factored(whole, module.specs(config), ranks)


def net(folder: Path) -> Any:
    """``apply`` and ``specs`` of a run's net, of the maps that it has factored too.

    Raises:
        FileFormatError, OSError: as `read_config`.
    """
    content = facts(folder)
    module, factored = getattr(tasks, content["task"]).NET, _ranks(folder, content)
    return types.SimpleNamespace(
        apply=module.apply, specs=lambda config: lowrank.specs(module.specs(config), factored)
    )


def _content(folder: Path) -> Any:
    """What config.json holds."""
    path = folder / "config.json"
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no run folder: there is no such folder")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{folder} is no run folder: it has no config.json") from error
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path}: this is no JSON: {error}.", path=str(path)) from error


def _understood(folder: Path, content: Any) -> tuple[str, Any, dict[str, Any]]:
    """The parts of it, if it is what `write_config` writes."""
    path = folder / "config.json"
    match content:
        case {"version": int(version)} if version > _VERSION:
            raise FileFormatError(
                f"{path}: a later funcnet wrote this.", path=str(path), hint="upgrade funcnet"
            )
        case {"version": 1, "task": str(task), "model": dict(model), "data": dict(data)} if (
            task in tasks.TASKS
        ):
            net: ModuleType = getattr(tasks, task).NET
            return task, _config(net.Config, model, path), data
    raise FileFormatError(
        f"{path}: this does not describe a run.",
        path=str(path),
        expected=f'"version", "task" (one of {", ".join(tasks.TASKS)}), "model" and "data"',
    )


def _config(kind: type, values: Mapping[str, Any], path: Path, what: str = "the model's config is") -> Any:
    """A Config from JSON, every field there and of its type."""
    every = get_type_hints(kind)
    hints = {
        f.name: every[f.name] for f in _stated(kind) if f.name in values or f.name not in _LATER.get(kind, ())
    }
    fields, wrong = {}, set(values)
    for name, hint in hints.items():
        with contextlib.suppress(ValueError):
            fields[name] = _typed(values.get(name, ...), hint)
            wrong.discard(name)
    if wrong := sorted(wrong | (hints.keys() - fields.keys())):
        raise FileFormatError(
            f"{path}: {what} wrong in {', '.join(wrong)}.",
            path=what.split()[0] if what.endswith("are") else "model",
            expected=", ".join(f"{name}: {getattr(hint, '__name__', hint)}" for name, hint in hints.items()),
            actual=", ".join(f"{name}: {value!r:.40}" for name, value in values.items()),
        )
    return kind(**fields)


def _stated(kind: type) -> list[dataclasses.Field]:
    """The fields of a Config that belong into config.json: those that tell two Configs apart."""
    return [field for field in dataclasses.fields(kind) if field.compare]


def _typed(value: Any, hint: Any) -> Any:
    """A value from JSON as its annotation has it: a list as a tuple, a dict as a dataclass.

    Numbers in a tuple are sizes, and positive.

    Raises:
        ValueError: it does not fit.
    """
    match get_origin(hint) or hint:
        case kind if dataclasses.is_dataclass(kind) and isinstance(value, dict):
            hints = get_type_hints(kind)
            if value.keys() == {"type", *hints} and value["type"] == hint.__name__:
                return hint(**{name: _typed(value[name], hints[name]) for name in hints})
        case types.UnionType | typing.Union:
            for one in get_args(hint):
                with contextlib.suppress(ValueError):
                    return _typed(value, one)
        case typing.Literal if isinstance(value, str) and value in get_args(hint):
            return value
        case builtins.tuple if isinstance(value, list):
            sizes = get_args(hint)
            sizes = sizes[:1] * len(value) if sizes[-1] is Ellipsis else sizes
            if len(value) == len(sizes) and all(type(v) is not int or v > 0 for v in value):
                return tuple(map(_typed, value, sizes))
        case kind if kind is Path and isinstance(value, str):
            return Path(value)
        case builtins.float if type(value) in (int, float):
            return value
        case kind if type(value) is kind and kind in (int, bool, str, types.NoneType):
            return value
    raise ValueError


def keys(seed: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The keys of a run: of its first parameters, of what verifies it, and of the training."""
    init, check, train = jax.random.split(jax.random.key(seed), 3)
    return init, check, train


def start(folder: Path) -> Any:
    """The parameters that a run began with, drawn again; None if that cannot be.

    Its config.json has no seed, or it is a compressed one, which began with those of another net.

    Raises:
        FileFormatError, OSError: as `read_config`.
    """
    content = _content(folder)
    task, config, _ = _understood(folder, content)
    seed = content.get("seed")
    if type(seed) is not int or _ranks(folder, content):
        return None
    return getattr(tasks, task).NET.init(keys(seed)[0], config)


def read(folder: Path) -> Saved:
    """The model in a run folder.

    Raises:
        FileFormatError, StructureError: a file is damaged, or the parameters are not those of the config.
        OSError: a file cannot be read.
    """
    content = _content(folder)
    task, config, data = _understood(folder, content)
    path = folder / "params.safetensors"
    if not path.exists():
        raise FileNotFoundError(f"{folder} has no params.safetensors: was its training cut short?")
    return Saved(task, config, store.load(path, like=_shapes(task, config, _ranks(folder, content))), data)
