"""Detections as columns: several processes, the file of masks, what is dropped."""

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from detectron2.structures import Boxes, Instances
from lvis_cases import feed, make_content, make_evaluator, make_outputs, make_results

from longtail_det2.evaluation import detection_buffer
from longtail_det2.evaluation.detection_buffer import DetectionBuffer
from longtail_det2.utils.errors import DataError

FILES = ["coco_instances_results.json", "results.json"]


@pytest.fixture
def case(make_lvis_store):
    content = make_content("ties")
    return make_lvis_store(content), make_outputs(content, make_results("ties", content))


def make(case, folder):
    return make_evaluator(case[0], folder, fixed_ap_detections=40)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def same(left, right):
    assert list(left) == list(right)
    assert all(left[task] == pytest.approx(right[task], abs=1e-12, nan_ok=True) for task in left)


def output(*scores, cls=0, size=(7, 9)):
    found = Instances(size)
    found.pred_boxes = Boxes(torch.tensor([[1.0, 2.0, 3.0, 4.0]] * len(scores)).reshape(-1, 4))
    found.scores = torch.tensor(scores, dtype=torch.float32)
    found.pred_classes = torch.full((len(scores),), cls)
    found.pred_masks = torch.zeros((len(scores), *size), dtype=torch.bool)
    for row, score in enumerate(scores):
        found.pred_masks[row, : round(10 * score) % 7] = True
    return {"instances": found}


def rows_of(masks):
    """Height of each of the masks of `output`."""
    return [int(coco_mask.area(mask)) // 9 for mask in masks]


@pytest.mark.parametrize("round_size", [16, 1 << 26])
def test_ranks_are_joined_image_by_image(case, run_ranks, monkeypatch, round_size):
    monkeypatch.setattr(detection_buffer, "_BYTES_PER_ROUND", round_size)
    ids = [name.decode() for name in case[0].image_ids.tolist()]

    def run(rank):
        buffer = DetectionBuffer(case[0], with_masks=True)
        if rank == 0:
            buffer.add({"image_id": ids[5], "height": 70, "width": 90}, output(0.5, 0.4))
            buffer.add({"image_id": ids[1]}, output(0.1, cls=2))
        if rank == 2:
            buffer.add({"image_id": ids[3]}, output())
            buffer.add({"image_id": ids[5]}, output(0.9))  # padding: the lowest rank goes first
            buffer.add({"image_id": ids[0]}, output(0.3))
        found = buffer.gather()
        assert (found is None) == (rank > 0)
        return found

    found = run_ranks(3, run)[0]
    assert found.seen.tolist() == [0, 1, 3, 5] and found.offsets.tolist() == [0, 1, 2, 2, 4]
    assert found.sizes.tolist() == [[7, 9], [7, 9], [7, 9], [70, 90]]
    assert found.image.tolist() == [0, 1, 5, 5] and found.cls.tolist() == [0, 2, 0, 0]
    assert found.score.tolist() == np.array([0.3, 0.1, 0.5, 0.4], np.float32).tolist()
    assert found.box.tolist() == [[1, 2, 3, 4]] * 4
    assert found.shares()[3].tolist() == np.array([1 / 90, 2 / 70, 3 / 90, 4 / 70], np.float32).tolist()
    assert rows_of(found.masks(np.array([0, 1]))) == [3, 1]
    assert rows_of([{**one, "size": [7, 9]} for one in found.masks(np.array([3, 2]))]) == [4, 5]


def test_nothing_at_all(case, run_ranks):
    for found in (
        DetectionBuffer(case[0], with_masks=True).gather(),
        run_ranks(2, lambda _: DetectionBuffer(case[0], with_masks=True).gather())[0],
    ):
        assert len(found) == 0 and len(found.seen) == 0 and found.masks(np.zeros(0, int)) == []


def test_the_file_has_no_name(case, tmp_path, monkeypatch):
    """So nothing is left of it, however the process ends, and no run can remove that of another."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    evaluator = make(case, None)
    evaluator.process(*zip(*case[1], strict=True))
    assert evaluator._buffer._masks.tell() > 0
    assert names(tmp_path / "temporary") == []


def test_a_folder_that_cannot_be_written(case, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    with pytest.raises(DataError, match=r"absent: cannot keep masks here .*TMPDIR") as caught:
        feed(make(case, None), case[1])
    assert "\n" not in str(caught.value)


def test_an_evaluator_can_be_used_again(case, tmp_path):
    evaluator = make(case, tmp_path / "out")
    first = feed(evaluator, case[1]).evaluate()
    assert names(tmp_path / "out") == FILES
    evaluator.process(*zip(*case[1][:2], strict=True))
    same(feed(evaluator, case[1]).evaluate(), first)


def test_two_ranks_with_padding_equal_one(case, tmp_path, run_ranks):
    outputs = case[1]
    alone = feed(make(case, tmp_path / "1"), outputs).evaluate()
    shares = (outputs[0::2], [*outputs[1::2], outputs[0]])
    results = run_ranks(2, lambda rank: feed(make(case, tmp_path / "2"), shares[rank]).evaluate())
    same(results[0], alone)
    assert results[1] == {}
    for name in FILES:
        assert (tmp_path / "2" / name).read_bytes() == (tmp_path / "1" / name).read_bytes()


def test_foreign_images_and_numbers_that_are_not_finite(case, tmp_path, caplog):
    outputs = case[1]
    expected = feed(make(case, tmp_path / "1"), outputs[1:]).evaluate()
    assert "1 of 20 images had no output" in caplog.text
    broken = outputs[0][1]["instances"][:2]
    broken.scores[0] = float("nan")
    broken.pred_boxes.tensor[1, 2] = float("inf")
    pairs = [
        (outputs[0][0], {"instances": broken}),
        ({"image_id": "elsewhere"}, outputs[1][1]),
        *outputs[1:],
    ]
    same(feed(make(case, None), pairs).evaluate(), expected)
    assert "1 outputs are of images that are not in" in caplog.text
    assert "2 detections with a box or score that is not finite were dropped" in caplog.text
