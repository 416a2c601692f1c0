"""From what a user names (a catalogue name, folder, file or hub id) to a checkpoint that is known to be whole.

Opening reads headers and configurations only. What is returned has been checked: every tensor that will be loaded is
there, in the shape the configuration asks for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from headrace import catalog
from headrace.catalog import PublishedModel, TextSettings, Variant
from headrace.checkpoints import configs, hub
from headrace.checkpoints.components import (
    Component,
    autoencoder_component,
    counted,
    language_model_component,
    transformer_component,
)
from headrace.checkpoints.headers import PICKLE_SUFFIXES
from headrace.checkpoints.recognise import recognise
from headrace.checkpoints.scheduler import check_scheduler
from headrace.checkpoints.settings import Settings, read_settings
from headrace.checkpoints.text_encoders import TextEncoderFiles, find_text_encoder
from headrace.checkpoints.weights import expanded, read_weights
from headrace.errors import RequestError
from headrace.nn.config import AutoencoderConfig, LanguageModelConfig, TransformerConfig
from headrace.quant.formats import EIGHT_BITS

BUNDLED_MODELS = Path(__file__).parent.parent / "models"

KLEIN_KINDS: dict[str, Variant] = {"base": "klein-base", "distilled": "klein", "kv": "klein-kv"}
PRECISION_NAMES = {"F64": "fp64", "F32": "fp32", "F16": "fp16", "BF16": "bf16"}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
# How the names of Black Forest Labs' quantised files differ from those of the files they were made of.
PUBLISHED_QUANTISED = re.compile(r"-(?:fp8|nvfp4)(\.safetensors)$")
# A name that ends like this is a file that is not there, not a repository.
FILE_SUFFIXES = frozenset({".safetensors", ".gguf", ".json", *PICKLE_SUFFIXES})
PIPELINES = ("Flux2Pipeline", "Flux2KleinPipeline", "Flux2KleinInpaintPipeline", "Flux2KleinKVPipeline")


@dataclass(frozen=True)
class Checkpoint:
    """A whole model on disk, and what it was made to be used with.

    source: what the user named. licence: None where nobody said. notes: sentences the user should see once.
    default_size: width and height in pixels. guidance: without effect for the distilled variants. text_encoder: the
    language model's files as they were found, which may hold more than reads a prompt.
    """

    name: str
    source: str
    variant: Variant
    transformer_config: TransformerConfig
    autoencoder_config: AutoencoderConfig
    language_model_config: LanguageModelConfig
    text: TextSettings
    tokenizer_file: Path
    steps: int
    guidance: float
    default_size: tuple[int, int]
    reference_limit: int
    licence: str | None
    notes: tuple[str, ...]
    transformer: Component
    autoencoder: Component
    language_model: Component
    text_encoder: TextEncoderFiles | None = None

    @property
    def precision(self) -> str:
        """What the transformer's weights are stored in: see `stored_precision`."""
        return stored_precision(self.transformer)

    @property
    def text_precision(self) -> str:
        """What the text encoder's weights are stored in: see `stored_precision`."""
        return stored_precision(self.language_model)


def stored_precision(component: Component) -> str:
    """ "fp8" or "int8" where quantised layers are all that, "stored" where they are anything else; without any "fp32",
    "bf16", "fp16" or "fp64", or "mixed".
    """
    formats = {matrix.form.precision for matrix in component.matrices.values()}
    if formats:
        return formats.pop() if len(formats) == 1 and formats <= {*EIGHT_BITS} else "stored"
    dtypes = {entry.dtype for entry in component.tensors.values() if len(entry.shape) > 1}
    return PRECISION_NAMES.get(dtypes.pop(), "mixed") if len(dtypes) == 1 else "mixed"


def open_checkpoint(
    model: str | Path,
    *,
    variant: str | None = None,
    autoencoder: str | Path | None = None,
    text_encoder: str | Path | None = None,
    tokenizer: str | Path | None = None,
) -> Checkpoint:
    """Finds and checks a model; nothing is loaded.

    model: a name from the catalogue, a folder in diffusers' layout, a transformer file or folder, or a hub id. A
    catalogue name goes before a folder of the same name, which can be written ./name.
    variant: "base", "distilled" or "kv", for a klein transformer that does not say which it is.
    autoencoder: a file or folder, and text_encoder: a folder of Hugging Face's or a file, to be used instead of the
    model's own or with a transformer that comes alone. tokenizer: a folder with the text encoder's, for a file without.
    Raises RequestError, in one sentence, for everything that cannot be used.
    """
    if variant is not None and variant not in KLEIN_KINDS:
        raise RequestError(f"The variant {variant!r} is not known: use base, distilled or kv.")
    parts = _Parts(
        variant=None if variant is None else KLEIN_KINDS[variant],
        autoencoder=None if autoencoder is None else expanded(autoencoder),
        text_encoder=None if text_encoder is None else expanded(text_encoder),
        tokenizer=None if tokenizer is None else expanded(tokenizer),
    )
    try:
        return _open(model, parts)
    except OSError as error:
        raise RequestError(f"{error.filename or model} cannot be read: {error.strerror or error}.") from error


