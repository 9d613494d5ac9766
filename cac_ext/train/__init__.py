"""The trainer: semi-supervised segmentation with directional context-aware consistency.

The way of the data, and the file of each part:

    config/               one typed configuration, from cac_ext/configs/*.yaml and key=value
    data/                 labelled batches (image, mask); crop pairs (two views, their overlap)
    networks/             encoder -> features, classifier -> logits
    grid.py               where features lie on the image
    projector.py          features -> projections of unit length
    step.py               both branches forward; gathers the overlap from both views
    memory_bank.py        negatives of this step and a few before it
    consistency.py        directional contrastive loss, by the fused `cac_ext` operator
    negative_precision.py how many of the negatives are of another class (paper Fig. 6)
    optimizer.py          SGD, poly decay
    loop.py               the order in which all this happens
    evaluate.py           mIoU at the images' original size
    inference.py          an image's class probabilities: scales, mirroring, windows

Runs that last, and several processes:

    distributed.py        torchrun, DDP, batch statistics of all processes
    checkpoint.py         whole or not at all; a continuation is exact
    run_folder.py         begins a run's folder, reads it again; files.py writes whole files
    preflight.py          labels to learn from, a batch to normalise, asked before training
    loss_check.py         the fused loss runs on this device, asked before training
    signals.py            SIGTERM and Ctrl-C finish the step, save and stop
    nonfinite.py          what is not finite stops the run or is skipped; precision.py: autocast
    run_log.py            progress bar, metrics.jsonl, TensorBoard
    picture.py            image, truth, predictions side by side; figure_text.py: names in them
    feature_figures.py    features of one pixel in two contexts; grad_cam.py (paper Fig. 1, 3)

Labels that are made before training:

    self_training.py      pseudo labels from a teacher
    weak/                 pseudo labels from image-level labels, by an image classifier
    prepare.py            makes either where a run needs them; pseudo_label_folders.py: where

Several runs:

    methods.py            what the paper compares, by name; compare.py trains them, ends in a table
    tables.py             the paper's tables as configurations; ablate.py trains their rows

The command `cac-ext`: cli.py (train, resume, compare, config), run_commands.py (evaluate, predict;
prediction_files.py), figure_commands.py, data_commands.py, pseudo_label_commands.py,
table_commands.py; what they share is command_line.py. Names in a configuration become functions by
registry.py; errors.py are those that the user can mend.

What is random is drawn from the run's seed and the iteration (seeding.py), so that the same
configuration gives the same result whatever the number of workers, interrupted or not.

Your own network or data set: see the contracts in `networks` and `data`.
"""
