import math
from functools import partial

import gymnasium
import numpy as np
import pytest
import torch
from torch.distributions import Categorical

import losses
from paramtree import check_grads, nn, rng, td_model, tree, vmap
from paramtree.envs import cart_pole, cart_pole_level, pendulum, pendulum_level, rollout

D = torch.float64
CART = {"gravity", "masscart", "masspole", "length", "force_mag", "tau"}
BOUNDS = {"theta_threshold_radians", "x_threshold"}


def gym(name, **options):
    return gymnasium.make(name, disable_env_checker=True, **options)


def real_cart(real, level):
    """A CartPole of Gymnasium's with the physics of a level."""
    own = real.unwrapped
    for key in CART | BOUNDS:
        setattr(own, key, float(level[key]))
    own.total_mass = own.masspole + own.masscart
    own.polemass_length = own.masspole * own.length
    return real


def real_pendulum(real, level):
    own = real.unwrapped
    for theirs, ours in {"g": "gravity", "m": "mass", "l": "length", "dt": "dt"}.items():
        setattr(own, theirs, float(level[ours]))
    own.max_speed, own.max_torque = float(level["max_speed"]), float(level["max_torque"])
    return real


def cart_state(observation, time=0):
    """Our state of one worker at Gymnasium's."""
    x = torch.as_tensor(np.asarray(observation), dtype=D)
    return tree.new(
        {"observation": x, "is_init": torch.tensor(time == 0), "time": torch.tensor(time)}
    )


def pendulum_state(position, time=0):
    angle, speed = torch.as_tensor(np.asarray(position), dtype=D)
    seen = torch.stack([angle.cos(), angle.sin(), speed])
    start = {"is_init": torch.tensor(time == 0), "time": torch.tensor(time)}
    return tree.new({"observation": seen, "angle": angle, "speed": speed, **start})


def drawn(values):
    return tree.new({"reset": torch.as_tensor(values, dtype=D)})


def close(ours, theirs, within=1e-6):
    return np.abs(ours.numpy() - theirs).max() < within


# ---- the same as Gymnasium's


@pytest.mark.parametrize("integrator", ["euler", "semi-implicit"])
@pytest.mark.parametrize("sutton", [False, True])
def test_a_cart_pole_that_is_pushed_at_random_is_gymnasiums(integrator, sutton):
    """1,500 steps, some seventy falls, each followed by the reset that Gymnasium makes."""
    env, level = cart_pole(integrator, sutton_barto_reward=sutton), cart_pole_level(dtype=D)
    real = gym("CartPole-v1", sutton_barto_reward=sutton)
    real.unwrapped.kinematics_integrator = integrator
    draw, falls = np.random.default_rng(0), 0
    real.reset(seed=3)
    state = cart_state(real.unwrapped.state)
    for _ in range(1500):
        action = int(draw.integers(2))
        seen, reward, terminated, truncated, _ = real.step(action)
        after, falls = real.unwrapped.state, falls + terminated
        if terminated:
            real.reset()
        noise = drawn((real.unwrapped.state + 0.05) / 0.1)
        state, step = env.step(level, state, torch.tensor(action), noise)
        assert close(step["observation"], after, 1e-12) and close(step["observation"], seen)
        assert float(step["reward"]) == reward and not truncated
        assert bool(step["terminated"]) == bool(step["done"]) == terminated
        assert bool(state["is_init"]) == terminated
        assert close(state["observation"], real.unwrapped.state, 1e-12)
    assert 40 < falls < 120


def test_a_cart_pole_that_is_balanced_is_gymnasiums_and_truncated_after_500_steps():
    env, level, real = cart_pole(), cart_pole_level(dtype=D), gym("CartPole-v1")
    for seed in range(3):
        real.reset(seed=seed)
        state = cart_state(real.unwrapped.state)
        for t in range(500):
            x = real.unwrapped.state
            action = int(x[2] + 0.5 * x[3] + 0.02 * x[0] + 0.05 * x[1] > 0)
            _, reward, terminated, truncated, _ = real.step(action)
            state, step = env.step(level, state, torch.tensor(action), drawn([0.1, 0.2, 0.3, 0.9]))
            assert close(step["observation"], real.unwrapped.state, 1e-9)
            assert float(step["reward"]) == reward == 1.0
            assert bool(step["terminated"]) == terminated is False
            assert bool(step["done"]) == truncated == (t == 499)
        assert state["time"] == 0 and state["is_init"]
        assert close(state["observation"], np.array([-0.04, -0.03, -0.02, 0.04]), 1e-12)


