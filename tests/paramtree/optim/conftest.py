"""What the tests of optimizers share: a small problem, and central differences."""

import pytest
import torch
from tensordict import TensorDict

from paramtree import tree

torch.set_num_threads(1)


@pytest.fixture
def params():
    """Three leaves in two levels, one of them 0-d; the names not in sorted order."""
    source = torch.Generator().manual_seed(0)
    weight, bias, scale = (
        torch.randn(shape, generator=source, dtype=torch.float64) for shape in [(3, 2), (3,), ()]
    )
    linear = TensorDict({"weight": weight, "bias": bias})
    return tree.lock(TensorDict({"scale": scale, "policy": TensorDict({"linear_0": linear})}))


@pytest.fixture
def loss():
    """Smooth, not quadratic, and with gradients of every size."""
    x = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(4, 2)

    def loss(params):
        linear = params["policy", "linear_0"]
        hidden = torch.tanh(x @ linear["weight"].T + linear["bias"])
        return (hidden * params["scale"] - 0.3).square().mean() + 0.1 * params["scale"].exp()

    return loss


@pytest.fixture
def central():
    """Gradient of ``f`` at a tensor by central differences, one entry at a time."""

    def central(f, x, step=1e-6):
        x = x.detach()
        out = torch.zeros_like(x).reshape(-1)
        for i in range(x.numel()):
            shift = torch.zeros_like(out)
            shift[i] = step
            shift = shift.reshape(x.shape)
            out[i] = (f(x + shift) - f(x - shift)).detach() / (2 * step)
        return out.reshape(x.shape)

    return central
