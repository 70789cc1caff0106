"""Modules that draw: from a key, the right distribution, and never from the global generator."""

import math

import pytest
import torch
from torch import distributions, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from paramtree import autodiff, check_grads, from_module, grad, rng, tree, vmap
from tests.paramtree.nn_module.modules import D, assert_close, draw, row, scalar, seeded, spread


class Draws(nn.Module):
    """A function that draws, between a parameter and the output."""

    def __init__(self, fn):
        super().__init__()
        self.w, self.fn = nn.Parameter(torch.ones(3, dtype=D)), fn

    def forward(self, x):
        return self.fn(x * self.w)


def new(x, name, *args):
    return getattr(torch.empty_like(x), name)(*args) * x


FUNCTIONS = {
    "dropout": lambda x: functional.dropout(x, 0.3),
    "dropout in place": lambda x: functional.dropout(x * 1, 0.3, True, True),
    "dropout1d": lambda x: functional.dropout1d(x, 0.5),
    "alpha dropout in place": lambda x: functional.alpha_dropout(x * 1, 0.5, True, True),
    "feature alpha dropout": lambda x: functional.feature_alpha_dropout(x, 0.5, True),
    "native dropout": lambda x: torch.native_dropout(x, 0.3, True)[0],
    "torch.dropout_": lambda x: torch.dropout_(x * 1, 0.3, True),
    "rrelu": lambda x: functional.rrelu(x, training=True),
    "gumbel softmax": lambda x: functional.gumbel_softmax(x),
    "attention": lambda x: functional.scaled_dot_product_attention(x, x, x, dropout_p=0.3),
    "rand": lambda x: x * torch.rand(2, 3, dtype=D),
    "rand of a size": lambda x: x * torch.rand(size=(3,)),
    "randn": lambda x: x + torch.randn((2, 3)),
    "rand_like": lambda x: x + torch.rand_like(x),
    "randn_like": lambda x: x + torch.randn_like(x, dtype=torch.float32),
    "randint": lambda x: x * torch.randint(2, 5, (2, 3)),
    "randint by name": lambda x: x * torch.randint(high=5, size=(2, 3)),
    "randint_like": lambda x: x * torch.randint_like(x, 9),
    "randperm": lambda x: x[:, torch.randperm(3)],
    "normal": lambda x: torch.normal(x, x.abs()) * x,
    "normal of a float": lambda x: torch.normal(0.0, 1.0, (2, 3)) * x,
    "bernoulli": lambda x: torch.bernoulli(x.sigmoid()) * x,
    "bernoulli of a method": lambda x: x.sigmoid().bernoulli() * x,
    "multinomial": lambda x: torch.multinomial(x.sigmoid(), 2) * x[:, :2],
    "multinomial again": lambda x: x.sigmoid().multinomial(3, True) * x,
    "bernoulli_": lambda x: new(x, "bernoulli_", 0.4),
    "bernoulli_ of a tensor": lambda x: new(x, "bernoulli_", x.sigmoid()),
    "uniform_": lambda x: new(x, "uniform_", -1, 2),
    "normal_ of a new one": lambda x: x.new(2, 3).normal_() * x,
    "exponential_": lambda x: new(x, "exponential_", 2.0),
    "cauchy_": lambda x: new(x, "cauchy_"),
    "log_normal_": lambda x: new(x, "log_normal_"),
    "geometric_": lambda x: new(x, "geometric_", 0.3),
    "random_": lambda x: new(x, "random_", 3, 9),
    "an operator": lambda x: torch.ops.aten.bernoulli(x.sigmoid()) * x,
    "an overload in place": lambda x: torch.ops.aten.uniform_.default(x.clone(), 0.0, 1.0) * x,
    "initializers": lambda x: (
        nn.init.orthogonal_(nn.init.kaiming_uniform_(torch.empty_like(x))) * x
    ),
    "low rank": lambda x: torch.svd_lowrank(x, 2)[1],
}
NAMES = sorted(FUNCTIONS)


