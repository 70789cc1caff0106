"""Trees on disk: one safetensors file a tree, its names, batch sizes and version in the header.

    >>> from tempfile import TemporaryDirectory
    >>> params = new({"weight": torch.ones(2, 3)})
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder) / "policy.safetensors"
    ...     save(path, params, metadata={"step": 100})
    ...     params = load(path, like=params)              # names, shapes and dtypes are checked
    ...     load_metadata(path)["step"]
    100

A leaf's name in the file is its path joined by dots; a dot or a backslash inside of a name has a
backslash before it. The header's ``structure`` holds the order of the names and the batch size of
every node, empty ones included; a complex leaf is stored as its real and imaginary parts. Its
``crc32`` is over the whole file with the checksum itself as zeros. Equal trees give equal files.
Names of dimensions, the sharing of leaves and ``requires_grad`` are not kept.

A file is written beside its destination, brought to the disk and renamed, so that a kill at any
moment leaves the old file or the new one, whole. What a killed process left behind is removed by
the next ``save`` to the same path.
"""

import contextlib
import fcntl
import json
import os
import re
import secrets
import zlib
from collections.abc import Iterator
from glob import escape
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

import paramtree

from .tree import entries, new, require_tree, show_path

_File = str | os.PathLike[str]
_Device = torch.device | str | None
_Names = tuple[str, ...]

_OLDEST = "0.1.0"  # whose files this version still reads; raise it when the layout above changes
_DTYPES = {
    torch.float64, torch.float32, torch.float16, torch.bfloat16,
    torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz,
    torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.bool,
    torch.complex128, torch.complex64,
}  # fmt: skip
_BEFORE_SUM = b'"paramtree":"{\\"crc32\\": \\"'  # unescaped quotes: in no name and no metadata


def save(path: _File, tree: TensorDictBase, *, metadata: dict[str, Any] | None = None) -> None:
    """Write a tree to a file; whatever happens, the path holds the old file or the new one.

    Args:
        path: the file, usually ``*.safetensors``; its folder exists.
        tree: a tree of dense tensors on any device, of any bool, integer, float or complex dtype.
        metadata: what ``load_metadata`` gives back: dictionaries with text keys, lists, text,
            numbers, bools, None.

    Raises:
        TypeError: a leaf or a piece of the metadata is of a kind that the file cannot hold.
        OSError: the file cannot be written.
        ImportError: safetensors is missing.
    """
    library = _safetensors("save")
    require_tree("save", "tree", tree)
    if metadata is not None and not isinstance(metadata, dict):
        raise TypeError(f"save: metadata is a {type(metadata).__name__}, expected a dictionary")
    _require_json(metadata, "metadata")
    tensors: dict[str, Tensor] = {}
    header = {
        "crc32": "00000000",
        "version": paramtree.__version__,
        "structure": _take_apart(tree, (), tensors),
        "metadata": {} if metadata is None else metadata,
    }
    blob = library.save(tensors, {"paramtree": json.dumps(header)})
    at = blob.index(_BEFORE_SUM) + len(_BEFORE_SUM)
    parts = [blob[:at], b"%08x" % zlib.crc32(blob), memoryview(blob)[at + 8 :]]
    _write(Path(os.path.realpath(path)), parts)


def load(
    path: _File,
    like: TensorDictBase | None = None,
    *,
    device: _Device = None,
) -> TensorDict:
    """Tree of a file that ``save`` wrote.

    Args:
        path: the file.
        like: a tree with the names, shapes, dtypes and batch sizes that are wanted; its values
            don't matter, and its leaves may be on the meta device.
        device: where the leaves go; without it to where those of ``like`` are, or to the CPU.

    Returns:
        The tree, locked; its leaves don't require grad.

    Raises:
        ValueError: the file is damaged, of another version, not of this library, or its names or
            shapes are not those of ``like``; the message lists them.
        TypeError: only the dtypes are not those of ``like``.
        OSError: the file cannot be read.
        ImportError: safetensors is missing.
    """
    library = _safetensors("load")
    blob, header = _read("load", path)
    try:
        tree = _put_together(header["structure"], (), library.load(blob))
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError):
        # The checksum is right, so this is another program's work.
        _damaged("load", path, "its header does not describe its tensors")
    if like is None:
        return _moved(tree, device, None)
    require_tree("load", "like", like)
    _require_like(path, tree, like)
    return _moved(tree, device, like)


def load_metadata(path: _File) -> dict[str, Any]:
    """Metadata of a file that ``save`` wrote.

    Args:
        path: the file.

    Returns:
        What was given to ``save``, ``{}`` when nothing was.

    Raises:
        ValueError: the file is damaged, of another version or not of this library.
        OSError: the file cannot be read.
    """
    return _read("load_metadata", path)[1]["metadata"]


