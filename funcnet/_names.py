"""Names that people type and funcnet does not have: the error says what to write instead."""

import difflib
import inspect
from collections.abc import Iterable
from types import ModuleType
from typing import Any, NoReturn

from funcnet import errors

# What torch.nn, Flax, Equinox, Haiku and Keras call what funcnet has, in lower case without "_".
_ELSEWHERE = {
    "avgpool": "fn.avg_pool",
    "avgpool2d": "fn.avg_pool",
    "bceloss": "fn.binary_cross_entropy",
    "bcewithlogitsloss": "fn.binary_cross_entropy",
    "checkpoint": "fn.train.Checkpoints, or jax.checkpoint",
    "convolution": "fn.conv",
    "crossentropy": "fn.cross_entropy",
    "crossentropyloss": "fn.cross_entropy",
    "convtranspose2d": "fn.conv_transpose",
    "dataloader": "fn.train.batches",
    "dense": "fn.linear",
    "embed": "fn.embedding",
    "fit": "fn.train.fit",
    "flatten": "x.reshape(x.shape[0], -1)",
    "grad": "jax.grad: funcnet's functions are differentiated by JAX",
    "jit": "jax.jit",
    "lazylinear": "fn.linear",
    "linearlayer": "fn.linear",
    "lstmcell": "fn.lstm",
    "grucell": "fn.gru",
    "maxpool2d": "fn.max_pool",
    "mha": "fn.multihead",
    "module": "a dict of params and a function of it: see fn.nets",
    "mseloss": "fn.mse",
    "multiheadattention": "fn.multihead",
    "multiheaddotproductattention": "fn.multihead",
    "nllloss": "fn.nll",
    "onehot": "jax.nn.one_hot",
    "optimizer": "optax; matrix optimizers are in fn.optim",
    "optimizers": "optax; matrix optimizers are in fn.optim",
    "scaleddotproductattention": "fn.attention",
    "selfattention": "fn.multihead",
    "sequential": "a function that calls one layer after the other",
    "softmaxcrossentropy": "fn.cross_entropy",
    "trainstate": "fn.train.init",
    "upsample": "fn.resize",
    "vmap": "jax.vmap",
}  # fmt: skip


class Namespace(ModuleType):
    """An operation's module, which people try to call: `fn.relu(x)`, `fn.linear(3, 4)`."""

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        name = f"fn.{self.__name__.rpartition('.')[2]}"
        calls = [f"{name}.{f}({_arguments(getattr(self, f))})" for f in ("init", "apply") if hasattr(self, f)]
        raise errors.DTypeError(
            f"{name} is not called itself: it is a namespace of functions.",
            path=name,
            expected=", then ".join(calls),
            hint=f"help({name}) shows all of them" if calls else None,
        )


def missing(name: str, known: Iterable[str]) -> AttributeError:
    """The error for `fn.name`: what it is called here, or the nearest name."""
    plain = name.replace("_", "").lower()
    kinds = {k.replace("_", "").lower(): f"fn.{k}" for k in known}
    for size in ("", "1d", "2d", "3d", "layer"):  # Conv2d, BatchNorm1d, DenseLayer
        stem = plain.removesuffix(size)
        if found := _ELSEWHERE.get(stem) or kinds.get(stem):
            return AttributeError(f"module 'funcnet' has no attribute {name!r}: here it is {found}")
    near = difflib.get_close_matches(plain, kinds, 1, 0.75)
    told = f": did you mean {kinds[near[0]]}?" if near else "; dir(funcnet) lists what it has"
    return AttributeError(f"module 'funcnet' has no attribute {name!r}{told}")


def _arguments(f: Any) -> str:
    """Its arguments without a default: `key, d_in, d_out`."""
    return ", ".join(
        f"{p.name}=..." if p.kind is p.KEYWORD_ONLY else f"{'*' * (p.kind is p.VAR_POSITIONAL)}{p.name}"
        for p in inspect.signature(f).parameters.values()
        if p.default is p.empty and p.kind is not p.VAR_KEYWORD
    )
