"""Sizes of the transformer over image codes."""

import dataclasses
import math

from llamagen_jax.errors import InputError, check_finite

# Width of a head of the encoder of control images.
CONTROL_HEAD_DIM = 64


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Sizes of a class- or text-conditional transformer; the defaults are GPT-B at 256 px.

    Attributes:
      n_kv_heads: key-value heads shared by groups of query heads; None for one per query head.
      grid_size: side of a square grid of codes, or its (rows, columns); see `grid`.
      grids: (rows, columns) of all grids that the model is trained for, each of which has an
        embedding that its condition tokens carry; () where it is trained for `grid` alone.
      condition: "class" (a label below num_classes; num_classes itself is the null class) or
        "text" (caption_dim features for condition_length tokens).
      condition_length: condition tokens before the codes; 1 for classes, 120 for text.
      multiple_of: the FFN width is 8/3 dim rounded up to a multiple of this.
      condition_rope: "zero" as in the original, where the rotary table is zero at condition
        positions so that their queries and keys vanish, or "identity" for unrotated ones.
      condition_dropout: share of the training conditions replaced by the null condition.
      token_dropout: of the embeddings' values, those of the condition among them.
      code_dropout: in training every image has a share of its codes, drawn anew between 0 and this,
        replaced by a learned vector, so that a model of few images reads its condition instead of
        knowing the image by the codes before.
      drop_path: when positive, whole residual branches are dropped at a rate that grows linearly
        with depth up to this one, instead of `residual_dropout` and `ffn_dropout`.
      control_layers: of the encoder of control images, see `control.ControlEncoder`; 0 for a model
        without control.
      control_dim: width of that encoder, a multiple of 64.
      control_patch: side in pixels of the patch of a control image where a code lies: the
        downsampling of the tokenizer.
      control_dropout: share of the training controls that are left out, whether or not the
        condition is.
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
    grids: tuple | list = ()
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
    control_layers: int = 0
    control_dim: int = 384
    control_patch: int = 16
    control_dropout: float = 0.1
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
        rates = [field for field in vars(self) if field.endswith("_dropout")]
        for field in (*rates, "drop_path"):
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)} must be in [0, 1)")
        self._check_control()

    def _check_control(self):
        if self.control_layers < 0:
            raise ValueError(f"control_layers={self.control_layers} must not be negative")
        if self.control_patch < 1:
            raise ValueError(f"control_patch={self.control_patch} must be positive")
        if self.control_dim < 1 or self.control_dim % CONTROL_HEAD_DIM:
            raise ValueError(
                f"control_dim={self.control_dim} must be a multiple of {CONTROL_HEAD_DIM}"
            )

    def _check_grid(self):
        size = self.grid_size
        sides = size if isinstance(size, tuple | list) else (size, size)
        if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
            raise ValueError(f"grid_size={size!r} must be a positive side or (rows, columns)")
        # One spelling for each grid, so that equal configurations compare equal.
        rows, columns = sides
        object.__setattr__(self, "grid_size", rows if rows == columns else (rows, columns))
        for grid in self.grids:
            sides = grid if isinstance(grid, tuple | list) else ()
            if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
                raise ValueError(f"grids has {grid}: it must hold pairs of (rows, columns)")
        grids = tuple((rows, columns) for rows, columns in self.grids)
        if len(set(grids)) < len(grids):
            raise ValueError(f"grids={grids} must be different")
        object.__setattr__(self, "grids", grids)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the codes, which are read row by row."""
        size = self.grid_size
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    @property
    def trained_grids(self) -> tuple[tuple[int, int], ...]:
        """All grids that the model is trained for."""
        return tuple(self.grids) or (self.grid,)

    def nearest_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """The grid of `trained_grids` of the nearest aspect ratio, and of those of nearest area."""

        def distance(trained: tuple[int, int]) -> tuple[float, float]:
            rows, columns = math.log(trained[0] / grid[0]), math.log(trained[1] / grid[1])
            return abs(rows - columns), abs(rows + columns)

        return min(self.trained_grids, key=distance)

    def size_index(self, grid: tuple[int, int]) -> int:
        """Which of `trained_grids` a grid is; InputError where it is none."""
        if grid not in self.trained_grids:
            known = ", ".join(f"{rows}x{columns}" for rows, columns in self.trained_grids)
            raise InputError(
                f"the model is not trained for a grid of {grid[0]}x{grid[1]} codes, but for {known}"
            )
        return self.trained_grids.index(grid)

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

    @property
    def control_size(self) -> tuple[int, int]:
        """Height and width of control images in pixels."""
        rows, columns = self.grid
        return rows * self.control_patch, columns * self.control_patch

    @property
    def control_depths(self) -> tuple[int, ...]:
        """The layers before which control is added: the first, and those at each third."""
        return tuple(sorted({third * self.n_layers // 3 for third in range(3)}))
