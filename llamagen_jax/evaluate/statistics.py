"""Mean and covariance of features: gathered batch by batch, kept in files, and standard errors.

Axes: B batch, D features.
"""

import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llamagen_jax.errors import InputError
from llamagen_jax.files import staged

_PLAIN = {"count": int, "network": str, "protocol": str, "images_digest": str}
# What reading a zip file that is damaged, or no npz at all, can end in.
_DAMAGE = (OSError, EOFError, MemoryError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Moments:
    """Count, mean and scatter of features in float64; the same whatever the batches or their order.

    Attributes:
      count: number of feature vectors.
      mu: mean [D].
      scatter: sum of the outer products of the deviations from the mean [D, D].
    """

    count: int
    mu: np.ndarray
    scatter: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> "Moments":
        """Moments of features, real [B, D], one vector or more.

        Raises:
          InputError: a feature is not finite.
        """
        features = np.asarray(features, np.float64)
        if not np.isfinite(features).all():
            raise InputError("features hold NaN or infinity; check the images and the network")
        mu = features.mean(axis=0)
        deviations = features - mu
        return cls(len(features), mu, deviations.T @ deviations)

    def merge(self, other: "Moments") -> "Moments":
        """Moments of the features of both."""
        count = self.count + other.count
        difference = other.mu - self.mu
        scatter = np.outer(difference, difference)
        scatter *= self.count * other.count / count
        scatter += self.scatter
        scatter += other.scatter
        return Moments(count, self.mu + difference * (other.count / count), scatter)

    @property
    def sigma(self) -> np.ndarray:
        """Unbiased covariance, float64 [D, D].

        Raises:
          InputError: there is one feature vector only.
        """
        if self.count < 2:
            raise InputError("one image has no covariance; give two or more")
        return self.scatter / (self.count - 1)


@dataclass(frozen=True)
class Statistics:
    """What stands for a set of images in FID and sFID; files hold the fields under these names.

    Attributes:
      mu, sigma: mean [D] and covariance [D, D] of the pooled features, float64.
      mu_s, sigma_s: of the spatial features, which sFID compares.
      count: number of images.
      network: hash of the weights that made the features.
      protocol: how images were resized and features compared.
      images_digest: of the images.
    """

    mu: np.ndarray
    sigma: np.ndarray
    mu_s: np.ndarray | None = None
    sigma_s: np.ndarray | None = None
    count: int | None = None
    network: str | None = None
    protocol: str | None = None
    images_digest: str | None = None


def save_statistics(path: str | os.PathLike, statistics: Statistics) -> None:
    """Writes an npz that ADM's evaluator, torch-fidelity's and clean-fid's functions read too.

    Raises:
      InputError: `path` exists or cannot be written.
    """
    held = {name: value for name, value in vars(statistics).items() if value is not None}
    with staged(path) as partial, partial.open("wb") as file:
        np.savez(file, **held)


def load_statistics(
    path: str | os.PathLike,
    *,
    spatial: bool = False,
    network: str | None = None,
    protocol: str | None = None,
) -> Statistics:
    """Reads what `save_statistics` or another evaluator wrote.

    Files of others lack `count`, `network`, `protocol` and `images_digest`, which are None then.

    Args:
      spatial: `mu_s` and `sigma_s` are needed.
      network, protocol: those that the statistics will be compared with; a file that names others
        is refused, one that names none is taken.

    Raises:
      InputError: the file is missing or damaged, lacks what is needed, holds arrays of a wrong
        shape or values that are not finite, or was made by another network or protocol.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no statistics file '{path}'; give an npz with mu and sigma")
    held = _read(path)
    for mu, sigma in (("mu", "sigma"), ("mu_s", "sigma_s")):
        if mu in held or sigma in held:
            _check_gaussian(path, held, mu, sigma)
    if "mu" not in held:
        raise InputError(f"'{path}' holds no mu and sigma; make it with --save-statistics")
    if spatial and "mu_s" not in held:
        raise InputError(
            f"'{path}' holds no mu_s and sigma_s, which sFID needs; leave sFID out, or give the "
            "reference's images"
        )
    for kind, asked in (("network", network), ("protocol", protocol)):
        made = held.get(kind)
        if asked is not None and made is not None and made != asked:
            raise InputError(
                f"'{path}' was made with {kind} {made}, not with {asked}; make the statistics anew"
            )
    return Statistics(**held)


def standard_error(values: np.ndarray) -> float:
    """Standard error of the mean of one value per sample, real or bool [N].

    NaN for one sample, and where a value is infinite (PSNR of equal images).

    Of a figure that is no mean, of its influences instead (as `frechet_influence`): to first order
    the figure is their mean, whose error is then that of the jackknife over single samples.
    """
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return float("nan")
    with np.errstate(invalid="ignore"):
        return float(values.std(ddof=1) / np.sqrt(len(values)))


def rank_warning(count: int, features: int) -> str | None:
    """What to tell when `count` images are too few for a covariance of full rank, else None."""
    if count > features:
        return None
    return (
        f"{count} images give {features} features a covariance of rank {count - 1}: the Fréchet "
        "distance is far too large and compares only with those of as many images"
    )


def _read(path: Path) -> dict[str, Any]:
    """What the file has of the fields of `Statistics`: arrays, and plain values for the others."""
    held = {}
    try:
        # Members are read one by one: ADM's files hold gigabytes of images besides.
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as file:
            for name in Statistics.__annotations__:
                if name in file:
                    held[name] = np.asarray(file[name])
    except _DAMAGE as error:
        raise InputError(f"'{path}' is no whole npz file ({error}); fetch it again") from error
    for name, kind in _PLAIN.items():
        if name in held:
            held[name] = held[name].item() if held[name].ndim == 0 else None
            if not isinstance(held[name], kind):
                raise InputError(f"'{path}' has a {name} that is no {kind.__name__}; make it anew")
    return held


def _check_gaussian(path: Path, held: dict[str, Any], mu: str, sigma: str) -> None:
    """Checks mean and covariance, and makes them float64."""
    shapes = [held[name].shape if name in held else None for name in (mu, sigma)]
    if shapes[0] is None or len(shapes[0]) != 1 or shapes[1] != 2 * shapes[0] or 0 in shapes[0]:
        raise InputError(
            f"'{path}' has {mu} of shape {shapes[0]} and {sigma} of shape {shapes[1]}, where "
            "[D] and [D, D] are needed; make it anew"
        )
    for name in (mu, sigma):
        if held[name].dtype.kind not in "fiu" or not np.isfinite(held[name]).all():
            raise InputError(f"'{path}' has values in {name} that are not finite; make it anew")
        held[name] = held[name].astype(np.float64)
