"""Meta-training by evolution strategies: whole lives in pairs, replayed here one by one."""

from functools import partial

import pytest
import torch
from torch.distributions import Categorical

from paramtree import envs, meta, optim, rng, tree, vmap
from paramtree.meta.es_parts import ascent
from paramtree.meta.lives import final_share
from paramtree.meta.scores import curve_scores
from tests.benchmarks.bench_meta_modes import peak_memory

WORLD = envs.level_distribution("small")
NETWORK = meta.lpg_network(
    4, 6, cell="gru", n_embedding=3, gamma_input=False, lifetime_input=True, activation=torch.relu
)
RULE = meta.lpg_rule(NETWORK)


def population(n=3, lifetime=(2, 5), workers=4, **options):
    return meta.lpg_population(
        WORLD, n, n_prediction=4, workers=workers, lifetime=lifetime, **options
    )


def training(optimizer=None, groups=("a",), length=10, options=(), **sizes):
    populations = {name: population(**sizes) for name in groups}
    return meta.es_training(RULE, populations, optimizer, length=length, **dict(options))


def equal(a, b):
    pairs = zip(tree.leaves(a), tree.leaves(b), strict=True)
    return tree.paths(a) == tree.paths(b) and all(torch.equal(x, y) for x, y in pairs)


def close(a, b):
    for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------------------------- by another road


def lived(habitat, params, agent, key, length=10):
    """One agent's rewards at each of its updates, and where it ended, by the plain loop."""
    rewards = []
    for k in range(int(agent["lifetime"])):
        agent, (td,) = meta.train_agent(
            RULE,
            *habitat[:2],
            habitat.optimizer,
            params,
            agent["level"],
            agent,
            rng.fold_in(key, k),
            updates=1,
            length=length,
        )
        rewards.append(td["next", "reward"].mean())
    return torch.stack(rewards), agent


def return_of(habitat, agent, key, horizon):
    key, level = rng.fold_in(key, "return"), agent["level"]
    noise = habitat.env.noise(level, rng.fold_in(key, "reset"), (habitat.workers,))
    start = habitat.env.reset(level, noise)
    acting = agent["params"], agent["buffers"], level
    _, _, td = envs.rollout(habitat.env, habitat.agent, *acting, start, key, horizon, Categorical)
    total = 0.0
    for w in range(habitat.workers):
        for t in range(horizon):
            total += float(td["next", "reward"][w, t])
            if td["next", "done"][w, t]:
                break
    return torch.tensor(total / habitat.workers)


