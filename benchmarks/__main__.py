"""`python -m benchmarks NAME...`: run benchmarks, print their tables and write them to benchmarks/results."""

import argparse
import ast
import importlib
import sys
from pathlib import Path

from benchmarks import harness


def available() -> dict[str, str]:
    """Every module here that defines `run(quick) -> list[Table]`, with its title: its docstring's first line.

    Read from the source, so that a list costs no import and a broken benchmark does not hide the others.
    """
    found = {}
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "run" for node in module.body):
            found[path.stem] = (ast.get_docstring(module) or "").partition("\n")[0].rstrip(".")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code, 2 for an unknown name."""
    titles = available()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog="benchmarks:\n" + "\n".join(f"  {name:<16}{title}" for name, title in titles.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="benchmarks to run, in this order")
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, few rounds, nothing written: does it run?"
    )
    options = parser.parse_args(arguments)
    for name in options.names:
        if name not in titles:
            print(f'benchmarks: there is no "{name}"; there are: {", ".join(titles)}', file=sys.stderr)
            return 2
    for name in options.names:
        load = harness.header()["load"]
        tables = importlib.import_module(f"benchmarks.{name}").run(options.quick)
        facts = {**harness.header(), "load before": load}
        print(harness.report(name, titles[name], tables, facts))
        if not options.quick:
            print("\n".join(f"wrote {path}" for path in harness.write(name, titles[name], tables, facts)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
