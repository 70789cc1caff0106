import pytest
import torch

from paramtree import tree
from paramtree.envs import grid_level
from tests.oracles.gridworld import collect, index, land


def arguments(**changes):
    values = {
        "walls": torch.zeros(16, dtype=torch.bool),
        "side": 3,
        "start": 4,
        "max_steps": 10,
        "reward": torch.tensor([1.0, -1.0]),
        "p_terminate": torch.tensor([0.0, 0.5]),
        "p_respawn": torch.tensor([0.1, 0.2]),
        "object_cell": torch.tensor([0, 8]),
    }
    return values | changes


@pytest.mark.parametrize("n_actions", [5, 9, 18])
def test_tables_say_what_the_oracle_does(make_levels, world_of, n_actions):
    levels = make_levels(6, side=4, k=3, n_actions=n_actions)
    for i in range(6):
        world, table = world_of(levels[i]), levels[i]["table"]
        free = [c for c in range(16) if not world["walls"][c]]
        for cell in free:
            moves = [land(world, cell, action) for action in range(n_actions)]
            assert table["landing"].view(25, n_actions)[cell].tolist() == moves
            there = tuple(j < world["n_objects"] for j in range(3))
            taken, reward, chance = collect(world, cell, there)
            subset = index(world, 0, taken) // 25
            assert table["objects_at"][cell] == subset
            assert table["reward"][subset].item() == pytest.approx(reward)
            assert table["p_terminate"][subset].item() == pytest.approx(chance)
        everything = tuple(j < world["n_objects"] for j in range(3))
        assert table["start_index"] == index(world, world["start"], everything)


def test_diagonal_moves_are_blocked_by_their_target_and_the_border_alone():
    walls = torch.zeros(16, dtype=torch.bool)
    walls[[1, 3]] = True  # both neighbors of the corner, on a grid of side 3
    level = grid_level(**arguments(walls=walls, n_actions=9))
    landing = level["table", "landing"].view(16, 9)
    assert landing[0].tolist() == [0, 0, 0, 0, 0, 0, 0, 4, 0]  # past the corners of walls
    assert landing[7].tolist() == [4, 7, 6, 8, 7, 5, 7, 7, 7]  # up-left is a wall, below is nothing
    assert landing[4].tolist() == [4, 7, 4, 5, 0, 2, 6, 8, 4]
    assert landing[9:].tolist() == [[cell] * 9 for cell in range(9, 16)]
    both = grid_level(**arguments(walls=walls, n_actions=18))["table", "landing"].view(16, 2, 9)
    assert torch.equal(both[:, 0], landing) and torch.equal(both[:, 1], landing)


def test_the_five_actions_are_among_the_nine():
    names = {"walls": torch.arange(25) % 7 == 3, "side": torch.tensor([4, 5])}
    names["walls"] = names["walls"].expand(2, 25)
    five, nine = (
        grid_level(**arguments(**names, n_actions=n))["table", "landing"].view(2, 25, n)
        for n in (5, 9)
    )
    assert torch.equal(five, nine[..., [0, 1, 2, 3, 8]])


def test_chances_to_end_add_up_to_at_most_one():
    level = grid_level(**arguments(p_terminate=torch.tensor([0.75, 0.5])))
    assert level["table", "p_terminate"].tolist() == [0.0, 0.75, 0.5, 1.0]


def test_objects_that_do_not_exist_never_appear():
    level = grid_level(**arguments(n_objects=1))
    assert level["p_respawn"].tolist() == pytest.approx([0.1, 0.0])
    assert level["table", "objects_at"].nonzero().tolist() == [[0]]
    assert level["table", "full"] == 1


def test_one_level_and_a_batch_of_it_agree():
    one = grid_level(**arguments())
    two = grid_level(**arguments(walls=torch.zeros(2, 16, dtype=torch.bool)))
    assert two.batch_size == (2,)
    for leaf, row in zip(tree.leaves(one), tree.leaves(two), strict=True):
        assert torch.equal(leaf.expand_as(row), row)


def test_free_cells_end_with_the_start_and_leave_out_walls():
    walls = torch.zeros(16, dtype=torch.bool)
    walls[[1, 5]] = True
    level = grid_level(**arguments(walls=walls, object_cell=None))
    count = int(level["table", "n_free"])
    assert level["table", "free"][:count].tolist() == [0, 2, 3, 6, 7, 8, 4]


def test_gradient_reaches_rewards():
    reward = torch.tensor([1.0, -1.0], dtype=torch.float64, requires_grad=True)
    level = grid_level(**arguments(reward=reward))
    (grad,) = torch.autograd.grad(level["table", "reward"].sum(), reward)
    assert grad.tolist() == [2.0, 2.0]


def test_shapes_alone_make_a_level_of_shapes():
    level = grid_level(**arguments())
    given = {k: x.to("meta") if isinstance(x, torch.Tensor) else x for k, x in arguments().items()}
    shapes = grid_level(**given)
    for x, y in zip(tree.leaves(shapes), tree.leaves(level), strict=True):
        assert x.is_meta and x.shape == y.shape and x.dtype == y.dtype


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"walls": torch.zeros(15, dtype=torch.bool)}, ValueError, r"walls has shape \(15,\)"),
        ({"walls": torch.zeros(16)}, TypeError, "walls is torch.float32"),
        ({"reward": torch.tensor([1, 2])}, TypeError, "reward is torch.int64"),
        ({"reward": torch.zeros(13)}, ValueError, "k from 1 to 12"),
        ({"p_respawn": torch.zeros(3)}, ValueError, r"p_respawn has shape \(3,\).*\(2,\)"),
        ({"p_terminate": torch.tensor([0.0, 1.5])}, ValueError, "p_terminate holds 1.5"),
        ({"side": 5}, ValueError, "side holds 5"),
        ({"side": 2.0}, TypeError, "side is float"),
        ({"start": 9}, ValueError, "start holds 9"),
        ({"max_steps": 0}, ValueError, "max_steps holds 0"),
        ({"n_objects": 3}, ValueError, "n_objects holds 3"),
        ({"object_cell": torch.tensor([0, 9])}, ValueError, "object_cell holds 9"),
        ({"object_cell": torch.tensor([0.0, 1.0])}, TypeError, "object_cell is torch.float32"),
        ({"walls": torch.arange(16) == 4}, ValueError, "start holds 4, which is a wall"),
        ({"n_actions": 4}, ValueError, "n_actions is 4, expected 5, 9 .* or 18"),
        ({"n_actions": 9.0}, ValueError, "n_actions is 9.0, expected 5"),
        ({"walls": torch.arange(16) == 8}, ValueError, "object_cell holds 8, which is a wall"),
    ],
)
def test_bad_levels_are_refused(changes, error, words):
    with pytest.raises(error, match=f"grid_level: .*{words}"):
        grid_level(**arguments(**changes))
