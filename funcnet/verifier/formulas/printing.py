"""Terms as text: NumPy, as `funcnet verify` reads it, and LaTeX."""

import re
from collections.abc import Sequence
from fractions import Fraction

from funcnet.verifier.formulas.algebra import Term, factors
from funcnet.verifier.formulas.matrices import transpose

__all__ = ["latex", "numpy", "symbol"]

# How tightly a text holds together: a sum, a product, a power, a name or a call.
SUM, PRODUCT, POWER, ATOM = range(4)

Text = tuple[str, int]


def numpy(term: Term, solve: bool = False) -> str:
    """As NumPy.

    Args:
        term: what to print.
        solve: print inv(A) @ b as solve(A, b).
    """
    return _Numpy(solve).of(term)[0]


class _Numpy:
    def __init__(self, solve: bool):
        self.solve = solve

    def of(self, term: Term) -> Text:
        match term.op:
            case "name":
                return term.data[0], ATOM
            case "constant":
                return term.data, ATOM
            case "foreign":
                return term.data, ATOM
            case "number":
                return _number(term.data)
            case "add":
                return self.add(term)
            case "mul" | "pow":
                return self.mul(term)
            case "matmul":
                return self.matmul(term.args)
            case "T":
                return f"{self.at(term.args[0], ATOM)}.T", ATOM
            case "mask":
                return f"where({self.condition(term)}, 1.0, 0.0)", ATOM
            case "where":
                chosen = ", ".join(self.at(arg, SUM) for arg in term.args[1:])
                return f"where({self.condition(term.args[0])}, {chosen})", ATOM
            case "expand":
                return self.expand(*term.args)
            case "unsqueeze":
                entries = ["None" if i in term.data else ":" for i in range(term.ndim)]
                while entries[-1] == ":":
                    entries.pop()
                return f"{self.at(term.args[0], ATOM)}[{', '.join(entries)}]", ATOM
            case "count":
                (x,) = term.args
                if len(term.data) == x.ndim and x.ndim > 1:
                    return f"{self.at(x, ATOM)}.size", ATOM
                sizes = [f"{self.at(x, ATOM)}.shape[{axis}]" for axis in term.data]
                return " * ".join(sizes), ATOM if len(sizes) == 1 else PRODUCT
            case "sum" | "mean" | "var" | "std" | "norm" | "logsumexp":
                return self.reduction(term)
            case "softmax" | "log_softmax":
                (axis,) = term.data if len(term.data) == 1 else (term.data,)
                last = axis == term.ndim - 1
                return f"{term.op}({self.at(term.args[0], SUM)}{'' if last else f', axis={axis}'})", ATOM
        return f"{term.op}({', '.join(self.at(arg, SUM) for arg in term.args)})", ATOM

    def at(self, term: Term, level: int) -> str:
        text, own = self.of(term)
        return text if own >= level else f"({text})"

    def add(self, term: Term) -> Text:
        text = ""
        for part in term.args:
            own = self.at(part, PRODUCT)
            sign, own = ("-", own[1:]) if own.startswith("-") else ("+", own)
            text += f" {sign} {own}" if text else own if sign == "+" else f"-{own}"
        return text, SUM

    def mul(self, term: Term) -> Text:
        coefficient, powers = factors(term)
        masks = [base for base in powers if base.op == "mask"]
        above = [(base, e) for base, e in powers.items() if e > 0 and base.op != "mask"]
        below = [(base, -e) for base, e in powers.items() if e < 0 and base.op != "mask"]
        before, after = _around(abs(coefficient), bool(above))
        chain = above[-1][0] if above and above[-1][1] == 1 else None
        bare = chain is not None and chain.op == "matmul" and not any(base.ndim for base, _ in above[:-1])
        top = [before] * bool(before)
        top += [self.power(base, e, PRODUCT if bare and base is chain else POWER) for base, e in above]
        bottom = [after] * bool(after) + [self.power(base, e, POWER) for base, e in below]
        text = " * ".join(top) or "1"
        level = PRODUCT if len(top) > 1 or bottom else POWER if before or above[0][1] != 1 else ATOM
        if bottom:
            text += f" / {bottom[0]}" if len(bottom) == 1 else f" / ({' * '.join(bottom)})"
        if masks and coefficient < 0:
            text, level, coefficient = f"-{text}", SUM, -coefficient
        for mask in masks:
            rest = "1.0" if text == "1" else text
            text, level = f"where({self.condition(mask)}, {rest}, {0.0 if text == '1' else 0})", ATOM
        return (f"-{text}", PRODUCT) if coefficient < 0 else (text, level)

    def power(self, base: Term, exponent: Fraction, level: int) -> str:
        if exponent == 1:
            return self.at(base, level)
        if exponent == Fraction(1, 2):
            return f"sqrt({self.at(base, SUM)})"
        return f"{self.at(base, ATOM)} ** {_number(exponent)[0]}"

    def matmul(self, chain: Sequence[Term]) -> Text:
        """A chain is multiplied from its vector, which takes fewer operations."""
        if self.solve and len(chain) > 1 and (matrix := _inverted(chain[0])) is not None:
            rest = self.matmul(chain[1:])[0] if len(chain) > 2 else self.at(chain[1], SUM)
            return f"solve({self.at(matrix, SUM)}, {rest})", ATOM
        if chain[-1].ndim == 1 and chain[0].ndim == 2 and len(chain) > 2:
            rest, level = self.matmul(chain[1:])
            return f"{self.at(chain[0], POWER)} @ {rest if level == ATOM else f'({rest})'}", PRODUCT
        return " @ ".join(self.at(arg, POWER) for arg in chain), PRODUCT

    def expand(self, inner: Term, like: Term) -> Text:
        shape = self.at(like, SUM)
        if inner.op == "number" and inner.data in (0, 1):
            return f"{'ones' if inner.data else 'zeros'}_like({shape})", ATOM
        return f"{self.at(inner, PRODUCT)} * ones_like({shape})", PRODUCT

    def reduction(self, term: Term) -> Text:
        (x,), (axes, keepdims) = term.args, term.data
        options = ""
        if len(axes) < x.ndim:
            options = f", axis={axes[0] if len(axes) == 1 else axes}"
        options += ", keepdims=True" * keepdims
        return f"{term.op}({self.at(x, SUM)}{options})", ATOM

    def condition(self, mask: Term) -> str:
        a, b = mask.args
        return f"{self.at(a, SUM)} {mask.data} {self.at(b, SUM)}"


