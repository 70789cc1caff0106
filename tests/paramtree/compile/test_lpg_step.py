"""A whole meta-step is one graph: inner updates of many tasks, the gradient through them, Adam."""

import pytest
import torch

import losses
from paramtree import compose, grad, meta, nn, optim, rng, td_model, tree, vmap, with_next
from tests.paramtree.compile import lpg
from tests.paramtree.compile.compiled import Compiled

D = torch.float64


def test_a_meta_step_is_one_graph():
    step = Compiled(lpg.step)
    first = state = lpg.start(rng.key(0))
    for k in range(2):
        state, value = step.same(state, rng.fold_in(rng.key(1), k))
    assert step.graphs == 1 and value.shape == ()
    rule = ("rule", "lstm", "weight_hh")
    assert not torch.equal(state[rule], first[rule])
    assert state["agents", "age"].tolist() == [4, 4]


@pytest.mark.slow
def test_a_step_of_meta_training_is_one_graph_and_agents_are_born_in_it():
    """``meta.lpg_training`` whole: births, lives, critics, meta-gradient, average."""
    populations = {"small": lpg.population(3, lifetime=3)}
    options = {"updates": 1, "length": 2, "average": 0.9}
    training = meta.lpg_training(lpg.RULE, populations, lpg.OPTIMIZER, **options)
    state, step = lpg.doubled(training.init(rng.key(0))), Compiled(training.step)
    ages = []
    for _ in range(3):
        state, metrics = step.same(state)
        ages.append(sorted(state["agents", "small", "age"].tolist()))
    assert step.graphs == 1 and metrics["gradient_norm"] > 0
    assert ages == [[1, 2, 3], [1, 2, 3], [1, 2, 3]]  # one is born at each step


@pytest.mark.slow
def test_a_reward_curve_is_one_graph():
    """Without ``report``; what it loops over is unrolled."""
    params = lpg.RULE.init(rng.key(0))[0]

    def curve(levels, key):
        return meta.reward_curve(lpg.HABITAT, lpg.RULE, params, levels, key, updates=2, length=2)

    run = Compiled(curve)
    for k in range(2):
        run.same(lpg.WORLD.sample(rng.split(rng.key(k), 3)), rng.key(k))
    assert run.graphs == 1


def test_whoever_is_at_its_end_makes_room_in_compiled_code_too():
    """Where nobody can look at ages, the new ones are made in any case."""
    lifetime, zero = torch.full((3,), 5), torch.zeros(3, dtype=torch.int64)
    born = tree.new({"age": zero, "lifetime": lifetime, "x": torch.ones(3)}, [3])

    def renewed(age):
        old = tree.new({"age": age, "lifetime": lifetime, "x": 2 * torch.ones(3)}, [3])
        return meta.renew(old, lambda rows: tree.take(born, rows))

    run = Compiled(renewed)
    for ages in ([1, 2, 3], [4, 5, 6]):
        after = run.same(torch.tensor(ages))
        assert after["age"].tolist() == [age if age < 5 else 0 for age in ages]
    mapped = vmap(renewed)(torch.tensor([[1, 2, 3], [4, 5, 6]]))
    assert mapped["x"].tolist() == [[2, 2, 2], [2, 1, 1]] and run.graphs == 1


def test_hyper_parameters_learn_through_two_inner_updates_in_one_graph():
    """Meta-gradient reinforcement learning: a gradient of gradients, inside what is compiled."""
    net = compose(
        actor=td_model(nn.mlp(2, 4, 2, activation=torch.tanh, dtype=D), "observation", "logits"),
        critic=td_model(nn.linear(2, 1, dtype=D), "observation", "state_value"),
    )
    params, buffers = net.init(rng.key(0))
    adam, names = optim.adam(0.05), ("gamma", "lmbda", "lr")

    def judged(params, td, gamma, lmbda):
        return losses.add_advantage(with_next(net)(params, buffers, td), gamma, lmbda)

    def inner(params, hyper, td):
        targets = judged(params, td, hyper["gamma"], hyper["lmbda"])
        slope = grad(lambda p: losses.total(losses.a2c_loss(net(p, buffers, targets))))(params)
        sgd = optim.sgd(hyper["lr"])
        updates, _ = sgd.update(slope, sgd.init(params), params)
        return optim.apply_updates(params, updates)

    def step(state, td):
        def outer(raw):  # one tensor: torch traces code with 0-d float64 arguments twice
            hyper = dict(zip(names, raw["raw"].sigmoid().unbind(), strict=True))
            after = inner(inner(state["params"], hyper, td), hyper, td)
            value = losses.policy_gradient_loss(judged(after, td, 0.99, 0.95))
            return losses.total(value), after

        slope, after = grad(outer, has_aux=True)(state["hyper"])
        updates, memory = adam.update(slope, state["optimizer"], state["hyper"])
        hyper = optim.apply_updates(state["hyper"], updates)
        return tree.new({"params": after, "hyper": hyper, "optimizer": memory}), slope

    hyper = tree.new({"raw": torch.tensor([2.0, 1.0, -1.0], dtype=D)})
    state = tree.new({"params": params, "hyper": hyper, "optimizer": adam.init(hyper)})
    run = Compiled(step)
    for k in range(2):
        state, slope = run.same(state, trajectory(rng.fold_in(rng.key(1), k)))
    assert run.graphs == 1 and bool((slope["raw"] != 0).all())


def trajectory(key):
    size = (3, 5)
    done = rng.bernoulli(rng.fold_in(key, "done"), 0.2, size)
    after = {"observation": rng.normal(key, (*size, 2), dtype=D), "done": done}
    after |= {"reward": rng.uniform(key, size, dtype=D), "terminated": done}
    seen = rng.normal(rng.fold_in(key, "now"), (*size, 2), dtype=D)
    now = {"observation": seen, "action": rng.randint(key, size, 0, 2)}
    return tree.new({**now, "next": tree.new(after, size)}, size)
