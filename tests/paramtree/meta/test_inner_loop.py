"""The inner loop: a batch of tasks is a loop over them, and every gradient is right."""

import pytest
import torch
from tensordict import TensorDict

import losses
from paramtree import optim, rng, tree
from paramtree.autodiff import check_grads, grad, vmap
from paramtree.envs import level_distribution
from paramtree.meta import (
    Habitat,
    a2c_habitat,
    a2c_rule,
    agent_model,
    births,
    inner_loop,
    lifetime_scores,
    lpg_network,
    lpg_rule,
    older,
    renew,
    reward_curve,
    train_agent,
    update_agent,
)
from paramtree.model import compose

SMALL = level_distribution("small")


def habitat(world=SMALL, out=("logits", "state_value"), optimizer=None, workers=3, lifetime=10):
    sizes = {"logits": world.n_actions, "state_value": 1, "prediction": 4}
    agent = compose(**{name: agent_model(world, sizes[name], name) for name in out})
    return Habitat(agent, world.env, world.sample, optimizer or optim.sgd(0.5), workers, lifetime)


def double(nest):
    leaves, structure = tree.flatten(nest)
    return tree.unflatten(structure, [x.double() if x.is_floating_point() else x for x in leaves])


def awake(params):
    """The rule's parameters, with a head of pi_hat that is not zero as in the beginning."""
    head = params["pi_hat", "weight"]
    return tree.replace(params, {"pi_hat.weight": rng.normal(rng.key(11), tuple(head.shape))})


LPG = lpg_rule(lpg_network(4, 6, n_embedding=3), gamma=0.9)


@pytest.fixture
def lpg():
    home = habitat(out=("logits", "prediction"))
    agents = births(home, LPG, rng.key(1), 3)
    return home, agents, awake(LPG.init(rng.key(2))[0])


def groups_of(**homes):
    return {name: (home.agent, home.env, agents["level"]) for name, (home, agents) in homes.items()}


def test_a_batch_of_tasks_is_a_loop_over_tasks(lpg):
    home, agents, params = lpg
    states, tds = inner_loop(
        LPG,
        groups_of(a=(home, agents)),
        home.optimizer,
        params,
        tree.new({"a": agents}),
        rng.key(3),
        updates=2,
        length=5,
    )
    assert (
        len(tds["a"]) == 2
        and tds["a"][0].batch_size == (3, 3, 5)
        and states["a"].batch_size == (3,)
    )
    keys = rng.split(rng.fold_in(rng.key(3), "a"), 3)
    for i, agent in enumerate(tree.unstack(agents)):
        alone, seen = train_agent(
            LPG,
            home.agent,
            home.env,
            home.optimizer,
            params,
            agent["level"],
            agent,
            keys[i],
            updates=2,
            length=5,
        )
        for ours, theirs in zip(
            tree.leaves(alone), tree.leaves(tree.unstack(states["a"])[i]), strict=True
        ):
            assert torch.allclose(ours, theirs, atol=1e-6)
        assert torch.allclose(seen[1]["pi_hat"], tds["a"][1]["pi_hat"][i], atol=1e-6)
        assert not torch.equal(
            alone["params", "logits", "weight"], agent["params", "logits", "weight"]
        )
    assert states["a"]["level"].batch_size == (3,)


