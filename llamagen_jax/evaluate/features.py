"""Features of sets of images by the network of FID: computed once, kept on disk, summed up.

Axes: B batch, N images, H W pixels.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from llamagen_jax.errors import InputError
from llamagen_jax.evaluate import small_network, texts
from llamagen_jax.evaluate.figures import Figure
from llamagen_jax.evaluate.image_sets import ImageSet
from llamagen_jax.evaluate.kept import KeptRows
from llamagen_jax.evaluate.statistics import Moments, Statistics
from llamagen_jax.image_tokenizer import on_all_devices, run_filled
from llamagen_jax.models.inception import IMAGE_SIZE
from llamagen_jax.weights import clip, inception
from llamagen_jax.weights.integrity import weights_hash

# How images reach the network, and which figures are computed of its features.
PROTOCOLS = ("adm", "torch-fidelity", "clean-fid")
# Rows of features whose moments are summed at a time, whatever the batches were.
_ROWS = 1024
# Of the arrays by Inception that figures are computed of: columns by name.
_POOL, _PROBABILITIES = {"pool": 2048}, {"probabilities": 1008}
COLUMNS = {
    "adm": _POOL | _PROBABILITIES | {"spatial": 17 * 17 * 7},
    "torch-fidelity": _POOL | _PROBABILITIES,
    "clean-fid": _POOL,
}


@dataclass(frozen=True)
class Network:
    """The network of FID on all devices, as a protocol feeds it.

    Attributes:
      protocol: one of `PROTOCOLS`.
      hash: of its weights.
      run: uint8 images [B, H, W, 3] -> float32 arrays [B, D] by the names of `Features`.
      columns: D of those of these arrays that the protocol needs.
      note: what to tell beside every figure that it makes; "" of Inception.
      clip: hash of the weights of a CLIP that embeds the images besides, or None.
    """

    protocol: str
    hash: str
    run: Callable[[np.ndarray], dict[str, np.ndarray]]
    columns: Mapping[str, int]
    note: str = ""
    clip: str | None = None

    @classmethod
    def open(cls, path: str, protocol: str) -> "Network":
        """Opens a file of `weights.inception.load` or a folder of `small_network.load`.

        Raises:
          InputError: of these, or a small network is asked to follow another protocol than "adm".
        """
        if Path(path).is_dir():
            return cls._open_small(path, protocol)
        model, variables = inception.load(path)
        resized = protocol == "clean-fid"

        def features(variables: Any, images: jax.Array) -> Any:
            return model.apply(variables, images, method="features" if resized else None)

        run = on_all_devices(features, variables)

        def of_images(images: np.ndarray) -> dict[str, np.ndarray]:
            pixels = _resize_as_clean_fid(images) if resized else images
            found = run_filled(run, pixels, len(pixels))
            probabilities = np.asarray(jax.nn.softmax(jnp.asarray(found.logits_unbiased)))
            arrays = (found.pool, probabilities, found.spatial.reshape(len(images), -1))
            return dict(zip(COLUMNS["adm"], arrays, strict=True))

        return cls(protocol, weights_hash(variables), of_images, COLUMNS[protocol])

    @classmethod
    def _open_small(cls, path: str, protocol: str) -> "Network":
        model, params, trained_on = small_network.load(path)
        if protocol != "adm":
            raise InputError(
                f"{path} is a small network and {protocol} is a protocol of Inception: leave the "
                "protocol out, or give Inception's file"
            )

        def features(params: Any, images: jax.Array) -> Any:
            return model.apply({"params": params}, images)

        run, side = on_all_devices(features, params), model.config.image_size

        def of_images(images: np.ndarray) -> dict[str, np.ndarray]:
            if images.shape[1:3] != (side, side):
                height, width = images.shape[1:3]
                raise InputError(
                    f"{path} was trained on images of {side}x{side} px, not {width}x{height}: "
                    "crop them to that size, or train a network on such images"
                )
            found = run_filled(run, images, len(images))
            probabilities = np.asarray(jax.nn.softmax(jnp.asarray(found.logits)))
            arrays = (found.pool, probabilities, found.spatial.reshape(len(images), -1))
            return dict(zip(COLUMNS["adm"], arrays, strict=True))

        blank = np.zeros((1, side, side, 3), np.uint8)
        columns = {name: rows.shape[1] for name, rows in of_images(blank).items()}
        note = f"; by a small network trained on {trained_on}, not comparable with published ones"
        return cls(protocol, weights_hash(params), of_images, columns, note)

    def with_clip(self, folder: str) -> "Network":
        """The network beside a CLIP of `weights.clip.load`, whose embeddings are "clip" [B, E].

        So that images are read, or drawn, once for both.
        """
        model, params = clip.load(folder)
        embed, run = texts.image_embedder(model, params), self.run
        return dataclasses.replace(
            self,
            run=lambda images: {**run(images), "clip": embed(images)},
            columns={**self.columns, "clip": model.config.embedding_dim},
            clip=weights_hash(params),
        )

    def noted(self, figure: Figure) -> Figure:
        """The figure, with the network's note where it says what it compares with."""
        return dataclasses.replace(figure, compare=figure.compare + self.note)


