"""Persistent evolution strategies: unbiased where truncated ones are not, and a pure training."""

from functools import partial

import pytest
import torch

from paramtree import grad, meta, optim, rng, tree, vmap
from paramtree.envs import level_distribution

D = torch.float64
KEY = rng.key(21)
STEPS, WINDOW = 12, 3
MATRIX = 0.9 * torch.eye(3, dtype=D)  # how the state moves on by itself: it remembers
DRIVE = rng.normal(rng.key(2), (3, 2), dtype=D)  # how hyper drives it
COST = torch.diag(torch.tensor([1.0, 0.5, 2.0], dtype=D))
START = rng.normal(rng.key(3), (3,), dtype=D)


def step(hyper, state, k):
    return MATRIX @ state + DRIVE @ hyper["push"]


def outer(hyper, state):
    return state @ COST @ state + hyper["push"].square().sum()


def born(key):
    return START


def hyper():
    return tree.new({"push": torch.tensor([0.5, -0.8], dtype=D)})


def exact(first=0, start=START):
    """Gradient of the mean of the steps' costs, in closed form.

    The value is quadratic in the pushes of all windows, so the noise moves it by a constant, and
    its smoothed gradient is its gradient: with ``S_k = sum_{j<k} A^j B``, ``x_k = A^k x_0 + S_k u``
    it is the mean over k of ``2 S_k' Q x_k + 2 u``. Pushes before step ``first`` count as fixed.
    """
    u, power, reach = hyper()["push"], torch.eye(3, dtype=D), torch.zeros(3, 2, dtype=D)
    x, total = start, torch.zeros(2, dtype=D)
    for k in range(STEPS):
        x = MATRIX @ x + DRIVE @ u
        reach = MATRIX @ reach + DRIVE
        power = MATRIX @ power
        total = total + 2 * reach.T @ COST @ x + 2 * u
        if first and (k + 1) % first == 0:
            reach = torch.zeros(3, 2, dtype=D)  # what a truncated window knows of
    return total / STEPS


