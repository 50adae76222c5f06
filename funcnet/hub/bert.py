"""BERT, and MiniLM, which has its form: `nets.encoder`."""

from collections.abc import Collection, Mapping
from typing import Any

from funcnet.hub.fields import DEEPEST, architecture, divisor, fixed, label_fields, labels, number, size
from funcnet.hub.names import Names, Tensor, heads, linear, norm, output
from funcnet.nets import encoder

__all__ = ["NET", "config", "head", "json", "names"]

NET = encoder

_MASKED = "cls.predictions.bias"

# The head that each class of transformers has, and whether it also says if a sentence follows another.
_CLASSES = {
    "BertModel": (None, False),
    "BertForMaskedLM": ("masked", False),
    "BertForSequenceClassification": ("sequence", False),
    "BertForTokenClassification": ("tokens", False),
    "BertForQuestionAnswering": ("answer", False),
    "BertForPreTraining": ("masked", True),
    "BertForNextSentencePrediction": (None, True),
}


def head(json: Mapping[str, Any]) -> Any:
    """The head that transformers' class in a config.json has."""
    return architecture(json, _CLASSES, "BertModel")[0]


def config(json: Mapping[str, Any], tensors: Collection[str]) -> encoder.Config:
    """The net of a config.json and of the tensors beside it.

    Their names tell what config.json does not: whether there is a pooler, and whether a checkpoint has kept
    the heads of its pretraining that its class does not use.

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
    kind, next_sentence = architecture(json, _CLASSES, "BertModel")
    if kind is None and _MASKED in tensors:
        kind = "masked"
    # So funcnet 0.1 wrote an encoder without pooler: a BertForMaskedLM without head or prefix.
    elif kind == "masked" and _MASKED not in tensors and "embeddings.word_embeddings.weight" in tensors:
        kind = None
    if kind == "masked":
        fixed(json, tie_word_embeddings=True)
    next_sentence = next_sentence or "cls.seq_relationship.weight" in tensors
    pooled = kind == "sequence" or next_sentence
    return encoder.Config(
        vocabulary=size(json, "vocab_size"),
        context=size(json, "max_position_embeddings"),
        types=size(json, "type_vocab_size", 2),
        layers=size(json, "num_hidden_layers", most=DEEPEST),
        heads=divisor(json, "num_attention_heads", "hidden_size"),
        d=size(json, "hidden_size"),
        d_hidden=size(json, "intermediate_size"),
        norm_eps=number(json, "layer_norm_eps", 1e-12),
        pooler=pooled or any(name.endswith("pooler.dense.weight") for name in tensors),
        dropout=number(json, "hidden_dropout_prob", 0.1, most=1),
        attention_dropout=number(json, "attention_probs_dropout_prob", 0.1, most=1),
        head=kind,
        classes=labels(json),
        next_sentence=next_sentence,
    )


def json(config: encoder.Config) -> dict[str, Any]:
    """The config.json of a net."""
    kind = (config.head, config.next_sentence)
    names = [name for name, has in _CLASSES.items() if has == kind]
    return {
        "model_type": "bert",
        # A head that no class has beside `next_sentence` stays the one that the class is of.
        "architectures": names or [name for name, has in _CLASSES.items() if has == (config.head, False)],
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
        **label_fields(config.classes, always=config.head in ("sequence", "tokens")),
    }


def names(config: encoder.Config) -> Names:
    """Params by the names of transformers' classes, below "bert." what BertModel has, if there is a head."""
    model = "" if config.head is None and not config.next_sentence else "bert."
    block = model + "encoder.layer.{layer}."
    tree: dict[str, Any] = {
        "tokens": {"w": Tensor(f"{model}embeddings.word_embeddings.weight")},
        "positions": {"w": Tensor(f"{model}embeddings.position_embeddings.weight")},
        "types": {"w": Tensor(f"{model}embeddings.token_type_embeddings.weight")},
        "norm": norm(f"{model}embeddings.LayerNorm"),
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
    masked = {
        "linear": linear("cls.predictions.transform.dense"),
        "norm": norm("cls.predictions.transform.LayerNorm"),
        "b": Tensor(_MASKED),
    }
    own = {
        "masked": masked,
        "sequence": linear("classifier"),
        "tokens": linear("classifier"),
        "answer": linear("qa_outputs"),
    }
    if config.pooler:
        tree["pooler"] = linear(f"{model}pooler.dense")
    if config.head is not None:
        tree["head"] = own[config.head]
    if config.next_sentence:
        tree["next_sentence"] = linear("cls.seq_relationship")
    table = f"{model}embeddings.word_embeddings.weight"
    tied = {"cls.predictions.decoder.weight": table, "cls.predictions.decoder.bias": _MASKED}
    return Names(
        tree,
        # The prefix, which a file may have or not; and those written by TensorFlow.
        renamed=[
            (r"^(bert\.)?(embeddings|encoder|pooler)\.", rf"{model}\2."),
            (r"LayerNorm\.gamma$", "LayerNorm.weight"),
            (r"LayerNorm\.beta$", "LayerNorm.bias"),
        ],
        ignored=[r"(bert\.)?embeddings\.position_ids"],
        tied=tied if config.head == "masked" else {},
    )
