"""Files of the Open Images metric; what is wrong with annotation files is tested with their preparation."""

import numpy as np
import pytest

from longtail_det2.data.open_images_csv import read_classes
from longtail_det2.evaluation.openimages_io import (
    Detections,
    read_detections,
    read_ground_truth,
    write_detections,
)
from longtail_det2.utils.errors import DataError

BOXES = "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\n"
PREDICTIONS = "ImageID,LabelName,Score,XMin,XMax,YMin,YMax\n"
CLASSES = ["/m/a", "/m/b"]


@pytest.fixture
def write(tmp_path):
    def make(text, name="file.csv"):
        path = tmp_path / name
        path.write_bytes(text.encode())
        return path

    return make


def test_classes_with_and_without_header(write):
    assert read_classes(write('/m/a,"Cat, small"\n/m/b,,2\n')) == (CLASSES, ["Cat, small", "/m/b"])
    assert read_classes(write("LabelName,DisplayName\r\n/m/a,Cat\r\n\r\n/m/b,Dog\r\n"))[0] == CLASSES
    assert read_classes(write("\ufeff/m/a\n/m/b\n")) == (CLASSES, CLASSES)


def test_what_is_left_out_is_counted(write):
    path = write(PREDICTIONS + "a,/m/a,.5,0,1,0,1\nx,/m/a,.5,0,1,0,1\na,/m/c,1,0,1,0,1\na,/m/b,.25,1,0,0,1\n")
    detections, counts = read_detections(path, CLASSES, ["a"], "skip")
    assert detections.image.tolist() == [0, 0] and detections.score.tolist() == [0.5, 0.25]
    assert counts == {"unknown_label": 1, "unknown_image": 1}
    boxes = write(BOXES + "a,/m/c,0,1,0,1,0\n", "boxes.csv")
    truth, _, skipped = read_ground_truth(boxes, None, CLASSES, "skip")
    assert len(truth) == 0 and skipped == 1


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ("a,/m/a,,0,1,0,1", "line 4: column Score is empty"),
        ("a,/m/a,.5,0,1,0,inf", "line 4: column YMax holds inf"),
        ("a,/m/a,nan,0,1,0,1", "line 4: column Score holds nan"),
        ("a,/m/c,.5,0,1,0,1", "line 4: label '/m/c'"),
    ],
)
def test_bad_predictions(write, row, named):
    with pytest.raises(DataError, match=rf"file\.csv, {named}"):
        read_detections(write(f"{PREDICTIONS}a,/m/a,.5,0,1,0,1\n\n{row}\n"), CLASSES, ["a"])


def test_files_that_cannot_be_read(tmp_path):
    for read in (read_classes, lambda path: read_detections(path, CLASSES, [])):
        for path in (tmp_path, tmp_path / "absent.csv"):
            with pytest.raises(DataError, match=r": cannot be read \((No such file|Is a directory)"):
                read(path)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_written_predictions_are_read_back_exactly(tmp_path, dtype):
    rng = np.random.default_rng(0)
    path, images = tmp_path / "predictions.csv", ["b,1", "a", 'c"']
    for count in (70_000, 0):  # more than one block; none
        detections = Detections(
            rng.integers(0, 3, count),
            rng.integers(0, 2, count),
            rng.random(count, dtype),
            rng.random((count, 4), dtype),
        )
        write_detections(path, detections, CLASSES, images)
        again, _ = read_detections(path, CLASSES, images)
        for name in ("image", "cls", "score", "box"):
            expected = getattr(detections, name)
            np.testing.assert_array_equal(getattr(again, name).astype(expected.dtype), expected)
    assert path.read_text() == PREDICTIONS
