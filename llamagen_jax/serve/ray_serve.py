"""Engines on a Ray cluster, as replicas of a Ray Serve deployment behind one HTTP server.

An image depends on its settings alone. What a replica had not delivered when it was lost is drawn
anew by another, to the same bytes.
"""

import asyncio
import contextlib
import dataclasses
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from llamagen_jax.errors import InputError
from llamagen_jax.generation import ImageGenerator
from llamagen_jax.serve.drawing import Drawing
from llamagen_jax.serve.engine import Counts, Engine
from llamagen_jax.serve.requests import (
    Deliver,
    FullError,
    Picture,
    Request,
    StoppedError,
    Ticket,
)

_APPLICATION = "llamagen_jax"
# Replicas that a request may lose before it is given up.
_LOSSES = 5


class Replica:
    """An engine in a process of the cluster."""

    def __init__(self, make_engine: Callable[[], Engine], folder: Path):
        """Starts the engine that `make_engine` gives, in the folder that the server works in."""
        # Where it is missing, absolute paths may still do.
        with contextlib.suppress(OSError):
            os.chdir(folder)
        self._engine = make_engine()
        self._engine.start()

    async def describe(self) -> ImageGenerator:
        """The generator without weights, once the engine is ready."""
        while not self._engine.ready:
            self.check_health()
            await asyncio.sleep(0.1)
        generator = self._engine.generator
        tokenizer: Any = generator.tokenizer
        return dataclasses.replace(
            generator, params={}, tokenizer=tokenizer.replace(params={}), draft=None
        )

    async def draw(self, request: Request) -> AsyncIterator[Picture]:
        """Pictures of a request, as `Drawing.pictures`."""
        async for picture in Drawing(self._engine.submit, request).pictures():
            yield picture

    def check_health(self) -> None:
        """Raises what the engine failed of; Ray Serve then puts another replica in its place."""
        if self._engine.failure:
            raise self._engine.failure


class RayEngine:
    """What `Engine` is to the HTTP server, by replicas on the connected cluster.

    Attributes:
      generator: without weights.
      num_slots: of all replicas.
      counts: images alone.
      failure: None; replicas that fail are replaced.
      compiling: False; replicas compile in their own processes.
      ready: whether replicas draw.
    """

    def __init__(
        self,
        make_engine: Callable[[], Engine],
        *,
        replicas: int,
        num_slots: int,
        max_waiting: int,
        devices: int,
    ):
        """Starts the replicas, in the place of those that another server left, and waits for one.

        Args:
          make_engine: is pickled and called in each replica; its queue must hold what all may.
          num_slots: of each replica.
          max_waiting: images that may wait for a slot of any.
          devices: GPUs of each replica, where the cluster has some.

        Raises:
          InputError: Ray Serve is not installed, or a replica cannot be started.
        """
        try:
            from ray import cluster_resources, serve
        except ImportError as error:
            raise InputError('replicas need Ray Serve: pip install "ray[serve]"') from error
        self.num_slots, self._most = replicas * num_slots, replicas * num_slots + max_waiting
        self.counts, self.failure, self.compiling, self._images = Counts(), None, False, 0
        self._tasks: set[asyncio.Task] = set()
        gpus = devices if cluster_resources().get("GPU") else 0
        deployment = serve.deployment(
            Replica,
            num_replicas=replicas,
            max_ongoing_requests=self._most,
            ray_actor_options={"num_gpus": gpus, "num_cpus": 1},
            health_check_period_s=2,
        )
        # Requests come to the server of this process.
        serve.start(proxy_location="Disabled")
        application = deployment.bind(make_engine, Path.cwd())
        try:
            handle = serve.run(application, name=_APPLICATION, route_prefix=None)
            self.generator = handle.describe.remote().result()
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise InputError(f"the replicas do not start: {reason}") from error
        self._handle: Any = handle.options(stream=True)
        self.ready = True

    def start(self) -> None:
        """Does nothing: replicas draw as soon as they are there."""

    def stop(self) -> None:
        """Ends the replicas."""
        from ray import serve

        self.ready = False
        serve.delete(_APPLICATION)

    @property
    def num_waiting(self) -> int:
        """Images that wait for a slot, if the replicas have equally many."""
        return max(self._images - self.num_slots, 0)

    @property
    def num_busy(self) -> int:
        """Slots that hold an image, if the replicas have equally many."""
        return min(self._images, self.num_slots)

    def submit(self, request: Request, deliver: Deliver) -> Ticket:
        """As `Engine.submit`, in a running event loop; a prompt that is too long is told later."""
        if self._images + len(request.settings) > self._most:
            raise FullError(1.0)
        ticket = _Forwarded(request, deliver)
        ticket.task = asyncio.get_running_loop().create_task(self._forward(ticket))
        self._tasks.add(ticket.task)
        ticket.task.add_done_callback(self._tasks.discard)
        return ticket

    async def _forward(self, ticket: Ticket) -> None:
        """Has a request drawn by one replica or, as they are lost, by one after another."""
        from ray.exceptions import RayError, RayTaskError

        request = ticket.request
        missing = list(range(len(request.settings)))
        partials = [0] * len(missing)
        self._images += len(missing)
        try:
            for _ in range(_LOSSES):
                settings = [request.settings[index] for index in missing]
                numbers = list(missing)
                try:
                    async for picture in self._handle.draw.remote(
                        dataclasses.replace(request, settings=settings)
                    ):
                        index = numbers[picture.index]
                        if picture.partial is None:
                            missing.remove(index)
                            self._images -= 1
                            self.counts.images += 1
                        elif picture.partial < partials[index]:
                            continue
                        else:
                            partials[index] = picture.partial + 1
                        ticket.deliver(dataclasses.replace(picture, index=index))
                    return
                except RayTaskError as error:
                    if not isinstance(error.cause, StoppedError):
                        ticket.deliver(error.cause)
                        return
                except RayError:
                    # The replica is lost.
                    pass
            ticket.deliver(StoppedError("the replicas were lost again and again"))
        finally:
            self._images -= len(missing)


class _Forwarded(Ticket):
    """A request on its way to replicas."""

    task: Any = None

    def cancel(self) -> None:
        super().cancel()
        self.task.cancel()
