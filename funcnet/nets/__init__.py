"""Models: a frozen `Config`, `init(key, config)`, `apply(params, x, config)`, `specs(config)`."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from funcnet.nets import (
        convnet,
        crnn,
        encoder,
        generate,
        mamba,
        maps,
        mlp,
        recurrent,
        resnet,
        roles,
        stack,
        transformer,
        vad,
        vit,
    )
    from funcnet.nets.roles import matrices

__all__ = [
    "convnet", "crnn", "encoder", "generate", "mamba", "maps", "matrices", "mlp", "recurrent",
    "resnet", "roles", "stack", "transformer", "vad", "vit",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "matrices":
        return importlib.import_module("funcnet.nets.roles").matrices
    if name in __all__:
        return importlib.import_module(f"funcnet.nets.{name}")
    raise AttributeError(f"module 'funcnet.nets' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
