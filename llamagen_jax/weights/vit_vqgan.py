"""ViT-VQGAN in the checkpoints of github.com/thuanz123/enhancing-transformers.

Names are those of its `enhancing/modules/stage1/vitvqgan.py` and `layers.py`.
"""

from llamagen_jax.models.vit_vqgan import ViTVQGANConfig
from llamagen_jax.weights.formats import Format, Hints, count
from llamagen_jax.weights.kinds import make_config
from llamagen_jax.weights.names import NameTable
from llamagen_jax.weights.shapes import Shapes

# Of all published ones; tensors do not show it.
_HEAD_DIM = 64


def _infer(shapes: Shapes, hints: Hints) -> ViTVQGANConfig:
    dim, _, patch_size, _ = shapes["encoder.to_patch_embedding.0.weight"]
    inner = shapes["encoder.transformer.layers.0.0.fn.to_qkv.weight"][0] // 3
    codebook_size, codebook_dim = shapes["quantizer.embedding.weight"]
    n_heads = hints.n_heads or max(inner // _HEAD_DIM, 1)
    fields = {
        "patch_size": patch_size,
        "dim": dim,
        "n_layers": count(shapes, "encoder.transformer.layers."),
        "n_heads": n_heads,
        "head_dim": inner // n_heads,
        "ffn_dim": shapes["encoder.transformer.layers.0.1.fn.net.0.weight"][0],
        "codebook_size": codebook_size,
        "codebook_dim": codebook_dim,
    }
    return make_config(ViTVQGANConfig, fields, hints.source)


_LAYER = r"\1.transformer.layers.\2"
_NAMES = NameTable(
    names={
        "patches": "encoder.to_patch_embedding.0",
        r"(\w+)/layer_(\d+)_attention_norm": rf"{_LAYER}.0.norm",
        r"(\w+)/layer_(\d+)_attention/q": rf"{_LAYER}.0.fn.to_qkv",
        r"(\w+)/layer_(\d+)_attention/k": rf"{_LAYER}.0.fn.to_qkv",
        r"(\w+)/layer_(\d+)_attention/v": rf"{_LAYER}.0.fn.to_qkv",
        r"(\w+)/layer_(\d+)_attention/out": rf"{_LAYER}.0.fn.to_out",
        r"(\w+)/layer_(\d+)_ffn_norm": rf"{_LAYER}.1.norm",
        r"(\w+)/layer_(\d+)_up": rf"{_LAYER}.1.fn.net.0",
        r"(\w+)/layer_(\d+)_down": rf"{_LAYER}.1.fn.net.2",
        r"(encoder|decoder)/norm": r"\1.transformer.norm",
        "pixels": "decoder.to_pixel.1",
        r"(pre_quant|post_quant)": r"\1",
        "quantizer/codebook": "quantizer.embedding.weight",
    },
    # The loss of its training, and sines of positions, which are computed.
    ignored=r"loss\..*|encoder\.en_pos_embedding|decoder\.de_pos_embedding",
)

VQGAN = Format(
    origin="enhancing-transformers",
    config=ViTVQGANConfig,
    markers=("encoder.to_patch_embedding.0.weight", "quantizer.embedding.weight"),
    infer=_infer,
    table=lambda config: _NAMES,
)