def test_groups_of_different_worlds_and_architectures(lpg):
    home, agents, params = lpg
    other = habitat(
        level_distribution("sparse"), ("logits", "prediction"), optim.adam(0.1), workers=2
    )
    others = births(other, LPG, rng.key(4), 2)
    both = groups_of(a=(home, agents), b=(other, others))
    optimizers = {"a": home.optimizer, "b": other.optimizer}
    run = {"updates": 1, "length": 4}
    states, tds = inner_loop(
        LPG, both, optimizers, params, tree.new({"a": agents, "b": others}), rng.key(3), **run
    )
    assert tds["a"][0].batch_size == (3, 3, 4) and tds["b"][0].batch_size == (2, 2, 4)
    assert states["b", "params", "logits", "weight"].shape[1] == 13 * 13 * 4 + 1
    alone, _ = inner_loop(
        LPG, {"b": both["b"]}, other.optimizer, params, tree.new({"b": others}), rng.key(3), **run
    )
    for ours, theirs in zip(tree.leaves(alone["b"]), tree.leaves(states["b"]), strict=True):
        assert torch.equal(ours, theirs)  # a group doesn't see the others
    for wrong, text in (
        (
            lambda: inner_loop(LPG, {}, other.optimizer, params, tree.new({}), rng.key(0)),
            "no groups given",
        ),
        (
            lambda: inner_loop(LPG, both, optimizers, params, tree.new({"a": agents}), rng.key(0)),
            r"states has the names a, expected a, b",
        ),
        (
            lambda: inner_loop(
                LPG,
                both,
                {"a": home.optimizer},
                params,
                tree.new({"a": agents, "b": others}),
                rng.key(0),
            ),
            "optimizers has the names a",
        ),
        (
            lambda: inner_loop(
                LPG,
                {"a": (home.agent, home.env, agents["level"][0])},
                home.optimizer,
                params,
                tree.new({"a": agents}),
                rng.key(0),
            ),
            r"levels of a have batch size \[\]",
        ),
        (
            lambda: inner_loop(
                LPG,
                {"a": both["a"]},
                home.optimizer,
                params,
                tree.new({"a": agents}),
                rng.key(0),
                updates=0,
            ),
            "updates is 0",
        ),
        (
            lambda: inner_loop(
                LPG,
                {"a": both["a"]},
                home.optimizer,
                params,
                tree.new({"a": agents.exclude("env")}),
                rng.key(0),
            ),
            "state has no env",
        ),
    ):
        with pytest.raises(ValueError, match=text):
            wrong()


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_every_hyper_parameter_of_a_hand_written_rule(optimizer):
    home = habitat()
    agents = double(births(home, a2c_rule(), rng.key(1), 2))

    def outer(hyper):
        make = {"sgd": optim.sgd, "adam": lambda lr: optim.adam(lr, eps=1e-3)}[optimizer]
        rule = a2c_rule(hyper["gamma"], hyper["lmbda"])
        own = optim.chain(clip=optim.clip_by_global_norm(hyper["norm"]), step=make(hyper["lr"]))
        start = tree.replace(agents, {"optimizer": vmap(own.init)(agents["params"])})
        weights = tree.select(hyper, "entropy_coeff", "critic_coeff")
        states, tds = inner_loop(
            rule,
            groups_of(a=(home, agents)),
            own,
            tree.new({}),
            tree.new({"a": start}),
            rng.key(3),
            updates=3,
            length=6,
            hyper=weights,
        )
        td = losses.add_advantage(tds["a"][0], 0.9, 0.9)
        out = vmap(home.agent)(states["a", "params"], states["a", "buffers"], td)
        return losses.total(losses.a2c_loss(out))

    names = {
        "gamma": 0.9,
        "lmbda": 0.8,
        "lr": 0.3,
        "norm": 0.2,
        "entropy_coeff": 0.05,
        "critic_coeff": 0.7,
    }
    check_grads(
        outer,
        tree.lock(TensorDict({n: torch.tensor(v) for n, v in names.items()}).double()),
        rtol=1e-4,
    )


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_meta_gradient_through_three_updates(cell):
    rule = lpg_rule(lpg_network(4, 5, cell=cell, n_embedding=3), gamma=0.9, full_stop=False)
    home = habitat(out=("logits", "prediction"))
    agents = double(births(home, rule, rng.key(1), 2))
    params = double(awake(rule.init(rng.key(2))[0]))

    def outer(params):
        states, tds = inner_loop(
            rule,
            groups_of(a=(home, agents)),
            home.optimizer,
            params,
            tree.new({"a": agents}),
            rng.key(3),
            updates=3,
            length=4,
        )
        return (
            sum((x**2).sum() for x in tree.leaves(states["a", "params"]))
            + tds["a"][2]["pi_hat"].square().sum()
        )

    check_grads(outer, params, max_entries=3, rtol=1e-4)


