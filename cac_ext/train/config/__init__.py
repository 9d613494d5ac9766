"""Configuration: typed, from YAML files shipped in `cac_ext/configs` or the user's own.

schema.py     every key: its type, default and meaning, and the bounds of the numbers
bounds.py     what values must satisfy, checked by `load`
loading.py    YAML files, their bases and key=value overrides to a `Config`, and back
typed_yaml.py YAML values become what their keys hold: texts stay texts
"""

from cac_ext.train.config.loading import load, nearest, shipped, to_mapping, to_yaml
from cac_ext.train.config.schema import (
    AugmentConfig,
    Config,
    DataConfig,
    ImageClassifierConfig,
    MethodConfig,
    NetworkConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    SelfTrainingConfig,
    SyntheticConfig,
    WeakConfig,
)

__all__ = [
    "AugmentConfig",
    "Config",
    "DataConfig",
    "ImageClassifierConfig",
    "MethodConfig",
    "NetworkConfig",
    "OptimizerConfig",
    "RunConfig",
    "ScheduleConfig",
    "SelfTrainingConfig",
    "SyntheticConfig",
    "WeakConfig",
    "load",
    "nearest",
    "shipped",
    "to_mapping",
    "to_yaml",
]
