import pytest
from shapes_reading import OPTIONS

from longtail_det2.shapes import generate_shapes
from longtail_det2.shapes.vocabulary import ShapesVocabulary


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """Folder of the data set of `OPTIONS`, in all forms."""
    folder = tmp_path_factory.mktemp("shapes") / "data"
    generate_shapes(folder, OPTIONS, workers=1, progress=False)
    return folder


@pytest.fixture(scope="session")
def vocabulary():
    """The classes of `dataset`."""
    return ShapesVocabulary.build(OPTIONS.num_leaves)
