"""Command that prepares training data: `python -m llamagen_jax.data.prepare codes --help`."""

import argparse
from collections.abc import Iterator

import jax
import numpy as np
from tqdm import tqdm

from llamagen_jax import sharding, zoo
from llamagen_jax.data.pipeline import DataConfig, eval_batches
from llamagen_jax.data.records import Manifest, TokenizerId, write_dataset
from llamagen_jax.data.sources import SOURCES, open_source
from llamagen_jax.errors import InputError, one_line_errors
from llamagen_jax.export import weights_hash
from llamagen_jax.images import from_uint8
from llamagen_jax.models.vqgan import VQGAN


def extract_codes(
    kind: str, location: str, tokenizer: str, output: str, *, image_size: int, batch_size: int
) -> Manifest:
    """Encodes every image of a source into a dataset folder of packed codes.

    Images are centre-cropped; broken ones are left out with a warning.

    Args:
      kind, location: of `sources.open_source`.
      tokenizer: of `zoo.load`.
      output: folder to write, which appears when it is complete.
      image_size: side of the crop in pixels.
      batch_size: images per step over all devices.

    Raises:
      InputError: a path, size or model is wrong.
    """
    model, params = zoo.load(tokenizer)
    if not isinstance(model, VQGAN):
        raise InputError(f"{tokenizer} is not a tokenizer but a generator; name the VQGAN")
    c = model.config
    if image_size % c.downsampling:
        raise InputError(
            f"image size {image_size} is not divisible by the tokenizer's downsampling "
            f"{c.downsampling}"
        )
    if batch_size % jax.device_count():
        raise InputError(f"batch size {batch_size} must divide by {jax.device_count()} devices")
    return write_dataset(
        output,
        _code_records(kind, location, model, params, image_size, batch_size),
        image_size=image_size,
        class_names=open_source(kind, location).class_names,
        tokenizer=TokenizerId(tokenizer, weights_hash(params), c.codebook_size),
        code_shape=(1, (image_size // c.downsampling) ** 2),
    )


def _code_records(
    kind: str, location: str, model: VQGAN, params: dict, image_size: int, batch_size: int
) -> Iterator[dict]:
    mesh = sharding.make_mesh(data=-1, fsdp=1, tensor=1)
    params = jax.device_put(params, jax.NamedSharding(mesh, jax.P()))
    encode = jax.jit(lambda images: model.apply({"params": params}, images, method="encode"))
    data = DataConfig(
        source=kind,
        train=location,
        eval=location,
        image_size=image_size,
        random_crop=False,
        random_flip=False,
        workers=0,
    )
    with tqdm(desc="codes", unit="image", total=len(open_source(kind, location))) as bar:
        for batch in eval_batches(data, batch_size=batch_size):
            images = from_uint8(sharding.put_batch({"image": batch["image"]}, mesh)["image"])
            codes = np.asarray(encode(images), np.uint16).reshape(batch_size, 1, -1)
            for row in np.flatnonzero(batch["weight"]):
                yield {"codes": codes[row], "label": int(batch["label"][row])}
                bar.update()


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog="python -m llamagen_jax.data.prepare",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    commands = parser.add_subparsers(required=True)
    codes = commands.add_parser(
        "codes",
        help="images -> packed codes to train a generator on",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    codes.set_defaults(run=extract_codes)
    codes.add_argument("output", help="dataset folder to write")
    codes.add_argument("--source", dest="kind", choices=SOURCES, required=True)
    codes.add_argument("--location", required=True, help="folder of images; split of the digits")
    codes.add_argument("--tokenizer", required=True, help="work folder, export, file or name")
    codes.add_argument("--image-size", type=int, default=256, help="side in pixels")
    codes.add_argument("--batch-size", type=int, default=32, help="images per step")
    arguments = vars(parser.parse_args(argv))
    run = arguments.pop("run")
    with one_line_errors():
        run(**arguments)


if __name__ == "__main__":
    main()
