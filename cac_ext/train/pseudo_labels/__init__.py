"""Labels of unlabelled images that are made before training.

    self_training.py      a supervised teacher labels them ("ST" of the paper's Table 3)
    image_labels.py       image-level labels (section 3.5): from a list or known masks
    image_classifier.py   an image classifier is trained on them,
    activation_maps.py    and its class activation maps become masks
    folders.py            where the masks of a run lie

For image-level labels one class must be the background (`DatasetSplits.background_class`), as in
VOC and the built-in data: no image-level label names it, and it is what no activation points at.
The files themselves are read and written by `data/pseudo_label_files.py`.
"""
