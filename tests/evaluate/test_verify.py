"""Published models are measured with the settings of their published figures, and judged."""

import pytest

from llamagen_jax.evaluate import __main__ as evaluate
from llamagen_jax.evaluate import distances, images, tokenizers, verify
from llamagen_jax.evaluate.figures import Figure
from llamagen_jax.weights.published import PUBLISHED


@pytest.fixture
def measured(monkeypatch):
    """Stands in for the measurement: what it was asked for, and the value that it gives."""
    asked = {"value": 0.0}

    def give(name):
        def measure(*where, **options):
            asked.update(where=where, options=options)
            return [Figure(name, asked["value"], 0.02, "")], {"samples": where[0]}

        return measure

    monkeypatch.setattr(images, "evaluate", give("FID"))
    monkeypatch.setattr(tokenizers, "evaluate", give("rFID"))
    return asked


def run(*args):
    evaluate.main(["verify", *args, "--inception", "inception.pth"])


@pytest.mark.parametrize("name", [n for n, p in PUBLISHED.items() if p.fid or 256 in p.rfid])
def test_the_published_figure_passes_and_others_fail(measured, capsys, name):
    published = PUBLISHED[name]
    value = published.fid or published.rfid[256]
    measured["value"] = value + 0.1
    run(name, "reference.npz")
    assert f"published {value} " in capsys.readouterr().out
    measured["value"] = value + 0.2
    with pytest.raises(SystemExit) as error:
        run(name, "reference.npz")
    assert error.value.code == 1
    assert "FAIL" in capsys.readouterr().out
    options = measured["options"]
    if published.fid:
        assert measured["where"] == (name, "reference.npz")
        assert options["guidance_scale"] == published.guidance_scale
        assert options["resize"] == (256 if published.resolution == 384 else None)
        assert (options["top_k"], options["count"], options["protocol"]) == (0, 50_000, "adm")
        assert options["tokenizer"] == "vq_ds16_c2i"
    else:
        assert measured["where"] == ("reference.npz", name)
        assert (options["size"], options["resize"]) == (256, None)
        for size, other in list(published.rfid.items())[1:]:
            measured["value"] = other
            run(name, "reference.npz", "--size", str(size))
            assert (measured["options"]["size"], measured["options"]["resize"]) == (size, 256)


def test_models_without_a_figure_are_told(measured):
    for name, message in (
        ("t2i_XL_stage2_512", "^error: no figure of t2i_XL_stage2_512 is published"),
        ("vq_ds8_c2i", "^error: no rFID of vq_ds8_c2i is published at 384 px, but at 256"),
        ("c2i_L_383", "^error: there is no published model c2i_L_383; did you mean 'c2i_L_384'"),
    ):
        with pytest.raises(SystemExit, match=message):
            run(name, "reference.npz", "--size", "384")


def test_a_wrong_distance_is_noticed(monkeypatch):
    verify.check_distance()
    monkeypatch.setattr(distances, "frechet_distance", lambda *gaussians: 1.0)
    with pytest.raises(AssertionError):
        verify.check_distance()
