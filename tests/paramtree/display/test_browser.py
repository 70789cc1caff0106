"""The page in Chromium: in JupyterLab, in a notebook's static export, and without scripts.

The pictures in ``references`` are compared loosely, since fonts differ between machines. A new one
is left in pytest's temporary folder, whose path the failure names.
"""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from nbformat.sign import NotebookNotary
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from paramtree import show, tree

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SECONDS = 180  # that anything may take on a busy machine
expect.set_options(timeout=30_000)
HERE = "http://localhost:1/"  # answered by the test itself
MAKE = """
import torch
from paramtree import show, tree
x = torch.linspace(0, 40, 3 * 24 * 16)
lstm = tree.new({"weight_ih": x.sin().reshape(48, 24), "bias": x[:48].cos()})
policy = tree.new({"weight": (x * x).cos().reshape(3, 24, 16), "bias": x[:72].reshape(3, 24)}, [3])
names = tree.new({"a.b": torch.tensor([1.0, float("nan")]), 'q"uote': torch.ones(2)})
params = tree.new({"meta": tree.new({"lstm": lstm}), "policy": policy, "odd": names})
after = tree.replace(tree.map(lambda x: 1.1 * x, params), {"odd": names})
"""
PATTERNS = ["policy", "policy.**", "**.weight", "**.w*", "meta.*", "m*.l*m.*_ih", "**", "*.bias"]
PATTERNS += ["meta.**.bias", "**.*s", "**.lstm.**", "*", "*.*", "*.*.*", "nothing", "**.**.bias"]


@pytest.fixture(scope="module")
def made():
    space = {}
    exec(MAKE, space)
    return space


@pytest.fixture(scope="module")
def notebook():
    sources = ["%load_ext paramtree" + MAKE + "params", "show(params, after)"]
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in sources]
    NotebookClient(notebook, timeout=SECONDS, kernel_name="python3").execute()
    return notebook


@pytest.fixture(scope="module")
def browser():
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    path = next(filter(None, found), None)  # None: the browser that Playwright has installed
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def opened(browser, body, **options):
    """A page with this text; whatever else it asks for fails, and its errors are kept."""
    context = browser.new_context(viewport={"width": 1100, "height": 900}, **options)
    context.set_default_timeout(1000 * SECONDS)
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=HERE[:-1])
    page = context.new_page()
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(error))
    page.route("**/*", lambda route: route.abort())
    page.route(HERE, lambda route: route.fulfill(body=body, content_type="text/html"))
    page.goto(HERE, wait_until="domcontentloaded")
    return page


@pytest.fixture(scope="module")
def export(notebook):
    return HTMLExporter().from_notebook_node(notebook)[0]


@pytest.fixture(scope="module")
def lab(notebook, browser, tmp_path_factory):
    """JupyterLab with the notebook, run and trusted."""
    home = tmp_path_factory.mktemp("lab")
    nbformat.write(notebook, home / "trees.ipynb")
    NotebookNotary(data_dir=str(home)).sign(notebook)
    settings = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
    (home / "labconfig").mkdir()
    (home / "labconfig" / "page_config.json").write_text(json.dumps(settings))
    folders = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    environment = {**os.environ, **{name: str(home) for name in folders}, "HOME": str(home)}
    options = ["--no-browser", "--allow-root", "--port=0", "--IdentityProvider.token="]
    options += ["--LabApp.expose_app_in_browser=True", f"--ServerApp.root_dir={home}"]
    with (home / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options],
            env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            page = browser.new_context(viewport={"width": 1300, "height": 1000}).new_page()
            page.set_default_timeout(1000 * SECONDS)
            address = waited(home, server)
            page.context.grant_permissions(
                ["clipboard-read", "clipboard-write"], origin=address.rstrip("/")
            )
            page.errors = []
            page.on("pageerror", lambda error: page.errors.append(error))
            page.goto(address + "lab/tree/trees.ipynb?reset")
            page.wait_for_selector(".pt-view[data-ready] >> nth=1")
            yield page
            page.context.close()
        finally:
            server.terminate()
            server.wait(SECONDS)


def waited(home, server):
    """Address of the server, once it answers."""
    for _ in range(5 * SECONDS):
        assert server.poll() is None, (home / "log").read_text()
        for path in home.glob("jpserver-*.json"):
            try:
                address = json.loads(path.read_text())["url"].replace("localhost", "127.0.0.1")
                urllib.request.urlopen(address + "api", timeout=5)
                return address
            except (OSError, ValueError, KeyError):
                pass
        time.sleep(0.2)
    raise AssertionError((home / "log").read_text())


