"""A model's folder: what `save` writes `load` reads, and what cannot be a model is refused by name."""

import dataclasses
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnet as fn
from funcnet import hub
from funcnet.errors import DTypeError, FileFormatError, StructureError, ValueRangeError
from funcnet.hub.folder import _read
from funcnet.nets import encoder, mamba, mlp, transformer, vit
from funcnet.ops.attention import rope
from tests.errors import golden

BERT = encoder.Config(vocabulary=11, context=7, layers=2, heads=2, d=6, d_hidden=5, dropout=0.1)
VIT = vit.Config((6, 4, 3), patch=(3, 2), layers=2, heads=2, d=6, d_hidden=5, classes=4)
GPT2 = transformer.Config(vocabulary=11, context=7, layers=2, heads=2, d=6, mlp="gelu_tanh")
LLAMA = transformer.Config(
    vocabulary=11,
    context=7,
    layers=2,
    heads=4,
    d=8,
    kv_heads=2,
    head_width=6,
    d_hidden=5,
    norm="rms",
    norm_eps=1e-5,
    mlp="swiglu",
    positions="rope",
    rope=rope.Config(500.0, scaling=rope.Llama3(8.0, 32)),
    bias=False,
    tied=False,
)


def but(config, **fields):
    return dataclasses.replace(config, **fields)


CONFIGS = {
    "bert": (encoder, BERT),
    "bert without pooler": (encoder, but(BERT, pooler=False, attention_dropout=0.2)),
    "bert for masked tokens": (encoder, but(BERT, head="masked", pooler=False)),
    "bert for two tasks": (encoder, but(BERT, head="masked", next_sentence=True)),
    "bert for sequences": (encoder, but(BERT, head="sequence", classes=3)),
    "vit": (vit, VIT),
    "vit without head": (vit, but(VIT, classes=None, qkv_bias=False, norm_eps=1e-12)),
    "gpt2": (transformer, GPT2),
    "vit with pooler": (vit, but(VIT, classes=None, pooler=True)),
    "gpt2, other options": (transformer, but(GPT2, mlp="gelu", tied=False, norm_eps=1e-6, d_hidden=5)),
    "llama": (transformer, LLAMA),
    "llama, linear": (transformer, but(LLAMA, rope=rope.Config(scaling=rope.Linear(2.0)), tied=True)),
    "llama, yarn": (transformer, but(LLAMA, rope=rope.Config(scaling=rope.YaRN(4.0, 16)))),
    "mamba": (mamba, mamba.Config(11, layers=2, d=6, state=3, kernel=3, rank=2, tied=False, stop=(3,))),
    "qwen2": (transformer, but(LLAMA, qkv_bias=True, windows=(None, 3), layers=3)),
    "qwen3": (transformer, but(LLAMA, qk_norm=True, rope=rope.Config(), stop=(3, 5))),
    "llama without head": (transformer, but(LLAMA, head=None, stop=(4,))),
    "gpt2 for answers": (transformer, but(GPT2, head="answer")),
}


def random_params(net, config, dtype="float32"):
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), config))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), dtype), shapes)


HALF = ("bert without pooler", "vit", "gpt2", "llama, yarn", "qwen2")
EACH = [(name, "float32") for name in CONFIGS]


@pytest.mark.parametrize(("name", "dtype"), [*EACH, *((name, "bfloat16") for name in HALF)])
def test_what_is_saved_is_loaded(tmp_path, name, dtype):
    net, config = CONFIGS[name]
    params = random_params(net, config, dtype)
    hub.save(tmp_path / "new", params, config)
    again, config_ = fn.hub.load(tmp_path / "new")
    assert all(getattr(config_, k) == v for k, v in vars(config).items() if v is not None and k != "files")
    assert jax.tree.structure(again) == jax.tree.structure(params)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(params), strict=True):
        assert a.dtype == b.dtype
        assert jnp.array_equal(a, b)
    fields = json.loads((tmp_path / "new" / "config.json").read_text())
    assert fields["dtype"] == dtype
    assert fields["model_type"] == name.split()[0].strip(",")


