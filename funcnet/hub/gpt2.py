"""GPT-2: `nets.transformer` with learned positions, layer norms, biases and a head tied to the tokens."""

from collections.abc import Mapping
from typing import Any

from funcnet.hub.fields import chosen, fixed, need
from funcnet.hub.names import Names, Tensor, norm
from funcnet.nets import transformer

__all__ = ["NET", "config", "json", "names"]

NET = transformer

_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}


def config(json: Mapping[str, Any]) -> transformer.Config:
    """The net of a config.json. Of its three rates of dropout the net has one, that of the residual stream.

    Raises:
        StructureError: a field is missing.
        ValueRangeError: a field has a value that the net does not have.
    """
    fixed(
        json,
        scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False,
        add_cross_attention=False,
    )
    return transformer.Config(
        vocabulary=need(json, "vocab_size"),
        context=need(json, "n_positions"),
        layers=need(json, "n_layer"),
        heads=need(json, "n_head"),
        d=need(json, "n_embd"),
        d_hidden=json.get("n_inner"),
        norm="layer",
        norm_eps=json.get("layer_norm_epsilon", 1e-5),
        mlp=chosen(json, "activation_function", _ACTIVATIONS, "gelu_new"),
        positions="learned",
        bias=True,
        tied=json.get("tie_word_embeddings", True),
        dropout=json.get("resid_pdrop", 0.1),
    )


def json(config: transformer.Config) -> dict[str, Any]:
    """The config.json of a net."""
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": config.vocabulary,
        "n_positions": config.context,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_embd": config.d,
        "n_inner": config.d_hidden,
        "layer_norm_epsilon": config.norm_eps or 1e-5,
        "activation_function": "gelu" if config.mlp == "gelu" else "gelu_new",
        "tie_word_embeddings": config.tied,
        "embd_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        # The ids of GPT-2's one special token, where the vocabulary has them.
        **dict.fromkeys(["bos_token_id", "eos_token_id"], 50256 if config.vocabulary > 50256 else None),
    }


def names(config: transformer.Config) -> Names:
    """Params by the names of transformers' GPT2LMHeadModel, whose maps are [in, out] and q, k, v one."""
    block = "transformer.h.{layer}."
    fused = {
        kind: {
            "w": Tensor(f"{block}attn.c_attn.weight", "d (h e) -> d h e", part=i, along=1),
            "b": Tensor(f"{block}attn.c_attn.bias", "(h e) -> h e", part=i),
        }
        for i, kind in enumerate("qkv")
    }
    out = {
        "w": Tensor(f"{block}attn.c_proj.weight", "(h e) d -> h e d"),
        "b": Tensor(f"{block}attn.c_proj.bias"),
    }
    tokens, head = "transformer.wte.weight", "lm_head.weight"
    tree = {
        "tokens": {"w": Tensor(tokens)},
        "positions": {"w": Tensor("transformer.wpe.weight")},
        "blocks": {
            "norm1": norm(f"{block}ln_1"),
            "attention": {**fused, "o": out},
            "norm2": norm(f"{block}ln_2"),
            "up": {"w": Tensor(f"{block}mlp.c_fc.weight"), "b": Tensor(f"{block}mlp.c_fc.bias")},
            "down": {"w": Tensor(f"{block}mlp.c_proj.weight"), "b": Tensor(f"{block}mlp.c_proj.bias")},
        },
        "norm": norm("transformer.ln_f"),
    }
    return Names(
        tree | ({} if config.tied else {"head": {"w": Tensor(head, "v d -> d v")}}),
        renamed=[(r"^(wte|wpe|h|ln_f)\.", r"transformer.\1.")],  # a file of the model without its head
        ignored=[r"transformer\.h\.\d+\.attn\.(bias|masked_bias)"],  # the causal mask
        tied={head: tokens} if config.tied else {},
    )
