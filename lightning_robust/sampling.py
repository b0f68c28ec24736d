"""Which examples an epoch plays: the plan is data, the sampler plays it."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from lightning_robust.contracts import ContractError
from lightning_robust.randomness import generator


class Supply(Protocol):
    """Whole batches, made when a loader asks for them: they may depend on what was trained before.

    Loader workers make it ask ahead of training. Asked again for a batch that has not been trained
    on, as after a resume, it must give the same.
    """

    @property
    def num_batches(self) -> int:
        """How many batches an epoch has."""

    def batch(self, number: int) -> Tensor:
        """Batch ``number`` of the epoch, of all ranks together: (batch size * ranks,) int64."""


@dataclass(frozen=True)
class SamplingPlan:
    """What one epoch is made of.

    **Weights**: all 0 or 1 is one pass without replacement over what is kept; anything else draws
    with replacement, in proportion, as many examples as have a weight above 0. With a **supply**,
    an epoch is the supply's batches; the weights then are what it draws from.

    Args:
        num_examples: Size n of the training set.
        weights: (n,) float64, >= 0; ``None`` keeps everything.
        supply: Where whole batches come from; ``None`` plays the weights.

    Raises:
        ContractError: A weight is negative or not finite, or nothing is kept.

    Example:
        >>> SamplingPlan(4, torch.tensor([1.0, 0.0, 1.0, 0.0])).order(generator(0, "doc"), False)
        tensor([0, 2])
    """

    num_examples: int
    weights: Tensor | None = None
    supply: Supply | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be played."""
        if self.weights is not None:
            _check_vote(self.weights, self.num_examples, "weights")
            if not bool((self.weights > 0).any()):
                raise ContractError(
                    "weights leave out every example: the votes of the methods exclude each "
                    "other; keep at least one example, or remove one of the methods"
                )

    @classmethod
    def of_votes(cls, votes: Sequence[Tensor], num_examples: int) -> SamplingPlan:
        """The product of votes, each (n,) with entries >= 0; no vote keeps everything."""
        weights = None
        for vote in votes:
            _check_vote(vote, num_examples, "vote")
            weights = vote.double() if weights is None else weights * vote.double()
        return cls(num_examples, weights)

    @property
    def with_replacement(self) -> bool:
        """Whether examples are drawn with replacement."""
        return self.weights is not None and not bool(
            ((self.weights == 0) | (self.weights == 1)).all()
        )

    def __len__(self) -> int:
        """How many examples an epoch of the weights plays, over all ranks."""
        return self.num_examples if self.weights is None else int((self.weights > 0).sum())

    def order(self, random: torch.Generator, shuffle: bool = True) -> Tensor:
        """The dataset indices of one epoch of the weights, in the order all ranks together play.

        Args:
            random: Where the draws come from.
            shuffle: Whether a pass without replacement is shuffled.

        Returns:
            (len(self),) int64.
        """
        if self.with_replacement:
            assert self.weights is not None
            # Inversion instead of torch.multinomial, which stops at 2**24 examples.
            cumulative = self.weights.cumsum(0)
            draws = torch.rand(len(self), generator=random, dtype=torch.float64)
            drawn = torch.searchsorted(cumulative, draws * cumulative[-1], right=True)
            return drawn.clamp_(max=int(self.weights.nonzero()[-1]))
        kept = (
            torch.arange(self.num_examples)
            if self.weights is None
            else self.weights.nonzero().squeeze(1)
        )
        return kept[torch.randperm(len(kept), generator=random)] if shuffle else kept


def _check_vote(vote: Tensor, num_examples: int, name: str) -> None:
    if vote.shape != (num_examples,):
        raise ContractError(
            f"{name} has shape {tuple(vote.shape)}; one number an example is needed: "
            f"({num_examples},)"
        )
    if not bool((vote.isfinite() & (vote >= 0)).all()):
        index = int((~(vote.isfinite() & (vote >= 0))).nonzero()[0])
        raise ContractError(
            f"{name} is {vote[index].item()} for example {index}; give finite numbers >= 0"
        )


