"""Contestants, what is kept of them, and what their results say."""

import io
import math

import numpy as np
import pytest
import torch
from rich.console import Console

from paramtree import rng
from paramtree.cli import summary
from paramtree.cli.evaluation import Part, a2c, contest, held_out, optimum, random
from paramtree.cli.options import A2C
from paramtree.cli.plots import draw
from paramtree.cli.progress import progress
from paramtree.envs import level_distribution, optimal_reward_rate

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
        play(part) for part in (optimum(shared), random(shared), a2c(shared, A2C))
    )
    assert torch.allclose(best, optimal_reward_rate(shared.levels))
    assert chance.shape == learned.shape == (30, 40) and best.shape == (30,)
    means = [float(summary.last_fifth(x).mean()) for x in (chance, learned, best)]
    assert means[0] < 0.5 * means[1] and means[1] < means[2]


def test_a_random_policy_takes_each_action_as_often():
    """On a level whose only object is next to the start: seen from its rewards."""
    chance = play(random(setting("sparse", count=30, updates=30)))
    assert abs(float(chance.mean())) < 0.02  # +1 and -1 are found as often


def counted(name, calls, value=1.0):
    def curve(show):
        calls.append(name)
        show(1, "")
        return torch.full((3, 2), value)

    return Part(name, 1, curve)


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
    assert results["a"].dtype == D and torch.equal(results["a"], torch.ones(3, 2, dtype=D))
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


def test_intervals_are_those_of_a_bootstrap():
    generator = np.random.default_rng(0)
    ours, theirs = generator.gamma(2.0, size=60), generator.gamma(3.0, size=60)
    results = {"trained": torch.tensor(ours), "a2c": torch.tensor(theirs)}
    found = summary.summarized(results)
    drawn = generator.integers(0, 60, (40_000, 60))
    for name, statistic, mean in (
        ("trained", ours[drawn].mean(1), ours.mean()),
        ("a2c", theirs[drawn].mean(1), theirs.mean()),
        (
            "paired",
            ours[drawn].mean(1) / theirs[drawn].mean(1) - 1,
            ours.mean() / theirs.mean() - 1,
        ),
    ):
        low, high = np.quantile(statistic, [0.025, 0.975])
        width = high - low
        assert found[name]["mean"] == pytest.approx(mean, rel=1e-12)
        assert abs(found[name]["low"] - low) < 0.04 * width  # pyright: ignore
        assert abs(found[name]["high"] - high) < 0.04 * width  # pyright: ignore


def test_a_ratio_to_nothing_is_none_and_not_nan():
    zero = torch.zeros(3, dtype=D)
    found = summary.summarized({"trained": zero, "a2c": zero})
    assert found["paired"] == {"mean": None, "low": None, "high": None}
    summary.table(found, "nothing")


def test_the_table_says_what_the_summary_says():
    results = {"trained": torch.full((4,), 0.9, dtype=D), "a2c": torch.ones(4, dtype=D)}
    out = Console(file=io.StringIO(), width=100)
    out.print(summary.table(summary.summarized(results), "four levels"))
    text = out.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    for part in ("four levels", "trained rule", "0.9000", "90%", "-10.0%"):
        assert part in text


def test_pictures_of_all_that_may_be_there(tmp_path):
    history = [{"step": k, "reward": math.sin(k)} for k in range(1, 40)]
    curve = rng.uniform(rng.key(0), (6, 30), dtype=D)
    results = {"trained": curve, "untrained": 0 * curve, "a2c": curve + 1, "random": curve}
    results["optimal_rate"] = torch.ones(6, dtype=D)
    sizes = []
    for some, others in ((history, results), (history, {}), ([], results), ([], {})):
        draw(tmp_path / "curve.png", history=some, results=others)
        picture = (tmp_path / "curve.png").read_bytes()
        assert picture.startswith(b"\x89PNG")
        sizes.append(int.from_bytes(picture[16:20]))
    assert sizes[0] == 1800 and sizes[1] == sizes[2] == sizes[3] == 990
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]


def test_a_terminal_gets_a_bar_with_rate_and_time_left():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with progress(console, "job", 4, 1) as show:
        for done in (2, 3, 4):
            show(done, "reward 0.5")
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "job" in text and "4/4" in text and "reward 0.5" in text and "/s" in text
