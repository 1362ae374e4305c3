"""
Convolutions with many channels and few positions as matrix products, in bfloat16 on a CPU.

oneDNN's kernels for CPUs with bfloat16 matrix units lose up to six sevenths of the time there, mostly in the gradient
of the weights: 512 channels at 4x4 took 77 ms forward and backward on two cores, and take 29 ms as here. This is the
last quarter of PreActResNet-18 at 32x32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

# Where it paid, by measurement: 256 channels at 4x4 gained, 128 at 4x4 and 256 at 8x8 lost.
_MOST_POSITIONS = 16
_LEAST_CHANNELS = 256 * 256


class SmallMaps(TorchFunctionMode):
    """Within this context such convolutions are computed as matrix products; everything else as ever."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.conv2d, torch.nn.functional.conv2d) and not kwargs and len(args) == 7:
            x, weight, bias, stride, padding, dilation, groups = args
            if groups == 1 and _pair(dilation) == (1, 1) and not isinstance(padding, str):
                stride, padding = _pair(stride), _pair(padding)
                if x.dim() == 4 and _pays(x, weight, stride, padding):
                    # Autocast does not reach into functions of one's own.
                    lower = (x.to(torch.bfloat16), weight.to(torch.bfloat16))
                    y = _MatrixConvolution.apply(*lower, stride, padding)
                    return y if bias is None else y + bias.to(y.dtype)[:, None, None]
        return func(*args, **kwargs)


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[-1]))


def _sides(x: torch.Tensor, weight: torch.Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> tuple[int, int]:
    """Return height and width of the output."""
    height, width = ((x.shape[i + 2] + 2 * padding[i] - weight.shape[i + 2]) // stride[i] + 1 for i in (0, 1))
    return height, width


def _pays(x: torch.Tensor, weight: torch.Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> bool:
    height, width = _sides(x, weight, stride, padding)
    return 0 < height * width <= _MOST_POSITIONS and weight.shape[0] * weight.shape[1] >= _LEAST_CHANNELS


class _MatrixConvolution(torch.autograd.Function):
    """A convolution without bias, groups and dilation: every position's patch of the image is a row of a matrix."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, stride: tuple[int, int], padding: tuple[int, int]
    ) -> torch.Tensor:
        n, channels = x.shape[:2]
        out_channels, _, rows, columns = weight.shape
        out_height, out_width = _sides(x, weight, stride, padding)
        border = (0, 0, padding[1], padding[1], padding[0], padding[0])
        image = torch.nn.functional.pad(x.permute(0, 2, 3, 1), border).contiguous()
        step = image.stride()
        # Of a patch, each row of pixels lies together in memory.
        patches = image.as_strided(
            (n, out_height, out_width, rows, columns * channels),
            (step[0], step[1] * stride[0], step[2] * stride[1], step[1], 1),
        ).reshape(n * out_height * out_width, rows * columns * channels)
        matrix = weight.permute(0, 2, 3, 1).reshape(out_channels, -1)
        ctx.save_for_backward(patches if ctx.needs_input_grad[1] else None, matrix)
        ctx.shape, ctx.kernel, ctx.stride, ctx.padding = x.shape, (rows, columns), stride, padding
        y = (patches @ matrix.t()).view(n, out_height, out_width, out_channels).permute(0, 3, 1, 2)
        # In the order of the input, as of a convolution: a `.view` of plain maps must go on working.
        return y.contiguous() if x.is_contiguous() and weight.is_contiguous() else y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        patches, matrix = ctx.saved_tensors
        n, channels, height, width = ctx.shape
        (rows, columns), stride, padding = ctx.kernel, ctx.stride, ctx.padding
        _, out_channels, out_height, out_width = gradient.shape
        rows_of = gradient.permute(0, 2, 3, 1).reshape(-1, out_channels)
        to_x = to_weight = None
        if ctx.needs_input_grad[1]:
            to_weight = (rows_of.t() @ patches).view(out_channels, rows, columns, channels).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[0]:
            each = (rows_of @ matrix).view(n, out_height, out_width, rows, columns, channels)
            image = each.new_zeros(n, height + 2 * padding[0], width + 2 * padding[1], channels)
            for i in range(rows):
                for j in range(columns):
                    down = slice(i, i + stride[0] * (out_height - 1) + 1, stride[0])
                    across = slice(j, j + stride[1] * (out_width - 1) + 1, stride[1])
                    image[:, down, across] += each[:, :, :, i, j]
            inner = image[:, padding[0] : padding[0] + height, padding[1] : padding[1] + width]
            to_x = inner.permute(0, 3, 1, 2)
        return to_x, to_weight, None, None
