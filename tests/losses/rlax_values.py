"""rlax's functions of values and returns in our words."""

from functools import partial

import torch

import losses
from losses import scaling
from tests.losses.rlax_rows import Args, Row, chosen, delayed, led, td

PAIR = scaling.signed_hyperbolic_pair


# ---- values


def q_error(function, *names, **hyper):
    """An error of q_learning.py: what follows the reward, by rlax's names."""

    def call(a):
        after = (a[n] for n in names)
        extra = {ours: a[theirs] for ours, theirs in hyper.items()}
        return function(a.q_tm1, a.a_tm1, a.r_t, *after, a.terminated, a.gamma, **extra)

    return call


def lambda_error(value, next_value, tx=None):
    def call(a):
        args = (a.r_t, next_value(a), a.done, a.terminated, a.gamma, a.lmbda)
        return losses.lambda_returns(*args, tx=tx) - value(a)

    return call


def chosen_before(a):
    return chosen(a.q_tm1, a.a_tm1)


def retrace(a, tx=None):
    log_mu = (a.mu_t + a.get("eps", 1e-8)).log()
    target = losses.retrace(
        a.r_t,
        a.q_t,
        a.pi_t,
        delayed(a.a_t),
        delayed(log_mu),
        a.done,
        a.terminated,
        a.gamma,
        delayed(a.lmbda),
        tx=tx,
    )
    return target - chosen(a.q_tm1, a.a_tm1)


def retrace_continuous(a):
    ends = (a.done, a.terminated, a.gamma, led(a.lambda_))
    return losses.retrace_continuous(a.r_t, led(a.q_t), a.v_t, led(a.log_rhos), *ends) - a.q_tm1


def off_policy_q(a, tx=None):
    q, v = chosen(a.q_t, a.a_t), (a.pi_t * a.q_t).sum(-1)
    if tx is not None:  # the mean over actions is taken in the space of rewards
        v = tx.apply((a.pi_t * tx.inverse(a.q_t)).sum(-1))
    ends = (delayed(a.c_t), a.done, a.terminated, a.gamma)
    return losses.off_policy_returns(a.r_t, delayed(q), v, *ends, tx=tx)


def off_policy_v(a):
    ends = (led(a.c_t), a.done, a.terminated, a.gamma)
    return losses.off_policy_returns(a.r_t, led(a.q_t), a.v_t, *ends)


def discounted_returns(a):
    return losses.discounted_returns(a.r_t, a.done, a.terminated, a.gamma, a.v_t)


def n_step_returns(a, n=None, tx=None):
    ends = (a.done, a.terminated, a.gamma, int(a.n) if n is None else n)
    return losses.n_step_returns(a.r_t, a.v_t, *ends, a.get("lmbda", 1.0), tx=tx)


def n_step_q(a):
    a = Args(a, v_t=chosen(a.target_q_t, a.a_t))
    return n_step_returns(a, 2, PAIR) - chosen(a.q_tm1, a.a_tm1)


def gae(a):
    ends = (a.done, a.terminated, a.gamma, a.lmbda)
    return losses.gae(a.r_t, a["values"][:-1], a["values"][1:], *ends)


def vtrace(a):
    values = a.get("values")
    before, after = (a.v_tm1, a.v_t) if values is None else (values[:-1], values[1:])
    log_rho, gamma, lmbda = a.rho_tm1.log(), a.gamma, a.lmbda
    clips = {"rho_clip": a.clip_rho_threshold, "leak": 1 - a.get("alpha_", a.get("alpha", 1.0))}
    if "clip_pg_rho_threshold" in a:
        clips["pg_rho_clip"] = a.clip_pg_rho_threshold
    reward = a.r_t
    if "sample_mask" in a:
        on = a.sample_mask
        reward, before, after, log_rho = (
            torch.where(on, x, 0.0) for x in (reward, before, after, log_rho)
        )
        gamma, lmbda = (torch.where(on, x, 1.0) for x in (gamma, lmbda))
    args = (reward, before, after, a.done, a.terminated, log_rho, gamma, lmbda)
    return losses.vtrace(*args, **clips)


