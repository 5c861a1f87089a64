"""Masks in pictures: their pixels, outlines, sizes, and masks that are wrong."""

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks
from matplotlib.patches import PathPatch

from longtail_det2.data.datasets.dataset import MultiLabelDataset
from longtail_det2.utils.errors import DataError
from longtail_det2.visualization.mask_drawing import fit_mask, outline, paint, read_mask
from longtail_det2.visualization.multi_label_visualizer import (
    DrawnObject,
    MultiLabelVisualizer,
    class_color,
    labels_metadata,
    merge_predictions,
    room_for,
)

HEIGHT, WIDTH = 300, 400
FAR_BOX = [380.0, 280, 390, 290]  # away from every mask, so that box and text touch none


def blank():
    return np.full((HEIGHT, WIDTH, 3), 128, dtype=np.uint8)


def disc(y, x, radius):
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def shrink(mask, pixels=2):
    """The mask without its border."""
    padded = np.pad(mask, pixels)
    moved = [np.roll(padded, (dy, dx), (0, 1)) for dy in (-pixels, 0, pixels) for dx in (-pixels, 0, pixels)]
    return np.all(moved, axis=0)[pixels:-pixels, pixels:-pixels]


def changed(output):
    """Pixels that differ from a picture without any drawing."""
    empty = MultiLabelVisualizer(blank()).output.get_image()
    return (output.get_image() != empty).any(axis=2)


def record(*annotations):
    common = {"bbox": FAR_BOX, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1}
    return {"image_id": "photo", "annotations": [{**common, **one} for one in annotations]}


def line_styles(visualizer):
    """Of the outlines of masks, in the order of drawing."""
    return [one.get_linestyle() for one in visualizer.output.ax.patches if isinstance(one, PathPatch)]


def test_pixels_inside_change_and_others_do_not():
    mask = disc(100, 150, 60)
    visualizer = MultiLabelVisualizer(blank(), labels_metadata(["a", "b"]))
    output = visualizer.draw_objects([DrawnObject(FAR_BOX, [1], mask=mask)])
    touched = changed(output)
    outside = ~shrink(~mask) & ~mask
    assert touched[mask].all()
    assert not touched[:250][(~mask & ~outside)[:250]].any()
    color = output.get_image()[100, 150]
    expected = 0.62 * 128 + 0.38 * 255 * np.array(class_color(1))
    np.testing.assert_allclose(color, expected, atol=1.5)
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


def test_masks_on_each_other_tint_once():
    pixels = blank()
    low, high = disc(100, 150, 60), disc(100, 150, 30)
    painted = paint(pixels, [low, high], [(1, 0, 0), (0, 0, 1)])
    assert (pixels == 128).all()
    alone = paint(pixels, [high], [(0, 0, 1)])
    assert (painted[high] == alone[high]).all()
    assert painted[100, 100, 0] > 128 > painted[100, 100, 2]
    assert (paint(pixels, [], []) == pixels).all()
    # Small objects lie above large ones, whatever their order.
    boxes = [[120.0, 70, 180, 130], [90.0, 40, 210, 160]]
    objects = [
        DrawnObject(box, [k], mask=mask) for k, (box, mask) in enumerate(zip(boxes, [high, low], strict=True))
    ]
    images = [MultiLabelVisualizer(blank()).draw_objects(one).get_image() for one in (objects, objects[::-1])]
    assert (images[0] == images[1]).all()
    np.testing.assert_allclose(
        images[0][110, 150], 0.62 * 128 + 0.38 * 255 * np.array(class_color(0)), atol=1.5
    )


def test_outlines_have_the_marks_of_their_boxes():
    square = [[10.0, 10, 60, 10, 60, 60, 10, 60]]
    annotations = [{"segmentation": square, **mark} for mark in ({}, {"is_group_of": True}, {"iscrowd": 1})]
    visualizer = MultiLabelVisualizer(blank())
    visualizer.draw_dataset_dict(record(*annotations))
    assert sorted(line_styles(visualizer)) == ["-", "--", ":"]


def test_outline_of_holes_parts_and_nothing():
    ring = disc(100, 100, 50) & ~disc(100, 100, 20)
    ring |= disc(100, 300, 10)
    path = outline(ring)
    assert (path.codes == path.MOVETO).sum() == 3
    assert not path.contains_point((500, 100))
    assert path.vertices.min() > 49 and path.vertices.max() < 311
    assert outline(np.zeros((5, 5), dtype=bool)) is None
    single = np.zeros((5, 5), dtype=bool)
    single[2, 3] = True
    assert outline(single).vertices.tolist() == [[3.5, 2.5], [3.5, 2.5]]
    visualizer = MultiLabelVisualizer(blank())
    empty = DrawnObject(FAR_BOX, [0], mask=np.zeros((HEIGHT, WIDTH), dtype=bool))
    assert (visualizer.draw_objects([empty]).get_image()[:250] == 128).all()


