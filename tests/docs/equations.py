"""Equations as docstrings write them, in LaTeX.

A docstring's equation is an indented block that a terminal shows as it is:

    loss_objective = -min(r_t A_t, clip(r_t, 1 - eps_low, 1 + eps_high) A_t)

It is typeset symbol by symbol, and nothing is moved: letters and Greek names become italics, names
of keys and hyper-parameters code, ``_`` and ``^`` indices and powers, words stay words. Rows are
aligned at their first relation, and a row that is indented further goes on with the one above.
"""

import re

GREEK = set(
    "alpha beta gamma delta epsilon zeta eta theta kappa lambda mu nu xi pi rho sigma tau phi chi "
    "psi omega".split()
)
NAMED = {"log", "exp", "min", "max", "sin", "cos", "tanh"}
OPERATORS = {"sum", "mean", "argmax", "softmax", *NAMED}
SHORT = {"lmbda": r"\lambda ", "eps": r"\epsilon "}
SIGNS = {
    "<-": r"\leftarrow ", "->": r"\to ", "<=": r"\le ", ">=": r"\ge ", "+=": r"\mathrel{+}= ",
    "||": r"\,\Vert\, ", "...": r"\ldots ", "·": r"\cdot ", "∇": r"\nabla ", "∂": r"\partial ",
    "²": "^2", "ᵀ": r"^\top ", "⁻¹": "^{-1}", "~": r"\sim ", "{": r"\{", "}": r"\}", "*": r"\ast ",
    "ε": r"\epsilon ", "σ": r"\sigma ", "ξ": r"\xi ", "γ": r"\gamma ", "λ": r"\lambda ",
    "α": r"\alpha ", "ρ": r"\rho ", "π": r"\pi ", "Φ": r"\Phi ", "η": r"\eta ", "θ": r"\theta ",
}  # fmt: skip
TOKEN = re.compile(
    r"(?P<space> +)"
    r"|(?P<code>``[^`]+``)"
    r"|(?P<fraction>(?<![\w)])1/(?:\d+|[A-Za-z]\b|\([\w ]+\)))"
    r"|(?P<power>(?<!\w)1e-?\d+)"
    r"|(?P<number>\d+(?:\.\d+)?)"
    r"|(?P<word>[A-Za-z]+(?:-[a-z]{3,}|'s\b)|[a-z]-th\b)"
    r"|(?P<step>[a-z]_\d[a-z]\+\d)"
    r"|(?P<name>[A-Za-z][A-Za-z0-9]*(?:_[A-Za-z0-9]+)*)"
    r"|(?P<sign><-|->|<=|>=|\+=|\|\||\.\.\.|⁻¹|.)"
)
RELATION = re.compile(r"(?<= )(?:=|<-|<=|~)(?= )")


def typeset(block: str) -> str:
    """An indented block in LaTeX, its rows aligned."""
    lines = [line.rstrip() for line in block.split("\n") if line.strip()]
    margin = min(len(line) - len(line.lstrip()) for line in lines)
    rows = []
    for text in (line[margin:] for line in lines):
        relation = RELATION.search(text)
        if text.startswith(" "):
            rows.append(rf"&\qquad {row(text.strip())}")
        elif relation and _depth(text[: relation.start()]) == 0:
            left, right = text[: relation.start()], text[relation.end() :]
            rows.append(f"{row(left.strip())} &{row(relation[0])} {row(right.strip())}")
        else:
            rows.append(f"&{row(text)}")
    return "\\begin{aligned}\n" + " \\\\\n".join(rows) + "\n\\end{aligned}"


def row(text: str) -> str:
    """One row of an equation in LaTeX."""
    return re.sub(" {2,}", " ", _Row(text).until("")).strip()


def _depth(text: str) -> int:
    """How many brackets are open at the end of a text."""
    return sum(text.count(c) for c in "([{") - sum(text.count(c) for c in ")]}")


