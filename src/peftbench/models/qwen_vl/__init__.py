"""Qwen-VL-Chat for ``transformers``, which has no class of its own for it. Importing this registers it.

A port from a description of the architecture, with the tensor names of the published checkpoint; no code of
that checkpoint is used or run. Its configurations say ``model_type: qwen``, and a registered class wins over
their ``auto_map``.
"""

from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from peftbench.models.qwen_vl.configuration import QwenVLConfig
from peftbench.models.qwen_vl.modeling import QwenVLForConditionalGeneration
from peftbench.models.qwen_vl.processing import QwenVLProcessor

AutoConfig.register(QwenVLConfig.model_type, QwenVLConfig, exist_ok=True)
AutoModelForImageTextToText.register(QwenVLConfig, QwenVLForConditionalGeneration, exist_ok=True)
AutoProcessor.register(QwenVLConfig, QwenVLProcessor, exist_ok=True)

__all__ = ["QwenVLConfig", "QwenVLForConditionalGeneration", "QwenVLProcessor"]
