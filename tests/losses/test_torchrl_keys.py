"""Keys that only TorchRL writes: the mask of its padding, and the weights of its buffers."""

import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close

import losses
from tests.contract.case import D, Reducer, changed
from tests.contract.cases import LOSSES
from tests.losses.test_every_reducer import MASK, SIZE, held

every_reducer = pytest.mark.parametrize(
    "row", [row for row in LOSSES if isinstance(row, Reducer)], ids=lambda row: row.name
)
OTHER = torch.tensor([[True, False, True, True, True], [True, True, True, False, True]])
WEIGHT = torch.linspace(0.5, 2.0, 10, dtype=D).reshape(SIZE)


def same(row, one, other):
    td, hyper = held(row)
    found, wanted = (row.call(changed(td, entries), hyper) for entries in (one, other))
    assert_close(found.to_dict(), wanted.to_dict(), equal_nan=True)


@every_reducer
def test_the_mask_of_torchrls_padding_is_a_mask(row):
    same(row, {("collector", "mask"): MASK.unsqueeze(-1)}, {"mask": MASK})
    same(row, {("collector", "mask"): MASK, "mask": OTHER}, {"mask": MASK & OTHER})
    same(row, {("collector", "traj_ids"): OTHER.long()}, {})
    same(row, {"collector": WEIGHT}, {})


@every_reducer
def test_the_weight_of_a_prioritized_buffer_is_a_weight(row):
    same(row, {"priority_weight": WEIGHT.unsqueeze(-1)}, {"weight": WEIGHT})
    same(row, {"priority_weight": WEIGHT, "weight": WEIGHT.square()}, {"weight": WEIGHT.square()})


def steps(*size):
    torch.manual_seed(0)
    follows = {"reward": torch.randn(size), "action_value": torch.randn(*size, 3)}
    follows["terminated"] = torch.zeros(size).bool()
    entries = {"action_value": torch.randn(*size, 3), "action": torch.zeros(size).long()}
    return TensorDict({**entries, "next": TensorDict(follows, size)}, size)


@pytest.mark.parametrize(
    ("entries", "error", "text"),
    [
        ({("collector", "mask"): MASK.double()}, TypeError, "collector.mask has dtype float64"),
        ({("collector", "mask"): MASK[..., None, None]}, ValueError, r"collector.mask has shape"),
        ({"priority_weight": MASK}, TypeError, "priority_weight has dtype bool"),
    ],
)
def test_bad_input(entries, error, text):
    td = changed(steps(*SIZE), {k: v for k, v in entries.items() if isinstance(k, str)})
    if nested := {k[1]: v for k, v in entries.items() if isinstance(k, tuple)}:
        td.set("collector", TensorDict(nested, nested["mask"].shape))
    with pytest.raises(error, match=f"^q_learning_loss: {text}"):
        losses.q_learning_loss(td, gamma=0.9)
