# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportOperatorIssue=false, reportOptionalOperand=false
import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential
from tensordict.nn import TensorDictModule as Module
from torch.distributions import Categorical
from torch.func import grad, vmap
from torch.testing import assert_close
from torchrl.objectives import ClipPPOLoss, KLPENPPOLoss, PPOLoss
from torchrl.objectives.multiagent import IPPOLoss, MAPPOLoss

import losses
from losses import (
    absolute_error,
    discovered_policy_loss,
    huber_error,
    independent_normal,
    joint,
    kl_coeff_update,
    ppo_clip_loss,
    ppo_kl_penalty_loss,
    ppo_loss,
    squared_error,
    total,
)
from tests.losses.two_policies import (
    ALL,
    D,
    N,
    every,
    finished,
    log_ratio,
    normal,
    replaced,
)

DISTANCES = {"l2": squared_error, "l1": absolute_error, "smooth_l1": huber_error}


# ---- TorchRL


def torchrl_result(cls, td, names, normalized=None, **options):
    """TorchRL's loss of the same tensors, by networks that pass them on."""
    kind = independent_normal if "loc" in names else Categorical
    network = Module(lambda *x: x, [f"{k}_in" for k in names], list(names))
    if len(names) == 1:
        network = Module(lambda x: x, [f"{names[0]}_in"], list(names))
    sampled = ProbabilisticTensorDictModule(
        in_keys=list(names), out_keys=["action"], distribution_class=kind, return_log_prob=True
    )
    critic = Module(lambda x: x, ["value_in"], ["state_value"])
    loss = cls(ProbabilisticTensorDictSequential(network, sampled), critic, **options).double()
    given = {f"{k}_in": td[k] for k in names} | {"value_in": td["state_value"].unsqueeze(-1)}
    given |= {k: td[k].unsqueeze(-1) for k in ("advantage", "value_target")}
    given |= {k: td[k] for k in ("action", "action_log_prob")}
    given |= {k: td["behavior", k] for k in names}
    given |= {"state_value": td["behavior", "state_value"].unsqueeze(-1)}
    return loss, loss(TensorDict(given, td.batch_size))


PEERS = [
    (PPOLoss, ppo_loss, {}, {}),
    (ClipPPOLoss, ppo_clip_loss, {"clip_epsilon": 0.25}, {"eps": 0.25}),
    (ClipPPOLoss, ppo_clip_loss, {}, {}),
    (
        ClipPPOLoss,
        ppo_clip_loss,
        {"clip_epsilon": (0.125, 0.375)},
        {"eps_low": 0.125, "eps_high": 0.375},
    ),
    (KLPENPPOLoss, ppo_kl_penalty_loss, {"beta": 0.75}, {"kl_coeff": 0.75}),
]


@pytest.mark.parametrize("continuous", [False, True], ids=["logits", "normal"])
@pytest.mark.parametrize("distance", ["l2", "l1", "smooth_l1"])
@pytest.mark.parametrize("value_clip", [None, 0.25])
@pytest.mark.parametrize("peer", PEERS, ids=lambda p: f"{p[0].__name__} {p[2]}")
def test_values_and_gradients_are_torchrls(peer, value_clip, distance, continuous):
    cls, reducer, theirs, ours = peer
    td = finished(N, continuous=continuous)
    names = ("loc", "scale") if continuous else ("logits",)
    leaves = [td[k].requires_grad_() for k in (*names, "state_value")]
    common = {"critic_coeff": 0.5, "entropy_coeff": 0.125}
    more = {"loss_critic_type": distance, "clip_value": value_clip}
    _, wanted = torchrl_result(cls, td, names, **theirs, **common, **more)
    dist = independent_normal if continuous else Categorical
    hyper = {**common, **ours, "value_clip": value_clip, "distance": DISTANCES[distance]}
    found = reducer(td, dist, **hyper)
    known = dict(found.items())
    if cls is KLPENPPOLoss:  # it has the two terms in one, and kl per step
        known["loss_objective"] = known["loss_objective"] + known.pop("loss_kl")
        wanted["kl"] = wanted["kl"].mean()
    assert set(known) >= set(wanted.keys()) and ("value_clip_fraction" in known) == bool(value_clip)
    for key in wanted.keys():
        assert_close(known[key], wanted[key].reshape(()), rtol=1e-6, atol=1e-7, msg=key)
    objective = sum(wanted[key].sum() for key in wanted.keys() if key.startswith("loss_"))
    right = torch.autograd.grad(objective, leaves)
    if cls is KLPENPPOLoss:  # its gradient is that of the next coefficient: see below
        hyper["kl_coeff"] = kl_coeff_update(hyper["kl_coeff"], found["kl"])
        found = reducer(td, dist, **hyper)
    for x, y in zip(torch.autograd.grad(total(found), leaves), right, strict=True):
        assert_close(x, y, rtol=1e-6, atol=1e-8)


