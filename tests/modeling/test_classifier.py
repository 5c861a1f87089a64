"""The classifier of images: every loss trains it, padding does not change it, unknown labels have no loss."""

import pytest
import torch
from model_factories import assert_trains, make_loss, training_step
from torch.nn import functional as F

from longtail_det2.config_files import load_cfg
from longtail_det2.engine.build import build_model
from longtail_det2.modeling.backbone import TinyBackbone
from longtail_det2.modeling.losses import CLASSIFICATION_LOSS_REGISTRY
from longtail_det2.modeling.meta_arch import MultiLabelClassifier
from longtail_det2.structures.multi_label import MultiLabelTargets
from longtail_det2.utils.errors import ConfigError

LABELS = torch.tensor(
    [[1, 0, 1, 0, 0], [0, 1, -1, 0, 1], [0, 0, 0, 0, 0], [0, -1, 0, 0, 0]], dtype=torch.int8
)


def make_classifier(loss="SigmoidBCELoss", **options):
    torch.manual_seed(0)
    backbone = TinyBackbone(stem_channels=4, stage_channels=(4, 8, 8), out_channels=8, norm="")
    options = {"num_classes": 5, "in_features": ["p3"], "fc_dim": 8, "pixel_std": [60.0] * 3, **options}
    return MultiLabelClassifier(backbone=backbone, classification_loss=make_loss(loss), **options)


def make_batch(labels=LABELS, sizes=((40, 40), (32, 56), (64, 24), (33, 41))):
    generator = torch.Generator().manual_seed(1)
    images = [torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes]
    return [{"image": image, "gt_labels": of_image} for image, of_image in zip(images, labels, strict=True)]


def test_targets_of_images():
    targets = MultiLabelTargets.from_images(LABELS)
    assert targets.classes.tolist() == [0, 1, 5, -1]
    assert targets.labels.tolist() == [[*row, int(k == 2)] for k, row in enumerate(LABELS.tolist())]


@pytest.mark.parametrize("name", sorted(name for name, _ in CLASSIFICATION_LOSS_REGISTRY))
def test_every_loss_trains_it_and_scores_are_probabilities(name):
    model = make_classifier(name)
    losses, _ = training_step(model, make_batch())
    assert_trains(losses, model)
    with torch.no_grad():
        outputs = model.eval()(make_batch())
    assert [one["scores"].shape for one in outputs] == [(5,)] * 4
    assert all(one["scores"].min() >= 0 and one["scores"].max() <= 1 for one in outputs)


def test_the_loss_is_the_mean_over_images_and_classes():
    model = make_classifier(dropout=0.0)
    batch = make_batch(LABELS.clamp(min=0))
    losses, _ = training_step(model, batch)
    expected = F.binary_cross_entropy_with_logits(
        model.logits(batch), torch.stack([one["gt_labels"] for one in batch]).float()
    )
    assert losses["loss_cls"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_unknown_labels_have_no_loss():
    model = make_classifier(fc_dim=0, dropout=0.0)
    torch.nn.init.zeros_(model.classifier.weight)
    model.classifier.bias.data[3] = 50.0
    losses = [
        training_step(model, make_batch(torch.tensor([[0, 0, 0, value, 0]]).to(torch.int8), [(40, 40)]))[0]
        for value in (0, -1)
    ]
    assert losses[0]["loss_cls"] > 9 and losses[1]["loss_cls"] < 1


def test_images_of_a_batch_do_not_depend_on_their_padding():
    model = make_classifier().eval()
    batch = make_batch(sizes=((48, 48), (32, 64), (64, 32), (64, 64)))
    with torch.no_grad():
        together = [one["scores"] for one in model(batch)]
        alone = [model([one])[0]["scores"] for one in batch]
    torch.testing.assert_close(together[3], alone[3])
    # Biases make the padding's features other than 0, which convolutions see within an image: a little.
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, atol=0.02, rtol=0)


def test_priors_start_the_scores():
    model = make_classifier(prior_prob=0.2, fc_dim=0, dropout=0.0).eval()
    torch.nn.init.zeros_(model.classifier.weight)
    with torch.no_grad():
        assert model(make_batch())[0]["scores"].tolist() == pytest.approx([0.2] * 5)


def test_what_cannot_be():
    with pytest.raises(ConfigError, match="gt_labels"):
        training_step(make_classifier(), [{"image": one["image"]} for one in make_batch()])
    with pytest.raises(ConfigError, match="at least two images"):
        training_step(make_classifier(), make_batch()[:1])
    for options, message in (
        ({"in_features": ["res5"]}, r"res5.*\['p3'\]"),
        ({"in_features": []}, "IN_FEATURES"),
        ({"dropout": 1.0}, "DROPOUT"),
        ({"fc_dim": -1}, "FC_DIM"),
        ({"num_classes": 4}, "4"),
    ):
        with pytest.raises(ConfigError, match=message):
            make_classifier(**options)
    options = ["MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.NUM_CLASSES", "5", "INPUT.IMAGE_LEVEL"]
    cfg = load_cfg("shapes/classifier_tiny_sigmoid_shapes.yaml", [*options, "False"])
    with pytest.raises(ConfigError, match=r"INPUT\.IMAGE_LEVEL"):
        build_model(cfg)
    detector = load_cfg("shapes/retinanet_tiny_focal_shapes.yaml", [*options, "True"])
    with pytest.raises(ConfigError, match=r"INPUT\.IMAGE_LEVEL is True.*MultiLabelClassifier"):
        build_model(detector)
