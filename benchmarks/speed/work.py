"""Count the FLOP and the bytes of a training step without running it.

The *eager* count takes what PyTorch runs, each operator by itself: it reads its inputs and writes its outputs
once. A batch norm reads its input twice, since it must sum over the batch before it can normalise. The two
gradients of a convolution are two operators.

The *fused* count lets batch norms and pointwise operators (activations, residual adds, gates) move as few bytes as
possible. Convolutions, pooling, resizing and the rest stay as they are. The rules:

- Consecutive fusable operators with no other operator on any path between them are one pass. It reads only what
  comes from outside and writes only what is used outside.
- The neighbour of a norm computes the norm's sums while it writes the values to be summed. Forward, that is free.
  Backward, it also has to read the norm's input besides the gradient.
- A value that can be recomputed from fewer bytes than it has is neither kept nor read.

Example: norm + ReLU on a tensor of N bytes moves 2 N forward (x in, y out; eager 5 N) and 4 N backward (x for the
sums, then dy and x in, dx out; eager 8 N). norm + add + ReLU moves 3 N and 6 N: also the summand in, its gradient
out, and y, which shows where the ReLU was positive.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
# Fusable besides what PyTorch tags as pointwise. It has no tag for hardswish, and before 2.15 none for leaky_relu.
FUSABLE = ("native_batch_norm", "hardswish", "leaky_relu")
View = tuple[int, int]  # the number of a value, and the offset of the view in its storage


@dataclass(frozen=True)
class Pass:
    """One operator, or several fused into one: its FLOP (2 per multiply-add) and the bytes it moves."""

    name: str
    flops: int
    bytes: int


@dataclass(frozen=True)
class Work:
    """The forward and backward pass of one batch."""

    images: int
    eager: tuple[Pass, ...]
    fused: tuple[Pass, ...]

    @property
    def flops(self) -> int:
        return sum(each.flops for each in self.eager)


def count_work(model: nn.Module, shape: Sequence[int], dtype: torch.dtype) -> Work:
    """Return the work of training `model` on a batch of this shape, (B, C, H, W), in this floating-point type.

    A copy of the model runs on the `meta` device, whose tensors have no elements: nothing is computed or stored. A
    model with several outputs is trained on all of them.
    """
    net = deepcopy(model).to("meta", dtype).to(memory_format=torch.channels_last).train()
    net.zero_grad(set_to_none=True)
    images = torch.empty(*shape, dtype=dtype, device="meta").to(memory_format=torch.channels_last)
    recorder = _OperatorRecorder()
    with _FlashAttention(), recorder:
        result = net(images)
        outputs = [result] if isinstance(result, Tensor) else list(result)
        recorder.depth = 1 + max(call.depth for call in recorder.calls)  # the loss separates forward and backward
        torch.autograd.backward(outputs, [torch.empty_like(output) for output in outputs])
    return Work(shape[0], tuple(call.alone for call in recorder.calls), tuple(_fuse(recorder.calls)))


@dataclass(frozen=True)
class _Call:
    """An operator that ran, with the bytes of each view that it read and of each value that it wrote.

    `sums`: bytes that it reads for the sums of a norm even when fused. `depth`: the number of operators that
    cannot be fused on the longest path to this call, so that none lies between it and a later call of equal depth.
    """

    alone: Pass
    reads: dict[View, int]
    writes: dict[int, int]
    sums: int
    depth: int
    fusable: bool


class _OperatorRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Record the operators that run under it. Views and allocations cost nothing and are left out."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[_Call] = []
        self.depth = 0  # the least depth of calls to come
        self._current: dict[StorageWeakRef, int] = {}  # the value in each storage: every write makes a new one
        self._values = 0
        self._depths: dict[int, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **kwargs or {})
        inputs, name = _tensors((args, kwargs)), function.overloadpacket.__name__
        input_storages = {_storage(tensor) for tensor in inputs}
        if name == "convolution_backward":
            gradient, images, weight = inputs
            for other, output in (weight, result[0]), (images, result[1]):  # the bias costs next to nothing
                self._record(function, args, [gradient, other], _tensors(output))
        elif "empty" not in name:
            mutable = function._schema.is_mutable
            outputs = [t for t in _tensors(result) if mutable or _storage(t) not in input_storages]
            self._record(function, args, inputs, outputs)
        return result

    def _record(self, function: Any, args: Any, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        if not outputs:
            return
        name, fusable = function.overloadpacket.__name__, _fusable(function.overloadpacket)
        reads = {(self._value(t), int(t.storage_offset())): _bytes(t) for t in inputs}
        depth = max([self.depth, *(self._depths.get(value, 0) for value, _ in reads)]) + (not fusable)
        writes = {self._value(t, new=True): _bytes(t) for t in outputs}
        self._depths |= dict.fromkeys(writes, depth)
        again, sums = _second_reads(name, args)
        moved = sum(reads.values()) + sum(writes.values()) + again
        self.calls.append(
            _Call(Pass(name, _flops(name, args, outputs), moved), reads, writes, sums, depth, fusable)
        )

    def _value(self, tensor: Tensor, *, new: bool = False) -> int:
        storage = _storage(tensor)
        if new or storage not in self._current:
            self._values += 1
            self._current[storage] = self._values
        return self._current[storage]


class _FlashAttention(TorchFunctionMode):
    """Run attention as one operator, as real devices do; on `meta` its scores would count as written to memory."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is scaled_dot_product_attention and len(args) > 2 and args[0].dim() == 4:
            return aten._scaled_dot_product_flash_attention_for_cpu(*args[:3])[0]  # masks, dropout: next to free
        return function(*args, **kwargs or {})


