"""The chat templates FLUX.2 was trained with: what stands around a prompt.

Sources: `text_encoder.py` and `system_messages.py` of black-forest-labs/flux2, and the chat templates published with
Mistral-Small-3.2-24B-Instruct-2506 and Qwen3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# The line break inside "object\nattribution" is in the published message.
SYSTEM_MESSAGE = (
    "You are an AI that reasons about image descriptions. You give structured responses focusing on object "
    "relationships, object\nattribution and actions without speculation."
)


@dataclass(frozen=True)
class Template:
    """What goes before and after a prompt.

    removes: text deleted from a prompt, because it would stand for something else. post_processes: the tokenizer's own
    additions, such as a beginning-of-text token, are wanted on top. pad_token: used where the tokenizer names none.
    opening, system, user, reply: what stands around a conversation in which the model is to answer, its system message
    and what the user says, and where the answer begins. stops: the tokens that end it.
    """

    prefix: str
    suffix: str
    removes: str
    post_processes: bool
    pad_token: str
    opening: str
    system: tuple[str, str]
    user: tuple[str, str]
    reply: str
    stops: tuple[str, ...]


TEMPLATES: dict[Literal["mistral", "qwen"], Template] = {
    "mistral": Template(
        prefix=f"<s>[SYSTEM_PROMPT]{SYSTEM_MESSAGE}[/SYSTEM_PROMPT][INST]",
        suffix="[/INST]",
        removes="[IMG]",
        post_processes=False,
        pad_token="<pad>",
        opening="<s>",
        system=("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
        user=("[INST]", "[/INST]"),
        reply="",
        stops=("</s>",),
    ),
    "qwen": Template(
        prefix="<|im_start|>user\n",
        suffix="<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        removes="",
        post_processes=True,
        pad_token="<|endoftext|>",
        opening="",
        system=("<|im_start|>system\n", "<|im_end|>\n"),
        user=("<|im_start|>user\n", "<|im_end|>\n"),
        reply="<|im_start|>assistant\n<think>\n\n</think>\n\n",
        stops=("<|im_end|>", "<|endoftext|>"),
    ),
}