@dataclass(frozen=True)
class _Parts:
    """What the user named beside the model."""

    variant: Variant | None
    autoencoder: Path | None
    text_encoder: Path | None
    tokenizer: Path | None


def find_source(model: str | Path) -> Path:
    """The folder or file that a user names as `open_checkpoint` understands it, fetched where it is on the hub.

    Raises RequestError where there is no such thing.
    """
    if isinstance(model, str):
        published = _published_as(model)
        if published is not None:
            return hub.fetch(published.hub_id)[0]
        if model in catalog.BUNDLED:
            return BUNDLED_MODELS / model
    path = expanded(model)
    try:
        if path.exists():
            return path
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror or error}.") from error
    if _is_hub_id(model):
        return hub.fetch(str(model))[0]
    raise _unknown(model)


def _open(model: str | Path, parts: _Parts) -> Checkpoint:
    if isinstance(model, str):
        published = _published_as(model)
        if published is not None:
            return _from_hub(model, published.hub_id, published, parts)
        if model in catalog.BUNDLED:
            return _open_pipeline(BUNDLED_MODELS / model, model, None, parts)
    path = expanded(model)
    if (path / "model_index.json").is_file():
        return _open_pipeline(path, str(model), None, parts)
    if path.exists():
        return _open_transformer(path, str(model), parts)
    if _is_hub_id(model):
        return _from_hub(str(model), str(model), None, parts)
    raise _unknown(model)


def _published_as(model: str) -> PublishedModel | None:
    return next((entry for entry in catalog.PUBLISHED if model in (entry.name, entry.hub_id)), None)


def _is_hub_id(model: str | Path) -> bool:
    return isinstance(model, str) and HUB_ID.fullmatch(model) is not None and Path(model).suffix not in FILE_SUFFIXES


def _unknown(model: str | Path) -> RequestError:
    known = ", ".join((*catalog.BUNDLED, *(entry.name for entry in catalog.PUBLISHED)))
    return RequestError(f"{str(model)!r} is neither a file, nor a folder, nor a hub id, nor one of {known}.")


def _from_hub(source: str, hub_id: str, published: PublishedModel | None, parts: _Parts) -> Checkpoint:
    folder, fetched = hub.fetch(hub_id)
    checkpoint = _open_pipeline(folder, source, published, parts)
    if not fetched:
        return checkpoint
    if published is not None:
        note = published.licence.sentence(hub_id, hub.page(hub_id))
    else:
        note = f"{hub_id} is under the licence {checkpoint.licence or 'that its page names'} (see {hub.page(hub_id)})."
    return replace(checkpoint, notes=(note, *checkpoint.notes))


def _open_pipeline(folder: Path, source: str, published: PublishedModel | None, parts: _Parts) -> Checkpoint:
    """A folder in diffusers' layout."""
    index = configs.read_fields(folder / "model_index.json")
    kind = index.text("_class_name")
    if kind not in PIPELINES:
        raise RequestError(f"{folder} is saved from diffusers' {kind}, which is not a FLUX.2 pipeline.")
    check_scheduler(folder, index)
    variant = _pipeline_variant(folder, kind, index, published, parts.variant)
    settings = read_settings(folder, _pipeline_name(folder, source, published), published)
    transformer = transformer_component(read_weights(folder / "transformer"))
    autoencoder, text_encoder = parts.autoencoder or folder / "vae", parts.text_encoder or folder
    return _assembled(source, variant, settings, transformer, autoencoder, text_encoder, parts.tokenizer or folder)


def _open_transformer(path: Path, source: str, parts: _Parts) -> Checkpoint:
    """A transformer that comes alone, as a file in either layout or as a folder of diffusers'."""
    weights = read_weights(path)
    transformer, config = transformer_component(weights)
    autoencoder = parts.autoencoder
    if autoencoder is None and any(found.kind == "autoencoder" for found in recognise(weights.tensors)):
        autoencoder = path
    if autoencoder is None or parts.text_encoder is None:
        wanted = [
            option
            for option, given in (
                ("--autoencoder FILE|FOLDER", autoencoder),
                ("--text-encoder FOLDER|FILE", parts.text_encoder),
            )
            if given is None
        ]
        raise RequestError(f"{path} is a transformer alone: name what belongs to it with {' and '.join(wanted)}.")
    variant = _transformer_variant(path, config, parts.variant)
    name = path.stem if path.is_file() else path.resolve().name
    own = (transformer, config)
    return _assembled(source, variant, Settings(name, None), own, autoencoder, parts.text_encoder, parts.tokenizer)


def _pipeline_name(folder: Path, source: str, published: PublishedModel | None) -> str:
    """The catalogue's name, else the hub id, else the folder's."""
    if published is not None:
        return published.name
    return source if HUB_ID.fullmatch(source) and not Path(source).is_dir() else folder.resolve().name


