"""Converted modules inside torch.compile: whole, with hooks, buffers, keys and gradients."""

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import InteractionType, TensorDictModule, set_interaction_type
from torch import distributions, nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torchrl.modules import MLP, ProbabilisticActor

from paramtree import from_module, grad, rng, tree, vmap
from tests.paramtree.nn_module.modules import (
    D,
    ResNet18,
    Stateful,
    Tied,
    assert_close,
    by_name,
    draw,
    scalar,
    seeded,
    spread,
)


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(fn):
    return torch.compile(fn, fullgraph=True, backend="aot_eager")


def hooked():
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    module[0].register_forward_pre_hook(lambda m, args: (args[0] + 1,))
    module[1].register_forward_hook(lambda m, args, y: y.mul(2))
    return module


class Decorated(nn.Module):
    """Methods that decorators have made, its own and those of the class above."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(3))

    @torch.no_grad()
    def halved(self, x):
        return x / 2

    @torch.autocast("cpu", enabled=False)
    def forward(self, x):
        return self.halved(x) * self.w


class Derived(Decorated):
    @torch.autocast("cpu", enabled=False)
    def forward(self, x):
        return super().forward(x) + self.w


class Tensors(nn.Module):
    """Methods of tensors that are written in Python, and attributes that are set."""

    def __init__(self):
        super().__init__()
        self.linear, self.last = nn.Linear(4, 4), None

    def forward(self, x):
        y = self.linear(x)
        a, b = y.split(2, -1)
        self.last = y.norm() + 2 / (y * y + 1)
        y = y + (1 - y) * self.last
        y[0] = 0.0
        parts = y.unflatten(-1, (2, 2)).unbind(-1)
        return a * b, parts, torch.einsum("ij,kj->ik", y, y), functional.relu(y), y.std()


MASK = nn.Transformer.generate_square_subsequent_mask(4, dtype=D)
TWO = draw("src", 2, 5, 8), draw("tgt", 2, 4, 8)
CASES = {
    "resnet": (ResNet18, draw("image", 2, 3, 33, 33)),
    "stateful": (Stateful, draw("x", 4, 3)),
    "tied": (Tied, torch.tensor([1, 4, 0])),
    "hooks": (hooked, draw("x", 5, 3)),
    "decorated": (Derived, draw("x", 5, 3)),
    "tensors": (Tensors, draw("x", 3, 4)),
    "lstm": (lambda: nn.LSTM(3, 4, 2, bidirectional=True), draw("x", 5, 2, 3)),
    "lstm with dropout": (lambda: nn.LSTM(3, 4, 2, dropout=0.3), draw("x", 5, 2, 3)),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Linear(3, 4)), draw("x", 5, 3)),
    "transformer": (lambda: nn.Transformer(8, 2, 1, 1, 16, batch_first=True), TWO),
    "transformer in evaluation": (
        lambda: nn.Transformer(8, 2, 1, 1, 16, batch_first=True).eval(),
        (*TWO, {"tgt_mask": MASK, "tgt_is_causal": True}),
    ),
}


def marked(names, quick):
    """Names, those that take seconds to compile marked slow."""
    return [n if n in quick else pytest.param(n, marks=pytest.mark.slow) for n in sorted(names)]


@pytest.mark.parametrize("name", marked(CASES, {"hooks", "decorated", "stateful", "lstm"}))
def test_equals_eager(name):
    make, batch = CASES[name]
    model, params, buffers = from_module(seeded(make()), key=rng.key(0))
    state = torch.random.get_rng_state()
    out, after = compiled(model.apply)(params, buffers, batch)
    wanted, held = model.apply(params, buffers, batch)
    assert_close(out, wanted, rtol=1e-12, atol=1e-12)
    assert_close(by_name(after), by_name(held), rtol=1e-12, atol=1e-12)
    assert torch.equal(torch.random.get_rng_state(), state)


def pool(x):
    return functional.fractional_max_pool2d(x[None], 2, output_size=1)


DRAWS = {
    "dropouts": lambda x: functional.dropout(x) + functional.alpha_dropout(x * 1, 0.5, True, True),
    "in place": lambda x: torch.dropout_(x * 1, 0.5, True) + torch.rrelu_(x * 1, training=True),
    "factories": lambda x: (
        torch.rand(3) + torch.randn(3) + torch.randint(9, (3,)) + torch.randperm(3)
    ),
    "alike": lambda x: torch.rand_like(x) + torch.randn_like(x) + torch.randint_like(x, 9),
    "normal": lambda x: torch.normal(x, x.abs()) + torch.normal(0.0, 1.0, (3,)),
    "fills": lambda x: x.clone().uniform_() + x.new(2, 3).normal_() + (x * 1).exponential_(),
    "choices": lambda x: torch.bernoulli(x.sigmoid()) + x.softmax(-1).multinomial(3, True),
    "attention": lambda x: functional.scaled_dot_product_attention(x, x, x, dropout_p=0.5),
    "pool": pool,
    "operator": lambda x: torch.ops.aten.bernoulli.default(x.sigmoid()),
    "distributions": lambda x: (
        distributions.Normal(x, 1.0).sample()
        + distributions.Gumbel(x, 1.0).rsample()
        + distributions.OneHotCategorical(logits=x).sample()
    ),
    "initializers": lambda x: nn.init.kaiming_normal_(nn.init.uniform_(torch.empty_like(x))),
}


class Draws(nn.Module):
    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, x):
        return self.fn(x)


@pytest.mark.parametrize("name", marked(DRAWS, {"alike", "in place", "operator", "normal"}))
def test_draws_come_from_the_key_and_are_the_same(name):
    x, state = draw("x", 2, 3), torch.random.get_rng_state()
    model, params, buffers = from_module(Draws(DRAWS[name]), key=rng.key(0))
    out, after = compiled(model.apply)(params, buffers, x)
    wanted, held = model.apply(params, buffers, x)
    assert_close(out, wanted, rtol=1e-12, atol=1e-12)
    assert torch.equal(after["key"], held["key"])
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    "fn",
    [torch.nn.functional.dropout, torch.randn_like, lambda x: torch.normal(x, 1.0), torch.rrelu_],
)
def test_draws_without_a_key_do_not_compile(fn):
    draws = (lambda x: fn(x, training=True)) if fn is torch.rrelu_ else fn
    model, params, buffers = from_module(Draws(draws))
    with pytest.raises(Exception, match="Draws draws|there is no key|ValueError"):
        compiled(model.apply)(params, buffers, draw("x", 2, 3))


def test_an_actor():
    module = seeded(
        ProbabilisticActor(
            TensorDictModule(MLP(3, 4, depth=1, num_cells=5), ["observation"], ["logits"]),
            in_keys=["logits"],
            distribution_class=distributions.Categorical,
            return_log_prob=True,
        )
    )
    model, params, buffers = from_module(module, key=rng.key(0))
    td = TensorDict({"observation": draw("x", 4, 3)}, [4]).lock_()
    with set_interaction_type(InteractionType.RANDOM):
        out, _ = compiled(model.apply)(params, buffers, td)
        wanted, _ = model.apply(params, buffers, td)
    assert sorted(out.keys()) == sorted(wanted.keys())
    for key in wanted.keys():
        assert_close(out[key], wanted[key], rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_a_training_step_and_a_mapped_gradient():
    module = seeded(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.3)))
    model, params, buffers = from_module(module, key=rng.key(0))
    x = draw("x", 5, 3)

    def step(p, b, x):
        slope = grad(lambda p: scalar(model.apply(p, b, x)[0]))(p)
        return tree.map(lambda p, g: p - 0.1 * g, p, slope), model.apply(p, b, x)[1]

    ours, wanted = compiled(step)(params, buffers, x), step(params, buffers, x)
    assert_close([by_name(t) for t in ours], [by_name(t) for t in wanted], rtol=1e-10, atol=1e-12)
    many, xs = spread(params, 2), spread(x, 2)
    mapped = vmap(step, (0, None, 0))
    ours, wanted = compiled(mapped)(many, buffers, xs), mapped(many, buffers, xs)
    assert_close([by_name(t) for t in ours], [by_name(t) for t in wanted], rtol=1e-10, atol=1e-12)


def test_a_mapped_lstm():
    model, params, buffers = from_module(seeded(nn.LSTM(3, 4)))
    many, xs = spread(params, 2), spread(draw("x", 4, 2, 3), 2)
    mapped = vmap(model.apply, (0, None, 0))
    assert_close(compiled(mapped)(many, buffers, xs)[0], mapped(many, buffers, xs)[0])


def test_init():
    model, _, _ = from_module(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
    ours, wanted = compiled(model.init)(rng.key(0)), model.init(rng.key(0))
    assert_close([by_name(t) for t in ours], [by_name(t) for t in wanted])
