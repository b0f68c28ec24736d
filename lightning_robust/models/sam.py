"""Sharpness-aware minimisation around any optimiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_robust.contracts import ContractError, check_bool, check_positive


class SAM(Optimizer):
    """Steps by the gradient at a worse place nearby: SAM, or ASAM.

    With the gradient g of a batch the weights w move to ``w + rho g / |g|`` (SAM; Foret et al.,
    ICLR 2021), or to ``w + rho T^2 g / |T g|`` with ``T = diag(|w|) + eta`` (ASAM; Kwon et al.,
    ICML 2021), biases like weights. There the gradient is taken anew, and ``base`` steps with it
    from w. ``step`` needs a closure and calls it twice, which is what
    Lightning gives an optimiser; a step costs twice as much, and batch normalisation sees both.

    Args:
        base: The optimiser that steps, whose parameters and state these are.
        rho: Radius > 0; the papers' .05 for SAM and .5 for ASAM.
        adaptive: ASAM.
        eta: Of ASAM, > 0.

    Raises:
        ContractError: If an argument is refused, or there is no closure.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor(1.0))
        >>> optimizer = SAM(torch.optim.SGD([weight], lr=0.1), rho=0.5)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = weight**2
        ...     loss.backward()
        ...     return loss
        >>> _ = optimizer.step(closure)  # the gradient at 1.5 is 3
        >>> round(weight.item(), 4)
        0.7
    """

    def __init__(
        self, base: Optimizer, *, rho: float = 0.05, adaptive: bool = False, eta: float = 0.01
    ) -> None:
        check_positive("rho", rho)
        check_bool("adaptive", adaptive)
        check_positive("eta", eta)
        super().__init__(base.param_groups, base.defaults)
        self.base = base
        self.rho, self.adaptive, self.eta = rho, adaptive, eta
        self._share()

    def _share(self) -> None:
        self.param_groups, self.state = self.base.param_groups, self.base.state

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step once.

        Args:
            closure: Clears the gradients, computes the loss and its gradients, and returns it.

        Returns:
            The loss at the weights themselves.
        """
        if closure is None:
            raise ContractError(
                "closure must be given, SAM computes the gradient twice; with manual optimisation "
                "call optimizer.step(closure=...)"
            )
        with torch.enable_grad():
            loss = closure()
        moved = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        before = [p.clone() for p in moved]
        scales = [p.abs() + self.eta if self.adaptive else torch.ones_like(p) for p in moved]
        ascent: list[Tensor] = [t * p.grad for t, p in zip(scales, moved, strict=True)]
        norm = torch.nn.utils.get_total_norm(ascent)
        if norm > 0:
            for p, t, towards in zip(moved, scales, ascent, strict=True):
                p.add_(self.rho * t * towards / norm)
        with torch.enable_grad():
            closure()
        for p, old in zip(moved, before, strict=True):
            p.copy_(old)
        self.base.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict`` gave: the state of ``base``."""
        self.base.load_state_dict(state_dict)
        self._share()
