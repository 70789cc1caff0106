"""Options of ``lpg`` and ``eval-lpg``, with the presets that give their defaults; options as data.

Nothing here loads torch, so that ``--help`` is quick. A preset is a whole set of options; an option
that is given on the command line wins over it. What a run was started with is kept in its folder,
as ``to_config`` gives it, and read back by ``from_config``.

Options of a command that trains say what it is called (``command``) and which of them may change
when a run goes on (``free_on_resume``).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar, get_origin

from tyro.conf import Positional, arg

Folder = Annotated[Path | None, arg(metavar="DIR")]
_Options = TypeVar("_Options")


@dataclass(frozen=True)
class Network:
    """The recurrent network that is the rule."""

    cell: Literal["lstm", "gru"] = "gru"
    """Kind of recurrent cell."""
    hidden: int = 256
    """Its width."""
    prediction_size: int = 8
    """Size m of the agents' predictions."""
    embedding: int = 16
    """Width of the embedding of predictions."""
    gamma_input: bool = False
    """Whether the discount is among the inputs."""
    activation: Literal["none", "relu"] = "relu"
    """Function between the recurrent layer and the heads."""
    lifetime_input: bool = False
    """Whether an agent's age, as a share of its life, and the life's length are inputs."""
    initialization: Literal["torch", "flax"] = "torch"
    """The library whose initial weights these are."""
    y_hat_scale: float = 1.0
    """Factor on the initial weights of the head of the predictions' targets."""
    full_stop: bool = True
    """Whether what agents predict enters the network cut off from them, as GROOVE has it; then the
    gradient can't tell what predictions are good for."""


@dataclass(frozen=True)
class Agents:
    """The agents, tables or perceptrons where levels are images, and how they learn."""

    workers: int = 64
    """Copies of its world in which each agent acts."""
    lifetime: tuple[int, ...] = ()
    """Updates in a life, or two bounds between which they are drawn; none for what is usual."""
    agent_hidden: tuple[int, ...] = (32,)
    """Widths of a perceptron's hidden layers."""
    actor_rate: float | None = None
    """Learning rate of a table's policy; None for 40. Perceptrons have 0.001, for Adam."""
    prediction_rate: float | None = None
    """Learning rate of a table's prediction; None for 4."""
    clip: float = 0.5
    """Norm at which the gradient of each network is clipped."""
    prediction_coeff: float = 0.5
    """Weight of the predictions' divergence from their targets."""
    arm_rates: tuple[float, ...] = ()
    """Learning rates of a table's policy among which a bandit chooses for each life."""
    arm_coeffs: tuple[float, ...] = ()
    """Weights of the divergence among which it chooses."""


@dataclass(frozen=True)
class Curricula:
    """Which levels agents are born on."""

    curriculum: Literal["none", "frozen", "plr", "groove"] = "none"
    """New levels; a frozen set of them; those with the largest value loss again; or those with the
    largest regret against A2C."""
    buffer: int = 4000
    """Number of levels that are remembered."""
    replay: float = 0.5
    """Chance of one of them."""
    temperature: float = 1.0
    """Of the chances by rank."""
    staleness: float = 0.1
    """Share of the chances that goes by how long ago a level was scored."""


@dataclass(frozen=True)
class Evolution:
    """What evolution strategies need."""

    sigma: float = 0.1
    """Width of the perturbations."""
    sigma_decay: float = 1.0
    """Factor of it from step to step."""
    score: Literal["final", "lifetime", "return"] = "final"
    """What is selected: reward at the end of life, over the whole of it, or the final return."""


@dataclass(frozen=True)
class Objective:
    """What the rule is trained for, and how."""

    method: Literal["gradient", "es", "pes"] = "gradient"
    """The gradient through the updates of a meta-step; evolution strategies over whole lives, for
    which GROOVE's rate is 0.01, with a decay of 0.999; or persistent ones, over as many updates."""
    validation: Literal["last", "all"] = "last"
    """Whose policy gradient the rule descends: that of the agents after the last update of a
    meta-step, or after each."""
    meta_rate: float = 1e-4
    """Learning rate of the rule, for Adam."""
    meta_decay: float = 1.0
    """Factor of it from step to step."""
    meta_clip: float | None = None
    """Norm at which its gradient is clipped; None for no clipping."""
    task_clip: float | None = None
    """Norm at which each task's part of that gradient is clipped; None for no clipping."""
    average: float = 0.0
    """Decay of the running average of the rule, which is what is evaluated; 0 for no average."""
    gamma: float = 0.99
    """Discount of the returns that the rule is to raise."""
    lmbda: float = 0.95
    """Decay of the trace in their advantages."""
    critic_rate: float | None = None
    """Learning rate of the values from which the advantages come, in a table; None for 4."""
    policy_entropy_coeff: float = 0.05
    """Weight of the policies' entropy."""
    prediction_entropy_coeff: float = 0.001
    """Weight of the predictions' entropy."""
    pi_hat_coeff: float = 0.005
    """Weight of the square of the policies' targets."""
    y_hat_coeff: float = 0.001
    """Weight of the square of the predictions' targets."""
    value_coeff: float | None = None
    """Weight of what predictions leave unexplained of returns; None where nothing is asked of
    them, as in the paper."""


