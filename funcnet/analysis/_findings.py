"""What of an x-ray is unusual, and what one would try: at most five sentences, each with its threshold."""

import math
from collections.abc import Callable, Sequence

from funcnet.analysis._results import Row, Whole

__all__ = ["findings"]

MOST = 5  # sentences
NAMED = 3  # layers in one of them

DEAD = 0.1  # of a layer's units
SATURATED = 0.1  # of a layer's units
COLLAPSED = 0.02  # of the units, or one direction, of a layer of 16 or more; there are twice as many rows
ONE_KEY, ALL_ALIKE = 0.02, 0.98  # of the largest entropy of a head
SINGULAR = 1e6  # condition: what float32 leaves of the least values is rounding
FEW = 0.02  # of 50 examples or more
STILL = 1e-3  # of the norm at the start
TAIL, FIT = (2.0, 6.0), 0.1  # exponents, and how well they fit


def findings(rows: Sequence[Row], whole: Whole) -> tuple[str, ...]:
    """The sentences, what is worst first."""
    return (*[text for find in _FINDINGS if (text := find(rows, whole))][:MOST],)


def _listed(parts: Sequence[str]) -> str:
    more = f" and {len(parts) - NAMED} more" if len(parts) > NAMED else ""
    return ", ".join(parts[:NAMED]) + more


def _names(rows: Sequence[Row]) -> str:
    return _listed([f"`{row.name}`" for row in rows])


def _units(rows: Sequence[Row], count: Callable[[Row], int], share: float) -> str:
    """``34 of 128 units of `hidden` ``, the layers with the largest share first; "" if none has enough."""
    shares = [
        (count(row) / row.activation.units, row) for row in rows if row.activation and row.activation.units
    ]
    worst = sorted((pair for pair in shares if pair[0] >= share), key=lambda pair: -pair[0])
    return _listed(
        [
            f"{count(row)} of {row.activation.units} units of `{row.name}`"
            for _, row in worst
            if row.activation
        ]
    )


def _not_finite(rows: Sequence[Row], whole: Whole) -> str:
    bad = [
        row
        for row in rows
        if (row.weight is not None and row.weight.spectrum.size == 0)
        or (row.activation is not None and row.activation.units and not math.isfinite(row.activation.spread))
        or (row.gradient is not None and not math.isfinite(row.gradient.norm))
    ]
    return (
        bad and f"What {_names(bad)} hold is not finite: fn.find_nan names the operation that made it." or ""
    )


def _dead(rows: Sequence[Row], whole: Whole) -> str:
    units = _units(rows, lambda row: row.activation.dead if row.activation else 0, DEAD)
    return (
        units
        and f"{units} never fire: try a lower learning rate, a rectifier with a slope below 0, or fewer units."
    )


def _saturated(rows: Sequence[Row], whole: Whole) -> str:
    units = _units(rows, lambda row: row.activation.saturated if row.activation else 0, SATURATED)
    return (
        units
        and f"{units} are saturated and pass on no gradient: try smaller weights at the start, or a norm before them."
    )


def _collapsed(rows: Sequence[Row], whole: Whole) -> str:
    def flat(row: Row) -> bool:
        a = row.activation
        return (
            a is not None
            and a.units >= 16
            and a.rows >= 2 * a.units
            and a.directions <= max(1, COLLAPSED * a.units)
        )

    bad = [
        f"{row.activation.directions:.0f} of {row.activation.units} directions of `{row.name}`"
        for row in rows
        if row.activation and flat(row)
    ]
    return (
        bad
        and f"90 % of the variance lies in {_listed(bad)}: a narrower layer would do, or a norm keeps one feature from ruling."
        or ""
    )


def _heads(rows: Sequence[Row], whole: Whole) -> str:
    heads = [
        (f"{row.name}, head {i}", share)
        for row in rows
        if row.activation
        for i, share in enumerate(row.activation.entropy)
    ]
    one = [name for name, share in heads if share <= ONE_KEY]
    alike = [name for name, share in heads if share >= ALL_ALIKE]
    kinds = [(one, "look at one key"), (alike, "look at all keys alike")]
    parts = [
        f"{len(which)} of {len(heads)} heads {what} ({_listed(which)})" for which, what in kinds if which
    ]
    return (
        parts
        and f"{'; '.join(parts)}: they may be left out; compare the loss without them (fn.taps.replace)."
        or ""
    )


def _singular(rows: Sequence[Row], whole: Whole) -> str:
    bad = [row for row in rows if row.weight and row.weight.condition >= SINGULAR]
    return (
        bad
        and f"{_names(bad)} are singular to the digits of float32: try a lower rank, or an orthogonal start."
        or ""
    )


def _few(rows: Sequence[Row], whole: Whole) -> str:
    holders, n = whole.gradient.holders if whole.gradient else 0, whole.examples
    if n < 50 or not 0 < holders <= FEW * n:
        return ""
    return f"{holders} of {n} examples hold half of the gradient: look at their labels (fn.analysis.example_norms finds them), or clip per example."


def _still(rows: Sequence[Row], whole: Whole) -> str:
    bad = [row for row in rows if row.weight and row.weight.moved <= STILL]
    return (
        bad
        and f"{_names(bad)} are still as at the start, to {STILL:.1%}: is there a gradient, and is the learning rate large enough?"
        or ""
    )


def _tail(rows: Sequence[Row], whole: Whole) -> str:
    def text(row: Row) -> str:
        return f"`{row.name}` ({row.weight.tail:.1f})" if row.weight else ""

    fits = [row for row in rows if row.weight and row.weight.fit <= FIT]
    heavy = [text(row) for row in fits if row.weight and row.weight.tail < TAIL[0]]
    light = [text(row) for row in fits if row.weight and row.weight.tail > TAIL[1]]
    parts = [f"{_listed(heavy)} below {TAIL[0]:g}"] * bool(heavy) + [
        f"{_listed(light)} above {TAIL[1]:g}"
    ] * bool(light)
    return (
        parts
        and f"The spectrum's tail has exponents {'; '.join(parts)}: below, few directions rule (more weight decay); above, it is as if drawn at random (train longer)."
        or ""
    )


_FINDINGS = (_not_finite, _dead, _saturated, _collapsed, _heads, _singular, _few, _still, _tail)
