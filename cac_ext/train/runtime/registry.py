"""Finds the function that a name in the configuration stands for: registered or custom."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from cac_ext.train.config import nearest
from cac_ext.train.errors import ConfigError


def find_builder(name: str, registry: Mapping[str, str], key: str) -> Callable[..., Any]:
    """Imports the function that ``name`` stands for.

    Args:
        name: a name in the registry, or a custom "package.module:function". Modules in the current
            folder are found too, as with `python -m`.
        registry: name -> "package.module:function".
        key: the configuration key of the name, for errors.

    Raises:
        ConfigError: the name is unknown or cannot be imported.
    """
    target = registry.get(name, name)
    if ":" not in target:
        raise ConfigError(
            f"{key}: {name!r} is unknown{nearest(name, registry)}; allowed are "
            f"{', '.join(registry)} and a custom 'package.module:function'"
        )
    module_name, _, function_name = target.partition(":")
    if name not in registry and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # the installed command lacks it
    try:
        return getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{key}: cannot import {target!r}: {error}") from error
