"""The README of the room lists what the room has, and its schedules are torch's."""

import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.testing import assert_close

from paramtree import optim, tree

README = Path(optim.__file__).with_name("README.md").read_text()
PUBLIC = {
    name
    for name, value in vars(optim).items()
    if not name.startswith("_") and not isinstance(value, ModuleType)
}


def test_every_public_name_has_its_line():
    listed = re.findall(r"^\| `(\w+)` \|", README.split("\n## All names\n")[1], re.M)
    assert sorted(listed) == sorted(PUBLIC)


def test_every_call_in_the_table_of_peers_names_something():
    section = README.split("\n| there | here |")[1].split("\n### ")[0]
    cells = [row.split(" | ")[1] for row in section.splitlines() if row.count(" | ") == 2]
    called = set(re.findall(r"(?<![\w.])(\w+)\(", " ".join(cells)))
    assert called - PUBLIC <= {"grad", "detach", "vmap", "a", "b", "f", "update"}
    assert len(called & PUBLIC) > 25


LR, N, FACTOR = 0.1, 6, 0.5
SCHEDULERS = {
    "ConstantLR": (
        lambda s, o: s.ConstantLR(o, FACTOR, N),
        optim.piecewise_constant(FACTOR * LR, {N: 1 / FACTOR}),
    ),
    "LinearLR": (lambda s, o: s.LinearLR(o, 0.2, 0.9, N), optim.linear(0.2 * LR, 0.9 * LR, N)),
    "StepLR": (
        lambda s, o: s.StepLR(o, N, FACTOR),
        optim.exponential_decay(LR, N, FACTOR, staircase=True),
    ),
    "ExponentialLR": (
        lambda s, o: s.ExponentialLR(o, FACTOR),
        optim.exponential_decay(LR, 1, FACTOR),
    ),
    "MultiStepLR": (
        lambda s, o: s.MultiStepLR(o, [2, 5], FACTOR),
        optim.piecewise_constant(LR, {2: FACTOR, 5: FACTOR}),
    ),
    "PolynomialLR": (
        lambda s, o: s.PolynomialLR(o, N, 2.0),
        optim.polynomial(LR, 0.0, 2.0, N),
    ),
    "CosineAnnealingLR": (
        lambda s, o: s.CosineAnnealingLR(o, N, 0.02),
        optim.cosine_decay(LR, N, alpha=0.02 / LR),
    ),
    "CosineAnnealingWarmRestarts": (
        lambda s, o: s.CosineAnnealingWarmRestarts(o, N // 2),
        optim.sgdr([{"init": LR, "peak": LR, "warmup_steps": 0, "decay_steps": N // 2}] * 3),
    ),
    "SequentialLR": (
        lambda s, o: s.SequentialLR(
            o, [s.LinearLR(o, 0.2, 1.0, 3), s.ExponentialLR(o, FACTOR)], [3]
        ),
        optim.join([optim.linear(0.2 * LR, LR, 3), optim.exponential_decay(LR, 1, FACTOR)], [3]),
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedules_of_the_table_are_torchs(name):
    make, ours = SCHEDULERS[name]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], LR)
    scheduler, theirs = make(torch.optim.lr_scheduler, optimizer), []
    for _ in range(N + 1):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert_close(ours(torch.arange(N + 1)), torch.tensor(theirs, dtype=torch.float64))


def test_a_product_and_a_function_of_the_count_are_schedules():
    warm, falling = optim.linear(0.5, 1.0, 4), optim.exponential_decay(LR, 1, FACTOR)
    optimizer = optim.sgd(lambda count: warm(count) * falling(count))
    params = tree.new({"x": torch.ones(2, dtype=torch.float64)})
    state = optimizer.init(params)
    for k in range(3):
        after, state = optim.step(optimizer, params, state, params)
        assert_close(after["x"], params["x"] * (1 - (0.5 + k / 8) * LR * FACTOR**k))
