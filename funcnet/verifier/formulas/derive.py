"""The gradient of a formula, as a formula, by the rules of matrix calculus; verified before it is shown.

The text is read into a term (reading), differentiated in reverse mode (calculus), made short (tidy) and
printed (printing); what is printed is read back and judged by the verifier (proof). What fails is not shown.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnet.errors import DTypeError, ShapeError, ValueRangeError, describe
from funcnet.verifier.formulas import algebra, printing
from funcnet.verifier.formulas.algebra import Term
from funcnet.verifier.formulas.calculus import NotDerived, gradients
from funcnet.verifier.formulas.expense import expense
from funcnet.verifier.formulas.expression import formula
from funcnet.verifier.formulas.proof import differing, doubts, point
from funcnet.verifier.formulas.reading import read
from funcnet.verifier.formulas.tidy import share, tidy

__all__ = ["Derivation", "derive"]

MAX_FLOPS = 1e9  # of the formula; the verifier runs it some fifty times


@dataclasses.dataclass(frozen=True)
class Derivation:
    """The gradients of a formula, as text; prints as what `funcnet derive` shows.

    Attributes:
        formula: the definition of y.
        gradients: of Σ dy · y, by argument: one expression each, of the arguments, ``y`` and ``dy``, as
            ``funcnet verify --grad`` and `formula` take it.
        plain: of a scalar y, the same for dy = 1; else empty.
        lines: the gradients (of a scalar y for dy = 1) with names for what they share: pairs of a name and
            its expression, which refers to names before it.
        latex: the same as LaTeX, the definition first.
        reasons: for each argument that has no gradient here, why.
        symmetric: the arguments that are taken to be symmetric.
    """

    formula: str
    gradients: dict[str, str]
    plain: dict[str, str]
    lines: tuple[tuple[str, str], ...]
    latex: tuple[tuple[str, str], ...]
    reasons: dict[str, str]
    symmetric: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every gradient asked for was derived; each that is given was verified."""
        return not self.reasons

    @property
    def verdict(self) -> str:
        """One line: ``2 of 3 gradients derived, and verified``."""
        derived, total = len(self.gradients), len(self.gradients) + len(self.reasons)
        where = f" (right where {', '.join(self.symmetric)} is symmetric)" if self.symmetric else ""
        return (
            f"{derived} of {total} gradients derived, and verified{where}" if derived else "nothing derived"
        )

    def __str__(self) -> str:
        width = max((len(name) for name, _ in self.lines), default=1)
        text = [f"{'y'.ljust(width)} = {self.formula}", ""]
        if self.lines:
            text += [f"gradient of {'y' if self.plain else 'sum(dy * y)'}:"]
        text += [f"{name.ljust(width)} = {value}" for name, value in self.lines]
        text += [f"d{name}: not derived: {why}" for name, why in self.reasons.items()]
        if self.latex:
            text += ["", "LaTeX:", *(f"{name} = {value}" for name, value in self.latex)]
        return "\n".join([*text, "", self.verdict])


