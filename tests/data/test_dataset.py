import itertools
import pickle

import pytest
from detectron2.structures import BoxMode
from factories import store_columns

from longtail_det2.data.build import get_dataset
from longtail_det2.data.datasets.builtin import register_store
from longtail_det2.data.datasets.dataset import (
    ConcatMultiLabelDataset,
    MultiLabelDataset,
    labels_per_image,
)
from longtail_det2.data.store import write_store
from longtail_det2.utils.errors import DataError


def per_image(source):
    offsets, labels = labels_per_image(source)
    return [labels[a:b].tolist() for a, b in itertools.pairwise(offsets)]


def test_record(store):
    dataset = MultiLabelDataset(store.path)
    assert len(dataset) == 5
    record = dataset[0]
    assert record["file_name"].endswith("store-images/a.png")
    assert (record["image_id"], record["height"], record["width"]) == ("a", 40, 60)
    dog, cars = record["annotations"]
    assert dog["bbox"] == pytest.approx([6, 4, 30, 20], abs=1e-5)
    assert dog["bbox_mode"] == BoxMode.XYXY_ABS and dog["iscrowd"] == 0
    assert dog["category_id"] == 2 and dog["category_ids"] == [2, 1] and dog["is_group_of"] is False
    assert cars["category_ids"] == [5] and cars["is_group_of"] is True
    assert record["pos_category_ids"] == [] and record["neg_category_ids"] == []


def test_image_labels_and_plain_values(store):
    record = MultiLabelDataset(store)[1]
    assert record["annotations"] == []
    assert record["pos_category_ids"] == [4] and record["neg_category_ids"] == [5]
    record = MultiLabelDataset(store)[3]
    one = record["annotations"][0]
    values = [record["height"], record["image_id"], one["category_id"], *one["category_ids"], *one["bbox"]]
    assert [type(value) for value in values] == [int, str, int, int, float, float, float, float]


def test_filter_empty_and_indices(store):
    dataset = MultiLabelDataset(store, filter_empty=True)
    assert [dataset[i]["image_id"] for i in range(len(dataset))] == ["a", "c", "d", "e"]
    assert dataset.image_sizes.tolist() == [[40, 60], [64, 48], [64, 48], [30, 30]]
    assert per_image(dataset) == [[2, 1, 5], [4, 5], [0, 1], [5]]
    assert per_image(store) == [[2, 1, 5], [], [4, 5], [0, 1], [5]] == per_image(MultiLabelDataset(store))
    assert dataset[-1]["image_id"] == "e"
    for wrong in (4, -5):
        with pytest.raises(IndexError):
            dataset[wrong]


def test_pickles_as_a_path(store, tmp_path):
    dataset = MultiLabelDataset(store, image_root=tmp_path, filter_empty=True)
    data = pickle.dumps(dataset)
    assert len(data) < 1000
    again = pickle.loads(data)
    assert len(again) == 4 and again[0] == dataset[0]
    assert again[0]["file_name"].startswith(str(tmp_path))


def test_image_sizes_are_needed(tmp_path):
    columns = store_columns(list("abcde"), (0, 0))
    with pytest.raises(DataError, match="unsized: the store has no image sizes"):
        MultiLabelDataset(write_store(tmp_path / "unsized", columns, ["a"]))
    rootless = write_store(tmp_path / "rootless", store_columns(list("abcde")), ["a"])
    with pytest.raises(DataError, match="rootless: the store names no image folder"):
        MultiLabelDataset(rootless)
    assert len(MultiLabelDataset(rootless, image_root=tmp_path)) == 5


def test_concatenation(store, make_store):
    second = MultiLabelDataset(make_store(name="other"), filter_empty=True)
    both = ConcatMultiLabelDataset([MultiLabelDataset(store), second])
    assert len(both) == 9 and both[5]["image_id"] == "a" and both[6]["image_id"] == "c"
    assert per_image(both) == per_image(store) + per_image(second)
    assert both.image_sizes.shape == (9, 2)
    assert both.class_ids == store.class_ids and both.hierarchy == store.hierarchy
    longer = MultiLabelDataset(make_store(class_ids=[*store.class_ids, "x"], name="longer"))
    with pytest.raises(DataError, match="one has 6 classes but two has 7"):
        ConcatMultiLabelDataset([MultiLabelDataset(store), longer], ["one", "two"])


def test_empty_store(make_store):
    dataset = MultiLabelDataset(make_store([]))
    assert len(dataset) == 0 and per_image(dataset) == []
    assert len(MultiLabelDataset(dataset.store, filter_empty=True)) == 0


def test_labels_of_whole_images(store, tmp_path):
    dataset = MultiLabelDataset(store, image_level=True)
    assert per_image(dataset) == [[1, 2, 5], [4], [4, 5], [0, 1, 3], [5]]
    assert dataset[1]["exhaustive_labels"] is False and "exhaustive_labels" not in MultiLabelDataset(store)[1]
    assert per_image(pickle.loads(pickle.dumps(dataset))) == per_image(dataset)
    for form, kept in (("open_images", ["b", "c"]), ("image_labels", ["a", "b", "c"])):
        columns = store_columns(list("abc"), image_labels=[(1, 2, 0), (2, 1, 1)])
        other = write_store(tmp_path / form, columns, store.class_ids, form=form, image_root=tmp_path)
        known = MultiLabelDataset(other, filter_empty=True, image_level=True)
        assert [known[i]["image_id"] for i in range(len(known))] == kept
        assert per_image(known)[-2:] == [[], [1]]
        assert per_image(ConcatMultiLabelDataset([known, dataset]))[len(kept) :] == per_image(dataset)
        register_store(form, other.path)
        hint = "MultiLabelClassifier" if form == "image_labels" else "with an object$"
        with pytest.raises(DataError, match=f"no image is left.*{hint}"):
            get_dataset(form, filter_empty=True)
