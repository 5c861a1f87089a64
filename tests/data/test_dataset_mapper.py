import copy
import pickle

import pytest
import torch
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from factories import CAR, PUPPY

from longtail_det2.config import get_cfg
from longtail_det2.data.dataset_mapper import MultiLabelDatasetMapper, build_augmentation
from longtail_det2.data.datasets.builtin import register_store
from longtail_det2.data.datasets.dataset import MultiLabelDataset
from longtail_det2.data.hierarchy import LabelHierarchy
from longtail_det2.utils.errors import ConfigError, DataError


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


def test_groups_may_be_dropped_and_crowds_are(dataset, make_mapper):
    record = dataset[0]
    assert make_mapper(group_of="drop")(record)["instances"].gt_classes.tolist() == [PUPPY]
    record["annotations"][0]["iscrowd"] = 1  # as in Detectron2
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


def test_records_of_other_data_sets(dataset):
    """Detectron2's with one label and another form of boxes, labels without a first one, no annotations."""
    mapper = MultiLabelDatasetMapper(True, augmentations=[], hierarchy=LabelHierarchy.flat("abc"))
    record = {"file_name": dataset[0]["file_name"]}
    one = {"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYWH_ABS}
    for labels, first, truth in (
        ({"category_id": 1}, 1, [0, 1, 0]),
        ({"category_ids": [], "category_id": 1}, 1, [0, 1, 0]),
        ({"category_ids": [2, 0]}, 2, [1, 0, 1]),
    ):
        result = mapper({**record, "annotations": [{**one, **labels}]})
        instances = result["instances"]
        assert instances.gt_boxes.tensor.tolist() == [[1, 2, 4, 6]]
        assert instances.gt_classes.tolist() == [first] and instances.gt_labels.tolist() == [truth]
        assert (result["height"], result["width"]) == (40, 60)
    with pytest.raises(DataError, match="neither 'category_ids' nor 'category_id'"):
        mapper({**record, "annotations": [one]})
    assert len(mapper(record)["instances"]) == 0


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
    return cfg


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


def test_truth_of_whole_images(store, make_mapper):
    """In Open Images' form unlisted classes are unverified; plain records list all of theirs."""
    dataset = MultiLabelDataset(store, image_level=True)
    mapper = make_mapper(image_level=True)
    found = [mapper(dataset[index])["gt_labels"] for index in range(len(dataset))]
    assert all(one.dtype == torch.int8 for one in found)
    #                            animal dog puppy pet fish car
    assert found[0].tolist() == [1, 1, 1, 1, -1, 1]
    assert found[1].tolist() == [-1, -1, -1, 1, 1, 0]  # a fish, no car
    assert "exhaustive_labels" not in mapper(dataset[0]) and "instances" not in mapper(dataset[0])
    assert "gt_labels" not in make_mapper(False, image_level=True)(dataset[0])
    record = {**dataset[1], "neg_category_ids": [0]}
    assert mapper(record)["gt_labels"].tolist() == [0, 0, 0, 1, 1, -1]  # what is no animal is no dog
    del record["exhaustive_labels"]
    assert mapper(record)["gt_labels"].tolist() == [0, 0, 0, 1, 1, 0]


def test_fixed_size_and_jitter(dataset, pet_hierarchy):
    cfg = get_cfg()
    cfg.INPUT.FIXED_SIZE, cfg.INPUT.COLOR_JITTER = (24, 32), 0.5
    names = [type(one).__name__ for one in build_augmentation(cfg, True)]
    assert names == ["Resize", "RandomFlip", "RandomBrightness", "RandomContrast", "RandomSaturation"]
    (resize,) = build_augmentation(cfg, False)
    mapper = MultiLabelDatasetMapper(False, augmentations=[resize])
    assert mapper(dataset[0])["image"].shape == (3, 24, 32)
