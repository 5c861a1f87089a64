"""Fixtures over `hostile_data`."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from hostile_data import Data


@pytest.fixture
def data(tmp_path) -> Data:
    return Data(tmp_path / "data")


@pytest.fixture(autouse=True)
def clean_catalog():
    """Forgets what a test registers, the built-in names too."""
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)
