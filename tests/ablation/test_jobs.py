"""From a specification to jobs: their order, their command lines, and what their hashes depend on."""

from pathlib import Path

import pytest

from longtail_det2.ablation.configs import read_config, to_words
from longtail_det2.ablation.jobs import expand
from longtail_det2.config_files import load_lazy
from longtail_det2.config_names import find_config_file
from longtail_det2.utils.errors import ConfigError


def places(jobs):
    return [job.place for job in jobs]


def hashes(project):
    return {job.place: job.hash for job in expand(project.load())}


def test_jobs_come_after_what_they_need_and_seed_by_seed(project):
    assert places(expand(project.load())) == [
        f"real/{line}/seed{seed}" for seed in (1, 2, 3) for line in ("first", "first@more", "second")
    ]
    assert places(expand(project.load(), [9], ["second"])) == ["real/second/seed9"]
    project.specification["rows"][1]["start_from"] = "first"
    jobs = expand(project.load(), [9], ["second"])
    assert places(jobs) == ["real/first/seed9", "real/first@more/seed9", "real/second/seed9"]
    assert jobs[1].needs == jobs[2].needs == "real/first/seed9"
    assert jobs[0].iterations == 2 and jobs[1].iterations == 0 and jobs[1].is_evaluation


def test_rows_train_on_their_data_alone(project):
    project.specification["data"]["made"] = {"seed": "run"}
    project.specification["rows"][1]["data"] = ["made"]
    jobs = expand(project.load(), [4])
    assert places(jobs) == [
        *("real/first/seed4", "real/first@more/seed4"),
        *("made/first/seed4", "made/first@more/seed4", "made/second/seed4"),
    ]
    assert [job.data_seed for job in jobs] == [None, None, 4, 4, 4]


def test_unknown_rows_and_keys(project):
    with pytest.raises(ConfigError, match=r"no row 'secnd'.*'second'"):
        expand(project.load(), only=["secnd"])
    project.specification["rows"][1]["overrides"]["SOLVER.BASE_LRR"] = 1
    with pytest.raises(ConfigError, match=r"table.yaml: rows\[1\] \(second\): .*'SOLVER.BASE_LRR'.*BASE_LR"):
        expand(project.load())
    project.specification["rows"][1]["overrides"] = {"SOLVER.MAX_ITER": "many"}
    with pytest.raises(ConfigError, match=r"rows\[1\] \(second\): .*SOLVER.MAX_ITER"):
        expand(project.load())
    project.specification["rows"][1]["overrides"] = {}
    project.specification["rows"][0]["evaluate"][0]["overrides"] = {"NO.KEY": 1}
    with pytest.raises(ConfigError, match=r"rows\[0\] \(first\).evaluate \(more\): .*'NO.KEY'"):
        expand(project.load())


def test_hashes_change_exactly_with_what_a_job_depends_on(project):
    before = hashes(project)
    assert len(set(before.values())) == len(before)

    spec = project.specification
    spec["title"], spec["rows"][1]["label"], spec["metrics"] = "Other", "other", ["mAP50"]
    spec["rows"][1]["overrides"]["SOLVER.BASE_LR"] = "2e-1"  # the same number
    spec["rows"][1]["overrides"]["SOLVER.MOMENTUM"] = 0.9  # the default
    assert hashes(project) == before

    spec["rows"][0]["evaluate"][0]["overrides"]["TEST.DETECTIONS_PER_IMAGE"] = 51
    changed = hashes(project)
    assert {place for place in before if before[place] != changed[place]} == {
        f"real/first@more/seed{seed}" for seed in (1, 2, 3)
    }
    spec["rows"][0]["overrides"]["SOLVER.BASE_LR"] = 0.11
    again = hashes(project)
    assert {place for place in before if changed[place] != again[place]} == {
        f"real/{line}/seed{seed}" for seed in (1, 2, 3) for line in ("first", "first@more")
    }


