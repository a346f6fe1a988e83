"""Which runs go on in a work folder, and what they say of it."""

import json
import logging
import types

import filelock
import pytest
import tiny

from llamagen_jax.errors import InputError
from llamagen_jax.training import work_folder
from llamagen_jax.training.config import from_mapping


class Source:
    class_names = ("a", "b")
    credit = "Drawn by others."

    def __init__(self, count):
        self._count = count

    def __len__(self):
        return self._count


def task(records=40, **changes):
    """What of a task the work folder reads; 100 steps of a cosine schedule, five are an epoch."""
    config = from_mapping(tiny.generator_config("codes", **({"steps": 100} | changes)))
    return types.SimpleNamespace(
        config=config, source=Source(records), may_change=("tokenizer", "text_encoder")
    )


def check(folder, going_on, step=90, *, change_plan=False):
    work_folder.check_plan(folder, going_on, step, change_plan)


@pytest.fixture
def run(tmp_path):
    work_folder.record_plan(tmp_path, task(), 0)
    return tmp_path


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"steps": 200},
            r"config.steps 100 -> 200 bends the cosine schedule: the learning rate at step 90 "
            r"goes from 0.000\d+ to 0.00\d+",
        ),
        (
            {"optimizer__learning_rate": 1.0, "optimizer__schedule": "constant"},
            r"config.optimizer.learning_rate 0.002 -> 1.0, config.optimizer.schedule 'cosine' -> "
            "'constant' changes the learning rate: at step 90",
        ),
        (
            {"batch_size": 16},
            r"config.batch_size 8 -> 16 .* none left out or seen twice, and an epoch takes 2.5 "
            "steps instead of 5",
        ),
        ({"model__token_dropout": 0.2}, "config.model.token_dropout 0.1 -> 0.2 changes dropout"),
        ({"optimizer__clip_norm": 2.0}, "config.optimizer.clip_norm 1.0 -> 2.0 changes the"),
        ({"data__random_flip": True}, "config.data.random_flip False -> True changes"),
        ({"records": 48}, "records 40 -> 48 changes the data and draws another order of it"),
        ({"seed": 1}, "config.seed 0 -> 1 draws another order"),
    ],
)
def test_a_plan_with_which_results_jump_needs_to_be_asked_for(run, caplog, change, told):
    with pytest.raises(
        InputError, match=f"at step 90 of another plan: {told}.*; give --change-plan"
    ):
        check(run, task(**change))
    with caplog.at_level(logging.WARNING, "absl"):
        check(run, task(**change), change_plan=True)
    (record,) = caplog.records
    assert record.getMessage().startswith("from step 90 on: ")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"steps": 200}, ["config.steps 100 -> 200 leaves the learning rate as it is"]),
        (
            {"optimizer__warmup_steps": 7},
            ["warmup_steps 50 -> 7 leaves the learning rate as it is"],
        ),
        ({"data__workers": 2}, ["workers 0 -> 2 changes speed alone"]),
        ({"init_from": "a"}, ["init_from '' -> 'a' changes nothing"]),
        ({"attention": "xla", "remat": "full"}, ["attention", "remat"]),
        ({"eval_every": 7, "data__eval": "", "mesh__fsdp": 2, "tokenizer": "moved"}, []),
    ],
)
def test_other_changes_are_told_alone(tmp_path, caplog, change, told):
    constant = {"optimizer__schedule": "constant"}
    work_folder.record_plan(tmp_path, task(**constant), 0)
    with caplog.at_level(logging.WARNING, "absl"):
        check(tmp_path, task(**constant, **change))
    assert len(caplog.records) == len(told)
    for record, text in zip(caplog.records, told, strict=True):
        assert text in record.getMessage()


@pytest.mark.parametrize(
    "change",
    [
        {"model__n_layers": 3},
        {"model__rope_base": 5.0},
        {"data__image_size": 64},
        {"optimizer__ema_decay": 0.9},
    ],
)
def test_another_run_is_refused_whatever_is_asked_for(run, change):
    key = next(iter(change)).replace("__", ".")
    for step in (None, 90):
        with pytest.raises(InputError, match=f"holds a run with {key}=.*, not "):
            check(run, task(**change), step, change_plan=True)


def test_before_its_first_checkpoint_a_run_has_no_plan_to_keep_to(run):
    check(run, task(batch_size=16), step=None)


def test_records_go_on_where_they_were_after_each_change_of_the_batch_size(run):
    """At step 10 record 80 is next, at step 15 the one after five batches of 16 more."""
    for _ in range(2):  # killed before its first step and started again
        offset = work_folder.record_plan(run, task(batch_size=16), 10)
        assert offset + 10 * 16 == 80
    offset = work_folder.record_plan(run, task(batch_size=8), 15)
    assert offset + 15 * 8 == 80 + 5 * 16
    assert json.loads((run / "config.json").read_text())["record_offset"] == offset


def test_a_second_run_in_a_folder_is_refused(tmp_path):
    refused = pytest.raises(InputError, match=r"another run is at work in .*: wait for it")
    with filelock.FileLock(tmp_path / "lock"), refused, work_folder.locked(tmp_path):
        pass
    with work_folder.locked(tmp_path):
        pass
