"""peftbench: which parameter-efficient fine-tuning method for which multimodal LLM, measured.

Importing this package imports nothing heavy: the Snakefile is parsed by every cluster job.
"""

__version__ = "0.1.0"
