"""Small annotation stores, and what is made of them."""

from functools import partial

import pytest
from factories import CLASS_IDS, PARENTS, Picture, build_store, random_pictures

from longtail_det2.data.hierarchy import LabelHierarchy


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    return build_store(tmp_path_factory.mktemp("stores"))


@pytest.fixture
def make_store(tmp_path):
    return partial(build_store, tmp_path)


@pytest.fixture(scope="session")
def pet_hierarchy():
    return LabelHierarchy.from_json(PARENTS, CLASS_IDS)


@pytest.fixture
def picture():
    return Picture


@pytest.fixture(scope="session")
def random_store(tmp_path_factory):
    return build_store(tmp_path_factory.mktemp("random"), random_pictures())
