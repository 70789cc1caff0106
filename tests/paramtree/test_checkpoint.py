import json
import sys

import pytest
import torch
from tensordict import TensorDict

import paramtree
from paramtree import tree
from paramtree.checkpoint import load, load_metadata, save

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e5m2,
    torch.int64,
    torch.int8,
    torch.uint8,
    torch.uint64,
    torch.bool,
    torch.complex64,
    torch.complex128,
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "policy.safetensors"


@pytest.fixture
def params():
    torch.manual_seed(0)
    policy = TensorDict({"weight": torch.randn(3, 4, 2), "bias": torch.randn(3, 4)}, [3])
    return TensorDict(
        {"policy": policy, "meta": TensorDict({"gamma": torch.randn(())}), "n": torch.ones(2)}
    )


def assert_same(got, wanted):
    """Equal in names and their order, batch sizes, dtypes, shapes and every bit."""
    assert list(got.keys()) == list(wanted.keys())
    assert got.batch_size == wanted.batch_size
    for name in wanted.keys():
        a, b = got.get(name), wanted.get(name)
        if isinstance(b, TensorDict):
            assert_same(a, b)
        else:
            assert (a.dtype, a.shape, a.device) == (b.dtype, b.shape, b.device)
            a, b = (x.detach().resolve_conj().contiguous().reshape(-1) for x in (a, b))
            assert torch.equal(a.view(torch.uint8), b.view(torch.uint8)), name


def test_a_tree_comes_back_with_names_order_batch_sizes_and_bits(path, params):
    save(path, params)
    got = load(path)
    assert_same(got, params)
    assert got.is_locked and got.get("policy").is_locked
    assert_same(load(str(path), like=params), params)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)], ids=str)
def test_every_dtype_and_shape(path, dtype, shape):
    bits = torch.randint(0, 2, (*shape, 2), generator=torch.Generator().manual_seed(1))
    leaf = (
        torch.view_as_complex(bits.double()).to(dtype)
        if dtype.is_complex
        else bits[..., 0].to(dtype)
    )
    wanted = TensorDict({"x": leaf})
    save(path, wanted)
    assert_same(load(path, like=wanted), wanted)


def test_values_that_equality_would_not_tell_apart(path):
    wanted = TensorDict(
        {"x": torch.tensor([-0.0, float("nan"), float("inf"), 5e-324], dtype=torch.float64)}
    )
    save(path, wanted)
    assert_same(load(path), wanted)


def test_leaves_with_strides_shared_memory_conjugates_and_gradients(path):
    base = torch.arange(12.0)
    weight = torch.randn(3, requires_grad=True)
    wanted = TensorDict(
        {
            "transposed": base.view(3, 4).T,
            "row": base.view(3, 4)[1],
            "expanded": torch.tensor(2.0).expand(5),
            "twice": base,
            "again": base,
            "conjugate": torch.randn(3, dtype=torch.complex64).conj(),
            "imaginary": torch.randn(3, dtype=torch.complex64).conj().imag,  # a negative view
            "leaf": weight,
            "inner": weight * 2,
            "parameter": torch.nn.Parameter(torch.ones(2)),
        }
    )
    save(path, wanted)
    got = load(path)
    assert_same(got, wanted)
    for leaf in tree.leaves(got):
        assert not leaf.requires_grad and leaf.is_contiguous()
    assert got["twice"].data_ptr() != got["again"].data_ptr()


def test_what_is_loaded_may_be_written_to(path, params):
    save(path, params)
    got = load(path)
    got["n"].add_(1)
    assert_same(load(path), params)


NAMES = [
    "a.b",
    "a",
    "b",
    "a\\",
    "\\.b",
    ".",
    "..",
    "",
    " ",
    "__metadata__",
    "\\__metadata__",
    "µ",
    "crc32",
    '"x"',
]


def test_names_with_dots_backslashes_and_quotes(path):
    inner = {name: torch.tensor(i) for i, name in enumerate(NAMES)}
    nested = {
        f"{name}'": TensorDict({n: t + 100 * i for n, t in inner.items()})
        for i, name in enumerate(NAMES)
    }
    clash = {
        "a.b.": torch.tensor(-1),
        "x": TensorDict({"y.z": torch.tensor(-2)}),
        "x.y": TensorDict({"z": torch.tensor(-3)}),
    }
    wanted = TensorDict({**inner, **nested, **clash})
    save(path, wanted)
    assert_same(load(path, like=wanted), wanted)


def test_names_in_the_file_are_paths_joined_by_dots(path, params):
    from safetensors.torch import load_file

    save(path, params)
    assert set(load_file(path)) == {"policy.weight", "policy.bias", "meta.gamma", "n"}


def test_trees_without_leaves(path):
    wanted = TensorDict(
        {"dropout_0": TensorDict({}, [4, 2]), "deep": TensorDict({"er": TensorDict({})})}, []
    )
    for empty in (wanted, TensorDict({}), TensorDict({}, [3])):
        save(path, empty)
        assert_same(load(path, like=empty), empty)