@pytest.mark.parametrize("score", ["final", "lifetime", "return"])
def test_a_step_is_that_of_lives_led_one_by_one(score):
    """Each pair on its own level, with the same key, and the better one's noise is what counts."""
    n, sigma = 3, 0.3
    options = {"sigma": sigma, "score": score, "horizon": 12}
    train = training(optim.sgd(1.0), n=n, options=options)
    state = train.init(rng.key(0))
    after, metrics = train.step(state)
    own, habitat = rng.fold_in(rng.fold_in(state["key"], 0), "a"), population(n).habitat
    noise = meta.perturbations(rng.fold_in(own, "noise"), state["rule"], n)
    keys, agents = rng.split(rng.fold_in(own, "live"), n), state["agents", "a"]
    fitness, slope = [], tree.zeros_like(state["rule"])
    for i in range(n):
        pair = []
        for sign in (1, -1):
            eps = tree.lock(noise[i])
            params = tree.add(state["rule"], tree.scale(eps, sign * sigma))
            rewards, end = lived(habitat, params, tree.lock(agents[i]), keys[i])
            part = max(1, len(rewards) // 5)
            pair.append(
                {
                    "final": rewards[-part:].mean(),
                    "lifetime": rewards.mean(),
                    "return": return_of(habitat, end, keys[i], 12),
                }[score]
            )
        sign = float(torch.sign(pair[0] - pair[1]))
        slope = tree.add(slope, tree.scale(eps, sign / (2 * sigma * n)))
        fitness += pair
    fitness = torch.stack(fitness)
    torch.testing.assert_close(metrics["fitness"], fitness.mean())
    torch.testing.assert_close(metrics["fitness_min"], fitness.min())
    torch.testing.assert_close(metrics["fitness_max"], fitness.max())
    assert float(tree.norm(slope)) > 0
    close(tree.sub(after["rule"], state["rule"]), slope)
    torch.testing.assert_close(metrics["gradient_norm"], tree.norm(slope))


def test_agents_that_cannot_be_looked_at_stop_at_their_own_end_too():
    """Under vmap all go through the longest possible life, and the numbers are the same."""
    train = training(n=2, lifetime=(1, 4), length=6)
    states = [train.init(rng.key(seed)) for seed in (0, 1)]
    mapped, metrics = vmap(train.step)(tree.stack(states))
    for i, state in enumerate(states):
        after, measured = train.step(state)
        close(mapped["rule"][i], after["rule"])
        torch.testing.assert_close(metrics["fitness"][i], measured["fitness"])
        torch.testing.assert_close(metrics["reward"][i], measured["reward"])


# -------------------------------------------------------------------------------------- the state


def test_a_step_is_a_pure_function_of_one_tree():
    train = training(options={"average": 0.75})
    state = train.init(rng.key(0))
    before = tree.map(torch.clone, state)
    after, metrics = train.step(state)
    again, _ = train.step(tree.map(torch.clone, before))
    assert equal(state, before) and equal(after, again) and after.is_locked and metrics.is_locked
    assert sorted(tree.paths(after)) == sorted(tree.paths(state))
    mine, theirs = (dict(zip(tree.paths(s), tree.leaves(s), strict=True)) for s in (after, state))
    for path, x in mine.items():
        assert x.shape == theirs[path].shape and x.dtype == theirs[path].dtype, path
        assert not x.requires_grad
    names = "bad fitness fitness_max fitness_min gradient_norm lifetime reward sigma"
    assert sorted(metrics.keys()) == names.split()
    assert after["step"] == 1 and metrics["bad"].tolist() == [False] * 3
    wanted = tree.map(lambda a, p: 0.75 * a + 0.25 * p, state["average"], after["rule"])
    close(after["average"], wanted)
    # the next lives begin at their beginning, on levels of their own
    agents = after["agents", "a"]
    assert (agents["age"] == 0).all() and (agents["rule", "age"] == 0).all()
    assert torch.equal(agents["rule", "lifetime"], agents["lifetime"].float())
    assert not equal(agents["level"], state["agents", "a", "level"])


def test_chunks_and_groups():
    whole, parts = (training(n=5, options={"chunk": chunk}) for chunk in (None, 2))
    state = whole.init(rng.key(3))
    (a, first), (b, second) = whole.step(state), parts.step(state)
    close(a["rule"], b["rule"])
    close(first["fitness"], second["fitness"])
    both = training(optim.sgd(1.0), groups=("a", "b"))
    state = both.init(rng.key(0))
    after, metrics = both.step(state)
    assert metrics["bad"].shape == (6,)
    slopes = []
    for name in ("a", "b"):
        one = training(optim.sgd(1.0), groups=(name,))
        start = tree.replace(one.init(rng.key(0)), {("agents", name): state["agents", name]})
        slopes.append(tree.sub(one.step(start)[0]["rule"], start["rule"]))
    mean = tree.map(lambda x, y: (x + y) / 2, *slopes)
    close(tree.sub(after["rule"], state["rule"]), mean)


def test_widths_decay_and_the_optimizer_is_grooves():
    options = {"sigma": 0.4, "sigma_decay": 0.5, "sigma_limit": 0.15}
    train = training(workers=16, options=options)
    state = train.init(rng.key(0))
    widths = []
    for _ in range(3):
        moved, state = state["rule"], train.step(state)[0]
        widths.append(round(float(state["sigma"]), 6))
        largest = max(float((x - y).abs().max()) for x, y in zip(
            tree.leaves(moved), tree.leaves(state["rule"]), strict=True
        ))  # fmt: skip
        assert 0.009 < largest < 0.02  # Adam's step is its rate
    assert widths == [0.2, 0.15, 0.15]


def test_a_pair_that_is_not_finite_is_left_out():
    options = {"rank": None, "sigma": 0.3}
    train = training(optim.sgd(1.0), n=3, length=20, workers=16, options=options)
    state = train.init(rng.key(2))
    state = tree.replace(state, {("agents", "a", "lifetime"): torch.tensor([2, 5, 2])})
    table = state["agents", "a", "level", "table", "reward"].clone()
    table[1] = torch.nan
    after, metrics = train.step(
        tree.replace(state, {("agents", "a", "level", "table", "reward"): table})
    )
    assert metrics["bad"].tolist() == [False, True, False]
    assert metrics["lifetime"] == state["agents", "a", "lifetime"][[0, 2]].double().mean()
    assert all(x.isfinite() for name, x in metrics.items() if name != "bad")
    table[1] = 0.0  # as good as nothing: no difference, no part, but it counts in the mean
    counted, _ = train.step(
        tree.replace(state, {("agents", "a", "level", "table", "reward"): table})
    )
    moves = [tree.sub(s["rule"], state["rule"]) for s in (after, counted)]
    close(tree.scale(moves[0], 2 / 3), moves[1])


@pytest.mark.parametrize("rank", [None, "pair", "centered"])
def test_a_bad_pair_has_no_part_under_any_rank(rank):
    noise = tree.new({"w": rng.normal(rng.key(4), (4, 3), dtype=torch.float64)}, (4,))
    up = torch.tensor([1.0, 3.0, torch.nan, 0.5], dtype=torch.float64)
    down = torch.tensor([-1.0, 2.0, 0.0, 2.5], dtype=torch.float64)
    found, fine = ascent(up, down, [noise], 0.3, rank)
    assert fine.tolist() == [True, True, False, True]
    rows = fine.nonzero()[:, 0]
    alone, _ = ascent(up[fine], down[fine], [tree.take(noise, rows)], 0.3, rank)
    torch.testing.assert_close(found["w"], alone["w"])


@pytest.mark.parametrize("rank", [None, "pair", "centered"])
def test_no_pair_no_gradient(rank):
    noise = tree.new({"w": rng.normal(rng.key(4), (4, 3), dtype=torch.float64)}, (4,))
    nothing = torch.full((4,), torch.nan, dtype=torch.float64)
    found, fine = ascent(nothing, nothing, [noise], 0.3, rank)
    assert not fine.any() and torch.equal(found["w"], torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("updates", [1, 4, 5, 9, 10, 14])
def test_the_end_of_a_life_is_that_of_its_scores(updates):
    rewards = rng.normal(rng.key(2), (1, updates), dtype=torch.float64)
    shares = final_share(torch.arange(updates), torch.tensor(updates)).double()
    wanted = curve_scores(rewards)["final"][0]
    torch.testing.assert_close((rewards[0] * shares).sum(), wanted, rtol=1e-6, atol=1e-6)


def test_orthogonal_and_centered():
    for options in ({"basis": "orthogonal"}, {"rank": "centered"}, {"rank": None}):
        train = training(n=4, lifetime=3, options=options)
        after, metrics = train.step(train.init(rng.key(0)))
        assert metrics["fitness"].isfinite() and not metrics["bad"].any()
        assert all(x.isfinite().all() for x in tree.leaves(after["rule"]))


def test_bandits_and_curricula():
    curriculum = meta.uniform_curriculum(WORLD.sample)
    train = training(
        lifetime=3, arm_rates=(10.0, 40.0), arm_coeffs=(0.1, 0.5), curriculum=curriculum
    )
    state = train.init(rng.key(0))
    after, _ = train.step(state)
    assert after["bandits", "a"].keys() == state["bandits", "a"].keys()
    assert not equal(after["bandits", "a"], state["bandits", "a"])
    assert not equal(after["agents", "a", "level"], state["agents", "a", "level"])
    train.step(after)


def test_memory_does_not_grow_with_the_lifetime():
    peaks = []
    for lifetime in (3, 15):
        train = training(n=2, lifetime=lifetime, length=2, workers=2)
        state = train.init(rng.key(0))
        train.step(state)
        peaks.append(peak_memory(partial(train.step, state)))
    assert peaks[1] < 1.1 * peaks[0]


@pytest.mark.parametrize(
    "text, options",
    [
        ("length is 0", {"length": 0}),
        ("horizon is 0", {"horizon": 0}),
        ("chunk is 0", {"chunk": 0}),
        ("sigma is 0", {"sigma": 0.0}),
        ("sigma_decay is 0", {"sigma_decay": 0.0}),
        ("sigma_limit is -1", {"sigma_limit": -1.0}),
        ("average is 1", {"average": 1.0}),
        ("rank is 'x'", {"rank": "x"}),
        ("basis is 'x'", {"basis": "x"}),
        ("score is 'best'", {"score": "best"}),
    ],
)
def test_bad_input(text, options):
    with pytest.raises(ValueError, match=f"es_training: {text}"):
        meta.es_training(RULE, {"a": population()}, **options)


def test_bad_populations():
    with pytest.raises(ValueError, match="es_training: no populations"):
        meta.es_training(RULE, {})
    with pytest.raises(TypeError, match="es_training: a is a int, expected a Population"):
        meta.es_training(RULE, {"a": 1})
    with pytest.raises(TypeError, match="es_training: rule is a NoneType, expected an UpdateRule"):
        meta.es_training(None, {"a": population()})
    with pytest.raises(TypeError, match="es_training: optimizer is a float, expected a Transform"):
        meta.es_training(RULE, {"a": population()}, 0.1)
    with pytest.raises(TypeError, match="es_training: average is 'x', expected a float"):
        meta.es_training(RULE, {"a": population()}, average="x")
