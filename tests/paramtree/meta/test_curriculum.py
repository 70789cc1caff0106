"""Curricula: who may be replayed and with what chance, and that no level is given out twice."""

import numpy as np
import pytest
import torch

from paramtree import optim, rng, tree, vmap
from paramtree.envs import level_distribution
from paramtree.meta import (
    lpg_network,
    lpg_population,
    lpg_rule,
    lpg_training,
    positive_value_loss,
    prioritized_level_replay,
    random_score,
    replay_chances,
    uniform_curriculum,
)

WORLD = level_distribution("small")


def sample(key):
    """A level that is nothing but a number of its own."""
    return tree.new({"id": rng.uniform(key, (), dtype=torch.float64)})


def worth(agents, keys):
    return agents["level", "id"].float()


def living(levels):
    n = levels.batch_size[0]
    return tree.new({"level": levels, "age": torch.zeros(n, dtype=torch.int64)}, (n,))


def chances_by_hand(score, age, eligible, prioritization, temperature, staleness):
    """The paper's distribution, one level after the other."""
    ids = [i for i in range(len(score)) if eligible[i]]
    if prioritization == "rank":
        best_first = sorted(ids, key=lambda i: (-score[i], i))
        weight = {i: (1 / (place + 1)) ** (1 / temperature) for place, i in enumerate(best_first)}
    else:
        weight = {i: max(score[i], 0.0) ** (1 / temperature) for i in ids}
    if not sum(weight.values()):
        weight = dict.fromkeys(ids, 1.0)
    old = {i: float(age[i]) for i in ids}
    if not sum(old.values()):
        old = weight
    found = np.zeros(len(score))
    for i in ids:
        by_score = weight[i] / sum(weight.values())
        found[i] = (1 - staleness) * by_score + staleness * old[i] / sum(old.values())
    return found


@pytest.mark.parametrize("prioritization", ["rank", "proportional"])
@pytest.mark.parametrize("temperature", [0.1, 1.0, 2.5])
@pytest.mark.parametrize("staleness", [0.0, 0.3, 1.0])
def test_chances_are_those_of_the_paper(prioritization, temperature, staleness):
    gen = np.random.default_rng(3)
    score, age = gen.normal(size=12), gen.integers(0, 9, 12)
    score[4] = score[7]  # a tie
    eligible = gen.random(12) < 0.7
    eligible[[4, 7]] = True
    options = {"prioritization": prioritization, "temperature": temperature}
    ours = replay_chances(
        torch.tensor(score),
        torch.tensor(age),
        torch.tensor(eligible),
        staleness=staleness,
        **options,
    )
    theirs = chances_by_hand(score, age, eligible, prioritization, temperature, staleness)
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-12, atol=1e-15)
    assert float(ours.sum()) == pytest.approx(1.0)


def test_chances_where_nothing_speaks_for_a_level():
    none, some = torch.zeros(4), torch.tensor([True, False, True, True])
    fair = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64) / 3
    found = replay_chances(-torch.ones(4), none.long(), some, prioritization="proportional")
    assert torch.allclose(found, fair)
    assert not replay_chances(none, none.long(), none.bool()).any()


@pytest.mark.parametrize("prioritization", ["rank", "proportional"])
def test_a_score_that_is_no_number_has_the_smallest_chance(prioritization):
    score = torch.tensor([1.0, torch.nan, 2.0, 9.0])
    eligible, age = torch.tensor([True, True, True, False]), torch.zeros(4).long()
    options = {"prioritization": prioritization, "staleness": 0.0}
    found = replay_chances(score, age, eligible, **options)
    weight = {"rank": [1 / 2, 1 / 3, 1.0, 0.0], "proportional": [1.0, 0.0, 2.0, 0.0]}
    wanted = torch.tensor(weight[prioritization], dtype=torch.float64)
    torch.testing.assert_close(found, wanted / wanted.sum())


