"""Fresh parameters: drawn from a key as torch's constructors would, by name, mapped, or refused."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torchrl.modules import NoisyLinear

from paramtree import from_module, nn_module, rng, tree, vmap
from tests.paramtree.nn_module.modules import D, ResNet18, Tied, assert_close, by_name, draw

MODULES = {
    "layers": lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)),
    "resnet": ResNet18,
    "transformer": lambda: nn.Transformer(8, 2, 1, 1, 16, batch_first=True),
    "attention": lambda: nn.MultiheadAttention(8, 2, kdim=3, vdim=5),
    "lstm": lambda: nn.LSTM(3, 4, 2, bidirectional=True),
    "cell": lambda: nn.GRUCell(3, 4),
    "convolutions": lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.ConvTranspose1d(2, 3, 3)),
    "norms": lambda: nn.Sequential(nn.LayerNorm(3), nn.GroupNorm(1, 3), nn.Embedding(4, 3)),
    "bilinear": lambda: nn.Bilinear(2, 3, 4),
    "tied": Tied,
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(3, 4)),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(3, 4)),
    "noisy": lambda: NoisyLinear(3, 4),  # written through .data
}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_names_shapes_and_keys(name):
    module = MODULES[name]().double()
    state, kept = (
        torch.random.get_rng_state(),
        {k: v.clone() for k, v in module.state_dict().items()},
    )
    model, params, buffers = from_module(module)
    first, states = model.init(rng.key(0))
    again, other = model.init(rng.key(0))[0], model.init(rng.key(1))[0]
    assert tree.paths(first) == tree.paths(params) and tree.paths(states) == tree.paths(buffers)
    pairs = zip(tree.leaves(first), tree.leaves(params), strict=True)
    assert all(x.shape == y.shape and x.dtype == y.dtype for x, y in pairs)
    assert (
        first.is_locked
        and states.is_locked
        and not any(x.requires_grad for x in tree.leaves(first))
    )
    assert_close(by_name(first), by_name(again), rtol=0, atol=0)
    pairs = zip(tree.leaves(first), tree.leaves(other), strict=True)
    assert any(not torch.equal(x, y) for x, y in pairs)
    assert all(bool(x.isfinite().all()) for x in tree.leaves(first))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert_close(dict(module.state_dict()), kept, rtol=0, atol=0)

    keys = rng.split(rng.key(2), 3)
    many, more = vmap(model.init)(keys)
    for i in range(3):
        one, held = model.init(keys[i])
        ours, wanted = by_name(many[i]), by_name(one)
        assert_close(ours, wanted, rtol=1e-12, atol=1e-12)
        if tree.leaves(held):
            assert_close(by_name(more[i]), by_name(held), rtol=1e-12, atol=1e-12)


def test_numbers_are_those_of_torchs_constructors():
    """The same ranges and moments, layer by layer, and the same constants."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = nn.Linear(64, 200), nn.LayerNorm(200), nn.LSTM(200, 100), nn.Embedding(90, 70)
        module, transformer = (
            nn.Sequential(*parts),
            nn.Transformer(32, 2, 1, 1, 64, batch_first=True),
        )
    params = from_module(module)[0].init(rng.key(3))[0]
    fresh = {k: v.detach() for k, v in module.named_parameters()}
    for name, x in by_name(params).items():
        error = float(fresh[name].std()) * (2 / x.numel()) ** 0.5
        assert abs(float(x.mean() - fresh[name].mean())) <= 4 * error
        torch.testing.assert_close(x.std(), fresh[name].std(), rtol=0.15, atol=1e-7)
        if name != "3.weight":  # uniform, whose ends are the same
            torch.testing.assert_close(x.max(), fresh[name].max(), rtol=0.05, atol=1e-7)
    ours = by_name(from_module(transformer)[0].init(rng.key(3))[0])
    for (
        name,
        x,
    ) in transformer.named_parameters():  # its own xavier_uniform_ comes after its layers'
        torch.testing.assert_close(ours[name].abs().max(), x.abs().max(), rtol=0.1, atol=1e-7)


def test_a_new_part_leaves_the_others_alone_and_layers_differ():
    first = from_module(nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)}))[0]
    second = from_module(nn.ModuleDict({"c": nn.Linear(3, 3), "a": nn.Linear(3, 3)}))[0]
    one, two = first.init(rng.key(0))[0], second.init(rng.key(0))[0]
    assert one["a", "weight"].equal(two["a", "weight"])
    assert not one["a", "weight"].equal(one["b", "weight"])


