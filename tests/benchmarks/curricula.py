"""Does it matter which levels a learned rule is trained on?

Rules are trained alike by ``paramtree lpg``, for the same number of meta-steps and from several
seeds, on levels that are drawn anew (none), that come again where the critic was most wrong (plr),
or where an A2C agent earns more (groove). Then each trains fresh agents on levels that nobody has
seen, all with the same random numbers: reward per step in the last fifth of a life and over all of
it. A second kind of levels shows how it carries over. The steps are the same for all and the
seconds aren't, since antagonists take time.

Runs go on where they were stopped, and what has been measured isn't measured again.

    python tests/benchmarks/curricula.py
    python tests/benchmarks/curricula.py --recompute
    python tests/benchmarks/curricula.py --quick
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import intervals
import torch
from lives import CACHE, as_mark, kept, learned, make_setting, on_file, read_rule, together
from lpg_all import TRAINING, train

RESULT = Path(__file__).parent / "results" / "curricula.json"
CURRICULA = ("none", "plr", "groove")
MEASURES = ("final", "lifetime")
TINY = "--tasks 2 --workers 2 --hidden 8 --buffer 4"


def measured(folders: dict[str, list[Path]], world: str, count: int, **sizes: int) -> Any:
    """Rewards by curriculum, ``[S, n]`` for each measure."""
    setting = make_setting(world, "curricula", count, **sizes)

    def play(folder: Path) -> Any:
        rule = read_rule(folder)
        return kept("lpg", [setting.mark, rule.mark], partial(learned, setting, rule), CACHE)

    return {name: together([play(folder) for folder in group]) for name, group in folders.items()}


def compared(worlds: dict[str, Any]) -> dict[str, Any]:
    """Means of each curriculum, and what it has more than none, with intervals."""
    found: dict[str, Any] = {}
    for world, by_name in worlds.items():
        found[world] = {}
        for measure in MEASURES:
            tables = {
                name: torch.tensor(record[measure], dtype=torch.float64)
                for name, record in by_name.items()
            }
            rows = {name: intervals.bootstrap(intervals.mean, x) for name, x in tables.items()}
            for name in CURRICULA[1:]:
                pair = tables[name], tables["none"]
                rows[f"{name} less none"] = intervals.bootstrap(intervals.difference, *pair)
            found[world][measure] = rows
    return found


def main() -> None:
    """Train and measure, or compute the figures again."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300, help="of each training")
    parser.add_argument("--worlds", nargs="+", default=["all", "small"])
    parser.add_argument("--levels", type=int, default=64, help="held out, of each world")
    parser.add_argument("--updates", type=int, default=250)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--runs", type=Path, default=Path("runs", "curricula"))
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--recompute", action="store_true", help="from the raw numbers on file")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.recompute:
        raw = on_file(chosen.out)
        if json.loads(json.dumps(compared(raw["worlds"]))) != raw["summary"]:
            raise SystemExit(f"{chosen.out}: its summary is not the one that its numbers give")
        print(json.dumps(raw["summary"], indent=1))
        return
    steps, count, sizes = chosen.steps, chosen.levels, [chosen.updates, chosen.workers]
    runs, out = chosen.runs, chosen.out
    if chosen.quick:
        steps, count, sizes, runs = 2, 3, [3, 2], runs / "quick"
        out = runs / "curricula.json"
    folders: dict[str, list[Path]] = {name: [] for name in CURRICULA}
    for seed in range(chosen.seeds):
        for name in CURRICULA:
            command = f"{TRAINING} --steps {steps} --curriculum {name}"
            folder = runs / f"{name}-{seed}"
            train(folder, seed, f"{command} {TINY}" if chosen.quick else command)
            folders[name].append(folder)
    worlds = {
        world: measured(folders, world, count, updates=sizes[0], workers=sizes[1])
        for world in chosen.worlds
    }
    seconds = {
        name: [json.loads((folder / "summary.json").read_text())["seconds"] for folder in group]
        for name, group in folders.items()
    }
    rules = [as_mark(read_rule(folder)) for group in folders.values() for folder in group]
    summary = compared(worlds)
    raw = {"rules": rules, "seconds": seconds, "worlds": worlds, "summary": summary}
    out.write_text(json.dumps(raw, separators=(",", ":")) + "\n")
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
