"""Train with Hugging Face's Trainer: `theworld train` as a script, with one function to replace for your own data.

python scripts/train_hf.py --config configs/nano_projector.json
torchrun --nproc_per_node=4 scripts/train_hf.py --config configs/default.json
"""

from __future__ import annotations

from typing import Annotated

import typer

from theworld.cli import errors, options, token, train
from theworld.training import dataset_loading
from theworld.training.config import TrainingConfig


def load_datasets(config: TrainingConfig) -> dataset_loading.Datasets:
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
    return dataset_loading.load_datasets(config)


def main(
    config: Annotated[str, typer.Option("--config", metavar="FILE", help="A JSON file.")] = "configs/default.json",
    resume_from: train.ResumeFrom = None,
    output_dir: train.OutputDir = None,
    hf_token: train.HfToken = None,
    dataset: train.DatasetName = None,
    num_samples: train.NumSamples = None,
    streaming: train.Streaming = None,
    changes: train.Changes = None,
    debug: options.Debug = False,
) -> None:
    """Train a model: defaults, then the config, then these options. Every key of a config is an option as well.

    Example: python scripts/train_hf.py --config configs/default.json --output_dir runs/first
    """
    with errors.user_facing_errors(lambda: debug):
        settings = train.read_config(
            config, resume_from, output_dir, hf_token, dataset, num_samples, streaming, changes
        )
        train.run(settings, load_datasets)


if __name__ == "__main__":
    token.hide_token()
    program = typer.Typer(add_completion=False)
    program.command(cls=train.ConfigCommand)(main)
    program()
