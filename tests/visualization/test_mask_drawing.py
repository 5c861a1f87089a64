"""Masks in drawings: their pixels, outlines, sizes, and masks that are wrong."""

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks

from longtail_det2.data.datasets.dataset import MultiLabelDataset
from longtail_det2.utils.errors import DataError
from longtail_det2.visualization.multi_label_visualizer import (
    DrawnObject,
    MultiLabelVisualizer,
    class_color,
    labels_metadata,
    read_mask,
)

HEIGHT, WIDTH = 300, 400
FAR_BOX = [380.0, 280, 390, 290]  # away from every mask, so that box and text touch none


def blank():
    return np.full((HEIGHT, WIDTH, 3), 128, dtype=np.uint8)


def disc(y, x, radius):
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def record(*annotations):
    common = {"bbox": FAR_BOX, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1}
    return {"image_id": "photo", "annotations": [{**common, **one} for one in annotations]}


def test_pixels_inside_change_and_others_do_not():
    mask = disc(100, 150, 60)
    visualizer = MultiLabelVisualizer(blank(), labels_metadata(["a", "b"]))
    image = visualizer.draw_objects([DrawnObject(FAR_BOX, [1], mask=mask)]).get_image()
    touched = (image != 128).any(axis=2)
    assert touched[mask].all() and not touched[:250][~disc(100, 150, 62)[:250]].any()
    np.testing.assert_allclose(image[100, 150], 0.62 * 128 + 0.38 * 255 * np.array(class_color(1)), atol=1.5)
    # The object stays visible: what differs beneath differs in the drawing.
    striped = blank()
    striped[:, ::2] = 228
    drawn = MultiLabelVisualizer(striped).draw_objects([DrawnObject(FAR_BOX, [1], mask=mask)]).get_image()
    assert (np.abs(drawn[100, 150].astype(int) - drawn[100, 151]) > 55).all()


@pytest.mark.parametrize("size", [(48, 64), (30, 40), (37, 64)])
def test_masks_are_enlarged_with_the_picture(size):
    mask = np.zeros(size, dtype=bool)
    mask[10:20, 20:36] = True
    visualizer = MultiLabelVisualizer(np.full((*size, 3), 128, np.uint8))
    image = visualizer.draw_objects([DrawnObject([0, 0, 3, 3], [0], mask=mask)]).get_image()
    zoom = visualizer.zoom
    assert zoom > 1
    touched = (image != 128).any(axis=2)
    y0, y1, x0, x1 = (round(zoom * edge) for edge in (10, 20, 20, 36))
    assert touched[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2].all()  # corners are a little round
    touched[y0 - 1 : y1 + 1, x0 - 1 : x1 + 1] = False
    assert not touched[:, round(15 * zoom) :].any()  # left of that are the box and its text


def test_masks_are_shrunk_with_the_picture():
    visualizer = MultiLabelVisualizer(blank(), min_size=384, max_size=100)
    assert visualizer.zoom == 0.25
    image = visualizer.draw_objects([DrawnObject(FAR_BOX, [0], mask=disc(100, 150, 60))]).get_image()
    assert image.shape == (75, 100, 3)
    assert (image[25, 38] != 128).any() and (image[25, 60] == 128).all()


def test_a_mask_of_another_size_is_refused():
    visualizer = MultiLabelVisualizer(blank())
    with pytest.raises(DataError, match=r"mask of \(30, 40\) pixels .* image of \(300, 400\)"):
        visualizer.draw_objects([DrawnObject(FAR_BOX, [0], mask=np.ones((30, 40), dtype=bool))])


def test_small_objects_lie_above_large_ones():
    low, high = disc(100, 150, 60), disc(100, 150, 30)
    objects = [
        DrawnObject([120.0, 70, 180, 130], [0], mask=high),
        DrawnObject([90.0, 40, 210, 160], [1], mask=low),
    ]
    images = [MultiLabelVisualizer(blank()).draw_objects(one).get_image() for one in (objects, objects[::-1])]
    assert (images[0] == images[1]).all()
    once = 0.62 * 128 + 0.38 * 255 * np.array(class_color(0))  # a pixel is tinted by one mask only
    np.testing.assert_allclose(images[0][110, 150], once, atol=1.5)


