"""The protocol machines under a seeded virtual clock, among simulated nodes with faults. Pure: a seed replays a run exactly."""