@pytest.mark.parametrize("name", NAMES)
def test_draws_come_from_the_key_alone(name):
    module, x = Draws(FUNCTIONS[name]), draw("x", 2, 3)
    state = torch.random.get_rng_state()
    model, params, buffers = from_module(module)
    with pytest.raises(ValueError, match="Draws draws random numbers .* give from_module a key"):
        model.apply(params, buffers, x)
    model, params, buffers = from_module(module, key=rng.key(0))
    out, after = model.apply(params, buffers, x)
    assert_close(model.apply(params, buffers, x)[0], out, rtol=0, atol=0)
    later = [model.apply(params, after, x)[0]]
    for _ in range(3):  # some have few values, which may come again
        after = model.apply(params, after, x)[1]
        later.append(model.apply(params, after, x)[0])
    assert any(not torch.equal(y, out) for y in later)
    assert torch.equal(torch.random.get_rng_state(), state)
    with pytest.raises(ValueError, match=r"updates its buffers \(key\); use apply"):
        model(params, buffers, x)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "low rank"])
def test_draws_map_over_keys_parameters_and_inputs(name):
    model, params, buffers = from_module(Draws(FUNCTIONS[name]), key=rng.key(0))
    x = draw("x", 2, 3)
    keys, many, xs = (
        tree.new({"key": rng.split(rng.key(1), 3)}, (3,)),
        spread(params, 3),
        spread(x, 3),
    )
    out, after = vmap(model.apply)(many, keys, xs)
    shared = vmap(model.apply, (0, None, None))(many, buffers, x)[0]
    for i in range(3):
        one, state = model.apply(many[i], keys[i], xs[i])
        assert_close(out[i], one, rtol=1e-12, atol=1e-12)
        assert torch.equal(after["key"][i], state["key"])
        assert_close(shared[i], model.apply(many[i], buffers, x)[0], rtol=1e-12, atol=1e-12)


DISTRIBUTIONS = {
    "bernoulli": lambda x: distributions.Bernoulli(logits=x),
    "categorical": lambda x: distributions.Categorical(logits=x),
    "cauchy": lambda x: distributions.Cauchy(x, 1.0),
    "exponential": lambda x: distributions.Exponential(x.abs()),
    "gumbel": lambda x: distributions.Gumbel(x, 1.0),
    "independent": lambda x: distributions.Independent(distributions.Normal(x, 1.0), 1),
    "laplace": lambda x: distributions.Laplace(x, 1.0),
    "multivariate": lambda x: distributions.MultivariateNormal(x, torch.eye(3, dtype=D)),
    "normal": lambda x: distributions.Normal(x, 1.0),
    "one hot": lambda x: distributions.OneHotCategorical(logits=x),
    "relaxed": lambda x: distributions.RelaxedOneHotCategorical(torch.tensor(0.5), logits=x),
    "uniform": lambda x: distributions.Uniform(x, x + 1),
}


@pytest.mark.parametrize("name", sorted(DISTRIBUTIONS))
def test_distributions_sample_from_the_key_alone_and_mapped(name):
    def sampled(x):
        dist = DISTRIBUTIONS[name](x)
        action = dist.sample()
        return dist.log_prob(action), action, dist.rsample() if dist.has_rsample else x

    model, params, buffers = from_module(Draws(sampled), key=rng.key(0))
    x, state = draw("x", 2, 3), torch.random.get_rng_state()
    keys, many = tree.new({"key": rng.split(rng.key(1), 3)}, (3,)), spread(params, 3)
    out, _ = vmap(model.apply, (0, 0, None))(many, keys, x)
    for i in range(3):
        assert_close(row(out, i), model.apply(many[i], keys[i], x)[0], rtol=1e-11, atol=1e-12)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_condition_inside_a_map_has_to_be_of_one_mind():
    class Checks(nn.Module):
        def forward(self, x):
            if not (x > 0).all():
                raise ValueError("negative")
            return x.sqrt()

    model, params, buffers = from_module(Checks())
    x = draw("x", 3, 2).abs()
    assert_close(vmap(model, (None, None, 0))(params, buffers, x), x.sqrt())
    with pytest.raises(ValueError, match="negative"):
        vmap(model, (None, None, 0))(params, buffers, -x)
    x[1] *= -1
    with pytest.raises(RuntimeError, match="data-dependent control flow"):
        vmap(model, (None, None, 0))(params, buffers, x)


