"""A learnt prompt as a peft tuner: vectors in the place of the embeddings of tokens that no tokenizer has.

peft's own PROMPT_TUNING and P_TUNING put their vectors before the embeddings and hand these to the model. A multimodal
model then no longer sees token ids, which it finds images, positions and kinds of tokens by: some fail, and others
count positions wrongly. Here ``n`` ids beyond the vocabulary stand before every example (``lead_ids``), and a wrapper
around the embedding gives them their vectors. Everything else in the model sees ordinary text tokens.

With ``encoder`` the vectors are the output of peft's prompt encoder while they train (P-tuning); ``fold`` replaces it
by the plain vectors that are saved.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from peft.config import PeftConfig
from peft.tuners.p_tuning import PromptEncoder, PromptEncoderConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import PeftType
from torch import nn

from peftbench.tuners.registry import register

NAME = "SOFT_PROMPT"


@dataclass
class SoftPromptConfig(PeftConfig):
    """Settings of the prompt; the pattern names the embedding of tokens by its full path."""

    target_modules: str | list[str] | None = field(default=None)
    num_virtual_tokens: int = field(default=20)
    from_vocabulary: bool = field(
        default=True, metadata={"help": "start as tokens drawn from the vocabulary"}
    )
    init_std: float = field(default=0.02, metadata={"help": "else normal, with this standard deviation"})
    encoder: str | None = field(default=None, metadata={"help": "MLP or LSTM of peft's prompt encoder"})
    encoder_size: int | None = field(default=None, metadata={"help": "hidden width; None: the model's"})
    exclude_modules: str | list[str] | None = field(default=None)
    layers_to_transform: int | list[int] | None = field(default=None)
    layers_pattern: str | list[str] | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType[NAME]
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]


class SoftPromptLayer(nn.Module, BaseTunerLayer):
    """The embedding of tokens with ``n`` learnt rows behind those of the vocabulary."""

    adapter_layer_names = ("soft_prompt_vectors", "soft_prompt_encoder")
    # Properties of peft's (untyped) base classes, and modules that torch types as "Tensor or Module".
    active_adapters: Any
    disable_adapters: Any
    set_adapter: Any
    get_base_layer: Any
    base_layer: Any

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: SoftPromptConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.soft_prompt_vectors = nn.ParameterDict({})
        self.soft_prompt_encoder = nn.ModuleDict({})
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: SoftPromptConfig) -> None:
        """Add the prompt ``adapter_name``."""
        weight = self.get_base_layer().weight
        count, width = config.num_virtual_tokens, weight.shape[1]
        # Drawn on the CPU so that a seed means the same everywhere.
        if weight.is_meta:
            rows = torch.empty(count, width)
        elif config.from_vocabulary:
            drawn = torch.randint(weight.shape[0], (count,))
            # As the model sees them: some scale what they look up.
            rows = self.get_base_layer()(drawn.to(weight.device)).detach().float().cpu()
        else:
            rows = torch.randn(count, width) * config.init_std
        self.soft_prompt_vectors[adapter_name] = nn.Parameter(rows.to(weight.device))
        if config.encoder:
            settings = PromptEncoderConfig(
                num_virtual_tokens=count,
                token_dim=width,
                num_transformer_submodules=1,
                encoder_reparameterization_type=config.encoder,
                encoder_hidden_size=config.encoder_size or width,
            )
            self.soft_prompt_encoder[adapter_name] = PromptEncoder(settings).to(weight.device)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    @property
    def prompt(self) -> torch.Tensor:
        """The vectors of the active prompt, (n, width)."""
        (name,) = self.active_adapters
        if name not in self.soft_prompt_encoder:
            return self.soft_prompt_vectors[name]
        encoder: Any = self.soft_prompt_encoder[name]
        places = torch.arange(encoder.total_virtual_tokens, device=encoder.embedding.weight.device)
        return encoder(places[None])[0]

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings of ``ids`` (batch, length): of the vocabulary below its size, of the prompt from there on."""
        rows = self.get_base_layer().num_embeddings
        ours = ids >= rows
        hidden = self.base_layer(ids.masked_fill(ours, 0))
        if self.disable_adapters or not ours.any():
            return hidden
        vectors = F.embedding((ids - rows).clamp(min=0), self.prompt)
        return torch.where(ours[..., None], vectors.to(hidden.dtype), hidden)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Always an error: the prompt is input, not weights."""
        raise NotImplementedError("a prompt is input, not weights, and cannot be merged")

    def __repr__(self) -> str:
        return "soft_prompt." + super().__repr__()


class SoftPromptModel(BaseTuner):
    """Puts a learnt prompt into the embedding of a model."""

    prefix = "soft_prompt_"
    tuner_layer_cls = SoftPromptLayer
    target_module_mapping: dict[str, Any] = {}  # noqa: RUF012 - peft reads it from the class

    def _create_and_replace(
        self,
        config: SoftPromptConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **kwargs: Any,
    ) -> None:
        layer = SoftPromptLayer(target, adapter_name, config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        setattr(parent, target_name, layer)

    def _post_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        assert isinstance(config, SoftPromptConfig)
        if config.encoder:  # its output counts, not the vectors
            _layer(model).soft_prompt_vectors[adapter_name].requires_grad_(False)

    def _check_merge_allowed(self) -> None:
        super()._check_merge_allowed()
        raise ValueError("prompts are input, not weights, and cannot be merged")

    def lead_ids(self) -> list[int]:
        """The ids that have to stand before every example."""
        layer = _layer(self.model)
        rows = layer.get_base_layer().num_embeddings
        return list(range(rows, rows + len(layer.soft_prompt_vectors[layer.active_adapters[0]])))


def _layer(model: nn.Module) -> SoftPromptLayer:
    return next(module for module in model.modules() if isinstance(module, SoftPromptLayer))


def fold(model: Any) -> None:
    """Replace an encoder by the prompt it yields, in place; nothing happens if there is none."""
    layer = _layer(model)
    if not layer.soft_prompt_encoder:
        return
    with torch.no_grad():
        layer.soft_prompt_vectors["default"].copy_(layer.prompt)
    del layer.soft_prompt_encoder["default"]
    model.peft_config["default"].encoder = None


def folded(model: Any, config: SoftPromptConfig) -> dict[str, torch.Tensor]:
    """What ``fold`` would leave to save, and its configuration (changed in place), the model left as it is."""
    layer = _layer(model)
    name = next(name for name, module in model.named_modules() if module is layer)
    config.encoder = None
    with torch.no_grad():
        return {f"{name}.soft_prompt_vectors": layer.prompt.clone()}


register(NAME, SoftPromptConfig, SoftPromptModel)
