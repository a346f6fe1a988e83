"""Checkpoints of a training run: asynchronous orbax saves, exact restores, parameters alone.

A run's work folder holds `config.json` (the whole configuration) and `checkpoints/STEP/` with one
orbax item each for params; ema, discriminator (with its optimiser and batch statistics) and lpips,
where the run has them; and optimizer (with the step, which is also the position in the data, and
whatever else the task's state holds). `digests.json` there tells whether its files are whole.
"""

import dataclasses
import itertools
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils

from llamagen_jax import digests, sharding
from llamagen_jax.digests import in_threads, which
from llamagen_jax.errors import InputError
from llamagen_jax.files import readable_size
from llamagen_jax.weights.export import read_config

_KEPT = 2
# Of every file in a step's folder; and what orbax writes to after them, or calls the folder before.
_DIGESTS = "digests.json"
_LATER = ("_CHECKPOINT_METADATA", "commit_success.txt")
_UNFINISHED = ".orbax-checkpoint-tmp"
# Fields of a state that get items of their own, so that parameters can be read without the rest.
_ITEMS = ("params", "ema", "discriminator", "lpips")


class Checkpointer:
    """Saves and restores training states under `folder`/checkpoints.

    States are those of `training.optimizer.TrainState`.
    """

    def __init__(self, folder: Path):
        self._folder = folder / "checkpoints"
        self._manager = ocp.CheckpointManager(
            self._folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=_KEPT,
                create=True,
                # Saves that were cut off would fill the disk.
                cleanup_tmp_directories=True,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._write_digests),
            ),
        )
        self._saving = 0
        self._set_damaged_aside()

    @property
    def latest_step(self) -> int | None:
        """The newest whole checkpoint; a save that was cut off does not count."""
        return self._manager.latest_step()

    def check_space(self, state: Any, saves: int) -> None:
        """Checks that the disk has room for so many saves of a state, of which the newest are kept.

        Raises:
          InputError: it has not.
        """
        # The oldest goes when the one after those that are kept is whole.
        more = min(saves, _KEPT + 1 - len(self._manager.all_steps()))
        self._check_free(state, more)

    def _check_free(self, state: Any, count: int) -> None:
        needed = count * sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            kept = f"; step {self.latest_step} is kept" if self.latest_step else ""
            raise InputError(
                f"no space for checkpoints: {self._folder} has {readable_size(free)} free, not "
                f"the {readable_size(needed)} needed{kept}; make space and start the same command "
                "again"
            )

    def save(self, state: Any) -> None:
        """Starts writing in the background; returns when the arrays may be donated again.

        Raises:
          InputError: the disk has no room for it.
        """
        # When a save fails is told late and at length: the disk may fill while a run goes on.
        self._manager.wait_until_finished()
        self._check_free(state, 1)
        items = {name: ocp.args.StandardSave(item) for name, item in _items(state).items()}
        self._saving = int(state.step)
        self._manager.save(self._saving, args=ocp.args.Composite(**items))

    def restore(self, abstract_state: Any) -> Any:
        """Reads the newest checkpoint.

        Args:
          abstract_state: ShapeDtypeStructs with the shardings that the arrays shall have; they may
            differ from those that the checkpoint was written with.

        Raises:
          InputError: the checkpoint is damaged or of another model.
        """
        step = self.latest_step
        abstract = _items(abstract_state)
        items = {name: ocp.args.StandardRestore(item) for name, item in abstract.items()}
        # A damaged file surfaces as any of a dozen exception types of orbax, tensorstore and json.
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:
            raise _unreadable(self._folder / str(step), error) from error
        whole = {name: restored[name] for name in abstract if name != "optimizer"}
        return abstract_state.replace(**whole, **restored["optimizer"])

    def _set_damaged_aside(self) -> None:
        """Makes the newest whole checkpoint the latest one; those after it are kept beside it.

        Raises:
          InputError: all are damaged.
        """
        damaged = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            # Every process looks at its share of the files.
            changed = changed_files(
                self._folder / str(step), jax.process_index(), jax.process_count()
            )
            if not sharding.fetch(np.array([bool(changed)])).any():
                break
            damaged.append(step)
        else:
            if damaged:
                raise _all_damaged(self._folder, damaged)
        for step in damaged:
            _warn_damaged(self._folder, step)
            if jax.process_index() == 0:
                numbers = itertools.chain([""], itertools.count(2))
                places = (self._folder / f"{step}.damaged{number}" for number in numbers)
                aside = next(place for place in places if not place.exists())
                (self._folder / str(step)).rename(aside)
        if damaged:
            multihost_utils.sync_global_devices("damaged checkpoints are aside")
            self._manager.reload()

    def _write_digests(self) -> None:
        """Adds the digests of a save's files, in the process that gives its folder its name."""
        if jax.process_index() == 0:
            for folder in self._folder.glob(f"{self._saving}{_UNFINISHED}*"):
                files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in _LATER)
                found = zip(files, in_threads(digests.of_file, files), strict=True)
                named = {str(path.relative_to(folder)): digest for path, digest in found}
                digests.write_json(folder / _DIGESTS, named)

    def close(self) -> None:
        """Waits for the save in progress."""
        self._manager.close()


