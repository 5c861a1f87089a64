"""longtail-det2 demo: images and folders through a trained detector."""

import json
import shutil

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from factories import CLASS_IDS, image_label_store
from model_factories import classifier_run
from PIL import Image

from longtail_det2.checkpoint import ClassAwareCheckpointer
from longtail_det2.cli import main
from longtail_det2.cli.demo import describe_classes
from longtail_det2.config_files import load_cfg
from longtail_det2.data.build import build_test_loader
from longtail_det2.data.dataset_mapper import MultiLabelDatasetMapper
from longtail_det2.data.datasets.dataset import MultiLabelDataset
from longtail_det2.engine.build import build_model
from longtail_det2.export.source import load_detector
from longtail_det2.visualization.multi_label_visualizer import MultiLabelVisualizer
from longtail_det2.visualization.predictions import read_predictions

OPTIONS = ["MODEL.ROI_HEADS.NUM_CLASSES", "5", "INPUT.MIN_SIZE_TEST", "48", "MODEL.DEVICE", "cpu"]
CONFIG = "shapes/faster_rcnn_tiny_sigmoid_shapes.yaml"
MASK_CONFIG = "shapes/mask_rcnn_tiny_sigmoid_shapes.yaml"


@pytest.fixture
def config(request):
    """CONFIG, or what a test is parametrized with."""
    return getattr(request, "param", CONFIG)


@pytest.fixture
def weights(tmp_path, store, config):
    """A checkpoint with random weights, whose scores are spread."""
    torch.manual_seed(0)
    model = build_model(load_cfg(config, OPTIONS))
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.weight.normal_(std=0.5)
        model.roi_heads.box_predictor.cls_score.bias.zero_()
    folder = tmp_path / "weights"
    folder.mkdir()
    ClassAwareCheckpointer(model, str(folder), class_ids=store.class_ids).save("model_final")
    return folder / "model_final.pth"


@pytest.fixture
def demo(weights, tmp_path, config):
    def call(*arguments, output=tmp_path / "out"):
        command = ["--config-file", config, "--weights", str(weights), "--device", "cpu"]
        command += [] if output is None else ["--output", str(output)]
        return main(["demo", *map(str, arguments), *command, *OPTIONS])

    return call


def predictions_of(weights, store, config, name):
    """What an evaluation gets for an image of the store."""
    cfg = load_cfg(config, OPTIONS)
    model = build_model(cfg).eval()
    ClassAwareCheckpointer(model).load(str(weights))
    mapper = MultiLabelDatasetMapper(**MultiLabelDatasetMapper.from_config(cfg, is_train=False))
    loader = build_test_loader(MultiLabelDataset(store), mapper=mapper)
    (batch,) = (one for one in loader if one[0]["image_id"] == name)
    with torch.no_grad():
        return model(batch)[0]["instances"]


def test_folder(demo, store, tmp_path, capsys):
    nested = store.image_root / "deeper" / "still"
    for folder in (nested, store.image_root / ".hidden"):
        folder.mkdir(parents=True)
        shutil.copy(store.image_root / "im0.png", folder / "im9.png")
    (store.image_root / "notes.txt").write_text("no image")
    out = store.image_root / "drawn"
    command = ["--input", store.image_root, "--store", store.path, "--score-threshold", 0.3]
    for _ in range(2):  # results inside the folder are no inputs
        assert demo(*command, "--predictions", tmp_path / "p.json", output=out) == 0
        assert "5 images in" in capsys.readouterr().out
    drawn = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.jpg"))
    assert drawn == ["deeper/still/im9.jpg", *(f"im{index}.jpg" for index in range(4))]
    rows = json.loads((tmp_path / "p.json").read_text())
    assert {row["image_id"] for row in rows} <= {"im0", "im1", "im2", "im3", "im9"}
    same = [[row["score"] for row in rows if row["image_id"] == name] for name in ("im0", "im9")]
    assert same[0] == same[1] and same[0]


def test_what_is_no_image(demo, store, tmp_path, capsys):
    folder = tmp_path / "mixed"
    folder.mkdir()
    shutil.copy(store.image_root / "im0.png", folder / "good.png")
    (folder / "bad.jpg").write_bytes(b"not an image")
    assert demo("--input", folder) == 0  # in a folder, a broken file is passed over
    printed = capsys.readouterr()
    assert "1 image in" in printed.out
    assert "passed over: " in printed.err and "bad.jpg: cannot read the image" in printed.err
    (tmp_path / "empty").mkdir()
    for words, message in (
        ([folder / "bad.jpg"], "bad.jpg: cannot read the image (not an image of a known"),
        ([tmp_path / "nowhere"], "nowhere: no such file or folder"),
        ([tmp_path / "empty"], "no images there; their names end in .bmp"),
        ([folder, "--predictions", "p.txt"], "must end in .json"),
        ([folder, "--store", tmp_path / "nowhere"], "no annotation store"),
    ):
        assert demo("--input", *words) == 2
        assert message in capsys.readouterr().err
    (folder / "good.png").unlink()
    assert demo("--input", folder) == 2
    assert "none of 1 files is an image" in capsys.readouterr().err


