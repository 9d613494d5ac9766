"""Names in a configuration to functions: the registered ones, or the user's own."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping

from cac_ext.train.config import nearest
from cac_ext.train.errors import ConfigError


def find_builder(name: str, registry: Mapping[str, str], key: str) -> Callable:
    """The function that ``name`` stands for, imported only now.

    Args:
        name: a name in the registry, or "package.module:function" of the user's own. Modules in
            the current folder are found too, as `python -m` would find them.
        registry: name -> "package.module:function".
        key: the configuration key that holds the name, for errors.

    Raises:
        ConfigError: no such name, or it cannot be imported.
    """
    target = registry.get(name, name)
    if ":" not in target:
        raise ConfigError(
            f"{key}: there is no {name!r}{nearest(name, registry)}; allowed are "
            f"{', '.join(registry)} and your own as 'package.module:function'"
        )
    module_name, _, function_name = target.partition(":")
    if name not in registry and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # the installed command does not have it there
    try:
        return getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{key}: cannot import {target!r}: {error}") from error
