"""Drawings of objects with several labels and with masks: what is written where, and which pixels change."""

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks

from longtail_det2.data.hierarchy import LabelHierarchy
from longtail_det2.utils.errors import DataError
from longtail_det2.visualization.multi_label_visualizer import (
    DrawnObject,
    MultiLabelVisualizer,
    class_color,
    labels_metadata,
    merge_predictions,
)

NAMES = ["red circle", "circle", "red", "shape"]
HIERARCHY = LabelHierarchy.from_json({"0": ["1", "2"], "1": ["3"]}, ["0", "1", "2", "3"])
METADATA = labels_metadata(NAMES, HIERARCHY)
FAR_BOX = [380.0, 280, 390, 290]  # away from every mask in 400 x 300 pixels, so that box and text touch none


def blank(height=48, width=64):
    return np.full((height, width, 3), 128, dtype=np.uint8)


def disc(y, x, radius):
    rows, columns = np.mgrid[:300, :400]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def tinted(label):
    """A pixel of a mask on the blank image."""
    return 0.62 * 128 + 0.38 * 255 * np.array(class_color(label))


def annotation(box, *labels, **more):
    return {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_ids": labels, **more}


@pytest.fixture
def drawn(monkeypatch):
    """What is given to Detectron2's drawing functions: texts, and boxes with line styles."""
    texts, boxes = [], []
    draw_text, draw_box = MultiLabelVisualizer.draw_text, MultiLabelVisualizer.draw_box

    def text(self, text, *position, **options):
        texts.append(text)
        return draw_text(self, text, *position, **options)

    def box(self, box_coord, **options):
        boxes.append((tuple(box_coord), options["line_style"]))
        return draw_box(self, box_coord, **options)

    monkeypatch.setattr(MultiLabelVisualizer, "draw_text", text)
    monkeypatch.setattr(MultiLabelVisualizer, "draw_box", box)
    return texts, boxes


def test_every_label_is_drawn_most_specific_first(drawn):
    record = {"annotations": [annotation([8, 8, 30, 30], 3, 1, 0)]}
    MultiLabelVisualizer(blank(), METADATA).draw_dataset_dict(record)
    assert drawn[0] == ["red circle\n+ circle\n+ shape"]
    assert drawn[1] == [((48.0, 48.0, 180.0, 180.0), "-")]  # 64 px wide: six-fold to 384


def test_groups_and_ignored_objects_are_marked(drawn):
    annotations = [
        annotation([0, 0, 30, 30], 2, is_group_of=True),
        annotation([2, 2, 9, 9], 3, iscrowd=1),
        {"bbox": [30, 30, 10, 10], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1},
    ]
    MultiLabelVisualizer(blank(), METADATA).draw_dataset_dict({"annotations": annotations})
    assert set(drawn[0]) == {"red\n[group of]", "shape\n[ignored]", "circle"}
    assert {style for _, style in drawn[1]} == {"--", ":", "-"}
    assert (180.0, 180.0, 240.0, 240.0) in [box for box, _ in drawn[1]]


def test_labels_of_the_whole_image_where_there_are_no_objects(drawn):
    visualizer = MultiLabelVisualizer(blank(), METADATA)
    visualizer.draw_dataset_dict({"pos_category_ids": [2, 0]})
    assert drawn == (["red circle\n+ red"], [((0.0, 0.0, 384.0, 288.0), "-")])
    visualizer.draw_dataset_dict({"annotations": [annotation([8, 8, 16, 16], 3)], "pos_category_ids": [2]})
    visualizer.draw_dataset_dict({"pos_category_ids": []})
    assert drawn[0][1:] == ["shape"]


@pytest.mark.parametrize("form", ["polygon", "bitmask"])
def test_truth_of_the_mapper(drawn, form):
    masks = [disc(60, 100, 40), disc(60, 250, 40), np.zeros((300, 400), dtype=bool)]
    squares = [np.array([x, 30.0, x + 60, 30, x + 60, 90, x, 90]) for x in (70, 220)]
    polygons, bits = [[squares[0]], [squares[1]], []], torch.from_numpy(np.stack(masks))
    instances = Instances(
        (300, 400),
        gt_boxes=Boxes(torch.tensor([FAR_BOX] * 3)),
        gt_classes=torch.tensor([1, 2, 0]),
        gt_labels=torch.tensor([[0, 1, 0, 1], [-1, 0, 1, 0], [1, 0, 0, 0]], dtype=torch.int8),
        gt_group_of=torch.tensor([False, True, False]),
        gt_has_mask=torch.tensor([True, False, True]),
        gt_masks=PolygonMasks(polygons) if form == "polygon" else BitMasks(bits),
    )
    image = MultiLabelVisualizer(blank(300, 400), METADATA).draw_truth(instances).get_image()
    assert set(drawn[0]) == {"circle\n+ shape", "red\n[group of]\n(1 below ignored)", "red circle"}
    assert (image[60, 100] != 128).any() and (image[60, 250] == 128).all()
    for name in ("gt_has_mask", "gt_labels", "gt_group_of"):  # all masks count then
        instances.remove(name)
    image = MultiLabelVisualizer(blank(300, 400)).draw_truth(instances).get_image()
    assert (image[60, 100] != 128).any() and (image[60, 250] != 128).any()


def test_predictions_of_one_box_share_a_block(drawn):
    predictions = Instances(
        (300, 400),
        pred_boxes=Boxes(torch.tensor([FAR_BOX, FAR_BOX, [380.0, 280, 389.5, 290], [300.0, 280, 310, 290]])),
        pred_classes=torch.tensor([1, 0, 2, 0]),
        scores=torch.tensor([0.9, 0.8, 0.7, 0.1]),
        pred_masks=torch.from_numpy(np.stack([disc(60, x, 40) for x in (80, 160, 240, 320)])),
    )
    visualizer = MultiLabelVisualizer(blank(300, 400), METADATA)
    image = visualizer.draw_instance_predictions(predictions, score_threshold=0.5).get_image()
    assert drawn[0] == ["red circle 80%\ncircle 90%\nred 70%"] and len(drawn[1]) == 1
    assert [(image[60, x] != 128).any() for x in (80, 180, 260, 320)] == [True, False, False, False]


def test_merging_keeps_equal_classes_apart():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 9.5], [0, 0, 4, 4]], dtype=np.float32)
    merged = merge_predictions(boxes, np.array([1, 1, 0, 0]), np.array([0.6, 0.9, 0.5, 0.4]))
    assert [one.classes for one in merged] == [[1, 0], [1], [0]]
    np.testing.assert_allclose(merged[0].scores, [0.9, 0.5])
    assert merged[0].box == [0, 0, 10, 10]
    assert merge_predictions(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0)) == []


