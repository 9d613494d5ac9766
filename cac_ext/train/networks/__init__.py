"""Segmentation networks: the contract (`contract.py`) and the registry of those shipped.

To add one, write ``build(config: NetworkConfig, num_classes: int) -> SegmentationNetwork`` in a
module of this package and name it in `NETWORKS`. A network of your own needs no change here: set
``network.name: my_package.my_module:build``.
"""

from __future__ import annotations

from cac_ext.train.config import NetworkConfig
from cac_ext.train.networks.contract import SegmentationNetwork
from cac_ext.train.registry import find_builder

#: ``network.name`` -> "module:function" of its builder, imported only when asked for.
NETWORKS = {
    "small": "cac_ext.train.networks.small:build",
}


def build_network(config: NetworkConfig, num_classes: int) -> SegmentationNetwork:
    """The network that ``config.name`` names, for ``num_classes`` classes.

    Raises:
        ConfigError: the name is neither registered nor an importable "package.module:function".
    """
    build = find_builder(config.name, NETWORKS, "network.name")
    network = build(config, num_classes)
    if not isinstance(network, SegmentationNetwork):
        raise TypeError(
            f"{config.name} must return a cac_ext.train.networks.SegmentationNetwork, "
            f"but returned {type(network).__name__}"
        )
    return network


__all__ = ["NETWORKS", "SegmentationNetwork", "build_network"]
