import importlib
import sys
from contextlib import closing

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, VectorEnv
from torch.distributions import Categorical

import losses
from paramtree import Model, nn, rng, td_model, tree
from paramtree.interop.gymnasium import evaluate, reset, rollout
from tests.paramtree.interop.counters import (
    FAIR,
    MODES,
    NOTHING,
    PLANS,
    Counter,
    counters,
    likes,
    play,
    policy,
)


def expected(plan, actions, skips):
    """Rows of one worker: what is seen, whether it's first, counts, and what follows."""
    rows, episode, time, first = [], 0, 0, True
    for action in actions:
        length, end = plan[episode % len(plan)]
        over = time + 1 >= length
        row = {"seen": [episode, time], "first": first, "counts": True, "next": [episode, time + 1]}
        row |= {"reward": 100 * episode + 10 * time + action, "done": over}
        row["terminated"] = over and "terminated" in end
        if time < length:
            rows.append(row)
            time, first = time + 1, False
            if over and not skips:
                episode, time, first = episode + 1, 0, True
        else:  # the step that only resets
            row |= {"next": [episode + 1, 0], "reward": 0, "done": False, "terminated": False}
            rows.append(row | {"counts": False})
            episode, time, first = episode + 1, 0, True
    return rows


def check_rows(td, skips, plans=PLANS):
    for worker, plan in enumerate(plans):
        rows = expected(plan, td["action"][worker].tolist(), skips)
        one = td[worker]
        assert one["observation"].tolist() == [row["seen"] for row in rows]
        assert one["is_init"].tolist() == [row["first"] for row in rows]
        assert one["next", "observation"].tolist() == [row["next"] for row in rows]
        assert one["next", "reward"].tolist() == [row["reward"] for row in rows]
        assert one["next", "done"].tolist() == [row["done"] for row in rows]
        assert one["next", "terminated"].tolist() == [row["terminated"] for row in rows]
        if skips:
            assert one["mask"].tolist() == [row["counts"] for row in rows]


@pytest.mark.parametrize("mode", MODES)
def test_every_entry_is_what_the_environment_gave(mode):
    state, buffers, td = play(counters(mode))
    skips = mode == AutoresetMode.NEXT_STEP
    assert buffers is NOTHING and state.batch_size == (3,) and td.batch_size == (3, 14)
    names = {"observation", "is_init", "action", "action_log_prob", "logits", "next"}
    assert set(td.keys()) == names | ({"mask"} if skips else set())
    inside = {"observation", "reward", "done", "terminated", "is_init"}
    assert set(tree.entries(td)["next"].keys()) == inside
    assert state.is_locked and td.is_locked and tree.entries(td)["next"].is_locked
    assert td["observation"].dtype == td["next", "reward"].dtype == torch.float32
    assert td["next", "done"].dtype == td["next", "terminated"].dtype == torch.bool
    assert not td["next", "is_init"].any()
    check_rows(td, skips)
    expected_log_prob = torch.full((3, 14), 0.5).log()
    assert torch.allclose(td["action_log_prob"], expected_log_prob)
    assert 0 < td["action"].float().mean() < 1


@pytest.mark.parametrize("mode", MODES)
def test_a_rollout_goes_on_where_the_last_one_stopped(mode):
    """Cut into pieces of one step each, among them those between an end and its reset."""
    with closing(counters(mode)) as envs:
        state, parts = reset(envs, 3), []
        for t in range(14):
            state, _, td = rollout(envs, FAIR, NOTHING, NOTHING, state, rng.key(t), 1)
            parts.append(td)
    whole = torch.cat(parts, 1)
    check_rows(whole, mode == AutoresetMode.NEXT_STEP)


def test_the_steps_that_count_are_those_of_the_other_modes():
    td = play(counters(AutoresetMode.NEXT_STEP), length=20)[2]
    other = play(counters(AutoresetMode.SAME_STEP), length=20)[2]
    assert not td["mask"].all()
    for worker in range(3):
        one = td[worker]
        kept = one[one["mask"]]
        n = len(kept)
        for key in ("observation", "is_init", ("next", "observation"), ("next", "done")):
            assert torch.equal(kept[key], other[worker][key][:n])


