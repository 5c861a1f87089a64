"""Masks from a COCO-form file to a store, a record, and the gt masks that a mask head trains on."""

import pickle

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from detectron2.data import transforms as T
from factories import json_store

from longtail_det2.config import get_cfg
from longtail_det2.data.dataset_mapper import MultiLabelDatasetMapper
from longtail_det2.data.datasets.coco import check_coco
from longtail_det2.data.datasets.dataset import MultiLabelDataset
from longtail_det2.data.hierarchy import LabelHierarchy
from longtail_det2.data.masks import (
    check_segmentation,
    decode_masks,
    encode_masks,
    rle_counts,
    to_bitmap,
    to_rle,
)
from longtail_det2.data.store import AnnotationStore, write_store
from longtail_det2.evaluation.ground_truth import StoreGroundTruth
from longtail_det2.utils.errors import ConfigError, DataError

SQUARE = [8, 4, 24, 4, 24, 12, 8, 12]
TRIANGLE = [30, 20, 50, 20, 40, 36]
ROWS = {"size": [40, 80], "counts": [0, 40, 40, 40, 40 * 77]}  # columns 0 and 2


def annotation(number, box, segmentation=None, category=5, **other):
    one = {"id": number, "image_id": 9, "category_id": category, "bbox": box, **other}
    return one if segmentation is None else {**one, "segmentation": segmentation}


def content(*annotations):
    return {
        "images": [{"id": 9, "file_name": "nine.png", "height": 40, "width": 80}],
        "annotations": list(annotations),
        "categories": [{"id": 5, "name": "animal"}, {"id": 7, "name": "dog"}],
    }


@pytest.fixture
def prepare(tmp_path):
    def run(*annotations, hierarchy=None, **options):
        return json_store(tmp_path, content(*annotations), hierarchy, "data", **options)

    return run


def test_polygons_and_rle_come_back(prepare):
    store = prepare(
        annotation(1, [8, 4, 42, 32], [SQUARE, TRIANGLE]),
        annotation(2, [0, 0, 3, 40], ROWS, iscrowd=1),
        annotation(3, [60, 0, 10, 10]),
        annotation(4, [60, 20, 10, 10], []),
    )
    assert store.has_masks and store.header["summary"]["objects_with_mask"] == 2
    records = MultiLabelDataset(store)[0]["annotations"]
    by_box = {round(one["bbox"][0]): one for one in records}
    assert [polygon.tolist() for polygon in by_box[8]["segmentation"]] == [SQUARE, TRIANGLE]
    runs = by_box[0]["segmentation"]
    assert runs["size"] == [40, 80] and rle_counts(runs["counts"]) == ROWS["counts"]
    columns = np.flatnonzero(to_bitmap(runs, 40, 80).all(axis=0))
    assert columns.tolist() == [0, 2]
    assert "segmentation" not in by_box[60] and len(records) == 4
    again = pickle.loads(pickle.dumps(store))
    assert sum(mask is None for mask in decode_masks(again, 0)) == 2


def test_compressed_rle_counts(prepare):
    mask = np.zeros((40, 80), dtype=np.uint8)
    mask[3:20, 5:31] = 1
    runs = coco_mask.encode(np.asfortranarray(mask))
    store = prepare(annotation(1, [5, 3, 26, 17], {"size": [40, 80], "counts": runs["counts"].decode()}))
    assert decode_masks(store, 0) == [runs]


def test_rle_counts_are_those_of_the_library():
    generator = np.random.default_rng(0)
    for _ in range(200):
        counts = generator.integers(0, 3001, generator.integers(1, 13)).tolist()
        size = [1, sum(counts)]
        runs = coco_mask.frPyObjects({"size": size, "counts": counts}, *size)
        assert rle_counts(runs["counts"]) == counts


def test_a_store_without_masks_has_no_columns_for_them(prepare, tmp_path):
    for store in (
        prepare(annotation(1, [8, 4, 16, 8])),
        prepare(annotation(1, [8, 4, 16, 8], [SQUARE]), masks=False),
        prepare(annotation(1, [8, 4, 16, 8], [[]])),
        prepare({**annotation(1, [8, 4, 16, 8]), "segmentation": None}),
    ):
        assert not store.has_masks and not (store.path / "vertex.npy").exists()
        assert "segmentation" not in MultiLabelDataset(store)[0]["annotations"][0]


