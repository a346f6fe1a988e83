"""The class of the `config.json` that `folder.write` makes, as vLLM reads it."""

from transformers import PretrainedConfig


class LlamaGenConfig(PretrainedConfig):
    """The entries of the file as attributes; `folder.write` tells them."""

    model_type = "llamagen"