def test_predicted_masks_above_the_threshold():
    predictions = Instances(
        (HEIGHT, WIDTH),
        pred_boxes=Boxes(torch.tensor([FAR_BOX, FAR_BOX, [300.0, 280, 310, 290]])),
        pred_classes=torch.tensor([0, 1, 1]),
        scores=torch.tensor([0.9, 0.6, 0.3]),
        pred_masks=torch.from_numpy(np.stack([disc(60, x, 40) for x in (100, 180, 250)])),
    )
    drawn = MultiLabelVisualizer(blank()).draw_instance_predictions(predictions, score_threshold=0.5)
    image = drawn.get_image()  # two predictions of one box are drawn with the mask of the better one
    assert [(image[60, x] != 128).any() for x in (100, 200, 270)] == [True, False, False]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("text", "neither a list of polygons"),
        ([[1, 2, 3, 4]], "polygon of 4 numbers"),
        ([[1, 2, 3, 4, 5, float("nan")]], "not finite"),
        ({"size": [3, 4], "counts": "0"}, r"of the size \[3, 4\] in an image of \[300, 400\]"),
        ({"size": [HEIGHT, WIDTH], "counts": "é\ud800"}, "no compressed RLE"),
        ({"size": [HEIGHT, WIDTH], "counts": "04"}, "cover 4 of 120000 pixels"),
        (np.zeros((3, 4)), "of the shape"),
    ],
)
def test_wrong_masks_name_image_and_object(value, message):
    with pytest.raises(ValueError, match=message):
        read_mask(value, HEIGHT, WIDTH)
    good = [[10, 10, 60, 10, 60, 60]]
    with pytest.raises(DataError, match=f"image 'photo': annotation 1 has a segmentation .*{message}"):
        MultiLabelVisualizer(blank()).draw_dataset_dict(
            record({"segmentation": good}, {"segmentation": value})
        )


def test_masks_of_a_store(masked_store):
    for one in MultiLabelDataset(masked_store):
        images = []
        for record in (
            one,
            {**one, "annotations": [{**a, "segmentation": None} for a in one["annotations"]]},
        ):
            visualizer = MultiLabelVisualizer(np.full((48, 64, 3), 128, np.uint8))
            images.append(visualizer.draw_dataset_dict(record).get_image())
        assert (images[0] != images[1]).any() == (one["image_id"] != "im3")


@pytest.mark.parametrize("form", ["polygon", "bitmask"])
def test_truth_of_the_mapper(form):
    masks = [disc(60, 100, 40), disc(60, 250, 40), np.zeros((HEIGHT, WIDTH), dtype=bool)]
    instances = Instances(
        (HEIGHT, WIDTH),
        gt_boxes=Boxes(torch.tensor([FAR_BOX] * 3)),
        gt_classes=torch.tensor([0, 1, 2]),
        gt_has_mask=torch.tensor([True, False, True]),
    )
    if form == "bitmask":
        instances.gt_masks = BitMasks(torch.from_numpy(np.stack(masks)))
    else:
        squares = [np.array([x, 30.0, x + 60, 30, x + 60, 90, x, 90]) for x in (70, 220)]
        instances.gt_masks = PolygonMasks([[squares[0]], [squares[1]], []])
    image = MultiLabelVisualizer(blank()).draw_truth(instances).get_image()
    assert (image[60, 100] != 128).any() and (image[60, 250] == 128).all()
    instances.remove("gt_has_mask")  # all masks count then
    image = MultiLabelVisualizer(blank()).draw_truth(instances).get_image()
    assert (image[60, 100] != 128).any() and (image[60, 250] != 128).any()


def test_many_texts_do_not_cover_each_other():
    objects = [DrawnObject([180 + 4 * k, 120, 230 + 4 * k, 160], [0]) for k in range(10)]
    visualizer = MultiLabelVisualizer(blank(), labels_metadata(["a long name"]), min_size=800)
    output = visualizer.draw_objects(objects)
    renderer = output.canvas.get_renderer()
    extents = [text.get_window_extent(renderer) for text in output.ax.texts]
    overlaps = [a.overlaps(b) for i, a in enumerate(extents) for b in extents[:i]]
    assert len(extents) == 10 and not any(overlaps)
