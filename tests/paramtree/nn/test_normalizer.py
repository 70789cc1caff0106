import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.wrappers import NormalizeReward
from gymnasium.wrappers.utils import RunningMeanStd

from paramtree import grad, nn, rng, tree, vmap
from tests.paramtree.nn.battery import (
    DOUBLE,
    EMPTY,
    check_compiled,
    check_derivatives,
    check_vmapped,
    close,
    draw,
)

# ---- observations


def fed(layer, batches):
    buffers, outs = layer.init(rng.key(0))[1], []
    for batch in batches:
        out, buffers = layer.apply(EMPTY, buffers, batch)
        outs.append(out)
    return outs, buffers


@pytest.mark.parametrize("shape", [3, (3,), (2, 3), ()])
@pytest.mark.parametrize("lead", [(5,), (1,), (4, 2)])
def test_numbers_are_gymnasiums(shape, lead):
    size = (shape,) if isinstance(shape, int) else shape
    batches = [draw(*lead, *size, seed=i) * (1 + i) + 2 * i for i in range(4)]
    theirs = RunningMeanStd(shape=size)
    outs, buffers = fed(nn.running_normalizer(shape), batches)
    for batch, out in zip(batches, outs, strict=True):
        theirs.update(batch.reshape(-1, *size).numpy())
        expected = (batch.numpy() - theirs.mean) / np.sqrt(theirs.var + 1e-8)
        close(out, torch.from_numpy(np.asarray(expected)))
    for name in ("count", "mean", "var"):
        close(buffers[name], torch.as_tensor(getattr(theirs, name), dtype=DOUBLE))
    assert buffers.is_locked


def test_statistics_are_those_of_all_that_was_seen():
    batches = [draw(n, 3, seed=n) * n for n in (1, 7, 40)]
    _, buffers = fed(nn.running_normalizer(3, prior_count=1e-12), batches)
    seen = torch.cat(batches)
    close(buffers["mean"], seen.mean(0), rtol=1e-8)
    close(buffers["var"], seen.var(0, unbiased=False), rtol=1e-8)
    close(buffers["count"], torch.tensor(48.0, dtype=DOUBLE), rtol=1e-8)
    assert not torch.allclose(buffers["mean"], torch.stack([b.mean(0) for b in batches]).mean(0))


def test_one_observation_is_a_batch_of_one():
    x = draw(3)
    layer = nn.running_normalizer(3)
    one, many = (fed(layer, [batch]) for batch in (x, x.unsqueeze(0)))
    close(one[0][0], many[0][0][0])
    close(tree.leaves(one[1]), tree.leaves(many[1]))


def test_without_training_the_buffers_are_used_and_kept():
    layer, still = nn.running_normalizer(3), nn.running_normalizer(3, train=False)
    _, buffers = fed(layer, [draw(9, 3) * 4 + 1])
    assert tree.paths(still.init(rng.key(0))[1]) == tree.paths(buffers)
    x = draw(2, 3, seed=1)
    out, after = still.apply(EMPTY, buffers, x)
    assert after is buffers
    close(out, (x - buffers["mean"]) / (buffers["var"] + 1e-8).sqrt())
    first = still(EMPTY, still.init(rng.key(0))[1], x)
    close(first, x, rtol=1e-6, atol=1e-6)  # nothing seen yet: mean 0, variance 1


def test_a_mask_takes_steps_out_of_the_statistics():
    layer, mask = nn.running_normalizer(3), rng.bernoulli(rng.key(1), 0.5, (4, 5))
    x = draw(4, 5, 3) * 2 + 1
    wild = torch.where(mask.unsqueeze(-1), x, torch.nan)
    (out,), buffers = fed(layer, [(wild, mask)])
    _, expected = fed(layer, [x[mask]])
    close(tree.leaves(buffers), tree.leaves(expected))
    close(out[mask], fed(layer, [x[mask]])[0][0])
    _, same = layer.apply(EMPTY, buffers, (x, torch.zeros_like(mask)))
    close(tree.leaves(same), tree.leaves(buffers))


def test_clip_and_dtypes():
    layer = nn.running_normalizer(3, clip=0.5)
    (out,), _ = fed(layer, [draw(50, 3)])
    plain = fed(nn.running_normalizer(3), [draw(50, 3)])[0][0]
    close(out, plain.clamp(-0.5, 0.5))
    assert out.abs().max() == 0.5
    for dtype in (torch.float32, torch.bfloat16):
        (half,), buffers = fed(nn.running_normalizer(3), [draw(50, 3).to(dtype)])
        assert half.dtype == dtype and buffers["mean"].dtype == DOUBLE
        torch.testing.assert_close(half.double(), plain, rtol=0.05, atol=0.05)
    own = nn.running_normalizer(3, dtype=torch.float32)
    assert fed(own, [draw(5, 3)])[1]["mean"].dtype == torch.float32


