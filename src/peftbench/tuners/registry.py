"""Entering a tuner of ours into peft's tables.

peft has no hook for tuners from outside: ``register_peft_method`` insists that the name is a member of
``PeftType``, a closed string enum. So one member is added by hand, the way ``enum`` itself does it. This
touches private parts of ``enum`` and peft; peft is pinned, and a test asserts what is relied on.
"""

from __future__ import annotations

from typing import Any

from peft.utils import PeftType, register_peft_method


def add_peft_type(name: str) -> None:
    """Make ``PeftType[name]`` and ``PeftType(name)`` work; nothing happens if they already do."""
    if name in PeftType.__members__:
        return
    member = str.__new__(PeftType, name)
    member._name_, member._value_ = name, name
    member.__objclass__ = PeftType
    member._sort_order_ = len(PeftType.__members__)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    type.__setattr__(PeftType, name, member)


def register(name: str, config_cls: Any, model_cls: Any) -> None:
    """Enter a tuner under ``name`` (upper case), once per process.

    Afterwards ``get_peft_model``, ``PeftConfig.from_pretrained`` and ``PeftModel.from_pretrained`` know it.
    Raises ``KeyError`` if peft itself has come to have a method of this name.
    """
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    add_peft_type(name)
    if PEFT_TYPE_TO_TUNER_MAPPING.get(name) is not model_cls:
        register_peft_method(name=name.lower(), config_cls=config_cls, model_cls=model_cls)
