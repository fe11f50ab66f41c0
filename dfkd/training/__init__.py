"""What the trainings of students and of generators share: sources of images, their orders, the loop, and evaluation."""
