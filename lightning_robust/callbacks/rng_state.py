"""RNGState: exact resume of modules with dropout and random augmentation."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from lightning_robust.callbacks._taps import LoaderTap
from lightning_robust.randomness import generator, global_state, resolve_seed, set_global_state


class RNGState(Callback):
    """Saves the random number generators with each checkpoint and puts them back on resume.

    Lightning does not. With it, a module with dropout, or with random augmentation in the main
    process, resumes bit for bit.

    **What changes**: the seed of a train loader's worker processes is drawn from a private
    generator, a function of (seed, epoch), instead of the global one. **Costs** 5 kB a rank in a
    checkpoint, and under DDP one gather a checkpoint. With ``num_workers > 0``, augmentation inside
    the workers is exact for checkpoints at the end of an epoch; inside an epoch the workers start
    anew.

    Args:
        seed: Seed of the workers; ``None`` takes the one given to ``seed_everything``, else 0.

    Raises:
        RuntimeError: A checkpoint of another number of ranks is resumed.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_robust import RNGState
        >>> trainer = Trainer(callbacks=[RNGState()], logger=False, enable_checkpointing=False)
    """

    def __init__(self, *, seed: int | None = None) -> None:
        self.seed = seed
        self._trainer: Trainer | None = None
        self._tap: LoaderTap | None = None
        self._generator = torch.Generator()
        self._found: tuple[DataLoader[Any], torch.Generator | None] | None = None
        self._epoch = 0
        self._to_restore: list[dict[str, Any]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Watch for the train loader."""
        if stage == "fit":
            self._trainer, self._epoch = trainer, trainer.current_epoch
            self._tap = LoaderTap(trainer, self._process)

    def _process(self, loader: Any) -> Any:
        if isinstance(loader, DataLoader) and self._trainer is not None and self._trainer.training:
            if loader.generator is not self._generator:
                self._found = (loader, loader.generator)
                loader.generator = self._generator
            self._seed_workers()
        return loader

    def _seed_workers(self) -> None:
        private = generator(resolve_seed(self.seed), "workers", self._epoch)
        self._generator.set_state(private.get_state())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the generators back: iterators exist by now, and nothing has been trained."""
        if self._to_restore:
            if len(self._to_restore) != trainer.world_size:
                raise RuntimeError(
                    f"RNGState was saved by {len(self._to_restore)} ranks, and there are "
                    f"{trainer.world_size}; resume with as many, or remove RNGState"
                )
            set_global_state(self._to_restore[trainer.global_rank])
            self._to_restore = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seed the workers of this epoch, before its iterator is made."""
        self._epoch = trainer.current_epoch
        self._seed_workers()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """After its last batch, a resume goes on with the next epoch."""
        self._epoch = trainer.current_epoch + int(trainer.is_last_batch)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the Trainer."""
        if self._tap is not None:
            self._tap.remove()
            self._trainer = self._tap = None
        if self._found is not None:
            self._found[0].generator = self._found[1]
            self._found = None

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Let go of the Trainer: Lightning calls no teardown after an error."""
        self.teardown(trainer, pl_module, "fit")

    def state_dict(self) -> dict[str, Any]:
        """Every rank's states; Lightning calls this on all ranks and saves rank 0's."""
        states: list[Any] = [global_state()]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            states = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(states, global_state())
        return {"ranks": states, "epoch": self._epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember what to put back when training starts."""
        self._to_restore, self._epoch = state_dict["ranks"], state_dict["epoch"]
