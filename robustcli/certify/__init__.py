"""What can be proven of a classifier: randomised smoothing, and bounds on its graph.

`robustcli.certify` is this package, and the function of the Python API too: it can be called.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """A package that is called as `robustcli.api.certify`, which lies above it and is loaded then."""

    def __call__(self, *args: Any, **named: Any) -> Any:
        return sys.modules["robustcli"].__getattr__("certify")(*args, **named)


sys.modules[__name__].__class__ = _Callable
