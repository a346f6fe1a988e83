"""OpenAI's images API over HTTP, and the page that uses it."""

import asyncio
import base64
import contextlib
import dataclasses
import functools
import hmac
import json
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import prometheus_client
import uvicorn
from absl import logging
from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from starlette.exceptions import HTTPException

from llamagen_jax.errors import InputError
from llamagen_jax.images import encode
from llamagen_jax.inpainting import Edit
from llamagen_jax.models.llama_config import LlamaConfig
from llamagen_jax.sampling.options import SETTINGS, told
from llamagen_jax.serve import body as bodies
from llamagen_jax.serve import reading, requests
from llamagen_jax.serve.body import ApiError, ImagesBody
from llamagen_jax.serve.drawing import Drawing
from llamagen_jax.serve.engine import Engine
from llamagen_jax.serve.ray_serve import RayEngine
from llamagen_jax.serve.requests import FullError, Picture, StoppedError

_PAGE = Path(__file__).with_name("page")
# Seconds. Longer than clients keep an idle connection (5 in httpx, 60 in most load balancers): a
# server that closes first may do so while the client sends its next request, which then fails.
_KEEP_ALIVE = 75


def create_app(
    engine: Engine | RayEngine,
    *,
    api_keys: Sequence[str] = (),
    max_n: int = 10,
    timeout: float = 600,
    log_prompts: bool = False,
) -> FastAPI:
    """The application; it starts the engine when it starts, and stops it when it ends.

    Args:
      api_keys: one of which a client must send; () lets everyone in.
      max_n: images that a request may ask for.
      timeout: seconds that a request may take.
      log_prompts: whether the log tells prompts.
    """
    service = _Service(engine, max_n, timeout, log_prompts)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        await asyncio.to_thread(engine.stop)

    # The pages that document it would fetch scripts from elsewhere.
    app = FastAPI(title="llamagen_jax", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_exception_handler(ApiError, _answer_error)
    app.add_exception_handler(HTTPException, _answer_error)
    app.add_exception_handler(Exception, _answer_error)
    guarded = [Depends(_key_check(api_keys))]

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        policy = "default-src 'self'; img-src 'self' data: blob:"
        return FileResponse(_PAGE / "index.html", headers={"Content-Security-Policy": policy})

    app.mount("/page", StaticFiles(directory=_PAGE))

    @app.get("/healthz")
    def health() -> dict[str, str]:
        if engine.failure:
            raise ApiError(503, f"the engine has failed: {engine.failure}", code="failed")
        return {"status": "ok"}

    @app.get("/readyz")
    def readiness() -> dict[str, str]:
        if not engine.ready:
            raise ApiError(503, "the server is not ready", code="not_ready")
        return {"status": "ready"}

    @app.get("/metrics", dependencies=guarded)
    def metrics() -> Response:
        text = prometheus_client.generate_latest(service.registry)
        return Response(text, media_type=prometheus_client.CONTENT_TYPE_LATEST)

    @app.get("/v1/models", dependencies=guarded)
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [service.about]}

    @app.get("/v1/models/{name}", dependencies=guarded)
    def model(name: str) -> dict[str, Any]:
        bodies.check_model(name, service.name)
        return service.about

    @app.post("/v1/images/generations", dependencies=guarded)
    async def generate(request: Request) -> Response:
        return await service.answer(request, reading.read_images)

    @app.post("/v1/images/edits", dependencies=guarded)
    async def edit(request: Request) -> Response:
        return await service.answer(request, service.read_edit)

    return app


def make_server(app: FastAPI) -> uvicorn.Server:
    """The server of `create_app`'s application; `run(sockets=[...])` blocks until it is stopped."""
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_keep_alive=_KEEP_ALIVE
    )
    return uvicorn.Server(config)