class _Row:
    """A row's tokens, read from left to right."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = list(TOKEN.finditer(text))
        self.at = 0

    def ahead(self) -> str:
        return self.tokens[self.at][0] if self.at < len(self.tokens) else ""

    def until(self, closing: str) -> str:
        """All up to a bracket, or to the end."""
        out = ""
        while self.ahead() and self.ahead() != closing:
            out += self.group() if self.ahead() in "([{" else self.one()
        return out

    def group(self) -> str:
        """What stands between two brackets, with them and their indices."""
        opening = self.ahead()
        closing = {"(": ")", "[": "]", "{": "}"}[opening]
        self.at += 1
        out = self.until(closing)
        self.at += 1
        return SIGNS.get(opening, opening) + out + SIGNS.get(closing, closing) + self.scripts()

    def one(self, bare: bool = False) -> str:
        """The next token; with its indices and powers, unless it is bare."""
        token = self.tokens[self.at]
        kind, text = token.lastgroup, token[0]
        self.at += 1
        if kind == "space":
            return self.space(token)
        if kind == "code":
            return _code(text.strip("`"))
        if kind == "fraction":
            return rf"\tfrac{{1}}{{{row(text[2:].strip('()'))}}}"
        if kind == "power":
            return f"10^{{{text[2:]}}}"
        if kind == "step":
            return f"{text[0]}_{{{text[2:]}}}"
        out = text
        if kind == "name":
            out = self.name(token)
        elif kind == "word":
            out = rf"\text{{{text}}}"
        elif kind == "sign":
            out = self.sign(token)
        return out if bare else out + self.scripts()

    def scripts(self) -> str:
        """Indices, powers and primes that follow."""
        out = ""
        while self.ahead()[:1] in ("_", "^", "'"):
            mark = self.ahead()
            self.at += 1
            if mark == "'" and self.ahead() == "s":
                self.at += 1
                out += r"\text{'s}"
            elif mark == "^" and (both := re.fullmatch(r"([A-Za-z])_(\w+)", self.ahead())):
                self.at += 1
                out += f"^{{{both[1]}}}_{{{both[2]}}}"
            else:
                out += mark if mark == "'" else f"{mark}{{{self.script()}}}"
        return out

    def script(self) -> str:
        closing = {"(": ")", "{": "}"}.get(self.ahead())
        if closing:
            self.at += 1
            out = self.until(closing)
            self.at += 1
            return out
        sign = ""
        if self.ahead() in ("-", "+"):
            sign = self.ahead()
            self.at += 1
        return sign + self.one(bare=True) if re.match(r"\w", self.ahead()) else sign

    def around(self, token: re.Match) -> tuple[str, str]:
        return self.text[: token.start()], self.text[token.end() :]

    def space(self, token: re.Match) -> str:
        """Wide between columns, a word's beside words, thin between factors."""
        if len(token[0]) > 1:
            return r"\qquad " if len(token[0]) > 3 else r"\quad "
        before, after = self.around(token)
        last = self.tokens[self.at - 2]
        beside = [last, *self.tokens[self.at : self.at + 1]]
        signs = re.search(r"[-+=/<>*(\[]$", before) or re.match(r"[-+=/<>*)\]]", after)
        if not signs and any(_is_word(self, near) for near in beside):
            return r"\ "
        left = re.search(r"[\w)\]'}`²ᵀ]$|\S~$|(?<!\|)\|$", before)
        factors = left and re.match(r"[\w(\[`{∂∇]|\|(?!\|)", after)
        return r"\," if factors and last[0].partition("_")[0] not in OPERATORS else " "

    def name(self, token: re.Match) -> str:
        text, (_, after) = token[0], self.around(token)
        if text == "sqrt" and self.ahead() == "(":
            return rf"\sqrt{{{self.group()[1:-1]}}}"
        if _is_word(self, token):
            return rf"\text{{{text}}}"
        base, _, index = text.partition("_")
        applied = len(index) < 3 and re.match(r" [\w(|\[]|\(", after)
        if base in OPERATORS and (base == "sum" or not index or applied):
            return _operator(base) + (f"_{{{index}}}" if index else "")
        out = _symbol(text, after.startswith("("))
        if self.ahead() == "~" and not after[1:].startswith(" ="):
            self.at += 1
            return rf"\tilde{{{out}}}"
        return out

    def sign(self, token: re.Match) -> str:
        text, (before, after) = token[0], self.around(token)
        inside = bool(re.search(r"[\w.'~})]$", before))
        if text == "|" and inside and re.match(r"\w", after):
            return r"\mid "
        if text == "|":
            return r"\rvert " if inside else r"\lvert "
        if text == "." and re.search(r"[( ]$", before) and re.match(r"[|)\]]", after):
            return r"\cdot "
        if text == "<" and re.match(r"\S", after):
            return r"\langle "
        if text == ">" and inside:
            return r"\rangle "
        return SIGNS.get(text, text)


def _is_word(row: _Row, token: re.Match) -> bool:
    """Whether a token is a word of English, and not a symbol."""
    text, (before, after) = token[0], row.around(token)
    if token.lastgroup != "name":
        return token.lastgroup == "word"
    if text in {"sum", "mean", "max", "min"} and re.match(r" (?:of|over)\b", after):
        return True
    if text == "a":
        return bool(re.search(r"(?:^|[a-z]{2} )$", before) and re.match(r" [a-z]{2}", after))
    if not re.fullmatch(r"[a-z]{2,}", text) or re.fullmatch(r"d[a-z]", text):
        return False
    return text not in GREEK | OPERATORS | {"sqrt", *SHORT} and not re.match(r"[(_]", after)


def _symbol(text: str, is_called: bool) -> str:
    """A name: a letter with its index, a Greek one, a function, or code."""
    base, _, index = text.partition("_")
    if re.fullmatch(r"hat(_\w{1,3})?", index):
        return rf"\hat{{{_letter(base)}}}" + (f"_{{{index[4:]}}}" if index[4:] else "")
    if (len(base) == 1 or base in GREEK) and len(index) < 4:
        upright = rf"\text{{{index}}}" if index in {"inf", "row", "col", "max"} else index
        return _letter(base) + (f"_{{{upright}}}" if index else "")
    if re.fullmatch(r"d[A-Za-z]", text):
        return text
    if re.fullmatch(r"[a-z]\d", text):
        return f"{text[0]}_{text[1]}"
    if text in SHORT:
        return SHORT[text]
    if is_called and not index or re.fullmatch(r"[A-Z][A-Za-z]+", text):
        return rf"\operatorname{{{text}}}"
    long, _, last = text.rpartition("_")
    if long and re.fullmatch(r"tm|[a-zA-Z0-9]", last):
        return rf"{_code(long)}_{{{last}}}"
    return _code(text)


def _letter(base: str) -> str:
    return f"\\{base} " if base in GREEK else base


def _operator(base: str) -> str:
    if base == "sum" or base in NAMED:
        return f"\\{base}"
    return rf"\operatorname*{{{base}}}"


def _code(text: str) -> str:
    escaped = text.replace("_", r"\_")
    return rf"\mathtt{{{escaped}}}"