def test_data_are_in_the_hash(project):
    spec = project.specification
    spec["data"] = {"made": {"imbalance": 10, "seed": 3}}
    fixed = hashes(project)
    spec["data"]["made"]["imbalance"] = 11
    assert not set(fixed.values()) & set(hashes(project).values())
    spec["data"]["made"].update(imbalance=10, seed="run")
    per_run = hashes(project)
    assert {place for place in fixed if fixed[place] == per_run[place]} == {
        f"made/{line}/seed3" for line in ("first", "first@more", "second")
    }
    spec["data"]["made"]["prepare"] = ["train_net.py"]
    assert not set(per_run.values()) & set(hashes(project).values())


def test_options_of_a_yaml_job(project):
    spec = project.specification
    spec["rows"][0]["overrides"] = {
        "DATASETS.STORES": "a={data}/stores/a,b={data}/{seed}",
        "MODEL.CHANNELS_LAST": False,
        "MODEL.ANCHOR_GENERATOR.SIZES": [[8, 16]],
    }
    job = expand(project.load(), [5])[1]
    words = job.options(Path("/root"), Path("/data"), Path("/run"), Path("/weights.pth"))
    options = dict(zip(words[::2], words[1::2], strict=True))
    assert options == {
        "SOLVER.MAX_ITER": "2",
        "DATASETS.STORES": "a=/data/stores/a,b=/data/5",
        "MODEL.CHANNELS_LAST": "False",
        "MODEL.ANCHOR_GENERATOR.SIZES": "[[8, 16]]",
        "TEST.DETECTIONS_PER_IMAGE": "50",
        "DATASETS.ROOT": "/root",
        "OUTPUT_DIR": "/run",
        "SEED": "5",
        "MODEL.WEIGHTS": "/weights.pth",
    }


def test_lazy_overrides_survive_the_command_line():
    path = find_config_file("shapes/faster_rcnn_tiny_softmax_shapes.py", ".py")
    values = {
        "train.output_dir": "/a folder/it's {data}/x=1@2",
        "train.max_iter": 7,
        "train.channels_last": False,
        "model.backbone.stage_channels": [4, 8, 8],
        "datasets.stores": ["a=b/c", "d=e f"],
        "+dataloader.train.phases": [["A", 5], ["B", 7, {"lambda_": 0.5}]],
        "optimizer.clip_value": None,
        "+train.new": 1.5,
    }
    cfg = load_lazy(path, to_words(values, lazy=True))
    assert cfg.train.output_dir == values["train.output_dir"]
    assert cfg.train.max_iter == 7 and cfg.train.channels_last is False and cfg.train.new == 1.5
    assert list(cfg.model.backbone.stage_channels) == [4, 8, 8]
    assert cfg.dataloader.train.phases == [["A", 5], ["B", 7, {"lambda_": 0.5}]]
    assert list(cfg.datasets.stores) == ["a=b/c", "d=e f"] and cfg.optimizer.clip_value is None


def test_lazy_settings_are_stable_plain_data():
    path = find_config_file("shapes/faster_rcnn_tiny_softmax_shapes.py", ".py")
    facts = read_config(path, {"train.max_iter": 3})
    assert facts.iterations == 3 and facts.settings["train"]["max_iter"] == 3
    assert "0x" not in str(facts.settings)  # an object's address would change from process to process


def test_a_lazy_row(project):
    project.specification["overrides"] = {}
    project.specification["rows"] = [
        {
            "name": "lazy",
            "config": "shapes/faster_rcnn_tiny_softmax_shapes.py",
            "overrides": {"train.max_iter": 3},
        }
    ]
    job = expand(project.load(), [5])[0]
    words = job.options(Path("/ro ot"), Path("/data"), Path("/run"), Path("/weights.pth"))
    assert words == [
        "train.max_iter=3",
        "datasets.root='/ro ot'",
        "train.output_dir=/run",
        "train.seed=5",
        "train.init_checkpoint=/weights.pth",
    ]
    project.specification["rows"][0]["overrides"] = {"train.seed": 3}
    with pytest.raises(ConfigError, match=r"rows\[0\].overrides: train.seed is set by the command"):
        project.load()
