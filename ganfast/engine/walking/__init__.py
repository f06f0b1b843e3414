"""From a forward, as torch.fx or torch.compile's front end records it, to the steps of the explicit
engine."""