def test_how_a_net_runs_is_not_saved(tmp_path):
    hub.save(tmp_path, random_params(encoder, BERT), but(BERT, unroll=2, remat=True, dtype="bfloat16"))
    assert hub.load(tmp_path)[1] == BERT


def test_params_do_not_depend_on_the_file(tmp_path):
    params = random_params(encoder, BERT)
    hub.save(tmp_path, params, BERT)
    again, _ = hub.load(tmp_path)
    data = (tmp_path / "model.safetensors").read_bytes()
    with open(tmp_path / "model.safetensors", "r+b") as file:  # the same file, not a new one of its name
        file.write(b"\0" * len(data))
    assert jax.tree.all(jax.tree.map(jnp.array_equal, again, params))


def test_sizes_that_follow_from_others_are_filled_in(tmp_path):
    config = but(GPT2, d_hidden=None)
    hub.save(tmp_path, random_params(transformer, config), config)
    assert hub.load(tmp_path)[0]["blocks"]["up"]["w"].shape == (2, 6, 24)


# ---- what the files hold comes back ----------------------------------------------------------------------


def written(name, net, config, **fields):
    """A folder as another program leaves it: with more fields than a net has, and old forms of some."""
    hub.save(name, random_params(net, config), config)
    more = {"_name_or_path": "x/y", "initializer_range": 0.02, "task": {"a": [1, None, "é"]}, **fields}
    with open(f"{name}/config.json", "r+") as file:
        old = {k: v for k, v in json.load(file).items() if k != "dtype"}
        file.seek(0)
        file.truncate()
        json.dump({**old, **more}, file)
    return read(name)


def read(name):
    with open(f"{name}/config.json") as file:
        return json.load(file)


EYES = {"id2label": {"0": "left", "1": "right"}, "label2id": {"left": 0, "right": 1}}


RATE = {"dropout": 0.5}


