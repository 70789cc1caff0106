"""Meta-training: a pure step of one tree, whose gradient is right."""

import pytest
import torch

from paramtree import grad, optim, rng, tree
from paramtree.envs import level_distribution
from paramtree.meta import lpg_network, lpg_population, lpg_rule, lpg_training

WORLDS = {name: level_distribution(name) for name in ("small", "sparse")}
NETWORK = lpg_network(4, 6, cell="gru", n_embedding=3, gamma_input=False, activation=torch.relu)


def training(optimizer=None, groups=("small",), n_tasks=3, full_stop=True, lifetime=6, **options):
    sizes = {"n_prediction": 4, "workers": 2, "lifetime": lifetime}
    populations = {name: lpg_population(WORLDS[name], n_tasks, **sizes) for name in groups}
    rule = lpg_rule(NETWORK, full_stop=full_stop)
    options = {"updates": 2, "length": 5, **options}
    return lpg_training(rule, populations, optimizer or optim.sgd(1.0), **options)


def double(nest):
    leaves, structure = tree.flatten(nest)
    return tree.unflatten(structure, [x.double() if x.is_floating_point() else x for x in leaves])


def equal(a, b):
    pairs = zip(tree.leaves(a), tree.leaves(b), strict=True)
    return tree.paths(a) == tree.paths(b) and all(torch.equal(x, y) for x, y in pairs)


def test_a_step_is_a_pure_function_of_one_tree():
    train = training(optim.adam(1e-2))
    state = train.init(rng.key(0))
    before = tree.map(torch.clone, state)
    after, metrics = train.step(state)
    again, _ = train.step(tree.map(torch.clone, before))
    assert equal(state, before) and equal(after, again) and after.is_locked and metrics.is_locked
    assert sorted(tree.paths(after)) == sorted(tree.paths(state))
    assert [x.shape for x in tree.leaves(after)] == [x.shape for x in tree.leaves(state)]
    assert [x.dtype for x in tree.leaves(after)] == [x.dtype for x in tree.leaves(state)]
    assert not any(x.requires_grad for x in tree.leaves(after))
    assert after["step"] == 1 and after["agents", "small", "age"].tolist() == [2, 4, 6]
    assert not torch.equal(after["rule", "gru", "weight_hh"], state["rule", "gru", "weight_hh"])
    critics = ("agents", "small", "critic", "params", "weight")
    assert not torch.equal(after[critics], state[critics])  # the baseline learns
    assert metrics["bad"].tolist() == [False] * 3
    metrics = metrics.exclude("bad")
    names = "age entropy gradient_norm loss pi_hat_square prediction_entropy reward value_loss "
    names += "y_hat_square"
    assert sorted(metrics.keys()) == names.split() and all(
        x.isfinite() and x.ndim == 0 for x in tree.leaves(metrics)
    )


@pytest.mark.parametrize("options", [{}, {"validation": "all"}, {"value_coeff": 0.5}], ids=str)
def test_the_meta_gradient_is_that_of_the_loss(options):
    train = training(optim.sgd(1.0), full_stop=False, **options)
    state = double(train.init(rng.key(0)))
    head = rng.normal(rng.key(11), (1, 6), dtype=torch.float64)  # which begins at zero
    state = tree.replace(state, {"rule.pi_hat.weight": head})
    step = train.step(state)[0]
    slope = tree.map(
        torch.sub, state["rule"], step["rule"]
    )  # rate 1: what was taken off is the gradient
    for path in (
        ("gru", "weight_hh"),
        ("pi_hat", "weight"),
        ("y_hat", "bias"),
        ("embedding", "linear_0", "weight"),
    ):
        direction = rng.normal(
            rng.fold_in(rng.key(5), path[-1]), tuple(slope[path].shape), dtype=torch.float64
        )
        ends = []
        for h in (1e-5, -1e-5):
            moved = tree.replace(state, {("rule", *path): state[("rule", *path)] + h * direction})
            ends.append(float(train.step(moved)[1]["loss"]))
        central = (ends[0] - ends[1]) / 2e-5
        assert float((slope[path] * direction).sum()) == pytest.approx(central, rel=1e-4, abs=1e-9)


def test_steps_are_differentiable_in_the_numbers_they_were_made_with():
    """Two steps, with clips in them, against central differences."""
    numbers = {"gamma": 0.9, "lmbda": 0.8, "value_coeff": 0.3, "policy_entropy_coeff": 0.1}
    hyper = {k: torch.tensor(x, dtype=torch.float64) for k, x in numbers.items()}
    head = rng.normal(rng.key(11), (1, 6), dtype=torch.float64)

    def outcome(hyper):
        train = training(full_stop=False, lifetime=60, task_clip=0.5, **hyper)
        state, told = double(train.init(rng.key(0))), 0.0
        state = tree.replace(state, {"rule.pi_hat.weight": head})
        for _ in range(2):
            state, metrics = train.step(state)
            told = told + metrics["loss"] + metrics["value_loss"]
        leaves = enumerate(tree.leaves(state["rule"]))
        return told + sum(
            (x * rng.normal(rng.fold_in(rng.key(3), i), tuple(x.shape), dtype=x.dtype)).sum()
            for i, x in leaves
        )

    slope = grad(outcome)(hyper)
    for name, x in hyper.items():
        ends = [outcome({**hyper, name: x + h}) for h in (1e-6, -1e-6)]
        central = (ends[0] - ends[1]) / 2e-6
        assert slope[name] != 0
        assert slope[name].item() == pytest.approx(central.item(), rel=1e-6, abs=1e-8)


