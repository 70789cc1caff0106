"""What each rule makes agents learn from, beside loops in numpy, and what its loss is."""

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close

import losses
from paramtree import grad, optim, rng, tree
from paramtree.meta import (
    dpo_rule,
    epsilon_greedy_policy,
    lpo_network,
    lpo_rule,
    ppo_rule,
    q_lambda_rule,
    reinforce_rule,
    sarsa_lambda_rule,
    softmax_policy,
    td_lambda_rule,
    update_agent,
    vtrace_rule,
)
from paramtree.model import with_next
from tests.paramtree.meta.rule_problems import (
    ACTIONS,
    ACTOR_CRITIC,
    Q_AGENT,
    STEPS,
    WORKERS,
    D,
    double,
    newborn,
    trajectory,
)

NONE = tree.new({})
GAMMA, LMBDA = 0.9, 0.8
TD = trajectory()


def outputs(agent, td=TD):
    params, buffers = agent.init(rng.key(3))
    return with_next(agent)(double(params), buffers, td)


def targets(rule, td):
    return rule.apply(NONE, NONE, td)[0]


def array(x):
    return x.reshape(x.shape[:2] if x.shape[-1] == 1 and x.ndim == 3 else x.shape).numpy()


def each_worker(fn):
    """``fn(w, t)`` for all workers and steps."""
    return np.array([[fn(w, t) for t in range(STEPS)] for w in range(WORKERS)])


FOLLOWING = tree.entries(TD["next"])
REWARD, DONE, ENDED = (FOLLOWING[name].numpy() for name in ("reward", "done", "terminated"))


def returned(w, t, after, lmbda):
    """The lambda-return by its recursion; ``lmbda [W, T]`` weighs what follows step t."""
    if ENDED[w, t]:
        return REWARD[w, t]
    if DONE[w, t] or t == STEPS - 1:
        return REWARD[w, t] + GAMMA * after[w, t]
    rest = (1 - lmbda[w, t]) * after[w, t] + lmbda[w, t] * returned(w, t + 1, after, lmbda)
    return REWARD[w, t] + GAMMA * rest


def lambda_returns(after, lmbda=LMBDA):
    decay = np.broadcast_to(lmbda, REWARD.shape)
    return each_worker(lambda w, t: returned(w, t, after, decay))


def test_the_data_have_all_that_matters():
    assert ENDED.any() and (DONE & ~ENDED).any() and not DONE.all()
    assert DONE[:, -1].any() and not DONE[:, -1].all()


@pytest.mark.parametrize("baseline", [False, True])
@pytest.mark.parametrize("bootstrap", [False, True])
def test_reinforce_sums_what_follows(baseline, bootstrap):
    td = outputs(ACTOR_CRITIC)
    value, after = array(td["state_value"]), array(td["next", "state_value"])

    def rest(w, t):
        total, factor = 0.0, 1.0
        for s in range(t, STEPS):
            total, factor = total + factor * REWARD[w, s], factor * GAMMA
            if DONE[w, s] or s == STEPS - 1:
                return total + factor * after[w, s] * (bootstrap and not ENDED[w, s])
        raise AssertionError

    ours = targets(reinforce_rule(GAMMA, baseline=baseline, bootstrap=bootstrap), td)
    wanted = each_worker(rest)
    assert_close(ours["value_target"].numpy(), wanted)
    assert_close(ours["advantage"].numpy(), wanted - baseline * value)
    assert torch.equal(ours["state_value"], td["state_value"])  # the critic's own stays


def test_reinforce_without_baseline_or_bootstrap_reads_no_value():
    td = outputs(ACTOR_CRITIC)
    blind = tree.exclude(td, "state_value", ("next", "state_value"))
    rule = reinforce_rule(GAMMA, baseline=False, entropy_coeff=0.1)
    assert_close(targets(rule, blind)["advantage"], targets(rule, td)["advantage"])
    assert set(rule.loss(targets(rule, blind)).keys()) == {
        "loss_objective",
        "loss_entropy",
        "entropy",
    }