def test_the_default_clip_is_torchrls_and_so_are_its_numbers():
    td = finished(N)
    _, wanted = torchrl_result(ClipPPOLoss, td, ("logits",), loss_critic_type="l2")
    found = ppo_clip_loss(td, critic_coeff=1.0)
    for key in wanted.keys():
        assert_close(found[key], wanted[key].reshape(()), rtol=1e-6, atol=1e-7)
    assert 0 < found["clip_fraction"] < 1 and 0 < found["ESS"] < 1


@every
def test_torchrl_takes_the_sample_deviation_of_advantages_and_we_the_populations(reducer):
    td = finished(N)
    a = td["advantage"]
    ours = reducer(td, normalize_advantage=True)
    by_hand = (a - a.mean()) / (a.std(correction=0) + 1e-8)
    assert_close(ours["loss_objective"], reducer(replaced(td, advantage=by_hand))["loss_objective"])
    peers = {p[1]: p[0] for p in PEERS}
    if reducer in peers:
        _, theirs = torchrl_result(peers[reducer], td, ("logits",), normalize_advantage=True)
        sample = (a - a.mean()) / a.std()
        found = reducer(replaced(td, advantage=sample))
        objective = found["loss_objective"] + (found["loss_kl"] if "loss_kl" in found else 0)
        assert_close(objective, theirs["loss_objective"], rtol=1e-6, atol=1e-7)


def test_over_a_batch_of_trajectories_the_numbers_are_of_all_steps():
    """TorchRL's are per column: here of the flattened td."""
    td = finished(4, 6)
    flat = ppo_clip_loss(td.reshape(-1))
    for key, x in ppo_clip_loss(td).items():
        assert_close(x, flat[key])
        assert x.shape == ()
    none = ppo_clip_loss(td, reduction="none")
    assert none["clip_fraction"].shape == (4, 6)
    assert not {"ESS", "max_ratio", "mean_ratio", "explained_variance"} & set(none.keys())


def test_diagnostics_are_their_definitions():
    td = finished(N)
    mask = torch.arange(N) % 3 > 0
    for given in (td, replaced(td, mask=mask)):
        out = ppo_clip_loss(given)
        kept = td[mask] if "mask" in given.keys() else td
        ratio, gap = log_ratio(kept).exp(), kept["value_target"] - kept["state_value"]
        assert_close(out["ESS"], ratio.sum() ** 2 / ratio.square().sum() / len(ratio))
        assert_close(out["mean_ratio"], ratio.mean())
        assert_close(out["max_ratio"], ratio.max())
        assert_close(out["kl_approx"], -ratio.log().mean())
        assert_close(out["clip_fraction"], ((ratio > 1.2) | (ratio < 0.8)).double().mean())
        explained = 1 - gap.var(correction=0) / kept["value_target"].var(correction=0)
        assert_close(out["explained_variance"], explained)


# ---- equations


@pytest.mark.parametrize("eps", [{}, {"eps": 0.3}, {"eps_high": 0.4}, {"eps_low": 0.1, "eps": 0.3}])
def test_the_clip_is_its_equation(eps, central):
    td = finished(N)
    low, high = (eps.get(side, eps.get("eps", 0.2)) for side in ("eps_low", "eps_high"))
    r, a = log_ratio(td).exp(), td["advantage"]
    found = ppo_clip_loss(td, **eps, reduction="none")["loss_objective"]
    assert_close(found, -torch.minimum(r * a, r.clamp(1 - low, 1 + high) * a))


