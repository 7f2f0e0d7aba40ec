"""From a run to an encoder file that was compared with PyTorch."""
