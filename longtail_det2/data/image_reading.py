"""Reading image files, whatever is wrong with them: an array, or an error that names the file.

Compared with Detectron2's `read_image`: 16-bit grey images keep their contrast (Pillow cuts every value above
255), TIFF files with an EXIF orientation are turned once instead of twice, files that claim an enormous size
are refused before they are decoded, and whatever a decoder raises becomes a `DataError`.
"""

from __future__ import annotations

import os
from typing import IO, cast

import numpy as np
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.utils.file_io import PathManager
from PIL import Image

from longtail_det2.data.image_sizes import MAX_PIXELS, check_pixels, explain, open_image, orientation
from longtail_det2.utils.errors import DataError

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(
    path: str | os.PathLike[str],
    image_format: str | None = "BGR",
    *,
    max_pixels: int = MAX_PIXELS,
    image_id: object = None,
    option: str = "INPUT.MAX_PIXELS",
) -> np.ndarray:
    """Reads an image, upright.

    Grey images become three equal channels, CMYK becomes RGB, transparency is dropped (as in Detectron2), and
    of 16 bits a channel the upper 8 are kept.

    Args:
        path: of the file, or a URL that Detectron2's `PathManager` knows.
        image_format: a mode of Pillow ("RGB", "L"), "BGR", "YUV-BT.601", or None for the file's own mode.
        max_pixels: larger images are an error.
        image_id: named in the message, if it is given.
        option: how the user sets `max_pixels`, for the message.

    Returns:
        (H, W, C) uint8 (float for "YUV-BT.601").

    Raises:
        DataError: there is no such file, it is no image that can be decoded, or it is too large.
    """
    name = f"{path}" if image_id is None else f"{path} (image {image_id!r})"
    try:
        with PathManager.open(str(path), "rb") as file, open_image(cast(IO[bytes], file)) as image:
            try:
                check_pixels(*image.size, max_pixels, option)
            except ValueError as error:
                raise DataError(f"{name}: {error}") from None
            return convert_PIL_to_numpy(_decode(image, name), image_format)
    except FileNotFoundError:
        raise DataError(
            f"{name}: image not found; check the image folder that the data set was registered with"
        ) from None
    except DataError:
        raise
    # Decoders raise what they like on damaged files: struct.error, IndexError, SyntaxError, MemoryError ...
    except Exception as error:
        raise DataError(
            f"{name}: cannot read the image ({explain(path, error)}); replace the file or remove it from the "
            "annotations"
        ) from error


def _decode(image: Image.Image, name: str) -> Image.Image:
    """The upright image with 8 bits a channel."""
    image.load()  # which turns a TIFF upright, and forgets its orientation
    turn = _TURNS.get(orientation(image))
    image = _eight_bit(image, name)
    return image if turn is None else image.transpose(turn)


def _eight_bit(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise DataError(
            f"{name}: the pixels are 32-bit numbers, whose range nobody knows; convert the image to 8 or 16 "
            "bits a channel"
        )
    return image
