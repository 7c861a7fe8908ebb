"""The processes of a run: started, watched, stopped together.

launcher    one process per rank on this machine, restarted after a fault
watchdog    heartbeats of all ranks; names the one that died, stopped or hangs
interrupt   Ctrl-C and SIGTERM, agreed between ranks at the end of a step
lock        one live run per output_dir
"""

LAUNCHER_VARIABLE = "SCOPE_MEGATRON_LAUNCHER"  # of the environment: the launcher's process id
