"""What the nets of attention blocks share: the specs of a block."""

from collections.abc import Callable
from typing import Any

from funcnet.ops.attention import multihead
from funcnet.ops.dense import linear, moe
from funcnet.ops.norm import layer_norm

__all__ = ["specs"]

_MAPS = {"up": "d d_hidden", "gate": "d d_hidden", "down": "d_hidden d"}


def specs(block: dict[str, Any], norm: Callable[[Any], Any] = layer_norm.specs) -> dict[str, Any]:
    """Those of one layer: attention, the maps of its mlp or its experts, and both norms."""
    facts = {name: linear.specs(block[name], axes=axes) for name, axes in _MAPS.items() if name in block}
    if "moe" in block:
        facts["moe"] = moe.specs(block["moe"])
    facts |= {name: norm(block[name]) for name in ("norm1", "norm2")}
    return facts | {"attention": multihead.specs(block["attention"])}
