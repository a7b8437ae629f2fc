"""The workers of cartpole.py on two machines: the second one has one of the actors.

On each machine, with a folder that both share and a Redis that both reach:

    headrace launch examples/launch/cartpole_two_machines.py --transport zmq --names redis://HOST:6379 \
        --host ADDRESS_OF_THIS_MACHINE --folder SHARED_FOLDER --node-rank 0      # 1 on the second machine

two_machines.sh does it on one machine, in two network namespaces.
"""

from dataclasses import replace

from cartpole import CartPole

from headrace.system import ExperimentConfig, register_experiment


class CartPoleTwoMachines(CartPole):
    """The second actor runs on machine 1."""

    def initial_setup(self) -> ExperimentConfig:
        config = super().initial_setup()
        first, second = config.actors
        return replace(config, actors=[first, replace(second, node=1)])


register_experiment("cartpole-two-machines", CartPoleTwoMachines)
