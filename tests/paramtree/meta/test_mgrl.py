"""A training by meta-gradients as a whole: what it plays, what it keeps, what it refuses."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

import losses
from paramtree import (
    Model,
    compose,
    envs,
    grad,
    meta,
    nn,
    optim,
    rng,
    td_model,
    tree,
    vmap,
    with_next,
)
from tests.paramtree.meta.mgrl_problems import (
    AGENT,
    NUMBERS,
    WORKERS,
    D,
    a2c,
    double,
    first,
    gradient,
    judgment,
    training,
)
from tests.paramtree.meta.ways import assert_same

WAYS = {
    "truncated": {"window": 1},
    "forward": {"method": "forward"},
    "trace": {"method": "trace", "exact": True, "decay": 0.9},
    "tasks": {"tasks": 2},
}


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_seeds_are_one_more_axis(options):
    updates = 1 if "method" in options else 2
    made = training("a2c", updates, eta_optimizer=optim.adam(0.1), **options)
    together = double(vmap(made.init)(rng.split(rng.key(3), 3)))
    alone = [tree.lock(together[i]) for i in range(3)]
    for _ in range(2):
        together, metrics = vmap(made.step)(together)
        pairs = [made.step(one) for one in alone]
        alone = [one for one, _ in pairs]
    assert_same(together, tree.stack(alone), rtol=1e-9, atol=1e-11)
    assert_same(metrics, tree.stack([own for _, own in pairs]), rtol=1e-9, atol=1e-11)
    assert len({float(x) for x in together["eta", "gamma"].flatten()}) == 3


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_steps_are_differentiable_in_the_outer_rate(options):
    """What two steps come to, against central differences."""

    def outcome(rate):
        made = training("a2c", 2, eta_optimizer=optim.sgd(rate), **options)
        state, told = first(made), 0.0
        for _ in range(2):
            state, metrics = made.step(state)
            told = told + metrics["meta_loss"]
        return told + sum(x.sum() for x in tree.leaves(state["eta"]))

    rate = torch.tensor(0.3, dtype=D)
    central = (outcome(rate + 1e-5) - outcome(rate - 1e-5)) / 2e-5
    assert_close(grad(outcome)(rate), central, rtol=1e-6, atol=1e-8)
    assert central.abs() > 1e-3


def test_the_trajectory_that_judges_is_what_the_next_update_learns_from():
    made, rate = training("a2c", 1, eta_optimizer=optim.sgd(0.1)), 0.3
    before = first(made)
    after, metrics = made.step(before)
    agents, eta = before["agents"], before["eta"]
    rule = a2c(meta.to_hyper(eta))
    updated, _ = meta.update_agent(
        rule, AGENT, optim.sgd(rate), tree.new({}), agents, agents["trajectory"]
    )
    assert_same(after["agents", "params"], updated["params"], rtol=1e-6, atol=1e-7)
    params, buffers = after["agents", "params"], after["agents", "buffers"]
    judged = with_next(AGENT)(params, buffers, after["agents", "trajectory"])
    assert_close(
        metrics["meta_loss"], losses.total(judgment(judged, torch.distributions.Categorical))
    )
    tries = after["agents", "trajectory"]
    acting = AGENT(params, buffers, tries)["logits"].log_softmax(-1)
    chance = acting.gather(-1, tries["action"].unsqueeze(-1)).squeeze(-1)
    assert_close(tries["action_log_prob"], chance)  # played by the updated agent


def test_validation_on_the_same_trajectory_is_of_the_updated_agent():
    made = training("a2c", 1, validation="same")
    before = first(made)
    after, metrics = made.step(before)
    params, buffers = after["agents", "params"], after["agents", "buffers"]
    judged = with_next(AGENT)(params, buffers, before["agents", "trajectory"])
    assert_close(
        metrics["meta_loss"], losses.total(judgment(judged, torch.distributions.Categorical))
    )


def test_the_outer_loss_is_an_actor_critic_at_reference_discounts_by_default():
    made = training("a2c", 1, outer=losses.mgrl_outer_loss)
    after, metrics = made.step(first(made))
    params, buffers = after["agents", "params"], after["agents", "buffers"]
    judged = with_next(AGENT)(params, buffers, after["agents", "trajectory"])
    wanted = losses.total(
        losses.mgrl_outer_loss(judged, reference_gamma=0.995, reference_lmbda=1.0)
    )
    assert_close(metrics["meta_loss"], wanted)


def test_eta_descends_its_gradient():
    kept, made = training("vtrace", 2), training("vtrace", 2, eta_optimizer=optim.sgd(0.5))
    state = first(made)
    slope = gradient(kept, first(kept))
    after, metrics = made.step(state)
    assert_same(after["eta"], tree.sub(state["eta"], tree.scale(slope, 0.5)), rtol=0, atol=1e-12)
    assert_close(metrics["meta_gradient"], tree.norm(slope))
    assert_close(metrics["gamma"], torch.sigmoid(state["eta", "gamma"]))


def test_returns_are_those_of_the_episodes():
    level = envs.cart_pole_level(theta_threshold_radians=0.06, max_steps=9)
    made = training("a2c", 1, level=level)
    state, metrics = first(made), tree.new({})
    parts = [state["agents", "trajectory"]]
    for _ in range(5):
        state, metrics = made.step(state)
        parts.append(state["agents", "trajectory"])
    steps = [torch.cat([td["next", name] for td in parts], 1) for name in ("reward", "done")]
    last, count = [], 0
    for rewards, done in zip(*steps, strict=True):
        total, ended = 0.0, []
        for reward, over in zip(rewards.tolist(), done.tolist(), strict=True):
            total += reward
            if over:
                ended.append(total)
                total = 0.0
        last.append(ended[-1])
        count += len(ended)
    assert float(metrics["return"]) == pytest.approx(sum(last) / WORKERS)
    assert int(metrics["episodes"]) == count and len(set(last)) > 1
    assert float(metrics["reward"]) == 1.0


def test_each_step_begins_with_new_agents_where_they_are_to_be_fresh():
    made, going_on = training("a2c", 2, fresh=True), training("a2c", 2)
    state = first(made)
    scaled = tree.map(lambda x: 2 * x, state["agents", "params"])
    others = tree.replace(state, {("agents", "params"): scaled})
    ours, same = made.step(state)[0], made.step(others)[0]
    assert_same(ours["agents"], same["agents"], rtol=0, atol=0)
    moved = going_on.step(others)[0]["agents", "params"]
    assert not tree.allclose(moved, going_on.step(state)[0]["agents", "params"])
    following = made.step(ours)[0]
    assert not tree.allclose(following["agents", "params"], ours["agents", "params"])


# ------------------------------------------------------------------------- agents that see eta


def seeing():
    def head(size, name):
        net = nn.mlp(4 + len(NUMBERS), 5, size)
        joined = Model(net.init, lambda p, b, x: net.apply(p, b, torch.cat(x, -1)))
        return td_model(joined, ["observation", "eta"], name)

    return compose(actor=head(2, "logits"), critic=head(1, "state_value"))


@pytest.mark.parametrize("method", ["truncated", "forward"])
def test_an_agent_that_sees_eta_does_so_in_all_it_does(method):
    """It's the agent that has the same numbers for constants, with the same gradient."""
    agent = seeing()
    made = training("a2c", 2, agent=agent, conditioned=True, method=method)
    state = first(made)
    numbers = torch.stack(tree.leaves(state["eta"]))

    def apply(params, buffers, td):
        given = {**tree.entries(td), "eta": numbers.expand(*td.batch_size, len(numbers))}
        out, buffers = agent.apply(params, buffers, tree.rebuild(td, given))
        return out.exclude("eta").lock_(), buffers

    fixed = training("a2c", 2, agent=Model(agent.init, apply), method=method)
    ours, metrics = made.step(state)
    wanted, others = fixed.step(state)
    assert_same(ours, wanted, rtol=0, atol=0)
    assert_same(metrics, others, rtol=0, atol=0)
    assert "eta" not in state["agents", "trajectory"].keys()
    moved = tree.map(lambda x: x + 1, state["eta"])
    acting = [
        made.step(tree.replace(state, {"eta": at}))[0]["agents", "trajectory"]
        for at in (state["eta"], moved)
    ]
    assert not torch.allclose(acting[0]["logits"], acting[1]["logits"], rtol=1e-2)


