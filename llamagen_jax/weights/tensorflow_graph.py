"""Constants of a frozen TensorFlow graph (a GraphDef in a .pb file), read without TensorFlow.

Field numbers are those of TensorFlow's graph.proto, node_def.proto, attr_value.proto, tensor.proto
and tensor_shape.proto, the encoding that of https://protobuf.dev/programming-guides/encoding.
Nothing in a file is run, and no length in it is trusted.
"""

import os
from pathlib import Path

import numpy as np

from llamagen_jax.errors import InputError

_DT_FLOAT = 1
_FLOAT = np.dtype("<f4")
_MAX_DIMENSION = 2**31


def read_constants(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The float32 constants of a graph, by the names of their nodes, as read-only arrays.

    Constants of other types, which are no weights, are left out.

    Raises:
      InputError: the file is missing, truncated or no graph.
    """
    path = Path(path)
    try:
        graph = memoryview(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    constants: dict[str, np.ndarray] = {}
    try:
        for node in map(_Message, _Message(graph).all(1)):
            name, operation = bytes(node.last(1)).decode(), node.last(2)
            if operation != b"Const":
                continue
            if name in constants:
                raise ValueError(f"two nodes are called {name}")
            attributes = map(_Message, node.all(5))
            values = [a.last(2) for a in attributes if a.last(1) == b"value"]
            tensor = _Message(_Message(values[-1]).last(8)) if values else _Message(graph[:0])
            if tensor.number(1) == _DT_FLOAT:
                constants[name] = _array(tensor)
    except ValueError as error:
        raise InputError(f"{path} is truncated or no TensorFlow graph: {error}") from error
    if not constants:
        raise InputError(f"{path} holds no weights; expected a frozen TensorFlow graph")
    return constants


def _array(tensor: "_Message") -> np.ndarray:
    shape = [_Message(dimension).number(1) for dimension in _Message(tensor.last(2)).all(2)]
    if any(side >= _MAX_DIMENSION for side in shape):
        raise ValueError(f"a tensor has the shape {shape}")
    # Either its memory, or a list of its values, of which one may stand for all.
    values = np.frombuffer(tensor.last(4) or b"".join(tensor.all(5)), _FLOAT)
    return np.broadcast_to(values[0], shape) if values.size == 1 else values.reshape(shape)


class _Message:
    """The fields of an encoded message, by their number.

    Raises:
      ValueError: the bytes are no message; also where a field is of another type than asked for.
    """

    def __init__(self, data: memoryview):
        self._fields: dict[int, list[int | memoryview]] = {}
        start = 0
        while start < len(data):
            tag, start = _varint(data, start)
            number, wire_type = tag >> 3, tag & 7
            if wire_type == 0:
                value, start = _varint(data, start)
            else:
                if wire_type == 2:
                    length, start = _varint(data, start)
                elif wire_type in (1, 5):
                    length = 8 if wire_type == 1 else 4
                else:
                    raise ValueError(f"wire type {wire_type} at byte {start}")
                if length > len(data) - start:
                    raise ValueError(f"{length} bytes announced, {len(data) - start} left")
                value, start = data[start : start + length], start + length
            self._fields.setdefault(number, []).append(value)

    def all(self, number: int) -> list[memoryview]:
        """The bytes of every occurrence of a field."""
        values = self._fields.get(number, [])
        if any(isinstance(value, int) for value in values):
            raise ValueError(f"field {number} is a number")
        return values  # type: ignore[return-value]

    def last(self, number: int) -> memoryview:
        """The bytes of a field that may occur once, empty where it is left out."""
        return self.all(number)[-1] if number in self._fields else memoryview(b"")

    def number(self, number: int) -> int:
        """The value of a field that may occur once, 0 where it is left out."""
        value = self._fields.get(number, [0])[-1]
        if not isinstance(value, int):
            raise ValueError(f"field {number} is no number")
        return value


def _varint(data: memoryview, start: int) -> tuple[int, int]:
    """The whole number that begins at byte `start`, and where the next thing begins."""
    value = 0
    for i, byte in enumerate(data[start : start + 10]):
        value |= (byte & 127) << 7 * i
        if byte < 128:
            return value, start + i + 1
    raise ValueError(f"no number at byte {start}")
