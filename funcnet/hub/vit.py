"""ViT: `nets.vit`."""

from collections.abc import Mapping
from typing import Any

from funcnet.hub.fields import fixed, need, pair
from funcnet.hub.names import Names, Tensor, heads, linear, norm, output
from funcnet.nets import vit

__all__ = ["NET", "config", "json", "names"]

NET = vit


def config(json: Mapping[str, Any]) -> vit.Config:
    """The net of a config.json: with a head if the file's model is one for classification.

    Raises:
        StructureError: a field is missing.
        ValueRangeError: a field has a value that the net does not have.
    """
    fixed(json, hidden_act="gelu")
    classifies = "ViTForImageClassification" in (json.get("architectures") or ())
    return vit.Config(
        image=(*pair(json, "image_size"), json.get("num_channels", 3)),
        patch=pair(json, "patch_size"),
        layers=need(json, "num_hidden_layers"),
        heads=need(json, "num_attention_heads"),
        d=need(json, "hidden_size"),
        d_hidden=need(json, "intermediate_size"),
        # transformers writes the labels unless they are its two default ones.
        classes=len(json.get("id2label") or "01") if classifies else None,
        qkv_bias=json.get("qkv_bias", True),
        norm_eps=json.get("layer_norm_eps", 1e-12),
        dropout=json.get("hidden_dropout_prob", 0.0),
        attention_dropout=json.get("attention_probs_dropout_prob", 0.0),
    )


def json(config: vit.Config) -> dict[str, Any]:
    """The config.json of a net."""
    labels = {i: f"LABEL_{i}" for i in range(config.classes or 0)}
    head = {"id2label": {str(i): label for i, label in labels.items()}}
    head |= {"label2id": {label: i for i, label in labels.items()}}
    return {
        "model_type": "vit",
        "architectures": ["ViTModel" if config.classes is None else "ViTForImageClassification"],
        "image_size": list(config.image[:2]),
        "patch_size": list(config.patch),
        "num_channels": config.image[2],
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "hidden_size": config.d,
        "intermediate_size": config.d_hidden or 4 * config.d,
        "hidden_act": "gelu",
        "qkv_bias": config.qkv_bias,
        "layer_norm_eps": config.norm_eps,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        **(head if config.classes is not None else {}),
    }


def names(config: vit.Config) -> Names:
    """Params by the names of transformers' ViTForImageClassification, or ViTModel without its pooler."""
    model = "" if config.classes is None else "vit."
    patches = f"{model}embeddings.patch_embeddings.projection"
    block = model + "encoder.layer.{layer}."
    tree = {
        "patches": {
            "w": Tensor(f"{patches}.weight", "d c p q -> (p q c) d"),
            "b": Tensor(f"{patches}.bias"),
        },
        "cls": Tensor(f"{model}embeddings.cls_token", "1 1 d -> d"),
        "positions": {"w": Tensor(f"{model}embeddings.position_embeddings", "1 t d -> t d")},
        "blocks": {
            "norm1": norm(f"{block}layernorm_before"),
            "attention": {
                "q": heads(f"{block}attention.attention.query", bias=config.qkv_bias),
                "k": heads(f"{block}attention.attention.key", bias=config.qkv_bias),
                "v": heads(f"{block}attention.attention.value", bias=config.qkv_bias),
                "o": output(f"{block}attention.output.dense"),
            },
            "norm2": norm(f"{block}layernorm_after"),
            "up": linear(f"{block}intermediate.dense"),
            "down": linear(f"{block}output.dense"),
        },
        "norm": norm(f"{model}layernorm"),
    }
    (p, q), c = config.patch, config.image[2]
    return Names(
        tree | ({"head": linear("classifier")} if config.classes is not None else {}),
        sizes={"p": p, "q": q, "c": c},
        ignored=[r"(vit\.)?pooler\..*"],  # it has no place in the net
    )
