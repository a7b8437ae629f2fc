"""Worker processes: starting, watching and ending them."""

from headrace.processes.affinity import Affinity as Affinity, usable_cores as usable_cores
from headrace.processes.group import WorkerGroup as WorkerGroup
from headrace.processes.ray_group import RayGroup as RayGroup
from headrace.processes.ray_session import RayActors as RayActors, RayCluster as RayCluster, RaySession as RaySession