def _fuse(calls: Sequence[_Call]) -> Iterator[Pass]:
    """Yield the passes that remain when everything fusable is fused."""
    group = list(range(len(calls)))  # the group of each call
    maker: dict[int, int] = {}  # the fusable call that made a value
    origin: dict[int, dict[View, int]] = {}  # what its group reads to make that value
    for n, call in enumerate(calls):
        sources: dict[View, int] = {}
        for view, size in call.reads.items():
            before = maker.get(view[0])
            if before is not None and calls[before].depth == call.depth:
                group = [group[n] if g == group[before] else g for g in group]
                sources |= origin[view[0]]
            else:
                sources[view] = size
        if call.fusable:
            maker |= dict.fromkeys(call.writes, n)
            origin |= dict.fromkeys(call.writes, sources)
    groups = [[c for c, of in zip(calls, group, strict=True) if of == g] for g in dict.fromkeys(group)]
    reads = [_reads_from_outside(members, origin) for members in groups]
    inner = {value for call in calls for value, _ in call.reads} - {value for each in reads for value, _ in each}
    for members, read in zip(groups, reads, strict=True):
        written = sum(size for call in members for value, size in call.writes.items() if value not in inner)
        moved = sum(read.values()) + written + sum(call.sums for call in members)
        alone = [call.alone for call in members]
        yield Pass("+".join(each.name for each in alone), sum(each.flops for each in alone), moved)


def _reads_from_outside(members: Sequence[_Call], origin: dict[int, dict[View, int]]) -> dict[View, int]:
    """Return what these calls read from outside as one pass, recomputing a value where that reads fewer bytes."""
    written = {value for call in members for value in call.writes}
    reads = {view: size for call in members for view, size in call.reads.items() if view[0] not in written}
    if members[0].fusable:
        for view, size in list(reads.items()):
            sources = {v: s for v, s in origin.get(view[0], {view: size}).items() if v not in reads}
            if view[0] in origin and sum(sources.values()) < size:
                del reads[view]
                reads |= sources
    return reads


@cache
def _fusable(packet: Any) -> bool:
    """Whether the operator is a batch norm or pointwise.

    Few backward operators are tagged as pointwise, so each is judged by its forward operator.
    """
    forward = packet.__name__.removesuffix("_backward").removesuffix("_")
    overloads = [getattr(p, name) for p in (packet, getattr(aten, forward, packet)) for name in p.overloads()]
    return forward in FUSABLE or any(torch.Tag.pointwise in each.tags for each in overloads)


def _second_reads(name: str, args: Sequence[Any]) -> tuple[int, int]:
    """Return the bytes that a batch norm reads a second time for its sums, when alone and when fused."""
    if name == "native_batch_norm" and args[5]:
        return _bytes(args[0]), 0
    if name == "native_batch_norm_backward" and args[7]:
        return _bytes(args[0]) + _bytes(args[1]), _bytes(args[1])
    return 0, 0


def _flops(name: str, args: Sequence[Any], outputs: Sequence[Tensor]) -> int:
    """Return 2 FLOP per multiply-add of a matrix product or convolution, padding included; 0 for the rest.

    A convolution has as many FLOP forward as for either gradient: each weight once per position.
    """
    tensors = _tensors(args)
    match name:
        case "mm" | "bmm" | "addmm" | "baddbmm":
            left, right = tensors[-2:]
            return 2 * left.numel() * right.shape[-1]
        case "convolution":
            positions = tensors[0] if args[6] else outputs[0]
            return 2 * len(positions) * prod(positions.shape[2:]) * tensors[1].numel()
        case "convolution_backward":
            positions = tensors[1] if args[7] else tensors[0]
            return 2 * len(positions) * prod(positions.shape[2:]) * tensors[2].numel()
        case "_scaled_dot_product_flash_attention_for_cpu":  # the scores and the output
            query, key, value = tensors[:3]
            return 2 * query[..., 0].numel() * key.shape[-2] * (key.shape[-1] + value.shape[-1])
        case "_scaled_dot_product_flash_attention_for_cpu_backward":  # scores again, their gradient, three inputs'
            query, key, value = tensors[1:4]
            return 2 * query[..., 0].numel() * key.shape[-2] * (3 * key.shape[-1] + 2 * value.shape[-1])
    return 0


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]


def _bytes(tensor: Tensor) -> int:
    """Return the bytes of the distinct elements; along an expanded axis all elements are one."""
    return tensor.itemsize * prod(n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
