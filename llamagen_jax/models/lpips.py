"""LPIPS: a perceptual distance on VGG16 features (Zhang et al., arXiv 1801.03924).

Axes: B batch, H W pixels, C channels. The weights are not trained here: see `weights.lpips`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from llamagen_jax.models.layers import AnyArray

# VGG16's convolutions: channels of each stage, once per convolution. The last activation of each
# stage (relu1_2, relu2_2, relu3_3, relu4_3, relu5_3) is compared.
STAGES = ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)

# From [-1, 1] to the normalisation that VGG16 was trained with.
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)


class LPIPS(nn.Module):
    """Perceptual distance of image pairs, in float32.

    Parameters are "conv{stage}_{index}" (numbered from 1, as VGG's layers are) and a non-negative
    "head{stage}" [C] for each stage.
    """

    def __call__(
        self, first: Float[AnyArray, "B H W 3"], second: Float[AnyArray, "B H W 3"]
    ) -> Float[Array, " B"]:
        """Float [B, H, W, 3] in [-1, 1] twice, sides of at least 16 -> float32 [B]."""
        a, b = jnp.split(self.features(jnp.concatenate([first, second])), 2)
        return jnp.sum((a - b) ** 2, axis=-1)

    @nn.compact
    def features(self, images: Float[AnyArray, "B H W 3"]) -> Float[Array, "B N"]:
        """Images as of `__call__` to float32 [B, N], whose squared distances are those of LPIPS."""
        x = (images.astype(jnp.float32) - jnp.array(_SHIFT)) / jnp.array(_SCALE)
        features = []
        for stage, convolutions in enumerate(STAGES, start=1):
            if stage > 1:
                x = nn.max_pool(x, (2, 2), (2, 2))
            for index, channels in enumerate(convolutions, start=1):
                x = nn.relu(nn.Conv(channels, (3, 3), name=f"conv{stage}_{index}")(x))
            head = self.param(f"head{stage}", nn.initializers.zeros, (x.shape[-1],))
            # A mean over the pixels, weighted by channel.
            weighted = _normalize(x) * jnp.sqrt(head / (x.shape[1] * x.shape[2]))
            features.append(weighted.reshape(len(x), -1))
        return jnp.concatenate(features, axis=1)


def _normalize(x):
    """Unit length over the channels; pixels without any activation stay 0, with a finite slope."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x**2, axis=-1, keepdims=True), 1e-20))