def test_what_chances_can_not_be_made_of():
    score, age, yes = torch.rand(3), torch.zeros(3).long(), torch.ones(3, dtype=torch.bool)
    for given, error, text in (
        ((torch.rand(3, 1), age, yes), ValueError, r"score has shape \(3, 1\), expected \[size\]"),
        ((score, age[:2], yes), ValueError, r"age has shape \(2,\), expected \(3,\) \(from score"),
        ((score, age, yes[:1]), ValueError, r"eligible has shape \(1,\), expected \(3,\)"),
        ((score, age, age), TypeError, "eligible is torch.int64, expected bool"),
    ):
        with pytest.raises(error, match=f"replay_chances: {text}"):
            replay_chances(*given)


def test_a_score_out_of_the_race_has_no_say_however_large():
    score, age = torch.tensor([1e5, 2e-3, 1e-3]), torch.zeros(3, dtype=torch.int64)
    options = {"prioritization": "proportional", "temperature": 0.01, "staleness": 0.0}
    found = replay_chances(score, age, torch.tensor([False, True, True]), **options)
    alone = replay_chances(score[1:], age[1:], torch.tensor([True, True]), **options)
    assert torch.equal(found[1:], alone) and found[0] == 0 and found[1] > 0.99


def filled(size, n, **options):
    """A curriculum whose every slot has been scored, but for those where agents live."""
    curriculum = prioritized_level_replay(sample, worth, size=size, **options)
    state, levels = curriculum.init(rng.key(0), n)
    free = torch.arange(size) >= n
    score, stamp = rng.uniform(rng.key(5), (size,)), torch.arange(size)
    clock = torch.tensor(size)
    return (
        curriculum,
        tree.replace(state, {"new": ~free, "score": score * free, "stamp": stamp, "clock": clock}),
        living(levels),
    )


@pytest.mark.parametrize("prioritization", ["rank", "proportional"])
def test_levels_are_drawn_with_these_chances(prioritization):
    size, draws = 10, 4000
    options = {"prioritization": prioritization, "temperature": 1.0, "staleness": 0.2}
    curriculum, state, agents = filled(size, 2, replay=1.0, **options)
    over = torch.tensor([True, False])

    def slot(key):
        return curriculum.renew(state, agents, over, key)[0]["slot"]

    slots = vmap(slot)(rng.split(rng.key(1), draws))
    assert (slots[:, 1] == 1).all()
    count = np.bincount(slots[:, 0].numpy(), minlength=size)
    score, stamp = (state[name].numpy().copy() for name in ("score", "stamp"))
    score[0] = float(agents["level", "id"][0])  # which the life that is over has just got
    age = np.subtract(size + 1, stamp)
    age[0] = 0
    eligible = np.arange(size) != 1
    wanted = draws * chances_by_hand(score, age, eligible, prioritization, 1.0, 0.2)
    assert count[1] == 0
    square = ((count - wanted)[eligible] ** 2 / wanted[eligible]).sum()
    assert square < 27.9  # the 0.9995 quantile of chi-square with 8 degrees


def test_two_draws_are_without_replacement():
    """Of the second of two agents the chance is that of a draw from what the first one left."""
    size, draws = 6, 6000
    curriculum, state, agents = filled(size, 2, replay=1.0, staleness=0.0)
    over = torch.tensor([True, True])
    slots = vmap(lambda key: curriculum.renew(state, agents, over, key)[0]["slot"])(
        rng.split(rng.key(2), draws)
    )
    assert (slots[:, 0] != slots[:, 1]).all()
    score = state["score"].numpy().copy()
    score[:2] = agents["level", "id"].numpy()
    first = chances_by_hand(score, np.ones(size), np.ones(size, bool), "rank", 1.0, 0.0)
    wanted = np.outer(first, first) / (1 - first)[:, None]
    np.fill_diagonal(wanted, 0.0)
    count = np.zeros((size, size))
    np.add.at(count, tuple(slots.numpy().T), 1)
    off = ~np.eye(size, dtype=bool)
    assert wanted.sum() == pytest.approx(1.0)
    square = ((count - draws * wanted)[off] ** 2 / (draws * wanted[off])).sum()
    assert square < 61.2  # the 0.9995 quantile with 29 degrees


