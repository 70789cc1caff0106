"""Rules trained alike but for a few options, on fresh agents: which of them is the best teacher?

All rules are trained by ``paramtree lpg``, as those of lpg_all.py are but for the number of steps
and the options in question, each kind from the same seeds. Then each trains fresh agents on levels
that nobody has seen, all with the same random numbers: reward per step in the last fifth of a life
and over all of it, with 95% intervals over seeds and levels.

Runs go on where they were stopped, and what has been measured isn't measured again.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import intervals
import torch
from lives import (
    CACHE,
    Rule,
    as_mark,
    kept,
    learned,
    make_setting,
    on_file,
    read_rule,
    recomputed,
    together,
)
from lpg_all import TRAINING, train

RESULTS = Path(__file__).parent / "results"
MEASURES = ("final", "lifetime")
TINY = "--tasks 2 --workers 2 --hidden 8 --buffer 4"

Settings = dict[str, dict[str, Any]]


def measured(rules: dict[str, list[Rule]], sizes: dict[str, Any]) -> Any:
    """Rewards by kind of rule, ``[S, n]`` for each measure."""
    setting = make_setting(**sizes)

    def play(rule: Rule) -> Any:
        return kept("lpg", [setting.mark, rule.mark], partial(learned, setting, rule), CACHE)

    return {name: together([play(rule) for rule in group]) for name, group in rules.items()}


def compared(raw: dict[str, Any]) -> dict[str, Any]:
    """Means of each kind in each setting, and what it has more than the first."""
    summary: dict[str, Any] = {}
    for setting, by_name in raw["settings"].items():
        summary[setting] = {}
        for measure in MEASURES:
            tables = {
                name: torch.tensor(record[measure], dtype=torch.float64)
                for name, record in by_name.items()
            }
            rows = {name: intervals.bootstrap(intervals.mean, x) for name, x in tables.items()}
            first, *others = tables
            for name in others:
                pair = tables[name], tables[first]
                rows[f"{name} less {first}"] = intervals.bootstrap(intervals.difference, *pair)
            summary[setting][measure] = rows
    return summary


def compare(doc: str, name: str, kinds: dict[str, str], settings: Settings, shared: str) -> None:
    """Train and measure, or compute the figures again; the command line says how much.

    Args:
        doc: what the script is about.
        name: of the result's file, of the folder of runs, and the levels' purpose.
        kinds: options of each kind of rule, by name; others are compared with the first.
        settings: options of ``make_setting`` for the lives that are measured, by name.
        shared: options of all trainings beside those of lpg_all.py.

    Raises:
        SystemExit: what is on file isn't what its numbers give, or there is nothing on file.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300, help="of each training")
    parser.add_argument("--levels", type=int, default=64, help="held out, of each setting")
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--runs", type=Path, default=Path("runs", name))
    parser.add_argument("--out", type=Path, default=RESULTS / f"{name}.json")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--recompute", action="store_true", help="from the raw numbers on file")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.recompute:
        recomputed(on_file(chosen.out), str(chosen.out), compared, show)
        return
    sizes = {"purpose": name, "count": chosen.levels, "workers": chosen.workers}
    seeds, steps, runs, out = chosen.seeds, chosen.steps, chosen.runs, chosen.out
    if chosen.quick:
        settings = {key: {**one, "updates": 3} for key, one in settings.items()}
        sizes |= {"count": 3, "workers": 2}
        seeds, steps, runs = 1, 2, runs / "quick"
        out = runs / f"{name}.json"
    folders: dict[str, list[Path]] = {kind: [] for kind in kinds}
    for seed in range(seeds):
        for kind, options in kinds.items():
            command = f"{TRAINING} {shared} --steps {steps} {options}"
            folder = runs / f"{kind}-{seed}"
            train(folder, seed, f"{command} {TINY}" if chosen.quick else command)
            folders[kind].append(folder)
    rules = {kind: [read_rule(folder) for folder in group] for kind, group in folders.items()}
    found = {key: measured(rules, {**one, **sizes}) for key, one in settings.items()}
    seconds = {
        kind: [json.loads((folder / "summary.json").read_text())["seconds"] for folder in group]
        for kind, group in folders.items()
    }
    marks = [as_mark(rule) for group in rules.values() for rule in group]
    raw = {"rules": marks, "seconds": seconds, "settings": found}
    raw |= {"summary": compared(raw)}
    out.write_text(json.dumps(raw, separators=(",", ":")) + "\n")
    show(raw["summary"])


def show(summary: dict[str, Any]) -> None:
    """Print the figures."""
    print(json.dumps(summary, indent=1))
