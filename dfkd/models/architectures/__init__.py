"""Networks for small images that torchvision lacks."""
