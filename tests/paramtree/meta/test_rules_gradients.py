"""Every hyper-parameter of every rule, through several updates, beside central differences."""

import pytest
import torch

import losses
from paramtree import check_grads, optim, rng, tree
from paramtree.meta import es_grad, update_agent
from paramtree.model import with_next
from tests.paramtree.meta.rule_problems import (
    ACTOR_CRITIC,
    LPO,
    RULES,
    D,
    agent_of,
    double,
    newborn,
    trajectory,
)

NONE = tree.new({})
TDS = [trajectory(name) for name in "abcde"]
LATER = trajectory("later")


def outer(agent, rule, rule_params, optimizer, state, updates):
    """What becomes of an agent, in a number."""
    for k in range(updates):
        key = rng.fold_in(rng.key(6), k)
        state, _ = update_agent(rule, agent, optimizer, rule_params, state, TDS[k], key=key)
    out = with_next(agent)(state["params"], state["buffers"], LATER)
    return sum(
        x.sin().mean()
        for x in (out[n] for n in ("logits", "state_value", "action_value") if n in out.keys())
    )


@pytest.mark.parametrize("updates", [2, 5])
@pytest.mark.parametrize("name", RULES)
def test_every_hyper_parameter_of_every_rule(name, updates):
    make, numbers = RULES[name]
    agent = agent_of(name)
    start = newborn(agent, optim.sgd(0.3), make(**numbers))

    def final(hyper):
        rate = tree.new({"optimizer": tree.new({"rate": hyper["rate"]})})
        state = tree.new({**tree.entries(start), "hyper": rate})
        rule = make(**{key: hyper[key] for key in numbers})
        return outer(agent, rule, NONE, lambda h: optim.sgd(h["rate"]), state, updates)

    values = {key: torch.tensor(value, dtype=D) for key, value in {**numbers, "rate": 0.3}.items()}
    check_grads(final, tree.new(values), rtol=1e-5)


@pytest.mark.parametrize("updates", [2, 5])
def test_the_parameters_of_a_learned_drift_and_of_the_first_agent(updates):
    params = tree.map(lambda x: 2 * x, double(LPO.init(rng.key(1))[0]))
    start = newborn(ACTOR_CRITIC, optim.sgd(0.3), LPO)

    def final(params, first):
        state = tree.new({**tree.entries(start), "params": first})
        return outer(ACTOR_CRITIC, LPO, params, optim.sgd(0.3), state, updates)

    check_grads(final, params, start["params"], max_entries=6 // updates, rtol=1e-5)


def test_a_learned_drift_is_trained_by_evolution_too():
    params = double(LPO.init(rng.key(1))[0])
    start = newborn(ACTOR_CRITIC, optim.sgd(0.3), LPO)

    def final(params):
        return outer(ACTOR_CRITIC, LPO, params, optim.sgd(0.3), start, 2)

    _, slope = es_grad(final, rng.key(2), sigma=0.05, samples=4)(params)
    assert tree.paths(slope) == tree.paths(params) and tree.norm(slope) > 0


def test_the_loss_takes_hyper_parameters_by_the_names_of_the_rule():
    for name, (make, numbers) in RULES.items():
        weights = {"gamma", "lmbda", "rho_clip", "c_clip", "pg_rho_clip"}
        own = {key: 1.3 * value for key, value in numbers.items() if key not in weights}
        agent, rule = agent_of(name), make(**numbers)
        params, buffers = agent.init(rng.key(3))
        td = rule.apply(NONE, NONE, with_next(agent)(double(params), buffers, TDS[0]))[0]
        changed = make(**{**numbers, **own})
        wanted = losses.total(changed.loss(td))
        assert torch.equal(losses.total(rule.loss(td, **own)), wanted)
        assert not own or not torch.equal(losses.total(rule.loss(td)), wanted)
