"""Levels and ways on them: what is drawn is what happened, by hand and by the environment."""

from typing import Any

import numpy as np
import pytest
import torch

from paramtree import envs, rng, tree
from paramtree.cli import plots
from paramtree.model import Model

UP, DOWN, LEFT, RIGHT, STAY = range(5)
COLLECTING = 9  # with eighteen actions the moves that collect come after nine that don't


def level(n_actions=5, respawn=0.0):
    """S . A      on a grid of side 3, of at most 4: cells are numbered by the side of its own.
    # B .      B ends the episode."""
    walls = torch.zeros(16, dtype=torch.bool)
    walls[3] = True
    return envs.grid_level(
        walls=walls,
        side=3,
        start=0,
        max_steps=50,
        reward=torch.tensor([1.0, -0.5]),
        p_terminate=torch.tensor([0.0, 1.0]),
        p_respawn=torch.tensor([respawn, 0.0]),
        object_cell=torch.tensor([2, 4]),
        n_actions=n_actions,
    )


def played(env, level, script, n_actions, seed=0):
    """Trajectory ``[T]`` of an agent that does what a list says."""
    empty, wanted = tree.new({}), torch.tensor(script)

    def act(params, buffers, td):
        action = wanted[td["observation", "time"].clamp(max=len(script) - 1)]
        logits = 1e9 * torch.nn.functional.one_hot(action, n_actions).float()
        return tree.new({**tree.entries(td), "logits": logits}, td.batch_size), buffers

    agent = Model(lambda key: (empty, empty), act)
    state = env.reset(level, env.noise(level, rng.key(seed), (1,)))
    key = rng.key(seed + 1)
    td = envs.rollout(env, agent, empty, empty, level, state, key, len(script))[2]
    return tree.lock(td[0])


def panel() -> Any:
    from matplotlib.figure import Figure

    return Figure().subplots()


def points(axes):
    """Points of the way that is drawn, ``[T + 1, 2]``."""
    (way,) = [c for c in axes.collections if c.get_array() is not None]
    pieces = np.array(way.get_segments())
    np.testing.assert_array_equal(pieces[1:, 0], pieces[:-1, 1])  # one leads to the next
    return np.concatenate([pieces[:1, 0], pieces[:, 1]]), way


SCRIPT = [DOWN, RIGHT, RIGHT, DOWN, LEFT, UP, UP]  # the first is against the wall


def test_a_walk_is_the_first_episode():
    own = level()
    walk = plots.walk(own, played(envs.grid_world(), own, SCRIPT, 5))
    assert walk.cell.tolist() == [0, 0, 1, 2, 5, 4]
    assert walk.taken == [(3, 0), (5, 1)] and walk.over
    assert walk.reward.tolist() == [0, 0, 1, 0, -0.5]
    there = walk.things.any(-1).tolist()
    assert there == [[True, True]] * 3 + [[False, True]] * 2 + [[False, False]]
    assert walk.things[0].nonzero().tolist() == [[0, 2], [1, 4]]


def test_the_way_is_drawn_through_the_cells_and_colored_by_time():
    own = level()
    walk = plots.walk(own, played(envs.grid_world(), own, SCRIPT, 5))
    axes = panel()
    plots.draw_level(axes, own, walk)
    way, line = points(axes)
    column, row = np.array([0, 0, 1, 2, 5, 4]) % 3, np.array([0, 0, 1, 2, 5, 4]) // 3
    np.testing.assert_allclose(way, np.stack([column, row], 1))  # no cell comes twice but by rest
    assert line.get_array().tolist() == [1, 2, 3, 4, 5] and line.get_clim() == (0, 5)
    picture = np.asarray(axes.images[0].get_array())
    np.testing.assert_array_equal(picture, [[2, 0, 0], [1, 0, 0], [0, 0, 0]])
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == ["+1, 0%, 0%, taken at 3", "-0.5, 100%, 0%, taken at 5"]


def test_what_was_taken_has_a_ring_in_the_color_of_its_time():
    own = level()
    walk = plots.walk(own, played(envs.grid_world(), own, SCRIPT, 5))
    axes = panel()
    plots.draw_level(axes, own, walk)
    rings = [line for line in axes.lines if line.get_markerfacecolor() == "none"]
    assert [tuple(map(float, ring.get_xydata()[0])) for ring in rings] == [(2, 0), (1, 1)]
    assert [ring.get_marker() for ring in rings] == ["o", "s"]  # by the sign of the reward
    _, way = points(axes)
    wanted = [way.cmap(t / 5) for t in (3, 5)]
    assert [tuple(ring.get_markeredgecolor()) for ring in rings] == wanted


def test_visits_to_a_cell_lie_side_by_side_in_it():
    own = level()
    script = [RIGHT, LEFT] * 10
    walk = plots.walk(own, played(envs.grid_world(), own, script, 5))
    axes = panel()
    plots.draw_level(axes, own, walk)
    way, _ = points(axes)
    np.testing.assert_array_equal(np.round(way), [[t % 2, 0] for t in range(21)])
    assert len({tuple(point) for point in way.round(9).tolist()}) == 21


def test_with_eighteen_actions_only_some_take():
    own = level(18)
    env = envs.grid_world()
    none = plots.walk(own, played(env, own, [RIGHT, RIGHT, DOWN], 18))
    some = plots.walk(own, played(env, own, [RIGHT, COLLECTING + RIGHT, DOWN], 18))
    assert none.taken == [] and some.taken == [(2, 0)]
    assert none.cell.tolist() == some.cell.tolist() == [0, 1, 2, 5]


