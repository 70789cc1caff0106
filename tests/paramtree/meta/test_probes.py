"""Probes: what is drawn in pictures is what happened, against numpy and hand-worked returns."""

import numpy as np
import pytest
import torch

from paramtree import rng, tree
from paramtree.envs import level_distribution, policy_value
from paramtree.meta import (
    linear_reading,
    lpg_network,
    lpg_population,
    lpg_rule,
    probe_agents,
    probe_states,
    probe_trajectories,
)

WORLD = level_distribution("small")
NETWORK = lpg_network(4, 5, cell="gru", n_embedding=3, gamma_input=False)
RULE = lpg_rule(NETWORK)
HABITAT = lpg_population(WORLD, 1, n_prediction=4, workers=3, lifetime=9).habitat


def rule_params():
    head = rng.normal(rng.key(11), (1, 5))
    return tree.replace(NETWORK.init(rng.key(2))[0], {"pi_hat.weight": head})


@pytest.fixture(scope="module")
def agents():
    levels = WORLD.sample(rng.split(rng.key(1), 2))
    return probe_agents(RULE, rule_params(), HABITAT, levels, rng.key(0), ages=(0, 2, 5), length=6)


def test_agents_live_one_life(agents):
    assert agents.batch_size == (3, 2) and agents["age"].tolist() == [[0, 0], [2, 2], [5, 5]]
    levels = WORLD.sample(rng.split(rng.key(1), 2))
    short = probe_agents(RULE, rule_params(), HABITAT, levels, rng.key(0), ages=(2,), length=6)
    for a, b in zip(tree.leaves(short[0]), tree.leaves(agents[1]), strict=True):
        assert torch.equal(a, b)
    weights = agents["params", "actor", "weight"]
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])


def test_returns_and_errors_are_those_of_the_trajectory(agents):
    gamma = 0.9
    td = probe_trajectories(
        RULE, rule_params(), HABITAT, agents, rng.key(3), length=30, gamma=gamma
    )
    assert td.batch_size == (3, 2, 3, 30) and td.is_locked
    assert td["next", "done"].any()  # episodes end in it
    for i, j in np.ndindex(3, 2):
        row, agent = td[i, j], agents[i, j]
        weight = agent["params", "actor", "weight"].double()
        drift = 1e-3 * weight[-1]

        def value(seen, weight=weight, drift=drift, agent=agent):
            parts = seen["index"], seen["time"]
            level = agent["level"]
            return policy_value(level, weight[:-1], gamma, *parts, drift=drift).numpy()

        now, after = value(row["observation"]), value(row["next", "observation"])
        reward = row["next", "reward"].double().numpy()
        done = row["next", "done"].numpy()
        np.testing.assert_allclose(row["state_value"].numpy(), now, atol=1e-6)
        for w in range(3):
            for t in range(30):
                wanted = reward[w, t] + gamma * (0.0 if done[w, t] else after[w, t]) - now[w, t]
                assert float(row["td_error"][w, t]) == pytest.approx(wanted, abs=1e-6)
                total, discount = 0.0, 1.0
                for u in range(t, 30):
                    total += discount * reward[w, u]
                    discount *= gamma
                    if done[w, u]:
                        break
                else:
                    total += discount * after[w, 29]
                assert float(row["return"][w, t]) == pytest.approx(total, abs=1e-6)


def test_what_is_told_is_what_the_rule_says(agents):
    td = probe_trajectories(RULE, rule_params(), HABITAT, agents, rng.key(3), length=7)
    log_prob = td["logits"].log_softmax(-1).gather(-1, td["action"].unsqueeze(-1))[..., 0]
    inputs = {
        "reward": td["next", "reward"],
        "done": td["next", "done"],
        "action_prob": log_prob.exp(),
        "prediction": td["prediction"],
        "next": tree.new({"prediction": td["next", "prediction"]}, td.batch_size),
    }
    out = NETWORK(rule_params(), tree.new({}), tree.new(inputs, td.batch_size))
    assert torch.allclose(out["pi_hat"], td["pi_hat"], atol=1e-6)
    assert torch.allclose(out["y_hat"], td["y_hat"], atol=1e-6)
    assert td["pi_hat"].std() > 0.01


