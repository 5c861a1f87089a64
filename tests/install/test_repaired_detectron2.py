"""What the repaired wheel of Detectron2 v0.6 must do where the original fails on current libraries."""

import importlib.metadata

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.skipif(
    "pure" not in importlib.metadata.version("detectron2"), reason="another build of Detectron2 is installed"
)


def test_group_norm_head_builds():
    from detectron2.layers import ShapeSpec
    from detectron2.modeling.meta_arch.fcos import FCOSHead

    shape = [ShapeSpec(channels=32, stride=8)]
    head = FCOSHead(input_shape=shape, num_classes=3, conv_dims=[32], norm="GN")
    assert any(isinstance(module, torch.nn.GroupNorm) for module in head.modules())


def test_fcos_labels_an_image_without_boxes():
    from detectron2.modeling.meta_arch.fcos import FCOS
    from detectron2.structures import Boxes, Instances

    anchors = [Boxes(torch.tensor([[0.0, 0.0, 8.0, 8.0], [8.0, 0.0, 16.0, 8.0]]))]
    empty = Instances(
        (16, 16), gt_boxes=Boxes(torch.zeros(0, 4)), gt_classes=torch.zeros(0, dtype=torch.int64)
    )
    full = Instances(
        (16, 16), gt_boxes=Boxes(torch.tensor([[0.0, 0.0, 8.0, 8.0]])), gt_classes=torch.tensor([1])
    )
    model = FCOS.__new__(FCOS)
    torch.nn.Module.__init__(model)
    model.num_classes, model.center_sampling_radius = 3, 1.5
    labels, boxes = model.label_anchors(anchors, [empty, full])
    assert labels[0].tolist() == [3, 3]
    assert boxes[0].tensor.shape == (2, 4)
    assert labels[1].tolist() == [1, 3]


def test_zoo_configs_are_in_the_wheel():
    from detectron2 import model_zoo

    assert model_zoo.get_config("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml").MODEL.MASK_ON is False


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


def test_schedulers_of_torch_are_saved_and_restored():
    from detectron2.engine.hooks import LRScheduler

    def hook():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        return LRScheduler(optimizer, torch.optim.lr_scheduler.StepLR(optimizer, step_size=5))

    first, second = hook(), hook()
    first.scheduler.optimizer.step()
    for _ in range(12):
        first.scheduler.step()
    second.load_state_dict(first.state_dict())
    assert second.scheduler.last_epoch == 12


def test_no_alias_that_some_numpy_lacks_is_left():
    import re
    from pathlib import Path

    import detectron2

    sources = Path(detectron2.__file__).parent.rglob("*.py")
    left = [path.name for path in sources if re.search(r"\bnp\.(bool|int|float|str)\)", path.read_text())]
    assert left == []
