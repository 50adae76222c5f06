"""Safetensors files of other programs: names and arrays, of one file or of a checkpoint in several.

Only the format is trusted: no pickle is ever opened, no text in a file is used as code, and a file that an
index names lies in the index's own folder. Such files have no checksums, so damage to their numbers cannot be
seen; damage to anything else is a `FileFormatError` that says what.
"""

import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from funcnet import _safetensors
from funcnet._safetensors import parse_json, path_text, read_header, read_rows, refusal
from funcnet.errors import DTypeError, FileFormatError, ValueRangeError, describe

__all__ = ["INDEX", "WHOLE", "read_json", "read_safetensors", "write_safetensors"]

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file, or of a folder that holds a checkpoint, by name.

    Args:
        path: a file; or a folder with model.safetensors, or with model.safetensors.index.json and the files
            that this lists.

    Returns:
        Names to NumPy arrays, bfloat16 and float8 by ml_dtypes. They are read-only views of the file, mapped
        into memory: a tensor is read when it is used, and one that is not used costs nothing.

    Raises:
        FileFormatError: a file is damaged, of another format, or not what the index says; names the tensor.
        OSError: a file is missing or cannot be read.
    """
    source = path_text("load", "path", path)
    if not os.path.isdir(source):
        return _read_file(source)
    whole, index = os.path.join(source, WHOLE), os.path.join(source, INDEX)
    if os.path.exists(whole):
        return _read_file(whole)
    if os.path.exists(index):
        return _read_shards(source, index)
    pickled = sorted(name for name in os.listdir(source) if name.endswith(_PICKLED))
    raise refusal(
        source,
        "no safetensors checkpoint is here.",
        expected=f"{WHOLE}, or {INDEX}",
        actual=", ".join(pickled) if pickled else "neither",
        hint=_safetensors.CONVERT if pickled else None,
    )


def _read_file(source: str) -> dict[str, np.ndarray]:
    with _safetensors.open_file(source) as file:
        size = os.fstat(file.fileno()).st_size
        head, rows, _ = read_header(file, source)
        checked = read_rows(rows, len(head), size, source)
        data = np.memmap(file, np.uint8, "r", shape=(size,)).view(np.ndarray)
    tensors = {
        name: data[row.begin : row.end].view(row.dtype).reshape(row.shape) for name, row in checked.items()
    }
    for name, tensor in tensors.items():
        if tensor.dtype == np.bool_ and (tensor.view(np.uint8) > 1).any():
            raise refusal(source, f"tensor {name!r}: a boolean is neither 0 nor 1.", name)
    return tensors


def _read_shards(folder: str, index: str) -> dict[str, np.ndarray]:
    """The tensors of all files that `index` lists; each must hold those that it says, and no others."""
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(file, str) for file in listed.values()):
        raise refusal(index, "`weight_map` does not map names to files.")
    tensors: dict[str, np.ndarray] = {}
    problems: list[str] = []
    for file in sorted(set(listed.values())):
        if file != os.path.basename(file) or file in ("", ".", ".."):
            raise refusal(index, f"{file!r} is not the name of a file in this folder.")
        shard = _read_file(os.path.join(folder, file))
        named = {name for name, where in listed.items() if where == file}
        problems += [f"missing     {name!r}: not in {file}" for name in sorted(named - shard.keys())]
        problems += [f"unexpected  {name!r}: in {file}" for name in sorted(shard.keys() - named)]
        tensors |= shard
    if problems:
        text = "\n".join(
            [f"load: {index}: the files do not hold what it lists:", *(f"  {p}" for p in problems)]
        )
        raise FileFormatError(text, path=index)
    return tensors


def read_json(path: str) -> dict[str, Any]:
    """The JSON object in a file."""
    with _safetensors.open_file(path) as file:
        text = file.read()
    if not text.lstrip().startswith(b"{"):
        _safetensors.refuse_foreign(text[:32], path)
    value = parse_json(text, "it", path)
    if not isinstance(value, dict):
        raise refusal(path, "this is not a JSON object.")
    return value


def write_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> None:
    """Write arrays by name to one safetensors file, all of it or nothing.

    Args:
        path: the file's name; its folder must exist.
        tensors: names to JAX or NumPy arrays, stored exactly as they are.
        metadata: texts for the file's header; transformers wants {"format": "pt"}.

    Raises:
        DTypeError: an array has elements that safetensors does not have, or is not a plain array; a name or
            a text of metadata is not a str.
        ValueRangeError: a name is "__metadata__", which is safetensors' own, or not valid Unicode.
        OSError: the disk is full, the folder is missing or not writable, ...
    """
    target = path_text("save", "path", path)
    metadata = {} if metadata is None else metadata
    for argument, texts in (("tensors", tensors), ("metadata", metadata)):
        if not isinstance(texts, Mapping):
            raise DTypeError(
                f"save: {target}: {argument} is not a dict.",
                path=argument,
                expected=f"{argument}: a dict",
                actual=f"{argument}: {describe(texts)}",
            )
    for name in tensors:
        _check_text(target, name, is_name=True)
    for text in (part for item in metadata.items() for part in item):
        _check_text(target, text, is_name=False)
    for name, array in tensors.items():
        if what := _safetensors.plain(array):
            raise DTypeError(
                f"save: {target}: {name!r} is not a plain array.",
                path=name,
                expected=f"{name}: a JAX or NumPy array",
                actual=f"{name}: {what}",
            )
        if array.dtype.name not in _safetensors.CODE_OF:
            raise DTypeError(
                f"save: {target}: safetensors has no elements like those of {name!r}.",
                path=name,
                expected=", ".join(_safetensors.CODE_OF),
                actual=describe(array),
            )
    arrays = {name: _safetensors.contiguous(array) for name, array in jax.device_get(dict(tensors)).items()}
    rows, data = _safetensors.layout(arrays)
    header = _safetensors.make_header(target, rows, metadata)
    _safetensors.replace_file(target, [header, *data.values()])


def _check_text(target: str, text: Any, is_name: bool) -> None:
    """Refuse a name or a text that a header cannot hold."""
    what = "a tensor's name" if is_name else "metadata"
    problem = "is not a str" if not isinstance(text, str) else None
    if problem is None and is_name and text == "__metadata__":
        problem = "is safetensors' own name for the texts beside the tensors"
    elif problem is None and not _safetensors.is_text(text):
        problem = "is not valid Unicode"
    if problem is not None:
        raise (ValueRangeError if isinstance(text, str) else DTypeError)(
            f"save: {target}: {what}, {text!r:.80}, {problem}.",
            path="tensors" if is_name else "metadata",
            expected="names and texts: str",
            actual=describe(text),
        )
