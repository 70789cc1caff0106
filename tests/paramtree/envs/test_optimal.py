import numpy as np
import pytest
import torch

from paramtree import rng
from paramtree.autodiff import vmap
from paramtree.envs import (
    grid_level,
    level_distribution,
    optimal_return,
    optimal_reward_rate,
)
from tests.oracles.gridworld import best_rate, best_return


def corridor(distance, max_steps, p_terminate, p_respawn, reward=1.0):
    """Agent at the left end of a row, one object so many steps to the right."""
    size = distance + 1
    walls = torch.arange(size * size) >= size
    values = torch.tensor([[reward], [p_terminate], [p_respawn]], dtype=torch.float64)
    return grid_level(
        walls=walls,
        side=size,
        start=0,
        max_steps=max_steps,
        reward=values[0],
        p_terminate=values[1],
        p_respawn=values[2],
        object_cell=torch.tensor([distance]),
    )


def test_optimal_returns_are_those_of_golden_lpg(golden_lpg, golden_level):
    names = sorted({path.split("/")[0] for path in golden_lpg if path.startswith("optimal")})
    assert names
    for name in names:
        wanted = float(golden_lpg[f"{name}/return"])
        assert optimal_return(golden_level(name), 20).item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_both_agree_with_going_through_every_outcome(make_levels, world_of, k):
    levels = make_levels(8, side=3, k=k, max_steps=6, seed=k)
    returns, rates = optimal_return(levels, 5), optimal_reward_rate(levels)
    assert returns.dtype == rates.dtype == torch.float64
    for i in range(8):
        world = world_of(levels[i])
        assert returns[i].item() == pytest.approx(best_return(world, 5), abs=1e-12)
        assert rates[i].item() == pytest.approx(best_rate(world), abs=1e-12)
    assert (returns > 0).any()


@pytest.mark.parametrize(("n_actions", "fewer"), [(9, 5), (18, 9)])
def test_other_actions_agree_with_going_through_every_outcome(
    make_levels, world_of, n_actions, fewer
):
    kind = {"side": 3, "k": 2, "max_steps": 5, "seed": 12}
    levels = make_levels(4, **kind, n_actions=n_actions)
    returns, rates = optimal_return(levels, 4), optimal_reward_rate(levels)
    for i in range(4):
        world = world_of(levels[i])
        assert returns[i].item() == pytest.approx(best_return(world, 4), abs=1e-12)
        assert rates[i].item() == pytest.approx(best_rate(world), abs=1e-12)
    least = optimal_return(make_levels(4, **kind, n_actions=fewer), 4)
    assert (returns >= least - 1e-12).all() and (returns > least + 1e-2).any()


