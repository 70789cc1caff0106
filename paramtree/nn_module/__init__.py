"""Any ``torch.nn.Module`` as a pair of pure functions over named trees, and back.

``from_module`` makes a ``Model`` of a module, with its values as trees; ``to_module`` makes a
module of trees; ``tied`` says which names of a module are one leaf.
"""

from .convert import from_module as from_module
from .convert import tied as tied
from .convert import to_module as to_module
