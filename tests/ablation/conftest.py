"""A folder of scripts whose trainer is a fake, and the real command on it."""

import importlib.util
import json
import logging
import shutil
import signal
from pathlib import Path

import pytest
import yaml

CONFIG = "shapes/faster_rcnn_tiny_softmax_shapes.yaml"


class Project:
    """A specification and what the command makes of it.

    Attributes:
        folder: of everything.
        specification: content of the file, to be changed by tests.
    """

    def __init__(self, repository, folder):
        self.folder = folder
        self.scripts = folder / "scripts"
        self.scripts.mkdir()
        shutil.copy(repository / "scripts" / "run_ablation.py", self.scripts)
        for name in ("train_net.py", "lazyconfig_train_net.py"):
            shutil.copy(Path(__file__).with_name("fake_train_net.py"), self.scripts / name)
        self.data = folder / "some data"
        self.data.mkdir()
        self.path = folder / "table.yaml"
        self.output = folder / "output"
        self.specification = {
            "title": "A table",
            "config": CONFIG,
            "overrides": {"SOLVER.MAX_ITER": 2},
            "seeds": [1, 2, 3],
            "metrics": ["mAP50", "mAP50_leaves"],
            "data": {"real": {"folder": str(self.data)}},
            "rows": [
                {
                    "name": "first",
                    "overrides": {"SOLVER.BASE_LR": 0.1},
                    "evaluate": [{"name": "more", "overrides": {"TEST.DETECTIONS_PER_IMAGE": 50}}],
                },
                {"name": "second", "label": "the second", "overrides": {"SOLVER.BASE_LR": 0.2}},
            ],
        }

    def write(self):
        """Writes the specification."""
        self.path.write_text(yaml.safe_dump(self.specification, sort_keys=False))
        return self.path

    def load(self):
        """The specification, read by the package."""
        from longtail_det2.ablation.parsing import load_specification

        return load_specification(self.write(), self.scripts)

    def run(self, *arguments):
        """The exit status of the command."""
        spec = importlib.util.spec_from_file_location("run_ablation", self.scripts / "run_ablation.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.main([str(self.write()), "--output", str(self.output), *arguments])

    def calls(self):
        """What the fake trainer was called with since the last time."""
        path = self.scripts / "calls.jsonl"
        if not path.exists():
            return []
        calls = [json.loads(line) for line in path.read_text().splitlines()]
        path.unlink()
        return calls

    def results(self):
        """{(line, seed): result} of results.json."""
        document = json.loads((self.output / "results.json").read_text())
        return {(one["line"], one["seed"]): one for one in document["results"]}

    def table(self):
        """Cells of the tables of table.md, header lines included: {first cell: [other cells]} each."""
        tables, rows = [], None
        for line in (self.output / "table.md").read_text().splitlines():
            if not line.startswith("|"):
                rows = None
                continue
            if rows is None:
                rows = {}
                tables.append(rows)
            first, *others = [cell.strip() for cell in line.strip("|").split("|")]
            rows[first] = others
        return tables


@pytest.fixture
def project(repository, tmp_path):
    """See Project; what the command changes in this process is put back."""
    handler = signal.getsignal(signal.SIGTERM)
    root = logging.getLogger()
    handlers = list(root.handlers)
    yield Project(repository, tmp_path)
    signal.signal(signal.SIGTERM, handler)
    root.handlers[:] = handlers
