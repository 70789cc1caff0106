"""``paramtree lpg`` as a user has it, in a configuration that takes a moment."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from paramtree import rng, tree
from paramtree.checkpoint import load, load_metadata, save
from paramtree.cli import folder as files
from paramtree.cli import main
from paramtree.cli.command import parse
from paramtree.cli.training import (
    divided,
    first_params,
    make_population,
    make_setting,
    make_training,
    training_key,
)

TINY = "lpg --preset demo --threads 1 --tasks 3 --workers 2 --length 3 --updates 2 --hidden 4"
TINY = [*TINY.split(), "--lifetime", "6", "--checkpoint-every", "0.1"]


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def tiny(*words, evaluate=0):
    return [*TINY, "--evaluate", str(evaluate), *map(str, words)]


def start(*words):
    command = [sys.executable, "-m", "paramtree.cli", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def lines(folder):
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else -1


def wait_for(process, condition):
    until = time.monotonic() + 60
    while not condition() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.002)


def timeless(folder):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in files.read_metrics(folder)]


def same(a, b):
    left, right = tree.paths(a), tree.paths(b)
    assert left == right
    return all(torch.equal(x, y) for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True))


def test_a_run_killed_at_any_moment_ends_with_the_same_bits(tmp_path):
    steps, words = 40, ["--evaluate-updates", "8"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    first = start(*tiny("--steps", steps, "--out", whole, *words, evaluate=2))
    assert first.wait() == 0, first.communicate()
    moments, kills = random.Random(0), 0
    words = tiny("--steps", steps, "--out", parts, *words, evaluate=2)
    for least in (-1, 8, 16, 28):
        process = start(*words)
        wait_for(process, lambda: (parts / "config.json").exists() and lines(parts) >= least)  # noqa: B023
        time.sleep(moments.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        process.communicate()
        words = ["lpg", "--resume", parts]
    last = start(*words)
    assert last.wait() == 0, last.communicate()
    for process in (first, last):
        process.communicate()
    assert kills >= 2  # a quick machine may be done before the last ones
    assert same(load(files.newest(whole)), load(files.newest(parts)))
    assert timeless(whole) == timeless(parts)
    assert [row["step"] for row in timeless(parts)] == list(range(1, steps + 1))
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (whole, parts)]
    assert all(summary.pop("seconds") > 0 for summary in summaries)
    assert summaries[0] == summaries[1]


def test_ctrl_c_finishes_the_step_and_says_how_to_go_on(tmp_path):
    process = start(*tiny("--steps", 100_000, "--out", tmp_path / "run", "--checkpoint-every", 1e9))
    wait_for(process, lambda: lines(tmp_path / "run") >= 2)
    second = main(["lpg", "--resume", str(tmp_path / "run")])
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert (process.returncode, second) == (130, 2)
    step = files.last_step(tmp_path / "run")
    assert step == lines(tmp_path / "run") >= 2
    last = f"paramtree: stopped after step {step} of 100000; go on with: paramtree lpg --resume "
    assert error.splitlines()[-1] == last + str(tmp_path / "run")


# ----------------------------------------------------------------- in this process, for time


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    before = torch.get_num_threads()
    assert main(tiny("--steps", 2, "--out", folder, "--evaluate-updates", 10, evaluate=5)) == 0
    torch.set_num_threads(before)
    return folder


def snapshot(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_finished_run_holds_what_was_promised(finished):
    assert {path.name for path in finished.iterdir()} == {
        *("config.json", "metrics.jsonl", "checkpoints", "evaluation"),
        *("summary.json", "results.json", "curve.png", "lock"),
    }
    summary = json.loads((finished / "summary.json").read_text())
    assert summary.pop("seconds") > 0
    assert set(summary) == {"trained", "untrained", "a2c", "random", "optimal_rate", "paired"}
    for name, interval in summary.items():
        assert list(interval)[:3] == ["mean", "low", "high"]
        if name != "paired":
            assert interval["low"] <= interval["mean"] <= interval["high"]
    best = summary["optimal_rate"]["mean"]
    assert 0 < best and summary["random"]["mean"] < best
    assert (finished / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_checkpoint_says_what_it_is_of(finished):
    metadata = load_metadata(files.newest(finished))
    config = json.loads((finished / "config.json").read_text())
    assert metadata == {"command": "lpg", "options": config["options"], "step": 2}
    assert config["options"]["threads"] == 1 and config["options"]["network"]["hidden"] == 4


def test_resume_of_a_finished_run_trains_and_evaluates_nothing_again(finished, capsys):
    before = snapshot(finished)
    assert main(["lpg", "--resume", str(finished)]) == 0
    after = snapshot(finished)
    changed = {path.name for path in before if before[path] != after.get(path)}
    assert before.keys() == after.keys() and changed <= {"lock", "summary.json", "curve.png"}
    assert "meta-training" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--hidden 8 --threads 2", "--threads (is 1, not 2), --hidden (is 4, not 8)"),
        ("--preset paper", "--preset (is demo, not paper)"),
        ("--steps 1", "--steps is 1, but the run has done 2"),
        ("--out elsewhere", "leave out --out"),
        ("--fresh", "leave out --fresh"),
    ],
)
def test_resume_refuses_what_would_change_the_run(finished, words, named, capsys):
    before = snapshot(finished)
    assert main(["lpg", "--resume", str(finished), *words.split()]) == 2
    assert named in capsys.readouterr().err
    after = snapshot(finished)
    assert {path.name for path in before if before[path] != after.get(path)} <= {"lock"}


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("", "already holds a run; go on with it by paramtree lpg --resume"),
        ("--fresh --levels smal", "expected one of dense, sparse"),
        ("--fresh --evaluate 2 --evaluate-on smal", "expected one of dense, sparse"),
        ("--fresh --levels small small", "--levels is small, small, expected names that differ"),
        ("--fresh --tasks 1 --levels small medium", "--tasks is 1, expected at least 2"),
        ("--fresh --workers 0", "--workers is 0"),
        ("--fresh --lifetime 6 3", "--lifetime is 6 3, expected a number of at least 1, or two"),
        ("--fresh --evaluate 2 --evaluate-workers 0", "the number of workers is 0"),
        ("--fresh --curriculum plr --buffer 5", "--buffer is 5, expected at least 6"),
        ("--fresh --arm-rates -1", "--arm-rates is -1.0, expected numbers of at least 0"),
        ("--fresh --arm-coeffs 1 nan", "--arm-coeffs is 1.0 nan"),
        ("--fresh --actor-rate 0 --arm-rates 1", "--actor-rate is 0"),
        ("--fresh --pi-hat-coeff nan", "--pi-hat-coeff is nan, expected at least 0, and finite"),
        ("--fresh --prediction-coeff inf", "--prediction-coeff is inf"),
        ("--fresh --hidden 0", "0"),
        ("--fresh --meta-rate -1", "-1.0"),
        ("--fresh --device nowhere", "--device is 'nowhere'"),
        ("--fresh --device meta", "--device is 'meta'"),
        ("--fresh --threads 0", "--threads is 0"),
        (f"--fresh --seed {2**63}", f"--seed is {2**63}, expected a number from"),
        ("--fresh --gamma 2", "--gamma is 2.0, expected a number from 0 to 1"),
        ("--fresh --lmbda nan", "--lmbda is nan"),
    ],
)
def test_nothing_is_overwritten_by_wrong_use(finished, words, named, capsys):
    before = snapshot(finished)
    assert main(tiny("--steps", 2, "--out", finished, *words.split())) == 2
    error = capsys.readouterr().err
    assert named in error and error.startswith("paramtree: ") and error.count("\n") == 1
    after = snapshot(finished)
    assert {path.name for path in before if before[path] != after.get(path)} <= {"lock"}


def test_fresh_starts_anew(tmp_path, finished):
    folder, once = tmp_path / "run", ["--checkpoint-every", 1e9]
    for steps in (3, 2):
        assert main(tiny("--steps", steps, "--out", folder, "--fresh", *once)) == 0
    assert timeless(folder) == timeless(finished)
    assert [path.name for path in files.checkpoints(folder)] == ["step_00000002.safetensors"]


def test_more_steps_train_on_and_evaluate_the_rule_again(tmp_path):
    folder = tmp_path / "run"
    assert main(tiny("--steps", 1, "--out", folder, "--evaluate-updates", 2, evaluate=2)) == 0
    before = snapshot(folder / "evaluation")
    assert main(["lpg", "--resume", str(folder), "--steps", "2"]) == 0
    after = snapshot(folder / "evaluation")
    assert {p.name for p in before if before[p] != after[p]} == {"trained.safetensors"}
    assert json.loads((folder / "config.json").read_text())["options"]["steps"] == 2


def test_a_checkpoint_of_another_shape_or_version_is_refused(
    tmp_path, finished, capsys, monkeypatch
):
    for hidden in (4, 5):
        assert main(tiny("--steps", 1, "--out", tmp_path / str(hidden), "--hidden", hidden)) == 0
    path = files.newest(tmp_path / "4")
    path.write_bytes(files.newest(tmp_path / "5").read_bytes())
    assert main(["lpg", "--resume", str(tmp_path / "4")]) == 2
    assert "has shape" in capsys.readouterr().err
    monkeypatch.setattr("paramtree.__version__", "9.0.0")
    save(path, load(files.newest(finished)))
    monkeypatch.undo()
    assert main(["lpg", "--resume", str(tmp_path / "4")]) == 2
    assert "saved by paramtree 9.0.0" in capsys.readouterr().err


def test_several_levels_share_the_tasks(tmp_path):
    assert divided(8, ("a", "b", "c")) == {"a": 3, "b": 3, "c": 2}
    folder = tmp_path / "run"
    assert main(tiny("--steps", 1, "--out", folder, "--levels", "small", "sparse")) == 0
    agents = load(files.newest(folder))["agents"]
    assert {name: agents[name].batch_size[0] for name in agents.keys()} == {"small": 2, "sparse": 1}


@pytest.mark.parametrize("preset", ["demo", "groove", "paper"])
def test_a_preset_makes_a_training(preset):
    small = "--tasks 27 --workers 2 --hidden 4".split()
    options = parse(["lpg", "--preset", preset, *small])
    assert callable(make_training(options).step)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("preset", ["demo", "groove", "paper"])
def test_perceptrons_learn_at_their_own_rate_beside_tables(preset):
    """Adam's first step is as large as its rate, and 40 is a table's."""
    arms = ["--arm-rates", "--arm-coeffs"]
    options = parse(["lpg", "--preset", preset, *arms, "--critic-rate", "4"])
    population = make_population(options, "rand_tiny", 1)  # pyright: ignore[reportArgumentType]
    for model, optimizer in (
        (population.habitat.agent, population.habitat.optimizer),
        (population.critic, population.critic_optimizer),
    ):
        params, _ = model.init(rng.key(0))
        slope = tree.map(torch.ones_like, params)
        moved, _ = optimizer.update(slope, optimizer.init(params), params)  # pyright: ignore
        for x in tree.leaves(moved):
            torch.testing.assert_close(x, torch.full_like(x, -1e-3))


def test_the_untrained_rule_is_the_one_that_training_begins_with():
    options = parse(tiny())
    begun = make_training(options).init(training_key(options))  # pyright: ignore[reportArgumentType]
    assert same(begun["rule"], first_params(options))  # pyright: ignore[reportArgumentType]


def test_held_out_levels_are_none_of_the_trainings():
    options = parse(tiny(evaluate=50))
    held = make_setting(options).levels  # pyright: ignore[reportArgumentType]
    agents = make_training(options).init(training_key(options))["agents", "small"]  # pyright: ignore
    rewards = torch.cat([held["reward"], agents["level", "reward"]])
    assert len(rewards.unique(dim=0)) == 53
    keys = [rng.key(0), rng.fold_in(rng.key(0), "evaluation"), training_key(options)]  # pyright: ignore
    assert len(torch.stack(keys).unique(dim=0)) == 3


def test_a_crash_keeps_its_traceback(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise ValueError("a defect")

    monkeypatch.setattr("paramtree.cli.run.train", broken)
    with pytest.raises(ValueError, match="a defect"):
        main(tiny("--steps", 1, "--out", tmp_path / "run"))


def test_the_lock_is_let_go_after_each_end(finished):
    with files.locked(finished):
        assert (finished / "lock").read_text() == f"{os.getpid()}\n"
