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
from .._check import require_count, require_real
from ..modes import truncated
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
            moves by the mean of their gradients. None for one agent, without an axis.
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
        ended), ``meta_loss`` and ``meta_gradient``, its gradient's norm. Buffers are data: no
        derivative goes through them.

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
            state["trace"] = no_trace(eta, agents)
        step = torch.zeros((), dtype=torch.int64, device=key.device)
        return tree.new({**state, "step": step, "key": key})

    def judged(eta: TensorDict, agents: TensorDict) -> Tensor:
        return each(judge, eta, agents).mean()

    def backward(eta: TensorDict, agents: TensorDict, key: Tensor) -> Any:
        """J', its gradient by reverse mode, and the agents after the updates."""

        def step(eta: TensorDict, agents: TensorDict, k: int) -> TensorDict:
            learning, playing = rng.split(rng.fold_in(key, k))
            agents = each(partial(learn, k), eta, agents, keys(learning))
            return each(partial(play, k), eta, agents, keys(playing))

        def end(eta: TensorDict, agents: TensorDict) -> tuple[Tensor, TensorDict]:
            return judged(eta, agents), agents

        through = truncated(step, end, updates, window=width, has_aux=True)
        (value, agents), slope = through(eta, agents)
        return value, slope, agents

    def forward(eta: TensorDict, agents: TensorDict, key: Tensor, trace: TensorDict) -> Any:
        """J', its gradient along the trace, the agents after the updates, and the trace."""
        how: dict[str, Any] = {"decay": mu, "exact": exact or method == "forward"}
        for k in range(updates):
            learning, playing = rng.split(rng.fold_in(key, k))

            def update(eta: TensorDict, agents: TensorDict) -> TensorDict:
                return each(partial(learn, k), eta, agents, keys(learning))  # noqa: B023

            agents, trace = traced(update, eta, agents, trace, **how)
            agents = each(partial(play, k), eta, agents, keys(playing))

        def end(params: TensorDict) -> Tensor:
            return judged(eta, tree.rebuild(agents, {**tree.entries(agents), "params": params}))

        value, slope = value_and_grad(end)(agents["params"])
        return value, along_trace(slope, trace, eta), agents, trace

    def step(state: TensorDict) -> tuple[TensorDict, TensorDict]:
        key, eta, agents = rng.fold_in(state["key"], state["step"]), state["eta"], state["agents"]
        if fresh:
            agents = each(born, eta, keys(rng.fold_in(key, "fresh")))
        after: dict[str, Any] = {}
        if method == "truncated":
            value, slope, agents = backward(eta, agents, key)
        else:
            begun = fresh or method == "forward"
            trace = no_trace(eta, agents) if begun else state["trace"]
            value, slope, agents, trace = forward(eta, agents, key, trace)
            after = {"trace": trace} if method == "trace" else {}
        changes, moments = eta_optimizer.update(slope, state["eta_optimizer"], eta)
        td, ended = agents["trajectory"], agents["episodes"]
        metrics = {
            **tree.entries(hyper.show(eta, td)),
            "reward": td["next", "reward"].mean(),
            "return": _mean_return(ended),
            "episodes": ended["count"].sum(),
            "meta_loss": value,
            "meta_gradient": tree.norm(slope),
        }
        after |= {"agents": agents, "eta": apply_updates(eta, changes), "eta_optimizer": moments}
        after |= {"step": state["step"] + 1, "key": state["key"]}
        return detach(tree.new(after)), detach(tree.new(metrics))

    return Training(init, step)


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