def _key_check(api_keys: Sequence[str]) -> Any:
    def check(request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        if api_keys and not any(hmac.compare_digest(given, key.encode()) for key in api_keys):
            raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key")

    return check


async def _answer_error(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        error = ApiError(error.status_code, str(error.detail))
    if not isinstance(error, ApiError):
        logging.error("%s %s failed", request.method, request.url.path, exc_info=error)
        error = ApiError(500, "the server has a fault; its log says which", code="fault")
    return JSONResponse(error.body(), error.status, error.headers)


class _Service:
    """What the routes share.

    Attributes:
      name: of the model, the last part of the generator's path or name.
      sizes: grids of its images by WIDTHxHEIGHT in pixels, the default first.
      read_edit: `reading.read_edit` for these sizes.
      about: the model's entry in /v1/models.
      registry: of its metrics.
    """

    def __init__(self, engine: Engine | RayEngine, max_n: int, timeout: float, log_prompts: bool):
        self._engine, self._max_n, self._timeout = engine, max_n, timeout
        self._log_prompts = log_prompts
        generator = engine.generator
        self.name, self.sizes = Path(generator.name).name, generator.sizes
        self.read_edit = functools.partial(reading.read_edit, size_of=self._sides)
        defaults = generator.settings(seed=0)
        self.about = {
            "id": self.name,
            "object": "model",
            "created": int(time.time()),
            "owned_by": "llamagen_jax",
            "condition": generator.config.condition,
            "class_names": list(generator.class_names),
            "num_classes": generator.config.num_classes,
            "size": next(iter(self.sizes)),
            "sizes": list(self.sizes),
            "grid": list(generator.config.grid),
            "defaults": {name: getattr(defaults, name) for name in SETTINGS if name != "seed"},
            "max_n": max_n,
        }
        self.registry = prometheus_client.CollectorRegistry()
        self.registry.register(_EngineMetrics(engine))
        self._answers = prometheus_client.Counter(
            "llamagen_requests", "Requests by status", ["status"], registry=self.registry
        )
        self._seconds = prometheus_client.Histogram(
            "llamagen_request_seconds",
            "Seconds from a request to its last image",
            buckets=(0.1, 0.3, 1, 3, 10, 30, 100, 300, math.inf),
            registry=self.registry,
        )

    async def answer(
        self,
        request: Request,
        read: Callable[[Request], Awaitable[tuple[ImagesBody, Edit | None]]],
    ) -> Response:
        """Images in one answer or as a stream of events.

        Args:
          read: what is asked for, of `reading`.
        """
        start = time.monotonic()
        body = None
        try:
            body, edit = await read(request)
            control = await asyncio.to_thread(bodies.control_of, body, self._config(body), edit)
            drawing = self._submit(body, edit, control)
            pictures = self._pictures(request, drawing, start)
            if body.stream:
                return StreamingResponse(
                    self._stream(pictures, body, drawing.request, start),
                    media_type="text/event-stream",
                    headers={"Cache-Control": "no-store"},
                )
            data: list[dict] = [{} for _ in drawing.request.settings]
            async for picture in pictures:
                told = await asyncio.to_thread(self._picture, body, drawing.request, picture)
                data[picture.index] = told
        except ApiError as error:
            self._tell(start, error.status, body)
            raise
        self._tell(start, 200, body)
        return JSONResponse(
            {
                "created": int(time.time()),
                "data": data,
                "usage": self._usage(len(data), body),
                **self._described(body),
            }
        )

    def _submit(self, body: ImagesBody, edit: Edit | None, control: np.ndarray | None) -> Drawing:
        """Has the engine draw what a body asks for; ApiError where it does not."""
        generator = self._engine.generator
        bodies.check_model(body.model, self.name)
        grid = self.sizes[self._size(body)]
        settings = bodies.settings_of(body, generator, self._max_n)
        request = requests.Request(
            bodies.subject_of(body, generator),
            settings,
            bodies.partial_at(body, grid),
            grid=grid,
            skip=bool(body.partial_rows),
            edit=edit,
            control=control,
        )
        with _as_answers():
            return Drawing(self._engine.submit, request)

    async def _pictures(
        self, request: Request, drawing: Drawing, start: float
    ) -> AsyncIterator[Picture]:
        """All pictures as they come; ApiError where there will be no more."""

        async def poll() -> None:
            if await request.is_disconnected():
                raise ApiError(499, "the client has hung up")
            if time.monotonic() > start + self._timeout:
                raise ApiError(504, "the images took too long; ask for fewer", code="timeout")

        with _as_answers():
            async for picture in drawing.pictures(poll):
                yield picture

    async def _stream(
        self,
        pictures: AsyncIterator[Picture],
        body: ImagesBody,
        wanted: requests.Request,
        start: float,
    ) -> AsyncIterator[str]:
        """Server-sent events."""
        status = 499
        try:
            async for picture in pictures:
                whole = picture.partial is None
                kind = "completed" if whole else "partial_image"
                event = {
                    "type": f"{body.event}.{kind}",
                    "created_at": int(time.time()),
                    "image_index": picture.index,
                    **self._described(body),
                    **await asyncio.to_thread(self._picture, body, wanted, picture),
                }
                if whole:
                    event["usage"] = self._usage(1, body)
                else:
                    event["partial_image_index"] = picture.partial
                yield _event(event["type"], event)
            status = 200
        except ApiError as error:
            status = error.status
            yield _event("error", error.body())
        finally:
            self._tell(start, status, body)

    def _picture(
        self, body: ImagesBody, wanted: requests.Request, picture: Picture
    ) -> dict[str, Any]:
        """An image's fields in an answer."""
        settings, format = wanted.settings[picture.index], body.output_format or "png"
        kind = "prompt" if isinstance(wanted.subject, str) else "label"
        metadata = {kind: wanted.subject, **told(settings), "generator": self.name}
        if wanted.edit:
            metadata["image"] = "as it was sent, where it was not masked"
        if len(self.sizes) > 1:
            metadata["size"] = self._size(body)
        quality = 100 if body.output_compression is None else body.output_compression
        data = encode(picture.image, format, metadata, quality)
        text = base64.b64encode(data).decode()
        if body.response_format == "url":
            return {"url": f"data:image/{format};base64,{text}", "seed": settings.seed}
        return {"b64_json": text, "seed": settings.seed}

    def _described(self, body: ImagesBody) -> dict[str, Any]:
        return {
            "background": "opaque",
            "output_format": body.output_format or "png",
            "quality": body.quality or "auto",
            "size": self._size(body),
        }

    def _size(self, body: ImagesBody) -> str:
        return bodies.size_of(body, self.name, self.sizes)

    def _config(self, body: ImagesBody) -> LlamaConfig:
        """Of the generator on the grid that is asked for."""
        grid = self.sizes[self._size(body)]
        return dataclasses.replace(self._engine.generator.config, grid_size=grid)

    def _sides(self, body: ImagesBody) -> tuple[int, int]:
        """H and W in pixels of the images that are asked for."""
        side = self._engine.generator.tokenizer.downsampling
        rows, columns = self.sizes[self._size(body)]
        return rows * side, columns * side

    def _usage(self, num_images: int, body: ImagesBody) -> dict[str, Any]:
        read = self._engine.generator.config.condition_length
        drawn = num_images * math.prod(self.sizes[self._size(body)])
        return {
            "input_tokens": read,
            "input_tokens_details": {"image_tokens": 0, "text_tokens": read},
            "output_tokens": drawn,
            "total_tokens": read + drawn,
        }

    def _tell(self, start: float, status: int, body: ImagesBody | None) -> None:
        """Counts and logs an answer."""
        seconds = time.monotonic() - start
        self._answers.labels(str(status)).inc()
        if status == 200:
            self._seconds.observe(seconds)
        asked = "" if body is None else f", n={body.n or 1}"
        if body is not None and self._log_prompts:
            asked += f", prompt={str(body.prompt)[:200]!r}"
        logging.info("images: %d in %.2f s%s", status, seconds, asked)


class _EngineMetrics:
    """What an engine says of itself whenever it is asked."""

    def __init__(self, engine: Engine | RayEngine):
        self._engine = engine

    def collect(self) -> list[Any]:
        engine, counts = self._engine, self._engine.counts
        gauges = {
            "llamagen_queue_images": ("Images that wait", engine.num_waiting),
            "llamagen_slots": ("Images that can be drawn at a time", engine.num_slots),
            "llamagen_slots_busy": ("Images that are drawn now", engine.num_busy),
        }
        counters = {
            "llamagen_images": ("Images drawn", counts.images),
            "llamagen_steps": ("Passes of the transformer", counts.passes),
            "llamagen_step_seconds": ("Seconds of these passes", counts.seconds),
        }
        return [
            *(GaugeMetricFamily(name, *about) for name, about in gauges.items()),
            *(CounterMetricFamily(name, *about) for name, about in counters.items()),
        ]


@contextlib.contextmanager
def _as_answers() -> Iterator[None]:
    """What an engine raises, as what a client is told."""
    try:
        yield
    except FullError as error:
        seconds = str(math.ceil(error.seconds))
        raise ApiError(
            429,
            f"too many images are waiting; try again in {seconds} s",
            code="rate_limit_exceeded",
            headers={"Retry-After": seconds},
        ) from error
    except InputError as error:
        raise ApiError(400, str(error), param="prompt", code="invalid_value") from error
    except StoppedError as error:
        raise ApiError(503, str(error), code="unavailable") from error


def _event(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"
