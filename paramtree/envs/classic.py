"""Cart pole and pendulum, with the transitions of Gymnasium's CartPole-v1 and Pendulum-v1.

What is physical is data of the level (gravity, masses, lengths, forces, limits), so that worlds
stack, map and are differentiated like parameters. The time limit is the level's too: it ends an
episode without terminating it. The entry ``time`` of a state counts an episode's steps. Levels of
float64 give what Gymnasium computes, before it rounds its observations to float32.

Symbols: L the levels' batch size, W the workers' on each level.
"""

import math
from collections.abc import Sequence

import torch
from tensordict import TensorDict
from torch import Tensor

from .. import rng
from ..tree import entries, new
from .base import Env
from .numbers import aligned, plain_level, require_step

_Real = float | Tensor


def cart_pole(integrator: str = "euler", sutton_barto_reward: bool = False) -> Env:
    """Pole on a cart, to be kept upright by pushes from the left and from the right.

        theta'' = (g sin theta - cos theta a) / (l (4/3 - m cos^2 theta / M))
        x'' = a - m l theta'' cos theta / M,    a = (F + m l theta'^2 sin theta) / M

    with m the mass of the pole, l half its length, M the mass of pole and cart, and F the push,
    ``force_mag`` for action 1 and its negative for action 0. A step integrates over ``tau``
    seconds. An episode terminates where x or theta is beyond its threshold, on either side.

    Args:
        integrator: "euler", or "semi-implicit", which moves the positions by the new velocities.
        sutton_barto_reward: whether a step's reward is 0, and -1 where it terminates; else it is 1,
            there too.

    Returns:
        The environment, for levels of ``cart_pole_level``. Actions: 0 or 1, int64 ``[*L, *W]``.
        Observations: (x, x', theta, theta'), float ``[*L, *W, 4]``.

    Raises:
        ValueError: there is no such integrator.
        TypeError: ``sutton_barto_reward`` isn't a bool.

    Source: Barto, Sutton & Anderson (1983), Neuronlike adaptive elements that can solve difficult
    learning control problems; the equations are those of Florian (2007), Correct equations for the
    dynamics of the cart-pole system, without friction.
    """
    if integrator not in ("euler", "semi-implicit"):
        raise ValueError(
            f"cart_pole: integrator is {integrator!r}, expected 'euler' or 'semi-implicit'"
        )
    if not isinstance(sutton_barto_reward, bool):
        kind = type(sutton_barto_reward).__name__
        raise TypeError(f"cart_pole: sutton_barto_reward is a {kind}, expected a bool")

    def first(level: TensorDict, uniform: Tensor) -> dict[str, Tensor]:
        own = aligned(level, uniform.ndim - 1)
        low, high = own["low"].unsqueeze(-1), own["high"].unsqueeze(-1)
        return {"observation": low + (high - low) * uniform}

    def reset(level: TensorDict, noise: TensorDict) -> TensorDict:
        return _started(first(level, noise["reset"]), noise)

    def step(
        level: TensorDict, state: TensorDict, action: Tensor, noise: TensorDict
    ) -> tuple[TensorDict, TensorDict]:
        batch = state.batch_size
        if action.dtype != torch.int64:
            raise TypeError(
                f"cart_pole.step: action is {action.dtype}, expected torch.int64 (0 or 1)"
            )
        require_step("cart_pole.step", state, action, tuple(batch), noise)
        own, x = aligned(level, len(batch)), state["observation"]
        force = torch.where(action == 1, own["force_mag"], -own["force_mag"])
        rate = _acceleration(own, x, force)
        tau, (cart, d_cart, pole, d_pole) = own["tau"], x.unbind(-1)
        if integrator == "euler":
            cart, pole = cart + tau * d_cart, pole + tau * d_pole
        d_cart, d_pole = d_cart + tau * rate[0], d_pole + tau * rate[1]
        if integrator != "euler":
            cart, pole = cart + tau * d_cart, pole + tau * d_pole
        far = cart.abs() > own["x_threshold"]
        terminated = far | (pole.abs() > own["theta_threshold_radians"])
        fallen = terminated.to(cart.dtype)
        reward = 0.0 - fallen if sutton_barto_reward else torch.ones_like(cart)
        after = {"observation": torch.stack([cart, d_cart, pole, d_pole], -1)}
        fresh = first(level, noise["reset"])
        return _stepped(own, state, reward, terminated, after, fresh)

    def noise(level: TensorDict, key: Tensor, shape: Sequence[int]) -> TensorDict:
        return _uniform("cart_pole", level, "force_mag", key, shape, 4)

    return Env(reset, step, noise)


