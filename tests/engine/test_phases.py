"""Training in phases: natural, then soft-balance sampling, in one run and in two; what the run writes."""

import json
import logging
import math

import numpy as np
import pytest
import torch
from detectron2.engine.train_loop import TrainerBase
from runs import differences, logged, metrics, weights

from longtail_det2.data.datasets.dataset import MultiLabelDataset
from longtail_det2.data.samplers import Phase
from longtail_det2.engine import trainer
from longtail_det2.engine.sampling_log import SAMPLED_CLASSES_FILE, SamplingLog

YAML = [
    *("DATALOADER.SAMPLER_TRAIN", "PhasedTrainingSampler", "SEED", "5", "SOLVER.BASE_LR", "0.001"),
    *(
        "DATALOADER.PHASES",
        "(('UniformTrainingSampler', 3), ('SoftBalanceTrainingSampler', 4, {'lambda_': 0.5}))",
    ),
    *("SOLVER.CHECKPOINT_PERIOD", "1"),
]
LAZY = [
    "dataloader.train.sampler=PhasedTrainingSampler",
    "dataloader.train.phases=[[UniformTrainingSampler,3],[SoftBalanceTrainingSampler,4,{lambda_:0.5}]]",
    "lr_multiplier.end_factor=0.06",
    "train.seed=5",
    "train.checkpointer.period=1",
    "optimizer.base_lr=0.001",
]


def assert_equal_runs(one, two):
    assert differences(one, two) == []
    assert (one / SAMPLED_CLASSES_FILE).read_text() == (two / SAMPLED_CLASSES_FILE).read_text()


def test_a_phased_run_logs_its_phases_and_rates(yaml_args, tmp_path):
    trainer.main(yaml_args(*YAML, max_iter=7))
    lines = [line for line in metrics(tmp_path / "run") if "total_loss" in line]
    assert [line["phase"] for line in lines] == [1, 1, 1, 2, 2, 2, 2]
    text = (tmp_path / "run/log.txt").read_text()
    first = text.index("Phase 1 of 2, iterations 0 to 2: UniformTrainingSampler")
    drawn = text.index("Drawn in 3 iterations by UniformTrainingSampler: 6 images, ")
    second = text.index("Phase 2 of 2, iterations 3 to 6: SoftBalanceTrainingSampler(lambda_=0.5)")
    end = text.index("Drawn in 4 iterations by SoftBalanceTrainingSampler(lambda_=0.5): 8 images, ")
    assert first < drawn < second < end and text.count("Phase ") == 2
    # One cosine over seven iterations to 6 % (BASE_LR_END), with one iteration of warm-up.
    cosine = [0.06 + 0.94 * 0.5 * (1 + math.cos(math.pi * step / 7)) for step in range(1, 7)]
    expected = [0.02, *cosine]
    assert [line["lr"] for line in lines] == pytest.approx([0.001 * value for value in expected])


def test_resume_inside_the_second_phase_is_exact(front, tmp_path):
    front.train(YAML, LAZY, max_iter=7)
    whole = tmp_path / "run"
    for done in (2, 3, 5):  # before, at and after the boundary
        resumed = tmp_path / f"resumed{done}"
        resumed.mkdir()
        for name in (f"model_{done - 1:07}.pth", "metrics.json"):
            (resumed / name).write_bytes((whole / name).read_bytes())
        (resumed / "last_checkpoint").write_text(f"model_{done - 1:07}.pth")
        folder = ("OUTPUT_DIR", str(resumed)), (f"train.output_dir={resumed}",)
        front.train([*YAML, *folder[0]], [*LAZY, *folder[1]], flags=["--resume"], max_iter=7)
        assert_equal_runs(whole, resumed)
        log = (resumed / "log.txt").read_text()
        assert f"Continuing at iteration {done}" in log
        assert log.count("Phase 1 of 2") == (done < 3) and log.count("Phase 2 of 2") == 1


