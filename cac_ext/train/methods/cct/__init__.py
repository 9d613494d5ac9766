"""Cross-Consistency Training (Ouali, Hudelot, Tami: Semi-Supervised Semantic Segmentation with
Cross-Consistency Training, CVPR 2020).

Auxiliary decoders predict from perturbed features of unlabelled images what the main decoder
predicts from the features themselves::

    total = CE(main(z_l), y) + weight ramp(t) consistency + weak.weight ramp(t) weak
    consistency = mean over decoders k, pixels and classes of (softmax(k(p(z_u))) - guide)^2
    weak = mean over decoders and pixels of CE(k(p(z_u)), pseudo label)
    guide = softmax(main(z_u)), without gradient and dropout
    ramp(t) = exp(-5 (1 - t)^2), t from 0 to 1 over the share ``rampup`` of all iterations

``z = network.features(images)``, ``main`` is the network's classifier, and ``p`` one of seven
perturbations (`perturbations.py`). So the encoder learns from unlabelled images through the
auxiliary decoders alone, the main decoder from labelled images alone. Auxiliary decoders are
dropped after training.

    method.py          the method: streams and the step
    network.py         network, decoders and losses in one module
    decoders.py        auxiliary decoders, the grid on which predictions are compared
    perturbations.py   the seven perturbations
    objects.py         predicted objects and their bounding boxes

The default has the 30 decoders of the authors' configuration. They are small, but their
predictions have the size of the image: with 21 classes and 8 crops of 320 pixels at stride 8, each
keeps a quarter of a GiB for the backward pass in float32, all together 8 GiB. Fewer decoders cost
less in proportion (``cct.dropout=1`` and so on).

Differences from the authors' code:

* **Network.** Any; theirs is a PSPNet whose main decoder has the form of the auxiliary ones. Here
  the main decoder is the network's own classifier with bilinear upsampling, as for every method.
* **Grid.** Their features have stride 8, and each decoder doubles them three times. Here a decoder
  doubles its input as often as the stride allows (`decoders.py`), and the guide is interpolated to
  the same cells. Masks and padding are looked up at the centers of the cells.
* **Biases** of a doubling are repeated like its filters, so that it starts without a checkerboard.
* **Guided cutout.** They find outer contours with OpenCV on the CPU, at the image's size. Here an
  object is a connected region of foreground features, found on the device without waiting for it
  (`objects.py`). They take contours of more than 50 points; here the outline of the object's
  bounding box must be longer than 50 pixels. Random rectangles are placed in fractions of a
  feature, not of a pixel. Holes are part of an object's box in both.
* **Adversarial perturbation.** As there, the move has length ``adversarial_radius`` over all
  features of an image, not at each position. Their inner step of 1e-6 is lost in the rounding of
  float32: at 512 x 40 x 40 features of a new decoder, the move is then 0.03 long in place of 2, and
  at a right angle to the one that was meant. Here the step is a thousandth of the features' norm.
  They clear the gradients that the inner backward leaves in the decoder; here it leaves none.
* **Padding** counts nowhere: not in the losses, not as an object, not as the largest activation.
* **Labels, crops, optimizer** are the configuration's, for all methods alike; the authors have no
  warm-up (``schedule.warmup_epochs=0``), 10 labelled and 10 unlabelled images, and scales from 0.5
  to 2 for both (``augment.unlabelled_scale=[0.5,2]``). The ramp counts from the first iteration,
  so it has begun when a warm-up ends.
* **Options** that their configuration leaves off are left out: other distances than the squared
  one, confidence masking, the loss between pairs of auxiliary decoders, annealed cross entropy.

Guided cutout, context and object masking need a class that is the background. Data without one
(Cityscapes) is an error that names the settings to set to 0.
"""

from __future__ import annotations

from cac_ext.train.methods.cct.method import Cct

__all__ = ["Cct"]
