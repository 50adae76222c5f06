"""`funcnet pca DATA`: the principal components of a data set, of a file, or of what a trained model sees."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import tyro

from funcnet.cli import UsageError
from funcnet.cli._options import files, parse
from funcnet.cli._text import heading, table

if TYPE_CHECKING:
    from funcnet.linalg.pca import PCA

__all__ = ["run"]

_IMAGES, _POINTS = 12, 4000  # drawn at most
_ROWS = 20_000  # of what a model sees, at most


class Asked(NamedTuple):
    """What is asked for."""

    data: str
    components: int
    labels: Path | None
    out: tuple[Path, ...]


class Rows(NamedTuple):
    """The data.

    Attributes:
        name: what they are.
        x: the rows [n, d].
        labels: of the rows, if they are known.
        image: (h, w), if a row is one.
    """

    name: str
    x: np.ndarray
    labels: np.ndarray | None = None
    image: tuple[int, int] | None = None


def _options(
    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="digits|FILE|RUN")],
    components: Annotated[int, tyro.conf.arg(metavar="K")] = 10,
    labels: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    out: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FILE")] = (),
) -> Asked:
    """Find the principal components of rows of numbers: the variance along each, and pictures of them.

    Args:
        data: digits, the data set; a .npy file [n, d], or of images [n, h, w] or [n, h, w, 1]; or a run
            folder: what the last hidden layer of its model gives for data that it was not trained on.
        components: how many are listed and drawn.
        labels: a .npy file of n labels, which colour the points of a .npy file.
        out: a picture of the variances, the components and the rows along the first two, .png, or a page,
            .html; give it twice for both. By default pca.png.
    """
    return Asked(data, components, labels, out or (Path("pca.png"),))


def run(args: list[str]) -> int:
    """The command."""
    asked = parse(_options, args, "funcnet pca")
    files(*asked.out, suffixes=(".png", ".html"), command="funcnet pca")
    rows = _read(asked)
    n, d = rows.x.shape
    if not 1 <= asked.components <= min(n, d):
        raise UsageError(
            f"--components is {asked.components}, but {n:,} rows of {d:,} numbers have 1 to {min(n, d)}"
        )
    from funcnet.linalg import pca

    found = pca.fit(_array(rows.x), min(n, d, max(asked.components, 2)))
    columns, cells = _table(found, asked.components)
    heading(f"{rows.name}: {n:,} rows of {d:,} numbers")
    table(columns, cells, columns)
    for path in asked.out:
        if path.suffix == ".png":
            _picture(path, rows, found, asked.components)
        else:
            path.write_text(_html(rows, found, asked.components), "utf-8", "backslashreplace")
        print(f"the picture is in {path}" if path.suffix == ".png" else f"the page is in {path}")
    return 0


def _array(x: np.ndarray) -> Any:
    import jax.numpy as jnp

    return jnp.asarray(x, jnp.float32)


def _read(asked: Asked) -> Rows:
    """The rows, by what DATA is.

    Raises:
        UsageError: it is none of the three, or the labels do not fit.
        FileFormatError, OSError: a file is damaged, or is not there.
    """
    path = Path(asked.data)
    if asked.labels and path.suffix != ".npy":
        raise UsageError("--labels is for a .npy file; the others have their own")
    if path.suffix == ".npy":
        return _file(path, asked.labels)
    if asked.data == "digits":
        from funcnet.tasks import digits

        train, test = digits.data()
        images = np.concatenate([train.images, test.images])[..., 0]
        labels = np.concatenate([train.labels, test.labels])
        return Rows("digits", images.reshape(len(images), -1), labels, images.shape[1:])
    if path.exists():
        return _activations(path)
    raise UsageError(f"{asked.data!r} is neither digits, nor a .npy file, nor a run folder")


def _file(path: Path, labels: Path | None) -> Rows:
    x = _load(path, "float or integer numbers")
    x = x[..., 0] if x.ndim == 4 and x.shape[-1] == 1 else x
    if x.ndim not in (2, 3) or not x.size:
        raise UsageError(f"{path} is {list(x.shape)}, but [n, d] or images [n, h, w] are needed")
    if not np.isfinite(x).all():
        raise UsageError(f"{path} has numbers in it that are not finite")
    given = _load(labels, "labels") if labels else None
    if given is not None and given.shape != x.shape[:1]:
        raise UsageError(f"{labels} is {list(given.shape)}, but {path} has {len(x)} rows")
    return Rows(str(path), x.reshape(len(x), -1), given, x.shape[1:] if x.ndim == 3 else None)


def _load(path: Path, what: str) -> np.ndarray:
    from funcnet.errors import FileFormatError

    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise FileFormatError(f"{path}: this is no .npy file of numbers.", path=str(path)) from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iuf":
        raise FileFormatError(f"{path}: these are no numbers.", path=str(path), expected=what)
    return array


def _activations(folder: Path) -> Rows:
    """What the head of a run's model is applied to, on data that it was not trained on.

    Of a text, that at each position; the labels are then the characters that follow.
    """
    import jax

    from funcnet import taps, tasks
    from funcnet.tasks import _run
    from funcnet.tasks._task import spread

    saved, (_, held_out) = _run.read(folder), _run.again(folder).examples(1)
    task = getattr(tasks, saved.task)

    @jax.jit
    def values(inputs: Any) -> Any:
        seen = taps.collect(lambda x: task.NET.apply(saved.params, x, saved.config), only=task.LAST)
        value = seen(inputs)[1][task.LAST]
        return value[-1] if value.ndim > inputs.ndim + 1 else value  # of stacked layers the last

    chosen = spread(len(held_out.inputs), _ROWS // held_out.labels[0].size)
    x = np.concatenate(
        [np.asarray(values(held_out.inputs[part])) for part in np.array_split(chosen, 1 + len(chosen) // 500)]
    )
    labels = held_out.labels[chosen]
    return Rows(f"the last hidden layer of {folder}", x.reshape(labels.size, -1), labels.ravel())


def _table(found: "PCA", k: int) -> tuple[list[str], list[list[str]]]:
    shares = _shares(found)[:k]
    cells = [
        [str(i), f"{variance:.4g}", f"{share:.1%}", f"{so_far:.1%}"]
        for i, (variance, share, so_far) in enumerate(
            zip(np.asarray(found.variances), shares, np.cumsum(shares), strict=False), 1
        )
    ]
    return ["component", "variance", "share", "so far"], cells


def _shares(found: "PCA") -> np.ndarray:
    """Of the total variance; none of it where nothing varies."""
    total = float(found.total)
    return np.asarray(found.variances, np.float64) / total if total > 0 else np.zeros(len(found.variances))


def _picture(path: Path, rows: Rows, found: "PCA", k: int) -> None:
    """The variances, the components, and the rows along the first two."""
    from matplotlib.figure import Figure

    from funcnet.tasks._plots import _save

    figure = Figure(figsize=(11, 7.5) if rows.image else (11, 4.6), dpi=110, layout="constrained")
    figure.suptitle(f"Principal components of {rows.name}", fontsize=11)
    parts: Any = figure.subfigures(2, 1, height_ratios=(3, 2)) if rows.image else (figure, None)
    upper, lower = parts
    scree, scatter = upper.subplots(1, 2)
    _scree(scree, found, k)
    _scatter(scatter, rows, found)
    if lower is not None and rows.image:
        shown = np.asarray(found.components)[: min(k, _IMAGES)].reshape(-1, *rows.image)
        grid = lower.subplots(2, -(-(len(shown) + 1) // 2), squeeze=False).flat
        for axes in grid:
            axes.set_axis_off()
        mean = np.asarray(found.mean).reshape(rows.image)
        for axes, image, name in zip(
            lower.axes, [mean, *shown], ["mean", *map(str, range(1, len(shown) + 1))], strict=False
        ):
            most = float(abs(image).max()) or 1.0
            axes.imshow(image, cmap="gray_r" if name == "mean" else "RdBu_r", vmax=most,
                        vmin=None if name == "mean" else -most)  # fmt: skip
            axes.set_title(name, fontsize=9)
    _save(figure, path)


def _scree(axes: Any, found: "PCA", k: int) -> None:
    """The share of each component as bars, of all up to it as a line."""
    shares = _shares(found)[:k]
    at = np.arange(1, len(shares) + 1)
    axes.bar(at, shares, color="#4477aa", label="of each")
    axes.plot(at, np.cumsum(shares), color="#cc6677", marker="o", markersize=3.5, label="of all up to it")
    axes.set(xlabel="component", title="share of the variance", ylim=(0, 1.02))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)


def _scatter(axes: Any, rows: Rows, found: "PCA") -> None:
    """The rows along the first two components, coloured by their labels; of many rows, some."""
    from funcnet.linalg import pca

    kept = np.linspace(0, len(rows.x) - 1, min(_POINTS, len(rows.x))).astype(int)
    y = np.asarray(pca.project(found, _array(rows.x[kept])))
    y = y if y.shape[1] > 1 else np.column_stack([y, np.zeros(len(y))])
    labels = None if rows.labels is None else rows.labels[kept]
    classes = np.unique(labels) if labels is not None else np.zeros(0)
    if labels is not None and 0 < len(classes) <= 20 and labels.dtype.kind in "iu":
        from matplotlib import colormaps

        colors = colormaps["tab10" if len(classes) <= 10 else "tab20"]
        for i, label in enumerate(classes):
            axes.scatter(
                *y[labels == label, :2].T, s=9, alpha=0.7, linewidths=0, color=colors(i), label=label
            )
        axes.legend(frameon=False, fontsize=8, markerscale=2, loc="center left", bbox_to_anchor=(1, 0.5))
    else:
        axes.scatter(*y[:, :2].T, s=9, alpha=0.7, linewidths=0, c=labels, cmap="viridis")
    some = f", {len(kept):,} of {len(rows.x):,} rows" if len(kept) < len(rows.x) else ""
    axes.set(xlabel="component 1", ylabel="component 2", title=f"the rows along the first two{some}")
    axes.set_aspect("equal", adjustable="datalim")
    axes.spines[["top", "right"]].set_visible(False)


def _html(rows: Rows, found: "PCA", k: int) -> str:
    import tempfile
    from html import escape

    from funcnet.cli import _page

    n, d = rows.x.shape
    columns, cells = _table(found, k)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "pca.png")
        _picture(path, rows, found, k)
        picture = _page.picture(path, "shares of the variance, the rows along the first two, the components")
    title = f"Principal components of {rows.name}"
    return _page.page(
        title,
        f'<header><p class="soft small">funcnet pca</p><h1>{escape(title)}</h1>'
        f"<p>{n:,} rows of {d:,} numbers</p></header>",
        _page.section("Picture", picture),
        _page.section("Variances", _page.table(columns, cells, columns)),
    )
