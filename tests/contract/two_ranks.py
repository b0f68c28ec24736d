"""One of two gloo processes: ``python -m contract.two_ranks OUT RANK PORT METHOD...``."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Subset

from lightning_robust.callbacks._base import Method

from .cases import CASES
from .harness import Idle, Run, Varying, checkpoints, loader
from .modules import Examples, InlineLoss


class Sees(Method):
    """Keeps what it observes."""

    observes = True

    def decide(self, epoch: int) -> None:
        self.seen = self.observe("logits", "losses")


def without_a_group(n: int = 60) -> Examples:
    """Examples of group 0 are at even places only: rank 1 of an unshuffled pass has none."""
    data = Examples(n)
    data.groups = torch.arange(n) % 2
    data.group_names = ["even", "odd"]
    return data


def few() -> Subset:
    """Fewer examples than one batch of all ranks, each class among them."""
    data = Examples()
    return Subset(data, [int((data.groups == g).nonzero()[0]) for g in data.groups.unique()])


SCENARIOS: dict[str, Any] = {}
for _method, _case in {**CASES, Idle: None, Varying: None}.items():
    _make = _method if _case is None else _case.active
    SCENARIOS[f"{_method.__name__} even"] = (_make, Examples, {})
    SCENARIOS[f"{_method.__name__} uneven"] = (_make, lambda: Examples(61), {})
    if _method is not Varying:
        SCENARIOS[f"{_method.__name__} few"] = (_make, few, {})
        SCENARIOS[f"{_method.__name__} lacks a group"] = (
            _make,
            without_a_group,
            {"shuffle": False},
        )
SCENARIOS["Sees uneven"] = (Sees, lambda: Examples(61), {})


def play(name: str, world_size: int, **settings: Any) -> dict[str, Any]:
    """One scenario; a batch of all ranks together is the batch of one process."""
    make, make_data, loading = SCENARIOS[name]
    if loading:  # else Lightning shuffles, where ranks share a pass
        settings["use_distributed_sampler"] = False
    train = loader(make_data(), batch_size=16 // world_size, **loading)
    run = Run([method := make()], InlineLoss, train, **settings)
    result: dict[str, Any] = {
        "batches": run.trace.batches,
        "weights": run.weights,
        "state": {key: getattr(method, key) for key in method.state},
        "logged": dict(run.trainer.callback_metrics),
    }
    if isinstance(method, Sees):
        result["seen"] = vars(method.seen)
    return result


def resumed(folder: Path, make: Any, settings: dict[str, Any]) -> list[str]:
    """What differs, by checkpoint, between going on from it and an uninterrupted run."""
    whole = Run(
        [make(), *checkpoints(folder)], InlineLoss, loader(batch_size=8), **settings, max_epochs=4
    )
    torch.distributed.barrier()
    wrong = []
    for path in sorted(folder.glob("*.ckpt"))[::3]:
        run = Run([make()], InlineLoss, loader(batch_size=8), None, path, **settings, max_epochs=4)
        tail = whole.trace.batches[len(whole.trace.batches) - len(run.trace.batches) :]
        if run.differs_from(whole) or run.trace.batches != tail:
            wrong.append(path.name)
    return wrong


def main(out: Path, rank: int, port: str, chosen: list[str]) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "LOCAL_RANK": str(rank),
        "NODE_RANK": "0",
        "WORLD_SIZE": "2",
    }
    ddp = {"devices": 2, "strategy": "ddp"}
    for name in (name for name in SCENARIOS if name.split()[0] in chosen):
        torch.save(play(name, 2, **ddp), out / f"{name}.{rank}")
    for method, make in {**{m: c.active for m, c in CASES.items()}, Varying: Varying}.items():
        if method.__name__ not in chosen:
            continue
        (folder := out / f"checkpoints of {method.__name__}").mkdir(exist_ok=True)
        torch.save(resumed(folder, make, ddp), out / f"{method.__name__} resumed.{rank}")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # the other rank would wait for this one
