"""Small random model files laid out and named as ComfyUI's templates expect them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from checkpoint_files import AUTOENCODER, LANGUAGE_MODEL, TRANSFORMER, drawn, write_tensors
from headrace.catalog import MISTRAL_SMALL
from headrace.checkpoints.shapes import autoencoder_shapes, language_model_shapes, transformer_shapes
from headrace.nn.config import TransformerConfig
from lora_files import DIALECTS

SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"),
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "<pad>"),
)
VOCABULARY = 256 + len(SPECIAL)

KLEIN = TRANSFORMER
DEV = replace(TRANSFORMER, guidance_embed=True)
SMALL_DECODER = replace(AUTOENCODER, decoder_channels=(32, 32, 32, 32))
QWEN = replace(LANGUAGE_MODEL, vocab_size=VOCABULARY)
MISTRAL = replace(
    MISTRAL_SMALL.config, vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_heads=1, num_kv_heads=1
)


def tamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights small enough for values not to grow from layer to layer, vectors near 1."""
    return {
        name: tensor / tensor[0].numel() ** 0.5
        if tensor.dim() > 1
        else 1 + 0.1 * tensor.tanh()
        if tensor.dim()
        else tensor
        for name, tensor in tensors.items()
    }


def byte_tokenizer() -> Tokenizer:
    """One token a byte, and those that templates use."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: index for index, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    return tokenizer


def transformer_file(folder: Path, name: str, seed: int = 0) -> Path:
    """A transformer as its name says: with embedded guidance for dev."""
    tensors = tamed(drawn(transformer_shapes(DEV if "dev" in name else KLEIN), seed))
    return write_tensors(folder / "diffusion_models" / name, tensors)


def text_encoder_file(folder: Path, name: str, seed: int = 1) -> Path:
    """A text encoder as its name says, with its tokenizer beside it; Mistral's cut off above the layers used."""
    mistral = "mistral" in name
    shapes = language_model_shapes(MISTRAL, layers=30) if mistral else language_model_shapes(QWEN, norm=True)
    tensors = tamed(drawn({f"model.{key}": shape for key, shape in shapes.items()}, seed))
    file = write_tensors(folder / "text_encoders" / name, tensors)
    file.with_suffix("").mkdir(exist_ok=True)
    byte_tokenizer().save(str(file.with_suffix("") / "tokenizer.json"))
    return file


def vae_file(folder: Path, name: str, seed: int = 2) -> Path:
    """An autoencoder as its name says, some with a smaller decoder."""
    config = SMALL_DECODER if "small_decoder" in name else AUTOENCODER
    return write_tensors(folder / "vae" / name, tamed(drawn(autoencoder_shapes(config), seed)))


def lora_file(folder: Path, name: str, dialect: str, config: TransformerConfig) -> Path:
    """A LoRA for a transformer of this configuration."""
    path = folder / "loras" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return DIALECTS[dialect](config).save(path)


def write_models(folder: Path) -> Path:
    """Every model file that the templates name."""
    for name in (
        *("flux2_dev_fp8mixed", "flux-2-klein-4b", "flux-2-klein-base-4b", "flux-2-klein-4b-fp8"),
        *("flux-2-klein-base-4b-fp8", "flux-2-klein-9b-fp8", "flux-2-klein-base-9b-fp8", "flux-2-klein-9b-kv-fp8"),
    ):
        transformer_file(folder, f"{name}.safetensors")
    for name in ("mistral_3_small_flux2_bf16", "mistral_3_small_flux2_fp8", "qwen_3_4b", "qwen_3_8b_fp8mixed"):
        text_encoder_file(folder, f"{name}.safetensors")
    for name in ("flux2-vae", "full_encoder_small_decoder"):
        vae_file(folder, f"{name}.safetensors")
    return folder