def test_losses_leave_out_the_steps_that_dont_count():
    td = play(counters(AutoresetMode.NEXT_STEP), length=20)[2]
    value = td["observation"].sum(-1)
    last = td["next", "observation"].sum(-1)
    td = tree.replace(td, {"state_value": value, ("next", "state_value"): last})
    td = losses.add_advantage(td, 0.9, 0.8)
    for worker in range(3):
        one = td[worker]
        kept = one[one["mask"]]
        alone = losses.add_advantage(tree.exclude(kept, "mask"), 0.9, 0.8)
        assert torch.allclose(kept["advantage"], alone["advantage"], atol=1e-3)


def test_memory_that_the_environment_writes_to_again_is_copied():
    """Observations of float32 would need no copy to become a tensor."""
    shown = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    show = lambda e, t: np.array([e, t], dtype=np.float32)  # noqa: E731
    lent = counters(AutoresetMode.NEXT_STEP, options={"copy": False}, shown=shown, show=show)
    check_rows(play(lent)[2], skips=True)


@pytest.mark.parametrize("mode", MODES)
def test_workers_in_other_processes(mode):
    check_rows(
        play(counters(mode, kind=AsyncVectorEnv), length=8)[2], mode == AutoresetMode.NEXT_STEP
    )


# ---- Gymnasium's own


@pytest.mark.parametrize("how", ["vector_entry_point", "sync"])
def test_cart_pole_is_what_a_plain_loop_gives(how):
    model = td_model(nn.linear(4, 2), "observation", "logits")
    params, buffers = model.init(rng.key(0))
    envs, other = (gymnasium.make_vec("CartPole-v1", 4, vectorization_mode=how) for _ in "ab")
    state = reset(envs, 7)
    _, _, td = rollout(envs, model, params, buffers, state, rng.key(1), 80)
    seen, _ = other.reset(seed=7)
    over, ends = np.zeros(4, dtype=bool), 0
    for t in range(80):
        assert np.array_equal(td["observation"][:, t].numpy(), seen)
        seen, reward, terminated, truncated, _ = other.step(td["action"][:, t].numpy())
        step = tree.entries(td[:, t])["next"]
        assert np.array_equal(step["observation"].numpy(), seen)
        assert np.array_equal(step["reward"].numpy(), reward)
        assert np.array_equal(step["terminated"].numpy(), terminated)
        assert np.array_equal(step["done"].numpy(), terminated | truncated)
        assert np.array_equal(td["mask"][:, t].numpy(), ~over)
        over, ends = terminated | truncated, ends + terminated.sum()
    assert ends > 4
    logits = model(params, buffers, td)["logits"]
    log_prob = Categorical(logits=logits).log_prob(td["action"])
    assert torch.allclose(td["action_log_prob"], log_prob, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_a_time_limit_truncates(mode):
    envs = gymnasium.make_vec(
        "CartPole-v1", 2, "sync", {"autoreset_mode": mode}, max_episode_steps=5
    )
    td = play(envs, length=12, seed=4)[2]
    done = td["next", "done"]
    assert done.any() and not td["next", "terminated"].any()
    followers = td["observation"][:, 1:][done[:, :-1]]
    last = td["next", "observation"][:, :-1][done[:, :-1]]
    assert torch.equal(followers, last) == (mode == AutoresetMode.NEXT_STEP)
    if mode != AutoresetMode.NEXT_STEP:
        assert done.nonzero()[:, 1].tolist() == [4, 9, 4, 9]
        assert (followers.abs() <= 0.05).all()


def test_seeds_and_keys_decide_everything():
    def run(start, seed):
        envs = gymnasium.make_vec("CartPole-v1", 3, vectorization_mode="sync")
        return play(envs, length=40, start=start, seed=seed)[2]

    before = torch.get_rng_state()
    one, two = run(1, 2), run(1, 2)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(tree.leaves(one), tree.leaves(two), strict=True))
    assert not torch.equal(run(2, 2)["observation"], one["observation"])
    assert not torch.equal(run(1, 3)["action"], one["action"])


def test_wrappers_of_vector_environments():
    envs = gymnasium.make_vec("CartPole-v1", 2)
    envs = gymnasium.wrappers.vector.RecordEpisodeStatistics(envs)
    td = play(envs, length=60)[2]
    ended = td["next", "done"].sum()
    assert envs.episode_count == ended > 2
    assert abs(np.mean(envs.length_queue) * int(ended) - int(td["mask"].sum())) < 60


# ---- recurrent models and buffers


