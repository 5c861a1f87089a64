import json

import numpy as np
import pytest
import torch

from longtail_det2.layers import NormalizedConv2d, NormalizedLinear, normalize


@pytest.fixture(scope="module")
def golden(golden_dir):
    with np.load(golden_dir / "seesaw/normed.npz") as file:
        return dict(file.items())


@pytest.mark.parametrize("kind", ["lin", "conv"])
def test_values_and_gradients_of_the_released_code(golden, kind):
    for index in range(int(golden[f"n_{kind}"])):
        arrays = {key: golden[f"{kind}{index}_{key}"] for key in ("x", "w", "b", "go", "kw")}
        options = json.loads(str(arrays.pop("kw")))
        options["temperature"] = options.pop("tempearture")
        features, weight, bias, gradient = (torch.from_numpy(one).double() for one in arrays.values())
        outputs, inputs, *kernel = weight.shape
        if kind == "conv":
            options["kernel_size"] = options.pop("kernel", kernel[0])
        layer = (NormalizedLinear if kind == "lin" else NormalizedConv2d)(inputs, outputs, **options).double()
        with torch.no_grad():
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        found = layer(features.requires_grad_())
        found.backward(gradient)
        values = {"out": found, "gx": features.grad, "gw": layer.weight.grad, "gb": layer.bias.grad}
        for key, value in values.items():
            wanted = torch.from_numpy(golden[f"{kind}{index}_{key}_f64"])
            torch.testing.assert_close(value.detach(), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_gradients_are_finite_where_features_are_zero(power):
    features = torch.randn(3, 6, dtype=torch.float64)
    features[1] = 0
    features.requires_grad_()
    layer = NormalizedLinear(6, 4, power=power).double()
    layer(features).sum().backward()
    assert features.grad is not None and features.grad.isfinite().all()
    assert normalize(features, 1, power)[1].eq(0).all()
    rest = features.detach()[[0, 2]].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: layer(x), (rest,))


def test_autocast_and_start():
    layer = NormalizedLinear(64, 10)
    assert layer.bias.eq(0).all() and 0.005 < float(layer.weight.detach().std()) < 0.015
    features = 1e4 * torch.randn(3, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = layer(features)
    assert narrow.dtype == torch.bfloat16
    torch.testing.assert_close(narrow.float(), layer(features), rtol=0.05, atol=0.1)
    assert "temperature=20.0" in repr(layer) and "temperature=20.0" in repr(NormalizedConv2d(4, 2, 1))
