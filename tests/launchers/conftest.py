"""A data set of a few pictures, and commands that stand in for those of a cluster."""

import os
import sys

import pytest

from longtail_det2.data.datasets.openimages import prepare_openimages
from longtail_det2.shapes import ShapesOptions, generate_shapes


@pytest.fixture(scope="session")
def datasets_root(tmp_path_factory):
    """DATASETS.ROOT with the stores of a tiny shapes data set."""
    root = tmp_path_factory.mktemp("datasets")
    shapes = root / "shapes"
    options = ShapesOptions(
        train_images=16,
        validation_images=4,
        num_leaves=8,
        co_label_rate=0,
        imbalance=4,
        min_objects=1,
        formats=("openimages",),
    )
    generate_shapes(shapes, options, workers=1, progress=False)
    for split in ("train", "validation"):
        files = shapes / "annotations"
        prepare_openimages(
            [files / f"{split}-annotations-bbox.csv"],
            [files / f"{split}-human-imagelabels.csv"],
            files / "class-descriptions.csv",
            files / "hierarchy.json",
            shapes / "images" / split,
            shapes / "stores" / split,
            workers=1,
            progress=False,
        )
    return root


@pytest.fixture
def tiny_training(datasets_root):
    """Function: (output folder, iterations) -> arguments of a train script, without leading flags."""

    def make(output, iterations):
        return [
            *("--config-file", "shapes/faster_rcnn_tiny_softmax_shapes.yaml"),
            *("DATASETS.ROOT", str(datasets_root), "OUTPUT_DIR", str(output)),
            *("SOLVER.MAX_ITER", str(iterations), "SOLVER.IMS_PER_BATCH", "2", "SOLVER.WARMUP_ITERS", "1"),
            *("MODEL.TINY_BACKBONE.STAGE_CHANNELS", "4,8,8", "MODEL.ROI_BOX_HEAD.FC_DIM", "16"),
            *("MODEL.DEVICE", "cpu"),
        ]

    return make


@pytest.fixture
def cluster_commands(tmp_path, monkeypatch):
    """Function: puts shell scripts, given by name, first on the PATH; the interpreter's folder comes next."""
    folder = tmp_path / "commands"
    folder.mkdir()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv(
        "PATH", os.pathsep.join([str(folder), os.path.dirname(sys.executable), os.environ["PATH"]])
    )

    def make(**scripts):
        for name, content in scripts.items():
            path = folder / name
            path.write_text(f"#!/bin/bash\n{content}\n", encoding="utf-8")
            path.chmod(0o755)
        return folder

    return make
