"""Detectors: networks whose features are compared, with their preprocessing and weights.

base.py               Detectors: images in, features out; checked loading of weights
effnet.py             EfficientNet-Lite0: the detector that needs no download
fold_batchnorm.py     Folding of inference-mode batch norms into the convolutions before them
inception.py          The FID Inception network of 2015-12-05
inception_weights.py  Weights of the FID Inception, from any of the three kinds of files
passes.py             How many images go through a network at once: as many as memory takes
registry.py           The detectors by name: how each loads, its taps, its default metrics
resize.py             Preprocessing: from uint8 images to what a detector's network expects
torchscript.py        TorchScript detectors of NVIDIA's calling convention, run as they are
vit.py                Vision transformers for FD-DINOv2 and CMMD, from their official weights
weights.py            Where the weights of detectors are on this machine, and what is published
"""
