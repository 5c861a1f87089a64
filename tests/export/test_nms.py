import pytest
import torch
from torchvision.ops import batched_nms
from torchvision.ops.boxes import _batched_nms_coordinate_trick, _batched_nms_vanilla

from longtail_det2.export.nms import onnx_nms

ort = pytest.importorskip("onnxruntime")


class Suppress(torch.nn.Module):
    def forward(self, boxes, scores, classes):
        return onnx_nms(boxes, scores, classes, 0.5)


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("nms") / "nms.onnx")
    torch.onnx.export(
        Suppress(),
        candidates(5, 3),
        path,
        input_names=["boxes", "scores", "classes"],
        dynamic_axes={name: {0: "n"} for name in ("boxes", "scores", "classes")},
        opset_version=16,
        dynamo=False,
    )
    return ort.InferenceSession(path)


def candidates(count, num_classes, reach=1000.0, negative=False):
    generator = torch.Generator().manual_seed(count)
    corner = torch.rand(count, 2, generator=generator) * reach
    boxes = torch.cat([corner, corner + 5 + torch.rand(count, 2, generator=generator) * 60], dim=1)
    scores = torch.rand(count, generator=generator) - (0.5 if negative else 0.0)
    return boxes, scores, torch.randint(0, num_classes, (count,), generator=generator)


def run(session, boxes, scores, classes):
    inputs = {"boxes": boxes.numpy(), "scores": scores.numpy(), "classes": classes.numpy()}
    return session.run(None, inputs)[0]


@pytest.mark.parametrize("count", [0, 1, 2, 50, 1000, 1001, 3000])
@pytest.mark.parametrize("num_classes", [1, 20, 500])
def test_onnx_suppresses_as_torchvision(session, count, num_classes):
    boxes, scores, classes = candidates(count, num_classes, reach=150.0)
    expected = batched_nms(boxes, scores, classes, 0.5)
    assert len(expected) < count or count <= 50 or num_classes == 500
    assert run(session, boxes, scores, classes).tolist() == expected.tolist()


@pytest.mark.parametrize("count", [1000, 1001, 3000])
def test_onnx_shifts_few_boxes_only(session, count):
    """Class numbers so large that shifted boxes are rounded: the result tells which way was gone."""
    boxes, scores, classes = candidates(count, 2, reach=60.0)
    classes = classes + 20_000
    expected = batched_nms(boxes, scores, classes, 0.5)
    assert run(session, boxes, scores, classes).tolist() == expected.tolist()
    other = _batched_nms_coordinate_trick if count > 1000 else _batched_nms_vanilla
    assert other(boxes, scores, classes, 0.5).tolist() != expected.tolist()


def test_negative_scores_are_scores(session):
    """Proposals come with logits."""
    boxes, scores, classes = candidates(200, 4, reach=100.0, negative=True)
    found = run(session, boxes, scores, classes)
    assert found.tolist() == batched_nms(boxes, scores, classes, 0.5).tolist()
    assert (scores[found] < 0).any()
