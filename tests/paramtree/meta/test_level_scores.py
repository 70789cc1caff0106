"""What a level was worth: against exact values, and against advantages worked out by hand."""

import numpy as np
import pytest
import torch

from paramtree import compose, nn, optim, rng, td_model, tree, vmap
from paramtree.envs import grid_level, grid_world, level_distribution, policy_value
from paramtree.meta import (
    Habitat,
    a2c_habitat,
    a2c_rule,
    algorithmic_regret,
    birth,
    births,
    l1_value_loss,
    lpg_network,
    lpg_population,
    lpg_rule,
    max_monte_carlo,
    positive_value_loss,
    random_score,
    train_agent,
)

WORLD = level_distribution("small")
RULE = lpg_rule(lpg_network(4, 5, n_embedding=3))
KEYS = rng.split(rng.key(9), 3)


def population(**options):
    return lpg_population(WORLD, 3, n_prediction=4, **{"workers": 4, "lifetime": 6, **options})


def agents(**options):
    """Three agents whose policies are far from uniform."""
    found = births(population(**options).habitat, RULE, rng.key(3), 3)
    weight = 20 * found["params", "actor", "weight"]
    return tree.replace(found, {"params.actor.weight": weight})


def start_values(level, weight):
    """Expected returns of an episode, exactly."""
    start, zero = level["table", "start_index"], torch.zeros_like(level["start"])
    drift = 1e-3 * weight[..., -1, :]
    return policy_value(level, weight[..., :-1, :], 1.0, start, zero, drift=drift)


def test_regret_is_a_difference_of_expected_returns():
    """An antagonist that doesn't move is as good as at its birth."""
    still = a2c_habitat(WORLD, workers=400, actor_rate=0.0, critic_rate=0.0)
    habitat, ours = population(workers=400).habitat, agents(lifetime=1)
    found = algorithmic_regret(habitat, still, horizon=WORLD.max_steps, length=1)(ours, KEYS)
    rule = a2c_rule()
    theirs = vmap(lambda key, level: birth(still, rule, key, level))(
        rng.fold_in(KEYS, "birth"), ours["level"]
    )
    wanted = [start_values(x["level"], x["params", "actor", "weight"]) for x in (theirs, ours)]
    assert (wanted[0] - wanted[1]).abs().max() > 0.3
    # returns of 400 workers, each a sum of a few rewards below 1 in size
    assert torch.allclose(found.double(), wanted[0] - wanted[1], atol=0.2)


def test_the_antagonist_lives_as_long_as_the_agent():
    antagonist, habitat = a2c_habitat(WORLD, workers=8), population().habitat
    score = algorithmic_regret(habitat, antagonist, horizon=10, length=5)
    ours = tree.replace(agents(), {"lifetime": torch.tensor([1, 4, 2])})
    found = score(ours, KEYS)
    for i in range(3):
        alone = score(tree.lock(ours[i : i + 1]), KEYS[i : i + 1])
        assert torch.allclose(alone[0], found[i], atol=1e-6)
    pieces = algorithmic_regret(habitat, antagonist, horizon=10, length=5, chunk=2)
    assert torch.allclose(pieces(ours, KEYS), found, atol=1e-6)
    # the second one, update by update
    rule, level = a2c_rule(), ours[1]["level"]
    state = birth(antagonist, rule, rng.fold_in(KEYS[1], "birth"), level)
    for k in range(4):
        now = rng.fold_in(rng.fold_in(KEYS[1], "life"), k)
        parts = antagonist.agent, antagonist.env, antagonist.optimizer, tree.new({})
        state, _ = train_agent(rule, *parts, level, state, now, updates=1, length=5)
    still = antagonist._replace(optimizer=optim.sgd(0.0))
    made = Habitat(
        antagonist.agent._replace(init=lambda key: (state["params"], state["buffers"])),
        *still[1:],
    )
    asked = tree.replace(ours, {"lifetime": torch.ones(3, dtype=torch.int64)})
    again = algorithmic_regret(habitat, made, horizon=10, length=1)(
        tree.lock(asked[1:2]), KEYS[1:2]
    )
    assert torch.allclose(again[0], found[1], atol=1e-6)


def test_an_antagonist_that_learns_is_missed_more():
    antagonist = a2c_habitat(WORLD, workers=32)
    ours = tree.replace(agents(), {"lifetime": torch.ones(3, dtype=torch.int64)})
    late = tree.replace(ours, {"lifetime": torch.full((3,), 40)})
    habitat = population(workers=32).habitat
    score = algorithmic_regret(habitat, antagonist, horizon=WORLD.max_steps)
    assert (score(late, KEYS) - score(ours, KEYS)).mean() > 0.1


