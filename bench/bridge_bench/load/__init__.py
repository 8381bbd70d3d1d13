"""Predictors under load: MLPerf LoadGen's scenarios, and an open-loop issuer of our own.

``run`` puts a model or a record under load in a child process with a watchdog;
``find_max_qps`` looks for the highest rate that keeps a promise about latency.
"""

from bridge_bench.load.peak import Peak, Probe, find_max_qps
from bridge_bench.load.result import Floor, Latency, LoadResult
from bridge_bench.load.scenario import Issuer, Scenario
from bridge_bench.load.session import Session, run
from bridge_bench.load.sla import Sla, SlaVerdict, judge

__all__ = [
    "Floor",
    "Issuer",
    "Latency",
    "LoadResult",
    "Peak",
    "Probe",
    "Scenario",
    "Session",
    "Sla",
    "SlaVerdict",
    "find_max_qps",
    "judge",
    "run",
]
