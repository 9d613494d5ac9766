"""The commands ``cac-ext evaluate``, ``cac-ext predict`` and ``cac-ext export``."""

from __future__ import annotations

import argparse
import re
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from cac_ext.train.cli.common import Commands
from cac_ext.train.errors import ConfigError

_UNREADABLE = 1  # exit code if some images could not be read
_LARGEST_WINDOW = 10**6  # pixels
_MOST_MEMORY = 2**20  # MiB


def add_run_commands(commands: Commands) -> None:
    """Adds ``evaluate``, ``predict`` and ``export`` to the command line's grammar."""
    evaluate = commands.add_parser(
        "evaluate",
        help="measure a run's mIoU, also multi-scale or by windows",
        description="Evaluates the network of a run on its validation images, each once and at "
        "its original size. Prints a table of the classes and writes evaluation.json and "
        "confusion_matrix.png into RUN_FOLDER/evaluation/NAME; NAME consists of the options.",
    )
    evaluate.add_argument(
        "folder", metavar="RUN_FOLDER", type=Path, help="folder of a finished run"
    )
    evaluate.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        help="changed data, evaluation.*, run.precision and device, e.g. data.root=... device=cpu; "
        "other keys are refused",
    )
    _add_inference(evaluate)
    evaluate.add_argument("--output", type=Path, help="write to this folder instead")
    evaluate.set_defaults(command=_evaluate)

    predict = commands.add_parser(
        "predict",
        help="predict the classes of your own images",
        description="Predicts images with the network of a run and writes, below --output, "
        "ids/ (single-channel PNGs of class ids), colors/ and overlays/, upright as viewers show "
        "the images. a.jpg becomes a.png; if a.tif is there too, a.jpg.png. In folders, hidden "
        "files and files without an image suffix are skipped. Images are never overwritten, "
        "earlier predictions only with --overwrite. The run's data need not be there. Exit code "
        "1: some images could not be read; the others are done.",
    )
    predict.add_argument("folder", metavar="RUN_FOLDER", type=Path, help="folder of a finished run")
    predict.add_argument(
        "images", metavar="IMAGE_OR_FOLDER", type=Path, nargs="+", help="files, folders of images"
    )
    predict.add_argument("--output", type=Path, required=True, help="folder of the predictions")
    predict.add_argument("--overwrite", action="store_true", help="replace earlier predictions")
    predict.add_argument(
        "--max-image-pixels",
        type=int,
        metavar="PIXELS",
        help="most pixels an image may have (default: the run's data.max_image_pixels)",
    )
    predict.add_argument("--device", help="auto, cpu, cuda, ... (default: the run's)")
    _add_inference(predict)
    predict.set_defaults(command=_predict)

    export = commands.add_parser(
        "export",
        help="write a run's network alone, as safetensors, torch.export program or ONNX",
        description="Writes the network of a run into one file that needs no run folder. The "
        "suffix of FILE is the format. .safetensors: weights, settings of the network and classes, "
        "which `cac_ext.train.load_exported` reads. .pt2 (torch.export) and .onnx: a program that "
        "turns images [B, C, H, W] uint8 (by default RGB) of one size into logits [B, K, H, W], "
        "normalization and padding included. The file is read again, run, and compared with the "
        "network.",
    )
    export.add_argument("folder", metavar="RUN_FOLDER", type=Path, help="folder of a finished run")
    export.add_argument("file", metavar="FILE", type=Path, help="ends in .safetensors, .pt2, .onnx")
    export.add_argument("--size", metavar="H,W", help="size of the images, for .pt2 and .onnx")
    _add_best(export)
    export.set_defaults(command=_export)


def _add_best(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--best",
        action="store_true",
        help="take the network of the highest validation mIoU, of a run with run.keep_best=true "
        "(default: the last one)",
    )


def _add_inference(parser: argparse.ArgumentParser) -> None:
    _add_best(parser)
    parser.add_argument(
        "--scales",
        default="1",
        help="factors of the image size separated by commas, e.g. 0.5,1,1.5; probabilities are "
        "averaged (default: %(default)s)",
    )
    parser.add_argument("--flip", action="store_true", help="average with the mirrored image")
    parser.add_argument(
        "--window",
        metavar="PIXELS",
        help="slide a window of this side over large images; whole: see the whole image at once "
        "(default: the run's evaluation.window)",
    )
    parser.add_argument(
        "--window-memory",
        type=int,
        metavar="MIB",
        help="most memory for sums of overlapping windows (default: the run's "
        "evaluation.window_memory)",
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp16"),
        help="arithmetic of the network (default: the run's run.precision)",
    )


