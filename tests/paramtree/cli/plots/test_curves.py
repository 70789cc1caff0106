"""Learning curves: what a picture's lines and bands hold are numpy's means and intervals."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from paramtree.cli import plots

T_2 = 4.3026527  # Student's 97.5% point for three runs


def data(axes):
    """Points of a panel's lines, but for straight ones across it."""
    return [line.get_xydata() for line in axes.lines if len(line.get_xydata()) > 2]


def ends(collection):
    """Lower and upper ends of a band, by x."""
    (path,) = collection.get_paths()
    columns: dict[float, list[float]] = {}
    for x, y in path.vertices:
        columns.setdefault(float(x), []).append(float(y))
    return np.array([[min(columns[x]), max(columns[x])] for x in sorted(columns)])


def notes(axes):
    return " ".join(text.get_text() for text in axes.texts)


def panel() -> Any:
    from matplotlib.figure import Figure

    return Figure().subplots()


def test_lives_of_three_seeds_have_the_interval_over_seeds_of_means_over_levels():
    gen = np.random.default_rng(0)
    runs = [gen.normal(size=(n, 7)) for n in (4, 5, 6)]
    axes = panel()
    plots.draw_lives(axes, {"trained": [torch.tensor(x) for x in runs]})
    means = np.stack([x.mean(0) for x in runs])  # a run counts once, however many levels it has
    half = T_2 * means.std(0, ddof=1) / math.sqrt(3)
    (line,), (band,) = data(axes), axes.collections
    np.testing.assert_allclose(line, np.stack([np.arange(1, 8), means.mean(0)], 1))
    np.testing.assert_allclose(ends(band)[:, 0], means.mean(0) - half, rtol=1e-6)
    np.testing.assert_allclose(ends(band)[:, 1], means.mean(0) + half, rtol=1e-6)
    assert "95% interval over 3 seeds" in notes(axes)


def test_lives_of_one_seed_have_an_interval_over_levels_and_none_over_seeds():
    x = torch.tensor(np.random.default_rng(0).normal(size=(50, 7)))
    axes = panel()
    plots.draw_lives(axes, {"trained": [x]})
    (band,) = axes.collections
    half = 1.96 * x.numpy().std(0) / math.sqrt(50)
    np.testing.assert_allclose(ends(band)[:, 1] - ends(band)[:, 0], 2 * half, rtol=0.15)
    assert "95% interval over levels" in notes(axes) and "seeds" not in notes(axes)
    alone = panel()
    plots.draw_lives(alone, {"trained": [x[:1]]})
    assert not alone.collections and "one level, no interval" in notes(alone)


def test_who_does_not_learn_is_a_line_across():
    axes = panel()
    best, nobody = torch.tensor([1.0, 2.0]), torch.zeros(2, 3)
    lives = {"trained": [torch.rand(2, 3)], "optimal_rate": [best], "random": [nobody]}
    plots.draw_lives(axes, lives)
    heights = [line.get_ydata()[0] for line in axes.lines if len(line.get_xydata()) == 2]
    assert heights == [1.5, 0.0]
    assert {"trained rule", "best possible", "random policy"} <= {t.get_text() for t in axes.texts}


def test_a_rule_that_has_not_changed_hides_the_untrained_one():
    axes, curve = panel(), torch.rand(3, 5)
    plots.draw_lives(axes, {n: [curve] for n in ("trained", "untrained", "x" * 99)})
    top = max(axes.lines, key=lambda line: line.zorder)
    assert top.get_color() == "#0072B2"
    assert "..." + "x" * 21 in [text.get_text() for text in axes.texts]


def test_pictures_of_all_that_may_be_there(tmp_path):
    history = [{"step": k, "reward": math.sin(k)} for k in range(1, 40)]
    curve = torch.rand(6, 30)
    results = {"trained": curve, "untrained": 0 * curve, "a2c": curve + 1, "random": curve}
    results["optimal_rate"] = torch.ones(6)
    sizes = []
    for some, others in ((history, results), (history, {}), ([], results), ([], {})):
        plots.write(tmp_path / "curve.png", plots.lpg_figure(some, others))
        picture = (tmp_path / "curve.png").read_bytes()
        assert picture.startswith(b"\x89PNG")
        sizes.append(int.from_bytes(picture[16:20]))
    assert sizes[0] == 1800 and sizes[1] == sizes[2] == sizes[3] == 990
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]
    plots.write(tmp_path / "again.png", plots.lpg_figure([], {}))
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "curve.png").read_bytes()


def test_a_metric_is_drawn_as_it_was_and_smoothed():
    reward = np.random.default_rng(0).normal(size=90)
    history = [{"step": k + 1, "reward": x} for k, x in enumerate(reward)]
    (axes,) = plots.lpg_figure(history, {}).axes
    thin, thick = data(axes)
    np.testing.assert_allclose(thin[:, 1], reward)
    np.testing.assert_allclose(thick[10, 1], reward[8:11].mean())
    assert "mean of the last 3 steps" in notes(axes)


