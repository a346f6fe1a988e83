"""Discriminators, LPIPS and whole GAN steps compute what the original does (tests/golden)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from golden_weights import load, params, tensor
from test_golden_models import close, vqgan_config

from llamagen_jax import losses
from llamagen_jax.data.package_sources import PhotosSource
from llamagen_jax.images import from_uint8
from llamagen_jax.models.discriminator import DiscriminatorConfig, build
from llamagen_jax.models.lpips import LPIPS
from llamagen_jax.training import tokenizer
from llamagen_jax.training.config import from_mapping
from llamagen_jax.weights import lpips as lpips_weights
from llamagen_jax.weights.torch_files import Tensor, write_safetensors


def convolution(name: str, inventory: dict) -> dict:
    """Formula weights of a convolution or a linear layer by the original's name."""
    weight = tensor(f"{name}.weight", inventory[f"{name}.weight"])
    axes = (2, 3, 1, 0) if weight.ndim == 4 else (1, 0)
    layer = {"kernel": weight.transpose(axes)}
    if f"{name}.bias" in inventory:
        layer["bias"] = tensor(f"{name}.bias", inventory[f"{name}.bias"])
    return layer


def patchgan_params(inventory: dict) -> dict:
    """Formula weights of a PatchGAN: its modules are main.0, main.2, 3, main.5, 6, ..."""
    layers = (len({name.split(".")[1] for name in inventory}) - 2) // 2
    weights = {
        "conv_0": convolution("main.0", inventory),
        "logits": convolution(f"main.{3 * layers + 2}", inventory),
    }
    for layer in range(1, layers + 1):
        weights[f"conv_{layer}"] = convolution(f"main.{3 * layer - 1}", inventory)
        norm = f"main.{3 * layer}"
        weights[f"norm_{layer}"] = {
            "scale": tensor(f"{norm}.weight", inventory[f"{norm}.weight"]),
            "bias": tensor(f"{norm}.bias", inventory[f"{norm}.bias"]),
        }
    return weights


def patchgan_inventory(channels: int, layers: int) -> dict:
    """Names and shapes of a PatchGAN's weights in the original."""
    inventory = {"main.0.weight": [channels, 3, 4, 4], "main.0.bias": [channels]}
    before = channels
    for layer in range(1, layers + 1):
        after = channels * min(2**layer, 8)
        inventory[f"main.{3 * layer - 1}.weight"] = [after, before, 4, 4]
        inventory |= {f"main.{3 * layer}.{part}": [after] for part in ("weight", "bias")}
        before = after
    last = f"main.{3 * layers + 2}"
    return inventory | {f"{last}.weight": [1, before, 4, 4], f"{last}.bias": [1]}


@pytest.fixture(scope="module")
def lpips_files(tmp_path_factory):
    """Formula weights of LPIPS in two files such as a user has."""
    vgg16, heads = {}, {}
    for name, shape in load("lpips")[1]["inventory"].items():
        if name.startswith("net."):
            vgg16["features." + name.split(".", 2)[2]] = tensor(name, shape)
        elif name.startswith("lin"):
            heads[name] = abs(tensor(name, shape))
    folder = tmp_path_factory.mktemp("lpips")
    paths = folder / "vgg16.safetensors", folder / "heads.safetensors"
    for path, tensors in zip(paths, (vgg16, heads), strict=True):
        write_safetensors(path, {key: Tensor.of(t) for key, t in tensors.items()})
    return paths


def test_patchgan():
    golden, entries = load("patchgan")
    inventory = entries["inventory"]
    model = build(DiscriminatorConfig("patchgan", 64, 3, "float32"))
    stats = {
        f"norm_{layer}": {
            "mean": tensor(f"main.{3 * layer}.running_mean", inventory[f"main.{3 * layer}.bias"]),
            "var": abs(tensor(f"main.{3 * layer}.running_var", inventory[f"main.{3 * layer}.bias"]))
            + 0.5,
        }
        for layer in (1, 2, 3)
    }
    assert patchgan_inventory(64, 3).items() <= inventory.items()
    variables = {"params": patchgan_params(inventory), "batch_stats": stats}
    apply = jax.jit(
        lambda variables, images, train: model.apply(
            variables, images, train, mutable=["batch_stats"]
        ),
        static_argnums=2,
    )
    close(apply(variables, golden["image"], False)[0], golden["logits_eval"])
    logits, updated = apply(variables, golden["image"], True)
    close(logits, golden["logits_train"])
    for layer in (1, 2, 3):
        after = updated["batch_stats"][f"norm_{layer}"]
        close(after["mean"], golden[f"after_main.{3 * layer}.running_mean"])
        close(after["var"], golden[f"after_main.{3 * layer}.running_var"])


