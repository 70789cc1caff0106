"""Spaces of Gymnasium: what is seen as trees and tensors, and what is done as arrays."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.distributions import Bernoulli, Categorical, Independent, OneHotCategorical

import losses
from tests.paramtree.interop.counters import MODES, counters, likes, play


def test_discrete_actions_that_do_not_start_at_0():
    uniform = lambda x: {"logits": torch.zeros(*x.batch_size, 3)}  # noqa: E731
    td, taken = likes(spaces.Discrete(3, start=5), uniform)
    assert set(td["action"].flatten().tolist()) == {0, 1, 2}
    assert (td["action"] + 5).tolist() == taken
    one_hot, same = likes(spaces.Discrete(3, start=5), uniform, OneHotCategorical)
    assert torch.equal(one_hot["action"].argmax(-1), td["action"]) and same == taken


def test_an_action_that_is_not_there_is_told_of():
    more = lambda x: {"logits": torch.tensor([-9e9, 0.0, -9e9, 0.0]).expand(*x.batch_size, 4)}  # noqa: E731
    with pytest.raises(ValueError, match="action 3 is not there, expected one from 0 of Discrete"):
        likes(spaces.Discrete(3), more)


def test_several_discrete_and_binary_actions():
    def several(logits):
        return Independent(Categorical(logits=logits, validate_args=False), 1, validate_args=False)

    logits = torch.tensor([[0.0, 0.0, -torch.inf], [0.0, 0.0, 0.0]])
    model = lambda x: {"logits": logits.expand(*x.batch_size, 2, 3)}  # noqa: E731
    space = spaces.MultiDiscrete([2, 3], start=[0, 10])
    td, taken = likes(space, model, several)
    assert td["action"].shape == (3, 14, 2)
    assert (td["action"] + torch.tensor([0, 10])).tolist() == [[list(a) for a in w] for w in taken]

    def binary(logits):
        return Independent(Bernoulli(logits=logits, validate_args=False), 1, validate_args=False)

    chances = lambda x: {"logits": torch.zeros(*x.batch_size, 4)}  # noqa: E731
    td, taken = likes(spaces.MultiBinary(4), chances, binary)
    assert np.array_equal(td["action"].numpy(), np.array(taken))
    assert taken[0][0].dtype == np.int8


def test_boxes_hold_and_stretch_actions():
    box = spaces.Box(np.array([-1.0, 2.0]), np.array([3.0, 4.0]), dtype=np.float64)
    wide = lambda x: {  # noqa: E731
        "loc": torch.zeros(*x.batch_size, 2),
        "scale": torch.full((*x.batch_size, 2), 2.0),
    }
    td, taken = likes(box, wide, losses.independent_normal)
    drawn, got = td["action"].numpy(), np.array(taken)
    assert np.abs(got - np.clip(drawn, box.low, box.high)).max() < 1e-6
    assert (np.abs(got - drawn) > 0.5).any() and got.dtype == np.float64
    expected = losses.independent_normal(td["loc"], td["scale"]).log_prob(td["action"])
    assert torch.allclose(td["action_log_prob"], expected)
    td, taken = likes(box, wide, losses.tanh_normal, rescale=True)
    assert (td["action"].abs() <= 1).all()
    stretched = box.low + (np.asarray(td["action"]) + 1) / 2 * (box.high - box.low)
    assert np.abs(np.array(taken) - stretched).max() < 1e-6
    td, taken = likes(box, wide, losses.independent_normal, deterministic=True)
    assert not td["action"].any() and (np.array(taken) == [0.0, 2.0]).all()
    whole = spaces.Box(0, 5, (2,), dtype=np.uint8)
    _, taken = likes(whole, wide, losses.independent_normal)
    assert taken[0][0].dtype == np.uint8 and max(map(max, taken[0])) > 1


@pytest.mark.parametrize("mode", MODES)
def test_trees_of_observations(mode):
    shown = spaces.Dict(
        {
            "image": spaces.Box(0, 255, (2, 2), np.uint8),
            "parts": spaces.Tuple([spaces.Discrete(99), spaces.MultiBinary(2)]),
            "deep": spaces.Dict({"x": spaces.Box(-np.inf, np.inf, (), np.float64)}),
            "several": spaces.MultiDiscrete([99, 99]),
        }
    )

    def show(episode, time):
        return {
            "image": np.full((2, 2), 10 * episode + time, np.uint8),
            "parts": (np.int64(time), np.array([0, 1], np.int8)),
            "deep": {"x": np.array(episode + 0.25)},
            "several": np.array([episode, time]),
        }

    td = play(counters(mode, shown=shown, show=show))[2]
    plain = play(counters(mode))[2]
    for part, other in ((td, plain), (td["next"], plain["next"])):
        episode, time = other["observation"].unbind(-1)
        seen = part["observation"]
        assert seen["image"].dtype == torch.uint8 and seen["image"].shape == (3, 14, 2, 2)
        assert torch.equal(seen["image"][..., 0, 1].float(), 10 * episode + time)
        assert torch.equal(seen["parts", "0"].float(), time)
        assert seen["parts", "1"].dtype == torch.int8 and (seen["parts", "1"][..., 1] == 1).all()
        assert seen["deep", "x"].dtype == torch.float32
        assert torch.equal(seen["deep", "x"], episode + 0.25)
        assert torch.equal(seen["several"].float(), other["observation"])
