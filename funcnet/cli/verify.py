"""`funcnet verify`: is this gradient formula right, and if not, what is the mistake?

Functions are given as MODULE:NAME or FILE.py:NAME, formulas as text, the library's own operations by name.
Arguments are drawn at random, of the shapes that are given.
"""

import contextlib
import dataclasses
import difflib
import importlib
import importlib.util
import inspect
import keyword
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import tyro

from funcnet.cli import UsageError, choice
from funcnet.cli._options import parse
from funcnet.cli._text import heading, table

__all__ = ["run"]

MAX_SIZE = 2**24  # elements of an argument
DTYPES = ("float32", "float64", "bfloat16", "float16", "int32", "bool")
_SHAPE = re.compile(r"(?P<name>\w+)=(?P<sizes>(\d{1,9}(,\d{1,9})*)?)(:(?P<dtype>\w+))?")


@dataclasses.dataclass(frozen=True)
class Options:
    """Verify a gradient formula against autodiff of its definition, and name the mistake.

    funcnet verify FORWARD BACKWARD --shape x=7,11 --shape w=11,13: two functions, each MODULE:NAME or
    FILE.py:NAME; BACKWARD(x, w, dy) returns the gradients in the order of FORWARD's arguments.

    funcnet verify --forward "x @ w" --shape x=7,11 --shape w=11,13 --grad "x = dy @ w.T" --grad ...:
    formulas as text, in the terms of jax.numpy.

    funcnet verify FILE.py --shape x=7,11: every derivative rule (jax.custom_vjp, jax.custom_jvp) in it, where
    its arguments have shapes. funcnet verify FILE.py:loss --model: every rule that a loss meets; the file
    holds params and batch (and perhaps key and model_state): values, or functions without arguments.

    funcnet verify --op conv, or --all: the library's own.

    Exit code 0: right; 1: something is wrong; 2: it could not be run; 4: nothing is wrong, but something
    could not be verified.

    Attributes:
        functions: FORWARD and BACKWARD, each MODULE:NAME or FILE.py:NAME; their code is run. Or FILE.py, or
            with --model a loss.
        model: verify every rule that a loss meets.
        allow: with --model, a rule that need not be verified or right: its name, or a place as mine.py:57.
        forward: the definition as text; the arguments are the names that --shape gives.
        grad: NAME=FORMULA, of the arguments, dy and y (the value of --forward). Once for each argument that
            is differentiated; the others are constants.
        shape: NAME=SIZES, such as x=7,11; s= is a scalar; ids=7:int32 has that dtype: float32, float64,
            bfloat16, float16, int32 (zeros and ones) or bool. Once for each argument.
        op: an operation of the library, on small arguments of its own.
        all: every operation of the library, in float64, float32 and bfloat16.
        html: write the report as a page into this file.
        json: write the report as JSON into this file.
        seed: of the arguments and of what else is random.
        budget: seconds for naming the mistake in one wrong formula.
    """

    functions: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FORWARD BACKWARD")
    ] = ()
    model: Annotated[int, tyro.conf.UseCounterAction] = 0
    allow: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME")] = ()
    forward: Annotated[str | None, tyro.conf.arg(metavar="FORMULA")] = None
    grad: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME=FORMULA")] = ()
    shape: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME=SIZES")] = ()
    op: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    all: Annotated[int, tyro.conf.UseCounterAction] = 0
    html: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    seed: int = 0
    budget: float = 10.0


def run(args: list[str]) -> int:
    """The command."""
    options = parse(Options, args, "funcnet verify")
    ways = {
        "FORWARD BACKWARD": bool(options.functions),
        "--forward": options.forward is not None,
        "--op": options.op is not None,
        "--all": bool(options.all),
    }
    if (options.model or options.allow) and not (options.model and len(options.functions) == 1):
        raise UsageError("--model goes with one function, the loss: FILE.py:loss (funcnet verify --help)")
    if sum(ways.values()) != 1:
        given = " and ".join(way for way, is_given in ways.items() if is_given)
        problem = f"{given} do not go together" if given else "nothing to verify"
        raise UsageError(f"{problem}: give one of {', '.join(ways)} (funcnet verify --help)")
    if options.grad and options.forward is None:
        raise UsageError("--grad goes with --forward (funcnet verify --help)")
    if options.shape and options.model:
        raise UsageError("--shape does not go with --model, whose file holds params and batch")
    if options.shape and (options.op or options.all):
        raise UsageError("--shape does not go with --op or --all, which have arguments of their own")
    if not 0 <= options.seed < 2**32:
        raise UsageError(f"--seed is {options.seed}: expected 0 to {2**32 - 1}")
    if not 0 <= options.budget < math.inf:
        raise UsageError(f"--budget is {options.budget}: expected seconds")
    for file in (options.html, options.json):
        if file is not None and not file.absolute().parent.is_dir():
            raise UsageError(f"{file}: there is no folder {file.parent}")

    if options.model:
        report = _of_model(options, options.functions[0])
    elif len(options.functions) == 1 and ":" not in options.functions[0]:
        report = _of_rules(options, options.functions[0])
    elif options.functions:
        report = _of_functions(options)
    elif options.forward is not None:
        report = _of_formulas(options, options.forward)
    elif options.op is not None:
        report = _of_operation(options, options.op)
    else:
        report = _of_all(options)
    if not options.all:
        print("\n".join(report.table().splitlines()[:-1]))  # the last is the verdict
    if options.html is not None:
        options.html.write_text(report.to_html(), "utf-8")
    if options.json is not None:
        options.json.write_text(report.to_json() + "\n", "utf-8")
    heading(report.verdict, "bold green" if report.ok else "bold red")
    return 0 if report.ok else 4 if report.is_unseen else 1


