"""The training loop, in process, on eight faked devices."""

import contextlib
import dataclasses
import json
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image

from llamagen_jax import checkpoint, sharding, zoo
from llamagen_jax.data.records import Manifest, TextEncoderId, TokenizerId, write_dataset
from llamagen_jax.errors import InputError
from llamagen_jax.interruption import interruptible
from llamagen_jax.training import generator, loop
from llamagen_jax.training.config import from_mapping
from llamagen_jax.training.data_checks import check_labels
from llamagen_jax.training.optimizer import with_params
from llamagen_jax.training.tasks import make_mesh, open_task
from llamagen_jax.weights import export
from llamagen_jax.weights.integrity import weights_hash

TASKS = ("tokenizer", "generator")


@pytest.fixture(scope="module")
def codes(tmp_path_factory):
    return tiny.write_codes(tmp_path_factory.mktemp("data") / "codes")


def _config(task, codes, **changes):
    if task == "tokenizer":
        return from_mapping(tiny.tokenizer_config(**changes))
    return from_mapping(tiny.generator_config(codes, **changes))


def _metrics(workdir, name):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    return [(line["step"], line[name]) for line in lines if name in line]


def _assert_same_bits(first, second):
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)


# The tokenizer's are also those of every mesh in test_scale.
@pytest.mark.parametrize(
    "task_name", [pytest.param("tokenizer", marks=pytest.mark.slow), "generator"]
)
def test_losses_are_equal_on_every_mesh(codes, task_name):
    config = _config(task_name, codes)
    losses = [tiny.losses(config, mesh) for mesh in tiny.meshes((1, 1, 1), (2, 2, 2))]
    assert losses[0][0] != losses[0][2]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


def test_accumulated_gradients_are_those_of_the_whole_batch(codes):
    rates = ("condition_dropout", "token_dropout", "residual_dropout", "ffn_dropout")
    config = _config("generator", codes, **{f"model__{rate}": 0.0 for rate in rates})
    (mesh,) = tiny.meshes((4, 1, 2))
    whole = tiny.losses(config, mesh)
    parts = tiny.losses(dataclasses.replace(config, accumulation_steps=2), mesh)
    np.testing.assert_allclose(parts, whole, rtol=1e-5)