def test_parameters_of_an_outer_graph_and_the_first_ones(lpg):
    home, agents, params = lpg
    agents, params = double(agents), double(params)
    td = tree.unstack(
        inner_loop(
            LPG,
            groups_of(a=(home, agents)),
            home.optimizer,
            params,
            tree.new({"a": agents}),
            rng.key(3),
            updates=1,
            length=4,
        )[1]["a"][0]
    )[0]
    state = tree.unstack(agents)[0]

    def outer(scale, start):
        scaled = tree.map(lambda x: x * scale, params)
        after, _ = update_agent(
            lpg_rule(lpg_network(4, 6, n_embedding=3), full_stop=False),
            home.agent,
            home.optimizer,
            scaled,
            tree.replace(state, {"params": start}),
            td,
        )
        return sum((x**2).sum() for x in tree.leaves(after["params"]))

    check_grads(
        outer, torch.tensor(1.3, dtype=torch.float64), state["params"], max_entries=4, rtol=1e-4
    )


def test_ages_spread_and_only_the_old_make_room():
    home = habitat(lifetime=10)
    rule = a2c_rule()
    agents = births(home, rule, rng.key(0), 5, stagger=True)
    assert agents["age"].tolist() == [0, 2, 4, 6, 8]
    lived = older(agents, 3)
    assert lived["age"].tolist() == [3, 5, 7, 9, 11] and agents["age"].tolist() == [0, 2, 4, 6, 8]
    called = []

    def born(rows):
        called.append(rows.tolist())
        return births(home, rule, rng.key(9), 5, rows=rows)

    after = renew(lived, born)
    assert after["age"].tolist() == [3, 5, 7, 9, 0] and called == [[4]]
    fresh = births(home, rule, rng.key(9), 5)
    assert torch.equal(after["level", "walls"][4], fresh["level", "walls"][4])
    assert torch.equal(
        after["params", "logits", "weight"][4], fresh["params", "logits", "weight"][4]
    )
    for mine, before in zip(tree.leaves(after), tree.leaves(lived), strict=True):
        assert torch.equal(mine[:4], before[:4])
    assert renew(agents, born) is agents and called == [[4]]
    with pytest.raises(ValueError, match="births: n is 0"):
        births(home, rule, rng.key(0), 0)


def test_reward_curve_is_the_same_for_the_same_key_and_a2c_learns():
    levels = SMALL.sample(rng.split(rng.key(5), 8))
    home = a2c_habitat(SMALL, workers=8)
    seen = []
    run = {
        "updates": 30,
        "length": 20,
        "report": lambda k, rewards: seen.append((k, rewards.shape)),
    }
    curve = reward_curve(home, a2c_rule(0.9, 0.95), tree.new({}), levels, rng.key(6), **run)
    again = reward_curve(
        home, a2c_rule(0.9, 0.95), tree.new({}), levels, rng.key(6), updates=2, length=20
    )
    assert curve.shape == (8, 30) and torch.equal(curve[:, :2], again) and seen[-1] == (30, (8,))
    assert curve[:, 20:].mean() > curve[:, :3].mean() + 0.004 and not curve.requires_grad