def test_a_schedule_shows_the_agent_the_number_of_its_update():
    hyper = meta.hyper_schedule({"gamma": 0.9, "lmbda": 0.8}, 2)
    eta = tree.new({"gamma": torch.tensor([1.0, 2.0]), "lmbda": torch.tensor([3.0, 4.0])})
    assert hyper.view(eta, 1).tolist() == [2.0, 4.0] and hyper.view(eta, 2).tolist() == [1.0, 3.0]
    found, _ = hyper.apply(eta, tree.new({}), 3)
    assert_close(found["gamma"], torch.tensor(2.0).sigmoid())
    assert hyper.show(eta, tree.new({}))["lmbda"].shape == (2,)


# ------------------------------------------------------------------------------------ constraints


def test_constraints_and_their_inverses():
    values = {"gamma": 0.99, "entropy_coeff": 0.02, "lr": 3e-4, "temperature": -2.0}
    more = {"temperature": "none"}
    eta = meta.to_eta({n: torch.tensor(v, dtype=D) for n, v in values.items()}, more)
    hyper = meta.to_hyper(eta, more)
    for name, value in values.items():
        assert float(hyper[name]) == pytest.approx(value, rel=1e-12)
    assert float(eta["gamma"]) == pytest.approx(torch.logit(torch.tensor(0.99, dtype=D)).item())
    assert float(eta["lr"]) == pytest.approx(-8.111728083308073)
    assert float(eta["entropy_coeff"].exp().log1p()) == pytest.approx(0.02)
    half = meta.Constraint(lambda x: 0.5 + 0.5 * x.sigmoid(), lambda x: (2 * x - 1).logit())
    own = meta.to_hyper(tree.new({"gamma": torch.tensor(0.0)}), {"gamma": half})
    assert float(own["gamma"]) == 0.75
    assert meta.to_eta({"lr": 0.1})["lr"].dtype == torch.get_default_dtype()


