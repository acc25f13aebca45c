"""What frozen features are worth: probes, the baselines beside them, and figures."""
