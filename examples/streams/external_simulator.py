"""A simulator that asks a policy for actions and posts samples, with NumPy, psutil, msgpack and pyzmq alone.

    python external_simulator.py tcp://127.0.0.1:5555 tcp://127.0.0.1:5556 [number of samples]

The first address is that of an inference server, which a policy process has made with
`make_server(InferenceStream("ip", address="tcp://127.0.0.1:5555"))`; the second that of a consumer of samples, which a
learner has made with `make_consumer(SampleStream("ip", address="tcp://127.0.0.1:5556"))`.
"""

from __future__ import annotations

import sys

import numpy as np

from headrace.streams import InferenceStream, SampleStream, make_client, make_producer

N_CARTS = 8
T = 16  # steps in a sample


class Carts:
    """Carts on a line, which shall stay near its middle: a push to the left or to the right in every step."""

    def __init__(self, n: int) -> None:
        self.rng = np.random.default_rng(0)
        self.state = np.zeros((n, 2), np.float32)  # position, velocity

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns rewards float32 `[n]` and ends bool `[n]`; carts that reached an end of the line start again."""
        self.state[:, 1] += np.where(actions == 1, 0.1, -0.1) + self.rng.normal(0, 0.02, len(actions))
        self.state[:, 0] += self.state[:, 1]
        reward = 1 - np.abs(self.state[:, 0])
        ended = np.abs(self.state[:, 0]) > 1
        self.state[ended] = self.rng.uniform(-0.1, 0.1, (int(ended.sum()), 2))
        return reward.astype(np.float32), ended


def main(policy_address: str, learner_address: str, n_samples: int = 4) -> None:
    carts = Carts(N_CARTS)
    with (
        make_client(InferenceStream("ip", address=policy_address)) as client,
        make_producer(SampleStream("ip", address=learner_address)) as producer,
    ):
        agents = [client.register_agent() for _ in range(N_CARTS)]
        for number in range(n_samples):
            rows = []
            for _ in range(T):
                observation = carts.state.copy()
                ids = [client.post_request({"observation": observation[agent]}, agent) for agent in agents]
                client.flush()
                client.wait(ids)
                results = client.consume_result(ids)
                action = np.array([result.value["action"] for result in results])
                reward, done = carts.step(action)
                rows.append({"observation": observation, "action": action, "reward": reward, "done": done})
            version = results[0].policy_version
            producer.post({key: np.stack([row[key] for row in rows]) for key in rows[0]}, version)  # [T, n]
            producer.flush()
            print(f"sample {number}: {T} steps of {N_CARTS} carts, last with version {version} of the policy")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
