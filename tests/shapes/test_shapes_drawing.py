"""The generated data set's geometry: figures, masks, polygons, what is visible."""

import collections

import numpy as np
import pytest
from shapes_reading import polygons_to_mask, rle_to_mask

from longtail_det2.shapes import ShapesOptions
from longtail_det2.shapes.drawing import FIGURES, draw_image, mask_to_polygons, measure_region, rasterise
from longtail_det2.shapes.plan import PlannedImage, PlannedObject, plan_split
from longtail_det2.shapes.vocabulary import COLOURS, SHAPES, ShapesVocabulary


def test_polygons_and_run_lengths_give_the_mask_back():
    rng = np.random.default_rng(0)
    for density in (0.2, 0.5, 0.8, 0.95, 1.0):
        for _ in range(20):
            mask = rng.random((13, 17)) < density
            region = measure_region(mask)
            assert np.array_equal(polygons_to_mask(region.polygons, 13, 17), mask)
            assert np.array_equal(rle_to_mask(region.rle), mask)
    square = np.zeros((8, 8), dtype=bool)
    assert mask_to_polygons(square) == []
    square[2:5, 1:7] = True
    (polygon,) = mask_to_polygons(square)
    assert {*zip(polygon[::2], polygon[1::2], strict=True)} == {(1, 2), (7, 2), (7, 5), (1, 5)}


def test_figures_cover_the_area_of_their_outline():
    for shape in SHAPES:
        outline = tuple((points * 20.3 + 50.7, fill) for points, fill in FIGURES[shape])
        expected = 0.0
        for points, fill in outline:
            x, y = points.T
            area = abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2
            expected += area if fill else -area
        part = rasterise(outline, 128)
        assert part.cover.sum() == pytest.approx(expected, rel=0.03)
        assert part.cover.sum() == pytest.approx(part.area)


def test_boxes_say_what_is_visible():
    vocabulary = ShapesVocabulary.build()
    options = ShapesOptions(train_images=120, imbalance=10.0, group_of_rate=0.05)
    images, _ = plan_split(options, vocabulary, "train")
    for index, planned in enumerate(images):
        pixels, drawn = draw_image(planned, vocabulary, 128, 0, "train", index)
        assert pixels.shape == (128, 128, 3) and pixels.dtype == np.uint8
        for k, one in enumerate(drawn):
            x0, y0, x1, y1 = one.region.box
            assert min(x1 - x0, y1 - y0) >= 8
            mask = rle_to_mask(one.region.rle)
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            assert one.region.box == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            for other in drawn[:k]:
                assert not (mask & rle_to_mask(other.region.rle)).any()


def test_objects_show_their_colours():
    vocabulary = ShapesVocabulary.build()
    index = {leaf: i for i, leaf in enumerate(vocabulary.leaves)}
    for number, (first, second) in enumerate([("red", "yellow"), ("blue", "brown"), ("green", "pink")]):
        leaves = (index["square", first], index["square", second])
        planned = PlannedImage((PlannedObject(leaves, leaves),), ())
        pixels, (drawn,) = draw_image(planned, vocabulary, 128, 0, "train", number)
        inside = pixels[rle_to_mask(drawn.region.rle)].astype(float)
        nearest = [
            list(COLOURS)[int(np.linalg.norm(np.array(list(COLOURS.values())) - pixel, axis=1).argmin())]
            for pixel in inside
        ]
        shares = collections.Counter(nearest)
        assert shares[first] / len(inside) > 0.25 and shares[second] / len(inside) > 0.25


def test_a_group_is_six_or_more_instances_that_touch():
    vocabulary = ShapesVocabulary.build()
    for leaf in range(0, 60, 7):
        planned = PlannedImage((PlannedObject((leaf,), (leaf,), group=True),), ())
        _, (drawn,) = draw_image(planned, vocabulary, 128, 0, "train", leaf)
        members = [member.box for member in drawn.members]
        assert members
        x0, y0, x1, y1 = drawn.region.box
        for box in members:
            assert box[0] >= x0 and box[1] >= y0 and box[2] <= x1 and box[3] <= y1
            assert (x1 - x0) * (y1 - y0) > 3 * (box[2] - box[0]) * (box[3] - box[1])


def test_a_crowded_image_still_shows_every_object():
    vocabulary = ShapesVocabulary.build()
    objects = tuple(PlannedObject((leaf,), (leaf,), group=leaf < 4) for leaf in range(16))
    _, drawn = draw_image(PlannedImage(objects, ()), vocabulary, 64, 0, "validation", 5)
    assert len(drawn) == 16 and all(one.region.area > 0 for one in drawn)