def test_a_fall_with_the_last_step_of_the_time_limit_is_a_termination():
    env, level = cart_pole(), cart_pole_level(max_steps=7, dtype=D)
    state = cart_state([0.0, 0.0, 0.2, 3.0], time=6)
    _, step = env.step(level, state, torch.tensor(1), drawn([0.5] * 4))
    assert step["done"] and step["terminated"]


@pytest.mark.parametrize("g", [10.0, 9.81])
def test_a_pendulum_is_gymnasiums(g):
    """Torques beyond their bound among them; five episodes, each truncated after 200 steps."""
    env, level = pendulum(), pendulum_level(gravity=g, dtype=D)
    real, draw = gym("Pendulum-v1", g=g), np.random.default_rng(1)
    held = {"torque": 0, "speed": 0, "turned": 0}
    for seed in range(5):
        real.reset(seed=seed)
        state = pendulum_state(real.unwrapped.state)
        scale = 1.0 if seed < 2 else 3.0  # from the third on it's driven the way that it moves
        for t in range(200):
            torque = scale * draw.normal(size=1)
            if seed > 1:
                torque = abs(torque) * np.sign(real.unwrapped.state[1])
            seen, reward, terminated, truncated, _ = real.step(torque)
            noise = drawn([0.25, 0.75])
            after, step = env.step(level, state, torch.as_tensor(torque), noise)
            angle, speed = real.unwrapped.state
            exact = np.array([np.cos(angle), np.sin(angle), speed])
            assert close(step["observation"], exact, 1e-9) and close(step["observation"], seen)
            assert abs(float(step["reward"]) - float(reward)) < 1e-9
            assert not step["terminated"] and not terminated
            assert bool(step["done"]) == truncated == (t == 199)
            if not truncated:
                assert abs(float(after["angle"]) - angle) < 1e-9
            held["torque"] += abs(torque[0]) > 2
            held["speed"] += abs(speed) == 8
            held["turned"] += abs(angle) > math.pi
            state = after
        assert state["time"] == 0 and state["is_init"]
        assert float(state["angle"]) == -math.pi / 2 and float(state["speed"]) == 0.5
    assert min(held.values()) > 50


def some_carts(n):
    key = rng.key(5)
    names = ("masscart", "masspole", "length", "force_mag", "gravity", "tau")
    own = {
        name: scale * rng.uniform(rng.fold_in(key, name), (n,), 0.5, 2.0, dtype=D)
        for name, scale in zip(names, (1.0, 0.1, 0.5, 10.0, 9.8, 0.02), strict=True)
    }
    narrow = rng.uniform(rng.fold_in(key, "x"), (n,), 0.1, 0.3, dtype=D)
    return cart_pole_level(**own, x_threshold=narrow, max_steps=torch.arange(5, 5 + n))


def some_pendulums(n):
    key = rng.key(6)
    names = ("mass", "length", "gravity", "dt", "max_speed", "max_torque")
    own = {
        name: scale * rng.uniform(rng.fold_in(key, name), (n,), 0.5, 2.0, dtype=D)
        for name, scale in zip(names, (1.0, 1.0, 10.0, 0.05, 6.0, 2.0), strict=True)
    }
    return pendulum_level(**own, max_steps=torch.arange(5, 5 + n))


