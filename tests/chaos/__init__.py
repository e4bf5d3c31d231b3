"""Faults under load: processes are killed and frozen by seed, and results must equal those of a run without faults."""
