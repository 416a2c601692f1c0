"""The language model that looks and writes, beside transformers' own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import Mistral3Config, Mistral3ForConditionalGeneration, Qwen3Config, Qwen3ForCausalLM
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

from headrace.nn.config import LanguageModelConfig, VisionConfig
from headrace.nn.language_model import LanguageModel, PictureFeatures
from headrace.nn.vision import Vision
from headrace.text.vision import picture_text, prepare_picture
from headrace.text.writing import Sampling, choose_token, write_tokens

PICTURE_TOKEN = 10
VOCABULARY = 90
SIZES = {"none": [], "one": [(90, 61)], "several": [(40, 100), (28, 28), (200, 57)]}
TEXT_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
}
VISION = VisionConfig(48, 1e-5, 32, 64, 2, 2, 112, 7, 1e4, "silu", 2, False, PICTURE_TOKEN)


def randomised(network: Any) -> Any:
    for parameter in network.parameters():
        parameter.data = torch.randn_like(parameter) * (0.3 if parameter.ndim > 1 else 1.0)
    return network.eval()


def mistral(activation: str = "silu") -> tuple[Any, LanguageModel, Vision]:
    """The same random language model that sees, in transformers and here."""
    torch.manual_seed(3)
    text = TEXT_SIZES | {"rms_norm_eps": 1e-5, "rope_parameters": {"rope_type": "default", "rope_theta": 1e9}}
    tower: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 16,
        "image_size": 112,
        "patch_size": 7,
        "hidden_act": activation,
    }
    config = Mistral3Config(
        text_config={"model_type": "mistral", "sliding_window": None, **text},
        vision_config={"model_type": "pixtral", **tower},
        image_token_index=PICTURE_TOKEN,
        tie_word_embeddings=False,
    )
    theirs = randomised(Mistral3ForConditionalGeneration(config))
    ours = LanguageModel(
        LanguageModelConfig(VOCABULARY, 48, 80, 4, 4, 2, 16, 1e9, 1e-5, qk_norm=False), norm=True, head=True
    )
    weights = theirs.state_dict()
    inner = "model.language_model."
    ours.load_state_dict(
        {name.removeprefix(inner): value for name, value in weights.items() if name.startswith(inner)}
        | {"lm_head.weight": weights["lm_head.weight"]}
    )
    vision = Vision(VISION if activation == "silu" else VisionConfig(**{**vars(VISION), "activation": activation}))
    vision.load_state_dict(
        {name[6:]: value for name, value in weights.items() if name.startswith(("model.vision", "model.multi"))}
    )
    return theirs, ours.eval(), vision.eval()


def qwen() -> tuple[Any, LanguageModel]:
    torch.manual_seed(4)
    rope = {"rope_type": "default", "rope_theta": 1e6}
    config = Qwen3Config(**TEXT_SIZES, rope_parameters=rope, tie_word_embeddings=True)
    theirs = randomised(Qwen3ForCausalLM(config))
    eps = config.rms_norm_eps
    shape = LanguageModelConfig(VOCABULARY, 48, 80, 4, 4, 2, 16, 1e6, eps, qk_norm=True, tie_word_embeddings=True)
    ours = LanguageModel(shape, norm=True, head=True)
    weights = {name.removeprefix("model."): value for name, value in theirs.state_dict().items()}
    del weights["lm_head.weight"]
    ours.load_state_dict(weights)
    return theirs, ours.eval()


def picture(width: int, height: int) -> Image.Image:
    pixels = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy()).resize((width, height), Image.Resampling.BICUBIC)


def seen(sizes: list[tuple[int, int]], vision: Vision) -> tuple[list[int], dict[str, Tensor], PictureFeatures | None]:
    """Token ids with pictures of these sizes among them, what transformers is given beside, and what we see."""
    ids = [1, 20, 21]
    images = [picture(*size) for size in sizes]
    for image in images:
        spelled = picture_text(*image.size, VISION).replace("[IMG_BREAK]", "b").replace("[IMG_END]", "e")
        ids += [{"I": PICTURE_TOKEN, "b": 12, "e": 13}[sign] for sign in spelled.replace("[IMG]", "I")] + [30]
    ids += [int(token) for token in torch.randint(14, VOCABULARY, (7,))]
    if not images:
        return ids, {}, None
    side = {"height": VISION.token_size, "width": VISION.token_size}
    processor = PixtralImageProcessorPil(patch_size=side, size={"longest_edge": VISION.image_size})
    given = processor(images, return_tensors="pt")
    prepared = [prepare_picture(image, VISION) for image in images]
    for mine, theirs, size in zip(prepared, given["pixel_values"], given["image_sizes"], strict=True):
        torch.testing.assert_close(mine, theirs[:, : size[0], : size[1]], atol=0, rtol=0)
    features = PictureFeatures(torch.cat([vision(values) for values in prepared]), torch.tensor([ids]) == PICTURE_TOKEN)
    return ids, {"pixel_values": given["pixel_values"], "image_sizes": given["image_sizes"]}, features


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("pictures", SIZES)
@torch.no_grad()
def test_mistral_sees_and_writes_as_in_transformers(pictures: str) -> None:
    theirs, ours, vision = mistral()
    ids, given, features = seen(SIZES[pictures], vision)
    tokens = torch.tensor([ids])
    expected = theirs(tokens, output_hidden_states=True, **given)
    states = ours.hidden_states(tokens, torch.ones_like(tokens), (0, 1, 2, 3, 4), pictures=features)
    close(states, torch.cat(expected.hidden_states, dim=-1))
    close(ours(tokens, pictures=features), expected.logits)
    written = list(write_tokens(ours, ids, Sampling(0, 64, frozenset()), torch.device("cpu"), pictures=features))
    theirs.generation_config.eos_token_id = None
    again = theirs.generate(tokens, **given, max_new_tokens=64, do_sample=False, pad_token_id=0)
    assert written == again[0, len(ids) :].tolist()
    assert len(written) == 64
    assert len(set(written)) > 8


@torch.no_grad()
def test_the_tower_takes_either_activation() -> None:
    theirs, _, vision = mistral("gelu")
    _, given, features = seen(SIZES["several"], vision)
    assert features is not None
    expected = theirs.model.get_image_features(**given, return_dict=True).pooler_output
    close(features.values, torch.cat(list(expected)))


@torch.no_grad()
def test_qwen_writes_as_in_transformers_and_stops() -> None:
    theirs, ours = qwen()
    ids = torch.randint(0, VOCABULARY, (1, 23))
    states = theirs(ids, output_hidden_states=True)
    close(ours(ids), states.logits)
    expected = theirs.generate(ids, max_new_tokens=64, do_sample=False, pad_token_id=0, eos_token_id=None)
    expected = expected[0, 23:].tolist()
    device = torch.device("cpu")
    assert list(write_tokens(ours, ids[0].tolist(), Sampling(0, 64, frozenset()), device)) == expected
    stop = expected[20]
    stopped = list(write_tokens(ours, ids[0].tolist(), Sampling(0, 64, frozenset({stop})), device))
    assert stopped == expected[: expected.index(stop)]


@torch.no_grad()
def test_sampling_follows_its_seed_temperature_and_top_p() -> None:
    _, ours = qwen()
    device, ids = torch.device("cpu"), [5, 6, 7]

    def written(**changes: Any) -> list[int]:
        sampling = {"temperature": 1.0, "max_tokens": 12, "stop": frozenset(), **changes}
        return list(write_tokens(ours, ids, Sampling(**sampling), device))

    assert written(seed=1) == written(seed=1) != written(seed=2)
    assert written(top_p=1e-6, seed=3) == written(temperature=0) == written(temperature=1e-4, seed=4)
    generator = torch.Generator().manual_seed(0)
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    drawn = [choose_token(logits, Sampling(1, 1, frozenset(), 0.75), generator) for _ in range(2000)]
    assert set(drawn) == {0, 1}
    assert drawn.count(0) / len(drawn) == pytest.approx(0.625, abs=0.05)
