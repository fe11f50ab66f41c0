"""What every training shares, a student's and a generator's: where images come from, their views, and the loop."""
