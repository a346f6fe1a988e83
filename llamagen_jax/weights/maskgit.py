"""MaskGIT's VQGAN in the checkpoints of github.com/google-research/maskgit.

Names are those that Flax gives the modules of its `maskgit/nets/vqgan_tokenizer.py` by their order.
"""

from llamagen_jax.models.maskgit_vqgan import MaskGITVQGANConfig
from llamagen_jax.weights.formats import Format, Hints, count
from llamagen_jax.weights.kinds import make_config
from llamagen_jax.weights.names import NameTable
from llamagen_jax.weights.shapes import Shapes

_BLOCK = {
    "norm1": "GroupNorm_0",
    "conv1": "Conv_0",
    "norm2": "GroupNorm_1",
    "conv2": "Conv_1",
    "shortcut": "Conv_2",
}


def _infer(shapes: Shapes, hints: Hints) -> MaskGITVQGANConfig:
    base_channels = shapes["params/encoder/Conv_0/kernel"][-1]
    # All but the first and the last convolution of the decoder follow an upsampling.
    levels = max(count(shapes, "params/decoder/Conv_") - 1, 1)
    # The encoder has as many blocks in the middle as at each level.
    blocks = count(shapes, "params/encoder/ResBlock_") // (levels + 1)
    outputs = [
        shapes[f"params/encoder/ResBlock_{level * blocks}/Conv_0/kernel"][-1]
        for level in range(levels)
    ]
    codebook_size, codebook_dim = shapes["params/quantizer/codebook"]
    fields = {
        "base_channels": base_channels,
        "channel_multipliers": [channels // base_channels for channels in outputs],
        "num_res_blocks": blocks,
        "codebook_size": codebook_size,
        "codebook_dim": codebook_dim,
    }
    return make_config(MaskGITVQGANConfig, fields, hints.source)


def _table(config: MaskGITVQGANConfig) -> NameTable:
    levels = len(config.channel_multipliers)
    names = {
        r"(\w+)/conv_in": r"params/\1/Conv_0",
        r"(\w+)/norm_out": r"params/\1/GroupNorm_0",
        "encoder/conv_out": "params/encoder/Conv_1",
        "decoder/conv_out": f"params/decoder/Conv_{levels}",
        r"decoder/level_(\d+)_upsample": r"params/decoder/Conv_\1",
        "quantizer/codebook": "params/quantizer/codebook",
    }
    levels_in_order = [f"level_{level}" for level in range(levels)]
    for side, places in (
        ("encoder", [*levels_in_order, "middle"]),
        ("decoder", ["middle", *levels_in_order]),
    ):
        blocks = [f"{p}_res_{block}" for p in places for block in range(config.num_res_blocks)]
        for number, block in enumerate(blocks):
            for ours, theirs in _BLOCK.items():
                names[f"{side}/{block}/{ours}"] = f"params/{side}/ResBlock_{number}/{theirs}"
    suffixes = {leaf: f"/{leaf}" for leaf in ("kernel", "scale", "bias")}
    return NameTable(names=names, suffixes=suffixes, transposed=False)


VQGAN = Format(
    origin="MaskGIT",
    config=MaskGITVQGANConfig,
    markers=("params/encoder/ResBlock_0/Conv_0/kernel", "params/quantizer/codebook"),
    infer=_infer,
    table=_table,
)
