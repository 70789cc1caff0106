"""Contestants, what is kept of them, and what their results say."""

import io

import numpy as np
import pytest
import torch
from rich.console import Console

from paramtree import rng, tree
from paramtree.cli import summary
from paramtree.cli.evaluation import (
    Part,
    contest,
    curves,
    held_out,
    opponents,
    optimum,
    random,
    raw,
    rival,
    usual_opponents,
)
from paramtree.cli.progress import progress
from paramtree.cli.rivals import RIVALS, habitat_for
from paramtree.cli.rivals import rival as rival_of
from paramtree.envs import level_distribution, optimal_return, optimal_reward_rate, policy_value
from paramtree.meta import curve_scores, lifetime_scores, reward_curve

D = torch.float64


@pytest.fixture(scope="module", autouse=True)
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def quiet():
    return Console(file=io.StringIO(), width=100)


def setting(name="small", count=40, updates=10):
    world = level_distribution(name)
    return held_out(world, count, 0, "cpu", updates=updates, length=10, workers=4)


def play(part):
    return contest([part], quiet(), watch=lambda: None)[0][part.name]


def test_nobody_beats_the_best_and_a2c_learns():
    shared = setting(count=30, updates=40)
    best, chance, learned = (
        play(part) for part in (optimum(shared), random(shared), rival("a2c", shared))
    )
    assert torch.allclose(best["final"], optimal_reward_rate(shared.levels))
    longest = shared.world.max_steps
    assert torch.allclose(best["return"], optimal_return(shared.levels, longest))
    assert chance["rewards"].shape == learned["rewards"].shape == (30, 40)
    for measure in ("final", "lifetime", "return"):
        means = [float(x[measure].mean()) for x in (chance, learned, best)]
        assert means[0] < 0.6 * means[1] and means[1] < means[2]


def test_a_random_policy_earns_what_it_is_worth():
    """Its episodes, from their starts, beside dynamic programming."""
    shared = setting("sparse", count=30, updates=30)._replace(workers=64)
    chance = play(random(shared))
    assert abs(float(chance["rewards"].mean())) < 0.02  # +1 and -1 are found as often
    flat = play(random(setting("small", count=6, updates=1)._replace(workers=2000)))
    levels, world = setting("small", count=6).levels, level_distribution("small")
    start = world.env.reset(levels, world.env.noise(levels, rng.key(0), (6, 1)))["observation"]
    even = torch.zeros(6, world.n_states, world.n_actions)
    wanted = policy_value(levels, even, 1.0, start["index"], start["time"])[:, 0]
    assert torch.allclose(flat["return"], wanted, atol=0.15) and wanted.abs().max() > 0.3


def test_scores_are_those_of_the_reward_curve():
    shared = setting(count=5, updates=10)
    habitat, rule = rival_of("a2c", shared.world, shared.workers)
    none, run = tree.new({}), {"updates": 10, "length": shared.length}
    args = (habitat, rule, none, shared.levels, shared.key)
    found = lifetime_scores(*args, horizon=0, **run)
    assert torch.equal(found["rewards"], reward_curve(*args, **run))
    assert torch.equal(found["final"], found["rewards"][:, -2:].mean(1))
    assert torch.equal(found["lifetime"], found["rewards"].mean(1)) and "return" not in found
    with pytest.raises(ValueError, match="horizon is -1, expected at least 0"):
        lifetime_scores(*args, horizon=-1)
    with pytest.raises(ValueError, match=r"levels has batch size \[\], expected \[n\]"):
        lifetime_scores(habitat, rule, none, tree.unstack(shared.levels)[0], rng.key(0), horizon=0)


@pytest.mark.parametrize("name", RIVALS)
@pytest.mark.parametrize("world", ["small", "rand_tiny"])
def test_every_rule_has_agents_for_tables_and_for_images(name, world):
    shared = setting(world, count=2, updates=2)
    found = play(rival(name, shared))
    assert found["rewards"].shape == (2, 2) and all(x.isfinite().all() for x in found.values())


def test_rules_with_minibatches_take_any_number_of_workers():
    world = level_distribution("small")
    assert rival_of("ppo", world, 8)[1].minibatches == 4
    assert rival_of("ppo", world, 6)[1].minibatches == 1
    assert habitat_for("q_lambda", world, 3, temperature=0.2).workers == 3