def test_tables_of_states(agents):
    states = probe_states(HABITAT, agents, gammas=(0.0, 0.5, 0.9))
    n_states = WORLD.n_states
    assert states.batch_size == (3, 2, n_states) and states["value"].shape[-1] == 3
    for i, j in np.ndindex(3, 2):
        agent, row = agents[i, j], states[i, j]
        level, index = agent["level"], torch.arange(n_states)
        wanted = agent["params", "prediction", "weight"][:-1].softmax(-1)
        assert torch.allclose(row["prediction"], wanted, atol=1e-6)
        policy = agent["params", "actor", "weight"].double()
        value = policy_value(
            level, policy[:-1], 0.9, index, torch.zeros_like(index), drift=1e-3 * policy[-1]
        )
        assert torch.allclose(row["value"][:, 2], value, atol=1e-6)
        # where a walk from the start leads to
        side, walls = int(level["side"]), level["walls"]
        todo, met = [int(level["start"])], set()
        while todo:
            cell = todo.pop()
            if cell in met or walls[cell]:
                continue
            met.add(cell)
            r, c = divmod(cell, side)
            near = [(r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1)]
            todo += [y * side + x for y, x in near if 0 <= y < side and 0 <= x < side]
        exist = int(level["n_objects"])
        cells = walls.shape[0]
        by_hand = [s % cells in met and s // cells < 2**exist for s in range(n_states)]
        assert row["reachable"].tolist() == by_hand


def test_reading_is_ridge_regression():
    gen = np.random.default_rng(0)
    y, v = gen.random((2, 40, 3)), gen.normal(size=(2, 40, 2))
    w = gen.random((2, 40))
    reading, explained = linear_reading(*map(torch.tensor, (y, v, w)), ridge=0.05)
    for i in range(2):
        p = w[i] / w[i].sum()
        # as an unconstrained least squares with three more rows, and a free constant
        rows = np.sqrt(p)[:, None] * np.column_stack([y[i], np.ones(40)])
        spread = (p @ (y[i] - p @ y[i]) ** 2).mean()
        more = np.column_stack([np.sqrt(0.05 * spread) * np.eye(3), np.zeros(3)])
        right = np.concatenate([np.sqrt(p)[:, None] * v[i], np.zeros((3, 2))])
        fit = np.linalg.lstsq(np.concatenate([rows, more]), right, rcond=None)[0]
        wanted = np.column_stack([y[i], np.ones(40)]) @ fit
        np.testing.assert_allclose(reading[i].numpy(), wanted, atol=1e-10)
        mean = p @ v[i]
        share = 1 - (p @ (wanted - v[i]) ** 2) / (p @ (v[i] - mean) ** 2)
        np.testing.assert_allclose(explained[i].numpy(), share, atol=1e-10)
    small = linear_reading(torch.tensor(1e-6 * y), *map(torch.tensor, (v, w)), ridge=0.05)
    assert torch.allclose(small[0], reading, atol=1e-8)
    same = linear_reading(torch.ones(4, 3), torch.arange(4.0).unsqueeze(-1))
    assert torch.allclose(same[0], torch.full((4, 1), 1.5, dtype=torch.float64))
    exact = linear_reading(torch.tensor(y), torch.tensor(y @ np.ones((3, 1)) + 2), ridge=1e-12)
    assert torch.allclose(exact[1], torch.ones(2, 1, dtype=torch.float64))


def test_bad_input(agents):
    levels = WORLD.sample(rng.split(rng.key(1), 2))
    for ages in ((), (3, 1), (-1, 2), (1, 1)):
        with pytest.raises(ValueError, match="probe_agents: ages is"):
            probe_agents(RULE, rule_params(), HABITAT, levels, rng.key(0), ages=ages)
    with pytest.raises(TypeError, match="probe_agents: ages is .*, expected ints"):
        probe_agents(RULE, rule_params(), HABITAT, levels, rng.key(0), ages=(0.5, 2))
    with pytest.raises(ValueError, match=r"levels has batch size \[\], expected \[n\]"):
        probe_agents(RULE, rule_params(), HABITAT, tree.lock(levels[0]), rng.key(0))
    with pytest.raises(ValueError, match="probe_trajectories: length is 0"):
        probe_trajectories(RULE, rule_params(), HABITAT, agents, rng.key(0), length=0)
    moving = tree.replace(agents, {"level": tree.exclude(agents["level"], "object_cell")})
    with pytest.raises(ValueError, match="probe_states: the agents' levels have no object_cell"):
        probe_states(HABITAT, moving)
    with pytest.raises(ValueError, match="probe_states: gammas is empty"):
        probe_states(HABITAT, agents, gammas=())
    y, v = torch.rand(5, 3), torch.rand(5, 2)
    for parts, text in (
        ((y, v[:4]), "prediction has shape"),
        ((y, v, v), "weight has shape"),
    ):
        with pytest.raises(ValueError, match=f"linear_reading: {text}"):
            linear_reading(*parts)
    with pytest.raises(ValueError, match="linear_reading: ridge is 0, expected more than 0"):
        linear_reading(y, v, ridge=0)
