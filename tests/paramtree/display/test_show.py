"""What a view says of trees of every kind, read from its page and from its text."""

import gc
import html
import re
import warnings
import weakref
from html.parser import HTMLParser

import pytest
import torch
from tensordict import NonTensorData, TensorDict, lazy_stack, tensorclass
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad

from paramtree import grad, rng, show, tree, vmap


class Rows(HTMLParser):
    """Rows of a page as one reads them without its script and style: {path: text}."""

    def __init__(self, page):
        super().__init__()
        self.names, self.found, self.inside = [], {}, None
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.inside = tag
        if tag == "ul":
            self.names.append("")
        elif tag == "li":
            self.names[-1] = ""

    def handle_endtag(self, tag):
        self.inside = None
        if tag == "ul":
            self.names.pop()

    def handle_data(self, data):
        if self.inside == "b" and self.names:
            self.names[-1] += data
        elif self.inside not in ("style", "script") and self.names:
            path = tuple(self.names)
            self.found[path] = f"{self.found.get(path, '')} {data}"


def rows(view):
    return Rows(view.html).found


def ramp(*shape, seed=0):
    return rng.normal(rng.key(seed), shape)


@pytest.fixture
def params():
    policy = {"weight": ramp(3, 4, 5, seed=1), "bias": ramp(3, 4, seed=2)}
    return tree.new(
        {
            "meta": tree.new(
                {"lstm": tree.new({"weight_ih": ramp(12, 5), "bias": torch.zeros(12)})}
            ),
            "policy": tree.new({"linear_0": tree.new(policy, [3])}, [3]),
            "rate": torch.tensor(0.5),
        }
    )


def test_every_leaf_has_its_row_and_its_numbers(params):
    found = rows(show(params))
    leaves = dict(zip(tree.paths(params), tree.leaves(params), strict=True))
    assert set(leaves) < set(found)
    for path, x in leaves.items():
        text = found[path]
        share = x.numel() / sum(leaf.numel() for leaf in leaves.values())
        for part in (str(list(x.shape)), "float32", "cpu", f" {x.numel():,} "):
            assert part in text
        assert float(re.search(r"<?([\d.]+)%", text)[1]) == pytest.approx(100 * share, rel=0.06)
        if x.numel() > 1:
            mean, spread = map(float, re.search(r"(\S+) ± (\S+)", text).groups())
            assert mean == pytest.approx(x.mean().item(), rel=0.01)
            assert spread == pytest.approx(x.std(correction=0).item(), rel=0.01)
            low, high = map(float, re.search(r"min (\S+) · max (\S+)", text).groups())
            assert (low, high) == pytest.approx((x.min().item(), x.max().item()), rel=0.01)
        else:
            assert " 0.5" in text
    assert "zeros 12 (100%)" in found["meta", "lstm", "bias"]
    assert "batch [3]" in found[("policy",)] and "2 leaves" in found[("policy",)]
    for path, x in leaves.items():
        line = next(line for line in str(show(params)).splitlines() if f" {path[-1]} " in line)
        assert str(list(x.shape)) in line or path[-1] == "bias"


def test_what_is_not_finite_is_loud_in_every_row_above_it(params):
    x = ramp(12, 5)
    x[3, 2], x[0, 0], x[1, 1] = float("nan"), float("inf"), -float("inf")
    view = show(tree.replace(params, {("meta", "lstm", "weight_ih"): x}))
    page = view.html
    assert "<strong>⚠ 1 NaN, ⚠ 2 infinite</strong>" in page
    assert page.count("<strong>⚠ NaN or infinity in 1 of them</strong>") == 3  # root, meta, lstm
    assert "⚠ 1 NaN, ⚠ 2 infinite" in str(view)


def test_names_of_every_kind_are_shown_and_harmless():
    names = ["<script>alert(1)</script>", "q\"u'o&te", "a.b", "🙂 x", "", "line\nbreak\x00", "** "]
    names += ["a · b", "</style>", "\ud800"]
    page = show(TensorDict({name: {"x": torch.ones(1)} for name in names})).html
    assert page.count("<script>") == page.count("</script>") == page.count("</style>") == 1
    for name in names:
        plain = name.isprintable() and name.strip() == name and name
        assert f"<b>{html.escape(name if plain else repr(name))}</b>" in page
    page.encode()


@tensorclass
class Pair:
    left: torch.Tensor
    right: torch.Tensor


class Stranger:
    def __repr__(self):
        return "\x1b[31m\ud800\u202e red"


class Silent:
    def __repr__(self):
        raise RuntimeError


