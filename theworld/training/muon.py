"""Muon for the matrices inside the layers and AdamW for the rest, as one optimizer that Trainer can use and save.

Muon (https://kellerjordan.github.io/posts/muon) orthogonalises the update of a matrix. It is not meant for embeddings,
norms, projectors and other parameters outside the layers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


def inside_layers(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon updates a parameter: a matrix inside one of the layers of a tower."""
    return ".layers." in name and parameter.ndim == 2


class MuonWithAdamW(torch.optim.Optimizer):
    """Two optimizers that step together. Its parameter groups are those of both, so that schedules apply to all.

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
        # The constructor fills in missing defaults; the groups are the objects of the two optimizers themselves.
        super().__init__([*self.muon.param_groups, *self.adamw.param_groups], {})
        self._share_groups()

    def _share_groups(self) -> None:
        # AdamW's groups come first: the log shows the learning rate of the first group
        self.param_groups = [*self.adamw.param_groups, *self.muon.param_groups]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of both."""
        self.muon.step()
        self.adamw.step()

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.muon.load_state_dict(state_dict["muon"])
        self.adamw.load_state_dict(state_dict["adamw"])
        self._share_groups()
