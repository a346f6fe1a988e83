"""Checkpoints of a training run: asynchronous orbax saves, exact restores, parameters alone.

A run's work folder holds `config.json` (the whole configuration) and `checkpoints/STEP/` with one
orbax item each for params; ema, discriminator (with its optimiser and batch statistics) and lpips,
where the run has them; and optimizer (with the step, which is also the position in the data, and
whatever else the task's state holds).
"""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from llamagen_jax.errors import InputError
from llamagen_jax.files import readable_size
from llamagen_jax.weights.export import read_config

_KEPT = 2
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
            ),
        )

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
        self._manager.save(int(state.step), args=ocp.args.Composite(**items))

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
        step = manager.latest_step()
        if step is None:
            raise InputError(f"{folder} holds no checkpoint yet: train there first")
        try:
            items = manager.item_metadata(step)
            name = "ema" if "ema" in items else "params"
            target = jax.tree.map(_on_one_device, items[name].tree)
            args = ocp.args.Composite(**{name: ocp.args.StandardRestore(target)})
            params = manager.restore(step, args=args)[name]
        except Exception as error:
            raise _unreadable(folder / "checkpoints" / str(step), error) from error
    return config["task"], config["model"], params


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
