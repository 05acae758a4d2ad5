"""Stage (d): the model learns what happens next from few labels; and the controls that measure the value of imagining.

`fused` trains its projector and a LoRA on imagined futures of labelled scenes. `matched-control` trains the same LoRA,
and `direct` all of Gemma, on the same questions without world tokens. Three more are trained like `fused`, with world
tokens without information (`trained-dummy`), with true futures (`trained-oracle`), or with a frozen, untrained
projector (`frozen-random-projection`). All see the same scenes, in the same order, for the same number of steps.

The training is the general recipe (`theworld.training`); this module has its settings.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TRAINED = "trained"  # folder of a work folder with the output of the recipe, checkpoints and logs included
LORA = {
    "r": 8,
    "lora_alpha": 16,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
# keys of TrainingConfig, for all kinds
TRAINING: dict[str, Any] = {
    "dataset_name": "physics",
    "dataset_options": {
        "scenes_per_family": 300,  # the maximum for the shipped model
        "chats_per_scene": 32,
        "what_happens": 3,
        "now": 2,
        "eval_scenes_per_family": 150,
    },
    "max_steps": 1500,
    "batch_size": 64,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-3,
    "lr_scheduler": "cosine",
    "warmup_steps": 100,
    "weight_decay": 0.05,
    "adam_beta2": 0.98,
    "max_seq_length": None,
    "do_eval": True,
    "eval_steps": 250,
    "eval_batch_size": 128,
    "save_steps": 500,
    "save_total_limit": 1,
    "shown_samples": 0,
    "logging_steps": 50,
    "seed": 0,
    "num_workers": 2,
}
# keys of TrainingConfig for `fused` and the controls that change one of them
FUSED: dict[str, Any] = {
    "lora": LORA,
    "num_world_steps": 4,
    "world_steps_mix": {"0": 0.15, "1": 0.15, "2": 0.15, "4": 0.55},
    "world_dropout": 0.15,
    "futures_per_image": 4,
    "true_futures": 0.25,
    "latent_batch_size": 256,
}
DIRECT: dict[str, Any] = {
    "enable_world": False,
    "freeze_gemma_vision": False,
    "freeze_gemma_language": False,
    "learning_rate": 3e-4,
}
# changes of FUSED for each kind that starts from the reader
OF_READER: dict[str, dict[str, Any]] = {
    "fused": {},
    "trained-dummy": {"constant_world": True},
    "trained-oracle": {"true_futures": 1.0},
    "frozen-random-projection": {
        "reset_projector": True,
        "projector_positions": "sinusoidal",
        "freeze_projector": True,
    },
}
KINDS = ("fused", "matched-control", "direct", "trained-dummy", "trained-oracle", "frozen-random-projection")


@dataclass(frozen=True)
class FusionSettings:
    """How stage (d) is trained.

    Args:
        kinds: which of KINDS to train.
        training: keys of `TrainingConfig` for all kinds, see TRAINING.
        fused: further keys for the kinds with world tokens.
        direct: further keys for `direct`.
    """

    kinds: tuple[str, ...] = KINDS
    training: dict[str, Any] = field(default_factory=lambda: dict(TRAINING))
    fused: dict[str, Any] = field(default_factory=lambda: dict(FUSED))
    direct: dict[str, Any] = field(default_factory=lambda: dict(DIRECT))

    def values(self, kind: str, work: Path) -> dict[str, Any]:
        """Keys of TrainingConfig for one kind, in a work folder.

        Raises:
            ValueError: if there is no such kind.
        """
        values = {**self.training, "output_dir": str(work / TRAINED / kind)}
        if kind in OF_READER:
            start = {"model_name": str(work / "reader"), "latent_cache": str(work / "latents")}
            return {**values, **self.fused, **OF_READER[kind], **start}
        without = {"matched-control": {"lora": LORA, "enable_world": False}, "direct": self.direct}
        if kind not in without:
            raise ValueError(f"Unknown kind {kind!r} of fusion; choose one of {', '.join(KINDS)}.")
        return {
            **values, **without[kind], "model_name": str(work / "gemma"), "cosmos_model_name": str(work / "world")
        }  # fmt: skip
