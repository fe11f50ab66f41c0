"""Where the features of a network are, and what is read there."""
