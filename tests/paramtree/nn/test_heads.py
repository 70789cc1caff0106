from functools import partial

import pytest
import torch
from tensordict.nn import NormalParamExtractor
from torch.distributions import Normal, TransformedDistribution
from torch.distributions.transforms import AffineTransform, TanhTransform

import losses
from paramtree import compose, envs, grad, nn, rng, td_model, tree
from tests.paramtree.nn.battery import (
    DOUBLE,
    EMPTY,
    check_compiled,
    check_derivatives,
    check_kinds,
    check_vmapped,
    close,
    draw,
    moved,
)

# ---- dueling


def dueling(n_out=4, **options):
    return nn.dueling_head(
        nn.mlp(3, 5, n_out, activation=torch.tanh, dtype=DOUBLE),
        nn.linear(3, 1, dtype=DOUBLE),
        **options,
    )


def test_dueling_values_are_the_papers_and_their_mean_is_the_states():
    head = dueling()
    params, buffers = moved(head, rng.key(0))
    assert sorted(params.keys()) == ["advantage", "value"]
    x = draw(6, 3)
    parts = params["advantage"]
    hidden = torch.tanh(x @ parts["linear_0", "weight"].mT + parts["linear_0", "bias"])
    a = hidden @ parts["linear_1", "weight"].mT + parts["linear_1", "bias"]
    v = x @ params["value", "weight"].mT + params["value", "bias"]
    out = head(params, buffers, x)
    close(out, torch.stack([v[:, 0] + a[:, i] - sum(a.unbind(1)) / 4 for i in range(4)], 1))
    close(out.mean(1, keepdim=True), v)
    close(out.argmax(1), a.argmax(1))


def test_dueling_of_distributions_goes_along_another_dim():
    def rows(n):
        return nn.sequential(
            nn.noisy_linear(3, n * 5, dtype=DOUBLE), nn.reshape(n, 5, preserve_dims=-1)
        )

    head = nn.dueling_head(rows(4), rows(1), dim=-2)
    params, buffers = head.init(rng.key(0))
    out, after = head.apply(params, buffers, draw(6, 3))
    assert out.shape == (6, 4, 5)
    value = rows(1).apply(params["value"], buffers["value"], draw(6, 3))[0]
    close(out.mean(1, keepdim=True), value)
    keys = zip(tree.leaves(buffers), tree.leaves(after), strict=True)
    assert len(tree.leaves(buffers)) == 2 and not any(torch.equal(a, b) for a, b in keys)


def test_dueling_takes_plain_functions():
    head = nn.dueling_head(lambda x: x, nn.linear(3, 1, dtype=DOUBLE))
    params, buffers = head.init(rng.key(0))
    assert sorted(params.keys()) == ["value"]
    x = draw(2, 3)
    close(
        head(params, buffers, x).mean(1), x @ params["value", "weight"][0] + params["value", "bias"]
    )


# ---- scales


def test_softplus_scale_is_that_of_torchrls_extractor():
    x = draw(5, 6) * 4
    for number in (1.0, 0.5):  # TorchRL's shift is a number of float32
        expected = NormalParamExtractor(f"biased_softplus_{number}")(x)[1]
        close(nn.softplus_scale(number)(x[:, 3:]), expected, rtol=1e-7)
    close(nn.softplus_scale(0.3, 0.2)(torch.zeros(2)), torch.full((2,), 0.3), rtol=1e-6)
    assert nn.softplus_scale(0.3, 0.2)(torch.tensor(-99.0)) >= 0.2


def test_clamped_scale_is_an_exponential_between_bounds():
    x = torch.tensor([-30.0, -3.0, 1.0, 5.0], dtype=DOUBLE, requires_grad=True)
    out = nn.clamped_scale()(x)
    close(out, torch.tensor([-20.0, -3.0, 1.0, 2.0], dtype=DOUBLE).exp())
    (slope,) = torch.autograd.grad(out.sum(), x)
    close(slope, torch.stack([0 * x[0], out[1], out[2], 0 * x[3]]))


def test_tanh_scale_stays_between_its_bounds():
    x = torch.tensor([-40.0, 0.0, 40.0], dtype=DOUBLE)
    close(nn.tanh_scale()(x).log(), torch.tensor([-5.0, -1.5, 2.0], dtype=DOUBLE))
    close(nn.tanh_scale(-4.0, 0.0)(draw(9)).log(), 2 * draw(9).tanh() - 2)


