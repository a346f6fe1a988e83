"""Graphs of TensorFlow, written field by field (https://protobuf.dev/programming-guides/encoding)."""

import numpy as np


def varint(value: int) -> bytes:
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + varint(rest) if rest else bytes([low])


def field(number: int, value: bytes | int) -> bytes:
    """A field of a message: a whole number, or bytes with their length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def tensor(values: bytes, shape: tuple[int, ...], dtype: int = 1) -> bytes:
    """A TensorProto; `values` is an encoded field."""
    dimensions = b"".join(field(2, field(1, side)) for side in shape)
    return field(1, dtype) + field(2, dimensions) + values


def node(name: str, value: bytes, operation: str = "Const") -> bytes:
    attribute = field(1, b"value") + field(2, field(8, value))
    others = field(5, field(1, b"dtype") + field(2, field(6, 1)))
    named = field(1, name.encode()) + field(2, operation.encode())
    return field(1, named + others + field(5, attribute))


def constant(name: str, array: np.ndarray) -> bytes:
    return node(name, tensor(field(4, array.tobytes()), array.shape))
