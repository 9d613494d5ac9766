"""The trainer: semi-supervised segmentation with directional context-aware consistency.

Read it from the hall, top to bottom:

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
    experiments/       several runs: compare methods, train the rows of the paper's tables
    methods/           what is learned from a batch: the contract, and each method in a file
    pseudo_labels/     labels made before training: by a teacher, or from image-level labels
    runs/              a run's folder: checkpoint, log, predictions, steps that are not finite
    figures/           pictures: predictions, crop pairs, t-SNE, Grad-CAM
    data/              data sets, augmentation, streams of samples, batches
    networks/          encoder, classifier, projector, the grid on which features lie
    runtime/           processes, signals, seeds, whole files, mixed precision, names to functions
    config/            one typed configuration, from cac_ext/configs/*.yaml and key=value

What is random is drawn from the run's seed and the iteration (`runtime/seeding.py`), so that the
same configuration gives the same result whatever the number of workers, interrupted or not.

A custom method, network or data set needs no change here: see the contracts in `methods`,
`networks` and `data`.
"""
