"""What becomes of a run: a JSON file, a page for the docs made of nothing else, charts, and a comparison.

A run is plain data: {"command", "facts", "suites": [{"name", "title", "seconds", "tables"}]}; a cell of a
table is text, a number, or the fields of a `harness.Measure`.
"""

import datetime
import json
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.harness import Measure, Table

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parents[1] / "docs"
SUMMARY = "benchmark-summary.png"
_PACKAGES = ("funcnet", "jax", "jaxlib", "numpy", "optax", "flax", "equinox", "dm-haiku", "torch", "chex")
SLOWER = 1.10  # what is within the noise is not reported, nor what is less than this
ALONE = 1.25  # without a peer beside it: the same program took up to 1.23 times as long in another hour
NOISY_SHARE = 0.25  # of a suite's ratios, or of the rounds: more are too many
LARGER = 1.02  # of memory, which has no noise if it is planned


@dataclass(frozen=True)
class Suite:
    """What one benchmark gave."""

    name: str
    title: str
    seconds: float
    tables: Sequence[Table]

    @property
    def noisy(self) -> tuple[int, int]:
        """How many ratios of times are marked as noisy, of how many; not those of the first to itself."""
        cells = [cell for table in self.tables for row in table.rows for cell in row.values()]
        ratios = [
            c for c in cells if isinstance(c, Measure) and c.unit == "s" and (c.ratio, c.spread) != (1, 0)
        ]
        return sum(ratio.noisy for ratio in ratios), len(ratios)


@dataclass(frozen=True)
class Run:
    """What one command gave, and the machine that it ran on."""

    command: str
    facts: Mapping[str, Any]
    suites: Sequence[Suite]

    @property
    def refused(self) -> list[str]:
        """The rows whose candidates do not compute the same."""
        return [f"{place}: {row['refused']}" for place, row in _rows(self) if "refused" in row]

    @property
    def failed(self) -> list[str]:
        """The cells whose candidate failed."""
        return [
            f"{place}, {name}: {cell}"
            for place, row in _rows(self)
            for name, cell in row.items()
            if str(cell).startswith("failed")
        ]

    @property
    def noisy(self) -> tuple[int, int]:
        """How many ratios of times are marked as noisy, of how many."""
        counts = [suite.noisy for suite in self.suites]
        return sum(noisy for noisy, _ in counts), sum(of for _, of in counts)


def _rows(run: Run) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every row, under the names of its suite and its table and its own."""
    for suite in run.suites:
        for table in suite.tables:
            for row in table.rows:
                yield f"{suite.name}, {table.title}, {next(iter(row.values()))}", row


# ---- the machine ------------------------------------------------------------------------------------------


def facts() -> dict[str, object]:
    """The machine, the versions, the flags and the load, as they are now."""
    versions = [f"{name} {metadata.version(name)}" for name in _PACKAGES if harness.installed(name)]
    missing = [name for name in _PACKAGES if not harness.installed(name)]
    return {
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        "machine": machine_class(),
        "cpu": _cpu_model(),
        "threads": threads(),
        "gpu": ", ".join(_gpus()) or "none",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": ", ".join(versions),
        "not installed": ", ".join(missing) or "none",
        "commit": _commit(),
        "flags": {k: v for k, v in sorted(os.environ.items()) if k.startswith(("XLA_", "JAX_", "FUNCNET_"))},
        "load": [round(load, 2) for load in os.getloadavg()],
    }


def machine_class() -> str:
    """Machines whose figures may be compared: "amd-epyc-avx512f-2-threads"."""
    words = [_cpu_model(), f"{threads()} threads", *_gpus()]
    return re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")


def threads() -> int:
    """Of every candidate: the cores that this process, and so its workers, may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_model() -> str:
    """The processor's name and its widest vectors, which decide more than the name does."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor() or "unknown"
    pairs = (line.partition(":") for line in cpuinfo.read_text(encoding="utf-8").splitlines())
    found = {name.strip(): value.strip() for name, _, value in pairs}
    flags = found.get("flags", "").split()
    widest = next((isa for isa in ("amx_tile", "avx512f", "avx2") if isa in flags), "")
    return f"{found.get('model name', 'unknown')} {widest}".strip()


def _gpus() -> list[str]:
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[:-1]
    except (OSError, subprocess.CalledProcessError):
        return []


def _commit() -> str:
    """The commit, with a plus if the tree has changed since."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


