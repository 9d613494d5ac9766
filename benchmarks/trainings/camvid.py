"""``python -m benchmarks camvid``: real trainings on CamVid, with and without unlabelled images."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
from pathlib import Path

import torch

from benchmarks.arguments import positive_int
from benchmarks.trainings.arguments import add_method_arguments, check_seeds
from benchmarks.trainings.records import (
    TrainingResults,
    collect_runs,
    describe_weights,
    gains_of,
    new_results,
    write_results,
)
from benchmarks.trainings.resized import resized_copy
from benchmarks.trainings.table import (
    class_table,
    late_table,
    limits_table,
    negatives_table,
    page,
    seed_table,
)

DESCRIPTION = """
Trains DeepLabv3+ on an ImageNet ResNet-50 with CamVid, an eighth of it labelled, at equal
iterations. comparison: the supervised loss alone (SupOnly), the whole method (CAC), and whatever
else --methods names; each seed has its own labelled images. negatives: the numbers of negatives of
Table 4, with the first seed. The settings are those of cac_ext/configs/camvid.yaml, on a GPU in
bf16 if it can. DIR of --output receives a JSON file and a table of each part, picture.png and
validation_curves.png of the first seed, and the run folders in runs/. After an interruption the
same command resumes.
"""

PARTS = ("comparison", "negatives")
#: Settings with which everything runs on any CPU in minutes.
QUICK = (
    "augment.crop_size=133",
    "schedule.epochs=2",
    "schedule.iterations_per_epoch=2",
    "schedule.warmup_epochs=1",
    "schedule.evaluate_every=2",
    "schedule.labelled_batch=2",
    "schedule.unlabelled_batch=2",
    "schedule.log_every=1",
)
QUICK_ROWS = ("negatives-500", "negatives-25600")
#: Logged figures that say what the unlabelled images did.
LATE = (
    *("active_share", "negatives", "negative_precision", "negative_precision_random"),
    *("confident_share", "loss_supervised"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.add_argument(
        "--data",
        metavar="DIR",
        required=True,
        help="CamVid, see cac_ext/train/data/datasets/camvid.py",
    )
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="of the ResNet-50 (default: those of torchvision, downloaded); those of the original "
        "ResNet also need network.stride_in=1x1",
    )
    parser.add_argument(
        "--long-side",
        type=positive_int,
        metavar="PIXELS",
        help="train and evaluate on a smaller copy of the data, made in OUTPUT/data; 240 for a "
        "processor without a GPU",
    )
    parser.add_argument("--only", choices=PARTS, help="one of the two parts")
    add_method_arguments(parser, methods="sup_only,cac")


def run(arguments: argparse.Namespace) -> int:
    from cac_ext.train.cli.main import main as cac_ext
    from cac_ext.train.config import load
    from cac_ext.train.runtime.distributed import find_device

    check_seeds(arguments.seeds)
    if arguments.long_side is not None:
        arguments = _with_smaller_data(arguments)
    device = find_device(load("camvid", _settings(arguments)).device)
    # The command in the result file names no folders.
    named = {"data": "DATA", "output": "OUTPUT", "weights": arguments.weights and "WEIGHTS"}
    anonymous = argparse.Namespace(**{**vars(arguments), **named})
    for part in PARTS if arguments.only is None else (arguments.only,):
        command = _command(part, arguments)
        print(f"cac-ext {shlex.join(command)}", flush=True)
        code = cac_ext(command)
        if code:
            return code
        results = new_results(
            part,
            f"cac-ext {shlex.join(_command(part, anonymous))}",
            device,
            quick=arguments.quick,
        )
        results["weights"] = describe_weights(arguments.weights)
        _write(Path(arguments.output), results, arguments.long_side)
    return 0


def _with_smaller_data(arguments: argparse.Namespace) -> argparse.Namespace:
    """Arguments that name a smaller copy of the data, which is made here."""
    copy = Path(arguments.output) / "data"
    resized_copy(Path(arguments.data), copy, arguments.long_side)
    sizes = ["augment.base_size=null"]  # the images have their size already
    changed = {"data": str(copy), "overrides": [*sizes, *arguments.overrides]}
    return argparse.Namespace(**{**vars(arguments), **changed})


def _write(output: Path, results: TrainingResults, long_side: int | None) -> None:
    from benchmarks.trainings.limits import find_limits
    from cac_ext.train.experiments.run_figures import draw_validation_curves

    part = results["part"]
    runs = results["runs"] = collect_runs(output / "runs" / part)
    if part == "negatives":
        tables = [negatives_table(runs)]
    else:
        results["gains"] = gains_of(runs)
        tables = [seed_table(results), class_table(runs)]
        if known := late_table(runs, LATE):
            tables.append(known)
        for run in runs:
            run["limits"] = find_limits(
                output / "runs" / part / f"{run['method']}-seed{run['seed']}"
            )
        tables.append(limits_table(runs))
        shutil.copy(output / "runs" / part / "picture.png", output / "picture.png")
        first = [run for run in runs if run["seed"] == runs[0]["seed"]]
        folders = [output / "runs" / part / f"{x['method']}-seed{x['seed']}" for x in first]
        draw_validation_curves(folders, output)
    size = f", images reduced to {long_side} pixels on the long side" if long_side else ""
    what = f"CamVid{size}, 1/8 labelled, {runs[-1]['iterations']} iterations"
    write_results(output, results, page(results, tables, what))


def _command(part: str, arguments: argparse.Namespace) -> list[str]:
    """The arguments of `cac-ext` for a part."""
    seeds = arguments.seeds.split(",")
    seeds = seeds[:1] if arguments.quick or part == "negatives" else seeds
    if part == "comparison":
        command = ["compare", "camvid", "--methods", arguments.methods]
    else:
        rows = ["--rows", *QUICK_ROWS] if arguments.quick else []
        command = ["ablate", "table4", "--config", "camvid", *rows]
    command += ["--seeds", ",".join(seeds), "--folder", f"{arguments.output}/runs/{part}"]
    # Table 4 has PSPNet; here both parts share one network.
    return [*command, "network.name=deeplabv3plus", *_settings(arguments)]


def _settings(arguments: argparse.Namespace) -> list[str]:
    """Settings beside those of camvid.yaml; those of the user come last."""
    # The labelled images depend on the seed, like the three lists of the paper.
    settings = [f"data.root={arguments.data}", "data.labelled_ratio=1/8", "data.split_seed=${seed}"]
    if arguments.weights:
        settings += [f"network.weights={arguments.weights}"]
    if torch.cuda.is_available():
        # A core makes a crop pair in 20 ms and a step needs eight: the GPU must not wait for them.
        workers = max(1, min(8, (os.cpu_count() or 1) // 2))  # of each branch
        settings += ["run.channels_last=true", f"data.num_workers={workers}"]
        settings += ["run.precision=bf16"] if torch.cuda.is_bf16_supported() else []
    return [*settings, *(QUICK if arguments.quick else ()), *arguments.overrides]
