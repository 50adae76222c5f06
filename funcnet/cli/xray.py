"""`funcnet xray RUN`: a trained model seen through, as a table, a picture and a page."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import tyro

from funcnet.cli import UsageError
from funcnet.cli._options import files, parse
from funcnet.cli._text import heading, table

if TYPE_CHECKING:
    from funcnet.analysis import XRay
    from funcnet.tasks._task import Examples, Saved

__all__ = ["run"]

_STRANGEST = 10  # examples that are shown
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
    files(asked.html, suffixes=(".html",), command="funcnet xray")
    files(asked.out, suffixes=(".png",), command="funcnet xray")
    from funcnet.analysis import xray
    from funcnet.tasks import _run

    saved = _run.read(asked.run)
    count = _EXAMPLES.get(saved.task, 256) if asked.examples is None else asked.examples
    if count < 1:
        raise UsageError(f"--examples is {count}, but one is the least")
    examples, start = _run.again(asked.run).examples(count)[0], _run.start(asked.run)
    batch = examples.inputs, examples.labels
    found = xray(
        _run.net(asked.run), saved.params, saved.config, batch, start=start, curvature=asked.curvature
    )
    many = f"{len(examples.inputs)} example{'s' * (len(examples.inputs) != 1)}"
    heading(f"{asked.run}: {saved.task}, at {many} of its training data")
    columns, cells = found.table()
    table(columns, cells, columns[1:])
    print()
    table(["whole", ""], [[name, text] for name, text in found.facts().items()])
    for reason in found.left_out:
        print(f"not measured: {reason}")
    strangest = _strangest(saved, examples, found)
    if strangest[1]:
        heading("\nthe examples with the largest gradients")
        table(*strangest, strangest[0][1:3])
    heading("\nunusual" if found.findings else "\nnothing unusual")
    for text in found.findings:
        print(f"- {text}")
    if asked.out is not None:
        _picture(asked.out, found)
        print(f"the picture is in {asked.out}")
    if asked.html is not None:
        page = _html(str(asked.run), saved, examples, found, strangest)
        asked.html.write_text(page, "utf-8", "backslashreplace")
        print(f"the page is in {asked.html}")
    return 0


def _strangest(saved: "Saved", examples: "Examples", found: "XRay") -> tuple[list[str], list[list[str]]]:
    """Where they stand in the training data, what they are, their losses, and shares of the gradients."""
    order, shares = found.strangest(_STRANGEST)
    losses, characters = found.whole.losses, saved.data.get("characters")

    def text(i: int) -> str:
        if isinstance(characters, str):
            return repr("".join(characters[j] for j in examples.inputs[i]))
        return str(examples.labels[i])

    rows = [
        [f"{examples.numbers[i]:,}", f"{0.0 if losses is None else losses[i]:.3g}", f"{share:.1%}", text(i)]
        for i, share in zip(order, shares, strict=True)
    ]
    return ["number", "loss", "share of |gradient|^2", "text" if characters else "label"], rows


# ---- pictures ---------------------------------------------------------------------------------------------


def _picture(path: Path, found: "XRay") -> None:
    """Spectra, activations, heads, gradients, and where it was asked for the density of the curvature."""
    from matplotlib.figure import Figure

    from funcnet.tasks._plots import _save

    weights, seen, gradients = map(found.each, ("weight", "activation", "gradient"))
    spectra = {name: weight.spectrum for name, weight in weights.items() if weight.spectrum.size > 1}
    units = {name: (each.directions, each.dead, each.units) for name, each in seen.items() if each.units}
    heads = {name: each.entropy for name, each in seen.items() if each.entropy}
    lengths = {name: float(np.linalg.norm(weights[name].spectrum)) for name in gradients}
    shares = {name: each.norm / (lengths[name] or 1.0) for name, each in gradients.items()}
    curved = {"Hessian": found.whole.hessian, "Gauss-Newton matrix": found.whole.ggn}
    curved = {name: each for name, each in curved.items() if each is not None}
    panels: list[tuple[Callable[..., None], dict[str, Any]]] = [
        (_spectra, spectra), (_units, units), (_heads, heads), (_gradients, shares), (_density, curved)
    ]  # fmt: skip
    wanted = [(draw, data) for draw, data in panels if data]

    rows, height = -(-len(wanted) // 2), min(max(3.9, 0.13 * len(units)), 12)
    figure = Figure(figsize=(11, height * rows), dpi=110, layout="constrained")
    every = figure.subplots(rows, 2, squeeze=False).ravel()
    for axes in every[len(wanted) :]:
        axes.set_axis_off()
    for axes, (draw, data) in zip(every, wanted, strict=False):
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes, data)
    _save(figure, path)


def _spectra(axes: Any, spectra: dict[str, np.ndarray]) -> None:
    """Singular values over their rank; of many layers some, evenly."""
    from matplotlib import colormaps

    names = list(spectra)
    kept = np.unique(np.linspace(0, len(names) - 1, min(_LINES, len(names))).astype(int))
    for i, color in zip(kept, colormaps["viridis"](np.linspace(0, 0.92, len(kept))), strict=True):
        values = spectra[names[i]][spectra[names[i]] > 0]
        axes.plot(np.linspace(0, 1, len(values)), values, color=color, linewidth=1.4, label=names[i])
    axes.set(yscale="log", xlabel="rank, as a share", title="singular values of the matrices")
    axes.legend(frameon=False, fontsize=7, ncols=2)


def _units(axes: Any, units: dict[str, tuple[float, int, int]]) -> None:
    """Of each layer the share of units that live, and of directions that hold 90 % of the variance."""
    directions, dead, every = map(np.array, zip(*units.values(), strict=True))
    at = np.arange(len(units))
    axes.barh(at, 1 - dead / every, color="#bbccdd", label="units that are not dead")
    axes.barh(at, directions / every, 0.45, color="#4477aa", label="directions with 90 % of the variance")
    axes.set(title="activations: share of the units", xlim=(0, 1.02))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.07), ncols=2)
    _layers(axes, list(units))


def _layers(axes: Any, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), names, fontsize=8 if len(names) <= 24 else 6)
    axes.set_ylim(len(names) - 0.4, -0.6)


def _heads(axes: Any, heads: dict[str, tuple[float, ...]]) -> None:
    """The entropy of each head's attention: 0 one key, 1 all alike."""
    widest = max(map(len, heads.values()))
    shares = [[*each, *[np.nan] * (widest - len(each))] for each in heads.values()]
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axes.set(title="entropy of attention, of its largest", xlabel="head")
    axes.set_yticks(range(len(heads)), list(heads), fontsize=8)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.figure.colorbar(image, ax=axes)


