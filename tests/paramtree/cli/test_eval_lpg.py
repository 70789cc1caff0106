"""``paramtree eval-lpg``: a saved rule on other levels."""

import json
from pathlib import Path

import pytest
import torch

from paramtree import tree
from paramtree.checkpoint import load, load_metadata, save
from paramtree.cli import evaluation, main
from paramtree.cli import folder as files
from paramtree.cli.outcome import Stopped
from paramtree.meta import shipped
from tests.benchmarks.ship_rule import ship

TINY = "lpg --threads 1 --tasks 2 --workers 2 --length 3 --updates 1 --hidden 4 --steps 1".split()
FEW = "--levels sparse --count 3 --updates 4 --threads 1".split()


@pytest.fixture(scope="module", autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert main([*TINY, "--evaluate", "0", "--out", str(folder)]) == 0
    return folder


def test_a_folder_and_its_checkpoint_say_the_same(finished, tmp_path, capsys):
    for name, path in (("a", finished), ("b", files.newest(finished))):
        assert main(["eval-lpg", str(path), *FEW, "--out", str(tmp_path / name)]) == 0
        assert "3 held-out sparse levels" in capsys.readouterr().out
    a, b = (json.loads((tmp_path / name / "summary.json").read_text()) for name in "ab")
    assert a.pop("seconds") > 0 and b.pop("seconds") > 0
    assert a == b and set(a) >= {"trained", "untrained", "a2c", "random", "optimal_rate", "paired"}
    assert (tmp_path / "a" / "curve.png").stat().st_size > 1000
    raw = json.loads((tmp_path / "a" / "results.json").read_text())
    assert set(raw) == set(a) - {"paired"}
    for name, measures in raw.items():
        assert {m: len(x) for m, x in measures.items()} == {"final": 3, "lifetime": 3, "return": 3}
        assert sum(measures["final"]) / 3 == pytest.approx(a[name]["mean"])
        assert sum(measures["return"]) / 3 == pytest.approx(a[name]["return"]["mean"])


def test_any_rules_against_each_other(finished, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    for path in ("config.json", "checkpoints"):
        (other / path).symlink_to(finished / path)
    words = [str(finished), "--against", "ppo", str(other), "random", "--reference", "ppo"]
    assert main(["eval-lpg", *words, *FEW, "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "of PPO's" in shown and "other" in shown
    found = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert set(found) == {"trained", "untrained", "ppo", "other", "random", "paired", "seconds"}
    assert found["trained"]["mean"] == found["other"]["mean"]  # the same rule, levels and noise
    assert set(found["other"]["ahead"]) == {"final", "lifetime", "return"}


def test_folders_are_told_apart_from_each_other_and_from_what_a_summary_holds(
    finished, tmp_path, capsys
):
    paths = [tmp_path / name for name in ("x/run", "y/run", "paired", "a2c", "$\\x$ [bold]")]
    for path in paths:
        path.mkdir(parents=True)
        for part in ("config.json", "checkpoints"):
            (path / part).symlink_to(finished / part)
    words = [*map(str, paths), "a2c", *FEW, "--workers", "2", "--out", str(tmp_path / "out")]
    assert main(["eval-lpg", "--against", *words]) == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(found) == [*map(str, paths[:4]), paths[4].name, "a2c"]
    assert found["a2c"] != found[str(paths[3])] == found[str(paths[2])]
    assert "[bold]" in capsys.readouterr().out


def test_rules_without_a_run(tmp_path, capsys):
    words = ["--against", "a2c", "q_lambda", "optimal", "--workers", "4"]
    assert main(["eval-lpg", *words, *FEW, "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(found) == {"a2c", "q_lambda", "optimal_rate"}
    assert "Q(lambda)" in capsys.readouterr().out


def test_a_rule_that_comes_with_paramtree(finished, tmp_path, monkeypatch):
    """It is known by its name or its card's path, which has its agents and their pace."""
    card = ship(finished, "tiny", tmp_path / "weights")
    monkeypatch.setattr(shipped, "WEIGHTS", card.parent)
    words = [*FEW, "--workers", "2", "--against", "random"]
    for name, rule_of in (("a", "tiny"), ("b", str(card)), ("c", str(finished))):
        assert main(["eval-lpg", rule_of, *words, "--out", str(tmp_path / name)]) == 0
    a, b, c = (json.loads((tmp_path / name / "results.json").read_text()) for name in "abc")
    assert a["trained"] == c["trained"] and a["random"] == c["random"]
    assert a == b and list(a) == ["trained", "random"]


def test_a_card_that_is_none(tmp_path, capsys):
    card = tmp_path / "x.json"
    for text, said in ((None, "No such file"), ("{}", "it lacks network"), ("x", "is no JSON")):
        if text is not None:
            card.write_text(text)
        assert main(["eval-lpg", str(card), *FEW]) == 2
        error = capsys.readouterr().err
        assert said in error and "x.json'" in error and error.count("\n") == 1


def test_the_same_command_goes_on(finished, tmp_path, monkeypatch):
    others = [str(tmp_path / name) for name in ("x/run", "y/run")]
    for path in map(Path, others):
        path.mkdir(parents=True)
        for part in ("config.json", "checkpoints"):
            (path / part).symlink_to(finished / part)
    words, out = ["eval-lpg", "--against", *others, "a2c", *FEW, "--workers", "2"], tmp_path / "out"
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    learner, played, last = evaluation.learner, [], 2

    def stopping(name, *args):
        part = learner(name, *args)

        def play(show):
            if len(played) == last:
                raise Stopped("here")
            played.append(name)
            return part.play(show)

        return part._replace(play=play)

    monkeypatch.setattr(evaluation, "learner", stopping)
    for seed in ("0", "1", "0"):  # what is of another seed is made anew
        played.clear()
        assert main([*words, "--seed", seed, "--out", str(out)]) == 130 and played == others
    assert [path.name for path in out.iterdir()] == [files.EVALUATION]
    played.clear()
    assert main([*words, "--out", str(out)]) == 0 and played == ["a2c"]
    whole, parts = ((tmp_path / x / "results.json").read_text() for x in ("whole", "out"))
    assert whole == parts and (tmp_path / "x" / "run").is_dir()


def test_results_are_not_overwritten(finished, tmp_path, capsys):
    (tmp_path / "summary.json").write_text("mine")
    assert main(["eval-lpg", str(finished), *FEW, "--out", str(tmp_path)]) == 2
    assert "summary.json' is there already" in capsys.readouterr().err
    assert (tmp_path / "summary.json").read_text() == "mine"


def test_the_folder_of_a_run_and_a_file_take_no_results(finished, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")  # of a run that has no summary yet
    (tmp_path / "file").write_text("mine")
    for name, said in (("run", "config.json' is there already"), ("file", "is not a folder")):
        assert main(["eval-lpg", str(finished), *FEW, "--out", str(tmp_path / name)]) == 2
        assert said in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]
    assert (tmp_path / "file").read_text() == "mine"


def missing(path, state, metadata):
    path.unlink()


def truncated(path, state, metadata):
    path.write_bytes(path.read_bytes()[:-7])


def other_shape(path, state, metadata):
    rule = tree.map(lambda x: torch.cat([x, x]), state["rule"])
    save(path, tree.new({**tree.entries(state), "rule": rule}), metadata=metadata)


def other_names(path, state, metadata):
    rule = tree.exclude(state["rule"], "pi_hat.**")
    save(path, tree.new({**tree.entries(state), "rule": rule}), metadata=metadata)


def no_rule(path, state, metadata):
    save(path, tree.new({"weight": torch.zeros(2)}), metadata=metadata)


def no_options(path, state, metadata):
    save(path, state)


def options_missing(path, state, metadata):
    save(path, state, metadata={"command": "lpg"})


def other_options(path, state, metadata):
    save(path, state, metadata={**metadata, "options": {"hidden": 4}})


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (missing, "cannot read"),
        (truncated, "truncated"),
        (other_shape, "has shape"),
        (other_names, "pi_hat"),
        (no_rule, "holds no learned rule"),
        (no_options, "holds no learned rule"),
        (options_missing, "the options hold None"),
        (other_options, "not those of this version"),
    ],
)
def test_another_checkpoint_is_refused_in_one_paragraph(finished, tmp_path, damage, named, capsys):
    source, path = files.newest(finished), tmp_path / "rule.safetensors"
    path.write_bytes(source.read_bytes())
    damage(path, load(source), load_metadata(source))
    assert main(["eval-lpg", str(path), *FEW]) == 2
    error = capsys.readouterr().err
    assert named in error and error.startswith("paramtree: ") and error.count("\n") == 1


def test_a_checkpoint_of_another_version_is_refused(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("paramtree.__version__", "9.0.0")
    save(tmp_path / "x.safetensors", tree.new({"rule": tree.new({})}))
    monkeypatch.undo()
    assert main(["eval-lpg", str(tmp_path / "x.safetensors")]) == 2
    assert "saved by paramtree 9.0.0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--levels smal", "expected one of dense"),
        ("--levels rand_tiny --against optimal", "random positions"),
        ("--against a2c a2c", "expected names that differ"),
        ("--against ppo --reference dpo", "--reference is 'dpo', expected one of trained"),
        ("--against ppa", "'ppa' is no run, no checkpoint and none of a2c, ppo"),
        ("--count 0", "the number of levels is 0"),
        ("--updates 0", "the number of updates is 0"),
        ("--workers 0", "the number of workers is 0"),
        ("--length 0", "the number of steps between updates is 0"),
        ("--device meta", "--device is 'meta'"),
        (f"--seed {2**63}", f"seed is {2**63}"),
    ],
)
def test_wrong_use_is_one_paragraph(finished, words, named, capsys):
    assert main(["eval-lpg", str(finished), *words.split(), "--threads", "1"]) == 2
    error = capsys.readouterr().err
    assert named in error and error.count("\n") == 1


def test_no_rule_at_all_is_refused(capsys):
    assert main(["eval-lpg", "--threads", "1"]) == 2
    assert "no rule is given; name one, or some with --against" in capsys.readouterr().err


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    assert main(["eval-lpg", str(tmp_path)]) == 2
    assert "holds no run (config.json: No such file" in capsys.readouterr().err
