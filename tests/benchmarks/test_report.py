import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import __main__ as command
from benchmarks import harness, report
from benchmarks.harness import Measure, Table
from benchmarks.report import Run, Suite


def timed(seconds, ratio=1.0, spread=0.01):
    return Measure(seconds, 0.9 * seconds, 1.2 * seconds, ratio, spread)


def sized(size, ratio=1.0):
    return Measure(size, size, size, ratio, unit="B")


def a_run(ours=0.010, nnx=0.013, torch=0.008, spread=0.01, memory=1000):
    steps = [
        {
            "step of": "an MLP | wide",
            "funcnet": timed(ours),
            "NNX": timed(nnx, nnx / ours, spread),
            "torch": timed(torch, torch / ours, spread),
            "GF/s": 12.0,
        },
        {"step of": "a GPT", "refused": "NNX has 2 where funcnet has 1"},
        {"step of": "a CNN", "funcnet": timed(0.1), "NNX": "flax is not installed", "torch": timed(0.2, 2.0)},
    ]
    imports = [{"package": "jax", "time": timed(1.0)}, {"package": "funcnet", "time": timed(1.1, 1.1)}]
    bytes_ = [{"of": "a GPT", "funcnet": sized(memory), "NNX": sized(2000, 2000 / memory)}]
    tables = [
        Table("Steps", steps, "A note.", chart=True),
        Table("Imports", imports),
        Table("Memory", bytes_),
    ]
    facts = {"machine": "a machine", "rounds begun on a quiet machine": 0.9}
    return Run("python -m benchmarks a", facts, [Suite("a", "Steps beside peers", 12.3, tables)])


def test_a_run_comes_back_from_its_file(tmp_path):
    path = report.write(a_run(), tmp_path / "new" / "run.json")
    again = report.read(path)
    assert dataclasses.asdict(again) == dataclasses.asdict(a_run())
    assert again.suites[0].tables[0].rows[0]["NNX"] == a_run().suites[0].tables[0].rows[0]["NNX"]
    assert json.loads(path.read_text())["suites"][0]["tables"][0]["rows"][0]["funcnet"]["median"] == 0.010


def test_a_run_that_is_cut_off_keeps_the_suites_before(tmp_path, monkeypatch):
    def imported(name):
        if name == "benchmarks.depth":
            raise KeyboardInterrupt
        return SimpleNamespace(run=lambda scale: a_run().suites[0].tables)

    monkeypatch.setattr(command.importlib, "import_module", imported)
    monkeypatch.setattr(report, "facts", lambda: {"date": "2026-11-22", "load": [0.0]})
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(variable, "1")  # so that they are as before afterwards
    with pytest.raises(KeyboardInterrupt):
        command.main(["overhead", "depth", "--out", str(tmp_path / "run.json")])
    (suite,) = report.read(tmp_path / "run.json").suites
    assert suite.name == "overhead"
    assert [*suite.tables] == [*a_run().suites[0].tables]


