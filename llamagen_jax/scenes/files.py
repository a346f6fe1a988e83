"""Files of the rendered scenes, in the formats of a crawl; part of the command `prepare`.

`scenes` writes metadata as LAION-COCO has them, with rows that a filter should remove, and `render`
stands in for img2dataset: it draws what a list of such rows points to and writes tar shards.
"""

import argparse
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Sequence

import numpy as np
from PIL import Image
from tqdm import tqdm

from llamagen_jax import commands, seeds
from llamagen_jax.errors import InputError
from llamagen_jax.files import staged
from llamagen_jax.images import save_png
from llamagen_jax.parquet import import_extra, parquet_files
from llamagen_jax.scenes.world import (
    Scene,
    captions,
    held_out_prompts,
    random_scene,
    render,
    scattered,
)

_URL = re.compile(r"https://scenes\.example/(train|held-out)/(\d+)/(\d+)\.jpg")
_DEFECTS = ("url", "size", "aesthetic", "watermark", "similarity", "duplicate")
_DEFECT_SHARE = 0.25
_DRAWING = 64  # side in pixels of one that comes with a prompt
_MOST_PROMPTS = 1000  # of the few thousand different ones that there are


def write_metadata(
    output: str,
    *,
    count: int,
    seed: int,
    held_out: bool = False,
    sizes: Sequence[tuple[int, int]] = ((1, 1),),
) -> None:
    """Writes a parquet file of `count` rows, a quarter of them with one defect each.

    The columns are LAION-COCO's URL, TEXT, WIDTH, HEIGHT, similarity, hash and pwatermark,
    aesthetic_score, and the captions "long" and "short". The defects are an address that is none,
    an image of less than 128 px, poor scores, and the address and hash of an earlier row. Row i
    depends on the seed and i alone.

    Args:
      held_out: show the combinations that training scenes never do (`scenes.HELD_OUT`).
      sizes: (width, height) of images to come, whose aspect ratios the rows have by chance.

    Raises:
      InputError: the count is impossible, or the output exists or cannot be written.
    """
    seeds.check(seed, "seed")
    if count < 1:
        raise InputError(f"count {count} must be at least 1")
    duckdb = import_extra("duckdb")
    split = "held-out" if held_out else "train"
    numbers = tqdm(range(count), desc="scenes", unit="row")
    rows = [_row(split, seed, number, sizes) for number in numbers]
    with staged(output) as partial, duckdb.connect() as database:
        database.register("rows", {name: np.array([row[name] for row in rows]) for name in rows[0]})
        database.sql("SELECT * FROM rows").write_parquet(str(partial))
    print(f"wrote {count} rows to {output}")


def _row(split: str, seed: int, number: int, sizes: Sequence[tuple[int, int]]) -> dict:
    rng = np.random.default_rng((seed, number, 1))
    defect = str(rng.choice(_DEFECTS)) if rng.random() < _DEFECT_SHARE else ""
    if defect == "duplicate":
        number = int(rng.integers(number + 1))
    url = f"https://scenes.example/{split}/{seed}/{number}.jpg"
    side = int(rng.integers(24, 128) if defect == "size" else rng.integers(256, 1025))
    # By a generator of its own, so that all else is what it is for squares.
    width, height = sizes[int(np.random.default_rng((seed, number, 2)).integers(len(sizes)))]
    scale = side / min(width, height)
    texts = _scene_and_captions(split, seed, number)[1]
    return {
        "URL": "none" if defect == "url" else url,
        "TEXT": texts["short"],
        "WIDTH": round(width * scale),
        "HEIGHT": round(height * scale),
        "similarity": rng.uniform(0.1, 0.25) if defect == "similarity" else rng.uniform(0.3, 0.45),
        "hash": int.from_bytes(hashlib.sha256(url.encode()).digest()[:7]),
        "pwatermark": rng.uniform(0.6, 1) if defect == "watermark" else rng.uniform(0, 0.4),
        "aesthetic_score": rng.uniform(2, 4.5) if defect == "aesthetic" else rng.uniform(5, 8),
        **texts,
    }


def _scene_and_captions(split: str, seed: int, number: int) -> tuple[Scene, dict[str, str]]:
    rng = np.random.default_rng((seed, number))
    scene = random_scene(rng, held_out=split == "held-out")
    return scene, captions(scene, rng)


def render_shards(
    metadata: str,
    output: str,
    *,
    image_size: int,
    shard_size: int = 10_000,
    scatter: bool = False,
) -> None:
    """Draws the scenes of a list of rows into tar shards like those of img2dataset.

    An image has its row's aspect ratio, and the shorter side `image_size`, or its row's where that
    is less, as with `img2dataset --resize_mode keep_ratio --resize_only_if_bigger True`; .txt holds
    TEXT, and .json also the captions "long" and "short". Rows with an address of no scene are
    skipped and counted.

    Args:
      metadata: what `write_metadata` or `filter` of it wrote.
      output: folder to write, which appears when it is complete.
      scatter: move things by chance (`world.scattered`).

    Raises:
      InputError: a path or size is wrong, or the metadata are not of scenes.
    """
    if image_size < 8 or shard_size < 1:
        raise InputError(f"image size {image_size} or shard size {shard_size} is too small")
    rows = read_rows(metadata, "URL", "TEXT", "WIDTH", "HEIGHT", "long", "short")
    scenes = [(match, row) for row in rows if (match := _URL.fullmatch(row[0]))]
    if not scenes:
        raise InputError(f"no row of {metadata} is the address of a scene: check the path")
    with staged(output) as partial, tqdm(desc="render", unit="image", total=len(scenes)) as bar:
        partial.mkdir()
        for shard, first in enumerate(range(0, len(scenes), shard_size)):
            with tarfile.open(partial / f"{shard:05d}.tar", "w") as tar:
                for number, (match, row) in enumerate(scenes[first : first + shard_size]):
                    _add_sample(tar, f"{shard:05d}{number:04d}", match, row, image_size, scatter)
                    bar.update()
    print(f"wrote {len(scenes)} images to {output}; skipped {len(rows) - len(scenes)}")