@pytest.mark.parametrize("dog_first", [True, False])
def test_an_object_keeps_the_mask_of_its_most_specific_label(prepare, dog_first):
    rows = [
        annotation(1, [8, 4, 16, 8], [SQUARE], category=7),
        annotation(2, [8, 4, 16, 8], [[8, 4, 24, 4, 24, 12]], category=5),
        annotation(3, [50, 4, 16, 8], category=7),
        annotation(4, [50, 4, 16, 8], [[50, 4, 66, 4, 66, 12]], category=5),
    ]
    rows = rows if dog_first else rows[::-1]
    store = prepare(*rows, hierarchy={"dog": ["animal"]}, merge_equal_boxes=True)
    assert [mask[0].tolist() for mask in decode_masks(store, 0)] == [SQUARE, [50, 4, 66, 4, 66, 12]]


BAD = {
    "number": [1, 2, 3, 4, 5, 6],
    "short": [[1, 2, 3, 4]],
    "odd": [[1, 2, 3, 4, 5, 6, 7]],
    "one empty": [[8, 4, 24, 4, 24, 12], []],
    "words": [["a", 2, 3, 4, 5, 6]],
    "infinite": [[1, 2, 3, 4, 5, float("inf")]],
    "huge": [[1, 2, 3, 4, 5, 10**400]],
    "line": [[1, 1, 5, 5, 9, 9]],
    "outside": [[100, 1, 120, 1, 120, 9]],
    "size": {"size": [80, 40], "counts": [0, 3200]},
    "too few": {"size": [40, 80], "counts": [0, 3199]},
    "negative": {"size": [40, 80], "counts": [-1, 3201]},
    "flags": {"size": [40, 80], "counts": [True, 3199]},
    "garbage": {"size": [40, 80], "counts": "äö"},
    "unfinished": {"size": [40, 80], "counts": "o"},
    "overflow": {"size": [40, 80], "counts": "oooooooooo1"},
    "empty": {"size": [40, 80], "counts": [3200]},
}


@pytest.mark.parametrize("name", BAD)
def test_bad_masks(prepare, tmp_path, name):
    rows = annotation(1, [8, 4, 16, 8], BAD[name]), annotation(2, [30, 20, 20, 16], [TRIANGLE])
    with pytest.raises(DataError, match="annotation 1 has a segmentation"):
        prepare(*rows)
    assert not (tmp_path / "data").exists()
    store = prepare(*rows, skip_bad=True)
    assert [mask is None for mask in decode_masks(store, 0)] == [True, False]


def test_a_huge_coordinate_is_cut_at_the_border(prepare):
    # The library that rasterises polygons would run out of memory.
    store = prepare(annotation(1, [8, 4, 72, 36], [[8, 4, 1e12, 4, 1e12, 1e12, 8, 1e12]]))
    mask = to_bitmap(decode_masks(store, 0)[0], 40, 80)
    assert mask[4:, 8:].all() and mask.sum() == 36 * 72


@pytest.mark.parametrize(("old", "new"), [(-1, ord("o")), (0, ord("5"))])
def test_damaged_rle_is_refused(prepare, old, new):
    """pycocotools reads beyond the end of a text that does not say where it ends."""
    store = prepare(annotation(1, [0, 0, 3, 40], ROWS))
    run = np.load(store.path / "run.npy")
    run[old] = new
    np.save(store.path / "run.npy", run)
    with pytest.raises(DataError, match=r"an RLE has no end|does not fill the image"):
        to_bitmap(decode_masks(AnnotationStore(store.path), 0)[0], 40, 80)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("run", lambda values: None, r"run\.npy is missing"),
        (
            "vertex",
            lambda values: values[:3],
            r"vertex_offsets\.npy .* goes from 0 to 4, not from 0 to 3 vert",
        ),
        ("vertex", lambda values: values * np.nan, "not finite"),
    ],
)
def test_the_writer_wants_all_mask_columns_or_none(prepare, tmp_path, name, change, message):
    store = prepare(annotation(1, [8, 4, 16, 8], [SQUARE]))
    columns = {path.stem: np.load(path) for path in store.path.glob("*.npy")}
    assert write_store(tmp_path / "other", columns, store.class_ids).has_masks
    columns[name] = change(columns[name])
    known = {name: values for name, values in columns.items() if values is not None}
    with pytest.raises(DataError, match=message):
        write_store(tmp_path / "other", known, store.class_ids)