# ------------------------------------------------------------------------------- the distributions


def outputs(module, x, n=1):
    model, params, buffers = from_module(module, key=rng.key(3), train=True)
    outs = []
    for _ in range(n):
        out, buffers = model.apply(params, buffers, x)
        outs.append(out)
    return torch.stack(outs) if n > 1 else outs[0]


def test_dropout_drops_with_its_probability_and_scales_the_rest():
    x = draw("x", 100, 200) + 3
    out = outputs(nn.Dropout(0.3), x)
    dropped = out == 0
    assert abs(float(dropped.double().mean()) - 0.3) < 0.015  # 4.6 standard deviations
    assert_close(out[~dropped], x[~dropped] / 0.7)
    assert_close(outputs(nn.Dropout(1.0), x), torch.zeros_like(x))
    assert outputs(nn.Dropout(0.0), x).equal(x)
    columns = outputs(nn.Dropout1d(0.3), x.reshape(100, 20, 10)) == 0
    assert bool((columns.any(-1) == columns.all(-1)).all())
    assert abs(float(columns.double().mean()) - 0.3) < 0.05
    kept = x.clone()
    assert_close(outputs(nn.Dropout(0.3, inplace=True), x), out)
    assert x.equal(kept)


def test_alpha_dropout_keeps_mean_and_variance():
    x = draw("x", 400, 400)
    out = outputs(nn.AlphaDropout(0.4), x)
    assert abs(float(out.mean())) < 0.015 and abs(float(out.std()) - 1) < 0.015
    values = outputs(nn.AlphaDropout(0.4), torch.zeros(50, 50, dtype=D)).unique()
    alpha = 1.7580993408473766
    scale = (0.6 * (1 + 0.4 * alpha**2)) ** -0.5
    shift = scale * alpha * 0.4
    assert_close(values, torch.tensor([shift - alpha * scale, shift], dtype=D))


def test_rrelu_slopes_are_uniform():
    x = -draw("x", 100, 100).abs()
    slope = outputs(nn.RReLU(0.2, 0.4), x) / x
    assert float(slope.min()) >= 0.2 and float(slope.max()) <= 0.4
    assert abs(float(slope.mean()) - 0.3) < 0.003
    assert outputs(nn.RReLU(0.2, 0.4), -x).equal(-x)


def test_numbers_have_their_distributions():
    n = 40_000
    x = torch.zeros(n, dtype=D)
    normal = outputs(Fills(lambda x: x.normal_(1.0, 2.0)), x)
    assert abs(float(normal.mean()) - 1) < 0.05 and abs(float(normal.std()) - 2) < 0.05
    exponential = outputs(Fills(lambda x: x.exponential_(4.0)), x)
    assert abs(float(exponential.mean()) - 0.25) < 0.006 and float(exponential.min()) > 0
    cauchy = outputs(Fills(lambda x: x.cauchy_(1.0, 2.0)), x)
    assert abs(float((cauchy < 3.0).double().mean()) - 0.75) < 0.01
    geometric = outputs(Fills(lambda x: x.geometric_(0.25)), x)
    assert abs(float(geometric.mean()) - 4) < 0.08 and float(geometric.min()) == 1
    log_normal = outputs(Fills(lambda x: x.log_normal_(0.5, 0.3)), x).log()
    assert abs(float(log_normal.mean()) - 0.5) < 0.01 and abs(float(log_normal.std()) - 0.3) < 0.01
    random = outputs(Fills(lambda x: x.random_(3, 6)), x)
    assert_close(random.unique(), torch.tensor([3.0, 4.0, 5.0], dtype=D))
    p = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=D)
    twice = outputs(Fills(lambda x: torch.multinomial(p.expand(n, 4), 2)), x)
    assert bool((twice[:, 0] != twice[:, 1]).all())
    first = twice[:, 0].bincount(minlength=4) / n
    assert float((first - p).abs().max()) < 0.012
    chance = p[0] * p[3] / (1 - p[0])  # of 0 first and then 3
    pairs = ((twice[:, 0] == 0) & (twice[:, 1] == 3)).double().mean()
    assert abs(float(pairs - chance)) < 0.005