@pytest.mark.parametrize(
    ("hyper", "constraints", "error", "text"),
    [
        ({"gamma": 1.0}, None, ValueError, r"hyper.gamma is 1.0, which its constraint can't give"),
        ({"lr": 0.0}, None, ValueError, "hyper.lr is 0.0"),
        (
            {"lr": 1e300, "entropy_coeff": 1e300},
            None,
            ValueError,
            "hyper.entropy_coeff is 1e\\+300",
        ),
        (
            {"gamma": torch.tensor(1.0)},
            None,
            ValueError,
            "hyper.gamma is 1.0, which its constraint",
        ),
        ({"gamma": torch.tensor([0.5, 1.5])}, None, ValueError, "hyper.gamma is 1.5"),
        ({"lr": torch.tensor(torch.nan)}, None, ValueError, "hyper.lr is nan"),
        ({"entropy_coeff": -0.1}, None, ValueError, "hyper.entropy_coeff is -0.1"),
        ({}, None, ValueError, "hyper is empty"),
        ({"odd": 0.1}, None, ValueError, "odd has no constraint, expected one of 'sigmoid'"),
        ({"odd": 0.1}, {"odd": "tanh"}, ValueError, "constraints.odd is 'tanh', expected one of"),
        ({"odd": 0.1}, {"odd": 3}, TypeError, "constraints.odd is an? int"),
        ({"odd": 0.1}, "exp", TypeError, "constraints is "),
        ({"gamma": "0.9"}, None, TypeError, "hyper.gamma is "),
        (
            {"gamma": torch.tensor(1)},
            None,
            TypeError,
            "hyper.gamma is torch.int64, expected a float",
        ),
        (0.9, None, TypeError, "hyper is "),
    ],
)
def test_what_has_no_unconstrained_number_is_refused(hyper, constraints, error, text):
    with pytest.raises(error, match=f"^to_eta: .*{text}"):
        meta.to_eta(hyper, constraints)


