"""The configuration of a model from the tensors of its file."""

import dataclasses
from pathlib import Path

import golden_weights
import numpy as np
import pytest

import llamagen_jax as lg
from llamagen_jax.errors import InputError
from llamagen_jax.weights.infer import infer_config
from llamagen_jax.weights.published import MODELS
from llamagen_jax.weights.shapes import param_shapes

TINY = lg.LlamaConfig(dim=16, n_layers=2, n_heads=2, vocab_size=32, num_classes=3)
TEXT = dataclasses.replace(TINY, condition="text", condition_length=4, caption_dim=8)


def test_grouped_heads_and_ffn_width_are_inferred():
    for config in (
        dataclasses.replace(TINY, n_heads=4, n_kv_heads=2, multiple_of=8),
        dataclasses.replace(TEXT, num_classes=1000),
    ):
        tensors = golden_weights.state_dict(config)
        inferred = infer_config(tensors, Path("file"), grid_size=16, n_heads=config.n_heads)
        assert param_shapes(inferred) == param_shapes(config)
        assert inferred == dataclasses.replace(config, multiple_of=inferred.multiple_of)


def test_files_that_do_not_tell_enough(monkeypatch):
    monkeypatch.setitem(MODELS, "GPT-B", TINY)
    path = Path("a.safetensors")
    with pytest.raises(InputError, match="does not tell its image size"):
        infer_config(golden_weights.state_dict(TINY), path)
    tensors = golden_weights.state_dict(dataclasses.replace(TINY, n_layers=3))
    with pytest.raises(InputError, match=r"unpublished size \(dim=16, n_layers=3\)"):
        infer_config(tensors, path, grid_size=16)
    with pytest.raises(InputError, match="impossible model: dim=16 must be n_heads=3"):
        infer_config(tensors, path, grid_size=16, n_heads=3)
    del tensors["cls_embedding.embedding_table.weight"]
    with pytest.raises(InputError, match=r"no tensor 'cls_embedding\.embedding_table\.weight'"):
        infer_config(tensors, path, grid_size=16)
    with pytest.raises(InputError, match=r"neither a tokenizer nor a transformer .* such as norm"):
        infer_config({"norm": np.zeros(3)}, path)
