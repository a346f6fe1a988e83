"""Autoencoders of Hugging Face `diffusers`.

They are its `VQModel`, such as that of aMUSEd (arXiv 2401.01808), its `AutoencoderKL`, such as
those of Stable Diffusion (arXiv 2112.10752), and its `ConsistencyDecoderVAE`.
"""

from typing import Any

from llamagen_jax.models.consistency_decoder import ConsistencyDecoderConfig
from llamagen_jax.models.kl_vae import KLVAEConfig
from llamagen_jax.models.vqgan import VQGANConfig
from llamagen_jax.weights.formats import Format, Hints, count
from llamagen_jax.weights.kinds import make_config
from llamagen_jax.weights.names import NameTable
from llamagen_jax.weights.shapes import Shapes


def _side(side: str, levels: str, resampled: str) -> dict[str, str]:
    return {
        rf"{side}/(conv_in|conv_out)": rf"{side}.\1",
        rf"{side}/norm_out": rf"{side}.conv_norm_out",
        rf"{side}/level_(\d+)_res_(\d+)/((?:norm|conv)[12])": rf"{levels}.\1.resnets.\2.\3",
        rf"{side}/level_(\d+)_res_(\d+)/shortcut": rf"{levels}.\1.resnets.\2.conv_shortcut",
        rf"{side}/level_(\d+)_attention_(\d+)/norm": rf"{levels}.\1.attentions.\2.group_norm",
        rf"{side}/level_(\d+)_attention_(\d+)/([qkv])": rf"{levels}.\1.attentions.\2.to_\3",
        rf"{side}/level_(\d+)_attention_(\d+)/out": rf"{levels}.\1.attentions.\2.to_out.0",
        rf"{side}/level_(\d+)_(?:down|up)sample/conv": rf"{levels}.\1.{resampled}.0.conv",
        rf"{side}/middle_res_(\d)/((?:norm|conv)[12])": rf"{side}.mid_block.resnets.\1.\2",
        rf"{side}/middle_attention/norm": rf"{side}.mid_block.attentions.0.group_norm",
        rf"{side}/middle_attention/([qkv])": rf"{side}.mid_block.attentions.0.to_\1",
        rf"{side}/middle_attention/out": rf"{side}.mid_block.attentions.0.to_out.0",
    }


_KL_NAMES = {
    **_side("encoder", "encoder.down_blocks", "downsamplers"),
    **_side("decoder", "decoder.up_blocks", "upsamplers"),
    r"(quant_conv|post_quant_conv)": r"\1",
}
_MATRICES = r".*attention(_\d+)?/([qkv]|out)"
_VQGAN_TABLE = NameTable(
    names=_KL_NAMES | {"quantizer/codebook": "quantize.embedding.weight"}, matrices=_MATRICES
)
# What older versions called them, as in the files of Stable Diffusion.
_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_KL_TABLE = NameTable(
    names=_KL_NAMES,
    matrices=_MATRICES,
    aliases={
        f"{side}.mid_block.attentions.0.{old}.{leaf}": f"{side}.mid_block.attentions.0.{new}.{leaf}"
        for side in ("encoder", "decoder")
        for old, new in _OLD.items()
        for leaf in ("weight", "bias")
    },
)

_RES = "norm1|conv1|norm2|conv2"
_UNET = {
    r"unet/(conv_in|conv_out)": r"decoder_unet.\1",
    "unet/norm_out": "decoder_unet.conv_norm_out",
    "unet/time": "decoder_unet.time_proj",
    "unet/time_in": "decoder_unet.time_embedding.linear_1",
    "unet/time_out": "decoder_unet.time_embedding.linear_2",
}
for _place, _blocks in {
    r"(down|up)_(\d+)_res_(\d+)": r"decoder_unet.\1_blocks.\2.resnets.\3",
    r"(down|up)_(\d+)_(down|up)sample": r"decoder_unet.\1_blocks.\2.\3samplers.0",
    r"()()middle_res_(\d+)": r"decoder_unet.mid_block.resnets.\3",
}.items():
    _UNET |= {
        rf"unet/{_place}/({_RES})": rf"{_blocks}.\4",
        rf"unet/{_place}/time": f"{_blocks}.time_emb_proj",
        rf"unet/{_place}/shortcut": f"{_blocks}.conv_shortcut",
    }