@pytest.mark.parametrize(
    ("net", "config", "fields", "change", "changed"),
    [
        (
            encoder,
            but(BERT, head="tokens"),
            {**EYES, "torch_dtype": "float32", "classifier_dropout": None},
            RATE,
            {"hidden_dropout_prob"},
        ),
        (
            vit,
            but(VIT, classes=2),
            {**EYES, "encoder_stride": 16, "pooler_output_size": 6},
            RATE,
            {"hidden_dropout_prob"},
        ),
        (
            transformer,
            GPT2,
            {"eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0, "embd_pdrop": 0.3},
            RATE,
            {"resid_pdrop", "embd_pdrop", "attn_pdrop"},
        ),
        (
            transformer,
            LLAMA,
            {"eos_token_id": [2, 3], "rope_parameters": None, "sliding_window": 4096},
            {"context": 5},
            {"max_position_embeddings"},
        ),
        (
            transformer,
            but(LLAMA, qk_norm=True, head="sequence"),
            {**EYES, "layer_types": None, "rope_theta": 5e5, "rope_scaling": None},
            {"rope": rope.Config(100.0)},
            {"rope_theta", "rope_parameters"},
        ),
    ],
)
def test_what_the_files_held_comes_back(net, config, fields, change, changed):
    before = written("theirs", net, config, **fields)
    hub.save("ours", *hub.load("theirs"))
    assert read("ours") == before
    # What is changed then, and nothing else.
    params, config_ = hub.load("theirs")
    hub.save("ours", params, but(config_, **change))
    after = read("ours")
    assert before.keys() == after.keys()
    assert {name for name in before if after[name] != before[name]} == changed


def test_labels_and_tokens_are_there_to_read_and_are_no_part_of_what_is_compiled():
    written("theirs", encoder, but(BERT, head="sequence"), **EYES)
    _, config = hub.load("theirs")
    assert config.files["config.json"]["id2label"] == {"0": "left", "1": "right"}
    assert config == but(config, files={})
    assert hash(config) == hash(but(config, files={}))


def test_a_dtype_that_params_no_longer_have_is_corrected():
    written("theirs", encoder, BERT, torch_dtype="float32")
    params, config = hub.load("theirs")
    hub.save("theirs", jax.tree.map(lambda w: w.astype(jnp.bfloat16), params), config)
    assert "torch_dtype" not in read("theirs")
    assert read("theirs")["dtype"] == "bfloat16"


def test_the_name_of_a_class_claims_the_head_that_is_there():
    claims = but(BERT, head="masked", pooler=False)
    hub.save("bert", random_params(encoder, claims), claims)
    assert read("bert")["architectures"] == ["BertForMaskedLM"]
    params, config = hub.load("bert")
    del params["head"]
    hub.save("bare", params, but(config, head=None))
    assert read("bare")["architectures"] == ["BertModel"]
    # funcnet 0.1 wrote such an encoder as a BertForMaskedLM.
    fields = read("bare") | {"architectures": ["BertForMaskedLM"]}
    with open("bare/config.json", "w") as file:
        json.dump(fields, file)
    again, config = hub.load("bare")
    assert config.head is None
    hub.save("bare", again, config)
    assert read("bare")["architectures"] == ["BertModel"]
    with pytest.raises(StructureError, match=r"missing +'cls.predictions.bias'"):
        folder(
            "other", {"architectures": ["BertForMaskedLM"]}, lambda t: {f"bert.{n}": v for n, v in t.items()}
        )


def test_nothing_of_an_old_model_survives_in_its_folder():
    small, large = but(GPT2, layers=1), GPT2
    hub.save("gpt2", random_params(transformer, large), large)
    tensors, names = dict(hub.read_safetensors("gpt2")), ["model-00001-of-00002", "model-00002-of-00002"]
    listed = {name: f"{names[i % 2]}.safetensors" for i, name in enumerate(tensors)}
    for file in set(listed.values()):
        hub.write_safetensors(f"gpt2/{file}", {n: tensors[n] for n in tensors if listed[n] == file})
    with open("gpt2/model.safetensors.index.json", "w") as file:
        json.dump({"weight_map": listed}, file)
    with open("gpt2/generation_config.json", "w") as file:
        json.dump({"eos_token_id": 3, "temperature": 0.6}, file)
    os.remove("gpt2/model.safetensors")
    Path("gpt2/tokenizer.json").touch()
    params, config = hub.load("gpt2")
    assert config.stop == (3,)
    hub.save("gpt2", params, config)
    kept = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
    assert sorted(os.listdir("gpt2")) == kept
    assert hub.load("gpt2")[1].files == config.files
    hub.save("gpt2", random_params(transformer, small), small)
    assert sorted(os.listdir("gpt2")) == [name for name in kept if name != "generation_config.json"]
    assert hub.load("gpt2")[1].stop == ()


@pytest.mark.parametrize(
    ("config", "field", "generation", "stop"),
    [
        (GPT2, 2, None, (2,)),
        (GPT2, [2, 5], None, (2, 5)),
        (GPT2, 2, {"eos_token_id": [3, 4]}, (3, 4)),
        (GPT2, 2, {"eos_token_id": None}, (2,)),
        (GPT2, 50256, None, ()),  # beyond the vocabulary
        (LLAMA, ..., None, (2,)),  # transformers' default
        (but(LLAMA, qk_norm=True), ..., None, ()),
    ],
)
def test_the_tokens_that_end_a_text(config, field, generation, stop):
    hub.save("model", random_params(transformer, config), config)
    fields = {name: value for name, value in read("model").items() if name != "eos_token_id"}
    with open("model/config.json", "w") as file:
        json.dump(fields if field is ... else {**fields, "eos_token_id": field}, file)
    if generation is not None:
        with open("model/generation_config.json", "w") as file:
            json.dump({"do_sample": True, **generation}, file)
    params, config = hub.load("model")
    assert config.stop == stop
    hub.save("model", params, but(config, stop=(7,)))
    assert hub.load("model")[1].stop == (7,)
    assert generation is None or hub.load("model")[1].files["generation_config.json"]["do_sample"] is True


# ---- what is refused -------------------------------------------------------------------------------------


def folder(name, fields, tensors=None):
    """A model's folder with these fields changed, None taking one away."""
    hub.save(name, random_params(encoder, BERT), BERT)
    with open(f"{name}/config.json") as file:
        good = json.load(file)
    good = {k: v for k, v in {**good, **fields}.items() if v is not None}
    with open(f"{name}/config.json", "w") as file:
        json.dump(good, file)
    if tensors is not None:
        whole = hub.read_safetensors(name)
        hub.write_safetensors(f"{name}/model.safetensors", tensors(dict(whole)))
    return hub.load(name)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # so that the texts below can be exact


def misnamed(tensors):
    tensors["encoder.layer.0.output.dense.weights"] = tensors.pop("encoder.layer.0.output.dense.weight")
    return tensors


def test_a_damaged_file_is_refused():
    folder("bert", {})
    with open("bert/model.safetensors", "r+b") as file:
        file.truncate(1000)
    with pytest.raises(FileFormatError, match=r"bert/model.safetensors: .*cut short"):
        hub.load("bert")
    with open("bert/config.json", "w") as file:
        file.write('{"model_type": "bert", "model_type": "vit"}')
    with pytest.raises(FileFormatError, match=r"bert/config.json: .*'model_type' is there twice"):
        hub.load("bert")
    with pytest.raises(FileNotFoundError):
        hub.load("nothing")


NONE = {"architectures": None}
QWEN3 = {"model_type": "qwen3", "hidden_act": "silu", "head_dim": 4, **NONE}


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"hidden_act": "gelu_new"}, "hidden_act"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"model_type": "gpt2", "scale_attn_weights": False}, "scale_attn_weights"),
        ({"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({"model_type": "gpt2", "n_positions": 1, "n_layer": 1, "n_head": 1, "n_embd": 1, **NONE}, None),
        ({"model_type": "llama", "hidden_act": "gelu"}, "hidden_act"),
        ({"model_type": "llama", "hidden_act": "silu", "attention_bias": True}, "attention_bias"),
        ({**QWEN3, "rope_scaling": {"type": "dynamic"}}, "rope_scaling.type"),
        ({**QWEN3, "rope_parameters": {"rope_type": "x"}}, "rope_parameters.rope_type"),
        ({"model_type": "vit", "image_size": "8", "patch_size": 4}, "image_size"),
        ({"model_type": "vit", "image_size": 8, "patch_size": 3}, "patch_size"),
    ],
)
def test_what_the_nets_do_not_have_is_refused_by_its_field(fields, path):
    error = StructureError if path is None else ValueRangeError  # the first: of the tensors
    with pytest.raises(error) as caught:
        folder("other", fields)
    assert caught.value.path == path


