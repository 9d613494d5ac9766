"""The trainer: semi-supervised segmentation with directional context-aware consistency.

Read it from the hall, top to bottom:

    api.py             the trainer from Python; `cac_ext.train` exports its functions
    loop.py            a run, in the order in which things happen
    preflight.py       labels to learn from, a batch to normalize: asked before training
    batch_streams.py   the batches that the method asked for, on the device
    step.py            one step: forward, backward and optimizer, for each phase of the method
    evaluate.py        mIoU at the images' original size
    inference.py       one image's probabilities and classes; windows.py: over a large image
    optimizer.py       SGD or AdamW, poly decay
    errors.py          what the user can fix

The rooms, highest first; each imports only those below:

    cli/               the command `cac-ext`
    reports/           one HTML page about runs, made from their folders
    experiments/       several runs: compare methods, train the rows of the paper's tables
    methods/           what is learned from a batch: the contract, and each method in a file
    pseudo_labels/     labels made before training: by a teacher, or from image-level labels
    runs/              a run's folder: checkpoint, log, environment, predictions, non-finite steps
    figures/           pictures: predictions, crop pairs, t-SNE, Grad-CAM
    data/              data sets, augmentation, streams of samples, batches
    networks/          encoder, classifier, projector, the grid on which features lie
    runtime/           processes, signals, seeds, whole files, mixed precision, names to functions
    config/            one typed configuration, from cac_ext/configs/*.yaml and key=value

What is random is drawn from the run's seed and the iteration (`runtime/seeding.py`), so that the
same configuration gives the same result whatever the number of workers, interrupted or not.

A custom method, network or data set needs no change here: see the contracts in `methods`,
`networks` and `data`.

From Python: `load_config`, `train`, `resume`, `compare`, `load_run`, `evaluate_run`, `predict`,
`export`, `write_report`; see `api.py`. They are imported when they are first used, so that
``import cac_ext.train`` is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cac_ext.train.api import (
        Comparison,
        Config,
        Inference,
        Report,
        Run,
        RunEvaluation,
        TrainResult,
        UserError,
        compare,
        evaluate_run,
        export,
        load_config,
        load_exported,
        load_run,
        predict,
        predict_all,
        predict_probabilities,
        resume,
        train,
        write_report,
    )
else:

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.api"), name)


__all__ = [
    "Comparison",
    "Config",
    "Inference",
    "Report",
    "Run",
    "RunEvaluation",
    "TrainResult",
    "UserError",
    "compare",
    "evaluate_run",
    "export",
    "load_config",
    "load_exported",
    "load_run",
    "predict",
    "predict_all",
    "predict_probabilities",
    "resume",
    "train",
    "write_report",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
