"""Image files of every kind and in every state: prepared, read in training, or refused by name."""

import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from longtail_det2.config import get_cfg
from longtail_det2.data.build import build_train_loader
from longtail_det2.data.dataset_mapper import MultiLabelDatasetMapper
from longtail_det2.data.datasets.dataset import MultiLabelDataset
from longtail_det2.data.image_reading import read_image
from longtail_det2.data.image_sizes import MAX_PIXELS, read_image_size
from longtail_det2.utils.errors import DataError

RAMP = np.linspace(0, 255, 64).round().astype(np.uint8)[None].repeat(48, 0)


def rotated(image, path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise makes it upright
    image.save(path, exif=exif)


def enormous_png(path, width=60_000, height=60_000):
    """A few hundred bytes that claim to be 3.6 billion pixels."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels)


GREY = Image.fromarray(RAMP)
SOUND = {
    "grey.png": lambda path: GREY.save(path),
    "grey.jpg": lambda path: GREY.save(path, quality=100),
    "cmyk.jpg": lambda path: GREY.convert("RGB").convert("CMYK").save(path, quality=100),
    "16 bit.png": lambda path: Image.fromarray(RAMP.astype(np.uint16) * 257).save(path),
    "16 bit.tif": lambda path: Image.fromarray(RAMP.astype(np.uint16) * 257).save(path),
    "alpha.png": lambda path: GREY.convert("RGBA").save(path),
    "grey alpha.png": lambda path: GREY.convert("LA").save(path),
    "palette.png": lambda path: GREY.convert("P").save(path, transparency=0),
    "bilevel.png": lambda path: GREY.convert("1", dither=Image.Dither.NONE).save(path),
    "picture.bmp": lambda path: GREY.save(path),
    "picture.webp": lambda path: GREY.convert("RGB").save(path, lossless=True),
}


@pytest.mark.parametrize("name", SOUND)
def test_every_mode_gives_the_same_picture(tmp_path, name):
    SOUND[name](tmp_path / name)
    assert read_image_size(tmp_path / name) == (48, 64)
    for image_format in ("BGR", "RGB"):
        pixels = read_image(tmp_path / name, image_format)
        assert pixels.shape == (48, 64, 3) and pixels.dtype == np.uint8
        expected = (RAMP > 127) * 255 if name.startswith("bilevel") else RAMP
        assert np.abs(pixels.astype(int) - expected[:, :, None]).max() <= 3
    assert read_image(tmp_path / name, "L").shape == (48, 64, 1)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_exif_rotation(tmp_path, suffix):
    path = tmp_path / f"turned.{suffix}"
    rotated(GREY.convert("RGB"), path)
    assert read_image_size(path) == (64, 48)
    pixels = read_image(path, "RGB")
    assert pixels.shape == (64, 48, 3)
    assert pixels[2, :, 0].mean() < 20 and pixels[-3, :, 0].mean() > 235  # left becomes top


def test_16_bits_and_exif_at_once(tmp_path):
    path = tmp_path / "both.png"
    rotated(Image.fromarray(RAMP.astype(np.uint16) * 257), path)
    pixels = read_image(path, "RGB")
    assert pixels.shape == (64, 48, 3) and pixels.max() == 255 and 120 < pixels.mean() < 135


def damage(path, kind):
    """Spoils an image file; returns words of the message."""
    content = path.read_bytes()
    if kind == "missing":
        path.unlink()
        return "image not found; check the image folder"
    if kind == "empty":
        path.write_bytes(b"")
        return r"cannot read the image \(the file is empty, 0 bytes\); replace the file"
    if kind == "truncated":
        path.write_bytes(content[: len(content) * 2 // 3])
        return r"cannot read the image \(.*truncated"
    if kind == "text":
        path.write_text("<html>404</html>")
        return r"cannot read the image \(not an image of a known format\)"
    if kind == "folder":
        path.unlink()
        path.mkdir()
        return r"cannot read the image \(Is a directory\)"
    if kind == "float":
        Image.fromarray(RAMP.astype(np.float32)).save(path, format="TIFF")
        return "the pixels are 32-bit numbers, whose range nobody knows"
    assert kind == "enormous"
    enormous_png(path)
    limit = rf"more than INPUT\.MAX_PIXELS = {MAX_PIXELS} allows; shrink the image, or raise the option"
    return rf"60000 x 60000 pixels \(width x height\) are {limit}"


DAMAGES = ["missing", "empty", "truncated", "text", "folder", "float", "enormous"]


@pytest.mark.parametrize(
    ("kind", "workers"), [*((kind, 0) for kind in DAMAGES), ("truncated", 1), ("enormous", 1)]
)
def test_training_names_file_and_image(data, kind, workers):
    store = data.prepare_coco()
    words = damage(data.images / "b.jpg", kind)
    cfg = get_cfg()
    mapper = MultiLabelDatasetMapper(
        True, augmentations=[], hierarchy=store.hierarchy, max_pixels=cfg.INPUT.MAX_PIXELS
    )
    loader = build_train_loader(
        MultiLabelDataset(store), mapper=mapper, total_batch_size=2, num_workers=workers, seed=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with pytest.raises(DataError, match=rf"b\.jpg \(image '2'\): {words}"):
            for _, _ in zip(range(10), loader, strict=False):
                pass


@pytest.mark.parametrize("kind", [kind for kind in DAMAGES if kind not in ("float", "truncated")])
def test_preparation_names_the_file(data, kind):
    damage(data.images / "b.jpg", kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with pytest.raises(DataError, match=r"b\.jpg: cannot read the image \(.*--on-missing-image skip"):
            data.prepare_coco()
        with pytest.raises(DataError, match=r"1 of 3 annotated images .*--on-missing-image skip"):
            data.open_images()
    assert len(data.prepare_coco(on_missing_image="skip")) == 2
    assert len(data.open_images(on_missing_image="skip")) == 2


def test_the_limit_is_an_option(tmp_path):
    enormous_png(tmp_path / "a.png", 300, 200)
    with pytest.raises(DataError, match=r"300 x 200 pixels .* are more than --max-pixels = 59999 allows"):
        read_image(tmp_path / "a.png", max_pixels=59_999, option="--max-pixels")
    assert read_image_size(tmp_path / "a.png", max_pixels=60_000) == (200, 300)
    assert get_cfg().INPUT.MAX_PIXELS == MAX_PIXELS


def test_image_that_changed_after_preparation(data):
    store = data.prepare_coco()
    Image.new("RGB", (32, 24)).save(data.images / "a.jpg")
    mapper = MultiLabelDatasetMapper(True, augmentations=[], hierarchy=store.hierarchy)
    with pytest.raises(DataError, match=r"a\.jpg \(image '1'\): annotated as 64 x 48 .* has 32 x 24; was it"):
        mapper(MultiLabelDataset(store)[0])