def test_counts_beyond_those_of_float32():
    layer = nn.running_normalizer(1)
    _, buffers = layer.init(rng.key(0))
    far = tree.replace(buffers, {"count": torch.tensor(2.0**26, dtype=DOUBLE)})
    _, after = layer.apply(EMPTY, far, draw(1, 1).float())
    assert after["count"] == 2**26 + 1 and after["mean"] != far["mean"]


def test_numbers_are_hyper_parameters():
    x, y = draw(6, 3), draw(5, 3, seed=1)

    def fn(eps, clip):
        layer = nn.running_normalizer(3, eps=eps, clip=clip)
        return fed(layer, [x, y])[0][1]

    pair = [torch.tensor(v, dtype=DOUBLE, requires_grad=True) for v in (0.1, 0.7)]
    close(fn(*pair), fn(0.1, 0.7))
    assert torch.autograd.gradcheck(fn, pair) and torch.autograd.gradgradcheck(fn, pair)


@pytest.mark.parametrize("train", [True, False])
def test_in_every_way(train):
    layer, mask = nn.running_normalizer(3, train=train), torch.tensor([True, False, True, True])
    check_derivatives(layer, draw(4, 3))
    check_vmapped(layer, draw(4, 3))
    check_compiled(layer, draw(4, 3))
    check_derivatives(layer, (draw(4, 3), mask))
    away = tree.map(lambda leaf: leaf.to("meta"), layer.init(rng.key(0))[1])
    out, after = layer.apply(EMPTY, away, draw(4, 3).to("meta"))
    assert out.device.type == after["mean"].device.type == "meta"


def test_statistics_of_stacked_tasks_are_apart():
    layer = nn.running_normalizer(3)
    _, buffers = vmap(layer.init)(rng.split(rng.key(0), 4))
    x = draw(4, 6, 3)
    _, after = vmap(layer.apply, (None, 0, 0))(EMPTY, buffers, x)
    close(after["mean"], x.mean(1), rtol=1e-3, atol=1e-3)
    assert after["count"].shape == (4,)


# ---- rewards


class Scripted(gymnasium.Env):
    """A world whose rewards are given."""

    action_space = observation_space = gymnasium.spaces.Discrete(2)

    def __init__(self, rewards, ends):
        self.steps = iter(zip(rewards, ends, strict=True))

    def step(self, action):
        reward, end = next(self.steps)
        return 0, reward, bool(end), False, {}


def test_rewards_are_those_of_gymnasium_step_by_step():
    rewards = (draw(12) * 3 + 1).tolist()
    world = NormalizeReward(Scripted(rewards, [False] * 12), gamma=0.9)
    theirs = [float(world.step(0)[1].item()) for _ in rewards]
    layer = nn.reward_normalizer(0.9)
    buffers, h, ours = layer.init(rng.key(0))[1], None, []
    for reward in rewards:
        now = torch.tensor([reward], dtype=DOUBLE)
        (out, h), buffers = layer.apply(EMPTY, buffers, (now, None, h))
        ours.append(out[0])
    close(torch.stack(ours), torch.tensor(theirs, dtype=DOUBLE))


def test_an_episode_starts_its_sum_anew():
    rewards, ends = draw(3, 12) * 3 + 1, rng.bernoulli(rng.key(3), 0.3, (3, 12))
    theirs, sums = RunningMeanStd(), np.zeros(3)
    layer = nn.reward_normalizer(0.9)
    buffers, h = layer.init(rng.key(0))[1], torch.zeros(3, dtype=DOUBLE)
    start = torch.ones(3, dtype=torch.bool)
    for t in range(12):  # as Stable-Baselines3: the sum is 0 after a step that ends an episode
        now = rewards[:, t]
        sums = sums * 0.9 + now.numpy()
        theirs.update(sums)
        expected = now / np.sqrt(theirs.var + 1e-8)
        sums[ends[:, t].numpy()] = 0
        given = (now.unsqueeze(0), start.unsqueeze(0), h)
        (out, h), buffers = layer.apply(EMPTY, buffers, given)
        start = ends[:, t]
        close(out[0], expected)
    close(buffers["var"], torch.tensor(theirs.var))


def test_a_trajectory_at_once_has_the_sums_of_its_steps():
    layer, rewards = nn.reward_normalizer(0.9), draw(6, 3)
    reset = rng.bernoulli(rng.key(1), 0.3, (6, 3))
    _, buffers = layer.init(rng.key(0))
    (out, h), after = layer.apply(EMPTY, buffers, (rewards, reset))
    sums, now = [], torch.zeros(3, dtype=DOUBLE)
    for t in range(6):
        now = rewards[t] + 0.9 * torch.where(reset[t], 0.0, now)
        sums.append(now)
    close(h, now)
    theirs = RunningMeanStd()
    theirs.update(torch.stack(sums).flatten().numpy())
    close(after["var"], torch.tensor(theirs.var))
    close(out, rewards / (after["var"] + 1e-8).sqrt())
    close(
        layer.apply(EMPTY, buffers, rewards)[0], layer.apply(EMPTY, buffers, (rewards, None))[0][0]
    )
    still = nn.reward_normalizer(0.9, train=False, clip=0.5)
    close(still(EMPTY, after, rewards), out.clamp(-0.5, 0.5))


