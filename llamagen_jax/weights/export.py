"""Export folders: a model's configuration and parameters in two files, and a card for readers.

`config.json` holds {"model": "Llama" or "VQGAN", "config": {fields of its config}, ...metadata}.
`params.safetensors` holds the parameters under their '/'-joined path, such as
"layers/attention/q/kernel", in the dtype they were given (https://huggingface.co/docs/safetensors).
`README.md` tells what the model is, how to open it, and whom to credit for what it learned from.
"""

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

from llamagen_jax.digests import read_json, write_json
from llamagen_jax.errors import InputError
from llamagen_jax.files import staged
from llamagen_jax.weights.kinds import Config, Model, describe, kind_of
from llamagen_jax.weights.torch_files import Tensor, open_safetensors, write_safetensors


def write(folder: str | os.PathLike, model: Model, params: Mapping, **metadata: Any) -> None:
    """Writes an export folder, which appears under its name only when it is complete.

    Args:
      folder: must not exist yet.
      model: a `Llama` or `VQGAN`.
      params: its parameters, nested; leaves are numpy or jax arrays, fetched one at a time.
      **metadata: JSON values stored beside the configuration, such as class_names=[...]; the card
        repeats credit="...", which may be Markdown.

    Raises:
      InputError: `folder` exists.
    """
    tensors = {path: Tensor.of(leaf) for path, leaf in flatten_dict(params, sep="/").items()}
    write_tensors_and_config(folder, model.config, tensors, metadata)


def write_tensors_and_config(
    folder: str | os.PathLike,
    config: Config,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
) -> None:
    """`write` of a model of this configuration, with parameters as `Tensor`s by '/'-joined path."""
    described = {"model": kind_of(config).name, "config": dataclasses.asdict(config)}
    with staged(folder) as partial:
        partial.mkdir()
        write_json(partial / "config.json", {**described, **metadata})
        write_safetensors(partial / "params.safetensors", tensors)
        card = _card(Path(folder).name, config, tensors, metadata.get("credit", ""))
        (partial / "README.md").write_text(card, encoding="utf-8")


def _card(name: str, config: Config, tensors: Mapping[str, Tensor], credit: str) -> str:
    """Markdown, with the header that the Hugging Face Hub reads."""
    count = sum(math.prod(tensor.shape) for tensor in tensors.values())
    card = f"""---
library_name: llamagen_jax
tags: [llamagen, jax, flax]
---
# {name}

A {describe(config)} of {count / 1e6:.3g} million parameters, for
[LlamaGen](https://arxiv.org/abs/2406.06525) in JAX.

```python
import llamagen_jax as lg

model, params = lg.load("{name}")
```
"""
    if kind_of(config).role == "generator":
        card += f"""
Images are drawn by `llamagen-sample --generator {name} --tokenizer TOKENIZER`, where TOKENIZER is
the one whose codes it was trained on.
"""
    return card + (
        f"\n## Credit\n\nIt learned from the work of others. {credit}\n" if credit else ""
    )


def read(folder: str | os.PathLike) -> tuple[str, dict, dict, dict]:
    """Opens an export folder.

    Returns:
      The model's name ("Llama" or "VQGAN"), its config fields, the metadata, and the nested
      parameters as read-only numpy arrays mapped from the file.

    Raises:
      InputError: a file is missing or broken (the message names it).
    """
    folder = Path(folder)
    metadata = read_config(folder)
    try:
        name, config = metadata.pop("model"), metadata.pop("config")
    except KeyError as error:
        raise InputError(
            f"{folder / 'config.json'} has no entry {error}; expected the one of an export folder"
        ) from None
    params = open_safetensors(folder / "params.safetensors")
    return name, config, metadata, unflatten_dict(params, sep="/")


def recorded(name: str) -> dict[str, Any]:
    """What a generator's folder says beside its sizes, such as its tokenizer; {} for a file."""
    return read_config(name) if (Path(name) / "config.json").exists() else {}


def read_config(folder: str | os.PathLike) -> dict:
    """The JSON object in `folder`/config.json; InputError when it is missing or damaged."""
    path = Path(folder) / "config.json"
    try:
        return read_json(path)
    except FileNotFoundError:
        raise InputError(f"{path} is missing; expected an export or a work folder") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
