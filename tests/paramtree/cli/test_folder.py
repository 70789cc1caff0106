"""A run's folder: whose it is, what is in it, and that nothing else is touched."""

import json
import subprocess
import sys

import pytest

from paramtree.cli import folder as files
from paramtree.cli.outcome import Refused


def begin(path, fresh=False, build=lambda: "built"):
    files.require_free(path, fresh)
    with files.locked(path):
        return files.claim(path, {"seed": 1}, fresh, build)


def names(path):
    return {str(inner.relative_to(path)) for inner in path.rglob("*") if inner.is_file()}


@pytest.fixture
def run(tmp_path):
    path = tmp_path / "run"
    begin(path)
    (path / "metrics.jsonl").write_text(
        '{"step": 1, "seconds": 0.5}\n{"step": 2, "seconds": 1.0}\n'
    )
    for step in (1, 2):
        files.checkpoint_path(path, step).write_text("state")
    (path / "evaluation").mkdir()
    (path / "evaluation" / "a2c.safetensors").write_text("rewards")
    (path / "summary.json").write_text("{}")
    return path


def test_a_new_folder_becomes_a_runs(tmp_path):
    assert begin(tmp_path / "a" / "b") == "built"
    assert files.read_config(tmp_path / "a" / "b")["options"] == {"seed": 1}


def test_a_folder_that_holds_a_run_is_refused_and_resume_named(run):
    before = names(run)
    with pytest.raises(Refused, match=f"paramtree lpg --resume {run}"):
        begin(run)
    assert names(run) == before


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_with_other_files_is_refused(tmp_path, fresh):
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(Refused, match=r"holds files, but no run \(thesis.tex\)"):
        begin(tmp_path, fresh)
    assert names(tmp_path) == {"thesis.tex"}


@pytest.mark.parametrize("text", ["[]", "3", "{", '{"model": "mine"}'])
def test_another_programs_config_is_no_run(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(Refused, match="holds files, but no run"):
        begin(tmp_path, fresh=True)
    assert (tmp_path / "config.json").read_text() == text


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(Refused, match="is not a folder"):
        begin(tmp_path / "x")


def test_fresh_removes_a_run_and_nothing_else(run):
    (run / "notes.txt").write_text("mine")
    (run / "checkpoints" / "best.safetensors").write_text("mine")
    begin(run, fresh=True)
    assert names(run) == {"config.json", "lock", "notes.txt", "checkpoints/best.safetensors"}


def test_fresh_does_not_follow_a_link_to_other_files(run, tmp_path):
    other = tmp_path / "other"
    (run / "checkpoints").rename(other)
    (run / "checkpoints").symlink_to(other)
    begin(run, fresh=True)
    assert len(names(other)) == 2


def refuse():
    raise Refused("no")


def test_what_cant_be_built_leaves_no_folder(tmp_path):
    with pytest.raises(Refused):
        begin(tmp_path / "run", build=refuse)
    assert not (tmp_path / "run").exists()


def test_what_cant_be_built_leaves_the_old_run(run):
    before = names(run)
    with pytest.raises(Refused):
        begin(run, fresh=True, build=refuse)
    assert names(run) == before


HOLD = """
import sys, time
from pathlib import Path
from paramtree.cli.folder import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_process_works_in_a_folder_and_a_dead_ones_lock_is_none(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(Refused, match=rf"in use by another process \({other.pid}\)"):
            with files.locked(tmp_path):
                pass
        other.kill()
        other.wait()
    with files.locked(tmp_path):
        with pytest.raises(Refused, match="in use"):
            with files.locked(tmp_path):
                pass
    with files.locked(tmp_path):
        pass


def test_metrics_are_cut_back_to_a_step(run):
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "sec')  # a kill came in between
    assert [row["step"] for row in files.read_metrics(run)] == [1, 2]
    assert files.cut_metrics(run, 1) == 0.5
    assert (run / "metrics.jsonl").read_text() == '{"step": 1, "seconds": 0.5}\n'
    assert files.cut_metrics(run, 0) == 0.0
    assert (run / "metrics.jsonl").read_text() == ""


def test_the_last_two_checkpoints_are_kept(run):
    files.checkpoint_path(run, 10).write_text("state")
    files.remove_old_checkpoints(run)
    assert [path.name[5:13] for path in files.checkpoints(run)] == ["00000002", "00000010"]
    assert files.newest(run).name == "step_00000010.safetensors"
    assert files.last_step(run) == 10


def test_a_run_without_a_checkpoint_says_so(tmp_path):
    begin(tmp_path / "run")
    assert files.last_step(tmp_path / "run") == 0
    with pytest.raises(Refused, match="no checkpoint yet"):
        files.newest(tmp_path / "run")


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    files.write_json(tmp_path / "x.json", {"a": 1})

    def fail(*args):
        raise OSError("no space")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="no space"):
        files.write_json(tmp_path / "x.json", {"a": 2})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}
