"""Rewriting and checking prompts: what the language model is asked, from which files, within which memory."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.flux2 import system_messages as published
from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer, Mistral3ForConditionalGeneration, Qwen3ForCausalLM

from headrace import catalog, load
from headrace.checkpoints import open_checkpoint
from headrace.checkpoints.writer import open_writer
from headrace.cli.main import main
from headrace.errors import RequestError
from headrace.memory.budget import check_fits
from headrace.nn.config import VisionConfig
from headrace.pipeline import Pipeline
from headrace.provenance import read_recipe
from headrace.text.conversation import Question, ask, stop_tokens
from headrace.text.messages import capped, messages, side_by_side, system_message
from headrace.text.upsampling import picture_question, prompt_question, upsampling_question
from headrace.text.vision import picture_text, prepare_picture
from reference_pipelines import save_pipeline

Folder = Callable[[str], Path]
CONVERSATION = (
    "{{ '<s>' }}{% for m in messages %}"
    "{% if m.role == 'system' %}[SYSTEM_PROMPT]{{ m.content[0].text }}[/SYSTEM_PROMPT]{% else %}[INST]"
    "{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% else %}[IMG]{% endif %}{% endfor %}"
    "[/INST]{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def writing_model(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Small random models that were taught to end a text, as far as their files say."""
    folders: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in folders:
            folders[kind] = tmp_path_factory.mktemp(kind)
            save_pipeline(folders[kind], kind)  # type: ignore[arg-type]
            file = folders[kind] / "text_encoder" / "config.json"
            config = json.loads(file.read_text())
            config.get("text_config", config)["eos_token_id"] = 2
            file.write_text(json.dumps(config))
            tokens = folders[kind] / "tokenizer" / "tokenizer.json"
            _add_words(tokens)
        return folders[kind]

    return folder


def _add_words(file: Path) -> None:
    """Two answers, each a token, in the place of two others."""
    tokenizer = Tokenizer.from_file(str(file))
    document = json.loads(tokenizer.to_str())
    vocabulary = document["model"]["vocab"]
    for word, merged in zip(("yes", "no"), list(vocabulary)[-2:], strict=True):
        number = vocabulary.pop(merged)
        document["model"]["merges"] = [
            pair for pair in document["model"]["merges"] if "".join(pair) != merged and merged not in pair
        ]
        vocabulary[word] = number
    file.write_text(json.dumps(document))


def test_the_messages_are_the_published_ones() -> None:
    assert system_message(pictures=False) == published.SYSTEM_MESSAGE_UPSAMPLING_T2I
    assert system_message(pictures=True) == published.SYSTEM_MESSAGE_UPSAMPLING_I2I
    assert set(messages()["check"]) == {"system", "picture", "picture_question", "prompt"}
    assert messages()["check"]["system"].startswith("\nYou are Mistral Small 3")
    assert messages()["check"]["picture"].endswith('"yes" or "no"')
    assert "{prompt}" in messages()["check"]["prompt"]


def test_references_are_shown_as_black_forest_labs_shows_them() -> None:
    torch.manual_seed(0)
    pictures = [
        Image.fromarray(torch.randint(0, 256, (h, w, 3), dtype=torch.uint8).numpy())
        for w, h in ((900, 700), (300, 801), (64, 64))
    ]
    for count in (1, 2, 3):
        theirs = Flux2ImageProcessor._resize_if_exceeds_area(
            Flux2ImageProcessor.concatenate_images(pictures[:count]), 768**2
        )
        ours = capped(side_by_side(pictures[:count]))
        assert ours.size == theirs.size
        assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("family", ["mistral", "qwen"])
