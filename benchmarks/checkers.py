"""Checkers of gradients at their defaults: a process that `benchmarks/verifier.py` asks about formulas."""

import importlib
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import funcnet as fn
from benchmarks import harness
from benchmarks.studies import exam
from benchmarks.studies.census import Right, Wrong
from benchmarks.studies.mutations import listed
from benchmarks.studies.verify_mutants import kind
from benchmarks.studies.verify_right import RIGHTS, arguments
from funcnet.verifier.problem import wide


class Ruled(NamedTuple):
    """A formula as jitted functions of the arguments that it differentiates."""

    forward: Callable[..., Any]
    backward: Callable[..., tuple[Any, ...]]  # of the arguments, then dy
    values: tuple[Any, ...]


def check(checker: str, right: bool, number: int) -> tuple[bool, bool, float]:
    """Whether a checker lets a formula pass, whether it names the mistake as labelled, and its seconds."""
    formula: Right | Wrong = (RIGHTS if right else exam.WRONG)[number]
    # The verifier takes a formula as it is: it changes precision by itself.
    given = formula if checker == "verify" else _ruled(formula)
    start = time.perf_counter()
    try:
        mistake = CHECKS[checker](given)
    except Exception:  # an assertion, or gradients of a shape that the checker refuses
        mistake = "unknown"
    seconds = time.perf_counter() - start
    return mistake is None, isinstance(formula, Wrong) and mistake in formula.kinds, seconds


def _ruled(formula: Right | Wrong) -> Ruled:
    args = arguments(formula, 11)
    args = wide(args) if jax.config.read("jax_enable_x64") else args
    given = listed(formula.backward(*args, jnp.ones_like(formula.forward(*args))), len(args))
    moving = [i for i, a in enumerate(args) if jnp.issubdtype(a.dtype, jnp.floating) and given[i] is not None]
    place = lambda values: [values[moving.index(i)] if i in moving else a for i, a in enumerate(args)]

    def backward(*values_and_dy: Any) -> tuple[Any, ...]:
        *values, dy = values_and_dy
        grads = listed(formula.backward(*place(values), dy), len(args))
        return tuple(grads[i] for i in moving)

    return Ruled(
        jax.jit(lambda *values: formula.forward(*place(values))),
        jax.jit(backward),
        tuple(args[i] for i in moving),
    )


def _with_rule(ruled: Ruled) -> Any:
    f = jax.custom_vjp(ruled.forward)
    f.defvjp(lambda *values: (ruled.forward(*values), values), lambda v, dy: ruled.backward(*v, dy))
    return f


# ---- the checkers: None where all is right, else a name for the mistake, or an exception ------------------
# A custom_vjp has no forward mode, which check_grads and chex would try first.


def _verify(formula: Right | Wrong) -> str | None:
    report = fn.verify(formula.forward, formula.backward, arguments(formula, 11))
    return None if report.ok else kind(formula, report) if isinstance(formula, Wrong) else "unknown"


def _check_grads(ruled: Ruled) -> None:
    from jax.test_util import check_grads

    check_grads(_with_rule(ruled), ruled.values, order=1, modes=["rev"])


def _chex(ruled: Ruled) -> None:
    chex = importlib.import_module("chex")
    chex.assert_numerical_grads(_with_rule(ruled), ruled.values, order=1, modes=["rev"])


def _gradcheck(ruled: Ruled) -> None:
    """The functions as one of PyTorch, on the same memory."""
    torch: Any = importlib.import_module("torch")
    to_jax = lambda tensors: [jnp.asarray(t.detach().numpy()) for t in tensors]
    to_torch = lambda array: torch.from_numpy(np.array(array))

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, *tensors: Any) -> Any:
            context.save_for_backward(*tensors)
            return to_torch(ruled.forward(*to_jax(tensors)))

        @staticmethod
        def backward(context: Any, dy: Any) -> Any:
            return tuple(map(to_torch, ruled.backward(*to_jax((*context.saved_tensors, dy)))))

    tensors = [to_torch(v).requires_grad_() for v in ruled.values]
    torch.autograd.gradcheck(Function.apply, tensors)


CHECKS: dict[str, Callable[[Any], str | None]] = {
    "verify": _verify,
    "gradcheck": _gradcheck,
    "check_grads": _check_grads,
    "chex": _chex,
}

if __name__ == "__main__":
    jax.config.update("jax_enable_x64", sys.argv[1] == "float64")
    warnings.simplefilter("ignore")
    harness.serve(others={"check": check, "counts": lambda: (len(exam.WRONG), len(RIGHTS))})
