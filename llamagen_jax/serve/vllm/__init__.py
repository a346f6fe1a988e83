"""Class-conditional generators inside vLLM (https://docs.vllm.ai), as a model out of its tree.

vLLM finds `register` by the entry point `vllm.general_plugins` and then opens the folders that
`folder.write` makes.
"""


def register() -> None:
    """Makes the architecture known to the process; vLLM calls it in each of its own."""
    from transformers import AutoConfig
    from vllm import ModelRegistry  # pyright: ignore[reportAttributeAccessIssue]

    from llamagen_jax.serve.vllm.hf_config import LlamaGenConfig

    AutoConfig.register(LlamaGenConfig.model_type, LlamaGenConfig, exist_ok=True)
    # By name, since importing the layers would open the GPU before vLLM forks.
    transformer = "llamagen_jax.serve.vllm.transformer:LlamaGenForCausalLM"
    ModelRegistry.register_model("LlamaGenForCausalLM", transformer)
