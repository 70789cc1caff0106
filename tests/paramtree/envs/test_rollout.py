from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Beta, Categorical, Independent, Normal

from paramtree import rng, tree
from paramtree.autodiff import vmap
from paramtree.envs import Env, grid_world, level_distribution, rollout
from paramtree.model import Model
from tests.oracles.gridworld import Simulator

NOTHING = tree.new({})


def policy(function):
    """Model without an init, of a function of parameters and a step that gives its outputs."""

    def apply(params, buffers, batch):
        out = function(params, batch)
        return tree.new({**tree.entries(batch), **out}, batch.batch_size), buffers

    return Model(lambda key: (NOTHING, NOTHING), apply)


def by_index(params, batch):
    return {"logits": F.embedding(batch["observation", "index"], params["weight"])}


TABLE = policy(by_index)


def table(key, dist, n=()):
    return tree.new({"weight": rng.normal(key, (*n, dist.n_states, 5))}, n)


def begin(dist, levels, workers, seed=0):
    shape = (*levels.batch_size, workers)
    return dist.env.reset(levels, dist.env.noise(levels, rng.key(seed), shape))


def cells(td, *index) -> Any:
    return td[index]


def equal(left, right):
    assert tree.paths(left) == tree.paths(right)
    rows = zip(tree.leaves(left), tree.leaves(right), strict=True)
    return all(torch.equal(a, b) for a, b in rows)


@pytest.fixture
def small():
    """Distribution, a level, state of eight workers, parameters."""
    dist = level_distribution("small")
    level = dist.sample(rng.key(2))
    return dist, level, begin(dist, level, 8), table(rng.key(3), dist)


def test_names_and_shapes(small):
    dist, level, state, params = small
    after, buffers, td = rollout(dist.env, TABLE, params, NOTHING, level, state, rng.key(0), 5)
    assert buffers is NOTHING
    assert td.batch_size == (8, 5)
    assert after.batch_size == (8,) and td.is_locked and after.is_locked
    assert sorted(td.keys()) == sorted(
        ["observation", "is_init", "action", "action_log_prob", "logits", "next"]
    )
    names = ["observation", "is_init", "reward", "done", "terminated"]
    assert sorted(tree.entries(td)["next"].keys()) == sorted(names)
    assert all(tree.entries(td)[name].batch_size == (8, 5) for name in ("next", "observation"))
    assert td["action"].dtype == td["observation", "index"].dtype == torch.int64
    assert td["next", "done"].dtype == td["next", "terminated"].dtype == torch.bool
    assert td["action_log_prob"].shape == (8, 5)
    assert td["logits"].shape == (8, 5, 5)
    assert not td["next", "is_init"].any()


def test_a_trajectory_on_levels_of_golden_lpg_follows_from_its_actions(
    golden_lpg, golden_level, world_of
):
    """Those levels have chances of 0 and 1 alone, so that actions say all."""
    env, ends = grid_world(), 0
    for name in sorted({path.split("/")[0] for path in golden_lpg if path.startswith("level")}):
        level = golden_level(name)
        state = env.reset(level, env.noise(level, rng.key(0), (6,)))
        states = level["walls"].shape[-1] * 2 ** level["reward"].shape[-1]
        params = tree.new({"weight": torch.zeros(states, 5)})
        agents = [Simulator(world_of(level)) for _ in range(6)]
        for part in range(2):  # the second goes on where the first stopped
            first = state
            state, _, td = rollout(env, TABLE, params, NOTHING, level, state, rng.key(part), 40)
            for w, agent in enumerate(agents):
                respawn = [p == 1 for p in agent.world["p_respawn"]]
                assert td["observation", "index"][w, 0] == first["observation", "index"][w]
                assert td["is_init"][w, 0] == first["is_init"][w]
                for t in range(40):
                    seen = agent.step(int(td["action"][w, t]), respawn, 0.5)
                    now = cells(td, w, t)["next"]
                    assert float(now["reward"]) == pytest.approx(seen[0])
                    assert (bool(now["done"]), bool(now["terminated"])) == seen[1:3]
                    assert now["observation", "index"] == seen[3]
                    assert now["observation", "time"] == seen[4]
                    following = cells(td, w, t + 1) if t < 39 else cells(state, w)
                    assert following["is_init"] == now["done"]
                    if not now["done"]:
                        assert following["observation", "index"] == seen[3]
                    else:
                        ends += 1
                        assert following["observation", "index"] == level["table", "start_index"]
                        assert following["observation", "time"] == 0
    assert ends > 50