def press_until(page, key, condition, most=80):
    """Press a key until what has the focus is what is looked for."""
    for _ in range(most):
        if page.evaluate(f"(e => {condition})(document.activeElement)"):
            return
        page.keyboard.press(key)
    raise AssertionError(f"{key} never reaches {condition}")


def clipboard(page):
    return page.evaluate("navigator.clipboard.readText()")


def drive(page, made):
    """All that one does with a tree, by the keyboard alone but for one click."""
    view = page.locator(".pt-view").first
    box, said = view.get_by_role("searchbox"), view.locator(".pt-bar output")
    box.focus()
    paths = tree.paths(made["params"])
    for pattern in PATTERNS:
        page.keyboard.type(pattern)
        try:
            chosen = tree.paths(tree.select(made["params"], pattern))
        except ValueError:
            chosen = []
        expect(said.first).to_have_text(f"{len(chosen)} of {len(paths)} leaves match")
        shown = view.locator("li:not(.pt-group):not([hidden]) > details > summary > b")
        assert shown.all_inner_texts().count("weight") == sum(p[-1] == "weight" for p in chosen)
        page.keyboard.press("Escape")
        expect(box).to_have_value("")
    page.keyboard.type('("odd", "a.b")')
    expect(said.first).to_have_text(f"1 of {len(paths)} leaves match")
    page.keyboard.press("Escape")

    press_until(page, "Tab", "e.tagName === 'SUMMARY'")
    press_until(page, "ArrowDown", "e.textContent.startsWith('weight_ih')")
    page.keyboard.press("Enter")
    canvas = view.get_by_role("img", name="Heat map, from -1 to 1")
    expect(canvas).to_be_visible()
    colors = "c => new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size"
    assert (canvas.get_attribute("width"), canvas.get_attribute("height")) == ("24", "48")
    assert canvas.evaluate(colors) > 30
    page.keyboard.press("c")
    expect(said.last).to_have_text('Copied params["meta", "lstm", "weight_ih"]')
    assert clipboard(page) == 'params["meta", "lstm", "weight_ih"]'
    press_until(page, "ArrowDown", "e.textContent.startsWith('a.b')")
    page.keyboard.press("ArrowRight")
    expect(view.locator(".pt-code", has_text="a.b")).to_be_visible()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(said.last).to_have_text('Copied params["odd", "a.b"]')
    view.get_by_role("button", name='Copy the path of q"uote').click()
    expect(said.last).to_have_text('Copied params["odd", "q\\"uote"]')
    assert eval(clipboard(page), dict(made)) is made["params"]["odd", 'q"uote']

    press_until(page, "Shift+Tab", "e.tagName === 'SELECT'")
    for _ in range(3):
        page.keyboard.press("ArrowDown")  # from all to 2
    row = view.locator("li", has_text="policy").first.locator("summary", has_text="weight")
    expect(row).to_contain_text("[24, 16]")
    for pair in ("weight", "bias"):
        part = made["params"]["policy"][2][pair]
        told = next(line for line in str(show({pair: part})).splitlines() if f" {pair} " in line)
        mean, spread = told.split(" ± ")[0].split()[-1], told.split(" ± ")[1].split()[0]
        line = view.locator(".pt-group", has_text="policy").locator("summary", has_text=pair)
        expect(line.first).to_contain_text(f"{mean} ± {spread}")
    expect(view.locator("summary b", has_text="policy")).to_have_text("policy[2]")
    row.focus()
    page.keyboard.press("Enter")
    expect(view.locator(".pt-code", has_text="policy")).to_have_text(
        'params["policy"][2]["weight"]'
    )
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.textContent").startswith("policy")
    page.keyboard.press("ArrowLeft")
    expect(row).to_be_hidden()

    both = page.locator(".pt-view").nth(1)
    both.get_by_label("only what differs").check()
    expect(both.locator("summary b", has_text="a.b")).to_be_hidden()
    both.locator("summary", has_text="weight_ih").click()
    expect(both.get_by_role("img")).to_have_count(3)
    expect(both.locator("summary", has_text="weight_ih")).to_contain_text("differs by 10%")
    assert not page.errors


def background(page):
    color = "getComputedStyle(document.querySelector('.pt-view')).backgroundColor"
    return np.mean([int(x) for x in page.evaluate(color)[4:-1].split(",")])


