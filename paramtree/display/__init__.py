"""Trees to look at: what a tree holds, what changed in it, what a model holds and what it costs."""

from .notebook import load_ipython_extension as load_ipython_extension
from .notebook import unload_ipython_extension as unload_ipython_extension
from .summaries import Row as Row
from .summaries import Summary as Summary
from .summaries import summary as summary
from .view import View as View
from .view import show as show
