"""Inception's weights from the files of PyTorch and of TensorFlow, right and wrong."""

import numpy as np
import pytest
import tiny
from flax.traverse_util import flatten_dict
from golden_weights import inception_state
from tensorflow_graphs import constant, node, tensor

from llamagen_jax.errors import InputError
from llamagen_jax.weights import inception as inception_weights
from llamagen_jax.weights.mapping import Layout

# One of every kind of scope, as torch-fidelity pairs them.
PAIRS = {
    "conv": "Conv2d_1a_3x3",
    "conv_4": "Conv2d_4a_3x3",
    "mixed/conv": "Mixed_5b.branch1x1",
    "mixed_1/tower/conv_1": "Mixed_5c.branch5x5_2",
    "mixed_2/tower_1/conv_2": "Mixed_5d.branch3x3dbl_3",
    "mixed_3/conv": "Mixed_6a.branch3x3",
    "mixed_3/tower/conv_1": "Mixed_6a.branch3x3dbl_2",
    "mixed_4/tower/conv_2": "Mixed_6b.branch7x7_3",
    "mixed_5/tower_1/conv_3": "Mixed_6c.branch7x7dbl_4",
    "mixed_6/conv": "Mixed_6d.branch1x1",
    "mixed_7/tower_2/conv": "Mixed_6e.branch_pool",
    "mixed_8/tower/conv": "Mixed_7a.branch3x3_1",
    "mixed_8/tower_1/conv_3": "Mixed_7a.branch7x7x3_4",
    "mixed_9/tower/mixed/conv": "Mixed_7b.branch3x3_2a",
    "mixed_10/tower_1/mixed/conv_1": "Mixed_7c.branch3x3dbl_3b",
    "mixed_10/tower_1/conv_1": "Mixed_7c.branch3x3dbl_2",
}


@pytest.fixture(scope="module")
def state():
    return inception_state()


@pytest.fixture(scope="module")
def expected(state):
    return inception_weights.from_torch(state)


def _graph(variables) -> dict[str, np.ndarray]:
    """The constants of TensorFlow's graph."""
    table = inception_weights._tensorflow_table()
    shapes = {path: leaf.shape for path, leaf in flatten_dict(variables, sep="/").items()}
    views = Layout(table, shapes).tensor_views(variables, "")
    return {name: view.array() for name, view in views.items()}


def _assert_equal(variables, expected):
    ours, theirs = (flatten_dict(tree, sep="/") for tree in (variables, expected))
    assert ours.keys() == theirs.keys()
    for path, leaf in ours.items():
        np.testing.assert_array_equal(leaf, theirs[path], err_msg=path)


def test_graph_of_tensorflow_loads(tmp_path, state, expected):
    constants = _graph(expected)
    assert len(constants) == 94 * 5 + 1
    for ours, theirs in PAIRS.items():
        kernel = state[f"{theirs}.conv.weight"].transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(constants[f"{ours}/conv2d_params"], kernel)
        for name, key in {
            "gamma": "weight",
            "beta": "bias",
            "moving_mean": "running_mean",
            "moving_variance": "running_var",
        }.items():
            np.testing.assert_array_equal(
                constants[f"{ours}/batchnorm/{name}"], state[f"{theirs}.bn.{key}"]
            )
    np.testing.assert_array_equal(constants["softmax/weights"], state["fc.weight"].T)
    constants |= {"softmax/biases": state["fc.bias"], "Sub/y": np.float32(128)}
    with (tmp_path / "graph.pb").open("wb") as file:
        for name, array in constants.items():
            file.write(constant(name, np.asarray(array)))
        file.write(node("pool_3/_reshape/shape", tensor(b"", (2,), dtype=3)))
    _, variables = inception_weights.load(tmp_path / "graph.pb")
    _assert_equal(variables, expected)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_files_of_torch_load(tmp_path, state, expected, suffix):
    path = tmp_path / f"inception.{suffix}"
    if suffix == "pth":
        torch = pytest.importorskip("torch")
        torch.save({name: torch.from_numpy(np.asarray(t)) for name, t in state.items()}, path)
    else:
        tiny.write_tensors(path, state)
    _assert_equal(inception_weights.load(path)[1], expected)


def test_tensors_come_back(state, expected):
    tensors = inception_weights.to_torch(expected)
    assert not tensors.pop("fc.bias").any()
    for name, array in tensors.items():
        np.testing.assert_array_equal(array, state[name])
    _assert_equal(inception_weights.from_torch(tensors), expected)


def test_tensors_that_do_not_fit_are_all_named(tmp_path, state, expected):
    wrong = dict(state)
    del wrong["Mixed_7c.branch_pool.bn.running_var"]
    wrong["AuxLogits.fc.bias"] = np.zeros(3, np.float32)
    wrong["fc.weight"] = np.zeros((1000, 2048), np.float32)
    with pytest.raises(InputError) as error:
        inception_weights.from_torch(wrong)
    assert str(error.value) == (
        "tensors do not fit Inception: missing: Mixed_7c.branch_pool.bn.running_var; unexpected: "
        "AuxLogits.fc.bias; wrong shape: fc.weight [1000, 2048] instead of [1008, 2048]"
    )
    path = tmp_path / "graph.pb"
    path.write_bytes(constant("conv/conv2d_params", np.ones((3, 3, 3, 8), np.float32)))
    message = (
        r"graph\.pb does not hold the Inception of FID: missing: .*mixed_9/tower/mixed/conv/"
        r"batchnorm/gamma.* wrong shape: conv/conv2d_params \[3, 3, 3, 8\] instead of "
    )
    with pytest.raises(InputError, match=message):
        inception_weights.load(path)


def test_missing_file_tells_where_to_get_it():
    with pytest.raises(
        InputError, match=r"nowhere is no file; .*6726825d\.pth or .*2015-12-05\.tgz"
    ):
        inception_weights.load("nowhere")
