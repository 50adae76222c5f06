"""A model's folder, as transformers keeps it: config.json and model.safetensors, or several such files."""

import dataclasses
import errno
import json
import os
import re
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnet._safetensors import path_text, replace_file
from funcnet.errors import DTypeError, ValueRangeError, describe
from funcnet.hub import bert, gpt2, llama, mamba, vit
from funcnet.hub.fields import fixed, ids, said_of
from funcnet.hub.files import INDEX, WHOLE, read_json, read_safetensors, write_safetensors
from funcnet.hub.names import from_tensors, to_tensors
from funcnet.nets import encoder, transformer
from funcnet.nets import mamba as mamba_net
from funcnet.nets import vit as vit_net

__all__ = ["config", "load", "save"]

# By the `model_type` of config.json.
_FAMILIES = {
    "bert": bert, "gpt2": gpt2, "llama": llama, "mamba": mamba, "qwen2": llama, "qwen3": llama, "vit": vit,
}  # fmt: skip

_CONFIG, _GENERATION = "config.json", "generation_config.json"
_SHARD = r"model-\d+-of-\d+\.safetensors"

# Fields of a Config that say how a net runs, not what it computes; config.json has no place for them.
_RUNNING = ("unroll", "remat", "dtype", "files", "chunk")


def load(folder: str | os.PathLike[str]) -> tuple[Any, Any]:
    """The params and the Config of a pretrained model.

    Args:
        folder: with config.json, and model.safetensors or the files that model.safetensors.index.json lists;
            perhaps with generation_config.json.

    Returns:
        ``(params, config)``, for the net of config.json's model_type: `nets.transformer` (gpt2, llama, qwen2,
        qwen3), `nets.mamba`, `nets.encoder` (bert) or `nets.vit`. Params are JAX arrays in the file's own
        dtype. config.head is that of transformers' class in config.json; config.stop of a decoder has the ids
        of the tokens that end a text; config.files has the contents of the two JSON files, for `save` and for
        you.

    Raises:
        StructureError: config.json lacks a field; or the tensors do not fit it: the text lists all that are
            missing, unexpected and wrongly shaped.
        ValueRangeError: config.json describes a model that funcnet does not have, or a field makes no sense;
            names the field.
        FileFormatError: a file is damaged, of another format, or pickled.
        DTypeError: the file holds float64 and JAX's 64-bit mode is off.
        OSError: a file is missing or cannot be read.
    """
    source = path_text("load", "folder", folder)
    if not os.path.isdir(source):
        command = "hf download OWNER/NAME --local-dir FOLDER"
        told = f"no such folder, and hub.load downloads nothing: `{command}` does"
        raise FileNotFoundError(errno.ENOENT, told, source)
    files = {_CONFIG: read_json(os.path.join(source, _CONFIG))}
    if os.path.exists(generation := os.path.join(source, _GENERATION)):
        files[_GENERATION] = read_json(generation)
    tensors = read_safetensors(source)
    family, config = _read(files, tensors, f"load: {os.path.join(source, '')}")
    params = from_tensors(family.names(config), _shapes(family, config), tensors, source)
    return jax.tree.map(lambda leaf: _on_device(leaf, source), params), config


def config(path: str | os.PathLike[str]) -> Any:
    """The Config that a pretrained model's config.json describes; no weights are needed.

    Args:
        path: the file, or its folder.

    Raises:
        StructureError, ValueRangeError, FileFormatError, OSError: as `load`.
    """
    source = path_text("config", "path", path)
    source = os.path.join(source, _CONFIG) if os.path.isdir(source) else source
    return _read({_CONFIG: read_json(source)}, (), f"config: {os.path.join(os.path.dirname(source), '')}")[1]


def _read(files: Mapping[str, Any], tensors: Collection[str], where: str) -> tuple[Any, Any]:
    """The family and the Config that the JSON files and the names of the tensors describe."""
    fields, generation, stop = files[_CONFIG], files.get(_GENERATION, {}), "eos_token_id"
    with said_of(f"{where}{_GENERATION}"):
        ids(generation, stop, None, 0)
    if generation.get(stop) is not None:  # it goes before that of config.json
        fields = {**fields, stop: generation[stop]}
    with said_of(f"{where}{_CONFIG}"):
        family = _family_of(fields)
        fixed(fields, is_encoder_decoder=False, quantization_config=None, per_layer_config=None)
        return family, dataclasses.replace(family.config(fields, tensors), files=files)