# The tokenizer's is also seen, with a discriminator, in test_adversarial.
@pytest.mark.parametrize(
    ("task", "kept"), [pytest.param("tokenizer", 3, marks=pytest.mark.slow), ("generator", 5)]
)
def test_interrupted_run_ends_with_the_same_bits(tmp_path, codes, task, kept, monkeypatch):
    """The one stops in the middle of step 6, the other is told to stop while it takes step 5."""
    config = _config(
        task, codes, steps=6, log_every=3, checkpoint_every=3, optimizer__ema_decay=0.9
    )
    whole = tiny.train(config, tmp_path / "whole")

    put_batch, calls = sharding.put_batch, []

    def interrupt(batch, mesh):
        calls.append(1)
        if len(calls) == 5 and kept == 5:
            signal.raise_signal(signal.SIGTERM)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return put_batch(batch, mesh)

    monkeypatch.setattr(sharding, "put_batch", interrupt)
    with pytest.raises(KeyboardInterrupt) as interrupted, interruptible():
        tiny.train(config, tmp_path / "cut")
    monkeypatch.undo()
    if kept == 5:
        assert f"{tmp_path / 'cut'} keeps step 5" in str(interrupted.value)
    folders = (tmp_path / "cut" / "checkpoints").glob("[0-9]*")
    assert max(int(folder.name) for folder in folders) == kept
    # A line of a step that the run will take again, and the half of one.
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "train/loss": 0}\n{"step": 6, "tra')
    resumed = tiny.train(config, tmp_path / "cut")
    _assert_same_bits(resumed, whole)
    losses, whole_losses = (
        dict(_metrics(tmp_path / name, "train/loss")) for name in ("cut", "whole")
    )
    # A step is in one average, which ends where the run does.
    assert list(losses) == sorted({3, kept, 6})
    assert losses[3] == whole_losses[3]
    assert not np.array_equal(jax.tree.leaves(whole.ema)[0], jax.tree.leaves(whole.params)[0])


@pytest.mark.parametrize("task", [pytest.param("tokenizer", marks=pytest.mark.slow), "generator"])
def test_the_step_is_traced_once(tmp_path, codes, task):
    """The trace that FLOPs are counted in is the one that is run."""
    config = _config(task, codes, steps=3)
    opened = open_task(config, make_mesh(config))
    traces = []

    def train_step(state, batch):
        traces.append(batch)
        return opened.train_step(state, batch)

    counted = dataclasses.replace(opened, train_step=train_step)
    loop.train(counted, tmp_path / "run")
    assert len(traces) == 1
    utilization = _metrics(tmp_path / "run", "train/model_flops_utilization")
    assert [step for step, _ in utilization] == [2, 3]


@pytest.mark.slow  # a part of what test_scale shows
def test_checkpoint_of_one_mesh_goes_on_on_another(tmp_path, codes):
    config = {"steps": 2, "optimizer__schedule": "constant"}
    sharded = {"data": 2, "fsdp": 2, "tensor": 2}
    tiny.train(_config("generator", codes, **config, mesh=sharded), tmp_path / "moved")
    config["steps"] = 4
    moved = tiny.train(_config("generator", codes, **config, data__eval=""), tmp_path / "moved")
    whole = tiny.train(_config("generator", codes, **config), tmp_path / "whole")
    for a, b in zip(jax.tree.leaves(moved.params), jax.tree.leaves(whole.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_work_folder_holds_what_the_run_promises(tmp_path, codes):
    config = _config("tokenizer", codes, steps=2, sample_every=2, eval_every=2)
    state = tiny.train(config, tmp_path / "run")
    assert [step for step, _ in _metrics(tmp_path / "run", "train/codebook_usage")] == [2]
    assert 5 < _metrics(tmp_path / "run", "eval/psnr")[0][1] < 40
    picture = Image.open(tmp_path / "run" / "samples" / "step_0000002.png")
    assert picture.size == (8 * 18 + 2, 2 * 18 + 2)  # eight held-out digits over reconstructions
    assert list((tmp_path / "run" / "events").iterdir())
    model, params = zoo.load(tmp_path / "run")
    assert model.config == config.model
    _assert_same_bits(params, state.params)


def test_generator_draws_samples_with_its_tokenizer(tmp_path):
    vqgan = tiny.vqgan()
    made_by = TokenizerId("tiny", weights_hash(vqgan[1]), 32)
    codes = tiny.write_codes(tmp_path / "codes", made_by)
    export.write(tmp_path / "tokenizer", *vqgan)
    changes = {"sample_every": 2, "eval_every": 2, "tokenizer": str(tmp_path / "tokenizer")}
    tiny.train(_config("generator", codes, steps=2, **changes), tmp_path / "run")
    picture = Image.open(tmp_path / "run" / "samples" / "step_0000002.png")
    assert picture.size == (4 * 34 + 2, 8 * 34 + 2)  # four images of each of eight classes
    assert _metrics(tmp_path / "run", "eval/accuracy")


def test_held_out_loss_counts_every_record_once(tmp_path, codes, caplog, capfd):
    """40 records are evaluated in batches of 8, or of 32 of which the last is padded, alike.

    The first loss is ln(32): one run expects that, the other less.
    """
    losses = []
    for batch_size, expected in ((8, (1, 3.4, 3.5)), (32, (1, 0, 3))):
        config = _config(
            "generator",
            codes,
            batch_size=batch_size,
            steps=1,
            expected_loss=(expected,),
            optimizer__learning_rate=1e-30,
        )
        assert "expected" not in caplog.text
        tiny.train(config, tmp_path / str(batch_size))
        losses += [value for _, value in _metrics(tmp_path / str(batch_size), "eval/loss")]
    np.testing.assert_allclose(losses, np.log(32), rtol=1e-5)
    assert "loss 3.466 at step 1, expected 0 to 3: check the data" in caplog.text
    assert "loss 3.466 at step 1, expected 3.4 to 3.5" in "".join(capfd.readouterr())


def test_nan_loss_stops_and_keeps_the_last_good_checkpoint(tmp_path, codes):
    good = _config("generator", codes, steps=2)
    tiny.train(good, tmp_path / "run")
    kept = checkpoint.load_params(tmp_path / "run")[2]
    bad = _config("generator", codes, steps=8, optimizer__learning_rate=1e30)
    with pytest.raises(InputError, match=r"is (nan|inf) at step \d, .*step 2 is kept"):
        tiny.train(bad, tmp_path / "run", change_plan=True)
    _assert_same_bits(checkpoint.load_params(tmp_path / "run")[2], kept)


def test_the_newest_whole_checkpoint_is_taken(tmp_path, codes, caplog):
    config, run = _config("generator", codes), tmp_path / "run"
    state = tiny.train(config, run)
    folder = run / "checkpoints"
    older, newest = sorted(path for path in folder.iterdir() if path.name.isdigit())
    tiny.flip_bit(max(newest.rglob("*"), key=lambda path: path.is_file() and path.stat().st_size))
    _, params = zoo.load(run)
    assert f"checkpoint {newest} is damaged; taking the one before it" in caplog.text
    assert not np.array_equal(jax.tree.leaves(params)[0], jax.tree.leaves(state.params)[0])
    _assert_same_bits(tiny.train(config, run), state)
    # Kept, but out of the way of the step that was repeated.
    assert {path.name for path in folder.iterdir()} == {older.name, "4", "4.damaged"}

    for path in (older, newest):
        (path / "params" / "_METADATA").unlink()
    before = sorted(folder.rglob("*"))
    for again in (lambda: tiny.train(config, run), lambda: zoo.load(run)):
        with pytest.raises(InputError, match=r"every checkpoint in .* is damaged \(\d, 4\): copy"):
            again()
    assert sorted(folder.rglob("*")) == before


def test_a_checkpoint_without_digests_is_named_when_it_is_damaged(tmp_path, codes):
    tiny.train(_config("generator", codes), tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "4"
    (newest / "digests.json").unlink()
    zoo.load(tmp_path / "run")
    for file in (newest / "params").rglob("*"):
        if file.is_file() and file.stat().st_size > 2000:
            file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match=r"checkpoints/4 is damaged .* remove that folder"):
        tiny.train(_config("generator", codes), tmp_path / "run")
    with pytest.raises(InputError, match=r"checkpoints/4 is damaged"):
        zoo.load(tmp_path / "run")


def test_work_folder_without_a_checkpoint_is_named(tmp_path, codes):
    tiny.train(_config("generator", codes), tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "checkpoints").mkdir()
    with pytest.raises(InputError, match="holds no checkpoint yet"):
        zoo.load(tmp_path / "run")


def test_work_folder_of_another_run_is_left_alone(tmp_path, codes):
    tiny.train(_config("generator", codes), tmp_path / "run")
    with pytest.raises(InputError, match=r"holds a run with model\.n_layers=2, not 3"):
        tiny.train(_config("generator", codes, model__n_layers=3), tmp_path / "run")


def test_work_folder_that_cannot_be_written_is_named(tmp_path, codes):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*file/run: Not a"):
        tiny.train(_config("generator", codes), tmp_path / "file" / "run")


def test_generator_begins_with_the_weights_of_a_run_on_a_smaller_grid(tmp_path, codes):
    first = tiny.train(_config("generator", codes, steps=2), tmp_path / "small")
    changes = {"init_from": str(tmp_path / "small"), "model__grid_size": 8}
    config = _config("generator", codes, **changes, optimizer__ema_decay=0.9)
    state = jax.jit(generator.make_task(config).init)()
    state = with_params(state, generator.load_init(config))
    _assert_same_bits(state.params, first.params)
    _assert_same_bits(state.ema, first.params)
    with pytest.raises(InputError, match=r"does not fit config.init_from"):
        generator.load_init(_config("generator", codes, **changes, model__dim=64))


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """Codes with features of one to five tokens."""
    folder, rng = tmp_path_factory.mktemp("data") / "features", np.random.default_rng(0)
    write_dataset(
        folder,
        (
            {
                "codes": rng.integers(0, 32, (1, 16), np.uint16),
                "captions": {"long": "a circle"},
                "text": {"long": rng.normal(size=(1 + i % 5, 16)).astype(jnp.bfloat16)},
            }
            for i in range(40)
        ),
        tokenizer=TokenizerId("tiny", "0", 32),
        text_encoder=TextEncoderId("t5", "0", 16, 5),
        code_shape=(1, 16),
    )
    return folder


TEXT = {
    "model__condition": "text",
    "model__condition_length": 5,
    "model__caption_dim": 16,
    "data__caption_weights": (("long", 1.0),),
}


def test_generator_trains_on_text_features_that_other_processes_load(tmp_path, features):
    changes = {"steps": 20, "optimizer__warmup_steps": 0, "data__workers": 2}
    tiny.train(_config("generator", features, **TEXT, **changes), tmp_path / "run")
    losses = [loss for _, loss in _metrics(tmp_path / "run", "train/loss")]
    assert losses[-1] < losses[0] < np.log(32) + 0.1
    assert _metrics(tmp_path / "run", "eval/loss")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data__caption_weights": ()}, "caption_weights must name captions"),
        ({"model__caption_dim": 32}, r"holds features \[5, 16\] of t5 .* reads \[5, 32\]"),
        ({"text_encoder": "flan-t5-xl"}, "features of t5 but config.text_encoder=flan-t5-xl"),
    ],
)
def test_features_that_do_not_fit_the_model_are_refused(tmp_path, features, change, message):
    with pytest.raises(InputError, match=message):
        tiny.train(_config("generator", features, **(TEXT | change)), tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"tokenizer": TokenizerId("other", "1", 32)},
            r"another tokenizer \(other\) .*\(tiny",
        ),
        (
            {"text_encoder": TextEncoderId("t5-xl", "1", 16, 5)},
            r"text_encoder \(t5-xl\) .*\(t5",
        ),
        ({"text_encoder": TextEncoderId("t5", "0", 16, 6)}, r"another text_encoder \(t5\)"),
        ({"text_encoder": None}, r"another text_encoder \(None\) than .*features \(t5\)"),
        ({"text_encoder": TextEncoderId("moved/t5", "0", 16, 5)}, None),
        ({"code_shape": (1, 64)}, "eval holds 64 codes per image but .*features 16; "),
    ],
)
def test_held_out_data_made_otherwise_is_refused(tmp_path, features, change, message):
    shutil.copytree(features, tmp_path / "eval")
    dataclasses.replace(Manifest.read(features), **change).write(tmp_path / "eval")
    config = _config("generator", features, **TEXT, data__eval=str(tmp_path / "eval"), steps=1)
    refused = pytest.raises(InputError, match=message) if message else contextlib.nullcontext()
    with refused:
        tiny.train(config, tmp_path / "run")


