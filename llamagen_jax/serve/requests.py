"""What an engine is asked for, and what it answers.

Axes: L codes, T condition tokens, C width of text features, H W pixels.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from llamagen_jax.inpainting import Edit
from llamagen_jax.sampling.settings import SamplingSettings


class FullError(Exception):
    """No more images may wait.

    Attributes:
      seconds: after which it is worth to ask again.
    """

    def __init__(self, seconds: float):
        super().__init__("too many images are waiting")
        self.seconds = seconds


class StoppedError(Exception):
    """The engine draws no more images."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image that is done, or what there is of it; other pixels are grey.

    Attributes:
      index: of the image in its request.
      partial: number of the partial picture, from 0; None for the whole image.
      image: uint8 [H, W, 3].
    """

    index: int
    partial: int | None
    image: np.ndarray


# Called from the engine's threads, in the order of an image's pictures.
Deliver = Callable[[Picture | Exception], None]


@dataclasses.dataclass(frozen=True)
class Request:
    """Images of one condition.

    Attributes:
      subject: a label, or a prompt that `text.prompts.check_prompts` lets pass.
      settings: of each image, whose sample id is 0.
      partial_at: after how many codes a partial picture is wanted, ascending.
      skip: whether a partial picture is left out where a later one of the image is there already.
      edit: what is kept of an image of that size; None to draw all.
      grid: rows and columns of the codes, one of the generator's `trained_grids`; None for its own.
      control: uint8 [H, W, 3] of that size, for a generator that was trained with control; None for
        none.
    """

    subject: int | str
    settings: Sequence[SamplingSettings]
    partial_at: Sequence[int] = ()
    skip: bool = False
    edit: Edit | None = None
    grid: tuple[int, int] | None = None
    control: np.ndarray | None = None


class Ticket:
    """A request that the engine has taken.

    Attributes:
      condition: what `generate` takes for one sample: "condition", an int label [] or text features
        [T, C], and for text "condition_mask", bool [T]; None until the prompt is read.
      known: what `generate` takes for one sample, int32 [L]; None where all is drawn, and until the
        image is read.
    """

    def __init__(self, request: Request, deliver: Deliver):
        self.request, self.deliver = request, deliver
        self.cancelled = False
        self.condition: dict[str, np.ndarray] | None = None
        self.known: np.ndarray | None = None
        if not isinstance(request.subject, str):
            self.condition = {"condition": np.array(request.subject, np.int32)}

    def cancel(self) -> None:
        """Draws its images no further; what is on the way may still be delivered."""
        self.cancelled = True