def _family_of(fields: Mapping[str, Any]) -> Any:
    kind = fields.get("model_type")
    if isinstance(kind, str) and kind in _FAMILIES:
        return _FAMILIES[kind]
    raise ValueRangeError(
        "funcnet has no net for this model.",
        path="model_type",
        expected=f"model_type: {', '.join(map(repr, _FAMILIES))}",
        actual=f"model_type: {kind!r:.80}",
    )


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

    What config.json and generation_config.json held when the model was loaded (config.files) is written
    again, but for what has changed since. The tokenizer's files are not touched.

    Args:
        folder: made if it is not there. What it has of a model's config.json, generation_config.json and
            model.safetensors, whole or in pieces with an index, is replaced.
        params: of the net that config describes.
        config: a Config of `nets.transformer`, `nets.mamba`, `nets.encoder` or `nets.vit`.

    Raises:
        ValueRangeError: config describes a model that transformers does not have; names the fields.
        StructureError: params are not those of config.
        DTypeError: safetensors does not have the dtype of a leaf.
        OSError: the disk is full, the folder is not writable, ...
    """
    target = path_text("save", "folder", folder)
    family = _family(config)
    names = family.names(config)
    files = _files(family, config, {tensor.name for tensor in jax.tree.leaves(names.tree)})
    tensors = to_tensors(names, _shapes(family, config), params)
    _set_dtype(files[_CONFIG], {tensor.dtype.name for tensor in tensors.values()}, new=not config.files)
    texts = {name: _text(name, fields) for name, fields in files.items()}
    os.makedirs(target, exist_ok=True)
    write_safetensors(os.path.join(target, WHOLE), tensors, {"format": "pt"})
    for name, text in texts.items():
        replace_file(os.path.join(target, name), [text])
    for name in os.listdir(target):  # last: whoever reads the folder takes the whole file before the pieces
        if name == INDEX or re.fullmatch(_SHARD, name) or (name == _GENERATION and name not in files):
            os.remove(os.path.join(target, name))


def _files(family: Any, config: Any, tensors: Collection[str]) -> dict[str, dict[str, Any]]:
    """The JSON files of a model: as they were when it was loaded, but for what has changed since."""
    old, new, loaded_as, before = config.files, family.json(config), None, {}
    known = isinstance(old, Mapping) and old.keys() <= {_CONFIG, _GENERATION}
    if not known or not all(isinstance(fields, Mapping) for fields in old.values()):
        raise _no_files(f"{old!r:.80}")
    if _CONFIG in old:
        loaded_as, was = _read(old, tensors, "save: config.files: ")
        before = loaded_as.json(was)
    changed = {name: value for name, value in new.items() if name not in before or before[name] != value}
    # A class that claimed a head which was not there, or had one that it did not claim.
    if loaded_as and loaded_as.head(old[_CONFIG]) != family.head(new):
        changed["architectures"] = new["architectures"]
    files = {_CONFIG: {**old.get(_CONFIG, {}), **changed}}
    if _GENERATION in old:
        stop = "eos_token_id"
        files[_GENERATION] = {**old[_GENERATION], **({stop: changed[stop]} if stop in changed else {})}
    _compare(config, _read(files, tensors, "save: ")[1], new["model_type"])
    return files


def _text(name: str, fields: Mapping[str, Any]) -> bytes:
    try:
        return (json.dumps(fields, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise _no_files(f"{name}: {error}") from error


def _no_files(actual: str) -> DTypeError:
    return DTypeError(
        "save: config.files is not what JSON files hold.",
        path="config.files",
        expected=f"{_CONFIG!r} and {_GENERATION!r} with their fields, as from load; or nothing",
        actual=actual,
    )


def _set_dtype(fields: dict[str, Any], dtypes: set[str], *, new: bool) -> None:
    """Correct what config.json says of the tensors' dtype; torch_dtype is the field's earlier name."""
    stated = fields.get("dtype", fields.get("torch_dtype"))
    if stated not in dtypes and (new or stated is not None):
        fields.pop("torch_dtype", None)
        fields["dtype"] = dtypes.pop() if len(dtypes) == 1 else None


def _compare(config: Any, again: Any, kind: str) -> None:
    """Refuse a config of which `again` is what its files say."""
    wanted = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name not in _RUNNING}
    # None stands for a number that follows from others, which the files then have.
    lost = [name for name, value in wanted.items() if value is not None and value != getattr(again, name)]
    if lost:
        raise ValueRangeError(
            f"save: transformers has no {kind} with such a {', '.join(lost)}.",
            path=lost[0],
            expected=", ".join(f"{name} = {getattr(again, name)!r}" for name in lost),
            actual=", ".join(f"{name} = {wanted[name]!r}" for name in lost),
        )


def _family(config: Any) -> Any:
    match config:
        case encoder.Config():
            return bert
        case vit_net.Config():
            return vit
        case mamba_net.Config():
            return mamba
        case transformer.Config(positions="learned"):
            return gpt2
        case transformer.Config():
            return llama
    raise DTypeError(
        "save: config is not that of a net which transformers has.",
        path="config",
        expected="config: transformer.Config, mamba.Config, encoder.Config or vit.Config",
        actual=f"config: {describe(config)}",
    )
