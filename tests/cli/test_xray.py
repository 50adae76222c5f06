"""`funcnet xray`: the table, the picture and the page of a run; and what cannot be."""

import json

import jax
import jax.flatten_util
import numpy as np
import pytest
from matplotlib.image import imread

import funcnet as fn
from funcnet.analysis._results import Activation, Row, Whole, XRay
from funcnet.cli import main
from funcnet.cli import xray as command
from funcnet.nets import convnet, transformer
from funcnet.tasks import _run, digits
from tests.browser import Reader, needs_browser, shown
from tests.cli.runs import untrained

CONFIG = convnet.Config((8, 8, 1), channels=(2,), hidden=5)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def called(capsys, *args):
    code = main(["xray", *map(str, args)])
    return code, *capsys.readouterr()


def norms(params, images, labels):
    """Of the gradients of single images."""

    def norm(image, label):
        loss = lambda params: fn.cross_entropy.apply(
            convnet.apply(params, image[None], CONFIG), label[None]
        ).sum()
        return jax.numpy.linalg.norm(jax.flatten_util.ravel_pytree(jax.grad(loss)(params))[0])

    return np.asarray(jax.jit(jax.vmap(norm))(images, labels))


def test_a_run_and_its_page(here, capsys):
    untrained(here / "run", "digits", CONFIG)
    code, out, err = called(capsys, "run", "--examples", 20, "--html", "a.html")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "run: digits, at 20 examples of its training data"
    assert [line.split()[0] for line in lines[2:5]] == ["stages.0.0", "hidden", "head"]
    first = lines.index("the examples with the largest gradients") + 2
    numbers = [int(line.split()[0].replace(",", "")) for line in lines[first : first + 10]]
    images, labels = digits.data()[0]
    batch = [round(i) for i in np.linspace(0, 1436, 20).astype(int)]
    assert set(numbers) <= set(batch)
    assert [int(line.split()[3]) for line in lines[first : first + 10]] == labels[numbers].tolist()
    assert numbers[0] == batch[norms(_run.read(here / "run").params, images[batch], labels[batch]).argmax()]
    assert "- `stages.0.0`, `hidden`, `head`: moved by less than 0.1 % since the start" in out
    assert out.endswith("\nthe page is in a.html\n")
    page = Reader((here / "a.html").read_text("utf-8"))
    for text in ("X-ray of run", "moved by less than", "Lipschitz bound", "weights", "gradients"):
        assert text in page.text
    assert [v["src"][:22] for tag, v in page.tags if tag == "img"] == ["data:image/png;base64,"] * 2
    assert sum(tag == "table" for tag, _ in page.tags) == 4


@pytest.mark.slow
@needs_browser
def test_the_page_in_a_browser(here, capsys, tmp_path):
    untrained(here / "run", "digits", CONFIG)
    called(capsys, "run", "--examples", 20, "--html", "a.html")
    script = "if ([...document.images].every(i => i.naturalWidth > 500)) document.title = 'it is drawn'"
    assert "it is drawn" in shown(tmp_path, (here / "a.html").read_text("utf-8"), script).text


@pytest.mark.slow
def test_curvature(here, capsys):
    untrained(here / "run", "digits", CONFIG)
    code, out, _ = called(capsys, "run", "--examples", 20, "--curvature", "--out", "a.png")
    assert code == 0
    assert "Hessian" in out
    assert "Gauss-Newton matrix" in out
    assert out.endswith("the picture is in a.png\n")
    assert imread("a.png").ndim == 3


@pytest.mark.slow
def test_a_run_of_chars(here, capsys):
    text = "".join(np.random.default_rng(0).choice(list("abcdef "), 2000))
    (here / "text.txt").write_text(text)
    config = transformer.Config(7, layers=2, heads=2, d=8, d_hidden=9, positions="rope", windows=(8,))
    untrained(here / "run", "chars", config, text=here / "text.txt", context=8, steps=1)
    code, out, _ = called(capsys, "run", "--examples", 5, "--html", "a.html")
    assert code == 0
    assert "blocks.1.attention.q" in out
    assert "not measured: sensitivity: inputs are tokens, which have no derivative" in out


def test_the_start_of_a_run_is_what_it_began_with(here):
    untrained(here / "run", "digits", CONFIG, seed=5)
    for a, b in zip(
        *map(jax.tree.leaves, (_run.start(here / "run"), _run.read(here / "run").params)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    content = json.loads((here / "run" / "config.json").read_text())
    del content["seed"]
    (here / "run" / "config.json").write_text(json.dumps(content))
    assert _run.start(here / "run") is None


@pytest.mark.slow
def test_a_compressed_run(here, capsys):
    untrained(here / "run", "digits", convnet.Config((8, 8, 1), channels=(4, 4), hidden=12))
    assert main(["compress", "run", "--flops", "0.6", "--examples", "20", "--out", "small"]) == 0
    capsys.readouterr()
    code, out, _ = called(capsys, "small", "--examples", 20)
    assert code == 0
    assert "stages.1.0.down" in out
    assert "not measured: how far weights moved" in out


def test_what_cannot_be_done(here, capsys):
    (here / "empty").mkdir()
    untrained(here / "run", "digits", CONFIG)
    for args, message in [
        (["nowhere"], "nowhere is no run folder: there is no such folder"),
        (["empty"], "empty is no run folder: it has no config.json"),
        (["run", "--html", "a.htm"], "a.htm is no .html file"),
        (["run", "--out", "a.jpg"], "a.jpg is no .png file"),
        (["run", "--out", "nowhere/a.png"], "nowhere/a.png: there is no folder nowhere"),
        (["run", "--examples", "0"], "--examples is 0, but one is the least"),
        (["run", "--examples", "x"], "--examples"),
        ([], "missing from funcnet xray: RUN"),
    ]:
        code, _, err = called(capsys, *args)
        assert (code, err.count("\n")) == (2, 1), args
        assert message in err, args


def test_a_picture_of_what_was_measured(here):
    nothing = Activation(0, 0, float("nan"), 0, 0, float("nan"), float("nan"), (0.5, 0.7))
    found = XRay(
        (Row("a", activation=nothing), Row("b", activation=nothing._replace(entropy=(0.1,)))), Whole(1)
    )
    command._picture(here / "heads.png", found)
    half = imread("heads.png")[:, :605]
    assert (half < 1).any()
    assert (imread("heads.png")[:, 800:, :3] == 1).all(), "one panel, and nothing beside it"
