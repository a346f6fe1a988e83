"""MaskGIT's VQGAN in its checkpoint, beside its definition in Flax with names by order."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization

from llamagen_jax import zoo
from llamagen_jax.errors import InputError
from llamagen_jax.image_tokenizer import ModelTokenizer, open_tokenizer
from llamagen_jax.models.maskgit_vqgan import MaskGITVQGAN, MaskGITVQGANConfig

CONFIG = MaskGITVQGANConfig(
    base_channels=32,
    channel_multipliers=(1, 2, 2),
    num_res_blocks=2,
    codebook_size=16,
    codebook_dim=6,
)


class Block(nn.Module):
    filters: int

    @nn.compact
    def __call__(self, x):
        y = nn.swish(nn.GroupNorm()(x))
        y = nn.Conv(self.filters, (3, 3), use_bias=False)(y)
        y = nn.swish(nn.GroupNorm()(y))
        y = nn.Conv(self.filters, (3, 3), use_bias=False)(y)
        if x.shape[-1] == self.filters:
            return x + y
        return nn.Conv(self.filters, (1, 1), use_bias=False)(y) + y


# Flax names the blocks by their class.
Block.__name__ = "ResBlock"


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(32, (3, 3), use_bias=False)(x)
        for level, filters in enumerate((32, 64, 64)):
            for _ in range(2):
                x = Block(filters)(x)
            if level < 2:
                B, H, W, C = x.shape
                x = x.reshape(B, H // 2, 2, W // 2, 2, C).mean((2, 4))
        for _ in range(2):
            x = Block(64)(x)
        return nn.Conv(6, (1, 1))(nn.swish(nn.GroupNorm()(x)))


class Decoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(64, (3, 3))(x)
        for _ in range(2):
            x = Block(64)(x)
        for level, filters in reversed(list(enumerate((32, 64, 64)))):
            for _ in range(2):
                x = Block(filters)(x)
            if level:
                B, H, W, C = x.shape
                x = nn.Conv(filters, (3, 3))(jax.image.resize(x, (B, 2 * H, 2 * W, C), "nearest"))
        return nn.Conv(3, (3, 3))(nn.swish(nn.GroupNorm()(x)))


@pytest.fixture(scope="module")
def params():
    """Random parameters by the names of the checkpoint."""
    encoder, decoder = (
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 8, 8, channels)))["params"]
        for module, channels in ((Encoder(), 3), (Decoder(), 6))
    )
    codebook = {"codebook": jax.ShapeDtypeStruct((16, 6), jnp.float32)}
    rng = np.random.default_rng(0)

    def draw(leaf):
        fan_in = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 2 else 1
        values = rng.standard_normal(leaf.shape) / np.sqrt(fan_in)
        return np.asarray(values if leaf.ndim > 1 else 0.5 + 0.5 * values, np.float32)

    return jax.tree.map(draw, {"encoder": encoder, "decoder": decoder, "quantizer": codebook})


def test_codes_and_images_are_those_of_the_definition(tmp_path, params):
    path = tmp_path / "tokenizer_imagenet256_checkpoint"
    path.write_bytes(serialization.msgpack_serialize({"params": params}))
    tokenizer = open_tokenizer(str(path))
    assert tokenizer.model == MaskGITVQGAN(CONFIG)
    images = np.random.default_rng(1).uniform(-1, 1, (2, 16, 24, 3)).astype(np.float32)
    codes = np.asarray(jax.jit(ModelTokenizer.encode)(tokenizer, images))
    latents = jax.jit(Encoder().apply)({"params": params["encoder"]}, (images + 1) / 2)
    codebook = params["quantizer"]["codebook"]
    distances = ((latents[..., None, :] - codebook) ** 2).sum(-1)
    np.testing.assert_array_equal(codes, distances.argmin(-1))
    assert len(np.unique(codes)) > 2
    decoded = jax.jit(ModelTokenizer.decode)(tokenizer, codes)
    expected = jax.jit(Decoder().apply)({"params": params["decoder"]}, codebook[codes])
    np.testing.assert_allclose(decoded, 2 * expected - 1, atol=1e-4)


def test_broken_checkpoints_are_one_clear_line(tmp_path, params):
    path = tmp_path / "checkpoint"
    for change, message in (
        ({"stray": np.zeros(2)}, r"do not fit a tokenizer of MaskGIT: unexpected: params/stray$"),
        ({"decoder": {}}, r"missing: params/decoder/Conv_0/bias, .*"),
        ({"step": 3}, r"holds params/step, not arrays; expected parameters"),
    ):
        path.write_bytes(serialization.msgpack_serialize({"params": params | change}))
        with pytest.raises(InputError, match=message):
            zoo.load(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="is a damaged state of Flax"):
        zoo.load(path)
