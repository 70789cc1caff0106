"""Learned Policy Gradient against A2C on the distribution "all", on levels that nobody has seen.

Rules come from runs of ``paramtree lpg``, one for each meta-seed. Each contestant trains a fresh
agent on each of the same levels, with the same random numbers:

    random          nobody learns
    untrained       the rules as they were before their first steps
    a2c published   A2C with GROOVE's constants
    a2c tuned       with the best of tune_all.py, on other levels
    a2c by level    with the best for each level, among as many as 32, chosen on that very level
                    with other random numbers: no opponent, but what tuning could give
    lpg             the rules, at the rate of policies among a few at which they did best, all of
                    them together, on the levels that A2C was tuned on
    lpg as trained  the rules, at the rate that their agents had while they were trained

    python tests/benchmarks/lpg_all.py runs/all-0 runs/all-1 runs/all-2 --train
    python tests/benchmarks/lpg_all.py runs/all-0 runs/all-1 runs/all-2 --seed 1 --choices 0 \\
        --out tests/benchmarks/results/lpg_all_again.json
    python tests/benchmarks/lpg_all.py --recompute
    python tests/benchmarks/lpg_all.py --pool lpg_all.json lpg_all_again.json
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lives import (
    CACHE,
    PUBLISHED,
    Record,
    Rule,
    Setting,
    a2c,
    a2c_scores,
    as_mark,
    kept,
    learned,
    make_setting,
    on_file,
    optimum,
    random_agents,
    read_rule,
    together,
    tuned,
    untrained,
)
from standings import Raw, pooled, recompute, report, show, summarized

from paramtree import rng

RESULTS = Path(__file__).parent / "results"
TITLE = "Learned Policy Gradient and A2C on levels of {}"
# The command whose runs the committed figures come from; --seed and --out are added.
TRAINING = (
    "lpg --preset demo --levels all_shortlife --steps 1600 --meta-decay 0.999 "
    "--initialization flax --y-hat-scale 5 --value-coeff 0.05 --policy-entropy-coeff 0.07 "
    "--evaluate 0 --threads 1"
)
RATES = [800.0, 1200.0]


def train(folder: Path, seed: int, command: str) -> None:
    """Start a run, or go on with it; one that is finished stays as it is."""
    goes_on = (folder / "config.json").exists()
    where = ["--resume", str(folder)] if goes_on else ["--seed", str(seed), "--out", str(folder)]
    options = command.split()[:1] if goes_on else command.split()
    subprocess.run([sys.executable, "-m", "paramtree.cli", *options, *where], check=True)


def by_level(setting: Setting, few: list[dict[str, float]]) -> Record:
    """A2C with the best of a few configurations for each level."""
    other = setting._replace(key=rng.fold_in(setting.key, "choice"))  # other random numbers
    scores = torch.cat(
        [a2c_scores(other, few[i : i + 16], f"a2c by level {i}") for i in range(0, len(few), 16)], 1
    )
    return a2c(setting, [few[i] for i in scores.argmax(1).tolist()], "a2c by level")


def paces(
    setting: Setting, rules: list[Rule], rates: list[float], cache: Path
) -> list[dict[str, Any]]:
    """Reward in the last fifth of life at rates of policies, best ones first."""
    rows = []
    for rate in rates:
        found = [
            kept("pace", [setting.mark, r.mark], lambda r=r: learned(setting, r)["final"], cache)
            for r in (rule.at_rate(rate) for rule in rules)
        ]
        means = [float(torch.tensor(x, dtype=torch.float64).mean()) for x in found]
        rows.append({"rate": rate, "score": sum(means) / len(means), "by rule": means})
    return sorted(rows, key=lambda row: -row["score"])


def contest(
    setting: Setting,
    tuning_setting: Setting,
    folders: list[Path],
    rates: list[float],
    best: dict[str, float],
    few: list[dict[str, float]],
    cache: Path,
) -> Raw:
    """Raw numbers of all contestants; A2C has the best configuration, or one of a few by level."""
    rules = [read_rule(folder) for folder in folders]

    def play(name: str, mark: object, run: Callable[[], Any]) -> Any:
        return kept(name, [setting.mark, mark], run, cache)

    def play_rules(name: str, rules: list[Rule]) -> dict[str, list]:
        return together([play(name, r.mark, lambda r=r: learned(setting, r)) for r in rules])

    found_paces = paces(tuning_setting, rules, rates, cache)
    best_rate = found_paces[0]["rate"]
    by_levels = (
        {"a2c by level": play("a2c by level", few, lambda: by_level(setting, few))} if few else {}
    )

    found = {
        "random": play("random", None, lambda: random_agents(setting)),
        "untrained": play_rules("untrained", [untrained(rule) for rule in rules]),
        "a2c published": play("a2c", PUBLISHED, lambda: a2c(setting, [PUBLISHED], "a2c published")),
        "a2c tuned": play("a2c", best, lambda: a2c(setting, [best], "a2c tuned")),
        **by_levels,
        "lpg": play_rules("lpg", [rule.at_rate(best_rate) for rule in rules]),
        "lpg as trained": play_rules("lpg", rules),
    }
    return {
        "setting": setting.mark,
        "rules": [as_mark(rule) for rule in rules],
        "a2c tuned": best,
        "lpg rates": found_paces,
        "optimum": play("optimum", None, lambda: optimum(setting)),
        "contestants": found,
    }


def main() -> None:
    """Measure, or compute the figures again."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", type=Path, help="folders of runs of paramtree lpg")
    parser.add_argument("--recompute", action="store_true", help="from the raw numbers on file")
    parser.add_argument(
        "--pool", nargs="+", metavar="FILE", help="results, taken as one of all levels"
    )
    parser.add_argument("--train", action="store_true", help="first train the rules, or go on")
    parser.add_argument("--command", default=TRAINING, help=f"how they're trained: {TRAINING}")
    parser.add_argument("--world", default="all")
    parser.add_argument("--levels", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0, help="of these levels, not of the tuning's")
    parser.add_argument(
        "--choices", type=int, default=32, help="from which a2c by level takes; 0 leaves it out"
    )
    parser.add_argument("--updates", type=int, default=250)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument(
        "--rates", type=float, nargs="+", default=RATES, help="of policies, tried for lpg"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--tuning", type=Path, default=RESULTS / "a2c_all.json")
    parser.add_argument("--out", type=Path, default=RESULTS / "lpg_all.json")
    parser.add_argument("--cache", type=Path, default=CACHE)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    title = TITLE.format(chosen.world)
    if chosen.recompute:
        recompute(chosen.out, title)
        return
    if chosen.pool:
        raws = [on_file(RESULTS / name) for name in chosen.pool]
        show(summarized(pooled(raws)), title)
        return
    if not chosen.runs:
        parser.error("no runs given")
    if chosen.train:
        for seed, folder in enumerate(chosen.runs):
            train(folder, seed, chosen.command)
    sizes = {"updates": chosen.updates, "workers": chosen.workers}
    count = chosen.levels
    if chosen.quick:
        count, sizes = 4, {"updates": 5, "workers": 4}
    settings = [
        make_setting(chosen.world, purpose, count, seed=seed, **sizes)
        for purpose, seed in (("evaluation", chosen.seed), ("tuning", 0))
    ]
    best, few = tuned(chosen.tuning)
    few = few[: chosen.choices]
    raw = contest(*settings, chosen.runs, chosen.rates, best, few, chosen.cache)
    report(raw, chosen.out, title)


if __name__ == "__main__":
    main()
