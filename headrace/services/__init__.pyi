"""Services of a distributed run: who is where, and which parameters are the latest."""

from headrace.services.parameter_db import ParameterDBClient as ParameterDBClient, ParameterEntry as ParameterEntry