def test_opponents_by_name():
    shared = setting(count=2, updates=1)
    names = [part.name for part in opponents(["ppo", "optimal", "random"], shared)]
    assert names == ["ppo", "optimal_rate", "random"]
    assert [part.name for part in usual_opponents(shared)] == ["a2c", "random", "optimal_rate"]
    images = setting("rand_tiny", count=2, updates=1)
    assert [part.name for part in usual_opponents(images)] == ["a2c", "random"]
    with pytest.raises(ValueError, match="there is no rule 'ppa', expected one of a2c, ppo"):
        opponents(["ppa"], shared)
    with pytest.raises(ValueError, match="random positions"):
        opponents(["optimal"], images)


def counted(name, calls, value=1.0):
    def play(show):
        calls.append(name)
        show(1, "")
        found = curve_scores(torch.full((3, 2), value))
        return tree.new({**tree.entries(found), "return": found["final"] * 2}, (3,))

    return Part(name, 1, play)


def test_finished_parts_are_kept_and_others_are_not(tmp_path):
    calls = []
    marks = {"a": {"steps": 1}, "b": {"steps": 1}}

    def stop():
        if calls == ["a", "b"]:
            raise KeyboardInterrupt

    parts = [counted("a", calls), counted("b", calls)]
    with pytest.raises(KeyboardInterrupt):
        contest(parts, quiet(), watch=stop, cache=tmp_path / "x", marks=marks)
    calls.clear()
    results, earlier = contest(
        parts, quiet(), watch=lambda: None, cache=tmp_path / "x", marks=marks
    )
    assert calls == ["b"] and earlier >= 0
    assert torch.equal(results["a"]["rewards"], torch.ones(3, 2, dtype=D))
    assert torch.equal(curves(results)["b"], torch.ones(3, 2, dtype=D))
    ones = [1.0, 1.0, 1.0]
    assert raw(results)["a"] == {"final": ones, "lifetime": ones, "return": [2.0, 2.0, 2.0]}
    marks["a"] = {"steps": 2}
    contest(parts, quiet(), watch=lambda: None, cache=tmp_path / "x", marks=marks)
    assert calls == ["b", "a"]
    (tmp_path / "x" / "b.safetensors").write_text("damaged")
    contest(parts, quiet(), watch=lambda: None, cache=tmp_path / "x", marks=marks)
    assert calls == ["b", "a", "b"]


def test_the_same_setting_comes_from_the_same_seed():
    world = level_distribution("small")
    a, b, c = (held_out(world, 4, s, "cpu", updates=1, length=1, workers=1) for s in (1, 1, 2))
    assert torch.equal(a.levels["reward"], b.levels["reward"])
    assert not torch.equal(a.levels["reward"], c.levels["reward"])
    assert held_out(world, 1, 0, "cpu", updates=None, length=1, workers=1).updates == 250


def test_the_last_fifth_is_what_counts():
    curve = torch.arange(40.0, dtype=D).reshape(2, 20)
    assert summary.last_fifth(curve).tolist() == [17.5, 37.5]
    assert summary.last_fifth(curve[:, :3]).tolist() == [2.0, 22.0]
    assert summary.last_fifth(curve[:, 0]).tolist() == [0.0, 20.0]


def scored(final, lifetime=None, returns=None):
    columns = {"final": final, "lifetime": lifetime, "return": returns}
    entries = {n: torch.as_tensor(final if x is None else x) for n, x in columns.items()}
    return tree.new({n: x.to(D) for n, x in entries.items()}, (len(final),))


def trimmed(rows):
    """The mean without the lowest and the highest quarter."""
    cut = rows.shape[-1] // 4
    return np.sort(rows, -1)[..., cut : rows.shape[-1] - cut].mean(-1)


