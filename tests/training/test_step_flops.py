"""What a training step needs: counted once, and only what is computed."""

import jax
import pytest
import tiny

from llamagen_jax import flops, sharding
from llamagen_jax.models.llama import Llama, LlamaConfig
from llamagen_jax.training import dry_run, generator
from llamagen_jax.training.config import from_mapping
from llamagen_jax.training.tasks import make_mesh, make_task


@pytest.mark.parametrize(
    "config",
    [LlamaConfig(n_layers=2), tiny.LLAMA_CONFIG, tiny.TEXT_CONFIG],
    ids=["default", "grouped", "text"],
)
def test_forward_pass_of_the_generator_is_what_its_trace_holds(config):
    codes = jax.ShapeDtypeStruct((1, config.code_length), int)
    condition = jax.ShapeDtypeStruct((1,), int)
    if config.condition == "text":
        condition = jax.ShapeDtypeStruct((1, config.condition_length, config.caption_dim), float)
    model = Llama(config)
    variables = jax.eval_shape(model.init, jax.random.key(0), codes, condition)
    assert generator.forward_flops(config) == flops.count(model.apply, variables, codes, condition)


def _step_flops(**changes):
    config = from_mapping(tiny.tokenizer_config(**changes))
    task, mesh = make_task(config), make_mesh(config)
    state = sharding.abstract_init(task.init, config.sharding_rules, mesh)
    return task.step_flops(dry_run.trace_step(task, state, mesh))


def test_step_of_the_tokenizer_grows_with_the_batch():
    assert _step_flops(batch_size=16) == 2 * _step_flops(batch_size=8)


def test_adaptive_weight_counts_the_last_kernel_s_gradients_alone():
    adversarial = {"loss__adversarial_weight": 0.5, "discriminator__num_layers": 1}
    plain, adaptive = (
        _step_flops(**adversarial, loss__adaptive_weight=adaptive) for adaptive in (False, True)
    )
    kernel = 3 * 3 * tiny.VQGAN_SIZES["base_channels"] * 3
    assert adaptive - plain == 2 * (2 * 8 * 16 * 16 * kernel)
