"""Detections on disk: several processes, what is cleaned up, what is missing."""

import gc
import json

import numpy as np
import pytest
from detectron2.utils import comm
from lvis_cases import TASKS, feed, make_content, make_outputs, make_results

from longtail_det2.engine.launch import launch
from longtail_det2.evaluation.lvis_evaluation import LVISStoreEvaluator
from longtail_det2.evaluation.lvis_spill import DetectionSpill, SpilledDetections, remove_parts
from longtail_det2.evaluation.model_outputs import ImageDetections
from longtail_det2.utils.errors import DataError
from longtail_det2.utils.io import PartialFolder

FILES = ("lvis_instances_results.json", "lvis_metrics.json")


@pytest.fixture
def case(make_lvis_store):
    content = make_content("ties")
    return make_lvis_store(content), make_outputs(content, make_results("ties", content))


class FakeRanks:
    """Collects what each rank sends; the last rank to evaluate is the main one and gets it all."""

    def __init__(self, monkeypatch, size):
        self.size, self.sent = size, []
        monkeypatch.setattr(comm, "get_world_size", lambda: size)
        monkeypatch.setattr(comm, "synchronize", lambda: None)
        monkeypatch.setattr(comm, "is_main_process", lambda: len(self.sent) == size)
        monkeypatch.setattr(comm, "gather", self.gather)

    def gather(self, data, dst=0):
        self.sent.append(data)
        return self.sent if len(self.sent) == self.size else []


def make(case, folder, **options):
    return LVISStoreEvaluator(case[0], tasks=TASKS, output_dir=folder, fixed_ap_detections=40, **options)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def same(left, right):
    assert list(left) == list(right)
    assert all(left[task] == pytest.approx(right[task], abs=1e-12, nan_ok=True) for task in left)


def detections(*scores, cls=0, runs=None):
    box = np.tile(np.array([[1, 2, 3, 4]], dtype=np.float32), (len(scores), 1))
    return ImageDetections(
        box, np.array(scores, dtype=np.float32), np.full(len(scores), cls, np.int32), runs, dropped=1
    )


def test_parts_are_joined_image_by_image(tmp_path):
    spills = [DetectionSpill(tmp_path / "new", rank, with_masks=True) for rank in range(3)]

    def mask(text):
        return {"size": [7, 9], "counts": text}

    spills[0].add(5, detections(0.5, 0.4, runs=[mask(b"five"), mask(b"5")]))
    spills[0].add(1, detections(0.1, cls=2, runs=[mask(b"one")]))
    spills[2].add(3, detections(runs=[]))
    spills[2].add(5, detections(0.9, runs=[mask(b"again")]))  # padding: the lowest rank goes first
    spills[2].add(0, detections(0.7, runs=[mask(b"")]))
    parts = [spill.finish() for spill in spills]
    assert [part.not_finite for part in parts] == [2, 0, 3] and parts[1].folder is None
    found = SpilledDetections(parts)
    assert found.seen.tolist() == [0, 1, 3, 5] and found.offsets.tolist() == [0, 1, 2, 2, 4]
    assert found.image.tolist() == [0, 1, 5, 5] and found.cls.tolist() == [0, 2, 0, 0]
    assert found.score.tolist() == np.array([0.7, 0.1, 0.5, 0.4], np.float32).tolist()
    assert found.box.tolist() == [[1, 2, 3, 4]] * 4
    assert [one["counts"] for one in found.masks(np.array([3, 1, 0, 2]))] == [b"5", b"one", b"", b"five"]
    assert found.masks(np.array([1])) == [{"size": [7, 9], "counts": b"one"}]
    remove_parts(parts)
    assert names(tmp_path / "new") == []


def test_nothing_at_all(tmp_path):
    found = SpilledDetections([DetectionSpill(tmp_path, 0, with_masks=False).finish()])
    assert len(found) == 0 and len(found.seen) == 0 and not found.has_masks
    assert names(tmp_path) == []


