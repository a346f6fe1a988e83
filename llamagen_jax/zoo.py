"""The published models by name, and `load`, which opens weights of any origin."""

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from llamagen_jax.errors import InputError, nearest
from llamagen_jax.models.llama import Llama, LlamaConfig
from llamagen_jax.models.vqgan import VQGAN, VQGANConfig
from llamagen_jax.weights import export

# Sizes of the paper's table 1 and of the original's code; generators class-conditional at 256 px.
MODELS = {
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


def _text(size: str, grid_size: int) -> LlamaConfig:
    return dataclasses.replace(
        MODELS[size], grid_size=grid_size, condition="text", condition_length=120
    )


def _class(size: str, grid_size: int) -> LlamaConfig:
    return dataclasses.replace(MODELS[size], grid_size=grid_size)


# Released checkpoints, each a file of that name with suffix .pt, see `_fetch`.
PUBLISHED = {
    "vq_ds16_c2i": MODELS["VQ-16"],
    "vq_ds8_c2i": MODELS["VQ-8"],
    "vq_ds16_t2i": MODELS["VQ-16"],
    "c2i_B_256": _class("GPT-B", 16),
    "c2i_B_384": _class("GPT-B", 24),
    "c2i_L_256": _class("GPT-L", 16),
    "c2i_L_384": _class("GPT-L", 24),
    "c2i_XL_384": _class("GPT-XL", 24),
    "c2i_XXL_384": _class("GPT-XXL", 24),
    "c2i_3B_384": _class("GPT-3B", 24),
    "t2i_XL_stage1_256": _text("GPT-XL", 16),
    "t2i_XL_stage2_512": _text("GPT-XL", 32),
}

_TORCH_SUFFIXES = (".pt", ".pth", ".safetensors")
_CONFIG_CLASSES = {"Llama": LlamaConfig, "VQGAN": VQGANConfig}
# Fields that leave the weights and their meaning alone.
_TRAINING_FIELDS = {
    "dtype",
    "condition_dropout",
    "token_dropout",
    "residual_dropout",
    "ffn_dropout",
    "drop_path",
    "commitment_weight",
    "entropy_weight",
}


def load(name_or_path: str | os.PathLike, path: str | os.PathLike | None = None):
    """Opens a model and its weights.

    Args:
      name_or_path: an export folder, the work folder of a training run, a .pt, .pth or .safetensors
        file of the original LlamaGen, or a published name such as "c2i_L_384".
      path: where the weights of that published name are: one of the files or folders above, or a
        folder that holds one under that name. Without it they come from the Hugging Face Hub, or
        from its local cache.

    Returns:
      The `Llama` or `VQGAN`, and its parameters as host (numpy) arrays in the dtype they are stored
      in; `jax.device_put` them once where several calls follow.

    Raises:
      InputError: nothing is found there, or it is broken, or it is not the named model.
    """
    if path is None and Path(name_or_path).exists():
        name, source = None, Path(name_or_path)
    elif (name := str(name_or_path)) not in PUBLISHED:
        raise InputError(
            f"{name} is neither a file, a folder nor a published name; {nearest(name, PUBLISHED)}"
        )
    elif path is None:
        source = _fetch(name)
    else:
        source = _locate(name, Path(path))
    if source.is_file():
        # `convert` imports this module.
        from llamagen_jax import convert

        tensors, _ = convert.read_torch(source)
        config = infer_config(tensors, source, name)
        return build(config), convert.from_torch(tensors, config)
    model, params = load_folder(source)
    if name is not None:
        check_published(name, model.config, source)
    return model, params


def build(config: LlamaConfig | VQGANConfig) -> Llama | VQGAN:
    """The module that a configuration describes."""
    return VQGAN(config) if isinstance(config, VQGANConfig) else Llama(config)


def infer_config(
    tensors: Mapping[str, np.ndarray],
    source: Path,
    name: str | None = None,
    grid_size: int | None = None,
    n_heads: int | None = None,
) -> LlamaConfig | VQGANConfig:
    """The configuration of the model whose state dict in the original's names is `tensors`.

    Args:
      source: the file they come from. When it is called like a published model, or `name` is given,
        the grid size comes from there and all sizes must agree.
      grid_size: side of the code grid, which most files do not store.
      n_heads: attention heads, which tensors do not show; known for the published sizes.

    Raises:
      InputError: the tensors are of neither model, do not tell enough, or contradict the name.
    """
    if name is None and source.stem in PUBLISHED:
        name = source.stem
    if grid_size is None and name is not None:
        grid_size = getattr(PUBLISHED[name], "grid_size", LlamaConfig.grid_size)
    shapes = {tensor_name: tensor.shape for tensor_name, tensor in tensors.items()}
    try:
        if "quantize.embedding.weight" in shapes:
            config = _infer_vqgan(shapes, source)
        elif "tok_embeddings.weight" in shapes:
            config = _infer_llama(shapes, source, grid_size, n_heads)
        else:
            raise InputError(
                f"{source} holds neither a tokenizer nor a transformer of LlamaGen but tensors "
                f"such as {', '.join(list(shapes)[:3])}"
            )
    except KeyError as error:
        raise InputError(f"{source} is incomplete: it has no tensor {error}") from None
    if name is not None:
        check_published(name, config, source)
    return config


def describe(config: LlamaConfig | VQGANConfig) -> str:
    """The kind of model in words, for messages: "tokenizer", "class-conditional transformer"."""
    if isinstance(config, VQGANConfig):
        return "tokenizer"
    return f"{config.condition}-conditional transformer"


def check_published(name: str, config: LlamaConfig | VQGANConfig, source) -> None:
    """InputError unless `config`, read from `source`, is that of the published model `name`."""
    expected = PUBLISHED[name]
    different = []
    if describe(config) == describe(expected):
        different = [
            field.name
            for field in dataclasses.fields(config)
            if field.name not in _TRAINING_FIELDS
            and getattr(config, field.name) != getattr(expected, field.name)
        ]
        if not different:
            return

    def summary(c):
        sizes = ", ".join(f"{field}={getattr(c, field)}" for field in different)
        return f"a {describe(c)}" + (f" with {sizes}" if sizes else "")

    raise InputError(f"{source} is {summary(config)}; expected {name}, {summary(expected)}")


def param_shapes(config: LlamaConfig | VQGANConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of a model's parameters by '/'-joined path; nothing is computed."""
    c, model = config, build(config)
    if isinstance(c, VQGANConfig):
        inputs = (jnp.zeros((1, c.downsampling, c.downsampling, 3)),)
    elif c.condition == "class":
        inputs = (jnp.zeros((1, 1), int), jnp.zeros(1, int))
    else:
        inputs = (jnp.zeros((1, 1), int), jnp.zeros((1, c.condition_length, c.caption_dim)))
    params = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    return {path: leaf.shape for path, leaf in flatten_dict(params, sep="/").items()}


def check_shapes(found: Mapping[str, tuple], expected: Mapping[str, tuple], what: str) -> None:
    """Raises one InputError that lists every missing, unexpected and mis-shaped tensor."""
    wrong = [
        f"{name} {list(found[name])} instead of {list(expected[name])}"
        for name in expected
        if name in found and tuple(found[name]) != tuple(expected[name])
    ]
    problems = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "wrong shape": wrong,
    }
    if any(problems.values()):
        lists = [f"{problem}: {', '.join(names)}" for problem, names in problems.items() if names]
        raise InputError(f"{what}: {'; '.join(lists)}")


def check_params(params: Mapping, config: LlamaConfig | VQGANConfig, what: str) -> None:
    """`check_shapes` of nested parameters against those of the model that `config` describes."""
    found = {path: leaf.shape for path, leaf in flatten_dict(params, sep="/").items()}
    check_shapes(found, param_shapes(config), what)


def load_folder(folder: Path):
    """`load` for an export folder or a work folder; same returns and errors."""
    if (folder / "checkpoints").is_dir():
        # orbax takes seconds to import, and only work folders need it.
        from llamagen_jax import checkpoint

        task, fields, params = checkpoint.load_params(folder)
        params = jax.tree.map(np.asarray, params)
        kind = "VQGAN" if task == "tokenizer" else "Llama"
    else:
        kind, fields, _, params = export.read(folder)
    config = _config(kind, fields, folder)
    check_params(params, config, f"parameters in {folder} do not fit its config")
    return build(config), params


def _config(kind: str, fields: dict, source: Path) -> LlamaConfig | VQGANConfig:
    if kind not in _CONFIG_CLASSES:
        known = " or ".join(_CONFIG_CLASSES)
        raise InputError(f"{source} holds a model {kind!r}; expected {known}")
    try:
        return _CONFIG_CLASSES[kind](**fields)
    except (TypeError, ValueError) as error:
        raise InputError(f"{source} describes an impossible model: {error}") from error


def _infer_vqgan(shapes: Mapping[str, tuple], source: Path) -> VQGANConfig:
    base_channels = shapes["encoder.conv_in.weight"][0]
    outputs = [
        shapes[f"encoder.conv_blocks.{level}.res.0.conv1.weight"][0]
        for level in range(_count(shapes, "encoder.conv_blocks."))
    ]
    codebook_size, codebook_dim = shapes["quantize.embedding.weight"]
    fields = {
        "base_channels": base_channels,
        "channel_multipliers": [channels // base_channels for channels in outputs],
        "num_res_blocks": _count(shapes, "encoder.conv_blocks.0.res."),
        "z_channels": shapes["encoder.conv_out.weight"][0],
        "codebook_size": codebook_size,
        "codebook_dim": codebook_dim,
    }
    return _config("VQGAN", fields, source)


def _infer_llama(
    shapes: Mapping[str, tuple], source: Path, grid_size: int | None, n_heads: int | None
) -> LlamaConfig:
    vocab_size, dim = shapes["tok_embeddings.weight"]
    fields = {"vocab_size": vocab_size, "dim": dim, "n_layers": _count(shapes, "layers.")}
    if "cls_embedding.uncond_embedding" in shapes:
        length, caption_dim = shapes["cls_embedding.uncond_embedding"]
        fields |= {"condition": "text", "condition_length": length, "caption_dim": caption_dim}
    else:
        length = 1
        fields["num_classes"] = shapes["cls_embedding.embedding_table.weight"][0] - 1
    fields["grid_size"] = _grid_size(shapes, length, source, grid_size)
    fields["n_heads"] = n_heads or _published_heads(dim, fields["n_layers"], source)
    qkv_heads = shapes["layers.0.attention.wqkv.weight"][0] * fields["n_heads"] // dim
    if qkv_heads != 3 * fields["n_heads"]:
        fields["n_kv_heads"] = (qkv_heads - fields["n_heads"]) // 2
    config = _config("Llama", fields, source)
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


def _grid_size(shapes, condition_length: int, source: Path, wanted: int | None) -> int:
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


def _count(shapes: Mapping[str, tuple], prefix: str) -> int:
    """Number of modules in the list whose names start with `prefix`."""
    indices = [int(n.removeprefix(prefix).split(".")[0]) for n in shapes if n.startswith(prefix)]
    return 1 + max(indices, default=-1)


def _locate(name: str, path: Path) -> Path:
    """The file or folder at `path`, or the one called `name` in the folder `path`."""
    if not path.exists():
        raise InputError(f"{path} does not exist; expected the weights of {name} there")
    if path.is_file() or (path / "config.json").exists():
        return path
    candidates = [path / name, *(path / f"{name}{suffix}" for suffix in _TORCH_SUFFIXES)]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    raise InputError(
        f"{path} holds no weights of {name}; expected one of "
        f"{', '.join(candidate.name for candidate in candidates)}"
    )


def _fetch(name: str) -> Path:
    try:
        import huggingface_hub
    except ImportError:
        raise InputError(
            f'fetching {name} needs huggingface_hub: pip install "llamagen_jax[hub]", or give path='
        ) from None
    repository = "peizesun/llamagen_t2i" if "t2i" in name else "FoundationVision/LlamaGen"
    # Released files never change, so a cached one needs no question to the network.
    cached = huggingface_hub.try_to_load_from_cache(repository, f"{name}.pt")
    if isinstance(cached, str):
        return Path(cached)
    try:
        return Path(huggingface_hub.hf_hub_download(repository, f"{name}.pt"))
    except OSError as error:
        raise InputError(
            f"{name}.pt is not in the Hugging Face cache and cannot be fetched from {repository} "
            f"({type(error).__name__}): check the network, or give path="
        ) from error
