"""Sizes of the transformer over image codes."""

import dataclasses

from llamagen_jax.errors import check_finite


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Sizes of a class- or text-conditional transformer; the defaults are GPT-B at 256 px.

    Attributes:
      n_kv_heads: key-value heads shared by groups of query heads; None for one per query head.
      grid_size: side of a square grid of codes, or its (rows, columns); see `grid`.
      condition: "class" (a label below num_classes; num_classes itself is the null class) or
        "text" (caption_dim features for condition_length tokens).
      condition_length: condition tokens before the codes; 1 for classes, 120 for text.
      multiple_of: the FFN width is 8/3 dim rounded up to a multiple of this.
      condition_rope: "zero" as in the original, where the rotary table is zero at condition
        positions so that their queries and keys vanish, or "identity" for unrotated ones.
      condition_dropout: share of the training conditions replaced by the null condition.
      token_dropout: of the embeddings' values, those of the condition among them.
      code_dropout: share of the codes whose embedding is left out whole in training, so that a
        model of few images reads its condition instead of knowing the image by the codes before.
      drop_path: when positive, whole residual branches are dropped at a rate that grows linearly
        with depth up to this one, instead of `residual_dropout` and `ffn_dropout`.
      dtype: compute dtype; parameters, norms, softmax and logits stay float32.

    Raises:
      ValueError: a value is impossible (the message names the field).
    """

    dim: int = 768
    n_layers: int = 12
    n_heads: int = 12
    n_kv_heads: int | None = None
    vocab_size: int = 16384
    grid_size: int | tuple[int, ...] | list[int] = 16
    condition: str = "class"
    num_classes: int = 1000
    condition_length: int = 1
    caption_dim: int = 2048
    multiple_of: int = 256
    rope_base: float = 10000.0
    norm_eps: float = 1e-5
    condition_rope: str = "zero"
    condition_dropout: float = 0.1
    token_dropout: float = 0.1
    code_dropout: float = 0.0
    residual_dropout: float = 0.1
    ffn_dropout: float = 0.1
    drop_path: float = 0.0
    dtype: str = "float32"

    def __post_init__(self):
        check_finite(self)
        self._check_grid()
        for field in ("dim", "n_heads", "kv_heads"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)} must be positive")
        if self.dim % self.n_heads or self.head_dim % 4:
            raise ValueError(
                f"dim={self.dim} must be n_heads={self.n_heads} times a multiple of 4 (2-D RoPE)"
            )
        if self.n_heads % self.kv_heads:
            raise ValueError(f"n_kv_heads={self.n_kv_heads} must divide n_heads={self.n_heads}")
        choices = {
            "condition": ("class", "text"),
            "condition_rope": ("zero", "identity"),
            "dtype": ("float32", "bfloat16"),
        }
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field}={getattr(self, field)!r} must be one of {allowed}")
        if self.condition == "class" and self.condition_length != 1:
            raise ValueError(f"condition_length={self.condition_length} must be 1 for classes")
        lengths = ("vocab_size", "num_classes", "condition_length", "caption_dim", "multiple_of")
        for field in ("n_layers", *lengths, "rope_base", "norm_eps"):
            if getattr(self, field) <= 0:
                raise ValueError(f"{field}={getattr(self, field)} must be positive")
        rates = ("condition_dropout", "token_dropout", "code_dropout")
        rates = (*rates, "residual_dropout", "ffn_dropout")
        for field in (*rates, "drop_path"):
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)} must be in [0, 1)")

    def _check_grid(self):
        size = self.grid_size
        sides = size if isinstance(size, tuple | list) else (size, size)
        if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
            raise ValueError(f"grid_size={size!r} must be a positive side or (rows, columns)")
        # One spelling for each grid, so that equal configurations compare equal.
        rows, columns = sides
        object.__setattr__(self, "grid_size", rows if rows == columns else (rows, columns))

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the codes, which are read row by row."""
        size = self.grid_size
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    @property
    def kv_heads(self) -> int:
        return self.n_kv_heads or self.n_heads

    @property
    def ffn_dim(self) -> int:
        return -(-(8 * self.dim // 3) // self.multiple_of) * self.multiple_of

    @property
    def code_length(self) -> int:
        rows, columns = self.grid
        return rows * columns