@dataclass(frozen=True)
class Evaluation:
    """What happens after the last step: agents that learn from scratch, on levels held out."""

    evaluate: int = 0
    """Number of held-out levels; 0 for no evaluation."""
    evaluate_on: str | None = None
    """Name of their distribution; None for the first one of --levels."""
    evaluate_updates: int | None = None
    """Updates of each agent; None for a lifetime."""
    evaluate_workers: int | None = None
    """Copies of its world in which each agent acts; None for the number in training."""


@dataclass(frozen=True)
class LpgOptions:
    """Meta-train a learned policy gradient: one recurrent network writes all agents' updates."""

    command: ClassVar[str] = "lpg"
    free_on_resume: ClassVar[tuple[str, ...]] = ("steps", "checkpoint_every", "on_bad")

    preset: Literal["demo", "groove", "paper"] = "groove"
    """Where the defaults of the other options come from."""
    levels: tuple[str, ...] = ("all",)
    """Distributions over levels, by name; the tasks are divided among them. dense@9 and dense@18
    are dense with the paper's actions."""
    tasks: int = 512
    """Agents that live side by side."""
    steps: int = 30_000
    """Meta-steps; with --resume a larger number goes on with a finished run."""
    updates: int = 5
    """Updates of each agent in a meta-step."""
    length: int = 20
    """Steps of its world between two of them."""
    chunk: int | None = 8
    """Tasks that are worked on at once, for less memory; None for all of a distribution."""
    seed: int = 0
    """Seed of everything random."""
    out: Folder = None
    """Folder of a new run; None for runs/PRESET."""
    resume: Folder = None
    """Folder of the run to go on with, under the options that it was started with."""
    fresh: bool = False
    """Whether a run that --out holds is removed first."""
    checkpoint_every: float = 30.0
    """Seconds between checkpoints; 0 for one after each step."""
    on_bad: Literal["stop", "skip"] = "stop"
    """What happens when a task's numbers are no longer finite: the run ends, or goes on without
    that task, in whose place an agent is born on another level. Either way it is told of."""
    threads: int | None = None
    """Threads of each operation; None for one a processor. The same number gives the same bits."""
    device: str = "cpu"
    """Where the work is done: cpu, cuda, cuda:1."""
    network: Network = Network()
    agents: Agents = Agents()
    objective: Objective = Objective()
    evolution: Evolution = Evolution()
    curricula: Curricula = Curricula()
    evaluation: Evaluation = Evaluation()


@dataclass(frozen=True)
class EvalOptions:
    """Train fresh agents with rules on held-out levels, learned ones and ones written by hand."""

    checkpoint: Annotated[Positional[str | None], arg(metavar="RULE")] = None
    """Folder of a run, one of its checkpoints, the name of a rule that comes with paramtree, or the
    path of a rule's card."""
    against: tuple[str, ...] = ()
    """Whom it is compared with: a2c, ppo, dpo, reinforce, vtrace, q_lambda, sarsa_lambda, random,
    optimal, or another learned rule, named like RULE; none for a2c, random and optimal."""
    reference: str = "a2c"
    """Whom all others are held against, level by level."""
    levels: str = "small"
    """Distribution over levels, by name; dense@18 is dense with 18 actions."""
    count: int = 128
    """Number of levels."""
    updates: int | None = None
    """Updates of each agent; None for a lifetime on these levels."""
    length: int | None = None
    """Steps between two of them; None for the number in RULE's training."""
    workers: int | None = None
    """Copies of its world in which each agent acts; None for the number in RULE's training."""
    seed: int = 0
    """Seed of the levels and of everything else."""
    out: Folder = None
    """Folder for summary.json, results.json and curve.png, where the same command goes on after
    Ctrl-C; None for the table alone."""
    threads: int | None = None
    """Threads of each operation; None for one a processor."""
    device: str = "cpu"
    """Where the work is done: cpu, cuda, cuda:1."""


class A2CConstants(NamedTuple):
    """Hyper-parameters of A2C, as an opponent that does its best."""

    gamma: float
    lmbda: float
    actor_rate: float
    critic_rate: float
    clip: float
    entropy_coeff: float


# ------------------------------------------------------------------------------- the numbers

# groove: Jackson et al. (2023), "Discovering general reinforcement learning algorithms with
# adversarial environment design", and its authors' code, which has its 512 tasks in 16 minibatches.
# All of them make one step here, so that --chunk is a matter of memory and time alone.
# paper: Oh et al. (2020), "Discovering reinforcement learning algorithms": all its worlds, each
# grid world once with nine actions and once with eighteen. The sizes, gamma, the regularizers, and
# what the bandit chooses from are as reproductions give them; 960 tasks is from memory; the number
# of steps and lambda are GROOVE's.
# demo: a few minutes on one core. So few steps want all that a trajectory can tell: the agents
# after each update are judged, and by what they predict, too. Advantages of a short horizon (gamma
# and lmbda of 0.9) are worth their bias, being far less noisy. A large rate wants small targets
# (pi_hat_coeff), tasks that can't outvote the others (task_clip), and the average of the last
# rules. Regularizers of predictions would be all that these learn from at first, so there are none.
_GRID_WORLDS = tuple(
    f"{name}@{actions}"
    for name in (
        *("dense", "sparse", "long", "longer", "long_dense"),
        *("rand_dense", "rand_long", "rand_long_dense"),
        *("rand_small", "rand_sparse", "rand_very_dense"),
    )
    for actions in (9, 18)
)
_CHAINS = tuple(
    f"chain_{kind}" for kind in ("short", "short_noisy", "long", "long_noisy", "distraction")
)

