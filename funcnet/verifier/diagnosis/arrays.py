"""Naming a mistake from arrays alone: what the formula gives, and what is true, for several cotangents."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from funcnet.verifier.finding import Finding

__all__ = [
    "PARTS",
    "Sizes",
    "at_border",
    "at_one_end",
    "blocks",
    "is_mask",
    "name_constant",
    "named",
    "orders",
    "ratio",
    "reordered",
    "scaled",
    "support",
]

Pairs = Sequence[tuple[np.ndarray, np.ndarray]]  # (formula, truth) per cotangent
Sizes = Mapping[str, int]  # of arguments and result, by name: x.shape[0]
MANY = 5040  # sets or orders of axes; more are not tried
SAME = 1e-7  # of the largest element: two arrays are one


def named(argument: str, pairs: Pairs, others: Mapping[str, Pairs], batched: int) -> Finding | None:
    """The mistake in one gradient, if arrays show it.

    Args:
        argument: whose gradient it is.
        pairs: formula and truth; the shapes of all formulas are equal, and those of all truths.
        others: the same of the other arguments.
        batched: the number of axes of the result.
    """
    got, want = pairs[0]
    if got.shape != want.shape:
        return _other_shape(argument, pairs, batched)
    if all(not u.any() for u, _ in pairs):
        return Finding(argument, "zero", "the formula gives zeros, and the true gradient is not zero")
    if not all(np.isfinite(u).all() for u, _ in pairs):
        bad = ~np.isfinite(pairs[0][0])
        return Finding(
            argument, "nan", "the formula is not finite where the true gradient is", where=support(bad)
        )
    for other, theirs in others.items():
        if _same([(u, t) for (u, _), (_, t) in zip(pairs, theirs, strict=True)]):
            return Finding(
                argument, "swapped", f"this is the gradient of {other}", f"exchange it with that of {other}"
            )
    if np.iscomplexobj(got) and _all(pairs, np.conj):
        message = "this is the complex conjugate of the true gradient"
        return Finding(argument, "sign", message, "append .conj()")
    for axes in itertools.permutations(range(got.ndim)) if got.ndim <= 4 else ():
        if axes != tuple(range(got.ndim)) and _all(pairs, lambda u, axes=axes: u.transpose(axes)):
            fix = ".T" if got.ndim == 2 else f".transpose{axes}"
            return Finding(
                argument, "transpose", "this is the transpose of the true gradient", f"append {fix}"
            )
    for axis in range(got.ndim):
        if _all(pairs, lambda u, axis=axis: np.flip(u, axis)):
            return Finding(argument, "flip", f"reversed along axis {axis}", f"flip it along axis {axis}")
    spatial = [a for a in range(got.ndim) if got.shape[a] > 2]
    for axis, by in ((a, s) for a in spatial for s in (1, -1, 2, -2)):
        if _all(pairs, lambda u, a=axis, s=by: np.roll(u, s, a)) or _shifted(pairs, axis, by):
            return Finding(argument, "shift", f"shifted by {-by} along axis {axis}", f"shift it by {by}")
    if got.ndim > 1 and len(set(got.shape)) == 1:
        for axes in itertools.combinations(range(got.ndim), 2):
            turned = lambda u, axes=axes: np.flip(u, axes)
            if _all(pairs, turned):
                return Finding(argument, "flip", f"reversed along axes {axes}", f"flip it along axes {axes}")
    return None


def _all(pairs: Pairs, edit: Callable[[np.ndarray], np.ndarray]) -> bool:
    """Whether the edited formula is the truth, for every cotangent."""
    return _same([(edit(u), t) for u, t in pairs])


def _same(pairs: Pairs) -> bool:
    scale = max(np.abs(t).max(initial=1e-300) for _, t in pairs)
    return all(u.shape == t.shape and np.abs(u - t).max(initial=0) <= SAME * scale for u, t in pairs)


PARTS = 4  # of more, two are exchanged, or all reversed or turned


def orders(n: int) -> list[tuple[int, ...]]:
    """The other orders of n parts; of many parts, two exchanged, or all reversed or turned."""
    if n <= PARTS:
        return list(itertools.permutations(range(n)))[1:]
    pairs = itertools.islice(itertools.combinations(range(n), 2), 2 * PARTS**2)
    swaps = [tuple({a: b, b: a}.get(i, i) for i in range(n)) for a, b in pairs]
    return [*swaps, *(tuple((i + by) % n for i in range(n)) for by in (1, n - 1)), tuple(range(n))[::-1]]


def blocks(argument: str, pairs: Pairs) -> Finding | None:
    """Whether two, three or four blocks of one gradient are in another order."""
    got, want = pairs[0]
    for axis, n in itertools.product(range(got.ndim), (2, 3, 4)) if got.shape == want.shape else ():
        for order in orders(n) if got.shape[axis] % n == 0 and got.shape[axis] else ():
            if _all(pairs, lambda u, axis=axis, order=order: reordered(u, axis, order)):
                message = f"the {n} blocks along axis {axis} are in another order"
                fix = f"take them in the order {', '.join(map(str, order))}"
                return Finding(argument, "swapped", message, fix)
    return None


def reordered(x: np.ndarray, axis: int, order: Sequence[int]) -> np.ndarray:
    """An array with the blocks that an axis is cut into in another order."""
    parts = np.split(x, len(order), axis)
    return np.concatenate([parts[i] for i in order], axis)


def ratio(pairs: Pairs) -> float | None:
    """c where U = c·T for every cotangent."""
    if not all(np.isfinite(u).all() for u, _ in pairs):
        return None
    dot = sum(float(np.vdot(u, t).real) for u, t in pairs)
    norm = sum(float(np.vdot(t, t).real) for _, t in pairs)
    c = dot / norm if norm else 0.0
    return c if c and _same([(u, c * t) for u, t in pairs]) else None


def scaled(argument: str, factors: Sequence[tuple[float, Sizes]]) -> Finding | None:
    """A gradient that is off by a factor at every point, if the same constant or size explains them all."""
    c, name = factors[0][0], name_constant(factors)
    if name is None:
        return None
    if abs(c + 1) < SAME:
        return Finding(argument, "sign", "this is the negative of the true gradient", "negate it")
    inverse = name_constant([(1 / c, sizes) for c, sizes in factors])
    message = f"too large by the factor {c:.6g}" if abs(c) > 1 else f"too small: {c:.6g} of the true gradient"
    known = lambda text: f" ({text})" if text else ""
    return Finding(argument, "scale", message + known(name), f"multiply it by {1 / c:.6g}" + known(inverse))


def name_constant(factors: Sequence[tuple[float, Sizes]]) -> str | None:
    """What a factor is, given what it is at each of several points: "1/7: x.shape[0]".

    "" where it is the same number everywhere and no size explains it; None where it is not.
    """
    texts: dict[str, str] = {}
    for n, (c, sizes) in enumerate(factors):
        here = {key: text for key, text, value in _constants(sizes) if abs(abs(c) - value) < SAME * value}
        texts = here if n == 0 else {key: text for key, text in texts.items() if key in here}
    first = factors[0][0]
    if texts and len({c > 0 for c, _ in factors}) == 1:
        return ("-" if first < 0 else "") + next(iter(texts.values()))
    same = lambda values: all(abs(v - values[0]) <= SAME * abs(values[0]) for v in values)
    if same([c for c, _ in factors]):
        return ""
    for name, n in factors[0][1].items():  # in proportion to a size
        if all(sizes.get(name) for _, sizes in factors):
            if same([c / sizes[name] for c, sizes in factors]):
                return f"{first / n:.6g}·{n}: {name}"
            if same([c * sizes[name] for c, sizes in factors]):
                return f"{first * n:.6g}/{n}: {name}"
    return None


def _constants(sizes: Sizes) -> Iterator[tuple[str, str, float]]:
    """The factors that people forget or add: what they are at any sizes, what here, and their value."""
    for name, n in sizes.items():
        for key, text, value in (
            ("n", f"{n}", n),
            ("1/n", f"1/{n}", 1 / max(n, 1)),
            ("√n", f"√{n}", math.sqrt(n)),
            ("1/√n", f"1/√{n}", 1 / math.sqrt(max(n, 1))),
            ("n-1/n", f"{n - 1}/{n}", (n - 1) / max(n, 1)),
            ("n/n-1", f"{n}/{n - 1}", n / max(n - 1, 1)),
            ("n²", f"{n}²", n * n),
            ("1/n²", f"1/{n}²", 1 / max(n * n, 1)),
            ("n-1", f"{n - 1}", n - 1),
            ("1/n-1", f"1/{n - 1}", 1 / max(n - 1, 1)),
        ):
            if n > 1 and value != 1:
                yield f"{key} {name}", f"{text}: {name}", float(value)
    for (a, m), (b, n) in itertools.islice(itertools.combinations(sizes.items(), 2), MANY):
        if m > 1 and n > 1:
            yield f"{a}·{b}", f"{m}·{n}: {a} · {b}", float(m * n)
            yield f"1/{a}·{b}", f"1/({m}·{n}): {a} · {b}", 1 / (m * n)
            if m != n:
                yield f"{a}/{b}", f"{m}/{n}: {a} / {b}", m / n
                yield f"{b}/{a}", f"{n}/{m}: {b} / {a}", n / m


def _other_shape(argument: str, pairs: Pairs, batched: int) -> Finding:
    got, want = pairs[0]
    expected = f"shape {got.shape}, not {want.shape}"
    extra = got.ndim - want.ndim
    if got.size == want.size and _all(pairs, lambda u: u.reshape(want.shape)):
        return Finding(argument, "shape", expected, f"append .reshape({want.shape})")
    if extra > 0:
        batch = tuple(range(extra))
        if (got.ndim == batched or (extra == 1 and want.ndim)) and _all(pairs, lambda u: u.sum(batch)):
            axes = batch[0] if extra == 1 else batch
            return Finding(
                argument,
                "missing_batch_sum",
                f"{expected}: not summed over the batch",
                f"append .sum({axes})",
            )
        for axes in itertools.islice(itertools.combinations(range(got.ndim), extra), MANY):
            if np.delete(got.shape, axes).tolist() == [*want.shape] and _all(
                pairs, lambda u, axes=axes: u.sum(axes)
            ):
                return Finding(
                    argument, "unbroadcast", f"{expected}: not summed back", f"append .sum({axes})"
                )
    if extra >= 0:
        axes = tuple(range(extra)) + tuple(
            extra + i
            for i, (a, b) in enumerate(zip(got.shape[extra:], want.shape, strict=True))
            if b == 1 != a
        )
        if axes and _all(
            pairs, lambda u: u.sum(axes).reshape(want.shape) if u.sum(axes).size == want.size else u
        ):
            return Finding(
                argument,
                "unbroadcast",
                f"{expected}: not summed over the axes that the forward pass broadcasts",
                f"sum it over {axes} with keepdims",
            )
    if got.ndim == want.ndim and sorted(got.shape) == sorted(want.shape):
        for axes in itertools.islice(itertools.permutations(range(got.ndim)), MANY):
            if [got.shape[a] for a in axes] == [*want.shape] and _all(
                pairs, lambda u, axes=axes: u.transpose(axes)
            ):
                return Finding(
                    argument, "transpose", f"{expected}: the transpose of the gradient", "append .T"
                )
    return Finding(argument, "shape", expected, f"give it the shape {want.shape} of the argument")


def _shifted(pairs: Pairs, axis: int, by: int) -> bool:
    """Shifted with zeros moving in: equal where both know."""
    inner = [slice(None)] * pairs[0][0].ndim
    inner[axis] = slice(by, None) if by > 0 else slice(None, by)
    return _same([(np.roll(u, by, axis)[tuple(inner)], t[tuple(inner)]) for u, t in pairs]) and any(
        t[tuple(inner)].any() for _, t in pairs
    )


def support(wrong: np.ndarray) -> str:
    """Where a boolean array is True, in words: "rows 0 and 6 of axis 0"; "" if everywhere or scattered."""
    if wrong.all() or not wrong.any() or not wrong.ndim:
        return ""
    for axis in range(wrong.ndim):
        others = tuple(a for a in range(wrong.ndim) if a != axis)
        some = np.flatnonzero(wrong.any(others))
        if len(some) < wrong.shape[axis] and wrong.take(some, axis).mean() > 0.5:
            return f"{_listed(some)} of axis {axis}"
    return f"{int(wrong.sum())} of {wrong.size} elements"


def _listed(indices: np.ndarray) -> str:
    first, last = int(indices[0]), int(indices[-1])
    if len(indices) == 1:
        return f"index {first}"
    if len(indices) == last - first + 1:
        return f"indices {first} to {last}"
    return "indices " + ", ".join(map(str, indices[:6])) + (", ..." if len(indices) > 6 else "")


def at_border(errors: Any) -> bool:
    """Whether all that is wrong lies in the outer quarter of an axis, and what is inside is right.

    The first axis of several may be a batch, or rows: there both ends must be wrong.
    """
    if errors is None or not errors.size:
        return False
    bad = errors > 1e-6 * errors.max()
    for axis in range(bad.ndim):
        n, others = bad.shape[axis], tuple(a for a in range(bad.ndim) if a != axis)
        rows, reach = np.flatnonzero(bad.any(others)), max(1, min(n // 4, 3))
        ends = len(rows) and (axis > 0 or bad.ndim == 1 or (rows[0] == 0 and rows[-1] == n - 1))
        if n >= 4 and ends and all(r < reach or r >= n - reach for r in rows):
            return True
    return False


def at_one_end(wrong: np.ndarray) -> bool:
    """Whether all that is wrong is the first or the last of several rows along one axis."""
    for axis, n in enumerate(wrong.shape):
        rows = np.flatnonzero(wrong.any(tuple(a for a in range(wrong.ndim) if a != axis)))
        if n > 3 and rows.tolist() in ([0], [n - 1]):
            return True
    return False


def is_mask(x: Any) -> bool:
    """Whether an array holds nothing but 0 and 1."""
    return np.asarray(x).dtype == bool or bool(np.isin(x, (0, 1)).all())
