"""Training in a folder, on a training that takes no time: a random walk."""

import io
import os
import re
import signal
import time

import pytest
import torch
from rich.console import Console

from paramtree import rng, tree
from paramtree.checkpoint import load, load_metadata
from paramtree.cli import folder as files
from paramtree.cli.interrupt import Interrupt, interrupts
from paramtree.cli.outcome import Diverged, Refused, Stopped
from paramtree.cli.run import set_up, train
from paramtree.meta import Training


class Killed(BaseException):
    pass


def walk(size=3, *, kill_after=None, nan_at=None, ask_at=None, interrupt=None):
    steps = 0

    def init(key):
        return tree.new({"x": torch.zeros(size), "step": torch.tensor(0), "key": key})

    def step(state):
        nonlocal steps
        if steps == kill_after:
            raise Killed
        steps += 1
        number = int(state["step"]) + 1
        if number == ask_at:
            interrupt.asked = True
        x = state["x"] + rng.normal(rng.fold_in(state["key"], state["step"]), (size,))
        reward = torch.tensor(float("nan")) if number == nan_at else x.sum()
        after = {"x": x, "step": state["step"] + 1, "key": state["key"]}
        return tree.new(after), tree.new({"reward": reward, "age": x[0]})

    return Training(init, step)


def go(folder, training, steps=10, every=0.0, interrupt=None, out=None):
    folder.mkdir(exist_ok=True)
    return train(
        training,
        rng.key(5),
        folder,
        steps=steps,
        checkpoint_every=every,
        metadata={"command": "walk"},
        interrupt=interrupt or Interrupt(),
        console=Console(file=out or io.StringIO(), width=200),
        began=time.monotonic(),
    )


def timeless(folder):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in files.read_metrics(folder)]


@pytest.mark.parametrize("every", [0.0, 1e9], ids=["each step", "never"])
def test_a_killed_run_goes_on_to_the_same_end(tmp_path, every):
    whole = go(tmp_path / "whole", walk())
    for kill_after in (0, 3, 1, 4):
        with pytest.raises(Killed):
            go(tmp_path / "parts", walk(kill_after=kill_after), every=every)
    parts = go(tmp_path / "parts", walk(), every=every)
    assert torch.equal(whole["x"], parts["x"]) and int(parts["step"]) == 10
    assert timeless(tmp_path / "whole") == timeless(tmp_path / "parts")
    assert [row["step"] for row in timeless(tmp_path / "parts")] == list(range(1, 11))


def test_seconds_go_on_from_where_the_checkpoint_was(tmp_path):
    go(tmp_path, walk(), steps=2)
    rows = files.read_metrics(tmp_path)
    rows[-1]["seconds"] = 100.0
    files.write(tmp_path / "metrics.jsonl", b"".join(files.line(row) for row in rows))
    go(tmp_path, walk(), steps=4)
    assert [row["seconds"] >= 100 for row in files.read_metrics(tmp_path)] == [
        False,
        True,
        True,
        True,
    ]


def test_the_last_checkpoint_is_the_state_that_came_back(tmp_path):
    state = go(tmp_path, walk(), every=1e9)
    assert [path.name for path in files.checkpoints(tmp_path)] == ["step_00000010.safetensors"]
    assert torch.equal(load(files.newest(tmp_path))["x"], state["x"])
    assert load_metadata(files.newest(tmp_path)) == {"command": "walk", "step": 10}


def test_more_steps_go_on_with_a_finished_run(tmp_path):
    go(tmp_path / "parts", walk(), steps=4)
    more = go(tmp_path / "parts", walk(), steps=7)
    assert torch.equal(more["x"], go(tmp_path / "whole", walk(), steps=7)["x"])
    assert timeless(tmp_path / "parts") == timeless(tmp_path / "whole")


def test_a_wish_to_stop_finishes_the_step_saves_and_says_how_to_go_on(tmp_path):
    interrupt = Interrupt()
    with pytest.raises(Stopped, match="after step 3 of 10; go on with: paramtree lpg --resume "):
        go(tmp_path, walk(ask_at=3, interrupt=interrupt), every=1e9, interrupt=interrupt)
    assert files.last_step(tmp_path) == 3 and len(timeless(tmp_path)) == 3


def test_a_wish_before_the_first_step_saves_the_first_state(tmp_path):
    interrupt = Interrupt()
    interrupt.asked = True
    with pytest.raises(Stopped):
        go(tmp_path, walk(), interrupt=interrupt)
    assert int(load(files.newest(tmp_path))["step"]) == 0


def test_a_training_that_diverged_is_not_saved(tmp_path):
    with pytest.raises(
        Diverged, match="in step 5: reward is no longer finite; what is saved is st"
    ):
        go(tmp_path, walk(nan_at=5))
    assert files.last_step(tmp_path) == 4


def test_a_checkpoint_of_another_shape_is_refused(tmp_path):
    go(tmp_path, walk(size=4), steps=2)
    with pytest.raises(Refused, match=r"'x' has shape \(4,\), expected \(3,\)") as refusal:
        go(tmp_path, walk(size=3))
    assert refusal.value.status == 2
    assert len(timeless(tmp_path)) == 2


def test_a_truncated_checkpoint_is_refused_and_the_one_before_it_named(tmp_path):
    whole = go(tmp_path, walk(), steps=3)
    path = files.newest(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(Refused, match="truncated.*the run goes on from step_00000002.safetensors"):
        go(tmp_path, walk(), steps=3)
    assert len(timeless(tmp_path)) == 3
    path.unlink()
    assert torch.equal(go(tmp_path, walk(), steps=3)["x"], whole["x"])


def test_progress_without_a_terminal_is_a_few_lines(tmp_path):
    out = io.StringIO()
    go(tmp_path, walk(), steps=1000, every=1e9, out=out)
    lines = out.getvalue().splitlines()
    assert 1 <= len(lines) <= 21
    assert re.fullmatch(
        r"meta-training: 1000/1000, [\d.]+/s, reward -?[\d.]+, took 0:\d\d", lines[-1]
    )


def test_a_signal_is_a_wish_and_a_second_one_an_end(capfd):
    before = signal.getsignal(signal.SIGINT)
    with interrupts() as interrupt:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert signal.getsignal(signal.SIGINT) is before
    assert "Ctrl-C again" in capfd.readouterr().err


def test_threads_and_device_are_seen_to():
    threads = torch.get_num_threads()
    try:
        set_up(1, "cpu")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    with pytest.raises(Refused, match="--threads is 0"):
        set_up(0, "cpu")
    with pytest.raises(Refused, match="--device is 'cpux'"):
        set_up(1, "cpux")
