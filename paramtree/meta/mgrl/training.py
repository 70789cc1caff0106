"""Hyper-parameters that are learned online, by what the updates made with them are worth.

An agent is updated K times, each time on the trajectory that it has just made, with
hyper-parameters that are functions of eta. The trajectory that it makes then judges the last
parameters, at reference discounts that are not learned, and eta descends that judgment J':

    theta' = f(tau, theta, eta), K times
    gradient of eta = dJ'(tau', theta') / d theta'  d theta' / d eta

Tau' is what the next update learns from, so nothing is played for the judgment alone. A
hyper-parameter that only switches can't be learned: PPO's clip range has a slope of 0 almost
everywhere, for a ratio beyond it has no gradient and one within doesn't know of it.

How theta' depends on eta is found in one of three ways:

    truncated   back through the last W of the K updates
    forward     forward through all K, with a trace of theta for each entry of eta
    trace       the same trace, but never begun anew: it is carried from one step to the next

A whole training is one tree, and a step is a pure function of it:

    agents          params, buffers, optimizer (its state) and rule (its buffers); level and env,
                    where they play; trajectory, the last one; episodes, how they fared
    eta             what is learned
    eta_optimizer   state of what moves it
    trace           z, for the method of this name
    step            meta-steps done, int64
    key             key [2]

An agent whose J' or gradient is not finite has no part in the step of eta: the others go on as if
it weren't there, and in its place an agent is born, with all that belongs to it.

Source: Xu, van Hasselt & Silver (2018), "Meta-gradient reinforcement learning".
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.distributions import Categorical

from ... import losses, rng, tree
from ...autodiff import detach, value_and_grad, vmap
from ...autodiff.gradients import kind_of
from ...envs import Env, rollout
from ...model import Model, with_next
from ...optim import Transform, apply_updates
from ...rng.philox import is_plain
from .._check import require_count, require_real
from ..modes import load_forward_rules, truncated
from ..training import Training
from ..update_rule import UpdateRule, update_agent
from .hyper import Hyper
from .trace import along_trace, no_trace, traced

METHODS = ("truncated", "trace", "forward")
VALIDATION = ("next", "same")


def mgrl_training(
    agent: Model,
    env: Env,
    level: TensorDict | Callable[[Tensor], TensorDict],
    hyper: Hyper,
    rule: Callable[[TensorDict], UpdateRule],
    optimizer: Callable[[TensorDict], Transform],
    eta_optimizer: Transform,
    *,
    updates: int = 1,
    length: int = 20,
    workers: int = 16,
    tasks: int | None = None,
    fresh: bool = False,
    method: str = "truncated",
    window: int | None = None,
    decay: float | Tensor | None = None,
    exact: bool = False,
    validation: str = "next",
    outer: Callable[[TensorDict, Any], TensorDict] = losses.mgrl_outer_loss,
    conditioned: bool = False,
    dist_class: Any = Categorical,
) -> Training:
    """Training of an agent that learns its own hyper-parameters on the way.

    Args:
        agent: model that gives the policy's parameters and what the rule and ``outer`` read.
        env: its world.
        level: the level, of batch size ``[]``, or a function that draws one from a key.
        hyper: what eta is, see ``hyper_numbers``, ``hyper_schedule`` and ``hyper_network``.
        rule: makes the update rule of hyper-parameters by name, such as ``lambda h:
            a2c_rule(h["gamma"])``; a rule without params.
        optimizer: makes the transform of the agent's gradients of them, such as ``lambda h:
            sgd(h["lr"])``; the state has the same names for all values.
        eta_optimizer: transform of the gradient of eta.
        updates: K, the updates in a step.
        length: T, the steps of each trajectory.
        workers: W, copies of the world in which an agent plays.
        tasks: number of agents that share eta, each with a level and parameters of its own; eta
            moves by the mean of their gradients, of those that are finite. None for one agent,
            without an axis.
        fresh: whether each step begins with new agents: eta is then learned for the first K
            updates of a life.
        method: "truncated", "trace" or "forward".
        window: for "truncated", the last updates through which the gradient goes, from 1 to K;
            None for K.
        decay: mu for "trace", from 0 to 1; None for 1 where the trace is exact, else 0.
        exact: for "trace", whether the trace takes the updates' dependence on the parameters
            along; with mu = 1 it is then the derivative through the whole life.
        validation: "next" for the trajectory that the updated agent makes, "same" for the one that
            it was last updated on.
        outer: reducer of the validation trajectory with the updated agent's outputs, now and next,
            called with ``dist_class``; the sum of its losses is J'. For other reference discounts
            than 0.995 and 1: ``partial(losses.mgrl_outer_loss, reference_gamma=...)``.
        conditioned: whether agents see eta: the model then finds what ``hyper.view`` gives under
            ``eta``, ``[*B, H]``, with a full stop on it: an input has no part in the gradient.
        dist_class: distribution of the actions.

    Returns:
        The training. A step's metrics are the hyper-parameters by name, as ``hyper.show`` gives
        them, and 0-d ``reward`` (a step, on the last trajectories), ``return`` (the mean over
        workers of their last episodes' returns; 0 before the first), ``episodes`` (that have
        ended), ``meta_loss`` (the mean over the agents whose numbers are finite; 0 where there is
        none) and ``meta_gradient``, its gradient's norm; and ``bad`` bool ``[tasks]``, 0-d without
        tasks: whose J' or gradient isn't finite, so that another agent was born in its place.
        Buffers are data: no derivative goes through them. A step is differentiable in the state
        and in the tensors that it was made with, as far as the outer loss is.

    Raises:
        ValueError: a number is out of range, a word isn't known, or an option is given that the
            method has no use for; from ``init``, the rule has params.
        TypeError: an argument is of another kind.

    Source: Xu, van Hasselt & Silver (2018), sections 1 and 2; forward mode: Williams & Zipser
    (1989), "A learning algorithm for continually running fully recurrent neural networks".
    """
    fn = "mgrl_training"
    counts = {"updates": updates, "length": length, "workers": workers}
    for name, number in {**counts, **({} if tasks is None else {"tasks": tasks})}.items():
        require_count(fn, name, number)
    _require_kinds(fn, hyper, rule, optimizer, outer, eta_optimizer)
    _require_word(fn, "method", method, METHODS)
    _require_word(fn, "validation", validation, VALIDATION)
    _require_options(fn, method, window, decay, exact)
    width = updates if window is None else window
    if width > updates:
        raise ValueError(f"{fn}: window is {window}, expected at most {updates} (from updates)")
    mu = decay if decay is not None else float(exact or method == "forward")
    nothing = tree.new({})
    if method != "truncated" and not torch.compiler.is_compiling():
        load_forward_rules()  # here, so that a step may be compiled before it was ever made

    def each(one: Callable[..., Any], *args: Any) -> Any:
        """One agent's function, over the agents; what comes first is shared."""
        if tasks is None:
            return one(*args)
        return vmap(one, (None, *(0 for _ in args[1:])))(*args)

    def keys(key: Tensor) -> Tensor:
        return key if tasks is None else rng.split(key, tasks)

    def seeing(eta: TensorDict, k: int) -> Model:
        """The agent with eta before its eyes."""
        if not conditioned:
            return agent
        numbers = detach(hyper.view(eta, k))

        def apply(params: TensorDict, buffers: TensorDict, td: TensorDict) -> Any:
            seen = {**tree.entries(td), "eta": numbers.expand(*td.batch_size, len(numbers))}
            out, buffers = agent.apply(params, buffers, tree.rebuild(td, seen))
            written = tree.entries(out)
            written.pop("eta", None)
            return tree.rebuild(td, written), buffers

        return Model(agent.init, apply)

    def play(k: int, eta: TensorDict, one: TensorDict, key: Tensor) -> TensorDict:
        """An agent that has played on."""
        place, buffers, td = rollout(
            env,
            seeing(eta, k),
            detach(one["params"]),
            one["buffers"],
            one["level"],
            one["env"],
            key,
            length,
            dist_class,
        )
        played = {"env": place, "buffers": buffers, "trajectory": td}
        if validation == "same":
            played["studied"] = one["trajectory"] if "trajectory" in one.keys() else td
        played["episodes"] = _counted(one["episodes"], td)
        return tree.new({**tree.entries(one), **played})

    def learn(k: int, eta: TensorDict, one: TensorDict, key: Tensor) -> TensorDict:
        """An agent that has learned from what it played; f of the paper."""
        chosen, td = hyper.apply(eta, one["trajectory"], k)
        after, _ = update_agent(
            rule(chosen), seeing(eta, k), optimizer(chosen), nothing, one, td, key=key
        )
        return tree.new({**tree.entries(after), "buffers": detach(after["buffers"])})

    def judge(eta: TensorDict, one: TensorDict) -> Tensor:
        """J' of an agent."""
        td = one["trajectory" if validation == "next" else "studied"]
        outputs = with_next(seeing(eta, updates - 1)).apply(one["params"], one["buffers"], td)[0]
        return losses.total(outer(outputs, dist_class))

    def born(eta: TensorDict, key: Tensor) -> TensorDict:
        """An agent that has played once."""
        own = level if isinstance(level, TensorDict) else level(rng.fold_in(key, "level"))
        params, buffers = agent.init(rng.fold_in(key, "agent"))
        noise = env.noise(own, rng.fold_in(key, "env"), (workers,))
        one = {"params": params, "buffers": buffers, "level": own, "env": env.reset(own, noise)}
        one["episodes"] = _no_episodes(workers, tree.leaves(params))
        one = tree.new({name: tree.lock(part) for name, part in one.items()})
        one = play(0, eta, one, rng.fold_in(key, "play"))
        chosen, _ = hyper.apply(eta, one["trajectory"], 0)
        rule_params, memory = rule(chosen).init(rng.fold_in(key, "rule"))
        if tree.leaves(rule_params):
            raise ValueError(f"{fn}: the rule has params; a rule that is learned: lpg_training")
        more = {"optimizer": optimizer(chosen).init(params), "rule": memory}
        return detach(tree.new({**tree.entries(one), **more}))

    def init(key: Tensor) -> TensorDict:
        eta = hyper.init(rng.fold_in(key, "eta"))
        agents = each(born, eta, keys(rng.fold_in(key, "agents")))
        state = {"agents": agents, "eta": eta, "eta_optimizer": eta_optimizer.init(eta)}
        if method == "trace":
            state["trace"] = each(no_trace, eta, agents)
        step = torch.zeros((), dtype=torch.int64, device=key.device)
        return tree.new({**state, "step": step, "key": key})

    def streams(key: Tensor) -> Tensor:
        """Keys of each update, and of what is played after it: ``[*tasks, K, 2, 2]``."""
        pairs = [rng.split(rng.fold_in(key, k)) for k in range(updates)]
        return torch.stack([torch.stack([keys(one) for one in pair], -2) for pair in pairs], -3)

    def backward(eta: TensorDict, one: TensorDict, key: Tensor) -> Any:
        """J' of an agent, its gradient by reverse mode, and the agent after the updates."""

        def step(eta: TensorDict, one: TensorDict, k: int) -> TensorDict:
            return play(k, eta, learn(k, eta, one, key[k, 0]), key[k, 1])

        def end(eta: TensorDict, one: TensorDict) -> tuple[Tensor, TensorDict]:
            return judge(eta, one), one

        through = truncated(step, end, updates, window=width, has_aux=True)
        (value, one), slope = through(eta, one)
        return value, slope, tree.norm(slope), one

    def forward(
        eta: TensorDict, one: TensorDict, key: Tensor, trace: TensorDict | None = None
    ) -> Any:
        """J' of an agent, its gradient along the trace, the agent after the updates, the trace."""
        how: dict[str, Any] = {"decay": mu, "exact": exact or method == "forward"}
        trace = no_trace(eta, one) if trace is None else trace
        for k in range(updates):
            update = partial(learn, k, key=key[k, 0])
            one, trace = traced(update, eta, one, trace, **how)
            one = play(k, eta, one, key[k, 1])

        def end(params: TensorDict) -> Tensor:
            return judge(eta, tree.rebuild(one, {**tree.entries(one), "params": params}))

        value, slope = value_and_grad(end)(one["params"])
        slope = along_trace(slope, trace, eta)
        return value, slope, tree.norm(slope), one, trace

    def reborn(eta: TensorDict, after: dict[str, Any], fine: Tensor, key: Tensor) -> dict[str, Any]:
        """Agents and traces, with new ones in place of those whose numbers aren't finite."""
        if is_plain(fine) and not fine.is_meta and bool(fine.all()):
            return after
        new = {"agents": each(born, eta, keys(key))}
        if "trace" in after:
            new["trace"] = tree.zeros_like(after["trace"])
        return {name: tree.where(fine, after[name], other) for name, other in new.items()}

    def step(state: TensorDict) -> tuple[TensorDict, TensorDict]:
        key, eta, agents = rng.fold_in(state["key"], state["step"]), state["eta"], state["agents"]
        if fresh:
            agents = each(born, eta, keys(rng.fold_in(key, "fresh")))
        carried = [state["trace"]] if method == "trace" and not fresh else []
        live = backward if method == "truncated" else forward
        value, slopes, norms, *lives = each(live, eta, agents, streams(key), *carried)
        fine = norms.isfinite() & value.isfinite()
        _, structure = tree.flatten(eta)
        means = [_finite_mean(x, fine) for x in tree.leaves(slopes)]
        slope = tree.unflatten(structure, means)
        changes, moments = eta_optimizer.update(slope, state["eta_optimizer"], eta)
        after: dict[str, Any] = {"agents": lives[0]}
        after |= {"trace": lives[1]} if method == "trace" else {}
        moved = apply_updates(eta, changes)
        after = reborn(moved, after, fine, rng.fold_in(key, "reborn"))
        td, ended = after["agents"]["trajectory"], after["agents"]["episodes"]
        metrics = {
            **tree.entries(hyper.show(eta, td)),
            "reward": td["next", "reward"].mean(),
            "return": _mean_return(ended),
            "episodes": ended["count"].sum(),
            "meta_loss": _finite_mean(value, fine),
            "meta_gradient": tree.norm(slope),
            "bad": ~fine,
        }
        after |= {"eta": moved, "eta_optimizer": moments}
        after |= {"step": state["step"] + 1, "key": state["key"]}
        return tree.new(after), tree.new(metrics)

    return Training(init, step)


