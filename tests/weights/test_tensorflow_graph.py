"""Graphs of TensorFlow, right, damaged and hostile."""

import numpy as np
import pytest
from tensorflow_graphs import constant, field, node, tensor, varint

from llamagen_jax.errors import InputError
from llamagen_jax.weights.tensorflow_graph import read_constants


def read(tmp_path, data: bytes) -> dict[str, np.ndarray]:
    (tmp_path / "graph.pb").write_bytes(data)
    return read_constants(tmp_path / "graph.pb")


NUMBERS = np.arange(6, dtype=np.float32).reshape(2, 3)
GRAPH = constant("conv/weights", NUMBERS)


def test_constants_in_every_encoding(tmp_path):
    graph = GRAPH
    graph += node("packed", tensor(field(5, NUMBERS.tobytes()), (3, 2)))
    singles = b"".join(varint(5 << 3 | 5) + x.tobytes() for x in NUMBERS.ravel())
    graph += node("singles", tensor(singles, (6,)))
    graph += node("all_ones", tensor(varint(5 << 3 | 5) + np.float32(1).tobytes(), (2, 2)))
    graph += node("whole", tensor(field(7, 3), (), dtype=3))
    graph += node("variable", tensor(b"", (2, 2)), operation="VariableV2")
    graph += field(4, field(1, 22))  # the versions of the producer
    constants = read(tmp_path, graph)
    expected = {
        "conv/weights": NUMBERS,
        "packed": NUMBERS.reshape(3, 2),
        "singles": NUMBERS.ravel(),
        "all_ones": np.ones((2, 2)),
    }
    assert constants.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(constants[name], array)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "holds no weights"),
        (node("x", tensor(b"", (1,), dtype=3)), "holds no weights"),
        (GRAPH[:-1], r"\d+ bytes announced, \d+ left"),
        (field(1, b"")[:-1] + varint(2**62), "4611686018427387904 bytes announced, 0 left"),
        (b"\xff" * 20, "no number at byte 0"),
        (b"\x0b" + GRAPH, "wire type 3"),
        (GRAPH + GRAPH, "two nodes are called conv/weights"),
        (field(1, 7), "field 1 is a number"),
        (node("x", tensor(field(4, b"12345"), (1,))), "buffer size must be a multiple"),
        (node("x", tensor(field(4, NUMBERS.tobytes()), (2, 2))), "cannot reshape"),
        (node("x", tensor(field(4, b"1234"), (2**40,))), r"a tensor has the shape \[1099511627776"),
        (node("x", tensor(field(4, b"1234"), (2**30,) * 4)), "too"),
        (b"\x80\x02}q\x00" * 9, "truncated or no TensorFlow graph"),
    ],
)
def test_damaged_graphs_are_refused(data, message, tmp_path):
    with pytest.raises(InputError, match=rf"graph\.pb .*{message}"):
        read(tmp_path, data)


def test_missing_graph_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.pb cannot be read: No such file"):
        read_constants(tmp_path / "nowhere.pb")