_CONSISTENCY_TABLE = NameTable(
    names={
        **_side("encoder", "encoder.down_blocks", "downsamplers"),
        "quant_conv": "quant_conv",
        **_UNET,
    },
    matrices=_MATRICES,
)


def _infer_sides(shapes: Shapes) -> dict[str, Any]:
    """Fields that both kinds have."""
    base_channels = shapes["encoder.conv_in.weight"][0]
    last = count(shapes, "encoder.down_blocks.") - 1
    outputs = [
        shapes[f"encoder.down_blocks.{level}.resnets.0.conv1.weight"][0]
        for level in range(last + 1)
    ]
    attention = "none"
    if f"encoder.down_blocks.{last}.attentions.0.to_q.weight" in shapes:
        attention = "lowest"
    elif "encoder.mid_block.attentions.0.group_norm.weight" in shapes:
        attention = "middle"
    return {
        "base_channels": base_channels,
        "channel_multipliers": [channels // base_channels for channels in outputs],
        "num_res_blocks": count(shapes, "encoder.down_blocks.0.resnets."),
        "attention": attention,
    }


def _infer_vqgan(shapes: Shapes, hints: Hints) -> VQGANConfig:
    sides = _infer_sides(shapes)
    codebook_size, codebook_dim = shapes["quantize.embedding.weight"]
    fields = sides | {
        "z_channels": shapes["encoder.conv_out.weight"][0],
        "codebook_size": codebook_size,
        "codebook_dim": codebook_dim,
        "l2_normalize": False,
        # Only aMUSEd's have no attention, and only its pipeline does not rescale pixels.
        "unit_pixels": sides["attention"] == "none",
    }
    return make_config(VQGANConfig, fields, hints.source)


def _infer_kl_vae(shapes: Shapes, hints: Hints) -> KLVAEConfig:
    fields = {"latent_channels": shapes["post_quant_conv.weight"][0]}
    return make_config(KLVAEConfig, _infer_sides(shapes) | fields, hints.source)


VQGAN = Format(
    origin="diffusers",
    config=VQGANConfig,
    markers=("encoder.down_blocks.0.resnets.0.conv1.weight", "quantize.embedding.weight"),
    infer=_infer_vqgan,
    table=lambda config: _VQGAN_TABLE,
)
KL_VAE = Format(
    origin="diffusers",
    config=KLVAEConfig,
    markers=("encoder.down_blocks.0.resnets.0.conv1.weight", "quant_conv.weight"),
    infer=_infer_kl_vae,
    table=lambda config: _KL_TABLE,
)


def _infer_consistency_decoder(shapes: Shapes, hints: Hints) -> ConsistencyDecoderConfig:
    vae = _infer_sides(shapes) | {"latent_channels": shapes["quant_conv.weight"][0] // 2}
    levels = range(count(shapes, "decoder_unet.down_blocks."))
    blocks = "decoder_unet.down_blocks.{}.resnets.0.conv1.weight"
    fields = {
        "vae": vae,
        "unet_channels": [shapes[blocks.format(level)][0] for level in levels],
        "unet_res_blocks": count(shapes, "decoder_unet.down_blocks.0.resnets."),
    }
    return make_config(ConsistencyDecoderConfig, fields, hints.source)


CONSISTENCY_DECODER = Format(
    origin="diffusers",
    config=ConsistencyDecoderConfig,
    markers=("decoder_unet.conv_in.weight", "quant_conv.weight"),
    infer=_infer_consistency_decoder,
    table=lambda config: _CONSISTENCY_TABLE,
)