@pytest.mark.parametrize(
    "text", ["", "[]", '{"command": ""}', '{"command": "", "facts": {}, "suites": [{}]}']
)
def test_a_file_that_is_no_run_is_refused(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run\.json is not a run of the benchmarks: "):
        report.read(tmp_path / "run.json")
    assert command.main(["--page", str(tmp_path / "run.json")]) == 2


def test_the_page_shows_the_rows_where_a_peer_is_ahead_before_those_where_funcnet_is():
    page = report.text(a_run())
    behind, ahead = (
        page.index("### Where a peer is ahead in time: 1 of 3"),
        page.index("### Where funcnet is furthest"),
    )
    assert behind < page.index("| a | an MLP \\| wide | torch | ×0.80 |") < ahead
    assert (
        ahead
        < page.index("| a | a CNN | torch | ×2.00 |")
        < page.index("| a | an MLP \\| wide | NNX | ×1.30 |")
    )
    assert "| torch | 2 | 1 | 0 | 1 | 1.26 | 0.8 | 2 |" in page
    assert "### Where a peer is ahead in memory: 0 of 1\n\nNone." in page
    assert "| an MLP \\| wide | ×1.00 | ×1.30 | ×0.80 | 12 |" in page
    assert "| an MLP \\| wide | 10 ms (9–12) | 13 ms (11.7–15.6) | 8 ms (7.2–9.6) |" in page
    assert "flax is not installed" in page
    assert "**Refused**, since the candidates do not compute the same: a, Steps, a GPT: NNX has 2" in page
    assert "A note." in page
    assert "![Steps](pictures/benchmark-a-steps.png)" in page


def test_a_noisy_run_says_so():
    quiet = a_run()
    assert "0 of 7 ratios are noisy; 90% of the rounds" in report.text(quiet)
    noisy = a_run(spread=0.2)
    assert noisy.noisy == (2, 7)
    assert "×1.30~" in report.text(noisy)
    assert "**Too noisy to be relied on**: a (2 of 7 ratios)." in report.text(noisy)
    busy = dataclasses.replace(quiet, facts={**quiet.facts, "rounds begun on a quiet machine": 0.2})
    assert "**This run was too noisy to be relied on**" in report.text(busy)
    assert "oo noisy" not in report.text(quiet)


def test_a_chart_has_a_bar_for_every_ratio(tmp_path):
    paths = report.draw(a_run(), tmp_path)
    assert [path.name for path in paths] == ["benchmark-summary.png", "benchmark-a-steps.png"]
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    table = a_run().suites[0].tables[0]
    assert report.charted(table) == ["NNX", "torch"]
    many = {f"peer {i}{', guard' * (i % 2)}": timed(1.0) for i in range(6)}
    assert report.charted(Table("", [{"case": "x", "funcnet": timed(1.0), **many}])) == [
        "peer 0",
        "peer 2",
        "peer 4",
    ]


def test_what_got_slower_beside_its_peers_is_reported():
    worse, better = report.compare(a_run(), a_run(ours=0.013))
    assert worse == [
        "a, Steps, an MLP | wide, funcnet: 10 ms (9–12) → 13 ms (11.7–15.6), "
        "×1.30 beside its peers (noise ×1.10)"
    ]
    assert better == []
    worse, better = report.compare(a_run(ours=0.013), a_run())
    assert (len(worse), len(better)) == (0, 1)


def test_a_slower_machine_is_no_slower_funcnet():
    slower = a_run(ours=0.030, nnx=0.039, torch=0.024)
    assert report.compare(a_run(), slower) == ([], [])


def test_what_is_within_the_noise_is_not_reported():
    assert report.compare(a_run(spread=0.2), a_run(ours=0.013, spread=0.2)) == ([], [])
    assert report.compare(a_run(), a_run(ours=0.0108)) == ([], [])
    old, new = a_run(), a_run(ours=0.013)
    new.suites[0].tables[0].rows[0]["torch"] = timed(0.008, 0.6, 0.2)  # one of the peers in one of the runs
    assert report.compare(old, new) == ([], [])


def test_a_row_without_peers_may_differ_as_much_as_the_machine():
    def alone(seconds):
        table = Table("Alone", [{"of": "a GPT", "funcnet": timed(seconds)}])
        return dataclasses.replace(a_run(), suites=[Suite("a", "Alone", 1.0, [table])])

    assert report.compare(alone(0.1), alone(0.12)) == ([], [])
    assert [*map(len, report.compare(alone(0.1), alone(0.13)))] == [1, 0]
    assert [*map(len, report.compare(alone(0.13), alone(0.1)))] == [0, 1]


def test_ratios_that_do_not_repeat_are_told_unless_they_are_marked_as_noisy():
    assert report.disagreements(a_run(), a_run()) == ([], 7)
    assert report.disagreements(a_run(), a_run(ours=0.0102)) == ([], 7)
    told, _ = report.disagreements(a_run(), a_run(torch=0.009))
    assert told == ["a, Steps, an MLP | wide, torch: ×0.80 and ×0.90"]
    assert report.disagreements(a_run(), a_run(torch=0.009, spread=0.2)) == ([], 7)


def test_more_memory_and_a_slower_import_are_reported():
    worse, _ = report.compare(a_run(), a_run(memory=1100))
    assert worse == ["a, Memory, a GPT, funcnet: 0.977 KiB → 1.07 KiB, ×1.10 beside its peers (noise ×1.02)"]
    old, new = a_run(), a_run()
    new.suites[0].tables[1].rows[1]["time"] = timed(1.5, 1.5)
    assert report.compare(old, new)[0][0].startswith("a, Imports, funcnet, time: 1.1 s")


def test_compare_exits_with_1_if_anything_got_slower(tmp_path, capsys):
    old, new = (
        str(report.write(run, tmp_path / name))
        for name, run in (("old.json", a_run()), ("new.json", a_run(ours=0.02)))
    )
    assert command.main(["--compare", old, new]) == 1
    assert "slower or larger: 1\n  a, Steps, an MLP" in capsys.readouterr().out
    assert command.main(["--compare", new, old]) == 0
    assert command.main(["--compare", old, old]) == 0
    assert "slower or larger: nothing" in capsys.readouterr().out
    assert command.main(["--compare", old, str(tmp_path / "none.json")]) == 2
    assert "none.json is not a run of the benchmarks" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["conf"], 'benchmarks: there is no "conf"; there are: overhead, run, depth, conv, '),
        (["--threads", "999"], "benchmarks: --threads 999: this machine has "),
        (["--threads", "0"], "benchmarks: --threads 0: this machine has "),
    ],
)
def test_bad_arguments_are_refused(arguments, message, capsys):
    assert command.main(arguments) == 2
    assert capsys.readouterr().err.startswith(message)


