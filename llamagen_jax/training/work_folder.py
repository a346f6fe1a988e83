"""The work folder of a run, whose config.json says which run it is."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax

from llamagen_jax.errors import InputError
from llamagen_jax.files import staged
from llamagen_jax.training.task import OpenTask
from llamagen_jax.weights.export import read_config

# Keys that may differ when a run goes on; any other would make it another run.
_MAY_CHANGE = ("steps", "sample.", "mesh.", "sharding_rules", "data.eval")


def open_work_folder(folder: Path, task: OpenTask) -> None:
    """Makes the folder, or checks that the run in it is the one to go on with.

    Raises:
      InputError: another run is there, or the folder cannot be written.
    """
    # Over another number of records the order would be another.
    data = {"class_names": task.source.class_names, "records": len(task.source)}
    values = json.loads(json.dumps(dataclasses.asdict(task.config) | data))
    path = folder / "config.json"
    if path.exists():
        before, after = _flatten(read_config(folder)), _flatten(values)
        for key in before.keys() | after.keys():
            free = key.startswith(_MAY_CHANGE + task.may_change) or key.endswith("_every")
            if before.get(key) != after.get(key) and not free:
                raise InputError(
                    f"{folder} holds a run with {key}={before.get(key)!r}, not "
                    f"{after.get(key)!r}; go on with that value or choose another --workdir"
                )
    if jax.process_index() == 0:
        with staged(path, overwrite=True) as partial:
            partial.write_text(json.dumps(values, indent=2) + "\n")


def _flatten(values: dict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