@pytest.mark.parametrize("name", ["small", "rand_small"])
def test_stacked_vmapped_and_looped_rollouts_agree(name):
    dist, n = level_distribution(name), 3
    keys = rng.split(rng.key(1), n)
    levels = dist.sample(keys)
    state = begin(dist, levels, 4)
    seen = "index" if name == "small" else "image"
    size = dist.n_states or dist.observation_shape[0] * dist.observation_shape[1]
    params = tree.new({"weight": rng.normal(rng.key(3), (n, size, 5))}, (n,))

    def logits(weight, x):
        if seen == "index":
            return weight[x]
        return x.flatten(-2) @ weight

    one = policy(lambda p, x: {"logits": logits(p["weight"], x["observation", seen])})
    many = policy(
        lambda p, x: {"logits": torch.func.vmap(logits)(p["weight"], x["observation", seen])}
    )

    def run(p, level, state, key):
        after, _, td = rollout(dist.env, one, p, NOTHING, level, state, key, 30)
        return after, td

    looped = [run(params[i], levels[i], state[i], keys[i]) for i in range(n)]
    after, _, td = rollout(dist.env, many, params, NOTHING, levels, state, keys, 30)
    mapped = vmap(run)(params, levels, state, keys)
    for part, stacked in enumerate((after, td)):
        rows = tree.stack([outcome[part] for outcome in looped])
        assert equal(rows, stacked) and equal(rows, mapped[part])
    assert td["next", "done"].any()


def test_actions_have_the_policys_chances(small):
    dist, level, _, _ = small
    state = begin(dist, level, 5000)
    logits = torch.tensor([0.3, -1.0, float("-inf"), 1.2, float("-inf")])
    chosen = policy(lambda p, x: {"logits": logits.expand(*x.batch_size, 5)})
    _, _, td = rollout(dist.env, chosen, NOTHING, NOTHING, level, state, rng.key(7), 4)
    share = torch.bincount(td["action"].flatten(), minlength=5) / 20_000
    wanted = logits.softmax(-1)
    assert (share - wanted).abs().max() < 4 * 0.5 / 20_000**0.5
    assert share[2] == share[4] == 0
    expected = Categorical(logits=td["logits"]).log_prob(td["action"])
    assert torch.allclose(td["action_log_prob"], expected)
    steps = td["action"].double()
    pairs = torch.corrcoef(steps.mT) - torch.eye(4)
    assert pairs.abs().max() < 4.5 / 5000**0.5  # steps draw independently


@pytest.mark.parametrize(("uniform", "never"), [(0.0, [0, 1]), (1 - 2.0**-24, [3, 4])])
def test_first_and_last_actions_of_chance_zero_are_never_taken(small, monkeypatch, uniform, never):
    dist, level, _, _ = small
    state = begin(dist, level, 20_000)
    monkeypatch.setattr("paramtree.rng.uniform", lambda _, shape: torch.full(shape, uniform))
    logits = rng.normal(rng.key(0), (20_000, 5), std=2.0)
    logits[:, never] = -torch.inf
    model = policy(lambda p, x: {"logits": logits})
    _, _, td = rollout(dist.env, model, NOTHING, NOTHING, level, state, rng.key(0), 1)
    assert (td["action"] == 2).all()


@pytest.mark.parametrize("form", ["logits", "tensor", "tree", "function"])
def test_forms_of_a_categorical_policy(small, form):
    dist, level, state, params = small
    step = {
        "logits": lambda x: {"logits": x},
        "tensor": lambda x: {"actor_output": x.softmax(-1)},
        "tree": lambda x: {"actor_output": tree.new({"logits": x}, x.shape[:-1])},
        "function": lambda x: {"actor_output": x},
    }[form]
    dist_class = (lambda x: Categorical(logits=x)) if form == "function" else Categorical
    model = policy(lambda p, x: step(F.embedding(x["observation", "index"], p["weight"])))
    args = NOTHING, level, state, rng.key(5), 10
    plain = rollout(dist.env, TABLE, params, *args)[2]
    td = rollout(dist.env, model, params, *args, dist_class=dist_class)[2]
    assert torch.equal(td["action"], plain["action"])
    assert torch.allclose(td["action_log_prob"], plain["action_log_prob"])


