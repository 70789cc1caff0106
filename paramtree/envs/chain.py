"""Delayed chains of the Learned Policy Gradient: one decision, and its reward much later.

An episode has ``length`` steps. Its first action, 0 or 1, puts the agent on one of two chains, and
no other action matters: the last step gives ``reward`` on the right chain and ``-reward`` on the
wrong one, every step before it ``noise`` or ``-noise``, by the toss of a coin.

Which action is right belongs to the level, so that an agent learns it in its lifetime. Where a
level's ``right`` is -1 each episode draws its own instead, and shows it in its first observation;
unseen, it couldn't be learned.

With t the steps so far and g = 1 on the right chain, the agent sees ``time`` = t and

- ``index`` = 2 t + g; at the start 0, or the right action where the episode draws it; or
- ``image`` = (right action, g, b_1, ..., b_n), among n random bits that are new at every step.

Symbols: L the levels' batch size, W the workers'.

Source: Oh et al. (2020), Discovering reinforcement learning algorithms, appendix. Its reproductions
differ in what they draw anew: the right action for each lifetime, or for each episode, when not all
of them show it; and in the first step, which has noise in two of three.
"""

from collections.abc import Sequence

import torch
from tensordict import TensorDict
from torch import Tensor

from .. import rng
from ..tree import entries, new
from .base import Env
from .gridlevel import align, from_bits, readable

_WORD = 32  # random bits in a word of rng.bits


