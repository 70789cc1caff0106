"""``paramtree mgrl`` as a user has it, in configurations that take a moment."""

import contextlib
import json
import os
import signal

import pytest
import torch

from paramtree import envs, rng, tree
from paramtree.checkpoint import load, load_metadata, save
from paramtree.cli import folder as files
from paramtree.cli import main, mgrl_training
from paramtree.cli.command import parse
from paramtree.cli.mgrl_options import MgrlOptions
from paramtree.cli.options import flat, from_config, to_config
from tests.paramtree.cli.gym_runs import Killed, changed, different, one_thread, snapshot, timeless

TINY = "mgrl --threads 1 --workers 2 --length 4 --hidden 6 --checkpoint-every 0".split()
WAYS = {
    "a2c": "--method trace --exact --decay 0.9 --conditioned --learn gamma lr",
    "ppo": "--algorithm ppo --env catch --minibatches 2 --updates 2 --per-update --optimizer sgd "
    "--learn gamma clip_epsilon",
    "vtrace": "--algorithm vtrace --env choice --env-args delay=2 large=3.0 --method forward",
}


@pytest.fixture(autouse=True)
def threads():
    with one_thread():
        yield


def tiny(*words, evaluate=0):
    return [*TINY, "--evaluate", str(evaluate), *map(str, words)]


def killed(monkeypatch, words, steps):
    """Run a command that is killed when it has made so many steps."""
    original = mgrl_training.make_training

    def make(*args):
        training, done = original(*args), 0

        def step(state):
            nonlocal done
            if done == steps:
                raise Killed
            done += 1
            return training.step(state)

        return training._replace(step=step)

    with monkeypatch.context() as patch, contextlib.suppress(Killed):
        patch.setattr(mgrl_training, "make_training", make)
        main(words)


@pytest.mark.parametrize("more", WAYS.values(), ids=WAYS)
def test_a_run_killed_at_any_moment_ends_with_the_same_bits(tmp_path, monkeypatch, more):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    words = tiny("--steps", 5, *more.split(), evaluate=2)
    assert main([*words, "--out", str(whole)]) == 0
    killed(monkeypatch, [*words, "--out", str(parts)], 2)
    for steps in (0, 1):
        killed(monkeypatch, ["mgrl", "--resume", str(parts)], steps)
    assert main(["mgrl", "--resume", str(parts)]) == 0
    assert different(whole, parts) == [] and timeless(whole) == timeless(parts)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (whole, parts)]
    assert all(summary.pop("seconds") > 0 for summary in summaries)
    assert summaries[0] == summaries[1]
    assert [row["step"] for row in timeless(parts)] == [1, 2, 3, 4, 5]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    with one_thread():
        assert main(tiny("--steps", 3, "--out", folder, evaluate=3)) == 0
    return folder


def test_a_finished_run_holds_what_was_promised(finished):
    names = {"config.json", "metrics.jsonl", "checkpoints", "summary.json", "curve.png", "lock"}
    assert {path.name for path in finished.iterdir()} == names
    summary, state = (
        json.loads((finished / "summary.json").read_text()),
        load(files.newest(finished)),
    )
    assert set(summary) == {"steps", "learned", "mean", "std", "returns", "seconds"}
    assert summary["steps"] == 3 and len(summary["returns"]) == 3
    learned = {name: float(state["eta", name].sigmoid()) for name in ("gamma", "lmbda")}
    assert summary["learned"] == pytest.approx(learned) and learned["gamma"] != 0.95
    assert (finished / "curve.png").read_bytes().startswith(b"\x89PNG")
    rows = timeless(finished)
    assert rows[0]["gamma"] == pytest.approx(0.95) and rows[0]["lmbda"] == pytest.approx(0.9)
    wanted = {"command": "mgrl", "options": to_config(parse(["mgrl", "--resume", str(finished)]))}
    assert load_metadata(files.newest(finished)) == {**wanted, "step": 3}


