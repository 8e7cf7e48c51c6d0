"""From a target to a torch.fx graph and a PrecisionGraph."""
