"""RepresentationMonitor: what the input of the classifier head is like, at every validation."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, IterableDataset
from torchmetrics import MeanMetric, Metric

from lightning_robust.callbacks._taps import LoaderTap
from lightning_robust.contracts import (
    ContractError,
    GroupsLike,
    check_in_range,
    check_positive,
    resolve_groups,
    targets_of,
)
from lightning_robust.functional.representation import logit_norm, weight_norm
from lightning_robust.observing import Observer
from lightning_robust.representation import (
    ClassSeparation,
    Compressibility,
    ConflictingLossRatio,
    Selectivity,
    Sparsity,
)
from lightning_robust.sampling import RecordingBatchSampler, is_padding
from lightning_robust.steering import HeadHook, class_logits, find_head

_READER = "RepresentationMonitor"


class RepresentationMonitor(Callback):
    """Logs how compressible and how selective the learned representations are.

    **What changes**: nothing in the training. The input of the classifier head is read while the
    module validates, and values are logged at the end of the validation epoch. **Needs** targets of
    the validation set, and its bias labels for the two measures of bias. **Costs** a sort of each
    representation, and two sums a class and feature. Under DDP examples that a sampler repeats to
    fill up ranks do not count twice.

    Args:
        attributes: Bias labels of the validation set, numbered like the classes they go with:
            what :func:`~lightning_robust.contracts.resolve_groups` reads, or a mapping
            ``{"val": ...}`` of it. ``None`` leaves the measures of bias out.
        q: Of the norm of the compressibility, > 0.
        kappa: Share of the entries that compressibility keeps, in [0, 1].
        head: Name of the module that returns the logits; ``None`` finds it.

    Raises:
        ContractError: A value out of range; before the first step: validation data without targets,
            attributes that do not fit, an ``IterableDataset``, no head is found.

    Logged keys, with ``/loader_<i>`` behind them where there are several loaders:
        ``representation/sparsity``, ``representation/compressibility``,
        ``representation/class_separation``, ``representation/class_selectivity``,
        ``representation/logit_norm``, ``representation/weight_norm``; with ``attributes`` also
        ``representation/bias_selectivity`` and ``representation/conflicting_loss_ratio``.
        Selectivity supposes activations of at least 0, as after a ReLU.

    References:
        Sections 3.2, 3.3 and 6 of Barsbey et al., Large Learning Rates Simultaneously Achieve
        Robustness to Spurious Correlations and Compressibility, ICCV 2025.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_robust import RepresentationMonitor
        >>> trainer = Trainer(callbacks=[RepresentationMonitor()], logger=False)
    """

    def __init__(
        self,
        attributes: GroupsLike | Mapping[str, GroupsLike] | None = None,
        *,
        q: float = 2.0,
        kappa: float = 0.1,
        head: str | None = None,
    ) -> None:
        check_positive("q", q)
        check_in_range("kappa", kappa, 0, 1)
        self.attributes = attributes
        self.q = q
        self.kappa = kappa
        self.head = head
        self._trainer: Trainer | None = None
        self._module: LightningModule | None = None
        self._tap: LoaderTap | None = None
        self._hook: HeadHook | None = None
        self._seen: tuple[Tensor, Tensor] | None = None
        self._meters: weakref.WeakKeyDictionary[DataLoader[Any], _Meter] = (
            weakref.WeakKeyDictionary()
        )
        self._training: weakref.WeakSet[Any] = weakref.WeakSet()
        self._measured: list[_Meter] = []

    # ---- loaders and head ----------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Watch for loaders."""
        if stage in ("fit", "validate") and self._tap is None:
            self._trainer, self._module = trainer, pl_module
            self._tap = LoaderTap(trainer, self._process)

    def _process(self, loader: Any) -> Any:
        assert self._trainer is not None
        if self._trainer.training and isinstance(loader, DataLoader):
            self._training.add(loader)
        elif self._trainer.validating or self._trainer.sanity_checking:
            self._measure(loader)
        if loader in self._training and loader in self._meters:
            raise ContractError(
                "one DataLoader is both the train and the val loader, so their epochs would run "
                "into each other; make two DataLoaders over the data set"
            )
        return loader

    def _measure(self, loader: Any) -> None:
        if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
            raise ContractError(
                "RepresentationMonitor cannot know the targets of the val loader's "
                f"{type(getattr(loader, 'dataset', loader)).__name__}: give a DataLoader over a "
                "map-style data set"
            )
        if loader not in self._meters:
            targets = targets_of(loader.dataset)
            attributes = None
            if self.attributes is not None:
                attributes = resolve_groups(self.attributes, loader.dataset, split="val").ids
            self._find_head(loader, int(targets.max()) + 1)
            self._meters[loader] = _Meter(loader, targets, attributes, self.q, self.kappa)

    def _find_head(self, loader: DataLoader[Any], num_classes: int) -> None:
        if self._hook is None:
            assert self._trainer is not None
            assert self._module is not None
            probe = Observer(self._trainer, self._module, HeadHook(nn.Identity()), loader)
            _, head = find_head(
                self._module,
                num_classes,
                head=self.head,
                last_to_run=lambda candidates: probe.last_to_run(loader.dataset, candidates),
            )
            self._hook = HeadHook(head, first=True)
            self._hook.attach(self._module)

    # ---- Lightning's hooks ---------------------------------------------------------------------

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from zero."""
        loaders = tree_leaves(trainer.val_dataloaders)
        self._measured = [self._meters[one] for one in loaders if one in self._meters]
        for meter in self._measured:
            meter.reset()

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Listen to the head."""
        if self._hook is not None:
            self._hook.readers[:] = [self._read]
            self._seen = None

    def _read(self, features: Tensor, logits: Tensor) -> None:
        self._seen = features, logits

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Measure the batch."""
        if self._hook is None:
            return
        self._hook.readers.clear()
        if self._seen is None:
            raise ContractError(
                f"head ({type(self._hook.head).__name__}) did not run in the val step, so "
                "RepresentationMonitor saw no features; name the module that returns the logits "
                "with head="
            )
        self._measured[dataloader_idx].update(*self._seen)
        self._seen = None

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the epoch."""
        if trainer.sanity_checking:
            return
        for number, meter in enumerate(self._measured):
            behind = f"/loader_{number}" if len(self._measured) > 1 else ""
            values = meter.compute() | {"weight_norm": weight_norm(pl_module)}
            # Every rank has the same values already; sync_dist only tells Lightning so.
            pl_module.log_dict(
                {f"representation/{name}{behind}": value for name, value in values.items()},
                sync_dist=trainer.world_size > 1,
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave module and loaders as found."""
        for loader in self._meters:
            RecordingBatchSampler.take_out(loader, _READER)
        self._meters.clear()
        self._training.clear()
        self._measured.clear()
        if self._hook is not None:
            self._hook.detach()
        if self._tap is not None:
            self._tap.remove()
        self._trainer = self._module = self._tap = self._hook = self._seen = None

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave everything as found: Lightning calls no teardown after an error."""
        self.teardown(trainer, pl_module, "fit")


class _Meter:
    """The metrics of one loader, and which examples its batches hold."""

    def __init__(
        self,
        loader: DataLoader[Any],
        targets: Tensor,
        attributes: Tensor | None,
        q: float,
        kappa: float,
    ) -> None:
        self._recording = RecordingBatchSampler.put_in(loader, _READER)
        self._targets, self._attributes = targets, attributes
        self._q, self._kappa = q, kappa
        self.reset()

    def reset(self) -> None:
        """Count from zero."""
        self._metrics: dict[str, Metric] = {}
        self._seen = 0

    def _make(self, num_features: int, device: torch.device) -> None:
        """The metrics, once it is known how many features there are."""
        num_classes = int(self._targets.max()) + 1
        metrics: dict[str, Metric] = {
            "sparsity": Sparsity(),
            "compressibility": Compressibility(self._q, self._kappa),
            "class_separation": ClassSeparation(num_classes, num_features),
            "class_selectivity": Selectivity(num_classes, num_features),
            "logit_norm": MeanMetric(),
        }
        if self._attributes is not None:
            num_labels = int(self._attributes.max()) + 1
            metrics["bias_selectivity"] = Selectivity(num_labels, num_features)
            metrics["conflicting_loss_ratio"] = ConflictingLossRatio()
        self._metrics = {name: metric.to(device) for name, metric in metrics.items()}

    def update(self, features: Tensor, logits: Tensor) -> None:
        """Measure the batch whose features (B, ...) went into the head, and logits came out."""
        indices = torch.tensor(self._recording.next_batch(_READER))
        if len(logits) != len(indices):
            raise ContractError(
                f"the head returned {len(logits)} rows for a batch of {len(indices)} examples; a "
                "collate_fn or step that adds or drops examples cannot be measured by index"
            )
        positions = torch.arange(self._seen, self._seen + len(indices))
        self._seen += len(indices)
        kept = ~is_padding(self._recording.sampler, positions)
        here, indices = kept.to(logits.device), indices[kept]
        features, logits = features.flatten(1).float()[here], class_logits(logits).float()[here]
        targets = self._targets[indices].to(logits.device)
        if not self._metrics:
            self._make(features.shape[1], logits.device)
        for name in ("sparsity", "compressibility"):
            self._metrics[name].update(features)
        for name in ("class_separation", "class_selectivity"):
            self._metrics[name].update(features, targets)
        if len(logits):  # a batch of nothing but repeated examples
            self._metrics["logit_norm"].update(logit_norm(logits))
        if self._attributes is not None:
            attributes = self._attributes[indices].to(logits.device)
            self._metrics["bias_selectivity"].update(features, attributes)
            losses = F.cross_entropy(logits, targets, reduction="none")
            self._metrics["conflicting_loss_ratio"].update(losses, attributes != targets)

    def compute(self) -> dict[str, Tensor]:
        """Every value by its name."""
        return {name: metric.compute() for name, metric in self._metrics.items()}