def test_every_form_of_a_segmentation():
    expected = np.zeros((HEIGHT, WIDTH), dtype=bool)
    expected[10:30, 20:50] = True
    polygon = [20, 10, 50, 10, 50, 30, 20, 30]
    packed = coco_mask.encode(np.asfortranarray(expected, dtype=np.uint8))
    columns = [20 * HEIGHT + 10, *[20, HEIGHT - 20] * 29, 20]
    columns.append(HEIGHT * WIDTH - sum(columns))
    values = [
        [polygon],
        [np.array(polygon, dtype=np.float32)],
        [[*polygon[:4], 50, 20, 20, 20], [20, 20, 50, 20, 50, 30, 20, 30]],
        packed,
        {"size": (HEIGHT, WIDTH), "counts": packed["counts"].decode()},
        {"size": [HEIGHT, WIDTH], "counts": columns},
        expected,
        expected.astype(np.uint8),
    ]
    for value in values:
        assert (read_mask(value, HEIGHT, WIDTH) == expected).all()
    outside = read_mask([[-5, -5, 1e300, -5, 1e300, 1e300, -5, 1e300]], HEIGHT, WIDTH)
    assert outside.shape == (HEIGHT, WIDTH) and outside.all()
    for nothing in (None, [], [[]], {}):
        assert read_mask(nothing, HEIGHT, WIDTH) is None


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
    metadata = labels_metadata(masked_store.class_names, masked_store.hierarchy)
    seen = {}
    for one in MultiLabelDataset(masked_store):
        visualizer = MultiLabelVisualizer(np.full((48, 64, 3), 128, np.uint8), metadata)
        visualizer.draw_dataset_dict(one)
        seen[one["image_id"]] = line_styles(visualizer)
    assert seen == {"im0": ["-"], "im1": ["--"], "im2": ["-", "-"], "im3": []}


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


def test_predicted_masks_above_the_threshold():
    masks = np.stack([disc(60, 100, 40), disc(60, 250, 40)])
    predictions = Instances(
        (HEIGHT, WIDTH),
        pred_boxes=Boxes(torch.tensor([FAR_BOX, [300.0, 280, 310, 290]])),
        pred_classes=torch.tensor([0, 1]),
        scores=torch.tensor([0.9, 0.3]),
        pred_masks=torch.from_numpy(masks),
    )
    drawn = MultiLabelVisualizer(blank()).draw_instance_predictions(predictions, score_threshold=0.5)
    image = drawn.get_image()
    assert (image[60, 100] != 128).any() and (image[60, 250] == 128).all()


def test_merging_keeps_the_mask_of_the_best_row():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [50, 50, 60, 60]], dtype=np.float32)
    masks = [np.full((2, 2), True), np.full((2, 2), False), None]
    merged = merge_predictions(boxes, np.array([0, 1, 0]), np.array([0.5, 0.9, 0.4]), masks=masks)
    assert [one.mask is masks[row] for one, row in zip(merged, (1, 2), strict=True)] == [True, True]
    assert merge_predictions(boxes, np.zeros(3, int), np.zeros(3))[0].mask is None


def test_resized_masks_keep_single_pixels_and_area():
    mask = np.zeros((40, 50), dtype=bool)
    mask[7, 9] = mask[20:30, 20:40] = True
    large = fit_mask(mask, (40, 50), (240, 300))
    assert large[45, 57] and abs(large.sum() / 36 - mask.sum()) < 5
    small = fit_mask(disc(100, 150, 60), (HEIGHT, WIDTH), (75, 100))
    assert abs(small.sum() * 16 / disc(100, 150, 60).sum() - 1) < 0.02


def test_crowded_pictures_have_more_room():
    assert [room_for(count) for count in (0, 16, 20, 40, 10**6)] == [384, 384, 480, 960, 960]
    assert room_for(3, 480) == 480 and room_for(1, 2000) == 2000


def test_many_texts_do_not_cover_each_other():
    objects = [DrawnObject([180 + 4 * k, 120, 230 + 4 * k, 160], [0]) for k in range(10)]
    visualizer = MultiLabelVisualizer(blank(), labels_metadata(["a long name"]), min_size=800)
    output = visualizer.draw_objects(objects)
    renderer = output.canvas.get_renderer()
    extents = [text.get_window_extent(renderer) for text in output.ax.texts]
    overlaps = [a.overlaps(b) for i, a in enumerate(extents) for b in extents[:i]]
    assert len(extents) == 10 and not any(overlaps)