def whole_life(pes, key):
    """Mean of the windows' values and estimates over one life."""
    particles, values, slopes = pes.init(hyper(), key), [], []
    for _ in range(STEPS // WINDOW):
        particles, (value, slope) = pes.step(hyper(), particles)
        values.append(value)
        slopes.append(slope["push"])
    return torch.stack(values).mean(), torch.stack(slopes).mean(0)


def test_the_closed_form_is_the_gradient_of_the_loop():
    def value(hyper):
        x, total = START, 0.0
        for k in range(STEPS):
            x = step(hyper, x, k)
            total = total + outer(hyper, x)
        return total / STEPS

    torch.testing.assert_close(grad(value)(hyper())["push"], exact())


@pytest.mark.parametrize("basis", ["normal", "orthogonal"])
def test_the_mean_over_a_life_is_the_gradient_within_its_standard_error(basis):
    """And evolution strategies on the same windows, from where hyper itself leads, are far off."""
    make = partial(meta.pes, step, outer, STEPS, born, window=WINDOW, sigma=0.3)
    lives = vmap(partial(whole_life, make(particles=50, basis=basis)))
    _, slopes = lives(rng.split(KEY, 400))
    error = slopes.std(0) / 20
    assert ((slopes.mean(0) - exact()).abs() < 4 * error).all() and (
        error < 0.02 * exact().abs()
    ).all()
    biased = exact(first=WINDOW)
    assert ((slopes.mean(0) - biased).abs() > 10 * error).all()  # so the test can tell them apart


def test_truncated_evolution_strategies_are_biased_on_the_same_problem():
    slopes, state = [], START
    for first in range(0, STEPS, WINDOW):

        def value(h, state=state, first=first):
            total = 0.0
            for k in range(first, first + WINDOW):
                state = step(h, state, k)
                total = total + outer(h, state)
            return total / WINDOW

        options = {"sigma": 0.3, "samples": 20_000}
        slopes.append(meta.es_grad(value, rng.fold_in(KEY, first), **options)(hyper())[1]["push"])
        for k in range(first, first + WINDOW):
            state = step(hyper(), state, k)
    mean = torch.stack(slopes).mean(0)
    torch.testing.assert_close(mean, exact(first=WINDOW), rtol=0.05, atol=0.05)
    assert ((mean - exact()).abs() > 1.0).all()


def test_one_window_is_an_antithetic_estimate():
    pes = meta.pes(step, outer, STEPS, born, window=STEPS, particles=7, sigma=0.2)
    particles = pes.init(hyper(), KEY)
    after, (value, slope) = pes.step(hyper(), particles)
    noise = meta.perturbations(rng.fold_in(rng.fold_in(KEY, 0), "noise"), hyper(), 7)

    def mean_cost(push):
        x, total = START, 0.0
        for k in range(STEPS):
            x = step({"push": push}, x, k)
            total = total + outer({"push": push}, x)
        return total / STEPS

    ends = [
        torch.stack([mean_cost(hyper()["push"] + s * e) for e in noise["push"]])
        for s in (0.2, -0.2)
    ]
    wanted = ((ends[0] - ends[1]) / 0.4) @ noise["push"] / 7
    torch.testing.assert_close(slope["push"], wanted)
    torch.testing.assert_close(value, torch.stack(ends).mean())
    assert (after["age"] == STEPS).all() and after["count"] == 1
    again, _ = pes.step(hyper(), after)  # a life is over: the next begins where the first did
    torch.testing.assert_close(
        again["noise"]["push"],
        meta.perturbations(rng.fold_in(rng.fold_in(KEY, 1), "noise"), hyper(), 7)["push"] / 0.2,
    )


def test_lives_that_do_not_end_with_a_window_and_ages_that_are_spread():
    """Of 5 steps in windows of 2 the sixth does not count; each k is told."""
    seen = tree.new({"x": torch.zeros((), dtype=D), "sum": torch.zeros((), dtype=D)})

    def counting(hyper, state, k):
        return tree.new({"x": k.to(D), "sum": state["sum"] + k})

    def last(hyper, state):
        return state["x"] + 0 * hyper["push"].sum()

    pes = meta.pes(counting, last, 5, lambda key: seen, window=2, particles=3, stagger=True)
    particles = pes.init(hyper(), KEY)
    assert particles["age"].tolist() == [0, 2, 4]
    values = []
    for ages, sums in (
        ([2, 4, 6], [1, 5, 4]),  # a first life begins in its midst
        ([4, 6, 2], [6, 9, 1]),
        ([6, 2, 4], [10, 1, 6]),
        ([2, 4, 6], [1, 6, 10]),
    ):
        particles, (value, _) = pes.step(hyper(), particles)
        assert particles["age"].tolist() == ages
        assert particles["up", "sum"].tolist() == sums == particles["down", "sum"].tolist()
        values.append(float(value))
    # the mean over k of k is 2; the three particles stand in the three windows of a life
    assert values == pytest.approx([2.0] * 4)


def test_pure_and_mapped():
    pes = meta.pes(step, outer, STEPS, born, window=WINDOW, particles=4)
    keys = rng.split(KEY, 3)
    particles = vmap(pes.init, (None, 0))(hyper(), keys)
    before = tree.map(torch.clone, particles)
    mapped, (_, slopes) = vmap(pes.step, (None, 0))(hyper(), particles)
    assert tree.allclose(before, particles, rtol=0, atol=0) and mapped.is_locked
    for i, key in enumerate(keys):
        alone, (_, slope) = pes.step(hyper(), pes.init(hyper(), key))
        torch.testing.assert_close(slopes["push"][i], slope["push"])
        torch.testing.assert_close(mapped["up"][i], alone["up"])


@pytest.mark.parametrize(
    "error, text, options",
    [
        (ValueError, "pes: steps is 0", {"steps": 0}),
        (ValueError, "pes: window is 0", {"window": 0}),
        (TypeError, "pes: particles is 1.5", {"particles": 1.5}),
        (ValueError, "pes: sigma is 0", {"sigma": 0.0}),
        (TypeError, "pes: born is a float", {"born": 1.0}),
        (TypeError, "pes: step is a NoneType", {"step": None}),
        (ValueError, "basis is 'x'", {"basis": "x"}),
        (ValueError, "outer returned a tensor of shape", {"outer": lambda h, s: s}),
        (
            ValueError,
            "the state after a step",
            {"step": lambda h, s, k: {"x": s}, "outer": lambda h, s: h["push"].sum()},
        ),
    ],
)
def test_bad_input(error, text, options):
    given = {"step": step, "outer": outer, "steps": 4, "born": born, "window": 2, **options}
    first = [given.pop(name) for name in ("step", "outer", "steps", "born")]
    with pytest.raises(error, match=text):
        pes = meta.pes(*first, **given)
        pes.step(hyper(), pes.init(hyper(), KEY))


# ------------------------------------------------------------------------------------ the training

WORLD = level_distribution("small")
NETWORK = meta.lpg_network(
    4, 6, cell="gru", n_embedding=3, gamma_input=False, lifetime_input=True, activation=torch.relu
)


def training(optimizer=None, lifetime=6, n=3, groups=("a",), workers=2, **options):
    populations = {
        name: meta.lpg_population(WORLD, n, n_prediction=4, workers=workers, lifetime=lifetime)
        for name in groups
    }
    options = {"updates": 2, "length": 8, **options}
    return meta.pes_training(meta.lpg_rule(NETWORK), populations, optimizer, **options)


def equal(a, b):
    pairs = zip(tree.leaves(a), tree.leaves(b), strict=True)
    return tree.paths(a) == tree.paths(b) and all(torch.equal(x, y) for x, y in pairs)


def test_a_step_is_a_pure_function_of_one_tree():
    train = training(length=20, workers=16)
    state = train.init(rng.key(0))
    before = tree.map(torch.clone, state)
    after, metrics = train.step(state)
    again, _ = train.step(tree.map(torch.clone, before))
    assert equal(state, before) and equal(after, again) and after.is_locked and metrics.is_locked
    assert sorted(tree.paths(after)) == sorted(tree.paths(state))
    for a, b in zip(*(sorted(tree.entries(s).items()) for s in (after, state)), strict=True):
        assert [x.shape for x in tree.leaves(a[1])] == [x.shape for x in tree.leaves(b[1])]
        assert [x.dtype for x in tree.leaves(a[1])] == [x.dtype for x in tree.leaves(b[1])]
    names = "age bad fitness fitness_max fitness_min gradient_norm reward sigma"
    assert sorted(metrics.keys()) == names.split()
    assert metrics["bad"].tolist() == [False] * 3
    assert not torch.equal(after["rule", "gru", "weight_hh"], state["rule", "gru", "weight_hh"])


def test_pairs_live_on_and_are_born_again_together():
    train = training()
    state = train.init(rng.key(0))
    for ages in ([2, 4, 6], [4, 6, 2], [6, 2, 4]):
        state, _ = train.step(state)
        assert state["agents", "a", "age"].tolist() == ages
        assert state["partners", "a", "age"].tolist() == ages
        assert state["agents", "a", "rule", "age"].tolist() == ages  # what the rule knows of
        levels = [state[side, "a", "level"] for side in ("agents", "partners")]
        assert equal(*levels)
    widths = state["noise", "a"]["gru", "weight_hh"].flatten(1).std(1) * 0.1
    bound = torch.tensor([3.0, 1.0, 2.0]).sqrt()  # windows of this life
    torch.testing.assert_close(widths, bound, rtol=0.25, atol=0)


def test_a_life_of_its_own_length_and_a_step_from_there():
    train = training(lifetime=(1, 9), n=6, updates=3)
    state = train.init(rng.key(0))
    lifetimes = state["agents", "a", "lifetime"]
    for _ in range(4):
        state, metrics = train.step(state)
        ages = state["agents", "a", "age"]
        assert (ages <= state["agents", "a", "lifetime"]).all() and metrics["fitness"].isfinite()
    assert not torch.equal(lifetimes, state["agents", "a", "lifetime"])


def test_a_pair_that_is_not_finite_is_left_out_and_born_anew():
    train = training(optim.sgd(1.0), n=4, length=20, workers=16)
    state = train.init(rng.key(0))
    broken = {}
    for side in ("agents", "partners"):
        path = (side, "a", "level", "table", "reward")
        table = state[path].clone()
        table[1] = torch.nan
        broken[path] = table
    after, metrics = train.step(tree.replace(state, broken))
    assert metrics["bad"].tolist() == [False, True, False, False]
    assert all(x.isfinite() for name, x in metrics.items() if name != "bad")
    assert after["agents", "a", "age"][1] == 6 == after["partners", "a", "age"][1]
    others = after["agents", "a", "age"][[0, 2, 3]]
    assert metrics["age"] == others.double().mean()
    assert all(x.isfinite().all() for x in tree.leaves(after["rule"]))
    final, metrics = train.step(after)
    assert not metrics["bad"].any() and final["agents", "a", "age"][1] == 2


def test_what_a_life_earned_in_two_groups():
    train = training(lifetime=4, updates=4, groups=("a", "b"), workers=4)
    state = at_birth(train.init(rng.key(0)), "ab")
    after, metrics = train.step(state)
    sides = [after[side, g] for side in ("agents", "partners") for g in "ab"]
    earned = torch.cat([side["earned"] for side in sides]).mean() / (4 * 8)  # a step
    assert metrics["bad"].shape == (6,) and float(earned) != 0
    torch.testing.assert_close(metrics["fitness"], earned)


def test_the_last_fifth_alone_may_count():
    train = training(lifetime=4, updates=2, score="final", workers=8)
    state, metrics = train.step(at_birth(train.init(rng.key(0)), "a"))
    assert metrics["fitness"] == 0 and metrics["reward"] != 0
    _, metrics = train.step(state)  # the reward of the last of 4 updates, in one of two windows
    torch.testing.assert_close(metrics["fitness"], 2 * metrics["reward"])


def at_birth(state, groups):
    zeros = {}
    for side in ("agents", "partners"):
        for group in groups:
            zeros[side, group, "age"] = torch.zeros(3, dtype=torch.int64)
            zeros[side, group, "rule", "age"] = torch.zeros(3)
    return tree.replace(state, zeros)


def test_training_refuses_bad_input():
    with pytest.raises(ValueError, match="pes_training: no populations"):
        meta.pes_training(meta.lpg_rule(NETWORK), {})
    with pytest.raises(TypeError, match="pes_training: a is a int, expected a Population"):
        meta.pes_training(meta.lpg_rule(NETWORK), {"a": 1})
    with pytest.raises(TypeError, match="pes_training: rule is a NoneType, expected an UpdateRule"):
        meta.pes_training(None, {"a": 1})
    for name, value in (
        ("updates", 0),
        ("length", 0),
        ("sigma", 0.0),
        ("sigma_limit", 0.0),
        ("score", "return"),
        ("average", 1.0),
    ):
        with pytest.raises(ValueError, match=f"pes_training: {name} is"):
            training(**{name: value})
