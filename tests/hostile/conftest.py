"""Fixtures over `hostile_data`."""

import pytest
from hostile_data import Data


@pytest.fixture
def data(tmp_path) -> Data:
    return Data(tmp_path / "data")