@pytest.mark.parametrize("mode", MODES)
def test_recurrent_entries_start_anew_with_an_episode(mode):
    def step(x):
        count = torch.where(x["is_init"], 0, x["count"]) + 1
        following = tree.new({"count": count}, x.batch_size)
        return {"logits": torch.zeros(*x.batch_size, 2), "next": following}

    with closing(counters(mode)) as envs:
        first = tree.new({"count": torch.full((3,), 77)}, (3,))
        state = tree.replace(reset(envs, 0), {"recurrent": first})
        agent = policy(step), NOTHING, NOTHING
        state, _, td = rollout(envs, *agent, state, rng.key(0), 7)
        state, _, more = rollout(envs, *agent, state, rng.key(1), 7)
    td = torch.cat([td, more], 1)
    assert torch.equal(state["recurrent", "count"], td["next", "count"][:, -1])
    counts = td["mask"] if "mask" in td.keys() else torch.ones_like(td["is_init"])
    time = td["observation"][..., 1] + 1
    assert torch.equal(td["next", "count"][counts].float(), time[counts])


def test_buffers_are_threaded_through():
    def apply(params, buffers, batch):
        return FAIR.apply(params, buffers, batch)[0], tree.new({"n": buffers["n"] + 1})

    with closing(counters(AutoresetMode.DISABLED)) as envs:
        start = tree.new({"n": torch.tensor(0)})
        model = Model(FAIR.init, apply)
        _, buffers, _ = rollout(envs, model, NOTHING, start, reset(envs), rng.key(0), 5)
    assert buffers["n"] == 5 and start["n"] == 0


# ---- evaluation


@pytest.mark.parametrize("mode", MODES)
def test_each_worker_plays_its_share(mode):
    """Long episodes count as often as short ones, whenever they end."""
    still = policy(lambda x: {"logits": torch.tensor([1.0, 0.0]).expand(*x.batch_size, 2)})
    with closing(counters(mode)) as envs:
        got = evaluate(envs, still, NOTHING, NOTHING, rng.key(0), 7, deterministic=True)
    # the fourth to sixth are each worker's second episode, the last one the first's third
    third = 29 * 30 / 2 * 10 + 30 * 100
    assert got.tolist() == [30, 10, 4350, 100, 600, third, 860]
    assert got.dtype == torch.float32


