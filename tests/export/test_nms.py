import pytest
import torch
from torchvision.ops import batched_nms as torchvision_batched_nms
from torchvision.ops.boxes import _batched_nms_coordinate_trick, _batched_nms_vanilla

from longtail_det2.export.nms import batched_nms, translations

ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


class Suppress(torch.nn.Module):
    def forward(self, boxes, scores, classes):
        return batched_nms(boxes, scores, classes, 0.5)


def candidates(count, num_classes, reach=1000.0, lowest=0.0):
    generator = torch.Generator().manual_seed(count)
    corner = torch.rand(count, 2, generator=generator) * reach
    boxes = torch.cat([corner, corner + 5 + torch.rand(count, 2, generator=generator) * 60], dim=1)
    scores = torch.rand(count, generator=generator) + lowest
    return boxes, scores, torch.randint(0, num_classes, (count,), generator=generator)


@pytest.fixture(scope="module")
def suppress(tmp_path_factory):
    """Indices from onnxruntime, and those from torchvision."""
    path = str(tmp_path_factory.mktemp("nms") / "nms.onnx")
    count = torch.export.Dim("n")
    shapes = ({0: count},) * 3
    recorded = torch.export.export(Suppress(), candidates(5, 3), dynamic_shapes=shapes)
    torch.onnx.export(recorded, (), path, custom_translation_table=translations(), dynamo=True, verbose=False)
    session = ort.InferenceSession(path)

    def run(*inputs):
        names = [one.name for one in session.get_inputs()]
        found = session.run(None, dict(zip(names, [one.numpy() for one in inputs], strict=True)))[0]
        return found.tolist(), torchvision_batched_nms(*inputs, 0.5).tolist()

    return run


@pytest.mark.parametrize("count", [0, 1, 50, 1000, 1001, 3000])
@pytest.mark.parametrize("num_classes", [1, 500])
def test_onnx_suppresses_as_torchvision(suppress, count, num_classes):
    found, expected = suppress(*candidates(count, num_classes, reach=150.0))
    assert len(expected) < count or count <= 50 or num_classes == 500
    assert found == expected


@pytest.mark.parametrize("count", [1000, 1001])
def test_onnx_shifts_few_boxes_only(suppress, count):
    """Class numbers so large that shifted boxes are rounded: the result tells which way was gone."""
    boxes, scores, classes = candidates(count, 2, reach=60.0)
    classes = classes + 20_000
    found, expected = suppress(boxes, scores, classes)
    assert found == expected
    other = _batched_nms_coordinate_trick if count > 1000 else _batched_nms_vanilla
    assert other(boxes, scores, classes, 0.5).tolist() != expected


def test_negative_scores_are_scores(suppress):
    """Proposals come with logits."""
    boxes, scores, classes = candidates(200, 4, reach=100.0, lowest=-0.5)
    found, expected = suppress(boxes, scores, classes)
    assert found == expected and (scores[found] < 0).any()
