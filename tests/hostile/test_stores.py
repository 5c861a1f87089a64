"""Stores that cannot be used or written: other versions, changed sources, full disks, no permission."""

import builtins
import errno
import json
import logging
import os
import shutil
import subprocess
from contextlib import contextmanager

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from longtail_det2.data import store_writer
from longtail_det2.data.datasets.builtin import register_coco, register_store
from longtail_det2.data.store import AnnotationStore
from longtail_det2.utils.errors import DataError


@pytest.fixture
def name(request):
    name = f"hostile_{request.node.name}"
    yield name
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
    MetadataCatalog.pop(name, None)


def edit_header(store, **values):
    path = store.path / "header.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_store_of_another_version(data):
    store = data.prepare_coco()
    edit_header(store, version=1)
    with pytest.raises(
        DataError, match=r"store: store version 1, this package reads 2; make the store again with scripts"
    ):
        AnnotationStore.open(store.path)
    assert data.prepare_coco().num_objects == 3  # which replaces it


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": "other"}, "format 'other' is not 'longtail_det2.annotations'"),
        ({"form": "voc"}, "form 'voc' is none of open_images, coco, lvis; prepare the store again"),
        ({"form": None}, "form None is none of"),
        ({"counts": []}, "damaged .* prepare the store again"),
        ({"counts": {}}, "lacks 'images'; prepare the store again"),
        ({"counts": {"images": 9, "objects": 3}}, "image_id.npy has shape .* prepare the store again"),
    ],
)
def test_damaged_header(data, values, message):
    store = data.prepare_coco()
    edit_header(store, **values)
    with pytest.raises(DataError, match=message):
        AnnotationStore.open(store.path)


def test_damaged_files(data):
    store = data.prepare_coco()
    for file, content, message in (
        ("box.npy", b"", r"box\.npy is damaged .*prepare the store again"),
        ("box.npy", None, r"box\.npy is missing: the store is incomplete"),
        ("classes.json", b"{", r"classes\.json: not a JSON file.*prepare the store again"),
        ("header.json", None, r"an incomplete annotation store \(header\.json is missing\)"),
    ):
        path = store.path / file
        whole = path.read_bytes()
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            AnnotationStore.open(store.path)
        path.write_bytes(whole)


@pytest.mark.parametrize("form", ["coco", "open_images"])
def test_source_that_changed(data, form, name, caplog):
    store = data.prepare_coco() if form == "coco" else data.open_images()
    register_store(name, store.path)
    with caplog.at_level(logging.WARNING):
        DatasetCatalog.get(name)
        source = data.coco if form == "coco" else data.boxes
        os.utime(source, ns=(1, 1))
        DatasetCatalog.get(name)  # another time, but the same content
        assert not caplog.records
        source.write_bytes(source.read_bytes() + b"\n")
        assert [path.name for path in store.changed_sources()] == [source.name]
        DatasetCatalog.get(name)
    assert f"{source} changed after the annotation store {store.path} was made" in caplog.text
    assert "prepare it again" in caplog.text
    caplog.clear()
    source.unlink()
    DatasetCatalog.get(name)  # a store needs its sources no more
    assert not caplog.records


@contextmanager
def file_system(folder, options):
    """A file system of its own, as long as the context lasts."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB."""
    with file_system(tmp_path / "disk", "size=256k") as folder:
        yield folder


@pytest.mark.parametrize("form", ["coco", "open_images"])
def test_full_disk(data, small_disk, form):
    prepare = data.prepare_coco if form == "coco" else data.open_images
    output = small_disk / "store"
    before = prepare(output)
    assert before.num_objects == 3
    filler = small_disk / "filler"
    free = shutil.disk_usage(small_disk).free
    filler.write_bytes(b"\0" * (free - 24 * 1024))  # room for some columns, not for all
    with pytest.raises(
        DataError, match=r"cannot write the store: the disk is full \(0\.0 MB free .*old|stays as"
    ):
        prepare(output)
    assert sorted(path.name for path in small_disk.iterdir()) == ["filler", "store"]
    assert AnnotationStore.open(output).num_objects == 3
    assert np.array_equal(AnnotationStore.open(output).boxes, before.boxes)
    filler.unlink()
    assert prepare(output).num_objects == 3


def test_disk_that_is_full_at_every_write(data, monkeypatch):
    """Whatever write fails, the old store stays and nothing else does."""
    data.prepare_coco()
    flush, last = store_writer._flush, None
    for failing in range(30):
        count = 0

        def fail(file, failing=failing):
            nonlocal count
            count += 1
            if count == failing + 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            flush(file)

        monkeypatch.setattr(store_writer, "_flush", fail)
        try:
            data.prepare_coco()
        except DataError as error:
            last = failing
            assert "the disk is full" in str(error) and "make room" in str(error)
        assert AnnotationStore.open(data.root / "store").num_objects == 3 and not data.left_over()
        if last != failing:
            break
    assert last == 12  # eleven columns, classes and header


def test_publication_that_fails(data, monkeypatch):
    data.prepare_coco()
    replace, calls = os.replace, []

    def fail(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(DataError, match="Input/output error; the store that is there stays as it was"):
        data.prepare_coco()
    assert AnnotationStore.open(data.root / "store").num_objects == 3 and not data.left_over()


@pytest.fixture
def read_only(tmp_path):
    """A folder of a read-only file system."""
    with file_system(tmp_path / "read_only", "size=256k,ro") as folder:
        yield folder


def test_no_write_permission(data, read_only):
    with pytest.raises(
        DataError, match=r"Read-only file system \(.*\); make the folder writable, or choose another"
    ):
        data.prepare_coco(read_only / "stores" / "train")
    with pytest.raises(DataError, match=r"cannot write the store: Read-only file system"):
        data.open_images(read_only / "train")


def test_no_write_permission_without_a_mount(data, monkeypatch):
    def refuse(path, *arguments, **options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(
        DataError, match=r"cannot write the store: Permission denied \(.*partial.*make the folder"
    ):
        data.prepare_coco()


def test_no_read_permission(data, monkeypatch):
    real = builtins.open

    def refuse(path, *arguments, **options):
        if str(path).endswith(("boxes.csv", "coco.json", "classes.csv")):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(builtins, "open", refuse)
    with pytest.raises(DataError, match=r"classes\.csv: cannot be read \(Permission denied\)"):
        data.open_images()
    with pytest.raises(DataError, match=r"coco\.json: cannot be read \(Permission denied\)"):
        data.prepare_coco()


def test_json_in_a_folder_that_cannot_be_written(data, read_only, name):
    register_coco(name, data.coco, data.images)
    (data.root / ".longtail_det2").write_text("in the way")
    with pytest.raises(
        DataError, match=r"its store cannot be made in .*; make it elsewhere and name its folder"
    ):
        DatasetCatalog.get(name)


def test_folder_that_is_no_store(data):
    (data.root / "store").mkdir()
    (data.root / "store" / "thesis.txt").write_text("years of work")
    with pytest.raises(
        DataError, match=r"store exists and is no annotation store: remove it or choose another"
    ):
        data.prepare_coco()
    assert (data.root / "store" / "thesis.txt").exists()
