"""What a run needs and how it fits into a budget, worked out before anything is loaded. Without torch.

The networks run one after another: language model, encoder (for references), transformer, decoder. When all of them
fit into the budget together with the largest intermediate results, they are kept. Otherwise each is gone before the
next one comes, the language model is read layer by layer, and as many of the transformer's blocks stay as there is
room for: double-stream blocks first, whose arithmetic hides the least of their reading. The others are read through a
ring of two slots; where a GPU computes, as many of them as there is room for are kept in pinned memory of the host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from headrace import catalog
from headrace.catalog import TextSettings, Variant
from headrace.checkpoints import Checkpoint, open_checkpoint
from headrace.checkpoints.headers import Shape
from headrace.checkpoints.lora_choice import ChosenLora, LoraChoice, choose_loras
from headrace.checkpoints.shapes import autoencoder_shapes, language_model_shapes, transformer_shapes
from headrace.errors import RequestError
from headrace.memory.activations import (
    FLOAT_BYTES,
    decoder_activations,
    encoder_activations,
    text_activations,
    transformer_activations,
)
from headrace.memory.process import available_bytes
from headrace.memory.rates import CPU_RATES, GPU_RATES, Rates
from headrace.memory.sizes import NetworkSizes, network_sizes, parse_bytes
from headrace.nn.config import AutoencoderConfig, LanguageModelConfig, TransformerConfig
from headrace.quant.formats import Bits, Format, block_linears, choose_formats
from headrace.recipe import check_size, parse_size

SLOTS = 2
# Python, torch and Headrace imported (measured with torch 2.13 on Linux), and what the libraries take on first use.
PROCESS_BYTES = 250_000_000
LIBRARY_BYTES = 80_000_000
# Of the latter, what stays with the process at most when a run has ended.
LIBRARY_KEPT_BYTES = 60_000_000
# What a GPU's context and libraries take, and the part of free memory that is left to others where no budget is named.
CONTEXT_BYTES = 600_000_000
MARGIN = 0.1
REFERENCE_SIZE = (1024, 1024)
# Of a reference's pixel: in the picture as it was opened and as it is used, each of which Pillow gives four bytes.
PIXEL_BYTES = 8

Bound = Literal["arithmetic", "conversion", "host link", "disk"]

PRECISIONS: Mapping[str, tuple[int, Bits | None]] = {
    "fp32": (4, None),
    "bf16": (2, None),
    "fp8": (2, "fp8"),
    "int8": (2, "int8"),
    "stored": (2, "stored"),
}


@dataclass(frozen=True)
class Model:
    """What a plan has to know of a model. formats: the layers its files hold in eight bits, by component.

    precision: what the transformer is run in where none is named. text_codes: the precision of the text encoder's
    files, where their weights are codes. lora_values: how many values LoRAs keep in memory beside the transformer.
    writer_shapes: of all that the language model writes with, where it is kept with that.
    """

    name: str
    variant: Variant
    transformer: TransformerConfig
    autoencoder: AutoencoderConfig
    language_model: LanguageModelConfig
    text: TextSettings
    default_size: tuple[int, int]
    reference_limit: int
    precision: str
    text_codes: str | None
    formats: Mapping[str, Mapping[str, Format]]
    lora_values: int = 0
    writer_shapes: Mapping[str, Shape] | None = None


@dataclass(frozen=True)
class Work:
    """One batch: pictures of width x height pixels, each with references of these sizes.

    prompts: of the whole call. guided: with classifier-free guidance. edited: from a source of the pictures' size.
    """

    width: int
    height: int
    references: tuple[tuple[int, int], ...] = ()
    batch: int = 1
    prompts: int = 1
    guided: bool = False
    edited: bool = False

    @property
    def encoded(self) -> tuple[tuple[int, int], ...]:
        """The sizes of what goes through the encoder."""
        return (*self.references, *([(self.width, self.height)] if self.edited else []))


@dataclass(frozen=True)
class Budget:
    """memory: bytes that must not be exceeded. process: what is taken before anything is loaded.

    host: pinned memory to stream from, where a GPU computes; None where the CPU does. libraries: what they will take
    in addition, on a CPU.
    """

    memory: int
    process: int
    host: int | None = None
    libraries: int = LIBRARY_BYTES


@dataclass(frozen=True)
class ComponentPlan:
    """Bytes of one network; those that are streamed are read from disk, or from pinned memory, as they are needed."""

    bytes: int
    resident_bytes: int
    streamed_bytes: int


@dataclass(frozen=True)
class Plan:
    """A run within a budget. activation_bytes: of the transformer alone; peak_bytes: of everything, process included.

    resident_blocks: the transformer's blocks that stay, by their place among those that run; pinned_blocks: of the
    others, those that are kept in pinned memory of the host, of which host_bytes are taken. keeps_all: every network
    is kept from call to call. recoded_bytes: of what is streamed, what the files hold in another precision, so that it
    is converted in every step. bound: what takes the longest in a step.
    """

    model: str
    precision: str
    text_precision: str
    width: int
    height: int
    references: int
    memory_bytes: int
    components: Mapping[str, ComponentPlan]
    resident_bytes: int
    streamed_bytes: int
    activation_bytes: int
    peak_bytes: int
    minimum_bytes: int
    fits: bool
    bound: Bound
    seconds_per_step: float
    keeps_all: bool
    recoded_bytes: int
    resident_blocks: tuple[int, ...]
    pinned_blocks: tuple[int, ...]
    host_bytes: int
    host_memory_bytes: int | None

    @property
    def work(self) -> str:
        """What is planned, to begin a sentence with."""
        return f"{self.model} in {self.precision} at {self.width}x{self.height}"

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return asdict(self)


def plan(
    model: str | Path,
    *,
    memory: str | int | None = None,
    host_memory: str | int | None = None,
    size: str | tuple[int, int] | None = None,
    references: int = 0,
    precision: str = "auto",
    text_precision: str | None = None,
    loras: Sequence[LoraChoice] = (),
    variant: str | None = None,
    autoencoder: str | Path | None = None,
    text_encoder: str | Path | None = None,
    tokenizer: str | Path | None = None,
) -> Plan:
    """What one picture with so many references of 1 MP needs. The published models need no files for it.

    model, variant, autoencoder, text_encoder, tokenizer, precision, text_precision: as for `headrace.load`. memory: the
    budget (default: what is free less a tenth). host_memory: where given, a GPU computes: `memory` is its memory, and
    blocks are streamed from so much of the host's. loras: as for `Pipeline.generate`. Raises RequestError for a model,
    size, number of references, precision or amount that cannot be.
    """
    known = describe(model, variant=variant, autoencoder=autoencoder, text_encoder=text_encoder, tokenizer=tokenizer)
    known = replace(known, lora_values=lora_values(choose_loras(loras, known.transformer, known.name)))
    wanted = known.default_size if size is None else size
    width, height = parse_size(wanted) if isinstance(wanted, str) else check_size(*wanted)
    if not 0 <= references <= known.reference_limit:
        raise RequestError(f"{references} references cannot be; {known.name} takes up to {known.reference_limit}.")
    work = Work(width, height, (REFERENCE_SIZE,) * references, guided=known.variant == "klein-base")
    gpu = host_memory is not None
    process = CONTEXT_BYTES if gpu else process_bytes(work)
    budget = Budget(
        memory=free_budget(process) if memory is None else parse_bytes(memory),
        process=process,
        host=None if host_memory is None else parse_bytes(host_memory),
    )
    chosen = known.precision if precision == "auto" else precision
    text_chosen = text_precision or precision
    if text_chosen == "auto":
        text_chosen = known.text_codes or ("fp32" if chosen == "fp32" else "bf16")
    return plan_work(known, [work], budget, chosen, text_chosen)


def process_bytes(work: Work) -> int:
    """What a process that does nothing but this work on a CPU takes when it begins."""
    return PROCESS_BYTES + PIXEL_BYTES * sum(width * height for width, height in work.references)


def free_budget(process: int) -> int:
    """The budget where none is named: what this process has, and nine tenths of what it could have in addition."""
    return process + int(available_bytes() * (1 - MARGIN))


def describe(model: str | Path, **parts: Any) -> Model:
    """A published model from the catalogue, without its files; any other is opened, as is one with parts of its own.

    parts: further arguments of `open_checkpoint`.
    """
    for published in catalog.PUBLISHED:
        if model in (published.name, published.hub_id) and not any(parts.values()):
            return Model(
                published.name,
                published.variant,
                published.transformer,
                published.autoencoder,
                published.text_encoder.config,
                published.text_encoder.settings,
                published.default_size,
                published.reference_limit,
                "bf16",
                None,
                {},
            )
    return describe_checkpoint(open_checkpoint(model, **parts))


def describe_checkpoint(checkpoint: Checkpoint, loras: Sequence[ChosenLora] = ()) -> Model:
    """What a plan has to know of an opened checkpoint, and of LoRAs for it."""
    stored, text = checkpoint.precision, checkpoint.text_precision
    return Model(
        checkpoint.name,
        checkpoint.variant,
        checkpoint.transformer_config,
        checkpoint.autoencoder_config,
        checkpoint.language_model_config,
        checkpoint.text,
        checkpoint.default_size,
        checkpoint.reference_limit,
        stored if stored in PRECISIONS else "bf16",
        text if text in PRECISIONS and PRECISIONS[text][1] is not None else None,
        {"transformer": checkpoint.transformer.formats, "text_encoder": checkpoint.language_model.formats},
        lora_values(loras),
    )


def lora_values(loras: Sequence[ChosenLora]) -> int:
    """How many values LoRAs keep in memory beside the transformer."""
    return sum(patch.values for chosen in loras for patch in chosen.patches)


def plan_work(
    model: Model,
    works: Sequence[Work],
    budget: Budget,
    precision: str,
    text_precision: str | None = None,
    multiplies_bf16: bool = True,
) -> Plan:
    """One plan for all batches of a call. text_precision: of the language model, where it is not the transformer's.

    multiplies_bf16: whether the device does; else what stands beside eight-bit layers is in fp32.

    Where the budget is too small, `fits` is false and the figures are those of the smallest that works.
    """
    text_precision = text_precision or precision
    for name in (precision, text_precision):
        if name not in PRECISIONS:
            raise RequestError(f"There is no precision {name!r}; choose auto, {', '.join(PRECISIONS)}.")
    value_bytes, bits = stored_values(precision, multiplies_bf16)
    text_value_bytes, text_bits = stored_values(text_precision, multiplies_bf16)
    layers = max(model.text.layers)
    norm = layers == model.language_model.num_layers
    reading_shapes = language_model_shapes(model.language_model, layers=layers, norm=norm)
    text_shapes = model.writer_shapes or reading_shapes
    stored = model.formats
    transformer = stored_sizes(transformer_shapes(model.transformer), stored.get("transformer", {}), value_bytes, bits)
    transformer = replace(transformer, rest=transformer.rest + model.lora_values * value_bytes)
    text = stored_sizes(text_shapes, stored.get("text_encoder", {}), text_value_bytes, text_bits)
    autoencoder = stored_sizes(autoencoder_shapes(model.autoencoder), stored.get("autoencoder", {}), value_bytes, None)

    on_cpu = budget.host is None
    activations = max(denoising_bytes(model, work, value_bytes, on_cpu) for work in works)
    held = max(_held_bytes(model, work, value_bytes) for work in works)
    reading = text_activations(model.language_model, model.text.length, len(model.text.layers), text_value_bytes)
    encoding = max(
        (encoder_activations(model.autoencoder, *size, value_bytes) for work in works for size in work.encoded),
        default=0,
    )
    decoding = max(decoder_activations(model.autoencoder, work.width, work.height, value_bytes) for work in works)

    process = budget.process + (budget.libraries if on_cpu else 0) + held
    everything = transformer.total + text.total + autoencoder.total
    kept = process + everything + max(activations, reading, encoding, decoding)
    others = process + max(text.rest + _ring_bytes(text.blocks) + reading, autoencoder.total + max(encoding, decoding))
    denoising = process + transformer.rest + activations
    order = residence_order(transformer.blocks, model.transformer.depth)
    minimum = max(others, denoising + min(needs(transformer.blocks, order)))

    keeps_all = kept <= budget.memory
    if keeps_all:
        resident, peak = order, kept
    else:
        resident = residents(transformer.blocks, order, budget.memory - denoising)
        peak = max(others, denoising + blocks_bytes(transformer.blocks, resident))
    passing = [index for index in order if index not in resident]
    streamed = sum(transformer.blocks[index] for index in passing)
    pinned: tuple[int, ...] = ()
    host_bytes = 0
    if budget.host is not None and not keeps_all:
        pinned, host_bytes = pin(transformer.blocks, passing, text.blocks, budget.host)
    components = {
        "transformer": _component(transformer.total, streamed),
        "text_encoder": _component(text.total, 0 if keeps_all else text.total - text.rest),
        "autoencoder": _component(autoencoder.total, 0),
    }
    work = max(works, key=lambda work: step_operations(model, work))
    from_disk = streamed - sum(transformer.blocks[index] for index in pinned)
    recoded = from_disk if bits is not None and _recodes(model, bits) else 0
    rates = CPU_RATES if on_cpu else GPU_RATES
    bound, seconds = _step_time(model, work, precision, streamed, from_disk, recoded, rates)
    return Plan(
        model=model.name,
        precision=precision,
        text_precision=text_precision,
        width=work.width,
        height=work.height,
        references=len(work.references),
        memory_bytes=budget.memory,
        components=components,
        resident_bytes=sum(component.resident_bytes for component in components.values()),
        streamed_bytes=sum(component.streamed_bytes for component in components.values()),
        activation_bytes=activations,
        peak_bytes=peak,
        minimum_bytes=min(minimum, kept),
        fits=min(minimum, kept) <= budget.memory and host_bytes <= (budget.host or 0),
        bound=bound,
        seconds_per_step=seconds,
        keeps_all=keeps_all,
        recoded_bytes=recoded,
        resident_blocks=tuple(sorted(resident)),
        pinned_blocks=tuple(sorted(pinned)),
        host_bytes=host_bytes,
        host_memory_bytes=budget.host,
    )


def stored_values(precision: str, multiplies_bf16: bool) -> tuple[int, Bits | None]:
    value_bytes, bits = PRECISIONS[precision]
    return (value_bytes if bits is None or multiplies_bf16 else PRECISIONS["fp32"][0]), bits


def residence_order(blocks: Sequence[int], doubles: int) -> tuple[int, ...]:
    """The places of all blocks, the one that gains most by staying first.

    Double-stream blocks come first; single-stream ones, all alike, are taken so that those left over lie far apart,
    which gives the reader the time of the others in between.
    """
    singles = range(doubles, len(blocks))
    # Places in bit-reversed order: every prefix of it is spread as evenly as halving allows.
    width = max(1, (len(singles) - 1).bit_length())
    spread = sorted(singles, key=lambda index: int(f"{index - doubles:0{width}b}"[::-1], 2))
    return (*range(doubles), *spread)


def denoising_bytes(model: Model, work: Work, value_bytes: int, one_by_one: bool) -> int:
    """The transformer's intermediate results in one step, or while its reference cache is filled."""
    config, branches = model.transformer, work.batch * (2 if work.guided else 1)
    text, picture, references = _tokens(model, work)
    if not _caches(model, work):
        return transformer_activations(config, branches, text, picture + references, value_bytes, 0, one_by_one)
    step = transformer_activations(config, branches, text, picture, value_bytes, references, one_by_one)
    return max(step, transformer_activations(config, 1, 0, references, value_bytes))


