"""The whole of FID, from two folders of images to the figure, beside torch-fidelity's.

Both read the same files and the same random weights of Inception.
"""

import functools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image

from llamagen_jax.evaluate import features, image_sets
from llamagen_jax.evaluate.distances import frechet_distance
from llamagen_jax.evaluate.features import Network
from llamagen_jax.images import save_png
from llamagen_jax.models.inception import Inception
from llamagen_jax.weights import inception
from llamagen_jax.weights.torch_files import Tensor, write_safetensors

_FOLDERS = ("samples", "reference")
_SIDE, _BATCH_SIZE = 256, 32


class Job(NamedTuple):
    """One call that was timed.

    Attributes:
      name, shapes: what was done, and by whom; where torch-fidelity is missing they tell so.
      seconds: that it took.
      count, unit: what it made.
    """

    name: str
    shapes: str
    seconds: float
    count: int
    unit: str


def jobs(count: int) -> Iterator[Job]:
    """Times FID by this package and then, where it can be imported, by torch-fidelity.

    Of both also the distance alone, which takes the same time whatever the number of images.

    Args:
      count: images in each of two folders.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for seed, name in enumerate(_FOLDERS):
            _write_images(folder / name, count, seed)
        tensors = inception.to_torch(_random_inception())
        moments = [_random_moments(seed, width=tensors["fc.weight"].shape[1]) for seed in (0, 1)]
        by = {"": _ours(folder, tensors)}
        shapes = f"2 x {count} PNGs of {_SIDE} px"
        try:
            by[", torch-fidelity"] = _torch_fidelity(folder, tensors)
        except ImportError as error:
            shapes += f"; torch-fidelity cannot be imported ({error})"
        for whose, (fid, distance) in by.items():
            yield Job(f"FID{whose}", shapes, _seconds(fid), 2 * count, "images")
            width = f"{len(moments[0]['mu'])} features"
            seconds = _seconds(functools.partial(distance, *moments))
            yield Job(f"FID's distance{whose}", width, seconds, 1, "distances")


def _ours(folder: Path, tensors: dict[str, np.ndarray]) -> tuple[Callable, Callable]:
    path = folder / "inception.safetensors"
    write_safetensors(path, {name: Tensor.of(tensor) for name, tensor in tensors.items()})
    network = Network.open(str(path), "torch-fidelity")
    network.run(np.zeros((_BATCH_SIZE, _SIDE, _SIDE, 3), np.uint8))  # which compiles it

    def distance(ours: dict, theirs: dict) -> float:
        return frechet_distance(ours["mu"], ours["sigma"], theirs["mu"], theirs["sigma"])

    def fid() -> float:
        with tempfile.TemporaryDirectory() as kept:
            sets = {name: image_sets.open_images(str(folder / name)) for name in _FOLDERS}
            found = [
                features.compute(images, network, Path(kept) / name, _BATCH_SIZE).statistics()
                for name, images in sets.items()
            ]
            return distance(*map(vars, found))

    return fid, distance


def _torch_fidelity(folder: Path, tensors: dict[str, np.ndarray]) -> tuple[Callable, Callable]:
    """Raises ImportError where it, or torchvision that it needs, is missing."""
    import torch
    import torch_fidelity  # pyright: ignore[reportMissingImports]
    from torch_fidelity.metric_fid import (  # pyright: ignore[reportMissingImports]
        fid_statistics_to_metric,
    )

    path = folder / "inception.pth"
    torch.save({name: torch.from_numpy(tensor) for name, tensor in tensors.items()}, path)

    def fid() -> float:
        found = torch_fidelity.calculate_metrics(
            input1=str(folder / _FOLDERS[0]),
            input2=str(folder / _FOLDERS[1]),
            fid=True,
            feature_extractor_weights_path=str(path),
            batch_size=_BATCH_SIZE,
            cuda=False,
            # It forks no readers then, which may hang beside JAX's threads.
            save_cpu_ram=True,
            cache=False,
            verbose=False,
        )
        return found["frechet_inception_distance"]

    def distance(ours: dict, theirs: dict) -> dict:
        return fid_statistics_to_metric(ours, theirs, verbose=False)

    return fid, distance


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _random_inception() -> dict:
    """Variables that keep the scale of features; batch normalisation changes nothing."""
    blank, rng = np.zeros((1, _SIDE, _SIDE, 3), np.uint8), np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if len(leaf.shape) == 1:
            return np.ones(leaf.shape, np.float32)
        scale = np.sqrt(2 / np.prod(leaf.shape[:-1]))
        return (scale * rng.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree.map(draw, jax.eval_shape(Inception().init, jax.random.key(0), blank))


def _random_moments(seed: int, width: int) -> dict[str, np.ndarray]:
    features = np.random.default_rng(seed).standard_normal((2 * width, width))
    return {"mu": features.mean(axis=0), "sigma": np.cov(features, rowvar=False)}


def _write_images(folder: Path, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for number in range(count):
        cells = Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8))
        save_png(folder / f"{number}.png", np.asarray(cells.resize((_SIDE, _SIDE))))
