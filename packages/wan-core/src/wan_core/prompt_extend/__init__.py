"""Prompt extension: a language model turns a short idea into the prompt that a video model was trained on."""

from typing import TYPE_CHECKING

from wan_core.lazy import on_demand

if TYPE_CHECKING:
    from wan_core.prompt_extend.extend import TO_COME, Extender, Extension, Idea
    from wan_core.prompt_extend.instructions import LANGUAGES, instruction_for
    from wan_core.prompt_extend.kept import KeptPrompts
    from wan_core.prompt_extend.methods import METHODS, ExtendOptions, choose_model
else:
    __getattr__, __dir__ = on_demand(__name__)

__all__ = [
    "LANGUAGES",
    "METHODS",
    "TO_COME",
    "ExtendOptions",
    "Extender",
    "Extension",
    "Idea",
    "KeptPrompts",
    "choose_model",
    "instruction_for",
]
