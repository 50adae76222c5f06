"""The weights in an ONNX file, by name, read without the package onnx.

The file is a protocol buffer: a message is a row of numbered fields, each a number or bytes, which may be a
message again. A model has a graph (field 7); a graph has initializers (5), which are tensors with names, and
nodes (1); a node has attributes (5), which may be tensors or graphs, and its results have names (2). Nothing
else is looked at, and nothing is run.
Source: onnx.proto of ONNX, and "Encoding" of Protocol Buffers' documentation.
"""

from collections.abc import Iterator
from os import PathLike

import numpy as np

from funcnet._safetensors import open_file, path_text, refusal

__all__ = ["tensors"]

_FLOAT = 1  # TensorProto.DataType
_DEEPEST = 16  # graphs within graphs


def tensors(path: str | PathLike[str]) -> dict[str, np.ndarray]:
    """The float32 tensors of an ONNX file: initializers by their names, constants by those of their results.

    Those of graphs within the graph, as of the branches of an If, are among them; other types are left out.

    Raises:
        FileFormatError: the file is no protocol buffer, or damaged.
        OSError: the file is missing or cannot be read.
    """
    source = path_text("hub.onnx.tensors", "path", path)
    with open_file(source) as file:
        content = memoryview(file.read())
    try:
        graphs = [_bytes(value) for number, value in _fields(content) if number == 7]
        named = [pair for graph in graphs for pair in _named(graph)]
        arrays = {name: _array(tensor) for name, tensor in named}
    except (ValueError, IndexError, TypeError, OverflowError) as error:
        raise refusal(source, "this is no ONNX file, or it is damaged.") from error
    return {name: array for name, array in arrays.items() if array is not None}


def _named(graph: memoryview, depth: int = 0) -> Iterator[tuple[str, memoryview]]:
    """Names and TensorProtos of a graph, and of those in it."""
    if depth > _DEEPEST:
        raise ValueError
    for number, value in _fields(graph):
        if number == 5:  # GraphProto.initializer; field 8 is TensorProto.name
            names = [_bytes(v) for n, v in _fields(_bytes(value)) if n == 8]
            yield bytes(names[-1] if names else b"").decode(), _bytes(value)
        elif number == 1:  # GraphProto.node; field 2 is NodeProto.output
            node = list(_fields(_bytes(value)))
            name = next((bytes(_bytes(v)).decode() for n, v in node if n == 2), "")
            for attribute in (_bytes(v) for n, v in node if n == 5):
                for n, v in _fields(attribute):
                    if n == 5:  # AttributeProto.t
                        yield name, _bytes(v)
                    elif n == 6:  # AttributeProto.g
                        yield from _named(_bytes(v), depth + 1)


def _array(tensor: memoryview) -> np.ndarray | None:
    """The array of a TensorProto, if it is of float32."""
    sizes, kind, data = [], 0, b""
    for number, value in _fields(tensor):
        if number == 1:  # dims: one by one, or all in one field
            sizes += [value] if isinstance(value, int) else _varints(value)
        elif number == 2:
            kind = value
        elif number in (4, 9):  # float_data, at once or one by one, and raw_data: the same bytes
            data += _bytes(value)
    return np.frombuffer(data, "<f4").astype(np.float32).reshape(sizes) if kind == _FLOAT else None


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The numbers and values of a message's fields, in their order."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        if tag & 7 == 0:
            value, at = _varint(message, at)
        else:
            if tag & 7 == 2:
                size, at = _varint(message, at)
            else:
                size = {1: 8, 5: 4}.get(tag & 7, len(message))
            if size > len(message) - at:
                raise ValueError
            value, at = message[at : at + size], at + size
        yield tag >> 3, value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number at a place, seven bits a byte, the lowest first, and the place behind it."""
    value = shift = 0
    while True:
        byte = message[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError


def _varints(message: memoryview) -> list[int]:
    values, at = [], 0
    while at < len(message):
        value, at = _varint(message, at)
        values.append(value)
    return values


def _bytes(value: int | memoryview) -> memoryview:
    """A field that holds bytes."""
    if isinstance(value, int):
        raise TypeError
    return value
