"""Settings of runs that differ from their named configurations, or between the runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cac_ext.train.config import Config, load, shipped, to_mapping
from cac_ext.train.config.explain import all_keys, flat_settings, yaml_text

#: The defaults of the keys themselves, for a run whose configuration has no shipped name.
NO_NAME = "the keys' defaults"


@dataclass(frozen=True)
class Setting:
    """A key whose value is worth showing.

    Attributes:
        key: with its section.
        meaning: its documentation.
        values: one for each run, as in YAML.
        defaults: by the name of a configuration.
        changed: for each run, whether the value differs from that of its named configuration.
    """

    key: str
    meaning: str
    values: Sequence[str]
    defaults: Mapping[str, str]
    changed: Sequence[bool]


def named_configuration(config: Config) -> str:
    """The shipped configuration that a run started from, by the names that it keeps.

    It is the one called ``name`` or else ``data.name``, or `NO_NAME`.
    """
    names = shipped()
    return next((name for name in (config.name, config.data.name) if name in names), NO_NAME)


def notable_settings(configs: Sequence[Config]) -> list[Setting]:
    """The keys whose values differ from the named configuration, or between the runs.

    A default that follows from the seed, such as ``data.synthetic.seed``, is that of the run's
    seed.
    """
    named = [named_configuration(config) for config in configs]
    values = [_texts(config) for config in configs]
    plain = {name: _texts(_load(name)) for name in named}
    seeded = [_texts(_load(name, config.seed)) for name, config in zip(named, configs, strict=True)]
    notable = []
    for key in all_keys():
        texts = [of_run[key.name] for of_run in values]
        changed = [
            text != plain[name][key.name] and (key.name == "seed" or text != default[key.name])
            for text, name, default in zip(texts, named, seeded, strict=True)
        ]
        if any(changed) or len(set(texts)) > 1:
            defaults = {name: of_name[key.name] for name, of_name in plain.items()}
            notable.append(Setting(key.name, key.meaning, texts, defaults, changed))
    return notable


def _load(name: str, seed: int | None = None) -> Config:
    if name == NO_NAME:
        return Config()
    return load(name, [] if seed is None else [f"seed={seed}"])


def _texts(config: Config) -> dict[str, str]:
    return {key: yaml_text(value) for key, value in flat_settings(to_mapping(config)).items()}
