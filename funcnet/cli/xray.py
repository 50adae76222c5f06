"""`funcnet xray RUN`: a trained model seen through, as a table, a picture and a page."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import tyro

from funcnet.cli import UsageError
from funcnet.cli._options import parse
from funcnet.cli._text import heading, table

if TYPE_CHECKING:
    from funcnet.analysis import XRay

__all__ = ["run"]

_EXAMPLES = {"chars": 64}  # of the others 256
_LINES = 12  # of a picture, at most


class Asked(NamedTuple):
    """What is asked for."""

    run: Path
    examples: int | None
    curvature: bool
    html: Path | None
    out: Path | None


def _options(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    examples: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    curvature: bool = False,
    html: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
) -> Asked:
    """See through a trained model: its weights, activations and gradients layer by layer, what is unusual.

    Args:
        run: a run folder, as `funcnet train` writes it.
        examples: of the training data, without shifts and dropout; by default 256 images, or 64 pieces of
            text.
        curvature: the spectra of the Hessian and the Gauss-Newton matrix too, which takes half a minute.
        html: a page with the tables and pictures.
        out: the pictures alone, .png.
    """
    return Asked(run, examples, curvature, html, out)


def run(args: list[str]) -> int:
    """The command."""
    asked = parse(_options, args, "funcnet xray")
    for path, suffix in ((asked.html, ".html"), (asked.out, ".png")):
        if path is not None and path.suffix != suffix:
            raise UsageError(f"{path} is no {suffix} file (funcnet xray --help)")
    from funcnet import tasks
    from funcnet.analysis import xray
    from funcnet.tasks import _run

    saved, facts = _run.read(asked.run), _run.facts(asked.run)
    count = _EXAMPLES.get(saved.task, 256) if asked.examples is None else asked.examples
    if count < 1:
        raise UsageError(f"--examples is {count}, but one is the least")
    task = getattr(tasks, saved.task)
    options = facts.get("options", {})
    batch = task.examples(saved, options if isinstance(options, dict) else {}, count)
    start = _run.start(asked.run)
    found = xray(task.NET, saved.params, saved.config, batch, start=start, curvature=asked.curvature)
    heading(f"{asked.run}: {saved.task}, at {len(batch[0])} examples of its training data")
    columns, cells = found.table()
    table(columns, cells, columns[1:])
    print()
    table(["whole", ""], [[name, text] for name, text in found.facts().items()])
    for reason in found.left_out:
        print(f"not measured: {reason}")
    heading("\nunusual" if found.findings else "\nnothing unusual")
    for text in found.findings:
        print(f"- {text}")
    if asked.out is not None:
        _picture(asked.out, found)
        print(f"the picture is in {asked.out}")
    if asked.html is not None:
        asked.html.write_text(_html(str(asked.run), saved.task, found), "utf-8", "backslashreplace")
        print(f"the page is in {asked.html}")
    return 0


# ---- pictures ---------------------------------------------------------------------------------------------


def _picture(path: Path, found: "XRay") -> None:
    """Spectra, activations, heads, gradients, and where it was asked for the density of the curvature."""
    from matplotlib.figure import Figure

    from funcnet.tasks._plots import _save

    wanted = [draw for has, draw in _PANELS if has(found)]
    rows, bars = -(-len(wanted) // 2), sum(row.activation is not None for row in found.rows)
    height = min(max(3.9, 0.13 * bars), 12)
    figure = Figure(figsize=(11, height * rows), dpi=110, layout="constrained")
    every = figure.subplots(rows, 2, squeeze=False).flat
    for axes in every:
        axes.set_axis_off()
    for axes, draw in zip(figure.axes, wanted, strict=False):
        axes.set_axis_on()
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes, found)
    _save(figure, path)


def _spectra(axes: Any, found: "XRay") -> None:
    """Singular values over their rank, both as shares of the largest; of many layers some, evenly."""
    from matplotlib import colormaps

    rows = [row for row in found.rows if row.weight is not None and row.weight.spectrum.size > 1]
    kept = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, min(_LINES, len(rows))).astype(int))]
    colors = colormaps["viridis"](np.linspace(0, 0.92, len(kept)))
    for row, color in zip(kept, colors, strict=True):
        values = row.weight.spectrum if row.weight is not None else np.zeros(0)
        values = values[values > 0]
        axes.plot(np.linspace(0, 1, len(values)), values, color=color, linewidth=1.4, label=row.name)
    axes.set(yscale="log", xlabel="rank, as a share", title="singular values of the matrices")
    axes.legend(frameon=False, fontsize=7, ncols=2)


def _units(axes: Any, found: "XRay") -> None:
    """Of each layer the share of units that live, and of directions that hold 90 % of the variance."""
    rows = [row for row in found.rows if row.activation is not None and row.activation.units]
    at = np.arange(len(rows))
    shares = [
        (a.directions / a.units, 1 - a.dead / a.units)
        for a in (row.activation for row in rows)
        if a is not None
    ]
    directions, alive = zip(*shares, strict=True)
    axes.barh(at, alive, color="#bbccdd", label="units that are not dead")
    axes.barh(at, directions, height=0.45, color="#4477aa", label="directions with 90 % of the variance")
    axes.set(title="activations: share of the units", xlim=(0, 1.02), ylim=(len(rows) - 0.4, -0.6))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_yticks(at, [row.name for row in rows], fontsize=8 if len(rows) <= 24 else 6)
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.07), ncols=2)


def _heads(axes: Any, found: "XRay") -> None:
    """The entropy of each head's attention: 0 one key, 1 all alike."""
    rows = [
        (row.name, row.activation.entropy) for row in found.rows if row.activation and row.activation.entropy
    ]
    shares = np.full((len(rows), max(len(heads) for _, heads in rows)), np.nan)
    for i, (_, heads) in enumerate(rows):
        shares[i, : len(heads)] = heads
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axes.set(title="entropy of attention, of its largest", xlabel="head")
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=8)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.figure.colorbar(image, ax=axes)


