"""Options of ``mgrl``, which trains an agent that learns its own hyper-parameters on the way.

The defaults balance a pole. Nothing here loads torch.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from .gym_options import Evaluation
from .options import Folder

Name = Literal["gamma", "lmbda", "entropy_coeff", "critic_coeff", "clip_epsilon", "lr"]


@dataclass(frozen=True)
class Inner:
    """How the agent learns, and where the hyper-parameters that are learned begin."""

    gamma: float = 0.95
    """Discount of rewards."""
    lmbda: float = 0.9
    """Decay of the trace in advantages."""
    entropy_coeff: float = 0.01
    """Weight of the policy's entropy."""
    critic_coeff: float = 0.5
    """Weight of the value's squared error."""
    clip_epsilon: float = 0.2
    """For ppo, how far the ratio of new to old policy counts, on each side of 1. Its slope is 0: a
    ratio beyond it has no gradient, and one within doesn't depend on it."""
    lr: float = 3e-3
    """Learning rate."""
    optimizer: Literal["adam", "rmsprop", "sgd"] = "adam"
    """What the learning rate is of."""
    max_grad_norm: float | None = None
    """Norm at which the gradient is clipped; None for no clipping."""
    normalize_advantage: bool = True
    """Whether advantages are brought to mean 0 and deviation 1 over a trajectory."""
    epochs: int = 4
    """For ppo, how often it learns from each trajectory."""
    minibatches: int = 4
    """For ppo, the parts of the workers that it learns from at once."""


@dataclass(frozen=True)
class Outer:
    """What is learned about learning, and how."""

    learn: tuple[Name, ...] = ("gamma", "lmbda")
    """The hyper-parameters that are learned; the others stay what they are."""
    per_update: bool = False
    """Whether each of the --updates of a step has numbers of its own."""
    conditioned: bool = False
    """Whether policy and value see them."""
    meta_rate: float = 0.01
    """Their learning rate, for Adam on unconstrained numbers."""
    method: Literal["truncated", "trace", "forward"] = "truncated"
    """How their gradient is found: back through the last updates, along a trace that is carried
    from step to step, or forward through all updates of a step."""
    window: int | None = None
    """For truncated, the last updates that count; None for all of a step."""
    decay: float | None = None
    """For trace, how much is kept from update to update; None for nothing, or all with --exact."""
    exact: bool = False
    """For trace, whether it takes along how an update depends on the parameters."""
    validation: Literal["next", "same"] = "next"
    """Whether an updated agent is judged by its next trajectory, or by that of the update."""
    reference_gamma: float = 0.995
    """Discount under which it is judged."""
    reference_lmbda: float = 1.0
    """Decay of the trace in the advantages by which it is judged."""
    outer_critic_coeff: float = 0.0
    """Weight of the value's squared error in the judgment."""
    outer_entropy_coeff: float = 0.0
    """Weight of the policy's entropy in the judgment."""


@dataclass(frozen=True)
class MgrlOptions:
    """Train an agent that learns its discount and other hyper-parameters by meta-gradients."""

    command: ClassVar[str] = "mgrl"
    free_on_resume: ClassVar[tuple[str, ...]] = (
        *("steps", "checkpoint_every"),
        *("evaluate", "deterministic", "on_bad"),
    )

    env: Literal["cart_pole", "catch", "horizon", "choice", "random_walk"] = "cart_pole"
    """The world."""
    env_args: tuple[str, ...] = ()
    """What it is made with, as name=value, such as max_steps=200."""
    algorithm: Literal["a2c", "ppo", "vtrace"] = "a2c"
    """What the agent learns by."""
    steps: int = 1_000
    """Meta-steps; with --resume a larger number goes on with a finished run."""
    updates: int = 1
    """Updates of the agent in a meta-step, each on a new trajectory."""
    workers: int = 16
    """Copies of the world that are played side by side."""
    length: int = 16
    """Steps of each of them between two updates."""
    hidden: tuple[int, ...] = (64,)
    """Widths of the hidden layers of policy and value."""
    seed: int = 0
    """Seed of everything random."""
    out: Folder = None
    """Folder of a new run; None for one in runs/, by command and world."""
    resume: Folder = None
    """Folder of the run to go on with, under the options that it was started with."""
    fresh: bool = False
    """Whether a run that --out holds is removed first."""
    checkpoint_every: float = 30.0
    """Seconds between checkpoints; 0 for one after each step."""
    on_bad: Literal["stop", "skip"] = "stop"
    """What happens when the agent's numbers are no longer finite: the run ends, or goes on with an
    agent that is born in its place. Either way it is told of."""
    threads: int | None = None
    """Threads of each operation; None for one a processor. The same number gives the same bits."""
    device: str = "cpu"
    """Where the work is done: cpu, cuda, cuda:1."""
    inner: Inner = Inner()
    outer: Outer = Outer()
    evaluation: Evaluation = Evaluation()