@pytest.mark.parametrize("name", ["eps", "eps_low", "eps_high"])
def test_the_gradient_of_the_clip(name, central, variant):
    td = finished(N)

    def loss(x):
        return total(ppo_clip_loss(td, **{name: x}))

    x = torch.tensor(0.23, dtype=D)
    found = grad(loss)(x)
    assert found.abs() > 1e-2
    assert_close(found, central(loss, x), rtol=1e-6, atol=1e-8)
    assert_close(variant(grad(loss))(x), found)
    each = vmap(grad(loss))(torch.tensor([0.1, 0.23, 0.4], dtype=D))
    assert_close(each[1], found)


def test_eps_is_both_of_its_sides():
    td = finished(N)
    x = torch.tensor(0.25, dtype=D)
    both = ppo_clip_loss(td, eps=x)
    assert_close(total(both), total(ppo_clip_loss(td, eps_low=x, eps_high=0.25)))
    entry = ppo_clip_loss(replaced(td, eps=torch.full((N,), 0.25, dtype=D)))
    assert_close(total(both), total(entry))
    for eps in (x, 0.3):
        with pytest.raises(ValueError, match="^ppo_clip_loss: eps is given beside eps_low and"):
            ppo_clip_loss(td, eps=eps, eps_low=0.1, eps_high=0.2)
    with pytest.raises(ValueError, match=r"^ppo_clip_loss: eps is -0.1, expected at least 0"):
        ppo_clip_loss(td, eps=-0.1)


def test_a_wide_eps_cuts_off_nothing_below():
    td = replaced(finished(N), action_log_prob=torch.full((N,), 9.0, dtype=D))
    plain = ppo_loss(td)["loss_objective"]
    for eps in (1.0, 1.5):
        x = torch.tensor(eps, dtype=D)
        assert_close(ppo_clip_loss(td, eps=eps)["loss_objective"], plain)
        assert_close(ppo_clip_loss(td, eps=x)["loss_objective"], plain)
        assert grad(lambda x: total(ppo_clip_loss(td, eps=x)))(x) == 0


def purejaxrl_dpo(td, alpha, beta):
    gap, a = log_ratio(td), td["advantage"]
    up, down = (gap.exp() - 1) * a, gap * a
    drift = torch.where(
        a >= 0,
        F.relu(up - alpha * (up / alpha).tanh()),
        F.relu(down - beta * (down / beta).tanh()),
    )
    return -(gap.exp() * a - drift)


@pytest.mark.parametrize("widths", [{}, {"alpha": 1.0, "beta": 0.2}])
def test_discovered_policy_optimization_is_purejaxrls(widths):
    td = finished(200)
    td["action_log_prob"] = td["action_log_prob"] + normal(200, seed=9)

    def ours(logits):
        given = replaced(td, logits=logits)
        return discovered_policy_loss(given, **widths, reduction="none")["loss_objective"]

    def theirs(logits):
        values = widths.get("alpha", 2.0), widths.get("beta", 0.6)
        return purejaxrl_dpo(replaced(td, logits=logits), *values)

    assert_close(ours(td["logits"]), theirs(td["logits"]))
    sums = [grad(lambda x, f=f: f(x).sum())(td["logits"]) for f in (ours, theirs)]
    assert_close(*sums)


def test_the_drift_is_without_effect_at_a_ratio_of_one():
    """There the gradient is the policy gradient's."""
    td = finished(N)
    td["action_log_prob"] = Categorical(logits=td["logits"]).log_prob(td["action"])

    def slope(reducer):
        def objective(x):
            return reducer(replaced(td, logits=x))["loss_objective"]

        return grad(objective)(td["logits"])

    for reducer in ALL:
        assert_close(slope(reducer), slope(losses.policy_gradient_loss))


# ---- the coefficient of the divergence


def test_the_coefficient_is_torchrls_over_calls():
    module, ours = None, torch.tensor(1.0, dtype=D)
    for seed, reach in enumerate((1.0, 1.0, 0.1, 0.01, 0.2, 0.3, 0.001)):
        td = finished(N, seed=seed)
        old = td["behavior", "logits"]
        td["logits"] = old + reach * (td["logits"] - old)
        module = module or torchrl_result(KLPENPPOLoss, td, ("logits",))[0]
        before = module.beta.clone()
        given = TensorDict(
            {
                "logits_in": td["logits"],
                "logits": old,
                "value_in": td["state_value"].unsqueeze(-1),
                **{k: td[k].unsqueeze(-1) for k in ("advantage", "value_target")},
                **{k: td[k] for k in ("action", "action_log_prob")},
            },
            [N],
        )
        module(given)
        kl = ppo_kl_penalty_loss(td)["kl"]
        assert_close(kl_coeff_update(before, kl), module.beta)
        ours = kl_coeff_update(ours, kl)
    assert ours.dtype == D and ours.shape == ()


