"""Configurations, models and data small enough to train in a test."""

import copy
import dataclasses
import io
import itertools
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from PIL import Image

from llamagen_jax import sharding
from llamagen_jax.configs import digits
from llamagen_jax.data.pipeline import DataConfig, train_batches
from llamagen_jax.data.records import TokenizerId, write_dataset
from llamagen_jax.models.llama import Llama, LlamaConfig
from llamagen_jax.models.t5 import T5Config
from llamagen_jax.models.vqgan import VQGAN, VQGANConfig
from llamagen_jax.training import loop
from llamagen_jax.training.config import GeneratorTraining, TokenizerTraining
from llamagen_jax.training.optimizer import TrainState
from llamagen_jax.training.tasks import make_mesh, open_task
from llamagen_jax.weights import export
from llamagen_jax.weights import t5 as t5_weights
from llamagen_jax.weights.torch_files import Tensor, write_safetensors

VQGAN_SIZES = {
    "base_channels": 32,
    "channel_multipliers": (1, 1, 1, 1),
    "num_res_blocks": 1,
    "z_channels": 32,
    "codebook_size": 32,
    "codebook_dim": 4,
}
LLAMA_SIZES = {
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "vocab_size": 32,
    "grid_size": 4,
    "num_classes": 10,
    "multiple_of": 16,
}
VQGAN_CONFIG = VQGANConfig(**VQGAN_SIZES)
LLAMA_CONFIG = LlamaConfig(**LLAMA_SIZES)
TEXT_CONFIG = LlamaConfig(**LLAMA_SIZES, condition="text", condition_length=5, caption_dim=16)
CONTROL_SIZES = {"control_layers": 2, "control_dim": 64, "control_patch": 4}
CONTROL_CONFIG = LlamaConfig(**LLAMA_SIZES | {"n_layers": 4}, **CONTROL_SIZES)
TEXT_CONTROL_CONFIG = dataclasses.replace(TEXT_CONFIG, **CONTROL_SIZES)
T5_CONFIG = T5Config(vocab_size=512, dim=16, head_dim=4, ffn_dim=24, n_layers=2, n_heads=2)
# The digits as they are.
DATA_CONFIG = DataConfig(
    source="digits",
    train="train",
    eval="test",
    image_size=24,
    random_crop=False,
    random_flip=False,
    fast_decode=False,
    workers=0,
    caption_weights=(),
    skip_small=False,
    background="white",
    exif_orientation=False,
)

_WORDS = (
    "a an the red blue large small circle square left right above below of two three photo "
    "painting Astronaut riding horse in forest it's state-of-the-art 12 3.5 100% $20 (left) "
    '"quoted" cat, dog. end! why? naïve café ünïcödé Москва 图片 😀 ﬁne Ⅳ ½ x² ™ _ ~ ▁ '
    "<extra_id_0> <extra_id_99> </s> <pad> <unk> < extra_id_1> \u200b \u00a0 \u3000"
)


def error_line(run, *args) -> str:
    """The one line that a command ends with; `run` takes its arguments."""
    with pytest.raises(SystemExit) as error:
        run(*args)
    line = str(error.value)
    assert line.startswith("error: ")
    assert "\n" not in line
    return line


def tokenizer_config(**changes) -> dict:
    """A short run of the tokenizer on the digits, with a discriminator where the loss has one."""
    config = digits.get_config("tokenizer").to_dict()
    config["model"].update(VQGAN_SIZES, channel_multipliers=(1, 1))
    config["data"]["image_size"] = 16
    config["discriminator"] = {
        "kind": "patchgan",
        "base_channels": 32,
        "num_layers": 2,
        "dtype": "float32",
    }
    return _short(config, changes)


def generator_config(codes: Path, **changes) -> dict:
    """A short run of the generator on a folder of `write_codes`."""
    config = digits.get_config("generator").to_dict()
    config["model"].update(LLAMA_SIZES)
    config["data"].update(train=str(codes), eval=str(codes))
    config["tokenizer"] = ""
    return _short(config, changes)


def write_config(path: Path, values: dict) -> Path:
    """A configuration file of `values`."""
    text = json.dumps(values)
    path.write_text(
        "import json\nfrom ml_collections import ConfigDict\n"
        f"def get_config():\n    return ConfigDict(json.loads({text!r}))\n"
    )
    return path


def _short(config: dict, changes: dict) -> dict:
    config |= {"batch_size": 8, "steps": 4, "log_every": 2, "eval_every": 0, "sample_every": 0}
    config |= {"checkpoint_every": 2}
    config = copy.deepcopy(config)
    for path, value in changes.items():
        *parents, key = path.split("__")
        place = config
        for parent in parents:
            place = place[parent]
        place[key] = value
    return config


def meshes(*shapes: tuple[int, int, int]) -> list[Mesh]:
    """Meshes of the first of the faked devices."""
    names, types = ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3
    return [
        jax.make_mesh(s, names, axis_types=types, devices=jax.devices()[: math.prod(s)])
        for s in shapes
    ]


def train(
    config: TokenizerTraining | GeneratorTraining, workdir: Path, *, change_plan: bool = False
) -> TrainState:
    """What the command `train.py` does."""
    return loop.train(open_task(config, make_mesh(config)), workdir, change_plan=change_plan)


