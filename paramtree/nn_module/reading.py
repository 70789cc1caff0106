"""Leaves of a tree that has the names and shapes of a module's parameters or buffers."""

from collections.abc import Collection
from typing import Any

from tensordict import TensorDict
from torch import Tensor

from .. import tree
from .leaves import Leaves, Path, show


class Reader:
    """Reads trees of the same names; ``free`` are the leaves that may have other shapes."""

    def __init__(
        self,
        fn: str,
        argument: str,
        name: str,
        leaves: Leaves,
        example: TensorDict,
        free: Collection[Path] = (),
    ) -> None:
        self.fn, self.argument, self.name = fn, argument, name
        self.leaves, self.structure = leaves.released(), tree.flatten(example)[1]
        rows = zip(self.structure.paths(), tree.leaves(example), strict=True)
        self._shapes = [(i, x.shape) for i, (path, x) in enumerate(rows) if path not in free]

    def read(self, given: Any) -> list[Tensor]:
        """Leaves in the order of their paths.

        Args:
            given: the tree.

        Returns:
            The tensors.

        Raises:
            TypeError: it's not a tree.
            ValueError: names or shapes differ.
        """
        found = tree.leaves_like(self.structure, given)
        if found is None:
            tree.require_tree(self.fn, self.argument, given)
            self._refuse_names(given)
            raise AssertionError
        for i, shape in self._shapes:
            if found[i].shape != shape:
                path, got = self.structure.paths()[i], tuple(found[i].shape)
                more = got[-len(shape) or len(got) :] == tuple(shape) and len(got) > len(shape)
                hint = "; map over stacked ones with vmap" if more else ""
                raise ValueError(
                    f"{self.fn}: {self.argument}.{show(path)} has shape {got}, expected "
                    f"{tuple(shape)} (from the {self.name} that was converted){hint}"
                )
        return found

    def _refuse_names(self, given: Any) -> None:
        known, own = self.structure.paths(), tree.paths(given)
        missing = [path for path in known if path not in own]
        extra = [path for path in own if path not in known]
        tied = {
            other: path
            for path, others in zip(self.leaves.paths, self.leaves.aliases, strict=True)
            for other in others
        }
        texts = [f"lack {_list(missing)}"] if missing else []
        texts += [f"hold an unknown {_list(extra)}"] if extra else []
        for path in extra:
            if path in tied:
                texts.append(f"{show(path)} is tied to {show(tied[path])}, which stands for both")
        more = f"{len(known)} leaves, such as {show(known[0])}" if known else "none"
        raise ValueError(
            f"{self.fn}: {self.argument} {'; '.join(texts) or 'are of another kind'}; "
            f"the {self.name} that was converted has {more}"
        )


def _list(paths: list[Any]) -> str:
    more = f" and {len(paths) - 5} more" if len(paths) > 5 else ""
    return ", ".join([tree.show_path(path).strip("'") for path in paths[:5]]) + more
