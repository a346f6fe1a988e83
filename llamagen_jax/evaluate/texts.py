"""Whether images show what their prompts say, by CLIP; part of the command `evaluate`.

Axes: N images, E width of embeddings.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from llamagen_jax import commands
from llamagen_jax.errors import InputError
from llamagen_jax.evaluate import image_sets
from llamagen_jax.evaluate.figures import Figure
from llamagen_jax.evaluate.image_sets import ImageSet
from llamagen_jax.evaluate.statistics import standard_error
from llamagen_jax.image_tokenizer import on_all_devices, run_filled
from llamagen_jax.models.clip import CLIP, preprocess
from llamagen_jax.text.clip_tokenizer import CLIPTokenizer
from llamagen_jax.text.prompts import read_categories
from llamagen_jax.weights import clip

# What LlamaGen's script puts before every prompt.
PREFIX = "A photo depicts "
_TEXTS_AT_ONCE = 256


def evaluate(
    samples: str,
    prompts: str,
    *,
    folder: str,
    prefix: str,
    size: int | None,
    batch_size: int,
) -> tuple[list[Figure], dict]:
    """CLIP scores of the samples, over all and by category, and what they are of.

    Args:
      samples: of `image_sets.open_images`, as many for each prompt, in the order of the prompts.
      prompts: of `text.prompts.read_categories`.
      folder: of `weights.clip.load`.
      prefix: put before every prompt.
      size: of `image_sets.open_images`.
      batch_size: images at a time.

    Raises:
      InputError: something cannot be read, or samples and prompts do not pair.
    """
    images = image_sets.open_images(samples, size)
    texts, categories = zip(*read_categories(prompts), strict=True)
    each, rest = divmod(images.count, len(texts))
    if rest or not each:
        raise InputError(
            f"{samples} has {images.count} images and {prompts} {len(texts)} prompts: give the "
            "images of these prompts, as many of each"
        )
    _check_recorded(samples, prompts, np.repeat(texts, each))
    model, params = clip.load(folder)
    scores = clip_scores(model, params, folder, images, texts, prefix, batch_size)
    compare = (
        f"cosine by {Path(folder).name}, each prompt after {prefix!r}; others give it times 100"
    )
    figures = [Figure("CLIP score", float(scores.mean()), standard_error(scores), compare)]
    of_images = np.repeat(categories, each)
    for category in sorted(set(categories) - {""}):
        rows = scores[of_images == category]
        about = f"the same, of {len(rows)} images"
        figures.append(Figure(category, float(rows.mean()), standard_error(rows), about))
    return figures, {"samples": samples, "prompts": prompts, "images": images.count}


def clip_scores(
    model: CLIP,
    params: dict[str, Any],
    folder: str,
    images: ImageSet,
    prompts: Sequence[str],
    prefix: str = PREFIX,
    batch_size: int = 64,
) -> np.ndarray:
    """Cosine of every image's embedding and its prompt's, float32 [N].

    Args:
      model, params: of `weights.clip.load`.
      folder: with the tokenizer.
      images: the images of each prompt in turn, as many of each.

    Raises:
      InputError: an image cannot be read.
    """
    tokens = CLIPTokenizer(folder, model.config)([prefix + prompt for prompt in prompts])

    def encode(params: Any, tokens: jax.Array) -> Any:
        return model.apply({"params": params}, tokens, method="encode_texts")

    run = on_all_devices(encode, params)
    size = min(_TEXTS_AT_ONCE, len(tokens))
    starts = range(0, len(tokens), size)
    texts = np.concatenate([run_filled(run, tokens[i : i + size], size) for i in starts])
    found = embed_images(model, params, images, batch_size)
    if len(found) != images.count:
        raise InputError(
            f"{images.count - len(found)} images of {images.name} cannot be read, and the others "
            "would pair with other prompts: make them again"
        )
    return np.einsum("ne,ne->n", found, texts.repeat(images.count // len(texts), axis=0))


def embed_images(
    model: CLIP, params: dict[str, Any], images: ImageSet, batch_size: int
) -> np.ndarray:
    """Embeddings of unit length of the whole images of a set, float32 [N, E]."""
    side = model.config.image_size

    def encode(params: Any, pixels: jax.Array) -> Any:
        return model.apply({"params": params}, pixels, method="encode_images")

    run = on_all_devices(encode, params)
    batch_size = min(batch_size, images.count)
    parts = []
    for batch in images.batches(batch_size):
        if len(batch):
            pixels = np.stack([preprocess(image, side) for image in batch])
            parts.append(run_filled(run, pixels, batch_size))
    return np.concatenate(parts)


def _check_recorded(samples: str, prompts: str, repeated: np.ndarray) -> None:
    """Refuses samples that tell of other prompts than the file's."""
    if Path(samples).suffix != ".npz":
        return
    with np.load(samples) as arrays:
        recorded = arrays.get("prompts", repeated)
    different = np.flatnonzero(recorded != repeated)
    if len(different):
        number = different[0]
        raise InputError(
            f"image {number} of {samples} is of the prompt {str(recorded[number])!r}, but "
            f"{prompts} has {str(repeated[number])!r} there: give the prompts it was made of"
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `evaluate text`."""
    parser.add_argument(
        "samples",
        type=commands.path,
        metavar="SAMPLES",
        help=f"{image_sets.KINDS}; as many images of each prompt, in the order of the prompts",
    )
    parser.add_argument(
        "--prompts",
        type=commands.path,
        required=True,
        metavar="FILE",
        help="as sample.py --prompt-file takes them, with a column Category for scores of each; "
        "or COCO's captions_val2014.json (the first caption of each image)",
    )
    parser.add_argument(
        "--clip",
        type=commands.path,
        required=True,
        dest="folder",
        metavar="FOLDER",
        help="of a CLIP from Hugging Face, such as clip-vit-base-patch32 (LlamaGen's) or "
        "clip-vit-large-patch14",
    )
    parser.add_argument(
        "--prefix", default=PREFIX, help=f"put before every prompt ({PREFIX!r}, as LlamaGen does)"
    )
    parser.add_argument(
        "--size", type=commands.whole, help="side of a centre crop (images as they are)"
    )
