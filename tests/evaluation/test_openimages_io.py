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
LABELS = "ImageID,LabelName,Confidence\n"
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
    assert read_classes(write('/m/a,"Cat, small"\n/m/b,Dog,2\n')) == (CLASSES, ["Cat, small", "Dog"])
    assert read_classes(write("LabelName,DisplayName\r\n/m/a,Cat\r\n\r\n/m/b,Dog\r\n"))[0] == CLASSES
    assert read_classes(write("\ufeff/m/a\n/m/b\n")) == (CLASSES, CLASSES)


def test_columns_by_name_flags_and_sorted_images(write):
    boxes = write(
        "Source,IsGroupOf,YMax,YMin,XMax,XMin,LabelName,ImageID\n"
        "xclick,-1,0.4,0.3,0.2,0.1,/m/b,z\nxclick,1,1,0,1,0,/m/a,a\nxclick,1.0, 0.5 ,0,1,0,/m/a,z\n",
        "boxes.csv",
    )
    labels = write(LABELS + "m,/m/a,0\nz,/m/b,1.0\n", "labels.csv")
    truth, images, skipped = read_ground_truth(boxes, labels, CLASSES)
    assert images == ["a", "m", "z"]
    assert truth.image.tolist() == [2, 0, 2] and truth.cls.tolist() == [1, 0, 0]
    assert truth.box.tolist() == [[0.1, 0.3, 0.2, 0.4], [0, 0, 1, 1], [0, 0, 1, 0.5]]
    assert truth.group_of.tolist() == [False, True, True]
    assert truth.label_image.tolist() == [1, 2] and truth.label_present.tolist() == [False, True]
    assert skipped == 0


def test_files_with_only_a_header(write):
    truth, images, _ = read_ground_truth(write(BOXES, "b.csv"), write(LABELS, "l.csv"), CLASSES)
    assert len(truth) == 0 and images == []
    detections, _ = read_detections(write(PREDICTIONS), CLASSES, ["a"])
    assert len(detections) == 0 and detections.box.shape == (0, 4)


def test_without_image_labels(write):
    truth, images, skipped = read_ground_truth(write(BOXES + "a,/m/a,0,1,0,1,0\n"), None, CLASSES)
    assert images == ["a"] and len(truth.label_image) == 0 and skipped == 0


def test_predictions_of_other_images_are_counted_and_left_out(write):
    path = write(PREDICTIONS + "a,/m/a,.5,0,1,0,1\nx,/m/a,.5,0,1,0,1\na,/m/b,.25,1,0,0,1\n")
    detections, counts = read_detections(path, CLASSES, ["a"])
    assert detections.image.tolist() == [0, 0] and detections.score.tolist() == [0.5, 0.25]
    assert counts == {"unknown_label": 0, "unknown_image": 1}


def test_unknown_labels_can_be_skipped(write):
    path = write(PREDICTIONS + "a,/m/c,.5,0,1,0,1\na,/m/b,.5,0,1,0,1\n")
    detections, counts = read_detections(path, CLASSES, ["a"], "skip")
    assert detections.cls.tolist() == [1] and counts["unknown_label"] == 1
    boxes = write(BOXES + "a,/m/c,0,1,0,1,0\n", "boxes.csv")
    truth, _, skipped = read_ground_truth(boxes, None, CLASSES, "skip")
    assert len(truth) == 0 and skipped == 1


ROW = "a,/m/a,.5,0,1,0,1\n"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "is empty"),
        ("ImageID,LabelName,XMin,XMax,YMin,YMax\n", "column Score is missing"),
        ("ImageID,ImageID,LabelName,Score,XMin,XMax,YMin,YMax\n", "column ImageID occurs 2 times"),
        (PREDICTIONS + ROW + "\na,/m/a,high,0,1,0,1\n", "line 4: column Score holds 'high'"),
        (PREDICTIONS + "a,/m/a,,0,1,0,1\n", "line 2: column Score is empty"),
        (PREDICTIONS + "a,/m/a,.5,0,1,0,inf\n", "line 2: column YMax holds inf"),
        (PREDICTIONS + "a,/m/a,nan,0,1,0,1\n", "line 2: column Score holds nan"),
        (PREDICTIONS + "a,/m/a,.5,0,1,0\n", "line 2: 6 cells"),
        (PREDICTIONS + "a,/m/a,.5,0,1,0,1,2\n", "line 2: 8 cells"),
        (PREDICTIONS + ROW + "a,/m/c,.5,0,1,0,1\n", "line 3: label '/m/c'"),
        (PREDICTIONS + ROW * 300_000 + "a,/m/x,.5,0,1,0,1\n", "line 300002: label '/m/x'"),
    ],
    ids=range(11),
)
def test_bad_predictions(write, text, named):
    with pytest.raises(DataError, match=rf"file\.csv.*{named}"):
        read_detections(write(text), CLASSES, ["a"])


@pytest.mark.parametrize(
    ("boxes", "labels", "named"),
    [
        ("a,/m/a,0,1,0,1,2\n", "", "line 2: column IsGroupOf holds 2"),
        ("a,/m/a,0.6,0.5,0,1,0\n", "", r"line 2: bad box XMin=0\.6"),
        ("a,/m/a,0,1,0.7,0.5,0\n", "", r"line 2: bad box .*YMin=0\.7"),
        ("", "a,/m/a,0.7\n", r"line 2: Confidence is 0\.7"),
    ],
)
def test_bad_annotations(write, boxes, labels, named):
    with pytest.raises(DataError, match=named):
        read_ground_truth(write(BOXES + boxes, "b.csv"), write(LABELS + labels, "l.csv"), CLASSES)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(DataError, match=r"absent\.csv: cannot be read \(No such file"):
        read_detections(tmp_path / "absent.csv", CLASSES, [])
    with pytest.raises(DataError, match="cannot be read"):
        read_detections(tmp_path, CLASSES, [])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_written_predictions_are_read_back_exactly(tmp_path, dtype):
    rng = np.random.default_rng(0)
    count = 70_000  # more than one block
    detections = Detections(
        rng.integers(0, 3, count),
        rng.integers(0, 2, count),
        rng.random(count, dtype),
        rng.random((count, 4), dtype),
    )
    images = ["b,1", "a", 'c"']
    path = tmp_path / "predictions.csv"
    write_detections(path, detections, CLASSES, images)
    assert path.read_text().startswith("ImageID,LabelName,Score,XMin,XMax,YMin,YMax\n")
    again, _ = read_detections(path, CLASSES, images)
    for name in ("image", "cls", "score", "box"):
        np.testing.assert_array_equal(
            getattr(again, name).astype(dtype), getattr(detections, name).astype(dtype)
        )


def test_no_detections_are_written_as_a_header(tmp_path):
    empty = Detections(np.zeros(0, int), np.zeros(0, int), np.zeros(0), np.zeros((0, 4)))
    write_detections(tmp_path / "p.csv", empty, CLASSES, [])
    assert (tmp_path / "p.csv").read_text() == PREDICTIONS
