"""Films: their moments, their frames, and what a scene shows at each."""

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from paramtree import envs, rng, tree
from paramtree.cli import plots
from paramtree.model import Model


def frames(gif):
    """All frames of a film, ``[n, height, width, 3]``, and the milliseconds that each stays."""
    image, found, pauses = Image.open(io.BytesIO(gif)), [], []
    for k in range(getattr(image, "n_frames", 1)):
        image.seek(k)
        found.append(np.asarray(image.convert("RGB")))
        pauses.append(image.info["duration"])
    return np.stack(found), pauses


def panel() -> Any:
    from matplotlib.figure import Figure

    return Figure().subplots()


def trajectory(observation, reward, done):
    """``[T]``, from an observation more than there are rewards."""
    x = torch.tensor(observation)
    length = len(reward)
    following = {
        "observation": x[1:],
        "reward": torch.tensor(reward),
        "done": torch.tensor(done),
    }
    td = {"observation": x[:-1], "action": torch.zeros(length), "next": following}
    return tree.new({**td, "next": tree.new(following, (length,))}, (length,))


def walks(count):
    """Two ways on one level: of nobody in particular, and of who goes to the right."""
    world = envs.level_distribution("small")
    level, empty, found = world.sample(rng.key(3)), tree.new({}), []
    for bias in (0.0, 9.0):

        def act(params, buffers, td, bias=bias):
            logits = torch.zeros((*td.batch_size, 5)) + torch.tensor([0, 0, 0, bias, 0])
            return tree.new({**tree.entries(td), "logits": logits}, td.batch_size), buffers

        agent = Model(lambda key: (empty, empty), act)
        state = world.env.reset(level, world.env.noise(level, rng.key(1), (1,)))
        td = envs.rollout(world.env, agent, empty, empty, level, state, rng.key(2), count)[2]
        found.append(plots.walk(level, tree.lock(td[0])))
    return level, found


def test_an_episode_ends_where_it_is_done_and_has_its_last_observation():
    td = trajectory([[0.0], [1.0], [2.0], [3.0]], [1.0, 2.0, 3.0], [False, True, False])
    episode = plots.first_episode(td)
    assert episode.observation.tolist() == [[0.0], [1.0], [2.0]] and episode.over
    assert episode.reward.tolist() == [1.0, 2.0] and len(episode.action) == 2
    going = plots.first_episode(tree.lock(td[2:]))
    assert going.observation.tolist() == [[2.0], [3.0]] and not going.over


@pytest.mark.parametrize(
    ("lengths", "most", "wanted"),
    [([2, 3], 9, [0, 1, 2, 3]), ([7], 3, [0, 3, 6, 7]), ([8], 4, [0, 2, 4, 6, 8])],
)
def test_moments_are_all_or_evenly_apart(lengths, most, wanted):
    assert plots.moments(lengths, most) == wanted


def test_a_film_has_a_frame_a_moment_and_shows_two_agents_that_differ():
    level, (before, after) = walks(12)
    scenes = {t: plots.level_scene(level, x) for t, x in {"a": before, "b": after}.items()}
    moments = plots.moments([len(before.reward), len(after.reward)])
    gif = plots.film(scenes, moments, pause=80)
    assert plots.film(scenes, moments, pause=80) == gif and len(gif) < 1_000_000
    pictures, pauses = frames(gif)
    assert len(pictures) == len(moments) == 13
    assert pauses == [80] * 12 + [1500]
    middle = pictures.shape[2] // 2
    left, right = pictures[:, 40:-40, :middle], pictures[:, 40:-40, middle:]
    assert (left[0] == right[0]).all()  # the same level, and the same start
    assert (left[-1] != right[-1]).any()
    assert all((pictures[k] != pictures[k + 1]).any() for k in range(12))


