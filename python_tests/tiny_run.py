"""A training on the built-in data that takes a second: overrides of `synthetic`."""

TINY_RUN = [
    "device=cpu",
    "network.width=16",
    "augment.crop_size=33",
    "data.synthetic.image_size=48",
    "data.synthetic.labelled=6",
    "data.synthetic.unlabelled=10",
    "data.synthetic.validation=4",
    "schedule.epochs=2",
    "schedule.iterations_per_epoch=2",
    "schedule.warmup_epochs=1",
    "schedule.evaluate_every=2",
    "schedule.labelled_batch=2",
    "schedule.unlabelled_batch=2",
    "schedule.log_every=1",
]
