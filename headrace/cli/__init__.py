"""The command line: `headrace train --env CartPole-v1`."""