def test_torchrls_gradient_has_the_next_coefficient_and_ours_the_one_of_the_value(central):
    """Its forward writes the new one into the buffer that its backward reads."""
    td = finished(N)
    logits = td["logits"].requires_grad_()

    def theirs(dtarg):
        more = {"beta": 0.75, "dtarg": dtarg, "entropy_coeff": 0.0}
        out = torchrl_result(KLPENPPOLoss, td, ("logits",), **more)[1]["loss_objective"]
        return out.detach(), torch.autograd.grad(out, logits)[0]

    def ours(x, kl_coeff=0.75):
        out = ppo_kl_penalty_loss(
            replaced(td, logits=x), kl_coeff=kl_coeff, critic_coeff=None, entropy_coeff=0.0
        )
        return total(out)

    x = logits.detach()
    found = grad(ours)(x)
    assert_close(found, central(ours, x), rtol=1e-6, atol=1e-8)
    kl = float(ppo_kl_penalty_loss(td)["kl"])
    for dtarg, factor in ((kl, 1.0), (kl / 2, 2.0), (kl * 2, 0.5)):
        value, slope = theirs(dtarg)
        assert_close(value, ours(x))
        assert_close(slope, grad(ours)(x, 0.75 * factor), rtol=1e-6, atol=1e-8)
        assert factor == 1 or not torch.allclose(slope, found, rtol=1e-2)


def test_the_coefficient_moves_outside_of_its_band():
    kl = torch.tensor([0.0, 0.006, 0.007, 0.01, 0.0149, 0.0151, torch.inf])
    assert kl_coeff_update(1.0, kl).tolist() == [0.5, 0.5, 1, 1, 1, 2, 2]
    options = {"target": 0.02, "increment": 3.0, "decrement": 0.1, "tolerance": 1.0}
    assert_close(
        kl_coeff_update(torch.tensor(2.0), torch.tensor([0.019, 0.02, 0.021]), **options),
        torch.tensor([0.2, 2.0, 6.0]),
    )
    assert kl_coeff_update(1.0, kl.bfloat16()).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="^kl_coeff_update: increment is 0.5, expected at least 1"):
        kl_coeff_update(1.0, kl, increment=0.5)
    with pytest.raises(ValueError, match="^kl_coeff_update: decrement is 2.0, expected a number"):
        kl_coeff_update(1.0, kl, decrement=2.0)
    with pytest.raises(ValueError, match=r"^kl_coeff_update: target has shape \(3,\)"):
        kl_coeff_update(1.0, kl, torch.ones(3))
    with pytest.raises(TypeError, match="^kl_coeff_update: kl is a float, expected"):
        kl_coeff_update(1.0, 0.1)


def test_the_divergence_is_of_the_old_policy_from_the_new():
    td = finished(N)
    p, q = td["behavior", "logits"].softmax(-1), td["logits"].softmax(-1)
    out = ppo_kl_penalty_loss(td, kl_coeff=2.0, reduction="none")
    assert_close(out["kl"], (p * (p / q).log()).sum(-1))
    assert_close(out["loss_kl"], 2 * out["kl"])
    with pytest.raises(ValueError, match="^ppo_kl_penalty_loss: the td has no 'behavior"):
        ppo_kl_penalty_loss(td.exclude("behavior"))
    with pytest.raises(ValueError, match=r"^ppo_kl_penalty_loss: behavior.logits has shape"):
        shorter = td["behavior", "logits"][:, 0]
        ppo_kl_penalty_loss(replaced(td, behavior={"logits": shorter}))


