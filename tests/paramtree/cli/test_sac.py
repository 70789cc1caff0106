"""``paramtree sac`` as a user has it, in configurations that take a moment."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from gymnasium.spaces import Box
from torch.testing import assert_close

import losses
from paramtree import envs, rng, tree
from paramtree.checkpoint import load, load_metadata
from paramtree.cli import folder as files
from paramtree.cli import main, sac
from paramtree.cli.agents import perceptron, sac_policy
from paramtree.cli.gym_options import SacLearning, SacOptions
from paramtree.cli.world import World
from tests.paramtree.cli.gym_runs import (
    changed,
    killed_and_whole,
    one_thread,
    snapshot,
    timeless,
)

TINY = "sac --threads 1 --workers 2 --length 5 --batch 6 --hidden 8 --start-steps 12".split()
TINY += "--buffer 30 --episode-limit 9 --checkpoint-every 0".split()


@pytest.fixture(autouse=True)
def threads():
    with one_thread():
        yield


def tiny(*words, evaluate=0):
    return [*TINY, "--evaluate", str(evaluate), *map(str, words)]


@pytest.mark.parametrize(
    "more", ["", "--normalize-observations --critic-rate 1e-3"], ids=["plain", "more"]
)
def test_a_run_killed_at_any_moment_ends_with_the_same_bits(tmp_path, monkeypatch, more):
    words = tiny("--steps", 78, *more.split(), evaluate=2)
    parts = killed_and_whole(tmp_path, monkeypatch, words)
    assert [row["step"] for row in timeless(parts)] == list(range(10, 81, 10))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    with one_thread():
        assert main(tiny("--steps", 40, "--out", folder, evaluate=3)) == 0
    return folder


def test_a_finished_run_holds_what_was_promised(finished):
    names = {"config.json", "metrics.jsonl", "checkpoints", "summary.json", "curve.png", "lock"}
    assert {path.name for path in finished.iterdir()} == names
    summary = json.loads((finished / "summary.json").read_text())
    assert set(summary) == {"steps", "mean", "std", "returns", "seconds"}
    assert summary["steps"] == 40 and len(summary["returns"]) == 3
    assert all(-9 * 16.3 < x < 0 for x in summary["returns"])  # of episodes of 9 steps
    rows, learned = timeless(finished), {"loss_critic", "loss_actor", "value", "entropy", "alpha"}
    assert not learned & set(rows[0]) and learned <= set(rows[1])
    assert sum(len(row["returns"]) for row in rows) == rows[-1]["episodes"] == 4
    config = json.loads((finished / "config.json").read_text())
    wanted = {"command": "sac", "options": config["options"], "step": 40}
    assert load_metadata(files.newest(finished)) == wanted


def test_the_last_steps_are_remembered(finished):
    state = load(files.newest(finished))
    memory = state["memory"]
    assert int(memory["count"]) == 40 and memory["steps"].batch_size == (30,)
    steps = memory["steps"]
    assert set(map(str, steps.keys())) == {"observation", "action", "next"}
    now = state["world", "play", "observation"]
    last = steps["next", "observation"][[8, 9]]  # 40 mod 30 are the next to be written
    running = state["world", "count"] > 0  # the others have begun anew
    assert torch.equal(last[running], now[running]) and bool(running.any())
    assert bool((steps["action"].abs() <= 1).all()) and not steps["next", "terminated"].any()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--env CartPole-v1", "whose actions are Discrete(2); paramtree sac is for those of a Box"),
        ("--env Pendulum-v0", "'Pendulum-v1'"),
        ("--buffer 0", "--buffer is 0"),
        ("--batch 0", "--batch is 0"),
        ("--updates 0", "--updates is 0"),
        ("--hidden 0", "--hidden is 0"),
        ("--tau 2", "--tau is 2.0, expected a number from 0 to 1"),
        ("--alpha 0", "--alpha is 0"),
        ("--critic-rate -1", "--critic-rate is -1.0"),
        ("--start-steps -1", "--start-steps is -1"),
    ],
)
def test_nothing_is_overwritten_by_wrong_use(finished, words, named, capsys):
    before = snapshot(finished)
    assert main(tiny("--steps", 2, "--out", finished, "--fresh", *words.split())) == 2
    error = capsys.readouterr().err
    assert named in error and error.startswith("paramtree: ") and error.count("\n") == 1
    assert changed(before, finished) <= {"lock"}


def test_another_commands_run_is_refused_and_its_own_named(finished, capsys):
    before = snapshot(finished)
    for command in ("ppo", "lpg"):
        assert main([command, "--resume", str(finished)]) == 2
        text = f"holds a run of paramtree sac; go on with it by paramtree sac --resume {finished}"
        assert text in capsys.readouterr().err
    assert changed(before, finished) == set()


def test_a_training_that_diverged_says_what_to_change(tmp_path, capsys):
    words = tiny("--steps", 100, "--rate", 1e30, "--out", tmp_path / "run")
    assert main(words) == 1
    error = capsys.readouterr().err
    assert "the training diverged in step" in error and "--rate" in error


def test_help_loads_neither_torch_nor_gymnasium():
    code = "import sys; from paramtree.cli import main\n"
    code += "try: main(['sac', '--help'])\nexcept SystemExit as end:\n"
    code += "    print(end.code, [name for name in ('torch', 'gymnasium') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 []" and "--target-entropy" in done.stdout


# ------------------------------------------------------------------------------- the learning


def learner(**learning):
    first = {"batch": 6, "start_steps": 3, "buffer": 50}
    options = SacOptions(length=4, learning=SacLearning(**{**first, **learning}))
    options = replace(options, networks=replace(options.networks, hidden=(5,)))
    world = World(options.env, (), None, options.workers, "cpu")
    return options, world, *sac.make_training(options, world, print)


def an_update(options):
    """The function under test, by the parts that a training makes it of."""
    policy = sac_policy("x", Box(-1, 1, (1,)), 3, options.networks)
    critic = perceptron(4, 1, options.networks)
    chosen = options.learning
    return sac.make_update(policy, critic, sac.make_optimizer(chosen), chosen, 1)


def modules(params, target):
    """The networks as torch's, by name."""
    torso, head = params["actor", "torso", "linear_0"], params["actor", "head"]
    both = {k: torch.cat([head["loc", k], head["scale", k]]) for k in ("weight", "bias")}
    own: dict = {"actor": {"linear_0": torso, "linear_1": tree.new(both)}}
    for kind, rows in (("critic", params["critics"]), ("target", target)):
        own |= {f"{kind}{i}": tree.lock(rows[i]) for i in range(2)}
    nets = {}
    for name, layers in own.items():
        sizes = (3, 5, 2) if name == "actor" else (4, 5, 1)
        nets[name] = torch.nn.Sequential(
            torch.nn.Linear(*sizes[:2]), torch.nn.ReLU(), torch.nn.Linear(*sizes[1:])
        )
        rows = {"0": layers["linear_0"], "2": layers["linear_1"]}
        weights = {f"{n}.{k}": x for n, row in rows.items() for k, x in row.items()}
        nets[name].load_state_dict(weights)
    return nets


