"""Options that name tiny models in files, for the command that samples images."""

import pytest
import tiny

from tests.sample.command import TEXT, write_export


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Options that name exports of a generator and its tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    names = [f"digit {i}" for i in range(10)]
    generator = write_export(folder / "generator", tiny.LLAMA_CONFIG, class_names=names)
    return [
        "--generator",
        generator,
        "--tokenizer",
        write_export(folder / "tokenizer", tiny.VQGAN_CONFIG),
    ]


@pytest.fixture(scope="module")
def spiece(tmp_path_factory):
    pytest.importorskip("sentencepiece")
    pytest.importorskip("ftfy")
    return tiny.write_spiece(tmp_path_factory.mktemp("spiece"))


@pytest.fixture(scope="module")
def text_models(models, spiece, tmp_path_factory):
    """Options that name a text-conditional generator, its tokenizer and its text encoder."""
    folder = tmp_path_factory.mktemp("text")
    generator = write_export(folder / "t2i", TEXT)
    encoder = tiny.write_t5(folder / "tiny-t5", spiece)
    return [*models, "--generator", generator, "--text-encoder", encoder]


@pytest.fixture(autouse=True)
def in_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
