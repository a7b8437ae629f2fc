"""`make_atari`: Atari games with the classic wrappers, mostly Gymnasium's own."""

from __future__ import annotations

from typing import Any, SupportsFloat

import gymnasium
from gymnasium.wrappers import AtariPreprocessing, ClipReward, FrameStackObservation

from headrace.extras import extra

__all__ = ["make_atari"]

_NOOP = 0


def make_atari(
    game_id: str = "ALE/Pong-v5",
    *,
    noop_max: int = 30,
    fire_reset: bool = True,
    episodic_life: bool = False,
    frame_skip: int = 4,
    screen_size: int = 84,
    n_frames: int = 4,
    clip_rewards: bool = True,
    repeat_action_probability: float | None = None,
    full_action_space: bool = False,
    max_frames: int = 108_000,
    render_mode: str | None = None,
) -> gymnasium.Env[Any, Any]:
    """Makes an Atari game with the classic preprocessing.

    Mnih et al. (2015), "Human-level control through deep reinforcement learning".

    Observations are uint8 `[n_frames, screen_size, screen_size]`, grayscale, newest frame last; the first observation
    of an episode is its first frame repeated `n_frames` times. `info["score"]` is the unclipped score of the game so
    far, at every step; with `episodic_life` it continues across lives. `info["lives"]` is the number of lives left.

    Args:
        game_id: "ALE/Pong-v5", "BreakoutNoFrameskip-v4" …; passing such an id to a sampler as `EnvCls` gives the game
            without these wrappers.
        noop_max: maximum number of no-ops at the start of a game, drawn uniformly from 1 to this; 0: none.
        fire_reset: press FIRE at the start of an episode, in games that have it: some wait for it.
        episodic_life: the loss of a life ends the episode with `terminated`; the next episode continues the same game.
            With or without it, the end of a game is `terminated` and its frame limit `truncated`.
        frame_skip: frames for which an action is repeated; the observation is the maximum of the last two.
        screen_size: width and height of frames, in pixels.
        n_frames: frames stacked in an observation.
        clip_rewards: clip rewards to [-1, 1].
        repeat_action_probability: "sticky actions"; None: as registered, 0.25 for v5 and 0 for "…NoFrameskip-v4".
        full_action_space: all 18 actions instead of the game's own.
        max_frames: emulator frames after which a game is truncated; 108 000 are half an hour.
        render_mode: as for `gymnasium.make`.

    Raises:
        ImportError: the packages of the extra "atari" are not installed.
        gymnasium.error.Error: the id is unknown.
    """
    with extra("atari", "Atari games need ale-py and opencv"):
        import ale_py
        import cv2
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # no banner from every process
    cv2.setNumThreads(0)  # a thread pool does not survive a fork, and workers already provide the parallelism
    options: dict[str, Any] = {}
    if repeat_action_probability is not None:
        options["repeat_action_probability"] = repeat_action_probability
    env: gymnasium.Env[Any, Any] = gymnasium.make(
        game_id,
        disable_env_checker=True,
        frameskip=1,
        obs_type="grayscale",  # for every frame, though the preprocessing fetches its own: cheaper than colours
        full_action_space=full_action_space,
        max_num_frames_per_episode=max_frames,
        render_mode=render_mode,
        **options,
    )
    meanings: list[str] = env.unwrapped.get_action_meanings()  # type: ignore[attr-defined]
    env = _Score(env)
    env = AtariPreprocessing(env, noop_max=noop_max, frame_skip=frame_skip, screen_size=screen_size)
    if episodic_life:
        env = _EpisodicLife(env)
    if fire_reset and "FIRE" in meanings:
        env = _FireReset(env, meanings.index("FIRE"))
    if clip_rewards:
        env = ClipReward(env, -1.0, 1.0)
    return FrameStackObservation(env, n_frames)


class _Score(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Accumulates the rewards of a game in `info["score"]`. (`RecordEpisodeStatistics` would add wall-clock times.)"""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self._score = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        self._score = 0.0
        return observation, {**info, "score": self._score}

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._score += float(reward)
        return observation, reward, terminated, truncated, {**info, "score": self._score}


class _EpisodicLife(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Makes each life an episode. `reset` starts a new game only if the last one is over or a seed is given."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self._lives = 0
        self._over = True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if not self._over and seed is None:
            observation, _, terminated, truncated, info = self.env.step(_NOOP)
            self._over = terminated or truncated
        if self._over or seed is not None:
            observation, info = self.env.reset(seed=seed, options=options)
            self._over = False
        self._lives = info["lives"]
        return observation, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._over = terminated or truncated
        lost = info["lives"] < self._lives
        self._lives = info["lives"]
        return observation, reward, terminated or lost, truncated, info


class _FireReset(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Presses FIRE after a reset. If that ends the episode, it resets again without FIRE."""

    def __init__(self, env: gymnasium.Env[Any, Any], fire: int) -> None:
        super().__init__(env)
        self._fire = fire

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.env.reset(seed=seed, options=options)
        observation, _, terminated, truncated, info = self.env.step(self._fire)
        if terminated or truncated:
            return self.env.reset(options=options)
        return observation, info
