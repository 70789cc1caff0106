"""What the tests of ``paramtree ppo`` and ``paramtree sac`` share."""

import contextlib
import json
from importlib import import_module

import torch

from paramtree import tree
from paramtree.checkpoint import load
from paramtree.cli import folder as files
from paramtree.cli import main


class Killed(BaseException):
    """Nobody catches it, and nothing is saved."""


@contextlib.contextmanager
def one_thread():
    """What a command changes in this process is changed back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def killed(monkeypatch, words, rounds):
    """Run a command that is killed when it has made so many rounds."""
    algorithm = import_module(f"paramtree.cli.{words[0]}")
    original = algorithm.make_training

    def make(*args):
        training, player = original(*args)
        done = 0

        def step(state):
            nonlocal done
            if done == rounds:
                raise Killed
            done += 1
            return training.step(state)

        return training._replace(step=step), player

    with monkeypatch.context() as patch, contextlib.suppress(Killed):
        patch.setattr(algorithm, "make_training", make)
        main(words)


def killed_and_whole(tmp_path, monkeypatch, words):
    """Run a command at once, and killed three times on the way; both end with the same bits."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([*words, "--out", str(whole)]) == 0
    killed(monkeypatch, [*words, "--out", str(parts)], 3)
    for rounds in (0, 2):
        killed(monkeypatch, [words[0], "--resume", str(parts)], rounds)
    assert main([words[0], "--resume", str(parts)]) == 0
    assert different(whole, parts) == []
    assert timeless(whole) == timeless(parts)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (whole, parts)]
    assert all(summary.pop("seconds") > 0 for summary in summaries)
    assert summaries[0] == summaries[1]
    return parts


def timeless(folder):
    """Metrics without what the clock says."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in files.read_metrics(folder)]


def different(left, right):
    """Paths at which the newest checkpoints of two runs differ in a bit."""
    a, b = (load(files.newest(folder)) for folder in (left, right))
    assert tree.paths(a) == tree.paths(b) and len(tree.paths(a)) > 20
    rows = zip(tree.paths(a), tree.leaves(a), tree.leaves(b), strict=True)
    return [path for path, x, y in rows if not torch.equal(x, y)]


def snapshot(folder):
    """All files of a folder with what is in them."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def changed(before, folder):
    """Names of the files that are no longer what they were."""
    after = snapshot(folder)
    return {path.name for path in before | after if before.get(path) != after.get(path)}