def test_intervals_are_those_of_a_bootstrap():
    generator = np.random.default_rng(0)
    ours, theirs, later = (generator.gamma(k, size=60) for k in (2.0, 3.0, 1.0))
    results = {"trained": scored(ours, later, 2 * ours), "a2c": scored(theirs)}
    found = summary.summarized(results)
    drawn = generator.integers(0, 60, (40_000, 60))
    a, b = ours[drawn].mean(1), theirs[drawn].mean(1)
    for got, statistic, mean in (
        (found["trained"], a, ours.mean()),
        (found["a2c"], b, theirs.mean()),
        (found["paired"], a / b - 1, ours.mean() / theirs.mean() - 1),
        (found["trained"]["lifetime"], later[drawn].mean(1), later.mean()),
        (found["trained"]["return"], 2 * a, 2 * ours.mean()),
        (found["trained"]["iqm"]["final"], trimmed(ours[drawn]), trimmed(ours)),
        (found["trained"]["iqm"]["lifetime"], trimmed(later[drawn]), trimmed(later)),
        (found["trained"]["ahead"]["final"], a - b, (ours - theirs).mean()),
        (found["trained"]["ahead"]["return"], 2 * a - b, (2 * ours - theirs).mean()),
    ):
        low, high = np.quantile(statistic, [0.025, 0.975])
        width = high - low
        assert got["mean"] == pytest.approx(mean, rel=1e-12)
        assert abs(got["low"] - low) < 0.04 * width
        assert abs(got["high"] - high) < 0.04 * width
    assert "ahead" not in found["a2c"]


def test_the_middle_half_of_any_number_of_levels():
    """Of five, the second and the fourth lie across the edges, with three quarters inside."""
    values = torch.tensor([4.0, 100.0, 2.0, 3.0, -50.0], dtype=D)
    even = torch.full((5,), 0.2, dtype=D)
    wanted = (0.75 * 2 + 3 + 0.75 * 4) / 2.5
    assert float(summary.interquartile_mean(values, even)) == pytest.approx(wanted)
    twice = torch.tensor([0.4, 0.0, 0.2, 0.2, 0.2], dtype=D)  # -50, 2, 3, 4, 4
    wanted = (0.75 * 2 + 3 + 0.75 * 4) / 2.5
    assert float(summary.interquartile_mean(values, twice)) == pytest.approx(wanted)


def test_another_reference_or_none():
    results = {name: scored(torch.arange(4.0) + k) for k, name in enumerate(("a2c", "ppo", "x"))}
    found = summary.summarized(results, "ppo")
    assert found["x"]["ahead"]["final"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert found["a2c"]["ahead"]["final"]["mean"] == -1 and "paired" not in found
    alone = summary.summarized({"ppo": results["ppo"]})
    assert "ahead" not in alone["ppo"]
    for some in (found, alone):
        Console(file=io.StringIO()).print(summary.table(some, "t", "ppo"))


def test_a_ratio_to_nothing_is_none_and_not_nan():
    zero = scored(torch.zeros(3))
    found = summary.summarized({"trained": zero, "a2c": zero})
    assert found["paired"] == {"mean": None, "low": None, "high": None}
    summary.table(found, "nothing")


def test_no_share_is_told_of_what_isn_t_more_than_nothing():
    """The one who loses less is ahead, which a ratio of two losses would turn round."""
    ours, theirs = scored(torch.tensor([-0.1, 0.0, 0.1])), scored(torch.tensor([-0.5, -0.3, -0.1]))
    found = summary.summarized({"trained": ours, "a2c": theirs})
    assert found["paired"] == {"mean": None, "low": None, "high": None}
    assert found["trained"]["ahead"]["final"]["mean"] == pytest.approx(0.3)
    out = Console(file=io.StringIO(), width=120)
    out.print(summary.table(found, "losses"))
    text = out.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "%" not in text.replace("95%", "") and "tuned A2C: +0.3000 (95% interval +0.2" in text


def test_the_table_says_what_the_summary_says():
    results = {"trained": scored(torch.full((4,), 0.9)), "a2c": scored(torch.ones(4))}
    out = Console(file=io.StringIO(), width=120)
    out.print(summary.table(summary.summarized(results), "four levels"))
    text = out.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    for part in ("four levels", "trained rule", "0.9000", "90%", "-10.0%", "0.900 "):
        assert part in text


def test_a_terminal_gets_a_bar_with_rate_and_time_left():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with progress(console, "job", 4, 1) as show:
        for done in (2, 3, 4):
            show(done, "reward 0.5")
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "job" in text and "4/4" in text and "reward 0.5" in text and "/s" in text