def test_levels_are_gymnasiums_with_other_physics():
    carts, poles, draw = some_carts(6), some_pendulums(6), np.random.default_rng(2)
    start = draw.normal(size=(6, 4)) * [0.1, 1.0, 0.15, 1.0]
    push, torque = draw.integers(2, size=6), 3 * draw.normal(size=6)
    state = tree.stack([cart_state(x) for x in start])
    noise = tree.new({"reset": torch.full((6, 4), 0.5, dtype=D)}, (6,))
    _, step = cart_pole().step(carts, state, torch.as_tensor(push), noise)
    ended = []
    for i in range(6):
        real = real_cart(gym("CartPole-v1"), carts[i])
        real.reset()
        real.unwrapped.state = start[i]
        ended.append(real.step(int(push[i]))[2])
        assert close(step["observation"][i], real.unwrapped.state, 1e-12)
    assert step["terminated"].tolist() == ended and 0 < sum(ended) < 6
    position = draw.normal(size=(6, 2)) * [3.0, 8.0]
    state = tree.stack([pendulum_state(x) for x in position])
    noise = tree.new({"reset": torch.full((6, 2), 0.5, dtype=D)}, (6,))
    after, step = pendulum().step(poles, state, torch.as_tensor(torque)[:, None], noise)
    for i in range(6):
        real = real_pendulum(gym("Pendulum-v1"), poles[i])
        real.reset()
        real.unwrapped.state = position[i]
        reward = real.step(torque[i : i + 1])[1]
        assert abs(float(step["reward"][i]) - float(reward)) < 1e-9
        assert abs(float(after["angle"][i]) - real.unwrapped.state[0]) < 1e-12
        assert abs(float(after["speed"][i]) - real.unwrapped.state[1]) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_first_states_have_gymnasiums_distribution(dtype):
    n = 20_000
    env, level = cart_pole(), cart_pole_level(dtype=dtype)
    noise = env.noise(level, rng.key(0), (n,))
    state = env.reset(level, noise)
    x = state["observation"].double()
    assert state["observation"].dtype == dtype and state["is_init"].all()
    assert x.min() >= -0.05 and x.max() <= 0.05 and not state["time"].any()
    share = torch.histc(x, 10, -0.05, 0.05) / x.numel()
    assert (share - 0.1).abs().max() < 4.5 * (0.09 / x.numel()) ** 0.5
    assert (torch.corrcoef(x.mT) - torch.eye(4)).abs().max() < 4.5 / n**0.5
    env, level = pendulum(), pendulum_level(dtype=dtype)
    state = env.reset(level, env.noise(level, rng.key(1), (n,)))
    for name, bound in (("angle", math.pi), ("speed", 1.0)):
        assert state[name].abs().max() <= bound
        share = torch.histc(state[name].double(), 10, -bound, bound) / n
        assert (share - 0.1).abs().max() < 4.5 * (0.09 / n) ** 0.5
    pair = torch.stack([state["angle"], state["speed"]]).double()
    assert torch.corrcoef(pair)[0, 1].abs() < 4.5 / n**0.5
    seen = torch.stack([state["angle"].cos(), state["angle"].sin(), state["speed"]], -1)
    assert torch.equal(state["observation"], seen)


# ---- many at once, and what is done with them

LINEAR = td_model(nn.linear(4, 2), "observation", "logits")
WORLDS = {
    "cart_pole": (cart_pole(), some_carts, LINEAR, Categorical),
    "pendulum": (
        pendulum(),
        some_pendulums,
        td_model(
            nn.sequential(
                linear=nn.linear(3, 2), parts=lambda x: (4 * x[..., :1], x[..., 1:].exp())
            ),
            "observation",
            ["loc", "scale"],
        ),
        partial(losses.tanh_normal, low=-2.0, high=2.0),
    ),
}


def double(params):
    return tree.map(lambda x: x.double(), params)