def test_equal_names_get_ids_and_drawings_of_their_own(store, tmp_path, demo):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        shutil.copy(store.image_root / "im0.png", tmp_path / name / "a.png")
    out = tmp_path / "out"
    command = ["--input", tmp_path / "one", tmp_path / "two", "--predictions", out / "p.json"]
    assert demo(*command) == 0
    assert sorted(path.name for path in out.glob("*.jpg")) == ["a-2.jpg", "a.jpg"]
    ids = {row["image_id"] for row in json.loads((out / "p.json").read_text())}
    assert ids == {str(tmp_path / name / "a.png") for name in ("one", "two")}


def test_a_run_that_was_not_evaluated_yet_knows_ids_only(weights, store, capsys):
    ids, names, _ = describe_classes(load_detector(CONFIG, weights, OPTIONS), None)
    assert ids == names == store.class_ids
    assert "--store gives names" in capsys.readouterr().err


def test_predictions_equal_the_evaluation(demo, store, weights, tmp_path, capsys):
    command = ["--input", store.image_root / "im2.png"]
    assert demo(*command, "--store", store.path, "--predictions", tmp_path / "p.json", output=None) == 0
    assert not (tmp_path / "out").exists() and " predictions of 1 image in" in capsys.readouterr().out
    rows = json.loads((tmp_path / "p.json").read_text())
    instances = predictions_of(weights, store, CONFIG, "im2")
    assert len(rows) == len(instances) > 0
    assert np.allclose([row["score"] for row in rows], instances.scores, atol=1e-5)
    x0, y0, x1, y1 = instances.pred_boxes.tensor.T
    assert np.allclose([row["bbox"] for row in rows], torch.stack([x0, y0, x1 - x0, y1 - y0], 1), atol=2e-2)
    for key, known in (("category_id", store.class_ids), ("category", store.class_names)):
        assert [row[key] for row in rows] == [known[index] for index in instances.pred_classes.tolist()]
    assert "segmentation" not in rows[0]
    assert demo(*command, output=None) == 2
    assert "nothing to do" in capsys.readouterr().err


def test_classifier_of_images(tmp_path):
    """The scores of all classes are those of the evaluation, and the drawing has room for the labels."""
    store = image_label_store(tmp_path)
    run = classifier_run(tmp_path / "run", store)
    command = ["--weights", run, "--input", store.image_root, "--output", tmp_path / "out", "--device", "cpu"]
    assert main(["demo", *map(str, command), "--predictions", str(tmp_path / "p.json")]) == 0
    rows = json.loads((tmp_path / "p.json").read_text())
    scores = np.load(run / "inference/tiny/scores.npz")
    assert len(rows) == scores["scores"].size and "bbox" not in rows[0]
    for row in rows:
        place = scores["image_ids"].tolist().index(row["image_id"]), CLASS_IDS.index(row["category"])
        assert row["score"] == pytest.approx(scores["scores"][place], abs=1e-6)
    assert Image.open(tmp_path / "out/a.jpg").height > 256


@pytest.mark.parametrize("config", [MASK_CONFIG], indirect=True)
def test_masks_are_drawn_and_written(demo, store, weights, tmp_path, monkeypatch):
    command = ["--input", store.image_root / "im2.png", "--store", store.path, "--score-threshold", 0.3]
    assert demo(*command, "--predictions", tmp_path / "p.json") == 0
    masks = predictions_of(weights, store, MASK_CONFIG, "im2").pred_masks.numpy()
    assert masks.shape[1:] == (48, 64) and masks.any() and not masks.all()
    rows, found = json.loads((tmp_path / "p.json").read_text()), read_predictions(tmp_path / "p.json", store)
    for number, (row, mask) in enumerate(zip(rows, masks, strict=True)):
        assert row["segmentation"]["size"] == [48, 64] and type(row["segmentation"]["counts"]) is str
        assert (coco_mask.decode(row["segmentation"]).astype(bool) == mask).all()
        bitmap = found.mask_of(number)
        assert not mask.any() if bitmap is None else (bitmap == mask).all()
    with_masks = np.asarray(Image.open(tmp_path / "out" / "im2.jpg")).astype(int)
    # Without its masks the same detector's drawing differs.
    monkeypatch.setattr(MultiLabelVisualizer, "_draw_masks", lambda self, objects: None)
    assert demo(*command) == 0
    drawn = np.asarray(Image.open(tmp_path / "out" / "im2.jpg"))
    assert (np.abs(drawn - with_masks) > 20).any(axis=2).mean() > 0.01