def _inverted(term: Term) -> Term | None:
    """What an inverse inverts."""
    if term.op == "T" and term.args[0].op == "inv":
        return transpose(term.args[0].args[0])
    return term.args[0] if term.op == "inv" else None


def _number(value: Fraction) -> Text:
    before, after = _around(abs(value), False)
    text = (
        f"{before or 1} / {after}" if after and not _decimal(abs(value)) else _decimal(abs(value)) or before
    )
    level = PRODUCT if "/" in text else ATOM
    return (f"-{text}", SUM) if value < 0 else (text, level)


def _around(value: Fraction, has_more: bool) -> tuple[str, str]:
    """A number as what stands before a product, and what it is divided by; "" for 1."""
    top, bottom = value.numerator, value.denominator
    if bottom == 1:
        return ("" if top == 1 and has_more else _whole(top)), ""
    if top == 1 and bottom <= 1000 and has_more:
        return "", _whole(bottom)
    if decimal := _decimal(value):
        return decimal, ""
    return ("" if top == 1 and has_more else _whole(top)), _whole(bottom)


def _whole(value: int) -> str:
    return str(value) if value < 2**31 else repr(float(value))


def _decimal(value: Fraction) -> str:
    """The number as a decimal, "" where it is none."""
    text = repr(float(value))
    return text.removesuffix(".0") if Fraction(text) == value and value.denominator > 1 else ""


# ---- LaTeX ------------------------------------------------------------------------------------------------

_GREEK = (
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "kappa", "lambda", "mu", "nu", "xi",
    "pi", "rho", "sigma", "tau", "phi", "chi", "psi", "omega", "Gamma", "Delta", "Theta", "Lambda", "Xi",
    "Pi", "Sigma", "Phi", "Psi", "Omega",
)  # fmt: skip
_FUNCTIONS = {
    "exp": r"\exp", "log": r"\log", "sin": r"\sin", "cos": r"\cos", "tanh": r"\tanh", "sigmoid": r"\sigma",
    "trace": r"\operatorname{tr}", "det": r"\det", "logdet": r"\log\lvert\det", "maximum": r"\max",
    "minimum": r"\min",
}  # fmt: skip
_RELATIONS = {">=": r"\ge", "<=": r"\le", "==": "=", "!=": r"\ne"}
_ONES = r"\mathbf{1}"