# ---- files ------------------------------------------------------------------------------------------------


def write(run: Run, path: Path) -> Path:
    """Write a run as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(run), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def read(path: Path) -> Run:
    """Read what `write` wrote.

    Raises:
        ValueError: the file is not a run.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        suites = [
            Suite(**{**suite, "tables": [_table(table) for table in suite["tables"]]})
            for suite in data["suites"]
        ]
        return Run(data["command"], data["facts"], suites)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a run of the benchmarks: {error}") from error


def _table(data: dict[str, Any]) -> Table:
    cell = lambda value: Measure(**value) if isinstance(value, dict) else value
    rows = [{name: cell(value) for name, value in row.items()} for row in data["rows"]]
    return Table(**{**data, "rows": rows})


def new_path(stem: str) -> Path:
    """results/MACHINE-CLASS/STEM.json, or -2, -3 ... where there is one: nothing is overwritten."""
    folder = RESULTS / machine_class()
    paths = (folder / f"{stem}{suffix}.json" for suffix in ("", *(f"-{i}" for i in range(2, 1000))))
    return next(path for path in paths if not path.exists())


# ---- the pages --------------------------------------------------------------------------------------------


def pages(run: Run) -> dict[str, str]:
    """The pages of the docs, by their names in that folder, made of nothing but what is in the run.

    A summary of one screen; who is ahead in each row; the tables of each suite.
    """
    up = "[Summary](../benchmark-figures.md) · [how it is measured](../benchmarks.md)"
    rows = [_facts(run), *_warnings(run), *_ahead(run, "s", "time"), *_ahead(run, "B", "memory")]
    found = {"who-is-ahead": ["# Who is ahead, row by row", up, *rows]}
    for suite in run.suites:
        tables = [part for table in suite.tables for part in _shown(suite, table, "../pictures/")]
        found[suite.name] = [f"# {suite.title}", up, _measured(suite), *tables]
    links = "\n".join(["```{toctree}", ":maxdepth: 1", "", *(f"figures/{name}" for name in found), "```"])
    named = {f"figures/{name}.md": _joined(parts) for name, parts in found.items()}
    return {"benchmark-figures.md": _joined([*_summary(run), "## The figures themselves", links]), **named}


def _summary(run: Run) -> list[str]:
    """Who is ahead of whom, in words and a picture."""
    facts = run.facts
    where = [f"`{run.command}` on {facts.get('date')}: {facts.get('cpu')}, {facts.get('threads')} threads,"]
    where += [f"{facts.get('versions')}. {_noise(run)} [How it is measured](benchmarks.md)."]
    words = {"s": ("time", "takes"), "B": ("memory", "needs")}
    said = []
    for unit, (what, verb) in words.items():
        peers = {name: ratios for name, ratios in _of_each_peer(run, unit).items() if "guard" not in name}
        said += [f"## In {what}"] if peers else []
        said += ["\n".join(_in_words(name, ratios, what, verb) for name, ratios in peers.items())]
    picture = f"![The time of each peer, divided by funcnet's, a point for each row](pictures/{SUMMARY})"
    return ["# Benchmarks: the figures", " ".join(where), picture, *said]


def _in_words(peer: str, ratios: Sequence[float], what: str, verb: str) -> str:
    """One peer: in how many rows who is ahead, and by how much."""
    ahead, level, behind = _counts(ratios)
    mean, least, most = statistics.geometric_mean(ratios), min(ratios), max(ratios)
    spread = f", in the geometric mean ({least:.2f} to {most:,.2f})" if len(ratios) > 1 else ""
    return (
        f"- **{peer}**: of {len(ratios)} {'row' if len(ratios) == 1 else 'rows'} funcnet is ahead "
        f"in {ahead}, level within 5 % in {level}, behind in {behind}. "
        f"It {verb} {mean:.2f} times funcnet's {what}{spread}."
    )


def text(run: Run) -> str:
    """A run as Markdown: the machine, then who is ahead where, then every table."""
    parts = [_facts(run), *_warnings(run), *_ahead(run, "s", "time"), *_ahead(run, "B", "memory")]
    for suite in run.suites:
        parts += [f"## {suite.title}", _measured(suite)]
        parts += [part for table in suite.tables for part in _shown(suite, table, "pictures/", "###")]
    return _joined(parts)