WRONG = [None, "x", -1, 0, 1.5, 2**31, 10**400, 1e300, True, [], [1], {}, {"a": 1}]


# What no net reads, or only beside other fields.
UNREAD = {"bos_token_id", "dtype", "label2id", "embd_pdrop", "attn_pdrop", "rope_theta", "sliding_window"}


@pytest.mark.parametrize("name", ["bert for sequences", "vit", "gpt2", "llama, yarn", "qwen2", "qwen3"])
def test_a_wrong_value_of_any_field_is_followed_or_refused_by_name(name):
    """And never by an error of Python's."""
    net, config = CONFIGS[name]
    hub.save("model", random_params(net, config), config)
    good, tensors, refused = read("model"), hub.read_safetensors("model"), []

    def attempt(fields, path):
        try:
            _read({"config.json": fields}, tensors, "")
        except (ValueRangeError, StructureError) as error:
            refused.append((path, error))

    for field in good:
        attempt({k: v for k, v in good.items() if k != field}, field)
        for value in WRONG:
            attempt({**good, field: value}, field)
    for field in good.get("rope_scaling") or {}:
        for value in WRONG:
            attempt({**good, "rope_scaling": {**good["rope_scaling"], field: value}}, f"rope_scaling.{field}")
    assert good.keys() - {path for path, _ in refused} <= UNREAD
    for path, error in refused:  # where two fields do not fit each other, either may be named
        assert error.path in good or path.split(".")[0] in str(error), error


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"rope_theta": "x"}, "rope_theta"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "truncate": False}}, "rope_scaling.truncate"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": None}}, "rope_parameters.rope_theta"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "rope_parameters.full_attention"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"use_sliding_window": True, "layer_types": ["full_attention"]}, "layer_types"),
        ({"layer_types": ["sliding_attention"] * 2}, "layer_types"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"architectures": ["Qwen3ForEverything"]}, "architectures"),
        ({"architectures": ["LlamaForCausalLM"]}, "architectures"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_its_field(fields, path):
    with pytest.raises((ValueRangeError, StructureError)) as caught:
        folder("other", QWEN3 | fields)
    assert caught.value.path == path


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 548105171\n",
            "a git-lfs pointer",
        ),
        (b"<!DOCTYPE html><html><head><title>404</title>", "a page of HTML"),
        (b"PK\x03\x04\x00\x00\x08\x08\x00\x00", "zip archive"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "a pickled checkpoint"),
        (b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff", "compressed by gzip"),
        (b"", "an empty file"),
    ],
)
def test_a_file_of_another_kind_is_called_by_it(name, content, said):
    hub.save("bert", random_params(encoder, BERT), BERT)
    Path("bert", name).write_bytes(content)
    with pytest.raises(FileFormatError, match=f"load: bert/{name}: this is .*{said}"):
        hub.load("bert")


