"""ViT: `nets.vit`."""

from collections.abc import Collection, Mapping
from typing import Any

from funcnet.hub.fields import (
    DEEPEST,
    architecture,
    divisor,
    fixed,
    flag,
    label_fields,
    labels,
    number,
    pair,
    size,
    wrong,
)
from funcnet.hub.names import Names, Tensor, heads, linear, norm, output
from funcnet.nets import vit

__all__ = ["NET", "config", "head", "json", "names"]

NET = vit


# Whether each class of transformers has a head.
_CLASSES = {"ViTModel": False, "ViTForImageClassification": True}


def head(json: Mapping[str, Any]) -> bool:
    """The head that transformers' class in a config.json has."""
    return architecture(json, _CLASSES, "ViTModel")


def config(json: Mapping[str, Any], tensors: Collection[str]) -> vit.Config:
    """The net of a config.json, with a pooler if there are `tensors` of one.

    Raises:
        StructureError: a field is missing.
        ValueRangeError: a field has a value that the net does not have.
    """
    fixed(json, hidden_act="gelu", pooler_act="tanh")
    if json.get("pooler_output_size"):
        fixed(json, pooler_output_size=json.get("hidden_size"))
    image, patch = pair(json, "image_size"), pair(json, "patch_size")
    if any(side % part for side, part in zip(image, patch, strict=True)):
        raise wrong(json, "patch_size", f"divisors of {image[0]} and {image[1]}     (image_size)")
    return vit.Config(
        image=(*image, size(json, "num_channels", 3)),
        patch=patch,
        layers=size(json, "num_hidden_layers", most=DEEPEST),
        heads=divisor(json, "num_attention_heads", "hidden_size"),
        d=size(json, "hidden_size"),
        d_hidden=size(json, "intermediate_size"),
        classes=labels(json) if head(json) else None,
        qkv_bias=flag(json, "qkv_bias", True),
        norm_eps=number(json, "layer_norm_eps", 1e-12),
        dropout=number(json, "hidden_dropout_prob", 0.0, most=1),
        attention_dropout=number(json, "attention_probs_dropout_prob", 0.0, most=1),
        pooler=any(name.endswith("pooler.dense.weight") for name in tensors),
    )


def json(config: vit.Config) -> dict[str, Any]:
    """The config.json of a net."""
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
        **(label_fields(config.classes, always=True) if config.classes is not None else {}),
    }


def names(config: vit.Config) -> Names:
    """Params by the names of transformers' ViTForImageClassification or ViTModel."""
    model = "" if config.classes is None else "vit."
    patches = f"{model}embeddings.patch_embeddings.projection"
    block = model + "encoder.layer.{layer}."
    tree: dict[str, Any] = {
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
    if config.classes is not None:
        tree["head"] = linear("classifier")
    if config.pooler:
        tree["pooler"] = linear(f"{model}pooler.dense")
    (p, q), c = config.patch, config.image[2]
    return Names(
        tree,
        sizes={"p": p, "q": q, "c": c},
        renamed=[(r"^(vit\.)?(embeddings|encoder|layernorm|pooler)\.", rf"{model}\2.")],
    )
