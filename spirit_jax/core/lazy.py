"""Imports that cost nothing until they are needed."""

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any


def lazy_names(package: str, places: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the functions `__getattr__` and `__dir__` of a package whose public names are imported at their first use.

    Args:
        package: name of the package.
        places: the module of each public name.
    """

    def get(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(places[name]), name)

    return get, lambda: sorted({*vars(importlib.import_module(package)), *places})


@contextlib.contextmanager
def hidden_modules(*names: str) -> Iterator[None]:
    """Inside, modules that are not loaded yet cannot be imported.

    Libraries that import them only if they are installed then do without them.
    """
    hidden = [name for name in names if name not in sys.modules]
    stops_imports: Any = None
    for name in hidden:
        sys.modules[name] = stops_imports
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
