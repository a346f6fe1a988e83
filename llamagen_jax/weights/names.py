"""Tables of what a model's parameters are called in others' files; `weights.mapping` applies them.

Files of PyTorch have linear weights [out, in] where they are [in, out] here, convolutions
[out, in, h, w] where they are [h, w, in, out] here; files of TensorFlow have them as here.
"""

import dataclasses
import re
from collections.abc import Mapping

# What PyTorch's modules call the parameters of Flax's.
_TORCH_SUFFIXES = {
    "kernel": ".weight",
    "scale": ".weight",
    "embedding": ".weight",
    "bias": ".bias",
    "mean": ".running_mean",
    "var": ".running_var",
}


@dataclasses.dataclass(frozen=True)
class NameTable:
    r"""The names of one model in one kind of file, and how its tensors lie there.

    Attributes:
      names: from parameters to tensors. A key is a regular expression of the whole '/'-joined path
        of a module, whose parameters are the tensors "NAME" with one of `suffixes`; or of a
        parameter, which is the tensor "NAME". A value is NAME: it may refer to the expression's
        groups (r"\1"), and has "{}" for the number of the layer where parameters are stacked by
        layer. Parameters that share a tensor lie in it one after the other along its first axis, in
        the order of the table.
      suffixes: what follows a module's NAME, by what the parameter is called here.
      transposed: whether kernels lie as in PyTorch.
      kernels: paths of parameters that are transposed as kernels are, without being called so.
      unit_axes: by path, axes of length 1 that the tensor has and the parameter has not.
      matrices: a regular expression of the modules of 1x1 convolutions whose kernels are matrices
        [out, in] in the files.
      aliases: other names that a tensor may have in a file, by itself or beside its own.
      buffers: shapes of tensors that are no parameters but that the files must hold, as zeros.
      ignored: a regular expression of the names of other tensors that are no parameters.
    """

    names: Mapping[str, str]
    suffixes: Mapping[str, str] = dataclasses.field(default_factory=_TORCH_SUFFIXES.copy)
    transposed: bool = True
    kernels: tuple[str, ...] = ()
    unit_axes: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    matrices: str = ""
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    buffers: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    ignored: str = ""

    def tensor_name(self, path: str) -> tuple[int, str]:
        """The row of the table that names the parameter `path`, and the tensor, "{}" for the layer.

        Raises:
          KeyError: the table does not name it.
        """
        module, _, leaf = path.rpartition("/")
        for row, (pattern, name) in enumerate(self.names.items()):
            if match := re.fullmatch(pattern, path):
                return row, match.expand(name)
            if leaf in self.suffixes and (match := re.fullmatch(pattern, module)):
                return row, match.expand(name) + self.suffixes[leaf]
        raise KeyError(path)

    def axes(self, path: str, rank: int) -> tuple[int, ...]:
        """Axes that turn the tensor into the parameter `path`, of `rank` axes without layers."""
        if self.transposed and (path.endswith("/kernel") or path in self.kernels):
            return (*range(2, rank), 1, 0)
        return tuple(range(rank))

    def is_matrix(self, path: str) -> bool:
        """Whether the parameter `path` is the kernel of a 1x1 convolution that lies as a matrix."""
        module, _, leaf = path.rpartition("/")
        return leaf == "kernel" and re.fullmatch(self.matrices, module) is not None

    def ignores(self, name: str) -> bool:
        """Whether the tensor `name` is no parameter."""
        return name in self.buffers or re.fullmatch(self.ignored, name) is not None
