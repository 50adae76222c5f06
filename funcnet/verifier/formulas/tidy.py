"""Terms made shorter: common factors before sums, one transpose for a whole sum, names for values.

Each step is kept only where it leaves fewer operations. None multiplies out, so that this ends quickly.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

from funcnet.verifier.formulas.algebra import (
    Term,
    add,
    apply,
    count,
    factors,
    inner,
    is_fixed,
    is_zero,
    mul,
    number,
    opposite,
    power,
    split,
)
from funcnet.verifier.formulas.matrices import matmul, outer, rebuilt, transpose

__all__ = ["share", "tidy"]

MAX_ROUNDS = 20
MAX_NAMES = 4
LETTERS = {0: "rstuvq", 1: "rstuvq", 2: "RSTUVQ"}  # of values, by how many axes they have


def tidy(term: Term, y: Term, y_name: Term) -> Term:
    """The shortest of what collecting gives, with the value of the formula by its name or without it.

    Args:
        term: a gradient.
        y: the formula.
        y_name: its name, of the same shape.
    """
    first = _collected(term, y)
    if not y.args or is_zero(y):
        return first
    candidates = [*(_collected(_with_value(t, y, y_name), y) for t in (first, term)), first]
    return min(candidates, key=lambda t: t.size)


def _everywhere(term: Term, change: Callable[[Term], Term]) -> Term:
    """`change` of every term within, operands first."""
    done: dict[Term, Term] = {}
    for t in term:
        done[t] = change(rebuilt(t, [done[arg] for arg in t.args]))
    return done[term]


# ---- factors before sums ----------------------------------------------------------------------------------


def _collected(term: Term, y: Term) -> Term:
    for _ in range(MAX_ROUNDS):
        before, term = term, _everywhere(term, lambda t: _shorter(t, y))
        if term is before:
            break
    return term


def _shorter(term: Term, y: Term) -> Term:
    if term.op == "mul":
        term = _averaged(term, y)
    while term.op == "add":
        better = min(_gathered(term), key=lambda t: t.size, default=term)
        if better.size >= term.size:
            break
        term = better
    return _turned(term)


def _turned(term: Term) -> Term:
    """One transpose of a whole sum or product, element by element, for those of its parts."""
    if term.ndim != 2 or term.op not in ("add", "mul"):
        return term
    arrays = [f for f in term.args if f.ndim] if term.op == "mul" else [term]
    matrix = mul(*arrays)
    if (len(arrays) == 1 and matrix.op != "add") or (flipped := transpose(matrix)).size + 1 >= matrix.size:
        return term
    turned = apply("T", flipped, shape=term.shape)
    return mul(*(f for f in term.args if not f.ndim), turned) if term.op == "mul" else turned


def _averaged(product: Term, y: Term) -> Term:
    """The product with a mean where it holds a sum and the number of its summands below."""
    for total, exponent in factors(product)[1].items():
        if total.op == "sum" and exponent == 1:
            (x,), axes = total.args, total.data[0]
            like = y if x.shape == y.shape and {t.data[0] for t in x if t.op == "name"} & {"y", "dy"} else x
            mean = apply("mean", x, shape=total.shape, data=total.data)
            shorter = mul(product, count(like, axes), power(total, -1), mean)
            if shorter.size < product.size:
                return shorter
    return product


def _gathered(term: Term) -> Iterator[Term]:
    """The sum with a factor before all of it, or with two of its terms as one."""
    common = _common(term.args)
    if common is not None:
        yield mul(common, add(*(mul(part, power(common, -1)) for part in term.args)))
    for a, b in itertools.combinations(term.args, 2):
        if (one := _as_one(a, b)) is not None:
            yield add(one, *(part for part in term.args if part is not a and part is not b))


def _common(terms: Sequence[Term]) -> Term | None:
    """The factors that all have, the number too."""
    numbers, powers = zip(*map(factors, terms), strict=True)
    shared = {
        base: min(p[base] for p in powers) if powers[0][base] > 0 else max(p[base] for p in powers)
        for base in powers[0]
        if all(base in p and p[base] * powers[0][base] > 0 for p in powers)
    }
    coefficient = _common_number(numbers)
    factor = mul(number(coefficient), *(power(base, exponent) for base, exponent in shared.items()))
    return factor if shared or coefficient != 1 else None


def _common_number(numbers: Sequence[Fraction]) -> Fraction:
    """The number before all: the one that all have but for the sign, else the divisor of their tops."""
    if len({abs(n) for n in numbers}) == 1:
        return abs(numbers[0]) if any(n > 0 for n in numbers) else -abs(numbers[0])
    divisor = math.gcd(*(n.numerator for n in numbers))
    bottoms = {n.denominator for n in numbers}
    return Fraction(divisor, bottoms.pop() if len(bottoms) == 1 else 1) or Fraction(1)


def _as_one(a: Term, b: Term) -> Term | None:
    """A x + B x = (A + B) x, x A + x B, and the same of outer products; two halves of a choice."""
    for mask in factors(a)[1]:
        if mask.op == "mask" and factors(b)[1].get(other := opposite(mask)) == 1:
            first, second = mul(a, power(mask, -1)), mul(b, power(other, -1))
            return apply("where", mask, inner(first), inner(second), shape=add(mask, first, second).shape)
    (p, a), (q, b) = split(a), split(b)
    if a.op != b.op or a.op not in ("matmul", "outer"):
        return None
    product = matmul if a.op == "matmul" else outer

    def together(rest_a: Sequence[Term], rest_b: Sequence[Term]) -> Term:
        return add(mul(number(p), matmul(*rest_a)), mul(number(q), matmul(*rest_b)))

    if a.args[-1] is b.args[-1]:
        return product(together(a.args[:-1], b.args[:-1]), a.args[-1])
    if a.args[0] is b.args[0]:
        return product(a.args[0], together(a.args[1:], b.args[1:]))
    return None


# ---- values with a name -----------------------------------------------------------------------------------


def _with_value(term: Term, value: Term, its_name: Term) -> Term:
    """The term with a name for a value wherever it stands, also as a factor of a product."""
    return _everywhere(term, lambda t: its_name if t is value else _factored(t, value, its_name))


def _factored(term: Term, value: Term, its_name: Term) -> Term:
    if term.op not in ("mul", "pow") or value.op not in ("mul", "pow"):
        return term
    while (inside := _absorbed(term, value, its_name)) is not None:
        term = inside
    (_, those), (_, powers) = factors(value), factors(term)
    ratios = [powers.get(base, Fraction(0)) / exponent for base, exponent in those.items()]
    times = math.floor(min(ratios)) if min(ratios) > 0 else math.ceil(min(max(ratios), 0))
    if times == 0 or not any(base.ndim == its_name.ndim for base in those):
        return term
    replaced = mul(term, power(value, -times), power(its_name, times))
    return replaced if replaced.size <= term.size else term


def _absorbed(term: Term, value: Term, its_name: Term) -> Term | None:
    """s Σ(g · v) = Σ(g · (s v)), where the value is s v; so of a product of vectors."""
    for v in factors(value)[1]:
        s = inner(mul(value, power(v, -1)))
        for sum_ in factors(term)[1]:
            changed = None
            if sum_.op == "matmul" and v.ndim == 1 and s.ndim == 0 and v in (sum_.args[0], sum_.args[-1]):
                first = sum_.args[0] is v
                rest = sum_.args[1:] if first else sum_.args[:-1]
                changed = matmul(its_name, *rest) if first else matmul(*rest, its_name)
            elif (
                sum_.op in ("sum", "mean")
                and sum_.args[0].shape == v.shape
                and is_fixed(s, v.ndim, sum_.data[0])
            ):
                within = sum_.args[0]
                if factors(within)[1].get(v) == 1 and (s.ndim == 0 or sum_.data[1]):
                    product = mul(within, power(v, -1), its_name)
                    changed = apply(sum_.op, product, shape=sum_.shape, data=sum_.data)
            if changed is not None:
                better = mul(term, power(s, -1), power(sum_, -1), changed)
                if better.size <= term.size:
                    return better
    return None


# ---- what several gradients share -------------------------------------------------------------------------


def share(terms: Sequence[Term], taken: Sequence[str]) -> tuple[dict[str, Term], list[Term]]:
    """Names for values that make terms shorter to read.

    Args:
        terms: gradients.
        taken: names that have a meaning already.

    Returns:
        The values by name, each made of those before it, and the terms with these names.
    """
    left, shared = list(terms), dict[Term, Term]()
    while len(shared) < MAX_NAMES:
        its_name = apply("name", shape=(), data=(f"#{len(shared)}", False))  # until the order is known
        if (value := _repeated([*left, *shared.values()], its_name)) is None:
            break
        its_name = apply("name", shape=value.shape, data=its_name.data)
        left = [_with_value(term, value, its_name) for term in left]
        shared = {n: _with_value(term, value, its_name) for n, term in shared.items()} | {its_name: value}
    values: dict[str, Term] = {}
    while shared:
        its_name = next(n for n, value in shared.items() if not shared.keys() & set(value))
        value = shared.pop(its_name)
        letters = LETTERS[min(value.ndim, 2)]
        numbered = (f"{letters[0]}{i}" for i in itertools.count(1))
        letter = next(c for c in itertools.chain(letters, numbered) if c not in [*taken, *values])
        final = apply("name", shape=value.shape, data=(letter, False))
        left = [_with_value(term, its_name, final) for term in left]
        shared = {n: _with_value(term, its_name, final) for n, term in shared.items()}
        values[letter] = value
    return values, left


def _repeated(terms: Sequence[Term], its_name: Term) -> Term | None:
    """The value whose name would shorten these terms the most, if one does by more than it costs to read."""
    within = list(dict.fromkeys(part for term in terms for part in term))
    products = [part for part in within if part.op == "mul"]
    shared = [_common(pair) for pair in itertools.combinations(products, 2)]
    candidates = dict.fromkeys(split(value)[1] for value in [*within, *shared] if value is not None)
    best, gain = None, 2
    for value in candidates:
        if value.size < 4 or not _has_meaning(value):
            continue
        name = apply("name", shape=value.shape, data=its_name.data)
        after = [_with_value(term, value, name) for term in terms]
        saved = sum(t.size for t in terms) - sum(t.size for t in after) - value.size
        if saved > gain:
            best, gain = value, saved
    return best


def _has_meaning(value: Term) -> bool:
    """Not a mere divisor or number of elements; and no condition, which is not printed as a value is."""
    if value.op == "mask":
        return False
    coefficient, powers = factors(value)
    is_above = [exponent > 0 for exponent in powers.values()]
    return any(is_above) and any(base.op != "count" for base in powers) and coefficient.denominator == 1