DTYPES = [torch.bool, torch.uint8, torch.int16, torch.uint16, torch.int64, torch.uint64]
DTYPES += [torch.float16, torch.bfloat16, torch.float64, torch.complex64, torch.float8_e4m3fn]


def trees():
    yield "empty", TensorDict(), "0 leaves"
    yield "empty level", TensorDict({"a": {}}, [3]), "0 leaves"
    yield "meta", TensorDict({"a": torch.zeros(3, 4, device="meta")}), "meta 12 100% no values"
    yield "zero size", TensorDict({"a": torch.zeros(3, 0)}, [3]), "[3, 0] float32 cpu 0 0% empty"
    yield "no rows", TensorDict({"a": torch.zeros(0, 3)}, [0]), "[0, 3] float32 cpu 0 0% empty"
    yield "non-tensor", TensorDict({"a": NonTensorData("x<b>")}), "a 'x<b>'"
    words = lazy_stack([TensorDict({"a": NonTensorData(word)}) for word in ("x", "y")])
    yield "stack of non-tensors", words.get("a"), "['x', 'y']"
    yield "true", torch.tensor(True), "[] bool cpu 1 100% 1"
    yield "huge", torch.tensor([1e308, -1e308]).double(), "[2] float64 cpu 2 100%"
    yield "locked", TensorDict({"a": torch.ones(2)}).lock_(), "locked"
    yield "requires grad", {"a": torch.ones(2, requires_grad=True) * 2}, "2 ± 0 requires grad"
    lazy = lazy_stack([TensorDict({"a": torch.full((2,), float(i))}) for i in range(3)])
    yield "lazy stack", lazy, "a [3, 2] float32 cpu 6 100% 1 ± 0.816"
    ragged = lazy_stack([TensorDict({"a": torch.ones(i + 1)}) for i in range(2)])
    yield "ragged stack", TensorDict({"r": ragged}, [2]), "1 TensorDict 1 leaf 2 67%"
    other = lazy_stack([TensorDict({"a": torch.ones(1)}), TensorDict({"b": torch.ones(1)})])
    yield "other names in each row", other, "└─ b [1]"
    yield "tensorclass", Pair(torch.ones(2), torch.zeros(2), batch_size=[2]), "left [2]"
    yield "nest", {"a": [torch.ones(2), ({"k": torch.zeros(1)},)], 3: "text"}, "3 'text'"
    yield "tensor", torch.ones(2, 3), "[2, 3] float32 cpu 6 100% 1 ± 0"
    yield "strangers", {"a": Stranger(), "b": Silent()}, r"a \x1b[31m\ud800\u202e red"
    yield "uninitialized", {"a": torch.nn.UninitializedParameter()}, "Parameter without a shape"
    jagged = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    yield "jagged", {"a": jagged}, "float32 cpu 5 100% jagged"
    yield "sparse", {"a": torch.eye(3).to_sparse()}, "[3, 3] float32 cpu 9 100% sparse_coo"
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        yield name, {"a": torch.ones(4, 3).to(dtype)}, f"a [4, 3] {name} cpu 12 100% 1 ± 0"


