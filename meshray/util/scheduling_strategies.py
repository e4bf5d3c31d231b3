"""Scheduling strategies, where Ray programs look for them.

*Pure.* Used by user programs.
"""

from __future__ import annotations

from meshray.options import NodeAffinitySchedulingStrategy

__all__ = ["NodeAffinitySchedulingStrategy"]