def drifting_world(size):
    """Position moved by the action; over when it has gone far, or after six steps."""

    def noise(level, key, shape):
        return tree.new({"push": rng.normal(key, (*shape, size), dtype=torch.float64)}, shape)

    def at(position, time, first):
        batch = time.shape
        observation = tree.new({"position": position, "time": time}, batch)
        return tree.new({"observation": observation, "is_init": first}, batch)

    def reset(level, noise):
        time = torch.zeros(noise.batch_size, dtype=torch.int64)
        return at(torch.zeros_like(noise["push"]), time, time == 0)

    def step(level, state, action, noise):
        seen = state["observation"]
        position = seen["position"] + action + 0.1 * noise["push"]
        time = seen["time"] + 1
        terminated = position.abs().amax(-1) > 2
        done = terminated | (time >= 6)
        timestep = {"reward": -position.abs().sum(-1), "done": done, "terminated": terminated}
        timestep["observation"] = tree.new({"position": position, "time": time}, time.shape)
        position = torch.where(done.unsqueeze(-1), 0.0, position)
        return at(position, time.masked_fill(done, 0), done), tree.new(timestep, time.shape)

    return Env(reset, step, noise)


def test_continuous_actions_of_an_environment_of_ones_own():
    env = drifting_world(2)
    model = policy(
        lambda p, x: {
            "loc": -0.5 * x["observation", "position"],
            "scale": torch.full((*x.batch_size, 2), 0.7, dtype=torch.float64),
        }
    )

    def two(loc, scale):
        return Independent(Normal(loc, scale, validate_args=False), 1, validate_args=False)

    level = NOTHING
    state = env.reset(level, env.noise(level, rng.key(0), (4000,)))

    def run(key, state, kind):
        return rollout(env, model, NOTHING, NOTHING, level, state, key, 9, dist_class=kind)

    _, _, td = run(rng.key(1), state, two)
    assert td["action"].shape == (4000, 9, 2) and td["action"].dtype == torch.float64
    z: Any = (td["action"] - td["loc"]) / td["scale"]
    flat = z.flatten(1)  # steps and entries draw independently
    assert z.mean().abs() < 4 / 72_000**0.5 and (z.std() - 1).abs() < 4 / 144_000**0.5
    assert (torch.corrcoef(flat.mT) - torch.eye(18)).abs().max() < 4.5 / 4000**0.5
    push: Any = td["next", "observation", "position"] - td["observation", "position"] - td["action"]
    assert torch.corrcoef(torch.stack([push.flatten(), z.flatten()]))[0, 1].abs() < 4 / 72_000**0.5
    expected = Normal(td["loc"], td["scale"]).log_prob(td["action"]).sum(-1)
    assert torch.allclose(td["action_log_prob"], expected)
    with pytest.raises(ValueError, match=r"shape \(4000, 9, 2\), expected \(4000, 9\)"):
        run(rng.key(1), state, Normal)
    states = state.reshape(2, 2000)
    keys = rng.split(rng.key(2))
    mapped = vmap(lambda key, state: run(key, state, two)[2])(keys, states)
    assert equal(mapped, tree.stack([run(keys[i], states[i], two)[2] for i in range(2)]))


def test_recurrent_entries_go_on_to_the_next_step_and_rollout(small):
    dist, level, state, params = small

    def step(params, x):
        count = torch.where(x["is_init"], 0, x["count"]) + 1
        logits = F.embedding(x["observation", "index"], params["weight"])
        return {"logits": logits, "next": tree.new({"count": count}, x.batch_size)}

    zero = tree.new({"count": torch.zeros(8, dtype=torch.int64)}, (8,))
    state = tree.merge(state, tree.new({"recurrent": zero}, (8,)))
    model = policy(step)
    after, _, td = rollout(dist.env, model, params, NOTHING, level, state, rng.key(4), 60)
    after, _, more = rollout(dist.env, model, params, NOTHING, level, after, rng.key(5), 60)
    td = {k: torch.cat([td[k], more[k]], 1) for k in ("count", ("observation", "time"))}
    # the count that comes in is the number of steps before, those of the old episode at its start
    time = td["observation", "time"]
    assert (time[:, 1:] == 0).any()
    assert torch.equal(td["count"][time > 0], time[time > 0])
    assert torch.equal(td["count"][:, 1:][time[:, 1:] == 0], time[:, :-1][time[:, 1:] == 0] + 1)
    assert torch.equal(more["next", "count"][:, -1], after["recurrent", "count"])
    assert more["next", "done"].any() and not more["next", "is_init"].any()


