"""Distribution-Balanced, asymmetric, multi-focal modifier loss: formulas, limits, hierarchies, statistics."""

from pathlib import Path

import numpy as np
import pytest
import torch
from model_factories import make_loss, multi_label_targets, random_logits
from torch.nn import functional as F

from longtail_det2.config import get_cfg
from longtail_det2.data.hierarchy import LabelHierarchy
from longtail_det2.data.statistics import ClassStatistics, write_statistics
from longtail_det2.layers import distribution_balanced_loss, negative_tolerant_bias, rebalanced_weights
from longtail_det2.modeling.losses import LossNormalizer, build_classification_loss, reduce_losses
from longtail_det2.structures.multi_label import MultiLabelTargets
from longtail_det2.utils.errors import ConfigError

COUNTS = np.array([6, 2, 3, 1])
UNSHIFTED = {"kappa": 0.0, "negative_scale": 1.0}
PLAIN = {"weighting": "none", "gamma": 0.0, **UNSHIFTED}
SYMMETRIC = {"gamma_positive": 0.0, "gamma_negative": 0.0, "margin": 0.0}
GOLDEN = Path(__file__).parents[1] / "golden/db_loss/c20_voc.npz"
RECORDED = {
    "db_focal": {},
    "db_bce": {"gamma": 0.0},
    "r_focal": UNSHIFTED,
    "paper_db_focal": {"bias_form": "paper"},
    "paper_ntr_focal": {"bias_form": "paper", "weighting": "none"},
    "rw_inv_bce": {**PLAIN, "weighting": "inverse"},
    "rw_sqrt_bce": {**PLAIN, "weighting": "sqrt_inverse"},
    "cb_focal_byclass": {**UNSHIFTED, "weighting": "class_balanced", "cb_beta": 0.99},
}

PARTLESS = [("DistributionBalancedLoss", PLAIN), ("AsymmetricLoss", SYMMETRIC)]


@pytest.mark.parametrize(("name", "options"), PARTLESS)
def test_without_its_parts_a_loss_is_binary_cross_entropy(name, options):
    loss, plain = make_loss(name, **options), make_loss("SigmoidBCELoss")
    logits, targets = random_logits(loss), multi_label_targets()
    torch.testing.assert_close(loss.unreduced(logits, targets), plain.unreduced(logits, targets))
    torch.testing.assert_close(loss.background(logits), plain.background(logits))


@pytest.mark.parametrize("row", RECORDED)
def test_recorded_rows(row):
    """Sums over the classes; divided by the elements, it is the published mean."""
    arrays = {key: torch.from_numpy(value) for key, value in np.load(GOLDEN).items()}
    counts = arrays["class_freq"]
    total = counts[0] + arrays["neg_class_freq"][0]
    options = {"mu": 0.3, "negative_scale": 5.0, **RECORDED[row]}
    loss = make_loss("DistributionBalancedLoss", 20, image_counts=counts, num_images=total, **options)
    targets = MultiLabelTargets(torch.zeros(24, dtype=torch.int64), F.pad(arrays["labels"], (0, 1)))
    found = loss.unreduced(arrays["logits"], targets)
    wanted, exact = arrays[f"{row}.loss_none"], {"rtol": 0, "atol": 1e-10}
    torch.testing.assert_close(found["loss_cls"], wanted.sum(dim=1), **exact)
    divisor = LossNormalizer("elements")(24, targets.foreground.sum(), 20)[0]
    torch.testing.assert_close(reduce_losses(found, divisor)["loss_cls"], wanted.mean(), **exact)


def test_ignored_labels_do_not_change_the_weights():
    loss = make_loss("DistributionBalancedLoss")
    logits, targets = random_logits(loss), multi_label_targets()
    other = targets.labels.clone()
    other[other == -1] = 0
    unread = loss.unreduced(logits, MultiLabelTargets(targets.classes, other))["loss_cls"]
    ignored = (targets.labels[:, :5] == -1) & targets.known[:, None]
    (gradient,) = torch.autograd.grad(loss.unreduced(logits, targets)["loss_cls"].sum(), logits)
    (wanted,) = torch.autograd.grad(unread[targets.known].sum(), logits)
    assert ignored.any()
    torch.testing.assert_close(gradient, wanted.masked_fill(ignored, 0))


def asymmetric_entries(p, y, gamma_positive, gamma_negative, margin):
    """The published formula: minus the logarithm of the score of the truth, and the power beside it."""
    right = np.where(y, p, np.minimum(1 - p + margin, 1))
    return -np.log(right), (1 - right) ** np.where(y, gamma_positive, gamma_negative)


