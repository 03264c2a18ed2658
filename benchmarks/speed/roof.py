"""How fast a training step could be at most on a device: its roof (Williams et al. 2009).

An operator takes at least the longer of FLOP / peak FLOP a second and bytes / bandwidth; one runs after another,
so the times add up. The *eager* roof is the sum over what PyTorch runs, each operator by itself: it reads its
inputs and writes its outputs once; a batch norm reads twice, since it can normalise nothing before it has summed
over the batch; the two gradients of a convolution are two operators.

The *fused* roof is the same after batch norms and pointwise operators (activations, residual adds, gates) have
moved the least that they can; convolutions, pooling, resizing and the rest stay as they are:

- Those that follow one another, with no other operator on any way between them, are one pass. It reads and writes
  only what comes from and goes to the outside.
- A norm's sums are taken by its neighbour, while it writes what is summed over. That is free going forward; going
  backward it has to read the norm's input beside the gradient.
- What can be computed again from less than it takes to read it is neither kept nor read.

So norm + ReLU on a tensor of N bytes moves 2 N forward (x in, y out; eager 5 N) and 4 N backward (x for the sums,
dy and x in, dx out; eager 8 N). norm + add + ReLU moves 3 N and 6 N: the summand in and its gradient out, and y,
for where it is positive.

Both are lower bounds: the loss, the casts of autocast and the optimizer are left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from math import prod
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
# And what PyTorch tags as pointwise, which it forgot for hardswish, and before 2.15 for leaky_relu.
FUSABLE = ("native_batch_norm", "hardswish", "leaky_relu")
View = tuple[int, int]  # a value, by number, and where in its storage the view of it begins


@dataclass(frozen=True)
class Pass:
    """An operator, or several as one: FLOP (2 a multiply-add) and bytes moved."""

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


@dataclass(frozen=True)
class Roof:
    """The fewest seconds that a batch can take, and so the most images a second."""

    images: int
    eager: float
    fused: float

    @property
    def eager_rate(self) -> float:
        return self.images / self.eager

    @property
    def fused_rate(self) -> float:
        return self.images / self.fused


def roof(work: Work, flops_per_second: float, bytes_per_second: float) -> Roof:
    """The roof of `work` under these ceilings."""

    def seconds(passes: Iterable[Pass]) -> float:
        return sum(max(each.flops / flops_per_second, each.bytes / bytes_per_second) for each in passes)

    return Roof(work.images, seconds(work.eager), seconds(work.fused))


def ceilings(device: torch.device) -> tuple[float, float]:
    """FLOP/s of a large matrix product (bfloat16 on a GPU, else float32), bytes/s read and written by a copy."""
    side, floats, dtype = (8192, 2**28, torch.bfloat16) if device.type == "cuda" else (2048, 2**25, torch.float32)
    generator = torch.Generator(device).manual_seed(0)  # zeros would draw less power, and so clock higher
    a, b = (torch.randn(side, side, device=device, generator=generator).to(dtype) for _ in range(2))
    source = torch.rand(floats, device=device, generator=generator)  # larger than any cache
    product, copy = torch.empty_like(a), torch.empty_like(source)
    multiplying = _seconds(lambda: torch.mm(a, b, out=product), device)
    copying = _seconds(lambda: copy.copy_(source), device)
    return 2 * side**3 / multiplying, 2 * source.nbytes / copying


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Median of five turns after one for warming up; on a GPU of twenty runs each, so that launching hides."""
    runs, turns = 20 if device.type == "cuda" else 1, []
    for _ in range(6):
        started = time.perf_counter()
        for _ in range(runs):
            work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        turns.append((time.perf_counter() - started) / runs)
    return median(turns[1:])


def cost(model: nn.Module, shape: Sequence[int], dtype: torch.dtype) -> Work:
    """What training `model` on a batch of this shape, (B, C, H, W), takes, all floating-point tensors of `dtype`.

    A copy runs on the `meta` device, whose tensors have no elements: nothing is computed or held. A model with
    several outputs is trained on all of them.
    """
    net = deepcopy(model).to("meta", dtype).to(memory_format=torch.channels_last).train()
    net.zero_grad(set_to_none=True)
    images = torch.empty(*shape, dtype=dtype, device="meta").to(memory_format=torch.channels_last)
    ledger = _Ledger()
    with _FlashAttention(), ledger:
        made = net(images)
        outputs = [made] if isinstance(made, Tensor) else list(made)
        ledger.depth = 1 + max(call.depth for call in ledger.calls)  # the loss stands between
        torch.autograd.backward(outputs, [torch.empty_like(output) for output in outputs])
    return Work(shape[0], tuple(call.alone for call in ledger.calls), tuple(_fused(ledger.calls)))


@dataclass(frozen=True)
class _Call:
    """An operator that ran, and the bytes of what it read and of the values that it made.

    `sums`: bytes that it reads for a norm's sums even when fused. `depth`: how many operators that cannot be fused
    are on the longest way here, so that none is between one call and a later one of the same depth.
    """

    alone: Pass
    reads: dict[View, int]
    writes: dict[int, int]
    sums: int
    depth: int
    fusable: bool


