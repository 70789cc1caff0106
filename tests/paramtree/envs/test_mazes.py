import pytest
import torch

from paramtree import rng
from paramtree.envs import level_distribution, optimal_return
from paramtree.envs.mazes import MAZES

ROWS = {  # MiniMax's wall maps, each row a number, its highest of 13 bits the first column
    "sixteen_rooms": "0248 0008 0240 176e 0200 0048 1add 0208 0240 0f6b 0248 0040 0208",
    "sixteen_rooms_2": "0208 0048 0248 1edd 0240 0048 17df 0248 0200 1b6f 0248 0040 0248",
    "labyrinth": "0000 0ffe 0802 0bfa 0a0a 0aea 0aaa 0aaa 088a 0ffa 0082 1ebe 0080",
    "labyrinth_flipped": "0000 0ffe 0802 0bfa 0a0a 0aea 0aaa 0aaa 0a22 0bfe 0820 0faf 0020",
    "labyrinth_2": "0800 0bfe 0a02 0afa 0a8a 02aa 1eaa 02ea 0a0a 0bfa 0802 0ffe 0000",
    "standard_maze": "0084 0ef6 0800 0ff7 0010 1fbe 0120 0c6f 0522 15ba 1488 16ee 0228",
    "standard_maze_2": "0284 0af1 0804 0ff7 0254 1ad4 0a16 0b72 093a 0daa 08aa 0aaa 0220",
    "standard_maze_3": "0140 0f5e 0850 03d5 1a14 02d6 0a92 0abb 08a8 0eae 08a2 0baa 0888",
    "small_corridor": "0000 0aaa 0aaa 0aaa 0aaa 0aaa 0ffe 0aaa 0aaa 0aaa 0aaa 0aaa 0000",
}


def walls(name):
    """Flags of the cells, row by row."""
    return [f"{int(row, 16):013b}"[c] == "1" for row in ROWS[name].split() for c in range(13)]


def distance(walls, start, goal):
    """Fewest steps from one cell to another, by breadth-first search; None where there's no way."""
    seen, edge, steps = {start}, {start}, 0
    while edge and goal not in seen:
        around = set()
        for cell in edge:
            row, column = divmod(cell, 13)
            for r, c in (
                (row - 1, column),
                (row + 1, column),
                (row, column - 1),
                (row, column + 1),
            ):
                if 0 <= r < 13 and 0 <= c < 13 and not walls[13 * r + c]:
                    around.add(13 * r + c)
        edge, steps = around - seen, steps + 1
        seen |= edge
    return steps if goal in seen else None


@pytest.mark.parametrize("name", ROWS)
def test_walls_are_those_of_minimax(name):
    dist = level_distribution(name)
    levels = dist.sample(rng.split(rng.key(0), 4))
    assert levels["walls"].tolist() == [walls(name)] * 4
    assert list(MAZES) == list(ROWS)
    assert (dist.max_steps, dist.lifetime, dist.n_states, dist.n_actions) == (50, 2500, 1352, 5)
    assert (levels["side"] == 13).all() and (levels["n_objects"] == 3).all()


def test_mazes_are_all_of_them_alike():
    dist, n = level_distribution("mazes"), 2700
    levels = dist.sample(rng.split(rng.key(1), n))
    maps = torch.tensor([walls(name) for name in ROWS])
    same = (levels["walls"].unsqueeze(1) == maps).all(-1)  # [n, 9]
    assert (same.sum(1) == 1).all()
    assert (same.sum(0) - n / 9).abs().max() < 4.5 * (n / 9) ** 0.5
    assert (dist.max_steps, dist.lifetime, dist.n_states) == (50, 2500, 1352)


def test_shortest_ways_are_those_of_a_search():
    """The best return is one object's reward exactly when the horizon is no less than its way."""
    dist = level_distribution("mazes")
    levels = dist.sample(rng.split(rng.key(2), 12))
    seen = 0
    for i in range(12):
        level = levels[i]
        ways = [
            distance(level["walls"].tolist(), int(level["start"]), cell)
            for cell in level["object_cell"].tolist()
        ]
        nearest = min([way for way in ways if way is not None], default=99)
        limit = int(level["max_steps"])
        if nearest > limit:
            assert optimal_return(level, limit).item() == 0
            continue
        seen += 1
        assert optimal_return(level, nearest - 1).item() == 0
        first = max(
            r for way, r in zip(ways, level["reward"].tolist(), strict=True) if way == nearest
        )
        assert optimal_return(level, nearest).item() == pytest.approx(first, rel=1e-6)
    assert seen > 6
