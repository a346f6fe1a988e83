"""What a client may ask for: the body of OpenAI's image requests and our own fields beside.

Source of the fields: github.com/openai/openai-python, `images.generate` and `images.edit`.
"""

import base64
import binascii
import json
import math
import secrets
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llamagen_jax import seeds
from llamagen_jax.control_maps import SURROUNDINGS, hide
from llamagen_jax.data.control_files import MAP, as_control
from llamagen_jax.errors import InputError, nearest
from llamagen_jax.generation import ImageGenerator
from llamagen_jax.inpainting import Edit
from llamagen_jax.models.llama_config import LlamaConfig
from llamagen_jax.sampling.options import CONTROL_SETTINGS, SETTINGS
from llamagen_jax.sampling.settings import SamplingSettings
from llamagen_jax.text.prompts import check_prompts

_MAX_PARTIAL_IMAGES = 3


class ApiError(Exception):
    """What a request is answered with when it is not served, in OpenAI's shape.

    Attributes:
      status: of HTTP.
      param: the field at fault, or None.
      code: a word for programs.
      headers: of HTTP.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        # A message may quote letters that are none.
        message = str(self).encode("utf-8", "backslashreplace").decode()
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}


class ImagesBody(BaseModel):
    """Body of POST /v1/images/generations; null stands for the default."""

    model_config = ConfigDict(extra="forbid", strict=True)
    # What the names of its events begin with.
    event: ClassVar[str] = "image_generation"

    prompt: str | int
    model: str | None = None
    n: int | None = None
    size: str | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    response_format: Literal["b64_json", "url"] | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=_MAX_PARTIAL_IMAGES)] | None = None
    # Of models that do not run here.
    quality: str | None = None
    style: str | None = None
    background: Literal["auto", "opaque"] | None = None
    moderation: str | None = None
    user: str | None = None
    # Our own.
    partial_rows: bool | None = None
    seed: int | str | None = None
    guidance_scale: float | None = None
    guidance_interval: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    greedy: bool | None = None
    decoder: Literal["plain", "jacobi", "auto"] | None = None
    control: str | None = None
    control_kind: str | None = None
    control_scale: float | None = None
    keep_control: bool | None = None


class EditsBody(ImagesBody):
    """Fields of POST /v1/images/edits beside its files."""

    event = "image_edit"

    # Of models that do not run here.
    input_fidelity: str | None = None


_Body = TypeVar("_Body", bound=ImagesBody)


def parse(data: bytes) -> ImagesBody:
    """The body of a request; ApiError names the field that is wrong."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        message = f"the body is no JSON: {error}"
        raise ApiError(400, message, code="invalid_json") from error
    if not isinstance(values, dict):
        raise ApiError(400, "the body must be a JSON object", code="invalid_json")
    return _validated(ImagesBody, values)


def parse_fields(fields: Mapping[str, str]) -> EditsBody:
    """The fields of a form, numbers and the like as texts; errors as of `parse`."""
    return _validated(EditsBody, fields, texts=True)


def _validated(kind: type[_Body], values: Mapping[str, Any], texts: bool = False) -> _Body:
    for name in values:
        if name not in kind.model_fields:
            known = nearest(name, kind.model_fields)
            message = f"there is no field '{name}'; {known}"
            raise ApiError(400, message, param=name, code="unknown_parameter")
    try:
        return kind.model_validate_strings(values) if texts else kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        param = str(first["loc"][0])
        message = f"{param}: {first['msg']}"
        raise ApiError(400, message, param=param, code="invalid_value") from error


def settings_of(body: ImagesBody, generator: ImageGenerator, max_n: int) -> list[SamplingSettings]:
    """The settings of each image: image i has seed + i, so that it can be made again alone.

    Raises:
      ApiError: a value is out of its range.
    """
    count = 1 if body.n is None else body.n
    if not 1 <= count <= max_n:
        raise ApiError(400, f"n must be from 1 to {max_n}", param="n", code="invalid_value")
    names = {*SETTINGS, *CONTROL_SETTINGS} - {"seed"}
    fields = {name: getattr(body, name) for name in names}
    first = secrets.randbits(32) if body.seed is None else _whole(body.seed)
    try:
        seeds.check(first, "seed")
        settings = [generator.settings(seed=(first + i) % 2**64, **fields) for i in range(count)]
    except InputError as error:
        param = str(error).partition("=")[0]
        raise ApiError(400, str(error), param=param, code="invalid_value") from error
    if max(settings[0].top_k, settings[0].guidance_interval or 0) >= 2**31:
        raise ApiError(400, "top_k and guidance_interval must be below 2^31", code="invalid_value")
    return settings


def _whole(seed: int | str) -> Any:
    """A seed of 64 bits may come as a string, since JavaScript's numbers hold 53."""
    digits = isinstance(seed, str) and seed.isascii() and seed.isdigit() and len(seed) <= 20
    return int(seed) if digits else seed


def subject_of(body: ImagesBody, generator: ImageGenerator) -> int | str:
    """The label or the prompt; ApiError where it is none."""
    prompt = str(body.prompt)
    if not prompt.strip():
        raise ApiError(400, "the prompt is empty", param="prompt", code="invalid_value")
    try:
        if generator.config.condition == "class":
            return int(generator.labels([prompt])[0])
        check_prompts([prompt], "the request")
    except InputError as error:
        raise ApiError(400, str(error), param="prompt", code="invalid_value") from error
    return prompt


def control_of(body: ImagesBody, config: LlamaConfig, edit: Edit | None) -> np.ndarray | None:
    """The control image, uint8 [H, W, 3], or None; ApiError where it is none or has no use."""
    surroundings = body.control_kind == SURROUNDINGS
    if body.control is None and not surroundings:
        for name in ("control_kind", *CONTROL_SETTINGS):
            if getattr(body, name) is not None:
                raise ApiError(400, f"{name} is for a control", param=name, code="invalid_value")
        return None
    try:
        if not config.control_layers:
            raise InputError("the model was trained without control images")
        if surroundings:
            if edit is None or body.control is not None:
                raise InputError("surroundings are those of an image to edit: send no control")
            return hide(*edit)
        data = base64.b64decode(body.control or "", validate=True)
        kind = body.control_kind or MAP
        return as_control(data, "of the request", kind, config.control_size)
    except (InputError, binascii.Error) as error:
        raise ApiError(400, str(error), param="control", code="invalid_value") from error


def check_model(model: str | None, name: str) -> None:
    """Refuses another model than this server's."""
    if model not in (None, name):
        message = f"there is no model '{model}'; this server has '{name}'"
        raise ApiError(404, message, param="model", code="model_not_found")


def size_of(body: ImagesBody, name: str, sizes: Iterable[str]) -> str:
    """The one of `sizes`, the default first, that is asked for; ApiError where it is none."""
    sizes = list(sizes)
    if body.size in (None, "auto"):
        return sizes[0]
    if body.size not in sizes:
        message = f"'{name}' makes images of {', '.join(sizes)}, not of '{body.size}'"
        raise ApiError(400, message, param="size", code="invalid_value")
    return body.size


def partial_at(body: ImagesBody, grid: tuple[int, int]) -> list[int]:
    """After how many codes a partial picture is due."""
    rows, columns = grid
    if not body.stream:
        return []
    if body.partial_rows:
        return [columns * row for row in range(1, rows)]
    count = body.partial_images or 0
    return [math.ceil(rows * columns * (2 * i + 1) / (2 * count + 2)) for i in range(count)]
