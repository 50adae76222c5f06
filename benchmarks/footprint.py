"""What a framework weighs: import time, installed size, number of dependencies.

Imports are timed as whole processes, from outside, in turn. Sizes and dependencies are read from the metadata
of what is installed here. Target of the project: `import funcnet` at most 1.15 times `import jax`.
"""

import importlib.util
import json
import resource
import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from functools import partial
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks import harness
from benchmarks.harness import Table

# What a user installs, and what the first line of a program imports. Haiku calls for JAX by an extra only.
PEERS = {
    "jax": "import jax",
    "funcnet": "import funcnet",
    "flax": "from flax import nnx",
    "equinox": "import equinox",
    "dm-haiku[jax]": "import haiku",
    "torch": "import torch",
}
USED = (
    "import funcnet as fn; fn.linear.apply, fn.attention.apply, fn.nets.transformer.apply, fn.train.make_step"
)
ROUNDS = 5  # half a minute of imports on two cores


def run(scale: harness.Scale) -> list[Table]:
    """Two tables: import time, and installed size with the dependencies."""
    return [imports(1 if scale.name == "smoke" else min(scale.rounds, ROUNDS)), installed()]


def imports(rounds: int) -> Table:
    """Wall and processor time of one process per program and round."""
    programs = {code: code for name, code in PEERS.items() if _is_installed(name)}
    programs |= {"import funcnet, and its modules used": USED, "(Python alone)": "pass"}
    rows = timed(programs, rounds)
    for name in PEERS:
        if not _is_installed(name):
            rows.append({"program": PEERS[name], "wall time": "not installed"})
    note = (
        "Ratios are to `import jax`. funcnet loads its modules, and JAX, where they are first used: "
        f"the row of that is `{USED}`."
    )
    return Table("Start, import and exit of a process", rows, note)


def timed(programs: Mapping[str, str], rounds: int) -> list[dict[str, object]]:
    """A row per program, of that name: wall and processor time of whole processes, taken in turn."""
    if rounds > 1:
        for code in programs.values():
            _process_seconds(code)  # byte code compiled, files in the page cache
    samplers = {name: partial(_process_seconds, code) for name, code in programs.items()}
    samples = harness.interleave(samplers, rounds)
    wall, cpu = (
        harness.summarise([{name: [s[i] for s in taken] for name, taken in samples.items()}]) for i in (0, 1)
    )
    return [{"program": name, "wall time": wall[name], "processor time": cpu[name]} for name in programs]


def installed() -> Table:
    """Size on disk and dependencies, alone and beyond what JAX brings."""
    jax = closure("jax")
    note = (
        "MB: 10⁶ bytes of the files that a distribution lists, without byte code; of an editable one, of its "
        "package. Required: what an installer fetches besides, as these versions declare it, without extras "
        "(but dm-haiku leaves JAX to one). Beyond JAX's: what is new to a project that has JAX."
    )
    return Table("Installed", [_weighed(name, jax) for name in PEERS], note)


def closure(requirement: str) -> dict[str, int | None]:
    """The distributions that a requirement installs, itself first: name to bytes, None if one is not here."""
    sizes: dict[str, int | None] = {}
    pending, seen = [Requirement(requirement)], set()
    while pending:
        needed = pending.pop(0)
        name, extras = canonicalize_name(needed.name), frozenset(needed.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            sizes[name] = None
            continue
        sizes[name] = size(found)
        pending += _required(found, extras)
    return sizes


def size(found: metadata.Distribution) -> int:
    """Bytes of a distribution's files, without byte code."""
    origin = json.loads(found.read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable"):
        spec = importlib.util.find_spec(found.name)
        folders = spec.submodule_search_locations if spec else None
        paths = [path for folder in folders or () for path in Path(folder).rglob("*")]
    else:
        paths = [Path(str(file.locate())) for file in found.files or ()]
    return sum(path.stat().st_size for path in paths if path.suffix != ".pyc" and path.is_file())


def _required(found: metadata.Distribution, extras: Collection[str]) -> list[Requirement]:
    """What a distribution requires on this machine, with these of its extras."""
    lines = [Requirement(line) for line in found.requires or ()]
    asked = [{"extra": extra} for extra in ("", *extras)]
    return [line for line in lines if line.marker is None or any(map(line.marker.evaluate, asked))]


def _weighed(name: str, jax: Collection[str]) -> dict[str, object]:
    if not _is_installed(name):
        return {"distribution": name, "version": "not installed"}
    requirement = Requirement(name)
    found, sizes = metadata.distribution(requirement.name), closure(name)
    direct = {canonicalize_name(line.name) for line in _required(found, requirement.extras)}
    beyond = [other for other in list(sizes)[1:] if other not in jax]
    megabytes = lambda names: sum(sizes[other] or 0 for other in names) / 1e6
    return {
        "distribution": name,
        "version": found.version,
        "itself, MB": megabytes(list(sizes)[:1]),
        "with all it requires, MB": megabytes(sizes),
        "required directly": len(direct),
        "required in all": len(sizes) - 1,
        "required beyond JAX's": len(beyond),
        "these, MB": megabytes(beyond),
        "of these not here": ", ".join(other for other, bytes_ in sizes.items() if bytes_ is None),
    }


def _is_installed(name: str) -> bool:
    return harness.installed(Requirement(name).name)


def _process_seconds(code: str) -> tuple[float, float]:
    """Wall time and processor time of one process."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