def test_td_lambda_and_what_moves():
    td = outputs(ACTOR_CRITIC)
    rule = td_lambda_rule(GAMMA, LMBDA, critic_coeff=0.5)
    ours = targets(rule, td)
    wanted = lambda_returns(array(td["next", "state_value"]))
    assert_close(ours["value_target"].numpy(), wanted)
    error = np.square(array(td["state_value"]) - wanted).mean()
    assert_close(float(losses.total(rule.loss(ours))), 0.5 * error)
    state = newborn(ACTOR_CRITIC, optim.sgd(0.1), rule)
    after, _ = update_agent(rule, ACTOR_CRITIC, optim.sgd(0.1), NONE, state, TD)
    assert torch.equal(after["params", "actor", "weight"], state["params", "actor", "weight"])
    assert not torch.equal(after["params", "critic", "weight"], state["params", "critic", "weight"])


def test_sarsa_takes_the_action_that_follows_and_the_mean_where_none_does():
    td = outputs(Q_AGENT)
    q, action = td["next", "action_value"].numpy(), td["action"].numpy()
    mean = (td["next", "logits"].softmax(-1).numpy() * q).sum(-1)
    assert_close(td["next", "logits"].numpy(), q / 0.7)

    def chosen(w, t):
        alone = DONE[w, t] or t == STEPS - 1
        return mean[w, t] if alone else q[w, t, action[w, t + 1]]

    ours = targets(sarsa_lambda_rule(GAMMA, LMBDA), td)["value_target"]
    assert_close(ours.numpy(), lambda_returns(each_worker(chosen)))
    ours = targets(sarsa_lambda_rule(GAMMA, LMBDA, expected=True), td)["value_target"]
    assert_close(ours.numpy(), lambda_returns(mean))


def test_q_lambda_cuts_its_trace_as_its_kind_does():
    td = outputs(Q_AGENT)
    q, action = td["next", "action_value"].numpy(), td["action"].numpy()
    following = np.roll(action, -1, 1)
    greedy = following == q.argmax(-1)
    assert greedy[:, :-1].any() and not greedy[:, :-1].all()
    for trace, lmbda in (("peng", LMBDA), ("watkins", LMBDA * greedy)):
        ours = targets(q_lambda_rule(GAMMA, LMBDA, trace=trace), td)["value_target"]
        assert_close(ours.numpy(), lambda_returns(q.max(-1), lmbda))


def test_watkins_goes_on_where_values_are_equal():
    """Of equal ones each is greedy, as at the beginning, where tables are zeros."""
    td = outputs(Q_AGENT)
    zeros = torch.zeros_like(td["action_value"])
    td = tree.replace(td, {"action_value": zeros, ("next", "action_value"): zeros})
    ours = targets(q_lambda_rule(GAMMA, LMBDA, trace="watkins"), td)["value_target"]
    assert_close(ours.numpy(), lambda_returns(np.zeros_like(REWARD)))


def test_action_values_are_regressed_where_actions_were_taken():
    td = targets(q_lambda_rule(GAMMA, LMBDA), outputs(Q_AGENT))
    chosen = np.take_along_axis(td["action_value"].numpy(), td["action"].numpy()[..., None], -1)
    wanted = np.square(chosen[..., 0] - td["value_target"].numpy()).mean()
    assert_close(float(losses.total(q_lambda_rule().loss(td))), wanted)


def test_actions_in_one_hot_form_and_time_in_front():
    td = outputs(Q_AGENT)
    hot = tree.replace(td, {"action": torch.nn.functional.one_hot(td["action"], ACTIONS)})
    nest = tree.map(lambda x: x.transpose(0, 1), TensorDict(td.to_dict(), [])).to_dict()
    front = tree.lock(TensorDict(nest, [STEPS, WORKERS], names=["time", "worker"]))
    for rule in (sarsa_lambda_rule(GAMMA, LMBDA), q_lambda_rule(GAMMA, LMBDA, trace="watkins")):
        wanted = targets(rule, td)["value_target"]
        assert_close(targets(rule, hot)["value_target"], wanted)
        assert_close(targets(rule, front)["value_target"].T, wanted)


