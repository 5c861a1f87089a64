"""Image files: their sizes from the headers alone, and their pixels; an error names the file.

Compared with Detectron2's `read_image`: 16-bit grey images keep their contrast (Pillow cuts every value above
255), TIFF files with an EXIF orientation are turned once instead of twice, EXIF data behind the pixels of a
PNG are not looked for, images beyond `PIL.Image.MAX_IMAGE_PIXELS` are refused before they are decoded.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from longtail_det2.utils.errors import DataError
from longtail_det2.utils.wording import printable

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
"""What a file may be, whatever its name: none of these formats makes Pillow start another program."""
_ORIENTATION, _WIDTH, _HEIGHT = 0x0112, 0x0100, 0x0101
_IMAGES_PER_TASK = 512

logger = logging.getLogger(__name__)


def read_image(
    path: str | os.PathLike[str], image_format: str | None = "BGR", *, image_id: object = None
) -> np.ndarray:
    """Read an image, upright.

    Grey images become three equal channels, CMYK becomes RGB, transparency is dropped (as in Detectron2), and
    of 16 bits per channel the upper 8 are kept.

    Args:
        path: of the file, or a URL that Detectron2's `PathManager` knows.
        image_format: a mode of Pillow ("RGB", "L"), "BGR", "YUV-BT.601", or None for the file's own mode.
        image_id: named in the message, if it is given.

    Returns:
        (H, W, C) uint8 (float for "YUV-BT.601").

    Raises:
        DataError: there is no such file, it is no image that can be decoded, or it is too large.
    """
    # Not at the top: the processes that read headers need neither Detectron2 nor torch, which take seconds.
    from detectron2.data.detection_utils import convert_PIL_to_numpy
    from detectron2.utils.file_io import PathManager

    name = f"{path}" if image_id is None else f"{path} (image {image_id!r})"
    try:
        with _open_image(path, PathManager.open) as image:
            return convert_PIL_to_numpy(_decode(image), image_format)
    except FileNotFoundError:
        raise DataError(
            f"{name}: image not found; check the image folder that the data set was registered with"
        ) from None
    # Decoders raise what they like on damaged files: struct.error, IndexError, SyntaxError, MemoryError ...
    except Exception as error:
        raise DataError(
            f"{name}: cannot read the image ({_explain(path, error)}); replace the file or remove it from "
            "the annotations"
        ) from error


def read_image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(height, width) in pixels of the upright image that :func:`read_image` gives, from the header alone.

    Raises:
        OSError: no such file, no regular file, or no image of a known format.
        ValueError: too large, or whatever else a damaged header makes Pillow raise.
    """
    with _open_image(path) as image:
        width, height = image.size
        if image.format == "TIFF":  # whose `size` is turned already, by some versions of Pillow
            tags: Any = image
            width, height = int(tags.tag_v2[_WIDTH]), int(tags.tag_v2[_HEIGHT])
        return (width, height) if _orientation(image) >= 5 else (height, width)


