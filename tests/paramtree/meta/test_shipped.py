"""Rules that come with the library: the run's own, bit for bit, and ready to train agents."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

from paramtree import rng, tree
from paramtree.cli import main
from paramtree.cli.command import parse
from paramtree.cli.eval_lpg import saved_rule
from paramtree.cli.options import from_config, to_config
from paramtree.cli.training import make_rule
from paramtree.envs import level_distribution
from paramtree.meta import load_rule, lpg_population, reward_curve, rule_card, shipped
from tests.benchmarks.ship_rule import ship

SIZES = "--threads 1 --tasks 2 --workers 2 --length 4 --updates 1 --hidden 6 --prediction-size 4"
RUN = f"lpg {SIZES} --steps 2 --levels small --cell lstm --gamma-input --activation none".split()
EVALUATE = "--evaluate 2 --evaluate-updates 2 --evaluate-workers 2 --average 0.5".split()
WORLD = level_distribution("small")


@pytest.fixture(scope="module", autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ship") / "run"
    assert main([*RUN, *EVALUATE, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def card(run, tmp_path_factory):
    return ship(run, "tiny", tmp_path_factory.mktemp("weights"))


def lives(rule, params, card):
    habitat = lpg_population(WORLD, 1, **card["agents"]).habitat
    levels = WORLD.sample(rng.split(rng.key(0), 2))
    return reward_curve(habitat, rule, params, levels, rng.key(1), updates=3, length=5)


def test_a_rule_is_the_runs(run, card):
    rule, params = load_rule(card)
    options, wanted = saved_rule(run, "cpu")
    assert tree.paths(params) == tree.paths(wanted) and params.is_locked
    both = zip(tree.leaves(params), tree.leaves(wanted), strict=True)
    assert all(torch.equal(a, b) for a, b in both)
    head = rng.normal(rng.key(3), (1, 6))  # after two steps it's next to nothing
    params, wanted = (tree.replace(x, {"pi_hat.weight": head}) for x in (params, wanted))
    pairs = (rule, params), (make_rule(options), wanted)
    ours, theirs = (lives(*pair, rule_card(card)) for pair in pairs)
    assert torch.equal(ours, theirs)


def test_a_card_says_what_it_is_of(run, card):
    found = rule_card(card)
    assert found["name"] == "tiny" and found["steps"] == 2
    assert found["results"] == json.loads((run / "summary.json").read_text())
    options = from_config(found["options"])
    again = parse(found["command"].split()[1:] + ["--threads", "1"])
    assert to_config(again) == to_config(options)
    assert set(found["versions"]) == {"paramtree", "torch", "tensordict"}


def test_it_loads_without_safetensors(card):
    code = f"""
import sys
sys.modules["safetensors"] = None
from paramtree.meta import load_rule
rule, params = load_rule({str(card)!r})
assert float(params["y_hat", "bias"].abs().sum()) > 0
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


def test_what_the_library_brings_along_loads_and_trains():
    names = sorted(path.stem for path in shipped.WEIGHTS.glob("*.json"))
    for name in names:
        (rule, params), found = load_rule(name), rule_card(name)
        assert found["name"] == name
        assert lives(rule, params, found).shape == (2, 3)
        size = sum(path.stat().st_size for path in shipped.WEIGHTS.glob(f"{name}.*"))
        assert size < 2**20


def test_bad_input(card, tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "WEIGHTS", card.parent)
    load_rule("tiny")
    for call in (load_rule, rule_card):
        said = f"{call.__name__}: name is 'tinny'.*nearest is 'tiny'"
        with pytest.raises(ValueError, match=said):
            call("tinny")
    monkeypatch.setattr(shipped, "WEIGHTS", tmp_path)
    with pytest.raises(ValueError, match="name is 'tiny', expected one of none; or the path"):
        load_rule("tiny")
    for path in card.parent.iterdir():
        shutil.copy(path, tmp_path)
    other, weights = tmp_path / "tiny.json", tmp_path / "tiny.safetensors"
    text = other.read_text()
    other.write_text(text.replace('"n_hidden": 6', '"n_hidden": 7'))
    with pytest.raises(
        ValueError, match=r"bias_hh has shape \(24,\), expected \(28,\) \(from the c"
    ):
        load_rule(other)
    other.write_text(text)
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(ValueError, match="tiny.safetensors' is not the file that its card is of"):
        load_rule(other)
    with pytest.raises(OSError):
        load_rule(tmp_path / "none.json")
    for call in (load_rule, rule_card):
        with pytest.raises(TypeError, match=f"{call.__name__}: name is a NoneType, expected the"):
            call(None)
        for damaged, said in (
            ("{}", "tiny.json', expected a card, and it lacks network, rule, agents, options, sh"),
            ("[1]", "expected a card, and it lacks network"),
            (text[:-9], "tiny.json', expected a card, and its text is no JSON"),
        ):
            other.write_text(damaged)
            with pytest.raises(ValueError, match=f"{call.__name__}: name is .*{said}"):
                call(other)
    for old, new in (('"n_hidden"', '"n_hid"'), ('"cell": "lstm"', '"cell": "x"')):
        other.write_text(text.replace(old, new))
        with pytest.raises(ValueError, match="load_rule: name is .* whose rule can be made: lpg_n"):
            load_rule(other)