def test_rewards_of_a_trajectory_of_trees():
    layer = nn.reward_normalizer(0.9)
    key = ("next", "reward")
    model = nn.recurrent_model(layer, key, key, "return", sequence=True)
    td = {"is_init": rng.bernoulli(rng.key(1), 0.3, (3, 6))}
    td = tree.new({**td, "next": tree.new({"reward": draw(3, 6)}, (3, 6))}, (3, 6))
    params, buffers = model.init(rng.key(0))
    out, after = model.apply(params, buffers, td)
    given = (td[key].mT, td["is_init"].mT)
    close(out[key].mT, layer.apply(EMPTY, buffers, given)[0][0])
    assert after["var"] != 1


def test_a_discount_is_a_hyper_parameter():
    rewards, reset = draw(6, 3), rng.bernoulli(rng.key(1), 0.3, (6, 3))

    def fn(gamma):
        layer = nn.reward_normalizer(gamma)
        return layer.apply(EMPTY, layer.init(rng.key(0))[1], (rewards, reset))[0]

    gamma = torch.tensor(0.9, dtype=DOUBLE, requires_grad=True)
    close(fn(gamma), fn(0.9))
    assert torch.autograd.gradcheck(fn, gamma) and torch.autograd.gradgradcheck(fn, gamma)
    assert grad(lambda g: fn(g)[0].sum())(gamma.detach()) != 0


def test_rewards_in_every_way():
    layer = nn.reward_normalizer(0.9)
    reset, h = rng.bernoulli(rng.key(1), 0.3, (4, 3)), draw(3)
    check_derivatives(layer, (draw(4, 3), reset, h))
    check_vmapped(layer, (draw(4, 3), None, h))
    check_compiled(layer, draw(4, 3))


LAYER, REWARDS = nn.running_normalizer(3), nn.reward_normalizer()
BUFFERS, SUMS = LAYER.init(rng.key(0))[1], REWARDS.init(rng.key(0))[1]
X = draw(4, 3)
REFUSED = [
    (lambda: nn.running_normalizer(0), ValueError, r"running_normalizer: shape\[0\] is 0"),
    (lambda: nn.running_normalizer(3, clip=-1.0), ValueError, "clip is -1.0"),
    (lambda: nn.running_normalizer(3, eps="a"), TypeError, "eps is a str"),
    (
        lambda: nn.running_normalizer(3, prior_count=0),
        ValueError,
        "prior_count is 0, expected",
    ),
    (
        lambda: LAYER.apply(EMPTY, BUFFERS, draw(4, 2)),
        ValueError,
        r"x has shape \(4, 2\)",
    ),
    (
        lambda: LAYER.apply(EMPTY, BUFFERS, X.long()),
        TypeError,
        "x is torch.int64, expected",
    ),
    (lambda: LAYER.apply(EMPTY, BUFFERS, (X, X)), TypeError, "mask is torch.float64, expected a b"),
    (
        lambda: LAYER.apply(EMPTY, BUFFERS, (X, X > 0)),
        ValueError,
        r"mask has shape \(4, 3\)",
    ),
    (lambda: LAYER.apply(EMPTY, EMPTY, X), ValueError, "buffers lack count, mean, var; expected"),
    (
        lambda: LAYER.apply(EMPTY, tree.replace(BUFFERS, {"mean": X}), X),
        ValueError,
        r"running_normalizer: buffers.mean has shape \(4, 3\), expected \(3,\) \(from running_norm",
    ),
    (
        lambda: nn.reward_normalizer(1.5),
        ValueError,
        "reward_normalizer: gamma is 1.5",
    ),
    (
        lambda: REWARDS.apply(EMPTY, SUMS, draw(0, 3)),
        ValueError,
        r"expected \[T, \*batch\], T",
    ),
    (lambda: REWARDS.apply(EMPTY, SUMS, (X, X)), TypeError, "reset is torch.float64"),
    (lambda: REWARDS.apply(EMPTY, SUMS, (X, X[0] > 0)), ValueError, r"reset has shape \(3,\)"),
    (lambda: REWARDS.apply(EMPTY, SUMS, (X, None, X)), ValueError, r"h has shape \(4, 3\), exp"),
]


@pytest.mark.parametrize(("call", "kind", "message"), REFUSED, ids=[row[2] for row in REFUSED])
def test_refusals_name_what_is_wrong(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_an_empty_batch_changes_nothing():
    layer = nn.running_normalizer(3)
    params, buffers = layer.init(rng.key(0))
    buffers = layer.apply(params, buffers, rng.normal(rng.key(1), (5, 3)))[1]
    out, after = layer.apply(params, buffers, torch.zeros(0, 3))
    assert out.shape == (0, 3) and tree.allclose(after, buffers, rtol=0, atol=0)
    reward = nn.reward_normalizer()
    params, buffers = reward.init(rng.key(0))
    after = reward.apply(params, buffers, torch.zeros(4, 0))[1]
    assert tree.allclose(after, buffers, rtol=0, atol=0)