def test_text_without_hierarchy_and_of_many_labels():
    text_of = MultiLabelVisualizer(blank()).text_of
    assert text_of(DrawnObject([0, 0, 9, 9], [3, 1], [0.25, 0.5])) == "3 25%\n1 50%"
    text = text_of(DrawnObject([0, 0, 9, 9], list(range(20))))
    assert text.split("\n") == ["0", *(f"+ {i}" for i in range(1, 8)), "… 12 more"]


def test_boxes_and_texts_are_limited(drawn, caplog):
    corner = np.random.default_rng(0).random((1200, 2)) * 500
    boxes, scores = np.hstack([corner, corner + 9]), 1e-3 * np.arange(1200) / 1.2
    objects = merge_predictions(boxes, np.zeros(1200, int), scores)
    assert len(objects) == 1000 and "1000 most certain of 1200" in caplog.text
    MultiLabelVisualizer(blank(520, 520), METADATA).draw_objects(objects)
    assert len(drawn[0]) == 300 and len(drawn[1]) == 1000
    assert min(float(text.split()[-1][:-1]) for text in drawn[0]) == 75
    assert "1000 are drawn, 300 with text" in caplog.text


def test_texts_stay_inside_and_off_each_other():
    boxes = [[180 + 4 * k, 120, 230 + 4 * k, 160] for k in range(10)]
    boxes += [[0, 0, 5, 5], [395, 295, 400, 300], [395, 0, 400, 4]]
    visualizer = MultiLabelVisualizer(blank(300, 400), labels_metadata(["a long name"]), min_size=800)
    output = visualizer.draw_objects([DrawnObject(box, [0]) for box in boxes])
    renderer = output.canvas.get_renderer()
    extents = [text.get_window_extent(renderer) for text in output.ax.texts]
    assert len(extents) == 13 and not any(a.overlaps(b) for i, a in enumerate(extents) for b in extents[:i])
    for extent in extents:
        assert extent.x0 >= -1 and extent.x1 <= output.width + 1
        assert extent.y0 >= -1 and extent.y1 <= output.height + 1


def test_pixels_inside_a_mask_change_and_others_do_not():
    one = DrawnObject(FAR_BOX, [1], mask=disc(100, 150, 60))
    image = MultiLabelVisualizer(blank(300, 400)).draw_objects([one]).get_image()
    touched = (image != 128).any(axis=2)
    assert touched[one.mask].all() and not touched[:250][~disc(100, 150, 62)[:250]].any()
    np.testing.assert_allclose(image[100, 150], tinted(1), atol=1.5)
    # The object stays visible: what differs beneath differs in the drawing.
    striped = blank(300, 400)
    striped[:, ::2] = 228
    image = MultiLabelVisualizer(striped).draw_objects([one]).get_image()
    assert image.shape == striped.shape
    assert (np.abs(image[100, 150].astype(int) - image[100, 151]) > 55).all()
    image = MultiLabelVisualizer(blank(300, 400), max_size=100).draw_objects([one]).get_image()
    assert image.shape == (75, 100, 3)
    assert (image[25, 38] != 128).any() and (image[25, 60] == 128).all()


def test_small_objects_lie_above_large_ones():
    objects = [
        DrawnObject([120.0, 70, 180, 130], [0], mask=disc(100, 150, 30)),
        DrawnObject([90.0, 40, 210, 160], [1], mask=disc(100, 150, 60)),
    ]
    first, second = (
        MultiLabelVisualizer(blank(300, 400)).draw_objects(each).get_image()
        for each in (objects, objects[::-1])
    )
    assert (first == second).all()
    np.testing.assert_allclose(first[110, 150], tinted(0), atol=1.5)  # by one mask only


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("text", "neither a list of polygons"),
        ({"size": [48, 64], "counts": "é\ud800"}, "no compressed RLE"),
        ({"size": [48, 64], "counts": "04"}, "cover 4 of 3072 pixels"),
        (np.zeros((3, 4)), r"of the shape \(3, 4\)"),
    ],
)
def test_wrong_masks_name_image_and_object(value, message):
    good = annotation([0, 0, 9, 9], 1, segmentation=[[10, 10, 60, 10, 60, 40]])
    record = {"image_id": "photo", "annotations": [good, {**good, "segmentation": value}]}
    with pytest.raises(DataError, match=f"image 'photo': annotation 1 has a segmentation .*{message}"):
        MultiLabelVisualizer(blank()).draw_dataset_dict(record)