def test_the_evaluation_plays_whole_episodes_of_the_agent(finished):
    options = parse(["mgrl", "--resume", str(finished)])
    world = mgrl_training.make_world("cart_pole", ())
    state, key = load(files.newest(finished)), rng.fold_in(rng.key(0), "evaluation")
    returns = mgrl_training.returns(options, world, state, key, 3)
    first, playing = rng.split(key)
    agent, agents = mgrl_training.make_agent(options, world), state["agents"]
    at = world.env.reset(world.level, world.env.noise(world.level, first, (3,)))
    own = agents["params"], agents["buffers"]
    played = world.env, agent, *own, world.level, at, playing, 500
    done = envs.rollout(*played, deterministic=True)[2]["next", "done"]
    assert returns.tolist() == [int(row.nonzero()[0]) + 1 for row in done]  # 1 a step
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["returns"] == returns.tolist()


def test_options_survive_their_configuration():
    words = ["mgrl", "--learn", "gamma", "lr", "--hidden", "3", "4", "--env-args", "a=1"]
    options = parse([*words, "--threads", "2"])
    assert isinstance(options, MgrlOptions) and options.outer.learn == ("gamma", "lr")
    assert from_config(json.loads(json.dumps(to_config(options))), MgrlOptions) == options
    assert flat(options)["--hidden"] == (3, 4)


def test_ctrl_c_in_the_evaluation_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    original = mgrl_training.returns

    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGINT)
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(mgrl_training, "returns", interrupted)
        assert main(tiny("--steps", 1, "--out", tmp_path / "run", evaluate=2)) == 130
    last = f"stopped in the evaluation; go on with: paramtree mgrl --resume {tmp_path / 'run'}\n"
    assert capsys.readouterr().err.endswith(last)
    assert main(["mgrl", "--resume", str(tmp_path / "run"), "--steps", "2"]) == 0


def test_ctrl_c_finishes_the_step(tmp_path, monkeypatch, capsys):
    original = mgrl_training.make_training

    def make(*args):
        training = original(*args)

        def step(state):
            os.kill(os.getpid(), signal.SIGINT)
            return training.step(state)

        return training._replace(step=step)

    with monkeypatch.context() as patch:
        patch.setattr(mgrl_training, "make_training", make)
        assert main(tiny("--steps", 9, "--out", tmp_path / "run")) == 130
    text = f"stopped after step 1 of 9; go on with: paramtree mgrl --resume {tmp_path / 'run'}\n"
    assert capsys.readouterr().err.endswith(text) and files.last_step(tmp_path / "run") == 1


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--hidden 9", "--hidden (is (6,), not (9,))"),
        ("--learn gamma", "--learn (is ('gamma', 'lmbda'), not ('gamma',))"),
        ("--steps 2", "--steps is 2, but the run has done 3"),
    ],
)
def test_resume_refuses_what_would_change_the_run(finished, words, named, capsys):
    before = snapshot(finished)
    assert main(["mgrl", "--resume", str(finished), *words.split()]) == 2
    assert named in capsys.readouterr().err
    assert changed(before, finished) <= {"lock"}


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("", "already holds a run; go on with it by paramtree mgrl --resume"),
        ("--learn clip_epsilon", "--learn has clip_epsilon, which a2c has no use for"),
        ("--algorithm ppo --minibatches 2 --learn clip_epsilon", "whose meta-gradient is 0"),
        ("--learn gamma gamma", "--learn is gamma gamma, expected names that differ"),
        ("--gamma 1", "gamma is 1.0, which its constraint can't give"),
        ("--lr 0 --learn lr", "lr is 0.0, which its constraint can't give"),
        ("--env-args g=1", "--env-args has 'g', but cart_pole is made with force_mag, gravity"),
        ("--env-args max_steps", "--env-args has 'max_steps', expected name=value"),
        ("--env-args max_steps=0", "max_steps holds 0, expected values at least 1"),
        ("--env catch --env-args rows=1", "catch: rows is 1"),
        ("--workers 0", "--workers is 0, expected at least 1"),
        ("--length 0", "--length is 0"),
        ("--updates 0", "updates is 0"),
        ("--hidden 8 0", "--hidden is 0"),
        ("--window 2", "window is 2, expected at most 1"),
        ("--decay 0.5", "decay is given with method 'truncated'"),
        ("--decay 1.5 --method trace", "--decay is 1.5, expected a number from 0 to 1"),
        ("--reference-gamma 2", "--reference-gamma is 2.0, expected a number from 0 to 1"),
        ("--meta-rate -1", "--meta-rate is -1.0, expected at least 0"),
        ("--device nowhere", "--device is 'nowhere'"),
    ],
)
def test_nothing_is_overwritten_by_wrong_use(finished, words, named, capsys):
    before = snapshot(finished)
    fresh = ["--fresh"] if words else []
    assert main(tiny("--steps", 2, "--out", finished, *words.split(), *fresh)) == 2
    error = capsys.readouterr().err
    assert named in error and error.startswith("paramtree: ") and error.count("\n") == 1
    assert changed(before, finished) <= {"lock"}


