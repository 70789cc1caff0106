"""Delayed chain, one agent, in plain Python: a position on one of two chains.

A world is a dictionary: ``length``, ``right`` (0, 1, or -1 where each episode draws it and shows
it), ``reward`` and ``noise``.
"""

from functools import cache


class Simulator:
    """One worker, with auto-reset; what is random comes in with a reset and each step."""

    def __init__(self, world, coin):
        self.world = world
        self.reset(coin)

    def reset(self, coin):
        self.right = coin if self.world["right"] == -1 else self.world["right"]
        self.time, self.chain = 0, None

    def index(self):
        if self.chain is None:
            return self.right if self.world["right"] == -1 else 0
        return 2 * self.time + (self.chain == "right")

    def useful_bits(self):
        return [self.right, int(self.chain == "right")]

    def step(self, action, sign, coin):
        """Reward, whether the episode is over, index, time and bits before the auto-reset."""
        if self.chain is None:
            self.chain = "right" if action == self.right else "wrong"
        self.time += 1
        done = self.time == self.world["length"]
        if done:
            reward = self.world["reward"] if self.chain == "right" else -self.world["reward"]
        else:
            reward = sign * self.world["noise"]
        seen = reward, done, self.index(), self.time, self.useful_bits()
        if done:
            self.reset(coin)
        return seen


def best_return(world, horizon, price=0.0):
    """Best expected return of an episode, a price taken off each reward.

    Goes through every action and every toss, for an agent that knows the right action.
    """
    last = min(world["length"], horizon)

    @cache
    def value(time, right, chain):
        if time == last:
            return 0.0
        options = []
        for action in (0, 1):
            own = action == right if time == 0 else chain
            if time + 1 == world["length"]:
                rewards = [world["reward"] if own else -world["reward"]]
            else:
                rewards = [world["noise"], -world["noise"]]
            after = value(time + 1, right, own)
            options.append(sum(r - price + after for r in rewards) / len(rewards))
        return max(options)

    rights = [0, 1] if world["right"] == -1 else [world["right"]]
    return sum(value(0, right, None) for right in rights) / len(rights)


def best_rate(world, horizon):
    """Best reward per step of the stream of episodes, by bisection."""
    low, high = -10.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if best_return(world, horizon, middle) > 0 else (low, middle)
    return (low + high) / 2
