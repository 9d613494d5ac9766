"""The trainer: semi-supervised segmentation with directional context-aware consistency.

The way of the data, and the file of each part:

    config.py           one typed configuration, from cac_ext/configs/*.yaml and key=value
    data/               labelled batches (image, mask); crop pairs (two views, their overlap)
    networks/           encoder -> features, classifier -> logits
    projector.py        features -> projections of unit length
    step.py             both branches forward; gathers the overlap from both views
    memory_bank.py      negatives of this step and a few before it
    consistency.py      directional contrastive loss, by the fused `cac_ext` operator
    optimizer.py        SGD, poly decay
    loop.py             the order in which all this happens
    checkpoint.py       whole or not at all; a continuation is exact
    evaluate.py         mIoU at the images' original size
    run_log.py          progress bar, metrics.jsonl, TensorBoard
    compare.py          several methods (methods.py) at equal iterations; picture.py
    weak/               pseudo labels from image-level labels, by an image classifier
    self_training.py    pseudo labels from a teacher
    prepare.py          makes either where a run needs them
    tables.py           the paper's tables as configurations; ablate.py trains their rows
    cli.py              the command `cac-ext`

What is random is drawn from the run's seed and the iteration (seeding.py), so that the same
configuration gives the same result whatever the number of workers, interrupted or not.

Your own network or data set: see the contracts in `networks` and `data`.
"""
