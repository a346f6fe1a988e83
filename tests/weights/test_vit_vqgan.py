"""ViT-VQGAN in the files of enhancing-transformers, beside its definition in PyTorch."""

import golden_weights
import jax
import numpy as np
import pytest

from llamagen_jax import zoo
from llamagen_jax.errors import InputError
from llamagen_jax.image_tokenizer import ModelTokenizer, open_tokenizer
from llamagen_jax.models.vit_vqgan import ViTVQGANConfig

torch = pytest.importorskip("torch")
F = torch.nn.functional

CONFIG = ViTVQGANConfig(
    patch_size=4,
    dim=16,
    n_layers=2,
    n_heads=2,
    head_dim=64,
    ffn_dim=24,
    codebook_size=32,
    codebook_dim=6,
)


def sines(rows, columns, width):
    """By the definition of MAE's two-dimensional positions, columns first."""
    out = np.zeros((rows * columns, width))
    for patch in range(rows * columns):
        for half, place in enumerate((patch % columns, patch // columns)):
            for i in range(width // 4):
                angle = place / 10000 ** (i / (width / 4))
                out[patch, half * width // 2 + i] = np.sin(angle)
                out[patch, half * width // 2 + width // 4 + i] = np.cos(angle)
    return torch.from_numpy(out).float()


class Definition:
    def __init__(self, state):
        self.state = {name: torch.from_numpy(np.array(t)) for name, t in state.items()}

    def linear(self, name, x):
        return F.linear(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"))

    def norm(self, name, x):
        return F.layer_norm(
            x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        )

    def transformer(self, side, x):
        for i in range(CONFIG.n_layers):
            layer = f"{side}.transformer.layers.{i}"
            y = self.linear(f"{layer}.0.fn.to_qkv", self.norm(f"{layer}.0.norm", x))
            q, k, v = (
                part.unflatten(-1, (CONFIG.n_heads, CONFIG.head_dim)).transpose(1, 2)
                for part in y.chunk(3, dim=-1)
            )
            weights = torch.softmax(q @ k.transpose(-1, -2) * CONFIG.head_dim**-0.5, dim=-1)
            x = x + self.linear(f"{layer}.0.fn.to_out", (weights @ v).transpose(1, 2).flatten(2))
            y = torch.tanh(self.linear(f"{layer}.1.fn.net.0", self.norm(f"{layer}.1.norm", x)))
            x = x + self.linear(f"{layer}.1.fn.net.2", y)
        return self.norm(f"{side}.transformer.norm", x)

    def encode(self, images):
        name, p = "encoder.to_patch_embedding.0", CONFIG.patch_size
        x = F.conv2d(images, self.state[f"{name}.weight"], self.state[f"{name}.bias"], stride=p)
        x = x.flatten(2).transpose(1, 2) + sines(*x.shape[2:], CONFIG.dim)
        z = F.normalize(self.linear("pre_quant", self.transformer("encoder", x)), dim=-1)
        entries = F.normalize(self.state["quantizer.embedding.weight"], dim=-1)
        return torch.cdist(z, entries[None]).argmin(-1)

    def decode(self, codes):
        B, h, w = codes.shape
        entries = F.normalize(self.state["quantizer.embedding.weight"][codes.flatten(1)], dim=-1)
        x = self.linear("post_quant", entries) + sines(h, w, CONFIG.dim)
        x = self.transformer("decoder", x).transpose(1, 2).reshape(B, CONFIG.dim, h, w)
        name = "decoder.to_pixel.1"
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return F.conv_transpose2d(x, weight, bias, stride=CONFIG.patch_size)


def test_codes_and_images_are_those_of_the_definition(tmp_path):
    state = golden_weights.state_dict(CONFIG)
    # What else its checkpoints hold.
    others = {
        "encoder.en_pos_embedding": sines(3, 4, 16)[None],
        "decoder.de_pos_embedding": sines(3, 4, 16)[None],
        "loss.discriminator.blocks.0.weight": torch.zeros(2),
    }
    path = golden_weights.save_torch(
        tmp_path / "vit.ckpt", CONFIG, wrap=lambda tensors: {"state_dict": tensors | others}
    )
    tokenizer = open_tokenizer(str(path))
    assert tokenizer.model.config == CONFIG
    images = np.random.default_rng(0).uniform(-1, 1, (2, 12, 16, 3)).astype(np.float32)
    codes = np.array(jax.jit(ModelTokenizer.encode)(tokenizer, images))
    decoded = jax.jit(ModelTokenizer.decode)(tokenizer, codes)
    theirs = Definition(state)
    expected = theirs.encode(torch.from_numpy((images + 1) / 2).permute(0, 3, 1, 2))
    np.testing.assert_array_equal(codes.reshape(2, -1), expected)
    assert len(np.unique(codes)) > 4
    pixels = 2 * theirs.decode(torch.from_numpy(codes).long()).permute(0, 2, 3, 1) - 1
    np.testing.assert_allclose(decoded, pixels, atol=1e-4)


def test_a_file_without_a_layer_is_told(tmp_path):
    def cut(tensors):
        return {"state_dict": {n: t for n, t in tensors.items() if "decoder.transformer" not in n}}

    path = golden_weights.save_torch(tmp_path / "vit.ckpt", CONFIG, wrap=cut)
    with pytest.raises(InputError, match=r"missing: decoder\.transformer\.layers\.0"):
        zoo.load(path)
