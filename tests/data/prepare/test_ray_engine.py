"""The engine "ray": what it writes is what one process writes, whatever is killed meanwhile."""

import contextlib
import functools
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

from llamagen_jax import ray_cluster
from llamagen_jax.data.prepare import __main__ as prepare
from llamagen_jax.data.prepare import extract, ray_engine
from llamagen_jax.data.records import Manifest, write_dataset
from llamagen_jax.errors import InputError
from llamagen_jax.weights import export
from tests.data.prepare import test_extract


@pytest.fixture(scope="module")
def cluster():
    """The address of a cluster of one machine that is said to have two GPUs."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        # The actors find the functions of tests there.
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        sizes = {"num_cpus": 2, "num_gpus": 2, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=sizes)
    yield cluster.address
    cluster.shutdown()


def run(*args):
    prepare.main([str(arg) for arg in args])


def fails(*args) -> str:
    """The one line that the command ends with."""
    return tiny.error_line(run, *args)


@pytest.fixture
def codes_command(tmp_path):
    """The command for ten images, one of them broken, in three shards, without OUTPUT."""
    export.write(tmp_path / "tokenizer", *tiny.vqgan())
    (tmp_path / "images" / "cat").mkdir(parents=True)
    for i in range(10):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 30, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / "cat" / f"{i}.png")
    (tmp_path / "images" / "cat" / "5.png").write_text("<html>")
    command = ["codes", "--source", "image_folder", "--location", "images", "--tokenizer"]
    sizes = ["--image-size", 16, "--batch-size", 8, "--shard-size", 4]
    return [*command, "tokenizer", *sizes]


def test_codes_are_those_of_one_process(
    cluster, codes_command, tmp_path, monkeypatch, capsys, caplog
):
    # Relative paths are found by actors that were started elsewhere.
    monkeypatch.chdir(tmp_path)
    run(*codes_command, "one")
    with caplog.at_level(logging.WARNING, "absl"):
        caplog.clear()
        run(*codes_command, "ray", "--engine", "ray", "--ray-address", cluster)
    assert "wrote 9 records to ray; skipped 1" in capsys.readouterr().out
    (warning,) = caplog.records
    assert "skipped 'images/cat/5.png'" in warning.message
    # With the sha256 of every shard.
    assert Manifest.read("ray") == Manifest.read("one")
    assert {path.name for path in Path("ray").iterdir()} == {
        path.name for path in Path("one").iterdir()
    }

    captions = [{"codes": np.zeros((1, 2), np.uint16), "captions": {"a": "b"}}]
    write_dataset("captions", captions)
    where = ["--source", "array_record", "--location", "captions"]
    line = fails(*codes_command, *where, "bad", "--engine", "ray", "--ray-address", cluster)
    assert line.endswith(
        "codes are made of images with labels or captions, not of: codes, captions"
    )


@pytest.mark.slow
def test_text_features_are_those_of_one_process_on_a_cluster_of_its_own(tmp_path):
    for name in ("ray", "sentencepiece", "ftfy"):
        pytest.importorskip(name)
    t5 = tiny.write_t5(tmp_path / "t5", tiny.write_spiece(tmp_path))
    codes = np.zeros((1, 2), np.uint16)
    records = ({"codes": codes, "captions": {"txt": f"{i} cats"}} for i in range(5))
    write_dataset(tmp_path / "in", records, code_shape=(1, 2))
    command = ["text", tmp_path / "in", "--text-encoder", t5, "--shard-size", "3"]
    run(*command, tmp_path / "one")
    # A process of its own, since a local cluster leaves its mark on the environment.
    prepare_on_ray = [sys.executable, "-m", prepare.__name__, *command, tmp_path / "ray"]
    subprocess.run([*prepare_on_ray, "--engine", "ray"], check=True)
    assert Manifest.read(tmp_path / "ray") == Manifest.read(tmp_path / "one")


def load(record: dict, folder: Path, seconds: float) -> int:
    """Writes which process and GPU it was; dies at number 57, once."""
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES")
    if gpu is None:  # the driver, which tries a record before it begins
        return record["number"]
    time.sleep(seconds)
    (folder / f"{os.getpid()}-{gpu}").touch()
    if record["number"] == 57 and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return record["number"]


def numbers(folder: Path, address: str, seconds: float = 0) -> Manifest:
    """Extracts sixty numbers in twelve shards."""
    make = test_extract.extraction(
        60, functools.partial(load, folder=folder, seconds=seconds), test_extract.labels
    )
    return extract.extract(folder / "out", make, engine="ray", ray_address=address)


@pytest.mark.slow
def test_killed_drivers_and_actors(cluster, tmp_path):
    module = "tests.data.prepare.test_ray_engine"
    code = f"import {module} as t; t.numbers(t.Path({str(tmp_path)!r}), {cluster!r}, 0.2)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    driver = subprocess.Popen([sys.executable, "-c", code], env=environment)
    progress = tmp_path / "out.partial" / "progress"

    def gpus():
        return {path.name[-2:] for path in tmp_path.glob("*-*")}

    while len(list(progress.glob("0*.json"))) < 2 or len(gpus()) < 2:
        assert driver.poll() is None
        time.sleep(0.01)
    driver.kill()
    driver.wait()
    assert gpus() == {"-0", "-1"}
    finished = [path.with_suffix(".array_record") for path in progress.glob("0*.json")]
    finished = [tmp_path / "out.partial" / path.name for path in finished]
    before = [path.stat().st_mtime_ns for path in finished]

    numbers(tmp_path, cluster)
    after = [(tmp_path / "out" / path.name).stat().st_mtime_ns for path in finished]
    assert after == before
    assert (tmp_path / "died").exists()
    assert test_extract.written(tmp_path / "out") == list(range(60))


def test_ray_that_is_missing(monkeypatch, codes_command, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    line = fails(*codes_command, tmp_path / "out", "--engine", "ray")
    assert line.endswith('a Ray cluster needs Ray: pip install "llamagen_jax[prepare]"')


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere"])
def test_clusters_that_are_missing(address, codes_command, tmp_path):
    pytest.importorskip("ray")
    line = fails(*codes_command, tmp_path / "out", "--engine", "ray", "--ray-address", address)
    assert line.startswith(f"error: cannot reach the Ray cluster {address}: ")
    assert not (tmp_path / "out.partial").exists()


def test_wrong_options(codes_command, tmp_path):
    command = [*codes_command, tmp_path / "out"]
    line = fails(*command, "--engine", "ray", "--process-count", 2)
    assert line.endswith('"ray" shares the work itself; leave the process count out')
    line = fails(*command, "--ray-address", "a:1")
    assert line.endswith('the Ray address a:1 is for the engine "ray"; name that too')


def test_shards_that_are_not_seen_yet(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_cluster, "connected", contextlib.nullcontext)
    monkeypatch.setattr(ray_engine, "for_each", lambda make, items: iter(items))
    with pytest.raises(InputError, match="not all shards have arrived"):
        extract.extract(tmp_path / "out", test_extract.extraction(), engine="ray")


def test_machines_without_the_common_files(tmp_path):
    with pytest.raises(InputError, match=r"has no .*out\.partial: all machines"):
        extract._shard_writer(tmp_path / "out.partial", test_extract.extraction())
    assert not list(tmp_path.iterdir())