def test_lazy_stacks_and_unlocked_views(path, params):
    lazy = TensorDict.lazy_stack([params["meta"], params["meta"]])
    save(path, lazy)
    assert_same(load(path), TensorDict({"gamma": params["meta", "gamma"].expand(2)}, [2]))
    save(path, params["policy"][1])
    assert_same(load(path), params["policy"][1])


def test_save_changes_nothing_and_is_deterministic(path, params):
    before = params.clone()
    save(path, params, metadata={"step": 3})
    first = path.read_bytes()
    save(path, params, metadata={"step": 3})
    assert path.read_bytes() == first
    assert_same(params, before)


def test_metadata_comes_back(path, params):
    metadata = {
        "step": 100,
        "seconds": 1.5,
        "done": False,
        "none": None,
        "text": 'µ "quoted" \\ "crc32":"00000000"\n',
        "nested": {"list": [1, [2.5, {"x": "y"}]], "empty": {}},
        "infinite": float("inf"),
        "big": 2**70,
    }
    save(path, params, metadata=metadata)
    assert load_metadata(path) == metadata
    assert_same(load(path), params)
    save(path, params)
    assert load_metadata(path) == {}


@pytest.mark.parametrize(
    ("metadata", "where"),
    [
        ({"a": [1, torch.ones(1)]}, r"metadata\['a'\]\[1\] is a Tensor"),
        ({"a": (1, 2)}, r"metadata\['a'\] is a tuple"),
        ({"a": {1: 2}}, r"metadata\['a'\] is a dict with keys that are not text"),
        ([1], "metadata is a list"),
        ("text", "metadata is a str"),
    ],
)
def test_metadata_that_would_not_come_back(path, params, metadata, where):
    with pytest.raises(TypeError, match=f"save: {where}"):
        save(path, params, metadata=metadata)
    assert not path.exists()


@pytest.mark.parametrize("as_text", [False, True])
def test_device(path, params, as_text):
    save(path, params)
    device = torch.device("meta")
    assert {
        leaf.device for leaf in tree.leaves(load(path, device=str(device) if as_text else device))
    } == {device}
    blank = TensorDict({"x": torch.ones(2, device="meta")})
    save(path, TensorDict({"x": torch.ones(2)}))
    assert load(path, like=blank)["x"].is_cpu  # an abstract `like` gives shapes, not a place


# ----------------------------------------------------------------------- what `like` says


def test_like_lists_missing_and_extra_names_shapes_batch_sizes_and_dtypes(path, params):
    save(path, params)
    like = TensorDict(
        {
            "policy": TensorDict({"weight": torch.zeros(3, 5, 2), "scale": torch.zeros(3)}),
            "meta": torch.zeros(2),
            "n": torch.zeros(2, dtype=torch.float64),
        }
    )
    with pytest.raises(ValueError) as caught:
        load(path, like)
    text = str(caught.value)
    assert "\n" not in text
    for piece in [
        repr(str(path)),
        "missing 'policy.scale'",
        "extra 'policy.bias', 'meta.gamma'",
        "'policy.weight' has shape (3, 4, 2), expected (3, 5, 2)",
        "'policy' has batch size [3], expected []",
        "'meta' is a sub-tree, expected a leaf",
        "'n' is torch.float32, expected torch.float64",
    ]:
        assert piece in text


def test_like_of_another_dtype_alone_is_a_type_error(path, params):
    save(path, params)
    with pytest.raises(TypeError, match=r"'policy\.bias' is torch.float32, expected torch.float64"):
        load(path, tree.map(torch.Tensor.double, params))


def test_like_with_many_differences_stays_short(path):
    save(path, TensorDict({f"x{i}": torch.ones(1) for i in range(100)}))
    with pytest.raises(ValueError, match="'x3', 'x4' and 95 more") as caught:
        load(path, TensorDict({}))
    assert len(str(caught.value)) < 400


def test_like_in_another_order_is_the_same(path, params):
    save(path, params)
    backwards = TensorDict({name: params[name] for name in reversed(list(params.keys()))})
    assert_same(load(path, backwards), params)


@pytest.mark.parametrize(
    "fn", [lambda p, x: save(p, x), lambda p, x: load(p, like=x)], ids=["save", "load"]
)
def test_not_a_tree(path, params, fn):
    save(path, params)
    before = path.read_bytes()
    with pytest.raises(
        TypeError, match=r"(save: tree|load: like) is a dict, expected a TensorDict"
    ):
        fn(path, {"x": torch.ones(1)})
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("leaf", "what"),
    [
        (torch.ones(2, 2).to_sparse(), "torch.sparse_coo"),
        (torch.ones(2, device="meta"), "on meta"),
        ("text", "is a NonTensorData, expected a tensor"),
    ],
    ids=["sparse", "meta", "text"],
)
def test_leaves_that_a_file_cannot_hold(path, leaf, what):
    inner = (
        TensorDict({}).set("x", leaf)
        if not isinstance(leaf, str)
        else TensorDict({}).set_non_tensor("x", leaf)
    )
    with pytest.raises(TypeError, match=rf"save: 'policy\.x' is .*{what}|save: 'policy\.x' {what}"):
        save(path, TensorDict({"policy": inner}))
    assert list(path.parent.iterdir()) == []


