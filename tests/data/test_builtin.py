import re

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from longtail_det2.data.build import get_dataset
from longtail_det2.data.datasets.builtin import get_metadata, hierarchy_of, register_all, register_store
from longtail_det2.data.datasets.dataset import MultiLabelDataset
from longtail_det2.data.hierarchy import LabelHierarchy
from longtail_det2.utils.errors import ConfigError, DataError


def detectron2_own_lvis(load=list):
    """Registers it again, as another test may have replaced it."""
    DatasetCatalog.pop("lvis_v1_val", None)
    MetadataCatalog.pop("lvis_v1_val", None)
    DatasetCatalog.register("lvis_v1_val", load)
    MetadataCatalog.get("lvis_v1_val").set(evaluator_type="lvis", thing_classes=["x"])


def test_register_store(store, tmp_path):
    register_store("tiny", store.path)
    register_store("tiny", store.path)
    metadata = MetadataCatalog.get("tiny")
    assert metadata.thing_classes == list(store.class_names)
    assert metadata.class_ids == list(store.class_ids)
    assert metadata.hierarchy == store.hierarchy
    assert metadata.store_path == str(store.path) and metadata.evaluator_type == "open_images"
    dataset = DatasetCatalog.get("tiny")
    assert isinstance(dataset, MultiLabelDataset) and len(dataset) == 5
    register_store("moved", store.path, tmp_path)
    assert DatasetCatalog.get("moved")[0]["file_name"] == str(tmp_path / "a.png")


def test_a_taken_name(store, make_store):
    register_store("tiny", store.path)
    with pytest.raises(ConfigError, match="'tiny' is taken by"):
        register_store("tiny", make_store(name="other").path)
    with pytest.raises(ConfigError, match="'coco_2017_train' is taken by another data set"):
        register_store("coco_2017_train", store.path)


def test_absent_store_says_what_makes_it(tmp_path, make_store):
    register_store("later", tmp_path / "later")
    with pytest.raises(DataError, match=r"'later': there is no annotation store at .*/later; make it with"):
        DatasetCatalog.get("later")
    make_store(name="later")
    assert len(DatasetCatalog.get("later")) == 5
    assert get_metadata("later").class_ids[0] == "animal"


def test_builtin_names(tmp_path, monkeypatch):
    def absent():
        raise FileNotFoundError("lvis_v1_val.json")

    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    detectron2_own_lvis(absent)
    register_all()
    register_all()
    for name in ("openimages_v6_test", "openimages_challenge_2019_validation", "shapes_train", "lvis_v1_val"):
        assert name in DatasetCatalog.list()
    place = re.escape(f"at {tmp_path}/openimages_v6/stores/train")
    with pytest.raises(DataError, match=rf"{place}; make it with longtail-det2 prepare openimages"):
        DatasetCatalog.get("openimages_v6_train")
    with pytest.raises(DataError, match=r"longtail-det2 prepare openimages"):
        get_metadata("shapes_validation")
    with pytest.raises(DataError, match=r"lvis_v1_val\.json.* longtail-det2 prepare coco"):
        get_dataset("lvis_v1_val")  # Detectron2's own data set, whose files are not there
    with pytest.raises(DataError, match=rf"{tmp_path}/shapes_lvis/.* with longtail-det2 prepare coco"):
        DatasetCatalog.get("shapes_lvis_train")


def test_built_in_names_move_with_the_root(tmp_path, make_store):
    register_all(tmp_path / "one")
    made = make_store(name="two/shapes_lvis/stores/train")
    make_store(name="two/lvis_v1/stores/val", class_ids=list("abcdef"), parents=None)
    register_all(tmp_path / "two")
    assert MetadataCatalog.get("shapes_lvis_train").store_path == str(made.path)
    assert len(DatasetCatalog.get("shapes_lvis_train")) == 5
    assert get_metadata("lvis_v1_val").class_ids == list("abcdef")
    register_all(tmp_path / "one")
    with pytest.raises(DataError, match=r"there is no annotation store at .*/one/lvis_v1/stores/val"):
        DatasetCatalog.get("lvis_v1_val")


@pytest.mark.parametrize("damage", ["header.json", "box.npy", "*"])
def test_a_damaged_built_in_store_stops_nothing_else(tmp_path, make_store, caplog, damage):
    shapes = make_store(name="shapes/stores/train")
    folder = make_store(name="lvis_v1/stores/val").path
    for file in folder.glob(damage):
        file.unlink()
    detectron2_own_lvis()
    register_all(tmp_path)
    assert len(DatasetCatalog.get("shapes_train")) == 5
    assert "'lvis_v1_val' cannot be used" in caplog.text and str(folder) in caplog.text
    assert "\n" not in caplog.records[0].getMessage()
    assert DatasetCatalog.get("lvis_v1_val") == []
    assert MetadataCatalog.get("lvis_v1_val").thing_classes == ["x"]
    caplog.clear()
    (shapes.path / "label.npy").write_bytes(b"")
    register_all(tmp_path)
    assert "'shapes_train' cannot be used" in caplog.text
    with pytest.raises(DataError, match=r"label\.npy is damaged"):
        DatasetCatalog.get("shapes_train")


def test_built_in_names_leave_own_data_alone(tmp_path, store):
    register_store("openimages_v6_train", store.path)
    with pytest.raises(ConfigError, match="'openimages_v6_train' is taken by"):
        register_all(tmp_path)


def test_hierarchy_of_training_sets(store, make_store):
    register_store("one", store.path)
    register_store("two", make_store(name="two").path)
    ids = ["animal", "dog", "x", "pet", "fish", "car"]
    register_store("other", make_store(name="other", class_ids=ids, parents=None).path)
    assert hierarchy_of(["one", "two"]) == store.hierarchy
    with pytest.raises(DataError, match="class 2 is 'puppy' in one but 'x' in other"):
        hierarchy_of(["one", "other"])
    with pytest.raises(ConfigError, match="empty"):
        hierarchy_of([])
    with pytest.raises(DataError, match=r"unknown data set 'on'.*do you mean 'one'"):
        hierarchy_of(["on"])


def test_other_data_sets_are_flat():
    DatasetCatalog.register("plain", lambda: [])
    MetadataCatalog.get("plain").thing_classes = ["a", "b"]
    assert hierarchy_of(["plain"]) == LabelHierarchy.flat(["a", "b"])


def test_a_store_that_changed_classes_is_noticed(tmp_path, make_store):
    register_store("changing", make_store(name="changing").path)
    ids = ["animal", "dog", "x", "pet", "fish", "car"]
    make_store(name="changing", class_ids=ids, parents=None)
    with pytest.raises(DataError, match="class 2 is 'puppy' in 'changing' as it was loaded before"):
        DatasetCatalog.get("changing")
