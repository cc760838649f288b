"""Recover the accuracy of a swapped network from unlabelled images."""
