"""Fine-tuning in several processes: each sees a part of every batch, and the step is that of the whole batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch.nn.functional import batch_norm, dropout, dropout1d, dropout2d, dropout3d
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

from art_aft.runtime.processes import from_first, world
from art_aft.training.batches import Batch
from art_aft.training.losses import LabelLoss, Loss


def data_parallel(module: torch.nn.Module, loss: Loss, feed: BatchAtHand) -> tuple[torch.nn.Module, torch.nn.Module]:
    """
    Return a module, and its loss on logits and labels, that take the steps of whole batches from this process's parts.

    All processes start with the first one's weights. Alone in the world, the module comes back as it is. A model that
    skips whole layers at random is refused by DistributedDataParallel.

    :param module: The module; its parameters and buffers are shared, not copied.
    :param loss: The loss of a batch. Class weights of a `LabelLoss` around torch's own losses are those of the whole
        batch; any other loss is taken for a mean over images.
    :param feed: Knows the batch at hand, and this process's part of it.
    """
    if world().size == 1:
        return module, _OwnLoss(loss, feed)
    from_first([*module.parameters(), *module.buffers()])
    # A static graph, one that is the same in every step, may leave parameters unused, which is no error in one process
    # either; find_unused_parameters would print a warning for every model that has none.
    parallel = DistributedDataParallel(_WholeBatchModule(module, feed), static_graph=True)
    return parallel, _WholeBatchLoss(loss, feed)


class BatchAtHand(Protocol):
    """
    Who knows the batch that is being trained on.

    `whole` is all of it, `own` the part of this process, and `part` says which images those are.
    """

    whole: Batch
    own: Batch

    @property
    def part(self) -> slice: ...


class _OwnLoss(torch.nn.Module):
    """What ART takes for a loss on logits and labels, though it sees the whole batch."""

    def __init__(self, loss: Loss, feed: BatchAtHand) -> None:
        super().__init__()
        self.loss, self.feed = loss, feed

    def forward(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.loss(logits, self.feed.own)


class _WholeBatchModule(torch.nn.Module):
    """The module, with layers that look at more than one image made to look at the whole batch."""

    def __init__(self, module: torch.nn.Module, feed: BatchAtHand) -> None:
        super().__init__()
        self.module = module
        self._whole = _WholeBatch(feed)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with self._whole:
            return self.module(x)


class _WholeBatchLoss(torch.nn.Module):
    """The loss of this process's part, weighted so that the mean over processes has the whole batch's gradient."""

    def __init__(self, loss: Loss, feed: BatchAtHand) -> None:
        super().__init__()
        self.loss, self.feed = loss, feed
        labels: Any = loss.loss if isinstance(loss, LabelLoss) else None
        self.by_image = type(labels) in (torch.nn.CrossEntropyLoss, torch.nn.NLLLoss) and labels.reduction == "mean"
        self.labels: Any = copy.copy(labels)
        if self.by_image:
            self.labels.reduction = "sum"

    def forward(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        own, whole, processes = self.feed.own, self.feed.whole.y, world().size
        if not self.by_image:
            return self.loss(logits, own) * (processes * len(own.y) / len(whole))
        total = self.labels(logits, own.y) * processes
        counted = whole[whole != self.labels.ignore_index]
        return total / (len(counted) if self.labels.weight is None else self.labels.weight[counted].sum())


class _WholeBatch(TorchFunctionMode):
    """
    Within this context, batch normalisation and dropout work as if this process's images stood among all the batch's.

    A change of the functions, not of the layers: modules keep their classes, and those of one's own work too, and
    SyncBatchNorm would not run on a CPU.
    """

    def __init__(self, feed: BatchAtHand) -> None:
        super().__init__()
        self.feed = feed

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is batch_norm:
            return _synchronised_batch_norm(*args, **kwargs)
        if func in (dropout, dropout1d, dropout2d, dropout3d):
            return self._dropout(func, *args, **kwargs)
        return func(*args, **kwargs)

    def _dropout(
        self,
        func: Callable[..., torch.Tensor],
        x: torch.Tensor,
        p: float = 0.5,
        training: bool = True,
        inplace: bool = False,
    ) -> torch.Tensor:
        """Draw for all images in every process, so that the generators stay in step, and use this process's part."""
        part, n = self.feed.part, len(self.feed.whole.y)
        times, rest = divmod(len(x), part.stop - part.start)
        if not training or not 0 < p < 1 or rest:
            return func(x, p, training, inplace)
        # In the memory format of x, in which the draws are laid out.
        layout = torch.channels_last if _is_channels_last(x) else torch.contiguous_format
        ones = torch.ones((times * n, *x.shape[1:]), dtype=x.dtype, device=x.device).to(memory_format=layout)
        kept = func(ones, p, True)[times * part.start : times * part.stop] != 0
        return x.mul_(kept).mul_(1 / (1 - p)) if inplace else x * kept * (1 / (1 - p))


def _is_channels_last(x: torch.Tensor) -> bool:
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _synchronised_batch_norm(
    x: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    """Normalise by mean and variance over the images of all processes; in evaluation mode, as ever."""
    if not training:
        return batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    with torch.no_grad():
        precise = x.detach().to(torch.promote_types(x.dtype, torch.float32))
        variance, mean = torch.var_mean(precise, dim=_all_but_channels(x), correction=0)
        mean, variance = mean.double(), variance.double()
        count = torch.full_like(mean, x.numel() // x.shape[1])
        # Double precision, so that the difference of large sums is exact enough.
        sums = torch.stack([count, count * mean, count * (variance + mean.square())])
        dist.all_reduce(sums)
        count, mean = sums[0], sums[1] / sums[0]
        variance = (sums[2] / count - mean.square()).clamp_min(0)
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((variance * count / (count - 1)).to(running_var.dtype), momentum)
        mean, variance, count = (value.to(precise.dtype) for value in (mean, variance, count))
    return _Normalise.apply(x, weight, bias, mean, variance, count, eps)


def _all_but_channels(x: torch.Tensor) -> list[int]:
    return [axis for axis in range(x.dim()) if axis != 1]


class _Normalise(torch.autograd.Function):
    """Batch normalisation by given statistics, whose gradient knows that they come from the images of all processes."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        mean: torch.Tensor,
        variance: torch.Tensor,
        count: torch.Tensor,
        eps: float,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt(), count)
        return batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, mean, inverse, count = ctx.saved_tensors
        shape = [1, -1, *[1] * (x.dim() - 2)]
        gradient = gradients[0].to(mean.dtype)
        normal = (x.to(mean.dtype) - mean.view(shape)) * inverse.view(shape)
        axes = _all_but_channels(x)
        here = torch.stack([gradient.sum(axes), (gradient * normal).sum(axes)])
        everywhere = here.clone()
        dist.all_reduce(everywhere)
        shift, slope = (everywhere / count).unbind()
        scale = inverse if weight is None else inverse * weight
        to_x = (gradient - shift.view(shape) - normal * slope.view(shape)) * scale.view(shape)
        to_weight, to_bias = (None, None) if weight is None else (here[1].to(weight.dtype), here[0].to(weight.dtype))
        return to_x.to(x.dtype), to_weight, to_bias, None, None, None, None
