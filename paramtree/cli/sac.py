"""``paramtree sac``: soft actor-critic, a step and then updates on steps that are remembered.

The state of a training, one tree:

    params         actor, critics (two, stacked) and log_alpha
    target         the critics' slow copy
    optimizer      its state
    buffers        of the view, what is known about observations
    memory         the replay buffer
    world          where the environments are, see ``world``
    step           steps in the environments so far
    key            from which each round's randomness comes

A round goes on in the memory of the state that it began with, which is spent: what is remembered
may be large. One gradient is an update of everything, since no part's loss reaches the parameters
of another. Actions are from -1 to 1, which stands for the whole range of the environment's Box.

Source: Haarnoja et al. (2018), "Soft actor-critic algorithms and applications", algorithm 1.
"""

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from .. import losses, optim, rng, tree
from ..autodiff import detach, grad, vmap
from ..envs import replay_buffer
from ..meta import Training
from ..model import Model, compose, with_next
from .agents import Player, Policy, n_features, observed, perceptron, sac_policy, view
from .gym_options import SacLearning, SacOptions
from .outcome import Refused
from .world import World, require_positive

_NOTHING = tree.new({})


def make_training(
    options: SacOptions, world: World, say: Callable[[str], None]
) -> tuple[Training, Callable[[TensorDict], Player]]:
    """The training of a run.

    Args:
        options: the run's options.
        world: the environments.
        say: is told of what goes wrong without an end to the run.

    Returns:
        ``(training, player)``: the training, whose state ``player`` makes an agent of that acts.

    Raises:
        Refused: a space is of a kind that SAC is not for.
        ValueError: a number is out of range.
    """
    chosen, networks = options.learning, options.networks
    sizes = {"--length": options.length, "--batch": chosen.batch, "--buffer": chosen.buffer}
    sizes |= {"--updates": chosen.updates, "--hidden": min(networks.hidden, default=1)}
    require_positive(sizes)
    if chosen.alpha == 0:
        raise Refused("--alpha is 0, expected a number above it: its logarithm is what is learned")
    space = world.observation_space
    size = n_features(options.env, space)
    policy = sac_policy(options.env, world.action_space, size, networks)
    n_actions = world.action_space.shape[0]
    critic = perceptron(size + n_actions, 1, networks)
    seeing, watching = (view(options.env, space, networks, train=train) for train in (False, True))
    acting = compose(view=seeing, actor=policy.model)
    replay, optimizer = replay_buffer(chosen.buffer), make_optimizer(chosen)
    update = make_update(policy, critic, optimizer, chosen, n_actions)
    updates = chosen.updates * options.workers

    def player(state: TensorDict) -> Player:
        params = tree.new({"view": _NOTHING, "actor": state["params", "actor"]})
        buffers = tree.new({"view": state["buffers"], "actor": _NOTHING})
        return Player(acting, params, buffers, policy.dist_class)

    def init(key: Tensor) -> TensorDict:
        agent, buffers = acting.init(rng.fold_in(key, "agent"))
        first = vmap(critic.init)(rng.split(rng.fold_in(key, "critics")))[0]
        alpha = torch.full((), chosen.alpha, device=key.device)
        params = tree.new({"actor": agent["actor"], "critics": first, "log_alpha": alpha.log()})
        slow = tree.map(torch.clone, first)  # memory of its own, since that of params is written to
        learned = {"params": params, "target": slow, "optimizer": optimizer.init(params)}
        begun = world.begin(rng.fold_in(key, "world"))
        play, size = begun["play"], begun["play"].batch_size
        reward, action = (torch.zeros(*size, *n, device=key.device) for n in ((), (n_actions,)))
        ends = {"observation": play["observation"], "reward": reward, "terminated": play["done"]}
        like = tree.replace(play, {"action": action, "next": tree.new(ends, size)})
        memory = replay.init(remembered(like))
        state = {**learned, "buffers": buffers["view"], "memory": memory, "world": begun}
        return tree.new({**state, "step": torch.zeros((), dtype=torch.int64), "key": key})

    def step(state: Any) -> tuple[TensorDict, TensorDict]:
        buffers, memory, done = state["buffers"], state["memory"], int(state["step"])
        learned = state["params"], state["target"], state["optimizer"]
        world.enter(state["world"], say)
        steps, found = [], []
        for _ in range(options.length):
            keys = rng.split(rng.fold_in(state["key"], done), 1 + 2 * updates)
            agent = player(tree.new({"params": learned[0], "buffers": buffers}))
            _, td = world.play(*agent[:3], keys[0], 1, policy.dist_class)
            steps.append(td)
            memory = replay.add(memory, remembered(td), donate=True)
            done += options.workers
            if done <= chosen.start_steps:
                continue
            for choice, noise in keys[1:].split(2):
                td = replay.sample(memory, choice, chosen.batch)
                learned, metrics = update(learned, with_next(seeing)(_NOTHING, buffers, td), noise)
                found.append(metrics)
        if networks.normalize_observations:
            for td in steps:
                buffers = observed(watching, buffers, td)
        after = dict(zip(("params", "target", "optimizer"), learned, strict=True))
        after |= {"buffers": buffers, "memory": memory, "world": world.leave()}
        names = found[0] if found else ()
        means = {name: torch.stack([row[name] for row in found]).mean() for name in names}
        after |= {"step": torch.tensor(done), "key": state["key"]}
        return tree.new(after), tree.new({**means, **world.metrics()})

    return Training(init, step), player


