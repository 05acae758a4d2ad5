"""The page: its parts, and what happens when a visitor uses them.

Nothing about a visitor is kept in this process: what the page shows is sent back with every request, and requests to
the model are done one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
from gradio_client.utils import is_http_url_like

from theworld.demo import rendering
from theworld.demo.comparison import MAX_FUTURES, MAX_QUESTION, Asked, compare, read, seen, split_options
from theworld.demo.scenes import Scene, scenes
from theworld.inference.pipeline import TheWorld
from theworld.media.limits import MediaLimits
from theworld.messages import Progress
from theworld.model.call_plan import steps_to_imagine
from theworld.serving.errors import as_request_error

MAX_SEED = 99
DEFAULT_FUTURES = 4
WAITING = 32  # visitors who wait for the model; more are asked to come back
KEEP_SECONDS = 3600  # how long a file of a visitor is kept
SYSTEM_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif")
MONO_FONTS = ("ui-monospace", "Consolas", "DejaVu Sans Mono", "monospace")


def upload(**settings: Any) -> gr.File:
    """A file that a visitor sends; an address in its place is refused, so that the server fetches nothing.

    Not a subclass, beside whose module Gradio would write a file.
    """
    component = gr.File(**settings)
    move, move_soon = component.move_resource_to_block_cache, component.async_move_resource_to_block_cache

    async def checked(path: Any) -> str | None:
        return await move_soon(refuse_address(path))

    vars(component).update(
        move_resource_to_block_cache=lambda path: move(refuse_address(path)), async_move_resource_to_block_cache=checked
    )
    return component


def refuse_address(path: Any) -> Any:
    if path is not None and is_http_url_like(str(path)):
        raise gr.Error("The page takes files, not addresses: drop the file itself.", print_exception=False)
    return path


def problem(error: Exception) -> str:
    """One sentence about an error, as HTML; faults of this program are logged."""
    sentence = as_request_error(error).detail
    return rendering.render("problem", text=sentence[:1].upper() + sentence[1:])


@dataclass(frozen=True)
class Page:
    """The page of a model.

    Args:
        model: with all parts of the world model in memory.
        name: of the model, for the title.
        notice: what visitors should know about the model, or None.
        limits: of what visitors send.
        futures: that are imagined unless the visitor chooses another number.
    """

    model: TheWorld
    name: str
    notice: str | None = None
    limits: MediaLimits = field(default_factory=MediaLimits)
    futures: int = DEFAULT_FUTURES

    @property
    def takes_prompts(self) -> bool:
        """Whether the world model can be steered by a text."""
        try:
            assert self.model.model.world is not None
            self.model.model.world.check_takes_prompts()
        except ValueError:
            return False
        return True

    # ----------------------------------------------------------------------------------------------------- what it does

    def ask(
        self,
        file: str | None,
        question: str,
        options: str,
        steps: int,
        futures: int,
        seed: int,
        world_prompt: str,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - how Gradio passes it
    ) -> Iterator[tuple[str, str]]:
        """Yields the results so far, and a sentence for screen readers."""
        try:
            asked = Asked(
                file,
                question or "",
                split_options(options or ""),
                int(steps),
                int(futures),
                int(seed),
                world_prompt or "",
            )
            config = self.model.config.world_config
            for compared in compare(self.model, asked, self.limits, counted_on(progress)):
                said = f"Without imagining: {compared.present.answer}."
                if compared.imagined is None:
                    said += " Imagining."
                else:
                    said += f" With imagining: {compared.imagined.answer}."
                html = rendering.results(compared, config.fps, config.seconds_per_world_step)
                yield html, rendering.render("status", text=said)
        except Exception as error:  # noqa: BLE001 - the page and the log say it
            yield problem(error), rendering.render("status", text="")

    def look(self, file: str | None) -> str:
        """What the model sees of a file, as HTML."""
        if not file:
            return ""
        try:
            return rendering.preview(*seen(self.model, read(file, self.model, self.limits)))
        except Exception as error:  # noqa: BLE001 - the page and the log say it
            return problem(error)

    def show_truth(self, number: int | None, question: str) -> str:
        """What happens in an example, as HTML."""
        return "" if number is None else rendering.truth(scenes()[number], question or "")

    # ----------------------------------------------------------------------------------------------------- how it looks

    def build(self, folder: Path) -> gr.Blocks:
        """The page; the images of its examples are written into `folder`."""
        images = [write_image(folder, scene) for scene in scenes()]
        config = self.model.config
        with gr.Blocks(
            title=f"TheWorld · {self.name}", analytics_enabled=False, fill_width=True, delete_cache=(KEEP_SECONDS,) * 2
        ) as blocks:
            gr.HTML(rendering.render("title", name=self.name, notice=self.notice or ""), elem_classes="tw-title")
            number = gr.State(None)  # of the example, in the visitor's page
            gr.HTML(rendering.render("heading", text="Examples: what happens next?"))
            with gr.Row(elem_id="scenes"):
                buttons = [
                    gr.Button(scene.name, icon=image, size="sm", min_width=90)
                    for scene, image in zip(scenes(), images, strict=True)
                ]
            with gr.Row(equal_height=False):
                with gr.Column(scale=2, min_width=320):
                    with gr.Row(equal_height=False):
                        file = upload(
                            label="Image or video",
                            file_types=["image", "video"],
                            height=150,
                            min_width=200,
                            elem_id="file",
                        )
                        preview = gr.HTML(elem_id="seen", min_width=150)
                    known = gr.Radio(label="Questions of this example", visible=False, elem_id="known")
                    question = gr.Textbox(
                        label="Question",
                        lines=2,
                        max_length=MAX_QUESTION,
                        placeholder="What happens next?",
                        elem_id="question",
                    )
                    options = gr.Textbox(
                        label="Possible answers",
                        info="Separated by commas, to see the probability of each one. Empty: the model writes freely.",
                        elem_id="options",
                    )
                    world_prompt = gr.Textbox(
                        label="What if …",
                        info="A text that steers the imagined futures: the cup is pushed to the left.",
                        visible=self.takes_prompts,
                        elem_id="prompt",
                    )
                    button = gr.Button("Ask", variant="primary", elem_id="ask")
                    with gr.Accordion("What is imagined", open=True):
                        steps = gr.Slider(
                            1,
                            config.max_world_steps,
                            steps_to_imagine(config),
                            step=1,
                            label="World steps",
                            info=f"How far ahead: {config.world_config.seconds_per_world_step:g} s each.",
                            elem_id="steps",
                        )
                        futures = gr.Slider(
                            1,
                            MAX_FUTURES,
                            self.futures,
                            step=1,
                            label="Futures",
                            info="How many are imagined, with a seed each.",
                            elem_id="futures",
                        )
                        seed = gr.Slider(
                            0,
                            MAX_SEED,
                            0,
                            step=1,
                            label="Seed",
                            info="Another seed gives other futures.",
                            elem_id="seed",
                        )
                with gr.Column(scale=3, min_width=320):
                    status = gr.HTML(rendering.render("status", text=""), elem_id="status")
                    results = gr.HTML(rendering.render("empty"), elem_id="results", min_height=120)
                    show = gr.Button("Show what really happens", visible=False, elem_id="show")
                    what_happens = gr.HTML(elem_id="truth")

            inputs = [file, question, options, steps, futures, seed, world_prompt]
            gr.on(
                [button.click, question.submit, options.submit],
                self.ask,
                inputs,
                [results, status],
                concurrency_limit=1,
                concurrency_id="model",
                api_visibility="private",
                show_progress="full",
                show_progress_on=results,
                scroll_to_output=True,
            )
            quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
            outputs = [file, preview, number, known, question, options, show, what_happens, results, status]
            for index, (scene, image) in enumerate(zip(scenes(), images, strict=True)):
                buttons[index].click(chosen(self, index, scene, image), None, outputs, **quiet)
            known.input(
                lambda text, at: options_of(at, text), [known, number], [question, options, what_happens], **quiet
            )
            forgotten = [number, known, show, what_happens]
            file.upload(lambda path: (self.look(path), *forget()), file, [preview, *forgotten], **quiet)
            file.clear(lambda: ("", *forget()), None, [preview, *forgotten], **quiet)
            show.click(self.show_truth, [number, question], what_happens, **quiet)
        blocks.queue(max_size=WAITING, default_concurrency_limit=4, api_open=False)
        return blocks


def counted_on(progress: gr.Progress) -> Progress:
    """Reports denoising passes on a bar of Gradio's."""
    return lambda done, total: progress((done, total), desc="Imagining", unit="passes") and None


