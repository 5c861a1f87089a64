"""What a user can get wrong: one line that says what to do, exit code 2, no traceback."""

import os
import subprocess
import sys

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from longtail_det2.cli.run import parse_args, run
from longtail_det2.data.datasets.builtin import register_datasets
from longtail_det2.engine import lazy, trainer
from longtail_det2.engine.setup import resolve_num_classes
from longtail_det2.utils.errors import DataError


def fails(main, args, capsys):
    """The one message on standard error of a run that ends with exit code 2."""
    assert run(main, args) == 2
    logged, written = capsys.readouterr()
    assert "Traceback" not in logged and "Traceback" not in written
    return written[written.index("error: ") :]  # PyTorch may warn before


def test_misspelt_key(yaml_args, lazy_args, capsys):
    assert "Did you mean 'SOLVER.MAX_ITER'" in fails(trainer.main, yaml_args("SOLVER.MAXITER", "3"), capsys)
    assert "Did you mean 'train.max_iter'" in fails(lazy.main, lazy_args("train.maxiter=3"), capsys)


def test_missing_config(capsys):
    message = fails(trainer.main, parse_args(["--config-file", "no/such.yaml"]), capsys)
    assert "no/such.yaml is no file" in message and "shapes/faster_rcnn_tiny_softmax_shapes.yaml" in message
    assert "--config-file is missing" in fails(lazy.main, parse_args([]), capsys)


def test_no_data_set(yaml_args, lazy_args, capsys):
    for options, flags, key in (
        (("DATASETS.TRAIN", "()"), [], "DATASETS.TRAIN"),
        (("DATASETS.TEST", "()"), ["--eval-only"], "DATASETS.TEST"),
    ):
        message = fails(trainer.main, yaml_args(*options, flags=flags), capsys)
        assert f"no data set is named: {key}" in message
    message = fails(lazy.main, lazy_args("dataloader.train.dataset.names=[]"), capsys)
    assert "dataloader.train" in message
    assert trainer.main(yaml_args("DATASETS.TEST", "()")) == {}  # training alone needs no test data


