"""A model's folder, as transformers keeps it: config.json and model.safetensors, or several such files."""

import dataclasses
import json
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnet._safetensors import replace_file
from funcnet.errors import DTypeError, ValueRangeError, describe
from funcnet.hub import bert, gpt2, llama, vit
from funcnet.hub.files import read_json, read_safetensors, write_safetensors
from funcnet.hub.names import from_tensors, to_tensors
from funcnet.nets import encoder, transformer
from funcnet.nets import vit as vit_net

__all__ = ["load", "save"]

# By the `model_type` of config.json.
_FAMILIES = {"bert": bert, "gpt2": gpt2, "llama": llama, "qwen2": llama, "qwen3": llama, "vit": vit}

# Fields of a Config that say how a net runs, not what it computes; config.json has no place for them.
_RUNNING = ("unroll", "remat", "dtype")


def load(folder: str | os.PathLike[str]) -> tuple[Any, Any]:
    """The params and the Config of a pretrained model.

    Args:
        folder: with config.json, and model.safetensors or the files that model.safetensors.index.json lists.

    Returns:
        ``(params, config)``, for the net of config.json's model_type: `nets.transformer` (gpt2, llama, qwen2,
        qwen3), `nets.encoder` (bert) or `nets.vit` (vit). Params are JAX arrays in the file's own dtype.

    Raises:
        StructureError: config.json lacks a field; or the tensors do not fit it: the text lists all that are
            missing, unexpected and wrongly shaped.
        ValueRangeError: config.json describes a model that funcnet does not have; names the field.
        FileFormatError: a file is damaged, of another format, or pickled.
        DTypeError: the file holds float64 and JAX's 64-bit mode is off.
        OSError: a file is missing or cannot be read.
    """
    source = os.fspath(folder)
    fields = read_json(os.path.join(source, "config.json"))
    family = _FAMILIES.get(fields.get("model_type", ""))
    if family is None:
        raise ValueRangeError(
            f"load: {source}: funcnet has no net for this model.",
            path="model_type",
            expected=f"model_type: {', '.join(map(repr, _FAMILIES))}     (config.json)",
            actual=f"model_type: {fields.get('model_type')!r}",
        )
    config = family.config(fields)
    tensors = read_safetensors(source)
    params = from_tensors(family.names(config), _shapes(family, config), tensors, source)
    return jax.tree.map(lambda leaf: _on_device(leaf, source), params), config


def _shapes(family: Any, config: Any) -> Any:
    return jax.eval_shape(lambda: family.NET.init(jax.random.key(0), config))


def _on_device(leaf: np.ndarray, source: str) -> jax.Array:
    if jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype:
        raise DTypeError(
            f"load: {source} holds float64, and JAX's 64-bit mode is off.",
            path=source,
            actual=describe(leaf),
            hint="load it within jax.enable_x64(True).",
        )
    return jnp.array(leaf)  # a copy: the file may be replaced later


def save(folder: str | os.PathLike[str], params: Any, config: Any) -> None:
    """Write params and config so that transformers, and `load`, can read them.

    Args:
        folder: made if it is not there; config.json and model.safetensors in it are replaced.
        params: of the net that config describes.
        config: a Config of `nets.transformer`, `nets.encoder` or `nets.vit`.

    Raises:
        ValueRangeError: config describes a model that transformers does not have; names the fields.
        StructureError: params are not those of config.
        DTypeError: safetensors does not have the dtype of a leaf.
        OSError: the disk is full, the folder is not writable, ...
    """
    family = _family(config)
    fields = family.json(config)
    again = family.config(fields)
    wanted = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name not in _RUNNING}
    # None stands for a number that follows from others, which fields then have.
    lost = [name for name, value in wanted.items() if value is not None and value != getattr(again, name)]
    if lost:
        raise ValueRangeError(
            f"save: transformers has no {fields['model_type']} with such a {', '.join(lost)}.",
            path=lost[0],
            expected=", ".join(f"{name} = {getattr(again, name)!r}" for name in lost),
            actual=", ".join(f"{name} = {wanted[name]!r}" for name in lost),
        )
    tensors = to_tensors(family.names(config), _shapes(family, config), params)
    dtypes = {leaf.dtype.name for leaf in tensors.values()}
    fields |= {"dtype": dtypes.pop()} if len(dtypes) == 1 else {}
    os.makedirs(folder, exist_ok=True)
    write_safetensors(os.path.join(folder, "model.safetensors"), tensors, {"format": "pt"})
    text = json.dumps(fields, indent=2, sort_keys=True) + "\n"
    replace_file(os.path.join(folder, "config.json"), [text.encode()])


def _family(config: Any) -> Any:
    match config:
        case encoder.Config():
            return bert
        case vit_net.Config():
            return vit
        case transformer.Config(positions="learned"):
            return gpt2
        case transformer.Config():
            return llama
    raise DTypeError(
        "save: config is not that of a net which transformers has.",
        path="config",
        expected="config: transformer.Config, encoder.Config or vit.Config",
        actual=f"config: {describe(config)}",
    )
