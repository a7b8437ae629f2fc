"""Training end to end, beside Stable-Baselines3's PPO with the same steps, batches, networks and settings.

    pip install stable-baselines3 sb3-contrib
    python benchmarks/training.py --env CartPole-v1 --seeds 0 1 2
    python benchmarks/training.py --env HalfCheetah-v5 --seeds 0 --n-steps 200000 --vec-env subproc
    python benchmarks/training.py --env CartPole-v1 --seeds 0 --libraries headrace --profile

The settings are those `headrace train --env ENV` starts from, but for one thing: Stable-Baselines3's PPO keeps separate
layers for the value, so both do. Both use one torch thread in the learner (more are slower for small networks),
normalize observations and rewards where the settings say so, and are evaluated greedily. Each training runs in a
process of its own, the libraries in turn; seconds are those of training alone, with the start of worker processes,
without imports and evaluation. `--libraries` may also name one only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from headrace.cli.build import TrainOptions, agent_for, algo_for, defaults_for, evaluation_sampler, training_sampler
from headrace.cli.environments import factory_of, spaces_of
from headrace.models.conv import is_image
from headrace.processes.affinity import Affinity
from headrace.runners.logging.logger import Logger
from headrace.runners.minibatch import MinibatchRl


@dataclass
class Result:
    """Of one training."""

    library: str
    seed: int
    mean_return: float
    seconds: float


def options_of(args: argparse.Namespace, seed: int) -> TrainOptions:
    spaces = spaces_of(factory_of(args.env, {}))
    options = replace(defaults_for("ppo", args.env, spaces, args.recurrent), env=args.env, sampler=args.sampler)
    model = options.model if args.recurrent else replace(options.model, separate_value=True)
    runner = replace(options.runner, seed=seed, n_steps=args.n_steps or options.runner.n_steps)
    return replace(options, model=model, runner=runner)


def train_headrace(options: TrainOptions, args: argparse.Namespace) -> Result:
    agent = agent_for(spaces_of(factory_of(options.env, {})), options)
    runner = MinibatchRl(
        algo_for(options),
        agent,
        training_sampler(options),
        options.runner,
        affinity=Affinity(master_torch_threads=args.torch_threads),
        logger=Logger(),
    )
    begin = time.perf_counter()
    runner.train()
    seconds = time.perf_counter() - begin
    sampler = evaluation_sampler(options, options.acting_device, args.eval_episodes, options.batch_B)
    with sampler.initialize(agent, seed=runner.seed) as evaluation:
        returns = [episode.Return for episode in evaluation.evaluate_agent(0)]
    return Result("headrace", options.runner.seed or 0, statistics.fmean(returns), seconds)


def train_sb3(options: TrainOptions, args: argparse.Namespace) -> Result:
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

    torch.set_num_threads(args.torch_threads)
    ppo, model, seed = options.ppo, options.model, options.runner.seed
    rate, clip = ppo.learning_rate, ppo.ratio_clip
    policy = "MlpPolicy"
    net_arch = {"pi": [64, 64], "vf": [64, 64]}
    policy_kwargs: dict[str, Any] = {"net_arch": net_arch, "log_std_init": model.init_log_std}
    if is_image(spaces_of(factory_of(options.env, {})).observation):
        policy, policy_kwargs = "CnnPolicy", {}
    algorithm: Any = PPO
    if options.model.recurrent:
        from sb3_contrib import RecurrentPPO

        algorithm, policy = RecurrentPPO, "MlpLstmPolicy"
        size = model.memory_size
        policy_kwargs = {"lstm_hidden_size": size, "enable_critic_lstm": False, "shared_lstm": True}
    begin = time.perf_counter()
    envs = make_vec_env(
        lambda: factory_of(options.env, {})(),
        options.batch_B,
        seed=seed,
        vec_env_cls=SubprocVecEnv if args.vec_env == "subproc" else DummyVecEnv,
        vec_env_kwargs={"start_method": "fork"} if args.vec_env == "subproc" else None,
    )
    if model.normalize_observation or ppo.normalize_reward:
        envs = VecNormalize(
            envs, norm_obs=model.normalize_observation, norm_reward=ppo.normalize_reward, gamma=ppo.discount
        )
    learner = algorithm(
        policy,
        envs,
        learning_rate=(lambda left: rate * left) if ppo.linear_lr_schedule else rate,
        n_steps=options.batch_T,
        batch_size=options.batch_T * options.batch_B // ppo.minibatches,
        n_epochs=ppo.epochs,
        gamma=ppo.discount,
        gae_lambda=ppo.gae_lambda,
        clip_range=(lambda left: clip * left) if ppo.linear_clip_schedule else clip,
        ent_coef=ppo.entropy_loss_coeff,
        vf_coef=0.5 * ppo.value_loss_coeff,  # its value loss is the squared error, ours half of it
        max_grad_norm=ppo.clip_grad_norm,
        normalize_advantage=ppo.normalize_advantage,
        policy_kwargs=policy_kwargs,
        seed=seed,
        device="cpu",
    )
    learner.learn(int(options.runner.n_steps))
    seconds = time.perf_counter() - begin
    if isinstance(envs, VecNormalize):
        envs.training, envs.norm_reward = False, False
    mean_return, _ = evaluate_policy(learner, envs, args.eval_episodes, warn=False)
    envs.close()
    return Result("sb3", seed or 0, float(mean_return), seconds)


TRAINERS: dict[str, Callable[[TrainOptions, argparse.Namespace], Result]] = {
    "headrace": train_headrace,
    "sb3": train_sb3,
}


def in_process(library: str, seed: int, arguments: list[str]) -> Result:
    """One training in an interpreter of its own."""
    command = [sys.executable, __file__, *arguments, "--only", library, "--seeds", str(seed)]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return Result(**json.loads(answer.splitlines()[-1]))


def profiled(train: Callable[[], Result]) -> Result:
    """The same, with the 40 functions of the master process that took longest on standard error."""
    import cProfile
    import pstats

    profile = cProfile.Profile()
    result = profile.runcall(train)
    pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(40)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--recurrent", choices=["lstm", "gru"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--n-steps", type=float)
    parser.add_argument("--sampler", default="cpu")
    parser.add_argument("--vec-env", choices=["dummy", "subproc"], default="dummy", help="of Stable-Baselines3")
    parser.add_argument("--eval-episodes", type=int, default=100)
    parser.add_argument("--torch-threads", type=int, default=1, help="of the learner")
    parser.add_argument("--libraries", nargs="+", choices=sorted(TRAINERS), default=["headrace", "sb3"])
    parser.add_argument("--only", choices=sorted(TRAINERS), help="train here, print JSON")
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    if args.only:
        warnings.simplefilter("ignore")
        options = options_of(args, args.seeds[0])
        train = TRAINERS[args.only]
        result = profiled(lambda: train(options, args)) if args.profile else train(options, args)
        print(json.dumps(vars(result)))
        return
    arguments = sys.argv[1:]
    results = [in_process(library, seed, arguments) for seed in args.seeds for library in args.libraries]
    for result in results:
        print(f"{result.library:9} seed {result.seed}: return {result.mean_return:9.1f}, {result.seconds:7.1f} s")
    for library in args.libraries:
        own = [result for result in results if result.library == library]
        returns = [result.mean_return for result in own]
        print(
            f"{library:9} mean return {statistics.fmean(returns):.1f} ({min(returns):.1f} … {max(returns):.1f}), "
            f"median {statistics.median(result.seconds for result in own):.1f} s"
        )


if __name__ == "__main__":
    main()
