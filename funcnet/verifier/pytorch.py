"""Gradients of PyTorch by the same judge: a `torch.autograd.Function`, or a pair of functions of tensors.

The truth is autograd of a plain definition, run with every float in float64. Its roundings are redone where
PyTorch dispatches its operations, forward and backward. Without a definition it is numerical differentiation.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnet._heard import reported
from funcnet.errors import DTypeError, MissingExtraError
from funcnet.verifier.compare import check_options, first_line, judged
from funcnet.verifier.finding import Finding
from funcnet.verifier.judge import Judge, judge_of
from funcnet.verifier.problem import Problem, arguments, is_float, names_of, numbers
from funcnet.verifier.report import Report
from funcnet.verifier.trace import up
from funcnet.verifier.wide import EPS, Touch, differs, largest

__all__ = ["verify_torch"]

SAME = 1e-3  # relative: what one function may give for one value laid out in two ways
EXACT = frozenset(
    """_to_copy abs argmax cat ceil clone constant_pad_nd copy_ embedding expand fill_ flip floor gather index
    index_put index_select masked_fill max maximum min minimum neg ones_like relu roll round select_backward
    sign slice_backward sort stack threshold_backward topk where zero_ zeros_like""".split()  # noqa: SIM905
)


@reported
def verify_torch(
    forward: Any,
    backward: Any = None,
    args: Sequence[Any] | None = None,
    *,
    reference: Callable[..., Any] | None = None,
    static: Mapping[str, Any] | None = None,
    shapes: str | None = None,
    budget: float = 10.0,
    seed: int = 0,
) -> Report:
    """Is this gradient, written for PyTorch, right, and if not, what is the mistake?

    Two ways to call it:

    - ``verify_torch(Function, args, reference=g)``: a subclass of `torch.autograd.Function`, or any function
      of tensors that calls some; g is its plain definition, which autograd differentiates. Without g the
      truth is numerical differentiation of the function itself.
    - ``verify_torch(forward, backward, args)``: ``backward(*args, dy)`` returns the gradients in the order of
      `args`, None for what has none; the truth is autograd of `reference`, or of `forward`.

    What runs in float32 only is judged by the rounding of float32. Besides the gradients it is verified that
    they are the same for tensors that are not contiguous, where only one argument needs a gradient
    (``ctx.needs_input_grad``), and in a second backward pass; and that dy is not changed in place.

    Args:
        forward: the `torch.autograd.Function`, a function of tensors, or the definition.
        backward: the formula; in the first form, args may stand here.
        args: tensors on the CPU, and whatever else the function takes; those of floats are verified.
        reference: the plain definition.
        static: keyword arguments of all functions.
        shapes: "auto": at other sizes too, as in `verify`.
        budget: seconds for the diagnosis of a wrong formula.
        seed: of the random values.

    Returns:
        A `Report`: one row per tensor of floats.

    Raises:
        MissingExtraError: PyTorch is not installed.
        DTypeError, ShapeError, ValueRangeError: as `verify`.
    """
    torch = _torch()
    check_options(reference=reference, static=static, shapes=shapes, budget=budget, seed=seed)
    backward, args = arguments("verify_torch", backward, args)
    static = dict(static or {})
    is_class = isinstance(forward, type) and issubclass(forward, torch.autograd.Function)
    function = functools.partial(forward.apply if is_class else forward, **static)
    definition = reference or (forward if backward is not None else None)
    problem = _Tensors(
        getattr(forward, "__name__", "forward").replace("<lambda>", "forward"),
        _names(reference or (forward.forward if is_class else forward), len(args)),
        _forward(functools.partial(definition, **static) if definition else function, args),
        _of_pair(backward, static) if backward is not None else _of_autograd(function),
        jax.tree.map(_array, tuple(args)),
        definition=functools.partial(definition, **static) if definition else None,
        values={"the function": _numbers(_forward(function, args))} if reference else {},
    )
    if not problem.moving:
        raise DTypeError(
            "verify_torch: args has no tensor of floats, so there is no gradient to verify.",
            path="args",
            actual=", ".join(type(a).__name__ for a in args) or "nothing",
        )
    if definition is None and any(jnp.iscomplexobj(problem.arrays[i]) for i in problem.moving):
        raise DTypeError(
            "verify_torch: complex tensors need a definition.",
            path="reference",
            expected="reference: a function that autograd differentiates",
            actual="None",
        )
    with jax.enable_x64(True):  # tensors have the dtypes that they have
        report = judged(problem, shapes, budget, seed, prepare=_prepared)
        if report.ok and backward is None:
            findings = tuple(_laws(function, problem))
            report = dataclasses.replace(report, findings=report.findings + findings)
    return report


@dataclasses.dataclass(frozen=True)
class _Tensors(Problem):
    """A problem whose functions take and give arrays, and run on tensors.

    Attributes:
        definition: of tensors, which autograd differentiates.
    """

    definition: Callable[..., Any] | None = None
    # Whoever writes a detach, which cannot be seen, means what autograd says.
    stops = True  # pyright: ignore[reportAssignmentType]

    def autodiff(self, arrays: Sequence[Any], dy: Sequence[Any], y: Any = None) -> list[Any]:
        """The gradients of the floats by PyTorch's autograd of the definition."""
        del y
        grads = _of_autograd(self.definition)(self.unflatten(arrays), self.cotangent(arrays, dy))
        zeros = (np.zeros(arrays[i].shape, arrays[i].dtype) for i in self.moving)
        return [z if v is None else v for v, z in zip(self.matched(grads, self.args), zeros, strict=True)]


