"""Load a trained model from the Hub, or from a folder, and ask it about an image with and without a future.

python examples/load_from_hub.py username/theworld-mine image.png "What will happen next?"
python examples/load_from_hub.py username/theworld-mine image.png "What will happen next?" --checkpoint checkpoint-1000
"""

import argparse

from theworld import TheWorld


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a Hub id, or a folder")
    parser.add_argument("image", help="an image file")
    parser.add_argument("question")
    parser.add_argument("--checkpoint", help="a folder or file in the repository, such as checkpoint-1000")
    parser.add_argument("--num_world_steps", type=int, default=4, help="world steps to imagine (default: %(default)s)")
    parser.add_argument("--max_new_tokens", type=int, default=64, help="tokens of an answer (default: %(default)s)")
    given = parser.parse_args(arguments)

    model = TheWorld.from_pretrained(given.model, checkpoint_name=given.checkpoint)
    print("Trained parts:", ", ".join(model.config.trained_parts))
    for steps in (0, given.num_world_steps):
        answer = model.generate(given.image, given.question, given.max_new_tokens, num_world_steps=steps)
        print(f"With {steps} world steps: {answer}")


if __name__ == "__main__":
    main()
