"""Builds the reference: ``python -m tests.docs.site FOLDER`` writes a site that needs no network.

Every room of the two packages has a page with its guide (the docstring, and the README that it
includes) and its names; every file with public names a page of their docstrings. ``equations``
typesets the equations, and so are ``$...$`` in a README; MathJax lies beside the pages.
"""

import ast
import html
import importlib
import inspect
import pkgutil
import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pdoc.doc
import pdoc.docstrings
import pdoc.render
import pdoc.render_helpers
import pdoc.search
from markupsafe import Markup

from tests.docs.blocks import Kind, blocks
from tests.docs.equations import typeset

ROOT = Path(__file__).parents[2]
PACKAGES = ("losses", "paramtree")
EXTRAS = {"paramtree.interop.torchrl": "torchrl", "paramtree.interop.gymnasium": "gymnasium"}
INCLUDE = re.compile(r"^\.\. include:: (.+)$", re.MULTILINE)
SPANS = re.compile(
    r"(?P<kept>^ *```.*?^ *```|\]\([^)]*\))"  # fenced code, a link's address
    r"|``(?P<name>[A-Za-z_][\w.]*)``|`(?P<short>[A-Za-z_][\w.]*)`"
    r"|(?P<code>``[^`]+``|`[^`\n]+`)"
    r"|\$\$(?P<shown>[^$]+)\$\$|\$(?P<inline>(?! )(?:[^$\n]|\n(?!\n))+?(?<! ))\$(?!\w)",
    re.DOTALL | re.MULTILINE,
)


@dataclass
class Name:
    """A public name on a page of a room's contents."""

    name: str
    line: Markup


@dataclass
class Page:
    """A file's page, as its room lists it."""

    title: str
    url: str
    line: Markup
    names: list[Name]


def rooms() -> list[str]:
    """The packages and single files that a user imports from, by name."""
    found = list(PACKAGES)
    for package in ("paramtree", "paramtree.interop"):
        for info in pkgutil.iter_modules(importlib.import_module(package).__path__):
            name = f"{package}.{info.name}"
            if name in EXTRAS and find_spec(EXTRAS[name]) is None:
                print(f"{name} is left out: {EXTRAS[name]} is not installed", file=sys.stderr)
            elif name != "paramtree.cli" and not info.name.startswith("_"):
                found.append(name)
    return sorted(found)


def exported(room: ModuleType) -> Iterator[tuple[str, str]]:
    """What a package's ``__init__`` hands on: the file's module and the name."""
    for node in ast.walk(ast.parse(inspect.getsource(room))):
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module:
            source = importlib.import_module(f"{room.__name__}.{node.module}")
            for alias in node.names:
                if alias.asname == alias.name:
                    yield from origin(source, alias.name)


def origin(module: ModuleType, name: str) -> Iterator[tuple[str, str]]:
    """The file that a name comes from, through the packages on the way."""
    if hasattr(module, "__path__"):
        yield from (found for found in exported(module) if found[1] == name)
    else:
        yield module.__name__, name


class Reference:
    """Which module has which public names, and where they are shown."""

    def __init__(self) -> None:
        self.rooms = rooms()
        self.public: dict[str, list[str]] = {name: [] for name in self.rooms}
        self.room_of: dict[str, str] = {}
        self.above = {n: file for file, n in exported(importlib.import_module("paramtree"))}
        for room in self.rooms:
            module = importlib.import_module(room)
            if hasattr(module, "__path__"):
                found = list(exported(module)) if room != "paramtree" else []
            else:
                found = [(room, name) for name, x in vars(module).items() if own(module, name, x)]
            for file, name in found:
                names = self.public.setdefault(file, [])
                if name not in names:
                    names.append(name)
                    self.room_of.setdefault(file, room)
        for file, names in self.public.items():
            module = importlib.import_module(file)
            order = {name: i for i, name in enumerate(vars(module))}
            vars(module)["__all__"] = sorted(names, key=lambda name, order=order: order[name])
        self.modules = {
            name: pdoc.doc.Module(importlib.import_module(name)) for name in sorted(self.public)
        }
        self.openings = {module.docstring for module in self.modules.values()}
        self.arguments = {
            name
            for module in self.modules.values()
            for member in module.members.values()
            if isinstance(member, pdoc.doc.Function)
            for name in member.signature.parameters
        }

    def names(self, room: str) -> dict[str, str]:
        """The pages of a room's names."""
        found = {}
        for file, names in self.public.items():
            if self.room_of.get(file) == room:
                found |= dict.fromkeys(names, file)
        return found

    def address(self, name: str, room: str) -> str | None:
        """The page and anchor, from the site's root, of a name as a docstring writes it."""
        place, _, last = name.rpartition(".")
        if f"paramtree.{name}" in self.modules:
            return page_of(f"paramtree.{name}")
        if place in ("", "paramtree"):
            known = {**self.above, **(self.names(room) if not place else {})}
            file = None if not place and name in self.arguments else known.get(last)
        else:
            file = self.names(place).get(last) or self.names(f"paramtree.{place}").get(last)
        return f"{page_of(file)}#{last}" if file else None

    def contents(self, room: str) -> list[Page]:
        """What a room's page lists below its guide."""
        found = []
        for file in self.modules:
            if self.room_of.get(file) == room and file != room or room == "paramtree" != file:
                if room == "paramtree" and file not in self.rooms:
                    continue
                module = self.modules[file]
                names = [
                    Name(name, first_line(member.docstring))
                    for name, member in module.members.items()
                    if room != "paramtree"
                ]
                url = relative(page_of(room), page_of(file))
                title = file.removeprefix(f"{room}.")
                found.append(Page(title, url, first_line(module.docstring), names))
        return found


