"""`funcnet train` from end to end: what it prints, what it leaves behind, however it ends."""

import dataclasses
import errno
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matplotlib.image import imread

import funcnet as fn
from funcnet import _safetensors, store, verifier
from funcnet.cli import main
from funcnet.cli import train as command
from funcnet.cli.train import rates
from funcnet.errors import ShapeError
from funcnet.nets import convnet, crnn, transformer
from funcnet.tasks import TASKS, _plots, chars, digits, fashion, tones
from funcnet.tasks._task import Task
from funcnet.tasks._training import Training
from tests.tasks.sounding import syllables
from tests.tasks.test_recipes import fashion_files

FILES = {
    "checkpoints", "config.json", "curves.png", "metrics.jsonl", "params.safetensors", "report.html"
}  # fmt: skip
SMALL = {
    digits: convnet.Config((8, 8, 1), channels=(2,), hidden=3, dropout=0.3),
    fashion: convnet.Config((28, 28, 1), channels=(2,), hidden=3),
    tones: crnn.Config(40, 4, channels=(2,), pools=((2, 4),), hidden=3, padding=0.0),
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
    monkeypatch.setattr(chars, "SAMPLE", 4)
    monkeypatch.setattr(verifier, "verify_model", lambda *_, **__: verifier.Report(()))


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.slow
def test_digits_with_every_formula_verified(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(digits, "config", lambda options: SMALL[digits])
    folder = tmp_path / "run"
    args = ["train", "digits", "--epochs", "2", "--batch", "300", "--seed", "3", "--average", "0.9"]
    assert main([*args, "--out", str(folder)]) == 0
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
    assert config["training"] == {**dataclasses.asdict(Training()), "average": 0.9}
    assert config["versions"]["jax"] == jax.__version__
    assert len(config["data"]["sha256"]) == 64
    assert [record["step"] for record in records(folder)] == list(range(1, 9))
    assert imread(folder / "curves.png").shape == (480, 1200, 4)


@pytest.mark.slow
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
def test_recordings_in_a_run_folder(small, capsys, tmp_path):
    data = str(syllables(tmp_path / "syllables"))
    assert main(["train", "tones", "--data", data, "--epochs", "1", "--batch", "32", "--out", "run"]) == 0
    out = capsys.readouterr().out
    assert "note: two speakers" in out
    assert "CC-BY-3" in out
    assert "held-out syllables accuracy" in out
    assert {path.name for path in Path("run").iterdir()} == FILES | {"confusion.png", "mistakes.json"}
    page = Path("run/report.html").read_text("utf-8")
    assert page.count("<audio ") == len(json.loads(Path("run/mistakes.json").read_text())["mistakes"]) > 0
    path = Path(data, "ㄅㄚ2", "3.ogg")
    assert main(["predict", "run", str(path)]) == 0
    assert capsys.readouterr().out.startswith("class  probability")
    assert main(["train", "tones", "--data", str(tmp_path)]) == 2
    assert "install Debian's package gcin-voice" in capsys.readouterr().err
    assert main(["train", "speech"]) == 2
    assert "name their folder: --data DIR" in capsys.readouterr().err


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


@pytest.mark.slow
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


class Numbers:
    """0, 1, ... with a place to go on from."""

    def __init__(self, n):
        self.n, self.i = n, 0

    def __iter__(self):
        return self

    def __next__(self):
        if self.i == self.n:
            raise StopIteration
        self.i += 1
        return self.i - 1

    def get_state(self):
        return {"i": self.i}

    def set_state(self, state):
        self.i = state["i"]


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """A task of eight steps that compute nothing; its parts can be replaced: `quick(evaluate=...)`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "check", lambda *_: verifier.Report(()))
    monkeypatch.setattr(command, "rates", lambda *_: {})
    monkeypatch.setattr(_plots, "curves", lambda path, *_, **__: path.touch())

    def step(state, batch):
        return state._replace(step=state.step + 1), {"loss": 1.0, "accuracy": 0.5}

    task = Task(
        config=SMALL[digits],
        optimizer=optax.sgd(0.1),
        step=step,
        batches=lambda: fn.train.stateful(Numbers(8)),
        steps=8,
        evaluate=lambda state: {"loss": 1.0, "accuracy": 0.5},
        every=4,
        held_out="test",
        unit="image",
        data={},
        examples=lambda n: pytest.fail("nobody asks for them"),
        finish=lambda params, folder: (folder / "mistakes.png").touch(),
    )

    def run(*args, **parts):
        monkeypatch.setattr(digits, "prepare", lambda options, training: task._replace(**parts))
        return main(["train", "digits", "--out", "run", *args])

    run.task = task
    return run


def held(step):
    """What is said of the parameters that were saved."""
    assert {path.name for path in Path("run").iterdir()} >= FILES - {"checkpoints"}
    assert fn.load("run/params.safetensors").keys() == {"stages", "hidden", "head"}
    return f"run holds the parameters after step {step}, and the curves so far\n"


def signalling(function, number):
    """`function`, at whose end a signal comes."""

    def call(*args, **kwargs):
        result = function(*args, **kwargs)
        signal.raise_signal(number)
        return result

    return call


def test_a_run_without_trouble(quick, capsys):
    assert quick() == 0
    assert capsys.readouterr().out.endswith("everything is in run\n")
    assert {path.name for path in Path("run").iterdir()} == FILES | {"mistakes.png"}


def test_how_formulas_are_verified_is_an_option(quick, monkeypatch):
    asked = []
    monkeypatch.setattr(command, "check", lambda *args: asked.append(args[-1]) or verifier.Report(()))
    for given in ([], ["always"], ["remembered"], ["off"]):
        shutil.rmtree("run", ignore_errors=True)
        assert quick(*(["--verify", *given] if given else [])) == 0
    assert asked == [None, "always", "remembered", "off"]


def test_steps_that_are_not_finite(quick, capsys):
    """As a guarded step goes: the second fault in a row is the last thing that happens."""

    def step(state, batch):
        if state.faults == 2:
            return state, {"loss": np.nan, "accuracy": 0.5, "skipped": 2}
        state, metrics = quick.task.step(state, batch)
        if state.step < 3:
            return state, {**metrics, "skipped": 0}
        state = state._replace(faults=state.faults + 1)
        return state, {**metrics, "loss": np.nan, "skipped": state.faults}

    step.max_skipped = 2
    assert quick(step=step) == 3
    out = capsys.readouterr().out
    assert out.endswith("stopped: 2 steps in a row were not finite, step 4 the last of them\n" + held(4))
    assert "ended: 2 steps in a row were not finite" in Path("run/report.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("part", "number", "step"),
    [
        ("step", signal.SIGINT, 1),
        ("evaluate", signal.SIGINT, 4),
        ("evaluate", signal.SIGHUP, 4),
        ("finish", signal.SIGTERM, 8),
    ],
)
def test_a_signal_while_training(quick, capsys, part, number, step):
    assert quick(**{part: signalling(getattr(quick.task, part), number)}) == 128 + number
    out = capsys.readouterr().out
    assert out.endswith(held(step))
    assert len(records(Path("run"))) == step
    assert "test accuracy" not in out


@pytest.mark.parametrize("name", ["params.safetensors", "curves.png"])
def test_a_signal_after_training(quick, capsys, monkeypatch, name):
    def watched(function):
        with_signal = signalling(function, signal.SIGINT)
        return lambda path, *args, **kwargs: (with_signal if path.name == name else function)(
            path, *args, **kwargs
        )

    monkeypatch.setattr(store, "save", watched(store.save))
    monkeypatch.setattr(_plots, "curves", watched(_plots.curves))
    assert quick() == 130
    assert capsys.readouterr().out.endswith(held(8))


@pytest.mark.parametrize("function", ["check", "rates", "batches"])
def test_a_signal_before_training(quick, capsys, monkeypatch, function):
    if function == "batches":
        assert quick(batches=signalling(quick.task.batches, signal.SIGTERM)) == 143
    else:
        monkeypatch.setattr(command, function, signalling(getattr(command, function), signal.SIGTERM))
        assert quick() == 143
    assert capsys.readouterr().err == "funcnet train: interrupted\n"
    assert list(Path("run").iterdir()) == [], "the folder can be used again"


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 1, "[Errno 28] No space left on device"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 1, None),
        (SystemExit(7), 7, None),
        (ShapeError("train.evaluate: no."), 2, "train.evaluate: no."),
        (ZeroDivisionError("a fault"), 70, None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_waits_until_the_parameters_are_saved(quick, capsys, error, code, text):
    def evaluate(state):
        raise error

    assert quick(evaluate=evaluate) == code
    said = capsys.readouterr().err
    lines = [held(4)] + ([f"{text}\n"] if text else [])
    if code == 70:
        assert said.startswith(f"funcnet train: {lines.pop(0)}")
        assert "ZeroDivisionError: a fault" in said
    else:
        assert said == "".join(f"funcnet train: {line}" for line in lines)


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_reader_that_goes_away(quick, capsys, monkeypatch, interrupted):
    class Pipe(io.StringIO):
        def write(self, text):
            if "step 1 " in self.getvalue():
                raise BrokenPipeError(errno.EPIPE, "Broken pipe")
            return super().write(text)

    monkeypatch.setattr(sys, "stdout", Pipe())
    if interrupted:  # Ctrl-C reaches `| tee` as well
        assert quick(step=signalling(quick.task.step, signal.SIGINT)) == 130
        assert capsys.readouterr().err == held(1)
    else:
        assert quick() == 1
        assert capsys.readouterr().err == f"funcnet train: {held(4)}"


def steps_of(folder):
    return sorted(int(path.name[5:]) for path in (folder / "checkpoints").glob("step-*"))


def test_a_run_goes_on_where_it_was_interrupted(quick, capsys):
    def step(state, batch):
        params = jax.tree.map(lambda leaf: jnp.full_like(leaf, 100 * int(state.step) + batch), state.params)
        state, metrics = quick.task.step(state, batch)
        return state._replace(params=params), metrics

    assert quick("--checkpoint-every", "3", step=at_step(step, 5, signal.SIGTERM)) == 143
    before = Path("run/config.json").read_bytes()
    assert steps_of(Path("run")) == [3, 4, 5], "every 3, the best, and the last"
    assert quick("--resume", "--checkpoint-every", "4", step=step) == 0, "which changes no number"
    assert (fn.load("run/params.safetensors")["head"]["b"] == 707).all(), "batch 7 came at step 7"
    out = capsys.readouterr().out
    assert "\ngoing on after step 5, from run/checkpoints\n" in out
    assert [record["step"] for record in records(Path("run"))] == list(range(1, 9))
    assert Path("run/config.json").read_bytes() == before
    assert {path.name for path in Path("run").iterdir()} == FILES | {"mistakes.png"}
    assert quick("--resume", step=None) == 0, "nothing is computed"
    said = "this run is done; run holds its parameters, after step 8\ntest accuracy 50.00%, loss 1.0000 nats"
    assert said in capsys.readouterr().out


def at_step(step, number, signal_number):
    def call(state, batch):
        state, metrics = step(state, batch)
        if state.step == number:
            signal.raise_signal(signal_number)
        return state, metrics

    call.max_skipped = getattr(step, "max_skipped", None)
    call.loss = getattr(step, "loss", None)
    return call


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(quick, capsys):
    assert quick(evaluate=lambda state: 1 / 0) == 70
    shutil.rmtree("run/checkpoints")
    assert quick("--resume") == 0
    assert "run holds no checkpoint yet: the run begins anew" in capsys.readouterr().out
    assert [record["step"] for record in records(Path("run"))] == list(range(1, 9))


def test_a_run_that_was_killed_before_its_parameters_were_saved(quick, capsys):
    assert quick() == 0
    Path("run/params.safetensors").unlink()
    assert quick("--resume", step=None) == 0
    assert held(8) is not None
    assert "test accuracy 50.00%" in capsys.readouterr().out


def test_to_resume_in_an_empty_folder_is_to_begin(quick, capsys):
    assert quick("--resume") == 0
    assert "\nrun is empty: the run begins\n" in capsys.readouterr().out
    assert Path("run/params.safetensors").exists()


def test_what_cannot_be_resumed(quick, capsys):
    Path("other").mkdir()
    Path("other/notes.txt").touch()
    assert main(["train", "digits", "--out", "other", "--resume"]) == 2
    assert "other is no run folder: it has no config.json" in capsys.readouterr().err
    assert quick() == 0
    capsys.readouterr()
    assert quick() == 2, "not without --resume"
    assert "the folder run is not empty" in capsys.readouterr().err
    assert quick("--resume", "--epochs", "3", "--clip", "0.5", "--optimizer", "lion") == 2
    assert capsys.readouterr().err == (
        "funcnet train: run holds a run with other options: options.epochs was 40, now 3; "
        "training.optimizer was 'adamw', now 'lion'; training.clip was None, now 0.5; "
        "hint give the options that the run was begun with, or another folder\n"
    )
    assert quick("--resume", data={"sha256": "other"}) == 2
    assert "data.sha256 was None, now 'other'" in capsys.readouterr().err
    assert len(records(Path("run"))) == 8, "nothing is changed"


def test_another_version_is_told(quick, capsys):
    assert quick(step=at_step(quick.task.step, 2, signal.SIGINT)) == 130
    path = Path("run/config.json")
    path.write_text(path.read_text("utf-8").replace(f'"jax": "{jax.__version__}"', '"jax": "0.1"'), "utf-8")
    assert quick("--resume") == 0
    assert (
        f"note: the run began with jax '0.1', and goes on with '{jax.__version__}'" in capsys.readouterr().out
    )


def test_the_average_is_what_is_saved(quick):
    def step(state, batch):
        grown = jax.tree.map(lambda leaf: leaf + 1, state.params)
        state, metrics = quick.task.step(state, batch)
        return state._replace(params=grown, average=jax.tree.map(lambda a: a + 0.25, state.average)), metrics

    assert quick("--average", "0.5", step=step) == 0
    bias = fn.load("run/params.safetensors")["head"]["b"]
    np.testing.assert_array_equal(bias, np.full(10, 8 * 0.25))


def test_float16_brings_a_loss_scale(quick):
    scales = []

    def step(state, batch):
        scales.append(state.loss_scale and float(state.loss_scale.scale))
        return quick.task.step(state, batch)

    assert quick("--dtype", "float16", step=step) == 0
    assert set(scales) == {2.0**15}


def test_files_for_tensorboard(quick, capsys, monkeypatch):
    pytest.importorskip("tensorboardX")
    assert quick("--tensorboard") == 0
    (file,) = Path("run/tensorboard").iterdir()
    content = file.read_bytes()
    for name in (b"loss", b"eval/loss", b"eval/accuracy", b"steps_per_second"):
        assert name in content
    assert content.count(b"eval/loss") == 2
    assert quick("--resume") == 0, "which changes no number"
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    shutil.rmtree("run")
    capsys.readouterr()
    assert quick("--tensorboard") == 2
    assert capsys.readouterr().err == (
        "funcnet train: tensorboardX is not installed; hint pip install 'funcnet[train]'\n"
    )
    assert not Path("run").exists()


def test_the_page_is_there_while_the_run_goes_on(quick):
    pages = []

    def evaluate(state):
        pages.append(Path("run/report.html").read_text("utf-8"))
        return quick.task.evaluate(state)

    assert quick(evaluate=evaluate) == 0
    pages.append(Path("run/report.html").read_text("utf-8"))
    assert ['"reload":10' in page for page in pages] == [True, True, False]
    assert [re.search(r"<h1>(Step \d)", page)[1] for page in pages] == ["Step 0", "Step 4", "Step 8"]


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_is_full_already(quick, capsys, monkeypatch):
    monkeypatch.setattr("funcnet._safetensors.replace_file", full)
    assert quick() == 1
    assert capsys.readouterr().err == "funcnet train: [Errno 28] No space left on device\n"
    assert list(Path("run").iterdir()) == []


def test_parameters_that_cannot_be_saved(quick, capsys, monkeypatch):
    def evaluate(state):
        monkeypatch.setattr("funcnet._safetensors.replace_file", full)
        return quick.task.evaluate(state)

    assert quick(evaluate=evaluate) == 1
    assert capsys.readouterr().err == (
        "funcnet train: the parameters after step 8 could not be saved: [Errno 28] No space left on device\n"
    )
    assert {path.name for path in Path("run").iterdir()} == {
        "checkpoints", "config.json", "metrics.jsonl", "report.html"
    }  # fmt: skip


def test_the_log_does_not_take_the_place_of_the_parameters(quick, monkeypatch):
    sizes, replace = [], _safetensors.replace_file

    def evaluate(state):
        sizes.append((Path("run") / command._RESERVE).stat().st_size)
        return quick.task.evaluate(state)

    def replace_file(target, chunks):
        assert not (Path("run") / command._RESERVE).exists(), "the place is free when it is needed"
        return replace(target, chunks)

    monkeypatch.setattr(_safetensors, "replace_file", replace_file)
    assert quick(evaluate=evaluate) == 0
    assert sizes == [Path("run/params.safetensors").stat().st_size] * 2


def test_curves_that_cannot_be_drawn(quick, capsys, monkeypatch):
    monkeypatch.setattr(_plots, "curves", full)
    assert quick() == 1
    assert capsys.readouterr().err == (
        "funcnet train: run holds the parameters after step 8\n"
        "funcnet train: [Errno 28] No space left on device\n"
    )
    assert fn.load("run/params.safetensors")


@pytest.mark.filterwarnings("ignore:train.fit. training goes on, but")
def test_a_folder_that_is_tidied_away(quick):
    assert (
        quick(evaluate=lambda state: shutil.rmtree("run", ignore_errors=True) or quick.task.evaluate(state))
        == 0
    )
    assert {path.name for path in Path("run").iterdir()} == {
        "checkpoints",
        "params.safetensors",
        "curves.png",
        "mistakes.png",
        "report.html",
    }


CHILD = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started this in the background
from funcnet import verifier
from funcnet.cli import main
from funcnet.nets import convnet
from funcnet.tasks import digits
digits.config = lambda options: convnet.Config((8, 8, 1), channels=(2,), hidden=3)
verifier.verify_model = lambda *_, **__: verifier.Report(())
sys.exit(main(["train", "digits", "--epochs", "10000", "--batch", "16", "--out", sys.argv[1]]))
"""


@contextmanager
def child(folder, **options):
    """The process, once it has taken a step."""
    code = [sys.executable, "-c", CHILD, str(folder)]
    pipe = subprocess.PIPE
    with subprocess.Popen(code, stdout=pipe, stderr=pipe, text=True, **options) as process:
        assert process.stdout is not None
        assert any(line.startswith("step ") for line in process.stdout)
        yield process


@pytest.mark.slow
@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGTERM, signal.SIGHUP))],
)
def test_a_signal_to_a_process_of_its_own(tmp_path, number):
    folder = tmp_path / "run"
    with child(folder) as process:
        process.send_signal(number)
        out, err = process.communicate()
    assert process.returncode == 128 + number, err
    assert err == ""
    assert "interrupted: the state after step" in out
    assert {path.name for path in folder.iterdir()} == FILES
    like = {**convnet.init(jax.random.key(0), SMALL[digits])}
    with jax.enable_x64(False):
        params = fn.load(folder / "params.safetensors")
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, like)
    assert records(folder)[-1]["step"] == len(records(folder)) >= 1


