"""Pseudo labels of unlabelled images that are made before training.

    self_training.py       a supervised teacher makes them ("ST" of the paper's Table 3)
    image_labels.py        image-level labels (section 3.5), from a list or known masks
    classifier_images.py   images with these labels
    image_classifier.py    an image classifier trained on them
    activation_maps.py     masks from its class activation maps
    folders.py             the folders of the masks of a run

Image-level labels need a background class (`DatasetSplits.background_class`), as in VOC and the
built-in data: no image-level label names it, and it covers the pixels without any activation.
`data/pseudo_label_files.py` reads and writes the mask files.
"""