def test_makers_of_hyper_parameters_refuse_what_they_cant_be():
    with pytest.raises(ValueError, match=r"hyper_numbers: start.gamma has shape \(2,\)"):
        meta.hyper_numbers({"gamma": torch.tensor([0.5, 0.6])})
    with pytest.raises(ValueError, match="hyper_schedule: updates is 0"):
        meta.hyper_schedule({"gamma": 0.5}, 0)
    net = td_model(nn.linear(4, 1), "observation", "discount")
    with pytest.raises(ValueError, match="hyper_network: constraints is empty"):
        meta.hyper_network(net, {})
    hyper = meta.hyper_network(net, {"gamma": "sigmoid"})
    td = tree.new({"observation": torch.zeros(2, 3, 4)}, (2, 3))
    with pytest.raises(ValueError, match="the model wrote observation, discount, expected gamma"):
        hyper.apply(hyper.init(rng.key(0)), td, 0)
    with pytest.raises(ValueError, match="expected hyper_numbers or hyper_schedule"):
        hyper.view(hyper.init(rng.key(0)), 0)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"updates": 0}, ValueError, "updates is 0, expected at least 1"),
        ({"length": 0}, ValueError, "length is 0"),
        ({"workers": 0}, ValueError, "workers is 0"),
        ({"tasks": 0}, ValueError, "tasks is 0"),
        ({"updates": 2.0}, TypeError, "updates is 2.0, expected an int"),
        ({"method": "backward"}, ValueError, "method is 'backward', expected one of 'truncated'"),
        (
            {"validation": "last"},
            ValueError,
            "validation is 'last', expected one of 'next', 'same'",
        ),
        ({"window": 3}, ValueError, "window is 3, expected at most 2"),
        ({"window": 0}, ValueError, "window is 0"),
        ({"window": 1, "method": "forward"}, ValueError, "window is given with method 'forward'"),
        ({"decay": 0.5}, ValueError, "decay is given with method 'truncated', expected 'trace'"),
        ({"exact": True, "method": "forward"}, ValueError, "exact is given with method 'forward'"),
        ({"decay": 1.5, "method": "trace"}, ValueError, "decay is 1.5, expected at most 1"),
        ({"decay": -0.5, "method": "trace"}, ValueError, "decay is -0.5, expected at least 0"),
        ({"rule": meta.a2c_rule()}, TypeError, "rule is .*, expected a function"),
        ({"optimizer": optim.sgd(0.1)}, TypeError, "optimizer is .*, expected a function"),
        ({"outer": None}, TypeError, "outer is .*, expected a reducer"),
        ({"hyper": {"gamma": 0.9}}, TypeError, "hyper is .*, expected a Hyper such as"),
        ({"eta_optimizer": 0.1}, TypeError, "eta_optimizer is .*, expected a Transform"),
    ],
)
def test_a_training_refuses(options, error, text):
    with pytest.raises(error, match=f"^mgrl_training: {text}"):
        training(**{"name": "a2c", "updates": 2, **options})


def test_a_rule_with_params_is_refused():
    network = meta.lpg_network(4, 5, n_embedding=3)
    with pytest.raises(ValueError, match="the rule has params; a rule that is learned"):
        training(rule=lambda h: meta.lpg_rule(network)).init(rng.key(0))


def test_levels_are_drawn_for_each_agent():
    def level(key):
        return envs.cart_pole_level(length=rng.uniform(key, (), 0.2, 2.0), max_steps=4)

    state = training(level=level, tasks=3).init(rng.key(2))
    assert len(set(state["agents", "level", "length"].tolist())) == 3


def test_metrics_name_every_hyper_parameter():
    hyper = meta.hyper_schedule({**NUMBERS, "clip_epsilon": 0.2}, 2)
    made = training("ppo", 2, hyper=hyper)
    _, metrics = made.step(made.init(rng.key(0)))
    assert set(metrics.keys()) == {*NUMBERS, "clip_epsilon"} | {
        *("reward", "return", "episodes", "meta_loss", "meta_gradient", "bad")
    }
    assert metrics["gamma"].shape == (2,) and metrics["reward"].shape == ()


def test_other_reference_discounts_are_a_partial():
    outer = partial(losses.mgrl_outer_loss, reference_gamma=0.9, critic_coeff=0.5)
    _, metrics = training(outer=outer).step(first(training(outer=outer)))
    assert bool(metrics["meta_gradient"] > 0)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"method": "trace", "exact": True}], ids=["back", "trace"])
def test_a_step_compiles(options):
    made = training("a2c", 1, eta_optimizer=optim.sgd(0.1), **options)
    state = first(made)
    compiled = torch.compile(made.step, backend="aot_eager", fullgraph=True)
    (ours, metrics), (wanted, others) = compiled(state), made.step(state)
    assert_same(ours, wanted, rtol=1e-9, atol=1e-11)
    assert_same(metrics, others, rtol=1e-9, atol=1e-11)
