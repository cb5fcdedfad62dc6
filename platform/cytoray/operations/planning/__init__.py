"""Plans of stages: work, memory, hours and cost, before anything runs."""