def _gradients(axes: Any, shares: dict[str, float]) -> None:
    """The norm of the gradient of each matrix, relative to that of the matrix itself."""
    axes.barh(range(len(shares)), list(shares.values()), color="#cc6677")
    axes.set_title("norm of the gradient, of that of the matrix")
    _layers(axes, list(shares))


def _density(axes: Any, curved: dict[str, Any]) -> None:
    """The share of eigenvalues in bins."""
    low, high = (end([each.values[i] for each in curved.values()]) for end, i in ((min, 0), (max, -1)))
    near = max(-low, high) * 1e-4 or 1.0  # linear up to here, then by powers
    edges = near * np.sinh(np.linspace(np.arcsinh(low / near), np.arcsinh(high / near), 41))
    for (name, each), color in zip(curved.items(), ("#4477aa", "#cc6677"), strict=False):
        shares, _ = np.histogram(np.clip(each.values, edges[0], edges[-1]), edges, weights=each.density)
        axes.stairs(np.maximum(shares, 1e-12), edges, color=color, label=name, linewidth=1.5)
    axes.set_xscale("symlog", linthresh=near)
    powers = [10.0**e for e in range(-12, 13, 2) if near < 10.0**e < max(-low, high)]
    axes.set_xticks([0, *(x for power in powers for x in (-power, power) if low <= x <= high)])
    axes.set(yscale="log", xlabel="eigenvalue", ylim=(1e-8, 1.5))
    axes.set_title("density of the curvature: share of eigenvalues")
    axes.legend(frameon=False, fontsize=8)


def _images(path: Path, images: np.ndarray, labels: list[str]) -> None:
    """In a row, each with its label."""
    from matplotlib.figure import Figure

    from funcnet.tasks._plots import _save

    figure = Figure(figsize=(11, 1.5), dpi=110, layout="constrained")
    every = figure.subplots(1, _STRANGEST, squeeze=False).ravel()
    for axes in every:
        axes.set_axis_off()
    for axes, image, label in zip(every, images, labels, strict=False):
        axes.imshow(image.squeeze(-1), cmap="gray_r")
        axes.set_title(label, fontsize=9)
    _save(figure, path)


# ---- the page ---------------------------------------------------------------------------------------------


def _html(
    run: str,
    saved: "Saved",
    examples: "Examples",
    found: "XRay",
    strangest: tuple[list[str], list[list[str]]],
) -> str:
    import tempfile
    from html import escape

    from funcnet.cli import _page

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "xray.png")
        _picture(path, found)
        picture = _page.picture(path, "spectra, activations, heads, gradients, curvature")
        columns, cells = strangest
        strange = _page.table(columns, cells, columns[:3]) if cells else ""
        if cells and examples.inputs.ndim == 4:
            path = Path(folder, "examples.png")
            _images(path, examples.inputs[found.strangest(_STRANGEST)[0]], [row[3] for row in cells])
            strange = _page.picture(path, "the images with the largest gradients") + strange
    listed = lambda texts: (
        f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>" if texts else ""
    )

    def layers(part: str) -> str:
        columns, cells = found.table(part)
        return _page.table(columns, cells, columns[1:]) if cells else ""

    title = f"X-ray of {run}"
    return _page.page(
        title,
        f'<header><p class="soft small">funcnet xray: {escape(saved.task)}</p><h1>{escape(title)}</h1>\n'
        f"{_page.facts(found.facts())}</header>",
        _page.section("What is unusual", listed(found.findings) or "<p>Nothing, by the thresholds.</p>"),
        _page.section("Pictures", picture),
        *(_page.section(f"{part}s", layers(part)) for part in ("weight", "activation", "gradient")),
        _page.section("The examples with the largest gradients", strange),
        _page.section("Not measured", listed(found.left_out)),
    )
