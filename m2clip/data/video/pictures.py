"""Single pictures, opened by their content in the few formats that frames are kept in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from m2clip.data.video.base import VideoError, check_size
from m2clip.files.disk import open_regular

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".bmp", ".webp"])
# For others, such as PostScript, Pillow starts a program.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP")


def open_picture(path: Path, file: BinaryIO) -> Image:
    """A picture of an open file, as Pillow has it.

    Raises:
        VideoError: it is too large.
        Exception: of many kinds, Pillow's own and others, for what is no picture in a known format.
    """
    from PIL import Image

    # Pillow takes memory for the whole of a WebP when it opens it.
    if (size := _webp_size(file.read(30))) is not None:
        check_size(path, *size)
    file.seek(0)
    image = Image.open(file, formats=_FORMATS)
    check_size(path, *image.size)
    return image


def is_webp(head: bytes) -> bool:
    """Whether a file begins as WebP does."""
    return head[:4] == b"RIFF" and head[8:12] == b"WEBP"


def _webp_size(head: bytes) -> tuple[int, int] | None:
    """Width and height that the first 30 bytes of a WebP tell."""
    if not is_webp(head) or len(head) < 30:
        return None
    if head[12:16] == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF


def read_picture(path: Path) -> np.ndarray:
    """(3, H, W) uint8 of a picture, turned as its EXIF orientation says.

    Raises:
        VideoError: it is no regular file, no picture, too large or damaged.
    """
    from PIL import ImageOps, UnidentifiedImageError

    try:
        with open_regular(path) as file, open_picture(path, file) as image:
            return rgb(ImageOps.exif_transpose(image)).transpose(2, 0, 1)
    except FileNotFoundError:
        raise VideoError(f"{path}: no such image") from None
    except VideoError:
        raise
    except UnidentifiedImageError:
        raise VideoError(f"{path}: not a readable image (neither JPEG, PNG, WebP nor BMP)") from None
    except Exception as error:
        # What Pillow raises for a damaged file is not limited to its own exceptions.
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoError(f"{path}: not a readable image ({' '.join(reason.split())})") from None


def rgb(image: Image) -> np.ndarray:
    """(H, W, 3) uint8 of a picture of any kind, without its transparency."""
    if image.mode.startswith("I"):
        # 16 bits, which conversion would clip. Of coloured ones Pillow drops the lower eight as well.
        grey = np.clip(np.asarray(image), 0, 0xFFFF) >> 8
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    return np.asarray(image.convert("RGB"))
