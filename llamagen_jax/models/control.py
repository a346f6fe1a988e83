"""Control images, such as edges or depth, as one token for each code (ControlAR, arXiv 2410.02705).

Axes: B batch, H W pixels, L codes, C width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped, UInt8

from llamagen_jax.errors import InputError
from llamagen_jax.models.layers import AnyArray, RMSNorm, dense, squares
from llamagen_jax.models.llama_config import CONTROL_HEAD_DIM, LlamaConfig
from llamagen_jax.models.rope import rope_table, rotate


class ControlEncoder(nn.Module):
    """A small vision transformer: the patch where a code lies becomes the code's token.

    Its positions are rotary, so that it reads images of any grid of codes.

    Attributes:
      position_grid: of `Llama`.
    """

    config: LlamaConfig
    position_grid: tuple[int, int] | None = None

    @nn.compact
    def __call__(self, control: UInt8[AnyArray, "B H W 3"]) -> Float[Array, "B L C"]:
        """Tokens [B, L, C] in the compute dtype, of images uint8 [B, H, W, 3]."""
        c = self.config
        # Black is not 0, so that patches without an edge know their places too.
        pixels = jnp.asarray(control).astype(c.dtype) / 127.5 - 1
        patches = squares(pixels, c.control_patch).reshape(len(control), c.code_length, -1)
        x = dense(c.control_dim, c.dtype, "patches")(patches)
        table = rope_table(
            c.grid,
            CONTROL_HEAD_DIM,
            position_grid=self.position_grid,
            base=c.rope_base,
            condition_length=0,
            condition_rope="identity",
        )
        for i in range(c.control_layers):
            x = ControlBlock(c, name=f"layer_{i}")(x, table[None])
        return RMSNorm(c.norm_eps, name="norm")(x)


class ControlBlock(nn.Module):
    """Pre-norm attention to all patches, and a feed-forward layer."""

    config: LlamaConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L C"], cos_sin: Float[Array, "1 L half 2"]
    ) -> Float[Array, "B L C"]:
        c, width = self.config, x.shape[-1]
        heads = (*x.shape[:2], -1, CONTROL_HEAD_DIM)
        y = RMSNorm(c.norm_eps, name="attention_norm")(x)
        q, k, v = (dense(width, c.dtype, name)(y).reshape(heads) for name in "qkv")
        attended = jax.nn.dot_product_attention(rotate(q, cos_sin), rotate(k, cos_sin), v)
        x = x + dense(width, c.dtype, "out")(attended.reshape(x.shape))
        hidden = dense(4 * width, c.dtype, "up")(RMSNorm(c.norm_eps, name="ffn_norm")(x))
        return x + dense(width, c.dtype, "down")(nn.gelu(hidden))


def check_control(config: LlamaConfig, control: Shaped[AnyArray, "..."]) -> None:
    """Raises InputError unless a model reads such control images, uint8 [B, H, W, 3]."""
    if not config.control_layers:
        raise InputError(
            "the generator was trained without control images: leave the control out, or give a "
            "generator that was trained with them"
        )
    height, width = config.control_size
    if control.dtype != jnp.uint8 or control.shape[1:] != (height, width, 3):
        raise InputError(
            f"control images {control.dtype} {list(control.shape)} do not fit the generator: give "
            f"uint8 [B, {height}, {width}, 3]"
        )
