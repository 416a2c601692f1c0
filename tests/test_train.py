"""Training: a run that is cut off and resumed ends in the same bits, and what is exported loads and draws."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import nn

from headrace.errors import RequestError
from headrace.evals.suites import SUITES
from headrace.flow.latents import to_tokens
from headrace.nn.config import AutoencoderConfig, LanguageModelConfig, TransformerConfig
from headrace.text.templates import TEMPLATES
from headrace.text.tokens import PromptTokenizer
from headrace.train import autoencoder, distill, optimizers, run, transformer
from headrace.train import scores as training_scores
from headrace.train.export import ModelSettings, export
from headrace.train.loop import Loop
from headrace.train.samples import encode_samples
from headrace.train.tokenizer import learn_tokenizer
from headrace.world.draw import picture
from headrace.world.tasks import TASKS, sample

LOOP = Loop(
    steps=4, batch=4, warm_up=2, decay=2, muon_rate=1e-3, adam_rate=1e-3, average_decay=0.9, save_every=2, log_every=1
)
AUTOENCODER = autoencoder.AutoencoderTraining(
    network=AutoencoderConfig(channels=(8, 8, 8, 8), layers_per_block=1, norm_groups=1),
    loop=LOOP,
    noise=0.1,
    edge_weight=0.5,
)
TRANSFORMER = transformer.TransformerTraining(
    transformer=TransformerConfig(
        context_in_dim=48,
        hidden_size=32,
        num_heads=2,
        depth=1,
        depth_single_blocks=1,
        axes_dim=(4, 4, 4, 4),
        guidance_embed=False,
    ),
    language_model=LanguageModelConfig(
        vocab_size=400,
        hidden_size=16,
        intermediate_size=24,
        num_layers=3,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        rope_theta=1e4,
        rms_norm_eps=1e-6,
        qk_norm=True,
        tie_word_embeddings=True,
    ),
    text=transformer.TextSettings("qwen", (1, 2, 3), "right", 96),
    sizes=((64, 64), (96, 64)),
    main_size_steps=1,
    loop=LOOP,
    time_mean=0.8,
    time_deviation=1.2,
    empty_share=0.1,
    preview_steps=1,
    score_every=100,
    score_pictures=1,
)


class CutOff(Exception):  # noqa: N818
    """Stands for whatever ends a training early."""


def cut_off_at(step: int) -> Callable[[str], None]:
    def report(line: str) -> None:
        if line.startswith(f"step {step}:"):
            raise CutOff

    return report


@pytest.fixture(scope="module")
def small_autoencoder() -> autoencoder.Autoencoder:
    torch.manual_seed(0)
    return autoencoder.initial(AUTOENCODER.network).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def prompt_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PromptTokenizer:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformer, "SAMPLES_FOR_TOKENIZER", 1000)
        return transformer.prepare_tokenizer(tmp_path_factory.mktemp("tokenizer"), TRANSFORMER)


def test_autoencoder_resumes_to_the_same_bits(tmp_path: Path) -> None:
    autoencoder.train(AUTOENCODER, tmp_path / "whole", report=lambda _: None)
    with pytest.raises(CutOff):
        autoencoder.train(AUTOENCODER, tmp_path / "cut", report=cut_off_at(3))
    autoencoder.train(AUTOENCODER, tmp_path / "cut", resume=True, report=lambda _: None)
    assert_same_state(tmp_path / "whole", tmp_path / "cut")


def test_a_network_is_scored_while_it_learns(
    tmp_path: Path, small_autoencoder: autoencoder.Autoencoder, prompt_tokenizer: PromptTokenizer
) -> None:
    """What a run that was cut off had written after its last state is written again, not twice."""
    config = replace(TRANSFORMER, sizes=((128, 128),), score_every=2)
    samples = [encode_samples(small_autoencoder, 12, (128, 128), tmp_path / "samples")]
    few = [replace(suite, measures=suite.measures[:1]) for suite in SUITES if suite.name in ("text", "edit")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_scores, "SUITES", tuple(few))
        with pytest.raises(CutOff):
            transformer.train(config, tmp_path, samples, prompt_tokenizer, small_autoencoder, report=cut_off_at(3))
        run.append_log(tmp_path, 4, {"text": 0.5, "edit": 0.5}, run.SCORES)
        transformer.train(config, tmp_path, samples, prompt_tokenizer, small_autoencoder, resume=True)
    with (tmp_path / "scores.csv").open(newline="") as log:
        rows = list(csv.DictReader(log))
    names = [f"{suite.name} {suite.measures[0].name}" for suite in few]
    assert [list(row) for row in rows] == [["step", *names]] * 2
    assert [row["step"] for row in rows] == ["2", "4"]
    assert all(0 <= float(row[name]) <= 1 for row in rows for name in names)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "log.csv", "pictures", "samples", "scores.csv", "state.safetensors",
    ]  # fmt: skip


def test_transformer_resumes_to_the_same_bits(
    tmp_path: Path, small_autoencoder: autoencoder.Autoencoder, prompt_tokenizer: PromptTokenizer
) -> None:
    samples = [encode_samples(small_autoencoder, 24, size, tmp_path / f"{size}") for size in TRANSFORMER.sizes]

    def train(name: str, report: Callable[[str], None], *, resume: bool = False) -> None:
        transformer.train(
            TRANSFORMER, tmp_path / name, samples, prompt_tokenizer, small_autoencoder, resume=resume, report=report
        )

    train("whole", lambda _: None)
    with pytest.raises(CutOff):
        train("cut", cut_off_at(3))
    train("cut", lambda _: None, resume=True)
    assert_same_state(tmp_path / "whole", tmp_path / "cut")
    assert (tmp_path / "whole" / "pictures" / "000004.png").is_file()


DISTILLATION = distill.Distillation(steps=2, teacher_steps=2, guidance=2.0, loop=LOOP)


def test_distillation_resumes_to_the_same_bits_and_leaves_the_text_encoder(
    tmp_path: Path, small_autoencoder: autoencoder.Autoencoder, prompt_tokenizer: PromptTokenizer
) -> None:
    samples = [encode_samples(small_autoencoder, 24, size, tmp_path / f"{size}") for size in TRANSFORMER.sizes]
    torch.manual_seed(3)
    teacher = transformer.Network(TRANSFORMER)
    nn.init.normal_(teacher.transformer.final_layer.linear.weight, std=0.02)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}

    def train(name: str, report: Callable[[str], None], *, resume: bool = False) -> None:
        config = distill.DistilledTraining(TRANSFORMER, DISTILLATION)
        distill.distil(
            config, tmp_path / name, teacher, samples, prompt_tokenizer, small_autoencoder, resume=resume, report=report
        )

    train("whole", lambda _: None)
    with pytest.raises(CutOff):
        train("cut", cut_off_at(3))
    train("cut", lambda _: None, resume=True)
    assert_same_state(tmp_path / "whole", tmp_path / "cut")
    student = transformer.trained(TRANSFORMER, tmp_path / "whole").state_dict()
    for name, tensor in before.items():
        assert torch.equal(teacher.state_dict()[name], tensor), name
        assert torch.equal(student[name], tensor) or name.startswith("transformer."), name
    changed = "transformer.final_layer.linear.weight"
    assert not torch.equal(student[changed], before[changed])
    step, config = run.described(tmp_path / "whole", distill.DistilledTraining)
    assert (step, config.distillation, config.base.text) == (4, DISTILLATION, TRANSFORMER.text)


def test_a_student_that_is_its_teacher_has_nothing_to_learn(
    small_autoencoder: autoencoder.Autoencoder, prompt_tokenizer: PromptTokenizer, tmp_path: Path
) -> None:
    samples = encode_samples(small_autoencoder, 24, (64, 64), tmp_path)
    torch.manual_seed(3)
    teacher = transformer.Network(TRANSFORMER).requires_grad_(False)
    nn.init.normal_(teacher.transformer.final_layer.linear.weight, std=0.2)
    kind = transformer.kind_of(TRANSFORMER, samples, 0)
    batch = transformer.draw_batch(TRANSFORMER, samples, kind, prompt_tokenizer, 0)
    nothing = distill.no_prompt(teacher, prompt_tokenizer)

    def loss(config: distill.Distillation) -> float:
        where = transformer.positions_of(samples, kind)
        return distill.loss(teacher, teacher, config, nothing, batch, where).item()

    same = loss(replace(DISTILLATION, teacher_steps=1, guidance=1.0))
    assert same < 1e-4 < loss(DISTILLATION)


def test_euler_follows_a_constant_velocity_to_the_end() -> None:
    start, end = torch.tensor([1.0, 0.5]), torch.tensor([0.5, 0.0])
    reached = distill.solve(lambda latent, times: torch.ones_like(latent), torch.zeros(2, 3, 4), start, end, 5)
    torch.testing.assert_close(reached, torch.full((2, 3, 4), -0.5))


def assert_same_state(first: Path, second: Path) -> None:
    expected, found = load_file(first / run.STATE), load_file(second / run.STATE)
    assert expected.keys() == found.keys()
    assert any(name.startswith("optimizer.") for name in expected)
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def test_resuming_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="without --resume"):
        autoencoder.train(AUTOENCODER, tmp_path, resume=True)


def test_resuming_with_other_settings_is_refused(tmp_path: Path) -> None:
    autoencoder.train(AUTOENCODER, tmp_path, report=lambda _: None)
    with pytest.raises(RequestError, match=r"noise 0\.1, not 0\.2"):
        autoencoder.train(replace(AUTOENCODER, noise=0.2), tmp_path, resume=True)


def test_a_finished_run_can_be_made_longer(tmp_path: Path) -> None:
    autoencoder.train(AUTOENCODER, tmp_path, report=lambda _: None)
    longer = replace(AUTOENCODER, loop=replace(LOOP, steps=5))
    lines: list[str] = []
    autoencoder.train(longer, tmp_path, resume=True, report=lines.append)
    assert [line.split(":")[0] for line in lines] == ["step 5"]


def test_log_has_a_row_a_step_also_when_steps_are_taken_again(tmp_path: Path) -> None:
    with pytest.raises(CutOff):
        autoencoder.train(AUTOENCODER, tmp_path, report=cut_off_at(3))
    autoencoder.train(AUTOENCODER, tmp_path, resume=True, report=lambda _: None)
    rows = list(csv.DictReader((tmp_path / run.LOG).read_text(encoding="utf-8").splitlines()))
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4]
    assert all(float(row["loss"]) > 0 for row in rows)


def test_finished_autoencoder_gives_unit_variance_and_is_bf16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoencoder, "STATISTICS_PICTURES", 128)
    autoencoder.train(AUTOENCODER, tmp_path, report=lambda _: None)
    model = autoencoder.finish(tmp_path)
    assert all(t.dtype == torch.int64 or torch.equal(t, t.bfloat16().float()) for t in model.state_dict().values())
    images = autoencoder.batch(AUTOENCODER, 2)
    deviation = model.encode(images).std(dim=(0, 2, 3)).mean()
    assert 0.5 < deviation < 1.5


def test_batches_are_functions_of_the_step() -> None:
    assert torch.equal(autoencoder.batch(AUTOENCODER, 7), autoencoder.batch(AUTOENCODER, 7))
    assert not torch.equal(autoencoder.batch(AUTOENCODER, 6), autoencoder.batch(AUTOENCODER, 7))


def test_muon_takes_matrices_and_adam_the_rest() -> None:
    model = nn.ModuleDict({"inner": nn.Conv2d(4, 8, 3), "embed_tokens": nn.Embedding(5, 4)})
    built = optimizers.build(model.named_parameters(), ("embed_tokens",))
    assert [tuple(matrix.shape) for matrix in built.matrices] == [(8, 36)]
    assert built.matrices[0].data_ptr() == model["inner"].weight.data_ptr()
    assert sum(len(group["params"]) for group in built.adam.param_groups) == 2


@pytest.mark.parametrize(
    "prompt", ["", "a rocket on a purple background", "#2E86DE", "un chat à gauche, 猫", "a\nuser\nb"]
)
def test_tokenizer_gives_back_any_text(prompt_tokenizer: PromptTokenizer, prompt: str) -> None:
    tokenizer = prompt_tokenizer.tokenizer
    assert tokenizer.decode(tokenizer.encode(prompt).ids, skip_special_tokens=False) == prompt


def test_template_costs_ten_tokens(prompt_tokenizer: PromptTokenizer) -> None:
    template = TEMPLATES["qwen"]
    assert len(prompt_tokenizer.tokenizer.encode(template.prefix + template.suffix).ids) == 10


def test_capitals_and_digits_are_tokens_of_their_own() -> None:
    tokenizer = learn_tokenizer(["AB12 AB12 ab"] * 100, 400)
    assert tokenizer.encode("AB12").tokens == ["A", "B", "1", "2"]


def test_export_loads_and_draws(
    tmp_path: Path, small_autoencoder: autoencoder.Autoencoder, prompt_tokenizer: PromptTokenizer
) -> None:
    import headrace

    torch.manual_seed(1)
    network = transformer.Network(TRANSFORMER)
    nn.init.normal_(network.transformer.final_layer.linear.weight, std=0.02)
    settings = ModelSettings("small", 3, guidance=1.0, distilled=True, default_size=(32, 48))
    export(tmp_path, network, small_autoencoder, prompt_tokenizer.tokenizer, TRANSFORMER.text, settings)
    made = headrace.load(tmp_path, precision="fp32").generate("a cat", seed=1)
    assert made.image.size == (32, 48)
    assert made.recipe.steps == 3
    assert json.loads((tmp_path / "headrace.json").read_text(encoding="utf-8"))["text_length"] == 96


def test_command_trains_and_resumes(tmp_path: Path) -> None:
    from headrace.cli.train import train

    result = CliRunner().invoke(train, ["autoencoder", str(tmp_path), "--resume"])
    assert isinstance(result.exception, RequestError)


def test_samples_come_back_as_they_were_encoded(tmp_path: Path, small_autoencoder: autoencoder.Autoencoder) -> None:
    samples = encode_samples(small_autoencoder, 40, (64, 64), tmp_path)
    assert sorted(seed for seeds in samples.seeds.values() for seed in seeds) == list(range(40))
    kind = max(samples.seeds, key=lambda kind: kind.references)
    seed = int(samples.seeds[kind][-1])
    asked = sample(seed, 64, 64)
    assert (asked.task, len(asked.references)) == kind
    target, references = samples.latents(kind, np.array([len(samples.seeds[kind]) - 1]))
    parts = references[0].split([height * width for height, width in samples.reference_grids(kind)])
    for scene, tokens in zip((asked.target, *asked.references), (target[0], *parts), strict=True):
        expected = to_tokens(small_autoencoder.encode(run.to_tensor([picture(scene)])))[0]
        torch.testing.assert_close(tokens, expected, atol=0.1, rtol=0.05)
    again = encode_samples(small_autoencoder, 40, (64, 64), tmp_path)
    assert np.array_equal(again.tokens, samples.tokens)


def test_every_kind_of_sample_is_learned_from(
    tmp_path: Path, small_autoencoder: autoencoder.Autoencoder, prompt_tokenizer: PromptTokenizer
) -> None:
    samples = encode_samples(small_autoencoder, 40, (64, 64), tmp_path)
    drawn = set()
    for step in range(60):
        kind = transformer.kind_of(TRANSFORMER, samples, step)
        if kind in drawn:
            continue
        drawn.add(kind)
        batch = transformer.draw_batch(TRANSFORMER, samples, kind, prompt_tokenizer, step)
        tokens = sum(height * width for height, width in samples.reference_grids(kind))
        assert batch.references.shape == (LOOP.batch, tokens, 128)
        assert torch.isfinite(batch.latent).all()
    assert {kind.task for kind in drawn} == set(TASKS)
