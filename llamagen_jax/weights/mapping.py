"""Tensors of a file to parameters and back, for any model that has a table of names.

Every number is in both, so either side is given as views of the other: what is mapped from a file
is read only where it is used. Parameters of layers are stacked here, and a tensor may hold several
parameters one below the other.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from llamagen_jax.weights.formats import Format
from llamagen_jax.weights.infer import format_of
from llamagen_jax.weights.kinds import Config, describe
from llamagen_jax.weights.names import NameTable
from llamagen_jax.weights.shapes import Shapes, check_shapes, flat_shapes, param_shapes
from llamagen_jax.weights.torch_files import Tensor


class _Piece(NamedTuple):
    """A block of numbers that both sides hold.

    `params[path]`, or its entry `layer` where layers are stacked, equals
    `tensors[name][rows].squeeze(unit_axes).transpose(axes)` reshaped to `shape`, which may have
    more axes of length 1.
    """

    path: str
    layer: int | None
    name: str
    rows: slice
    unit_axes: tuple[int, ...]
    axes: tuple[int, ...]
    shape: tuple[int, ...]

    def from_tensors(self, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
        block = tensors[self.name][self.rows].squeeze(self.unit_axes).transpose(self.axes)
        return block.reshape(self.shape)

    def from_params(self, params: Mapping[str, np.ndarray]) -> np.ndarray:
        leaf = params[self.path] if self.layer is None else params[self.path][self.layer]
        return _as_tensor(leaf, self.axes, self.unit_axes)


class _Entry(NamedTuple):
    """A parameter or a tensor: its shape, and the pieces it consists of in row-major order."""

    shape: tuple[int, ...]
    pieces: list[_Piece]


class Layout:
    """Where the numbers of a model's parameters are among the tensors of a file.

    Attributes:
      tensor_shapes: of the tensors that hold parameters, by name.
    """

    def __init__(self, table: NameTable, shapes: Shapes):
        """Lays out parameters of these shapes, by '/'-joined path.

        Raises:
          KeyError: the table does not name a parameter.
        """
        self._table, self._param_shapes = table, shapes
        self._params: dict[str, _Entry] = {}
        self._tensors: dict[str, _Entry] = {}
        for _, name, path in sorted((*table.tensor_name(path), path) for path in shapes):
            self._add(path, name)
        self.tensor_shapes = {name: entry.shape for name, entry in self._tensors.items()}

    def _add(self, path: str, name: str) -> None:
        stacked, shape = "{}" in name, self._param_shapes[path]
        layers = range(shape[0]) if stacked else [None]
        block = shape[1:] if stacked else shape
        axes = self._table.axes(path, 2 if self._table.is_matrix(path) else len(block))
        unit_axes = self._table.unit_axes.get(path, ())
        length, *rest = _as_tensor(np.broadcast_to(0, block), axes, unit_axes).shape
        self._params[path] = _Entry(shape, [])
        for layer in layers:
            tensor_name = name.format(layer)
            (start, *_), pieces = self._tensors.get(tensor_name, _Entry((0,), []))
            stop = start + length
            piece = _Piece(path, layer, tensor_name, slice(start, stop), unit_axes, axes, block)
            self._params[path].pieces.append(piece)
            self._tensors[tensor_name] = _Entry((stop, *rest), [*pieces, piece])

    def param_views(self, tensors: Mapping[str, np.ndarray], what: str) -> dict[str, Tensor]:
        """Every parameter, by '/'-joined path, as views of `tensors`.

        Args:
          tensors: by their names in the file; those that are no parameters are left out.
          what: begins the message of the error.

        Raises:
          InputError: tensors are missing, unexpected or of the wrong shape; it lists them all.
        """
        tensors = {name: t for name, t in tensors.items() if not self._table.ignores(name)}
        for alias, name in self._table.aliases.items():
            if alias in tensors:
                tensors.setdefault(name, tensors.pop(alias))
        found = {name: tensor.shape for name, tensor in tensors.items()}
        check_shapes(found, self.tensor_shapes, what)
        return {
            path: _view(entry, [piece.from_tensors(tensors) for piece in entry.pieces])
            for path, entry in self._params.items()
        }

    def tensor_views(self, params: Mapping[str, Any], what: str) -> dict[str, Tensor]:
        """Every tensor, by name, as views of `params`; the inverse of `param_views`.

        Args:
          params: nested; leaves are numpy or jax arrays.
          what: begins the message of the error.

        Raises:
          InputError: parameters are missing, unexpected or of the wrong shape; it lists them all.
        """
        check_shapes(flat_shapes(params), self._param_shapes, what)
        leaves = {path: np.asarray(leaf) for path, leaf in flatten_dict(params, sep="/").items()}
        return {
            name: _view(entry, [piece.from_params(leaves) for piece in entry.pieces])
            for name, entry in self._tensors.items()
        }


def _as_tensor(param: np.ndarray, axes: tuple[int, ...], unit_axes: tuple[int, ...]) -> np.ndarray:
    matrix = param.reshape(param.shape[param.ndim - len(axes) :])
    return np.expand_dims(matrix.transpose(np.argsort(axes)), unit_axes)


def _view(entry: _Entry, pieces: list[np.ndarray]) -> Tensor:
    return Tensor(entry.shape, np.result_type(*pieces), pieces)


@functools.cache
def layout_of(config: Config, file_format: Format | None = None) -> Layout:
    """The files of the model that `config` describes; by default in the format it is written in."""
    file_format = file_format or format_of(config)
    return Layout(file_format.table(config), param_shapes(config))


def from_torch(tensors: Mapping[str, np.ndarray], config: Config) -> dict[str, Any]:
    """Parameters of the model that `config` describes, such as `Llama(config)`, from a state dict.

    Args:
      tensors: arrays by the names of the original LlamaGen, or of another format that is known for
        the kind of model; what such files hold beside parameters is left out.

    Returns:
      Nested numpy arrays in the dtypes given, layers stacked.

    Raises:
      InputError: tensors are missing, unexpected or of the wrong shape; it lists them all.
    """
    what = f"tensors do not fit a {describe(config)}"
    layout = layout_of(config, format_of(config, tensors))
    views = layout.param_views(tensors, what)
    return unflatten_dict({path: view.array() for path, view in views.items()}, sep="/")


def to_torch(params: Mapping[str, Any], config: Config) -> dict[str, np.ndarray]:
    """The original's state dict without its buffers: the exact inverse of `from_torch`.

    Args:
      params: nested, or gradients or moments of the same structure; leaves are numpy or jax arrays.

    Raises:
      InputError: parameters are missing, unexpected or of the wrong shape; it lists them all.
    """
    what = f"parameters do not fit a {describe(config)}"
    views = layout_of(config).tensor_views(params, what)
    return {name: view.array() for name, view in views.items()}