def delayed_chain(n_distractors: int = 0) -> Env:
    """Delayed chain, for levels of ``chain_level``.

    Args:
        n_distractors: random bits beside the two useful ones; where it's 0 the agent sees an index.

    Returns:
        The environment. Actions: int64, 0 or 1. Observations: ``time`` int64, and ``index`` int64
        or ``image`` float32 ``[2 + n_distractors]``.

    Raises:
        ValueError: ``n_distractors`` is negative.
        TypeError: it isn't an int.
    """
    if not isinstance(n_distractors, int) or isinstance(n_distractors, bool):
        kind = type(n_distractors).__name__
        raise TypeError(f"delayed_chain: n_distractors is a {kind}, expected an int")
    if n_distractors < 0:
        raise ValueError(f"delayed_chain: n_distractors is {n_distractors}, expected at least 0")

    def seen(
        time: Tensor, index: Tensor, right: Tensor, good: Tensor, random: Tensor | None
    ) -> TensorDict:
        if random is None:
            return new({"index": index, "time": time}, time.shape)
        useful = torch.stack([right, good.to(torch.int64)], -1).to(torch.float32)
        return new({"image": torch.cat([useful, random], -1), "time": time}, time.shape)

    def start(own: dict[str, Tensor], noise: TensorDict) -> dict[str, Tensor]:
        """Right action and index of an episode's first state."""
        drawn = own["right"] < 0
        right = torch.where(drawn, noise["right"], own["right"])
        return {"right": right, "index": right * drawn}

    def reset(level: TensorDict, noise: TensorDict) -> TensorDict:
        batch = noise.batch_size
        first = start(_aligned(level, len(batch)), noise)
        time = torch.zeros_like(first["right"])
        good = torch.zeros_like(time, dtype=torch.bool)
        random = noise["bits"][..., 0, :] if n_distractors else None
        observation = seen(time, first["index"], first["right"], good, random)
        state = {"is_init": ~good, "right": first["right"], "good": good}
        return new({"observation": observation, **state}, batch)

    def step(
        level: TensorDict, state: TensorDict, action: Tensor, noise: TensorDict
    ) -> tuple[TensorDict, TensorDict]:
        _require_step(state, action, noise)
        batch, right = state.batch_size, state["right"]
        own, before = _aligned(level, len(batch)), state["observation", "time"]
        good = torch.where(before == 0, action == right, state["good"])
        time = before + 1
        done = time >= own["length"]
        sign, index = torch.where(done, 2 * good - 1, noise["sign"]), 2 * time + good
        reward = torch.where(done, own["reward"], own["noise"]) * sign
        random = noise["bits"][..., 1, :] if n_distractors else None
        timestep = {"reward": reward, "done": done, "terminated": done.clone()}
        timestep["observation"] = seen(time, index, right, good, random)
        first = start(own, noise)
        right, good = torch.where(done, first["right"], right), good & ~done
        if random is not None:
            random = torch.where(done.unsqueeze(-1), noise["bits"][..., 0, :], random)
        index, time = torch.where(done, first["index"], index), time.masked_fill(done, 0)
        after = {"is_init": done, "right": right, "good": good}
        observation = seen(time, index, right, good, random)
        return new({"observation": observation, **after}, batch), new(timestep, batch)

    def noise(level: TensorDict, key: Tensor, shape: Sequence[int]) -> TensorDict:
        batch = tuple(level.batch_size)
        if not is_chain(level):
            raise ValueError("delayed_chain: the level has no length, expected one of chain_level")
        if tuple(shape[: len(batch)]) != batch:
            wanted = f"it to begin with {batch} (the level's batch size)"
            raise ValueError(f"delayed_chain.noise: shape is {tuple(shape)}, expected {wanted}")
        words = -(-n_distractors // _WORD)  # for an observation
        drawn = rng.bits(key, (*shape, 1 + 2 * words))
        coins = {"right": drawn[..., 0] & 1, "sign": (drawn[..., 0] & 2) - 1}
        if n_distractors:
            bits = from_bits(drawn[..., 1:], _WORD).unflatten(-2, (2, words)).flatten(-2)
            coins["bits"] = bits[..., :n_distractors].to(torch.float32)  # of a start, of a step
        return new(coins, shape)

    return Env(reset, step, noise)


def chain_level(
    *,
    length: int | Tensor,
    right: int | Tensor,
    reward: float | Tensor = 1.0,
    noise: float | Tensor = 0.0,
) -> TensorDict:
    """Level of ``delayed_chain``, or a batch of them.

    Each is a number, or a tensor that broadcasts with the others to the levels' batch size.

    Args:
        length: int64, steps of an episode, at least 1.
        right: int64, the action that leads to the positive reward, 0 or 1; or -1 where each episode
            draws its own and shows it.
        reward: float, at least 0, the last step's, or its negative.
        noise: float, at least 0, any other step's, or its negative, at random.

    Returns:
        Tree of batch size ``[*L]``, of entries ``[*L]``.

    Raises:
        ValueError: shapes don't broadcast, or a value is out of its range.
        TypeError: an argument is of another kind, or the dtypes of reward and noise differ.
    """
    values = {"length": length, "right": right, "reward": reward, "noise": noise}
    given = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    dtypes = [value.dtype for value in given.values() if value.is_floating_point()]
    dtype = dtypes[0] if dtypes else torch.float32
    device = next(iter(given.values())).device if given else None
    level = {}
    for name, value in values.items():
        whole = name in ("length", "right")
        kind = torch.int64 if whole else dtype
        got = str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
        if got not in (("torch.int64", "int") if whole else (str(dtype), "float", "int")):
            wanted = "integers (torch.int64)" if whole else f"floats ({dtype}, as the first given)"
            raise TypeError(f"chain_level: {name} is {got}, expected {wanted}")
        level[name] = torch.as_tensor(value, dtype=kind, device=device)
    batch = _batch_size(level)
    bounds = {"length": (1, 2**31), "right": (-1, 1), "reward": (0, None), "noise": (0, None)}
    for name, (low, high) in bounds.items():
        _require_range(name, level[name].detach(), low, high)
    return new({name: value.expand(batch) for name, value in level.items()}, batch)


def is_chain(level: TensorDict) -> bool:
    """Whether a level is one of ``chain_level``."""
    return "length" in entries(level) and "right" in entries(level)


def best_return(level: TensorDict, horizon: int | None) -> tuple[Tensor, Tensor]:
    """Best expected return of one episode of a chain, and its length, both float64 ``[*L]``.

    The right action is seen or known and the noise is fair, so that it is the last step's reward,
    where that comes before the horizon; no action changes the length.

    Args:
        level: level of batch size ``[*L]``.
        horizon: steps after which nothing counts, or None.

    Returns:
        The return, and the smaller of the chain's length and the horizon.
    """
    own, reward = entries(level), level["reward"].to(torch.float64)
    if horizon is None:
        return reward, own["length"].to(torch.float64)
    in_time = own["length"] <= horizon
    return reward * in_time, own["length"].clamp(max=horizon).to(torch.float64)


# ---- parts ----


def _aligned(level: TensorDict, ndim: int) -> dict[str, Tensor]:
    depth = len(level.batch_size)
    return {name: align(value, depth, ndim) for name, value in entries(level).items()}


def _batch_size(level: dict[str, Tensor]) -> torch.Size:
    try:
        return torch.broadcast_shapes(*[value.shape for value in level.values()])
    except RuntimeError:
        shapes = {name: tuple(x.shape) for name, x in level.items() if x.ndim}
        got = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"chain_level: the shapes are {got}, expected them to broadcast") from None


def _require_range(name: str, value: Tensor, low: int, high: int | None) -> None:
    if not readable(value):
        return
    bad = ~(value >= low) if high is None else ~((value >= low) & (value <= high))
    if bad.any():
        got = f"{name} holds {value[bad].flatten()[0].item()}"
        wanted = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"chain_level: {got}, expected values {wanted}")


def _require_step(state: TensorDict, action: Tensor, noise: TensorDict) -> None:
    if action.dtype != torch.int64:
        got = f"action is {action.dtype}"
        raise TypeError(f"delayed_chain.step: {got}, expected torch.int64 (0 or 1)")
    for name, size in {"action": action.shape, "noise": noise.batch_size}.items():
        if size != state.batch_size:
            got = f"{name} has {'shape' if name == 'action' else 'batch size'} {tuple(size)}"
            wanted = f"{tuple(state.batch_size)} (the state's batch size)"
            raise ValueError(f"delayed_chain.step: {got}, expected {wanted}")
