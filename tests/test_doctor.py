"""`headrace doctor`: a machine that is right passes, and everything that can be off shows up as that, and only that."""

from __future__ import annotations

import json
import math
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from conftest import Run
from headrace.bench import rates
from headrace.checkpoints import Checkpoint, open_checkpoint
from headrace.cli.main import main
from headrace.doctor import examine, links, machine, model, precisions, streaming
from headrace.doctor.finding import Check, Finding, Subject, judged, measured, told
from headrace.doctor.picture import EXPECTED, picture_findings
from headrace.doctor.precisions import AutoencoderChecks, BlockChecks
from headrace.errors import HeadraceError
from headrace.nn.transformer import Transformer
from headrace.provenance.metadata import read_recipe, save_picture
from headrace.quant import linear as quantised_linear
from headrace.quant.linear import Fp8Linear, Int8Linear, multiplies_fp8

CPU = torch.device("cpu")
PRECISIONS = ("fp32", "bf16", "fp8", "int8")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The self-test's model, narrower."""
    with pytest.MonkeyPatch.context() as patch:
        small = replace(model.TRANSFORMER, hidden_size=256, num_heads=2, depth_single_blocks=1)
        patch.setattr(model, "TRANSFORMER", small)
        return model.write_model(tmp_path_factory.mktemp("doctor") / "model")


@pytest.fixture
def blocks(checkpoint: Checkpoint) -> Callable[[str], list[Finding]]:
    """`blocks(precision)` is what the check of the blocks finds on the CPU."""
    return lambda precision: list(BlockChecks(lambda: checkpoint).run(precision, CPU))


@pytest.fixture
def fresh_capability() -> Iterator[None]:
    """What is known of a GPU's abilities is forgotten before and after."""
    multiplies_fp8.cache_clear()
    yield
    multiplies_fp8.cache_clear()


def oks(findings: list[Finding]) -> list[bool]:
    return [finding.ok for finding in findings]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_blocks_that_are_right(blocks: Callable[[str], list[Finding]], precision: str) -> None:
    error, again, alone = blocks(precision)
    assert oks([error, again, alone]) == [True] * 3
    assert error.unit == "dB"
    assert error.bound is not None
    assert error.figure is not None
    assert error.bound < error.figure < 200
    assert (again.figure, alone.figure) == (0, 0)
    assert {finding.subject.device for finding in (error, again, alone)} == {"cpu"}


