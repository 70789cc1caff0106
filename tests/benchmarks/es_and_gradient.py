"""What an estimate from values is worth, beside the gradient: two problems where that is known.

    basis       the meta-gradient of the golden file's probe, two updates of an agent by a learned
                rule, in float64: antithetic pairs along a whole random orthogonal basis of its P
                directions are central differences, and right to 1e-4 in every entry
    cosine      n random pairs: the mean cosine to the meta-gradient lies within 3 standard errors
                of 1 / sqrt(1 + (P + 1) / n)
    persistent  a linear inner loop with quadratic costs, whose smoothed gradient has a closed form:
                persistent evolution strategies are within 4 standard errors of it, and evolution
                strategies on the same windows are not

The rule is without full stops: reverse mode with them gives another vector than the function's
gradient, which is what values know of. The probe is evaluated at each perturbed place. Blocks of n
pairs are the repetitions, a pair in one block of each size. It takes minutes: nothing is resumed.

    python tests/benchmarks/es_and_gradient.py
    python tests/benchmarks/es_and_gradient.py --quick
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from tensordict import TensorDict
from torch import Tensor

from paramtree import grad, rng, tree, vmap
from paramtree.meta import es_grad, es_gradient, perturbations, pes

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.paramtree.meta import test_pes as known  # noqa: E402 (the loop and its closed form)
from tests.paramtree.meta.test_golden_lpg import probe_of  # noqa: E402

ROOT = Path(__file__).parents[1]
SIGMA = 1e-5
Probe = Callable[[TensorDict], Tensor]


def ends(probe: Probe, params: TensorDict, noise: TensorDict, sigma: float) -> list[Tensor]:
    """Values on both sides of each perturbation, a chunk at a time."""
    sides, n = [], noise.batch_size[0]
    with Progress(disable=not sys.stderr.isatty()) as bars:
        task = bars.add_task("pairs", total=2 * n)
        for sign in (1, -1):
            parts = []
            for some in noise.split(256):
                eps = tree.lock(some)
                moved = tree.add(tree.stack([params] * len(some)), tree.scale(eps, sign * sigma))
                with torch.no_grad():
                    parts.append(vmap(probe)(moved))
                bars.advance(task, len(some))
            sides.append(torch.cat(parts))
    return sides


def basis(probe: Probe, params: TensorDict, seed: int) -> dict[str, Any]:
    """Central differences along a random orthogonal basis."""
    size, exact = tree.ravel(params)[0].numel(), grad(probe)(params)
    sigma = SIGMA / math.sqrt(size)  # pairs are sqrt(P) long
    noise = perturbations(rng.key(seed), params, size, basis="orthogonal")
    up, down = ends(probe, params, noise, sigma)
    slope = es_gradient(up, down, noise, sigma=sigma)
    pairs = zip(tree.leaves(slope), tree.leaves(exact), strict=True)
    worst = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    return {"name": "basis", "pairs": size, "worst": worst, "target": 1e-4, "good": worst < 1e-4}


def cosines(probe: Probe, params: TensorDict, total: int, seed: int) -> list[dict[str, Any]]:
    """Cosines of estimates to the gradient, for each number of pairs."""
    size, exact = tree.ravel(params)[0].numel(), grad(probe)(params)
    noise = perturbations(rng.key(seed), params, total)
    up, down = ends(probe, params, noise, SIGMA)
    found = []
    for n in (64, 256, 1024):
        values = []
        for i in range(0, total - n + 1, n):
            rows = slice(i, i + n)
            slope = es_gradient(up[rows], down[rows], tree.lock(noise[rows]), sigma=SIGMA)
            values.append(float(tree.vdot(slope, exact) / tree.norm(slope) / tree.norm(exact)))
        law = 1 / math.sqrt(1 + (size + 1) / n)
        cosine, error = np.mean(values), np.std(values, ddof=1) / math.sqrt(len(values))
        line = {"name": "cosine", "pairs": n, "dimensions": size, "repetitions": len(values)}
        line |= {"cosine": float(cosine), "error": float(error), "law": law}
        found.append({**line, "good": bool(abs(cosine - law) < 3 * error)})
    return found


def persistent(lives: int, seed: int) -> dict[str, Any]:
    """Persistent estimates of a whole life, and those of windows that know of nothing before."""
    make = pes(
        known.step,
        known.outer,
        known.STEPS,
        known.born,
        window=known.WINDOW,
        particles=50,
        sigma=0.3,
    )
    key, exact = rng.key(seed), known.exact()
    slopes = vmap(lambda k: known.whole_life(make, k)[1])(rng.split(key, lives))
    mean, error = slopes.mean(0), slopes.std(0) / math.sqrt(lives)

    def windows(key: Tensor) -> Tensor:
        state, parts = known.START, []
        for first in range(0, known.STEPS, known.WINDOW):

            def run(h: Any, state: Any = state, first: int = first) -> Any:
                total = 0.0
                for k in range(first, first + known.WINDOW):
                    state = known.step(h, state, k)
                    total = total + known.outer(h, state)
                return total / known.WINDOW, state

            own, hyper = rng.fold_in(key, first), known.hyper()
            estimate = es_grad(run, own, sigma=0.3, samples=50, has_aux=True)
            (_, state), slope = estimate(hyper)
            parts.append(slope["push"])
        return torch.stack(parts).mean(0)

    truncated = vmap(windows)(rng.split(rng.fold_in(key, 1), lives))
    off, spread = truncated.mean(0), truncated.std(0) / math.sqrt(lives)
    unbiased = bool(((mean - exact).abs() < 4 * error).all())
    biased = bool(((off - exact).abs() > 4 * spread).all())
    line = {"name": "persistent", "lives": lives, "exact": exact.tolist()}
    line |= {"mean": mean.tolist(), "error": error.tolist()}
    line |= {"truncated": off.tolist(), "truncated_error": spread.tolist()}
    return {**line, "good": unbiased and biased}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=16_384, help="in all, for the cosines")
    parser.add_argument("--lives", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="fewer, without a basis or a file")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with np.load(ROOT / "data" / "groove_lpg_golden.npz") as arrays:
        golden = {name: arrays[name] for name in arrays.files}
    probe, params = probe_of(golden, full_stop=False)
    pairs, lives = (2048, 100) if options.quick else (options.pairs, options.lives)
    began, found = time.monotonic(), [persistent(lives, options.seed)]
    print(json.dumps(found[-1]), flush=True)
    found += cosines(probe, params, pairs, options.seed)
    print("\n".join(json.dumps(line) for line in found[1:]), flush=True)
    if not options.quick:
        found.append(basis(probe, params, options.seed))
        print(json.dumps(found[-1]))
        whole = {"seconds": round(time.monotonic() - began, 1), "found": found}
        path = Path(__file__).parent / "results" / "es_and_gradient.json"
        path.write_text(json.dumps(whole, indent=1) + "\n")
    return not all(line["good"] for line in found)


if __name__ == "__main__":
    sys.exit(main())