def first_line(docstring: str) -> Markup:
    """What a docstring says in its first line, code set as code."""
    line = html.escape(docstring.split("\n")[0], quote=False)
    return Markup(re.sub(r"``(.+?)``|`(.+?)`", r"<code>\1\2</code>", line))


def own(module: ModuleType, name: str, value: Any) -> bool:
    return not name.startswith("_") and getattr(value, "__module__", None) == module.__name__


def page_of(module: str) -> str:
    return f"{module.replace('.', '/')}.html"


def relative(here: str, there: str) -> str:
    return "../" * here.count("/") + there


class Writer:
    """Docstrings in the Markdown that pdoc renders."""

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        self.pdoc = pdoc.docstrings.convert

    def convert(self, docstring: str, docformat: str, source: Path | None) -> str:
        """pdoc's conversion, after the guides, the equations and the links are in."""
        if source is None:
            return self.pdoc(docstring, docformat, source)
        opening = docstring in self.reference.openings
        if opening:
            docstring = INCLUDE.sub(lambda m: (source.parent / m[1]).read_text(), docstring)
        text = "".join(
            shown(typeset(text))
            if kind == Kind.EQUATION
            else self.linked(text, source)
            if kind == Kind.PROSE
            else text
            for kind, text in blocks(docstring, opening)
        )
        return self.pdoc(text, docformat, source)

    def linked(self, text: str, source: Path) -> str:
        """The text with its names linked, its links led to pages and its ``$...$`` marked."""
        module = ".".join(source.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        room = self.reference.room_of.get(module, module)
        here = page_of(module) if module in self.reference.modules else "index.html"

        def span(m: re.Match) -> str:
            if name := m["name"] or m["short"]:
                known = name in self.reference.modules or name in self.reference.public.get(
                    module, []
                )
                address = None if known else self.reference.address(name, room)
                return f"[`{name}`]({relative(here, address)})" if address else m[0]
            if m["shown"] or m["inline"]:
                return shown(m["shown"]) if m["shown"] else marked(m["inline"], "span", "()")
            if m[0].startswith("]("):
                return self.link(m[0], source, here)
            return m[0]

        return SPANS.sub(span, text)

    def link(self, text: str, source: Path, here: str) -> str:
        """A link of a README that leads to a page, where its target has one."""
        target, hash_, anchor = text[2:-1].partition("#")
        if not target or "://" in target or target.startswith("data:"):
            return text
        path = (source.parent / target).resolve().relative_to(ROOT)
        parts = (path.parent if path.name in ("README.md", "__init__.py") else path).parts
        module = ".".join(parts).removesuffix(".py")
        if not parts:
            return f"]({relative(here, 'index.html')}{hash_}{anchor})"
        if module in self.reference.modules:
            return f"]({relative(here, page_of(module))}{hash_}{anchor})"
        return text


def marked(tex: str, tag: str, brackets: str) -> str:
    r"""LaTeX for MathJax, each sign that Markdown might take for its own as an entity."""
    whole = f"\\{brackets[0]}{tex}\\{brackets[1]}"
    quoted = "".join(c if c.isalnum() or c == " " else f"&#{ord(c)};" for c in whole)
    return f'<{tag} class="math">{quoted}</{tag}>'


def shown(tex: str) -> str:
    return f"\n{marked(tex, 'div', '[]')}\n\n"


def without_links(text: str) -> str:
    """Markdown in HTML for the results of a search, which any page may show."""
    return re.sub(r"</?a\b[^>]*>", "", pdoc.render_helpers.to_html(text))


def readme(writer: Writer) -> str:
    path = ROOT / "README.md"
    text = writer.linked(path.read_text(), path)
    return pdoc.render_helpers.to_html(pdoc.docstrings.embed_images(text, path))


def build(folder: Path) -> None:
    """Write the site into a folder, and make a warning an error."""
    warnings.simplefilter("error")
    warnings.filterwarnings("default", module=r"(?!pdoc)")
    reference = Reference()
    writer = Writer(reference)
    pdoc.docstrings.convert = writer.convert
    pdoc.search.to_html = without_links
    pdoc.doc.Class._bases = property(lambda cls: (cls.obj, object))  # nothing inherited
    pdoc.render.configure(
        docformat="google", math=True, template_directory=Path(__file__).parent / "templates"
    )
    pdoc.render.env.globals |= {
        "contents": {name: reference.contents(name) for name in reference.modules},
        "rooms": reference.rooms,
        "readme": readme(writer),
    }
    for name, module in reference.modules.items():
        path = folder / page_of(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(pdoc.render.html_module(module, reference.modules))
    (folder / "index.html").write_text(pdoc.render.html_index(reference.modules))
    (folder / "search.js").write_text(pdoc.render.search_index(reference.modules))
    mathjax = Path(str(importlib.import_module("mathjax").__file__)).parent
    shutil.copy(mathjax / "static/mathjax/es5/tex-svg.js", folder)
    print(f"{len(reference.modules) + 1} pages in {html.escape(str(folder))}")


if __name__ == "__main__":
    build(Path(sys.argv[1]))
