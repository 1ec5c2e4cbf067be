"""How much of the waiting images is encoded between two steps of answers that somebody watches."""

import math

FULL_TILES, WATCHED_PARTS, PROMPT_PARTS = 4, 9, 2
"""Between two steps of answers that somebody watches, a GPU encodes at most nine parts of an image of four tiles.

If it has read prompts since the last step, which takes as long as two or three parts, it encodes two fewer. In all that
is up to about 40 ms on an H200; smaller images have more parts in that time. With more parts, more images a second
would be answered where many wait, but each answer would stop for longer.
"""


def tiles_between_steps(device: str, lacking: int, *, watched: bool, has_read: bool) -> float:
    """Return how many tiles may be in the parts of images that are encoded between two steps.

    ``lacking`` requests wait for an image, ``watched`` says that somebody watches the answers that are stepped, and
    ``has_read`` that prompts have been read since the last step.

    >>> [tiles_between_steps("cuda", lacking, watched=True, has_read=False) for lacking in (1, 64)]
    [4, 36]
    >>> tiles_between_steps("cuda", 64, watched=True, has_read=True)
    28
    """
    if device == "cpu":
        return 1
    return FULL_TILES * min(lacking, WATCHED_PARTS - PROMPT_PARTS * has_read) if watched else math.inf
