"""Priors from anchor counts: reference values, several labels, and files that do not fit the config."""

import numpy as np
import pytest
import torch
from model_factories import use_detector

from longtail_det2.data.statistics import AnchorStatistics, ClassStatistics, write_statistics
from longtail_det2.modeling.anchor_priors import anchor_prior, anchor_settings, measured_prior
from longtail_det2.utils.errors import ConfigError


def counts(positives, foreground=None, number=1000):
    return AnchorStatistics(positives, sum(positives) if foreground is None else foreground, number, {})


def logit(prior):
    return torch.logit(torch.as_tensor(prior, dtype=torch.float64))


def test_priors_and_biases_of_reference(golden_dir):
    golden = np.load(golden_dir / "sampling_free" / "set_a.npz")
    for foreground, number, classes, prior, bias, *_ in golden["bias_Nf_N_C_pi_b_mincesum_perpos"]:
        positives = np.zeros(int(classes), int)
        positives[0] = foreground
        anchors = AnchorStatistics(positives, int(foreground), int(number), {})
        found = anchor_prior(anchors, "shared")
        assert found == pytest.approx(prior, rel=1e-9) and logit(found).item() == pytest.approx(
            bias, rel=1e-9
        )
        assert anchor_prior(anchors, "objectness") == pytest.approx(prior * classes, rel=1e-9)
    np.testing.assert_allclose(logit(golden["pi_list"]), golden["b_list"], rtol=1e-9, atol=1e-12)


def test_priors_have_the_least_cross_entropy_with_several_labels():
    """Anchors 0 to 2 have labels {0, 1}, {0} and {1, 2}; 997 are background."""
    labels = torch.zeros(1000, 4, dtype=torch.float64)
    labels[[0, 0, 1, 2, 2], [0, 1, 0, 1, 2]] = 1
    anchors = counts([2, 2, 1, 0], foreground=3)
    for kind, truth in (("shared", labels), ("per_class", labels), ("objectness", labels.amax(1)[:, None])):
        bias = logit(anchor_prior(anchors, kind)).expand(truth.shape[1]).clone().requires_grad_()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            bias.expand_as(truth), truth, reduction="sum"
        )
        (gradient,) = torch.autograd.grad(loss, bias)
        if kind == "shared":
            assert abs(gradient.sum()) < 1e-9
        else:  # the class without anchors counts as if it had one
            assert gradient[:3].abs().max() < 1e-9 and gradient.sum() == pytest.approx(len(bias) // 4)


def test_a_class_never_seen_has_a_finite_bias_and_no_positive_anchor_is_an_error():
    prior = anchor_prior(counts([5, 0]), "per_class")
    assert prior.dtype == torch.float64 and prior.tolist() == [5e-3, 1e-3]
    assert anchor_prior(counts([5]), "per_class").tolist() == [anchor_prior(counts([5]), "shared")]
    for anchors in (counts([0, 0]), counts([3], number=3)):
        with pytest.raises(ConfigError, match="so that there is no prior"):
            anchor_prior(anchors, "per_class")
    with pytest.raises(ConfigError, match="'per_class', not 'mean'"):
        anchor_prior(counts([1]), "mean")


@pytest.mark.parametrize(
    ("detector", "key", "value"),
    [
        ("MultiLabelRetinaNet", "MODEL.RETINANET.IOU_THRESHOLDS", [0.4, 0.6]),
        ("MultiLabelRetinaNet", "MODEL.ANCHOR_GENERATOR.SIZES", [[16]]),
        ("MultiLabelFCOS", "MODEL.FCOS.CENTER_SAMPLING_RADIUS", 2.0),
        ("MultiLabelROIHeads", "MODEL.RPN.BOUNDARY_THRESH", 0),
        ("MultiLabelROIHeads", "DATASETS.TRAIN", ("other",)),
    ],
)
def test_files_that_do_not_fit_are_refused(tiny_cfg, tmp_path, detector, key, value):
    cfg = use_detector(tiny_cfg, detector)
    assert measured_prior(cfg, "shared") is None
    cfg.DATASETS.STATISTICS = str(tmp_path / "statistics.json")
    anchors = AnchorStatistics([3, 2, 1, 0], 5, 100, anchor_settings(cfg))
    for file, message in (
        (ClassStatistics("abcd", 1, *np.ones((2, 4), int)), "statistics.json has no anchor counts"),
        (ClassStatistics("abc", 1, *np.ones((2, 3), int)), "statistics.json has 3 classes, but .* is 4"),
    ):
        write_statistics(cfg.DATASETS.STATISTICS, file)
        with pytest.raises(ConfigError, match=f"{message}.*anchor-statistics"):
            measured_prior(cfg, "shared")
    write_statistics(
        cfg.DATASETS.STATISTICS, ClassStatistics("abcd", 1, *np.ones((2, 4), int), anchors=anchors)
    )
    assert measured_prior(cfg, "shared") == 6 / 400 and measured_prior(cfg, "objectness") == 5 / 100
    assert measured_prior(cfg, "per_class").tolist() == [0.03, 0.02, 0.01, 0.01]
    cfg.merge_from_list(["MODEL.RETINANET.PRIOR_PROB", 0.5, "MODEL.RPN.BATCH_SIZE_PER_IMAGE", 8])  # no matter
    assert measured_prior(cfg, "objectness") == 5 / 100
    cfg.merge_from_list([key, value])
    with pytest.raises(
        ConfigError, match=f"statistics.json were counted with {key} .*anchor-statistics"
    ) as caught:
        measured_prior(cfg, "shared")
    assert repr(list(value) if isinstance(value, tuple) else value) in str(caught.value)
