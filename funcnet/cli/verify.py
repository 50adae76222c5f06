"""`funcnet verify`: is this gradient formula right, and if not, what is the mistake?

Functions are given as MODULE:NAME or FILE.py:NAME, formulas as text, the library's own operations by name.
Arguments are drawn at random, of the shapes that are given.
"""

import contextlib
import dataclasses
import difflib
import functools
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

from funcnet.cli import UsageError, choice, new
from funcnet.cli._options import parse, with_minus
from funcnet.cli._text import heading, table

__all__ = ["run"]

MAX_SIZE = 2**24  # elements of an argument
MAX_AXES = 32
MAX_FLOPS = 1e13  # of all runs of formulas as text; with more they are refused
MAX_BYTES = 2**32  # of all values on the way of one run
RUNS = 12  # of truth and formula, at least, for one verdict
MAX_DEPTH = 16  # decorators around a rule
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

    funcnet verify --op conv, or --all: the library's own. --example writes a file with a wrong gradient, to
    try it.

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
        example: write wrong_gradient.py, a layer with a mistake in its gradient, and say how to verify it.
        html: write the report as a page into this file.
        json: write the report as JSON into this file.
        annotate: "github": print what is wrong or unseen as annotations of a workflow too.
        seed: of the arguments and of what else is random.
        force: verify formulas as text that take long (1e13 operations) or much memory (4 GiB), too.
        budget: seconds for naming the mistake in one wrong formula.
        order: 2: verify the derivative of the formula, or rule, in its turn.
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
    example: Annotated[int, tyro.conf.UseCounterAction] = 0
    html: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    annotate: Annotated[str | None, tyro.conf.arg(metavar="github")] = None
    seed: int = 0
    force: Annotated[int, tyro.conf.UseCounterAction] = 0
    budget: float = 10.0
    order: int = 1