@pytest.mark.slow
def test_a_closed_pipe(tmp_path):
    folder = tmp_path / "run"
    with child(folder) as process:
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 1
    line = r"funcnet train: .*run holds the parameters after step \d+, and the curves so far\n"
    assert re.fullmatch(line, err)
    assert {path.name for path in folder.iterdir()} == FILES


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="prlimit is Linux's")
def test_a_disk_that_fills_up(tmp_path):
    resource = pytest.importorskip("resource")
    folder, most = tmp_path / "run", 20_000  # bytes of a file; a picture has more
    with child(folder) as process:
        resource.prlimit(
            process.pid, resource.RLIMIT_FSIZE, (most, most)
        )  # JAX warns of a fork that runs Python
        while (folder / "metrics.jsonl").stat().st_size < most - 300:
            assert process.poll() is None
            time.sleep(0.1)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert process.returncode == 130, err
    assert err.count("cannot be written, and training goes on without") == 1
    (held,) = re.findall(r"the parameters after step (\d+)", out)
    assert records(folder)[-1]["step"] < int(held)
    assert {path.name for path in folder.iterdir()} - {"report.html"} == FILES - {"curves.png", "report.html"}


def test_every_task_is_documented():
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text("utf-8")
    for name in TASKS:
        assert f"funcnet train {name}" in page
        for option in [*getattr(fn.tasks, name).Options.__dataclass_fields__, *Training.__dataclass_fields__]:
            assert f"`--{option.replace('_', '-')}`" in page


