"""Proximal policy optimization as a pure step: rollout, advantages, epochs of minibatches, Adam."""

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

import losses
from paramtree import Model, compose, envs, grad, nn, optim, rng, td_model, tree, with_next

Hyper = Mapping[str, Any]
HYPER = {
    "lr": 3e-3,
    "gamma": 0.99,
    "lmbda": 0.95,
    "eps": 0.2,
    "max_norm": 0.5,
    "entropy_coeff": 0.01,
}


def agent(width: int = 8, dtype: torch.dtype = torch.float64) -> Model:
    """Actor and critic for a cart pole."""
    options: dict[str, Any] = {"activation": torch.tanh, "dtype": dtype}
    return compose(
        actor=td_model(nn.mlp(4, width, 2, **options), "observation", "logits"),
        critic=td_model(nn.mlp(4, width, 1, **options), "observation", "state_value"),
    )


def optimizer(hyper: Hyper) -> optim.Transform:
    return optim.chain(
        clip=optim.clip_by_global_norm(hyper["max_norm"]),
        adam=optim.scale_by_adam(eps=1e-5),
        lr=optim.scale_by_learning_rate(hyper["lr"]),
    )


def start(net: Model, key: Tensor) -> TensorDict:
    """The learner's state."""
    params, buffers = net.init(key)
    memory = optimizer(HYPER).init(params)
    return tree.new({"params": params, "buffers": buffers, "optimizer": memory})


def update(
    net: Model,
    hyper: Hyper,
    state: TensorDict,
    td: TensorDict,
    key: Tensor,
    epochs: int = 1,
    minibatches: int = 1,
) -> tuple[TensorDict, TensorDict]:
    """Learning from a trajectory batch ``[*B, T]``: the state after it, and the last metrics."""
    params, buffers, memory = state["params"], state["buffers"], state["optimizer"]
    td = with_next(net)(params, buffers, td)
    td = losses.add_advantage(td, hyper["gamma"], hyper["lmbda"]).reshape(-1)
    rows = td.batch_size[0]
    metrics = tree.new({})
    for epoch in range(epochs):
        order = rng.permutation(rng.fold_in(key, epoch), rows)
        for index in order.chunk(minibatches):
            batch = tree.lock(td[index])

            def objective(p: TensorDict, batch: TensorDict = batch) -> tuple[Tensor, TensorDict]:
                out = losses.ppo_clip_loss(
                    net(p, buffers, batch),
                    eps=hyper["eps"],
                    entropy_coeff=hyper["entropy_coeff"],
                    normalize_advantage=True,
                )
                return losses.total(out), tree.lock(out)

            slope, metrics = grad(objective, has_aux=True)(params)
            updates, memory = optimizer(hyper).update(slope, memory, params)
            params = optim.apply_updates(params, updates)
    return tree.new({"params": params, "buffers": buffers, "optimizer": memory}), metrics


def world(workers: int = 3, dtype: torch.dtype = torch.float64) -> tuple[envs.Env, TensorDict, Any]:
    """Cart poles: environment, level, and the workers' first states for a key."""
    env, level = envs.cart_pole(), envs.cart_pole_level(dtype=dtype)
    return env, level, lambda key: env.reset(level, env.noise(level, key, (workers,)))


def train(
    net: Model,
    env: envs.Env,
    level: TensorDict,
    hyper: Hyper,
    state: TensorDict,
    key: Tensor,
    length: int = 4,
    **options: int,
) -> tuple[TensorDict, TensorDict]:
    """A rollout and the learning from it; ``state["env"]`` are the workers."""
    acting, learning = rng.split(key)
    workers, _, td = envs.rollout(
        env, net, state["params"], state["buffers"], level, state["env"], acting, length
    )
    after, metrics = update(net, hyper, state, td, learning, **options)
    return tree.new({**tree.entries(after), "env": workers}), metrics


def trajectories(
    net: Model, state: TensorDict, key: Tensor, size: tuple[int, int] = (3, 6)
) -> TensorDict:
    """What such an agent may have seen: a batch ``[B, T]`` of random observations."""
    dtype = state["params", "actor", "linear_0", "weight"].dtype
    seen, flags, action = rng.split(key, 3)
    observation = rng.normal(seen, (*size, 2, 4), dtype=dtype)
    done = rng.bernoulli(flags, 0.2, size)
    now = {"observation": observation[:, :, 0].contiguous()}
    after = {
        "observation": observation[:, :, 1].contiguous(),
        "reward": rng.uniform(rng.fold_in(key, "reward"), size, dtype=dtype),
        "done": done,
        "terminated": done,
    }
    now["action"] = rng.randint(action, size, 0, 2)
    logits = net(state["params"], state["buffers"], tree.new(now, size))["logits"]
    behavior = logits.log_softmax(-1).gather(-1, now["action"].unsqueeze(-1)).squeeze(-1)
    now["action_log_prob"] = behavior + rng.uniform(key, size, -0.3, 0.3, dtype=dtype)
    return tree.new({**now, "next": tree.new(after, size)}, size)