# ---------------------------------------------------------------------------- trees and names


def _flat_name(path: _Names) -> str:
    """Path joined by dots, unambiguously, and never safetensors' own ``__metadata__``."""
    name = ".".join([re.sub(r"([.\\])", r"\\\1", part) for part in path])
    return "\\" + name if name == "__metadata__" else name


def _take_apart(tree: TensorDictBase, prefix: _Names, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Structure of a tree, its leaves put into ``tensors``."""
    inside: dict[str, Any] = {}
    for name, value in entries(tree).items():
        path = (*prefix, name)
        if isinstance(value, TensorDictBase):
            inside[name] = _take_apart(value, path, tensors)
        else:
            _require_leaf(path, value)
            leaf = value.detach().cpu().resolve_conj().resolve_neg()
            inside[name] = "complex" if leaf.is_complex() else "real"
            leaf = torch.view_as_real(leaf) if leaf.is_complex() else leaf
            # A copy: safetensors refuses leaves that share memory, and those with strides.
            tensors[_flat_name(path)] = leaf.clone(memory_format=torch.contiguous_format)
    return {"batch_size": list(tree.batch_size), "entries": inside}


def _put_together(node: Any, prefix: _Names, tensors: dict[str, Tensor]) -> TensorDict:
    inside: dict[str, Any] = {}
    size = tuple(node["batch_size"])
    for name, kind in node["entries"].items():
        path = (*prefix, name)
        if isinstance(kind, dict):
            value: Any = _put_together(kind, path, tensors)
        else:
            value = tensors.pop(_flat_name(path))
            value = torch.view_as_complex(value) if kind == "complex" else value
        if tuple(value.shape[: len(size)]) != size:
            raise ValueError(path)
        inside[name] = value
    if not prefix and tensors:
        raise ValueError(list(tensors))
    return new(inside, size)


def _moved(tree: TensorDict, device: _Device, like: TensorDictBase | None) -> TensorDict:
    twins = entries(like) if like is not None else {}
    moved: dict[str, Any] = {}
    for name, value in entries(tree).items():
        twin = twins.get(name)
        if isinstance(value, TensorDictBase):
            moved[name] = _moved(value, device, twin)  # pyright: ignore[reportArgumentType]
        else:
            place = device or (twin.device if twin is not None and not twin.is_meta else "cpu")
            moved[name] = value.to(place)
    return new(moved, tree.batch_size)


def _walk(tree: TensorDictBase, prefix: _Names = ()) -> Iterator[tuple[_Names, Any]]:
    """Path and value of every node and leaf, the root first."""
    yield prefix, tree
    for name, value in entries(tree).items():
        if isinstance(value, TensorDictBase):
            yield from _walk(value, (*prefix, name))
        else:
            yield (*prefix, name), value


def _require_like(path: _File, tree: TensorDictBase, like: TensorDictBase) -> None:
    """Refuse a tree with other names, shapes, batch sizes or dtypes; the message lists them."""
    got, wanted = dict(_walk(tree)), dict(_walk(like))
    shapes, dtypes = [], []
    for key in [key for key in wanted if key in got]:
        a, b = got[key], wanted[key]
        where = show_path(key) if key else "the tree"
        if isinstance(a, TensorDictBase) != isinstance(b, TensorDictBase):
            kinds = ["a sub-tree" if isinstance(x, TensorDictBase) else "a leaf" for x in (a, b)]
            shapes.append(f"{where} is {kinds[0]}, expected {kinds[1]}")
        elif isinstance(a, TensorDictBase):
            if a.batch_size != b.batch_size:
                shapes.append(f"{where} has batch size {list(a.shape)}, expected {list(b.shape)}")
        elif a.shape != b.shape:
            shapes.append(f"{where} has shape {tuple(a.shape)}, expected {tuple(b.shape)}")
        elif a.dtype != b.dtype:
            dtypes.append(f"{where} is {a.dtype}, expected {b.dtype}")
    missing = [show_path(key) for key in wanted if key not in got]
    extra = [show_path(key) for key in got if key not in wanted]
    named = [("missing ", missing), ("extra ", extra), ("", shapes), ("", dtypes)]
    parts = [word + _some(items) for word, items in named if items]
    if parts:
        error = ValueError if missing or extra or shapes else TypeError
        raise error(
            f"load: {_quote(path)} does not hold a tree like `like`: {'; '.join(parts)}; give a "
            "`like` of the architecture that was saved, or none to take the file as it is"
        )


def _some(items: list[str]) -> str:
    return ", ".join(items[:5]) + (f" and {len(items) - 5} more" if len(items) > 5 else "")


def _require_leaf(path: _Names, leaf: Any) -> None:
    if not isinstance(leaf, Tensor):
        raise TypeError(
            f"save: {show_path(path)} is a {type(leaf).__name__}, expected a tensor; text and "
            "numbers go into metadata"
        )
    if torch._C._functorch.is_functorch_wrapped_tensor(leaf):  # pyright: ignore
        what = "belongs to a vmap or grad that is under way; save outside of it"
    elif leaf.layout != torch.strided or leaf.is_meta or leaf.is_nested:
        what = f"is {leaf.layout} on {leaf.device}, expected a dense tensor with values"
    elif leaf.dtype not in _DTYPES:
        what = f"is {leaf.dtype}, which a safetensors file cannot hold"
    else:
        return
    raise TypeError(f"save: {show_path(path)} {what}")


def _require_json(value: Any, where: str) -> None:
    """Refuse what would not come back from JSON as it was."""
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        for key, inner in value.items():
            _require_json(inner, f"{where}[{key!r}]")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _require_json(inner, f"{where}[{index}]")
    elif not isinstance(value, str | int | float | None):
        keys = " with keys that are not text" if isinstance(value, dict) else ""
        raise TypeError(
            f"save: {where} is a {type(value).__name__}{keys}, expected what JSON knows: "
            "dictionaries with text keys, lists, text, numbers, bools, None"
        )


# ----------------------------------------------------------------------------------- the file


def _safetensors(fn: str) -> ModuleType:
    try:
        import safetensors.torch
    except ImportError as error:
        text = f"{fn}: needs safetensors: pip install 'paramtree[cli]' ({error})"
        raise ImportError(text) from None
    return safetensors.torch


def _read(fn: str, path: _File) -> tuple[bytes, dict[str, Any]]:
    """Bytes and header of a whole file of a version that this one reads."""
    try:
        blob = Path(path).read_bytes()
    except OSError as error:
        raise type(error)(f"{fn}: cannot read {_quote(path)}: {error.strerror}") from None
    end = 8 + int.from_bytes(blob[:8], "little")
    try:
        outer: Any = json.loads(blob[8:end]) if end <= len(blob) else None
        ours = outer.get("__metadata__", {}).get("paramtree")
        header = json.loads(ours or "{}")
    except (ValueError, TypeError, AttributeError, RecursionError):
        _damaged(fn, path, f"{len(blob)} bytes without a whole header")
    if not {"crc32", "version", "structure", "metadata"} <= set(header):
        raise ValueError(
            f"{fn}: {_quote(path)} is a safetensors file, but not one that paramtree saved; read "
            "it with safetensors.torch.load_file"
        )
    _require_version(fn, path, str(header["version"]))
    at = blob.find(_BEFORE_SUM) + len(_BEFORE_SUM)
    own = zlib.crc32(memoryview(blob)[at + 8 :], zlib.crc32(b"00000000", zlib.crc32(blob[:at])))
    if f"{own:08x}" != header["crc32"]:
        _damaged(fn, path, "its checksum differs")
    return blob, header


def _require_version(fn: str, path: _File, version: str) -> None:
    own = paramtree.__version__
    if _version(version) > _version(own):
        raise ValueError(
            f"{fn}: {_quote(path)} was saved by paramtree {version}, and this is the older {own}; "
            f"upgrade with pip install 'paramtree>={version}'"
        )
    if _version(version) < _version(_OLDEST):
        raise ValueError(
            f"{fn}: {_quote(path)} was saved by paramtree {version}, and this one, {own}, reads "
            f"files of {_OLDEST} and later; load it with paramtree {version}"
        )


def _version(text: str) -> tuple[int, ...]:
    """Numbers of a version; text that isn't one counts as older than all."""
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    return tuple([int(number or 0) for number in match.groups()]) if match else (-1,)


def _damaged(fn: str, path: _File, what: str) -> NoReturn:
    raise ValueError(
        f"{fn}: {_quote(path)} is truncated, damaged or not a checkpoint ({what}); load another "
        "copy of it, or save it again"
    ) from None


def _quote(path: _File) -> str:
    return repr(os.fspath(path))


def _write(path: Path, parts: list[bytes | memoryview]) -> None:
    """Put the parts where the path is, all of them or none."""
    try:
        _remove_leftovers(path)
        descriptor, temporary = _open_temporary(path)
        try:
            with os.fdopen(descriptor, "wb") as file:  # closing it lets go of the lock
                for part in parts:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
                os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name, too, is on the disk
        finally:
            os.close(folder)
    except OSError as error:
        raise type(error)(f"save: cannot write {str(path)!r}: {error.strerror}") from None


def _open_temporary(path: Path) -> tuple[int, Path]:
    """A new file beside the path, locked for as long as its writer lives."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor, temporary
        os.close(descriptor)  # another save took it for a leftover before the lock was on


def _remove_leftovers(path: Path) -> None:
    for leftover in path.parent.glob(f".{escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError), open(leftover, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises while its writer lives
            leftover.unlink()
