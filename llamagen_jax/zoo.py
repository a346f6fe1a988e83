"""`load`, which opens weights of any origin: files, folders and the published names."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from llamagen_jax.errors import InputError, nearest
from llamagen_jax.files import local_path
from llamagen_jax.weights import export
from llamagen_jax.weights.infer import infer_config
from llamagen_jax.weights.kinds import build, kind_named, make_config
from llamagen_jax.weights.mapping import from_torch
from llamagen_jax.weights.published import MODELS, PUBLISHED, check_published
from llamagen_jax.weights.shapes import check_params
from llamagen_jax.weights.tensor_files import read_tensors
from llamagen_jax.weights.torch_files import SUFFIXES, open_folder

__all__ = ["MODELS", "PUBLISHED", "build", "load", "load_folder"]

# What the runs of a task train.
_TASK_MODELS = {"tokenizer": "VQGAN", "generator": "Llama"}


def load(
    name_or_path: str | os.PathLike, path: str | os.PathLike | None = None
) -> tuple[Any, dict[str, Any]]:
    """Opens a model and its weights.

    Args:
      name_or_path: an export folder, the work folder of a training run, a file of the original
        LlamaGen or in another of `weights.infer.FORMATS` (.pt, .pth, .ckpt or .safetensors), such a
        model's folder of `diffusers`, or a published name such as "c2i_L_384".
      path: where the weights of that published name are: one of the files or folders above, or a
        folder that holds one under that name. Without it they come from the Hugging Face Hub, or
        from its local cache.

    Returns:
      The model, such as a `Llama` or `VQGAN`, and its parameters as host (numpy) arrays in the
      dtype they are stored in; `jax.device_put` them once where several calls follow.

    Raises:
      InputError: nothing is found there, or it is broken, or it is not the named model.
    """
    name_or_path = local_path(name_or_path)
    if path is None:
        check_known(name_or_path)
    if path is None and name_or_path.exists():
        name, source = None, name_or_path
    elif (name := str(name_or_path)) not in PUBLISHED:
        raise InputError(f"{name} is no published name; {nearest(name, PUBLISHED)}")
    elif path is None:
        source = _fetch(name)
    else:
        source = _locate(name, local_path(path))
    if source.is_file():
        return _from_tensors(read_tensors(source)[0], source, name)
    model, params = load_folder(source)
    if name is not None:
        check_published(name, model.config, source)
    return model, params


def check_known(name_or_path: str | os.PathLike) -> None:
    """Raises InputError for what is neither a file, a folder nor a published name."""
    if str(name_or_path) not in PUBLISHED and not Path(name_or_path).exists():
        raise InputError(
            f"{name_or_path} is neither a file, a folder nor a published name; "
            f"{nearest(str(name_or_path), PUBLISHED)}"
        )


def load_folder(folder: Path) -> tuple[Any, dict[str, Any]]:
    """`load` for a folder of any kind; same returns and errors."""
    if _is_of_diffusers(folder):
        return _from_tensors(open_folder(folder), folder)
    if (folder / "checkpoints").is_dir():
        # orbax takes seconds to import, and only work folders need it.
        from llamagen_jax import checkpoint

        task, fields, params = checkpoint.load_params(folder)
        params = jax.tree.map(np.asarray, params)
        name = _TASK_MODELS[task]
    else:
        name, fields, _, params = export.read(folder)
    config = make_config(kind_named(name, folder).config, fields, folder)
    check_params(params, config, f"parameters in {folder} do not fit its config")
    return build(config), params


def _is_of_diffusers(folder: Path) -> bool:
    return (folder / "config.json").exists() and "_class_name" in export.read_config(folder)


def _from_tensors(
    tensors: Mapping[str, np.ndarray], source: Path, name: str | None = None
) -> tuple[Any, dict[str, Any]]:
    config = infer_config(tensors, source, name)
    return build(config), from_torch(tensors, config)


def _locate(name: str, path: Path) -> Path:
    """The file or folder at `path`, or the one called `name` in the folder `path`."""
    if not path.exists():
        raise InputError(f"{path} does not exist; expected the weights of {name} there")
    if path.is_file() or (path / "config.json").exists():
        return path
    candidates = [path / name, *(path / f"{name}{suffix}" for suffix in SUFFIXES)]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    raise InputError(
        f"{path} holds no weights of {name}; expected one of "
        f"{', '.join(candidate.name for candidate in candidates)}"
    )


def _fetch(name: str) -> Path:
    repository, file = PUBLISHED[name].repository, PUBLISHED[name].file
    if repository is None:
        raise InputError(
            f"{name} is not on the Hugging Face Hub: download {file} from {PUBLISHED[name].page}, "
            f"call it {name}{Path(file).suffix} and name it by its path"
        )
    try:
        import huggingface_hub
    except ImportError:
        raise InputError(
            f'fetching {name} needs huggingface_hub: pip install "llamagen_jax[hub]", or name a '
            "file or folder that holds it"
        ) from None
    # Released files never change, so a cached one needs no question to the network.
    cached = huggingface_hub.try_to_load_from_cache(repository, file)
    if isinstance(cached, str):
        return Path(cached)
    try:
        return Path(huggingface_hub.hf_hub_download(repository, file))
    except OSError as error:
        raise InputError(
            f"{file} is not in the Hugging Face cache and cannot be fetched from {repository} "
            f"({type(error).__name__}): check the network, or name a file or folder that holds it"
        ) from error
