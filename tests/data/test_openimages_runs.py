"""Runs of the Open Images preparation: up to date, killed, with images, as a command, on real annotations."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest
from openimages_files import MAN, Folder, image_labels, objects, row
from PIL import Image

from longtail_det2.data.datasets.openimages import prepare_openimages
from longtail_det2.data.store import AnnotationStore
from longtail_det2.utils.errors import DataError


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


# ---- runs: up to date, killed


def stamp(store: AnnotationStore) -> int:
    return os.stat(store.path / "box.npy").st_mtime_ns


def test_second_run_returns_at_once(folder):
    boxes = folder.boxes(row("a"))
    first = stamp(folder.prepare())
    assert stamp(folder.prepare()) == first
    os.utime(boxes, ns=(1, 1))
    assert stamp(folder.prepare()) == first  # the content is what counts
    assert stamp(folder.prepare(force=True)) != first


def test_changes_lead_to_a_new_store(folder):
    boxes = folder.boxes(row("a"))
    stamps = [stamp(folder.prepare())]
    status = os.stat(boxes)
    folder.boxes(row("b"))
    os.utime(boxes, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    store = folder.prepare()
    assert store.image_ids.tolist() == [b"b"]
    stamps.append(stamp(store))
    stamps.append(stamp(folder.prepare(skip_bad=True)))
    stamps.append(stamp(folder.prepare(hierarchy=None)))
    stamps.append(stamp(folder.prepare(image_labels=[folder.image_labels("b,verification,/m/dog,1")])))
    assert len(set(stamps)) == len(stamps)


def test_images_that_were_missing_are_looked_for_again(folder):
    folder.boxes(row("a"), row("b"))
    folder.image("a.jpg")
    options = {"images": folder.path / "images", "skip_bad": True}
    assert len(folder.prepare(**options)) == 1
    folder.image("b.jpg")
    store = folder.prepare(**options)
    assert len(store) == 2
    assert stamp(folder.prepare(**options)) == stamp(store)


def test_killed_run_leaves_nothing_that_opens(folder):
    folder.boxes(row("a"))
    script = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from longtail_det2.data.datasets import openimages
        def stop(*rows):
            print("ready", flush=True)
            time.sleep(60)
        openimages.group_rows = stop
        here = Path(sys.argv[1])
        openimages.prepare_openimages(
            [here / "boxes.csv"], [], here / "classes.csv", None, None, here / "out" / "store", progress=False
        )
    """)
    command = [sys.executable, "-c", script, str(folder.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGKILL)
    (left,) = (path for path in (folder.path / "out").iterdir() if path.is_dir())
    assert len(list(left.iterdir())) > 3
    for path in (left, folder.path / "out" / "store"):
        with pytest.raises(DataError):
            AnnotationStore(path)
    folder.prepare(output="out/store", hierarchy=None)
    assert [path.name for path in (folder.path / "out").iterdir()] == ["store"]


def test_failed_run_keeps_the_old_store(folder):
    folder.boxes(row("a"))
    folder.prepare()
    folder.boxes(row("b", "/m/cat"))
    with pytest.raises(DataError):
        folder.prepare()
    assert AnnotationStore(folder.path / "store").image_ids.tolist() == [b"a"]


# ---- images


def test_images_at_any_depth_and_of_any_kind(folder):
    folder.boxes(row("a1"), row("b2"), row("c3"))
    folder.image("a1.JPG", (40, 30))
    folder.image("train/b2.png", (20, 10))
    folder.image("train/c/c3.jpeg", (6, 8))
    folder.image("train/c/unused.jpg")
    (folder.path / "images" / "a1.txt").write_text("no image")
    store = folder.prepare(images=folder.path / "images")
    assert store.file_names.tolist() == [b"a1.JPG", b"train/b2.png", b"train/c/c3.jpeg"]
    assert store.image_sizes.tolist() == [[30, 40], [10, 20], [8, 6]]
    assert store.image_root == folder.path / "images"
    assert store.has_image_sizes


def test_missing_image_is_refused_or_skipped(folder):
    folder.boxes(row("a"), row("b"), row("b", "/m/man"), row("c"))
    labels = folder.image_labels("b,verification,/m/dog,1", "c,verification,/m/man,0")
    folder.image("a.jpg")
    folder.image("c.jpg")
    (folder.path / "images" / "d.jpg").mkdir()
    options = {"images": folder.path / "images", "image_labels": [labels]}
    with pytest.raises(DataError, match=r"^image b is not below .*images; .*--skip-bad"):
        folder.prepare(**options)
    store = folder.prepare(**options, skip_bad=True)
    assert store.image_ids.tolist() == [b"a", b"c"]
    assert [image for image, *_ in objects(store)] == ["a", "c"]
    assert [image_labels(store, image) for image in range(2)] == [[], [(MAN, 0)]]
    assert store.header["summary"]["missing_image"] == 1
    with pytest.raises(DataError, match="no such folder of images"):
        folder.prepare(images=folder.path / "nowhere")


def test_unreadable_image_counts_as_missing(folder):
    folder.boxes(row("a"), row("b"))
    folder.image("a.jpg")
    (folder.path / "images" / "b.jpg").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"^image b cannot be read .*not an image of a known"):
        folder.prepare(images=folder.path / "images")
    store = folder.prepare(images=folder.path / "images", skip_bad=True)
    assert store.image_ids.tolist() == [b"a"]
    assert store.header["summary"]["unreadable_image"] == 1


