import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, BoxMode, Instances

from longtail_det2.data.hierarchy import LabelHierarchy
from longtail_det2.visualization.multi_label_visualizer import (
    DrawnObject,
    MultiLabelVisualizer,
    labels_metadata,
    merge_predictions,
)

NAMES = ["red circle", "circle", "red", "shape"]
HIERARCHY = LabelHierarchy.from_json({"0": ["1", "2"], "1": ["3"]}, ["0", "1", "2", "3"])


@pytest.fixture
def metadata():
    return labels_metadata(NAMES, HIERARCHY)


@pytest.fixture
def drawn(monkeypatch):
    """What is given to Detectron2's drawing functions: texts and line styles with boxes."""
    texts, boxes = [], []
    draw_text, draw_box = MultiLabelVisualizer.draw_text, MultiLabelVisualizer.draw_box

    def text(self, text, position, **options):
        texts.append((text, position))
        return draw_text(self, text, position, **options)

    def box(self, box_coord, **options):
        boxes.append((tuple(box_coord), options["line_style"]))
        return draw_box(self, box_coord, **options)

    monkeypatch.setattr(MultiLabelVisualizer, "draw_text", text)
    monkeypatch.setattr(MultiLabelVisualizer, "draw_box", box)
    return texts, boxes


def blank(height=48, width=64):
    return np.full((height, width, 3), 128, dtype=np.uint8)


def annotation(box, labels, **more):
    return {
        "bbox": box,
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": labels[0],
        "category_ids": labels,
        **more,
    }


def test_every_label_is_drawn_most_specific_first(metadata, drawn):
    texts, boxes = drawn
    visualizer = MultiLabelVisualizer(blank(), metadata)
    visualizer.draw_dataset_dict({"annotations": [annotation([8, 8, 30, 30], [3, 1, 0])]})
    assert [text for text, _ in texts] == ["red circle\n+ circle\n+ shape"]
    assert boxes == [((48.0, 48.0, 180.0, 180.0), "-")]  # 64 px wide: six-fold to 384


def test_groups_and_ignored_objects_are_marked(metadata, drawn):
    texts, boxes = drawn
    annotations = [
        annotation([0, 0, 30, 30], [2], is_group_of=True),
        annotation([2, 2, 9, 9], [3], iscrowd=1),
        {"bbox": [30, 30, 10, 10], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1},
    ]
    MultiLabelVisualizer(blank(), metadata).draw_dataset_dict({"annotations": annotations})
    assert {style for _, style in boxes} == {"--", ":", "-"}
    assert {text for text, _ in texts} == {"red\n[group of]", "shape\n[ignored]", "circle"}
    assert (180.0, 180.0, 240.0, 240.0) in [box for box, _ in boxes]


def test_truth_of_the_mapper(metadata, drawn):
    truth = torch.tensor([[0, 1, 0, 1], [-1, 0, 1, 0]], dtype=torch.int8)
    instances = Instances(
        (48, 64),
        gt_boxes=Boxes(torch.tensor([[1.0, 1, 20, 20], [30, 20, 60, 40]])),
        gt_classes=torch.tensor([1, 2]),
        gt_labels=truth,
        gt_group_of=torch.tensor([False, True]),
    )
    MultiLabelVisualizer(blank(), metadata).draw_truth(instances)
    assert {text for text, _ in drawn[0]} == {"circle\n+ shape", "red\n[group of]\n(1 below ignored)"}


def test_predictions_of_one_box_share_a_block(metadata, drawn):
    texts, boxes = drawn
    predictions = Instances(
        (48, 64),
        pred_boxes=Boxes(torch.tensor([[8.0, 8, 30, 30], [8, 8, 30, 30], [8, 8, 29, 30], [40, 8, 60, 40]])),
        pred_classes=torch.tensor([1, 0, 2, 0]),
        scores=torch.tensor([0.9, 0.8, 0.7, 0.1]),
    )
    visualizer = MultiLabelVisualizer(blank(), metadata)
    visualizer.draw_instance_predictions(predictions, score_threshold=0.5)
    assert [text for text, _ in texts] == ["red circle 80%\ncircle 90%\nred 70%"]
    assert len(boxes) == 1


def test_merging_keeps_equal_classes_apart():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 9.5], [0, 0, 4, 4]], dtype=np.float32)
    merged = merge_predictions(boxes, np.array([1, 1, 0, 0]), np.array([0.6, 0.9, 0.5, 0.4]))
    assert [one.classes for one in merged] == [[1, 0], [1], [0]]
    np.testing.assert_allclose(merged[0].scores, [0.9, 0.5])
    assert merged[0].box == [0, 0, 10, 10]
    assert merge_predictions(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0)) == []


def test_without_hierarchy_and_names():
    visualizer = MultiLabelVisualizer(blank())
    assert visualizer.text_of(DrawnObject([0, 0, 9, 9], [3, 1], [0.25, 0.5])) == "3 25%\n1 50%"


def test_long_label_lists_are_cut(metadata):
    visualizer = MultiLabelVisualizer(blank(), labels_metadata([str(i) for i in range(20)]))
    text = visualizer.text_of(DrawnObject([0, 0, 9, 9], list(range(20))))
    assert text.split("\n") == ["0", *(f"+ {i}" for i in range(1, 8)), "… 12 more"]


def test_boxes_and_texts_are_limited(metadata, drawn, caplog):
    corner = np.random.default_rng(0).random((1200, 2)) * 500
    boxes, scores = np.hstack([corner, corner + 9]), 1e-3 * np.arange(1200) / 1.2
    objects = merge_predictions(boxes, np.zeros(1200, int), scores)
    assert len(objects) == 1000 and "1000 most certain of 1200" in caplog.text
    MultiLabelVisualizer(blank(520, 520), metadata).draw_objects(objects)
    assert len(drawn[0]) == 300 and len(drawn[1]) == 1000
    assert min(float(text.split()[-1][:-1]) for text, _ in drawn[0]) == 75
    assert "1000 are drawn, 300 with text" in caplog.text


def test_text_stays_inside_the_picture(metadata, drawn):
    objects = [DrawnObject(box, [0]) for box in ([0, 0, 5, 5], [59, 43, 64, 48], [59, 0, 64, 4])]
    visualizer = MultiLabelVisualizer(blank(), metadata)
    output = visualizer.draw_objects(objects)
    renderer = output.canvas.get_renderer()
    for text in output.ax.texts:
        extent = text.get_window_extent(renderer)
        assert extent.x0 >= -1 and extent.y0 >= -1
        assert extent.x1 <= output.width + 1 and extent.y1 <= output.height + 1


def test_large_pictures_keep_their_size(metadata):
    visualizer = MultiLabelVisualizer(blank(300, 500), metadata)
    assert visualizer.zoom == 1
    assert visualizer.draw_dataset_dict({}).get_image().shape == (300, 500, 3)
    assert MultiLabelVisualizer(blank(10, 32), metadata).output.get_image().shape == (120, 384, 3)
