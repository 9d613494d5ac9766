"""Image-level labels of the unlabelled images (paper section 3.5).

The way from a list of labels to the loss:

    image_labels.py   which classes an image shows: from a list, or from masks that are known
    classifier.py     an image classifier is trained on them
    cam.py            its class activation maps become pseudo labels, files of masks
    ../step.py        a second classifier learns them beside the main one (Eq. 10 and 11)

One class must be the background (`DatasetSplits.background_class`), as in VOC and the built-in
data: no image-level label names it, and it is what no activation points at.
"""
