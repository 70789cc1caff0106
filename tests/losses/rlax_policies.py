"""rlax's losses of policies and its distributions in our words."""

from dataclasses import dataclass
from functools import partial

import torch

import losses
from tests.losses.rlax_rows import Row, steps

# ---- policies


@dataclass
class Given:
    """A distribution that knows the log-probability of its action."""

    value: torch.Tensor

    def log_prob(self, action):
        return self.value

    def entropy(self):
        return torch.zeros_like(self.value)


def given(logits):
    return Given(logits.squeeze(-1))


def policy_gradient(a):
    batch = steps(len(a.w_t), logits=a.logits_t, action=a.a_t, advantage=a.adv_t, weight=a.w_t)
    return losses.policy_gradient_loss(batch, reduction="none")["loss_objective"].mean()


def entropy(a):
    batch = steps(len(a.w_t), logits=a.logits_t)
    return losses.entropy_loss(batch, entropy_coeff=a.w_t)["loss_entropy"]


def clipped_surrogate(a):
    log_ratio, zero = a.prob_ratios_t.log(), torch.zeros_like(a.adv_t)
    entries = {"logits": log_ratio.unsqueeze(-1), "action": zero, "action_log_prob": zero}
    batch = steps(len(zero), advantage=a.adv_t, **entries)
    options = {"eps": a.epsilon, "critic_coeff": None}
    return losses.ppo_clip_loss(batch, given, **options)["loss_objective"]


def all_actions(loss, finish):
    def call(a):
        batch = steps(len(a.q_t), logits=a.logits_t, action_value=a.q_t)
        batch = losses.add_action_advantage(batch) if finish else batch
        return loss(batch)["loss_objective"]

    return call


def all_actions_row(loss, **options):
    return Row(all_actions(loss, True), stopped=all_actions(loss, False), **options)


def deterministic(a, hold=False):
    batch = steps(len(a.a_t), action_actor=a.a_t, action_gradient=a.dqda_t)
    target = losses.add_action_target(batch, a.get("dqda_clipping"))["action_target"]
    target = target.detach() if hold else target
    # rlax keeps the components apart
    entries = {"action_actor": a.a_t.unsqueeze(-1), "action_target": target.unsqueeze(-1)}
    batch = steps(*a.a_t.shape, **entries)
    return losses.deterministic_policy_gradient_loss(batch, reduction="none")["loss_actor"]


def distillation(a):
    scale = a.get("weights_scale", 0.0)
    weights = a.get("weights", torch.zeros(a.actions.shape, dtype=a.logits.dtype) + scale)
    entries = {"action_samples": a.actions.mT, "policy_weight": weights.mT}
    return losses.distillation_loss(steps(len(a.logits), logits=a.logits, **entries))[
        "loss_distillation"
    ]


def constraints(a, hold):
    one = losses.LagrangePenalty(hold(a.alpha), a.eps_alpha)
    many = losses.LagrangePenalty(hold(a.alpha_per_dim), a.eps_alpha_per_dim, True)
    return {"kl": one, "kl_per_dim": many}


def kls(a, hold):
    return {"kl": hold(a.kl), "kl_per_dim": hold(a.kl_per_dim)}


def same(x):
    return x


def weighted(a, parts):
    """rlax's sum of the four losses, beside them."""
    names = ("policy_loss", "temperature_loss", "kl_loss", "alpha_loss")
    return {"loss": sum(a[f"{k}_weight"] * parts[k] for k in names)} | parts


def mpo(a, hold=same):
    q, log_prob = a.sample_q_values.movedim(0, -1), a.sample_log_probs.movedim(0, -1)
    batch = steps(len(q), action_value_samples=q, action_log_prob_samples=log_prob)
    batch = losses.add_mpo_weight(batch, a.temperature)
    weight = hold(batch["policy_weight"])
    batch = steps(len(q), **{**batch, "policy_weight": weight})
    own = losses.mpo_loss(
        batch.clone().update(kls(a, same)), constraints=constraints(a, hold), reduction="none"
    )
    dual = losses.mpo_dual_loss(
        batch.clone().update(kls(a, hold)),
        temperature=a.temperature,
        epsilon=a.eps_temperature,
        constraints=constraints(a, same),
        reduction="none",
    )
    parts = {"policy_loss": own["loss_actor"], "kl_loss": own["loss_kl"]}
    parts |= {"temperature_loss": dual["loss_temperature"], "alpha_loss": dual["loss_alpha"]}
    return weighted(a, parts | {"normalized_weights": weight.movedim(-1, 0)})


def mpo_weights(a):
    q = a.sample_q_values.movedim(0, -1)
    weight = losses.mpo_weights(q, a.temperature).movedim(-1, 0)
    dual = losses.mpo_temperature_dual(q, a.temperature, a.eps_temperature)
    return {"temperature_loss": dual, "normalized_weights": weight}


def lagrange(a, hold=same):
    """Sums over a bound on the whole and one on each component."""
    penalty = losses.lagrange_penalty(a.kl, hold(a.alpha))
    penalty = penalty + losses.lagrange_penalty(a.kl_per_dim, hold(a.alpha_per_dim), True)
    dual = losses.lagrange_dual(hold(a.kl), a.alpha, a.eps_alpha)
    each = (hold(a.kl_per_dim), a.alpha_per_dim, a.eps_alpha_per_dim)
    return {"kl_loss": penalty, "alpha_loss": dual + losses.lagrange_dual(*each, True)}


