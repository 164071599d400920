"""SeqIO tasks and mixtures: what an example is, for each corpus."""
