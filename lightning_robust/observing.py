"""Observing: the model's view of every example of a data set, in its order, on every rank."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from lightning_robust.contracts import ContractError
from lightning_robust.functional.gradients import gradient_and_curvature, logit_gradients
from lightning_robust.functional.logits import sequence_losses
from lightning_robust.randomness import isolated
from lightning_robust.steering import HeadHook, class_logits

_SECONDS_BEFORE_A_BAR = 5.0
_ROWS_A_REDUCTION = 1 << 18


@dataclass(frozen=True)
class Observation:
    """What was asked for, a row an example in dataset order, on the CPU; the rest is ``None``.

    Args:
        logits: (n, C).
        features: (n, d), the input of the head.
        losses: (n,), cross-entropy in nats.
        gradients: (n, C), gradient of the loss with respect to the logits: softmax - one-hot.
    """

    logits: Tensor | None = None
    features: Tensor | None = None
    losses: Tensor | None = None
    gradients: Tensor | None = None


QUANTITIES = ("logits", "features", "losses", "gradients")


class _HeadHasRun(BaseException):
    """Leaves a training step as soon as its logits are known (no ``except Exception`` holds it)."""


class Observer:
    """Runs the user's own ``training_step`` up to the head, over every example of a data set.

    The step is left the moment the head has run: before the loss, before any logging, backward
    pass or optimizer step. So it works for whatever batch format, loss and optimisation the module
    has. The pass is in evaluation mode, without gradient, in the Trainer's precision, with the
    Trainer in its validating stage (a module that augments ``if self.trainer.training`` does not).

    RNG states, training flags, buffers, gradients and ``requires_grad`` flags are as found
    afterwards, also when it raises. Each rank observes every world-size-th example; rows are
    gathered by index, in chunks, so that only the (n, C) result is held, in CPU memory.

    Args:
        trainer: The running Trainer.
        module: The user's module, not wrapped.
        hook: The attached hook of its head.
        loader: The train loader; its collate function and workers are used.
        nest: Makes of a batch of the loader what ``training_step`` takes; default: the batch.

    Raises:
        ContractError: The head did not run, returned another number of rows than examples, or
            returned NaN or infinity.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        hook: HeadHook,
        loader: DataLoader[Any],
        nest: Callable[[Any], Any] | None = None,
    ) -> None:
        self.trainer, self.module, self.hook, self.loader = trainer, module, hook, loader
        self.nest = nest

    def __call__(
        self,
        dataset: Dataset[Any],
        targets: Tensor,
        quantities: Sequence[str],
        *,
        batch_size: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Observation:
        """Observe ``quantities`` of every example.

        Args:
            dataset: Map-style, of n examples that ``training_step`` understands.
            targets: (n,) int64, for losses and gradients.
            quantities: Some of ``"logits"``, ``"features"``, ``"losses"``, ``"gradients"``.
            batch_size: Examples at a time; default four training batches (nothing is kept for a
                backward pass), and one on a CPU, whose cache larger ones overflow.
            dtype: Of the stored rows; ``torch.float16`` halves the memory.
        """
        if unknown := set(quantities) - set(QUANTITIES):
            raise ContractError(
                f"quantities {sorted(unknown)} are unknown; choose from {QUANTITIES}"
            )

        def rows(indices: Tensor, batch: Any) -> dict[str, Tensor]:
            features, logits = self._until_head(batch)
            _check_rows(logits, indices)
            return _quantities(features, logits, targets[indices], quantities)

        return Observation(**self._pass(dataset, len(targets), rows, quantities, batch_size, dtype))

    def sequences(
        self, dataset: Dataset[Any], token_labels: str, reduction: Literal["mean", "sum"]
    ) -> Tensor:
        """The loss of each example of a causal language model, (n,) float32 on the CPU.

        Args:
            dataset: Map-style, of n examples that ``training_step`` understands.
            token_labels: The key of the batch that holds the labels (B, T).
            reduction: See :func:`~lightning_robust.functional.logits.sequence_losses`.

        Raises:
            ContractError: The batch has no such key, the head did not run or returned no logits a
                token, or losses are not finite.
        """

        def rows(indices: Tensor, batch: Any) -> dict[str, Tensor]:
            if not isinstance(batch, Mapping) or token_labels not in batch:
                held = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
                raise ContractError(
                    f"token_labels={token_labels!r} is not in the batch ({held}); name the key of "
                    "the labels"
                )
            logits, labels = self._raw_logits(batch), batch[token_labels]
            _check_rows(logits, indices)
            if logits.shape[:-1] != labels.shape:
                raise ContractError(
                    f"the head returned {tuple(logits.shape)} for labels {tuple(labels.shape)}; "
                    "name the module that returns logits (B, T, V) with head="
                )
            return {"losses": sequence_losses(logits, labels.to(logits.device), reduction)}

        num_examples = len(dataset)  # type: ignore[arg-type]
        found = self._pass(dataset, num_examples, rows, ("losses",), None, torch.float32)
        return found["losses"]

    def _pass(
        self,
        dataset: Dataset[Any],
        num_examples: int,
        rows_of: Callable[[Tensor, Any], dict[str, Tensor]],
        quantities: Sequence[str],
        batch_size: int | None,
        dtype: torch.dtype,
    ) -> dict[str, Tensor]:
        """What ``rows_of`` makes of each batch, in dataset order, on every rank."""
        rank, world = self.trainer.global_rank, self.trainer.world_size
        indices = torch.arange(rank, num_examples, world)
        rows: dict[str, Tensor] = {}
        on_cpu = self.module.device.type == "cpu"
        size = batch_size or (1 if on_cpu else 4) * (self.loader.batch_size or 1)
        with undisturbed(self.trainer, self.module):
            if world > 1:
                self._share_buffers()
            for batch_indices, batch in self._batches(dataset, indices, size):
                for name, values in rows_of(batch_indices, batch).items():
                    if name not in rows:
                        rows[name] = torch.zeros(num_examples, *values.shape[1:], dtype=dtype)
                    rows[name][batch_indices] = values.to("cpu", dtype)
        if world > 1:
            self._gather(rows, num_examples, quantities, dtype)
        for name, values in rows.items():
            finite = values.isfinite().view(num_examples, -1).all(1)
            if not bool(finite.all()):
                raise ContractError(
                    f"the {name} of example {int((~finite).nonzero()[0])} are not finite (NaN or "
                    "infinity): the model has diverged or the input is broken; lower the learning "
                    "rate or clean the data"
                )
        return rows

    def differentiate(
        self,
        dataset: Dataset[Any],
        targets: Tensor,
        weights: Tensor,
        parameters: Sequence[Tensor],
        probes: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Gradient and curvature of the weighted mean of the examples' cross-entropies.

        In evaluation mode, like all that is observed, and with the same probes for every batch, so
        that neither batches nor ranks show in the result. The model runs twice backward (three
        times the memory of a training step); where ``parameters`` are the head's own, only the
        head does.

        Args:
            dataset: Map-style, of n examples that ``training_step`` understands.
            targets: (n,) int64.
            weights: (n,), of the mean; they need not sum to anything.
            parameters: Those of the module to differentiate by, D numbers in all.
            probes: (num_probes, D) random signs.

        Returns:
            Gradient (D,) and the estimated diagonal of the Hessian (D,), float32, on the module's
            device, alike on all ranks.

        Raises:
            ContractError: The head did not run, or a part of the network has no second derivative.
        """
        rank, world, device = self.trainer.global_rank, self.trainer.world_size, self.module.device
        head_alone = {id(p) for p in parameters} <= {id(p) for p in self.hook.head.parameters()}
        probes = probes.to(device)
        total = torch.zeros(2, probes.shape[1], device=device)
        weights = weights / weights.sum()
        own = torch.arange(rank, len(targets), world)
        with undisturbed(self.trainer, self.module):
            if world > 1:
                self._share_buffers()
            for places, batch in self._batches(dataset, own, self.loader.batch_size or 1):
                if head_alone:
                    features, _ = self._until_head(batch)
                with torch.enable_grad():
                    logits = self.hook.head(features) if head_alone else self._raw_logits(batch)
                    losses = F.cross_entropy(
                        class_logits(logits.float()), targets[places].to(device), reduction="none"
                    )
                    loss = weights[places].to(device) @ losses
                    try:
                        parts = gradient_and_curvature(loss, parameters, probes)
                    except RuntimeError as error:
                        raise ContractError(
                            f"the network has no second derivative here ({error}); compiled "
                            "modules and fused attention have none: run them uncompiled, or "
                            "differentiate the last layer only"
                        ) from error
                total += torch.stack(parts)
        if world > 1:
            total = self.trainer.strategy.reduce(total, reduce_op="sum")
        return total[0], total[1]

    def input_gradients(
        self, batch: Any, inputs: Sequence[Tensor], targets: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Gradient of the examples' cross-entropies with respect to tensors of their batch.

        In evaluation mode, so that examples do not depend on each other; also through features
        that the module computes without gradient because they are frozen.

        Args:
            batch: What ``training_step`` takes, on the module's device, of B examples.
            inputs: Tensors in the batch, each requiring its gradient.
            targets: (B,) int64, on the module's device.

        Returns:
            One of each input's shape, or ``None`` where the logits do not depend on it.

        Raises:
            ContractError: The head did not run, or returned another number of rows than B.
        """
        HeadHook.alone = self.hook
        try:
            with undisturbed(self.trainer, self.module), torch.enable_grad():
                with _GradientStaysOn():
                    logits = self._raw_logits(batch)
                _check_rows(logits, targets)
                loss = F.cross_entropy(class_logits(logits.float()), targets, reduction="sum")
                if not (inputs and loss.requires_grad):
                    return (None,) * len(inputs)
                return torch.autograd.grad(loss, inputs, allow_unused=True)
        finally:
            HeadHook.alone = None

    def _raw_logits(self, batch: Any) -> Tensor:
        """The head's output with its graph."""
        seen: list[Tensor] = []

        def leave(_head: nn.Module, _inputs: Any, output: Tensor) -> None:
            seen.append(output)
            raise _HeadHasRun

        handle = self.hook.head.register_forward_hook(leave)
        try:
            self._step(batch)
        except _HeadHasRun:
            return seen[0]
        finally:
            handle.remove()
        raise self._head_did_not_run()

    def last_to_run(self, dataset: Dataset[Any], candidates: Mapping[str, nn.Module]) -> str | None:
        """Which candidate head runs last in a training step and depends on all that ran before.

        The step is run once on two examples with gradients enabled, and is left before any loss or
        backward pass.

        Returns:
            Its name; ``None`` if none ran, or the last does not depend on the others (two parallel
            heads).
        """
        outputs: list[tuple[str, Tensor]] = []
        handles = [
            child.register_forward_hook(
                torch.compiler.disable(
                    lambda _module, _inputs, output, name=name: outputs.append((name, output))
                )
            )
            for name, child in candidates.items()
        ]
        try:
            with undisturbed(self.trainer, self.module), torch.enable_grad():
                count = min(2, len(dataset))  # type: ignore[arg-type]
                _, batch = next(self._batches(dataset, torch.arange(count), count))
                try:
                    with _LeaveAtLoss():
                        self._step(batch)
                except _HeadHasRun:
                    pass
                if not outputs:
                    return None
                name, last = outputs[-1]
                earlier = [output for other, output in outputs[:-1] if other != name]
                if earlier:
                    gradients = torch.autograd.grad(last.sum(), earlier, allow_unused=True)
                    return None if any(gradient is None for gradient in gradients) else name
                return name
        finally:
            for handle in handles:
                handle.remove()

    def _batches(
        self, dataset: Dataset[Any], indices: Tensor, batch_size: int
    ) -> Iterator[tuple[Tensor, Any]]:
        workers = self.loader.num_workers
        if len(indices) <= 2 * workers * batch_size:  # sooner done than workers are started
            workers = 0
        loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=indices.tolist(),
            collate_fn=self.loader.collate_fn,
            num_workers=workers,
            worker_init_fn=self.loader.worker_init_fn,
            multiprocessing_context=self.loader.multiprocessing_context if workers else None,
            generator=torch.Generator(),  # iter() draws a seed: not from the global generator
        )
        shown = _with_bar(loader) if self.trainer.global_rank == 0 else loader
        for batch, batch_indices in zip(shown, indices.split(batch_size), strict=False):
            yield batch_indices, self._on_device(batch)

    def _on_device(self, batch: Any) -> Any:
        """The batch as the module's steps get it: nested, converted, through its transfer hooks."""
        batch = self.nest(batch) if self.nest is not None else batch
        batch = self.trainer.precision_plugin.convert_input(batch)
        datamodule = getattr(self.trainer, "datamodule", None)
        overridden = _overrides(datamodule, "on_before_batch_transfer")
        owner: Any = datamodule if overridden else self.module
        batch = owner.on_before_batch_transfer(batch, 0)
        return self.trainer.strategy.batch_to_device(batch, self.module.device, 0)

    def _until_head(self, batch: Any) -> tuple[Tensor, Tensor]:
        seen: list[tuple[Tensor, Tensor]] = []

        def leave(features: Tensor, logits: Tensor) -> None:
            seen.append((features, logits))
            raise _HeadHasRun

        self.hook.readers.append(leave)
        HeadHook.alone = self.hook
        try:
            self._step(batch)
        except _HeadHasRun:
            return seen[0]
        finally:
            HeadHook.alone = None
            self.hook.readers.remove(leave)
        raise self._head_did_not_run()

    def _head_did_not_run(self) -> ContractError:
        return ContractError(
            f"head ({type(self.hook.head).__name__}) did not run in training_step; name the module "
            "that returns the logits with head="
        )

    def _step(self, batch: Any) -> None:
        parameters = inspect.signature(self.module.training_step).parameters
        arguments = (batch, 0) if len(parameters) > 1 else (batch,)
        with self.trainer.precision_plugin.forward_context():
            self.module.training_step(*arguments)

    def _share_buffers(self) -> None:
        """Give every rank the first one's buffers, which are also what a checkpoint holds.

        Between two training steps under DDP each rank has running statistics of its own batches.
        """
        buffers = list(self.module.buffers())
        shared = self.trainer.strategy.broadcast([buffer.cpu() for buffer in buffers])
        for buffer, values in zip(buffers, shared, strict=True):
            buffer.copy_(values)

    def _gather(
        self,
        rows: dict[str, Tensor],
        num_examples: int,
        quantities: Sequence[str],
        dtype: torch.dtype,
    ) -> None:
        """Fill in the other ranks' rows: each row is non-zero on one rank, so their sum is it."""
        strategy, device = self.trainer.strategy, self.module.device
        for name in sorted(quantities):
            width = rows[name].shape[1] if name in rows and rows[name].ndim == 2 else 0
            width = int(strategy.reduce(torch.tensor(width, device=device), reduce_op="max"))
            if name not in rows:  # a rank without an example
                rows[name] = torch.zeros((num_examples, width)[: 1 + bool(width)], dtype=dtype)
            for chunk in rows[name].split(_ROWS_A_REDUCTION):
                chunk.copy_(strategy.reduce(chunk.to(device), reduce_op="sum"))


def _check_rows(logits: Tensor, indices: Tensor) -> None:
    if len(logits) != len(indices):
        raise ContractError(
            f"the head returned {len(logits)} rows for {len(indices)} examples; a collate_fn or "
            "training_step that adds or drops examples cannot be observed by index"
        )


def _quantities(
    features: Tensor, logits: Tensor, targets: Tensor, names: Sequence[str]
) -> dict[str, Tensor]:
    logits = class_logits(logits.float())
    targets = targets.to(logits.device)
    seen = {}
    if "logits" in names:
        seen["logits"] = logits
    if "features" in names:
        seen["features"] = features.float().flatten(1)
    if "losses" in names:
        seen["losses"] = F.cross_entropy(logits, targets, reduction="none")
    if "gradients" in names:
        seen["gradients"] = logit_gradients(logits, targets)
    return seen


def _with_bar(loader: DataLoader[Any]) -> Iterator[Any]:
    """The batches, with a progress bar once they take long.

    Not before: tqdm's lock is shared with forked processes, and one that is killed while it has
    the lock leaves all others waiting.
    """
    start, bar = time.monotonic(), None
    try:
        for number, batch in enumerate(loader):
            if bar is not None:
                bar.update()
            elif time.monotonic() - start > _SECONDS_BEFORE_A_BAR:
                text = "observing the training set"
                bar = tqdm(desc=text, initial=number, total=len(loader), leave=False)
            yield batch
    finally:
        if bar is not None:
            bar.close()


def _overrides(datamodule: Any, hook: str) -> bool:
    """Whether a user's datamodule, of either Lightning package, brings its own hook."""
    defined_in = getattr(getattr(type(datamodule), hook, None), "__module__", "lightning.")
    return not defined_in.startswith(("lightning.", "pytorch_lightning."))


class _LeaveAtLoss(TorchFunctionMode):
    """Leaves a step at its first loss function or backward pass."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if "loss" in name or "cross_entropy" in name or name == "backward":
            raise _HeadHasRun
        return func(*args, **(kwargs or {}))


class _GradientStaysOn(TorchFunctionMode):
    """Overrules ``torch.no_grad`` and its like."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch._C._set_grad_enabled:
            return None
        return func(*args, **(kwargs or {}))


@contextmanager
def undisturbed(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Evaluation mode without gradient, and everything as found at the end, also after an error.

    Kept: global RNG states, the training flag of every submodule, buffers, ``.grad``,
    ``requires_grad`` flags and the Trainer's stage. ``self.log`` is silent meanwhile.
    """
    training = [(child, child.training) for child in module.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    parameters = [(p, p.grad, p.requires_grad) for p in module.parameters()]
    stage, attributes = trainer.state.stage, dict(vars(module))
    try:
        for parameter, _, _ in parameters:
            parameter.grad = None
        module.eval()
        trainer.validating = True
        vars(module)["log"] = lambda *_, **__: None
        # Seeded: what is observed through a random augmentation is to be the same after a resume.
        # inference_mode(False): a validation loop may be running, and its tensors could never take
        # part in training.
        with isolated(seed=0), torch.inference_mode(False), torch.no_grad():
            yield
    finally:
        vars(module).clear()  # also of a step counter, or what toggle_optimizer remembers
        vars(module).update(attributes)
        trainer.state.stage = stage
        for child, flag in training:
            child.training = flag
        with torch.no_grad():
            for buffer, found in buffers:
                if not torch.equal(buffer, found):
                    buffer.copy_(found)
        for parameter, gradient, requires_grad in parameters:
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient
