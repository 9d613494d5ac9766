"""The commands ``cac-ext evaluate`` and ``cac-ext predict``: what a trained network is worth."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from cac_ext.train.errors import ConfigError, DataError

_UNREADABLE = 1  # exit code where some images could not be read
_LARGEST_WINDOW = 10**6  # pixels
_MOST_IN_JSON = 1000  # classes of a confusion matrix that a JSON file holds


def add_run_commands(commands: argparse._SubParsersAction) -> None:
    """Adds ``evaluate`` and ``predict`` to the command line's grammar."""
    evaluate = commands.add_parser(
        "evaluate",
        help="mIoU of a run, multi-scale and by windows too",
        description="Evaluates the network of a run on its validation images, each once and at "
        "its original size. Prints a table of the classes and writes evaluation.json and "
        "confusion_matrix.png into RUN_FOLDER/evaluation/NAME, where NAME tells the options.",
    )
    evaluate.add_argument("folder", metavar="RUN_FOLDER", type=Path, help="of `cac-ext train`")
    _add_common(evaluate)
    evaluate.add_argument("--output", type=Path, help="folder to write to instead")
    evaluate.set_defaults(command=_evaluate)

    predict = commands.add_parser(
        "predict",
        help="class masks of images of your own",
        description="Predicts images with the network of a run and writes, below --output, "
        "ids/ (single-channel PNGs of class ids), colours/ and overlays/, upright as viewers show "
        "the images. An image a.jpg gives a.png; beside an a.tif, a.jpg.png. Hidden files and "
        "those that are no images by their suffix are left out of a folder. The images are never "
        "overwritten, earlier predictions only with --overwrite. The run's data need not be "
        "there. Exit code 1: some images could not be read; the others are done.",
    )
    predict.add_argument("folder", metavar="RUN_FOLDER", type=Path, help="of `cac-ext train`")
    predict.add_argument(
        "images", metavar="IMAGE_OR_FOLDER", type=Path, nargs="+", help="files, folders of images"
    )
    predict.add_argument("--output", type=Path, required=True, help="folder of the predictions")
    predict.add_argument("--overwrite", action="store_true", help="earlier predictions, that is")
    predict.add_argument(
        "--max-image-pixels",
        type=int,
        metavar="PIXELS",
        help="that an image may have (default: the run's data.max_image_pixels)",
    )
    predict.add_argument("--device", help="auto, cpu, cuda, ... (default: the run's)")
    _add_inference(predict)
    predict.set_defaults(command=_predict)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        help="where data and device are now, e.g. data.root=... device=cpu",
    )
    _add_inference(parser)


def _add_inference(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--scales",
        default="1",
        help="factors of the image size separated by commas, e.g. 0.5,1,1.5; probabilities are "
        "averaged (default: %(default)s)",
    )
    parser.add_argument("--flip", action="store_true", help="average with the mirrored image")
    parser.add_argument(
        "--window",
        type=int,
        metavar="PIXELS",
        help="slide a window of this side over the image, for large ones (default: all at once)",
    )


def _inference(options: argparse.Namespace):
    from cac_ext.train.inference import Inference

    try:
        scales = tuple(float(part) for part in options.scales.split(","))
    except ValueError:
        scales = ()
    if not scales or not all(0 < scale < 100 for scale in scales):
        raise ConfigError(f"--scales takes numbers > 0 such as 0.5,1,1.5, but got {options.scales}")
    if options.window is not None and not 0 < options.window <= _LARGEST_WINDOW:
        raise ConfigError(
            f"--window takes a number of pixels > 0 and at most {_LARGEST_WINDOW}, but got "
            f"{options.window}"
        )
    return Inference(scales, options.flip, options.window)


def _evaluate(options: argparse.Namespace) -> None:
    import numpy as np

    from cac_ext.train.data import build_datasets
    from cac_ext.train.evaluate import absence_note, evaluate
    from cac_ext.train.figures.panels import save_confusion
    from cac_ext.train.runs.folder import load_run, require_same_classes
    from cac_ext.train.runtime.distributed import process_group

    inference = _inference(options)
    run = load_run(options.folder, options.overrides)
    splits = build_datasets(run.config.data)
    require_same_classes(run, splits)
    with process_group(run.config.device) as processes:
        evaluation = evaluate(
            run.network,
            splits.validation,
            splits.num_classes,
            splits.ignore_index,
            num_workers=run.config.data.num_workers,
            progress=processes.is_main,
            processes=processes,
            inference=inference,
        )
        if not processes.is_main:
            return
    if not evaluation.confusion.any():
        raise DataError(
            f"no pixel of the {len(splits.validation)} validation masks counts: all are "
            f"{splits.ignore_index}, which is data.ignore_index"
        )
    name = str(inference).replace(", ", "-").replace(" ", "-")
    output = options.output or options.folder / "evaluation" / name
    output.mkdir(parents=True, exist_ok=True)
    columns = {
        "iou": evaluation.class_iou,
        "accuracy": evaluation.class_accuracy,
        "precision": evaluation.class_precision,
    }
    rows = list(zip(splits.class_names, *columns.values(), strict=True))
    record = {
        "iteration": run.iteration,
        "inference": str(inference),
        "images": len(splits.validation),
        "miou": evaluation.miou,
        "absent_classes": [splits.class_names[k] for k in evaluation.absent_classes],
        "pixel_accuracy": evaluation.pixel_accuracy,
        "classes": {
            # JSON knows no nan
            row[0]: {k: None if v != v else v for k, v in zip(columns, row[1:], strict=True)}
            for row in rows
        },
        "confusion": evaluation.confusion.tolist(),
    }
    if splits.num_classes > _MOST_IN_JSON:
        record["confusion"] = "confusion_matrix.npy"
        np.save(output / record["confusion"], evaluation.confusion.numpy())
    (output / "evaluation.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    save_confusion(output / "confusion_matrix.png", evaluation.confusion, splits.class_names)

    width = max(len("pixel accuracy"), *map(len, splits.class_names))
    print(f"{'class':{width}}     IoU  accuracy  precision")
    for class_name, iou, accuracy, precision in rows:
        print(
            f"{class_name:{width}}  {100 * iou:6.2f}  {100 * accuracy:8.2f}  {100 * precision:9.2f}"
        )
    note = absence_note(dict(zip(splits.class_names, evaluation.class_iou, strict=True)))
    print(f"{'mIoU':{width}}  {100 * evaluation.miou:6.2f}{note and f'  ({note})'}")
    print(f"{'pixel accuracy':{width}}  {100 * evaluation.pixel_accuracy:6.2f}")
    print(f"{len(splits.validation)} images, {inference}; iteration {run.iteration}; {output}")


def _predict(options: argparse.Namespace) -> int:
    from cac_ext.train.runs.folder import load_run
    from cac_ext.train.runs.predictions import plan, predict_files

    inference = _inference(options)
    found = plan(options.images, options.output, overwrite=options.overwrite)
    overrides = [f"device={options.device}"] if options.device else []
    if options.max_image_pixels is not None:
        overrides.append(f"data.max_image_pixels={options.max_image_pixels}")
    run = load_run(options.folder, overrides)
    failures = predict_files(run, found.jobs, inference)
    for line in (*found.remarks, *found.unreadable, *failures):
        print(f"cac-ext: {line}", file=sys.stderr)
    done = len(found.jobs) - len(failures)
    print(f"{done} of {len(found.jobs)} images; ids, colours and overlays in {options.output}")
    return _UNREADABLE if failures or found.unreadable else 0
