"""Writes episodes as a Minari dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.buffers.tree import tree_map, tree_rows
from headrace.envs.spaces import vector_action_decoder
from headrace.extras import extra
from headrace.samplers.episodes.batch import EpisodeBatch
from headrace.samplers.episodes.conversion import ends_of

if TYPE_CHECKING:
    import gymnasium
    import minari

__all__ = ["to_minari"]


def to_minari(
    episodes: EpisodeBatch,
    dataset_id: str,
    *,
    env: str | gymnasium.Env[Any, Any] | None = None,
    algorithm_name: str | None = None,
    author: str | set[str] | None = None,
    author_email: str | set[str] | None = None,
    code_permalink: str | None = None,
    description: str | None = None,
    jpeg_encoding: bool = False,
) -> minari.MinariDataset:
    """Writes episodes as a new local Minari dataset, in the folder of `MINARI_DATASETS_PATH`.

    Each episode has its T + 1 observations; T actions as the environment received them (Box clipped to its bounds,
    Discrete with the space's start), rewards and ends; and `env_infos`, T entries each, as infos. An end that is not
    TERMINAL is a truncation. What the agent computed is not written.

    Args:
        episodes: the episodes.
        dataset_id: id of the dataset, e.g. "cartpole/ppo-v0".
        env: id or instance of the environment, which lets users of the dataset make it again.
        algorithm_name: what trained the policy. Minari warns where this or one of the next four is missing.
        author: name of the author, or several.
        author_email: address of the author, or several.
        code_permalink: where the code is that made the episodes.
        description: a text about the dataset.
        jpeg_encoding: whether uint8 images are stored as JPEG, smaller but not exactly. Default: exact.

    Returns:
        The dataset, which `minari.load_dataset(dataset_id)` loads as well.

    Raises:
        ImportError: if a package of the extra "minari" is not installed.
        TypeError, ValueError: if a field of the episodes is wrong.
        ValueError: if there is a dataset of this id, or Minari refuses the id.
    """
    with extra("minari", "to_minari() needs minari, h5py and pillow"):
        # Minari imports h5py and Pillow only after it has made the folder of the dataset, so they are tried here.
        import h5py  # noqa: F401
        import minari
        import PIL.Image  # noqa: F401
        from minari.data_collector import EpisodeBuffer
    episodes.validate()
    spec = episodes.env_spec
    actions = vector_action_decoder(spec.action_space)(episodes.actions)
    terminated, truncated = ends_of(episodes)
    ends = np.cumsum(episodes.lengths)

    def buffer(episode: int) -> EpisodeBuffer:
        steps = slice(ends[episode] - episodes.lengths[episode], ends[episode])

        def with_last(observation: np.ndarray, last: np.ndarray) -> np.ndarray:
            return np.concatenate([observation[steps], last[episode : episode + 1]])

        return EpisodeBuffer(
            observations=tree_map(with_last, episodes.observations, episodes.last_observations),
            actions=tree_rows(actions, steps),
            rewards=episodes.rewards[steps],
            terminations=terminated[steps],
            truncations=truncated[steps],
            infos=tree_rows(episodes.env_infos, steps) or None,
        )

    return minari.create_dataset_from_buffers(
        dataset_id,
        [buffer(episode) for episode in range(len(episodes))],
        env=env,
        eval_env=env,
        algorithm_name=algorithm_name,
        author=author,
        author_email=author_email,
        code_permalink=code_permalink,
        action_space=spec.action_space,
        observation_space=spec.observation_space,
        description=description,
        jpeg_encoding=jpeg_encoding,
    )