def write_image(folder: Path, scene: Scene) -> str:
    path = folder / f"{scene.name.lower().replace(' ', '-')}.png"
    path.write_bytes(scene.image)
    return str(path)


def chosen(page: Page, index: int, scene: Scene, image: str) -> Callable[[], tuple[Any, ...]]:
    """What a click on an example does."""

    def choose() -> tuple[Any, ...]:
        first = scene.questions[0]
        texts = [question.text for question in scene.questions]
        return (
            image,
            page.look(image),
            index,
            gr.Radio(texts, value=first.text, visible=True),
            first.text,
            ", ".join(first.options),
            gr.Button(visible=True),
            "",
            rendering.render("empty"),
            rendering.render("status", text=f"{scene.name} is chosen."),
        )

    return choose


def options_of(index: int | None, text: str) -> tuple[str, str, str]:
    """One of the example's questions, its possible answers, and an empty truth."""
    found = [] if index is None else [known for known in scenes()[index].questions if known.text == text]
    return text, ", ".join(found[0].options) if found else "", ""


def forget() -> tuple[Any, ...]:
    """The page without an example."""
    return None, gr.Radio(visible=False, value=None), gr.Button(visible=False), ""


def theme() -> gr.themes.Base:
    """Gradio's theme with fonts of the visitor's system, and with small texts that are dark enough to be read."""
    base = gr.themes.Default(primary_hue="indigo", secondary_hue="indigo", font=SYSTEM_FONTS, font_mono=MONO_FONTS)
    return base.set(
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
    )