@pytest.mark.parametrize("make", [nn.softplus_scale, nn.clamped_scale, nn.tanh_scale])
def test_bounds_of_scales_are_hyper_parameters(make):
    x, numbers = draw(7) * 3, {nn.softplus_scale: (0.7, 0.1)}.get(make, (-1.1, 1.3))
    pair = [torch.tensor(number, dtype=DOUBLE, requires_grad=True) for number in numbers]
    close(make(*pair)(x), make(*numbers)(x))
    for given in (pair, [pair[0], numbers[1]], [numbers[0], pair[1]]):
        real = [number for number in given if isinstance(number, torch.Tensor)]

        def fn(*real, given=given):
            rest = iter(real)
            return make(*[next(rest) if isinstance(n, torch.Tensor) else n for n in given])(x)

        assert torch.autograd.gradcheck(fn, real) and torch.autograd.gradgradcheck(fn, real)
    assert make(*numbers)(x.bfloat16()).dtype == torch.bfloat16


# ---- normal heads


def test_normal_head_is_two_affine_maps():
    head = nn.normal_head(3, 2, dtype=DOUBLE)
    params, buffers = moved(head, rng.key(0))
    x = draw(5, 3)
    loc, scale = head(params, buffers, x)
    close(loc, x @ params["loc", "weight"].mT + params["loc", "bias"])
    raw = x @ params["scale", "weight"].mT + params["scale", "bias"]
    close(scale, NormalParamExtractor()(torch.cat((loc, raw), -1))[1], rtol=1e-7)
    alone = nn.normal_head(3, 2, state_dependent=False, to_scale=torch.exp, dtype=DOUBLE)
    params, buffers = moved(alone, rng.key(0))
    assert tree.paths(params) == [("loc", "bias"), ("loc", "weight"), ("scale", "bias")]
    loc, scale = alone(params, buffers, x)
    close(scale, params["scale", "bias"].exp().expand(5, 2))


def test_squashed_head_bounds_what_it_should():
    head = nn.squashed_normal_head(3, 2, upscale=5.0, dtype=DOUBLE)
    params, buffers = moved(head, rng.key(0))
    x = draw(5, 3) * 100
    loc, scale = head(params, buffers, x)
    raw = [x @ params[n, "weight"].mT + params[n, "bias"] for n in ("loc", "scale")]
    close(loc, 5 * (raw[0] / 5).tanh())
    close(scale, raw[1].clamp(-20, 2).exp())
    plain = nn.squashed_normal_head(3, 2, to_scale=nn.tanh_scale(), dtype=DOUBLE)
    close(plain(params, buffers, x)[0], raw[0])
    close(plain(params, buffers, x)[1], nn.tanh_scale()(raw[1]))


def test_where_the_initializers_of_heads_go():
    inits = {"weight_init": nn.constant(1.0), "bias_init": nn.constant(2.0)}
    both = [nn.normal_head, nn.squashed_normal_head]
    for make in both:
        params, _ = make(3, 2, **inits).init(rng.key(0))
        assert {float(params[n, "weight"].unique()) for n in ("loc", "scale")} == {1.0}
        assert {float(params[n, "bias"].unique()) for n in ("loc", "scale")} == {2.0}
        params, _ = make(3, 2, **inits, scale_init=nn.constant(3.0)).init(rng.key(0))
        assert float(params["scale", "bias"].unique()) == 3.0
        params, _ = make(3, 2, **inits, state_dependent=False).init(rng.key(0))
        assert not params["scale", "bias"].any()  # a start that is neither wide nor narrow


HEADS = {
    "dueling": dueling(),
    "normal": nn.normal_head(3, 2, dtype=DOUBLE),
    "alone": nn.normal_head(3, 2, state_dependent=False, to_scale=torch.exp, dtype=DOUBLE),
    "squashed": nn.squashed_normal_head(3, 2, upscale=2.0, dtype=DOUBLE),
}


@pytest.mark.parametrize("name", HEADS)
def test_in_every_way(name):
    check_derivatives(HEADS[name], draw(4, 3))
    check_vmapped(HEADS[name], draw(4, 3))
    check_compiled(HEADS[name], draw(4, 3))


def test_kinds_of_numbers_and_devices():
    for make in (nn.normal_head, nn.squashed_normal_head):

        def one(dtype, make=make):  # the check looks at one tensor
            whole = make(3, 2, dtype=dtype)
            return nn.sequential(whole=whole, sum=sum)

        check_kinds(one, draw(4, 3))


# ---- in agents