def pendulum() -> Env:
    """Pendulum that a weak motor is to swing up, and to hold there.

        reward = -(theta^2 + 0.1 theta'^2 + 0.001 u^2),    theta brought to [-pi, pi), 0 upright
        theta'' = 3 g / (2 l) sin theta + 3 / (m l^2) u

    with u the action, held to ``max_torque``. A step moves the speed over ``dt`` seconds, holds it
    to ``max_speed``, and moves the angle by it. Only the time limit ends an episode. The state has
    ``angle``, theta as it is, and ``speed``.

    Returns:
        The environment, for levels of ``pendulum_level``. Actions: float ``[*L, *W, 1]``.
        Observations: (cos theta, sin theta, theta'), float ``[*L, *W, 3]``.

    Source: Gymnasium's Pendulum-v1.
    """

    def first(level: TensorDict, uniform: Tensor) -> dict[str, Tensor]:
        own, sides = aligned(level, uniform.ndim - 1), (2 * uniform - 1).unbind(-1)
        return _swung(own["angle_init"] * sides[0], own["speed_init"] * sides[1])

    def reset(level: TensorDict, noise: TensorDict) -> TensorDict:
        return _started(first(level, noise["reset"]), noise)

    def step(
        level: TensorDict, state: TensorDict, action: Tensor, noise: TensorDict
    ) -> tuple[TensorDict, TensorDict]:
        batch = state.batch_size
        if not action.is_floating_point():
            raise TypeError(f"pendulum.step: action is {action.dtype}, expected floats (a torque)")
        require_step("pendulum.step", state, action, (*batch, 1), noise)
        own, angle, speed = aligned(level, len(batch)), state["angle"], state["speed"]
        torque = _held(action.squeeze(-1).to(speed.dtype), own["max_torque"])
        off = torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
        reward = -(off.square() + 0.1 * speed.square() + 0.001 * torque.square())
        pull = 3 * own["gravity"] / (2 * own["length"]) * angle.sin()
        push = 3 / (own["mass"] * own["length"].square()) * torque
        speed = _held(speed + (pull + push) * own["dt"], own["max_speed"])
        after = _swung(angle + speed * own["dt"], speed)
        fresh = first(level, noise["reset"])
        return _stepped(own, state, reward, torch.zeros_like(state["is_init"]), after, fresh)

    def noise(level: TensorDict, key: Tensor, shape: Sequence[int]) -> TensorDict:
        return _uniform("pendulum", level, "max_torque", key, shape, 2)

    return Env(reset, step, noise)


