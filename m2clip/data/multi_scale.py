"""MSTA's augmentation of a whole clip: a crop of one of a few sizes and places, a flip, colour jitter, grey clips.

Its sizes, places and probabilities are those of the published training logs. How far colours are moved is not told
there and is taken from X-CLIP's public data code, whose pipeline has the same steps. That code jitters each frame by
itself; here all frames of a clip get the same change.
"""

from __future__ import annotations

import random

from torch import Tensor

from m2clip.data.boxes import Pair, largest_within

SCALES = (1.0, 0.875, 0.75, 0.66)
# Scales of a crop's height and width are neighbours, or equal.
PAIRS = tuple((high, wide) for i, high in enumerate(SCALES) for j, wide in enumerate(SCALES) if abs(i - j) <= 1)
# Top and left of a crop, in halves of the margin.
PLACES = ((0, 0), (0, 2), (2, 0), (2, 2), (1, 1))
FLIP, JITTER, GRAY = 0.5, 0.8, 0.2  # probabilities
_SPREADS = (0.4, 0.4, 0.2)  # of the factors on brightness, contrast and saturation
_HUE = 0.1  # largest change, in turns


def multi_scale_crop(frames: Tensor, box: Pair, flip: bool, rng: random.Random) -> Tensor:
    """A crop at a corner or the centre; half of the clips mirrored if `flip`.

    Its sides are shares of those of the largest crop with the aspect of the result, for square ones of the short side.

    Args:
        frames: (T, 3, H, W) uint8.
        box: (height, width) of the result, in pixels.
        flip: whether some are mirrored.
        rng: of all choices.

    Returns:
        (T, 3, height, width) uint8.
    """
    from torchvision.transforms.v2 import functional as F

    extents = frames.shape[-2:]
    whole = largest_within(extents, box)
    height, width = (max(int(side * scale), 1) for side, scale in zip(whole, rng.choice(PAIRS), strict=True))
    down, right = rng.choice(PLACES)
    top, left = (extents[0] - height) * down // 2, (extents[1] - width) * right // 2
    frames = F.resized_crop(frames, top, left, height, width, list(box), antialias=True)
    return frames.flip(-1) if flip and rng.random() < FLIP else frames


def color_jitter(frames: Tensor, rng: random.Random) -> Tensor:
    """Brightness, contrast, saturation and hue of most clips changed in random order; some clips made grey.

    Args:
        frames: (T, 3, H, W) uint8, as is the result; all frames get the same changes.
    """
    from torchvision.transforms.v2 import functional as F

    if rng.random() < JITTER:
        factors = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)
        changes = [
            (change, rng.uniform(1 - spread, 1 + spread)) for change, spread in zip(factors, _SPREADS, strict=True)
        ]
        changes.append((F.adjust_hue, rng.uniform(-_HUE, _HUE)))
        rng.shuffle(changes)
        for change, amount in changes:
            frames = change(frames, amount)
    if rng.random() < GRAY:
        frames = F.rgb_to_grayscale(frames, num_output_channels=3)
    return frames