def test_a_conversation_is_the_chat_templates(family: str, writing_model: Folder) -> None:
    folder = writing_model("dev" if family == "mistral" else "klein")
    pipe = load(folder, device="cpu")
    reference: Any = AutoTokenizer.from_pretrained(folder / "tokenizer")
    system, prompt = "Do as you are told.", "a red apple\nwith the text HELLO"
    if family == "mistral":
        reference.chat_template = CONVERSATION
        turns: list[Any] = [
            {"role": "system", "content": [{"type": "text", "text": system}]},
            {"role": "user", "content": [{"type": "image"}]},
            {"role": "user", "content": [{"type": "text", "text": prompt}]},
        ]
        vision = VisionConfig(patch_size=14, image_size=56, picture_token=5)
        picture = Image.new("RGB", (50, 90))
        said = [[picture], ["[IMG]" + prompt]]
        text = reference.apply_chat_template(turns, tokenize=False)
        text = text.replace("[IMG]", picture_text(*picture.size, vision))
        expected = reference(text, add_special_tokens=False).input_ids
        question = ask(pipe.tokenizer, system, said, vision, 500)
    else:
        turns = [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
        expected = reference(reference.apply_chat_template(turns, tokenize=False)).input_ids
        question = ask(pipe.tokenizer, system, [[prompt]], None, 500)
    assert list(question.token_ids) == expected


def test_a_long_prompt_loses_its_end_but_not_the_templates(writing_model: Folder) -> None:
    pipe = load(writing_model("klein"), device="cpu")
    whole = ask(pipe.tokenizer, "x", [["a " * 300]], None, 10**6).token_ids
    with pytest.warns(UserWarning, match="tokens too long"):
        cut = ask(pipe.tokenizer, "x", [["a " * 300]], None, 100).token_ids
    assert len(cut) == 100
    end = pipe.tokenizer.tokenizer.encode("<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n").ids
    assert list(cut[-len(end) :]) == end
    assert cut[: 100 - len(end)] == whole[: 100 - len(end)]


def reference_model(folder: Path) -> Any:
    loader: Any = Mistral3ForConditionalGeneration if "dev" in folder.name else Qwen3ForCausalLM
    return loader.from_pretrained(folder / "text_encoder").eval()


def shown(question: Question, pipe: Pipeline) -> dict[str, Any]:
    """What transformers is given of a question."""
    ids = torch.tensor([question.token_ids])
    if not question.pictures:
        return {"input_ids": ids}
    assert pipe.writer.eyes is not None
    values = torch.stack([prepare_picture(picture, pipe.writer.eyes.config) for picture in question.pictures])
    return {"input_ids": ids, "pixel_values": values, "image_sizes": torch.tensor([values.shape[2:]])}


@pytest.mark.parametrize("kind", ["dev", "klein"])
def test_a_prompt_is_rewritten_as_transformers_does(kind: str, writing_model: Folder) -> None:
    pipe = load(writing_model(kind), device="cpu")
    noise = Image.effect_noise((90, 30), 90).convert("RGB")
    references = [Image.new("RGB", (64, 48), "red"), noise] if kind == "dev" else []
    written = pipe.upsample("a red apple", references=references, temperature=0, max_tokens=20)
    eyes = pipe.writer.eyes.config if pipe.writer.eyes else None
    question = upsampling_question(pipe.tokenizer, "a red apple", references, eyes)
    given = shown(question, pipe)
    stops = sorted(stop_tokens(pipe.tokenizer))
    made = reference_model(writing_model(kind)).generate(
        **given, max_new_tokens=20, do_sample=False, eos_token_id=stops, pad_token_id=0
    )
    tokens = [token for token in made[0, len(question.token_ids) :].tolist() if token not in stops]
    assert written == pipe.tokenizer.tokenizer.decode(tokens).strip()
    assert bool(question.pictures) == (kind == "dev")


def test_klein_says_that_it_sees_no_pictures(writing_model: Folder) -> None:
    klein = load(writing_model("klein"), device="cpu")
    with pytest.warns(UserWarning, match="cannot see"):
        klein.upsample("a", references=[Image.new("RGB", (64, 48))], max_tokens=1)
    with pytest.raises(RequestError, match="temperature"):
        klein.upsample("a", temperature=-1)


@pytest.mark.parametrize("kind", ["dev", "klein"])
def test_streamed_writing_is_the_same_and_shares_its_layers(kind: str, writing_model: Folder) -> None:
    whole = load(writing_model(kind), device="cpu")
    references = [Image.effect_noise((60, 40), 90).convert("RGB")] if kind == "dev" else []
    expected = whole.upsample("a red apple", references=references, max_tokens=6, seed=5)
    assert whole._networks.holds_writer
    lent = whole._networks._held["writer"]
    recipe = whole.generate(expected, size=(32, 32), steps=1, seed=1)
    assert whole._networks._held["writer"] is lent
    assert "text_encoder" not in whole._networks._held
    assert recipe.image.tobytes() == load(writing_model(kind), device="cpu").generate(
        expected, size=(32, 32), steps=1, seed=1
    ).image.tobytes()  # fmt: skip

    streamed = load(writing_model(kind), device="cpu", memory=10**12)
    plans = _planned_within_least(streamed)
    assert streamed.upsample("a red apple", references=references, max_tokens=6, seed=5) == expected
    assert not plans[0].keeps_all
    assert not plans[0].resident_blocks
    assert not streamed._networks.holds_writer


def _planned_within_least(pipe: Pipeline) -> list[Any]:
    """Has the pipeline plan its writing within the least budget that works; what it planned comes into the list."""
    plan, plans = pipe._plan_writing, []

    def least(work: Any, budget: Any) -> Any:
        minimum = plan(work, type(budget)(1, budget.process))[0].minimum_bytes
        refused = plan(work, type(budget)(minimum - 1, budget.process))[0]
        with pytest.raises(RequestError, match="smallest budget that works"):
            check_fits(refused)
        plans.append(plan(work, type(budget)(minimum, budget.process))[0])
        return plans[-1], None

    pipe._plan_writing = least  # type: ignore[method-assign]
    return plans


def test_files_that_only_read_are_refused(tmp_path: Path, writing_model: Folder, tiny_model: Folder) -> None:
    with pytest.raises(RequestError, match="sprite's language model reads prompts and was never taught to write"):
        load("sprite", device="cpu").upsample("a cat")
    with pytest.raises(RequestError, match="never taught to write"):
        open_writer(open_checkpoint(tiny_model("klein")))
    source = writing_model("dev")
    folder = tmp_path / "model"
    shutil.copytree(source, folder)
    file = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    config = folder / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tie_word_embeddings": False}))
    with pytest.raises(RequestError, match="no lm_head"):
        open_writer(open_checkpoint(folder))
    save_file({name: value for name, value in tensors.items() if "layers.30." not in name}, file)
    with pytest.raises(RequestError, match="holds 30 of its language model's 31 layers"):
        open_writer(open_checkpoint(folder))


def test_other_spellings_and_a_head_of_its_own(tmp_path: Path, writing_model: Folder) -> None:
    pipe = load(writing_model("dev"), device="cpu")
    expected = pipe.upsample("a red apple", references=Image.new("RGB", (64, 48), "red"), temperature=0, max_tokens=5)
    folder = tmp_path / "dev"
    shutil.copytree(writing_model("dev"), folder)
    file = folder / "text_encoder" / "model.safetensors"
    tensors = {}
    for name, value in load_file(file).items():
        tensors["model." + name.replace("language_model.model.", "language_model.")] = value
    embedding = tensors["model.language_model.embed_tokens.weight"]
    save_file({**tensors, "lm_head.weight": embedding.clone()}, file)
    other = load(folder, device="cpu")
    assert not other.writer.config.tie_word_embeddings
    again = other.upsample("a red apple", references=Image.new("RGB", (64, 48), "red"), temperature=0, max_tokens=5)
    assert again == expected
    save_file({**tensors, "lm_head.weight": -embedding}, file)
    other = load(folder, device="cpu")
    assert other.upsample("a red apple", temperature=0, max_tokens=5) != expected


def test_published_text_encoders_write_with_what_the_catalogue_says() -> None:
    from headrace.checkpoints.shapes import count_parameters, language_model_shapes, vision_shapes

    mistral = count_parameters(language_model_shapes(catalog.MISTRAL_SMALL.config, norm=True, head=True))
    eyes = count_parameters(vision_shapes(VisionConfig()))
    assert (mistral + eyes) / 1e9 == pytest.approx(24.01, abs=0.005)
    assert eyes / 1e9 == pytest.approx(0.403 + 0.036, abs=0.002)


@torch.no_grad()
def test_the_check_answers_by_the_likelier_word(writing_model: Folder) -> None:
    pipe = load(writing_model("dev"), device="cpu")
    theirs, picture = reference_model(writing_model("dev")), Image.new("RGB", (40, 60), "blue")
    yes, no = (pipe.tokenizer.tokenizer.token_to_id(word) for word in ("yes", "no"))
    assert pipe.writer.eyes is not None
    questions = [
        (prompt_question(pipe.tokenizer, "red"), pipe.flags_prompt("red")),
        (picture_question(pipe.tokenizer, picture, pipe.writer.eyes.config), pipe.flags_picture(picture)),
    ]
    for question, answer in questions:
        logits = theirs(**shown(question, pipe)).logits[0, -1]
        assert answer == bool(logits[yes] > logits[no])
    with pytest.raises(RequestError, match="cannot see, so it checks nothing"):
        load(writing_model("klein"), device="cpu").flags_prompt("a cat")
    with pytest.raises(RequestError, match="too long to be checked"):
        pipe.flags_prompt("apple " * 3000)


@pytest.fixture
def command(
    writing_model: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    def run(name: str, *arguments: str, kind: str = "klein") -> tuple[int, str, str]:
        words = ["headrace", name, *arguments, "--model", str(writing_model(kind)), "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", words)
        monkeypatch.chdir(tmp_path)
        capfd.readouterr()
        return (main(), *capfd.readouterr())

    return run


def test_upsample_prints_the_prompt_and_generate_keeps_it(
    command: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.cli.upsampling.MAX_TOKENS_OUT", 5)
    monkeypatch.setattr(Pipeline, "upsample", lambda self, prompt, **_: f"{prompt}, in the rain")
    code, out, _ = command("upsample", "a cat", "--json")
    assert code == 0
    assert json.loads(out) == {"prompt": "a cat", "upsampled": "a cat, in the rain"}
    small = ("--size", "32x32", "--steps", "1", "-o", "a.png")
    code, _, err = command("generate", "a cat", "--upsample", *small)
    assert code == 0
    assert "prompt: a cat, in the rain" in err
    assert read_recipe(tmp_path / "a.png").prompt == "a cat, in the rain"
    editor = tmp_path / "editor.sh"
    editor.write_text('#!/bin/sh\nsed -i "s/cat/dog/" "$1"\ntouch -d "2 seconds" "$1"\n')
    editor.chmod(0o755)
    monkeypatch.setenv("EDITOR", str(editor))
    monkeypatch.delenv("VISUAL", raising=False)
    assert command("generate", "a cat", "--upsample", "--edit-prompt", *small)[0] == 0
    assert read_recipe(tmp_path / "a.png").prompt == "a dog, in the rain"


def test_the_check_ends_what_it_objects_to(
    command: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ("--size", "32x32", "--steps", "1", "-o", "a.png", "--check")
    assert "cannot see" in command("generate", "a cat", *small)[2]
    monkeypatch.setattr(Pipeline, "flags_prompt", lambda self, prompt: "mouse" in prompt)
    monkeypatch.setattr(Pipeline, "flags_picture", lambda self, picture: True)
    code, _, err = command("generate", "a famous mouse", *small, kind="dev")
    assert (code, "The prompt was not used" in err) == (2, True)
    code, _, err = command("generate", "a cat", *small, kind="dev")
    assert (code, "was not written" in err) == (2, True)
    assert not (tmp_path / "a.png").exists()
    monkeypatch.setattr(Pipeline, "flags_picture", lambda self, picture: False)
    assert command("generate", "a cat", *small, kind="dev")[0] == 0
    assert (tmp_path / "a.png").exists()
