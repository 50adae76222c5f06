"""What an x-ray finds, as plain tuples and as a table."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from funcnet.analysis._curvature import Curvature
from funcnet.analysis._spectra import Weight

__all__ = ["Activation", "Gradient", "Row", "Whole", "XRay"]


class Activation(NamedTuple):
    """What a layer gives, over all examples and positions.

    Attributes:
        units: features, channels, or heads times width.
        rows: examples times positions.
        directions: principal components that hold 90 % of the variance.
        dead: units that give the same for everything, as a rectifier that never fires.
        saturated: units with 90 % of their values within 0.01 of an end, −1 and 1, or 0 and 1; of a layer
            without a value beyond these ends (one with values that are exactly 0 has no end there).
        mean: of all values.
        spread: their standard deviation.
        entropy: of attention, per head: the mean of H / log(keys seen), from 0 (one key) to 1 (all alike).
    """

    units: int
    rows: int
    directions: float
    dead: int
    saturated: int
    mean: float
    spread: float
    entropy: tuple[float, ...] = ()


class Gradient(NamedTuple):
    """Of the mean loss; gₙ is the gradient of example n.

    Attributes:
        norm: its own.
        noise_scale: tr Σ / ‖G‖², as of `noise_scale`; inf where that many examples do not tell ‖G‖ from 0.
        holders: the fewest examples with half of Σ ‖gₙ‖².
        examples: n.
    """

    norm: float
    noise_scale: float
    holders: int
    examples: int


class Row(NamedTuple):
    """One layer: the parts that it has."""

    name: str
    weight: Weight | None = None
    activation: Activation | None = None
    gradient: Gradient | None = None


class Whole(NamedTuple):
    """Of the whole net.

    Attributes:
        examples: in the batch.
        loss: their mean loss.
        gradient: over all params.
        lipschitz: L with ‖f(x) − f(x')‖ ≤ L ‖x − x'‖ for all inputs; NaN where none is known.
        sensitivity: ‖∂ logits / ∂ input‖ at examples of the batch: the median, the largest, of how many.
        hessian: of the mean loss.
        ggn: the Gauss–Newton matrix.
        losses: of the examples; None where there is no loss.
        norms: of their gradients.
    """

    examples: int
    loss: float = math.nan
    gradient: Gradient | None = None
    lipschitz: float = math.nan
    sensitivity: tuple[float, float, int] | None = None
    hessian: Curvature | None = None
    ggn: Curvature | None = None
    losses: Float[np.ndarray, " n"] | None = None
    norms: Float[np.ndarray, " n"] | None = None


class XRay(NamedTuple):
    """The result; prints as a table, with what is unusual below.

    Attributes:
        rows: one per layer.
        whole: of the whole net.
        findings: at most five sentences, what is worst first.
        left_out: what was not measured, and why.
    """

    rows: tuple[Row, ...]
    whole: Whole
    findings: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def each(self, part: str) -> dict[str, Any]:
        """By layer one part, "weight", "activation" or "gradient", of the rows that have it."""
        return {row.name: getattr(row, part) for row in self.rows if getattr(row, part) is not None}

    def strangest(self, most: int = 10) -> tuple[list[int], list[float]]:
        """The examples with the largest gradients, by their places in the batch, and shares of Σ ‖gₙ‖²."""
        if self.whole.norms is None:
            return [], []
        squares = self.whole.norms**2
        order = np.argsort(-squares)[:most]
        return order.tolist(), (squares[order] / (squares.sum() or 1.0)).tolist()

    def table(self, part: str | None = None) -> tuple[list[str], list[list[str]]]:
        """Columns and cells; a column that is empty in every row is left out.

        Args:
            part: "weight", "activation" or "gradient": that alone, of the layers that have it. None: all.
        """
        rows = [row for row in self.rows if part is None or getattr(row, part) is not None]
        chosen = {name: of for name, of in _COLUMNS.items() if part in (None, of[0])}
        cells = [[row.name, *(_cell(row, of) for of in chosen.values())] for row in rows]
        names = ["layer", *chosen]
        kept = [i for i in range(len(names)) if not i or any(row[i] for row in cells)]
        return [names[i] for i in kept], [[row[i] for i in kept] for row in cells]

    def facts(self) -> dict[str, str]:
        """What is known of the whole, in words."""
        whole, n = self.whole, self.whole.examples
        facts = {"examples": f"{n:,}"}
        if math.isfinite(whole.loss):
            facts["mean loss"] = f"{whole.loss:.4g}"
        if whole.gradient is not None:
            norm, half = f"norm {whole.gradient.norm:.3g}", f"half in {_half(whole.gradient)} examples"
            facts["gradient"] = f"{norm}, noise scale {_scale(whole.gradient)}, {half}"
        if math.isfinite(whole.lipschitz):
            facts["Lipschitz bound"] = f"{whole.lipschitz:,.4g}"
        if whole.sensitivity is not None:
            median, most, of = whole.sensitivity
            facts["|d logits / d input|"] = f"median {median:.3g}, most {most:.3g}, at {of} examples"
        for name, found in (("Hessian", whole.hessian), ("Gauss-Newton matrix", whole.ggn)):
            if found is not None:
                top = ", ".join(f"{value:.3g}" for value in found.top)
                ends, trace = f"{top} ... {found.least:.3g}", f"{found.trace:.3g} ± {found.error:.2g}"
                facts[name] = f"{ends}; trace {trace}; of {found.examples} examples"
        return facts

    def __str__(self) -> str:
        columns, rows = self.table()
        widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
        line = lambda cells: "  ".join(
            [cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]
        ).rstrip()
        facts = [f"{name}: {text}" for name, text in self.facts().items()]
        unusual = [
            "",
            "unusual:" if self.findings else "nothing unusual",
            *(f"- {text}" for text in self.findings),
        ]
        return "\n".join(
            [
                *map(line, [columns, *rows]),
                "",
                *facts,
                *map("not measured: {}".format, self.left_out),
                *unusual,
            ]
        )


def _cell(row: Row, of: tuple[str, Callable[..., str]]) -> str:
    part = getattr(row, of[0])
    return "" if part is None else of[1](part)


def _number(value: float) -> str:
    if math.isnan(value):
        return ""
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e5 else f"{value:.3g}"


def _norm(weight: Weight) -> str:
    lower, upper = (_number(bound) for bound in weight.norm)
    return lower if lower == upper else f"{lower}–{upper}"


def _scale(gradient: Gradient) -> str:
    scale = gradient.noise_scale
    return f"above {gradient.examples}" if math.isinf(scale) else _number(scale)


def _half(gradient: Gradient) -> str:
    return f"{gradient.holders}/{gradient.examples}"


def _some(count: int) -> str:
    return str(count) if count else ""


def _entropy(activation: Activation) -> str:
    shares = activation.entropy
    return f"{min(shares):.2f}–{max(shares):.2f}" if shares else ""


def _of(count: float, every: int) -> str:
    return "" if math.isnan(count) or not every else f"{count:.3g}/{every}"


_COLUMNS: dict[str, tuple[str, Callable[..., str]]] = {
    "in × out": ("weight", lambda w: "×".join(map(str, w.shape))),
    "norm": ("weight", _norm),
    "condition": ("weight", lambda w: _number(w.condition) + " circular" * (w.circular and w.condition > 0)),
    "stable rank": ("weight", lambda w: _number(w.stable_rank)),
    "effective rank": ("weight", lambda w: _of(w.effective_rank, len(w.spectrum))),
    "tail (fit)": ("weight", lambda w: "" if math.isnan(w.tail) else f"{w.tail:.1f} ({w.fit:.2f})"),
    "moved": ("weight", lambda w: _number(w.moved)),
    "90 % in": ("activation", lambda a: _of(a.directions, a.units)),
    "dead": ("activation", lambda a: _some(a.dead)),
    "saturated": ("activation", lambda a: _some(a.saturated)),
    "mean": ("activation", lambda a: _number(a.mean)),
    "spread": ("activation", lambda a: _number(a.spread)),
    "entropy": ("activation", _entropy),
    "gradient": ("gradient", lambda g: _number(g.norm)),
    "noise scale": ("gradient", _scale),
    "half in": ("gradient", _half),
}
