"""Image sizes from headers equal those of the images as Detectron2 reads them."""

import os

import numpy as np
import pytest
from detectron2.data.detection_utils import read_image
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from longtail_det2.data import images
from longtail_det2.data.images import find_images, read_image_size, read_image_sizes
from longtail_det2.data.images import read_image as read_upright
from longtail_det2.utils.errors import DataError


def save(path, orientation=None, size=(40, 30), **options):
    ramp = np.linspace(0, 255, size[0]).astype(np.uint8)
    image = Image.fromarray(np.broadcast_to(ramp[:, None], (size[1], size[0], 3)))
    if orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    image.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", [None, 1, 3, 6, 8])
def test_orientation_is_applied(tmp_path, suffix, orientation):
    path = save(tmp_path / f"image{suffix}", orientation)
    turns = {3: 2, 6: 3, 8: 1}.get(orientation, 0)
    expected = np.rot90(read_upright(save(tmp_path / f"plain{suffix}"), "BGR"), turns)
    assert read_image_size(path) == expected.shape[:2]
    assert np.abs(read_upright(path, "BGR").astype(int) - expected).max() <= 3


def test_png_is_not_decoded(tmp_path):
    path = save(tmp_path / "image.png", size=(300, 200))
    path.write_bytes(path.read_bytes()[:60])  # header and the beginning of the pixels
    assert read_image_size(path) == (200, 300)


def test_exif_behind_the_pixels_of_a_png_is_not_looked_for(tmp_path):
    path = save(tmp_path / "image.png", 6)
    data = path.read_bytes()
    start = data.index(b"eXIf") - 4
    length = int.from_bytes(data[start : start + 4], "big") + 12
    chunk, rest = data[start : start + length], data[:start] + data[start + length :]
    path.write_bytes(rest[:-12] + chunk + rest[-12:])
    assert read_image_size(path) == read_upright(path).shape[:2] == (30, 40)


def test_png_with_orientation_in_xmp(tmp_path):
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"/>')
    info.add_text("Comment", "nothing to see")
    path = save(tmp_path / "image.png", pnginfo=info)
    assert read_image_size(path) == read_image(str(path), "BGR").shape[:2]


def test_processes_give_what_one_gives(tmp_path, monkeypatch):
    names = []
    for index in range(10):
        save(tmp_path / f"{index}.jpg", size=(10 + index, 5))
        names.append(f"{index}.jpg".encode())
    (tmp_path / "3.jpg").write_bytes(b"")
    monkeypatch.setattr(images, "_IMAGES_PER_TASK", 4)
    sizes, problems = read_image_sizes(tmp_path, np.array(names), 2)
    assert sizes.tolist() == [[5, 10 + index] if index != 3 else [0, 0] for index in range(10)]
    assert [index for index, _ in problems] == [3]
    alone, _ = read_image_sizes(tmp_path, np.array(names), 1)
    np.testing.assert_array_equal(alone, sizes)


def test_finding_follows_links_once_and_skips_hidden_folders(tmp_path):
    (tmp_path / "real" / "é").mkdir(parents=True)
    (tmp_path / "root" / ".cache").mkdir(parents=True)
    (tmp_path / "root" / "train").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "loop").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "itself").symlink_to(tmp_path / "real" / "itself")
    save(tmp_path / "real" / "é" / "a.jpg")
    save(tmp_path / "root" / ".cache" / "a.jpg")
    found = find_images(tmp_path / "root", np.array([b"a", b"b"]))
    assert found.tolist() == ["train/é/a.jpg".encode(), b""]
    with pytest.raises(DataError, match="no such folder"):
        find_images(tmp_path / "nowhere", np.array([b"a"]))


def test_folders_that_cannot_be_read_are_passed_over(tmp_path, monkeypatch, caplog):
    save(tmp_path / "a.jpg")
    (tmp_path / "lost+found").mkdir()
    scandir = os.scandir

    def refuse(path):
        if os.fsdecode(path).endswith("lost+found"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root may read everything
    assert find_images(tmp_path, np.array([b"a"])).tolist() == [b"a.jpg"]
    assert "lost+found" in caplog.text and "Permission denied" in caplog.text