def _caches(model: Model, work: Work) -> bool:
    """Whether the references' keys and values are kept in every block instead of being computed in every step."""
    return model.variant == "klein-kv" and bool(work.references)


def _tokens(model: Model, work: Work) -> tuple[int, int, int]:
    """Of one picture: text, the picture itself, all its references."""
    area = model.autoencoder.token_size**2
    references = sum(width * height for width, height in work.references) // area
    return model.text.length, work.width * work.height // area, references


def _held_bytes(model: Model, work: Work, value_bytes: int) -> int:
    """What is kept beside a forward: embeddings of all prompts and of a batch, its latents, and its references."""
    copies = work.prompts + work.batch * (3 if work.guided else 1) + (1 if work.guided else 0)
    contexts = copies * model.text.length * model.transformer.context_in_dim * value_bytes
    _, picture, references = _tokens(model, work)
    token = model.transformer.in_channels
    # In float32 the noise, the latent before and after a step, its velocity and the finished one as foreseen.
    latents = work.batch * picture * token * (5 * FLOAT_BYTES + 2 * value_bytes)
    encoded = (1 + 2 * work.batch) * references * token * value_bytes
    if work.edited:  # the source; what is kept of it, with noise, and its parts while they are joined
        latents += (1 + 4 * work.batch) * picture * token * FLOAT_BYTES
    if not _caches(model, work):
        return contexts + latents + encoded
    blocks = model.transformer.depth + model.transformer.depth_single_blocks
    # Of every picture of a batch its own, and all of them joined.
    caches = 1 if work.batch == 1 else 2 * work.batch
    return contexts + latents + encoded + caches * 2 * references * model.transformer.hidden_size * value_bytes * blocks