def derive(
    text: str,
    shapes: Mapping[str, Any],
    *,
    wrt: Iterable[str] | None = None,
    symmetric: Iterable[str] = (),
    seed: int = 0,
) -> Derivation:
    """The gradient of a formula, as a formula.

    The rules are a closed list: products, transposes, inverse, solve, trace, determinant and its logarithm,
    norms, sums and means over axes, softmax, logsumexp, diag, and functions of each element. What they give
    is simplified by collecting and transposing, and verified in float64 against autodiff; only what is right
    is given.

    Args:
        text: the formula, as `funcnet verify --forward` takes it: ``"x @ A @ x"``.
        shapes: of every argument, by name: a tuple of sizes, or an array, at whose values it is verified too.
            An integer array (ids) has no gradient.
        wrt: the arguments by which to derive; None: all that have floats.
        symmetric: matrices that are symmetric: their transposes are left out, and the gradients are right
            there only.
        seed: of the values at which it is verified.

    Returns:
        A `Derivation`: for each argument its gradient, or the reason why there is none.

    Raises:
        ExpressionError: the text is no formula, or cannot be computed for these shapes.
        ShapeError: a symmetric argument is no square matrix.
        DTypeError: the formula, or an argument of `wrt`, has no floats, or shapes are not given as said.
        ValueRangeError: a name is unknown, or is ``y`` or ``dy``; the shapes are too large to verify at.

    >>> import funcnet as fn
    >>> fn.derive("x @ A @ x", {"x": (7,), "A": (7, 7)}).plain
    {'x': '(A + A.T) @ x', 'A': 'outer(x, x)'}
    """
    symmetric = tuple(symmetric)
    structs = {key: _struct(key, given) for key, given in shapes.items()}
    wanted = _wanted(structs, wrt)
    for key in symmetric:
        struct = structs.get(key)
        if struct is None or struct.ndim != 2 or struct.shape[0] != struct.shape[1]:
            got = "no such argument" if struct is None else describe(struct)
            raise ShapeError(f"derive: symmetric {key} is no square matrix.", path=key, actual=got)
    forward = formula(text, list(structs))
    traced = jax.make_jaxpr(lambda given: forward(**given))(structs)
    if (flops := expense(traced).flops) > MAX_FLOPS:
        problem = f"derive: at these shapes the formula takes {flops:.0e} operations."
        hint = "its gradient is the same at smaller ones"
        raise ValueRangeError(problem, expected=f"at most {MAX_FLOPS:.0e}", hint=hint)
    (value,) = traced.out_avals
    shape = value.shape
    if not jnp.issubdtype(value.dtype, jnp.floating):
        problem = f"derive: {text} gives {value.dtype}, which has no gradient."
        raise DTypeError(problem, expected="floating-point numbers")

    y = read(text, structs, symmetric)
    assert y.shape == shape  # the terms broadcast as NumPy does
    terms, reasons = _terms(y, {key: structs[key].shape for key in wanted}, symmetric)
    write = functools.partial(printing.numpy, solve="solve(" in text)
    dy = algebra.name("dy", shape)
    texts = {key: write(t if shape else algebra.mul(dy, t)) for key, t in terms.items()}
    texts = {key: f"zeros_like({key})" if algebra.is_zero(terms[key]) else t for key, t in texts.items()}

    given = {key: np.asarray(v) for key, v in shapes.items() if hasattr(v, "dtype")}
    there = point(forward, {key: v.shape for key, v in structs.items()}, given, symmetric, seed)
    if there is None:
        reasons |= dict.fromkeys(terms, "the formula is finite at none of the values that were tried")
    else:
        reasons |= doubts(forward, there, texts, symmetric, seed)
    terms = {key: t for key, t in terms.items() if key not in reasons}
    values, named = share(list(terms.values()), [*structs, "y", "dy", *(f"d{key}" for key in terms)])
    shown = values | {f"d{key}": t for key, t in zip(terms, named, strict=True)}
    if there and differing(there, texts, {key: write(t) for key, t in shown.items()}):
        values, shown = {}, {f"d{key}": t for key, t in terms.items()}  # as they were verified
    return Derivation(
        formula=text,
        gradients={key: texts[key] for key in terms},
        plain={} if shape else {key: write(t) for key, t in terms.items()},
        lines=tuple((key, write(t)) for key, t in shown.items()),
        latex=_latex(y, values, shown, is_scalar=not shape) if terms else (),
        reasons={key: reasons[key] for key in wanted if key in reasons},
        symmetric=symmetric,
    )


def _struct(key: str, given: Any) -> jax.ShapeDtypeStruct:
    if key in ("y", "dy") or not key.isidentifier():
        raise ValueRangeError(f"derive: {key!r} cannot be the name of an argument.", path=key)
    if hasattr(given, "dtype") and hasattr(given, "shape"):
        return jax.ShapeDtypeStruct(given.shape, given.dtype)
    if isinstance(given, Sequence) and all(isinstance(d, int) and d >= 0 for d in given):
        return jax.ShapeDtypeStruct(tuple(given), jnp.float32)
    problem = f"derive: the shape of {key} is {describe(given)}."
    raise DTypeError(problem, path=key, expected="a tuple of sizes, or an array")


def _wanted(structs: Mapping[str, jax.ShapeDtypeStruct], wrt: Iterable[str] | None) -> list[str]:
    floats = [key for key, v in structs.items() if jnp.issubdtype(v.dtype, jnp.floating)]
    for key in wrt or ():
        if key not in structs:
            there = ", ".join(structs) or "none"
            raise ValueRangeError(f"derive: there is no argument {key!r}.", path=key, expected=there)
        if key not in floats:
            raise DTypeError(f"derive: {key} is {structs[key].dtype} and has no gradient.", path=key)
    return floats if wrt is None else list(dict.fromkeys(wrt))


def _terms(
    y: Term, shapes: Mapping[str, tuple[int, ...]], symmetric: Sequence[str]
) -> tuple[dict[str, Term], dict[str, str]]:
    """The gradients, of a scalar y for dy = 1, and why there are none."""
    dy = algebra.name("dy", y.shape) if y.shape else algebra.ONE
    arguments = {key: algebra.name(key, shape, key in symmetric) for key, shape in shapes.items()}
    found = gradients(y, dy, list(arguments.values()))
    terms, reasons = dict[str, Term](), dict[str, str]()
    for key, argument in arguments.items():
        gradient = found[argument]
        if isinstance(gradient, NotDerived):
            reasons[key] = str(gradient)
        else:
            terms[key] = tidy(gradient, y, algebra.name("y", y.shape))
    return terms, reasons


def _latex(
    y: Term, values: Mapping[str, Term], shown: Mapping[str, Term], *, is_scalar: bool
) -> tuple[tuple[str, str], ...]:
    """The definition, the values that have names, and the gradients."""
    latex = [("y", printing.latex(y))]
    for key, term in shown.items():
        symbol = printing.symbol(key if key in values else key[1:])
        if key not in values:
            symbol = rf"\frac{{\partial y}}{{\partial {symbol}}}" if is_scalar else rf"\bar{{{symbol}}}"
        latex.append((symbol, printing.latex(term)))
    return tuple(latex)