def latex(term: Term) -> str:
    r"""As LaTeX: vectors are columns, ``\odot`` is element by element and broadcasts as NumPy does."""
    return _latex(term)[0]


def _at(term: Term, level: int) -> str:
    text, own = _latex(term)
    return text if own >= level else rf"\left({text}\right)"


def _latex(term: Term) -> Text:
    match term.op:
        case "name" | "constant":
            return symbol(term.data if term.op == "constant" else term.data[0]), ATOM
        case "foreign":
            return rf"\mathtt{{{_escaped(term.data)}}}", ATOM
        case "number":
            return _fraction(term.data)
        case "add":
            text = ""
            for part in term.args:
                own = _at(part, PRODUCT)
                text += own if not text else f" - {own[1:]}" if own.startswith("-") else f" + {own}"
            return text, SUM
        case "mul" | "pow":
            return _latex_product(term)
        case "matmul":
            chain = term.args
            if chain[0].ndim == 1:
                return " ".join([_row(chain[0]), *(_at(arg, POWER) for arg in chain[1:])]), PRODUCT
            return " ".join(_at(arg, POWER) for arg in chain), PRODUCT
        case "outer":
            a, b = term.args
            return f"{_at(a, PRODUCT if a.op == 'matmul' else POWER)} {_row(b)}", PRODUCT
        case "T" if term.args[0].op == "inv":
            return rf"{_at(term.args[0].args[0], ATOM)}^{{-\top}}", POWER
        case "T":
            return rf"{_at(term.args[0], ATOM)}^\top", POWER
        case "inv":
            return rf"{_at(term.args[0], ATOM)}^{{-1}}", POWER
        case "eye":
            return "I", ATOM
        case "mask":
            a, b = (_at(arg, SUM) for arg in term.args)
            return f"[{a} {_RELATIONS.get(term.data, term.data)} {b}]", ATOM
        case "where":
            mask, a, b = (_at(arg, SUM) for arg in term.args)
            return rf"\begin{{cases}} {a} & {mask[1:-1]} \\ {b} & \text{{else}} \end{{cases}}", PRODUCT
        case "expand":
            return _latex_expand(term)
        case "unsqueeze":
            return _latex(term.args[0])
        case "count":
            of = f"_{{{','.join(map(str, term.data))}}}" if term.args[0].ndim > len(term.data) else ""
            return rf"\operatorname{{size}}{of}({_at(term.args[0], SUM)})", ATOM
        case "sum":
            return _latex_sum(term)
        case "norm":
            kind = "F" if term.args[0].ndim == 2 and len(term.data[0]) == 2 else "2"
            return rf"\lVert {_at(term.args[0], SUM)} \rVert_{{{kind}}}", ATOM
    function = _FUNCTIONS.get(term.op, rf"\operatorname{{{_escaped(term.op)}}}")
    if term.op in ("mean", "var", "std", "logsumexp") and len(term.data[0]) < term.args[0].ndim:
        function += f"_{{{','.join(map(str, term.data[0]))}}}"
    if term.op in ("softmax", "log_softmax") and term.data != (term.ndim - 1,):
        function += f"_{{{','.join(map(str, term.data))}}}"
    inside = ", ".join(_at(arg, SUM) for arg in term.args)
    return rf"{function}({inside})" + r"\rvert" * (term.op == "logdet"), ATOM


def _latex_product(term: Term) -> Text:
    """Numbers and scalars, as a fraction where there is a divisor, then arrays."""
    coefficient, powers = factors(term)
    above = [(base, e) for base, e in powers.items() if not base.ndim and e > 0]
    below = [(base, -e) for base, e in powers.items() if not base.ndim and e < 0]
    arrays = [(base, e) for base, e in powers.items() if base.ndim and e > 0]
    under = [(base, -e) for base, e in powers.items() if base.ndim and e < 0]
    top, bottom = (
        [str(n)] * (n != 1) + _latex_factors(some, alone=n == 1)
        for n, some in ((abs(coefficient.numerator), above), (coefficient.denominator, below))
    )
    product = r" \odot ".join(_latex_factors(arrays, alone=not under)) or (_ONES if under else "")
    product = r" \oslash ".join([product, *_latex_factors(under, alone=False)])
    if bottom and not top and product and below:
        product = latex(arrays[0][0]) if len(arrays) == 1 and arrays[0][1] == 1 and not under else product
        front, product = rf"\frac{{{product}}}{{{' '.join(bottom)}}}", ""
    elif bottom:
        front = rf"\frac{{{' '.join(top) or 1}}}{{{' '.join(bottom)}}}"
    else:
        front = " ".join(
            _latex_factors(above, alone=False) if arrays and top == _latex_factors(above, True) else top
        )
    text = r" \, ".join(filter(None, [front, product])) or "1"
    several = len(top) + len(arrays) + 2 * len(under) + bool(bottom) > 1
    return (f"-{text}", PRODUCT) if coefficient < 0 else (text, PRODUCT if several else POWER)