# ---- arguments --------------------------------------------------------------------------------------------


def _draw(shapes: Sequence[str], seed: int) -> dict[str, Any]:
    """The arguments, by name: normal floats, zeros and ones, or booleans."""
    import jax.numpy as jnp
    import numpy as np

    rng, drawn = np.random.default_rng(seed), {}
    for text in shapes:
        match = _SHAPE.fullmatch(text.replace(" ", ""))
        if match is None:
            raise UsageError(f"--shape {text}: expected NAME=SIZES, such as x=7,11 or s= or ids=7:int32")
        name, dtype = match["name"], match["dtype"] or "float32"
        sizes = tuple(map(int, filter(None, match["sizes"].split(","))))
        if not name.isidentifier() or keyword.iskeyword(name) or name in ("y", "dy"):
            raise UsageError(f"--shape {text}: {name!r} cannot be the name of an argument")
        if name in drawn:
            raise UsageError(f"--shape {text}: {name} has a shape already")
        choice("dtype", dtype, DTYPES, f"--shape {text}")
        if math.prod(sizes) > MAX_SIZE:
            raise UsageError(f"--shape {text}: {math.prod(sizes):,} elements, more than {MAX_SIZE:,}")
        values: Any = rng.standard_normal(sizes)
        if dtype == "int32":
            values = np.arange(math.prod(sizes)).reshape(sizes) % 2  # an index of anything
        drawn[name] = np.asarray(values > 0 if dtype == "bool" else values).astype(jnp.dtype(dtype))
    return drawn


# ---- functions --------------------------------------------------------------------------------------------


def _of_functions(options: Options) -> Any:
    import funcnet as fn

    if len(options.functions) != 2:
        given = " ".join(options.functions)
        raise UsageError(f"two functions are needed, not {given!r} (funcnet verify --help)")
    modules: dict[str, ModuleType] = {}
    forward, backward = (_function(text, modules) for text in options.functions)
    args = _in_order(options.functions[0], forward, _draw(options.shape, options.seed))
    report = fn.verify(forward, backward, args, seed=options.seed, budget=options.budget)
    sources = {"forward": _source(forward), "backward": _source(backward)}
    return dataclasses.replace(report, sources=report.sources or {k: v for k, v in sources.items() if v})


def _of_model(options: Options, text: str) -> Any:
    """Every rule that a loss meets, with the params and the batch that its module holds."""
    import funcnet as fn

    modules: dict[str, ModuleType] = {}
    loss = _function(text, modules)
    place, module = next(iter(modules.items()))
    held = {name: getattr(module, name) for name in _HELD if hasattr(module, name)}
    if missing := [name for name in ("params", "batch") if name not in held]:
        raise UsageError(f"{place} holds no {missing[0]}: a value, or a function without arguments")
    given = {name: value() if callable(value) else value for name, value in held.items()}
    params, batch = given.pop("params"), given.pop("batch")
    return fn.verify_model(loss, params, batch, **given, seed=options.seed, allow=options.allow)


_HELD = ("params", "batch", "key", "model_state")


def _of_rules(options: Options, place: str) -> Any:
    """Every derivative rule that a module defines, where its arguments have shapes."""
    import funcnet as fn
    from funcnet.verifier import Report, Row, tape

    module = _load(place)
    found = {
        name: value
        for name, value in vars(module).items()
        if tape.is_rule(value) and value.fun.__module__ == module.__name__
    }
    if not found:
        raise UsageError(
            f"{place} defines no derivative rule: give FORWARD and BACKWARD (funcnet verify --help)"
        )
    drawn, reports = _draw(options.shape, options.seed), list[Any]()
    for name, rule in found.items():
        parameters = inspect.signature(rule.fun).parameters.values()
        names = [p.name for p in parameters if p.name in drawn or p.default is p.empty]
        if missing := [one for one in names if one not in drawn]:
            why = f"not verified: its argument {missing[0]} has no shape: --shape {missing[0]}=..."
            row = Row(name, "", "", 1, 0.0, 0.0, False, "", None, f"{why} ({tape.line_of(rule)})")
            reports.append(Report((row,)))
            continue
        args = tuple(drawn[one] for one in names)
        reports.append(fn.verify(rule, args, seed=options.seed, budget=options.budget))
    return _together(reports)