def _prepared(problem: _Tensors, own: Sequence[Any], narrow: Sequence[Any]) -> Judge:
    """Truth and formula of a problem in float64, as `judge_of` has them for JAX."""
    dy = [np.zeros(v.shape, v.dtype) for v in problem.shape_of_y(problem.arrays)]
    eps, notes, formula = EPS, list[str](), _Run(problem.gradients, wide=True)
    try:
        formula(problem.arrays, dy)
    except Exception as error:  # whatever somebody's function says to that
        plain = problem.formula
        problem = dataclasses.replace(problem, formula=lambda a, d: plain(_cast(a, own), _cast(d, narrow)))
        formula = _Run(problem.gradients, wide=False)
        formula(problem.arrays, dy)
        eps = max(float(jnp.finfo(d).eps) for d in own if jnp.issubdtype(d, jnp.inexact))
        notes.append(f"it does not run in float64 ({first_line(error)[:60]}): it is run as given")
    if problem.definition is None:
        ready = judge_of(problem, own, narrow)
        notes.append("no definition was given: the truth is numerical differentiation")
        return dataclasses.replace(ready, formula=formula, eps=eps, notes=tuple(notes))
    y = _Run(problem.y, wide=True)
    truth, as_given = (_Run(problem.autodiff, wide=wide) for wide in (True, False))
    truth(problem.arrays, dy)
    program = functools.partial(_Run, wide=True)
    return Judge(
        problem, truth, formula, y, False, False, eps, tuple(notes), tuple(narrow), as_given, program
    )


# ---- functions of tensors as functions of arrays ----------------------------------------------------------


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError(
            "PyTorch is not installed.", path="torch", hint="pip install 'funcnet[torch]'"
        ) from error
    return torch


def _array(leaf: Any) -> Any:
    """A tensor as an array of NumPy; anything else as it is."""
    torch = _torch()
    if not isinstance(leaf, torch.Tensor):
        return leaf
    leaf = leaf.detach().cpu().resolve_conj()
    return leaf.float().numpy().astype(jnp.bfloat16) if leaf.dtype == torch.bfloat16 else leaf.numpy().copy()


def _tensor(leaf: Any, *, strided: bool = False) -> Any:
    """An array as a tensor, if asked with gaps between its elements; anything else as it is."""
    torch = _torch()
    if not hasattr(leaf, "dtype") or isinstance(leaf, torch.Tensor):
        return leaf
    array = np.asarray(leaf)  # of a tracer of JAX an error: it is no value
    if array.dtype == jax.dtypes.float0:
        return torch.zeros(array.shape)
    if array.dtype == jnp.bfloat16:
        made = torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
    else:
        made = torch.from_numpy(np.array(array))
    if strided and made.ndim:
        gaps = made.new_zeros(*made.shape[:-1], 2 * made.shape[-1])
        gaps[..., ::2] = made
        return gaps[..., ::2]
    return made


def _names(function: Any, count: int) -> tuple[str, ...]:
    names = names_of(function, count + 1)
    return names[1:] if names[0] == "ctx" else names[:count]


def _arrays_of(tree: Any) -> Any:
    return jax.tree.map(_array, tree)


def _call(function: Callable[..., Any], args: Any, static: Mapping[str, Any]) -> Any:
    with _torch().no_grad():
        return function(*jax.tree.map(_tensor, tuple(args)), **static)


