"""What a LoRA adds to a finished network: products beside its layers, which leave weights and their precision alone.

Each is a function of a layer's input that is added to the layer's output. It hangs on the layer as a hook, so that the
layer may hold its weights in any format, in memory of its own or in a slot that blocks are streamed through; what the
LoRA brings stays in memory. Shapes below: `in` and `out` are the layer's widths, M tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from headrace.nn.transformer import NORM_EPS

# Tokens that a Kronecker product is computed for at a time, so that its intermediate results stay small beside the
# network's own, which a plan counts.
TOKENS = 64


@dataclass(frozen=True)
class LowRank:
    """`scale * up @ down`, added to the rows of a weight from `first` on: down (rank, in), up (rows, rank).

    Hu et al. 2021, LoRA, arXiv:2106.09685.
    """

    down: Tensor
    up: Tensor
    scale: float
    first: int = 0

    @property
    def count(self) -> int:
        """How many rows it has."""
        return len(self.up)

    def rows(self, first: int, count: int) -> Tensor:
        """(count, in) in float32: what is added to `count` rows of its own, from row `first` on."""
        return self.up[first : first + count].float() @ self.down.float() * self.scale

    def add(self, tokens: Tensor, out: Tensor) -> None:
        """Add its product with tokens (M, in) to out (M, out)."""
        out.narrow(1, self.first, self.count).addmm_(tokens @ self.down.t(), self.up.t(), alpha=self.scale)


@dataclass(frozen=True)
class Kronecker:
    """`scale * kron(left, right)`, added to the rows of a weight from `first` on (LoKr of LyCORIS).

    left (a, b); right (c, d), or (c, rank) and (rank, d); a * c rows and b * d = in. halves_swapped: whether the second
    half of its rows comes first. gain (rows), in float32: what every row is multiplied by.
    Yeh et al. 2023, arXiv:2309.14859, section 3.3.
    """

    left: Tensor
    right: tuple[Tensor, ...]
    scale: float
    first: int = 0
    halves_swapped: bool = False
    gain: Tensor | None = None

    @property
    def count(self) -> int:
        """How many rows it has."""
        return len(self.left) * len(self.right[0])

    def rows(self, first: int, count: int) -> Tensor:
        """(count, in) in float32: what is added to `count` rows of its own, from row `first` on."""
        places = torch.arange(first, first + count, device=self.left.device)
        own = (places + self.count // 2) % self.count if self.halves_swapped else places
        height = len(self.right[0])
        left, right = self.left[own // height].float(), self.right[0][own % height].float()
        for factor in self.right[1:]:
            right = right @ factor.float()
        rows = (left[:, :, None] * right[:, None, :]).flatten(1) * self.scale
        return rows if self.gain is None else rows * self.gain[first : first + count, None].float()

    def add(self, tokens: Tensor, out: Tensor) -> None:
        """Add its product with tokens (M, in) to out (M, out)."""
        target = out.narrow(1, self.first, self.count)
        for start in range(0, len(tokens), TOKENS):
            some = tokens[start : start + TOKENS]
            turned = some.view(len(some), self.left.shape[1], -1)
            for factor in reversed(self.right):
                turned = turned @ factor.t()
            product = torch.einsum("ab,mbc->mac", self.left, turned).flatten(1)
            if self.halves_swapped:
                product = product.roll(self.count // 2, dims=1)
            if self.gain is not None:
                product = product * self.gain
            target[start : start + TOKENS].add_(product, alpha=self.scale)


@dataclass(frozen=True)
class Full:
    """`scale * weight`, added to the rows of a weight from `first` on: weight (rows, in)."""

    weight: Tensor
    scale: float
    first: int = 0

    @property
    def count(self) -> int:
        """How many rows it has."""
        return len(self.weight)

    def rows(self, first: int, count: int) -> Tensor:
        """(count, in) in float32: what is added to `count` rows of its own, from row `first` on."""
        return self.weight[first : first + count].float() * self.scale

    def add(self, tokens: Tensor, out: Tensor) -> None:
        """Add its product with tokens (M, in) to out (M, out)."""
        out.narrow(1, self.first, self.count).addmm_(tokens, self.weight.t(), alpha=self.scale)


Delta = LowRank | Kronecker | Full


@dataclass(frozen=True)
class LinearBranch:
    """All that is added to the output of one linear layer.

    gain (out), in float32: what the layer's own output is multiplied by first, for weights that are decomposed into
    magnitude and direction. bias (out): what is added last.
    """

    deltas: tuple[Delta, ...] = ()
    gain: Tensor | None = None
    bias: Tensor | None = None

    @property
    def tensors(self) -> Iterator[Tensor]:
        """All that it holds."""
        yield from (tensor for tensor in (self.gain, self.bias) if tensor is not None)
        for delta in self.deltas:
            yield from (value for value in vars(delta).values() if isinstance(value, Tensor))
            yield from delta.right if isinstance(delta, Kronecker) else ()

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        """The layer's hook: (…, in) and (…, out), the latter changed in place."""
        tokens, out = inputs[0].flatten(0, -2), output.view(-1, output.shape[-1])
        if self.gain is not None:
            out.mul_(self.gain)
        for delta in self.deltas:
            delta.add(tokens, out)
        if self.bias is not None:
            out.add_(self.bias)


@dataclass(frozen=True)
class NormBranch:
    """What is added to the learned scale of a norm over heads: (head_dim)."""

    scale: Tensor

    @property
    def tensors(self) -> Iterator[Tensor]:
        """All that it holds."""
        yield self.scale

    def __call__(self, norm: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        """The norm's hook: (…, head_dim), the output changed in place."""
        output.add_(F.rms_norm(inputs[0], inputs[0].shape[-1:], self.scale, NORM_EPS))


Branch = LinearBranch | NormBranch


def attach(network: nn.Module, branches: Mapping[str, Branch]) -> Sequence[RemovableHandle]:
    """Hang each branch on the layer or norm of its name; what is returned takes them off again."""
    return [network.get_submodule(name).register_forward_hook(branch) for name, branch in branches.items()]


def khatri_rao(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The product, value by value, of two low-rank matrices as one low-rank matrix (LoHa of LyCORIS).

    Each is (rows, rank) and (rank, in); so is the result, whose rank is the product of theirs: a row of its first
    factor holds all products of a value in that row of one with a value in that row of the other.
    Hyeon-Woo et al. 2021, FedPara, arXiv:2108.06098, proposition 1.
    """
    up = (first[0][:, :, None] * second[0][:, None, :]).flatten(1)
    down = (first[1][:, None, :] * second[1][None, :, :]).flatten(0, 1)
    return up, down
