"""What a run shows of itself: its curves, the images that it got wrong, and what was taken for what."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from funcnet.train.history import History

__all__ = ["compared", "confusion", "curves", "mistakes", "running_mean", "series"]

_TRAIN, _HELD_OUT = "#4477aa", "#cc6677"  # told apart by colour-blind eyes, too
_NAMED = 40  # classes that can be told apart by name and number
_RUNS = (_TRAIN, _HELD_OUT, "#228833", "#a08a00", "#2a9fc9", "#aa3377", "#7d7d7d")


def curves(path: Path, records: Sequence[Mapping[str, Any]], *, title: str, held_out: str) -> None:
    """Draw loss and accuracy over the steps.

    Training appears as single steps, pale, and as their running mean; the held-out data as points.

    Args:
        path: of the PNG file.
        records: as `train.fit` makes them; numbers that are not finite are left out.
        title: above both panels.
        held_out: what the held-out data are called: "test".
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
    figure.suptitle(title, fontsize=11)
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        steps, values = series(records, name)
        axes.plot(steps, values, color=_TRAIN, alpha=0.25, linewidth=0.8)
        axes.plot(steps, running_mean(values), color=_TRAIN, linewidth=1.6, label="training, running mean")
        steps, scores = series(records, f"eval_{name}")
        final = [f"{score:.2%}" if name == "accuracy" else f"{score:.4f}" for score in scores[-1:]]
        label = f"{held_out}, {final[0]} at the end" if final else held_out
        axes.plot(steps, scores, color=_HELD_OUT, marker="o", markersize=3.5, linewidth=1.2, label=label)
        axes.legend(frameon=False, loc="upper right" if name == "loss" else "lower right")
        axes.set(xlabel="step", title=name)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    loss, accuracy = figure.axes
    loss.set(ylabel="nats", yscale="log")
    loss.yaxis.set_major_formatter("{x:g}")
    accuracy.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    _, values = series(records, "accuracy")
    later = running_mean(values)[len(values) // 10 :]  # the first tenth may leave the picture
    if len(later):
        accuracy.set_ylim(max(0, later.min() - 0.05), min(1.01, accuracy.get_ylim()[1]))
    _save(figure, path)


def compared(path: Path, histories: Mapping[str, History], *, title: str) -> None:
    """Draw loss and accuracy of several runs over the steps, training as a running mean.

    Args:
        path: of the PNG file.
        histories: of the runs, by name.
        title: above the panels.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), dpi=120, layout="constrained")
    figure.suptitle(title, fontsize=11)
    names = ("loss", "accuracy", "eval_loss", "eval_accuracy")
    for axes, name in zip(figure.subplots(2, 2).flat, names, strict=True):
        for i, (run, history) in enumerate(histories.items()):
            steps, values = series(history, name)
            held_out = name.startswith("eval_")
            look: dict[str, Any] = {"marker": "o", "markersize": 3} if held_out else {}
            look |= {"color": _RUNS[i % len(_RUNS)], "linestyle": "-" if i < len(_RUNS) else "--"}
            axes.plot(steps, values if held_out else running_mean(values), linewidth=1.4, label=run, **look)
        words = name.replace("eval_", "held-out ") + ("" if name.startswith("eval_") else ", running mean")
        axes.set(xlabel="step", title=words)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if name.endswith("accuracy"):
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        else:
            axes.set(ylabel="nats")
    figure.axes[0].legend(frameon=False)
    _save(figure, path)


def mistakes(
    path: Path,
    images: Float[np.ndarray, "n h w"],
    labels: Int[np.ndarray, " n"],
    predicted: Int[np.ndarray, " n"],
    classes: Sequence[str],
) -> None:
    """Draw the images whose predicted class is not their label, at most 40, with both."""
    from matplotlib.figure import Figure

    wrong = np.flatnonzero(predicted != labels)
    shown = wrong[:40]
    columns = max(4, min(8, len(shown)))
    rows = max(1, math.ceil(len(shown) / columns))
    figure = Figure(figsize=(1.4 * columns, 1.7 * rows + 0.6), dpi=120, layout="constrained")
    some = f"; the first {len(shown)}" if len(shown) < len(wrong) else ""
    figure.suptitle(f"{len(wrong)} of {len(labels)} test images wrong{some}", fontsize=11)
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.set_axis_off()
    for axes, i in zip(figure.axes, shown, strict=False):
        axes.imshow(images[i], cmap="gray_r")
        axes.set_title(f"{classes[int(labels[i])]}, taken for {classes[int(predicted[i])]}", fontsize=9)
    _save(figure, path)


def confusion(
    path: Path, labels: Int[np.ndarray, " n"], predicted: Int[np.ndarray, " n"], classes: Sequence[str]
) -> None:
    """Draw how many examples of each class were taken for which: a row is a class, the diagonal is right.

    Args:
        path: of the PNG file.
        labels: the classes.
        predicted: what they were taken for.
        classes: their names.
    """
    from matplotlib.figure import Figure

    k = len(classes)
    counts = np.zeros((k, k), int)
    np.add.at(counts, (labels, predicted), 1)
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    side = min(14.0, max(4.0, 0.42 * k + 1.5))
    figure = Figure(figsize=(side, side), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    axes.set_title(f"{counts.trace():,} of {counts.sum():,} right", fontsize=11)
    axes.set(xlabel="taken for", ylabel="is")
    if k <= _NAMED:
        names = _drawable(classes)
        upright = max(map(len, names)) > 3
        axes.set_xticks(range(k), names, rotation=90 if upright else 0, fontsize=9, parse_math=False)
        axes.set_yticks(range(k), names, fontsize=9, parse_math=False)
        for i, j in np.argwhere(counts):
            color = "white" if shares[i, j] > 0.5 else "black"
            axes.text(j, i, f"{counts[i, j]}", ha="center", va="center", color=color, fontsize=8)
    _save(figure, path)


def _drawable(names: Sequence[str]) -> list[str]:
    """The names, at most 20 letters of each; its number for one in letters that the font does not have."""
    from matplotlib import font_manager, ft2font

    known = ft2font.FT2Font(font_manager.findfont(font_manager.FontProperties())).get_charmap()
    return [name[:20] if all(ord(c) in known for c in name) else f"#{i}" for i, name in enumerate(names)]


def _save(figure: Any, path: Path) -> None:
    """Write a PNG file, all of it or, on a disk that is full, none."""
    try:
        figure.savefig(path)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def series(records: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one metric, where it is finite."""
    history = records if isinstance(records, History) else History(list(map(dict, records)))
    steps, values = history.column(name)
    kept = np.isfinite(values)
    return steps[kept], values[kept]


def running_mean(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """The mean of the last fiftieth of the run, at each step."""
    width = max(1, len(values) // 50)
    sums = np.cumsum(np.concatenate([np.zeros(1), values]))
    upto = np.arange(1, len(values) + 1)
    since = np.maximum(upto - width, 0)
    return (sums[upto] - sums[since]) / (upto - since)
