"""Llama, Qwen2 and Qwen3: `nets.transformer` with rotary positions, RMS norms, SwiGLU and grouped heads.

Qwen2 has biases on q, k and v, Qwen3 norms on q and k, and both may see a window in their later layers.
"""

from collections.abc import Mapping
from typing import Any

from funcnet.errors import ValueRangeError
from funcnet.hub.fields import chosen, fixed, need
from funcnet.hub.names import Names, Tensor, heads, linear, norm, output
from funcnet.nets import transformer
from funcnet.ops.attention import rope

__all__ = ["NET", "config", "json", "names"]

NET = transformer


def config(json: Mapping[str, Any]) -> transformer.Config:
    """The net of a config.json.

    Raises:
        StructureError: a field is missing.
        ValueRangeError: a field has a value that the net does not have.
    """
    kind = json["model_type"]
    fixed(json, hidden_act="silu", attention_bias=False, mlp_bias=False)
    return transformer.Config(
        vocabulary=need(json, "vocab_size"),
        context=need(json, "max_position_embeddings"),
        layers=need(json, "num_hidden_layers"),
        heads=need(json, "num_attention_heads"),
        d=need(json, "hidden_size"),
        kv_heads=json.get("num_key_value_heads"),
        head_width=json.get("head_dim", 128 if kind == "qwen3" else None),
        d_hidden=need(json, "intermediate_size"),
        norm="rms",
        norm_eps=json.get("rms_norm_eps", 1e-6),
        mlp="swiglu",
        positions="rope",
        rope=_rope(json),
        bias=False,
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
        tied=json.get("tie_word_embeddings", False),
        windows=_windows(json),
    )


def json(config: transformer.Config) -> dict[str, Any]:
    """The config.json of a net."""
    kind = "qwen3" if config.qk_norm else "qwen2" if config.qkv_bias else "llama"
    return {
        "model_type": kind,
        "architectures": [f"{kind.capitalize()}ForCausalLM"],
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
        "rope_theta": config.rope.base,
        "rope_scaling": _scaling(config.rope.scaling),
        # transformers' own defaults are the ids of its first tokenizers.
        "bos_token_id": None,
        "eos_token_id": None,
        **(_window_fields(config) if kind != "llama" else {}),
    }


def names(config: transformer.Config) -> Names:
    """Params by the names of transformers' LlamaForCausalLM, Qwen2ForCausalLM and Qwen3ForCausalLM."""
    block = "model.layers.{layer}."
    plain = {name: linear(f"{block}mlp.{name}_proj", bias=False) for name in ("gate", "up", "down")}
    attention = {
        **{name: heads(f"{block}self_attn.{name}_proj", bias=bool(config.qkv_bias)) for name in "qkv"},
        "o": output(f"{block}self_attn.o_proj", bias=False),
    }
    if config.qk_norm:
        attention |= {f"{name}_norm": norm(f"{block}self_attn.{name}_norm", bias=False) for name in "qk"}
    tokens, head = "model.embed_tokens.weight", "lm_head.weight"
    tree = {
        "tokens": {"w": Tensor(tokens)},
        "blocks": {
            "norm1": norm(f"{block}input_layernorm", bias=False),
            "attention": attention,
            "norm2": norm(f"{block}post_attention_layernorm", bias=False),
            **plain,
        },
        "norm": norm("model.norm", bias=False),
    }
    return Names(
        tree | ({} if config.tied else {"head": {"w": Tensor(head, "v d -> d v")}}),
        renamed=[(r"^(embed_tokens|layers|norm)\.", r"model.\1.")],  # a file of the model without its head
        ignored=[r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"],
        tied={head: tokens} if config.tied else {},
    )


def _rope(json: Mapping[str, Any]) -> rope.Config:
    """The rotation: rope_parameters, or in files of transformers before 5 rope_theta and rope_scaling."""
    where = "rope_parameters" if json.get("rope_parameters") else "rope_scaling"
    fields = {"rope_theta": json.get("rope_theta", 10000.0), **(json.get(where) or {})}
    kind = fields.get("rope_type", fields.get("type", "default"))
    fixed(fields, partial_rotary_factor=1.0, mscale=None, mscale_all_dim=None, truncate=True)
    match kind:
        case "default":
            scaling = None
        case "linear":
            scaling = rope.Linear(need(fields, "factor"))
        case "llama3":
            scaling = rope.Llama3(
                need(fields, "factor"),
                need(fields, "original_max_position_embeddings"),
                low=need(fields, "low_freq_factor"),
                high=need(fields, "high_freq_factor"),
            )
        case "yarn":
            scaling = rope.YaRN(
                need(fields, "factor"),
                fields.get("original_max_position_embeddings") or need(json, "max_position_embeddings"),
                beta_fast=fields.get("beta_fast") or 32,
                beta_slow=fields.get("beta_slow") or 1,
                attention_factor=fields.get("attention_factor"),
            )
        case _:
            raise ValueRangeError(
                f"config.json: {where} is of type {kind!r}, which the net does not have.",
                path=where,
                expected="rope_type: 'default', 'linear', 'llama3', 'yarn'",
                actual=f"rope_type: {kind!r}",
            )
    return rope.Config(base=fields["rope_theta"], scaling=scaling)


def _scaling(scaling: Any) -> dict[str, Any] | None:
    """rope_scaling, the inverse of `_rope`; None also for a scaling that transformers does not have."""
    match scaling:
        case rope.Linear(factor=factor):
            return {"rope_type": "linear", "factor": factor}
        case rope.Llama3(factor=factor, context=context, low=low, high=high):
            frequencies = {"low_freq_factor": low, "high_freq_factor": high}
            return {"rope_type": "llama3", "factor": factor, **frequencies} | _context(context)
        case rope.YaRN(factor=factor, context=context, beta_fast=fast, beta_slow=slow):
            given = {"rope_type": "yarn", "factor": factor, "beta_fast": fast, "beta_slow": slow}
            return given | {"attention_factor": scaling.attention_factor} | _context(context)
    return None


def _context(context: int) -> dict[str, int]:
    return {"original_max_position_embeddings": context}


def _windows(json: Mapping[str, Any]) -> tuple[int | None, ...]:
    """The window of each layer, as the shortest pattern that is repeated."""
    window = json.get("sliding_window") if json.get("use_sliding_window") else None
    if window is None:
        return (None,)
    n = need(json, "num_hidden_layers")
    full = json.get("max_window_layers", 28)
    types = json.get("layer_types") or ["full_attention"] * full + ["sliding_attention"] * (n - full)
    names = {"full_attention": None, "sliding_attention": window}
    layers = [chosen({"layer_types": kind}, "layer_types", names, "full_attention") for kind in types[:n]]
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
