"""Neural networks as plain functions on plain pytrees, every gradient formula proven.

    import funcnet as fn

    params = fn.linear.init(key, 64, 10)
    y = fn.linear.apply(params, x)

Names are imported when they are first used; importing funcnet itself only sets the XLA guard.
"""

import importlib
from typing import TYPE_CHECKING, Any

from funcnet import backend as _backend

if TYPE_CHECKING:
    from funcnet import (
        analysis,
        backend,
        errors,
        hub,
        linalg,
        nets,
        ops,
        optim,
        recordings,
        rules,
        shard,
        spec,
        store,
        taps,
        tasks,
        train,
        verifier,
    )
    from funcnet.analysis import lowrank, xray
    from funcnet.linalg import pca, spectral_norm, weight_norm
    from funcnet.nets.generate import generate
    from funcnet.nonfinite import find_nan
    from funcnet.ops.attention import alibi, attention, linear_attention, multihead, rope
    from funcnet.ops.conv import avg_pool, conv, conv_transpose, fold, lp_pool, max_pool, patches
    from funcnet.ops.dense import bilinear, embedding, linear, matmul, moe
    from funcnet.ops.elementwise import prelu
    from funcnet.ops.elementwise.activations import (
        celu,
        elu,
        geglu,
        gelu,
        glu,
        hard_shrink,
        hard_sigmoid,
        hard_silu,
        hard_tanh,
        leaky_relu,
        log_sigmoid,
        mish,
        quick_gelu,
        relu,
        relu6,
        selu,
        sigmoid,
        silu,
        soft_shrink,
        softplus,
        softsign,
        swiglu,
        tanh,
        tanh_shrink,
        threshold,
    )
    from funcnet.ops.grid import (
        adaptive_avg_pool,
        adaptive_max_pool,
        grid_sample,
        pad,
        pixel_shuffle,
        pixel_unshuffle,
        resize,
    )
    from funcnet.ops.loss import (
        binary_cross_entropy,
        contrastive,
        cross_entropy,
        ctc,
        linear_cross_entropy,
        mse,
        nll,
    )
    from funcnet.ops.loss.comparisons import cosine, dice, focal, hinge, huber, kl_div, smooth_l1, triplet
    from funcnet.ops.norm import (
        batch_norm,
        group_norm,
        instance_norm,
        l2_norm,
        layer_norm,
        log_softmax,
        logsumexp,
        rms_norm,
        softmax,
    )
    from funcnet.ops.random import dropout
    from funcnet.ops.random.regularizers import drop_path, embedding_dropout, spatial_dropout
    from funcnet.ops.recurrent import gru, linear_recurrence, lstm, rnn
    from funcnet.ops.sound import (
        deltas,
        istft,
        lfilter,
        log_mel,
        magnitude,
        mel,
        mfcc,
        power,
        pre_emphasis,
        stft,
    )
    from funcnet.rules import autodiff
    from funcnet.store import load, save
    from funcnet.taps import tap
    from funcnet.verifier import verify, verify_batching, verify_jvp, verify_model, verify_same, verify_torch
    from funcnet.verifier.formulas.derive import derive

__version__ = "0.1.0"

_FAMILIES = {
    "attention": ("alibi", "attention", "linear_attention", "multihead", "rope"),
    "conv": ("avg_pool", "conv", "conv_transpose", "fold", "lp_pool", "max_pool", "patches"),
    "dense": ("bilinear", "embedding", "linear", "matmul", "moe"),
    "elementwise": ("prelu",),
    "grid": (
        "adaptive_avg_pool", "adaptive_max_pool", "grid_sample", "pad", "pixel_shuffle", "pixel_unshuffle",
        "resize",
    ),
    "loss": (
        "binary_cross_entropy", "contrastive", "cross_entropy", "ctc", "linear_cross_entropy", "mse", "nll",
    ),
    "norm": (
        "batch_norm", "group_norm", "instance_norm", "l2_norm", "layer_norm", "log_softmax", "logsumexp",
        "rms_norm", "softmax",
    ),
    "random": ("dropout",),
    "recurrent": ("gru", "linear_recurrence", "lstm", "rnn"),
    "sound": (
        "deltas", "istft", "lfilter", "log_mel", "magnitude", "mel", "mfcc", "power", "pre_emphasis", "stft",
    ),
}  # fmt: skip
# Files that hold several operations each, as objects.
_OBJECTS = {
    "elementwise.activations": (
        "celu", "elu", "geglu", "gelu", "glu", "hard_shrink", "hard_sigmoid", "hard_silu", "hard_tanh",
        "leaky_relu", "log_sigmoid", "mish", "quick_gelu", "relu", "relu6", "selu", "sigmoid", "silu",
        "soft_shrink", "softplus", "softsign", "swiglu", "tanh", "tanh_shrink", "threshold",
    ),
    "random.regularizers": ("drop_path", "embedding_dropout", "spatial_dropout"),
    "loss.comparisons": (
        "cosine", "dice", "focal", "hinge", "huber", "kl_div", "smooth_l1", "triplet",
    ),
}  # fmt: skip
_FILES = {name: file for file, names in _OBJECTS.items() for name in names}
_OPERATIONS = {name: family for family, names in _FAMILIES.items() for name in names}
_OPERATIONS |= {name: file.partition(".")[0] for name, file in _FILES.items()}
_PACKAGES = (
    "analysis", "backend", "errors", "hub", "linalg", "nets", "ops", "optim", "recordings", "rules", "shard",
    "spec", "store", "taps", "tasks", "train", "verifier",
)  # fmt: skip
_FUNCTIONS = {
    "autodiff": "rules",
    "derive": "verifier.formulas.derive",
    "find_nan": "nonfinite",
    "generate": "nets.generate",
    "load": "store",
    "lowrank": "analysis",
    "pca": "linalg",
    "save": "store",
    "spectral_norm": "linalg",
    "tap": "taps",
    "verify": "verifier",
    "verify_batching": "verifier",
    "verify_jvp": "verifier",
    "verify_model": "verifier",
    "verify_same": "verifier",
    "verify_torch": "verifier",
    "weight_norm": "linalg",
    "xray": "analysis",
}
__all__ = [*_OPERATIONS, *_PACKAGES, *_FUNCTIONS]  # pyright: ignore[reportUnsupportedDunderAll]

_backend.guard()


def __getattr__(name: str) -> Any:
    if name in _FILES:
        value = getattr(importlib.import_module(f"funcnet.ops.{_FILES[name]}"), name)
    elif name in _OPERATIONS:
        value = importlib.import_module(f"funcnet.ops.{_OPERATIONS[name]}.{name}")
    elif name in _PACKAGES:
        value = importlib.import_module(f"funcnet.{name}")
    elif name in _FUNCTIONS:
        value = getattr(importlib.import_module(f"funcnet.{_FUNCTIONS[name]}"), name)
    else:
        if name.startswith("__"):  # asked by inspect, doctest and notebooks
            raise AttributeError(f"module 'funcnet' has no attribute {name!r}")
        raise importlib.import_module("funcnet._names").missing(name, __all__)
    if name in _OPERATIONS:
        value.__class__ = importlib.import_module("funcnet._names").Namespace
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
