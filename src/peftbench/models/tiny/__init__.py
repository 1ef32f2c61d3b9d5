"""The tiny LLaVA of the embedded default: real classes and processor, a few million parameters, own pre-training.

``architecture`` builds it, ``vision`` pre-trains its CLIP tower on the artwork, ``exposure`` trains connector and
language model on captions, text and the *seen* data sets (the paper's exposure, appendix A.2).
"""
