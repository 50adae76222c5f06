"""What a command keeps for the next one, in a folder of the user's: programs, and which formulas are right.

Programs are JAX's persistent cache, whose settings JAX reads when it is imported. One that was compiled for
another processor may crash, and JAX does not look, so that the folder is named by the processor, jaxlib and
XLA_FLAGS.
"""

import contextlib
import hashlib
import os
import platform
import sys
from collections.abc import MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING

from funcnet import backend

if TYPE_CHECKING:
    from funcnet.verifier.memory import Memory

__all__ = ["LIMIT", "folder", "keep", "memory", "state"]

LIMIT = 500_000_000  # bytes, of all folders together, when a command begins
_SWITCH, _JAX = "FUNCNET_CACHE", "JAX_COMPILATION_CACHE_DIR"


def keep(environment: MutableMapping[str, str] = os.environ) -> None:
    """Have JAX, which is not imported yet, keep every program that it compiles, and find those of before.

    Nothing happens where FUNCNET_CACHE=off, where JAX_COMPILATION_CACHE_DIR names a folder of the user's, and
    where the folder cannot be written.
    """
    if environment.get(_SWITCH) == "off" or _JAX in environment:
        return
    ours = folder(environment)
    try:
        ours.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return
    if not os.access(ours, os.W_OK | os.X_OK):
        return
    _remove_oldest(ours.parent)
    environment[_JAX] = str(ours)
    environment.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    environment.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    if backend.jaxlib_version() == "0.10.1":  # it warns of every program, at length, that it may not fit
        environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def folder(environment: MutableMapping[str, str] = os.environ) -> Path:
    """Where the programs of this processor, jaxlib and XLA_FLAGS are."""
    facts = "\n".join([_processor(), backend.jaxlib_version(), environment.get("XLA_FLAGS", "")])
    return _root(environment) / hashlib.sha256(facts.encode()).hexdigest()[:16]


def memory(read: bool, environment: MutableMapping[str, str] = os.environ) -> "Memory | None":
    """What was found right on this machine, by this software; None where FUNCNET_CACHE=off."""
    from funcnet.verifier.memory import Memory

    if environment.get(_SWITCH) == "off":
        return None
    facts = {**backend.facts(), "processor": _processor()}
    return Memory(_root(environment).with_name("verified.json"), facts, read=read)


def state(environment: MutableMapping[str, str] = os.environ) -> str:
    """In one line: where programs are kept, how many there are, and how to do without."""
    if environment.get(_SWITCH) == "off":
        return f"off: {_SWITCH}=off"
    used = environment.get(_JAX)
    if used is None:
        return f"off: {folder(environment)} cannot be written"
    if used != str(folder(environment)):
        return f"left to you: {_JAX}={used}"
    sizes = [size for _, size, _ in _files(Path(used))]
    return f"{len(sizes)} programs, {sum(sizes) / 1e6:.0f} MB in {used} ({_SWITCH}=off: none)"


def _root(environment: MutableMapping[str, str]) -> Path:
    default = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    return Path(environment.get("XDG_CACHE_HOME") or default) / "funcnet" / "programs"


def _processor() -> str:
    """What a processor calls itself, with what it can do."""
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    told = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
    return "\n".join([platform.machine(), platform.processor(), *sorted(told)])


def _remove_oldest(root: Path) -> None:
    """Remove what was used longest ago, until no more than LIMIT bytes are left."""
    files = sorted(_files(root))
    over = sum(size for _, size, _ in files) - LIMIT
    for _, size, path in files:
        if over <= 0:
            break
        with contextlib.suppress(OSError):
            path.unlink()
        over -= size


def _files(root: Path) -> list[tuple[float, int, Path]]:
    """The programs below: when each was last used, its size, where it is."""
    found = []
    for path in root.rglob("*-cache"):
        with contextlib.suppress(OSError):  # another command has removed it
            stat = path.stat()
            found.append((max(stat.st_atime, stat.st_mtime), stat.st_size, path))
    return found
