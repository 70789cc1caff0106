"""Grid world with objects at fixed cells, one agent, in plain Python: rows and columns, no tables.

A world is a dictionary: ``walls`` (one flag per cell of the largest grid), ``side``, ``start``,
``max_steps``, ``n_objects``, ``n_actions`` (5 where it's missing), and per object ``object_cell``,
``reward``, ``p_terminate``, ``p_respawn``. Objects that are there are a tuple of bools.
"""

from functools import cache
from itertools import product

import numpy as np

UP, DOWN, LEFT, RIGHT, STAY = (-1, 0), (1, 0), (0, -1), (0, 1), (0, 0)
FIVE = [UP, DOWN, LEFT, RIGHT, STAY]
NINE = [UP, DOWN, LEFT, RIGHT, (-1, -1), (-1, 1), (1, -1), (1, 1), STAY]
MOVES = {5: FIVE, 9: NINE, 18: NINE + NINE}


def n_actions(world):
    return world.get("n_actions", 5)


def takes(world, action):
    """Whether an action collects what is on the cell that it leads to."""
    return n_actions(world) != 18 or action >= 9


def all_there(world):
    return tuple(j < world["n_objects"] for j in range(len(world["reward"])))


def index(world, cell, there):
    return cell + len(world["walls"]) * sum(2**j for j, flag in enumerate(there) if flag)


def land(world, cell, action):
    side = world["side"]
    row, column = divmod(cell, side)
    down, right = MOVES[n_actions(world)][action]
    row, column = row + down, column + right
    if not (0 <= row < side and 0 <= column < side) or world["walls"][row * side + column]:
        return cell
    return row * side + column


def collect(world, cell, there, action=-1):
    """Which objects are taken on a cell, their reward, and the chance that the episode ends."""
    at = cell if action < 0 or takes(world, action) else None
    taken = tuple(t and c == at for t, c in zip(there, world["object_cell"], strict=True))
    reward = sum(r for r, flag in zip(world["reward"], taken, strict=True) if flag)
    chance = sum(p for p, flag in zip(world["p_terminate"], taken, strict=True) if flag)
    return taken, reward, min(chance, 1.0)


class Simulator:
    """One worker, with auto-reset; random numbers come in with each step."""

    def __init__(self, world):
        self.world = world
        self.reset()

    def reset(self):
        self.cell, self.there, self.time = self.world["start"], all_there(self.world), 0

    def step(self, action, respawn, uniform):
        """Reward, done, terminated, index and time before the auto-reset.

        respawn: for each object, whether it would reappear if it were gone.
        uniform: ends the episode where it is below the chance of that.
        """
        world = self.world
        self.cell = land(world, self.cell, action)
        taken, reward, chance = collect(world, self.cell, self.there, action)
        self.there = tuple(
            j < world["n_objects"] and not taken[j] and (self.there[j] or bool(respawn[j]))
            for j in range(len(taken))
        )
        self.time += 1
        terminated = bool(uniform < chance)
        done = terminated or self.time >= world["max_steps"]
        seen = reward, done, terminated, index(world, self.cell, self.there), self.time
        if done:
            self.reset()
        return seen


def following(world, there, taken):
    """Chances of all sets of objects that may be there after a step."""
    objects = range(len(there))
    for outcome in product((False, True), repeat=len(there)):
        weight = 1.0
        for j in objects:
            absent = not there[j] and j < world["n_objects"]
            p = world["p_respawn"][j] if absent else float(there[j] and not taken[j])
            weight *= p if outcome[j] else 1.0 - p
        if weight:
            yield weight, outcome


def best_return(world, horizon, price=0.0):
    """Best expected return of an episode by going through every outcome of every step."""

    @cache
    def value(cell, there, steps):
        if steps == 0:
            return 0.0
        options = []
        for action in range(n_actions(world)):
            landed = land(world, cell, action)
            taken, reward, chance = collect(world, landed, there, action)
            after = sum(
                weight * value(landed, outcome, steps - 1)
                for weight, outcome in following(world, there, taken)
            )
            options.append(reward - price + (1.0 - chance) * after)
        return max(options)

    return value(world["start"], all_there(world), min(horizon, world["max_steps"]))


def policy_value(world, policy, gamma, cell, there, time):
    """Expected discounted return of the rest of an episode by going through every outcome.

    policy: gives the chances of all actions, of an index and a time.
    """

    @cache
    def value(cell, there, time):
        if time >= world["max_steps"]:
            return 0.0
        total = 0.0
        for action, p in enumerate(policy(index(world, cell, there), time)):
            landed = land(world, cell, action)
            taken, reward, chance = collect(world, landed, there, action)
            after = sum(
                weight * value(landed, outcome, time + 1)
                for weight, outcome in following(world, there, taken)
            )
            total += p * (reward + gamma * (1.0 - chance) * after)
        return total

    return value(cell, there, time)


def best_rate(world):
    """Best reward per step of the stream of episodes, by bisection."""
    low, high = -np.abs(world["reward"]).sum(), np.abs(world["reward"]).sum()
    for _ in range(60):
        middle = (low + high) / 2
        if best_return(world, world["max_steps"], middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2