def _gradients(axes: Any, found: "XRay") -> None:
    """The norm of the gradient of each matrix, relative to that of the matrix itself."""
    rows = [row for row in found.rows if row.gradient is not None and row.weight is not None]
    sizes = [
        row.gradient.norm / max(float(np.linalg.norm(row.weight.spectrum)), 1e-30)
        for row in rows
        if row.gradient is not None and row.weight is not None
    ]
    axes.barh(range(len(rows)), sizes, color="#cc6677")
    axes.set(title="norm of the gradient, of that of the matrix", ylim=(len(rows) - 0.4, -0.6))
    axes.set_yticks(range(len(rows)), [row.name for row in rows], fontsize=8 if len(rows) <= 24 else 6)


def _density(axes: Any, found: "XRay") -> None:
    """The share of eigenvalues in bins, of the curvature."""
    pairs = (("Hessian", found.whole.hessian, "#4477aa"), ("Gauss-Newton matrix", found.whole.ggn, "#cc6677"))
    known = [(name, each, color) for name, each, color in pairs if each is not None]
    ends = [end for _, each, _ in known for end in (each.values[0], each.values[-1])]
    near = max(map(abs, ends)) * 1e-4 or 1.0
    scale = lambda v: np.arcsinh(np.asarray(v) / near)
    edges = near * np.sinh(np.linspace(scale(min(ends)), scale(max(ends)), 41))
    for name, each, color in known:
        shares, _ = np.histogram(np.clip(each.values, edges[0], edges[-1]), edges, weights=each.density)
        axes.stairs(np.maximum(shares, 1e-12), edges, color=color, label=name, linewidth=1.5)
    axes.set_xscale("symlog", linthresh=near)
    ticks = [
        sign * 10.0**e for sign in (-1, 1) for e in range(-12, 13, 2) if near < 10.0**e < max(map(abs, ends))
    ]
    axes.set_xticks([0, *(tick for tick in ticks if min(ends) <= tick <= max(ends))])
    axes.set(
        yscale="log",
        xlabel="eigenvalue",
        ylim=(1e-8, 1.5),
        title="density of the curvature: share of eigenvalues",
    )
    axes.legend(frameon=False, fontsize=8)


def _has(part: str, of: str) -> Callable[["XRay"], bool]:
    """Whether a row has a part in which something is not empty."""
    return lambda found: any(np.size(getattr(getattr(row, part), of, ())) > 0 for row in found.rows)


_PANELS = (
    (_has("weight", "spectrum"), _spectra),
    (lambda found: any(row.activation and row.activation.units for row in found.rows), _units),
    (_has("activation", "entropy"), _heads),
    (_has("gradient", "norm"), _gradients),
    (lambda found: found.whole.hessian is not None, _density),
)


# ---- the page ---------------------------------------------------------------------------------------------


def _html(run: str, task: str, found: "XRay") -> str:
    import tempfile
    from html import escape

    from funcnet.cli import _page

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "xray.png")
        _picture(path, found)
        picture = _page.picture(path, "spectra, activations, heads, gradients, curvature")
    listed = lambda texts: (
        f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>" if texts else ""
    )
    title = f"X-ray of {run}"
    return _page.page(
        title,
        f'<header><p class="soft small">funcnet xray: {escape(task)}</p><h1>{escape(title)}</h1>\n'
        f"{_page.facts(found.facts())}</header>",
        _page.section("What is unusual", listed(found.findings) or "<p>Nothing, by the thresholds.</p>"),
        _page.section("Pictures", picture),
        *(_page.section(f"{part}s", _part(found, part)) for part in ("weight", "activation", "gradient")),
        _page.section("Not measured", listed(found.left_out)),
    )


def _part(found: "XRay", part: str) -> str:
    from funcnet.cli import _page

    columns, cells = found.table(part)
    return _page.table(columns, cells, columns[1:]) if cells else ""
