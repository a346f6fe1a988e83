"""The published models by name, and `load` from files, folders and the Hub's cache."""

import dataclasses
import json
import subprocess
import sys

import golden_weights
import jax
import numpy as np
import pytest

import llamagen_jax as lg
from llamagen_jax import checkpoint, zoo
from llamagen_jax.errors import InputError
from llamagen_jax.weights import export
from llamagen_jax.weights.torch_files import Tensor, write_safetensors

TINY = lg.LlamaConfig(dim=16, n_layers=2, n_heads=2, vocab_size=32, num_classes=3)
TEXT = dataclasses.replace(TINY, condition="text", condition_length=4, caption_dim=8)
WIDE = dataclasses.replace(TINY, dim=32, n_layers=3)
TINY_TOKENIZER = lg.VQGANConfig(
    base_channels=32, channel_multipliers=(1, 2), z_channels=8, codebook_size=16, codebook_dim=4
)


@pytest.fixture
def tiny(monkeypatch):
    """Stands in for the published c2i_B_256, so that its files are small."""
    monkeypatch.setitem(zoo.MODELS, "GPT-B", TINY)
    for name, config in {"c2i_B_256": TINY, "vq_ds16_c2i": TINY_TOKENIZER}.items():
        record = dataclasses.replace(zoo.PUBLISHED[name], config=config)
        monkeypatch.setitem(zoo.PUBLISHED, name, record)
    return golden_weights.params(TINY)


def write_torch(path, config, **extra):
    tensors = golden_weights.state_dict(config) | extra
    write_safetensors(path, {name: Tensor.of(tensor) for name, tensor in tensors.items()})
    return path


def assert_same(params, expected):
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_importing_the_package_is_light():
    code = """if True:
        import sys, llamagen_jax
        heavy = {"torch", "transformers", "orbax", "grain", "huggingface_hub", "sentencepiece"}
        assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
        assert callable(llamagen_jax.convert.from_torch)
        assert all(hasattr(llamagen_jax, name) for name in llamagen_jax.__all__)
    """
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_export_opens(tmp_path, tiny):
    config = dataclasses.replace(TINY, dtype="bfloat16", token_dropout=0.0)
    export.write(tmp_path / "mine", lg.Llama(config), tiny)
    for model, params in (
        lg.load(tmp_path / "mine"),
        lg.load("c2i_B_256", path=tmp_path / "mine"),
    ):
        assert model == lg.Llama(config)
        assert_same(params, tiny)


def test_a_tokenizer_export_opens(tmp_path):
    params = golden_weights.params(TINY_TOKENIZER)
    export.write(tmp_path / "mine", lg.VQGAN(TINY_TOKENIZER), params)
    model, loaded = lg.load(str(tmp_path / "mine"))
    assert model == lg.VQGAN(TINY_TOKENIZER)
    assert_same(loaded, params)


@pytest.mark.parametrize(("task", "config"), [("generator", TINY), ("tokenizer", TINY_TOKENIZER)])
def test_a_work_folder_opens(tmp_path, monkeypatch, task, config):
    params = golden_weights.params(config)
    (tmp_path / "checkpoints").mkdir()
    fields = json.loads(json.dumps(dataclasses.asdict(config)))
    monkeypatch.setattr(checkpoint, "load_params", lambda folder: (task, fields, params))
    model, loaded = lg.load(tmp_path)
    assert model.config == config
    assert_same(loaded, params)


def test_a_file_called_like_a_published_model_needs_no_more(tmp_path, tiny):
    path = write_torch(tmp_path / "c2i_B_256.safetensors", TINY)
    for model, params in (
        lg.load(path),
        lg.load("c2i_B_256", path=path),
        lg.load("c2i_B_256", path=tmp_path),
    ):
        assert model == lg.Llama(TINY)
        assert_same(params, tiny)


def test_the_grid_size_may_come_from_the_rotary_table(tmp_path, tiny):
    table = np.zeros((1 + 5 * 5, 4, 2), np.float32)
    path = write_torch(tmp_path / "step_100.safetensors", TINY, freqs_cis=table)
    model, params = lg.load(path)
    assert model.config == dataclasses.replace(TINY, grid_size=5)
    assert_same(params, tiny)
    with pytest.raises(InputError, match=r"codes on a 5x5 grid; expected 16x16"):
        lg.load("c2i_B_256", path=path)