def _scales(options: argparse.Namespace) -> tuple[float, ...]:
    scales: tuple[float, ...] = ()
    with suppress(ValueError):
        scales = tuple(float(part) for part in options.scales.split(","))
    if not scales or not all(0 < scale < 100 for scale in scales):
        raise ConfigError(
            "--scales takes numbers above 0 and below 100 such as 0.5,1,1.5, but got "
            f"{options.scales}"
        )
    return scales


def _overrides(options: argparse.Namespace) -> list[str]:
    """The settings of the run that options replace, ``key=value``."""
    overrides = []
    if options.window == "whole":
        overrides.append("evaluation.window=null")
    elif options.window is not None:
        number = options.window
        if not (number.isascii() and number.isdigit() and 0 < int(number) <= _LARGEST_WINDOW):
            raise ConfigError(
                f"--window takes a number of pixels above 0 and at most {_LARGEST_WINDOW}, or "
                f"whole, but got {number}"
            )
        overrides.append(f"evaluation.window={int(number)}")
    if options.window_memory is not None:
        if not 0 < options.window_memory <= _MOST_MEMORY:
            raise ConfigError(
                f"--window-memory takes a number of MiB above 0 and at most {_MOST_MEMORY}, but "
                f"got {options.window_memory}"
            )
        overrides.append(f"evaluation.window_memory={options.window_memory}")
    if options.precision is not None:
        overrides.append(f"run.precision={options.precision}")
    return overrides


def _evaluate(options: argparse.Namespace) -> None:
    from cac_ext.train import api
    from cac_ext.train.inference import configured_inference
    from cac_ext.train.runtime.distributed import process_group

    scales, overrides = _scales(options), _overrides(options)
    run = api.load_run(options.folder, [*options.overrides, *overrides], best=options.best)
    inference = replace(configured_inference(run.config), scales=scales, flip=options.flip)
    with process_group(run.config.device) as processes:
        result = api.evaluate_run(run, inference=inference, output=options.output)
        if processes.is_main:
            print(result)


def _predict(options: argparse.Namespace) -> int:
    from cac_ext.train.data.files.images import RGB_FILES, ImageForm
    from cac_ext.train.inference import configured_inference
    from cac_ext.train.runs.folder import CONFIG_FILE, load_run, read_config
    from cac_ext.train.runs.predictions import plan, predict_files

    scales, overrides = _scales(options), _overrides(options)
    form = RGB_FILES
    if (options.folder / CONFIG_FILE).is_file():  # `load_run` says what is missing
        form = ImageForm.of(read_config(options.folder).data)
    found = plan(options.images, options.output, overwrite=options.overwrite, form=form)
    if options.device:
        overrides.append(f"device={options.device}")
    if options.max_image_pixels is not None:
        overrides.append(f"data.max_image_pixels={options.max_image_pixels}")
    run = load_run(options.folder, overrides, best=options.best)
    inference = replace(configured_inference(run.config), scales=scales, flip=options.flip)
    failures = predict_files(run, found.jobs, inference)
    for line in (*found.remarks, *found.unreadable, *failures):
        print(f"cac-ext: {line}", file=sys.stderr)
    done = len(found.jobs) - len(failures)
    print(f"{done} of {len(found.jobs)} images; ids, colors and overlays in {options.output}")
    return _UNREADABLE if failures or found.unreadable else 0


def _export(options: argparse.Namespace) -> None:
    from cac_ext.train import api

    size: tuple[int, int] | None = None
    if options.size is not None:
        if not re.fullmatch(r"[1-9][0-9]{0,4},[1-9][0-9]{0,4}", options.size):
            raise ConfigError(
                f"--size takes H,W, the height and width of images, but got {options.size!r}"
            )
        height, width = map(int, options.size.split(","))
        size = height, width
    run = api.load_run(options.folder, best=options.best)
    api.export(run, options.file, size)
    print(f"network of iteration {run.iteration}: {options.file}")
