"""CLIP from the folders of Hugging Face, right and wrong."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import tiny

from llamagen_jax.errors import InputError
from llamagen_jax.models.clip import CLIPConfig
from llamagen_jax.weights import clip as clip_weights
from llamagen_jax.weights import torch_files

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOWER = {"num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {"hidden_size": 24, "intermediate_size": 40, "vocab_size": 60, "eos_token_id": 59}
VISION = {"hidden_size": 32, "intermediate_size": 48, "image_size": 24, "patch_size": 6}


def _write(folder, **tower):
    """A folder with random weights, and the model that `transformers` makes of it."""
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        text_config={**TOWER, **TEXT, **tower},
        vision_config={**TOWER, **VISION, **tower},
        projection_dim=20,
    )
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    _write(folder)
    return folder


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_embeddings_are_those_of_transformers(tmp_path, activation):
    theirs = _write(tmp_path, hidden_act=activation)
    ours, params = clip_weights.load(tmp_path)
    rng = np.random.default_rng(0)
    tokens, pixels = rng.integers(0, 59, (3, 10)), rng.normal(size=(2, 24, 24, 3))
    tokens[:, 4:] = 59
    texts, images = jax.jit(ours.apply)({"params": params}, tokens, pixels.astype(np.float32))
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.from_numpy(tokens),
            pixel_values=torch.from_numpy(pixels.transpose(0, 3, 1, 2)).float(),
        )
    np.testing.assert_allclose(texts, expected.text_embeds, rtol=0, atol=1e-5)
    np.testing.assert_allclose(images, expected.image_embeds, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "vision", "embedding_dim"),
    [
        ({}, {}, 512),
        (
            {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
            {
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "image_size": 336,
                "patch_size": 14,
            },
            768,
        ),
    ],
    ids=["ViT-B/32", "ViT-L/14@336"],
)
def test_names_and_shapes_of_published_models(tmp_path, text, vision, embedding_dim):
    described = {"model_type": "clip", "text_config": text, "vision_config": vision}
    described["projection_dim"] = embedding_dim
    (tmp_path / "config.json").write_text(json.dumps(described))
    config = clip_weights.read_config(tmp_path)
    if text:
        assert dataclasses.replace(config, image_size=224) == CLIPConfig()
    with torch.device("meta"):
        model = transformers.CLIPModel(transformers.CLIPConfig(**described))
    expected = {name: tuple(t.shape) for name, t in model.named_parameters()}
    assert expected.pop("logit_scale") == ()
    assert clip_weights.layout(config).tensor_shapes == expected


def _config(**changes):
    def change(folder):
        fields = json.loads((folder / "config.json").read_text())
        for name, value in changes.items():
            tower, _, key = name.partition("__")
            place = fields[f"{tower}_config"] if key else fields
            place[key or name] = value
        (folder / "config.json").write_text(json.dumps(fields))

    return change


def _tensors(folder):
    tensors = torch_files.open_folder(folder)
    del tensors["vision_model.pre_layrnorm.bias"]
    tensors["text_model.embeddings.position_ids"] = np.arange(77)[None]
    tiny.write_tensors(folder / "new.safetensors", tensors)
    (folder / "new.safetensors").rename(folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), r"config\.json is missing"),
        (_config(model_type="siglip"), r"describes a model 'siglip'; expected 'clip', such as"),
        (_config(text_config=None), r"config\.json describes an impossible CLIP"),
        (_config(text__hidden_act="relu"), r"an impossible CLIP: activation='relu' must be one"),
        (_config(vision__patch_size="six"), r"config\.json describes an impossible CLIP"),
        (
            _config(projection_dim=8),
            r"the weights in .* do not fit its config\.json: .*text_projection\.weight \[20, 24\]",
        ),
        (_tensors, r"do not fit its config\.json: missing: vision_model\.pre_layrnorm\.bias$"),
    ],
)
def test_damaged_folders_are_refused(damage, message, folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    damage(tmp_path)
    with pytest.raises(InputError, match=message):
        clip_weights.load(tmp_path)


def test_missing_folder_is_refused():
    with pytest.raises(InputError, match="nowhere is no folder; expected one of a CLIP"):
        clip_weights.load("nowhere")