def test_a_scene_shows_the_agent_and_what_is_left_at_a_moment():
    level = envs.grid_level(
        walls=torch.zeros(9, dtype=torch.bool),
        side=3,
        start=0,
        max_steps=9,
        reward=torch.tensor([2.0]),
        p_terminate=torch.zeros(1),
        p_respawn=torch.zeros(1),
        object_cell=torch.tensor([1]),
    )
    index = torch.tensor([0 + 9, 1, 4])  # it takes the object with its first step
    seen = {"index": index, "time": torch.arange(3)}
    following = {
        "observation": tree.new({n: x[1:] for n, x in seen.items()}, (2,)),
        "reward": torch.tensor([2.0, 0.0]),
        "done": torch.tensor([False, False]),
    }
    td = {"observation": tree.new({n: x[:-1] for n, x in seen.items()}, (2,))}
    td |= {"action": torch.tensor([3, 1]), "next": tree.new(following, (2,))}
    axes = panel()
    turn = plots.level_scene(level, plots.walk(level, tree.new(td, (2,))))(axes)
    (thing,) = [line for line in axes.lines if line.get_color() == "#0072B2"]
    (agent,) = [line for line in axes.lines if line.get_color() == "#333333"]
    for moment, left, cell, text in (
        (0, [[1, 0]], [0, 0], "step 0, return 0"),
        (1, [], [1, 0], "step 1, return 2"),
        (2, [], [1, 1], "step 2, return 2"),
        (9, [], [1, 1], "step 2, return 2"),  # it is as far as it goes
    ):
        turn(moment)
        assert thing.get_xydata().tolist() == left and agent.get_xydata().tolist() == [cell]
        assert axes.get_xlabel() == text


def test_a_chain_is_a_scene_too():
    own = envs.chain_level(length=2, right=0)
    walk = plots.Walk(
        torch.tensor([0, 3, 5]), torch.zeros(3, 0, 0), [], torch.tensor([0.0, 1.0]), True
    )
    axes = panel()
    turn = plots.level_scene(own, walk)(axes)
    turn(2)
    (agent,) = [line for line in axes.lines if line.get_color() == "#333333"]
    assert agent.get_xydata()[0][0] == 2 and agent.get_xydata()[0][1] > 0
    assert axes.get_xlabel() == "over at step 2, return 1"


def test_the_pole_leans_as_its_angle_says():
    lean = math.radians(30)
    episode = plots.Episode(
        torch.tensor([[0.5, 0.0, lean, 0.0], [-1.0, 0.0, 0.0, 0.0]]),
        torch.zeros(1),
        torch.ones(1),
        True,
    )
    axes = panel()
    turn = plots.SCENES["CartPole"](episode)(axes)
    (pole,) = [line for line in axes.lines if line.get_linewidth() == 6.0]
    turn(0)
    (x0, y0), (x1, y1) = pole.get_xydata()
    (cart,) = axes.patches
    assert x0 == pytest.approx(0.5) == pytest.approx(cart.get_x() + cart.get_width() / 2)
    assert math.atan2(x1 - x0, y1 - y0) == pytest.approx(lean)  # to the right for angles above 0
    turn(1)
    (x0, _), (x1, _) = pole.get_xydata()
    assert (x0, x1) == (-1, -1) and axes.get_xlabel() == "over at step 1, return 1"


def test_the_pendulum_stands_where_the_cosine_is_1():
    angles = [0.0, math.pi, math.pi / 2]
    seen = torch.tensor([[math.cos(x), math.sin(x), 0.0] for x in angles])
    axes, episode = panel(), plots.Episode(seen, torch.zeros(2), -torch.ones(2), False)
    turn = plots.SCENES["Pendulum"](episode)(axes)
    (rod,) = [line for line in axes.lines if line.get_linewidth() == 9.0]
    for moment, tip in enumerate([(0, 1), (0, -1), (-1, 0)]):
        turn(moment)
        np.testing.assert_allclose(rod.get_xydata()[1], tip, atol=1e-6)
