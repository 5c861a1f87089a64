"""Stores that cannot be used or written: other versions, changed sources, full disks, no permission."""

import builtins
import errno
import json
import logging
import os
import random
from contextlib import suppress

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from factories import store_columns
from test_mutations import mutate, mutate_json, run_many

from longtail_det2.data.dataset_mapper import MultiLabelDatasetMapper
from longtail_det2.data.datasets.builtin import register_coco, register_store
from longtail_det2.data.datasets.dataset import MultiLabelDataset, labels_per_image
from longtail_det2.data.masks import encode_masks, to_rle
from longtail_det2.data.store import AnnotationStore, write_store
from longtail_det2.data.store_writer import COLUMNS
from longtail_det2.evaluation.ground_truth import StoreGroundTruth
from longtail_det2.utils import io
from longtail_det2.utils.errors import DataError
from longtail_det2.utils.io import describe_file


@pytest.fixture
def rich_store(data):
    """A store that has every column."""
    masks = [[np.array([8.0, 4, 24, 4, 24, 12])], to_rle([np.array([0.0, 0, 64, 0, 64, 48])], 48, 64), None]
    objects = [(0, [0.125, 0.1, 0.375, 0.25], [1, 2], 0), (0, [0, 0, 1, 1], [1], 4)]
    objects.append((2, [0.5, 0.5, 0.75, 0.75], [2], 1))
    more = {"area": np.array([64.0, np.nan, 9]), "file_name": np.array(["a.jpg", "b.jpg", "c.jpg"])}
    more |= encode_masks(masks)
    columns = store_columns(["a", "b", "cé"], (48, 64), objects, [(0, 1, 1), (1, 2, 2), (1, 0, 0)], **more)
    return write_store(
        data.root / "rich",
        columns,
        ["animal", "cat", "dog"],
        parents={"cat": ["animal"], "dog": ["animal"]},
        frequency=["r", "c", "f"],
        image_root=data.images,
        sources=[{"role": "coco", **describe_file(data.coco)}],
    )


def edit(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("file", "values", "key"),
    [
        ("header", {"version": 1}, "version 1"),
        ("header", {"format": "other"}, "format"),
        ("header", {"form": "voc"}, "form 'voc'"),
        ("header", {"counts": []}, "'counts'"),
        ("header", {"counts": {}}, "'ids'"),
        ("header", {"sources": [3]}, "'sources'"),
        ("header", {"image_root": 5}, "'image_root'"),
        ("classes", {"names": ["animal"]}, r"classes\.json.*'names'"),
        ("classes", {"ids": ["1", "2", 3]}, r"classes\.json.*'ids'"),
        ("classes", {"ids": ["1", "2", "2"]}, r"classes\.json.*an id"),
        ("classes", {"hierarchy": {"1": "2"}}, r"classes\.json.*'hierarchy'"),
        ("classes", {"frequency": ["r", "c", "x"]}, r"classes\.json.*'frequency'"),
        ("classes", {"frequency": ["r"]}, r"classes\.json.*'frequency'"),
    ],
)
def test_damaged_header_or_classes(data, file, values, key):
    store = data.prepare_coco()
    edit(store.path / f"{file}.json", **values)
    with pytest.raises(DataError, match=key):
        AnnotationStore(store.path)
    assert data.prepare_coco().num_objects == 3  # which replaces it


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("object_offsets", 1, 9),
        ("object_offsets", 1, -1),
        ("label_offsets", 1, 0),
        ("label", 0, 3),
        ("image_label_status", 0, 3),
        ("box", 1, np.nan),
        ("box", 0, 1.5),
        ("box", 0, 0.5),
        ("image_size", 0, -1),
        ("image_size", 0, 900_000_000),
        ("vertex", 3, 1e30),
        ("area", 0, -1.0),
        ("image_id", 2, b"c\xff"),
        ("file_name", 0, b"\xff.jpg"),
    ],
)
def test_values_are_checked_before_they_are_used(rich_store, name, place, value):
    path = rich_store.path / f"{name}.npy"
    values = np.load(path)
    values.reshape(-1)[place] = value
    np.save(path, values)
    store = AnnotationStore(rich_store.path)
    for use in (lambda: getattr(store, COLUMNS[name].attribute), lambda: MultiLabelDataset(store)[0]):
        with pytest.raises(DataError, match=rf"{name}\.npy is damaged.*prepare the store again"):
            use()


def saved(change):
    return lambda path: np.save(path, change(np.load(path)))


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("box.npy", lambda path: path.write_bytes(b""), "is damaged"),
        ("box.npy", lambda path: path.unlink(), "is missing"),
        ("box.npy", saved(lambda v: v.astype(np.float64)), "is damaged.*prepare the store again"),
        ("object_offsets.npy", saved(lambda v: v.astype(np.int32)), "is damaged.*prepare the store again"),
        ("label_offsets.npy", saved(lambda v: v + 1), "is damaged.*prepare the store again"),
        ("vertex_offsets.npy", saved(lambda v: v + 3), "is damaged.*prepare the store again"),
        ("image_id.npy", saved(lambda v: v[:2]), "shape"),
        ("classes.json", lambda path: path.write_bytes(b"{"), "not a (usable )?JSON file"),
        ("header.json", lambda path: path.unlink(), "is missing"),
    ],
)
def test_damaged_files(rich_store, file, damage, message):
    damage(rich_store.path / file)
    with pytest.raises(DataError, match=rf"{file}.*{message}"):
        AnnotationStore(rich_store.path)