def _together(reports: Sequence[Any]) -> Any:
    from funcnet.verifier import Report

    return Report(
        tuple(row for report in reports for row in report.rows),
        tuple(finding for report in reports for finding in report.findings),
        tuple(dict.fromkeys(note for report in reports for note in report.notes)),
    )


def _function(text: str, modules: dict[str, ModuleType]) -> Callable[..., Any]:
    """The function that MODULE:NAME means; `modules` holds what is loaded already."""
    place, _, name = text.rpartition(":")
    if not place or not name:
        raise UsageError(f"{text}: expected MODULE:NAME or FILE.py:NAME")
    if place not in modules:
        modules[place] = _load(place)
    value: Any = modules[place]
    for part in name.split("."):
        if not hasattr(value, part):
            there = [k for k, v in vars(value).items() if callable(v) and not k.startswith("_")]
            close = difflib.get_close_matches(part, there, n=1)
            hint = f"perhaps {close[0]}" if close else f"there are {', '.join(there) or 'none'}"
            raise UsageError(f"{place} has no function {name!r}: {hint}")
        value = getattr(value, part)
    if not callable(value):
        raise UsageError(f"{text} is not a function but a {type(value).__name__}")
    return value


def _load(place: str) -> ModuleType:
    """Run a module, found from the working folder, or a file, found by its path."""
    is_file = place.endswith(".py")
    path = Path(place)
    if is_file and not path.is_file():
        raise UsageError(f"there is no file {place}")
    if is_file and any("\ud800" <= c <= "\udfff" for c in str(path.absolute())):
        raise UsageError(f"{place}: JAX cannot trace a file whose path is not UTF-8")
    try:
        with _importing_from(path.absolute().parent if is_file else Path.cwd()):
            if not is_file:
                return importlib.import_module(place)
            spec = importlib.util.spec_from_file_location(path.stem, path.absolute())
            assert spec is not None  # the name ends in .py
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    except ModuleNotFoundError as error:
        if is_file or not f"{place}.".startswith(f"{error.name}."):
            raise UsageError(f"{place} cannot be imported: {error}") from error
        raise UsageError(f"there is no module {place!r}, neither here nor installed") from error
    except (Exception, SystemExit) as error:  # whatever somebody's file may raise
        text = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise UsageError(f"{place} cannot be imported: {text}") from error


@contextlib.contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))


def _in_order(text: str, forward: Callable[..., Any], drawn: Mapping[str, Any]) -> tuple[Any, ...]:
    """The arguments in the order of the parameters; trailing ones may be left to their defaults."""
    try:
        parameters = [
            p for p in inspect.signature(forward).parameters.values() if p.kind <= p.POSITIONAL_OR_KEYWORD
        ]
    except (ValueError, TypeError):
        raise UsageError(f"the parameters of {text} are not known: is it written in Python?") from None
    names = [p.name for p in parameters]
    if unknown := [name for name in drawn if name not in names]:
        raise UsageError(f"--shape {unknown[0]}: {text} has no such argument: there are {', '.join(names)}")
    used = max(
        (i + 1 for i, p in enumerate(parameters) if p.name in drawn or p.default is p.empty), default=0
    )
    if missing := [name for name in names[:used] if name not in drawn]:
        raise UsageError(f"argument {missing[0]} of {text} has no shape: --shape {missing[0]}=...")
    return tuple(drawn[name] for name in names[:used])


def _source(function: Callable[..., Any]) -> str:
    try:
        return inspect.cleandoc("\n" + inspect.getsource(function))
    except (OSError, TypeError):
        return ""


# ---- formulas as text -------------------------------------------------------------------------------------


