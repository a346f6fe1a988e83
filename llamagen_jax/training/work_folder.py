"""The work folder of a run: its lock, and its config.json, which says which run it is."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import jax
import numpy as np
from absl import logging

from llamagen_jax import sharding
from llamagen_jax.digests import write_json
from llamagen_jax.errors import InputError
from llamagen_jax.files import staged
from llamagen_jax.training import plan
from llamagen_jax.training.task import OpenTask
from llamagen_jax.weights.export import read_config


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes the folder, and keeps other runs out of it; the system frees that of a killed process.

    Raises:
      InputError: another run is at work in it, or it cannot be made.
    """
    with contextlib.ExitStack() as stack:
        taken = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if jax.process_index() == 0:
                stack.enter_context(filelock.FileLock(folder / "lock").acquire(blocking=False))
        except filelock.Timeout:
            taken = True
        except OSError as error:
            raise InputError(f"cannot write {folder}: {error.strerror or error}") from error
        if sharding.fetch(np.array([taken])).any():
            raise InputError(
                f"another run is at work in {folder}: wait for it or choose another --workdir"
            )
        yield


def check_plan(folder: Path, task: OpenTask, step: int | None, change_plan: bool) -> None:
    """Checks that the run in the folder, where there is one, is to be gone on with; tells what it
    will do otherwise than before.

    Args:
      folder: of the run.
      task: to go on with.
      step: of the newest checkpoint, None without one.
      change_plan: whether results may jump.

    Raises:
      InputError: another run is there, or results would jump and may not; or config.json is
        damaged.
    """
    if not (folder / "config.json").exists():
        return
    before, after = read_config(folder), _plan(task)
    if key := plan.other_run(before, after, task.may_change):
        raise InputError(
            f"{folder} holds a run with {key[0]}={key[1]!r}, not {key[2]!r}; go on with that value "
            "or choose another --workdir"
        )
    if step is None:
        return
    changes = plan.changes(before, after, step)
    told = "; ".join(change.text for change in changes)
    if any(change.jumps for change in changes) and not change_plan:
        raise InputError(
            f"{folder} is at step {step} of another plan: {told}; give --change-plan to go on so, "
            "or the values from before"
        )
    for change in changes:
        if jax.process_index() == 0:
            logging.warning("from step %d on: %s", step, change.text)


def record_plan(folder: Path, task: OpenTask, step: int) -> int:
    """Writes config.json.

    Args:
      step: that the run goes on from.

    Returns:
      What is added to the places of batches in the data's stream, so that after a change of the
      batch size the records go on where they were.

    Raises:
      InputError: it cannot be written.
    """
    path, values = folder / "config.json", _plan(task)
    before = read_config(folder) if path.exists() else values
    offset = before.get("record_offset", 0)
    offset += step * (before["batch_size"] - values["batch_size"])
    if jax.process_index() == 0:
        with staged(path, overwrite=True) as partial:
            write_json(partial, values | {"record_offset": offset})
    return offset


def _plan(task: OpenTask) -> dict[str, Any]:
    """The configuration, what the order of the data depends on beside it, and the data's credit, as
    JSON has them."""
    source = task.source
    data = {
        "class_names": source.class_names,
        "credit": source.credit,
        "records": len(source),
    }
    return json.loads(json.dumps(dataclasses.asdict(task.config) | data))
