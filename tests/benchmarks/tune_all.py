"""Tune A2C on the distribution "all": an opponent for learned rules that does its best there.

Successive halving over a coarse grid of actor rate x entropy weight x discount x trace decay, then
the neighbors of the best on each ladder, beyond the edges of the grid too, until the best has none
that is better; then the best few on all tuning levels, of which the best is the result. A score is
the mean reward per step over the last fifth of a life. All configurations of a stage meet the same
levels and the same noise; the levels of later stages hold those of earlier ones.

    python tests/benchmarks/tune_all.py
    python tests/benchmarks/tune_all.py --quick --out /tmp/tune
"""

import argparse
import itertools
import json
import time
from pathlib import Path

import torch
from lives import PUBLISHED, Setting, a2c_scores, kept, make_setting, rounded

GRID = {
    "rate": [20.0, 40.0, 80.0, 160.0],
    "entropy": [0.01, 0.03, 0.09, 0.27],
    "gamma": [0.7, 0.9, 0.95, 0.99],
    "lmbda": [0.8, 0.95],
}
LADDERS = {  # where the search may go from the grid
    "rate": [2.5, 5.0, 10.0, *GRID["rate"], 320.0, 640.0, 1280.0],
    "entropy": [0.0003, 0.001, 0.003, *GRID["entropy"], 0.81, 2.43],
    "gamma": [0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999],
    "lmbda": [0.4, 0.6, 0.8, 0.9, 0.95, 0.98, 1.0],
}
Config = dict[str, float]
RESULTS = Path(__file__).parent / "results"

_BATCH = 16  # configurations at once


class Search:
    """Scores as they come, from files where they have been computed before."""

    def __init__(self, setting: Setting, cache: Path):
        self.setting, self.cache, self.rows = setting, cache, []

    def scores(self, stage: str, configs: list[Config], n_levels: int) -> list[dict]:
        """Rows ``{"stage", "config", "levels", "score", "error", "rewards"}``, best first."""
        # every so many-th, since levels are sorted by length
        step = self.setting.levels.batch_size[0] // n_levels
        few = self.setting._replace(levels=self.setting.levels[::step][:n_levels])
        rows = []
        for start in range(0, len(configs), _BATCH):
            batch = configs[start : start + _BATCH]

            def run(batch: list[Config] = batch, what: str = f"{stage} {start}") -> dict:
                began = time.process_time()
                found = a2c_scores(few, batch, f"{what}/{len(configs)}")
                rewards = [rounded(column) for column in found.unbind(1)]
                return {"rewards": rewards, "seconds": time.process_time() - began}

            mark = {**self.setting.mark, "few": n_levels, "configs": batch}
            kept_ = kept("a2c_scores", mark, run, self.cache)
            for config, rewards in zip(batch, kept_["rewards"], strict=True):
                numbers = torch.tensor(rewards, dtype=torch.float64)
                row = {"stage": stage, "config": config, "levels": n_levels}
                row |= {"score": float(numbers.mean())}
                row |= {"error": float(numbers.std() / n_levels**0.5)}
                row |= {"seconds": kept_["seconds"] / len(batch)}
                rows.append(row)
        self.rows += rows
        return sorted(rows, key=lambda row: -row["score"])


def neighbors(config: Config) -> list[Config]:
    """All configurations one step away on one ladder."""
    found = []
    for name, ladder in LADDERS.items():
        at = ladder.index(config[name])
        found += [{**config, name: ladder[i]} for i in (at - 1, at + 1) if 0 <= i < len(ladder)]
    return found


def tune(search: Search, sizes: tuple[int, int, int], keep: tuple[int, int], grid: dict) -> dict:
    """The best configuration and how it was found."""
    first, second, last = sizes
    configs = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    promising = [row["config"] for row in search.scores("grid", configs, first)[: keep[0]]]
    if PUBLISHED not in promising:
        promising.append(PUBLISHED)
    rows = search.scores("half", promising, second)
    while True:
        known = [row["config"] for row in rows]
        fresh = [config for config in neighbors(rows[0]["config"]) if config not in known]
        if not fresh:
            break
        rows = sorted(rows + search.scores("neighbors", fresh, second), key=lambda r: -r["score"])
        print(f"best of {len(rows)}: {rows[0]['config']} {rows[0]['score']:.5f}", flush=True)
    finalists = [row["config"] for row in rows[: keep[1]]]
    final = search.scores("final", finalists, last)
    return {
        **search.setting.mark,
        "scored": len({json.dumps(row["config"]) for row in search.rows}),
        "best": final[0],
        "runners_up": final[1:4],
        "finalists_scores": [row["score"] for row in final],
        "seconds": round(sum(row["seconds"] for row in search.rows), 1),
        "rows": [
            {**row["config"], **{k: row[k] for k in ("stage", "levels", "score", "error")}}
            for row in search.rows
        ],
    }


def main() -> None:
    """Tune, and write the result beside the scores."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--world", default="all")
    parser.add_argument("--updates", type=int, default=250)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--cache", type=Path, default=Path("runs", "measured"))
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    sizes, keep, grid = (16, 64, 256), (32, 8), GRID
    updates, workers = chosen.updates, chosen.workers
    if chosen.quick:
        sizes, keep, updates, workers = (2, 4, 6), (4, 2), 5, 4
        grid = {name: values[:2] for name, values in GRID.items()}
    setting = make_setting(chosen.world, "tuning", sizes[-1], updates=updates, workers=workers)
    result = tune(Search(setting, chosen.cache), sizes, keep, grid)
    chosen.out.mkdir(parents=True, exist_ok=True)
    path = chosen.out / f"a2c_{chosen.world}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["best"]))


if __name__ == "__main__":
    main()
