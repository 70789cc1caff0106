"""The agent's and the meta-network's updates against numbers that GROOVE's own code gave."""

import torch
from tensordict import TensorDict

import losses
from paramtree import nn, optim, rng, tree
from paramtree.autodiff import check_grads, grad
from paramtree.meta import a2c_rule, lpg_network, lpg_rule, update_agent
from paramtree.model import compose, td_model

D = torch.float64
OBSERVATION = [("observation", "index"), ("observation", "time")]


def close(ours, golden):
    """Array by array: at most 1e-5 of the largest number, 1e-6 for scalars near zero."""
    golden = torch.as_tensor(golden, dtype=D)
    bound = max(1e-5 * float(golden.abs().max()), 1e-6 if golden.ndim == 0 else 0.0)
    worst = float((ours.detach() - golden).abs().max())
    assert ours.shape == golden.shape and worst <= bound, f"{worst} > {bound}"


def to_ours(golden, prefix):
    """Flax's names and layout to ours; our pi_hat is minus GROOVE's, so its head changes sign."""

    def get(name):
        return torch.as_tensor(golden[f"{prefix}/{name}"], dtype=D)

    cell = "LPGGRU_0/GRUCell_0"
    gates = {
        side: torch.cat([get(f"{cell}/{side}{gate}/kernel").T for gate in "rzn"]) for side in "ih"
    }
    bias = torch.cat([get(f"{cell}/i{gate}/bias") for gate in "rzn"])
    hidden_bias = torch.zeros_like(bias)
    hidden_bias[-len(bias) // 3 :] = get(f"{cell}/hn/bias")
    dense = {
        ("embedding", "linear_0"): ("MLP_0/Dense_0", 1),
        ("embedding", "linear_1"): ("MLP_0/Dense_1", 1),
        ("pi_hat",): ("Dense_0", -1),
        ("y_hat",): ("Dense_1", 1),
    }
    td = TensorDict(
        {
            "gru": {
                "weight_ih": gates["i"],
                "weight_hh": gates["h"],
                "bias_ih": bias,
                "bias_hh": hidden_bias,
            }
        }
    )
    for path, (name, sign) in dense.items():
        td[(*path, "weight")] = sign * get(f"{name}/kernel").T
        td[(*path, "bias")] = sign * get(f"{name}/bias")
    return tree.lock(td)


def tables(golden, **names):
    return tree.lock(
        TensorDict(
            {
                ours: {"weight": torch.as_tensor(golden[f"in/{name}/Dense_0/kernel"], dtype=D)}
                for ours, name in names.items()
            }
        )
    )


def rollout(golden):
    index, time = (torch.as_tensor(golden[f"in/{name}"]) for name in ("obs_index", "time"))
    done = torch.as_tensor(golden["in/rollout/done"])
    following = {
        "observation": {"index": index[:, 1:], "time": time[:, 1:].to(D)},
        "reward": torch.as_tensor(golden["in/rollout/reward"], dtype=D),
        "done": done,
        "terminated": done,
    }
    td = {
        "observation": {"index": index[:, :-1], "time": time[:, :-1].to(D)},
        "action": torch.as_tensor(golden["in/rollout/action"]).long(),
        "next": following,
    }
    return tree.lock(TensorDict(td, tuple(done.shape)))


def agent_of(golden, **out_keys):
    n_states = golden["in/actor/Dense_0/kernel"].shape[0] - 1
    sizes = {"actor": "actor", "prediction": "critic", "critic": "value"}
    return compose(
        **{
            name: td_model(
                nn.table(n_states, golden[f"in/{sizes[name]}/Dense_0/kernel"].shape[1]),
                OBSERVATION,
                key,
            )
            for name, key in out_keys.items()
        }
    )


def optimizer_of(**rates):
    clipped = {
        f"{name}.**": optim.chain(clip=optim.clip_by_global_norm(0.5), sgd=optim.sgd(rate))
        for name, rate in rates.items()
    }
    return optim.partition(clipped)


def lpg_set_up(golden, full_stop=True):
    params = to_ours(golden, "in/lpg_params")
    width, m = params["gru", "weight_hh"].shape[1], params["y_hat", "weight"].shape[0]
    embedding = params["embedding", "linear_0", "weight"].shape[0]
    network = lpg_network(
        m, width, cell="gru", n_embedding=embedding, gamma_input=False, activation=torch.relu
    )
    wanted = [leaf.shape for leaf in tree.leaves(network.init(rng.key(0))[0])]
    assert wanted == [leaf.shape for leaf in tree.leaves(params)]
    rule = lpg_rule(network, prediction_coeff=0.5, full_stop=full_stop)
    agent = agent_of(golden, actor="logits", prediction="prediction")
    optimizer = optimizer_of(actor=40.0, prediction=4.0)
    start = tables(golden, actor="actor", prediction="critic")
    buffers = agent.init(rng.key(0))[1]
    state = tree.new(
        {
            "params": start,
            "buffers": buffers,
            "optimizer": optimizer.init(start),
            "rule": tree.new({}),
        }
    )
    return rule, agent, optimizer, params, state


def two_updates(golden, rule, agent, optimizer, params, state):
    td = rollout(golden)
    first, seen = update_agent(rule, agent, optimizer, params, state, td)
    second, _ = update_agent(rule, agent, optimizer, params, first, td)
    return first["params"], second["params"], seen


def test_golden_lpg_observations(golden_lpg):
    time = 0.001 * torch.as_tensor(golden_lpg["in/time"], dtype=D)
    hot = torch.nn.functional.one_hot(
        torch.as_tensor(golden_lpg["in/obs_index"]), golden_lpg["in/rollout/obs"].shape[-1]
    )
    hot = hot.to(D)
    hot[..., -1] = time
    close(hot[:, :-1], golden_lpg["in/rollout/obs"])
    close(hot[:, 1:], golden_lpg["in/rollout/next_obs"])


def test_golden_lpg_agent_updates(golden_lpg):
    golden = golden_lpg
    rule, *rest = lpg_set_up(golden)
    first, second, seen = two_updates(golden, rule, *rest)
    for number, after in ((1, first), (2, second)):
        close(after["actor", "weight"], golden[f"out/lpg/actor_after_{number}/Dense_0/kernel"])
        close(
            after["prediction", "weight"], golden[f"out/lpg/critic_after_{number}/Dense_0/kernel"]
        )
    close(rule.loss(seen)["prediction_kl"], golden["out/lpg/critic_loss"])
    measured = losses.lpg_regularizer_loss(seen)
    close(measured["pi_hat_square"], golden["out/lpg/pi_l2"])
    close(measured["y_hat_square"], golden["out/lpg/y_l2"])


def probe_of(golden, full_stop=True):
    rule, agent, optimizer, params, state = lpg_set_up(golden, full_stop)

    def probe(params):
        _, second, seen = two_updates(golden, rule, agent, optimizer, params, state)
        wanted = losses.lpg_regularizer_loss(seen, pi_hat_coeff=1.0, y_hat_coeff=1.0)
        return (
            sum(leaf.square().sum() for leaf in tree.leaves(second))
            + wanted["loss_pi_hat"]
            + wanted["loss_y_hat"]
        )

    return probe, params


def test_golden_lpg_meta_gradient(golden_lpg):
    probe, params = probe_of(golden_lpg)
    close(probe(params), golden_lpg["out/lpg/probe"])
    ours, wanted = grad(probe)(params), to_ours(golden_lpg, "out/lpg/meta_grad")
    width = params["gru", "weight_hh"].shape[1]
    for path, slope, golden in zip(
        tree.paths(ours), tree.leaves(ours), tree.leaves(wanted), strict=True
    ):
        if path == ("gru", "bias_hh"):  # flax has that bias for the new state alone
            slope, golden = slope[2 * width :], golden[2 * width :]
        close(slope, golden)


def test_golden_lpg_without_full_stops_against_central_differences(golden_lpg):
    probe, params = probe_of(golden_lpg, full_stop=False)
    check_grads(probe, params, max_entries=8, rtol=1e-6)


def test_golden_lpg_one_update_against_central_differences(golden_lpg):
    rule, agent, optimizer, params, state = lpg_set_up(golden_lpg)
    td = rollout(golden_lpg)

    def after_one(params):  # the stop cuts nothing that depends on the rule yet
        after, _ = update_agent(rule, agent, optimizer, params, state, td)
        return sum(leaf.square().sum() for leaf in tree.leaves(after["params"]))

    check_grads(after_one, params, max_entries=8, rtol=1e-6)


def test_golden_lpg_full_stop_cuts_paths(golden_lpg):
    stopped, params = probe_of(golden_lpg)
    whole, _ = probe_of(golden_lpg, full_stop=False)
    a, b = grad(stopped)(params), grad(whole)(params)
    assert not torch.allclose(a["gru", "weight_ih"], b["gru", "weight_ih"], rtol=1e-3)


def test_golden_lpg_a2c_update(golden_lpg):
    golden = golden_lpg
    agent = agent_of(golden, actor="logits", critic="state_value")
    start = tables(golden, actor="actor", critic="value")
    optimizer = optimizer_of(actor=40.0, critic=4.0)
    rule = a2c_rule(0.99, 0.95, entropy_coeff=0.01, critic_coeff=1.0, normalize=True)
    buffers = agent.init(rng.key(0))[1]
    state = tree.new(
        {
            "params": start,
            "buffers": buffers,
            "optimizer": optimizer.init(start),
            "rule": tree.new({}),
        }
    )
    after, seen = update_agent(rule, agent, optimizer, tree.new({}), state, rollout(golden))
    close(after["params", "actor", "weight"], golden["out/a2c/actor/Dense_0/kernel"])
    close(after["params", "critic", "weight"], golden["out/a2c/value/Dense_0/kernel"])
    out = rule.loss(seen)
    close(out["loss_critic"], golden["out/a2c/value_loss"])
    close(out["loss_objective"] + out["loss_entropy"], golden["out/a2c/actor_loss"])
