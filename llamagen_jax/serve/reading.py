"""What a client sends: the body of a request, as JSON or as a form with the files of an edit."""

import asyncio
from collections.abc import AsyncGenerator, Callable

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from llamagen_jax import inpainting
from llamagen_jax.errors import InputError
from llamagen_jax.serve import body as bodies
from llamagen_jax.serve.body import ApiError, EditsBody, ImagesBody

_MAX_BODY_BYTES = 2**20
_MAX_FORM_BYTES = 2**24
_FILES = ("image", "mask")


async def read_images(request: Request) -> tuple[ImagesBody, None]:
    """The body of a request to generate images; ApiError says what is wrong with it."""
    # Other types may be sent by any page that a browser shows, without asking this server first.
    _check_type(request, "application/json")
    data = b"".join([part async for part in _stream(request, _MAX_BODY_BYTES)])
    return bodies.parse(data), None


async def read_edit(
    request: Request, size_of: Callable[[EditsBody], tuple[int, int]]
) -> tuple[EditsBody, inpainting.Edit]:
    """The fields and the files of a request to edit an image.

    Args:
      size_of: H and W of the images that a body asks for.

    Raises:
      ApiError: says what is wrong with them.
    """
    # Forms are what any page may send; a browser tells where that came from.
    if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        raise ApiError(403, "a page of another server must not send this", code="cross_site")
    _check_type(request, "multipart/form-data")
    parser = MultiPartParser(request.headers, _stream(request, _MAX_FORM_BYTES))
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise ApiError(400, error.message, code="invalid_form") from error
    try:
        fields, files = await _sort(form)
    finally:
        await form.close()
    body = bodies.parse_fields(fields)
    size = size_of(body)
    try:
        edit = await asyncio.to_thread(
            inpainting.read_edit, files["image"], files.get("mask"), size
        )
    except InputError as error:
        param = str(error).partition(":")[0]
        raise ApiError(400, str(error), param=param, code="invalid_value") from error
    return body, edit


async def _sort(form: FormData) -> tuple[dict[str, str], dict[str, bytes]]:
    """The fields of a form, and the bytes of its files, by name."""
    fields, files = {}, {}
    for name, value in form.multi_items():
        # OpenAI's client sends a list of one file so.
        name = name.removesuffix("[]")
        if name in fields or name in files:
            message = f"there is more than one '{name}'"
            raise ApiError(400, message, param=name, code="invalid_value")
        if isinstance(value, UploadFile) != (name in _FILES):
            message = f"'{name}' must be a file" if name in _FILES else f"'{name}' is no file"
            raise ApiError(400, message, param=name, code="invalid_value")
        if isinstance(value, UploadFile):
            files[name] = await value.read()
        else:
            fields[name] = value
    if "image" not in files:
        raise ApiError(400, "the image is missing", param="image", code="missing_parameter")
    return fields, files


def _check_type(request: Request, wanted: str) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != wanted:
        raise ApiError(415, f"send Content-Type: {wanted}", code="invalid_content_type")


async def _stream(request: Request, most: int) -> AsyncGenerator[bytes, None]:
    """The body as it comes; ApiError once it has more than `most` bytes."""
    num_bytes = 0
    async for part in request.stream():
        num_bytes += len(part)
        if num_bytes > most:
            raise ApiError(413, f"the body has more than {most} bytes", code="body_too_large")
        yield part
