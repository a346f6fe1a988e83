"""VQGANs in the files of taming-transformers, beside its definition in PyTorch."""

import dataclasses
import sys

import golden_weights
import jax
import numpy as np
import pytest

import llamagen_jax as lg
from llamagen_jax import zoo
from llamagen_jax.errors import InputError
from llamagen_jax.image_tokenizer import ModelTokenizer, open_tokenizer
from llamagen_jax.weights import taming
from llamagen_jax.weights.mapping import layout_of

torch = pytest.importorskip("torch")
F = torch.nn.functional

CONFIG = lg.VQGANConfig(
    base_channels=32,
    channel_multipliers=(1, 1, 2),
    num_res_blocks=2,
    z_channels=8,
    codebook_size=16,
    codebook_dim=6,
    l2_normalize=False,
)


class Taming:
    """The definition: a state dict applied to images, with attention where the file has it."""

    def __init__(self, state):
        self.state = state

    def conv(self, name, x, **options):
        return F.conv2d(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"], **options)

    def norm(self, name, x):
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return F.group_norm(x, 32, weight, bias, eps=1e-6)

    def block(self, name, x):
        h = self.conv(f"{name}.conv1", F.silu(self.norm(f"{name}.norm1", x)), padding=1)
        h = self.conv(f"{name}.conv2", F.silu(self.norm(f"{name}.norm2", h)), padding=1)
        return h + (self.conv(f"{name}.nin_shortcut", x) if x.shape != h.shape else x)

    def attention(self, name, x):
        if f"{name}.q.weight" not in self.state:
            return x
        h = self.norm(f"{name}.norm", x)
        q, k, v = (self.conv(f"{name}.{part}", h).flatten(2) for part in "qkv")
        weights = torch.softmax(q.transpose(1, 2) @ k / x.shape[1] ** 0.5, dim=-1)
        return x + self.conv(f"{name}.proj_out", (v @ weights.transpose(1, 2)).view(x.shape))

    def middle(self, side, x):
        x = self.attention(f"{side}.mid.attn_1", self.block(f"{side}.mid.block_1", x))
        return self.block(f"{side}.mid.block_2", x)

    def out(self, side, x):
        return self.conv(f"{side}.conv_out", F.silu(self.norm(f"{side}.norm_out", x)), padding=1)

    def encode(self, images):
        x = self.conv("encoder.conv_in", images, padding=1)
        for level in range(3):
            for i in range(2):
                x = self.block(f"encoder.down.{level}.block.{i}", x)
                x = self.attention(f"encoder.down.{level}.attn.{i}", x)
            if level < 2:
                padded = F.pad(x, (0, 1, 0, 1))
                x = self.conv(f"encoder.down.{level}.downsample.conv", padded, stride=2)
        z = self.conv("quant_conv", self.out("encoder", self.middle("encoder", x)))
        codebook = self.state["quantize.embedding.weight"]
        return torch.cdist(z.permute(0, 2, 3, 1).flatten(0, 2), codebook).argmin(-1)

    def decode(self, codes):
        quantized = self.state["quantize.embedding.weight"][codes].permute(0, 3, 1, 2)
        x = self.conv("decoder.conv_in", self.conv("post_quant_conv", quantized), padding=1)
        x = self.middle("decoder", x)
        for level in reversed(range(3)):
            for i in range(3):
                x = self.block(f"decoder.up.{level}.block.{i}", x)
                x = self.attention(f"decoder.up.{level}.attn.{i}", x)
            if level:
                x = F.interpolate(x, scale_factor=2.0)
                x = self.conv(f"decoder.up.{level}.upsample.conv", x, padding=1)
        return self.out("decoder", x)


class ModelCheckpoint:
    """Pretends to be a class of Lightning, whose checkpoints name their callbacks by it."""

    def __reduce__(self):
        return ModelCheckpoint, ("/tmp",), {"best": 1.0}


def write(path, config, monkeypatch, module="pytorch_lightning", **changes):
    """A checkpoint as Lightning writes it, and its state dict."""
    shapes = layout_of(config, taming.VQGAN).tensor_shapes
    state = {name: torch.from_numpy(golden_weights.tensor(name, shapes[name])) for name in shapes}
    extra = {"loss.discriminator.main.0.weight": torch.zeros(2)}
    monkeypatch.setattr(ModelCheckpoint, "__module__", module)
    holder = type("", (), {"ModelCheckpoint": ModelCheckpoint})
    monkeypatch.setitem(sys.modules, module, holder)
    callbacks = {ModelCheckpoint: {"best": 2.0}, "instance": ModelCheckpoint()}
    torch.save({"state_dict": state | extra | changes, "callbacks": callbacks}, path)
    monkeypatch.undo()
    return state


@pytest.mark.parametrize("attention", ["lowest", "middle"])
def test_codes_and_images_are_those_of_the_definition(tmp_path, monkeypatch, attention):
    config = dataclasses.replace(CONFIG, attention=attention)
    state = write(tmp_path / "last.ckpt", config, monkeypatch)
    tokenizer = open_tokenizer(str(tmp_path / "last.ckpt"))
    assert tokenizer.model == lg.VQGAN(config)
    images = np.random.default_rng(0).uniform(-1, 1, (2, 16, 24, 3)).astype(np.float32)
    codes = np.asarray(jax.jit(ModelTokenizer.encode)(tokenizer, images))
    theirs = Taming(state).encode(torch.from_numpy(images).permute(0, 3, 1, 2))
    np.testing.assert_array_equal(codes, theirs.numpy().reshape(2, 4, 6))
    assert len(np.unique(codes)) > 4
    decoded = jax.jit(ModelTokenizer.decode)(tokenizer, codes)
    expected = Taming(state).decode(torch.from_numpy(codes).long()).permute(0, 2, 3, 1)
    np.testing.assert_allclose(decoded, expected, atol=1e-4, rtol=1e-4)


def test_loading_is_strict_and_runs_no_code(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    write(path, CONFIG, monkeypatch, stray=torch.zeros(2))
    with pytest.raises(InputError, match=r"do not fit a tokenizer: unexpected: stray$"):
        zoo.load(path)
    write(path, CONFIG, monkeypatch, module="elsewhere")
    with pytest.raises(InputError, match=r"pickled code \(elsewhere\.ModelCheckpoint\)"):
        zoo.load(path)
