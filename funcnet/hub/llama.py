"""Llama, Qwen2 and Qwen3: `nets.transformer` with rotary positions, RMS norms, SwiGLU and grouped heads.

Qwen2 has biases on q, k and v, Qwen3 norms on q and k, and both may see a window in their later layers.
"""

from collections.abc import Collection, Mapping
from typing import Any

from funcnet.hub.fields import (
    DEEPEST,
    architecture,
    chosen,
    divisor,
    fixed,
    flag,
    id_field,
    ids,
    label_fields,
    labels,
    nullable,
    number,
    said_of,
    size,
    table,
    wrong,
)
from funcnet.hub.names import Names, Tensor, heads, linear, norm, output
from funcnet.nets import transformer
from funcnet.ops.attention import rope

__all__ = ["NET", "config", "head", "json", "names"]

NET = transformer


# The head that each class of transformers has, after Llama, Qwen2 or Qwen3.
_CLASSES = {
    "ForCausalLM": "next",
    "Model": None,
    "ForSequenceClassification": "sequence",
    "ForTokenClassification": "tokens",
    "ForQuestionAnswering": "answer",
}


def head(json: Mapping[str, Any]) -> Any:
    """The head that transformers' class in a config.json has."""
    return architecture(json, _classes(json["model_type"]), f"{json['model_type'].capitalize()}ForCausalLM")


def config(json: Mapping[str, Any], tensors: Collection[str]) -> transformer.Config:
    """The net of a config.json.

    Raises:
        StructureError: a field is missing.
        ValueRangeError: a field has a value that the net does not have.
    """
    del tensors  # config.json says it all
    kind = json["model_type"]
    json = nullable(json, "num_key_value_heads", "layer_types", *(["head_dim"] if kind != "qwen3" else []))
    fixed(json, hidden_act="silu", attention_bias=False, mlp_bias=False)
    width = size(json, "head_dim", 128 if kind == "qwen3" else None)
    return transformer.Config(
        vocabulary=size(json, "vocab_size"),
        context=size(json, "max_position_embeddings"),
        layers=size(json, "num_hidden_layers", most=DEEPEST),
        heads=size(json, "num_attention_heads")
        if width
        else divisor(json, "num_attention_heads", "hidden_size"),
        d=size(json, "hidden_size"),
        kv_heads=divisor(json, "num_key_value_heads", "num_attention_heads", None),
        head_width=width,
        d_hidden=size(json, "intermediate_size"),
        norm="rms",
        norm_eps=number(json, "rms_norm_eps", 1e-6),
        mlp="swiglu",
        positions="rope",
        rope=_rope(json),
        bias=False,
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
        tied=flag(json, "tie_word_embeddings", False),
        windows=(None,) if kind == "llama" else _windows(json),
        head=head(json),
        classes=labels(json),
        stop=ids(json, "eos_token_id", 2 if kind == "llama" else None, size(json, "vocab_size")),
    )


def json(config: transformer.Config) -> dict[str, Any]:
    """The config.json of a net."""
    kind = "qwen3" if config.qk_norm else "qwen2" if config.qkv_bias else "llama"
    return {
        "model_type": kind,
        "architectures": [name for name, has in _classes(kind).items() if has == config.head],
        "vocab_size": config.vocabulary,
        "max_position_embeddings": config.context,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads or config.heads,
        "head_dim": config.head_width or config.d // config.heads,
        "hidden_size": config.d,
        "intermediate_size": config.d_hidden or 4 * config.d,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps or 1e-6,
        "tie_word_embeddings": config.tied,
        **_rope_fields(config.rope),
        # transformers' own defaults are the ids of its first tokenizers.
        "bos_token_id": None,
        "eos_token_id": id_field(config.stop),
        **(_window_fields(config) if kind != "llama" else {}),
        **label_fields(config.classes, always=config.head in ("sequence", "tokens")),
    }


def names(config: transformer.Config) -> Names:
    """Params by the names of transformers' classes."""
    model = {None: "", "answer": "transformer."}.get(config.head, "model.")
    block = model + "layers.{layer}."
    plain = {name: linear(f"{block}mlp.{name}_proj", bias=False) for name in ("gate", "up", "down")}
    attention = {
        **{name: heads(f"{block}self_attn.{name}_proj", bias=bool(config.qkv_bias)) for name in "qkv"},
        "o": output(f"{block}self_attn.o_proj", bias=False),
    }
    if config.qk_norm:
        attention |= {f"{name}_norm": norm(f"{block}self_attn.{name}_norm", bias=False) for name in "qk"}
    tokens, logits = f"{model}embed_tokens.weight", "lm_head.weight"
    tree: dict[str, Any] = {
        "tokens": {"w": Tensor(tokens)},
        "blocks": {
            "norm1": norm(f"{block}input_layernorm", bias=False),
            "attention": attention,
            "norm2": norm(f"{block}post_attention_layernorm", bias=False),
            **plain,
        },
        "norm": norm(f"{model}norm", bias=False),
    }
    own = {
        "next": {"w": Tensor(logits, "v d -> d v")},
        "sequence": linear("score", bias=False),
        "tokens": linear("score"),
        "answer": linear("qa_outputs"),
    }
    if config.head is not None and not (config.head == "next" and config.tied):
        tree["head"] = own[config.head]
    return Names(
        tree,
        renamed=[(r"^((model|transformer)\.)?(embed_tokens|layers|norm)\.", rf"{model}\3.")],
        ignored=[r"(\w+\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq"],
        tied={logits: tokens} if config.tied else {},
    )