class Fills(nn.Module):
    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, x):
        return self.fn(x)


def test_attention_with_dropout_is_attention_on_average_and_in_its_masks():
    q, k, v = (draw(name, 2, 2, 4, 8) for name in "qkv")
    attend = functional.scaled_dot_product_attention
    mask = draw("mask", 4, 4) > -0.7
    mask[:, 0] = True
    for options in (
        {},
        {"is_causal": True},
        {"attn_mask": mask, "scale": 0.3},
        {"attn_mask": draw("bias", 4, 4)},
    ):
        module = Fills(lambda x, o=options: attend(x, k, v, dropout_p=0.2, **o))
        mean = outputs(module, q, 400).mean(0)
        assert float((mean - attend(q, k, v, **options)).abs().max()) < 0.25
    few = Fills(lambda x: attend(x, k[:, :1], v[:, :1], dropout_p=1e-12, enable_gqa=True))
    assert_close(outputs(few, q), attend(q, k[:, :1], v[:, :1], enable_gqa=True))


@pytest.mark.parametrize(
    ("make", "x"),
    [
        (lambda: nn.FractionalMaxPool2d(2, output_size=3), draw("x", 2, 2, 7, 7)),
        (lambda: nn.FractionalMaxPool2d(2, output_ratio=0.5), draw("x", 2, 7, 7)),
        (lambda: nn.FractionalMaxPool3d(2, output_size=3), draw("x", 2, 7, 7, 7)),
    ],
)
def test_fractional_pools_draw_where_they_pool(make, x):
    outs = outputs(make(), x, 20)
    assert len({tuple(out.flatten().tolist()) for out in outs}) > 1
    assert bool(torch.isin(outs, x).all())
    with pytest.raises(ValueError, match="FractionalMaxPool.d draws random numbers"):
        model, params, buffers = from_module(make().eval())
        model(params, buffers, x)


# ------------------------------------------------------------------------------ whole modules


def trained(kind):
    if kind == "transformer":
        module = nn.Transformer(8, 2, 1, 1, 16, dropout=0.2, batch_first=True)
        return seeded(module), (draw("src", 2, 5, 8), draw("tgt", 2, 4, 8))
    if kind == "attention":
        return seeded(nn.MultiheadAttention(8, 2, dropout=0.3)), (draw("q", 5, 2, 8),) * 3
    return seeded(nn.LSTM(3, 4, 3, dropout=0.4, bidirectional=True)), draw("x", 5, 2, 3)


@pytest.mark.parametrize("kind", ["transformer", "attention", "lstm"])
def test_modules_with_dropout_in_training(kind):
    module, batch = trained(kind)
    state = torch.random.get_rng_state()
    model, params, buffers = from_module(module)
    with pytest.raises(ValueError, match="draws random numbers"):
        model.apply(params, buffers, batch)
    model, params, buffers = from_module(module, key=rng.key(0))
    out, after = model.apply(params, buffers, batch)
    assert_close(model.apply(params, buffers, batch)[0], out, rtol=0, atol=0)
    leaf = lambda out: out[0] if isinstance(out, tuple) else out  # noqa: E731
    assert not torch.allclose(leaf(model.apply(params, after, batch)[0]), leaf(out))
    check_grads(lambda p: scalar(model.apply(p, buffers, batch)[0]), params, max_entries=2)
    keys = rng.split(rng.key(1), 2)
    many, states = spread(params, 2), tree.new({"key": keys}, (2,))
    mapped = vmap(model.apply, (0, 0, None))(many, states, batch)[0]
    for i in range(2):
        one = model.apply(many[i], states[i], batch)[0]
        assert_close(row(mapped, i), one, rtol=1e-9, atol=1e-10)
    assert torch.equal(torch.random.get_rng_state(), state)
    model, params, buffers = from_module(module, train=False)
    args = batch if isinstance(batch, tuple) else (batch,)
    assert_close(model(params, buffers, batch), module.eval()(*args))


