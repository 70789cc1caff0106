"""A look at an agent of Gymnasium's: an episode before it was trained, and one as it is now."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from rich.console import Console

from .. import rng
from ..checkpoint import load
from . import folder as files
from . import gym, plots
from .gym_options import PpoOptions, SacOptions
from .look_options import LookOptions
from .options import as_flag, from_config
from .outcome import Refused, refusing

if TYPE_CHECKING:
    from .agents import Player

_SHARED = ("checkpoint", "seed", "out", "threads", "device")  # options that are of any look
_LONGEST = 1000  # steps of an episode


def look(
    options: LookOptions, config: dict[str, Any], ready: Callable[[], None], console: Console
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw an agent before and after training, in the same episode.

    Args:
        options: the options.
        config: what its run was started with.
        ready: makes the folder for the picture, before the long work.
        console: where what happens is told.

    Returns:
        The picture by its name, and the numbers that are drawn.

    Raises:
        Refused: wrong use, or the environment has no picture.
    """
    command = config["command"]
    _require_shared(options, command)
    kind = {"ppo": PpoOptions, "sac": SacOptions}[command]
    with refusing():
        ran = from_config(config["options"], kind)
    built = gym.build(replace(ran, threads=options.threads, device=options.device))
    name = built.world.spec.name
    if name not in plots.SCENES:
        known = ", ".join(sorted(plots.SCENES))
        raise Refused(f"the run is of {ran.env!r}, expected one that can be drawn: {known}")
    path = options.checkpoint
    file = files.newest(path) if path.is_dir() else path
    key = rng.fold_in(rng.key(ran.seed, options.device), "training")
    with refusing():
        first = built.training.init(key)
        last = load(file, first, device=options.device)
    ready()
    step = int(last["step"])
    titles = {"before training": first, f"after {step:,} steps": last}
    played = {t: _episode(options, ran, built, built.player(x)) for t, x in titles.items()}
    scenes = {title: plots.SCENES[name](episode) for title, episode in played.items()}
    lengths = [len(episode.reward) for episode in played.values()]
    pictures = {"episode.gif": plots.film(scenes, plots.moments(lengths), pause=100)}
    returns = [float(episode.reward.double().sum()) for episode in played.values()]
    return pictures, {"steps": [0, step], "return": returns, "length": lengths}


def _episode(
    options: LookOptions, ran: PpoOptions | SacOptions, built: gym.Built, player: "Player"
) -> plots.Episode:
    """An agent's episode, with the environment's and the actions' noise of the look's seed."""
    from ..interop import gymnasium as interop

    key = rng.fold_in(rng.key(options.seed, options.device), "look")
    envs = built.world.copies(1)
    seed = int(rng.bits(rng.fold_in(key, "envs"), (1,)))
    td = interop.rollout(
        envs,
        player.model,
        player.params,
        player.buffers,
        interop.reset(envs, seed, device=options.device),
        key,
        min(ran.episode_limit or built.world.spec.max_episode_steps or _LONGEST, _LONGEST),
        player.dist_class,
        rescale=built.world.rescale,
        deterministic=ran.evaluation.deterministic,
    )[2]
    envs.close()
    return plots.first_episode(td[0])


def _require_shared(options: LookOptions, command: str) -> None:
    """Refuse options that are of a rule."""
    for field in fields(options):
        if field.name not in _SHARED and getattr(options, field.name) != field.default:
            flag = as_flag(field.name)
            raise Refused(f"{flag} is for runs of lpg, and this one is of {command}; leave it out")
