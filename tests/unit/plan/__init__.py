"""The planner: sizes, memory, time, search, its command."""
