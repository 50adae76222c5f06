"""The meshes of so many chips for a decoder, by what `cost` says of each, the fastest first."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

from funcnet.errors import ValueRangeError
from funcnet.nets import transformer
from funcnet.ops import _check
from funcnet.shard.cost import Cost, batch_of, cost, machine_of
from funcnet.shard.layout import FSDP, TP, Rules
from funcnet.shard.machines import Machine

__all__ = ["Plan", "plan"]

_AXES = "stage", "data", "context", "tensor"  # outermost first: what sends least crosses the slowest links
_NEAR = 0.1  # by how much a batch may differ from the one asked for, so that a mesh divides it


class Plan(NamedTuple):
    """A mesh and how a step is run on it.

    Attributes:
        cost: of a step.
        config: the net's, with or without remat.
        rules: for `of`.
        batch: sequences and positions.
        microbatches: of a pipeline: one sequence each.
    """

    cost: Cost
    config: transformer.Config
    rules: Rules
    batch: tuple[int, int]
    microbatches: int


def plan(
    config: transformer.Config,
    chips: int,
    machine: str | Machine,
    batch: tuple[int, int],
    *,
    efficiency: float = 0.6,
    moments: int = 2,
) -> list[Plan]:
    """Every mesh of data, context, tensor and stage whose sizes divide what they split.

    Of each the fastest way that fits: params split over data (FSDP) or whole, experts one by one over data
    or as the rest, with remat or without; where none fits, the smallest. Sequences are rounded to a multiple
    of the data axis, by a tenth at most.

    Args:
        config: of a `transformer`.
        chips: how many; no device is needed.
        machine: as in `cost`.
        batch: sequences and positions of a step.
        efficiency: as in `cost`.
        moments: as in `cost`.

    Returns:
        Those that fit first, then by MFU.

    Raises:
        ValueRangeError: no mesh divides.
    """
    where = "shard.plan"
    _check.config(where, config, transformer.Config)
    chips, machine = _check.positive(where, "chips", chips), machine_of(where, machine)
    n, t = batch_of(where, config, batch)
    efficiency = _check.number(where, "efficiency", efficiency, strict=True)
    moments = _check.positive(where, "moments", moments, least=0)
    found = []
    for mesh, sequences in _meshes(config, chips, n, t):
        ways = []
        for rules in _ways(config):
            for remat in (False, True):
                one = dataclasses.replace(config, remat=remat)
                m = sequences // mesh["data"] if mesh["stage"] > 1 else 1
                rules_ = {**rules, "layers": "stage"}
                try:
                    said = cost(
                        one, mesh, rules_, (sequences, t),
                        machine=machine, microbatches=m, efficiency=efficiency, moments=moments,
                    )  # fmt: skip
                except ValueRangeError:  # a net so small that nothing lies on an axis of the mesh
                    continue
                ways.append(Plan(said, one, rules_, (sequences, t), m))
        found += [min(ways, key=_rank)] if ways else []
    if not found:
        raise ValueRangeError(
            f"{where}: no mesh of {chips} chips divides the batch, the heads and the layers.",
            path="chips",
            expected="a product of: a divisor of the sequences, give or take a tenth, one of the positions, "
            "one of the heads of keys and one of the layers",
            actual=f"chips = {chips}, {n} sequences of {t}",
        )
    return sorted(found, key=_rank)


def _ways(config: transformer.Config) -> list[Rules]:
    """Params split over data, or whole; experts too, one by one, or as the rest is."""
    ways: list[Rules] = [{**TP, **FSDP}, TP]
    return ways if config.experts is None else [*ways, *({**way, "experts": "data"} for way in ways)]


def _rank(one: Plan) -> tuple[bool, float]:
    times: Any = one.cost.times
    return not times.fits, -times.mfu if times.fits else one.cost.held


def _meshes(config: transformer.Config, chips: int, n: int, t: int) -> Iterator[tuple[dict[str, int], int]]:
    """Each mesh, and the sequences of its batch."""
    heads = config.kv_heads or config.heads
    for tensor in _divisors(chips):
        if heads % tensor or config.heads % tensor or (config.d_hidden or 4 * config.d) % tensor:
            continue
        for stage in _divisors(chips // tensor):
            if config.layers % stage:
                continue
            for context in _divisors(chips // (tensor * stage)):
                data = chips // (tensor * stage * context)
                sequences = max(round(n / data), 1) * data
                if context > 1 and stage > 1:
                    continue  # within a pipeline positions cannot be split
                if t % context == 0 and abs(sequences - n) <= _NEAR * n:
                    yield dict(zip(_AXES, (stage, data, context, tensor), strict=True)), sequences


def _divisors(n: int) -> list[int]:
    small = [i for i in range(1, int(n**0.5) + 1) if n % i == 0]
    return sorted({*small, *(n // i for i in small)})
