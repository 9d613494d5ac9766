"""``python -m benchmarks camvid``: real trainings on CamVid, with and without unlabelled images."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median

import torch

from benchmarks import table
from benchmarks.errors import UsageError
from benchmarks.machine import describe_commit, describe_machine, describe_software

DESCRIPTION = """
Trains DeepLabv3+ on an ImageNet ResNet-50 with CamVid, an eighth of it labelled, at equal
iterations. comparison: the supervised loss alone (SupOnly) and the whole method (CAC), each seed
with labelled images of its own. negatives: Table 4's sweep of their number, with the first seed.
Settings are those of cac_ext/configs/camvid.yaml, on a GPU in bf16 if it can. DIR of --output
receives a JSON file and a table of each part, picture.png, and the run folders in runs/. The same
command goes on where an interrupted one stopped.
"""

METHODS = {"sup_only": "SupOnly", "cac": "CAC"}
PARTS = ("comparison", "negatives")
#: To see on any CPU that everything runs.
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
        help="of the ResNet-50 (default: torchvision's, downloaded); those of the original ResNet "
        "need network.stride_in=1x1 as well",
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
        "overrides", metavar="key=value", nargs="*", help="settings of the training, which win"
    )


def run(arguments: argparse.Namespace) -> int:
    from cac_ext.train.cli.main import main as cac_ext
    from cac_ext.train.config import load
    from cac_ext.train.runtime.distributed import find_device

    if not re.fullmatch(r"\d+(,\d+)*", arguments.seeds):
        raise UsageError(f"--seeds takes integers like 0,1,2, but got {arguments.seeds}")
    device = find_device(load("camvid", _settings(arguments)).device)
    output = Path(arguments.output)
    # Others have other folders: what is kept names none.
    named = {"data": "DATA", "output": "OUTPUT", "weights": arguments.weights and "WEIGHTS"}
    anonymous = argparse.Namespace(**{**vars(arguments), **named})
    for part in PARTS if arguments.only is None else (arguments.only,):
        command = _command(part, arguments)
        print(f"cac-ext {shlex.join(command)}", flush=True)
        code = cac_ext(command)
        if code:
            return code
        results = {
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
            results["gains"] = _gains(results["runs"])
            shutil.copy(output / "runs" / part / "picture.png", output / "picture.png")
        text = camvid_table(results)
        (output / f"{part}.json").write_text(json.dumps(results, indent=1) + "\n")
        (output / f"{part}.md").write_text(text + "\n", encoding="utf-8")
        print(f"\n{text}\n\nwritten: {output / part}.json, {output / part}.md")
    return 0


def _command(part: str, arguments: argparse.Namespace) -> list[str]:
    """What `cac-ext` is given for a part."""
    seeds = arguments.seeds.split(",")
    seeds = seeds[:1] if arguments.quick or part == "negatives" else seeds
    if part == "comparison":
        command = ["compare", "camvid", "--methods", ",".join(METHODS)]
    else:
        rows = ["--rows", *QUICK_ROWS] if arguments.quick else []
        command = ["ablate", "table4", "--config", "camvid", *rows]
    command += ["--seeds", ",".join(seeds), "--folder", f"{arguments.output}/runs/{part}"]
    # Table 4 is PSPNet's; here both parts have one network.
    return [*command, "network.name=deeplabv3plus", *_settings(arguments)]


def _settings(arguments: argparse.Namespace) -> list[str]:
    """What differs from camvid.yaml; the user's settings last."""
    # The list of labelled images goes with the seed, as in the paper's three lists.
    settings = [f"data.root={arguments.data}", "data.labelled_ratio=1/8", "data.split_seed=${seed}"]
    if arguments.weights:
        settings += [f"network.weights={arguments.weights}"]
    if torch.cuda.is_available():
        # A crop pair takes a core 35 ms, eight a step: the GPU must not wait for them.
        workers = max(1, min(8, (os.cpu_count() or 1) // 2))  # of each branch
        settings += ["run.channels_last=true", f"data.num_workers={workers}"]
        settings += ["run.precision=bf16"] if torch.cuda.is_bf16_supported() else []
    return [*settings, *(QUICK if arguments.quick else ()), *arguments.overrides]


def _describe_weights(path: str | None) -> dict:
    if path is None or not Path(path).is_file():
        return {"name": "those of the configuration"}
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return {"name": Path(path).name, "sha256": digest}


def _collect(folder: Path) -> list[dict]:
    """The runs of a part, with what their logs tell."""
    from cac_ext.train.runs.log import read_metrics

    runs = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    for run in runs:
        name = run.get("method", run.get("row"))
        lines = read_metrics(folder / f"{name}-seed{run['seed']}" / "metrics.jsonl")
        steps = [line for line in lines if "loss" in line]
        steps = [line for line in steps if "negatives" in line] or steps  # without the warm-up
        run["class_iou"] = {k: None if v != v else v for k, v in run["class_iou"].items()}
        run["evaluations"] = [(x["iteration"], x["miou"]) for x in lines if "miou" in x]
        run["iterations"] = lines[-1]["iteration"]
        if steps:
            run["images_per_second"] = median(line["images_per_second"] for line in steps)
            if torch.cuda.is_available():  # of a CPU's process it is the peak of all runs so far
                run["memory_mib"] = max(line["memory_mib"] for line in steps)
        if steps and "negatives" in steps[-1]:
            run["negatives"] = steps[-1]["negatives"]
            late = steps[-max(1, len(steps) // 4) :]
            run["active_share"] = fmean(line["active_share"] for line in late)
    return runs


def _gains(runs: Sequence[dict]) -> dict:
    """mIoU of CAC less that of SupOnly, in [-1, 1], of each seed and their mean."""
    miou = {(run["method"], run["seed"]): run["miou"] for run in runs}
    seeds = {run["seed"]: None for run in runs}
    by_seed = {str(seed): miou["cac", seed] - miou["sup_only", seed] for seed in seeds}
    return {"by_seed": by_seed, "mean": fmean(by_seed.values())}


def camvid_table(results: dict) -> str:
    """Markdown: a part's figures in percent, how they came about, and the command."""
    if results["part"] == "comparison":
        tables = [_seed_table(results), _class_table(results["runs"])]
    else:
        tables = [_negatives_table(results["runs"])]
    machine, run = results["machine"], results["runs"][-1]
    where = machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} threads"
    notes = ["A few iterations, to prove that it runs: these figures say nothing."]
    return "\n\n".join(
        [
            *(notes if results["quick"] else []),
            *tables,
            f"CamVid, 1/8 labelled, {run['iterations']} iterations, validation images at their own "
            f"size. {where}; torch {results['software']['torch']}; backbone weights: "
            f"{results['weights']['name']}; commit {results['commit'].get('commit', 'unknown')}.",
            f"    {results['command']}",
        ]
    )


def _seed_table(results: dict) -> str:
    seeds = list(results["gains"]["by_seed"])
    rows = []
    for method, title in METHODS.items():
        found = [run["miou"] for run in results["runs"] if run["method"] == method]
        rows.append([title, *map(_percent, [*found, fmean(found)])])
    gains = [*results["gains"]["by_seed"].values(), results["gains"]["mean"]]
    rows.append(["gain", *(f"{100 * gain:+.2f}" for gain in gains)])
    return table.markdown(["mIoU", *(f"seed {seed}" for seed in seeds), "mean"], rows)


def _class_table(runs: Sequence[dict]) -> str:
    rows = []
    for name in runs[0]["class_iou"]:
        means = []
        for method in METHODS:
            of_seeds = [run["class_iou"][name] for run in runs if run["method"] == method]
            of_seeds = [iou for iou in of_seeds if iou is not None]
            means.append(fmean(of_seeds) if of_seeds else float("nan"))
        rows.append([name, *map(_percent, means), f"{100 * (means[1] - means[0]):+.2f}"])
    return table.markdown(["IoU, mean of the seeds", *METHODS.values(), "gain"], rows)


def _negatives_table(runs: Sequence[dict]) -> str:
    rows = [
        [
            run["row"].removeprefix("negatives-"),
            f"{run.get('negatives', 0):.0f}",
            _percent(run["miou"]),
            f"{run.get('images_per_second', 0):.1f}",
            f"{run['memory_mib']:.0f}" if "memory_mib" in run else "-",
        ]
        for run in runs
    ]
    header = ["row of Table 4", "negatives of an anchor", "mIoU", "images/s", "memory [MiB]"]
    return table.markdown(header, rows)


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"
