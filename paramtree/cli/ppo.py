"""``paramtree ppo``: proximal policy optimization, a round of steps and then some epochs on it.

The state of a training, one tree:

    params, buffers, optimizer     of the agent: view, actor and critic
    world                          where the environments are, see ``world``
    step                           steps in the environments so far
    key                            from which each round's randomness comes

A round: the agent acts; advantages are made once, by the critic as it is; then the agent descends
the clipped loss on minibatches. What it sees is normalized by earlier rounds' observations, so that
the policy that learns is at first the one that acted.

Source: Schulman et al. (2017), "Proximal policy optimization algorithms", algorithm 1.
"""

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from .. import losses, optim, rng, tree
from ..autodiff import grad
from ..meta import Training
from ..model import methods, td_model, with_next
from .agents import Player, Policy, n_features, observed, perceptron, ppo_policy, view
from .gym_options import PpoLearning, PpoOptions
from .world import World, require_positive

_READ = ("observation", "action", "action_log_prob", "advantage", "value_target", "behavior")
_SHOWN = ("kl_approx", "clip_fraction", "entropy", "explained_variance", "gradient_norm")


def make_training(
    options: PpoOptions, world: World, say: Callable[[str], None]
) -> tuple[Training, Callable[[TensorDict], Player]]:
    """The training of a run.

    Args:
        options: the run's options.
        world: the environments.
        say: is told of what goes wrong without an end to the run.

    Returns:
        ``(training, player)``: the training, whose state ``player`` makes an agent of that acts.

    Raises:
        Refused: a space is of a kind that PPO is not for.
        ValueError: a number is out of range.
    """
    chosen, networks = options.learning, options.networks
    sizes = {"--length": options.length, "--epochs": chosen.epochs, "--minibatch": chosen.minibatch}
    require_positive({**sizes, "--hidden": min(networks.hidden, default=1)})
    optimizer(chosen, chosen.rate)  # may refuse
    space = world.observation_space
    size = n_features(options.env, space)
    policy = ppo_policy(options.env, world.action_space, size, networks, chosen.first_std)
    critic = td_model(perceptron(size, 1, networks), "features", "state_value")
    parts = {"view": view(options.env, space, networks), "actor": policy.model, "critic": critic}
    agent = methods(parts, act=["view", "actor"], learn=["view", "actor", "critic"])
    watching = view(options.env, space, networks, train=True)

    def init(key: Tensor) -> TensorDict:
        params, buffers = agent.init(rng.fold_in(key, "agent"))
        return tree.new(
            {
                "params": params,
                "buffers": buffers,
                "optimizer": optimizer(chosen, 0.0).init(params),
                "world": world.begin(rng.fold_in(key, "world")),
                "step": torch.zeros((), dtype=torch.int64),
                "key": key,
            }
        )

    def step(state: Any) -> tuple[TensorDict, TensorDict]:
        params, buffers, done = state["params"], state["buffers"], int(state["step"])
        acting, learning = rng.split(rng.fold_in(state["key"], done))
        world.enter(state["world"], say)
        play = (acting, options.length, policy.dist_class)
        _, td = world.play(agent.act, params, buffers, *play)
        rate = learning_rate(chosen, done, options.steps)
        learner = Policy(agent.learn, policy.dist_class)
        params, memory, metrics = learn(
            learner, optimizer(chosen, rate), state, td, learning, chosen
        )
        if networks.normalize_observations:
            seen = observed(watching, buffers["view"], td)
            buffers = tree.replace(buffers, {"view": seen})
        after = {
            "params": params,
            "buffers": buffers,
            "optimizer": memory,
            "world": world.leave(),
            "step": state["step"] + options.workers * options.length,
            "key": state["key"],
        }
        found = {**metrics, **world.metrics(), "rate": torch.tensor(rate)}
        return tree.new(after), tree.new(found)

    def player(state: TensorDict) -> Player:
        return Player(agent.act, state["params"], state["buffers"], policy.dist_class)

    return Training(init, step), player


def learning_rate(chosen: PpoLearning, step: int, steps: int) -> float:
    """Learning rate of a round that begins after so many of all steps."""
    if chosen.schedule == "constant":
        return chosen.rate
    if chosen.schedule == "cosine":
        return float(optim.cosine_decay(chosen.rate, max(steps, 1))(step))
    return float(optim.linear(chosen.rate, 0.0, max(steps, 1))(step))


def optimizer(chosen: PpoLearning, rate: float) -> optim.Transform:
    """Adam at a rate, on clipped gradients; its state is the same at all rates."""
    adam = optim.adam(rate)
    if chosen.max_grad_norm is None:
        return optim.chain(adam=adam)
    return optim.chain(clip=optim.clip_by_global_norm(chosen.max_grad_norm), adam=adam)


def learn(
    agent: Policy,
    optimizer: optim.Transform,
    state: TensorDict,
    td: TensorDict,
    key: Tensor,
    chosen: PpoLearning,
) -> tuple[TensorDict, TensorDict, dict[str, Tensor]]:
    """Epochs of minibatches on one trajectory.

    Args:
        agent: actor and critic.
        optimizer: what changes their parameters.
        state: ``params``, ``buffers`` and the ``optimizer``'s state.
        td: the trajectory ``[B, T]``.
        key: ``[2]``, for the order of steps.
        chosen: the hyper-parameters.

    Returns:
        ``(params, optimizer's state, metrics)``; metrics are means over all minibatches.
    """
    params, buffers, memory = state["params"], state["buffers"], state["optimizer"]

    def objective(params: TensorDict, batch: TensorDict) -> tuple[Tensor, TensorDict]:
        out = losses.ppo_clip_loss(
            agent.model(params, buffers, batch),
            agent.dist_class,
            eps=chosen.clip,
            critic_coeff=chosen.critic_coeff,
            entropy_coeff=chosen.entropy_coeff,
            value_clip=chosen.value_clip,
            normalize_advantage=chosen.normalize_advantage,
        )
        return losses.total(out), tree.lock(out)

    td = with_next(agent.model)(params, buffers, td)
    behavior = tree.new({"state_value": td["state_value"]}, td.batch_size)
    td = losses.add_advantage(tree.replace(td, {"behavior": behavior}), chosen.gamma, chosen.lmbda)
    td = tree.lock(td.select(*_READ).reshape(-1))
    found: list[dict[str, Tensor]] = []
    epochs = 0
    for epoch in rng.split(key, chosen.epochs):
        first, epochs = len(found), epochs + 1
        for index in rng.permutation(epoch, len(td)).split(chosen.minibatch):
            slope, out = grad(objective, has_aux=True)(params, tree.take(td, index))
            params, memory = optim.step(optimizer, slope, memory, params)
            found.append({**tree.entries(out), "gradient_norm": tree.norm(slope)})
        kl = torch.stack([out["kl_approx"] for out in found[first:]]).mean()
        if chosen.target_kl is not None and kl > chosen.target_kl:
            break
    names = [name for name in found[0] if name.startswith("loss_") or name in _SHOWN]
    means = {name: torch.stack([out[name] for out in found]).mean() for name in names}
    return params, memory, {**means, "epochs": torch.tensor(epochs)}
