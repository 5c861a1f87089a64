import json

import numpy as np
import pytest
import torch

from longtail_det2.layers import NormalizedConv2d, NormalizedLinear, normalize


@pytest.fixture(scope="module")
def golden(golden_dir):
    with np.load(golden_dir / "seesaw/normed.npz") as file:
        return dict(file.items())


def cases(golden, kind):
    for index in range(int(golden[f"n_{kind}"])):
        name = f"{kind}{index}"
        options = json.loads(str(golden[f"{name}_kw"]))
        options["temperature"] = options.pop("tempearture")
        yield options, {key: golden[f"{name}_{key}"] for key in ("x", "w", "b", "go")}, name


def check(layer, arrays, golden, name):
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(arrays["w"]))
        layer.bias.copy_(torch.from_numpy(arrays["b"]))
    features = torch.from_numpy(arrays["x"]).double().requires_grad_()
    found = layer(features)
    found.backward(torch.from_numpy(arrays["go"]).double())
    for value, key in (
        (found, "out"),
        (features.grad, "gx"),
        (layer.weight.grad, "gw"),
        (layer.bias.grad, "gb"),
    ):
        wanted = torch.from_numpy(golden[f"{name}_{key}_f64"])
        torch.testing.assert_close(value.detach(), wanted, rtol=1e-10, atol=1e-10)


def test_linear_equals_the_released_code(golden):
    for options, arrays, name in cases(golden, "lin"):
        size = arrays["w"].shape
        check(NormalizedLinear(size[1], size[0], **options).double(), arrays, golden, name)


def test_convolution_equals_the_released_code(golden):
    for options, arrays, name in cases(golden, "conv"):
        outputs, inputs, kernel, _ = arrays["w"].shape
        options["kernel_size"] = options.pop("kernel", kernel)
        check(NormalizedConv2d(inputs, outputs, **options).double(), arrays, golden, name)


def test_cosines():
    layer = NormalizedLinear(8, 5, temperature=3.0)
    features = torch.randn(4, 8)
    cosines = torch.cosine_similarity(features[:, None], layer.weight[None], dim=2)
    torch.testing.assert_close(layer(features), 3.0 * cosines, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(layer(7.0 * features), layer(features), rtol=1e-4, atol=1e-4)


def test_a_pointwise_convolution_is_the_linear_layer():
    linear, conv = NormalizedLinear(8, 5), NormalizedConv2d(8, 5, 1)
    with torch.no_grad():
        conv.weight.copy_(linear.weight[:, :, None, None])
    image = torch.randn(2, 8, 3, 4)
    torch.testing.assert_close(conv(image), linear(image.movedim(1, -1)).movedim(-1, 1))


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
