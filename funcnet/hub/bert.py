"""BERT, and MiniLM, which has its form: `nets.encoder`."""

from collections.abc import Mapping
from typing import Any

from funcnet.hub.fields import fixed, need
from funcnet.hub.names import Names, Tensor, heads, linear, norm, output
from funcnet.nets import encoder

__all__ = ["NET", "config", "json", "names"]

NET = encoder

# Models of transformers whose files have no pooler.
_WITHOUT_POOLER = ("BertForMaskedLM", "BertForTokenClassification", "BertForQuestionAnswering")


def config(json: Mapping[str, Any]) -> encoder.Config:
    """The net of a config.json.

    Raises:
        StructureError: a field is missing.
        ValueRangeError: a field has a value that the net does not have.
    """
    fixed(
        json,
        hidden_act="gelu",
        position_embedding_type="absolute",
        is_decoder=False,
        add_cross_attention=False,
    )
    return encoder.Config(
        vocabulary=need(json, "vocab_size"),
        context=need(json, "max_position_embeddings"),
        types=json.get("type_vocab_size", 2),
        layers=need(json, "num_hidden_layers"),
        heads=need(json, "num_attention_heads"),
        d=need(json, "hidden_size"),
        d_hidden=need(json, "intermediate_size"),
        norm_eps=json.get("layer_norm_eps", 1e-12),
        pooler=not any(name in _WITHOUT_POOLER for name in json.get("architectures") or ()),
        dropout=json.get("hidden_dropout_prob", 0.1),
        attention_dropout=json.get("attention_probs_dropout_prob", 0.1),
    )


def json(config: encoder.Config) -> dict[str, Any]:
    """The config.json of a net."""
    return {
        "model_type": "bert",
        "architectures": ["BertModel" if config.pooler else "BertForMaskedLM"],
        "vocab_size": config.vocabulary,
        "max_position_embeddings": config.context,
        "type_vocab_size": config.types,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "hidden_size": config.d,
        "intermediate_size": config.d_hidden or 4 * config.d,
        "hidden_act": "gelu",
        "layer_norm_eps": config.norm_eps,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
    }


def names(config: encoder.Config) -> Names:
    """Params by the names of transformers' BertModel; its heads (cls.*) have no place in the net."""
    block = "encoder.layer.{layer}."
    tree = {
        "tokens": {"w": Tensor("embeddings.word_embeddings.weight")},
        "positions": {"w": Tensor("embeddings.position_embeddings.weight")},
        "types": {"w": Tensor("embeddings.token_type_embeddings.weight")},
        "norm": norm("embeddings.LayerNorm"),
        "blocks": {
            "attention": {
                "q": heads(f"{block}attention.self.query"),
                "k": heads(f"{block}attention.self.key"),
                "v": heads(f"{block}attention.self.value"),
                "o": output(f"{block}attention.output.dense"),
            },
            "norm1": norm(f"{block}attention.output.LayerNorm"),
            "up": linear(f"{block}intermediate.dense"),
            "down": linear(f"{block}output.dense"),
            "norm2": norm(f"{block}output.LayerNorm"),
        },
    }
    return Names(
        tree | ({"pooler": linear("pooler.dense")} if config.pooler else {}),
        # Files of a model with a head; those written by TensorFlow.
        renamed=[
            (r"^bert\.", ""),
            (r"LayerNorm\.gamma$", "LayerNorm.weight"),
            (r"LayerNorm\.beta$", "LayerNorm.bias"),
        ],
        ignored=[r"embeddings\.position_ids", r"cls\..*"],
    )