def _forward(function: Callable[..., Any], given: Any) -> Callable[..., Any]:
    """The function of arrays, which runs in the dtypes given where it does not run in float64."""
    own = [v.dtype for v in map(_array, jax.tree.leaves(tuple(given))) if hasattr(v, "dtype")]

    def run(*args: Any) -> Any:
        try:
            return _arrays_of(_call(function, args, {}))
        except Exception:  # whatever somebody's function says to float64
            return _arrays_of(_call(function, _cast(args, own), {}))

    return run


def _numbers(function: Callable[..., Any]) -> Callable[[Any], list[Any]]:
    return lambda args: numbers(function(*args))


def _cast(tree: Any, dtypes: Sequence[Any]) -> Any:
    of_arrays = iter(dtypes)
    return jax.tree.map(lambda v: np.asarray(v, next(of_arrays)) if hasattr(v, "dtype") else v, tree)


def _of_pair(backward: Callable[..., Any], static: Mapping[str, Any]) -> Callable[[Any, Any], Any]:
    """``formula(args, dy)`` of a backward pass that is a function of tensors."""

    def formula(args: Any, dy: Any) -> Any:
        grads = _arrays_of(_call(backward, (*args, jax.tree.map(_tensor, dy)), static))
        return grads if isinstance(grads, tuple | list) else (grads,)

    return formula


def _of_autograd(function: Any, *, strided: bool = False) -> Callable[[Any, Any], Any]:
    """``formula(args, dy)`` of what autograd gives for a function; one gradient or None for each argument."""

    def formula(args: Any, dy: Any) -> Any:
        args = jax.tree.map(functools.partial(_tensor, strided=strided), tuple(args))
        return _gradients(function, args, jax.tree.map(functools.partial(_tensor, strided=strided), dy))[0]

    return formula


def _gradients(
    function: Any, args: Any, dy: Any, only: int | None = None, times: int = 1, used: int | None = None
) -> list[Any]:
    """The gradients of each backward pass: one or None for each argument, of argument `only` if given.

    `used` is the number of the one result that is used; None: all of them.
    """
    torch = _torch()
    leaves, tree = jax.tree.flatten(args)
    moving = [i for i, v in enumerate(leaves) if isinstance(v, torch.Tensor) and _is_moving(v)]
    moving = [i for i in moving if only is None or i == only]
    given = [v.detach().requires_grad_() if i in moving else v for i, v in enumerate(leaves)]
    try:
        y = function(*jax.tree.unflatten(tree, given))
    except RuntimeError as error:
        if "in-place" not in str(error):
            raise
        y = function(
            *jax.tree.unflatten(tree, [v.clone() if i in moving else v for i, v in enumerate(given)])
        )
    pairs = zip(jax.tree.leaves(y), jax.tree.leaves(dy), strict=True)
    pairs = [(v, d) for k, (v, d) in enumerate(pairs) if used is None or k == used]
    pairs = [(v, d) for v, d in pairs if isinstance(v, torch.Tensor) and v.requires_grad]
    if not pairs:
        return [tuple(None for _ in args)] * times
    results = []
    for _ in range(times):
        y, dy = ([pair[n] for pair in pairs] for n in (0, 1))
        wanted = [given[i] for i in moving]
        grads = torch.autograd.grad(y, wanted, dy, retain_graph=True, allow_unused=True)
        found = dict(zip(moving, map(_array, grads), strict=True))
        results.append(jax.tree.unflatten(tree, [found.get(i) for i in range(len(leaves))]))
    return results


# ---- operations, one by one -------------------------------------------------------------------------------


class _Run:
    """A function of (arrays, dy) on tensors, each operation of which is dispatched: what a `Wide` is for JAX.

    `wide`: every float in float64, whatever it is cast to.
    """

    def __init__(self, function: Callable[..., Any], *, wide: bool):
        self.function, self.wide = function, wide

    def length(self, *_given: Any) -> int:
        """Operations are not counted before they run."""
        return 0

    def bound(self, *given: Sequence[Any]) -> Callable[..., Any]:
        """The function for arrays in float64; in the dtypes of such arrays if it is not wide."""
        own = [[v.dtype for v in values] for values in given]
        cast = lambda v, d: np.asarray(v, d) if is_float(v) and not self.wide else v

        def run(*given: Sequence[Any], touch: Touch | None = None) -> Any:
            pairs = (zip(values, dtypes, strict=True) for values, dtypes in zip(given, own, strict=True))
            with _dispatched(self.wide, touch):
                return self.function(*([cast(v, d) for v, d in each] for each in pairs))

        return run

    def __call__(self, *given: Sequence[Any], touch: Touch | None = None) -> Any:
        """Its result, with what each operation gives changed by `touch`."""
        return self.bound(*given)(*given, touch=touch)


