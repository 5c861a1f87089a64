"""Image files of a folder and their sizes, from the headers alone, in parallel processes."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from longtail_det2.utils.errors import DataError

MAX_PIXELS = 178_956_970
"""Images with more pixels are refused by default. It is Pillow's own limit: half a gigabyte of RGB."""

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
_ORIENTATION_TAG = 0x0112
_WIDTH_TAG, _HEIGHT_TAG = 0x0100, 0x0101
_TRANSPOSED = frozenset({5, 6, 7, 8})
_PNG_KEYWORDS = (b"Raw profile type exif", b"XML:com.adobe.xmp")
_IMAGES_PER_TASK = 512


def find_images(root: Path, image_ids: np.ndarray) -> np.ndarray:
    """File of each image, wherever below `root` it lies (flat, `train/`, by first hex digit, ...).

    Args:
        root: folder that is walked; links to folders are followed.
        image_ids: (n,) bytes, UTF-8, each id once: the file's name without its suffix.

    Returns:
        (n,) bytes: path relative to `root` with forward slashes; empty where there is no file.

    Raises:
        DataError: `root` is no folder, or two files below it have the name of one wanted image.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder of images")
    stems: list[bytes] = []
    files: list[bytes] = []
    for file in _walk(os.fsencode(root), b""):
        stem, suffix = os.path.splitext(file)
        if suffix.lower().decode(errors="replace") in SUFFIXES:
            stems.append(os.path.basename(stem))
            files.append(file)
    wanted = pa.array(image_ids.tolist(), pa.binary())
    lookup = pc.SetLookupOptions(wanted)
    found = pc.call_function("index_in", [pa.array(stems, pa.binary())], lookup)
    chosen = np.flatnonzero(found.is_valid().to_numpy(zero_copy_only=False))
    targets = found.drop_null().to_numpy()
    _refuse_ambiguous(root, targets, chosen, files)
    picked = np.array([files[place] for place in chosen.tolist()], dtype=np.bytes_)
    names = np.zeros(len(image_ids), dtype=picked.dtype if len(picked) else "S1")
    names[targets] = picked
    return names


def read_image_size(
    path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS, option: str = "max_pixels"
) -> tuple[int, int]:
    """(height, width) in pixels of an upright image, as `longtail_det2.data.image_reading` gives it.

    Only the file's header is read.

    Raises:
        OSError: no such file, or no image that Pillow knows.
        ValueError: more than `max_pixels`, or whatever else a damaged header makes Pillow raise.
    """
    with open(path, "rb") as file, open_image(file) as image:
        width, height = image.size
        check_pixels(width, height, max_pixels, option)
        if image.format == "PNG" and not _png_has_exif(file):
            return height, width  # Pillow would decode the whole PNG to look for EXIF data behind the pixels
        if image.format == "TIFF":  # whose `size` is turned already, by some versions of Pillow
            tags: Any = image
            width, height = int(tags.tag_v2[_WIDTH_TAG]), int(tags.tag_v2[_HEIGHT_TAG])
        return (width, height) if orientation(image) in _TRANSPOSED else (height, width)


@contextmanager
def open_image(file: IO[bytes]) -> Iterator[Image.Image]:
    """`Image.open` without Pillow's limit on the number of pixels: callers have their own."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        with Image.open(file) as image:
            yield image
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 (upright) where there is none or it cannot be read."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # damaged EXIF data raise many things, and say nothing about the pixels
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def check_pixels(width: int, height: int, max_pixels: int, option: str) -> None:
    """Refuses images that would fill the memory when they are decoded.

    Raises:
        ValueError: more than `max_pixels`, which the user sets by `option`.
    """
    if width * height > max_pixels:
        raise ValueError(
            f"{width} x {height} pixels (width x height) are more than {option} = {max_pixels} allows; "
            "shrink the image, or raise the option if the file is to be trusted"
        )


def explain(path: str | os.PathLike[str], error: Exception) -> str:
    """Why a file cannot be read as an image, in a few words."""
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        return "the file is empty, 0 bytes"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image of a known format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) if str(error) and isinstance(error, (OSError, ValueError)) else repr(error)