@pytest.mark.parametrize(
    "learning",
    [
        {"gamma": 0.9},
        {"critic_rate": 0.03, "alpha_rate": 0.1, "target_entropy": -3.0, "tau": 0.2, "alpha": 2.0},
        {"learn_alpha": False, "alpha": 0.3},
    ],
    ids=["defaults", "rates", "fixed"],
)
def test_updates_are_the_papers(learning):
    """Against torch's modules, one loss after the other, and an Adam for each part."""
    options, _, training, _ = learner(rate=0.02, **learning)
    chosen, state = options.learning, training.init(rng.key(3))
    learned = state["params"], state["target"], state["optimizer"]
    nets = modules(*learned[:2])
    log_alpha = learned[0]["log_alpha"].clone()
    assert float(log_alpha) == pytest.approx(math.log(chosen.alpha))
    log_alpha.requires_grad_()
    weights = {
        "actor": [*nets["actor"].parameters()],
        "critics": [p for i in range(2) for p in nets[f"critic{i}"].parameters()],
        "alpha": [log_alpha] if chosen.learn_alpha else [],
    }
    rates = {"actor": chosen.rate, "critics": chosen.critic_rate, "alpha": chosen.alpha_rate}
    adams = {
        name: torch.optim.Adam(own, lr=rates[name] or chosen.rate)
        for name, own in weights.items()
        if own
    }

    def acted(seen, z):
        loc, raw = nets["actor"](seen).chunk(2, -1)
        z, base = loc + raw.exp() * z, torch.distributions.Normal(loc, raw.exp())
        return z.tanh(), (base.log_prob(z) - (1 - z.tanh() ** 2).log()).sum(-1)

    def values(kind, seen, action):
        pairs = torch.cat([seen, action], -1)
        return torch.cat([nets[f"{kind}{i}"](pairs) for i in range(2)], -1)

    update, wanted = an_update(options), chosen.target_entropy or -1.0
    for n in range(5):
        numbers = rng.normal(rng.key(10 + n), (40, 9))
        seen, after = numbers[:, :3], numbers[:, 3:6]
        action, reward, ends = numbers[:, 6:7].tanh(), numbers[:, 7] - 3, numbers[:, 8] > 1
        following = tree.new({"features": after, "reward": reward, "terminated": ends}, (40,))
        td = tree.new({"features": seen, "action": action, "next": following}, (40,))
        learned, metrics = update(learned, td, rng.key(20 + n))

        now, later = rng.normal(rng.key(20 + n), (2, 40, 1)).unbind(0)
        alpha = log_alpha.detach().exp()
        with torch.no_grad():
            next_action, log_prob = acted(after, later)
            follows = values("target", after, next_action).amin(-1) - alpha * log_prob
            target = reward + chosen.gamma * ~ends * follows
        sample, log_prob = acted(seen, now)
        errors = values("critic", seen, action) - target.unsqueeze(-1)
        losses = {
            "actor": (alpha * log_prob - values("critic", seen, sample).amin(-1)).mean(),
            "critics": 0.5 * errors.square().mean(0).sum(),
            "alpha": -(log_alpha * (log_prob.detach() + wanted)).mean(),
        }
        assert_close(metrics["loss_actor"], losses["actor"].detach(), rtol=1e-3, atol=1e-4)
        assert_close(metrics["loss_critic"], losses["critics"].detach(), rtol=1e-3, atol=1e-4)
        assert_close(metrics["alpha"], alpha, rtol=1e-3, atol=1e-4)
        assert_close(metrics["entropy"], -log_prob.detach().mean(), rtol=1e-3, atol=1e-4)
        slopes = {name: torch.autograd.grad(losses[name], weights[name]) for name in adams}
        for name, adam in adams.items():
            for p, slope in zip(weights[name], slopes[name], strict=True):
                p.grad = slope
            adam.step()
        with torch.no_grad():
            for i in range(2):
                both = (nets[f"{kind}{i}"].parameters() for kind in ("target", "critic"))
                for old, new in zip(*both, strict=True):
                    old += chosen.tau * (new - old)
    for name, net in modules(*learned[:2]).items():
        for ours, theirs in zip(net.parameters(), nets[name].parameters(), strict=True):
            assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert_close(learned[0]["log_alpha"], log_alpha.detach(), rtol=1e-3, atol=1e-4)


