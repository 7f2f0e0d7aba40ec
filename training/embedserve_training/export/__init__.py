"""From a run to an encoder file that is compared with PyTorch."""