def test_vtrace_is_the_sum_of_its_definition():
    td = outputs(ACTOR_CRITIC)
    value, after = array(td["state_value"]), array(td["next", "state_value"])
    log_pi = td["logits"].log_softmax(-1).gather(-1, td["action"].unsqueeze(-1))[..., 0].numpy()
    ratio = np.exp(log_pi - td["action_log_prob"].numpy())
    rho, c = np.minimum(1.1, ratio), LMBDA * np.minimum(0.9, ratio)
    goes_on = GAMMA * ~ENDED

    def target(w, t):
        total, factor = value[w, t], 1.0
        for s in range(t, STEPS):
            error = REWARD[w, s] + goes_on[w, s] * after[w, s] - value[w, s]
            total += factor * rho[w, s] * error
            factor *= goes_on[w, s] * c[w, s] * (not DONE[w, s])
        return total

    rule = vtrace_rule(GAMMA, LMBDA, rho_clip=1.1, c_clip=0.9, pg_rho_clip=1.2)
    assert_close(targets(rule, td)["value_target"].numpy(), each_worker(target))
    clips = {"rho_clip": 1.1, "c_clip": 0.9, "pg_rho_clip": 1.2}
    wanted = losses.add_vtrace(td, gamma=GAMMA, lmbda=LMBDA, **clips)
    assert torch.equal(targets(rule, td)["advantage"], wanted["advantage"])
    weighed = losses.a2c_loss(wanted, critic_coeff=0.5, entropy_coeff=0.01)
    assert torch.equal(losses.total(rule.loss(wanted)), losses.total(weighed))


def test_vtrace_on_its_own_steps_is_an_actor_critic():
    td = outputs(ACTOR_CRITIC)
    log_pi = td["logits"].log_softmax(-1).gather(-1, td["action"].unsqueeze(-1))[..., 0]
    after = td["next", "state_value"].clone()
    going = ~td["next", "done"][:, :-1]
    after[:, :-1][going] = td["state_value"][:, 1:][going]  # a state has one value
    td = tree.replace(td, {"action_log_prob": log_pi, ("next", "state_value"): after})
    own = targets(vtrace_rule(GAMMA), td)["value_target"]
    assert_close(own, losses.add_lambda_returns(td, GAMMA, 1.0)["value_target"])


# ---------------------------------------------------------------------------- several steps


def drift(r, a, alpha=2.0, beta=0.6):
    if a >= 0:
        return max((r - 1) * a - alpha * np.tanh((r - 1) * a / alpha), 0)
    return max(np.log(r) * a - beta * np.tanh(np.log(r) * a / beta), 0)


def gain_of(rule, advantage, log_ratio, params=NONE):
    """What an agent would gain per step, for these advantages and ratios."""
    size = advantage.shape
    logits = torch.stack([log_ratio, (1 - log_ratio.exp() / 50).log() + 0 * log_ratio], -1)
    entries = {
        "logits": logits - torch.log(torch.tensor(50.0, dtype=D)) * torch.tensor([1.0, 0.0]),
        "action": torch.zeros(size, dtype=torch.int64),
        "action_log_prob": torch.full(size, -float(np.log(50.0)), dtype=D),
        "advantage": advantage,
        "state_value": torch.zeros(size, dtype=D),
        "value_target": torch.zeros(size, dtype=D),
    }
    td = tree.new(entries, size)
    extra = {"params": params} if rule.learned_loss else {}
    out = rule.loss(td, reduction="none", **extra)
    return -sum(out[name] for name in ("loss_objective", "loss_drift") if name in out.keys())


POINTS = torch.tensor(
    [(a, x) for a in (-1.7, -0.2, 0.0, 0.4, 2.3) for x in (-1.5, -0.3, -0.05, 0.0, 0.1, 0.5, 1.2)],
    dtype=D,
)