def test_several_heads_and_their_divergence():
    a, b = finished(N, continuous=True), finished(N, seed=1)
    heads = joint(steer=independent_normal, gear=Categorical)

    def parameters(a, b):
        steer = TensorDict({k: a[k] for k in ("loc", "scale")}, [N])
        return {"steer": steer, "gear": TensorDict({"logits": b["logits"]}, [N])}

    more = {
        "params": TensorDict(parameters(a, b), [N]),
        "action": TensorDict({"steer": a["action"], "gear": b["action"]}, [N]),
        "action_log_prob": a["action_log_prob"] + b["action_log_prob"],
        "behavior": TensorDict({"params": parameters(a["behavior"], b["behavior"])}, [N]),
    }
    td = replaced(b.exclude("logits"), **more)
    parts = [ppo_kl_penalty_loss(a, independent_normal, reduction="none")]
    parts.append(ppo_kl_penalty_loss(b, reduction="none"))
    found = ppo_kl_penalty_loss(td, heads, reduction="none")
    for key in ("kl", "entropy", "kl_approx"):
        assert_close(found[key], parts[0][key] + parts[1][key])
    ratio = -parts[0]["loss_objective"] / a["advantage"] * -parts[1]["loss_objective"]
    assert_close(found["loss_objective"], -ratio)


# ---- several agents


def agents_td(envs=4, agents=3, steps=6):
    """A td [envs, agents, steps]: the agents are one more batch dimension."""
    return finished(envs, agents, steps)


def torchrl_agents(cls, td, **options):
    """TorchRL's loss of the same numbers, with agents last but for the features."""
    turned = td.transpose(1, 2).contiguous()
    actor = ProbabilisticTensorDictSequential(
        Module(lambda x: x, ["logits_in"], ["logits"]),
        ProbabilisticTensorDictModule(
            ["logits"], ["action"], distribution_class=Categorical, return_log_prob=True
        ),
    )
    critic = Module(lambda x: x, ["value_in"], ["state_value"])
    loss = cls(actor, critic, loss_critic_type="l2", critic_coeff=0.5, **options).double()
    given = {k: turned[k].unsqueeze(-1) for k in ("advantage", "value_target")}
    given |= {"logits_in": turned["logits"], "value_in": turned["state_value"].unsqueeze(-1)}
    given |= {k: turned[k] for k in ("action", "action_log_prob")}
    return loss(TensorDict(given, turned.batch_size[:2]))


@pytest.mark.parametrize("cls", [MAPPOLoss, IPPOLoss])
def test_agents_are_a_batch_dimension(cls):
    td = agents_td()
    found = ppo_clip_loss(td, eps=0.25)
    wanted = torchrl_agents(cls, td, clip_epsilon=0.25, normalize_advantage=False)
    names = ("loss_objective", "loss_critic", "loss_entropy", "clip_fraction", "max_ratio")
    for key in (*names, "entropy", "mean_ratio", "kl_approx"):
        assert_close(found[key], wanted[key].reshape(()), rtol=1e-6, atol=1e-7)
    each = [total(ppo_clip_loss(x, eps=0.25)) for x in td.unbind(1)]
    assert_close(torch.stack(each).mean(), total(found))


def test_advantages_normalized_agent_by_agent():
    """TorchRL's MAPPO does so: here it is the loss of one agent, mapped."""
    td = agents_td()
    wanted = torchrl_agents(MAPPOLoss, td, normalize_advantage=True)
    a = td["advantage"]
    sample = (a - a.mean((0, 2), keepdim=True)) / a.std((0, 2), keepdim=True)
    found = ppo_clip_loss(replaced(td, advantage=sample))
    assert_close(found["loss_objective"], wanted["loss_objective"], rtol=1e-6, atol=1e-7)
    one = [ppo_clip_loss(x, normalize_advantage=True) for x in td.unbind(1)]
    population = (a - a.mean((0, 2), keepdim=True)) / (
        a.std((0, 2), keepdim=True, correction=0) + 1e-8
    )
    whole = ppo_clip_loss(replaced(td, advantage=population))["loss_objective"]
    assert_close(torch.stack([x["loss_objective"] for x in one]).mean(), whole)


def test_one_value_for_all_agents():
    """MAPPO's central critic: its value, expanded."""
    td = agents_td()
    central = td["state_value"][:, :1].expand(4, 3, 6)
    found = ppo_clip_loss(replaced(td, state_value=central))
    slope = grad(
        lambda v: total(ppo_clip_loss(replaced(td, state_value=v.unsqueeze(1).expand(4, 3, 6))))
    )(central[:, 0])
    right = (central - td["value_target"]).sum(1) / td.numel()  # 2 times the coefficient is 1
    assert_close(slope, right)
    assert found["loss_critic"] > 0
