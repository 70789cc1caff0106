"""``paramtree look``: at a rule with its agents, and at an agent before and after training."""

import json

import numpy as np
import pytest
from PIL import Image

from paramtree.cli import folder as files
from paramtree.cli import look_rule, main
from paramtree.meta import shipped
from tests.benchmarks.ship_rule import ship
from tests.paramtree.cli.gym_runs import one_thread

TINY = "lpg --threads 1 --tasks 2 --workers 2 --length 5 --updates 1 --hidden 4 --steps 3".split()
LOOK = "--count 1 --ages 1 2 --workers 3 --gammas 0.5 0.9 --threads 1".split()
PPO = "ppo --threads 1 --workers 2 --length 16 --steps 32 --hidden 4 --evaluate 0".split()


@pytest.fixture(scope="module", autouse=True)
def threads():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("look") / "run"
    evaluate = "--levels small --evaluate 2 --evaluate-updates 3 --evaluate-workers 2".split()
    assert main([*TINY, *evaluate, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    folder = tmp_path_factory.mktemp("look") / "agent"
    assert main([*PPO, "--out", str(folder)]) == 0
    return folder


def n_frames(path):
    with Image.open(path) as image:
        return getattr(image, "n_frames", 1)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_look_at_a_run(finished):
    assert main(["look", str(finished), *LOOK]) == 0
    out = finished / "look"
    pictures = ["level_0.png", "prediction_0.png", "targets.png", "training.png"]
    assert names(out) == ["episode_0.gif", *pictures[:1], "look.json", *pictures[1:]]
    assert all(path.stat().st_size > 5000 for path in out.iterdir() if path.suffix == ".png")
    found = json.loads((out / "look.json").read_text())
    assert found["ages"] == [1, 2] and len(found["predictions"]) == 1
    assert len(found["targets"]["pi_hat and td_error"]["by_age"]) == 2
    shown = found["predictions"][0]
    prediction, value = np.array(shown["prediction"]), np.array(shown["value"])
    side = round(prediction.shape[1] ** 0.5)
    assert 4 <= side <= 6 and prediction.shape == (8, side**2) and value.shape == (2, side**2)
    np.testing.assert_allclose(prediction.sum(0), 1.0, atol=1e-5)
    (episode,), film = found["episodes"], out / "episode_0.gif"
    assert episode["ages"] == [0, 2] and n_frames(film) == max(episode["steps"]) + 1
    assert film.stat().st_size < 1_000_000
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    del before["training.png"]
    (out / "level_7.png").touch()  # of an earlier look at more levels
    checkpoint = files.newest(finished)
    assert main(["look", str(checkpoint), *LOOK, "--out", str(out)]) == 0  # made anew, the same
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_look_at_a_rule_that_comes_with_paramtree(finished, tmp_path, monkeypatch):
    card = ship(finished, "tiny", tmp_path / "weights")
    monkeypatch.setattr(shipped, "WEIGHTS", card.parent)
    for name, rule_of in (("a", "tiny"), ("b", card), ("c", files.newest(finished))):
        words = "--levels chain_short --count 1 --ages 1 --threads 1 --out".split()
        assert main(["look", str(rule_of), *words, str(tmp_path / name)]) == 0
    a, b, c = ({x.name: x.read_bytes() for x in (tmp_path / name).iterdir()} for name in "abc")
    assert a == b == c and sorted(a) == ["episode_0.gif", "level_0.png", "look.json"]


@pytest.mark.parametrize("levels", ["rand_tiny", "chain_short"])
def test_a_look_at_agents_whose_values_are_not_known(finished, tmp_path, levels):
    words = "--count 1 --ages 1 --workers 2 --threads 1 --levels".split()
    out = tmp_path / "new"
    assert main(["look", str(files.newest(finished)), *words, levels, "--out", str(out)]) == 0
    assert names(out) == ["episode_0.gif", "level_0.png", "look.json"]
    (episode,) = json.loads((out / "look.json").read_text())["episodes"]
    assert n_frames(out / "episode_0.gif") == max(episode["steps"]) + 1


def test_a_look_at_an_agent(agent, tmp_path):
    assert main(["look", str(agent), "--threads", "1"]) == 0
    out = agent / "look"
    assert names(out) == ["episode.gif", "look.json"]
    found = json.loads((out / "look.json").read_text())
    assert found["steps"] == [0, 32] and found["return"] == found["length"]  # 1 for each step
    moments = max(found["length"])
    assert n_frames(out / "episode.gif") == (moments if moments <= 100 else 100) + 1
    again = ["look", str(files.newest(agent)), "--threads", "1", "--out", str(tmp_path / "x")]
    assert main(again) == 0
    assert (tmp_path / "x" / "episode.gif").read_bytes() == (out / "episode.gif").read_bytes()
    assert main([*again, "--seed", "1"]) == 0
    assert (tmp_path / "x" / "episode.gif").read_bytes() != (out / "episode.gif").read_bytes()


def test_wrong_use(finished, agent, tmp_path, capsys, monkeypatch):
    def work(*args, **kwargs):
        raise AssertionError("the long work has begun")

    monkeypatch.setattr(look_rule.meta, "probe_agents", work)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    checkpoint = files.newest(finished)
    for words, text in (
        ([finished, "--out", tmp_path / "full"], "holds other things"),
        ([finished, "--out", tmp_path / "full" / "mine"], "is not a folder"),
        ([finished, "--out", tmp_path / "full" / "mine" / "x"], "mine' is not a folder"),
        (["lpg-smal", "--out", tmp_path / "new"], "is no run, no checkpoint; as a rule that comes"),
        (["lpg-small"], "'lpg-small' is not a run's folder; give --out"),
        ([checkpoint], "is not a run's folder; give --out"),
        ([tmp_path / "full", "--out", tmp_path / "new"], "holds no run"),
        ([finished, "--levels", "smal"], "the nearest is 'small'"),
        ([finished, "--ages", "3", "1"], "--ages is 3 1, expected numbers from 0 on that grow"),
        ([finished, "--count", "0"], "the number of levels is 0"),
        ([finished, "--gammas"], "--gammas are lists, expected at least one"),
        ([finished, "--gammas", "0.5", "2"], "--gammas is 0.5 2.0, expected discounts"),
        ([finished, "--gamma", "nan"], "--gamma is nan, expected discounts from 0 to 1"),
        ([agent, "--count", "4"], "--count is for runs of lpg, and this one is of ppo"),
    ):
        out = [] if "--out" in words or len(words) == 1 else ["--out", tmp_path / "new"]
        assert main(["look", *map(str, [*words, *out]), "--threads", "1"]) == 2
        error = capsys.readouterr().err
        assert text in error and error.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_an_environment_without_a_picture_is_refused(tmp_path, capsys):
    run, words = tmp_path / "run", PPO.copy()
    words[words.index("32")] = "0"
    assert main([*words, "--env", "MountainCar-v0", "--out", str(run)]) == 0
    assert main(["look", str(run), "--threads", "1"]) == 2
    error = capsys.readouterr().err
    assert "the run is of 'MountainCar-v0', expected one that can be drawn: CartPole, P" in error
    assert not (run / "look").exists()