@pytest.mark.parametrize("options", [{}, {"prioritization": "proportional", "replay": 0.9}])
def test_a_long_life_of_a_buffer(options):
    """A book is kept beside it, by the numbers that levels are: who lives where, and the scores."""
    n, size, steps = 8, 40, 200
    curriculum = prioritized_level_replay(sample, worth, size=size, **options)
    state, levels = curriculum.init(rng.key(0), n)
    home = levels["id"].tolist()
    known: dict[float, float] = {}
    gen, replays, lives = np.random.default_rng(0), 0, 0
    for i in range(steps):
        over = torch.tensor(gen.random(n) < 0.3)
        before, agents = state, living(levels)
        kept = tree.map(torch.clone, state)
        everyone = vmap(sample)(state["key"])["id"]
        score, stale = state["score"].clone(), state["stamp"].clone()
        ready = int((~state["new"] & ~state["active"]).sum() + over.sum()) >= n
        state, given = curriculum.renew(state, agents, over, rng.fold_in(rng.key(1), i))
        pairs = zip(tree.leaves(before), tree.leaves(kept), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)  # what came in
        known |= {home[j]: home[j] for j in range(n) if over[j]}
        candidates = [x for x in everyone.tolist() if x in known and x not in home]
        candidates += [home[j] for j in range(n) if over[j]]
        for j in np.flatnonzero(over):
            new = float(given["id"][j])
            replayed = new in known
            assert not replayed or (ready and new in candidates)
            replays, lives = replays + replayed, lives + ready
            home[j] = new
        assert len(set(home)) == n  # nobody lives where another does
        levels = tree.where(over, given, levels)
        assert levels["id"].tolist() == home
        assert state["slot"].unique().numel() == n and state["active"].sum() == n
        assert state["active"][state["slot"]].all()
        now = vmap(sample)(state["key"])["id"]
        assert now[state["slot"]].tolist() == home  # none of these was replaced
        seen = ~state["new"]
        assert all(x in known for x in now[seen].tolist())
        assert torch.allclose(state["score"][seen], now[seen].float())
        same = now == everyone
        gone = score[~same & ~kept["new"] & ~kept["active"]]
        stay = score[same & ~kept["new"] & ~kept["active"] & ~state["active"]]
        if len(gone) and len(stay) and not state["new"][~state["active"]].any():
            assert gone.max() <= stay.min()  # those that went were the lowest
        assert (state["stamp"] >= stale).all() and state["clock"] == kept["clock"] + over.sum()
    share, wanted = replays / lives, options.get("replay", 0.5)
    assert abs(share - wanted) < 4 * (wanted * (1 - wanted) / lives) ** 0.5 + 1 / lives


def test_a_score_that_is_not_finite_is_none():
    def broken(agents, keys):
        return torch.where(agents["level", "id"] < 2, torch.nan, 0.0)

    curriculum = prioritized_level_replay(sample, broken, size=8, replay=1.0)
    state, levels = curriculum.init(rng.key(0), 2)
    for i in range(20):
        state, levels = curriculum.renew(
            state, living(levels), torch.tensor([True, True]), rng.key(i)
        )
    assert state["new"].all() and not state["score"].any()  # so nothing was ever replayed


def test_a_frozen_buffer_is_drawn_from_uniformly():
    curriculum = prioritized_level_replay(sample, None, size=6)
    state, levels = curriculum.init(rng.key(0), 3)
    over, agents = torch.tensor([True, False, True]), living(levels)

    def after(key):
        state_, given = curriculum.renew(state, agents, over, key)
        return state_["slot"], state_["key"], given["id"]

    slots, keys, ids = vmap(after)(rng.split(rng.key(3), 3000))
    assert (keys == state["key"]).all() and (slots[:, 1] == 1).all()
    assert torch.equal(vmap(sample)(state["key"])["id"][slots], ids)
    assert (slots[:, 0] != slots[:, 2]).all()
    count = np.bincount(slots[:, [0, 2]].flatten().numpy(), minlength=6)[[0, 2, 3, 4, 5]]
    assert ((count - 1200) ** 2 / 1200).sum() < 20.0  # the 0.9995 quantile with 4 degrees


