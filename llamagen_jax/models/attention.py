"""Causal attention by the kernel that suits the platform.

Axes: B batch, S positions, Q queried positions, H heads, K key-value heads, Dh head width,
T condition tokens.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from llamagen_jax.errors import InputError
from llamagen_jax.models.layers import AnyArray

IMPLEMENTATIONS = ("auto", "xla", "cudnn", "flash")

# What the kernels ask of (S, Dh): cuDNN for the masked backward pass, the TPU kernel for its tiles.
_MULTIPLES = {"cudnn": (2, 8), "flash": (128, 128)}


def choose(implementation: str, dtype: str) -> str:
    """The kernel for this process's devices: "xla", "cudnn" (NVIDIA) or "flash" (Pallas, TPU).

    Args:
      implementation: one of `IMPLEMENTATIONS`; "auto" takes "cudnn" for bfloat16 on GPU, "flash"
        on TPU and "xla" elsewhere.
      dtype: compute dtype.

    Raises:
      InputError: the kernel does not run on this platform or in this dtype.
    """
    platform = jax.default_backend()
    if implementation == "auto":
        by_platform = {"tpu": "flash", "gpu": "cudnn" if dtype == "bfloat16" else "xla"}
        return by_platform.get(platform, "xla")
    if implementation == "cudnn" and (platform != "gpu" or dtype != "bfloat16"):
        raise InputError(f"attention='cudnn' needs a GPU and bfloat16, not {platform} and {dtype}")
    if implementation == "flash" and platform != "tpu":
        raise InputError(f"attention='flash' needs a TPU, not {platform}; 'auto' chooses what fits")
    return implementation


def causal_attention(
    q: Float[AnyArray, "B S H Dh"],
    k: Float[AnyArray, "B S K Dh"],
    v: Float[AnyArray, "B S K Dh"],
    valid: Bool[AnyArray, "B S"] | None,
    implementation: str,
) -> Float[Array, "B S H Dh"]:
    """Every position attends to itself and to the valid ones before it.

    Args:
      q, k, v: [B, S, H, Dh] and twice [B, S, K, Dh]; K divides H.
      valid: bool [B, S], False at padding (whose outputs mean nothing), or None for no padding.
      implementation: of `choose`, other than "auto".

    Returns:
      [B, S, H, Dh] in q's dtype.
    """
    if implementation == "xla":
        return jax.nn.dot_product_attention(q, k, v, mask=_mask(q, valid), is_causal=valid is None)
    S, Dh = q.shape[1], q.shape[3]
    length, width = (-size % m for size, m in zip((S, Dh), _MULTIPLES[implementation], strict=True))
    # Causality hides the positions added at the end from all others.
    pads = ((0, 0), (0, length), (0, 0), (0, width))
    q, k, v = (jnp.pad(x, pads) for x in (q, k, v))
    if valid is not None:
        valid = jnp.pad(valid, pads[:2])
    if implementation == "cudnn":
        attended = jax.nn.dot_product_attention(
            q,
            k,
            v,
            mask=_mask(q, valid),
            is_causal=valid is None,
            scale=Dh**-0.5,
            implementation="cudnn",
        )
    else:
        attended = _on_every_device(_flash, q, k, v, valid, Dh**-0.5)
    return attended[:, :S, :, :Dh]


def cached_attention(
    q: Float[AnyArray, "B Q H Dh"],
    k: Float[AnyArray, "B K S Dh"],
    v: Float[AnyArray, "B K S Dh"],
    mask: Bool[AnyArray, "#B 1 Q S"],
) -> Float[Array, "B Q H Dh"]:
    """Attention to a cache, whose layout lets XLA read it as it lies.

    Args:
      q: [B, Q, H, Dh].
      k, v: [B, K, S, Dh]; K divides H.
      mask: of `attention_mask`.

    Returns:
      [B, Q, H, Dh] in q's dtype; softmax in float32.
    """
    B, Q, H, Dh = q.shape
    K = k.shape[1]
    grouped = q.reshape(B, Q, K, H // K, Dh)
    scores = jnp.einsum("BQKGD,BKSD->BKGQS", grouped, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, :, None], scores * Dh**-0.5, -jnp.inf)
    weights = jax.nn.softmax(scores).astype(v.dtype)
    return jnp.einsum("BKGQS,BKSD->BQKGD", weights, v).reshape(q.shape)


def key_validity(
    condition_mask: Bool[AnyArray, "B T"] | None, num_keys: int
) -> Bool[Array, "B S"] | None:
    """bool [B, num_keys] from the condition's mask [B, T]: all codes are valid; None for None."""
    if condition_mask is None:
        return None
    codes = ((0, 0), (0, num_keys - condition_mask.shape[1]))
    return jnp.pad(condition_mask, codes, constant_values=True)


def attention_mask(
    positions: Integer[AnyArray, "#B Q"], num_keys: int, valid: Bool[AnyArray, "B S"] | None = None
) -> Bool[Array, "_ 1 Q S"]:
    """Which keys each query sees: those not after it that are valid, and always itself.

    Args:
      positions: int [B or 1, Q] of the queries.
      num_keys: S; key j stands at position j.
      valid: bool [B, S], or None for no padding.

    Returns:
      bool [B or 1, 1, Q, S].
    """
    keys, positions = jnp.arange(num_keys), positions[..., None]
    mask = keys <= positions
    if valid is not None:
        mask = mask & valid[:, None, :] | (keys == positions)
    return mask[:, None]


def _mask(q, valid):
    if valid is None:
        return None
    return attention_mask(jnp.arange(q.shape[1])[None], q.shape[1], valid)


def _flash(q, k, v, valid, scale):
    from jax.experimental.pallas.ops.tpu import flash_attention as pallas

    groups = q.shape[2] // k.shape[2]
    q, k, v = (x.swapaxes(1, 2) for x in (q, *(jnp.repeat(x, groups, axis=2) for x in (k, v))))
    segments = None
    if valid is not None:
        # Padding attends within its own segment only; nothing reads its outputs.
        segments = pallas.SegmentIds(*[valid.astype(jnp.int32)] * 2)
    attended = pallas.flash_attention(q, k, v, segment_ids=segments, causal=True, sm_scale=scale)
    return attended.swapaxes(1, 2)


def _on_every_device(kernel, q, k, v, valid, scale):
    """Runs a kernel that the compiler cannot split, on each device's examples and heads."""
    if "data" not in jax.sharding.get_abstract_mesh().shape:
        return kernel(q, k, v, valid, scale)
    rows = jax.P(("data", "fsdp"))
    heads = jax.P(("data", "fsdp"), None, "tensor")
    return jax.shard_map(
        lambda *arrays: kernel(*arrays, scale),
        in_specs=(heads, heads, heads, None if valid is None else rows),
        out_specs=heads,
        check_vma=False,
    )(q, k, v, valid)