def load_params(folder: str | Path) -> tuple[str, dict, Any]:
    """Parameters of a work folder's newest checkpoint, the moving average where one is kept.

    Args:
      folder: work folder of a run on any number of devices.

    Returns:
      The run's task ("tokenizer" or "generator"), the mapping of its model configuration, and the
      parameters on the first local device.

    Raises:
      InputError: there is no checkpoint, or it is damaged.
    """
    folder = Path(folder)
    config = read_config(folder)
    handlers = {name: ocp.StandardCheckpointHandler() for name in (*_ITEMS, "optimizer")}
    path = (folder / "checkpoints").absolute()
    with ocp.CheckpointManager(path, item_handlers=handlers) as manager:
        steps = sorted(manager.all_steps(), reverse=True)
        if not steps:
            raise InputError(f"{folder} holds no checkpoint yet: train there first")
        step = next((step for step in steps if not changed_files(path / str(step))), None)
        if step is None:
            raise _all_damaged(folder / "checkpoints", steps)
        for damaged in steps[: steps.index(step)]:
            _warn_damaged(folder / "checkpoints", damaged)
        try:
            items = manager.item_metadata(step)
            name = "ema" if "ema" in items else "params"
            target = jax.tree.map(_on_one_device, items[name].tree)
            args = ocp.args.Composite(**{name: ocp.args.StandardRestore(target)})
            params = manager.restore(step, args=args)[name]
        except Exception as error:
            raise _unreadable(folder / "checkpoints" / str(step), error) from error
    return config["task"], config["model"], params


def changed_files(folder: Path, process_index: int = 0, process_count: int = 1) -> list[Path]:
    """Files of a step's folder that are missing or other than when it was saved.

    Of a folder without digests nothing is known, and none are told.

    Args:
      process_index, process_count: which share of the files to look at.
    """
    path = folder / _DIGESTS
    if not path.exists():
        return []
    try:
        saved = digests.read_json(path)
    except InputError:
        return [path]
    names = sorted(saved)[process_index::process_count]

    def changed(name: str) -> bool:
        file = folder / name
        return not file.is_file() or digests.of_file(file) != saved[name]

    return [folder / name for name in which(changed, names)]


def _warn_damaged(folder: Path, step: int) -> None:
    if jax.process_index() == 0:
        logging.warning("checkpoint %s is damaged; taking the one before it", folder / str(step))


def _all_damaged(folder: Path, steps: list[int]) -> InputError:
    told = ", ".join(map(str, sorted(steps)))
    return InputError(
        f"every checkpoint in {folder} is damaged ({told}): copy one from where it is whole, or "
        "choose another --workdir to begin anew"
    )


def _items(state: Any) -> dict[str, Any]:
    """The state's fields by the name of their item; fields that are None have none."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    fields = {name: value for name, value in fields.items() if value is not None}
    items = {name: fields.pop(name) for name in _ITEMS if name in fields}
    return items | {"optimizer": fields}


def _on_one_device(metadata) -> jax.ShapeDtypeStruct:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(metadata.shape, metadata.dtype, sharding=sharding)


def _unreadable(path: Path, error: Exception) -> InputError:
    reason = (str(error) or type(error).__name__).splitlines()[0][:200]
    return InputError(
        f"checkpoint {path} is damaged or of another model ({reason}); "
        "remove that folder to go back to the checkpoint before it"
    )
