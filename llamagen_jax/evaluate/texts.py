"""Whether images show what their prompts say; part of the command `evaluate`.

CLIP judges any prompts. Those of the rendered scenes are also judged by what `scenes.check` reads
off the pixels, which takes no weights and knows right from wrong.

Axes: N images, E width of embeddings.
"""

import argparse
import itertools
from collections.abc import Callable, Iterator, Sequence
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
from llamagen_jax.scenes.check import compare
from llamagen_jax.scenes.world import Scene, described
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
    folder: str | None,
    scenes: bool,
    prefix: str,
    size: int | None,
    batch_size: int,
) -> tuple[list[Figure], dict]:
    """Figures of the samples beside their prompts, and what they are of.

    CLIP scores are over all and by category.

    Args:
      samples: of `image_sets.open_images`, as many for each prompt, in the order of the prompts.
      prompts: of `text.prompts.read_categories`.
      folder: of `weights.clip.load`; None leaves CLIP scores out.
      scenes: whether to look for what the prompts of rendered scenes ask for.
      prefix: put before every prompt, for CLIP.
      size: of `image_sets.open_images`.
      batch_size: images at a time.

    Raises:
      InputError: something cannot be read, samples and prompts do not pair, prompts are not of
        scenes, or neither scorer is named.
    """
    if not folder and not scenes:
        raise InputError("nothing to judge by: give --clip, --scenes or both")
    images = image_sets.open_images(samples, size)
    texts, categories = zip(*read_categories(prompts), strict=True)
    each, rest = divmod(images.count, len(texts))
    if rest or not each:
        raise InputError(
            f"{samples} has {images.count} images and {prompts} {len(texts)} prompts: give the "
            "images of these prompts, as many of each"
        )
    _check_recorded(samples, prompts, np.repeat(texts, each))
    figures = list(_scene_figures(images, prompts, texts)) if scenes else []
    if folder:
        figures += _clip_figures(folder, images, texts, categories, prefix, batch_size)
    return figures, {"samples": samples, "prompts": prompts, "images": images.count}


def _scene_figures(images: ImageSet, source: str, prompts: Sequence[str]) -> Iterator[Figure]:
    wanted: list[Scene] = []
    for prompt in prompts:
        scene = described(prompt)
        if scene is None:
            raise InputError(
                f"{prompt!r} of {source} is no caption of the rendered scenes, which --scenes needs"
            )
        wanted.append(scene)
    each = images.count // len(prompts)
    repeated = (scene for scene in wanted for _ in range(each))
    whole = itertools.chain.from_iterable(images.batches(1))
    verdicts = [compare(image, scene) for image, scene in zip(whole, repeated, strict=False)]
    _check_whole(images, len(verdicts))
    things = np.array([things for things, _ in verdicts])
    compared = "share of the images, read off their pixels; the same prompts"
    yield Figure("things right", float(things.mean()), standard_error(things), compared)
    relations = np.array([relation for _, relation in verdicts if relation is not None])
    if len(relations):
        compared = f"share of the {len(relations)} images of two related things"
        error = standard_error(relations)
        yield Figure("relation right", float(relations.mean()), error, compared)


def _clip_figures(
    folder: str,
    images: ImageSet,
    prompts: Sequence[str],
    categories: Sequence[str],
    prefix: str,
    batch_size: int,
) -> list[Figure]:
    model, params = clip.load(folder)
    scores = clip_scores(model, params, folder, images, prompts, prefix, batch_size)
    compared = (
        f"cosine by {Path(folder).name}, each prompt after {prefix!r}; others give it times 100"
    )
    figures = [Figure("CLIP score", float(scores.mean()), standard_error(scores), compared)]
    of_images = np.repeat(categories, images.count // len(prompts))
    for category in sorted(set(categories) - {""}):
        rows = scores[of_images == category]
        about = f"the same, of {len(rows)} images"
        figures.append(Figure(category, float(rows.mean()), standard_error(rows), about))
    return figures


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
    _check_whole(images, len(found))
    return np.einsum("ne,ne->n", found, texts.repeat(images.count // len(texts), axis=0))


def embed_images(
    model: CLIP, params: dict[str, Any], images: ImageSet, batch_size: int
) -> np.ndarray:
    """Embeddings of unit length of the whole images of a set, float32 [N, E]."""
    embed, batch_size = image_embedder(model, params), min(batch_size, images.count)
    parts = [
        run_filled(embed, batch, batch_size) for batch in images.batches(batch_size) if len(batch)
    ]
    return np.concatenate(parts)


def image_embedder(model: CLIP, params: dict[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    """A function of uint8 images [B, H, W, 3] to embeddings of unit length, float32 [B, E]."""
    side = model.config.image_size

    def encode(params: Any, pixels: jax.Array) -> Any:
        return model.apply({"params": params}, pixels, method="encode_images")

    run = on_all_devices(encode, params)

    def embed(images: np.ndarray) -> np.ndarray:
        pixels = np.stack([preprocess(image, side) for image in images])
        return run_filled(run, pixels, len(pixels))

    return embed


def _check_whole(images: ImageSet, whole: int) -> None:
    if whole != images.count:
        raise InputError(
            f"{images.count - whole} images of {images.name} cannot be read, and the others would "
            "pair with other prompts: make them again"
        )


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
        dest="folder",
        metavar="FOLDER",
        help="for CLIP scores: of a CLIP from Hugging Face, such as clip-vit-base-patch32 "
        "(LlamaGen's) or clip-vit-large-patch14",
    )
    parser.add_argument(
        "--scenes",
        action="store_true",
        help="for prompts of the rendered scenes: the share of images with the right things in the "
        "right relation",
    )
    parser.add_argument(
        "--prefix",
        default=PREFIX,
        help=f"put before every prompt for CLIP ({PREFIX!r}, as LlamaGen does)",
    )
    parser.add_argument(
        "--size", type=commands.whole, help="side of a centre crop (images as they are)"
    )
