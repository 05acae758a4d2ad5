"""Train with Hugging Face's Trainer: `theworld train` as a script, with one function to replace for your own data.

python scripts/train_hf.py --config configs/nano_projector.json --output_dir runs/first
python scripts/train_hf.py --config configs/default.json --resume_from last
torchrun --nproc_per_node=4 scripts/train_hf.py --config configs/default.json
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from theworld.training import command_line

if TYPE_CHECKING:
    from theworld.training.config import TrainingConfig
    from theworld.training.dataset_loading import Datasets


def load_datasets(config: TrainingConfig) -> Datasets:
    """Training samples, and evaluation samples or None.

    By default this loads the dataset of the config. For your own data, return sequences of records instead:

        from datasets import load_dataset
        from theworld import HFDatasetWrapper, TheWorldDataset

        hub = load_dataset("your/dataset")
        train = HFDatasetWrapper(hub["train"], image_key="image", text_key="question", label_key="answer")
        evaluation = TheWorldDataset([{"image": "cat.jpg", "text": "What is this?", "label": "A cat"}])
        return train, evaluation

    Alternatively, define a function of this name in a file of your own: --dataset my_data.py
    """
    from theworld.training import dataset_loading

    return dataset_loading.load_datasets(config)


def main(arguments: list[str] | None = None) -> int:
    return command_line.main(load_datasets, __doc__ or "", "configs/default.json", arguments)


if __name__ == "__main__":
    sys.exit(main())