def test_bad_network_input():
    network = lpg_network(4, 5)
    params, buffers = network.init(rng.key(0))
    td = TensorDict(
        {
            "reward": torch.ones(2, 3),
            "done": torch.zeros(2, 3, dtype=torch.bool),
            "gamma": torch.ones(2, 3, 1),
            "action_prob": torch.ones(2, 3),
            "prediction": torch.ones(2, 3, 4),
            "next": {"prediction": torch.ones(2, 3, 4)},
        },
        [2, 3],
    )
    out = network(params, buffers, td)
    assert (
        out["pi_hat"].shape == (2, 3)
        and torch.allclose(out["y_hat"].sum(-1), torch.ones(2, 3))
        and out.is_locked
    )
    cases = [
        (
            {"prediction": torch.ones(2, 3, 5)},
            ValueError,
            r"'prediction' has shape \(2, 3, 5\), expected \(2, 3, 4\)",
        ),
        ({"next.prediction": torch.ones(2, 3, 5)}, ValueError, "'next.prediction' has shape"),
        ({"done": torch.zeros(2, 3)}, TypeError, "done is torch.float32, expected bool"),
        (
            {"reward": torch.ones(2, 3, 2)},
            ValueError,
            r"reward has shape \(2, 3, 2\), expected \[2, 3\]",
        ),
    ]
    for values, error, text in cases:
        with pytest.raises(error, match=text):
            network(params, buffers, tree.replace(td, values))
    with pytest.raises(ValueError, match="the td has no 'action_prob'; its keys are"):
        network(params, buffers, td.exclude("action_prob"))
    with pytest.raises(ValueError, match="cell is 'rnn', expected one of lstm, gru"):
        lpg_network(cell="rnn")


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_network_begins_as_flax_has_it(cell):
    options: dict = {"cell": cell, "n_embedding": 40, "initialization": "flax"}
    params, _ = lpg_network(30, 64, **options).init(rng.key(0))
    for path in tree.paths(params):
        if "bias" in path[-1] or path[0] == "pi_hat":
            assert (params[path] == 0).all()
    for name, inputs in (("embedding.linear_0", 30), ("embedding.linear_1", 40), ("y_hat", 64)):
        weight = params[(*name.split("."), "weight")]
        assert weight.std().item() == pytest.approx(inputs**-0.5, rel=0.2)
        assert weight.abs().max() < 2.3 * inputs**-0.5  # of a truncated normal
    assert params[cell, "weight_ih"].std().item() == pytest.approx(6**-0.5, rel=0.1)
    for gate in params[cell, "weight_hh"].split(64):
        assert torch.allclose(gate @ gate.mT, torch.eye(64), atol=1e-5)
    large, _ = lpg_network(30, 64, y_hat_scale=5.0, **options).init(rng.key(0))
    assert torch.allclose(large["y_hat", "weight"], 5 * params["y_hat", "weight"])
    assert torch.equal(large[cell, "weight_hh"], params[cell, "weight_hh"])
    with pytest.raises(ValueError, match="initialization is 'jax', expected one of torch, flax"):
        lpg_network(initialization="jax")  # pyright: ignore[reportArgumentType]


def test_the_network_reads_backward_and_stops_at_the_end_of_an_episode():
    network = lpg_network(4, 5, cell="gru", gamma_input=False)
    params, buffers = network.init(rng.key(0))
    params = awake(params)
    g = torch.Generator().manual_seed(0)
    td = tree.lock(
        TensorDict(
            {
                "reward": torch.randn(6, generator=g),
                "done": torch.tensor([False, False, True, False, False, False]),
                "action_prob": torch.rand(6, generator=g),
                "prediction": torch.randn(6, 4, generator=g),
                "next": {"prediction": torch.randn(6, 4, generator=g)},
            },
            [6],
        )
    )

    def at(step):
        slope = grad(
            lambda r: network(params, buffers, tree.replace(td, {"reward": r}))["pi_hat"][step]
        )(td["reward"])
        return (slope != 0).tolist()

    assert at(0) == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]  # later steps of this episode, and none of the next
    assert at(4) == [False, False, False, False, True, True]
    slope = grad(
        lambda y: network(params, buffers, tree.replace(td, {"next.prediction": y}))["pi_hat"].sum()
    )(td["next", "prediction"])
    assert (slope.abs().sum(-1) > 0).tolist() == [
        True,
        True,
        False,
        True,
        True,
        True,
    ]  # nothing follows a done step


def rule_input():
    size, m = (3, 5), 4
    words = rng.uniform(rng.key(3), (*size, 2 * m + 3), -1.0, 1.0)
    done = rng.bernoulli(rng.key(4), 0.3, size)
    following = {"prediction": words[..., :m], "reward": words[..., m], "done": done}
    entries = {"logits": words[..., m + 1 : m + 3], "action": done.long(), "next": following}
    return TensorDict({**entries, "prediction": words[..., m + 3 :]}, size)