PRESETS: dict[str, LpgOptions] = {
    "demo": LpgOptions(
        preset="demo",
        levels=("small",),
        tasks=128,
        steps=300,
        chunk=None,
        threads=1,
        network=Network(hidden=32, full_stop=False),
        agents=Agents(workers=16, actor_rate=800.0, prediction_rate=30.0, prediction_coeff=1.0),
        objective=Objective(
            gamma=0.9,
            lmbda=0.9,
            meta_rate=1e-3,
            meta_decay=0.996,
            task_clip=0.05,
            average=0.98,
            validation="all",
            policy_entropy_coeff=0.025,
            prediction_entropy_coeff=0.0,
            pi_hat_coeff=0.05,
            y_hat_coeff=0.0,
        ),
        evaluation=Evaluation(evaluate=128, evaluate_updates=250, evaluate_workers=16),
    ),
    "groove": LpgOptions(
        network=Network(initialization="flax"), curricula=Curricula(curriculum="groove")
    ),
    "paper": LpgOptions(
        preset="paper",
        levels=(*_GRID_WORLDS, *_CHAINS),
        tasks=960,
        network=Network(
            cell="lstm",
            prediction_size=30,
            gamma_input=True,
            activation="none",
            full_stop=False,
        ),
        agents=Agents(
            actor_rate=40.0,
            prediction_rate=40.0,
            arm_rates=(20.0, 40.0, 80.0),
            arm_coeffs=(0.1, 0.5, 1.0),
        ),
        objective=Objective(
            gamma=0.995,
            policy_entropy_coeff=0.01,
            prediction_entropy_coeff=0.001,
            pi_hat_coeff=0.001,
            y_hat_coeff=0.001,
        ),
    ),
}

# tests/benchmarks/tune_a2c.py, whose scores are tests/benchmarks/results/a2c_small.json: the reward
# of the last fifth of 250 updates, on "small" levels that neither training nor evaluation see.
A2C = A2CConstants(
    gamma=0.7, lmbda=0.95, actor_rate=80.0, critic_rate=4.0, clip=0.5, entropy_coeff=0.27
)

_NOT_KEPT = ("out", "resume", "fresh")  # where a run lies is no part of what it is


# ------------------------------------------------------------------- options as plain data


def flat(options: Any) -> dict[str, Any]:
    """Options of all groups by the names that the command line has for them.

    Args:
        options: an instance of one of the classes above.

    Returns:
        ``{"--meta-rate": 1e-4, ...}``.
    """
    found: dict[str, Any] = {}
    for field in fields(options):
        value = getattr(options, field.name)
        found |= flat(value) if is_dataclass(value) else {as_flag(field.name): value}
    return found


def as_flag(name: str) -> str:
    """``meta_rate`` as ``--meta-rate``."""
    return "--" + name.replace("_", "-")


def to_config(options: Any) -> dict[str, Any]:
    """Options as what JSON knows, but for where the run lies.

    Args:
        options: the options of a command that trains.

    Returns:
        ``{"preset": ..., "network": {"cell": ...}, ...}``.
    """
    config = _plain(asdict(options))
    return {name: value for name, value in config.items() if name not in _NOT_KEPT}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value


def from_config(config: Any, kind: type[_Options] = LpgOptions) -> _Options:
    """Options that ``to_config`` made plain.

    Args:
        config: what it gave.
        kind: the class of the options.

    Returns:
        The options, with ``out`` and ``resume`` None.

    Raises:
        ValueError: a name is missing, or one is not known.
    """
    return _filled(kind, config, _NOT_KEPT)


def _filled(kind: Any, config: Any, optional: tuple[str, ...] = ()) -> Any:
    if not isinstance(config, Mapping):
        raise ValueError(f"the options hold {config!r}, expected {kind.__name__.lower()}")
    wanted = [field for field in fields(kind) if field.name not in optional]
    differ = {field.name for field in wanted} ^ set(config)
    if differ:
        names = ", ".join(sorted(as_flag(name) for name in differ))
        raise ValueError(f"its options are not those of this version of paramtree: {names}")
    return kind(**{field.name: _value(field.type, config[field.name]) for field in wanted})


def _value(kind: Any, value: Any) -> Any:
    """A field's value, of its own type where JSON has another."""
    if isinstance(kind, type) and is_dataclass(kind):
        return _filled(kind, value)
    return tuple(value) if get_origin(kind) is tuple else value