def stored_sizes(
    shapes: Mapping[str, Shape], stored: Mapping[str, Format], value_bytes: int, bits: Bits | None
) -> NetworkSizes:
    """What a network takes. stored: the formats of its layers that are codes already; bits: of those that become it."""
    return network_sizes(shapes, choose_formats(bits, block_linears(shapes), stored), value_bytes)


def _component(total: int, streamed: int) -> ComponentPlan:
    return ComponentPlan(total, total - streamed, streamed)


def _ring_bytes(streamed: Sequence[int]) -> int:
    """The slots through which blocks of these sizes are streamed."""
    return min(SLOTS, len(streamed)) * max(streamed, default=0)


def blocks_bytes(blocks: Sequence[int], resident: Sequence[int]) -> int:
    """The bytes of blocks that stay and of the slots for the others."""
    stay = set(resident)
    return sum(blocks[i] for i in stay) + _ring_bytes([size for i, size in enumerate(blocks) if i not in stay])


def needs(blocks: Sequence[int], order: Sequence[int]) -> list[int]:
    """`blocks_bytes` where none stays, where the first in this order does, and so on."""
    return [blocks_bytes(blocks, order[:count]) for count in range(len(order) + 1)]


def residents(blocks: Sequence[int], order: Sequence[int], room: int) -> tuple[int, ...]:
    """As many blocks in this order as fit into `room` bytes with the others' slots; else as many as need the least."""
    each = needs(blocks, order)
    fitting = [count for count, need in enumerate(each) if need <= room]
    return tuple(order[: max(fitting) if fitting else each.index(min(each))])


