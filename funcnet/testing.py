"""For the tests of other projects: one call, and the report as the assertion's message."""

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from funcnet.verifier import Report, verify

__all__ = ["assert_gradients"]


def assert_gradients(
    forward: Callable[..., Any] | ModuleType,
    backward: Callable[..., Any] | Sequence[Any] | None = None,
    args: Sequence[Any] | None = None,
    *,
    reference: Callable[..., Any] | None = None,
    static: Mapping[str, Any] | None = None,
    shapes: str | None = "auto",
    budget: float = 10.0,
    seed: int = 0,
    expect: str | None = None,
    order: int = 1,
) -> Report:
    """Assert that a hand-derived gradient is right; by default at other sizes too.

    Args:
        forward: as in `funcnet.verify`, like all that follows.
        backward: the formula, or args.
        args: the arguments.
        reference: the plain definition of a function with a custom rule.
        static: keyword arguments.
        shapes: "auto" or None.
        budget: seconds for the diagnosis of a wrong formula.
        seed: of the random values.
        expect: "differs", of a rule that means to.
        order: 2: the formula's own derivative too.

    Returns:
        The `Report`.

    Raises:
        FormulaError: an AssertionError with the report as its text: a gradient is wrong, undecided or not
            verified.

    >>> import jax.numpy as jnp
    >>> x = jnp.linspace(-2.0, 2.0, 7)
    >>> assert_gradients(jnp.tanh, lambda x, dy: dy * (1 - jnp.tanh(x) ** 2), (x,)).ok
    True
    """
    __tracebackhide__ = True
    report = verify(
        forward,
        backward,
        args,
        reference=reference,
        static=static,
        shapes=shapes,
        budget=budget,
        seed=seed,
        expect=expect,
        order=order,
    )
    report.raise_if_wrong()
    return report
