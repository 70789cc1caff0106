"""The ways to differentiate through an inner loop that the tests hold against one another."""

from functools import partial

import pytest
from torch.testing import assert_close

from paramtree import tree
from paramtree.meta import checkpointed, forward_mode, truncated, unrolled
from tests.paramtree.meta.problems import PROBLEMS

EXACT = {
    "unrolled": unrolled,
    "checkpointed": checkpointed,
    "segments_of_1": partial(checkpointed, segment=1),
    "segments_of_3": partial(checkpointed, segment=3),
    "one_segment": partial(checkpointed, segment=50),
    "forward_mode": forward_mode,
    "window_of_all": lambda step, outer, steps, **more: truncated(
        step, outer, steps, window=steps, **more
    ),
}
MODES = {**EXACT, "truncated": partial(truncated, window=3)}
problems = pytest.mark.parametrize("make", PROBLEMS.values(), ids=PROBLEMS)
exact = pytest.mark.parametrize("mode", EXACT.values(), ids=EXACT)
modes = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)


def assert_same(ours, wanted, **tolerance):
    (a, structure), (b, other) = tree.flatten(ours), tree.flatten(wanted)
    assert structure == other
    for path, x, y in zip(structure.paths(), a, b, strict=True):
        assert_close(x, y, msg=lambda text, path=path: f"{path}: {text}", **tolerance)


def of(mode, problem, **options):
    return mode(problem.step, problem.outer, problem.steps, **options)
