"""``%load_ext paramtree`` in a shell of IPython's."""

import pytest
import torch
from tensordict import TensorDict

from paramtree import show
from paramtree.display import notebook, page, view


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
    shown = show(params, name="params")
    assert data["text/html"] == shown.html and data["text/plain"] == str(shown)
    lazy = TensorDict.lazy_stack([params, params])
    assert "text/html" in shell.display_formatter.format(lazy)[0]
    shell.run_line_magic("unload_ext", "paramtree")
    assert shell.display_formatter.format(params)[0] == plain


def test_a_tree_is_read_once(shell, monkeypatch):
    seen, made = [], []
    pair = {"show": show, "page": page.page}
    monkeypatch.setattr(notebook, "show", lambda *a, **k: seen.append(1) or pair["show"](*a, **k))
    monkeypatch.setattr(view, "page", lambda readout: made.append(1) or pair["page"](readout))
    shell.run_line_magic("load_ext", "paramtree")
    params = TensorDict({"a": torch.ones(2)})
    data = shell.display_formatter.format(params)[0]
    assert set(data) == {"text/html", "text/plain"} and (len(seen), len(made)) == (1, 1)
    shell.display_formatter.active_types = ["text/plain"]  # as in a terminal
    data = shell.display_formatter.format(params)[0]
    assert set(data) == {"text/plain"} and (len(seen), len(made)) == (2, 1)


def test_a_view_shows_itself_without_the_extension(shell):
    shown = show({"a": torch.ones(2)})
    data = shell.display_formatter.format(shown)[0]
    assert data["text/html"] == shown.html and data["text/plain"] == str(shown)
