"""What of an x-ray is unusual, and what one would try: at most five sentences, each with its threshold."""

import math
from collections.abc import Iterable, Sequence

from funcnet.analysis._results import Activation, XRay

__all__ = ["findings"]

MOST = 5  # sentences
NAMED = 3  # layers in one of them

DEAD = 0.1  # of a layer's units
SATURATED = 0.1  # of a layer's units
COLLAPSED = 0.02  # of the units, or one direction, of a layer of 16 or more; with twice as many rows
ONE_KEY, ALL_ALIKE = 0.02, 0.98  # of the largest entropy of a head
SINGULAR = 1e6  # condition: what float32 leaves of the least values is rounding
FEW = 0.02  # of 50 examples or more
STILL = 1e-3  # of the norm at the start
HEAVY, LIGHT, FIT = 2.0, 6.0, 0.1  # exponents of a tail; how well it is fitted


def findings(found: XRay) -> tuple[str, ...]:
    """The sentences, what is worst first."""
    told = ((tell(found), sentence) for tell, sentence in _KINDS)
    return (*[sentence.format(what) for what, sentence in told if what][:MOST],)


def _listed(parts: Sequence[str]) -> str:
    more = f" and {len(parts) - NAMED} more" if len(parts) > NAMED else ""
    return ", ".join(parts[:NAMED]) + more


def _names(names: Iterable[str]) -> str:
    return _listed([f"`{name}`" for name in names])


def _activations(found: XRay) -> dict[str, Activation]:
    return {name: each for name, each in found.each("activation").items() if each.units}


def _units(counts: Sequence[tuple[str, int, int]], share: float) -> str:
    """``34 of 128 units of `hidden` ``, the largest share first, where one is large enough."""
    bad = sorted((c for c in counts if c[1] >= share * c[2]), key=lambda c: -c[1] / c[2])
    return _listed([f"{count} of {units} units of `{name}`" for name, count, units in bad])


# ---- each says what is unusual, or "" ---------------------------------------------------------------------


def _not_finite(found: XRay) -> str:
    bad = [name for name, weight in found.each("weight").items() if not weight.spectrum.size]
    bad += [name for name, each in _activations(found).items() if not math.isfinite(each.spread)]
    bad += [name for name, each in found.each("gradient").items() if not math.isfinite(each.norm)]
    return _names(dict.fromkeys(bad))


def _dead(found: XRay) -> str:
    return _units([(name, each.dead, each.units) for name, each in _activations(found).items()], DEAD)


def _saturated(found: XRay) -> str:
    return _units(
        [(name, each.saturated, each.units) for name, each in _activations(found).items()], SATURATED
    )


def _collapsed(found: XRay) -> str:
    return _listed(
        [
            f"{each.directions:.0f} of {each.units} directions of `{name}`"
            for name, each in _activations(found).items()
            if each.units >= 16 and each.rows >= 2 * each.units
            if 0 < each.directions <= max(1, COLLAPSED * each.units)
        ]
    )


def _heads(found: XRay) -> str:
    heads = [
        (f"head {i} of `{name}`", share)
        for name, each in found.each("activation").items()
        for i, share in enumerate(each.entropy)
    ]
    one = [name for name, share in heads if share <= ONE_KEY]
    alike = [name for name, share in heads if share >= ALL_ALIKE]
    kinds = ((one, "at one key"), (alike, "at all keys alike"))
    return "; ".join(
        f"{len(some)} of {len(heads)} heads look {what} ({_listed(some)})" for some, what in kinds if some
    )


def _singular(found: XRay) -> str:
    bad = [(name, each) for name, each in found.each("weight").items() if each.condition >= SINGULAR]
    return _listed([f"`{name}`{' (its circular extension)' * each.circular}" for name, each in bad])


def _few(found: XRay) -> str:
    gradient = found.whole.gradient
    if gradient is None or gradient.examples < 50 or not 0 < gradient.holders <= FEW * gradient.examples:
        return ""
    return f"{gradient.holders} of {gradient.examples} examples hold{'s' * (gradient.holders == 1)}"


def _still(found: XRay) -> str:
    return _names(name for name, weight in found.each("weight").items() if weight.moved <= STILL)


def _heavy(found: XRay) -> str:
    return _tails(found, -math.inf, HEAVY)


def _light(found: XRay) -> str:
    return _tails(found, LIGHT, math.inf)


def _tails(found: XRay, low: float, high: float) -> str:
    fitted = [(name, weight.tail) for name, weight in found.each("weight").items() if weight.fit <= FIT]
    return _listed([f"`{name}` ({tail:.1f})" for name, tail in fitted if low < tail < high])


_KINDS = (
    (_not_finite, "What {} holds is not finite: fn.find_nan names the operation that made it."),
    (
        _dead,
        "{} never fire: try a lower learning rate, a rectifier with a slope below 0, or fewer units.",
    ),
    (
        _saturated,
        "{} are saturated and pass on no gradient: try smaller weights at the start, or a norm before them.",
    ),
    (
        _collapsed,
        "90 % of the variance lies in {}: a narrower layer would do, or a norm would keep one feature from "
        "ruling the others.",
    ),
    (_heads, "{}: try the loss without them (fn.taps.replace), they may not be needed."),
    (
        _singular,
        "{}: condition above 1e6, so that the least singular values are rounding: try a factored layer, or "
        "weight decay.",
    ),
    (
        _few,
        "{} half of the gradient: look at their labels (`strangest()` names them), or clip per example.",
    ),
    (
        _still,
        "{}: moved by less than 0.1 % since the start: does a gradient reach it, and is the learning rate "
        "large enough?",
    ),
    (_heavy, "{}: a tail exponent below 2, few directions rule the spectrum: try more weight decay."),
    (_light, "{}: a tail exponent above 6, the spectrum is as if drawn at random: try to train longer."),
)
