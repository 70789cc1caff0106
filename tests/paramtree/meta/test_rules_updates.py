"""One update of one agent: passes, parts, keys, and whose hyper-parameters count."""

import pytest
import torch
from torch.testing import assert_close

import losses
from paramtree import grad, optim, rng, tree, vmap
from paramtree.envs import level_distribution
from paramtree.meta import (
    UpdateRule,
    a2c_habitat,
    a2c_rule,
    birth,
    ppo_rule,
    train_agent,
    update_agent,
)
from paramtree.model import with_next
from tests.paramtree.meta.rule_problems import (
    ACTOR_CRITIC,
    D,
    draw,
    newborn,
    trajectory,
)

NONE = tree.new({})
SGD = optim.sgd(0.3)


def updated(rule, td, optimizer=SGD, state=None, **more):
    start = newborn(ACTOR_CRITIC, SGD, rule) if state is None else state
    return update_agent(rule, ACTOR_CRITIC, optimizer, NONE, start, td, **more)[0]


def assert_same(a, b, **tolerance):
    for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True):
        assert_close(x, y, **tolerance)


def test_passes_and_parts_are_those_of_a_loop_by_hand():
    """Adam too, whose moments go on from part to part; the targets stay those from before."""
    td, key, adam = trajectory(), rng.key(5), optim.adam(0.05)
    rule = ppo_rule(0.9, 0.8, epochs=3, minibatches=2, entropy_coeff=0.1, value_clip=0.2)
    state = newborn(ACTOR_CRITIC, adam, rule)
    after = updated(rule, td, adam, state, key=key)
    p, buffers, memory = state["params"], state["buffers"], state["optimizer"]
    seen = losses.add_advantage(with_next(ACTOR_CRITIC)(p, buffers, td), 0.9, 0.8)
    before = tree.new({"state_value": seen["state_value"]}, td.batch_size)
    seen = tree.new({**tree.entries(seen), "behavior": before}, td.batch_size)
    for epoch in range(3):
        order = rng.permutation(rng.fold_in(key, epoch), 4).tolist()
        assert sorted(order) == [0, 1, 2, 3]
        for rows in (order[:2], order[2:]):

            def loss(p, rows=rows):
                some = ACTOR_CRITIC(p, buffers, tree.take(seen, rows))
                options = {"eps": 0.2, "value_clip": 0.2, "entropy_coeff": 0.1}
                return losses.total(losses.ppo_clip_loss(some, normalize_advantage=True, **options))

            updates, memory = adam.update(grad(loss)(p), memory, p)
            p = optim.apply_updates(p, updates)
    assert_same(after["params"], p, rtol=1e-12, atol=1e-12)
    assert_same(after["optimizer"], memory, rtol=1e-12, atol=1e-12)
    once = updated(rule._replace(epochs=1, minibatches=1), td, adam, state)
    assert not torch.allclose(
        once["params", "actor", "weight"], after["params", "actor", "weight"], atol=1e-3
    )


def test_several_passes_in_one_part_are_steps_to_the_same_targets():
    td, rule = trajectory(), a2c_rule(0.9, 0.8)._replace(epochs=3)
    state = newborn(ACTOR_CRITIC, SGD, rule)
    p, buffers = state["params"], state["buffers"]
    seen = rule.apply(NONE, NONE, with_next(ACTOR_CRITIC)(p, buffers, td))[0]
    for _ in range(3):
        slope = grad(lambda p: losses.total(rule.loss(ACTOR_CRITIC(p, buffers, seen))))(p)
        p = tree.map(lambda x, g: x - 0.3 * g, p, slope)
    assert_same(updated(rule, td)["params"], p, rtol=1e-12, atol=1e-12)


def test_one_pass_in_one_part_needs_no_key_and_ignores_it():
    td, rule = trajectory(), a2c_rule(0.9, 0.8)
    assert_same(updated(rule, td), updated(rule, td, key=rng.key(1)), rtol=0, atol=0)


def test_each_pass_has_an_order_of_its_own_and_another_key_another():
    td, seen = trajectory(), []

    def loss(td):
        seen.append(td["next", "reward"][:, 0].tolist())
        return losses.a2c_loss(td)

    rule = a2c_rule(0.9, 0.8)
    rule = UpdateRule(rule.init, rule.apply, loss, epochs=4, minibatches=4)
    orders = []
    for k in range(3):
        seen.clear()
        updated(rule, td, key=rng.key(k))
        assert len(seen) == 16
        whole = sorted(td["next", "reward"][:, 0].tolist())
        for epoch in range(4):
            rows = [row for part in seen[4 * epoch : 4 * epoch + 4] for row in part]
            assert sorted(rows) == whole
            orders.append(tuple(rows))
    assert len(set(orders)) > 6