def test_regret_mapped_is_regret():
    """Where nobody can read lifetimes, the antagonist's longest one bounds the updates."""
    habitat, antagonist = population().habitat, a2c_habitat(WORLD, workers=2, lifetime=2)
    score = algorithmic_regret(habitat, antagonist, horizon=3, length=2)
    ours = tree.replace(agents(), {"lifetime": torch.tensor([1, 2, 2])})
    for row in vmap(score)(tree.stack([ours, ours]), torch.stack([KEYS, KEYS])):
        assert torch.allclose(row, score(ours, KEYS), atol=1e-6)


# ------------------------------------------------------------- a corridor that is known by heart

INPUTS = [("observation", "index"), ("observation", "time")]
VALUES = torch.tensor([0.1, -0.4, 0.9, 0.2])


def corridor():
    """A walk of three steps to the right, to a reward of 2 that ends the episode; two agents."""
    level = grid_level(
        walls=torch.zeros(16, dtype=torch.bool),
        side=4,
        start=0,
        max_steps=10,
        reward=torch.tensor([2.0]),
        p_terminate=torch.tensor([1.0]),
        p_respawn=torch.tensor([0.0]),
        object_cell=torch.tensor([3]),
    )
    agent = compose(actor=td_model(nn.table(32, 5), INPUTS, "logits"))
    critic = td_model(nn.table(32, 1), INPUTS, "state_value")
    habitat = Habitat(agent, grid_world(), lambda key: level, optim.sgd(0.0), workers=3)
    walk = torch.zeros(33, 5)
    walk[:-1, 3] = 100.0  # right
    value = torch.zeros(33, 1)
    value[16:20, 0] = VALUES  # with the object there
    one = {
        "params": tree.new({"actor": tree.new({"weight": walk})}),
        "buffers": agent.init(rng.key(0))[1],
        "level": level,
        "critic": tree.new({"params": tree.new({"weight": value})}),
    }
    first = tree.new(one)
    second = tree.replace(first, {"critic.params.weight": 3 * value})
    return habitat, critic, tree.stack([first, second])


def advantages(values, gamma, lmbda):
    """Five steps: an episode of three, and two of the next, that goes on."""
    reward = [0.0, 0.0, 2.0, 0.0, 0.0]
    now = [values[i] for i in (0, 1, 2, 0, 1)]
    following = [values[1], values[2], 0.0, values[1], values[2]]
    over, found, later = [0, 0, 1, 0, 0], np.zeros(5), 0.0
    for t in reversed(range(5)):
        delta = reward[t] + gamma * following[t] - now[t]
        later = delta + gamma * lmbda * (1 - over[t]) * later
        found[t] = later
    return found, np.array(now)


@pytest.mark.parametrize("gamma, lmbda", [(0.9, 0.8), (1.0, 0.0)])
def test_scores_of_values(gamma, lmbda):
    habitat, critic, both = corridor()
    keys = rng.split(rng.key(0), 2)
    options = {"length": 5, "gamma": gamma}
    positive = positive_value_loss(habitat, critic, lmbda=lmbda, **options)(both, keys)
    size = l1_value_loss(habitat, critic, lmbda=lmbda, **options)(both, keys)
    lacking = max_monte_carlo(habitat, critic, **options)(both, keys)
    for i, scale in enumerate((1.0, 3.0)):
        adv, values = advantages(scale * VALUES.double().numpy(), gamma, lmbda)
        assert float(positive[i]) == pytest.approx(np.maximum(adv, 0).mean(), rel=1e-5)
        assert float(size[i]) == pytest.approx(np.abs(adv).mean(), rel=1e-5)
        assert float(lacking[i]) == pytest.approx(2.0 * gamma**2 - values.mean(), rel=1e-5)


def test_a_random_score_is_each_agents_own():
    ours = agents()
    found = random_score()(ours, KEYS)
    assert found.shape == (3,) and found.unique().numel() == 3
    assert torch.equal(random_score()(tree.lock(ours[1:]), KEYS[1:]), found[1:])


def test_bad_input():
    habitat, antagonist = population().habitat, a2c_habitat(WORLD)
    for name in ("horizon", "length", "chunk"):
        with pytest.raises(ValueError, match=f"algorithmic_regret: {name} is 0, expected at least"):
            algorithmic_regret(habitat, antagonist, **{"horizon": 5, name: 0})