def test_two_files_for_one_image_are_refused(folder):
    folder.boxes(row("a"))
    folder.image("train/a.jpg")
    folder.image("validation/a.jpg")
    with pytest.raises(DataError, match=r"two files could be one image: train/a\.jpg and validation/a\.jpg"):
        folder.prepare(images=folder.path / "images")


# ---- the command, and real annotations


def test_command_line(folder):
    folder.boxes(row("a"), row("a", "/m/man"))
    command = [sys.executable, "-m", "longtail_det2.cli", "prepare", "openimages"]
    arguments = ["--boxes", "boxes.csv", "--classes", "classes.csv", "--output", "store"]
    done = subprocess.run([*command, *arguments], cwd=folder.path, capture_output=True, text=True, check=True)
    assert "1 images, 1 objects, 2 labels of 5 classes" in done.stdout
    again = subprocess.run(
        [*command, *arguments], cwd=folder.path, capture_output=True, text=True, check=True
    )
    assert "store is up to date" in again.stderr
    arguments[1] = "nothing.csv"
    failed = subprocess.run([*command, *arguments], cwd=folder.path, capture_output=True, text=True)
    assert failed.returncode == 2
    assert failed.stderr == "error: nothing.csv: no such file (boxes)\n"


def test_photographs(shared_dir, tmp_path):
    photos = shared_dir / "data" / "photos"
    files = photos / "openimages"
    store = prepare_openimages(
        [files / "train-annotations-bbox.csv"],
        [files / "train-annotations-human-imagelabels.csv"],
        files / "class-descriptions.csv",
        files / "hierarchy.json",
        photos / "images",
        tmp_path / "store",
        progress=False,
    )
    assert (len(store), store.num_objects, store.num_classes) == (128, 929, 92)
    assert store.header["summary"]["images_without_objects"] == 2
    for index in range(0, len(store), 16):
        with Image.open(store.image_root / store.file_names[index].decode()) as image:
            assert image.size == tuple(store.image_sizes[index][::-1])


def test_real_class_tree(shared_dir, folder):
    files = shared_dir / "data" / "openimages"
    folder.boxes(row("a", "/m/04yx4"), row("a", "/m/01g317"), row("a", "/m/0dzct"))  # man, person, human face
    for name in ("derived-500-hierarchy.json", "bbox_labels_600_hierarchy.json"):
        classes = files / "challenge-2019-classes-500.csv"
        store = folder.prepare(classes=classes, hierarchy=files / name, output=name)
        assert (store.num_classes, len(store.hierarchy.leaves), len(store.hierarchy.inner)) == (500, 443, 57)
        names = [store.class_names[label] for label in store.labels]
        assert names.index("Man") < names.index("Person")
