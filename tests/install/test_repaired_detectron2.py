"""What the repaired wheel of Detectron2 v0.6 must do where the original fails on current libraries."""

import importlib.metadata

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.skipif(
    "pure" not in importlib.metadata.version("detectron2"), reason="another build of Detectron2 is installed"
)


def test_imports_that_used_to_fail():
    import detectron2.data.transforms as T
    import detectron2.export  # noqa: F401
    from detectron2.evaluation import COCOEvaluator  # noqa: F401
    from detectron2.utils.analysis import FlopCountAnalysis  # noqa: F401

    image = np.zeros((4, 6, 3), dtype=np.uint8)
    assert T.ExtentTransform((0, 0, 6, 4), (2, 3)).apply_image(image).shape == (2, 3, 3)


def test_compiled_operators_explain_themselves():
    from detectron2.layers.rotated_boxes import pairwise_iou_rotated

    with pytest.raises(AttributeError, match="built from its official sources"):
        pairwise_iou_rotated(torch.zeros(1, 5), torch.zeros(1, 5))


def test_a_mapper_may_refuse_an_image():
    from detectron2.data.common import MapDataset

    dataset = MapDataset(list(range(4)), lambda value: None if value == 1 else value)
    assert dataset[1] in (0, 2, 3)


def test_no_alias_that_some_numpy_lacks_is_left():
    import re
    from pathlib import Path

    import detectron2

    sources = Path(detectron2.__file__).parent.rglob("*.py")
    left = [path.name for path in sources if re.search(r"\bnp\.(bool|int|float|str)\)", path.read_text())]
    assert left == []
