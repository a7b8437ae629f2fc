"""Streams between processes and machines: samples to a learner, observations to a policy, actions back."""

from headrace.streams.inference.client import (
    ClientCounts as ClientCounts,
    InferenceClient as InferenceClient,
    InferenceResult as InferenceResult,
)
from headrace.streams.inference.inline import InlineInferenceClient as InlineInferenceClient
from headrace.streams.inference.local import LocalInferenceQueues as LocalInferenceQueues
from headrace.streams.inference.server import (
    InferenceBatch as InferenceBatch,
    InferenceServer as InferenceServer,
    ServerCounts as ServerCounts,
)
from headrace.streams.inference.spec import (
    InferenceStream as InferenceStream,
    make_client as make_client,
    make_server as make_server,
)