class _Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lists the operators that run under it. Views and allocations cost nothing and are left out."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[_Call] = []
        self.depth = 0  # of calls to come, at least
        self._held: dict[StorageWeakRef, int] = {}  # the value in each storage: another one after every write
        self._values = 0
        self._depths: dict[int, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **kwargs or {})
        given, name = _tensors((args, kwargs)), function.overloadpacket.__name__
        there = {_storage(tensor) for tensor in given}
        if name == "convolution_backward":
            gradient, images, weight = given
            for other, made in (weight, result[0]), (images, result[1]):  # the bias's costs next to nothing
                self._note(function, args, [gradient, other], _tensors(made))
        elif "empty" not in name:
            made = [t for t in _tensors(result) if function._schema.is_mutable or _storage(t) not in there]
            self._note(function, args, given, made)
        return result

    def _note(self, function: Any, args: Any, given: Sequence[Tensor], made: Sequence[Tensor]) -> None:
        if not made:
            return
        name, fusable = function.overloadpacket.__name__, _fusable(function.overloadpacket)
        reads = {(self._value(t), int(t.storage_offset())): _bytes(t) for t in given}
        depth = max([self.depth, *(self._depths.get(value, 0) for value, _ in reads)]) + (not fusable)
        writes = {self._value(t, new=True): _bytes(t) for t in made}
        self._depths |= dict.fromkeys(writes, depth)
        again, sums = _second_reads(name, args)
        moved = sum(reads.values()) + sum(writes.values()) + again
        self.calls.append(_Call(Pass(name, _flops(name, args, made), moved), reads, writes, sums, depth, fusable))

    def _value(self, tensor: Tensor, *, new: bool = False) -> int:
        storage = _storage(tensor)
        if new or storage not in self._held:
            self._values += 1
            self._held[storage] = self._values
        return self._held[storage]


class _FlashAttention(TorchFunctionMode):
    """Attention as one operator, which it is on real devices; on `meta` its scores would go to memory."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is scaled_dot_product_attention and len(args) > 2 and args[0].dim() == 4:
            return aten._scaled_dot_product_flash_attention_for_cpu(*args[:3])[0]  # masks, dropout: next to free
        return function(*args, **kwargs or {})


def _fused(calls: Sequence[_Call]) -> Iterator[Pass]:
    """The passes left when all is fused that can be."""
    group = list(range(len(calls)))  # of each call
    maker: dict[int, int] = {}  # of each value that a fusable call made
    origin: dict[int, dict[View, int]] = {}  # and what its group reads to make it
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
    reads = [_reads(members, origin) for members in groups]
    inner = {value for call in calls for value, _ in call.reads} - {value for each in reads for value, _ in each}
    for members, read in zip(groups, reads, strict=True):
        written = sum(size for call in members for value, size in call.writes.items() if value not in inner)
        moved = sum(read.values()) + written + sum(call.sums for call in members)
        alone = [call.alone for call in members]
        yield Pass("+".join(each.name for each in alone), sum(each.flops for each in alone), moved)


def _reads(members: Sequence[_Call], origin: dict[int, dict[View, int]]) -> dict[View, int]:
    """What these calls read from outside as one pass, computing again what takes less than reading it."""
    made = {value for call in members for value in call.writes}
    reads = {view: size for call in members for view, size in call.reads.items() if view[0] not in made}
    if members[0].fusable:
        for view, size in list(reads.items()):
            more = {v: s for v, s in origin.get(view[0], {view: size}).items() if v not in reads}
            if view[0] in origin and sum(more.values()) < size:
                del reads[view]
                reads |= more
    return reads


@cache
def _fusable(packet: Any) -> bool:
    """Batch norm and what is pointwise; backward operators, few of which are tagged, as their forward ones."""
    forward = packet.__name__.removesuffix("_backward").removesuffix("_")
    overloads = [getattr(p, name) for p in (packet, getattr(aten, forward, packet)) for name in p.overloads()]
    return forward in FUSABLE or any(torch.Tag.pointwise in each.tags for each in overloads)


def _second_reads(name: str, args: Sequence[Any]) -> tuple[int, int]:
    """Bytes that a batch norm reads another time for its sums over the batch, alone and when fused."""
    if name == "native_batch_norm" and args[5]:
        return _bytes(args[0]), 0
    if name == "native_batch_norm_backward" and args[7]:
        return _bytes(args[0]) + _bytes(args[1]), _bytes(args[1])
    return 0, 0


def _flops(name: str, args: Sequence[Any], made: Sequence[Tensor]) -> int:
    """2 a multiply-add of a matrix product or convolution, padding included; beside these, nothing counts.

    A convolution has as many forward as for either gradient: every weight once for every place it is laid on.
    """
    tensors = _tensors(args)
    match name:
        case "mm" | "bmm" | "addmm" | "baddbmm":
            left, right = tensors[-2:]
            return 2 * left.numel() * right.shape[-1]
        case "convolution":
            places = tensors[0] if args[6] else made[0]
            return 2 * len(places) * prod(places.shape[2:]) * tensors[1].numel()
        case "convolution_backward":
            places = tensors[1] if args[7] else tensors[0]
            return 2 * len(places) * prod(places.shape[2:]) * tensors[2].numel()
        case "_scaled_dot_product_flash_attention_for_cpu":  # scores, and the output
            query, key, value = tensors[:3]
            return 2 * query[..., 0].numel() * key.shape[-2] * (key.shape[-1] + value.shape[-1])
        case "_scaled_dot_product_flash_attention_for_cpu_backward":  # scores again, and of them and of each input
            query, key, value = tensors[1:4]
            return 2 * query[..., 0].numel() * key.shape[-2] * (3 * key.shape[-1] + 2 * value.shape[-1])
    return 0


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]


def _bytes(tensor: Tensor) -> int:
    """Of its distinct elements: along an expanded axis they are the same."""
    return tensor.itemsize * prod(n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