def _finite_mean(x: Tensor, fine: Tensor) -> Tensor:
    """Mean over the agents whose numbers are finite; 0 where there is none."""
    kept = torch.where(fine.reshape(fine.shape + (1,) * (x.ndim - fine.ndim)), x, 0.0)
    total = kept.sum(0) if fine.ndim else kept
    return total / fine.sum().clamp(min=1)


# ------------------------------------------------------------------------------ episodes


def _no_episodes(workers: int, like: list[Tensor]) -> TensorDict:
    zeros = like[0].new_zeros(workers) if like else torch.zeros(workers)
    count = torch.zeros_like(zeros, dtype=torch.int64)
    return tree.new({"running": zeros, "last": zeros.clone(), "count": count}, (workers,))


def _counted(episodes: TensorDict, td: TensorDict) -> TensorDict:
    """Each worker's return in its running episode, and that of the last that ended."""
    running, last = episodes["running"], episodes["last"]
    reward, done = td["next", "reward"].to(running.dtype), td["next", "done"]
    for earned, over in zip(reward.unbind(-1), done.unbind(-1), strict=True):
        running = running + earned
        last = torch.where(over, running, last)
        running = running.masked_fill(over, 0.0)
    found = {"running": running, "last": last, "count": episodes["count"] + done.sum(-1)}
    return tree.rebuild(episodes, found)