def test_polygons_of_two_decimals_are_the_same_pixels():
    """Though a store has them in single precision: 12.1 is where COCO's rules round."""
    generator = np.random.default_rng(0)
    for number in range(200):
        corners = generator.integers(0, (8001, 4001), (generator.integers(3, 9), 2))
        polygon = np.round(corners.reshape(-1) / 100, 1 + number % 2).tolist()
        stored = encode_masks([[np.array(polygon)]])["vertex"].reshape(-1)
        assert stored.dtype == np.float32
        wanted = coco_mask.merge(coco_mask.frPyObjects([polygon], 40, 80))
        assert to_rle([stored], 40, 80) == wanted


def test_annotated_areas(prepare, tmp_path):
    store = prepare(
        annotation(1, [8, 4, 16, 8], [SQUARE], area=120.25),
        annotation(2, [8, 4, 16, 8], category=7, area=99),  # the same object; the rarer class goes first
        annotation(3, [30, 20, 20, 16], [TRIANGLE]),
        annotation(4, [0, 0, 7, 3], area=5),
        merge_equal_boxes=True,
    )
    assert store.has_areas
    np.testing.assert_array_equal(store.areas, [5, 99, np.nan])
    truth = StoreGroundTruth(store)
    bitmap = to_bitmap(decode_masks(store, 0)[2], 40, 80)
    assert truth.area.tolist() == [5, 99, bitmap.sum()]
    columns = {path.stem: np.load(path) for path in store.path.glob("*.npy")}
    for wrong in (0.0, -1.0, np.inf):
        with pytest.raises(DataError, match=r"area\.npy .* has areas that are neither positive nor unknown"):
            write_store(tmp_path / "other", {**columns, "area": np.array([wrong, 1, 1])}, store.class_ids)
    assert not (tmp_path / "other").exists()
    (store.path / "area.npy").unlink()
    with pytest.raises(DataError, match=r"area\.npy is missing"):
        AnnotationStore(store.path)


def test_areas_that_are_none_are_passed_over(prepare, tmp_path):
    prepare(annotation(1, [8, 4, 16, 8], [SQUARE], area=128))
    wrong = [0, -3, "128", None, True]
    objects = [annotation(i, [i, 4, 16, 8], area=value) for i, value in enumerate(wrong)]
    store = prepare(*objects)
    assert not store.has_areas and StoreGroundTruth(store).area.round(3).tolist() == [128.0] * 5
    text = check_coco(tmp_path / "data.json", tmp_path).text()
    assert "4  areas that are not positive numbers: annotation 0 has the area 0" in text


def test_encoding_nothing():
    columns = encode_masks([None, None])
    assert columns["polygon_offsets"].tolist() == [0, 0, 0] and columns["vertex"].shape == (0, 2)
    assert encode_masks([])["run_offsets"].tolist() == [0]
    assert check_segmentation([], 40, 80) is None


@pytest.fixture
def make_mapper():
    def make(*augmentations, mask_format="polygon", **options):
        options = {"hierarchy": LabelHierarchy.flat("ab"), "mask_format": mask_format, **options}
        return MultiLabelDatasetMapper(True, augmentations=list(augmentations), **options)

    return make


