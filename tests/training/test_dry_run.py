import jax
import pytest
import tiny

from llamagen_jax import sharding
from llamagen_jax.training import dry_run
from llamagen_jax.training.config import from_mapping
from llamagen_jax.training.tasks import make_task


@pytest.mark.parametrize("task", [pytest.param("tokenizer", marks=pytest.mark.slow), "generator"])
def test_memory_is_that_of_the_compiled_step(tmp_path, task):
    values = tiny.tokenizer_config() if task == "tokenizer" else tiny.generator_config(tmp_path)
    config = from_mapping(values)
    (mesh,) = tiny.meshes((2, 2, 2))
    task = make_task(config)
    state = sharding.abstract_init(task.init, config.sharding_rules, mesh)
    compiled = dry_run.trace_step(task, state, mesh).lower().compile()
    arguments = compiled.memory_analysis().argument_size_in_bytes
    assert dry_run.bytes_per_device(state) == pytest.approx(arguments, rel=0.15)


def test_report_names_every_parameter_and_allocates_none(tmp_path):
    config = from_mapping(tiny.generator_config(tmp_path, model__dim=320))
    (mesh,) = tiny.meshes((2, 2, 2))
    before = sum(array.nbytes for array in jax.live_arrays())
    report = dry_run.report(make_task(config), mesh)
    assert sum(array.nbytes for array in jax.live_arrays()) - before < 1e5
    assert "| layers/down/kernel" in report
    assert "(None, 'tensor', 'fsdp')" in report
    assert "data 2 x fsdp 2 x tensor 2" in report
