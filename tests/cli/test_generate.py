"""`funcnet generate`: a text and how a model goes on with it; what cannot be gone on from is one line."""

import dataclasses

import jax
import pytest

import funcnet as fn
from funcnet import hub
from funcnet.cli import main
from funcnet.nets import convnet, transformer
from funcnet.tasks import _run, chars
from funcnet.tasks._task import Saved

IMAGES = convnet.Config((8, 8, 1), channels=(2,), hidden=3)
CONFIG = transformer.Config(
    vocabulary=4,
    context=1000,
    layers=1,
    heads=2,
    d=4,
    d_hidden=6,
    norm="rms",
    mlp="swiglu",
    positions="rope",
    bias=False,
    windows=(5,),
)
DATA = {"characters": "\nab "}


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda leaf: 5 * leaf, transformer.init(jax.random.key(0), CONFIG))


@pytest.fixture
def folder(tmp_path, params):
    """A run folder of a model of characters."""
    _run.write_config(tmp_path, "chars", CONFIG, data=DATA)
    fn.save(tmp_path / "params.safetensors", params)
    return tmp_path


def generate(folder, *options):
    return main(["generate", str(folder), *options])


def test_it_prints_the_prompt_and_what_follows(folder, params, capsys):
    assert generate(folder, "--prompt", "ab a", "--tokens", "7", "--seed", "3") == 0
    out, err = capsys.readouterr()
    assert err == ""
    saved = Saved("chars", CONFIG, params, DATA)
    assert out == "ab a" + chars.generate(saved, "ab a", tokens=7, temperature=0.8, seed=3) + "\n"
    assert len(out) == 4 + 7 + 1


def test_every_option_does_something(folder, capsys):
    def said(*options):
        assert generate(folder, "--prompt", "ab a", "--tokens", "30", *options) == 0
        return capsys.readouterr().out

    plain = said()
    greedy = said("--temperature", "0")
    assert plain not in (greedy, said("--seed", "1"), said("--temperature", "3"))
    assert said("--top-k", "1") == greedy != plain
    assert said("--top-p", "0.001") == greedy


def test_characters_come_as_they_are_known(folder, monkeypatch):
    said = []
    monkeypatch.setattr("builtins.print", lambda *text, **how: said.append((*text, how)))
    assert generate(folder, "--prompt", "ab", "--tokens", "30") == 0
    *pieces, end = said
    assert end == ("", {}), "the end of the line"
    assert 1 < len(pieces) <= 30
    assert all(how == {"end": "", "flush": True} for _, how in pieces)
    text = "".join(piece for piece, _ in pieces)
    assert text.startswith("ab")
    assert len(text) == 32


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--prompt", "aZb"], "the text has characters that the model has not seen: 'Z'"),
        (["--prompt", ""], "the prompt is empty"),
        (["--prompt", "a", "--tokens", "-1"], "max_new_tokens is -1"),
        (["--prompt", "a", "--temperature", "-1"], "temperature is -1"),
        (["--prompt", "a", "--top-k", "0"], "top_k is 0"),
        (["--prompt", "a", "--top-p", "2"], "top_p is 2"),
        (["--prompt", "a", "--seed", "-1"], "seed is -1; expected 0 to 4294967295"),
        (["--prompt", "a", "--seed", "4294967297"], "seed is 4294967297; expected 0 to 4294967295"),
        (["--prompt", "a", "--seed", "18446744073709551616"], "seed is 18446744073709551616; expected"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_done_is_one_line(folder, capsys, options, problem):
    assert generate(folder, *options) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("funcnet generate: ")
    assert problem in err
    assert err.count("\n") == 1


def test_a_run_that_is_no_language_model(tmp_path, capsys):
    _run.write_config(tmp_path, "digits", IMAGES, data={})
    fn.save(tmp_path / "params.safetensors", convnet.init(jax.random.key(0), IMAGES))
    assert generate(tmp_path, "--prompt", "a") == 2
    expected = f"funcnet generate: {tmp_path} holds a model of digits, which is not a language model\n"
    assert capsys.readouterr() == ("", expected)


def test_a_run_that_was_cut_short(folder, capsys):
    (folder / "params.safetensors").unlink()
    assert generate(folder, "--prompt", "a") == 2
    assert "has no params.safetensors: was its training cut short?" in capsys.readouterr().err


# ---- a pretrained model's folder -------------------------------------------------------------------------

BYTES = transformer.Config(vocabulary=256, context=64, layers=1, heads=2, d=8)


@pytest.fixture
def pretrained(tmp_path):
    """A model of bytes, and its tokenizer."""
    tokenizers = pytest.importorskip("tokenizers")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    params = jax.tree.map(lambda leaf: 5 * leaf, transformer.init(jax.random.key(0), BYTES))
    hub.save(tmp_path, params, BYTES)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path, tokenizer, params


@pytest.mark.slow
def test_a_pretrained_model_goes_on_until_its_own_end(pretrained, capsys):
    folder, tokenizer, params = pretrained
    options = ("--prompt", "an é", "--tokens", "40", "--temperature", "0")
    ids = tokenizer.encode("an é").ids
    new = fn.generate(params, ids, BYTES, max_new_tokens=40).tolist()
    assert generate(folder, *options) == 0
    assert capsys.readouterr() == (tokenizer.decode(ids + new) + "\n", "")
    # Its end is the token that came as the first of its kind, say.
    last = max(range(40), key=lambda i: new.index(new[i]))
    hub.save(folder, params, dataclasses.replace(BYTES, stop=(new[last], 255)))
    assert generate(folder, *options) == 0
    assert capsys.readouterr() == (tokenizer.decode(ids + new[: new.index(new[last])]) + "\n", "")
    hub.save(folder, params, dataclasses.replace(BYTES, stop=(new[0],)))
    assert generate(folder, *options) == 0
    assert capsys.readouterr() == ("an é\n", "")


def test_a_folder_without_language_or_tokenizer_is_one_line(pretrained, capsys):
    folder, _, params = pretrained
    hub.save(folder, params, dataclasses.replace(BYTES, head=None))
    assert generate(folder, "--prompt", "a") == 2
    assert "holds a model of gpt2 without a head for the next token" in capsys.readouterr().err
    (folder / "tokenizer.json").write_text("{}")
    assert generate(folder, "--prompt", "a") == 2
    assert "tokenizer.json: this is no tokenizer" in capsys.readouterr().err
    (folder / "tokenizer.json").unlink()
    assert generate(folder, "--prompt", "a") == 2
    assert f"there is no {folder}/tokenizer.json" in capsys.readouterr().err