def test_saving_inside_of_a_transform(path):
    def inside(x):
        save(path, TensorDict({"x": x}))
        return x

    with pytest.raises(TypeError, match="'x' belongs to a vmap or grad that is under way"):
        torch.func.vmap(inside)(torch.ones(2))


# --------------------------------------------------------------- damaged and foreign files


def test_every_truncation_is_named(path, params):
    save(path, params, metadata={"step": 1})
    whole = path.read_bytes()
    for length in [*range(0, 400, 7), *range(400, len(whole), 31), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="truncated, damaged or not a checkpoint") as caught:
            load(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_every_flipped_byte_is_found(path, params):
    save(path, params)
    whole = path.read_bytes()
    for at in range(0, len(whole), 3):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x20]) + whole[at + 1 :])
        with pytest.raises(ValueError, match=r"^load: '.*policy\.safetensors' (is|was) ") as caught:
            load(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("blob", [b"", b"\x00", b"\xff" * 100, b"PK\x03\x04" + b"z" * 500], ids=len)
def test_other_kinds_of_files(path, blob):
    path.write_bytes(blob)
    for fn in (load, load_metadata):
        with pytest.raises(
            ValueError, match=f"{fn.__name__}: .* truncated, damaged or not a checkpoint"
        ):
            fn(path)


def test_a_torch_file_and_a_foreign_safetensors_file(path):
    from safetensors.torch import save_file

    torch.save({"x": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="truncated, damaged or not a checkpoint"):
        load(path)
    for metadata in (None, {"format": "pt"}):
        save_file({"x": torch.ones(2)}, path, metadata)
        with pytest.raises(
            ValueError, match="not one that paramtree saved; read it with safetensors"
        ):
            load(path)


def test_a_header_that_does_not_describe_the_tensors(path, params):
    """Right checksum, wrong structure: another program's work."""
    import zlib

    from safetensors.torch import save as serialize

    leaf_of_another_size = {"batch_size": [7], "entries": {"x": "real"}}
    leaf_left_over = {"batch_size": [], "entries": {}}
    leaf_unknown = {"batch_size": [], "entries": {"x": "real", "y": "real"}}
    for structure in [{}, [], leaf_of_another_size, leaf_left_over, leaf_unknown]:
        header = {"crc32": "00000000", "version": "0.1.0", "structure": structure, "metadata": {}}
        blob = serialize({"x": torch.ones(2)}, {"paramtree": json.dumps(header)})
        checksum = b'crc32\\": \\"%08x' % zlib.crc32(blob)
        path.write_bytes(blob.replace(b'crc32\\": \\"00000000', checksum))
        with pytest.raises(ValueError, match="its header does not describe its tensors"):
            load(path)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="load: cannot read '.*nowhere.safetensors': No such file"
    ):
        load(tmp_path / "nowhere.safetensors")
    with pytest.raises(IsADirectoryError, match="load: cannot read"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (
            "0.1.1",
            r"was saved by paramtree 0\.1\.1, and this is the older 0\.1\.0; upgrade",
        ),
        ("0.2.0", "upgrade with pip install 'paramtree>=0.2.0'"),
        ("0.10.0", "upgrade with pip"),
        ("1.0.0.dev3", "upgrade with pip"),
        ("0.0.9", r"reads files of 0\.1\.0 and later; load it with paramtree 0\.0\.9"),
        ("nonsense", "and later; load it with"),
    ],
)
def test_a_file_of_another_version_is_refused(path, params, monkeypatch, version, message):
    with monkeypatch.context() as patch:
        patch.setattr(paramtree, "__version__", version)
        save(path, params)
    monkeypatch.setattr(paramtree, "__version__", "0.1.0")
    before = path.read_bytes()
    for fn in (load, load_metadata):
        with pytest.raises(ValueError, match=message):
            fn(path)
    assert path.read_bytes() == before


def test_a_newer_library_reads_an_older_file(path, params, monkeypatch):
    save(path, params)
    monkeypatch.setattr(paramtree, "__version__", "0.12.3")
    assert_same(load(path), params)


def test_missing_safetensors_names_the_extra(path, params, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    for fn in (lambda: save(path, params), lambda: load(path)):
        with pytest.raises(ImportError, match=r"needs safetensors: pip install 'paramtree\[cli\]'"):
            fn()