def test_a_step_in_which_no_task_is_finite_leaves_the_rule():
    train = training()
    state = train.init(rng.key(0))
    path = ("agents", "small", "level", "table", "reward")
    after, metrics = train.step(tree.replace(state, {path: state[path] * torch.nan}))
    assert metrics["bad"].all() and equal(after["rule"], state["rule"])
    final, metrics = train.step(after)
    assert not metrics["bad"].any() and metrics["reward"].isfinite()
    assert final["agents", "small", "age"].tolist() == [2, 2, 2]  # all born anew


def test_what_predictions_fail_to_tell_is_added():
    plain, asked, more = training(), training(value_coeff=0.5), training(value_coeff=1.0)
    state = double(plain.init(rng.key(0)))
    without, metrics, twice = (train.step(state)[1] for train in (plain, asked, more))
    assert "value_explained" not in without.keys() and 0 < metrics["value_explained"] < 1
    added = metrics["loss"] - without["loss"]  # 0.5 (1 - c) for c from -r to r
    assert torch.allclose(twice["loss"] - without["loss"], 2 * added)
    most = metrics["value_explained"].sqrt()  # of the mean, which is above the mean of roots
    assert 0.5 * (1 - most) < added < 0.5 * (1 + most)
    exact = {name: x for name, x in tree.entries(metrics).items() if name in without.keys()}
    rest = ("bad", "loss", "gradient_norm")
    assert all(torch.equal(x, without[name]) for name, x in exact.items() if name not in rest)


def test_groups_and_chunks():
    both = training(groups=("small", "sparse"))
    state = both.init(rng.key(0))
    after, metrics = both.step(state)
    assert sorted(after["agents"].keys()) == ["small", "sparse"] and metrics["loss"].isfinite()
    small, sparse = (training(groups=(name,)) for name in ("small", "sparse"))
    slopes = []
    for one, name in ((small, "small"), (sparse, "sparse")):
        start = tree.replace(one.init(rng.key(0)), {("agents", name): state["agents", name]})
        slopes.append(tree.map(torch.sub, start["rule"], one.step(start)[0]["rule"]))
    mean = tree.map(lambda a, b: (a + b) / 2, *slopes)  # as many tasks in both: the mean over tasks
    ours = tree.map(torch.sub, state["rule"], after["rule"])
    for a, b in zip(tree.leaves(ours), tree.leaves(mean), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    pieces = training(chunk=2)
    after, _ = pieces.step(pieces.init(rng.key(0)))
    assert after["agents", "small"].batch_size == (3,) and after[
        "agents", "small", "age"
    ].tolist() == [2, 4, 6]
    assert after["agents", "small"].is_locked


def test_the_average_follows_the_rule():
    train = training(average=0.75)
    state = train.init(rng.key(0))
    assert equal(state["average"], state["rule"])
    first, _ = train.step(state)
    wanted = tree.map(lambda a, p: 0.75 * a + 0.25 * p, state["average"], first["rule"])
    for ours, theirs in zip(tree.leaves(first["average"]), tree.leaves(wanted), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-7)
    plain, _ = training().step(training().init(rng.key(0)))
    assert equal(plain["average"], plain["rule"])  # no decay, no average
    with pytest.raises(ValueError, match=r"average is 1.0, expected a decay in \[0, 1\)"):
        training(average=1.0)


def test_lives_end_and_others_go_on():
    train = training()
    state = train.init(rng.key(0))
    ages = []
    for _ in range(3):
        state, _ = train.step(state)
        ages.append(state["agents", "small", "age"].tolist())
    assert ages == [[2, 4, 6], [4, 6, 2], [6, 2, 4]]


def test_bad_input():
    with pytest.raises(ValueError, match="lpg_training: no populations"):
        lpg_training(lpg_rule(NETWORK), {}, optim.sgd(1.0))
    for name in ("updates", "length", "chunk"):
        with pytest.raises(ValueError, match=f"lpg_training: {name} is 0"):
            training(**{name: 0})
    for name in ("updates", "length", "chunk"):
        with pytest.raises(TypeError, match=f"lpg_training: {name} is 2.5, expected an int"):
            training(**{name: 2.5})
    for name in ("average", "task_clip"):
        with pytest.raises(TypeError, match=f"lpg_training: {name} is 'x', expected a float"):
            training(**{name: "x"})
    with pytest.raises(TypeError, match="lpg_training: a is a int, expected a Population"):
        lpg_training(lpg_rule(NETWORK), {"a": 1}, optim.sgd(1.0))
    with pytest.raises(TypeError, match="lpg_training: populations is a list, expected {group: P"):
        lpg_training(lpg_rule(NETWORK), [1], optim.sgd(1.0))
    with pytest.raises(TypeError, match="lpg_training: rule is a NoneType, expected an UpdateRule"):
        lpg_training(None, {"a": 1}, optim.sgd(1.0))
    with pytest.raises(TypeError, match="lpg_training: optimizer is a function, expected a Trans"):
        lpg_training(lpg_rule(NETWORK), {"a": 1}, lambda hyper: optim.sgd(hyper))
    for name in ("policy_entropy_coef", "reduction"):
        with pytest.raises(ValueError, match=f"lpg_training: {name} is no option, .* nearest is"):
            training(**{name: 1.0})
