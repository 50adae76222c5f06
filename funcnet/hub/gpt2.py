"""GPT-2: `nets.transformer` with learned positions, layer norms, biases and a head tied to the tokens."""

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
    size,
)
from funcnet.hub.names import Names, Tensor, linear, norm
from funcnet.nets import transformer

__all__ = ["NET", "config", "head", "json", "names"]

NET = transformer

_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}

# The head that each class of transformers has.
_CLASSES = {
    "GPT2LMHeadModel": "next",
    "GPT2Model": None,
    "GPT2ForSequenceClassification": "sequence",
    "GPT2ForTokenClassification": "tokens",
    "GPT2ForQuestionAnswering": "answer",
}


def head(json: Mapping[str, Any]) -> Any:
    """The head that transformers' class in a config.json has."""
    return architecture(json, _CLASSES, "GPT2LMHeadModel")


def config(json: Mapping[str, Any], tensors: Collection[str]) -> transformer.Config:
    """The net of a config.json. Of its three rates of dropout the net has one, that of the residual stream.

    Raises:
        StructureError: a field is missing.
        ValueRangeError: a field has a value that the net does not have.
    """
    del tensors  # config.json says it all
    fixed(
        json,
        scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False,
        add_cross_attention=False,
    )
    return transformer.Config(
        vocabulary=size(json, "vocab_size"),
        context=size(json, "n_positions"),
        layers=size(json, "n_layer", most=DEEPEST),
        heads=divisor(json, "n_head", "n_embd"),
        d=size(json, "n_embd"),
        d_hidden=size(nullable(json, "n_inner"), "n_inner", None),
        norm="layer",
        norm_eps=number(json, "layer_norm_epsilon", 1e-5),
        mlp=chosen(json, "activation_function", _ACTIVATIONS, "gelu_new"),
        positions="learned",
        bias=True,
        tied=flag(json, "tie_word_embeddings", True),
        dropout=number(json, "resid_pdrop", 0.1, most=1),
        head=head(json),
        classes=labels(json),
        stop=ids(json, "eos_token_id", 50256, size(json, "vocab_size")),
    )


def json(config: transformer.Config) -> dict[str, Any]:
    """The config.json of a net."""
    return {
        "model_type": "gpt2",
        "architectures": [name for name, kind in _CLASSES.items() if kind == config.head],
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
        # transformers' own default is the id of GPT-2's one special token.
        "bos_token_id": 50256 if config.vocabulary > 50256 else None,
        "eos_token_id": id_field(config.stop),
        **label_fields(config.classes, always=config.head in ("sequence", "tokens")),
    }


def names(config: transformer.Config) -> Names:
    """Params by the names of transformers' classes, whose maps are [in, out] and q, k, v one."""
    model = "" if config.head is None else "transformer."
    block = model + "h.{layer}."
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
    tokens, logits = f"{model}wte.weight", "lm_head.weight"
    tree: dict[str, Any] = {
        "tokens": {"w": Tensor(tokens)},
        "positions": {"w": Tensor(f"{model}wpe.weight")},
        "blocks": {
            "norm1": norm(f"{block}ln_1"),
            "attention": {**fused, "o": out},
            "norm2": norm(f"{block}ln_2"),
            "up": {"w": Tensor(f"{block}mlp.c_fc.weight"), "b": Tensor(f"{block}mlp.c_fc.bias")},
            "down": {"w": Tensor(f"{block}mlp.c_proj.weight"), "b": Tensor(f"{block}mlp.c_proj.bias")},
        },
        "norm": norm(f"{model}ln_f"),
    }
    own = {
        "next": {"w": Tensor(logits, "v d -> d v")},
        "sequence": linear("score", bias=False),
        "tokens": linear("classifier"),
        "answer": linear("qa_outputs"),
    }
    if config.head is not None and not (config.head == "next" and config.tied):
        tree["head"] = own[config.head]
    return Names(
        tree,
        renamed=[(r"^(transformer\.)?(wte|wpe|h|ln_f)\.", rf"{model}\2.")],
        ignored=[r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)"],  # the causal mask
        tied={logits: tokens} if config.tied else {},
    )
