"""Architectures that torchvision lacks."""
