"""A run as one page, report.html in its folder: what it is, how it goes, and what came of it."""

import json
import os
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from funcnet.cli._page import Curve, Panel, charts, facts, page, picture, section, sounds, table
from funcnet.cli._text import duration
from funcnet.tasks._plots import running_mean, series
from funcnet.train.history import History
from funcnet.verifier.html import gradients
from funcnet.verifier.report import Report

__all__ = ["Run", "panels", "render", "write"]

RELOAD = 10  # seconds, while the run goes on
_ENDED = {
    "steps": "done: all steps are taken",
    "data": "done: all batches are taken",
    "minutes": "done: the time is over",
}
_KNOWN = (
    "step", "loss", "accuracy", "steps_per_second", "tokens_per_second", "waiting", "seconds", "skipped",
    "rescaled", "bad_records", "learning_rate", "eval_loss", "eval_accuracy",
)  # fmt: skip


class Run(NamedTuple):
    """What does not change while a run goes on.

    Attributes:
        task: its name, and what it is in a few words.
        held_out: what the data are called that are not trained on.
        unit: what the loss is a mean over.
        steps: how many are asked for; None: time ends it.
        layers: columns and rows of the table of layers, the columns of numbers, and a note.
        formulas: the verifier's report.
        config: what is in config.json, by parts.
    """

    task: tuple[str, str]
    held_out: str
    unit: str
    steps: int | None
    layers: tuple[Sequence[str], Sequence[Sequence[str]], Sequence[str], str]
    formulas: Report
    config: dict[str, Any]


def write(folder: Path, run: Run, history: History, ended: str | None = None) -> None:
    """Write report.html: the whole page, or, on a disk that is full, none that is new."""
    path = folder / "report.html"
    new = folder / ".report.html.tmp"
    folder.mkdir(parents=True, exist_ok=True)  # someone may have tidied up
    try:
        new.write_text(render(folder, run, history, ended), encoding="utf-8", errors="backslashreplace")
        os.replace(new, path)
    except OSError:
        new.unlink(missing_ok=True)
        raise


def render(folder: Path, run: Run, history: History, ended: str | None = None) -> str:
    """The page.

    Args:
        folder: of the run, where its pictures and samples lie.
        run: what it is.
        history: how it went so far.
        ended: why it ended, in the words of `History.ended` or others; None: it goes on, and so the page
            loads itself again.
    """
    drawn = panels(history, run.held_out)
    columns, rows, right, note = run.layers
    parts = [
        _header(run, history, ended),
        section("Curves", charts(drawn)) if len(history) else "",
        section("Samples", _sample(folder / "sample.txt")),
        section("Mistakes", picture(folder / "mistakes.png", "images that the model got wrong")),
        section(
            "What is taken for what",
            picture(folder / "confusion.png", "classes, and what they were taken for"),
        ),
        section("Mistakes to listen to", _audible(folder / "mistakes.json")),
        section("Gradient formulas, verified before the first step", _formulas(run.formulas)),
        section("Layers", table(columns, rows, right), f'<p class="soft small">{escape(note)}</p>'),
        section("Config", *(_config(name, part) for name, part in run.config.items())),
    ]
    going_on = {"reload": RELOAD, "written": int(time.time())} if ended is None else {}
    return page(f"{run.task[0]}, step {_step(history):,}", *parts, panels=drawn, **going_on)


def panels(history: History, held_out: str = "held out") -> list[Panel]:
    """The curves of a run: loss, accuracy, rate, norms, speed, and whatever else was recorded."""
    found = [
        Panel("loss, nats", _training(history, "loss", held_out), scale="log"),
        Panel("accuracy", _training(history, "accuracy", held_out), scale="share"),
        Panel("learning rate, as applied", _curves(history, ["learning_rate"])),
        *_norms(history),
        Panel("steps per second", _curves(history, ["steps_per_second"])),
        Panel("time spent waiting for data", _curves(history, ["waiting"]), scale="share"),
    ]
    others = [name for name in history.names() if name not in _KNOWN and "_norm" not in name]
    found += [Panel(name.replace("_", " "), _curves(history, [name])) for name in others]
    return [panel for panel in found if any(np.isfinite(curve.values).any() for curve in panel.curves)]


