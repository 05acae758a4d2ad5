"""The plug-in through which lmms-eval (https://github.com/EvolvingLMMs-Lab/lmms-eval, 0.7.3 or newer) finds TheWorld.

lmms-eval reads the manifest of every installed plug-in at its start, so nothing slow is imported here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest


def manifest() -> ModelManifest:
    """`--model theworld`, and for `--force_simple` the form that answers likelihood tasks."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id="theworld",
        chat_class_path="theworld.evaluation.lmms.model.TheWorldChat",
        simple_class_path="theworld.evaluation.lmms.model.TheWorldSimple",
    )
