"""Returns by their definitions, as sums over what follows, one sequence at a time; no recurrences.

Arrays are [T]. What an episode's end cuts is left out of the sums, not multiplied by 0.
"""

import numpy as np


def episode_end(done, terminated, t):
    """Index of the last step of the episode that step t belongs to, as far as it is recorded."""
    stops = np.flatnonzero((done | terminated)[t:])
    return t + int(stops[0]) if stops.size else len(done) - 1


def discount(gamma, t, n):
    """Product of the n discounts from step t on."""
    return float(np.prod(gamma[t : t + n]))


def n_step_return(reward, next_value, terminated, gamma, t, n):
    """n rewards from step t on, and the value after them unless nothing follows."""
    total = sum(discount(gamma, t, k) * reward[t + k] for k in range(n))
    end = t + n - 1
    return total if terminated[end] else total + discount(gamma, t, n) * next_value[end]


def lambda_returns(reward, next_value, done, terminated, gamma, lmbda, cut=None):
    """Mixture of n-step returns: the n-step one has weight lambda_t ... (1 - lambda_{t+n-1}).

    With ``cut`` the longest of them has so many steps, and all of the weight that is left.
    """
    out = np.zeros_like(reward)
    for t in range(len(reward)):
        longest = min(cut or len(reward), episode_end(done, terminated, t) - t + 1)
        kept = 1.0
        for n in range(1, longest + 1):
            stop = 1.0 if n == longest else 1.0 - lmbda[t + n - 1]
            out[t] += kept * stop * n_step_return(reward, next_value, terminated, gamma, t, n)
            kept *= lmbda[t + n - 1]
    return out


def gae(reward, value, next_value, done, terminated, gamma, lmbda):
    """One-step errors to the end of the episode, each weighted by the factors on its way."""
    out = np.zeros_like(reward)
    for t in range(len(reward)):
        for k in range(t, episode_end(done, terminated, t) + 1):
            follows = 0.0 if terminated[k] else gamma[k] * next_value[k]
            error = reward[k] + follows - value[k]
            out[t] += np.prod(gamma[t:k] * lmbda[t:k]) * error
    return out


def discounted_returns(reward, next_value, done, terminated, gamma):
    """Rewards to the end of the episode, and the value after it unless nothing follows."""
    ends = [episode_end(done, terminated, t) for t in range(len(reward))]
    return np.array(
        [
            n_step_return(reward, next_value, terminated, gamma, t, end - t + 1)
            for t, end in enumerate(ends)
        ]
    )


def corrected(first, error, done, terminated, gamma, factor):
    """``first[t]``, and the errors after step t to the episode's end, each times the discounts and
    factors on its way: gamma_t factor_{t+1} gamma_{t+1} ... factor_k."""
    out = first.copy()
    for t in range(len(first)):
        for k in range(t + 1, episode_end(done, terminated, t) + 1):
            out[t] += np.prod(gamma[t:k]) * np.prod(factor[t + 1 : k + 1]) * error[k]
    return out


def vtrace(reward, value, next_value, done, terminated, log_rho, gamma, lmbda, clips, leak):
    """Value targets, q estimates and advantages; clips for rho, c and the policy's rho."""
    rho = np.exp(log_rho)
    own, trace, policy = (np.minimum(rho, c) * (1 - leak) + leak * rho for c in clips)
    follows = np.where(terminated, 0.0, next_value) * gamma
    error = own * (reward + follows - value)
    decay = lmbda * trace
    target = value + error
    for t in range(len(reward)):  # the factor of step t itself is on the way to t + 1
        for k in range(t + 1, episode_end(done, terminated, t) + 1):
            target[t] += np.prod(gamma[t:k] * decay[t:k]) * error[k]
    q = reward + follows
    for t in range(len(reward) - 1):
        if not done[t] and not terminated[t]:
            mixed = (1 - lmbda[t]) * next_value[t] + lmbda[t] * target[t + 1]
            q[t] = reward[t] + gamma[t] * mixed
    return target, q, policy * (q - value)


def off_policy_returns(reward, action_value, next_value, trace, done, terminated, gamma):
    """First the one-step target, then what later steps differ from their action's value."""
    one_step = reward + np.where(terminated, 0.0, next_value) * gamma
    return corrected(one_step, one_step - action_value, done, terminated, gamma, trace)


def a2c_terms(logits, action, value, advantage, target, critic_coeff, entropy_coeff):
    """Objective, critic and entropy terms per step; logits [N, A], the others [N]."""
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    chosen = probs[np.arange(len(action)), action]
    entropy = -(probs * np.log(probs)).sum(-1)
    return (
        -np.log(chosen) * advantage,
        critic_coeff * (value - target) ** 2,
        -entropy_coeff * entropy,
    )


def lpg_terms(logits, action, pi_hat, prediction, y_hat, prediction_coeff, eps):
    """Objective and prediction terms of an LPG agent per step; logits [N, A], targets [N, m]."""
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    y = np.exp(prediction) / np.exp(prediction).sum(-1, keepdims=True)
    chosen = probs[np.arange(len(action)), action]
    divergence = (y * (np.log(y + eps) - np.log(y_hat + eps))).sum(-1)
    return -np.log(chosen + eps) * pi_hat, prediction_coeff * divergence
