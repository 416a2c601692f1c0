"""What nodes get beside their inputs: networks, folders, and where pictures go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from headrace.comfy.engine import Stage
from headrace.comfy.folders import ModelFolders, relative_name
from headrace.errors import RequestError

Save = Callable[[Tensor, str], None]
# What a node does: a function of its inputs by name, which gives its outputs in order.
Function = Callable[..., tuple[Any, ...]]


@dataclass(frozen=True)
class Session:
    """One run of a graph. save: takes pictures and the prefix of their file names."""

    stage: Stage
    folders: ModelFolders
    input: Path
    output: Path
    save: Save

    def model_file(self, kind: str, name: str) -> Path:
        """Raises RequestError where it is not there; `check_files` finds that out for all of them before."""
        file = self.folders.find(kind, name)
        if file is None:
            raise RequestError(f"{name} is not in {self.folders.places[kind][0]}.")
        return file

    def input_file(self, name: str) -> Path:
        """A picture in the input folder, or in the output folder where " [output]" stands after its name."""
        return input_file(name, self.input, self.output)


def input_file(name: str, input_folder: Path, output_folder: Path) -> Path:
    """As `Session.input_file`. Raises RequestError for a name that leads out of the folder."""
    for mark, folder in (("[input]", input_folder), ("[output]", output_folder), ("[temp]", output_folder)):
        if name.endswith(mark):
            return folder / relative_name(name.removesuffix(mark).strip())
    return input_folder / relative_name(name)