def test_buffers_are_threaded_through(small):
    dist, level, state, params = small

    def apply(params, buffers, batch):
        out, _ = TABLE.apply(params, buffers, batch)
        return out, tree.new({"steps": buffers["steps"] + batch["is_init"].shape[0]})

    model = Model(TABLE.init, apply)
    start = tree.new({"steps": torch.tensor(0)})
    _, buffers, _ = rollout(dist.env, model, params, start, level, state, rng.key(0), 7)
    assert buffers["steps"] == 7 * 8 and start["steps"] == 0


def test_nothing_carries_a_graph(small):
    dist, level, state, params = small
    params = tree.map(lambda x: x.requires_grad_(), params)
    after, _, td = rollout(dist.env, TABLE, params, NOTHING, level, state, rng.key(0), 3)
    assert not any(leaf.requires_grad for leaf in [*tree.leaves(td), *tree.leaves(after)])

    def total(weight):
        out = rollout(
            dist.env, TABLE, tree.new({"weight": weight}), NOTHING, level, state, rng.key(0), 3
        )
        return out[2]["logits"].sum()

    assert not torch.func.grad(total)(params["weight"].detach()).any()


def test_inputs_and_the_global_generator_stay_as_they_are(small, untouched):
    dist, level, state, params = small
    before = torch.get_rng_state()
    with untouched(params, level, state):
        one = rollout(dist.env, TABLE, params, NOTHING, level, state, rng.key(9), 30)[2]
        two = rollout(dist.env, TABLE, params, NOTHING, level, state, rng.key(9), 30)[2]
    assert torch.equal(before, torch.get_rng_state()) and equal(one, two)


def test_keys_give_other_trajectories(small):
    dist, level, state, params = small
    one, two = (
        rollout(dist.env, TABLE, params, NOTHING, level, state, rng.key(seed), 30)[2]["action"]
        for seed in (0, 1)
    )
    assert not torch.equal(one, two)


def test_compiled_is_the_same(small):
    dist, level, state, params = small

    def run(params, level, state, key):
        after, _, td = rollout(dist.env, TABLE, params, NOTHING, level, state, key, 3)
        return after, td

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    args = params, level, state, rng.key(0)
    for left, right in zip(compiled(*args), run(*args), strict=True):
        rows = zip(tree.leaves(left), tree.leaves(right), strict=True)
        assert all(torch.allclose(a, b) for a, b in rows)


def test_bad_arguments_are_refused(small):
    dist, level, state, params = small

    def run(model=TABLE, level=level, length=3, state=state, **kwargs):
        return rollout(dist.env, model, params, NOTHING, level, state, rng.key(0), length, **kwargs)

    wrong: list[Any] = [0, 2.0]
    for length in wrong:
        with pytest.raises(ValueError, match=f"rollout: length is {length}, expected an int of at"):
            run(length=length)
    with pytest.raises(ValueError, match=r"state has batch size \(8,\), expected it to begin"):
        run(level=dist.sample(rng.split(rng.key(0), 3)))
    with pytest.raises(ValueError, match="state lacks is_init, expected it as env.reset gives"):
        run(state=tree.exclude(state, "is_init"))
    with pytest.raises(TypeError, match="rollout: state is a dict"):
        run(state={})
    silent = policy(lambda p, x: {"value": x["is_init"]})
    with pytest.raises(ValueError, match="the model wrote 'value', expected 'logits', 'probs', 'l"):
        run(silent)
    beta = policy(lambda p, x: {"actor_output": x["is_init"] + 1.0})
    with pytest.raises(TypeError, match="gives a Beta, expected Categorical, OneHotCateg"):
        run(beta, dist_class=lambda x: Beta(x, x))
    recurrent = policy(
        lambda p, x: {"next": tree.new({"hidden": x["is_init"]}, x.batch_size), "logits": 0}
    )
    with pytest.raises(ValueError, match=r"writes \['hidden'\] under 'next', but .* are \[\]"):
        run(recurrent)
