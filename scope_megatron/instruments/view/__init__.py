"""A page to look at runs: `scope-megatron view RUN...`. It reads their directories, writes nothing.

runs       the run directories: metrics, events, configuration, state
curves     metrics.jsonl followed as it grows, thinned to what a screen can show
search     the index of responses followed as it grows, filtered and sorted; a group's tokens
access     who may ask: this machine, or whoever has the token
server     the addresses of the page and of what it asks for
static/    the page: no build step, nothing from another host
"""
