"""What the cluster runs: router, coalescer, budget and tier actors, each a thin shell around pure rules."""
