"""The tables of the projects: that their files are right, what they cost, and that their data can be made."""

import dataclasses
from pathlib import Path

import pytest

from longtail_det2.ablation.jobs import expand
from longtail_det2.ablation.parsing import load_specification
from longtail_det2.shapes.plan import plan_split
from longtail_det2.shapes.vocabulary import ShapesVocabulary

REPOSITORY = Path(__file__).resolve().parents[2]
TABLES = sorted(REPOSITORY.glob("projects/*/ablations/*.yaml"))


@pytest.mark.parametrize("path", TABLES, ids=lambda path: f"{path.parents[1].name}-{path.stem}")
def test_table(path):
    specification = load_specification(path, REPOSITORY / "scripts")
    jobs = expand(specification)
    assert len(specification.seeds) >= 3
    assert sum(not job.is_evaluation for job in jobs) <= 80
    # Two jobs of equal settings would be two names for one line.
    assert len({(job.hash, job.seed) for job in jobs}) == len(jobs)
    for data in specification.data.values():
        if data.options is None:
            continue
        for seed in specification.seeds:
            options = dataclasses.replace(data.options, seed=data.seed(seed))
            plans, _ = plan_split(options, ShapesVocabulary.build(options.num_leaves), "train")
            assert len(plans) == options.train_images


def test_tables_are_found():
    assert {"loss", "lambda"} <= {path.stem for path in TABLES}
