import csv
import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from detectron2.utils import comm
from factories import json_store


@pytest.fixture(scope="session")
def oid(golden_dir) -> Path:
    return golden_dir / "oid"


@pytest.fixture(scope="session")
def expected(oid) -> dict:
    return json.loads((oid / "expected.json").read_text())


@pytest.fixture
def shuffled(oid, tmp_path) -> Path:
    """Copies of the golden CSVs with rows and columns in random order and a column more."""
    rng = random.Random(0)
    for name in ("boxes", "imagelabels", "predictions"):
        with (oid / f"{name}.csv").open() as stream:
            rows = list(csv.DictReader(stream))
        rng.shuffle(rows)
        columns = [*rows[0], "Extra"]
        rng.shuffle(columns)
        with (tmp_path / f"{name}.csv").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, columns, restval="text, with a comma")
            writer.writeheader()
            writer.writerows(rows)
    for name in ("classes.csv", "hierarchy.json"):
        (tmp_path / name).write_bytes((oid / name).read_bytes())
    return tmp_path


@pytest.fixture
def make_lvis_store(tmp_path):
    """A store from the content of a COCO- or LVIS-form file."""
    return partial(json_store, tmp_path)


@pytest.fixture
def run_ranks(monkeypatch):
    """Calls a function in a thread for each rank, with `comm` between the threads; results by rank."""

    def run(size, function):
        local, barrier, slots = threading.local(), threading.Barrier(size, timeout=60), [None] * size

        def exchange(data):
            slots[local.rank] = data
            barrier.wait()
            received = list(slots)
            barrier.wait()
            return received

        def as_rank(rank):
            local.rank = rank
            return function(rank)

        monkeypatch.setattr(comm, "get_world_size", lambda: size)
        monkeypatch.setattr(comm, "get_rank", lambda: local.rank)
        monkeypatch.setattr(comm, "is_main_process", lambda: local.rank == 0)
        monkeypatch.setattr(comm, "all_gather", exchange)
        monkeypatch.setattr(
            comm, "gather", lambda data, dst=0: exchange(data) if local.rank == dst else exchange(data)[:0]
        )
        with ThreadPoolExecutor(size) as pool:
            return list(pool.map(as_rank, range(size)))

    return run
