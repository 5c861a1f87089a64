"""Fixtures shared by the whole suite."""

import logging
import os
import tempfile
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.logger import setup_logger

# Built-in data sets that somebody has prepared in the checkout's folder "datasets" are not for tests to find.
os.environ["DETECTRON2_DATASETS"] = str(Path(tempfile.gettempdir()) / "no_such_datasets")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the source checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder `shared` beside the checkout with optional development data; skips where it is absent."""
    path = REPOSITORY.parent / "shared"
    if not path.is_dir():
        pytest.skip(f"optional development data are not at {path}")
    return path


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Reference values that are part of the repository."""
    return REPOSITORY / "tests" / "golden"


@pytest.fixture(autouse=True)
def clean_catalogs():
    """Forgets the data sets that a test registers, the built-in names too."""
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


@pytest.fixture(autouse=True)
def clean_loggers():
    """Detectron2's loggers keep the standard output that they were made with, here the captured one."""
    yield
    setup_logger.cache_clear()
    for name in ("detectron2", "fvcore", "longtail_det2"):
        logging.getLogger(name).handlers.clear()
