"""`funcnet plan MODEL --chips N --kind KIND`: meshes of so many chips for a decoder, by formula."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from funcnet.cli import UsageError, choice
from funcnet.cli._options import files, parse
from funcnet.cli._text import heading, table

if TYPE_CHECKING:
    from funcnet.shard import Plan

__all__ = ["run"]

_COMMAND = "funcnet plan"


@dataclasses.dataclass(frozen=True)
class _Options:
    """Search the meshes of data, context, tensor and stage that divide a decoder and its batch.

    Step times come from the formulas of fn.shard.cost and the figures of the makers. Bytes were compared
    with compiled programs; no time was measured on real links.

    Args:
        model: a name, llama3-8b or gpt2-124m; or a config.json of a pretrained model, its folder, or a run's.
        chips: how many.
        kind: of chip: v5e, v5p, v6e, h100, h200, b200.
        tokens_per_step: the sequences of a step are the nearest number, and of a mesh the nearest that its
            data axis divides, a tenth more or less at most.
        length: positions of a sequence; the model's context if not said.
        dtype: to compute in; params, gradients and the state of the optimizer are in float32.
        efficiency: of products, as a share of the peak: an assumption, not a measurement.
        moments: copies of the params that the optimizer keeps: 2 of adamw, 1 of lion.
        experts: a mixture of so many in each block, each as large as the model's hidden layer.
        experts_per_token: to which a token goes.
        capacity: how many times its even share of a sequence's tokens an expert takes; all, if not said.
        top: how many meshes.
        json: write all meshes into this file.
    """

    model: Annotated[str, tyro.conf.Positional]
    chips: int
    kind: str
    tokens_per_step: float = 4e6
    length: int | None = None
    dtype: str = "bfloat16"
    efficiency: float = 0.6
    moments: int = 2
    experts: int | None = None
    experts_per_token: int = 2
    capacity: float | None = None
    top: int = 10
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None


def run(args: list[str]) -> int:
    """The command."""
    asked = parse(_Options, args, _COMMAND)
    files(asked.json, suffixes=(".json",), command=_COMMAND)
    config = _config(asked.model)

    from funcnet import shard
    from funcnet.nets import transformer
    from funcnet.ops import _check

    choice("kind", asked.kind, tuple(shard.MACHINES), f"{_COMMAND} --help")
    top, length = _check.positive("plan", "top", asked.top), asked.length or getattr(config, "context", 1)
    tokens = _check.number("plan", "tokens_per_step", asked.tokens_per_step, least=1.0)
    if hasattr(config, "dtype"):
        config = dataclasses.replace(config, dtype=_check.dtype("plan", "dtype", asked.dtype))
    if asked.experts is not None and isinstance(config, transformer.Config):
        names = "experts", "experts_per_token", "capacity"
        config = dataclasses.replace(config, **{name: getattr(asked, name) for name in names})
    sequences = max(round(tokens / length), 1)
    batch, options = (sequences, length), {"efficiency": asked.efficiency, "moments": asked.moments}
    found = shard.plan(config, asked.chips, asked.kind, batch, **options)
    show(asked, sequences, length, found[:top])
    if asked.json is not None:
        content = {
            "model": asked.model,
            "kind": asked.kind,
            "chips": asked.chips,
            "meshes": [_row(p) for p in found],
        }
        asked.json.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", "utf-8")
        print(f"all {len(found)} meshes are in {asked.json}")
    return 0


def show(asked: _Options, sequences: int, length: int, found: list["Plan"]) -> None:
    """Print the best meshes, and what is not known of them."""
    heading(f"{asked.model}, {sequences} sequences of {length:,} tokens, on {asked.chips:,} {asked.kind}")
    columns = [
        "data",
        "context",
        "tensor",
        "stage",
        "params",
        "remat",
        "batch",
        "step",
        "MFU",
        "memory",
        "bound by",
    ]
    rows = []
    for one in found:
        row = _row(one)
        sizes = [str(row["mesh"][axis]) for axis in columns[:4]]
        memory = f"{row['held'] / 1e9:.1f} GB" + ("" if row["fits"] else ", too much")
        rows.append(
            [
                *sizes, row["params"], "yes" if row["remat"] else "no", str(one.batch[0]),
                f"{row['step']:.3f} s", f"{row['mfu']:.3f}", memory, row["bound"],
            ]
        )  # fmt: skip
    table(columns, rows, [*columns[:4], "batch", "step", "MFU"])

    from funcnet.shard import MACHINES

    print(
        f"Estimates: products at {asked.efficiency:g} of the peak (assumed), links and memory at figures of\n"
        f"the makers ({MACHINES[asked.kind].source}).\nNo step was measured on real links."
    )


def _row(one: "Plan") -> dict[str, Any]:
    times: Any = one.cost.times
    return {
        "mesh": dict(one.cost.mesh),
        "params": ("split" if "d" in one.rules else "whole")
        + (", experts apart" if "experts" in one.rules else ""),
        "remat": one.config.remat,
        "sequences": one.batch[0],
        "microbatches": one.microbatches,
        "step": times.step,
        "mfu": times.mfu,
        "held": one.cost.held,
        "fits": times.fits,
        "bound": times.bound,
        "bubble": one.cost.bubble,
        "sent": [sent._asdict() for sent in one.cost.sent],
    }


def _config(model: str) -> Any:
    """The Config of a known model, of a config.json, or of a run."""
    from funcnet.nets.transformer import PRESETS

    if model in PRESETS:
        return PRESETS[model]
    if not Path(model).exists():
        raise UsageError(f"{model!r} is neither a model ({', '.join(PRESETS)}) nor a file or folder")
    from funcnet import hub
    from funcnet.tasks import _run

    folder = Path(model)
    if folder.is_dir() and _is_run(folder):
        return _run.read_config(folder)[1]
    return hub.config(folder)


def _is_run(folder: Path) -> bool:
    try:
        return "task" in json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