def test_what_does_not_fit_is_refused():
    rule, td = ppo_rule(epochs=1, minibatches=2), trajectory()
    with pytest.raises(ValueError, match=r"key is None, expected a key \[2\] \(the rule has 2 m"):
        updated(rule, td)
    with pytest.raises(ValueError, match="td has 4 workers, expected a multiple of 3"):
        updated(rule._replace(minibatches=3), td, key=rng.key(0))
    for size in ((5,), (4, 5)):
        flat = trajectory(size=size)
        if len(size) == 2:
            flat.names = ["time", "worker"]
        with pytest.raises(ValueError, match=r"expected \[workers, ..., T\]"):
            updated(rule, flat, key=rng.key(0))
    for name in ("epochs", "minibatches"):
        with pytest.raises(ValueError, match=f"rule.{name} is 0, expected a whole number"):
            updated(rule._replace(**{name: 0}), td, key=rng.key(0))


def test_an_agent_has_hyper_parameters_of_its_own():
    td, rule = trajectory(), a2c_rule(0.9, 0.8)
    state = newborn(ACTOR_CRITIC, SGD, rule)
    numbers = {"rate": torch.tensor(0.05, dtype=D), "entropy_coeff": torch.tensor(0.4, dtype=D)}
    hyper = tree.new(
        {
            "optimizer": tree.new({"rate": numbers["rate"]}),
            "loss": tree.new({"entropy_coeff": numbers["entropy_coeff"]}),
        }
    )
    own = tree.new({**tree.entries(state), "hyper": hyper})

    def make(hyper):
        return optim.sgd(hyper["rate"])

    ours = updated(rule, td, make, own)
    wanted = updated(a2c_rule(0.9, 0.8, entropy_coeff=0.4), td, optim.sgd(0.05), state)
    assert_same(ours["params"], wanted["params"])
    assert torch.equal(ours["hyper", "optimizer", "rate"], numbers["rate"])
    given = tree.new({"entropy_coeff": torch.tensor(0.2, dtype=D)})  # wins over the agent's own
    ours = updated(rule, td, make, own, hyper=given)
    wanted = updated(a2c_rule(0.9, 0.8, entropy_coeff=0.2), td, optim.sgd(0.05), state)
    assert_same(ours["params"], wanted["params"])
    with pytest.raises(ValueError, match="optimizer is a function of state"):
        updated(rule, td, make, state)


def test_many_agents_are_a_loop_over_them():
    """Each with a key, an optimizer's rate and a trajectory of its own."""
    rule = ppo_rule(0.9, 0.8, epochs=2, minibatches=2)
    tds, keys = [trajectory("a"), trajectory("b"), trajectory("c")], rng.split(rng.key(9), 3)
    rates = draw("rates", 3, low=0.1, high=0.5)
    start = newborn(ACTOR_CRITIC, SGD, rule)

    def one(rate, td, key):
        hyper = tree.new({"optimizer": tree.new({"rate": rate})})
        state = tree.new({**tree.entries(start), "hyper": hyper})
        return updated(rule, td, lambda h: optim.sgd(h["rate"]), state, key=key)["params"]

    together = vmap(one)(rates, tree.stack(tds), keys)
    for i, td in enumerate(tds):
        assert_same(tree.unstack(together)[i], one(rates[i], td, keys[i]), rtol=1e-12, atol=1e-12)


def test_train_agent_gives_each_update_a_key():
    world = level_distribution("small")
    home = a2c_habitat(world, workers=4)
    orders = []

    def loss(td):
        orders.append(td["next", "reward"].shape)
        return losses.ppo_clip_loss(td)

    rule = ppo_rule(epochs=2, minibatches=2)._replace(loss=loss)
    state = birth(home, rule, rng.key(1))
    parts = (rule, home.agent, home.env, home.optimizer, NONE, state["level"], state)
    after, tds = train_agent(*parts, rng.key(4), updates=2, length=4)
    assert orders == 8 * [(2, 4)] and len(tds) == 2
    step = rng.fold_in(rng.fold_in(rng.key(4), 1), "update")
    first, (td, *_) = train_agent(*parts, rng.key(4), updates=1, length=4)
    second, _ = update_agent(rule, home.agent, home.optimizer, NONE, first, tds[1], key=step)
    assert torch.equal(td["action"], tds[0]["action"])
    assert_same(second["params"], after["params"], rtol=0, atol=0)