def test_an_object_that_is_back_is_taken_again():
    own = level(respawn=1.0)
    script = [RIGHT, RIGHT, LEFT, RIGHT, LEFT, RIGHT, LEFT, RIGHT]
    walk = plots.walk(own, played(envs.grid_world(), own, script, 5))
    assert walk.taken == [(t, 0) for t in (2, 4, 6, 8)] and float(walk.reward.sum()) == 4
    axes = panel()
    plots.draw_level(axes, own, walk)
    assert "taken 4\u00d7 from 2 on" in axes.get_legend().get_texts()[0].get_text()


@pytest.mark.parametrize("name", ["rand_tiny", "rand_small"])
def test_a_walk_among_moving_objects_is_what_the_state_says(name):
    world = envs.level_distribution(name)
    own = world.sample(rng.key(3))
    noise = world.env.noise(own, rng.key(5), (40,))
    state = world.env.reset(own, world.env.noise(own, rng.key(4), ()))
    cells, rows, gains = [int(state["cell"])], [], []
    for t, action in enumerate(rng.randint(rng.key(6), (40,), 0, 5)):
        before = state
        state, step = world.env.step(own, state, action, tree.lock(noise[t]))
        row = {"observation": before["observation"], "action": action, "next": step}
        rows.append(tree.new(row, ()))
        gains.append(float(step["reward"]))
        over = bool(step["done"])
        cells.append(int(step["observation", "image"][0].argmax()) if over else int(state["cell"]))
        if over:
            break
    walk = plots.walk(own, tree.stack(rows))
    assert walk.cell.tolist() == cells and walk.over == over
    assert [t for t, _ in walk.taken] == [t for t, gain in enumerate(gains, 1) if gain]
    worth = dict(zip(own["object_type"].tolist(), own["reward"].tolist(), strict=True))
    assert all(gains[t - 1] == worth[kind] for t, kind in walk.taken) and walk.taken
    axes = panel()
    plots.draw_level(axes, own, walk)
    assert axes.get_legend().get_texts()[0].get_text().startswith("2 \u00d7 +1, 0%, ")


def test_a_level_alone_shows_its_objects_where_they_always_lie():
    axes = panel()
    plots.draw_level(axes, level())
    at = {line.get_marker(): line.get_xydata().tolist() for line in axes.lines}
    assert at["o"] == [[2, 0]] and at["s"] == [[1, 1]]
    moving = panel()
    plots.draw_level(moving, envs.level_distribution("rand_tiny").sample(rng.key(0)))
    assert moving.get_legend().get_texts()[0].get_text() == "2 \u00d7 +1, 0%, 100%, anywhere"
    assert all(not len(line.get_xydata()) for line in moving.lines if line.get_marker() == "o")


@pytest.mark.parametrize(("first", "last"), [(1, 2.0), (0, -2.0)])
@pytest.mark.parametrize("bits", [0, 3])
def test_a_chain_leads_up_where_the_action_was_right(first, last, bits):
    own = envs.chain_level(length=3, right=1, reward=2.0, noise=0.5)
    walk = plots.walk(own, played(envs.delayed_chain(bits), own, [first, 0, 1, 1, 0], 2))
    assert walk.cell.tolist() == ([0, 3, 5, 7] if first else [0, 2, 4, 6])
    assert walk.reward[-1] == last and walk.reward[:2].abs().tolist() == [0.5, 0.5] and walk.over
    axes = panel()
    plots.draw_level(axes, own, walk)
    way, _ = points(axes)
    assert way[:, 0].tolist() == [0, 1, 2, 3] and (np.sign(way[1:, 1]) == np.sign(last)).all()
    texts = {text.get_text(): text.get_position()[1] for text in axes.texts}
    assert texts["action 1"] > 0 > texts["action 0"] and {"+2", "-2"} <= set(texts)
    (stems,) = [c for c in axes.collections if c.get_array() is None]
    heights = [piece[1][1] - piece[0][1] for piece in stems.get_segments()]
    np.testing.assert_allclose(np.array(heights) / heights[-1], walk.reward / last)


def test_two_ways_share_their_colors(tmp_path):
    own = level()
    long = plots.walk(own, played(envs.grid_world(), own, [RIGHT, LEFT] * 6, 5))
    short = plots.walk(own, played(envs.grid_world(), own, SCRIPT, 5))
    figure = plots.walks_figure(own, {"before": long, "after": short})
    assert [points(axes)[1].get_clim() for axes in figure.axes[:2]] == [(0, 12)] * 2
    notes = [axes.texts[1].get_text() for axes in figure.axes[:2]]
    assert notes == ["return 0, the first 12 steps", "return 0.5, over at step 5"]
    for name in ("a", "b"):
        plots.write(tmp_path / name, plots.walks_figure(own, {"before": long, "after": short}))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_is_no_level_is_refused():
    own = level()
    td = played(envs.grid_world(), own, SCRIPT, 5)
    with pytest.raises(ValueError, match=r"draw_level: level has batch size \[2\], expected \[\]"):
        plots.draw_level(panel(), tree.stack([own, own]))
    with pytest.raises(ValueError, match="walk: level has caught, missed, expected one of grid_"):
        plots.walk(envs.catch_level(), td)
    with pytest.raises(ValueError, match=r"td has batch size \[1, 7\], expected \[T\]"):
        plots.walk(own, tree.stack([td]))
    with pytest.raises(TypeError, match="draw_level: level is a int"):
        plots.draw_level(panel(), 3)