@pytest.mark.parametrize("layer", [Fp8Linear, Int8Linear])
def test_a_wrong_kernel_is_found_in_its_precision_alone(
    layer: type[torch.nn.Module], blocks: Callable[[str], list[Finding]], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = layer.forward
    monkeypatch.setattr(layer, "forward", lambda self, x: 1.1 * right(self, x))
    wrong = "fp8" if layer is Fp8Linear else "int8"
    for precision in ("bf16", "fp8", "int8"):
        error, again, alone = blocks(precision)
        assert oks([error, again, alone]) == [precision != wrong, True, True]
        assert ("Do not use this precision" in error.remark) is (precision == wrong)


def test_values_that_are_no_numbers_are_off(
    blocks: Callable[[str], list[Finding]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Int8Linear, "forward", lambda self, x: x.new_full((*x.shape[:-1], self.out_features), math.nan))
    assert oks(blocks("int8")) == [False] * 3


def test_a_result_that_changes_is_off(blocks: Callable[[str], list[Finding]], monkeypatch: pytest.MonkeyPatch) -> None:
    right = Transformer.forward

    def unsteady(self: Transformer, *inputs: Tensor) -> Tensor:
        made = right(self, *inputs)
        return made + 1e-3 * torch.rand_like(made) if made.dtype == torch.bfloat16 else made

    monkeypatch.setattr(Transformer, "forward", unsteady)
    error, again, _ = blocks("bf16")
    assert oks([error, again]) == [True, False]
    assert "seeds" in again.remark


def test_a_result_that_depends_on_the_batch_is_off(
    blocks: Callable[[str], list[Finding]], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Transformer.forward
    monkeypatch.setattr(Transformer, "forward", lambda self, img, *rest: right(self, img, *rest) + 1e-6 * len(img))
    error, again, alone = blocks("fp32")
    assert oks([error, again, alone]) == [True, True, False]
    assert "one by one" in alone.remark


def test_fp8_products_are_judged_as_such(
    blocks: Callable[[str], list[Finding]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU has the product that GPUs use, so that what is expected of them can be tried here."""
    weight_only = blocks("fp8")[0]
    for module in (precisions, quantised_linear):
        monkeypatch.setattr(module, "multiplies_fp8", lambda device: True)
    products = blocks("fp8")[0]
    assert (weight_only.subject.precision, products.subject.precision) == ("fp8 weight-only", "fp8 W8A8")
    assert products.ok
    assert products.bound is not None
    assert weight_only.bound is not None
    assert products.bound < weight_only.bound
    assert products.figure is not None
    assert weight_only.figure is not None
    assert products.figure < weight_only.figure


@pytest.mark.parametrize(
    ("capability", "named"),
    [((7, 5), "fp8 weight-only"), ((8, 6), "fp8 weight-only"), ((8, 9), "fp8 W8A8"), ((12, 0), "fp8 W8A8")],
)
def test_a_gpus_capability_decides_how_fp8_is_multiplied(
    capability: tuple[int, int], named: str, monkeypatch: pytest.MonkeyPatch, fresh_capability: None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert precisions.label("fp8", torch.device("cuda", 0)) == named
    assert precisions.label("int8", torch.device("cuda", 0)) == "int8"


@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_a_precision_that_a_device_does_not_have_is_said_to_be_so(precision: str) -> None:
    def no_model() -> Checkpoint:
        raise AssertionError("nothing has to be loaded to know this")

    mps = torch.device("mps")
    found = [*BlockChecks(no_model).run(precision, mps), *picture_findings(precision, mps)]
    assert oks(found) == [True, True]
    assert all("cannot hold weights" in finding.remark for finding in found)
    assert not list(links.product_findings(precision, mps))


def test_the_autoencoder(monkeypatch: pytest.MonkeyPatch) -> None:
    sprite = partial(open_checkpoint, "sprite")
    for precision in ("fp32", "bf16"):
        found = list(AutoencoderChecks(sprite).run(precision, CPU))
        assert oks(found) == [True, True]
        assert [finding.subject.what for finding in found] == ["encoder", "decoder"]
    right = torch.nn.functional.silu
    monkeypatch.setattr("headrace.nn.autoencoder.F.silu", lambda x: right(x) * (1.05 if x.dtype.itemsize == 2 else 1))
    assert oks(list(AutoencoderChecks(sprite).run("bf16", CPU))) == [False, False]


def test_the_stored_picture_is_that_of_the_weights_beside_it() -> None:
    """After training sprite anew: `headrace generate` as docs/training-sprite.md says."""
    (finding,) = picture_findings("fp32", CPU)
    assert finding.ok
    recipe = read_recipe(EXPECTED)
    assert (recipe.precision, recipe.model) == ("fp32", "sprite")


def test_another_picture_than_the_stored_one_is_off(tmp_path: Path) -> None:
    recipe = read_recipe(EXPECTED)
    inverted = Image.open(EXPECTED).convert("RGB").point(lambda value: 255 - value)
    stored = save_picture(inverted, recipe, tmp_path / "other.png")
    assert oks(list(picture_findings("fp32", CPU, stored))) == [False]
    stored = save_picture(inverted, replace(recipe, model_hash="sha256:other"), tmp_path / "old.png")
    with pytest.raises(HeadraceError, match="weights are not those"):
        list(picture_findings("fp32", CPU, stored))


def test_streaming(tmp_path: Path) -> None:
    """In its real size: only a model of some 100 MB is larger than what a resident set varies by."""
    opened = model.write_model(tmp_path / "model")
    plan = streaming.smallest_plan(opened, CPU, "bf16")
    assert not plan.keeps_all
    assert len(plan.resident_blocks) < 2
    same, threads, peak = streaming.streaming_findings(lambda: opened, CPU)
    assert oks([same, threads]) == [True, True]
    assert "read in every step" in same.remark
    if sys.platform == "linux":
        assert peak.figure is not None
        assert peak.ok


def test_streaming_that_is_wrong(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()

    def picture(_: Checkpoint, device: torch.device, precision: str, memory: int | None) -> Any:
        if memory is not None:
            threading.Thread(target=done.wait, daemon=True).start()
        return np.zeros((4, 4, 3)) if memory is None else np.eye(4)[..., None] + np.zeros(3)

    monkeypatch.setattr(streaming, "_picture", picture)
    monkeypatch.setattr(streaming, "_reset_peak", lambda device: True)
    monkeypatch.setattr(streaming, "_peak", lambda device: 2**50)
    try:
        found = list(streaming.streaming_findings(lambda: checkpoint, CPU))
    finally:
        done.set()
    assert [(finding.figure, finding.ok) for finding in found] == [(12, False), (1, False), (2**50, False)]
    monkeypatch.setattr(streaming, "_reset_peak", lambda device: False)
    assert list(streaming.streaming_findings(lambda: checkpoint, CPU))[2].figure is None
    (told_so,) = streaming.streaming_findings(lambda: checkpoint, torch.device("mps"))
    assert told_so.ok
    assert "no memory budget" in told_so.remark


def test_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "COPIED_BYTES", 2**20)
    monkeypatch.setattr(rates, "WIDTH", 256)
    assert rates.disk_rate(tmp_path, 16 * 2**20) > 0
    assert not list(tmp_path.iterdir())
    assert rates.memory_rate() > 0
    for precision in PRECISIONS:
        (finding,) = links.product_findings(precision, CPU)
        assert finding.figure is not None
        assert finding.figure > 0
        assert "the plan takes" in finding.remark
    with pytest.raises(HeadraceError, match="cannot be written to"):
        rates.disk_rate(tmp_path / "none")


def test_facts(tmp_path: Path) -> None:
    facts = {finding.subject.what: finding for finding in machine.machine_facts(tmp_path)}
    assert torch.__version__ in facts["software"].remark
    assert facts["memory"].figure is not None
    assert facts["free memory"].figure is not None
    assert 0 < facts["free memory"].figure <= facts["memory"].figure
    assert machine.devices()[0] == CPU


@pytest.mark.parametrize(
    ("capability", "bf16", "abilities"),
    [((7, 5), False, "bf16 emulated, fp8 weight-only"), ((8, 9), True, "bf16 multiplied, fp8 W8A8")],
)
def test_facts_of_a_gpu(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fresh_capability: None,
    capability: tuple[int, int],
    bf16: bool,
    abilities: str,
) -> None:
    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5\nGCC version: 12.2\n")
    monkeypatch.setattr(machine, "NVIDIA_DRIVER", driver)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for name, value in {
        "get_device_capability": capability,
        "mem_get_info": (10**9, 8 * 10**9),
        "get_device_properties": SimpleNamespace(name="A GPU"),
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    processor, memory, free = machine.gpu_facts(torch.device("cuda", 1))
    expected = f"A GPU, CUDA 13.0, driver 550.54.15, compute capability {capability[0]}.{capability[1]}, {abilities}"
    assert (processor.subject.device, processor.remark) == ("cuda:1", expected)
    assert (memory.figure, free.figure) == (8e9, 1e9)
    monkeypatch.setattr(machine, "NVIDIA_DRIVER", tmp_path / "none")
    assert "driver" not in next(machine.gpu_facts(torch.device("cuda", 1))).remark


@contextmanager
def no_checks(_: Path | None, findings: list[Finding], failing: bool) -> Iterator[list[Check]]:
    def fail() -> Iterator[Finding]:
        yield measured(Subject("half"), 1, "bytes")
        raise ZeroDivisionError("division by zero\nand more")

    yield [Check(Subject("all"), lambda: findings), *([Check(Subject("half", "cpu"), fail)] if failing else [])]


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """`doctor(findings, *arguments, failing=…)` is the command where the checks find these."""

    def run(findings: list[Finding], *arguments: str, failing: bool = False) -> tuple[int, str]:
        monkeypatch.setattr(examine, "checks", partial(no_checks, findings=findings, failing=failing))
        monkeypatch.setattr(sys, "argv", ["headrace", "doctor", *arguments])
        return main(), capsys.readouterr().out

    return run


RIGHT = [
    told(Subject("software"), "torch"),
    judged(Subject("blocks", "cpu", "fp32"), math.inf, "dB", 90, "remedy"),
    measured(Subject("products", "cpu", "bf16"), 0.8e12, "FLOP/s"),
    judged(Subject("peak", "cpu"), 5e8, "bytes", 6e8, "remedy", "remark"),
]


def test_a_report(doctor: Callable[..., tuple[int, str]]) -> None:
    code, text = doctor(RIGHT)
    rows = [line.split() for line in text.splitlines()]
    assert code == 0
    assert rows[0] == ["check", "device", "precision", "figure", "bound", "remark"]
    assert rows[2] == ["blocks", "cpu", "fp32", "equal", "90.0", "dB", "ok"]
    assert rows[3] == ["products", "cpu", "bf16", "0.8", "TFLOP/s"]
    assert rows[4] == ["peak", "cpu", "500", "MB", "600", "MB", "ok", "remark"]
    assert rows[-1] == ["All", "is", "right."]


def test_a_report_as_json(doctor: Callable[..., tuple[int, str]]) -> None:
    wrong = judged(Subject("blocks", "cpu", "bf16"), math.nan, "dB", 40, "Do something.")
    code, text = doctor([*RIGHT, wrong], "--json")
    assert code == 1
    rows = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))["findings"]
    assert [row["ok"] for row in rows] == [True] * 4 + [False]
    assert rows[1]["figure"] is None
    assert rows[4] == {
        "what": "blocks",
        "device": "cpu",
        "precision": "bf16",
        "ok": False,
        "figure": None,
        "unit": "dB",
        "bound": 40,
        "remark": "Do something.",
    }


def test_what_goes_wrong_in_a_check_is_a_row(doctor: Callable[..., tuple[int, str]]) -> None:
    code, text = doctor(RIGHT, failing=True)
    *_, kept, failed, _, summary = text.splitlines()
    assert code == 1
    assert kept.split() == ["half", "1", "B"]
    assert failed.split()[:3] == ["half", "cpu", "OFF"]
    assert failed.endswith("The check itself failed (ZeroDivisionError: division by zero).")
    assert summary == "1 of 6 are off."


def test_a_folder_that_takes_no_files() -> None:
    """Rows that need it are off in one sentence each, and the others are as they were."""
    if not Path("/proc").is_dir():
        pytest.skip("there is no folder here that takes no files from anybody")
    with examine.checks(Path("/proc")) as checks:
        wanted = [check for check in checks if check.subject.what in ("machine", "reading from disk", "streaming")]
        wanted += [check for check in checks if check.subject == Subject("blocks", "cpu", "fp32")]
        found = {finding.subject.what: finding for check in wanted for finding in check.findings()}
    assert found["software"].ok
    for what in ("blocks", "streaming", "reading from disk"):
        assert not found[what].ok
        assert found[what].remark.startswith("/proc cannot be written to")


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def write(folder: Path) -> Checkpoint:
        folder.mkdir()
        written.append(folder)
        raise HeadraceError("full")

    monkeypatch.setattr(examine, "write_model", write)
    with examine.checks(tmp_path) as checks:
        assert len({check.subject for check in checks}) == len(checks)
        streamed = next(check for check in checks if check.subject.what == "streaming")
        assert [finding.remark for finding in streamed.findings()] == ["full"]
        assert written[0].is_dir()
    assert not list(tmp_path.iterdir())


def test_the_folder_that_is_not_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examine, "gettempdir", lambda: "/temporary")
    monkeypatch.setattr(examine, "HF_HUB_CACHE", str(tmp_path))
    assert examine.default_folder() == tmp_path
    monkeypatch.setattr(examine, "HF_HUB_CACHE", str(tmp_path / "none"))
    assert examine.default_folder() == Path("/temporary")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--models", "none"], "none is not a folder"),
        (["--models", ".", "--cases", "."], "do not go together"),
        (["--cases", "."], "holds no cases"),
    ],
)
def test_requests_that_cannot_be(
    arguments: list[str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["headrace", "doctor", *arguments])
    assert main() == 2
    out, error = capsys.readouterr()
    assert (out, len(error.splitlines())) == ("", 1)
    assert sentence in error


@pytest.mark.slow
def test_this_machine(headrace: Run, tmp_path: Path) -> None:
    result = headrace("doctor", "--models", tmp_path)
    assert (result.returncode, result.stderr) == (0, ""), result.stdout
    assert "OFF" not in result.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.gpu
def test_the_gpus_of_this_machine(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    with examine.checks(tmp_path) as checks:
        of_gpus = [check for check in checks if check.subject.device.startswith("cuda")]
        found = [finding for check in of_gpus for finding in check.findings()]
    assert {"blocks", "decoder", "streaming", "products", "from pinned memory"} <= {f.subject.what for f in found}
    assert not [finding for finding in found if not finding.ok]
