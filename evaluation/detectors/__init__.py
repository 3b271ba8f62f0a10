"""Detectors: networks whose features are compared, with their preprocessing and weights.

base.py               Detectors: images in, features out
effnet.py             EfficientNet-Lite0: the detector that needs no download
fold_batchnorm.py     Folding of inference-mode batch norms into the convolutions before them
inception.py          The FID Inception network of 2015-12-05
inception_weights.py  Weights of the FID Inception from the files that are around
registry.py           The detectors by name: how each loads, its taps, and the metrics it is for
resize.py             Input pipelines: from uint8 images to what a detector's network expects
torchscript.py        Detectors in TorchScript that users have, run as they are
vit.py                Vision transformers for FD-DINOv2 and CMMD, from weights files that the us
"""
