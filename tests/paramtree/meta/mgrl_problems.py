"""Small trainings by meta-gradients in float64, whose trajectories stand still when eta moves.

What an agent does is drawn, so it stays the same under a change of 1e-5; the log-probabilities of
the policy that acted are replaced by numbers, which makes the trajectories off-policy, too.
"""

from typing import Any

import torch
from tensordict import TensorDict

from paramtree import compose, envs, losses, meta, nn, optim, rng, td_model, tree

D = torch.float64
WORKERS, LENGTH = 4, 5
NUMBERS = {"gamma": 0.9, "lmbda": 0.8, "entropy_coeff": 0.05, "critic_coeff": 0.4, "lr": 0.3}
AGENT = compose(
    actor=td_model(nn.mlp(4, 6, 2, activation=torch.tanh), "observation", "logits"),
    critic=td_model(nn.mlp(4, 5, 1, activation=torch.tanh), "observation", "state_value"),
)


def a2c(h: Any) -> meta.UpdateRule:
    weights = {"entropy_coeff": h["entropy_coeff"], "critic_coeff": h["critic_coeff"]}
    return meta.a2c_rule(h["gamma"], h["lmbda"], **weights)


def ppo(h: Any) -> meta.UpdateRule:
    weights = {"entropy_coeff": h["entropy_coeff"], "critic_coeff": h["critic_coeff"]}
    sizes = {"clip_epsilon": h["clip_epsilon"], "epochs": 2, "minibatches": 2}
    return meta.ppo_rule(h["gamma"], h["lmbda"], **weights, **sizes)


def vtrace(h: Any) -> meta.UpdateRule:
    weights = {"entropy_coeff": h["entropy_coeff"], "critic_coeff": h["critic_coeff"]}
    return meta.vtrace_rule(h["gamma"], h["lmbda"], **weights, rho_clip=h["rho_clip"])


RULES = {
    "a2c": (a2c, NUMBERS),
    "ppo": (ppo, {**NUMBERS, "clip_epsilon": 0.2}),
    "vtrace": (vtrace, {**NUMBERS, "rho_clip": 0.9}),
}
CONSTRAINTS = {"rho_clip": "softplus"}


def replayed(rule: meta.UpdateRule) -> meta.UpdateRule:
    """The rule on trajectories of a policy that nothing changes."""

    def apply(params: TensorDict, buffers: TensorDict, td: TensorDict) -> Any:
        chance = rng.uniform(rng.key(5), td.batch_size, -1.2, -0.3, dtype=D)
        return rule.apply(params, buffers, tree.replace(td, {"action_log_prob": chance}))

    return rule._replace(apply=apply)


def judgment(td: TensorDict, dist_class: Any) -> TensorDict:
    """An outer loss without a stop, so that its gradient is that of its value."""
    td = losses.add_advantage(td, 0.97, 0.9)
    return losses.a2c_loss(td, dist_class, critic_coeff=0.3, entropy_coeff=0.02)


def remembering() -> optim.Transform:
    """Leaves eta as it is, and keeps the gradient as its state."""
    return optim.Transform(tree.zeros_like, lambda grads, state, p: (tree.zeros_like(p), grads))


def training(name: str = "a2c", updates: int = 2, **options: Any) -> meta.Training:
    """A training of an agent on a pole that falls after four steps at the latest."""
    make, numbers = RULES[name]
    given = {
        "agent": AGENT,
        "env": envs.cart_pole(),
        "level": envs.cart_pole_level(max_steps=4),
        "hyper": meta.hyper_numbers(numbers, CONSTRAINTS),
        "rule": lambda h: replayed(make(h)),
        "optimizer": lambda h: optim.sgd(h["lr"]),
        "eta_optimizer": remembering(),
        "length": LENGTH,
        "workers": WORKERS,
        "outer": judgment,
        **options,
    }
    return meta.mgrl_training(updates=updates, **given)


def double(nest: Any) -> Any:
    leaves, structure = tree.flatten(nest)
    return tree.unflatten(structure, [x.double() if x.is_floating_point() else x for x in leaves])


def first(made: meta.Training, seed: int = 1) -> TensorDict:
    """Its first state, in float64."""
    return double(made.init(rng.key(seed)))


def with_eta(state: TensorDict, eta: TensorDict) -> TensorDict:
    return tree.replace(state, {"eta": eta})


def meta_loss(made: meta.Training, state: TensorDict, steps: int = 1) -> Any:
    """J' of the last of some steps, as a function of eta."""

    def of(eta: TensorDict) -> torch.Tensor:
        at, metrics = with_eta(state, eta), tree.new({})
        for _ in range(steps):
            at, metrics = made.step(at)
        return metrics["meta_loss"]

    return of


def gradient(made: meta.Training, state: TensorDict, steps: int = 1) -> TensorDict:
    """Gradient of eta in the last of some steps."""
    for _ in range(steps):
        state, _ = made.step(state)
    return state["eta_optimizer"]
