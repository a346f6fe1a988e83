"""The command that samples images, in process, and tiny models in files."""

import dataclasses

import golden_weights
import numpy as np
import tiny

from llamagen_jax import sample, zoo
from llamagen_jax.weights import export

TEXT = dataclasses.replace(tiny.TEXT_CONFIG, condition_length=16)


def run(*args):
    sample.main([str(arg) for arg in args])


def fails(*args) -> str:
    """The one line that the command ends with."""
    return tiny.error_line(run, *args)


def read(path):
    with np.load(path) as file:
        return dict(file)


def write_export(folder, config, **metadata):
    export.write(folder, zoo.build(config), golden_weights.params(config), **metadata)
    return folder