def test_returns_are_dots_and_the_evaluation_is_a_line():
    returns = [[3.0, 5.0], [], [4.0, 10.0]]
    history = [{"step": 8 * k, "returns": x} for k, x in enumerate(returns, 1)]
    (axes,) = plots.returns_figure("Walker, ppo", history, 7.5).axes
    dots, line = axes.lines[0].get_xydata(), axes.lines[1].get_xydata()
    np.testing.assert_array_equal(dots, [[8, 3], [8, 5], [24, 4], [24, 10]])
    np.testing.assert_array_equal(line, [[8, 5], [24, 10]])
    assert list(axes.lines[2].get_ydata()) == [7.5, 7.5] and "evaluated: 7.5" in notes(axes)
    (empty,) = plots.returns_figure("Walker, ppo", [], None).axes
    assert empty.get_title(loc="left") == "no steps yet"


def test_learned_hyper_parameters_have_a_panel_each():
    history = [
        {"step": k, "episodes": 1, "return": 2.0 * k, "gamma": 0.9 + k / 100, "lr": [k, 2 * k]}
        for k in (1, 2, 3)
    ]
    figure = plots.hyper_figure("catch, a2c", history, {"gamma": 0.99, "lr": None}, 5.0)
    score, gamma, rate = figure.axes
    np.testing.assert_array_equal(data(score)[0], [[1, 2], [2, 4], [3, 6]])
    np.testing.assert_allclose(data(gamma)[0][:, 1], [0.91, 0.92, 0.93])
    assert [line.get_ydata()[0] for line in gamma.lines][-1] == 0.99 and "0.99" in notes(gamma)
    assert [x[:, 1].tolist() for x in data(rate)] == [[1, 2, 3], [2, 4, 6]]
    assert "one for each of 2 updates" in notes(rate)


def test_all_metrics_are_drawn():
    history = [
        {"step": i, "seconds": 1.0, "reward": i / 2, "loss": -i, "on": True} for i in (1, 2, 3)
    ]
    results = {"trained": torch.rand(2, 4), "a2c": torch.rand(2, 4), "random": torch.rand(2, 4)}
    figure = plots.metrics_figure(history, results)
    shown = {a.get_title(loc="left"): a for a in figure.axes if a.axison}
    assert list(shown)[:2] == ["loss", "reward"] and len(shown) == 3
    np.testing.assert_array_equal(data(shown["reward"])[0], [[1, 0.5], [2, 1], [3, 1.5]])


def test_groups_have_the_interval_over_their_seeds_and_a_single_seed_has_none():
    gen = np.random.default_rng(0)
    x, alone = gen.normal(size=(3, 5)), gen.normal(size=(1, 5))
    step = torch.arange(1, 6)
    many = plots.Group("rate 1", step, torch.tensor(x), {})
    one = plots.Group("rate 2", step, torch.tensor(alone), {})
    figure = plots.groups_figure([many, one], "ppo", "environment steps", "return")
    (axes,) = figure.axes
    (band,) = axes.collections
    half = T_2 * x.std(0, ddof=1) / math.sqrt(3)
    np.testing.assert_allclose(ends(band)[:, 0], x.mean(0) - half, rtol=1e-6)
    np.testing.assert_allclose(ends(band)[:, 1], x.mean(0) + half, rtol=1e-6)
    lines = data(axes)
    assert len(lines) == 3 + 1 + 1  # each seed, their mean, and the only one
    np.testing.assert_allclose(lines[3][:, 1], x.mean(0))
    np.testing.assert_allclose(lines[4][:, 1], alone[0])
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == ["rate 1 (3 seeds)", "rate 2 (1 seed)"]
    single = plots.groups_figure([one], "ppo", "environment steps", "return")
    assert not single.axes[0].collections and "one seed, no interval" in notes(single.axes[0])


@pytest.mark.parametrize(("count", "names"), [(1, ["a2c", "trained"]), (2, ["trained"] * 2)])
def test_groups_show_lives_where_runs_have_them(count, names):
    lives = {"trained": [torch.rand(2, 4)] * 2, "a2c": [torch.rand(2, 4)] * 2}
    step, curves = torch.arange(3), torch.rand(2, 3)
    groups = [plots.Group(f"g{k}", step, curves, lives) for k in range(count)]
    training, second = plots.groups_figure(groups, "lpg", "meta-step", "reward").axes
    assert len(data(second)) == len(names) and "over 2 seeds" in notes(second)
    assert len({line.get_color() for line in second.lines}) == len(names)