def _mean_return(episodes: TensorDict) -> Tensor:
    some = episodes["count"] > 0
    total = torch.where(some, episodes["last"], 0.0).sum()
    return total / some.sum().clamp(min=1)


# -------------------------------------------------------------------------------- checks


def _require_kinds(
    fn: str, hyper: Any, rule: Any, optimizer: Any, outer: Any, eta_optimizer: Any
) -> None:
    if not isinstance(hyper, Hyper):
        wanted = "a Hyper such as hyper_numbers({'gamma': 0.99})"
        raise TypeError(f"{fn}: hyper is {kind_of(hyper)}, expected {wanted}")
    for name, value in (("rule", rule), ("optimizer", optimizer), ("outer", outer)):
        if not callable(value) or isinstance(value, UpdateRule | Transform):
            wanted = "a function of hyper-parameters" if name != "outer" else "a reducer"
            raise TypeError(f"{fn}: {name} is {kind_of(value)}, expected {wanted}")
    if not isinstance(eta_optimizer, Transform):
        kind = kind_of(eta_optimizer)
        raise TypeError(f"{fn}: eta_optimizer is {kind}, expected a Transform such as adam(1e-3)")


def _require_word(fn: str, name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        wanted = ", ".join(map(repr, known))
        raise ValueError(f"{fn}: {name} is {value!r}, expected one of {wanted}")


def _require_options(
    fn: str, method: str, window: int | None, decay: float | Tensor | None, exact: bool
) -> None:
    if window is not None:
        require_count(fn, "window", window)
    if decay is not None:
        require_real(fn, "decay", decay, low=0.0)
        if not isinstance(decay, Tensor) and decay > 1:
            raise ValueError(f"{fn}: decay is {decay}, expected at most 1")
    given = {"window": window is not None, "decay": decay is not None, "exact": exact}
    for name, is_given in given.items():
        owner = "truncated" if name == "window" else "trace"
        if is_given and method != owner:
            raise ValueError(f"{fn}: {name} is given with method {method!r}, expected {owner!r}")
