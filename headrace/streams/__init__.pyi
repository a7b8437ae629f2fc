"""Streams between processes and machines: samples to a learner, observations to a policy, actions back."""

from headrace.streams.admission import (
    Admission as Admission,
    AdmissionCounts as AdmissionCounts,
    AdmissionGate as AdmissionGate,
    Gate as Gate,
    Lease as Lease,
)
from headrace.streams.admission_sockets import AdmissionClient as AdmissionClient, AdmissionServer as AdmissionServer
from headrace.streams.buffers import (
    Appending as Appending,
    BufferCounts as BufferCounts,
    FifoBuffer as FifoBuffer,
    PriorityBuffer as PriorityBuffer,
)
from headrace.streams.codec import Frame as Frame, decoded as decoded, encoded as encoded
from headrace.streams.inference.client import (
    ClientCounts as ClientCounts,
    InferenceClient as InferenceClient,
)
from headrace.streams.inference.inline import InlineInferenceClient as InlineInferenceClient
from headrace.streams.inference.local import LocalInferenceQueues as LocalInferenceQueues
from headrace.streams.inference.requests import (
    InferenceResult as InferenceResult,
    InferenceResults as InferenceResults,
)
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
from headrace.streams.ip import IpSampleConsumer as IpSampleConsumer, IpSampleProducer as IpSampleProducer
from headrace.streams.limits import Limits as Limits
from headrace.streams.local import (
    LocalSampleConsumer as LocalSampleConsumer,
    LocalSampleProducer as LocalSampleProducer,
    SampleQueue as SampleQueue,
)
from headrace.streams.name_resolving import (
    NameResolvingSampleConsumer as NameResolvingSampleConsumer,
    NameResolvingSampleProducer as NameResolvingSampleProducer,
)
from headrace.streams.outbox import (
    ZippedSampleProducer as ZippedSampleProducer,
    zip_producers as zip_producers,
)
from headrace.streams.sample import (
    NullSampleProducer as NullSampleProducer,
    SampleBatch as SampleBatch,
    SampleConsumer as SampleConsumer,
    SampleProducer as SampleProducer,
    SampleSink as SampleSink,
    StreamCounts as StreamCounts,
)
from headrace.streams.shared_memory import (
    SharedMemorySampleConsumer as SharedMemorySampleConsumer,
    SharedMemorySampleProducer as SharedMemorySampleProducer,
)
from headrace.streams.sockets import AllowList as AllowList, Keys as Keys
from headrace.streams.spec import (
    SampleStream as SampleStream,
    make_consumer as make_consumer,
    make_producer as make_producer,
    register_consumer as register_consumer,
    register_producer as register_producer,
)
from headrace.streams.spreading import ConsumerCounts as ConsumerCounts
