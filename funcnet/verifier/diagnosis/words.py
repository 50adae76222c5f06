"""Equations as the user wrote them: ``jnp.var(x, 0)``, and not ``sub``; ``w``, and not operand 1."""

import ast
import re

from funcnet.verifier import trace

__all__ = ["named", "operands"]

LONG = 60  # characters of an expression; of a longer one the beginning is repeated


def named(program: trace.Program, k: int) -> str:
    """An equation as the user wrote it: ``jnp.var(x, 0)``; what is but a part of that, as such."""
    eqn = program.equations[k]
    if eqn.primitive is None:
        return "the gradient"
    if not eqn.text:
        return f"`{eqn.name}`"
    return f"`{_short(eqn.text)}`" if _is_whole(program, k) else f"`{eqn.name}` within `{_short(eqn.text)}`"


def _short(text: str) -> str:
    return text if len(text) <= LONG else text[: LONG - 3] + "..."


def _is_whole(program: trace.Program, k: int) -> bool:
    """Whether what an expression gives is what its equation k gives: no other equation of it follows."""
    here, after = program.equations[k], program.equations[k + 1 : k + 2]
    return all((eqn.line, eqn.text) != (here.line, here.text) for eqn in after)


_OPERATORS = {
    "add": ast.Add, "sub": ast.Sub, "mul": ast.Mult, "div": ast.Div, "dot_general": ast.MatMult,
}  # fmt: skip


def operands(words: str, program: trace.Program, k: int) -> str:
    """Words in which the operands of an operator are called what they are called in the source."""
    eqn = program.equations[k]
    try:
        node = trace.parsed(eqn.text, mode="eval").body
    except SyntaxError:
        return words
    if not isinstance(node, ast.BinOp) or not isinstance(node.op, _OPERATORS.get(eqn.name, ())):
        return words
    sides = [_short(ast.unparse(side)) for side in (node.left, node.right)]
    for pattern, text in (
        (r"as operand (\d) of {op}", "in place of `{}` in {{op}}"),
        (r"operand (\d) of {op}", "`{}` in {{op}}"),
        (r"leave out {op}, and keep its operand (\d)", "write `{}` instead of {{op}}"),
    ):
        words = re.sub(pattern, lambda found, text=text: text.format(sides[int(found[1])]), words)
    return words
