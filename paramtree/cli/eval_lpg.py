"""``paramtree eval-lpg``: trains fresh agents with rules on levels that no training has seen."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from tensordict import TensorDict, TensorDictBase

from .. import meta, tree
from ..checkpoint import load
from . import evaluation, plots, summary
from . import folder as files
from .evaluation import Part, Setting
from .interrupt import interrupts
from .options import EvalOptions, LpgOptions, from_config
from .outcome import Refused, Stopped, refusing
from .rivals import RIVALS
from .run import read_checkpoint, set_up
from .training import contestants, learned, make_rule, named_world, training_key

_BY_HAND = (*RIVALS, "random", "optimal")
_WORDS = ("paired", "seconds")  # of a summary, beside the names of rules
_LENGTH, _WORKERS = 20, 64  # where no learned rule says how it was trained


class Learned(NamedTuple):
    """A learned rule, and how long its agents act between updates, in how many copies."""

    name: str
    length: int
    workers: int
    params: TensorDict
    options: LpgOptions | None  # of its run; None for one that comes with the library


def run(options: EvalOptions) -> None:
    """Do what ``paramtree eval-lpg`` was asked to.

    Args:
        options: the options, with the number of threads.

    Raises:
        Refused: wrong use.
        Stopped: the user asked for an end.
    """
    began, console = time.monotonic(), Console()
    set_up(1 if options.threads is None else options.threads, options.device)
    if options.out is not None:
        require_no_results(options.out)
    setting, parts = contest(options)
    if options.out is not None:  # before the long work, which would be lost
        with refusing():
            options.out.mkdir(parents=True, exist_ok=True)
    with interrupts() as interrupt:

        def watch() -> None:
            if interrupt.asked:
                raise Stopped("stopped in the evaluation; nothing was written")

        results, _ = evaluation.contest(parts, console, watch=watch)
    found = summary.summarized(results, options.reference)
    console.print(summary.table(found, evaluation.title(setting), options.reference))
    if options.out is not None:
        plots.write(options.out / files.CURVE, plots.lpg_figure([], evaluation.curves(results)))
        files.write_json(options.out / files.RESULTS, evaluation.raw(results))
        seconds = {"seconds": round(time.monotonic() - began, 3)}
        files.write_json(options.out / files.SUMMARY, {**found, **seconds})


def contest(options: EvalOptions) -> tuple[Setting, list[Part]]:
    """Who meets on which levels.

    Args:
        options: the options.

    Returns:
        ``(setting, parts)``.

    Raises:
        Refused: nobody is named, a name is not known, one comes twice, the reference isn't among
            them, or the levels can't be.
    """
    if options.checkpoint is None and not options.against:
        raise Refused("no rule is given; name one, or some with --against a2c ppo")
    first = None if options.checkpoint is None else find(options.checkpoint, options.device)
    length, workers = (_LENGTH, _WORKERS) if first is None else (first.length, first.workers)
    others = {n: find(n, options.device) for n in options.against if n not in _BY_HAND}
    names = _told_apart({n: rule.name for n, rule in others.items()})
    with refusing():
        setting = evaluation.held_out(
            named_world(options.levels),
            options.count,
            options.seed,
            options.device,
            updates=options.updates,
            length=length if options.length is None else options.length,
            workers=workers if options.workers is None else options.workers,
        )
        parts = [] if first is None else _trained(first, setting)
        for name in options.against:
            other = others.get(name)
            parts += (
                evaluation.opponents([name], setting)
                if other is None
                else [_learner(names[name], other, setting)]
            )
        if not options.against:
            parts += evaluation.usual_opponents(setting)
    names = [part.name for part in parts]
    if len(set(names)) < len(names) or not set(_WORDS).isdisjoint(names):
        raise Refused(f"the rules are {', '.join(names)}, expected names that differ")
    if options.reference not in names and options.reference != "a2c":
        raise Refused(f"--reference is {options.reference!r}, expected one of {', '.join(names)}")
    return setting, parts


def _told_apart(names: dict[str, str]) -> dict[str, str]:
    """Short names of rules, by what they are asked for; that itself where it would be mistaken."""
    taken = ["trained", "untrained", "optimal_rate", *_WORDS, *_BY_HAND, *names.values()]
    return {asked: short if taken.count(short) == 1 else asked for asked, short in names.items()}


def _trained(rule: Learned, setting: Setting) -> list[Part]:
    """A run's rule as it is now and as it was in the beginning, or one that comes with it."""
    if rule.options is None:
        return [_learner("trained", rule, setting)]
    return contestants(rule.options, rule.params, setting)[:2]


