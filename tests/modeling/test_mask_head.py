"""The mask head: its multi-label loss, and whole detectors with masks."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_loss
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from model_factories import detect, training_step, use_detector
from torch.nn import functional as F

from longtail_det2.engine.build import build_model
from longtail_det2.modeling.events import LOG_PERIOD
from longtail_det2.modeling.roi_heads import MultiLabelMaskHead, multi_label_mask_loss

K, SIDE = 5, 8


def make_proposals(labels, *, size=(40, 60), has_mask=None, shift=0.0):
    """Proposals whose masks are the left halves of their boxes; labels: the specific class first."""
    image = Instances(size)
    count = len(labels)
    boxes = torch.tensor([[4.0 * i, 2, 4.0 * i + 16, 26] for i in range(count)]).reshape(-1, 4)
    image.proposal_boxes = Boxes(boxes + shift)
    image.gt_boxes = Boxes(boxes)
    image.gt_masks = PolygonMasks(
        [[torch.tensor([x0, y0, x0 + 8, y0, x0 + 8, y1, x0, y1]).numpy()] for x0, y0, _, y1 in boxes]
    )
    image.gt_classes = torch.tensor([one[0] for one in labels], dtype=torch.int64)
    truth = torch.zeros(count, K, dtype=torch.int8)
    for row, one in enumerate(labels):
        truth[row, one] = 1
    image.gt_labels = truth
    if has_mask is not None:
        image.gt_has_mask = torch.tensor(has_mask)
    return image


def random_logits(rows, channels=K, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, channels, SIDE, SIDE, generator=generator, requires_grad=True)


@pytest.mark.parametrize("channels", [K, 1])
def test_with_one_label_it_is_the_published_loss(channels):
    images = [make_proposals([[0], [3]]), make_proposals([]), make_proposals([[4]], shift=3.0)]
    logits = random_logits(3, channels)
    ours = multi_label_mask_loss(logits, images)
    with EventStorage():
        theirs = mask_rcnn_loss(logits, images)
    assert torch.allclose(ours, theirs, rtol=1e-6)
    ours_grad, theirs_grad = (
        torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (ours, theirs)
    )
    assert torch.allclose(ours_grad, theirs_grad, atol=1e-8)
    for image in images:
        image.remove("gt_labels")  # then the class is the label
    assert torch.equal(multi_label_mask_loss(logits, images), ours)


def test_each_label_weighs_a_share_of_its_region():
    image = make_proposals([[0, 2, 4], [3]])
    image.gt_labels[1, 1] = -1  # ignored
    logits = random_logits(2)
    truth = image.gt_masks.crop_and_resize(image.proposal_boxes.tensor, SIDE).float()

    def cross_entropy(row, channel):
        return F.binary_cross_entropy_with_logits(logits[row, channel], truth[row])

    expected = (sum(cross_entropy(0, c) for c in (0, 2, 4)) / 3 + cross_entropy(1, 3)) / 2
    loss = multi_label_mask_loss(logits, [image])
    assert torch.allclose(loss, expected)
    grad = torch.autograd.grad(loss, logits)[0]
    trained = grad.abs().sum(dim=(2, 3)) > 0
    assert trained.tolist() == [[True, False, True, False, True], [False, False, False, True, False]]


def test_regions_without_a_mask_cost_nothing():
    logits = random_logits(3)
    mixed = multi_label_mask_loss(logits, [make_proposals([[0], [1, 2], [3]], has_mask=[True, False, True])])
    alone = make_proposals([[0], [1, 2], [3]])[torch.tensor([True, False, True])]
    assert torch.allclose(mixed, multi_label_mask_loss(logits[[0, 2]], [alone]))
    nothing = multi_label_mask_loss(logits, [make_proposals([[0], [1], [3]], has_mask=[False] * 3)])
    assert nothing == 0 and torch.autograd.grad(nothing, logits)[0].abs().sum() == 0
    for images in ([], [make_proposals([])]):
        loss = multi_label_mask_loss(random_logits(0), images)
        assert loss == 0 and loss.requires_grad


def test_bitmaps_do_as_well():
    image = make_proposals([[0, 1], [3]])
    polygons = multi_label_mask_loss(random_logits(2), [image])
    image.gt_masks = BitMasks.from_polygon_masks(image.gt_masks, *image.image_size)
    assert torch.allclose(multi_label_mask_loss(random_logits(2), [image]), polygons, rtol=0.05)


def test_huge_logits_and_half_precision():
    images, logits = [make_proposals([[0, 1], [2]])], random_logits(2)
    for scale in (1e4, -1e4):
        assert torch.isfinite(multi_label_mask_loss(scale * logits, images))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = multi_label_mask_loss(logits.bfloat16(), images)
    assert torch.allclose(low.float(), multi_label_mask_loss(logits, images), rtol=0.02)


def test_accuracy_is_logged_now_and_then():
    with EventStorage(LOG_PERIOD - 1) as storage:
        multi_label_mask_loss(torch.full((2, K, SIDE, SIDE), 9.0), [make_proposals([[0, 1], [2]])])
        assert storage.latest()["mask_rcnn/accuracy"][0] == pytest.approx(0.5)  # half of each box is mask


def test_head_gives_each_detection_the_mask_of_its_class():
    head = MultiLabelMaskHead(ShapeSpec(channels=3, height=4, width=4), num_classes=K, conv_dims=[6])
    head.eval()
    features = torch.randn(2, 3, 4, 4)
    found = Instances((40, 60))
    found.pred_boxes = Boxes(torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10]]))
    found.pred_classes = torch.tensor([1, 4])
    with torch.no_grad():
        head(features, [found])
        logits = head.layers(features)
    assert torch.allclose(found.pred_masks[:, 0], logits[[0, 1], [1, 4]].sigmoid())


@pytest.mark.parametrize("heads", ["MultiLabelROIHeads", "MultiLabelCascadeROIHeads"])
@pytest.mark.parametrize("agnostic", [False, True])
def test_detectors_with_masks(tiny_cfg, batch, heads, agnostic):
    cfg = use_detector(tiny_cfg, heads)
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV, cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 1, 8
    cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK = agnostic
    torch.manual_seed(0)
    model = build_model(cfg)
    assert isinstance(model.roi_heads.mask_head, MultiLabelMaskHead)
    for one in batch:
        objects = one["instances"]
        corners = objects.gt_boxes.tensor[:, [0, 1, 2, 1, 2, 3]].numpy()
        objects.gt_masks = PolygonMasks([[triangle] for triangle in corners])
        objects.gt_has_mask = torch.arange(len(objects)) % 2 == 0
    losses, _ = training_step(model, batch)
    assert losses["loss_mask"] > 0
    sum(losses.values()).backward()
    assert model.roi_heads.mask_head.predictor.weight.grad.abs().sum() > 0
    found = detect(model, [{key: one[key] for key in ("image", "height", "width")} for one in batch])
    assert found.pred_masks.dtype == torch.bool and len(found.pred_masks) == len(found)


def test_no_more_regions_than_asked_for():
    images, shape = [make_proposals([[0], [3], [2]]), make_proposals([]), make_proposals([[4]])], ShapeSpec(4)
    head = MultiLabelMaskHead(shape, num_classes=K, conv_dims=[4, 4], batch_size_per_image=1)
    seen = []
    head.predictor.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    features = torch.randn(4, 4, 4, 4)
    with EventStorage():
        assert head(features, images)["loss_mask"].isfinite()
        head.batch_size_per_image = 2
        torch.testing.assert_close(
            head(features, images)["loss_mask"], multi_label_mask_loss(head.layers(features), images)
        )
    assert seen == [3, 4, 4]
