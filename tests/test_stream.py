"""Blocks read from disk as they are needed: the same values and pictures, few slots, clear errors, nothing left."""

from __future__ import annotations

import itertools
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import headrace
import headrace.pipeline
from headrace.checkpoints import Checkpoint, build_network, load_transformer, open_checkpoint
from headrace.checkpoints.load import StoredTensors
from headrace.errors import Cancelled, HeadraceError, RequestError
from headrace.memory.files import PassingFile, file_states
from headrace.memory.plan import SLOTS, plan_work
from headrace.memory.stream import Stream
from headrace.nn.transformer import Block, Transformer
from headrace.quant.formats import Bits
from reference_pipelines import save_pipeline
from simulated_gpu import SimulatedGpu

DOUBLES, SINGLES = 2, 3
BLOCKS = DOUBLES + SINGLES


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            sizes = {"depth": DOUBLES, "single_depth": SINGLES, "channels": (8, 8, 16, 16), "norm_groups": 4}
            save_pipeline(made[kind], kind, max_shard_size="200KB", **sizes)  # type: ignore[arg-type]
        return made[kind]

    return folder


@pytest.fixture(autouse=True)
def no_reader_is_left() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "headrace-reader"]


def stream_of(
    checkpoint: Checkpoint,
    resident: tuple[int, ...] = (),
    dtype: torch.dtype = torch.float32,
    bits: Bits | None = None,
    device: str = "cpu",
    pinned: tuple[int, ...] = (),
) -> Stream[Block]:
    def make() -> list[Block]:
        network = build_network(lambda: Transformer(checkpoint.transformer_config), checkpoint.transformer, dtype, bits)
        return list(network.blocks())

    names = [f"double_blocks.{index}" for index in range(DOUBLES)]
    names += [f"single_blocks.{index}" for index in range(SINGLES)]
    states = file_states(checkpoint.transformer.files)
    return Stream(make, names, resident, checkpoint.transformer, torch.device(device), states, pinned)


@pytest.mark.parametrize("resident", [(), (0,), (0, 1, 3), (0, 1, 2, 3), tuple(range(BLOCKS))])
@pytest.mark.parametrize(
    ("dtype", "bits"), [(torch.float32, None), (torch.bfloat16, None), (torch.bfloat16, "int8"), (torch.float32, "fp8")]
)
def test_every_pass_lends_what_loading_loads(
    folders: Callable[[str], Path], resident: tuple[int, ...], dtype: torch.dtype, bits: Bits | None
) -> None:
    checkpoint = open_checkpoint(folders("klein"))
    assert len(checkpoint.transformer.files) > 1
    whole = [block.state_dict() for block in load_transformer(checkpoint, dtype, "cpu", bits).blocks()]
    stream = stream_of(checkpoint, resident, dtype, bits)
    for _ in range(3):
        count = 0
        for block, expected in zip(stream.blocks(), whole, strict=True):
            assert not block.training
            state = block.state_dict()
            assert list(state) == list(expected)
            assert all(torch.equal(state[name].float(), expected[name].float()) for name in expected)
            count += 1
        assert count == BLOCKS
    stream.close()


def test_blocks_pass_through_the_same_two_slots(folders: Callable[[str], Path]) -> None:
    stream = stream_of(open_checkpoint(folders("klein")))
    places = {next(block.parameters()).untyped_storage().data_ptr() for _ in range(3) for block in stream.blocks()}
    assert len(places) == SLOTS
    stream.close()


def test_a_pass_left_half_way_does_not_disturb_the_next(folders: Callable[[str], Path]) -> None:
    checkpoint = open_checkpoint(folders("klein"))
    whole = [block.state_dict() for block in load_transformer(checkpoint, torch.float32, "cpu").blocks()]
    stream = stream_of(checkpoint)
    for stop in range(BLOCKS + 1):
        for index, _ in enumerate(stream.blocks()):
            if index == stop:
                break
        for block, expected in zip(stream.blocks(), whole, strict=True):
            assert all(torch.equal(value, expected[name]) for name, value in block.state_dict().items())
    stream.close()


