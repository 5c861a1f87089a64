import copy
import pickle

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image

from longtail_det2.config import get_cfg
from longtail_det2.data.dataset_mapper import MultiLabelDatasetMapper
from longtail_det2.data.datasets.builtin import register_store
from longtail_det2.data.datasets.dataset import MultiLabelDataset
from longtail_det2.data.hierarchy import LabelHierarchy
from longtail_det2.utils.errors import ConfigError, DataError

ANIMAL, DOG, PUPPY, PET, FISH, CAR = range(6)


@pytest.fixture
def dataset(store):
    return MultiLabelDataset(store)


@pytest.fixture
def make_mapper(pet_hierarchy):
    def make(is_train=True, augmentations=(), **options):
        return MultiLabelDatasetMapper(
            is_train, **{"augmentations": list(augmentations), "hierarchy": pet_hierarchy, **options}
        )

    return make


def test_truth(dataset, make_mapper):
    record = dataset[0]
    before = copy.deepcopy(record)
    result = make_mapper()(record)
    assert record == before
    assert result["image"].shape == (3, 40, 60) and result["image"].dtype == torch.uint8
    assert result["image"][2, 0, :3].tolist() == [0, 1, 2]  # BGR: red is last
    instances = result["instances"]
    assert instances.image_size == (40, 60)
    assert torch.allclose(
        instances.gt_boxes.tensor, torch.tensor([[6.0, 4, 30, 20], [0, 0, 60, 40]]), atol=1e-4
    )
    assert instances.gt_classes.tolist() == [PUPPY, CAR] and instances.gt_classes.dtype == torch.int64
    assert instances.gt_labels.tolist() == [[1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1]]
    assert instances.gt_labels.dtype == torch.int8
    assert instances.gt_group_of.tolist() == [False, True] and instances.gt_group_of.dtype == torch.bool
    assert (result["height"], result["width"], result["image_id"]) == (40, 60, "a")
    assert not {"annotations", "pos_category_ids", "neg_category_ids"} & set(result)


def test_ignored_descendants(dataset, make_mapper):
    record = dataset[3]
    assert make_mapper()(record)["instances"].gt_labels.tolist() == [
        [1, -1, -1, 0, 0, 0],
        [1, 1, -1, 1, 0, 0],
    ]
    strict = make_mapper(ignore_descendants=False)(record)["instances"]
    assert strict.gt_labels.tolist() == [[1, 0, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0]]


def test_image_without_objects(dataset, make_mapper):
    result = make_mapper()(dataset[1])
    instances = result["instances"]
    assert len(instances) == 0 and instances.gt_labels.shape == (0, 6)
    assert instances.gt_boxes.tensor.shape == (0, 4) and instances.gt_group_of.shape == (0,)


def test_group_of_boxes_may_be_dropped(dataset, make_mapper):
    result = make_mapper(group_of="drop")(dataset[0])
    assert result["instances"].gt_classes.tolist() == [PUPPY]


def test_crowds_are_dropped_as_in_detectron2(dataset, make_mapper):
    record = dataset[0]
    record["annotations"][0]["iscrowd"] = 1
    assert make_mapper()(record)["instances"].gt_classes.tolist() == [CAR]


def test_boxes_follow_the_image(dataset, make_mapper):
    mapper = make_mapper(augmentations=[T.RandomFlip(prob=1.0), T.Resize((80, 120))])
    result = mapper(dataset[0])
    assert result["image"].shape == (3, 80, 120) and (result["height"], result["width"]) == (40, 60)
    expected = torch.tensor([60.0, 8, 108, 40])
    assert torch.allclose(result["instances"].gt_boxes.tensor[0], expected, atol=1e-3)


def test_cropping_drops_boxes_with_their_labels(dataset, make_mapper):
    crop = T.CropTransform(40, 0, 20, 40)  # the puppy ends at x = 30
    instances = make_mapper(augmentations=[crop])(dataset[0])["instances"]
    assert len(instances) == 1 and instances.gt_classes.tolist() == [CAR]
    assert instances.gt_labels.tolist() == [[0, 0, 0, 0, 0, 1]] and instances.gt_group_of.tolist() == [True]
    assert torch.allclose(instances.gt_boxes.tensor, torch.tensor([[0.0, 0, 20, 40]]))
    nothing = make_mapper(augmentations=[T.CropTransform(0, 0, 2, 2)])(dataset[2])["instances"]
    assert len(nothing) == 0 and nothing.gt_labels.shape == (0, 6)


