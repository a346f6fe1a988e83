"""What the hash of weights depends on."""

import jax.numpy as jnp
import numpy as np

from llamagen_jax.models.llama import Llama, LlamaConfig
from llamagen_jax.weights import export
from llamagen_jax.weights.integrity import weights_hash

PARAMS = {
    "layers": {"q": {"kernel": jnp.arange(24, dtype=jnp.bfloat16).reshape(2, 3, 4)}},
    "norm": {"scale": np.linspace(0, 1, 5, dtype=np.float32)},
    "odd": np.float16([1.5]),
    "scalar": np.float32(3.0),
}


def test_hash_depends_on_names_dtypes_shapes_and_values_only(tmp_path):
    export.write(tmp_path / "model", Llama(LlamaConfig()), PARAMS)
    reference = weights_hash(PARAMS)
    assert weights_hash(export.read(tmp_path / "model")[3]) == reference
    assert weights_hash(dict(reversed(PARAMS.items()))) == reference
    changes = [
        {"odd": np.float16([1.25])},
        {"odd": np.float16([[1.5]])},
        {"odd": PARAMS["odd"].view(np.int16)},
        {"other": np.float16([1.5])},
    ]
    for change in changes:
        assert weights_hash({**PARAMS, **change}) != reference, change
