"""``paramtree ppo`` as a user has it, in configurations that take a moment."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from paramtree import interop, rng
from paramtree.checkpoint import load, load_metadata
from paramtree.cli import folder as files
from paramtree.cli import main, ppo
from paramtree.cli.command import parse
from paramtree.cli.gym_options import PpoLearning, PpoOptions
from paramtree.cli.options import flat, from_config, to_config
from paramtree.cli.world import World
from paramtree.interop.gymnasium import evaluate
from tests.paramtree.cli.gym_runs import (
    changed,
    different,
    killed_and_whole,
    one_thread,
    snapshot,
    timeless,
)

TINY = "ppo --threads 1 --workers 2 --length 16 --minibatch 12 --epochs 2 --hidden 8".split()
TINY += ["--checkpoint-every", "0"]
PENDULUM = "--env Pendulum-v1 --episode-limit 30 --normalize-observations --schedule constant"


@pytest.fixture(autouse=True)
def threads():
    with one_thread():
        yield


def tiny(*words, evaluate=0):
    return [*TINY, "--evaluate", str(evaluate), *map(str, words)]


@pytest.mark.parametrize("more", ["", PENDULUM], ids=["CartPole", "Pendulum"])
def test_a_run_killed_at_any_moment_ends_with_the_same_bits(tmp_path, monkeypatch, more):
    words = tiny("--steps", 250, *more.split(), evaluate=2)
    parts = killed_and_whole(tmp_path, monkeypatch, words)
    assert [row["step"] for row in timeless(parts)] == list(range(32, 257, 32))


def test_ctrl_c_finishes_the_round_and_says_how_to_go_on(tmp_path):
    words = tiny("--steps", 10**7, "--out", tmp_path / "run", "--checkpoint-every", 1e9)
    command = [sys.executable, "-m", "paramtree.cli", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while len(files.read_metrics(tmp_path / "run")) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    output, error = process.communicate(timeout=30)
    assert process.returncode == 130, output + error
    step = files.last_step(tmp_path / "run")
    assert step == files.read_metrics(tmp_path / "run")[-1]["step"] >= 64
    last = f"paramtree: stopped after step {step} of 10000000; go on with: paramtree ppo --resume "
    assert error.splitlines()[-1] == last + str(tmp_path / "run")


def test_ctrl_c_in_the_evaluation_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGINT)
        return evaluate(*args, **kwargs)

    words = tiny("--steps", 32, "--out", tmp_path / "run", evaluate=2)
    with monkeypatch.context() as patch:
        patch.setattr("paramtree.interop.gymnasium.evaluate", interrupted)
        assert main(words) == 130
    last = f"stopped in the evaluation; go on with: paramtree ppo --resume {tmp_path / 'run'}\n"
    assert capsys.readouterr().err.endswith(last)
    assert not (tmp_path / "run" / "summary.json").exists()
    assert main(["ppo", "--resume", str(tmp_path / "run")]) == 0


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    with one_thread():
        assert main(tiny("--steps", 70, "--out", folder, evaluate=3)) == 0
    return folder


def test_a_finished_run_holds_what_was_promised(finished):
    names = {"config.json", "metrics.jsonl", "checkpoints", "summary.json", "curve.png", "lock"}
    assert {path.name for path in finished.iterdir()} == names
    summary = json.loads((finished / "summary.json").read_text())
    assert set(summary) == {"steps", "mean", "std", "returns", "seconds"}
    returns = torch.tensor(summary["returns"], dtype=torch.float64)
    assert summary["steps"] == 96 and len(returns) == 3 and bool((returns >= 8).all())
    assert_close(torch.tensor(summary["mean"]), returns.mean().float())
    assert_close(torch.tensor(summary["std"]), returns.std(correction=0).float())
    assert (finished / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name[5:13] for path in files.checkpoints(finished)] == ["00000064", "00000096"]


def test_metrics_tell_of_each_episode(finished):
    rows = timeless(finished)
    ended = [x for row in rows for x in row["returns"]]  # a return is a length, on CartPole
    running = load(files.newest(finished))["world", "running"]
    assert len(ended) == rows[-1]["episodes"] >= 2
    assert sum(ended) + float(running.sum()) == 96
    assert rows[-1]["return"] == pytest.approx(sum(ended) / len(ended))  # fewer than 20
    rates = [2e-3 * (1 - step / 70) for step in (0, 32, 64)]
    assert [row["rate"] for row in rows] == pytest.approx(rates)


def test_a_checkpoint_says_what_it_is_of(finished):
    config = json.loads((finished / "config.json").read_text())
    wanted = {"command": "ppo", "options": config["options"], "step": 96}
    assert load_metadata(files.newest(finished)) == wanted
    assert config["options"]["threads"] == 1 and config["options"]["networks"]["hidden"] == [8]


def test_options_survive_their_configuration():
    options = parse(["ppo", "--hidden", "3", "4", "--env-args", "g=1", "--threads", "2"])
    assert isinstance(options, PpoOptions) and options.networks.hidden == (3, 4)
    assert from_config(json.loads(json.dumps(to_config(options))), PpoOptions) == options
    assert flat(options) == flat(PpoOptions()) | {
        "--hidden": (3, 4),
        "--env-args": ("g=1",),
        "--threads": 2,
    }


def test_resume_of_a_finished_run_trains_nothing_and_says_the_same(finished, capsys):
    before, summary = snapshot(finished), json.loads((finished / "summary.json").read_text())
    assert main(["ppo", "--resume", str(finished)]) == 0
    assert changed(before, finished) <= {"lock", "summary.json", "curve.png"}
    again = json.loads((finished / "summary.json").read_text())
    assert {**again, "seconds": 0} == {**summary, "seconds": 0}
    assert "training" not in capsys.readouterr().out


def test_more_steps_and_episodes_may_be_asked_for_on_the_way(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    words = tiny("--schedule", "constant")
    assert main([*words, "--steps", "96", "--out", str(whole)]) == 0
    assert main([*words, "--steps", "32", "--out", str(parts)]) == 0
    assert main(["ppo", "--resume", str(parts), "--steps", "96", "--evaluate", "2"]) == 0
    assert different(whole, parts) == [] and timeless(whole) == timeless(parts)
    assert len(json.loads((parts / "summary.json").read_text())["returns"]) == 2


@pytest.mark.parametrize("flag", [True, False])
def test_an_evaluation_is_of_the_agent_that_was_trained(finished, tmp_path, flag):
    folder = shutil.copytree(finished, tmp_path / "run")
    words = [f"--{'' if flag else 'no-'}deterministic", "--evaluate", "23"]
    assert main(["ppo", "--resume", str(folder), *words]) == 0
    options = parse(["ppo", "--resume", str(folder)])
    assert options.evaluation.deterministic is flag
    world = World(options.env, (), None, 2, "cpu")
    _, player = ppo.make_training(options, world, print)
    agent, key = player(load(files.newest(folder))), rng.fold_in(rng.key(0), "evaluation")
    returns = [
        evaluate(world.copies(20), *agent[:3], rng.fold_in(key, first), n, deterministic=flag)
        for first, n in ((0, 20), (20, 3))
    ]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["returns"] == torch.cat(returns).tolist()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--hidden 9 --threads 2", "--threads (is 1, not 2), --hidden (is (8,), not (9,))"),
        ("--env Acrobot-v1", "--env (is CartPole-v1, not Acrobot-v1)"),
        ("--steps 64", "--steps is 64, but the run has done 96"),
        ("--out elsewhere", "leave out --out"),
    ],
)
def test_resume_refuses_what_would_change_the_run(finished, words, named, capsys):
    before = snapshot(finished)
    assert main(["ppo", "--resume", str(finished), *words.split()]) == 2
    assert named in capsys.readouterr().err
    assert changed(before, finished) <= {"lock"}


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("", "already holds a run; go on with it by paramtree ppo --resume"),
        ("--env CartPol-v1", "no environment that is registered"),
        ("--env CartPol-v1", "the nearest are 'CartPole-v1'"),
        ("--env nowhere:CartPole-v1", "No module named 'nowhere'"),
        ("--env-args g", "--env-args has 'g', expected name=value"),
        ("--env-args depth=3", "can't be made: CartPoleEnv.__init__() got an unexpected"),
        ("--env-args render_mode=no", "can't be made"),
        ("--workers 0", "--workers is 0, expected at least 1"),
        ("--episode-limit 0", "--episode-limit is 0, expected at least 1"),
        ("--length 0", "--length is 0"),
        ("--epochs 0", "--epochs is 0"),
        ("--minibatch 0", "--minibatch is 0"),
        ("--hidden 8 0", "--hidden is 0"),
        ("--steps -1", "--steps is -1, expected at least 0"),
        ("--gamma 2", "--gamma is 2.0, expected a number from 0 to 1"),
        ("--lmbda nan", "--lmbda is nan"),
        ("--rate -1", "--rate is -1.0"),
        ("--clip -0.1", "--clip is -0.1"),
        ("--max-grad-norm -1", "--max-grad-norm is -1.0"),
        ("--env Pendulum-v1 --first-std 0", "--first-std is 0"),
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


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    assert main(["ppo", "--resume", str(tmp_path)]) == 2
    text = f"No such file or directory); start one with paramtree ppo --out {tmp_path}"
    assert text in capsys.readouterr().err


def test_an_environment_with_other_spaces_is_refused(monkeypatch, tmp_path, capsys):
    import gymnasium
    from gymnasium import spaces

    class Odd(gymnasium.Env):
        def __init__(self, action=None, observation=None):
            self.action_space = action or spaces.Discrete(2)
            self.observation_space = observation or spaces.Discrete(2)

    for action in (spaces.MultiDiscrete([2, 2]), spaces.Dict({"a": spaces.Discrete(2)})):
        gymnasium.register("Odd-v0", Odd, kwargs={"action": action})
        assert main(tiny("--env", "Odd-v0", "--out", tmp_path / "run")) == 2
        assert f"whose actions are {action}; paramtree ppo is for" in capsys.readouterr().err
        del gymnasium.registry["Odd-v0"]
    text = spaces.Text(4)
    gymnasium.register("Odd-v0", Odd, kwargs={"observation": text})
    assert main(tiny("--env", "Odd-v0", "--out", tmp_path / "run")) == 2
    assert f"whose observations are {text}; expected Box" in capsys.readouterr().err
    del gymnasium.registry["Odd-v0"]
    assert not (tmp_path / "run").exists()


def test_a_training_that_diverged_says_what_to_change(tmp_path, capsys):
    words = tiny("--steps", 320, "--rate", 1e38, "--max-grad-norm", "None")
    assert main([*words, "--schedule", "constant", "--out", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert "the training diverged in step" in error
    assert error.endswith("start again with a smaller --rate\n")


def test_help_loads_neither_torch_nor_gymnasium():
    code = "import sys; from paramtree.cli import main\n"
    code += "try: main(['ppo', '--help'])\nexcept SystemExit as end:\n"
    code += "    print(end.code, [name for name in ('torch', 'gymnasium') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 []"
    assert "--max-grad-norm" in done.stdout and done.stderr == ""


def test_without_gymnasium_the_extra_is_named(tmp_path, monkeypatch, capsys):
    for name in ("paramtree.interop.gymnasium", "paramtree.cli.world", "paramtree.cli.ppo"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delattr(interop, "gymnasium", raising=False)
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    assert main(tiny("--out", tmp_path / "run")) == 2
    error = capsys.readouterr().err
    assert error.endswith("needs gymnasium: pip install 'paramtree[gymnasium]'\n")
    assert error.count("\n") == 1 and not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------- the learning


def learner(**learning):
    options = PpoOptions(workers=2, length=10, learning=PpoLearning(**learning))
    options = replace(options, networks=replace(options.networks, hidden=(6,)))
    world = World(options.env, (), None, options.workers, "cpu")
    training, player = ppo.make_training(options, world, print)
    return options, world, training, player


def test_a_round_is_the_papers():
    """Against a loop over torch's modules, their gradients and torch's Adam."""
    options, world, training, player = learner(epochs=2, minibatch=7, entropy_coeff=0.03)
    chosen, state = options.learning, training.init(rng.key(3))
    acting, learning = rng.split(rng.fold_in(state["key"], 0))
    after, metrics = training.step(state)
    model, params, buffers, dist_class = player(state)
    again = world.begin(rng.fold_in(state["key"], "world"))
    assert torch.equal(again["play", "observation"], state["world", "play", "observation"])
    _, td = world.play(model, params, buffers, acting, options.length, dist_class)

    nets = {
        name: torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, size))
        for name, size in (("actor", 2), ("critic", 1))
    }
    for name, net in nets.items():
        own = params[name]
        layers = {"0": own["linear_0"], "2": own["linear_1"]}
        net.load_state_dict({f"{n}.{k}": x for n, row in layers.items() for k, x in row.items()})
    with torch.no_grad():
        value, following = (nets["critic"](x["observation"]).squeeze(-1) for x in (td, td["next"]))
    advantage = torch.zeros(2, 10)
    for b in range(2):
        later = 0.0
        for t in reversed(range(10)):
            goes_on = 1 - float(td["next", "terminated"][b, t])
            same_episode = 1 - float(td["next", "done"][b, t])
            error = td["next", "reward"][b, t] + 0.99 * goes_on * following[b, t] - value[b, t]
            later = error + 0.99 * 0.95 * same_episode * later
            advantage[b, t] = later
    flat = {"obs": td["observation"], "action": td["action"], "log": td["action_log_prob"]}
    flat |= {"advantage": advantage, "target": advantage + value}
    flat = {name: x.flatten(0, 1) for name, x in flat.items()}
    weights = [p for net in nets.values() for p in net.parameters()]
    adam, means = torch.optim.Adam(weights, lr=chosen.rate), {}
    for key in rng.split(learning, 2):
        for rows in rng.permutation(key, 20).split(7):
            batch = {name: x[rows] for name, x in flat.items()}
            dist = torch.distributions.Categorical(logits=nets["actor"](batch["obs"]))
            ratio = (dist.log_prob(batch["action"]) - batch["log"]).exp()
            a = batch["advantage"]
            a = (a - a.mean()) / (a.std(correction=0) + 1e-8)
            gain = torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a)
            miss = (nets["critic"](batch["obs"]).squeeze(-1) - batch["target"]).square()
            parts = {"loss_objective": -gain.mean(), "loss_critic": 0.5 * miss.mean()}
            parts["loss_entropy"] = -0.03 * dist.entropy().mean()
            adam.zero_grad()
            sum(parts.values()).backward()
            norm = torch.nn.utils.clip_grad_norm_(weights, 0.5)
            adam.step()
            for name, x in {**parts, "gradient_norm": norm}.items():
                means.setdefault(name, []).append(x.detach())
    for name, rows in means.items():
        assert_close(metrics[name], torch.stack(rows).mean(), rtol=1e-4, atol=1e-5)
    for name, net in nets.items():
        ours, theirs = after["params", name], net.state_dict()
        for layer, row in (("0", ours["linear_0"]), ("2", ours["linear_1"])):
            for k in ("weight", "bias"):
                assert_close(row[k], theirs[f"{layer}.{k}"], rtol=1e-4, atol=1e-5)
                assert not torch.equal(row[k], params[name, f"linear_{int(layer) // 2}", k])


def test_a_small_divergence_is_enough_for_no_further_epoch():
    for target, epochs in ((None, 5), (0.0, 1)):
        _, _, training, _ = learner(epochs=5, minibatch=4, target_kl=target)
        assert int(training.step(training.init(rng.key(0)))[1]["epochs"]) == epochs


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [("linear", [1, 0.75, 0]), ("cosine", [1, 0.8535534, 0]), ("constant", [1, 1, 1])],
)
def test_the_rate_falls_as_asked_for(schedule, rates):
    chosen = PpoLearning(rate=1.0, schedule=schedule)
    found = [ppo.learning_rate(chosen, step, 100) for step in (0, 25, 100)]
    assert found == pytest.approx(rates)


def test_values_are_held_near_what_they_were():
    """With a clip of 0 the critic's error is that of the old value, or more."""
    steps = {}
    for clip in (None, 1e-9):
        _, _, training, _ = learner(epochs=1, minibatch=20, value_clip=clip, critic_coeff=1.0)
        steps[clip] = training.step(training.init(rng.key(0)))[1]["loss_critic"]
    assert_close(steps[None], steps[1e-9])  # at the first step V is the old value
    _, _, training, _ = learner(epochs=9, minibatch=20, value_clip=1e-9, rate=0.05)
    clipped = training.step(training.init(rng.key(0)))[1]["loss_critic"]
    _, _, training, _ = learner(epochs=9, minibatch=20, rate=0.05)
    free = training.step(training.init(rng.key(0)))[1]["loss_critic"]
    assert clipped > free


