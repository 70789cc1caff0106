"""Populations: levels, hyper-parameters and lengths of lives, and a task that breaks alone."""

import math

import pytest
import torch

from paramtree import optim, rng, tree, vmap
from paramtree.envs import level_distribution
from paramtree.meta import (
    Bandit,
    Curriculum,
    Habitat,
    a2c_habitat,
    a2c_rule,
    agent_model,
    birth,
    births,
    lpg_network,
    lpg_population,
    lpg_rule,
    lpg_training,
    reward_curve,
)

SMALL = level_distribution("small")
NETWORK = lpg_network(4, 6, cell="gru", n_embedding=3, gamma_input=False)
RULE = lpg_rule(NETWORK)


def training(optimizer=None, world=SMALL, n_tasks=4, curriculum=None, average=0.0, **options):
    sizes = {"n_prediction": 4, "workers": 2, "lifetime": 6, "curriculum": curriculum}
    population = lpg_population(world, n_tasks, **{**sizes, **options})
    return lpg_training(
        RULE, {world.name: population}, optimizer or optim.sgd(1.0), updates=2, length=5
    )


def lived(train, steps, key=0):
    state = train.init(rng.key(key))
    for _ in range(steps):
        state, _ = train.step(state)
    return state


def poisoned(state, task, path=("level", "table", "reward")):
    """A state in which numbers of one task are NaN."""
    where = ("agents", "small", *path)
    value = state[where].clone()
    value[task] = math.nan
    return tree.replace(state, {where: value})


def rows(agents, wanted):
    return [x[wanted] for x in tree.leaves(agents)]


# ------------------------------------------------------------------------------------- bad tasks


@pytest.mark.parametrize("path", [("level", "table", "reward"), ("params", "actor", "weight")])
def test_a_task_that_is_not_finite_is_named_and_left_out(path):
    train = training(lifetime=60)
    state = lived(train, 1)
    clean, _ = train.step(state)
    after, metrics = train.step(poisoned(state, 2, path))
    assert metrics["bad"].tolist() == [False, False, True, False]
    assert all(x.isfinite().all() for x in tree.leaves(metrics.exclude("bad")))
    assert all(x.isfinite().all() for x in tree.leaves(after["rule"]))
    kept = torch.tensor([0, 1, 3])
    pairs = zip(
        rows(clean["agents", "small"], kept), rows(after["agents", "small"], kept), strict=True
    )
    assert all(torch.equal(a, b) for a, b in pairs)
    assert metrics["age"] == after["agents", "small", "age"][kept].double().mean()
    again, metrics = train.step(after)
    assert not metrics["bad"].any() and again["agents", "small", "age"][2] == 2
    assert all(x.isfinite().all() for x in tree.leaves(again["agents", "small"]))


def test_what_is_left_is_the_mean_gradient_of_the_others():
    """With a rate of 1 a step takes off the gradient; a task's alone is its part of the mean."""
    train = training(lifetime=60)
    state = lived(train, 1)
    state = tree.replace(state, {"rule.pi_hat.weight": rng.normal(rng.key(1), (1, 6))})
    bad = poisoned(state, 2)

    def slope(state):
        return tree.map(torch.sub, state["rule"], train.step(state)[0]["rule"])

    whole, left = slope(state), slope(bad)
    # the sum of all four less three times the mean of the others is the gradient of the one
    alone = tree.map(lambda w, x: 4 * w - 3 * x, whole, left)
    others = [poisoned(poisoned(poisoned(state, 0), 1), 3)]
    wanted = slope(others[0])
    for mine, own in zip(tree.leaves(alone), tree.leaves(wanted), strict=True):
        torch.testing.assert_close(mine, own, rtol=1e-3, atol=1e-6)


def test_where_all_are_bad_the_metrics_say_so():
    train = training(lifetime=60)
    state = lived(train, 1)
    for task in range(4):
        state = poisoned(state, task)
    metrics = train.step(state)[1]
    assert metrics["bad"].all() and metrics["gradient_norm"] == 0.0
    assert not metrics["loss"].isfinite()


def test_no_task_has_more_than_its_share():
    """Some are below the bound and keep their gradients, the others are brought down to it."""
    population = lpg_population(SMALL, 4, n_prediction=4, workers=2, lifetime=60)

    def train(task_clip):
        return lpg_training(
            RULE, {"small": population}, optim.sgd(1.0), updates=2, length=5, task_clip=task_clip
        )

    state = lived(train(None), 1)
    state = tree.replace(state, {"rule.pi_hat.weight": rng.normal(rng.key(1), (1, 6))})

    def slope(state, task_clip=None):
        return tree.map(torch.sub, state["rule"], train(task_clip).step(state)[0]["rule"])

    alone = []
    for task in range(4):
        left = state
        for other in set(range(4)) - {task}:
            left = poisoned(left, other)
        alone.append(slope(left))
    norms = [float(tree.norm(part)) for part in alone]
    bound = sum(norms) / 4
    shares = [min(1.0, bound / norm) / 4 for norm in norms]
    for mine, *parts in zip(
        tree.leaves(slope(state, bound)), *map(tree.leaves, alone), strict=True
    ):
        wanted = sum(share * part for share, part in zip(shares, parts, strict=True))
        torch.testing.assert_close(mine, wanted, rtol=1e-3, atol=1e-6)
    with pytest.raises(ValueError, match="task_clip is 0, expected more than 0"):
        train(0)


