"""Whether weights are those they should be."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from llamagen_jax.weights.torch_files import raw_bytes


def weights_hash(params: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of the parameters' paths, dtypes, shapes and bytes, whatever holds them.

    Args:
      params: nested; leaves are numpy or jax arrays.
    """
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten_dict(params, sep="/").items()):
        digest.update(f"{path} {np.dtype(leaf.dtype)} {list(leaf.shape)}\n".encode())
        digest.update(raw_bytes(leaf))
    return digest.hexdigest()