CHARS = """
import dataclasses, sys
from funcnet import verifier
from funcnet.cli import main
from funcnet.tasks import chars
whole = chars.config
chars.config = lambda options: dataclasses.replace(whole(options), layers=2, heads=2, d=8, d_hidden=12)
chars.SAMPLE = 4
verifier.verify_model = lambda *_, **__: verifier.Report(())
task = "train chars --text text --steps 600 --batch 2 --context 8 --average 0.9 --checkpoint-every 25"
sys.exit(main([*task.split(), *sys.argv[1:]]))
"""


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_once")
def test_a_run_that_is_killed_three_times_ends_as_one_that_was_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("a short text, again and again; " * 40, "utf-8")
    command = [sys.executable, "-c", CHARS, "--out"]
    assert subprocess.run([*command, "whole"], capture_output=True).returncode == 0
    for beyond in (1, 200, 400):
        with subprocess.Popen([*command, "killed", "--resume"], stdout=subprocess.DEVNULL) as process:
            while max(steps_of(Path("killed")), default=0) < beyond:
                assert process.poll() is None
                time.sleep(0.01)
            process.kill()
    done = subprocess.run([*command, "killed", "--resume"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "going on after step" in done.stdout
    same = [Path(folder, "params.safetensors").read_bytes() for folder in ("whole", "killed")]
    assert same[0] == same[1]
    times = ("seconds", "steps_per_second", "tokens_per_second", "waiting")
    lines = [
        [
            {name: value for name, value in record.items() if name not in times}
            for record in records(Path(folder))
        ]
        for folder in ("whole", "killed")
    ]
    assert lines[0] == lines[1]


@pytest.mark.slow
def test_a_run_that_is_interrupted_ends_as_one_that_was_not(small):
    Path("text").write_text("a short text, again and again; " * 20, "utf-8")
    args = ["train", "chars", "--text", "text", "--steps", "6", "--batch", "2", "--context", "8"]
    args += ["--average", "0.9"]
    assert main([*args, "--out", "whole"]) == 0
    prepare = chars.prepare

    def interrupted(options, training):
        task = prepare(options, training)
        return task._replace(step=at_step(task.step, 4, signal.SIGINT), finish=None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chars, "prepare", interrupted)
        assert main([*args, "--out", "run"]) == 130
    assert main([*args, "--out", "run", "--resume"]) == 0
    assert Path("run/params.safetensors").read_bytes() == Path("whole/params.safetensors").read_bytes()
    for ours, theirs in zip(records(Path("run")), records(Path("whole")), strict=True):
        assert {name: ours[name] for name in ("step", "loss")} == {
            name: theirs[name] for name in ("step", "loss")
        }
        assert ours["learning_rate"] == theirs["learning_rate"]
    assert Path("run/sample.txt").read_bytes() == Path("whole/sample.txt").read_bytes()


@pytest.mark.parametrize(
    ("losses", "told"),
    [
        (np.full(40, 2.3), True),
        (np.linspace(2.3, 2.29, 40), True),
        (np.linspace(2.3, 0.1, 40), False),
        (np.full(19, 2.3), False),  # too short to tell
    ],
)
def test_a_run_that_learned_nothing_says_so(losses, told):
    from funcnet.cli.train import _learned_nothing
    from funcnet.train import History

    history = History([{"step": i + 1, "loss": float(loss)} for i, loss in enumerate(losses)])
    assert _learned_nothing(history).startswith("it learned nothing: the loss was 2.3") == told


@pytest.mark.parametrize(
    ("accuracy", "labels", "steps", "told"),
    [
        (0.30, [0, 0, 1, 2, 3, 4, 5, 6, 7, 8], 20, True),
        (0.31, [0, 0, 1, 2, 3, 4, 5, 6, 7, 8], 20, False),
        (0.30, [[0, 0, 1, 2, 3], [4, 5, 6, 7, -1]], 20, True),
        (0.50, [0, 0, 0, 0, 1, 1], 20, False),  # of two classes it says nothing
        (0.10, [0, 0, 1, 2, 3, 4, 5, 6, 7, 8], 19, False),  # too short to tell
        (0.10, [0.0, 0.5], 20, False),
        (None, [0, 1, 2, 3, 4], 20, False),  # a recipe without one
    ],
)
def test_a_run_that_knows_one_class_says_so(accuracy, labels, steps, told):
    from funcnet.cli.train import _knows_one_class
    from funcnet.train import History

    records = [{"step": i + 1, "loss": 1.0 / (i + 1)} for i in range(steps)]
    last = {} if accuracy is None else {"eval_accuracy": accuracy}
    history = History([*records[:-1], records[-1] | last])
    held = SimpleNamespace(labels=np.asarray(labels))
    said = _knows_one_class(history, SimpleNamespace(examples=lambda n: (None, held)))
    assert said.startswith("it learned next to nothing: always the commonest class would have 20.00%") == told
