"""A request in an engine, seen from an event loop."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from llamagen_jax.serve.requests import Deliver, Picture, Request, Ticket

# How soon whoever waits is asked whether it still does.
_POLL_SECONDS = 0.25


class Drawing:
    """A request that an engine has taken, and what it delivers.

    Attributes:
      request: as it was submitted.
    """

    def __init__(self, submit: Callable[[Request, Deliver], Ticket], request: Request):
        """Submits the request in a running event loop; raises what the engine's `submit` raises."""
        self.request = request
        loop, self._delivered = asyncio.get_running_loop(), asyncio.Queue()

        def deliver(item: Picture | Exception) -> None:
            # A loop that is closed has nobody left to tell.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._delivered.put_nowait, item)

        self._ticket = submit(request, deliver)

    async def pictures(
        self, poll: Callable[[], Awaitable[None]] | None = None
    ) -> AsyncIterator[Picture]:
        """All pictures as they come; the engine forgets the request when this ends.

        Args:
          poll: is awaited again and again, and raises to end it.

        Raises:
          StoppedError, InputError: delivered by the engine.
        """
        missing = len(self.request.settings)
        try:
            while missing:
                try:
                    item = await asyncio.wait_for(self._delivered.get(), _POLL_SECONDS)
                except TimeoutError:
                    if poll:
                        await poll()
                    continue
                if isinstance(item, Exception):
                    raise item
                missing -= item.partial is None
                yield item
        finally:
            self._ticket.cancel()
