"""What the pages of the book let a reader run."""

from pathlib import Path

import nbformat
import tiny
from nbclient import NotebookClient

from llamagen_jax.training import config_files
from llamagen_jax.training.config import from_mapping

ROOT = Path(__file__).parents[1]


def pictures(notebook):
    outputs = (o for cell in notebook.cells for o in cell.get("outputs", ()))
    return sum("image/png" in output.get("data", {}) for output in outputs)


def test_the_notebook_runs_and_draws_its_pictures(tmp_path):
    generator, tokenizer = tiny.exports(tmp_path)
    notebook = nbformat.read(ROOT / "docs" / "quickstart.ipynb", as_version=4)
    committed = pictures(notebook)
    weights = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", ()))
    weights.source = f"GENERATOR, TOKENIZER = {str(generator)!r}, {str(tokenizer)!r}"

    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": ROOT}}).execute()

    assert pictures(notebook) == committed > 0


def test_the_configurations_for_own_images_fit_each_other():
    file = ROOT / "docs" / "my_images.py"
    tokenizer, generator = (
        from_mapping(config_files.load(f"{file}:{variant}").to_dict())
        for variant in ("tokenizer", "generator")
    )
    assert generator.model.vocab_size == tokenizer.model.codebook_size
    side = tokenizer.data.image_size // tokenizer.model.downsampling
    assert generator.model.grid == (side, side)