def test_what_is_seen_is_normalized_by_earlier_rounds():
    options = PpoOptions(env="Pendulum-v1", workers=3, length=5)
    networks = replace(options.networks, normalize_observations=True)
    learning = PpoLearning(epochs=1, minibatch=15)
    options = replace(options, networks=networks, learning=learning)
    world = World(options.env, (), None, options.workers, "cpu")
    training, player = ppo.make_training(options, world, print)
    state = training.init(rng.key(0))
    observed = []
    for rounds in range(3):
        own = player(state).buffers["view", "normalizer"]
        if rounds:
            every = torch.cat(observed).double()
            assert_close(own["mean"], every.mean(0), rtol=0, atol=1e-4)
            assert_close(own["var"], every.var(0, correction=0), rtol=0, atol=1e-3)
        assert float(own["count"]) == pytest.approx(15 * rounds, abs=1e-3)
        acting = rng.split(rng.fold_in(state["key"], int(state["step"])))[0]
        world.enter(state["world"], print)
        model, params, buffers, dist_class = player(state)
        _, td = world.play(model, params, buffers, acting, options.length, dist_class)
        observed.append(td["observation"].flatten(0, 1))
        state, metrics = training.step(state.clone())  # whose workers come back
        assert abs(float(metrics["kl_approx"])) < 1e-6  # at first it's the policy that acted


@pytest.mark.slow
def test_the_defaults_solve_cartpole(tmp_path):
    assert main(["ppo", "--threads", "1", "--out", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["mean"] >= 475 and len(summary["returns"]) == 100


@pytest.mark.slow
def test_vectors_are_learned_too(tmp_path):
    words = "ppo --threads 1 --env Pendulum-v1 --steps 150000 --gamma 0.9 --rate 1e-3".split()
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["mean"] > -400
