"""One optimisation step: forward, loss, backward, clip, update; eagerly, or replayed as one CUDA graph.

A graph holds the whole step, so that a GPU does not wait for Python. The steps before its capture are real
training steps: they warm up what the graph will hold, and nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from threading import Lock
from typing import Literal

import torch
from torch import Tensor, nn

from bench.config import Train
from bench.device import autocast, out_of_memory
from bench.errors import TrainingError
from bench.inference.sliding_window import logits_of

Loss = Callable[[Tensor, Tensor], Tensor]
Execution = Literal["eager", "graph", "compile"]  # 'compile': compiled and, on a GPU, captured
EAGER_STEPS = 3  # before a capture, for cuDNN to choose its kernels and the optimizer to create its state
_capture_lock = Lock()  # shared by folds on one device


def mean_over_structures(loss: Loss) -> Loss:
    """Return a loss of logits and targets (B, K, H, W): the mean of `loss`, which takes (B, 1, H, W), over K."""

    def mean(logits: Tensor, target: Tensor) -> Tensor:
        if logits.shape[1] == 1:
            return loss(logits, target)
        each = zip(logits.unsqueeze(2).unbind(1), target.unsqueeze(2).unbind(1), strict=True)
        return torch.stack([loss(*one) for one in each]).mean()

    return mean


class Stepper:
    """Takes one step per call. `how` names its execution, `parts` is the number of micro-batches per batch.

    When memory runs out, the batch is split into twice as many parts, whose gradients add up to those of the whole
    batch; only batch norms and losses over the batch see one part at a time. `smallest` is the smallest batch that
    the model can be trained on. `say` receives a sentence about every fallback.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        settings: Train,
        rate: float,
        device: torch.device,
        *,
        execution: Execution = "eager",
        smallest: int = 1,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.model, self.loss, self.settings, self.device = model, loss, settings, device
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = _optimizer(self.parameters, rate, settings, device)
        self.smallest, self.say = smallest, say
        self.parts = 1
        captures = execution != "eager" and device.type == "cuda"
        self.how: str = "eager" if execution == "graph" and not captures else execution
        self._forward: Callable[[Tensor], Tensor] = torch.compile(model) if execution == "compile" else model
        self._steps = 0
        self._side = torch.cuda.Stream(device) if captures else None  # type: ignore[no-untyped-call]
        # While one fold captures, no other fold may replay a graph or draw a random number on the device: before
        # PyTorch 2.13 both raise, as a device has a single random generator.
        self._lock: AbstractContextManager[object] = _capture_lock if captures else nullcontext()
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, images: Tensor, masks: Tensor, lr: float) -> Tensor:
        """Step on images (B, C, H, W) and masks (B, K, H, W); return the loss, detached.

        Nothing here waits for the device. Raises `TrainingError` if not even the smallest part fits in memory.
        """
        with self._lock:
            for group in self.optimizer.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(lr)
                else:
                    group["lr"] = lr
            if self._graph is not None:
                self._images.copy_(images)
                self._masks.copy_(masks)
                self._graph.replay()
                return self._value.clone()
            self._steps += 1
            if self._side is None:
                return self._step_in_parts(images, masks)
            self._side.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(self._side):
                value = self._step_in_parts(images, masks)
            torch.cuda.current_stream(self.device).wait_stream(self._side)
            if self._steps == EAGER_STEPS:
                self._capture(images, masks)
            return value

    def _step_in_parts(self, images: Tensor, masks: Tensor) -> Tensor:
        """Take one step, in as many parts as the memory requires."""
        while True:
            try:
                return self._step(images, masks)
            except RuntimeError as error:
                if "does not have a deterministic implementation" in str(error):
                    raise TrainingError(
                        f"this model cannot be trained deterministically on this device ({_first_line(error)}). "
                        "Leave out --deterministic, or choose a model with another upsampling."
                    ) from None
                if self._stopped_compiling(error):
                    continue
                if not out_of_memory(error):
                    raise
                reason = _first_line(error)
            self.optimizer.zero_grad(set_to_none=True)
            # Memory is free only here, after the exception and everything that it referenced is gone.
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            if len(images) // (2 * self.parts) < self.smallest:
                raise TrainingError(
                    f"{len(images) // self.parts} slices of {images.shape[-2]}x{images.shape[-1]} do not fit in "
                    f"the memory of the device ({reason}). Give a smaller --image-size, another model, or another "
                    "--device."
                )
            self.parts *= 2
            self.say(
                f"out of memory: each batch of {len(images)} is now split into {self.parts} parts, "
                "whose gradients are added up"
            )

    def _stopped_compiling(self, error: RuntimeError) -> bool:
        """Return whether the compiler failed at the first step; the model then runs uncompiled."""
        if self._forward is self.model:
            return False
        from torch._dynamo.exc import TorchDynamoException  # slow to import, and loaded by now

        if not isinstance(error, TorchDynamoException):
            return False
        self._forward, reason = self.model, _first_line(error)
        self.how = f"{'graph' if self._side else 'eager'} (not compiled: {reason})"
        self.say(f"the model cannot be compiled here ({reason}); it runs uncompiled")
        return True

    def _step(self, images: Tensor, masks: Tensor) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        whole = torch.zeros((), device=images.device)
        for part, truth in zip(images.tensor_split(self.parts), masks.tensor_split(self.parts), strict=True):
            with autocast(self.device, self.settings.precision, emulated=True):
                logits = logits_of(self._forward, part)
            value = self.loss(logits, truth) * (len(part) / len(images))
            value.backward()  # type: ignore[no-untyped-call]
            whole += value.detach()
        if self.settings.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        self.optimizer.step()
        return whole

    def _capture(self, images: Tensor, masks: Tensor) -> None:
        """Record one step without taking it; if that fails, stay eager and say why."""
        self._images, self._masks = images.clone(), masks.clone()
        self.optimizer.zero_grad(set_to_none=True)  # the graph owns its gradients
        assert self._side is not None
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        current = torch.cuda.current_stream(self.device)
        try:
            # We restore the current stream: before PyTorch 2.13 a failed capture leaves its own.
            with (
                torch.cuda.stream(current),
                torch.cuda.graph(graph, pool, self._side, capture_error_mode="thread_local"),
            ):
                self._value = self._step(self._images, self._masks)
        except (RuntimeError, ValueError, TypeError) as error:  # such as a loss that reads a value from the device
            _undo_capture(pool, self._side)
            self._side = None
            reason = _first_line(error.__context__ or error)  # the error of the step, not of ending the capture
            self.how = f"eager (no graph: {reason})"
            self.say(f"the training step cannot be captured as a CUDA graph ({reason}); it runs eagerly")
            return
        self._graph = graph


def _undo_capture(pool: tuple[int, int], stream: torch.cuda.Stream) -> None:
    """End the capture mode that a failed capture leaves in allocator and random generator before PyTorch 2.13."""
    try:
        torch._C._cuda_endAllocateToPool(stream.device_index, pool)
    except RuntimeError:  # it has already ended
        pass
    else:
        torch._C._cuda_releasePool(stream.device_index, pool)
    # A capture that succeeds resets the generator.
    with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=stream, capture_error_mode="thread_local"):
        torch.zeros((), device=stream.device)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _optimizer(
    parameters: Sequence[nn.Parameter], lr: float, settings: Train, device: torch.device
) -> torch.optim.Optimizer:
    """Return a fused optimizer; on a GPU its rate is a tensor on the device, where a captured step reads it."""
    decay, momentum = settings.weight_decay, settings.momentum
    on_gpu = device.type == "cuda"
    rate = torch.tensor(lr, device=device) if on_gpu else lr
    if settings.optimizer == "sgd":
        nesterov = momentum > 0
        return torch.optim.SGD(parameters, rate, momentum, weight_decay=decay, nesterov=nesterov, fused=True)
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, rate, weight_decay=decay, fused=True, capturable=on_gpu)