def _learner(name: str, rule: Learned, setting: Setting) -> Part:
    if rule.options is not None:
        own = learned(rule.options, setting)
        return evaluation.learner(name, setting, *own, rule.params)
    card = meta.rule_card(rule.name)
    agents = {**card["agents"], "workers": setting.workers}
    if setting.world.n_states is None:  # a card's rates are those of tables
        agents |= {"actor_rate": None, "prediction_rate": None}
    habitat = meta.lpg_population(setting.world, 1, **agents).habitat
    return evaluation.learner(name, setting, habitat, meta.load_rule(rule.name)[0], rule.params)


def find(name: str, device: str) -> Learned:
    """A learned rule, by where it is or what it is called.

    Args:
        name: a run's folder, a checkpoint, or the name of a rule that comes with the library.
        device: where its parameters go.

    Returns:
        The rule.

    Raises:
        Refused: there is none, or what is there isn't one.
    """
    path = Path(name)
    if not path.exists() and len(path.parts) == 1 and not path.suffix:
        try:
            card = meta.rule_card(name)
        except ValueError as error:
            hand = ", ".join(_BY_HAND)
            raise Refused(
                f"{name!r} is no run, no checkpoint and none of {hand}; as a rule that comes with "
                f"paramtree: {error}"
            ) from None
        with refusing():
            params = meta.load_rule(name, device=device)[1]
        ran = card.get("options", {})
        workers = card["agents"].get("workers", _WORKERS)
        return Learned(name, int(ran.get("--length", _LENGTH)), workers, params, None)
    options, params = saved_rule(path, device)
    return Learned(path.name, options.length, options.agents.workers, params, options)


def require_no_results(out: Path) -> None:
    """Refuse a folder that has results already, or will have those of its run.

    Args:
        out: where the results are to go.

    Raises:
        Refused: it holds a run, a summary or a picture, or is no folder.
    """
    if out.exists() and not out.is_dir():
        raise Refused(f"{str(out)!r} is not a folder; choose another for --out")
    for name in (files.CONFIG, files.SUMMARY, files.RESULTS, files.CURVE):
        if (out / name).exists():
            raise Refused(f"{str(out / name)!r} is there already; choose another folder for --out")


def saved_rule(path: Path, device: str) -> tuple[LpgOptions, TensorDict]:
    """Rule of a run, with the options that it was trained under.

    Args:
        path: the run's folder, or one of its checkpoints.
        device: where the parameters go.

    Returns:
        ``(options, params)``.

    Raises:
        Refused: there is no such checkpoint, it is damaged, or not one of a run of ``lpg``.
    """
    config: dict[str, Any] = files.read_config(path) if path.is_dir() else {}
    file = files.newest(path) if path.is_dir() else path
    state, metadata = read_checkpoint(file)
    config = config or metadata
    if config.get("command") != "lpg" or not isinstance(state.get("average", None), TensorDictBase):
        raise Refused(
            f"{str(file)!r} holds no learned rule; expected a checkpoint of paramtree lpg, or the "
            "folder of its run"
        )
    with refusing():
        options = replace(from_config(config.get("options")), device=device)
        first = make_rule(options).init(training_key(options))[0]
        wanted = tree.new({**tree.entries(state), "rule": first, "average": first})
        return options, load(file, wanted, device=device)["average"]
