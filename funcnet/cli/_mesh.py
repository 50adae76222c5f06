"""`--mesh data=4,tensor=2 --shard fsdp,tp --distributed`: the devices of a run, from the command line."""

import contextlib
import dataclasses
import math
import os
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import tyro

from funcnet.cli import UsageError

__all__ = ["Devices", "joined", "mesh_of", "rules_of"]

_PRESETS = ("dp", "fsdp", "tp")
_VARIABLES = {  # the first is JAX's own, the others are called so by many
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "processes": "JAX_NUM_PROCESSES",
    "process": "JAX_PROCESS_ID",
}


@dataclasses.dataclass(frozen=True)
class Devices:
    """On which devices a run trains.

    Attributes:
        mesh: train on all devices, data=4 or data=4,tensor=2: each batch is split over data. By default one
            device; of several processes data over all.
        shard: what is split of the parameters: dp (nothing), fsdp (over data), tp (over tensor), or several,
            fsdp,tp.
        distributed: this is one of several processes, each with the same command. Slurm, Open MPI, Kubernetes
            and TPU pods say which one; elsewhere the next three do.
        coordinator: where the processes meet, a port of the first one's host; or JAX_COORDINATOR_ADDRESS.
        processes: how many there are; or JAX_NUM_PROCESSES.
        process: which one this is, from 0; or JAX_PROCESS_ID.
    """

    mesh: Annotated[str | None, tyro.conf.arg(metavar="AXES")] = None
    shard: Annotated[str | None, tyro.conf.arg(metavar="NAMES")] = None
    distributed: bool = False
    coordinator: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None
    processes: int | None = None
    process: int | None = None


@contextlib.contextmanager
def joined(devices: Devices) -> Iterator[None]:
    """Within, this process is one of its run's, if the run has several; only the first one prints.

    To be entered before JAX's backend starts.

    Raises:
        UsageError: it is not said, or found, which process this is; or the others did not come.
    """
    given = {name: getattr(devices, name) for name in _VARIABLES}
    if not devices.distributed:
        if said := [f"--{name}" for name, value in given.items() if value is not None]:
            raise UsageError(f"{', '.join(said)}: of several processes: --distributed")
        yield
        return
    _join({name: _said(name, value) for name, value in given.items()})
    import jax

    with contextlib.ExitStack() as stack:
        if jax.process_index():
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        yield


def _said(name: str, given: Any) -> Any:
    """What an option says, or else its variable; None: neither does."""
    text = os.environ.get(_VARIABLES[name])
    if given is not None or not text:
        return given
    if name == "coordinator":
        return text
    if not text.isdecimal():
        raise UsageError(f"{_VARIABLES[name]}={text} is no number")
    return int(text)


def _join(said: Mapping[str, Any]) -> None:
    """Come to the other processes; what is not said is asked of JAX, which knows a few kinds of cluster."""
    import jax

    coordinator, count, index = said.values()
    if coordinator is not None and not re.fullmatch(r".+:[0-9]+", coordinator):
        raise UsageError(f"--coordinator {coordinator}: HOST:PORT")
    if count is not None and index is not None and not 0 <= index < count:
        raise UsageError(f"--process {index} of --processes {count}: 0 to {count - 1}")
    missing = [f"--{name} ({_VARIABLES[name]})" for name, value in said.items() if value is None]
    # Where all is said a launcher has no say: JAX would give each process that it finds one GPU of its host.
    method = None if missing else "deactivate"
    try:
        jax.distributed.initialize(coordinator, count, index, cluster_detection_method=method)
    except ValueError as error:
        none = "JAX finds no Slurm, Open MPI, Kubernetes or TPU pod here"
        raise UsageError(f"--distributed: {none}: say {', '.join(missing)}") from error
    except RuntimeError as error:  # what it found is not enough, or the others did not come
        raise UsageError(f"--distributed: {str(error).partition(chr(10))[0]}") from error


def mesh_of(text: str | None) -> Any:
    """A mesh by the names of its axes and their sizes; None: none, or of several processes all devices.

    Raises:
        UsageError: it is no mesh, its axes are others than data and tensor, or there are too few devices.
    """
    import jax

    if text is None and jax.process_count() == 1:
        return None
    text = f"data={jax.device_count()}" if text is None else text
    found = [re.fullmatch(r"([a-z]+)=([1-9][0-9]*)", part) for part in text.split(",")]
    names = [match[1] for match in found if match]
    if None in found or len({*names}) < len(names) or not {"data"} <= {*names} <= {"data", "tensor"}:
        raise UsageError(f"--mesh {text}: data=4, or data=4,tensor=2 (funcnet train --help)")
    sizes = [int(match[2]) for match in found if match]
    if math.prod(sizes) != jax.device_count():
        here = "JAX_NUM_CPU_DEVICES=8 in the environment makes eight of a CPU"
        raise UsageError(
            f"--mesh {text} takes {math.prod(sizes)} devices, and there are {jax.device_count()}; {here}"
        )
    # Auto: what the recipes do beside operations, such as cutting images, need not say how it is split.
    types = (jax.sharding.AxisType.Auto,) * len(names)
    return jax.make_mesh(tuple(sizes), tuple(names), axis_types=types)


def rules_of(text: str | None, mesh: Any) -> Mapping[str, Any]:
    """Rules by the names of presets, joined.

    Raises:
        UsageError: there is no such preset, or the mesh lacks its axis.
    """
    from funcnet import shard

    rules: dict[str, Any] = {}
    for name in [] if text is None else text.split(","):
        if mesh is None:
            raise UsageError(f"--shard {text} needs a mesh: --mesh data=4,tensor=2")
        if name not in _PRESETS:
            raise UsageError(f"--shard {text}: there are {', '.join(_PRESETS)}, joined by commas")
        if name == "tp" and "tensor" not in mesh.shape:
            raise UsageError(f"--shard {text}: tp splits over an axis tensor: --mesh data=4,tensor=2")
        rules |= getattr(shard, name.upper())
    return rules