def test_a_squashed_head_acts_in_a_world_and_is_its_own_density():
    low, high = -2.0, 2.0
    actor = compose(
        torso=td_model(nn.mlp(3, 16, 16, final_activation=torch.relu), "observation", "hidden"),
        head=td_model(nn.squashed_normal_head(16, 1, upscale=5.0), "hidden", ["loc", "scale"]),
    )
    params, buffers = actor.init(rng.key(0))
    level, env = envs.pendulum_level(), envs.pendulum()
    state = env.reset(level, env.noise(level, rng.key(1), (4,)))
    dist = partial(losses.tanh_normal, low=low, high=high)
    _, _, td = envs.rollout(env, actor, params, buffers, level, state, rng.key(2), 6, dist)
    assert td["action"].abs().max() < high and td["loc"].shape == td["scale"].shape == (4, 6, 1)
    transforms = [TanhTransform(), AffineTransform((low + high) / 2, (high - low) / 2)]
    theirs = TransformedDistribution(Normal(td["loc"], td["scale"]), transforms)
    expected = theirs.log_prob(td["action"])[..., 0]
    torch.testing.assert_close(td["action_log_prob"], expected, rtol=1e-3, atol=1e-3)

    def objective(params):
        out = actor(params, buffers, td)
        action, log_prob = dist(out["loc"], out["scale"]).sample_with(torch.ones(4, 6, 1))
        return (action + log_prob.unsqueeze(-1)).mean()

    slopes = tree.leaves(grad(objective)(params))
    assert all(leaf.isfinite().all() and leaf.any() for leaf in slopes)


def test_a_normal_head_learns_by_ppo():
    actor = compose(
        actor=td_model(
            nn.normal_head(3, 2, state_dependent=False, to_scale=torch.exp),
            "observation",
            ["loc", "scale"],
        )
    )
    params, buffers = actor.init(rng.key(0))
    size = (4, 6)
    td = {"observation": draw(*size, 3).float(), "action": draw(*size, 2, seed=1).float()}
    td |= {"advantage": draw(*size, seed=2).float(), "action_log_prob": draw(*size).float() - 2}

    def objective(params):
        out = actor(params, buffers, tree.new(td, size))
        return losses.ppo_loss(out, losses.independent_normal, critic_coeff=None)["loss_objective"]

    slope = grad(objective)(params)["actor"]
    assert all(leaf.any() for leaf in tree.leaves(slope))
    assert slope["scale", "bias"].shape == (2,)


X = draw(4, 3)
DUEL = dueling()
PARAMS = DUEL.init(rng.key(0))[0]
REFUSED = [
    (lambda: nn.dueling_head(3, torch.relu), TypeError, "dueling_head: advantage is a int"),
    (lambda: nn.dueling_head(torch.relu, torch.relu, 1.0), TypeError, "dim is a float"),
    (
        lambda: nn.dueling_head(nn.linear(3, 4), nn.linear(3, 2)).apply(
            *nn.dueling_head(nn.linear(3, 4), nn.linear(3, 2)).init(rng.key(0)), X.float()
        ),
        ValueError,
        r"the value has shape \(4, 2\), expected \(4, 1\) \(from the advantage, of shape \(4, 4\)",
    ),
    (lambda: dueling(dim=2)(PARAMS, EMPTY, X), ValueError, "which lacks dim 2"),
    (lambda: DUEL(PARAMS, EMPTY, X[:, :2]), ValueError, "linear: .*; in advantage.linear_0"),
    (lambda: DUEL(PARAMS["value"], EMPTY, X), ValueError, "dueling_head: params hold an unknown"),
    (lambda: nn.softplus_scale(0.1, 0.2), ValueError, "low is 0.2, expected it below at_zero, whi"),
    (lambda: nn.softplus_scale("1"), TypeError, "softplus_scale: at_zero is a str"),
    (lambda: nn.clamped_scale(2.0, -2.0), ValueError, "clamped_scale: low is 2.0, expected it bel"),
    (lambda: nn.tanh_scale(2.0, 2.0), ValueError, "tanh_scale: low is 2.0, expected it below high"),
    (lambda: nn.tanh_scale(2.0, torch.ones(2)), ValueError, r"tanh_scale: high is a tensor \[2\]"),
    (lambda: nn.normal_head(0, 2), ValueError, "normal_head: n_in is 0"),
    (lambda: nn.normal_head(3, 2, to_scale=1.0), TypeError, "normal_head: to_scale is a float"),
    (lambda: nn.normal_head(3, 2, scale_init=1.0), TypeError, "normal_head: scale_init is a float"),
    (
        lambda: nn.squashed_normal_head(3, 2, upscale=0.0),
        ValueError,
        "upscale is 0.0, expected",
    ),
]


@pytest.mark.parametrize(("call", "kind", "message"), REFUSED, ids=[row[2] for row in REFUSED])
def test_refusals_name_what_is_wrong(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
