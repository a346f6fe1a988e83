"""The autoencoder of latent diffusion beside diffusers' own, and what takes no latents."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llamagen_jax.data.prepare import __main__ as prepare
from llamagen_jax.evaluate import __main__ as evaluate
from llamagen_jax.image_tokenizer import ModelTokenizer, open_tokenizer
from llamagen_jax.images import save_png
from llamagen_jax.models.kl_vae import KLVAEConfig

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of a random model, and the model."""
    torch.manual_seed(0)
    model = diffusers.AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("made") / "vae"
    model.save_pretrained(folder)
    return folder, model


def with_old_names(folder, output):
    """The same file as older versions of diffusers wrote it."""
    shutil.copytree(folder, output)
    file = output / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    for new, before in old.items():
        tensors = {name.replace(new, before): tensor for name, tensor in tensors.items()}
    save_file(tensors, file)
    return output


@pytest.mark.parametrize("names", ["new", "old"])
def test_latents_and_images_are_those_of_diffusers(made, tmp_path, names):
    folder, model = made
    if names == "old":
        folder = with_old_names(folder, tmp_path / "old")
    tokenizer = open_tokenizer(str(folder), continuous=True)
    sizes = {"base_channels": 32, "channel_multipliers": (1, 2), "num_res_blocks": 1}
    assert tokenizer.model.config == KLVAEConfig(**sizes)
    images = IMAGES / np.float32(127.5) - 1
    latents = jax.jit(ModelTokenizer.encode)(tokenizer, images)
    decoded = jax.jit(ModelTokenizer.decode)(tokenizer, latents)
    with torch.no_grad():
        mean = model.encode(torch.from_numpy(images).permute(0, 3, 1, 2)).latent_dist.mean
        expected = model.decode(mean).sample
    assert tokenizer.codebook_size is None
    np.testing.assert_allclose(latents, mean.permute(0, 2, 3, 1), atol=1e-4)
    np.testing.assert_allclose(decoded, expected.permute(0, 2, 3, 1), atol=1e-4)


def test_reconstructions_have_no_codebook_and_codes_are_refused(made, tmp_path):
    folder = str(made[0])
    (tmp_path / "images").mkdir()
    for number, image in enumerate(IMAGES):
        save_png(tmp_path / f"images/{number}.png", image)
    images, output = str(tmp_path / "images"), str(tmp_path / "out.json")
    command = ["reconstructions", images, "--tokenizer", folder, "--size", "16"]
    evaluate.main([*command, "--output", output])
    figures = json.loads(Path(output).read_text())["figures"]
    assert [figure["name"] for figure in figures] == ["PSNR", "SSIM"]
    command = ["codes", "--source", "image_folder", "--location", images, "--image-size", "16"]
    with pytest.raises(SystemExit, match="is a tokenizer of continuous latents; expected one of"):
        prepare.main([*command, "--tokenizer", folder, str(tmp_path / "codes")])