def write_prompts(
    output: str, *, count: int, seed: int, drawings: str | None = None, scatter: bool = False
) -> None:
    """Writes a text file of different captions of held-out scenes, one per line.

    They are those of `scenes.held_out_prompts`, which also tells the scenes.

    Args:
      drawings: folder to write, of a PNG file of 64 x 64 px for each scene; None for none.
      scatter: move the things in these by chance (`world.scattered`).

    Raises:
      InputError: the count is impossible, or an output exists or cannot be written.
    """
    seeds.check(seed, "seed")
    if not 1 <= count <= _MOST_PROMPTS:
        raise InputError(f"count {count} must be at least 1 and at most {_MOST_PROMPTS}")
    with staged(output) as partial:
        prompts = held_out_prompts(count, seed)
        partial.write_text("".join(f"{prompt.caption}\n" for prompt in prompts))
        if drawings:
            with staged(drawings) as folder:
                folder.mkdir()
                for number, prompt in enumerate(prompts):
                    scene = _scattered(prompt.scene, seed, number) if scatter else prompt.scene
                    save_png(folder / f"{number:04d}.png", render(scene, _DRAWING))
    print(f"wrote {count} prompts to {output}")


def read_rows(metadata: str, *columns: str) -> list[tuple]:
    """The columns' values in every row of what `write_metadata` or `filter` of it wrote.

    Raises:
      InputError: the path is wrong, or the metadata are not of scenes.
    """
    duckdb = import_extra("duckdb")
    files = [str(file) for file in parquet_files(metadata)]
    query = f"SELECT {', '.join(columns)} FROM read_parquet(?)"
    try:
        with duckdb.connect() as database:
            return database.execute(query, [files]).fetchall()
    except duckdb.Error as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{metadata} holds no metadata of scenes: {reason}") from error


def _add_sample(
    tar: tarfile.TarFile, key: str, match: re.Match, row: tuple, image_size: int, scatter: bool
) -> None:
    url, text, width, height, long, short = row
    split, seed, number = match.groups()
    scene, _ = _scene_and_captions(split, int(seed), int(number))
    if scatter:
        scene = _scattered(scene, int(seed), int(number))
    shorter = min(width, height)
    scale = min(image_size, shorter) / shorter
    width, height = round(width * scale), round(height * scale)
    jpeg = io.BytesIO()
    Image.fromarray(render(scene, (height, width))).save(jpeg, "jpeg", quality=95, subsampling=0)
    fields = {
        "url": url,
        "key": key,
        "status": "success",
        "width": width,
        "height": height,
        "caption": text,
        "long": long,
        "short": short,
    }
    members = {"jpg": jpeg.getvalue(), "json": json.dumps(fields).encode(), "txt": text.encode()}
    for suffix, data in members.items():
        info = tarfile.TarInfo(f"{key}.{suffix}")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))


def _scattered(scene: Scene, seed: int, number: int) -> Scene:
    return scattered(scene, np.random.default_rng((seed, number, 3)))


def add_scenes_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `prepare scenes`."""
    parser.set_defaults(run=write_metadata)
    parser.add_argument(
        "output", type=commands.path, metavar="OUTPUT", help="parquet file to write"
    )
    parser.add_argument(
        "--count", type=commands.whole, required=True, help="rows, a quarter of them bad"
    )
    parser.add_argument(
        "--seed", type=commands.seed, default=0, help="of scenes, captions and scores (0)"
    )
    parser.add_argument(
        "--held-out", action="store_true", help="combinations that are never trained on"
    )
    parser.add_argument(
        "--sizes",
        type=commands.size,
        nargs="+",
        default=((1, 1),),
        metavar="WIDTHxHEIGHT",
        help="aspect ratios of the images, by sizes that have them (square)",
    )


def add_prompts_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `prepare scene-prompts`."""
    parser.set_defaults(run=write_prompts)
    parser.add_argument("output", type=commands.path, metavar="OUTPUT", help="text file to write")
    parser.add_argument(
        "--count", type=commands.whole, required=True, help="prompts, all different"
    )
    parser.add_argument("--seed", type=commands.seed, default=0, help="of scenes and captions (0)")
    parser.add_argument(
        "--drawings",
        type=commands.path,
        metavar="FOLDER",
        help="write the scenes too, as 64x64 px PNG files",
    )
    _add_scatter(parser)


def add_render_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `prepare render`."""
    parser.set_defaults(run=render_shards)
    parser.add_argument(
        "metadata", type=commands.path, metavar="METADATA", help="what `scenes` or `filter` wrote"
    )
    parser.add_argument(
        "output", type=commands.path, metavar="OUTPUT", help="folder of tar shards to write"
    )
    parser.add_argument(
        "--image-size", type=commands.whole, default=64, help="shorter side of the images (64)"
    )
    parser.add_argument(
        "--shard-size", type=commands.whole, default=10_000, help="images per shard (10000)"
    )
    _add_scatter(parser)


def _add_scatter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--scatter",
        action="store_true",
        help="move things by chance where they have room, by an eighth of the shorter side",
    )
