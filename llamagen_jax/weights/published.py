"""The sizes of the paper by name, and the released models, a record each."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamagen_jax.errors import InputError
from llamagen_jax.models.consistency_decoder import ConsistencyDecoderConfig
from llamagen_jax.models.kl_vae import KLVAEConfig
from llamagen_jax.models.llama import LlamaConfig
from llamagen_jax.models.maskgit_vqgan import MaskGITVQGANConfig
from llamagen_jax.models.vit_vqgan import ViTVQGANConfig
from llamagen_jax.models.vqgan import VQGANConfig
from llamagen_jax.weights.kinds import Config, describe

# Sizes of the paper's table 1 and of the original's code; generators class-conditional at 256 px.
MODELS: dict[str, Any] = {
    "VQ-16": VQGANConfig(channel_multipliers=(1, 1, 2, 2, 4)),
    "VQ-8": VQGANConfig(channel_multipliers=(1, 2, 2, 4)),
    "GPT-B": LlamaConfig(n_layers=12, n_heads=12, dim=768),
    "GPT-L": LlamaConfig(n_layers=24, n_heads=16, dim=1024),
    "GPT-XL": LlamaConfig(n_layers=36, n_heads=20, dim=1280),
    "GPT-XXL": LlamaConfig(n_layers=48, n_heads=24, dim=1536),
    "GPT-XXXL": LlamaConfig(n_layers=48, n_heads=40, dim=2560),
    "GPT-1B": LlamaConfig(n_layers=22, n_heads=32, dim=2048),
    "GPT-3B": LlamaConfig(n_layers=24, n_heads=32, dim=3200),
    "GPT-7B": LlamaConfig(n_layers=32, n_heads=32, dim=4096),
}

_README = "README of github.com/FoundationVision/LlamaGen"
_PAPER = "arXiv 2406.06525"
# As published; that of GPT-XL leaves out the layers that read captions.
_PARAMETERS = {
    "VQ-16": 72_000_000,
    "VQ-8": 70_000_000,
    "GPT-B": 111_000_000,
    "GPT-L": 343_000_000,
    "GPT-XL": 775_000_000,
    "GPT-XXL": 1_400_000_000,
    "GPT-3B": 3_100_000_000,
}

# Fields that leave the weights and their meaning alone.
_TRAINING_FIELDS = {
    "dtype",
    "condition_dropout",
    "token_dropout",
    "code_dropout",
    "residual_dropout",
    "ffn_dropout",
    "drop_path",
    "commitment_weight",
    "entropy_weight",
}


@dataclasses.dataclass(frozen=True)
class Published:
    """A released model; figures are the original's, and None or empty where there is none.

    Attributes:
      config: of the model.
      repository: on the Hugging Face Hub; None where it is not there.
      file: its weights there, or at `page`.
      parameters: their number, rounded.
      source: where the figures are from.
      page: where a file that is not on the Hub can be downloaded.
      resolution: side in pixels of the images that a generator makes; None for a tokenizer.
      training_data: what a generator of captions was trained on.
      fid: of samples of ImageNet classes, resized to 256 px.
      guidance_scale: of those samples, which top-k and top-p leave alone, at temperature 1.
      rfid: FID of reconstructions of the ImageNet validation set at 256 px, by the resolution that
        they were made at.
    """

    config: Config
    repository: str | None
    file: str
    parameters: int
    source: str
    page: str | None = None
    resolution: int | None = None
    training_data: str | None = None
    fid: float | None = None
    guidance_scale: float | None = None
    rfid: Mapping[int, float] = dataclasses.field(default_factory=dict)


def _class_generator(
    size: str, resolution: int, file: str, fid: float, guidance_scale: float
) -> Published:
    return Published(
        config=dataclasses.replace(MODELS[size], grid_size=resolution // 16),
        repository="FoundationVision/LlamaGen",
        file=file,
        parameters=_PARAMETERS[size],
        resolution=resolution,
        fid=fid,
        guidance_scale=guidance_scale,
        source=f"{_README}; guidance scale: {_PAPER}, tables 6, 8, 9 and 10",
    )


def _text_generator(size: str, resolution: int, file: str, training_data: str) -> Published:
    return Published(
        config=dataclasses.replace(
            MODELS[size], grid_size=resolution // 16, condition="text", condition_length=120
        ),
        repository="peizesun/llamagen_t2i",
        file=file,
        parameters=_PARAMETERS[size],
        resolution=resolution,
        training_data=training_data,
        source=_README,
    )


def _tokenizer(
    size: str, file: str, rfid: Mapping[int, float], repository: str = "FoundationVision/LlamaGen"
) -> Published:
    return Published(
        config=MODELS[size],
        repository=repository,
        file=file,
        parameters=_PARAMETERS[size],
        rfid=rfid,
        source=f"{_README}; rFID also: {_PAPER}, table 3" if rfid else _README,
    )


def _taming(codebook_size: int, parameters: int, page: str, rfid: float) -> Published:
    return Published(
        config=VQGANConfig(codebook_size=codebook_size, codebook_dim=256, l2_normalize=False),
        repository=None,
        file="ckpts/last.ckpt",
        page=page,
        parameters=parameters,
        rfid={256: rfid},
        source="README of github.com/CompVis/taming-transformers, against the validation set",
    )


def _vit_vqgan(size: str, parameters: int, **sizes: Any) -> Published:
    return Published(
        config=ViTVQGANConfig(**sizes),
        repository=f"thuanz123/vitvqgan-imagenet-{size}",
        file=f"imagenet_vitvq_{size}.ckpt",
        parameters=parameters,
        source="README of github.com/thuanz123/enhancing-transformers",
    )


def _sd_vae(version: str) -> Published:
    return Published(
        config=KLVAEConfig(),
        repository=f"stabilityai/sd-vae-ft-{version}",
        file="diffusion_pytorch_model.safetensors",
        parameters=84_000_000,
        source="arXiv 2112.10752; the model cards give figures on COCO and LAION",
    )


_AMUSED = VQGANConfig(
    channel_multipliers=(1, 2, 2, 4, 6),
    attention="none",
    z_channels=64,
    codebook_size=8192,
    codebook_dim=64,
    l2_normalize=False,
    unit_pixels=True,
)

PUBLISHED = {
    "vq_ds16_c2i": _tokenizer("VQ-16", "vq_ds16_c2i.pt", {256: 2.19, 384: 0.94, 512: 0.70}),
    "vq_ds8_c2i": _tokenizer("VQ-8", "vq_ds8_c2i.pt", {256: 0.59}),
    "vq_ds16_t2i": _tokenizer("VQ-16", "vq_ds16_t2i.pt", {}, repository="peizesun/llamagen_t2i"),
    "taming_f16_1024": _taming(
        1024, 72_000_000, "https://heibox.uni-heidelberg.de/d/8088892a516d4e3baf92/", 7.94
    ),
    "taming_f16_16384": _taming(
        16384, 76_000_000, "https://heibox.uni-heidelberg.de/d/a7530b09fed84f80a887/", 4.98
    ),
    "maskgit_f16_1024": Published(
        config=MaskGITVQGANConfig(),
        repository=None,
        file="tokenizer_imagenet256_checkpoint",
        page="https://storage.googleapis.com/maskgit-public/checkpoints/",
        parameters=55_000_000,
        rfid={256: 2.28},
        source="README of github.com/google-research/maskgit",
    ),
    "amused_f16_8192": Published(
        config=_AMUSED,
        repository="amused/amused-256",
        file="vqvae/diffusion_pytorch_model.safetensors",
        parameters=146_000_000,
        source="arXiv 2401.01808",
    ),
    "vit_vqgan_small": _vit_vqgan(
        "small", 51_000_000, dim=512, n_layers=8, n_heads=8, ffn_dim=2048
    ),
    "vit_vqgan_base": _vit_vqgan("base", 172_000_000),
    "sd_vae_f8_ema": _sd_vae("ema"),
    "sd_vae_f8_mse": _sd_vae("mse"),
    "consistency_decoder": Published(
        config=ConsistencyDecoderConfig(),
        repository="openai/consistency-decoder",
        file="diffusion_pytorch_model.safetensors",
        parameters=655_000_000,
        source="github.com/openai/consistencydecoder",
    ),
    "c2i_B_256": _class_generator("GPT-B", 256, "c2i_B_256.pt", 5.46, 2.00),
    "c2i_B_384": _class_generator("GPT-B", 384, "c2i_B_384.pt", 6.09, 2.25),
    "c2i_L_256": _class_generator("GPT-L", 256, "c2i_L_256.pt", 3.80, 1.75),
    "c2i_L_384": _class_generator("GPT-L", 384, "c2i_L_384.pt", 3.07, 2.00),
    "c2i_XL_384": _class_generator("GPT-XL", 384, "c2i_XL_384.pt", 2.62, 1.75),
    "c2i_XXL_384": _class_generator("GPT-XXL", 384, "c2i_XXL_384.pt", 2.34, 1.75),
    "c2i_3B_384": _class_generator("GPT-3B", 384, "c2i_3B_384.pt", 2.18, 1.65),
    "t2i_XL_stage1_256": _text_generator("GPT-XL", 256, "t2i_XL_stage1_256.pt", "LAION-COCO, 50M"),
    "t2i_XL_stage2_512": _text_generator("GPT-XL", 512, "t2i_XL_stage2_512.pt", "internal, 10M"),
}


def check_published(name: str, config: Config, source: str | Path) -> None:
    """InputError unless `config`, read from `source`, is that of the published model `name`."""
    expected = PUBLISHED[name].config
    different = []
    if type(config) is type(expected):
        different = [
            field.name
            for field in dataclasses.fields(config)
            if field.name not in _TRAINING_FIELDS
            and getattr(config, field.name) != getattr(expected, field.name)
        ]
        if not different:
            return
    if "condition" in different:  # The descriptions tell, and other fields follow from it.
        different = []

    def summary(c: Config) -> str:
        sizes = ", ".join(f"{field}={getattr(c, field)}" for field in different)
        return f"a {describe(c)}" + (f" with {sizes}" if sizes else "")

    raise InputError(f"{source} is {summary(config)}; expected {name}, {summary(expected)}")
