"""Serves images of a generator over HTTP: OpenAI's images API, and a page for browsers at /.

python -m llamagen_jax.serve --generator runs/c2i
python -m llamagen_jax.serve --generator c2i_L_384.pt --tokenizer vq_ds16_c2i.pt --slots 32
"""

import argparse
import contextlib
import functools
import ipaddress
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from absl import logging

from llamagen_jax import commands, compilation_cache, ray_cluster, sharding
from llamagen_jax.errors import InputError, end, one_line_errors
from llamagen_jax.generation import ImageGenerator
from llamagen_jax.sampling.options import add_models, models_of
from llamagen_jax.serve.engine import Engine
from llamagen_jax.serve.ray_serve import RayEngine


def main(argv: list[str] | None = None) -> None:
    """Runs the command until SIGTERM or SIGINT; the requests that it has are served first."""
    args = _parser().parse_args(argv)
    with one_line_errors():
        run(args)


def run(args: argparse.Namespace) -> None:
    """Opens the models and serves; InputError says in one line what is wrong with `args`."""
    try:
        from llamagen_jax.serve.http import create_app, make_server
    except ImportError as error:
        raise InputError(
            f'serving needs {error.name}: pip install "llamagen_jax[serve]"'
        ) from error
    models = models_of(args)
    keys = _keys(args.api_key_file) if args.api_key_file else []
    if not keys and not _is_loopback(args.host):
        raise InputError(
            f"--host {args.host} lets other machines in: give --api-key-file, or stay on 127.0.0.1"
        )
    axes = {"data": args.data, "fsdp": args.fsdp, "tensor": args.tensor}
    open_engine = functools.partial(_open_engine, args.generator, models, axes)
    with _listen(args.host, args.port) as listener, contextlib.ExitStack() as stack:
        sizes = {"num_slots": args.slots, "chunk": args.chunk, "max_waiting": args.max_waiting}
        if args.ray:
            stack.enter_context(ray_cluster.connected(args.ray))
            # Ray Serve spreads requests evenly, but not strictly.
            sizes["max_waiting"] += args.replicas * args.slots
            engine = RayEngine(
                functools.partial(open_engine, sizes),
                replicas=args.replicas,
                num_slots=args.slots,
                max_waiting=args.max_waiting,
                devices=max(args.data, 1) * max(args.fsdp, 1) * max(args.tensor, 1),
            )
        else:
            engine = open_engine(sizes)
        app = create_app(
            engine,
            api_keys=keys,
            max_n=args.max_n,
            timeout=args.timeout,
            log_prompts=args.log_prompts,
        )
        server = make_server(app)
        # Its own answer to these, from now on, and when it raises them again at its end.
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, server.handle_exit)
        # From here on, so that opening the models stays quiet.
        logging.set_verbosity(logging.INFO)
        host, port = listener.getsockname()[:2]
        print(f"serving {args.generator} at http://{host}:{port}", flush=True)
        server.run(sockets=[listener])
    if engine.failure:
        sys.exit("error: the engine has failed; the log above says why")
    if engine.compiling:
        end(0)


def _open_engine(
    generator: str, models: dict[str, Any], axes: dict[str, int], sizes: dict[str, Any]
) -> Engine:
    # Here, since replicas run this in processes of their own.
    compilation_cache.enable()
    mesh = sharding.make_mesh(**axes)
    return Engine(ImageGenerator.open(generator, **models, mesh=mesh), mesh, **sizes)


def _keys(path: str) -> list[str]:
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--api-key-file: {path} cannot be read: {error}") from error
    keys = [line.strip() for line in lines if line.strip()]
    if not keys:
        raise InputError(f"--api-key-file: {path} holds no key; write one per line")
    return keys


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise InputError(
            f"cannot listen at {host} port {port}: {error.strerror}; choose another --port, or 0 "
            "for a free one"
        ) from error


def _parser() -> argparse.ArgumentParser:
    parser = commands.Parser(
        prog="python -m llamagen_jax.serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_models(parser)
    engine = parser.add_argument_group("engine")
    engine.add_argument(
        "--slots", type=commands.whole, default=16, help="images drawn at a time (16)"
    )
    engine.add_argument(
        "--chunk",
        type=commands.whole,
        metavar="STEPS",
        help="steps after which requests enter and leave (as many as a row has codes)",
    )
    engine.add_argument(
        "--max-waiting",
        type=commands.whole_or_zero,
        default=64,
        metavar="IMAGES",
        help="that wait for a slot; more are refused with status 429 (64)",
    )
    for axis, default, what in (
        ("data", -1, "ways the slots are split while weights are copied; -1 for what is left"),
        ("fsdp", 1, "ways both slots and weights are split"),
        ("tensor", 1, "ways the weights alone are split"),
    ):
        engine.add_argument(
            f"--{axis}", type=int, default=default, metavar="N", help=f"{what} ({default})"
        )
    engine.add_argument(
        "--ray",
        nargs="?",
        const="auto",
        metavar="HOST:PORT",
        help="draw on replicas in this Ray cluster (the one that runs on this machine; 'local' "
        "starts one)",
    )
    engine.add_argument(
        "--replicas", type=commands.whole, default=1, help="engines in the cluster (1)"
    )
    http = parser.add_argument_group("HTTP")
    http.add_argument("--host", default="127.0.0.1", help="address to listen at (127.0.0.1)")
    http.add_argument(
        "--port", type=commands.whole_or_zero, default=8000, help="0 for a free one (8000)"
    )
    http.add_argument(
        "--api-key-file",
        type=commands.path,
        metavar="FILE",
        help="keys, one per line, of which a client must send one (no key is asked for)",
    )
    http.add_argument(
        "--max-n", type=commands.whole, default=10, help="images that a request may ask for (10)"
    )
    http.add_argument(
        "--timeout",
        type=commands.number,
        default=600.0,
        metavar="SECONDS",
        help="that a request may take (600)",
    )
    http.add_argument(
        "--log-prompts", action="store_true", help="tell prompts in the log (they are not)"
    )
    return parser


if __name__ == "__main__":
    main()
