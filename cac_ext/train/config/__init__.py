"""Configuration: typed, from the YAML files of `cac_ext/configs` or the user's own.

schema.py     every key: type, default, meaning, and the bounds of numbers
methods.py    the same for the settings of each method beside `cac`
explain.py    the same as text, for `cac-ext config --explain`
bounds.py     bounds of numbers
checks.py     checks of values, made by `load`
loading.py    YAML files, their bases and key=value overrides to a `Config`, and back
typed_yaml.py YAML values get the type of their key: texts stay texts
"""

from cac_ext.train.config.loading import load, nearest, shipped, to_mapping, to_yaml
from cac_ext.train.config.methods import (
    CctConfig,
    EcsConfig,
    FixMatchConfig,
    GctConfig,
    MeanTeacherConfig,
    S4ganConfig,
    UniMatchConfig,
)
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
    SupervisedConfig,
    SyntheticConfig,
    WeakConfig,
)

__all__ = [
    "AugmentConfig",
    "CctConfig",
    "Config",
    "DataConfig",
    "EcsConfig",
    "FixMatchConfig",
    "GctConfig",
    "ImageClassifierConfig",
    "MeanTeacherConfig",
    "MethodConfig",
    "NetworkConfig",
    "OptimizerConfig",
    "RunConfig",
    "S4ganConfig",
    "ScheduleConfig",
    "SelfTrainingConfig",
    "SupervisedConfig",
    "SyntheticConfig",
    "UniMatchConfig",
    "WeakConfig",
    "load",
    "nearest",
    "shipped",
    "to_mapping",
    "to_yaml",
]
