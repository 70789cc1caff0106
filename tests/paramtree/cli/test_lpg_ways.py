"""Ways to meta-train: each goes on with the same bits, and a task that breaks is named."""

import json
import math

import pytest
import torch

from paramtree import tree
from paramtree.checkpoint import load, load_metadata, save
from paramtree.cli import folder as files
from paramtree.cli import main
from tests.paramtree.cli.test_lpg import same, timeless, tiny

WAYS = {
    "es": "--method es --lifetime 4 --score return",
    "pes": "--method pes --lifetime-input --lifetime 4 8",
    "plr": "--curriculum plr --buffer 8 --lifetime 2",
    "groove": "--curriculum groove --buffer 8 --lifetime 2",
    "frozen": "--curriculum frozen --buffer 8 --lifetime 2",
    "bandit": "--arm-rates 20 40 --arm-coeffs 0.1 0.5 --lifetime 2",
    "worlds": "--levels small dense@18 rand_small --agent-hidden 3",
}


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("way", WAYS)
def test_a_run_that_was_stopped_ends_with_the_same_bits(way, tmp_path):
    words = WAYS[way].split()
    assert main(tiny("--steps", 3, "--out", tmp_path / "whole", *words)) == 0
    assert main(tiny("--steps", 1, "--out", tmp_path / "parts", *words)) == 0
    assert main(["lpg", "--resume", str(tmp_path / "parts"), "--steps", "3"]) == 0
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert same(load(files.newest(whole)), load(files.newest(parts)))
    assert timeless(whole) == timeless(parts) and len(timeless(whole)) == 3


def poison(folder, task):
    """Make a level of a saved run one that can't be learned on."""
    path = files.newest(folder)
    state, metadata = load(path), load_metadata(path)
    where = ("agents", "small", "level", "table", "reward")
    reward = state[where].clone()
    reward[task] = torch.nan
    save(path, tree.replace(state, {where: reward}), metadata=metadata)


def test_a_task_that_breaks_stops_the_run_or_is_left_out_as_the_user_chose(tmp_path, capsys):
    folder = tmp_path / "run"
    long = ["--lifetime", "60"]
    assert main(tiny("--steps", 1, "--out", folder, "--levels", "small", *long)) == 0
    poison(folder, 1)
    resume = ["lpg", "--resume", str(folder), "--steps", "3"]
    assert main(resume) == 1
    error = capsys.readouterr().err
    assert "in step 2 the numbers of task small[1] are no longer finite" in error
    assert "what is saved is step 1" in error and "--on-bad skip" in error
    assert main([*resume, "--on-bad", "skip"]) == 0
    assert "step 2 went on without task small[1]" in capsys.readouterr().out
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row.get("bad") for row in rows] == [None, ["small[1]"], None]
    after = load(files.newest(folder))
    assert all(x.isfinite().all() for x in tree.leaves(after))
    assert after["agents", "small", "age"].tolist()[1] == 2  # born anew with the third step


@pytest.mark.parametrize("method", ["gradient", "es", "pes"])
def test_a_step_without_a_good_task_leaves_the_rule_finite(method, tmp_path, capsys):
    folder = tmp_path / "run"
    words = ["--levels", "small", "--lifetime", "60", "--method", method]
    assert main(tiny("--steps", 1, "--out", folder, *words)) == 0
    for task in range(3):
        poison(folder, task)
    resume = ["lpg", "--resume", str(folder), "--steps", "3"]
    assert main([*resume, "--on-bad", "skip"]) == 0
    assert "step 2 went on without tasks small[0], small[1], small[2]" in capsys.readouterr().out
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert "reward" not in rows[1] and math.isfinite(rows[2]["reward"])
    after = load(files.newest(folder))
    assert all(x.isfinite().all() for x in tree.leaves(after["rule"]))
