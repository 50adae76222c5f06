"""`funcnet train` from end to end: what it prints, what it leaves behind, however it ends."""

import dataclasses
import functools
import json
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.image import imread

import funcnet as fn
from funcnet import verifier
from funcnet.cli import main
from funcnet.cli.train import rates
from funcnet.nets import convnet, transformer
from funcnet.tasks import TASKS, chars, digits, fashion
from tests.tasks.test_recipes import fashion_files

FILES = {"config.json", "curves.png", "metrics.jsonl", "params.safetensors"}
SMALL = {
    digits: convnet.Config((8, 8, 1), channels=(2,), hidden=3, dropout=0.3),
    fashion: convnet.Config((28, 28, 1), channels=(2,), hidden=3),
}


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Small models, whose formulas are not verified but for one run: that takes its time."""
    monkeypatch.chdir(tmp_path)
    for module, config in SMALL.items():
        monkeypatch.setattr(module, "config", lambda options, config=config: config)

    whole = chars.config
    few = lambda options: dataclasses.replace(whole(options), layers=2, heads=2, d=4, d_hidden=6)
    monkeypatch.setattr(chars, "config", few)
    monkeypatch.setattr(verifier, "verify_model", lambda *_, **__: verifier.Report(()))


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]


def test_digits_with_every_formula_verified(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(digits, "config", lambda options: SMALL[digits])
    folder = tmp_path / "run"
    assert (
        main(["train", "digits", "--epochs", "2", "--batch", "300", "--seed", "3", "--out", str(folder)]) == 0
    )
    out = capsys.readouterr().out
    assert "\x1b" not in out, "no colours into a file"
    for text in ("jaxlib", "guard", "stages.0.0.w", "conv", "linear", "cross_entropy", "verified in"):
        assert text in out
    assert "WRONG" not in out
    last = records(folder)[-1]
    assert f"test accuracy {last['eval_accuracy']:.2%}, loss {last['eval_loss']:.4f} nats per image" in out
    assert {path.name for path in folder.iterdir()} == FILES | {"mistakes.png"}
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert config["seed"] == 3
    assert config["options"] == {
        "epochs": 2,
        "batch": 300,
        "learning_rate": 3e-3,
        "weight_decay": 0.05,
        "seed": 3,
    }
    assert config["versions"]["jax"] == jax.__version__
    assert len(config["data"]["sha256"]) == 64
    assert [record["step"] for record in records(folder)] == list(range(1, 9))
    assert imread(folder / "curves.png").shape == (480, 1200, 4)


def test_a_run_can_be_applied_and_shown(small, capsys, tmp_path):
    assert main(["train", "digits", "--epochs", "1", "--batch", "700", "--out", "run"]) == 0
    _, test = digits.data()
    np.save("images.npy", test.images[:5] * 16)
    capsys.readouterr()
    assert main(["predict", "run", "images.npy"]) == 0
    lines = capsys.readouterr().out.splitlines()
    params = fn.load("run/params.safetensors")
    expected = convnet.apply(params, jnp.asarray(test.images[:5]), SMALL[digits]).argmax(-1)
    assert [line.split()[:2] for line in lines[1:]] == [[str(i), str(c)] for i, c in enumerate(expected)]
    assert main(["summary", "run"]) == 0
    of_the_run = capsys.readouterr().out
    assert main(["summary", "digits"]) == 0
    assert capsys.readouterr().out == of_the_run
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert "\ntotal " in of_the_run
    assert f" {parameters:,} " in of_the_run
    assert main(["predict", "run", "missing.npy"]) == 2
    assert main(["predict", "run", str(tmp_path)]) == 2


@pytest.mark.slow
def test_fashion_in_the_default_folder(small, capsys, tmp_path):
    fashion_files(tmp_path)
    assert main(["train", "fashion", "--data", str(tmp_path), "--epochs", "2", "--batch", "8"]) == 0
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("fashion-")
    assert len(records(folder)) == 10
    np.save("images.npy", np.zeros((28, 28), np.uint8))
    capsys.readouterr()
    assert main(["predict", str(folder), "images.npy"]) == 0
    assert "pullover" in capsys.readouterr().out


def test_chars(small, capsys):
    Path("text").write_text("a short text, again and again; " * 20, "utf-8")
    args = ["--text", "text", "--steps", "3", "--batch", "2", "--context", "8", "--out", "run"]
    assert main(["train", "chars", *args]) == 0
    out = capsys.readouterr().out
    assert "nats per character" in out
    assert " tokens/s\n" in out
    assert len(records(Path("run"))) == 3
    for record in records(Path("run")):
        assert record["tokens_per_second"] == 2 * 8 * record["steps_per_second"]
        assert "share_of_peak" not in record, "the peak of a CPU is not known"
    assert main(["predict", "run", "text"]) == 0
    out = capsys.readouterr().out
    assert "It would go on like this:" in out
    Path("other").write_text("with a Z", "utf-8")
    assert main(["predict", "run", "other"]) == 2
    assert "characters that the model has not seen: 'Zw'" in capsys.readouterr().err


def test_the_share_of_the_peak_is_that_of_the_model_by_formula(small):
    Path("text").write_text("a short text, again and again; " * 20, "utf-8")
    task = chars.prepare(chars.Options(text=Path("text"), steps=1, batch=2, context=8))
    params = transformer.init(jax.random.key(0), task.config)
    c, tokens = task.config, 2 * 8
    matrices = c.layers * (4 * c.d**2 + 3 * c.d * c.d_hidden) + c.vocabulary * c.d  # the last: the head
    forward = 2 * tokens * (matrices + c.layers * 2 * 8 * c.d)  # and two products with 8 keys each
    amounts = rates(task, params, "NVIDIA L4")
    assert amounts == {"tokens_per_second": tokens, "share_of_peak": pytest.approx(3 * forward / 60e12)}
    assert rates(task, params, "cpu") == {"tokens_per_second": tokens}
    images = digits.prepare(digits.Options(epochs=1))
    assert rates(images, convnet.init(jax.random.key(0), images.config), "cpu") == {}


def test_a_wrong_formula_stops_the_command(small, capsys, monkeypatch):
    row = verifier.Row("conv", "params", "3×3", 1, 0.5, 1e-10, False)
    monkeypatch.setattr(verifier, "verify_model", lambda *_, **__: verifier.Report((row,)))
    assert main(["train", "digits", "--out", "run"]) == 1
    out = capsys.readouterr().out
    assert "WRONG" in out
    assert out.endswith("not trained: a gradient formula is wrong\n")
    assert list(Path("run").iterdir()) == [], "the folder can be used again"


def with_step(monkeypatch, change):
    """The digits task with `change(number, metrics)` applied to what its steps return."""
    prepare = digits.prepare

    def changed(options):
        task = prepare(options)

        def step(state, batch):
            state, metrics = task.step(state, batch)
            return state, change(int(state.step), metrics)

        return task._replace(step=functools.update_wrapper(step, task.step))

    monkeypatch.setattr(digits, "prepare", changed)


def test_a_loss_that_is_not_finite(small, capsys, monkeypatch):
    with_step(
        monkeypatch, lambda n, metrics: {**metrics, "loss": jnp.where(n == 3, jnp.nan, metrics["loss"])}
    )
    assert main(["train", "digits", "--batch", "300", "--out", "run"]) == 3
    out = capsys.readouterr().out
    assert "stopped: the loss of step 3 is nan" in out
    assert {path.name for path in Path("run").iterdir()} == FILES
    params = fn.load("run/params.safetensors")
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    assert len(records(Path("run"))) == 2


def test_ctrl_c_in_a_step(small, capsys, monkeypatch):
    def press(number, metrics):
        if number == 3:
            signal.raise_signal(signal.SIGINT)
        return metrics

    with_step(monkeypatch, press)
    assert main(["train", "digits", "--batch", "300", "--out", "run"]) == 130
    assert "run holds the parameters after step 3, and the curves so far" in capsys.readouterr().out
    assert {path.name for path in Path("run").iterdir()} == FILES
    assert len(records(Path("run"))) == 3


def test_ctrl_c_before_training(small, capsys, monkeypatch):
    def press(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(verifier, "verify_model", press)
    assert main(["train", "digits", "--out", "run"]) == 130
    assert capsys.readouterr().err == "funcnet train: interrupted\n"


CHILD = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started this in the background
from funcnet import verifier
from funcnet.cli import main
from funcnet.nets import convnet
from funcnet.tasks import digits
digits.config = lambda options: convnet.Config((8, 8, 1), channels=(2,), hidden=3)
verifier.verify_model = lambda *_, **__: verifier.Report(())
sys.exit(main(["train", "digits", "--epochs", "100000", "--batch", "16", "--out", sys.argv[1]]))
"""


def test_ctrl_c_in_a_process_of_its_own(tmp_path):
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step "):
            process.send_signal(signal.SIGINT)
            break
    out, err = process.communicate()
    assert process.returncode == 130, err
    assert err == ""
    assert "interrupted: the state after step" in out
    assert {path.name for path in folder.iterdir()} == FILES
    like = {**convnet.init(jax.random.key(0), SMALL[digits])}
    with jax.enable_x64(False):
        params = fn.load(folder / "params.safetensors")
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, like)
    assert records(folder)[-1]["step"] == len(records(folder)) >= 1


def test_every_task_is_documented():
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text("utf-8")
    for name in TASKS:
        assert f"funcnet train {name}" in page
        for option in getattr(fn.tasks, name).Options.__dataclass_fields__:
            assert f"`--{option.replace('_', '-')}`" in page
