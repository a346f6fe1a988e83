"""The transformer over image codes in vLLM's layers.

With guidance every request runs both branches: the null one is a second set of heads of the same
attention layers, with a cache of its own beside the first. So it can neither be scheduled apart nor
be left out, and vLLM sees one ordinary request for an image.

Axes: N tokens of all requests, G branches (1, or 2 with guidance: conditional, then null), D width,
H heads, K key-value heads, both of this process, Dh head width, V vocabulary.
"""

import math
from collections.abc import Iterable

import torch
from torch import nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import (
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
)
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper
from vllm.sequence import IntermediateTensors


class LlamaGenForCausalLM(nn.Module):
    """What vLLM runs for the folders that `folder.write` makes."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        c = vllm_config.model_config.hf_config
        if not math.isfinite(c.guidance_scale):
            raise ValueError(f"guidance_scale={c.guidance_scale} must be finite")
        self.codebook_size, self.vocab_size = c.codebook_size, c.vocab_size
        self.model = Transformer(vllm_config=vllm_config, prefix="model")
        self.output = ParallelLMHead(c.codebook_size, c.hidden_size, prefix="output")
        self.logits_processor = LogitsProcessor(c.codebook_size)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model.tok_embeddings(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Tokens [N] at their positions [N] to what `compute_logits` takes, [N, D]."""
        if inputs_embeds is not None:
            raise ValueError("LlamaGen takes class and code tokens, not embeddings")
        return self.model(input_ids, positions)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Logits [N, V] of the rows of `forward`; of classes, which are never drawn, -inf."""
        logits = self.logits_processor(self.output, hidden_states)
        if logits is None:
            return None
        return nn.functional.pad(logits, (0, self.vocab_size - self.codebook_size), value=-math.inf)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        mapper = WeightsMapper(
            orig_to_new_stacked={".w1.": (".gate_up.", 0), ".w3.": (".gate_up.", 1)},
            orig_to_new_prefix={
                name: f"model.{name}" for name in ("tok_embeddings", "layers", "norm", "freqs_cis")
            },
        )
        return AutoWeightsLoader(self).load_weights(weights, mapper=mapper)


@support_torch_compile
class Transformer(nn.Module):
    """From tokens to the guided output of the last norm."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str):
        super().__init__()
        c = vllm_config.model_config.hf_config
        self.guidance_scale = c.guidance_scale
        self.codebook_size, self.null_class = c.codebook_size, c.vocab_size - 1
        self.tok_embeddings = VocabParallelEmbedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(
            Block(vllm_config, f"{prefix}.layers.{i}") for i in range(c.num_hidden_layers)
        )
        self.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        shape = (c.max_position_embeddings, c.head_dim // 2, 2)
        self.freqs_cis = nn.Parameter(torch.empty(shape, dtype=torch.float32), requires_grad=False)

    def forward(self, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        N, guided = input_ids.shape[0], self.guidance_scale > 1
        tokens = input_ids
        if guided:
            null = torch.where(tokens < self.codebook_size, tokens, self.null_class)
            tokens = torch.stack([tokens, null], dim=1).flatten()
        x, residual = self.tok_embeddings(tokens), None
        cos_sin = self.freqs_cis[positions]
        for layer in self.layers:
            x, residual = layer(x, residual, cos_sin)
        x, _ = self.norm(x, residual)
        if not guided:
            return x
        # The output layer is linear, so guiding before it guides the logits.
        cond, uncond = x.view(N, 2, -1).unbind(1)
        return uncond + self.guidance_scale * (cond - uncond)


class Block(nn.Module):
    """Pre-norm attention and SwiGLU; vLLM's norms add the residual branches up."""

    def __init__(self, vllm_config: VllmConfig, prefix: str):
        super().__init__()
        c, quant_config = vllm_config.model_config.hf_config, vllm_config.quant_config
        self.attention_norm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.attention = SelfAttention(vllm_config, f"{prefix}.attention")
        self.ffn_norm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.feed_forward = FeedForward(
            c.hidden_size, c.intermediate_size, quant_config, f"{prefix}.feed_forward"
        )

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None, cos_sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if residual is None:
            residual, x = x, self.attention_norm(x)
        else:
            x, residual = self.attention_norm(x, residual)
        x = self.attention(x, cos_sin)
        x, residual = self.ffn_norm(x, residual)
        return self.feed_forward(x), residual


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, dim: int, hidden: int, quant_config, prefix: str):
        super().__init__()
        kept = {"bias": False, "quant_config": quant_config}
        self.gate_up = MergedColumnParallelLinear(
            dim, [hidden] * 2, prefix=f"{prefix}.gate_up", **kept
        )
        self.w2 = RowParallelLinear(hidden, dim, prefix=f"{prefix}.w2", **kept)
        self.activation = SiluAndMul()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, _ = self.gate_up(x)
        return self.w2(self.activation(x))[0]


class SelfAttention(nn.Module):
    """Causal attention with 2-D rotary positions; the branches' heads are side by side."""

    def __init__(self, vllm_config: VllmConfig, prefix: str):
        super().__init__()
        c, ways = vllm_config.model_config.hf_config, get_tensor_model_parallel_world_size()
        self.branches = 2 if c.guidance_scale > 1 else 1
        self.head_dim, self.kernel_width = c.head_dim, c.kernel_width
        self.n_heads = c.num_attention_heads // ways
        self.kv_heads = max(1, c.num_key_value_heads // ways)
        kept = {"bias": False, "quant_config": vllm_config.quant_config}
        self.wqkv = QKVParallelLinear(
            c.hidden_size,
            c.head_dim,
            c.num_attention_heads,
            c.num_key_value_heads,
            prefix=f"{prefix}.wqkv",
            **kept,
        )
        self.wo = RowParallelLinear(
            c.num_attention_heads * c.head_dim, c.hidden_size, prefix=f"{prefix}.wo", **kept
        )
        self.attention = Attention(
            self.branches * self.n_heads,
            self.kernel_width,
            scale=c.head_dim**-0.5,
            num_kv_heads=self.branches * self.kv_heads,
            cache_config=vllm_config.cache_config,
            quant_config=vllm_config.quant_config,
            prefix=f"{prefix}.attention",
        )

    def forward(self, x: torch.Tensor, cos_sin: torch.Tensor) -> torch.Tensor:
        """x [N G, D], the branches of a token next to each other; cos_sin [N, Dh/2, 2]."""
        N, Dh = cos_sin.shape[0], self.head_dim
        qkv = self.wqkv(x)[0].view(N, self.branches, -1, Dh)
        q, k, v = qkv.split([self.n_heads, self.kv_heads, self.kv_heads], dim=2)
        # Query head h reads key-value head h // (H / K), so branches do not mix.
        q, k, v = (heads.reshape(N, -1, Dh) for heads in (q, k, v))
        q, k, v = (self._padded(heads) for heads in (rotate(q, cos_sin), rotate(k, cos_sin), v))
        attended = self.attention(q, k, v).view(N, -1, self.kernel_width)[..., :Dh]
        return self.wo(attended.reshape(x.shape[0], -1))[0]

    def _padded(self, heads: torch.Tensor) -> torch.Tensor:
        """Heads [N, _, Dh] side by side as the kernel takes them."""
        return nn.functional.pad(heads, (0, self.kernel_width - self.head_dim)).flatten(1)


def rotate(x: torch.Tensor, cos_sin: torch.Tensor) -> torch.Tensor:
    """Turns the pairs (2i, 2i+1) of heads x [N, _, Dh] by cos_sin [N, Dh/2, 2], in float32."""
    first, second = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos_sin[:, None].unbind(-1)
    turned = torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return turned.flatten(-2).to(x.dtype)
