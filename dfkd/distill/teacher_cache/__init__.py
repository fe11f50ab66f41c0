"""The teacher's answers, stored once for several views of every image."""
