"""What agents see of spaces, and what they do in them."""

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.distributions import Categorical
from torch.testing import assert_close

import losses
from paramtree import rng, tree
from paramtree.cli import agents
from paramtree.cli.gym_options import Networks
from paramtree.cli.outcome import Refused

NETS = Networks(hidden=(5,))
SPACES = {
    "vector": spaces.Box(-2, 2, (3,)),
    "number": spaces.Box(-2, 2, ()),
    "matrix": spaces.Box(-np.inf, np.inf, (2, 3)),
    "choice": spaces.Discrete(4, start=-1),
    "choices": spaces.MultiDiscrete([2, 4], start=[1, -3]),
    "grid of choices": spaces.MultiDiscrete([[2, 4], [3, 2]]),
    "bits": spaces.MultiBinary(3),
    "names": spaces.Dict({"b": spaces.Discrete(2), "a": spaces.Box(0, 1, (2,))}),
    "nested": spaces.Tuple([spaces.Discrete(2), spaces.Dict({"x": spaces.MultiBinary(2)})]),
}


def tensors(space, samples):
    """Observations as the environments' port gives them: a tree by name or place."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        named = space.items() if isinstance(space, spaces.Dict) else enumerate(space)
        rows = {str(n): tensors(part, [x[n] for x in samples]) for n, part in named}
        return tree.new(rows, (len(samples),))
    return torch.as_tensor(np.stack(samples))


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_an_observation_is_flattened_as_gymnasium_does(space):
    space.seed(0)
    samples = [space.sample() for _ in range(6)]
    ours = agents.flattener("x", space)(tensors(space, samples))
    wanted = np.stack([spaces.utils.flatten(space, x) for x in samples])
    assert ours.dtype == torch.float32 and ours.shape == (6, agents.n_features("x", space))
    assert_close(ours, torch.as_tensor(wanted).float())
    assert wanted.std() > 0


def test_images_are_brought_to_one():
    space = spaces.Box(0, 255, (2, 2, 3), np.uint8)
    seen = agents.flattener("x", space)(torch.full((5, 4, 2, 2, 3), 51, dtype=torch.uint8))
    assert_close(seen, torch.full((5, 4, 12), 0.2))


def test_a_view_normalizes_if_so_wished():
    space, nets = spaces.Box(-9, 9, (2,)), Networks(normalize_observations=True)
    x = 3 + 2 * rng.normal(rng.key(0), (50, 2))
    td = tree.new({"observation": x}, (50,))
    still, moving = (agents.view("x", space, nets, train=train) for train in (False, True))
    params, buffers = still.init(rng.key(1))
    after = agents.observed(moving, buffers, td)
    out = still(params, after, td)["features"]
    assert_close(out.mean(0), torch.zeros(2), rtol=0, atol=1e-3)
    assert_close(out.std(0, correction=0), torch.ones(2), rtol=0, atol=1e-3)


def test_policies_by_kind_of_space():
    td = tree.new({"features": rng.normal(rng.key(0), (4, 3))}, (4,))
    discrete = agents.ppo_policy("x", spaces.Discrete(3), 3, NETS, 1.0)
    assert discrete.dist_class is Categorical
    params, buffers = discrete.model.init(rng.key(1))
    assert discrete.model(params, buffers, td)["logits"].shape == (4, 3)
    for hidden in ((), (5,)):
        vector = agents.ppo_policy("x", spaces.Box(-1, 1, (2,)), 3, Networks(hidden), 0.3)
        params, buffers = vector.model.init(rng.key(1))
        out = vector.model(params, buffers, td)
        assert_close(out["scale"], torch.full((4, 2), 0.3))
        assert out["loc"].shape == (4, 2)
        assert params["head", "scale", "bias"].shape == (2,)
    squashed = agents.sac_policy("x", spaces.Box(-1, 3, (2,)), 3, NETS)
    params, buffers = squashed.model.init(rng.key(1))
    out = squashed.model(params, buffers, td)
    assert squashed.dist_class is losses.tanh_normal and out["loc"].shape == (4, 2)
    first, loc, scale = (
        params[path] for path in (("torso", "linear_0"), ("head", "loc"), ("head", "scale"))
    )
    hidden = torch.tanh(td["features"] @ first["weight"].mT + first["bias"])
    assert_close(out["loc"], hidden @ loc["weight"].mT + loc["bias"])
    assert_close(out["scale"], (hidden @ scale["weight"].mT + scale["bias"]).exp())


@pytest.mark.parametrize(
    ("space", "text"),
    [
        (spaces.Discrete(2), "paramtree ppo takes it"),
        (spaces.Box(-math.inf, 1, (2,)), "finite bounds; paramtree ppo takes it"),
        (spaces.Box(-1, 1, (2, 2)), "one axis with finite bounds$"),
        (spaces.MultiBinary(2), "whose actions are MultiBinary"),
    ],
)
def test_what_sac_is_not_for_is_refused(space, text):
    with pytest.raises(Refused, match=text):
        agents.sac_policy("x", space, 3, NETS)


def test_what_has_no_features_is_refused():
    space = spaces.Dict({"a": spaces.Sequence(spaces.Discrete(2))})
    with pytest.raises(Refused, match="--env is 'x', whose observations are Sequence"):
        agents.n_features("x", space)