@pytest.mark.parametrize(
    ("leaf", "said"),
    [
        (np.ma.masked_array(np.ones((11, 6)), False), "a masked array, whose mask would be lost"),
        (np.ones((11, 6), int), r"int64\[11, 6\]"),
        (np.ones((11, 6), object), r"object\[11, 6\]"),
        ([1.0], "unexpected"),
    ],
)
def test_params_that_no_file_has_are_refused(leaf, said):
    with pytest.raises(StructureError, match=said):
        hub.save("bert", random_params(encoder, BERT) | {"tokens": {"w": leaf}}, BERT)
    assert not os.path.exists("bert")


@pytest.mark.parametrize(
    "files",
    [
        {"config.json": []},
        {"vocab.txt": {}},
        {"generation_config.json": {"x": {1, 2}}},
        {"generation_config.json": {"x": float("nan")}},
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_files_that_are_not_json_are_refused_before_anything_is_written(files):
    with pytest.raises(DTypeError, match=r"config\.files is not what JSON files hold"):
        hub.save("bert", random_params(encoder, BERT), but(BERT, files=files))
    assert not os.path.exists("bert")


test_errors = golden(
    [
        (
            lambda: folder("other", {"model_type": "rwkv"}),
            ValueRangeError,
            "load: other/config.json: funcnet has no net for this model.\n"
            "  expected  model_type: 'bert', 'gpt2', 'llama', 'mamba', 'qwen2', 'qwen3', 'vit'\n"
            "  got       model_type: 'rwkv'",
        ),
        (
            lambda: folder("other", {"hidden_act": "relu"}),
            ValueRangeError,
            "load: other/config.json: hidden_act is 'relu', which the net does not have.\n"
            "  expected  hidden_act: 'gelu'     (model_type 'bert')\n"
            "  got       hidden_act: 'relu'",
        ),
        (
            lambda: folder("other", {"hidden_size": None}),
            StructureError,
            "load: other/config.json: there is no 'hidden_size'.\n"
            "  expected  the field 'hidden_size'     (model_type 'bert')\n"
            "  got       fields: architectures, attention_probs_dropout_prob, dtype, hidden_act, "
            "hidden_dropout_prob, intermediate_size, layer_norm_eps, max_position_embeddings, model_type, "
            "num_attention_heads, num_hidden_layers, type_vocab_size, vocab_size",
        ),
        (
            lambda: folder("other", {}, misnamed),
            StructureError,
            "load: other: the tensors do not fit the model:\n"
            "  missing     'encoder.layer.0.output.dense.weight': float[6, 5]"
            '     (params["blocks"]["down"]["w"])\n'
            "  unexpected  'encoder.layer.0.output.dense.weights': float32[6, 5]",
        ),
        (
            lambda: hub.save("other", {}, mlp.Config((3, 5))),
            DTypeError,
            "save: config is not that of a net which transformers has.\n"
            "  expected  config: transformer.Config, mamba.Config, encoder.Config or vit.Config\n"
            "  got       config: a Config",
        ),
        (
            lambda: hub.save("other", {}, but(LLAMA, windows=(3, None), logit_softcap=30.0)),
            ValueRangeError,
            "save: transformers has no llama with such a windows, logit_softcap.\n"
            "  expected  windows = (None,), logit_softcap = None\n"
            "  got       windows = (3, None), logit_softcap = 30.0",
        ),
    ]
)


@pytest.mark.parametrize(
    ("net", "config", "rename", "extra"),
    [
        (
            transformer,
            GPT2,
            lambda name: name.removeprefix("transformer."),
            {
                "h.0.attn.bias": np.ones((1, 1, 7, 7), np.uint8),
                "h.1.attn.masked_bias": np.float32(-1e4),
                "lm_head.weight": "wte.weight",
            },
        ),
        (transformer, LLAMA, str, {"model.layers.1.self_attn.rotary_emb.inv_freq": np.ones(3, np.float32)}),
        (
            encoder,
            but(BERT, head="masked", next_sentence=True),
            lambda name: name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"),
            {
                "bert.embeddings.position_ids": np.arange(7),
                "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
                "cls.predictions.decoder.bias": "cls.predictions.bias",
            },
        ),
    ],
    ids=["gpt2", "llama", "bert"],
)
def test_files_of_old_are_read(net, config, rename, extra):
    """With the names, masks and second copies that checkpoints on the net have."""
    params = random_params(net, config)
    hub.save("old", params, config)
    tensors = {rename(name): tensor for name, tensor in hub.read_safetensors("old").items()}
    tensors |= {name: tensors[value] if isinstance(value, str) else value for name, value in extra.items()}
    hub.write_safetensors("old/model.safetensors", tensors)
    again, config_ = hub.load("old")
    assert getattr(config_, "head", None) == config.head
    assert jax.tree.all(jax.tree.map(jnp.array_equal, again, params))


def test_a_second_copy_of_a_tied_table_must_be_equal():
    hub.save("gpt2", random_params(transformer, GPT2), GPT2)
    tensors = dict(hub.read_safetensors("gpt2"))
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"] + 1
    hub.write_safetensors("gpt2/model.safetensors", tensors)
    with pytest.raises(StructureError, match=r"unequal +'lm_head.weight': not a copy of 'transformer.wte"):
        hub.load("gpt2")


def test_float64_needs_the_64_bit_mode():
    hub.save("bert", random_params(encoder, BERT, "float64"), BERT)
    assert hub.load("bert")[0]["tokens"]["w"].dtype == jnp.float64
    with (
        jax.enable_x64(False),
        pytest.raises(DTypeError, match="holds float64, and JAX's 64-bit mode is off"),
    ):
        hub.load("bert")
