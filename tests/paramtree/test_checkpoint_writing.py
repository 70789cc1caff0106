"""A file is written whole or not at all, whatever happens on the way."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict

from paramtree import checkpoint, tree
from paramtree.checkpoint import load, save


@pytest.fixture
def path(tmp_path):
    return tmp_path / "policy.safetensors"


@pytest.fixture
def params():
    return TensorDict({"policy": TensorDict({"weight": torch.randn(3, 4)}), "n": torch.ones(2)})


def files(path: Path) -> list[str]:
    return sorted(file.name for file in path.parent.iterdir())


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_an_error_on_the_way_leaves_the_old_file_alone(path, params, monkeypatch, step):
    save(path, params)
    before = path.read_bytes()

    def broken(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, step, broken)
    with pytest.raises(OSError, match=r"save: cannot write '.*policy\.safetensors': No space left"):
        save(path, TensorDict({"x": torch.ones(1)}))
    assert (path.read_bytes(), files(path)) == (before, [path.name])


def test_places_that_cannot_be_written(tmp_path, params):
    with pytest.raises(FileNotFoundError, match="save: cannot write '.*nowhere/x.safetensors'"):
        save(tmp_path / "nowhere" / "x.safetensors", params)
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match="save: cannot write '.*folder'"):
        save(tmp_path / "folder", params)
    assert files(tmp_path / "folder") == ["folder"]


def test_a_link_stays_a_link_and_the_mode_follows_the_umask(tmp_path, params):
    (tmp_path / "latest").symlink_to(tmp_path / "step_1")
    old = os.umask(0o027)
    try:
        save(tmp_path / "latest", params)
    finally:
        os.umask(old)
    assert (tmp_path / "latest").is_symlink() and (
        tmp_path / "step_1"
    ).stat().st_mode & 0o777 == 0o640
    assert all(map(torch.equal, tree.leaves(load(tmp_path / "step_1")), tree.leaves(params)))


def test_the_file_is_on_the_disk_before_it_has_its_name_and_the_name_after(
    path, params, monkeypatch
):
    seen = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor):
        seen.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def record_replace(source, target):
        assert os.path.getsize(source) > 100
        seen.append(("replace", str(target)))
        replace(source, target)

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc")
    monkeypatch.setattr(checkpoint.os, "fsync", record_fsync)
    monkeypatch.setattr(checkpoint.os, "replace", record_replace)
    save(path, params)
    assert [what for what, _ in seen] == ["fsync", "replace", "fsync"]
    assert seen[0][1].startswith(f"{path.parent}/.{path.name}.") and seen[0][1].endswith(".tmp")
    assert seen[2][1] == str(path.parent)


def test_leftovers_are_removed_but_not_those_of_a_living_writer_nor_of_other_files(path, params):
    dead = path.with_name(f".{path.name}.0123abcd.tmp")
    living = path.with_name(f".{path.name}.4567abcd.tmp")
    other = path.with_name(".value.safetensors.0123abcd.tmp")
    for file in (dead, living, other):
        file.write_bytes(b"half")
    with open(living, "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        save(path, params)
    assert files(path) == sorted([living.name, other.name, path.name])


KILLED = """
import json, os, random, signal, sys, time
import torch
from tensordict import TensorDict
from paramtree import checkpoint
from paramtree.checkpoint import load, load_metadata, save

torch.set_num_threads(1)
path = sys.argv[1]
folder = os.path.dirname(path)
trees = [TensorDict({"x": torch.full((50_000 * n,), float(n))}, []) for n in range(4)]


def look():
    n = load_metadata(path)["n"]
    x = load(path)["x"]
    assert x.shape == (50_000 * n,) and bool((x == n).all())
    return n


def fork(fn):
    child = os.fork()
    if child == 0:
        fn()
        os._exit(0)
    return child


def save_until_killed():
    while True:
        for n in random.sample(range(4), 4):
            save(path, trees[n], metadata={"n": n})


def save_and_die_at(line):
    def trace(frame, event, _):
        nonlocal line
        if frame.f_code.co_filename == checkpoint.__file__:
            line -= event == "line"
            if line < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return trace

    sys.settrace(trace)
    save(path, trees[3], metadata={"n": 3})


random.seed(0)
save(path, trees[1], metadata={"n": 1})
old = new = left = line = 0
while True:  # killed before the first line of a save, the second, ...
    _, status = os.waitpid(fork(lambda: save_and_die_at(line)), 0)
    n = look()
    old, new, line = old + (n == 1), new + (n == 3), line + 1
    left += len(os.listdir(folder)) > 1
    if status == 0:
        break
    save(path, trees[1], metadata={"n": 1})
    assert os.listdir(folder) == [os.path.basename(path)]
for _ in range(40):  # killed anywhere, inside of system calls too
    child = fork(save_until_killed)
    time.sleep(random.uniform(0.0, 0.02))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    look()
print(json.dumps([old, new, left]))
"""


def test_a_kill_at_any_moment_leaves_a_whole_file(path):
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", KILLED, str(path)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert result.returncode == 0, result.stderr
    old, new, left = json.loads(result.stdout)
    assert old > 20 and new > 1  # kills before the new file had its name, and after
    assert left > 3  # and with half a file beside it
