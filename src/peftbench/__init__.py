"""peftbench: which parameter-efficient fine-tuning method for which multimodal LLM, measured.

Importing this package imports nothing heavy: the Snakefile is parsed by every cluster job.
"""

FINGERPRINT_EXEMPT = "a version number changes no result; what changes results is fingerprinted"
__version__ = "0.1.0"
