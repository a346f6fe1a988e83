"""What a transformer is told to draw, as the tokens before its codes.

Axes: B batch, T condition tokens, D width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer, Shaped

from llamagen_jax.models.layers import AnyArray, dense, normal_init
from llamagen_jax.models.llama_config import LlamaConfig


class ConditionEmbedding(nn.Module):
    """Class label or text features, and the size of the image, to T tokens of width D.

    Where the model is trained for several grids, every token carries the embedding of the one that
    is drawn, also where the null condition takes the condition's place. It begins at zero, so that
    a model of one grid goes on as it was.
    """

    config: LlamaConfig

    @nn.compact
    def __call__(
        self,
        condition: Shaped[AnyArray, "B ..."],
        condition_mask: Bool[AnyArray, "B T"] | None,
        drop: Bool[AnyArray, " B"] | None,
        size: Integer[AnyArray, " B"] | int | None,
    ) -> Float[Array, "B T D"]:
        c = self.config
        tokens = self._tokens(condition, condition_mask, drop)
        if size is None:
            return tokens
        sizes = self.param("sizes", nn.initializers.zeros, (len(c.grids), c.dim))
        return tokens + sizes[jnp.atleast_1d(size), None].astype(c.dtype)

    def _tokens(self, condition, condition_mask, drop):
        c = self.config
        if c.condition == "class":
            labels = condition if drop is None else jnp.where(drop, c.num_classes, condition)
            table = nn.Embed(c.num_classes + 1, c.dim, embedding_init=normal_init, name="classes")
            return table(labels)[:, None].astype(c.dtype)
        # A fixed random buffer of the original, kept with the parameters but never trained.
        null = self.param(
            "null_features",
            nn.initializers.normal(c.caption_dim**-0.5),
            (c.condition_length, c.caption_dim),
        )
        features = condition.astype(c.dtype)
        if condition_mask is not None:
            features = features * condition_mask[..., None]
        if drop is not None:
            null = jax.lax.stop_gradient(null).astype(c.dtype)
            features = jnp.where(drop[:, None, None], null, features)
        hidden = nn.gelu(dense(c.dim, c.dtype, "fc1")(features), approximate=True)
        return dense(c.dim, c.dtype, "fc2")(hidden)