def losses(config, mesh: Mesh, steps: int = 3) -> list[float]:
    """Losses of the first training steps."""
    task = open_task(config, mesh)
    batches = train_batches(
        task.source,
        config.data,
        batch_size=config.batch_size,
        seed=config.seed,
        condition=task.condition,
    )
    with jax.set_mesh(mesh):
        state = sharding.sharded_init(task.init, config.sharding_rules, mesh)
        step, values = jax.jit(task.train_step), []
        for batch in itertools.islice(batches, steps):
            state, metrics = step(state, sharding.put_batch(batch, mesh))
            values.append(float(metrics.loss.compute()))
    return values


def write_codes(
    folder: Path, tokenizer: TokenizerId | None = None, num_classes: int = 10, count: int = 40
) -> Path:
    """A dataset folder of random code sequences that fit `LLAMA_CONFIG`."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 32, (count, 1, 16), np.uint16)
    records = ({"codes": row, "label": i % num_classes} for i, row in enumerate(codes))
    write_dataset(
        folder,
        records,
        class_names=tuple(map(str, range(num_classes))),
        tokenizer=tokenizer or TokenizerId("tiny", "0", 32),
        code_shape=(1, 16),
    )
    return folder


def llama(config: LlamaConfig = LLAMA_CONFIG, seed: int = 0) -> tuple[Llama, dict]:
    """A transformer whose output layer is random instead of zero, so that it says something."""
    model = Llama(config)
    condition = jnp.zeros(1, int)
    if config.condition == "text":
        condition = jnp.zeros((1, config.condition_length, config.caption_dim))
    key = jax.random.key(seed)
    params = jax.jit(model.init)(key, jnp.zeros((1, config.code_length), int), condition)["params"]
    params = jax.tree.map(lambda leaf: leaf * 5 if leaf.ndim > 1 else leaf, params)
    params["output"] = jax.random.normal(key, params["output"].shape) * 0.3
    if config.control_layers:
        params["control_fusion"] = jax.random.normal(key, params["control_fusion"].shape) * 0.3
    return model, params


def with_sizes(params: dict) -> dict:
    """Parameters of a model of several grids whose sizes' embeddings are random instead of zero."""
    embedding = params["condition_embedding"]
    sizes = jax.random.normal(jax.random.key(9), embedding["sizes"].shape)
    return params | {"condition_embedding": embedding | {"sizes": sizes}}


def vqgan(config: VQGANConfig = VQGAN_CONFIG) -> tuple[VQGAN, dict]:
    """A tokenizer with random weights."""
    model = VQGAN(config)
    side = config.downsampling
    return model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, side, side, 3)))["params"]


def exports(folder: Path) -> tuple[Path, Path]:
    """Export folders of a random generator and of its random tokenizer."""
    export.write(folder / "generator", *llama(), class_names=list("0123456789"))
    export.write(folder / "tokenizer", *vqgan())
    return folder / "generator", folder / "tokenizer"


def varied_captions(count: int) -> list[str]:
    """Words, numbers, punctuation, odd spaces, special tokens and foreign letters."""
    rng = np.random.default_rng(0)
    words = _WORDS.split(" ")
    spaces = [" "] * 8 + ["  ", "", "\t", "\n", " \u00a0"]
    return [
        "".join(rng.choice(words) + rng.choice(spaces) for _ in range(rng.integers(0, 80)))
        for _ in range(count)
    ]


def write_spiece(folder: Path) -> Path:
    """A small sentencepiece model with T5's special tokens, trained on `varied_captions`."""
    import sentencepiece

    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(" ".join(text.split()) for text in varied_captions(400)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "spiece"),
        vocab_size=300,
        character_coverage=0.98,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return folder / "spiece.model"


def t5_tensors(config: T5Config = T5_CONFIG) -> dict[str, np.ndarray]:
    """Random weights by the names of Hugging Face."""
    rng = np.random.default_rng(1)
    shapes = t5_weights.layout(config).tensor_shapes
    return {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


def write_tensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """A safetensors file."""
    write_safetensors(path, {name: Tensor.of(tensor) for name, tensor in tensors.items()})


def write_t5(folder: Path, spiece: Path, config: T5Config = T5_CONFIG) -> Path:
    """A Hugging Face folder with a random encoder and the tokenizer `spiece`."""
    t5_weights.write_folder(folder, config, t5_tensors(config), spiece.read_bytes())
    return folder


def write_clip_tokenizer(folder: Path, vocab_size: int) -> Path:
    """Byte pairs of `varied_captions`: every byte, alone and at the end of a word, then merges."""
    tokenizers = pytest.importorskip("tokenizers")
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=letters, end_of_word_suffix="</w>", show_progress=False
    )
    learner = tokenizers.Tokenizer(tokenizers.models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    learner.train_from_iterator([text.lower() for text in varied_captions(300)], trainer)
    model = json.loads(learner.to_str())["model"]
    names = list(model["vocab"])
    names += [f"{letter}</w>" for letter in letters if f"{letter}</w>" not in model["vocab"]]
    names += [f"spare{number}" for number in range(vocab_size - len(names) - 2)]
    ends = ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {name: number for number, name in enumerate([*names, *ends])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    merges = [" ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    return folder


def flip_bit(path: Path, bit: int | None = None) -> None:
    """Flips one bit of a file, by default in its middle."""
    data = bytearray(path.read_bytes())
    bit = 4 * len(data) if bit is None else bit
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def png(image: np.ndarray) -> bytes:
    """uint8 [H, W, 3] as the bytes of a file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()
