"""A tiny store with real image files, and the folder that a run on it would leave."""

import json

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from detectron2.structures import Boxes, Instances
from factories import GROUP_OF, store_columns
from PIL import Image

from longtail_det2.data.datasets.dataset import MultiLabelDataset
from longtail_det2.data.masks import encode_masks
from longtail_det2.data.store import AnnotationStore, write_store
from longtail_det2.evaluation.evaluator import build_evaluators

CLASS_IDS = ("rc", "gc", "rs", "circle", "red")
CLASS_NAMES = ("red circle", "green <circle>", "red square", "circle", "red")
PARENTS = {"rc": ["circle", "red"], "gc": ["circle"], "rs": ["red"]}
# Objects of each image: (box, labels, flags)
OBJECTS = [
    [((0.1, 0.1, 0.5, 0.5), (0,), 0), ((0.6, 0.6, 0.9, 0.9), (0, 1), 0)],
    [((0.2, 0.2, 0.8, 0.8), (1,), GROUP_OF)],
    [((0.1, 0.2, 0.4, 0.6), (2,), 0), ((0.5, 0.5, 0.9, 0.9), (4,), 0)],
    [],
]
GROUP_MASK = np.zeros((48, 64), dtype=np.uint8, order="F")
GROUP_MASK[12:36, 16:48] = 1
# The mask of each object: a triangle, none, run lengths of a part of the box, a square, two parts
MASKS = [
    [np.array([6.5, 4.75, 32, 4.75, 32, 24], dtype=np.float32)],
    None,
    coco_mask.encode(GROUP_MASK),
    [np.array([8, 12, 24, 12, 24, 28, 8, 28], dtype=np.float32)],
    [
        np.array([32, 24, 40, 24, 40, 43, 32, 43], dtype=np.float32),
        np.array([48, 24, 57, 24, 57, 43, 48, 43], dtype=np.float32),
    ],
]


def make_store(path, images, masks=None):
    """A store of OBJECTS with 64 x 48 images, and with masks of the objects if there are any."""
    images.mkdir()
    rng = np.random.default_rng(0)
    names = [f"im{index}" for index in range(len(OBJECTS))]
    for name in names:
        pixels = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{name}.png")
    objects = [(image, *one) for image, inside in enumerate(OBJECTS) for one in inside]
    columns = store_columns(names, (48, 64), objects, **({} if masks is None else encode_masks(masks)))
    return write_store(path, columns, CLASS_IDS, CLASS_NAMES, parents=PARENTS, image_root=images)


def make_instances(record):
    """Perfect predictions of all labels of a record, and one false one."""
    boxes, classes = [[0.0, 0.0, 6.0, 6.0]], [2]
    for one in record["annotations"]:
        boxes += [one["bbox"]] * len(one["category_ids"])
        classes += one["category_ids"]
    return Instances(
        (48, 64),
        pred_boxes=Boxes(torch.tensor(boxes)),
        pred_classes=torch.tensor(classes),
        scores=torch.linspace(0.55, 0.95, len(classes)),
    )


def fill_boxes(instances):
    """The same instances with masks that fill their boxes."""
    height, width = instances.image_size
    x0, y0, x1, y1 = instances.pred_boxes.tensor.round()[:, :, None, None].unbind(1)
    x, y = torch.arange(width)[None, None, :], torch.arange(height)[None, :, None]
    instances.pred_masks = (x >= x0) & (x < x1) & (y >= y0) & (y < y1)
    return instances


@pytest.fixture
def store(tmp_path) -> AnnotationStore:
    return make_store(tmp_path / "store", tmp_path / "images")


@pytest.fixture
def masked_store(tmp_path) -> AnnotationStore:
    return make_store(tmp_path / "masked_store", tmp_path / "masked_images", MASKS)


@pytest.fixture
def run(tmp_path, store):
    """Output folder of a run: log with a half-written last line, config, evaluation."""
    folder = tmp_path / "run"
    folder.mkdir()
    log = "".join(
        json.dumps({"iteration": i, "total_loss": 3 / i, "loss_cls": 2 / i, "lr": 0.01, "time": 0.5}) + "\n"
        for i in range(19, 200, 20)
    )
    (folder / "metrics.json").write_text(log + '{"iteration": 219, "total_lo')
    (folder / "config.yaml").write_text(
        "SEED: 7\nOUTPUT_DIR: /secret/place\nSOLVER:\n  BASE_LR: 0.125\n  IMS_PER_BATCH: 8\nVERSION: 2\n"
    )
    evaluate_run(folder, store, "tiny", metrics=["open_images"])
    return folder


@pytest.fixture
def masked_run(tmp_path, masked_store):
    """Output folder of a run whose detector has masks, evaluated by both metrics."""
    folder = tmp_path / "masked_run"
    evaluate_run(folder, masked_store, metrics=["open_images", "coco"], tasks=("bbox", "segm"))
    return folder


@pytest.fixture
def lvis_run(tmp_path, masked_store):
    """The same by LVIS's metric alone: the folder and the results."""
    folder = tmp_path / "lvis_run"
    return folder, evaluate_run(folder, masked_store, metrics=["lvis"], tasks=("bbox", "segm"))


def evaluate_run(folder, store, name="masked", **metrics):
    results, counts = folder / "inference" / name, store.image_counts(expanded=True)
    evaluators = build_evaluators(str(store.path), output_dir=results, train_counts=counts, **metrics)
    evaluators.reset()
    for record in MultiLabelDataset(store):
        evaluators.process([record], [{"instances": fill_boxes(make_instances(record))}])
    return evaluators.evaluate()
