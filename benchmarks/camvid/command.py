"""``python -m benchmarks camvid``: real trainings on CamVid, with and without unlabelled images."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
import shutil
from pathlib import Path
from statistics import fmean, median

import torch

from benchmarks.camvid.table import METHODS, CamvidResults, Run, Weights, camvid_table, gains_of
from benchmarks.errors import UsageError
from benchmarks.measure.machine import describe_commit, describe_machine, describe_software
from cac_ext.train.runtime.json_files import read_json, write_json

DESCRIPTION = """
Trains DeepLabv3+ on an ImageNet ResNet-50 with CamVid, an eighth of it labelled, at equal
iterations. comparison: the supervised loss alone (SupOnly) and the whole method (CAC); each seed
has its own labelled images. negatives: the numbers of negatives of Table 4, with the first seed.
The settings are those of cac_ext/configs/camvid.yaml, on a GPU in bf16 if it can. DIR of --output
receives a JSON file and a table of each part, picture.png, and the run folders in runs/. After an
interruption the same command resumes.
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
    parser.add_argument("--output", metavar="DIR", required=True, help="where to write")
    parser.add_argument("--seeds", default="0,1,2", help="default %(default)s; --quick: the first")
    parser.add_argument("--only", choices=PARTS, help="one of the two parts")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a few iterations to prove that all of it runs, also on a CPU",
    )
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", help="settings of the training; they come last"
    )


def run(arguments: argparse.Namespace) -> int:
    from cac_ext.train.cli.main import main as cac_ext
    from cac_ext.train.config import load
    from cac_ext.train.runtime.distributed import find_device

    if not re.fullmatch(r"\d+(,\d+)*", arguments.seeds):
        raise UsageError(f"--seeds takes integers like 0,1,2, but got {arguments.seeds}")
    device = find_device(load("camvid", _settings(arguments)).device)
    output = Path(arguments.output)
    # The command in the result file names no folders.
    named = {"data": "DATA", "output": "OUTPUT", "weights": arguments.weights and "WEIGHTS"}
    anonymous = argparse.Namespace(**{**vars(arguments), **named})
    for part in PARTS if arguments.only is None else (arguments.only,):
        command = _command(part, arguments)
        print(f"cac-ext {shlex.join(command)}", flush=True)
        code = cac_ext(command)
        if code:
            return code
        results: CamvidResults = {
            "part": part,
            "quick": arguments.quick,
            "command": f"cac-ext {shlex.join(_command(part, anonymous))}",
            "weights": _describe_weights(arguments.weights),
            "machine": describe_machine(device),
            "software": describe_software(),
            "commit": describe_commit(),
            "runs": _collect(output / "runs" / part),
        }
        if part == "comparison":
            results["gains"] = gains_of(results["runs"])
            shutil.copy(output / "runs" / part / "picture.png", output / "picture.png")
        text = camvid_table(results)
        write_json(output / f"{part}.json", results)
        (output / f"{part}.md").write_text(text + "\n", encoding="utf-8")
        print(f"\n{text}\n\nwritten: {output / part}.json, {output / part}.md")
    return 0


def _command(part: str, arguments: argparse.Namespace) -> list[str]:
    """The arguments of `cac-ext` for a part."""
    seeds = arguments.seeds.split(",")
    seeds = seeds[:1] if arguments.quick or part == "negatives" else seeds
    if part == "comparison":
        command = ["compare", "camvid", "--methods", ",".join(METHODS)]
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
        # A core makes a crop pair in 35 ms and a step needs eight: the GPU must not wait for them.
        workers = max(1, min(8, (os.cpu_count() or 1) // 2))  # of each branch
        settings += ["run.channels_last=true", f"data.num_workers={workers}"]
        settings += ["run.precision=bf16"] if torch.cuda.is_bf16_supported() else []
    return [*settings, *(QUICK if arguments.quick else ()), *arguments.overrides]


def _describe_weights(path: str | None) -> Weights:
    if path is None or not Path(path).is_file():
        return {"name": "those of the configuration"}
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return {"name": Path(path).name, "sha256": digest}


def _collect(folder: Path) -> list[Run]:
    """The runs of a part, with figures from their logs."""
    from cac_ext.train.runs.log import read_metrics

    runs: list[Run] = read_json(folder / "results.json")
    for run in runs:
        name = run["method"] if "method" in run else run["row"]
        lines = read_metrics(folder / f"{name}-seed{run['seed']}" / "metrics.jsonl")
        steps = [line for line in lines if "loss" in line]
        steps = [line for line in steps if "negatives" in line] or steps  # without the warm-up
        run["class_iou"] = {k: None if v != v else v for k, v in run["class_iou"].items()}
        run["evaluations"] = [(x["iteration"], x["miou"]) for x in lines if "miou" in x]
        run["iterations"] = lines[-1]["iteration"]
        if steps:
            run["images_per_second"] = median(line["images_per_second"] for line in steps)
            if torch.cuda.is_available():  # on a CPU it is the peak of all runs of this process
                run["memory_mib"] = max(line["memory_mib"] for line in steps)
        if steps and "negatives" in steps[-1]:
            run["negatives"] = steps[-1]["negatives"]
            late = steps[-max(1, len(steps) // 4) :]
            run["active_share"] = fmean(line["active_share"] for line in late)
    return runs