def test_lstm_with_dropout_is_the_modules_where_nothing_is_dropped():
    module = seeded(nn.LSTM(3, 4, 2, dropout=1e-12, bidirectional=True, batch_first=True))
    model, params, buffers = from_module(module, key=rng.key(0))
    x = draw("x", 2, 5, 3)
    assert_close(model.apply(params, buffers, x)[0], module.eval()(x))


def test_a_second_derivative_through_dropped_units():
    module, batch = trained("lstm")
    model, params, buffers = from_module(module, key=rng.key(0))
    slope = grad(lambda x: scalar(model.apply(params, buffers, x)[0]))
    check_grads(slope, batch, max_entries=4)


# ------------------------------------------------------------------------------------ refusals


def test_what_a_key_cannot_give_is_refused():
    x, state = draw("x", 2, 3), torch.random.get_rng_state()
    for fn, text in (
        (lambda x: distributions.Gamma(x.abs(), 1.0).sample(), "_standard_gamma.* by rejection"),
        (lambda x: distributions.Beta(x.abs(), x.abs()).sample(), "by rejection"),
        (lambda x: torch.poisson(x.abs()), "poisson.* by rejection"),
        (lambda x: torch.ops.aten.poisson.default(x.abs()), "poisson.* by rejection"),
        (lambda x: torch.rand(3, generator=torch.Generator()), "rand.* from a generator"),
        (lambda x: x.clone().uniform_(generator=torch.Generator()), "from a generator"),
        (lambda x: x.clone().random_(), "over all values of a dtype"),
        (lambda x: torch.ops.aten.rrelu_with_noise_functional(x, x, 0.1, 0.3, True)[0], "operator"),
    ):
        model, params, buffers = from_module(Draws(fn), key=rng.key(0))
        with pytest.raises(ValueError, match=f"from_module: Draws draws .*{text}"):
            model.apply(params, buffers, x)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_message_says_which_sub_module_draws():
    module = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Dropout(0.5)))
    model, params, buffers = from_module(module)
    with pytest.raises(ValueError, match=r"from_module: Dropout at '1.0' draws .*\(dropout\)"):
        model(params, buffers, torch.ones(2, 3))


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_inside_of_the_module_would_draw_again(reentrant):
    class Saves(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.drop = nn.Linear(3, 3), nn.Dropout(0.5)

        def forward(self, x):
            return checkpoint(lambda y: self.drop(self.linear(y)), x, use_reentrant=reentrant)

    model, params, buffers = from_module(Saves(), key=rng.key(0))
    x = torch.ones(2, 3).requires_grad_()
    with pytest.raises(ValueError, match="inside torch.utils.checkpoint"):
        model.apply(params, buffers, x)
    model, params, buffers = from_module(nn.Sequential(*Saves().children()), key=rng.key(0))
    loss = lambda p: scalar(model.apply(p, buffers, x)[0])  # noqa: E731
    ours = grad(lambda p: autodiff.checkpoint(loss)(p))(params)
    assert_close(tree.leaves(ours), tree.leaves(grad(loss)(params)))


def test_draws_of_one_call_are_independent():
    both = Fills(lambda x: torch.stack([torch.randn(2000, dtype=D), torch.randn(2000, dtype=D)]))
    pair = outputs(both, torch.zeros(1))
    following = outputs(both, torch.zeros(1), 2)
    assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.1
    assert abs(float(torch.corrcoef(torch.stack([following[0, 0], following[1, 1]]))[0, 1])) < 0.1
    assert math.isclose(float(pair.std()), 1.0, abs_tol=0.06)