def test_lpg_reads_time_where_it_is_named():
    rule = lpg_rule(lpg_network(4, 8))
    params, memory = rule.init(rng.key(0))
    td = rule_input()
    swapped = tree.map(lambda x: x.transpose(0, 1), TensorDict(td.to_dict(), []))
    swapped = TensorDict(swapped.to_dict(), [5, 3], names=["time", "env"])
    ours, wanted = (rule.apply(params, memory, x)[0] for x in (swapped, td))
    assert torch.allclose(ours["y_hat"].transpose(0, 1), wanted["y_hat"], atol=1e-6)
    assert torch.allclose(ours["pi_hat"].mT, wanted["pi_hat"], atol=1e-6)
    assert ours.names == ["time", "env"]


def test_what_lpg_refuses():
    network = lpg_network(4, 8)
    rule, td = lpg_rule(network), rule_input()
    params, memory = rule.init(rng.key(0))
    with pytest.raises(ValueError, match="lpg_rule: the td has no 'action'; its keys are"):
        rule.apply(params, memory, td.exclude("action"))
    with pytest.raises(ValueError, match=r"lpg_rule: gamma has shape \(5,\), expected \(\) or"):
        lpg_rule(network, gamma=torch.ones(5)).apply(params, memory, td)
    with pytest.raises(TypeError, match="lpg_network: done is torch.float32, expected bool"):
        rule.apply(params, memory, tree.replace(td, {"next.done": torch.zeros(3, 5, 1)}))
    with pytest.raises(ValueError, match="lpg_network: params lack embedding, lstm, pi_hat, y_hat"):
        rule.apply(tree.new({}), memory, td)


def test_what_the_loops_refuse():
    home = habitat()
    agents, levels = births(home, a2c_rule(), rng.key(0), 2), SMALL.sample(rng.split(rng.key(1), 2))
    none, key = tree.new({}), rng.key(2)

    def run(group, states):
        inner_loop(a2c_rule(), {"a": group}, home.optimizer, none, tree.new({"a": states}), key)

    with pytest.raises(TypeError, match=r"group a is a tuple, expected \(agent, env, levels\)"):
        run((home.agent, home.env), agents)
    with pytest.raises(TypeError, match="inner_loop: the levels of a is a int, expected a Tensor"):
        run((home.agent, home.env, 3), agents)
    with pytest.raises(ValueError, match=r"the states of a have batch size \[\], expected \[2\]"):
        run((home.agent, home.env, levels), tree.unstack(agents)[0])
    with pytest.raises(ValueError, match="reward_curve: updates is 0, expected at least 1"):
        reward_curve(home, a2c_rule(), none, levels, key, updates=0)
    with pytest.raises(
        ValueError, match=r"reward_curve: levels has batch size \[\], expected \[n\]"
    ):
        reward_curve(home, a2c_rule(), none, tree.unstack(levels)[0], key)
    with pytest.raises(ValueError, match=r"levels has batch size \[0\], expected \[n\] with n of"):
        reward_curve(home, a2c_rule(), none, tree.lock(levels[:0]), key)
    for name in ("updates", "length"):
        with pytest.raises(TypeError, match=f"reward_curve: {name} is 1.5, expected an int"):
            reward_curve(home, a2c_rule(), none, levels, key, **{name: 1.5})
    with pytest.raises(TypeError, match="lifetime_scores: horizon is 1.5, expected an int"):
        lifetime_scores(home, a2c_rule(), none, levels, key, horizon=1.5)


def test_an_untrained_rule_leaves_policies_as_they_are(lpg):
    home, agents, _ = lpg
    untrained, _ = LPG.init(rng.key(2))
    start = tree.new({"a": agents})
    run = {"updates": 2, "length": 5}
    groups = groups_of(a=(home, agents))
    states, _ = inner_loop(LPG, groups, home.optimizer, untrained, start, rng.key(3), **run)
    path = ("params", "logits", "weight")
    assert torch.equal(states["a"][path], agents[path])
