"""Recordings of robots in LeRobot's format (v3) as samples: what a camera sees, what happens next, and questions.

At moments of an episode that are equally spaced in time, the image is the frame of that moment, the true future are the
frames after it at the frame rate of the world model, and the questions are about the task and about the subtask that
comes next. No window reaches beyond its episode.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from theworld.datasets.lerobot_files import Episode, LeRobotFiles, images_at
from theworld.datasets.samples import Message, Sample, SampleDataset, conversation
from theworld.media.seeking import OpenVideos
from theworld.media.selection import StridedFrames
from theworld.media.video import Video
from theworld.messages import counted

logger = logging.getLogger(__name__)

TASK_QUESTION = "What is the robot doing?"
NEXT_QUESTION = "What will the robot do next?"
TOLERANCE = 1e-4  # seconds between the time of a frame in the data and in the video, as in lerobot
ROUNDING = 1e-4  # seconds; times in data files are float32


@dataclass(frozen=True)
class Moment:
    """A question about one frame of an episode."""

    episode: Episode
    frame: int
    question: str
    answer: str


class LeRobotSamples(SampleDataset):
    """Questions about moments of a robot's recordings, with the frames that followed; in order of episodes and time.

    Args:
        files: the dataset, seen by one camera.
        episodes: the numbers of the episodes.
        every: seconds between two moments of an episode.
        fps: frames per second of the past and the future, which is the world model's rate and not the dataset's.
        num_future_frames: frames after each moment; moments whose future would reach beyond the episode are left out.
        num_past_frames: frames before each moment, which make its image a video; moments that have fewer are left out.
        window: seconds after a moment in which the next subtask must begin to be asked for; None means the length of
            the future.
        task_question: asks for the task; None asks nothing.
        next_question: asks for the next subtask, where the dataset has subtasks; None asks nothing. In both questions
            `{task}` is replaced by the task.
        prompt_from_task: whether the task is the world prompt of its samples.
        tolerance: the largest accepted difference between the times of a frame in the data and in the video, in
            seconds.

    Raises:
        ValueError: if the dataset does not fit, or there is no moment to ask about.
    """

    def __init__(
        self,
        files: LeRobotFiles,
        episodes: Sequence[int],
        *,
        every: float = 1.0,
        fps: float = 16,
        num_future_frames: int = 0,
        num_past_frames: int = 0,
        window: float | None = None,
        task_question: str | None = TASK_QUESTION,
        next_question: str | None = NEXT_QUESTION,
        prompt_from_task: bool = True,
        tolerance: float = TOLERANCE,
    ) -> None:
        for name, value in (("every", every), ("fps", fps), ("window", window), ("tolerance", tolerance)):
            if value is not None and not 0 < value < np.inf:
                raise ValueError(f"{name} is {value}; it must be above 0.")
        self.files, self.fps, self.tolerance = files, fps, tolerance
        self.num_future, self.num_past = num_future_frames, num_past_frames
        self.window = num_future_frames / fps if window is None else window
        self.task_question, self.next_question = task_question, next_question
        self.prompt_from_task = prompt_from_task
        self.videos = OpenVideos()
        recordings = files.episodes(episodes)
        if next_question is not None and not self.window and any(any(episode.subtasks) for episode in recordings):
            raise ValueError(
                "There are no world steps whose length could be the window of the question about the next subtask: set "
                "window to a number of seconds, or next_question to null."
            )
        frames = [(episode, int(frame)) for episode in recordings for frame in self._frames(episode, every)]
        self.moments = [moment for episode, frame in frames for moment in self._questions(episode, frame)]
        if not frames:
            seconds = (num_past_frames + num_future_frames) / fps
            raise ValueError(
                f"No chosen episode of {files.repository} has the {seconds:g} s of past and future frames of a sample: "
                "choose longer episodes, fewer world steps, or a larger fps."
            )
        if not self.moments:
            raise ValueError(
                f"There is nothing to ask about the {counted(len(frames), 'moment')} of {files.repository}: set "
                "task_question, or choose a dataset with subtasks and a longer window."
            )
        logger.info(
            "%d questions with %d different answers about %d moments of %d episodes of %s",
            len(self.moments), len({moment.answer for moment in self.moments}), len(frames), len(recordings),
            files.repository,
        )  # fmt: skip

    def _frames(self, episode: Episode, every: float) -> np.ndarray:
        """The frames of an episode at which samples are."""
        first = self.num_past / self.fps
        last = episode.times[-1] - self.num_future / self.fps + ROUNDING
        return np.unique(nearest(episode.times, np.arange(first, last, every))) if first <= last else np.array([])

    def _questions(self, episode: Episode, frame: int) -> list[Moment]:
        questions = [(self.task_question, episode.tasks[frame])]
        after = next_subtask(episode, frame, self.window)
        if after is not None:
            questions.append((self.next_question, after))
        return [
            Moment(episode, frame, question.replace("{task}", episode.tasks[frame]), answer)
            for question, answer in questions
            if question is not None
        ]

    def __len__(self) -> int:
        return len(self.moments)

    def messages(self, index: int) -> list[Message]:
        moment = self.moments[index]
        return conversation(1, [(moment.question, moment.answer)])

    def num_future_frames(self, index: int) -> int:
        return self.num_future

    def scene(self, index: int) -> tuple[int, int]:
        moment = self.moments[index]
        return moment.episode.index, moment.frame

    def __getitem__(self, index: int) -> Sample:
        moment = self.moments[index]
        episode, now = moment.episode, moment.episode.times[moment.frame]
        origin = f"{self.files.repository} episode {episode.index} at {now:.2f} s"
        offsets = np.arange(-self.num_past, self.num_future + 1) / self.fps
        try:
            frames = self._images(episode, nearest(episode.times, now + offsets))
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(f"{origin}: {error}") from error
        # these frames are at the wanted rate already
        seen: Any = Video(frames[: self.num_past + 1], StridedFrames()) if self.num_past else frames[0]
        return Sample(
            messages=self.messages(index),
            images=(seen,),
            future_frames=frames[self.num_past + 1 :] or None,
            world_prompt=episode.tasks[moment.frame] if self.prompt_from_task else None,
            origin=origin,
        )

    def _images(self, episode: Episode, frames: np.ndarray) -> list[Image.Image]:
        if self.files.has_videos:
            times = episode.start + episode.times[frames]
            return self.videos.frames_at(episode.file, times.tolist(), self.tolerance)
        return images_at(episode.file, self.files.camera, (int(episode.start) + frames).tolist())


def nearest(times: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """For each of the wanted times, the index of the nearest one of `times` (F,); of two, the earlier."""
    after = np.searchsorted(times, wanted).clip(max=len(times) - 1)
    before = (after - 1).clip(min=0)
    return np.where(wanted - times[before] <= times[after] - wanted, before, after)


def next_subtask(episode: Episode, frame: int, window: float) -> str | None:
    """The first subtask other than the present one that begins within `window` seconds; None if there is none."""
    end = np.searchsorted(episode.times, episode.times[frame] + window + ROUNDING, side="right")
    later = episode.subtasks[frame + 1 : end]
    return next((subtask for subtask in later if subtask not in (None, episode.subtasks[frame])), None)


def parse_episodes(text: str | Sequence[int], total: int, name: str = "episodes") -> list[int]:
    """`"0:40"`, `"0:10,20,30:"` or a list of numbers as the numbers of episodes, without repetition, in order.

    Raises:
        ValueError: if it has another form, or there is no such episode.
    """
    found: list[int] = []
    for part in text.split(",") if isinstance(text, str) else map(str, text):
        first, colon, last = part.strip().partition(":")
        if not all(number.isdecimal() for number in (first, last) if number) or not (first or colon):
            raise ValueError(f'{name} is {text!r}; write it as "0:40" (the first 40), or as "0:10,25".')
        start, end = int(first or 0), int(last or total) if colon else int(first) + 1
        if not start < end <= total:
            raise ValueError(f"{name} is {text!r}, and the dataset has the episodes 0 to {total - 1}: choose of these.")
        found += range(start, end)
    return sorted(set(found))


def split_episodes(
    total: int, episodes: str | Sequence[int] | None, eval_episodes: str | Sequence[int] | None, evaluate: bool
) -> tuple[list[int], list[int]]:
    """The episodes for training and for evaluation, none of which is in both.

    Args:
        episodes: for training; None means all that are not for evaluation.
        eval_episodes: for evaluation; None means those that are not for training, or the last tenth if neither is
            given.
        evaluate: whether there is an evaluation.

    Raises:
        ValueError: if an episode is in both, or none is left.
    """
    held_out = None if eval_episodes is None else parse_episodes(eval_episodes, total, "eval_episodes")
    if held_out is None and episodes is None:
        held_out = list(range(total - max(1, total // 10), total)) if evaluate else []
    train = parse_episodes(f"0:{total}" if episodes is None else episodes, total)
    if episodes is None:
        train = [number for number in train if number not in set(held_out or [])]
    elif held_out is None:
        held_out = [number for number in range(total) if number not in set(train)]
    both = sorted(set(train) & set(held_out or []))
    if both:
        raise ValueError(f"episodes and eval_episodes both have episode {both[0]}: an episode must be in one of them.")
    if not train or (evaluate and not held_out):
        raise ValueError(
            f"Of the {counted(total, 'episode')} none is left for {'evaluation' if train else 'training'}: change "
            "episodes or eval_episodes."
        )
    return train, (held_out or []) if evaluate else []
