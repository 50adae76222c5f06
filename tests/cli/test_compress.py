"""`funcnet compress`: a run with fewer FLOPs is a run again; what is said; and what cannot be."""

import json

import jax
import numpy as np
import pytest

from funcnet.cli import main
from funcnet.nets import convnet
from funcnet.tasks import _run, digits
from tests.cli.runs import untrained

CONFIG = convnet.Config((8, 8, 1), channels=(4, 4), depth=2, hidden=6)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of digits with a small net that has learned nothing."""
    monkeypatch.chdir(tmp_path)
    return untrained(tmp_path / "run", "digits", CONFIG)


def called(capsys, *args):
    code = main([*map(str, args)])
    return code, *capsys.readouterr()


@pytest.mark.slow
def test_a_smaller_run(run, capsys):
    code, out, err = called(capsys, "compress", run, "--flops", 0.5, "--examples", 50)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"{run}: 50% of the FLOPs, by 50 training examples"
    assert lines[1].split("  ")[0] == "map"
    total = next(line for line in lines if line.startswith("total")).split()
    before, after = (int(cell.replace(",", "")) for cell in total[-2:])
    assert after <= before / 2
    assert any(line.startswith("test accuracy ") for line in lines)
    changed = next(line for line in lines if "got another class" in line)
    assert changed.split()[1:4] == ["of", "360", "images"]
    assert "with 95 % confidence, below" in changed
    assert lines[-3].startswith("certified: the outputs change by at most ")
    assert lines[-1] == f"the smaller model is in {run}-compressed"

    smaller = run.with_name("run-compressed")
    saved, ranks = _run.read(smaller), _run.ranks(smaller)
    assert ranks
    assert all(
        "down" in saved.params["stages"][int(p[7])][int(p[9])] for p in ranks if p.startswith("stages")
    )
    code, out, _ = called(capsys, "summary", smaller)
    assert code == 0
    assert f"{after:,}" in out.splitlines()[-2]
    np.save("image.npy", digits.data()[1].images[:2])
    code, out, _ = called(capsys, "predict", smaller, "image.npy")
    assert code == 0
    assert len(out.splitlines()) == 3
    code, _, err = called(capsys, "compress", smaller)
    assert (code, err) == (
        2,
        f"funcnet compress: {smaller} is compressed already: compress the run that it came from\n",
    )


@pytest.mark.slow
def test_further_steps_of_training(run, capsys):
    code, out, _ = called(capsys, "compress", run, "--examples", 50, "--steps", 30, "--out", "small")
    assert code == 0
    assert "after 30 steps of training:" in out
    plain = called(capsys, "compress", run, "--examples", 50, "--out", "plain")[1]
    assert out.startswith(plain.partition("\nthe smaller model")[0])
    trained, untrained = (_run.read(run.with_name(name)).params for name in ("small", "plain"))
    assert jax.tree.structure(trained) == jax.tree.structure(untrained)
    assert not np.allclose(trained["head"]["b"], untrained["head"]["b"])


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("--flops", "1.5"), "--flops is 1.5, but it is a share, above 0 and below 1"),
        (("--flops", "nan"), "--flops is nan, but it is a share, above 0 and below 1"),
        (("--examples", "0"), "--examples is 0, but 1 or more are needed"),
        (("--steps", "-1"), "--steps is -1, but 0 or more are needed"),
    ],
)
def test_refused(run, capsys, args, text):
    assert called(capsys, "compress", run, *args) == (2, "", f"funcnet compress: {text}\n")
    assert not run.with_name("run-compressed").exists()


def test_a_folder_in_use_is_refused_at_once(run, capsys, monkeypatch):
    monkeypatch.setattr("funcnet.analysis.lowrank.compress", lambda *_: pytest.fail("too late"))
    (run.parent / "full").mkdir()
    (run.parent / "full" / "file").touch()
    code, _, err = called(capsys, "compress", run, "--out", "full")
    assert (code, err) == (2, "funcnet compress: full is not an empty folder\n")


def test_what_is_interrupted_leaves_nothing(run, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("funcnet.analysis.lowrank.changed", interrupted)
    assert called(capsys, "compress", run, "--examples", 9)[0] == 130
    assert not run.with_name("run-compressed").exists()


def test_refused_before_anything_is_made(run, capsys):
    code, _, err = called(capsys, "compress", run, "--flops", 0.001, "--examples", 9)
    assert code == 2
    assert "with rank 1 everywhere the net still has" in err
    assert not run.with_name("run-compressed").exists()
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "data": {"sha256": "00"}}))
    code, _, err = called(capsys, "compress", run)
    assert code == 2
    assert "was trained on other data than there are now" in err
    (run / "config.json").write_text(json.dumps({**config, "ranks": {"head": "3"}}))
    code, _, err = called(capsys, "compress", run)
    assert (code, "the ranks are no whole numbers by name" in err) == (2, True)
    (run / "config.json").write_text(json.dumps({**config, "options": {"epochs": "many"}}))
    code, _, err = called(capsys, "compress", run)
    assert (code, "options are wrong in batch, epochs, learning_rate, seed, weight_decay" in err) == (2, True)