def _of_formulas(options: Options, definition: str) -> Any:
    import jax
    import jax.numpy as jnp

    import funcnet as fn

    drawn = _draw(options.shape, options.seed)
    texts = _gradients(options.grad, drawn)
    moving = [name for name in drawn if name in texts]
    value = _formula("--forward", definition, list(drawn))
    uses_y = any(re.search(r"\by\b", text) for text in texts.values())
    names = [*drawn, "dy", *["y"] * uses_y]
    gradients = {name: _formula(f"--grad {name}", texts[name], names) for name in moving}

    def given(args: Sequence[Any]) -> dict[str, Any]:
        """All arguments: those that are not differentiated are constants, in the dtype of the others."""
        like = args[0].dtype
        constants = {
            name: v.astype(like) if jnp.issubdtype(v.dtype, jnp.floating) else v for name, v in drawn.items()
        }
        return {**constants, **dict(zip(moving, args, strict=True))}

    def forward(*args: Any) -> Any:
        return value(**given(args))

    def backward(*args_and_dy: Any) -> tuple[Any, ...]:
        *args, dy = args_and_dy
        values = {**given(args), "dy": dy, **({"y": forward(*args)} if uses_y else {})}
        return tuple(gradients[name](**values) for name in moving)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    forward.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in moving])  # pyright: ignore[reportFunctionMemberAccess]
    args = tuple(drawn[name] for name in moving)
    jax.eval_shape(backward, *args, jax.eval_shape(forward, *args))  # what cannot be computed is said here
    report = fn.verify(forward, backward, args, seed=options.seed, budget=options.budget)
    lines = [f"{name} = {texts[name]}" for name in moving]
    return dataclasses.replace(report, sources={"forward": definition, "backward": "\n".join(lines)})


def _gradients(given: Sequence[str], drawn: Mapping[str, Any]) -> dict[str, str]:
    """The text of each gradient, by argument."""
    import jax.numpy as jnp

    texts: dict[str, str] = {}
    for text in given:
        name, equals, formula = (part.strip() for part in text.partition("="))
        if not equals:
            raise UsageError(f'--grad {text}: expected NAME=FORMULA, such as "x = dy @ w.T"')
        if name not in drawn:
            there = ", ".join(drawn) or "none"
            raise UsageError(f"--grad {name}: there is no such argument: --shape gives {there}")
        if name in texts:
            raise UsageError(f"--grad {name} is given twice")
        if not jnp.issubdtype(drawn[name].dtype, jnp.floating):
            raise UsageError(f"--grad {name}: {name} is {drawn[name].dtype} and has no gradient")
        texts[name] = formula
    if not texts:
        raise UsageError("no gradient is given: --grad NAME=FORMULA (funcnet verify --help)")
    return texts


def _formula(option: str, text: str, names: Sequence[str]) -> Callable[..., Any]:
    """The function of a text, whose errors name the option that it came from."""
    from funcnet.verifier.expression import ExpressionError, formula

    try:
        compiled = formula(text, names)
    except ExpressionError as error:
        raise UsageError(f"{option}: {error}") from error

    def call(**values: Any) -> Any:
        try:
            return compiled(**values)
        except ExpressionError as error:
            raise UsageError(f"{option}: {error}") from error

    return call


# ---- the library's own operations -------------------------------------------------------------------------


def _of_operation(options: Options, name: str) -> Any:
    import jax

    import funcnet as fn
    from funcnet.cli._cases import CASES, draw

    choice("operation", name, sorted(CASES), "funcnet verify --help")
    reports = []
    for case in CASES[name]:
        args, static = draw(case, jax.random.key(options.seed))
        reports.append(
            fn.verify(getattr(fn, name), args, static=static, seed=options.seed, budget=options.budget)
        )
    return _together(reports)


def _of_all(options: Options) -> Any:
    """Every operation, as a table that grows while it is computed."""
    import jax

    import funcnet as fn
    from funcnet.cli import _cases
    from funcnet.verifier import Report, Row

    rows, lines = [], []
    for name in sorted(_cases.CASES):
        measured = [
            _cases.measure(getattr(fn, name), case, jax.random.key(options.seed))
            for case in _cases.CASES[name]
        ]
        errors = {dtype: max(m.errors[dtype] for m in measured) for dtype in _cases.DTYPES}
        broken = [law for law in _cases.LAWS if not all(law in m.laws for m in measured)]
        held = f"BROKEN: {', '.join(broken)}" if broken else f"{len(_cases.LAWS)} of {len(_cases.LAWS)}"
        lines.append([name, str(len(measured)), *(f"{error:.0e}" for error in errors.values()), held])
        note = ", ".join(broken) or ", ".join(f"{dtype} {errors[dtype]:.0e}" for dtype in _cases.DTYPES[1:])
        rows.append(Row(name, "all", "", len(measured), errors["float64"], _cases.EXACT, not broken, note))
    columns = ["operation", "cases", *_cases.DTYPES, "laws"]
    table(columns, lines, right=["cases", *_cases.DTYPES])
    print("largest error of a gradient by formula against jax.vjp of the definition in float64;")
    print("laws: " + "; ".join(_cases.LAWS))
    return Report(tuple(rows))