def test_absent_data_set_says_where_and_how(yaml_args, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    args = yaml_args("DATASETS.TRAIN", "openimages_v6_train")
    message = fails(trainer.main, args, capsys)
    assert "openimages_v6_train" in message and str(tmp_path / "data") in message
    assert "longtail-det2 prepare openimages" in message


def test_unknown_data_set_lists_the_known(yaml_args, lazy_args, capsys):
    message = fails(trainer.main, yaml_args("DATASETS.TRAIN", "mini_trian"), capsys)
    assert "'mini_trian'" in message and "mini_train" in message
    message = fails(lazy.main, lazy_args("dataloader.train.dataset.names=mini_trian"), capsys)
    assert "'mini_trian'" in message


def test_stores_that_are_no_pairs(yaml_args, capsys):
    message = fails(trainer.main, yaml_args("DATASETS.STORES", "stores/train"), capsys)
    assert "DATASETS.STORES: 'stores/train' is not of the form name=folder" in message


def test_number_of_classes(yaml_args, lazy_args, capsys):
    message = fails(trainer.main, yaml_args("MODEL.ROI_HEADS.NUM_CLASSES", "80"), capsys)
    assert "80 classes" in message and "'mini_train' has 4" in message and "to -1" in message
    assert "has 4" in fails(lazy.main, lazy_args("model.roi_heads.num_classes=80"), capsys)
    message = fails(trainer.main, yaml_args("MODEL.ROI_HEADS.NUM_CLASSES", "1"), capsys)
    assert "the config says 1 class (MODEL" in message


def test_training_and_test_data_of_other_classes(yaml_args, pictures, capsys):
    for store, expected in (("others", "class 0 is 'animal'"), ("renamed", "class 2 is 'dog'")):
        stores = f"mini_train={pictures}/train,odd={pictures}/{store}"
        args = yaml_args("DATASETS.STORES", stores, "DATASETS.TEST", "odd")
        assert expected in fails(trainer.main, args, capsys)


def test_checkpoint_of_another_class_count(yaml_args, pictures, tmp_path, capsys):
    trainer.main(yaml_args(max_iter=1))
    weights = tmp_path / "weights.pth"
    (tmp_path / "run/model_final.pth").rename(weights)
    stores = ("DATASETS.STORES", f"few={pictures}/others", "DATASETS.TRAIN", "few", "DATASETS.TEST", "few")
    options = (*stores, "MODEL.WEIGHTS", str(weights))
    message = fails(trainer.main, yaml_args(*options), capsys)
    assert "it is for 4 classes, the model for 2" in message
    assert "roi_heads.box_predictor.cls_score.weight: (5, 16) in the checkpoint, (3, 16)" in message
    assert "MODEL.RESET_WEIGHTS roi_heads.box_predictor" in message
    # What the message says works.
    assert trainer.main(yaml_args(*options, "MODEL.RESET_WEIGHTS", "roi_heads.box_predictor"))


def test_missing_weights(yaml_args, capsys):
    message = fails(trainer.main, yaml_args("MODEL.WEIGHTS", "no/weights.pth"), capsys)
    assert "there is no checkpoint no/weights.pth" in message


def test_unknown_parts(yaml_args, capsys):
    for key in ("MODEL.BACKBONE.NAME", "MODEL.ROI_HEADS.NAME", "MODEL.META_ARCHITECTURE"):
        assert "'nothing'" in fails(trainer.main, yaml_args(key, "nothing"), capsys).lower()
    assert "unknown training sampler" in fails(
        trainer.main, yaml_args("DATALOADER.SAMPLER_TRAIN", "Nothing"), capsys
    )


def test_batch_size(yaml_args, capsys):
    assert "SOLVER.IMS_PER_BATCH" in fails(trainer.main, yaml_args("SOLVER.IMS_PER_BATCH", "0"), capsys)


def test_error_in_a_loading_process(yaml_args, pictures, tmp_path, store_maker, capsys):
    """The message is the error's alone, although another process raised it."""
    store = store_maker(tmp_path / "broken", images=3)
    for picture in (tmp_path / "broken-images").iterdir():
        picture.unlink()
    stores = f"mini_train={store},mini_test={pictures}/test"
    for workers in ("0", "1"):
        args = yaml_args("DATASETS.STORES", stores, "DATALOADER.NUM_WORKERS", workers)
        message = fails(trainer.main, args, capsys)
        assert message.startswith(f"error: {tmp_path}/broken-images/00") and "image not found" in message


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("form", ["yaml", "lazy"])
def test_error_in_the_middle_of_training(
    yaml_args, lazy_args, pictures, tmp_path, store_maker, capsys, form, workers
):
    """The user sees one line; the traceback, also that of a loading process, is in log.txt alone."""
    store, run_folder = store_maker(tmp_path / "broken", images=8), tmp_path / "run"
    picture = tmp_path / "broken-images/003.png"
    picture.write_bytes(picture.read_bytes()[:200])
    if form == "yaml":
        stores = f"mini_train={store},mini_test={pictures}/test"
        args = yaml_args(
            *("DATASETS.STORES", stores, "SEED", "1", "DATALOADER.NUM_WORKERS", str(workers)),
            *("SOLVER.CHECKPOINT_PERIOD", "1"),
            max_iter=50,
        )
    else:
        args = lazy_args(
            f"datasets.stores=['mini_train={store}','mini_test={pictures}/test']",
            *("train.seed=1", f"dataloader.train.num_workers={workers}", "train.checkpointer.period=1"),
            max_iter=50,
        )
    assert run((trainer if form == "yaml" else lazy).main, args) == 2
    seen = capsys.readouterr()
    assert (run_folder / "model_0000000.pth").is_file()  # it had begun
    for stream in (seen.out, seen.err):
        assert "Traceback" not in stream and "Exception" not in stream and "Caught" not in stream
    last = seen.err.strip().splitlines()[-1]
    assert last.startswith(f"error: {picture}") and seen.err.count(str(picture)) == 1
    log = (run_folder / "log.txt").read_text()
    assert "Exception during training" in log and "Traceback" in log and str(picture) in log
    assert ("DataLoader worker process 0" in log) == bool(workers)


def test_other_exceptions_keep_their_traceback(yaml_args, tmp_path, capsys, monkeypatch):
    from longtail_det2.modeling.losses import SoftmaxCrossEntropyLoss

    def unreduced(self, logits, targets):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(SoftmaxCrossEntropyLoss, "unreduced", unreduced)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        run(trainer.main, yaml_args())
    seen = capsys.readouterr()
    log = (tmp_path / "run/log.txt").read_text()
    for text in (seen.out, log):
        assert "Exception during training" in text and "RuntimeError: a fault of ours" in text


def test_message_that_names_an_error_itself_is_whole(capsys):
    def main(args):
        raise DataError("a.csv: ValueError: DataError: odd")

    assert fails(main, parse_args([]), capsys) == "error: a.csv: ValueError: DataError: odd\n"


def test_script_ends_with_code_2_and_one_line(repository):
    script = repository / "scripts/train_net.py"
    command = [sys.executable, str(script), "--config-file", "nothing.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 2
    assert done.stderr.startswith("error: nothing.yaml is no file") and "Traceback" not in done.stderr


def test_stores_may_take_a_built_in_name(pictures, tmp_path):
    register_datasets(str(tmp_path), [f"shapes_train={pictures}/train"])
    assert MetadataCatalog.get("shapes_train").class_ids == ["animal", "cat", "dog", "ball"]
    register_datasets(str(tmp_path), [f"shapes_train={pictures}/others"])
    assert MetadataCatalog.get("shapes_train").class_ids == ["car", "bus"]
    register_datasets(str(tmp_path), [f"shapes_train={pictures}/others"])
    assert "openimages_v6_train" in DatasetCatalog.list()


def test_resolve_num_classes(pictures, tmp_path):
    register_datasets(str(tmp_path), [f"a={pictures}/train", f"b={pictures}/test", f"c={pictures}/others"])
    assert resolve_num_classes(["a"], ["b"], -1) == ("animal", "cat", "dog", "ball")
    assert resolve_num_classes([], ["b"], 4) == ("animal", "cat", "dog", "ball")
    with pytest.raises(DataError, match=r"'a'.*'c'"):
        resolve_num_classes(["a"], ["c"], -1)
    with pytest.raises(DataError, match="shapes_train"):
        resolve_num_classes(["shapes_train"], [], -1)


def test_an_impossible_evaluation_is_said_before_training(yaml_args, lazy_args, tmp_path, capsys):
    message = fails(
        trainer.main, yaml_args("TEST.METRICS", "('coco',)", "TEST.TASKS", "('keypoints',)"), capsys
    )
    assert "TEST.TASKS" in message and "keypoints" in message
    message = fails(
        lazy.main,
        lazy_args("dataloader.evaluator.metrics=[coco]", "dataloader.evaluator.tasks=[keypoints]"),
        capsys,
    )
    assert "keypoints" in message
    message = fails(trainer.main, yaml_args("TEST.METRICS", "('voc',)"), capsys)
    assert "TEST.METRICS" in message and "'voc'" in message
    assert not list((tmp_path / "run").glob("model*"))
