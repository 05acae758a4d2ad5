"""Muon for the matrices inside the layers and AdamW for the rest, as one optimizer that Trainer can drive and save.

Muon (https://kellerjordan.github.io/posts/muon) makes the update of a matrix orthogonal. Embeddings, norms, projectors
and whatever is no matrix inside a layer are not what it is for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn


def inside_layers(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon takes a parameter: a matrix inside one of a tower's layers."""
    return ".layers." in name and parameter.ndim == 2


class MuonWithAdamW(torch.optim.Optimizer):
    """Two optimizers that step together; their groups are those of both, so schedules and clipping see all.

    Args:
        matrices: for Muon.
        rest: groups for AdamW.
        muon_learning_rate, weight_decay: of Muon.
        adamw: further arguments of AdamW.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        rest: list[dict[str, Any]],
        muon_learning_rate: float,
        weight_decay: float,
        **adamw: Any,
    ) -> None:
        self.muon = torch.optim.Muon(matrices, lr=muon_learning_rate, weight_decay=weight_decay)
        self.adamw = torch.optim.AdamW(rest, **adamw)
        # the constructor fills in defaults that AdamW lacks; the groups themselves are the two optimizers' own
        super().__init__([*self.muon.param_groups, *self.adamw.param_groups], {})
        self._share_groups()

    def _share_groups(self) -> None:
        self.param_groups = [*self.adamw.param_groups, *self.muon.param_groups]  # logs show the rate of the first

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.muon.step()
        self.adamw.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        self.muon.load_state_dict(state_dict["muon"])
        self.adamw.load_state_dict(state_dict["adamw"])
        self._share_groups()
