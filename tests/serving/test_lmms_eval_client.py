"""lmms-eval's model of OpenAI's API asks a server, and gets the answers of `TheWorld.generate`."""

from __future__ import annotations

import pytest

from benchmarks.serving_load import lmms_eval_answers
from tests.serving.conftest import QUESTION, image_of
from theworld import TheWorld
from theworld.serving.server import Server


@pytest.mark.slow  # its packages take long to import
def test_lmms_eval_gets_the_answers_of_generate(server: Server, model: TheWorld) -> None:
    pytest.importorskip("lmms_eval", reason='lmms-eval is not installed: pip install "theworld[eval]"')
    asked = [(image_of(number), f"{QUESTION} {'red ' * number}") for number in range(5)]
    expected = [model.generate(image, question, max_new_tokens=8) for image, question in asked]
    assert len(set(expected)) > 1
    assert lmms_eval_answers(server.url, "tiny", asked, 8) == expected