def vmpo_weights(a, hold=same):
    """rlax counts steps outside of the mask in what it takes the fraction of."""
    mask = a.restarting_weights.detach() == 1
    fraction = int(a.top_k.item() * mask.numel()) / mask.sum().item()
    if (a.advantages == a.advantages[0]).all():
        fraction = 1.0  # ties are in
    ratio = hold(a.importance_weights)
    options = {"top_k_fraction": min(fraction, 1.0), "mask": mask, "importance_weight": ratio}
    weight = hold(losses.vmpo_weights(a.advantages, a.temperature, **options))
    args = (a.advantages, a.temperature, a.eps_temperature)
    dual = losses.vmpo_temperature_dual(*args, **options)
    count = (weight > 0).sum().to(weight.dtype)
    return {"temperature_loss": dual, "normalized_weights": weight, "num_samples": count}


def vmpo(a, hold=same):
    parts = vmpo_weights(a, hold)
    parts.pop("num_samples")
    weight, log_prob = parts["normalized_weights"], a.sample_log_probs
    entries = {"logits": log_prob.unsqueeze(-1), "action": torch.zeros_like(log_prob)}
    entries |= {"policy_weight": weight * len(weight), **kls(a, same)}
    bounds = {"constraints": constraints(a, hold), "reduction": "none"}
    own = losses.vmpo_loss(steps(len(weight), **entries), given, **bounds)
    dual = lagrange(a, hold)["alpha_loss"]
    parts |= {"policy_loss": own["loss_actor"], "kl_loss": own["loss_kl"], "alpha_loss": dual}
    return weighted(a, parts)


# ---- distributions


def normal(a, i):
    return losses.independent_normal(a[f"mu_{i}"], a[f"sigma_{i}"])


def categorical_of(a):
    return losses.distribution(steps(len(a.logits), logits=a.logits))


def importance(a):
    log_pi, log_mu = (
        losses.distribution(steps(len(x), logits=x)).log_prob(a.a_t)
        for x in (a.pi_logits_t, a.mu_logits_t)
    )
    return losses.importance_ratio(log_pi, log_mu)


def categorical_kl(a):
    return losses.categorical_kl(a.p_logits / a.temperature, a.q_logits / a.temperature)


def normal_kl(a):
    return losses.kl_divergence(normal(a, 0), normal(a, 1))


def squashed(a):
    """rlax's activations of both parameters are the network's matter here."""
    scale = (-4 + 2 * (a.sigma.tanh() + 1)).exp()
    return losses.tanh_normal(a.mu.tanh(), scale).log_prob(a.sample)


# ---- the table

MASK = {"grad/restarting_weights": "a mask is bool", "semi/restarting_weights": "likewise"}
HELD = "rlax holds the action values whatever its flag"
NORMALIZED = "distrax divides the labels by their sum"

POLICIES = {
    "policy_gradient_loss": Row(policy_gradient, ("logits_t", "w_t")),
    "entropy_loss": Row(entropy),
    "clipped_surrogate_pg_loss": Row(clipped_surrogate, ("prob_ratios_t", "epsilon")),
    "qpg_loss": all_actions_row(losses.qpg_loss),
    "rm_loss": all_actions_row(losses.rm_loss, differs={"grad/q_t": (1.0, HELD)}),
    "rpg_loss": all_actions_row(losses.rpg_loss),
    "dpg_loss": Row(deterministic, stopped=partial(deterministic, hold=True)),
    "sampled_policy_distillation_loss": Row(distillation, ("logits",)),
    "constant_policy_targets": Row(distillation),
    "zero_policy_targets": Row(distillation),
    "mpo_loss": Row(mpo, stopped=partial(mpo, hold=torch.Tensor.detach)),
    "mpo_compute_weights_and_temperature_loss": Row(mpo_weights),
    "compute_parametric_kl_penalty_and_dual_loss": Row(
        lagrange, stopped=partial(lagrange, hold=torch.Tensor.detach)
    ),
    "vmpo_loss": Row(
        vmpo, stopped=partial(vmpo, hold=torch.Tensor.detach), skipped=MASK, rtol=1e-8
    ),
    "vmpo_compute_weights_and_temperature_loss": Row(
        vmpo_weights,
        stopped=partial(vmpo_weights, hold=torch.Tensor.detach),
        skipped=MASK,
        rtol=1e-8,
    ),
    "categorical_importance_sampling_ratios": Row(importance),
    "categorical_cross_entropy": Row(
        lambda a: losses.categorical_cross_entropy(a.labels, a.logits),
        differs={"grad/labels": (5.0, NORMALIZED)},
    ),
    "categorical_kl_divergence": Row(categorical_kl),
    "multivariate_normal_kl_divergence": Row(normal_kl),
    "softmax/logprob": Row(lambda a: categorical_of(a).log_prob(a.sample)),
    "softmax/entropy": Row(lambda a: categorical_of(a).entropy()),
    "gaussian_diagonal/kl": Row(normal_kl),
    "gaussian_diagonal/entropy": Row(lambda a: losses.independent_normal(a.mu, a.sigma).entropy()),
    "gaussian_diagonal/logprob": Row(
        lambda a: losses.independent_normal(a.mu, a.sigma).log_prob(a.sample)
    ),
    "squashed_gaussian/logprob": Row(squashed),
}