def test_a_tokenizer_is_inferred_from_its_tensors(tmp_path):
    path = write_torch(tmp_path / "tokenizer.safetensors", TINY_TOKENIZER)
    model, params = lg.load(path)
    assert model.config == TINY_TOKENIZER
    assert_same(params, golden_weights.params(TINY_TOKENIZER))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TINY_TOKENIZER, "is a tokenizer; expected c2i_B_256, a class-conditional transformer"),
        (TEXT, "is a text-conditional transformer; expected c2i_B_256, a class-conditional"),
        (WIDE, "with dim=32, n_layers=3; expected c2i_B_256, .* with dim=16, n_layers=2"),
    ],
)
def test_contradicting_a_name_is_one_clear_line(tmp_path, tiny, monkeypatch, config, message):
    monkeypatch.setitem(zoo.MODELS, "other", config)
    path = write_torch(tmp_path / "c2i_B_256.safetensors", config)
    with pytest.raises(InputError, match=message) as error:
        lg.load(path)
    assert "\n" not in str(error.value)
    export.write(tmp_path / "export", zoo.build(config), golden_weights.params(config))
    with pytest.raises(InputError, match=message):
        lg.load("c2i_B_256", path=tmp_path / "export")


def test_names_and_paths_that_lead_nowhere(tmp_path):
    with pytest.raises(InputError, match="did you mean 'c2i_L_384'"):
        lg.load("c2i_L_348")
    with pytest.raises(InputError, match="nowhere does not exist; expected the weights of c2i_L"):
        lg.load("c2i_L_384", path=tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no weights of c2i_L_384; .*c2i_L_384\.pt"):
        lg.load("c2i_L_384", path=tmp_path)
    with pytest.raises(InputError, match=r"config\.json is missing"):
        lg.load(tmp_path)


def test_broken_exports_are_one_clear_line(tmp_path, tiny):
    export.write(tmp_path / "mine", lg.Llama(TINY), {**tiny, "more": np.zeros(3)})
    with pytest.raises(InputError, match=r"mine do not fit its config: unexpected: more$"):
        lg.load(tmp_path / "mine")
    path = tmp_path / "mine" / "config.json"
    values = json.loads(path.read_text())
    # As if it were another writer's.
    del values["digest"]
    text = json.dumps(values)
    for old, new, message in (
        ('"dim"', '"width"', "impossible model.*width"),
        (
            '"Llama"',
            '"GPT"',
            "model 'GPT'; expected Llama or VQGAN or MaskGITVQGAN or ViTVQGAN or KLVAE",
        ),
    ):
        path.write_text(text.replace(old, new))
        with pytest.raises(InputError, match=message):
            lg.load(tmp_path / "mine")


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty cache of the Hub's client, without network."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def test_names_are_found_in_the_hub_cache(hub_cache, tiny):
    torch = pytest.importorskip("torch")
    repository = hub_cache / "models--FoundationVision--LlamaGen"
    for folder in ("refs", "blobs", "snapshots/0123abcd"):
        (repository / folder).mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123abcd")
    state = {name: torch.from_numpy(t) for name, t in golden_weights.state_dict(TINY).items()}
    torch.save({"model": state}, repository / "blobs" / "4567")
    link = repository / "snapshots" / "0123abcd" / "c2i_B_256.pt"
    link.symlink_to("../../blobs/4567")
    model, params = lg.load("c2i_B_256")
    assert model == lg.Llama(TINY)
    assert_same(params, tiny)


def test_names_that_are_nowhere_are_one_clear_line(hub_cache):
    with pytest.raises(InputError, match=r"t2i_XL_stage2_512\.pt is not in .* cache") as error:
        lg.load("t2i_XL_stage2_512")
    assert "\n" not in str(error.value)


def test_without_the_hub_client_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"pip install \"llamagen_jax\[hub\]\""):
        lg.load("c2i_B_256")
