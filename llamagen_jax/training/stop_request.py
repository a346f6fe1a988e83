"""Where a run stops that was told to: all of its processes after the same step."""

import contextlib
import signal
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from llamagen_jax import interruption


class StopRequest:
    """SIGINT or SIGTERM in any process of a run, which all learn of after the same step.

    A context, after which signals stop the program at once again.

    Args:
      mesh: of the run.
    """

    def __init__(self, mesh: Mesh):
        self._deferral = contextlib.ExitStack()
        self._received = None
        self._rows = NamedSharding(mesh, P(mesh.axis_names))
        self._highest = jax.jit(jnp.max)
        self._newest: jax.Array | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error) -> bool | None:
        return self._deferral.__exit__(*error)

    def after_step(self) -> signal.Signals | None:
        """The signal to stop for now; every process must ask after every step.

        Until this is first asked there is nothing to be saved, and signals stop the run at once.
        """
        if self._received is None:
            self._received = self._deferral.enter_context(interruption.deferred())
        own = self._received()
        if jax.process_count() == 1:
            return own
        # Fetched one step late, so that the devices always have the next step to run.
        before, signums = self._newest, np.full(jax.local_device_count(), own or 0, np.int32)
        self._newest = self._highest(jax.make_array_from_process_local_data(self._rows, signums))
        number = 0 if before is None else int(before)
        return signal.Signals(number) if number else None
