"""Services of a distributed run: who is where, and which parameters are the latest."""

from headrace.services.name_resolve import (
    LostRecord as LostRecord,
    MemoryNameRecordRepository as MemoryNameRecordRepository,
    NameRecordRepository as NameRecordRepository,
    NameWatch as NameWatch,
    NFSNameRecordRepository as NFSNameRecordRepository,
    NfsNameRecordRepository as NfsNameRecordRepository,
    RayNameRecordRepository as RayNameRecordRepository,
    RedisNameRecordRepository as RedisNameRecordRepository,
    make_repository as make_repository,
)
from headrace.services.parameter_db import ParameterDBClient as ParameterDBClient, ParameterEntry as ParameterEntry