def _joined(parts: Sequence[str]) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


def _facts(run: Run) -> str:
    lines = [f"command: {run.command}", *(f"{k}: {v}" for k, v in run.facts.items())]
    return "\n".join(["```text", *lines, "```"])


def _measured(suite: Suite) -> str:
    return f"`python -m benchmarks {suite.name}`, {suite.seconds:.0f} s."


def _shown(suite: Suite, table: Table, pictures: str, level: str = "##") -> list[str]:
    drawn = f"![{table.title}]({pictures}{picture(suite, table)})" if table.chart and charted(table) else ""
    return [f"{level} {table.title}", *_tables(table), table.notes, drawn]


def _noise(run: Run) -> str:
    noisy, timed = run.noisy
    quiet = run.facts.get("rounds begun on a quiet machine", 1.0)
    began = f"{quiet:.0%} of the rounds began on a quiet machine."
    return f"{noisy} of {timed} ratios are noisy; {began}" if timed else ""


def _warnings(run: Run) -> list[str]:
    quiet = run.facts.get("rounds begun on a quiet machine", 1.0)
    lines = []
    if noise := _noise(run):
        lines.append(f"{noise} A ratio marked ~ may differ by more than 10 % in another run.")
    counts = [(suite.name, *suite.noisy) for suite in run.suites]
    too_noisy = [f"{name} ({count} of {of} ratios)" for name, count, of in counts if count > NOISY_SHARE * of]
    if quiet < 1 - NOISY_SHARE:
        lines.append("**This run was too noisy to be relied on**: the machine was busy with something else.")
    elif too_noisy:
        lines.append(f"**Too noisy to be relied on**: {', '.join(too_noisy)}.")
    lines += [f"**Refused**, since the candidates do not compute the same: {place}." for place in run.refused]
    return lines


def _ratios(run: Run, unit: str) -> list[tuple[str, str, str, Measure]]:
    """(suite, case, peer, its measure) of the rows that begin with funcnet, of times ("s") or sizes ("B")."""
    found = []
    for suite in run.suites:
        for table in suite.tables:
            for row in table.rows:
                cells = [(name, cell) for name, cell in row.items() if isinstance(cell, Measure)]
                if len(cells) > 1 and cells[0][0] == "funcnet" and cells[0][1].unit == unit:
                    case = str(next(iter(row.values())))
                    peers = [(name, cell) for name, cell in cells if not name.startswith("funcnet")]
                    found += [(suite.name, case, name, cell) for name, cell in peers]
    return found


def _of_each_peer(run: Run, unit: str) -> dict[str, list[float]]:
    """The peer's times (or sizes), each divided by funcnet's."""
    peers: dict[str, list[float]] = {}
    for _, _, peer, cell in _ratios(run, unit):
        peers.setdefault(peer, []).append(cell.ratio)
    return peers


def _counts(ratios: Sequence[float]) -> tuple[int, int, int]:
    """In how many rows funcnet is ahead, level within 5 %, and behind."""
    ahead, behind = sum(r > 1.05 for r in ratios), sum(r < 1 / 1.05 for r in ratios)
    return ahead, len(ratios) - ahead - behind, behind


def _ahead(run: Run, unit: str, what: str) -> list[str]:
    """Every peer in one line; the rows where one is ahead; as many where funcnet is furthest ahead."""
    ratios = _ratios(run, unit)
    if not ratios:
        return []
    of_each = [
        {"peer": peer, "rows": len(values)}
        | dict(zip(("funcnet ahead", "level within 5 %", "peer ahead"), _counts(values), strict=True))
        | {
            "geometric mean": statistics.geometric_mean(values),
            "worst": min(values),
            "best": max(values),
        }
        for peer, values in _of_each_peer(run, unit).items()
    ]
    ordered = sorted(ratios, key=lambda found: found[3].ratio)
    behind = [found for found in ordered if found[3].ratio < 1.0]
    line = lambda found: {
        "suite": found[0],
        "case": found[1],
        "peer": found[2],
        f"its {what} ÷ funcnet's": _ratio(found[3]),
    }
    return [
        f"## Who is ahead in {what}",
        f"The {what} of the peer, divided by funcnet's: above 1, funcnet is ahead.",
        _markdown(of_each),
        f"### Where a peer is ahead in {what}: {len(behind)} of {len(ratios)}",
        _markdown([line(found) for found in behind]),
        f"### Where funcnet is furthest ahead in {what}",
        _markdown([line(found) for found in ordered[: -1 - max(len(behind), 5) : -1]]),
    ]