def test_an_evaluation_by_name_is_a_plain_loop():
    model = td_model(nn.linear(4, 2), "observation", "logits")
    params, buffers = model.init(rng.key(0))
    agent = (model, params, buffers, rng.key(5))
    got = evaluate("CartPole-v1", *agent, 40, deterministic=True)
    assert got.shape == (40,) and got.std() > 0
    assert torch.equal(got, evaluate("CartPole-v1", *agent, 40, deterministic=True))
    again = evaluate("CartPole-v1", *agent, 40)
    assert not torch.equal(got, again) and not torch.equal(
        again, evaluate("CartPole-v1", *agent[:3], rng.key(6), 40)
    )
    with closing(gymnasium.make_vec("CartPole-v1", 32)) as envs:
        assert torch.equal(got, evaluate(envs, *agent, 40, deterministic=True))
        seed = envs.np_random_seed
        seen, _ = envs.reset(seed=seed)
        total, found, over = np.zeros(32), [[] for _ in range(32)], np.zeros(32, dtype=bool)
        while min(map(len, found)) < 2:
            best = (torch.tensor(seen) @ params["weight"].T + params["bias"]).argmax(-1)
            seen, reward, *ends, _ = envs.step(best.numpy())
            total = np.where(over, 0, total) + reward
            over = np.logical_or(*ends)
            for i in np.flatnonzero(over):
                found[i].append(total[i])
    plain = [found[i % 32][i // 32] for i in range(40)]
    assert got.tolist() == plain


def test_a_recurrent_model_is_evaluated_from_its_first_entries():
    def step(x):
        count = torch.where(x["is_init"], 0, x["count"]) + 1
        logits = torch.stack([count, 1.5 * torch.ones_like(count)], -1)
        return {"logits": logits, "next": tree.new({"count": count}, x.batch_size)}

    first = tree.new({"count": torch.tensor(9.0)})
    with closing(counters(AutoresetMode.NEXT_STEP)) as envs:
        agent = policy(step), NOTHING, NOTHING, rng.key(0)
        got = evaluate(envs, *agent, 5, deterministic=True, recurrent=first)
    assert got.tolist() == [31, 11, 4351, 101, 601]  # only the first action is 1


# ---- what is refused


def test_without_gymnasium_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    monkeypatch.delitem(sys.modules, "paramtree.interop.gymnasium")
    with pytest.raises(
        ImportError, match=r"needs gymnasium: pip install 'paramtree\[gymnasium\]'$"
    ):
        importlib.import_module("paramtree.interop.gymnasium")


class Mute(VectorEnv):
    """An environment that resets in the same step, and doesn't say what came last."""

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(self, shown=None, **metadata):
        self.num_envs, self.metadata = 2, {**self.metadata, **metadata}
        self.single_observation_space = shown or spaces.Box(-1, 1, (1,))
        self.single_action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return np.zeros((2, 1)), {}

    def step(self, actions):
        return np.zeros((2, 1)), np.zeros(2), np.ones(2, bool), np.zeros(2, bool), {"a": 1}


def test_bad_arguments_are_refused():
    with pytest.raises(TypeError, match="reset: envs is a Counter, expected a gymnasium.vector.Ve"):
        reset(Counter(PLANS[0]))
    with pytest.raises(
        ValueError, match=r"reset: envs.metadata\['autoreset_mode'\] is None, expec"
    ):
        reset(Mute(autoreset_mode=None))
    with pytest.raises(TypeError, match="reset: the observation is of a Text space, expected Box"):
        reset(Mute(spaces.Text(3)))
    with pytest.raises(TypeError, match="reset: the observation 'a.1' is of a Sequence space"):
        inner = spaces.Tuple([spaces.Box(-1, 1, (1,)), spaces.Sequence(spaces.Discrete(2))])
        envs = Mute(spaces.Dict({"a": inner}))
        envs.reset = lambda **_: ({"a": (np.zeros((2, 1)), ())}, {})
        reset(envs)
    with pytest.raises(ValueError, match="an episode ended and infos has no 'final_obs'.*are a"):
        play(Mute(), length=1)
    with closing(counters(AutoresetMode.SAME_STEP)) as envs:
        state = reset(envs)
        run = lambda state=state, length=2, model=FAIR, **options: rollout(  # noqa: E731
            envs, model, NOTHING, NOTHING, state, rng.key(0), length, **options
        )
        for length in (0, 2.0, True):
            with pytest.raises(ValueError, match=f"rollout: length is {length}, expected an int"):
                run(length=length)
        with pytest.raises(ValueError, match=r"state has batch size \(2,\), expected \(3,\) \(the"):
            run(state[:2])
        with pytest.raises(ValueError, match="state lacks done, expected it as reset gives it"):
            run(tree.exclude(state, "done"))
        with pytest.raises(TypeError, match="rollout: state is a dict"):
            run({})
        with pytest.raises(ValueError, match="rescale is True, but the actions' space is a Discre"):
            run(rescale=True)
        normal = policy(
            lambda x: {"loc": torch.zeros(3, 1), "scale": torch.ones(3, 1), "is_init": x["is_init"]}
        )
        with pytest.raises(
            ValueError, match=r"action has shape \(3, 1\), expected \(3,\) \(from Di"
        ):
            run(model=normal, dist_class=losses.independent_normal)
        flat = policy(lambda x: {"loc": torch.zeros(3), "scale": torch.ones(3)})
        with pytest.raises(
            TypeError, match=r"action is torch.float32, expected integers \(from Di"
        ):
            run(model=flat, dist_class=torch.distributions.Normal)
        for episodes in (0, 2.0, True):
            with pytest.raises(ValueError, match=f"evaluate: episodes is {episodes}, expected an"):
                evaluate(envs, FAIR, NOTHING, NOTHING, rng.key(0), episodes)
    wide = lambda x: {"loc": torch.zeros(3, 1), "scale": torch.ones(3, 1)}  # noqa: E731
    with pytest.raises(ValueError, match=r"rescale is True, but Box\(-inf.* has no bounds"):
        likes(spaces.Box(-np.inf, 1, (1,)), wide, losses.independent_normal, rescale=True)
    with pytest.raises(TypeError, match=r"action is torch.int64, expected floats \(from Box"):
        likes(spaces.Box(-1, 1, ()), lambda x: {"logits": torch.zeros(3, 2)})
    with pytest.raises(TypeError, match="the actions' space is a Dict, expected Discrete, Multi"):
        likes(spaces.Dict({"a": spaces.Discrete(2)}), lambda x: {"logits": torch.zeros(3, 2)})