def test_dpo_has_the_drift_of_the_paper():
    advantage, log_ratio = POINTS.T
    ours = gain_of(dpo_rule(normalize=False), advantage, log_ratio)
    wanted = [np.exp(x) * a - drift(np.exp(x), a) for a, x in POINTS.tolist()]
    assert_close(ours, torch.tensor(wanted, dtype=D))


def test_ppo_has_the_clip_of_the_paper():
    advantage, log_ratio = POINTS.T
    ours = gain_of(ppo_rule(normalize=False, clip_epsilon=0.25), advantage, log_ratio)
    wanted = [min(np.exp(x) * a, np.clip(np.exp(x), 0.75, 1.25) * a) for a, x in POINTS.tolist()]
    assert_close(ours, torch.tensor(wanted, dtype=D))


def test_a_learned_drift_is_a_drift_whatever_the_network():
    """Never below 0, and 0 with its slope where the policies agree."""
    net = lpo_network(16)
    for seed in range(5):
        params = tree.map(lambda x: 3 * x, double(net.init(rng.key(seed))[0]))
        advantage, log_ratio = POINTS.T
        price = net(params, NONE, (log_ratio, advantage))
        assert (price >= 0).all() and price.max() > 0.01
        assert not price[log_ratio == 0].any()
        slope = grad(lambda x, a=advantage, p=params: net(p, NONE, (x, a)).sum())(0 * log_ratio)
        assert not slope.any()


def test_a_learned_drift_by_hand():
    net = lpo_network(5)
    params = double(net.init(rng.key(1))[0])
    first, last = (params[name, "weight"].numpy() for name in ("hidden", "out"))
    wanted = []
    for a, x in POINTS.tolist():
        delta = np.array([x, x * x, 1 - np.exp(x), (1 - np.exp(x)) ** 2])
        out = last @ np.tanh(first @ np.concatenate([delta, a * delta]))
        wanted.append(np.exp(x) * a - max(out[0] - 1e-6, 0))
    advantage, log_ratio = POINTS.T
    ours = gain_of(lpo_rule(net, normalize=False), advantage, log_ratio, params)
    assert_close(ours, torch.tensor(wanted, dtype=D))


def test_a_learned_drift_may_begin_as_ppo():
    net = lpo_network(7, init_clip=0.2)
    params = double(net.init(rng.key(1))[0])
    advantage, log_ratio = POINTS.T
    ours = gain_of(lpo_rule(net, normalize=False), advantage, log_ratio, params)
    wanted = gain_of(ppo_rule(normalize=False), advantage, log_ratio)
    assert_close(ours, wanted, atol=2e-6, rtol=0)


def test_an_enormous_ratio_leaves_numbers():
    net = lpo_network(7)
    params = double(net.init(rng.key(1))[0])
    far = torch.tensor([-800.0, 800.0], dtype=D)
    for slope in grad(lambda p: net(p, NONE, (far, far)).sum())(params).values(True, True):
        assert slope.isfinite().all()


# --------------------------------------------------------------------------------- policies


def test_policies_of_action_values():
    value = torch.tensor([[1.0, 3.0, 2.0], [2.0, 2.0, 0.0]], dtype=D)
    td = tree.new({"action_value": value}, (2,))
    soft = softmax_policy(0.5)(NONE, NONE, td)["logits"].softmax(-1)
    assert_close(soft, (2 * value).exp() / (2 * value).exp().sum(-1, keepdim=True))
    greedy = epsilon_greedy_policy(0.3)(NONE, NONE, td)["logits"].exp()
    wanted = [[0.1, 0.8, 0.1], [0.45, 0.45, 0.1]]
    assert_close(greedy, torch.tensor(wanted, dtype=D))


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: q_lambda_rule(trace="naive"), "trace is 'naive', expected 'watkins' or 'peng'"),
        (lambda: softmax_policy(0.0), "temperature is 0.0, expected above 0"),
        (lambda: epsilon_greedy_policy(0.0), r"epsilon is 0.0, expected in \(0, 1\]"),
        (lambda: lpo_network(0), "n_out is 0"),
    ],
)
def test_what_rules_refuse(make, named):
    with pytest.raises(ValueError, match=named):
        make()