@contextlib.contextmanager
def _dispatched(wide: bool, touch: Touch | None) -> Iterator[None]:
    """Run the operations of PyTorch with floats in float64 if `wide`, and their new results changed."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    narrow = (torch.float32, torch.float16, torch.bfloat16)

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            del types
            kwargs = dict(kwargs or {})
            if wide and kwargs.get("dtype") in narrow:
                kwargs["dtype"] = torch.float64
            out, name = func(*args, **kwargs), func._schema.name.partition("::")[2]
            if touch is None or name in EXACT:
                return out
            operands = [_array(v) for v in jax.tree.leaves(args) if isinstance(v, torch.Tensor | float | int)]
            results = out if isinstance(out, tuple | list) else (out,)
            for v, said in zip(results, func._schema.returns, strict=False):
                is_new = said.alias_info is None or said.alias_info.is_write  # else a view
                if is_new and isinstance(v, torch.Tensor) and _is_moving(v) and v.numel():
                    value = touch(name, operands, up(_array(v)), _dtype(v))
                    v.copy_(torch.from_numpy(np.asarray(value)))
            return out

    with Mode():
        yield


def _is_moving(tensor: Any) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _dtype(tensor: Any) -> Any:
    return jnp.dtype(str(tensor.dtype).partition(".")[2])


# ---- what a Function must keep besides --------------------------------------------------------------------


def _laws(function: Any, problem: _Tensors) -> Iterator[Finding]:
    """The same gradients however tensors lie, whoever needs them, from each result, again; dy as it was."""
    rng = np.random.default_rng(5)
    y = problem.shape_of_y(problem.arrays)
    dy = problem.cotangent(problem.arrays, [np.asarray(rng.standard_normal(v.shape), v.dtype) for v in y])
    floats = [i for i, v in enumerate(jax.tree.leaves(problem.args)) if is_float(v)]

    def of(strided: bool = False, **options: Any) -> tuple[list[list[Any]], bool]:
        lay = functools.partial(_tensor, strided=strided)
        given = jax.tree.map(lay, dy)
        results = _gradients(function, jax.tree.map(lay, problem.args), given, **options)
        pairs = zip(jax.tree.leaves(_arrays_of(given)), jax.tree.leaves(dy), strict=True)
        kept = all(np.array_equal(a, b) for a, b in pairs if is_float(b))
        return [problem.matched(grads, problem.args) for grads in results], kept

    (first,), kept = of()
    others = list[tuple[list[Any], str, str]]()
    if not kept:
        yield Finding("", "value", "backward changes dy in place, which others may still need", "clone it")
    with contextlib.suppress(RuntimeError):  # what it saved is gone: it says so itself
        message = "a second backward pass gives another: something saved was changed in place"
        others += [(of(times=2)[0][1], "nondeterministic", message)] if kept else []
    try:
        others.append((of(strided=True)[0][0], "layout", "for tensors that are not contiguous it is another"))
    except RuntimeError as error:
        yield Finding(
            "", "layout", f"it does not run for tensors that are not contiguous: {first_line(error)}"
        )
    used = [k for k, v in enumerate(jax.tree.leaves(dy)) if is_float(v)]
    if len(used) > 1:  # each result alone: the others may give None for their cotangents
        try:
            each = [of(used=k)[0][0] for k in used]
        except Exception as error:  # of whatever kind: it is the user's backward
            yield Finding(
                "", "structure", f"where one of its results is not used it raises: {first_line(error)}"
            )
        else:
            total = [sum(g for g in grads if g is not None) for grads in zip(*each, strict=True)]
            others.append((total, "layout", "where one of its results is not used it is another"))
    for n, i in enumerate(floats):
        alone = [g if k != n else of(only=i)[0][0][n] for k, g in enumerate(first)]
        others.append((alone, "layout", "where no other argument needs a gradient it is another"))
    for grads, kind, message in others:
        for path, one, other in zip(problem.paths, first, grads, strict=True):
            if one is None or not np.size(one):
                continue
            wide = [np.zeros(one.shape) if v is None else np.asarray(v, np.float64) for v in (other, one)]
            if differs(wide[0], wide[1], SAME, largest(wide[1])):
                yield Finding(path, kind, message)