def test_chunks_change_nothing_but_rounding():
    population = lpg_population(SMALL, 5, n_prediction=4, workers=2, lifetime=6)
    states = []
    for chunk in (None, 2):
        train = lpg_training(
            RULE, {"small": population}, optim.sgd(1.0), updates=2, length=5, chunk=chunk
        )
        states.append(lived(train, 3))
    for one, other in zip(*map(tree.leaves, states), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


# --------------------------------------------------------------------- what a life begins with


def test_lives_have_lengths_of_their_own():
    habitat = a2c_habitat(SMALL, workers=2, lifetime=(10, 250))
    lengths = births(habitat, a2c_rule(), rng.key(0), 400)["lifetime"]
    assert lengths.min() >= 10 and lengths.max() <= 250
    # log-uniform: as many below the geometric mean as above
    assert abs(float((lengths < 50).double().mean()) - 0.5) < 0.1
    state = lived(training(lifetime=(2, 4)), 3)
    ages, lengths = state["agents", "small", "age"], state["agents", "small", "lifetime"]
    assert ((ages - 2) < lengths).all() and set(lengths.tolist()) <= {2, 3, 4}
    for bounds, error, text in (
        (0, ValueError, "lifetime is 0, expected at least 1"),
        ((0, 3), ValueError, "lifetime is 0, expected at least 1"),
        ((3, 2), ValueError, r"lifetime is \(3, 2\), expected \(low, high\)"),
        ((1, 2, 3), ValueError, r"lifetime is \(1, 2, 3\), expected \(low, high\)"),
        ((), ValueError, r"lifetime is \(\), expected \(low, high\)"),
        (2.5, TypeError, "lifetime is 2.5, expected an int"),
        ((1, 2.5), TypeError, "lifetime is 2.5, expected an int"),
    ):
        with pytest.raises(error, match=f"birth: {text}"):
            births(habitat._replace(lifetime=bounds), a2c_rule(), rng.key(0), 2)


def test_a_rule_that_knows_of_lifetimes_is_told():
    rule = lpg_rule(lpg_network(4, 6, lifetime_input=True))
    population = lpg_population(SMALL, 3, n_prediction=4, workers=2, lifetime=(10, 20))
    agents = births(population.habitat, rule, rng.key(0), 3, stagger=True)
    assert agents["rule", "lifetime"].tolist() == agents["lifetime"].tolist()
    assert agents["rule", "age"].tolist() == agents["age"].tolist()


def test_each_life_has_the_rates_of_its_arm():
    """Lives of the arm 0 learn nothing, those of the arm 1 do, though nothing else differs."""
    population = lpg_population(
        SMALL, 6, n_prediction=4, workers=2, lifetime=6, arm_rates=(0.0, 40.0), arm_coeffs=(0.5, 1)
    )
    assert population.bandit.arms.batch_size == (4,)
    train = lpg_training(RULE, {"small": population}, optim.sgd(0.0), updates=2, length=5)
    first = train.init(rng.key(0))
    head = rng.normal(rng.key(1), (1, 6))
    first = tree.replace(first, {"rule.pi_hat.weight": head})
    after = train.step(first)[0]
    arm = after["agents", "small", "arm"]
    assert set(arm.tolist()) == {0, 1, 2, 3}
    moved = (
        (
            after["agents", "small", "params", "actor", "weight"]
            != first["agents", "small", "params", "actor", "weight"]
        )
        .flatten(1)
        .any(1)
    )
    assert moved.tolist() == (arm >= 2).tolist()
    scale = after["agents", "small", "hyper", "optimizer", "scale"]
    torch.testing.assert_close(scale, (arm >= 2).float())
    assert after["bandits", "small", "trials"].sum() == 0
    for _ in range(3):
        after = train.step(after)[0]
    # all six have died once: two after the third step, which were old at the start, and so on
    assert after["bandits", "small", "trials"].sum() == 6


def test_a_bandits_result_is_the_return_of_an_episode():
    state = lived(training(arm_rates=(40.0,), lifetime=100), 2)
    agents = state["agents", "small"]
    assert (agents["episodes"] > 0).any() and torch.isfinite(agents["earned"]).all()


def test_a_curriculum_chooses_the_levels():
    pool = SMALL.sample(rng.split(rng.key(7), 2))
    asked = []

    def levels(n):
        return tree.take(pool, torch.arange(n) % 2)

    def renew(state, agents, over, key):
        asked.append(over.tolist())
        return tree.new({"count": state["count"] + 1}), levels(len(over))

    def init(key, n):
        return tree.new({"count": torch.zeros(())}), levels(n)

    state = lived(training(curriculum=Curriculum(init, renew)), 3)
    walls = state["agents", "small", "level", "walls"]
    assert torch.equal(walls, pool["walls"][torch.arange(4) % 2])
    assert len(asked) == int(state["curricula", "small", "count"]) > 0
    assert any(map(any, asked))


def test_tables_and_perceptrons_learn_by_one_rule():
    """Worlds that show an index and worlds that show an image, with other numbers of actions."""
    worlds = [level_distribution("rand_small", n_actions=9), level_distribution("chain_short")]
    populations = {
        world.name: lpg_population(world, 2, n_prediction=4, workers=2, lifetime=6, hidden=(5,))
        for world in worlds
    }
    train = lpg_training(RULE, populations, optim.sgd(1.0), updates=2, length=5)
    state = train.init(rng.key(0))
    state = tree.replace(state, {"rule.pi_hat.weight": rng.normal(rng.key(1), (1, 6))})
    after, metrics = train.step(state)
    assert metrics["loss"].isfinite() and metrics["gradient_norm"] > 0
    net = ("params", "actor", "linear_1", "weight")
    assert after[("agents", "rand_small", *net)].shape == (2, 9, 5)
    assert after["agents", "chain_short", "params", "actor", "weight"].shape[-1] == 2
    assert not torch.equal(
        after[("agents", "rand_small", *net)], state[("agents", "rand_small", *net)]
    )


def test_a_perceptron_sees_pixels_and_time():
    world = level_distribution("rand_small")
    model = agent_model(world, 3, "logits", hidden=())
    params, buffers = model.init(rng.key(0))
    shape = world.observation_shape
    image, time = rng.uniform(rng.key(1), (7, *shape)), torch.arange(7)
    seen = tree.new({"observation": tree.new({"image": image, "time": time}, (7,))}, (7,))
    weight, bias = params["linear_0", "weight"], params["linear_0", "bias"]
    inputs = torch.cat([image.flatten(1), 0.001 * time[:, None]], 1)
    torch.testing.assert_close(model(params, buffers, seen)["logits"], inputs @ weight.T + bias)


def test_rates_may_be_tensors_of_each_life():
    """A curve under rates that differ by agent is made of the curves under each."""
    agent = a2c_habitat(SMALL, workers=2).agent
    open_habitat = Habitat(
        agent, SMALL.env, SMALL.sample, lambda hyper: optim.sgd(hyper["rate"]), 2, 3
    )
    levels = SMALL.sample(rng.split(rng.key(0), 2))
    rates = torch.tensor([0.5, 40.0])
    rule, none = a2c_rule(), tree.new({})
    hypers = tree.new({"optimizer": tree.new({"rate": rates}, (2,))}, (2,))
    mixed = reward_curve(
        open_habitat, rule, none, levels, rng.key(1), updates=3, length=5, hypers=hypers
    )
    for i, rate in enumerate(rates.tolist()):
        fixed = open_habitat._replace(optimizer=optim.sgd(rate))
        alone = reward_curve(fixed, rule, none, levels, rng.key(1), updates=3, length=5)
        torch.testing.assert_close(mixed[i], alone[i])
    with pytest.raises(ValueError, match="birth: hyper is None, expected a tree"):
        birth(open_habitat, rule, rng.key(0))
    assert vmap(lambda key: birth(agent_habitat(agent), rule, key)["age"])(
        rng.split(rng.key(0), 2)
    ).tolist() == [0, 0]


def agent_habitat(agent):
    return Habitat(agent, SMALL.env, SMALL.sample, optim.sgd(0.1), 2, 3)


def test_a_bandit_of_whole_numbers_on_the_device_of_the_key():
    train = training(arm_rates=(10, 40), arm_coeffs=(0, 1))
    state = train.init(rng.key(0))
    assert train.step(state)[1]["loss"].isfinite()
    elsewhere = train.init(rng.key(0, device="meta"))
    assert tree.paths(elsewhere) == tree.paths(state)
    for x, y in zip(tree.leaves(elsewhere), tree.leaves(state), strict=True):
        assert x.is_meta and x.shape == y.shape and x.dtype == y.dtype


def test_bandits_are_refused_with_reasons():
    for arms, text in (
        (tree.new({"rate": torch.ones(3)}), r"arms has batch size \[\], expected \[n_arms\]"),
        (tree.new({"rate": torch.ones(0)}, (0,)), r"arms has batch size \[0\], expected"),
    ):
        population = lpg_population(SMALL, 2, arm_rates=(40.0,))._replace(bandit=Bandit(arms))
        with pytest.raises(ValueError, match=text):
            lpg_training(RULE, {"small": population}, optim.sgd(1.0)).init(rng.key(0))