def test_batch_must_divide_over_the_mesh(tmp_path, codes):
    with pytest.raises(InputError, match=r"batch_size=8 .* the 16 ways .*accumulation_steps=2"):
        tiny.train(_config("generator", codes, accumulation_steps=2), tmp_path / "run")
    with pytest.raises(InputError, match=r"batch_size=12 is not divisible by the 8 ways .*: 16"):
        tiny.train(_config("generator", codes, batch_size=12), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model__grid_size": 5}, "holds 16 codes per image but .* makes 25"),
        ({"model__vocab_size": 16}, "holds codes below 32 but config.model.vocab_size=16"),
        ({"model__num_classes": 4}, "has 10 classes but config.model.num_classes=4"),
        (
            {"data__source": "digits", "data__train": "train", "data__eval": "test"},
            "holds images: name the config.token",
        ),
    ],
)
def test_codes_that_do_not_fit_the_model_are_refused(tmp_path, codes, change, message):
    with pytest.raises(InputError, match=message):
        tiny.train(_config("generator", codes, **change), tmp_path / "run")


def test_a_label_means_the_same_class_everywhere(tmp_path, codes):
    names = [str(i) for i in range(10)]
    other = [*names[:4], "x", *names[5:]]
    export.write(tmp_path / "other", *tiny.llama(), class_names=other)
    shutil.copytree(codes, tmp_path / "eval")
    dataclasses.replace(Manifest.read(codes), class_names=tuple(names[1:])).write(tmp_path / "eval")
    for change, message in (
        (
            {"data__eval": str(tmp_path / "eval")},
            r"label 0 is the class '1' in .*\.eval=.* but '0'",
        ),
        ({"init_from": str(tmp_path / "other")}, r"label 4 is the class 'x' in .*init_from=.* '4'"),
    ):
        with pytest.raises(InputError, match=message):
            tiny.train(_config("generator", codes, **change), tmp_path / "run")
    config = _config("generator", codes)
    check_labels(config, {"label": np.array([0, 9])})
    for label in (10, -1):
        with pytest.raises(InputError, match=f"have the label {label} but .*num_classes=10; raise"):
            check_labels(config, {"label": np.array([0, label])})