def read_image_sizes(
    root: Path,
    file_names: np.ndarray,
    workers: int,
    advance: Callable[[int], object],
    max_pixels: int = MAX_PIXELS,
) -> tuple[np.ndarray, list[tuple[int, str]]]:
    """Sizes of many images.

    Args:
        root: folder that the file names are relative to.
        file_names: (n,) bytes, UTF-8.
        workers: processes; up to 1 means this one. They are spawned: a script that comes here needs the usual
            `if __name__ == "__main__":` guard.
        advance: called with the number of images done.
        max_pixels: larger images count as unreadable.

    Returns:
        ((n, 2) int32 of (height, width), 0 where unreadable; and (index, reason) of each unreadable one).
    """
    sizes = np.zeros((len(file_names), 2), dtype=np.int32)
    unreadable: list[tuple[int, str]] = []
    tasks = [file_names[i : i + _IMAGES_PER_TASK] for i in range(0, len(file_names), _IMAGES_PER_TASK)]
    start = 0
    for part, problems in _run(os.fsencode(root), tasks, min(workers, len(tasks)), max_pixels):
        sizes[start : start + len(part)] = part
        unreadable += [(start + index, reason) for index, reason in problems]
        start += len(part)
        advance(len(part))
    return sizes, unreadable


def _run(
    root: bytes, tasks: list[np.ndarray], workers: int, max_pixels: int
) -> Iterator[tuple[np.ndarray, list[tuple[int, str]]]]:
    roots, limits = [root] * len(tasks), [max_pixels] * len(tasks)
    if workers <= 1:
        yield from map(_read_part, roots, tasks, limits)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield from pool.map(_read_part, roots, tasks, limits)


def _read_part(
    root: bytes, file_names: np.ndarray, max_pixels: int
) -> tuple[np.ndarray, list[tuple[int, str]]]:
    sizes = np.zeros((len(file_names), 2), dtype=np.int32)
    problems = []
    for index, name in enumerate(file_names.tolist()):
        path = os.fsdecode(os.path.join(root, name))
        try:
            sizes[index] = read_image_size(path, max_pixels, "--max-pixels")
        except Exception as error:  # decoders raise what they like on damaged headers
            problems.append((index, explain(path, error)))
    return sizes, problems


def _walk(root: bytes, relative: bytes) -> Iterator[bytes]:
    """Files below `root`, relative to it; each folder once, whatever links point to it."""
    seen: set[tuple[int, int]] = set()
    pending = [relative]
    while pending:
        folder = pending.pop()
        path = os.path.join(root, folder)
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(path) as entries:
            for entry in entries:
                name = folder + b"/" + entry.name if folder else entry.name
                if entry.is_dir():
                    if not entry.name.startswith(b"."):
                        pending.append(name)
                else:
                    yield name


def _refuse_ambiguous(root: Path, targets: np.ndarray, chosen: np.ndarray, files: list[bytes]) -> None:
    if len(targets) == 0 or len(np.unique(targets)) == len(targets):
        return
    image = np.flatnonzero(np.bincount(targets) > 1)[0]
    one, two = sorted(files[place].decode(errors="replace") for place in chosen[targets == image][:2])
    raise DataError(
        f"{root}: two files could be one image: {one} and {two}; remove one, or give a folder with one split"
    )


def _png_has_exif(file: BinaryIO) -> bool:
    """Whether a PNG may have EXIF or XMP data, by the headers of its chunks; the file's position stays."""
    position = file.tell()
    file.seek(8)
    found = False
    while not found and len(head := file.read(8)) == 8:
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        found = kind == b"eXIf"
        if kind in (b"tEXt", b"zTXt", b"iTXt"):
            keyword = file.read(min(length, len(_PNG_KEYWORDS[0])))
            found = keyword.startswith(_PNG_KEYWORDS)
            length -= len(keyword)
        file.seek(length + 4, os.SEEK_CUR)
    file.seek(position)
    return found
