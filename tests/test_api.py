"""The short way in Python."""

import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from factories import CLASS_IDS, image_label_store
from model_factories import classifier_run
from PIL import Image

from longtail_det2 import api
from longtail_det2.engine.setup import setup
from longtail_det2.utils.errors import ConfigError, DataError

CONFIG = "own_data/faster_rcnn_small_photos.yaml"
SMALL = (
    *("MODEL.TINY_BACKBONE.STAGE_CHANNELS", "(8,8,8)", "MODEL.ROI_BOX_HEAD.FC_DIM", "16"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "DATALOADER.NUM_WORKERS", "0"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.WARMUP_ITERS", "1", "MODEL.DEVICE", "cpu"),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "SEED", "0"),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A COCO JSON of four images with one object each; the labels of the second file are several."""
    folder = tmp_path_factory.mktemp("data")
    images, annotations = [], []
    for index in range(4):
        pixels = np.full((48, 64, 3), 60, np.uint8)
        pixels[10:40, 10:45] = (200, 40 * index, 30)
        Image.fromarray(pixels).save(folder / f"{index}.png")
        images.append({"id": index, "file_name": f"{index}.png", "height": 48, "width": 64})
        one = {"id": index, "image_id": index, "bbox": [10, 10, 35, 30], "category_id": index % 2 + 1}
        annotations.append(one)
    categories = [{"id": 1, "name": "robin"}, {"id": 2, "name": "wren"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "single.json").write_text(json.dumps(content))
    annotations[0]["category_ids"] = [1, 2]
    (folder / "several.json").write_text(json.dumps(content))
    return folder


def test_open_images_files(data):
    box = "ImageID,LabelName,XMin,XMax,YMin,YMax\n0,/m/robin,0.1,0.7,0.2,0.8\n0,/m/wren,0.1,0.7,0.2,0.8\n"
    (data / "boxes.csv").write_text(box)
    (data / "classes.csv").write_text("/m/robin,robin\n/m/wren,wren\n")
    (data / "labels.csv").write_text("ImageID,LabelName,Confidence\n0,/m/robin,1\n1,/m/wren,0\n")
    files = data / "boxes.csv", data / "classes.csv", data
    for _ in range(2):  # the second time it is there
        api.register_openimages("robins", *files, image_labels=data / "labels.csv")
    dataset = DatasetCatalog.get("robins")
    assert [record["image_id"] for record in dataset] == ["0", "1"]
    assert dataset[0]["annotations"][0]["category_ids"] == [0, 1] and dataset[1]["neg_category_ids"] == [1]
    with pytest.raises(DataError, match=r"labels\.csv: no such file|no such file"):
        api.register_openimages("robins", data / "none.csv", data / "classes.csv", data)


def test_train_load_predict_draw(data, tmp_path, capsys):
    api.register_coco("birds", data / "single.json", data)
    cfg = api.get_config(CONFIG, train="birds", test="birds", loss="SeesawLoss", options=SMALL)
    assert cfg.MODEL.CLASSIFICATION_LOSS.SEESAW.LABELS == "auto"
    for number in (1, 2):  # the second run logs to its own folder alone
        results = api.train(cfg, str(tmp_path / f"run{number}"), max_iter=2)
        assert 0 <= results["coco_bbox"]["AP"] <= 100
    files = {path.name for path in (tmp_path / "run1").iterdir()}
    assert {"config.yaml", "run.json", "log.txt", "metrics.json", "model_final.pth"} <= files
    assert (tmp_path / "run1/log.txt").read_text().count("Starting training") == 1
    assert "LABELS: most_specific" in (tmp_path / "run1/config.yaml").read_text()
    predict = api.load(tmp_path / "run2", device="cpu")
    assert predict.class_names == ("robin", "wren")
    path = data / "1.png"
    found = predict(path)
    assert len(found) and found.image_size == (48, 64)
    for other in (Image.open(path), np.asarray(Image.open(path))[:, :, ::-1]):
        torch.testing.assert_close(predict(other).pred_boxes.tensor, found.pred_boxes.tensor)
    drawn = predict.draw(path, tmp_path / "drawings" / "1.png", score_threshold=0.0)
    assert (tmp_path / "drawings" / "1.png").is_file() and drawn.size[0] >= 64


def test_classifier_of_images(tmp_path):
    run = classifier_run(tmp_path / "run", image_label_store(tmp_path))
    predict = api.load(run, device="cpu")
    found = predict(tmp_path / "store-images/a.png")
    scores = np.load(run / "inference/tiny/scores.npz")["scores"][0]
    np.testing.assert_allclose(found.scores, scores[found.pred_classes.numpy()], atol=1e-6)
    assert predict.class_names == tuple(CLASS_IDS) and (found.scores.diff() <= 0).all()
    assert predict.draw(tmp_path / "store-images/a.png").height > 256
    loss = "DistributionBalancedLoss"
    cfg = api.get_config("shapes/classifier_tiny_sigmoid_shapes.yaml", loss=loss)
    assert loss == cfg.MODEL.IMAGE_HEAD.CLASSIFICATION_LOSS


def test_labels_follow_the_data(data, tmp_path):
    for name, labels in (("several", "all"), ("single", "most_specific")):
        api.register_coco(name, data / f"{name}.json", data)
        cfg = api.get_config(CONFIG, train=[name], test=name, loss="SeesawLoss", sampler="X")
        assert cfg.DATALOADER.SAMPLER_TRAIN == "X"
        assert labels == setup(cfg, str(tmp_path / name)).MODEL.CLASSIFICATION_LOSS.SEESAW.LABELS
    dense = api.get_config("shapes/retinanet_tiny_focal_shapes.yaml", loss="SigmoidBCELoss")
    assert dense.MODEL.DENSE_HEAD.CLASSIFICATION_LOSS == "SigmoidBCELoss"


def test_errors(data, tmp_path):
    with pytest.raises(ConfigError, match=r"nope\.yaml"):
        api.get_config("nope.yaml")
    with pytest.raises(ConfigError, match="no run or checkpoint"):
        api.load(tmp_path / "none")
    torch.save({"model": {"w": torch.ones(1)}}, tmp_path / "model_final.pth")
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        api.load(tmp_path)