def test_the_folder_goes_when_the_evaluation_ends(case, tmp_path):
    evaluator = make(case, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    evaluator.process(*zip(*case[1], strict=True))
    spilled, _lock = sorted((tmp_path / "out").iterdir())
    assert spilled.name.startswith(".lvis_detections.partial-")
    first = evaluator.evaluate()
    assert names(tmp_path / "out") == list(FILES)
    same(feed(evaluator, case[1]).evaluate(), first)


def test_the_folder_goes_when_the_evaluation_is_given_up(case, tmp_path, monkeypatch):
    evaluator = make(case, tmp_path / "out")
    evaluator.process(*zip(*case[1][:2], strict=True))
    assert len(names(tmp_path / "out")) == 2
    evaluator.reset()
    assert names(tmp_path / "out") == []
    evaluator.process(*zip(*case[1][:2], strict=True))
    del evaluator
    gc.collect()
    assert names(tmp_path / "out") == []
    evaluator = feed(make(case, tmp_path / "out"), case[1])
    monkeypatch.setattr("longtail_det2.evaluation.lvis_evaluation.evaluate_lvis", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluator.evaluate()
    assert names(tmp_path / "out") == []


def test_without_an_output_folder(case, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    evaluator = make(case, None)
    evaluator.process(*zip(*case[1], strict=True))
    assert len(names(tmp_path / "temporary")) == 2
    assert evaluator.evaluate()["lvis_bbox"]["AP"] > 1
    assert names(tmp_path / "temporary") == []


def test_leftovers_of_killed_runs_go_and_do_not_disturb(case, tmp_path):
    expected = feed(make(case, tmp_path / "1"), case[1]).evaluate()
    out = tmp_path / "out"
    out.mkdir()
    dead, alive = out / ".lvis_detections.partial-aa", PartialFolder(out / "lvis_detections")
    dead.mkdir()
    (out / f"{dead.name}.lock").touch()
    for folder in (dead, alive.folder):
        for name in ("image", "count", "score"):
            (folder / name).write_bytes(b"half an image")
    same(feed(make(case, out), case[1]).evaluate(), expected)
    assert names(out) == [alive.folder.name, f"{alive.folder.name}.lock", *FILES]


def test_two_ranks_with_padding_equal_one(case, tmp_path, monkeypatch):
    outputs = case[1]
    alone = feed(make(case, tmp_path / "1"), outputs).evaluate()
    FakeRanks(monkeypatch, 2)
    evaluators = [make(case, tmp_path / "2") for _ in range(2)]
    assert feed(evaluators[0], [*outputs[1::2], outputs[0]]).evaluate() == {}
    assert len(names(tmp_path / "2")) == 2
    same(feed(evaluators[1], outputs[0::2]).evaluate(), alone)
    assert names(tmp_path / "2") == list(FILES)
    for name in FILES:
        assert (tmp_path / "2" / name).read_bytes() == (tmp_path / "1" / name).read_bytes()


@pytest.mark.parametrize("damage", ["folder", "file", "short"])
def test_a_missing_part_names_the_file(case, tmp_path, monkeypatch, damage):
    ranks = FakeRanks(monkeypatch, 2)
    evaluators = [make(case, tmp_path / "out") for _ in range(2)]
    feed(evaluators[0], case[1][1::2]).evaluate()
    folder = ranks.sent[0].folder
    if damage == "folder":
        remove_parts(ranks.sent)
    elif damage == "file":
        (folder / "image").unlink()
    else:
        (folder / "image").write_bytes(b"")
    feed(evaluators[1], case[1][0::2])
    reason = "has 0 bytes" if damage == "short" else "is not there: process 0 on .* machines share"
    with pytest.raises(DataError, match=rf"{folder}/image {reason}") as caught:
        evaluators[1].evaluate()
    assert "\n" not in str(caught.value)
    assert names(tmp_path / "out") == []


def test_a_folder_that_cannot_be_written(case, tmp_path):
    (tmp_path / "out").write_text("a file")
    evaluator = make(case, tmp_path / "out")
    with pytest.raises(DataError, match=r"cannot keep detections here .*another output folder"):
        evaluator.process(*zip(*case[1][:1], strict=True))


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


def _rank(store_path, pairs, folder):
    rank = comm.get_rank()
    evaluator = LVISStoreEvaluator(store_path, tasks=TASKS, output_dir=folder, fixed_ap_detections=40)
    results = feed(evaluator, pairs[rank]).evaluate()
    assert (results == {}) == (rank == 1)


@pytest.mark.slow
def test_two_real_processes_equal_one(case, tmp_path):
    store, outputs = case
    feed(make(case, tmp_path / "1"), outputs).evaluate()
    pairs = (outputs[0::2], [*outputs[1::2], outputs[0]])
    launch(_rank, 2, args=(str(store.path), pairs, str(tmp_path / "2")))
    assert names(tmp_path / "2") == list(FILES)
    for name in FILES:
        assert (tmp_path / "2" / name).read_bytes() == (tmp_path / "1" / name).read_bytes()
    assert json.loads((tmp_path / "2/lvis_metrics.json").read_text())["summary"]["lvis_bbox"]["AP"] > 0.01
