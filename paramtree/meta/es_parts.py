"""What trainings by evolution strategies have in common: how fitness becomes a gradient."""

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from .. import optim, tree
from ..optim import Transform
from ._check import require_real
from .perturb import es_gradient
from .population import finite_mean


def groove_optimizer() -> Transform:
    """Adam with a rate of 0.01 that decays by 0.999 a step, down to 1e-5.

    Returns:
        The transform.

    Source: GROOVE: Jackson et al. (2024).
    """
    return optim.adam(optim.exponential_decay(0.01, 1, 0.999, end=1e-5))


def newborn(agents: TensorDict) -> TensorDict:
    """The same agents at age 0.

    Args:
        agents: who have had no update yet, whatever their ages say.

    Returns:
        The agents.
    """
    memory: Any = agents["rule"]
    if "age" in memory.keys():
        memory = tree.replace(memory, {"age": torch.zeros_like(memory["age"])})
    return tree.replace(agents, {"age": torch.zeros_like(agents["age"]), "rule": memory})


def ascent(
    up: Tensor, down: Tensor, noises: list[TensorDict], sigma: Tensor | float, rank: str | None
) -> tuple[TensorDict, Tensor]:
    """Gradient of minus the fitness, of the pairs whose fitness is finite.

    Args:
        up: fitness ``[n]``.
        down: of their partners.
        noises: perturbations of all groups.
        sigma: their width.
        rank: see ``es_gradient``.

    Returns:
        The gradient, 0 where no pair is left, and ``[n]`` bool, which pairs are in it.
    """
    fine = up.isfinite() & down.isfinite()
    noise = tree.concat(noises) if len(noises) > 1 else noises[0]
    n, m = fine.numel(), fine.sum()
    share, nowhere = torch.where(m > 0, -n / m.clamp(min=1), 0.0), 0.0  # no difference, no part
    if rank == "centered":  # below all others, where they move no rank but by the ranks' number
        share, nowhere = share * (2 * n - 1) / (2 * m - 1), -torch.inf
    up, down = (torch.where(fine, x, nowhere) for x in (up, down))
    slope = es_gradient(up, down, noise, sigma=sigma, rank=rank)
    return tree.map(lambda x: x * share, slope), fine


def fitness_metrics(fitness: Tensor, fine: Tensor) -> dict[str, Tensor]:
    """Mean and extremes.

    Args:
        fitness: ``[n, 2]``.
        fine: ``[n]`` bool, which count.

    Returns:
        0-d each, by name.
    """
    low, high = fitness.amin(1), fitness.amax(1)
    return {
        "fitness": finite_mean(fitness.mean(1), fine),
        "fitness_min": torch.where(fine, low, torch.inf).amin(),
        "fitness_max": torch.where(fine, high, -torch.inf).amax(),
    }


def require_widths(
    fn: str, *, sigma: float, sigma_decay: float = 1.0, sigma_limit: float = 0.0
) -> None:
    """Refuse a width of perturbations that is out of range.

    Args:
        fn: name of the function that was called.
        sigma: positive.
        sigma_decay: positive.
        sigma_limit: not negative.

    Raises:
        ValueError: it's out of range.
        TypeError: it isn't a float.
    """
    require_real(fn, "sigma", sigma, above=0.0)
    require_real(fn, "sigma_decay", sigma_decay, above=0.0)
    require_real(fn, "sigma_limit", sigma_limit, low=0.0)
