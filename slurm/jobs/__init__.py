"""Jobs: what they do, as which ranks, how they end and whether they are run again."""