def _resize_as_clean_fid(images: np.ndarray) -> np.ndarray:
    """float32 [B, 299, 299, 3] in [-1, 1]: Pillow's bicubic with antialias, channels in float."""
    side = IMAGE_SIZE, IMAGE_SIZE
    resized = np.empty((len(images), *side, 3), np.float32)
    for image, out in zip(images, resized, strict=True):
        for channel in range(3):
            plane = Image.fromarray(image[..., channel].astype(np.float32))
            out[..., channel] = np.asarray(plane.resize(side, Image.Resampling.BICUBIC))
    return (resized.clip(0, 255) - 128) / 128


class Features(KeptRows):
    """Features of a set of images in a folder, which fill up as they are computed.

    Attributes:
      pool: float32 [N, 2048] by Inception; a small network has other sizes, here and below.
      probabilities: float32 [N, 1008], softmax of the class scores without bias.
      spatial: float32 [N, 2023], what sFID compares, flattened as TensorFlow has it.

    Those that the protocol does not need are not there; embeddings by a CLIP are "clip".
    """

    def __init__(self, folder: Path, images: ImageSet, network: Network):
        """Begins the folder, or goes on with what is there; raises what `KeptRows` raises."""
        columns = {
            name: jax.ShapeDtypeStruct((width,), np.float32)
            for name, width in network.columns.items()
        }
        made_with = {"network": network.hash, "protocol": network.protocol, "CLIP": network.clip}
        super().__init__(folder, images, columns, made_with)

    @property
    def pool(self) -> np.ndarray:
        return self["pool"]

    @property
    def probabilities(self) -> np.ndarray:
        return self["probabilities"]

    @property
    def spatial(self) -> np.ndarray:
        return self["spatial"]

    def statistics(self) -> Statistics:
        """What stands for the images in FID, and in sFID where the protocol has it.

        Raises:
          InputError: there are fewer than two, or a feature is not finite.
        """
        pool = moments(self.pool)
        spatial = moments(self.spatial) if "spatial" in self else None
        return Statistics(
            mu=pool.mu,
            sigma=pool.sigma,
            mu_s=spatial and spatial.mu,
            sigma_s=spatial and spatial.sigma,
            count=len(self),
            network=self.made_with["network"],
            protocol=self.made_with["protocol"],
            images_digest=self.images_digest,
        )


def compute(images: ImageSet, network: Network, folder: Path, batch_size: int) -> Features:
    """Features of a set of images; goes on with what is in the folder.

    They do not depend on the batch size, but for the rounding of products of another shape.

    Args:
      folder: where they are kept.
      batch_size: images at a time, over all devices.

    Raises:
      InputError: fewer than two images can be read, or of `Features` and of `ImageSet.batches`.
    """
    features = Features(folder, images, network)
    batch_size = min(batch_size, images.count)
    for batch in images.batches(batch_size, features.read):
        read = min(batch_size, images.count - features.read)
        # Filled up, so that every batch runs the same program.
        found = run_filled(network.run, batch, batch_size) if len(batch) else {}
        features.add(batch, found, read)
    if len(features) < 2:
        raise InputError(f"{images.name} has {len(features)} whole images; give 2 or more")
    return features


def moments(features: np.ndarray) -> Moments:
    """Of features, real [N, D], summed so that batches do not matter.

    Raises:
      InputError: a feature is not finite.
    """
    starts = range(0, len(features), _ROWS)
    parts = (Moments.of(features[start : start + _ROWS]) for start in starts)
    total = next(parts)
    for part in parts:
        total = total.merge(part)
    return total
