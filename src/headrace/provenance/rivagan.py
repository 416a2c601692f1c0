"""RivaGAN's two networks (K. A. Zhang, L. Xu, A. Cuesta-Infante, K. Veeramachaneni, 2019): 32 bits, in and out.

The weights are in the ONNX files inside the registry's package invisible-watermark 0.2.0 (MIT), which is not imported.
Run here, they take half the time, and it can be asked what of the pixels a bit depends on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from headrace.provenance.watermark import weights_file

_THRESHOLD = 0.52
"""Where a score says one: the package's own."""

_PADDING = 5
_EPSILON = 1e-5

# How far a pixel is changed at most, by the networks' design: of -1 to 1.
_REACH = 0.016

Weights = dict[str, Tensor]


def residual(frame: Tensor, signs: Tensor) -> Tensor:
    """What is to be added to a picture so that it carries the bits.

    frame: (1, 3, rows, columns), -1 to 1, red first, as the result. signs: (32,), 1 and -1.
    """
    weights = _weights("encoder")
    data = (_attention(frame, weights) * signs[:, None, None]).sum(dim=1, keepdim=True)
    return _REACH * torch.tanh(_two_layers(torch.cat([frame, data], dim=1), weights, "_conv"))


def evidence(frame: Tensor) -> Tensor:
    """(1, 3, rows, columns) -> (1, 32, rows, columns): what each place has to say, whose mean is above 0 for a one."""
    weights = _weights("decoder")
    return _two_layers(frame, weights, "_conv") * _attention(frame, weights) - _THRESHOLD


def _attention(frame: Tensor, weights: Weights) -> Tensor:
    """(1, 3, rows, columns) -> (1, 32, rows, columns): how much each place has to do with each bit."""
    looked = torch.tanh(_two_layers(frame, weights, "_attention"))
    return torch.softmax(_normalised(looked, weights, "_attention.5"), dim=1)


def _two_layers(frame: Tensor, weights: Weights, name: str) -> Tensor:
    hidden = _normalised(torch.tanh(_convolved(frame, weights, f"{name}.0")), weights, f"{name}.2")
    return _convolved(hidden, weights, f"{name}.3")


def _convolved(inputs: Tensor, weights: Weights, name: str) -> Tensor:
    return F.conv2d(inputs, weights[f"{name}.weight"].squeeze(2), weights[f"{name}.bias"], padding=_PADDING)


def _normalised(inputs: Tensor, weights: Weights, name: str) -> Tensor:
    mean, variance, weight, bias = (
        weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return F.batch_norm(inputs, mean, variance, weight, bias, training=False, eps=_EPSILON)


@cache
def _weights(network: str) -> Weights:
    """By name, from the package's file. Raises RequestError where it is not installed."""
    with torch.inference_mode(mode=False):  # they are kept, and used where gradients are asked for too
        return _read_weights(network)


def _read_weights(network: str) -> Weights:
    (graph,) = _fields(weights_file(network).read_bytes(), _GRAPH)
    return dict(map(_tensor, _fields(graph, _INITIALIZER)))


# Field numbers of ONNX's messages (onnx.proto: ModelProto, GraphProto, TensorProto), which are protocol buffers.
_GRAPH, _INITIALIZER = 7, 5
_DIMENSIONS, _NAME, _RAW_DATA = 1, 8, 9
_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5


def _tensor(message: bytes) -> tuple[str, Tensor]:
    (name,), data = _fields(message, _NAME), b"".join(_fields(message, _RAW_DATA))
    shape = [number for entry in _fields(message, _DIMENSIONS) for number in _varints(entry)]
    # The few integers among them belong to operations that are written out above.
    values = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return name.decode(), values.view(torch.float32).reshape(shape) if len(data) == 4 * math.prod(shape) else values


def _fields(message: bytes, wanted: int) -> list[bytes]:
    """The contents of all fields of a number; a lone varint as its bytes."""
    return [content for number, content in _all_fields(message) if number == wanted]


def _all_fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        start, kind = place, key & 7
        if kind == _VARINT:
            _, place = _varint(message, place)
        elif kind == _BYTES:
            length, start = _varint(message, place)
            place = start + length
        else:
            place += {_FIXED_64: 8, _FIXED_32: 4}[kind]
        yield key >> 3, message[start:place]


def _varints(data: bytes) -> Iterator[int]:
    place = 0
    while place < len(data):
        value, place = _varint(data, place)
        yield value


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, lowest first, and where it ends."""
    value = shift = 0
    while data[place] & 0x80:
        value |= (data[place] & 0x7F) << shift
        place, shift = place + 1, shift + 7
    return value | data[place] << shift, place + 1
