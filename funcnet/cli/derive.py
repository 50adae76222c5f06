"""`funcnet derive`: the gradient of a formula, in NumPy and LaTeX, verified before it is shown."""

import dataclasses
import shlex
from typing import Annotated, Any

import tyro

from funcnet.cli import UsageError
from funcnet.cli._options import parse, with_minus
from funcnet.cli._text import heading
from funcnet.cli.verify import _draw

__all__ = ["run"]


@dataclasses.dataclass(frozen=True)
class Options:
    """Derive the gradient of a formula by the rules of matrix calculus, and verify it before it is shown.

    funcnet derive --forward "x @ A @ x" --shape x=7 --shape A=7,7

    The rules are a closed list: products, transposes, inverse, solve, trace, determinant and its logarithm,
    norms, sums and means, softmax, logsumexp, diag, and functions of each element. What they do not reach is
    "not derived", with the reason.

    Exit code 0: all is derived; 2: the formula cannot be understood or computed; 5: something is not derived.

    Attributes:
        forward: the formula; the arguments are the names that --shape gives.
        shape: NAME=SIZES, such as x=7,11; s= is a scalar; ids=7:int32 are integers, which have no gradient.
            Once for each argument.
        wrt: an argument by which to derive; may be given more than once. None: all.
        symmetric: a matrix that is symmetric; may be given more than once.
        seed: of the values at which it is verified.
    """

    forward: Annotated[str, tyro.conf.arg(metavar="FORMULA")]
    shape: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME=SIZES")] = ()
    wrt: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME")] = ()
    symmetric: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME")] = ()
    seed: int = 0


def run(args: list[str]) -> int:
    """The command."""
    import jax.numpy as jnp

    import funcnet as fn
    from funcnet.verifier.formulas.expression import ExpressionError

    options = parse(Options, with_minus(args, "--forward"), "funcnet derive")
    if not options.shape:
        raise UsageError("no argument has a shape: --shape x=7 (funcnet derive --help)")
    if not 0 <= options.seed < 2**32:
        raise UsageError(f"--seed is {options.seed}: expected 0 to {2**32 - 1}")
    shapes: dict[str, Any] = {  # of floats the shape only: at which values they make sense is for derive
        name: v.shape if jnp.issubdtype(v.dtype, jnp.floating) else v
        for name, v in _draw(options.shape, options.seed).items()
    }
    wrt = options.wrt or None
    try:
        derivation = fn.derive(
            options.forward, shapes, wrt=wrt, symmetric=options.symmetric, seed=options.seed
        )
    except ExpressionError as error:
        raise UsageError(f"--forward: {error}") from error
    print("\n".join(str(derivation).splitlines()[:-1]))  # the last is the verdict
    if derivation.gradients and not derivation.symmetric:
        print(_again(options, derivation.gradients))
    heading(derivation.verdict, "bold green" if derivation.ok else "bold red")
    return 0 if derivation.ok else 5


def _again(options: Options, gradients: dict[str, str]) -> str:
    """The command that verifies what was derived."""
    shapes = [f"--shape {shlex.quote(text)}" for text in options.shape]
    formulas = [f"--grad {_quoted(f'{name} = {text}')}" for name, text in gradients.items()]
    lines = [f"funcnet verify --forward {_quoted(options.forward)} {' '.join(shapes)}", *formulas]
    return " \\\n  ".join(lines) + "\n"


def _quoted(text: str) -> str:
    """In double quotes, as formulas are written in the docs, where the shell reads them as they are."""
    return f'"{text}"' if not set(text) & set('"$`\\!') else shlex.quote(text)