def test_inference_keeps_truth_out(dataset, make_mapper):
    result = make_mapper(False)(dataset[0])
    assert set(result) == {"image", "height", "width", "image_id", "file_name"}
    MultiLabelDatasetMapper(False, augmentations=[])(dataset[0])  # needs no classes


def test_no_hierarchy_and_plain_detectron2_records(dataset):
    mapper = MultiLabelDatasetMapper(True, augmentations=[], hierarchy=LabelHierarchy.flat("ab"))
    record = {
        "file_name": dataset[0]["file_name"],
        "annotations": [{"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1}],
    }
    result = mapper(record)
    assert result["instances"].gt_boxes.tensor.tolist() == [[1, 2, 4, 6]]
    assert result["instances"].gt_labels.tolist() == [[0, 1]]
    assert (result["height"], result["width"]) == (40, 60)


def test_records_with_category_ids_alone_or_without_annotations(dataset):
    mapper = MultiLabelDatasetMapper(True, augmentations=[], hierarchy=LabelHierarchy.flat("abc"))
    one = {"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYXY_ABS}
    record = {"file_name": dataset[0]["file_name"]}
    instances = mapper({**record, "annotations": [{**one, "category_ids": [2, 0]}]})["instances"]
    assert instances.gt_classes.tolist() == [2] and instances.gt_labels.tolist() == [[1, 0, 1]]
    instances = mapper({**record, "annotations": [{**one, "category_ids": [], "category_id": 1}]})[
        "instances"
    ]
    assert instances.gt_classes.tolist() == [1] and instances.gt_labels.tolist() == [[0, 1, 0]]
    with pytest.raises(DataError, match="neither 'category_ids' nor 'category_id'"):
        mapper({**record, "annotations": [{"bbox": one["bbox"], "bbox_mode": one["bbox_mode"]}]})
    assert len(mapper(record)["instances"]) == 0


def test_image_errors_name_the_file(dataset, make_mapper, tmp_path):
    mapper, record = make_mapper(), dataset[0]
    with pytest.raises(DataError, match=r"nowhere\.png \(image 'a'\): image not found"):
        mapper({**record, "file_name": str(tmp_path / "nowhere.png")})
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.png \(image 'a'\): cannot read the image"):
        mapper({**record, "file_name": str(broken)})
    whole = tmp_path / "whole.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)).save(whole)
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(whole.read_bytes()[:-900])
    with pytest.raises(DataError, match=r"cut\.jpg \(image 'a'\): cannot read the image"):
        mapper({**record, "file_name": str(cut)})
    with pytest.raises(
        DataError, match=r"a\.png \(image 'a'\): annotated as 50 x 40 pixels.*the file has 60 x 40"
    ):
        mapper({**record, "width": 50})


def test_argument_errors():
    with pytest.raises(ConfigError, match=r"INPUT\.GROUP_OF"):
        MultiLabelDatasetMapper(True, augmentations=[], group_of="ignore")
    with pytest.raises(ConfigError, match="hierarchy"):
        MultiLabelDatasetMapper(True, augmentations=[])


def test_pickles(dataset, make_mapper):
    mapper = pickle.loads(pickle.dumps(make_mapper()))
    assert mapper(dataset[0])["instances"].gt_classes.tolist() == [PUPPY, CAR]


@pytest.fixture
def cfg(store):
    register_store("mapper_tiny", store.path)
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = ("mapper_tiny",)
    yield cfg
    DatasetCatalog.remove("mapper_tiny")
    MetadataCatalog.remove("mapper_tiny")


def test_from_config(cfg, store, dataset):
    cfg.INPUT.GROUP_OF = "drop"
    cfg.INPUT.IGNORE_DESCENDANTS = False
    cfg.INPUT.CROP.ENABLED = True
    mapper = MultiLabelDatasetMapper(cfg, True)
    assert mapper.hierarchy == store.hierarchy
    assert mapper.group_of == "drop" and mapper.ignore_descendants is False
    assert [type(one).__name__ for one in mapper.augmentations.augs] == [
        "RandomCrop", "ResizeShortestEdge", "RandomFlip",
    ]  # fmt: skip
    assert "instances" in mapper(dataset[0])
    cfg.DATASETS.TRAIN = ()
    assert "instances" not in MultiLabelDatasetMapper(cfg, False)(dataset[0])


@pytest.mark.parametrize("key", ["KEYPOINT_ON", "LOAD_PROPOSALS"])
def test_from_config_refuses_what_the_mapper_does_not_carry(cfg, key):
    setattr(cfg.MODEL, key, True)
    with pytest.raises(ConfigError, match=f"MODEL.{key}"):
        MultiLabelDatasetMapper(cfg, True)
