"""Names in the weights of the original LlamaGen (github.com/FoundationVision/LlamaGen).

They are those of its modules in `autoregressive/models/gpt.py` and
`tokenizer/tokenizer_image/vq_model.py`.
"""

from llamagen_jax.weights.names import NameTable

LLAMA = NameTable(
    names={
        "codes_embedding": "tok_embeddings",
        "condition_embedding/classes": "cls_embedding.embedding_table",
        "condition_embedding/null_features": "cls_embedding.uncond_embedding",
        "condition_embedding/fc1": "cls_embedding.cap_proj.fc1",
        "condition_embedding/fc2": "cls_embedding.cap_proj.fc2",
        "layers/attention_norm": "layers.{}.attention_norm",
        "layers/attention/q": "layers.{}.attention.wqkv",
        "layers/attention/k": "layers.{}.attention.wqkv",
        "layers/attention/v": "layers.{}.attention.wqkv",
        "layers/attention/out": "layers.{}.attention.wo",
        "layers/ffn_norm": "layers.{}.ffn_norm",
        "layers/gate": "layers.{}.feed_forward.w1",
        "layers/up": "layers.{}.feed_forward.w3",
        "layers/down": "layers.{}.feed_forward.w2",
        "norm": "norm",
        "output": "output.weight",
    },
    kernels=("output",),
    # The rotary table, the attention mask and the key-value cache.
    ignored=r"freqs_cis|causal_mask|layers\.\d+\.attention\.kv_cache\.[kv]_cache",
)

VQGAN = NameTable(
    names={
        r"(\w+)/(conv_in|norm_out|conv_out)": r"\1.\2",
        r"(\w+)/level_(\d+)_res_(\d+)/((?:norm|conv)[12])": r"\1.conv_blocks.\2.res.\3.\4",
        r"(\w+)/level_(\d+)_res_(\d+)/shortcut": r"\1.conv_blocks.\2.res.\3.nin_shortcut",
        r"(\w+)/level_(\d+)_attention_(\d+)/(norm|[qkv])": r"\1.conv_blocks.\2.attn.\3.\4",
        r"(\w+)/level_(\d+)_attention_(\d+)/out": r"\1.conv_blocks.\2.attn.\3.proj_out",
        r"(\w+)/level_(\d+)_(downsample|upsample)/conv": r"\1.conv_blocks.\2.\3.conv",
        r"(\w+)/middle_res_0/((?:norm|conv)[12])": r"\1.mid.0.\2",
        r"(\w+)/middle_attention/(norm|[qkv])": r"\1.mid.1.\2",
        r"(\w+)/middle_attention/out": r"\1.mid.1.proj_out",
        r"(\w+)/middle_res_1/((?:norm|conv)[12])": r"\1.mid.2.\2",
        r"(quant_conv|post_quant_conv)": r"\1",
        "quantizer/codebook": "quantize.embedding.weight",
    },
    # Code statistics of the original's training, without which it does not load strictly.
    buffers={"quantize.codebook_used": (65536,)},
)