def test_a_run_that_refuses_a_row_or_fails_exits_with_1(tmp_path, monkeypatch, capsys):
    class Refused:
        @staticmethod
        def run(scale):
            assert scale == harness.SMOKE
            return a_run().suites[0].tables

    monkeypatch.setattr(command.importlib, "import_module", lambda name: Refused)
    assert command.main(["training", "--smoke", "--out", str(tmp_path / "run.json")]) == 1
    assert capsys.readouterr().err.splitlines()[-1].endswith("a GPT: NNX has 2 where funcnet has 1")
    assert report.read(tmp_path / "run.json").command == "python -m benchmarks training --smoke"


def test_every_name_has_a_title():
    for name in [*command.SUITES, *command.studies()]:
        assert len(command.title(name)) > 10


def test_nothing_is_overwritten(monkeypatch, tmp_path):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    for stem in ("2026-01-02", "2026-01-02-2", "2026-01-02-3"):
        path = report.new_path("2026-01-02")
        assert path == tmp_path / report.machine_class() / f"{stem}.json"
        report.write(a_run(), path)


def test_the_pages_in_the_docs_are_what_a_committed_run_gives():
    """If not: python -m benchmarks --page FILE."""
    shown = {
        str(path.relative_to(report.DOCS)): path.read_text(encoding="utf-8")
        for path in [report.DOCS / "benchmark-figures.md", *(report.DOCS / "figures").glob("*.md")]
    }
    runs = [report.read(path) for path in Path(report.RESULTS).glob("*/2*.json")]
    assert shown in [report.pages(run) for run in runs]


def test_the_first_page_says_in_words_who_is_ahead():
    pages = report.pages(a_run())
    assert [*pages] == ["benchmark-figures.md", "figures/who-is-ahead.md", "figures/a.md"]
    first = pages["benchmark-figures.md"]
    assert (
        "- **torch**: of 2 rows funcnet is ahead in 1, level within 5 % in 0, behind in 1. "
        "It takes 1.26 times funcnet's time, in the geometric mean (0.80 to 2.00)." in first
    )
    assert "It needs 2.00 times funcnet's memory." in first
    assert "| torch" not in first
    assert "| a | an MLP \\| wide | torch | ×0.80 |" in pages["figures/who-is-ahead.md"]
    assert "![Steps](../pictures/benchmark-a-steps.png)" in pages["figures/a.md"]
