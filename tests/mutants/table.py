"""Lines and what they are broken into; at least one of every module that does anything."""

from typing import NamedTuple

__all__ = ["MUTANTS", "Mutant"]


class Mutant(NamedTuple):
    """file: of the package; line: a part of it that is there once; broken: what it becomes; test: who must fail."""

    file: str
    line: str
    broken: str
    test: str


MUTANTS = [
    # samplers
    Mutant(
        "headrace/samplers/base.py",
        "self._slots.samples(self._n_batches - 1, reports)",
        "self._slots.samples(self._n_batches, reports)",
        "tests/test_async_samplers.py",
    ),
    Mutant(
        "headrace/samplers/engines/ray.py",
        "leaf[...] = value",
        "pass",
        "tests/test_ray.py",
    ),
    Mutant(
        "headrace/samplers/workers/ray.py",
        "return self.collect(itr, version, batch_index), self._block",
        "return self.collect(itr, version, batch_index), self._block * 0",
        "tests/test_ray.py",
    ),
    Mutant(
        "headrace/samplers/collection/evaluation.py",
        "n_rows = min(_ROWS, max_T - first_row)",
        "n_rows = _ROWS",
        "tests/test_serial_sampler.py",
    ),
    Mutant(
        "headrace/samplers/collection/loop.py",
        "view.prev_rewards[t + 1][columns] = 0",
        "pass",
        "tests/test_previous_inputs.py",
    ),
    Mutant(
        "headrace/samplers/collection/loop.py",
        "stepped[columns] = t + 1",
        "stepped[columns] = t",
        "tests/test_serial_sampler.py",
    ),
    Mutant(
        "headrace/samplers/collection/make_envs.py",
        "if config.reset_mode.waits and not batch.holds:",
        "if False:",
        "tests/test_vector_envs.py",
    ),
    Mutant(
        "headrace/samplers/collection/slice.py",
        "self._stepped = True",
        "self._stepped = False",
        "tests/test_resume_samplers.py",
    ),
    Mutant(
        "headrace/samplers/collection/slot_view.py",
        "to[starts] = 0",
        "pass",
        "tests/test_previous_inputs.py",
    ),
    Mutant(
        "headrace/samplers/collection/snapshot.py",
        "if self.train and (self.train.keys() != set(env_ids) or len(self.evaluation) != n_eval):",
        "if False:",
        "tests/test_resume_samplers.py",
    ),
    Mutant(
        "headrace/samplers/config.py",
        "options.env_kwargs if options.eval_env_kwargs is None else options.eval_env_kwargs",
        "options.env_kwargs",
        "tests/test_serial_sampler.py",
    ),
    Mutant(
        "headrace/samplers/engine.py",
        "return n_batches",
        "return n_batches + 1",
        "tests/test_resume_samplers.py",
    ),
    Mutant(
        "headrace/samplers/engines/asynchronous.py",
        "while self._next < batch_index + self.config.n_slots:",
        "while self._next < batch_index + 1:",
        "tests/test_async_samplers.py",
    ),
    Mutant("headrace/samplers/engines/make.py", "if layout.served:", "if False:", "tests/test_served_samplers.py"),
    Mutant(
        "headrace/samplers/engines/parallel.py",
        "if pinned is not None and wanted is not None and pinned != wanted:",
        "if False:",
        "tests/test_worker_group.py",
    ),
    Mutant(
        "headrace/samplers/engines/parallel.py",
        "self._parameters.publish(self._agent, version)",
        "self._parameters.publish(self._agent, version) if version < 1 else None",
        "tests/test_same_batches.py",
    ),
    Mutant(
        "headrace/samplers/engines/serial.py",
        "gaussian_kept() if self.config.options.isolate_rng else super().call_context()",
        "super().call_context()",
        "tests/test_global_rng.py",
    ),
    Mutant(
        "headrace/samplers/engines/served.py",
        "own = [index for index, one in enumerate(self._slices) if one.group == number]",
        "own = [index for index, one in enumerate(self._slices) if one.group >= number]",
        "tests/test_served_samplers.py",
    ),
    Mutant(
        "headrace/processes/watch.py",
        "for rank in ended if ready else group.ended(awaited):",
        "for rank in ():",
        "tests/test_handoff.py",
    ),
    Mutant(
        "headrace/samplers/collection/resets.py",
        '"wait": ResetMode(resets=0, between_batches=True)',
        '"wait": ResetMode(resets=0, between_batches=False)',
        "tests/test_serial_sampler.py",
    ),
    Mutant(
        "headrace/envs/random_actions.py",
        "return space.sample(mask)",
        "return space.sample()",
        "tests/test_pg_agents.py",
    ),
    Mutant("headrace/processes/exclusive.py", "if os.getpid() != self._pid:", "if False:", "tests/test_forks.py"),
    Mutant(
        "headrace/samplers/episodes/batch.py",
        "after[ends] = last",
        "pass",
        "tests/test_episode_batch.py",
    ),
    Mutant(
        "headrace/samplers/episodes/conversion.py",
        "truncated[np.cumsum(episodes.lengths) - 1] = True",
        "pass",
        "tests/test_episode_batch.py",
    ),
    Mutant(
        "headrace/samplers/episodes/conversion.py",
        "whole = first >= last // T * T",
        "whole = first >= 0",
        "tests/test_episode_batch.py",
    ),
    Mutant(
        "headrace/samplers/episodes/minari.py",
        "actions = vector_action_decoder(spec.action_space)(episodes.actions)",
        "actions = episodes.actions",
        "tests/test_episode_batch.py",
    ),
    Mutant(
        "headrace/samplers/episodes/paths.py",
        "slice(length - 1, length)",
        "slice(0, 1)",
        "tests/test_episode_batch.py",
    ),
    Mutant(
        "headrace/samplers/episodes/steps.py",
        "return np.where(terminated, np.uint8(StepType.TERMINAL), cut)",
        "return cut",
        "tests/test_episode_batch.py",
    ),
    Mutant(
        "headrace/samplers/episodes/validation.py",
        "is_first[ends - lengths] = is_last[ends - 1] = True",
        "is_first[:] = is_last[:] = True",
        "tests/test_episode_batch.py",
    ),
    Mutant(
        "headrace/samplers/inference/action_server.py",
        "if self.overlap or len(groups) == 1 or t == n_rows:",
        "if len(groups) == 1 or t == n_rows:",
        "tests/test_served_samplers.py",
    ),
    Mutant(
        "headrace/samplers/inference/actor.py",
        "if recorder.slot.is_first[t].any():",
        "if False:",
        "tests/test_recurrent.py",
    ),
    Mutant(
        "headrace/samplers/inference/device.py",
        "if value.shape != to.shape or not torch.can_cast(value.dtype, to.dtype):",
        "if not torch.can_cast(value.dtype, to.dtype):",
        "tests/test_answers.py",
    ),
    Mutant(
        "headrace/samplers/inference/policy.py",
        "self.state = tree_zeroed(self.state, is_first)",
        "self.state = self.state",
        "tests/test_recurrent.py",
    ),
    Mutant(
        "headrace/samplers/inference/recorder.py",
        "self.slot.version[:] = version",
        "self.slot.version[:] = version + 1",
        "tests/test_serial_sampler.py",
    ),
    Mutant(
        "headrace/samplers/inference/spec.py",
        "if not isinstance(step, AgentStep):",
        "if False:",
        "tests/test_answers.py",
    ),
    Mutant(
        "headrace/samplers/layout.py",
        "enumerate(sizes if group % 2 == 0 else reversed(sizes))",
        "enumerate(sizes)",
        "tests/test_served_samplers.py",
    ),
    Mutant(
        "headrace/samplers/presets.py",
        "layout = Layout(processes=True, served=True, groups=2, overlap=False)",
        "layout = Layout(processes=True, served=True, groups=2)",
        "tests/test_served_samplers.py",
    ),
    Mutant(
        "headrace/samplers/timing.py",
        "recording=max(0.0, 1.0 - env - reset - acting)",
        "recording=max(0.0, 1.0 - env - acting)",
        "tests/test_serial_sampler.py",
    ),
    Mutant(
        "headrace/samplers/traj_info.py",
        "discounted *= np.where(first, self._discount ** self._length[column], 1.0)",
        "discounted *= 1.0",
        "tests/test_traj_info.py",
    ),
    Mutant(
        "headrace/samplers/validate.py",
        "if value < _AT_LEAST[name]:",
        "if value < _AT_LEAST[name] - 1:",
        "tests/test_validate.py",
    ),
    Mutant(
        "headrace/samplers/workers/eval_process.py",
        "require_alike(self._environments.spaces, agent.spaces)",
        "pass",
        "tests/test_async_evaluation.py",
    ),
    Mutant(
        "headrace/samplers/workers/local.py",
        "actor.begin(version, batch_index * self._n_rows, slot)",
        "actor.begin(version, 0, slot)",
        "tests/test_serial_sampler.py",
    ),
    Mutant(
        "headrace/samplers/workers/main.py",
        "seed_global_generators(seeds[rank])",
        "seed_global_generators(seeds[0])",
        "tests/test_global_rng.py",
    ),
    Mutant(
        "headrace/samplers/workers/main.py",
        "_reply_spaces(channel, worker.spaces)",
        "channel.reply(worker.spaces)",
        "tests/test_foreign.py",
    ),
    Mutant(
        "headrace/samplers/workers/memory.py",
        "if report.overflow is not None:",
        "if False:",
        "tests/test_served_samplers.py",
    ),
    Mutant(
        "headrace/samplers/workers/sampler_process.py",
        "status.enter(Phase.STORING)",
        "pass",
        "tests/test_async_samplers.py",
    ),
    Mutant(
        "headrace/samplers/workers/served.py",
        "[counters.acted[self.slices[index].group]],",
        "[counters.acted[0]],",
        "tests/test_sampler_grid.py",
    ),
    # envs
    Mutant(
        "headrace/envs/agent_answers.py",
        "if not isinstance(value, dict) or value.keys() != parts.keys():",
        "if not isinstance(value, dict):",
        "tests/test_answers.py",
    ),
    Mutant(
        "headrace/envs/atari.py", "if self._over or seed is not None:", "if seed is not None:", "tests/test_atari.py"
    ),
    Mutant(
        "headrace/envs/checking/check.py",
        "if n_steps < 1 or seed < 0 or timeout <= 0:",
        "if n_steps < 1 or seed < 0:",
        "tests/test_checks.py",
    ),
    Mutant(
        "headrace/envs/checking/probe.py", "if not isinstance(info, dict):", "if info is None:", "tests/test_checks.py"
    ),
    Mutant(
        "headrace/envs/checking/resume.py",
        "channel.reply(trial.why_not)",
        'channel.reply("")',
        "tests/test_check_env_command.py",
    ),
    Mutant(
        "headrace/envs/checking/rules.py", "return CLAUSES[self.clause]", "return self.expected", "tests/test_checks.py"
    ),
    Mutant(
        "headrace/envs/checking/stages.py",
        "if len(seeded) < _DISTINCT:",
        "if len(seeded) >= 0:",
        "tests/test_checks.py",
    ),
    Mutant("headrace/envs/envpool.py", "seed=0 if seed is None else seed", "seed=0", "tests/test_vector_envs.py"),
    Mutant(
        "headrace/envs/factory.py",
        "if not isinstance(space, gymnasium.Space):",
        "if False:",
        "tests/test_contract_checks.py",
    ),
    Mutant(
        "headrace/envs/global_rng.py",
        "if name in before and state != before[name]]",
        "if name in before and state == before[name]]",
        "tests/test_global_rng.py",
    ),
    Mutant(
        "headrace/envs/infos.py",
        'if dtype.kind in "bui" and (cast != value).any():',
        "if False:",
        "tests/test_contract_checks.py",
    ),
    Mutant(
        "headrace/envs/legacy_gym.py",
        "if not isinstance(answer, tuple) or len(answer) != expected:",
        "if not isinstance(answer, tuple):",
        "tests/test_legacy_gym.py",
    ),
    Mutant(
        "headrace/envs/pickling.py",
        "if self.tell() + memoryview(data).nbytes > _LARGEST:",
        "if False:",
        "tests/test_resume_samplers.py",
    ),
    Mutant(
        "headrace/envs/padded.py",
        "enumerate(characters, 1)",
        "enumerate(characters, 0)",
        "tests/test_padded.py",
    ),
    Mutant("headrace/envs/plain_spaces.py", "if n_numbers > _MOST_NUMBERS:", "if False:", "tests/test_policy.py"),
    Mutant(
        "headrace/envs/copy_trial.py",
        "if not _same(came, expected, columns):",
        "if False:",
        "tests/test_resume_samplers.py",
    ),
    Mutant("headrace/envs/registering.py", "if len(found) == 1:", "if False:", "tests/test_registering.py"),
    Mutant(
        "headrace/envs/scalar.py",
        'self._check_finite(observation, None, floats, "reset()")',
        "pass",
        "tests/test_contract_checks.py",
    ),
    Mutant(
        "headrace/envs/vector/answers.py",
        "if ends.shape != (self._n,) or not known:",
        "if ends.shape != (self._n,):",
        "tests/test_vector_envs.py",
    ),
    Mutant(
        "headrace/envs/vector/batch.py",
        "out.truncated[:] = truncated",
        "out.truncated[:] = False",
        "tests/test_vector_envs.py",
    ),
    Mutant("headrace/envs/vector/spec.py", "if env.num_envs != num_envs:", "if False:", "tests/test_vector_envs.py"),
    Mutant(
        "headrace/envs/stepping.py",
        "row.reward[:] = np.frombuffer(rewards)",
        "pass",
        "tests/test_native.py",
    ),
    Mutant("headrace/envs/spaces.py", "if lost.any():", "if False:", "tests/test_spaces.py"),
    # buffers
    Mutant(
        "headrace/buffers/describe.py",
        "{int(env.valid.sum())} valid steps",
        "{env.valid.numel()} valid steps",
        "tests/test_discovery.py",
    ),
    Mutant(
        "headrace/buffers/samples.py",
        "fits = slice(0, min(n, len(self.time)))",
        "fits = slice(0, len(self.time))",
        "tests/test_serial_sampler.py",
    ),
    Mutant("headrace/buffers/shared.py", "self._offset += size", "self._offset += 0", "tests/test_serial_sampler.py"),
    Mutant(
        "headrace/buffers/tensordict.py",
        "if name not in left_out",
        "if True",
        "tests/test_discovery.py",
    ),
    Mutant(
        "headrace/buffers/tree.py",
        "return tree_map(lambda leaf: leaf[index], tree)",
        "return tree_map(lambda leaf: leaf[:], tree)",
        "tests/test_tree.py",
    ),
    # processes
    Mutant(
        "headrace/processes/affinity.py",
        "return cores if quota is None else min(cores, quota)",
        "return cores",
        "tests/test_patience.py",
    ),
    Mutant("headrace/processes/causes.py", "if exitcode < 0:", "if exitcode < -64:", "tests/test_worker_group.py"),
    Mutant(
        "headrace/processes/child.py",
        "self._send(Failure.of(error, self.status))",
        "self._send(None)",
        "tests/test_handoff.py",
    ),
    Mutant("headrace/processes/descendants.py", "os.setpgid(0, 0)", "pass", "tests/test_orphans.py"),
    Mutant("headrace/processes/fresh.py", "refused = event in _REFUSED or (", "refused = (", "tests/test_fresh.py"),
    Mutant(
        "headrace/processes/group.py",
        'payloads = arguments if start_method == "fork" else [pickled(argument) for argument in arguments]',
        "payloads = arguments",
        "tests/test_worker_group.py",
    ),
    Mutant("headrace/processes/handoff.py", "self.late += 1", "pass", "tests/test_handoff.py"),
    Mutant("headrace/processes/late_import.py", "self._then()", "pass", "tests/test_late_import.py"),
    Mutant(
        "headrace/processes/lifeline.py",
        "fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)",
        "pass",
        "tests/test_orphans.py",
    ),
    Mutant("headrace/processes/members.py", "os.killpg(pid, signal.SIGKILL)", "pass", "tests/test_orphans.py"),
    Mutant(
        "headrace/processes/patience.py",
        "if quota is not None and len(pids) > quota:",
        "if False:",
        "tests/test_patience.py",
    ),
    Mutant(
        "headrace/processes/start_method.py",
        'if sys.platform == "linux" and not cuda else "forkserver"',
        'if sys.platform == "linux" else "forkserver"',
        "tests/test_worker_group.py",
    ),
    Mutant(
        "headrace/processes/status.py",
        "env_id=None if env_id < 0 else env_id,",
        "env_id=env_id,",
        "tests/test_vector_envs.py",
    ),
    Mutant(
        "headrace/processes/ray_actor.py",
        "if raw.nbytes < _LARGE:",
        "if False:",
        "tests/test_ray_settings.py",
    ),
    Mutant(
        "headrace/processes/ray_group.py",
        "return [self._answers.pop(rank) for rank in asked]",
        "return [self._answers.pop(rank) for rank in sorted(asked)]",
        "tests/test_ray.py",
    ),
    Mutant(
        "headrace/processes/ray_session.py",
        "if numbers < _OLDEST:",
        "if False:",
        "tests/test_ray_settings.py",
    ),
    # replays
    Mutant(
        "headrace/replays/frames.py", "index = index - B * follows", "index = index - B", "tests/test_replays_frames.py"
    ),
    Mutant("headrace/replays/make.py", "if needed > free:", "if False:", "tests/test_replays.py"),
    Mutant(
        "headrace/replays/prioritized.py",
        "self._largest = max(self._largest, float(values.max(initial=0.0)))",
        "pass",
        "tests/test_replays_prioritized.py",
    ),
    Mutant(
        "headrace/replays/records.py",
        "if digest(packed, payload) != found or not",
        "if not",
        "tests/test_replays_file.py",
    ),
    Mutant("headrace/replays/ring.py", "if head < count:", "if False:", "tests/test_replays_file.py"),
    Mutant(
        "headrace/replays/sink.py",
        'if name not in ("spec", "ring")',
        'if name not in ("spec",)',
        "tests/test_async_runners.py",
    ),
    Mutant(
        "headrace/replays/storage.py", "if segment.stop <= ring.oldest[0]:", "if False:", "tests/test_replays_file.py"
    ),
    Mutant(
        "headrace/replays/sum_tree.py",
        "np.add(below[::2], below[1::2], out=",
        "np.add(below[::2], below[::2], out=",
        "tests/test_replays_tree.py",
    ),
    Mutant(
        "headrace/replays/transitions.py", "discount[(ends & TERMINATED) != 0] = 0", "pass", "tests/test_replays.py"
    ),
    Mutant(
        "headrace/replays/uniform.py",
        "least = spec.batch.T + n_step + max(spec.frames, 1)",
        "least = spec.batch.T",
        "tests/test_replays.py",
    ),
    Mutant(
        "headrace/replays/window.py",
        "ahead & behind & (((flags & FIRST) != 0) | _continued(follows, valid))",
        "ahead & behind",
        "tests/test_replays.py",
    ),
    Mutant(
        "headrace/replays/writer.py",
        "joined = first > 0 and ring.cut[0] != first",
        "joined = first > 0",
        "tests/test_replays.py",
    ),
    # acting
    Mutant(
        "headrace/agents/plan.py",
        "if state is not self._state:\n            self._enter(state)\n        done",
        "if self._state is None and state is not None:\n            self._enter(state)\n        done",
        "tests/test_acting_plan.py",
    ),
    Mutant(
        "headrace/numpy_acting.py",
        "gates += of_state[1]",
        "pass",
        "tests/test_acting_plan.py",
    ),
    # whole episodes
    Mutant(
        "headrace/samplers/episodes/pace.py",
        "return max(1, min(n_rows, int((self._deadline - now) / per_row)))",
        "return n_rows",
        "tests/test_episode_samplers.py",
    ),
    Mutant(
        "headrace/samplers/episodes/base.py",
        "self._row = max(report.row for report in reports)",
        "pass",
        "tests/test_episode_samplers.py",
    ),
    Mutant(
        "headrace/samplers/episodes/ray.py",
        "return (_own, method, sendable(list(arguments)))",
        "return (method, *map(sendable, arguments[0]))",
        "tests/test_ray_episodes.py",
    ),
    Mutant(
        "headrace/samplers/episodes/agents.py",
        "return value if isinstance(value, Agent) else PolicyAgent(value)",
        "return PolicyAgent(value)",
        "tests/test_episode_samplers.py",
    ),
    Mutant(
        "headrace/samplers/episodes/local.py",
        "return LocalPool(makers, self._status)",
        "return LocalPool(makers[:1], self._status)",
        "tests/test_episode_samplers.py",
    ),
    Mutant(
        "headrace/samplers/collection/loop.py",
        "self._reset_all(np.flatnonzero(~held).tolist() if held.any() and not self.envs.moves_while_held else None)",
        "self._reset_all(None)",
        "tests/test_episode_samplers.py",
    ),
    Mutant(
        "headrace/samplers/inference/policy.py",
        "self.noise[:-1, columns, :size] = uniforms(self._keys[columns], step, n_rows, size)",
        "self.noise[:-1, columns, :size] = uniforms(self._keys[columns], 0, n_rows, size)",
        "tests/test_episode_samplers.py",
    ),
    Mutant(
        "headrace/samplers/episodes/base.py",
        "parts.append(own.take(np.lexsort((own.env_ids, own.starts))))",
        "parts.append(own)",
        "tests/test_episode_samplers.py",
    ),
    Mutant(
        "headrace/samplers/episodes/base.py",
        "parameters = [None] * self._factory.n_workers if self._given else self._parameters()",
        "parameters = [None] * self._factory.n_workers",
        "tests/test_episode_samplers.py",
    ),
    Mutant(
        "headrace/samplers/episodes/collector.py",
        "part = self._cutter.fragments(self._current)",
        "part = None",
        "tests/test_episode_samplers.py",
    ),
    Mutant(
        "headrace/samplers/episodes/cutting.py",
        "self._numbers[column] -= 1  # no other episode has started",
        "pass",
        "tests/test_episode_samplers.py",
    ),
    Mutant(
        "headrace/samplers/episodes/cutting.py",
        "firsts.append(not self._cut[column])",
        "firsts.append(True)",
        "tests/test_episode_samplers.py",
    ),
    Mutant(
        "headrace/samplers/episodes/driver.py",
        "self._worker.update_env(copy.deepcopy(envs))",
        "self._worker.update_env(envs)",
        "tests/test_episode_samplers.py",
    ),
    Mutant(
        "headrace/samplers/episodes/environments.py",
        "self.infos.append(info_copy(info) if isinstance(info, dict) else {})",
        "self.infos.append({})",
        "tests/test_episode_samplers.py",
    ),
    Mutant(
        "headrace/samplers/episodes/environments.py",
        "(self._first_seed(index), None) if now is env else",
        "(1, 1) if now is env else",
        "tests/test_episode_samplers.py",
    ),
    Mutant(
        "headrace/samplers/episodes/factory.py",
        "n_workers: int = field(default_factory=usable_cores)",
        "n_workers: int = 1",
        "tests/test_episode_samplers.py",
    ),
    Mutant(
        "headrace/samplers/episodes/multiprocessing.py",
        "start_method=options.start_method,",
        'start_method="nothing",',
        "tests/test_episode_samplers.py",
    ),
    Mutant(
        "headrace/samplers/episodes/options.py",
        "return replace(given, worker_args={**given.worker_args, **own})",
        "return given",
        "tests/test_episode_samplers.py",
    ),
    Mutant(
        "headrace/samplers/episodes/pools.py",
        "return cloudpickle.loads, (cloudpickle.dumps(self._value),)",
        "return type(self), (self._value,)",
        "tests/test_episode_samplers.py",
    ),
    Mutant(
        "headrace/samplers/episodes/started.py",
        "chosen = chosen[ended.order[chosen] < self._earliest]",
        "pass",
        "tests/test_episode_samplers.py",
    ),
    Mutant(
        "headrace/samplers/episodes/started.py",
        "old = self._ended.version < version",
        "old = self._ended.version < 0",
        "tests/test_episode_samplers.py",
    ),
    Mutant(
        "headrace/samplers/episodes/worker.py",
        "if self.collector.is_idle or (self.n_envs == 1 and self.collector.running[0] != self.collector.row):",
        "if self.collector.is_idle:",
        "tests/test_episode_samplers.py",
    ),
    Mutant(
        "headrace/samplers/episodes/worker.py",
        'setattr(cls, new, vars(cls)[f"{old}_rollout"])',
        "pass",
        "tests/test_episode_samplers.py",
    ),
    Mutant(
        "headrace/runners/local.py",
        "state = np.random.SeedSequence(seed, spawn_key=(start_epoch,)).generate_state(1)",
        "state = [seed]",
        "tests/test_local_runner.py",
    ),
    Mutant(
        "headrace/runners/episode_algo.py",
        "algo.load_state_dict(dict(self._state))",
        "pass",
        "tests/test_local_runner.py",
    ),
    Mutant(
        "headrace/checkpoints/snapshots.py",
        "if not hmac.compare_digest(content[len(_HEADER) : start], signature(payload)):",
        "if False:",
        "tests/test_local_runner.py",
    ),
    Mutant(
        "headrace/samplers/episodes/policies.py",
        "key = (self._greedy, env_ids.tobytes())",
        "key = (self._greedy, bytes(len(env_ids)))",
        "tests/test_policy_agent.py",
    ),
    Mutant(
        "headrace/samplers/episodes/policies.py",
        "is_first, self._new = np.ones(self._n, np.bool_), False",
        "self._new = False",
        "tests/test_policy_agent.py",
    ),
    Mutant(
        "headrace/samplers/episodes/policy_values.py",
        "policy.set_param_values(unpacked(came))",
        "pass",
        "tests/test_policy_agent.py",
    ),
    Mutant(
        "headrace/samplers/episodes/tasks.py",
        "[rng.permutation(n_available) for",
        "[np.arange(n_available) for",
        "tests/test_env_updates.py",
    ),
    Mutant(
        "headrace/samplers/episodes/updates.py",
        "type(innermost) is self._env_type",
        "isinstance(innermost, self._env_type)",
        "tests/test_env_updates.py",
    ),
    # streams
    Mutant(
        "headrace/streams/codec.py",
        "if self._nbytes > self._limits.payload_bytes:",
        "if False:",
        "tests/test_stream_codec.py",
    ),
    Mutant(
        "headrace/streams/packing.py",
        "return min(n, max(0, expected - frame.sequence)), max(0, frame.sequence - expected)",
        "return 0, 0",
        "tests/test_sample_streams.py",
    ),
    Mutant(
        "headrace/streams/inbox.py",
        "unpacked(samples_like(self._example, frame), before, n)",
        "unpacked(samples_like(self._example, frame), 0, n)",
        "tests/test_sample_streams_sockets.py",
    ),
    Mutant(
        "headrace/streams/outbox.py",
        "self._messages.appendleft(message)",
        "self._messages.append(message)",
        "tests/test_sample_streams.py",
    ),
    Mutant(
        "headrace/streams/local.py",
        "[bytes(part) for part in message.parts]",
        "[message.parts[0], *map(bytes, reversed(message.parts[1:]))]",
        "tests/test_sample_streams.py",
    ),
    Mutant(
        "headrace/streams/slots.py",
        "if pid != self._lock.pid and _birth(pid) != birth:",
        "if False:",
        "tests/test_sample_streams_shared.py",
    ),
    Mutant(
        "headrace/streams/slots.py",
        "and not self._readers[slot]",
        "",
        "tests/test_sample_streams_shared.py",
    ),
    Mutant(
        "headrace/streams/file_lock.py",
        "        try:\n            fcntl.flock(self._fd, _LOCK)\n        except",
        "        try:\n            pass\n        except",
        "tests/test_sample_streams_shared.py",
    ),
    Mutant(
        "headrace/streams/rendezvous.py",
        "host.close_sockets()",
        "pass",
        "tests/test_sample_streams_shared.py",
    ),
    Mutant(
        "headrace/streams/shared_memory.py",
        "if copy:",
        "if False:",
        "tests/test_sample_streams.py",
    ),
    Mutant(
        "headrace/streams/sockets.py",
        "if key in self._allowed else",
        "if key else",
        "tests/test_sample_streams_sockets.py",
    ),
    Mutant(
        "headrace/streams/ip.py",
        "self.uncertain += sum(self._recent)\n            self._recent.clear()",
        "pass",
        "tests/test_sample_streams_sockets.py",
    ),
    Mutant(
        "headrace/streams/name_resolving.py",
        "self._numbers[sender.address] += 1",
        "self._numbers[sender.address] += 2",
        "tests/test_sample_streams_sockets.py",
    ),
    Mutant(
        "headrace/streams/buffers.py",
        "entry.uses += 1",
        "pass",
        "tests/test_sample_streams.py",
    ),
    Mutant(
        "headrace/streams/admission.py",
        "(int(head[_ACCEPTED]) + running)",
        "running",
        "tests/test_admission.py",
    ),
    Mutant(
        "headrace/streams/admission_sockets.py",
        "kinds == [int, bool, int, float] and answer[0] == self._number",
        "kinds == [int, bool, int, float]",
        "tests/test_admission.py",
    ),
    # the command line
    Mutant(
        "headrace/cli/environments.py",
        "in_child(_spaces, factory, start_method)",
        "_spaces(factory)",
        "tests/test_command_environments.py",
    ),
]
