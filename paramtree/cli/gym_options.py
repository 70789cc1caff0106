"""Options of ``ppo`` and ``sac``, which train one agent in an environment of Gymnasium's.

The defaults solve CartPole-v1 and Pendulum-v1. Nothing here loads torch or gymnasium.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from .options import Folder


@dataclass(frozen=True)
class Networks:
    """The agent's networks, perceptrons of one shape."""

    hidden: tuple[int, ...] = (64, 64)
    """Widths of their hidden layers."""
    activation: Literal["tanh", "relu", "elu", "gelu", "silu"] = "tanh"
    """Function after each of them."""
    normalize_observations: bool = False
    """Whether observations are brought to mean 0 and deviation 1, by those of earlier rounds."""


@dataclass(frozen=True)
class SacNetworks(Networks):
    """The agent's networks, perceptrons of one shape."""

    activation: Literal["tanh", "relu", "elu", "gelu", "silu"] = "relu"
    """Function after each of them."""


@dataclass(frozen=True)
class Evaluation:
    """What happens after the last step: episodes in which nothing is learned."""

    evaluate: int = 100
    """Number of episodes; 0 for no evaluation."""
    deterministic: bool = True
    """Whether the likeliest action is taken in them, not a drawn one."""


@dataclass(frozen=True)
class GymOptions:
    """What training in an environment of Gymnasium's has in common."""

    command: ClassVar[str]
    free_on_resume: ClassVar[tuple[str, ...]] = (
        *("steps", "checkpoint_every"),
        *("evaluate", "deterministic"),
    )

    env: str = "CartPole-v1"
    """Name of a registered environment; one that a package registers is package:name."""
    env_args: tuple[str, ...] = ()
    """What it is made with, as name=value."""
    episode_limit: int | None = None
    """Steps after which an episode is cut off; None for the environment's own limit, or 10,000."""
    steps: int = 50_000
    """Steps in the environment, rounded up to whole rounds; with --resume a larger number goes on
    with a finished run."""
    workers: int = 1
    """Copies of the environment that are played side by side."""
    length: int = 100
    """Steps of each of them in a round, after which there are metrics and may be a checkpoint."""
    seed: int = 0
    """Seed of everything random."""
    out: Folder = None
    """Folder of a new run; None for one in runs/, by command and environment."""
    resume: Folder = None
    """Folder of the run to go on with, under the options that it was started with."""
    fresh: bool = False
    """Whether a run that --out holds is removed first."""
    checkpoint_every: float = 30.0
    """Seconds between checkpoints; 0 for one after each round."""
    threads: int | None = None
    """Threads of each operation; None for one a processor. The same number gives the same bits."""
    device: str = "cpu"
    """Where the work is done: cpu, cuda, cuda:1."""
    evaluation: Evaluation = Evaluation()


@dataclass(frozen=True)
class PpoLearning:
    """How the agent learns from a round."""

    rate: float = 2e-3
    """Learning rate of Adam."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the rate falls to 0 over --steps, if at all."""
    epochs: int = 8
    """How often it learns from each step of a round."""
    minibatch: int = 256
    """Steps that it learns from at once."""
    gamma: float = 0.99
    """Discount of rewards."""
    lmbda: float = 0.95
    """Decay of the trace in advantages."""
    clip: float = 0.2
    """How far the ratio of new to old policy counts, on each side of 1."""
    value_clip: float | None = None
    """How far a value may move from what it was before the round; None for any way."""
    critic_coeff: float = 0.5
    """Weight of the value's squared error."""
    entropy_coeff: float = 0.0
    """Weight of the policy's entropy."""
    max_grad_norm: float | None = 0.5
    """Norm at which the gradient is clipped; None for no clipping."""
    normalize_advantage: bool = True
    """Whether advantages are brought to mean 0 and deviation 1 in each minibatch."""
    target_kl: float | None = None
    """Divergence from the old policy after which no further epoch follows; None for any."""
    first_std: float = 1.0
    """Deviation of continuous actions at first, where -1 to 1 is a bounded action's whole range."""


@dataclass(frozen=True)
class PpoOptions(GymOptions):
    """Train an agent by proximal policy optimization; by default one that balances a pole."""

    command: ClassVar[str] = "ppo"

    workers: int = 8
    """Copies of the environment that are played side by side."""
    length: int = 128
    """Steps of each of them in a round, after which the agent learns."""
    networks: Networks = Networks()
    learning: PpoLearning = PpoLearning()


@dataclass(frozen=True)
class SacLearning:
    """How the agent learns from steps that it remembers."""

    rate: float = 2e-3
    """Learning rate of the actor, for Adam."""
    critic_rate: float | None = None
    """Learning rate of the critics; None for the actor's."""
    alpha_rate: float | None = None
    """Learning rate of the temperature's logarithm; None for the actor's."""
    gamma: float = 0.99
    """Discount of rewards."""
    tau: float = 0.01
    """How far the target critics move towards the critics at each update."""
    batch: int = 256
    """Steps in an update."""
    buffer: int = 100_000
    """Steps that are remembered."""
    start_steps: int = 0
    """Steps before the first update."""
    updates: int = 1
    """Updates for each step."""
    alpha: float = 1.0
    """Temperature, the weight of entropy, at first."""
    learn_alpha: bool = True
    """Whether it is learned."""
    target_entropy: float | None = None
    """Entropy that it is learned for, with actions from -1 to 1; None for minus their number."""


@dataclass(frozen=True)
class SacOptions(GymOptions):
    """Train an agent by soft actor-critic; by default one that swings up a pendulum."""

    command: ClassVar[str] = "sac"

    env: str = "Pendulum-v1"
    """Name of a registered environment; one that a package registers is package:name."""
    steps: int = 8_000
    """Steps in the environment, rounded up to whole rounds; with --resume a larger number goes on
    with a finished run."""
    networks: SacNetworks = SacNetworks()
    learning: SacLearning = SacLearning()
