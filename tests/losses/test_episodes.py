# pyright: reportArgumentType=false
"""A concatenation of episodes gives the concatenation of their results, truncation included.

And what is said to follow a terminated step is without influence and without gradient.
"""

import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close

from losses import (
    add_advantage,
    add_lambda_returns,
    add_q_target,
    add_retrace,
    add_td_target,
    add_vtrace,
    discounted_returns,
    gae,
    lambda_returns,
    n_step_returns,
    off_policy_returns,
    retrace,
    retrace_continuous,
    signed_hyperbolic_pair,
    td_targets,
    vtrace,
)

WORKERS, ACTIONS, HYPER = 2, 3, (0.9, 0.8)
TX = signed_hyperbolic_pair


def episode(length, seed, last):
    """A td ``[workers, length]`` that ends with its last step: "terminated" or "truncated"."""
    generator = torch.Generator().manual_seed(seed)
    size = (WORKERS, length)

    def normal(*more):
        return torch.randn(*size, *more, generator=generator, dtype=torch.float64)

    done = torch.zeros(size, dtype=torch.bool)
    done[:, -1] = True
    following = {
        "reward": normal(),
        "state_value": normal(),
        "action_value": normal(ACTIONS),
        "action_value_selector": normal(ACTIONS),
        "logits": normal(ACTIONS),
        "done": done,
        "terminated": done & (last == "terminated"),
    }
    entries = {
        "state_value": normal(),
        "action_value": normal(ACTIONS),
        "logits": normal(ACTIONS),
        "action": normal(ACTIONS).argmax(-1),
        "action_log_prob": normal() - 1,
        "next": TensorDict(following, size),
    }
    return TensorDict(entries, size)


def opened(td):
    """What per-step functions take, time first, by short names."""
    after = td["next"]
    named = {
        "r": after["reward"],
        "v": td["state_value"],
        "w": after["state_value"],
        "d": after["done"],
        "e": after["terminated"],
        "log": td["action_log_prob"],
        "q": after["action_value"],
        "p": after["logits"].softmax(-1),
        "a": td["action"],
    }
    return [x.movedim(1, 0) for x in named.values()]


def per_step(function):
    """A function of the time-first tensors as one of a td, its results time last."""

    def of_td(td):
        out = function(*opened(td))
        return [x.movedim(0, 1) for x in (out if isinstance(out, tuple) else (out,))]

    return of_td


def estimator(function, **hyper):
    """Results of an estimator, called with these hyper-parameters."""

    def of_td(td):
        out = function(td, **hyper)
        return [out[key] for key in ("advantage", "value_target") if key in out.keys()]

    return of_td


CLIPS = (0.9, 0.8, 1.1, 0.3)
FUNCTIONS = {
    "td_targets": per_step(lambda r, v, w, d, e, log, q, p, a: td_targets(r, w, e, 0.9, TX)),
    "discounted_returns": per_step(
        lambda r, v, w, d, e, log, q, p, a: discounted_returns(r, d, e, 0.9, w)
    ),
    "rewards to go": per_step(lambda r, v, w, d, e, log, q, p, a: discounted_returns(r, d, e, 0.9)),
    "lambda_returns": per_step(
        lambda r, v, w, d, e, log, q, p, a: lambda_returns(r, w, d, e, *HYPER)
    ),
    "lambda_returns, transformed": per_step(
        lambda r, v, w, d, e, log, q, p, a: lambda_returns(r, w, d, e, *HYPER, TX)
    ),
    "n_step_returns": per_step(
        lambda r, v, w, d, e, log, q, p, a: n_step_returns(r, w, d, e, 0.9, 3)
    ),
    "n_step_returns with a trace": per_step(
        lambda r, v, w, d, e, log, q, p, a: n_step_returns(r, w, d, e, 0.9, 3, 0.8, TX)
    ),
    "gae": per_step(lambda r, v, w, d, e, log, q, p, a: gae(r, v, w, d, e, *HYPER)),
    "vtrace": per_step(
        lambda r, v, w, d, e, log, q, p, a: tuple(vtrace(r, v, w, d, e, log + 1, *HYPER, *CLIPS))
    ),
    "off_policy_returns": per_step(
        lambda r, v, w, d, e, log, q, p, a: off_policy_returns(r, v, w, log.exp(), d, e, 0.9)
    ),
    "retrace": per_step(
        lambda r, v, w, d, e, log, q, p, a: retrace(r, q, p, a, log, d, e, *HYPER, TX)
    ),
    "retrace_continuous": per_step(
        lambda r, v, w, d, e, log, q, p, a: retrace_continuous(r, v, w, log, d, e, *HYPER)
    ),
    "add_advantage": estimator(add_advantage, gamma=0.9, lmbda=0.8),
    "add_lambda_returns": estimator(add_lambda_returns, gamma=0.9, lmbda=0.8),
    "add_td_target": estimator(add_td_target, gamma=0.9),
    "add_q_target": estimator(add_q_target, gamma=0.9),
    "add_vtrace": estimator(add_vtrace, gamma=0.9, lmbda=0.8, c_clip=0.7, leak=0.2),
    "add_retrace": estimator(add_retrace, gamma=0.9, lmbda=0.8),
}


@pytest.mark.parametrize("ends", ["terminated", "truncated", "mixed", "open"])
@pytest.mark.parametrize("lengths", [(1, 1), (4, 3), (9, 16, 1)], ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_concatenated_episodes_give_the_concatenated_results(name, lengths, ends):
    parts = []
    for i, length in enumerate(lengths):
        kind = {"mixed": ("truncated", "terminated")[i % 2], "open": "truncated"}.get(ends, ends)
        parts.append(episode(length, i, kind))
    if ends == "open":  # the recording stops, the episode does not
        parts[-1]["next"]["done"].fill_(False)
    whole = FUNCTIONS[name](torch.cat(parts, 1))
    separate = zip(*(FUNCTIONS[name](part) for part in parts), strict=True)
    for found, alone in zip(whole, separate, strict=True):
        assert_close(found, torch.cat(alone, 1))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_truncated_step_does_not_depend_on_the_next_episode(name):
    first, second, other = (episode(4, seed, "truncated") for seed in range(3))
    results = [FUNCTIONS[name](torch.cat([first, then], 1)) for then in (second, other)]
    for x, y in zip(*results, strict=True):
        assert_close(x[:, :4], y[:, :4])
        assert (x[:, 4:] != y[:, 4:]).any()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_follows_a_terminated_step_is_without_influence(name):
    td = torch.cat([episode(3, 0, "terminated"), episode(4, 1, "truncated")], 1)
    keys = [("next", key) for key in ("state_value", "action_value", "action_value_selector")]
    if name == "add_retrace":  # for the per-step function the logits become probabilities in here
        keys.append(("next", "logits"))

    def results(spoiled):
        inputs = [td[key].clone() for key in keys]
        if spoiled:
            for x in inputs:
                x[:, 2] = torch.nan
        with_them = td.clone()
        for key, x in zip(keys, inputs, strict=True):
            with_them[key] = x.requires_grad_()
        out = FUNCTIONS[name](with_them)
        total = sum(x.sin().sum() for x in out) + 0 * sum(x[:, 0].sum() for x in inputs)
        return out, torch.autograd.grad(total, inputs)

    (found, grads), (wanted, expected) = results(True), results(False)
    assert_close(found, wanted)
    assert_close(grads, expected)
    assert all((g[:, 2] == 0).all() for g in grads)
