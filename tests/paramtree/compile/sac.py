"""Soft actor-critic as a pure step: two critics, actor, temperature, target network, one batch."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.nn import functional

import losses
from paramtree import Model, grad, nn, optim, rng, tree, vmap

Hyper = Mapping[str, Any]
HYPER = {
    "actor_lr": 1e-3,
    "critic_lr": 2e-3,
    "alpha_lr": 3e-3,
    "gamma": 0.99,
    "tau": 0.05,
    "target_entropy": -1.0,
}
NONE = tree.new({})


class Agent(NamedTuple):
    """A policy ``[*B, 3] -> [*B, 2]``, and the critic of which there are two."""

    policy: Model
    critic: Model

    def act(self, params: TensorDict, observation: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """A reparametrized sample ``[*B, 1]`` and its log-density ``[*B]``."""
        loc, raw = self.policy(params, NONE, observation).chunk(2, -1)
        dist = losses.tanh_normal(loc, functional.softplus(raw) + 1e-3)
        noise = rng.normal(key, tuple(loc.shape), dtype=loc.dtype)
        return dist.sample_with(noise)

    def value(self, params: TensorDict, observation: Tensor, action: Tensor) -> Tensor:
        """What both critics say, ``[*B, 2]``."""
        pair = torch.cat([observation, action], -1)
        return vmap(lambda p: self.critic(p, NONE, pair)[..., 0])(params).movedim(0, -1)


def agent(width: int = 8, dtype: torch.dtype = torch.float64) -> Agent:
    options: dict[str, Any] = {"activation": torch.tanh, "dtype": dtype}
    return Agent(nn.mlp(3, width, 2, **options), nn.mlp(4, width, 1, **options))


def optimizers(hyper: Hyper) -> dict[str, optim.Transform]:
    return {name: optim.adam(hyper[f"{name}_lr"]) for name in ("actor", "critic", "alpha")}


def start(agent: Agent, key: Tensor) -> TensorDict:
    """The learner's state; the target critics are copies, of names and tensors of their own."""
    actor, critics = rng.split(key)
    critic, _ = vmap(agent.critic.init)(rng.split(critics, 2))
    policy, _ = agent.policy.init(actor)
    log_alpha = torch.full((), -0.5, dtype=policy["linear_0", "weight"].dtype)
    params = {"actor": policy, "critic": critic, "alpha": tree.new({"log": log_alpha})}
    memory = {name: each.init(params[name]) for name, each in optimizers(HYPER).items()}
    target = tree.map(torch.clone, critic)
    return tree.new({"params": tree.new(params), "optimizer": tree.new(memory), "target": target})


def update(
    agent: Agent, hyper: Hyper, state: TensorDict, td: TensorDict, key: Tensor
) -> tuple[TensorDict, TensorDict]:
    """The state after a step on transitions ``[B]``, and the metrics."""
    params, following = state["params"], td["next"]
    alpha = params["alpha", "log"].exp()
    next_key, key = rng.split(key)
    action, log_prob = agent.act(params["actor"], following["observation"], next_key)
    made = {
        "state_action_value": agent.value(state["target"], following["observation"], action),
        "action_log_prob_actor": log_prob,
    }
    td = tree.replace(td, {"next": tree.rebuild(following, {**tree.entries(following), **made})})
    td = tree.lock(losses.add_soft_target(td, hyper["gamma"], alpha))

    def critics(p: TensorDict) -> tuple[Tensor, TensorDict]:
        value = agent.value(p, td["observation"], td["action"])
        out = losses.sac_critic_loss(_with(td, state_action_value=value))
        return losses.total(out), tree.lock(out)

    def actor(p: TensorDict) -> tuple[Tensor, tuple[TensorDict, Tensor]]:
        action, log_prob = agent.act(p, td["observation"], key)
        value = agent.value(params["critic"], td["observation"], action)
        sampled = _with(td, state_action_value_actor=value, action_log_prob_actor=log_prob)
        out = losses.sac_actor_loss(sampled, alpha=alpha)
        return losses.total(out), (tree.lock(out), log_prob)

    def temperature(p: TensorDict) -> Tensor:
        read = tree.new({"action_log_prob_actor": seen}, td.batch_size)
        wanted = hyper["target_entropy"]
        out = losses.sac_temperature_loss(read, log_alpha=p["log"], target_entropy=wanted)
        return losses.total(out)

    slopes: dict[str, TensorDict] = {}
    slopes["critic"], judged = grad(critics, has_aux=True)(params["critic"])
    slopes["actor"], (acted, seen) = grad(actor, has_aux=True)(params["actor"])
    slopes["alpha"] = grad(temperature)(params["alpha"])
    after, memory = {}, {}
    for name, optimizer in optimizers(hyper).items():
        own = params[name]
        updates, memory[name] = optimizer.update(slopes[name], state["optimizer", name], own)
        after[name] = optim.apply_updates(own, updates)
    target = optim.incremental_update(after["critic"], state["target"], hyper["tau"])
    state = tree.new({"params": tree.new(after), "optimizer": tree.new(memory), "target": target})
    return state, tree.new({"critic": judged, "actor": acted})


def _with(td: TensorDict, **entries: Tensor) -> TensorDict:
    return tree.rebuild(td, {**tree.entries(td), **entries})


def transitions(key: Tensor, n: int = 8, dtype: torch.dtype = torch.float64) -> TensorDict:
    """A batch ``[n]`` out of a replay buffer, of random numbers."""

    def drawn(name: str, *shape: int) -> Tensor:
        return rng.normal(rng.fold_in(key, name), (n, *shape), dtype=dtype)

    over = rng.bernoulli(rng.fold_in(key, "over"), 0.2, (n,))
    after = {"observation": drawn("next", 3), "reward": drawn("reward")}
    after |= {"terminated": over, "done": over}
    now = {"observation": drawn("now", 3), "action": drawn("action", 1).tanh()}
    return tree.new({**now, "next": tree.new(after, [n])}, [n])
