"""`funcnet plan`: which mesh for a decoder, what its options change, and what is refused."""

import dataclasses
import json

import pytest

import funcnet as fn
from funcnet import shard
from funcnet.nets import transformer
from tests.cli.test_main import call, refused

LLAMA = "llama3-8b --chips 4096 --kind v5p"
SMALL = "gpt2-124m --chips 8 --kind h100 --tokens-per-step 16384"


def plan(capsys, args):
    """The rows of the table, cells by column."""
    code, out, err = call(capsys, "plan", *args.split())
    assert (code, err) == (0, "")
    head, columns, *lines = out.splitlines()
    names = [
        "data",
        "context",
        "tensor",
        "stage",
        "params",
        "remat",
        "batch",
        "step",
        "s",
        "MFU",
        "memory",
        "GB",
    ]
    rows = [
        dict(zip(names, line.split(), strict=False)) | {"line": line}
        for line in lines
        if line[:1] in " 0123456789"
    ]
    assert [name for name in columns.split() if name in names] == [n for n in names if n not in ("s", "GB")]
    return head, rows, out


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """All meshes of llama3-8b on 4,096 chips."""
    config = dataclasses.replace(transformer.preset("llama3-8b"), dtype="bfloat16")
    return shard.plan(config, 4096, "v5p", (512, 8192))


def test_experts(capsys):
    more = "--experts 8 --experts-per-token 1 --capacity 1.25"
    _, plain, _ = plan(capsys, f"{SMALL} --top 1")
    _, mixed, out = plan(capsys, f"{SMALL} --top 99 {more}")
    assert mixed[0]["line"] != plain[0]["line"]
    assert "experts apart" in out
    assert all(row["stage"] == "1" for row in mixed)


def test_llama_on_4096_chips(llama):
    """The notes: 0.48 by data 512 x context 2 x tensor 4; data alone cannot use so many chips."""
    found = {tuple(n for _, n in one.cost.mesh): one for one in llama}
    assert abs(found[1, 512, 2, 4].cost.times.mfu - 0.48) < 0.02
    assert (1, 4096, 1, 1) not in found
    assert all(one.cost.times.fits for one in llama[:10])
    order = [one.cost.times.mfu for one in llama if one.cost.times.fits]
    assert order == sorted(order, reverse=True)
    for one in llama:
        stage, data, context, tensor = (n for _, n in one.cost.mesh)
        assert stage * data * context * tensor == 4096
        assert (32 % stage, one.batch[0] % data, 8192 % context, 8 % tensor) == (0, 0, 0, 0)
        assert one.microbatches == (one.batch[0] // data if stage > 1 else 1)


def test_the_ten_best(capsys, llama):
    head, rows, out = plan(capsys, LLAMA)
    assert head == "llama3-8b, 488 sequences of 8,192 tokens, on 4,096 v5p"
    assert len(rows) == 10
    assert [row["MFU"] for row in rows] == [f"{one.cost.times.mfu:.3f}" for one in llama[:10]]
    assert "No step was measured on real links." in out
    assert shard.MACHINES["v5p"].source in out


@pytest.mark.parametrize(
    ("option", "column"),
    [
        ("--kind b200", "step"),
        ("--chips 16", "data"),
        ("--tokens-per-step 65536", "batch"),
        ("--length 512", "batch"),
        ("--dtype float32", "memory"),
        ("--efficiency 0.3", "step"),
        ("--moments 0", "memory"),
    ],
)
def test_each_option_changes_the_best(capsys, option, column):
    name, value = option.split()
    other = " ".join(SMALL.split()) + f" {option}"
    if name in SMALL:
        words = SMALL.split()
        words[words.index(name) + 1] = value
        other = " ".join(words)
    assert plan(capsys, SMALL)[1][0][column] != plan(capsys, other)[1][0][column]


def test_how_many_and_all_of_them_in_a_file(capsys, tmp_path):
    _, rows, out = plan(capsys, f"{SMALL} --top 2 --json {tmp_path}/plan.json")
    assert len(rows) == 2
    content = json.loads((tmp_path / "plan.json").read_text())
    assert f"all {len(content['meshes'])} meshes" in out
    assert content["meshes"][0]["mfu"] == pytest.approx(float(rows[0]["MFU"]), abs=5e-4)
    assert {"mesh", "params", "remat", "step", "held", "fits", "bound", "sent"} <= content["meshes"][0].keys()


def test_what_does_not_fit_is_said_and_comes_last(capsys):
    _, rows, _ = plan(capsys, "llama3-70b --chips 8 --kind v5e --tokens-per-step 65536")
    assert all("too much" in row["line"] for row in rows)


def test_a_config_of_a_pretrained_model_or_of_a_run(capsys, tmp_path):
    fields = {
        "model_type": "llama", "vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "intermediate_size": 128, "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert fn.hub.config(tmp_path) == fn.hub.config(tmp_path / "config.json")
    assert fn.hub.config(tmp_path).d_hidden == 128
    options = "--chips 4 --kind h100 --tokens-per-step 4096"
    (best, *_), (same, *_) = (plan(capsys, f"{p} {options}")[1] for p in (tmp_path, tmp_path / "config.json"))
    assert best == same
    run = tmp_path / "run"
    run.mkdir()
    from funcnet.tasks import _run

    config = transformer.Config(65, context=64, layers=2, heads=4, d=32)
    _run.write_config(run, "chars", config, data={"sha256": "00"})
    assert len(plan(capsys, f"{run} {options}")[1]) > 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("llama9 --chips 8 --kind v5p", "'llama9' is neither a model (gpt2-124m, "),
        ("llama3-8b --chips 8 --kind v9", "no kind 'v9': there are v5e, v5p, v6e, h100, h200, b200"),
        ("llama3-8b --chips 4099 --kind v5p", "no mesh of 4099 chips divides the batch, the heads"),
        ("llama3-8b --chips 0 --kind v5p", "chips is 0"),
        ("llama3-8b --chips 8 --kind v5p --length 9000", "batch has 9000 positions, but the context is 8192"),
        ("llama3-8b --chips 8 --kind v5p --tokens-per-step 0", "tokens_per_step is 0"),
        ("llama3-8b --chips 8 --kind v5p --dtype int8", "dtype"),
        ("llama3-8b --chips 8 --kind v5p --efficiency 0", "efficiency is 0"),
        ("llama3-8b --chips 8 --kind v5p --moments -1", "moments is -1"),
        ("llama3-8b --chips 8 --kind v5p --top 0", "top is 0"),
        ("llama3-8b --chips 8 --kind v5p --json plan.txt", "plan.txt is no .json file"),
        ("llama3-8b --kind v5p", "missing from funcnet plan: --chips INT"),
    ],
)  # fmt: skip
def test_refused(capsys, args, message):
    assert message in refused(capsys, "plan", *args.split())
