"""What a temporally-aware rule is told of a life, and that it counts it."""

from functools import partial

import pytest
import torch
from torch.distributions import Categorical

from paramtree import check_grads, envs, grad, meta, optim, rng, tree, vmap

D = torch.float64
WORLD = envs.level_distribution("small")
OPTIONS = {"cell": "gru", "n_embedding": 3, "gamma_input": False, "activation": torch.relu}


def network(on=True):
    return meta.lpg_network(4, 6, lifetime_input=on, **OPTIONS)


def trajectory(*size):
    def draw(name, *shape):
        return rng.normal(rng.fold_in(rng.key(1), name), (*size, *shape), dtype=D)

    entries = {
        "reward": draw("reward"),
        "done": draw("done") > 1,
        "action_prob": draw("chance").sigmoid(),
        "prediction": draw("prediction", 4),
        "next": tree.new({"prediction": draw("next", 4)}, size),
    }
    return tree.new(entries, size)


def double(nest):
    leaves, structure = tree.flatten(nest)
    return tree.unflatten(structure, [x.double() if x.is_floating_point() else x for x in leaves])


def buffers(age, lifetime):
    return tree.new(
        {"age": torch.tensor(age, dtype=D), "lifetime": torch.tensor(lifetime, dtype=D)}
    )


def test_without_it_nothing_is_there():
    params, nothing = network(False).init(rng.key(0))
    assert not nothing.keys() and params["gru", "weight_ih"].shape == (18, 5)
    plain, _ = meta.lpg_network(4, 6, **OPTIONS).init(rng.key(0))
    for x, y in zip(tree.leaves(params), tree.leaves(plain), strict=True):
        assert torch.equal(x, y)


def test_two_inputs_more_are_the_fraction_and_the_logarithm():
    """A network without them whose bias has their columns times what is told gives the same."""
    aware, plain = network(), network(False)
    params, start = aware.init(rng.key(0))
    assert {name: float(x) for name, x in start.items()} == {"age": 0.0, "lifetime": 1.0}
    params = double(tree.replace(params, {"pi_hat.weight": rng.normal(rng.key(2), (1, 6))}))
    weight = params["gru", "weight_ih"]
    assert weight.shape == (18, 7)
    for age, lifetime in ((0.0, 1.0), (30.0, 120.0), (119.0, 120.0), (400.0, 120.0)):
        told = torch.tensor(
            [min(age / lifetime, 1.0), 0.1 * torch.log(torch.tensor(lifetime))], dtype=D
        )
        moved = params["gru", "bias_ih"] + weight[:, 5:] @ told
        same = tree.replace(params, {"gru.weight_ih": weight[:, :5], "gru.bias_ih": moved})
        td = trajectory(3, 5)
        ours, after = aware.apply(params, buffers(age, lifetime), td)
        wanted, _ = plain.apply(same, tree.new({}), td)
        torch.testing.assert_close(ours["pi_hat"], wanted["pi_hat"], rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(ours["y_hat"], wanted["y_hat"], rtol=1e-6, atol=1e-7)
        assert float(after["age"]) == age + 1 and float(after["lifetime"]) == lifetime
        assert after.is_locked


def test_what_is_told_matters_and_each_task_has_its_own():
    aware = network()
    params, _ = aware.init(rng.key(0))
    params = double(tree.replace(params, {"pi_hat.weight": rng.normal(rng.key(2), (1, 6))}))
    lives = tree.stack([buffers(0.0, 50.0), buffers(40.0, 50.0), buffers(40.0, 1000.0)])
    tds = tree.stack([trajectory(2, 5)] * 3)
    out, after = vmap(partial(aware.apply, params))(lives, tds)
    assert not torch.allclose(out["pi_hat"][0], out["pi_hat"][1])
    assert not torch.allclose(out["pi_hat"][1], out["pi_hat"][2])
    assert after["age"].tolist() == [1.0, 41.0, 41.0]
    alone, _ = aware.apply(params, tree.lock(lives[2]), trajectory(2, 5))
    torch.testing.assert_close(out["pi_hat"][2], alone["pi_hat"])


def test_buffers_that_are_not_those_of_a_life_are_refused():
    params = double(network().init(rng.key(0))[0])
    for wrong in (tree.new({}), tree.new({"age": torch.zeros(2), "lifetime": torch.ones(2)})):
        with pytest.raises(
            ValueError, match="lpg_network: buffers lack age and lifetime, 0-d each"
        ):
            network().apply(params, wrong, trajectory(3))


# -------------------------------------------------------------------------------- in the inner loop


def population(lifetime):
    return meta.lpg_population(WORLD, 3, n_prediction=4, workers=2, lifetime=lifetime)


def test_births_write_the_lifetime_and_updates_count_the_age():
    rule, habitat = meta.lpg_rule(network()), population((2, 90)).habitat
    agents = meta.births(habitat, rule, rng.key(0), 3)
    assert torch.equal(agents["rule", "lifetime"], agents["lifetime"].float())
    assert len(set(agents["lifetime"].tolist())) > 1 and (agents["rule", "age"] == 0).all()
    params, _ = rule.init(rng.key(1))
    groups = {"a": (*habitat[:2], agents["level"])}
    states, _ = meta.inner_loop(
        rule,
        groups,
        habitat.optimizer,
        params,
        tree.new({"a": agents}),
        rng.key(2),
        updates=3,
        length=4,
    )
    assert states["a", "rule", "age"].tolist() == [3.0] * 3
    assert torch.equal(states["a", "rule", "lifetime"], agents["rule", "lifetime"])


def test_the_meta_gradient_reaches_what_the_new_inputs_are_weighed_with():
    rule = meta.lpg_rule(network())
    train = meta.lpg_training(rule, {"a": population(20)}, optim.sgd(1.0), updates=2, length=6)
    state = train.init(rng.key(0))
    head = rng.normal(rng.key(11), (1, 6))
    state = tree.replace(state, {"rule.pi_hat.weight": head})
    after, _ = train.step(state)
    slope = (state["rule", "gru", "weight_ih"] - after["rule", "gru", "weight_ih"])[:, 5:]
    assert (slope.abs().amax(0) > 0).all()
    ages = after["agents", "a", "age"]
    assert torch.equal(after["agents", "a", "rule", "age"], ages.float())
    again, _ = train.step(after)  # resumes from its tree
    assert again["step"] == 2


def test_gradient_with_respect_to_params_through_one_update():
    rule, habitat = meta.lpg_rule(network(), full_stop=False), population(8).habitat
    params, _ = rule.init(rng.key(1))
    params = double(tree.replace(params, {"pi_hat.weight": rng.normal(rng.key(2), (1, 6))}))
    agent = double(meta.birth(habitat, rule, rng.key(3)))
    _, _, td = envs.rollout(
        habitat.env,
        habitat.agent,
        agent["params"],
        agent["buffers"],
        agent["level"],
        agent["env"],
        rng.key(4),
        6,
        Categorical,
    )
    sgd = optim.sgd(0.5)
    agent = tree.replace(agent, {"optimizer": sgd.init(agent["params"]), "rule": buffers(3.0, 8.0)})

    def size(p):
        after, _ = meta.update_agent(rule, habitat.agent, sgd, p, agent, td)
        return sum(x.square().sum() for x in tree.leaves(after["params"]))

    check_grads(size, params, max_entries=4)
    assert (grad(size)(params)["gru", "weight_ih"][:, 5:].abs().amax(0) > 0).all()
