"""Words to options, and what happens to exit statuses."""

import importlib.util
import subprocess
import sys

import pytest

from paramtree import cli
from paramtree.cli import main
from paramtree.cli.command import parse
from paramtree.cli.options import PRESETS, flat, from_config, to_config


def test_help_is_quick_because_it_loads_no_torch():
    code = "import sys; sys.argv = ['paramtree', '--help']; from paramtree.cli import main\n"
    code += "try: main()\nexcept SystemExit as end: print(end.code, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 False"
    assert "eval-lpg" in done.stdout and done.stderr == ""


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_preset_gives_the_defaults_and_an_option_wins_over_it(preset):
    options = parse(["lpg", "--preset", preset, "--hidden", "7", "--meta-clip", "3", "--threads=1"])
    wanted = flat(PRESETS[preset]) | {"--hidden": 7, "--meta-clip": 3.0, "--threads": 1}
    assert flat(options) == wanted
    assert flat(parse(["lpg", f"--preset={preset}", "--threads=1"])) == (
        flat(PRESETS[preset]) | {"--threads": 1}
    )


@pytest.mark.parametrize(("preset", "tasks"), [("demo", 128), ("groove", 512), ("paper", 960)])
def test_help_shows_the_presets_values(preset, tasks, capsys):
    with pytest.raises(SystemExit) as end:
        main(["lpg", "--preset", preset, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 0
    assert f"--tasks INT Agents that live side by side. (default: {tasks})" in text


def test_threads_are_made_definite():
    assert parse(["lpg"]).threads >= 1  # pyright: ignore[reportOptionalOperand]
    assert parse(["lpg", "--threads", "3"]).threads == 3


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_options_survive_their_configuration(preset):
    options = PRESETS[preset]
    assert from_config(to_config(options)) == options


def test_a_configuration_with_other_names_is_refused():
    config = to_config(PRESETS["demo"])
    del config["network"]["cell"]
    with pytest.raises(ValueError, match="--cell"):
        from_config(config)
    with pytest.raises(ValueError, match="--brand-new"):
        from_config(to_config(PRESETS["demo"]) | {"brand_new": 1})


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("lpg --preset dmeo", "'dmeo', expected one of demo, groove, paper; the nearest is 'demo'"),
        ("lpg --preset=dmeo", "'dmeo'"),
        ("lpg --resume nowhere", "'nowhere' holds no run"),
        ("lpg --steps -1", "--steps is -1"),
        ("lpg --evaluate -1", "--evaluate is -1"),
        ("eval-lpg nowhere", "'nowhere'"),
        ("eval-lpg", "no rule is given"),
    ],
)
def test_wrong_use_is_one_paragraph_and_status_2(words, named, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2
    error = capsys.readouterr().err
    assert named in error and error.startswith("paramtree: ") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", ["lpg --tasks many", "lpg --task 3", "fly", "eval-lpg --count"])
def test_a_word_that_cant_be_read_ends_with_status_2(words, capsys):
    with pytest.raises(SystemExit) as end:
        main(words.split())
    assert end.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_without_the_extra_it_is_named(capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(cli, "find_spec", lambda name: None if name == "tyro" else find(name))
    assert main(["--help"]) == 2
    wanted = "paramtree: the command needs tyro: pip install 'paramtree[cli]'\n"
    assert capsys.readouterr() == ("", wanted)
