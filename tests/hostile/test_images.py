"""Image files of every kind and in every state: prepared, read in training, or refused by name."""

import os
import struct
import subprocess
import zlib

import numpy as np
import pytest
from PIL import Image

from longtail_det2.data.build import build_train_loader
from longtail_det2.data.dataset_mapper import MultiLabelDatasetMapper
from longtail_det2.data.datasets.dataset import MultiLabelDataset
from longtail_det2.data.images import read_image, read_image_size
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
EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 64 48
%%EndComments
0 0 64 48 rectfill
showpage
%%EOF
"""
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


def test_16_bits_and_exif_at_once(tmp_path):
    path = tmp_path / "both.png"
    rotated(Image.fromarray(RAMP.astype(np.uint16) * 257), path)
    pixels = read_image(path, "RGB")
    assert pixels.shape == (64, 48, 3) and pixels.max() == 255 and 120 < pixels.mean() < 135


def cut(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


def replace(path, make):
    path.unlink()
    make(path)


DAMAGES = {  # what spoils an image file, words of the message
    "missing": (lambda path: path.unlink(), "image not found"),
    "empty": (lambda path: path.write_bytes(b""), "the file is empty"),
    "truncated": (cut, "truncated"),
    "text": (lambda path: path.write_text("<html>404</html>"), "not an image of a known format"),
    "eps": (lambda path: path.write_bytes(EPS), "not an image of a known format"),
    "folder": (lambda path: replace(path, os.mkdir), "not a regular file"),
    "pipe": (lambda path: replace(path, os.mkfifo), "not a regular file"),
    "float": (lambda path: Image.fromarray(RAMP.astype(np.float32)).save(path, format="TIFF"), "32-bit"),
    "enormous": (enormous_png, "too large"),
}


@pytest.mark.parametrize(
    ("kind", "workers"), [*((kind, 0) for kind in DAMAGES), ("truncated", 1), ("enormous", 1)]
)
def test_training_names_file_and_image(data, kind, workers):
    store = data.prepare_coco()
    damage, words = DAMAGES[kind]
    damage(data.images / "b.jpg")
    mapper = MultiLabelDatasetMapper(True, augmentations=[], hierarchy=store.hierarchy)
    loader = build_train_loader(
        MultiLabelDataset(store), mapper=mapper, total_batch_size=2, num_workers=workers, seed=0
    )
    with pytest.raises(DataError, match=rf"b\.jpg \(image '2'\): .*{words}"):
        for _, _ in zip(range(10), loader, strict=False):
            pass


@pytest.mark.parametrize("kind", sorted(DAMAGES.keys() - {"float", "truncated"}))
def test_preparation_names_the_file(data, kind):
    DAMAGES[kind][0](data.images / "b.jpg")
    with pytest.raises(DataError, match=r"b\.jpg: cannot read the image \(.*--skip-bad"):
        data.prepare_coco()
    with pytest.raises(DataError, match=r"^image b .*--skip-bad"):
        data.open_images()
    assert len(data.prepare_coco(skip_bad=True)) == 2
    assert len(data.open_images(skip_bad=True)) == 2


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("pixels", [1.1, 2.2])
def test_pillows_limit_holds_before_anything_is_decoded(tmp_path, monkeypatch, pixels):
    path = tmp_path / "a.webp"
    GREY.convert("RGB").save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(64 * 48 / pixels))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(DataError, match=r"too large: .* pixels"):
        read_image(path)
    with pytest.raises(Exception, match="pixels"):
        read_image_size(path)


def test_an_eps_file_with_another_name_starts_no_program(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "check_call", lambda *_, **__: pytest.fail("Ghostscript was called"))
    monkeypatch.setattr("PIL.EpsImagePlugin.has_ghostscript", lambda: True)
    (tmp_path / "a.jpg").write_bytes(EPS)
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.format == "EPS"  # so Pillow would take it
    with pytest.raises(DataError, match="not an image of a known format"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("name", ["x" * 300 + ".jpg", "x" * 5000])
def test_file_names_that_no_disk_holds(tmp_path, name):
    with pytest.raises(DataError, match="cannot read the image"):
        read_image(tmp_path / name)


def test_image_that_changed_after_preparation(data):
    store = data.prepare_coco()
    Image.new("RGB", (32, 24)).save(data.images / "a.jpg")
    mapper = MultiLabelDatasetMapper(True, augmentations=[], hierarchy=store.hierarchy)
    with pytest.raises(DataError, match=r"a\.jpg \(image '1'\): annotated as 64 x 48 .* has 32 x 24"):
        mapper(MultiLabelDataset(store)[0])