@pytest.mark.parametrize(("nest", "text"), [pytest.param(n, t, id=i) for i, n, t in trees()])
def test_a_tree_of_this_kind_shows(nest, text, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    view = show(nest)
    assert text in " ".join(str(view).split())
    assert set(rows(view)) or not tree.leaves(nest)


def test_tensors_under_transforms_show_their_values(params):
    seen = []

    def look(x, y=None):
        seen.append(str(show({"x": x, "y": y} if y is not None else {"x": x})))
        return (x * x).sum()

    x = torch.tensor([1.0, 3.0])
    grad(look)(x)
    torch.func.vmap(look)(torch.stack([x, x]), torch.stack([x + 1, x + 3]))
    torch.func.vmap(torch.func.grad(look), in_dims=1)(torch.stack([x, x], 1))
    vmap(lambda td: look(td["x"]))(TensorDict({"x": torch.stack([x, x, x])}, [3]))
    assert all("[2]" in text and "2 ± 1" in text for text in seen)
    assert "vmap of 2" in seen[1] and "4 ± 1.41" in seen[1] and "vmap of 2" in seen[2]
    with forward_ad.dual_level(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # make_dual calls torch.jit.script
        dual = forward_ad.make_dual(x, x)
        assert "2 ± 1" in str(show({"x": dual}))
    with torch.device("meta"):
        assert "2 ± 1" in str(show({"x": x}))
    with FakeTensorMode():
        fake = torch.ones(3, 3)
        assert "no values" in str(show({"x": fake})) and "2 ± 1" in str(show({"x": x}))


def test_a_view_keeps_no_tensor_and_changes_nothing(params):
    before = tree.map(torch.clone, params)
    unlocked = TensorDict({"a": torch.ones(3, requires_grad=True)})
    versions = [x._version for x in tree.leaves(params)]
    state = torch.random.get_rng_state()
    views = [show(params), show(params, before), show(unlocked)]
    pages = [(view.html, str(view)) for view in views]
    assert [x._version for x in tree.leaves(params)] == versions and not unlocked.is_locked
    assert tree.allclose(params, before, rtol=0, atol=0) and unlocked["a"].grad is None
    assert torch.equal(torch.random.get_rng_state(), state)
    for x in (params["meta", "lstm", "weight_ih"], unlocked["a"]):
        x.data.fill_(7.0)
    assert [(view.html, str(view)) for view in views] == pages
    x = torch.ones(3)
    view, held = show({"x": x}), weakref.ref(x)
    del x
    gc.collect()
    assert held() is None and "1 ± 0" in str(view)


def test_what_differs_between_two_trees(params):
    bias = params["meta", "lstm", "bias"]
    after = tree.map(lambda x: x * 1.1, params)
    after = tree.replace(after, {("meta", "lstm", "bias"): bias, "extra": torch.ones(2)})
    after = tree.exclude(after, "rate")
    found = rows(show(params, after))
    assert "differs by 10%" in found["meta", "lstm", "weight_ih"]
    assert "same" in found["meta", "lstm", "bias"] and "both: " in found["meta", "lstm", "bias"]
    assert "only in first" in found[("rate",)] and "only in second" in found[("extra",)]
    left, right = (t["policy", "linear_0", "bias"] for t in (params, after))
    text = found["policy", "linear_0", "bias"]
    for name, x in (("first", left), ("second", right), ("difference", right - left)):
        told = re.search(rf"{name}: mean (\S+) · spread (\S+) · min (\S+) · max (\S+)", text)
        wanted = [v.item() for v in (x.mean(), x.std(correction=0), x.min(), x.max())]
        assert [float(v) for v in told.groups()] == pytest.approx(wanted, rel=0.01)
    wide = show(params, tree.replace(params, {"rate": torch.ones(1)}))
    assert "[] → [1]" in rows(wide)[("rate",)] and "other shape" in str(wide)
    assert "1 differ" in str(wide).splitlines()[0]
    large = torch.tensor([2**62]), torch.tensor([2**62 + 1])
    assert "differs" in str(show(*large)) and "same" in str(show(large[0], large[0].clone()))
    small = torch.ones(3, 4).to(torch.float8_e4m3fn)
    assert "same" in str(show(small, small.clone()))
    nan = torch.tensor([float("nan"), 1.0])
    assert "same" in str(show(nan, nan.clone())) and "differs by 100%" in str(show(nan, 2 * nan))
    assert "only in first" in rows(show(params, {"meta": {}}))["meta", "lstm", "bias"]


def test_what_has_no_values_is_neither_the_same_nor_different():
    for x, y in (
        (torch.eye(3).to_sparse(), 2 * torch.eye(3).to_sparse()),
        (torch.ones(3, device="meta"), torch.ones(3, device="meta")),
    ):
        view = show({"x": x}, {"x": y})
        assert "not compared" in str(view) and "0 differ" in str(view)
        assert "both: " not in view.html and " data-s" not in view.html.split("<script>")[0]


def test_a_change_of_very_large_and_very_small_numbers():
    for scale in (1e308, 1e-200):
        before = torch.tensor([scale, -scale], dtype=torch.float64)
        after = torch.tensor([scale, -scale / 2], dtype=torch.float64)
        assert "differs by 35%" in str(show(before, after))  # 0.5 / sqrt(2)
    assert "differs\n" in str(show(torch.zeros(2), torch.ones(2))) + "\n"


def test_trees_of_other_batch_sizes_say_so(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    left, right = (TensorDict({"x": torch.ones(n, 3)}, [n]) for n in (2, 4))
    text = str(show(left, right))
    assert "batch [2] ·" in text and "batch [4] in the other" in text


def test_a_nest_without_an_end_is_refused():
    nest = {"x": torch.ones(1)}
    nest["nest"] = nest
    with pytest.raises(ValueError, match="show: first is nested too deeply, or holds itself"):
        show(nest)
    with pytest.raises(ValueError, match="show: first or second is nested too deeply"):
        show({"x": torch.ones(1)}, nest)


def test_a_name_from_right_to_left_stays_by_itself():
    page = show({"שלום": torch.ones(1), "peace": torch.ones(1)}).html
    assert "<b dir=auto>שלום</b>" in page and "<b>peace</b>" in page


def test_a_name_that_is_a_leaf_here_and_a_tree_there_is_listed_twice():
    left, right = {"a": torch.ones(2)}, {"a": {"x": torch.ones(3)}}
    lines = str(show(left, right)).splitlines()
    assert len(lines) == 4 and "only in first" in lines[1] and "only in second" in lines[3]


def test_a_tree_is_called_as_its_caller_calls_it(params, monkeypatch):
    assert str(show(params)).startswith("tree ") and str(show(params, name="p")).startswith("p ")
    assert str(show(params, params)).startswith("first → second ")
    monkeypatch.setitem(globals(), "weights", params)
    assert str(show(params)).startswith("weights ")
    assert str(show(params, params)).startswith("first → second ")
    monkeypatch.setitem(globals(), "grads", tree.map(torch.clone, params))
    assert str(show(params, globals()["grads"])).startswith("weights → grads ")


@pytest.mark.parametrize("bad", [3, "text", None, torch.nn.Linear(2, 2)])
def test_what_is_no_tree_is_refused(bad, params):
    with pytest.raises(TypeError, match=f"show: first is a {type(bad).__name__}, expected"):
        show(bad)
    if bad is not None:
        with pytest.raises(TypeError, match=f"show: second is a {type(bad).__name__}, expected"):
            show(params, bad)
    with pytest.raises(TypeError, match="a TensorDict and a Tensor, expected two trees or two"):
        show(params, torch.ones(2))
    with pytest.raises(TypeError, match="show: name is a int, expected a text"):
        show(params, name=3)


def test_large_leaves_are_sampled_and_say_so_and_lose_no_nan():
    x = torch.zeros(10**7)
    x[::2] = 1.0
    text = rows(show({"x": x}))[("x",)]
    assert "≈ 0.5 ± 0.5" in text and "of 10,000,000" in text and "sampled" in text
    x[12_345], x[77] = float("nan"), -5.0
    view = show({"x": x})
    assert "⚠ 1 NaN" in rows(view)[("x",)] and "min -5" in rows(view)[("x",)]
    assert "≈ of a sample" in str(view)
    rows_ = torch.tensor(2.0).expand(10**5, 10**5)  # 10^10 entries that are one number
    assert "2 ± 0" in str(show({"x": rows_})) and "NaN" not in str(show({"x": rows_}))


def test_a_sample_without_a_finite_number_says_so():
    x = torch.full((2_500_000,), float("nan"))
    view = show({"x": x})
    assert "nothing finite ⚠ 2,500,000 NaN" in " ".join(str(view).split())
    assert "zeros 0% · sampled" in rows(view)[("x",)] and "min" not in rows(view)[("x",)]
    x[1] = 5.0  # between two entries of the sample
    text = rows(show({"x": x}))[("x",)]
    assert "nothing finite in the sample" in text and "min 5 · max 5" in text
    same = torch.zeros(2_500_000)
    after = same.clone()
    after[0] = same[2] = 1.0
    assert "differs by ≈ " in str(show(same + 1, after + 1))


def test_ten_thousand_leaves_fit_into_three_megabytes():
    leaf = ramp(20, 30)
    big = {f"layer_{i}": {f"weight_{j}": leaf for j in range(100)} for i in range(100)}
    view = show(TensorDict(big))
    assert len(view.html.encode()) < 3_000_000 and len(str(view).splitlines()) < 110
    assert len(rows(view)) == 10_100
    wide = show({f"name_{i}" * 10: leaf for i in range(30_000)})
    assert len(wide.html.encode()) < 3_000_000 and "more: show a part" in wide.html
    stacked = {f"x{i}": TensorDict({"w": ramp(64, 8, 8)}, [64]) for i in range(400)}
    assert len(show(stacked, {**stacked}).html.encode()) < 3_000_000
    assert "no heat map for" in show({f"x{i}": ramp(64, 64) for i in range(3000)}).html


def test_nothing_comes_from_outside(params):
    page = show(params, tree.map(torch.clone, params)).html
    assert not re.search(r"(src|href)\s*=|@import|url\(|fetch\(|XMLHttp|import\(", page)


def test_no_warning_is_given(params):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert show(params).html


def test_a_quantized_leaf_says_so():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = torch.quantize_per_tensor(torch.ones(3, 3), 0.1, 0, torch.qint8)
        assert "qint8 cpu 9 100% quantized" in " ".join(str(show({"x": x})).split())