def run(args: list[str]) -> int:
    """The command."""
    options = parse(Options, with_minus(args, "--forward"), "funcnet verify")
    ways = {
        "FORWARD BACKWARD": bool(options.functions),
        "--forward": options.forward is not None,
        "--op": options.op is not None,
        "--all": bool(options.all),
        "--example": bool(options.example),
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
    if options.annotate is not None:
        choice("form of annotations", options.annotate, ("github",), "funcnet verify --help")
    if not 0 <= options.seed < 2**32:
        raise UsageError(f"--seed is {options.seed}: expected 0 to {2**32 - 1}")
    if not 0 <= options.budget < math.inf:
        raise UsageError(f"--budget is {options.budget}: expected seconds")
    if options.order not in (1, 2):
        raise UsageError(f"--order is {options.order}: expected 1 or 2")
    if options.order == 2 and (options.model or options.all):
        raise UsageError("--order does not go with --model or --all")
    for file in (options.html, options.json):
        if file is not None and not file.absolute().parent.is_dir():
            raise UsageError(f"{file}: there is no folder {file.parent}")

    if options.example:
        return _example()
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
    if options.annotate is not None:
        from funcnet.cli._annotations import annotations

        for line in annotations(report):
            print(line)
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
        if len(sizes) > MAX_AXES:
            raise UsageError(f"--shape {name}=...: {len(sizes)} axes, more than {MAX_AXES}")
        if math.prod(sizes) > MAX_SIZE:
            raise UsageError(f"--shape {text}: {math.prod(sizes):,} elements, more than {MAX_SIZE:,}")
        values: Any = rng.standard_normal(sizes)
        if dtype == "int32":
            values = np.arange(math.prod(sizes)).reshape(sizes) % 2  # an index of anything
        drawn[name] = np.asarray(values > 0 if dtype == "bool" else values).astype(jnp.dtype(dtype))
    return drawn


def _asked(options: Options) -> dict[str, Any]:
    """What is handed on to `funcnet.verify`."""
    return {"seed": options.seed, "budget": options.budget, "order": options.order}


# ---- functions --------------------------------------------------------------------------------------------


def _of_functions(options: Options) -> Any:
    import funcnet as fn
    from funcnet.verifier.compare import source

    if len(options.functions) != 2:
        given = " ".join(options.functions)
        raise UsageError(
            f"two functions are needed, not {given!r}, or a loss with --model (funcnet verify --help)"
        )
    modules: dict[str, ModuleType] = {}
    forward, backward = (_function(text, modules) for text in options.functions)
    args = _in_order(options.functions[0], forward, _draw(options.shape, options.seed))
    report = fn.verify(forward, backward, args, **_asked(options))
    sources = {"forward": source(forward), "backward": source(backward)}
    return dataclasses.replace(report, sources={k: v for k, v in sources.items() if v} | report.sources)


def _example() -> int:
    """A file with a wrong gradient in this folder, and the command that finds the mistake."""
    try:
        file = new.copy("wrong_gradient.py", Path())
    except FileExistsError:
        raise UsageError("wrong_gradient.py is there already, and would be overwritten") from None
    heading(f"{file}: a layer with a hand-derived gradient, one line of it wrong. Next:")
    print(f"funcnet verify {file} --shape x=7,11 --shape w=11,13 --shape b=13")
    return 0


def _of_model(options: Options, text: str) -> Any:
    """Every rule that a loss meets, with the params and the batch that its module holds."""
    import funcnet as fn

    modules: dict[str, ModuleType] = {}
    loss = _function(text, modules)
    place, module = next(iter(modules.items()))
    held = {name: getattr(module, name) for name in _HELD if hasattr(module, name)}
    if missing := [name for name in ("params", "batch") if name not in held]:
        raise UsageError(f"{place} holds no {missing[0]}: a value, or a function without arguments")
    given: dict[str, Any] = {name: value() if callable(value) else value for name, value in held.items()}
    params, batch = given.pop("params"), given.pop("batch")
    return fn.verify_model(loss, params, batch, **given, seed=options.seed, allow=options.allow)


_HELD = ("params", "batch", "key", "model_state")


def _of_rules(options: Options, place: str) -> Any:
    """Every derivative rule that a module defines, where its arguments have shapes."""
    import funcnet as fn
    from funcnet.verifier import Report, Row, tape

    module = _load(place)
    found = {
        name: rule
        for name, rule in _rules_in(vars(module), module.__name__)
        if module.__file__ in tape.files_of(rule)
    }
    if not found:
        raise UsageError(
            f"{place} defines no derivative rule: give FORWARD and BACKWARD (funcnet verify --help)"
        )
    drawn, reports = _draw(options.shape, options.seed), list[Any]()
    for name, rule in found.items():
        parameters = inspect.signature(tape.function_of(rule)).parameters.values()
        names = [p.name for p in parameters if p.name in drawn or p.default is p.empty]
        if missing := [one for one in names if one not in drawn]:
            why = f"not verified: its argument {missing[0]} has no shape: --shape {missing[0]}=..."
            place = tape.line_of(rule)
            row = Row(name, "", "", 1, 0.0, 0.0, False, "", None, f"{why} ({place})", place)
            reports.append(Report((row,)))
            continue
        last = max((k for k, p in enumerate(parameters) if p.name in drawn), default=-1)
        args = tuple(drawn.get(p.name, p.default) for p in list(parameters)[: last + 1])
        reports.append(fn.verify(rule, args, **_asked(options)))
    return _together(reports)


def _rules_in(names: Mapping[str, Any], module: str, within: str = "") -> Iterator[tuple[str, Any]]:
    """The derivative rules of a module and of its classes, each once, beneath what is wrapped around them."""
    from funcnet.verifier import tape

    seen = set[int]()
    for name, value in names.items():
        if isinstance(value, type) and value.__module__ == module and not within:
            yield from _rules_in(vars(value), module, f"{name}.")
        for _ in range(MAX_DEPTH):  # a mock is wrapped around itself
            if not tape.is_rule(value) and (inner := _wrapped(value)) is not None:
                value = inner
        if tape.is_rule(value) and id(value) not in seen:
            seen.add(id(value))
            yield within + name, value


def _wrapped(value: Any) -> Any:
    """What `jax.jit`, `staticmethod` or another decorator is put around; None where there is nothing."""
    return None if isinstance(value, type | ModuleType) else getattr(value, "__wrapped__", None)


def _together(reports: Sequence[Any]) -> Any:
    from funcnet.verifier import Report

    return functools.reduce(Report.and_then, reports) if reports else Report(())


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
            with _known(module):
                spec.loader.exec_module(module)
            return module
    except ModuleNotFoundError as error:
        if is_file or not f"{place}.".startswith(f"{error.name}."):
            raise UsageError(f"{place} cannot be imported: {error}") from error
        from funcnet import _OPERATIONS

        hint = f"; of the library: --op {place}" if place in _OPERATIONS else ""
        raise UsageError(f"there is no module {place!r}, neither here nor installed{hint}") from error
    except (Exception, SystemExit) as error:  # whatever somebody's file may raise
        text = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise UsageError(f"{place} cannot be imported: {text}") from error


@contextlib.contextmanager
def _known(module: ModuleType) -> Iterator[None]:
    """While a file runs, its module is found by its name, as dataclasses do whose annotations are text."""
    before = sys.modules.get(module.__name__)
    sys.modules[module.__name__] = module
    try:
        yield
    finally:
        if before is None:
            sys.modules.pop(module.__name__, None)
        else:
            sys.modules[module.__name__] = before


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


# ---- formulas as text -------------------------------------------------------------------------------------


def _of_formulas(options: Options, definition: str) -> Any:
    import jax

    import funcnet as fn
    from funcnet.verifier.formulas.expression import ExpressionError, plain
    from funcnet.verifier.formulas.written import Formulas

    drawn = _draw(options.shape, options.seed)
    texts = _gradients(options.grad, drawn)
    moving = {name: texts[name] for name in drawn if name in texts}
    args = tuple(drawn[name] for name in moving)
    try:
        backward = Formulas(definition, moving, drawn)
        y = jax.eval_shape(backward.forward, *args)
        jax.eval_shape(backward, *args, y)  # what cannot be computed is said here
    except ExpressionError as error:
        named = {"--forward": definition, **{f"--grad {name}": text for name, text in moving.items()}}
        option = next(option for option, text in named.items() if plain(text) == error.text)
        raise UsageError(f"{option}: {error}") from error
    if not options.force:
        _check_expense(backward, args, y)
    report = fn.verify(backward.forward, backward, args, **_asked(options))
    findings = tuple(_with_formula(finding, backward) for finding in report.findings)
    lines = [f"{name} = {text}" for name, text in moving.items()]
    notes = report.notes
    if not y.shape and any(map(backward.is_of_one, moving.values())):
        notes += ("a gradient without dy is taken for that of dy = 1",)
    sources = {"forward": definition, "backward": "\n".join(lines)}
    return dataclasses.replace(report, findings=findings, notes=notes, sources=sources)


def _with_formula(finding: Any, formulas: Any) -> Any:
    """The finding with the right formula, where no edit of the wrong one gave it: derived, and verified."""
    import jax.numpy as jnp

    import funcnet as fn

    name = finding.argument
    if not finding.is_mistake or finding.code or name not in formulas.texts:
        return finding
    shapes = {k: v.shape if jnp.issubdtype(v.dtype, jnp.floating) else v for k, v in formulas.given.items()}
    derived = fn.derive(formulas.definition, shapes, wrt=[name])
    texts = derived.plain if formulas.is_of_one(formulas.texts[name]) else {}
    text = (texts or derived.gradients).get(name)
    return dataclasses.replace(finding, code=f"{name} = {text}") if text else finding


def _check_expense(backward: Any, args: Sequence[Any], y: Any) -> None:
    """Refuse formulas that would run for minutes, or need more memory than there may be, before they run."""
    import jax

    from funcnet.verifier.formulas.expense import expense

    def once(args: Any, dy: Any) -> Any:
        return jax.vjp(backward.forward, *args)[1](dy), backward(*args, dy)

    flops, size = expense(jax.make_jaxpr(once)(args, y))
    for much, most, what in (
        (RUNS * flops, MAX_FLOPS, "operations"),
        (size, MAX_BYTES, "bytes on the way"),
    ):
        if much > most:
            raise UsageError(f"to verify this takes {much:.0e} {what}, more than {most:.0e}: --force runs it")


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


# ---- the library's own operations -------------------------------------------------------------------------


def _of_operation(options: Options, name: str) -> Any:
    import funcnet as fn
    from funcnet.cli._cases import CASES, draw

    choice("operation", name, sorted(CASES), "funcnet verify --help")
    reports = []
    for case in CASES[name]:
        args, static = draw(case, options.seed)
        reports.append(fn.verify(getattr(fn, name), args, static=static, **_asked(options)))
    return _together(reports)


def _of_all(options: Options) -> Any:
    """Every operation, as a table that grows while it is computed."""
    import funcnet as fn
    from funcnet.cli import _cases
    from funcnet.verifier import Report, Row

    rows, lines = [], []
    for name in sorted(_cases.CASES):
        measured = [_cases.measure(getattr(fn, name), case, options.seed) for case in _cases.CASES[name]]
        errors = {dtype: max(m.errors[dtype] for m in measured) for dtype in _cases.DTYPES}
        broken = [law for law in _cases.LAWS if not all(law in m.laws for m in measured)]
        held = f"BROKEN: {', '.join(broken)}" if broken else f"{len(_cases.LAWS)} of {len(_cases.LAWS)}"
        lines.append([name, str(len(measured)), *(f"{error:.0e}" for error in errors.values()), held])
        note = ", ".join(broken) or ", ".join(f"{dtype} {errors[dtype]:.0e}" for dtype in _cases.DTYPES[1:])
        shapes = _cases.shapes(name, options.seed)
        rows.append(
            Row(name, "all", shapes, len(measured), errors["float64"], _cases.EXACT, not broken, note)
        )
    columns = ["operation", "cases", *_cases.DTYPES, "laws"]
    table(columns, lines, right=["cases", *_cases.DTYPES])
    print("largest error of a gradient by formula against jax.vjp of the definition in float64;")
    print("laws: " + "; ".join(_cases.LAWS))
    return Report(tuple(rows), seed=options.seed)