def test_stylegan():
    golden, entries = load("stylegan_disc")
    inventory = entries["inventory"]
    names = {
        "conv_in": "blocks.0",
        "conv_out": "final_conv.0",
        "fc": "final_linear.0",
        "logits": "final_linear.2",
    }
    weights = {name: convolution(theirs, inventory) for name, theirs in names.items()}
    # The original flattens channels first.
    kernel = weights["fc"]["kernel"].reshape(512, 4, 4, 512)
    weights["fc"]["kernel"] = kernel.transpose(1, 2, 0, 3).reshape(-1, 512)
    parts = {
        "shortcut": "conv_res",
        "conv1": "net.0",
        "conv2": "net.2",
        "downsample": "downsample.1",
    }
    for index, size in enumerate((32, 16, 8, 4), start=2):
        weights[f"block_{size}"] = {
            name: convolution(f"blocks.{index}.{theirs}", inventory)
            for name, theirs in parts.items()
        }
    model = build(DiscriminatorConfig("stylegan", 64, 3, "float32"))
    logits = jax.jit(model.apply, static_argnums=2)({"params": weights}, golden["image"], True)
    close(logits, golden["logits"])


def test_lpips(lpips_files):
    golden, _ = load("lpips")
    weights = lpips_weights.load(*lpips_files)
    close(jax.jit(LPIPS().apply)({"params": weights}, golden["a"], golden["b"]), golden["distance"])


def test_lpips_of_photos(lpips_files):
    """PyPI's lpips 0.1.4 recorded them with these weights: of coarse colours, of mirror images."""
    source = PhotosSource("test")
    tiles = np.stack([source[index]["image"][:64, :64] for index in (0, 23, 47, 71)])
    photos = from_uint8(tiles)
    others = jnp.concatenate([jnp.floor(photos[:2] * 4) / 4, photos[2:, :, ::-1]])
    weights = lpips_weights.load(*lpips_files)
    distances = jax.jit(LPIPS().apply)({"params": weights}, photos, others)
    expected = [0.00756747, 0.02809599, 0.03837844, 0.00085222]
    np.testing.assert_allclose(distances, expected, rtol=1e-4)


def test_gan_losses():
    golden, _ = load("gan_losses")
    real, fake = golden["logits_real"], golden["logits_fake"]
    for kind in losses.ADVERSARIAL:
        expected = golden[f"d_{kind.replace('-', '_')}"]
        close(losses.discriminator(kind, real, fake), expected, atol=1e-6)
    close(losses.adversarial("hinge", fake), golden["g_hinge"], atol=1e-6)
    close(losses.adversarial("vanilla", fake), golden["g_hinge"], atol=1e-6)
    close(losses.adversarial("non-saturating", fake), golden["g_non_saturating"], atol=1e-6)


@pytest.mark.parametrize(
    "name", [pytest.param("tokenizer_steps", marks=pytest.mark.slow), "tokenizer_steps_adaptive"]
)
def test_whole_steps(name, lpips_files):
    golden, entries = load(name)
    meta = entries["meta"]
    values = tiny.tokenizer_config(
        data__image_size=32,
        batch_size=2,
        steps=100,
        loss__perceptual_weight=1.0,
        loss__vgg16=str(lpips_files[0]),
        loss__lpips_heads=str(lpips_files[1]),
        loss__adversarial_weight=meta["disc_weight"],
        loss__adversarial_start=meta["disc_start"],
        loss__adaptive_weight=meta["adaptive"],
        discriminator__base_channels=meta["disc_dim"],
        discriminator__num_layers=meta["disc_layers"],
        optimizer__learning_rate=meta["lr"],
        optimizer__schedule="constant",
        optimizer__warmup_steps=0,
        optimizer__b1=meta["b1"],
        optimizer__b2=meta["b2"],
        optimizer__clip_norm=meta["clip"],
    )
    model = {"l2_norm": True, "commit_loss_beta": 0.25, "entropy_loss_ratio": 0.0} | meta
    values["model"] = vars(vqgan_config(model)) | {"num_res_blocks": meta["num_res_blocks"]}
    config = from_mapping(values)
    discriminator = patchgan_params(patchgan_inventory(meta["disc_dim"], meta["disc_layers"]))
    weights = tokenizer.Weights(params(config.model), tokenizer.load_weights(config).lpips)
    task = tokenizer.make_task(config)
    # All zeros, like Adam's moments; every parameter is loaded, which saves compiling `init`.
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.eval_shape(task.init)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype, device=device), shapes)
    state = tokenizer.put_weights(weights, zeros)
    state = state.replace(discriminator=state.discriminator.replace(params=discriminator))
    step = jax.jit(task.train_step)
    for index, images in enumerate(golden["images"]):
        # The step takes pixels from 0 to 255; these lie between the integers.
        state, metrics = step(state, {"image": (images + 1) * 127.5})
        values = metrics.compute()
        close(values["loss"], golden["gen_loss"][index])
        close(values["discriminator_loss"], golden["disc_loss"][index])
        terms = ("reconstruction_loss", "perceptual_loss", "vq_loss", "commitment_loss")
        close([values[term] for term in terms], golden["components"][index])
        norm, expected = values["grad_norm"], golden["gen_grad_norm"][index]
        np.testing.assert_allclose(norm, expected, rtol=1e-3)
        # One of these 72 logits is 1e-5 from the kink of the hinge loss, no farther than the steps
        # before led from the original: its share of the gradient is there or not by the machine.
        at_kink = name == "tokenizer_steps_adaptive" and index == 2
        norm, expected = values["discriminator_grad_norm"], golden["disc_grad_norm"][index]
        np.testing.assert_allclose(norm, expected, rtol=1 / 72 if at_kink else 1e-3)
