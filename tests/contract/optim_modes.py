"""Rows of the ways to differentiate through an inner loop, in ``paramtree.meta``."""

from collections.abc import Callable
from functools import partial
from typing import Any

from paramtree import meta
from tests.contract.case import Case
from tests.paramtree.meta.problems import momentum, quadratic, warm


def mode_case(mode: str, problem: Callable[[], Any], **options: Any) -> Case:
    """Value and gradients of a mode after three steps, from hyper and the initial state."""
    p = warm(problem()._replace(steps=3))
    make = partial(getattr(meta, mode), p.step, p.outer, p.steps, argnums=(0, 1))
    return Case(f"meta.{mode}", make(**options), lambda: (p.hyper, p.state))


ROWS = [
    mode_case("unrolled", quadratic),
    mode_case("truncated", momentum, window=2),
    mode_case("checkpointed", quadratic, segment=1),
    mode_case("forward_mode", quadratic),
]