def test_codes_of_another_tokenizer_are_refused(tmp_path, codes):
    export.write(tmp_path / "other", *tiny.vqgan())
    config = _config("generator", codes, tokenizer=str(tmp_path / "other"))
    with pytest.raises(InputError, match=r"made by another tokenizer \(tiny\) than .*=.*/other;"):
        tiny.train(config, tmp_path / "run")


@pytest.mark.parametrize("task", TASKS)
def test_missing_held_out_data_stops_before_anything_is_written(tmp_path, codes, task):
    with pytest.raises(InputError, match="nowhere"):
        tiny.train(_config(task, codes, data__eval="nowhere"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_does_not_go_on_with_other_data(tmp_path, codes):
    folder = tmp_path / "codes"
    shutil.copytree(codes, folder)
    tiny.train(_config("generator", folder, steps=2), tmp_path / "run")
    shutil.rmtree(folder)
    tiny.write_codes(folder, count=48)
    with pytest.raises(InputError, match=r"at step 2 .*: records 40 -> 48 .* give --change-plan"):
        tiny.train(_config("generator", folder, steps=2), tmp_path / "run")


def test_missing_shard_stops_before_anything_is_written(tmp_path):
    codes = tiny.write_codes(tmp_path / "codes")
    (codes / Manifest.read(codes).shards[0].name).unlink()
    with pytest.raises(InputError, match="is missing: copy or write the dataset again"):
        tiny.train(_config("generator", codes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_corrupt_records_are_skipped_and_counted(tmp_path):
    codes = tiny.write_codes(tmp_path / "codes")
    shard = codes / Manifest.read(codes).shards[0].name
    data = shard.read_bytes()
    record = np.random.default_rng(0).integers(0, 32, (40, 1, 16), np.uint16)[7].tobytes()
    assert record in data
    shard.write_bytes(data.replace(record, bytes(32)))
    tiny.train(_config("generator", codes, steps=10, data__eval=""), tmp_path / "run")
    skipped = [count for _, count in _metrics(tmp_path / "run", "train/skipped_records")]
    assert sum(skipped) == 2  # in 80 examples, two epochs
