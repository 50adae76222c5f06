"""A model's folder: what `save` writes `load` reads, and what cannot be a model is refused by name."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnet as fn
from funcnet import hub
from funcnet.errors import DTypeError, FileFormatError, StructureError, ValueRangeError
from funcnet.nets import encoder, mlp, transformer, vit
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
    "vit": (vit, VIT),
    "vit without head": (vit, but(VIT, classes=None, qkv_bias=False, norm_eps=1e-12)),
    "gpt2": (transformer, GPT2),
    "gpt2, other options": (transformer, but(GPT2, mlp="gelu", tied=False, norm_eps=1e-6, d_hidden=5)),
    "llama": (transformer, LLAMA),
    "llama, linear": (transformer, but(LLAMA, rope=rope.Config(scaling=rope.Linear(2.0)), tied=True)),
    "llama, yarn": (transformer, but(LLAMA, rope=rope.Config(scaling=rope.YaRN(4.0, 16)))),
    "qwen2": (transformer, but(LLAMA, qkv_bias=True, windows=(None, 3), layers=3)),
    "qwen3": (transformer, but(LLAMA, qk_norm=True, rope=rope.Config())),
}


def random_params(net, config, dtype="float32"):
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), config))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), dtype), shapes)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CONFIGS)
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


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"hidden_act": "gelu_new"}, "hidden_act"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"model_type": "gpt2", "scale_attn_weights": False}, "scale_attn_weights"),
        ({"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({"model_type": "gpt2", "n_positions": 1, "n_layer": 1, "n_head": 1, "n_embd": 1}, None),
        ({"model_type": "llama", "hidden_act": "gelu"}, "hidden_act"),
        ({"model_type": "llama", "hidden_act": "silu", "attention_bias": True}, "attention_bias"),
        ({"model_type": "qwen3", "hidden_act": "silu", "rope_scaling": {"type": "dynamic"}}, "rope_scaling"),
        (
            {"model_type": "qwen3", "hidden_act": "silu", "rope_parameters": {"rope_type": "x"}},
            "rope_parameters",
        ),
        ({"model_type": "vit", "image_size": "8", "patch_size": 4}, "image_size"),
        ({"model_type": "vit", "image_size": 8, "patch_size": 3}, "patch"),
    ],
)
def test_what_the_nets_do_not_have_is_refused_by_its_field(fields, path):
    error = StructureError if path is None else ValueRangeError  # the first: of the tensors
    with pytest.raises(error) as caught:
        folder("other", fields)
    assert caught.value.path == path


test_errors = golden(
    [
        (
            lambda: folder("other", {"model_type": "mamba"}),
            ValueRangeError,
            "load: other: funcnet has no net for this model.\n"
            "  expected  model_type: 'bert', 'gpt2', 'llama', 'qwen2', 'qwen3', 'vit'     (config.json)\n"
            "  got       model_type: 'mamba'",
        ),
        (
            lambda: folder("other", {"hidden_act": "relu"}),
            ValueRangeError,
            "config.json: hidden_act is 'relu', which the net does not have.\n"
            "  expected  hidden_act: 'gelu'     (model_type 'bert')\n"
            "  got       hidden_act: 'relu'",
        ),
        (
            lambda: folder("other", {"hidden_size": None}),
            StructureError,
            "config.json has no 'hidden_size'.\n"
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
            "  expected  config: transformer.Config, encoder.Config or vit.Config\n"
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
            BERT,
            lambda name: (
                "bert." + name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta")
            ),
            {"bert.embeddings.position_ids": np.arange(7), "cls.predictions.bias": np.ones(11, np.float32)},
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
    again, _ = hub.load("old")
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