def cart_pole_level(
    *,
    gravity: _Real = 9.8,
    masscart: _Real = 1.0,
    masspole: _Real = 0.1,
    length: _Real = 0.5,
    force_mag: _Real = 10.0,
    tau: _Real = 0.02,
    theta_threshold_radians: _Real = 12 * 2 * math.pi / 360,
    x_threshold: _Real = 2.4,
    low: _Real = -0.05,
    high: _Real = 0.05,
    max_steps: int | Tensor = 500,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> TensorDict:
    """Level of ``cart_pole``, or a batch of them; what is not given is CartPole-v1's.

    Each is a number, or a tensor that broadcasts with the others to the levels' batch size:
    ``cart_pole_level(length=rng.uniform(key, (64,), 0.2, 2.0))`` are 64 levels. The names are
    Gymnasium's. To change a level ``tree.replace`` an entry.

    Args:
        gravity: float.
        masscart: float, of the cart, above 0.
        masspole: float, of the pole, above 0.
        length: float, half the pole's, above 0.
        force_mag: float, how hard a push is.
        tau: float, seconds a step, above 0.
        theta_threshold_radians: float, the largest angle on either side, at least 0.
        x_threshold: float, the largest distance on either side, at least 0.
        low: float; each of a first state's four entries is uniform between this,
        high: and this.
        max_steps: int, steps of the longest episode, at least 1.
        dtype: of the floats; default: that of the tensors given, float32 if there are none.
        device: default: that of the tensors given, torch's default device if there are none.

    Returns:
        Tree of batch size ``[*L]``, of entries ``[*L]``.

    Raises:
        ValueError: shapes don't broadcast, or a value is out of its range.
        TypeError: an argument is of another kind, or the dtypes of tensors differ.
    """
    values = {
        "gravity": gravity,
        "masscart": masscart,
        "masspole": masspole,
        "length": length,
        "force_mag": force_mag,
        "tau": tau,
        "theta_threshold_radians": theta_threshold_radians,
        "x_threshold": x_threshold,
        "low": low,
        "high": high,
    }
    positive = ("masscart", "masspole", "length", "tau")
    not_negative = ("theta_threshold_radians", "x_threshold")
    return plain_level(
        "cart_pole_level", values, max_steps, positive, not_negative, dtype=dtype, device=device
    )


def pendulum_level(
    *,
    gravity: _Real = 10.0,
    mass: _Real = 1.0,
    length: _Real = 1.0,
    dt: _Real = 0.05,
    max_speed: _Real = 8.0,
    max_torque: _Real = 2.0,
    angle_init: _Real = math.pi,
    speed_init: _Real = 1.0,
    max_steps: int | Tensor = 200,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> TensorDict:
    """Level of ``pendulum``, or a batch of them; what is not given is Pendulum-v1's.

    Numbers and tensors, and changes to a level, are as in ``cart_pole_level``.

    Args:
        gravity: float, Gymnasium's g.
        mass: float, Gymnasium's m, above 0.
        length: float, Gymnasium's l, above 0.
        dt: float, seconds a step, above 0.
        max_speed: float, the largest on either side, at least 0.
        max_torque: float, the largest on either side, at least 0.
        angle_init: float; a first angle is uniform between this and its negative.
        speed_init: float; a first speed is uniform between this and its negative.
        max_steps: int, steps of an episode, at least 1.
        dtype: of the floats; default: that of the tensors given, float32 if there are none.
        device: default: that of the tensors given, torch's default device if there are none.

    Returns:
        Tree of batch size ``[*L]``, of entries ``[*L]``.

    Raises:
        ValueError: shapes don't broadcast, or a value is out of its range.
        TypeError: an argument is of another kind, or the dtypes of tensors differ.
    """
    values = {
        "gravity": gravity,
        "mass": mass,
        "length": length,
        "dt": dt,
        "max_speed": max_speed,
        "max_torque": max_torque,
        "angle_init": angle_init,
        "speed_init": speed_init,
    }
    positive, not_negative = ("mass", "length", "dt"), ("max_speed", "max_torque")
    return plain_level(
        "pendulum_level", values, max_steps, positive, not_negative, dtype=dtype, device=device
    )


# ---- one step


def _acceleration(own: dict[str, Tensor], x: Tensor, force: Tensor) -> tuple[Tensor, Tensor]:
    """That of a cart in m/s^2 and of its pole in rad/s^2, in states ``[*L, *W, 4]``."""
    _, _, pole, d_pole = x.unbind(-1)
    cos, sin, total = pole.cos(), pole.sin(), own["masspole"] + own["masscart"]
    moment = own["masspole"] * own["length"]
    push = (force + moment * d_pole.square() * sin) / total
    inertia = own["length"] * (4.0 / 3.0 - own["masspole"] * cos.square() / total)
    of_pole = (own["gravity"] * sin - cos * push) / inertia
    return push - moment * of_pole * cos / total, of_pole


def _swung(angle: Tensor, speed: Tensor) -> dict[str, Tensor]:
    """Entries of a pendulum's state."""
    observation = torch.stack([angle.cos(), angle.sin(), speed], -1)
    return {"observation": observation, "angle": angle, "speed": speed}


def _held(x: Tensor, bound: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(x, -bound), bound)


# ---- what both have in common


def _started(position: dict[str, Tensor], noise: TensorDict) -> TensorDict:
    """State at the start of an episode."""
    batch = noise.batch_size
    time = torch.zeros(batch, dtype=torch.int64, device=position["observation"].device)
    return new({**position, "is_init": time == 0, "time": time}, batch)


def _stepped(
    own: dict[str, Tensor],
    state: TensorDict,
    reward: Tensor,
    terminated: Tensor,
    after: dict[str, Tensor],
    fresh: dict[str, Tensor],
) -> tuple[TensorDict, TensorDict]:
    """State that follows, started afresh where the episode is over, and the timestep before."""
    batch, time = state.batch_size, state["time"] + 1
    done = terminated | (time >= own["max_steps"])
    timestep = {"reward": reward, "done": done, "terminated": terminated}
    timestep["observation"] = after["observation"]
    following = {
        name: torch.where(done.unsqueeze(-1) if name == "observation" else done, fresh[name], value)
        for name, value in after.items()
    }
    time = time.masked_fill(done, 0)
    return new({**following, "is_init": done, "time": time}, batch), new(timestep, batch)


def _uniform(
    fn: str, level: TensorDict, name: str, key: Tensor, shape: Sequence[int], size: int
) -> TensorDict:
    """Numbers in [0, 1) that place a first state, for each step as one may end an episode."""
    own, batch = entries(level), tuple(level.batch_size)
    if name not in own:
        raise ValueError(f"{fn}: the level has no {name}, expected one of {fn}_level")
    if tuple(shape[: len(batch)]) != batch:
        wanted = f"it to begin with {batch} (the level's batch size)"
        raise ValueError(f"{fn}.noise: shape is {tuple(shape)}, expected {wanted}")
    return new({"reset": rng.uniform(key, (*shape, size), dtype=own[name].dtype)}, shape)