def test_minibatches_that_do_not_divide_the_workers_leave_no_folder(tmp_path, capsys):
    assert main(tiny("--algorithm", "ppo", "--steps", 1, "--out", tmp_path / "run")) == 2
    error = capsys.readouterr().err
    wanted = "paramtree: --minibatches is 4, expected a divisor of --workers, which is 2"
    assert error.startswith(wanted) and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_clip_range_that_can_not_be_learned_is_told_of(tmp_path, capsys):
    words = "--algorithm ppo --minibatches 2 --steps 1 --learn gamma clip_epsilon".split()
    assert main(tiny(*words, "--out", tmp_path / "run")) == 0
    text = "clip_epsilon has a meta-gradient of 0 and stays what it is; the others are learned"
    assert capsys.readouterr().err == f"paramtree: {text}\n"
    eta = load(files.newest(tmp_path / "run"))["eta"]
    assert float(torch.log1p(eta["clip_epsilon"].exp())) == pytest.approx(0.2)
    assert float(eta["gamma"].sigmoid()) != pytest.approx(0.95, abs=1e-6)


def test_an_agent_that_breaks_stops_the_run_or_is_born_anew_as_the_user_chose(tmp_path, capsys):
    folder = tmp_path / "run"
    words = "--method trace --exact --optimizer sgd --learn gamma".split()
    assert main(tiny("--steps", 1, *words, "--out", folder)) == 0
    path = files.newest(folder)
    state, metadata = load(path), load_metadata(path)
    where = next(p for p in tree.paths(state) if p[:2] == ("agents", "params"))
    broken = tree.replace(state, {where: state[where] * torch.nan})
    save(path, broken, metadata=metadata)
    resume = ["mgrl", "--resume", str(folder), "--steps", "3"]
    capsys.readouterr()
    assert main(resume) == 1
    error = capsys.readouterr().err
    assert "in step 2 the numbers of task cart_pole are no longer finite" in error
    assert "what is saved is step 1" in error and "--on-bad skip" in error
    assert main([*resume, "--on-bad", "skip"]) == 0
    assert "step 2 went on without task cart_pole" in capsys.readouterr().out
    rows = timeless(folder)
    assert [row.get("bad") for row in rows] == [None, ["cart_pole"], None]
    assert rows[1]["meta_gradient"] == 0.0 and rows[2]["meta_gradient"] > 0
    after = load(files.newest(folder))
    assert all(bool(x.isfinite().all()) for x in tree.leaves(after))


@pytest.mark.parametrize(
    ("name", "words", "features", "actions", "longest"),
    [
        ("cart_pole", ("max_steps=7",), (4,), 2, 7),
        ("catch", (), (10, 5), 3, 9),
        ("catch", ("rows=4", "columns=3"), (4, 3), 3, 3),
        ("horizon", ("deviation=1.0",), (1,), 1, 20),
        ("choice", ("delay=9",), (19,), 2, 10),
        ("choice", ("delay=2",), (5,), 2, 3),
        ("random_walk", ("size=5",), (5,), 1, 500),
    ],
)
def test_worlds_by_name(name, words, features, actions, longest):
    world = mgrl_training.make_world(name, words)
    assert (world.features, world.actions, world.longest) == (features, actions, longest)
    state = world.env.reset(world.level, world.env.noise(world.level, rng.key(0), (2,)))
    assert state["observation"].shape[1:] == torch.Size(features)
