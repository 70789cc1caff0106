"""Pictures, and the command that draws them: what is shown is what was measured."""

import json
import math

import numpy as np
import pytest
import torch

from paramtree.cli import folder as files
from paramtree.cli import main, pictures

TINY = "lpg --threads 1 --tasks 2 --workers 2 --length 5 --updates 1 --hidden 4 --steps 3".split()
LOOK = "--count 2 --ages 0 2 --workers 3 --gammas 0.5 0.9 --threads 1".split()


@pytest.fixture(scope="module", autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("look") / "run"
    evaluate = "--levels small --evaluate 2 --evaluate-updates 3 --evaluate-workers 2".split()
    assert main([*TINY, *evaluate, "--out", str(folder)]) == 0
    return folder


def data(axes):
    """Points of a line, or numbers of a map."""
    return [line.get_xydata() for line in axes.lines]


def test_correlation_is_numpys():
    gen = np.random.default_rng(0)
    x, y = gen.normal(size=(2, 5, 4))
    wanted = np.corrcoef(x.ravel(), y.ravel())[0, 1]
    assert pictures.correlation(torch.tensor(x), torch.tensor(y)) == pytest.approx(wanted)
    assert math.isnan(pictures.correlation(torch.ones(3), torch.arange(3.0)))


def test_the_line_is_that_of_least_squares():
    gen = np.random.default_rng(1)
    x = gen.normal(size=200)
    y = 3 - 2 * x + gen.normal(size=200)
    same = torch.ones(4)
    pairs = {("return", "pi_hat"): (torch.tensor(x), torch.tensor(y)), ("a", "b"): (same, same)}
    figure = pictures.draw_targets(pairs)
    first, second = figure.axes
    ends = data(first)[0]
    slope, constant = np.polyfit(x, y, 1)
    np.testing.assert_allclose(ends[:, 0], [x.min(), x.max()])
    np.testing.assert_allclose(ends[:, 1], constant + slope * ends[:, 0], rtol=1e-6)
    said = f"correlation {np.corrcoef(x, y)[0, 1]:.2f}, 200 steps"
    assert first.get_title(loc="left") == said and first.get_xlabel() == "return"
    assert not second.lines and "nan" in second.get_title(loc="left")


def test_maps_share_their_colors_and_leave_out_walls():
    mask = torch.tensor([True, True, False, True])
    rows = [
        ("plain", [("a", torch.tensor([1.0, 2.0, 99.0, 3.0])), ("b", torch.tensor([4.0] * 4))]),
        ("signed", [("c", torch.tensor([-1.0, 0.5, -99.0, 0.0]))]),
    ]
    figure = pictures.draw_cells(rows, mask, {0: "S"})
    panels = [axes for axes in figure.axes if axes.images and axes.get_visible()]
    shown = [axes.images[0] for axes in panels if axes.get_title()]
    assert [axes.get_title() for axes in panels if axes.get_title()] == ["a", "b", "c"]
    assert [image.get_clim() for image in shown] == [(1, 4), (1, 4), (-1, 1)]
    values = np.asarray(shown[0].get_array().filled(np.nan), float)
    np.testing.assert_array_equal(values, [[1, 2], [np.nan, 3]])
    assert panels[0].texts[0].get_text() == "S"


def test_all_metrics_are_drawn():
    history = [
        {"step": i, "seconds": 1.0, "reward": i / 2, "loss": -i, "on": True} for i in (1, 2, 3)
    ]
    results = {"trained": torch.rand(2, 4), "a2c": torch.rand(2, 4), "random": torch.rand(2, 4)}
    figure = pictures.draw_training(history, results)
    shown = {a.get_title(loc="left"): a for a in figure.axes if a.axison}
    assert list(shown)[:2] == ["loss", "reward"] and len(shown) == 3
    np.testing.assert_array_equal(data(shown["reward"])[0], [[1, 0.5], [2, 1], [3, 1.5]])


def test_a_look_at_a_run(finished):
    assert main(["look", str(finished), *LOOK]) == 0
    out = finished / "look"
    names = ["look.json", "prediction_0.png", "prediction_1.png", "targets.png", "training.png"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert all((out / name).stat().st_size > 5000 for name in names[1:])
    found = json.loads((out / "look.json").read_text())
    assert found["ages"] == [0, 2] and len(found["predictions"]) == 2
    told = found["targets"]["pi_hat and td_error"]
    assert len(told["by_age"]) == 2
    shown = found["predictions"][0]
    prediction, value = np.array(shown["prediction"]), np.array(shown["value"])
    assert prediction.shape == (8, 36) and value.shape == (2, 36)
    np.testing.assert_allclose(prediction.sum(0), 1.0, atol=1e-5)
    before = (out / "look.json").read_bytes()
    (out / "training.png").unlink()
    checkpoint = files.newest(finished)
    assert main(["look", str(checkpoint), *LOOK, "--out", str(out)]) == 0  # made anew, the same
    assert (out / "look.json").read_bytes() == before
    assert not (out / "training.png").exists()


def test_wrong_use(finished, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    checkpoint = next((finished / "checkpoints").iterdir())
    for words, text in (
        ([str(finished), "--out", str(tmp_path / "full")], "holds other things"),
        ([str(finished), "--out", str(tmp_path / "full" / "mine")], "is not a folder"),
        ([str(checkpoint)], "is not a run's folder; give --out"),
        ([str(finished), "--levels", "rand_small"], "expected a tabular grid world"),
        ([str(finished), "--levels", "smal"], "the nearest is 'small'"),
        ([str(finished), "--ages", "3", "1"], "ages is (3, 1)"),
        ([str(finished), "--count", "0"], "the number of levels is 0"),
        ([str(finished), "--gammas"], "--gammas are lists, expected at least one"),
        ([str(finished), "--gammas", "0.5", "2"], "--gammas is 0.5 2.0, expected discounts"),
        ([str(finished), "--gamma", "nan"], "--gamma is nan, expected discounts from 0 to 1"),
    ):
        out = [] if "--out" in words or len(words) == 1 else ["--out", str(tmp_path / "new")]
        assert main(["look", *words, *out, "--threads", "1"]) == 2
        assert text in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
