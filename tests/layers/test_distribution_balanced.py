import re
from pathlib import Path

import numpy as np
import pytest
import torch

from longtail_det2.layers import (
    asymmetric_loss,
    distribution_balanced_loss,
    negative_tolerant_bias,
    rebalanced_weights,
)

GOLDEN = Path(__file__).parents[1] / "golden/db_loss"
SHAPES = {  # alpha, beta, mu, lambda, kappa
    "c20_voc": (0.1, 10.0, 0.3, 5.0, 0.05),
    "c80_coco": (0.1, 10.0, 0.2, 2.0, 0.05),
    "c20_alt_emptyrow": (0.5, 4.0, 0.35, 3.0, 0.2),
}
FOCAL = {"gamma": 2.0, "balance": 2.0}


class Golden:
    def __init__(self, name):
        self.arrays = {key: torch.from_numpy(value) for key, value in np.load(GOLDEN / f"{name}.npz").items()}
        *options, self.negative_scale, self.kappa = SHAPES[name]
        self.positive, self.counts = self.arrays["labels"] == 1, self.arrays["class_freq"].double()
        self.total = (self.arrays["class_freq"] + self.arrays["neg_class_freq"])[0].double()
        self.weights = rebalanced_weights(self.positive, self.counts, *options)

    def bias(self, divisor):
        return negative_tolerant_bias(self.counts, self.total, self.kappa, divisor)

    def options(self, name):
        """The arguments that make a recorded row of this loss."""
        scale, weights = self.negative_scale, self.weights
        whole = {"class_bias": self.bias(1.0 if name.startswith("paper") else scale), "negative_scale": scale}
        kind = re.sub("^(bce|focal)_|_(bce|focal)$", "", name)
        recorded = self.arrays.get(f"{name}.weight")  # of classes or rows: other than this loss's own
        options = {
            "plain": {},
            "r": {"weights": weights},
            "bias_only": {"class_bias": self.bias(1.0)},
            "paper_ntr": whole,
            "db_focal_norminst": {**whole, "weights": weights / weights.amax(dim=1, keepdim=True)},
            "db_focal_normbatch": {**whole, "weights": weights / weights.max()},
        }.get(kind, {**whole, "weights": weights} if recorded is None else {"weights": recorded})
        return {**options, **(FOCAL if "focal" in name else {})}


@pytest.mark.parametrize("shape", SHAPES)
def test_recorded_values_and_gradients(shape):
    golden = Golden(shape)
    exact = {"rtol": 0, "atol": 1e-10}
    torch.testing.assert_close(golden.weights, golden.arrays["db.rhat"], **exact)
    released, papers = golden.bias(golden.negative_scale), golden.bias(1.0)
    torch.testing.assert_close(-released, golden.arrays["db.init_bias"], **exact)
    torch.testing.assert_close(-papers, golden.arrays["paper.shift"], **exact)
    rows = [key.removesuffix(".loss_none") for key in golden.arrays if key.endswith(".loss_none")]
    assert len(rows) == {"c20_voc": 18, "c20_alt_emptyrow": 16, "c80_coco": 3}[shape]
    for row in rows:
        logits = golden.arrays["logits"].clone().requires_grad_()
        losses = distribution_balanced_loss(logits, golden.positive, **golden.options(row))
        torch.testing.assert_close(losses, golden.arrays[f"{row}.loss_none"], msg=row, **exact)
        (gradient,) = torch.autograd.grad(losses.mean(), logits)
        torch.testing.assert_close(gradient, golden.arrays[f"{row}.grad_mean"], msg=row, **exact)


def test_classes_in_no_image_and_in_all_and_rows_without_labels():
    counts, positive = torch.tensor([0, 1, 5, 10]), torch.eye(4) > 0
    positive[3] = False
    for beta in (0.0, 10.0, 1e30):
        weights = rebalanced_weights(positive, counts, 0.1, beta, 0.2)
        assert weights.isfinite().all() and weights[3].eq(1.1).all()
        assert rebalanced_weights(positive[:0], counts, 0.1, beta, 0.2).shape == (0, 4)
    assert torch.equal(weights[0], weights[1])  # no image counts as one
    bias = negative_tolerant_bias(counts, torch.tensor(10), 1.0)
    torch.testing.assert_close(bias, torch.tensor([19.0, 9.0, 1.0, 1 / 19]).log())
    ends = negative_tolerant_bias(torch.tensor([0, 1]), torch.tensor(1))
    assert ends.eq(0).all() and negative_tolerant_bias(ends, torch.tensor(0)).isfinite().all()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.5])
def test_saturated_logits_have_finite_losses_and_gradients(gamma):
    logits = torch.tensor([-1e30, -120.0, -60.0, -2.944439, 0.0, 60.0, 120.0, 1e30]).repeat(2, 1)
    positive = torch.tensor([[True], [False]]).expand(2, 8)
    for dtype in (torch.float32, torch.float64):
        values = logits.to(dtype).requires_grad_()
        losses = asymmetric_loss(values, positive, gamma, gamma, 0.05)
        losses = losses + distribution_balanced_loss(values, positive, 0.5, 0.1, 3.0, gamma)
        (gradient,) = torch.autograd.grad(losses.sum(), values)
        assert losses.isfinite().all() and losses.ge(0).all() and gradient.isfinite().all()


def test_asymmetric_loss_is_its_formula():
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(40, 5, generator=generator, dtype=torch.float64)).requires_grad_()
    positive = torch.rand(40, 5, generator=generator) < 0.3
    p = logits.sigmoid()
    shifted = (p - 0.2).clamp(min=0)
    wanted = torch.where(positive, -((1 - p) ** 1.5) * p.log(), -(shifted**3) * (1 - shifted).log())
    found = asymmetric_loss(logits, positive, 1.5, 3.0, 0.2)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)
    one, other = (torch.autograd.grad(values.sum(), logits)[0] for values in (found, wanted))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    assert found[~positive & (p < 0.2)].eq(0).all()
