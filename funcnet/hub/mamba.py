"""Mamba: `nets.mamba`, as transformers keeps it."""

from collections.abc import Collection, Mapping
from typing import Any

from funcnet.hub.fields import DEEPEST, architecture, chosen, flag, id_field, ids, number, size
from funcnet.hub.names import Names, Tensor, linear, norm
from funcnet.nets import mamba

__all__ = ["NET", "config", "head", "json", "names"]

NET = mamba

_CLASSES = {"MambaForCausalLM": "next", "MambaModel": None}


def head(json: Mapping[str, Any]) -> Any:
    """The head that transformers' class in a config.json has."""
    return architecture(json, _CLASSES, "MambaForCausalLM")


def config(json: Mapping[str, Any], tensors: Collection[str]) -> mamba.Config:
    """The net of a config.json.

    Raises:
        StructureError: a field is missing.
        ValueRangeError: a field has a value that the net does not have.
    """
    del tensors  # config.json says it all
    chosen(json, "hidden_act", {"silu": "silu", "swish": "silu"}, "silu")
    d, rank = size(json, "hidden_size"), json.get("time_step_rank", "auto")
    return mamba.Config(
        vocabulary=size(json, "vocab_size"),
        layers=size(json, "num_hidden_layers", most=DEEPEST),
        d=d,
        expand=size(json, "expand", 2),
        state=size(json, "state_size", 16),
        kernel=size(json, "conv_kernel", 4),
        rank=-(-d // 16) if rank == "auto" else size(json, "time_step_rank"),
        bias=flag(json, "use_bias", False),
        conv_bias=flag(json, "use_conv_bias", True),
        norm_eps=number(json, "layer_norm_epsilon", 1e-5),
        tied=flag(json, "tie_word_embeddings", True),
        head=head(json),
        stop=ids(json, "eos_token_id", 0, size(json, "vocab_size")),
    )


def json(config: mamba.Config) -> dict[str, Any]:
    """The config.json of a net."""
    return {
        "model_type": "mamba",
        "architectures": [name for name, kind in _CLASSES.items() if kind == config.head],
        "vocab_size": config.vocabulary,
        "num_hidden_layers": config.layers,
        "hidden_size": config.d,
        "expand": config.expand,
        "intermediate_size": config.expand * config.d,
        "state_size": config.state,
        "conv_kernel": config.kernel,
        "time_step_rank": -(-config.d // 16) if config.rank is None else config.rank,
        "use_bias": config.bias,
        "use_conv_bias": config.conv_bias,
        "hidden_act": "silu",
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "eos_token_id": id_field(config.stop),
    }


def names(config: mamba.Config) -> Names:
    """Params by the names of transformers' classes."""
    model = "" if config.head is None else "backbone."
    block = model + "layers.{layer}."
    mixer = block + "mixer."
    convolution = {"w": Tensor(f"{mixer}conv1d.weight", "c 1 k -> k 1 c")}
    if config.conv_bias:
        convolution["b"] = Tensor(f"{mixer}conv1d.bias")
    tokens, logits = f"{model}embeddings.weight", "lm_head.weight"
    tree: dict[str, Any] = {
        "tokens": {"w": Tensor(tokens)},
        "blocks": {
            "norm": norm(f"{block}norm", bias=False),
            "in": linear(f"{mixer}in_proj", bias=config.bias),
            "conv": convolution,
            "select": linear(f"{mixer}x_proj", bias=False),
            "step": linear(f"{mixer}dt_proj"),
            "scan": {"a": Tensor(f"{mixer}A_log"), "skip": Tensor(f"{mixer}D")},
            "out": linear(f"{mixer}out_proj", bias=config.bias),
        },
        "norm": norm(f"{model}norm_f", bias=False),
    }
    if config.head == "next" and not config.tied:
        tree["head"] = {"w": Tensor(logits, "v d -> d v")}
    return Names(
        tree,
        renamed=[
            (r"^(backbone\.)?(embedding|embeddings|layers|norm_f)\.", rf"{model}\2."),
            (r"embedding\.", "embeddings."),
        ],
        tied={logits: tokens} if config.tied else {},
    )
