"""VQGANs of taming-transformers (github.com/CompVis/taming-transformers, arXiv 2012.09841).

Names are those of its `taming/models/vqgan.py` and `taming/modules/diffusionmodules/model.py`.
"""

from llamagen_jax.models.vqgan import VQGANConfig
from llamagen_jax.weights.formats import Format, Hints, count
from llamagen_jax.weights.kinds import make_config
from llamagen_jax.weights.names import NameTable
from llamagen_jax.weights.shapes import Shapes


def _infer(shapes: Shapes, hints: Hints) -> VQGANConfig:
    base_channels = shapes["encoder.conv_in.weight"][0]
    last = count(shapes, "encoder.down.") - 1
    outputs = [shapes[f"encoder.down.{i}.block.0.conv1.weight"][0] for i in range(last + 1)]
    codebook_size, codebook_dim = shapes["quantize.embedding.weight"]
    fields = {
        "base_channels": base_channels,
        "channel_multipliers": [channels // base_channels for channels in outputs],
        "num_res_blocks": count(shapes, "encoder.down.0.block."),
        "attention": "lowest" if f"encoder.down.{last}.attn.0.q.weight" in shapes else "middle",
        "z_channels": shapes["encoder.conv_out.weight"][0],
        "codebook_size": codebook_size,
        "codebook_dim": codebook_dim,
        "l2_normalize": False,
    }
    return make_config(VQGANConfig, fields, hints.source)


def _table(config: VQGANConfig) -> NameTable:
    names = {
        r"(\w+)/(conv_in|norm_out|conv_out)": r"\1.\2",
        r"(\w+)/middle_res_0/((?:norm|conv)[12])": r"\1.mid.block_1.\2",
        r"(\w+)/middle_attention/(norm|[qkv])": r"\1.mid.attn_1.\2",
        r"(\w+)/middle_attention/out": r"\1.mid.attn_1.proj_out",
        r"(\w+)/middle_res_1/((?:norm|conv)[12])": r"\1.mid.block_2.\2",
        r"(quant_conv|post_quant_conv)": r"\1",
        "quantizer/codebook": "quantize.embedding.weight",
    }
    levels = len(config.channel_multipliers)
    for level in range(levels):
        # These files count from the highest resolution in the decoder too.
        for ours, theirs in (
            (f"encoder/level_{level}", f"encoder.down.{level}"),
            (f"decoder/level_{level}", f"decoder.up.{levels - 1 - level}"),
        ):
            names |= {
                rf"{ours}_res_(\d+)/((?:norm|conv)[12])": rf"{theirs}.block.\1.\2",
                rf"{ours}_res_(\d+)/shortcut": rf"{theirs}.block.\1.nin_shortcut",
                rf"{ours}_attention_(\d+)/(norm|[qkv])": rf"{theirs}.attn.\1.\2",
                rf"{ours}_attention_(\d+)/out": rf"{theirs}.attn.\1.proj_out",
                rf"{ours}_(downsample|upsample)/conv": rf"{theirs}.\1.conv",
            }
    # The discriminator and LPIPS of its training.
    return NameTable(names=names, ignored=r"loss\..*")


VQGAN = Format(
    origin="taming-transformers",
    config=VQGANConfig,
    markers=("encoder.down.0.block.0.conv1.weight", "quantize.embedding.weight"),
    infer=_infer,
    table=_table,
)