def _classes(kind: str) -> dict[str, Any]:
    return {kind.capitalize() + name: has for name, has in _CLASSES.items()}


def _rope(json: Mapping[str, Any]) -> rope.Config:
    """The rotation, as transformers 5 reads it.

    rope_scaling, the field of earlier versions, takes the place of rope_parameters unless it is empty. Within
    either, rope_theta goes before the one beside it; original_max_position_embeddings beside it goes first.
    """
    old, new = table(json, "rope_scaling"), table(json, "rope_parameters")
    where = "rope_scaling" if old else "rope_parameters"
    at = lambda name: f"{where}.{name}"
    fields = {at(name): value for name, value in (old or new).items()}
    per_layer_type = {name: None for name, value in fields.items() if isinstance(value, dict)}
    only = {"partial_rotary_factor": 1.0, "mscale": None, "mscale_all_dim": None, "truncate": True}
    fixed(nullable(json, "partial_rotary_factor"), partial_rotary_factor=1.0)
    fixed(fields, **per_layer_type, **{at(name): value for name, value in only.items()})
    kinds = {"default": None, "linear": rope.Linear, "llama3": rope.Llama3, "yarn": rope.YaRN}
    kind = chosen(fields, at("rope_type") if at("rope_type") in fields else at("type"), kinds, "default")
    within = at("rope_theta") in fields
    base = number(fields if within else json, at("rope_theta") if within else "rope_theta", 10000.0, least=1)
    if kind is None:
        with said_of("rope_theta"):
            return rope.Config(base)
    options: dict[str, Any] = {"factor": number(fields, at("factor"), least=1)}
    if kind is not rope.Linear:
        length, longest = "original_max_position_embeddings", size(json, "max_position_embeddings")
        options["context"] = size(json, length, size(fields, at(length), longest))
    if kind is rope.Llama3:
        options["low"] = number(fields, at("low_freq_factor"))
        options["high"] = number(fields, at("high_freq_factor"))
    if kind is rope.YaRN:
        fields = nullable(fields, *map(at, ("beta_fast", "beta_slow", "attention_factor")))
        options["beta_fast"] = number(fields, at("beta_fast"), 32) or 32  # 0 too is transformers' default
        options["beta_slow"] = number(fields, at("beta_slow"), 1) or 1
        options["attention_factor"] = number(fields, at("attention_factor"), None)
    with said_of(where):
        return rope.Config(base, scaling=kind(**options))


def _rope_fields(config: rope.Config) -> dict[str, Any]:
    """The inverse of `_rope`, for all versions of transformers; plain where they have no such scaling."""
    theta, kind = {"rope_theta": config.base}, {}
    match config.scaling:
        case rope.Linear(factor=factor):
            kind = {"rope_type": "linear", "factor": factor}
        case rope.Llama3(factor=factor, context=context, low=low, high=high):
            kind = {"rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high}
            kind["original_max_position_embeddings"] = context
        case rope.YaRN(factor=factor, context=context, beta_fast=fast, beta_slow=slow, attention_factor=c):
            kind = {"rope_type": "yarn", "factor": factor, "beta_fast": fast, "beta_slow": slow}
            kind |= {"attention_factor": c, "original_max_position_embeddings": context}
    scaling = kind | theta if kind else None
    return theta | {"rope_scaling": scaling, "rope_parameters": scaling or {"rope_type": "default", **theta}}


def _windows(json: Mapping[str, Any]) -> tuple[int | None, ...]:
    """Of Qwen: the window of each layer, as the shortest pattern that is repeated."""
    n = size(json, "num_hidden_layers", most=DEEPEST)
    slides = flag(json, "use_sliding_window", False) and json.get("sliding_window", 4096) is not None
    window = size(json, "sliding_window", 4096) if slides else None
    known = {"full_attention": None, "attention": None} | ({"sliding_attention": window} if window else {})
    full = size(json, "max_window_layers", 28, least=0) if window else n
    types = json.get("layer_types", [*["full_attention"] * full, *["sliding_attention"] * (n - full)][:n])
    if not isinstance(types, list) or len(types) != n:
        raise wrong(json, "layer_types", f"a list of {n}     (num_hidden_layers)")
    layers = [chosen({"layer_types": kind}, "layer_types", known) for kind in types]
    period = next(p for p in range(1, n + 1) if all(layers[i] == layers[i % p] for i in range(n)))
    return tuple(layers[:period])


def _window_fields(config: transformer.Config) -> dict[str, Any]:
    """Of Qwen: the inverse of `_windows`, where all windows are of one size."""
    layers = [config.windows[i % len(config.windows)] for i in range(config.layers)]
    sizes = sorted({window for window in layers if isinstance(window, int)})
    return {
        "use_sliding_window": bool(sizes),
        "sliding_window": sizes[0] if sizes else None,
        "layer_types": ["full_attention" if window is None else "sliding_attention" for window in layers],
    }
