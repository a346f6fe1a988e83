"""Where a run's numbers and pictures go: `metrics.jsonl`, TensorBoard events, PNG files."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import (
    Event,  # pyright: ignore[reportAttributeAccessIssue]
    SessionLog,  # pyright: ignore[reportAttributeAccessIssue]
)

from llamagen_jax.files import staged
from llamagen_jax.images import grid, save_png


class MetricsLog:
    """Writes into a work folder, from the first process alone.

    A resumed run continues as if it had never stopped.

    Args:
      folder: the work folder.
      resumed_step: lines and events of later steps are dropped, for they will be written again.
    """

    def __init__(self, folder: Path, resumed_step: int):
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        self._samples = folder / "samples"
        path = folder / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        # A killed run may leave half a line at the end.
        whole = [line for line in lines if line.endswith("}\n")]
        kept = [line for line in whole if json.loads(line)["step"] <= resumed_step]
        with staged(path, overwrite=True) as partial:
            partial.write_text("".join(kept))
        self._lines = path.open("a", buffering=1)
        (folder / "events").mkdir(exist_ok=True)
        # Not a SummaryWriter, whose thread dies when the disk is full and is then waited for.
        self._events = EventsWriter(str(folder / "events" / "events"))
        self._add_event(resumed_step + 1, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, prefix: str, values: Mapping[str, float]) -> None:
        """Records `values` under "prefix/name"."""
        if not self._writes:
            return
        named = {f"{prefix}/{name}": float(value) for name, value in values.items()}
        self._lines.write(json.dumps({"step": step} | named) + "\n")
        for name, value in named.items():
            self._add_event(step, summary=summary.scalar(name, value))
        self._events.flush()

    def pictures(self, step: int, images: np.ndarray) -> None:
        """Records uint8 [rows, columns, H, W, 3] as one grid, `samples/step_*.png`."""
        if not self._writes:
            return
        picture = grid(images)
        save_png(self._samples / f"step_{step:07d}.png", picture)
        self._add_event(step, summary=summary.image("samples", picture, dataformats="HWC"))
        self._events.flush()

    def close(self) -> None:
        """Flushes everything."""
        if self._writes:
            self._lines.close()
            self._events.close()

    def _add_event(self, step: int, **what) -> None:
        self._events.write_event(Event(step=step, wall_time=time.time(), **what))
