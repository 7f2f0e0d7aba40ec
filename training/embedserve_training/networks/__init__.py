"""Backbones, heads and layers."""