@pytest.fixture
def copied(folders: Callable[[str], Path], tmp_path: Path) -> Path:
    """A model of the test's own, to be damaged."""
    save_pipeline(
        tmp_path / "model", "klein", channels=(8, 8, 16, 16), norm_groups=4, depth=DOUBLES, single_depth=SINGLES
    )
    return tmp_path / "model"


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def replace_by_another(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.replace(path)


def write_to(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\0")


@pytest.mark.parametrize("damage", [cut_off, replace_by_another, write_to, Path.unlink])
def test_a_file_that_changes_is_a_clear_error(copied: Path, damage: Callable[[Path], None]) -> None:
    checkpoint = open_checkpoint(copied)
    stream = stream_of(checkpoint)
    for _ in stream.blocks():
        pass
    damage(checkpoint.transformer.files[0])

    def passes() -> None:
        for _ in range(2):
            for _ in stream.blocks():
                pass

    with pytest.raises(HeadraceError, match=r"safetensors (was changed|became shorter|cannot be read)"):
        passes()
    stream.close()


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), MemoryError("no more"), SystemExit("the end")])
def test_what_goes_wrong_in_the_reader_is_raised_where_its_blocks_are_used(
    error: BaseException, folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: StoredTensors, name: str, target: torch.Tensor) -> None:
        raise error

    stream = stream_of(open_checkpoint(folders("klein")))
    with monkeypatch.context() as patch:
        patch.setattr(StoredTensors, "read", failing)
        for _ in range(2):
            with pytest.raises(HeadraceError, match=f"could not be read on: .*{error.args[-1]}"):
                list(stream.blocks())
    assert len(list(stream.blocks())) == BLOCKS
    stream.close()


