"""The annotation store: what is written is what is read, and nothing half-written opens."""

import os

import numpy as np
import pytest
from factories import store_columns

from longtail_det2.data.store import (
    AnnotationStore,
    ObjectFlag,
    open_if_current,
    rows_per_class,
    write_store,
)
from longtail_det2.utils import io
from longtail_det2.utils.errors import DataError
from longtail_det2.utils.io import describe_file

CLASSES = ["/m/vehicle", "/m/car", "/m/dog", "/m/unused"]


OBJECTS = [
    (0, [0, 0, 0.5, 0.5], [1, 2], int(ObjectFlag.GROUP_OF)),
    (0, [0.1, 0.1, 0.2, 0.3], [1], 0),
    (2, [0, 0, 1, 1], [2], int(ObjectFlag.OCCLUDED | ObjectFlag.INSIDE)),
]


def write(path, **changes):
    header = changes.pop("header", {"parents": {"/m/car": ["/m/vehicle"]}})
    sizes = np.array([[10, 20], [30, 40], [50, 60]])
    columns = store_columns(["a", "bé", "c"], sizes, OBJECTS, [(0, 1, 1), (1, 2, 2), (1, 0, 0)], **changes)
    return write_store(path, columns, CLASSES, ["Vehicle", "Car", "Dog", "Unused"], **header)


def test_round_trip(tmp_path):
    store = write(tmp_path / "store")
    assert [name.decode() for name in store.image_ids] == ["a", "bé", "c"]
    assert [name.decode() for name in store.file_names] == ["a.png", "bé.png", "c.png"]
    assert store.image_sizes.tolist() == [[10, 20], [30, 40], [50, 60]]
    np.testing.assert_array_equal(store.boxes, np.array([box for _, box, _, _ in OBJECTS], np.float32))
    assert store.labels.tolist() == [1, 2, 1, 2] and store.image_label_status.tolist() == [1, 2, 0]
    types = [store.labels.dtype, store.boxes.dtype, store.flags.dtype]
    assert types == [np.int16, np.float32, np.uint8]
    assert type(store.boxes) is np.ndarray
    assert (len(store), store.num_objects, store.num_classes) == (3, 3, 4)
    assert store.class_names == ("Vehicle", "Car", "Dog", "Unused")
    assert store.has_image_sizes
    with pytest.raises(ValueError):
        store.boxes[0] = 1


@pytest.mark.parametrize("chunk", [1, 1000])
def test_counts_with_and_without_ancestors(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr("longtail_det2.data.store._CHUNK_ROWS", chunk)
    store = write(tmp_path / "store")
    assert store.image_counts().tolist() == [0, 1, 2, 0]
    assert store.image_counts(expanded=True).tolist() == [1, 1, 2, 0]
    assert store.has_hierarchy and not write(tmp_path / "flat", header={}).has_hierarchy
    assert rows_per_class(store.label_offsets, store.labels, store.hierarchy).tolist() == [2, 2, 2, 0]


def test_image_root_moves_with_the_store(tmp_path):
    (tmp_path / "one" / "images").mkdir(parents=True)
    store = write(tmp_path / "one" / "store", header={"image_root": tmp_path / "one" / "images"})
    assert store.image_root == tmp_path / "one" / "images"
    os.rename(tmp_path / "one", tmp_path / "two")
    assert AnnotationStore(tmp_path / "two" / "store").image_root == tmp_path / "two" / "images"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"label": np.array([1, 2, 1, 9])}, r"label\.npy"),
        ({"label": np.array([1, 2, 1])}, r"label_offsets\.npy"),
        ({"label_offsets": np.array([0, 3, 3, 4])}, r"label_offsets\.npy"),
        ({"object_offsets": np.array([0, 2, 1, 3])}, r"object_offsets\.npy"),
        ({"object_offsets": np.array([0, 3])}, r"object_offsets\.npy .*shape"),
        ({"box": np.full((3, 4), np.nan)}, r"box\.npy"),
        ({"box": np.zeros((3, 5))}, "'box' has shape"),
        ({"image_id": np.array(["a", "a", "c"])}, r"image_id\.npy"),
        ({"image_size": np.full((3, 2), 40_000)}, r"image_size\.npy"),
        ({"image_label_status": np.array([1, -1, 0])}, r"image_label_status\.npy"),
        ({"header": {"form": "voc"}}, "form 'voc'"),
        ({"header": {"frequency": ["r", "c", "f"]}}, "'frequency'"),
    ],
)
def test_columns_that_disagree_are_refused(tmp_path, changes, named):
    with pytest.raises(DataError, match=named):
        write(tmp_path / "store", **changes)
    assert list(tmp_path.iterdir()) == []


def test_replaces_a_store_but_nothing_else(tmp_path):
    old = write(tmp_path / "store")
    new = write(tmp_path / "store", flags=np.array([0, 0, 0]))
    assert new.flags.tolist() == [0, 0, 0]
    assert old.flags.tolist() == [4, 0, 17]  # a reader keeps the store that it opened
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("x")
    with pytest.raises(DataError, match="is no annotation store"):
        write(tmp_path / "photos")


def test_contents_of_sources_decide_where_times_differ(tmp_path, monkeypatch):
    file = tmp_path / "boxes.csv"
    file.write_text("content")
    write(
        tmp_path / "store",
        header={"sources": [{"role": "boxes", **describe_file(file)}], "options": {"a": 1}},
    )

    def current(options=None, files=(("boxes", file),)):
        return open_if_current(tmp_path / "store", files, {"a": 1} if options is None else options)

    hashed = []
    monkeypatch.setattr(io, "describe_file", lambda path: hashed.append(path) or describe_file(path))
    assert current() is not None and hashed == []
    os.utime(file, (1, 1))  # as after a copy
    assert current() is not None and hashed == [file]
    assert current({"a": 2}) is None and current(files=()) is None
    assert current(files=(("classes", file),)) is None
    file.write_text("CONTENT")
    assert current() is None
    file.unlink()
    with pytest.raises(DataError, match=r"boxes\.csv: cannot be read"):
        current()
    assert open_if_current(tmp_path / "nothing", (), {}) is None