def _norms(history: History) -> list[Panel]:
    """Norms of the whole, and of the blocks."""
    kinds = ("gradient_norm", "update_norm", "param_norm")
    every = [Panel("norms", _curves(history, kinds), scale="log")]
    for kind in kinds:
        blocks = [name for name in history.names() if name.startswith(f"{kind}.")]
        title = f"{kind.replace('_', ' ')} by block"
        every.append(Panel(title, _curves(history, blocks, len(kind) + 1), scale="log"))
    return every


def _curves(history: History, names: Sequence[str], skip: int = 0) -> list[Curve]:
    curves = (
        Curve(name[skip:].replace("_", " "), *history.column(name), color=i) for i, name in enumerate(names)
    )
    return [curve for curve in curves if len(curve.x)]


def _training(history: History, name: str, held_out: str) -> list[Curve]:
    steps, values = series(history, name)
    return [
        Curve("each step", steps, values, "pale", 0),
        Curve("running mean", steps, running_mean(values), "line", 0),
        Curve(held_out, *history.column(f"eval_{name}"), "points", 1),
    ]


def _step(history: History) -> int:
    return int(_last(history, "step") or 0)


def _last(history: History, name: str) -> float | None:
    _, values = history.column(name)
    return float(values[-1]) if len(values) else None


def _header(run: Run, history: History, ended: str | None) -> str:
    name, words = run.task
    state = "training" if ended is None else _ENDED.get(ended, f"ended: {ended}")
    mood = "" if ended is None else "right" if ended in _ENDED else "wrong"
    of = f" of {run.steps:,}" if run.steps else ""
    written = time.strftime("%Y-%m-%d %H:%M:%S")
    return (
        f'<header>\n<p class="soft small">funcnet train {escape(name)}: {escape(words)}</p>\n'
        f'<h1>Step {_step(history):,}{of} <span class="{mood}" id="state">{escape(state)}</span></h1>\n'
        f'<p class="soft small" id="written">written {written}</p>\n'
        f"{facts(_tiles(run, history), 'tiles')}\n</header>"
    )


def _tiles(run: Run, history: History) -> dict[str, str]:
    """What one wants to know first."""
    skipped, rescaled, bad = (history.column(name)[1] for name in ("skipped", "rescaled", "bad_records"))
    seconds = _last(history, "seconds")
    tiles = {
        f"{run.held_out} accuracy": _said(history, "eval_accuracy", "{:.2%}"),
        f"{run.held_out} loss, nats per {run.unit}": _said(history, "eval_loss", "{:.4f}"),
        "steps per second": _said(history, "steps_per_second", "{:,.3g}"),
        "tokens per second": _said(history, "tokens_per_second", "{:,.0f}"),
        "waiting for data": _said(history, "waiting", "{:.1%}"),
        "learning rate": _said(history, "learning_rate", "{:.3g}"),
        "skipped steps": f"{int((skipped > 0).sum()):,}",
        "loss scale halved": f"{int((rescaled > 0).sum()):,}" if len(rescaled) else "",
        "bad records": f"{int(bad[-1]):,}" if len(bad) else "",
        "checkpoint": next((str(r["checkpoint_error"]) for r in history[-1:] if "checkpoint_error" in r), ""),
        "time": "" if seconds is None else duration(seconds),
    }
    return {name: text for name, text in tiles.items() if text}


def _said(history: History, name: str, form: str) -> str:
    value = _last(history, name)
    return "" if value is None else form.format(value)


def _sample(path: Path) -> str:
    if not path.is_file():
        return ""
    return f"<pre>{escape(path.read_text(encoding='utf-8', errors='replace'))}</pre>"


def _audible(path: Path) -> str:
    """The recordings that a model got wrong, as the tasks of recordings leave them behind."""
    if not path.is_file():
        return ""
    content = json.loads(path.read_text(encoding="utf-8"))
    wrong = content["mistakes"]
    rows = [[each[name] for name in ("name", "label", "taken_for")] for each in wrong]
    table = sounds(["recording", "is", "taken for"], rows, [each["wav"] for each in wrong]) if rows else ""
    return f"<p>{escape(content['title'])}</p>\n{table}"


def _formulas(report: Report) -> str:
    """The verifier's own table, below its verdict."""
    verdict = f'<p class="{"right" if report.ok else "wrong"}">{escape(report.verdict)}</p>'
    return verdict + "\n" + gradients(report.rows) if report.rows else ""


def _config(name: str, part: Any) -> str:
    pairs = part if isinstance(part, dict) else {name: part}
    return f"<h3>{escape(name)}</h3>\n{facts(pairs)}"
