"""What a user can get wrong: one line that says what to do, exit code 2, no traceback."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from runs import run_script

from longtail_det2.cli.run import parse_args, run
from longtail_det2.data.datasets.builtin import register_datasets
from longtail_det2.engine import lazy, trainer

NORMALISED = ["MODEL.ROI_BOX_HEAD.CLASSIFIER", "NormalizedLinear"]


def fails(main, args, capsys):
    """The one message on standard error of a run that ends with exit code 2."""
    assert run(main, args) == 2
    logged, written = capsys.readouterr()
    assert "Traceback" not in logged and "Traceback" not in written
    return written[written.index("error: ") :]  # PyTorch may warn before


PHASED = ["DATALOADER.SAMPLER_TRAIN", "PhasedTrainingSampler", "DATALOADER.PHASES"]
LAMBDA = [*PHASED, "(('UniformTrainingSampler', 3), ('SoftBalanceTrainingSampler', 4))"]
YAML_MISTAKES = [  # options, what the message must name
    (["SOLVER.MAXITER", "3"], "'SOLVER.MAX_ITER'"),
    (["SOLVER.IMS_PER_BATCH", "0"], "SOLVER.IMS_PER_BATCH"),
    (["DATASETS.TRAIN", "()"], "DATASETS.TRAIN"),
    (["DATASETS.TEST", "()", "--eval-only"], "DATASETS.TEST"),
    (["DATASETS.TRAIN", "mini_trian"], "'mini_trian'", "mini_train"),
    (["DATASETS.TRAIN", "openimages_v6_train"], "no_such_datasets/", "longtail-det2 prepare openimages"),
    (["DATASETS.STORES", "stores/train"], "DATASETS.STORES: 'stores/train'"),
    (["DATASETS.STORES", "mini_train=DATA/train,odd=DATA/others", "DATASETS.TEST", "odd"], "'animal'"),
    (["DATASETS.STORES", "mini_train=DATA/train,odd=DATA/renamed", "DATASETS.TEST", "odd"], "'dog'"),
    (["MODEL.ROI_HEADS.NUM_CLASSES", "80"], "80 classes", "'mini_train' has 4", "to -1"),
    (["MODEL.ROI_HEADS.NUM_CLASSES", "1"], "1 class ("),
    (["MODEL.WEIGHTS", "no/weights.pth"], "no/weights.pth"),
    (["MODEL.META_ARCHITECTURE", "nothing"], "'nothing'"),
    (["MODEL.ROI_BOX_HEAD.CLASSIFIER", "Cosine"], "CLASSIFIER is 'Cosine'"),
    ([*NORMALISED, "MODEL.ROI_BOX_HEAD.TEMPERATURE", "0.0"], "ROI_BOX_HEAD.TEMPERATURE is 0.0"),
    ([*PHASED, "(('UniformTrainingSampler', 9),)"], "DATALOADER.PHASES", "SOLVER.MAX_ITER"),
    ([*PHASED[2:], "(('UniformTrainingSampler', 7),)"], "'PhasedTrainingSampler'"),
    ([*LAMBDA, "DATALOADER.SOFT_BALANCE.LAMBDA", "2.5"], "DATALOADER.SOFT_BALANCE.LAMBDA", "2.5"),
    (["TEST.METRICS", "('voc',)"], "TEST.METRICS", "'voc'"),
    (["TEST.METRICS", "('coco',)", "TEST.TASKS", "('keypoints',)"], "TEST.TASKS", "keypoints"),
]
LAZY_MISTAKES = [
    (["dataloader.train.dataset.names=[]"], "dataloader.train"),
    (["dataloader.train.dataset.names=mini_trian"], "'mini_trian'"),
    (["model.roi_heads.num_classes=80"], "has 4"),
    (["dataloader.train.phases=[[UniformTrainingSampler,7]]"], "'PhasedTrainingSampler'"),
    (
        [
            "dataloader.train.sampler=PhasedTrainingSampler",
            "dataloader.train.phases=[[UniformTrainingSampler,9]]",
        ],
        "dataloader.train.phases",
        "train.max_iter",
    ),
    (["dataloader.evaluator.metrics=[coco]", "dataloader.evaluator.tasks=[keypoints]"], "keypoints"),
]


@pytest.mark.parametrize(("options", "words"), [(options, words) for options, *words in YAML_MISTAKES])
def test_mistakes_in_a_config(yaml_args, pictures, tmp_path, capsys, options, words):
    flags = [one for one in options if one == "--eval-only"]
    options = [one.replace("DATA/", f"{pictures}/") for one in options if one not in flags]
    message = fails(trainer.main, yaml_args(*options, flags=flags, max_iter=7), capsys)
    assert all(word in message for word in words), message
    assert not list((tmp_path / "run").glob("model*"))


@pytest.mark.parametrize(("options", "words"), [(options, words) for options, *words in LAZY_MISTAKES])
def test_mistakes_in_a_lazy_config(lazy_args, capsys, options, words):
    message = fails(lazy.main, lazy_args(*options, max_iter=7), capsys)
    assert all(word in message for word in words), message


def test_missing_config(capsys):
    message = fails(trainer.main, parse_args(["--config-file", "no/such.yaml"]), capsys)
    assert "no/such.yaml" in message and "shapes/faster_rcnn_tiny_softmax_shapes.yaml" in message
    assert "--config-file" in fails(lazy.main, parse_args([]), capsys)
    assert "--num-gpus 0" in fails(trainer.main, parse_args(["--num-gpus", "0"]), capsys)


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


@pytest.mark.parametrize("workers", [0, 1])
def test_error_in_the_middle_of_training(front, pictures, tmp_path, store_maker, capsys, workers):
    """The user sees one line; the traceback, also that of a loading process, is in log.txt alone."""
    store, run_folder = store_maker(tmp_path / "broken", images=8), tmp_path / "run"
    picture = tmp_path / "broken-images/003.png"
    picture.write_bytes(picture.read_bytes()[:200])
    stores = f"mini_train={store}", f"mini_test={pictures}/test"
    args = front.args(
        [
            *("DATASETS.STORES", ",".join(stores), "SEED", "1", "SOLVER.CHECKPOINT_PERIOD", "1"),
            *("DATALOADER.NUM_WORKERS", str(workers)),
        ],
        [
            *(f"datasets.stores={list(stores)}", "train.seed=1", "train.checkpointer.period=1"),
            f"dataloader.train.num_workers={workers}",
        ],
        max_iter=50,
    )
    assert run(front.main, args) == 2
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


def test_script_ends_with_code_2_and_one_line(repository):
    done = run_script(repository / "scripts/train_net.py", "--config-file", "nothing.yaml")
    assert done.returncode == 2
    assert done.stderr.startswith("error: nothing.yaml is no file") and "Traceback" not in done.stderr


def test_stores_may_take_a_built_in_name(pictures, tmp_path):
    register_datasets(str(tmp_path), [f"shapes_train={pictures}/train"])
    assert MetadataCatalog.get("shapes_train").class_ids == ["animal", "cat", "dog", "ball"]
    register_datasets(str(tmp_path), [f"shapes_train={pictures}/others"])
    assert MetadataCatalog.get("shapes_train").class_ids == ["car", "bus"]
    register_datasets(str(tmp_path), [f"shapes_train={pictures}/others"])
    assert "openimages_v6_train" in DatasetCatalog.list()
