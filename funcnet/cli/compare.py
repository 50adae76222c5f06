"""`funcnet compare RUN RUN ...`: how runs differ, and which of them is best."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import tyro

from funcnet.cli import UsageError
from funcnet.cli._options import files, parse
from funcnet.cli._text import duration, heading, table

if TYPE_CHECKING:
    from funcnet.cli._page import Panel
    from funcnet.train.history import History

__all__ = ["run"]

_CURVES = ("loss", "accuracy", "eval_loss", "eval_accuracy")


class Runs(NamedTuple):
    """What is asked for."""

    folders: tuple[Path, ...]
    by: str
    out: tuple[Path, ...]


class Compared(NamedTuple):
    """A run folder, read."""

    name: str
    task: str
    facts: dict[str, Any]
    history: "History"


def _options(
    folders: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN", name="RUN")],
    by: Annotated[str, tyro.conf.arg(metavar="NAME")] = "eval_loss",
    out: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FILE")] = (),
) -> Runs:
    """Compare runs of one task: their scores, their configs, and which is best at equal steps and equal time.

    Args:
        folders: two run folders or more, finished or not.
        by: what is compared, a name of metrics.jsonl; the smallest is best if "loss" is in the name, else the
            largest.
        out: a picture of the curves, .png, or a page, .html; give it twice for both.
    """
    return Runs(folders, by, out)


def run(args: list[str]) -> int:
    """The command."""
    asked = parse(_options, args, "funcnet compare")
    if len(asked.folders) < 2:
        raise UsageError("compare takes two runs or more: RUN RUN ... (funcnet compare --help)")
    files(*asked.out, suffixes=(".png", ".html"), command="funcnet compare")
    runs = _read(asked.folders)
    missing = [run.name for run in runs if not len(run.history.column(asked.by)[0])]
    if missing:
        names = dict.fromkeys(name for run in runs for name in run.history.names())
        raise UsageError(f"no {asked.by!r} in {', '.join(missing)}: recorded are {', '.join(names)}")
    scores = _scores(runs, asked.by)
    heading(f"{runs[0].task}, by {asked.by.replace('_', ' ')}")
    table(*scores)
    differences = _differences(runs)
    heading("\nwhat differs" if differences[1] else "\nnothing differs in their configs")
    if differences[1]:
        table(*differences)
    best = _best(runs, asked.by)
    print()
    print("\n".join(best))
    for path in asked.out:
        if path.suffix == ".png":
            _picture(path, runs)
        else:
            path.write_text(_html(runs, asked.by, scores, differences, best), "utf-8", "backslashreplace")
        print(f"the curves are in {path}")
    return 0


def _read(folders: Sequence[Path]) -> list[Compared]:
    """The runs, under the shortest names that tell them apart.

    Raises:
        UsageError: one is given twice, their tasks differ, or one has recorded nothing yet.
        FileFormatError, OSError: one is no run folder, or damaged.
    """
    from funcnet.tasks import _run
    from funcnet.train.history import History

    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UsageError("one run is given twice (funcnet compare --help)")
    short = [folder.resolve().name for folder in folders]
    names = short if len(set(short)) == len(short) else [str(folder) for folder in folders]
    runs = []
    for name, folder in zip(names, folders, strict=True):
        facts = _run.facts(folder)
        log = folder / "metrics.jsonl"
        history = History.read(log) if log.exists() else History()
        if not len(history):
            raise UsageError(f"{folder} has no steps in its metrics.jsonl yet")
        runs.append(Compared(name, facts["task"], facts, history))
    if len(tasks := {run.task for run in runs}) > 1:
        raise UsageError(f"these are runs of different tasks: {', '.join(sorted(tasks))}")
    return runs


Table = tuple[list[str], list[list[str]], list[str]]


def _scores(runs: Sequence[Compared], by: str) -> Table:
    """One row per run: how far it came, its last and its best scores, its speed."""
    names = [name for name in ("eval_loss", "eval_accuracy") if name != by]
    shown = [name for name in (by, *names) if any(len(run.history.column(name)[0]) for run in runs)]
    columns = ["run", "steps", "time", *(name.replace("_", " ") for name in shown), f"best {by}", "steps/s"]
    columns = [column.replace("_", " ") for column in columns]
    rows = []
    for run in runs:
        steps, values = run.history.column(by)
        best = _first_best(values, by)
        last = run.history[-1]
        rows.append(
            [
                run.name,
                f"{int(last['step']):,}",
                duration(float(last["seconds"])) if "seconds" in last else "",
                *(_number(_end(run, name)) for name in shown),
                f"{_number(float(values[best]))} at {int(steps[best]):,}",
                _number(_end(run, "steps_per_second")),
            ]
        )
    return columns, rows, columns[1:]


def _best(runs: Sequence[Compared], by: str) -> list[str]:
    """Which run was best when all had taken as many steps, and when all had taken as long."""
    import numpy as np

    lines = []
    for unit, form in (("step", "{:,.0f} steps"), ("seconds", None)):
        places = [_over(run, by, unit) for run in runs]
        if any(not len(x) for x, _ in places):
            continue
        common = min(float(x[-1]) for x, _ in places)
        values = []
        for x, scores in places:
            upto = int(np.searchsorted(x, common, side="right"))
            values.append(float(scores[upto - 1]) if upto else math.nan)
        known = [i for i, value in enumerate(values) if math.isfinite(value)]
        if not known:
            continue
        i = known[_first_best(np.array([values[i] for i in known]), by)]
        where = form.format(common) if form else duration(common)
        others = ", ".join(
            f"{run.name} {_number(value) or 'none yet'}" for run, value in zip(runs, values, strict=True)
        )
        lines.append(f"best at {where}: {runs[i].name} ({others})")
    return lines


def _first_best(values: Any, by: str) -> int:
    """The place of the best value, of equals the first; what is not finite is none."""
    import numpy as np

    sign = 1 if "loss" in by else -1
    return int(np.argmin(np.where(np.isfinite(values), sign * values, np.inf)))


def _over(run: Compared, name: str, unit: str) -> tuple[Any, Any]:
    """The values of a column over steps, or over seconds."""
    import numpy as np

    steps, values = run.history.column(name)
    if unit == "step":
        return steps, values
    at, seconds = run.history.column(unit)
    places = np.searchsorted(at, steps)
    if not len(at) or places.max(initial=0) >= len(at):
        return seconds[:0], seconds[:0]
    return seconds[places], values


def _differences(runs: Sequence[Compared]) -> Table:
    """What their configs do not have in common, one row each."""
    from funcnet.tasks._run import flat

    every = [{name: _cell(value) for name, value in flat(run.facts).items()} for run in runs]
    names = dict.fromkeys(name for facts in every for name in facts)
    rows = [[name, *(facts.get(name, "") for facts in every)] for name in names]
    return ["config", *(run.name for run in runs)], [row for row in rows if len(set(row[1:])) > 1], []


def _cell(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:18] + "…" + text[-18:]


def _end(run: Compared, name: str) -> float:
    _, values = run.history.column(name)
    return float(values[-1]) if len(values) else math.nan


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else ""


def _panels(runs: Sequence[Compared], by: str) -> "list[Panel]":
    """Each metric over steps, and the one that counts over time."""
    from funcnet.cli._page import Curve, Panel
    from funcnet.tasks._plots import running_mean

    def panel(name: str, unit: str) -> Panel:
        look = "points" if name.startswith("eval_") else "line"
        curves = []
        for color, run in enumerate(runs):
            x, values = _over(run, name, unit)
            values = values if look == "points" else running_mean(values)
            curves.append(Curve(run.name, x, values, look, color))
        scale = "share" if "accuracy" in name else "log" if "loss" in name else "linear"
        title = name.replace("_", " ") + ("" if look == "points" else ", running mean")
        return Panel(title + (" over time" if unit == "seconds" else ""), curves, unit, scale)

    names = dict.fromkeys((by, *_CURVES))
    panels = [panel(by, "step"), panel(by, "seconds"), *(panel(name, "step") for name in names if name != by)]
    return [panel for panel in panels if any(len(curve.x) for curve in panel.curves)]


def _picture(path: Path, runs: Sequence[Compared]) -> None:
    from funcnet.tasks import _plots

    _plots.compared(path, {run.name: run.history for run in runs}, title=f"funcnet train {runs[0].task}")


def _html(runs: Sequence[Compared], by: str, scores: Table, differences: Table, best: Sequence[str]) -> str:
    from html import escape

    from funcnet.cli import _page

    panels = _panels(runs, by)
    title = f"{len(runs)} runs of {runs[0].task}"
    lines = "".join(f"<p>{escape(line)}</p>" for line in best)
    return _page.page(
        title,
        f'<header><p class="soft small">funcnet compare</p><h1>{escape(title)}</h1>{lines}</header>',
        _page.section("Scores", _page.table(*scores)),
        _page.section("Curves", _page.charts(panels)),
        _page.section("What differs", _page.table(*differences) if differences[1] else ""),
        panels=panels,
    )
