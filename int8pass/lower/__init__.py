"""From the rewritten graph to something that runs: one file a lowering, each loaded on use."""