@pytest.mark.parametrize("n_actions", [5, 9, 18])
def test_who_may_leave_an_object_walks_through_it(n_actions):
    """A penalty that always is there again lies in the only way to a reward."""
    values = torch.tensor([[-1.0, 0.9], [0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    level = grid_level(
        walls=torch.arange(9) > 2,
        side=3,
        start=0,
        max_steps=6,
        reward=values[0],
        p_terminate=values[1],
        p_respawn=values[2],
        object_cell=torch.tensor([1, 2]),
        n_actions=n_actions,
    )
    wanted = 0.9 if n_actions == 18 else 0.0
    assert optimal_return(level, 6).item() == pytest.approx(wanted, abs=1e-12)
    assert optimal_reward_rate(level).item() == pytest.approx(wanted / 2, abs=1e-12)


def test_two_objects_on_one_cell_are_taken_together(world_of):
    level = grid_level(
        walls=torch.zeros(4, dtype=torch.bool),
        side=2,
        start=0,
        max_steps=6,
        reward=torch.tensor([1.0, -0.4, 0.5], dtype=torch.float64),
        p_terminate=torch.tensor([0.2, 0.3, 0.0], dtype=torch.float64),
        p_respawn=torch.tensor([0.5, 0.3, 1.0], dtype=torch.float64),
        object_cell=torch.tensor([3, 3, 0]),
    )
    wanted = best_return(world_of(level), 6)
    assert optimal_return(level, 6).item() == pytest.approx(wanted, abs=1e-12)
    assert optimal_reward_rate(level).item() == pytest.approx(best_rate(world_of(level)), abs=1e-12)


@pytest.mark.parametrize("distance", [1, 3])
def test_rates_of_a_corridor(distance):
    d = distance
    ends = optimal_reward_rate(corridor(d, 50, 1.0, 0.0))  # d steps, then anew
    assert ends.item() == pytest.approx(1 / d, abs=1e-12)
    once = optimal_reward_rate(corridor(d, 50, 0.0, 0.0))  # then wait for the time limit
    assert once.item() == pytest.approx(1 / 50, abs=1e-12)
    again = optimal_reward_rate(corridor(d, 50, 0.0, 1.0))  # every second step from then on
    assert again.item() == pytest.approx((1 + (50 - d) // 2) / 50, abs=1e-12)
    nothing = optimal_reward_rate(corridor(d, 50, 0.5, 0.5, reward=-1.0))
    assert nothing.item() == 0
    chance = 0.25  # collected on the way there or never: the episode goes on to its limit or ends
    length = chance * d + (1 - chance) * 50
    rate = optimal_reward_rate(corridor(d, 50, chance, 0.0))
    assert rate.item() == pytest.approx(1 / length, abs=1e-12)


def test_rewards_of_any_scale():
    for scale in (1e-8, 1e6):
        rate = optimal_reward_rate(corridor(2, 30, 0.3, 0.2, reward=scale))
        one = optimal_reward_rate(corridor(2, 30, 0.3, 0.2))
        assert rate.item() == pytest.approx(scale * one.item(), rel=1e-10)


def test_negative_rates_where_loss_is_the_best():
    size, walls = 1, torch.zeros(1, dtype=torch.bool)  # nowhere to go, an object at one's feet
    values = torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64)
    level = grid_level(
        walls=walls,
        side=size,
        start=0,
        max_steps=5,
        reward=values[0],
        p_terminate=values[1],
        p_respawn=values[2],
        object_cell=torch.tensor([0]),
    )
    assert optimal_return(level, 9).item() == -3  # at steps 1, 3 and 5
    assert optimal_reward_rate(level).item() == pytest.approx(-3 / 5, abs=1e-12)


def test_the_horizon_cuts_and_so_does_the_time_limit():
    level = corridor(3, 5, 0.0, 0.0)
    assert [optimal_return(level, h).item() for h in (0, 2, 3, 9)] == [0, 0, 1, 1]
    assert optimal_return(corridor(3, 2, 0.0, 0.0), 9).item() == 0
    assert optimal_reward_rate(level, 4).item() == pytest.approx(1 / 4)
    assert optimal_reward_rate(level, 99).item() == pytest.approx(1 / 5)


def test_stacked_vmapped_and_single_levels_agree():
    levels = level_distribution("small").sample(rng.split(rng.key(8), 6).reshape(2, 3, 2))
    returns, rates = optimal_return(levels, 40), optimal_reward_rate(levels)
    assert returns.shape == rates.shape == (2, 3)
    for row in range(2):
        assert torch.allclose(vmap(lambda x: optimal_return(x, 40))(levels[row]), returns[row])
        assert torch.allclose(vmap(optimal_reward_rate)(levels[row]), rates[row])
        for i in range(3):
            assert torch.allclose(optimal_return(levels[row, i], 40), returns[row, i])
            assert torch.allclose(optimal_reward_rate(levels[row, i]), rates[row, i])


def test_levels_in_several_chunks_agree_with_one():
    levels = level_distribution("small").sample(rng.split(rng.key(8), 500))
    returns, rates = optimal_return(levels, 3), optimal_reward_rate(levels, 3)
    few = levels[[0, 1, 226, 227, 228, 455, 499]]
    assert torch.allclose(optimal_return(few, 3), returns[[0, 1, 226, 227, 228, 455, 499]])
    assert torch.allclose(optimal_reward_rate(few, 3), rates[[0, 1, 226, 227, 228, 455, 499]])


def test_a_policy_that_knows_the_rate_earns_it():
    """Simulated: to the object and back to it whenever it reappears."""
    p_end, p_again, length = 0.3, 0.2, 40
    level = corridor(1, length, p_end, p_again)
    draw, total, steps = np.random.default_rng(0), 0, 0
    for _ in range(20_000):
        there, time, done = True, 0, False
        while not done and time < length:
            time += 1
            taken, there = there, (not there) and draw.random() < p_again
            total += taken
            done = taken and draw.random() < p_end
        steps += time
    assert optimal_reward_rate(level).item() == pytest.approx(total / steps, rel=0.01)


@pytest.mark.parametrize("n_actions", [5, 18])
@pytest.mark.parametrize("best", [lambda x: optimal_return(x, 4), optimal_reward_rate])
def test_gradients_are_those_of_central_differences(make_levels, best, n_actions):
    level = make_levels(1, side=3, k=2, max_steps=5, seed=5)[0]
    names = ("walls", "side", "start", "max_steps", "object_cell", "n_objects")
    fields = {name: level[name] for name in names}

    def value(reward, p_terminate, p_respawn):
        values = {"reward": reward, "p_terminate": p_terminate, "p_respawn": p_respawn}
        return best(grid_level(**values, **fields, n_actions=n_actions))

    floats = [torch.tensor([0.7, 0.4]), torch.tensor([0.3, 0.2]), torch.tensor([0.4, 0.6])]
    points = [point.double().requires_grad_() for point in floats]
    assert torch.autograd.gradcheck(value, points)
    assert torch.autograd.gradgradcheck(value, points, atol=1e-4)


def test_inputs_stay_as_they_are(untouched):
    levels = level_distribution("small").sample(rng.split(rng.key(8), 3))
    with untouched(levels):
        optimal_return(levels, 10)
        optimal_reward_rate(levels)


def test_moving_objects_and_bad_horizons_are_refused():
    level = level_distribution("rand_small").sample(rng.key(0))
    for best in (lambda x: optimal_return(x, 5), optimal_reward_rate):
        with pytest.raises(ValueError, match="one with objects at random positions"):
            best(level)
    tabular = level_distribution("small").sample(rng.key(0))
    with pytest.raises(TypeError, match="optimal_return: horizon is 5.0, expected an int"):
        optimal_return(tabular, 5.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="optimal_return: horizon is -1, expected at least 0"):
        optimal_return(tabular, -1)
    with pytest.raises(ValueError, match="optimal_reward_rate: horizon is 0, expected at least 1"):
        optimal_reward_rate(tabular, 0)


@pytest.mark.parametrize("best", [optimal_return, optimal_reward_rate])
def test_compiled_is_the_same(make_levels, best):
    levels = make_levels(2, side=2, k=1)
    compiled = torch.compile(best, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(levels, 2), best(levels, 2))