def vtrace_errors(a, hold=False):
    out = vtrace(a)
    return out.value_target.detach() - a.v_tm1 if hold else out.errors


def vtrace_all(a):
    out = vtrace(a)
    return {"errors": out.errors, "pg_advantage": out.advantage, "q_estimate": out.q_estimate}


# ---- distributions of returns


def categorical(kind, hold=False):
    """Errors with atoms: of a state's value, an action's, or with another choice of an action."""
    loss = losses.categorical_td_loss if kind == "v" else losses.categorical_q_loss
    name = "state_value_logits" if kind == "v" else "action_value_logits"

    def call(a):
        letter, support = kind[0], a[f"{kind[0]}_atoms_tm1"]
        entries = {name: a[f"{letter}_logits_tm1"], f"next_{name}": a[f"{letter}_logits_t"]}
        entries |= {} if kind == "v" else {"action": a.a_tm1}
        entries |= {"next_action_value_selector": a.q_t_selector} if kind == "q_double" else {}
        batch, gamma = td(a, **entries), a.gamma
        if not hold:
            batch, gamma = losses.add_categorical_target(batch, support, gamma), None
        return loss(batch, support=support, gamma=gamma, reduction="none")["loss_critic"]

    return call


def quantile(kind, hold=False):
    def call(a):
        entries = {"action_value_quantiles": a.dist_q_tm1.mT, "action": a.a_tm1}
        entries |= {"next_action_value_quantiles": a.dist_q_t.mT}
        if kind == "expected":
            entries |= {"next_probs": a.probs_a_t}
        else:
            entries |= {"next_action_value_selector": a.dist_q_t_selector.mean(-2)}
        expected = kind == "expected"
        batch, hyper = td(a, **entries), {"gamma": a.gamma, "expected": expected}
        if not hold:
            batch, hyper = losses.add_quantile_q_target(batch, **hyper), {}
        loss = losses.quantile_q_loss(batch, tau=a.tau_q_tm1, reduction="none", **hyper)
        return loss["loss_critic"]

    return call


def quantile_regression(a):
    kappa = a.huber_param.item()
    return losses.quantile_huber(a.dist_src, a.tau_src, a.dist_target, kappa)


# ---- the table

V_ATOMS = {"same": {"v_atoms_t": "v_atoms_tm1"}, "kept": ("r_t", "discount_t", "v_atoms_tm1")}
Q_ATOMS = {"same": {"q_atoms_t": "q_atoms_tm1"}, "kept": ("r_t", "discount_t", "q_atoms_tm1")}
LEAKY = "rlax's flag stops the errors, and leaves the advantage half stopped"
APART = "rlax mixes in V(s_t+1) of the next row, we next_value: the same where they are equal"
VTRACE = ("v_tm1", "v_t", "r_t", "discount_t", "rho_tm1", "lambda_")
VTRACE = (*VTRACE, "clip_rho_threshold", "clip_pg_rho_threshold")

