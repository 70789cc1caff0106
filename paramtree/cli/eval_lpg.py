"""``paramtree eval-lpg``: trains fresh agents with rules on levels that no training has seen."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from tensordict import TensorDict, TensorDictBase

from .. import __version__, meta, tree
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
    rule: meta.UpdateRule
    params: TensorDict
    made: LpgOptions | dict[str, Any]  # the options of its run, or its card


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
    setting, parts, mark = contest(options)
    if options.out is not None:  # before the long work, which would be lost
        with refusing():
            options.out.mkdir(parents=True, exist_ok=True)
    with interrupts() as interrupt:

        def watch() -> None:
            if interrupt.asked:
                kept = "nothing was written" if options.out is None else "the same command goes on"
                raise Stopped(f"stopped in the evaluation; {kept}")

        results, earlier = evaluation.contest(
            parts,
            console,
            watch=watch,
            cache=None if options.out is None else options.out / files.EVALUATION,
            marks={part.name: mark for part in parts},
        )
    found = summary.summarized(results, options.reference)
    console.print(summary.table(found, evaluation.title(setting), options.reference))
    if options.out is not None:
        plots.write(options.out / files.CURVE, plots.lpg_figure([], evaluation.curves(results)))
        files.write_json(options.out / files.RESULTS, evaluation.raw(results))
        seconds = {"seconds": round(earlier + time.monotonic() - began, 3)}
        files.write_json(options.out / files.SUMMARY, {**found, **seconds})


def contest(options: EvalOptions) -> tuple[Setting, list[Part], str]:
    """Who meets on which levels.

    Args:
        options: the options.

    Returns:
        ``(setting, parts, mark)``; the mark is another where a result may be.

    Raises:
        Refused: nobody is named, a name is not known, one comes twice, the reference isn't among
            them, or the levels can't be.
    """
    if options.checkpoint is None and not options.against:
        raise Refused("no rule is given; name one, or some with --against a2c ppo")
    first = None if options.checkpoint is None else _find(options, options.checkpoint)
    length, workers = (_LENGTH, _WORKERS) if first is None else (first.length, first.workers)
    others = {n: _find(options, n) for n in options.against if n not in _BY_HAND}
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
    rules = [*others.values()] if first is None else [first, *others.values()]
    return setting, parts, _mark(options, rules)


def _mark(options: EvalOptions, rules: Sequence[Learned]) -> str:
    """What results depend on, in short: the options, and the learned rules."""
    told = [__version__, replace(options, out=None), *[rule.made for rule in rules]]
    digest = hashlib.sha256(repr(told).encode())
    for leaf in (leaf for rule in rules for leaf in tree.leaves(rule.params)):
        digest.update(leaf.cpu().numpy().tobytes())
    return digest.hexdigest()


def _find(options: EvalOptions, name: str) -> Learned:
    return find(name, options.device, _BY_HAND)


def _told_apart(names: dict[str, str]) -> dict[str, str]:
    """Short names of rules, by what they are asked for; that itself where it would be mistaken."""
    taken = ["trained", "untrained", "optimal_rate", *_WORDS, *_BY_HAND, *names.values()]
    return {asked: short if taken.count(short) == 1 else asked for asked, short in names.items()}


def _trained(rule: Learned, setting: Setting) -> list[Part]:
    """A run's rule as it is now and as it was in the beginning, or one that comes with it."""
    if isinstance(rule.made, LpgOptions):
        return contestants(rule.made, rule.params, setting)[:2]
    return [_learner("trained", rule, setting)]


def _learner(name: str, rule: Learned, setting: Setting) -> Part:
    return evaluation.learner(name, setting, habitat_of(rule, setting), rule.rule, rule.params)


def habitat_of(rule: Learned, setting: Setting) -> meta.Habitat:
    """Agents that fit a rule.

    Args:
        rule: the rule.
        setting: where they live.

    Returns:
        The kind of agents.
    """
    if isinstance(rule.made, LpgOptions):
        return learned(rule.made, setting)[0]
    agents = {**rule.made["agents"], "workers": setting.workers}
    if setting.world.n_states is None:  # a card's rates are those of tables
        agents |= {"actor_rate": None, "prediction_rate": None}
    return meta.lpg_population(setting.world, 1, **agents).habitat


def is_card(path: Path) -> bool:
    """Whether a path is that of a card, or the name of a rule that may come with the library.

    Args:
        path: where something is, or what it is called.

    Returns:
        Whether it's so; False for what is there and no card.
    """
    if path.suffix == ".json":
        return not path.is_dir()
    return not path.exists() and len(path.parts) == 1 and not path.suffix


def find(name: str, device: str, others: Sequence[str] = ()) -> Learned:
    """A learned rule, by where it is or what it is called.

    Args:
        name: a run's folder, a checkpoint, the name of a rule that comes with the library, or the
            path of a card.
        device: where its parameters go.
        others: names that are known beside, for the message.

    Returns:
        The rule.

    Raises:
        Refused: there is none, or what is there isn't one.
    """
    path = Path(name)
    if is_card(path):
        try:
            card = meta.rule_card(name)
            rule, params = meta.load_rule(name, device=device)
        except (ValueError, OSError) as error:
            if path.suffix:
                raise Refused(str(error)) from error
            known = f" and none of {', '.join(others)}" if others else ""
            raise Refused(
                f"{name!r} is no run, no checkpoint{known}; as a rule that comes with paramtree: "
                f"{error}"
            ) from None
        length = card["options"].get("length", _LENGTH)
        workers = card["agents"].get("workers", _WORKERS)
        return Learned(path.stem, length, workers, rule, params, card)
    options, params = saved_rule(path, device)
    workers = options.agents.workers
    return Learned(path.name, options.length, workers, make_rule(options), params, options)


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
