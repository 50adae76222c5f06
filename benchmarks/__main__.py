"""Side by side with the peers: `python -m benchmarks` measures every suite and writes the results and pages.

With names, only those suites or studies are run.
"""

import argparse
import ast
import importlib
import os
import sys
import time
import traceback
from importlib import metadata
from pathlib import Path

from benchmarks import harness, report
from benchmarks.harness import Table
from benchmarks.report import Run, Suite

HERE = Path(__file__).parent
SUITES = (
    "overhead",
    "run",
    "depth",
    "conv",
    "attention",
    "training",
    "decoding",
    "memory",
    "footprint",
    "verifier",
    "gpu",
)


def studies() -> list[str]:
    """Of funcnet itself: every module in benchmarks/studies that has a `run`."""
    found = (HERE / "studies").glob("[a-z]*.py")
    return sorted(path.stem for path in found if "\ndef run(" in path.read_text(encoding="utf-8"))


def module(name: str) -> str:
    """The dotted name of a suite's or study's module; it has `run(scale) -> list[Table]`."""
    return f"benchmarks.{name}" if name in SUITES else f"benchmarks.studies.{name}"


def title(name: str) -> str:
    """A docstring's first line, read from the source: a list costs no import, nor fails with one of them."""
    path = HERE.parent / f"{module(name).replace('.', '/')}.py"
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0].rstrip(".")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit code is 2 for bad arguments, 1 for what was refused or got slower."""
    lines = [f"  {name:<18}{title(name)}" for name in SUITES]
    lines += ["studies of funcnet itself:", *(f"  {name:<18}{title(name)}" for name in studies())]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog="\n".join(["suites:", *lines]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="suites or studies, in this order")
    scale = parser.add_mutually_exclusive_group()
    scale.add_argument("--quick", action="store_true", help="few samples, some sizes: 10 minutes for all")
    scale.add_argument(
        "--smoke", action="store_true", help="tiny sizes: does it run, do losses agree? 3 minutes"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="cores for every candidate (default: all)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the JSON of this run, of whatever scale")
    parser.add_argument(
        "--compare", nargs=2, type=Path, metavar=("OLD", "NEW"), help="what got slower beyond the noise"
    )
    parser.add_argument("--page", type=Path, metavar="FILE", help="make the pages of the docs of that run")
    options = parser.parse_args(arguments)
    try:
        if options.compare:
            return _compare(*map(report.read, options.compare))
        if options.page:
            _page(report.read(options.page))
            return 0
        known = [*SUITES, *studies()]
        for name in options.names:
            if name not in known:
                raise ValueError(f'there is no "{name}"; there are: {", ".join(known)}')
        if options.threads is not None:
            _fix_threads(options.threads)
    except ValueError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    scale = harness.SMOKE if options.smoke else harness.QUICK if options.quick else harness.WHOLE
    return _run(options.names or list(SUITES), scale, options.out)


def _run(names: list[str], scale: harness.Scale, out: Path | None) -> int:
    whole = names == list(SUITES)
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(report.threads())
    if scale == harness.SMOKE:  # compiles in half the time; what is asked is whether all compute the same
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"
    words = ["python -m benchmarks", *([] if whole else names)]
    words += [] if scale == harness.WHOLE else [f"--{scale.name}"]
    before, suites, began = report.facts(), [], time.perf_counter()
    committed = whole and scale == harness.WHOLE and not out
    path = report.new_path(str(before["date"])[:10]) if committed else out
    run = Run(" ".join(words), before, suites)
    for name in names:
        print(f"{name}: {title(name)}", file=sys.stderr, flush=True)
        start = time.perf_counter()
        try:
            tables = importlib.import_module(module(name)).run(scale)
        except Exception as error:  # the other suites are worth having
            traceback.print_exc()
            tables = [Table("Failed", [{"suite": name, "error": f"failed: {error}"}])]
        suites.append(Suite(name, title(name), time.perf_counter() - start, tables))
        after = {
            "load after": report.facts()["load"],
            "rounds begun on a quiet machine": sum(harness.quiet) / max(len(harness.quiet), 1),
            "minutes": round((time.perf_counter() - began) / 60, 1),
        }
        run = Run(" ".join(words), before | after, suites)
        if path:  # after every suite: a run that is cut off has lost one
            report.write(run, path)
    print(report.text(run))
    if path:
        print(f"wrote {path}")
        if committed:
            _page(run)
    elif scale == harness.WHOLE:
        folder, version = report.RESULTS / report.machine_class(), metadata.version("jax")
        for suite in suites:
            path = folder / f"{suite.name}-jax{version}.json"
            print(f"wrote {report.write(Run(run.command, run.facts, [suite]), path)}")
    for line in [*run.refused, *run.failed]:
        print(f"benchmarks: {line}", file=sys.stderr)
    return 1 if run.refused or run.failed else 0


def _page(run: Run) -> None:
    written = [report.DOCS / name for name in report.pages(run)]
    for path, text in zip(written, report.pages(run).values(), strict=True):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for path in [*written, *report.draw(run, report.DOCS / "pictures")]:
        print(f"wrote {path}")


def _compare(old: Run, new: Run) -> int:
    """Print what changed; 1 if anything got slower or larger beyond the noise."""
    if old.facts["machine"] != new.facts["machine"]:
        print(f"note: the machines differ: {old.facts['machine']}, {new.facts['machine']}")
    worse, better = report.compare(old, new)
    for heading, lines in (("slower or larger", worse), ("faster or smaller", better)):
        print(f"{heading}: {len(lines) or 'nothing'}", *lines, sep="\n  ")
    apart, compared = report.disagreements(old, new)
    heading = f"ratios that differ by more than 10 % and are not marked as noisy: {len(apart)} of {compared}"
    print(heading, *apart, sep="\n  ")
    return 1 if worse else 0


def _fix_threads(count: int) -> None:
    """Keep this process and its workers on so many cores; XLA and PyTorch take as many threads."""
    cores = sorted(os.sched_getaffinity(0))
    if not 1 <= count <= len(cores):
        raise ValueError(f"--threads {count}: this machine has {len(cores)}")
    os.sched_setaffinity(0, cores[:count])


if __name__ == "__main__":
    sys.exit(main())