@pytest.fixture
def record(prepare):
    store = prepare(
        annotation(1, [8, 4, 16, 8], [SQUARE]),
        annotation(2, [30, 20, 20, 16], [TRIANGLE]),
        annotation(3, [60, 0, 10, 10]),
        annotation(4, [64, 20, 12, 12], [[64, 20, 76, 20, 76, 32]], iscrowd=1),
    )
    return MultiLabelDataset(store)[0]


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_masks_are_augmented_with_the_image(record, make_mapper, mask_format):
    augmentations = [T.ResizeTransform(40, 80, 80, 160), T.HFlipTransform(160)]
    instances = make_mapper(*augmentations, mask_format=mask_format)(record)["instances"]
    left = instances.gt_boxes.tensor[:, 0].round().int().tolist()
    known = dict(zip(left, instances.gt_has_mask.tolist(), strict=True))
    assert known == {112: True, 60: True, 20: False, 8: False}  # the last two: no mask, a group
    masks = instances.gt_masks[instances.gt_has_mask]
    boxes = masks.get_bounding_boxes().tensor
    assert torch.allclose(boxes, instances.gt_boxes.tensor[instances.gt_has_mask], atol=1.5)
    square = instances.gt_masks[instances.gt_boxes.tensor[:, 0] > 100]
    cropped = square.crop_and_resize(torch.tensor([[112.0, 8, 144, 24]]), 8)
    assert cropped.all()
    beside = square.crop_and_resize(torch.tensor([[112.0, 24, 144, 40]]), 8)
    assert not beside.any()


def test_what_a_crop_cuts_away_goes(record, make_mapper):
    mapper = make_mapper(T.CropTransform(20, 6, 20, 24), recompute_boxes=True)
    instances = mapper(record)["instances"]
    boxes = instances.gt_boxes.tensor
    # The triangle's point of view: cut at x = 40 its left half remains, with a new tight box.
    assert len(instances) == 2 and instances.gt_has_mask.all()
    assert torch.allclose(boxes, torch.tensor([[0.0, 0, 4, 6], [10, 14, 20, 24]]), atol=0.01)
    loose = make_mapper(T.CropTransform(20, 6, 20, 24))(record)["instances"]
    assert torch.allclose(loose.gt_boxes.tensor[1], torch.tensor([10.0, 14, 20, 24]))


def test_a_mask_outside_the_crop_takes_its_object_along(prepare, make_mapper):
    store = prepare(annotation(1, [0, 0, 80, 40], [[0, 0, 40, 0, 0, 40]]))
    instances = make_mapper(T.CropTransform(60, 30, 20, 10))(MultiLabelDataset(store)[0])["instances"]
    assert len(instances) == len(instances.gt_masks) == len(instances.gt_has_mask) == 0


def test_rle_needs_bitmasks(prepare, make_mapper):
    record = MultiLabelDataset(prepare(annotation(1, [0, 0, 3, 40], ROWS)))[0]
    with pytest.raises(DataError, match=r"nine\.png \(image '9'\).*RLE.*'bitmask'"):
        make_mapper()(record)
    instances = make_mapper(T.HFlipTransform(80), mask_format="bitmask")(record)["instances"]
    assert np.flatnonzero(instances.gt_masks.tensor[0].all(dim=0)).tolist() == [77, 79]


def test_mask_formats(record, make_mapper):
    for mask_format in ("polygon", "bitmask"):
        instances = make_mapper(mask_format=mask_format)({**record, "annotations": []})["instances"]
        assert len(instances.gt_masks) == 0 and instances.gt_has_mask.dtype == torch.bool
    instances = make_mapper(mask_format=None)(record)["instances"]
    assert not instances.has("gt_masks") and not instances.has("gt_has_mask")
    with pytest.raises(ConfigError, match=r"INPUT\.MASK_FORMAT must be 'polygon' or 'bitmask', not 'rle'"):
        make_mapper(mask_format="rle")


def test_from_config():
    cfg = get_cfg()
    for wanted in (False, True):
        cfg.MODEL.MASK_ON = cfg.INPUT.CROP.ENABLED = wanted
        arguments = MultiLabelDatasetMapper.from_config(cfg, is_train=False)
        assert arguments["recompute_boxes"] == wanted
        assert arguments["mask_format"] == ("polygon" if wanted else None)