class PlanSampler(DistributedSampler[int]):
    """Plays a :class:`SamplingPlan`, one rank's share of it, and knows what it played.

    The order is a pure function of (plan, seed, epoch): iterating twice, in a worker or after a
    resume gives the same. The rank is read when it is needed, so the sampler may be built before
    the processes are. Every rank plays equally many examples: a plan of weights is padded with its
    own first examples (at most ``world size - 1`` of them), and of a supplied batch, which is that
    of all ranks together, each rank plays its share.

    It subclasses :class:`~torch.utils.data.DistributedSampler` because that is the one kind of
    sampler that Lightning leaves alone under DDP.

    Args:
        num_examples: Size n of the training set.
        batch_size: Examples in a batch of one rank.
        seed: Seed of the order.
        shuffle: Whether passes without replacement are shuffled.

    Example:
        >>> sampler = PlanSampler(6, batch_size=2, seed=0)
        >>> sampler.set_plan(SamplingPlan(6, torch.tensor([1.0, 1, 1, 1, 0, 0])))
        >>> len(sampler), sorted(sampler)
        (4, [0, 1, 2, 3])
        >>> sampler.indices_of_batch(1).shape
        torch.Size([2])
    """

    def __init__(
        self, num_examples: int, *, batch_size: int = 1, seed: int = 0, shuffle: bool = True
    ) -> None:
        # DistributedSampler.__init__ would ask for the process group now; ours is asked when used.
        self.plan = SamplingPlan(num_examples)
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0
        self._skip = (0, 0)  # (epoch, batches of it that were played before a resume)
        self._played: Tensor | None = None
        self._supplied: dict[int, Tensor] = {}

    @property
    def num_replicas(self) -> int:  # type: ignore[override]
        """Number of ranks that share an epoch."""
        return torch.distributed.get_world_size() if _distributed() else 1

    @property
    def rank(self) -> int:  # type: ignore[override]
        """This process's place among them."""
        return torch.distributed.get_rank() if _distributed() else 0

    def set_plan(self, plan: SamplingPlan) -> None:
        """Play ``plan`` from the next iteration on."""
        self.plan = plan

    def resume(self, epoch: int, batches_played: int) -> None:
        """Continue ``epoch`` behind its first ``batches_played`` batches of this rank."""
        self.epoch = epoch
        self._skip = (epoch, batches_played)

    @property
    def places_skipped(self) -> int:
        """How many examples of the current epoch this rank played before a resume."""
        epoch, batches = self._skip
        return batches * self.batch_size if epoch == self.epoch else 0

    def local_order(self) -> Tensor:
        """This rank's indices of the current epoch of weights, (len(self),) int64."""
        order = self.plan.order(generator(self.seed, "sampling", self.epoch), self.shuffle)
        places = torch.arange(self.rank, len(self) * self.num_replicas, self.num_replicas)
        return order[places % len(order)]

    def indices_of_batch(self, batch: int) -> Tensor:
        """The dataset indices in batch number ``batch`` of the epoch that is being played."""
        if self.plan.supply is not None and batch in self._supplied:
            return self._supplied[batch]
        if self._played is None:
            raise RuntimeError("indices_of_batch needs an iteration to have begun")
        return self._played[batch * self.batch_size : (batch + 1) * self.batch_size]

    def __iter__(self) -> Iterator[int]:
        """This rank's indices of the current epoch, behind what a resume skips."""
        if self.plan.supply is not None:
            return self._from_supply(self.plan.supply)
        self._played = self.local_order()
        return iter(self._played[self.places_skipped :].tolist())

    def _from_supply(self, supply: Supply) -> Iterator[int]:
        self._supplied.clear()
        for number in range(self.places_skipped // self.batch_size, supply.num_batches):
            batch = supply.batch(number)
            if len(batch) != self.batch_size * self.num_replicas:
                raise ContractError(
                    f"a supplied batch has {len(batch)} examples and {self.num_replicas} rank(s) "
                    f"play {self.batch_size} each; make them equal"
                )
            self._supplied[number] = batch[self.rank :: self.num_replicas]
            yield from self._supplied[number].tolist()

    def __len__(self) -> int:
        """How many examples this rank plays in a whole epoch."""
        if self.plan.supply is not None:
            return self.plan.supply.num_batches * self.batch_size
        return -(-len(self.plan) // self.num_replicas)


class RecordingBatchSampler:
    """Plays another batch sampler and remembers which indices it gave out.

    Works around any batch sampler, and with worker processes: batches come back in the order in
    which their indices were given out.

    Args:
        inner: The batch sampler to play.

    Example:
        >>> from torch.utils.data import BatchSampler
        >>> recording = RecordingBatchSampler(BatchSampler(range(3), 2, drop_last=False))
        >>> list(recording), recording.next_batch()
        ([[0, 1], [2]], [0, 1])
    """

    _of_loader: ClassVar[weakref.WeakKeyDictionary[Any, RecordingBatchSampler]] = (
        weakref.WeakKeyDictionary()
    )

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self._given_out: dict[str, deque[list[int]]] = {"": deque()}
        self._readers: set[str] = set()

    @classmethod
    def put_in(cls, loader: DataLoader[Any], reader: str = "") -> RecordingBatchSampler:
        """Record the batches of ``loader`` from now on, for one more reader.

        A loader gets the same recording each time: persistent workers hold on to the first.
        """
        recording = cls._of_loader.setdefault(loader, cls(loader.batch_sampler))
        recording._given_out.setdefault(reader, deque())
        recording._readers.add(reader)
        if loader.batch_sampler is not recording:
            recording.inner = loader.batch_sampler
            object.__setattr__(loader, "batch_sampler", recording)  # DataLoader freezes it
        return recording

    @staticmethod
    def take_out(loader: DataLoader[Any], reader: str = "") -> None:
        """Put back what :meth:`put_in` found, when the last reader goes."""
        recording = loader.batch_sampler
        if isinstance(recording, RecordingBatchSampler):
            recording._readers.discard(reader)
            if not recording._readers:
                object.__setattr__(loader, "batch_sampler", recording.inner)

    @property
    def sampler(self) -> Any:
        """The sampler inside, whose epoch Lightning sets."""
        return getattr(self.inner, "sampler", None)

    def next_batch(self, reader: str = "") -> list[int]:
        """The indices of the batch after the one of the reader's last call."""
        return self._given_out[reader].popleft()

    def __iter__(self) -> Iterator[list[int]]:
        """The inner sampler's batches."""
        for given_out in self._given_out.values():
            given_out.clear()
        for batch in self.inner:
            for given_out in self._given_out.values():
                given_out.append(list(batch))
            yield batch

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.inner)

    def __getattr__(self, name: str) -> Any:
        """What else the inner sampler offers, such as ``batch_size``."""
        if name.startswith("__") or "inner" not in vars(self):
            raise AttributeError(name)
        return getattr(self.inner, name)


def is_padding(sampler: object, positions: Tensor) -> Tensor:
    """Which of this rank's examples only fill up the last round of ranks.

    A :class:`~torch.utils.data.DistributedSampler` repeats its first examples so that all ranks
    have equally many; metrics must not count them twice.

    Args:
        sampler: What orders the examples.
        positions: (B,) places in this rank's order, from 0.

    Returns:
        (B,) bool.

    Example:
        >>> sampler = DistributedSampler(range(5), num_replicas=2, rank=1, shuffle=False)
        >>> list(sampler), is_padding(sampler, torch.arange(3))
        ([1, 3, 0], tensor([False, False,  True]))
    """
    if isinstance(sampler, PlanSampler) and sampler.plan.supply is None:
        total = len(sampler.plan)
    elif isinstance(sampler, DistributedSampler) and not isinstance(sampler, PlanSampler):
        total = len(sampler.dataset)  # type: ignore[arg-type]
    else:
        return torch.zeros(len(positions), dtype=torch.bool)
    return positions * sampler.num_replicas + sampler.rank >= total


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