def compare(page, name, folder):
    """The first view looks as it did: its size, and the mean color of each of 16 x 12 fields."""
    path = folder / f"{name}.png"
    page.locator(".pt-view").first.screenshot(path=path)
    found, wanted = Image.open(path), Image.open(Path(__file__).parent / f"references/{name}.png")
    assert found.size == pytest.approx(wanted.size, rel=0.1), path
    fields = [np.asarray(x.convert("RGB").resize((16, 12), Image.Resampling.BOX), float)
              for x in (found, wanted)]  # fmt: skip
    assert np.abs(fields[0] - fields[1]).mean() < 10, path


def test_in_the_static_export(browser, export, made, tmp_path):
    page = opened(browser, export, color_scheme="light")
    assert background(page) > 200
    compare(page, "export_light", tmp_path)
    page.emulate_media(color_scheme="dark")
    assert background(page) < 60
    compare(page, "export_dark", tmp_path)
    press_until(page, "Tab", "e.type === 'search'")  # from the top of the page
    drive(page, made)
    page.context.close()


def test_in_jupyterlab(lab, made, tmp_path):
    themes = "JupyterLab Light", "JupyterLab Dark"
    for theme, scheme, low, high in zip(
        themes, ("dark", "light"), (200, 0), (255, 60), strict=True
    ):
        lab.emulate_media(color_scheme=scheme)  # the theme counts, not what the system prefers
        lab.evaluate(f"jupyterapp.commands.execute('apputils:change-theme', {{theme: '{theme}'}})")
        lab.wait_for_selector(f'body[data-jp-theme-name="{theme}"]', state="attached")
        lab.wait_for_timeout(500)
        assert low <= background(lab) <= high
        compare(lab, "lab_" + theme.split()[1].lower(), tmp_path)
    cells = lab.locator(".jp-Cell").count()
    drive(lab, made)
    assert lab.locator(".jp-Cell").count() == cells  # no key went to the notebook


def test_without_scripts(browser, export):
    page = opened(browser, export, java_script_enabled=False)
    view = page.locator(".pt-view").first
    for text in ("weight_ih · [48, 24] · float32 · cpu · 1,152 ·", "batch [3]", "⚠ 1 NaN"):
        expect(view).to_contain_text(text)
    assert view.locator("input:visible, button:visible, select:visible").count() == 0
    least = view.get_by_text("min -1 · max 1")
    expect(least.first).to_be_hidden()
    view.locator("summary", has_text="weight_ih").click()
    expect(least.first).to_be_visible()
    page.context.close()


def test_what_a_screen_reader_says(browser, made):
    page = opened(browser, show(made["params"], name="params").html)
    page.locator("summary", has_text="weight_ih").click()
    told = page.locator(".pt-view").aria_snapshot()
    for text in (
        'group "tree params"', 'searchbox "Filter params by a pattern', "list:", "listitem:",
        'combobox "Index of axis 0 of policy"', 'img "Heat map, from -1 to 1"', "status",
        'button "Copy the path params[\\"meta\\", \\"lstm\\", \\"weight_ih\\"]"',
    ):  # fmt: skip
        assert text in told, told
    page.context.close()


def test_odd_leaves_leave_the_page_whole(browser):
    jagged = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    large = tree.new({"x": torch.linspace(0, 1, 3_000_000).reshape(2, -1)}, [2])
    lost = tree.new({"x": torch.full((2, 3), float("nan"))}, [2])
    nest = {"jagged": jagged, "large": large, "lost": lost, "last": torch.ones(2)}
    page = opened(browser, show(nest).html)
    page.locator("summary", has_text="jagged").click()
    expect(page.locator("summary.pt-cells", has_text="last")).to_have_count(1)
    for name in ("large", "lost"):
        page.get_by_label(f"Index of axis 0 of {name}").select_option("1")
    row = page.locator("li", has_text="large").locator("summary", has_text="x").first
    expect(row).to_contain_text("≈ 0.75 ± 0.144")
    row.click()
    expect(page.get_by_text("histogram from min to max of a sample")).to_be_visible()
    expect(page.locator("p", has_text="zeros 0% · of a sample")).to_be_visible()
    row = page.locator("li", has_text="lost").locator("summary", has_text="x").first
    expect(row).to_contain_text("nothing finite")
    row.click()
    expect(page.get_by_text("zeros 0%", exact=True)).to_be_visible()
    assert not page.errors
    page.context.close()
