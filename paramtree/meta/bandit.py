"""Which hyper-parameters a life begins with: a bandit over a few combinations of them, the arms.

An arm's worth is the mean of the last few results of lives that began with it, and it is drawn with

    P(arm) ~ exp((mean + bonus / sqrt(trials)) / temperature)

so that what has seldom been tried is tried again. State: ``results [n_arms, window]``, a ring, and
``trials`` int64 ``[n_arms]``, both zero at first.

Source: Oh et al. (2020), appendix on hyper-parameters; constants from its reproductions.
"""

from typing import NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor

from .. import rng, tree
from ._check import require_count, require_real


class Bandit(NamedTuple):
    """Arms to choose from, and how.

    Attributes:
        arms: their hyper-parameters, a tree of batch size ``[n_arms]``: ``optimizer`` and ``loss``,
            as ``birth`` takes them.
        temperature: how little a difference in worth means.
        bonus: weight of the bonus for arms that have seldom been tried.
        window: number of results in the mean.
    """

    arms: TensorDict
    temperature: float | Tensor = 0.1
    bonus: float | Tensor = 0.2
    window: int = 10


def bandit_init(bandit: Bandit) -> TensorDict:
    """State of a bandit that has tried nothing.

    Args:
        bandit: the bandit.

    Returns:
        ``results`` float32 ``[n_arms, window]`` and ``trials`` int64 ``[n_arms]``, zeros.

    Raises:
        ValueError: the arms have no batch axis or no tensors, or a number is out of range.
        TypeError: the arms are no tree.
    """
    tree.require_tree("bandit_init", "arms", bandit.arms)
    if len(bandit.arms.batch_size) != 1 or not bandit.arms.batch_size[0]:
        sizes = f"{list(bandit.arms.batch_size)}, expected [n_arms]"
        raise ValueError(f"bandit_init: arms has batch size {sizes}")
    if not tree.leaves(bandit.arms):
        raise ValueError("bandit_init: arms has no tensors, expected hyper-parameters")
    require_count("bandit_init", "window", bandit.window)
    require_real("bandit_init", "temperature", bandit.temperature, above=0.0)
    require_real("bandit_init", "bonus", bandit.bonus, low=0.0)
    n, device = bandit.arms.batch_size[0], tree.leaves(bandit.arms)[0].device
    results = torch.zeros((n, bandit.window), device=device)
    return tree.new({"results": results, "trials": torch.zeros_like(results[:, 0]).long()})


def bandit_logits(bandit: Bandit, state: TensorDict) -> Tensor:
    """Unnormalized log-probabilities of the arms.

        (mean of the last results + bonus / sqrt(max(trials, 1))) / temperature

    Args:
        bandit: the bandit.
        state: its state.

    Returns:
        float ``[n_arms]``.
    """
    trials = state["trials"]
    kept = trials.clamp(1, bandit.window)
    mean = state["results"].sum(1) / kept
    return (mean + bandit.bonus / trials.clamp(min=1).sqrt()) / bandit.temperature


def bandit_draw(bandit: Bandit, state: TensorDict, key: Tensor, n: int) -> Tensor:
    """Arms for n lives.

    Args:
        bandit: the bandit.
        state: its state.
        key: key ``[2]``.
        n: how many.

    Returns:
        int64 ``[n]``.
    """
    return rng.categorical(key, bandit_logits(bandit, state).expand(n, -1))


def bandit_update(state: TensorDict, arm: Tensor, result: Tensor, over: Tensor) -> TensorDict:
    """State after some lives have ended; in the order of the lives, where one arm had several.

    Args:
        state: the state.
        arm: int64 ``[n]``, the arm of each life; a number that is no arm's is left out.
        result: float ``[n]``, how good it was; one that isn't finite is left out.
        over: bool ``[n]``, which lives have ended.

    Returns:
        The new state.

    Raises:
        ValueError: shapes differ.
        TypeError: a dtype is another.
    """
    for name, value, fits, wanted in (
        ("arm", arm, arm.dtype == torch.int64, "torch.int64"),
        ("result", result, result.is_floating_point(), "a float dtype"),
        ("over", over, over.dtype == torch.bool, "torch.bool"),
    ):
        if not fits:
            raise TypeError(f"bandit_update: {name} is {value.dtype}, expected {wanted}")
    for name, value in (("result", result), ("over", over)):
        if value.shape != arm.shape:
            got, wanted = tuple(value.shape), tuple(arm.shape)
            raise ValueError(f"bandit_update: {name} has shape {got}, expected {wanted} (from arm)")
    results, trials = state["results"], state["trials"]
    n_arms, window = results.shape
    counted = over & result.isfinite()
    mine = (arm.unsqueeze(0) == torch.arange(n_arms, device=arm.device).unsqueeze(1)) & counted
    place = mine.cumsum(1)  # [n_arms, n], 1 for an arm's first result
    total = mine.sum(1)
    # the last of an arm's results that fall on the same slot stays
    slots = torch.arange(window, device=arm.device)
    slot = (trials.unsqueeze(1) + place - 1) % window
    kept = mine & (place > (total - window).unsqueeze(1))
    hit = kept.unsqueeze(1) & (slot.unsqueeze(1) == slots.unsqueeze(1))  # [n_arms, window, n]
    value = torch.where(counted, result, 0.0).to(results.dtype)
    written = (hit * value).sum(-1)
    return tree.new(
        {"results": torch.where(hit.any(-1), written, results), "trials": trials + total}
    )