def test_two_runs_are_the_other_form_of_hybrid_training(yaml_args, tmp_path):
    """Pre-train with natural sampling; a new run takes the weights alone, all else is new."""
    trainer.main(yaml_args("SEED", "5", max_iter=3))
    path = tmp_path / "pretrained.pth"
    (tmp_path / "run/model_final.pth").rename(path)
    pretrained = weights(tmp_path, path.name)
    options = ["MODEL.WEIGHTS", str(path), "DATALOADER.SAMPLER_TRAIN", "SoftBalanceTrainingSampler"]
    options += ["DATALOADER.SOFT_BALANCE.LAMBDA", "0.5", "OUTPUT_DIR", str(tmp_path / "tuned"), "SEED", "6"]
    cfg = trainer.configure(yaml_args(*options, max_iter=4))
    second = trainer.Trainer(cfg)
    second.resume_or_load(resume=False)
    assert second.start_iter == 0 and not second.step.optimizer.state_dict()["state"]
    assert all(torch.equal(value, pretrained[name]) for name, value in second.model.state_dict().items())
    second.train()
    assert list(logged(tmp_path / "tuned")) == [0, 1, 2, 3]
    found = json.loads((tmp_path / "tuned" / SAMPLED_CLASSES_FILE).read_text())
    assert [phase["sampler"] for phase in found["phases"]] == ["SoftBalanceTrainingSampler(lambda_=0.5)"]


def test_frequencies_are_those_of_the_images_that_training_saw(yaml_args, tmp_path, monkeypatch, pictures):
    """The file is computed from the sampler; here images are counted as they reach the model."""
    seen = []
    original = trainer.build_train_loader_from_config

    def spying(cfg, start=0):
        loader = original(cfg, start)
        mapper = loader.dataset._mapper
        loader.dataset._mapper = lambda record: (seen.append(record), mapper(record))[1]
        return loader

    monkeypatch.setattr(trainer, "build_train_loader_from_config", spying)
    options = ("DATALOADER.FILTER_EMPTY_ANNOTATIONS", "False", "DATALOADER.ASPECT_RATIO_GROUPING", "True")
    trainer.main(yaml_args(*YAML, *options, max_iter=7))
    found = json.loads((tmp_path / "run" / SAMPLED_CLASSES_FILE).read_text())
    assert found["class_ids"] == ["animal", "cat", "dog", "ball"]
    assert found["images_by_class"] == [2, 2, 2, 1]
    seen = [record for record in seen if "mini_test" not in record["file_name"]]
    assert len(seen) == 14
    for phase, part in zip(found["phases"], (seen[:6], seen[6:]), strict=True):
        counts = np.zeros(4, int)
        for record in part:
            counts[sorted({c for one in record["annotations"] for c in one["category_ids"]})] += 1
        assert phase["drawn_by_class"] == counts.tolist()
        assert phase["images_drawn"] == len(part)
        assert phase["distinct_images"] == len({record["image_id"] for record in part})
    assert [phase["first_iteration"] for phase in found["phases"]] == [0, 3]


def test_runs_without_phases_write_their_frequencies_too(yaml_args, tmp_path):
    trainer.main(yaml_args("SEED", "5", max_iter=2))
    found = json.loads((tmp_path / "run" / SAMPLED_CLASSES_FILE).read_text())
    assert [(one["phase"], one["iterations"], one["images_drawn"]) for one in found["phases"]] == [(1, 2, 4)]
    text = (tmp_path / "run/log.txt").read_text()
    assert "Drawn in 2 iterations by UniformTrainingSampler" in text and "Phase 1" not in text
    assert not any("phase" in line for line in metrics(tmp_path / "run"))


class Loop(TrainerBase):
    """A training loop that only draws."""

    def __init__(self, log, loader):
        super().__init__()
        self.log, self.loader = log, loader
        self.register_hooks([log])

    def run_step(self):
        if self.iter == self.start_iter:
            self.log.watch(self.loader)


def test_a_loader_of_ones_own(tmp_path, caplog):
    log = SamplingLog(str(tmp_path), [Phase("UniformTrainingSampler", 2), Phase("Own", 2)], 4, 8)
    with caplog.at_level(logging.INFO, "longtail_det2"):
        Loop(log, [[]]).train(0, 4)
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("longtail_det2")]
    assert messages == [
        "Phase 1 of 2, iterations 0 to 1: UniformTrainingSampler",
        "no class frequencies are written: the loader does not come from this project",
        "Phase 2 of 2, iterations 2 to 3: Own",
    ]
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_does_not_stop_training(pictures, tmp_path, caplog):
    from longtail_det2.data.build import build_train_loader

    dataset = MultiLabelDataset(str(pictures / "train"))
    loader = build_train_loader(dataset, mapper=str, total_batch_size=2, seed=0)
    loop = Loop(SamplingLog(str(tmp_path / "missing"), (), 3, 2), loader)
    loop.train(0, 3)
    assert loop.iter == 3
    assert f"{tmp_path}/missing/{SAMPLED_CLASSES_FILE} cannot be written: " in caplog.text
