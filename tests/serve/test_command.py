"""The command: what it takes, and how it ends."""

import signal
import socket
import subprocess
import sys

import openai
import pytest
import tiny

from llamagen_jax.errors import InputError
from llamagen_jax.serve import __main__ as command

PATIENCE = 300


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "give --api-key-file"),
        (["--generator", "nowhere"], "--generator: "),
        (["--api-key-file", "{empty}"], "holds no key"),
        (["--port", "{taken}"], "choose another --port"),
        (["--tokenizer", "{generator}"], "expected a tokenizer"),
        (["--tensor", "3"], "does not use the 8 devices"),
    ],
)
def test_bad_options_are_told_in_a_line(tmp_path, options, message):
    generator, tokenizer = tiny.exports(tmp_path)
    (tmp_path / "empty").write_text("\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        names = {
            "empty": tmp_path / "empty",
            "taken": taken.getsockname()[1],
            "generator": generator,
        }
        given = [option.format(**names) for option in options]
        default = ["--generator", str(generator), "--tokenizer", str(tokenizer), "--port", "0"]
        args = command._parser().parse_args([*default, *given])
        with pytest.raises(InputError, match=message):
            command.run(args)


@pytest.fixture
def start(tmp_path):
    """Starts a server at a port, and gives its process and address."""
    generator, tokenizer = tiny.exports(tmp_path)
    (tmp_path / "empty").mkdir()
    options = ["--generator", str(generator), "--tokenizer", str(tokenizer), "--slots", "8"]

    def start(port: int, *command: str) -> tuple[subprocess.Popen, str]:
        process = subprocess.Popen(
            [sys.executable, *command, *options, "--port", str(port)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=tmp_path / "empty",
        )
        assert process.stdout
        return process, process.stdout.readline().split()[-1]

    return start


# A compilation without end, so that a server that waits for it is found.
ENDLESS = """
import time
from llamagen_jax.serve import __main__, pixels

pixels.first_rows = lambda *args: time.sleep(10**6)
__main__.main()
"""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_process_ends_while_it_compiles(start, signum):
    process, _ = start(0, "-c", ENDLESS)
    process.send_signal(signum)
    try:
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()


def test_process_drains_and_leaves_nothing(start, tmp_path):
    """SIGTERM lets the request end and exits with 0; kill -9 leaves a free port and no file."""
    process, address = start(0, "-m", "llamagen_jax.serve")
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0)
    stream = client.images.generate(prompt="1", n=4, stream=True, extra_body={"partial_rows": True})
    events = iter(stream)
    first = next(events)
    process.send_signal(signal.SIGTERM)
    kinds = [first.type, *(event.type for event in events)]
    assert kinds.count("image_generation.completed") == 4
    assert process.wait(60) == 0
    port = int(address.rpartition(":")[2])
    process, again = start(port, "-m", "llamagen_jax.serve")
    assert again == address
    process.kill()
    process.wait()
    with socket.create_server(("127.0.0.1", port)):
        pass
    assert list((tmp_path / "empty").iterdir()) == []
