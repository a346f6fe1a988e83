"""The files of the original LlamaGen (github.com/FoundationVision/LlamaGen).

Names are those of its modules in `autoregressive/models/gpt.py` and
`tokenizer/tokenizer_image/vq_model.py`.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

from llamagen_jax.errors import InputError
from llamagen_jax.models.llama import LlamaConfig
from llamagen_jax.models.vqgan import VQGANConfig
from llamagen_jax.weights.formats import Format, Hints, count
from llamagen_jax.weights.kinds import make_config
from llamagen_jax.weights.names import NameTable
from llamagen_jax.weights.published import MODELS
from llamagen_jax.weights.shapes import Shapes

_LLAMA_NAMES = NameTable(
    names={
        "codes_embedding": "tok_embeddings",
        "condition_embedding/classes": "cls_embedding.embedding_table",
        "condition_embedding/null_features": "cls_embedding.uncond_embedding",
        "condition_embedding/fc1": "cls_embedding.cap_proj.fc1",
        "condition_embedding/fc2": "cls_embedding.cap_proj.fc2",
        "layers/attention_norm": "layers.{}.attention_norm",
        "layers/attention/q": "layers.{}.attention.wqkv",
        "layers/attention/k": "layers.{}.attention.wqkv",
        "layers/attention/v": "layers.{}.attention.wqkv",
        "layers/attention/out": "layers.{}.attention.wo",
        "layers/ffn_norm": "layers.{}.ffn_norm",
        "layers/gate": "layers.{}.feed_forward.w1",
        "layers/up": "layers.{}.feed_forward.w3",
        "layers/down": "layers.{}.feed_forward.w2",
        "norm": "norm",
        "output": "output.weight",
    },
    kernels=("output",),
    # The rotary table, the attention mask and the key-value cache.
    ignored=r"freqs_cis|causal_mask|layers\.\d+\.attention\.kv_cache\.[kv]_cache",
)

_VQGAN_NAMES = NameTable(
    names={
        r"(\w+)/(conv_in|norm_out|conv_out)": r"\1.\2",
        r"(\w+)/level_(\d+)_res_(\d+)/((?:norm|conv)[12])": r"\1.conv_blocks.\2.res.\3.\4",
        r"(\w+)/level_(\d+)_res_(\d+)/shortcut": r"\1.conv_blocks.\2.res.\3.nin_shortcut",
        r"(\w+)/level_(\d+)_attention_(\d+)/(norm|[qkv])": r"\1.conv_blocks.\2.attn.\3.\4",
        r"(\w+)/level_(\d+)_attention_(\d+)/out": r"\1.conv_blocks.\2.attn.\3.proj_out",
        r"(\w+)/level_(\d+)_(downsample|upsample)/conv": r"\1.conv_blocks.\2.\3.conv",
        r"(\w+)/middle_res_0/((?:norm|conv)[12])": r"\1.mid.0.\2",
        r"(\w+)/middle_attention/(norm|[qkv])": r"\1.mid.1.\2",
        r"(\w+)/middle_attention/out": r"\1.mid.1.proj_out",
        r"(\w+)/middle_res_1/((?:norm|conv)[12])": r"\1.mid.2.\2",
        r"(quant_conv|post_quant_conv)": r"\1",
        "quantizer/codebook": "quantize.embedding.weight",
    },
    # Code statistics of the original's training, without which it does not load strictly.
    buffers={"quantize.codebook_used": (65536,)},
)


def _infer_vqgan(shapes: Shapes, hints: Hints) -> VQGANConfig:
    base_channels = shapes["encoder.conv_in.weight"][0]
    outputs = [
        shapes[f"encoder.conv_blocks.{level}.res.0.conv1.weight"][0]
        for level in range(count(shapes, "encoder.conv_blocks."))
    ]
    codebook_size, codebook_dim = shapes["quantize.embedding.weight"]
    fields = {
        "base_channels": base_channels,
        "channel_multipliers": [channels // base_channels for channels in outputs],
        "num_res_blocks": count(shapes, "encoder.conv_blocks.0.res."),
        "z_channels": shapes["encoder.conv_out.weight"][0],
        "codebook_size": codebook_size,
        "codebook_dim": codebook_dim,
    }
    return make_config(VQGANConfig, fields, hints.source)


def _infer_llama(shapes: Shapes, hints: Hints) -> LlamaConfig:
    vocab_size, dim = shapes["tok_embeddings.weight"]
    fields: dict[str, Any] = {
        "vocab_size": vocab_size,
        "dim": dim,
        "n_layers": count(shapes, "layers."),
    }
    if "cls_embedding.uncond_embedding" in shapes:
        length, caption_dim = shapes["cls_embedding.uncond_embedding"]
        fields |= {"condition": "text", "condition_length": length, "caption_dim": caption_dim}
    else:
        length = 1
        fields["num_classes"] = shapes["cls_embedding.embedding_table.weight"][0] - 1
    fields["grid_size"] = _grid_size(shapes, length, hints)
    fields["n_heads"] = hints.n_heads or _published_heads(dim, fields["n_layers"], hints.source)
    qkv_heads = shapes["layers.0.attention.wqkv.weight"][0] * fields["n_heads"] // dim
    if qkv_heads != 3 * fields["n_heads"]:
        fields["n_kv_heads"] = (qkv_heads - fields["n_heads"]) // 2
    config = make_config(LlamaConfig, fields, hints.source)
    ffn_dim = shapes["layers.0.feed_forward.w1.weight"][0]
    return config if config.ffn_dim == ffn_dim else dataclasses.replace(config, multiple_of=ffn_dim)


def _published_heads(dim: int, n_layers: int, source: Path) -> int:
    for config in MODELS.values():
        if isinstance(config, LlamaConfig) and (config.dim, config.n_layers) == (dim, n_layers):
            return config.n_heads
    raise InputError(
        f"{source} is a transformer of an unpublished size (dim={dim}, n_layers={n_layers}): "
        "convert it with --n-heads"
    )


def _grid_size(shapes: Shapes, condition_length: int, hints: Hints) -> int:
    source, wanted = hints.source, hints.grid_size
    if "freqs_cis" in shapes:
        stored = math.isqrt(shapes["freqs_cis"][0] - condition_length)
        if wanted not in (None, stored):
            raise InputError(
                f"{source} has codes on a {stored}x{stored} grid; expected {wanted}x{wanted}"
            )
        return stored
    if wanted is None:
        raise InputError(
            f"{source} does not tell its image size: load it under its published name, such as "
            "c2i_L_384, or convert it with --grid-size"
        )
    return wanted


def _llama_names(config: LlamaConfig) -> NameTable:
    if config.grids:
        raise InputError(
            "the original's files have no place for the sizes of a generator of several grids: "
            "write an export folder"
        )
    return _LLAMA_NAMES


LLAMA = Format(
    origin="LlamaGen",
    config=LlamaConfig,
    markers=("tok_embeddings.weight",),
    infer=_infer_llama,
    table=_llama_names,
)
VQGAN = Format(
    origin="LlamaGen",
    config=VQGANConfig,
    markers=("encoder.conv_blocks.0.res.0.conv1.weight",),
    infer=_infer_vqgan,
    table=lambda config: _VQGAN_NAMES,
)
