"""Prompt to picture: the whole way as numbered steps in `Pipeline._stream`; arithmetic is in `text`, `flow`, `nn`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from os import PathLike, fspath
from pathlib import Path
from typing import Any, TypedDict, Unpack, overload

import torch
from PIL import Image
from torch import Tensor, nn

from headrace.checkpoints import Checkpoint, open_checkpoint
from headrace.checkpoints.lora_choice import ChosenLora, LoraChoice, choose_loras
from headrace.checkpoints.writer import Eyes, Writer, open_writer
from headrace.device import choose_device, choose_precision, choose_text_precision, dtype_of, multiplies_bf16
from headrace.editing import Edit, PictureSource, make_edit
from headrace.errors import Cancelled, RequestError
from headrace.flow.conventions import Convention, find_convention
from headrace.flow.denoise import Conditioning, Kept, batch_caches, denoise, guided_velocity, noised
from headrace.flow.denoise import Step as FlowStep
from headrace.flow.latents import (
    draw_noise,
    from_tokens,
    picture_positions,
    reference_positions,
    text_positions,
    to_tokens,
)
from headrace.flow.preview import PreviewMatrix, find_matrix, read_matrix
from headrace.flow.references import encode_picture, mask_to_tokens, tensor_to_image
from headrace.flow.schedule import schedule
from headrace.memory.budget import check_budget
from headrace.memory.claims import claimed
from headrace.memory.networks import Lent, Networks
from headrace.memory.plan import Budget, Model, Plan, Work, describe_checkpoint, plan_work
from headrace.memory.sizes import parse_bytes
from headrace.memory.writing import WritingPlan, WritingWork, plan_writing, writer_shapes
from headrace.nn.language_model import LanguageModel, PictureFeatures
from headrace.nn.transformer import KeyValue
from headrace.pictures import open_picture
from headrace.provenance.metadata import save_picture
from headrace.recipe import Recipe, check_prompt, check_reference_limit, check_seed, taken_steps
from headrace.request import CacheKey, References, Request, batches, make_requests
from headrace.text.conversation import Question, stop_tokens, token_id
from headrace.text.encode import encode_tokens
from headrace.text.messages import MAX_TOKENS_OUT, TEMPERATURE
from headrace.text.tokens import PromptTokenizer, load_tokenizer
from headrace.text.upsampling import picture_question, prompt_question, upsampling_question
from headrace.text.vision import prepare_picture, vision_size
from headrace.text.writing import Sampling, write_tokens

# The picture of a finished latent's tokens.
Look = Callable[[Tensor], Image.Image]


@dataclass(frozen=True)
class Picture:
    """A finished picture and the recipe that makes it again."""

    image: Image.Image
    recipe: Recipe

    def save(self, path: str | PathLike[str]) -> Path:
        """Write PNG, JPEG or WebP by the file's ending, with the recipe inside, and return the path.

        Raises RequestError for another ending or a folder that does not exist, HeadraceError when it cannot be written.
        """
        return save_picture(self.image, self.recipe, Path(path))


@dataclass(frozen=True)
class Step:
    """One step of a batch: `index` from 0 of `steps`, the time reached, what is being made, and a look at it."""

    index: int
    steps: int
    sigma: float
    recipes: tuple[Recipe, ...]
    preview: Callable[[int], Image.Image]
    """The picture of the given place in `recipes` as foreseen from here; costs as much as decoding the final one."""
    sketch: Callable[[int], Image.Image]
    """The same at an eighth of the size and at no cost, where the model has a preview matrix; else `preview` itself."""


class Options(TypedDict, total=False):
    """What a request may say beside its prompt, how many pictures and their seeds.

    references: pictures or paths, for all prompts, or one list for each. loras: files, folders or hub ids, each with
    its strength as "style.safetensors:0.8" or in a pair; what they do adds up. size: (width, height) or "WxH", by
    default the source's, or else the first reference's, or else the model's. steps, guidance: by default the model's.
    convention: "diffusers", "comfy" or "bfl". on_step: called after every step; when it returns False the call ends in
    Cancelled.

    reference_size: "auto", or "full" for up to 2024x2024 pixels of one that is alone. fit: how references come to
    multiples of 16, and the source to a size that is given: "crop", "pad" or "stretch".

    image: a source picture to be edited, for all prompts, of any size up to 4 megapixels, which the result has too.
    mask: of the source's size, white where it is to be made anew; all else stays as it is, every bit. outpaint: (left,
    top, right, bottom) or "L,T,R,B", pixels that are to be made around it. strength: which part of the steps is taken,
    from the source with noise: 0 (none) to 1 (all, from noise alone); needed where there is neither mask nor outpaint.
    feather: over so many pixels within the mask's edge the source fades out, by default 4.
    """

    references: References
    reference_size: str
    fit: str
    image: PictureSource | None
    mask: PictureSource | None
    outpaint: str | tuple[int, int, int, int] | None
    strength: float | None
    feather: int | None
    loras: Sequence[LoraChoice]
    size: str | tuple[int, int] | None
    steps: int | None
    guidance: float | None
    convention: str
    on_step: Callable[[Step], bool | None] | None


class Pipeline:
    """A model ready to make pictures.

    Its networks are loaded when first needed, and kept where all of them fit into memory.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        precision: str = "auto",
        device: str = "auto",
        reference_limit: int | None = None,
        text_precision: str | None = None,
        memory: str | int | None = None,
        host_memory: str | int | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.device = choose_device(device)
        self.precision = choose_precision(precision, checkpoint.precision, self.device)
        self.text_precision = choose_text_precision(
            text_precision or precision, checkpoint.text_precision, self.precision, self.device
        )
        self.dtype = dtype_of(self.precision, self.device)
        self.memory = None if memory is None else parse_bytes(memory)
        self.host_memory = None if host_memory is None else parse_bytes(host_memory)
        check_budget(self.memory, self.host_memory, self.device)
        self.reference_limit = check_reference_limit(
            checkpoint.reference_limit if reference_limit is None else reference_limit
        )
        self._networks = Networks(checkpoint, self.precision, self.text_precision, self.device)
        self._reference_caches: dict[CacheKey, list[KeyValue]] = {}

    @cached_property
    def tokenizer(self) -> PromptTokenizer:
        """Prompt to token ids."""
        return load_tokenizer(self.checkpoint.tokenizer_file, self.checkpoint.text)

    @cached_property
    def writer(self) -> Writer:
        """What the language model writes and sees with. Raises RequestError where the model's files do not hold it."""
        return open_writer(self.checkpoint)

    def upsample(
        self,
        prompt: str,
        *,
        references: PictureSource | Sequence[PictureSource] = (),
        temperature: float = TEMPERATURE,
        top_p: float = 1.0,
        seed: int = 0,
        max_tokens: int = MAX_TOKENS_OUT,
        on_token: Callable[[int], None] | None = None,
    ) -> str:
        """The prompt as the model's own language model rewrites it, looking at the references where it has eyes.

        temperature: 0 for the most likely words; else they are drawn with the seed, among those that together reach
        the probability top_p. max_tokens: of the rewritten prompt. on_token: called with how many there are.

        Raises RequestError where the model cannot write, or not within its memory.
        """
        limits = {"temperature": (temperature, 0, 2), "top_p": (top_p, 0, 1), "max_tokens": (max_tokens, 1, 4096)}
        for name, (value, low, high) in limits.items():
            if not low <= value <= high:
                raise RequestError(f"The {name} of {value} is not from {low} to {high}.")
        eyes = self.writer.eyes
        given = [references] if isinstance(references, str | PathLike | Image.Image) else references
        if len(given) > self.reference_limit:
            raise RequestError(f"{len(given)} references were given; this model takes at most {self.reference_limit}.")
        pictures = [open_picture(reference) for reference in given]
        if pictures and eyes is None:
            warnings.warn(
                f"{self.checkpoint.name}'s language model cannot see: it rewrites the prompt without the references.",
                stacklevel=2,
            )
        question = upsampling_question(
            self.tokenizer, check_prompt(prompt), pictures, None if eyes is None else eyes.config
        )
        sampling = Sampling(temperature, max_tokens, stop_tokens(self.tokenizer), top_p, check_seed(seed))
        written: list[int] = []
        with self._asked(question, max_tokens) as (lent, seen):
            for token in write_tokens(lent.network, question.token_ids, sampling, self.device, lent.blocks, seen):
                written.append(token)
                if on_token is not None:
                    on_token(len(written))
        text = str(self.tokenizer.tokenizer.decode(written)).strip()
        if not text:
            warnings.warn("The language model wrote nothing; the prompt stays as it was.", stacklevel=2)
            return prompt
        return check_prompt(text)

    def flags_prompt(self, prompt: str) -> bool:
        """Whether the language model answers yes to Black Forest Labs' question about a prompt: see docs/upsampling.md.

        Raises RequestError for models other than FLUX.2 [dev], whose language model the question was written for.
        """
        self._eyes()
        return self._answers_yes(prompt_question(self.tokenizer, check_prompt(prompt)))

    def flags_picture(self, picture: PictureSource) -> bool:
        """As `flags_prompt`, about a picture."""
        return self._answers_yes(picture_question(self.tokenizer, open_picture(picture), self._eyes().config))

    def _eyes(self) -> Eyes:
        if self.writer.eyes is None:
            raise RequestError(
                f"{self.checkpoint.name}'s language model cannot see, so it checks nothing; FLUX.2-dev's can."
            )
        return self.writer.eyes

    @torch.inference_mode()
    def _answers_yes(self, question: Question) -> bool:
        yes, no = (token_id(self.tokenizer, word) for word in ("yes", "no"))
        with self._asked(question, 1) as (lent, seen):
            ids = torch.tensor([question.token_ids], device=self.device)
            logits = lent.network(ids, layers=lent.blocks(), pictures=seen, last=True)[0, -1]
        return bool(logits[yes] > logits[no])

    @contextmanager
    def _asked(
        self, question: Question, new_tokens: int
    ) -> Iterator[tuple[Lent[LanguageModel, nn.Module], PictureFeatures | None]]:
        """The language model, for an answer of so many tokens, and what it sees of the question's pictures."""
        eyes = self.writer.eyes
        sizes = tuple(vision_size(*picture.size, eyes.config) for picture in question.pictures if eyes)
        work = WritingWork(len(question.token_ids), new_tokens, sizes)
        self._reference_caches.clear()
        with (
            torch.inference_mode(),
            claimed(self, partial(self._plan_writing, work)) as (plan, _),
            self._networks.within(plan, writer=self.writer),
        ):
            seen = None
            if question.pictures and eyes is not None:
                vision, dtype = self._networks.vision(), dtype_of(self.text_precision, self.device)
                prepared = (prepare_picture(picture, eyes.config) for picture in question.pictures)
                seen = question.features(
                    [vision(values.to(self.device, dtype)) for values in prepared], eyes.config, self.device
                )
                del vision
            yield self._networks.writer(), seen

    def _plan_writing(self, work: WritingWork, budget: Budget) -> tuple[WritingPlan, None]:
        model, fast = describe_checkpoint(self.checkpoint), multiplies_bf16(self.device)
        return plan_writing(model, self.writer, work, budget, self.precision, self.text_precision, fast), None

    @overload
    def generate(self, prompt: str, *, seed: int | None = None, **options: Unpack[Options]) -> Picture: ...

    @overload
    def generate(
        self, prompt: str, *, count: int, seed: int | Sequence[int] | None = None, **options: Unpack[Options]
    ) -> list[Picture]: ...

    @overload
    def generate(
        self,
        prompt: list[str],
        *,
        count: int | None = None,
        seed: int | Sequence[int] | None = None,
        **options: Unpack[Options],
    ) -> list[Picture]: ...

    def generate(
        self,
        prompt: str | list[str],
        *,
        count: int | None = None,
        seed: int | Sequence[int] | None = None,
        **options: Unpack[Options],
    ) -> Picture | list[Picture]:
        """The picture of a prompt, or a list of pictures where a `count` or a list of prompts is given.

        Pictures come prompt by prompt, each prompt's in the order of their seeds. See `stream` for the arguments and
        for what is raised.
        """
        made = dict(self._stream(prompt, count=1 if count is None else count, seed=seed, **options))
        pictures = [made[position] for position in sorted(made)]
        return pictures[0] if isinstance(prompt, str) and count is None else pictures

    def stream(
        self,
        prompt: str | list[str],
        *,
        count: int = 1,
        seed: int | Sequence[int] | None = None,
        **options: Unpack[Options],
    ) -> Iterator[Picture]:
        """The pictures, each as soon as it is done.

        prompt: one or several. count: pictures a prompt. seed: one, from which the pictures count up, or one for each
        picture; drawn when not given. The other arguments are those of `Options`.

        Raises RequestError for a request that cannot be, before anything is loaded, and Cancelled.
        """
        for _, picture in self._stream(prompt, count=count, seed=seed, **options):
            yield picture

    @torch.inference_mode()
    def _stream(
        self,
        prompt: str | list[str],
        *,
        count: int,
        seed: int | Sequence[int] | None,
        references: References = (),
        reference_size: str = "auto",
        fit: str = "crop",
        image: PictureSource | None = None,
        mask: PictureSource | None = None,
        outpaint: str | tuple[int, int, int, int] | None = None,
        strength: float | None = None,
        feather: int | None = None,
        loras: Sequence[LoraChoice] = (),
        size: str | tuple[int, int] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        convention: str = "diffusers",
        on_step: Callable[[Step], bool | None] | None = None,
    ) -> Iterator[tuple[int, Picture]]:
        """The way of a picture, in five steps; yields each one with its place among the call's pictures."""
        rules = find_convention(convention)

        # 1. The request, checked and written down as one recipe a picture.
        chosen = choose_loras(loras, self.checkpoint.transformer_config, self.checkpoint.name)
        edit = make_edit(image, mask, outpaint, strength, feather, fit, size, self._token_size)
        requests = make_requests(
            self.checkpoint,
            self.precision,
            self.text_precision,
            rules,
            self.reference_limit,
            prompt,
            count,
            seed,
            references=references,
            loras=[lora.record for lora in chosen],
            size=size,
            steps=steps,
            guidance=guidance,
            edit=edit,
            fit=fit,
            reference_size=reference_size,
        )

        with self._within_memory(requests, chosen) as groups:
            # 2. Every prompt, every reference and the source, each on its own, to what the transformer reads.
            contexts = self._encode_prompts(requests, rules)
            encoded = self._encode_references(requests)
            source = None if edit is None else encode_picture(edit.canvas, self._networks.autoencoder()).float()

            for batch in groups:
                recipe = batch[0].recipe
                columns, rows = (side // self._token_size for side in batch[0].canvas)

                # 3. Noise, from a generator for each picture; for an edit the source beneath it.
                shape = (self.checkpoint.transformer_config.in_channels, rows, columns)
                noise = to_tokens(torch.cat([draw_noise(r.recipe.seed, shape, rules, self._like) for r in batch]))
                times = schedule(rows * columns, recipe.steps, rules.rounds_times)
                latent, kept = noise, None
                if edit is not None and source is not None:
                    times = times[recipe.steps - taken_steps(recipe.steps, edit.record.strength) :]
                    latent, kept = noised(source, noise, times[0]), self._kept(edit, source, noise)

                # 4. Step by step along the flow, from noise to latent.
                conditioning = self._conditioning(batch, contexts, encoded)
                velocity = guided_velocity(self._forward, conditioning, self.dtype)
                decode = partial(self._decode, rows=rows, columns=columns, convention=rules, edit=edit)
                sketch = partial(self._sketch, decode=decode, rows=rows, columns=columns, recipe=recipe)
                for step in denoise(velocity, latent, times, rules, self.dtype, kept):
                    latent = step.latent
                    if on_step is not None and on_step(_public(step, batch, decode, sketch)) is False:
                        raise Cancelled(f"Cancelled after step {step.index + 1} of {step.steps}; no picture was made.")

                # 5. Latent to pixels.
                for index, request in enumerate(batch):
                    yield request.position, Picture(decode(latent[index : index + 1]), request.recipe)

    @property
    def held_bytes(self) -> int:
        """What networks and reference caches take now of the device's memory."""
        caches = (part for cache in list(self._reference_caches.values()) for layer in cache for part in layer)
        return self._networks.held_bytes + sum(part.nbytes for part in caches)

    def release(self) -> None:
        """Let go of the networks and reference caches that are kept for the next call, which then loads them anew."""
        self._networks.release()
        self._reference_caches.clear()

    @contextmanager
    def _within_memory(self, requests: list[Request], loras: tuple[ChosenLora, ...]) -> Iterator[list[list[Request]]]:
        """The call's batches, and networks as its plan has them. Raises RequestError where the call does not fit."""
        with claimed(self, partial(self._plan, requests, loras)) as (plan, groups):
            if plan.recoded_bytes:
                warnings.warn(
                    f"{self.checkpoint.name} is not stored in {self.precision}: {plan.recoded_bytes / 1e9:.3g} GB of "
                    "it are converted again in every step. Write it so once with headrace convert.",
                    stacklevel=1,  # the command shows warnings that come from here
                )
            wanted = {request.cache_key for request in requests} if plan.keeps_all else set()
            for key in self._reference_caches.keys() - wanted:
                del self._reference_caches[key]
            try:
                with self._networks.within(plan, loras):
                    yield groups
            finally:
                if not plan.keeps_all:
                    self._reference_caches.clear()

    def _plan(
        self, requests: list[Request], loras: tuple[ChosenLora, ...], budget: Budget
    ) -> tuple[Plan, list[list[Request]]]:
        """How the call fits into the budget, and its batches: on a CPU, where they change no bits, as small as must be.

        Where the call does not fit, the plan says so. What the language model wrote with is let go of where the call
        needs its room.
        """
        model = describe_checkpoint(self.checkpoint, loras)
        if self._networks.holds_writer:
            plan, groups = self._plan_model(replace(model, writer_shapes=writer_shapes(self.writer)), requests, budget)
            if plan.keeps_all:
                return plan, groups
            self._networks.release()
        return self._plan_model(model, requests, budget)

    def _plan_model(self, model: Model, requests: list[Request], budget: Budget) -> tuple[Plan, list[list[Request]]]:
        prompts = len({request.recipe.prompt for request in requests})
        limit = len(requests)
        while True:
            groups = list(batches(requests, self._token_size, limit))
            works = [
                Work(
                    *group[0].canvas,
                    tuple((record.width, record.height) for record in group[0].recipe.references),
                    len(group),
                    prompts,
                    group[0].guided,
                    group[0].edit is not None,
                )
                for group in groups
            ]
            plan = plan_work(model, works, budget, self.precision, self.text_precision, multiplies_bf16(self.device))
            if plan.fits or limit == 1 or self.device.type != "cpu":
                return plan, groups
            limit //= 2

    def _encode_prompts(self, requests: list[Request], convention: Convention) -> dict[str, Tensor]:
        """The embeddings of every prompt, and of the empty one for classifier-free guidance."""
        prompts = {request.recipe.prompt for request in requests}
        if requests[0].guided:
            prompts.add("")
        lent = self._networks.language_model()
        contexts = {}
        for prompt in sorted(prompts):
            tokens = self.tokenizer(prompt)
            states = encode_tokens(lent.network, tokens, self.checkpoint.text, convention, self.device, lent.blocks())
            contexts[prompt] = states.to(self.dtype)
        return contexts

    def _encode_references(self, requests: list[Request]) -> dict[str, Tensor]:
        """The tokens of every reference, by the hash of its pixels."""
        images = {
            record.sha256: image
            for request in requests
            for record, image in zip(request.recipe.references, request.references, strict=True)
        }
        return {key: encode_picture(image, self._networks.autoencoder()) for key, image in images.items()}

    def _conditioning(
        self, batch: list[Request], contexts: dict[str, Tensor], references: dict[str, Tensor]
    ) -> Conditioning:
        recipe = batch[0].recipe
        size = self._token_size
        columns, rows = (side // size for side in batch[0].canvas)
        context = torch.cat([contexts[request.recipe.prompt] for request in batch])
        conditioning = Conditioning(
            context=context,
            text_ids=text_positions(context.shape[1]).to(self.device),
            picture_ids=picture_positions(rows, columns).to(self.device),
            guidance=recipe.guidance,
            unconditional=contexts[""].expand_as(context) if batch[0].guided else None,
        )
        if not recipe.references:
            return conditioning
        ids = reference_positions([(r.height // size, r.width // size) for r in recipe.references]).to(self.device)
        tokens = {
            key: torch.cat([references[sha256] for sha256 in key], dim=1)
            for key in {request.reference_key for request in batch}
        }
        if recipe.variant != "klein-kv":
            joined = torch.cat([tokens[request.reference_key] for request in batch])
            return replace(conditioning, references=joined, reference_ids=ids)
        wanted = {request.cache_key: request.reference_key for request in batch}
        for key in self._reference_caches.keys() - wanted.keys():
            del self._reference_caches[key]
        for key in wanted.keys() - self._reference_caches.keys():
            self._reference_caches[key] = self._reference_cache(tokens[wanted[key]], ids)
        return replace(
            conditioning,
            reference_cache=batch_caches([self._reference_caches[request.cache_key] for request in batch]),
        )

    def _reference_cache(self, tokens: Tensor, ids: Tensor) -> list[KeyValue]:
        lent = self._networks.transformer()
        return lent.network.reference_cache(tokens, ids, lent.blocks())

    def _forward(self, *inputs: Tensor, **conditioning: Any) -> Tensor:
        # Asked for at every step, because a preview of the last one may have taken the transformer's place.
        lent = self._networks.transformer()
        return lent.network(*inputs, **conditioning, blocks=lent.blocks())

    def _kept(self, edit: Edit, source: Tensor, noise: Tensor) -> Kept | None:
        if edit.mask is None:
            return None
        return Kept(source, noise, mask_to_tokens(edit.mask, self._token_size).to(self.device))

    def _decode(
        self, tokens: Tensor, rows: int, columns: int, convention: Convention, edit: Edit | None
    ) -> Image.Image:
        decoded = self._networks.autoencoder().decode(from_tokens(tokens, rows, columns).to(self.dtype))
        made = tensor_to_image(decoded, convention.rounds_pixels)
        return made if edit is None else edit.finish(made)

    def _sketch(
        self,
        tokens: Tensor,
        decode: Look,
        rows: int,
        columns: int,
        recipe: Recipe,
    ) -> Image.Image:
        if self._preview_matrix is None:
            return decode(tokens)
        whole = self._preview_matrix.picture(from_tokens(tokens, rows, columns))
        scale = self._token_size // 2  # pixels along a side of a point of the raw latent
        return whole.crop((0, 0, -(-recipe.width // scale), -(-recipe.height // scale)))

    @cached_property
    def _preview_matrix(self) -> PreviewMatrix | None:
        path = find_matrix(self.checkpoint.autoencoder.files[0])
        return None if path is None else read_matrix(path, self.checkpoint.autoencoder_config.token_channels)

    @property
    def _token_size(self) -> int:
        return self.checkpoint.autoencoder_config.token_size

    @property
    def _like(self) -> Tensor:
        return torch.empty(0, dtype=self.dtype, device=self.device)


def _public(step: FlowStep, batch: list[Request], decode: Look, sketch: Look) -> Step:
    return Step(
        step.index,
        step.steps,
        step.sigma,
        tuple(request.recipe for request in batch),
        lambda which: decode(step.predicted[which : which + 1]),
        lambda which: sketch(step.predicted[which : which + 1]),
    )


def load(
    model: str | PathLike[str] = "sprite",
    *,
    precision: str = "auto",
    text_precision: str | None = None,
    device: str = "auto",
    variant: str | None = None,
    autoencoder: str | PathLike[str] | None = None,
    text_encoder: str | PathLike[str] | None = None,
    tokenizer: str | PathLike[str] | None = None,
    reference_limit: int | None = None,
    memory: str | int | None = None,
    host_memory: str | int | None = None,
) -> Pipeline:
    """A pipeline for a catalogue name, a folder, a file or a hub id; `headrace generate --help` explains the options.

    precision: "auto", "fp32", "bf16", "fp8", "int8" or "stored" (as the file has it), and text_precision that of the
    text encoder, if another. device: "auto", "cpu", "cuda" or "mps". variant: "base", "distilled" or "kv", where
    nothing else tells. autoencoder, text_encoder: for a single transformer file, or in place of the model's own;
    tokenizer: a folder with the text encoder's, where its file has none. reference_limit: how many references a prompt
    may have. memory: what a run may take at most, as "6GB" or in bytes: on a CPU of the process's resident set, on a
    GPU of its memory (default: what is free less a margin). host_memory: beside a GPU, how much of the host's memory
    may be pinned, for blocks that the GPU has no room for (default: half of what is free).

    Opens the model, loads nothing yet; raises RequestError where it cannot be used.
    """
    checkpoint = open_checkpoint(
        fspath(model),
        variant=variant,
        autoencoder=None if autoencoder is None else Path(autoencoder),
        text_encoder=None if text_encoder is None else Path(text_encoder),
        tokenizer=None if tokenizer is None else Path(tokenizer),
    )
    return Pipeline(checkpoint, precision, device, reference_limit, text_precision, memory, host_memory)