def test_mapped_is_eager():
    curriculum, state, agents = filled(16, 4)
    over, keys = torch.tensor([True, False, True, True]), rng.split(rng.key(7))
    both = torch.stack([over, ~over])
    mapped, given = vmap(curriculum.renew, (None, None, 0, 0))(state, agents, both, keys)
    for i in range(2):
        alone, levels = curriculum.renew(state, agents, both[i], keys[i])
        for name in ("key", "score", "new", "active", "stamp", "slot", "clock"):
            assert torch.equal(mapped[name][i], alone[name]), name
        assert torch.equal(given["id"][i], levels["id"])


@pytest.mark.parametrize(
    "curriculum",
    [
        uniform_curriculum(WORLD.sample),
        prioritized_level_replay(WORLD.sample, random_score(), size=8),
    ],
)
def test_grid_worlds(curriculum):
    state, levels = curriculum.init(rng.key(0), 4)
    alone = WORLD.sample(rng.split(rng.key(0), 4 if not state.keys() else 8)[:4])
    assert tree.paths(levels) == tree.paths(alone) and levels.batch_size == (4,)
    pairs = zip(tree.leaves(levels), tree.leaves(alone), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    agents = living(levels)
    same, own = curriculum.renew(state, agents, torch.zeros(4, dtype=torch.bool), rng.key(1))
    assert same is state and own is levels
    state, given = curriculum.renew(state, agents, torch.ones(4, dtype=torch.bool), rng.key(1))
    assert state.is_locked and given.is_locked
    assert tree.paths(given) == tree.paths(levels)
    assert not torch.equal(given["walls"], levels["walls"])


def test_agents_in_training_live_where_the_buffer_says():
    population = lpg_population(WORLD, 4, n_prediction=4, workers=2, lifetime=4)
    score = positive_value_loss(population.habitat, population.critic, length=5)
    replay = prioritized_level_replay(WORLD.sample, score, size=12, replay=0.8)
    rule = lpg_rule(lpg_network(4, 5, n_embedding=3))
    groups = {"small": population._replace(curriculum=replay)}
    train = lpg_training(rule, groups, optim.sgd(1.0), updates=2, length=3)
    state, ended = train.init(rng.key(0)), 0
    for _ in range(8):
        ended += int((state["agents", "small", "age"] >= 4).sum())
        state, _ = train.step(state)
        buffer, level = state["curricula", "small"], state["agents", "small", "level"]
        wanted = vmap(WORLD.sample)(buffer["key"][buffer["slot"]])
        pairs = zip(tree.leaves(level), tree.leaves(wanted), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        assert buffer["clock"] == ended
    scored = buffer["score"][~buffer["new"]]
    assert ended > 8 and (scored >= 0).all() and scored.unique().numel() > 4


def test_bad_input():
    def make(**options):
        return prioritized_level_replay(sample, worth, **options)

    fn = "prioritized_level_replay"
    for name, value in (("replay", 1.5), ("staleness", -0.1), ("temperature", 0.0), ("size", 0)):
        with pytest.raises(ValueError, match=f"{fn}: {name} is {value}, expected"):
            make(**{name: value})
    with pytest.raises(TypeError, match=f"{fn}: size is 2.0, expected an int"):
        make(size=2.0)
    for name in ("replay", "staleness", "temperature"):
        with pytest.raises(TypeError, match=f"{fn}: {name} is 'x', expected a float"):
            make(**{name: "x"})
    with pytest.raises(ValueError, match="'ranks', expected one of .* nearest is 'rank'"):
        make(prioritization="ranks")
    with pytest.raises(ValueError, match=r"size is 7, expected at least 8 \(twice n\)"):
        make(size=7).init(rng.key(0), 4)
    state, levels = make(size=8).init(rng.key(0), 4)
    with pytest.raises(ValueError, match=r"over has shape \(3,\), expected \[4\]"):
        make(size=8).renew(state, living(levels), torch.ones(3, dtype=torch.bool), rng.key(0))
    with pytest.raises(TypeError, match="over is torch.int64, expected bool"):
        make(size=8).renew(state, living(levels), torch.ones(4).long(), rng.key(0))
    scalar = prioritized_level_replay(sample, lambda agents, keys: torch.tensor(0.0), size=8)
    with pytest.raises(ValueError, match=r"the score has shape \(\), expected \(4,\)"):
        scalar.renew(state, living(levels), torch.ones(4, dtype=torch.bool), rng.key(0))
