"""VQGANs in the folders of `diffusers`, beside its own module."""

import jax
import numpy as np
import pytest

import llamagen_jax as lg
from llamagen_jax import zoo
from llamagen_jax.errors import InputError
from llamagen_jax.image_tokenizer import ModelTokenizer, open_tokenizer

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

SIZES = {
    "block_out_channels": (32, 64),
    "layers_per_block": 2,
    "latent_channels": 8,
    "num_vq_embeddings": 16,
}
CONFIG = lg.VQGANConfig(
    base_channels=32,
    channel_multipliers=(1, 2),
    z_channels=8,
    codebook_size=16,
    codebook_dim=8,
    l2_normalize=False,
)
EVERYWHERE = {
    "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
}
NOWHERE = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}


def write(folder, **options):
    """A folder with a random model, and the model."""
    torch.manual_seed(0)
    model = diffusers.VQModel(**SIZES, **options).eval()
    # So that codes differ and norms matter.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
            if "quantize" in name:
                parameter.copy_(torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    ("options", "attention"),
    [
        (NOWHERE | {"mid_block_add_attention": False}, "none"),
        (NOWHERE, "middle"),
        (EVERYWHERE, "lowest"),
    ],
)
def test_codes_and_images_are_those_of_diffusers(tmp_path, options, attention):
    model = write(tmp_path, **options)
    tokenizer = open_tokenizer(str(tmp_path))
    config = tokenizer.model.config
    # aMUSEd's pipeline gives its model, which has no attention, pixels in [0, 1].
    unit = attention == "none"
    assert config == lg.VQGANConfig(**{**vars(CONFIG), "attention": attention, "unit_pixels": unit})
    images = np.random.default_rng(0).uniform(-1, 1, (2, 8, 12, 3)).astype(np.float32)
    codes = np.array(jax.jit(ModelTokenizer.encode)(tokenizer, images))
    decoded = jax.jit(ModelTokenizer.decode)(tokenizer, codes)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    with torch.no_grad():
        latents = model.encode((pixels + 1) / 2 if unit else pixels).latents
        quantized, _, (_, _, theirs) = model.quantize(latents)
        expected = model.decode(quantized, force_not_quantize=True).sample.permute(0, 2, 3, 1)
    np.testing.assert_array_equal(codes.ravel(), theirs.numpy().ravel())
    assert len(np.unique(codes)) > 4
    np.testing.assert_allclose(decoded, 2 * expected - 1 if unit else expected, atol=1e-4)


def test_a_folder_of_another_class_is_one_clear_line(tmp_path):
    diffusers.VQModel(**SIZES, **NOWHERE, norm_type="spatial").save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"missing: decoder\.conv_norm_out\.bias.*; unexpected"):
        zoo.load(tmp_path)
