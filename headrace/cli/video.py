"""Records videos of episodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, SupportsFloat

import gymnasium
import numpy as np

from headrace.cli.child import in_child
from headrace.cli.errors import CommandFailed
from headrace.envs.factory import EnvFactory, close_quietly
from headrace.errors import headline

__all__ = ["Recorder", "require_video"]

_REMEDY = "the environment must have \"rgb_array\" in metadata['render_modes'] and accept render_mode"
_WITHOUT_DISPLAY = "without a display, set the environment variable MUJOCO_GL=egl or MUJOCO_GL=osmesa for MuJoCo"


class Recorder(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Writes each episode of an environment that renders `rgb_array` to `folder/episode-N.mp4`, N from 0."""

    def __init__(self, env: gymnasium.Env[Any, Any], folder: Path) -> None:
        super().__init__(env)
        self._folder = folder
        self._n_episodes = 0
        self._first: Any = None
        self._writer: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Keeps the picture until the first step, so that an episode without steps leaves no file."""
        self._finish()
        answer = self.env.reset(seed=seed, options=options)
        self._first = self.env.render()
        return answer

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Adds a picture, and closes the file at the end of an episode."""
        answer = self.env.step(action)
        if self._writer is None:
            self._writer = self._opened()
            self._writer.append_data(np.asarray(self._first))
        self._writer.append_data(np.asarray(self.env.render()))
        if answer[2] or answer[3]:
            self._finish()
        return answer

    def close(self) -> None:
        """Closes the file of an unfinished episode."""
        self._finish()
        super().close()

    def _opened(self) -> Any:
        import imageio.v2

        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"episode-{self._n_episodes}.mp4"
        self._n_episodes += 1
        # The codec needs even sides; by default, imageio would scale to multiples of 16.
        return imageio.v2.get_writer(
            path, format="FFMPEG", fps=self.env.metadata.get("render_fps", 30), macro_block_size=2
        )

    def _finish(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def require_video(factory: EnvFactory, start_method: str) -> None:
    """Raises CommandFailed, with the remedy, if videos cannot be written or the environment returns no pictures.

    Args:
        factory: makes the environment, with `render_mode="rgb_array"`; it is tried in a child process.
        start_method: how the child process starts, as for a sampler.
    """
    try:
        import imageio.v2  # noqa: F401
        import imageio_ffmpeg  # noqa: F401 (imageio imports it itself)
    except ImportError as error:
        raise CommandFailed('videos need imageio and ffmpeg; pip install "headrace[video]"') from error
    in_child(_require_picture, factory, start_method)


def _require_picture(factory: EnvFactory) -> None:
    try:
        env = factory()
        try:
            env.reset(seed=0)
            picture = env.render()
        finally:
            close_quietly([env])
    except Exception as error:
        text = headline(error)
        remedy = _WITHOUT_DISPLAY if "OpenGL" in text or "GL" in type(error).__name__ else _REMEDY
        raise CommandFailed(f"--video: {factory.name} cannot be rendered: {text}; {remedy}") from error
    if not (isinstance(picture, np.ndarray) and picture.ndim == 3 and picture.dtype == np.uint8):
        raise CommandFailed(
            f"--video: render() of {factory.name} returned a {type(picture).__name__}, expected a uint8 array "
            f"[H, W, 3]; {_REMEDY}"
        )