@pytest.mark.parametrize("form", ["coco", "open_images"])
def test_source_that_changed(data, form, caplog):
    name = "changing"
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


def test_disk_that_is_full_at_every_write(data, monkeypatch):
    """Whatever write fails, the old store stays and nothing else does."""
    data.prepare_coco()
    sync, last = io._sync, None
    for failing in range(40):
        count = 0

        def fail(path, failing=failing):
            nonlocal count
            count += 1
            if count == failing + 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            sync(path)

        monkeypatch.setattr(io, "_sync", fail)
        try:
            data.prepare_coco()
        except DataError as error:
            last = failing
            assert "the disk is full" in str(error)
        assert AnnotationStore(data.root / "store").num_objects == 3 and not data.left_over()
        if last != failing:
            break
    assert last == 26  # eleven columns, classes and header, each with its folder; the folder of the store


def test_publication_that_fails(data, monkeypatch):
    data.prepare_coco()
    replace, calls = os.replace, []

    def fail(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(DataError, match="Input/output error"):
        data.prepare_coco()
    assert AnnotationStore(data.root / "store").num_objects == 3 and not data.left_over()


@pytest.mark.parametrize(
    ("module", "function", "names", "message"),
    [
        (os, "mkdir", "partial", r"cannot write the store: Permission denied \(.*partial"),
        (builtins, "open", "classes.csv coco.json", r"\.(csv|json): cannot be read \(Permission denied\)"),
        (builtins, "open", "boxes.csv coco.json", r"\.(csv|json): cannot be read \(Permission denied\)"),
    ],
)
def test_no_permission(data, monkeypatch, module, function, names, message):
    real = getattr(module, function)

    def refuse(path, *arguments, **options):
        if any(name in str(path) for name in names.split()):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(module, function, refuse)
    for prepare in (data.prepare_coco, data.open_images):
        with pytest.raises(DataError, match=message):
            prepare()


def test_json_in_a_folder_that_cannot_be_written(data):
    register_coco("unwritable", data.coco, data.images)
    (data.root / ".longtail_det2").write_text("in the way")
    with pytest.raises(DataError, match="its store cannot be made"):
        DatasetCatalog.get("unwritable")


TYPES = ["<i2", "<i8", "<f4", "<f8", "|u1", ">i4", "<U4"]


def spoil(rng, path):
    """Change a file of a store: bits or bytes of it, its length, its type, its values, or a JSON value."""
    content = path.read_bytes()
    kind = rng.randrange(5)
    if path.suffix == ".json":
        path.write_bytes((mutate_json if kind else mutate)(content, rng))
        return
    values, header = np.load(path), 128
    if kind == 0:
        path.write_bytes(mutate(content, rng))
    elif kind == 1:
        np.save(path, values if values.dtype.kind == "S" else values.astype(rng.choice(TYPES)))
    elif kind == 2:
        start, length = rng.randrange(header, len(content)), rng.choice([1, 4, 8])
        path.write_bytes(content[:start] + rng.randbytes(length) + content[start + length :])
    elif kind == 3:
        path.write_bytes(content[:header] + rng.randbytes(len(content) - header))
    elif values.dtype.kind != "S":
        values.reshape(-1)[rng.randrange(values.size)] = rng.choice([0, 1, 2, 100, 127])
        np.save(path, values)


def use_everything(path, images):
    """Whatever reads a store: records, training truth with masks, statistics, samplers, evaluation."""
    store = AnnotationStore(path, images)
    store.changed_sources()
    dataset = MultiLabelDataset(store)
    mappers = [
        MultiLabelDatasetMapper(True, augmentations=[], hierarchy=store.hierarchy, mask_format=form)
        for form in ("polygon", "bitmask", None)
    ]
    for record in dataset:
        for mapper in mappers:
            with suppress(DataError):  # such as run lengths where polygons are wanted
                mapper(record)
    fresh = AnnotationStore(path, images)
    labels_per_image(MultiLabelDataset(fresh, filter_empty=True))
    fresh.image_counts(expanded=True)
    gt = StoreGroundTruth(fresh)
    assert len(gt.area) == len(gt.box) and len(gt.keys) == len(gt.object)
    assert not fresh.has_masks or len(gt.masks(gt.object)) == len(gt.object)
    repr((fresh.areas if fresh.has_areas else None, fresh.image_label_status, fresh.flags))


def run_spoiled(store, images, seeds):
    sound = {path: path.read_bytes() for path in sorted(store.path.iterdir())}

    def attempt(seed):
        rng = random.Random(seed)
        path = rng.choice(list(sound))
        spoil(rng, path)
        try:
            use_everything(store.path, images)
            return "ok"
        except DataError as error:
            assert "\n" not in str(error)
            return "refused"
        finally:
            path.unlink()  # what is mapped stays as it is
            path.write_bytes(sound[path])

    return run_many(attempt, seeds)


def test_spoiled_stores(data, rich_store):
    outcomes = run_spoiled(rich_store, data.images, range(150))
    assert outcomes.count("refused") > 60 and outcomes.count("ok") > 10


@pytest.mark.slow
def test_many_spoiled_stores(data, rich_store):
    run_spoiled(rich_store, data.images, range(1000, 3000))