def pin(blocks: Sequence[int], passing: Sequence[int], layers: Sequence[int], room: int) -> tuple[tuple[int, ...], int]:
    """As many of the passing blocks as `room` bytes of pinned memory can keep, and the bytes that are taken.

    The rest, and the language model's layers before, pass through a slab beside each slot. Where even these do not fit,
    what needs the least.
    """

    def need(count: int) -> int:
        rest = [_pinned(blocks[index]) for index in passing[count:]]
        return max(sum(_pinned(blocks[index]) for index in passing[:count]) + _ring_bytes(rest), reading)

    reading = _ring_bytes([_pinned(size) for size in layers])
    needs = [need(count) for count in range(len(passing) + 1)]
    fitting = [count for count, least in enumerate(needs) if least <= room]
    count = max(fitting) if fitting else needs.index(min(needs))
    return tuple(passing[:count]), needs[count]


def _pinned(size: int) -> int:
    """What torch takes to pin so many bytes: the next power of two."""
    return 1 << (size - 1).bit_length() if size else 0


def _recodes(model: Model, bits: Bits) -> bool:
    """Whether there are files, and they hold the transformer's blocks in other bits than these."""
    stored = model.formats.get("transformer")
    return bits != "stored" and stored is not None and all(form.precision != bits for form in stored.values())


