"""Rules that were trained on one distribution, in worlds that they have never met.

The tabular worlds of the first paper, those whose objects move (agents are perceptrons there, which
no training has seen either), and the delayed chains. Nothing is trained further, and A2C keeps the
constants that it has elsewhere: GROOVE's, and the best of tune_all.py, its rate in perceptrons
being the same multiple of the usual one.

    python tests/benchmarks/transfer.py runs/all-0 runs/all-1 runs/all-2 --levels 16
    python tests/benchmarks/transfer.py --recompute
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lives import (
    CACHE,
    PUBLISHED,
    Rule,
    a2c,
    as_mark,
    kept,
    learned,
    make_setting,
    on_file,
    optimum,
    random_agents,
    read_rule,
    recomputed,
    together,
    tuned,
    untrained,
)
from standings import Raw, show, summarized

RESULTS = Path(__file__).parent / "results"
TABLES = ("dense", "sparse", "long", "longer", "long_dense")
MOVING = ("rand_dense", "rand_long", "rand_long_dense", "rand_small", "rand_sparse")
CHAINS = ("chain_short", "chain_short_noisy", "chain_long", "chain_long_noisy", "chain_distraction")


def contest(
    world: str,
    rules: list[Rule],
    best: dict[str, float],
    count: int,
    sizes: dict[str, int],
    cache: Path,
    with_optimum: bool,
) -> Raw:
    """Raw numbers of all contestants in a world."""
    setting = make_setting(world, "transfer", count, **sizes)

    def play(name: str, mark: object, run: Callable[[], Any]) -> Any:
        return kept(f"{world} {name}", [setting.mark, mark], run, cache)

    first = [untrained(rule) for rule in rules]
    found = {
        "random": play("random", None, lambda: random_agents(setting)),
        "untrained": together(
            [play("untrained", u.mark, lambda u=u: learned(setting, u)) for u in first]
        ),
        "a2c published": play("a2c", PUBLISHED, lambda: a2c(setting, [PUBLISHED], "a2c published")),
        "a2c tuned": play("a2c", best, lambda: a2c(setting, [best], "a2c tuned")),
        "lpg": together([play("lpg", r.mark, lambda r=r: learned(setting, r)) for r in rules]),
    }
    best_rates: list = [None] * count
    if with_optimum:
        best_rates = play("optimum", None, lambda: optimum(setting))
    return {"setting": setting.mark, "optimum": best_rates, "contestants": found}


def main() -> None:
    """Measure, or compute the figures again."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", type=Path, help="folders of runs of paramtree lpg")
    parser.add_argument("--recompute", action="store_true", help="from the raw numbers on file")
    parser.add_argument("--worlds", nargs="+", default=[*TABLES, *CHAINS, *MOVING])
    parser.add_argument("--levels", type=int, default=32)
    parser.add_argument("--updates", type=int, default=250)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument(
        "--optimum", action="store_true", help="the best possible too, which is slow"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--tuning", type=Path, default=RESULTS / "a2c_all.json")
    parser.add_argument("--out", type=Path, default=RESULTS / "transfer.json")
    parser.add_argument("--cache", type=Path, default=CACHE)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.recompute:
        for world, raw in on_file(chosen.out)["worlds"].items():
            recomputed(raw, f"{chosen.out}, {world}", summarized, partial(show, title=world))
        return
    if not chosen.runs:
        parser.error("no runs given")
    count, sizes = chosen.levels, {"updates": chosen.updates, "workers": chosen.workers}
    if chosen.quick:
        count, sizes = 2, {"updates": 3, "workers": 2}
    rules, (best, _) = [read_rule(folder) for folder in chosen.runs], tuned(chosen.tuning)
    result = {"rules": [as_mark(rule) for rule in rules], "a2c tuned": best, "worlds": {}}
    for world in chosen.worlds:
        raw = contest(world, rules, best, count, sizes, chosen.cache, chosen.optimum)
        summary = summarized(raw)
        show(summary, world)
        result["worlds"][world] = {**raw, "summary": summary}
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        chosen.out.write_text(json.dumps(result, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