@pytest.mark.parametrize("name", WORLDS)
def test_stacked_vmapped_and_looped_rollouts_agree(name):
    env, make, model, dist_class = WORLDS[name]
    levels, keys = make(3), rng.split(rng.key(1), 3)
    params, buffers = model.init(rng.key(2))
    params = double(params)
    states = env.reset(levels, env.noise(levels, rng.fold_in(keys, "reset"), (3, 5)))
    assert states.batch_size == (3, 5)

    def run(level, state, key):
        return rollout(env, model, params, buffers, level, state, key, 12, dist_class)[::2]

    after, td = run(levels, states, keys)
    mapped = vmap(run)(levels, states, keys)
    assert td.batch_size == (3, 5, 12) and td["next", "done"].any()
    assert td["action"].shape == ((3, 5, 12) if name == "cart_pole" else (3, 5, 12, 1))
    for i in range(3):
        alone = run(levels[i], states[i], keys[i])
        for part, rows, lanes in zip(alone, (after, td), mapped, strict=True):
            assert tree.allclose(part, rows[i], atol=1e-12)
            assert tree.allclose(part, lanes[i], atol=1e-12)
    same = td["next", "observation"][:, :, :-1] == td["observation"][:, :, 1:]
    assert torch.equal(same.all(-1), ~td["next", "done"][:, :, :-1])
    assert torch.equal(td["is_init"][:, :, 1:], td["next", "done"][:, :, :-1])


