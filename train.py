"""Trains a tokenizer or a generator.

  python train.py --config=configs/digits.py:tokenizer --workdir=runs/digits_tokenizer

Start it again with the same command to go on after an interruption. Any value of the configuration
can be changed on the command line: --config.optimizer.learning_rate=3e-4
"""

import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from llamagen_jax import zoo
from llamagen_jax.errors import one_line_errors
from llamagen_jax.training.config import GeneratorTraining, from_mapping
from llamagen_jax.training.loop import train

_CONFIG = config_flags.DEFINE_config_file("config", help_string="configs/FILE.py[:VARIANT]")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for checkpoints, metrics and sample images; made when missing."
)


def main(_):
    logging.set_verbosity(logging.WARNING)
    with one_line_errors():
        config = from_mapping(_CONFIG.value.to_dict())
        vqgan = None
        if isinstance(config, GeneratorTraining) and config.tokenizer:
            vqgan = zoo.load(config.tokenizer)
        train(config, Path(_WORKDIR.value), vqgan)


def _parse_flags(argv):
    """absl's parsing, with mistakes in flags and configuration files told in one line."""
    try:
        rest = flags.FLAGS(argv)
        _CONFIG.value.to_dict()  # a configuration file that is missing fails only here
        return rest
    except AttributeError as error:  # ml_collections: a key that the configuration lacks
        sys.exit("error: no such configuration key: " + " ".join(error.args[0].args[0].split()))
    except (flags.Error, OSError) as error:
        lines = [line.strip() for line in str(error).strip().splitlines()]
        text = lines[-1] if "Traceback" in str(error) else " ".join(lines)
        sys.exit("error: " + text.removeprefix("ValueError: "))


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=_parse_flags)
