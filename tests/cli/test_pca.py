"""`funcnet pca`: the table, the picture and the page, of a data set, a file and a run; and what cannot be."""

import jax
import numpy as np
import pytest
from matplotlib.image import imread
from sklearn.decomposition import PCA

from funcnet.cli import main
from funcnet.nets import convnet, transformer
from funcnet.tasks import _run, digits
from tests.browser import Reader
from tests.cli.runs import untrained

CONFIG = convnet.Config((8, 8, 1), channels=(2,), hidden=5)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tiny(vocabulary):
    return transformer.Config(vocabulary=vocabulary, context=32, layers=2, heads=2, d=4, windows=(8,))


def called(capsys, *args):
    code = main(["pca", *map(str, args)])
    return code, *capsys.readouterr()


def shares(out):
    return [line.split()[2] for line in out.splitlines()[2:] if "%" in line]


def test_a_file_of_images_with_labels(here, capsys):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 3, 4)) * np.arange(12).reshape(3, 4)
    np.save("x.npy", x.astype(np.float32))
    np.save("labels.npy", np.arange(30) % 3)
    args = ("x.npy", "--labels", "labels.npy", "--components", 3, "--out", "a.png", "--out", "a.html")
    code, out, err = called(capsys, *args)
    assert (code, err) == (0, "")
    assert out.startswith("x.npy: 30 rows of 12 numbers\ncomponent  variance  share  so far\n")
    ratios = PCA(3).fit(x.reshape(30, 12)).explained_variance_ratio_
    assert shares(out) == [f"{ratio:.1%}" for ratio in ratios]
    assert out.endswith("the picture is in a.png\nthe page is in a.html\n")
    assert imread("a.png").ndim == 3
    page = Reader((here / "a.html").read_text("utf-8"))
    assert "Principal components of x.npy" in page.text
    assert f"{ratios[0]:.1%}" in page.text
    sources = [attributes["src"][:22] for tag, attributes in page.tags if tag == "img"]
    assert sources == ["data:image/png;base64,"]


def test_the_activations_of_a_run(here, capsys):
    params = _run.read(untrained(here / "run", "digits", CONFIG)).params
    code, out, err = called(capsys, "run", "--components", 2)
    assert (code, err) == (0, "")
    assert out.startswith("the last hidden layer of run: 360 rows of 5 numbers\n")
    assert out.endswith("the picture is in pca.png\n")
    hidden = {**params, "head": {"w": jax.numpy.eye(5)}}
    images = jax.numpy.asarray(digits.data()[1].images)
    ratios = PCA(2).fit(convnet.apply(hidden, images, CONFIG)).explained_variance_ratio_
    assert shares(out) == [f"{ratio:.1%}" for ratio in ratios]


@pytest.mark.slow
def test_of_a_text_a_row_for_each_character(here, capsys):
    text = "what is small is not added to what is large, " * 20
    (here / "text.txt").write_text(text)
    untrained(here / "run", "chars", tiny(len(set(text))), text=here / "text.txt", context=8, steps=1)
    code, out, err = called(capsys, "run", "--components", 2)
    assert (code, err) == (0, "")
    assert out.startswith(
        f"the last hidden layer of run: {(len(text) // 10 - 1) // 8 * 8} rows of 4 numbers\n"
    )


@pytest.mark.slow
def test_digits(capsys):
    code, out, _ = called(capsys, "digits")
    assert code == 0
    assert out.startswith("digits: 1,797 rows of 64 numbers\n")
    assert shares(out)[0] == "14.9%"
    assert len(shares(out)) == 10


@pytest.mark.slow
def test_one_feature_rows_that_do_not_vary_and_many_labels(capsys):
    np.save("x.npy", np.ones((25, 1)))
    np.save("labels.npy", np.arange(25))
    code, out, err = called(capsys, "x.npy", "--components", 1, "--labels", "labels.npy")
    assert (code, err) == (0, "")
    assert shares(out) == ["0.0%"]


def test_what_cannot_be_done(here, capsys):
    np.save("x.npy", np.ones((5, 4)))
    np.save("line.npy", np.ones(5))
    np.save("words.npy", np.array(["a", "b"]))
    np.save("nan.npy", np.array([[1.0, np.nan], [0.0, 1.0]]))
    (here / "text.npy").write_text("no array")
    (here / "empty").mkdir()
    for args, message in [
        (["nowhere"], "'nowhere' is neither digits, nor a .npy file, nor a run folder"),
        (["nowhere.npy"], "No such file or directory: 'nowhere.npy'"),
        (["empty"], "empty is no run folder: it has no config.json"),
        (["text.npy"], "text.npy: this is no .npy file of numbers"),
        (["words.npy"], "words.npy: these are no numbers"),
        (["line.npy"], "line.npy is [5], but [n, d] or images [n, h, w] are needed"),
        (["nan.npy"], "nan.npy has numbers in it that are not finite"),
        (["x.npy", "--components", "5"], "--components is 5, but 5 rows of 4 numbers have 1 to 4"),
        (["x.npy", "--components", "0"], "--components is 0, but 5 rows of 4 numbers have 1 to 4"),
        (["x.npy", "--components", "2", "--labels", "words.npy"], "words.npy: these are no numbers"),
        (["nan.npy", "--labels", "x.npy"], "not finite"),
        (["x.npy", "--labels", "x.npy"], "x.npy is [5, 4], but x.npy has 5 rows"),
        (["digits", "--labels", "x.npy"], "--labels is for a .npy file"),
        (["digits", "--out", "a.jpg"], "a.jpg is no .png or .html file"),
    ]:
        code, _, err = called(capsys, *args)
        assert (code, err.count("\n")) == (2, 1), args
        assert message in err, args