def test_gradients_with_respect_to_the_physics_are_right():
    """Through a swing of fifteen steps, and a fall's last state."""
    env, key = pendulum(), rng.key(3)
    level = tree.map(lambda x: x.clone(), pendulum_level(max_speed=4.0, dtype=D))
    numbers = tree.exclude(level, "max_steps")
    torques = rng.normal(key, (15, 1), std=2.0, dtype=D)

    def earned(numbers, torques):
        level = tree.new({**tree.entries(numbers), "max_steps": torch.tensor(200)})
        noise = tree.new({"reset": torch.tensor([0.2, 0.9], dtype=D)})
        state, total = env.reset(level, noise), 0.0
        for torque in torques:
            state, step = env.step(level, state, torque, noise)
            total = total + step["reward"]
        return total

    check_grads(earned, numbers, torques)
    env = cart_pole()
    numbers = tree.exclude(cart_pole_level(dtype=D), "max_steps")

    def reached(numbers):
        level = tree.new({**tree.entries(numbers), "max_steps": torch.tensor(500)})
        noise = tree.new({"reset": torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=D)})
        state = env.reset(level, noise)
        for push in (1, 0, 1, 1, 1, 0):
            state, step = env.step(level, state, torch.tensor(push), noise)
        return (step["observation"] * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum()

    check_grads(reached, numbers)


@pytest.mark.parametrize("name", WORLDS)
def test_compiled_is_the_same(name):
    env, make, model, dist_class = WORLDS[name]
    level, (params, buffers) = make(2), model.init(rng.key(2))
    params = double(params)

    def run(params, level, key):
        state = env.reset(level, env.noise(level, key, (2, 3)))
        return rollout(env, model, params, buffers, level, state, key, 3, dist_class)[2]

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    args = params, level, rng.split(rng.key(0), 2)
    assert tree.allclose(compiled(*args), run(*args), atol=1e-12)


def test_inputs_stay_as_they_are(untouched):
    for env, make, model, dist_class in WORLDS.values():
        level, (params, buffers) = make(2), model.init(rng.key(2))
        params = double(params)
        state = env.reset(level, env.noise(level, rng.key(0), (2, 3)))
        with untouched(level, params, state):
            after, _, td = rollout(
                env, model, params, buffers, level, state, rng.key(1), 9, dist_class
            )
        assert all(part.is_locked for part in (level, state, after, td))


def test_a_level_that_was_changed_is_another():
    env, level = cart_pole(), cart_pole_level(dtype=D)
    state = cart_state([0.0, 0.0, 0.1, 0.0])
    heavy = tree.replace(level, {"gravity": torch.tensor(20.0, dtype=D)})
    steps = [
        env.step(x, state, torch.tensor(0), drawn([0.5] * 4))[1]["observation"]
        for x in (level, heavy, cart_pole_level(gravity=20.0, dtype=D))
    ]
    assert not torch.equal(steps[0], steps[1]) and torch.equal(steps[1], steps[2])


def test_an_action_of_another_dtype_leaves_the_levels():
    env, level = pendulum(), pendulum_level()
    state = env.reset(level, env.noise(level, rng.key(0), (4,)))
    action = torch.full((4, 1), 0.3, dtype=D)
    after, step = env.step(level, state, action, env.noise(level, rng.key(1), (4,)))
    assert after["observation"].dtype == step["reward"].dtype == torch.float32


# ---- what is refused


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="cart_pole: integrator is 'rk4', expected 'euler' or"):
        cart_pole("rk4")
    with pytest.raises(TypeError, match="cart_pole: sutton_barto_reward is a float, expected a"):
        cart_pole(sutton_barto_reward=1.0)
    for make in (cart_pole_level, pendulum_level):
        name = make.__name__
        with pytest.raises(ValueError, match=f"{name}: length holds -1.0, expected values above 0"):
            make(length=torch.tensor([1.0, -1.0]))
        with pytest.raises(ValueError, match=f"{name}: max_steps holds 0, expected values at leas"):
            make(max_steps=0)
        with pytest.raises(TypeError, match=f"{name}: gravity is torch.int64, expected floats"):
            make(gravity=torch.tensor(9))
        with pytest.raises(TypeError, match=f"{name}: gravity is a str, expected a number or a"):
            make(gravity="9.8")
        with pytest.raises(TypeError, match=f"{name}: gravity is torch.float32 and length is tor"):
            make(gravity=torch.ones(2), length=torch.ones(2, dtype=D))
        with pytest.raises(ValueError, match=r"shapes are gravity \(2,\), length \(3,\), expected"):
            make(gravity=torch.ones(2), length=torch.ones(3))
        with pytest.raises(TypeError, match=f"{name}: max_steps is a float, expected an int"):
            make(max_steps=2.0)
        with pytest.raises(TypeError, match=f"{name}: max_steps is torch.int32, expected torch.in"):
            make(max_steps=torch.tensor(2, dtype=torch.int32))
    env, level = cart_pole(), cart_pole_level(gravity=torch.ones(3))
    with pytest.raises(ValueError, match=r"cart_pole.noise: shape is \(2, 5\), expected it to be"):
        env.noise(level, rng.key(0), (2, 5))
    with pytest.raises(ValueError, match="cart_pole: the level has no force_mag, expected one of"):
        env.noise(pendulum_level(), rng.key(0), (5,))
    noise = env.noise(level, rng.key(0), (3, 5))
    state = env.reset(level, noise)
    with pytest.raises(TypeError, match="cart_pole.step: action is torch.float32, expected torch."):
        env.step(level, state, torch.zeros(3, 5), noise)
    with pytest.raises(ValueError, match=r"step: action has shape \(5,\), expected \(3, 5\) \(the"):
        env.step(level, state, torch.zeros(5, dtype=torch.int64), noise)
    with pytest.raises(ValueError, match=r"step: noise has batch size \(3,\), expected \(3, 5\)"):
        env.step(level, state, torch.zeros(3, 5, dtype=torch.int64), noise[:, 0])
    env, level = pendulum(), pendulum_level()
    noise = env.noise(level, rng.key(0), (5,))
    state = env.reset(level, noise)
    with pytest.raises(TypeError, match="pendulum.step: action is torch.int64, expected floats"):
        env.step(level, state, torch.zeros(5, 1, dtype=torch.int64), noise)
    with pytest.raises(ValueError, match=r"pendulum.step: action has shape \(5,\), expected \(5, "):
        env.step(level, state, torch.zeros(5), noise)


def test_levels_take_their_dtype_and_device_from_what_is_given():
    level = cart_pole_level(length=torch.ones(3, dtype=D))
    assert level.batch_size == (3,) and level["gravity"].dtype == D
    assert level["max_steps"].dtype == torch.int64 and level["max_steps"].shape == (3,)
    assert cart_pole_level()["gravity"].dtype == torch.float32
    assert cart_pole_level(length=torch.ones(3, dtype=D), dtype=torch.float32)["length"].dtype == (
        torch.float32
    )
    ghost = pendulum_level(mass=torch.ones(2, 3, device="meta"))
    assert ghost["length"].is_meta and ghost.batch_size == (2, 3)
    mapped = vmap(lambda x: cart_pole_level(length=x))(torch.ones(4))
    assert mapped.batch_size == (4,) and mapped["gravity"].shape == (4,)
