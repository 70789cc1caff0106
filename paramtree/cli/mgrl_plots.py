"""The picture of a run of ``mgrl``: returns, and the hyper-parameters learned meanwhile."""

from pathlib import Path
from typing import Any

import torch

from . import plots
from .mgrl_options import MgrlOptions

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_REFERENCES = {"gamma": "reference_gamma", "lmbda": "reference_lmbda"}


def draw(
    path: Path, options: MgrlOptions, *, history: list[dict[str, Any]], evaluated: float | None
) -> None:
    """Draw how the agent fared, and what became of its hyper-parameters.

    Args:
        path: the picture, a png.
        options: the run's options.
        history: metrics of the training by step; or none.
        evaluated: mean return after the last step, if there was an evaluation.
    """
    figure, panels = plots._figure(1 + len(options.outer.learn))
    step = torch.tensor([row["step"] for row in history])
    score = "return" if any(row.get("episodes", 0) for row in history) else "reward"
    told = {"return": "return of an episode", "reward": "reward per step"}[score]
    if history:
        curve = torch.tensor([row[score] for row in history], dtype=torch.float64)
        panels[0].plot(step, curve, color=_COLORS[0], alpha=0.25, linewidth=1.0)
        calm = plots.smoothed(curve, max(1, len(curve) // 30))
        panels[0].plot(step, calm, color=_COLORS[0], linewidth=2.0)
        if evaluated is not None:
            panels[0].axhline(evaluated, color=plots._INK, linewidth=1.0, linestyle="--")
    title = f"{options.env}, {options.algorithm}"
    plots.furnish(panels[0], title if history else "no steps yet", "meta-step", told)
    for name, panel in zip(options.outer.learn, panels[1:], strict=True):
        rows = [row[name] if isinstance(row[name], list) else [row[name]] for row in history]
        for k, color in zip(range(len(rows[0]) if rows else 0), _COLORS * 99, strict=False):
            panel.plot(step, [row[k] for row in rows], color=color, linewidth=2.0)
        if name in _REFERENCES:
            height = getattr(options.outer, _REFERENCES[name])
            panel.axhline(height, color=plots._INK, linewidth=1.0, linestyle=":")
        plots.furnish(panel, name, "meta-step", "")
    plots.write(path, figure)