@pytest.fixture
def staged(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`staged(resident)` makes every plan one that keeps only these blocks, as if the budget had no room for more."""

    def stage(resident: tuple[int, ...], pinned: tuple[int, ...] = (), recoded_bytes: int = 0) -> None:
        def planned(*arguments: Any) -> Any:
            plan = replace(plan_work(*arguments), keeps_all=False, recoded_bytes=recoded_bytes)
            return replace(plan, resident_blocks=resident, pinned_blocks=pinned)

        monkeypatch.setattr(headrace.pipeline, "plan_work", planned)

    return stage


def pixels(picture: headrace.Picture) -> np.ndarray[Any, Any]:
    return np.asarray(picture.image)


@pytest.mark.parametrize("kind", ["dev", "klein", "klein-base", "klein-kv"])
def test_streaming_changes_no_bit(kind: str, folders: Callable[[str], Path], staged: Callable[..., None]) -> None:
    request: dict[str, Any] = {"count": 2, "seed": 3, "steps": 2, "size": "64x48"}
    request["references"] = [
        headrace.load(folders(kind), device="cpu").generate("a stone", size="32x32", steps=1).image
    ]
    whole = headrace.load(folders(kind), device="cpu").generate("a red apple", **request)
    for resident in ((), (0, 3)):
        staged(resident)
        streamed = headrace.load(folders(kind), device="cpu", memory="20GB").generate("a red apple", **request)
        assert all(np.array_equal(pixels(a), pixels(b)) for a, b in zip(whole, streamed, strict=True))
        assert [a.recipe for a in whole] == [b.recipe for b in streamed]


def test_a_preview_may_take_the_transformers_place(folders: Callable[[str], Path], staged: Callable[..., None]) -> None:
    whole = headrace.load(folders("klein"), device="cpu").generate("a red apple", seed=3, steps=3, size="48x48")
    staged((0,))
    previews = []
    picture = headrace.load(folders("klein"), device="cpu").generate(
        "a red apple", seed=3, steps=3, size="48x48", on_step=lambda step: previews.append(step.preview(0))
    )
    assert len(previews) == 3
    assert np.array_equal(pixels(picture), pixels(whole))


def test_after_cancelling_and_failing_the_pipeline_works_again(
    folders: Callable[[str], Path], staged: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    staged(())
    pipeline = headrace.load(folders("klein"), device="cpu")
    request: dict[str, Any] = {"seed": 3, "steps": 2, "size": "48x48"}
    first = pipeline.generate("a red apple", **request)
    with pytest.raises(Cancelled):
        pipeline.generate("a red apple", on_step=lambda step: False, **request)
    assert pipeline._networks.held_bytes == 0

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(headrace.nn.transformer.SingleStreamBlock, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pipeline.generate("a red apple", **request)
    assert pipeline._networks.held_bytes == 0
    assert np.array_equal(pixels(pipeline.generate("a red apple", **request)), pixels(first))


def test_a_disk_that_cannot_be_read_ends_the_call_and_the_next_one_works(
    folders: Callable[[str], Path], staged: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    staged((0,))
    pipeline = headrace.load(folders("klein"), device="cpu")
    request: dict[str, Any] = {"seed": 3, "steps": 3, "size": "48x48"}
    first = pipeline.generate("a red apple", **request)
    threads = threading.active_count()
    reads = itertools.count()
    original = PassingFile.readinto

    def failing(self: PassingFile, buffer: Any) -> int | None:
        if "transformer" in str(self.name) and next(reads) == 2 * BLOCKS:
            raise OSError(5, "Input/output error")
        return original(self, buffer)

    with monkeypatch.context() as patch:
        patch.setattr(PassingFile, "readinto", failing)
        with pytest.raises(HeadraceError, match=r"safetensors cannot be read: Input/output error"):
            pipeline.generate("a red apple", **request)
    assert (pipeline.held_bytes, threading.active_count()) == (0, threads)
    assert np.array_equal(pixels(pipeline.generate("a red apple", **request)), pixels(first))


def test_a_reference_cache_is_let_go_however_a_streamed_call_ends(
    folders: Callable[[str], Path], staged: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = headrace.load(folders("klein-kv"), device="cpu")
    reference = Image.new("RGB", (32, 32), "teal")
    request: dict[str, Any] = {"references": [reference], "seed": 3, "steps": 2, "size": "48x48"}
    whole = pipeline.generate("a red apple", **request)
    kept = pipeline.held_bytes
    assert pipeline._reference_caches
    pipeline.release()
    assert (pipeline.held_bytes, pipeline._reference_caches) == (0, {})
    assert np.array_equal(pixels(pipeline.generate("a red apple", **request)), pixels(whole))
    assert pipeline.held_bytes == kept
    pipeline.generate("a red apple", seed=3, steps=1, size="48x48")
    assert not pipeline._reference_caches
    staged(())
    with pytest.raises(Cancelled):
        pipeline.generate("a red apple", on_step=lambda step: False, **request)
    assert (pipeline.held_bytes, pipeline._reference_caches) == (0, {})

    def failing(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(headrace.nn.transformer.SingleStreamBlock, "forward", failing)
        with pytest.raises(OSError, match="Input/output"):
            pipeline.generate("a red apple", **request)
    assert (pipeline.held_bytes, pipeline._reference_caches) == (0, {})
    stream = pipeline.stream("a red apple", **request)
    assert np.array_equal(pixels(next(stream)), pixels(whole))
    assert 0 < pipeline.held_bytes < kept
    stream.close()
    assert (pipeline.held_bytes, pipeline._reference_caches) == (0, {})


def test_converting_in_every_step_is_said_up_front(folders: Callable[[str], Path], staged: Callable[..., None]) -> None:
    staged((0,), recoded_bytes=10**9)
    with pytest.warns(UserWarning, match=r"not stored in int8: 1 GB .* headrace convert"):
        headrace.load(folders("klein"), precision="int8", device="cpu").generate("a cat", steps=1, size="32x32")


def test_a_model_that_was_replaced_between_two_calls_is_refused(copied: Path, staged: Callable[..., None]) -> None:
    staged(())
    pipeline = headrace.load(copied, device="cpu")
    pipeline.generate("a red apple", steps=1, size="32x32")
    replace_by_another(pipeline.checkpoint.transformer.files[0])
    with pytest.raises(HeadraceError, match="load the model again"):
        pipeline.generate("a red apple", steps=1, size="32x32")


@pytest.mark.parametrize("eager", ["copy", "compute", "neither"])
@pytest.mark.parametrize("pinned", [(), (1, 4), (1, 2, 3, 4)])
def test_copies_and_work_on_a_gpu_keep_their_order(
    eager: str, pinned: tuple[int, ...], folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On streams and events that are simulated: the code that a GPU runs, but no GPU."""
    checkpoint = open_checkpoint(folders("klein"))
    whole = [block.state_dict() for block in load_transformer(checkpoint, torch.float32, "cpu").blocks()]
    gpu = SimulatedGpu(monkeypatch, eager)
    read: list[str] = []
    original = StoredTensors.read

    def counted(self: StoredTensors, name: str, target: torch.Tensor) -> None:
        read.append(name)
        original(self, name, target)

    monkeypatch.setattr(StoredTensors, "read", counted)
    stream = stream_of(checkpoint, (0,), device="cuda", pinned=pinned)
    seen: list[dict[str, torch.Tensor]] = []

    def look(block: Block) -> None:
        seen.append({name: value.clone() for name, value in block.state_dict().items()})

    for _ in range(4):
        for block in stream.blocks():
            gpu.compute.queue(partial(look, block))
    assert gpu.synchronised_by <= {"headrace-reader"}, "the computing thread waits for no copy"
    stream.close()
    end = torch.cuda.Event()
    end.record(gpu.compute)  # type: ignore[arg-type]
    end.synchronize()
    assert len(seen) == 4 * BLOCKS
    for state, expected in zip(seen, 4 * whole, strict=True):
        assert all(torch.equal(value, expected[name]) for name, value in state.items())
    counts = Counter(".".join(name.split(".")[:2]) for name in read)
    for index in range(1, BLOCKS):
        name = f"double_blocks.{index}" if index < DOUBLES else f"single_blocks.{index - DOUBLES}"
        assert (counts[name] == len(whole[index])) == bool(pinned), "read once: kept, or alone in its slab"


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("pinned", [(), (1, 4), (1, 2, 3, 4)])
def test_a_gpu_is_lent_the_same_blocks(pinned: tuple[int, ...], folders: Callable[[str], Path]) -> None:
    checkpoint = open_checkpoint(folders("klein"))
    whole = [block.state_dict() for block in load_transformer(checkpoint, torch.bfloat16, "cpu").blocks()]
    stream = stream_of(checkpoint, (0,), torch.bfloat16, device="cuda", pinned=pinned)
    for _ in range(5):
        for block, expected in zip(stream.blocks(), whole, strict=True):
            assert all(torch.equal(value.cpu(), expected[name]) for name, value in block.state_dict().items())
    stream.close()


@pytest.mark.gpu
@needs_gpu
def test_on_a_gpu_streaming_from_pinned_memory_and_disk_changes_no_bit(
    folders: Callable[[str], Path], staged: Callable[..., None]
) -> None:
    request: dict[str, Any] = {"count": 2, "seed": 3, "steps": 2, "size": "64x48"}
    whole = headrace.load(folders("klein"), device="cuda").generate("a red apple", **request)
    for resident, pinned in (((), ()), ((0,), (1, 3)), ((), tuple(range(BLOCKS)))):
        staged(resident, pinned)
        pipeline = headrace.load(folders("klein"), device="cuda", host_memory="1GB")
        streamed = pipeline.generate("a red apple", **request)
        assert all(np.array_equal(pixels(a), pixels(b)) for a, b in zip(whole, streamed, strict=True))


def test_host_memory_without_a_gpu_is_refused(folders: Callable[[str], Path]) -> None:
    with pytest.raises(RequestError, match="give --memory alone"):
        headrace.load(folders("klein"), device="cpu", host_memory="1GB")
