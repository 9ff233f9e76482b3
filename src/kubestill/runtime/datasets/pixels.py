"""Decode one image: bytes of a file format in, numbers out, or the rule that it breaks.

Pillow reads the header first, and what it says decides; only then is anything unpacked. Formats are
listed, so that no decoder runs that calls another program.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

Mode = Literal["grey", "rgb"]

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What is decoded; Pillow reads PGM, PBM and PNM as PPM, and photos with a preview as JPEG."""
MAX_PIXELS = 50_000_000
"""Of one image, by its header: 150 MB of RGB."""

_ORIENTATION = 0x0112
_TURNED = range(2, 9)
"""Orientations that are not upright; anything else says nothing."""
_GREY, _RGB = ("L", "1", "LA"), ("RGB", "P", "PA", "RGBA", "RGBX")


class Broken(ValueError):
    """An image that cannot be used.

    The message is the rule that it breaks and the remedy, the same for every image that breaks it.
    """


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One image."""

    pixels: NDArray[np.uint8]
    """[C, H, W], with 1 or 3 channels."""
    mode: Mode
    """As it was stored."""
    size: tuple[int, int]
    """Height and width as it was stored, upright."""
    notes: tuple[str, ...] = ()
    """What was done to it besides decoding."""


@contextmanager
def only_headers_first() -> Generator[None, None, None]:
    """Make Pillow refuse what it only warns of, while images are decoded, in whichever thread."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        # Odd metadata is no reason to stop: pixels are what counts.
        warnings.filterwarnings("ignore", module="PIL")
        yield


def decode(
    content: bytes | None, *, mode: Mode | None = None, size: tuple[int, int] | None = None
) -> Picture:
    """Decode an image.

    Args:
        content: A file's bytes.
        mode: Convert it to grey, by the luma of ITU-R BT.601, or to RGB; None keeps what it is.
        size: Resize it to this height and width, bilinearly over all pixels that a new one covers;
            None keeps its size.

    Raises:
        Broken: It is no image, damaged, or of a kind that has no one array of bytes.
    """
    if not content:
        raise Broken("hold no image, null or without a byte; drop these rows")
    image = _opened(content)
    try:
        _check_header(image)
        if image.format == "PNG":
            # Decoding stops at the last pixel; this reads on, and compares every checksum.
            Image.open(io.BytesIO(content), formats=["PNG"]).verify()
        turned = image.getexif().get(_ORIENTATION, 1) in _TURNED
        image.load()
        upright = ImageOps.exif_transpose(image) if turned else image
    except (Broken, MemoryError):
        raise
    except Exception as error:  # whatever a parser makes of a damaged file: any kind, any message
        raise Broken("are cut off or damaged; copy them again") from error
    notes = ["turned as its EXIF orientation says"] if turned else []
    if image.has_transparency_data:
        upright, opaque = _without_alpha(upright)
        if not opaque:
            raise Broken("have transparent pixels; put them on a background of your choice")
        notes.append("an alpha channel without a transparent pixel left out")
    stored: Mode = "grey" if upright.mode in _GREY else "rgb"
    upright = upright.convert("L" if (mode or stored) == "grey" else "RGB")
    full = (upright.height, upright.width)
    if size is not None and size != full:
        upright = upright.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    if mode not in (None, stored):
        notes.append(f"converted from {stored} to {mode}")
    pixels = np.asarray(upright, np.uint8)
    channels_first = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return Picture(
        pixels=np.ascontiguousarray(channels_first), mode=stored, size=full, notes=tuple(notes)
    )


def _opened(content: bytes) -> ImageFile.ImageFile:
    try:
        return Image.open(io.BytesIO(content), formats=FORMATS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise _too_large() from error
    except Exception as error:  # Headers of strangers: whatever a parser says, it is no image.
        known = ", ".join(FORMATS)
        rule = f"are no images of a known format, or cut off before their sizes; give {known}"
        raise Broken(rule) from error


def _check_header(image: ImageFile.ImageFile) -> None:
    """Refuse what has no one array of bytes, before a pixel is unpacked.

    Raises:
        Broken: It is such an image.
    """
    if image.width * image.height > MAX_PIXELS:
        raise _too_large()
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise Broken("are animated or have several pages; save one frame of each")
    deep = ";16" in str(image.tile) or image.mode[0] in "IF"
    # PPM says its largest value instead of a number of bits.
    tiles = cast("Any", image.tile)
    if deep or any(tile[0][:3] == "ppm" and tile[3][1] > 255 for tile in tiles):
        raise Broken("have more than 8 bits a channel; scale them to 0 to 255 as you see fit")
    if image.mode not in (*_GREY, *_RGB):
        raise Broken(f"are {image.mode}, whose colours depend on a profile; convert them to RGB")


def _too_large() -> Broken:
    return Broken(f"have more than {MAX_PIXELS:,} pixels; shrink them first")


def _without_alpha(image: Image.Image) -> tuple[Image.Image, bool]:
    """Return the image without its alpha channel, and whether every pixel is opaque."""
    grey = image.mode in _GREY
    whole = image.convert("LA" if grey else "RGBA")
    opaque = whole.getchannel("A").getextrema() == (255, 255)
    return whole.convert("L" if grey else "RGB"), opaque
