"""The consistency decoder beside diffusers' own, given the same noise."""

import itertools

import jax
import numpy as np
import pytest

from llamagen_jax.image_tokenizer import ModelTokenizer, open_tokenizer
from llamagen_jax.models.consistency_decoder import ConsistencyDecoderConfig, noise
from llamagen_jax.models.kl_vae import KLVAEConfig
from llamagen_jax.weights import export

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

CONFIG = ConsistencyDecoderConfig(
    vae=KLVAEConfig(base_channels=32, channel_multipliers=(1, 2), num_res_blocks=1),
    unet_channels=(32, 64),
    unet_res_blocks=1,
)
IMAGES = np.random.default_rng(0).uniform(-1, 1, (2, 16, 24, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of a random model, and the model."""
    torch.manual_seed(0)
    model = diffusers.ConsistencyDecoderVAE(
        encoder_block_out_channels=(32, 64),
        encoder_down_block_types=("DownEncoderBlock2D",) * 2,
        encoder_layers_per_block=1,
        decoder_block_out_channels=CONFIG.unet_channels,
        decoder_down_block_types=("ResnetDownsampleBlock2D",) * 2,
        decoder_up_block_types=("ResnetUpsampleBlock2D",) * 2,
        decoder_layers_per_block=1,
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("made") / "decoder"
    model.save_pretrained(folder)
    return folder, model


def test_latents_and_images_are_those_of_diffusers(made, monkeypatch):
    folder, model = made
    tokenizer = open_tokenizer(str(folder), continuous=True)
    assert tokenizer.model.config == CONFIG
    latents = jax.jit(ModelTokenizer.encode)(tokenizer, IMAGES)
    decoded = jax.jit(ModelTokenizer.decode)(tokenizer, latents)

    steps = itertools.count()

    def same_noise(shape, **options):
        drawn = np.array(noise(next(steps), *shape[2:]))
        return torch.from_numpy(drawn).permute(2, 0, 1).expand(shape)

    for module in (
        diffusers.models.autoencoders.consistency_decoder_vae,
        diffusers.schedulers.scheduling_consistency_decoder,
    ):
        monkeypatch.setattr(module, "randn_tensor", same_noise)
    with torch.no_grad():
        mean = model.encode(torch.from_numpy(IMAGES).permute(0, 3, 1, 2)).latent_dist.mean
        expected = model.decode(mean).sample
    assert next(steps) == 2
    np.testing.assert_allclose(latents, mean.permute(0, 2, 3, 1), atol=1e-4)
    np.testing.assert_allclose(decoded, expected.permute(0, 2, 3, 1), atol=1e-4)


def test_images_do_not_depend_on_their_batch_and_an_export_keeps_them(made, tmp_path):
    tokenizer = open_tokenizer(str(made[0]), continuous=True)
    export.write(tmp_path / "export", tokenizer.model, tokenizer.params)
    again = open_tokenizer(str(tmp_path / "export"), continuous=True)
    assert again.model.config == CONFIG
    latents = ModelTokenizer.encode(tokenizer, IMAGES)
    decode = jax.jit(ModelTokenizer.decode)
    np.testing.assert_allclose(
        decode(again, latents[1:])[0], decode(tokenizer, latents)[1], atol=1e-5
    )
