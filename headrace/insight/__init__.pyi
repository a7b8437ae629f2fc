"""Where time goes, and which sampler to use."""

from headrace.insight.bench import BenchReport as BenchReport, bench as bench
from headrace.insight.turns import Interval as Interval, Turn as Turn, ratio_of as ratio_of, take_turns as take_turns