def _step_time(
    model: Model, work: Work, precision: str, streamed: int, from_disk: int, recoded: int, rates: Rates
) -> tuple[Bound, float]:
    """What bounds a step of a batch, and its seconds."""
    arithmetic = step_operations(model, work) / rates.products[precision]
    # What is recoded are two bytes for each of the one that it becomes.
    seconds: dict[Bound, float] = {"arithmetic": arithmetic, "disk": (from_disk + recoded) / rates.disk}
    bits = PRECISIONS[precision][1]
    if recoded and bits is not None:  # on the processor's cores, which on a CPU compute as well
        seconds["conversion"] = recoded / rates.conversion[bits] + (0 if rates.link else arithmetic)
    if rates.link is not None:
        seconds["host link"] = streamed / rates.link
    bound = max(seconds, key=lambda term: seconds[term])
    return bound, seconds[bound]


def step_operations(model: Model, work: Work) -> int:
    """Additions and multiplications in the matrix products of one step of a batch."""
    text, picture, references = _tokens(model, work)
    cached = references if _caches(model, work) else 0
    own = picture + references - cached
    config = model.transformer
    size, mlp = config.hidden_size, config.mlp_size
    per_token = 4 * size * size + 3 * size * mlp
    blocks = config.depth + config.depth_single_blocks
    linear = 2 * per_token * (text + own) * blocks
    outside = 2 * size * (text * config.context_in_dim + 2 * own * config.in_channels)
    attention = 4 * size * (text + own) * (text + own + cached) * blocks
    return work.batch * (2 if work.guided else 1) * (linear + outside + attention)
