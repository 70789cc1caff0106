"""``paramtree plot``: runs are grouped by what differs, and wrong use is told of at once."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from paramtree import tree
from paramtree.checkpoint import save
from paramtree.cli import folder as files
from paramtree.cli import main, plot
from paramtree.cli.gym_options import PpoLearning, PpoOptions, SacOptions
from paramtree.cli.options import PRESETS, to_config
from paramtree.cli.outcome import Refused


def make(folder, options, history, rewards=None):
    """A run's folder, as far as it is drawn from."""
    folder.mkdir(parents=True)
    config = {"paramtree": "0", "command": options.command, "options": to_config(options)}
    files.write_json(folder / files.CONFIG, config)
    (folder / files.METRICS).write_bytes(b"".join(map(files.line, history)))
    for name, x in (rewards or {}).items():
        (folder / files.EVALUATION).mkdir(exist_ok=True)
        found = tree.new({"rewards": torch.as_tensor(x)}, x.shape[:1])
        save(folder / files.EVALUATION / f"{name}.safetensors", found)
    return folder


def rows(values, **more):
    return [{"step": 10 * k, "return": float(x), **more} for k, x in enumerate(values, 1)]


def ppo(tmp_path, name, seed, history, rate=2e-3, **options):
    chosen = PpoOptions(seed=seed, learning=PpoLearning(rate=rate), **options)
    return make(tmp_path / name, chosen, history)


def grouped(*folders, metric="return"):
    return plot.groups([plot.read(folder) for folder in folders], metric)


def test_seeds_are_replicas_and_other_options_are_groups(tmp_path):
    x = np.random.default_rng(0).normal(size=(4, 3))
    rates = (1e-3, 5e-4, 1e-3, 1e-3)
    runs = [ppo(tmp_path, f"r{i}", i, rows(x[i]), rate) for i, rate in enumerate(rates)]
    first, second = grouped(*runs)
    assert (first.label, second.label) == ("rate 0.001", "rate 0.0005")
    np.testing.assert_array_equal(first.curves, x[[0, 2, 3]])
    np.testing.assert_array_equal(second.curves, x[[1]])
    assert first.step.tolist() == [10, 20, 30]
    (alone,) = grouped(*runs[2:])
    assert alone.label == "" and len(alone.curves) == 2


def test_what_changes_nothing_is_no_difference(tmp_path):
    one = ppo(tmp_path, "a", 0, rows([1, 2]), threads=1)
    two = ppo(tmp_path, "b", 1, rows([3, 4]), threads=2, checkpoint_every=5.0)
    assert len(grouped(one, two)) == 1


def test_a_group_is_drawn_where_all_of_its_runs_are(tmp_path):
    late = [{"step": 10}, *rows([1, 2, 3, 4])[1:]]  # no episode has ended at first
    one, two = ppo(tmp_path, "a", 0, rows([5, 6, 7])), ppo(tmp_path, "b", 1, late)
    (group,) = grouped(one, two)
    assert group.step.tolist() == [20, 30]
    np.testing.assert_array_equal(group.curves, [[6, 7], [2, 3]])


def test_commands_environments_and_presets_stand_for_their_options(tmp_path):
    runs = [
        make(tmp_path / "a", PpoOptions(env="Pendulum-v1"), rows([1])),
        make(tmp_path / "b", SacOptions(), rows([2])),
        make(tmp_path / "c", PpoOptions(), rows([3])),
    ]
    names = plot.labels([plot.read(run) for run in runs])
    assert names == [("ppo", "Pendulum-v1"), ("sac", "Pendulum-v1"), ("ppo", "CartPole-v1")]
    history = [{"step": 1, "reward": 1.0}]
    rules = [
        make(tmp_path / n, options, history)
        for n, options in (
            ("d", PRESETS["demo"]),
            ("e", replace(PRESETS["demo"], length=7, seed=3)),
            ("f", PRESETS["groove"]),
        )
    ]
    names = plot.labels([plot.read(run) for run in rules])
    length = PRESETS["demo"].length
    assert names == [("demo", f"length {length}"), ("demo", "length 7"), ("groove",)]


def test_lives_come_from_the_evaluation(tmp_path):
    history, gen = [{"step": 1, "reward": 1.0}], np.random.default_rng(0)
    x = gen.normal(size=(2, 4, 3))
    runs = [
        make(tmp_path / str(i), replace(PRESETS["demo"], seed=i), history, {"trained": x[i]})
        for i in (0, 1)
    ]
    (group,) = grouped(*runs, metric="reward")
    np.testing.assert_array_equal(torch.stack(group.lives["trained"]), x)


def test_the_command_writes_the_same_picture_each_time(tmp_path, capsys):
    runs = [str(ppo(tmp_path, str(i), i, rows([i, 2, 3 * i]))) for i in range(3)]
    out = tmp_path / "new" / "curves.png"
    assert main(["plot", *runs, "--out", str(out)]) == 0
    first = out.read_bytes()
    assert first.startswith(b"\x89PNG") and str(out) in capsys.readouterr().out
    assert main(["plot", *runs, "--metric", "return", "--out", str(out)]) == 0
    assert out.read_bytes() == first and [p.name for p in out.parent.iterdir()] == ["curves.png"]


def test_the_metric_is_the_return_where_episodes_ended_else_the_reward(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(plot, "groups", lambda runs, metric: seen.append(metric) or exit(0))
    both = {"reward": 0.5}
    for name, more in (("a", {**both, "episodes": 3}), ("b", {**both, "episodes": 0}), ("c", both)):
        run = ppo(tmp_path, name, 0, rows([1], **more))
        with pytest.raises(SystemExit):
            main(["plot", str(run), "--out", str(tmp_path / "x.png")])
    assert seen == ["return", "reward", "return"]


def test_wrong_use_is_one_line_and_leaves_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run, twin = ppo(tmp_path, "run", 0, rows([1])), ppo(tmp_path, "twin", 0, rows([2]))
    rule = make(tmp_path / "rule", PRESETS["demo"], [{"step": 1, "reward": 0.5}])
    empty, odd = ppo(tmp_path, "empty", 0, []), ppo(tmp_path, "odd", 1, [{"step": 9, "return": 1}])
    (tmp_path / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    for words, text in (
        ([], "no run is given"),
        (["nowhere"], "'nowhere' holds no run"),
        ([empty], "has no steps yet"),
        ([run, twin], "have the same options and the same seed 0; leave out one"),
        ([run, run], "the same seed 0"),
        ([run, rule], "these runs count environment steps of ppo, meta-step of lpg"),
        ([run, odd], "have no step in common at which there is a return"),
        ([run, "--metric", "los"], "--metric is 'los', which not all of these runs have; choose"),
        ([run, "--out", "x.jpg"], "--out is 'x.jpg', expected a name that ends in .png"),
        ([run, "--out", "file/x.png"], "file' is not a folder; choose another place"),
    ):
        assert main(["plot", *map(str, words)]) == 2
        error = capsys.readouterr().err
        assert text in error and error.count("\n") == 1
    (tmp_path / "d.png").mkdir()
    assert main(["plot", str(run), "--out", "d.png"]) == 2
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "d.png"])


def test_a_folder_that_cant_be_written_to_is_refused(tmp_path, monkeypatch):
    from paramtree.cli import places

    monkeypatch.setattr(places.os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(Refused, match="can't be written to; choose another place for --out"):
        places.require_place(tmp_path / "a" / "b")