def test_a_round_acts_remembers_and_updates():
    options, world, training, player = learner()
    state = training.init(rng.key(3))
    key, begun = state["key"], state["world"]
    learned = [tree.map(torch.clone, state[name]) for name in ("params", "target", "optimizer")]
    agent = player(tree.new({"params": learned[0], "buffers": state["buffers"]}))
    after, _ = training.step(state)  # with one update, at its fourth step
    world.enter(begun, print)
    replay, steps = envs.replay_buffer(50), []
    for t in range(4):
        acting, choice, noise = rng.split(rng.fold_in(key, t), 3)
        _, td = world.play(*agent[:3], acting, 1, agent.dist_class)
        steps.append(sac.remembered(td))
    memory = replay.init(steps[0])
    for step in steps:
        memory = replay.add(memory, step)
    td = replay.sample(memory, choice, 6)
    following = tree.replace(td["next"], {"features": td["next", "observation"]})
    td = tree.replace(td, {"features": td["observation"], "next": following})
    params, target, _ = an_update(options)(tuple(learned), td, noise)[0]
    found = {"params": after["params"], "target": after["target"], "memory": after["memory"]}
    wanted = {"params": params, "target": target, "memory": memory}
    pairs = zip(tree.leaves(tree.new(found)), tree.leaves(tree.new(wanted)), strict=True)
    assert all([torch.equal(a, b) for a, b in pairs])


def test_several_updates_and_workers_make_as_many_more():
    counts = []
    for workers, updates in ((1, 1), (1, 3), (2, 3)):
        options = SacOptions(workers=workers, length=6)
        learning = SacLearning(updates=updates, start_steps=4 * workers, batch=4, buffer=50)
        options = replace(options, learning=learning)
        world = World(options.env, (), None, workers, "cpu")
        training, _ = sac.make_training(options, world, print)
        after, _ = training.step(training.init(rng.key(0)))
        counts.append(int(after["optimizer", "adam", "count"]))
        assert int(after["step"]) == 6 * workers
    assert counts == [2, 6, 12]


def test_a_bounded_action_reaches_its_bounds():
    """From -1 to 1 for the agent is from -2 to 2 for the pendulum."""
    _, world, training, player = learner()
    agent = player(training.init(rng.key(0)))
    _, td = world.play(*agent[:3], rng.key(1), 50, losses.tanh_normal)
    sent = world.leave()["actions"][0, :50]
    assert_close(sent, 2 * td["action"][0])
    assert float(sent.abs().max()) > 1


@pytest.mark.slow
def test_the_defaults_swing_the_pendulum_up(tmp_path):
    assert main(["sac", "--threads", "1", "--out", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["mean"] >= -200 and len(summary["returns"]) == 100