def test_what_is_tied_is_as_the_leafs_own_module_draws_it():
    model, _, _ = from_module(Tied())
    weight = torch.stack([model.init(rng.key(i))[0]["encoder", "weight"] for i in range(200)])
    assert abs(float(weight.std()) - 1) < 0.06  # an embedding's; a linear layer's is 0.33
    assert nn_module.tied(Tied())["encoder.weight"] == ["decoder.weight"]


def test_parametrized_weights_begin_as_the_plain_ones_would():
    plain = from_module(nn.Sequential(nn.Linear(3, 4)))[0].init(rng.key(0))[0]
    for wrap in (parametrizations.weight_norm, parametrizations.spectral_norm):
        module = nn.Sequential(wrap(nn.Linear(3, 4))).eval()
        model, _, _ = from_module(module)
        params, buffers = model.init(rng.key(0))
        bias = params["0", "bias"]
        weight = model.apply(params, buffers, torch.eye(3))[0].mT - bias[:, None]
        scale = 1.0
        if wrap is parametrizations.spectral_norm:
            scale = float(torch.linalg.matrix_norm(plain["0", "weight"], 2))
        assert_close(weight * scale, plain["0", "weight"], rtol=1e-3, atol=1e-3)
        assert_close(bias, plain["0", "bias"])


def test_buffers_are_reset_and_others_kept():
    module = nn.Sequential(nn.BatchNorm1d(3), nn.Module())
    module[1].register_buffer("mask", torch.tensor([1.0, 0.0]))
    module[0].running_mean.add_(1)
    _, buffers = from_module(module)[0].init(rng.key(0))
    assert_close(buffers["0", "running_mean"], torch.zeros(3))
    assert_close(buffers["1", "mask"], torch.tensor([1.0, 0.0]))


def test_a_key_in_the_buffers_is_of_its_own():
    model, _, buffers = from_module(nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)), key=rng.key(9))
    assert buffers["key"].equal(rng.key(9))
    states = [model.init(rng.key(i))[1]["key"] for i in range(2)]
    assert states[0].shape == (2,) and not states[0].equal(states[1])
    params, held = vmap(model.init)(rng.split(rng.key(1), 4))
    out, _ = vmap(model.apply, (0, 0, None))(params, held, torch.ones(2, 3))
    assert out.shape == (4, 2, 3)
    with pytest.raises(TypeError, match="from_module: key is"):
        model.init(0)


class Gain(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.gain = nn.Linear(3, 3), nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.linear(x) * self.gain


def test_parameters_that_nothing_initializes_are_refused_or_reset():
    model, _, _ = from_module(Gain())
    with pytest.raises(ValueError, match="init can't draw gain: no reset_parameters of Gain"):
        model.init(rng.key(0))

    def reset(module):
        nn.init.orthogonal_(module.linear.weight, 0.1)
        nn.init.trunc_normal_(module.gain, std=0.5, a=-0.1, b=0.1)

    module, state = Gain().double(), torch.random.get_rng_state()
    model, _, _ = from_module(module, reset=reset)
    params, _ = model.init(rng.key(0))
    weight = params["linear", "weight"]
    assert_close(weight @ weight.mT, 0.01 * torch.eye(3, dtype=D))
    assert 0 < float(params["gain"].abs().max()) <= 0.1
    assert float(params["linear", "bias"].abs().max()) > 0  # as reset_parameters left it
    assert torch.equal(torch.random.get_rng_state(), state)

    def applied(module):
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
            nn.init.xavier_normal_(module.weight)
        if isinstance(module, Gain):
            module.gain.data.fill_(2.0)

    many, _ = vmap(from_module(Gain(), reset=lambda m: m.apply(applied))[0].init)(
        rng.split(rng.key(1), 3)
    )
    assert_close(many["gain"], torch.full((3, 3), 2.0))
    assert_close(many["linear", "bias"], torch.zeros(3, 3))
    assert not many["linear", "weight"][0].equal(many["linear", "weight"][1])


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
def test_a_norm_by_hooks_is_refused_by_name():
    model, params, buffers = from_module(torch.nn.utils.weight_norm(nn.Linear(3, 4)).double())
    with pytest.raises(ValueError, match="init can't draw weight_g, weight_v"):
        model.init(rng.key(0))
    x = draw("x", 5, 3)
    g, v = params["weight_g"], params["weight_v"]
    wanted = x @ (g * v / v.norm(dim=1, keepdim=True)).mT + params["bias"]
    assert_close(model(params, buffers, x), wanted)
