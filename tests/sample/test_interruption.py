"""A command that was stopped goes on with what it was drawing."""

import numpy as np
import pytest

from llamagen_jax import generation, sample
from tests.sample.command import fails, read, run


@pytest.mark.parametrize("output", ["a.npz", "folder"])
def test_a_stopped_command_goes_on(models, tmp_path, monkeypatch, capsys, output):
    command = [*models, "--count", "2", "--seed", "5", "--batch-size", "8", "--output"]
    run(*command, tmp_path / f"whole_{output}")
    draw, drawn = generation.generate_images, []

    def stop_after(batches):
        def generate(*args, **rows):
            if len(drawn) == batches:
                raise KeyboardInterrupt
            drawn.append(rows["sample_ids"])
            return draw(*args, **rows)

        return generate

    monkeypatch.setattr(generation, "generate_images", stop_after(2))
    with pytest.raises(KeyboardInterrupt):
        run(*command, tmp_path / output)
    assert not (tmp_path / output).exists()
    parts = tmp_path / f"{output}.parts"
    assert len(list(parts.glob("*.npz"))) == 2
    line = fails(*command, tmp_path / output, "--top-k", "3")
    assert f"{parts} holds images of another command, with top_k 0 instead of 3: go on" in line
    line = fails(*models, "--labels", "1", "--seed", "5", "--output", tmp_path / output)
    assert "with count 2 instead of 1" in line
    # What was being written when it was killed.
    (parts / "00000016.npz.partial").write_bytes(b"PK")

    monkeypatch.setattr(generation, "generate_images", stop_after(3))
    run(*command, tmp_path / output)
    assert "going on with image 16 of 20" in capsys.readouterr().out
    assert not parts.exists()
    if output == "a.npz":
        found, expected = read(tmp_path / output), read(tmp_path / f"whole_{output}")
        assert list(found) == list(expected)
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array, strict=True)
    else:
        found, expected = (
            {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
            for name in (output, f"whole_{output}")
        )
        assert found == expected


def test_a_damaged_part_is_named(models, tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "write_npz", lambda *args, **subjects: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(*models, "--output", tmp_path / "a.npz")
    part = tmp_path / "a.npz.parts" / "00000000.npz"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    assert f"{part} is damaged: remove it" in fails(*models, "--output", tmp_path / "a.npz")