def _pipeline_variant(
    folder: Path, kind: str, index: configs.Fields, published: PublishedModel | None, chosen: Variant | None
) -> Variant:
    if kind == "Flux2Pipeline":
        if chosen is not None:
            raise RequestError(f"{folder} is FLUX.2-dev's kind, which has no variants: leave --variant out.")
        return "dev"
    if chosen is not None:
        return chosen
    if published is not None:
        return published.variant
    if kind == "Flux2KleinKVPipeline":
        return "klein-kv"
    if index.values.get("is_distilled") is None:
        raise RequestError(f"{index.source} does not say is_distilled: name the --variant (base, distilled or kv).")
    return "klein" if index.flag("is_distilled", False) else "klein-base"


def _transformer_variant(path: Path, config: TransformerConfig, chosen: Variant | None) -> Variant:
    if config.guidance_embed:
        if chosen is not None:
            raise RequestError(
                f"{path} embeds its guidance as FLUX.2-dev does, which has no variants: leave --variant out."
            )
        return "dev"
    if chosen is not None:
        return chosen
    name = PUBLISHED_QUANTISED.sub(r"\1", path.name.lower())
    for published in catalog.PUBLISHED:
        if name == published.single_file:
            return published.variant
    raise RequestError(
        f"{path} is a klein transformer, and its tensors do not tell which: name the --variant (base, distilled or kv)."
    )


def _assembled(
    source: str,
    variant: Variant,
    settings: Settings,
    transformer: tuple[Component, TransformerConfig],
    autoencoder_path: Path,
    text_encoder_path: Path,
    tokenizer: Path | None,
) -> Checkpoint:
    """tokenizer: a folder whose tokenizer is used where none comes with the text encoder."""
    transformer_part, transformer_config = transformer
    autoencoder, autoencoder_config = _autoencoder(autoencoder_path)
    if autoencoder_config.token_channels != transformer_config.in_channels:
        raise RequestError(
            f"{autoencoder.source} makes tokens of {autoencoder_config.token_channels} channels, but the transformer "
            f"{transformer_part.source} reads {transformer_config.in_channels}: name the right --autoencoder."
        )
    found = find_text_encoder(text_encoder_path, tokenizer)
    language_config = found.config
    text = replace(
        found.text, layers=settings.text_layers or found.text.layers, length=settings.text_length or found.text.length
    )
    _check_text_encoder(found.source, language_config, text, transformer_part, transformer_config)
    language_model = language_model_component(found.weights, language_config, max(text.layers))
    steps, guidance = catalog.DEFAULTS[variant]
    parts = {part.source: part for part in (transformer_part, autoencoder, language_model)}.values()
    strangers = tuple(
        f"{part.source} holds {counted(part.strangers)} of no network of FLUX.2, which were not used."
        for part in parts
        if part.strangers
    )
    return Checkpoint(
        name=settings.name,
        source=source,
        variant=variant,
        transformer_config=transformer_config,
        autoencoder_config=autoencoder_config,
        language_model_config=language_config,
        text=text,
        tokenizer_file=found.tokenizer,
        steps=settings.steps or steps,
        guidance=settings.guidance or guidance,
        default_size=settings.default_size,
        reference_limit=settings.reference_limit,
        licence=settings.licence or _licence(transformer_config, variant),
        notes=(*settings.notes, *strangers, *_notes(transformer_part, autoencoder, language_model)),
        transformer=transformer_part,
        autoencoder=autoencoder,
        language_model=language_model,
        text_encoder=found,
    )


def _notes(*components: Component) -> tuple[str, ...]:
    return tuple(note for component in components for note in component.notes)


def _autoencoder(path: Path) -> tuple[Component, AutoencoderConfig]:
    """path: a file, diffusers' vae folder, or a whole folder in diffusers' layout."""
    return autoencoder_component(read_weights(path / "vae" if (path / "vae").is_dir() else path))


def _check_text_encoder(
    folder: Path,
    config: LanguageModelConfig,
    text: TextSettings,
    transformer: Component,
    transformer_config: TransformerConfig,
) -> None:
    if max(text.layers) > config.num_layers:
        raise RequestError(
            f"{folder} has {config.num_layers} layers, but the hidden states after layer {max(text.layers)} are needed."
        )
    width = len(text.layers) * config.hidden_size
    if width == transformer_config.context_in_dim:
        return
    wanted = next(
        (
            encoder.name
            for encoder in catalog.TEXT_ENCODERS
            if len(encoder.settings.layers) * encoder.config.hidden_size == transformer_config.context_in_dim
        ),
        f"one of width {transformer_config.context_in_dim / len(text.layers):g}",
    )
    raise RequestError(
        f"{folder} is the wrong text encoder: its {len(text.layers)} x {config.hidden_size} = {width} values a token "
        f"do not fit the {transformer_config.context_in_dim} that the transformer {transformer.source} reads; "
        f"the right one is {wanted}."
    )


def _licence(config: TransformerConfig, variant: Variant) -> str | None:
    """The licence of the published model with these shapes: weights of the same shapes derive from it."""
    for published in catalog.PUBLISHED:
        if published.transformer == config and published.variant == variant:
            return published.licence.name
    return None
