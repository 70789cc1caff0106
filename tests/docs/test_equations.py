"""Equations of docstrings are typeset as by hand, and blocks are what they look like."""

import pytest

from tests.docs.blocks import Kind, blocks, kind_of
from tests.docs.equations import row, typeset

BY_HAND = {
    "r_t A_t": r"r_{t}\,A_{t}",
    "gamma^n (1 - terminated_t)": r"\gamma ^{n}\,(1 - \mathtt{terminated}_{t})",
    "log pi(a_t|s_t)": r"\log \pi (a_{t}\mid s_{t})",
    "|delta| + |x|": r"\lvert \delta \rvert + \lvert x\rvert",
    "KL(mu(.|s_t) || pi(.|s_t))": (
        r"\operatorname{KL}(\mu (\cdot \mid s_{t}) \,\Vert\, \pi (\cdot \mid s_{t}))"
    ),
    "sqrt(nu / (1 - b2^t) + eps_root)": (r"\sqrt{\nu / (1 - b_2^{t}) + \mathtt{eps\_root}}"),
    "1/N sum_i Q'_i(s_{t+1}, a')": r"\tfrac{1}{N}\,\sum_{i} Q'_{i}(s_{t+1}, a')",
    "x = max_a Q(s, a), or max_norm": (r"x = \max_{a} Q(s, a),\ \text{or}\ \mathtt{max\_norm}"),
    "(mu(s_t) - a_t)_d^2": r"(\mu (s_{t}) - a_{t})_{d}^{2}",
    "<r, r> / <p, A p>, where a < b": (
        r"\langle r, r\rangle / \langle p, A\,p\rangle ,\ \text{where}\ a < b"
    ),
    "pi_hat_t, y_hat_{t,k}, a~": r"\hat{\pi }_{t}, \hat{y}_{t,k}, \tilde{a}",
    "mean over tasks of a policy's x": (
        r"\text{mean}\ \text{over}\ \text{tasks}\ \text{of}\ \text{a}\ \text{policy's}\ x"
    ),
    "pi_hat_coeff pi_hat's logits": r"\mathtt{pi\_hat\_coeff}\,\hat{\pi }\text{'s}\ \text{logits}",
    "G^k_t, G^{k-1}_{t+1}, sum_{s'} a_{s'}": r"G^{k}_{t}, G^{k-1}_{t+1}, \sum_{s'}\,a_{s'}",
    "h_(t-1) base^(-2i/n) 1e-6": r"h_{t-1}\ \text{base}^{-2i/n}\,10^{-6}",
}


@pytest.mark.parametrize("text", BY_HAND)
def test_a_row_is_typeset_as_by_hand(text):
    assert row(text) == BY_HAND[text]


def test_rows_align_at_their_relation_and_a_deeper_one_goes_on():
    block = "    G_t = r_t\n        + f(x = y)\n    m <- n\n"
    assert typeset(block).splitlines()[1:-1] == [
        r"G_{t} &= r_{t} \\",
        r"&\qquad + f(x = y) \\",
        r"m &\leftarrow n",
    ]


def test_brackets_of_all_rows_are_closed():
    for text in BY_HAND:
        out = row(text)
        assert out.count("{") == out.count("}")


@pytest.mark.parametrize(
    ("block", "is_opening", "kind"),
    [
        ("    y = x / (n + 1)\n", False, Kind.EQUATION),
        ("    y = x / (n + 1)\n", True, Kind.CODE),
        ("    y_t = gamma (x_t - 1)\n", True, Kind.EQUATION),
        ("    >>> 1 + 1\n    2\n", False, Kind.DOCTEST),
        ('    save("x", tree)\n', False, Kind.CODE),
        ("    f(lambda x: x)\n", False, Kind.CODE),
        ("    adam(lr=0.1)\n", True, Kind.CODE),
        ("    name     what it is\n    other    the rest\n", True, Kind.TABLE),
        ("    init(key) -> (params, buffers)\n", True, Kind.TABLE),
    ],
)
def test_a_block_is_what_it_looks_like(block, is_opening, kind):
    assert kind_of(block, is_opening) == kind


def test_blocks_are_all_of_a_docstring_and_leave_sections_alone():
    text = "One line.\n\n    a = b c\n\nMore.\n\nArgs:\n    x: a\n\n    y: b\n"
    parts = list(blocks(text, is_opening=False))
    assert "".join(part for _, part in parts) == text
    assert [kind for kind, _ in parts] == [Kind.PROSE, Kind.EQUATION, Kind.PROSE]
