"""Asynchronous DQN on an Atari game: double, dueling, n-step, prioritized, each frame stored once.

    SETTINGS="--replay-size 200_000 --eval-steps 20_000"
    python examples/atari_dqn_async.py $SETTINGS --n-steps 10_000_000 --log-dir runs/pong
    python examples/atari_dqn_async.py $SETTINGS --n-steps 10_000_000 --resume runs/pong  # after kill -9

trains to the end; without arguments it shows the beginning. It needs the extra `atari`. On the command line:

    headrace train --algo dqn --env headrace.envs.atari:make_atari --sampler async-cpu --dqn.frames 4 --dueling
"""

from __future__ import annotations

import argparse

import torch

from headrace.agents.dqn import DqnAgent
from headrace.algos.dqn import DQN, DQNConfig
from headrace.envs import make_atari
from headrace.runners import AsyncRlEval, RunnerConfig
from headrace.samplers import AsyncAlternatingSampler, AsyncCpuSampler, AsyncGpuSampler, AsyncSerialSampler

SAMPLERS = {
    "cpu": AsyncCpuSampler,  # an agent in each worker process
    "gpu": AsyncGpuSampler,  # one agent acts for all workers, on the first GPU if there is one
    "alternating": AsyncAlternatingSampler,  # the same in two groups: one steps while the other gets its actions
    "serial": AsyncSerialSampler,
}
BATCH_T, BATCH_B = 4, 16


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--game", default="ALE/Pong-v5")
    parser.add_argument("--sampler", choices=SAMPLERS, default="cpu")
    parser.add_argument("--n-steps", type=int, default=1_152)
    parser.add_argument("--replay-size", type=int, default=10_000)
    parser.add_argument("--eval-steps", type=int, default=200, help="of an evaluation, of both games together, at most")
    parser.add_argument("--eval-process", action="store_true", help="evaluate beside training; wants a core more")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-dir")
    parser.add_argument("--resume", help="the folder of a run to go on with; other arguments as they were")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)  # the other cores are the sampler's
    game = {"game_id": args.game}
    sampler = SAMPLERS[args.sampler](
        make_atari,
        {**game, "episodic_life": True},
        batch_T=BATCH_T,
        batch_B=BATCH_B,
        eval_n_envs=2,
        eval_env_kwargs={**game, "clip_rewards": False},  # the game's own score, over all lives
        eval_max_steps=args.eval_steps,
        eval_process=args.eval_process,
    )
    # Environment 0 explores with 0.1 in the end, the last one hardly.
    agent = DqnAgent(
        model_kwargs={"dueling": True},
        eps_final=0.1,
        eps_final_min=0.001,
        eps_itr_max=250_000 // (BATCH_T * BATCH_B),
        eps_eval=0.001,
    )
    algo = DQN(
        DQNConfig(
            batch_size=32,
            replay_ratio=8.0,
            replay_size=args.replay_size,
            min_steps_learn=args.replay_size // 10,
            n_step=3,
            delta_clip=1.0,
            double_dqn=True,
            target_update_interval=2_000,
            learning_rate=6.25e-5,
            linear_lr_schedule=False,
            adam_eps=1.5e-4,
            prioritized_replay=True,
            frames=4,
        )
    )
    every = max(640, min(args.n_steps // 10, 50_000))
    config = RunnerConfig(n_steps=args.n_steps, seed=args.seed, log_interval_steps=every)
    AsyncRlEval(algo, agent, sampler, config, log_dir=args.log_dir, resume_from=args.resume).train()


if __name__ == "__main__":  # workers may start by importing this file
    main()