VALUES = {
    "td_learning": Row(
        lambda a: losses.td_error(a.v_tm1, a.r_t, a.v_t, a.terminated, a.gamma), ("v_tm1",)
    ),
    "td_lambda": Row(lambda_error(lambda a: a.v_tm1, lambda a: a.v_t), ("v_tm1",)),
    "sarsa": Row(q_error(losses.sarsa_error, "q_t", "a_t"), ("q_tm1",)),
    "expected_sarsa": Row(q_error(losses.expected_sarsa_error, "q_t", "probs_a_t"), ("q_tm1",)),
    "sarsa_lambda": Row(lambda_error(chosen_before, lambda a: chosen(a.q_t, a.a_t)), ("q_tm1",)),
    "q_learning": Row(q_error(losses.q_learning_error, "q_t"), ("q_tm1",)),
    "double_q_learning": Row(
        q_error(losses.double_q_learning_error, "q_t_value", "q_t_selector"), ("q_tm1",)
    ),
    "persistent_q_learning": Row(
        q_error(losses.persistent_q_error, "q_t", action_gap_scale="action_gap_scale"), ("q_tm1",)
    ),
    "qv_learning": Row(
        lambda a: losses.td_error(chosen_before(a), a.r_t, a.v_t, a.terminated, a.gamma),
        ("q_tm1",),
    ),
    "qv_max": Row(
        lambda a: losses.td_error(a.v_tm1, a.r_t, a.q_t.amax(-1), a.terminated, a.gamma),
        ("v_tm1",),
    ),
    "q_lambda": Row(lambda_error(chosen_before, lambda a: a.q_t.amax(-1)), ("q_tm1",)),
    "retrace": Row(retrace, ("q_tm1",)),
    "retrace_continuous": Row(retrace_continuous, ("q_tm1",)),
    "categorical_l2_project": Row(lambda a: losses.categorical_projection(a.z_p, a.probs, a.z_q)),
    "categorical_td_learning": Row(categorical("v"), stopped=categorical("v", True), **V_ATOMS),
    "categorical_q_learning": Row(categorical("q"), stopped=categorical("q", True), **Q_ATOMS),
    "categorical_double_q_learning": Row(
        categorical("q_double"), stopped=categorical("q_double", True), **Q_ATOMS
    ),
    "quantile_regression_loss": Row(quantile_regression, ("dist_src", "dist_target", "tau_src")),
    "quantile_q_learning": Row(
        quantile("greedy"), stopped=quantile("greedy", True), kept=("r_t", "discount_t")
    ),
    "quantile_expected_sarsa": Row(
        quantile("expected"),
        stopped=quantile("expected", True),
        kept=("r_t", "discount_t"),
        ended=("probs_a_t",),
    ),
    "lambda_returns": Row(lambda_error(lambda a: 0.0, lambda a: a.v_t), ()),
    "n_step_bootstrapped_returns": Row(n_step_returns, ()),
    "discounted_returns": Row(discounted_returns, ()),
    "truncated_generalized_advantage_estimation": Row(gae, ()),
    "general_off_policy_returns_from_action_values": Row(off_policy_q, ()),
    "general_off_policy_returns_from_q_and_v": Row(off_policy_v, ()),
    "vtrace": Row(vtrace_errors, stopped=partial(vtrace_errors, hold=True)),
    "leaky_vtrace": Row(vtrace_errors, stopped=partial(vtrace_errors, hold=True)),
    "vtrace_td_error_and_advantage": Row(vtrace_all, LEAKY),
    "vtrace_td_error_and_advantage/apart": Row(
        vtrace_all,
        differs={"out/pg_advantage": (1.0, APART), "out/q_estimate": (2.0, APART)},
        skipped={f"grad/{key}": APART for key in VTRACE},
    ),
    "leaky_vtrace_td_error_and_advantage": Row(vtrace_all, LEAKY),
    "transformed_q_lambda": Row(
        lambda_error(chosen_before, lambda a: a.q_t.amax(-1), PAIR), ("q_tm1",)
    ),
    "transformed_retrace": Row(partial(retrace, tx=PAIR), ("q_tm1",)),
    "transformed_n_step_q_learning": Row(n_step_q, ("q_tm1",)),
    "transformed_lambda_returns": Row(lambda_error(lambda a: 0.0, lambda a: a.v_t, PAIR), ()),
    "transformed_n_step_returns": Row(partial(n_step_returns, n=2, tx=PAIR), ()),
    "transformed_general_off_policy_returns_from_action_values": Row(
        partial(off_policy_q, tx=PAIR), ()
    ),
}