def remembered(td: TensorDict) -> TensorDict:
    """What is kept of steps ``[*B]``."""
    kept = {name: td["next", name] for name in ("observation", "reward", "terminated")}
    following = tree.new(kept, td.batch_size)
    seen = {"observation": td["observation"], "action": td["action"], "next": following}
    return tree.new(seen, td.batch_size)


def make_optimizer(chosen: SacLearning) -> optim.Transform:
    """Adam at one rate for all, in one call, or at a rate for each part."""
    own = {"actor.**": None, "critics.**": chosen.critic_rate, "log_alpha": chosen.alpha_rate}
    rates = {part: chosen.rate if rate is None else rate for part, rate in own.items()}
    if set(rates.values()) == {chosen.rate}:
        return optim.adam(chosen.rate)
    return optim.partition({part: optim.adam(rate) for part, rate in rates.items()})


Learned = tuple[TensorDict, TensorDict, TensorDict]  # params, target, the optimizer's state
Update = Callable[[Learned, TensorDict, Tensor], tuple[Learned, dict[str, Tensor]]]


def make_update(
    policy: Policy,
    critic: Model,
    optimizer: optim.Transform,
    chosen: SacLearning,
    n_actions: int,
) -> Update:
    """An update of everything that is learned.

    Args:
        policy: the actor.
        critic: from features and action to a value ``[B, 1]``; two of them are a tree and run one
            after the other, which is faster than a vmap over so few.
        optimizer: what changes the parameters.
        chosen: the hyper-parameters.
        n_actions: components of an action.

    Returns:
        ``update(learned, td, key) -> (learned, metrics)``, with ``features`` in the td ``[B]`` and
        in its ``next``.
    """
    wanted = -float(n_actions) if chosen.target_entropy is None else chosen.target_entropy

    def acted(params: TensorDict, td: TensorDict, noise: Tensor) -> tuple[Tensor, Tensor]:
        out = policy.model(params, _NOTHING, td)
        return policy.dist_class(out["loc"], out["scale"]).sample_with(noise)

    def values(params: TensorDict, td: TensorDict, action: Tensor) -> Tensor:
        pairs = torch.cat([td["features"], action], -1)
        found = [critic(row, _NOTHING, pairs) for row in tree.unstack(params)]
        return torch.cat(found, -1)  # [B, N]

    def objective(params: TensorDict, td: TensorDict, noise: Tensor) -> tuple[Tensor, Any]:
        alpha = params["log_alpha"].detach().exp()
        action, log_prob = acted(params["actor"], td, noise)
        own = {
            "state_action_value": values(params["critics"], td, td["action"]),
            "state_action_value_actor": values(detach(params["critics"]), td, action),
            "action_log_prob_actor": log_prob,
        }
        td = tree.replace(td, own)
        error, actor = losses.sac_critic_loss(td), losses.sac_actor_loss(td, alpha=alpha)
        loss = losses.total(error) + losses.total(actor)
        if chosen.learn_alpha:
            td = tree.replace(td, {"action_log_prob_actor": log_prob.detach()})
            alone = {"log_alpha": params["log_alpha"], "target_entropy": wanted}
            loss = loss + losses.total(losses.sac_temperature_loss(td, **alone))
        found = {"loss_critic": error["loss_critic"], "loss_actor": actor["loss_actor"]}
        found |= {"value": error["pred_value"], "entropy": actor["entropy"], "alpha": alpha}
        return loss, tree.new(found)

    def update(learned: Learned, td: TensorDict, key: Tensor) -> Any:
        params, target, memory = learned
        now, later = rng.normal(key, (2, *td.batch_size, n_actions)).unbind(0)
        action, log_prob = acted(params["actor"], td["next"], later)
        following = {
            "next.action_log_prob_actor": log_prob,
            "next.state_action_value": values(target, td["next"], action),
        }
        td = losses.add_soft_target(
            tree.replace(td, following), chosen.gamma, params["log_alpha"].exp()
        )
        slope, metrics = grad(objective, has_aux=True)(params, td, now)
        params, memory = optim.step(optimizer, slope, memory, params, donate=True)
        target = optim.incremental_update(params["critics"], target, chosen.tau)
        return (params, target, memory), tree.entries(metrics)

    return update