def _latex_factors(powers: Sequence[tuple[Term, Fraction]], alone: bool) -> list[str]:
    """Factors beside each other; one that is alone needs no parentheses but for a sum."""
    if alone and len(powers) == 1 and powers[0][1] == 1:
        return [_at(powers[0][0], PRODUCT if powers[0][0].ndim else SUM)]
    return [_latex_power(base, exponent) for base, exponent in powers]


def _latex_power(base: Term, exponent: Fraction) -> str:
    if exponent == 1:
        return _at(base, POWER)
    if exponent == Fraction(1, 2):
        return rf"\sqrt{{{_at(base, SUM)}}}"
    circle = r"\circ " if base.ndim else ""
    return rf"{_at(base, ATOM)}^{{{circle}{_fraction(exponent)[0]}}}"


def _row(term: Term) -> str:
    """A vector's transpose: (A b)ᵀ is bᵀ Aᵀ."""
    if term.op == "matmul":
        last, *matrices = reversed(term.args)
        return " ".join([_row(last), *(_at(transpose(m), POWER) for m in matrices)])
    if term.op == "expand":
        return rf"{_ONES}^\top"
    return rf"{_at(term, ATOM)}^\top"


def _latex_expand(term: Term) -> Text:
    inner, ones = term.args[0], _ONES if term.ndim == 1 else rf"{_ONES} {_ONES}^\top"
    if inner.op == "number" and inner.data == 0:
        return "0", ATOM
    if inner.op == "number" and inner.data == 1:
        return ones, ATOM if term.ndim == 1 else PRODUCT
    if term.ndim == 2 and inner.ndim == 1:
        return rf"{_ONES} {_row(inner)}", PRODUCT
    if term.ndim == 2 and inner.shape[-1:] == (1,):
        return rf"{_at(inner, PRODUCT)} {_ONES}^\top", PRODUCT
    return rf"{_at(inner, PRODUCT)} \, {ones}", PRODUCT


def _latex_sum(term: Term) -> Text:
    (x,), (axes, keepdims) = term.args, term.data
    if x.op == "pow" and x.data == 2 and len(axes) == x.ndim <= 2:
        return rf"\lVert {_at(x.args[0], SUM)} \rVert_{{{'F' if x.ndim == 2 else 2}}}^{{2}}", ATOM
    if x.ndim == 1:
        return rf"{_ONES}^\top {_at(x, POWER)}", PRODUCT
    if x.ndim == 2 and axes == (0,) and not keepdims:
        return rf"{_at(transpose(x), POWER)} {_ONES}", PRODUCT
    if x.ndim == 2 and axes == (1,):
        return rf"{_at(x, POWER)} {_ONES}", PRODUCT
    if x.ndim == 2 and len(axes) == 2:
        return rf"{_ONES}^\top {_at(x, POWER)} {_ONES}", PRODUCT
    return rf"\operatorname{{sum}}_{{{','.join(map(str, axes))}}}({_at(x, SUM)})", ATOM


def _fraction(value: Fraction) -> Text:
    top, bottom = value.numerator, value.denominator
    text = str(abs(top)) if bottom == 1 else rf"\frac{{{abs(top)}}}{{{bottom}}}"
    return (f"-{text}", SUM) if value < 0 else (text, ATOM)


def symbol(text: str) -> str:
    """A name as a symbol: dy as the adjoint of y, w1 with an index, Greek letters as such."""
    if text == "dy":
        return r"\bar{y}"
    match = re.fullmatch(r"([^\W\d_]+?)_?(\d*)", text)
    if match is None:
        return rf"\mathit{{{_escaped(text)}}}"
    letters, index = match.groups()
    letters = "lambda" if letters == "lam" else letters  # which Python reserves
    symbol = (
        rf"\{letters}" if letters in _GREEK else letters if len(letters) == 1 else rf"\mathit{{{letters}}}"
    )
    return f"{symbol}_{{{index}}}" if index else symbol


def _escaped(text: str) -> str:
    return re.sub(r"([_#%&${}])", r"\\\1", text)