def read_image_sizes(
    root: Path, file_names: np.ndarray, workers: int, progress: bool = False
) -> tuple[np.ndarray, list[tuple[int, str]]]:
    """Sizes of many images.

    Args:
        root: folder that the file names are relative to.
        file_names: (n,) bytes, UTF-8.
        workers: processes; up to 1 means this one. They are spawned: a script that comes here needs the usual
            `if __name__ == "__main__":` guard.
        progress: show a progress bar.

    Returns:
        ((n, 2) int32 of (height, width), 0 where unreadable; and (index, reason) of each unreadable one).
    """
    sizes = np.zeros((len(file_names), 2), dtype=np.int32)
    unreadable: list[tuple[int, str]] = []
    read, names = partial(_try_image_size, os.fsencode(root)), file_names.tolist()
    workers = min(workers, -(-len(names) // _IMAGES_PER_TASK))
    with ExitStack() as stack:
        results = map(read, names)
        if workers > 1:
            pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
            results = stack.enter_context(pool).map(read, names, chunksize=_IMAGES_PER_TASK)
        bar = tqdm(results, "image headers", len(names), unit="image", disable=not progress)
        for index, (size, problem) in enumerate(bar):
            sizes[index] = size
            if problem:
                unreadable.append((index, problem))
    return sizes, unreadable


def find_images(root: Path, image_ids: np.ndarray) -> np.ndarray:
    """File of each image, wherever below `root` it lies (flat, `train/`, by first hex digit, ...).

    Links to folders are followed. `image_ids` are (n,) bytes, UTF-8, each once: file names without suffix.

    Returns:
        (n,) bytes: path relative to `root` with forward slashes; empty where there is no file.

    Raises:
        DataError: `root` is no folder, or two files below it have the name of one wanted image.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder of images")
    places = {image_id: place for place, image_id in enumerate(image_ids.tolist())}
    names = [b""] * len(places)
    for file in _walk(os.fsencode(root)):
        stem, suffix = os.path.splitext(file)
        place = places.get(os.path.basename(stem))
        if place is None or suffix.lower().decode(errors="replace") not in SUFFIXES:
            continue
        if names[place]:
            first, second = sorted(one.decode(errors="replace") for one in (names[place], file))
            raise DataError(
                f"{root}: two files could be one image: {first} and {second}; remove one, or give a folder "
                "with one split"
            )
        names[place] = file
    return np.array(names, dtype=np.bytes_)


@contextmanager
def _open_image(
    path: str | os.PathLike[str], open_file: Callable[[str, str], IO[Any]] = open
) -> Iterator[Image.Image]:
    """The image, its header read and its size checked."""
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe or a device would block, or never end
        raise OSError("not a regular file")
    with open_file(str(path), "rb") as file, Image.open(file, formats=FORMATS) as image:
        width, height = image.size
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and width * height > limit:
            raise Image.DecompressionBombError(f"{width} x {height} pixels exceed the limit of {limit}")
        yield image


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 (upright) where there is none or it cannot be read."""
    try:
        # The method of the base class: that of PNG decodes all pixels to look for EXIF data behind them.
        value = Image.Image.getexif(image).get(_ORIENTATION)
    except Exception:  # damaged EXIF data raise many things, and say nothing about the pixels
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _decode(image: Image.Image) -> Image.Image:
    """The upright image with 8 bits per channel."""
    is_turned = image.format != "TIFF" and _orientation(image) > 1
    image.load()  # which turns a TIFF upright
    if is_turned:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("32-bit numbers of unknown range; convert the image to 8 or 16 bits per channel")
    return image


def _explain(path: str | os.PathLike[str], error: Exception) -> str:
    """Why a file cannot be read as an image, in a few words."""
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"too large: {error}; shrink it"
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        return "the file is empty, 0 bytes"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image of a known format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return printable(str(error) if str(error) and isinstance(error, (OSError, ValueError)) else repr(error))


def _try_image_size(root: bytes, name: bytes) -> tuple[tuple[int, int], str]:
    """(height, width) of an image, and why it cannot be read, "" if it can."""
    path = os.fsdecode(os.path.join(root, name))
    try:
        return read_image_size(path), ""
    except Exception as error:  # decoders raise what they like on damaged headers
        return (0, 0), _explain(path, error)


def _walk(root: bytes) -> Iterator[bytes]:
    """Files below `root`, relative to it; each folder once, whatever links point to it."""
    seen: set[bytes] = set()
    warn = partial(logger.warning, "folder passed over (%s)")
    for folder, below, files in os.walk(root, followlinks=True, onerror=warn):
        if (real := os.path.realpath(folder)) in seen:
            below.clear()
            continue
        seen.add(real)
        below[:] = [name for name in below if not name.startswith(b".")]
        start = os.path.relpath(folder, root)
        yield from files if start == b"." else (start + b"/" + name for name in files)