def _tables(table: Table) -> list[str]:
    """One of ratios and one of times; only one where a single column was measured."""
    columns = dict.fromkeys(name for row in table.rows for name in row)
    measured = [name for name in columns if any(isinstance(row.get(name), Measure) for row in table.rows)]
    if len(measured) < 2:
        return [_markdown([{k: _time(v) for k, v in row.items()} for row in table.rows])]
    name = next(iter(columns))
    times = [{k: _time(v) for k, v in row.items() if k == name or k in measured} for row in table.rows]
    return [_markdown([{k: _ratio(v) for k, v in row.items()} for row in table.rows]), _markdown(times)]


def _ratio(cell: object) -> object:
    return f"×{cell.ratio:.2f}{'~' * cell.noisy}" if isinstance(cell, Measure) else cell


def _time(cell: object) -> object:
    return str(cell).partition(" ×")[0] if isinstance(cell, Measure) else cell


def _markdown(rows: Sequence[Mapping[str, object]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    show = lambda value: f"{value:.3g}" if isinstance(value, float) else str(value).replace("|", "\\|")
    lines = [columns, ["---"] * len(columns)]
    lines += [[show(row.get(name, "")) for name in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) if rows else "None."


# ---- charts -----------------------------------------------------------------------------------------------


def charted(table: Table) -> list[str]:
    """The columns that a chart shows: the peers; of many, not those with the guard's flag."""
    names = dict.fromkeys(k for row in table.rows for k, cell in row.items() if isinstance(cell, Measure))
    peers = list(names)[1:]
    return peers if len(peers) <= 4 else [name for name in peers if "guard" not in name]


def picture(suite: Suite, table: Table) -> str:
    """The file of a chart."""
    return (
        "benchmark-" + re.sub(r"[^a-z0-9]+", "-", f"{suite.name} {table.title}".lower()).strip("-") + ".png"
    )


_COLOURS = ("#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677", "#aa3377", "#bbbbbb")


def draw_summary(run: Run, folder: Path) -> Path:
    """A line per peer, a point per row: its time, in units of funcnet's."""
    from matplotlib.figure import Figure

    ratios = [found for found in _ratios(run, "s") if "guard" not in found[2]]
    peers = list(dict.fromkeys(peer for _, _, peer, _ in ratios))
    figure = Figure(figsize=(9, 1.1 + 0.36 * len(peers)), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.axvline(1.0, color="black", linewidth=1.0)
    for i, suite in enumerate(dict.fromkeys(suite for suite, *_ in ratios)):
        of_suite = [(cell.ratio, peers.index(peer)) for name, _, peer, cell in ratios if name == suite]
        x, y = zip(*of_suite, strict=True)
        axes.scatter(x, y, s=26, alpha=0.75, linewidths=0, color=_COLOURS[i % len(_COLOURS)], label=suite)
    axes.set_xscale("log")
    ticks = [0.5, 1, 2, 5, 10, 50]
    axes.set_xticks(ticks, [f"×{tick:g}" for tick in ticks], minor=False)
    axes.set_xticks([], minor=True)
    axes.set_yticks(range(len(peers)), peers)
    axes.set_ylim(len(peers) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.25)
    axes.set(xlabel="its time ÷ funcnet's: right of the line, funcnet is ahead")
    figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    path = folder / SUMMARY
    figure.savefig(path, metadata={"Software": None})
    return path


def draw(run: Run, folder: Path) -> list[Path]:
    """The summary; for every table with a chart a bar per row and peer: its time, in units of funcnet's."""
    from matplotlib.figure import Figure

    paths = [draw_summary(run, folder)]
    for suite in run.suites:
        for table in suite.tables:
            peers = charted(table) if table.chart else []
            if not peers:
                continue
            labels = [str(next(iter(row.values()))) for row in table.rows]
            height = 0.84 / len(peers)
            size = (9, 1.2 + len(labels) * max(0.42, 0.13 * len(peers)))
            figure = Figure(figsize=size, dpi=110, layout="constrained")
            axes = figure.subplots()
            for i, peer in enumerate(peers):
                cells = [(j, row.get(peer)) for j, row in enumerate(table.rows)]
                bars = [
                    (j + (i - (len(peers) - 1) / 2) * height, c.ratio)
                    for j, c in cells
                    if isinstance(c, Measure)
                ]
                # From 1, not from 0: on a logarithmic axis the length of a bar then means something.
                axes.barh(
                    [place for place, _ in bars],
                    [ratio - 1 for _, ratio in bars],
                    height,
                    left=1.0,
                    label=peer,
                    color=_COLOURS[i % len(_COLOURS)],
                )
            axes.axvline(1.0, color="black", linewidth=1.0)
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("{x:g}")
            axes.set_yticks(range(len(labels)), labels)
            axes.invert_yaxis()
            axes.set(xlabel="÷ funcnet's: right of the line, funcnet is ahead", title=table.title)
            axes.legend(frameon=False, fontsize="small")
            path = folder / picture(suite, table)
            figure.savefig(path, metadata={"Software": None})
            paths.append(path)
    return paths


# ---- old and new ------------------------------------------------------------------------------------------


def compare(old: Run, new: Run) -> tuple[list[str], list[str]]:
    """What changed beyond the noise from one run to another: (slower or larger, the other way).

    A cell of funcnet is held against the peers' of its row (or of its column, where funcnet is a row), since
    the machine may be another or busier: what counts is by how much funcnet's time changed when that of the
    median peer is taken as unchanged. Where there is no peer, the times themselves are compared. The noise is
    twice the largest spread of the row in either run.
    """
    worse, better = [], []
    before = dict(_ours(old))
    for place, (cell, others) in _ours(new):
        if place not in before:
            continue
        was, were = before[place]
        drifts = [others[name].median / were[name].median for name in others if name in were]
        drift = statistics.median(drifts) if drifts and cell.unit == "s" else 1.0
        change = cell.median / was.median / drift if was.median else 1.0
        least = LARGER if cell.unit == "B" else SLOWER if drifts else ALONE
        noise = max(least, 1 + 2 * max(each.spread for each in (cell, was, *others.values(), *were.values())))
        line = f"{place}: {_time(was)} → {_time(cell)}, ×{change:.2f} beside its peers (noise ×{noise:.2f})"
        if change > noise:
            worse.append(line)
        elif change < 1 / noise:
            better.append(line)
    return worse, better


def disagreements(old: Run, new: Run) -> tuple[list[str], int]:
    """The ratios that differ by more than 10 % though neither run marks them as noisy, and of how many.

    It says whether a run can be repeated, if both are of the same code on the same machine.
    """
    before = {(place, name): cell for place, row in _rows(old) for name, cell in row.items()}
    found, compared = [], 0
    for place, row in _rows(new):
        for name, cell in row.items():
            was = before.get((place, name))
            if isinstance(cell, Measure) and isinstance(was, Measure) and cell.unit == was.unit == "s":
                compared += 1
                apart = max(cell.ratio, was.ratio) / min(cell.ratio, was.ratio)
                if apart > 1 + harness.NOISY and not (cell.noisy or was.noisy):
                    found.append(f"{place}, {name}: {_ratio(was)} and {_ratio(cell)}")
    return found, compared


def _ours(run: Run) -> Iterator[tuple[str, tuple[Measure, dict[str, Measure]]]]:
    """Every measure of funcnet, and those that it can be held against, by name."""
    for suite in run.suites:
        for table in suite.tables:
            grid = {
                str(next(iter(row.values()))): {k: c for k, c in row.items() if isinstance(c, Measure)}
                for row in table.rows
            }
            for name, row in grid.items():
                for column, cell in row.items():
                    place = f"{suite.name}, {table.title}, {name}, {column}"
                    if column.startswith("funcnet"):
                        yield place, (cell, {k: c for k, c in row.items() if not k.startswith("funcnet")})
                    elif name.startswith("funcnet"):
                        peers = {k: r[column] for k, r in grid.items() if column in r and k != name}
                        yield place, (cell, peers)