FORMULA = [  # loss, arguments, exponents, margin, power
    ("AsymmetricLoss", {}, 0, 4, 0.05, None),
    ("AsymmetricLoss", {"gamma_positive": 1.0, "margin": 0.2, "detach_focus": True}, 1, 4, 0.2, None),
    ("AsymmetricLoss", {"gamma_negative": 2.0, "margin": 0.0, "detach_focus": True}, 0, 2, 0, None),
    ("MultiFocalModifierLoss", {}, 0, 4, 0.05, 1 / 6),
    (
        "MultiFocalModifierLoss",
        {"gamma_negative": 3.0, "gamma_positive": 2.0, "power": 1 / 3, "margin": 0.0, "detach_focus": False},
        *(2, 3, 0, 1 / 3),
    ),
]


@pytest.mark.parametrize(("name", "options", "positive", "negative", "margin", "power"), FORMULA)
def test_formula_and_gradient(name, options, positive, negative, margin, power):
    """In NumPy; the gradient by central differences, with constant powers where they are detached."""
    loss, targets = make_loss(name, **options), multi_label_targets()
    logits = random_logits(loss, dtype=torch.float64, scale=3.0)
    z, labels = logits.detach().numpy(), targets.labels[:, :5].numpy()
    counts = np.array([1, 3, 40, 900, 1000])  # the first class has no image
    factor = np.ones(5) if power is None else (1 + np.log(1000 / counts)) ** power
    negative = negative if power is None else negative + factor

    def entries(z):
        return asymmetric_entries(1 / (1 + np.exp(-z)), labels == 1, positive, negative, margin)

    known = factor * (labels != -1)
    found = loss.unreduced(logits, targets)["loss_cls"]
    assert np.allclose(found.detach(), (known * np.prod(entries(z), axis=0)).sum(axis=1), rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    step, constant = 1e-6, entries(z)[1]
    up, down = (
        minus_log * (constant if loss.detach_focus else focus)
        for minus_log, focus in (entries(z + step), entries(z - step))
    )
    assert np.allclose(gradient, known * (up - down) / (2 * step), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("options", [{"power": 0.0}, {"image_counts": torch.full((5,), 7)}])
def test_multi_focal_modifier_of_equal_classes_is_asymmetric_loss(options):
    loss = make_loss("MultiFocalModifierLoss", gamma_negative=3.0, **options)
    plain = make_loss("AsymmetricLoss", detach_focus=True)
    logits, targets = random_logits(loss), multi_label_targets()
    for found, wanted in (
        (loss.unreduced(logits, targets), plain.unreduced(logits, targets)),
        (loss.background(logits), plain.background(logits)),
    ):
        torch.testing.assert_close(found, wanted)
        one, other = (torch.autograd.grad(each["loss_cls"].sum(), logits)[0] for each in (found, wanted))
        torch.testing.assert_close(one, other)


def test_multi_focal_modifier_without_counts():
    with pytest.raises(ConfigError, match="has no image_counts: name a file of class statistics"):
        make_loss("MultiFocalModifierLoss", image_counts=None).background(random_logits(5))
    loss = make_loss("MultiFocalModifierLoss", image_counts=torch.zeros(5))
    assert loss.background(random_logits(5))["loss_cls"].isfinite().all()


@pytest.mark.parametrize("hierarchy", [True, False])
def test_statistics_of_the_config_and_ancestors(tmp_path, hierarchy):
    """Classes 1 and 2 are kinds of class 0; a region may be drawn by its most specific label alone."""
    ids = ("animal", "cat", "dog", "ball")
    tree = LabelHierarchy(ids, [(), (0,), (0,), ()]) if hierarchy else None
    write_statistics(tmp_path / "statistics.json", ClassStatistics(ids, 9, COUNTS, COUNTS, hierarchy=tree))
    cfg = get_cfg()
    cfg.MODEL.ROI_BOX_HEAD.CLASSIFICATION_LOSS = "DistributionBalancedLoss"
    cfg.DATASETS.STATISTICS = str(tmp_path / "statistics.json")
    labels = torch.tensor([[1, 1, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1]])
    targets, logits = MultiLabelTargets(torch.tensor([1, 0, 3, 4]), labels), random_logits(4, 4)
    found = []
    for count_ancestors in (True, False):
        cfg.MODEL.CLASSIFICATION_LOSS.DISTRIBUTION_BALANCED.COUNT_ANCESTORS = count_ancestors
        loss = build_classification_loss(cfg, 4)
        assert loss.image_counts.tolist() == COUNTS.tolist() and loss.num_images == 9
        found.append(loss.unreduced(logits, targets)["loss_cls"])
    assert (found[0] != found[1]).tolist() == [hierarchy, False, False, False]
    if hierarchy:
        cat, positive = torch.tensor([[False, True, False, False]]), labels[:1, :4] == 1
        weights = rebalanced_weights(cat, loss.image_counts)
        bias = negative_tolerant_bias(loss.image_counts, loss.num_images, 0.05, 2.0)
        wanted = distribution_balanced_loss(logits[:1], positive, weights, bias, 2.0, 2.0, 2.0).sum()
        torch.testing.assert_close(found[1][0], wanted)
