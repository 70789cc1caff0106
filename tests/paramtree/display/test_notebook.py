"""``%load_ext paramtree`` in a shell of IPython's."""

import pytest
import torch
from tensordict import TensorDict

from paramtree import show


@pytest.fixture
def shell(tmp_path, monkeypatch):
    from IPython.core.interactiveshell import InteractiveShell

    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    shell = InteractiveShell()
    yield shell
    shell.history_manager.end_session()
    if shell.history_manager.save_thread is not None:
        shell.history_manager.save_thread.stop()


def test_every_tensordict_shows_itself_and_no_longer(shell):
    params = TensorDict({"a": torch.ones(2)})
    shell.user_ns["params"] = params
    plain = shell.display_formatter.format(params)[0]
    assert "text/html" not in plain
    shell.run_line_magic("load_ext", "paramtree")
    data = shell.display_formatter.format(params)[0]
    view = show(params, name="params")
    assert data["text/html"] == view.html and data["text/plain"] == str(view)
    lazy = TensorDict.lazy_stack([params, params])
    assert "text/html" in shell.display_formatter.format(lazy)[0]
    shell.run_line_magic("unload_ext", "paramtree")
    assert shell.display_formatter.format(params)[0] == plain


def test_a_view_shows_itself_without_the_extension(shell):
    view = show({"a": torch.ones(2)})
    data = shell.display_formatter.format(view)[0]
    assert data["text/html"] == view.html and data["text/plain"] == str(view)
