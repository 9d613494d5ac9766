"""An encoder of timm: DeepLabv3+ on any of its networks with feature maps.

From this folder, in a few minutes on a CPU, with `pip install timm`::

    python timm_encoder.py                                    # random weights, nothing to download
    python timm_encoder.py --backbone mobilenetv3_large_100 --pretrained

No code is needed for it: ``network.backbone=timm/NAME`` works with any command, and
``network.weights=pretrained`` downloads timm's weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.util import find_spec

from cac_ext import train

QUICK = ["schedule.epochs=2", "schedule.warmup_epochs=1", "schedule.iterations_per_epoch=25"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains on the built-in data, or says that timm is missing."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backbone", default="mobilenetv3_small_050", help="name in timm")
    parser.add_argument("--pretrained", action="store_true", help="download timm's weights")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings")
    options = parser.parse_args(arguments)
    if find_spec("timm") is None:
        print("skipped: this example needs timm (pip install timm)")
        return
    settings = ["network.name=deeplabv3plus", f"network.backbone=timm/{options.backbone}"]
    if options.pretrained:
        settings.append("network.weights=pretrained")
    config = train.load_config("synthetic", [*settings, *QUICK, *options.overrides])
    result = train.train(config)
    print(f"mIoU {100 * result.miou:.2f}; {result.folder}")


if __name__ == "__main__":
    main()
