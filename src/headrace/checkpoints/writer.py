"""What a text encoder's files hold beyond what reads a prompt: layers and head to write with, eyes to see with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from headrace.checkpoints import configs
from headrace.checkpoints.components import (
    Component,
    beside,
    find_network,
    vision_component,
    writer_component,
)
from headrace.checkpoints.open import Checkpoint
from headrace.errors import RequestError
from headrace.nn.config import LanguageModelConfig, VisionConfig


@dataclass(frozen=True)
class Eyes:
    """A vision tower with its projector."""

    component: Component
    config: VisionConfig


@dataclass(frozen=True)
class Writer:
    """A whole language model. eyes: None where it only reads."""

    component: Component
    config: LanguageModelConfig
    eyes: Eyes | None


def open_writer(checkpoint: Checkpoint) -> Writer:
    """The checkpoint's language model with everything that it writes with; headers are read, nothing is loaded.

    Raises RequestError, in one sentence, where its files only hold what reads a prompt.
    """
    files = checkpoint.text_encoder
    config_file = None if files is None else files.source / "config.json"
    if files is None or (config_file is not None and config_file.is_file() and not _ends_texts(config_file)):
        raise RequestError(
            f"{checkpoint.name}'s language model reads prompts and was never taught to write; "
            "name another that does with --upsample-with URL."
        )
    stored = find_network(files.weights, "text encoder")
    layers = configs.count_numbered(stored.tensors, "layers.")
    if layers < files.config.num_layers:
        raise RequestError(
            f"{files.source} holds {layers} of its language model's {files.config.num_layers} layers: enough to read a "
            "prompt, not to write one; name the model's whole text_encoder folder with --text-encoder."
        )
    own_head = bool(beside(files.weights, stored.found, ("lm_head",)))
    if not own_head and not files.config.tie_word_embeddings:
        raise RequestError(
            f"{files.source} holds no lm_head, with which its language model writes; name the model's whole "
            "text_encoder folder with --text-encoder."
        )
    config = replace(files.config, tie_word_embeddings=not own_head)
    vision = None
    if config_file is not None and config_file.is_file():
        vision = configs.read_vision_config(config_file, config)
    eyes = None if vision is None else Eyes(vision_component(files.weights, vision), vision)
    return Writer(writer_component(files.weights, config), config, eyes)


def _ends_texts(config_file: Path) -> bool:
    """Whether the model has a token that ends a text; only one that is said to have none was not taught to write."""
    values = configs.read_fields(config_file).values
    text = values.get("text_config")
    described = text if isinstance(text, dict) else values
    if "eos_token_id" not in described or described["eos_token_id"] is not None:
        return True
    generation = config_file.with_name("generation_config.json")
    return generation.is_file() and configs.read_fields(generation).values.get("eos_token_id") is not None
